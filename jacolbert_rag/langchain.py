"""LangChain's retriever, vector store and document compressor over a JaColBERTRetriever.

Needs langchain-core alone: `pip install 'jacolbert-rag[langchain]'`. Documents keep their ids and metadata
both ways, and documents that were passed in are never changed. A document without an id gets one from its
text and metadata, so the same document added twice, in one call or in two, is stored once.
`JaColBERTTextSplitter` is here too, where langchain-text-splitters is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from jacolbert_rag.config import EngineOptions, LoadOptions, ModelOptions
from jacolbert_rag.datatypes import Document
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


class JaColBERTRetriever(BaseRetriever):
    """A JaColBERT index as a LangChain retriever.

        retriever = JaColBERTRetriever.from_texts(["琵琶湖は日本最大の湖である。"], k=1)
        retriever.invoke("日本で一番大きい湖は？")
        retriever.invoke("日本で一番大きい湖は？", k=3)  # for this call

    Attributes:
        engine: the framework-free `jacolbert_rag.JaColBERTRetriever`.
        k: documents of an answer, at least 1; `invoke`, `batch` and their async twins take another.
        score_key: metadata key of the raw MaxSim score in results; None leaves it out.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    # A public field: private attributes are lost when `configurable_fields` makes the object anew.
    engine: Any = Field(exclude=True, repr=False)
    k: int = 4
    score_key: str | None = "relevance_score"

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        k: int = 4,
        score_key: str | None = "relevance_score",
        **options: Unpack[EngineOptions],
    ) -> Self:
        """A retriever with this model, over a saved index or over none yet.

        `k` and `score_key` are the attributes; the other arguments and what is raised are those of
        `jacolbert_rag.JaColBERTRetriever.from_pretrained`.
        """
        engine = _engine_class().from_pretrained(model, **options)
        return cls(engine=engine, k=k, score_key=score_key)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        model: str | Path | None = None,
        k: int = 4,
        score_key: str | None = "relevance_score",
        **options: Unpack[EngineOptions],
    ) -> Self:
        """A retriever over these texts; see `add_texts`, and `from_pretrained` for the rest."""
        documents = _documents(texts, metadatas)
        return cls.from_documents(documents, ids=ids, model=model, k=k, score_key=score_key, **options)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[LangChainDocument],
        *,
        ids: Sequence[str | None] | None = None,
        model: str | Path | None = None,
        k: int = 4,
        score_key: str | None = "relevance_score",
        **options: Unpack[EngineOptions],
    ) -> Self:
        """A retriever over these documents; see `add_documents`, and `from_pretrained` for the rest."""
        retriever = cls.from_pretrained(model, k=k, score_key=score_key, **options)
        retriever.add_documents(documents, ids=ids)
        return retriever

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        k: int = 4,
        score_key: str | None = "relevance_score",
        **options: Unpack[LoadOptions],
    ) -> Self:
        """A saved index with the model that made it; see `jacolbert_rag.JaColBERTRetriever.load`."""
        engine = _engine_class().load(path, **options)
        return cls(engine=engine, k=k, score_key=score_key)

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
        verbose: bool = False,
    ) -> list[LangChainDocument]:
        """The best k documents. `invoke` forwards its `verbose`, which the callbacks have seen to."""
        hits = self.engine.search(query, self.k if k is None else k)
        return [_result(hit.document, self.score_key, hit.score) for hit in hits]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        verbose: bool = False,
    ) -> list[LangChainDocument]:
        return await run_in_executor(
            None, self._get_relevant_documents, query, run_manager=run_manager.get_sync(), k=k
        )

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        """What a trace says of this retriever."""
        return LangSmithRetrieverParams(
            **super()._get_ls_params(**kwargs),
            ls_vector_store_provider="voyager",
            ls_embedding_model=self.engine.encoder.checkpoint.name,
        )


class JaColBERTVectorStore(VectorStore):
    """A JaColBERT index as a LangChain vector store, such as `langchain_core.indexing.index` fills.

        store = JaColBERTVectorStore.from_texts(["琵琶湖は日本最大の湖である。"])
        store.similarity_search("日本で一番大きい湖は？", k=1)

    The model embeds each token, so there is no `Embeddings`: arguments of that name are ignored, and search
    by a vector and MMR are not there. Nor are filters: `filter` is refused.
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

    def similarity_search(  # type: ignore[override]
        self, query: str, k: int = 4, *, filter: None = None, verbose: bool = False
    ) -> list[LangChainDocument]:
        """The best k documents, without scores in their metadata."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter=filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: None = None, verbose: bool = False
    ) -> list[tuple[LangChainDocument, float]]:
        """The best k documents, each with its raw MaxSim score: the higher, the better."""
        if filter is not None:
            raise InvalidInputError(
                "Metadata filters are not implemented in this version, and ignoring one would return "
                "documents that it excludes. Leave `filter` out and drop results by their metadata, or keep "
                "an index for each group of documents."
            )
        return [(_result(hit.document), hit.score) for hit in self.engine.search(query, k)]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[LangChainDocument, float]]:
        """Scores within [0, 1]: the mean over the query's tokens of what MaxSim sums.

        A query's token count is what a function of the score alone, `_select_relevance_score_fn`, cannot
        know.
        """
        found = self.similarity_search_with_score(query, k, **kwargs)
        n_tokens = int(self.engine.encoder.tokenizer.queries([query]).lengths[0])
        return [(document, min(max(score / n_tokens, 0.0), 1.0)) for document, score in found]

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[LangChainDocument, float]]:
        return await run_in_executor(None, self._similarity_search_with_relevance_scores, query, k, **kwargs)


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


def _result(document: Document, score_key: str | None = None, score: float = 0.0) -> LangChainDocument:
    """A stored document as LangChain's; a title, for which LangChain has no place, joins the metadata."""
    metadata = {"title": document.title, **document.metadata} if document.title else dict(document.metadata)
    if score_key is not None:
        metadata[score_key] = score
    return LangChainDocument(id=document.id, page_content=document.text, metadata=metadata)
