"""Command line: settings of a search, learnt from your own questions and judgements.

    python -m evals.tune --data FOLDER --split dev

Learns, on half of the questions, how much full-text search weighs in hybrid search, how many candidates are
scored, and below which confidence nothing answers; the other half says what that is worth.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from evals import statistics
from evals.options import fail
from jacolbert_rag.errors import InvalidInputError, JaColBERTError
from jacolbert_rag.index.filters import Ids, NoneOf

if TYPE_CHECKING:
    from evals.datasets import Task
    from jacolbert_rag import JaColBERTRetriever

MEASURE = "nDCG@10"
K = 10
WEIGHTS = tuple(round(0.05 * i, 2) for i in range(21))
BUDGETS = (24, 48, 96, 192, 384)  # documents that are scored exactly
LEAST = 20  # questions of each half
LOST = 0.002  # of the measure that a smaller budget may lose
SEED = 12345

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Weight:
    """Of full-text search in hybrid search.

    Attributes:
        by_weight: weight -> measure, on the questions that it was learnt on.
        chosen: the best of them.
        default: the index's.
        held_chosen: measure of the chosen one on the other questions.
        held_default: of the default on those.
        p: that the two differ there by chance (randomisation test).
    """

    by_weight: Mapping[float, float]
    chosen: float
    default: float
    held_chosen: float
    held_default: float
    p: float


@dataclass(frozen=True)
class Budget:
    """Documents that are scored exactly.

    Attributes:
        n_candidates: how many.
        measure: with them.
        like_exact: share of exact search's best 10 that are found.
        p50_ms: of single searches.
    """

    n_candidates: int
    measure: float
    like_exact: float
    p50_ms: float


@dataclass(frozen=True)
class Threshold:
    """A confidence below which nothing is returned.

    Attributes:
        value: to compare with `hits[0].scores["confidence"]`.
        refused_with: share of other questions that it refuses though their passages are there.
        refused_without: share that it refuses where they are hidden.
    """

    value: float
    refused_with: float
    refused_without: float


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="A folder in BEIR layout.", metavar="FOLDER")],
    split: Annotated[str, typer.Option(help="Which qrels/SPLIT.tsv.")],
    model: Annotated[str | None, typer.Option(help="A ColBERT in place of the bundled one.")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder to keep the index in.", metavar="FOLDER")] = None,
    limit: Annotated[int | None, typer.Option(min=2 * LEAST, help="Only the first N questions.")] = None,
    refuse: Annotated[
        float, typer.Option(min=0, max=1, help="Most answered questions that may be refused, as a share.")
    ] = 0.05,
    json: Annotated[Path | None, typer.Option(help="Where the result goes.", metavar="FILE")] = None,
) -> None:
    """Learn the weight of full-text search, the budget of candidates and the threshold of confidence."""
    from evals import datasets, jacolbert, reports

    try:
        if json is not None:
            reports.check_writable(json)
        task = datasets.load_task(data, split, limit=limit)
        datasets.check_whole_corpus(task, "a setting of search")
        learnt, held = halves(task)
        engine = jacolbert.build_engine(task.documents, model=model, index=index)
        weight = tune_weight(engine, task, learnt, held)
        budgets = tune_budget(engine, task, learnt, BUDGETS)
        held_budgets = tune_budget(
            engine, task, held, sorted({recommended(budgets).n_candidates, *BUDGETS[-1:]})
        )
        threshold = tune_threshold(engine, task, learnt, held, weight.chosen, refuse)
        engine.close()
        if json is not None:
            found = {
                "weight": asdict(weight),
                "budgets": [asdict(each) for each in budgets],
                "held_budgets": [asdict(each) for each in held_budgets],
                "threshold": asdict(threshold),
            }
            reports.write_rows(json, [found])
    except JaColBERTError as error:
        raise fail(error) from error
    show(weight, budgets, held_budgets, threshold, len(learnt), len(held))


def halves(task: Task) -> tuple[list[str], list[str]]:
    """Ids of the questions to learn on, and of those to hold the result to; drawn by a seed.

    Raises:
        InvalidInputError: there are too few.
    """
    ids = list(task.queries)
    if len(ids) < 2 * LEAST:
        raise InvalidInputError(
            f"{task.name} {task.split} has {len(ids)} questions with judgements; expected {2 * LEAST} or "
            "more, half to learn on and half to check. Write more: evals.init makes a folder from pairs."
        )
    order = np.random.default_rng(SEED).permutation(len(ids))
    half = len(ids) // 2
    return sorted(ids[i] for i in order[:half]), sorted(ids[i] for i in order[half:])


def tune_weight(engine: JaColBERTRetriever, task: Task, learnt: Sequence[str], held: Sequence[str]) -> Weight:
    """The weight of the best measure; of equal ones, that nearest to the index's own."""
    default = engine.settings.lexical.weight
    by_weight = {w: float(np.mean(_values(engine, task, learnt, w))) for w in sorted({*WEIGHTS, default})}
    best = max(by_weight.values())
    chosen = min(
        (w for w, value in by_weight.items() if value >= best - statistics.EQUAL),
        key=lambda w: abs(w - default),
    )
    ours, theirs = _values(engine, task, held, chosen), _values(engine, task, held, default)
    (p,) = statistics.p_values((ours - theirs)[:, None])
    return Weight(by_weight, chosen, default, float(ours.mean()), float(theirs.mean()), float(p))


