"""A question to rows and scores: by token embeddings, by full-text search, or by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jacolbert_rag.config import IndexSettings, SearchMode
from jacolbert_rag.datatypes import (
    BoolArray,
    FloatArray,
    IntArray,
    TermSpan,
    TokenArray,
    TokenEmbeddings,
    offsets_of,
)
from jacolbert_rag.index.fusion import confidence, fuse, similarity
from jacolbert_rag.index.snapshot import best
from jacolbert_rag.index.view import View


@dataclass(frozen=True)
class Question:
    """A query, read.

    Attributes:
        text: as it was asked.
        embeddings: (q_tokens, dim); None where full-text search is all that is asked of it.
        terms: its terms.
    """

    text: str
    embeddings: TokenArray | None
    terms: tuple[TermSpan, ...]

    @property
    def words(self) -> list[str]:
        """What full-text search looks for."""
        return [term for term, _, _ in self.terms]

    @property
    def telling(self) -> dict[str, float]:
        """The terms that say something by themselves, and how much; all of them alike where none does."""
        weights = {term: weight for term, _, weight in self.terms if weight}
        return weights or dict.fromkeys(self.words, 1.0)

    @property
    def sought(self) -> set[str]:
        """What to look for in a text for its telling terms: as they count, and as the query writes them."""
        telling = [one for one in self.terms if one.is_telling]
        return {one.term for one in telling} | {self.text[slice(*one.span)] for one in telling}


@dataclass(frozen=True)
class Found:
    """What a question has found, best first.

    Attributes:
        rows: (n,) int64.
        scores: (n,) that they are ordered by.
        figures: name and (n,) values of what `Hit.scores` holds.
    """

    rows: IntArray
    scores: FloatArray
    figures: dict[str, FloatArray]


def find(
    view: View,
    questions: Sequence[Question],
    k: int,
    settings: IndexSettings,
    *,
    mode: SearchMode,
    exact: bool,
    allowed: BoolArray | None,
) -> list[Found]:
    """The best k rows for each question.

    Args:
        view: a committed state.
        questions: with embeddings, unless `mode` is "bm25".
        k: at least 1.
        settings: of the index.
        mode: how documents are found.
        exact: score every document by its token embeddings, in place of candidates.
        allowed: (n_rows,) live rows that may be found; None for all that are alive.
    """
    snapshot = view.snapshot
    n_allowed = snapshot.n_live if allowed is None else int(np.count_nonzero(allowed))
    k = min(k, n_allowed)
    if k == 0:
        nothing = Found(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), {})
        return [nothing] * len(questions)
    exact = exact or snapshot.pooled is None or snapshot.n_live < settings.search.exact_below
    if mode == "bm25":
        return [_by_words(view, question, k, settings, allowed) for question in questions]
    if mode == "hybrid":
        return [_by_both(view, question, k, settings, allowed, exact=exact) for question in questions]
    if exact:
        pairs = snapshot.search_exact(_together(questions), k, allowed)
    else:
        pairs = [
            snapshot.search_candidates(_embeddings(question), k, settings.candidates, allowed)
            for question in questions
        ]
    return [
        Found(rows, scores, _figures(view, question, rows, scores))
        for question, (rows, scores) in zip(questions, pairs, strict=True)
    ]


def _by_words(
    view: View, question: Question, k: int, settings: IndexSettings, allowed: BoolArray | None
) -> Found:
    scores = _bm25(view, question, settings, allowed)
    rows, kept = _best_worded(scores, k)
    maxsim = None
    if question.embeddings is not None and len(rows):
        order = np.argsort(rows)
        maxsim = np.empty(len(rows), dtype=np.float32)
        maxsim[order] = view.snapshot.scores(question.embeddings, rows[order])
    return Found(rows, kept, {"bm25": kept, **_figures(view, question, rows, maxsim)})


def _best_worded(scores: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """The best k of the rows that share a term."""
    rows = np.flatnonzero(scores)
    return best(rows, scores[rows], k)


def _by_both(
    view: View,
    question: Question,
    k: int,
    settings: IndexSettings,
    allowed: BoolArray | None,
    *,
    exact: bool,
) -> Found:
    """Each way proposes documents, all of which both ways score."""
    snapshot, query = view.snapshot, _embeddings(question)
    n = max(settings.lexical.n_fused, k)
    by_words = _bm25(view, question, settings, allowed)
    worded, _ = _best_worded(by_words, n)
    if exact:
        near, _ = snapshot.search_exact(_together([question]), n, allowed)[0]
    else:
        near = snapshot.candidates(query, n, settings.candidates, allowed)
    rows = np.union1d(near, worded)
    if len(rows) < k:
        rows = snapshot.rows(allowed)
    maxsim, bm25 = snapshot.scores(query, rows), by_words[rows]
    fused = fuse(maxsim, bm25, settings.lexical)
    found, scores = best(rows, fused, k)
    places = np.searchsorted(rows, found)
    figures = {"bm25": bm25[places], **_figures(view, question, found, maxsim[places])}
    return Found(found, scores, figures)


def _bm25(view: View, question: Question, settings: IndexSettings, allowed: BoolArray | None) -> FloatArray:
    config = settings.lexical
    scores = view.lexicon().bm25(question.words, k1=config.k1, b=config.b)
    if allowed is not None:
        scores[~allowed] = 0.0
    return scores


def _figures(
    view: View, question: Question, rows: IntArray, maxsim: FloatArray | None
) -> dict[str, FloatArray]:
    coverage = view.lexicon().coverage(question.telling, rows)
    if maxsim is None:
        return {"coverage": coverage}
    near = similarity(maxsim, len(_embeddings(question)))
    return {
        "maxsim": maxsim,
        "similarity": near,
        "coverage": coverage,
        "confidence": confidence(near, coverage),
    }


def _embeddings(question: Question) -> TokenArray:
    assert question.embeddings is not None
    return question.embeddings


def _together(questions: Sequence[Question]) -> TokenEmbeddings:
    each = [_embeddings(question) for question in questions]
    flat = np.concatenate(each).astype(np.float32)
    return TokenEmbeddings(flat, offsets_of([len(tokens) for tokens in each]))
