"""Results as a JSON file and as a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jacolbert_rag
from evals.datasets import Task
from jacolbert_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.table import Table

    from evals.systems import System

PIPE_WIDTH = 160  # columns where the output is no terminal: rich would take 80 and break the cells


@dataclass(frozen=True)
class Result:
    """What one system scored on one task; the fields are the keys of the JSON file."""

    dataset: str
    split: str
    system: str
    measures: Mapping[str, float]
    n_queries: int
    latency_ms: Mapping[str, float]
    signature: str


def signature(task: Task, system: System, *, k: int) -> str:
    """All that a score depends on, in one string: data, system, settings, results a query, version."""
    n = len(task.queries)
    queries = f"{n}" if n == task.n_split else f"{n}/{task.n_split}"
    return "|".join(
        [
            task.name,
            task.split,
            f"q:{queries}",
            f"c:{len(task.documents)}@{task.digest[:8]}",
            system.name,
            *system.settings,
            f"k:{k}",
            f"v{jacolbert_rag.__version__}",
        ]
    )


def check_writable(path: Path) -> None:
    """Refuse a result file that could not be written, before the work is done.

    Raises:
        InvalidInputError: it is a folder, or its folder is not there.
    """
    if path.is_dir():
        raise InvalidInputError(f"--json {path} is a folder. Name a file, such as {path / 'results.json'}.")
    if not path.absolute().parent.is_dir():
        raise InvalidInputError(f"--json {path}: there is no folder {path.parent}. Make it, or name another.")


def write_json(path: Path, results: Sequence[Result]) -> None:
    """`write_rows` of results: one object each, with their fields as keys."""
    write_rows(path, [asdict(result) for result in results])


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON list; a file that is there is replaced.

    Raises:
        InvalidInputError: the file cannot be written.
    """
    text = json.dumps(rows, ensure_ascii=False, indent=2, allow_nan=False)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"--json {path} cannot be written ({error}). Name another file.") from error


def print_results(results: Sequence[Result]) -> None:
    """A table on standard output, and below it the signature of each line."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    console.print(table(results))
    for result in results:
        console.print(Text(result.signature), soft_wrap=True, highlight=False)


def table(results: Sequence[Result]) -> Table:
    """One line a result: dataset, system, measures, latency."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    lines = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    lines.add_column("dataset")
    lines.add_column("system", no_wrap=True)
    measures = list(dict.fromkeys(name for result in results for name in result.measures))
    for name in (*measures, "p50 ms", "p95 ms"):
        # On 80 columns the heads break into two lines, and the numbers stay whole.
        lines.add_column(name, justify="right", overflow="fold", min_width=len("0.1234"))
    for result in results:
        lines.add_row(
            # Text, because a str is parsed: a folder may be called "[bold]".
            Text(f"{result.dataset} {result.split}"),
            Text(result.system),
            *(f"{result.measures[name]:.4f}" for name in measures),
            *(f"{result.latency_ms[name]:.1f}" for name in ("p50", "p95")),
        )
    return lines
