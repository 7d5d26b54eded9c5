"""Which characters of a document answered a query."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jacolbert_rag.datatypes import (
    BoolArray,
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
from jacolbert_rag.errors import InvalidInputError

# [CLS], the marker and [SEP] resemble all of a text, so now and then they are the best token for a part of a
# query. The best token that has characters is taken in their place where it is this share as similar.
AS_GOOD = 0.92
# A match is marked from this similarity on, and from this share of the query's best.
MARKED_LEAST = 0.5
MARKED_SHARE = 0.8
# What a telling term of the query adds to a sentence's sum of similarities; a token adds at most 1. Of 600
# questions of JaQuAD's train split whose answer stands in just one of three or more sentences, .693 found
# that sentence with 0, .717 with 1, .727 with 2, .730 with 3, .727 with 4; chance is .214. Summing [CLS],
# [SEP] and the [MASK]s too took .017 to .024 of JSQuAD's.
TERM_BONUS = 2.0
# Products of one vector with equal ones differ by less than this, wherever in a matrix they stand.
TIE = 1e-6
LONG_WORD = 3  # characters
# OpenBLAS wakes a second thread for larger products. To wake it takes longer than all products of ten hits:
# they took 5 ms so, and less than 1 in parts.
MAX_PRODUCT = 250_000
_SMALL_PART = re.compile("[ぁ-ゖァ-ヺーｦ-ﾟ]|[0-9０-９]+")
# Unicode's categories of punctuation, signs such as =, spaces, controls, and marks without their letter.
_SILENT = ("P", "Sm", "Sk", "Z", "C", "M")
# Sentences are looked for this many characters behind the last that could win: a document may be a book of
# which only the head was read.
READ_ON = 1_000


@dataclass(frozen=True)
class ReadText:
    """What was read of a document, and where its tokens lie in it.

    Attributes:
        title: the document's.
        text: the document's.
        spans: (d_tokens, 2) int64 characters of the passage (title, a space, text) under each token; those
            without any, such as [CLS], have an end that is not behind the start.
    """

    title: str
    text: str
    spans: IntArray

    @property
    def passage(self) -> str:
        """What `spans` count in, as `Document.passage`."""
        return f"{self.title} {self.text}" if self.title else self.text

    @property
    def text_start(self) -> int:
        """Where the text begins in the passage."""
        return len(self.title) + 1 if self.title else 0

    @property
    def has_characters(self) -> BoolArray:
        """(d_tokens,) whether a token lies over characters of the title or the text.

        One over nothing but the space between the two does not.
        """
        starts, ends = self.spans[:, 0], self.spans[:, 1]
        in_title = starts < np.minimum(ends, len(self.title))
        in_text = np.maximum(starts, self.text_start) < np.minimum(ends, len(self.passage))
        found: BoolArray = (starts >= 0) & (in_title | in_text)
        return found

    def in_title(self, span: Span) -> Span | None:
        """The part of a passage's span that lies in the title, counted there."""
        return _filled(max(0, span.start), min(len(self.title), span.end))

    def in_text(self, span: Span) -> Span | None:
        """The part of a passage's span that lies in the text, counted there."""
        start, end = span.start - self.text_start, span.end - self.text_start
        return _filled(max(0, start), min(len(self.text), end))


class _Found(NamedTuple):
    """A match, in characters of the passage."""

    query: Span
    place: Span
    similarity: float


def highlight(
    *,
    query: str,
    query_spans: IntArray,
    document: Document,
    document_spans: IntArray,
    similarities: FloatArray | None,
    query_terms: Sequence[TermSpan] = (),
    document_terms: Sequence[TermSpan] = (),
    document_words: IntArray | None = None,
) -> Highlight:
    """Show where the parts of a query found what they scored by.

    Each token of the query that has characters ([CLS], the marker, [SEP] and [MASK] have none) is shown at
    the token of the document that MaxSim takes for it. Marked are the matches that are similar enough and
    say something, and all places of the query's telling terms; a word of which most is marked is marked
    whole.

    The best sentence is the one with the largest sum, over the query's tokens, of the best similarity
    within it, plus 2 for each telling term of the query that stands in it.

    Args:
        query: raw text.
        query_spans: (q_tokens, 2) characters of `query`, as `Tokenizer.query_spans` has them.
        document: what was found.
        document_spans: (d_tokens, 2) characters of the document's passage, as `Tokenizer.kept_spans` has
            them; of the head only where the document was cut.
        similarities: (q_tokens, d_tokens) float32, of each of `query_spans` with each of `document_spans`.
            Of a pooled document, a token has those of its pooled row (see `pool_with_members`): of places
            that share one, the place with the query token's own characters is taken, else the nearest to
            where others were found. None shows terms only.
        query_terms: in characters of `query`.
        document_terms: of the passage, in characters of it; those that are no telling terms of the query are
            passed over.
        document_words: (n, 2) characters of the passage's words; None where they are not known.

    Raises:
        InvalidInputError: spans and embeddings differ in number, so they are not of the same tokens.
    """
    read = ReadText(document.title, document.text, document_spans)
    asked = np.flatnonzero((query_spans[:, 0] >= 0) & (query_spans[:, 1] > query_spans[:, 0]))
    if similarities is None:
        similarities = np.empty((0, len(document_spans)), dtype=np.float32)
    elif similarities.shape != (expected := (len(query_spans), len(document_spans))):
        raise InvalidInputError(
            f"The similarities are of {similarities.shape} tokens, and the spans of {expected}. Take both "
            "from the same model and texts, and expand a pooled document by its members."
        )
    else:
        similarities = similarities[asked]
    telling = {term.term for term in query_terms if term.is_telling}
    places = [term for term in document_terms if term.term in telling]
    found = _of_tokens(query, query_spans[asked[: len(similarities)]], read, similarities)
    found += _of_terms(query_terms, places, found)
    marked = _marked(query, read, found, places, document_words)
    return Highlight(
        text=document.text,
        title=document.title,
        marks=_tidied(read.text, filter(None, map(read.in_text, marked))),
        title_marks=_tidied(read.title, filter(None, map(read.in_title, marked))),
        matches=_matches(read, found),
        sentence=_best_sentence(read, similarities, places) if found else None,
    )


