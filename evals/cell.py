"""One dataset and one system, in a process of its own: what breaks is its own, and so is the memory.

python -m evals.cell SPEC.json OUT.json     # as evals.run calls it; progress goes to standard output
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jacolbert_rag.errors import JaColBERTError

if TYPE_CHECKING:
    from evals.datasets import Task
    from evals.results import Cell
    from evals.systems import System

RUN_K = 100  # results a query, for Recall@100
KEPT = 10  # of them, with their scores, in the cell's file
BATCH_QUERIES = 512  # searched at once: bounds the memory of embedded queries, and lets progress show

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Spec:
    """What to measure.

    Attributes:
        name: the dataset's.
        folder: of it, in BEIR layout.
        split: of its queries.
        limit: only so many queries; None is all.
        system: its name.
        model: of JaColBERT: a folder or a hub id; None is the bundled one.
        query_length: rule in place of the model's.
        index: folder of the index that JaColBERT's ways share.
        language: to ask in, from queries.LANGUAGE.jsonl; None is the dataset's own.
    """

    name: str
    folder: str
    split: str
    limit: int | None
    system: str
    model: str | None
    query_length: str | None
    index: str
    language: str | None = None

    def task(self) -> Task:
        """The dataset.

        Raises:
            DatasetError: it cannot be used.
        """
        from evals.datasets import load_task

        return load_task(
            Path(self.folder), self.split, limit=self.limit, name=self.name, language=self.language
        )

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def main(spec_file: Path, out: Path) -> int:
    """Measure, write the cell; the exit status."""
    spec = Spec(**json.loads(spec_file.read_text(encoding="utf-8")))
    try:
        run(spec, _say).save(out)
    except JaColBERTError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def run(spec: Spec, say: Progress) -> Cell:
    """Measure a system.

    Args:
        spec: which, and on what.
        say: is told of a phase, how much of it is done, and of how much.

    Raises:
        JaColBERTError: the dataset or the model cannot be used.
    """
    from evals import systems

    task = spec.task()
    say("building", 0, len(task.documents))
    index = Path(spec.index)
    was_there = spec.system in systems.OF_ENGINE and (index / "manifest.json").is_file()
    start = time.perf_counter()
    for system in systems.build(
        [spec.system], task.documents, model=spec.model, query_length=spec.query_length, index=index
    ):
        build_s = time.perf_counter() - start
        return measure(task, system, say, build_s=None if was_there else build_s)
    raise AssertionError("no system was built")


def measure(task: Task, system: System, say: Progress, *, build_s: float | None) -> Cell:
    """Search all queries, score what was found, and time single queries."""
    import numpy as np

    from evals import metrics, results, statistics, systems

    queries = list(task.queries.values())
    among = None if task.candidates is None else [task.candidates[id] for id in task.queries]
    found: list[dict[str, float]] = []
    start = time.perf_counter()
    for first in range(0, len(queries), BATCH_QUERIES):
        say("searching", first, len(queries))
        part = slice(first, first + BATCH_QUERIES)
        own = () if among is None else (among[part],)
        found += system.search_many(queries[part], RUN_K, *own)
    seconds, peak = time.perf_counter() - start, _peak_bytes()  # what measures it is not counted
    run = dict(zip(task.queries, found, strict=True))
    values = metrics.per_query(task.qrels, run)
    bounds = statistics.intervals(np.array([list(each.values()) for each in values.values()]).T)
    say("timing", 0, 1)
    latency = systems.latency_ms(system, queries, among=among)
    n_bytes = system.n_bytes
    result = results.Result(
        dataset=task.name,
        split=task.split,
        system=system.name,
        measures=metrics.mean(values),
        intervals={name: pair.tolist() for name, pair in zip(values, bounds, strict=True)},
        n_queries=len(queries),
        n_documents=len(task.documents),
        n_empty=sum(not each for each in found),
        latency_ms=latency,
        queries_per_s=len(queries) / seconds,
        build_s=build_s,
        bytes_per_document=None if n_bytes is None else n_bytes / len(task.documents),
        peak_mb=peak / 1e6,
        hardware=results.hardware(),
        signature=results.signature(task, system, k=RUN_K),
    )
    answered = {
        id: results.Answered(
            {name: values[name][id] for name in values},
            list(hits.items())[:KEPT],
            _first(hits, task.qrels[id]),
            task.queries[id],
        )
        for id, hits in run.items()
    }
    return results.Cell(result, answered)


def _first(hits: dict[str, float], judged: Any) -> int | None:
    """Rank of the first relevant document."""
    return next((rank for rank, id in enumerate(hits, start=1) if judged.get(id, 0) > 0), None)


def _peak_bytes() -> int:
    """The most memory that this process had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux kilobytes


def _say(phase: str, done: int, total: int) -> None:
    sys.stdout.write(f"{phase} {done} {total}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
