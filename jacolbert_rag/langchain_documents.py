"""LangChain's documents and filters as the engine's, and back.

Needs langchain-core alone: `pip install 'jacolbert-rag[langchain]'`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from jacolbert_rag.adapters import metadata_with_title, title_in
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
        title = title_in(item.metadata)
        if id is None:
            # The title is a part of the metadata already, and so of the id.
            document = replace(Document.from_text(item.page_content, item.metadata), title=title)
            derived[document.id] = document
        else:
            document = Document(id, item.page_content, item.metadata, title)
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


def native_filter(given: GivenFilter | None) -> Mapping[str, Any] | Callable[[Document], bool] | None:
    """A filter as the engine takes it: a function is handed a LangChain document."""
    if isinstance(given, Mapping) or not callable(given):
        return given
    return lambda document: given(result_of(document))


def found_document(hit: Hit, score_key: str | None, *, details: bool) -> LangChainDocument:
    """A hit as a LangChain document."""
    document = result_of(hit.document)
    if score_key is not None:
        document.metadata[score_key] = hit.score
    if details:
        document.metadata[DETAILS_KEY] = hit.details()
    return document


def result_of(document: Document) -> LangChainDocument:
    """A stored document as LangChain's, with its title in the metadata."""
    metadata = metadata_with_title(document)
    return LangChainDocument(id=document.id, page_content=document.text, metadata=metadata)
