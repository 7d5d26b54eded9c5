"""Documents and their token embeddings on disk: segments, deletes, recovery.

    manifest.json                what made the index; written once
    documents.sqlite             documents, and the segments that count: the one authority
    embeddings/NAME.npy          (n_tokens, dim) token embeddings of a run of rows
    embeddings/NAME.offsets.npy  (n_rows + 1,) int64

A segment's files are whole before the transaction that names them commits, so a kill at any moment
leaves either the old state or the new one, and at worst files that nobody names, which the next writer
removes. Writers of several processes take turns; a reader sees one committed state, the newest when it asks.
A document's row is its number in order of arrival. Rows are never used twice: a deleted or replaced
document leaves a dead row.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jacolbert_rag.config import StoreConfig
from jacolbert_rag.datatypes import BoolArray, Document, IntArray, TokenEmbeddings, offsets_of
from jacolbert_rag.errors import (
    IndexCorruptError,
    IndexMismatchError,
    IndexNotFoundError,
    InvalidInputError,
)

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
DOCUMENTS_FILE = "documents.sqlite"
EMBEDDINGS_FOLDER = "embeddings"
MANIFEST_KEYS = ("id", "model", "fingerprint", "dim", "encoder", "pooling", "store", "candidates", "search")
SQL_BATCH = 500  # variables of one statement; SQLite's least limit is 999

_SCHEMA = """
CREATE TABLE documents (
    row INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,
    title BLOB NOT NULL, text BLOB NOT NULL, metadata TEXT NOT NULL
);
CREATE TABLE segments (
    first_row INTEGER PRIMARY KEY, n_rows INTEGER NOT NULL, n_tokens INTEGER NOT NULL, name TEXT NOT NULL
);
CREATE TABLE generation (number INTEGER NOT NULL);
INSERT INTO generation VALUES (0);
"""
LOCK_SECONDS = 60  # a writer waits so long for another process to finish its write
# numpy reads an .npy file's header by ast.literal_eval, which two threads of CPython 3.11 cannot run at once:
# "SystemError: AST constructor recursion depth mismatch" (python/cpython issue 106905).
_READING_HEADER = threading.Lock()


class _Segment:
    """The token embeddings of a run of rows, memory-mapped."""

    def __init__(self, folder: Path, name: str, first_row: int, n_rows: int, n_tokens: int, dim: int) -> None:
        self.name, self.first_row, self.n_rows, self.n_tokens = name, first_row, n_rows, n_tokens
        flat = _read_array(folder / f"{name}.npy", (n_tokens, dim))
        offsets = _read_array(folder / f"{name}.offsets.npy", (n_rows + 1,))
        if offsets[0] != 0 or offsets[-1] != n_tokens or np.any(np.diff(offsets) < 0):
            raise IndexCorruptError(
                f"{folder / name}.offsets.npy does not describe {n_tokens} tokens in {n_rows} documents. "
                "Restore the index folder from a copy, or build it anew from the documents."
            )
        self.embeddings = TokenEmbeddings(flat, np.asarray(offsets))

    @property
    def stop(self) -> int:
        return self.first_row + self.n_rows


class _SegmentVanishedError(Exception):
    """A writer of another process merged a segment away between our reading its name and its file."""


class Store:
    """Documents and token embeddings of one index folder.

    Within one process, callers take turns; the retriever sees to that. Reading methods look at the state
    that the last write or `reading` block saw.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], *, durable: bool) -> None:
        """Take an existing folder; use `create` or `open`."""
        self.folder, self.manifest, self.durable = folder, manifest, durable
        self.dim = int(manifest["dim"])
        self.dtype = np.dtype(StoreConfig.from_json(manifest["store"]).dtype)
        self._sql = _connect(folder / DOCUMENTS_FILE, durable=durable)
        # One connection serves all threads, one block at a time.
        self._sql_lock = threading.RLock()
        self._swept = False
        self._inside = False  # a `reading` block is open
        self._generation = -1
        self._segments: list[_Segment] = []
        self.live: BoolArray = np.zeros(0, dtype=np.bool_)
        try:
            with self.reading():
                pass
        except BaseException:
            self._sql.close()
            raise

    @classmethod
    def create(cls, folder: Path, manifest: Mapping[str, Any], *, durable: bool) -> Store:
        """Make an empty index in a folder that does not exist or is empty.

        Args:
            folder: made with its parents.
            manifest: JSON; must hold "dim" and "store". The format version is added.
            durable: whether a write that returned must survive a power cut. False for an index that
                lives in a temporary folder until it is saved.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EMBEDDINGS_FOLDER).mkdir()
        sql = _connect(folder / DOCUMENTS_FILE, durable=durable)
        sql.executescript(_SCHEMA)
        sql.close()
        manifest = {"format_version": FORMAT_VERSION, "id": uuid.uuid4().hex, **manifest}
        _write_file(
            folder / MANIFEST_FILE, json.dumps(manifest, ensure_ascii=False, indent=2).encode(), durable
        )
        return cls(folder, manifest, durable=durable)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open an index folder.

        Raises:
            IndexNotFoundError: there is no index in the folder.
            IndexMismatchError: a newer version of this library made it.
            IndexCorruptError: a file is missing or cut short.
        """
        folder = folder.expanduser().resolve()
        manifest = read_manifest(folder)
        if not (folder / DOCUMENTS_FILE).is_file():
            raise _missing(folder / DOCUMENTS_FILE)
        try:
            return cls(folder, manifest, durable=True)
        except (sqlite3.DatabaseError, KeyError, TypeError) as error:
            raise IndexCorruptError(
                f"{folder / DOCUMENTS_FILE} is not readable ({error}). Restore the index folder from a "
                "copy, or build it anew from the documents."
            ) from error

    def __len__(self) -> int:
        """Live documents."""
        return int(np.count_nonzero(self.live))

    @property
    def n_rows(self) -> int:
        """Rows ever used, dead ones included."""
        return self._segments[-1].stop if self._segments else 0

    @property
    def n_tokens(self) -> int:
        """Token embeddings on disk."""
        return sum(segment.n_tokens for segment in self._segments)

    @property
    def id(self) -> str:
        """Drawn at random when the index was made."""
        return str(self.manifest["id"])

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One committed state, the newest there is, for as long as the block runs."""
        with self._sql_lock:
            if self._inside:
                yield
                return
            self._begin("DEFERRED")
            self._inside = True
            try:
                yield
            finally:
                self._inside = False
                self._sql.execute("COMMIT")

    def append(self, documents: Sequence[Document], embeddings: TokenEmbeddings) -> IntArray:
        """Store documents, in place of those of the same ids.

        Args:
            documents: with ids that differ; checked by `check_documents`.
            embeddings: one entry a document.

        Returns:
            (n_documents,) int64 their rows. All of them are on disk, or, where an error was raised,
            none.
        """
        if not documents:
            return np.empty(0, dtype=np.int64)
        flat = np.ascontiguousarray(embeddings.flat, dtype=self.dtype)
        added = TokenEmbeddings(flat, embeddings.offsets)
        name = uuid.uuid4().hex[:16]
        try:
            with self._writing():
                first = self.n_rows
                rows = np.arange(first, first + len(documents), dtype=np.int64)
                replaced = self._delete([document.id for document in documents])
                self.live[replaced] = False
                new, merged = self._merge_tail(name, added, first)
                self._sql.executemany(
                    "INSERT INTO documents VALUES (?, ?, ?, ?, ?)",
                    [(int(row), *_encode(document)) for row, document in zip(rows, documents, strict=True)],
                )
                self._sql.executemany("DELETE FROM segments WHERE name = ?", [(s.name,) for s in merged])
                self._sql.execute(
                    "INSERT INTO segments VALUES (?, ?, ?, ?)",
                    (new.first_row, new.n_rows, new.n_tokens, new.name),
                )
            self._segments = [s for s in self._segments if s not in merged] + [new]
            self.live = np.concatenate([self.live, np.ones(len(documents), dtype=np.bool_)])
        except BaseException:
            # Whether it was committed, only the database knows: read it anew, and let the next write
            # remove the files if nothing names them.
            self._generation, self._swept = -1, False
            raise
        for segment in merged:
            self._remove_files(segment.name)
        return rows

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete documents; unknown ids are passed over.

        Returns:
            The ids that were there, in the order given.
        """
        with self._writing():
            known = self.rows_of(ids)
            self.live[self._delete(list(known))] = False
        return list(known)

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Row of each id that is stored, in the order given."""
        wanted = list(dict.fromkeys(ids))
        found: dict[str, int] = {}
        for batch in _batches(wanted):
            marks = ",".join("?" * len(batch))
            found.update(
                (_text(key), row)
                for key, row in self._query(
                    f"SELECT id, row FROM documents WHERE id IN ({marks})", [_blob(key) for key in batch]
                )
            )
        return {key: found[key] for key in wanted if key in found}

    def ids_with_prefix(self, prefix: str) -> list[str]:
        """Ids that begin with a prefix, in the order of their UTF-8; all of them where it is empty."""
        first = _blob(prefix)
        # UTF-8 has no byte 0xff, so the last byte can be raised: what begins with the prefix lies below.
        beyond = first[:-1] + bytes([first[-1] + 1]) if first else b"\xff"
        query = "SELECT id FROM documents WHERE id >= ? AND id < ? ORDER BY id"
        return [_text(key) for (key,) in self._query(query, [first, beyond])]

    def documents(self, rows: Sequence[int] | IntArray) -> list[Document]:
        """The documents of these rows, in the order given; rows that have died are passed over."""
        found: dict[int, Document] = {}
        for batch in _batches([int(row) for row in rows]):
            marks = ",".join("?" * len(batch))
            for row, *values in self._query(
                f"SELECT row, id, title, text, metadata FROM documents WHERE row IN ({marks})", batch
            ):
                found[row] = _decode(*values)
        return [found[int(row)] for row in rows if int(row) in found]

    def embeddings(self, rows: IntArray) -> TokenEmbeddings:
        """Token embeddings of these rows, in this order, copied into one matrix."""
        firsts = np.array([segment.first_row for segment in self._segments], dtype=np.int64)
        which = np.searchsorted(firsts, rows, side="right") - 1
        used = np.unique(which)
        if not len(used):
            return TokenEmbeddings(np.empty((0, self.dim), dtype=self.dtype), offsets_of([]))
        parts: list[TokenEmbeddings] = []
        for i in used.tolist():
            segment = self._segments[i]
            parts.append(segment.embeddings.take(rows[which == i] - segment.first_row))
        if len(parts) == 1:
            return parts[0]
        grouped = np.concatenate([np.flatnonzero(which == i) for i in used])
        return TokenEmbeddings.concatenate(parts).take(np.argsort(grouped))

    def blocks(self) -> Iterator[tuple[int, TokenEmbeddings]]:
        """The whole store, a segment at a time: first row, and token embeddings as memory maps."""
        return ((segment.first_row, segment.embeddings) for segment in self._segments)

    def copy_to(self, folder: Path) -> None:
        """Copy this index to another folder, where it replaces an index but nothing else.

        Raises:
            InvalidInputError: the folder holds something that is no index.
        """
        is_index = (folder / MANIFEST_FILE).is_file()
        if folder.exists() and not is_index and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidInputError(
                f"{folder} exists and is no index, so it is left as it is. Name a new folder."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        try:
            with self._writing():  # so that nobody else adds or merges meanwhile
                shutil.copytree(self.folder, new, ignore=shutil.ignore_patterns(f"{DOCUMENTS_FILE}*", ".*"))
                source = _connect(self.folder / DOCUMENTS_FILE, durable=self.durable)
                target = sqlite3.connect(new / DOCUMENTS_FILE)
                source.backup(target)
                target.close()
                source.close()
            for path in [*new.rglob("*"), new]:
                _sync(path)
            replace_folder(new, folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def close(self) -> None:
        """Close the database. Memory maps go with the last array that looks at them."""
        with self._sql_lock:
            self._sql.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that no other process writes beside; the newest state is read first.

        Where the block fails, what it changed in memory is read anew.
        """
        with self._sql_lock:
            self._begin("IMMEDIATE")
            try:
                if not self._swept:
                    self._remove_orphans()
                yield
                self._generation += 1
                self._sql.execute("UPDATE generation SET number = ?", (self._generation,))
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:
                    self._sql.execute("ROLLBACK")
                self._generation = -1
                self._refresh()
                raise
            if self.durable:
                # The log goes into the database at once, so that a copy of the folder without it is whole.
                # Passive: a reader of another process is not waited for.
                # The write is committed already, so failing here is no failure of it.
                with suppress(sqlite3.OperationalError):
                    self._sql.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _begin(self, kind: str) -> None:
        """Start a transaction on the newest state."""
        tried = None
        while True:
            try:
                self._sql.execute(f"BEGIN {kind}")
            except sqlite3.ProgrammingError as error:
                raise InvalidInputError("This index was closed. Load it again to go on.") from error
            try:
                self._refresh()
                return
            except _SegmentVanishedError as vanished:
                self._sql.execute("ROLLBACK")
                (current,) = self._sql.execute("SELECT number FROM generation").fetchone()
                if current == tried:  # nobody merged it away: it is really missing
                    raise _missing(Path(str(vanished))) from None
                tried = current
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise

    def _refresh(self) -> None:
        """Take over what another process has committed."""
        (generation,) = self._sql.execute("SELECT number FROM generation").fetchone()
        if generation == self._generation:
            return
        known = {segment.name: segment for segment in self._segments}
        segments = [
            known.get(name) or self._segment(name, *counts)
            for name, *counts in self._query(
                "SELECT name, first_row, n_rows, n_tokens FROM segments ORDER BY first_row"
            )
        ]
        n_rows = segments[-1].stop if segments else 0
        rows = np.array([row for (row,) in self._query("SELECT row FROM documents")], dtype=np.int64)
        starts = [0, *(segment.stop for segment in segments)]
        gaps = [s for s, start in zip(segments, starts, strict=False) if s.first_row != start]
        if gaps or (len(rows) and int(rows.max()) >= n_rows):
            raise IndexCorruptError(
                f"{self.folder / DOCUMENTS_FILE} names documents without token embeddings. Restore the "
                "index folder from a copy, or build it anew from the documents."
            )
        self._segments = segments
        self.live = np.zeros(n_rows, dtype=np.bool_)
        self.live[rows] = True
        self._generation = int(generation)

    def _segment(self, name: str, first_row: int, n_rows: int, n_tokens: int) -> _Segment:
        return _Segment(self.folder / EMBEDDINGS_FOLDER, name, first_row, n_rows, n_tokens, self.dim)

    def _merge_tail(
        self, name: str, added: TokenEmbeddings, first_row: int
    ) -> tuple[_Segment, list[_Segment]]:
        """Write a segment of the added rows and of those small segments before them.

        Segments not larger than what follows are taken in, so there are about log2(n) of them however
        small the adds, and a token is copied about log2(n) times. Dead rows leave their tokens behind.
        """
        merged: list[_Segment] = []
        size = len(added.flat)
        for segment in reversed(self._segments):
            if segment.n_tokens > size:
                break
            merged.insert(0, segment)
            size += segment.n_tokens
        parts = [self._without_dead(segment) for segment in merged] + [added]
        embeddings = TokenEmbeddings.concatenate(parts)
        folder = self.folder / EMBEDDINGS_FOLDER
        for suffix, array in ((".npy", embeddings.flat), (".offsets.npy", embeddings.offsets)):
            _write_array(folder / f"{name}{suffix}", array, self.durable)
        first = merged[0].first_row if merged else first_row
        return self._segment(name, first, len(embeddings), len(embeddings.flat)), merged

    def _without_dead(self, segment: _Segment) -> TokenEmbeddings:
        """The same rows, those of dead documents empty."""
        live = self.live[segment.first_row : segment.stop]
        kept = segment.embeddings.take(np.flatnonzero(live))
        return TokenEmbeddings(kept.flat, offsets_of(np.where(live, segment.embeddings.lengths, 0)))

    def _delete(self, ids: list[str]) -> IntArray:
        """Delete within the open transaction; the rows that died."""
        rows = self.rows_of(ids)
        self._sql.executemany("DELETE FROM documents WHERE row = ?", [(row,) for row in rows.values()])
        return np.array(list(rows.values()), dtype=np.int64)

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._sql_lock:
            return self._sql.execute(sql, values).fetchall()

    def _remove_orphans(self) -> None:
        """Remove what a killed writer left; only inside a write, when no other process is writing."""
        self._swept = True
        named = {segment.name for segment in self._segments}
        for path in (self.folder / EMBEDDINGS_FOLDER).iterdir():
            if path.name.lstrip(".").split(".")[0] not in named or path.name.startswith("."):
                path.unlink(missing_ok=True)

    def _remove_files(self, name: str) -> None:
        for suffix in (".npy", ".offsets.npy"):
            try:
                (self.folder / EMBEDDINGS_FOLDER / f"{name}{suffix}").unlink(missing_ok=True)
            except PermissionError:  # Windows, while a memory map looks at it; the next open removes it
                pass


