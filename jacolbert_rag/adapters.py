"""What the adapters of all frameworks do alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jacolbert_rag.datatypes import Document

if TYPE_CHECKING:
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

TITLE_KEY = "title"  # metadata key of a document's title, for which the frameworks have no place of its own


def engine_class() -> type[Engine]:
    """The framework-free retriever, imported when one is made: it loads torch."""
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

    return Engine


def split_options(fields: type, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a constructor: those that a TypedDict names, and the rest."""
    named = {key: value for key, value in options.items() if key in fields.__annotations__}
    return named, {key: value for key, value in options.items() if key not in named}


def title_in(metadata: Mapping[str, Any]) -> str:
    """The title that a document's metadata give it; empty where they give it none."""
    title = metadata.get(TITLE_KEY)
    return title if isinstance(title, str) and title.strip() else ""


def metadata_with_title(document: Document) -> dict[str, Any]:
    """Metadata with the title among them; where they have a value of that name, it stays."""
    return {TITLE_KEY: document.title, **document.metadata} if document.title else dict(document.metadata)
