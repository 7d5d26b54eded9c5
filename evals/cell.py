"""One dataset and one system, searched in a process of its own: what breaks is its own, and so is the memory.

python -m evals.cell SPEC.json OUT.json     # as evals.run calls it; progress goes to standard output
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evals.datasets import DatasetError
from evals.found import Searched
from evals.protocol import Prompts
from jacolbert_rag.config import EncoderOverrides
from jacolbert_rag.errors import JaColBERTError

if TYPE_CHECKING:
    from evals.datasets import Task
    from evals.protocol import Found, System

RUN_K = 100  # results a query, for Recall@100
BATCH_QUERIES = 512  # searched at once: bounds the memory of embedded queries, and lets progress show

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """How all datasets and systems of a run are measured.

    Attributes:
        limit: only so many queries; None is all.
        language: to ask in, from queries.LANGUAGE.jsonl; None is the dataset's own.
        model: of JaColBERT: a folder or a hub id; None is the bundled one.
        encoder: settings of JaColBERT in place of the model's.
        prompts: of dense models, in place of their own.
    """

    limit: int | None = None
    language: str | None = None
    model: str | None = None
    encoder: EncoderOverrides = field(default_factory=EncoderOverrides)
    prompts: Prompts = field(default_factory=Prompts)


@dataclass(frozen=True)
class Spec:
    """What to measure.

    Attributes:
        name: the dataset's.
        folder: of it, in BEIR layout.
        split: of its queries.
        system: its name.
        index: folder of the index that JaColBERT's ways share.
        options: how.
    """

    name: str
    folder: str
    split: str
    system: str
    index: str
    options: Options = field(default_factory=Options)

    def task(self) -> Task:
        """The dataset.

        Raises:
            DatasetError: it cannot be used.
        """
        from evals.datasets import load_task

        return load_task(
            Path(self.folder),
            self.split,
            limit=self.options.limit,
            name=self.name,
            language=self.options.language,
        )

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Spec:
        """Read what `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        options = content.pop("options")
        prompts = Prompts(**options.pop("prompts"))
        return cls(**content, options=Options(**options, prompts=prompts))


def main(spec_file: Path, out: Path) -> int:
    """Search, and write what was found; the exit status."""
    spec = Spec.load(spec_file)
    try:
        run(spec, _say).save(out)
    except JaColBERTError as error:
        # On one line: the one that started it shows the last.
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


def run(spec: Spec, say: Progress) -> Searched:
    """Search all queries of a dataset with a system.

    Args:
        spec: which, and on what.
        say: is told of a phase, how much of it is done, and of how much.

    Raises:
        JaColBERTError: the dataset, the model or the run file cannot be used.
    """
    from evals import jacolbert, systems

    task = spec.task()
    if spec.system.startswith(systems.RUN_PREFIX):
        return of_run_file(task, spec.system)
    say("building", 0, len(task.documents))
    index = Path(spec.index)
    was_there = spec.system in jacolbert.OF_ENGINE and (index / "manifest.json").is_file()
    start = time.perf_counter()
    built = systems.build(
        [spec.system],
        task.documents,
        model=spec.options.model,
        encoder=spec.options.encoder,
        prompts=spec.options.prompts,
        index=index,
        progress=_counter(say, len(task.documents)),
    )
    for system in built:
        build_s = time.perf_counter() - start
        return measure(task, system, say, build_s=None if was_there else build_s)
    raise AssertionError("no system was built")


def measure(task: Task, system: System, say: Progress, *, build_s: float | None) -> Searched:
    """Search all queries, and time single ones."""
    from evals import systems

    queries = list(task.queries.values())
    among = None if task.candidates is None else [task.candidates[id] for id in task.queries]
    found: list[Found] = []
    start = time.perf_counter()
    for first in range(0, len(queries), BATCH_QUERIES):
        say("searching", first, len(queries))
        part = slice(first, first + BATCH_QUERIES)
        own = () if among is None else (among[part],)
        found += system.search_many(queries[part], RUN_K, *own)
    seconds, peak = time.perf_counter() - start, peak_bytes()
    say("timing", 0, 1)
    n_bytes = system.n_bytes
    all_found = searched(task, system.name, system.settings, dict(zip(task.queries, found, strict=True)))
    result = replace(
        all_found.result,
        latency_ms=systems.latency_ms(system, queries, k=RUN_K, among=among),
        queries_per_s=len(queries) / seconds,
        build_s=build_s,
        bytes_per_document=None if n_bytes is None else n_bytes / len(task.documents),
        peak_mb=peak / 1e6,
    )
    return replace(all_found, result=result)


def of_run_file(task: Task, name: str) -> Searched:
    """What another system found; of equal scores, what the file has first is before.

    Raises:
        DatasetError: the file cannot be used, or has none of the queries.
    """
    from evals import systems, trec

    path = Path(name.removeprefix(systems.RUN_PREFIX))
    run = trec.read_run(path)
    if run.keys().isdisjoint(task.queries):
        raise DatasetError(
            f"{path} has results for none of the {len(task.queries):,} queries of {task.name} {task.split}, "
            f"but for such as {next(iter(run))!r}. Name the dataset that it is of, or mend its ids."
        )
    # Sorting is stable, so equal scores stay in the order of the file.
    found = {
        id: dict(sorted(run.get(id, {}).items(), key=lambda hit: -hit[1])[:RUN_K]) for id in task.queries
    }
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return searched(task, name, (f"file@{digest}",), found)


def searched(task: Task, name: str, settings: Sequence[str], run: Mapping[str, Found]) -> Searched:
    """What was found on a dataset; what it cost is not known here.

    Args:
        task: the dataset.
        name: the system's.
        settings: what else its figures depend on.
        run: query id -> what was found, best first; all queries.
    """
    from evals import results

    result = results.Result(
        dataset=task.name,
        split=task.split,
        system=name,
        measures={},
        intervals={},
        n_queries=len(task.queries),
        n_documents=len(task.documents),
        n_empty=sum(not each for each in run.values()),
        latency_ms={},
        queries_per_s=None,
        build_s=None,
        bytes_per_document=None,
        peak_mb=None,
        hardware=results.hardware(),
        signature=results.signature(task, name, settings, k=RUN_K),
        notes=task.notes,
    )
    return Searched(result, run, task.qrels, task.queries)


def peak_bytes() -> int:
    """The most memory that this process had."""
    # Linux: getrusage's figure is at least what the process had that started this one.
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if peak is not None:
            return 1024 * int(peak.split()[1])
    import resource

    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_kb if sys.platform == "darwin" else 1024 * peak_kb  # macOS counts bytes


def _counter(say: Progress, total: int) -> Callable[[int], None]:
    """What is told how many documents were embedded since it was told last."""
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        say("building", done, total)

    return count


def _say(phase: str, done: int, total: int) -> None:
    sys.stdout.write(f"{phase} {done} {total}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
