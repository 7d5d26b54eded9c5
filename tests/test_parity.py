"""Our encoder against sentence-transformers and PyLate, text by text; see tests/data/README.md."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from jacolbert_rag.datatypes import TokenEmbeddings
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.encoder import Encoder
from tests.golden.checkpoints import CHECKPOINTS, DATA, write_bert_base
from tests.golden.files import Golden, RealTexts, real_texts, sample, weights_digest
from tests.golden.texts import DOCUMENTS, QUERIES, UNLIKE

GOLDEN = DATA / "golden"
TOLERANCE = 1e-5

# Golden file -> the settings that make us do as that peer. Both peers have fixed query lengths; ours follow
# the length of the query, so that a long one is not cut.
OWN: dict[str, dict[str, object]] = {
    "sentence-transformers-stanford": {"query_length": "fixed(32)"},
    "sentence-transformers-stanford_attend": {"query_length": "fixed(32)"},
    "sentence-transformers-pylate_japanese": {"query_length": "fixed(48)"},
    "sentence-transformers-pylate_modernbert": {},
    "sentence-transformers-st_xlmr": {"query_length": "fixed(32)"},
    "sentence-transformers-st_xlmr_prompts": {},
    "pylate-stanford": {"query_length": "fixed(32)"},
    # Two symbols of the skiplist are not in its vocabulary: PyLate then skips every unknown word.
    "pylate-stanford_attend": {"query_length": "fixed(32)", "skip_unknown": True},
    "pylate-pylate_japanese": {"query_length": "fixed(48)"},
    "pylate-pylate_modernbert": {},
}
REAL: dict[str, dict[str, object]] = {
    "sentence-transformers-stanford-real": {"query_length": "fixed(32)"},
    "sentence-transformers-bert_base-real": {"query_length": "fixed(32)"},
    "pylate-stanford-real": {"query_length": "fixed(32)"},
    "pylate-bert_base-real": {"query_length": "fixed(32)"},
}
JAPANESE = [name for name in OWN if "stanford" in name or "japanese" in name]


@cache
def golden(name: str) -> Golden:
    return Golden.load(GOLDEN / f"{name}.npz")


def load(folder: Path, overrides: dict[str, object]) -> Encoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a skiplist symbol that the vocabulary lacks is told of
        loaded = checkpoint.load(str(folder), overrides=overrides)
    return Encoder(loaded, device="cpu", dtype="float32")


@cache
def own_encoder(name: str) -> Encoder:
    return load(CHECKPOINTS / golden(name).info["checkpoint"], OWN[name])


def embed(run: Callable[[Sequence[str]], TokenEmbeddings], texts: Sequence[str]) -> list[np.ndarray]:
    """The token embeddings of each text, long ones cut as the peers cut them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embedded = run(texts)
    return [embedded[i] for i in range(len(texts))]


def assert_close(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], texts: Sequence[str]) -> None:
    assert len(ours) == len(theirs) == len(texts)
    wrong = [
        f"{len(a)} tokens, theirs {len(b)}: {text[:30]!r}"
        for a, b, text in zip(ours, theirs, texts, strict=True)
        if len(a) != len(b)
    ]
    assert not wrong, "\n".join(wrong)
    differences = [float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)]
    worst = int(np.argmax(differences))
    assert differences[worst] <= TOLERANCE, (
        f"{differences[worst]:.2g} at {texts[worst][:30]!r}, and above {TOLERANCE} at "
        f"{sum(d > TOLERANCE for d in differences)} of {len(texts)} texts"
    )


def test_every_golden_file_has_its_test() -> None:
    assert {path.stem for path in GOLDEN.glob("*.npz")} == {*OWN, *REAL}


@pytest.mark.parametrize("name", OWN)
def test_query_embeddings_are_the_same(name: str) -> None:
    assert_close(embed(own_encoder(name).queries, QUERIES), golden(name).queries.split(), QUERIES)


@pytest.mark.parametrize("name", OWN)
def test_document_embeddings_are_the_same(name: str) -> None:
    assert_close(embed(own_encoder(name).documents, DOCUMENTS), golden(name).documents.split(), DOCUMENTS)


@pytest.mark.parametrize("name", OWN)
def test_token_ids_are_the_same(name: str) -> None:
    tokenizer = own_encoder(name).tokenizer
    expected = golden(name)
    for texts, run, ids in (
        (QUERIES, tokenizer.queries, expected.query_ids),
        (DOCUMENTS, tokenizer.documents, expected.document_ids),
    ):
        assert ids is not None
        for text, theirs in zip(texts, ids.split(), strict=True):
            assert run([text]).ids.tolist() == theirs.tolist(), text
    assert tokenizer.queries(QUERIES).n_attended.tolist() == expected.n_attended.tolist()


