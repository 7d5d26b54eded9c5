"""A dictionary that an index must agree with, and the operations that change both. For crash, soak and random
tests.

Embeddings are made from a document's id and version, so that whoever knows those knows the document.
"""

from __future__ import annotations

import math
import random
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jacolbert_rag import (
    CandidateConfig,
    Document,
    IndexSettings,
    PoolingConfig,
    SearchConfig,
    StoreConfig,
    TokenEmbeddings,
)
from jacolbert_rag.datatypes import FloatArray, offsets_of
from jacolbert_rag.encode.terms import TermMaker
from jacolbert_rag.index import database, layout
from jacolbert_rag.index.filters import Condition
from jacolbert_rag.index.index import Index
from jacolbert_rag.index.snapshot import best
from jacolbert_rag.index.view import View

DIM = 16
N_IDS = 120
KINDS = ("exact", "candidates", "words", "filtered")
WORDS = ("東京", "大阪", "湖", "サーバー", "ＡＢＣ－１２３", "鉄道", "図書館", "祭り", "憲法", "量子")
Contents = dict[str, int]  # id -> version


@dataclass(frozen=True)
class Operation:
    """What is done to an index: "add", "delete", "compact", "candidates" or "save"."""

    kind: str
    documents: tuple[tuple[str, int], ...] = ()  # ids and versions
    ids: tuple[str, ...] = ()


def settings(dtype: str = "float32") -> IndexSettings:
    """Candidates and codebooks from the first few documents on."""
    return IndexSettings(
        pooling=PoolingConfig(),
        store=StoreConfig(dtype=dtype, n_centroids=16, codebook_tokens=200),
        candidates=CandidateConfig(
            tokens_per_pooled=4, samples_per_pooled=4, n_nearest=8, ef_search=32, n_candidates=20
        ),
        search=SearchConfig(exact_below=15),
    )


def create(folder: Path, dtype: str = "float32", *, durable: bool = True) -> Index:
    """An empty index of these settings."""
    made: dict[str, Any] = dict.fromkeys(("model", "fingerprint", "encoder"))
    return Index.create(folder, {**made, "dim": DIM, **settings(dtype).to_json()}, durable=durable)


@lru_cache(maxsize=100_000)
def tokens(id: str, version: int) -> FloatArray:
    """(3 to 12, DIM) float32 rows of unit length."""
    rng = np.random.default_rng(zlib.crc32(f"{id}/{version}".encode()))
    topics = np.random.default_rng(5).standard_normal((40, DIM))
    n = int(rng.integers(3, 13))
    flat = topics[rng.integers(0, len(topics), n)] + 0.4 * rng.standard_normal((n, DIM))
    return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)


def document(id: str, version: int) -> Document:
    """The document of this id and version."""
    rng = random.Random(f"{id}/{version}")
    words = "、".join(rng.choices(WORDS, k=rng.randint(1, 6)))
    return Document(id, f"{id}の第{version}版。{words}。", {"版": version}, title=f"題{id}")


@lru_cache(maxsize=100_000)
def terms(id: str, version: int) -> Counter[str]:
    """How often each term occurs in a document."""
    return Counter(TermMaker().terms(document(id, version).passage))


@dataclass(frozen=True)
class Answer:
    """What a search of some kind found.

    Attributes:
        kind: one of `KINDS`.
        seed: of what was asked.
        found: ids and scores, best first.
    """

    kind: str
    seed: int
    found: list[tuple[str, float]]


def ask(view: View, config: IndexSettings, seed: int, kind: str, k: int = 10) -> Answer:
    """One search of a state."""
    snapshot, asked = view.snapshot, query(seed)
    whole = TokenEmbeddings(asked, np.array([0, len(asked)], dtype=np.int64))
    k = min(k, snapshot.n_live)
    if kind == "candidates" and snapshot.pooled is None:
        kind = "exact"
    rows, scores = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    if kind == "words":
        bm25 = view.lexicon().bm25(asked_words(seed), k1=config.lexical.k1, b=config.lexical.b)
        rows, scores = best(np.flatnonzero(bm25), bm25[bm25 != 0], k)
    elif kind == "filtered" and k:
        allowed = view.allowed(Condition("版", "<", limit(seed)))
        k = min(k, int(allowed.sum()))
        if k and seed % 3 and snapshot.pooled is not None:
            rows, scores = snapshot.search_candidates(asked, k, config.candidates, allowed)
        elif k:
            rows, scores = snapshot.search_exact(whole, k, allowed)[0]
    elif kind == "candidates" and k:
        rows, scores = snapshot.search_candidates(asked, k, config.candidates)
    elif k:
        rows, scores = snapshot.search_exact(whole, k)[0]
    found = [(each.id, float(s)) for each, s in zip(view.documents(rows), scores, strict=True)]
    return Answer(kind, seed, found)


@lru_cache(maxsize=10_000)
def asked_words(seed: int) -> tuple[str, ...]:
    """Terms of a question."""
    rng = random.Random(seed)
    return tuple(TermMaker().terms("の".join(rng.choices(WORDS, k=rng.randint(1, 3)))))


def limit(seed: int) -> int:
    """Versions below it may be found: none, few of them or nearly all."""
    return random.Random(seed).choice((0, 10_000, 300_000, 900_000))


