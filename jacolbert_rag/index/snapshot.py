"""One committed state of an index, searched: never changed, so any number of threads may look at it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import numpy as np

from jacolbert_rag.config import CandidateConfig
from jacolbert_rag.datatypes import BoolArray, FloatArray, IntArray, TokenArray, TokenEmbeddings
from jacolbert_rag.index.candidates import PooledVectors
from jacolbert_rag.index.database import SegmentRow
from jacolbert_rag.index.lexical import Lexicon, WordLists
from jacolbert_rag.index.maxsim import maxsim, maxsim_many
from jacolbert_rag.index.postings import Postings
from jacolbert_rag.index.quantize import CodedTokens

SEARCH_QUERIES = 32  # queries scored at once by exact search, so that each segment is read once for them
CANDIDATES_PER_HIT = 2  # documents scored exactly for each hit asked for, at least
# A filter may take away just what is near a query, and what is left is told apart worse: of exact search's
# top 10 without its 100 best of 9,665 passages, 96 candidates had .47, 192 .66 and 384 .84, in 10, 16 and
# 25 ms.
FILTER_WIDENS = 2
SELECTIVE = 4  # where fewer than one in so many rows may be found, exact search takes them out one by one


@dataclass(frozen=True)
class Segment:
    """A run of rows.

    Attributes:
        row: what the database says of it.
        tokens: their token embeddings; dead rows have none, or the old ones.
        postings: lists of its rows, counted from its first; None where they are not listed.
        words: word lists of its rows; None where they are not listed.
    """

    row: SegmentRow
    tokens: CodedTokens
    postings: Postings | None
    words: WordLists | None = None


@dataclass
class Made:
    """What is made of a snapshot when it is first asked for; several threads may make it at once."""

    lexicon: Lexicon | None = None


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
        made: what was made of it since.
    """

    generation: int
    segments: tuple[Segment, ...]
    live: BoolArray
    pooled: PooledVectors | None
    dim: int
    device: str = "cpu"
    made: Made = field(default_factory=Made, compare=False)

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

    def without(self, rows: Sequence[int]) -> Snapshot:
        """This state as if these rows had never been: full-text search does not count them either."""
        live = self.live.copy()
        live[list(rows)] = False
        return replace(self, live=live, made=Made())

    def rows(self, allowed: BoolArray | None = None) -> IntArray:
        """Live rows, rising; those of them that may be found."""
        return np.flatnonzero(self.live if allowed is None else allowed)

    def search_exact(
        self, queries: TokenEmbeddings, k: int, allowed: BoolArray | None = None
    ) -> list[tuple[IntArray, FloatArray]]:
        """The best k live rows of all, and their scores, for each query.

        Args:
            queries: any number.
            k: hits wanted of each.
            allowed: (n_rows,) live rows that may be found; None for all that are alive.
        """
        found = []
        rows = self.rows(allowed)
        if SELECTIVE * len(rows) < self.n_live:  # so few that taking them out of the files pays
            return [best(rows, self.scores(query, rows), k) for query in queries]
        for start in range(0, len(queries), SEARCH_QUERIES):
            batch = queries.take(range(start, min(start + SEARCH_QUERIES, len(queries))))
            scores = np.concatenate(
                [maxsim_many(batch, segment.tokens, device=self.device) for segment in self.segments], axis=1
            )
            found += [best(rows, row[rows], k) for row in scores]
        return found

    def search_candidates(
        self, query: TokenArray, k: int, config: CandidateConfig, allowed: BoolArray | None = None
    ) -> tuple[IntArray, FloatArray]:
        """The best k of the candidates' rows, and their scores; exact where too few are listed near it."""
        rows = self.candidates(query, max(config.n_candidates, CANDIDATES_PER_HIT * k), config, allowed)
        if len(rows) < k:
            whole = TokenEmbeddings(query, np.array([0, len(query)], dtype=np.int64))
            return self.search_exact(whole, k, allowed)[0]
        return best(rows, self.scores(query, rows), k)

    def candidates(
        self, query: TokenArray, n: int, config: CandidateConfig, allowed: BoolArray | None = None
    ) -> IntArray:
        """Rows worth an exact score, rising: `propose`; with a filter more of them, or all where few pass."""
        if allowed is not None:
            n *= FILTER_WIDENS
            if np.count_nonzero(allowed) <= n:
                return np.flatnonzero(allowed)
        return np.sort(self.propose(query, n, config, allowed))

    def propose(
        self, query: TokenArray, n: int, config: CandidateConfig, allowed: BoolArray | None = None
    ) -> IntArray:
        """Rows worth an exact score: n at most of those that are listed, and all that are not listed yet.

        What may not be found is left out before the n best are chosen, not after.
        """
        alive = self.live if allowed is None else allowed
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
        total[~alive] = 0
        proposed: IntArray = np.flatnonzero(total)
        if len(proposed) > n:
            proposed = proposed[np.argpartition(-total[proposed], n - 1)[:n]]
        fresh = np.concatenate([np.empty(0, dtype=np.int64), *unlisted])
        return np.concatenate([proposed, fresh[alive[fresh]]])

    def scores(self, query: TokenArray, rows: IntArray) -> FloatArray:
        """(n,) float32 exact MaxSim of a query and these rows, which rise."""
        scores = np.empty(len(rows), dtype=np.float32)
        for chosen, tokens in self._taken(rows):
            scores[chosen] = maxsim(query, tokens, device=self.device)
        return scores

    def tokens(self, rows: IntArray) -> list[TokenArray]:
        """(d_tokens, dim) token embeddings of each of these rows, which rise."""
        found: list[TokenArray] = []
        for _, coded in self._taken(rows):
            flat, starts = coded.codec.decode(coded.codes), coded.offsets
            found += [flat[starts[i] : starts[i + 1]] for i in range(len(coded))]
        return found

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
