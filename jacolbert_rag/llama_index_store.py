"""LlamaIndex's vector store over a JaColBERTRetriever, and the embedding that it goes without.

Needs llama-index-core alone: `pip install 'jacolbert-rag[llama-index]'`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from jacolbert_rag.adapters import check_count, engine_class, split_options
from jacolbert_rag.config import EngineOptions, LoadOptions, SearchMode
from jacolbert_rag.datatypes import Document, Hit
from jacolbert_rag.encode.splitter import parent_of
from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.index.filters import AllOf, AnyOf, Condition, Filter, Ids
from jacolbert_rag.llama_index_nodes import (
    NODE_KEYS,
    SOURCE_KEY,
    found_node,
    store_nodes,
    stored_node,
    to_filter,
)

# The module above says what to install where the framework is missing, so it comes first.
# isort: split
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, NAMESPACE_SEP
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_DIR,
    DEFAULT_PERSIST_FNAME,
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from jacolbert_rag.adapter_classes import ModelWithEngine

if TYPE_CHECKING:
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

# By LlamaIndex's names for them.
_MODES: dict[str, SearchMode] = {
    "default": "jacolbert",
    "hybrid": "hybrid",
    "text_search": "bm25",
    "sparse": "bm25",
}


class NoEmbedding(BaseEmbedding):
    """Stands where LlamaIndex asks for an embedding model, and computes nothing.

    Without it, `VectorStoreIndex` asks `Settings` for one, which is OpenAI's, and `IngestionPipeline` stores
    no node at all: it passes over those that have no embedding.
    """

    model_name: str = "none"

    @classmethod
    def class_name(cls) -> str:
        """Name of this component in LlamaIndex's serialization."""
        return "NoEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        return [0.0]  # not empty: some of LlamaIndex takes the mean, or asks for the truth of it

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return [0.0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return [0.0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return [0.0]


class StoreFields(TypedDict, total=False):
    """Fields of `JaColBERTVectorStore`, but for the engine."""

    metadata_mode: MetadataMode
    highlight: bool
    abstain: bool


class StoreOptions(StoreFields, EngineOptions, total=False):
    """Keyword arguments of `JaColBERTVectorStore.from_pretrained`."""


class StoreLoadOptions(StoreFields, LoadOptions, total=False):
    """Keyword arguments of `JaColBERTVectorStore.load`."""


class JaColBERTVectorStore(ModelWithEngine, BasePydanticVectorStore):
    """A JaColBERT index as a LlamaIndex vector store, for `VectorStoreIndex` and `IngestionPipeline`.

    For example::

        store = JaColBERTVectorStore.from_pretrained()
        index = VectorStoreIndex.from_vector_store(store, embed_model=NoEmbedding())
        index.as_retriever(similarity_top_k=3, vector_store_query_mode="hybrid", filters=filters)

        pipeline = IngestionPipeline(
            transformations=[JaColBERTNodeParser.from_retriever(store), NoEmbedding()],
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
            vector_store=store,
        )
        pipeline.run(documents=documents)  # again when documents have changed or gone

    The model embeds each token itself, so the embeddings of nodes are ignored; but LlamaIndex insists on
    them. `NoEmbedding` must be among the transformations of a pipeline, which passes over nodes without one
    in silence, and the `embed_model` of an index.

    `VectorStoreIndex` restricts searches to the `IndexNode`s among the nodes that it stored itself, where
    there are any; store those by `add`, and make the index by `from_vector_store`.

    Query modes: "default" finds by token embeddings, "text_search" and "sparse" by words, "hybrid" by both.
    Similarities are `jacolbert_rag.Hit.score`, by default the raw MaxSim score: a sum over the query's
    tokens, so cutoffs made for cosines let everything pass.

    Attributes:
        engine: the framework-free `jacolbert_rag.JaColBERTRetriever`.
        metadata_mode: which of a node's metadata is encoded before its text when nodes are added; by `NONE`,
            `metadata["title"]` where it is a text, unless `excluded_embed_metadata_keys` names it.
        highlight: put `jacolbert_rag.Hit.details` into `metadata["jacolbert"]` of found nodes: scores that
            mean the same for every query, and which characters answered. Neither prompts nor embeddings read
            that key. A value of a node's own stays there.
        abstain: return nothing where nothing answers; the engine must have been calibrated.
    """

    model_config = ConfigDict(extra="forbid")

    stores_text: bool = True
    is_embedding_query: bool = False
    metadata_mode: MetadataMode = MetadataMode.NONE
    highlight: bool = False
    abstain: bool = False

    @classmethod
    def class_name(cls) -> str:
        """Name of this component in LlamaIndex's serialization."""
        return "JaColBERTVectorStore"

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **options: Unpack[StoreOptions]) -> Self:
        """A store with this model, over a saved index (`index=folder`) or an empty one.

        Options are the attributes, and those of `jacolbert_rag.JaColBERTRetriever.from_pretrained`, which
        tells what is raised.
        """
        fields, rest = split_options(StoreFields, options)
        return cls(engine=engine_class().from_pretrained(model, **rest), **fields)

    @classmethod
    def load(cls, path: str | Path, **options: Unpack[StoreLoadOptions]) -> Self:
        """A saved or persisted index with the model that made it.

        Options are the attributes, and those of `jacolbert_rag.JaColBERTRetriever.load`.
        """
        fields, rest = split_options(StoreFields, options)
        return cls(engine=engine_class().load(path, **rest), **fields)

    @property
    def client(self) -> Engine:
        """The engine."""
        engine: Engine = self.engine
        return engine

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Copy the index as it is now to a folder, from which `from_persist_path` reads it.

        The store stays where it is: what is added later is not in the copy. An index that is to be live in a
        folder is put there once by `store.engine.save(folder)`. `StorageContext.persist("storage")` calls
        this with "storage/default__vector_store.json", which is a folder then.

        Raises:
            InvalidInputError: `fs` is not the local file system, or the folder holds something else.
        """
        _check_local(fs)
        self.engine.copy_to(persist_path)

    @classmethod
    def from_persist_path(
        cls, persist_path: str, fs: Any = None, **options: Unpack[StoreLoadOptions]
    ) -> Self:
        """`load`, by LlamaIndex's name for it. The folder that it opens is live."""
        _check_local(fs)
        return cls.load(persist_path, **options)

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str = DEFAULT_PERSIST_DIR,
        namespace: str = DEFAULT_VECTOR_STORE,
        fs: Any = None,
        **options: Unpack[StoreLoadOptions],
    ) -> Self:
        """The index that `StorageContext.persist` has put into a folder; see `from_persist_path`."""
        name = f"{namespace}{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}"
        return cls.from_persist_path(str(Path(persist_dir) / name), fs, **options)

    def add(self, nodes: Sequence[BaseNode]) -> list[str]:  # type: ignore[override]  # no unknown arguments
        """Store nodes; one whose id is there already is replaced, and one that is the same left alone.

        Nodes that were found may be added again: what a search or a reranker put into their metadata is not
        stored.

        Returns:
            Their ids, in order.

        Raises:
            InvalidInputError: a node has no text, or an id was given twice. Nothing was stored then.
        """
        return store_nodes(self.engine, nodes, self.metadata_mode)

    def delete(self, ref_doc_id: str) -> None:  # type: ignore[override]
        """Remove all nodes of a document; a node without one is its own.

        Raises:
            InvalidInputError: `ref_doc_id` is no text.
        """
        if not isinstance(ref_doc_id, str):
            raise InvalidInputError(
                f"ref_doc_id is {ref_doc_id!r}; expected the id of one document, a str. Nodes are removed by "
                "their own ids, or by filters, with delete_nodes."
            )
        nodes = self.engine.documents(_of_sources(self.engine, {ref_doc_id}))
        self.engine.delete([document.id for document in nodes])

    def delete_nodes(  # type: ignore[override]
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> None:
        """Remove nodes: of these ids, that the filters let through, or both where both are given.

        Raises:
            InvalidInputError: neither was given.
        """
        if node_ids is None and filters is None:
            raise InvalidInputError("delete_nodes needs node_ids or filters. To remove everything: clear().")
        self.engine.delete([document.id for document in _documents(self.engine, node_ids, filters)])

    def clear(self) -> None:
        """Remove everything."""
        self.engine.delete(self.engine.ids())

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Nodes of these ids, in order, or all; those that the filters let through.

        Unknown ids are passed over.
        """
        return [stored_node(document) for document in _documents(self.engine, node_ids, filters)]

    def query(  # type: ignore[override]
        self, query: VectorStoreQuery, *, highlight: bool | None = None, abstain: bool | None = None
    ) -> VectorStoreQueryResult:
        """The nodes that answer best.

        Args:
            query: its `query_str` is asked, not its embedding. `node_ids` restricts the search unless it is
                empty, which is what `VectorStoreIndex` sends; `doc_ids` does so even then. They and `filters`
                hold together. Where they are all there is and `query_str` is blank, which
                `VectorIndexAutoRetriever` may send, the first nodes that they let through are found, with
                similarity 0.
            highlight: in place of the attribute; a retriever takes `vector_store_kwargs={"highlight": True}`.
            abstain: in place of the attribute.

        Returns:
            Nodes, ids and similarities, best first.

        Raises:
            InvalidInputError: there is no `query_str`, or it is blank and nothing restricts it, the mode is
                none of this store's, `alpha` is not from 0 to 1 or was given in another mode than "hybrid",
                in hybrid search `sparse_top_k` was given, or the engine refuses the rest.
        """
        if query.query_str is None:
            raise InvalidInputError(
                "The query has no query_str: a query has one embedding for each of its tokens here, so there "
                "is no search by query_embedding. Pass the text: VectorStoreQuery(query_str=...)."
            )
        mode, k = _mode(query)
        weight = _weight(query)
        highlight = self.highlight if highlight is None else highlight
        restriction = _restriction(self.engine, query)
        if not query.query_str.strip():
            hits = _first(self.engine, restriction, k)
        else:
            hits = self.engine.search(
                query.query_str,
                k,
                mode=mode,
                weight=weight,
                filter=restriction,
                highlight=highlight,
                abstain=self.abstain if abstain is None else abstain,
            )
        return VectorStoreQueryResult(
            nodes=[found_node(hit, details=highlight) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    # The base class would do all of these on the event loop.

    async def async_add(self, nodes: Sequence[BaseNode]) -> list[str]:  # type: ignore[override]
        """`add` off the event loop."""
        return await asyncio.to_thread(self.add, nodes)

    async def adelete(self, ref_doc_id: str) -> None:  # type: ignore[override]
        """`delete` off the event loop."""
        await asyncio.to_thread(self.delete, ref_doc_id)

    async def adelete_nodes(  # type: ignore[override]
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> None:
        """`delete_nodes` off the event loop."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters)

    async def aclear(self) -> None:
        """`clear` off the event loop."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """`get_nodes` off the event loop."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(  # type: ignore[override]
        self, query: VectorStoreQuery, *, highlight: bool | None = None, abstain: bool | None = None
    ) -> VectorStoreQueryResult:
        """`query` off the event loop."""
        return await asyncio.to_thread(self.query, query, highlight=highlight, abstain=abstain)


