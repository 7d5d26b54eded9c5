"""The SQLite file of an index: documents, and which files count. Every function takes an open connection.

SQLite is the one authority: what a transaction of it names is there, whatever else lies in the folder.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jacolbert_rag.datatypes import Document, IntArray
from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.index.files import FileRecord

BATCH = 500  # variables of one statement; SQLite's least limit is 999
# Metadata that are read and parsed at once: one by one takes twice as long, and 1,024 a third longer.
METADATA_AT_ONCE = 256
MAX_DEPTH = 100  # of metadata: far below what Python's functions can call one another
MAX_CHANGES = 64  # writes of which it is known what they have changed
MAX_RESTATED = 4_096  # rows that these name together: half a millisecond to read and write
LOCK_SECONDS = 60  # a writer waits so long for another process to finish its write

APPLICATION_ID = 0x4A61436F  # "JaCo", in the file's header: what tells an index's database from any other
FORMAT_VERSION = 2

# What is raised where the file is damaged. SQLite's message may quote the damage, which is no UTF-8 then.
DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)

_SCHEMA = (
    """CREATE TABLE documents (
        row INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,
        title BLOB NOT NULL, text BLOB NOT NULL, metadata TEXT NOT NULL, checksum BLOB NOT NULL,
        members BLOB
    )""",
    "CREATE TABLE dead (row INTEGER PRIMARY KEY)",
    """CREATE TABLE segments (
        first_row INTEGER PRIMARY KEY, n_rows INTEGER NOT NULL, n_tokens INTEGER NOT NULL, name TEXT NOT NULL,
        coding TEXT NOT NULL, lists TEXT, n_postings INTEGER NOT NULL, words TEXT, n_words INTEGER NOT NULL
    )""",
    "CREATE TABLE files (name TEXT PRIMARY KEY, size INTEGER NOT NULL, checksum TEXT NOT NULL)",
    "CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)
_TABLES = ("documents", "dead", "segments", "files", "state")


@dataclass(frozen=True)
class SegmentRow:
    """A run of rows whose token embeddings lie in files of one name.

    Attributes:
        first_row: of the run.
        n_rows: rows of it, dead ones included.
        n_tokens: token embeddings in its files.
        name: of its files.
        coding: a dtype of `StoreConfig`.
        lists: name of its file of posting lists; None where its rows are not listed.
        n_postings: numbers in that file.
        words: name of its file of word lists; None where its words are not listed.
        n_words: numbers in that file.
    """

    first_row: int
    n_rows: int
    n_tokens: int
    name: str
    coding: str
    lists: str | None = None
    n_postings: int = 0
    words: str | None = None
    n_words: int = 0

    @property
    def stop(self) -> int:
        """The row behind the last."""
        return self.first_row + self.n_rows


def connect(path: Path, *, durable: bool, new: bool = False) -> sqlite3.Connection:
    """A connection whose transactions are begun and ended by hand, for one thread at a time.

    Args:
        path: of the file.
        durable: whether a committed transaction must survive a power cut.
        new: whether to make the file where it is missing or empty.

    Raises:
        sqlite3.OperationalError: it is missing.
    """
    uri = f"{path.resolve().as_uri()}?mode={'rwc' if new else 'rw'}"
    sql = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=LOCK_SECONDS)
    try:
        if new and is_empty(sql):
            _sign(sql)
        sql.execute("PRAGMA journal_mode=WAL")
        sql.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
    except BaseException:
        sql.close()
        raise
    return sql


def is_empty(sql: sqlite3.Connection) -> bool:
    """Whether nothing was ever committed to it but, perhaps, whose it is."""
    return not sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _sign(sql: sqlite3.Connection) -> None:
    """Say whose file it is, all at once: a kill leaves no file that is ours and of no format."""
    sql.execute("BEGIN IMMEDIATE")
    if is_empty(sql):
        sql.execute(f"PRAGMA application_id={APPLICATION_ID}")
        sql.execute(f"PRAGMA user_version={FORMAT_VERSION}")
    sql.execute("COMMIT")


def connect_to_read(path: Path, *, immutable: bool | None = None) -> sqlite3.Connection:
    """A connection to a file in a folder that this process may not write.

    Args:
        path: of the file.
        immutable: see `read_only_uri`.

    Raises:
        sqlite3.OperationalError: a writer left a log and is gone; only who may write can fold it in.
    """
    uri = read_only_uri(path, immutable=immutable)
    return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)


def read_only_uri(path: Path, *, immutable: bool | None = None) -> str:
    """The address of a file that may only be read, in SQLite's form.

    SQLite keeps readers from writers by files beside the database, which it cannot make here. Where no
    writer is at work there are none, and it must be told that nothing changes: `immutable`, by default where
    there is no log.
    """
    immutable = not has_log(path) if immutable is None else immutable
    return path.resolve().as_uri() + "?mode=ro" + ("&immutable=1" if immutable else "")


@contextmanager
def without_waiting(sql: sqlite3.Connection) -> Iterator[None]:
    """Failing at once where somebody else holds a lock."""
    sql.execute("PRAGMA busy_timeout=0")
    try:
        yield
    finally:
        sql.execute(f"PRAGMA busy_timeout={round(1000 * LOCK_SECONDS)}")


def stamp(path: Path) -> tuple[int, ...]:
    """What changes where somebody writes a file or puts another in its place."""
    found: list[int] = []
    for each in (path, _log(path)):
        try:
            stat = each.stat()
        except FileNotFoundError:
            found.append(-1)
        else:
            found += [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns]
    return tuple(found)


def has_log(path: Path) -> bool:
    """Whether a writer is at work, or left its log."""
    return _log(path).exists()


def _log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def is_ours(sql: sqlite3.Connection) -> bool:
    """Whether this is the database of an index, made or half made."""
    return bool(sql.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID)


def format_version(sql: sqlite3.Connection) -> int:
    """Of the index."""
    return int(sql.execute("PRAGMA user_version").fetchone()[0])


def is_made(sql: sqlite3.Connection) -> bool:
    """Whether the transaction that made the index was committed."""
    return bool(sql.execute("SELECT count(*) FROM main.sqlite_master WHERE name = 'state'").fetchone()[0])


def create(sql: sqlite3.Connection) -> None:
    """Make the tables of an empty index, within a transaction."""
    for statement in _SCHEMA:
        sql.execute(statement)


def take_over(sql: sqlite3.Connection) -> None:
    """Put all that the attached database "source" holds in the place of this one's, in a transaction."""
    former = generation(sql) if is_made(sql) else 0
    if not is_made(sql):
        create(sql)
    for table in _TABLES:
        sql.execute(f"DELETE FROM main.{table}")
        sql.execute(f"INSERT INTO main.{table} SELECT * FROM source.{table}")
    # Another number than either had, so that readers of both see that something has changed.
    number = max(former, generation(sql)) + 1
    write_state(sql, changes=None)  # of the other index
    record_write(sql, number, None)


