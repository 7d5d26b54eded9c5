"""LangChain's documents and filters as the engine's, and back.

Needs langchain-core alone: `pip install 'jacolbert-rag[langchain]'`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from jacolbert_rag.adapters import is_free, title_in, without_results
from jacolbert_rag.config import SearchMode
from jacolbert_rag.datatypes import DETAILS_KEY, Document, Hit
from jacolbert_rag.errors import InvalidInputError, OptionalDependencyError

try:
    from langchain_core.documents import Document as LangChainDocument
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    raise OptionalDependencyError(
        "jacolbert_rag.langchain needs langchain-core. Run: pip install 'jacolbert-rag[langchain]'"
    ) from error

if TYPE_CHECKING:
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

SCORE_KEY = "relevance_score"  # metadata key of a score, by LangChain's custom

# Conditions on metadata (`jacolbert_rag.index.filters.parse`), or a function that is asked of every document.
GivenFilter: TypeAlias = Mapping[str, Any] | Callable[[LangChainDocument], bool]


class SearchOptions(TypedDict, total=False):
    """How to search: keyword arguments of the vector store's searches, and fields of the retriever."""

    filter: GivenFilter | None
    mode: SearchMode
    highlight: bool
    abstain: bool


def as_documents(texts: Iterable[str], metadatas: Sequence[dict[str, Any]] | None) -> list[LangChainDocument]:
    """Texts as LangChain documents."""
    if isinstance(texts, str):
        raise InvalidInputError("texts is one str; expected a list of them, such as [text].")
    texts = list(texts)
    return [
        LangChainDocument(page_content=text, metadata=metadata or {})
        for text, metadata in zip(texts, _one_each("metadatas", metadatas, len(texts)), strict=True)
    ]


def store_documents(
    engine: Engine,
    documents: Iterable[LangChainDocument],
    ids: Sequence[str | None] | None,
    score_key: str | None = None,
) -> list[str]:
    """Store documents, those that are stored already word for word left alone; the id of each, in order."""
    documents = list(documents)
    ids = _ids_of(documents, ids)
    score_keys = {SCORE_KEY} if score_key is None else {SCORE_KEY, score_key}
    pairs = [(id, document.metadata) for id, document in zip(ids, documents, strict=True)]
    given: list[str] = []
    named: list[Document] = []
    derived: dict[str, Document] = {}  # whose ids are their content
    cleaned = without_results(engine, pairs, score_keys)
    for item, id, metadata in zip(documents, ids, cleaned, strict=True):
        title = title_in(metadata)
        if id is None:
            # The title is a part of the metadata already, and so of the id.
            document = replace(Document.from_text(item.page_content, metadata), title=title)
            derived[document.id] = document
        else:
            document = Document(id, item.page_content, metadata, title)
            named.append(document)
        given.append(document.id)
    engine.upsert([*named, *derived.values()])
    return given


def _ids_of(documents: Sequence[LangChainDocument], ids: Sequence[str | None] | None) -> list[str | None]:
    """The id given for each document, or else its own."""
    each = _one_each("ids", ids, len(documents))
    for i, document in enumerate(documents):
        if not isinstance(document, LangChainDocument):
            raise InvalidInputError(
                f"document {i} is a {type(document).__name__}; expected a langchain_core Document. For "
                "strings there is `add_texts`."
            )
    return [document.id if id is None else id for document, id in zip(documents, each, strict=True)]


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


def native_filter(given: GivenFilter | None) -> Mapping[str, Any] | Callable[[Document], bool] | None:
    """A filter as the engine takes it: a function is handed a LangChain document."""
    if isinstance(given, Mapping) or not callable(given):
        return given
    return lambda document: given(result_of(document))


def found_document(hit: Hit, score_key: str | None, *, details: bool) -> LangChainDocument:
    """A hit as a LangChain document; what its own metadata have under these keys stays."""
    document = result_of(hit.document)
    kept = dict(document.metadata)
    if score_key is not None and is_free(kept, score_key):
        document.metadata[score_key] = hit.score
    if details and is_free(kept, DETAILS_KEY):
        document.metadata[DETAILS_KEY] = hit.details()
    return document


def result_of(document: Document) -> LangChainDocument:
    """A stored document as LangChain's, with its title in the metadata."""
    metadata = dict(document.fields)
    return LangChainDocument(id=document.id, page_content=document.text, metadata=metadata)
