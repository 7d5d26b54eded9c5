"""LlamaIndex's retriever, vector store, node postprocessor and node parser over a JaColBERTRetriever.

Needs llama-index-core alone: `pip install 'jacolbert-rag[llama-index]'`. A node is stored whole, so it comes
back with its id, metadata, relationships and excluded keys. Documents that came into an index another way
come back as a `TextNode` with their metadata. Nodes that were passed in are never changed.
`JaColBERTVectorStore` and `NoEmbedding` are here too, from a module of their own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from jacolbert_rag.config import EngineOptions, LoadOptions, ModelOptions, SearchMode
from jacolbert_rag.datatypes import DETAILS_KEY, Document, Hit
from jacolbert_rag.encode.splitter import Splitter, chunk_ids
from jacolbert_rag.errors import InvalidInputError, OptionalDependencyError
from jacolbert_rag.index.filters import AllOf, AnyOf, Condition, Filter, NoneOf

try:
    import llama_index.core.instrumentation as instrument
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.bridge.pydantic import ConfigDict, Field
    from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
    from llama_index.core.ingestion import run_transformations
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.node_parser import NodeParser
    from llama_index.core.node_parser.node_utils import build_nodes_from_splits, default_id_func
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import (
        BaseNode,
        IndexNode,
        MetadataMode,
        NodeRelationship,
        NodeWithScore,
        QueryBundle,
        TextNode,
        TransformComponent,
    )
    from llama_index.core.schema import Document as LlamaIndexDocument
    from llama_index.core.utils import get_tqdm_iterable
    from llama_index.core.vector_stores import (
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
    from pydantic import computed_field
except ModuleNotFoundError as error:
    # `llama_index` is a namespace: another package of it may be there without the core.
    if error.name not in ("llama_index", "llama_index.core"):
        raise
    raise OptionalDependencyError(
        "jacolbert_rag.llama_index needs llama-index-core. Run: pip install 'jacolbert-rag[llama-index]'"
    ) from error

if TYPE_CHECKING:
    from jacolbert_rag.llama_index_store import JaColBERTVectorStore as JaColBERTVectorStore
    from jacolbert_rag.llama_index_store import NoEmbedding as NoEmbedding
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

# Metadata keys under which LlamaIndex's vector stores keep a node; `metadata_dict_to_node` reads them.
NODE_KEYS = ("_node_content", "_node_type")
# Metadata key of the document that a node is of, itself where it has none: for filters, which cannot read
# what is packed. LlamaIndex's own names for it may be keys of the user's.
SOURCE_KEY = "_ref_doc_id"

dispatcher = instrument.get_dispatcher(__name__)  # type: ignore[attr-defined]  # re-exported unmarked


class RetrieverFields(TypedDict, total=False):
    """Arguments of `JaColBERTRetriever` that its other constructors take too."""

    similarity_top_k: int
    filters: MetadataFilters | None
    mode: SearchMode
    highlight: bool
    abstain: bool
    metadata_mode: MetadataMode
    callback_manager: CallbackManager | None


class RetrieverOptions(RetrieverFields, EngineOptions, total=False):
    """Keyword arguments of `JaColBERTRetriever.from_pretrained`."""


class RetrieverLoadOptions(RetrieverFields, LoadOptions, total=False):
    """Keyword arguments of `JaColBERTRetriever.load`."""


class JaColBERTRetriever(BaseRetriever):
    """A JaColBERT index as a LlamaIndex retriever.

        retriever = JaColBERTRetriever.from_documents([Document(text="琵琶湖は日本最大の湖である。")])
        retriever.retrieve("日本で一番大きい湖は？")

    `NodeWithScore.score` is `jacolbert_rag.Hit.score`: the raw MaxSim score unless `mode` says otherwise, a
    sum over the query's tokens, so cutoffs made for cosines let everything pass. Attributes may be set at any
    time.

    Attributes:
        engine: the framework-free `jacolbert_rag.JaColBERTRetriever`.
        similarity_top_k: nodes of an answer, at least 1.
        filters: what nodes must be to be found; nested ones too.
        mode: "jacolbert" finds by token embeddings, "bm25" by words, "hybrid" by both.
        highlight: put `jacolbert_rag.Hit.details` into `metadata["jacolbert"]` of found nodes: scores that
            mean the same for every query, and which characters answered. Neither prompts nor embeddings read
            that key.
        abstain: return nothing where nothing answers; the engine must have been calibrated.
        metadata_mode: which of a node's metadata is encoded before its text when nodes are added.
    """

    def __init__(
        self,
        engine: Engine,
        similarity_top_k: int = 2,
        *,
        filters: MetadataFilters | None = None,
        mode: SearchMode = "jacolbert",
        highlight: bool = False,
        abstain: bool = False,
        metadata_mode: MetadataMode = MetadataMode.NONE,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        """Wrap a framework-free retriever; the last four arguments are those of `BaseRetriever`."""
        super().__init__(callback_manager, object_map, objects, verbose)
        self.engine = engine
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.mode: SearchMode = mode
        self.highlight = highlight
        self.abstain = abstain
        self.metadata_mode = metadata_mode

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **options: Unpack[RetrieverOptions]) -> Self:
        """A retriever with this model, over a saved index or over none yet.

        Options are the attributes and `callback_manager`, and those of
        `jacolbert_rag.JaColBERTRetriever.from_pretrained`, which tells what is raised.
        """
        fields, rest = _split(options)
        return cls(_engine_class().from_pretrained(model, **rest), **fields)

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
        fields, rest = _split(options)
        return cls(_engine_class().load(path, **rest), **fields)

    def add_nodes(self, nodes: Iterable[BaseNode]) -> list[str]:
        """Store nodes; one whose id is there already is replaced.

        Returns:
            Their ids, in order.

        Raises:
            InvalidInputError: a node has no text, or an id was given twice. Nothing was stored then.
        """
        return store_nodes(self.engine, nodes, self.metadata_mode)

    def save(self, path: str | Path) -> None:
        """Put the index into a folder; see `jacolbert_rag.JaColBERTRetriever.save`."""
        self.engine.save(path)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self.engine.search(
            query_bundle.query_str,
            self.similarity_top_k,
            mode=self.mode,
            filter=to_filter(self.filters) if self.filters is not None else None,
            highlight=self.highlight,
            abstain=self.abstain,
        )
        return [NodeWithScore(node=found_node(hit, details=self.highlight), score=hit.score) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # The base class would search on the event loop.
        return await asyncio.to_thread(self._retrieve, query_bundle)


class JaColBERTRerank(BaseNodePostprocessor):
    """Orders nodes that another retriever found, with a JaColBERT model.

    Attributes:
        engine: the framework-free `jacolbert_rag.JaColBERTRetriever`; its index is not looked at.
        top_n: nodes that are kept, at least 1.
        keep_retrieval_score: put the score that a node came with into `metadata["retrieval_score"]`.
        metadata_mode: which of a node's metadata is read before its text.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    engine: Any = Field(exclude=True, repr=False)
    top_n: int = 2
    keep_retrieval_score: bool = False
    metadata_mode: MetadataMode = MetadataMode.NONE

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
        engine = _engine_class().from_pretrained(model, **options)
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
            Document(str(i), found.node.get_content(), title=_title(found.node, self.metadata_mode))
            for i, found in enumerate(nodes)
        ]
        ranked = []
        for hit in self.engine.rerank(query, passages, self.top_n):
            found = nodes[int(hit.id)]
            node = found.node
            if self.keep_retrieval_score:
                metadata = {**node.metadata, "retrieval_score": found.score}
                node = node.model_copy(update={"metadata": metadata})
            ranked.append(NodeWithScore(node=node, score=hit.score))
        return ranked