def read_state(sql: sqlite3.Connection, of: str = "main") -> dict[str, Any]:
    """All that is neither a document, a segment nor a file: the generation, and what is derived."""
    with _values("state"):
        return {key: json.loads(value) for key, value in sql.execute(f"SELECT key, value FROM {of}.state")}


def write_state(sql: sqlite3.Connection, **values: Any) -> None:
    """Set keys of the state; None removes one."""
    for key, value in values.items():
        if value is None:
            sql.execute("DELETE FROM main.state WHERE key = ?", (key,))
        else:
            sql.execute("INSERT OR REPLACE INTO main.state VALUES (?, ?)", (key, json.dumps(value)))


def read_value(sql: sqlite3.Connection, key: str) -> Any:
    """One value of the state; None where there is none."""
    found = sql.execute("SELECT value FROM main.state WHERE key = ?", (key,)).fetchone()
    with _values("state"):
        return json.loads(found[0]) if found else None


def generation(sql: sqlite3.Connection) -> int:
    """How many writes were committed."""
    with _values("state"):
        return int(read_value(sql, "generation") or 0)


def record_write(sql: sqlite3.Connection, generation: int, restated: Sequence[int] | None) -> None:
    """Say at its end what a write has changed, under a name that no other write has.

    Args:
        sql: in its transaction.
        generation: of the state that it makes.
        restated: rows that were there before and have other metadata since; None where what is known of any
            row is of no use any more, because rows were numbered anew.
    """
    write = uuid.uuid4().hex
    changes = read_value(sql, "changes") or []
    is_known = restated is not None and len(restated) <= MAX_RESTATED
    changes.append([write, sorted(set(map(int, restated or ()))) if is_known else None])
    del changes[:-MAX_CHANGES]
    while sum(len(rows or ()) for _, rows in changes) > MAX_RESTATED:
        del changes[0]
    write_state(sql, generation=generation, write=write, changes=changes)