def bm25(holds: Mapping[str, int], words: Sequence[str]) -> dict[str, float]:
    """Scores of the documents that share a word, by nothing of the library's but its words and constants."""
    config = settings().lexical
    lengths = {id: terms(id, version).total() for id, version in holds.items()}
    mean = sum(lengths.values()) / max(len(lengths), 1)
    scores: Counter[str] = Counter()
    for word in words:
        having = {id: terms(id, version)[word] for id, version in holds.items() if word in terms(id, version)}
        idf = math.log(1 + (len(holds) - len(having) + 0.5) / (len(having) + 0.5))
        for id, count in having.items():
            norm = config.k1 * (1 - config.b + config.b * lengths[id] / mean)
            scores[id] += idf * count / (count + norm)  # type: ignore[assignment]
    return dict(scores)


def check_answer(answer: Answer, holds: Mapping[str, int], k: int = 10) -> None:
    """Whether an answer is right for what an index held; stored as float32.

    Raises:
        AssertionError: it is not.
    """
    if answer.kind == "words":
        expected = bm25(holds, asked_words(answer.seed))
        assert len(answer.found) == min(k, len(expected)), (len(answer.found), len(expected))
        for id, score in answer.found:
            assert abs(expected[id] - score) < 1e-4, (id, score, expected.get(id))
        top = sorted(expected.values(), reverse=True)[:k]
        assert np.allclose([score for _, score in answer.found], top, atol=1e-4)
        return
    if answer.kind == "filtered":
        holds = {id: version for id, version in holds.items() if version < limit(answer.seed)}
    exact = answer.kind == "exact" or (answer.kind == "filtered" and answer.seed % 3 == 0)
    check_search(answer.found, holds, query(answer.seed), k, exact=exact)


def embeddings(documents: Sequence[tuple[str, int]]) -> TokenEmbeddings:
    """Token embeddings of documents."""
    parts = [tokens(*each) for each in documents]
    return TokenEmbeddings(
        np.concatenate([np.empty((0, DIM), np.float32), *parts]), offsets_of([len(part) for part in parts])
    )


def change_manifest(folder: Path, **values: Any) -> None:
    """Have an index say that it was made otherwise."""
    with closing(sqlite3.connect(folder / layout.DATABASE_FILE)) as sql:
        manifest = database.read_state(sql)["manifest"] | values
        manifest["checksum"] = layout.checksum(manifest)
        database.write_state(sql, manifest=manifest)
        sql.commit()
    layout.write_manifest(folder, manifest, durable=False)


def operations(seed: int, *, heavy: bool = True) -> Iterator[Operation]:
    """Random operations without end; ids come from a small set, so that many are met again.

    Args:
        seed: of all of them.
        heavy: whether compacting, pooling anew and saving are among them.
    """
    rng = random.Random(seed)
    kinds = ["add"] * 10 + ["delete"] * 4 + (["compact", "candidates", "save"] if heavy else [])
    while True:
        kind = rng.choice(kinds)
        ids = rng.sample(range(N_IDS), rng.randint(1, 8))
        names = tuple(f"文書{i}" for i in ids)
        if kind == "add":
            yield Operation(kind, tuple((name, rng.randrange(10**6)) for name in names))
        else:
            yield Operation(kind, ids=names if kind == "delete" else ())


def applied(contents: Contents, operation: Operation) -> Contents:
    """What an index holds after an operation."""
    changed = {**contents, **dict(operation.documents)}
    return {id: version for id, version in changed.items() if id not in operation.ids}


def apply(index: Index, operation: Operation, copy: Path | None = None) -> None:
    """Do an operation."""
    if operation.kind == "add":
        index.append([document(*each) for each in operation.documents], embeddings(operation.documents))
        index.update_candidates()
    elif operation.kind == "delete":
        index.delete(operation.ids)
    elif operation.kind == "compact":
        index.compact()
    elif operation.kind == "candidates":
        index.update_candidates(anew=True)
    elif copy is not None:
        index.copy_to(copy)


def contents(index: Index) -> Contents:
    """Ids and versions of what an index holds.

    Raises:
        AssertionError: a document is not what was stored.
    """
    with index.reading() as view:
        found = view.documents(np.flatnonzero(view.snapshot.live))
        assert len(found) == view.snapshot.n_live
    versions = {each.id: each.metadata["版"] for each in found}
    assert found == [document(id, version) for id, version in versions.items()]
    return versions


def ranking(holds: Mapping[str, int], query: FloatArray) -> list[tuple[str, float]]:
    """All documents and their MaxSim, best first, by nothing of the library's."""
    scores = {id: float((query @ tokens(id, version).T).max(axis=1).sum()) for id, version in holds.items()}
    return sorted(scores.items(), key=lambda item: -item[1])


def query(seed: int) -> FloatArray:
    """A query that is much like a document."""
    return tokens(f"問い{seed}", seed)


def check_search(
    found: Sequence[tuple[str, float]], holds: Mapping[str, int], asked: FloatArray, k: int, *, exact: bool
) -> None:
    """Whether hits are right for what an index held; stored as float32.

    Raises:
        AssertionError: they are not.
    """
    expected = ranking(holds, asked)
    scores = dict(expected)
    assert len(found) == min(k, len(holds)), (len(found), len(holds))
    assert len({id for id, _ in found}) == len(found)
    for id, score in found:
        assert abs(scores[id] - score) < 1e-4, (id, score, scores[id])
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    if exact:
        best = [score for _, score in expected[: len(found)]]
        assert np.allclose([score for _, score in found], best, atol=1e-4)
