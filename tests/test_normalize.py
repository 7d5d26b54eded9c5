from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jacolbert_rag.encode import normalize
from jacolbert_rag.encode.normalize import align, clean, strip_controls
from tests.conftest import SENTENCES


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("ＡＢＣ１２３", "ABC123"),
        ("ｻｰﾊﾞｰ", "サーバー"),
        ("㍿", "株式会社"),
        ("東\0京", "東京"),
        ("一行\r\n二行", "一行  二行"),
        ("頁\x0c次頁", "頁 次頁"),
        ("前\ud800後", "前後"),
        ("𠮷野家", "𠮷野家"),
        ("\x1b[31m赤", "[31m赤"),
    ],
)
def test_clean(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


def test_strip_controls_keeps_lines_and_width() -> None:
    assert strip_controls("Ａ\0Ｂ\n\tＣ\x07\ud800") == "ＡＢ\n\tＣ"


TEXTS = [
    *SENTENCES,
    "ｻｰﾊﾞｰ",
    "㌔㍉",
    "が\u3099か\u3099",
    "ﾊﾟﾋﾟ",
    "\0東\0京\0",
    "か\0\u3099",
    "e\u0301\u0323",
    "각\u11a8",
    "\u1100\u1161\u11a8",
    "①½Ⅻ",
    "👨‍👩‍👧🙂",
    "前\ud800後",
    "\u09c7\u09be",
    "\u3099頭",
    "ﾞ",
    "",
    "\0",
    "  \u3000 ",
    "ﷺ",
    "\u0344",
]


@pytest.mark.parametrize("raw", TEXTS)
@pytest.mark.parametrize("nfkc", [True, False])
def test_alignment_gives_the_cleaned_text_and_covers_it(raw: str, nfkc: bool) -> None:
    check_alignment(raw, nfkc=nfkc)


@given(st.text(st.sampled_from([*"".join(TEXTS), *"ｶﾞか\u3099\0\n \u0301A"]), max_size=30))
def test_alignment_of_random_text(raw: str) -> None:
    check_alignment(raw, nfkc=True)
    check_alignment(raw, nfkc=False)


def check_alignment(raw: str, *, nfkc: bool) -> None:
    cleaner = clean if nfkc else strip_controls
    aligned = align(raw, nfkc=nfkc)
    assert aligned.text == cleaner(raw)
    assert len(aligned.starts) == len(aligned.ends) == len(aligned.text)
    assert (aligned.starts < aligned.ends).all()
    assert (aligned.starts[1:] >= aligned.starts[:-1]).all()
    for i, char in enumerate(aligned.text):
        start, end = aligned.span(i, i + 1)
        assert char in cleaner(raw[start:end])


def test_every_character_that_composes_is_known() -> None:
    # What NFC makes of two characters of which the second is a starter, by Python's own tables.
    second = set()
    for code in range(sys.maxunicode + 1):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            tail = chr(int(parts[1], 16))
            if unicodedata.combining(tail) == 0 and unicodedata.is_normalized("NFC", chr(code)):
                second.add(tail)
    assert second <= normalize._COMPOSING_STARTERS
