"""LlamaIndex's node parser over the library's splitter: Japanese sentences, counted in the model's tokens.

Needs llama-index-core alone: `pip install 'jacolbert-rag[llama-index]'`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from jacolbert_rag.adapters import engine_class, engine_of
from jacolbert_rag.config import ModelOptions
from jacolbert_rag.encode.splitter import Splitter, chunk_ids
from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.llama_index_nodes import title_of

# The module above says what to install where the framework is missing, so it comes first.
# isort: split
from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.callbacks import CallbackManager
from llama_index.core.node_parser import NodeParser
from llama_index.core.node_parser.node_utils import build_nodes_from_splits, default_id_func
from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.schema import Document as LlamaIndexDocument
from llama_index.core.utils import get_tqdm_iterable
from pydantic import computed_field

if TYPE_CHECKING:
    from jacolbert_rag.llama_index import JaColBERTRetriever
    from jacolbert_rag.llama_index_store import JaColBERTVectorStore
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine


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
        engine: Engine | JaColBERTRetriever | JaColBERTVectorStore,
        *,
        budget: int | None = None,
        overlap: int = 0,
        metadata_mode: MetadataMode = MetadataMode.NONE,
        callback_manager: CallbackManager | None = None,
    ) -> Self:
        """A parser for the model of a retriever.

        Args:
            engine: a `jacolbert_rag.JaColBERTRetriever`, or an adapter over one.
            budget: most tokens of a node; None for what the model reads of a document.
            overlap: most tokens that a node repeats from the one before.
            metadata_mode: see `JaColBERTNodeParser`.
            callback_manager: is told of parsing.
        """
        wrapped = engine_of(engine)
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
            engine_class().from_pretrained(model, **options),
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

    async def aget_nodes_from_documents(
        self, documents: Sequence[LlamaIndexDocument], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        """`get_nodes_from_documents` off the event loop, where the base class would do some of it."""
        return await asyncio.to_thread(self.get_nodes_from_documents, documents, show_progress, **kwargs)

    def _chunks(self, node: BaseNode) -> list[TextNode]:
        """A node in nodes that fit; one of its own where it fits whole."""
        title = title_of(node, self.metadata_mode)
        n_title, budget = self.splitter.count(title) if title else 0, self.splitter.budget
        if 3 * n_title > 2 * budget:
            raise InvalidInputError(
                f"The metadata of node {node.node_id!r} takes {n_title} of the {budget} tokens of a chunk, "
                "which leaves too few to its text. Name keys in excluded_embed_metadata_keys, or read a "
                "title alone: metadata_mode=MetadataMode.NONE."
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
