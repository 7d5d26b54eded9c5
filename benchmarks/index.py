"""Build, size, speed and quality of the index, beside its peers', from the same embeddings.

python -m benchmarks.index --pylate PYTHON --fast-plaid PYTHON --lancedb PYTHON
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import embedded, machine
from benchmarks.blocklog import BlockLog
from benchmarks.embedded import Embedded
from benchmarks.settings import TRIES, WORK
from benchmarks.spread import percentile, ratios, spread
from benchmarks.texts import SHARED_DATA
from benchmarks.turns import rotated
from benchmarks.workers import System, Worker, WorkerError

WORKER = Path(__file__).parent / "peers" / "index_worker.py"
OURS, EXACT = "jacolbert", "exact"
GROWN = "jacolbert-grown"  # ours, most of it added in small calls
PYLATE, PLAID, LANCE = "pylate-voyager", "fast-plaid", "lancedb"
PEERS = (PYLATE, PLAID, LANCE)
SIZES = (2_000, 11_096, 100_000)
PEERS_UP_TO = 20_000  # passages: beyond, PyLate's graph alone wants hours and tens of gigabytes
K = 10
N_QUESTIONS = {2_000: 300, 11_096: 300, 100_000: 100}
N_TURN_QUESTIONS = 300  # for ours of all sizes in turns
N_BLOCKS = 10
N_WARM_UP = 5
WHOLE = 11_096  # passages of the corpus that the questions are about: here all of them are asked
GROWN_FROM, GROWN_BY, ADDED_AT_ONCE, N_ADDS = 11_096, 1_000, 100, 10
NOTE = (
    "build: from given embeddings to a closed index; bytes: of the whole folder, which holds no text here; "
    "memory: the most that building took besides the embeddings that were given; p50 and p95: one question "
    "at a time, from query embeddings to passage ids, systems taking turns; top 10 like exact: share of the "
    "10 best of exact search on unquantised embeddings"
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Record = dict[str, Any]


class Steps:
    """What was measured, step by step: a run that was cut goes on behind the last."""

    def __init__(self, folder: Path, header: Record) -> None:
        """Read what a run with this header has left."""
        self._log = BlockLog(folder, "index", header)
        self._done = {record["step"]: record["found"] for record in self._log.records}

    def once(self, step: str, measure: Callable[[], Record]) -> Record:
        """The record of a step, measured now where there is none."""
        if step not in self._done:
            self._done[step] = measure()
            self._log.append({"step": step, "found": self._done[step]})
        found: Record = self._done[step]
        return found

    def finish(self) -> None:
        """Put the log aside."""
        self._log.finish()


class Bench:
    """One run."""

    def __init__(self, systems: Sequence[System], data: Embedded, work: Path, threads: int) -> None:
        """Note what is to run."""
        self.systems = {system.name: system for system in systems}
        self.data, self.work, self.threads = data, work, threads
        self.versions: dict[str, dict[str, str]] = {}

    def start(self, name: str, n: int) -> Worker:
        """A process with a system loaded, given the first n passages."""
        system = self.systems[OURS if name == GROWN else name]
        stderr = self.work / "messages" / f"{name}-{n}.txt"
        worker = Worker(system, threads=self.threads, stderr=stderr, script=WORKER)
        found = worker.ask(
            "load", system=system.kind, folder=str(self.data.folder), n=n, threads=self.threads
        )
        self.versions[name] = found["versions"]
        return worker

    def path(self, name: str, n: int) -> Path:
        """Where an index lies."""
        return self.work / "indexes" / f"{name}-{n}"

    def build(self, name: str, n: int) -> Record:
        """Build an index anew, in a process of its own."""
        shutil.rmtree(self.path(name, n), ignore_errors=True)
        self.path(name, n).parent.mkdir(parents=True, exist_ok=True)
        say(f"{name}, {n:,} passages: building")
        try:
            with self.start(name, n) as worker:
                found = worker.ask("build", path=str(self.path(name, n)))
        except WorkerError as error:
            say(f"{name} failed: {error}")
            return {"not_run": f"failed: {error}"}
        say(f"{name}, {n:,} passages: {found['seconds']:.1f} s, {found['bytes'] / n / 1000:.1f} KB a passage")
        return found

    def search(self, names: Sequence[str], n: int, steps: Steps) -> dict[str, Record]:
        """Open each index, and ask the same questions of all in turns."""
        n_questions = N_QUESTIONS.get(n, 300)
        edges = [n_questions * i // N_BLOCKS for i in range(N_BLOCKS + 1)]
        found: dict[str, Record] = {name: {"open_s": [], "ms": [], "found": []} for name in names}

        def block(i: int) -> Record:
            replies = {}
            for name in rotated(list(workers), i):
                try:
                    workers[name].resume()
                    replies[name] = workers[name].ask("search", first=edges[i], stop=edges[i + 1], k=K)
                    workers[name].pause()
                except WorkerError as error:
                    say(f"{name} failed: {error}")
                    workers.pop(name)
            say(
                f"{n:,} passages, block {i + 1} of {N_BLOCKS}: p50 "
                + ", ".join(f"{name} {percentile(reply['ms'], 50):.1f} ms" for name, reply in replies.items())
            )
            return replies

        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for name in names:
                try:
                    workers[name] = stack.enter_context(self.start(name, n))
                    opened = workers[name].ask("open", path=str(self.path(name, n)))
                    found[name]["open_s"].append(opened["seconds"])
                    workers[name].ask("search", first=n_questions, stop=n_questions + N_WARM_UP, k=K)
                    workers[name].pause()
                except WorkerError as error:
                    say(f"{name} failed: {error}")
                    found[name]["not_run"] = f"failed: {error}"
                    workers.pop(name, None)
            for i in range(N_BLOCKS):
                for name, reply in steps.once(f"search {n} {i}", partial(block, i)).items():
                    found[name]["ms"].append(reply["ms"])
                    found[name]["found"] += reply["found"]
        return found

    def own_turns(self, sizes: Sequence[int], steps: Steps) -> list[Record]:
        """Ours of each size: what opening takes in another process, and the questions of each block."""
        edges = [N_TURN_QUESTIONS * i // N_BLOCKS for i in range(N_BLOCKS + 1)]

        def turn(i: int) -> Record:
            replies = {}
            for n in rotated(list(sizes), i):
                with self.start(OURS, n) as other:
                    opened = other.ask("open", path=str(self.path(OURS, n)))
                workers[n].resume()
                asked = workers[n].ask("search", first=edges[i], stop=edges[i + 1], k=K)
                workers[n].pause()
                replies[str(n)] = {"open_s": opened["seconds"], "ms": asked["ms"]}
            say(
                f"{OURS}, block {i + 1} of {N_BLOCKS}: p50 "
                + ", ".join(f"{int(n):,} {percentile(r['ms'], 50):.1f} ms" for n, r in replies.items())
            )
            return replies

        with ExitStack() as stack:
            workers = {n: stack.enter_context(self.start(OURS, n)) for n in sizes}
            for n, worker in workers.items():
                worker.ask("open", path=str(self.path(OURS, n)))
                # A process meets most pages of a file only once; what comes then is what lasts.
                worker.ask("search", first=N_TURN_QUESTIONS, stop=2 * N_TURN_QUESTIONS, k=K)
                worker.pause()
            return [steps.once(f"turn {i}", partial(turn, i)) for i in range(N_BLOCKS)]

    def answers(self, name: str, n: int) -> list[list[int]]:
        """Rows of the best passages for every question; nothing is timed."""
        say(f"{name}, {n:,} passages: {len(self.data.queries):,} questions")
        found: list[list[int]] = []
        with self.start(name, n) as worker:
            worker.ask("open", path=str(self.path(name, n)))
            for start in range(0, len(self.data.queries), 500):
                stop = min(start + 500, len(self.data.queries))
                found += worker.ask("search", first=start, stop=stop, k=K)["found"]
        return found

    def exact_answers(self, n: int) -> list[list[int]]:
        """The same of exact search, which no change of the library changes: kept beside the embeddings."""
        path = self.data.folder / f"exact-{self.data.about['digest']}-{n}.json"
        if not path.exists():
            answers = self.answers(EXACT, n)
            new = path.with_suffix(".new")
            new.write_text(json.dumps(answers), encoding="utf-8")
            new.replace(path)
        found: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def grow(self, n: int) -> Record:
        """Build a part, add the rest in small calls, and then a few passages more."""
        path = self.path(GROWN, n)
        shutil.rmtree(path, ignore_errors=True)
        say(f"growing from {GROWN_FROM:,} to {n:,} passages by {GROWN_BY:,}")
        with self.start(GROWN, GROWN_FROM) as worker:
            built = worker.ask("build", path=str(path))
        last = n - ADDED_AT_ONCE * N_ADDS
        with self.start(GROWN, n) as worker:
            worker.ask("open", path=str(path))
            adds = worker.ask("add", first=GROWN_FROM, stop=last, at_once=GROWN_BY)
            small = worker.ask("add", first=last, stop=n, at_once=ADDED_AT_ONCE)
            weighed = worker.ask("close", path=str(path))
        return {
            "seconds": built["seconds"] + sum(adds["each_s"]) + sum(small["each_s"]),
            "peak_bytes": adds["peak_bytes"],
            "given_bytes": adds["given_bytes"],
            "adds_s": adds["each_s"],
            "small_adds_s": small["each_s"],
            **weighed,
        }


@app.command()
def main(
    pylate: Annotated[
        str | None, typer.Option(help="Interpreter that has PyLate and voyager 2.1.0.", metavar="PYTHON")
    ] = None,
    fast_plaid: Annotated[
        str | None, typer.Option(help="Interpreter that has fast-plaid.", metavar="PYTHON")
    ] = None,
    lancedb: Annotated[
        str | None, typer.Option(help="Interpreter that has LanceDB.", metavar="PYTHON")
    ] = None,
    size: Annotated[
        list[int] | None, typer.Option(min=1, help="Passages; may be repeated.", metavar="N")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="All cores where not given.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of the corpora.", metavar="FOLDER")] = SHARED_DATA,
    work: Annotated[
        Path, typer.Option(help="Embeddings, indexes, logs of cut runs.", metavar="FOLDER")
    ] = WORK / "index",
    results: Annotated[Path, typer.Option(help="Where index.json goes; replaced.", metavar="FOLDER")] = TRIES,
) -> None:
    """Measure the index beside its peers; a run that was cut goes on where it stopped."""
    from benchmarks import tables

    if not (data / embedded.DATASET).is_dir():
        say(f"index: not run, there is no {embedded.DATASET} in {data}")
        return
    sizes, threads = size or list(SIZES), threads or machine.n_cores()
    found = measure(
        embedded.make(data, work / "embeddings", max(sizes), say),
        [
            System(OURS, "jacolbert"),
            System(EXACT, "exact"),
            System(PYLATE, PYLATE, python=pylate),
            System(PLAID, PLAID, python=fast_plaid),
            System(LANCE, LANCE, python=lancedb),
        ],
        sizes,
        work,
        threads,
    )
    tables.write(results / "index.json", found)
    tables.show({"index": found})


def measure(
    data: Embedded, systems: Sequence[System], sizes: Sequence[int], work: Path, threads: int
) -> Record:
    """All sizes."""
    bench = Bench(systems, data, work, threads)
    header = {
        "embeddings": data.about["digest"],
        "library": machine.library(machine.INDEX_MODULES),
        "threads": threads,
        "cpu": machine.cpu(),
        "systems": [[system.name, system.python] for system in systems],
        "sizes": list(sizes),
    }
    steps = Steps(work, header)
    found = [measure_size(bench, n, steps) for n in sizes]
    signature = {
        "workload": "index",
        "library": header["library"],
        "texts": {"name": f"{embedded.DATASET}+text", "n": data.about["n"], "digest": data.about["digest"]},
        "model": f"bundled@{data.about['fingerprint'][:8]}",
        "threads": threads,
        "cpu": machine.cpu(),
        "versions": bench.versions,
    }
    by_size = growth(bench, sorted(sizes), steps)
    steps.finish()
    return {"signature": signature, "note": NOTE, "sizes": found, "growth": by_size}


def measure_size(bench: Bench, n: int, steps: Steps) -> Record:
    """Builds, then questions."""
    rows: dict[str, Record] = {}
    built: dict[str, list[Record]] = {}
    for name, system in bench.systems.items():
        if system.python is None:
            rows[name] = {"not_run": f"not run: --{name.removesuffix('-voyager')} names no interpreter"}
        elif name in PEERS and n > PEERS_UP_TO:
            rows[name] = {"not_run": f"not run beyond {PEERS_UP_TO:,} passages"}
        else:
            built[name] = []
    for name in build_order(list(built)):
        step = f"build {n} {name} {len(built[name])}"
        built[name].append(steps.once(step, partial(bench.build, name, n)))
    if n > GROWN_FROM:
        built[GROWN] = [steps.once(f"grow {n}", lambda: bench.grow(n))]
    ready = [name for name, builds in built.items() if "not_run" not in builds[-1]]
    rows |= {name: builds[-1] for name, builds in built.items() if name not in ready}
    asked = bench.search(ready, n, steps)
    qrels = bench.data.qrels(n)
    exact = asked[EXACT]["found"]
    for name in ready:
        if "not_run" in asked[name] or len(asked[name]["ms"]) < N_BLOCKS:
            rows[name] = {"not_run": asked[name].get("not_run", "failed while it searched")}
            continue
        rows[name] = row(built[name], asked[name], exact, n) | {
            "ndcg@10": ndcg(bench.data, asked[name]["found"], qrels)
        }
    found: Record = {
        "n": n,
        "n_tokens": int(bench.data.offsets[n]),
        "systems": rows,
        "ratios": ratio_table(asked, built, n),
    }
    if n == WHOLE:
        found["all_questions"] = steps.once(f"all questions {n}", partial(quality, bench, n, qrels))
    if GROWN in built:
        (grown,) = built[GROWN]
        found["adds"] = {
            str(at_once): asdict(spread(grown[key])) | {"longest": max(grown[key])}
            for at_once, key in ((GROWN_BY, "adds_s"), (ADDED_AT_ONCE, "small_adds_s"))
        }
    return found


def growth(bench: Bench, sizes: Sequence[int], steps: Steps) -> list[Record]:
    """Ours alone at every size, rising, taking turns: what a larger corpus costs on a machine that wavers."""
    turns = bench.own_turns(sizes, steps)
    rows: list[Record] = []
    for i, n in enumerate(sizes):
        mine = [turn[str(n)] for turn in turns]
        p50 = [percentile(reply["ms"], 50) for reply in mine]
        ms = [each for reply in mine for each in reply["ms"]]
        row: Record = {
            "n": n,
            "open_s": asdict(spread([reply["open_s"] for reply in mine])),
            "p50_ms": percentile(ms, 50),
            "p95_ms": percentile(ms, 95),
        }
        if i:
            before = [percentile(turn[str(sizes[i - 1])]["ms"], 50) for turn in turns]
            row["times_the_one_before"] = asdict(spread(ratios(p50, before)))
        rows.append(row)
    return rows


def build_order(names: Sequence[str]) -> list[str]:
    """Ours before, between and behind the others, each of which is built once."""
    others = [name for name in names if name != OURS]
    half = -(-len(others) // 2)
    return [OURS, *others[:half], OURS, *others[half:], OURS]


def row(builds: Sequence[Record], asked: Record, exact: Sequence[Sequence[int]], n: int) -> Record:
    """One system at one size."""
    ms = [each for block in asked["ms"] for each in block]
    return {
        "build_s": asdict(spread([build["seconds"] for build in builds])),
        "passages_per_s": n / spread([build["seconds"] for build in builds]).median,
        "bytes_per_passage": builds[-1]["bytes"] / n,
        "peak_mb": max(build["peak_bytes"] for build in builds) / 1e6,
        "memory_mb": max(build["peak_bytes"] - build["given_bytes"] for build in builds) / 1e6,
        "open_s": asked["open_s"][0],
        "p50_ms": percentile(ms, 50),
        "p95_ms": percentile(ms, 95),
        "like_exact": overlap(asked["found"], exact),
    }


def ratio_table(asked: Mapping[str, Record], built: Mapping[str, Sequence[Record]], n: int) -> Record:
    """How many times as fast ours answers and builds, and how many times as small it is."""
    table: Record = {}
    ours = asked[OURS]
    for name, theirs in asked.items():
        if name == OURS or len(theirs["ms"]) < N_BLOCKS:
            continue
        p50 = [[percentile(block, 50) for block in each["ms"]] for each in (theirs, ours)]
        table[name] = {
            "p50": asdict(spread(ratios(*p50))),
            "build": asdict(spread([built[name][-1]["seconds"] / b["seconds"] for b in built[OURS]])),
            "bytes": built[name][-1]["bytes"] / built[OURS][-1]["bytes"],
        }
    return table


def overlap(found: Sequence[Sequence[int]], exact: Sequence[Sequence[int]]) -> float:
    """Mean share of the exact answers that were found."""
    shares = [len(set(a) & set(b)) / max(1, len(b)) for a, b in zip(found, exact, strict=True)]
    return float(np.mean(shares))


def ndcg(
    data: Embedded, found: Sequence[Sequence[int]], qrels: Mapping[str, Mapping[str, int]]
) -> float | None:
    """nDCG@10 of the questions that have a relevant passage; None where there is none."""
    from evals.metrics import mean, per_query

    ids, asked = data.about["ids"], data.about["query_ids"]
    run = {
        q: {ids[row]: float(K - rank) for rank, row in enumerate(rows)}
        for q, rows in zip(asked, found, strict=False)
        if q in qrels
    }
    if not run:
        return None
    return mean(per_query({q: qrels[q] for q in run}, run, ("nDCG@10",)))["nDCG@10"]


def quality(bench: Bench, n: int, qrels: Mapping[str, Mapping[str, int]]) -> Record:
    """nDCG@10 of ours and of exact search over all questions, and how much of it ours keeps."""
    answers = {OURS: bench.answers(OURS, n), EXACT: bench.exact_answers(n)}
    scores = {name: ndcg(bench.data, rows, qrels) or 0.0 for name, rows in answers.items()}
    return {
        "n_questions": len(bench.data.queries),
        "ndcg@10": scores,
        "share": scores[OURS] / scores[EXACT],
        "like_exact": overlap(answers[OURS], answers[EXACT]),
    }


def say(line: str) -> None:
    """A line of progress."""
    typer.echo(line, err=True)


if __name__ == "__main__":
    app()