def last_write(sql: sqlite3.Connection) -> str | None:
    """The name of the write that made this state; None where an earlier version of this library wrote it."""
    found = read_value(sql, "write")
    return None if found is None else str(found)


def restated_since(sql: sqlite3.Connection, write: str | None) -> list[int] | None:
    """Rows that have other metadata than behind a write; None where that is not known.

    A write that is not among the last ones before this state tells nothing: it may be newer than this state,
    or of a history that was undone.
    """
    rows: set[int] = set()
    with _values("state"):
        for name, restated in reversed(read_value(sql, "changes") or []):
            if name == write:
                return sorted(rows)
            if restated is None:
                return None
            rows.update(restated)
    return None


def segments(sql: sqlite3.Connection) -> list[SegmentRow]:
    """All segments, in order of rows."""
    columns = "first_row, n_rows, n_tokens, name, coding, lists, n_postings, words, n_words"
    return [SegmentRow(*row) for row in sql.execute(f"SELECT {columns} FROM segments ORDER BY first_row")]


def replace_segments(sql: sqlite3.Connection, old: Iterable[SegmentRow], new: Iterable[SegmentRow]) -> None:
    """Put segments in the place of others."""
    sql.executemany("DELETE FROM segments WHERE name = ?", [(segment.name,) for segment in old])
    sql.executemany("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [astuple(s) for s in new])


def files(sql: sqlite3.Connection, of: str = "main") -> dict[str, FileRecord]:
    """Every file that counts, by its name; of this database or of one that is attached."""
    found = sql.execute(f"SELECT name, size, checksum FROM {of}.files").fetchall()
    with _values("files"):
        for row in found:
            if tuple(map(type, row)) != (str, int, str):
                raise TypeError(f"a file {row!r}")
    return {name: FileRecord(name, size, checksum) for name, size, checksum in found}


def replace_files(sql: sqlite3.Connection, old: Iterable[str], new: Iterable[FileRecord]) -> None:
    """Put files in the place of others."""
    sql.executemany("DELETE FROM files WHERE name = ?", [(name,) for name in old])
    sql.executemany("INSERT INTO files VALUES (?, ?, ?)", [astuple(file) for file in new])


def dead_rows(sql: sqlite3.Connection) -> IntArray:
    """Rows whose document was deleted or replaced since the last compaction, rising."""
    return np.array([row for (row,) in sql.execute("SELECT row FROM dead ORDER BY row")], dtype=np.int64)


def insert(
    sql: sqlite3.Connection,
    rows: Sequence[int] | IntArray,
    documents: Sequence[Document],
    members: Sequence[IntArray] | None = None,
) -> None:
    """Store documents in rows that have none.

    Args:
        sql: in a transaction.
        rows: of each.
        documents: to store.
        members: (d_tokens,) of each: which of its stored token embeddings took in each that it had; None
            where all are stored.
    """
    packed = [None] * len(documents) if members is None else [_pack_members(each) for each in members]
    sql.executemany(
        "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (int(row), *encoded, _checksum(encoded), blob)
            for row, encoded, blob in zip(rows, map(_encode, documents), packed, strict=True)
        ],
    )


def update(sql: sqlite3.Connection, rows: Iterable[int], documents: Iterable[Document]) -> None:
    """Put documents in the place of those of the same ids, in the same rows."""
    sql.executemany(
        "UPDATE documents SET title = ?, text = ?, metadata = ?, checksum = ? WHERE row = ? AND id = ?",
        [
            (*encoded[1:], _checksum(encoded), int(row), encoded[0])
            for row, encoded in zip(rows, map(_encode, documents), strict=True)
        ],
    )


def delete(sql: sqlite3.Connection, rows: Iterable[int]) -> None:
    """Delete the documents of these rows."""
    gone = [(int(row),) for row in rows]
    sql.executemany("DELETE FROM documents WHERE row = ?", gone)
    sql.executemany("INSERT INTO dead VALUES (?)", gone)


def renumber(sql: sqlite3.Connection, rows: IntArray) -> None:
    """Give the documents of these rows, all there are and rising, the rows 0, 1, 2 and so on."""
    sql.execute("DELETE FROM dead")
    # Each moves down to a row that is free by then.
    sql.executemany(
        "UPDATE documents SET row = ? WHERE row = ?",
        [(new, old) for new, old in enumerate(rows.tolist()) if new != old],
    )


