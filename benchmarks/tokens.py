"""Tokenization alone, on one core: the library's tokenizer beside transformers'."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import model
from benchmarks.documents import row
from benchmarks.settings import Settings
from benchmarks.spread import ratios, spread
from benchmarks.turns import Record, Running, column, common, encode_in_turns, saved
from benchmarks.workers import System

OURS, THEIRS = "tokenizer", "transformers-tokenizer"
NOTE = "one process and one core each; texts in, ids out, markers and special tokens included"


def measure(settings: Settings) -> dict[str, Any]:
    """Tokenize the passages with both in turns, and compare their ids on the warm-up passages."""
    settings = replace(settings, threads=1)
    # They never run at once, so both may have the same core.
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    systems = [System(name, name) for name in (OURS, THEIRS)]
    done = encode_in_turns("tokens", settings, systems, model.bundled(), model="bundled", cpu=core)
    result = {
        "signature": done.signature,
        "note": NOTE,
        **summarize(done.running, done.records),
        "blocks": done.records,
    }
    if not done.running.failed:
        result["agreement"] = same_ids(saved(settings.work, OURS), saved(settings.work, THEIRS))
    done.log.finish()
    return result


def summarize(running: Running, records: Sequence[Record]) -> dict[str, Any]:
    """Rows of both, and how many times as fast ours is."""
    rows = {
        name: {"not_run": running.failed[name]} if name in running.failed else row(name, records)
        for name in (OURS, THEIRS)
    }
    found: dict[str, Any] = {"systems": rows, "ratios": {}}
    if not running.failed and (both := common(records, OURS, THEIRS)):
        values = ratios(column(both, THEIRS, "seconds"), column(both, OURS, "seconds"))
        found["ratios"][f"{OURS} / {THEIRS}"] = asdict(spread(values))
    return found


def same_ids(ours: Path, theirs: Path) -> dict[str, int]:
    """Of how many texts both gave the same ids, the document marker set aside."""
    with np.load(ours) as a, np.load(theirs) as b:
        left = np.split(a["flat"][:, 0], np.cumsum(a["lengths"])[:-1])
        right = np.split(b["flat"][:, 0], np.cumsum(b["lengths"])[:-1])
    equal = sum(np.array_equal(x, y) for x, y in zip(left, right, strict=True))
    return {"n_texts": len(left), "n_equal_ids": equal}
