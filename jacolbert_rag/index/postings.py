"""Which documents have a token near each pooled vector: posting lists of a run of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jacolbert_rag.datatypes import FloatArray, IntArray, Uint32Array, Uint64Array, offsets_of

# Above so many cells, query tokens take turns over one row of gains rather than having a row each.
MAX_GAINS = 1 << 21


def are_lists(keys: Uint32Array | Uint64Array, offsets: Uint32Array, rows: Uint32Array, n_rows: int) -> bool:
    """Whether (n,) keys, (n + 1,) offsets and rows below n_rows are lists that can be followed safely."""
    return bool(
        offsets[0] == 0
        and offsets[-1] == len(rows)
        and np.all(offsets[1:] >= offsets[:-1])
        and np.all(keys[1:] > keys[:-1])
        and (not len(rows) or rows.max() < n_rows)
    )


@dataclass(frozen=True)
class Near:
    """The pooled vectors that a query's tokens take, each looked up once for all tokens.

    Attributes:
        vectors: (n,) uint32 distinct pooled vectors, rising: lists lie in this order, too.
        places: (q_tokens, k) int64, in `vectors`, of those near each token; the most similar is last.
        gains: (q_tokens, k) float32 what a document that one of them lists gains; not negative.
    """

    vectors: Uint32Array
    places: IntArray
    gains: FloatArray

    @classmethod
    def of(cls, pooled: IntArray, gains: FloatArray) -> Near:
        """From (q_tokens, k) pooled vectors, from the least similar to the most, and their gains."""
        # In the lists' own dtype: else a search converts all of a list first.
        vectors, places = np.unique(pooled.astype(np.uint32), return_inverse=True)
        return cls(vectors, places.reshape(pooled.shape), gains)


@dataclass(frozen=True)
class Postings:
    """Compressed sparse rows over the pooled vectors that list anything.

    Attributes:
        pooled: (n_lists,) uint32 pooled vectors, rising.
        offsets: (n_lists + 1,) uint32: list i is `rows[offsets[i]:offsets[i + 1]]`.
        rows: (n_entries,) uint32 rows of the run, counted from its first; rising within a list.
    """

    pooled: Uint32Array
    offsets: Uint32Array
    rows: Uint32Array

    @classmethod
    def of(cls, pooled: IntArray, rows: IntArray) -> Postings:
        """Lists of the distinct (pooled vector, row) pairs.

        Args:
            pooled: (n,) of each token.
            rows: (n,) of its document, below 2**32.
        """
        keys = (pooled.astype(np.uint64) << np.uint64(32)) | rows.astype(np.uint64)
        keys.sort()  # np.unique would hash them first, which takes ten times as long
        keys = keys[np.diff(keys, prepend=keys[:1] - np.uint64(1)) != 0]
        listed = (keys >> np.uint64(32)).astype(np.uint32)
        starts = np.flatnonzero(np.diff(listed, prepend=listed[:1] - np.uint32(1)))
        found = listed[starts]
        offsets = np.append(starts, len(keys)).astype(np.uint32)
        return cls(found, offsets, (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32))

    @classmethod
    def unpack(cls, packed: Uint32Array, n_rows: int) -> Postings:
        """What `packed` put into one array; views of it.

        Args:
            packed: (n,) uint32.
            n_rows: of the run.

        Raises:
            ValueError: the array is not what `packed` makes for such a run.
        """
        n = int(packed[0]) if len(packed) else -1
        if n < 0 or len(packed) < 2 * n + 2:
            raise ValueError("not an array of posting lists")
        lists = cls(packed[1 : n + 1], packed[n + 1 : 2 * n + 2], packed[2 * n + 2 :])
        if not are_lists(lists.pooled, lists.offsets, lists.rows, n_rows):
            raise ValueError("posting lists that contradict themselves")
        return lists

    def packed(self) -> Uint32Array:
        """(1 + n_lists + n_lists + 1 + n_entries,) uint32: n_lists, then the three arrays."""
        head = np.array([len(self.pooled)], dtype=np.uint32)
        return np.concatenate([head, self.pooled, self.offsets, self.rows])

    def pairs(self) -> tuple[IntArray, IntArray]:
        """(n_entries,) pooled vector and (n_entries,) row of every entry."""
        return np.repeat(self.pooled.astype(np.int64), np.diff(self.offsets)), self.rows.astype(np.int64)

    def gains(self, near: Near, n_rows: int) -> FloatArray:
        """What a query gains from each row, summed over its tokens.

        Args:
            near: what its tokens take.
            n_rows: of the run.

        Returns:
            (n_rows,) float32: sum over query tokens of the best gain among the pooled vectors that list the
            row; zero where none does.
        """
        if not len(self.pooled):
            return np.zeros(n_rows, dtype=np.float32)
        lists = np.minimum(np.searchsorted(self.pooled, near.vectors), len(self.pooled) - 1)
        first = self.offsets[lists].astype(np.int64)
        listed = self.offsets[lists + 1].astype(np.int64) - first
        listed[self.pooled[lists] != near.vectors] = 0
        starts, lengths, gains = first[near.places], listed[near.places], near.gains
        if len(starts) * n_rows <= MAX_GAINS:
            return self._gains_at_once(starts, lengths, gains, n_rows)
        total = np.zeros(n_rows, dtype=np.float32)
        best = np.zeros(n_rows, dtype=np.float32)
        for token in range(len(starts)):
            # Lists are joined from the least similar to the most, so that of a row's entries the best is
            # written last.
            best[self._joined(starts[token], lengths[token])] = np.repeat(gains[token], lengths[token])
            total += best
            best.fill(0)
        return total

    def _gains_at_once(
        self, starts: IntArray, lengths: IntArray, gains: FloatArray, n_rows: int
    ) -> FloatArray:
        best = np.zeros(len(starts) * n_rows, dtype=np.float32)
        tokens = np.repeat(np.arange(len(starts), dtype=np.int64) * n_rows, lengths.sum(axis=1))
        cells = tokens + self._joined(starts.ravel(), lengths.ravel())
        best[cells] = np.repeat(gains.ravel(), lengths.ravel())
        total: FloatArray = best.reshape(len(starts), n_rows).sum(axis=0)
        return total

    def _joined(self, starts: IntArray, lengths: IntArray) -> Uint32Array:
        """The rows of lists at these places, joined."""
        joined = offsets_of(lengths)
        index = np.repeat(starts - joined[:-1], lengths) + np.arange(joined[-1])
        rows: Uint32Array = self.rows[index]
        return rows
