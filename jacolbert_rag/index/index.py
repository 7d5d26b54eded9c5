"""A durable index: documents and their token embeddings on disk, added to, deleted from and searched.

SQLite is the one authority on what counts (`layout` has the names). Files are whole before the transaction
that names them commits, and are never changed: a kill at any moment leaves the state before it or the one
behind it, and at worst files that nobody names, which the next writer removes. Writers of several processes
take turns (SQLite's lock ends with its process); a reader sees one committed state for as long as it looks.

A document's row is its number in order of arrival. A deleted or replaced document leaves a dead row;
compacting numbers the rows anew.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jacolbert_rag.config import IndexSettings
from jacolbert_rag.datatypes import Document, IntArray, TokenEmbeddings
from jacolbert_rag.errors import (
    IndexCorruptError,
    IndexFolderError,
    IndexMismatchError,
    IndexWriteError,
    InvalidInputError,
)
from jacolbert_rag.index import database, files, layout
from jacolbert_rag.index.candidates import PooledVectors
from jacolbert_rag.index.database import FORMAT_VERSION, SegmentRow
from jacolbert_rag.index.files import MEND, FileVanishedError
from jacolbert_rag.index.layout import DATABASE_FILE, DERIVED, FILES_FOLDER, Kind
from jacolbert_rag.index.load import Loader
from jacolbert_rag.index.postings import Postings
from jacolbert_rag.index.snapshot import Snapshot
from jacolbert_rag.index.write import Write, groups, list_rows, sample, tail

logger = logging.getLogger(__name__)

CLOSED = "This index was closed. Load it again to go on."


@dataclass(frozen=True)
class Damage:
    """Something in an index that is not what it should be.

    Attributes:
        what: the file or document, what is wrong with it.
        is_derived: whether `rebuild` makes it anew; else the index is to be restored or built again.
    """

    what: str
    is_derived: bool


@dataclass(frozen=True)
class View:
    """One committed state, within a `reading` block.

    Attributes:
        snapshot: segments and live rows.
        sql: a connection that sees the documents of that state.
    """

    snapshot: Snapshot
    sql: sqlite3.Connection

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Row of each id that is stored, in the order given."""
        return database.rows_of(self.sql, ids)

    def ids_with_prefix(self, prefix: str) -> list[str]:
        """Ids that begin with a prefix, sorted."""
        return database.ids_with_prefix(self.sql, prefix)

    def documents(self, rows: Sequence[int] | IntArray) -> list[Document]:
        """The documents of these rows, in the order given; rows that have died are passed over."""
        return database.read(self.sql, rows)


