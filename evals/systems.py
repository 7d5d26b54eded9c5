"""What is measured: BM25 over MeCab words, and JaColBERT through candidates and exact."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jacolbert_rag.config import SearchConfig
from jacolbert_rag.datatypes import Document
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.words import WordSegmenter
from jacolbert_rag.errors import InvalidInputError, OptionalDependencyError

if TYPE_CHECKING:
    from jacolbert_rag import JaColBERTRetriever

BM25_NAME, CANDIDATES_NAME, EXACT_NAME = "bm25", "jacolbert", "jacolbert-exact"
KNOWN_SYSTEMS = (BM25_NAME, CANDIDATES_NAME, EXACT_NAME)

# MRR@10 on 4,506 queries of jaquad train against all 11,096 documents, at b .75: k1 .3 .8652, .4 .8677,
# .5 .8700, .6 .8698, .75 .8696, .9 .8678, 1.2 .8651, 1.5 .8604; at k1 .9: b .4 .8623, .6 .8664, .9 .8673.
# Lower-cased words: -.0003 at k1 .9, b .75, and no better at five other settings.
BM25_K1 = 0.5
BM25_B = 0.75

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
    """bm25s over the surface forms of MeCab's words; only documents that share a word are found."""

    def __init__(self, documents: Sequence[Document], *, k1: float = BM25_K1, b: float = BM25_B) -> None:
        """Index the documents; those without a word are never found.

        Raises:
            OptionalDependencyError: bm25s is not installed.
        """
        try:
            import bm25s
        except ModuleNotFoundError as error:
            if error.name != "bm25s":
                raise
            raise OptionalDependencyError(
                "The system bm25 needs bm25s, which is not installed. Run: pip install 'jacolbert-rag[evals]'"
            ) from error
        self.name = BM25_NAME
        self.settings: tuple[str, ...] = (
            f"k1:{k1}",
            f"b:{b}",
            "idf:lucene",
            "mecab-unidic-lite:surface",
            f"bm25s{version('bm25s')}",
        )
        self._segmenter = WordSegmenter()
        self._ids: list[str] = []  # ascending, so that a stable sort breaks ties by id
        words = []
        for document in sorted(documents, key=lambda document: document.id):
            if found := self._words(document.passage):
                self._ids.append(document.id)
                words.append(found)
        # Lucene's idf is positive, so a score is above 0 exactly where a word is shared.
        self._index: Any = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._index.index(words, show_progress=False)

    def search_many(self, queries: Sequence[str], k: int) -> list[dict[str, float]]:
        """See `System`."""
        return [self.search(query, k) for query in queries]

    def search(self, query: str, k: int) -> dict[str, float]:
        """See `System`."""
        words = self._words(query)
        if not words:  # bm25s raises IndexError
            return {}
        # Not `retrieve`, which leaves the order of equal scores to a partition.
        scores = self._index.get_scores(words)
        rows = np.flatnonzero(scores > 0)
        if len(rows) > k:
            kth = np.partition(scores[rows], -k)[-k]
            rows = rows[scores[rows] >= kth]  # all that tie with the k-th stay in
        best = rows[np.argsort(-scores[rows], kind="stable")][:k]
        return {self._ids[row]: float(scores[row]) for row in best}

    def _words(self, text: str) -> list[str]:
        return self._segmenter.words(clean(text))


class JaColBERT:
    """An index of the library, searched through its candidates or exactly."""

    def __init__(self, engine: JaColBERTRetriever, *, exact: bool) -> None:
        """Take an index from `build_engine`; several systems may share it."""
        self.name = EXACT_NAME if exact else CANDIDATES_NAME
        self.settings = _engine_settings(engine, exact=exact)
        self._engine = engine
        self._exact = exact

    def search_many(self, queries: Sequence[str], k: int) -> list[dict[str, float]]:
        """See `System`."""
        found = self._engine.search_many(queries, k, exact=self._exact)
        return [{hit.id: hit.score for hit in hits} for hits in found]

    def search(self, query: str, k: int) -> dict[str, float]:
        """See `System`."""
        return {hit.id: hit.score for hit in self._engine.search(query, k, exact=self._exact)}


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
                engine = build_engine(documents, model=model, candidates=CANDIDATES_NAME in names)
            yield JaColBERT(engine, exact=name == EXACT_NAME)
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
