"""Filters over the metadata of all documents at once, kept in columns. `filters` says what they mean."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from jacolbert_rag.datatypes import BoolArray, IdArray, IntArray
from jacolbert_rag.errors import IndexCorruptError, InvalidInputError
from jacolbert_rag.index.filters import (
    COMPARE,
    KIND_NAMES,
    KINDS,
    MISSING,
    AllOf,
    Condition,
    Filter,
    Frozen,
    NoneOf,
    fields_of,
    find,
    fitting,
    freeze,
    holds_for_missing,
    predicate,
    refused_by,
    require_filter,
    wanted_by,
)

MAX_MASKS = 32  # that are kept, of a byte a row each
# Metadata that are parsed by one call: twice as fast as one by one, and few are in memory at a time.
PARSED_AT_ONCE = 4096


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
        """(n_values + 1,) number of each value's type in `KIND_NAMES`; the last, of the missing, is null."""
        number = {kind: KIND_NAMES.index(name) for kind, name in KINDS.items()}
        return np.array([*(number[type(value)] for value in self.places), 0], dtype=np.int8)

    @cached_property
    def rising(self) -> dict[str, tuple[list[Any], IntArray]]:
        """For "number" and "text": its values in rising order, without NaN, and the code of each."""
        orders = {}
        for kind in ("number", "text"):
            values: list[Any] = [
                value for value in self.places if KINDS[type(value)] == kind and value == value
            ]
            values.sort()
            orders[kind] = (values, np.array([self.places[value] for value in values], dtype=np.int64))
        return orders

    def hits(self, condition: Condition) -> BoolArray:
        """(n_values + 1,) whether the condition holds for each value; the last is for a missing one."""
        hits = np.zeros(len(self.places) + 1, dtype=np.bool_)
        op, value = condition.op, condition.frozen
        if op in COMPARE:
            values, codes = self.rising[KINDS[type(value)]]
            first = (bisect_left if op in (">=", "<") else bisect_right)(values, value)
            hits[codes[first:] if op in (">", ">=") else codes[:first]] = True
        elif op in ("==", "!=", "in", "nin"):
            hits[[self.places[wanted] for wanted in wanted_by(condition) if wanted in self.places]] = True
            hits = hits if op in ("==", "in") else ~hits
        else:
            hits[:-1] = np.fromiter(map(predicate(condition), self.places), np.bool_, len(self.places))
        hits[-1] = holds_for_missing(condition)
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
        require_filter(filter)
        with self._lock:
            if (mask := self._masks.get(filter)) is None:
                fields = set(fields_of(filter)) - set(self._columns)
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
        kinds = fitting(filter)
        wrong = np.array([kind not in kinds for kind in KIND_NAMES])[column.kinds]
        if wrong.any() and (refused := np.flatnonzero(wrong[column.codes] & self._is_live)).size:
            raise refused_by(filter, next(islice(column.places, int(column.codes[refused[0]]), None)))
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
                value = metadata[field] if field in metadata else find(metadata, field)
                if type(value) is not str and value is not MISSING:  # most are text, and need no call
                    value = freeze(value, field, allow_nan=True)
                code = -1 if value is MISSING else places.setdefault(value, len(places))
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
