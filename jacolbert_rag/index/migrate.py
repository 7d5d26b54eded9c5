"""Indexes of former formats, made anew in this one when they are first opened.

Format 1 (version 0.1.0): manifest.json; documents.sqlite with tables documents and segments; embeddings/NAME.npy,
float16 or float32, beside embeddings/NAME.offsets.npy; candidates/, which is derived and not looked at.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import string
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jacolbert_rag.datatypes import Document, TokenEmbeddings
from jacolbert_rag.errors import IndexCorruptError
from jacolbert_rag.index import database
from jacolbert_rag.index.files import MEND, sync
from jacolbert_rag.index.index import Index, replace_folder

DOCUMENTS_FILE = "documents.sqlite"  # of format 1
APPENDED = 1_000  # documents copied at once


def migrate(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Put an index of format 2 in the place of one of format 1. A kill leaves the former one whole.

    Raises:
        IndexCorruptError: a file of it is missing or unreadable.
    """
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        index = Index.create(new, _manifest(manifest), durable=False)
        for documents, embeddings in _documents(folder):
            index.append(documents, embeddings, listed=False)
        index.update_candidates()
        index.close()
        for path in [*new.rglob("*"), new]:
            sync(path)
        replace_folder(new, folder)
    except (sqlite3.DatabaseError, OSError, ValueError, EOFError) as error:
        raise IndexCorruptError(f"{folder} is of format 1, and not readable ({error}). {MEND}") from error
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


def _documents(folder: Path) -> Iterator[tuple[list[Document], TokenEmbeddings]]:
    """All documents in order, with their token embeddings."""
    sql = sqlite3.connect(folder / DOCUMENTS_FILE)
    try:
        segments = sql.execute("SELECT first_row, n_rows, name FROM segments ORDER BY first_row").fetchall()
        for first, n_rows, name in segments:
            flat = np.load(folder / "embeddings" / f"{name}.npy")
            offsets = np.load(folder / "embeddings" / f"{name}.offsets.npy")
            segment = TokenEmbeddings(flat, offsets)
            if len(segment) != n_rows:
                raise ValueError(f"{name}.offsets.npy has {len(segment)} documents, not {n_rows}")
            for start in range(first, first + n_rows, APPENDED):
                found = sql.execute(
                    "SELECT row, id, title, text, metadata FROM documents WHERE row >= ? AND row < ? ORDER BY row",
                    (start, min(start + APPENDED, first + n_rows)),
                ).fetchall()
                rows = np.array([row for row, *_ in found], dtype=np.int64) - first
                yield [database.decode(*values) for _, *values in found], segment.take(rows)
    finally:
        sql.close()
