"""Command line: fail where a figure has fallen, for CI.

    python -m evals.gate --baseline runs/my_eval/results.json --max-drop 0.5 --data-root .

Measures anew what the baseline has, or takes --results; the status is 1 where a figure lost more points.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.options import fail
from jacolbert_rag.errors import InvalidInputError, JaColBERTError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

ROUNDING = 1e-9  # points
# In a signature: queries, and which of how many; documents and the data's digest.
_OF_DATA = re.compile(r"\|q:(?P<n>\d+)(?:/\d+)?\|(?P<corpus>c:\d+@[0-9a-f]+)")


@dataclass(frozen=True)
class Row:
    """A figure then and now.

    Attributes:
        name: dataset, split and system.
        before: in the baseline.
        now: None where it was not measured.
        change: in points; below 0 where some were lost.
    """

    name: str
    before: float
    now: float | None

    @property
    def change(self) -> float:
        """See above."""
        return 100 * ((self.now if self.now is not None else 0.0) - self.before)


@app.command()
def main(
    baseline: Annotated[Path, typer.Option(help="Results to hold: JSON of evals.run.", metavar="FILE")],
    results: Annotated[
        Path | None, typer.Option(help="Results of today; measured anew where not given.", metavar="FILE")
    ] = None,
    max_drop: Annotated[float, typer.Option(min=0, help="Points that a figure may lose.")] = 0.5,
    measure: Annotated[str, typer.Option(help="Which figure.")] = "nDCG@10",
    data_root: Annotated[
        list[Path] | None, typer.Option(help="Folders of the baseline's datasets.", metavar="FOLDER")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A ColBERT in place of the bundled one.")] = None,
) -> None:
    """Fail on a regression."""
    from evals.results import read_rows

    try:
        before = read_rows(baseline)
        now = read_rows(results) if results is not None else measured(before, data_root or [], model)
        rows = compared(before, now, measure)
    except JaColBERTError as error:
        raise fail(error) from error
    fallen = [row for row in rows if row.now is None or row.change < -max_drop - ROUNDING]
    for row in rows:
        mark = "FELL" if row in fallen else "ok"
        shown = "not measured" if row.now is None else f"{row.now:.4f} ({row.change:+.2f} points)"
        typer.echo(f"{mark:4} {row.name}: {row.before:.4f} -> {shown}")
    if fallen:
        typer.echo(f"{len(fallen)} of {len(rows)} lost more than {max_drop} points of {measure}.", err=True)
        raise typer.Exit(1)


def compared(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], measure: str
) -> list[Row]:
    """Each row of the baseline beside today's.

    Raises:
        InvalidInputError: the measure is in none, or two rows of a name are of other data.
    """
    today = {_name(row): row for row in now}
    rows = []
    for old in before:
        name = _name(old)
        if measure not in old["measures"]:
            raise InvalidInputError(f"{name} has no {measure}; name {', '.join(old['measures'])}.")
        new = today.get(name)
        if new is not None and (then := _data(old)) != (here := _data(new)):
            raise InvalidInputError(
                f"{name}: the baseline is of {then}, and today's result of {here}. Take the same data."
            )
        rows.append(
            Row(name, old["measures"][measure], None if new is None else new["measures"].get(measure))
        )
    if not rows:
        raise InvalidInputError("The baseline has no results. Write some with evals.run --json.")
    return rows


def measured(
    rows: Sequence[Mapping[str, Any]], roots: Sequence[Path], model: str | None
) -> list[dict[str, Any]]:
    """Today's results of what the rows name.

    Raises:
        InvalidInputError: a dataset is neither in the repository, nor prepared, nor below a root.
    """
    from evals import places, run
    from evals.sources import Library

    beside = {place.name: place for root in roots for place in places.of_root(root)}
    library = Library(offline=True)
    found: list[dict[str, Any]] = []
    datasets = dict.fromkeys((row["dataset"], row["split"]) for row in rows)
    with tempfile.TemporaryDirectory() as out:
        for dataset, split in datasets:
            own = [row for row in rows if (row["dataset"], row["split"]) == (dataset, split)]
            place = beside.get(dataset) or places.named(dataset, library)
            assert place.folder is not None
            place = places.Place(dataset, place.folder, split, is_named=True)
            signed = _OF_DATA.search(own[0]["signature"])
            limit = int(signed["n"]) if signed is not None else None
            names = [row["system"] for row in own]
            jobs = run.jobs_of(place, names, model, None, None, limit, "", Path(out))
            run.measure(jobs, 1)
            if failed := [job for job in jobs if job.error]:
                raise InvalidInputError(f"{failed[0].dataset}, {failed[0].system}: {failed[0].error}")
            found += [asdict(job.cell.result) for job in jobs if job.cell is not None]
    return found


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['dataset']} {row['split']}, {row['system']}"


def _data(row: Mapping[str, Any]) -> str:
    found = _OF_DATA.search(row["signature"])
    return f"{found['n']} queries, {found['corpus']}" if found is not None else "unsigned data"


if __name__ == "__main__":
    app()
