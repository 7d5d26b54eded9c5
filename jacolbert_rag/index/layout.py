"""What a folder of an index holds, and whether a folder is one.

    manifest.json            what made the index, for people and for older versions to read; derived
    index.sqlite             documents, the manifest; names, sizes and checksums of the files that count
    files/NAME.tokens.npy    token embeddings of a run of rows, as `quantize.Codec` has them
    files/NAME.offsets.npy   first token of each row
    files/NAME.codebook.npy  centroids of residuals
    files/NAME.lists.npy     posting lists of the run (derived)
    files/NAME.words.npy     word lists of the run, for full-text search (derived)
    files/NAME.graph         Voyager over the pooled vectors (derived), with .centers.npy and .cells.npy

Format 1 (version 0.1.0) had manifest.json, documents.sqlite, embeddings/ and candidates/.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from enum import Enum
from pathlib import Path
from typing import Any

from jacolbert_rag.errors import IndexCorruptError, IndexFolderError, IndexMismatchError, IndexNotFoundError
from jacolbert_rag.index import database
from jacolbert_rag.index.database import FORMAT_VERSION
from jacolbert_rag.index.files import MEND, write_bytes

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
DATABASE_FILE = "index.sqlite"
FILES_FOLDER = "files"
MANIFEST_KEYS = ("id", "model", "fingerprint", "dim", "encoder", "pooling", "store", "candidates", "search")

TOKENS, OFFSETS, LISTS, WORDS = ".tokens.npy", ".offsets.npy", ".lists.npy", ".words.npy"
GRAPH, CENTERS, CELLS, CODEBOOK = ".graph", ".centers.npy", ".cells.npy", ".codebook.npy"
DERIVED = (LISTS, WORDS, GRAPH, CENTERS, CELLS)

FORMER_DATABASE = "documents.sqlite"
FORMER_FOLDERS = ("embeddings", "candidates")
MIGRATING = ".migrating"  # where an index of a former format is made anew


class Kind(Enum):
    """What a folder is."""

    NONE = "no index"
    HALF = "what a save that was cut short has left"
    INDEX = "an index of this or a newer format, damaged perhaps"
    FORMER = "an index of format 1"


def kind(folder: Path) -> Kind:
    """What a folder is, so far as its names and its database tell."""
    path = folder / DATABASE_FILE
    is_ours = is_made = False
    if path.is_file():
        # What is unreadable is left to the manifest's word.
        with suppress(sqlite3.Error, *database.DAMAGE), closing(database.connect_to_read(path)) as sql:
            is_ours, is_made = database.is_ours(sql), database.is_made(sql)
    if is_ours and is_made:
        return Kind.INDEX
    is_named = (folder / MANIFEST_FILE).is_file()
    if is_named and (folder / FORMER_DATABASE).is_file():
        return Kind.FORMER
    if is_named and path.is_file():
        return Kind.INDEX
    is_empty = path.is_file() and not path.stat().st_size
    return Kind.HALF if is_ours or is_empty else Kind.NONE


def exists(folder: Path) -> bool:
    """Whether there is an index in a folder, of any format."""
    return kind(folder) in (Kind.INDEX, Kind.FORMER)


def may_be_filled(folder: Path) -> bool:
    """Whether an index may be saved into a folder: it is new, empty, or an index, whole or half made."""
    if not folder.exists():
        return True
    return folder.is_dir() and (kind(folder) is not Kind.NONE or not any(folder.iterdir()))


def remove_former(folder: Path) -> None:
    """Remove what a former format has left beside an index that was made of it."""
    if not (folder / FORMER_DATABASE).exists():  # it goes last; without it these folders are the user's
        return
    for name in (*FORMER_FOLDERS, MIGRATING):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
    for end in ("-wal", "-shm", ""):
        with suppress(OSError):
            (folder / (FORMER_DATABASE + end)).unlink(missing_ok=True)


def read_manifest(sql: sqlite3.Connection, folder: Path) -> dict[str, Any]:
    """What made the index of an open database.

    Raises:
        IndexNotFoundError: saving it was cut short.
        IndexMismatchError: a newer version of this library made it.
        IndexCorruptError: it is not readable.
    """
    path = folder / DATABASE_FILE
    cut_short = (
        f"There is no whole index in {folder}: saving one there was cut short, or is under way. Save it "
        "again."
    )
    if not database.is_ours(sql):
        # A kill between making the file and signing it; where an index was, there is its manifest too.
        if database.is_empty(sql) and not (folder / MANIFEST_FILE).is_file():
            raise IndexNotFoundError(cut_short)
        raise IndexCorruptError(f"{path} is not the database of an index. {MEND}")
    version = database.format_version(sql)
    check_version(folder, version)
    if version != FORMAT_VERSION:  # former ones have another file
        raise IndexCorruptError(f"{path} says it has format {version}, expected {FORMAT_VERSION}. {MEND}")
    if not database.is_made(sql):
        raise IndexNotFoundError(cut_short)
    try:
        manifest = database.read_state(sql)["manifest"]
        if missing := [key for key in MANIFEST_KEYS if key not in manifest]:
            raise KeyError(", ".join(missing))
    except (ValueError, KeyError, TypeError) as error:
        raise IndexCorruptError(f"The manifest in {path} is not readable ({error!r}). {MEND}") from error
    if manifest.get("checksum") != (found := checksum(manifest)):
        raise IndexCorruptError(
            f"The manifest in {path} has the checksum {found}, expected {manifest.get('checksum')}. {MEND}"
        )
    return dict(manifest)


def read_manifest_file(folder: Path) -> dict[str, Any]:
    """manifest.json of a folder without a database; of format 1, or of a newer one than this.

    Raises:
        IndexNotFoundError: there is none.
        IndexMismatchError: a newer version of this library wrote it.
        IndexCorruptError: it is not readable, or the database is missing.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise IndexNotFoundError(
            f"There is no index in {folder} (no {DATABASE_FILE}). Name the folder that `save` or "
            "`jacolbert index --out` wrote."
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(manifest["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise IndexCorruptError(f"{path} is not readable ({error!r}). {MEND}") from error
    check_version(folder, version)
    if version == FORMAT_VERSION or not (folder / FORMER_DATABASE).is_file():
        name = DATABASE_FILE if version == FORMAT_VERSION else FORMER_DATABASE
        raise IndexCorruptError(f"{folder / name} is missing from the index. {MEND}")
    return manifest


def check_version(folder: Path, version: int) -> None:
    """Refuse an index of a newer format.

    Raises:
        IndexMismatchError: it is one.
    """
    if version > FORMAT_VERSION:
        raise IndexMismatchError(
            f"{folder} has index format {version}; this version of jacolbert_rag reads up to "
            f"{FORMAT_VERSION}. Update jacolbert_rag, or build the index anew with this version."
        )


def manifest_damage(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with manifest.json, in words; None where it says what the database says."""
    path = folder / MANIFEST_FILE
    try:
        if json.loads(path.read_text(encoding="utf-8")) == manifest:
            return None
    except FileNotFoundError:
        return f"{path} is missing"
    except ValueError as error:
        return f"{path} is not readable ({error})"
    return f"{path} says something else than {DATABASE_FILE}"


def mend_manifest(folder: Path, manifest: Mapping[str, Any], *, read_only: bool) -> None:
    """Write manifest.json anew where it is damaged, with a warning."""
    damage = manifest_damage(folder, manifest)
    if damage is None:
        return
    logger.warning("%s. %s", damage, "It may only be read." if read_only else "It is written anew.")
    if not read_only:
        with suppress(OSError):
            write_manifest(folder, manifest, durable=True)


def write_manifest(folder: Path, manifest: Mapping[str, Any], *, durable: bool) -> None:
    """Write manifest.json."""
    data = json.dumps(manifest, ensure_ascii=False, indent=2).encode()
    write_bytes(folder, MANIFEST_FILE, data, durable=durable)


def checksum(manifest: Mapping[str, Any]) -> str:
    """Of all that a manifest says, however it is laid out."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    data = json.dumps(content, ensure_ascii=True, sort_keys=True).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def missing(path: Path) -> IndexCorruptError:
    """An error for a file that should be there."""
    return IndexCorruptError(f"{path} is missing from the index. {MEND}")


def gone(folder: Path) -> IndexFolderError:
    """An error for a handle whose folder was removed, or has another index by now."""
    return IndexNotFoundError(
        f"The index that was opened in {folder} is no longer there: it was removed, or another one was put "
        "in its place. Load it again."
    )
