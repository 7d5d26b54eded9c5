"""What filters, full-text search, hybrid search and highlights take, beside plain search of the same index.

python -m benchmarks.search
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import machine
from benchmarks.embedded import DATASET, SPLIT
from benchmarks.index import K, say
from benchmarks.settings import TRIES, WORK
from benchmarks.spread import percentile, ratios, spread
from benchmarks.texts import SHARED_DATA, read_corpus, shuffled
from benchmarks.turns import rotated
from jacolbert_rag.config import SearchMode
from jacolbert_rag.datatypes import Document, Hit
from jacolbert_rag.retriever import JaColBERTRetriever

N_QUESTIONS, N_BLOCKS, N_WARM_UP = 300, 10, 20
MODULES = ("config.py", "datatypes.py", "retriever.py", "encode/*.py", "index/*.py")
PLAIN = "jacolbert"
SHARE = "share"  # metadata: from 0 to 99, as often each
NUMBER = "number"  # metadata: another one for each passage
NOTE = (
    "one question at a time, 10 hits, from its text to documents, kinds taking turns; beside: p50 of it "
    "by that of the first line, block by block, median and quartiles; a new filter is one that was not asked "
    "before and lets half of the passages through; highlights: what they add to the same search"
)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Record = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A way to ask.

    Attributes:
        name: of its line.
        mode: of the search.
        filter: of the question of this number; None for none.
        highlight: whether the hits are highlighted.
    """

    name: str
    mode: SearchMode = "jacolbert"
    filter: Callable[[int], Record] | None = None
    highlight: bool = False


KINDS = (
    Kind(PLAIN),
    Kind("jacolbert, filter of 1 %", filter=lambda i: {SHARE: 0}),
    Kind("jacolbert, filter of 50 %", filter=lambda i: {SHARE: {"$lt": 50}}),
    Kind("jacolbert, a new filter", filter=lambda i: {NUMBER: {"$lt": 5_548 + i}}),
    Kind("bm25", mode="bm25"),
    Kind("hybrid", mode="hybrid"),
    Kind("hybrid, filter of 1 %", mode="hybrid", filter=lambda i: {SHARE: 0}),
    Kind("hybrid, filter of 50 %", mode="hybrid", filter=lambda i: {SHARE: {"$lt": 50}}),
    Kind("jacolbert with highlights", highlight=True),
    Kind("hybrid with highlights", mode="hybrid", highlight=True),
)


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="Folder of the corpora.", metavar="FOLDER")] = SHARED_DATA,
    work: Annotated[Path, typer.Option(help="Where the index lies.", metavar="FOLDER")] = WORK / "search",
    results: Annotated[
        Path, typer.Option(help="Where search.json goes; replaced.", metavar="FOLDER")
    ] = TRIES,
    passages: Annotated[int | None, typer.Option(min=100, help="The first N only.", metavar="N")] = None,
) -> None:
    """Measure each kind of search."""
    from benchmarks import tables

    if not (data / DATASET).is_dir():
        say(f"search: not run, there is no {DATASET} in {data}")
        return
    documents = numbered(shuffled(read_corpus(data / DATASET / "corpus.jsonl.gz"))[:passages])
    found = measure(documents, questions(data)[: N_QUESTIONS + N_WARM_UP], work)
    tables.write(results / "search.json", found)
    tables.show({"search": found})


def numbered(documents: Sequence[Document]) -> list[Document]:
    """The documents with metadata to filter by."""
    return [
        Document(each.id, each.text, {NUMBER: i, SHARE: i % 100}, title=each.title)
        for i, each in enumerate(documents)
    ]


def questions(data: Path) -> list[str]:
    """Questions of one split, in a fixed random order."""
    lines = (data / DATASET / "qrels" / f"{SPLIT}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    judged = {line.split("\t")[0] for line in lines}
    asked = read_corpus(data / DATASET / "queries.jsonl.gz")
    return shuffled([each.text for each in asked if each.id in judged])


def measure(documents: Sequence[Document], asked: Sequence[str], work: Path) -> Record:
    """All kinds, in turns.

    Args:
        documents: the corpus.
        asked: questions; the last few warm up.
        work: the index is kept there, and used again by a run of the same texts and code.
    """
    texts = json.dumps([[each.id, each.passage, each.metadata] for each in documents])
    digest = hashlib.sha256(texts.encode("ascii")).hexdigest()[:16]
    library = machine.library(MODULES)
    retriever = _index(documents, work / f"{digest}-{library['digest']}")
    timed, warm_up = asked[:-N_WARM_UP], asked[-N_WARM_UP:]
    for kind in KINDS:
        for i, question in enumerate(warm_up):
            _search(retriever, kind, len(timed) + i, question)
    edges = [len(timed) * i // N_BLOCKS for i in range(N_BLOCKS + 1)]
    blocks: list[dict[str, list[float]]] = []
    for block in range(N_BLOCKS):
        numbers = range(edges[block], edges[block + 1])
        blocks.append(
            {
                kind.name: [_ms(retriever, kind, i, timed[i]) for i in numbers]
                for kind in rotated(list(KINDS), block)
            }
        )
        say(f"block {block + 1} of {N_BLOCKS}: {percentile(blocks[-1][PLAIN], 50):.1f} ms")
    found = {
        "signature": {
            "workload": "search",
            "library": library,
            "texts": {"name": DATASET, "n": len(documents), "digest": digest},
            "model": f"bundled@{retriever.encoder.checkpoint.fingerprint[:8]}",
            "threads": machine.n_cores(),
            "cpu": machine.cpu(),
            "versions": {},
        },
        "note": NOTE,
        "n_questions": len(timed),
        "rows": [_row(blocks, kind.name) for kind in KINDS],
    }
    retriever.close()
    return found


def _index(documents: Sequence[Document], folder: Path) -> JaColBERTRetriever:
    """The documents' index: the one in the folder, or a new one."""
    if (folder / "manifest.json").is_file():
        return JaColBERTRetriever.open(folder)
    made = JaColBERTRetriever.from_pretrained()
    made.add(documents, progress=True)
    made.save(folder)
    return made


def _search(retriever: JaColBERTRetriever, kind: Kind, i: int, question: str) -> list[Hit]:
    given = kind.filter(i) if kind.filter is not None else None
    return retriever.search(question, K, mode=kind.mode, filter=given, highlight=kind.highlight)


def _ms(retriever: JaColBERTRetriever, kind: Kind, i: int, question: str) -> float:
    start = time.perf_counter()
    _search(retriever, kind, i, question)
    return 1_000 * (time.perf_counter() - start)


def _row(blocks: Sequence[dict[str, list[float]]], name: str) -> Record:
    p50 = [percentile(block[name], 50) for block in blocks]
    ms = [each for block in blocks for each in block[name]]
    row: Record = {
        "kind": name,
        "p50_ms": percentile(ms, 50),
        "p95_ms": percentile(ms, 95),
        "beside": asdict(spread(ratios(p50, [percentile(block[PLAIN], 50) for block in blocks]))),
    }
    plain = name.removesuffix(" with highlights")
    if plain != name:
        added = [all_ - percentile(block[plain], 50) for all_, block in zip(p50, blocks, strict=True)]
        row["highlights_ms"] = asdict(spread(added))
    return row


if __name__ == "__main__":
    app()
