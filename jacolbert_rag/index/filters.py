"""Conditions on metadata: one evaluator for a document, and for all documents at once.

A stored value is JSON. Texts compare by code point, so dates are best stored as ISO 8601. The operators:

| operator | value of the condition | holds for a stored value that |
|---|---|---|
| `==`, `!=` | JSON | equals it: 1 is 1.0, but neither true nor "1"; does not, or is missing |
| `>`, `>=`, `<`, `<=` | number or text | is more than it, ... |
| `in`, `nin` | list | equals one of the list; equals none, or is missing |
| `any`, `all` | list | is a list that shares a value with it; that has all of its values |
| `contains` | JSON | is a list with this value, or a text with this text in it |
| `text_match` | text | is a text with this one in it, once both are in NFKC |
| `text_match_insensitive` | text | the same, once case is folded, too |
| `is_empty` | True (or None), False | is missing, null, "" or []; is none of these |
| `exists` | True, False | is there, if only as null; is missing |

A missing value matches nothing unless the table says so. Null is a value to `==`, `!=`, `in`, `nin`,
`is_empty` and `exists`; no other operator matches it.

Ordering refuses stored values of a type other than the condition's, `any` and `all` those that are no list,
`text_match` those that are no text, and `contains` what can hold no such value. Null is never refused. To be
refused is an error and no mismatch, wherever in a filter the condition stands, and whatever its other parts
say: years that a few documents store as text would be lost in silence.

The field "a.b" is the key "a.b" or else, where there is none, the key "b" of the object "a".
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import operator
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import islice
from threading import Lock
from types import NoneType
from typing import Any, Literal, TypeAlias, get_args
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from jacolbert_rag.datatypes import BoolArray, IdArray, IntArray
from jacolbert_rag.errors import IndexCorruptError, InvalidInputError

Operator = Literal["==", "!=", ">", ">=", "<", "<=", "in", "nin", "any", "all", "contains", "text_match",
                   "text_match_insensitive", "is_empty", "exists"]  # fmt: skip

MAX_MASKS = 32  # that are kept, of a byte a row each
# Metadata that are parsed by one call: twice as fast as one by one, and few are in memory at a time.
PARSED_AT_ONCE = 4096


class _Truth(Enum):
    """JSON's true and false: Python's own equal 1 and 0, as keys too."""

    FALSE = False
    TRUE = True


# A JSON value whose == and hash are those of JSON: a list is a tuple, an object a frozenset of its items.
Frozen: TypeAlias = "_Truth | int | float | str | tuple[Frozen, ...] | frozenset[tuple[str, Frozen]] | None"

_KINDS: dict[type, str] = {NoneType: "null", _Truth: "bool", int: "number", float: "number", str: "text",
                           tuple: "list", frozenset: "object"}  # fmt: skip
_KIND_NAMES = list(dict.fromkeys(_KINDS.values()))
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le
}  # fmt: skip
# What an operator compares with; the others with any JSON.
_TAKES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_COMPARE, ("number", "text")),
    **dict.fromkeys(("in", "nin", "any", "all"), ("list",)),
    **dict.fromkeys(("text_match", "text_match_insensitive"), ("text",)),
    **dict.fromkeys(("is_empty", "exists"), ("bool",)),
}
# Operators by their names in dicts.
_OPERATORS: dict[str, Operator] = {
    "$eq": "==", "$ne": "!=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<=",
    **{f"${op}": op for op in get_args(Operator) if op.isidentifier()},
}  # fmt: skip
_MISSING: Any = object()


@dataclass(frozen=True)
class Condition:
    """One operator on one field; see the table above.

    Attributes:
        field: key of the metadata, or the way to it ("author.name").
        op: the operator.
        value: what it compares with: JSON, copied, lists as tuples.
        frozen: the value in the form that conditions are compared by: `== 1` is not `== True`.

    Raises:
        InvalidInputError: the operator is unknown, or the value none that it compares with.
    """

    field: str
    op: Operator
    value: Any = dataclasses.field(compare=False)
    frozen: Frozen = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.field, str):
            raise InvalidInputError(f"The field of a condition must be a str, not {self.field!r}.")
        if not isinstance(self.op, str) or self.op not in get_args(Operator):
            raise InvalidInputError(_unknown("operator", self.op, get_args(Operator)))
        value = True if self.op == "is_empty" and self.value is None else self.value
        frozen = _freeze(value, f"The value of the condition on {self.field!r}")
        if _KINDS[type(frozen)] not in (takes := _TAKES.get(self.op, _KIND_NAMES)):
            raise InvalidInputError(
                f"The operator {self.op!r} on field {self.field!r} needs {' or '.join(takes)}, not {value!r}."
            )
        # Of an Enum the text itself: its hash is another.
        object.__setattr__(self, "field", str.__str__(self.field))
        object.__setattr__(self, "op", str.__str__(self.op))
        object.__setattr__(self, "value", _thaw(frozen))
        object.__setattr__(self, "frozen", frozen)


@dataclass(frozen=True)
class _Parts:
    parts: tuple[Filter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        for part in self.parts:
            _require_filter(part)


@dataclass(frozen=True)
class AllOf(_Parts):
    """Every part holds; true of no parts."""


@dataclass(frozen=True)
class AnyOf(_Parts):
    """At least one part holds; false of no parts."""


@dataclass(frozen=True)
class NoneOf(_Parts):
    """No part holds; true of no parts."""


Filter: TypeAlias = Condition | AllOf | AnyOf | NoneOf
_JOINS: dict[str, type[AllOf | AnyOf | NoneOf]] = {"$and": AllOf, "$or": AnyOf, "$nor": NoneOf}


def parse(filter: Mapping[str, Any]) -> Filter:
    """The filter that a dict of LangChain's kind, after MongoDB's, stands for.

    `{"lang": "ja", "year": {"$gte": 2000, "$lt": 2010}}` holds where all of it does; `{}` always does. A
    plain value, a list or an object means equality. `$and`, `$or` and `$nor` take a list of such dicts,
    `$not` takes one. Operators: `$eq $ne $gt $gte $lt $lte`, and the named ones of this module behind a `$`.

    Raises:
        InvalidInputError: an operator is unknown or stands in the wrong place, or has no value for it.
    """
    if not isinstance(filter, Mapping):
        raise InvalidInputError(f"A filter must be a dict such as {{'lang': 'ja'}}, not {filter!r}.")
    parts: list[Filter] = []
    for key, value in filter.items():
        if not isinstance(key, str):
            raise InvalidInputError(f"A key of a filter must be a str, not {key!r}.")
        if key == "$not":
            parts.append(NoneOf((parse(value),)))
        elif key in _JOINS:
            if not isinstance(value, list | tuple) or not value:
                raise InvalidInputError(f"{key} needs a list of one or more filters, not {value!r}.")
            parts.append(_JOINS[key](tuple(parse(part) for part in value)))
        elif key in _OPERATORS:
            raise InvalidInputError(f"{key} belongs inside a field: {{'year': {{{key!r}: ...}}}}.")
        elif key.startswith("$"):
            raise InvalidInputError(_unknown("operator", key, (*_JOINS, "$not", *_OPERATORS)))
        else:
            parts += _conditions(key, value)
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _conditions(field: str, value: Any) -> list[Condition]:
    ops = (
        [key for key in value if isinstance(key, str) and key[:1] == "$"]
        if isinstance(value, Mapping)
        else []
    )
    if not ops:
        return [Condition(field, "==", value)]
    if len(ops) < len(value):
        raise InvalidInputError(
            f"Field {field!r} has both operators ({', '.join(ops)}) and plain keys in {dict(value)!r}. Write "
            "operators alone, or {'$eq': {...}} for equality with an object."
        )
    for op in ops:
        if op in (*_JOINS, "$not"):
            raise InvalidInputError(f"{op} stands around fields, not in field {field!r}: {{{op!r}: ...}}.")
        if op not in _OPERATORS:
            raise InvalidInputError(_unknown(f"operator on field {field!r}", op, tuple(_OPERATORS)))
    return [Condition(field, _OPERATORS[op], value[op]) for op in ops]


def matches(filter: Filter, metadata: Mapping[str, Any]) -> bool:
    """Whether a filter holds for the metadata of one document.

    Raises:
        InvalidInputError: a stored value is of a type that a condition's operator refuses; see the module.
    """
    _require_filter(filter)
    if isinstance(filter, Condition):
        if (found := _find(metadata, filter.field)) is _MISSING:
            return _holds_for_missing(filter)
        value = _freeze(found, f"The metadata {filter.field!r}", allow_nan=True)
        if _KINDS[type(value)] not in _fitting(filter):
            raise _refused(filter, value)
        return _test(filter)(value)
    # All parts are asked, so that a document is refused or not whatever the order of conditions.
    held = [matches(part, metadata) for part in filter.parts]
    return all(held) if isinstance(filter, AllOf) else any(held) is isinstance(filter, AnyOf)


class _Column:
    """The values of a field, each once.

    Attributes:
        places: value -> its code, counted from 0 in this order.
        codes: (n_texts,) int32 code of the value in each metadata, -1 where it is missing.
    """

    def __init__(self, places: dict[Frozen, int], codes: IdArray) -> None:
        self.places = places
        self.codes = codes

    @cached_property
    def kinds(self) -> npt.NDArray[np.int8]:
        """(n_values + 1,) number of each value's type in `_KIND_NAMES`; the last, of the missing, is null."""
        number = {kind: _KIND_NAMES.index(name) for kind, name in _KINDS.items()}
        return np.array([*(number[type(value)] for value in self.places), 0], dtype=np.int8)

    @cached_property
    def rising(self) -> dict[str, tuple[list[Any], IntArray]]:
        """For "number" and "text": its values in rising order, without NaN, and the code of each."""
        orders = {}
        for kind in ("number", "text"):
            values: list[Any] = [
                value for value in self.places if _KINDS[type(value)] == kind and value == value
            ]
            values.sort()
            orders[kind] = (values, np.array([self.places[value] for value in values], dtype=np.int64))
        return orders

    def hits(self, condition: Condition) -> BoolArray:
        """(n_values + 1,) whether the condition holds for each value; the last is for a missing one."""
        hits = np.zeros(len(self.places) + 1, dtype=np.bool_)
        op, value = condition.op, condition.frozen
        if op in _COMPARE:
            values, codes = self.rising[_KINDS[type(value)]]
            first = (bisect_left if op in (">=", "<") else bisect_right)(values, value)
            hits[codes[first:] if op in (">", ">=") else codes[:first]] = True
        elif op in ("==", "!=", "in", "nin"):
            hits[[self.places[wanted] for wanted in _wanted(condition) if wanted in self.places]] = True
            hits = hits if op in ("==", "in") else ~hits
        else:
            hits[:-1] = np.fromiter(map(_test(condition), self.places), np.bool_, len(self.places))
        hits[-1] = _holds_for_missing(condition)
        return hits


