"""Command line: a folder in BEIR layout from your own questions and passages.

    python -m evals.init my_eval --pairs faq.csv        # columns are found by their names
    python -m evals.init my_eval --pairs pairs.jsonl --question 質問 --passage 回答 --documents handbook/

Each pair is a question and a passage that answers it; --documents adds passages that nobody asked for, among
which the right one must be found. Equal passages are one. Then: evals.run --data my_eval --split test
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evals.options import fail
from jacolbert_rag import sources
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.errors import InvalidInputError, JaColBERTError
from jacolbert_rag.sources.decode import decode

# Names of columns that say what they hold, the likeliest first.
QUESTIONS = ("question", "query", "質問", "問い", "クエリ", "q")
PASSAGES = ("passage", "answer", "text", "document", "content", "回答", "本文", "文書", "段落", "a")
TITLES = ("title", "タイトル", "題名", "見出し", "件名")
LEAST_HELD = 8  # characters of an answer that is looked for within documents
TABLES = (".csv", ".tsv", ".jsonl", ".json")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Pair:
    """A question and a passage that answers it."""

    question: str
    title: str
    text: str


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="to make", metavar="FOLDER")],
    pairs: Annotated[Path, typer.Option(help="CSV, TSV or JSON lines: a question and its passage a row.")],
    documents: Annotated[
        Path | None,
        typer.Option(
            help="More passages, among which the right one must be found: in the same formats, or a file or "
            "a folder of text, Markdown, HTML and PDF."
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(help="Column of questions.")] = None,
    passage: Annotated[str | None, typer.Option(help="Column of passages.")] = None,
    title: Annotated[str | None, typer.Option(help="Column of titles.")] = None,
    split: Annotated[str, typer.Option(help="What the questions are called.")] = "test",
) -> None:
    """Make a folder to measure on from question-passage pairs."""
    try:
        n_questions, n_passages, notes = make(folder, pairs, documents, question, passage, title, split)
    except JaColBERTError as error:
        raise fail(error) from error
    for note in notes:
        typer.echo(f"Note: {note}", err=True)
    if documents is None:
        typer.echo(
            "Note: the pairs' own passages are few, so every search finds the right one among them, and "
            "figures will be near 1. Add what it is to be found among: --documents FOLDER.",
            err=True,
        )
    typer.echo(f"{folder}: {n_questions:,} questions, {n_passages:,} passages. Now:", err=True)
    python = sys.orig_argv[0] if sys.orig_argv else "python"  # as it was called
    command = [python, "-m", "evals.run", "--data", str(folder), "--split", split]
    typer.echo(shlex.join(command))


class Passages:
    """Passages by id; equal ones are one, and so are one with a title and the same without.

    Attributes:
        entries: id -> title and text.
    """

    def __init__(self) -> None:
        self.entries: dict[str, tuple[str, str]] = {}
        self._titles: defaultdict[str, dict[str, str]] = defaultdict(dict)  # text -> title -> id

    def id_of(self, title: str, text: str) -> str:
        """The passage's id, new where it is not there."""
        titles = self._titles[text]
        if title in titles:
            return titles[title]
        if titles and not title:
            return next(iter(titles.values()))
        id = titles.pop("", None) or f"d{len(self.entries) + 1}"
        titles[title] = id
        self.entries[id] = (title, text)
        return id


class Holding:
    """Documents by what they hold."""

    def __init__(self, documents: Sequence[tuple[str, str]]) -> None:
        self._documents = [(_squeezed(text), (title, text)) for title, text in documents]

    def of(self, answer: str) -> list[tuple[str, str]]:
        """Documents that are an answer, whatever white space is in either, else those that hold it.

        A short answer, such as はい, is held by documents that do not give it.
        """
        words = _squeezed(answer)
        same = [document for text, document in self._documents if text == words]
        if same or len(words) < LEAST_HELD:
            return same
        return [document for text, document in self._documents if words in text]


def _squeezed(text: str) -> str:
    return "".join(clean(text).split())


