"""Command line: score systems on a folder in BEIR layout.

python -m evals.run --data FOLDER --split dev --system bm25 --system jacolbert --json results.json
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jacolbert_rag.errors import JaColBERTError

if TYPE_CHECKING:
    from rich.console import Console

    from evals.datasets import Task
    from evals.reports import Result
    from evals.systems import System

RUN_K = 100  # results a query, for Recall@100
BATCH_QUERIES = 512  # searched at once: bounds the memory of embedded queries, and lets progress show

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="Folder in BEIR layout, plain or .gz.", metavar="FOLDER")],
    split: Annotated[str, typer.Option(help="Which qrels/SPLIT.tsv.")],
    system: Annotated[
        list[str], typer.Option(help="bm25, jacolbert, jacolbert-exact or hybrid; may be repeated.")
    ],
    json: Annotated[Path, typer.Option(help="Where the results go; overwritten.", metavar="FILE")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N queries.", metavar="N")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a ColBERT; the bundled one where not given.")
    ] = None,
) -> None:
    """Score retrieval systems: the whole corpus is searched, the mean is over all queries."""
    try:
        results = run(data, split, system, json=json, limit=limit, model=model)
    except JaColBERTError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{len(results)} results are in {json}", err=True)


def run(
    data: Path, split: str, names: list[str], *, json: Path, limit: int | None, model: str | None
) -> list[Result]:
    """Load, measure each system, print the table, write the file.

    Raises:
        JaColBERTError: an input cannot be used; the message says which and what to do.
    """
    from rich.console import Console
    from rich.text import Text

    from evals import datasets, metrics, reports, systems

    systems.check_names(names)
    reports.check_writable(json)
    metrics.load_ranx()  # an hour of encoding must not end in a missing package
    err = Console(stderr=True)
    task = datasets.load_task(data, split, limit=limit)
    err.print(
        Text(f"{task.name} {split}: {len(task.queries):,} queries, {len(task.documents):,} documents"),
    )
    results = [measure(task, system, err) for system in systems.build(names, task.documents, model=model)]
    reports.print_results(results)
    reports.write_json(json, results)
    return results


def measure(task: Task, system: System, err: Console) -> Result:
    """Search all queries, score what was found, and time single queries."""
    from rich.progress import track

    from evals import metrics, reports, systems

    queries = list(task.queries.values())
    found: list[dict[str, float]] = []
    starts = range(0, len(queries), BATCH_QUERIES)
    for start in track(starts, description=f"{system.name}: searching", console=err):
        found += system.search_many(queries[start : start + BATCH_QUERIES], RUN_K)
    values = metrics.per_query(task.qrels, dict(zip(task.queries, found, strict=True)))
    return reports.Result(
        dataset=task.name,
        split=task.split,
        system=system.name,
        measures=metrics.mean(values),
        n_queries=len(queries),
        latency_ms=systems.latency_ms(system, queries),
        signature=reports.signature(task, system, k=RUN_K),
    )


if __name__ == "__main__":
    app()
