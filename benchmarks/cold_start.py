"""From a new process to the first embedded question, with the bundled model."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import machine, model, texts
from benchmarks.settings import Settings
from benchmarks.spread import ratios, spread
from benchmarks.turns import rotated
from benchmarks.workers import STDERR_LINES, WORKER, System, WorkerError, environment

OURS = "jacolbert"
LIMIT_S = 300
NOTE = "whole process: interpreter, imports, loading, one question, exit; after one untimed start of each"
ASK_VERSIONS = "import json; from worker import versions; print(json.dumps(versions()))"


def measure(settings: Settings) -> dict[str, Any]:
    """Start each system several times, in turns."""
    data = texts.questions(settings.data, 1)
    named = [
        System(OURS, "jacolbert", "auto"),
        System("pylate", "pylate", python=settings.pylate),
        System("sentence-transformers", "sentence-transformers", python=settings.sentence_transformers),
    ]
    failed = {s.name: f"not run: --{s.kind} names no interpreter" for s in named if s.python is None}
    systems = {s.name: s for s in named if s.python is not None}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    found: dict[str, dict[str, str]] = {}
    for i in range(-1, settings.n_repeats):
        for name in rotated(list(systems), i):
            try:
                run = start(systems[name], data.texts[0], settings.threads)
                if i < 0:
                    found[name] = versions(systems[name])
            except WorkerError as error:
                failed[name] = f"failed: {error}"
                del systems[name]
                continue
            settings.say(f"start {i + 1}/{settings.n_repeats}, {name}: {run['wall_s']:.1f} s")
            if i >= 0:
                runs[name].append(run)
    signature = machine.signature(
        "cold-start", texts=data.signed, model="bundled", threads=settings.threads, versions=found
    )
    rows = {s.name: {"not_run": failed[s.name]} if s.name in failed else row(runs[s.name]) for s in named}
    return {"signature": signature, "note": NOTE, "systems": rows, "ratios": ratio_table(runs, set(systems))}


def start(system: System, question: str, threads: int) -> dict[str, float]:
    """One process from start to end: its wall time, and what it says of its parts, in seconds.

    Raises:
        WorkerError: it failed, or took too long.
    """
    command = [str(system.python), str(WORKER), "--cold", system.kind, str(model.bundled()), question]
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, env=environment(threads), check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkerError(str(error)) from error
    wall = time.perf_counter() - begin
    if done.returncode:
        raise WorkerError(" / ".join(done.stderr.splitlines()[-STDERR_LINES:]))
    return {"wall_s": wall, **json.loads(done.stdout)}


def versions(system: System) -> dict[str, str]:
    """Packages of a system's environment."""
    done = subprocess.run(
        [str(system.python), "-c", ASK_VERSIONS],
        capture_output=True,
        text=True,
        check=True,
        cwd=WORKER.parent,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def row(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Spread of each part over the starts."""
    return {key: asdict(spread([run[key] for run in runs])) for key in ("wall_s", "load_s", "query_s")}


def ratio_table(runs: Mapping[str, Sequence[Mapping[str, float]]], ran: set[str]) -> dict[str, Any]:
    """How many times as long the peers take, start by start."""
    found: dict[str, Any] = {}
    if OURS in ran:
        ours = [run["wall_s"] for run in runs[OURS]]
        for name in sorted(ran - {OURS}):
            theirs = [run["wall_s"] for run in runs[name]]
            found[f"{OURS} / {name}"] = asdict(spread(ratios(theirs, ours)))
    return found