def _check_local(fs: Any) -> None:
    if fs is not None and type(fs).__name__ != "LocalFileSystem":
        raise InvalidInputError(
            f"An index is a folder on a local disk, and fs is {type(fs).__name__}. Persist it locally, and "
            "copy the folder while nothing writes to it."
        )


def _mode(query: VectorStoreQuery) -> tuple[SearchMode, int]:
    """How a query wants nodes to be found, and how many of them."""
    asked = getattr(query.mode, "value", query.mode)
    if asked not in _MODES:
        raise InvalidInputError(
            f"This store has no query mode {asked!r}; expected one of {', '.join(_MODES)}. Others need one "
            "vector for a query and for each node, and there is one for each token here."
        )
    mode = _MODES[asked]
    if mode == "hybrid" and query.sparse_top_k is not None:
        raise InvalidInputError(
            f"sparse_top_k is {query.sparse_top_k!r}, but how many nodes full-text search proposes is a "
            "setting of the index. Leave sparse_top_k out, and load the index with the setting: "
            "JaColBERTVectorStore.load(path, settings=IndexSettings(lexical=LexicalConfig(n_fused=...)))."
        )
    wanted = {"hybrid": query.hybrid_top_k, "bm25": query.sparse_top_k}.get(mode)
    return mode, check_count("k", query.similarity_top_k if wanted is None else wanted)


