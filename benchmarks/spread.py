"""Medians, quartiles and ratios of paired measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles; the fields are the keys of the JSON files."""

    median: float
    q1: float
    q3: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles, interpolated linearly between neighbours.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values were measured; expected at least one.")
    q1, median, q3 = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75)).tolist()
    return Spread(median, q1, q3, len(values))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above[i] / below[i] of measurements that were taken side by side.

    Raises:
        ValueError: they differ in number.
    """
    return [a / b for a, b in zip(above, below, strict=True)]


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile, interpolated linearly between neighbours."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent))
