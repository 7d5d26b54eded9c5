from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jacolbert_rag import CheckpointError, EncoderConfig, JaColBERTRetriever
from jacolbert_rag.encode.files import resolve_folder
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.tokens import Tokenizer, load_subwords
from jacolbert_rag.encode.words import UNK, JapaneseWordPiece
from tests.conftest import SENTENCES, fuzz_texts, tiny_vocab, write_fast_tokenizer

CONFIG = EncoderConfig(dim=16, document_length=64, max_positions=128)


def make(**changes: object) -> Tokenizer:
    return Tokenizer(JapaneseWordPiece(tiny_vocab()), replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make()


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = write_fast_tokenizer(tmp_path_factory.mktemp("fast"))
    return Tokenizer(load_subwords(folder), CONFIG)


@pytest.fixture(params=["japanese", "fast"])
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: Tokenizer, fast: Tokenizer) -> Tokenizer:
    return tokenizer if request.param == "japanese" else fast


def test_document_layout(any_tokenizer: Tokenizer) -> None:
    tokenizer = any_tokenizer
    batch = tokenizer.documents(["富士山は高い", "湖"])
    first = batch.ids[: batch.offsets[1]]
    assert list(first[:2]) == [*tokenizer.special.prefix, tokenizer.document_marker_id]
    assert (first[-1],) == tokenizer.special.suffix
    assert list(first[2:-1]) == tokenizer.word_ids("富士山は高い")
    assert list(batch.n_attended) == list(batch.lengths)


def test_query_layout(any_tokenizer: Tokenizer) -> None:
    tokenizer = any_tokenizer
    batch = tokenizer.queries(["湖はどこ？"])
    n = int(batch.n_attended[0])
    assert list(batch.ids[:2]) == [*tokenizer.special.prefix, tokenizer.query_marker_id]
    assert (batch.ids[n - 1],) == tokenizer.special.suffix
    assert len(batch.ids) == 32
    assert set(batch.ids[n:]) == {tokenizer.special.mask}


def test_masks_that_are_attended_to() -> None:
    batch = make(attend_to_mask_tokens=True).queries(["湖はどこ？"])
    assert batch.n_attended[0] == batch.lengths[0] == 32


def test_document_is_cut_and_counted(any_tokenizer: Tokenizer) -> None:
    batch = any_tokenizer.documents(["湖" * 10, "富士山、" * 300])
    assert batch.lengths[1] == 64
    assert batch.n_cut[0] == 0
    assert batch.n_cut[1] > 0
    assert (batch.ids[-1],) == any_tokenizer.special.suffix


def test_query_keeps_room_for_eight_masks(any_tokenizer: Tokenizer) -> None:
    batch = any_tokenizer.queries(["富士山、" * 300])
    assert batch.lengths[0] == 128
    assert batch.n_attended[0] == 120
    assert batch.n_cut[0] > 0


@pytest.mark.parametrize(
    ("rule", "attended", "length"),
    [("fixed(32)", 32, 32), ("plus(10)", 118, 128), ("none", 128, 128), ("jqara", 120, 128)],
)
def test_where_each_rule_cuts(rule: str, attended: int, length: int) -> None:
    batch = make(query_length=rule).queries(["富士山、" * 300])
    assert (batch.n_attended[0], batch.lengths[0]) == (attended, length)
    assert batch.n_cut[0] > 0


def test_budget_is_what_fits(any_tokenizer: Tokenizer) -> None:
    assert any_tokenizer.document_budget == 61
    assert make(document_marker="").document_budget == 62
    prompted = make(document_prompt="日本の: ")
    assert prompted.document_budget == 61 - len(prompted.word_ids("日本の: ")) < 61


def test_megabyte_is_read_only_as_far_as_needed(tokenizer: Tokenizer) -> None:
    batch = tokenizer.documents(["琵琶湖は広い。" * 150_000])
    assert batch.lengths[0] == 64
    assert batch.n_cut[0] > 0


