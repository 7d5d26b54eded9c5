from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jacolbert_rag.datatypes import Span
from jacolbert_rag.encode.sentences import Border, borders, characters, cuts, joins, sentences

# What borders are made of, and what stands between them.
JAPANESE = st.text(
    alphabet=st.sampled_from(
        "あいカー々漢𠮷aB1１．.。！？!?…、「」『』（）()“”\"' \u3000\n\r\u2028\t\u3099\u200d・#"
    )
)


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


def levels(text: str) -> list[str]:
    return [border.name for border in borders(text, sentences(text))]


@pytest.mark.parametrize(
    "parts",
    [
        ["一つ目の文。", "二つ目の文！", "三つ目の文？", "四つ目の文．", "五つ目の文｡", "終わり"],
        # Brackets are closed first.
        ["彼は「行く。必ず。」と言った。", "次の文。"],
        ["彼は（明日。たぶん。）来る『かも「ね。」しれない。』そうだ。", "次。"],
        ["「行\nく。\n必ず。」と言った。", "次。"],
        # A sentence that is a quotation ends with it; one that goes on does not.
        ["「四つ目。」", "五つ目の文。"],
        ["「行こう！」", "「うん。」と二人は言った。"],
        ["「行く。」、「来る。」も同じだ。"],
        ["『魔法！』の本。"],
        ["（注意。）", "本文。"],
        # Marks and what closes behind them stay together.
        ["そうか……。", "本当に！？", "はい！！！", "ええ……。…", "終"],
        ["止まった……続いた。"],
        ["必ず。」", "彼は去った。"],
        ["必ず。）と書いた。", "次。"],
        # Neither code, addresses nor numbers are cut.
        ["a!=b は偽ですか? ", "はい!", "終"],
        ["https://x.example/?q=1&r=!2 を見る。", "次。"],
        ["円周率は３．１４だ．", "次だ．"],
        ["１．概要", ],
        ["１．２．　概要\n", "Ａ．付録\n", "本文．", "終"],
        ["以上．", "次．"],
        ["なぜ？", "Pythonで書く。"],
        # Lines.
        ["見出し\n", "・項目\r\n", "・項目\r\n\r\n", "段落\u2028　", "字下げ"],
        ["行\n 　\n\n", "次"],
        # Unbalanced brackets.
        ["「閉じない。", "次の文。", "（終わり。"],
        ["「開く\n\n", "閉じない。」", "終。"],
        ["（「中。）は外。", "次。"],
        # One character to a reader.
        ["か。\u3099き"],
        ["𠮷野家。", "𠮷。"],
        ["句点のない文"],
        [" \n\u3000\n"],
        ["　\n最初の文。", "次"],
        [],
    ],
)  # fmt: skip
def test_sentences(parts: list[str]) -> None:
    assert split("".join(parts)) == parts


def test_brackets_far_apart_are_not_closed() -> None:
    near = "「" + "あ" * 149 + "。" + "い" * 149 + "」だ。"
    assert split(near + "次。") == [near, "次。"]
    far = "「" + "あ" * 150 + "。" + "い" * 149 + "」だ。"
    assert split(far + "次。") == [far[:152], far[152:], "次。"]


@pytest.mark.parametrize("openers", ["「", "（『【", "“"])
def test_unbalanced_brackets_glue_nothing_together(openers: str) -> None:
    text = "".join(f"{openers}{i}番目の文である。" for i in range(500))
    assert len(sentences(text)) >= 499


@pytest.mark.parametrize(
    "text",
    [
        "「" * 1_000_000,
        "」" * 1_000_000,
        "「）" * 500_000,
        "「あ」" * 333_333,
        "「" * 300 + "）" * 1_000_000,
        "。" * 1_000_000,
        "。」" * 500_000 + "x",
        "!" * 1_000_000 + "x",
        " " * 1_000_000 + "x",
        "\r" * 1_000_000 + "x",
        "\n " * 500_000 + "x",
        "１．" * 500_000,
        "か" + "\u3099" * 1_000_000,
    ],
    ids=lambda text: repr(text[:3]),
)
def test_a_megabyte_takes_seconds(text: str) -> None:
    start = time.perf_counter()
    found = sentences(text)
    borders(text, found)
    assert time.perf_counter() - start < 20  # about one on an idle machine
    assert "".join(text[a:b] for a, b in found) == text


