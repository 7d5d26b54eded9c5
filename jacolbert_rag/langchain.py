"""LangChain's retriever and document compressor over a JaColBERTRetriever.

Needs langchain-core alone: `pip install 'jacolbert-rag[langchain]'`. Documents keep their ids and metadata
both ways, and documents that were passed in are never changed. A document without an id gets one from its
text and metadata, so the same document added twice, in one call or in two, is stored once.
`metadata["title"]`, where it is a text, is a document's title, which is read before its text: when documents
are added, split and reranked. Results have it there, also of documents that came into an index another way.
`JaColBERTVectorStore` is here too, and `JaColBERTTextSplitter` where langchain-text-splitters is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from jacolbert_rag.adapters import check_count, engine_class, split_options, title_in
from jacolbert_rag.config import EngineOptions, LoadOptions, ModelOptions, SearchMode
from jacolbert_rag.datatypes import Document
from jacolbert_rag.langchain_documents import (
    SCORE_KEY,
    GivenFilter,
    SearchOptions,
    as_documents,
    found_document,
    native_filter,
    store_documents,
)

# The module above says what to install where the framework is missing, so it comes first.
# isort: split
from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
    Callbacks,
)
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, field_validator

from jacolbert_rag.adapter_classes import ModelWithEngine

if TYPE_CHECKING:
    from jacolbert_rag.langchain_splitter import JaColBERTTextSplitter as JaColBERTTextSplitter
    from jacolbert_rag.langchain_store import JaColBERTVectorStore as JaColBERTVectorStore


class AnswerOptions(SearchOptions, total=False):
    """Fields of `JaColBERTRetriever`, but for the engine and k."""

    score_key: str | None


class RetrieverFields(AnswerOptions, total=False):
    """Fields of `JaColBERTRetriever`, but for the engine."""

    k: int


class RetrieverOptions(RetrieverFields, EngineOptions, total=False):
    """Keyword arguments of `JaColBERTRetriever.from_pretrained`."""


class RetrieverLoadOptions(RetrieverFields, LoadOptions, total=False):
    """Keyword arguments of `JaColBERTRetriever.load`."""


class JaColBERTRetriever(ModelWithEngine, BaseRetriever):
    """A JaColBERT index as a LangChain retriever.

        retriever = JaColBERTRetriever.from_texts(["琵琶湖は日本最大の湖である。"], k=1)
        retriever.invoke("日本で一番大きい湖は？")
        retriever.invoke("日本で一番大きい湖は？", k=3, filter={"lang": "ja"})  # for this call

    `invoke`, `batch` and their async twins take `k`, `mode`, `filter`, `highlight` and `abstain` in place of
    the attributes; `filter={}` lets every document through.

    Attributes:
        engine: the framework-free `jacolbert_rag.JaColBERTRetriever`; of an adapter, its own is taken.
        k: documents of an answer, at least 1.
        score_key: metadata key of the score in results (`jacolbert_rag.Hit.score`); None leaves it out. A
            document that has a value of its own there keeps it, so name another key then.
        mode: "jacolbert" finds by token embeddings, "bm25" by words, "hybrid" by both.
        filter: what documents must be to be found: conditions on metadata, such as
            {"lang": "ja", "year": {"$gte": 2020}}, or a function of a LangChain document, which is asked of
            every one.
        highlight: put `jacolbert_rag.Hit.details` into `metadata["jacolbert"]` of results: scores that mean
            the same for every query, and which characters answered. A value of a document's own stays there.
        abstain: return nothing where nothing answers; the engine must have been calibrated.
    """

    model_config = ConfigDict(extra="forbid")

    k: int = 4
    score_key: str | None = SCORE_KEY
    mode: SearchMode = "jacolbert"
    filter: Any = None
    highlight: bool = False
    abstain: bool = False

    @field_validator("k")
    @classmethod
    def _check_k(cls, value: int) -> int:
        return check_count("k", value)

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **options: Unpack[RetrieverOptions]) -> Self:
        """A retriever with this model, over a saved index or over none yet.

        Options are the attributes, and those of `jacolbert_rag.JaColBERTRetriever.from_pretrained`, which
        tells what is raised.
        """
        fields, rest = split_options(RetrieverFields, options)
        return cls(engine=engine_class().from_pretrained(model, **rest), **fields)

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
        return cls.from_documents(as_documents(texts, metadatas), ids=ids, model=model, **options)

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
        fields, rest = split_options(RetrieverFields, options)
        return cls(engine=engine_class().load(path, **rest), **fields)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """`add_documents` for texts, with one metadata each where given."""
        return self.add_documents(as_documents(texts, metadatas), ids=ids)

    def add_documents(
        self, documents: Iterable[LangChainDocument], *, ids: Sequence[str | None] | None = None
    ) -> list[str]:
        """Store documents; one whose id is there already is replaced.

        Documents that were found may be added again: `metadata["jacolbert"]` of a search is not stored, nor
        is a score under `score_key` or "relevance_score" that the stored document does not have.

        Args:
            documents: their metadata must be JSON; `metadata["title"]` is read before the text.
            ids: of each, in place of the document's own; None where that holds.

        Returns:
            The id of each, in order.

        Raises:
            InvalidInputError: `ids` has another length, an id was given twice, a document has no text, or
                metadata is not JSON. Nothing was stored then.
        """
        return store_documents(self.engine, documents, ids, self.score_key)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """`add_texts` off the event loop."""
        return await run_in_executor(None, self.add_texts, texts, metadatas, ids=ids)

    async def aadd_documents(
        self, documents: Iterable[LangChainDocument], *, ids: Sequence[str | None] | None = None
    ) -> list[str]:
        """`add_documents` off the event loop."""
        return await run_in_executor(None, self.add_documents, documents, ids=ids)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Put the index into a folder; see `jacolbert_rag.JaColBERTRetriever.save`."""
        self.engine.save(path, overwrite=overwrite)

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
            filter=native_filter(self.filter if filter is None else filter),
            highlight=highlight,
            abstain=self.abstain if abstain is None else abstain,
        )
        return [found_document(hit, self.score_key, details=highlight) for hit in hits]

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


