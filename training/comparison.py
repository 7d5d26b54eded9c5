"""What an ablation found: means over seeds, confidence intervals, differences, tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.dev import MEASURES

CONFIDENCE = 0.95
# The dev sets of JaColBERTv2.5 (arXiv:2407.20750), in the order of its tables.
PAPER_MEASURES = ("JQaRA nDCG@10", "JQaRA MRR@10", "MIRACL-small-ja nDCG@10", "MIRACL-small-ja Recall@5")

Scores = dict[str, dict[str, float]]  # dev set -> measure -> value


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        half: half of the confidence interval's width; None where there is one value.
    """

    mean: float
    half: float | None

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of some values with its confidence interval, by Student's t.

    Args:
        values: at least one.
    """
    n = len(values)
    if n < 2:
        return Estimate(values[0], None)
    from scipy.stats import t

    factor = float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Estimate(statistics.fmean(values), factor * statistics.stdev(values) / n**0.5)


def compared(scores: Sequence[Scores], base: Sequence[Scores]) -> dict[str, Any]:
    """Dev set -> measure -> values of each seed, their mean, and the difference from another variant's.

    Args:
        scores: of each seed.
        base: of the same seeds, for the other variant; differences are paired by seed, since both see the
            same batches in the same order.
    """
    table: dict[str, Any] = {}
    for dev in scores[0]:
        for measure in MEASURES:
            values, others = ([each[dev][measure] for each in found] for found in (scores, base))
            own = estimate(values)
            difference = estimate([a - b for a, b in zip(values, others, strict=True)])
            table.setdefault(dev, {})[measure] = {
                "values": values,
                "mean": own.mean,
                "half": own.half,
                "difference": {"mean": difference.mean, "half": difference.half},
            }
    return table


def markdown(result: Mapping[str, Any]) -> str:
    """A study's tables, from what its JSON holds."""
    first, n = result["variants"][0]["name"], len(result["seeds"])
    lines = [
        f"# {result['set']}",
        "",
        f"{result['question']} ({result['source']})",
        "",
        f"    {result['command']}",
        "",
        f"{result['steps']:,} steps a run, {n} {'seeds' if n > 1 else 'seed'} a variant; stage "
        f"`{result['stage']}` of `{result['recipe']}`. Mean ± half of the 95 % confidence interval over the "
        f"seeds (Student's t), and the difference from {first}, paired by seed; * marks intervals without 0. "
        "Seeds vary batches, dropout and new weights, not the questions that are scored.",
    ]
    if result["limit"] or result["dev_limit"]:
        lines += [
            "",
            f"A try: {result['limit'] or 'all'} examples, {result['dev_limit'] or 'all'} dev queries.",
        ]
    with_paper = any(row["paper"] for row in result["variants"])
    heads = ["variant", *(head for measure in MEASURES for head in (measure, "difference"))]
    heads += [f"paper: {measure}" for measure in PAPER_MEASURES] if with_paper else []
    for dev in result["dev"]:
        lines += ["", f"## {dev}", "", _row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
        for row in result["variants"]:
            paper = [f"{value:.3f}" for value in row["paper"] or ()] or [""] * len(PAPER_MEASURES)
            lines.append(_row([row["name"], *_cells(row, dev, first), *(paper if with_paper else ())]))
    missing = [f"- {row['name']}: {row['not_run']}" for row in result["variants"] if row["not_run"]]
    if missing:
        lines += ["", "Not run:", "", *missing]
    settings = json.dumps(result["options"], ensure_ascii=False, indent=2).splitlines()
    lines += ["", "Settings of all variants:", "", *(f"    {line}" for line in settings), ""]
    lines += ["And of each:", ""]
    for row in result["variants"]:
        own = {key: row[key] for key in ("options", "search", "average", "use") if row[key]}
        lines.append(f"- {row['name']}: `{json.dumps(own, ensure_ascii=False)}`")
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any], dev: str, first: str) -> list[str]:
    """Two cells a measure."""
    if row["not_run"]:
        return ["not run", ""] * len(MEASURES)
    cells = []
    for measure in MEASURES:
        found = row["scores"][dev][measure]
        difference = Estimate(**found["difference"])
        mark = "*" if difference.is_certain else ""
        cells.append(_shown(Estimate(found["mean"], found["half"]), ""))
        cells.append("" if row["name"] == first else _shown(difference, "+") + mark)
    return cells


def _shown(value: Estimate, sign: str) -> str:
    half = "" if value.half is None else f" ± {value.half:.4f}"
    return f"{value.mean:{sign}.4f}{half}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
