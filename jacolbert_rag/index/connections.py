"""One process' connections to the database of an index: one that writes, and idle ones that read."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from jacolbert_rag.errors import (
    IndexCorruptError,
    IndexFolderError,
    IndexWriteError,
    InvalidInputError,
)
from jacolbert_rag.index import database, layout
from jacolbert_rag.index.files import MEND
from jacolbert_rag.index.layout import DATABASE_FILE

CLOSED = "This index was closed. Open it again to go on."


class OverwrittenError(IndexFolderError):
    """A database that may only be read was written by somebody else while it was read."""


@dataclass(frozen=True)
class _Pool:
    """Idle connections, and what was so when the first of them was opened.

    Attributes:
        stamp: of the database.
        is_immutable: whether SQLite is told that the file does not change, and so does not look again.
        idle: of this pool alone.
    """

    stamp: tuple[int, ...]
    is_immutable: bool
    idle: deque[sqlite3.Connection] = field(default_factory=deque)


class Connections:
    """Connections for any number of threads of one process.

    A process that is forked must open the index itself: SQLite's memory of its locks is copied with the fork
    and wrong in the copy (sqlite.org/howtocorrupt.html, section 2.6), and torch's threads are not copied.

    Attributes:
        folder: of the index.
        durable: whether a committed transaction must survive a power cut.
        read_only: whether this process may not write the folder.
        writing: held by the thread that uses the connection that writes.
        is_closed: whether `close` was called.
    """

    def __init__(self, folder: Path, *, durable: bool) -> None:
        """Connect for the first time.

        Raises:
            IndexFolderError: the database cannot be opened.
        """
        self.folder, self.durable = folder, durable
        self.path = folder / DATABASE_FILE
        self.read_only = not os.access(folder, os.W_OK)
        self.writing = threading.RLock()
        self.is_closed = False
        self._process = os.getpid()
        self._renewing = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._open: set[sqlite3.Connection] = set()  # idle, in use, or the one that writes
        self._pool = self._new_pool()
        self._file = self._pool.stamp[:2]
        with _FORKING:
            _OPEN.add(self)
        with reading_errors(folder):
            self._pool.idle.append(self._connect_to_read(self._pool))

    def check(self) -> None:
        """Refuse what is of no use any more.

        Raises:
            InvalidInputError: the index was closed, or this process was forked from the one that opened it.
        """
        if self._process != os.getpid():
            raise InvalidInputError(
                f"The index {self.folder} was opened by the process {self._process}, from which this one was "
                "forked. Open it in each process, with JaColBERTRetriever.open, and start processes by "
                "'spawn' (multiprocessing.get_context) where the parent has encoded anything."
            )
        if self.is_closed:
            raise InvalidInputError(CLOSED)

    def check_file(self) -> None:
        """Refuse a database that is another file than was opened: connections go on with that one.

        Raises:
            IndexNotFoundError: it is one, or is gone.
        """
        if database.stamp(self.path)[:2] != self._file:
            raise layout.gone(self.folder)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read with, not in a transaction yet; one that is left open is rolled back.

        Raises:
            OverwrittenError: what was read may be of no one state. Read again.
            IndexNotFoundError: the index is gone.
            IndexCorruptError: the database is damaged.
        """
        self.check()
        pool = self._current_pool()
        with reading_errors(self.folder):
            try:
                sql = pool.idle.pop()
            except IndexError:
                sql = self._connect_to_read(pool)
            is_sound = False
            try:
                yield sql
                is_sound = True
            finally:
                with suppress(sqlite3.Error):
                    sql.rollback()
                if is_sound and pool is self._pool and not self.is_closed:
                    pool.idle.append(sql)
                else:
                    self._close(sql)
                if self._is_overwritten(pool):
                    raise self.overwritten()

    def overwritten(self) -> OverwrittenError:
        """An error for what was read of a database that somebody else has written meanwhile."""
        return OverwrittenError(
            f"The index {self.folder} was written by somebody else while it was read. Ask again."
        )

    def writer(self) -> sqlite3.Connection:
        """The connection that writes, for who holds `writing`.

        Raises:
            PermissionError: this process may not write the folder.
        """
        self.check()
        if self.read_only:
            raise PermissionError(f"{self.folder} may only be read")
        if self._writer is None:
            self._writer = self._connect()
        return self._writer

    def close(self) -> None:
        """Close all connections; those that threads are reading with close behind them."""
        self.is_closed = True
        if self._process == os.getpid():
            with self.writing:
                self._release()

    def _connect(self) -> sqlite3.Connection:
        with self._not_while_forking():
            sql = database.connect(self.path, durable=self.durable)
            self._open.add(sql)
            return sql

    def _connect_to_read(self, pool: _Pool) -> sqlite3.Connection:
        if not self.read_only:
            return self._connect()
        with self._not_while_forking():
            sql = database.connect_to_read(self.path, immutable=pool.is_immutable)
            self._open.add(sql)
            return sql

    def _close(self, sql: sqlite3.Connection) -> None:
        sql.close()
        self._open.discard(sql)

    def _close_all(self, idle: deque[sqlite3.Connection]) -> None:
        while idle:
            with suppress(IndexError):  # another thread was faster
                self._close(idle.pop())

    @contextmanager
    def _not_while_forking(self) -> Iterator[None]:
        with _FORKING:
            if self.path in _CARRIED:
                raise IndexFolderError(
                    f"The index {self.folder} was in use when this process was forked, so SQLite cannot "
                    "tell their locks apart. Start processes by 'spawn', or fork before it is opened."
                )
            yield

    def _new_pool(self) -> _Pool:
        is_immutable = self.read_only and not database.has_log(self.path)
        return _Pool(database.stamp(self.path), is_immutable)

    def _current_pool(self) -> _Pool:
        """The pool, or a new one where the folder may only be read and that one does not fit any more."""
        if self.read_only and not self._fits(self._pool):
            with self._renewing:
                if not self._fits(self._pool):
                    former, self._pool = self._pool, self._new_pool()
                    self._close_all(former.idle)
        return self._pool

    def _fits(self, pool: _Pool) -> bool:
        # Without a log, and without the right to make one, only an immutable file can be opened.
        return not self._is_overwritten(pool) and (pool.is_immutable or database.has_log(self.path))

    def _is_overwritten(self, pool: _Pool) -> bool:
        return pool.is_immutable and database.stamp(self.path) != pool.stamp

    def _release(self) -> bool:
        """Close what nobody is using, to be opened again; whether that is all."""
        self._close_all(self._pool.idle)
        if self._writer is not None and not self._writer.in_transaction:
            self._close(self._writer)
            self._writer = None
        return not self._open

    def release_before_fork(self) -> None:
        """Leave no connection to a process that is about to be forked, so that it may open the index."""
        if self._process != os.getpid():
            return
        is_mine = self.writing.acquire(blocking=False)
        try:
            if (not is_mine or not self._release()) and self.path not in _CARRIED:
                _CARRIED.add(self.path)
                _CARRIED_BY_THIS_FORK.add(self.path)
        finally:
            if is_mine:
                self.writing.release()


