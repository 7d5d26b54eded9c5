from __future__ import annotations

import json
import random
import string
import threading
from pathlib import Path

import numpy as np
import pytest

from jacolbert_rag import CheckpointError, EncoderConfig, InvalidInputError
from jacolbert_rag.encode.tokens import (
    MASK,
    SEP,
    UNK,
    JapaneseTokenizer,
    WordSegmenter,
    clean,
    padded_query_length,
)
from tests.conftest import SENTENCES, tiny_vocab

CONFIG = EncoderConfig(dim=16, document_length=64, max_positions=128)


@pytest.fixture(scope="module")
def tokenizer() -> JapaneseTokenizer:
    return JapaneseTokenizer(tiny_vocab(), CONFIG)


@pytest.fixture(scope="module")
def reference(tiny_model: Path):
    from transformers import BertJapaneseTokenizer

    return BertJapaneseTokenizer.from_pretrained(str(tiny_model))


@pytest.mark.parametrize(
    ("n", "length"),
    # The table of arXiv 2407.20750, section 3.5, as its rule gives it.
    [
        (3, 32),
        (8, 32),
        (24, 32),
        (25, 33),
        (26, 34),
        (31, 39),
        (32, 40),
        (33, 64),
        (40, 64),
        (41, 64),
        (56, 64),
        (57, 65),
        (64, 72),
    ],
)
def test_paper_rule(n: int, length: int) -> None:
    assert padded_query_length(n, "paper") == length


def test_fixed_rule() -> None:
    assert padded_query_length(5, "fixed:32") == 32
    assert padded_query_length(50, "fixed:32") == 32


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


def _fuzz(n: int) -> list[str]:
    rng = random.Random(7)
    pieces = [
        "東京", "ｻｰﾊﾞｰ", "サーバ", "々", "ー", "𠮷", "髙", "㌔", "①", "½", "か゛", "\u3000", " ", "\n", "\t",
        "！？", "。",
        "、", "「", "」", "ABC", "ｘｙｚ", "3,776", "🙂", "👨‍👩‍👧", "é", "e\u0301",
        "한국", "\u200b", "\ufeff", "…",
        *string.punctuation,
    ]  # fmt: skip
    return ["".join(rng.choices([*pieces, *"".join(SENTENCES)], k=rng.randint(1, 40))) for _ in range(n)]


def test_ids_equal_the_reference_tokenizer(tokenizer: JapaneseTokenizer, reference) -> None:
    texts = [*SENTENCES, *_fuzz(2000)]
    expected = reference([clean(text) for text in texts], add_special_tokens=False)["input_ids"]
    differing = [text for text, ids in zip(texts, expected, strict=True) if tokenizer.word_ids(text) != ids]
    # The reference turns these literals into special tokens; the fuzz makes none of them.
    assert not differing


def test_ids_equal_the_reference_tokenizer_on_real_text(shared_data: Path) -> None:
    import gzip

    from transformers import BertJapaneseTokenizer

    from jacolbert_rag.encode.checkpoint import resolve_folder

    folder = resolve_folder("default")
    ours = JapaneseTokenizer.from_folder(folder, EncoderConfig())
    theirs = BertJapaneseTokenizer.from_pretrained(str(folder))
    with gzip.open(shared_data / "jaquad" / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(next(file))["text"] for _ in range(500)]
    expected = theirs([clean(text) for text in texts], add_special_tokens=False)["input_ids"]
    assert [ours.word_ids(text) for text in texts] == expected


def test_literal_special_tokens_are_text(tokenizer: JapaneseTokenizer) -> None:
    specials = {tokenizer.vocab[t] for t in ("[SEP]", "[MASK]", "[CLS]", "[PAD]", "[unused0]", "[unused1]")}
    assert not specials & set(tokenizer.word_ids("[SEP]富士山[MASK][CLS][PAD][unused0][unused1]"))


def test_document_layout(tokenizer: JapaneseTokenizer) -> None:
    batch = tokenizer.documents(["富士山は高い", "湖"])
    first = batch.ids[: batch.offsets[1]]
    assert list(first[:2]) == [tokenizer.cls_id, tokenizer.document_marker_id]
    assert first[-1] == tokenizer.sep_id
    assert list(first[2:-1]) == tokenizer.word_ids("富士山は高い")
    assert list(batch.n_attended) == list(batch.lengths)


