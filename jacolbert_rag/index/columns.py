"""Filters over the metadata of all documents at once, kept in columns. `filters` says what they mean."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from threading import Lock
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from jacolbert_rag.datatypes import BoolArray, IdArray, IntArray
from jacolbert_rag.errors import IndexCorruptError, InvalidInputError
from jacolbert_rag.index.filters import (
    COMPARE,
    EQUALITY,
    KIND_NAMES,
    KINDS,
    MISSING,
    AllOf,
    Condition,
    Filter,
    Frozen,
    Ids,
    NoneOf,
    equal_kinds,
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
MAX_COLUMNS = 32  # that are kept, of four bytes a row each and the distinct values; an add goes through all

# Rows, and the metadata of each as the JSON text of an object; some hundreds at a time.
Read: TypeAlias = Iterable[tuple[Sequence[int], Sequence[str]]]


class _Column:
    """The values of a field, each once.

    Attributes:
        places: value -> its code, counted from 0 in this order.
        codes: (n_rows,) int32 code of each row's value, -1 where it is missing and for dead rows.
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
        elif op in EQUALITY:
            hits[[self.places[wanted] for wanted in wanted_by(condition) if wanted in self.places]] = True
            hits = hits if op in ("==", "in") else ~hits
        else:
            hits[:-1] = np.fromiter(map(predicate(condition), self.places), np.bool_, len(self.places))
        hits[-1] = holds_for_missing(condition)
        return hits


class Stored(Protocol):
    """The documents of one committed state."""

    def metadata(self, *, titles: bool) -> Read:
        """Rows and metadata of all live documents; with titles, where these are asked: `Document.fields`."""

    def rows_of(self, ids: Iterable[str]) -> Mapping[str, int]:
        """Row of each id that is stored."""


