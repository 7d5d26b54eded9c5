"""Arithmetic of training: what a CPU leaves out, and the rate of learning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_denormals() -> Iterator[None]:
    """Numbers too small for a full mantissa count as 0; with them a step took five times as long.

    Undone at the end: it is a setting of the process, and others in it may count on such numbers.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def rate_factor(step: int, steps: int, rising: float, falling: float) -> float:
    """Factor of the learning rate: a linear rise over so many steps, a plateau, a linear fall to 0.

    Until the fall begins it does not depend on `steps`, so a run that is under way can be made longer.
    """
    return min(1.0, (step + 1) / max(rising, 1.0), (steps - step) / max(falling, 1.0))
