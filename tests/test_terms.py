"""Terms of full-text search: 表記ゆれ, model numbers, spans."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jacolbert_rag.encode import kanji
from jacolbert_rag.encode.kanji import new_forms
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.terms import OTHER_WEIGHT, TermMaker
from jacolbert_rag.encode.words import PIECE_CHARS, WordSegmenter

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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("圖書館", "図書館"),
        ("經濟", "経済"),
        ("發電", "発電"),
        ("渡邊さん", "渡辺さん"),
        ("渡邉さん", "渡辺さん"),
        ("齋藤さん", "斎藤さん"),
        ("髙橋さん", "高橋さん"),
        ("澤田さん", "沢田さん"),
        ("慶應義塾", "慶応義塾"),
        ("霞ヶ関", "霞が関"),
        ("茅ヶ崎", "茅ケ崎"),
        ("三ヶ月", "三か月"),
    ],
)
def test_old_forms_of_kanji_are_those_of_today(one: str, other: str) -> None:
    assert MAKER.terms(one) == MAKER.terms(other)
    assert TermMaker(fold=False).terms(one) != TermMaker(fold=False).terms(other)


def test_pairs_of_kanji() -> None:
    text = "髙﨑の國會圖書館へ行った。"
    assert new_forms(text) == "高崎の国会図書館へ行った。"
    assert [text[slice(*span)] for _, span, _ in MAKER.spans(text)][:2] == ["髙﨑", "國會"]
    pairs = kanji._NEW_FORMS
    assert len(pairs) > 350
    assert not {chr(new) if isinstance(new, int) else new for new in pairs.values()} & set(map(chr, pairs))


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Pokémon151", ["pokémon151", "pokémon", "151"]),
        ("Müller-X100", ["müllerx100", "müller", "x", "100"]),
        ("図3,4", ["図", "3", "4"]),
        ("1,2,3章", ["1", "2", "3", "章"]),
        ("1,234,567円", ["1234567", "円"]),
        ("2024.04.01", ["20240401", "2024", "04", "01"]),
        ("2024/04/01", ["20240401", "2024", "04", "01"]),
        ("3.5倍", ["3.5", "倍"]),
    ],
)
def test_codes_and_numbers(text: str, terms: list[str]) -> None:
    assert MAKER.terms(text) == terms


def test_a_code_that_begins_within_a_word_is_not_lost() -> None:
    # Where a word reaches into a run of letters and digits, the rest of the run is still there.
    for letter in map(chr, range(0xC0, 0x590)):
        if not unicodedata.decomposition(letter) and letter.isalpha():
            terms = MAKER.terms(f"{letter}X-151")
            assert any("151" in term for term in terms), letter


@pytest.mark.parametrize(
    "text",
    [
        "the quick brown fox " * 50_000,
        "12,34.5\n" * 125_000,
        "琵琶湖は滋賀県にある日本で最も大きな湖である。" * 50_000,
        "1," * 100_000,
        "a" * 200_000,
        "=" * 50_000,
    ],
)
def test_a_long_text_ends_no_process(text: str) -> None:
    code = "import sys; from jacolbert_rag.encode.terms import TermMaker; TermMaker().terms(sys.stdin.read())"
    found = subprocess.run([sys.executable, "-c", code], input=text, text=True, capture_output=True)
    assert found.returncode == 0, found.stderr


def test_a_long_text_has_the_words_of_its_sentences() -> None:
    sentence = "琵琶湖は滋賀県にある日本で最も大きな湖である。"
    n = 3 * PIECE_CHARS // len(sentence)
    for read in (WordSegmenter().words, MAKER.terms):
        assert read(sentence * n) == read(sentence) * n
    spans = MAKER.spans(sentence * n)
    assert [sentence[slice(*span)] for _, span, _ in MAKER.spans(sentence)] * n == [
        (sentence * n)[slice(*span)] for _, span, _ in spans
    ]


def test_of_a_long_text_the_head_is_read_and_what_is_around_words() -> None:
    filler = "これは長い文書の途中の文である。" * 300
    text = f"琵琶湖は湖である。{filler}型番はＡＢＣ－１２３だ。{filler}"
    words, found = MAKER.places(text, 20, {"abc123", "琵琶", "書く"}, {"abc-123"})
    assert words.tolist() == sorted(words.tolist(), key=lambda span: span[0])
    head = MAKER.spans(text[:20])
    assert words[: len(head)].tolist() == [list(span) for _, span, _ in head]
    assert {term for term, _, _ in found} == {"abc123", "琵琶"}
    (code,) = [span for term, span, _ in found if term == "abc123"]
    assert text[slice(*code)] == "ＡＢＣ－１２３"
    assert len(words) < 0.4 * len(MAKER.spans(text))


def test_of_a_short_text_all_places_are_found() -> None:
    text = "琵琶湖は湖である。ＡＢＣ－１２３の湖。"
    words, found = MAKER.places(text, 50, {"湖", "琵琶"}, {"無い"})
    whole = MAKER.spans(text)
    assert words.tolist() == [list(span) for _, span, _ in whole]
    assert found == [one for one in whole if one.term in ("湖", "琵琶")]


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
