"""Losses over late-interaction scores: pure functions of score matrices."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

# Added to a range before dividing by it, as in the reference (bclavie/ColBERT: training.py). It vanishes
# in float16, so these losses are computed in float32.
EPSILON = 1e-8

Normalize = Literal["both", "teacher", "none"]


def normalize_min_max(scores: Tensor) -> Tensor:
    """Each row stretched to [0, 1]; gradients flow through the minimum and the maximum.

    Args:
        scores: (batch, n_ways).

    Returns:
        (batch, n_ways), float32 at least; a row of equal scores becomes all 0.
    """
    scores = _wide(scores)
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    return (scores - low) / (high - low + EPSILON)


def normalized(student: Tensor, teacher: Tensor, which: Normalize) -> tuple[Tensor, Tensor]:
    """Student's and teacher's scores, min-max-normalised by row: both, the teacher's alone, or neither."""
    if which != "none":
        teacher = normalize_min_max(teacher)
    if which == "both":
        student = normalize_min_max(student)
    return _wide(student), _wide(teacher)


def distillation_loss(student: Tensor, teacher: Tensor, normalize: Normalize = "both") -> Tensor:
    """KL divergence of the student's softmax from the teacher's (JaColBERTv2.5, section 3.6).

    No temperature: where both are normalised the softmax is over values in [0, 1].

    Args:
        student: (batch, n_ways) MaxSim scores.
        teacher: (batch, n_ways) teacher scores of the same documents.
        normalize: what is min-max-normalised.

    Returns:
        A scalar, the mean over the batch.
    """
    student, teacher = normalized(student, teacher, normalize)
    student = functional.log_softmax(student, dim=-1)
    teacher = functional.log_softmax(teacher, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def margin_mse_loss(student: Tensor, teacher: Tensor, normalize: Normalize = "both") -> Tensor:
    """Mean squared error of the margins between the first document and each other (Hofstätter et al., 2020).

    Args:
        student: (batch, n_ways) MaxSim scores; n_ways is 2 at least.
        teacher: (batch, n_ways) teacher scores of the same documents.
        normalize: what is min-max-normalised.

    Returns:
        A scalar, the mean over all margins.
    """
    student, teacher = normalized(student, teacher, normalize)
    return functional.mse_loss(student[:, :1] - student[:, 1:], teacher[:, :1] - teacher[:, 1:])


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
    wide = _wide(scores) / temperature
    logits = wide.masked_fill(relevant & ~own, torch.finfo(wide.dtype).min)
    return functional.cross_entropy(logits, positives)


def _wide(values: Tensor) -> Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()


def vocabulary_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of tokens among a vocabulary, whose logits never lie in memory all at once.

    On a CPU the fresh pages of a large matrix of logits cost more than the arithmetic.

    Args:
        hidden: (n, width) bfloat16 or float32.
        weight: (n_vocab, width) of the output layer.
        bias: (n_vocab,) of the output layer.
        targets: (n,) int64.

    Returns:
        A scalar, float32; products are of bfloat16.
    """
    loss: Tensor = _VocabularyLoss.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    return loss


class _VocabularyLoss(torch.autograd.Function):
    """Computes the gradients along with the value."""

    CHUNK = 256  # rows; 16 MB of logits at 16,384 tokens

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        n = max(len(targets), 1)
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        of_bias, total = torch.zeros_like(bias), torch.zeros((), device=bias.device)
        low_weight = weight.to(torch.bfloat16)
        for start in range(0, len(targets), _VocabularyLoss.CHUNK):
            rows, wanted = hidden[start:][: _VocabularyLoss.CHUNK].to(torch.bfloat16), targets[start:]
            wanted = wanted[: _VocabularyLoss.CHUNK, None]
            logits = (rows @ low_weight.T).float().add_(bias)
            log_sum = torch.logsumexp(logits, dim=-1, keepdim=True)
            total += (log_sum - logits.gather(1, wanted)).sum()
            error = logits.sub_(log_sum).exp_()
            error.scatter_add_(1, wanted, torch.full_like(log_sum, -1.0))
            of_bias += error.sum(0)
            low_error = error.to(torch.bfloat16)
            of_hidden[start : start + len(rows)] = (low_error @ low_weight).to(hidden.dtype)
            of_weight += low_error.T @ rows
        ctx.save_for_backward(of_hidden / n, of_weight / n, of_bias / n)
        return total / n

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        of_hidden, of_weight, of_bias = ctx.saved_tensors
        return of_hidden * grad, of_weight * grad, of_bias * grad, None
