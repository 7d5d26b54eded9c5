"""Terms of full-text search: 表記ゆれ, model numbers, spans."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.terms import OTHER_WEIGHT, TermMaker
from jacolbert_rag.encode.words import WordSegmenter

MAKER = TermMaker()
AWKWARD = (
    "㍿",
    "½",
    "カ゛",
    "𠮷野家",
    "ﾊﾞｰ",
    "東京都",
    "ＡＢＣ－１２３",
    "1,000円",
    "\x00",
    "\ud800",
    " \u3000",
)
AWKWARD += ("👨‍👩‍👧", "C++", "、", "サーバー", "書いた", "㌔", "\u2028", "1.5", "-", "のだ", "\t\n")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("サーバー", "サーバ"),
        ("ｻｰﾊﾞｰ", "サーバー"),
        ("コンピューター", "コンピュータ"),
        ("學校", "学校"),
        ("国際聯合", "国際連合"),
        ("引っ越した", "引越す"),
        ("ＡＢＣ－１２３", "abc123"),
        ("GPT-4o", "ＧＰＴ４ｏ"),
        ("1,000", "１０００"),
        ("Python", "PYTHON"),
        ("株式会社", "㍿"),
        ("ジャコルバー", "ジャコルバ"),  # not in the dictionary
    ],
)
def test_ways_of_writing_are_one_term(one: str, other: str) -> None:
    found, expected = MAKER.terms(one), MAKER.terms(other)
    assert found[0] == expected[0]
    assert len(found[0]) > 1 or one == "㍿"


@pytest.mark.parametrize(
    ("one", "other"), [("キー", "キ"), ("3.5", "35"), ("C++", "C"), ("東京", "京都"), ("abc123", "abc124")]
)
def test_what_is_different_stays_different(one: str, other: str) -> None:
    assert MAKER.terms(one)[0] not in MAKER.terms(other)


def test_particles_and_punctuation_are_no_terms() -> None:
    assert MAKER.terms("首都は、東京です。") == ["首都", "東京"]
    assert MAKER.terms("はがのを、。「」 \u3000") == []


def test_a_model_number_counts_whole_and_in_parts() -> None:
    assert MAKER.terms("型番ABC-123") == ["型番", "abc123", "abc", "123"]


def test_telling_terms() -> None:
    telling = {
        one.term for one in MAKER.spans("2011年に琵琶湖で何をする人がABC-12を使うこと") if one.is_telling
    }
    assert {"琵琶", "abc12", "使う"} <= telling
    assert telling.isdisjoint({"2011", "年", "何", "為る", "人", "事", "abc"})


def test_nouns_and_model_numbers_say_more_than_verbs() -> None:
    weights = {term: weight for term, _, weight in MAKER.spans("琵琶湖でABC-12を静かに使う")}
    assert weights["琵琶"] == weights["abc12"] == 1.0
    assert weights["使う"] == weights["静か"] == OTHER_WEIGHT


def test_not_folded_is_what_mecab_says() -> None:
    text = "サーバーの「ＡＢＣ－１２３」を書いた。"
    assert TermMaker(fold=False).terms(text) == WordSegmenter().words(clean(text))
    assert [term for term, _, _ in TermMaker(fold=False).spans(text)] == TermMaker(fold=False).terms(text)


@given(st.lists(st.sampled_from(AWKWARD) | st.text(max_size=4), max_size=8), st.booleans())
def test_spans_are_terms_and_lie_in_the_text(pieces: list[str], fold: bool) -> None:
    text = "".join(pieces)
    maker = TermMaker(fold=fold)
    spans = maker.spans(text)
    assert [term for term, _, _ in spans] == maker.terms(text)
    assert all(0 <= span.start < span.end <= len(text) for _, span, _ in spans)
    assert all(term for term, _, _ in spans)


@example(["\u2028:"])
@given(st.lists(st.sampled_from(AWKWARD) | st.text(max_size=4), max_size=8))
def test_tagged_words_are_the_words(pieces: list[str]) -> None:
    cleaned = clean("".join(pieces))
    assert [word.surface for word in WordSegmenter().tagged(cleaned)] == WordSegmenter().words(cleaned)
