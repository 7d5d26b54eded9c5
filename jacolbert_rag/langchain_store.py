"""LangChain's vector store over a JaColBERTRetriever.

Needs langchain-core alone: `pip install 'jacolbert-rag[langchain]'`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from jacolbert_rag.adapters import engine_class, engine_of
from jacolbert_rag.config import EngineOptions, LoadOptions, SearchMode
from jacolbert_rag.datatypes import Hit
from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.langchain_documents import (
    GivenFilter,
    SearchOptions,
    as_documents,
    found_document,
    native_filter,
    result_of,
    store_documents,
)

# The module above says what to install where the framework is missing, so it comes first.
# isort: split
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore

from jacolbert_rag.adapter_classes import WithEngine

if TYPE_CHECKING:
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

_NO_VECTOR = (
    "A query has one embedding for each of its tokens here, so there is no search by one vector. Pass the "
    "text to similarity_search."
)
_NO_MMR = (
    "MMR compares documents by one vector each, and they have one for each token here. Use "
    'search_type="similarity" and drop near-equal documents, for instance by a key of their metadata.'
)


class JaColBERTVectorStore(WithEngine, VectorStore):
    """A JaColBERT index as a LangChain vector store, such as `langchain_core.indexing.index` fills.

        store = JaColBERTVectorStore.from_texts(["琵琶湖は日本最大の湖である。"])
        store.similarity_search("日本で一番大きい湖は？", k=1)

        store.similarity_search("湖の面積", mode="hybrid", filter={"year": {"$gte": 2020}})
        store.as_retriever(search_kwargs={"k": 3, "filter": {"lang": "ja"}})

    Searches take `filter`, `mode`, `highlight` and `abstain`, which are those of `JaColBERTRetriever`. The
    model embeds each token, so there is no `Embeddings`: arguments of that name are ignored, and search by a
    vector and MMR are refused.
    """

    def __init__(self, engine: Engine) -> None:
        """Wrap a framework-free retriever, or that of another adapter.

        Raises:
            InvalidInputError: it is none.
        """
        self.engine = engine_of(engine)

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **options: Unpack[EngineOptions]) -> Self:
        """A store with this model, over a saved index (`index=folder`) or an empty one.

        Arguments and what is raised are those of `jacolbert_rag.JaColBERTRetriever.from_pretrained`.
        """
        return cls(engine_class().from_pretrained(model, **options))

    @classmethod
    def from_texts(  # type: ignore[override]  # options are named, so that a typo is an error
        cls,
        texts: Iterable[str],
        embedding: Embeddings | None = None,
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        model: str | Path | None = None,
        **options: Unpack[EngineOptions],
    ) -> Self:
        """A store over these texts; `embedding` is ignored. See `from_pretrained` for the rest."""
        store = cls.from_pretrained(model, **options)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | None = None,
        metadatas: Sequence[dict[str, Any]] | None = None,
        **options: Any,
    ) -> Self:
        """`from_texts` off the event loop."""
        return await run_in_executor(None, cls.from_texts, texts, embedding, metadatas, **options)

    @classmethod
    def from_documents(
        cls, documents: Sequence[LangChainDocument], embedding: Embeddings | None = None, **options: Any
    ) -> Self:
        """A store over these documents; the options are those of `from_texts`."""
        ids = options.pop("ids", None)
        store = cls.from_texts([], embedding, **options)
        store.add_documents(documents, ids=ids)
        return store

    @classmethod
    async def afrom_documents(
        cls, documents: Sequence[LangChainDocument], embedding: Embeddings | None = None, **options: Any
    ) -> Self:
        """`from_documents` off the event loop."""
        return await run_in_executor(None, cls.from_documents, documents, embedding, **options)

    @classmethod
    def load(
        cls,
        path: str | Path,
        **options: Unpack[LoadOptions],
    ) -> Self:
        """A saved index with the model that made it; see `jacolbert_rag.JaColBERTRetriever.load`."""
        engine = engine_class().load(path, **options)
        return cls(engine)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Put the index into a folder; see `jacolbert_rag.JaColBERTRetriever.save`."""
        self.engine.save(path, overwrite=overwrite)

    def add_texts(  # type: ignore[override]
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
    ) -> list[str]:
        """`add_documents` for texts, with one metadata each where given."""
        return store_documents(self.engine, as_documents(texts, metadatas), ids)

    def add_documents(  # type: ignore[override]
        self,
        documents: Iterable[LangChainDocument],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
    ) -> list[str]:
        """Store documents; see `JaColBERTRetriever.add_documents`.

        `index()` passes the batch size of its own loop, which is no business of the encoder's: it is
        ignored.
        """
        return store_documents(self.engine, documents, ids)

    def delete(  # type: ignore[override]
        self, ids: Sequence[str] | None = None, *, filter: GivenFilter | None = None
    ) -> bool:
        """Remove documents: of these ids, that a filter lets through, or both where both are given.

        Unknown ids are passed over, so the answer is always True.

        Args:
            ids: of documents, with their chunks where the engine split them; beside a filter, only what
                is stored under these ids.
            filter: as searches take it.

        Raises:
            InvalidInputError: neither was given. Some stores delete everything then; this one does not guess.
        """
        if ids is None and filter is None:
            raise InvalidInputError("delete needs ids, or a filter. To remove everything: delete(filter={}).")
        if filter is None:
            self.engine.delete(ids or [])
            return True
        found = [document.id for document in self.engine.documents(native_filter(filter))]
        if isinstance(ids, str):
            raise InvalidInputError(f"ids is the str {ids!r}; expected a list of ids, such as [{ids!r}].")
        wanted = set(found if ids is None else ids)
        self.engine.delete([id for id in found if id in wanted])
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[LangChainDocument]:
        """The documents of these ids, in order; unknown ids are passed over."""
        return [result_of(document) for document in self.engine.get(ids)]

    def similarity_search(  # type: ignore[override]  # as above
        self, query: str, k: int = 4, *, verbose: bool = False, **options: Unpack[SearchOptions]
    ) -> list[LangChainDocument]:
        """The best k documents, without scores in their metadata unless `highlight` asks for them."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **options)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, verbose: bool = False, **options: Unpack[SearchOptions]
    ) -> list[tuple[LangChainDocument, float]]:
        """The best k documents, each with what they are ordered by: the higher, the better.

        That is the raw MaxSim score, or BM25, or in hybrid search the fusion of both.
        """
        return [(document, hit.score) for document, hit in self._search(query, k, **options)]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, *, verbose: bool = False, **options: Any
    ) -> list[tuple[LangChainDocument, float]]:
        """Scores within [0, 1] that mean the same for every query: the confidence of each hit.

        Full-text search knows no embeddings, and so no confidence: there it is the part of the query's
        telling terms that a document has. The order stays that of the search.
        """
        return [(document, _relevance(hit)) for document, hit in self._search(query, k, **options)]

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[LangChainDocument, float]]:
        return await run_in_executor(None, self._similarity_search_with_relevance_scores, query, k, **kwargs)

    def _search(
        self,
        query: str,
        k: int,
        *,
        filter: GivenFilter | None = None,
        mode: SearchMode = "jacolbert",
        highlight: bool = False,
        abstain: bool = False,
    ) -> list[tuple[LangChainDocument, Hit]]:
        hits = self.engine.search(
            query, k, mode=mode, filter=native_filter(filter), highlight=highlight, abstain=abstain
        )
        return [(found_document(hit, None, details=highlight), hit) for hit in hits]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[LangChainDocument]:
        """Refused: a query has one embedding a token here.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_NO_VECTOR)

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[LangChainDocument]:
        """Refused: MMR compares documents by one vector each, and they have one a token here.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_NO_MMR)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[LangChainDocument]:
        """Refused: see `max_marginal_relevance_search`.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_NO_MMR)


def _relevance(hit: Hit) -> float:
    """A score within [0, 1] that means the same for every query."""
    figures = ("confidence", "similarity", "coverage")
    return next(hit.scores[name] for name in figures if name in hit.scores)
