"""JaColBERT in its ways: by candidates, exact, hybrid, and as a reranker; all share one index."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evals.full_text import BM25
from evals.protocol import RERANKED, Among, Found, one_by_one
from jacolbert_rag.config import EncoderOverrides, SearchConfig, SearchMode
from jacolbert_rag.datatypes import Document
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.index.filters import Ids
from jacolbert_rag.progress import Progress

if TYPE_CHECKING:
    from jacolbert_rag import JaColBERTRetriever

CANDIDATES_NAME, EXACT_NAME, HYBRID_NAME, RERANK_NAME = "jacolbert", "jacolbert-exact", "hybrid", "rerank"
OF_ENGINE = (CANDIDATES_NAME, EXACT_NAME, HYBRID_NAME, RERANK_NAME)


class JaColBERT:
    """An index of the library, searched in one of its ways."""

    def __init__(self, engine: JaColBERTRetriever, name: str, *, first: BM25 | None = None) -> None:
        """Take an index from `build_engine`; several systems may share it.

        Args:
            engine: the index.
            name: one of OF_ENGINE.
            first: finds the documents that "rerank" orders.
        """
        self.name = name
        self._engine = engine
        self._first = first if name == RERANK_NAME else None
        self._exact = name in (EXACT_NAME, RERANK_NAME)
        self._mode: SearchMode = "hybrid" if name == HYBRID_NAME else "jacolbert"
        lexical = engine.settings.lexical
        weight = f":{lexical.weight}" if lexical.fusion == "min-max" else f":{lexical.weight}:{lexical.rrf_k}"
        fused = (
            f"{lexical.fusion}{weight}",
            f"n_fused:{lexical.n_fused}",
            f"k1:{lexical.k1}",
            f"b:{lexical.b}",
            f"mecab-unidic-lite:{'folded' if lexical.fold else 'surface'}",
        )
        self.settings = _engine_settings(engine, exact=self._exact, mode=self._mode)
        self.settings += fused if self._mode == "hybrid" else ()
        if self._first is not None:
            self.settings += (f"of:{self._first.name}:{RERANKED}", *self._first.settings)

    @property
    def n_bytes(self) -> int | None:
        """See `System`: the whole folder, texts included; None where it is a temporary one."""
        path = self._engine.path
        if path is None:
            return None
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    def search_many(
        self, queries: Sequence[str], k: int, among: Sequence[Among] | None = None
    ) -> list[Found]:
        """See `System`."""
        if self._first is not None or among is not None:
            return one_by_one(self, queries, k, among)
        found = self._engine.search_many(queries, k, exact=self._exact, mode=self._mode)
        return [{hit.id: hit.score for hit in hits} for hits in found]

    def search(self, query: str, k: int, among: Among | None = None) -> Found:
        """See `System`."""
        if self._first is not None:
            # A query's own candidates are all ordered, those without a shared word too.
            among = list(among if among is not None else self._first.search(query, RERANKED))
            if not among:
                return {}
        allowed = None if among is None else Ids(frozenset(among))
        hits = self._engine.search(query, k, exact=self._exact, mode=self._mode, filter=allowed)
        return {hit.id: hit.score for hit in hits}


def build_engine(
    documents: Sequence[Document],
    *,
    model: str | None,
    encoder: EncoderOverrides | None = None,
    candidates: bool = True,
    index: Path | None = None,
    progress: Progress = True,
) -> JaColBERTRetriever:
    """An index; documents without text are left out, and so never found.

    Args:
        documents: the corpus, of distinct ids.
        model: a folder or a hub id; None is the bundled model.
        encoder: settings in place of the model's.
        candidates: build them, however small the corpus is; without them every search is exact.
        index: its folder; opened if there is one that holds as many documents. None is a temporary one.
        progress: see `JaColBERTRetriever.add`.
    """
    from jacolbert_rag import IndexSettings, JaColBERTRetriever

    exact_below = 0 if candidates else len(documents) + 1
    settings = IndexSettings(search=SearchConfig(exact_below=exact_below))
    with_text = sorted(
        (document for document in documents if clean(document.passage).strip()),
        key=lambda document: document.id,
    )
    if index is not None and (index / "manifest.json").is_file():
        # What else reads documents in another way is another index.
        rule = encoder.get("query_length") if encoder is not None else None
        engine = JaColBERTRetriever.load(index, model=model, query_length=rule, settings=settings)
        if len(engine) == len(with_text):
            return engine
        # A build that was cut: what is there is not embedded again.
        with_text = [document for document in with_text if document.id not in engine]
    else:
        engine = JaColBERTRetriever.from_pretrained(model, encoder=encoder, settings=settings)
        if index is not None:
            engine.save(index)
    # Equal scores are ordered by row: ascending id, when documents arrive in that order.
    engine.add(with_text, progress=progress)
    return engine


def _engine_settings(engine: JaColBERTRetriever, *, exact: bool, mode: SearchMode) -> tuple[str, ...]:
    checkpoint, settings = engine.encoder.checkpoint, engine.settings
    # A folder's place on this machine says nothing elsewhere; the fingerprint tells models apart.
    folder = Path(checkpoint.name)
    model = folder.resolve().name if folder.is_dir() else checkpoint.name
    candidates = settings.candidates
    # Hybrid search has a number of its own, which is named with its fusion.
    proposed = (
        f"n_nearest:{candidates.n_nearest}",
        *((f"n_candidates:{candidates.n_candidates}",) if mode != "hybrid" else ()),
        f"ef:{candidates.ef_search}",
    )
    config = checkpoint.config
    return (
        f"{model}@{checkpoint.fingerprint[:8]}",
        f"pool:{settings.pooling.factor}",
        settings.store.dtype,
        f"compute:{str(engine.encoder.dtype).removeprefix('torch.')}",
        *(() if exact else proposed),
        f"qlen:{config.query_length}",
        f"dlen:{config.document_length}",
        f"skip:{'punctuation' if config.skiplist == tuple(string.punctuation) else len(config.skiplist)}",
    )
