"""LangChain's retriever, vector store and document compressor over a JaColBERTRetriever.

Needs langchain-core alone: `pip install 'jacolbert-rag[langchain]'`. Documents keep their ids and metadata
both ways, and documents that were passed in are never changed. A document without an id gets one from its
text and metadata, so the same document added twice, in one call or in two, is stored once.
`JaColBERTTextSplitter` is here too, where langchain-text-splitters is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypedDict, Unpack

from jacolbert_rag.config import EngineOptions, LoadOptions, ModelOptions, SearchMode
from jacolbert_rag.datatypes import DETAILS_KEY, Document, Hit
from jacolbert_rag.errors import InvalidInputError, OptionalDependencyError

try:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
        Callbacks,
    )
    from langchain_core.documents import BaseDocumentCompressor
    from langchain_core.documents import Document as LangChainDocument
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
    from langchain_core.runnables import run_in_executor
    from langchain_core.vectorstores import VectorStore
    from pydantic import ConfigDict, Field
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    raise OptionalDependencyError(
        "jacolbert_rag.langchain needs langchain-core. Run: pip install 'jacolbert-rag[langchain]'"
    ) from error

if TYPE_CHECKING:
    from jacolbert_rag.langchain_splitter import JaColBERTTextSplitter as JaColBERTTextSplitter
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

# Conditions on metadata (`jacolbert_rag.index.filters.parse`), or a function that is asked of every document.
GivenFilter: TypeAlias = Mapping[str, Any] | Callable[[LangChainDocument], bool]


class SearchOptions(TypedDict, total=False):
    """How to search: keyword arguments of the vector store's searches, and fields of the retriever."""

    filter: GivenFilter | None
    mode: SearchMode
    highlight: bool
    abstain: bool


class RetrieverFields(SearchOptions, total=False):
    """Fields of `JaColBERTRetriever`, but for the engine."""

    k: int
    score_key: str | None


class RetrieverOptions(RetrieverFields, EngineOptions, total=False):
    """Keyword arguments of `JaColBERTRetriever.from_pretrained`."""


class RetrieverLoadOptions(RetrieverFields, LoadOptions, total=False):
    """Keyword arguments of `JaColBERTRetriever.load`."""


