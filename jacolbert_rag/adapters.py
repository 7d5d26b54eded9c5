"""What the adapters of all frameworks do alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine


def engine_class() -> type[Engine]:
    """The framework-free retriever, imported when one is made: it loads torch."""
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

    return Engine


def split_options(fields: type, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a constructor: those that a TypedDict names, and the rest."""
    named = {key: value for key, value in options.items() if key in fields.__annotations__}
    return named, {key: value for key, value in options.items() if key not in named}
