"""One question at a time with the bundled model: the encoder beside its network alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from benchmarks import machine, model, texts
from benchmarks.settings import Settings
from benchmarks.spread import percentile, spread
from benchmarks.turns import Running
from benchmarks.workers import System, WorkerError

OURS, NETWORK = "queries", "network"
N_WARM_UP = 20
N_ASKED = 50  # questions a request, so that progress shows
NOTE = "network: the forward pass on the same ids, in the same process, in turns; milliseconds a question"


def measure(settings: Settings) -> dict[str, Any]:
    """Time each question alone.

    Raises:
        WorkerError: the encoder failed.
    """
    data = texts.questions(settings.data, settings.n_questions)
    warm_up = texts.questions(settings.data, settings.n_questions + N_WARM_UP).texts[-N_WARM_UP:]
    took: dict[str, list[float]] = {OURS: [], NETWORK: []}
    with ExitStack() as stack:
        running = Running(settings, [System("jacolbert", "jacolbert", "auto")], stack)
        running.start(lambda worker: worker.load(model.bundled()))
        if running.failed:
            raise WorkerError(running.failed["jacolbert"])
        worker = running.workers["jacolbert"]
        worker.ask("query_latency", texts=warm_up)
        for start in range(0, len(data.texts), N_ASKED):
            reply = worker.ask("query_latency", texts=data.texts[start : start + N_ASKED])
            for name, values in reply.items():
                took[name] += values
            settings.say(f"{len(took[OURS])}/{len(data.texts)} questions")
    signature = machine.signature(
        "query", texts=data.signed, model="bundled", threads=settings.threads, versions=running.versions
    )
    return {
        "signature": signature,
        "note": NOTE,
        "dtype": running.loaded["jacolbert"]["dtype"],
        **summarize(took[OURS], took[NETWORK]),
    }


def summarize(queries: Sequence[float], network: Sequence[float]) -> dict[str, Any]:
    """p50 and p95 of both in milliseconds, and what the encoder adds to its network, question by question."""
    extra = [q - n for q, n in zip(queries, network, strict=True)]
    return {
        "n_questions": len(extra),
        "latency_ms": {
            name: {"p50": percentile(values, 50), "p95": percentile(values, 95)}
            for name, values in ((OURS, queries), (NETWORK, network))
        },
        "added_ms": asdict(spread(extra)),
        "ratio": percentile(queries, 50) / percentile(network, 50),
    }
