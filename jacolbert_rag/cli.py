"""The command line `jacolbert`: index, search, explain, delete, stats, verify, compact, serve, doctor."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from jacolbert_rag.config import ComputeDtype, EncoderOverrides, SearchMode
from jacolbert_rag.errors import CheckpointWarning, InvalidInputError, JaColBERTError, TruncationWarning

if TYPE_CHECKING:
    from jacolbert_rag.datatypes import Hit

STDIN = "-"
HOST, PORT = "127.0.0.1", 8000
TOKEN_VARIABLE = "JACOLBERT_TOKEN"

app = typer.Typer(
    help="Japanese late-interaction search over your own documents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an index.")]
Moved = Annotated[str | None, typer.Option(help="Where the index's model is, when it has moved.")]
AsJson = Annotated[bool, typer.Option("--json", help="Data for programs, in place of text for people.")]


@app.command()
def index(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Files or folders: JSON lines (_id or id, title, text), text, Markdown; .gz too; HTML and "
            "PDF with the extra [files]. - reads JSON lines from standard input."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the index; documents are added to one.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder or hub id; the bundled model where none is named.")
    ] = None,
    prune: Annotated[
        bool, typer.Option(help="Delete what files of the named folders said that are no longer there.")
    ] = False,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            help="Find below which confidence nothing answers. Unless told: where it is not known, or the "
            "index has twice as many documents since."
        ),
    ] = None,
) -> None:
    """Index documents, long ones in chunks of sentences; what has not changed is left alone.

    A text file is a document, and so is each section of a Markdown or HTML file, and each page of a PDF.
    What such a file said when it was last indexed and no longer says is deleted; documents of JSON lines, and
    of files that are no longer there, stay; --prune deletes the latter. Metadata, which search --filter asks
    for, are Markdown's front matter, the file's name as "source", and a PDF's "page".

    Exits with 1 where a file could not be read; the others are indexed.
    """
    from jacolbert_rag import sources, terminal
    from jacolbert_rag.calibration import LEAST_SENTENCES
    from jacolbert_rag.index import layout
    from jacolbert_rag.retriever import JaColBERTRetriever
    from jacolbert_rag.sources.json_lines import read_json_lines

    with _errors_for_people():
        retriever = None
        if layout.exists(out):
            retriever = (
                JaColBERTRetriever.load(out)
                if model is None
                else JaColBERTRetriever.from_pretrained(model, index=out)
            )
        named = [path for path in paths if str(path) != STDIN]
        reading = sources.read_files(
            named,
            index=retriever,
            more=read_json_lines("standard input", _lines()) if len(named) < len(paths) else (),
            may_be_empty=prune,
        )
        if reading.problems and not reading.said and not reading.lines:  # what cannot be read makes no index
            raise InvalidInputError(f"nothing could be read. {' '.join(reading.problems)}")
        if retriever is None:
            retriever = JaColBERTRetriever.from_pretrained(model)
            retriever.save(out)  # fails now, not after an hour of encoding, where it cannot be written
        done = sources.index_reading(retriever, reading, prune=prune, progress=True)
        n_passages = len(retriever)
        terminal.print_outcome(done, str(out), n_passages)
        is_due = retriever.is_calibration_due()
        if calibrate or (calibrate is None and is_due):
            try:
                retriever.calibrate(progress=True)
            except InvalidInputError as error:  # a small corpus is indexed all the same
                terminal.print_note(f"not calibrated, since {n_passages} passages are too few. {error}")
        elif retriever.threshold("hybrid") is None:
            terminal.print_note(
                "not calibrated, so that search cannot tell what is weak: "
                + (
                    "index … --calibrate does that."
                    if is_due
                    else f"that takes {LEAST_SENTENCES} passages or more."
                )
            )
        retriever.close()
    if done.problems:
        raise typer.Exit(1)


@app.command()
def search(
    folder: Folder,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="質問", help="What to look for; without it, or with -, a question a line is read."
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="How many documents.")] = 5,
    mode: Annotated[
        str, typer.Option(help="hybrid, jacolbert (token embeddings) or bm25 (words).")
    ] = "hybrid",
    filter: Annotated[
        str | None, typer.Option(help='Conditions on metadata: \'{"部署": "経理"}\'.', metavar="JSON")
    ] = None,
    explain: Annotated[bool, typer.Option(help="Mark what answered, and show the scores.")] = False,
    abstain: Annotated[
        bool, typer.Option(help="Show nothing where nothing answers; see index --calibrate.")
    ] = False,
    as_json: AsJson = False,
    model: Moved = None,
) -> None:
    """Find the documents that answer a question, or each question of standard input.

    What is below the confidence that answers have, where the index knows it, is called weak. With --json a
    question gives a JSON list of id, score, text, metadata, scores and is_weak; questions of standard input
    give an object each, on a line of its own: {"query": …, "hits": […]}.
    """
    from jacolbert_rag import terminal
    from jacolbert_rag.retriever import JaColBERTRetriever

    query = " ".join(words or [STDIN])
    with _errors_for_people():
        if mode not in get_args(SearchMode):
            raise InvalidInputError(f"--mode is {mode!r}; expected {', '.join(get_args(SearchMode))}.")
        conditions = _conditions(filter)
        with _opened(JaColBERTRetriever.load(folder, model=model)) as retriever:
            threshold = retriever.threshold(cast(SearchMode, mode))
            for each in _queries(query):
                hits = retriever.search(
                    each,
                    k,
                    mode=cast(SearchMode, mode),
                    filter=conditions,
                    highlight=explain,
                    abstain=abstain,
                )
                if (
                    not hits
                    and conditions is not None
                    and next(retriever.documents(conditions), None) is None
                ):
                    terminal.print_note(
                        f"no document passes --filter. {terminal.fields_of(retriever.documents())}"
                    )
                if not as_json:
                    if query == STDIN:
                        terminal.print_query(each)
                    terminal.print_hits(hits, threshold, is_empty=not len(retriever))
                elif query == STDIN:
                    _print_json({"query": each, "hits": [_as_json(hit, threshold) for hit in hits]})
                else:
                    _print_json([_as_json(hit, threshold) for hit in hits])


@app.command()
def explain(
    folder: Folder,
    id: Annotated[
        str,
        typer.Argument(metavar="ID", help="Of a document; of one in parts, or of a file, the best is shown."),
    ],
    words: Annotated[list[str], typer.Argument(metavar="質問", help="What was looked for.")],
    as_json: AsJson = False,
    model: Moved = None,
) -> None:
    """Show why a document answers a question, or why not: its rank, its scores, and what each part found."""
    from jacolbert_rag import terminal
    from jacolbert_rag.index.filters import Ids
    from jacolbert_rag.retriever import JaColBERTRetriever

    with _errors_for_people(), _opened(JaColBERTRetriever.load(folder, model=model)) as retriever:
        query, known = " ".join(words), [id] if id in retriever else retriever.ids(f"{id}#")
        if not known:
            raise InvalidInputError(f"{folder} has no document {id!r}. Ids are beside what search finds.")
        (hit,) = retriever.search(query, 1, exact=True, filter=Ids(frozenset(known)), highlight=True)
        ranks: dict[str, int | None] = {}
        modes: tuple[SearchMode, ...] = get_args(SearchMode)
        for mode in modes:
            found = [each.id for each in retriever.search(query, terminal.DEEPEST, mode=mode)]
            ranks[mode] = found.index(hit.id) + 1 if hit.id in found else None
        if as_json:
            _print_json({**_as_json(hit, retriever.threshold("hybrid")), "ranks": ranks})
        else:
            terminal.print_explanation(query, hit, ranks)


@app.command()
def stats(folder: Folder, as_json: AsJson = False) -> None:
    """Show what an index holds."""
    from jacolbert_rag import terminal
    from jacolbert_rag.index.index import Index
    from jacolbert_rag.index.stats import stats_of

    with _errors_for_people(), _opened(Index.open(folder)) as opened:
        found = stats_of(opened)
        if as_json:
            _print_json(asdict(found))
        else:
            terminal.print_stats(found)


@app.command()
def verify(
    folder: Folder,
    rebuild: Annotated[bool, typer.Option(help="Make anew what is damaged and can be derived.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every byte of an index, and name what is damaged; exits with 1 where something is."""
    from jacolbert_rag.errors import IndexCorruptError
    from jacolbert_rag.index.index import Damage, Index

    with _errors_for_people():
        try:
            with _opened(Index.open(folder)) as opened:
                found = opened.verify()
                if rebuild and any(damage.is_derived for damage in found):
                    opened.rebuild()
                    found = opened.verify()
        except IndexCorruptError as error:  # so damaged that it cannot be opened
            found = [Damage(str(error), is_derived=False)]
        if as_json:
            _print_json([asdict(damage) for damage in found])
        else:
            for damage in found:
                mend = "jacolbert verify --rebuild" if damage.is_derived else "restore it, or index anew"
                _print_data(f"{damage.what}: {mend}")
            if not found:
                _print_data("nothing is damaged")
    if found:
        raise typer.Exit(1)


