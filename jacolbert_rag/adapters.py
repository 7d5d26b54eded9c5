"""What the adapters of all frameworks do alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from jacolbert_rag.datatypes import DETAILS_KEY
from jacolbert_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

TITLE_KEY = "title"  # metadata key of a document's title, for which the frameworks have no place of its own


def engine_class() -> type[Engine]:
    """The framework-free retriever, imported when one is made: it loads torch."""
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine

    return Engine


def engine_of(given: Any) -> Engine:
    """The engine that was given, or that of an adapter that was.

    Raises:
        InvalidInputError: it is neither.
    """
    engine = getattr(given, "engine", given)
    expected = engine_class()
    if not isinstance(engine, expected):
        raise InvalidInputError(
            f"engine is {given!r:.80}, a {type(given).__name__}; expected a jacolbert_rag.JaColBERTRetriever "
            "or an adapter over one. from_pretrained and load make both at once."
        )
    return engine


def check_count(name: str, value: int) -> int:
    """A number of documents to return.

    Raises:
        InvalidInputError: it is below 1, or no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InvalidInputError(f"{name} is {value!r}; expected a whole number, at least 1.")
    return int(value)


def split_options(fields: type, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a constructor: those that a TypedDict names, and the rest."""
    named = {key: value for key, value in options.items() if key in fields.__annotations__}
    return named, {key: value for key, value in options.items() if key not in named}


def title_in(metadata: Mapping[str, Any]) -> str:
    """The title that a document's metadata give it; empty where they give it none."""
    title = metadata.get(TITLE_KEY)
    return title if isinstance(title, str) and title.strip() else ""


def has_details(metadata: Mapping[str, Any]) -> bool:
    """Whether metadata have `Hit.details`, and not another value of a user's under that name."""
    value = metadata.get(DETAILS_KEY)
    return (
        isinstance(value, Mapping)
        and {"score", "scores"} <= value.keys() <= {"score", "scores", "highlight"}
        and isinstance(value["score"], float)
        and isinstance(value["scores"], Mapping)
    )


def is_free(metadata: Mapping[str, Any], key: str) -> bool:
    """Whether a search may put something under a key: a user has nothing there."""
    if key == DETAILS_KEY:
        return key not in metadata or has_details(metadata)
    return key not in metadata or (has_details(metadata) and metadata[DETAILS_KEY]["score"] == metadata[key])


def without_results(
    engine: Engine, given: Sequence[tuple[str | None, Mapping[str, Any]]], score_keys: Iterable[str]
) -> list[dict[str, Any]]:
    """Metadata without what a search has put there, so that documents that were found can be added again.

    A score is a number like any other, so it is left out only where it shows whose it is: it is that of
    `Hit.details` beside it, or the document is stored without it.

    Args:
        engine: where the documents go.
        given: id and metadata of each.
        score_keys: under which searches put scores.
    """
    scored = [
        {key for key in score_keys if key in metadata and isinstance(metadata[key], float | None)}
        for _, metadata in given
    ]
    asked = [id for (id, _), keys in zip(given, scored, strict=True) if keys and isinstance(id, str)]
    stored = {document.id: document.metadata for document in engine.get(asked)} if asked else {}
    cleaned = []
    for (id, metadata), keys in zip(given, scored, strict=True):
        dropped = {
            key for key in keys if is_free(metadata, key) or (id in stored and key not in stored[id])
        } | ({DETAILS_KEY} if has_details(metadata) else set())
        cleaned.append({key: value for key, value in metadata.items() if key not in dropped})
    return cleaned
