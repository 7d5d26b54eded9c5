"""Indexes of former formats, made anew in this one when they are first opened.

Format 1 (version 0.1.0): manifest.json; documents.sqlite with tables documents and segments;
embeddings/NAME.npy, float16 or float32, beside embeddings/NAME.offsets.npy; candidates/, which is derived and
not looked at.
"""

from __future__ import annotations

import logging
import re
import shutil
import sqlite3
import string
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from jacolbert_rag.datatypes import Document, TokenEmbeddings
from jacolbert_rag.errors import IndexCorruptError
from jacolbert_rag.index import database, layout
from jacolbert_rag.index.files import MEND
from jacolbert_rag.index.index import Index
from jacolbert_rag.index.layout import FORMER_DATABASE, MIGRATING, Kind

logger = logging.getLogger(__name__)

APPENDED = 1_000  # documents copied at once


def migrate(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Make an index of format 1 one of format 2, in its folder. A kill leaves the former one whole.

    Args:
        folder: of the index.
        manifest: of format 1.

    Raises:
        IndexCorruptError: a file of it is missing or unreadable.
        OSError, sqlite3.OperationalError: the folder cannot be written, or another process is at it too long.
    """
    try:
        path = (folder / FORMER_DATABASE).as_uri()
        former = sqlite3.connect(
            f"{path}?mode=rw", uri=True, isolation_level=None, timeout=database.LOCK_SECONDS
        )
        with closing(former):
            former.execute("BEGIN EXCLUSIVE")  # ends with this process; another one waits, and finds it done
            _migrate(folder, manifest, former)
    except sqlite3.OperationalError:
        if layout.kind(folder) is Kind.FORMER:
            raise
    except (sqlite3.DatabaseError, ValueError, KeyError, EOFError, FileNotFoundError) as error:
        raise IndexCorruptError(f"{folder} is of format 1, and not readable ({error}). {MEND}") from error


def _migrate(folder: Path, manifest: Mapping[str, Any], former: sqlite3.Connection) -> None:
    if layout.kind(folder) is not Kind.FORMER:
        return
    logger.warning("The index %s is of format 1: it is made one of format 2, once.", folder)
    new = folder / MIGRATING
    shutil.rmtree(new, ignore_errors=True)
    try:
        index = Index.create(new, _manifest(manifest), durable=False)
        for documents, embeddings in _documents(folder, former):
            index.append(documents, embeddings, listed=False)
        index.update_candidates()
        index.copy_to(folder)
        index.close()
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _manifest(former: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of format 2; under "former" what says whether a model is still the same."""
    manifest = {key: value for key, value in former.items() if key != "format_version"}
    encoder = dict(former["encoder"])
    encoder["query_length"] = re.sub(r"fixed:(\d+)", r"fixed(\1)", encoder["query_length"])
    if encoder.pop("mask_punctuation", None) is not None:
        encoder["skiplist"] = list(string.punctuation) if former["encoder"]["mask_punctuation"] else []
    candidates = {key: value for key, value in former["candidates"].items() if key != "new_pooled_below"}
    return {
        **manifest,
        "encoder": encoder,
        "candidates": candidates,
        "former": {"fingerprint": former["fingerprint"], "encoder": dict(former["encoder"])},
    }


def _documents(folder: Path, sql: sqlite3.Connection) -> Iterator[tuple[list[Document], TokenEmbeddings]]:
    """All documents in order, with their token embeddings."""
    segments = sql.execute("SELECT first_row, n_rows, name FROM segments ORDER BY first_row").fetchall()
    for first, n_rows, name in segments:
        flat = np.load(folder / "embeddings" / f"{name}.npy", mmap_mode="r")
        offsets = np.load(folder / "embeddings" / f"{name}.offsets.npy")
        segment = TokenEmbeddings(flat, offsets)
        if len(segment) != n_rows or offsets[-1] != len(flat):
            raise ValueError(f"{name}.npy has {len(flat)} tokens of {len(segment)} documents")
        for start in range(first, first + n_rows, APPENDED):
            found = sql.execute(
                "SELECT row, id, title, text, metadata FROM documents WHERE row >= ? AND row < ? "
                "ORDER BY row",
                (start, min(start + APPENDED, first + n_rows)),
            ).fetchall()
            rows = np.array([row for row, *_ in found], dtype=np.int64) - first
            yield [database.decode(*values) for _, *values in found], segment.take(rows)
