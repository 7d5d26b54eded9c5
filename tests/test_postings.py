"""jacolbert_rag.index.postings: lists of distinct pairs, and the best gain of each row."""

from __future__ import annotations

import numpy as np
import pytest

from jacolbert_rag.index import postings as module
from jacolbert_rag.index.postings import Near, Postings


def some(n: int = 400, n_pooled: int = 60, n_rows: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, n_pooled, n) * 3, rng.integers(0, n_rows, n)


def test_lists_are_distinct_and_rising() -> None:
    pooled, rows = some()
    lists = Postings.of(pooled, rows)
    assert set(zip(*lists.pairs(), strict=True)) == set(zip(pooled, rows, strict=True))
    assert len(lists.rows) == len(set(zip(pooled, rows, strict=True)))
    assert np.all(np.diff(lists.pooled.astype(int)) > 0)
    for begin, end in zip(lists.offsets[:-1], lists.offsets[1:], strict=True):
        assert np.all(np.diff(lists.rows[begin:end].astype(int)) > 0)


@pytest.mark.parametrize("at_once", [True, False])
def test_gains_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    monkeypatch.setattr(module, "MAX_GAINS", 10**6 if at_once else 0)
    pooled, rows = some()
    lists = Postings.of(pooled, rows)
    rng = np.random.default_rng(1)
    near = np.stack([rng.permutation(200)[:12] for _ in range(6)])  # many list nothing
    gains = np.sort(rng.random((6, 12)).astype(np.float32), axis=1)
    expected = np.zeros(50)
    listed = {p: set(rows[pooled == p]) for p in set(pooled)}
    for row in range(50):
        for q in range(6):
            expected[row] += max(
                (gains[q, j] for j in range(12) if row in listed.get(near[q, j], ())), default=0.0
            )
    assert lists.gains(Near.of(near, gains), 50) == pytest.approx(expected, abs=1e-5)


def test_packed_and_back() -> None:
    lists = Postings.of(*some())
    again = Postings.unpack(lists.packed(), 50)
    for mine, theirs in zip(again.pairs(), lists.pairs(), strict=True):
        assert np.array_equal(mine, theirs)
    packed = lists.packed()
    for wrong in (packed[:-1], packed[:5], packed[:0], np.append(packed, np.uint32(1))):
        with pytest.raises(ValueError, match="posting lists"):
            Postings.unpack(wrong, 50)


@pytest.mark.parametrize("at", [0, 3, 30, 70, -1])
def test_flipped_high_bit_is_refused(at: int) -> None:
    packed = Postings.of(*some()).packed()
    packed[at] ^= np.uint32(1 << 31)
    with pytest.raises(ValueError, match="posting lists"):
        Postings.unpack(packed, 50)


def test_nothing_is_listed() -> None:
    nothing = np.empty(0, dtype=np.int64)
    lists = Postings.unpack(Postings.of(nothing, nothing).packed(), 4)
    near = np.arange(6).reshape(2, 3)
    assert list(lists.gains(Near.of(near, np.ones((2, 3), dtype=np.float32)), 4)) == [0, 0, 0, 0]
    assert len(lists.pairs()[0]) == 0
