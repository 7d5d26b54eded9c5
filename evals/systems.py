"""What is measured: full-text search, JaColBERT through candidates and exact, and both together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from jacolbert_rag.config import LexicalConfig, SearchConfig, SearchMode
from jacolbert_rag.datatypes import Document
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.terms import TermMaker
from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.index.lexical import Lexicon, list_words
from jacolbert_rag.index.snapshot import best

if TYPE_CHECKING:
    from jacolbert_rag import JaColBERTRetriever

BM25_NAME, CANDIDATES_NAME, EXACT_NAME, HYBRID_NAME = "bm25", "jacolbert", "jacolbert-exact", "hybrid"
KNOWN_SYSTEMS = (BM25_NAME, CANDIDATES_NAME, EXACT_NAME, HYBRID_NAME)

# MRR@10 on 4,506 queries of jaquad train against all 11,096 documents, at b .75: k1 .3 .8652, .4 .8677,
# .5 .8700, .6 .8698, .75 .8696, .9 .8678, 1.2 .8651, 1.5 .8604; at k1 .9: b .4 .8623, .6 .8664, .9 .8673.
# That was of words as they are written; nDCG@10 of 500 of those queries with folded ones: k1 .5, b .75 .9073;
# k1 .9, b .75 .8995; k1 .5, b .4 .9052.
BM25_K1 = LexicalConfig().k1
BM25_B = LexicalConfig().b

LATENCY_QUERIES = 50
LATENCY_K = 10
WARM_UP_QUERIES = 3


class System(Protocol):
    """A way to find documents. Results map document id to score, best first, ties by ascending id.

    Attributes:
        name: what `--system` calls it.
        settings: what else its figures depend on, in words for the signature.
    """

    name: str
    settings: tuple[str, ...]

    def search_many(self, queries: Sequence[str], k: int) -> list[dict[str, float]]:
        """The best k documents of each query; fewer where fewer are found."""

    def search(self, query: str, k: int) -> dict[str, float]:
        """The same for one query; this is what latency is measured on."""


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
        self.name = BM25_NAME
        form = "folded" if fold else "surface"
        self.settings: tuple[str, ...] = (f"k1:{k1}", f"b:{b}", "idf:lucene", f"mecab-unidic-lite:{form}")
        self._k1, self._b, self._terms = k1, b, TermMaker(fold=fold)
        # Ascending, so that of equal scores the lower id is first.
        ordered = sorted(documents, key=lambda document: document.id)
        self._ids = [document.id for document in ordered]
        alive = np.ones(len(ordered), dtype=np.bool_)
        self._lexicon = Lexicon([list_words(ordered, self._terms)], alive)

    def search_many(self, queries: Sequence[str], k: int) -> list[dict[str, float]]:
        """See `System`."""
        return [self.search(query, k) for query in queries]

    def search(self, query: str, k: int) -> dict[str, float]:
        """See `System`."""
        scores = self._lexicon.bm25(self._terms.terms(query), k1=self._k1, b=self._b)
        rows, found = best(np.flatnonzero(scores), scores[scores != 0], k)
        return {self._ids[row]: float(score) for row, score in zip(rows, found, strict=True)}


class JaColBERT:
    """An index of the library, searched in one of its ways."""

    def __init__(self, engine: JaColBERTRetriever, name: str) -> None:
        """Take an index from `build_engine`; several systems may share it."""
        self.name = name
        self._engine = engine
        self._exact = name == EXACT_NAME
        self._mode: SearchMode = "hybrid" if name == HYBRID_NAME else "jacolbert"
        lexical = engine.settings.lexical
        weight = f":{lexical.weight}" if lexical.fusion == "min-max" else f":{lexical.weight}:{lexical.rrf_k}"
        fused = (
            f"{lexical.fusion}{weight}",
            f"n_fused:{lexical.n_fused}",
            f"k1:{lexical.k1}",
            f"b:{lexical.b}",
            f"mecab-unidic-lite:{'folded' if lexical.fold else 'surface'}",
        )
        settings = _engine_settings(engine, exact=self._exact)
        self.settings = settings + (fused if self._mode == "hybrid" else ())

    def search_many(self, queries: Sequence[str], k: int) -> list[dict[str, float]]:
        """See `System`."""
        found = self._engine.search_many(queries, k, exact=self._exact, mode=self._mode)
        return [{hit.id: hit.score for hit in hits} for hits in found]

    def search(self, query: str, k: int) -> dict[str, float]:
        """See `System`."""
        hits = self._engine.search(query, k, exact=self._exact, mode=self._mode)
        return {hit.id: hit.score for hit in hits}


def check_names(names: Sequence[str]) -> None:
    """Refuse a system that is not there, or is named twice.

    Raises:
        InvalidInputError: with the names that are known.
    """
    for i, name in enumerate(names):
        if name not in KNOWN_SYSTEMS:
            raise InvalidInputError(f"there is no system {name!r}; known are {', '.join(KNOWN_SYSTEMS)}.")
        if name in names[:i]:
            raise InvalidInputError(f"the system {name!r} is named twice. Name it once.")


def build(names: Sequence[str], documents: Sequence[Document], *, model: str | None) -> Iterator[System]:
    """Each named system in turn, ready to search; those of JaColBERT share one index.

    Args:
        names: some of KNOWN_SYSTEMS.
        documents: the corpus, of distinct ids.
        model: a folder or a hub id; None is the bundled model.

    Raises:
        CheckpointError: the model cannot be read.
        OptionalDependencyError: a package of the extra `evals` is not installed.
    """
    check_names(names)
    engine: JaColBERTRetriever | None = None
    try:
        for name in names:
            if name == BM25_NAME:
                yield BM25(documents)
                continue
            if engine is None:
                engine = build_engine(
                    documents, model=model, candidates=CANDIDATES_NAME in names or HYBRID_NAME in names
                )
            yield JaColBERT(engine, name)
    finally:
        if engine is not None:
            engine.close()


def build_engine(
    documents: Sequence[Document], *, model: str | None, candidates: bool = True
) -> JaColBERTRetriever:
    """An index in a temporary folder; documents without text are left out, and so never found.

    Args:
        documents: the corpus, of distinct ids.
        model: a folder or a hub id; None is the bundled model.
        candidates: build them, however small the corpus is; without them every search is exact.
    """
    from jacolbert_rag import IndexSettings, JaColBERTRetriever

    exact_below = 0 if candidates else len(documents) + 1
    settings = IndexSettings(search=SearchConfig(exact_below=exact_below))
    engine = JaColBERTRetriever.from_pretrained(model, settings=settings)
    with_text = sorted(
        (document for document in documents if clean(document.passage).strip()),
        key=lambda document: document.id,
    )
    # Equal scores are ordered by row: ascending id, when documents arrive in that order.
    engine.add(with_text, progress=True)
    return engine


def latency_ms(system: System, queries: Sequence[str], *, k: int = LATENCY_K) -> dict[str, float]:
    """p50 and p95 in milliseconds of single calls, one query each, after a few that are not counted.

    Args:
        system: is warm afterwards; the caller's own batch search warms it further.
        queries: up to 50 are taken, spread evenly.
        k: hits asked for.
    """
    rows = np.unique(
        np.linspace(0, len(queries) - 1, min(LATENCY_QUERIES, len(queries))).round().astype(np.int64)
    )
    sample = [queries[row] for row in rows]
    for query in sample[:WARM_UP_QUERIES]:
        system.search(query, k)
    times = []
    for query in sample:
        start = time.perf_counter()
        system.search(query, k)
        times.append(1_000 * (time.perf_counter() - start))
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def _engine_settings(engine: JaColBERTRetriever, *, exact: bool) -> tuple[str, ...]:
    checkpoint, settings = engine.encoder.checkpoint, engine.settings
    # A folder's place on this machine says nothing elsewhere; the fingerprint tells models apart.
    folder = Path(checkpoint.name)
    model = folder.resolve().name if folder.is_dir() else checkpoint.name
    candidates = settings.candidates
    proposed = (
        f"n_nearest:{candidates.n_nearest}",
        f"n_candidates:{candidates.n_candidates}",
        f"ef:{candidates.ef_search}",
    )
    return (
        f"{model}@{checkpoint.fingerprint[:8]}",
        f"pool:{settings.pooling.factor}",
        settings.store.dtype,
        f"compute:{str(engine.encoder.dtype).removeprefix('torch.')}",
        *(() if exact else proposed),
        f"qlen:{checkpoint.config.query_length}",
        f"dlen:{checkpoint.config.document_length}",
    )
