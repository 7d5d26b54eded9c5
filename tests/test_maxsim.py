from __future__ import annotations

import numpy as np
import pytest
import torch

from jacolbert_rag import InvalidInputError, TokenEmbeddings
from jacolbert_rag.datatypes import offsets_of
from jacolbert_rag.index import maxsim as module
from jacolbert_rag.index.maxsim import maxsim, maxsim_many
from training import maxsim as twin
from training.maxsim import maxsim_padded


def ragged(lengths: list[int], dim: int = 8, seed: int = 0, dtype=np.float32) -> TokenEmbeddings:
    rng = np.random.default_rng(seed)
    flat = rng.standard_normal((sum(lengths), dim)).astype(np.float32)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return TokenEmbeddings(flat.astype(dtype), offsets_of(lengths))


def naive(query: np.ndarray, docs: TokenEmbeddings) -> list[float]:
    return [
        sum(max(float(q @ d.astype(np.float32)) for d in doc) for q in query) if len(doc) else -np.inf
        for doc in docs
    ]


def test_by_hand() -> None:
    query = np.array([[1, 0], [0, 1]], dtype=np.float32)
    docs = TokenEmbeddings(
        np.array([[1, 0], [0.6, 0.8], [-1, 0], [0, -1]], dtype=np.float32), np.array([0, 2, 4])
    )
    # Document 0: 1 + .8; document 1, whose similarities are never positive: 0 + 0.
    assert maxsim(query, docs) == pytest.approx([1.8, 0.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_equals_naive_loop(dtype) -> None:
    docs = ragged([3, 1, 7, 12, 1], dtype=dtype)
    query = ragged([5], seed=1).flat
    assert maxsim(query, docs) == pytest.approx(naive(query, docs), abs=1e-5)


def test_negative_similarities_are_not_floored_at_zero() -> None:
    query = np.array([[1, 0]], dtype=np.float32)
    docs = TokenEmbeddings(np.array([[-1, 0], [-0.6, 0.8]], dtype=np.float32), np.array([0, 1, 2]))
    assert maxsim(query, docs) == pytest.approx([-1.0, -0.6])


def test_document_without_tokens_scores_minus_infinity() -> None:
    docs = ragged([0, 2, 0, 0, 3, 0])
    query = ragged([4], seed=2).flat
    assert maxsim(query, docs) == pytest.approx(naive(query, docs), abs=1e-5)
    assert np.isneginf(maxsim(query, docs)[[0, 2, 3, 5]]).all()


def test_no_documents() -> None:
    assert maxsim(ragged([3]).flat, ragged([])).shape == (0,)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    docs, queries = ragged([4, 1, 9, 2, 2, 30, 1]), ragged([2, 6, 3], seed=3)
    whole = maxsim_many(queries, docs)
    for cells in (1, 11, 60, 200):
        monkeypatch.setitem(module.MAX_CELLS, "cpu", cells)
        assert maxsim_many(queries, docs) == pytest.approx(whole, abs=1e-6)


def test_many_queries_equal_one_by_one() -> None:
    docs, queries = ragged([4, 1, 9]), ragged([2, 6, 3], seed=3)
    assert maxsim_many(queries, docs) == pytest.approx(np.stack([maxsim(q, docs) for q in queries]), abs=1e-6)


def padded(embeddings: TokenEmbeddings) -> tuple[torch.Tensor, torch.Tensor]:
    width = int(embeddings.lengths.max())
    out = torch.full((len(embeddings), width, embeddings.dim), 9.0)  # padding that would win
    kept = torch.zeros(len(embeddings), width, dtype=torch.bool)
    for i, tokens in enumerate(embeddings):
        out[i, : len(tokens)], kept[i, : len(tokens)] = torch.from_numpy(tokens), True
    return out, kept


@pytest.mark.parametrize("cells", [1, 100, 1_000_000])
def test_padded_twin_is_equal(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setitem(twin.MAX_CELLS, "cpu", cells)
    docs, queries = ragged([4, 1, 9]), ragged([2, 6, 3], seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which must not reach it
        scores = maxsim_padded(*padded(queries), *padded(docs))
    assert scores.dtype == torch.float32
    assert scores.numpy() == pytest.approx(maxsim_many(queries, docs), abs=1e-5)


@pytest.mark.parametrize("cells", [1, 100, 1_000_000])
def test_gradients_of_the_padded_twin(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setitem(twin.MAX_CELLS, "cpu", cells)
    (documents, kept), (questions, asked) = padded(ragged([4, 1, 9])), padded(ragged([2, 6, 3], seed=3))
    asked[1, 2] = False  # within, as skipped tokens are
    documents, questions = documents.double().requires_grad_(), questions.double().requires_grad_()
    of_scores = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [0.25, 0.0, 1.0]], dtype=torch.float64)

    similarities = torch.einsum("qid,njd->qnij", questions, documents)
    best = similarities.masked_fill(~kept[None, :, None, :], -torch.inf).amax(-1)
    naive = best.masked_fill(~asked[:, None, :], 0.0).sum(-1)
    expected = torch.autograd.grad(naive, [questions, documents], of_scores)
    found = maxsim_padded(questions, asked, documents, kept)
    assert torch.allclose(found, naive, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, [questions, documents], of_scores), expected, strict=True
    ):
        assert torch.allclose(one, other, atol=1e-12)


def test_memory_maps_are_read(tmp_path) -> None:
    docs = ragged([3, 2], dtype=np.float16)
    np.save(tmp_path / "flat.npy", docs.flat)
    mapped = TokenEmbeddings(np.load(tmp_path / "flat.npy", mmap_mode="r"), docs.offsets)
    query = ragged([2], seed=5).flat
    assert maxsim(query, mapped) == pytest.approx(maxsim(query, docs))


def test_other_dimension_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="8 dimensions and the documents 4.*different models"):
        maxsim(ragged([2], dim=8).flat, ragged([2], dim=4))
