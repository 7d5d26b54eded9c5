"""The Japanese passages and questions that are encoded."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.settings import ROOT
from jacolbert_rag.datatypes import Document

SHARED_DATA = ROOT.parent / "shared" / "data"
DEMO = ROOT / "examples" / "corpus"
CORPORA = ("niilc", "wikinews", "jsquad", "jaquad")
QUESTIONS = "niilc"
SEED = 0

Item = TypeVar("Item")


@dataclass(frozen=True)
class Texts:
    """Texts with a name and a digest for signatures."""

    name: str
    texts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """16 hex digits over the texts, in order."""
        return hashlib.sha256(json.dumps(self.texts).encode("ascii")).hexdigest()[:16]

    @property
    def signed(self) -> dict[str, Any]:
        """Name, number and digest, for a signature."""
        return {"name": self.name, "n": len(self.texts), "digest": self.digest}


def passages(data: Path, n: int) -> Texts:
    """The first n passages of a fixed order: shuffled corpora, one passage of each in turn.

    A shorter run so reads the first passages of a longer one, and all blocks have the same mixture.

    Args:
        data: folder of the corpora in BEIR layout; where it is absent, the demo corpus is read.
        n: passages; beyond what there is, they are repeated, and the name says so.
    """
    found = [name for name in CORPORA if (data / name / "corpus.jsonl.gz").is_file()]
    if found:
        corpora = [shuffled(_read(data / name / "corpus.jsonl.gz")) for name in found]
        return _cut("+".join(found), _in_turn(corpora), n)
    return _cut("demo corpus", shuffled(_read(DEMO / "corpus.jsonl")), n)


def questions(data: Path, n: int) -> Texts:
    """The first n questions of a fixed order, of people's; the demo's where the data is absent."""
    path = data / QUESTIONS / "queries.jsonl.gz"
    if path.is_file():
        return _cut(f"{QUESTIONS} questions", shuffled(_read(path)), n)
    return _cut("demo questions", shuffled(_read(DEMO / "queries.jsonl")), n)


def read_corpus(path: Path) -> list[Document]:
    """Documents of a file in BEIR layout, gzipped or not."""
    raw = path.read_bytes()
    lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    return [Document(e["_id"], e["text"], title=e.get("title", "")) for e in entries]


def shuffled(items: list[Item]) -> list[Item]:
    """The items in a fixed random order."""
    return [items[i] for i in np.random.default_rng(SEED).permutation(len(items)).tolist()]


def _read(path: Path) -> list[str]:
    """What the encoder reads of each line: title, a space, text."""
    return [document.passage for document in read_corpus(path)]


def _in_turn(corpora: list[list[str]]) -> list[str]:
    """One text of each corpus in turn, until all are used up."""

    def rounds() -> Iterator[str]:
        for i in range(max(map(len, corpora))):
            yield from (corpus[i] for corpus in corpora if i < len(corpus))

    return list(rounds())


def _cut(name: str, texts: list[str], n: int) -> Texts:
    if n > len(texts):
        name = f"{name} ({len(texts)} repeated)"
    return Texts(name, tuple(texts[i % len(texts)] for i in range(n)))
