"""Writes README's result table from the committed result files.

python -m evals.tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evals.metrics import MEASURES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "evals" / "results"
BEGIN, END = "<!-- results: written by `python -m evals.tables` -->", "<!-- results end -->"


def main() -> None:
    """Put the table between README's two markers."""
    README.write_text(with_table(README.read_text(encoding="utf-8"), read_results()), encoding="utf-8")


def read_results() -> list[dict[str, Any]]:
    """Rows of all result files, in order of file name."""
    return [row for path in sorted(RESULTS.glob("*.json")) for row in json.loads(path.read_text("utf-8"))]


def with_table(text: str, results: list[dict[str, Any]]) -> str:
    """The text with the table of these results between the markers."""
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{markdown(results)}\n{END}{rest.split(END, 1)[1]}"


def markdown(results: list[dict[str, Any]]) -> str:
    """A Markdown table, one line a result."""
    heads = ["dataset", "questions", "system", *MEASURES, "p50 ms"]
    lines = [heads, ["---"] * 3 + ["---:"] * (len(heads) - 3)]
    for row in results:
        values = [f"{row['measures'][name]:.3f}" for name in MEASURES]
        where = f"{row['dataset']} {row['split']}"
        lines.append(
            [where, str(row["n_queries"]), row["system"], *values, f"{row['latency_ms']['p50']:.1f}"]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
