"""Raw text to the text that a tokenizer reads, with the way back to the raw characters."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jacolbert_rag.datatypes import IntArray

# Control characters that stand between words become a space (tab, line ends, vertical tab, form
# feed, file separators, next line); all others vanish, so that a NUL inside a word does not split it.
# Lone surrogates vanish as well.
_SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85"
_REMOVED = dict.fromkeys((*range(32), *range(127, 160), *range(0xD800, 0xE000)))
_TO_SPACES = _REMOVED | {ord(c): " " for c in _SPACES}
# A tokenizer that was not trained on NFKC text may know line ends and tabs.
_TO_LINES = _TO_SPACES | {ord(c): c for c in "\t\n\r"}
# Most texts have none of these, and a search is much faster than a translation.
_UNCLEAN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

MAX_MEMO_CHARS = 10_000  # of a text that is remembered while others come

# Starters (combining class 0) that compose with the character before them: by Unicode's algorithm
# (Hangul vowels and finals) and by its table (vowel signs of Indic scripts). A test derives them anew.
_COMPOSING_STARTERS = frozenset(
    [chr(c) for c in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))]
    + [
        chr(c)
        for c in (
            0x9BE, 0x9D7, 0xB3E, 0xB56, 0xB57, 0xBBE, 0xBD7, 0xCC2, 0xCD5, 0xCD6, 0xD3E, 0xD57, 0xDCF, 0xDDF,
            0x102E, 0x1B35, 0x11127, 0x1133E, 0x11357, 0x114B0, 0x114BA, 0x114BD, 0x115AF, 0x11930,
        )
    ]
)  # fmt: skip


def clean(text: str) -> str:
    """The text as MeCab reads it: without control characters and lone surrogates, in NFKC.

    MeCab ends a text at NUL, and UTF-8 has no lone surrogates: either would lose a document.
    """
    return unicodedata.normalize("NFKC", text.translate(_TO_SPACES) if _UNCLEAN.search(text) else text)


def strip_controls(text: str) -> str:
    """The text without lone surrogates and control characters other than tab and line ends."""
    return text.translate(_TO_LINES) if _UNCLEAN.search(text) else text


@dataclass(frozen=True)
class AlignedText:
    """A cleaned text whose characters know where they come from.

    Attributes:
        text: what `clean` or `strip_controls` makes of the raw text.
        starts: (len(text),) int64: the first raw character of each.
        ends: (len(text),) int64: the raw character after its last. Characters that NFKC made together
            share one span: each of ㌔'s キロ comes from ㌔, and ガ from both of ｶﾞ.
    """

    text: str
    starts: IntArray
    ends: IntArray

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The raw span of `text[start:stop]`, which has at least one character."""
        return int(self.starts[start]), int(self.ends[stop - 1])

    def spans(self, starts: list[int], stops: list[int]) -> IntArray:
        """(n, 2) int64: `span` of each of n parts."""
        first, last = np.array(starts, dtype=np.int64), np.array(stops, dtype=np.int64) - 1
        return np.stack([self.starts[first], self.ends[last]], axis=1)


def align(text: str, *, nfkc: bool) -> AlignedText:
    """Clean a text and keep the way back.

    Args:
        text: raw text; offsets count its characters (code points), as Python's slices do.
        nfkc: what `clean` does, else what `strip_controls` does.
    """
    # A hit's text is read twice in a row: for its tokens and for its terms.
    return (_align_memo if len(text) <= MAX_MEMO_CHARS else _align)(text, nfkc)


def _align(text: str, nfkc: bool) -> AlignedText:
    table = _TO_SPACES if nfkc else _TO_LINES
    if not _UNCLEAN.search(text) and (not nfkc or unicodedata.is_normalized("NFKC", text)):
        starts = np.arange(len(text), dtype=np.int64)
        return AlignedText(text, starts, starts + 1)
    kept = [
        (c if c not in _SPACES else c.translate(table), i)
        for i, c in enumerate(text)
        if table.get(ord(c), c) is not None
    ]
    if not nfkc:
        return _aligned([(c, i, i + 1) for c, i in kept])
    pieces: list[tuple[str, int, int]] = []
    start = 0
    while start < len(kept):
        stop = start + 1
        while stop < len(kept) and _joins_what_precedes(kept[stop][0]):
            stop += 1
        if stop - start == 1:
            char, i = kept[start]
            pieces += [(c, i, i + 1) for c in _normal(char)]
            start = stop
            continue
        group = kept[start:stop]
        raw = "".join(c for c, _ in group)
        normal = unicodedata.normalize("NFKC", raw)
        if normal == raw:
            pieces += [(c, i, i + 1) for c, i in group]
        else:
            first, last = group[0][1], group[-1][1] + 1
            pieces += [(c, first, last) for c in normal]
        start = stop
    return _aligned(pieces)


_align_memo = lru_cache(maxsize=64)(_align)


def _aligned(pieces: list[tuple[str, int, int]]) -> AlignedText:
    return AlignedText(
        "".join([c for c, _, _ in pieces]),
        np.array([start for _, start, _ in pieces], dtype=np.int64),
        np.array([end for _, _, end in pieces], dtype=np.int64),
    )


@lru_cache(maxsize=65_536)
def _normal(char: str) -> str:
    return unicodedata.normalize("NFKC", char)


@lru_cache(maxsize=65_536)
def _joins_what_precedes(char: str) -> bool:
    """Whether NFKC may compose or reorder a character with those before it."""
    if char < "\u0300":
        return False
    first = unicodedata.normalize("NFKD", char)[0]  # half-width ﾞ decomposes to the combining mark
    return unicodedata.combining(first) != 0 or first in _COMPOSING_STARTERS
