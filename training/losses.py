"""Losses over late-interaction scores: pure functions of score matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Added to a range before dividing by it, as in the reference (bclavie/ColBERT: training.py). It vanishes
# in float16, so these losses are computed in float32.
EPSILON = 1e-8


def normalize_min_max(scores: Tensor) -> Tensor:
    """Each row stretched to [0, 1]; gradients flow through the minimum and the maximum.

    Args:
        scores: (batch, n_ways).

    Returns:
        (batch, n_ways) float32; a row of equal scores becomes all 0.
    """
    scores = scores.float()
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    return (scores - low) / (high - low + EPSILON)


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of the student from the teacher, both min-max-normalised (JaColBERTv2.5, section 3.6).

    No temperature: the softmax is over values in [0, 1].

    Args:
        student: (batch, n_ways) MaxSim scores.
        teacher: (batch, n_ways) teacher scores of the same passages.

    Returns:
        A scalar, the mean over the batch.
    """
    student = functional.log_softmax(normalize_min_max(student), dim=-1)
    teacher = functional.log_softmax(normalize_min_max(teacher), dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def contrastive_loss(scores: Tensor, positives: Tensor, relevant: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query's positive among all passages of the batch.

    Args:
        scores: (n_queries, n_passages) MaxSim scores.
        positives: (n_queries,) int64 column of each query's positive.
        relevant: (n_queries, n_passages) bool; passages that answer a query too. Other than the positive
            they are left out of its denominator.
        temperature: scores are divided by it.

    Returns:
        A scalar, the mean over the queries.
    """
    own = functional.one_hot(positives, scores.shape[1]).bool()
    floor = torch.finfo(torch.float32).min
    logits = (scores.float() / temperature).masked_fill(relevant & ~own, floor)
    return functional.cross_entropy(logits, positives)