def check_documents(documents: Sequence[Document]) -> None:
    """Refuse documents that could not be stored and given back as they are.

    Raises:
        InvalidInputError: an id is empty, not a string or there twice, or metadata is not JSON.
    """
    seen: set[str] = set()
    for i, document in enumerate(documents):
        if not isinstance(document.id, str) or not document.id:
            raise InvalidInputError(f"document {i} has the id {document.id!r}; expected a non-empty str.")
        for name, kind in (("text", str), ("title", str), ("metadata", Mapping)):
            if not isinstance(value := getattr(document, name), kind):
                raise InvalidInputError(
                    f"The {name} of document {document.id!r} is a {type(value).__name__}; expected a "
                    f"{kind.__name__}."
                )
        if document.id in seen:
            raise InvalidInputError(
                f"The id {document.id!r} is there twice in one call, so which document to keep is not "
                "known. Give each document an id of its own, or add them in two calls: the later one wins."
            )
        seen.add(document.id)
        _encode(document)


def as_stored(document: Document) -> Document:
    """The document as it will come back: JSON has no tuples, and only strings as keys."""
    return _decode(*_encode(document))


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of an index.

    Raises:
        IndexNotFoundError: there is none.
        IndexMismatchError: a newer version of this library wrote it.
        IndexCorruptError: it is not readable.
    """
    path = folder / MANIFEST_FILE
    aside = _aside(folder)
    if not folder.exists() and (aside / MANIFEST_FILE).is_file():
        os.rename(aside, folder)  # killed between the two renames of `replace_folder`
    if not path.is_file():
        if (folder / DOCUMENTS_FILE).is_file():
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
    except (ValueError, KeyError, TypeError) as error:
        raise IndexCorruptError(
            f"{path} is not readable ({error!r}). Restore it from a copy of the index."
        ) from error
    if version > FORMAT_VERSION:
        raise IndexMismatchError(
            f"{folder} has index format {version}; this version of jacolbert_rag reads up to "
            f"{FORMAT_VERSION}. Update jacolbert_rag, or build the index anew with this version."
        )
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
    _sync(old.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path) -> Path:
    """Where an index waits while another takes its place."""
    folder = folder.resolve()  # "." has no name
    return folder.parent / f".{folder.name}.replaced"


def _connect(path: Path, *, durable: bool) -> sqlite3.Connection:
    # Transactions are begun and ended by hand.
    sql = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=LOCK_SECONDS)
    sql.execute("PRAGMA journal_mode=WAL")
    sql.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
    return sql


def _read_array(path: Path, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A memory map of an .npy file, held to the shape that the database says."""
    try:
        with _READING_HEADER:
            array: npt.NDArray[Any] = np.load(path, mmap_mode="r" if np.prod(shape) else None)
    except FileNotFoundError as error:
        raise _SegmentVanishedError(path) from error
    except (ValueError, OSError, EOFError) as error:
        raise IndexCorruptError(
            f"{path} is not readable ({error}). Restore the index folder from a copy, or build it anew "
            "from the documents."
        ) from error
    if array.shape != shape:
        raise IndexCorruptError(
            f"{path} has shape {array.shape}, expected {shape}. Restore the index folder from a copy, or "
            "build it anew from the documents."
        )
    return array


