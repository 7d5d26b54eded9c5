"""Published datasets as folders in BEIR layout, which training.mine reads.

    python -m training.prepare --dataset miracl-ja --out runs/example/miracl-ja

Reads the hub, or copies that --rows and --corpus name; writes corpus.jsonl, queries.jsonl and qrels/train.tsv
of what may be trained on. Queries come in an order drawn by a seed, so that the first n are a sample of all.
Each file is written whole; started again, the step writes those that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from jacolbert_rag.datatypes import Document
from training.data import HUB, load_dataset
from training.options import Config, Limit, StageName, TrainingError, console, run
from training.state import begin, claim

Name = Literal["miracl-ja", "mrtydi-ja", "jqara", "jagovfaqs", "mmarco-ja"]
# Queries with their passages; and the corpus, where it is apart. JQaRA's test split is what is measured on.
ROWS: Mapping[Name, Sequence[str]] = {
    "miracl-ja": ("hub:miracl/miracl/ja@train",),
    "mrtydi-ja": ("hub:castorini/mr-tydi/japanese@train",),
    "jqara": ("hub:hotchpotch/JQaRA@dev", "hub:hotchpotch/JQaRA@unused"),
    "jagovfaqs": ("hub:matsuxr/JaGovFaqs-22k@train",),
    "mmarco-ja": ("hub:hpprc/mmarco-ja/dataset@train",),
}
CORPUS: Mapping[Name, str] = {
    "miracl-ja": "hub:miracl/miracl-corpus/ja@train",
    "mrtydi-ja": "hub:castorini/mr-tydi-corpus/japanese@train",
    "mmarco-ja": "hub:hpprc/mmarco-ja/collection@train",
}


@dataclass(frozen=True)
class Question:
    """A query with the ids of its answers."""

    id: str
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A dataset.

    Attributes:
        questions: in the dataset's order.
        named: passages that the rows hold themselves, by id.
        corpus: rows that hold the others, in their order; empty where `named` is all.
    """

    questions: Sequence[Question]
    named: Mapping[str, Document]
    corpus: Sequence[Any] = ()


def main(
    dataset: Annotated[Name, typer.Option(help="which one")],
    out: Annotated[Path, typer.Option(help="folder in BEIR layout to write")],
    rows: Annotated[
        list[str] | None, typer.Option(help="hub:NAME or .parquet of the same columns, in the hub's place")
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="the same for the corpus, where it is apart")] = None,
    seed: int = 12345,
    limit: Limit = None,
    config: Config = None,
    stage: StageName = None,
) -> None:
    """Write a published dataset as a BEIR folder."""
    names, corpus_name = rows or list(ROWS[dataset]), corpus or CORPUS.get(dataset)
    with claim(out):
        files = [out / "corpus.jsonl", out / "queries.jsonl", out / "qrels" / "train.tsv"]
        begin(
            out,
            {"dataset": dataset, "rows": names, "corpus": corpus_name, "seed": seed, "limit": limit},
        )
        if all(file.exists() for file in files):
            console.print(f"{out} is finished: nothing to do.", markup=False, soft_wrap=True)
            return
        read = [row for name in names for row in load(name)]
        apart = load(corpus_name) if corpus_name is not None else ()
        prepared = READERS[dataset](read, apart)
        order = np.random.default_rng(seed).permutation(len(prepared.questions))[:limit]
        questions = [prepared.questions[i] for i in order]
        write_once(files[0], (_line(dataset, id=p.id, title=p.title, text=p.text)
                              for p in passages(prepared, questions, limit)))  # fmt: skip
        write_once(files[1], (_line(dataset, id=q.id, text=q.text) for q in questions))
        judged = (f"{q.id}\t{id}\t1\n" for q in questions for id in q.answers)
        write_once(files[2], ["query-id\tcorpus-id\tscore\n", *judged])
    console.print(f"{len(questions):,} questions of {dataset} are in {out}.", markup=False, soft_wrap=True)


