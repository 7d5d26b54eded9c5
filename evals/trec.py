"""Judgements and runs in TREC's format, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

from jacolbert_rag.errors import InvalidInputError

BEIR_HEADER = ("query-id", "corpus-id", "score")

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]


class TrecError(InvalidInputError):
    """A file that cannot be used; the message names it and the line."""


def read_qrels(path: Path) -> Qrels:
    """Query id -> document id -> relevance, in the order of the file.

    Args:
        path: lines of `query 0 document relevance`, or BEIR's of `query document relevance` below its header.

    Raises:
        TrecError: it cannot be read, a line is broken, or a document is judged twice.
    """
    qrels: Qrels = {}
    n_cells = 4
    for n, cells in _rows(path):
        if not qrels and tuple(cells) == BEIR_HEADER:
            n_cells = 3
            continue
        if len(cells) != n_cells:
            expected = "query, 0, document, relevance" if n_cells == 4 else "query, document, relevance"
            raise TrecError(
                f"{path}, line {n}: {len(cells)} cells; expected {n_cells}: {expected}. Mend the line."
            )
        query, document, grade = cells[0], cells[-2], cells[-1]
        judged = qrels.setdefault(query, {})
        if document in judged:
            raise TrecError(f"{path}, line {n}: {query!r} and {document!r} were judged before. Keep one.")
        try:
            judged[document] = int(grade)
        except ValueError:
            raise TrecError(
                f"{path}, line {n}: the relevance {grade!r:.40} is no whole number. Write 0 or 1."
            ) from None
    if not qrels:
        raise TrecError(f"{path} has no judgements. Write one a line: query, 0, document, relevance.")
    return qrels


def read_run(path: Path) -> Run:
    """Query id -> document id -> score, in the order of the file: of equal scores, the first is before.

    Args:
        path: lines of `query Q0 document rank score tag`. Ranks are not looked at, as trec_eval does not.

    Raises:
        TrecError: it cannot be read, a line is broken, a score is no number, or a document is there twice.
    """
    run: Run = {}
    for n, cells in _rows(path):
        if len(cells) < 6:
            raise TrecError(
                f"{path}, line {n}: {len(cells)} cells; expected 6: query, Q0, document, rank, score, tag. "
                "Mend the line."
            )
        query, _, document, _, score, *_ = cells
        found = run.setdefault(query, {})
        if document in found:
            raise TrecError(f"{path}, line {n}: {query!r} has {document!r} twice. Keep one of them.")
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise TrecError(f"{path}, line {n}: the score {score!r:.40} is no number, and so has no order.")
        found[document] = value
    if not run:
        raise TrecError(f"{path} has no results. Write one a line: query, Q0, document, rank, score, tag.")
    return run


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers from 1, and cells, which spaces or tabs part; blank lines are passed over."""
    n = 0
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as lines:
            for n, raw in enumerate(lines, start=1):
                # Not at every white space of Unicode: an id may hold a full-width space.
                cells = [cell.decode("utf-8-sig" if n == 1 else "utf-8") for cell in raw.split()]
                if cells:
                    yield n, cells
    except UnicodeDecodeError as error:
        raise TrecError(f"{path}, line {n}: not UTF-8 ({error}). Convert the file to UTF-8.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TrecError(
            f"{path}, line {n + 1}: the file cannot be unpacked from here ({error}). It was cut short: copy "
            "it again."
        ) from error
    except OSError as error:
        raise TrecError(f"{path} cannot be read ({error}). Check the name and the permissions.") from error