def _values(engine: JaColBERTRetriever, task: Task, ids: Sequence[str], weight: float) -> Any:
    """(n,) the measure of each question in hybrid search."""
    from evals import metrics

    hits = engine.search_many([task.queries[id] for id in ids], K, mode="hybrid", weight=weight)
    run = {id: {hit.id: hit.score for hit in found} for id, found in zip(ids, hits, strict=True)}
    values = metrics.per_query({id: task.qrels[id] for id in ids}, run, [MEASURE])[MEASURE]
    return np.array(list(values.values()))


def tune_budget(
    engine: JaColBERTRetriever, task: Task, ids: Sequence[str], budgets: Sequence[int]
) -> list[Budget]:
    """What each budget finds and costs on these questions, in the order given."""
    from evals import metrics

    queries = [task.queries[id] for id in ids]
    qrels = {id: task.qrels[id] for id in ids}
    exact = [{hit.id for hit in hits} for hits in engine.search_many(queries, K, exact=True)]
    own = engine.settings
    found = []
    try:
        for n in budgets:
            engine.settings = replace(own, candidates=replace(own.candidates, n_candidates=n))
            answers, times = [], []
            for query in queries:
                start = time.perf_counter()
                answers.append(engine.search(query, K))
                times.append(1_000 * (time.perf_counter() - start))
            run = {id: {hit.id: hit.score for hit in hits} for id, hits in zip(ids, answers, strict=True)}
            shares = [
                len(best & {hit.id for hit in hits}) / max(1, len(best))
                for best, hits in zip(exact, answers, strict=True)
            ]
            value = metrics.mean(metrics.per_query(qrels, run, [MEASURE]))[MEASURE]
            found.append(Budget(n, value, float(np.mean(shares)), float(np.median(times))))
    finally:
        engine.settings = own
    return found


def recommended(budgets: Sequence[Budget]) -> Budget:
    """The smallest budget that loses next to nothing."""
    best = max(each.measure for each in budgets)
    return next(each for each in budgets if each.measure >= best - LOST)


def tune_threshold(
    engine: JaColBERTRetriever,
    task: Task,
    learnt: Sequence[str],
    held: Sequence[str],
    weight: float,
    refuse: float,
) -> Threshold:
    """The highest threshold that refuses no more than a share of the questions with an answer."""
    there = _confidences(engine, task, learnt, weight, hide=False)
    # Refused is what lies below: so many of the lowest may.
    ordered = np.sort(there)
    value = float(ordered[min(len(ordered) - 1, int(refuse * len(ordered)))])
    with_answer, without = (_confidences(engine, task, held, weight, hide=hide) for hide in (False, True))
    return Threshold(value, float(np.mean(with_answer < value)), float(np.mean(without < value)))


def _confidences(
    engine: JaColBERTRetriever, task: Task, ids: Sequence[str], weight: float, *, hide: bool
) -> Any:
    """(n,) of each question's best hit; with its relevant passages hidden, or there."""
    found = []
    for id in ids:
        relevant = frozenset(document for document, grade in task.qrels[id].items() if grade > 0)
        out = NoneOf((Ids(relevant),)) if hide else None
        hits = engine.search(task.queries[id], 1, mode="hybrid", weight=weight, filter=out)
        found.append(hits[0].scores["confidence"] if hits else 0.0)
    return np.array(found)


def show(
    weight: Weight,
    budgets: Sequence[Budget],
    held_budgets: Sequence[Budget],
    threshold: Threshold,
    n_learnt: int,
    n_held: int,
) -> None:
    """What was learnt and what to write, on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"Learnt on {n_learnt:,} questions, held to {n_held:,} others.\n")
    fifths = [(w, value) for w, value in weight.by_weight.items() if round(10 * w, 6) % 2 == 0]
    shown = ", ".join(f"{w:g}: {value:.4f}" for w, value in fifths)
    console.print(f"Weight of full-text search ({MEASURE}): {shown}", highlight=False)
    gain = 100 * (weight.held_chosen - weight.held_default)
    console.print(
        f"Best: {weight.chosen:g}. On the others {weight.held_chosen:.4f}, and {weight.held_default:.4f} "
        f"with {weight.default:g}: {gain:+.2f} points, p = {weight.p:.2f}.",
        highlight=False,
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("n_candidates", MEASURE, "best 10 like exact", "p50 ms"):
        table.add_column(head, justify="right")
    for each in budgets:
        table.add_row(
            str(each.n_candidates), f"{each.measure:.4f}", f"{each.like_exact:.3f}", f"{each.p50_ms:.1f}"
        )
    console.print(table)
    budget = recommended(budgets)
    on_others = ", ".join(f"{each.measure:.4f} with {each.n_candidates}" for each in held_budgets)
    console.print(
        f"Smallest that loses no more than {100 * LOST:.1f} points: {budget.n_candidates}. On the others "
        f"{on_others}.",
        highlight=False,
    )
    console.print(
        f"Confidence below which nothing answers: {threshold.value:.4f}. Of the other questions it refuses "
        f"{threshold.refused_with:.1%} with their passages, {threshold.refused_without:.1%} without.\n",
        highlight=False,
    )
    if weight.p < statistics.CERTAIN and gain > 0:
        console.print(f'To use: search(query, mode="hybrid", weight={weight.chosen:g})', highlight=False)
    else:
        console.print("To use: the weight as it is; no other is better for certain.", highlight=False)
    console.print(
        f"        CandidateConfig(n_candidates={budget.n_candidates})\n"
        f'        hits[0].scores["confidence"] >= {threshold.value:.4f}',
        highlight=False,
    )


if __name__ == "__main__":
    app()
