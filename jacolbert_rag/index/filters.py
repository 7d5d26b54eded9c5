"""Conditions on metadata, as values and as dicts, and asked of one document.

A stored value is JSON. Texts compare by code point, so dates are best stored as ISO 8601. The operators::

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

`==`, `!=`, `in` and `nin` may be asked of fields of several types. But where all documents are asked at once
(`columns`), they refuse a field of which no stored value, null aside, is of the type of any that they compare
with: year == "2022" can hold for none of the years that are numbers, nor tags == "a" for lists. One document
cannot tell, and just does not match.

A document's title is its field "title" where it has one and its metadata has no such key (`Document.fields`).
The field "a.b" is the key "a.b" or else, where there is none, the key "b" of the object "a".
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import NoneType
from typing import Any, Literal, TypeAlias, get_args
from unicodedata import normalize

from jacolbert_rag.errors import InvalidInputError

Operator = Literal["==", "!=", ">", ">=", "<", "<=", "in", "nin", "any", "all", "contains", "text_match",
                   "text_match_insensitive", "is_empty", "exists"]  # fmt: skip


class _Truth(Enum):
    """JSON's true and false: Python's own equal 1 and 0, as keys too."""

    FALSE = False
    TRUE = True


# A JSON value whose == and hash are those of JSON: a list is a tuple, an object a frozenset of its items.
Frozen: TypeAlias = "_Truth | int | float | str | tuple[Frozen, ...] | frozenset[tuple[str, Frozen]] | None"

KINDS: dict[type, str] = {NoneType: "null", _Truth: "bool", int: "number", float: "number", str: "text",
                           tuple: "list", frozenset: "object"}  # fmt: skip
KIND_NAMES = list(dict.fromkeys(KINDS.values()))
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le
}  # fmt: skip
EQUALITY = ("==", "!=", "in", "nin")
# What an operator compares with; the others with any JSON.
_TAKES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(COMPARE, ("number", "text")),
    **dict.fromkeys(("in", "nin", "any", "all"), ("list",)),
    **dict.fromkeys(("text_match", "text_match_insensitive"), ("text",)),
    **dict.fromkeys(("is_empty", "exists"), ("bool",)),
}
# Operators by their names in dicts.
_OPERATORS: dict[str, Operator] = {
    "$eq": "==", "$ne": "!=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<=",
    **{f"${op}": op for op in get_args(Operator) if op.isidentifier()},
}  # fmt: skip
MISSING: Any = object()


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
        what = f"The value of the condition on {self.field!r}"
        try:
            frozen = freeze(value, what)
        except RecursionError:
            raise InvalidInputError(f"{what} has too many lists and objects within one another.") from None
        if KINDS[type(frozen)] not in (takes := _TAKES.get(self.op, KIND_NAMES)):
            raise InvalidInputError(
                f"The operator {self.op!r} on field {self.field!r} needs {' or '.join(takes)}, not "
                f"{_shown(value)}."
            )
        # Of an Enum the text itself: its hash is another.
        object.__setattr__(self, "field", str.__str__(self.field))
        object.__setattr__(self, "op", str.__str__(self.op))
        object.__setattr__(self, "value", _thaw(frozen))
        object.__setattr__(self, "frozen", frozen)


@dataclass(frozen=True)
class Ids:
    """The documents of these ids; unknown ones are passed over.

    Attributes:
        ids: any number; taken from any iterable.

    Raises:
        InvalidInputError: one is no str.
    """

    ids: frozenset[str]

    def __post_init__(self) -> None:
        if isinstance(self.ids, str) or not isinstance(self.ids, Iterable):
            raise InvalidInputError(f"Ids needs a set of ids, such as {{'文書1'}}, not {self.ids!r}.")
        object.__setattr__(self, "ids", frozenset(self.ids))
        if wrong := [id for id in self.ids if not isinstance(id, str)]:
            raise InvalidInputError(f"An id must be a str, not {wrong[0]!r}.")


@dataclass(frozen=True)
class _Parts:
    parts: tuple[Filter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        for part in self.parts:
            require_filter(part)


@dataclass(frozen=True)
class AllOf(_Parts):
    """Every part holds; true of no parts."""


@dataclass(frozen=True)
class AnyOf(_Parts):
    """At least one part holds; false of no parts."""


@dataclass(frozen=True)
class NoneOf(_Parts):
    """No part holds; true of no parts."""


Filter: TypeAlias = Condition | Ids | AllOf | AnyOf | NoneOf
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
        raise InvalidInputError(f"A filter must be a dict such as {{'lang': 'ja'}}, not {_shown(filter)}.")
    parts: list[Filter] = []
    for key, value in filter.items():
        if not isinstance(key, str):
            raise InvalidInputError(f"A key of a filter must be a str, not {key!r}.")
        if key == "$not":
            parts.append(NoneOf((parse(value),)))
        elif key in _JOINS:
            if not isinstance(value, list | tuple) or not value:
                raise InvalidInputError(f"{key} needs a list of one or more filters, not {_shown(value)}.")
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


def matches(filter: Filter, metadata: Mapping[str, Any], *, id: str | None = None) -> bool:
    """Whether a filter holds for one document.

    Args:
        filter: that is asked.
        metadata: of the document; its `fields`, to ask for its title as well.
        id: of the document, where the filter has `Ids`.

    Raises:
        InvalidInputError: a stored value is of a type that a condition's operator refuses; see the module. Or
            the filter asks for the id, and none is given.
    """
    require_filter(filter)
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(f"metadata is a {type(metadata).__name__}; expected a dict.")
    if isinstance(filter, Ids):
        if id is None:
            raise InvalidInputError(
                "The filter has Ids, but no id is given: matches(filter, metadata, id=...)."
            )
        return id in filter.ids
    if isinstance(filter, Condition):
        if (found := find(metadata, filter.field)) is MISSING:
            return holds_for_missing(filter)
        value = freeze(found, f"The metadata {filter.field!r}", allow_nan=True)
        if KINDS[type(value)] not in fitting(filter):
            raise refused_by(filter, value)
        return predicate(filter)(value)
    # All parts are asked, so that a document is refused or not whatever the order of conditions.
    held = [matches(part, metadata, id=id) for part in filter.parts]
    return all(held) if isinstance(filter, AllOf) else any(held) is isinstance(filter, AnyOf)


def find(metadata: Mapping[str, Any], field: str) -> Any:
    """The value of a field, or MISSING."""
    while field not in metadata:
        head, _, field = field.partition(".")
        metadata = metadata.get(head, MISSING)
        if not isinstance(metadata, Mapping):
            return MISSING
    return metadata[field]


def freeze(value: Any, what: str, *, allow_nan: bool = False) -> Frozen:
    """A JSON value as conditions compare it.

    Raises:
        InvalidInputError: it is no JSON, or NaN where that is not allowed; `what` names it.
    """
    if value is None or isinstance(value, bool):
        return None if value is None else _Truth(value)
    if isinstance(value, str):
        return str.__str__(value)  # of an Enum, too, the text itself
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and (value == value or allow_nan):
        return float(value)
    if isinstance(value, list | tuple):
        return tuple(freeze(v, what, allow_nan=allow_nan) for v in value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return frozenset((str.__str__(k), freeze(v, what, allow_nan=allow_nan)) for k, v in value.items())
    raise InvalidInputError(
        f"{what} must be JSON (None, bool, int, float but not NaN, str, list, dict with str keys), not "
        f"{_shown(value)} of type {type(value).__name__}. Turn dates and other objects into text or numbers."
    )


def _thaw(value: Frozen) -> Any:
    if isinstance(value, tuple):
        return tuple(_thaw(v) for v in value)
    if isinstance(value, frozenset):
        return {key: _thaw(v) for key, v in sorted(value, key=operator.itemgetter(0))}
    return value.value if isinstance(value, _Truth) else value


def holds_for_missing(condition: Condition) -> bool:
    """Whether a condition holds where the field is missing."""
    if condition.op in ("is_empty", "exists"):
        return (condition.op == "is_empty") is (condition.frozen is _Truth.TRUE)
    return condition.op in ("!=", "nin")


def fitting(condition: Condition) -> set[str]:
    """Types of stored values that the condition can be asked of."""
    op, kind = condition.op, KINDS[type(condition.frozen)]
    if op in COMPARE:
        return {"null", kind}
    if op in ("any", "all"):
        return {"null", "list"}
    if op == "contains":
        return {"null", "list", "text"} if kind == "text" else {"null", "list"}
    return {"null", "text"} if op in ("text_match", "text_match_insensitive") else set(KIND_NAMES)


def equal_kinds(condition: Condition) -> set[str]:
    """Types of what equality compares with, null aside; of other operators none."""
    if condition.op not in EQUALITY:
        return set()
    return {KINDS[type(value)] for value in wanted_by(condition)} - {"null"}


def wanted_by(condition: Condition) -> tuple[Frozen, ...]:
    """The values of which a stored one equals one, or has some."""
    value = condition.frozen
    return value if condition.op in ("in", "nin", "any", "all") and isinstance(value, tuple) else (value,)


def predicate(condition: Condition) -> Callable[[Frozen], bool]:
    """The condition as a function of a stored value; false of one that it refuses, and of null."""
    op, value = condition.op, condition.frozen
    if op in COMPARE:
        compare, kind = COMPARE[op], KINDS[type(value)]
        return lambda v: KINDS[type(v)] == kind and compare(v, value)
    if op in ("text_match", "text_match_insensitive"):
        fold = _folded if op == "text_match_insensitive" else _normal
        text = fold(str(value))
        return lambda v: isinstance(v, str) and text in fold(v)
    if op in ("is_empty", "exists"):
        empty = (None, "", ()) if op == "is_empty" else ()
        return lambda v: ((v in empty) is (op == "is_empty")) is (value is _Truth.TRUE)
    wanted = frozenset(wanted_by(condition))
    if op == "any" or (op == "contains" and not isinstance(value, str)):
        return lambda v: isinstance(v, tuple) and not wanted.isdisjoint(v)
    if op == "all":
        return lambda v: isinstance(v, tuple) and wanted.issubset(v)
    if op == "contains":
        return lambda v: isinstance(v, tuple | str) and value in v
    return lambda v: (v in wanted) is (op in ("==", "in"))


def _normal(text: str) -> str:
    return normalize("NFKC", text)


def _folded(text: str) -> str:
    return _normal(_normal(text).casefold())  # folding takes letters apart: ΐ is three characters then


def fields_of(filter: Filter) -> Iterator[str]:
    """The fields of all conditions of a filter."""
    if isinstance(filter, Condition):
        yield filter.field
    elif not isinstance(filter, Ids):
        for part in filter.parts:
            yield from fields_of(part)


def require_filter(filter: object) -> None:
    """Refuse what is no filter.

    Raises:
        InvalidInputError: it is none.
    """
    if not isinstance(filter, Filter):
        hint = "; parse(...) makes one of a dict" if isinstance(filter, Mapping) else ""
        raise InvalidInputError(
            f"A filter must be a Condition, Ids, AllOf, AnyOf or NoneOf, not {_shown(filter)}{hint}."
        )


def _shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    try:
        return f"{value!r:.200}"
    except (ValueError, RecursionError):  # Python refuses to write a number of some thousand digits
        return f"a {type(value).__name__} that is too large to be shown"


def _as_json(stored: Frozen) -> str:
    try:
        return json.dumps(_thaw(stored), ensure_ascii=False)[:80]
    except ValueError:  # as above
        return _shown(stored)


def _unknown(what: str, found: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(found), known, n=1, cutoff=0.7)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {what}: {found!r}.{hint} Known are {', '.join(known)}."


def refused_by(condition: Condition, stored: Frozen) -> InvalidInputError:
    """The error for a stored value of a type that a condition refuses."""
    kinds = equal_kinds(condition) or fitting(condition) - {"null"}
    expected = " or ".join(kind for kind in KIND_NAMES if kind in kinds)
    mend = "Store the field as one type in all documents, or change the condition."
    if condition.op in EQUALITY and isinstance(stored, tuple):
        mend = "$contains asks whether a list has a value, $any whether it has one of several."
    return InvalidInputError(
        f"Field {condition.field!r} of a document is of type {KINDS[type(stored)]}, such as "
        f"{_as_json(stored)}, but the condition {condition.field} {condition.op} "
        f"{_shown(condition.value)} needs {expected}. {mend}"
    )