@app.command()
def delete(
    folder: Folder,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME…", help="Ids of documents, or names of files or folders: handbook/old/."
        ),
    ],
) -> None:
    """Delete documents by id, or all that a file or a folder said; names are as search shows them."""
    from jacolbert_rag.retriever import JaColBERTRetriever
    from jacolbert_rag.sources import delete_named

    with _errors_for_people(), _opened(JaColBERTRetriever.load(folder)) as retriever:
        deleted = {name: delete_named(retriever, name) for name in names}
        for name, ids in deleted.items():
            _print_data(f"{name}: {len(ids):,} passages deleted")
    if not all(deleted.values()):
        raise typer.Exit(1)


@app.command()
def compact(folder: Folder) -> None:
    """Give back the room of deleted documents; searches go on meanwhile."""
    from jacolbert_rag.index.index import Index
    from jacolbert_rag.index.stats import stats_of

    with _errors_for_people(), _opened(Index.open(folder)) as opened:
        before = stats_of(opened).n_bytes
        opened.compact()
        after = stats_of(opened).n_bytes
        _print_data(f"{before:,} bytes before, {after:,} now")


@app.command()
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = PORT,
    token: Annotated[
        str | None,
        typer.Option(envvar=TOKEN_VARIABLE, help="What clients must send; needed beyond this machine."),
    ] = None,
    read_only: Annotated[bool, typer.Option(help="Search alone: nothing is added or deleted.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name by which a proxy or a network calls it; may be repeated.")
    ] = None,
    model: Moved = None,
) -> None:
    """Serve an index over HTTP: search, add, delete, health; its OpenAPI page is at /docs."""
    from jacolbert_rag.retriever import JaColBERTRetriever

    with _errors_for_people():
        from jacolbert_rag import server

        server.check_host(host, token)
        with _opened(JaColBERTRetriever.load(folder, model=model)) as retriever:
            server.run(
                retriever, host=host, port=port, token=token, read_only=read_only, hosts=allow_host or ()
            )


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
        from jacolbert_rag import terminal
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
        terminal.print_report(report)
    if not report.is_healthy:
        raise typer.Exit(1)


