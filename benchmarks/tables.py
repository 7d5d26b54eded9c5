"""Writes the tables of benchmarks/README.md, and the index's short one of the project's README, from the
committed result files, and shows tables on a terminal.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from jacolbert_rag.config import PoolingConfig, StoreConfig

README = Path(__file__).parent / "README.md"
FRONT = Path(__file__).parents[1] / "README.md"
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- results: written by `python -m benchmarks.tables` -->", "<!-- results end -->"
BEGIN_INDEX, END_INDEX = "<!-- index: written by `python -m benchmarks.tables` -->", "<!-- index end -->"
PLOT = RESULTS / "index.svg"
ORDER = (
    *("documents", "tokens", "query", "cold-start", "cuda", "memory"),
    *("index", "search", "choices-storage", "choices-candidates", "choices-exact", "choices-maxsim"),
)
NOTHING = "Not run: no result is committed."
PIPE_WIDTH = 160  # columns where the output is no terminal: rich would take 80 and break the cells

Result = dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn: the first column holds words, the others numbers."""

    title: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def main() -> None:
    """Put the tables between the two markers of each README, and draw the plot."""
    from benchmarks import plot

    results = read_results()
    for path, fill in ((README, with_tables), (FRONT, with_index)):
        path.write_text(fill(path.read_text(encoding="utf-8"), results), encoding="utf-8")
    if "index" in results:
        PLOT.write_text(plot.svg(results["index"]["sizes"]), encoding="utf-8")


def read_results(folder: Path = RESULTS) -> dict[str, Result]:
    """Workload -> result, of the files that are there."""
    return {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ORDER
        if (folder / f"{name}.json").is_file()
    }


def write(path: Path, result: Result) -> None:
    """Write a result file; its folder is made, and a file that is there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, ensure_ascii=False, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def with_tables(text: str, results: Mapping[str, Result]) -> str:
    """The text with the tables of these results between the markers."""
    return _filled(text, BEGIN, markdown(results), END)


def with_index(text: str, results: Mapping[str, Result]) -> str:
    """The text with the index's short table between its markers."""
    short = _markdown_table(_index_in_short(results["index"])) if "index" in results else NOTHING
    return _filled(text, BEGIN_INDEX, short, END_INDEX)


def _filled(text: str, begin: str, new: str, end: str) -> str:
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{new}\n{end}{rest.split(end, 1)[1]}"


def markdown(results: Mapping[str, Result]) -> str:
    """A section for each workload: tables, what its rows mean, its signature; or that there is no result."""
    sections = []
    for name in ORDER:
        result = results.get(name)
        parts = [f"### {name}"]
        if result is None:
            parts.append(NOTHING)
        else:
            parts += map(_markdown_table, grids(name, result))
            if name == "index":
                parts.append("![p50, build and bytes against the number of passages](results/index.svg)")
            parts += [result["note"][0].upper() + result["note"][1:] + "."]
            parts += [f"`{signature_line(result)}`"]
        sections.append("\n\n".join(parts))
    return "\n\n".join(sections)


def show(results: Mapping[str, Result]) -> None:
    """Draw the tables on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    for name, result in results.items():
        for grid in grids(name, result):
            drawn = Table(title=Text(grid.title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            for i, head in enumerate(grid.heads):
                drawn.add_column(head, justify="right" if i else "left", overflow="fold")
            for line in grid.lines:
                drawn.add_row(*map(Text, line))
            console.print(drawn)
        console.print(Text(signature_line(result)), soft_wrap=True, highlight=False)


def signature_line(result: Result) -> str:
    """A result's signature in one line, the GPU named where there is one."""
    line = machine.line(result["signature"])
    return f"{line}|{result['signature']['device']}" if "device" in result["signature"] else line


def grids(workload: str, result: Result) -> list[Grid]:
    """The tables of a workload's result."""
    return {
        "documents": _documents,
        "tokens": _tokens,
        "query": _query,
        "cold-start": _cold_start,
        "cuda": _cuda,
        "memory": _memory,
        "index": _index,
        "search": _search,
        "choices-storage": _storage,
        "choices-candidates": _candidates,
        "choices-exact": _exact,
        "choices-maxsim": _maxsim,
    }[workload](result)


