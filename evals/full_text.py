"""Full-text search, measured without a model: BM25 over words, and over character bigrams."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from evals.protocol import Among, Found, one_by_one
from jacolbert_rag.config import LexicalConfig
from jacolbert_rag.datatypes import Document
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.terms import TermMaker
from jacolbert_rag.index.lexical import Lexicon, WordLists
from jacolbert_rag.index.snapshot import best

BM25_NAME, BIGRAM_NAME = "bm25", "bm25-bigram"
# MRR@10 on 4,506 queries of jaquad train against all 11,096 documents, at b .75: k1 .3 .8652, .4 .8677,
# .5 .8700, .6 .8698, .75 .8696, .9 .8678, 1.2 .8651, 1.5 .8604; at k1 .9: b .4 .8623, .6 .8664, .9 .8673.
# That was of words as they are written; nDCG@10 of 500 of those queries with folded ones: k1 .5, b .75 .9073;
# k1 .9, b .75 .8995; k1 .5, b .4 .9052.
BM25_K1 = LexicalConfig().k1
BM25_B = LexicalConfig().b
# Of character bigrams, as Lucene-based baselines of Japanese have them.
BIGRAM_K1, BIGRAM_B = 0.9, 0.4


class BM25:
    """The library's full-text search alone, without a model; only documents that share a term are found."""

    def __init__(
        self, documents: Sequence[Document], *, k1: float = BM25_K1, b: float = BM25_B, fold: bool = True
    ) -> None:
        """Index the documents; those without a term are never found.

        Args:
            documents: the corpus, of distinct ids.
            k1: saturation.
            b: normalisation by length.
            fold: count words in normalised form, else as they are written.
        """
        form = "folded" if fold else "surface"
        self._index(documents, TermMaker(fold=fold).terms, BM25_NAME, f"mecab-unidic-lite:{form}", k1, b)

    def _index(
        self, documents: Sequence[Document], terms: Any, name: str, kind: str, k1: float, b: float
    ) -> None:
        self.name = name
        self.settings: tuple[str, ...] = (f"k1:{k1}", f"b:{b}", "idf:lucene", kind)
        self._k1, self._b, self._terms = k1, b, terms
        # Ascending, so that of equal scores the lower id is first.
        ordered = sorted(documents, key=lambda document: document.id)
        self._ids = [document.id for document in ordered]
        self._rows = {id: row for row, id in enumerate(self._ids)}
        alive = np.ones(len(ordered), dtype=np.bool_)
        self._lists = WordLists.of([terms(document.passage) for document in ordered])
        self._lexicon = Lexicon([self._lists], alive)

    @property
    def n_bytes(self) -> int:
        """See `System`."""
        return self._lists.packed().nbytes

    def search_many(
        self, queries: Sequence[str], k: int, among: Sequence[Among] | None = None
    ) -> list[Found]:
        """See `System`."""
        return one_by_one(self, queries, k, among)

    def search(self, query: str, k: int, among: Among | None = None) -> Found:
        """See `System`."""
        scores = self._lexicon.bm25(self._terms(query), k1=self._k1, b=self._b)
        if among is None:
            rows = np.flatnonzero(scores)
        else:
            rows = np.array(sorted(self._rows[id] for id in among), dtype=np.int64)
            rows = rows[scores[rows] != 0]
        rows, found = best(rows, scores[rows], k)
        return {self._ids[row]: float(score) for row, score in zip(rows, found, strict=True)}


class BigramBM25(BM25):
    """BM25 over pairs of neighbouring characters, which needs no dictionary."""

    def __init__(self, documents: Sequence[Document], *, k1: float = BIGRAM_K1, b: float = BIGRAM_B) -> None:
        """Index the documents; see `BM25`."""
        self._index(documents, bigrams, BIGRAM_NAME, "character-bigrams", k1, b)


def bigrams(text: str) -> list[str]:
    """Neighbouring characters, in NFKC and without case; those with white space between are none."""
    normal = clean(text).casefold()
    return [a + b for word in normal.split() for a, b in pairwise(word)]
