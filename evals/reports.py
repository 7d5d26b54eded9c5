"""Results in the terminal, as a JSON file, as Markdown, and as a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jacolbert_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.table import Table

    from evals.results import Result
    from evals.run import Job

PIPE_WIDTH = 160  # columns where the output is no terminal: rich would take 80 and break the cells
# What the terminal and the README show of a result; its JSON has all.
SHOWN = ("nDCG@10", "MRR@10", "Recall@1", "Recall@10", "Recall@100")


def check_writable(path: Path) -> None:
    """Refuse a result file that could not be written, before the work is done.

    Raises:
        InvalidInputError: it is a folder, or its folder is not there.
    """
    if path.is_dir():
        raise InvalidInputError(f"--json {path} is a folder. Name a file, such as {path / 'results.json'}.")
    if not path.absolute().parent.is_dir():
        raise InvalidInputError(f"--json {path}: there is no folder {path.parent}. Make it, or name another.")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON list; a file that is there is replaced.

    Raises:
        InvalidInputError: the file cannot be written.
    """
    text = json.dumps(rows, ensure_ascii=False, indent=2, allow_nan=False)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written ({error}). Name another file.") from error


@contextmanager
def live(jobs: Sequence[Job]) -> Iterator[Callable[[], None]]:
    """Show how far all are, on standard error, until the block ends; yields what shows it anew."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        # A line for each that ends, since nothing can be drawn over.
        told: set[int] = set()

        def tell() -> None:
            for i, job in enumerate(jobs):
                if i not in told and (job.error or job.state == "done"):
                    told.add(i)
                    console.print(f"{job.dataset}, {job.system}: {job.error or 'done'}", markup=False)

        yield tell
        tell()
        return
    with Live(_progress(jobs), console=console, refresh_per_second=4) as shown:
        yield lambda: shown.update(_progress(jobs))
        shown.update(_progress(jobs))


def _progress(jobs: Sequence[Job]) -> Table:
    """One line a dataset, one column a system."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    systems = list(dict.fromkeys(job.system for job in jobs))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("dataset", *systems):
        table.add_column(Text(head))
    for dataset in dict.fromkeys(job.dataset for job in jobs):
        own = {job.system: job for job in jobs if job.dataset == dataset}
        table.add_row(Text(dataset), *(_state(own.get(system)) for system in systems))
    return table


def _state(job: Job | None) -> Any:
    from rich.text import Text

    if job is None:
        return Text("")
    if job.error:
        return Text("not here" if job.spec is None else "failed", style="dim" if job.spec is None else "red")
    if job.cell is not None:
        return Text(f"{job.cell.result.measures['nDCG@10']:.4f}", style="green")
    return Text(job.state, style="dim" if job.state == "waiting" else "yellow")


def finish(jobs: Sequence[Job], folder: Path | None, file: Path | None) -> None:
    """Print the table, write JSON, and in a folder the reports too.

    Args:
        jobs: with their results, or why there are none.
        folder: of results.json, report.md and report.html; None writes none.
        file: of the results; None writes none but the folder's.
    """
    results = [job.cell.result for job in jobs if job.cell is not None]
    print_results(results)
    print_notes(results)
    print_missing(jobs)
    rows = [asdict(result) for result in results]
    if file is not None and rows:
        write_rows(file, rows)
    if folder is not None:
        from evals import page

        write_rows(folder / "results.json", rows)
        (folder / "report.md").write_text(markdown(jobs), encoding="utf-8")
        page.write(folder / "report.html", jobs)
        _say(f"Results: {folder / 'results.json'}, report.md, report.html")
    elif file is not None and rows:
        _say(f"{len(rows)} results are in {file}")


def print_results(results: Sequence[Result]) -> None:
    """A table on standard output, and below it the signature of each line."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    if not results:
        return
    console.print(table(results))
    for result in results:
        console.print(Text(result.signature), soft_wrap=True, highlight=False)


def print_notes(results: Sequence[Result]) -> None:
    """Where the data is from, and what differs from what was published, on standard output."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for note in notes(results):
        console.print(Text(note), soft_wrap=True, highlight=False)


def notes(results: Sequence[Result]) -> list[str]:
    """Each dataset's notes, once."""
    named = ((f"{each.dataset}: ", note) for each in results for note in each.notes)
    return list(dict.fromkeys(name + note.removeprefix(name) for name, note in named))


def print_missing(jobs: Sequence[Job]) -> None:
    """What was not measured, and why, on standard output."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for where, why in missing(jobs):
        console.print(Text(f"{where}: {why}"), soft_wrap=True, highlight=False)


def missing(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """What was not measured and why; a dataset that is not here is named once."""
    found: dict[str, str] = {}
    for job in jobs:
        if job.error:
            found[job.dataset if job.spec is None else f"{job.dataset}, {job.system}"] = job.error
    return list(found.items())


def table(results: Sequence[Result]) -> Table:
    """One line a result: dataset, system, measures, latency."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    lines = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    lines.add_column("dataset")
    lines.add_column("system", no_wrap=True)
    for name in (*SHOWN, "p50 ms", "p95 ms", "KB/doc", "MB"):
        # On 80 columns the heads break into two lines, and the numbers stay whole.
        lines.add_column(name, justify="right", overflow="fold", min_width=len("0.1234"))
    for result in results:
        size = result.bytes_per_document
        lines.add_row(
            # Text, because a str is parsed: a folder may be called "[bold]".
            Text(f"{result.dataset} {result.split}"),
            Text(result.system),
            *(f"{result.measures[name]:.4f}" for name in SHOWN),
            *(number(result.latency_ms.get(name), ".1f") for name in ("p50", "p95")),
            "" if size is None else f"{size / 1000:.1f}",
            number(result.peak_mb, ",.0f"),
        )
    return lines


def number(value: float | None, form: str) -> str:
    """A number for people; "" where there is none."""
    return "" if value is None else format(value, form)


def markdown(jobs: Sequence[Job]) -> str:
    """All results as one Markdown file."""
    heads = ["dataset", "queries", "system", *SHOWN, "95 % of nDCG@10", "p50 ms", "KB/document"]
    lines = [heads, ["---"] * 3 + ["---:"] * (len(heads) - 3)]
    for job in jobs:
        if job.cell is None:
            continue
        result = job.cell.result
        low, high = result.intervals["nDCG@10"]
        size = result.bytes_per_document
        lines.append(
            [
                f"{result.dataset} {result.split}",
                f"{result.n_queries:,}",
                result.system,
                *(f"{result.measures[name]:.4f}" for name in SHOWN),
                f"{low:.4f} to {high:.4f}",
                number(result.latency_ms.get("p50"), ".1f"),
                "" if size is None else f"{size / 1000:.1f}",
            ]
        )
    text = "# Results\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    if left := missing(jobs):
        text += "\nNot measured:\n\n" + "".join(f"- {where}: {why}\n" for where, why in left)
    if noted := notes([job.cell.result for job in jobs if job.cell is not None]):
        text += "\nThe data:\n\n" + "".join(f"- {note}\n" for note in noted)
    signatures = [job.cell.result.signature for job in jobs if job.cell is not None]
    return text + "\nSignatures:\n\n" + "".join(f"    {line}\n" for line in signatures)


def _say(line: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(line, markup=False, soft_wrap=True)
