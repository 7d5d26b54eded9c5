"""Two scores of one document as one, and figures that mean the same for every query."""

from __future__ import annotations

import numpy as np

from jacolbert_rag.config import LexicalConfig
from jacolbert_rag.datatypes import FloatArray

# Of coverage beside similarity; see `jacolbert_rag.calibration` for how it was chosen.
COVERAGE_WEIGHT = 1.0
# Raised when `confidence` becomes another figure: thresholds that were found before mean nothing then.
CONFIDENCE_VERSION = 2


def fuse(maxsim: FloatArray, bm25: FloatArray, config: LexicalConfig) -> FloatArray:
    """One score of two, for the documents that either way proposes.

    "min-max" puts both within [0, 1] and takes their weighted mean: MaxSim from its least to its most over
    these documents, BM25 from 0, which is its score of a document that shares no term. "rrf" is reciprocal
    rank fusion (Cormack, Clarke, Buettcher 2009), weighted in the same way and scaled so that the first of
    both has 1.

    Args:
        maxsim: (n,) of all documents.
        bm25: (n,) of all documents; 0 where no term is shared.
        config: fusion and weight.

    Returns:
        (n,) float32 within [0, 1].
    """
    weight = config.weight
    if config.fusion == "rrf":
        first, second = _reciprocal_ranks(maxsim, config.rrf_k), _reciprocal_ranks(bm25, config.rrf_k)
        second[bm25 <= 0] = 0.0
    else:
        first, second = _scaled(maxsim, maxsim.min(initial=np.inf)), _scaled(bm25, 0.0)
    fused: FloatArray = ((1 - weight) * first + weight * second).astype(np.float32)
    return fused


def _scaled(scores: FloatArray, low: float) -> FloatArray:
    """Scores as shares of the way from `low` to the highest; where all are `low`, 1, or 0 if that is 0."""
    high = scores.max(initial=low)
    if not high > low:
        return np.full(len(scores), float(low != 0), dtype=np.float32)
    scaled: FloatArray = ((scores - low) / (high - low)).astype(np.float32)
    return scaled


def _reciprocal_ranks(scores: FloatArray, k: int) -> FloatArray:
    ranks = np.empty(len(scores), dtype=np.float32)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    reciprocal: FloatArray = ((k + 1) / (k + ranks)).astype(np.float32)
    return reciprocal


def similarity(maxsim: FloatArray, q_tokens: int) -> FloatArray:
    """MaxSim's mean over the query's tokens, within [0, 1]."""
    mean: FloatArray = np.clip(maxsim / np.float32(max(q_tokens, 1)), 0.0, 1.0).astype(np.float32)
    return mean


def confidence(similarity: FloatArray, coverage: FloatArray) -> FloatArray:
    """How well a document answers, within [0, 1]: how near its tokens are, and how many terms it shares.

    A model finds something near for every question; a question that nothing answers shares few of its
    telling terms with what is found.
    """
    weight = np.float32(COVERAGE_WEIGHT)
    mean: FloatArray = ((similarity + weight * coverage) / (1 + weight)).astype(np.float32)
    return mean
