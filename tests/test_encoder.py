from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jacolbert_rag import InvalidInputError, TruncationWarning
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode import encoder as module
from jacolbert_rag.encode.encoder import Encoder, batches_by_length
from tests.conftest import SENTENCES


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(checkpoint.load(str(tiny_model)), device="cpu")


def test_shapes_and_unit_rows(encoder: Encoder) -> None:
    queries = encoder.queries(["湖はどこ？", "富士山の高さは？"])
    assert queries.flat.dtype == np.float32
    assert list(queries.lengths) == [32, 32]
    assert np.linalg.norm(queries.flat, axis=1) == pytest.approx(1, abs=1e-5)


def test_equals_transformers_on_one_text(encoder: Encoder, tiny_model: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import BertModel

    bert = BertModel.from_pretrained(tiny_model, add_pooling_layer=False, attn_implementation="eager").eval()
    weights = load_file(tiny_model / "model.safetensors")
    bert.load_state_dict({k.removeprefix("bert."): v for k, v in weights.items() if k.startswith("bert.")})
    batch = encoder.tokenizer.queries([SENTENCES[0]])
    attended = torch.arange(len(batch.ids))[None] < int(batch.n_attended[0])
    with torch.inference_mode():
        hidden = bert(
            torch.from_numpy(batch.ids)[None].long(), attention_mask=attended.long()
        ).last_hidden_state
        expected = torch.nn.functional.normalize(hidden[0] @ weights["linear.weight"].T, dim=-1)
    assert encoder.queries([SENTENCES[0]]).flat == pytest.approx(expected.numpy(), abs=1e-5)


def test_masks_are_not_attended_to(encoder: Encoder) -> None:
    # The real tokens' embeddings do not change with the number of [MASK]s behind them.
    query = "琵琶湖はどこにありますか"
    n = int(encoder.tokenizer.queries([query]).n_attended[0])
    wider = Encoder(checkpoint.load(str(_folder(encoder)), query_length="fixed:64"), device="cpu").queries(
        [query]
    )
    assert wider.flat[:n] == pytest.approx(encoder.queries([query]).flat[:n], abs=1e-5)


def _folder(encoder: Encoder) -> str:
    return encoder.checkpoint.name


def test_a_text_does_not_depend_on_its_batch(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*SENTENCES, "湖", SENTENCES[0] * 3]
    together = encoder.documents(texts)
    alone = [encoder.documents([text]).flat for text in texts]
    for i, expected in enumerate(alone):
        assert together[i] == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 40)
    assert encoder.documents(texts).flat == pytest.approx(together.flat, abs=1e-5)


def test_punctuation_is_dropped_from_documents_only(encoder: Encoder) -> None:
    text = "富士山は、高い!(本当に?)"
    skipped = encoder.tokenizer.skiplist()
    batch = encoder.tokenizer.documents([text])
    n_skipped = sum(int(i) in skipped for i in batch.ids)
    assert n_skipped == 4
    assert encoder.documents([text]).lengths[0] == len(batch.ids) - n_skipped
    assert encoder.queries([text]).lengths[0] == encoder.tokenizer.queries([text]).lengths[0]


def test_long_documents_are_counted_once(encoder: Encoder) -> None:
    with pytest.warns(
        TruncationWarning, match=r"2 of 3 documents are longer than the 64 tokens.*Split them"
    ) as seen:
        embedded = encoder.documents(["琵琶湖" * 100, "湖", "富士山。" * 100])
    assert len(seen) == 1
    assert embedded.lengths[0] <= 64


def test_long_query_is_never_cut_silently(encoder: Encoder) -> None:
    with pytest.warns(
        TruncationWarning, match=r"query 0 \(.*3,010 characters\) is longer than the 120 tokens"
    ):
        assert encoder.queries(["富士山はどこ。" * 430]).lengths[0] == 128


@pytest.mark.parametrize("text", ["", " ", "\u3000\n\t", "\0\0", "\ud800", "\x1b\x07"])
def test_text_without_text_is_refused(encoder: Encoder, text: str) -> None:
    with pytest.raises(InvalidInputError, match="query 0 has no text"):
        encoder.queries([text])
    with pytest.raises(InvalidInputError, match="document 1 has no text"):
        encoder.documents(["湖", text])


def test_other_types_are_refused(encoder: Encoder) -> None:
    with pytest.raises(InvalidInputError, match="query 0 is a NoneType; expected a str"):
        encoder.queries([None])  # type: ignore[list-item]


def test_control_characters_and_surrogates_change_nothing(encoder: Encoder) -> None:
    plain = encoder.documents(["琵琶湖は広い"]).flat
    assert encoder.documents(["琵琶\0湖は\ud83d広い\x07"]).flat == pytest.approx(plain, abs=1e-6)


def test_no_texts(encoder: Encoder) -> None:
    assert len(encoder.documents([])) == 0
    assert encoder.queries([]).flat.shape == (0, 16)


def test_progress_counts_every_document(encoder: Encoder) -> None:
    seen: list[int] = []
    encoder.documents(SENTENCES, on_progress=seen.append)
    assert sum(seen) == len(SENTENCES)


def test_bfloat16_is_close(encoder: Encoder) -> None:
    half = Encoder(checkpoint.load(_folder(encoder)), device="cpu", dtype="bfloat16").documents(SENTENCES)
    cosines = np.sum(half.flat * encoder.documents(SENTENCES).flat, axis=1)
    assert np.median(cosines) > 0.99


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = np.array([5, 30, 1, 200, 7, 30])
    batches = list(batches_by_length(lengths, 64))
    assert sorted(np.concatenate(batches).tolist()) == list(range(6))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= 64 for b in batches)
