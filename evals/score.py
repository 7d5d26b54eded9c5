"""Command line: score TREC run files.

python -m evals.score --qrels qrels.tsv --run run.trec.gz --measures nDCG@10 MRR@10 --json -
"""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.options import WithLists, fail
from jacolbert_rag.errors import JaColBERTError

STDOUT = "-"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=WithLists)
def main(
    qrels: Annotated[
        Path, typer.Option(help="Judgements: TREC's format or BEIR's, plain or .gz.", metavar="F")
    ],
    run: Annotated[list[Path], typer.Option(help="Runs in TREC's format, plain or .gz.", metavar="F …")],
    measures: Annotated[
        list[str], typer.Option(help="Such as nDCG@10, MRR@10, MAP@10, Recall@100, Hit@1.", metavar="M …")
    ],
    json: Annotated[str, typer.Option(help="Where the results go; - is standard output.", metavar="FILE")],
) -> None:
    """Score run files: a mean over all judged queries, 0 for those that a run lacks.

    Ranked by score; of equal scores, what the file has first is before.
    """
    from evals import reports

    try:
        if json != STDOUT:
            reports.check_writable(Path(json))
        rows = score(qrels, run, measures)
        if json == STDOUT:
            typer.echo(json_module.dumps(rows, ensure_ascii=False, indent=2, allow_nan=False))
        else:
            reports.write_rows(Path(json), rows)
            show(rows)
    except (JaColBERTError, ValueError) as error:
        raise fail(error) from error


def score(qrels_file: Path, run_files: Sequence[Path], measures: Sequence[str]) -> list[dict[str, Any]]:
    """One row a run: its file, the mean of each measure, and how many queries it was taken over.

    Args:
        qrels_file: judgements; every query in it counts.
        run_files: queries that were not judged are passed over.
        measures: see `evals.metrics.per_query`.

    Raises:
        DatasetError: a file cannot be used.
        ValueError: a measure is unknown.
    """
    from evals import metrics, trec

    metrics.check_measures(measures)
    qrels = trec.read_qrels(qrels_file)
    runs = [trec.read_run(file) for file in run_files]
    return [
        {
            "run": str(file),
            "measures": metrics.mean(metrics.per_query(qrels, run, measures)),
            "n_queries": len(qrels),
        }
        for file, run in zip(run_files, runs, strict=True)
    ]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    for measure in rows[0]["measures"]:
        table.add_column(measure, justify="right")
    table.add_column("queries", justify="right")
    for row in rows:
        values = [f"{value:.4f}" for value in row["measures"].values()]
        table.add_row(Text(row["run"]), *values, f"{row['n_queries']:,}")
    Console().print(table)


if __name__ == "__main__":
    app()