def test_long_blank_before_the_text_does_not_hide_it(tokenizer: Tokenizer) -> None:
    batch = tokenizer.documents(["富士山は高い", " " * 50_000 + "富士山は高い"])
    assert list(batch.ids[: batch.offsets[1]]) == list(batch.ids[batch.offsets[1] :])
    assert list(batch.n_cut) == [0, 0]


def test_head_of_a_long_text_reads_as_the_whole(tokenizer: Tokenizer) -> None:
    text = "".join(SENTENCES) * 30
    assert list(tokenizer.documents([text]).ids[2:-1]) == tokenizer.word_ids(text)[:61]


def test_dot_mode_is_colbert_ai_before_0_2_21() -> None:
    # It reads ". " and the text, and writes the marker over the full stop.
    dot, insert = make(marker_mode="dot"), make()
    text = "富士山は高い"
    expected = [*dot.special.prefix, *dot.word_ids(". " + text), *dot.special.suffix]
    expected[1] = dot.document_marker_id
    assert list(dot.documents([text]).ids) == expected
    assert list(insert.documents([text]).ids) == expected  # most texts read alike
    assert make(marker_mode="dot", document_length=20).documents(["富士山、" * 300]).lengths[0] == 20


def test_dot_mode_writes_over_the_full_stop_and_not_over_a_prompt() -> None:
    dot = make(marker_mode="dot", document_prompt="文書: ")
    expected = [*dot.special.prefix, *dot.word_ids(". 文書: 湖"), *dot.special.suffix]
    expected[1] = dot.document_marker_id
    assert list(dot.documents(["湖"]).ids) == expected
    assert dot.document_spans("湖").tolist() == [[-1, -1]] * (len(expected) - 2) + [[0, 1], [-1, -1]]


def test_prompt_is_read_before_the_text() -> None:
    batch = make(query_prompt="質問: ").queries(["湖はどこ？"])
    own = make().word_ids("質問: 湖はどこ？")
    assert list(batch.ids[2 : 2 + len(own)]) == own


def test_without_markers() -> None:
    tokenizer = make(query_marker="", document_marker="")
    batch = tokenizer.documents(["富士山"])
    assert list(batch.ids) == [
        *tokenizer.special.prefix,
        *tokenizer.word_ids("富士山"),
        *tokenizer.special.suffix,
    ]


@pytest.mark.parametrize("mode", ["insert", "dot"])
@pytest.mark.parametrize("prompt", ["", "文書: "])
def test_spans_go_with_ids(mode: str, prompt: str) -> None:
    tokenizer = make(marker_mode=mode, document_prompt=prompt, query_prompt=prompt)
    for text in [*SENTENCES, "ｻｰﾊﾞｰを㌔で", "富士山、" * 300]:
        for batch, spans in (
            (tokenizer.documents([text]), tokenizer.document_spans(text)),
            (tokenizer.queries([text]), tokenizer.query_spans(text)),
        ):
            assert spans.shape == (len(batch.ids), 2)
            assert tuple(spans[0]) == tuple(spans[1]) == tuple(spans[-1]) == (-1, -1)
            own = spans[spans[:, 0] >= 0]
            assert (own[:, 1] > own[:, 0]).all()
            covered = "".join(text[a:b] for a, b in dict.fromkeys(map(tuple, own.tolist())))
            assert clean(text).replace(" ", "").startswith(clean(covered).replace(" ", "")[:50])


@pytest.mark.parametrize("mode", ["insert", "dot"])
@pytest.mark.parametrize("prompt", ["", "文書: "])
def test_kept_spans_are_those_of_kept_tokens(mode: str, prompt: str) -> None:
    tokenizer = make(marker_mode=mode, document_prompt=prompt)
    for text in [*SENTENCES, "（湖）、！？", "（" * 300, *fuzz_texts(200, seed=5)]:
        kept = tokenizer.kept(tokenizer.documents([text]).ids)
        assert tokenizer.kept_spans(text).tolist() == tokenizer.document_spans(text)[kept].tolist()


