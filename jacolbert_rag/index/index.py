"""A durable index: documents and their token embeddings on disk, added to, deleted from and searched.

    manifest.json            what made the index; written once
    index.sqlite             documents, and the names, sizes and checksums of the files that count
    files/NAME.tokens.npy    token embeddings of a run of rows, as `quantize.Codec` has them
    files/NAME.offsets.npy   first token of each row
    files/NAME.lists.npy     posting lists of the run (derived)
    files/NAME.graph         Voyager over the pooled vectors (derived), with .centers.npy and .cells.npy
    files/NAME.codebook.npy  centroids of residuals

Files are whole before the transaction that names them commits, and are never changed: a kill at any moment
leaves the state before it or the one behind it, and at worst files that nobody names, which the next writer
removes. Writers of several processes take turns (SQLite's lock ends with its process); a reader sees one
committed state for as long as it looks.
A document's row is its number in order of arrival. A deleted or replaced document leaves a dead row;
compacting numbers the rows anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sqlite3
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jacolbert_rag.config import IndexSettings
from jacolbert_rag.datatypes import Document, FloatArray, IntArray, TokenEmbeddings, offsets_of
from jacolbert_rag.errors import (
    IndexCorruptError,
    IndexFolderError,
    IndexMismatchError,
    IndexNotFoundError,
    IndexWriteError,
    InvalidInputError,
)
from jacolbert_rag.index import database, files
from jacolbert_rag.index.candidates import PooledVectors, list_documents
from jacolbert_rag.index.database import SegmentRow
from jacolbert_rag.index.files import MEND, FileRecord, FileVanishedError
from jacolbert_rag.index.graph import Graph
from jacolbert_rag.index.pooling import kmeans
from jacolbert_rag.index.postings import Postings
from jacolbert_rag.index.quantize import BITS, Codec, CodedTokens
from jacolbert_rag.index.snapshot import Segment, Snapshot

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
DATABASE_FILE = "index.sqlite"
FILES_FOLDER = "files"
SAVING_FILE = ".saving"  # in a folder that an index is being copied into
MANIFEST_KEYS = ("id", "model", "fingerprint", "dim", "encoder", "pooling", "store", "candidates", "search")

TOKENS, OFFSETS, LISTS = ".tokens.npy", ".offsets.npy", ".lists.npy"
GRAPH, CENTERS, CELLS, CODEBOOK = ".graph", ".centers.npy", ".cells.npy", ".codebook.npy"
DERIVED = (LISTS, GRAPH, CENTERS, CELLS)

LISTED_TOKENS = 131_072  # token embeddings decoded at once while lists are made
MERGED_TOKENS = 1 << 22  # of the largest segment that an add makes of others: writing it takes about a second
TOKENS_PER_CENTROID = 256  # of a codebook


@dataclass(frozen=True)
class Damage:
    """Something in an index that is not what it should be.

    Attributes:
        what: the file or document, what is wrong with it.
        is_derived: whether `rebuild` makes it anew; else the index is to be restored or built again.
    """

    what: str
    is_derived: bool


@dataclass
class _Write:
    """A write under way: the state that it begins with, and what it puts in whose place."""

    sql: sqlite3.Connection
    snapshot: Snapshot
    added: list[FileRecord] = field(default_factory=list)
    obsolete: list[str] = field(default_factory=list)


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
        self.read_only = not os.access(folder, os.W_OK)
        self.settings = IndexSettings.from_json(manifest)
        self.dim = int(manifest["dim"])
        self._writing = threading.RLock()
        self._process = 0  # whose connections these are; SQLite's must not be carried through a fork
        self._writer: sqlite3.Connection
        self._idle: deque[sqlite3.Connection]  # of readers
        self._connect()
        self._snapshot: Snapshot | None = None
        self._refreshing = threading.Lock()
        self._codecs: dict[str, Codec] = {}
        self._pooled: tuple[str, PooledVectors | None] | None = None
        self._swept = self._closed = False
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
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILES_FOLDER).mkdir()
        manifest = {"format_version": FORMAT_VERSION, "id": uuid.uuid4().hex, **manifest}
        manifest["checksum"] = _checksum(manifest)
        sql = database.connect(folder / DATABASE_FILE, durable=durable)
        database.create(sql)
        database.write_state(sql, id=manifest["id"])
        sql.close()
        data = json.dumps(manifest, ensure_ascii=False, indent=2).encode()
        files.write_bytes(folder / MANIFEST_FILE, data, durable=durable)
        return cls(folder, manifest, durable=durable, device=device)

    @classmethod
    def open(cls, folder: Path, *, device: str = "cpu") -> Index:
        """Open an index folder.

        Args:
            folder: that `create` or `copy_to` filled.
            device: that scores documents.

        Raises:
            IndexNotFoundError: there is no index in the folder.
            IndexMismatchError: a newer version of this library made it.
            IndexCorruptError: a file is missing or is not what it should be.
        """
        folder = folder.expanduser().resolve()
        manifest = read_manifest(folder)
        if not (folder / DATABASE_FILE).is_file():
            raise _missing(folder / DATABASE_FILE)
        try:
            return cls(folder, manifest, durable=True, device=device)
        except InvalidInputError as error:
            raise IndexMismatchError(
                f"The settings of the index {folder} are not those of this version: {error} Update "
                "jacolbert_rag, or build the index anew."
            ) from error
        except (sqlite3.DatabaseError, KeyError, TypeError) as error:
            raise IndexCorruptError(f"{folder / DATABASE_FILE} is not readable ({error}). {MEND}") from error

    @property
    def id(self) -> str:
        """Drawn at random when the index was made."""
        return str(self.manifest["id"])

    @contextmanager
    def reading(self) -> Iterator[View]:
        """One committed state, the newest there is, for as long as the block runs."""
        if self._closed:
            raise InvalidInputError("This index was closed. Load it again to go on.")
        self._connect()
        idle = self._idle
        try:
            sql = idle.pop()
        except IndexError:
            sql = self._connection()
        try:
            yield View(self._begin(sql, "DEFERRED"), sql)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            path = self.folder / DATABASE_FILE
            raise IndexCorruptError(f"{path} is not readable ({error}). {MEND}") from error
        finally:
            if sql.in_transaction:
                sql.execute("COMMIT")
            idle.append(sql)

    def refresh(self) -> bool:
        """Read the newest state now, so that the next search need not.

        Every search sees the newest state without this: it only moves the work to a moment of the
        caller's choice.

        Returns:
            Whether there was a newer one than the last that was read.
        """
        former = self._snapshot
        with self.reading() as view:
            return view.snapshot is not former

    def append(
        self, documents: Sequence[Document], embeddings: TokenEmbeddings, *, listed: bool = True
    ) -> None:
        """Store documents, in place of those of the same ids.

        Args:
            documents: with ids that differ; checked by `database.check_documents`.
            embeddings: one entry a document. All of them are on disk when this returns, or, where an error
                was raised, none.
            listed: whether they are listed for candidates at once. Where they are not, searches score them
                exactly until `update_candidates`.
        """
        if not documents:
            return
        with self._write() as write:
            old = write.snapshot
            replaced = database.rows_of(write.sql, [document.id for document in documents])
            database.delete(write.sql, replaced.values())
            live = old.live.copy()
            live[list(replaced.values())] = False
            codec, is_new = self._codec_to_write(write, embeddings)
            merged = list(old.segments) if is_new else _tail(old.segments, len(embeddings.flat))
            rows = np.arange(old.n_rows, old.n_rows + len(documents), dtype=np.int64)
            self._replace(write, merged, live, codec, embeddings, listed=listed)
            database.insert(write.sql, rows, documents)

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete documents; unknown ids are passed over.

        Returns:
            The ids that were there, in the order given.
        """
        with self._write() as write:
            rows = database.rows_of(write.sql, ids)
            database.delete(write.sql, rows.values())
        return list(rows)

    def update_candidates(self, *, anew: bool = False) -> None:
        """List documents that are not listed, or pool the corpus anew where it has outgrown what was pooled.

        Searches go on meanwhile.

        Args:
            anew: pool even where that is not due.
        """
        if self.read_only and not anew:
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
            codec, _ = self._codec_to_write(write, None)
            database.renumber(write.sql, np.flatnonzero(old.live))
            self._replace(write, list(old.segments), old.live, codec, None, listed=True, keep_dead=False)
        with self._writing, _telling(self.folder):
            self._writer.execute("VACUUM")
            self._checkpoint("TRUNCATE")

    def verify(self) -> list[Damage]:
        """Look at every byte; what is not what it should be."""
        with self.reading() as view:
            looked_at = {
                expected.name: files.damage(self.folder, expected)
                for expected in database.files(view.sql).values()
            }
            found = [Damage(what, name.endswith(DERIVED)) for name, what in looked_at.items() if what]
            path = self.folder / DATABASE_FILE
            found += [Damage(f"{path}: {what}", is_derived=False) for what in database.damage(view.sql)]
        return found

    def copy_to(self, folder: Path) -> None:
        """Copy this index to a folder that is new, empty, or an index, which is replaced.

        Raises:
            InvalidInputError: the folder holds something that is no index.
            IndexWriteError: it could not be written; what was there is whole.
        """
        if (folder / MANIFEST_FILE).is_file() and not (folder / SAVING_FILE).exists():
            new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
            try:
                self._copy_into(new)
                with _telling(folder):
                    replace_folder(new, folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            return
        is_left_over = (folder / SAVING_FILE).is_file()
        if folder.exists() and not is_left_over and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidInputError(
                f"{folder} exists and is no index, so it is left as it is. Name a new folder."
            )
        # An empty folder is filled, not replaced: it may be where a disk is mounted.
        self._copy_into(folder)

    def _copy_into(self, folder: Path) -> None:
        """Copy this index into a folder that holds nothing of worth; until all is there, a mark says so."""
        mark = folder / SAVING_FILE
        # No write may remove a file meanwhile.
        held = nullcontext() if self.read_only else self._write()
        with held, self.reading() as view, _telling(folder):
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
            shutil.rmtree(folder / FILES_FOLDER, ignore_errors=True)
            for end in ("", "-wal", "-shm"):
                (folder / (DATABASE_FILE + end)).unlink(missing_ok=True)
            (folder / FILES_FOLDER).mkdir()
            for name in [*database.files(view.sql), MANIFEST_FILE]:
                shutil.copyfile(self.folder / name, folder / name)
            with closing(sqlite3.connect(folder / DATABASE_FILE)) as target:
                view.sql.backup(target)
            for path in [*folder.rglob("*"), folder, folder.parent]:
                files.sync(path)
            mark.unlink()
            files.sync(folder)

    def close(self) -> None:
        """Close the database. Memory maps go with the last array that looks at them."""
        with self._writing:
            self._closed = True
            self._writer.close()
            while self._idle:
                self._idle.pop().close()

    # Reading.

    def _connect(self) -> None:
        """Have connections that are this process's own."""
        if self._process != os.getpid():
            # Those of the process that this one was forked from are left alone, not closed: SQLite would
            # drop that process's locks.
            self._inherited = (getattr(self, "_writer", None), getattr(self, "_idle", None))
            self._process, self._writer, self._idle = os.getpid(), self._connection(), deque()

    def _connection(self) -> sqlite3.Connection:
        return database.connect(self.folder / DATABASE_FILE, durable=self.durable, read_only=self.read_only)

    def _begin(self, sql: sqlite3.Connection, kind: str) -> Snapshot:
        """Start a transaction; the state that it sees."""
        tried = None
        while True:
            try:
                sql.execute(f"BEGIN {kind}")
            except sqlite3.ProgrammingError as error:
                raise InvalidInputError("This index was closed. Load it again to go on.") from error
            try:
                # A file that is gone was removed by a writer which has committed a newer state; where there
                # is none, it is really missing.
                return self._at(sql, is_newest=tried is not None and tried == database.generation(sql))
            except _StaleError:
                sql.execute("ROLLBACK")
            except FileVanishedError:
                tried = database.generation(sql)
                sql.execute("ROLLBACK")
            except BaseException:
                sql.execute("ROLLBACK")
                raise

    def _at(self, sql: sqlite3.Connection, *, is_newest: bool) -> Snapshot:
        """The state that a transaction sees.

        Raises:
            FileVanishedError: a file is gone, and this may not be the newest state.
            IndexCorruptError: a file is missing or is not what it should be.
        """
        number = database.generation(sql)
        snapshot = self._snapshot
        if snapshot is None or snapshot.generation != number:
            with self._refreshing:
                snapshot = self._snapshot
                if snapshot is None or snapshot.generation < number:
                    try:
                        snapshot = self._snapshot = self._read_snapshot(sql, number, is_newest=is_newest)
                    except FileVanishedError as vanished:
                        if is_newest:
                            raise _missing(Path(str(vanished))) from None
                        raise
        if snapshot.generation != number:
            raise _StaleError
        return snapshot

    def _read_snapshot(self, sql: sqlite3.Connection, number: int, *, is_newest: bool) -> Snapshot:
        state, records = database.read_state(sql), database.files(sql)
        if state.get("id") != self.id:
            raise IndexCorruptError(
                f"{self.folder / MANIFEST_FILE} is of the index {self.id}, and {DATABASE_FILE} of "
                f"{state.get('id')}. {MEND}"
            )
        pooled = self._read_pooled(state, records, is_newest=is_newest)
        known = {segment.row: segment for segment in self._snapshot.segments} if self._snapshot else {}
        segments = []
        for row in database.segments(sql):
            segment = known.get(row)
            if segment is None or (segment.postings is None) != (row.lists is None or pooled is None):
                segment = self._read_segment(
                    row, state, records, is_pooled=pooled is not None, is_newest=is_newest
                )
            segments.append(segment)
        starts = [0, *(segment.row.stop for segment in segments)]
        dead = database.dead_rows(sql)
        gaps = any(s.row.first_row != start for s, start in zip(segments, starts, strict=False))
        if gaps or (len(dead) and not 0 <= dead[0] <= dead[-1] < starts[-1]):
            raise IndexCorruptError(
                f"{self.folder / DATABASE_FILE} has rows without token embeddings. {MEND}"
            )
        live = np.ones(starts[-1], dtype=np.bool_)
        live[dead] = False
        return Snapshot(number, tuple(segments), live, pooled, self.dim, self.device)

    def _read_segment(
        self,
        row: SegmentRow,
        state: Mapping[str, Any],
        records: Mapping[str, FileRecord],
        *,
        is_pooled: bool,
        is_newest: bool,
    ) -> Segment:
        codec = self._codec(row.coding, state, records)
        codes = self._map(records, row.name + TOKENS, np.uint8, (row.n_tokens, codec.width))
        offsets = self._read(records, row.name + OFFSETS, np.int64, (row.n_rows + 1,))
        if offsets[0] != 0 or offsets[-1] != row.n_tokens or np.any(np.diff(offsets) < 0):
            raise IndexCorruptError(
                f"{self.folder / FILES_FOLDER / row.name}{OFFSETS} does not describe {row.n_tokens} tokens "
                f"in {row.n_rows} documents. {MEND}"
            )
        postings = None
        if is_pooled and row.lists is not None:
            with self._derived(row.lists + LISTS, is_newest=is_newest):
                packed = self._map(records, row.lists + LISTS, np.uint32, (row.n_postings,))
                postings = Postings.unpack(packed)
        return Segment(row, CodedTokens(codes, offsets, codec), postings)

    def _read_pooled(
        self, state: Mapping[str, Any], records: Mapping[str, FileRecord], *, is_newest: bool
    ) -> PooledVectors | None:
        name = state.get("pooled")
        if name is None:
            return None
        if self._pooled is None or self._pooled[0] != name:
            pooled = None
            with self._derived(name + GRAPH, is_newest=is_newest):
                # Voyager follows whatever a damaged graph says, out of its memory too: look at every byte first.
                graph = Graph.load(files.read_bytes(self.folder, self._record(records, name + GRAPH)))
                centers = self._read(records, name + CENTERS, np.float32, (state["n_cells"], self.dim))
                cells = self._read(records, name + CELLS, np.int64, (state["n_cells"] + 1,))
                if len(graph) != state["n_pooled"] or cells[-1] != len(graph) or graph.dim != self.dim:
                    raise ValueError(f"{len(graph)} vectors of {graph.dim} dimensions")
                pooled = PooledVectors(graph, centers, cells)
            self._pooled = (name, pooled)
        return self._pooled[1]

    @contextmanager
    def _derived(self, name: str, *, is_newest: bool) -> Iterator[None]:
        """Reading what can be made again: where it is damaged, searches go on without it."""
        try:
            yield
        except (FileVanishedError, IndexCorruptError, ValueError, RuntimeError, KeyError) as error:
            if isinstance(error, FileVanishedError):
                if not is_newest:
                    raise
                error = _missing(Path(str(error)))
            logger.warning(
                "%s of the index %s is damaged (%s). Searches go on without it, and take longer; rebuild() "
                "makes it anew.",
                name,
                self.folder,
                error,
            )

    def _map(
        self, records: Mapping[str, FileRecord], name: str, dtype: Any, shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        return files.map_array(self.folder, self._record(records, name), dtype, shape)

    def _read(
        self, records: Mapping[str, FileRecord], name: str, dtype: Any, shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        return files.read_array(self.folder, self._record(records, name), dtype, shape)

    def _record(self, records: Mapping[str, FileRecord], name: str) -> FileRecord:
        record = records.get(f"{FILES_FOLDER}/{name}")
        if record is None:
            raise IndexCorruptError(f"{self.folder / DATABASE_FILE} does not name {name}. {MEND}")
        return record

    def _codec(self, coding: str, state: Mapping[str, Any], records: Mapping[str, FileRecord]) -> Codec:
        """How tokens of this coding lie in bytes; residuals have centroids of their own."""
        name = state.get("codebook", "") if coding in BITS else ""
        key = f"{coding} {name}"
        if key not in self._codecs:
            centroids = None
            if coding in BITS:
                shape = (state["n_centroids"], self.dim)
                centroids = self._read(records, name + CODEBOOK, np.float32, shape)
            self._codecs[key] = Codec(coding, self.dim, centroids)
        return self._codecs[key]

    # Writing.

    @contextmanager
    def _write(self) -> Iterator[_Write]:
        """A transaction that no other process writes beside.

        Raises:
            IndexWriteError: the folder could not be written; the old state is whole.
        """
        self._connect()
        with self._writing, _telling(self.folder):
            if self.read_only:
                raise PermissionError(f"{self.folder} may only be read")
            sql = self._writer
            write = _Write(sql, self._begin(sql, "IMMEDIATE"))
            try:
                if not self._swept:
                    self._remove_orphans(write)
                yield write
                database.replace_files(sql, write.obsolete, write.added)
                database.write_state(sql, generation=write.snapshot.generation + 1)
                sql.execute("COMMIT")
            except BaseException:
                if sql.in_transaction:
                    sql.execute("ROLLBACK")
                self._swept = False  # the next write removes what this one has left
                if database.generation(sql) == write.snapshot.generation:
                    self._remove(record.name for record in write.added)
                raise
            self._remove(write.obsolete)
            self._checkpoint("PASSIVE")

    def _checkpoint(self, kind: str) -> None:
        """Have the log in the database file, so that a copy of the folder without it is whole."""
        if self.durable:
            # What was written is committed already, so failing here is no failure of it.
            with suppress(sqlite3.OperationalError):
                self._writer.execute(f"PRAGMA wal_checkpoint({kind})").fetchall()

    def _replace(
        self,
        write: _Write,
        old: Sequence[Segment],
        live: npt.NDArray[np.bool_],
        codec: Codec,
        added: TokenEmbeddings | None,
        *,
        listed: bool,
        keep_dead: bool = True,
    ) -> None:
        """Put one segment in the place of others, behind which what is added comes.

        Args:
            write: under way.
            old: segments that follow one another, the last ones there are.
            live: (n_rows,) rows of the index that are alive.
            codec: of the new segment.
            added: of new rows.
            listed: whether the new segment's rows are listed, where there is something to list them by.
            keep_dead: whether dead rows keep their numbers, without tokens; else the rows are numbered anew
                from 0.
        """
        first = old[0].row.first_row if old else write.snapshot.n_rows
        alive = [live[segment.row.first_row : segment.row.stop] for segment in old]
        # The new number of each old row, counted from the first of the segment.
        kept = np.concatenate([np.empty(0, dtype=np.bool_), *alive])
        numbers = np.arange(len(kept)) if keep_dead else np.cumsum(kept) - 1
        parts = [np.where(a, s.tokens.lengths, 0) for a, s in zip(alive, old, strict=True)]
        lengths = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        if not keep_dead:
            first, lengths = 0, lengths[kept]
        n_old = len(lengths)
        if added is not None:
            lengths = np.concatenate([lengths, added.lengths])
        offsets = offsets_of(lengths)
        name = uuid.uuid4().hex[:16]
        row = SegmentRow(first, len(lengths), int(offsets[-1]), name, codec.dtype)

        def chunks() -> Iterator[npt.NDArray[np.uint8]]:
            for segment, a in zip(old, alive, strict=True):
                for coded in _in_blocks(segment.tokens, np.flatnonzero(a)):
                    same = coded.codec is codec
                    yield coded.codes if same else codec.encode(coded.codec.decode(coded.codes))
            if added is not None:
                for start in range(0, len(added.flat), LISTED_TOKENS):
                    yield codec.encode(added.flat[start : start + LISTED_TOKENS])

        self._write_rows(write, name + TOKENS, chunks(), (row.n_tokens, codec.width))
        self._write_array(write, name + OFFSETS, offsets)
        pooled = write.snapshot.pooled
        if pooled is not None and listed and row.n_rows:
            pairs = []
            start = 0
            for segment, a in zip(old, alive, strict=True):
                mine = numbers[start : start + len(a)]
                postings = segment.postings or self._list(pooled, segment, a)
                listing, rows = postings.pairs()
                pairs.append((listing[a[rows]], mine[rows[a[rows]]]))
                start += len(a)
            if added is not None:
                blocks = [(np.arange(n_old, len(lengths)), added.lengths, added.flat)]
                pairs.append(list_documents(pooled, blocks, self.settings.candidates).pairs())
            postings = Postings.of(*(np.concatenate(part) for part in zip(*pairs, strict=True)))
            row = self._write_lists(write, row, postings)
        database.replace_segments(write.sql, [segment.row for segment in old], [row] if row.n_rows else [])
        for segment in old:
            write.obsolete += _names(segment.row)
        if not row.n_rows:
            self._forget(write, name)

    def _list(self, pooled: PooledVectors, segment: Segment, alive: npt.NDArray[np.bool_]) -> Postings:
        """Posting lists of a segment's live rows."""
        rows = np.flatnonzero(alive)
        blocks = (
            (rows[start : start + len(coded)], coded.lengths, coded.codec.decode(coded.codes))
            for start, coded in _numbered(_in_blocks(segment.tokens, rows))
        )
        return list_documents(pooled, blocks, self.settings.candidates)

    def _write_lists(self, write: _Write, row: SegmentRow, postings: Postings) -> SegmentRow:
        name, packed = uuid.uuid4().hex[:16], postings.packed()
        self._write_array(write, name + LISTS, packed)
        return replace(row, lists=name, n_postings=len(packed))

    def _list_all(self, snapshot: Snapshot) -> None:
        """List the rows that are not listed."""
        pooled = snapshot.pooled
        assert pooled is not None
        made = {}
        for segment in snapshot.segments:
            if segment.postings is None:
                alive = snapshot.live[segment.row.first_row : segment.row.stop]
                made[segment.row] = self._list(pooled, segment, alive)
        with self._write() as write:
            if write.snapshot.pooled is pooled:  # else another process has pooled anew, and listed all
                self._attach(write, made)

    def _pool_anew(self, snapshot: Snapshot) -> None:
        """Pool the corpus, and list all rows by what comes of it."""
        config = self.settings.candidates
        n_pooled = min(max(1, snapshot.n_tokens // config.tokens_per_pooled), config.max_pooled)
        sample = _sample(snapshot, config.samples_per_pooled * n_pooled, np.random.default_rng(config.seed))
        pooled = PooledVectors.build(sample, n_pooled, config)
        del sample
        made = {
            segment.row: self._list(pooled, segment, snapshot.live[segment.row.first_row : segment.row.stop])
            for segment in snapshot.segments
        }
        name = uuid.uuid4().hex[:16]
        with self._write() as write:
            state = database.read_state(write.sql)
            if "pooled" in state:
                former = state["pooled"]
                write.obsolete += [f"{FILES_FOLDER}/{former}{end}" for end in (GRAPH, CENTERS, CELLS)]
            path = self.folder / FILES_FOLDER / (name + GRAPH)
            pooled.graph.save(path)
            if self.durable:
                files.sync(path)
            write.added.append(files.record(self.folder, f"{FILES_FOLDER}/{name}{GRAPH}"))
            self._write_array(write, name + CENTERS, pooled.centers)
            self._write_array(write, name + CELLS, pooled.offsets)
            database.write_state(
                write.sql,
                pooled=name,
                n_pooled=len(pooled),
                n_cells=len(pooled.centers),
                pooled_tokens=snapshot.n_tokens,
            )
            for segment in write.snapshot.segments:  # what another process has added meanwhile
                if segment.row not in made:
                    alive = write.snapshot.live[segment.row.first_row : segment.row.stop]
                    made[segment.row] = self._list(pooled, segment, alive)
            self._attach(write, made)

    def _attach(self, write: _Write, made: Mapping[SegmentRow, Postings]) -> None:
        """Put posting lists in the place of those that segments had."""
        for segment in write.snapshot.segments:
            if segment.row in made:
                row = self._write_lists(write, segment.row, made[segment.row])
                database.replace_segments(write.sql, [segment.row], [row])
                if segment.row.lists is not None:
                    write.obsolete.append(f"{FILES_FOLDER}/{segment.row.lists}{LISTS}")

    def _codec_to_write(self, write: _Write, added: TokenEmbeddings | None) -> tuple[Codec, bool]:
        """How new tokens are stored, and whether that has just begun.

        Centroids of residuals want tokens to be found from, so the first ones are stored as float16.
        """
        dtype, config = self.settings.store.dtype, self.settings.store
        state = database.read_state(write.sql)
        if dtype not in BITS or "codebook" in state:
            return self._codec(dtype, state, database.files(write.sql)), False
        n_added = len(added.flat) if added is not None else 0
        if write.snapshot.n_tokens + n_added < config.codebook_tokens:
            return self._codec("float16", state, {}), False
        rng = np.random.default_rng(self.settings.candidates.seed)
        n = max(config.codebook_tokens, TOKENS_PER_CENTROID * config.n_centroids)
        parts = [_sample(write.snapshot, n, rng)]
        if added is not None:
            chosen = np.sort(rng.permutation(n_added)[:n])
            parts.append(np.asarray(added.flat[chosen], dtype=np.float32))
        centroids = kmeans(np.concatenate(parts), config.n_centroids, seed=self.settings.candidates.seed)
        name = uuid.uuid4().hex[:16]
        self._write_array(write, name + CODEBOOK, centroids)
        database.write_state(write.sql, codebook=name, n_centroids=len(centroids))
        codec = self._codecs[f"{dtype} {name}"] = Codec(dtype, self.dim, centroids)
        return codec, True

    def _write_array(self, write: _Write, name: str, array: npt.NDArray[Any]) -> None:
        self._write_rows(write, name, [array], array.shape, array.dtype)

    def _write_rows(
        self,
        write: _Write,
        name: str,
        chunks: Iterable[npt.NDArray[Any]],
        shape: tuple[int, ...],
        dtype: Any = np.uint8,
    ) -> None:
        path = f"{FILES_FOLDER}/{name}"
        write.added.append(files.write_array(self.folder, path, chunks, shape, dtype, durable=self.durable))

    def _forget(self, write: _Write, name: str) -> None:
        """Take back files that were written for nothing."""
        mine = [record for record in write.added if record.name.startswith(f"{FILES_FOLDER}/{name}.")]
        write.added = [record for record in write.added if record not in mine]
        self._remove(record.name for record in mine)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError:  # Windows, while a memory map looks at it; a later writer removes it
                self._swept = False

    def _remove_orphans(self, write: _Write) -> None:
        """Remove what a killed writer left; only inside a write, when no other process is writing."""
        named = set(database.files(write.sql))
        for path in (self.folder / FILES_FOLDER).iterdir():
            if f"{FILES_FOLDER}/{path.name}" not in named:
                with suppress(OSError):
                    path.unlink()
        self._swept = True


class _StaleError(Exception):
    """A transaction began before the newest state was committed."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of an index; one of a former format is put into this one first.

    Raises:
        IndexNotFoundError: there is none.
        IndexMismatchError: a newer version of this library wrote it.
        IndexCorruptError: it is not readable.
    """
    path = folder / MANIFEST_FILE
    aside = _aside(folder)
    if not folder.exists() and (aside / MANIFEST_FILE).is_file():
        os.rename(aside, folder)  # killed between the two renames of `replace_folder`
    if (folder / SAVING_FILE).exists():
        raise IndexNotFoundError(
            f"There is no whole index in {folder}: saving one there was cut short, or is under way "
            f"({SAVING_FILE} is there). Save it again."
        )
    if not path.is_file():
        if (folder / DATABASE_FILE).is_file():
            raise _missing(path)
        raise IndexNotFoundError(
            f"There is no index in {folder} (no {MANIFEST_FILE}). Name the folder that `save` or "
            "`jacolbert index --out` wrote."
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(manifest["format_version"])
        if version <= FORMAT_VERSION:
            missing = [key for key in MANIFEST_KEYS if key not in manifest]
            if missing:
                raise KeyError(", ".join(missing))
        if version == FORMAT_VERSION and manifest["checksum"] != (found := _checksum(manifest)):
            raise ValueError(f"its checksum is {found}, expected {manifest['checksum']}")
    except (ValueError, KeyError, TypeError) as error:
        raise IndexCorruptError(
            f"{path} is not readable ({error!r}). Restore it from a copy of the index."
        ) from error
    if version > FORMAT_VERSION:
        raise IndexMismatchError(
            f"{folder} has index format {version}; this version of jacolbert_rag reads up to "
            f"{FORMAT_VERSION}. Update jacolbert_rag, or build the index anew with this version."
        )
    if version < FORMAT_VERSION:
        from jacolbert_rag.index.migrate import migrate

        logger.warning("The index %s is of format %d: it is put into %d now.", folder, version, FORMAT_VERSION)
        migrate(folder, manifest)
        return read_manifest(folder)
    return manifest


def replace_folder(new: Path, old: Path) -> None:
    """Put a finished folder in the place of another.

    A kill leaves one of them whole: under the name of `old`, or where `read_manifest` finds it.
    """
    aside = _aside(old)
    if old.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        if aside.exists():
            os.rename(aside, old)
        raise
    files.sync(old.parent)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _telling(folder: Path) -> Iterator[None]:
    """Writing a folder: what the system refuses is told as an error of ours."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, IndexFolderError):
            raise
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise IndexWriteError(
                f"Another process has been writing the index {folder} for {database.LOCK_SECONDS} seconds. "
                "Nothing of this call was stored. Call again when it is done."
            ) from error
        raise IndexWriteError(
            f"The index {folder} could not be written ({error}). Nothing of this call was stored, and what "
            "was there is whole. Free space or mend the permissions, and call again."
        ) from error


def _tail(segments: Sequence[Segment], size: int) -> list[Segment]:
    """The last segments that a new one of so many tokens takes in.

    Those not larger than what follows, so small adds leave few of them, and a token is copied a few times.
    Large ones are left to compacting, so that no add takes long.
    """
    taken: list[Segment] = []
    for segment in reversed(segments):
        if segment.row.n_tokens > size or segment.row.n_tokens + size > MERGED_TOKENS:
            break
        taken.insert(0, segment)
        size += segment.row.n_tokens
    return taken


def _in_blocks(tokens: CodedTokens, rows: IntArray) -> Iterator[CodedTokens]:
    """These rows in blocks of about `LISTED_TOKENS` tokens, copied."""
    ends = np.cumsum(tokens.lengths[rows])
    start = 0
    while start < len(rows):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + LISTED_TOKENS, side="right")))
        yield tokens.take(rows[start:stop])
        start = stop


def _numbered(blocks: Iterable[CodedTokens]) -> Iterator[tuple[int, CodedTokens]]:
    start = 0
    for block in blocks:
        yield start, block
        start += len(block)


def _sample(snapshot: Snapshot, n: int, rng: np.random.Generator) -> FloatArray:
    """About n token embeddings, a fair share of every segment; dead rows' are among them."""
    share = min(1.0, n / max(1, snapshot.n_tokens))
    parts = [np.empty((0, snapshot.dim), dtype=np.float32)]
    for segment in snapshot.segments:
        size = segment.row.n_tokens
        if size:
            chosen = np.sort(rng.permutation(size)[: max(1, round(share * size))])
            parts.append(segment.tokens.codec.decode(segment.tokens.codes[chosen]))
    return np.concatenate(parts)


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Of all that a manifest says, however it is laid out."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    data = json.dumps(content, ensure_ascii=True, sort_keys=True).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _names(row: SegmentRow) -> list[str]:
    """A segment's files."""
    names = [f"{FILES_FOLDER}/{row.name}{end}" for end in (TOKENS, OFFSETS)]
    return names + ([f"{FILES_FOLDER}/{row.lists}{LISTS}"] if row.lists is not None else [])


def _aside(folder: Path) -> Path:
    """Where an index waits while another takes its place."""
    folder = folder.resolve()  # "." has no name
    return folder.parent / f".{folder.name}.replaced"


def _missing(path: Path) -> IndexCorruptError:
    return IndexCorruptError(f"{path} is missing from the index. {MEND}")
