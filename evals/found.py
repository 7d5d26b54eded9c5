"""What a system found for all queries: written by its own process, scored by the one that started it.

Measures are compiled when they are first asked for, which takes longer than most searches: once, not in each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from evals.protocol import Found
from evals.results import Answered, Cell, Result

KEPT = 10  # documents of each query that stay in its cell


@dataclass(frozen=True)
class Searched:
    """What one system found on one dataset.

    Attributes:
        result: without measures yet.
        run: query id -> what was found, best first; all queries.
        qrels: query id -> document id -> relevance; the same queries.
        queries: query id -> query.
    """

    result: Result
    run: Mapping[str, Found]
    qrels: Mapping[str, Mapping[str, int]]
    queries: Mapping[str, str]

    def save(self, path: Path) -> None:
        """Write JSON; escaped, since a text may have lone surrogates."""
        path.write_text(json.dumps(asdict(self), allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Searched:
        """Read what `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(Result(**content.pop("result")), **content)


def scored(searched: Searched) -> Cell:
    """The measures of what was found, for each query and over all."""
    import numpy as np

    from evals import metrics, statistics

    values = metrics.per_query(searched.qrels, searched.run)
    bounds = statistics.intervals(np.array([list(each.values()) for each in values.values()]).T)
    result = replace(
        searched.result,
        measures=metrics.mean(values),
        intervals={measure: pair.tolist() for measure, pair in zip(values, bounds, strict=True)},
    )
    answered = {
        id: Answered(
            {measure: values[measure][id] for measure in values},
            list(hits.items())[:KEPT],
            first_right(hits, searched.qrels[id]),
            searched.queries[id],
        )
        for id, hits in searched.run.items()
    }
    return Cell(result, answered)


def first_right(hits: Mapping[str, float], judged: Mapping[str, int]) -> int | None:
    """Rank of the first relevant document, from 1; None where there is none."""
    return next((rank for rank, id in enumerate(hits, start=1) if judged.get(id, 0) > 0), None)
