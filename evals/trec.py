"""Judgements and runs in TREC's format, plain or gzipped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from evals.datasets import DatasetError, lines

BEIR_HEADER = ("query-id", "corpus-id", "score")

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]


def read_qrels(path: Path) -> Qrels:
    """Query id -> document id -> relevance, in the order of the file.

    Args:
        path: lines of `query 0 document relevance`, or BEIR's of `query document relevance` below its header.

    Raises:
        DatasetError: it cannot be read, a line is broken, or a document is judged twice.
    """
    qrels: Qrels = {}
    n_cells = 4
    for n, cells in _rows(path):
        if not qrels and tuple(cells) == BEIR_HEADER:
            n_cells = 3
            continue
        if len(cells) != n_cells:
            expected = "query, 0, document, relevance" if n_cells == 4 else "query, document, relevance"
            raise DatasetError(
                f"{path}, line {n}: {len(cells)} cells; expected {n_cells}: {expected}. Mend the line."
            )
        query, document, grade = cells[0], cells[-2], cells[-1]
        judged = qrels.setdefault(query, {})
        if document in judged:
            raise DatasetError(f"{path}, line {n}: {query!r} and {document!r} were judged before. Keep one.")
        try:
            judged[document] = int(grade)
        except ValueError:
            raise DatasetError(
                f"{path}, line {n}: the relevance {grade!r:.40} is no whole number. Write 0 or 1."
            ) from None
    if not qrels:
        raise DatasetError(f"{path} has no judgements. Write one a line: query, 0, document, relevance.")
    return qrels


def read_run(path: Path) -> Run:
    """Query id -> document id -> score, in the order of the file: of equal scores, the first is before.

    Args:
        path: lines of `query Q0 document rank score tag`. Ranks are not looked at, as trec_eval does not.

    Raises:
        DatasetError: it cannot be read, a line is broken, a score is not finite, or a document comes twice.
    """
    run: Run = {}
    for n, cells in _rows(path):
        if len(cells) < 6:
            raise DatasetError(
                f"{path}, line {n}: {len(cells)} cells; expected 6: query, Q0, document, rank, score, tag. "
                "Mend the line."
            )
        query, _, document, _, score, *_ = cells
        found = run.setdefault(query, {})
        if document in found:
            raise DatasetError(f"{path}, line {n}: {query!r} has {document!r} twice. Keep one of them.")
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):  # an infinite one could not be written as JSON
            raise DatasetError(
                f"{path}, line {n}: the score {score!r:.40} is no finite number. Mend the line."
            )
        found[document] = value
    if not run:
        raise DatasetError(f"{path} has no results. Write one a line: query, Q0, document, rank, score, tag.")
    return run


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers from 1, and cells, which spaces or tabs part; blank lines are passed over."""
    for n, line in lines(path, packed=_is_packed(path)):
        # Not at every white space of Unicode: an id may hold a full-width space.
        yield n, re.split("[ \t]+", line.strip(" \t"))


def _is_packed(path: Path) -> bool:
    """Whether a file begins as gzip does, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError:
        return False  # reading it says why