def _weight(query: VectorStoreQuery) -> float | None:
    """How much full-text search weighs, by LlamaIndex's alpha: 0 is words alone, 1 is embeddings alone."""
    if query.alpha is None:
        return None
    if _mode(query)[0] != "hybrid":
        raise InvalidInputError(
            f"alpha is {query.alpha!r}, which is of hybrid search, and the query mode is {query.mode!r}. "
            'Leave alpha out, or ask with vector_store_query_mode="hybrid".'
        )
    if not 0 <= query.alpha <= 1:
        raise InvalidInputError(
            f"alpha is {query.alpha!r}; expected a number from 0 (words alone) to 1 (embeddings alone)."
        )
    return 1.0 - query.alpha


def _first(engine: Engine, restriction: Filter | None, k: int) -> list[Hit]:
    """The first k nodes that may be found, as hits of no score.

    Raises:
        InvalidInputError: all may be found.
    """
    if restriction is None:
        raise InvalidInputError(
            "The query has no text, and nothing restricts it. Pass the text of a question, or filters, whose "
            "nodes are then found in the order in which they were added. get_nodes() gives all nodes."
        )
    return [Hit(document, 0.0) for document in islice(engine.documents(restriction), k)]


def _restriction(engine: Engine, query: VectorStoreQuery) -> Filter | None:
    """What nodes must be to be found."""
    parts: list[Filter] = [to_filter(query.filters)] if query.filters is not None else []
    if query.doc_ids is not None:
        parts.append(_of_sources(engine, set(query.doc_ids)))
    if query.node_ids:
        parts.append(Ids(frozenset(query.node_ids)))
    return AllOf(tuple(parts)) if parts else None


