"""Writes README's result tables from the committed result files.

python -m evals.tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evals.reports import SHOWN, number

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "evals" / "results"
BEGIN, END = "<!-- results: written by `python -m evals.tables` -->", "<!-- results end -->"
ABSTAINS_BEGIN = "<!-- abstaining: written by `python -m evals.tables` -->"
ABSTAINS_END = "<!-- abstaining end -->"


def main() -> None:
    """Put the tables between README's markers."""
    README.write_text(with_table(README.read_text(encoding="utf-8"), read_results()), encoding="utf-8")


def read_results() -> list[dict[str, Any]]:
    """Rows of all result files, in order of file name."""
    return _rows(RESULTS)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text("utf-8"))]


def with_table(text: str, results: list[dict[str, Any]]) -> str:
    """The text with the tables of these results, and of those of abstaining, between the markers."""
    text = _between(text, BEGIN, markdown(results), END)
    return _between(text, ABSTAINS_BEGIN, abstaining(_rows(RESULTS / "answerability")), ABSTAINS_END)


def _between(text: str, begin: str, table: str, end: str) -> str:
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}"


def abstaining(results: list[dict[str, Any]]) -> str:
    """A Markdown table of how often search abstains, one line a result."""
    heads = ["dataset", "questions", "with their passages", "without them", "questions that nothing answers"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in results:
        never = f"{row['unanswerable']:.3f} of {row['n_unanswerable']}" if row["n_unanswerable"] else ""
        shares = [f"{row['with_answer']:.3f}", f"{row['without_answer']:.3f}", never]
        lines.append([f"{row['dataset']} {row['split']}", str(row["n_queries"]), *shares])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(results: list[dict[str, Any]]) -> str:
    """A Markdown table, one line a result."""
    heads = ["dataset", "questions", "system", *SHOWN, "p50 ms"]
    lines = [heads, ["---"] * 3 + ["---:"] * (len(heads) - 3)]
    for row in results:
        values = [f"{row['measures'][name]:.3f}" for name in SHOWN]
        where = f"{row['dataset']} {row['split']}"
        p50 = number(row["latency_ms"].get("p50"), ".1f")
        lines.append([where, str(row["n_queries"]), row["system"], *values, p50])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
