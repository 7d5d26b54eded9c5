"""Training questions from what people wrote: questions with their passages, headings with their text.

    python -m training.pairs --beir DIR --beir DIR --weak DIR --out runs/mini/pairs

Writes two folders in BEIR layout: OUT/train, and OUT/held of articles that are kept for measuring while
training, so that no choice is made on a dev split. In each, tuples.jsonl has the questions with their answers
alone, to be held against the rest of a batch. Only the train split of a BEIR folder is read, and a
passage of another split is refused.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from training.data import read_json_lines, read_qrels, rows_by_id
from training.options import Config, Limit, StageName, TrainingError, console, run
from training.state import begin, claim, hashed, hold

SPLIT = "train"
TUPLES_FILE = "tuples.jsonl"
TRAIN_FOLDER, HELD_FOLDER = "train", "held"


@dataclass(frozen=True)
class Pair:
    """A question and a passage that answers it.

    Attributes:
        source: the folder or file that it is of.
        query_id: unique in its source.
        document_id: unique in its source.
        title: of the passage's article; may be empty.
    """

    source: str
    query_id: str
    query: str
    document_id: str
    title: str
    text: str


def main(
    out: Annotated[Path, typer.Option(help="folder to write")],
    beir: Annotated[list[Path] | None, typer.Option(help="BEIR folder with qrels/train.tsv")] = None,
    weak: Annotated[list[Path] | None, typer.Option(help="folder of {id, query, title, text} lines")] = None,
    together: Annotated[
        int, typer.Option(min=0, help="questions on one article and its neighbours that make a batch; 0: any")
    ] = 0,
    held: Annotated[float, typer.Option(min=0, max=0.5, help="share of the BEIR folders' articles")] = 0.03,
    seed: int = 12345,
    limit: Limit = None,
    config: Config = None,
    stage: StageName = None,
) -> None:
    """Write training questions."""
    with claim(out):
        recipe = {
            "beir": [str(p) for p in beir or []], "weak": [str(p) for p in weak or []],
            "together": together, "held": held, "seed": seed, "limit": limit,
        }  # fmt: skip
        if (out / TRAIN_FOLDER).exists():
            hold(out, recipe)
            console.print(f"{out} is finished: nothing to do.", markup=False, soft_wrap=True)
            return
        names = Counter(folder.name for folder in beir or [])
        names.update(source_of(path) for folder in weak or [] for path in weak_files(folder))
        if twice := [name for name, n in names.items() if n > 1]:
            raise TrainingError(f"Several sources are called {', '.join(twice)}. Rename all but one of each.")
        train: list[Pair] = []
        kept: list[Pair] = []
        for folder in beir or []:
            for pair in list(beir_pairs(folder))[:limit]:
                (kept if is_held(pair, held, seed) else train).append(pair)
        for folder in weak or []:
            train += list(weak_pairs(folder))[:limit]
        if not train:
            raise TrainingError("There are no pairs. Name folders with --beir or --weak.")
        begin(out, recipe)
        if kept:
            write_beir(out / HELD_FOLDER, kept, together)
        write_beir(out / TRAIN_FOLDER, train, together)
        console.print(
            f"{len(train):,} pairs to train on, {len(kept):,} kept for measuring, in {out}.",
            markup=False,
            soft_wrap=True,
        )


def beir_pairs(folder: Path) -> Iterator[Pair]:
    """One pair for each relevant (query, passage) of the train split."""
    corpus, queries = rows_by_id(folder / "corpus.jsonl"), rows_by_id(folder / "queries.jsonl")
    for query_id, judged in read_qrels(folder / "qrels" / f"{SPLIT}.tsv").items():
        for document_id, score in judged.items():
            if query_id not in queries or document_id not in corpus:
                raise TrainingError(
                    f"{folder}: qrels/{SPLIT}.tsv names query {query_id!r} and passage {document_id!r}, and "
                    "one of them has no text. Take that row out, or add the text."
                )
            passage = corpus[document_id]
            split = (passage.get("metadata") or {}).get("split", SPLIT)
            if split != SPLIT:
                raise TrainingError(
                    f"{folder}: passage {document_id} belongs to the split {split!r}, and qrels/{SPLIT}.tsv "
                    "names it. Take that row out: what is measured on must not be trained on."
                )
            if score > 0:
                title = passage.get("title") or ""
                query = queries[query_id]["text"]
                yield Pair(folder.name, query_id, query, document_id, title, passage["text"])


def weak_pairs(folder: Path) -> Iterator[Pair]:
    """One pair for each heading with the text under it; the heading is not read with the text."""
    for path in weak_files(folder):
        source = source_of(path)
        for row in read_json_lines(path):
            yield Pair(source, row["id"], row["query"], row["id"], "", row["text"])


def weak_files(folder: Path) -> list[Path]:
    """The files of headings and text, each a source."""
    return sorted(folder.glob("*.jsonl*"))


def source_of(path: Path) -> str:
    """What a file is called."""
    return path.name.split(".")[0]


def is_held(pair: Pair, share: float, seed: int) -> bool:
    """Whether a pair's article is kept for measuring: all of an article, or nothing."""
    article = f"{seed}\t{pair.source}\t{pair.title or pair.document_id}"
    return hashed(article) < share * 2**64


def write_beir(folder: Path, pairs: Iterable[Pair], together: int = 0) -> None:
    """Write corpus.jsonl, queries.jsonl, qrels/train.tsv and tuples.jsonl; ids begin with their source.

    Training makes a batch of one source. With `together`, each so many questions of a source, in the order
    in which their articles come, are a source of their own: whose negatives are of the same article.
    """
    new = folder.with_name(f".{folder.name}.new")
    (new / "qrels").mkdir(parents=True, exist_ok=True)
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels = ["query-id\tcorpus-id\tscore\n"]
    answers: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        document_id, query_id = f"{pair.source}:{pair.document_id}", f"{pair.source}:{pair.query_id}"
        about = {"source": pair.source}
        documents[document_id] = _line(_id=document_id, title=pair.title, text=pair.text, metadata=about)
        queries[query_id] = _line(_id=query_id, text=pair.query, metadata=about)
        qrels.append(f"{query_id}\t{document_id}\t1\n")
        answers.setdefault((query_id, pair.source), []).append(document_id)
    (new / "corpus.jsonl").write_text("".join(documents.values()), encoding="utf-8")
    (new / "queries.jsonl").write_text("".join(queries.values()), encoding="utf-8")
    (new / "qrels" / f"{SPLIT}.tsv").write_text("".join(qrels), encoding="utf-8")
    tuples = []
    counts: Counter[str] = Counter()
    for (query_id, source), ids in answers.items():
        group = f"{source}/{counts[source] // together}" if together else source
        counts[source] += 1
        tuples.append(_line(query_id=query_id, document_ids=ids, n_positives=len(ids), source=group))
    (new / TUPLES_FILE).write_text("".join(tuples), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed between its two folders
    new.rename(folder)


def _line(**row: object) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    run("pairs", main)