_OPEN: weakref.WeakSet[Connections] = weakref.WeakSet()
_CARRIED: set[Path] = set()  # databases of which this process has connections of the one it was forked from
_CARRIED_BY_THIS_FORK: set[Path] = set()  # those that its own child has, and it has not
_FORKING = threading.Lock()  # nobody connects between letting go and the fork


def _before_fork() -> None:
    _FORKING.acquire()
    for connections in list(_OPEN):
        connections.release_before_fork()


def _after_fork_in_parent() -> None:
    _CARRIED.difference_update(_CARRIED_BY_THIS_FORK)
    _end_fork()


def _end_fork() -> None:
    _CARRIED_BY_THIS_FORK.clear()
    _FORKING.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_end_fork)


@contextmanager
def reading_errors(folder: Path) -> Iterator[None]:
    """Reading an index: what SQLite raises is told as an error of ours.

    Raises:
        IndexNotFoundError: the database is gone.
        IndexFolderError: it cannot be opened or read.
        IndexCorruptError: it is damaged.
    """
    path = folder / DATABASE_FILE
    try:
        yield
    except sqlite3.OperationalError as error:
        if not path.exists():
            raise layout.gone(folder) from error
        if database.has_log(path) and not os.access(folder, os.W_OK):
            raise IndexFolderError(
                f"{path} has a log that was not folded in, because its last writer was killed, and the "
                "folder may only be read. Open the index once where it can be written."
            ) from error
        if str(error).startswith(("no such table", "no such column")):
            raise IndexFolderError(
                f"{path} lacks what this version stores ({error}): it is damaged, or was made by one from "
                "before the release. Restore it from a copy, or build the index anew from its documents."
            ) from error
        raise IndexFolderError(
            f"{path} could not be read ({error}). Mend its permissions or its disk, and open the index again."
        ) from error
    except database.DAMAGE as error:
        raise IndexCorruptError(f"{path} is not readable ({error}). {MEND}") from error


@contextmanager
def writing_errors(folder: Path) -> Iterator[None]:
    """Writing a folder: what the system refuses is told as an error of ours.

    Raises:
        IndexWriteError: the folder could not be written; the old state is whole.
        IndexCorruptError: its database is damaged.
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, IndexFolderError):
            raise
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise IndexWriteError(
                f"Another process has been writing the index {folder} for {database.LOCK_SECONDS} seconds. "
                "What was to be written is not stored. Call again when it is done."
            ) from error
        raise IndexWriteError(
            f"The index {folder} could not be written ({error}). What was to be written is not stored, and "
            "what was there is whole. Free space or mend the permissions, and call again."
        ) from error
    except database.DAMAGE as error:
        raise IndexCorruptError(f"{folder / DATABASE_FILE} is not readable ({error}). {MEND}") from error
