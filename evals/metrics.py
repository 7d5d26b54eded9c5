"""Measures of a run against qrels, per query first; the arithmetic is ranx's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from jacolbert_rag.errors import OptionalDependencyError

MEASURES = (
    "nDCG@10", "MRR@10", "MAP@10", "Recall@1", "Recall@3", "Recall@5", "Recall@10", "Recall@100", "Hit@10",
)  # fmt: skip

NAME_LENGTH = 8  # hex digits that stand for a document id while ranx counts

# nDCG is ranx's "ndcg": linear gain, and the ideal is cut at k too (trec_eval's ndcg_cut). MAP@k divides by
# all that is relevant, as trec_eval's map_cut does. Hit is 1 where a relevant document is among the first k.
_RANX_NAMES = {
    "nDCG": "ndcg",
    "MRR": "mrr",
    "MAP": "map",
    "Recall": "recall",
    "Precision": "precision",
    "Hit": "hit_rate",
}
# What ir-measures and others call them.
_OTHER_NAMES = {"RR": "MRR", "AP": "MAP", "R": "Recall", "P": "Precision", "Success": "Hit"}
_KINDS = {
    **{name.lower(): name for name in _RANX_NAMES},
    **{other.lower(): name for other, name in _OTHER_NAMES.items()},
}


def load_ranx() -> Any:
    """The ranx package; its import takes seconds, and its very first use compiles for some more.

    Raises:
        OptionalDependencyError: it is not installed.
    """
    try:
        import ranx
    except ModuleNotFoundError as error:
        if error.name != "ranx":
            raise
        raise OptionalDependencyError(
            "Measures are computed by ranx, which is not installed. Run: pip install 'jacolbert-rag[evals]'"
        ) from error
    return ranx


def per_query(
    qrels: Mapping[str, Mapping[str, int]],
    run: Mapping[str, Mapping[str, float]],
    measures: Sequence[str] = MEASURES,
) -> dict[str, dict[str, float]]:
    """The value of each measure for each query.

    Args:
        qrels: query id -> document id -> score; above 0 is relevant.
        run: query id -> document id -> score. The highest score is first; of equal scores, the
            document that the run names first. Queries that are not in qrels are passed over.
        measures: "nDCG@k", "MRR@k", "MAP@k", "Recall@k", "Precision@k" or "Hit@k", or one of these with no
            "@k" for the whole ranking; capitals do not count.

    Returns:
        Measure -> query id -> value within [0, 1], for every query of qrels, in its order. A query
        without results, or without relevant documents, has 0.

    Raises:
        ValueError: a measure is unknown, or a score is NaN.
    """
    names = {measure: _ranx_name(measure) for measure in measures}
    relevant = {
        id: {doc: score for doc, score in judged.items() if score > 0} for id, judged in qrels.items()
    }
    # ranx takes neither empty judgements nor, all together, empty results: what they count is known.
    answered = [id for id in qrels if relevant[id] and run.get(id)]
    found: Mapping[str, Mapping[str, Any]] = {}
    if answered:
        found = _evaluate(
            {id: relevant[id] for id in answered},
            {id: _by_rank(id, run[id]) for id in answered},
            list(names.values()),
        )
    return {
        measure: {id: float(found.get(name, {}).get(id, 0.0)) for id in qrels}
        for measure, name in names.items()
    }


def mean(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over all queries that `per_query` was given.

    Raises:
        ValueError: there are no queries.
    """
    if not all(values.values()):
        raise ValueError("there are no queries to take a mean of; qrels must name at least one.")
    return {measure: fmean(per_id.values()) for measure, per_id in values.items()}


def check_measures(measures: Sequence[str]) -> None:
    """Refuse measures that `per_query` does not have.

    Raises:
        ValueError: with those that are known.
    """
    for measure in measures:
        _ranx_name(measure)


def _ranx_name(measure: str) -> str:
    kind, at, k = measure.partition("@")
    name = _KINDS.get(kind.lower())
    if name is None or (at and not (k.isascii() and k.isdecimal() and int(k) >= 1)):
        known = ", ".join(f"{known}@k" for known in _RANX_NAMES)
        raise ValueError(f"the measure {measure!r} is unknown; expected {known}, such as nDCG@10.")
    return f"{_RANX_NAMES[name]}@{int(k)}" if at else _RANX_NAMES[name]


def _by_rank(query_id: str, scores: Mapping[str, float]) -> dict[str, float]:
    """The same ranking with scores n, n - 1, …, so that ranx has no ties to break."""
    if any(math.isnan(score) for score in scores.values()):
        raise ValueError(f"the run of query {query_id!r} has a NaN among its scores, and so no order.")
    ranking = sorted(scores, key=lambda doc: -scores[doc])  # stable: ties stay in the run's order
    return {doc: float(len(ranking) - i) for i, doc in enumerate(ranking)}


def _evaluate(
    qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]], measures: list[str]
) -> Mapping[str, Mapping[str, Any]]:
    """Values by ranx's name and query id."""
    ranx = load_ranx()
    import numba

    # ranx compiles anew (about 20 s) for each greatest length of a document id: names of one length.
    names: dict[str, str] = {}
    for found in (*qrels.values(), *run.values()):
        for doc in found:
            names.setdefault(doc, f"{len(names):0{NAME_LENGTH}x}")
    # Qrels and Run sort by query id; raw dicts would be paired by position.
    judged = ranx.Qrels(
        {id: {names[doc]: score for doc, score in found.items()} for id, found in qrels.items()}
    )
    scored = ranx.Run({id: {names[doc]: score for doc, score in found.items()} for id, found in run.items()})
    n_threads = numba.get_num_threads()
    try:
        with warnings.catch_warnings():
            # About ranx's loop counters (uint64 to int64), said once while it compiles.
            warnings.simplefilter("ignore", numba.errors.NumbaTypeSafetyWarning)
            ranx.evaluate(judged, scored, measures, return_mean=False)
    finally:
        # Below ten queries ranx sets one thread for the whole process, and never restores it.
        numba.set_num_threads(n_threads)
    values: Mapping[str, Mapping[str, Any]] = scored.scores
    return values