class JaColBERTReranker(ModelWithEngine, BaseDocumentCompressor):
    """Orders documents that another retriever found, with a JaColBERT model.

    Attributes:
        engine: the framework-free `jacolbert_rag.JaColBERTRetriever`; its index is not looked at.
        top_n: documents that are kept, at least 1.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: int = 3

    @field_validator("top_n")
    @classmethod
    def _check_top_n(cls, value: int) -> int:
        return check_count("top_n", value)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        top_n: int = 3,
        **options: Unpack[ModelOptions],
    ) -> Self:
        """A reranker with this model; see `jacolbert_rag.JaColBERTRetriever.from_pretrained`."""
        engine = engine_class().from_pretrained(model, **options)
        return cls(engine=engine, top_n=top_n)

    def compress_documents(
        self, documents: Sequence[LangChainDocument], query: str, callbacks: Callbacks | None = None
    ) -> list[LangChainDocument]:
        """Copies of the best `top_n` documents, best first, with `metadata["relevance_score"]`: raw MaxSim,
        in place of what an earlier stage put there.

        A document without text or title comes last, with the least score there is: minus the query's tokens.

        Raises:
            InvalidInputError: the query has no text, or `top_n` is below 1.
        """
        # Positions for ids: documents of other retrievers may have none, or share one.
        passages = [
            Document(str(i), document.page_content, title=title_in(document.metadata))
            for i, document in enumerate(documents)
        ]
        ranked = []
        for hit in self.engine.rerank(query, passages, self.top_n):
            document = documents[int(hit.id)].model_copy(deep=True)
            document.metadata[SCORE_KEY] = hit.score
            ranked.append(document)
        return ranked


# Where the names that are only asked for at times are from; the splitter needs another package.
_ELSEWHERE = {"JaColBERTTextSplitter": "langchain_splitter", "JaColBERTVectorStore": "langchain_store"}


def __getattr__(name: str) -> Any:
    """Names of other modules, loaded when they are asked for (PEP 562)."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"jacolbert_rag.{_ELSEWHERE[name]}"), name)