def _of_sources(engine: Engine, sources: set[str]) -> Filter:
    """The nodes of some documents; of what is no node, the documents themselves and their chunks."""
    # An earlier version packed the source of a node away.
    packed = AllOf((Condition(NODE_KEYS[1], "exists", True), Condition(SOURCE_KEY, "exists", False)))
    named = [id for source in sources for id in (source, *engine.ids(f"{source}#"))]
    others = chain(engine.documents(packed), engine.get(named))
    ids = [each.id for each in others if SOURCE_KEY not in each.metadata and _source_of(each) in sources]
    return AnyOf((Condition(SOURCE_KEY, "in", sorted(sources)), Ids(frozenset(ids))))


def _source_of(document: Document) -> str:
    """Id of the document that a node is of; its own where it is of none."""
    if SOURCE_KEY in document.metadata:
        return str(document.metadata[SOURCE_KEY])
    if all(key in document.metadata for key in NODE_KEYS):  # stored by an earlier version
        return stored_node(document).ref_doc_id or document.id
    return parent_of(document) or document.id


def _documents(engine: Engine, ids: list[str] | None, filters: MetadataFilters | None) -> list[Document]:
    """Stored documents of these ids, in order, or all; those that the filters let through."""
    if filters is None:
        return list(engine.documents()) if ids is None else engine.get(ids)
    conditions = to_filter(filters)
    if ids is None:
        return list(engine.documents(conditions))
    found = {each.id: each for each in engine.documents(AllOf((conditions, Ids(frozenset(ids)))))}
    return [found[id] for id in ids if id in found]