def similarities_of(query: TokenArray, documents: Sequence[TokenArray]) -> list[FloatArray]:
    """(q_tokens, d_tokens) float32 dot products of a query's tokens with those of each document.

    Args:
        query: (q_tokens, dim).
        documents: (d_tokens, dim) each, in whatever they are stored in.
    """
    query = query.astype(np.float32, copy=False)
    step = max(1, MAX_PRODUCT // max(1, query.size))
    found = []
    for tokens in documents:
        similarities = np.empty((len(query), len(tokens)), dtype=np.float32)
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step].astype(np.float32, copy=False)
            similarities[:, start : start + step] = query @ part.T
        found.append(similarities)
    return found


def _of_tokens(query: str, query_spans: IntArray, read: ReadText, similarities: FloatArray) -> list[_Found]:
    """What each token of the query found, in their order.

    Args:
        query: raw text.
        query_spans: (n, 2), each with characters.
        read: the document.
        similarities: (n, d_tokens) float32.
    """
    placed = np.flatnonzero(read.has_characters)
    if not similarities.size or not len(placed):
        return []
    best_of_all = similarities.max(axis=1)
    at_places = similarities[:, placed]
    best = at_places.max(axis=1)
    is_good = best >= best_of_all - (1.0 - AS_GOOD) * np.abs(best_of_all)
    tied = at_places >= best[:, None] - TIE
    chosen = tied.argmax(axis=1)
    is_open = is_good & (tied.sum(axis=1) > 1)
    settled = chosen[is_good & ~is_open]
    passage = read.passage
    for row in np.flatnonzero(is_open):
        options = np.flatnonzero(tied[row])
        wanted = _normal(query[slice(*query_spans[row])])
        alike = [at for at in options if _normal(passage[slice(*read.spans[placed[at]])]) == wanted]
        options = np.array(alike, dtype=np.int64) if alike else options
        near = np.abs(options[:, None] - settled).min(axis=1, initial=len(placed))
        chosen[row] = options[near.argmin()]
    return [
        _Found(_span(query_spans[row]), _span(read.spans[placed[chosen[row]]]), float(best[row]))
        for row in np.flatnonzero(is_good)
    ]


def _of_terms(
    query_terms: Sequence[TermSpan], places: Sequence[TermSpan], found: Sequence[_Found]
) -> list[_Found]:
    """What terms of the query found that no token of theirs did; each its first place."""
    first: dict[str, Span] = {}
    for place in places:
        first.setdefault(place.term, place.span)
    return [
        _Found(term.span, first[term.term], 1.0)
        for term in query_terms
        if term.is_telling
        and term.term in first
        and not any(one.query.start < term.span.end and term.span.start < one.query.end for one in found)
    ]


def _matches(read: ReadText, found: Sequence[_Found]) -> tuple[Match, ...]:
    matches = []
    for query, place, similarity in sorted(found, key=lambda one: one.query):
        if (span := read.in_title(place)) is not None:
            matches.append(Match(query, span, True, similarity))
        elif (span := read.in_text(place)) is not None:
            matches.append(Match(query, span, False, similarity))
    return tuple(matches)