@contextmanager
def _opened(opened: Any) -> Iterator[Any]:
    """Closed at the end."""
    try:
        yield opened
    finally:
        opened.close()


def _lines() -> Iterator[str]:
    """Lines of standard input, which is UTF-8 whatever the terminal is."""
    stream = sys.stdin
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8-sig")
    try:
        yield from stream
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"standard input is not UTF-8 ({error}). Convert it first.") from error


def _queries(given: str) -> Iterator[str]:
    """The question, or those of standard input, blank lines left out."""
    if given != STDIN:
        yield given
    else:
        yield from (line.strip() for line in _lines() if line.strip())


def _conditions(given: str | None) -> dict[str, Any] | None:
    """A filter of the command line."""
    if given is None:
        return None
    try:
        conditions = json.loads(given)
    except ValueError as error:
        raise InvalidInputError(
            f'--filter is not JSON ({error}). Write, for instance, \'{{"部署": "経理"}}\'.'
        ) from error
    if not isinstance(conditions, dict):
        raise InvalidInputError(f"--filter is a {type(conditions).__name__}; expected an object.")
    return conditions


def _as_json(hit: Hit, threshold: float | None) -> dict[str, Any]:
    title = {"title": hit.document.title} if hit.document.title else {}
    is_unknown = threshold is None or "confidence" not in hit.scores
    found = {
        "id": hit.id,
        "score": hit.score,
        "text": hit.text,
        "metadata": {**title, **hit.metadata},
        "scores": dict(hit.scores),
        "is_weak": None if is_unknown else hit.is_below(threshold),
    }
    if hit.highlight is None:
        return found
    shown = {
        "marks": hit.highlight.marks,
        "title_marks": hit.highlight.title_marks,
        "best_sentence": hit.highlight.best_sentence,
        "matches": [match._asdict() for match in hit.highlight.matches],
    }
    return {**found, "highlight": shown}


def _print_json(value: Any) -> None:
    """One line of JSON; escaped where the terminal cannot print it, or UTF-8 cannot hold it."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(value)
    _print_data(text)


def _print_data(text: str) -> None:
    """To standard output, which holds data and nothing else."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()  # a pipe reads each answer as it comes


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