def make(
    folder: Path,
    pairs: Path,
    documents: Path | None,
    question: str | None,
    passage: str | None,
    title: str | None,
    split: str,
) -> tuple[int, int, list[str]]:
    """Write the folder; how many questions and passages it has, and what is to be known about them.

    An answer that is a part of documents, such as a sentence of theirs, is no passage of its own: the
    documents are what must be found.

    Raises:
        InvalidInputError: the folder is not empty, a file cannot be read, or a column is not there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInputError(f"{folder} is there already. Name a new folder.")
    corpus = Passages()
    asked: dict[str, str] = {}
    judged: dict[tuple[str, str], None] = {}
    read = read_pairs(pairs, question, passage, title)
    others, notes = read_passages(documents, passage, title) if documents is not None else ([], [])
    holding = Holding(others)
    n_parts = n_alone = 0
    for pair in read:
        query = asked.setdefault(pair.question, f"q{len(asked) + 1}")
        whole = holding.of(pair.text)
        n_parts += bool(whole) and all(text != pair.text for _, text in whole)
        n_alone += not whole
        for row_title, text in whole or [(pair.title, pair.text)]:
            judged[query, corpus.id_of(row_title, text)] = None
    for row_title, text in others:
        corpus.id_of(row_title, text)
    if n_parts:
        notes.append(
            f"{n_parts} of {len(read)} answers are parts of documents, which are what must be found."
        )
    if others and n_alone:
        notes.append(
            f"{n_alone} of {len(read)} answers are in no document word for word, so each is a passage of its "
            "own beside them. A document that says the same in other words counts as wrong."
        )
    (folder / "qrels").mkdir(parents=True)
    entries = [{"_id": id, "title": head, "text": text} for id, (head, text) in corpus.entries.items()]
    _write(folder / "corpus.jsonl", entries)
    _write(folder / "queries.jsonl", ({"_id": id, "text": text} for text, id in asked.items()))
    lines = ["query-id\tcorpus-id\tscore\n", *(f"{query}\t{document}\t1\n" for query, document in judged)]
    (folder / "qrels" / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    return len(asked), len(corpus.entries), notes


def read_pairs(path: Path, question: str | None, passage: str | None, title: str | None) -> list[Pair]:
    """The pairs of a file, in its order; rows without a question or a passage are an error.

    Raises:
        InvalidInputError: with the file and the row.
    """
    rows = read_rows(path)
    asks = column(path, rows, question, QUESTIONS, "question")
    says = column(path, rows, passage, PASSAGES, "passage")
    heads = column(path, rows, title, TITLES, "title") if title is not None else _known(rows, TITLES)
    found = []
    for n, row in enumerate(rows, start=1):
        for name in (asks, says):
            if not clean(row.get(name, "")).strip():
                raise InvalidInputError(f"{path}, row {n}: {name!r} is empty. Fill it in, or drop the row.")
        found.append(Pair(row[asks].strip(), row.get(heads, "").strip() if heads else "", row[says].strip()))
    return found


def read_passages(
    path: Path, passage: str | None, title: str | None
) -> tuple[list[tuple[str, str]], list[str]]:
    """Titles and texts of a file or a folder, those without text left out; and files that cannot be read.

    Args:
        path: a table, or what `jacolbert index` reads: sections of Markdown and HTML, pages of PDF, texts.
        passage: the table's column of passages; None finds it by its name.
        title: its column of titles.

    Raises:
        InvalidInputError: it cannot be read, or has no column of passages.
    """
    if path.is_dir() or path.suffix.lower() not in TABLES:
        reading = sources.read_files([path])
        found = [*(each for documents in reading.said.values() for each in documents), *reading.lines]
        return [(each.title, each.text) for each in found], [f"left out: {each}" for each in reading.problems]
    rows = read_rows(path)
    says = column(path, rows, passage, PASSAGES, "passage")
    heads = column(path, rows, title, TITLES, "title") if title is not None else _known(rows, TITLES)
    texts = [
        (row.get(heads, "").strip() if heads else "", row[says].strip())
        for row in rows
        if clean(row.get(says, "")).strip()
    ]
    return texts, []


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a .csv, .tsv or .jsonl file as column -> text.

    Raises:
        InvalidInputError: it cannot be read, or has no rows.
    """
    try:
        text = decode(path.read_bytes())  # Excel's CSV is CP932, or UTF-8 with a mark
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read ({error}). Check the name.") from error
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from error
    if path.suffix in (".jsonl", ".json"):
        # Not at every line break of Unicode: a text may hold one.
        rows = [_object(path, n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    else:
        file = io.StringIO(text, newline="")
        try:
            read = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True))
        except csv.Error as error:
            raise InvalidInputError(f"{path} is no table that can be read ({error}).") from error
        rows = [{key: value or "" for key, value in row.items() if key} for row in read]
    if not rows:
        raise InvalidInputError(f"{path} has no rows. Write the columns' names, and then a pair a row.")
    return rows


def _object(path: Path, n: int, line: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidInputError(f"{path}, line {n}: not JSON ({error}). Write one object a line.") from error
    if not isinstance(row, dict):
        raise InvalidInputError(f"{path}, line {n}: a {type(row).__name__}; expected an object a line.")
    return {str(key): "" if value is None else str(value) for key, value in row.items()}


def column(
    path: Path, rows: Sequence[Mapping[str, str]], wanted: str | None, known: Sequence[str], what: str
) -> str:
    """The column of that name, or the first whose name says what it holds.

    Raises:
        InvalidInputError: there is none.
    """
    there = _columns(rows)
    if wanted is not None:
        if wanted not in there:
            raise InvalidInputError(f"{path} has no column {wanted!r}; it has {', '.join(there)}.")
        return wanted
    found = _known(rows, known)
    if not found:
        raise InvalidInputError(
            f"{path} has the columns {', '.join(there)}; none is named like a {what}. Pass --{what} COLUMN."
        )
    return found


def _known(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> str:
    """The first of these columns that is there, else ""; capitals do not count."""
    lowered = {name.strip().lower(): name for name in _columns(rows)}
    return next((lowered[name] for name in names if name in lowered), "")


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Columns of all rows, in their order: the first of JSON lines need not have all."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    app()