def test_query_layout(tokenizer: JapaneseTokenizer) -> None:
    batch = tokenizer.queries(["湖はどこ？"])
    n = int(batch.n_attended[0])
    assert list(batch.ids[:2]) == [tokenizer.cls_id, tokenizer.query_marker_id]
    assert batch.ids[n - 1] == tokenizer.sep_id
    assert len(batch.ids) == 32
    assert set(batch.ids[n:]) == {tokenizer.mask_id}


def test_document_is_cut_and_counted(tokenizer: JapaneseTokenizer) -> None:
    batch = tokenizer.documents(["湖" * 10, "富士山、" * 300])
    assert batch.lengths[1] == 64
    assert batch.n_cut[0] == 0
    assert batch.n_cut[1] > 0
    assert batch.ids[-1] == tokenizer.sep_id


def test_query_keeps_room_for_eight_masks(tokenizer: JapaneseTokenizer) -> None:
    batch = tokenizer.queries(["富士山、" * 300])
    assert batch.lengths[0] == 128
    assert batch.n_attended[0] == 120
    assert batch.n_cut[0] > 0


def test_megabyte_is_read_only_as_far_as_needed(tokenizer: JapaneseTokenizer) -> None:
    batch = tokenizer.documents(["琵琶湖は広い。" * 150_000])
    assert batch.lengths[0] == 64
    assert batch.n_cut[0] > 0


def test_skiplist_is_ascii_punctuation_without_unk() -> None:
    vocab = [token for token in tiny_vocab() if token != "`"]
    tokenizer = JapaneseTokenizer(vocab, CONFIG)
    skipped = tokenizer.skiplist()
    assert len(skipped) == len(string.punctuation) - 1
    assert tokenizer.vocab[UNK] not in skipped
    # Full-width punctuation is folded to ASCII and skipped; Japanese punctuation is not.
    assert set(tokenizer.word_ids("！？（）")) <= skipped
    assert not set(tokenizer.word_ids("、。「」")) & skipped


def test_word_of_over_100_characters_is_unknown(tokenizer: JapaneseTokenizer) -> None:
    assert tokenizer._wordpiece("a" * 101) == (tokenizer.unk_id,)
    assert len(tokenizer._wordpiece("a" * 100)) == 100


def test_vocabulary_without_a_marker_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"lacks \[unused1\].*same checkpoint"):
        JapaneseTokenizer([t for t in tiny_vocab() if t != "[unused1]"], CONFIG)


def test_other_tokenizer_class_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes((tiny_model / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    with pytest.raises(CheckpointError, match="BertJapaneseTokenizer"):
        JapaneseTokenizer.from_folder(tmp_path, CONFIG)


def test_threads_give_the_same_ids(tokenizer: JapaneseTokenizer) -> None:
    expected = [tokenizer.word_ids(text) for text in SENTENCES]
    results: list[list[list[int]]] = []
    threads = [
        threading.Thread(target=lambda: results.append([tokenizer.word_ids(t) for t in SENTENCES]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_words() -> None:
    assert WordSegmenter().words("東京都に行く") == ["東京", "都", "に", "行く"]


@pytest.mark.parametrize("rule", ["fixed:3", "fixed:0", "papers", "fixed:129", ""])
def test_unknown_query_length_is_refused(rule: str) -> None:
    with pytest.raises(InvalidInputError, match="query_length must be 'paper', or 'fixed:N'"):
        EncoderConfig(query_length=rule, max_positions=128, document_length=64)


def test_special_ids_of_the_bundled_model() -> None:
    from jacolbert_rag.encode.checkpoint import resolve_folder

    tokenizer = JapaneseTokenizer.from_folder(resolve_folder("default"), EncoderConfig())
    assert [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert (tokenizer.query_marker_id, tokenizer.document_marker_id) == (5, 6)
    assert len(tokenizer.skiplist()) == 32
    assert np.all([tokenizer.vocab[t] is not None for t in (MASK, SEP)])
