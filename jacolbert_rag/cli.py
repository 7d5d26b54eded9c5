"""The command line: `jacolbert index`, `jacolbert search` and `jacolbert doctor`."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from jacolbert_rag.config import ComputeDtype, EncoderOverrides
from jacolbert_rag.datatypes import Document, Hit
from jacolbert_rag.encode.splitter import parent_of
from jacolbert_rag.errors import CheckpointWarning, InvalidInputError, JaColBERTError, TruncationWarning

if TYPE_CHECKING:
    from jacolbert_rag.doctor import Report
    from jacolbert_rag.retriever import JaColBERTRetriever

JSON_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text")
MARKDOWN_SUFFIXES = (".md", ".markdown")
READ_SUFFIXES = (*JSON_SUFFIXES, *TEXT_SUFFIXES, *MARKDOWN_SUFFIXES)
_HEADING = re.compile(r"(#{1,6})[ \t]+(\S.*?)(?:[ \t]+#+)?[ \t]*$")
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
    """Index documents, long ones in chunks of sentences; what has not changed is left alone.

    A text file (UTF-8) is a document, and so is each section of a Markdown file. What such a file said when
    it was last indexed and no longer says is removed; documents of JSON lines, and of files that are no
    longer there, stay.
    """
    from rich.console import Console

    from jacolbert_rag.index import layout
    from jacolbert_rag.retriever import JaColBERTRetriever

    console = Console(stderr=True)
    with _errors_for_people():
        exists = layout.exists(out)
        if exists and model is None:
            retriever = JaColBERTRetriever.load(out)
        else:
            retriever = JaColBERTRetriever.from_pretrained(model, index=out if exists else None)
        if not exists:
            retriever.save(out)  # fails now, not after an hour of encoding, where it cannot be written
        files = list(_files(paths))
        given = [document for path in files for document in _read(path)]
        documents = [document for document in given if document.text.strip()]
        ids = {document.id for document in documents}
        before = set(retriever.ids())
        touched = {*retriever.upsert(documents, split=True, progress=True), *(before - set(retriever.ids()))}
        sources = [_source(path) for path in files if _suffix(path) not in JSON_SUFFIXES]
        retriever.delete(_former(sources, ids, retriever))
        retriever.close()
        if n_empty := len(given) - len(documents):
            console.print(f"{n_empty} documents without text were left out.")
        # A chunk's id is its document's, and # with what it says.
        n_changed = len({id if id in ids else id.rpartition("#")[0] for id in touched})
        n_same = len(documents) - n_changed
        console.print(f"{n_changed} documents indexed, {n_same} unchanged: {out}", soft_wrap=True)


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


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Argument(help="Model folder or hub id; the bundled model where none is named.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Where to take tokenizer and metadata, for checkpoints without.")
    ] = None,
    query_length: Annotated[str | None, typer.Option(help="'paper', 'jqara', 'fixed(32)', ...")] = None,
    document_length: Annotated[int | None, typer.Option(help="Tokens read of a document.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The whole report as one JSON object.")] = False,
) -> None:
    """Show what a checkpoint says and what was made of it, and try it on this machine.

    Exits with 1 where a check fails, and with 2 where the checkpoint cannot be used.
    """
    with _errors_for_people():
        if dtype not in get_args(ComputeDtype):
            raise InvalidInputError(f"--dtype is {dtype!r}; expected {', '.join(get_args(ComputeDtype))}.")
        from jacolbert_rag.doctor import examine
        from jacolbert_rag.encode import checkpoint

        wishes = EncoderOverrides()
        if query_length is not None:
            wishes["query_length"] = query_length
        if document_length is not None:
            wishes["document_length"] = document_length
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # the report says it
            loaded = checkpoint.load(model, revision=revision, tokenizer=tokenizer, overrides=wishes)
        report = examine(loaded, device=device, dtype=cast(ComputeDtype, dtype))
    if as_json:
        _print_data(json.dumps(report.to_json(), ensure_ascii=True))
    else:
        print_report(report)
    if not report.is_healthy:
        raise typer.Exit(1)


def print_report(report: Report) -> None:
    """Show a doctor's report on the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)

    def section(title: str, rows: Iterable[tuple[str, ...]]) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        for row in rows:
            styles = ("", "", "dim")
            table.add_row(*(Text(_printable(cell), style) for cell, style in zip(row, styles, strict=False)))
        console.print(Text(title, "bold"))
        console.print(table)

    found, compute, speed, tokens = report.checkpoint, report.compute, report.speed, report.tokens
    section(
        "Checkpoint",
        [
            ("name", found["name"]),
            ("folder", found["folder"]),
            ("format", found["format"]),
            (
                "network",
                f"{found['backbone']}, {found['layers']} layers of {found['hidden_size']}, projection "
                f"{', '.join(found['projection'])}; {found['parameters']:,} parameters",
            ),
            ("tokenizer", f"{found['tokenizer']}; {found['vocabulary']:,} tokens"),
            ("fingerprint", found["fingerprint"]),
        ],
    )

    def token(entry: dict[str, Any]) -> str:
        return "none" if entry["id"] is None else f"{entry['token']!r} = {entry['id']}"

    special = [
        token(entry) for kind in ("prefix", "suffix", "mask", "padding", "unknown") for entry in tokens[kind]
    ]
    section(
        "Tokens",
        [
            ("query marker", token(tokens["query_marker"])),
            ("document marker", token(tokens["document_marker"])),
            ("special", ", ".join(special)),
            ("skipped in documents", f"{len(tokens['skipped_ids'])} ids"),
            (
                "not in the vocabulary",
                " ".join(tokens["skiplist_not_in_vocabulary"]) or "none of the skiplist",
            ),
        ],
    )
    section(
        "Settings, and who says so",
        [(s.name, _short(s.value), s.source) for s in report.settings],
    )
    section(
        "Computing",
        [
            ("device", f"{compute['device']}: {compute['device_name']}"),
            ("dtype", compute["dtype"]),
            ("attention", compute["attention"]),
            ("threads", str(compute["threads"])),
            (
                "speed",
                f"{speed['documents_per_s']:,.1f} documents/s of {speed['tokens_per_document']:.0f} tokens "
                f"({speed['tokens_per_s']:,.0f} tokens/s); one query {speed['query_ms']:.1f} ms; tokenizer "
                f"{speed['tokenized_tokens_per_s']:,.0f} tokens/s of words that it has met",
            ),
        ],
    )
    section(
        "Self-test",
        [("ok" if check.passed else "FAILED", check.name, check.detail) for check in report.checks],
    )
    for warning in report.warnings:
        console.print(Text("Note: ", "yellow").append(_printable(warning), "default"))
    if not report.warnings:
        console.print("Nothing to note.")