def test_kept_spans_of_a_text() -> None:
    text = "（富士山）は!高い。"
    kept = make().kept_spans(text)
    assert kept.dtype == np.int64
    assert kept[:2].tolist() == [[-1, -1]] * 2
    assert [text[start:end] for start, end in kept[2:-1]] == ["富士", "山", "は", "高", "い", "。"]


def test_spans_go_with_embeddings(retriever: JaColBERTRetriever) -> None:
    encoder = retriever.encoder
    texts = [*SENTENCES, "ｻｰﾊﾞｰ（㌔）!", "富士山、" * 10, "湖"]
    documents, queries = encoder.documents(texts), encoder.queries(texts)
    for i, text in enumerate(texts):
        assert len(documents[i]) == len(encoder.tokenizer.kept_spans(text))
        assert len(queries[i]) == len(encoder.tokenizer.query_spans(text))


def test_spans_of_a_fast_tokenizer_are_of_the_raw_text(fast: Tokenizer) -> None:
    text = "東\0京は Ｔｏｋｙｏ\ud800 と呼ぶ🙂。"
    spans = fast.document_spans(text)
    assert len(spans) == len(fast.documents([text]).ids)
    covered = set()
    for start, end in spans[spans[:, 0] >= 0]:
        covered.update(range(start, end))
    assert {i for i, c in enumerate(text) if c not in "\0\ud800 "} <= covered


def test_fast_tokenizer_takes_special_tokens_as_text(fast: Tokenizer) -> None:
    specials = {fast.vocab[t] for t in ("[SEP]", "[MASK]", "[CLS]", "[PAD]")}
    assert not specials & set(fast.word_ids("[SEP]富士山[MASK][CLS][PAD]"))


def test_added_tokens_of_white_space_are_text_and_markers_are_not(tmp_path: Path) -> None:
    from copy import deepcopy

    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    folder = write_fast_tokenizer(tmp_path)
    theirs = AutoTokenizer.from_pretrained(str(folder))
    # As ModernBERT's runs of spaces, and as PyLate's markers.
    theirs.add_tokens([AddedToken(" " * n, normalized=False) for n in (4, 8)] + ["[Q] ", "[D] "])
    theirs.save_pretrained(str(folder))
    ours = Tokenizer(load_subwords(folder), replace(CONFIG, query_marker="[Q] ", document_marker="[D] "))
    indented = "def f():\n    return 1\n        # 湖\n"
    assert ours.word_ids(indented) == theirs(indented, add_special_tokens=False)["input_ids"]
    assert ours.vocab[" " * 4] in ours.word_ids(indented)
    for tokenizer in (ours, deepcopy(ours)):  # as a framework's worker has it
        ids = tokenizer.word_ids("[Q] 富士山 [D] [SEP]")
        assert not {tokenizer.vocab[t] for t in ("[Q] ", "[D] ", "[SEP]")} & set(ids)
        assert ids == ours.word_ids("[Q] 富士山 [D] [SEP]")


def test_skiplist_is_ascii_punctuation_without_unk() -> None:
    vocab = [token for token in tiny_vocab() if token != "`"]
    tokenizer = Tokenizer(JapaneseWordPiece(vocab), CONFIG)
    skipped = tokenizer.skiplist()
    assert len(skipped) == len(string.punctuation) - 1
    assert tokenizer.vocab[UNK] not in skipped
    assert tokenizer.skiplist_collisions() == ("`",)
    # Full-width punctuation is folded to ASCII and skipped; Japanese punctuation is not.
    assert set(tokenizer.word_ids("！？（）")) <= skipped
    assert not set(tokenizer.word_ids("、。「」")) & skipped


def test_unknown_tokens_are_skipped_where_that_is_asked_for() -> None:
    tokenizer = make(skip_unknown=True)
    assert tokenizer.vocab[UNK] in tokenizer.skiplist()
    ids = np.array([tokenizer.special.unk, 9], dtype=np.int32)
    assert list(tokenizer.kept(ids)) == [False, True]


