"""What the command line shows to people: reports of a model, hits, explanations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from jacolbert_rag.datatypes import Document, Hit, printable
from jacolbert_rag.encode.splitter import CHUNK_KEY

if TYPE_CHECKING:
    from jacolbert_rag.doctor import Report
    from jacolbert_rag.index.stats import Stats
    from jacolbert_rag.sources import Outcome

DEEPEST = 100  # rank that is looked for
MAX_KINDS = 8  # of files that are named
MAX_LOOKED_AT = 1_000  # documents, for the fields that they have


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
            table.add_row(*(Text(printable(cell), style) for cell, style in zip(row, styles, strict=False)))
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
        console.print(Text("Note: ", "yellow").append(printable(warning), "default"))
    if not report.warnings:
        console.print("Nothing to note.")


def _short(value: Any) -> str:
    """A setting's value, long lists cut."""
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} symbols: {' '.join(map(str, value[:8]))} ..."
    return repr(value) if isinstance(value, str) else str(value)


def print_query(query: str) -> None:
    """A question above its hits."""
    from rich.console import Console
    from rich.rule import Rule
    from rich.text import Text

    Console().print(Rule(Text(printable(query), "bold"), align="left"))


def print_note(text: str) -> None:
    """Something to know, on standard error."""
    from rich.console import Console

    Console(stderr=True).print(f"Note: {printable(text)}", markup=False, highlight=False, soft_wrap=True)


def fields_of(documents: Iterable[Document]) -> str:
    """What filters of an index may ask for, in a sentence."""
    fields = Counter(key for document in islice(documents, MAX_LOOKED_AT) for key in document.metadata)
    known = [key for key, _ in fields.most_common() if key != CHUNK_KEY]
    return f"Fields of the documents are {', '.join(known)} and title." if known else "Their field is title."


def print_outcome(done: Outcome, index: str, n_passages: int) -> None:
    """Say on standard error what indexing did.

    Args:
        done: what it did.
        index: its folder.
        n_passages: that it has now.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    for note in done.notes:
        print_note(note)
    for problem in done.problems:
        console.print(f"Left out: {printable(problem)}")
    if done.n_blank:
        console.print(f"{_counted(done.n_blank, 'document')} without text left out.")
    if done.others:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in Counter(done.others).most_common(MAX_KINDS))
        more = ", …" if len(done.others) > MAX_KINDS else ""
        console.print(f"Files of kinds that are not read here: {printable(kinds)}{more}")
    if done.n_gone:
        gone = _counted(done.n_gone, "file")
        print_note(f"{gone} no longer there; --prune deletes what is stored of it.")
    deleted = f", {done.n_deleted:,} deleted" if done.n_deleted else ""
    console.print(
        f"{_counted(done.n_changed, 'document')} indexed, {done.n_unchanged:,} unchanged{deleted}: "
        f"{index} has {_counted(n_passages, 'passage')} now."
    )


def _counted(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'s' * (n != 1)}"


def print_hits(hits: Sequence[Hit], threshold: float | None = None, *, is_empty: bool = False) -> None:
    """Show hits: rank, title, confidence, id, text; and what answered, where that was asked for.

    Args:
        hits: best first.
        threshold: of confidence, below which nothing answers; None where it is not known.
        is_empty: whether the index has no documents.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    if not hits:
        console.print("The index is empty." if is_empty else "Nothing answers: 該当なし")
    elif all(hit.is_below(threshold) for hit in hits):
        console.print(Text("Nothing answers for certain (該当なし). What is nearest:\n", "yellow"))
    for rank, hit in enumerate(hits, start=1):
        title = hit.document.title or hit.id
        name = "confidence" if "confidence" in hit.scores else "score"
        figure = f"{name} {hit.scores.get('confidence', hit.score):.2f}"
        shown = (f"  {figure}, weak", "dim") if hit.is_below(threshold) else (f"  {figure}", "cyan")
        console.print(Text.assemble(f"{rank}. ", (printable(title), "bold"), shown))
        text = Text(printable(hit.text)) if hit.highlight is None else hit.highlight.rich()
        figures = f"  {_figures(hit)}" if hit.highlight is not None else ""
        console.print(Text(f"   {printable(hit.id)}{figures}", "dim"), soft_wrap=True)
        console.print(Padding(text, (0, 0, 1, 3)))


def print_explanation(query: str, hit: Hit, ranks: Mapping[str, int | None]) -> None:
    """Show why a document answers a question: its ranks, its scores, and what each part found.

    Args:
        query: the question.
        hit: the document, with its highlight.
        ranks: way to search -> its rank; None where it is below the deepest that was looked at.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text.assemble((printable(hit.document.title or hit.id), "bold"), f"  {_figures(hit)}"))
    shown = [f"{mode} {rank if rank is not None else f'below {DEEPEST}'}" for mode, rank in ranks.items()]
    console.print(f"rank: {', '.join(shown)}")
    assert hit.highlight is not None
    console.print(Padding(hit.highlight.rich(), (1, 0, 0, 3)))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("of the question")
    table.add_column("found")
    table.add_column("similarity", justify="right")
    for match in hit.highlight.matches:
        found = hit.document.title if match.in_title else hit.text
        where = " (title)" if match.in_title else ""
        table.add_row(
            Text(printable(query[slice(*match.query)])),
            Text(printable(found[slice(*match.document)]) + where),
            f"{match.similarity:.3f}",
        )
    console.print(table)


def print_stats(stats: Stats) -> None:
    """Show what an index holds."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    per_document = stats.n_tokens / max(1, stats.n_documents + stats.n_deleted)
    rows = {
        "folder": stats.folder,
        "documents": f"{stats.n_documents:,}, and {stats.n_deleted:,} deleted",
        "token embeddings": f"{stats.n_tokens:,} of {stats.dim} dimensions as {stats.dtype}, "
        f"{per_document:.0f} a document; pooled by {stats.pool_factor}; segments: {stats.n_segments}",
        "candidates": f"{stats.n_pooled:,} pooled vectors; {stats.n_unlisted:,} documents not listed"
        if stats.n_pooled
        else "none: every search is exact",
        "size": f"{stats.n_bytes / 1e6:,.1f} MB",
        "abstaining": "calibrated" if stats.is_calibrated else "not calibrated: index … --calibrate",
        "model": f"{stats.model} @{stats.fingerprint[:8]}",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, Text(printable(value)))
    Console(highlight=False).print(table)


def _figures(hit: Hit) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in hit.scores.items())