def test_unknown_words_are_kept_unless_asked_for() -> None:
    name = "pylate-stanford_attend"
    ours = embed(load(CHECKPOINTS / "stanford_attend", {}).documents, DOCUMENTS)
    assert_close(ours, golden("sentence-transformers-stanford_attend").documents.split(), DOCUMENTS)
    assert sum(map(len, ours)) > golden(name).documents.lengths.sum()


def ids_of(name: str, text: str) -> list[int]:
    return own_encoder(name).tokenizer.documents([text]).ids.tolist()


def their_ids(name: str, key: str) -> list[int]:
    unlike = golden(name).unlike_ids
    assert unlike is not None
    ids: list[int] = unlike.split()[list(UNLIKE).index(key)].tolist()
    return ids


@pytest.mark.parametrize("key", ["nul", "bell"])
@pytest.mark.parametrize("name", OWN)
def test_control_characters_vanish_for_us_alone(name: str, key: str) -> None:
    # MeCab ends a text at NUL, so the peers lose the rest of it; other control characters are unknown words
    # there. Other tokenizers make tokens of both.
    text = UNLIKE[key]
    clean = "".join(c for c in text if c.isprintable())
    assert len(clean) == len(text) - 1
    assert ids_of(name, text) == ids_of(name, clean)
    theirs = their_ids(name, key)
    assert theirs != ids_of(name, clean)
    if key == "nul" and name in JAPANESE:
        assert len(theirs) < len(ids_of(name, clean))


@pytest.mark.parametrize("key", ["separator", "mask", "end", "marker", "unused"])
@pytest.mark.parametrize("name", OWN)
def test_no_text_becomes_a_special_token(name: str, key: str) -> None:
    # For the peers a text can end itself, or take a query's marker: "[SEP]" in it is the special token.
    tokenizer = own_encoder(name).tokenizer
    framing = [*tokenizer.special.prefix, *tokenizer.special.suffix]
    special = {*framing, tokenizer.special.mask, tokenizer.query_marker_id}
    assert sum(i in special for i in ids_of(name, UNLIKE[key])) == len(framing)
    literal = {"separator": "[SEP]", "mask": "[MASK]", "end": "</s>", "marker": "[Q] ", "unused": "[unused0]"}
    is_special = tokenizer.vocab.get(literal[key], -1) in special
    assert sum(i in special for i in their_ids(name, key)) == len(framing) + is_special
    if not is_special:
        assert ids_of(name, UNLIKE[key]) == their_ids(name, key)


@pytest.mark.parametrize("name", OWN)
def test_outer_spaces(name: str) -> None:
    # PyLate strips a text; sentence-transformers does not. Only a byte-level tokenizer can tell.
    text = UNLIKE["spaces"]
    as_it_is, stripped = ids_of(name, text), ids_of(name, text.strip())
    assert (as_it_is != stripped) == ("modernbert" in name)
    assert their_ids(name, "spaces") == (stripped if name.startswith("pylate-") else as_it_is)


def check_digests(name: str, folder: Path, texts: RealTexts) -> None:
    """Both sides must have read the same texts with the same weights."""
    info = golden(name).info
    cure = f"are not those that {name}.npz was made with; see tests/data/README.md"
    assert weights_digest(folder) == info["weights"], f"the weights {cure}"
    assert texts.digest() == info["texts"], f"the texts {cure}"


def assert_close_on_real_texts(
    name: str, queries: list[np.ndarray], documents: list[np.ndarray], texts: RealTexts
) -> None:
    """Compare our embeddings with a golden file's counts and sampled rows."""
    expected = golden(name)
    assert expected.n_kept is not None
    assert [len(rows) for rows in (*queries, *documents)] == expected.n_kept.tolist()
    assert_close([sample(rows) for rows in queries], expected.queries.split(), texts.queries)
    assert_close([sample(rows) for rows in documents], expected.documents.split(), texts.documents)


@pytest.mark.parametrize("name", [name for name in REAL if "stanford" in name])
def test_real_texts(name: str, shared_data: Path) -> None:
    folder, texts = CHECKPOINTS / "stanford", real_texts(shared_data)
    check_digests(name, folder, texts)
    encoder = load(folder, REAL[name])
    queries, documents = embed(encoder.queries, texts.queries), embed(encoder.documents, texts.documents)
    assert_close_on_real_texts(name, queries, documents, texts)


@pytest.mark.slow
def test_real_texts_through_bert_base(shared_data: Path, tmp_path: Path) -> None:
    # One run of ours for both peers: on two CPU threads it takes minutes.
    names = [name for name in REAL if "bert_base" in name]
    texts = real_texts(shared_data)
    write_bert_base(tmp_path)
    for name in names:
        check_digests(name, tmp_path, texts)
    encoder = load(tmp_path, REAL[names[0]])
    queries, documents = embed(encoder.queries, texts.queries), embed(encoder.documents, texts.documents)
    for name in names:
        assert_close_on_real_texts(name, queries, documents, texts)
