"""Which characters of a document answered a query.

Each token of the query takes the token of the document that MaxSim takes for it; offsets tell which
characters those are. The terms that full-text search counts are marked wherever they stand. Weak matches are
told, but not marked: MaxSim finds something for every token.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jacolbert_rag.datatypes import (
    Document,
    FloatArray,
    Highlight,
    IntArray,
    Match,
    Span,
    TermSpan,
    TokenArray,
)
from jacolbert_rag.encode.sentences import joins, sentences

# Chosen by eye on 50 answers.
MARKED_SHARE = 0.8  # a match is marked from this share of the query's best on
MARKED_LEAST = 0.5  # and from this similarity on
AS_GOOD = 0.92  # tokens of this share of the best are as good: [CLS] is not preferred to characters
TERM_WORTH = 1.0  # of a telling term in the choice of a sentence, beside the similarities of tokens


def highlight(
    query: str,
    *,
    query_spans: IntArray,
    query_embeddings: TokenArray | None,
    query_terms: Sequence[TermSpan],
    document: Document,
    document_spans: IntArray,
    token_embeddings: TokenArray | None,
    document_terms: Sequence[TermSpan],
) -> Highlight:
    """What a query finds in a document.

    Args:
        query: as it was asked.
        query_spans: (q_tokens, 2) of `Tokenizer.query_spans`.
        query_embeddings: (q_tokens, dim); None matches terms alone.
        query_terms: of `TermMaker.spans`.
        document: the document.
        document_spans: (d_tokens, 2) of `Tokenizer.kept_spans`, in characters of its passage.
        token_embeddings: (d_tokens, dim), one for each span; None matches terms alone.
        document_terms: of `TermMaker.spans`, in characters of its passage.
    """
    n_title = len(document.passage) - len(document.text)
    asked = np.flatnonzero(query_spans[:, 0] >= 0)
    placed = np.flatnonzero(document_spans[:, 0] >= 0)
    similarities = np.zeros((len(asked), len(placed)), dtype=np.float32)
    matches: list[Match] = []
    if query_embeddings is not None and token_embeddings is not None and len(asked) and len(placed):
        products = query_embeddings[asked].astype(np.float32) @ token_embeddings.astype(np.float32).T
        similarities = products[:, placed]
        matches = list(
            _match_tokens(query, document, query_spans[asked], document_spans[placed], products, similarities)
        )
    worded = list(_match_terms(query_terms, document_terms))
    marked = [_of_passage(match, n_title) for match in _worth_marking(matches, document, n_title)]
    marked += [match.document for match in worded]
    marks = _tidy(marked, document.passage)
    matches += [_in_document(match, n_title, document) for match in worded]
    return Highlight(
        document.text,
        document.title,
        tuple(_clipped(marks, n_title, len(document.passage))),
        tuple(_clipped(marks, 0, len(document.title))),
        tuple(sorted(match for match in matches if match.document.start < match.document.end)),
        _best_sentence(document.text, n_title, document_spans[placed], similarities, worded),
    )


def _match_tokens(
    query: str,
    document: Document,
    query_spans: IntArray,
    document_spans: IntArray,
    products: FloatArray,
    similarities: FloatArray,
) -> Iterator[Match]:
    """What each token of the query finds; places count in the passage's title or text.

    Args:
        query: raw.
        document: the document.
        query_spans: (n, 2) of the query's tokens that have characters.
        document_spans: (m, 2) of the document's.
        products: (n, d_tokens) of all the document's tokens, those without characters too.
        similarities: (n, m).
    """
    passage, n_title = document.passage, len(document.passage) - len(document.text)
    best = products.max(axis=1)
    former = 0
    for row, (start, end), most in zip(similarities, query_spans.tolist(), best.tolist(), strict=True):
        good = np.flatnonzero(row >= (AS_GOOD * most if most > 0 else most))
        if not len(good):
            continue
        top = row[good].max()
        ties = good[row[good] >= top - 1e-6]  # pooled tokens have one vector in several places
        place = ties[0]
        if len(ties) > 1:
            asked = _normal(query[start:end])
            same = [tie for tie in ties if _normal(passage[slice(*document_spans[tie])]) == asked]
            # Else what is nearest to the former match: a phrase is answered by a phrase.
            place = same[0] if same else ties[np.argmin(np.abs(document_spans[ties, 0] - former))]
        found = Span(*document_spans[place].tolist())
        former = found.end
        if found.start < n_title <= found.start + 1 or _is_blank(passage[slice(*found)]):
            continue  # the space between title and text
        yield _in_document(Match(Span(start, end), found, False, float(top)), n_title, document)


def _match_terms(query_terms: Sequence[TermSpan], document_terms: Sequence[TermSpan]) -> Iterator[Match]:
    """Every place of the query's telling terms, in characters of the passage."""
    telling = {term: span for term, span, is_telling in reversed(query_terms) if is_telling}
    for term, span, _ in document_terms:
        if term in telling:
            yield Match(telling[term], span, False, 1.0)