class MetadataColumns:
    """The metadata of many documents, kept so that a filter costs about a millisecond.

    Each distinct metadata is kept once, as text. The first filter on a field parses them all and keeps the
    field's distinct values, so that an operator is evaluated once for each. Safe to use from many threads.
    """

    def __init__(self, texts: dict[str, int], text_of: IdArray, columns: dict[str, _Column]) -> None:
        """See `build`.

        Args:
            texts: distinct JSON texts -> their number, counted from 0 in this order.
            text_of: (n_rows,) number of each row's text, -1 for a dead row.
            columns: by field, over these texts.
        """
        self._texts = texts
        self._text_of = text_of
        self._columns = columns
        self._masks: OrderedDict[Filter, BoolArray] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def build(cls, rows: Iterable[tuple[int, str]], n_rows: int) -> MetadataColumns:
        """Of these rows.

        Args:
            rows: row number, and the metadata as the JSON text of an object. Other rows are dead: no
                filter holds for them.
            n_rows: of all, dead ones too.

        Raises:
            InvalidInputError: a row number is not within n_rows.
        """
        return cls({}, np.zeros(0, dtype=np.int32), {}).extended(rows, n_rows)

    def extended(
        self, rows: Iterable[tuple[int, str]], n_rows: int, *, dead: Iterable[int] = ()
    ) -> MetadataColumns:
        """This and more rows, as a new object; what is known of the old ones is kept.

        Args:
            rows: as `build` takes them; one that is there gets other metadata.
            n_rows: of all; not fewer than there are.
            dead: rows for which no filter shall hold from now on.

        Raises:
            InvalidInputError: there are more rows already, or a row number is not within n_rows.
        """
        if n_rows < len(self._text_of):
            raise InvalidInputError(f"There are {len(self._text_of)} rows already; n_rows is {n_rows}.")
        with self._lock:
            columns = dict(self._columns)
        texts = dict(self._texts)
        found = [(row, texts.setdefault(text, len(texts))) for row, text in rows]
        changes = np.array([(row, -1) for row in dead] + found, dtype=np.int64).reshape(-1, 2)
        if len(changes) and (changes[:, 0].min() < 0 or changes[:, 0].max() >= n_rows):
            raise InvalidInputError(
                f"Rows must be from 0 to {n_rows - 1}, not {changes[:, 0].min()} to {changes[:, 0].max()}."
            )
        text_of = np.full(n_rows, -1, dtype=np.int32)
        text_of[: len(self._text_of)] = self._text_of
        text_of[changes[:, 0]] = changes[:, 1]
        if len(texts) > 2 * np.count_nonzero(text_of >= 0) + 1000:
            # Most belong to no row any more: begin anew rather than grow with every change.
            kept, live = list(texts), np.flatnonzero(text_of >= 0).tolist()
            return self.build(((row, kept[text_of[row]]) for row in live), n_rows)
        return MetadataColumns(texts, text_of, _read(texts, columns))

    def mask(self, filter: Filter) -> BoolArray:
        """(n_rows,) whether the filter holds for each row; shared, so not to be written.

        Raises:
            InvalidInputError: a row that is not dead has a value of a type that a condition refuses.
        """
        _require_filter(filter)
        with self._lock:
            if (mask := self._masks.get(filter)) is None:
                fields = set(_fields(filter)) - set(self._columns)
                nothing = _Column({}, np.zeros(0, dtype=np.int32))
                self._columns |= _read(self._texts, dict.fromkeys(fields, nothing))
                mask = np.append(self._evaluated(filter), False)[self._text_of]  # dead rows take the last
                mask.setflags(write=False)
                self._masks[filter] = mask
                if len(self._masks) > MAX_MASKS:
                    self._masks.popitem(last=False)
            self._masks.move_to_end(filter)
            return mask

    @cached_property
    def _is_live(self) -> BoolArray:
        """(n_texts,) whether a row has this text."""
        live = np.zeros(len(self._texts) + 1, dtype=np.bool_)
        live[self._text_of] = True
        return live[:-1]

    def _evaluated(self, filter: Filter) -> BoolArray:
        """(n_texts,) whether a filter holds."""
        if not isinstance(filter, Condition):
            join = np.logical_and if isinstance(filter, AllOf) else np.logical_or
            held: BoolArray = np.full(len(self._texts), isinstance(filter, AllOf))
            for part in filter.parts:
                join(held, self._evaluated(part), out=held)
            return ~held if isinstance(filter, NoneOf) else held
        column = self._columns[filter.field]
        fitting = _fitting(filter)
        wrong = np.array([kind not in fitting for kind in _KIND_NAMES])[column.kinds]
        if wrong.any() and (refused := np.flatnonzero(wrong[column.codes] & self._is_live)).size:
            raise _refused(filter, next(islice(column.places, int(column.codes[refused[0]]), None)))
        return column.hits(filter)[column.codes]


