"""Documents and their token embeddings on disk: segments, deletes, recovery.

    manifest.json                what made the index; written once
    documents.sqlite             documents, and the segments that count: the one authority
    embeddings/NAME.npy          (n_tokens, dim) token embeddings of a run of rows
    embeddings/NAME.offsets.npy  (n_rows + 1,) int64

A segment's files are whole before the transaction that names them commits, so a kill at any moment
leaves either the old state or the new one, and at worst files that nobody names, which the next writer
removes.
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
SQL_BATCH = 500  # variables of one statement; SQLite's least limit is 999

_SCHEMA = """
CREATE TABLE documents (
    row INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,
    title BLOB NOT NULL, text BLOB NOT NULL, metadata TEXT NOT NULL
);
CREATE TABLE segments (
    first_row INTEGER PRIMARY KEY, n_rows INTEGER NOT NULL, n_tokens INTEGER NOT NULL, name TEXT NOT NULL
);
"""


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


class Store:
    """Documents and token embeddings of one index folder.

    Not a lock: one writer at a time, and no reader while it writes; the retriever sees to that.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], *, durable: bool) -> None:
        """Take an existing folder; use `create` or `open`."""
        self.folder, self.manifest, self.durable = folder, manifest, durable
        self.dim = int(manifest["dim"])
        self.dtype = np.dtype(StoreConfig.from_json(manifest["store"]).dtype)
        self._sql = _connect(folder / DOCUMENTS_FILE, durable=durable)
        self._swept = False
        # One connection serves all threads, one statement at a time.
        self._sql_lock = threading.RLock()
        self._segments: list[_Segment] = []
        self.live: BoolArray = np.zeros(0, dtype=np.bool_)
        try:
            self._read_rows()
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
        with sql:
            sql.executescript(_SCHEMA)
        sql.close()
        manifest = {"format_version": FORMAT_VERSION, **manifest}
        _write_file(
            folder / MANIFEST_FILE, json.dumps(manifest, ensure_ascii=False, indent=2).encode(), durable
        )
        return cls(folder, manifest, durable=durable)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open an index folder, and remove what a killed writer left.

        Raises:
            IndexNotFoundError: there is no index in the folder.
            IndexMismatchError: a newer version of this library made it.
            IndexCorruptError: a file is missing or cut short.
        """
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
        if not self._swept:
            self._remove_orphans()
        first = self.n_rows
        rows = np.arange(first, first + len(documents), dtype=np.int64)
        flat = np.ascontiguousarray(embeddings.flat, dtype=self.dtype)
        new, merged = self._merge_tail(TokenEmbeddings(flat, embeddings.offsets), first)
        encoded = [(int(row), *_encode(document)) for row, document in zip(rows, documents, strict=True)]
        with self._sql_lock, self._sql:
            replaced = self._delete([document.id for document in documents])
            self._sql.executemany("INSERT INTO documents VALUES (?, ?, ?, ?, ?)", encoded)
            self._sql.executemany("DELETE FROM segments WHERE name = ?", [(s.name,) for s in merged])
            self._sql.execute(
                "INSERT INTO segments VALUES (?, ?, ?, ?)",
                (new.first_row, new.n_rows, new.n_tokens, new.name),
            )
        self._segments = [s for s in self._segments if s not in merged] + [new]
        self.live = np.concatenate([self.live, np.ones(len(documents), dtype=np.bool_)])
        self.live[replaced] = False
        for segment in merged:
            self._remove_files(segment.name)
        return rows

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete documents; unknown ids are passed over.

        Returns:
            The ids that were there, in the order given.
        """
        known = self.rows_of(ids)
        with self._sql_lock, self._sql:
            rows = self._delete(list(known))
        self.live[rows] = False
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

    def documents(self, rows: Sequence[int] | IntArray) -> list[Document]:
        """The documents of live rows, in the order given."""
        found: dict[int, Document] = {}
        for batch in _batches([int(row) for row in rows]):
            marks = ",".join("?" * len(batch))
            for row, *values in self._query(
                f"SELECT row, id, title, text, metadata FROM documents WHERE row IN ({marks})", batch
            ):
                found[row] = _decode(*values)
        return [found[int(row)] for row in rows]

    def all_documents(self) -> Iterator[Document]:
        """Every live document, in order of arrival, read in batches."""
        for batch in _batches(np.flatnonzero(self.live).tolist()):
            yield from self.documents(batch)

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
            shutil.copytree(self.folder, new, ignore=shutil.ignore_patterns(f"{DOCUMENTS_FILE}*", ".*"))
            with self._sql_lock:
                target = sqlite3.connect(new / DOCUMENTS_FILE)
                self._sql.backup(target)
                target.close()
            for path in new.rglob("*"):
                if path.is_file():
                    _sync(path)
            replace_folder(new, folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def close(self) -> None:
        """Close the database. Memory maps go with the last array that looks at them."""
        self._sql.close()

    def _read_rows(self) -> None:
        """Segments and live rows, held to one another."""
        self._segments = [
            self._segment(*row)
            for row in self._query(
                "SELECT name, first_row, n_rows, n_tokens FROM segments ORDER BY first_row"
            )
        ]
        self.live = np.zeros(self.n_rows, dtype=np.bool_)
        rows = np.array([row for (row,) in self._query("SELECT row FROM documents")], dtype=np.int64)
        gaps = [s for s, t in zip(self._segments, self._segments[1:], strict=False) if s.stop != t.first_row]
        if gaps or (len(rows) and int(rows.max()) >= self.n_rows):
            raise IndexCorruptError(
                f"{self.folder / DOCUMENTS_FILE} names documents without token embeddings. Restore the index "
                "folder from a copy, or build it anew from the documents."
            )
        self.live[rows] = True

    def _segment(self, name: str, first_row: int, n_rows: int, n_tokens: int) -> _Segment:
        return _Segment(self.folder / EMBEDDINGS_FOLDER, name, first_row, n_rows, n_tokens, self.dim)

    def _merge_tail(self, added: TokenEmbeddings, first_row: int) -> tuple[_Segment, list[_Segment]]:
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
        name = uuid.uuid4().hex[:16]
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
        """Remove what a killed writer left; done by writers only, since a reader may be another process."""
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
    """Put a finished folder in the place of another; a kill leaves one of them whole."""
    if old.exists():
        aside = old.with_name(f".{old.name}.{uuid.uuid4().hex[:8]}")
        os.rename(old, aside)
        os.rename(new, old)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(new, old)
    _sync(old.parent)


def _connect(path: Path, *, durable: bool) -> sqlite3.Connection:
    sql = sqlite3.connect(path, check_same_thread=False)
    sql.execute("PRAGMA journal_mode=WAL")
    sql.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
    return sql


def _read_array(path: Path, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A memory map of an .npy file, held to the shape that the database says."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r" if np.prod(shape) else None)
    except FileNotFoundError as error:
        raise _missing(path) from error
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
