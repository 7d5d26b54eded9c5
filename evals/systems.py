"""What is measured: full-text search, JaColBERT in its ways, both together, and other models."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jacolbert_rag.config import LexicalConfig, SearchConfig, SearchMode
from jacolbert_rag.datatypes import Document
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.terms import TermMaker
from jacolbert_rag.errors import InvalidInputError, OptionalDependencyError
from jacolbert_rag.index.filters import Ids
from jacolbert_rag.index.lexical import Lexicon, WordLists
from jacolbert_rag.index.snapshot import best

if TYPE_CHECKING:
    from jacolbert_rag import JaColBERTRetriever

BM25_NAME, BIGRAM_NAME = "bm25", "bm25-bigram"
CANDIDATES_NAME, EXACT_NAME, HYBRID_NAME, RERANK_NAME = "jacolbert", "jacolbert-exact", "hybrid", "rerank"
KNOWN_SYSTEMS = (BM25_NAME, BIGRAM_NAME, CANDIDATES_NAME, EXACT_NAME, HYBRID_NAME, RERANK_NAME)
# With a model behind the colon.
DENSE_PREFIX, CROSS_ENCODER_PREFIX = "dense:", "cross-encoder:"
OF_ENGINE = (CANDIDATES_NAME, EXACT_NAME, HYBRID_NAME, RERANK_NAME)

# MRR@10 on 4,506 queries of jaquad train against all 11,096 documents, at b .75: k1 .3 .8652, .4 .8677,
# .5 .8700, .6 .8698, .75 .8696, .9 .8678, 1.2 .8651, 1.5 .8604; at k1 .9: b .4 .8623, .6 .8664, .9 .8673.
# That was of words as they are written; nDCG@10 of 500 of those queries with folded ones: k1 .5, b .75 .9073;
# k1 .9, b .75 .8995; k1 .5, b .4 .9052.
BM25_K1 = LexicalConfig().k1
BM25_B = LexicalConfig().b
# Of character bigrams, as Lucene-based baselines of Japanese have them.
BIGRAM_K1, BIGRAM_B = 0.9, 0.4

RERANKED = 100  # documents of full-text search that a second stage orders anew
LATENCY_QUERIES = 50
LATENCY_K = 10
WARM_UP_QUERIES = 3

Among = Sequence[str]  # ids of the documents that a query may find
Found = dict[str, float]  # document id -> score, best first, ties by ascending id


class System(Protocol):
    """A way to find documents.

    Attributes:
        name: what `--system` calls it.
        settings: what else its figures depend on, in words for the signature.
        n_bytes: of all that it keeps of the corpus; None where that is not known.
    """

    name: str
    settings: tuple[str, ...]

    @property
    def n_bytes(self) -> int | None:
        """See above."""

    def search_many(
        self, queries: Sequence[str], k: int, among: Sequence[Among] | None = None
    ) -> list[Found]:
        """The best k documents of each query; fewer where fewer are found.

        Args:
            queries: any texts.
            k: at least 1.
            among: for each query, the documents that it ranks; None is the whole corpus for all.
        """

    def search(self, query: str, k: int, among: Among | None = None) -> Found:
        """The same for one query; this is what latency is measured on."""


def one_by_one(system: System, queries: Sequence[str], k: int, among: Sequence[Among] | None) -> list[Found]:
    """`System.search_many` of a system that gains nothing from many."""
    allowed: Sequence[Among | None] = among if among is not None else [None] * len(queries)
    return [system.search(query, k, own) for query, own in zip(queries, allowed, strict=True)]


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


class JaColBERT:
    """An index of the library, searched in one of its ways."""

    def __init__(self, engine: JaColBERTRetriever, name: str, *, first: BM25 | None = None) -> None:
        """Take an index from `build_engine`; several systems may share it.

        Args:
            engine: the index.
            name: one of OF_ENGINE.
            first: finds the documents that "rerank" orders.
        """
        self.name = name
        self._engine = engine
        self._first = first if name == RERANK_NAME else None
        self._exact = name in (EXACT_NAME, RERANK_NAME)
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
        self.settings = _engine_settings(engine, exact=self._exact)
        self.settings += fused if self._mode == "hybrid" else ()
        if self._first is not None:
            self.settings += (f"of:{self._first.name}:{RERANKED}", *self._first.settings)

    @property
    def n_bytes(self) -> int | None:
        """See `System`: the whole folder, texts included; None where it is a temporary one."""
        path = self._engine.path
        if path is None:
            return None
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    def search_many(
        self, queries: Sequence[str], k: int, among: Sequence[Among] | None = None
    ) -> list[Found]:
        """See `System`."""
        if self._first is not None or among is not None:
            return one_by_one(self, queries, k, among)
        found = self._engine.search_many(queries, k, exact=self._exact, mode=self._mode)
        return [{hit.id: hit.score for hit in hits} for hits in found]

    def search(self, query: str, k: int, among: Among | None = None) -> Found:
        """See `System`."""
        if self._first is not None:
            among = list(self._first.search(query, RERANKED, among))
            if not among:
                return {}
        allowed = None if among is None else Ids(frozenset(among))
        hits = self._engine.search(query, k, exact=self._exact, mode=self._mode, filter=allowed)
        return {hit.id: hit.score for hit in hits}


class Dense:
    """One vector a document, from a sentence-transformers model, all of them compared."""

    def __init__(self, documents: Sequence[Document], model: str, *, name: str | None = None) -> None:
        """Embed the documents.

        Args:
            documents: the corpus, of distinct ids.
            model: a folder or a hub id; its own prompts for queries and documents are used.
            name: for results.

        Raises:
            OptionalDependencyError: sentence-transformers is not installed.
        """
        self._model = sentence_transformers().SentenceTransformer(model, trust_remote_code=False)
        self.name = name or f"{DENSE_PREFIX}{model}"
        ordered = sorted(documents, key=lambda document: document.id)
        self._ids = [document.id for document in ordered]
        self._rows = {id: row for row, id in enumerate(self._ids)}
        passages = [document.passage for document in ordered]
        self._vectors = self._model.encode_document(
            passages, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        ).astype(np.float32)
        length = getattr(self._model, "max_seq_length", None)
        self.settings: tuple[str, ...] = (f"dim:{self._vectors.shape[1]}", f"length:{length}", "exact")

    @property
    def n_bytes(self) -> int:
        """See `System`."""
        return int(self._vectors.nbytes)

    def search_many(
        self, queries: Sequence[str], k: int, among: Sequence[Among] | None = None
    ) -> list[Found]:
        """See `System`."""
        asked = self._model.encode_query(
            list(queries), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        found = []
        for i, query in enumerate(asked.astype(np.float32)):
            rows = np.arange(len(self._ids))
            if among is not None:
                rows = np.array(sorted(self._rows[id] for id in among[i]), dtype=np.int64)
            rows, scores = best(rows, self._vectors[rows] @ query, k)
            found.append({self._ids[row]: float(score) for row, score in zip(rows, scores, strict=True)})
        return found

    def search(self, query: str, k: int, among: Among | None = None) -> Found:
        """See `System`."""
        return self.search_many([query], k, None if among is None else [among])[0]


class CrossEncoder:
    """A model that reads a question and a document together, over what full-text search finds first."""

    def __init__(
        self, documents: Sequence[Document], model: str, *, first: BM25, name: str | None = None
    ) -> None:
        """Load the model.

        Args:
            documents: the corpus, of distinct ids.
            model: a folder or a hub id.
            first: finds the documents that are ordered.
            name: for results.

        Raises:
            OptionalDependencyError: sentence-transformers is not installed.
        """
        self._model = sentence_transformers().CrossEncoder(model, trust_remote_code=False)
        self.name = name or f"{CROSS_ENCODER_PREFIX}{model}"
        self._passages = {document.id: document.passage for document in documents}
        self._first = first
        length = getattr(self._model, "max_length", None)
        self.settings: tuple[str, ...] = (f"length:{length}", f"of:{first.name}:{RERANKED}", *first.settings)

    @property
    def n_bytes(self) -> int | None:
        """See `System`."""
        return self._first.n_bytes

    def search_many(
        self, queries: Sequence[str], k: int, among: Sequence[Among] | None = None
    ) -> list[Found]:
        """See `System`."""
        return one_by_one(self, queries, k, among)

    def search(self, query: str, k: int, among: Among | None = None) -> Found:
        """See `System`."""
        # A query's own candidates are all ordered, those without a shared word too.
        ids = sorted(among if among is not None else self._first.search(query, RERANKED))
        if not ids:
            return {}
        pairs = [(query, self._passages[id]) for id in ids]
        scores = np.asarray(self._model.predict(pairs, show_progress_bar=False), dtype=np.float32)
        rows, found = best(np.arange(len(ids)), scores, k)
        return {ids[row]: float(score) for row, score in zip(rows, found, strict=True)}


def sentence_transformers() -> Any:
    """The package.

    Raises:
        OptionalDependencyError: it is not installed.
    """
    try:
        import sentence_transformers as package
    except ModuleNotFoundError as error:
        if error.name != "sentence_transformers":
            raise
        raise OptionalDependencyError(
            "Dense models and cross-encoders are run by sentence-transformers, which is not installed. Run: "
            "pip install 'jacolbert-rag[peers]'"
        ) from error
    return package


def check_names(names: Sequence[str]) -> None:
    """Refuse a system that is not there, or is named twice.

    Raises:
        InvalidInputError: with the names that are known.
    """
    prefixes = (DENSE_PREFIX, CROSS_ENCODER_PREFIX)
    for i, name in enumerate(names):
        has_model = name.startswith(prefixes) and name not in prefixes
        if name not in KNOWN_SYSTEMS and not has_model:
            known = ", ".join((*KNOWN_SYSTEMS, *(f"{prefix}MODEL" for prefix in prefixes)))
            raise InvalidInputError(f"there is no system {name!r}; known are {known}.")
        if name in names[:i]:
            raise InvalidInputError(f"the system {name!r} is named twice. Name it once.")


def build(
    names: Sequence[str],
    documents: Sequence[Document],
    *,
    model: str | None,
    query_length: str | None = None,
    index: Path | None = None,
) -> Iterator[System]:
    """Each named system in turn, ready to search; those of JaColBERT share one index.

    Args:
        names: see `check_names`.
        documents: the corpus, of distinct ids.
        model: of JaColBERT: a folder or a hub id; None is the bundled model.
        query_length: rule in place of the model's.
        index: folder of an index of these documents by this model, opened where it is there, else made; None
            is a temporary one.

    Raises:
        CheckpointError: the model cannot be read.
        OptionalDependencyError: a package of an extra is not installed.
    """
    check_names(names)
    engine: JaColBERTRetriever | None = None
    bm25: BM25 | None = None
    try:
        for name in names:
            if bm25 is None and (name in (BM25_NAME, RERANK_NAME) or name.startswith(CROSS_ENCODER_PREFIX)):
                bm25 = BM25(documents)
            if name == BM25_NAME:
                assert bm25 is not None
                yield bm25
            elif name == BIGRAM_NAME:
                yield BigramBM25(documents)
            elif name.startswith(DENSE_PREFIX):
                yield Dense(documents, name.removeprefix(DENSE_PREFIX))
            elif name.startswith(CROSS_ENCODER_PREFIX):
                assert bm25 is not None
                yield CrossEncoder(documents, name.removeprefix(CROSS_ENCODER_PREFIX), first=bm25)
            else:
                if engine is None:
                    pooled = index is not None or CANDIDATES_NAME in names or HYBRID_NAME in names
                    engine = build_engine(
                        documents, model=model, query_length=query_length, candidates=pooled, index=index
                    )
                yield JaColBERT(engine, name, first=bm25)
    finally:
        if engine is not None:
            engine.close()


def build_engine(
    documents: Sequence[Document],
    *,
    model: str | None,
    query_length: str | None = None,
    candidates: bool = True,
    index: Path | None = None,
) -> JaColBERTRetriever:
    """An index; documents without text are left out, and so never found.

    Args:
        documents: the corpus, of distinct ids.
        model: a folder or a hub id; None is the bundled model.
        query_length: rule in place of the model's.
        candidates: build them, however small the corpus is; without them every search is exact.
        index: its folder; opened if there is one that holds as many documents. None is a temporary one.
    """
    from jacolbert_rag import IndexSettings, JaColBERTRetriever

    exact_below = 0 if candidates else len(documents) + 1
    settings = IndexSettings(search=SearchConfig(exact_below=exact_below))
    with_text = sorted(
        (document for document in documents if clean(document.passage).strip()),
        key=lambda document: document.id,
    )
    if index is not None and (index / "manifest.json").is_file():
        engine = JaColBERTRetriever.load(index, model=model, query_length=query_length, settings=settings)
        if len(engine) == len(with_text):
            return engine
        # A build that was cut: what is there is not embedded again.
        with_text = [document for document in with_text if document.id not in engine]
    else:
        engine = JaColBERTRetriever.from_pretrained(model, query_length=query_length, settings=settings)
        if index is not None:
            engine.save(index)
    # Equal scores are ordered by row: ascending id, when documents arrive in that order.
    engine.add(with_text, progress=True)
    return engine


def latency_ms(
    system: System,
    queries: Sequence[str],
    *,
    k: int = LATENCY_K,
    among: Sequence[Among] | None = None,
) -> dict[str, float]:
    """p50 and p95 in milliseconds of single calls, one query each, after a few that are not counted.

    Args:
        system: is warm afterwards; the caller's own batch search warms it further.
        queries: up to 50 are taken, spread evenly.
        k: hits asked for.
        among: see `System.search_many`.
    """
    rows = np.unique(
        np.linspace(0, len(queries) - 1, min(LATENCY_QUERIES, len(queries))).round().astype(np.int64)
    )
    # No third argument where there are no candidates.
    asked = [(queries[row], k) if among is None else (queries[row], k, among[row]) for row in rows]
    for call in asked[:WARM_UP_QUERIES]:
        system.search(*call)
    times = []
    for call in asked:
        start = time.perf_counter()
        system.search(*call)
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