class JaColBERTRetriever(BaseRetriever):
    """A JaColBERT index as a LangChain retriever.

        retriever = JaColBERTRetriever.from_texts(["琵琶湖は日本最大の湖である。"], k=1)
        retriever.invoke("日本で一番大きい湖は？")
        retriever.invoke("日本で一番大きい湖は？", k=3, filter={"lang": "ja"})  # for this call

    `invoke`, `batch` and their async twins take `k`, `mode`, `filter`, `highlight` and `abstain` in place of
    the attributes; `filter={}` lets every document through.

    Attributes:
        engine: the framework-free `jacolbert_rag.JaColBERTRetriever`.
        k: documents of an answer, at least 1.
        score_key: metadata key of the score in results (`jacolbert_rag.Hit.score`); None leaves it out.
        mode: "jacolbert" finds by token embeddings, "bm25" by words, "hybrid" by both.
        filter: what documents must be to be found: conditions on metadata, such as
            {"lang": "ja", "year": {"$gte": 2020}}, or a function of a LangChain document, which is asked of
            every one.
        highlight: put `jacolbert_rag.Hit.details` into `metadata["jacolbert"]` of results: scores that mean
            the same for every query, and which characters answered.
        abstain: return nothing where nothing answers; the engine must have been calibrated.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    # A public field: private attributes are lost when `configurable_fields` makes the object anew.
    engine: Any = Field(exclude=True, repr=False)
    k: int = 4
    score_key: str | None = "relevance_score"
    mode: SearchMode = "jacolbert"
    filter: Any = None
    highlight: bool = False
    abstain: bool = False

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **options: Unpack[RetrieverOptions]) -> Self:
        """A retriever with this model, over a saved index or over none yet.

        Options are the attributes, and those of `jacolbert_rag.JaColBERTRetriever.from_pretrained`, which
        tells what is raised.
        """
        fields, rest = _split(options)
        return cls(engine=_engine_class().from_pretrained(model, **rest), **fields)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        model: str | Path | None = None,
        **options: Unpack[RetrieverOptions],
    ) -> Self:
        """A retriever over these texts; see `add_texts`, and `from_pretrained` for the rest."""
        return cls.from_documents(_documents(texts, metadatas), ids=ids, model=model, **options)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[LangChainDocument],
        *,
        ids: Sequence[str | None] | None = None,
        model: str | Path | None = None,
        **options: Unpack[RetrieverOptions],
    ) -> Self:
        """A retriever over these documents; see `add_documents`, and `from_pretrained` for the rest."""
        retriever = cls.from_pretrained(model, **options)
        retriever.add_documents(documents, ids=ids)
        return retriever

    @classmethod
    def load(cls, path: str | Path, **options: Unpack[RetrieverLoadOptions]) -> Self:
        """A saved index with the model that made it.

        Options are the attributes, and those of `jacolbert_rag.JaColBERTRetriever.load`.
        """
        fields, rest = _split(options)
        return cls(engine=_engine_class().load(path, **rest), **fields)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """`add_documents` for texts, with one metadata each where given."""
        return self.add_documents(_documents(texts, metadatas), ids=ids)

    def add_documents(
        self, documents: Iterable[LangChainDocument], *, ids: Sequence[str | None] | None = None
    ) -> list[str]:
        """Store documents; one whose id is there already is replaced.

        Args:
            documents: their metadata must be JSON.
            ids: of each, in place of the document's own; None where that holds.

        Returns:
            The id of each, in order.

        Raises:
            InvalidInputError: `ids` has another length, an id was given twice, a document has no text, or
                metadata is not JSON. Nothing was stored then.
        """
        return _add(self.engine, documents, ids)

    def save(self, path: str | Path) -> None:
        """Put the index into a folder; see `jacolbert_rag.JaColBERTRetriever.save`."""
        self.engine.save(path)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        mode: SearchMode | None = None,
        filter: GivenFilter | None = None,
        highlight: bool | None = None,
        abstain: bool | None = None,
        verbose: bool = False,
    ) -> list[LangChainDocument]:
        """The best k documents. `invoke` forwards its `verbose`, which the callbacks have seen to."""
        highlight = self.highlight if highlight is None else highlight
        hits = self.engine.search(
            query,
            self.k if k is None else k,
            mode=self.mode if mode is None else mode,
            filter=_native(self.filter if filter is None else filter),
            highlight=highlight,
            abstain=self.abstain if abstain is None else abstain,
        )
        return [_found(hit, self.score_key, details=highlight) for hit in hits]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        mode: SearchMode | None = None,
        filter: GivenFilter | None = None,
        highlight: bool | None = None,
        abstain: bool | None = None,
        verbose: bool = False,
    ) -> list[LangChainDocument]:
        return await run_in_executor(
            None,
            self._get_relevant_documents,
            query,
            run_manager=run_manager.get_sync(),
            k=k,
            mode=mode,
            filter=filter,
            highlight=highlight,
            abstain=abstain,
        )

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        """What a trace says of this retriever."""
        return LangSmithRetrieverParams(
            **super()._get_ls_params(**kwargs),
            ls_vector_store_provider="voyager",
            ls_embedding_model=self.engine.encoder.checkpoint.name,
        )


_NO_VECTOR = (
    "A query has one embedding for each of its tokens here, so there is no search by one vector. Pass the "
    "text to similarity_search."
)
_NO_MMR = (
    "MMR compares documents by one vector each, and they have one for each token here. Use "
    'search_type="similarity" and drop near-equal documents, for instance by a key of their metadata.'
)


class JaColBERTVectorStore(VectorStore):
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
        """Wrap a framework-free retriever."""
        self.engine = engine

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **options: Unpack[EngineOptions]) -> Self:
        """A store with this model, over a saved index (`index=folder`) or an empty one.

        Arguments and what is raised are those of `jacolbert_rag.JaColBERTRetriever.from_pretrained`.
        """
        return cls(_engine_class().from_pretrained(model, **options))

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
        engine = _engine_class().load(path, **options)
        return cls(engine)

    def save(self, path: str | Path) -> None:
        """Put the index into a folder; see `jacolbert_rag.JaColBERTRetriever.save`."""
        self.engine.save(path)

    def add_texts(  # type: ignore[override]
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
    ) -> list[str]:
        """`add_documents` for texts, with one metadata each where given."""
        return _add(self.engine, _documents(texts, metadatas), ids)

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
        return _add(self.engine, documents, ids)

    def delete(self, ids: Sequence[str] | None = None) -> bool:  # type: ignore[override]
        """Remove documents; unknown ids are passed over, so the answer is always True.

        Raises:
            InvalidInputError: `ids` is None. Some stores delete everything then; this one does not guess.
        """
        if ids is None:
            raise InvalidInputError(
                "delete needs the ids to remove. To remove everything: "
                "store.delete([document.id for document in store.engine])."
            )
        self.engine.delete(ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[LangChainDocument]:
        """The documents of these ids, in order; unknown ids are passed over."""
        return [_result(document) for document in self.engine.get(ids)]

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
            query, k, mode=mode, filter=_native(filter), highlight=highlight, abstain=abstain
        )
        return [(_found(hit, None, details=highlight), hit) for hit in hits]

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


class JaColBERTReranker(BaseDocumentCompressor):
    """Orders documents that another retriever found, with a JaColBERT model.

    Attributes:
        engine: the framework-free `jacolbert_rag.JaColBERTRetriever`; its index is not looked at.
        top_n: documents that are kept, at least 1.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    engine: Any = Field(exclude=True, repr=False)
    top_n: int = 3

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        top_n: int = 3,
        **options: Unpack[ModelOptions],
    ) -> Self:
        """A reranker with this model; see `jacolbert_rag.JaColBERTRetriever.from_pretrained`."""
        engine = _engine_class().from_pretrained(model, **options)
        return cls(engine=engine, top_n=top_n)

    def compress_documents(
        self, documents: Sequence[LangChainDocument], query: str, callbacks: Callbacks | None = None
    ) -> list[LangChainDocument]:
        """Copies of the best `top_n` documents, best first, with `metadata["relevance_score"]`: raw MaxSim.

        A document without text comes last, with the least score there is: minus the query's tokens.

        Raises:
            InvalidInputError: the query has no text, or `top_n` is below 1.
        """
        # Positions for ids: documents of other retrievers may have none, or share one.
        passages = [Document(str(i), document.page_content) for i, document in enumerate(documents)]
        ranked = []
        for hit in self.engine.rerank(query, passages, self.top_n):
            document = documents[int(hit.id)].model_copy(deep=True)
            document.metadata["relevance_score"] = hit.score
            ranked.append(document)
        return ranked


