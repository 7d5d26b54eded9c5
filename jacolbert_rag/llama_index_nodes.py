"""LlamaIndex's nodes and filters as documents and filters of the engine, and back.

Needs llama-index-core alone: `pip install 'jacolbert-rag[llama-index]'`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jacolbert_rag.adapters import (
    TITLE_KEY,
    has_details,
    is_free,
    title_in,
    without_results,
)
from jacolbert_rag.datatypes import DETAILS_KEY, Document, Hit
from jacolbert_rag.errors import InvalidInputError, OptionalDependencyError
from jacolbert_rag.index.filters import AllOf, AnyOf, Condition, Filter, NoneOf

try:
    from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, TextNode
    from llama_index.core.schema import Document as LlamaIndexDocument
    from llama_index.core.vector_stores import (
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
except ModuleNotFoundError as error:
    # `llama_index` is a namespace: another package of it may be there without the core.
    if error.name not in ("llama_index", "llama_index.core"):
        raise
    raise OptionalDependencyError(
        "jacolbert_rag.llama_index needs llama-index-core. Run: pip install 'jacolbert-rag[llama-index]'"
    ) from error

if TYPE_CHECKING:
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

# Metadata keys under which LlamaIndex's vector stores keep a node; `metadata_dict_to_node` reads them.
NODE_KEYS = ("_node_content", "_node_type")
# Metadata key of the document that a node is of, itself where it has none: for filters, which cannot read
# what is packed. LlamaIndex's own names for it may be keys of the user's.
SOURCE_KEY = "_ref_doc_id"
SCORE_KEY = "retrieval_score"  # metadata key of the score that a node had before it was reranked
_RESERVED = (*NODE_KEYS, SOURCE_KEY)
# What filters may call it, as in LlamaIndex's own stores.
_SOURCE_NAMES = ("ref_doc_id", "doc_id", "document_id")


def to_filter(filters: MetadataFilters) -> Filter:
    """LlamaIndex's conditions on metadata as the engine's; see `jacolbert_rag.index.filters` for operators.

    "not" holds where none of its conditions does. 0 and 1 equal false and true, as they do in LlamaIndex.
    `is_empty` takes no value: what is given is ignored. No conditions at all let everything through.
    "ref_doc_id", "doc_id" and "document_id" are the document that a node is of, itself where it is of none;
    where the node's metadata has such a key of its own, they are that. Of what came into the index another
    way than as a node they are not known.

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
            "joined by and, or, or not. Dicts and the engine's own filters go to the retriever alone."
        )
    parts = tuple(
        _condition(part) if isinstance(part, MetadataFilter) else to_filter(part) for part in filters.filters
    )
    return joins[filters.condition](parts) if parts else AllOf(())


def _condition(given: MetadataFilter) -> Filter:
    # An operator is an Enum of texts, which are the engine's own; a newer one it refuses by name.
    operator: Any = getattr(given.operator, "value", given.operator)
    value = True if operator == FilterOperator.IS_EMPTY else given.value
    condition = Condition(given.key, *_with_truths(operator, value))
    if given.key not in _SOURCE_NAMES or not _can_be_an_id(value):
        return condition
    is_own = Condition(given.key, "exists", True)
    of_source = AllOf((NoneOf((is_own,)), Condition(SOURCE_KEY, operator, value)))
    return AnyOf((AllOf((is_own, condition)), of_source))


def _can_be_an_id(value: Any) -> bool:
    """Whether a condition's value can be asked of an id; True is that of `is_empty`."""
    return value is True or all(
        isinstance(each, str) for each in (value if isinstance(value, list) else [value])
    )


def _with_truths(operator: Any, value: Any) -> tuple[Any, Any]:
    """Equality with 0 and 1 as equality with false and true, too: LlamaIndex's filters have no booleans."""
    values = value if operator in ("in", "nin") and isinstance(value, list) else [value]
    truths = [bool(each) for each in values if isinstance(each, int | float) and each in (0, 1)]
    if not truths or operator not in ("==", "!=", "in", "nin"):
        return operator, value
    return "in" if operator in ("==", "in") else "nin", [*values, *truths]


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


def title_of(node: BaseNode, mode: MetadataMode) -> str:
    """What is read before a node's text: the metadata of a mode, or by `NONE` the title among them.

    A title of `excluded_embed_metadata_keys` is none.
    """
    if mode is MetadataMode.NONE:
        return "" if TITLE_KEY in node.excluded_embed_metadata_keys else title_in(node.metadata)
    return node.get_metadata_str(mode).strip()