def _documents(result: Result) -> list[Grid]:
    def cells(row: Mapping[str, Any]) -> list[str]:
        padding = f"{row['padded_per_token']:.2f}" if "padded_per_token" in row else ""
        return [row.get("dtype", ""), _speed(row["docs_per_s"]), _speed(row["tokens_per_s"]), padding]

    heads = ("system", "computes in", "documents/s", "tokens/s", "padded tokens a token")
    title = f"Encoding {_n(result)} documents on a CPU, {_turns(result)}"
    rows = Grid(title, heads, _lines(result, heads, cells))
    found = [rows, _ratio_grid(result["ratios"])]
    if result["agreement"]:
        found.append(_agreement(result["agreement"]))
    return found


def _tokens(result: Result) -> list[Grid]:
    def cells(row: Mapping[str, Any]) -> list[str]:
        return [_speed(row["docs_per_s"]), _speed(row["tokens_per_s"])]

    title = f"Tokenizing {_n(result)} documents on one core, {_turns(result)}"
    if alike := result.get("agreement"):
        title += f" (equal ids in {alike['n_equal_ids']} of {alike['n_texts']} other texts)"
    heads = ("system", "documents/s", "tokens/s")
    return [Grid(title, heads, _lines(result, heads, cells)), _ratio_grid(result["ratios"])]


def _query(result: Result) -> list[Grid]:
    lines = [(name, f"{ms['p50']:.2f}", f"{ms['p95']:.2f}") for name, ms in result["latency_ms"].items()]
    lines.append(("added, question by question", _spread(result["added_ms"]), ""))
    title = f"One question at a time, {result['n_questions']} questions, {result['dtype']}"
    return [Grid(title, ("call", "p50 ms", "p95 ms"), tuple(lines))]


def _cold_start(result: Result) -> list[Grid]:
    def cells(row: Mapping[str, Any]) -> list[str]:
        return [_spread(row[key]) for key in ("wall_s", "load_s", "query_s")]

    heads = ("system", "whole process, s", "imports and loading, s", "first question, s")
    rows = Grid("Cold start to the first question", heads, _lines(result, heads, cells))
    return [rows, _ratio_grid(result["ratios"])]


def _cuda(result: Result) -> list[Grid]:
    def cells(row: Mapping[str, Any]) -> list[str]:
        share = _spread(row["share_of_product"]) if "share_of_product" in row else ""
        rate = f"{row['flops_per_s']['median'] / 1e12:.1f}"
        return [_speed(row["docs_per_s"]), _speed(row["tokens_per_s"]), rate, share]

    heads = ("system", "documents/s", "tokens/s", "TFLOP/s without padding", "share of the product's")
    lines = [*_lines(result, heads, cells)]
    if product := result.get("product"):
        m, k, n = product["shape"]
        rate = f"{product['flops_per_s']['median'] / 1e12:.1f}"
        lines.append((f"({m} x {k}) by ({k} x {n}), bfloat16", "", "", rate, "1"))
    tokenizer = result["tokenizer"]
    lines.append(
        (f"tokenizer, one process of {tokenizer['cpu']}", f"{tokenizer['docs_per_s']:,.0f}", "", "", "")
    )
    title = f"Encoding {_n(result)} prepared documents on {result['signature']['device']}"
    return [Grid(title, heads, tuple(lines)), _ratio_grid(result["ratios"])]


def _memory(result: Result) -> list[Grid]:
    lines = []
    for row in result["rows"]:
        megabytes = (f"{row[key]:,.0f}" for key in ("start_mb", "tenth_mb", "peak_mb"))
        lines.append((f"{row['docs']:,}", *megabytes, f"{row['growth']:.3f}"))
    heads = ("documents", "at the start, MB", "after a tenth, MB", "at the end, MB", "end / tenth")
    return [Grid("Peak memory of a stream of documents", heads, tuple(lines))]


