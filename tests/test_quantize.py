"""jacolbert_rag.index.quantize: bytes of the right width, near what was given, scored as if decoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jacolbert_rag.datatypes import offsets_of
from jacolbert_rag.index.pooling import kmeans
from jacolbert_rag.index.quantize import Codec, CodedTokens, Products

DTYPES = ["float32", "float16", "int8", "residual4", "residual2"]


def tokens(n: int, dim: int = 128, seed: int = 0) -> np.ndarray:
    """Rows of unit length around a few topics, as a corpus has them."""
    rng = np.random.default_rng(seed)
    topics = np.random.default_rng(7).standard_normal((50, dim))
    flat = topics[rng.integers(0, 50, n)] + 0.7 * rng.standard_normal((n, dim))
    return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)


def codec(dtype: str, dim: int = 128) -> Codec:
    centroids = kmeans(tokens(2_000, dim, seed=1), 32, seed=0) if dtype.startswith("residual") else None
    return Codec(dtype, dim, centroids)


@pytest.mark.parametrize(
    ("dtype", "width", "error"),
    [("float32", 512, 0), ("float16", 256, 3e-4), ("int8", 130, 0.012), ("residual4", 68, 0.2),
     ("residual2", 36, 0.5)],
)  # fmt: skip
def test_width_and_error(dtype: str, width: int, error: float) -> None:
    flat, kind = tokens(500), codec(dtype)
    codes = kind.encode(flat)
    assert codes.dtype == np.uint8
    assert codes.shape == (500, width) == (500, kind.width)
    decoded = kind.decode(codes)
    assert decoded.dtype == np.float32
    assert np.linalg.norm(decoded - flat, axis=1).max() <= error


def test_more_bits_are_nearer() -> None:
    flat = tokens(500)
    errors = [np.linalg.norm(codec(d).decode(codec(d).encode(flat)) - flat, axis=1).mean() for d in DTYPES]
    assert errors == sorted(errors)
    assert errors[3] < errors[4] / 2.5  # Max's table: .1175 of a variance at 2 bits, .0115 at 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [128, 96, 30, 7, 1])
def test_scored_as_if_decoded(dtype: str, dim: int) -> None:
    flat, query, kind = tokens(300, dim), tokens(9, dim, seed=5), codec(dtype, dim)
    codes = kind.encode(flat)
    assert codes.shape == (300, kind.width)
    found = Products(kind, torch.from_numpy(query)).of(codes)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(kind.decode(codes) @ query.T, abs=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_their_neighbours(dtype: str) -> None:
    flat, kind = tokens(200), codec(dtype)
    codes = kind.encode(flat)
    assert np.array_equal(np.concatenate([kind.encode(flat[:7]), kind.encode(flat[7:])]), codes)
    assert np.array_equal(kind.decode(codes[50:60]), kind.decode(codes)[50:60])


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_rows(dtype: str) -> None:
    kind = codec(dtype)
    odd = np.zeros((4, 128), dtype=np.float32)
    odd[1, 3] = 1  # all of it in one dimension
    odd[2] = 1 / np.sqrt(128)  # none of it above the others
    odd[3] = codec("residual4").centroids[0]  # a centroid leaves nothing
    decoded = kind.decode(kind.encode(odd))
    assert np.isfinite(decoded).all()
    assert np.linalg.norm(decoded - odd, axis=1)[[0, 2, 3]].max() < 1.1
    assert kind.encode(odd[:0]).shape == (0, kind.width)
    assert kind.decode(kind.encode(odd[:0])).shape == (0, 128)
    assert Products(kind, torch.from_numpy(odd)).of(kind.encode(odd[:0])).shape == (0, 4)


def test_read_only_bytes_are_read() -> None:
    for dtype in DTYPES:
        kind = codec(dtype)
        codes = kind.encode(tokens(20))
        codes.flags.writeable = False
        found = Products(kind, torch.from_numpy(tokens(2))).of(codes)
        assert found.numpy() == pytest.approx(kind.decode(codes) @ tokens(2).T, abs=2e-5)


def test_take() -> None:
    kind = codec("residual4")
    lengths = np.array([3, 0, 5, 1])
    coded = CodedTokens(kind.encode(tokens(9)), offsets_of(lengths), kind)
    taken = coded.take(np.array([2, 1, 0]))
    assert list(taken.lengths) == [5, 0, 3]
    assert np.array_equal(taken.codes, np.concatenate([coded.codes[3:8], coded.codes[:3]]))
    assert len(coded.take(np.array([], dtype=np.int64))) == 0
