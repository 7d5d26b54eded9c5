"""What was measured: one row a dataset and system, and below it what became of each query."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jacolbert_rag
from jacolbert_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from evals.datasets import Task


@dataclass(frozen=True)
class Result:
    """What one system scored on one dataset; the fields are the keys of the JSON file.

    Attributes:
        dataset: its name.
        split: of its queries.
        system: its name.
        measures: measure -> mean over all queries, 0 for those without results.
        intervals: measure -> bounds of the mean's bootstrap interval (95 %).
        n_queries: that the mean is over.
        n_documents: of the corpus.
        n_empty: queries that found nothing.
        latency_ms: "p50" and "p95" of single calls; empty for a run file, where nothing was searched.
        queries_per_s: of all queries in one call; None for a run file.
        build_s: seconds until it could search: embedding, indexing. None where the index was there already.
        bytes_per_document: of all that it keeps of the corpus; None where that is not known.
        peak_mb: the most memory that its process had, models and all; None for a run file.
        hardware: on which the times were taken.
        signature: all that a score depends on.
        notes: where the data is from, and what differs from what was published.
    """

    dataset: str
    split: str
    system: str
    measures: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]
    n_queries: int
    n_documents: int
    n_empty: int
    latency_ms: Mapping[str, float]
    queries_per_s: float | None
    build_s: float | None
    bytes_per_document: float | None
    peak_mb: float | None
    hardware: str
    signature: str
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Answered:
    """What a system found for one query.

    Attributes:
        values: measure -> value.
        found: the best documents and their scores, in order.
        first: rank of the first relevant document, from 1; None where none was found.
        text: the query.
    """

    values: Mapping[str, float]
    found: Sequence[tuple[str, float]]
    first: int | None
    text: str = ""


@dataclass(frozen=True)
class Cell:
    """A result with each of its queries.

    Attributes:
        result: the row.
        queries: query id -> what was found.
    """

    result: Result
    queries: Mapping[str, Answered] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        new.write_text(json.dumps(asdict(self), allow_nan=False), encoding="utf-8")
        new.replace(path)

    @classmethod
    def load(cls, path: Path) -> Cell:
        """Read what `save` wrote.

        Raises:
            InvalidInputError: it is something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            queries = {
                id: Answered(
                    each["values"], [tuple(pair) for pair in each["found"]], each["first"], each["text"]
                )
                for id, each in content["queries"].items()
            }
            return cls(Result(**content["result"]), queries)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(
                f"{path} is no result of evals.run with its queries ({error}). Name a file in cells/."
            ) from error


def signature(task: Task, system: str, settings: Sequence[str], *, k: int) -> str:
    """All that a score depends on, in one string: data, system, settings, results a query, version."""
    n = len(task.queries)
    queries = f"{n}" if n == task.n_split else f"{n}/{task.n_split}"
    candidates = ["candidates"] if task.candidates is not None else []
    return "|".join(
        [
            task.name,
            task.split,
            f"q:{queries}",
            f"c:{len(task.documents)}@{task.digest[:8]}",
            *candidates,
            system,
            *settings,
            f"k:{k}",
            f"v{jacolbert_rag.__version__}",
        ]
    )


# In a signature: queries, of how many; documents and the data's digest.
_OF_DATA = re.compile(r"\|q:(?P<n>\d+)(?:/\d+)?\|(?P<corpus>c:\d+@[0-9a-f]+)")


def data_of(row: Mapping[str, Any]) -> tuple[int, str] | None:
    """How many queries a row's signature names, and its corpus; None where it names none.

    Two rows of equal data were measured on the same queries over the same documents with the same judgements.
    """
    found = _OF_DATA.search(row.get("signature", ""))
    return (int(found["n"]), found["corpus"]) if found is not None else None


def setting_of(row: Mapping[str, Any], name: str) -> str:
    """A setting in a row's signature, such as that of `qlen`; "" where it has none."""
    parts = row.get("signature", "").split("|")
    return next((part.partition(":")[2] for part in parts if part.startswith(f"{name}:")), "")


def hardware() -> str:
    """Processor, cores, and the GPU if there is one that torch uses."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    import sys

    torch = sys.modules.get("torch")  # not loaded for its sake
    gpu = f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} threads{gpu}"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that `evals.run --json` wrote.

    Raises:
        InvalidInputError: it is something else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list) or not all("measures" in row for row in rows):
            raise ValueError("it is no list of results")
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInputError(
            f"{path} cannot be read as results ({error}). Name a file that evals.run --json wrote."
        ) from error
    return rows
