"""Command line: questions about the method that a user may ask, each with its table and plot.

    python -m evals.studies query-length --dataset demo --out evals/results/studies
    python -m evals.studies english --dataset demo --out evals/results/studies
    python -m evals.studies teachers --ablation training/ablations/teacher.json --out evals/results/studies

Each writes NAME.json, NAME.md and NAME.svg.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from evals import statistics
from evals.options import fail
from jacolbert_rag.errors import InvalidInputError, JaColBERTError

if TYPE_CHECKING:
    from evals.datasets import Task
    from evals.places import Place

MEASURE = "nDCG@10"
MULTIPLES = (8, 16, 32, 64)
LEAST_MASKS = (0, 4, 8, 16, 32)
OTHER_RULES = ("none", "fixed(32)", "jqara")
BASE_RULE = "dynamic(32, 8)"  # the paper's, with which others are compared
BUCKETS = ((1, 16), (17, 32), (33, 64), (65, 10_000))  # tokens of a query, [MASK]s left out
K = 10
ENGLISH = "en"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Datasets = Annotated[list[str] | None, typer.Option("--dataset", help="By name; may be repeated.")]
Folders = Annotated[list[Path] | None, typer.Option("--data", help="Folder in BEIR layout; may be repeated.")]
Out = Annotated[Path, typer.Option(help="Where the table and the plot go.", metavar="FOLDER")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N queries of each.")]


@app.command("query-length")
def query_length(
    out: Out,
    dataset: Datasets = None,
    data: Folders = None,
    model: Annotated[str | None, typer.Option(help="A ColBERT in place of the bundled one.")] = None,
    limit: Limit = None,
) -> None:
    """How many [MASK]s a query needs: a grid of dynamic(M, K), by length of the query."""
    try:
        places = _places(dataset or [], data or [])
        rules = [f"dynamic({m}, {k})" for m in MULTIPLES for k in LEAST_MASKS] + list(OTHER_RULES)
        found = [_lengths_of(place, rules, model, limit) for place in places]
    except JaColBERTError as error:
        raise fail(error) from error
    _write(out, "query-length", found, _lengths_table(found, model), _heatmap(found))


def _lengths_of(place: Place, rules: Sequence[str], model: str | None, limit: int | None) -> dict[str, Any]:
    """Values of each rule on one dataset, over all queries and over those of each length; exact search."""
    import tempfile

    from evals import jacolbert
    from evals.datasets import load_task
    from jacolbert_rag import JaColBERTRetriever

    assert place.folder is not None
    task = load_task(place.folder, place.split, limit=limit, name=place.name)
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        jacolbert.build_engine(task.documents, model=model, index=index).close()
        values: dict[str, Any] = {}
        lengths = np.zeros(0, dtype=np.int64)
        for rule in dict.fromkeys(["none", *rules]):
            engine = JaColBERTRetriever.load(index, model=model, query_length=rule)
            if rule == "none":
                lengths = engine.encoder.queries(list(task.queries.values())).lengths
            values[rule] = _exact_values(engine, task)
            fingerprint = engine.encoder.checkpoint.fingerprint
            engine.close()
    rows = []
    for rule in rules:
        parts = {}
        for low, high in BUCKETS:
            inside = (lengths >= low) & (lengths <= high)
            if inside.any():
                parts[_bucket(low, high)] = float(values[rule][inside].mean())
        difference = values[rule] - values[BASE_RULE]
        bounds = statistics.intervals(difference[:, None])[0]
        rows.append({
            "rule": rule, "all": float(values[rule].mean()), "by_length": parts,
            "difference": float(difference.mean()), "low": float(bounds[0]), "high": float(bounds[1]),
        })  # fmt: skip
    counts = {_bucket(low, high): int(((lengths >= low) & (lengths <= high)).sum()) for low, high in BUCKETS}
    return {
        "dataset": f"{task.name} {task.split}",
        "n_queries": len(task.queries),
        "n_split": task.n_split,
        "digest": task.digest[:8],
        "model": fingerprint[:8],
        "n_by_length": {name: n for name, n in counts.items() if n},
        "rows": rows,
    }


def _exact_values(engine: Any, task: Task) -> Any:
    """(n,) the measure of each query."""
    from evals import jacolbert, metrics

    system = jacolbert.JaColBERT(engine, jacolbert.EXACT_NAME)
    among = None if task.candidates is None else [task.candidates[id] for id in task.queries]
    found = system.search_many(list(task.queries.values()), K, among)
    run = dict(zip(task.queries, found, strict=True))
    return np.array(list(metrics.per_query(task.qrels, run, [MEASURE])[MEASURE].values()))


def _bucket(low: int, high: int) -> str:
    return f"{low} to {high}" if high < BUCKETS[-1][1] else f"{low} and more"


def _lengths_table(found: Sequence[Mapping[str, Any]], model: str | None) -> str:
    lines = [
        "# [MASK]s of a query",
        "",
        f"{MEASURE} of exact search with each rule of query augmentation, model {model or 'default'}"
        f"@{found[0]['model']}; by a query's own tokens ([CLS], marker and [SEP] included), with how many "
        f"queries there are. Difference from {BASE_RULE}, the paper's, with its 95 % bootstrap interval; "
        "* where it leaves out 0.",
    ]
    for each in found:
        heads = [f"{name} ({n})" for name, n in each["n_by_length"].items()]
        lines += [
            "",
            f"## {each['dataset']}, {each['n_queries']} of {each['n_split']} queries @{each['digest']}",
        ]
        lines += ["", f"| rule | all | difference | {' | '.join(heads)} |"]
        lines.append(f"| --- | ---: | ---: |{' ---: |' * len(heads)}")
        for row in each["rows"]:
            certain = "*" if row["low"] > 0 or row["high"] < 0 else ""
            shown = [f"{row['by_length'][name]:.4f}" for name in each["n_by_length"]]
            interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
            difference = "" if row["rule"] == BASE_RULE else f"{row['difference']:+.4f} ({interval}){certain}"
            lines.append(f"| {row['rule']} | {row['all']:.4f} | {difference} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _heatmap(found: Sequence[Mapping[str, Any]]) -> str:
    """A grid for each dataset."""
    from matplotlib.figure import Figure

    from evals.page import as_svg

    figure = Figure(figsize=(4.2 * len(found), 3.4), layout="constrained")
    for axes, each in zip(np.atleast_1d(figure.subplots(1, len(found))), found, strict=True):
        values = {row["rule"]: row["all"] for row in each["rows"]}
        grid = np.array([[values[f"dynamic({m}, {k})"] for k in LEAST_MASKS] for m in MULTIPLES])
        axes.imshow(grid, cmap="Blues", aspect="auto")
        middle = (grid.min() + grid.max()) / 2
        for (row, column), value in np.ndenumerate(grid):
            color = "white" if value > middle else "black"
            axes.text(column, row, f"{value:.4f}", ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(range(len(LEAST_MASKS)), LEAST_MASKS)
        axes.set_yticks(range(len(MULTIPLES)), MULTIPLES)
        axes.set_xlabel("fewest [MASK]s", fontsize=8)
        axes.set_ylabel("multiple of tokens", fontsize=8)
        axes.set_title(f"{each['dataset']}: {MEASURE}", fontsize=9)
    return as_svg(figure)


@app.command()
def english(
    out: Out,
    dataset: Datasets = None,
    data: Folders = None,
    model: Annotated[
        list[str] | None, typer.Option(help="May be repeated, as for a model before and after averaging.")
    ] = None,
    system: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    limit: Limit = None,
) -> None:
    """English questions over Japanese passages, beside the same questions in Japanese."""
    try:
        places = _places(dataset or [], data or [])
        names = system or ["bm25", "jacolbert", "hybrid"]
        models: list[str | None] = [*model] if model else [None]
        rows = [row for place in places for each in models for row in _english_of(place, names, each, limit)]
    except JaColBERTError as error:
        raise fail(error) from error
    _write(out, "english", rows, _english_table(rows), _bars(rows))


def _english_of(
    place: Place, names: Sequence[str], model: str | None, limit: int | None
) -> list[dict[str, Any]]:
    """Each system's figures in both languages.

    Raises:
        InvalidInputError: the dataset has no English queries, or a system failed.
    """
    import tempfile

    from evals import run
    from evals.cell import Options

    if place.folder is None or not list(place.folder.glob(f"queries.{ENGLISH}.jsonl*")):
        raise InvalidInputError(
            f"{place.name} has no queries.{ENGLISH}.jsonl. Write the same ids with English texts into one."
        )
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for language in (None, ENGLISH):
            options = Options(limit, language, model)
            fingerprint = run.fingerprint_of(options, names)
            jobs = run.jobs_of(place, names, options, fingerprint, Path(folder))
            run.measure(jobs, 1)
            for job in jobs:
                if job.cell is None:
                    raise InvalidInputError(f"{job.dataset}, {job.system}: {job.error}")
                found.setdefault(job.system, {})[language or "ja"] = job.cell.result
    return [
        {
            "dataset": f"{place.name} {place.split}",
            "model": model or "default",
            "system": name,
            **{
                language: {"measures": dict(each.measures), "interval": list(each.intervals[MEASURE])}
                for language, each in by_language.items()
            },
            "signature": by_language[ENGLISH].signature,
        }
        for name, by_language in found.items()
    ]


def _english_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "# English questions over Japanese passages",
        "",
        "The same questions in both languages, over the same passages.",
        "",
        f"| dataset | model | system | {MEASURE}, Japanese | English | Recall@10, Japanese | English |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        own, other = row["ja"]["measures"], row[ENGLISH]["measures"]
        low, high = row[ENGLISH]["interval"]
        lines.append(
            f"| {row['dataset']} | {row['model']} | {row['system']} | {own[MEASURE]:.4f} "
            f"| {other[MEASURE]:.4f} ({low:.3f} to {high:.3f}) "
            f"| {own['Recall@10']:.4f} | {other['Recall@10']:.4f} |"
        )
    lines += ["", "Signatures:", "", *(f"    {row['signature']}" for row in rows)]
    return "\n".join(lines) + "\n"


def _bars(rows: Sequence[Mapping[str, Any]]) -> str:
    from evals.page import COLORS, as_svg, new_axes

    figure, axes = new_axes(7.2, 0.5 + 0.5 * len(rows))
    places = np.arange(len(rows))[::-1]
    for shift, (language, color) in zip(
        (0.18, -0.18), (("ja", COLORS[0]), (ENGLISH, COLORS[1])), strict=True
    ):
        values = [row[language]["measures"][MEASURE] for row in rows]
        axes.barh(places + shift, values, 0.34, color=color, label=language)
    axes.set_yticks(places, [f"{row['dataset']}, {row['model']}: {row['system']}" for row in rows])
    axes.set_xlabel(MEASURE, fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    return as_svg(figure)


@app.command()
def teachers(
    out: Out,
    ablation: Annotated[
        Path, typer.Option(help="JSON of the set `teacher` of training.ablate.", metavar="FILE")
    ],
) -> None:
    """Whose scores are worth learning, from the recipe's ablation."""
    try:
        found = json.loads(ablation.read_text(encoding="utf-8"))
        rows = _teachers_of(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        wrong = InvalidInputError(
            f"{ablation} is no table of training.ablate ({error}). Run: python -m training.ablate teacher …"
        )
        raise fail(wrong) from error
    lines = [
        "# Teachers",
        "",
        f"Mean {MEASURE} of {len(found['seeds'])} seeds on {', '.join(found['dev'])}, and the difference "
        "from the first, paired by seed, with its 95 % interval. Made by:",
        "",
        f"    {found['command']}",
        "",
        f"| teacher | {MEASURE} | difference |",
        "| --- | ---: | ---: |",
        *(
            f"| {row['teacher']} | {row['mean']:.4f} | {row['difference']:+.4f} ± {row['half']:.4f} |"
            for row in rows
        ),
    ]
    _write(out, "teachers", rows, "\n".join(lines) + "\n", _intervals(rows))


def _teachers_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    (dev, *_) = found["dev"]
    rows = []
    for variant in found["variants"]:
        if variant["not_run"]:
            continue
        score = variant["scores"][dev][MEASURE]
        half = score["difference"]["half"] or 0.0
        rows.append({
            "teacher": variant["name"], "mean": score["mean"], "difference": score["difference"]["mean"],
            "half": half, "values": score["values"],
        })  # fmt: skip
    return rows


def _intervals(rows: Sequence[Mapping[str, Any]]) -> str:
    from evals.page import COLORS, as_svg, new_axes

    figure, axes = new_axes(7.2, 0.6 + 0.35 * len(rows))
    places = np.arange(len(rows))[::-1]
    axes.errorbar(
        [100 * row["difference"] for row in rows], places, xerr=[100 * row["half"] for row in rows], fmt="o",
        color=COLORS[0], capsize=3,
    )  # fmt: skip
    axes.axvline(0, color="#6b7280", linewidth=0.8)
    axes.set_yticks(places, [row["teacher"] for row in rows])
    axes.set_xlabel(f"points of {MEASURE} from the first", fontsize=8)
    return as_svg(figure)


def _places(names: Sequence[str], folders: Sequence[Path]) -> list[Place]:
    """The datasets that the command line names; the demo corpus where it names none.

    Raises:
        InvalidInputError: one is not there.
    """
    from evals import places
    from evals.sources import Library

    found = [places.named(name, Library()) for name in names]
    for folder in folders:
        split = places.split_of(folder, None) or "test"
        found.append(places.Place(folder.resolve().name, folder, split, is_named=True))
    return found or [places.named("demo", Library())]


def _write(out: Path, name: str, found: Any, table: str, plot: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, ensure_ascii=False, indent=2, allow_nan=False)
    (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(table, encoding="utf-8")
    (out / f"{name}.svg").write_text(plot, encoding="utf-8")
    typer.echo(table)
    typer.echo(f"{out / name}.json, .md, .svg", err=True)


if __name__ == "__main__":
    app()
