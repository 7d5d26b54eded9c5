"""Intervals and tests of the eval harness, against scipy's and against what is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evals.statistics import holm, intervals, p_values


def test_intervals_are_those_of_scipys_bootstrap() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.random(200), rng.integers(2, size=200), np.full(200, 0.25)], axis=1)
    found = intervals(values)
    assert found.shape == (3, 2)
    for column, (low, high) in zip(values.T[:2], found[:2], strict=True):
        theirs = stats.bootstrap(
            (column,), np.mean, n_resamples=20_000, method="percentile", random_state=1
        ).confidence_interval
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
        assert low < column.mean() < high
    assert found[2] == pytest.approx([0.25, 0.25])
    assert np.array_equal(found, intervals(values))
    (wide,), (narrow,) = intervals(values[:, :1], confidence=0.99), intervals(values[:, :1], confidence=0.5)
    assert wide[0] < found[0, 0] < narrow[0] < narrow[1] < found[0, 1] < wide[1]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    columns = rng.beta(2, 1, size=(60, 400))  # 400 samples of 60 queries, whose true mean is 2 / 3
    low, high = intervals(columns).T
    assert 0.91 < np.mean((low < 2 / 3) & (high > 2 / 3)) < 0.98


def test_p_values_are_those_of_scipys_permutation_test() -> None:
    rng = np.random.default_rng(1)
    differences = np.stack([rng.normal(m, 1, 50) for m in (0.0, 0.2, 0.4)], axis=1)
    for column, p in zip(differences.T, p_values(differences), strict=True):
        theirs = stats.permutation_test(
            (column,), np.mean, permutation_type="samples", n_resamples=20_000, random_state=2
        )
        assert p == pytest.approx(theirs.pvalue, abs=0.015)


def test_p_values_where_they_are_known() -> None:
    five = np.ones((5, 1)) / 10
    assert p_values(five)[0] == pytest.approx(2 / 2**5, abs=0.01)  # all signs alike: two of 32
    assert p_values(np.zeros((9, 1)))[0] == 1
    swapped = np.array([[0.5], [-0.5], [0.25], [-0.25]])
    assert p_values(swapped)[0] == 1  # no mean is nearer to 0
    assert p_values(np.full((100, 1), 0.01))[0] == pytest.approx(1 / 10_001)


def test_holm_by_hand() -> None:
    # 4 * .01; 3 * .02; 2 * .03, which is no less than the one before; 1 * .5.
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
