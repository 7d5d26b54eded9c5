"""One committed state of an index, searched: never changed, so any number of threads may look at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from jacolbert_rag.config import CandidateConfig
from jacolbert_rag.datatypes import BoolArray, FloatArray, IntArray, TokenArray, TokenEmbeddings
from jacolbert_rag.index.candidates import PooledVectors
from jacolbert_rag.index.database import SegmentRow
from jacolbert_rag.index.maxsim import maxsim, maxsim_many
from jacolbert_rag.index.postings import Postings
from jacolbert_rag.index.quantize import CodedTokens

SEARCH_QUERIES = 32  # queries scored at once by exact search, so that each segment is read once for them
CANDIDATES_PER_HIT = 2  # documents scored exactly for each hit asked for, at least


@dataclass(frozen=True)
class Segment:
    """A run of rows.

    Attributes:
        row: what the database says of it.
        tokens: their token embeddings; dead rows have none, or the old ones.
        postings: lists of its rows, counted from its first; None where they are not listed.
    """

    row: SegmentRow
    tokens: CodedTokens
    postings: Postings | None


@dataclass(frozen=True)
class Snapshot:
    """All segments, and which of their rows are alive.

    Attributes:
        generation: number of the write that made it.
        segments: in order of rows, without gaps.
        live: (n_rows,) bool.
        pooled: what proposes candidates; None where exact search is all there is.
        dim: of a token embedding.
        device: that scores.
    """

    generation: int
    segments: tuple[Segment, ...]
    live: BoolArray
    pooled: PooledVectors | None
    dim: int
    device: str = "cpu"

    @cached_property
    def n_live(self) -> int:
        """Documents."""
        return int(np.count_nonzero(self.live))

    @property
    def n_rows(self) -> int:
        """Rows ever used since the last compaction, dead ones included."""
        return len(self.live)

    @property
    def n_tokens(self) -> int:
        """Token embeddings on disk, those of dead rows included."""
        return sum(segment.row.n_tokens for segment in self.segments)

    @property
    def n_unlisted(self) -> int:
        """Rows that no posting list has."""
        return sum(segment.row.n_rows for segment in self.segments if segment.postings is None)

    def search_exact(self, queries: TokenEmbeddings, k: int) -> list[tuple[IntArray, FloatArray]]:
        """The best k live rows of all, and their scores, for each query."""
        found = []
        for start in range(0, len(queries), SEARCH_QUERIES):
            batch = queries.take(range(start, min(start + SEARCH_QUERIES, len(queries))))
            scores = np.concatenate(
                [maxsim_many(batch, segment.tokens, device=self.device) for segment in self.segments], axis=1
            )
            rows = np.flatnonzero(self.live)
            found += [best(rows, row[rows], k) for row in scores]
        return found

    def search_candidates(
        self, query: TokenArray, k: int, config: CandidateConfig
    ) -> tuple[IntArray, FloatArray]:
        """The best k of the candidates' rows, and their scores; exact where too few are listed near it."""
        rows = np.sort(self.propose(query, max(config.n_candidates, CANDIDATES_PER_HIT * k), config))
        if len(rows) < k:
            whole = TokenEmbeddings(query, np.array([0, len(query)], dtype=np.int64))
            return self.search_exact(whole, k)[0]
        return best(rows, self.scores(query, rows), k)

    def propose(self, query: TokenArray, n: int, config: CandidateConfig) -> IntArray:
        """Rows worth an exact score: n at most of those that are listed, and all that are not listed yet."""
        assert self.pooled is not None
        near = self.pooled.near(query, config)
        total = np.zeros(self.n_rows, dtype=np.float32)
        unlisted = []
        for segment in self.segments:
            rows = slice(segment.row.first_row, segment.row.stop)
            if segment.postings is None:
                unlisted.append(np.arange(rows.start, rows.stop, dtype=np.int64))
            else:
                total[rows] = segment.postings.gains(near, segment.row.n_rows)
        total[~self.live] = 0
        proposed: IntArray = np.flatnonzero(total)
        if len(proposed) > n:
            proposed = proposed[np.argpartition(-total[proposed], n - 1)[:n]]
        fresh = np.concatenate([np.empty(0, dtype=np.int64), *unlisted])
        return np.concatenate([proposed, fresh[self.live[fresh]]])

    def scores(self, query: TokenArray, rows: IntArray) -> FloatArray:
        """(n,) float32 exact MaxSim of a query and these rows, which rise."""
        scores = np.empty(len(rows), dtype=np.float32)
        for chosen, tokens in self._taken(rows):
            scores[chosen] = maxsim(query, tokens, device=self.device)
        return scores

    def _taken(self, rows: IntArray) -> Iterator[tuple[slice, CodedTokens]]:
        """Runs of rising rows whose tokens are stored alike, with those: one product is faster than many."""
        parts = [
            (chosen, segment.tokens.take(rows[chosen] - segment.row.first_row))
            for chosen, segment in self._by_segment(rows)
        ]
        for _, group in groupby(parts, key=lambda part: id(part[1].codec)):
            run = list(group)
            yield (
                slice(run[0][0].start, run[-1][0].stop),
                CodedTokens.concatenate([coded for _, coded in run]),
            )

    def _by_segment(self, rows: IntArray) -> Iterator[tuple[slice, Segment]]:
        """Runs of rising rows that lie in one segment."""
        stops = np.searchsorted(rows, [segment.row.stop for segment in self.segments])
        start = 0
        for segment, stop in zip(self.segments, stops.tolist(), strict=True):
            if stop > start:
                yield slice(start, stop), segment
            start = stop


def best(rows: IntArray, scores: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """The k rows of the highest scores, best first; of equal scores the lower row is first."""
    if len(rows) > k:
        # Everything that ties with the k-th stays in, so that the row decides and not the partition.
        kth = -np.partition(-scores, k - 1)[k - 1]
        kept = np.flatnonzero(scores >= kth)
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]
