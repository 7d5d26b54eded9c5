"""Searches of many callers at once, by one thread: those that wait and ask alike go through together."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from jacolbert_rag.config import SearchMode
from jacolbert_rag.datatypes import Hit
from jacolbert_rag.errors import JaColBERTError
from jacolbert_rag.retriever import JaColBERTRetriever

MAX_BATCH = 16  # queries; more are little faster, and each waits for all
LARGE = 100  # hits above which a search goes by itself
LARGE_MARKED = 20  # the same with highlights, which take most of the time


@dataclass(frozen=True)
class Asked:
    """One search.

    Attributes:
        query: any text.
        options: of `JaColBERTRetriever.search_many`.
        kind: equal for searches that may go together.
        found: its hits, or why there are none.
    """

    query: str
    options: Mapping[str, Any]
    kind: str
    found: Future[list[Hit]] = field(default_factory=Future)


class Lane:
    """Searches that wait, and the thread that does them."""

    def __init__(self, retriever: JaColBERTRetriever, name: str, max_batch: int) -> None:
        self._retriever = retriever
        self._max_batch = max_batch
        self._waiting: deque[Asked] = deque()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=name)

    def add(self, asked: Asked) -> None:
        """Have a search done."""
        self._waiting.append(asked)
        self._worker.submit(self._work)

    def _work(self) -> None:
        """Do what waits, as much as goes at once; there is one call for each search, so some find nothing."""
        taken: dict[str, list[Asked]] = {}
        for _ in range(min(len(self._waiting), self._max_batch)):
            asked = self._waiting.popleft()
            if asked.found.set_running_or_notify_cancel():  # else the caller has gone
                taken.setdefault(asked.kind, []).append(asked)
        for alike in taken.values():
            self._answer(alike)

    def _answer(self, alike: Sequence[Asked]) -> None:
        try:
            found = self._retriever.search_many([asked.query for asked in alike], **alike[0].options)
        except JaColBERTError as error:
            if len(alike) == 1:
                alike[0].found.set_exception(error)
            else:  # of one query, which must not spoil the others
                for asked in alike:
                    self._answer([asked])
        except BaseException as error:  # the callers are told, whatever it is
            for asked in alike:
                asked.found.set_exception(error)
        else:
            for asked, hits in zip(alike, found, strict=True):
                asked.found.set_result(hits)


class Searches:
    """Takes searches from any number of threads and coroutines.

    A search uses all cores already. When each caller's thread has its own, they get in one another's way:
    50 threads were less than half as fast as one that does what all of them ask. Searches for many hits have
    a thread of their own, so that the others need not wait for them.
    """

    def __init__(self, retriever: JaColBERTRetriever, *, max_batch: int = MAX_BATCH) -> None:
        self._quick = Lane(retriever, "search", max_batch)
        self._slow = Lane(retriever, "large-search", 1)

    def submit(
        self,
        query: str,
        k: int,
        *,
        mode: SearchMode,
        filter: Mapping[str, Any] | None = None,
        highlight: bool = False,
        abstain: bool = False,
    ) -> Future[list[Hit]]:
        """`JaColBERTRetriever.search`, later: the result is its hits, or what it raised.

        Raises:
            TypeError: the filter's keys are no texts.
        """
        options = {"k": k, "mode": mode, "filter": filter, "highlight": highlight, "abstain": abstain}
        asked = Asked(query, options, json.dumps(options, sort_keys=True, default=repr))
        is_large = k > (LARGE_MARKED if highlight else LARGE)
        (self._slow if is_large else self._quick).add(asked)
        return asked.found