def load(name: str) -> Any:
    """A dataset's rows.

    Raises:
        TrainingError: it cannot be had.
    """
    try:
        return load_dataset(name)
    except RuntimeError as error:  # `datasets` 4 runs no loading scripts, which some datasets still have
        raise TrainingError(
            f"{name} cannot be loaded ({error}). Convert it to .parquet of the same columns, and name that "
            f"with --rows or --corpus; a copy on the hub is named {HUB}OWNER/NAME."
        ) from error


def judged_passages(rows: Iterable[Any], corpus: Sequence[Any]) -> Prepared:
    """MIRACL and Mr. TyDi: a query with its positive passages, and a corpus of docid, title, text."""
    questions, named = [], {}
    for row in rows:
        found = [_passage(each) for each in row["positive_passages"]]
        named.update({passage.id: passage for passage in found})
        answers = tuple(dict.fromkeys(passage.id for passage in found))
        questions.append(Question(str(row["query_id"]), row["query"], answers))
    return Prepared(questions, named, corpus)


def jqara(rows: Iterable[Any], corpus: Sequence[Any]) -> Prepared:
    """JQaRA: one row a question and passage, with a label."""
    texts: dict[str, str] = {}
    answers: dict[str, list[str]] = {}
    named = {}
    for row in rows:
        id, passage = str(row["q_id"]), str(row["passage_row_id"])
        texts[id] = row["question"]
        named[passage] = Document(passage, row["text"], title=row["title"] or "")
        answers.setdefault(id, [])
        if row["label"] == 1:
            answers[id].append(passage)
    return Prepared([Question(id, text, tuple(answers[id])) for id, text in texts.items()], named)


def jagovfaqs(rows: Iterable[Any], corpus: Sequence[Any]) -> Prepared:
    """JaGovFaqs: questions to ministries, with their answers; equal answers are one passage."""
    of_text: dict[str, Document] = {}
    questions = []
    for n, row in enumerate(rows):
        answer = of_text.setdefault(row["Answer"], Document(f"a{len(of_text)}", row["Answer"]))
        questions.append(Question(f"q{n}", row["Question"], (answer.id,)))
    return Prepared(questions, {passage.id: passage for passage in of_text.values()})


def mmarco(rows: Iterable[Any], corpus: Sequence[Any]) -> Prepared:
    """hpprc/mmarco-ja: queries by row number, since it gives them no id; a passage's id is its row."""
    questions = [
        Question(str(n), row["anc"], tuple(str(id) for id in row["pos_ids"])) for n, row in enumerate(rows)
    ]
    return Prepared(questions, {}, corpus)


READERS = {
    "miracl-ja": judged_passages,
    "mrtydi-ja": judged_passages,
    "jqara": jqara,
    "jagovfaqs": jagovfaqs,
    "mmarco-ja": mmarco,
}


def passages(prepared: Prepared, questions: Sequence[Question], limit: int | None) -> Iterator[Document]:
    """Every passage once; with a limit, the answers of some questions, and as many others as the limit.

    Corpora of millions pass through: memory holds what the rows name.
    """
    wanted = dict.fromkeys(id for question in questions for id in question.answers)
    first = wanted if limit is not None else prepared.named
    for id in first:
        yield prepared.named[id] if id in prepared.named else _passage(prepared.corpus[int(id)], int(id))
    named = (passage for id, passage in prepared.named.items() if id not in first)
    others = (_passage(row, n) for n, row in enumerate(prepared.corpus))
    yield from islice((p for part in (named, others) for p in part if p.id not in first), limit)


def _passage(row: Mapping[str, Any], number: int | None = None) -> Document:
    """A passage of a row; its number is its id where it has none."""
    return Document(str(row.get("docid", number)), row["text"], title=row.get("title") or "")


def _line(dataset: str, *, id: str, text: str, title: str | None = None) -> str:
    titled = {} if title is None else {"title": title}
    row = {"_id": id, **titled, "text": text, "metadata": {"source": dataset}}
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_once(path: Path, lines: Iterable[str]) -> None:
    """Write a file beside, then rename; one that is there stays."""
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    new.rename(path)


if __name__ == "__main__":
    run("prepare", main)