def _short(value: Any) -> str:
    """A setting's value, long lists cut."""
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} symbols: {' '.join(map(str, value[:8]))} ..."
    return repr(value) if isinstance(value, str) else str(value)


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


def _source(path: Path) -> str:
    """What a file is called in an index, wherever the command ran."""
    return path.resolve().as_posix()


def _read(path: Path) -> Iterator[Document]:
    """Documents of one file."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline=None) as file:
            if _suffix(path) in JSON_SUFFIXES:
                yield from _read_json_lines(path, file)
            else:
                yield from _read_text(path, file.read())
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


def _read_text(path: Path, text: str) -> Iterator[Document]:
    """A text file as a document, or the sections of a Markdown file, each with its heading for a title.

    A section's id is `FILE#CHAPTER/SECTION`, so that it stays when sections come and go around it.
    """
    source, seen = _source(path), set[str]()
    sections = _sections(text) if _suffix(path) in MARKDOWN_SUFFIXES else [((), text)]
    for headings, body in sections:
        if body.strip():
            id = _unused("#".join([source, "/".join(headings)]) if headings else source, seen)
            seen.add(id)
            title = headings[-1] if headings else _title(path)
            yield Document(id, body.strip(), {"source": source}, title)


def _title(path: Path) -> str:
    """A file's name without what tells its kind."""
    name = path.name[:-3] if path.suffix.lower() == ".gz" else path.name
    return name.removesuffix(Path(name).suffix)


def _unused(id: str, seen: Container[str]) -> str:
    """The id, or the first of it with -2, -3 and so on behind that is not taken."""
    numbered = (f"{id}-{n}" for n in count(2))
    return next(key for key in chain([id], numbered) if key not in seen)


def _former(sources: Sequence[str], current: Container[str], retriever: JaColBERTRetriever) -> list[str]:
    """Ids of what these files have left in the index, and which is of no document of theirs now."""
    return [
        document.id
        for source in sources
        for document in retriever.get([source, *retriever.ids(f"{source}#")])
        # The source is compared, since another file's name may begin like this one's sections.
        if document.metadata.get("source") == source and (parent_of(document) or document.id) not in current
    ]


def _sections(text: str) -> list[tuple[tuple[str, ...], str]]:
    """Sections of Markdown: the headings above each, its own last, and the text up to the next heading.

    What stands before the first heading has none.
    """
    sections: list[tuple[tuple[str, ...], list[str]]] = [((), [])]
    open_headings: list[tuple[int, str]] = []  # level and text
    fence = None
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and fence in (None, mark[1]):
            fence = None if fence else mark[1]
        heading = None if fence or mark else _HEADING.match(line.rstrip("\r\n"))
        if heading:
            level = len(heading[1])
            open_headings = [h for h in open_headings if h[0] < level] + [(level, heading[2])]
            sections.append((tuple(title for _, title in open_headings), []))
        else:
            sections[-1][1].append(line)
    return [(headings, "".join(lines)) for headings, lines in sections]


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

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of Windows may know no 😀
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
