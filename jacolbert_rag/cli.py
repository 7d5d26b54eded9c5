"""The command line: `jacolbert index` and `jacolbert search`."""

from __future__ import annotations

import gzip
import json
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jacolbert_rag.datatypes import Document, Hit
from jacolbert_rag.errors import InvalidInputError, JaColBERTError, TruncationWarning

if TYPE_CHECKING:
    from jacolbert_rag.retriever import JaColBERTRetriever

JSON_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text")
MARKDOWN_SUFFIXES = (".md", ".markdown")
READ_SUFFIXES = (*JSON_SUFFIXES, *TEXT_SUFFIXES, *MARKDOWN_SUFFIXES)
_HEADING = re.compile(r"#{1,6}[ \t]+(\S.*?)(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")

app = typer.Typer(
    help="Japanese late-interaction search over your own documents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def index(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Files or folders: JSON lines (_id or id, title, text), plain text, Markdown; .gz too."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the index; documents are added to one.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder or hub id; the bundled model where none is named.")
    ] = None,
) -> None:
    """Index documents; those that are there already and have not changed are left alone."""
    from rich.console import Console

    from jacolbert_rag.index.store import MANIFEST_FILE
    from jacolbert_rag.retriever import JaColBERTRetriever

    console = Console(stderr=True)
    with _errors_for_people():
        exists = (out / MANIFEST_FILE).is_file()
        if exists and model is None:
            retriever = JaColBERTRetriever.load(out)
        else:
            retriever = JaColBERTRetriever.from_pretrained(model, index=out if exists else None)
        if not exists:
            retriever.save(out)  # fails now, not after an hour of encoding, where it cannot be written
        documents, n_empty = [], 0
        stale: list[str] = []
        for path in _files(paths):
            n_passages = 0
            for document in _read(path, retriever):
                n_passages += 1
                if document.text.strip():
                    documents.append(document)
                else:
                    n_empty += 1
            if _suffix(path) not in JSON_SUFFIXES:
                stale += _later_passages(path, n_passages, retriever)
        changed = retriever.upsert(documents, progress=True)
        retriever.delete(stale)
        retriever.close()
        if n_empty:
            console.print(f"{n_empty} documents without text were left out.")
        n_same = len(documents) - len(changed)
        console.print(f"{len(changed)} documents indexed, {n_same} unchanged: {out}", soft_wrap=True)


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an index.")],
    query: Annotated[str, typer.Argument(metavar="質問", help="What to look for, in your own words.")],
    k: Annotated[int, typer.Option("--k", "-k", help="How many documents.")] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON list of id, score, text and metadata.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Where the index's model is, when it has moved.")] = None,
) -> None:
    """Find the documents that answer a question."""
    from jacolbert_rag.retriever import JaColBERTRetriever

    with _errors_for_people():
        hits = JaColBERTRetriever.load(folder, model=model).search(query, k)
        if as_json:
            # Escaped, so that text with lone surrogates is printable and any terminal will do.
            _print_data(json.dumps([_as_json(hit) for hit in hits], ensure_ascii=_is_ascii_only(hits)))
        else:
            print_hits(hits)


