"""A durable index: documents and their token embeddings on disk, added to, deleted from and searched.

SQLite is the one authority on what counts (`layout` has the names). Files are whole before the transaction
that names them commits, and are never changed: a kill at any moment leaves the state before it or the one
behind it, and at worst files that nobody names, which the next writer removes. Writers of several processes
take turns (SQLite's lock ends with its process); a reader sees one committed state for as long as it looks.

A document's row is its number in order of arrival. A deleted or replaced document leaves a dead row;
compacting numbers the rows anew.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jacolbert_rag.config import IndexSettings
from jacolbert_rag.datatypes import Document, IntArray, TokenEmbeddings
from jacolbert_rag.encode.terms import TermMaker
from jacolbert_rag.errors import IndexCorruptError, IndexMismatchError, InvalidInputError
from jacolbert_rag.index import database, files, layout
from jacolbert_rag.index.candidates import PooledVectors
from jacolbert_rag.index.connections import Connections, OverwrittenError, reading_errors, writing_errors
from jacolbert_rag.index.copying import copy_index, sweep
from jacolbert_rag.index.database import FORMAT_VERSION, SegmentRow
from jacolbert_rag.index.files import FileVanishedError
from jacolbert_rag.index.layout import DATABASE_FILE, DERIVED, FILES_FOLDER, Kind
from jacolbert_rag.index.lexical import list_words
from jacolbert_rag.index.load import Loader
from jacolbert_rag.index.postings import Postings
from jacolbert_rag.index.snapshot import Snapshot
from jacolbert_rag.index.view import Columns, View
from jacolbert_rag.index.write import Write, groups, list_rows, sample, tail, words_of

logger = logging.getLogger(__name__)

READ_TRIES = 10  # of a folder that may only be read and is written by somebody else
T = TypeVar("T")


class PassageChangedError(Exception):
    """A document whose token embeddings were to be kept has another passage by now. Nothing was stored."""


@dataclass(frozen=True)
class Damage:
    """Something in an index that is not what it should be.

    Attributes:
        what: the file or document, what is wrong with it.
        is_derived: whether `rebuild` makes it anew; else the index is to be restored or built again.
    """

    what: str
    is_derived: bool


class Index:
    """Documents and token embeddings in one folder. Any number of threads may use one."""

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], *, durable: bool, device: str = "cpu"
    ) -> None:
        """Take an existing folder; use `create` or `open`.

        Raises:
            IndexCorruptError: a file is missing or is not what it should be.
        """
        self.folder, self.manifest, self.device = folder, manifest, device
        self.settings = IndexSettings.from_json(manifest)
        self.dim = int(manifest["dim"])
        self._connections = Connections(folder, durable=durable)
        self._loader = Loader(folder, self.dim, device)
        self._loading = threading.Lock()
        self.terms = TermMaker(fold=self.settings.lexical.fold)
        self._columns = Columns()
        self._snapshot: tuple[Snapshot, str | None] | None = None  # the newest, and the write that made it
        self._written = -1  # generation of the last write of this handle
        self._is_swept = False
        try:
            with self.reading():
                pass
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls, folder: Path, manifest: Mapping[str, Any], *, durable: bool, device: str = "cpu"
    ) -> Index:
        """Make an empty index in a folder that does not exist or is empty.

        Args:
            folder: made with its parents.
            manifest: JSON; must hold the keys of `MANIFEST_KEYS` but "id". The format version is added.
            durable: whether a write that returned must survive a power cut. False for an index that
                lives in a temporary folder until it is saved.
            device: that scores documents: "cpu", or a GPU such as "cuda".

        Raises:
            IndexWriteError: the folder could not be written.
        """
        given = {"format_version": FORMAT_VERSION, "id": uuid.uuid4().hex, **manifest}
        manifest = dict(json.loads(json.dumps(given)))  # as it will be read: JSON has no tuples
        manifest["checksum"] = layout.checksum(manifest)
        with writing_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with closing(database.connect(folder / DATABASE_FILE, durable=durable, new=True)) as sql:
                (folder / FILES_FOLDER).mkdir()
                sql.execute("BEGIN IMMEDIATE")
                database.create(sql)
                database.write_state(sql, manifest=manifest)
                sql.execute("COMMIT")
            layout.write_manifest(folder, manifest, durable=durable)
        return cls(folder, manifest, durable=durable, device=device)

    @classmethod
    def open(cls, folder: Path, *, device: str = "cpu") -> Index:
        """Open an index folder; one of a former format is put into this one first.

        Args:
            folder: that `create` or `copy_to` filled.
            device: that scores documents.

        Raises:
            IndexNotFoundError: there is no index in the folder.
            IndexMismatchError: a newer version of this library made it.
            IndexCorruptError: a file is missing or is not what it should be.
            IndexWriteError: it is of a former format, and may only be read.
        """
        folder = folder.expanduser().resolve()
        manifest = read_manifest(folder)
        try:
            index = cls(folder, manifest, durable=True, device=device)
        except InvalidInputError as error:
            raise IndexMismatchError(
                f"The settings of the index {folder} are not those of this version: {error} Update "
                "jacolbert_rag, or build the index anew."
            ) from error
        layout.mend_manifest(folder, manifest, read_only=index.read_only)
        return index

    @property
    def id(self) -> str:
        """Drawn at random when the index was made."""
        return str(self.manifest["id"])

    @property
    def read_only(self) -> bool:
        """Whether this process may not write the folder."""
        return self._connections.read_only

    @contextmanager
    def reading(self) -> Iterator[View]:
        """One committed state, the newest there is, for as long as the block runs.

        Raises:
            OverwrittenError: the folder may only be read, and somebody else has written it meanwhile.
            IndexNotFoundError: the folder was removed, or has another index by now.
            IndexCorruptError: a file is missing or is not what it should be.
            InvalidInputError: the index was closed, or opened by the process that this one was forked from.
        """
        try:
            with self._connections.reading() as sql:
                yield self._view(self._begin(sql, "DEFERRED"), sql)
        except OverwrittenError:
            with self._loading:
                self._snapshot = None  # it may be of no one state, too
            raise

    def read(self, work: Callable[[View], T]) -> T:
        """What some work finds in the newest state; done again where that was overwritten meanwhile."""
        for _ in range(READ_TRIES - 1):
            with suppress(OverwrittenError), self.reading() as view:
                return work(view)
        with self.reading() as view:
            return work(view)

    def check_open(self) -> None:
        """Refuse an index that was closed, or that another process has opened.

        Raises:
            InvalidInputError: it is one.
        """
        self._connections.check()

    def refresh(self) -> bool:
        """Read the newest state now, so that the next search need not.

        Every search sees the newest state without this: it only moves the work to a moment of the
        caller's choice.

        Returns:
            Whether another handle or process has written since this one read or wrote last.
        """
        known = max(self._written, -1 if self._snapshot is None else self._snapshot[0].generation)
        return self.read(lambda view: view.snapshot.generation != known)

    def append(
        self,
        documents: Sequence[Document],
        embeddings: TokenEmbeddings,
        *,
        members: Sequence[IntArray] | None = None,
        listed: bool = True,
        restate: Sequence[Document] = (),
        delete: Callable[[View], Iterable[str]] | None = None,
    ) -> None:
        """Store documents, in place of those of the same ids, and amend others in the same moment.

        Args:
            documents: with ids that differ; checked by `database.check_documents`.
            embeddings: one entry a document. All of them are on disk when this returns, or, where an error
                was raised, none.
            members: (d_tokens,) of each document: which of its embeddings has taken in each token that it
                keeps; None where they are not pooled.
            listed: whether they are listed for candidates at once. Where they are not, searches score them
                exactly until `update_candidates`.
            restate: see `amend`.
            delete: see `amend`.

        Raises:
            PassageChangedError: see `amend`.
            IndexWriteError: the folder could not be written.
        """
        if not documents:
            self.amend(restate=restate, delete=delete)
            return
        words = list_words(documents, self.terms)
        with self._write() as write:
            old = write.snapshot
            stale = delete(self._view(old, write.sql)) if delete is not None else ()
            _restate(write, restate)
            gone = database.rows_of(write.sql, [*(document.id for document in documents), *stale])
            database.delete(write.sql, gone.values())
            live = old.live.copy()
            live[list(gone.values())] = False
            codec, is_new = write.codec(embeddings)
            merged = list(old.segments) if is_new else tail(old.segments, len(embeddings.flat))
            first = merged[0].row.first_row if merged else old.n_rows
            row = write.merge(
                merged, live, codec, first_row=first, added=embeddings, words=words, listed=listed
            )
            write.put([segment.row for segment in merged], [row])
            rows = np.arange(old.n_rows, old.n_rows + len(documents), dtype=np.int64)
            database.insert(write.sql, rows, documents, members)

    def amend(
        self,
        *,
        restate: Sequence[Document] = (),
        delete: Callable[[View], Iterable[str]] | None = None,
    ) -> list[str]:
        """Change documents without token embeddings.

        Args:
            restate: put in the place of those of the same ids, whose token embeddings stay as they are.
            delete: names the ids that go, from the state that the change is made to; unknown ones are
                passed over.

        Returns:
            The ids that were deleted, in the order given.

        Raises:
            PassageChangedError: the passage of a document to be restated is another one by now, or is gone.
            IndexWriteError: the folder could not be written.
        """
        with self._write() as write:
            stale = list(delete(self._view(write.snapshot, write.sql))) if delete is not None else []
            _restate(write, restate)
            rows = database.rows_of(write.sql, stale)
            database.delete(write.sql, rows.values())
        return list(rows)

    def write_state(self, **values: Any) -> None:
        """Store JSON values beside the documents.

        Raises:
            IndexWriteError: the folder could not be written.
        """
        with self._write() as write:
            database.write_state(write.sql, **values)

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete documents; unknown ids are passed over.

        Returns:
            The ids that were there, in the order given.
        """
        return self.amend(delete=lambda _: ids)

    def update_candidates(self, *, anew: bool = False) -> None:
        """List documents that are not listed, or pool the corpus anew where it has outgrown what was pooled.

        The words of documents whose words are not listed are listed, too: those of an older index.

        Searches go on meanwhile. An index that may only be read is left as it is.

        Args:
            anew: pool even where that is not due.

        Raises:
            IndexWriteError: the folder could not be written, or with `anew` may only be read.
        """
        if self.read_only:
            if anew:
                with self._write():
                    pass
            return
        with self._connections.writing:
            with self.reading() as view:
                snapshot = view.snapshot
                made_for = database.read_state(view.sql).get("pooled_tokens", 0)
            if anew or any(segment.words is None for segment in snapshot.segments):
                snapshot = self._list_words(anew=anew)
            if anew and not snapshot.n_live:
                with self._write() as write:
                    write.forget_pooled()
            if not snapshot.n_live or (snapshot.n_live < self.settings.search.exact_below and not anew):
                return
            growth = self.settings.candidates.rebuild_growth
            outgrown = snapshot.pooled is None or snapshot.n_tokens > growth * made_for
            if anew or outgrown:
                self._pool_anew(snapshot)
            elif snapshot.n_unlisted:
                self._list_all(snapshot)

    def rebuild(self) -> None:
        """Make anew all that is derived.

        Raises:
            IndexWriteError: the folder could not be written, or may only be read.
        """
        self.update_candidates(anew=True)
        with writing_errors(self.folder):
            layout.write_manifest(self.folder, self.manifest, durable=self._connections.durable)

    def compact(self) -> None:
        """Give back the room of deleted documents. Searches go on meanwhile; a kill leaves the old state."""
        with self._write() as write:
            old = write.snapshot
            codec, _ = write.codec()
            rows: list[SegmentRow] = []
            first = 0
            for run in groups(old.segments, old.live):
                n_live = sum(int(old.live[s.row.first_row : s.row.stop].sum()) for s in run)
                if len(run) == 1 and n_live == run[0].row.n_rows and run[0].row.coding == codec.dtype:
                    rows.append(replace(run[0].row, first_row=first))
                elif n_live:
                    rows.append(write.merge(run, old.live, codec, first_row=first, keep_dead=False))
                first += n_live
            write.put([segment.row for segment in old.segments], rows)
            database.renumber(write.sql, np.flatnonzero(old.live))
            write.restated = None
        with self._connections.writing:
            sql = self._connections.writer()
            try:
                sql.execute("VACUUM")
            except sqlite3.DatabaseError as error:
                path = self._connections.path
                logger.warning("%s keeps the room of deleted documents for now (%s).", path, error)
            self._fold_log(sql, "TRUNCATE")

    def verify(self) -> list[Damage]:
        """Look at every byte; what is not what it should be.

        Raises:
            IndexNotFoundError: the folder was removed, or has another index by now.
        """
        found: list[Damage] = []
        try:
            with self._connections.reading() as sql:
                sql.execute("BEGIN")
                path = self._connections.path
                self._connections.check_file()
                found += [Damage(f"{path}: {what}", is_derived=False) for what in database.damage(sql)]
                if not found:
                    self._check_id(sql)
                records = database.files(sql)
        except IndexCorruptError as error:
            return [*found, Damage(str(error), is_derived=False)]
        if what := layout.manifest_damage(self.folder, self.manifest):
            found.append(Damage(what, is_derived=True))
        looked_at = {name: files.damage(self.folder, record) for name, record in records.items()}
        with self._connections.reading() as sql:  # what was removed by a write meanwhile is not missing
            still = database.files(sql)
        damaged = [(name, what) for name, what in looked_at.items() if what and name in still]
        return found + [Damage(what, name.endswith(DERIVED)) for name, what in damaged]

    def copy_to(self, target: Path) -> None:
        """Copy this index to a folder that is new, empty, or an index, which is replaced in one transaction.

        Others may have that index open: they see the new one from their next search on, or are told that it
        is another one.

        Raises:
            InvalidInputError: the folder holds something that is no index, or this index was closed.
            IndexMismatchError: the folder holds an index of a newer version.
            IndexNotFoundError: the folder of this index was removed, or has another index by now.
            IndexWriteError: it could not be written; what was there is whole.
        """
        self.read(lambda _: None)  # it is there, and is this one
        target = target.expanduser().resolve()
        if target.exists() and target.samefile(self.folder):
            return
        with self._connections.writing:
            for _ in range(READ_TRIES - 1):
                with suppress(OverwrittenError):
                    copy_index(self._connections, self.manifest, target)
                    return
            copy_index(self._connections, self.manifest, target)

    def close(self) -> None:
        """Close the database. Memory maps go with the last array that looks at them."""
        self._connections.close()

    # Transactions.

    def _view(self, snapshot: Snapshot, sql: sqlite3.Connection) -> View:
        return View(snapshot, sql, self.terms, self._columns)

    def _begin(self, sql: sqlite3.Connection, kind: str) -> Snapshot:
        """Start a transaction; the state that it sees."""
        tried = None
        while True:
            sql.execute(f"BEGIN {kind}")
            try:
                self._connections.check_file()
                state = database.generation(sql), database.last_write(sql)
                return self._at(sql, *state, is_newest=tried == state)
            except (_StaleError, FileVanishedError):
                tried = state
                sql.rollback()
            except BaseException:
                sql.rollback()
                raise

    def _at(self, sql: sqlite3.Connection, number: int, write: str | None, *, is_newest: bool) -> Snapshot:
        """The state of this number, which a transaction sees.

        Args:
            sql: in the transaction.
            number: generation of the state.
            write: name of the write that made it.
            is_newest: whether a transaction before this one, which began when all that was read until then
                had been committed, saw the same state.

        Raises:
            FileVanishedError: a file is gone. It was removed by a writer which has committed a newer state;
                where there is none, it is really missing.
            _StaleError: a newer state than this was read already. Where there is none, the database was put
                back to a former state under our hands, and that, or what was written to it since, is what
                counts.
            IndexNotFoundError: it is the state of another index.
        """
        if (known := self._snapshot) is not None and self._is_of(known, number, write):
            return known[0]
        with self._loading:
            known = self._snapshot
            if known is not None and self._is_of(known, number, write):
                return known[0]
            if known is not None and known[0].generation >= number:
                if not is_newest:
                    raise _StaleError
                self._columns = Columns()  # the former ones are of a history that was undone
            self._check_id(sql)
            snapshot = self._loader.snapshot(sql, number, is_newest=is_newest)
            self._snapshot = snapshot, write
            return snapshot

    @staticmethod
    def _is_of(known: tuple[Snapshot, str | None], number: int, write: str | None) -> bool:
        return known[0].generation == number and known[1] == write

    def _check_id(self, sql: sqlite3.Connection) -> None:
        if layout.read_manifest(sql, self.folder)["id"] != self.id:
            raise layout.gone(self.folder)

    @contextmanager
    def _write(self) -> Iterator[Write]:
        """A transaction that no other process writes beside.

        Raises:
            IndexWriteError: the folder could not be written; the old state is whole.
        """
        connections = self._connections
        connections.check()
        with connections.writing, writing_errors(self.folder):
            sql = connections.writer()
            write, is_committing = None, False
            try:
                snapshot = self._begin(sql, "IMMEDIATE")
                records = database.files(sql)
                write = Write(
                    sql, snapshot, self._loader, self.settings, self.terms, connections.durable, records
                )
                n_changes = sql.total_changes
                yield write
                if sql.total_changes == n_changes and not write.added:  # nothing to commit
                    sql.rollback()
                    return
                database.replace_files(sql, write.obsolete, write.added)
                database.record_write(sql, snapshot.generation + 1, write.restated)
                is_committing = True
                sql.execute("COMMIT")
            except BaseException:
                self._is_swept = False
                # Where committing itself failed, the log may hold it all the same, and come to life again
                # until the next write has overwritten it, which then removes what this one has left.
                if write is not None and not is_committing:
                    for record in write.added:
                        with suppress(OSError):
                            (self.folder / record.name).unlink(missing_ok=True)
                sql.rollback()
                raise
            self._written = snapshot.generation + 1
            if write.obsolete or not self._is_swept:
                self._is_swept = sweep(sql, self.folder)
                layout.remove_former(self.folder)
            self._fold_log(sql, "PASSIVE")

    def _fold_log(self, sql: sqlite3.Connection, kind: str) -> None:
        """Have the log in the database file, so that a copy of the folder without it is whole."""
        if not self._connections.durable:
            return
        # What was written is committed already, so failing here is no failure of it; and nobody is to wait
        # for a reader who looks at an old state.
        with suppress(sqlite3.DatabaseError), database.without_waiting(sql):
            sql.execute(f"PRAGMA wal_checkpoint({kind})").fetchall()

    # What is derived.

    def _list_words(self, *, anew: bool) -> Snapshot:
        """List the words of segments that have no lists; the state with them.

        Others may write while the words are read.
        """
        with self.reading() as view:
            made = {
                segment.row: words_of(view.sql, range(segment.row.first_row, segment.row.stop), self.terms)
                for segment in view.snapshot.segments
                if anew or segment.words is None
            }
        with self._write() as write:
            for segment in write.snapshot.segments:
                if segment.row in made:
                    write.put([segment.row], [write.with_words(segment.row, made[segment.row])])
        with self.reading() as view:
            return view.snapshot

    def _list_all(self, snapshot: Snapshot) -> None:
        """List the rows that are not listed."""
        pooled = snapshot.pooled
        assert pooled is not None
        made = {}
        for segment in snapshot.segments:
            if segment.postings is None:
                alive = snapshot.live[segment.row.first_row : segment.row.stop]
                made[segment.row] = list_rows(pooled, segment, alive, self.settings)
        with self._write() as write:
            if write.snapshot.pooled is pooled:  # else another process has pooled anew, and listed all
                _attach(write, made)

    def _pool_anew(self, snapshot: Snapshot) -> None:
        """Pool the corpus, and list all rows by what comes of it."""
        config = self.settings.candidates
        n_pooled = min(max(1, snapshot.n_tokens // config.tokens_per_pooled), config.max_pooled)
        tokens = sample(snapshot, config.samples_per_pooled * n_pooled, np.random.default_rng(config.seed))
        pooled = PooledVectors.build(tokens, n_pooled, config)
        del tokens
        made = {}
        for segment in snapshot.segments:
            alive = snapshot.live[segment.row.first_row : segment.row.stop]
            made[segment.row] = list_rows(pooled, segment, alive, self.settings)
        with self._write() as write:
            write.pool(pooled, snapshot.n_tokens)
            for segment in write.snapshot.segments:  # what another process has added meanwhile
                if segment.row not in made:
                    alive = write.snapshot.live[segment.row.first_row : segment.row.stop]
                    made[segment.row] = list_rows(pooled, segment, alive, self.settings)
            _attach(write, made)


class _StaleError(Exception):
    """A transaction began before the newest state was committed."""


def read_manifest(path: Path) -> dict[str, Any]:
    """What made the index of a folder; one of a former format is put into this one first.

    Raises:
        IndexNotFoundError: there is none.
        IndexMismatchError: a newer version of this library made it.
        IndexCorruptError: it is not readable.
        IndexWriteError: it is of a former format, and may only be read.
    """
    path = path.expanduser().resolve()
    if layout.kind(path) is Kind.FORMER:
        from jacolbert_rag.index.migrate import migrate

        manifest = layout.read_manifest_file(path)
        with writing_errors(path):
            migrate(path, manifest)
    file = path / DATABASE_FILE
    if not file.is_file():
        return layout.read_manifest_file(path)  # which says what is there instead
    with reading_errors(path), closing(database.connect_to_read(file)) as sql:
        return layout.read_manifest(sql, path)


def _restate(write: Write, documents: Sequence[Document]) -> None:
    rows = database.rows_of(write.sql, [document.id for document in documents])
    there = {document.id: document for document in database.read(write.sql, list(rows.values()))}
    for document in documents:
        if document.id not in there or there[document.id].passage != document.passage:
            raise PassageChangedError(document.id)
    database.update(write.sql, [rows[document.id] for document in documents], documents)
    if write.restated is not None:
        write.restated += rows.values()


def _attach(write: Write, made: Mapping[SegmentRow, Postings]) -> None:
    """Put posting lists in the place of those that segments had."""
    for segment in write.snapshot.segments:
        if segment.row in made:
            write.put([segment.row], [write.with_lists(segment.row, made[segment.row])])
