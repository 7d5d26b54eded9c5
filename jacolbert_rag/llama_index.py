"""LlamaIndex's retriever and node postprocessor over a JaColBERTRetriever.

Needs llama-index-core alone: `pip install 'jacolbert-rag[llama-index]'`. A node is stored whole, so it comes
back with its id, metadata, relationships and excluded keys. Documents that came into an index another way
come back as a `TextNode` with their metadata and title. Nodes that were passed in are never changed.
`JaColBERTVectorStore`, `NoEmbedding` and `JaColBERTNodeParser` are here too, from modules of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypedDict, Unpack

from jacolbert_rag.adapters import check_count, engine_class, engine_of, split_options
from jacolbert_rag.config import EngineOptions, LoadOptions, ModelOptions, SearchMode
from jacolbert_rag.datatypes import Document
from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.index.filters import Filter
from jacolbert_rag.llama_index_nodes import SCORE_KEY, found_node, store_nodes, title_of, with_hidden
from jacolbert_rag.llama_index_nodes import to_filter as to_filter

# The module above says what to install where the framework is missing, so it comes first.
# isort: split
import llama_index.core.instrumentation as instrument
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import ConfigDict, field_validator
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.ingestion import run_transformations
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    BaseNode,
    IndexNode,
    MetadataMode,
    NodeWithScore,
    QueryBundle,
    TransformComponent,
)
from llama_index.core.schema import Document as LlamaIndexDocument
from llama_index.core.vector_stores import MetadataFilters

from jacolbert_rag.adapter_classes import ModelWithEngine, WithEngine

if TYPE_CHECKING:
    from jacolbert_rag.llama_index_parser import JaColBERTNodeParser as JaColBERTNodeParser
    from jacolbert_rag.llama_index_store import JaColBERTVectorStore as JaColBERTVectorStore
    from jacolbert_rag.llama_index_store import NoEmbedding as NoEmbedding
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

dispatcher = instrument.get_dispatcher(__name__)  # type: ignore[attr-defined]  # re-exported unmarked


# Conditions on metadata: LlamaIndex's, or the engine's own, dicts too (`jacolbert_rag.index.filters.parse`).
GivenFilters: TypeAlias = MetadataFilters | Filter | Mapping[str, Any]


class AnswerOptions(TypedDict, total=False):
    """Arguments of `JaColBERTRetriever` that its other constructors take too, but for how many nodes."""

    filters: GivenFilters | None
    mode: SearchMode
    highlight: bool
    abstain: bool
    metadata_mode: MetadataMode
    callback_manager: CallbackManager | None


class RetrieverFields(AnswerOptions, total=False):
    """Arguments of `JaColBERTRetriever` that its other constructors take too."""

    similarity_top_k: int


class RetrieverOptions(RetrieverFields, EngineOptions, total=False):
    """Keyword arguments of `JaColBERTRetriever.from_pretrained`."""


class RetrieverLoadOptions(RetrieverFields, LoadOptions, total=False):
    """Keyword arguments of `JaColBERTRetriever.load`."""


class JaColBERTRetriever(WithEngine, BaseRetriever):
    """A JaColBERT index as a LlamaIndex retriever.

        retriever = JaColBERTRetriever.from_documents([Document(text="琵琶湖は日本最大の湖である。")])
        retriever.retrieve("日本で一番大きい湖は？")

    `NodeWithScore.score` is `jacolbert_rag.Hit.score`: the raw MaxSim score unless `mode` says otherwise, a
    sum over the query's tokens, so cutoffs made for cosines let everything pass. Attributes may be set at any
    time.

    Attributes:
        engine: the framework-free `jacolbert_rag.JaColBERTRetriever`.
        similarity_top_k: nodes of an answer, at least 1.
        filters: what nodes must be to be found: `MetadataFilters`, nested ones too; or what the engine takes,
            a dict such as {"lang": "ja", "year": {"$gte": 2020}} or a `jacolbert_rag.index.filters.Filter`.
        mode: "jacolbert" finds by token embeddings, "bm25" by words, "hybrid" by both.
        highlight: put `jacolbert_rag.Hit.details` into `metadata["jacolbert"]` of found nodes: scores that
            mean the same for every query, and which characters answered. Neither prompts nor embeddings read
            that key. A value of a node's own stays there.
        abstain: return nothing where nothing answers; the engine must have been calibrated.
        metadata_mode: which of a node's metadata is encoded before its text when nodes are added; by `NONE`,
            `metadata["title"]` where it is a text, unless `excluded_embed_metadata_keys` names it.
    """

    def __init__(
        self,
        engine: Engine,
        similarity_top_k: int = 2,
        *,
        filters: GivenFilters | None = None,
        mode: SearchMode = "jacolbert",
        highlight: bool = False,
        abstain: bool = False,
        metadata_mode: MetadataMode = MetadataMode.NONE,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        """Wrap a framework-free retriever, or that of another adapter.

        The last four arguments are those of `BaseRetriever`.

        Raises:
            InvalidInputError: `engine` is none, or `similarity_top_k` is below 1.
        """
        super().__init__(callback_manager, object_map, objects, verbose)
        self.engine = engine_of(engine)
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.mode: SearchMode = mode
        self.highlight = highlight
        self.abstain = abstain
        self.metadata_mode = metadata_mode

    @property
    def similarity_top_k(self) -> int:
        """Nodes of an answer, at least 1."""
        return self._similarity_top_k

    @similarity_top_k.setter
    def similarity_top_k(self, k: int) -> None:
        self._similarity_top_k = check_count("similarity_top_k", k)

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **options: Unpack[RetrieverOptions]) -> Self:
        """A retriever with this model, over a saved index or over none yet.

        Options are the attributes and `callback_manager`, and those of
        `jacolbert_rag.JaColBERTRetriever.from_pretrained`, which tells what is raised.
        """
        fields, rest = split_options(RetrieverFields, options)
        return cls(engine_class().from_pretrained(model, **rest), **fields)

    @classmethod
    def from_nodes(
        cls,
        nodes: Iterable[BaseNode],
        *,
        model: str | Path | None = None,
        **options: Unpack[RetrieverOptions],
    ) -> Self:
        """A retriever over these nodes; see `add_nodes`, and `from_pretrained` for the rest."""
        retriever = cls.from_pretrained(model, **options)
        retriever.add_nodes(nodes)
        return retriever

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[LlamaIndexDocument],
        *,
        transformations: Sequence[TransformComponent] | None = None,
        model: str | Path | None = None,
        **options: Unpack[RetrieverOptions],
    ) -> Self:
        """A retriever over documents, each of them one node unless `transformations` split them.

        See `from_pretrained` for the rest. `Settings` is not asked for a splitter.
        """
        nodes = run_transformations(list(documents), transformations or [])
        return cls.from_nodes(nodes, model=model, **options)

    @classmethod
    def load(cls, path: str | Path, **options: Unpack[RetrieverLoadOptions]) -> Self:
        """A saved index with the model that made it.

        Options are those of `from_pretrained`, but for the engine's, which are those of
        `jacolbert_rag.JaColBERTRetriever.load`.
        """
        fields, rest = split_options(RetrieverFields, options)
        return cls(engine_class().load(path, **rest), **fields)

    def add_nodes(self, nodes: Iterable[BaseNode]) -> list[str]:
        """Store nodes; one whose id is there already is replaced.

        Nodes that were found may be added again: what a search or a reranker put into their metadata is not
        stored.

        Returns:
            Their ids, in order.

        Raises:
            InvalidInputError: a node has no text, or an id was given twice. Nothing was stored then.
        """
        return store_nodes(self.engine, nodes, self.metadata_mode)

    async def aadd_nodes(self, nodes: Iterable[BaseNode]) -> list[str]:
        """`add_nodes` off the event loop."""
        return await asyncio.to_thread(self.add_nodes, nodes)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Put the index into a folder; see `jacolbert_rag.JaColBERTRetriever.save`."""
        self.engine.save(path, overwrite=overwrite)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self.engine.search(
            query_bundle.query_str,
            self.similarity_top_k,
            mode=self.mode,
            filter=_native(self.filters),
            highlight=self.highlight,
            abstain=self.abstain,
        )
        return [NodeWithScore(node=found_node(hit, details=self.highlight), score=hit.score) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # The base class would search on the event loop.
        return await asyncio.to_thread(self._retrieve, query_bundle)


class JaColBERTRerank(ModelWithEngine, BaseNodePostprocessor):
    """Orders nodes that another retriever found, with a JaColBERT model.

    Attributes:
        engine: the framework-free `jacolbert_rag.JaColBERTRetriever`; its index is not looked at.
        top_n: nodes that are kept, at least 1.
        keep_retrieval_score: put the score that a node came with into `metadata["retrieval_score"]`, which
            neither prompts nor embeddings read.
        metadata_mode: which of a node's metadata is read before its text; see `JaColBERTRetriever`.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: int = 2
    keep_retrieval_score: bool = False
    metadata_mode: MetadataMode = MetadataMode.NONE

    @field_validator("top_n")
    @classmethod
    def _check_top_n(cls, value: int) -> int:
        return check_count("top_n", value)

    @classmethod
    def class_name(cls) -> str:
        """Name of this component in LlamaIndex's serialization."""
        return "JaColBERTRerank"

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        top_n: int = 2,
        keep_retrieval_score: bool = False,
        metadata_mode: MetadataMode = MetadataMode.NONE,
        **options: Unpack[ModelOptions],
    ) -> Self:
        """A reranker with this model; see `jacolbert_rag.JaColBERTRetriever.from_pretrained`."""
        engine = engine_class().from_pretrained(model, **options)
        return cls(
            engine=engine,
            top_n=top_n,
            keep_retrieval_score=keep_retrieval_score,
            metadata_mode=metadata_mode,
        )

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """The best `top_n` nodes, best first, with raw MaxSim for a score."""
        if query_bundle is None:
            raise InvalidInputError("Reranking needs a query: pass query_str or query_bundle.")
        name = self.engine.encoder.checkpoint.name
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=name))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: name,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            ranked = self._rank(nodes, query_bundle.query_str)
            event.on_end(payload={EventPayload.NODES: ranked})
        dispatcher.event(ReRankEndEvent(nodes=ranked))
        return ranked

    def _rank(self, nodes: list[NodeWithScore], query: str) -> list[NodeWithScore]:
        # Positions for ids: the same node may have been found twice.
        passages = [
            Document(str(i), found.node.get_content(), title=title_of(found.node, self.metadata_mode))
            for i, found in enumerate(nodes)
        ]
        ranked = []
        for hit in self.engine.rerank(query, passages, self.top_n):
            found = nodes[int(hit.id)]
            node = found.node
            if self.keep_retrieval_score:
                node = with_hidden(node, {SCORE_KEY: found.score})
            ranked.append(NodeWithScore(node=node, score=hit.score))
        return ranked


def _native(filters: GivenFilters | None) -> Filter | Mapping[str, Any] | None:
    """Filters as the engine takes them."""
    return filters if filters is None or isinstance(filters, Filter | Mapping) else to_filter(filters)


# Where the names that are only asked for at times are from.
_ELSEWHERE = {
    "JaColBERTNodeParser": "llama_index_parser",
    "JaColBERTVectorStore": "llama_index_store",
    "NoEmbedding": "llama_index_store",
}


def __getattr__(name: str) -> Any:
    """Names of other modules, loaded when they are asked for (PEP 562)."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"jacolbert_rag.{_ELSEWHERE[name]}"), name)
