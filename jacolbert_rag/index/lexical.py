"""Full-text search: which documents have which terms, and BM25 over them.

A run of rows has word lists of its own, as it has token embeddings: they are made, merged and removed with
it. What BM25 takes from the whole corpus (documents with a term, mean length) is summed over the runs and
counts live documents only, so scores are those of a corpus in which deleted ones have never been. Well-kept
libraries (bm25s, SQLite's FTS5) were tried: the one cannot add a document, the other takes ten times as long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jacolbert_rag.datatypes import (
    BoolArray,
    Document,
    FloatArray,
    IntArray,
    Uint16Array,
    Uint32Array,
    Uint64Array,
)
from jacolbert_rag.encode.terms import TERMS_VERSION, TermMaker
from jacolbert_rag.index.postings import are_lists

MAX_COUNT = 0xFFFF  # of one term in one document; BM25 has long been saturated there
# Of a word that no document has, in coverage; see `jacolbert_rag.calibration` for how it was chosen.
UNKNOWN_WEIGHT = 0.5
MAX_KNOWN = 4_096  # terms whose lists a state remembers
_HEAD = 4  # numbers before the arrays of packed lists


@lru_cache(maxsize=200_000)
def key_of(term: str) -> int:
    """64 bits for a term: among ten million terms two share a key with a chance of 3 in a million."""
    return int.from_bytes(hashlib.blake2b(term.encode("utf-8", "replace"), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class WordLists:
    """Compressed sparse rows: the documents of each term, and how often it occurs in them.

    Attributes:
        keys: (n_terms,) uint64 of terms, rising.
        offsets: (n_terms + 1,) uint32: list i is `rows[offsets[i]:offsets[i + 1]]`.
        rows: (n_entries,) uint32 rows of the run, counted from its first; rising within a list.
        counts: (n_entries,) uint16: occurrences, `MAX_COUNT` at most.
        lengths: (n_rows,) uint32: terms of each row.
    """

    keys: Uint64Array
    offsets: Uint32Array
    rows: Uint32Array
    counts: Uint16Array
    lengths: Uint32Array

    @classmethod
    def of(cls, terms: Sequence[Sequence[str]]) -> WordLists:
        """Lists of documents that have these terms."""
        lengths = np.array([len(each) for each in terms], dtype=np.int64)
        keys = np.fromiter(
            (key_of(term) for each in terms for term in each), dtype=np.uint64, count=int(lengths.sum())
        )
        ones = np.ones(len(keys), dtype=np.int64)
        return cls._sorted(keys, np.repeat(np.arange(len(terms)), lengths), ones, lengths)

    @classmethod
    def _sorted(cls, keys: Uint64Array, rows: IntArray, counts: IntArray, lengths: IntArray) -> WordLists:
        """Lists of (key, row, count), those of one key and row added up."""
        order = np.lexsort((rows, keys))
        keys, rows = keys[order], rows[order]
        is_first = np.ones(len(keys), dtype=np.bool_)
        is_first[1:] = (keys[1:] != keys[:-1]) | (rows[1:] != rows[:-1])
        entries = np.flatnonzero(is_first)
        totals = np.add.reduceat(counts[order], entries) if len(entries) else counts[order]
        keys, rows = keys[entries], rows[entries]
        starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - np.uint64(1)))
        return cls(
            keys[starts],
            np.append(starts, len(keys)).astype(np.uint32),
            rows.astype(np.uint32),
            np.minimum(totals, MAX_COUNT).astype(np.uint16),
            lengths.astype(np.uint32),
        )

    @classmethod
    def joined(cls, parts: Sequence[WordLists], numbers: Sequence[IntArray], n_rows: int) -> WordLists:
        """The lists of several runs as those of one.

        Args:
            parts: of each run.
            numbers: for each run (n_rows of it,) the new number of each row; -1 leaves the row out.
            n_rows: of the new run.
        """
        keys, rows, counts = [np.empty(0, dtype=np.uint64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        lengths = np.zeros(n_rows, dtype=np.int64)
        for part, new in zip(parts, numbers, strict=True):
            moved = new[part.rows.astype(np.int64)]
            kept = moved >= 0
            keys.append(np.repeat(part.keys, np.diff(part.offsets))[kept])
            rows.append(moved[kept])
            counts.append(part.counts[kept].astype(np.int64))
            lengths[new[new >= 0]] = part.lengths[new >= 0]
        return cls._sorted(np.concatenate(keys), np.concatenate(rows), np.concatenate(counts), lengths)

    @classmethod
    def unpack(cls, packed: Uint32Array, n_rows: int) -> WordLists | None:
        """What `packed` put into one array; views of it.

        Args:
            packed: (n,) uint32.
            n_rows: of the run.

        Returns:
            None where they list terms of another version of the library, which a query does not have.

        Raises:
            ValueError: the array is not what `packed` makes for such a run.
        """
        n_terms, n_entries, n_lengths = (int(n) for n in packed[:3]) if len(packed) >= _HEAD else (0, 0, -1)
        sizes = [2 * n_terms, n_terms + 1, n_entries, -(-n_entries // 2), n_lengths]
        if n_lengths != n_rows or len(packed) != _HEAD + sum(sizes):
            raise ValueError("not an array of word lists")
        if packed[_HEAD - 1] != TERMS_VERSION:
            return None
        stops = np.cumsum(sizes)[:-1]
        keys, offsets, rows, counts, lengths = np.split(packed[_HEAD:], stops)
        lists = cls(keys.view(np.uint64), offsets, rows, counts.view(np.uint16)[:n_entries], lengths)
        if not are_lists(lists.keys, lists.offsets, lists.rows, n_rows):
            raise ValueError("word lists that contradict themselves")
        return lists

    def packed(self) -> Uint32Array:
        """One uint32 array: sizes and terms' version, then keys, offsets, rows, counts by two, lengths."""
        n_entries = len(self.rows)
        head = np.array([len(self.keys), n_entries, len(self.lengths), TERMS_VERSION], np.uint32)
        counts = np.zeros(n_entries + n_entries % 2, dtype=np.uint16)
        counts[:n_entries] = self.counts
        keys = np.ascontiguousarray(self.keys).view(np.uint32)
        return np.concatenate([head, keys, self.offsets, self.rows, counts.view(np.uint32), self.lengths])

    def entries(self, keys: Uint64Array) -> Iterator[slice]:
        """Where in `rows` and `counts` the list of each of these terms lies; empty for an unknown one."""
        places = np.searchsorted(self.keys, keys)
        for key, place in zip(keys, places.tolist(), strict=True):
            is_there = place < len(self.keys) and self.keys[place] == key
            yield slice(int(self.offsets[place]), int(self.offsets[place + 1])) if is_there else slice(0, 0)