def __getattr__(name: str) -> Any:
    """JaColBERTTextSplitter from its own module when it is asked for: it needs another package (PEP 562)."""
    if name != "JaColBERTTextSplitter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jacolbert_rag.langchain_splitter import JaColBERTTextSplitter

    return JaColBERTTextSplitter


def _engine_class() -> type[Engine]:
    """The framework-free retriever, imported when one is made: it loads torch."""
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

    return Engine


def _documents(texts: Iterable[str], metadatas: Sequence[dict[str, Any]] | None) -> list[LangChainDocument]:
    """Texts as LangChain documents."""
    if isinstance(texts, str):
        raise InvalidInputError("texts is one str; expected a list of them, such as [text].")
    texts = list(texts)
    return [
        LangChainDocument(page_content=text, metadata=metadata or {})
        for text, metadata in zip(texts, _one_each("metadatas", metadatas, len(texts)), strict=True)
    ]


def _add(
    engine: Engine, documents: Iterable[LangChainDocument], ids: Sequence[str | None] | None
) -> list[str]:
    """Store documents, those that are stored already word for word left alone; the id of each, in order."""
    documents = list(documents)
    given: list[str] = []
    named: list[Document] = []
    derived: dict[str, Document] = {}  # whose ids are their content
    for i, (item, id) in enumerate(zip(documents, _one_each("ids", ids, len(documents)), strict=True)):
        if not isinstance(item, LangChainDocument):
            raise InvalidInputError(
                f"document {i} is a {type(item).__name__}; expected a langchain_core Document. For strings "
                "there is `add_texts`."
            )
        id = item.id if id is None else id
        if id is None:
            document = Document.from_text(item.page_content, item.metadata)
            derived[document.id] = document
        else:
            document = Document(id, item.page_content, item.metadata)
            named.append(document)
        given.append(document.id)
    engine.upsert([*named, *derived.values()])
    return given


def _one_each(name: str, values: Sequence[Any] | None, n: int) -> Sequence[Any]:
    """The values, or n times None.

    Raises:
        InvalidInputError: there are not n of them.
    """
    if values is None:
        return [None] * n
    if isinstance(values, str) or len(values) != n:
        raise InvalidInputError(f"{name} is {values!r:.80}; expected a list of {n}, one for each document.")
    return values


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a constructor as the retriever's fields, and the rest."""
    fields = {key: value for key, value in options.items() if key in RetrieverFields.__annotations__}
    return fields, {key: value for key, value in options.items() if key not in fields}


def _native(given: GivenFilter | None) -> Mapping[str, Any] | Callable[[Document], bool] | None:
    """A filter as the engine takes it: a function is handed a LangChain document."""
    if isinstance(given, Mapping) or not callable(given):
        return given
    return lambda document: given(_result(document))


def _relevance(hit: Hit) -> float:
    """A score within [0, 1] that means the same for every query."""
    figures = ("confidence", "similarity", "coverage")
    return next(hit.scores[name] for name in figures if name in hit.scores)


def _found(hit: Hit, score_key: str | None, *, details: bool) -> LangChainDocument:
    """A hit as a LangChain document."""
    document = _result(hit.document)
    if score_key is not None:
        document.metadata[score_key] = hit.score
    if details:
        document.metadata[DETAILS_KEY] = hit.details()
    return document


def _result(document: Document) -> LangChainDocument:
    """A stored document as LangChain's; a title, for which LangChain has no place, joins the metadata."""
    metadata = {"title": document.title, **document.metadata} if document.title else dict(document.metadata)
    return LangChainDocument(id=document.id, page_content=document.text, metadata=metadata)
