"""Token embeddings of real passages and questions by the bundled model, in files that every system is given.

    tokens.float16    (n_tokens, dim) little-endian, one passage behind the other
    offsets.npy       (n_passages + 1,) int64
    queries.npy       (n_queries, 32 or more, dim) float32 as one (n, dim) matrix, with query_offsets.npy
    corpus.json       ids of passages and questions, relevant passages of each question, digests

The first passages are JaQuAD's, shuffled; behind them come paragraphs of other texts.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.texts import SEED, read_corpus, shuffled
from jacolbert_rag.datatypes import Document, IntArray, TokenEmbeddings

DATASET = "jaquad"
SPLIT = "dev"
SHORTEST = 150  # characters of a paragraph that stands in for a passage
LEFT_OUT = ("jaquad_contexts",)  # the passages themselves
WRITTEN = 2_048  # passages embedded at once
FINISHED = "corpus.json"


@dataclass(frozen=True)
class Embedded:
    """A folder of embeddings, opened.

    Attributes:
        folder: of the files.
        flat: (n_tokens, dim) float16 memory map.
        offsets: (n_passages + 1,) int64.
        queries: of the questions.
        about: what corpus.json holds.
    """

    folder: Path
    flat: npt.NDArray[np.float16]
    offsets: IntArray
    queries: TokenEmbeddings
    about: dict[str, Any]

    def passages(self, start: int, stop: int) -> TokenEmbeddings:
        """Embeddings of a run of passages, float32, in memory."""
        first, last = self.offsets[start], self.offsets[stop]
        flat = np.asarray(self.flat[first:last], dtype=np.float32)
        return TokenEmbeddings(flat, self.offsets[start : stop + 1] - first)

    def qrels(self, n: int) -> dict[str, dict[str, int]]:
        """Question -> relevant passages among the first n; questions without one are left out."""
        there = set(self.about["ids"][:n])
        kept = {
            q: {d: int(r) for d, r in relevant.items() if d in there}
            for q, relevant in self.about["qrels"].items()
        }
        return {q: relevant for q, relevant in kept.items() if relevant}


def make(data: Path, folder: Path, n: int, say: Any) -> Embedded:
    """Embed n passages and the questions, unless the folder has them.

    Args:
        data: folder of the corpora; see README of the benchmarks.
        folder: where the files go.
        n: passages.
        say: takes a line of progress.
    """
    from jacolbert_rag.encode import checkpoint
    from jacolbert_rag.encode.encoder import Encoder
    from jacolbert_rag.errors import TruncationWarning

    loaded = checkpoint.load()
    if (folder / FINISHED).is_file():
        found = load(folder)
        if found.about["n"] >= n and found.about["fingerprint"] == loaded.fingerprint:
            return found
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FINISHED).unlink(missing_ok=True)
    warnings.simplefilter("ignore", TruncationWarning)  # long passages are cut for every system alike
    encoder = Encoder(loaded)
    ids, texts = _passages(data, n)
    digest = hashlib.sha256()
    lengths: list[int] = []
    with (folder / "tokens.float16").open("wb") as file:
        for start in range(0, len(texts), WRITTEN):
            embedded = encoder.documents(texts[start : start + WRITTEN])
            written = embedded.flat.astype("<f2").tobytes()
            file.write(written)
            digest.update(written)
            lengths += embedded.lengths.tolist()
            say(f"{len(lengths):,} of {len(texts):,} passages embedded, {sum(lengths):,} tokens")
    np.save(folder / "offsets.npy", np.cumsum([0, *lengths]))
    query_ids, questions, qrels = _questions(data)
    queries = encoder.queries(questions)
    np.save(folder / "queries.npy", queries.flat.astype(np.float32))
    np.save(folder / "query_offsets.npy", queries.offsets)
    about = {
        "n": len(texts),
        "dim": encoder.checkpoint.config.dim,
        "digest": digest.hexdigest()[:16],
        "fingerprint": loaded.fingerprint,
        "ids": ids,
        "query_ids": query_ids,
        "qrels": qrels,
    }
    (folder / FINISHED).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
    return load(folder)


def load(folder: Path) -> Embedded:
    """What `make` wrote."""
    about = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
    flat = np.memmap(folder / "tokens.float16", dtype="<f2", mode="r").reshape(-1, about["dim"])
    queries = TokenEmbeddings(np.load(folder / "queries.npy"), np.load(folder / "query_offsets.npy"))
    return Embedded(folder, flat, np.load(folder / "offsets.npy"), queries, about)


def _passages(data: Path, n: int) -> tuple[list[str], list[str]]:
    """Ids and texts."""
    documents = shuffled(read_corpus(data / DATASET / "corpus.jsonl.gz"))[:n]
    ids, texts = [d.id for d in documents], [d.passage for d in documents]
    if len(ids) < n:
        for i, text in enumerate(_paragraphs(data, n - len(ids))):
            ids.append(f"text-{i}")
            texts.append(text)
    return ids, texts


def _paragraphs(data: Path, n: int) -> Iterator[str]:
    """N long paragraphs of all other texts, shuffled."""
    found = []
    for path in sorted((data / "text").glob("*.txt.xz")):
        if path.name.split(".")[0] not in LEFT_OUT:
            with lzma.open(path, "rt", encoding="utf-8") as file:
                found += [line.strip() for line in file if len(line) > SHORTEST]
    for i in np.random.default_rng(SEED).permutation(len(found))[:n].tolist():
        yield found[i]


def _questions(data: Path) -> tuple[list[str], list[str], dict[str, dict[str, int]]]:
    """Ids, texts, and relevant passages of the questions of one split."""
    qrels: dict[str, dict[str, int]] = {}
    lines = (data / DATASET / "qrels" / f"{SPLIT}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    for query, passage, score in (line.split("\t") for line in lines):
        qrels.setdefault(query, {})[passage] = int(score)
    asked = [d for d in read_corpus(data / DATASET / "queries.jsonl.gz") if d.id in qrels]
    chosen: list[Document] = shuffled(asked)
    return [d.id for d in chosen], [d.text for d in chosen], {d.id: qrels[d.id] for d in chosen}
