"""LangChain's text splitter over the library's own: Japanese sentences, counted in the model's tokens.

Needs langchain-text-splitters: `pip install 'jacolbert-rag[langchain]'`. Documents that were passed in are
never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from jacolbert_rag.adapters import engine_class, engine_of, title_in
from jacolbert_rag.config import ModelOptions
from jacolbert_rag.encode.splitter import Splitter, chunk_ids
from jacolbert_rag.errors import InvalidInputError, OptionalDependencyError

try:
    from langchain_core.documents import Document
    from langchain_text_splitters import TextSplitter
except ModuleNotFoundError as error:
    if error.name not in ("langchain_core", "langchain_text_splitters"):
        raise
    raise OptionalDependencyError(
        "JaColBERTTextSplitter needs langchain-text-splitters. Run: pip install 'jacolbert-rag[langchain]'"
    ) from error

if TYPE_CHECKING:
    from jacolbert_rag.langchain import JaColBERTRetriever, JaColBERTVectorStore
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine


class JaColBERTTextSplitter(TextSplitter):
    """Splits LangChain documents into chunks of whole sentences that the model reads to their end.

        splitter = JaColBERTTextSplitter.from_retriever(retriever)
        retriever.add_documents(splitter.split_documents(documents))

    A chunk has the metadata of its document, of which a title is read before each chunk, and an id made from
    the document's and from what the chunk says, so that a changed document gives new ids only where it has
    changed. Where a document has no id, its chunks have none; where it fits whole, it keeps its own.
    """

    def __init__(self, splitter: Splitter, *, add_start_index: bool = False) -> None:
        """Wrap a splitter.

        Args:
            splitter: from `jacolbert_rag.encode.splitter`.
            add_start_index: put a chunk's place in the document's text into `metadata["start_index"]`.
        """
        super().__init__(splitter.budget, splitter.overlap, splitter.count, add_start_index=add_start_index)
        self.splitter = splitter

    @classmethod
    def from_retriever(
        cls,
        engine: Engine | JaColBERTRetriever | JaColBERTVectorStore,
        *,
        budget: int | None = None,
        overlap: int = 0,
        add_start_index: bool = False,
    ) -> Self:
        """A splitter for the model of a retriever.

        Args:
            engine: a `jacolbert_rag.JaColBERTRetriever`, or an adapter over one.
            budget: most tokens of a chunk; None for what the model reads of a document.
            overlap: most tokens that a chunk repeats from the one before.
            add_start_index: see `JaColBERTTextSplitter`.
        """
        splitter = Splitter.for_tokenizer(engine_of(engine).encoder.tokenizer, budget=budget, overlap=overlap)
        return cls(splitter, add_start_index=add_start_index)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        budget: int | None = None,
        overlap: int = 0,
        add_start_index: bool = False,
        **options: Unpack[ModelOptions],
    ) -> Self:
        """A splitter for a model that is not loaded yet; see `from_retriever`.

        The other arguments and what is raised are those of its `from_pretrained`.
        """
        engine = engine_class().from_pretrained(model, **options)
        return cls.from_retriever(engine, budget=budget, overlap=overlap, add_start_index=add_start_index)

    def split_text(self, text: str) -> list[str]:
        """The chunks of a text, in order."""
        return [chunk.text for chunk in self.splitter.chunks(text)]

    def create_documents(
        self, texts: list[str], metadatas: list[dict[Any, Any]] | None = None
    ) -> list[Document]:
        """Chunks of texts, with one metadata for each text where given.

        Raises:
            InvalidInputError: there are more or fewer metadatas than texts.
        """
        if metadatas is not None and len(metadatas) != len(texts):
            raise InvalidInputError(
                f"metadatas has {len(metadatas)} entries for {len(texts)} texts; expected one for each."
            )
        each: Sequence[dict[Any, Any]] = metadatas or [{}] * len(texts)
        return self.split_documents(
            Document(page_content=text, metadata=metadata) for text, metadata in zip(texts, each, strict=True)
        )

    def split_documents(self, documents: Iterable[Document]) -> list[Document]:
        """Chunks of documents, in order; a document without text has none."""
        return [chunk for document in documents for chunk in self._chunks(document)]

    def _chunks(self, document: Document) -> Iterator[Document]:
        text = document.page_content
        chunks = self.splitter.chunks(text, title=title_in(document.metadata))
        ids: Sequence[str | None] = [document.id] * len(chunks)
        if document.id is not None and [chunk.text for chunk in chunks] != [text.strip()]:
            ids = chunk_ids(document.id, [chunk.text for chunk in chunks])
        for id, chunk in zip(ids, chunks, strict=True):
            metadata = deepcopy(document.metadata)
            if self._add_start_index:
                metadata["start_index"] = chunk.start
            yield Document(id=id, page_content=chunk.text, metadata=metadata)