def _worth_marking(matches: Sequence[Match], document: Document, n_title: int) -> Iterator[Match]:
    least = max(MARKED_LEAST, MARKED_SHARE * max((match.similarity for match in matches), default=0.0))
    for match in matches:
        text = (document.title if match.in_title else document.text)[slice(*match.document)]
        if match.similarity >= least and _says_something(text):
            yield match


def _says_something(text: str) -> bool:
    """Whether characters are worth a mark of their own: no particle, no punctuation."""
    letters = [c for c in text if unicodedata.category(c)[0] in "LN"]
    is_kana = all("\u3041" <= c <= "\u309f" for c in letters)
    return bool(letters) and not (is_kana and len(letters) <= 2)


def _tidy(spans: Iterable[Span], passage: str) -> list[Span]:
    """Spans in order, those that touch joined, none within what is one character to a reader."""
    tidied: list[Span] = []
    for start, end in sorted(spans):
        while 0 < start < len(passage) and joins(passage, start):
            start -= 1
        while 0 < end < len(passage) and joins(passage, end):
            end += 1
        if tidied and (start <= tidied[-1].end or passage[tidied[-1].end : start] in ("・", " ", "-")):
            tidied[-1] = Span(tidied[-1].start, max(end, tidied[-1].end))
        else:
            tidied.append(Span(start, end))
    return tidied


def _clipped(spans: Iterable[Span], first: int, stop: int) -> Iterator[Span]:
    """The parts of spans that lie within, counted from its first character."""
    for start, end in spans:
        start, end = max(start, first), min(end, stop)
        if start < end:
            yield Span(start - first, end - first)


def _in_document(match: Match, n_title: int, document: Document) -> Match:
    """A match in characters of the passage as one in those of the title or the text."""
    start, end = match.document
    in_title = start < len(document.title)
    first, stop = (0, len(document.title)) if in_title else (n_title, len(document.passage))
    found = Span(max(start, first) - first, max(min(end, stop), first) - first)
    return match._replace(document=found, in_title=in_title)


def _of_passage(match: Match, n_title: int) -> Span:
    first = 0 if match.in_title else n_title
    return Span(match.document.start + first, match.document.end + first)


def _best_sentence(
    text: str,
    n_title: int,
    spans: IntArray,
    similarities: FloatArray,
    worded: Sequence[Match],
) -> Span | None:
    """The sentence whose tokens answer best: MaxSim within it, and the terms that it has."""
    best, found = 0.0, None
    order = np.argsort(spans[:, 0], kind="stable")
    starts = spans[order, 0] - n_title
    for sentence in sentences(text):
        first, stop = np.searchsorted(starts, [sentence.start, sentence.end])
        worth = 0.0
        if first < stop and len(similarities):
            worth = float(np.maximum(similarities[:, order[first:stop]].max(axis=1), 0.0).sum())
        terms = {m.query for m in worded if sentence.start <= m.document.start - n_title < sentence.end}
        worth += TERM_WORTH * len(terms)
        if worth > best:
            best, found = worth, sentence
    return found


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _is_blank(text: str) -> bool:
    return not text.strip()
