"""Japanese text to sentences, and how good a place each border is to cut a text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from enum import IntEnum

from jacolbert_rag.datatypes import Span

# Pairs within which a sentence does not end: 彼は「行く。必ず。」と言った。 is one.
_PAIRS = "「」『』（）()【】〈〉《》［］〔〕｢｣“”"
_CLOSING = dict(zip(_PAIRS[::2], _PAIRS[1::2], strict=True))
# A longer quotation is cut like other text, so that a bracket that nobody closed never glues a document.
MAX_BRACKETED = 300

_ENDS = "。｡．！？!?‼⁇⁈⁉"
_TRAILS = "…‥"  # belong to the mark before them, and end nothing alone
_CLOSERS = _PAIRS[1::2] + "]’\"'"
_OPEN, _CLOSE, _END = re.escape(_PAIRS[::2]), re.escape(_CLOSERS), re.escape(_ENDS)
_LINE_END = "(?>\r\n|[\n\r\x0b\x0c\x85\u2028\u2029])"  # atomic: "\r\n" is never two line ends

_BRACKET = re.compile(rf"[{_OPEN}]|[{_CLOSE}]|{_LINE_END}[^\S\n\r\x0b\x0c\x85\u2028\u2029]*{_LINE_END}")
_EVENT = re.compile(rf"(?P<open>[{_OPEN}])|(?P<mark>[{_END}][{_END}{_TRAILS}]*)|(?P<line>{_LINE_END})")
_AFTER_MARK = re.compile(rf"[{_CLOSE}{_END}{_TRAILS}]*")
_LINE_ENDS = re.compile(_LINE_END)
_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"[0-9０-９A-Za-zＡ-Ｚａ-ｚ．]{1,6}")  # １．２．概要, A．付録
# 「行く。」と言った goes on, and so does 「行く。」、と; 「行く。」彼は is a new sentence.
_GOES_ON = re.compile("[ぁ-ゖー、，､,]")
# What a list item or a heading begins with.
_MARKED = re.compile(
    r"#{1,6}\s|[-*+]\s|[・•●○◎■□◆◇▼▽▲△★☆※▪【①-⑳]|第[0-9０-９一二三四五六七八九十百]+[編章節条項部]"
    r"|[(（]?[0-9０-９一二三四五六七八九十ア-ンa-z]{1,3}[)）.．、]"
)


class Border(IntEnum):
    """What a border lies behind, from the worst place to cut a text to the best."""

    CHARACTER = 0
    WORD = 1  # kana before kanji, katakana or Latin, where mostly a new phrase begins
    SPACE = 2
    BRACKET = 3
    COMMA = 4
    CLAUSE = 5  # an end mark inside brackets, or a Latin full stop
    BARE_LINE = 6  # a line end without an end mark: of a heading, or of a line that was wrapped
    SENTENCE = 7
    LINE = 8  # a line end with an end mark, or before a list item
    PARAGRAPH = 9


_CUTS = {
    Border.CLAUSE: re.compile(rf"(?:[{_END}{_TRAILS}]|[.;:](?=\s))+[{_CLOSE}]*\s*"),
    Border.COMMA: re.compile(r"[、，､]+\s*|,(?!\d)\s*"),
    Border.BRACKET: re.compile(rf"[{_CLOSE}]+\s*|(?<![{_OPEN}])(?=[{_OPEN}])"),
    Border.SPACE: re.compile(r"\s+"),
    Border.WORD: re.compile(r"(?<=[ぁ-ゖ])(?=[^\Wぁ-ゟーﾞﾟ])"),
}


def sentences(text: str) -> list[Span]:
    """Sentences of a text, each with the white space behind it; joined they are the text.

    A sentence ends with 。！？．, their half-width forms and the closing brackets behind them, or with its
    line. It does not end inside brackets, unless they stay open for more than 300 characters or across a
    blank line. ! and ? in a=b!=c or ?q= and ．in ３．１４ or １．概要 end nothing.

    Time grows with the length of the text, whatever brackets are in it.
    """
    closed = _closed_brackets(text)
    found: list[Span] = []
    start = 0
    begin = at = _skip(_SPACE, text, 0)  # of the words of this sentence
    while event := _EVENT.search(text, at):
        if event.lastgroup == "line":
            end: int | None = event.end()
        elif event.lastgroup == "mark":
            end = _end_of_mark(text, event.start(), event.end(), begin)
        elif (closing := closed.get(event.start())) is None:
            at = event.end()
            continue
        else:
            # A sentence may be nothing but a quotation: 「行く。必ず。」
            whole = event.start() == begin and _is_ended(text[begin:closing])
            at, end = closing + 1, _end_of_quotation(text, closing + 1) if whole else None
            if end is None:
                continue
        if end is None:
            at = event.end()
            continue
        begin = at = _skip(_SPACE, text, end)
        found.append(Span(start, at))
        start = at
    return [*found, Span(start, len(text))] if start < len(text) else found


def borders(text: str, spans: Sequence[Span]) -> list[Border]:
    """What lies behind each sentence of a text.

    A heading is kept with what it stands above: the line end or blank line behind it counts no more than the
    end of a wrapped line.

    Args:
        text: any text.
        spans: its sentences.
    """
    found: list[Border] = []
    previous, below_heading = Border.PARAGRAPH, False
    for start, end in spans:
        sentence = text[start:end]
        words = sentence.rstrip()
        n_lines = sum(1 for _ in _LINE_ENDS.finditer(sentence, len(words)))
        ended = _is_ended(words)
        listed = previous == Border.LINE and sentence[:1] != "#" and _MARKED.match(sentence) is not None
        heads = (previous >= Border.LINE or below_heading) and not ended and not listed
        if n_lines == 0:
            border = Border.SENTENCE
        elif heads:
            border = Border.BARE_LINE
        elif n_lines > 1:
            border = Border.PARAGRAPH
        elif ended or sentence[-1] in " \t\u3000" or _MARKED.match(text, end):
            border = Border.LINE  # the next line is indented, or begins with a mark
        else:
            border = Border.BARE_LINE
        found.append(border)
        previous = border
        below_heading = heads and (n_lines > 1 or sentence[:1] == "#")
    return found


def cuts(text: str, span: Span, border: Border) -> list[int]:
    """Positions within a sentence behind which there is this border; it is one below those of sentences."""
    found = (match.end() for match in _CUTS[border].finditer(text, *span))
    return [at for at in found if span.start < at < span.end and not joins(text, at)]


def characters(text: str, span: Span, step: int) -> Iterator[Span]:
    """A part of a text in parts of `step` code points, or a few more: no character loses its marks."""
    start = span.start
    while start < span.end:
        end = min(start + step, span.end)
        while end < span.end and joins(text, end):
            end += 1
        yield Span(start, end)
        start = end


def joins(text: str, at: int) -> bool:
    """Whether what stands at a position is one character with what stands before it, to a reader."""
    char = text[at]
    return (
        unicodedata.category(char)[0] == "M"  # dakuten that was typed apart, accents, variation selectors
        or char in "\u200dﾞﾟ"
        or "\U0001f3fb" <= char <= "\U0001f3ff"  # skin tones
        or text[at - 1] == "\u200d"
    )


def _closed_brackets(text: str) -> dict[int, int]:
    """Positions of opening brackets that count, and of what closes them."""
    closed: dict[int, int] = {}
    pending: deque[int] = deque()
    awaited: Counter[str] = Counter()  # what would close them; so that a stray one costs no search
    for match in _BRACKET.finditer(text):
        at, char = match.start(), match[0]
        while pending and at - pending[0] > MAX_BRACKETED:
            awaited[_CLOSING[text[pending.popleft()]]] -= 1
        if char in _CLOSING:
            pending.append(at)
            awaited[_CLOSING[char]] += 1
        elif awaited[char]:
            closing = ""
            while closing != char:  # those inside that nobody closed are dropped
                opening = pending.pop()
                closing = _CLOSING[text[opening]]
                awaited[closing] -= 1
            closed[opening] = at
        elif len(char) > 1:  # a blank line
            pending.clear()
            awaited.clear()
    return closed


def _end_of_mark(text: str, start: int, stop: int, begin: int) -> int | None:
    """Where the sentence ends that has end marks at start to stop; None where they end nothing."""
    marks, end = text[start:stop], _skip(_AFTER_MARK, text, stop)
    following = text[end : end + 1]
    if marks == "．" and (
        (text[start - 1 : start].isdecimal() and following.isdecimal())
        or _NUMBER.fullmatch(text, begin, start)
    ):
        return None
    if not marks.strip("!?") and following.isascii() and following.strip():
        return None
    if end > stop and _GOES_ON.match(following):
        return None
    return None if following and joins(text, end) else end


def _end_of_quotation(text: str, stop: int) -> int | None:
    """Where the sentence ends that is a quotation to here; None where it goes on."""
    end = _skip(_AFTER_MARK, text, stop)
    following = text[end : end + 1]
    return None if following and (_GOES_ON.match(following) or joins(text, end)) else end


def _is_ended(sentence: str) -> bool:
    """Whether a sentence has an end mark, not only the end of its line."""
    return sentence.rstrip(_CLOSERS).endswith((*_ENDS, *_TRAILS, "."))


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    """The position behind what a pattern matches here."""
    match = pattern.match(text, at)
    return match.end() if match else at
