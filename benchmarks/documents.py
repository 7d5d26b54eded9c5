"""Documents a second: the encoder beside its peers and beside its own network, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, model
from benchmarks.settings import Settings
from benchmarks.spread import ratios, spread
from benchmarks.turns import Record, Running, column, common, encode_in_turns, saved
from benchmarks.workers import System

OURS, OURS_FLOAT32 = "jacolbert", "jacolbert-float32"
PYLATE, ST, ST_BFLOAT16 = "pylate", "sentence-transformers", "sentence-transformers-bfloat16"
NETWORK, NETWORK_FLOAT32 = "network", "network-float32"
NOTE = (
    "network: forward passes alone, over the same token ids laid end to end in rows of 256, without padding, "
    "in the batch that was fastest; all others: texts in, token embeddings out, at each library's defaults"
)


def systems(settings: Settings) -> list[System]:
    """The rows, ours first."""
    st = settings.sentence_transformers
    return [
        System(OURS, "jacolbert", "auto"),
        System(OURS_FLOAT32, "jacolbert"),
        System(PYLATE, "pylate", python=settings.pylate),
        System(ST, "sentence-transformers", python=st),
        System(ST_BFLOAT16, "sentence-transformers", "bfloat16", python=st),
        System(NETWORK, "network", "auto"),
        System(NETWORK_FLOAT32, "network"),
    ]


def measure(settings: Settings, *, shape: model.Shape = model.BASE) -> dict[str, Any]:
    """Encode the passages with each system in turns, and compare what came out."""
    settings.say(f"checkpoint: {machine.shape_name(shape)}")
    folder = model.checkpoint_folder(settings.work, shape)
    done = encode_in_turns("documents", settings, systems(settings), folder, model=machine.shape_name(shape))
    result = {
        "signature": done.signature,
        "note": NOTE,
        **summarize(done.running, done.records),
        "agreement": {
            name: agreement(saved(settings.work, OURS_FLOAT32), saved(settings.work, name))
            for name in (OURS, PYLATE, ST, ST_BFLOAT16)
            if {name, OURS_FLOAT32} <= set(done.running.workers)
        },
        "blocks": done.records,
    }
    done.log.finish()
    return result


def summarize(running: Running, records: Sequence[Record]) -> dict[str, Any]:
    """Rows and ratios of the finished blocks."""
    rows: dict[str, Any] = {}
    for system in running.systems:
        name = system.name
        if name in running.failed:
            rows[name] = {"not_run": running.failed[name]}
            continue
        told = running.loaded[name]
        rows[name] = row(name, records) | {key: told[key] for key in ("dtype", "n_rows") if key in told}
    return {"systems": rows, "ratios": ratio_table(records, set(rows) - set(running.failed))}


def row(name: str, records: Sequence[Record]) -> dict[str, Any]:
    """Speed of one system over the blocks it finished, and the share of padding it computed."""
    own = common(records, name)
    if not own:
        return {"not_run": "failed: no block was finished"}
    seconds = column(own, name, "seconds")
    docs, tokens = column(own, name, "docs"), column(own, name, "tokens")
    found = {
        "n_blocks": len(own),
        "docs": int(sum(docs)),
        "tokens": int(sum(tokens)),
        "docs_per_s": asdict(spread(ratios(docs, seconds))),
        "tokens_per_s": asdict(spread(ratios(tokens, seconds))),
    }
    if all("padded" in record["systems"][name] for record in own):
        found["padded_per_token"] = sum(column(own, name, "padded")) / sum(tokens)
    return found


def ratio_table(records: Sequence[Record], ran: set[str]) -> dict[str, Any]:
    """Ratios block by block, with quartiles; those whose systems did not run are left out.

    `attainable / sentence-transformers` is what our network allows over sentence-transformers in
    float32: its own gain from the dtype, times the padding that need not be computed. `reached` is
    the share of it that the encoder attains.
    """
    found: dict[str, Any] = {}

    def times(below: str, above: str) -> None:
        """How many times as fast `below` was as `above`."""
        if {below, above} <= ran and (both := common(records, below, above)):
            values = ratios(column(both, above, "seconds"), column(both, below, "seconds"))
            found[f"{below} / {above}"] = asdict(spread(values))

    times(OURS, PYLATE)
    times(OURS, ST)
    times(OURS, ST_BFLOAT16)
    times(OURS_FLOAT32, PYLATE)
    times(OURS_FLOAT32, ST)
    times(OURS, NETWORK)
    times(OURS_FLOAT32, NETWORK_FLOAT32)
    times(NETWORK, NETWORK_FLOAT32)
    needed = {OURS, ST, NETWORK, NETWORK_FLOAT32}
    if needed <= ran and (both := common(records, *needed)):
        gain = ratios(column(both, NETWORK_FLOAT32, "seconds"), column(both, NETWORK, "seconds"))
        padding = ratios(column(both, ST, "padded"), column(both, ST, "tokens"))
        attainable = [g * p for g, p in zip(gain, padding, strict=True)]
        reached = ratios(ratios(column(both, ST, "seconds"), column(both, OURS, "seconds")), attainable)
        found[f"attainable / {ST}"] = asdict(spread(attainable))
        found["reached"] = asdict(spread(reached))
    return found


def agreement(ours: Path, theirs: Path) -> dict[str, Any]:
    """How alike two systems' embeddings of the same texts are, over texts of equally many tokens."""
    with np.load(ours) as a, np.load(theirs) as b:
        same = a["lengths"] == b["lengths"]
        left = a["flat"][np.repeat(same, a["lengths"])].astype(np.float64)
        right = b["flat"][np.repeat(same, b["lengths"])].astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = (left * right).sum(axis=1) / norms
    return {
        "n_texts": len(same),
        "n_equal_lengths": int(same.sum()),
        "min_cosine": float(cosines.min()) if len(cosines) else None,
    }