def store_nodes(engine: Engine, nodes: Iterable[BaseNode], mode: MetadataMode) -> list[str]:
    """Store nodes in an engine; their ids, in order. See `JaColBERTRetriever.add_nodes`."""
    documents = [_document(node, mode) for node in _without_results(engine, map(_as_text_node, nodes))]
    engine.upsert(documents)
    return [document.id for document in documents]


def _without_results(engine: Engine, nodes: Iterable[BaseNode]) -> list[BaseNode]:
    """Nodes without what a search or a reranker put into their metadata; those that have none as they are."""
    nodes = list(nodes)
    cleaned = without_results(engine, [(node.node_id, node.metadata) for node in nodes], [SCORE_KEY])
    return [
        node if len(metadata) == len(node.metadata) else _with_metadata(node, metadata)
        for node, metadata in zip(nodes, cleaned, strict=True)
    ]


def _with_metadata(node: BaseNode, metadata: dict[str, Any]) -> BaseNode:
    """A copy of a node with less metadata, of which the keys that are gone are excluded no more."""
    gone = {*node.metadata} - {*metadata} | ({*NODE_KEYS} if has_details(node.metadata) else set())
    return node.model_copy(
        update={
            "metadata": metadata,
            "excluded_embed_metadata_keys": [k for k in node.excluded_embed_metadata_keys if k not in gone],
            "excluded_llm_metadata_keys": [k for k in node.excluded_llm_metadata_keys if k not in gone],
        }
    )


def _document(node: BaseNode, mode: MetadataMode) -> Document:
    """A node as a document to store: its text and metadata, readable by all, and the rest of it packed."""
    content, kind = NODE_KEYS
    # Of all that LlamaIndex makes of it only this: its doc_id and the like would replace a user's own keys.
    dumped = json.loads(node_to_metadata_dict(node, remove_text=True)[content])
    own = dumped.pop("metadata")
    packed = {key: value for key, value in dumped.items() if not _is_empty_default(node, key, value)}
    for related in _related(packed):
        if json.dumps(related["metadata"]) == json.dumps(own):  # as of most chunks and their documents
            del related["metadata"]
    if reserved := {key: own[key] for key in _RESERVED if key in own}:
        packed["metadata"] = reserved  # a user's own keys of these names
    metadata = {
        **own,
        content: json.dumps(packed, ensure_ascii=False),
        kind: node.class_name(),
        SOURCE_KEY: node.ref_doc_id or node.node_id,
    }
    return Document(node.node_id, node.get_content(), metadata, title=title_of(node, mode))


def _is_empty_default(node: BaseNode, key: str, value: Any) -> bool:
    field = type(node).model_fields.get(key)
    return (
        value in (None, "", [], {})
        and field is not None
        and value == field.get_default(call_default_factory=True)
    )


def _related(packed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The other nodes of a packed node's relationships, each of them one or a list."""
    for related in packed.get("relationships", {}).values():
        yield from related if isinstance(related, list) else [related]


def stored_node(document: Document) -> BaseNode:
    """The node that was stored, or a text node of a document that was never one.

    Text, id and metadata are the document's: another framework may have changed them.
    """
    if all(key in document.metadata for key in NODE_KEYS):
        content, kind = NODE_KEYS
        packed = json.loads(document.metadata[content])
        metadata = {key: value for key, value in document.metadata.items() if key not in _RESERVED}
        # Earlier versions packed all of the metadata.
        kept = {key: value for key, value in packed.get("metadata", {}).items() if key in _RESERVED}
        packed |= {"id_": document.id, "metadata": metadata | kept}
        for related in _related(packed):
            related.setdefault("metadata", packed["metadata"])
        parts = {content: json.dumps(packed), kind: document.metadata[kind]}
        return metadata_dict_to_node(parts, text=document.text)
    return TextNode(id_=document.id, text=document.text, metadata=dict(document.fields))


def found_node(hit: Hit, *, details: bool) -> BaseNode:
    """The node of a hit; with details of how it was found, which nothing that reads its metadata sees.

    A value of the node's own under their key stays in their place.
    """
    node = stored_node(hit.document)
    if not details or not is_free(node.metadata, DETAILS_KEY):
        return node
    return with_hidden(node, {DETAILS_KEY: hit.details()}, NODE_KEYS)


def with_hidden(node: BaseNode, values: Mapping[str, Any], also: Iterable[str] = ()) -> BaseNode:
    """A copy of a node with more metadata; neither prompts nor embeddings read those, or the other keys."""
    hidden = (*values, *also)
    return node.model_copy(
        update={
            "metadata": {**node.metadata, **values},
            "excluded_embed_metadata_keys": _with(node.excluded_embed_metadata_keys, hidden),
            "excluded_llm_metadata_keys": _with(node.excluded_llm_metadata_keys, hidden),
        }
    )


def _with(keys: Sequence[str], more: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*keys, *more]))