def _missing(path: Path) -> IndexCorruptError:
    return IndexCorruptError(
        f"{path} is missing from the index. Restore the index folder from a copy, or build it anew from "
        "the documents."
    )


def _write_array(path: Path, array: npt.NDArray[Any], durable: bool) -> None:
    new = path.with_name(f".{path.name}")
    with new.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(new, path)
    if durable:
        _sync(path.parent)


def _write_file(path: Path, data: bytes, durable: bool) -> None:
    new = path.with_name(f".{path.name}")
    new.write_bytes(data)
    if durable:
        _sync(new)
    os.replace(new, path)


def _sync(path: Path) -> None:
    """Have a file or a folder's entries on the disk before going on."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder; its renames are journaled
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _encode(document: Document) -> tuple[bytes, bytes, bytes, str]:
    try:
        metadata = json.dumps(dict(document.metadata))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The metadata of document {document.id!r} is not JSON ({error}). Turn dates and other objects "
            "into strings or numbers first."
        ) from error
    return _blob(document.id), _blob(document.title), _blob(document.text), metadata


def _decode(key: bytes, title: bytes, text: bytes, metadata: str) -> Document:
    return Document(id=_text(key), text=_text(text), metadata=json.loads(metadata), title=_text(title))


def _blob(text: str) -> bytes:
    """UTF-8 that also carries lone surrogates, so that every str comes back as it was."""
    return text.encode("utf-8", "surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    return (items[i : i + SQL_BATCH] for i in range(0, len(items), SQL_BATCH))
