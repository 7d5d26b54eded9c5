"""Negatives: what full-text search, a ColBERT, the same article or chance offer beside a question's answer.

    python -m training.mine --data DIR --method bm25 --method colbert --model DIR --out mined.jsonl

Reads a folder in BEIR layout; writes tuples {"query_id", "document_ids", "n_positives", "source"}: the
answers, then negatives drawn from the candidates by a seed. Answers and near-duplicates of answers are no
candidates. Started again, it goes on with the next query.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

from jacolbert_rag.datatypes import Document
from training.data import packed, read_json_lines, read_qrels, rows_by_id
from training.options import Config, Limit, StageName, TrainingError, console, run
from training.state import begin, claim, digest, hashed, hold, weights_digest

SHINGLE = 8  # characters
BLOCK = 512  # queries that are searched at once

METHODS = ("bm25", "colbert", "article", "random")
# Queries -> for each, document ids, best first.
Search = Callable[[Sequence[str]], list[list[str]]]


def main(
    data: Annotated[Path, typer.Option(help="folder in BEIR layout")],
    out: Annotated[Path, typer.Option(help="JSON lines to write")],
    method: Annotated[
        list[str],
        typer.Option(help="bm25, colbert, article or random: where candidates come from; may be repeated"),
    ],
    split: Annotated[str, typer.Option(help="which qrels")] = "train",
    model: Annotated[str | None, typer.Option(help="of colbert; the bundled one where not given")] = None,
    depth: Annotated[int, typer.Option(min=1, help="candidates of each method")] = 64,
    skip: Annotated[int, typer.Option(min=0, help="best candidates to pass over: unjudged answers")] = 0,
    n_negatives: Annotated[int, typer.Option(min=1, help="negatives of a tuple")] = 31,
    tuples: Annotated[int, typer.Option(min=1, help="tuples of a query, each drawn anew")] = 1,
    duplicate: Annotated[float, typer.Option(help="share of common text that makes a near-duplicate")] = 0.5,
    device: str | None = None,
    seed: int = 12345,
    limit: Limit = None,
    config: Config = None,
    stage: StageName = None,
) -> None:
    """Write tuples of an answer with hard negatives."""
    if unknown := set(method) - set(METHODS):
        raise TrainingError(f"There is no method {', '.join(unknown)}; expected {', '.join(METHODS)}.")
    work = out.with_name(out.name + ".work")
    with claim(work):
        recipe = {
            "split": split, "method": list(method), "model": model, "depth": depth, "skip": skip,
            "n_negatives": n_negatives, "tuples": tuples, "duplicate": duplicate, "seed": seed,
            "limit": limit,
        }  # fmt: skip
        if out.exists():
            hold(work, recipe, changeable=("data", "model_digest"))
            console.print(f"{out} is finished: nothing to do.", markup=False, soft_wrap=True)
            return
        files = [data / "corpus.jsonl", data / "queries.jsonl", data / "qrels" / f"{split}.tsv"]
        corpus, asked = rows_by_id(files[0]), rows_by_id(files[1])
        answers, left_out = answered(read_qrels(files[2]), asked, corpus)
        inputs = {
            "data": digest([packed(file) for file in files]),
            "model_digest": weights_digest(model or ""),
        }
        begin(work, recipe | inputs)
        ids = list(answers)[:limit]
        part = work / "part.jsonl"
        done = whole_lines(part)
        searches = [build(name, corpus, asked, answers, model, depth + skip, device, seed) for name in method]
        with part.open("a", encoding="utf-8") as file:
            starts = range(done - done % BLOCK, len(ids), BLOCK)
            for start in track(starts, "mining", console=console):
                block = ids[start : start + BLOCK]
                found = [search(block) for search in searches]
                for i, query_id in enumerate(block):
                    if start + i < done:
                        continue
                    candidates = [
                        each[i] if name == "article" else each[i][skip : skip + depth]
                        for name, each in zip(method, found, strict=True)
                    ]
                    rows = drawn(query_id, answers[query_id], candidates, corpus, n_negatives, tuples,
                                 duplicate, seed)  # fmt: skip
                    file.write(json.dumps(rows, ensure_ascii=False) + "\n")
                file.flush()
        counts = write_tuples(part, out, asked, n_negatives)
    for reason, n in sorted((left_out + counts).items()):
        console.print(f"{n:,} queries {reason}", markup=False)
    console.print(f"Tuples written to {out}.", markup=False, soft_wrap=True)


def answered(
    qrels: Mapping[str, Mapping[str, int]], asked: Mapping[str, Any], corpus: Mapping[str, Any]
) -> tuple[dict[str, list[str]], Counter[str]]:
    """Query id -> ids of its answers, in the order of the judgements; and why others were left out."""
    answers: dict[str, list[str]] = {}
    left_out: Counter[str] = Counter()
    for query_id, judged in qrels.items():
        positives = [id for id, score in judged.items() if score > 0 and id in corpus]
        if query_id not in asked:
            left_out["left out: no text of the query"] += 1
        elif not positives:
            left_out["left out: no positive in the corpus"] += 1
        else:
            answers[query_id] = positives
    if not answers:
        raise TrainingError("No query has a positive that is in the corpus. Are qrels and corpus of one set?")
    return answers, left_out


def whole_lines(path: Path) -> int:
    """Lines that are written to their end; what a kill left of another is cut off."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        file.truncate(end)
    return content[:end].count(b"\n")


