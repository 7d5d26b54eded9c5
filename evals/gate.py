"""Command line: fail where a figure has fallen, for CI.

    python -m evals.gate --baseline runs/my_eval/results.json --max-drop 0.5 --data-root .

Measures anew what the baseline has, or takes --results; the status is 1 where a figure lost more points.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.options import fail
from evals.results import data_of, setting_of
from jacolbert_rag.errors import InvalidInputError, JaColBERTError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

ROUNDING = 1e-9  # points


@dataclass(frozen=True)
class Row:
    """A figure then and now.

    Attributes:
        name: dataset, split and system.
        before: in the baseline.
        now: None where it was not measured.
        change: in points, below 0 where some were lost; None where it was not measured.
    """

    name: str
    before: float
    now: float | None

    @property
    def change(self) -> float | None:
        """See above."""
        return None if self.now is None else 100 * (self.now - self.before)


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
    fallen = [row for row in rows if row.change is None or row.change < -max_drop - ROUNDING]
    for row in rows:
        mark = "FELL" if row in fallen else "ok"
        shown = "not measured" if row.change is None else f"{row.now:.4f} ({row.change:+.2f} points)"
        typer.echo(f"{mark:4} {row.name}: {row.before:.4f} -> {shown}")
    if fallen:
        typer.echo(f"{len(fallen)} of {len(rows)} lost more than {max_drop} points of {measure}.", err=True)
        raise typer.Exit(1)


def compared(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], measure: str
) -> list[Row]:
    """Each row of the baseline beside today's.

    Raises:
        InvalidInputError: the measure is in none, or two rows of a name are of other data, or of one model
            read in two ways.
    """
    today = {_name(row): row for row in now}
    rows = []
    for old in before:
        name = _name(old)
        if measure not in old["measures"]:
            raise InvalidInputError(f"{name} has no {measure}; name {', '.join(old['measures'])}.")
        new = today.get(name)
        if new is not None:
            _check_alike(name, old, new)
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
        InvalidInputError: a dataset is neither in the repository, nor prepared, nor below a root; or a row
            was measured in a way that cannot be read from it.
    """
    from evals import places, run
    from evals.cell import Options
    from evals.sources import Library

    for row in rows:
        if "dataset" not in row:
            raise InvalidInputError(
                f"{_name(row)} was scored by evals.score, which searches nothing. Score it today, too, and "
                "pass that with --results."
            )
        if "-without-head-" in row["signature"]:
            raise InvalidInputError(
                f"{_name(row)} was measured with --head none. Measure it today with evals.run --head none "
                "--json, and pass that with --results."
            )
    beside = places.of_roots(roots)
    library = Library(offline=True)
    found: list[dict[str, Any]] = []
    datasets = dict.fromkeys((row["dataset"], row["split"]) for row in rows)
    with tempfile.TemporaryDirectory() as out:
        for dataset, split in datasets:
            own = [row for row in rows if (row["dataset"], row["split"]) == (dataset, split)]
            place = beside.get(dataset) or places.named(dataset, library)
            assert place.folder is not None
            place = places.Place(dataset, place.folder, split, is_named=True)
            data = data_of(own[0])
            options = Options(limit=data[0] if data is not None else None, model=model)
            names = [row["system"] for row in own]
            jobs = run.jobs_of(place, names, options, "", Path(out))
            run.measure(jobs, 1)
            if failed := [job for job in jobs if job.error]:
                raise InvalidInputError(f"{failed[0].dataset}, {failed[0].system}: {failed[0].error}")
            found += [asdict(job.cell.result) for job in jobs if job.cell is not None]
    return found


def _check_alike(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse figures of other data, or of the same weights read in another way.

    Raises:
        InvalidInputError: they are.
    """
    then, here = data_of(old), data_of(new)
    if then != here:
        shown = [
            f"{data[0]:,} queries, {data[1]}" if data is not None else "unsigned data"
            for data in (then, here)
        ]
        raise InvalidInputError(
            f"{name}: the baseline is of {shown[0]}, and today's result of {shown[1]}. Take the same data."
        )
    for setting in ("qlen", "dlen", "skip"):
        before, now = setting_of(old, setting), setting_of(new, setting)
        if before and now and before != now and _weights(old) == _weights(new):
            raise InvalidInputError(
                f"{name}: the baseline was measured with {setting}:{before}, and today's result with "
                f"{setting}:{now}, by the same model. Measure it today with evals.run and the options of the "
                "baseline, and pass that with --results."
            )


def _weights(row: Mapping[str, Any]) -> str:
    """The model in a row's signature, with what its weights are told by."""
    parts = row.get("signature", "").split("|")
    return next((part for part in parts[4:] if "@" in part), "")


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['dataset']} {row['split']}, {row['system']}" if "dataset" in row else str(row.get("run"))


if __name__ == "__main__":
    app()
