"""Training examples from what people wrote: questions with their passages, headings with their text.

    python -m training.pairs --beir DIR --out pairs.jsonl
    python -m training.pairs --weak DIR --out weak.jsonl

Writes JSON lines {"query", "passages", "source"}; the first passage answers the query. Only the train split
of a BEIR folder is read, and a passage of another split is refused.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from training.pretrain import open_text

SPLIT = "train"
console = Console(stderr=True)


def main(
    out: Annotated[Path, typer.Option(help="JSON lines to write")],
    beir: Annotated[list[Path] | None, typer.Option(help="BEIR folder with qrels/train.tsv")] = None,
    weak: Annotated[list[Path] | None, typer.Option(help="folder of {query, title, text} JSON lines")] = None,
) -> None:
    """Write training examples."""
    n = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for rows in [*map(beir_pairs, beir or []), *map(weak_pairs, weak or [])]:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                n += 1
    console.print(f"{n:,} examples written to {out}.")


def beir_pairs(folder: Path) -> Iterator[dict[str, Any]]:
    """One example for each relevant (query, passage) of the train split."""
    corpus = {row["_id"]: row for row in read_json_lines(folder / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in read_json_lines(folder / "queries.jsonl")}
    with (folder / "qrels" / f"{SPLIT}.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            passage = corpus[row["corpus-id"]]
            split = passage.get("metadata", {}).get("split", SPLIT)
            if split != SPLIT:
                raise ValueError(f"{folder}: passage {passage['_id']} belongs to the split {split!r}.")
            if int(row["score"]) > 0:
                text = " ".join(filter(None, [passage.get("title"), passage["text"]]))
                yield {"query": queries[row["query-id"]], "passages": [text], "source": folder.name}


def weak_pairs(folder: Path) -> Iterator[dict[str, Any]]:
    """One example for each heading with the text under it."""
    for path in sorted(folder.glob("*.jsonl*")):
        for row in read_json_lines(path.with_name(path.name.removesuffix(".gz"))):
            source = path.name.split(".")[0]
            yield {"query": row["query"], "passages": [row["text"]], "source": source}


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON lines file, or of the same file packed."""
    packed = path.with_name(path.name + ".gz")
    with open_text(packed if packed.exists() else path) as file:
        for line in file:
            yield json.loads(line)


if __name__ == "__main__":
    typer.run(main)
