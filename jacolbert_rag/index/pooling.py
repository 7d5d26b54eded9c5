"""Fewer vectors: within a document by hierarchical clustering, across the corpus by k-means."""

from __future__ import annotations

import numpy as np

from jacolbert_rag.config import PoolingConfig
from jacolbert_rag.datatypes import FloatArray, IntArray, TokenEmbeddings, offsets_of

N_ITERATIONS = 5  # of k-means: the share of tokens that change their cluster is below 5% by then
MAX_CELLS = 8_000_000  # similarities held at once, as float32: 32 MB


def pool_documents(docs: TokenEmbeddings, config: PoolingConfig) -> TokenEmbeddings:
    """Mean-pool the tokens of each document that say nearly the same.

    Ward clustering on cosine distances keeps about 1/factor of the tokens (arXiv 2409.14683); the
    first `protected` tokens stay as they are, first in order. As in lightonai/pylate
    (pylate/models/colbert.py, pool_embeddings_hierarchical) the means are not normalised again.

    Args:
        docs: ragged documents of (d_tokens, dim) float32, rows of unit length.
        config: factor 1 returns `docs` itself.

    Returns:
        Ragged documents of max((d_tokens - protected) // factor, 1) + protected tokens, clusters in
        the order of their first token; a document that would not shrink is kept whole.
    """
    if config.factor == 1:
        return docs
    pooled = [_pool_document(tokens.astype(np.float32), config) for tokens in docs]
    flat = np.concatenate([np.empty((0, docs.dim), dtype=np.float32), *pooled])
    return TokenEmbeddings(flat, offsets_of([len(tokens) for tokens in pooled]))


def _pool_document(tokens: FloatArray, config: PoolingConfig) -> FloatArray:
    from scipy.cluster.hierarchy import fcluster, linkage

    kept, rest = tokens[: config.protected], tokens[config.protected :]
    n_clusters = max(len(rest) // config.factor, 1)
    if n_clusters >= len(rest):
        return tokens
    upper = np.triu_indices(len(rest), k=1)
    tree = linkage(1.0 - (rest @ rest.T)[upper], method="ward")
    labels = fcluster(tree, t=n_clusters, criterion="maxclust")
    # Number the clusters by their first token, so that pooled documents keep the order of the text.
    _, first, labels = np.unique(labels, return_index=True, return_inverse=True)
    labels = np.argsort(np.argsort(first))[labels]
    sums = np.zeros((len(first), tokens.shape[1]), dtype=np.float32)
    np.add.at(sums, labels, rest)
    counts = np.bincount(labels)[:, None].astype(np.float32)
    return np.concatenate([kept, sums / counts])


def pool_corpus(tokens: FloatArray, n_pooled: int, *, seed: int) -> FloatArray:
    """Vectors pooled across a corpus: spherical k-means in two levels.

    First about sqrt(n_pooled) coarse clusters, then each is divided in proportion to its tokens. That
    costs n * sqrt(n_pooled) products in place of n * n_pooled.

    Args:
        tokens: (n, dim) float32, a sample of the corpus' token embeddings.
        n_pooled: how many vectors to make, at most about this many.
        seed: of the first centers.

    Returns:
        (at most n_pooled, dim) float32, rows of unit length.
    """
    rng = np.random.default_rng(seed)
    tokens = _unit(tokens)
    n_pooled = min(n_pooled, len(tokens))
    n_coarse = max(1, round(np.sqrt(n_pooled)))
    cells, _ = _kmeans(tokens, n_coarse, rng)
    parts = []
    for cell in range(n_coarse):
        members = tokens[cells == cell]
        if len(members):
            share = max(1, int(n_pooled * len(members) / len(tokens)))
            parts.append(_kmeans(members, share, rng)[1])
    return np.concatenate(parts)[:n_pooled]


def _kmeans(tokens: FloatArray, n_clusters: int, rng: np.random.Generator) -> tuple[IntArray, FloatArray]:
    """(n,) cluster of each token and (at most n_clusters, dim) unit centers; empty ones are dropped."""
    centers = tokens[rng.choice(len(tokens), size=min(n_clusters, len(tokens)), replace=False)]
    for _ in range(N_ITERATIONS):
        labels = nearest(tokens, centers)
        order = np.argsort(labels, kind="stable")
        _, starts = np.unique(labels[order], return_index=True)
        centers = _unit(np.add.reduceat(tokens[order], starts, axis=0))
    return nearest(tokens, centers), centers


def nearest(tokens: FloatArray, centers: FloatArray) -> IntArray:
    """(n,) int64: the row of `centers` with the highest dot product for each of `tokens`."""
    step = max(1, MAX_CELLS // len(centers))
    labels = np.empty(len(tokens), dtype=np.int64)
    for start in range(0, len(tokens), step):
        labels[start : start + step] = (tokens[start : start + step] @ centers.T).argmax(axis=1)
    return labels


def _unit(rows: FloatArray) -> FloatArray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: FloatArray = (rows / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return unit