def _read(texts: Iterable[str], columns: Mapping[str, _Column]) -> dict[str, _Column]:
    """Columns over all texts, from columns over the same first of them."""
    known = {field: dict(column.places) for field, column in columns.items()}
    found: dict[str, list[int]] = {field: [] for field in columns}
    left = islice(texts, max((len(column.codes) for column in columns.values()), default=0), None)
    while some := list(islice(left, PARSED_AT_ONCE if columns else 0)):
        parsed = _parsed(some)
        for field, places in known.items():
            for metadata in parsed:
                value = metadata[field] if field in metadata else _find(metadata, field)
                if type(value) is not str and value is not _MISSING:  # most are text, and need no call
                    value = _freeze(value, field, allow_nan=True)
                code = -1 if value is _MISSING else places.setdefault(value, len(places))
                found[field].append(code)
    return {
        field: _Column(known[field], np.append(column.codes, np.array(found[field], dtype=np.int32)))
        for field, column in columns.items()
    }


def _parsed(texts: Sequence[str]) -> list[dict[str, Any]]:
    try:
        parsed: list[Any] = json.loads(f"[{','.join(texts)}]")
    except ValueError:
        parsed = []
    if len(parsed) != len(texts) or not all(isinstance(metadata, dict) for metadata in parsed):
        raise IndexCorruptError(
            f"Of {len(texts)} stored metadata, from {texts[0][:80]!r} on, one is not the JSON text of an "
            "object: what stores them is damaged. Restore it from a copy, or make it anew."
        )
    return parsed


