"""Writes the result tables of both READMEs, and the whole one beside the committed result files.

python -m evals.tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evals.reports import SHOWN, number

ROOT = Path(__file__).parents[1]
README, JAPANESE = ROOT / "README.md", ROOT / "README.ja.md"
RESULTS = ROOT / "evals" / "results"
WHOLE = RESULTS / "README.md"
SYSTEMS = ("bm25", "jacolbert", "hybrid", "rerank")  # of the short table
BEGIN, END = "<!-- results: written by `python -m evals.tables` -->", "<!-- results end -->"
SHORT_BEGIN = "<!-- short: written by `python -m evals.tables` -->"
SHORT_END = "<!-- short end -->"
ABSTAINS_BEGIN = "<!-- abstaining: written by `python -m evals.tables` -->"
ABSTAINS_END = "<!-- abstaining end -->"


def main() -> None:
    """Put the tables between the markers of each page."""
    for path in (README, JAPANESE, WHOLE):
        path.write_text(with_tables(path.read_text(encoding="utf-8"), read_results()), encoding="utf-8")


def read_results() -> list[dict[str, Any]]:
    """Rows of all result files, in order of file name."""
    return _rows(RESULTS)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text("utf-8"))]


def with_tables(text: str, results: list[dict[str, Any]]) -> str:
    """The text with the tables whose markers it has, made of these results and of those of abstaining."""
    text = _between(text, BEGIN, markdown(results), END)
    text = _between(text, SHORT_BEGIN, short(results), SHORT_END)
    return _between(text, ABSTAINS_BEGIN, abstaining(_rows(RESULTS / "answerability")), ABSTAINS_END)


def _between(text: str, begin: str, table: str, end: str) -> str:
    if begin not in text:
        return text
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}"


def abstaining(results: list[dict[str, Any]]) -> str:
    """A Markdown table of how often search abstains, one line a result."""
    heads = ["dataset", "questions", "with their passages", "without them", "questions that nothing answers"]
    lines = [heads]
    for row in results:
        never = f"{row['unanswerable']:.3f} of {row['n_unanswerable']}" if row["n_unanswerable"] else ""
        shares = [f"{row['with_answer']:.3f}", f"{row['without_answer']:.3f}", never]
        lines.append([f"{row['dataset']} {row['split']}", str(row["n_queries"]), *shares])
    return _table(lines, n_left=1)


def short(results: list[dict[str, Any]]) -> str:
    """A Markdown table of nDCG@10, one line a dataset, and how long hybrid search takes."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in results:
        found.setdefault((f"{row['dataset']} {row['split']}", row["n_queries"]), {})[row["system"]] = row
    heads = ["nDCG@10", "questions", *SYSTEMS, "hybrid, p50 ms"]
    lines = [heads]
    for (where, n_queries), systems in found.items():
        values = [f"{systems[name]['measures']['nDCG@10']:.3f}" for name in SYSTEMS]
        p50 = number(systems["hybrid"]["latency_ms"].get("p50"), ".1f")
        lines.append([where, f"{n_queries:,}", *values, p50])
    return _table(lines, n_left=1)


def markdown(results: list[dict[str, Any]]) -> str:
    """A Markdown table, one line a result."""
    heads = ["dataset", "questions", "system", *SHOWN, "p50 ms"]
    lines = [heads]
    for row in results:
        values = [f"{row['measures'][name]:.3f}" for name in SHOWN]
        where = f"{row['dataset']} {row['split']}"
        p50 = number(row["latency_ms"].get("p50"), ".1f")
        lines.append([where, str(row["n_queries"]), row["system"], *values, p50])
    return _table(lines, n_left=3)


def _table(lines: list[list[str]], *, n_left: int) -> str:
    """Lines, the first of heads, as Markdown; the first columns hold words, and the others figures."""
    marks = ["---"] * n_left + ["---:"] * (len(lines[0]) - n_left)
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], marks, *lines[1:]])


if __name__ == "__main__":
    main()