def list_words(documents: Sequence[Document | None], terms: TermMaker) -> WordLists:
    """The lists of a run of documents, one a row; None where a row is dead."""
    return WordLists.of([terms.terms(each.passage) if each is not None else [] for each in documents])


class Lexicon:
    """Word lists of a committed state's runs, and which of their rows are alive."""

    def __init__(self, lists: Sequence[WordLists], live: BoolArray) -> None:
        """Take the lists of all runs, in order of rows."""
        self._lists = tuple(lists)
        self._live = live
        self._known: dict[str, tuple[int, list[tuple[int, Uint32Array]]]] = {}
        empty = np.empty(0, dtype=np.uint32)
        self.lengths = np.concatenate([empty, *(each.lengths for each in self._lists)])
        self.n_live = int(np.count_nonzero(live))
        self.mean_length = float(self.lengths[live].mean()) if self.n_live else 0.0

    def _entries(self, terms: Sequence[str]) -> list[tuple[IntArray, Uint16Array]]:
        """The live rows of each term, rising, and how often it occurs in them."""
        keys = np.array([key_of(term) for term in terms], dtype=np.uint64)
        parts: list[list[tuple[IntArray, Uint16Array]]] = [[] for _ in terms]
        first = 0
        for lists in self._lists:
            for part, entries in zip(parts, lists.entries(keys), strict=True):
                if len(rows := lists.rows[entries].astype(np.int64) + first):
                    alive = self._live[rows]
                    part.append((rows[alive], lists.counts[entries][alive]))
            first += len(lists.lengths)
        nothing = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint16))
        return [
            (np.concatenate([r for r, _ in part]), np.concatenate([c for _, c in part])) if part else nothing
            for part in parts
        ]

    def _idf(self, n: int) -> float:
        """Lucene's: positive, so that a score is above 0 exactly where a term is shared."""
        return float(np.log1p((self.n_live - n + 0.5) / (n + 0.5)))

    def bm25(self, terms: Sequence[str], *, k1: float, b: float) -> FloatArray:
        """Scores of all rows; 0 for those that share no term with the query, and for dead ones.

        As Lucene has it since version 8: without the constant factor k1 + 1.

        Args:
            terms: of a query; one that occurs twice counts twice.
            k1: saturation.
            b: normalisation by length.

        Returns:
            (n_rows,) float32.
        """
        scores = np.zeros(len(self._live), dtype=np.float32)
        distinct = _counted(terms)
        mean = max(self.mean_length, 1.0)
        for (rows, counts), times in zip(self._entries(list(distinct)), distinct.values(), strict=True):
            norms = k1 * (1 - b + b * self.lengths[rows] / mean)
            scores[rows] += times * self._idf(len(rows)) * counts / (counts + norms)
        return scores

    def coverage(self, weights: Mapping[str, float], rows: IntArray) -> FloatArray:
        """The share of a query's terms that documents have, each term counted by its idf and its weight.

        A word that no document has counts less: it may be another one for what the corpus calls otherwise.
        A model number or a Latin name has no other, and counts in full.

        Args:
            weights: terms of a query, with how much each says by itself.
            rows: (n,).

        Returns:
            (n,) float32 within [0, 1]; 0 where the query has no terms.
        """
        total = np.zeros(len(rows), dtype=np.float64)
        worth = 0.0
        for term, weight in weights.items():
            n_having, lists = self._found(term)
            value = weight * self._idf(n_having)
            for first, having in lists:
                # Of one dtype, or numpy would copy all of the list.
                wanted = np.maximum(rows - first, 0).astype(np.uint32)
                places = np.minimum(np.searchsorted(having, wanted), len(having) - 1)
                total += value * ((having[places] == wanted) & (rows >= first))
            if not n_having and not term.isascii():
                value *= UNKNOWN_WEIGHT
            worth += value
        return (total / worth if worth else total).astype(np.float32)

    def _found(self, term: str) -> tuple[int, list[tuple[int, Uint32Array]]]:
        """How many live documents have a term; and its rows in each run, dead ones too, with the run's first.

        Remembered: a query's terms are asked of again and again, and a common one has long lists.
        """
        if (found := self._known.get(term)) is None:
            key = np.array([key_of(term)], dtype=np.uint64)
            n, first, runs = 0, 0, []
            for lists in self._lists:
                (entries,) = lists.entries(key)
                if len(having := lists.rows[entries]):
                    n += int(np.count_nonzero(self._live[having.astype(np.int64) + first]))
                    runs.append((first, having))
                first += len(lists.lengths)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            found = self._known[term] = (n, runs)
        return found


def _counted(terms: Sequence[str]) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for term in terms:
        counts[term] = counts.get(term, 0) + 1
    return counts
