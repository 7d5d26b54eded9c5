from __future__ import annotations

import threading
import unicodedata
from pathlib import Path

import pytest

from jacolbert_rag import CheckpointError
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.words import MASK, SEP, JapaneseWordPiece, WordSegmenter
from tests.conftest import SENTENCES, fuzz_texts, tiny_vocab


@pytest.fixture(scope="module")
def subwords() -> JapaneseWordPiece:
    return JapaneseWordPiece(tiny_vocab())


@pytest.fixture(scope="module")
def reference(tiny_model: Path):
    from transformers import BertJapaneseTokenizer

    return BertJapaneseTokenizer.from_pretrained(str(tiny_model))


def test_words() -> None:
    assert WordSegmenter().words("東京都に行く") == ["東京", "都", "に", "行く"]


def test_ids_equal_the_reference_tokenizer(subwords: JapaneseWordPiece, reference) -> None:
    # The reference turns literal special tokens into ids; the fuzz makes none of them.
    texts = [*SENTENCES, *fuzz_texts(10_000)]
    expected = reference([clean(text) for text in texts], add_special_tokens=False)["input_ids"]
    differing = [text for text, ids in zip(texts, expected, strict=True) if subwords.ids(text) != ids]
    assert not differing


def test_lower_casing_as_the_reference(tiny_model: Path) -> None:
    from transformers import BertJapaneseTokenizer

    theirs = BertJapaneseTokenizer.from_pretrained(str(tiny_model), do_lower_case=True)
    ours = JapaneseWordPiece(tiny_vocab(), lowercase=True)
    for text in [*SENTENCES, "ＪａＣｏｌＢＥＲＴ ABC İstanbul"]:
        assert ours.ids(text) == theirs(clean(text), add_special_tokens=False)["input_ids"]
        ids, spans = ours.ids_and_spans(text)
        assert len(ids) == len(spans)


def test_literal_special_tokens_are_text(subwords: JapaneseWordPiece) -> None:
    specials = {subwords.vocab[t] for t in (SEP, MASK, "[CLS]", "[PAD]", "[unused0]", "[unused1]")}
    assert not specials & set(subwords.ids("[SEP]富士山[MASK][CLS][PAD][unused0][unused1]"))


def test_control_characters_are_gone(subwords: JapaneseWordPiece, reference) -> None:
    # The reference stops at NUL ("東京" is all it reads of this) and splits words at other controls.
    assert subwords.ids("東京\0は日本\x07の首都") == subwords.ids("東京は日本の首都")
    assert reference("東京\0は日本の首都", add_special_tokens=False)["input_ids"] == subwords.ids("東京")


def check_spans(subwords: JapaneseWordPiece, text: str) -> None:
    ids, spans = subwords.ids_and_spans(text)
    assert ids == subwords.ids(text)
    one_to_one = len(text) == len(clean(text)) and all(
        unicodedata.normalize("NFKC", c) == d for c, d in zip(text, clean(text), strict=True)
    )
    for id, (start, end) in zip(ids, spans, strict=True):
        token = subwords.tokens[id]
        surface = token.removeprefix("##")
        under = clean(text[start:end])
        if id == subwords.special.unk:
            assert under.strip()
        elif one_to_one:
            assert under in (surface, token)
        else:
            assert surface in under or token in under
    starts = [start for start, _ in spans]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("富士山は高い", ["富士", "山", "は", "高", "い"]),
        ("ｻｰﾊﾞｰの再起動", ["ｻｰﾊﾞｰ", "の", "再", "起動"]),
        (" 東\0京\u3000は", ["東\0京", "は"]),
        ("Ｊａ", ["Ｊ", "ａ"]),
        ("３，７７６ﾒｰﾄﾙ", ["３", "，", "７７６", "ﾒｰﾄﾙ"]),
    ],
)
def test_spans_are_of_the_raw_text(subwords: JapaneseWordPiece, text: str, spans: list[str]) -> None:
    assert [text[start:end] for start, end in subwords.ids_and_spans(text)[1]] == spans


def test_spans_hold_their_tokens(subwords: JapaneseWordPiece) -> None:
    for text in [*SENTENCES, *fuzz_texts(2_000, seed=11)]:
        check_spans(subwords, text)


def test_word_of_over_100_characters_is_unknown(subwords: JapaneseWordPiece) -> None:
    assert subwords._wordpiece("a" * 101) == (subwords.special.unk,)
    assert len(subwords._wordpiece("a" * 100)) == 100


def test_memory_of_words_is_bounded(subwords: JapaneseWordPiece, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jacolbert_rag.encode.words.MAX_MEMO_WORDS", 5)
    small = JapaneseWordPiece(tiny_vocab())
    for text in SENTENCES:
        assert small.ids(text) == subwords.ids(text)
        assert len(small._memo) <= 5


def test_threads_give_the_same_ids(subwords: JapaneseWordPiece) -> None:
    expected = [subwords.ids(text) for text in SENTENCES]
    results: list[list[list[int]]] = []
    threads = [
        threading.Thread(target=lambda: results.append([subwords.ids(t) for t in SENTENCES]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_threads_that_end_leave_no_tagger_behind() -> None:
    from jacolbert_rag.encode import words

    for _ in range(5):
        thread = threading.Thread(target=WordSegmenter().words, args=("東京都に行く",))
        thread.start()
        thread.join()
    n = len(words._IDLE_TAGGERS)
    for _ in range(5):
        thread = threading.Thread(target=WordSegmenter().words, args=("東京都に行く",))
        thread.start()
        thread.join()
    assert len(words._IDLE_TAGGERS) == n


def test_vocabulary_without_a_special_token_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"lacks \[MASK\].*vocab\.txt from the checkpoint"):
        JapaneseWordPiece([t for t in tiny_vocab() if t != MASK])


def test_vocabulary_with_a_line_twice_is_refused() -> None:
    with pytest.raises(CheckpointError, match="only .* different ones"):
        JapaneseWordPiece([*tiny_vocab(), "東京"])


def real_texts(folder: Path) -> list[str]:
    """Every passage and question of the real data."""
    import gzip
    import json

    texts = []
    for path in sorted(folder.glob("**/*.jsonl.gz")):
        if path.parent.name == "weak_pairs":
            continue
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                texts += [row[key] for key in ("title", "text") if row.get(key)]
    return texts


@pytest.mark.slow
def test_ids_and_spans_on_every_real_text(shared_data: Path) -> None:
    from transformers import BertJapaneseTokenizer

    from jacolbert_rag.encode.files import resolve_folder
    from jacolbert_rag.encode.tokens import load_subwords

    folder = resolve_folder("default")
    ours = load_subwords(folder)
    assert isinstance(ours, JapaneseWordPiece)
    theirs = BertJapaneseTokenizer.from_pretrained(str(folder))
    texts = list(dict.fromkeys(real_texts(shared_data)))
    assert len(texts) > 50_000
    differing = []
    for start in range(0, len(texts), 1_000):
        batch = texts[start : start + 1_000]
        expected = theirs([clean(text) for text in batch], add_special_tokens=False)["input_ids"]
        differing += [t for t, ids in zip(batch, expected, strict=True) if ours.ids(t) != ids]
    assert not differing
    for text in texts:
        check_spans(ours, text)