def rows_of(sql: sqlite3.Connection, ids: Iterable[str]) -> dict[str, int]:
    """Row of each id that is stored, in the order given."""
    wanted = list(dict.fromkeys(ids))
    found: dict[str, int] = {}
    for batch in _batches(wanted):
        marks = ",".join("?" * len(batch))
        rows = sql.execute(
            f"SELECT id, row FROM documents WHERE id IN ({marks})", [_blob(key) for key in batch]
        )
        with _values("documents"):
            found.update((_text(key), row) for key, row in rows)
    return {key: found[key] for key in wanted if key in found}


def ids(sql: sqlite3.Connection) -> list[tuple[int, str]]:
    """Row and id of all documents, in order of rows."""
    with _values("documents"):
        return [(row, _text(key)) for row, key in sql.execute("SELECT row, id FROM documents ORDER BY row")]


def ids_with_prefix(sql: sqlite3.Connection, prefix: str) -> list[str]:
    """Ids that begin with a prefix, in the order of their UTF-8; all of them where it is empty."""
    first = _blob(prefix)
    # UTF-8 has no byte 0xff, so the last byte can be raised: what begins with the prefix lies below.
    beyond = first[:-1] + bytes([first[-1] + 1]) if first else b"\xff"
    query = "SELECT id FROM documents WHERE id >= ? AND id < ? ORDER BY id"
    with _values("documents"):
        return [_text(key) for (key,) in sql.execute(query, [first, beyond])]


def read(sql: sqlite3.Connection, rows: Sequence[int] | IntArray) -> list[Document]:
    """The documents of these rows, in the order given; rows that have died are passed over."""
    found = by_row(sql, rows)
    return [found[int(row)] for row in rows if int(row) in found]


def by_row(sql: sqlite3.Connection, rows: Iterable[int] | IntArray) -> dict[int, Document]:
    """The documents of these rows that are alive."""
    found: dict[int, Document] = {}
    for batch in _batches([int(row) for row in rows]):
        marks = ",".join("?" * len(batch))
        query = f"SELECT row, id, title, text, metadata FROM documents WHERE row IN ({marks})"
        with _values("documents"):
            for row, *values in sql.execute(query, batch):
                found[row] = decode(*values)
    return found


def metadata(
    sql: sqlite3.Connection, first_row: int = 0, *, also: Sequence[int] = (), titles: bool = True
) -> Iterator[tuple[Sequence[int], Sequence[str]]]:
    """Rows and `Document.fields`, as JSON, of all documents from a row on, some hundreds at a time.

    Args:
        sql: that sees them.
        first_row: where they begin.
        also: rows before it that are read, too, where they are alive.
        titles: whether titles are wanted; without them reading takes a quarter less.
    """
    columns = f"SELECT row, metadata, {'title' if titles else 'NULL'} FROM documents WHERE row"
    for batch in _batches([row for row in also if row < first_row]):
        yield from _metadata(sql.execute(f"{columns} IN ({','.join('?' * len(batch))})", batch))
    yield from _metadata(sql.execute(f"{columns} >= ? ORDER BY row", (first_row,)))


def _metadata(found: sqlite3.Cursor) -> Iterator[tuple[Sequence[int], Sequence[str]]]:
    with _values("documents"):
        while some := found.fetchmany(METADATA_AT_ONCE):
            rows, texts, titles = zip(*some, strict=True)
            if set(map(type, texts)) != {str}:
                raise TypeError("metadata that are no text")
            yield rows, tuple(map(_with_title, texts, titles)) if any(titles) else texts


def _with_title(metadata: str, title: bytes) -> str:
    """The JSON text with a title, put first: of two keys of one name the last one counts."""
    if not title or not metadata.startswith("{"):  # what is no object is damage, and stays as it is
        return metadata
    return f'{{"title": {json.dumps(_text(title))}{"" if metadata == "{}" else ", "}{metadata[1:]}'


def members(sql: sqlite3.Connection, rows: Sequence[int] | IntArray) -> dict[int, IntArray]:
    """What `insert` was told of these rows' tokens; rows of which nothing was told are left out.

    Raises:
        sqlite3.DatabaseError: it is not what was stored.
    """
    found: dict[int, IntArray] = {}
    for batch in _batches([int(row) for row in rows]):
        marks = ",".join("?" * len(batch))
        query = f"SELECT row, members FROM documents WHERE members IS NOT NULL AND row IN ({marks})"
        with _values("documents"):
            found.update((row, _unpack_members(blob)) for row, blob in sql.execute(query, batch))
    return found