def build(
    method: str,
    corpus: Mapping[str, Any],
    asked: Mapping[str, Any],
    answers: Mapping[str, Sequence[str]],
    model: str | None,
    k: int,
    device: str | None,
    seed: int,
) -> Search:
    """A search of one kind, from query ids to document ids, best first."""
    documents = [Document(id, row["text"], title=row.get("title") or "") for id, row in corpus.items()]
    if method == "bm25":
        from evals.full_text import BM25

        system = BM25(documents)
        return lambda ids: [list(system.search(asked[id]["text"], k)) for id in ids]
    if method == "article":
        return same_article(documents, answers)
    if method == "random":
        return by_chance(list(corpus), k, seed)
    from jacolbert_rag import JaColBERTRetriever

    retriever = JaColBERTRetriever.from_pretrained(model, device=device)
    retriever.add(documents, progress=True)

    def search(ids: Sequence[str]) -> list[list[str]]:
        hits = retriever.search_many([asked[id]["text"] for id in ids], k)
        return [[hit.id for hit in found] for found in hits]

    return search


def same_article(documents: Sequence[Document], answers: Mapping[str, Sequence[str]]) -> Search:
    """Other documents of the answers' titles; nothing where those have none."""
    of_title: dict[str, list[str]] = defaultdict(list)
    for document in documents:
        if document.title:
            of_title[document.title].append(document.id)
    title = {document.id: document.title for document in documents}
    return lambda ids: [
        [id for answer in answers[query_id] for id in of_title.get(title[answer] or "", [])]
        for query_id in ids
    ]


def by_chance(documents: Sequence[str], k: int, seed: int) -> Search:
    """Any k documents, others for each query. Nearly all are easy to tell from an answer."""

    def draw(query_id: str) -> list[str]:
        rows = np.random.default_rng((seed, hashed(query_id), k)).integers(len(documents), size=k)
        return list(dict.fromkeys(documents[row] for row in rows))

    return lambda ids: [draw(query_id) for query_id in ids]


def drawn(
    query_id: str,
    positives: Sequence[str],
    candidates: Sequence[Sequence[str]],
    corpus: Mapping[str, Any],
    n_negatives: int,
    n_tuples: int,
    duplicate: float,
    seed: int,
) -> dict[str, Any]:
    """Tuples of one query: its answers, then negatives drawn without repetition.

    Each method offers its share, and where one has too few the others fill in; what a method ranks first is
    as likely as what it ranks last.
    """
    known = [shingles(corpus[id]["text"]) for id in positives]
    out = set(positives)

    def is_negative(id: str) -> bool:
        if id in out:
            return False
        own = shingles(corpus[id]["text"])
        return all(overlap(own, answer) < duplicate for answer in known)

    offered = [[id for id in each if is_negative(id)] for each in candidates]
    rng = np.random.default_rng((seed, hashed(query_id)))
    rows = []
    for _ in range(n_tuples):
        queues = [[each[i] for i in rng.permutation(len(each))] for each in offered]
        negatives: dict[str, None] = {}
        while len(negatives) < n_negatives and any(queues):
            for queue in queues:
                while queue:
                    id = queue.pop()
                    if id not in negatives:
                        negatives[id] = None
                        break
        rows.append([*positives, *list(negatives)[:n_negatives]])
    return {"query_id": query_id, "n_positives": len(positives), "tuples": rows}


@lru_cache(maxsize=5_000)  # 140 MB where passages have 200 characters
def shingles(text: str) -> frozenset[str]:
    """Runs of 8 letters and digits, of the text in NFKC without case; a shorter text is one of its own."""
    letters = "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
    return frozenset(letters[i : i + SHINGLE] for i in range(max(1, len(letters) - SHINGLE + 1)))


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Share of the smaller that the other has too."""
    return len(a & b) / min(len(a), len(b))


def write_tuples(part: Path, out: Path, asked: Mapping[str, Any], n_negatives: int) -> Counter[str]:
    """Write the tuples of all queries, and count queries that have too few negatives."""
    counts: Counter[str] = Counter()
    new = out.with_name(f".{out.name}.new")
    with new.open("w", encoding="utf-8") as file:
        for found in read_json_lines(part):
            n_positives, query_id = found["n_positives"], found["query_id"]
            source = (asked[query_id].get("metadata") or {}).get("source", "")
            if len(found["tuples"][0]) - n_positives < n_negatives:
                counts[f"with fewer than {n_negatives} negatives"] += 1
            for ids in distinct(found["tuples"]):
                row = {"query_id": query_id, "document_ids": ids, "n_positives": n_positives}
                file.write(
                    json.dumps(row | ({"source": source} if source else {}), ensure_ascii=False) + "\n"
                )
    new.rename(out)
    return counts


def distinct(rows: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    """Tuples that are not of the same documents as one before."""
    seen: set[frozenset[str]] = set()
    for row in rows:
        if frozenset(row) not in seen:
            seen.add(frozenset(row))
            yield row


if __name__ == "__main__":
    run("mine", main)
