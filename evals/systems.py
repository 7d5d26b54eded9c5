"""The systems that can be measured, by name: built one after another, and timed alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evals.full_text import BIGRAM_NAME, BM25, BM25_NAME, BigramBM25
from evals.jacolbert import (
    CANDIDATES_NAME,
    EXACT_NAME,
    HYBRID_NAME,
    RERANK_NAME,
    JaColBERT,
    build_engine,
)
from evals.peers import CROSS_ENCODER_PREFIX, DENSE_PREFIX, CrossEncoder, Dense
from evals.protocol import Among, Prompts, System
from jacolbert_rag.config import EncoderOverrides
from jacolbert_rag.datatypes import Document
from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.progress import Progress

if TYPE_CHECKING:
    from jacolbert_rag import JaColBERTRetriever

KNOWN_SYSTEMS = (BM25_NAME, BIGRAM_NAME, CANDIDATES_NAME, EXACT_NAME, HYBRID_NAME, RERANK_NAME)
RUN_PREFIX = "run:"  # a file of what another system found: nothing is searched

LATENCY_QUERIES = 50
WARM_UP_QUERIES = 3


def check_names(names: Sequence[str]) -> None:
    """Refuse a system that is not there, or is named twice.

    Raises:
        InvalidInputError: with the names that are known.
    """
    prefixes = {DENSE_PREFIX: "MODEL", CROSS_ENCODER_PREFIX: "MODEL", RUN_PREFIX: "FILE"}
    for i, name in enumerate(names):
        says_which = name.startswith(tuple(prefixes)) and name not in prefixes
        if name not in KNOWN_SYSTEMS and not says_which:
            known = ", ".join((*KNOWN_SYSTEMS, *(prefix + what for prefix, what in prefixes.items())))
            raise InvalidInputError(f"there is no system {name!r}; known are {known}.")
        if name in names[:i]:
            raise InvalidInputError(f"the system {name!r} is named twice. Name it once.")


def build(
    names: Sequence[str],
    documents: Sequence[Document],
    *,
    model: str | None,
    encoder: EncoderOverrides | None = None,
    prompts: Prompts | None = None,
    index: Path | None = None,
    progress: Progress = False,
) -> Iterator[System]:
    """Each named system in turn, ready to search; those of JaColBERT share one index.

    Args:
        names: see `check_names`; run files are none of these.
        documents: the corpus, of distinct ids.
        model: of JaColBERT: a folder or a hub id; None is the bundled model.
        encoder: settings of JaColBERT in place of the model's.
        prompts: of dense models, in place of their own.
        index: folder of an index of these documents by this model, opened where it is there, else made; None
            is a temporary one.
        progress: see `JaColBERTRetriever.add`.

    Raises:
        CheckpointError: the model cannot be read.
        InvalidInputError: another model cannot be loaded.
        OptionalDependencyError: a package of an extra is not installed.
    """
    check_names(names)
    engine: JaColBERTRetriever | None = None
    bm25: BM25 | None = None
    try:
        for name in names:
            if bm25 is None and (name in (BM25_NAME, RERANK_NAME) or name.startswith(CROSS_ENCODER_PREFIX)):
                bm25 = BM25(documents)
            if name == BM25_NAME:
                assert bm25 is not None
                yield bm25
            elif name == BIGRAM_NAME:
                yield BigramBM25(documents)
            elif name.startswith(DENSE_PREFIX):
                yield Dense(documents, name.removeprefix(DENSE_PREFIX), prompts=prompts)
            elif name.startswith(CROSS_ENCODER_PREFIX):
                assert bm25 is not None
                yield CrossEncoder(documents, name.removeprefix(CROSS_ENCODER_PREFIX), first=bm25)
            else:
                if engine is None:
                    pooled = index is not None or CANDIDATES_NAME in names or HYBRID_NAME in names
                    engine = build_engine(
                        documents,
                        model=model,
                        encoder=encoder,
                        candidates=pooled,
                        index=index,
                        progress=progress,
                    )
                yield JaColBERT(engine, name, first=bm25)
    finally:
        if engine is not None:
            engine.close()


def latency_ms(
    system: System,
    queries: Sequence[str],
    *,
    k: int,
    among: Sequence[Among] | None = None,
) -> dict[str, float]:
    """p50 and p95 in milliseconds of single calls, one query each, after a few that are not counted.

    Args:
        system: is warm afterwards; the caller's own batch search warms it further.
        queries: up to 50 are taken, spread evenly.
        k: hits asked for: as many as where quality is measured, since candidates grow with it.
        among: see `System.search_many`.
    """
    rows = np.unique(
        np.linspace(0, len(queries) - 1, min(LATENCY_QUERIES, len(queries))).round().astype(np.int64)
    )
    # No third argument where there are no candidates.
    asked = [(queries[row], k) if among is None else (queries[row], k, among[row]) for row in rows]
    for call in asked[:WARM_UP_QUERIES]:
        system.search(*call)
    times = []
    for call in asked:
        start = time.perf_counter()
        system.search(*call)
        times.append(1_000 * (time.perf_counter() - start))
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}