def _index(result: Result) -> list[Grid]:
    def cells(row: Mapping[str, Any]) -> list[str]:
        ndcg = "" if row["ndcg@10"] is None else f"{row['ndcg@10']:.4f}"
        return [
            f"{row['build_s']['median']:,.1f}",
            f"{row['passages_per_s']:,.0f}",
            f"{row['bytes_per_passage']:,.0f}",
            f"{row['memory_mb']:,.0f}",
            f"{row['open_s']:.2f}",
            f"{row['p50_ms']:,.1f}",
            f"{row['p95_ms']:,.1f}",
            f"{row['like_exact']:.3f}",
            ndcg,
        ]

    heads = (
        *("system", "build, s", "passages/s", "bytes a passage", "memory, MB", "open, s", "p50 ms", "p95 ms"),
        *("top 10 like exact", "nDCG@10"),
    )
    found = []
    for each in result["sizes"]:
        title = f"{each['n']:,} passages, {each['n_tokens']:,} token embeddings"
        found.append(Grid(title, heads, _lines(each, heads, cells)))
        lines = tuple(
            (name, _spread(r["p50"]), _spread(r["build"]), f"{r['bytes']:.2f}")
            for name, r in each["ratios"].items()
        )
        ratio_heads = ("jacolbert beside", "times as fast at p50", "times as fast to build", "times as small")
        found.append(Grid(f"{each['n']:,} passages, ratios", ratio_heads, lines))
        if asked := each.get("all_questions"):
            scores = (f"{asked['ndcg@10'][name]:.4f}" for name in ("jacolbert", "exact"))
            shares = (f"{100 * asked['share']:.2f} %", f"{asked['like_exact']:.3f}")
            title = f"{each['n']:,} passages, all {asked['n_questions']:,} questions of the split"
            heads_of_all = ("nDCG@10, jacolbert", "exact, unquantised", "share", "top 10 like exact")
            found.append(Grid(title, heads_of_all, ((*scores, *shares),)))
        if adds := each.get("adds"):
            took = tuple(
                (f"{int(n):,}", f"{s['median']:.2f}", f"{s['longest']:.1f}") for n, s in adds.items()
            )
            heads_of_adds = ("passages at once", "median, s", "longest, s")
            title = f"Adding, up to {each['n']:,} passages; the longest pooled the corpus anew"
            found.append(Grid(title, heads_of_adds, took))
    return [*found, _growth(result["growth"])]


def _growth(rows: Sequence[Mapping[str, Any]]) -> Grid:
    lines = tuple(
        (
            f"{row['n']:,}",
            _spread(row["open_s"]),
            f"{row['p50_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
            _spread(row["times_the_one_before"]) if "times_the_one_before" in row else "",
        )
        for row in rows
    )
    heads = ("passages", "open, s", "p50 ms", "p95 ms", "times the p50 of the line above")
    return Grid("jacolbert alone, the sizes taking turns", heads, lines)


def _search(result: Result) -> list[Grid]:
    lines = tuple(
        (
            row["kind"],
            f"{row['p50_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
            _spread(row["beside"]),
            _spread(row["highlights_ms"]) if "highlights_ms" in row else "",
        )
        for row in result["rows"]
    )
    heads = ("kind", "p50 ms", "p95 ms", "beside the first line", "ten highlights, ms")
    return [Grid(f"Ways to search, {_n(result)} passages, {result['n_questions']} questions", heads, lines)]


def _index_in_short(result: Result) -> Grid:
    """What most people ask of an index, of the systems that ran."""
    lines = tuple(
        (
            name,
            f"{each['n']:,}",
            f"{row['passages_per_s']:,.0f}",
            f"{row['bytes_per_passage'] / 1000:,.1f}",
            f"{row['p50_ms']:,.1f}",
            f"{row['like_exact']:.3f}",
            f"{row['ndcg@10']:.3f}",
        )
        for each in result["sizes"]
        for name, row in each["systems"].items()
        if "not_run" not in row
    )
    heads = (
        "system",
        "passages",
        "build, passages/s",
        "KB a passage",
        "p50 ms",
        "top 10 like exact",
        "nDCG@10",
    )
    return Grid("The index beside others that were given the same token embeddings", heads, lines)