def damage(sql: sqlite3.Connection) -> list[str]:
    """What is wrong with the database itself, in words."""
    problems: list[str] = []
    try:
        if (version := format_version(sql)) != FORMAT_VERSION:
            problems.append(f"it says that its format is {version}, expected {FORMAT_VERSION}")
        problems += [line for (line,) in sql.execute("PRAGMA integrity_check") if line != "ok"]
        n_rows = max((segment.stop for segment in segments(sql)), default=0)
        rows = sql.execute("SELECT row FROM documents UNION ALL SELECT row FROM dead ORDER BY row").fetchall()
        if [row for (row,) in rows] != list(range(n_rows)):
            problems.append(f"its {n_rows} rows are not each either a document's or dead")
        columns = "id, title, text, metadata, checksum, members"
        for id, *rest in sql.execute(f"SELECT {columns} FROM documents"):
            if _checksum((id, *rest[:3])) != rest[3] or not _is_whole(rest[4]):
                problems.append(f"the document {_text(id)!r} is not what was stored")
    except (sqlite3.DatabaseError, ValueError, TypeError, AttributeError) as error:  # of another type
        problems.append(str(error))
    return problems


def check_documents(documents: Sequence[Document]) -> None:
    """Refuse documents that could not be stored and given back as they are.

    Raises:
        InvalidInputError: an id is empty, not a string or there twice, or metadata is not JSON, or deeper
            than `MAX_DEPTH`.
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
    return decode(*_encode(document))


def _encode(document: Document) -> tuple[bytes, bytes, bytes, str]:
    try:
        metadata = json.dumps(dict(document.metadata))
    except RecursionError:
        raise _too_deep(document) from None
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The metadata of document {document.id!r} is not JSON ({error}). Turn dates and other objects "
            "into strings or numbers first."
        ) from error
    # To count is quick, and few metadata have so many brackets at all.
    if metadata.count("[") + metadata.count("{") > MAX_DEPTH and _depth(document.metadata) > MAX_DEPTH:
        raise _too_deep(document)
    return _blob(document.id), _blob(document.title), _blob(document.text), metadata


def _depth(value: Any) -> int:
    """Of objects and lists within one another; one that holds none is 1 deep."""
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, Mapping | list | tuple)]:
        level = [part for each in level for part in (each.values() if isinstance(each, Mapping) else each)]
        depth += 1
    return depth


def _too_deep(document: Document) -> InvalidInputError:
    return InvalidInputError(
        f"The metadata of document {document.id!r} has more than {MAX_DEPTH} objects and lists within one "
        "another, which filters could not read. Flatten it, or store the inner part as one JSON text."
    )


def decode(key: bytes, title: bytes, text: bytes, metadata: str) -> Document:
    """The document of a row's id, title, text and metadata."""
    return Document(id=_text(key), text=_text(text), metadata=json.loads(metadata), title=_text(title))


def _checksum(encoded: tuple[bytes, bytes, bytes, str]) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for part in (*encoded[:3], encoded[3].encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _pack_members(members: IntArray) -> bytes:
    data = members.astype("<u2").tobytes()  # no document has so many tokens
    return hashlib.blake2b(data, digest_size=8).digest() + data


def _is_whole(blob: bytes | None) -> bool:
    """Whether what is stored of a document's tokens is what was stored; there may be nothing."""
    return blob is None or hashlib.blake2b(blob[8:], digest_size=8).digest() == blob[:8]


def _unpack_members(blob: bytes) -> IntArray:
    if not _is_whole(blob):
        raise ValueError("members of another checksum")
    return np.frombuffer(blob[8:], dtype="<u2").astype(np.int64)


@contextmanager
def _values(table: str) -> Iterator[None]:
    """Reading values that are well-formed unless the file is damaged; errors are SQLite's then.

    Raises:
        sqlite3.DatabaseError: one is not.
    """
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise sqlite3.DatabaseError(f"its table {table} holds what was not stored there: {error}") from error


def _blob(text: str) -> bytes:
    """UTF-8 that also carries lone surrogates, so that every str comes back as it was."""
    return text.encode("utf-8", "surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    return (items[i : i + BATCH] for i in range(0, len(items), BATCH))