def _marked(
    query: str,
    read: ReadText,
    found: Sequence[_Found],
    places: Sequence[TermSpan],
    words: IntArray | None,
) -> list[Span]:
    """Parts of the passage worth showing, in any order."""
    passage = read.passage
    least = max(MARKED_LEAST, MARKED_SHARE * max((one.similarity for one in found), default=0.0))
    marked = {
        one.place
        for one in found
        if one.similarity >= least
        and _says_something(written := passage[slice(*one.place)])
        and not _is_other_number(query[slice(*one.query)], written)
    }
    # Verbs in a few kana, as とる of にとって, say little where they stand.
    marked |= {p.span for p in places if p.weight == 1.0 or _says_something(passage[slice(*p.span)])}
    if not marked or words is None or not len(words):
        return list(marked)
    # A word is marked whole where most of it is: a lone piece in its middle must not leave a hole.
    n_before = np.zeros(max(span.end for span in marked) + 1, dtype=np.int64)
    for start, end in marked:
        n_before[start + 1 : end + 1] = 1
    np.cumsum(n_before, out=n_before)
    starts, ends = np.minimum(words, len(n_before) - 1).T
    mostly = 2 * (n_before[ends] - n_before[starts]) > words[:, 1] - words[:, 0]
    # One kana of a long word, as the ン of ソコミジンコ, is no place to look at, nor the 19 of 1942.
    long = words[~mostly & (words[:, 1] - words[:, 0] >= LONG_WORD)]
    within = {at for start, end in long.tolist() for at in range(start, end)}
    kept = [
        one for one in marked if one.start not in within or not _SMALL_PART.fullmatch(passage[slice(*one)])
    ]
    return [*kept, *map(_span, words[mostly])]


def _tidied(text: str, spans: Iterable[Span]) -> tuple[Span, ...]:
    """Marks in order and apart from one another, none of which cuts a character that a reader sees."""
    marks: list[Span] = []
    for start, end in sorted(spans):
        while start > 0 and joins(text, start):
            start -= 1
        while end < len(text) and joins(text, end):
            end += 1
        # The first may have reached further than this one.
        if marks and (start <= marks[-1].end or _binds(text, marks[-1].end, start)):
            marks[-1] = Span(marks[-1].start, max(marks[-1].end, end))
        else:
            marks.append(Span(start, end))
    return tuple(marks)


def _binds(text: str, end: int, start: int) -> bool:
    """Whether what lies between two marks makes one of them: ジョン・レノン, New York, 共産 党 本部."""
    gap = text[end:start]
    if len(gap) != 1:
        return False
    if gap == " ":
        return _is_latin(text[end - 1]) and _is_latin(text[start])
    return gap in "・･" or _says_something(gap)


def _is_latin(char: str) -> bool:
    normal = unicodedata.normalize("NFKD", char)[0]
    return normal.isascii() and normal.isalnum()


def _says_something(characters: str) -> bool:
    """Whether characters are worth a mark: not punctuation, and no particle or auxiliary."""
    normal = unicodedata.normalize("NFKC", characters).strip()
    if len(normal) <= 2 and all("ぁ" <= char <= "ゟ" for char in normal):
        return False
    return not all(unicodedata.category(char).startswith(_SILENT) for char in normal)


def _is_other_number(asked: str, found: str) -> bool:
    """Whether both are numbers, and not the same: they are much alike to a model, and not to a reader."""
    asked, found = _normal(asked), _normal(found)
    return asked.isdecimal() and found.isdecimal() and asked.lstrip("0") != found.lstrip("0")


def _best_sentence(read: ReadText, similarities: FloatArray, places: Sequence[TermSpan]) -> Span | None:
    """The sentence of the text that answers best, without the white space around it.

    Args:
        read: the document.
        similarities: (n, d_tokens) of the query's tokens that have characters.
        places: of the query's telling terms.
    """
    starts = read.spans[:, 0] - read.text_start
    inside = np.flatnonzero(read.has_characters & (starts >= 0) & (starts < len(read.text)))
    terms = [(place.term, span.start) for place in places if (span := read.in_text(place.span)) is not None]
    last = max([*starts[inside].tolist(), *(start for _, start in terms)], default=-1)
    if last < 0:
        return None
    spans = sentences(read.text[: last + READ_ON])
    ends = np.array([span.end for span in spans], dtype=np.int64)
    scores = np.zeros(len(spans), dtype=np.float32)
    if similarities.size and len(inside):
        sentence_of = np.searchsorted(ends, starts[inside], side="right")
        order = np.argsort(sentence_of, kind="stable")
        held, firsts = np.unique(sentence_of[order], return_index=True)
        best = np.maximum.reduceat(similarities[:, inside[order]], firsts, axis=1)
        scores[held] = np.maximum(best, 0.0).sum(axis=0)
    distinct = {(term, int(np.searchsorted(ends, start, side="right"))) for term, start in terms}
    for _, holder in distinct:
        scores[holder] += TERM_BONUS
    chosen = int(scores.argmax())
    if not scores[chosen] > 0.0:
        return None
    start, end = spans[chosen]
    sentence = read.text[start:end]
    stripped = sentence.strip()
    start += sentence.index(stripped)
    return Span(start, start + len(stripped)) if stripped else spans[chosen]


def _normal(characters: str) -> str:
    """Characters as they compare: in NFKC, without case."""
    return unicodedata.normalize("NFKC", characters).casefold()


def _filled(start: int, end: int) -> Span | None:
    return Span(start, end) if start < end else None


def _span(row: IntArray) -> Span:
    return Span(int(row[0]), int(row[1]))