class JaColBERTNodeParser(NodeParser):
    """Parses documents into nodes of whole Japanese sentences that the model reads to their end.

        parser = JaColBERTNodeParser.from_retriever(retriever)
        retriever.add_nodes(parser.get_nodes_from_documents(documents))

    A node's id is made from its document's and from what it says, so that a changed document gives new ids
    only where it has changed; `id_func` makes others. `start_char_idx` and `end_char_idx` are exact.

    Attributes:
        splitter: the `jacolbert_rag.encode.splitter.Splitter`; not serialized.
        model_name: whose tokens are counted; for caches, which look at what is serialized.
        metadata_mode: which metadata is read before a node's text, and so takes tokens; as in
            `JaColBERTRetriever`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    splitter: Any = Field(exclude=True, repr=False)
    model_name: str = ""
    metadata_mode: MetadataMode = MetadataMode.NONE

    @classmethod
    def class_name(cls) -> str:
        """Name of this component in LlamaIndex's serialization."""
        return "JaColBERTNodeParser"

    @classmethod
    def from_retriever(
        cls,
        engine: Engine | JaColBERTRetriever,
        *,
        budget: int | None = None,
        overlap: int = 0,
        metadata_mode: MetadataMode = MetadataMode.NONE,
        callback_manager: CallbackManager | None = None,
    ) -> Self:
        """A parser for the model of a retriever.

        Args:
            engine: a `jacolbert_rag.JaColBERTRetriever`, or the adapter over one.
            budget: most tokens of a node; None for what the model reads of a document.
            overlap: most tokens that a node repeats from the one before.
            metadata_mode: see `JaColBERTNodeParser`.
            callback_manager: is told of parsing.
        """
        wrapped: Any = getattr(engine, "engine", engine)
        return cls(
            splitter=Splitter.for_tokenizer(wrapped.encoder.tokenizer, budget=budget, overlap=overlap),
            model_name=wrapped.encoder.checkpoint.name,
            metadata_mode=metadata_mode,
            callback_manager=callback_manager or CallbackManager([]),
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        budget: int | None = None,
        overlap: int = 0,
        metadata_mode: MetadataMode = MetadataMode.NONE,
        callback_manager: CallbackManager | None = None,
        **options: Unpack[ModelOptions],
    ) -> Self:
        """A parser for a model that is not loaded yet; see `from_retriever`.

        The other arguments and what is raised are those of its `from_pretrained`.
        """
        return cls.from_retriever(
            _engine_class().from_pretrained(model, **options),
            budget=budget,
            overlap=overlap,
            metadata_mode=metadata_mode,
            callback_manager=callback_manager,
        )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def budget(self) -> int:
        """Most tokens of a node."""
        return int(self.splitter.budget)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def overlap(self) -> int:
        """Most tokens that a node repeats from the one before."""
        return int(self.splitter.overlap)

    def _parse_nodes(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        parsed: list[BaseNode] = []
        for node in get_tqdm_iterable(nodes, show_progress, "Parsing nodes"):
            parsed += self._chunks(node)
        return parsed

    async def _aparse_nodes(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        # The base class would count tokens on the event loop.
        return await asyncio.to_thread(self._parse_nodes, nodes, show_progress=show_progress, **kwargs)

    def _chunks(self, node: BaseNode) -> list[TextNode]:
        """A node in nodes that fit; one of its own where it fits whole."""
        title = _title(node, self.metadata_mode)
        n_title, budget = self.splitter.count(title) if title else 0, self.splitter.budget
        if 3 * n_title > 2 * budget:
            raise InvalidInputError(
                f"The metadata of node {node.node_id!r} takes {n_title} of the {budget} tokens of a chunk, "
                "which leaves too few to its text. Name keys in excluded_embed_metadata_keys, or read none: "
                "metadata_mode=MetadataMode.NONE."
            )
        chunks = self.splitter.chunks(node.get_content(MetadataMode.NONE), title=title)
        texts = [chunk.text for chunk in chunks]
        ids = chunk_ids(node.node_id, texts, title=title)
        id_func = (lambda i, _: ids[i]) if self.id_func is default_id_func else self.id_func
        built = build_nodes_from_splits(texts, node, id_func=id_func)
        # A node of a document gives nodes of that document, so places are those in it.
        first = 0
        if isinstance(node, TextNode) and node.source_node is not None:
            first = node.start_char_idx or 0
        for new, chunk in zip(built, chunks, strict=True):
            new.start_char_idx, new.end_char_idx = first + chunk.start, first + chunk.end
        return built

    def _postprocess_parsed_nodes(
        self, nodes: list[BaseNode], parent_doc_map: dict[str, LlamaIndexDocument]
    ) -> list[BaseNode]:
        """Metadata and relationships by the base class, without the positions that it searches for."""
        places = [(n.start_char_idx, n.end_char_idx) for n in nodes if isinstance(n, TextNode)]
        nodes = super()._postprocess_parsed_nodes(nodes, parent_doc_map)
        text_nodes = [node for node in nodes if isinstance(node, TextNode)]
        for node, (start, end) in zip(text_nodes, places, strict=True):
            node.start_char_idx, node.end_char_idx = start, end
        return nodes


def __getattr__(name: str) -> Any:
    """The vector store's names from their module when they are asked for (PEP 562)."""
    if name not in ("JaColBERTVectorStore", "NoEmbedding"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jacolbert_rag import llama_index_store

    return getattr(llama_index_store, name)


def to_filter(filters: MetadataFilters) -> Filter:
    """LlamaIndex's conditions on metadata as the engine's; see `jacolbert_rag.index.filters` for operators.

    "not" holds where none of its conditions does. `is_empty` takes no value: what is given is ignored. No
    conditions at all let everything through.

    Raises:
        InvalidInputError: an operator or a condition is unknown, or a value none that the operator compares
            with.
    """
    joins: dict[FilterCondition | None, type[AllOf | AnyOf | NoneOf]] = {
        FilterCondition.AND: AllOf,
        FilterCondition.OR: AnyOf,
        FilterCondition.NOT: NoneOf,
        None: AllOf,
    }
    if not isinstance(filters, MetadataFilters) or filters.condition not in joins:
        condition = getattr(filters, "condition", None)
        raise InvalidInputError(
            f"filters is a {type(filters).__name__} of condition {condition!r}; expected MetadataFilters, "
            "joined by and, or, or not."
        )
    parts = tuple(
        _condition(part) if isinstance(part, MetadataFilter) else to_filter(part) for part in filters.filters
    )
    return joins[filters.condition](parts) if parts else AllOf(())


def _condition(given: MetadataFilter) -> Condition:
    # An operator is an Enum of texts, which are the engine's own; a newer one it refuses by name.
    operator: Any = getattr(given.operator, "value", given.operator)
    return Condition(given.key, operator, True if operator == FilterOperator.IS_EMPTY else given.value)


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a constructor as the retriever's own, and the rest."""
    fields = {key: value for key, value in options.items() if key in RetrieverFields.__annotations__}
    return fields, {key: value for key, value in options.items() if key not in fields}


def _engine_class() -> type[Engine]:
    """The framework-free retriever, imported when one is made: it loads torch."""
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

    return Engine


def _as_text_node(node: BaseNode) -> BaseNode:
    """A LlamaIndex document as the node of its whole text, under the same id; other nodes as they are."""
    if not isinstance(node, LlamaIndexDocument):
        return node
    return TextNode(
        id_=node.id_,
        text=node.text,
        metadata=node.metadata,
        excluded_embed_metadata_keys=node.excluded_embed_metadata_keys,
        excluded_llm_metadata_keys=node.excluded_llm_metadata_keys,
        metadata_template=node.metadata_template,
        metadata_separator=node.metadata_separator,
        text_template=node.text_template,
        relationships={**node.relationships, NodeRelationship.SOURCE: node.as_related_node_info()},
    )


def _title(node: BaseNode, mode: MetadataMode) -> str:
    """What is read before a node's text."""
    return node.get_metadata_str(mode).strip()


def store_nodes(engine: Engine, nodes: Iterable[BaseNode], mode: MetadataMode) -> list[str]:
    """Store nodes in an engine; their ids, in order. See `JaColBERTRetriever.add_nodes`."""
    documents = [_document(_as_text_node(node), mode) for node in nodes]
    engine.upsert(documents)
    return [document.id for document in documents]


def _document(node: BaseNode, mode: MetadataMode) -> Document:
    """A node as a document to store: its text and metadata, readable by all, and the rest of it packed."""
    packed = node_to_metadata_dict(node, remove_text=True)
    # Not all of what is packed: LlamaIndex's doc_id and the like would replace a user's own keys.
    metadata = json.loads(packed["_node_content"])["metadata"]
    metadata |= {key: packed[key] for key in NODE_KEYS}
    metadata[SOURCE_KEY] = node.ref_doc_id or node.node_id
    return Document(node.node_id, node.get_content(), metadata, title=_title(node, mode))


def stored_node(document: Document) -> BaseNode:
    """The node that was stored, or a text node of a document that was never one."""
    if all(key in document.metadata for key in NODE_KEYS):
        node = metadata_dict_to_node(dict(document.metadata), text=document.text)
        node.id_ = document.id  # a copy made by another framework has an id of its own
        return node
    metadata = {"title": document.title, **document.metadata} if document.title else document.metadata
    return TextNode(id_=document.id, text=document.text, metadata=dict(metadata))


def found_node(hit: Hit, *, details: bool) -> BaseNode:
    """The node of a hit; with details of how it was found, which nothing that reads its metadata sees."""
    node = stored_node(hit.document)
    if details:
        node.metadata[DETAILS_KEY] = hit.details()
        hidden = (DETAILS_KEY, *NODE_KEYS)
        node.excluded_embed_metadata_keys = _with(node.excluded_embed_metadata_keys, hidden)
        node.excluded_llm_metadata_keys = _with(node.excluded_llm_metadata_keys, hidden)
    return node


def _with(keys: Sequence[str], more: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*keys, *more]))