def test_vocabulary_without_a_marker_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"lacks '\[unused1\]'.*same checkpoint"):
        Tokenizer(JapaneseWordPiece([t for t in tiny_vocab() if t != "[unused1]"]), CONFIG)


def write_vocab(folder: Path, settings: dict[str, object]) -> Path:
    (folder / "vocab.txt").write_text("\n".join(tiny_vocab()) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


JAPANESE = {
    "tokenizer_class": "BertJapaneseTokenizer",
    "word_tokenizer_type": "mecab",
    "subword_tokenizer_type": "wordpiece",
    "mecab_kwargs": {"mecab_dic": "unidic_lite"},
}


@pytest.mark.parametrize("name", [None, "BertTokenizer", "BertTokenizerFast"])
def test_japanese_vocabulary_under_another_class_is_refused(tmp_path: Path, name: str | None) -> None:
    write_vocab(tmp_path, {"tokenizer_class": name} if name else {"do_lower_case": False})
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json.*kanji.*BertJapaneseTokenizer"):
        load_subwords(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"word_tokenizer_type": "basic"},
        {"subword_tokenizer_type": "character"},
        {"mecab_kwargs": {"mecab_dic": "ipadic"}},
        {"mecab_kwargs": {"mecab_dic": "unidic_lite", "mecab_option": "-Oyomi"}},
        {"mecab_kwargs": {"mecab_dic": "unidic_lite", "normalize_text": False}},
    ],
)
def test_other_japanese_settings_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    write_vocab(tmp_path, JAPANESE | changes)
    with pytest.raises(
        CheckpointError, match=r"tokenizer_config\.json asks for .*expected .*unidic_lite"
    ) as caught:
        load_subwords(tmp_path)
    found, expected = str(caught.value).split("asks for ")[1].split("; expected ")
    assert found != expected.split(", as the")[0]


@pytest.mark.parametrize(("vocab", "is_readable"), [(["日"], True), (["本"], False)])
def test_small_vocabulary_of_a_fast_tokenizer_still_tells_its_frame(
    tmp_path: Path, vocab: list[str], is_readable: bool
) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, processors
    from transformers import PreTrainedTokenizerFast

    tokens = {token: i for i, token in enumerate(["[PAD]", "[MASK]", "[CLS]", "[SEP]", *vocab])}
    backend = Backend(models.BPE(vocab=tokens, merges=[]))  # without an unknown token, so "a" is nothing
    ends = [(token, tokens[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", mask_token="[MASK]").save_pretrained(
        str(tmp_path)
    )
    if is_readable:
        special = load_subwords(tmp_path).special
        assert (special.prefix, special.suffix) == ((2,), (3,))
    else:
        with pytest.raises(CheckpointError, match="where a text begins and ends is not known"):
            load_subwords(tmp_path)


def test_added_tokens_have_ids_and_text_never_becomes_one(tmp_path: Path) -> None:
    n = len(tiny_vocab())
    write_vocab(tmp_path, JAPANESE | {"added_tokens_decoder": {str(n): {"content": "[Q] "}}})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[D] ": n + 1}))
    subwords = load_subwords(tmp_path)
    assert (subwords.vocab["[Q] "], subwords.vocab["[D] "]) == (n, n + 1)
    assert not {n, n + 1} & set(subwords.ids("[Q] 富士山 [D] "))


def test_folder_without_a_tokenizer_names_the_mend(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tokenizer.*tokenizer="):
        load_subwords(tmp_path)


def test_special_ids_of_the_bundled_model() -> None:
    tokenizer = Tokenizer(load_subwords(resolve_folder("default")), EncoderConfig())
    special = tokenizer.special
    assert (special.pad, special.unk, special.prefix, special.suffix, special.mask) == (0, 1, (2,), (3,), 4)
    assert (tokenizer.query_marker_id, tokenizer.document_marker_id) == (5, 6)
    assert len(tokenizer.skiplist()) == 32
