"""One committed state of an index, with what is made of it when it is first asked for."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import (
    isasyncgen,
    isasyncgenfunction,
    isawaitable,
    iscoroutine,
    iscoroutinefunction,
    isgenerator,
    isgeneratorfunction,
)
from typing import Any, TypeAlias

import numpy as np

from jacolbert_rag.datatypes import BoolArray, Document, IntArray, TokenArray
from jacolbert_rag.encode.terms import TermMaker
from jacolbert_rag.errors import InvalidInputError, JaColBERTError
from jacolbert_rag.index import database
from jacolbert_rag.index.columns import MetadataColumns
from jacolbert_rag.index.filters import Filter, parse
from jacolbert_rag.index.lexical import Lexicon
from jacolbert_rag.index.snapshot import Snapshot
from jacolbert_rag.index.write import words_of

# What a caller may give as a filter.
GivenFilter: TypeAlias = Filter | Mapping[str, Any] | Callable[[Document], bool]

READ_DOCUMENTS = 1_000  # handed to a caller's function at once
# Functions whose result is something to wait for or to go through, and so always true.
_PROMISES = (iscoroutinefunction, isasyncgenfunction, isgeneratorfunction)


@dataclass
class Columns:
    """The newest state's metadata in columns; kept from one search to the next.

    Attributes:
        generation: of the state.
        write: the name of the write that made it; a number comes again where a database is put back to a
            former state and written anew, a name does not.
        n_rows: of the state.
        columns: None until a filter is asked for.
    """

    generation: int = -1
    write: str | None = None
    n_rows: int = 0
    columns: MetadataColumns | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, snapshot: Snapshot, sql: sqlite3.Connection) -> MetadataColumns:
        """The columns of a state; of an earlier one's where it is known what was written since."""
        write = database.last_write(sql)
        with self.lock:
            if (self.generation, self.write) == (snapshot.generation, write) and self.columns is not None:
                return self.columns
            restated = database.restated_since(sql, self.write) if self.columns is not None else None
            if restated is not None and self.columns is not None:
                rows = database.metadata(sql, self.n_rows, also=restated)
                known = self.columns.extended(rows, snapshot.live)
            else:
                known = MetadataColumns(snapshot.live)
                if snapshot.generation < self.generation:  # an old state that somebody still looks at
                    return known
            self.generation, self.write, self.n_rows = snapshot.generation, write, snapshot.n_rows
            self.columns = known
            return known


@dataclass(frozen=True)
class View:
    """One committed state, within a `reading` block.

    Attributes:
        snapshot: segments and live rows.
        sql: a connection that sees the documents of that state.
        terms: of full-text search.
        kept: metadata in columns, shared by all views of an index.
    """

    snapshot: Snapshot
    sql: sqlite3.Connection
    terms: TermMaker
    kept: Columns

    def state(self) -> dict[str, Any]:
        """All that is neither a document, a segment nor a file."""
        return database.read_state(self.sql)

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Row of each id that is stored, in the order given."""
        return database.rows_of(self.sql, ids)

    def ids(self, allowed: BoolArray | None = None) -> list[str]:
        """Ids of all documents in order of arrival, or of those rows that are allowed."""
        found = database.ids(self.sql)
        return [id for row, id in found if allowed is None or allowed[row]]

    def ids_with_prefix(self, prefix: str) -> list[str]:
        """Ids that begin with a prefix, sorted."""
        return database.ids_with_prefix(self.sql, prefix)

    def documents(self, rows: Sequence[int] | IntArray) -> list[Document]:
        """The documents of these rows, in the order given; rows that have died are passed over."""
        return database.read(self.sql, rows)

    def metadata(self, *, titles: bool) -> Iterator[tuple[Sequence[int], Sequence[str]]]:
        """Rows and `Document.fields`, as JSON, of all documents, some hundreds at a time."""
        return database.metadata(self.sql, titles=titles)

    def lexicon(self) -> Lexicon:
        """Full-text search; where word lists are missing and cannot be written, they are made for now."""
        made = self.snapshot.made
        if made.lexicon is None:
            lists = []
            for segment in self.snapshot.segments:
                rows = range(segment.row.first_row, segment.row.stop)
                stored = segment.words
                lists.append(stored if stored is not None else words_of(self.sql, rows, self.terms))
            made.lexicon = Lexicon(lists, self.snapshot.live)
        return made.lexicon

    def allowed(self, filter: Filter | Callable[[Document], bool]) -> BoolArray:
        """(n_rows,) which live rows a filter lets through; shared, so not to be written.

        Args:
            filter: conditions on metadata; or a function of a document, which is asked of every one.

        Raises:
            InvalidInputError: a condition cannot be asked of what is stored, or the function has failed or
                says neither yes nor no.
        """
        live = self.snapshot.live
        if not callable(filter):
            return self.kept.of(self.snapshot, self.sql).mask(filter, self)
        allowed = np.zeros_like(live)
        rows = np.flatnonzero(live)
        for start in range(0, len(rows), READ_DOCUMENTS):
            for row, document in database.by_row(self.sql, rows[start : start + READ_DOCUMENTS]).items():
                allowed[row] = _answer(filter, document)
        return allowed

    def tokens(self, rows: Sequence[int]) -> dict[int, TokenArray]:
        """(d_tokens, dim) token embeddings of each row, one for each token that the document keeps.

        Rows whose tokens were pooled before it was stored which went where are left out.
        """
        ordered = sorted(rows)
        members = database.members(self.sql, ordered)
        stored = self.snapshot.tokens(np.array(ordered, dtype=np.int64))
        return {
            row: tokens[members[row]] if row in members else tokens
            for row, tokens in zip(ordered, stored, strict=True)
        }


def parsed(given: GivenFilter) -> Filter | Callable[[Document], bool]:
    """A caller's filter as `View.allowed` takes it.

    Raises:
        InvalidInputError: it is none, or has an operator that is unknown.
    """
    if isinstance(given, Filter):
        return given
    if isinstance(given, Mapping):
        return parse(given)
    if not callable(given):
        raise InvalidInputError(
            f"filter is a {type(given).__name__}; expected a dict such as {{'lang': 'ja'}}, a "
            "jacolbert_rag.index.filters.Filter, or a function of a Document."
        )
    method: object = getattr(type(given), "__call__", None)  # noqa: B004 - it may be async
    if any(test(function) for test in _PROMISES for function in (given, method)):
        raise InvalidInputError(_says_nothing("The filter function is async or yields"))
    return given


def _answer(filter: Callable[[Document], bool], document: Document) -> bool:
    """What a caller's function says of a document.

    Raises:
        InvalidInputError: it has failed, and what it raised is the cause: within a read of the index an error
            of SQLite or of an encoding would be taken for the index' own. Or it says neither yes nor no.
    """
    try:
        answer = filter(document)
        if type(answer) is bool:
            return answer
        if not (isawaitable(answer) or isasyncgen(answer) or isgenerator(answer)):
            return bool(answer)
    except JaColBERTError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"The filter function failed on the document {document.id!r}: {type(error).__name__}: {error}. "
            "Let it return True or False for every document, whatever its metadata lacks."
        ) from error
    if iscoroutine(answer):
        answer.close()  # else Python warns that nobody has awaited it
    raise InvalidInputError(
        _says_nothing(f"The filter function returned a {type(answer).__name__} for {document.id!r}")
    )


def _says_nothing(what: str) -> str:
    return (
        f"{what}, which is true of every document, so nothing would be filtered. Give a plain function that "
        "returns True or False; await what it needs before the search."
    )
