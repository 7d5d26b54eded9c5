"""Raw text to the terms that full-text search counts: MeCab words in normalised form.

A word counts as its lemma, so that サーバ and サーバー, 引越し and 引っ越し are one term each. Names count as
they are written, since their lemma is a reading, but for 霞ヶ関 and 霞が関. Old forms of kanji are those of
today: 學校 is 学校, 渡邊 is 渡辺. Particles, auxiliaries and punctuation are no terms. Model numbers
(ＡＢＣ－１２３, abc123) are terms as a whole, without what joins them, and in their parts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import accumulate, islice
from typing import NamedTuple, TypeAlias

import numpy as np

from jacolbert_rag.datatypes import IntArray, Span, TermSpan
from jacolbert_rag.encode.kanji import new_forms
from jacolbert_rag.encode.normalize import align, clean
from jacolbert_rag.encode.words import TaggedWord, WordSegmenter, tagged_words

# Latin letters and digits, joined by what joins a model number, a version, a date or a number: A-1/2, 1,000.
_LETTERS = "a-zA-ZÀ-ÖØ-öø-ɏ"
_CODE = re.compile(
    rf"[{_LETTERS}0-9]+(?:[-_./:+#'][{_LETTERS}0-9]+|(?<=[0-9]),[0-9]{{3}}(?![{_LETTERS}0-9]))*[+#]*"
)
_PARTS = re.compile(f"[{_LETTERS}]+|[0-9]+")
_NUMBER = re.compile("[0-9]+(?:,[0-9]{3})*(?:[.][0-9]+)?")
_JOINTS = re.compile(f"[^{_LETTERS}0-9]")
# The small ケ of names of places, between kanji: 霞ヶ関, 霞ケ関 and 霞が関.
_GA = re.compile("(?<=[一-鿿])[ヶケがヵ](?=[一-鿿])")
_KATAKANA = re.compile("[ァ-ヺー]{3,}ー")  # コンピューター is コンピュータ; キー stays

# Words that are remembered, half a kilobyte each; what is longer is not met again.
MAX_MEMO_LINES, MAX_MEMO_CHARS = 65_536, 200

# Raised when texts get other terms: word lists that were made before are made again then.
TERMS_VERSION = 1

# Behind the head of a long text, so many characters are read around each of the first places of words that
# are looked for.
AROUND, MAX_PLACES = 50, 20
_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}

# What a verb, an adjective or an adverb says beside a noun: they come in many words for one thing. See
# `jacolbert_rag.calibration` for how it was chosen.
OTHER_WEIGHT = 0.5

_NO_TERMS = frozenset({"助詞", "助動詞", "補助記号", "空白"})
# Terms that match by chance in most questions: pronouns, affixes, and words that stand for others.
_DULL_POS = frozenset({"代名詞", "接頭辞", "接尾辞", "接続詞", "連体詞", "感動詞"})
_DULL_DIVISIONS = frozenset({"数詞", "非自立可能"})
_DULL_LEMMAS = frozenset(
    (
        "事",
        "物",
        "時",
        "所",
        "為",
        "方",
        "内",
        "中",
        "上",
        "下",
        "前",
        "後",
        "回",
        "つ",
        "個",
        "本",
        "為る",
        "居る",
        "有る",
        "成る",
        "言う",
        "出来る",
        "行う",
        "因る",
        "関する",
        "教える",
        "知る",
        "呼ぶ",
        "何",
        "誰",
        "何時",
        "何処",
        "何故",
        "如何",
        "年",
        "月",
        "日",
        "人",
        "名",
        "名前",
        "一番",
        "的",
        "方法",
        "意味",
        "理由",
        "場合",
    )
)


_Place: TypeAlias = tuple[str, int, int, float]  # a term, where it starts and stops, and its weight


class TermMaker:
    """Makes terms of texts. Any number of threads may use one."""

    def __init__(self, *, fold: bool = True) -> None:
        """Choose the form.

        Args:
            fold: in normalised form; else every word as it is written after NFKC, punctuation too.
        """
        self.fold = fold
        self._segmenter = WordSegmenter()

    def terms(self, text: str) -> list[str]:
        """The terms of a raw text, in order; one that occurs twice is there twice."""
        cleaned = clean(text)
        if not self.fold:
            return self._segmenter.words(cleaned)
        return [term for term, _, _, _ in self._found(cleaned)]

    def spans(self, text: str) -> list[TermSpan]:
        """`terms` with the characters of the raw text that each comes from."""
        return self._near(text, None)[1]

    def _near(self, text: str, wanted: Collection[str] | None) -> tuple[IntArray, list[TermSpan]]:
        """(n, 2) characters of all terms of a raw text, and those of them that are wanted."""
        aligned = align(text, nfkc=True)
        found = list(self._found(aligned.text))
        spans = aligned.spans([start for _, start, _, _ in found], [stop for _, _, stop, _ in found])
        kept = [
            TermSpan(term, Span(int(spans[i, 0]), int(spans[i, 1])), weight)
            for i, (term, _, _, weight) in enumerate(found)
            if wanted is None or term in wanted
        ]
        return spans, kept

    def _found(self, cleaned: str) -> list[_Place]:
        """The terms of a cleaned text."""
        return self._folded(new_forms(cleaned)) if self.fold else self._surfaces(cleaned)

    def places(
        self, text: str, end: int, wanted: Collection[str], words: Collection[str]
    ) -> tuple[IntArray, list[TermSpan]]:
        """Where some terms stand in a text: in its head, and behind it around the first places of some words.

        A document may be a book: all of it would take seconds.

        Args:
            text: raw text.
            end: of the head, in characters.
            wanted: terms.
            words: what to look for behind the head, in any width and case.

        Returns:
            (n, 2) int64 characters of all terms that were read, and the wanted ones; in order.
        """
        spans, found = self._near(text[:end], wanted)
        parts = [spans]
        if end < len(text) and words:
            for start, stop in _around(text, end, words):
                spans, more = self._near(text[start:stop], wanted)
                parts.append(spans + start)
                found += [
                    TermSpan(term, Span(first + start, last + start), weight)
                    for term, (first, last), weight in more
                ]
        return np.concatenate(parts), found

    def _surfaces(self, text: str) -> list[_Place]:
        words = [word for line in self._segmenter.lines(text) for word in _readings_of(line)]
        starts = _starts([word.surface for word in words], text)
        return [
            (surface, start, start + len(surface), weight)
            for (surface, _, weight), start in zip(words, starts, strict=True)
        ]

    def _folded(self, text: str) -> list[_Place]:
        words = [word for line in self._segmenter.lines(text) for word in _readings_of(line)]
        starts = _starts([word.surface for word in words], text)
        codes = [match.span() for match in _CODE.finditer(text)]
        if not codes:
            return [
                (form, start, start + len(surface), weight)
                for (surface, form, weight), start in zip(words, starts, strict=True)
                if form is not None
            ]
        found: list[_Place] = []
        at, begun = 0, -1
        for (surface, form, weight), start in zip(words, starts, strict=True):
            stop = start + len(surface)
            while at < len(codes) and codes[at][1] <= start:
                at += 1
            if at < len(codes) and codes[at][0] <= start and stop <= codes[at][1]:
                if begun != at:  # the first word within a code stands for all of them
                    begun = at
                    found += _of_code(text, start, codes[at][1])
            elif form is not None:
                found.append((form, start, stop, weight))
        return found


def _starts(surfaces: list[str], text: str) -> list[int]:
    """Where each word of a text begins: MeCab drops spaces and nothing else."""
    if sum(map(len, surfaces)) == len(text):
        return list(accumulate(map(len, surfaces), initial=0))[:-1]
    starts, stop = [], 0
    for surface in surfaces:
        starts.append(text.index(surface, stop))
        stop = starts[-1] + len(surface)
    return starts


def _around(text: str, start: int, words: Collection[str]) -> list[tuple[int, int]]:
    """Parts of a text behind `start` that have the first places of some words in them, apart from another."""
    either = "|".join(re.escape(form) for word in words for form in (word, word.translate(_FULL_WIDTH)))
    places = islice(re.compile(either, re.IGNORECASE).finditer(text, start), MAX_PLACES)
    parts: list[tuple[int, int]] = []
    for place in places:
        first, last = max(start, place.start() - AROUND), min(len(text), place.end() + AROUND)
        if parts and first <= parts[-1][1]:
            parts[-1] = (parts[-1][0], last)
        else:
            parts.append((first, last))
    return parts


def _of_code(text: str, start: int, stop: int) -> Iterator[tuple[str, int, int, float]]:
    """The terms of a run of Latin letters and digits: the whole, and its parts where there are several."""
    code = text[start:stop].lower()
    if _NUMBER.fullmatch(code):  # 1,000 is 1000, and 3.5 is not 35
        yield code.replace(",", ""), start, stop, 0.0
        return
    whole = _JOINTS.sub("", code.rstrip("+#"))
    suffix = code[len(code.rstrip("+#")) :]  # C++ is not C
    yield whole + suffix, start, stop, float(not whole.isdigit() and len(whole + suffix) > 1)
    parts = [match.span() for match in _PARTS.finditer(code)]
    if len(parts) > 1:
        for first, last in parts:
            yield code[first:last], start + first, start + last, 0.0


_MEMO: dict[str, tuple[_Reading, ...]] = {}


class _Reading(NamedTuple):
    """A word as it is written, its form, None where it is no term, and how much it says by itself."""

    surface: str
    form: str | None
    weight: float


def _readings_of(line: str) -> tuple[_Reading, ...]:
    """The words of one of MeCab's lines."""
    found = _MEMO.get(line)
    if found is None:
        found = tuple(_read(word) for word in tagged_words(line))
        if len(line) <= MAX_MEMO_CHARS:
            if len(_MEMO) >= MAX_MEMO_LINES:
                _MEMO.clear()
            _MEMO[line] = found
    return found


def _read(word: TaggedWord) -> _Reading:
    if word.pos in _NO_TERMS:
        return _Reading(word.surface, None, 0.0)
    is_sign = word.pos == "記号"
    form = None if is_sign and word.division != "文字" else _form(word)
    is_dull = is_sign or word.pos in _DULL_POS or word.division in _DULL_DIVISIONS
    if is_dull or word.lemma.partition("-")[0] in _DULL_LEMMAS:
        return _Reading(word.surface, form, 0.0)
    return _Reading(word.surface, form, 1.0 if word.pos == "名詞" else OTHER_WEIGHT)


def _form(word: TaggedWord) -> str:
    if not word.lemma or word.division == "固有名詞":
        form = _GA.sub("ケ", word.base or word.surface)
    else:
        form = word.lemma.partition("-")[0] or word.lemma
    form = form.lower()
    return form[:-1] if _KATAKANA.fullmatch(form) else form