@given(JAPANESE | st.text())
@settings(max_examples=300, deadline=None)
def test_sentences_cover_the_text(text: str) -> None:
    found = sentences(text)
    assert [start for start, _ in found] == [0, *(end for _, end in found)][: len(found)]
    assert all(start < end for start, end in found)
    assert "".join(split(text)) == text
    assert all(part.strip() for part in split(text)) or not text.strip()
    assert not any(joins(text, start) for start, _ in found[1:] if not text[start - 1].isspace())
    assert len(borders(text, found)) == len(found)


def test_kinds_of_borders() -> None:
    text = "一文。二文。\n三文。\n\n四文\nの続き。\n　字下げ。\n・項目\n・項目\n\n終"
    assert levels(text) == [
        "SENTENCE", "LINE", "PARAGRAPH", "BARE_LINE", "LINE", "LINE", "LINE", "PARAGRAPH", "SENTENCE",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("見出し\n本文。\n", ["BARE_LINE", "LINE"]),
        ("前。\n\n見出し\n\n本文。", ["PARAGRAPH", "BARE_LINE", "SENTENCE"]),
        ("# 章\n\n## 節\n\n本文。", ["BARE_LINE", "BARE_LINE", "SENTENCE"]),
        ("前。\n# 見出し\n\n本文。", ["LINE", "BARE_LINE", "SENTENCE"]),
        ("１．概要\n\n本文。", ["BARE_LINE", "SENTENCE"]),
        ("持ち物\n・水\n・紙\n\n次。", ["BARE_LINE", "LINE", "PARAGRAPH", "SENTENCE"]),
        ("折り返\nした文\n\n次。", ["BARE_LINE", "PARAGRAPH", "SENTENCE"]),
    ],
)
def test_headings_stay_with_what_they_head(text: str, expected: list[str]) -> None:
    assert levels(text) == expected


@pytest.mark.parametrize(
    ("border", "expected"),
    [
        (Border.CLAUSE, ["彼は「行く。", "Yes. ", "必ず、3.5と1,000の(例、A社) だ」と"]),
        (Border.COMMA, ["彼は「行く。Yes. 必ず、", "3.5と1,000の(例、", "A社) だ」と"]),
        (Border.BRACKET, ["彼は", "「行く。Yes. 必ず、3.5と1,000の", "(例、A社) ", "だ」", "と"]),
        (Border.SPACE, ["彼は「行く。Yes. ", "必ず、3.5と1,000の(例、A社) ", "だ」と"]),
        (Border.WORD, ["彼は「行く。Yes. 必ず、3.5と", "1,000の(例、A社) だ」と"]),
    ],
)
def test_places_to_cut_a_sentence(border: Border, expected: list[str]) -> None:
    text = "前。彼は「行く。Yes. 必ず、3.5と1,000の(例、A社) だ」と"
    span = Span(2, len(text))
    ends = cuts(text, span, border)
    assert [text[a:b] for a, b in zip([2, *ends], [*ends, len(text)], strict=True)] == expected


def test_characters_keep_their_marks() -> None:
    text = "か\u3099き👍🏽👨\u200d👩ｶﾞ𠮷葛\U000e0100"
    parts = [text[a:b] for a, b in characters(text, Span(0, len(text)), 1)]
    assert parts == ["か\u3099", "き", "👍🏽", "👨\u200d👩", "ｶﾞ", "𠮷", "葛\U000e0100"]
    assert [text[a:b] for a, b in characters(text, Span(2, len(text)), 4)] == [
        "き👍🏽👨\u200d👩",
        "ｶﾞ𠮷葛\U000e0100",
    ]
