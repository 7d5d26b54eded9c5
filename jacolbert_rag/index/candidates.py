"""Candidate documents for a query: Voyager over vectors pooled across the corpus, with posting lists.

Each pooled vector lists the documents that have a token near it. A query token takes its nearest pooled
vectors; a document's approximate score sums, over query tokens, the best of those that list it, and where
none does, the least similarity that was looked at (imputed as in XTR, arXiv 2304.01982, section 4).

All of this is derived from the stored token embeddings, and may be thrown away and made again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from jacolbert_rag.config import CandidateConfig
from jacolbert_rag.datatypes import FloatArray, IntArray, TokenArray
from jacolbert_rag.index.graph import Graph
from jacolbert_rag.index.pooling import Cells, pool_corpus
from jacolbert_rag.index.postings import Near, Postings


@dataclass(frozen=True)
class PooledVectors:
    """Vectors pooled across a corpus, found by Voyager from a query, and by their cells from a document.

    Attributes:
        graph: over the pooled vectors, which are numbered cell by cell.
        centers: (n_cells, dim) float32 coarse centers.
        offsets: (n_cells + 1,) int64 first pooled vector of each cell.
    """

    graph: Graph
    centers: FloatArray
    offsets: IntArray

    @classmethod
    def build(cls, sample: TokenArray, n_pooled: int, config: CandidateConfig) -> PooledVectors:
        """Pool a sample of a corpus' token embeddings into about so many vectors."""
        cells = pool_corpus(sample, n_pooled, seed=config.seed)
        graph = Graph.build(
            cells.vectors, m=config.m, ef_construction=config.ef_construction, seed=config.seed
        )
        return cls(graph, cells.centers, cells.offsets)

    def __len__(self) -> int:
        return len(self.graph)

    def assign(self, tokens: TokenArray, config: CandidateConfig) -> IntArray:
        """(n,) int64: the pooled vector of each of a document's (n, dim) token embeddings."""
        cells = Cells(self.centers, self.graph.vectors, self.offsets)
        return cells.nearest(tokens, n_probed=config.n_probed)

    def near(self, query: TokenArray, config: CandidateConfig) -> Near:
        """What a query's tokens take; a gain is how much more similar one is than the least similar taken."""
        pooled, similarity = self.graph.nearest(query, config.n_nearest, ef=config.ef_search)
        gains = similarity - similarity[:, -1:]
        return Near.of(pooled[:, ::-1], np.ascontiguousarray(gains[:, ::-1]))


def list_documents(
    pooled: PooledVectors,
    blocks: Iterable[tuple[IntArray, IntArray, TokenArray]],
    config: CandidateConfig,
) -> Postings:
    """Posting lists of documents.

    Args:
        pooled: that list them.
        blocks: of each, (n_docs,) rows, (n_docs,) tokens of each, and (n_tokens, dim) token embeddings.
        config: see `PooledVectors.assign`.
    """
    pairs = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))]
    for rows, lengths, tokens in blocks:
        pairs.append((pooled.assign(tokens, config), np.repeat(rows, lengths)))
    return Postings.of(*(np.concatenate(part) for part in zip(*pairs, strict=True)))