class Index:
    """Documents and token embeddings in one folder. Any number of threads may use one."""

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], *, durable: bool, device: str = "cpu"
    ) -> None:
        """Take an existing folder; use `create` or `open`.

        Raises:
            IndexCorruptError: a file is missing or is not what it should be.
        """
        self.folder, self.manifest, self.durable, self.device = folder, manifest, durable, device
        self.settings = IndexSettings.from_json(manifest)
        self.dim = int(manifest["dim"])
        self.read_only = not os.access(folder, os.W_OK)
        self._database = folder / DATABASE_FILE
        self._loader = Loader(folder, self.dim, device)
        self._snapshot: Snapshot | None = None
        self._is_swept = self._is_closed = False
        self._connect()
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
        """
        manifest = {"format_version": FORMAT_VERSION, "id": uuid.uuid4().hex, **manifest}
        manifest["checksum"] = layout.checksum(manifest)
        (folder / FILES_FOLDER).mkdir(parents=True)
        with closing(database.connect(folder / DATABASE_FILE, durable=durable, new=True)) as sql:
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
        with _opening(folder):
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

    @contextmanager
    def reading(self) -> Iterator[View]:
        """One committed state, the newest there is, for as long as the block runs.

        Raises:
            IndexNotFoundError: the folder was removed, or has another index by now.
            IndexCorruptError: a file is missing or is not what it should be.
        """
        with self._looking() as sql:
            yield View(self._begin(sql, "DEFERRED"), sql)

    @contextmanager
    def _looking(self) -> Iterator[sqlite3.Connection]:
        """A connection to read with, not in a transaction yet."""
        self._connect()
        stamp = self._reopen_where_changed()
        idle = self._idle
        try:
            sql = idle.pop()
        except IndexError:
            sql = self._connection()
        try:
            yield sql
            if self.read_only and database.stamp(self._database) != stamp:
                raise IndexFolderError(
                    f"The index {self.folder} was written by somebody else while it was read. Ask again."
                )
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise IndexCorruptError(f"{self._database} is not readable ({error}). {MEND}") from error
        finally:
            if sql.in_transaction:
                sql.execute("COMMIT")
            if self._is_closed or idle is not self._idle:
                sql.close()
            else:
                idle.append(sql)

    def refresh(self) -> bool:
        """Read the newest state now, so that the next search need not.

        Every search sees the newest state without this: it only moves the work to a moment of the
        caller's choice.

        Returns:
            Whether it is another than the last that was read.
        """
        former = self._snapshot
        with self.reading() as view:
            return view.snapshot is not former

    def append(
        self,
        documents: Sequence[Document],
        embeddings: TokenEmbeddings,
        *,
        listed: bool = True,
        restate: Sequence[Document] = (),
        delete: Iterable[str] = (),
    ) -> None:
        """Store documents, in place of those of the same ids, and amend others in the same moment.

        Args:
            documents: with ids that differ; checked by `database.check_documents`.
            embeddings: one entry a document. All of them are on disk when this returns, or, where an error
                was raised, none.
            listed: whether they are listed for candidates at once. Where they are not, searches score them
                exactly until `update_candidates`.
            restate: see `amend`.
            delete: see `amend`.
        """
        if not documents:
            self.amend(restate=restate, delete=delete)
            return
        with self._write() as write:
            _restate(write, restate)
            old = write.snapshot
            gone = database.rows_of(write.sql, [*(document.id for document in documents), *delete])
            database.delete(write.sql, gone.values())
            live = old.live.copy()
            live[list(gone.values())] = False
            codec, is_new = write.codec(embeddings)
            merged = list(old.segments) if is_new else tail(old.segments, len(embeddings.flat))
            first = merged[0].row.first_row if merged else old.n_rows
            row = write.merge(merged, live, codec, first_row=first, added=embeddings, listed=listed)
            write.put([segment.row for segment in merged], [row])
            rows = np.arange(old.n_rows, old.n_rows + len(documents), dtype=np.int64)
            database.insert(write.sql, rows, documents)

    def amend(self, *, restate: Sequence[Document] = (), delete: Iterable[str] = ()) -> list[str]:
        """Change documents without token embeddings.

        Args:
            restate: put in the place of those of the same ids, whose token embeddings stay as they are.
            delete: ids; unknown ones are passed over.

        Returns:
            The ids that were deleted, in the order given.
        """
        delete = list(delete)
        if not restate and not delete:
            return []
        with self._write() as write:
            _restate(write, restate)
            rows = database.rows_of(write.sql, delete)
            database.delete(write.sql, rows.values())
        return list(rows)

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete documents; unknown ids are passed over.

        Returns:
            The ids that were there, in the order given.
        """
        return self.amend(delete=ids)

    def update_candidates(self, *, anew: bool = False) -> None:
        """List documents that are not listed, or pool the corpus anew where it has outgrown what was pooled.

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
        with self._writing:
            with self.reading() as view:
                snapshot = view.snapshot
                made_for = database.read_state(view.sql).get("pooled_tokens", 0)
            if snapshot.n_live == 0 or (snapshot.n_live < self.settings.search.exact_below and not anew):
                return
            growth = self.settings.candidates.rebuild_growth
            outgrown = snapshot.pooled is None or snapshot.n_tokens > growth * made_for
            if anew or outgrown:
                self._pool_anew(snapshot)
            elif snapshot.n_unlisted:
                self._list_all(snapshot)

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
        with self._writing:
            try:
                self._writer.execute("VACUUM")
            except sqlite3.OperationalError as error:
                logger.warning("%s keeps the room of deleted documents for now (%s).", self._database, error)
            self._fold_log("TRUNCATE")

    def verify(self) -> list[Damage]:
        """Look at every byte; what is not what it should be."""
        with self._looking() as sql:
            sql.execute("BEGIN")
            records = database.files(sql)
            found = [Damage(f"{self._database}: {what}", is_derived=False) for what in database.damage(sql)]
        if what := layout.manifest_damage(self.folder, self.manifest):
            found.append(Damage(what, is_derived=True))
        looked_at = {name: files.damage(self.folder, record) for name, record in records.items()}
        with self._looking() as sql:  # what was removed by a write meanwhile is not missing
            still = database.files(sql)
        damaged = [(name, what) for name, what in looked_at.items() if what and name in still]
        return found + [Damage(what, name.endswith(DERIVED)) for name, what in damaged]

    def copy_to(self, target: Path) -> None:
        """Copy this index to a folder that is new, empty, or an index, which is replaced in one transaction.

        Others may have that index open: they see the new one from their next search on, or are told that it
        is another one. Files that are there already, from an earlier copy, are not copied again.

        Raises:
            InvalidInputError: the folder holds something that is no index.
            IndexMismatchError: the folder holds an index of a newer version.
            IndexWriteError: it could not be written; what was there is whole.
        """
        target = target.expanduser().resolve()
        if not layout.may_be_filled(target):
            raise InvalidInputError(
                f"{target} exists and is no index, so it is left as it is. Name a new folder."
            )
        self._connect()
        with self._writing, _telling(target):
            (target / FILES_FOLDER).mkdir(parents=True, exist_ok=True)
            with closing(database.connect(target / DATABASE_FILE, durable=True, new=True)) as sql:
                layout.check_version(target, database.format_version(sql))
                source = (
                    database.read_only_uri(self._database)
                    if self.read_only
                    else f"{self._database.as_uri()}?mode=rw"
                )
                sql.execute("ATTACH ? AS source", (source,))
                sql.execute("BEGIN IMMEDIATE")  # locks both: nobody removes a file of this one meanwhile
                try:
                    self._copy_files(sql, target)
                    database.take_over(sql)
                    sql.execute("COMMIT")
                except BaseException:
                    if sql.in_transaction:
                        sql.execute("ROLLBACK")
                    raise
                _remove_unnamed(target, database.files(sql))
            layout.write_manifest(target, self.manifest, durable=True)
            layout.remove_former(target)
            for path in (target, target.parent):
                files.sync(path)

    def close(self) -> None:
        """Close the database. Memory maps go with the last array that looks at them."""
        self._is_closed = True
        if self._process == os.getpid():
            with self._writing:
                self._writer.close()
                while self._idle:
                    self._idle.pop().close()

    # Connections and transactions.

    def _connect(self) -> None:
        """Have locks and connections that are this process's own."""
        if getattr(self, "_process", None) == os.getpid():
            return
        # After a fork those of the other process are left alone: closing them would drop its locks.
        self._inherited = (getattr(self, "_writer", None), getattr(self, "_idle", None))
        self._writing, self._refreshing = threading.RLock(), threading.Lock()
        self._stamp = database.stamp(self._database)
        self._writer, self._idle = self._connection(), deque[sqlite3.Connection]()
        self._process = os.getpid()

    def _connection(self) -> sqlite3.Connection:
        if self._is_closed:
            raise InvalidInputError(CLOSED)
        if self.read_only:
            return database.connect_to_read(self._database)
        return database.connect(self._database, durable=self.durable)

    def _reopen_where_changed(self) -> tuple[int, ...]:
        """Begin with other connections where a folder that may only be read was written by somebody else.

        Those that we have were told that nothing changes.
        """
        stamp = database.stamp(self._database) if self.read_only else ()
        if self.read_only and stamp != self._stamp:
            with self._refreshing:
                self._idle, self._stamp, self._snapshot = deque(), stamp, None
        return stamp

    def _begin(self, sql: sqlite3.Connection, kind: str) -> Snapshot:
        """Start a transaction; the state that it sees."""
        tried = None
        while True:
            sql.execute(f"BEGIN {kind}")
            try:
                # A connection goes on with the file that it opened, whatever is in the folder by now.
                if database.stamp(self._database)[:2] != self._stamp[:2]:
                    raise layout.gone(self.folder)
                number = database.generation(sql)
                # A file that is gone was removed by a writer which has committed a newer state; where there
                # is none, it is really missing.
                return self._at(sql, number, is_newest=tried == number)
            except _StaleError:
                sql.execute("ROLLBACK")
            except FileVanishedError:
                tried = number
                sql.execute("ROLLBACK")
            except BaseException:
                sql.execute("ROLLBACK")
                raise

    def _at(self, sql: sqlite3.Connection, number: int, *, is_newest: bool) -> Snapshot:
        """The state of this number, which a transaction sees.

        Raises:
            FileVanishedError: a file is gone, and this may not be the newest state.
            IndexNotFoundError: it is the state of another index.
        """
        snapshot = self._snapshot
        if snapshot is None or snapshot.generation != number:
            with self._refreshing:
                snapshot = self._snapshot
                if snapshot is None or snapshot.generation < number:
                    if layout.read_manifest(sql, self.folder)["id"] != self.id:
                        raise layout.gone(self.folder)
                    snapshot = self._snapshot = self._loader.snapshot(sql, is_newest=is_newest)
        if snapshot.generation != number:
            raise _StaleError
        return snapshot

    @contextmanager
    def _write(self) -> Iterator[Write]:
        """A transaction that no other process writes beside.

        Raises:
            IndexWriteError: the folder could not be written; the old state is whole.
        """
        self._connect()
        with self._writing, _telling(self.folder):
            if self._is_closed:
                raise InvalidInputError(CLOSED)
            if self.read_only:
                raise PermissionError(f"{self.folder} may only be read")
            sql, write, is_committing = self._writer, None, False
            try:
                snapshot = self._begin(sql, "IMMEDIATE")
                records = database.files(sql)
                if not self._is_swept:
                    _remove_unnamed(self.folder, records)
                    layout.remove_former(self.folder)
                    self._is_swept = True
                write = Write(sql, snapshot, self._loader, self.settings, self.durable, records)
                yield write
                database.replace_files(sql, write.obsolete, write.added)
                database.write_state(sql, generation=snapshot.generation + 1)
                is_committing = True
                sql.execute("COMMIT")
            except BaseException:
                self._is_swept = False  # the next write removes what this one has left
                if sql.in_transaction:
                    sql.execute("ROLLBACK")
                # Where committing itself failed, the log may hold it all the same, and come to life again.
                if write is not None and not is_committing:
                    _remove(self.folder, (record.name for record in write.added))
                raise
            if not _remove(self.folder, write.obsolete):
                self._is_swept = False
            self._fold_log("PASSIVE")

    def _fold_log(self, kind: str) -> None:
        """Have the log in the database file, so that a copy of the folder without it is whole."""
        if not self.durable:
            return
        # What was written is committed already, so failing here is no failure of it; and nobody is to wait
        # for a reader who looks at an old state.
        self._writer.execute("PRAGMA busy_timeout=0")
        with suppress(sqlite3.OperationalError):
            self._writer.execute(f"PRAGMA wal_checkpoint({kind})").fetchall()
        self._writer.execute(f"PRAGMA busy_timeout={round(1000 * database.LOCK_SECONDS)}")

    def _copy_files(self, sql: sqlite3.Connection, target: Path) -> None:
        """Copy the files that the attached database "source" names, but for those that are there already."""
        there = database.files(sql) if database.is_made(sql) else {}
        for name, record in database.files(sql, "source").items():
            if there.get(name) == record and files.damage(target, record) is None:
                continue
            new = target / f"{name}.new"
            try:
                shutil.copyfile(self.folder / name, new)
            except FileNotFoundError:
                if name.endswith(DERIVED):  # the copy makes it anew
                    continue
                raise layout.missing(self.folder / name) from None
            files.sync(new)
            os.replace(new, target / name)
        files.sync(target / FILES_FOLDER)

    # Candidates.

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
        with _telling(path):
            migrate(path, manifest)
    file = path / DATABASE_FILE
    if not file.is_file():
        return layout.read_manifest_file(path)  # which says what is there instead
    with _opening(path), closing(database.connect_to_read(file)) as sql:
        return layout.read_manifest(sql, path)


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Opening a database: what it may raise is told as an error of ours."""
    file = path / DATABASE_FILE
    try:
        yield
    except sqlite3.OperationalError as error:
        if database.has_log(file) and not os.access(path, os.W_OK):
            raise IndexFolderError(
                f"{file} has a log that was not folded in, because its last writer was killed, and the "
                "folder may only be read. Open the index once where it can be written."
            ) from error
        raise IndexFolderError(f"{file} could not be opened ({error}).") from error
    except sqlite3.DatabaseError as error:
        raise IndexCorruptError(f"{file} is not readable ({error}). {MEND}") from error


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Writing a folder: what the system refuses is told as an error of ours."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, IndexFolderError):
            raise
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise IndexWriteError(
                f"Another process has been writing the index {path} for {database.LOCK_SECONDS} seconds. "
                "What was to be written is not stored. Call again when it is done."
            ) from error
        raise IndexWriteError(
            f"The index {path} could not be written ({error}). What was to be written is not stored, and "
            "what was there is whole. Free space or mend the permissions, and call again."
        ) from error
    except sqlite3.DatabaseError as error:
        raise IndexCorruptError(f"{path / DATABASE_FILE} is not readable ({error}). {MEND}") from error


def _restate(write: Write, documents: Sequence[Document]) -> None:
    rows = database.rows_of(write.sql, [document.id for document in documents])
    database.update(write.sql, rows.values(), [document for document in documents if document.id in rows])


def _attach(write: Write, made: Mapping[SegmentRow, Postings]) -> None:
    """Put posting lists in the place of those that segments had."""
    for segment in write.snapshot.segments:
        if segment.row in made:
            write.put([segment.row], [write.with_lists(segment.row, made[segment.row])])


def _remove(path: Path, names: Iterable[str]) -> bool:
    """Remove files; whether all are gone."""
    is_done = True
    for name in names:
        try:
            (path / name).unlink(missing_ok=True)
        except OSError:  # Windows, while a memory map looks at it; a later writer removes it
            is_done = False
    return is_done


def _remove_unnamed(path: Path, named: Mapping[str, Any]) -> None:
    """Remove what a killed writer left; only when no other process is writing."""
    for file in (path / FILES_FOLDER).iterdir():
        if f"{FILES_FOLDER}/{file.name}" not in named:
            with suppress(OSError):
                file.unlink()
