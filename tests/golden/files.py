"""The golden files, and the texts they were made of."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
N_SAMPLED = 5  # token embeddings stored of a real text


@dataclass(frozen=True)
class Ragged:
    """Rows of many texts: text i has `lengths[i]` rows of `flat`, behind those of the texts before it."""

    flat: np.ndarray
    lengths: np.ndarray

    @classmethod
    def join(cls, arrays: Sequence[np.ndarray]) -> Ragged:
        """One array a text."""
        return cls(np.concatenate(arrays), np.array([len(array) for array in arrays], dtype=np.int32))

    def split(self) -> list[np.ndarray]:
        """The array of each text."""
        return np.split(self.flat, np.cumsum(self.lengths)[:-1])


@dataclass(frozen=True)
class Golden:
    """What one peer makes of one checkpoint's texts; see tests/data/README.md.

    Attributes:
        info: peer, versions, settings, digests of weights and of real texts.
        queries: token embeddings, sampled where the texts are real.
        documents: the same.
        query_ids: token ids, [MASK]s included; our own texts only.
        document_ids: token ids, those of skipped tokens included; our own texts only.
        unlike_ids: ids of `texts.UNLIKE` as documents; our own texts only.
        n_attended: tokens of each query that are keys of attention; our own texts only.
        n_kept: token embeddings of each real query and document before sampling.
    """

    info: dict[str, Any]
    queries: Ragged
    documents: Ragged
    query_ids: Ragged | None = None
    document_ids: Ragged | None = None
    unlike_ids: Ragged | None = None
    n_attended: np.ndarray | None = None
    n_kept: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Write arrays and one JSON string; nothing in the file is pickled."""
        arrays: dict[str, np.ndarray] = {
            "info": np.array(json.dumps(self.info, ensure_ascii=True, sort_keys=True))
        }
        for name, value in vars(self).items():
            if isinstance(value, Ragged):
                arrays[name], arrays[f"{name}_lengths"] = value.flat, value.lengths
            elif isinstance(value, np.ndarray):
                arrays[name] = value
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        values: dict[str, Any] = {"info": json.loads(str(arrays.pop("info")))}
        for name in arrays:
            if name.endswith("_lengths"):
                continue
            lengths = arrays.get(f"{name}_lengths")
            values[name] = arrays[name] if lengths is None else Ragged(arrays[name], lengths)
        return cls(**values)


@dataclass(frozen=True)
class RealTexts:
    """Texts of the real sets: 150 questions, and 350 documents of an encyclopedia and of news."""

    queries: list[str]
    documents: list[str]

    def digest(self) -> str:
        """SHA-256 of all of them, in order."""
        lines = json.dumps([self.queries, self.documents], ensure_ascii=True)
        return hashlib.sha256(lines.encode()).hexdigest()


def real_texts(folder: Path) -> RealTexts:
    """The first 150 questions and 250 passages of JSQuAD's validation set, and 100 articles of Wikinews."""
    passages = _head(folder / "jsquad" / "corpus.jsonl.gz", 250) + _head(
        folder / "wikinews" / "corpus.jsonl.gz", 100
    )
    return RealTexts(
        queries=[row["text"] for row in _head(folder / "jsquad" / "queries.jsonl.gz", 150)],
        documents=[f"{row['title']} {row['text']}".strip() for row in passages],
    )


def sample(rows: np.ndarray) -> np.ndarray:
    """The first row, the last, and as many between at even distances; fewer where there are fewer."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, N_SAMPLED).round().astype(np.int64))]


def weights_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights: names, shapes and bits, in the order of the names."""
    from safetensors.numpy import load_file

    total = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        total.update(f"{name}{list(tensor.shape)}".encode())
        total.update(np.ascontiguousarray(tensor).tobytes())
    return total.hexdigest()


def _head(path: Path, n: int) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(n), strict=False)]
