"""Candidate documents for a query: Voyager over vectors pooled across the corpus, with posting lists.

Each pooled vector lists the documents that have a token near it. A query token takes its nearest pooled
vectors; a document's approximate score sums, over query tokens, the best of those that list it, and where
none does, the least similarity that was looked at (imputed as in XTR, arXiv 2304.01982, section 4).

All of this is derived from the store, and may be thrown away and built again.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from jacolbert_rag.config import CandidateConfig
from jacolbert_rag.datatypes import (
    BoolArray,
    FloatArray,
    IdArray,
    IntArray,
    TokenArray,
    TokenEmbeddings,
    offsets_of,
)

STATE_FILE = "state.json"
VOYAGER_FILE = "pooled.voyager"
POSTINGS_FILE = "postings.npz"

ASSIGN_EF = 24  # HNSW effort to find the one nearest pooled vector of a token
ADD_ROWS = 100_000  # voyager multiplies rows by dim in an int: keep far below 2**31


@dataclass(frozen=True)
class Postings:
    """Which documents each pooled vector lists, as compressed sparse rows.

    Attributes:
        rows: (n_entries,) int32 documents' rows, those of one pooled vector side by side.
        offsets: (n_pooled + 1,) int64.
    """

    rows: IdArray
    offsets: IntArray

    @classmethod
    def from_pairs(cls, pooled: IntArray, rows: IntArray, n_pooled: int) -> Postings:
        """Lists of the distinct (pooled vector, document) pairs."""
        order = np.lexsort((rows, pooled))
        pooled, rows = pooled[order], rows[order]
        distinct = np.ones(len(rows), dtype=np.bool_)
        distinct[1:] = (pooled[1:] != pooled[:-1]) | (rows[1:] != rows[:-1])
        counts = np.bincount(pooled[distinct], minlength=n_pooled)
        return cls(rows[distinct].astype(np.int32), offsets_of(counts))

    def pairs(self) -> tuple[IntArray, IntArray]:
        """(n_entries,) pooled vector and (n_entries,) row of every entry."""
        pooled = np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int64), np.diff(self.offsets))
        return pooled, self.rows.astype(np.int64)

    def of(self, pooled: IntArray) -> tuple[IdArray, IntArray]:
        """Lists of these pooled vectors, joined in this order, and the length of each."""
        pooled = np.minimum(pooled, len(self.offsets) - 1)
        starts = self.offsets[pooled]
        # A pooled vector that is younger than this part has no list here.
        lengths = self.offsets[np.minimum(pooled + 1, len(self.offsets) - 1)] - starts
        joined = offsets_of(lengths)
        index = np.repeat(starts - joined[:-1], lengths) + np.arange(joined[-1])
        return self.rows[index], lengths


@dataclass(frozen=True)
class Counts:
    """How far candidates reach.

    Attributes:
        n_rows: rows of the store up to here are listed, if they were alive.
        n_listed: documents ever listed, those included that have died since.
        n_tokens: token embeddings of the corpus when its vectors were pooled.
    """

    n_rows: int
    n_listed: int
    n_tokens: int


class Candidates:
    """Proposes documents for a query. Not thread-safe while documents are added."""

    def __init__(
        self,
        voyager_index: Any,
        parts: list[Postings],
        counts: Counts,
        config: CandidateConfig,
    ) -> None:
        """Take finished parts; use `build` or `load`."""
        self.config = config
        self.counts = counts
        self._voyager = voyager_index
        self._parts = parts

    @classmethod
    def build(cls, pooled: FloatArray, config: CandidateConfig, *, n_tokens: int) -> Candidates:
        """An index of pooled vectors whose lists are empty yet.

        Args:
            pooled: (n_pooled, dim) float32, at least one row.
            config: HNSW settings and budgets.
            n_tokens: how many token embeddings the corpus has now; see `needs_rebuild`.
        """
        import voyager

        # Cosine, not inner product, for which voyager adds a dimension and a mutable norm.
        index = voyager.Index(
            voyager.Space.Cosine,
            num_dimensions=pooled.shape[1],
            M=config.m,
            ef_construction=config.ef_construction,
            random_seed=config.seed,
            max_elements=len(pooled),
        )
        candidates = cls(index, [], Counts(0, 0, n_tokens), config)
        candidates._add_pooled(pooled)
        return candidates

    @property
    def n_pooled(self) -> int:
        """Vectors in Voyager; none is ever deleted, so its count is true."""
        return len(self._voyager)

    @property
    def n_entries(self) -> int:
        """Entries of all posting lists."""
        return sum(len(part.rows) for part in self._parts)

    @property
    def n_rows(self) -> int:
        """Rows of the store that are listed; those from here on are not."""
        return self.counts.n_rows

    def needs_rebuild(self, n_live: int, n_tokens: int) -> bool:
        """Whether the corpus has outgrown these vectors, or the dead outnumber the living in the lists."""
        growth = self.config.rebuild_growth
        return n_tokens > growth * self.counts.n_tokens or self.counts.n_listed > growth * n_live

    def assign(self, embeddings: TokenEmbeddings) -> tuple[IntArray, FloatArray]:
        """The slow half of `add`, which only reads, so that proposals may go on beside it.

        Returns:
            (n_tokens,) nearest pooled vector of each token, and (n_tokens,) cosine to it.
        """
        return self._nearest(embeddings.flat)

    def add(
        self,
        rows: IntArray,
        embeddings: TokenEmbeddings,
        assigned: tuple[IntArray, FloatArray] | None = None,
    ) -> None:
        """List new documents under the pooled vectors nearest to their tokens.

        A token that is far from all of them becomes a pooled vector itself, so that new topics find
        a place without building anew.

        Args:
            rows: (n_docs,) rows of the documents, all above those added before.
            embeddings: their token embeddings.
            assigned: what `assign` gave for them, with nothing added since.
        """
        if len(rows) == 0:
            return
        tokens = np.asarray(embeddings.flat, dtype=np.float32)
        owners = np.repeat(rows, embeddings.lengths)
        nearest, similarity = assigned or self.assign(embeddings)
        far = similarity < self.config.new_pooled_below
        if far.any():
            self._add_pooled(_leaders(tokens[far], self.config.new_pooled_below))
            nearest[far], _ = self._nearest(tokens[far])
        self._parts.append(Postings.from_pairs(nearest, owners, self.n_pooled))
        n_listed = self.counts.n_listed + len(rows)
        self.counts = Counts(int(rows[-1]) + 1, n_listed, self.counts.n_tokens)
        # As in the store: few parts however small the adds.
        while len(self._parts) > 1 and len(self._parts[-2].rows) <= len(self._parts[-1].rows):
            last, before = self._parts.pop(), self._parts.pop()
            pairs = [np.concatenate(both) for both in zip(before.pairs(), last.pairs(), strict=True)]
            self._parts.append(Postings.from_pairs(pairs[0], pairs[1], self.n_pooled))

    def propose(self, query: TokenArray, live: BoolArray, n: int) -> IntArray:
        """Rows worth an exact score.

        Args:
            query: (q_tokens, dim) float32.
            live: (n_rows,) bool over all rows of the store; dead ones are never proposed.
            n: how many to propose.

        Returns:
            At most n rows, best first. Fewer where fewer live documents are listed near the query.
        """
        n_nearest = min(self.config.n_nearest, self.n_pooled)
        pooled, similarity = self._query(query, n_nearest)
        floors = similarity[:, -1:]
        gains = similarity - floors
        # Lists are joined from the least similar pooled vector to the most, so that of a document's
        # several entries the best is the one written last.
        pooled, gains = pooled[:, ::-1], gains[:, ::-1]
        total = np.zeros(len(live), dtype=np.float32)
        best = np.zeros(len(live), dtype=np.float32)
        for token_pooled, token_gains in zip(pooled, gains, strict=True):
            for part in self._parts:
                listed, lengths = part.of(token_pooled)
                # Parts hold different documents, so they cannot overwrite one another.
                best[listed] = np.repeat(token_gains, lengths)
            total += best
            best.fill(0)
        proposed: IntArray = np.flatnonzero((total > 0) & live)
        if len(proposed) > n:
            proposed = proposed[np.argpartition(-total[proposed], n - 1)[:n]]
        return proposed[np.argsort(-total[proposed], kind="stable")]

    def save(self, folder: Path, *, store_id: str) -> None:
        """Write beside the store, whole or not at all."""
        new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        new.mkdir()
        try:
            self._voyager.save(str(new / VOYAGER_FILE))
            arrays: dict[str, npt.NDArray[Any]] = {}
            for i, part in enumerate(self._parts):
                arrays[f"rows{i}"], arrays[f"offsets{i}"] = part.rows, part.offsets
            with (new / POSTINGS_FILE).open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            state = {
                "store_id": store_id,
                "counts": asdict(self.counts),
                "n_pooled": self.n_pooled,
                "n_parts": len(self._parts),
                "config": self.config.to_json(),
            }
            (new / STATE_FILE).write_text(json.dumps(state))
            # A kill between these two leaves no candidates, and then they are made again.
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, config: CandidateConfig, *, store_id: str, n_rows: int) -> Candidates | None:
        """What `save` wrote, or None where it is missing, unreadable or of another making.

        Args:
            folder: of `save`.
            config: settings that shape what is saved must be those it was made with.
            store_id: of the index that it must belong to.
            n_rows: rows of that index, which must have all those listed here.
        """
        import voyager

        try:
            state = json.loads((folder / STATE_FILE).read_text())
            made, counts = CandidateConfig.from_json(state["config"]), Counts(**state["counts"])
            if state["store_id"] != store_id or counts.n_rows > n_rows or _shape(made) != _shape(config):
                return None
            index = voyager.Index.load(str(folder / VOYAGER_FILE))
            with np.load(folder / POSTINGS_FILE, allow_pickle=False) as arrays:
                parts = [Postings(arrays[f"rows{i}"], arrays[f"offsets{i}"]) for i in range(state["n_parts"])]
        except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, BadZipFile):
            return None
        n_pooled = state["n_pooled"]
        sound = all(
            len(part.offsets) <= n_pooled + 1
            and part.offsets[-1] == len(part.rows)
            and part.rows.max(initial=0) < max(1, counts.n_rows)
            for part in parts
        )
        return cls(index, parts, counts, config) if len(index) == n_pooled and sound else None

    def _add_pooled(self, pooled: FloatArray) -> None:
        """Put vectors into Voyager under the next row numbers.

        Voyager 2.2 copies memory without regard to strides, dies on an empty batch, and after a load
        hands out ids that are taken: so contiguous, never empty, ids explicit.
        """
        for start in range(0, len(pooled), ADD_ROWS):
            block = np.ascontiguousarray(pooled[start : start + ADD_ROWS], dtype=np.float32)
            first = self.n_pooled
            self._voyager.add_items(block, ids=list(range(first, first + len(block))))

    def _nearest(self, tokens: TokenArray) -> tuple[IntArray, FloatArray]:
        """(n,) nearest pooled vector of each token and (n,) cosine to it."""
        found = [
            self._query(tokens[start : start + ADD_ROWS], 1, ef=ASSIGN_EF)
            for start in range(0, len(tokens), ADD_ROWS)
        ]
        pooled, similarity = (np.concatenate(values)[:, 0] for values in zip(*found, strict=True))
        return pooled, similarity

    def _query(self, tokens: TokenArray, k: int, ef: int | None = None) -> tuple[IntArray, FloatArray]:
        """(n, k) pooled vectors and (n, k) cosines, best first."""
        tokens = np.ascontiguousarray(tokens, dtype=np.float32)
        # voyager raises where ef is below k, and runs a batch of up to 4 rows a thread on one thread.
        n_threads = max(1, min(os.cpu_count() or 1, (len(tokens) - 1) // 4))
        ef = max(k, ef or self.config.ef_search)
        try:
            ids, distances = self._voyager.query(tokens, k=k, num_threads=n_threads, query_ef=ef)
        except self._recall_error:
            # A graph that is not connected hides some vectors (spotify/voyager issue 111): look at all.
            return self._scan(tokens, k)
        return ids.astype(np.int64), 1.0 - distances

    @property
    def _recall_error(self) -> type[Exception]:
        """What voyager raises where it finds fewer than k vectors; its class has changed between versions."""
        import voyager

        error: type[Exception] = getattr(voyager, "RecallError", RuntimeError)
        return error

    def _scan(self, tokens: TokenArray, k: int) -> tuple[IntArray, FloatArray]:
        """`_query` without the graph."""
        vectors = np.asarray(self._voyager.get_vectors(list(range(self.n_pooled))), dtype=np.float32)
        similarity = np.asarray(tokens, dtype=np.float32) @ vectors.T
        similarity /= np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        found = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return found, np.take_along_axis(similarity, found, axis=1)


def _shape(config: CandidateConfig) -> tuple[object, ...]:
    """The settings that saved candidates were shaped by; the others matter at search alone."""
    return (
        config.tokens_per_pooled,
        config.max_pooled,
        config.samples_per_pooled,
        config.m,
        config.ef_construction,
        config.new_pooled_below,
        config.seed,
    )


def _leaders(tokens: FloatArray, radius: float) -> FloatArray:
    """Some of the tokens, few of them nearer to one another than the cosine `radius`.

    One pass in blocks: a token becomes a leader when no leader and no earlier token of its block is near.
    """
    norms = np.linalg.norm(tokens, axis=1, keepdims=True)
    unit: FloatArray = tokens / np.maximum(norms, np.finfo(np.float32).tiny)
    leaders = unit[:0]
    for start in range(0, len(unit), 1024):
        block = unit[start : start + 1024]
        if len(leaders):
            block = block[(block @ leaders.T).max(axis=1) < radius]
        close = np.tril(block @ block.T, k=-1) >= radius
        leaders = np.concatenate([leaders, block[~close.any(axis=1)]])
    return leaders