def _find(metadata: Mapping[str, Any], field: str) -> Any:
    """The value of a field, or _MISSING."""
    while field not in metadata:
        head, _, field = field.partition(".")
        metadata = metadata.get(head, _MISSING)
        if not isinstance(metadata, Mapping):
            return _MISSING
    return metadata[field]


def _freeze(value: Any, what: str, *, allow_nan: bool = False) -> Frozen:
    if value is None or isinstance(value, bool):
        return None if value is None else _Truth(value)
    if isinstance(value, str):
        return str.__str__(value)  # of an Enum, too, the text itself
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and (value == value or allow_nan):
        return float(value)
    if isinstance(value, list | tuple):
        return tuple(_freeze(v, what, allow_nan=allow_nan) for v in value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return frozenset((str.__str__(k), _freeze(v, what, allow_nan=allow_nan)) for k, v in value.items())
    raise InvalidInputError(
        f"{what} must be JSON (None, bool, int, float but not NaN, str, list, dict with str keys), not "
        f"{value!r} of type {type(value).__name__}. Turn dates and other objects into text or numbers."
    )


def _thaw(value: Frozen) -> Any:
    if isinstance(value, tuple):
        return tuple(_thaw(v) for v in value)
    if isinstance(value, frozenset):
        return {key: _thaw(v) for key, v in sorted(value, key=operator.itemgetter(0))}
    return value.value if isinstance(value, _Truth) else value


def _holds_for_missing(condition: Condition) -> bool:
    if condition.op in ("is_empty", "exists"):
        return (condition.op == "is_empty") is (condition.frozen is _Truth.TRUE)
    return condition.op in ("!=", "nin")


def _fitting(condition: Condition) -> set[str]:
    """Types of stored values that the condition can be asked of."""
    op, kind = condition.op, _KINDS[type(condition.frozen)]
    if op in _COMPARE:
        return {"null", kind}
    if op in ("any", "all"):
        return {"null", "list"}
    if op == "contains":
        return {"null", "list", "text"} if kind == "text" else {"null", "list"}
    return {"null", "text"} if op in ("text_match", "text_match_insensitive") else set(_KIND_NAMES)


def _wanted(condition: Condition) -> tuple[Frozen, ...]:
    """The values of which a stored one equals one, or has some."""
    value = condition.frozen
    return value if condition.op in ("in", "nin", "any", "all") and isinstance(value, tuple) else (value,)


def _test(condition: Condition) -> Callable[[Frozen], bool]:
    """The condition as a function of a stored value; false of one that it refuses, and of null."""
    op, value = condition.op, condition.frozen
    if op in _COMPARE:
        compare, kind = _COMPARE[op], _KINDS[type(value)]
        return lambda v: _KINDS[type(v)] == kind and compare(v, value)
    if op in ("text_match", "text_match_insensitive"):
        fold = str.casefold if op == "text_match_insensitive" else str
        text = fold(normalize("NFKC", str(value)))
        return lambda v: isinstance(v, str) and text in fold(normalize("NFKC", v))
    if op in ("is_empty", "exists"):
        empty = (None, "", ()) if op == "is_empty" else ()
        return lambda v: ((v in empty) is (op == "is_empty")) is (value is _Truth.TRUE)
    wanted = frozenset(_wanted(condition))
    if op == "any" or (op == "contains" and not isinstance(value, str)):
        return lambda v: isinstance(v, tuple) and not wanted.isdisjoint(v)
    if op == "all":
        return lambda v: isinstance(v, tuple) and wanted.issubset(v)
    if op == "contains":
        return lambda v: isinstance(v, tuple | str) and value in v
    return lambda v: (v in wanted) is (op in ("==", "in"))


def _fields(filter: Filter) -> Iterator[str]:
    if isinstance(filter, Condition):
        yield filter.field
    else:
        for part in filter.parts:
            yield from _fields(part)


def _require_filter(filter: object) -> None:
    if not isinstance(filter, Filter):
        hint = "; parse(...) makes one of a dict" if isinstance(filter, Mapping) else ""
        raise InvalidInputError(
            f"A filter must be a Condition, AllOf, AnyOf or NoneOf, not {filter!r}{hint}."
        )


def _unknown(what: str, found: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(found), known, n=1, cutoff=0.7)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {what}: {found!r}.{hint} Known are {', '.join(known)}."


def _refused(condition: Condition, stored: Frozen) -> InvalidInputError:
    expected = " or ".join(kind for kind in _KIND_NAMES if kind in _fitting(condition) - {"null"})
    example = json.dumps(_thaw(stored), ensure_ascii=False)
    return InvalidInputError(
        f"Field {condition.field!r} of a document is of type {_KINDS[type(stored)]}, such as "
        f"{example[:80]}, but the condition {condition.field} {condition.op} {condition.value!r} needs "
        f"{expected}. Store the field as one type in all documents, or change the condition."
    )
