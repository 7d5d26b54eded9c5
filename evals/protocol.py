"""What can be measured: whatever finds documents for a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

RERANKED = 100  # documents of full-text search that a second stage orders anew

Among = Sequence[str]  # ids of the documents that a query may find
Found = dict[str, float]  # document id -> score, best first, ties by ascending id


@dataclass(frozen=True)
class Prompts:
    """Words that a dense model reads before a text.

    Attributes:
        query: before each query; None is the model's own.
        document: before each document; None is the model's own.
    """

    query: str | None = None
    document: str | None = None


class System(Protocol):
    """A way to find documents.

    Attributes:
        name: what `--system` calls it.
        settings: what else its figures depend on, in words for the signature.
        n_bytes: of all that it keeps of the corpus; None where that is not known.
    """

    name: str
    settings: tuple[str, ...]

    @property
    def n_bytes(self) -> int | None:
        """See above."""

    def search_many(
        self, queries: Sequence[str], k: int, among: Sequence[Among] | None = None
    ) -> list[Found]:
        """The best k documents of each query; fewer where fewer are found.

        Args:
            queries: any texts.
            k: at least 1.
            among: for each query, the documents that it ranks; None is the whole corpus for all.
        """

    def search(self, query: str, k: int, among: Among | None = None) -> Found:
        """The same for one query; this is what latency is measured on."""


def one_by_one(system: System, queries: Sequence[str], k: int, among: Sequence[Among] | None) -> list[Found]:
    """`System.search_many` of a system that gains nothing from many."""
    allowed: Sequence[Among | None] = among if among is not None else [None] * len(queries)
    return [system.search(query, k, own) for query, own in zip(queries, allowed, strict=True)]