def _storage(result: Result) -> list[Grid]:
    lines = tuple(
        (
            row["dtype"] + (" (default)" if _is_default(row) else ""),
            str(row["factor"]),
            f"{row['tokens_per_passage']:.0f}",
            f"{row['bytes_per_passage']:,.0f}",
            f"{row['ndcg@10']:.4f}",
            f"{100 * row['share']:.2f} %",
        )
        for row in result["rows"]
    )
    heads = ("stored as", "pooling factor", "tokens a passage", "bytes a passage", "nDCG@10", "share")
    return [Grid("What storage costs", heads, lines)]


def _is_default(row: Mapping[str, Any]) -> bool:
    return (row["dtype"], row["factor"]) == (StoreConfig().dtype, PoolingConfig().factor)


def _candidates(result: Result) -> list[Grid]:
    lines = tuple(
        (
            row["setting"] + (" (default)" if row["is_default"] else ""),
            str(row["value"]),
            f"{row['like_exact']:.4f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
            f"{row['build_s']:.1f}",
            f"{row['derived_bytes_per_passage']:,.0f}",
        )
        for row in result["rows"]
    )
    heads = (
        "setting",
        "value",
        "top 10 like exact",
        "p50 ms",
        "p95 ms",
        "build, s",
        "derived bytes a passage",
    )
    return [Grid("What candidates cost, one setting changed at a time", heads, lines)]


def _exact(result: Result) -> list[Grid]:
    lines = tuple(
        (f"{row['n']:,}", f"{row['exact_p50_ms']:.1f}", f"{row['candidates_p50_ms']:.1f}")
        for row in result["rows"]
    )
    return [
        Grid("Exact search beside candidates", ("passages", "exact, p50 ms", "candidates, p50 ms"), lines)
    ]


def _maxsim(result: Result) -> list[Grid]:
    heads = ("way", "few, ms", "many, ms")
    return [
        Grid(
            f"MaxSim, {step}",
            heads,
            tuple(
                (row["way"], f"{row['few_ms']:.2f}", f"{row['many_ms']:.1f}")
                for row in result["rows"]
                if row["step"] == step
            ),
        )
        for step in ("products", "maxima")
    ]


def _lines(
    result: Result, heads: Sequence[str], cells: Callable[[Mapping[str, Any]], list[str]]
) -> tuple[tuple[str, ...], ...]:
    """A line for each system; for one that did not run, why."""
    blank = [""] * (len(heads) - 2)
    return tuple(
        (name, *([row["not_run"], *blank] if "not_run" in row else cells(row)))
        for name, row in result["systems"].items()
    )


def _ratio_grid(ratios: Mapping[str, Mapping[str, float]]) -> Grid:
    lines = tuple(
        (name, f"{r['median']:.2f}", f"{r['q1']:.2f} to {r['q3']:.2f}") for name, r in ratios.items()
    )
    return Grid("Times as fast, turn by turn", ("ratio of speeds", "median", "quartiles"), lines)


def _agreement(agreement: Mapping[str, Mapping[str, Any]]) -> Grid:
    lines = []
    for name, row in agreement.items():
        cosine = "" if row["min_cosine"] is None else f"{row['min_cosine']:.5f}"
        lines.append((name, f"{row['n_equal_lengths']} of {row['n_texts']}", cosine))
    heads = ("against jacolbert-float32", "texts of equally many tokens", "smallest cosine of a token")
    return Grid("Do they compute the same?", heads, tuple(lines))


def _n(result: Result) -> str:
    return f"{result['signature']['texts']['n']:,}"


def _turns(result: Result) -> str:
    return f"{len(result['blocks'])} turns"


def _speed(speed: Mapping[str, float]) -> str:
    digits = 1 if speed["median"] < 100 else 0
    return f"{speed['median']:,.{digits}f} ({speed['q1']:,.{digits}f} to {speed['q3']:,.{digits}f})"


def _spread(values: Mapping[str, float]) -> str:
    return f"{values['median']:.2f} ({values['q1']:.2f} to {values['q3']:.2f})"


def _markdown_table(grid: Grid) -> str:
    # A lone "|" in a cell, such as in an error message, would end it.
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in grid.lines]
    rows = [list(grid.heads), ["---", *["---:"] * (len(grid.heads) - 1)], *cells]
    return f"{grid.title}:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
