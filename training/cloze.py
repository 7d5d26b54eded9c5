"""Training questions made of plain text: a sentence, and what stands around it (the inverse cloze task).

    python -m training.cloze --text DIR --out cloze.jsonl --pairs 300000

In Lee, Chang and Toutanova (2019) a sentence is the query and the rest of its paragraph the document. Here
the document may be the next paragraph too, where it goes on about the same, and words that both have are
mostly taken out of the query: to a late-interaction model equal words come for free, and so it has to learn
which other words keep company, that who asks about たばこ is answered where 喫煙 is spoken of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import track

from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.sentences import sentences
from jacolbert_rag.encode.words import WordSegmenter
from training.data import read_json_lines
from training.options import Config, Limit, StageName, TrainingError, console, run
from training.pretrain import read_lines, read_shares, share_of, text_files
from training.state import begin, claim, hold

MIN_QUERY, MAX_QUERY = 12, 120  # characters of a sentence
MIN_DOCUMENT, MAX_DOCUMENT = 60, 400  # characters; the network reads some 250 tokens
MIN_LEFT = 4  # characters of content words that a query keeps
MIN_SHARED = 3  # content words of two letters or more that a paragraph shares with one that goes on with it
NEXT = 0.5  # of the documents are the paragraph that follows
WINDOW = 24  # characters, by which passages that are to be left out are known
KEPT, ALL_OUT = 0.3, 0.4  # of the queries stay whole; lose all common words; the others lose each with 1/2

_CONTENT = re.compile(r"[一-鿿㐀-䶿々ァ-ヺーA-Za-z0-9]")  # what particles and endings lack


def main(
    text: Annotated[Path, typer.Option(help="folder of text files, one paragraph a line, in their order")],
    out: Annotated[Path, typer.Option(help="JSON lines to write")],
    pairs: Annotated[int, typer.Option(min=1, help="pairs to draw, over all files")] = 300_000,
    weights: Annotated[str, typer.Option(help="share of each file to use, PREFIX=SHARE,…; 1 else")] = "",
    without: Annotated[
        list[Path] | None, typer.Option(help="BEIR folder whose passages are left out; may be repeated")
    ] = None,
    seed: int = 12345,
    limit: Limit = None,
    config: Config = None,
    stage: StageName = None,
) -> None:
    """Write pairs of a sentence with its surroundings."""
    work = out.with_name(out.name + ".work")
    with claim(work):
        n_pairs = pairs if limit is None else min(pairs, limit)
        recipe = {
            "text": str(text), "pairs": n_pairs, "weights": weights,
            "without": [str(folder) for folder in without or []], "seed": seed,
        }  # fmt: skip
        if out.exists():
            hold(work, recipe)
            console.print(f"{out} is finished: nothing to do.", markup=False, soft_wrap=True)
            return
        shares, files = read_shares(weights), text_files(text)
        kept_out = {window for folder in without or [] for window in windows_of_corpus(folder)}
        begin(work, recipe)
        size = {path: path.stat().st_size * share_of(path, shares) for path in files}
        new = out.with_name(f".{out.name}.new")
        n = 0
        with new.open("w", encoding="utf-8") as file:
            for path in track(files, "cloze", console=console):
                wanted = round(n_pairs * size[path] / sum(size.values()))
                source = path.name.split(".")[0]
                lines = [line for line in read_lines(path) if not overlaps(line, kept_out)]
                for query, document in drawn(lines, wanted, (seed, n)):
                    row = {"query": query, "passages": [document], "source": source}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    n += 1
        if n == 0:
            raise TrainingError(f"{text} has no paragraph of {MIN_DOCUMENT} characters or more.")
        new.rename(out)
        console.print(f"{n:,} pairs written to {out}.")


def windows_of_corpus(folder: Path) -> Iterator[str]:
    """All windows of WINDOW characters of a corpus's passages."""
    for row in read_json_lines(folder / "corpus.jsonl"):
        text = clean(row["text"])
        yield from (text[i : i + WINDOW] for i in range(len(text) - WINDOW + 1))


def overlaps(paragraph: str, windows: Container[str]) -> bool:
    """Whether a paragraph has some 1.5 windows, or more, in common with what they were taken of."""
    text = clean(paragraph)
    return any(text[i : i + WINDOW] in windows for i in range(0, len(text) - WINDOW + 1, WINDOW // 2))


def drawn(paragraphs: Sequence[str], n: int, seed: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """At most n pairs of a query and a document, each of another paragraph."""
    rng = np.random.default_rng(seed)
    segmenter = WordSegmenter()
    left = n
    for i in rng.permutation(len(paragraphs)):
        if left == 0:
            return
        paragraph, following = clean(paragraphs[i]), clean("".join(paragraphs[i + 1 : i + 2]))
        if len(contents(segmenter.words(paragraph)) & contents(segmenter.words(following))) < MIN_SHARED:
            following = ""
        pair = cloze(paragraph, following, rng)
        if pair is None:
            continue
        query, document = pair
        kept = thinned(segmenter.words(query), set(segmenter.words(document)), rng)
        if kept is not None:
            left -= 1
            yield kept, document


def contents(words: Sequence[str]) -> set[str]:
    """Content words of two letters or more."""
    return {word for word in words if len(word) > 1 and _CONTENT.search(word)}


def cloze(paragraph: str, following: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """A sentence, and the rest of its paragraph or the paragraph that follows; None where they are short."""
    spans = [span for span in sentences(paragraph) if MIN_QUERY <= span[1] - span[0] <= MAX_QUERY]
    if not spans:
        return None
    start, stop = spans[rng.integers(len(spans))]
    rest = paragraph[:start] + paragraph[stop:]
    others = [text for text in (rest, following) if len(text) >= MIN_DOCUMENT]
    if not others:
        return None
    document = others[-1] if rng.random() < NEXT else others[0]
    return paragraph[start:stop].strip(), document[:MAX_DOCUMENT]


def thinned(words: Sequence[str], common: set[str], rng: np.random.Generator) -> str | None:
    """A query without some or all content words that its document has; None where too little is left."""
    kind = rng.random()
    if kind < KEPT:
        return "".join(words)
    share = 1.0 if kind < KEPT + ALL_OUT else 0.5
    kept = [w for w in words if w not in common or not _CONTENT.search(w) or rng.random() >= share]
    left = sum(len(word) for word in kept if _CONTENT.search(word) and word not in common)
    return "".join(kept) if left >= MIN_LEFT else None


if __name__ == "__main__":
    run("cloze", main)
