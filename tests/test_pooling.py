from __future__ import annotations

import numpy as np
import pytest

from jacolbert_rag import PoolingConfig, TokenEmbeddings
from jacolbert_rag.index.pooling import kmeans, nearest, pool_corpus, pool_documents, pool_with_members
from tests.test_maxsim import ragged


def test_factor_one_keeps_everything() -> None:
    docs = ragged([5, 3])
    assert pool_documents(docs, PoolingConfig(factor=1)) is docs


@pytest.mark.parametrize(
    ("factor", "expected"), [(2, [1 + 5, 1 + 1, 1, 1 + 1]), (3, [1 + 3, 1 + 1, 1, 1 + 1])]
)
def test_counts_follow_the_reference(factor: int, expected: list[int]) -> None:
    docs = ragged([11, 4, 1, 2])
    pooled = pool_documents(docs, PoolingConfig(factor=factor))
    assert list(pooled.lengths) == expected


def test_near_duplicates_are_averaged_and_the_first_token_is_kept() -> None:
    a, b = np.array([1.0, 0.0], dtype=np.float32), np.array([0.0, 1.0], dtype=np.float32)
    docs = TokenEmbeddings(np.stack([b, a, b, a, b]), np.array([0, 5]))
    pooled = pool_documents(docs, PoolingConfig(factor=2, protected=1))
    assert pooled[0] == pytest.approx(np.stack([b, a, b]))


def test_equal_tokens_whose_product_is_more_than_one() -> None:
    """By rounding: a word that stands twice in the same place of two equal sentences."""
    rows = np.random.default_rng(3).standard_normal((400, 128)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    long = rows[np.einsum("ij,ij->i", rows, rows) > 1.0][:6]
    tokens = np.repeat(long, 4, axis=0)
    assert (tokens @ tokens.T).max() > 1.0
    pooled = pool_documents(TokenEmbeddings(tokens, np.array([0, 24])), PoolingConfig(factor=4, protected=0))
    assert pooled[0] == pytest.approx(long, abs=1e-6)


def test_means_are_not_normalised_again() -> None:
    tokens = np.array([[1, 0], [1, 0], [0.6, 0.8], [-1, 0], [-1, 0]], dtype=np.float32)
    pooled = pool_documents(TokenEmbeddings(tokens, np.array([0, 5])), PoolingConfig(factor=2, protected=1))
    assert pooled[0][1] == pytest.approx([0.8, 0.4])


@pytest.mark.parametrize("protected", [0, 1, 3])
@pytest.mark.parametrize("factor", [2, 3, 50])
def test_members_say_which_tokens_were_averaged(factor: int, protected: int) -> None:
    docs = ragged([11, 4, 1, 2, 40, 0])
    config = PoolingConfig(factor=factor, protected=protected)
    pooled, members = pool_with_members(docs, config)
    assert members is not None
    assert np.array_equal(pooled.flat, pool_documents(docs, config).flat)
    assert len(members) == len(docs)
    for tokens, means, member in zip(docs, pooled, members, strict=True):
        assert member.dtype == np.int64
        assert member.shape == (len(tokens),)
        assert set(member.tolist()) == set(range(len(means)))
        assert member[:protected].tolist() == list(range(len(tokens)))[:protected]
        for row, mean in enumerate(means):
            assert mean == pytest.approx(tokens[member == row].mean(axis=0), abs=1e-6)
        if len(means) == len(tokens):
            assert member.tolist() == list(range(len(tokens)))


def test_members_of_near_duplicates() -> None:
    a, b = np.array([1.0, 0.0], dtype=np.float32), np.array([0.0, 1.0], dtype=np.float32)
    docs = TokenEmbeddings(np.stack([b, a, b, a, b]), np.array([0, 5]))
    _, members = pool_with_members(docs, PoolingConfig(factor=2, protected=1))
    assert members is not None
    assert members[0].tolist() == [0, 1, 2, 1, 2]


def test_factor_one_has_no_members() -> None:
    docs = ragged([5, 3])
    pooled, members = pool_with_members(docs, PoolingConfig(factor=1))
    assert pooled is docs
    assert members is None


def test_no_documents() -> None:
    assert len(pool_documents(ragged([]), PoolingConfig(factor=2))) == 0


def test_corpus_pooling_finds_separated_clusters() -> None:
    rng = np.random.default_rng(0)
    centers = np.eye(16, dtype=np.float32)
    tokens = np.repeat(centers, 50, axis=0) + rng.normal(0, 0.01, (800, 16)).astype(np.float32)
    cells = pool_corpus(tokens[rng.permutation(800)], 64, seed=1)
    assert len(cells.vectors) <= 64
    assert np.linalg.norm(cells.vectors, axis=1) == pytest.approx(1, abs=1e-5)
    best = (tokens @ cells.vectors.T).max(axis=1) / np.linalg.norm(tokens, axis=1)
    assert best.min() > 0.99
    assert (cells.offsets[0], cells.offsets[-1]) == (0, len(cells.vectors))
    assert np.all(np.diff(cells.offsets) >= 1)
    assert len(cells.offsets) == len(cells.centers) + 1


def test_corpus_pooling_is_reproducible_and_never_makes_more_than_tokens() -> None:
    tokens = ragged([5]).flat
    first, second = (pool_corpus(tokens, 100, seed=3) for _ in range(2))
    assert np.array_equal(first.vectors, second.vectors)
    assert len(first.vectors) <= 5
    assert len(pool_corpus(tokens[:1], 100, seed=3).vectors) == 1


@pytest.mark.parametrize("n_probed", [1, 2, 99])
def test_cells_are_looked_into_one_by_one(n_probed: int) -> None:
    cells = pool_corpus(ragged([3_000], dim=8).flat, 100, seed=0)
    tokens = ragged([500], dim=8, seed=4).flat
    found = cells.nearest(tokens, n_probed=n_probed)
    probed = np.argsort(-(tokens @ cells.centers.T), axis=1)[:, :n_probed]
    cell_of = np.repeat(np.arange(len(cells.centers)), np.diff(cells.offsets))
    similarity = tokens @ cells.vectors.T
    for token, (chosen, looked) in enumerate(zip(found, probed, strict=True)):
        inside = np.flatnonzero(np.isin(cell_of, looked))
        assert similarity[token, chosen] == pytest.approx(similarity[token, inside].max(), abs=1e-6)
    assert len(cells.nearest(tokens[:0], n_probed=n_probed)) == 0


def test_kmeans() -> None:
    centers = kmeans(np.repeat(np.eye(4, dtype=np.float32), 30, axis=0), 4, seed=2)
    assert 1 <= len(centers) <= 4
    assert np.linalg.norm(centers, axis=1) == pytest.approx(1, abs=1e-5)


def test_nearest() -> None:
    assert list(nearest(np.array([[1, 0], [0, 1]], np.float32), np.array([[0, 2], [3, 0]], np.float32))) == [
        1,
        0,
    ]