class MetadataColumns:
    """The metadata of one state's documents, kept so that a filter costs about a millisecond.

    The first filter on a field reads all metadata and keeps the field's distinct values, so that an operator
    is evaluated once for each. Metadata themselves are not kept: as text they take more room than all else
    that is in memory of an index. Safe to use from many threads.
    """

    def __init__(self, live: BoolArray, columns: Mapping[str, _Column] | None = None) -> None:
        """Nothing is read yet.

        Args:
            live: (n_rows,) rows that are alive; no filter holds for the others.
            columns: by field, over these rows.
        """
        self._live = live
        self._columns = OrderedDict(columns or {})  # the least lately used first
        self._masks: OrderedDict[Filter, BoolArray] = OrderedDict()
        self._lock = Lock()

    def extended(self, changed: Read, live: BoolArray) -> MetadataColumns:
        """The columns of a later state, as a new object; what is known of older rows is kept.

        Args:
            changed: rows and metadata of the documents that are new or say something else.
            live: of the later state; not fewer rows than there are.

        Raises:
            InvalidInputError: there are more rows already, or a row is not one of the later state.
        """
        if len(live) < len(self._live):
            raise InvalidInputError(
                f"There are {len(self._live)} rows already; the later state has {len(live)}."
            )
        with self._lock:
            columns = dict(self._columns)
        read = _read(changed, columns, len(live))
        # Where most values belong to no row any more, the field is read again rather than grows for ever.
        bound = 2 * np.count_nonzero(live) + 1000
        return MetadataColumns(
            live, {field: each for field, each in read.items() if len(each.places) <= bound}
        )

    def mask(self, filter: Filter, stored: Stored) -> BoolArray:
        """(n_rows,) whether the filter holds for each row; shared, so not to be written.

        Args:
            filter: that is asked.
            stored: the documents of the state that the columns are of; read where a field is new.

        Raises:
            InvalidInputError: a live row has a value of a type that a condition refuses, or none has one of a
                type that could equal what it is compared with.
            IndexCorruptError: stored metadata are no JSON.
        """
        require_filter(filter)
        with self._lock:
            fields = set(fields_of(filter))
            if (mask := self._masks.get(filter)) is None:
                self._know(fields, stored)
                mask = self._evaluated(filter, stored) & self._live
                mask.setflags(write=False)
                self._masks[filter] = mask
            self._masks.move_to_end(filter)
            for field in fields & self._columns.keys():
                self._columns.move_to_end(field)
            _trim(self._masks, MAX_MASKS)
            _trim(self._columns, MAX_COLUMNS)
            return mask

    def _know(self, fields: set[str], stored: Stored) -> None:
        """Have the columns of these fields."""
        nothing = _Column({}, np.zeros(0, dtype=np.int32))
        if new := fields - self._columns.keys():
            self._columns |= _read(
                stored.metadata(titles="title" in new), dict.fromkeys(new, nothing), len(self._live)
            )

    def _evaluated(self, filter: Filter, stored: Stored) -> BoolArray:
        """(n_rows,) whether a filter holds; of dead rows anything."""
        if isinstance(filter, Ids):
            held = np.zeros(len(self._live), dtype=np.bool_)
            held[list(stored.rows_of(filter.ids).values())] = True
            return held
        if not isinstance(filter, Condition):
            join = np.logical_and if isinstance(filter, AllOf) else np.logical_or
            held = np.full(len(self._live), isinstance(filter, AllOf))
            for part in filter.parts:
                join(held, self._evaluated(part, stored), out=held)
            return ~held if isinstance(filter, NoneOf) else held
        column = self._columns[filter.field]
        self._require_askable(filter, column)
        return column.hits(filter)[column.codes]

    def _require_askable(self, condition: Condition, column: _Column) -> None:
        """Refuse a condition where a live row has a value that it refuses; equality where none fits."""
        kinds = equal_kinds(condition) or fitting(condition)
        wrong = np.array([kind not in kinds and kind != "null" for kind in KIND_NAMES])[column.kinds]
        if not wrong.any():
            return
        refused = np.flatnonzero(wrong[column.codes] & self._live)
        if condition.op in EQUALITY and refused.size:
            fits = ~wrong & (column.kinds != KIND_NAMES.index("null"))
            if (fits[column.codes] & self._live).any():
                return
        if refused.size:
            raise refused_by(condition, next(islice(column.places, int(column.codes[refused[0]]), None)))


def _trim(kept: OrderedDict[Any, Any], n: int) -> None:
    while len(kept) > n:
        kept.popitem(last=False)


def _read(read: Read, columns: Mapping[str, _Column], n_rows: int) -> dict[str, _Column]:
    """Columns over n_rows, from columns over the first of them and what is read of others."""
    if not columns:
        return {}
    known = {field: dict(column.places) for field, column in columns.items()}
    codes = {field: np.full(n_rows, -1, dtype=np.int32) for field in columns}
    for field, column in columns.items():
        codes[field][: len(column.codes)] = column.codes
    for rows, texts in read:
        if min(rows) < 0 or max(rows) >= n_rows:
            raise InvalidInputError(f"Rows must be from 0 to {n_rows - 1}, not {min(rows)} to {max(rows)}.")
        places: dict[str, int] = {}
        which = np.array([places.setdefault(text, len(places)) for text in texts])
        parsed = _parsed(list(places))  # each text once: those of a file's chunks are the same
        at = np.array(rows)
        for field, values in known.items():
            codes[field][at] = np.array(_codes(parsed, field, values), dtype=np.int32)[which]
    return {field: _Column(known[field], codes[field]) for field in columns}


def _codes(parsed: Sequence[Mapping[str, Any]], field: str, places: dict[Frozen, int]) -> list[int]:
    """The code of a field's value in each metadata; new values take their place."""
    codes = []
    for metadata in parsed:
        value = metadata[field] if field in metadata else find(metadata, field)
        if type(value) is not str and value is not MISSING:  # most are text, and need no call
            value = freeze(value, field, allow_nan=True)
        codes.append(-1 if value is MISSING else places.setdefault(value, len(places)))
    return codes


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
