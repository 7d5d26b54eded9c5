"""Late-interaction scores of padded batches, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Similarities held at once, as float32: 2 MB stay in a core's cache; a GPU wants few and large products.
MAX_CELLS = {"cpu": 500_000, "cuda": 256_000_000}


def maxsim_padded(queries: Tensor, queries_kept: Tensor, docs: Tensor, docs_kept: Tensor) -> Tensor:
    """Scores of each query against each document; equal to `jacolbert_rag.index.maxsim.maxsim_many`.

    Args:
        queries: (n_queries, q_tokens, dim), padded; float32 or float64.
        queries_kept: (n_queries, q_tokens) bool, False at padding; [MASK]s count.
        docs: (n_docs, d_tokens, dim), padded.
        docs_kept: (n_docs, d_tokens) bool, False at padding and skipped punctuation.

    Returns:
        (n_queries, n_docs), of the embeddings' dtype, whatever autocast is on: bfloat16 rounds by some
        hundredths of what lies between the documents of a query.
    """
    scores: Tensor = _MaxSim.apply(queries, queries_kept, docs, docs_kept)  # type: ignore[no-untyped-call]
    return scores


def maxsim_own(queries: Tensor, queries_kept: Tensor, docs: Tensor, docs_kept: Tensor) -> Tensor:
    """Scores of each query against documents of its own.

    Args:
        queries: (n_queries, q_tokens, dim), padded; float32 or float64.
        queries_kept: (n_queries, q_tokens) bool, False at padding; [MASK]s count.
        docs: (n_queries, n_ways, d_tokens, dim), padded.
        docs_kept: (n_queries, n_ways, d_tokens) bool, False at padding and skipped punctuation.

    Returns:
        (n_queries, n_ways), of the embeddings' dtype.
    """
    rows = zip(queries, queries_kept, docs, docs_kept, strict=True)
    return torch.stack([maxsim_padded(q[None], q_kept[None], d, d_kept)[0] for q, q_kept, d, d_kept in rows])


class _MaxSim(torch.autograd.Function):
    """Keeps which document token answered which query token, and nothing else.

    Autograd by itself would keep all similarities, and pass a gradient back to each of them, nearly all 0:
    half the time of a training step, and at 16 queries of 32 documents 630 MB.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, queries_kept: Tensor, docs: Tensor, docs_kept: Tensor) -> Tensor:
        n_queries, n_docs, width = len(queries), len(docs), docs.shape[1]
        tokens = docs.reshape(n_docs * width, -1)
        # The dtype's minimum, not 0: similarities may be negative, and padding must never win.
        floor = torch.finfo(docs.dtype).min
        scores = queries.new_zeros(n_queries, n_docs)
        # (n_queries, q_tokens, n_docs): the row of `tokens` that answered.
        answers = torch.zeros(*queries.shape[:2], n_docs, dtype=torch.long, device=docs.device)
        starts = torch.arange(n_docs, device=docs.device) * width
        lengths = (queries_kept * torch.arange(1, queries.shape[1] + 1, device=docs.device)).amax(1)
        step = max(
            1, MAX_CELLS.get(docs.device.type, MAX_CELLS["cuda"]) // max(1, queries.shape[1] * len(tokens))
        )
        with torch.autocast(docs.device.type, enabled=False):
            for start in range(0, n_queries, step):
                rows = slice(start, start + step)
                longest = int(lengths[rows].max())
                asked, kept = queries[rows, :longest], queries_kept[rows, :longest]
                similarities = (asked @ tokens.T).view(*asked.shape[:2], n_docs, width)
                best, at = similarities.masked_fill_(~docs_kept, floor).max(-1)
                scores[rows] = best.masked_fill_(~kept[:, :, None], 0.0).sum(1)
                answers[rows, :longest] = at + starts
        ctx.save_for_backward(queries, queries_kept, docs, answers)
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, None]:
        queries, queries_kept, docs, answers = ctx.saved_tensors
        n_docs = answers.shape[2]
        asked, tokens = queries.flatten(0, 1), docs.flatten(0, 1)
        # Weighted sums of rows: those of the answers, for each query token; and the other way round.
        weights = (grad[:, None, :] * queries_kept[:, :, None]).reshape(-1, n_docs).to(tokens.dtype)
        answers = answers.view(-1, n_docs)
        of_queries = functional.embedding_bag(answers, tokens, mode="sum", per_sample_weights=weights)
        kept = weights.flatten().nonzero()[:, 0]
        rows, order = answers.flatten()[kept].sort()
        places = kept[order]
        offsets = torch.searchsorted(rows, torch.arange(len(tokens), device=rows.device))
        of_docs = functional.embedding_bag(
            places // n_docs, asked, offsets, mode="sum", per_sample_weights=weights.flatten()[places]
        )
        return of_queries.view_as(queries), None, of_docs.view_as(docs), None
