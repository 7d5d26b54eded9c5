"""Files of an index: written whole, synced and hashed, and opened as memory maps of what was written."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import threading
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jacolbert_rag.errors import IndexCorruptError

MEND = "Restore the index folder from a copy, or build it anew from the documents."
# numpy reads an .npy file's header by ast.literal_eval, which two threads of CPython 3.11 cannot run at once:
# "SystemError: AST constructor recursion depth mismatch" (python/cpython issue 106905).
_READING_HEADER = threading.Lock()
_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """What a file of an index must be.

    Attributes:
        name: path within the index folder, with "/" between its parts.
        size: bytes.
        checksum: 32 hex digits, BLAKE2b of all bytes.
    """

    name: str
    size: int
    checksum: str


class FileVanishedError(Exception):
    """A file that was named a moment ago is gone: another process has put a newer one in its place."""


def write_array(
    folder: Path,
    name: str,
    chunks: Iterable[npt.NDArray[Any]],
    shape: tuple[int, ...],
    dtype: Any,
    *,
    durable: bool,
) -> FileRecord:
    """Write an .npy file, whole or not at all.

    Args:
        folder: of the index.
        name: of the file in it.
        chunks: runs of the array's rows, so that a large one need not be held.
        shape: of the whole.
        dtype: of the whole.
        durable: whether it must survive a power cut once this returns.
    """
    path = folder / name
    new = path.with_name(f".{path.name}")
    digest = hashlib.blake2b(digest_size=16)
    with new.open("wb") as file:
        head = io.BytesIO()
        layout = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, layout)
        for data in itertools.chain([head.getvalue()], (_bytes(chunk, dtype) for chunk in chunks)):
            file.write(data)
            digest.update(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
        size = file.tell()
    os.replace(new, path)
    if durable:
        sync(path.parent)
    return FileRecord(name, size, digest.hexdigest())


def write_bytes(folder: Path, name: str, data: bytes, *, durable: bool) -> FileRecord:
    """Write a file of an index, whole or not at all."""
    path = folder / name
    new = path.with_name(f".{path.name}")
    new.write_bytes(data)
    if durable:
        sync(new)
    os.replace(new, path)
    if durable:
        sync(path.parent)
    return FileRecord(name, len(data), hashlib.blake2b(data, digest_size=16).hexdigest())


def checksum(path: Path) -> str:
    """BLAKE2b of a file, 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def map_array(folder: Path, expected: FileRecord, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A memory map of a large .npy file. Writing to it changes this process's pages, never the file.

    Its size, dtype and shape are held to what is expected; its bytes are for `damage` to look at, since
    reading all of them would take as long as copying the index.

    Raises:
        FileVanishedError: there is no such file.
        IndexCorruptError: it is not what is expected.
    """
    path = check(folder, expected)
    try:
        return _load(path, path, dtype, shape, mmap_mode="c" if np.prod(shape) else None)
    except FileNotFoundError as error:
        raise FileVanishedError(path) from error


def read_array(folder: Path, expected: FileRecord, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A small .npy file, every byte of which is held to what is expected.

    Raises:
        FileVanishedError: there is no such file.
        IndexCorruptError: it is not what is expected.
    """
    return _load(io.BytesIO(read_bytes(folder, expected)), folder / expected.name, dtype, shape)


def read_bytes(folder: Path, expected: FileRecord) -> bytes:
    """A file that is what it should be.

    Raises:
        FileVanishedError: there is no such file.
        IndexCorruptError: it is not what is expected.
    """
    path = check(folder, expected)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise FileVanishedError(path) from error
    found = hashlib.blake2b(data, digest_size=16).hexdigest()
    if found != expected.checksum:
        raise IndexCorruptError(f"{path} has the checksum {found}, expected {expected.checksum}. {MEND}")
    return data


def _load(
    source: Path | io.BytesIO, path: Path, dtype: Any, shape: tuple[int, ...], **options: Any
) -> npt.NDArray[Any]:
    try:
        with _READING_HEADER:
            array: npt.NDArray[Any] = np.load(source, **options)
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise IndexCorruptError(f"{path} is not readable ({error}). {MEND}") from error
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise IndexCorruptError(
            f"{path} holds {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}. {MEND}"
        )
    return array


def check(folder: Path, expected: FileRecord) -> Path:
    """The path of a file that is there and has the size that it should have.

    Raises:
        FileVanishedError: there is no such file.
        IndexCorruptError: it has another size.
    """
    path = folder / expected.name
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise FileVanishedError(path) from error
    if size != expected.size:
        raise IndexCorruptError(f"{path} has {size:,} bytes, expected {expected.size:,}. {MEND}")
    return path


def damage(folder: Path, expected: FileRecord) -> str | None:
    """What is wrong with a file, in words; None where it is what it should be."""
    path = folder / expected.name
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"{path} has {size:,} bytes, expected {expected.size:,}"
        found = checksum(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} could not be read ({error})"
    if found != expected.checksum:
        return f"{path} has the checksum {found}, expected {expected.checksum}"
    return None


def _bytes(chunk: npt.NDArray[Any], dtype: Any) -> memoryview | bytes:
    # An array of no rows has no view as bytes.
    return np.ascontiguousarray(chunk, dtype=dtype).data.cast("B") if chunk.size else b""


def sync(path: Path) -> None:
    """Have a file or a folder's entries on the disk before going on."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder; its renames are journaled
        return
    # Windows syncs only what is open for writing.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
