"""Voyager's HNSW graph over vectors of unit length, without its traps.

What is guarded against, all seen in voyager 2.2.3; tests/test_graph.py shows each:
    - arrays that are not contiguous are read as if they were, without an error
    - an empty batch ends the process
    - vectors are lost where two threads add at once
    - RecallError where fewer than k vectors are found, and RuntimeError where ef is below k
    - ids that are not named begin again at the number of vectors after a load, and replace what has them
    - ef is not saved
    - a file that it saves on a full disk is cut short, often without an error
    - a batch of up to four rows a thread runs on one thread
"""

from __future__ import annotations

import io
import os
from functools import cached_property
from typing import Any

import numpy as np

from jacolbert_rag.datatypes import FloatArray, IntArray, TokenArray

ADD_ROWS = 100_000  # voyager multiplies rows by dim in an int: keep far below 2**31


class Graph:
    """Vectors 0 to n - 1, of which the most similar to a query are found. Never changed once it is built."""

    def __init__(self, index: Any) -> None:
        """Take a voyager index; use `build` or `load`."""
        self._index = index

    @classmethod
    def build(cls, vectors: FloatArray, *, m: int, ef_construction: int, seed: int) -> Graph:
        """A graph of (n, dim) float32 vectors, at least one."""
        import voyager

        # Cosine, not inner product, for which voyager adds a dimension and a mutable norm.
        index = voyager.Index(
            voyager.Space.Cosine,
            num_dimensions=vectors.shape[1],
            M=m,
            ef_construction=ef_construction,
            random_seed=seed,
            max_elements=max(1, len(vectors)),
        )
        for start in range(0, len(vectors), ADD_ROWS):
            block = np.ascontiguousarray(vectors[start : start + ADD_ROWS], dtype=np.float32)
            index.add_items(block, ids=list(range(start, start + len(block))))
        return cls(index)

    @classmethod
    def load(cls, data: bytes) -> Graph:
        """What `to_bytes` gave. Damaged bytes may end the process: hold them to a checksum first.

        Raises:
            RuntimeError: it is no voyager index.
        """
        import voyager

        return cls(voyager.Index.load(io.BytesIO(data)))

    def to_bytes(self) -> bytes:
        """What `load` reads."""
        return bytes(self._index.as_bytes())

    def __len__(self) -> int:
        """Vectors; none is ever deleted, so voyager's count is true."""
        return len(self._index)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self._index.num_dimensions)

    @cached_property
    def vectors(self) -> FloatArray:
        """(n, dim) float32, rows of unit length."""
        return np.asarray(self._index.get_vectors(list(range(len(self)))), dtype=np.float32)

    def nearest(self, queries: TokenArray, k: int, *, ef: int) -> tuple[IntArray, FloatArray]:
        """The most similar vectors of each query.

        Args:
            queries: (n, dim), of any length but zero.
            k: how many, at most; fewer where there are fewer vectors.
            ef: effort; raised to k where it is below.

        Returns:
            (n, k) int64 vectors and (n, k) float32 cosines, best first.
        """
        k = min(k, len(self))
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if not len(queries) or not k:
            return np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
        n_threads = max(1, min(os.cpu_count() or 1, (len(queries) - 1) // 4))
        try:
            ids, distances = self._index.query(queries, k=k, num_threads=n_threads, query_ef=max(k, ef))
        except self._recall_errors:
            # A graph that is not connected hides some vectors (spotify/voyager issue 111): look at all.
            return self._scan(queries, k)
        return ids.astype(np.int64), (1.0 - distances).astype(np.float32)

    @property
    def _recall_errors(self) -> tuple[type[Exception], ...]:
        """What voyager raises where it finds fewer than k vectors; its class has changed between versions."""
        import voyager

        return (getattr(voyager, "RecallError", RuntimeError), RuntimeError)

    def _scan(self, queries: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """`nearest` without the graph."""
        similarity = queries @ self.vectors.T
        similarity /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        found = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return found, np.take_along_axis(similarity, found, axis=1)
