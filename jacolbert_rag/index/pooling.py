"""Fewer vectors: within a document by hierarchical clustering, across the corpus by k-means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jacolbert_rag.config import PoolingConfig
from jacolbert_rag.datatypes import FloatArray, IntArray, TokenArray, TokenEmbeddings, offsets_of

N_ITERATIONS = 5  # of k-means: the share of tokens that change their cluster is below 5% by then
TOKENS_PER_CENTER = 256  # as many as a coarse center is found from
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
    return pool_with_members(docs, config)[0]


def pool_with_members(
    docs: TokenEmbeddings, config: PoolingConfig
) -> tuple[TokenEmbeddings, list[IntArray] | None]:
    """`pool_documents`, and which pooled token took in each of the tokens.

    Returns:
        The pooled documents, and for each document (d_tokens,) int64 rows of its pooled tokens, so that
        `pooled[i][members[i]]` has a row for each token of document i again. None for factor 1, where
        each token is its own.
    """
    if config.factor == 1:
        return docs, None
    pooled, members = [], []
    for tokens in docs:
        means, member = _pool_document(tokens.astype(np.float32), config)
        pooled.append(means)
        members.append(member)
    flat = np.concatenate([np.empty((0, docs.dim), dtype=np.float32), *pooled])
    return TokenEmbeddings(flat, offsets_of([len(tokens) for tokens in pooled])), members


def _pool_document(tokens: FloatArray, config: PoolingConfig) -> tuple[FloatArray, IntArray]:
    """(pooled tokens, dim) float32, and (d_tokens,) int64 rows of it."""
    from scipy.cluster.hierarchy import fcluster, linkage

    kept, rest = tokens[: config.protected], tokens[config.protected :]
    n_clusters = max(len(rest) // config.factor, 1)
    if n_clusters >= len(rest):
        return tokens, np.arange(len(tokens), dtype=np.int64)
    upper = np.triu_indices(len(rest), k=1)
    # Equal tokens have a product of a little more than 1 after rounding, and no tree has lengths below 0.
    tree = linkage(np.maximum(1.0 - (rest @ rest.T)[upper], 0.0), method="ward")
    labels = fcluster(tree, t=n_clusters, criterion="maxclust")
    # Number the clusters by their first token, so that pooled documents keep the order of the text.
    _, first, labels = np.unique(labels, return_index=True, return_inverse=True)
    labels = np.argsort(np.argsort(first))[labels]
    sums = np.zeros((len(first), tokens.shape[1]), dtype=np.float32)
    np.add.at(sums, labels, rest)
    counts = np.bincount(labels)[:, None].astype(np.float32)
    members = np.concatenate([np.arange(len(kept), dtype=np.int64), len(kept) + labels])
    return np.concatenate([kept, sums / counts]), members


@dataclass(frozen=True)
class Cells:
    """Vectors pooled across a corpus, in two levels: each lies in the cell of a coarse center.

    Attributes:
        centers: (n_cells, dim) float32, rows of unit length.
        vectors: (n_pooled, dim) float32, rows of unit length, those of one cell side by side.
        offsets: (n_cells + 1,) int64: cell i has `vectors[offsets[i]:offsets[i + 1]]`, at least one.
    """

    centers: FloatArray
    vectors: FloatArray
    offsets: IntArray

    def nearest(self, tokens: TokenArray, *, n_probed: int) -> IntArray:
        """The most similar vector of each token among those of the cells that are most similar to it.

        That costs sqrt(n_pooled) products a token and level, in place of n_pooled.

        Args:
            tokens: (n, dim).
            n_probed: cells that are looked into.

        Returns:
            (n,) int64 vectors.
        """
        import torch

        if not len(tokens):
            return np.empty(0, dtype=np.int64)
        centers = torch.from_numpy(self.centers).T.contiguous()
        vectors = torch.from_numpy(self.vectors)
        given = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.float32))
        n_probed = min(n_probed, len(self.centers))
        step = max(1, MAX_CELLS // len(self.centers))
        chunks = [
            (given[start : start + step] @ centers).topk(n_probed, dim=1).indices
            for start in range(0, len(given), step)
        ]
        probed = torch.cat(chunks).numpy()
        found = np.zeros(len(tokens), dtype=np.int64)
        best = np.full(len(tokens), -np.inf, dtype=np.float32)
        # Pairs of token and cell, sorted by cell, so that each cell is one product.
        order = np.argsort(probed.astype(np.uint16), axis=None, kind="stable")  # by radix, being so short
        cells, firsts = np.unique(probed.ravel()[order], return_index=True)
        for cell, first, stop in zip(cells.tolist(), firsts, [*firsts[1:], len(order)], strict=True):
            members = order[first:stop] // n_probed
            begin, end = int(self.offsets[cell]), int(self.offsets[cell + 1])
            products = given.index_select(0, torch.from_numpy(members)) @ vectors[begin:end].T
            similarity, place = (values.numpy() for values in products.max(dim=1))
            better = similarity > best[members]
            found[members[better]] = begin + place[better]
            best[members[better]] = similarity[better]
        return found


def pool_corpus(tokens: TokenArray, n_pooled: int, *, seed: int) -> Cells:
    """Vectors pooled across a corpus: spherical k-means in two levels.

    First about sqrt(n_pooled) coarse clusters, then each is divided in proportion to its tokens. That
    costs n * sqrt(n_pooled) products in place of n * n_pooled.

    Args:
        tokens: (n, dim), a sample of the corpus' token embeddings, at least one.
        n_pooled: how many vectors to make, about.
        seed: of the first centers.
    """
    rng = np.random.default_rng(seed)
    n_pooled = min(n_pooled, len(tokens))
    n_cells = max(1, round(np.sqrt(n_pooled)))
    some = rng.permutation(len(tokens))[: TOKENS_PER_CENTER * n_cells]
    centers = _kmeans(_unit(tokens[np.sort(some)]), n_cells, rng)
    labels = nearest(tokens, centers)
    order = np.argsort(labels, kind="stable")
    filled, firsts = np.unique(labels[order], return_index=True)
    parts = []
    for first, stop in zip(firsts, [*firsts[1:], len(order)], strict=True):
        members = _unit(tokens[order[first:stop]])  # a cell at a time: the whole may be a gigabyte
        share = max(1, int(n_pooled * len(members) / len(tokens)))
        parts.append(_kmeans(members, share, rng))
    return Cells(centers[filled], np.concatenate(parts), offsets_of([len(part) for part in parts]))


def kmeans(tokens: TokenArray, n_clusters: int, *, seed: int) -> FloatArray:
    """(at most n_clusters, dim) float32 unit centers of a sample of tokens, found in one level."""
    return _kmeans(_unit(tokens), n_clusters, np.random.default_rng(seed))


def _kmeans(tokens: FloatArray, n_clusters: int, rng: np.random.Generator) -> FloatArray:
    """(at most n_clusters, dim) unit centers; empty ones are dropped."""
    centers = tokens[rng.choice(len(tokens), size=min(n_clusters, len(tokens)), replace=False)]
    for _ in range(N_ITERATIONS):
        labels = nearest(tokens, centers)
        order = np.argsort(labels, kind="stable")
        _, starts = np.unique(labels[order], return_index=True)
        centers = _unit(np.add.reduceat(tokens[order], starts, axis=0))
    return centers


def nearest(tokens: TokenArray, centers: FloatArray) -> IntArray:
    """(n,) int64: the row of `centers` with the highest dot product for each of `tokens`."""
    import torch

    step = max(1, MAX_CELLS // len(centers))
    table = torch.from_numpy(np.ascontiguousarray(centers, dtype=np.float32)).T
    labels = np.empty(len(tokens), dtype=np.int64)
    for start in range(0, len(tokens), step):
        chunk = torch.from_numpy(np.ascontiguousarray(tokens[start : start + step], dtype=np.float32))
        labels[start : start + step] = (chunk @ table).argmax(dim=1).numpy()
    return labels


def _unit(rows: TokenArray) -> FloatArray:
    rows = rows.astype(np.float32, copy=False)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: FloatArray = (rows / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32, copy=False)
    return unit