def print_hits(hits: list[Hit]) -> None:
    """Show hits on the terminal: rank, score, title, text."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console()
    if not hits:
        console.print("The index is empty.")
    for rank, hit in enumerate(hits, start=1):
        title = hit.document.title or hit.id
        head = Text.assemble(f"{rank}. ", (_printable(title), "bold"), (f"  {hit.score:.2f}", "cyan"))
        console.print(head)
        console.print(Padding(Text(_printable(hit.text)), (0, 0, 1, 3)))


def _files(paths: list[Path]) -> Iterator[Path]:
    """The named files, and the readable ones below named folders, in order of name."""
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in READ_SUFFIXES)
            if not found:
                raise InvalidInputError(f"{path} holds no file of {', '.join(READ_SUFFIXES)} (.gz too).")
            yield from found
        elif not path.exists():
            raise InvalidInputError(f"{path} does not exist. Name a file or a folder.")
        elif _suffix(path) not in READ_SUFFIXES:
            raise InvalidInputError(
                f"{path} is not readable here: expected {', '.join(READ_SUFFIXES)}, each also with .gz. "
                "Turn it into one of these first."
            )
        else:
            yield path


def _suffix(path: Path) -> str:
    """The suffix that tells the format, under .gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _read(path: Path, retriever: JaColBERTRetriever) -> Iterator[Document]:
    """Documents of one file."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline=None) as file:
            if _suffix(path) in JSON_SUFFIXES:
                yield from _read_json_lines(path, file)
            else:
                yield from _read_text(path, file.read(), retriever)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InvalidInputError(
            f"{path} is not readable as UTF-8 text ({error}). Convert it to UTF-8, or pack it again."
        ) from error


def _read_json_lines(path: Path, file: Any) -> Iterator[Document]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"{where} is not JSON ({error}).") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InvalidInputError(f'{where} is no object with a string "text".')
        key = row.get("_id", row.get("id"))
        metadata = {} if row.get("metadata") is None else row["metadata"]
        title = "" if row.get("title") is None else row["title"]
        if not isinstance(metadata, dict) or not isinstance(title, str):
            raise InvalidInputError(f'{where}: "metadata" must be an object and "title" a string.')
        if key is None:
            yield Document.from_text(row["text"], metadata, title)
        else:
            yield Document(id=str(key), text=row["text"], metadata=metadata, title=title)


def _read_text(path: Path, text: str, retriever: JaColBERTRetriever) -> Iterator[Document]:
    """Passages of a text or Markdown file, numbered; a Markdown heading is the title of what follows."""
    from jacolbert_rag.encode.splitter import split

    tokenizer = retriever.encoder.tokenizer
    budget = tokenizer.config.document_length - 3
    source = path.resolve().as_posix()
    stem = path.name.split(".")[0]
    sections = _sections(text) if _suffix(path) in MARKDOWN_SUFFIXES else [("", text)]
    number = 0
    for heading, body in sections:
        title = heading or stem
        room = max(16, budget - len(tokenizer.word_ids(title)))
        for passage in split(body, lambda part: len(tokenizer.word_ids(part)), room):
            number += 1
            yield Document(f"{source}#{number}", passage, {"source": source}, title)


def _later_passages(path: Path, n: int, retriever: JaColBERTRetriever) -> list[str]:
    """Ids of passages that a former, longer version of the file has left in the index."""
    source, ids = path.resolve().as_posix(), []
    while (key := f"{source}#{n + 1}") in retriever:
        ids.append(key)
        n += 1
    return ids


def _sections(text: str) -> list[tuple[str, str]]:
    """(heading, text under it) of Markdown; what stands before the first heading has none."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    fence = None
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and fence in (None, mark[1]):
            fence = None if fence else mark[1]
        heading = None if fence or mark else _HEADING.match(line.rstrip("\r\n"))
        if heading:
            sections.append((heading[1], []))
        else:
            sections[-1][1].append(line)
    return [(title, "".join(lines)) for title, lines in sections]


def _as_json(hit: Hit) -> dict[str, Any]:
    title = {"title": hit.document.title} if hit.document.title else {}
    return {"id": hit.id, "score": hit.score, "text": hit.text, "metadata": {**title, **hit.metadata}}


def _is_ascii_only(hits: list[Hit]) -> bool:
    """Whether JSON must escape everything: the terminal cannot print it, or UTF-8 cannot hold it."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        json.dumps([_as_json(hit) for hit in hits], ensure_ascii=False).encode(encoding)
    except UnicodeEncodeError:
        return True
    return False


def _print_data(text: str) -> None:
    """To standard output, which holds data and nothing else."""
    sys.stdout.write(text + "\n")


def _printable(text: str) -> str:
    """The text with what no terminal can show replaced."""
    shown = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() or c == "\n" else " " for c in shown)


@contextmanager
def _errors_for_people() -> Iterator[None]:
    """Errors of ours and warnings as one line on standard error, exit status 2, no traceback."""
    from rich.console import Console

    console = Console(stderr=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always", TruncationWarning)
        warnings.showwarning = lambda message, *_, **__: console.print(
            f"Note: {message}", markup=False, highlight=False
        )
        try:
            yield
        except JaColBERTError as error:
            console.print(f"Error: {error}", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
