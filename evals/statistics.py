"""How sure a mean over queries is, and whether two systems differ: resampling, with seeds.

Systems are compared on the same queries, so differences are taken query by query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
N_RESAMPLES = 10_000
N_AT_ONCE = 500  # resamples in memory: for 7,000 queries some 30 MB
SEED = 12345
# Sums of the same numbers in another order differ by this much and more.
EQUAL = 1e-9
CERTAIN = 0.05  # a difference whose p is below this is called certain

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """How two systems differ on the same queries.

    Attributes:
        difference: mean of the first's values less the second's.
        low: bound of its bootstrap interval (95 %).
        high: the other bound.
        p: of the randomisation test, corrected for all that was compared together.
        wins: queries on which the first is better.
        ties: on which neither is.
        losses: on which the second is better.
    """

    difference: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int


def paired(differences: Floats) -> list[Paired]:
    """Each column of differences, (n_queries, m), with its interval and its p among all m."""
    corrected = holm(p_values(differences).tolist())
    return [
        Paired(
            float(column.mean()), float(low), float(high), p, int((column > EQUAL).sum()),
            int((np.abs(column) <= EQUAL).sum()), int((column < -EQUAL).sum()),
        )
        for column, (low, high), p in zip(differences.T, intervals(differences), corrected, strict=True)
    ]  # fmt: skip


def intervals(values: Floats, *, confidence: float = CONFIDENCE) -> Floats:
    """(m, 2) bounds of the mean of each column: percentiles of the bootstrap (Efron, 1979).

    Args:
        values: (n_queries, m). All columns are resampled alike, so that columns of differences are paired.
        confidence: share of resamples between the bounds.
    """
    n = len(values)
    rng = np.random.default_rng(SEED)
    means = []
    for start in range(0, N_RESAMPLES, N_AT_ONCE):
        size = min(N_AT_ONCE, N_RESAMPLES - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means.append(counts @ values / n)
    tail = 50 * (1 - confidence)
    return np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0).T


def p_values(differences: Floats) -> Floats:
    """(m,) two-sided p of each column's mean being 0, by Fisher's randomisation test.

    Were two systems equal, each query's difference could as well have the other sign; p is the share of
    random signs with a mean as far from 0, the signs that were found among them (Smucker, Allan, Carterette,
    2007).

    Args:
        differences: (n_queries, m), of one system's values less another's.
    """
    n = len(differences)
    rng = np.random.default_rng(SEED)
    found = np.abs(differences.sum(axis=0)) - EQUAL
    n_as_far = np.zeros(differences.shape[1], dtype=np.int64)
    for start in range(0, N_RESAMPLES, N_AT_ONCE):
        size = min(N_AT_ONCE, N_RESAMPLES - start)
        signs = 2.0 * rng.integers(2, size=(size, n), dtype=np.int8) - 1.0
        n_as_far += (np.abs(signs @ differences) >= found).sum(axis=0)
    return (1 + n_as_far) / (1 + N_RESAMPLES)


def holm(p: Sequence[float]) -> list[float]:
    """The same p-values, corrected for there being several (Holm, 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected = [0.0] * len(p)
    least = 0.0
    for n_before, i in enumerate(order):
        least = max(least, min(1.0, (len(p) - n_before) * p[i]))
        corrected[i] = least
    return corrected
