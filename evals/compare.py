"""Command line: two systems on the same queries, what differs for certain, and the queries that moved most.

python -m evals.compare bm25 hybrid --dataset demo                      # of a run of evals.run
python -m evals.compare old.trec new.trec --qrels qrels.tsv             # of run files
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from evals import statistics
from evals.options import WithLists, fail
from evals.results import data_of
from evals.run import DEFAULT_OUT
from jacolbert_rag.errors import InvalidInputError, JaColBERTError

MEASURES = ("nDCG@10", "MRR@10", "Recall@1", "Recall@10", "Recall@100")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Values:
    """A system's values for single queries.

    Attributes:
        name: for people.
        measures: measure -> query id -> value.
        texts: query id -> query, where it is known.
        signature: all that they depend on; "" where it is not known.
    """

    name: str
    measures: Mapping[str, Mapping[str, float]]
    texts: Mapping[str, str]
    signature: str = ""


@dataclass(frozen=True)
class Difference(statistics.Paired):
    """How b differs from a in a measure: wins are b's.

    Attributes:
        measure: its name.
        a: mean of the first system.
        b: mean of the second.
    """

    measure: str
    a: float
    b: float


@dataclass(frozen=True)
class Moved:
    """A query on which two systems differ."""

    id: str
    text: str
    a: float
    b: float


@app.command(cls=WithLists)
def main(
    a: Annotated[str, typer.Argument(help="a system's name, a cell's file, or a run file", metavar="A")],
    b: Annotated[str, typer.Argument(help="the same, to be compared with A", metavar="B")],
    dataset: Annotated[
        str | None, typer.Option(help="Of systems that are named; not needed where --out has only one.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The same of splits.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of evals.run.", metavar="FOLDER")] = DEFAULT_OUT,
    qrels: Annotated[Path | None, typer.Option(help="Judgements of run files.", metavar="F")] = None,
    measures: Annotated[
        list[str] | None, typer.Option(help="Such as nDCG@10, MRR@10.", metavar="M …")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Queries to show that moved most, each way.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Where the result goes.", metavar="FILE")] = None,
) -> None:
    """Compare two systems query by query."""
    from evals import reports

    try:
        if json is not None:
            reports.check_writable(json)
        names = list(measures or MEASURES)
        first, second = (values_of(each, dataset, split, out, qrels, names) for each in (a, b))
        differences = compared(first, second, names)
        moved = moved_most(first, second, names[0])
    except (JaColBERTError, ValueError) as error:
        raise fail(error) from error
    show(first, second, differences, moved, names[0], top)
    if json is not None:
        signed = {"a_signature": first.signature, "b_signature": second.signature}
        rows = [{"a": first.name, "b": second.name, **signed, **asdict(each)} for each in differences]
        reports.write_rows(json, rows)


def values_of(
    given: str,
    dataset: str | None,
    split: str | None,
    out: Path,
    qrels: Path | None,
    measures: Sequence[str],
) -> Values:
    """The values of a system, of a cell's file, or of a run file.

    Raises:
        InvalidInputError: there is no such system or file, or a measure is missing.
    """
    from evals import metrics, trec
    from evals.results import Cell

    path = Path(given)
    if qrels is not None:
        metrics.check_measures(measures)
        judged, run = trec.read_qrels(qrels), trec.read_run(path)
        return Values(given, metrics.per_query(judged, run, measures), {})
    cell = Cell.load(path) if path.is_file() else _named(given, dataset, split, out)
    if missing := [name for name in measures if name not in cell.result.measures]:
        known = ", ".join(cell.result.measures)
        raise InvalidInputError(f"{given} was not measured in {missing[0]}; there are {known}.")
    values = {name: {id: each.values[name] for id, each in cell.queries.items()} for name in measures}
    result = cell.result
    name = f"{result.system} ({result.dataset} {result.split})"
    return Values(name, values, {id: each.text for id, each in cell.queries.items()}, result.signature)


def _named(system: str, dataset: str | None, split: str | None, out: Path) -> Any:
    """The newest cell of a system on a dataset and split.

    Raises:
        InvalidInputError: there is none, or there are some of several datasets or splits.
    """
    from evals.results import Cell

    files = sorted((out / "cells").glob("*.json"), key=lambda file: file.stat().st_mtime)
    cells = []
    for file in files:
        with suppress(InvalidInputError):  # of another version
            cells.append(Cell.load(file))
    cells = [cell for cell in cells if cell.result.system == system]
    for part, wanted in (("dataset", dataset), ("split", split)):
        if wanted is not None:
            cells = [cell for cell in cells if getattr(cell.result, part) == wanted]
    if not cells:
        named = " ".join(each for each in (dataset, split) if each is not None)
        of = f" on {named}" if named else ""
        raise InvalidInputError(
            f"{out} has no result of {system!r}{of}. Run: python -m evals.run --out {out} --system {system} …"
        )
    for part in ("dataset", "split"):
        there = sorted({getattr(cell.result, part) for cell in cells})
        if len(there) > 1:
            raise InvalidInputError(
                f"{out} has {system!r} on {', '.join(there)}. Name one of them with --{part}."
            )
    return cells[-1]


def compared(a: Values, b: Values, measures: Sequence[str]) -> list[Difference]:
    """How two systems differ, measure by measure.

    Raises:
        InvalidInputError: they are of other queries, documents or judgements.
    """
    if a.signature and b.signature:
        one_data, other_data = (data_of({"signature": each.signature}) for each in (a, b))
        if one_data != other_data:
            raise InvalidInputError(
                f"{a.name} and {b.name} were measured on other data:\n  {a.signature}\n  {b.signature}\n"
                "Measure both anew on the same dataset and split, with the same --limit."
            )
    ids = list(a.measures[measures[0]])
    others = b.measures[measures[0]]
    if set(ids) != set(others):
        lacking = sorted(set(ids) ^ set(others))
        raise InvalidInputError(
            f"{a.name} and {b.name} are of other queries: {len(lacking):,} are in only one of them, such as "
            f"{lacking[0]!r}. Measure both on the same split, with the same --limit."
        )
    one, other = (np.array([[each.measures[name][id] for name in measures] for id in ids]) for each in (a, b))
    return [
        Difference(**asdict(found), measure=name, a=mean_a, b=mean_b)
        for found, name, mean_a, mean_b in zip(
            statistics.paired(other - one),
            measures,
            one.mean(0).tolist(),
            other.mean(0).tolist(),
            strict=True,
        )
    ]


def moved_most(a: Values, b: Values, measure: str) -> list[Moved]:
    """Queries by how much better b is, those on which it is worse at the end; ties are left out."""
    one, other = a.measures[measure], b.measures[measure]
    texts = {**b.texts, **a.texts}
    found = [Moved(id, texts.get(id, ""), value, other[id]) for id, value in one.items()]
    found = [each for each in found if abs(each.b - each.a) > statistics.EQUAL]
    return sorted(found, key=lambda each: each.a - each.b)


def show(
    a: Values, b: Values, differences: Sequence[Difference], moved: Sequence[Moved], measure: str, top: int
) -> None:
    """Tables on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from evals.reports import PIPE_WIDTH

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    for letter, system in (("A", a), ("B", b)):
        console.print(Text(f"{letter}: {system.name}"))
        if system.signature:
            console.print(Text(f"   {system.signature}", style="dim"), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("measure")
    for head in ("A", "B", "B - A, points", "95 %", "p (Holm)", "wins", "ties", "losses"):
        table.add_column(head, justify="right")
    for each in differences:
        table.add_row(
            each.measure, f"{each.a:.4f}", f"{each.b:.4f}",
            Text(f"{100 * each.difference:+.2f}", style="bold green" if each.p < statistics.CERTAIN else ""),
            f"{100 * each.low:+.2f} to {100 * each.high:+.2f}", f"{each.p:.4f}",
            str(each.wins), str(each.ties), str(each.losses),
        )  # fmt: skip
    console.print(table)
    better = [each for each in moved if each.b > each.a][:top]
    worse = [each for each in reversed(moved) if each.b < each.a][:top]
    for title, part in (("B is better", better), ("A is better", worse)):
        if part:
            console.print(Text(f"{title} ({measure} of A, of B)", style="bold"))
        for query in part:
            console.print(Text(f"  {query.a:.3f}  {query.b:.3f}  {query.id}  {query.text}"), soft_wrap=True)


if __name__ == "__main__":
    app()
