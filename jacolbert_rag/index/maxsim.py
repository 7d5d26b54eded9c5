"""Exact late-interaction scores: ragged numpy for search, a padded torch twin for training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jacolbert_rag.datatypes import FloatArray, TokenArray, TokenEmbeddings
from jacolbert_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

# Similarities held at once, as float32: 16 MB, so that the max reads what the product just wrote.
MAX_CELLS = 4_000_000


def maxsim(query: TokenArray, docs: TokenEmbeddings) -> FloatArray:
    """Late-interaction score of one query against each document.

    Sums, over query tokens, the best dot product among the document's tokens (ColBERT, 2020, eq. 3).
    Products and sums are float32 whatever the documents are stored in.

    Args:
        query: (q_tokens, dim) float32.
        docs: n_docs ragged documents of the same dim, float32 or float16.

    Returns:
        (n_docs,) float32; -inf for a document without tokens.

    Raises:
        InvalidInputError: query and docs differ in dim.
    """
    one = TokenEmbeddings(query, np.array([0, len(query)], dtype=np.int64))
    scores: FloatArray = maxsim_many(one, docs)[0]
    return scores


def maxsim_many(queries: TokenEmbeddings, docs: TokenEmbeddings) -> FloatArray:
    """Late-interaction score of each query against each document; see `maxsim`.

    Documents are read once for all queries. Memory grows with query tokens times the tokens of one
    document, not with the corpus.

    Returns:
        (n_queries, n_docs) float32; -inf for a document without tokens.
    """
    import torch

    if queries.dim != docs.dim:
        raise InvalidInputError(
            f"The queries have {queries.dim} dimensions and the documents {docs.dim}: they were made by "
            "different models. Encode both with one."
        )
    scores = np.full((len(queries), len(docs)), -np.inf, dtype=np.float32)
    # Inputs may be read-only memory maps, which torch warns of; nothing here writes to them.
    query_tokens = torch.from_numpy(np.array(queries.flat, dtype=np.float32)).T.contiguous()
    n_cells = max(1, MAX_CELLS // max(1, query_tokens.shape[1]))
    filled = np.flatnonzero(docs.lengths > 0)
    ends = docs.offsets[filled + 1]
    start = 0
    while start < len(filled):
        first = docs.offsets[filled[start]]
        stop = int(np.searchsorted(ends, first + n_cells, side="right"))
        rows = filled[start : max(stop, start + 1)]
        # Documents without tokens take no place, so the filled ones lie side by side.
        block = np.array(docs.flat[first : docs.offsets[rows[-1] + 1]])
        similarities = (torch.from_numpy(block).float() @ query_tokens).numpy()
        best = np.empty((len(rows), similarities.shape[1]), dtype=np.float32)
        # A loop, because np.maximum.reduceat over the first axis took 70 times as long for 32 queries.
        for i, (begin, end) in enumerate(zip(docs.offsets[rows] - first, ends[start:] - first, strict=False)):
            np.max(similarities[begin:end], axis=0, out=best[i])
        scores[:, rows] = np.add.reduceat(best, queries.offsets[:-1], axis=1, dtype=np.float32).T
        start += len(rows)
    return scores


def maxsim_padded(queries: Tensor, queries_kept: Tensor, docs: Tensor, docs_kept: Tensor) -> Tensor:
    """Late-interaction scores with gradients, for training; equal to `maxsim_many`.

    Args:
        queries: (n_queries, q_tokens, dim), padded.
        queries_kept: (n_queries, q_tokens) bool, False at padding; [MASK]s count.
        docs: (n_docs, d_tokens, dim), padded.
        docs_kept: (n_docs, d_tokens) bool, False at padding and skipped punctuation.

    Returns:
        (n_queries, n_docs) float32.
    """
    import torch

    similarities = torch.einsum("qid,njd->qnij", queries, docs).float()
    # The dtype's minimum, not 0: similarities may be negative, and padding must never win.
    floor = torch.finfo(similarities.dtype).min
    best = similarities.masked_fill(~docs_kept[None, :, None, :], floor).amax(-1)
    return best.masked_fill(~queries_kept[:, None, :], 0.0).sum(-1)
