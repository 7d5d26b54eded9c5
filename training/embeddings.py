"""A start for a small language model: embeddings that already know which tokens keep company.

From random embeddings a small BERT spends its first thousand steps on what can be counted: how frequent
each token is, and which tokens stand near each other. Here that is counted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jacolbert_rag.datatypes import FloatArray

WINDOW = 5  # tokens to each side that count as company
SHIFT = 1.0  # log of the negative samples that word2vec would draw for a pair
CONTEXT_SMOOTHING = 0.75  # of context frequencies: keeps rare contexts from dominating
EIGENVALUE_WEIGHT = 0.5  # (Levy, Goldberg and Dagan, 2015, sections 3.1 to 3.3 for these)
N_POWER = 2  # power iterations of the randomised decomposition
OVERSAMPLING = 32


def cooccurrence_embeddings(
    stream: npt.NDArray[np.uint16], n_vocab: int, dim: int, *, n_special: int, seed: int
) -> FloatArray:
    """Token embeddings from positive pointwise mutual information, by a truncated decomposition.

    Args:
        stream: (n_tokens,) token ids of running text.
        n_vocab: size of the vocabulary; memory is 8 bytes times its square.
        dim: width of the embeddings.
        n_special: the first ids, which are no words and count as nothing's company.
        seed: of the randomised decomposition.

    Returns:
        (n_vocab, dim) float32; rows have unit length on average, those of tokens that never occur are 0.
    """
    counts = np.zeros(n_vocab * n_vocab, dtype=np.float32)
    for start in range(0, len(stream), 1_000_000):
        ids = stream[start : start + 1_000_000 + WINDOW].astype(np.int64)
        for distance in range(1, WINDOW + 1):
            left, right = ids[:-distance], ids[distance:]
            words = (left >= n_special) & (right >= n_special)
            keys, n = np.unique(left[words] * n_vocab + right[words], return_counts=True)
            # Nearer company counts for more, as in word2vec's shrinking window.
            counts[keys] += n * np.float32((WINDOW + 1 - distance) / WINDOW)
    matrix = counts.reshape(n_vocab, n_vocab)
    matrix += matrix.T.copy()
    _to_ppmi(matrix)
    return _decompose(matrix, dim, seed)


def sinusoidal_positions(n_positions: int, dim: int) -> FloatArray:
    """(n_positions, dim) float32 sines and cosines (Vaswani et al., 2017, section 3.5), unit rows.

    Neighbouring positions are alike from the start, so attention to the tokens nearby is quickly found.
    """
    rates = np.exp(-np.log(10_000.0) * np.arange(0, dim, 2) / dim)
    angles = np.arange(n_positions)[:, None] * rates
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(n_positions, dim)
    unit: FloatArray = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _to_ppmi(matrix: FloatArray) -> None:
    """Turn symmetric counts into shifted positive mutual information, in place for their size."""
    total = matrix.sum(dtype=np.float64)
    token = matrix.sum(axis=1, dtype=np.float64)
    context = token**CONTEXT_SMOOTHING
    with np.errstate(divide="ignore", invalid="ignore"):  # log 0 at tokens and pairs that never occur
        log_token = np.log(token / total).astype(np.float32)
        log_context = np.log(context / context.sum()).astype(np.float32)
        for row in range(len(matrix)):
            pmi = np.log(matrix[row] / np.float32(total)) - log_token[row] - log_context - SHIFT
            matrix[row] = np.where(matrix[row] > 0, np.maximum(pmi, 0.0), 0.0)


def _decompose(matrix: FloatArray, dim: int, seed: int) -> FloatArray:
    """Left singular vectors by their weighted singular values (Halko, Martinsson and Tropp, 2011)."""
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((matrix.shape[1], dim + OVERSAMPLING), dtype=np.float32)
    for _ in range(N_POWER):
        basis = np.linalg.qr(matrix @ basis)[0]
        basis = np.linalg.qr(matrix.T @ basis)[0]
    left, values, _ = np.linalg.svd(matrix @ basis, full_matrices=False)
    embeddings = left[:, :dim] * values[:dim] ** EIGENVALUE_WEIGHT
    scale = np.linalg.norm(embeddings, axis=1)
    scaled: FloatArray = (embeddings / scale[scale > 0].mean()).astype(np.float32)
    return scaled
