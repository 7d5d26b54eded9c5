"""Searches an index from threads and processes while one thread writes it, and checks every answer.

    python -m tests.soak --seconds 300

An answer must be right for one committed state. The writer notes what the index held at each generation, and
readers note the generation that they saw; answers are compared with a search of nothing of the library's.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jacolbert_rag import TokenEmbeddings
from jacolbert_rag.index.index import Index
from tests import model_index
from tests.model_index import Contents

ROOT = Path(__file__).parents[1]
K = 10
MAX_CHECKED = 20_000


@dataclass(frozen=True)
class Answer:
    """What a reader got, and of which state."""

    generation: int
    seed: int
    exact: bool
    found: list[tuple[str, float]]


def ask(index: Index, seed: int) -> Answer:
    """One search; every second one is exact."""
    query, exact = model_index.query(seed), seed % 2 == 0
    with index.reading() as view:
        snapshot = view.snapshot
        k = min(K, snapshot.n_live)
        if exact or snapshot.pooled is None:
            whole = TokenEmbeddings(query, np.array([0, len(query)], dtype=np.int64))
            rows, scores = snapshot.search_exact(whole, k)[0] if k else ([], [])
            exact = True
        else:
            rows, scores = snapshot.search_candidates(query, k, index.settings.candidates)
        found = [(each.id, float(s)) for each, s in zip(view.documents(rows), scores, strict=True)]
        return Answer(snapshot.generation, seed, exact, found)


class Soak:
    """One run: a writer, readers, and what they noted."""

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        """Begin with an empty index."""
        self.folder, self.seed = folder, seed
        self.end = time.monotonic() + seconds
        self.index = model_index.create(folder)
        self.states: dict[int, Contents] = {}
        self.answers: list[Answer] = []
        self.errors: list[str] = []
        self.writes: Counter[str] = Counter()

    def write(self) -> None:
        """Random writes until the time is up."""
        holds: Contents = {}
        self._note(holds)
        for operation in model_index.operations(self.seed):
            if time.monotonic() > self.end or self.errors:
                return
            if operation.kind == "save":
                continue
            before = self._generation()
            model_index.apply(self.index, operation)
            after = model_index.applied(holds, operation)
            # An operation may commit more than once: its contents are there with the first.
            for generation in range(before + 1, self._generation() + 1):
                self.states[generation] = after
            holds = after
            self.writes[operation.kind] += 1

    def read(self, seed: int) -> None:
        """Random searches until the time is up."""
        while time.monotonic() < self.end and not self.errors:
            self.answers.append(ask(self.index, seed))
            seed += 1

    def _generation(self) -> int:
        with self.index.reading() as view:
            return view.snapshot.generation

    def _note(self, holds: Contents) -> None:
        self.states[self._generation()] = holds

    def guarded(self, work: Any, *args: Any) -> None:
        """Do work; whatever it raises is noted."""
        try:
            work(*args)
        except BaseException as error:
            self.errors.append(f"{work.__name__}: {type(error).__name__}: {error}")
            raise


def run(
    folder: Path, seconds: float, *, n_threads: int = 8, n_processes: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Write and search for so long.

    Raises:
        AssertionError: somebody failed, or an answer is wrong.
    """
    soak = Soak(folder, seconds, seed)
    command = [sys.executable, "-m", "tests.soak", "--seconds", str(seconds), "--folder", str(folder)]
    # Into files: a pipe that nobody empties yet would stop its process.
    outputs = [folder.with_name(f"reader-{i}.jsonl") for i in range(n_processes)]
    processes = []
    for i, output in enumerate(outputs):
        with output.open("w", encoding="utf-8") as file:
            processes.append(
                subprocess.Popen([*command, "--reader", str(10**6 * (i + 1))], stdout=file, cwd=ROOT)
            )
    threads = [threading.Thread(target=soak.guarded, args=(soak.write,))]
    threads += [
        threading.Thread(target=soak.guarded, args=(soak.read, 10**4 * i)) for i in range(1, n_threads + 1)
    ]
    for thread in threads:
        thread.start()
    for process in processes:
        process.wait()
    for thread in threads:
        thread.join()
    assert not soak.errors, soak.errors
    assert all(process.returncode == 0 for process in processes), "a reader process failed"
    answers = [*soak.answers]
    n_by_process = []
    for output in outputs:
        lines = output.read_text(encoding="utf-8").splitlines()
        theirs = [Answer(g, s, e, [(i, x) for i, x in f]) for g, s, e, f in map(json.loads, lines)]
        n_by_process.append(len(theirs))
        answers += theirs
    # A search of nothing of the library's takes a hundred times as long, so of very many answers some are
    # checked.
    checked = random.Random(seed).sample(answers, min(MAX_CHECKED, len(answers)))
    for answer in checked:
        holds = soak.states[answer.generation]
        query = model_index.query(answer.seed)
        model_index.check_search(answer.found, holds, query, K, exact=answer.exact)
    assert soak.index.verify() == []
    soak.index.close()
    return {
        "seconds": seconds,
        "writes": dict(soak.writes),
        "answers_of_threads": len(soak.answers),
        "answers_of_processes": n_by_process,
        "checked": len(checked),
        "states_seen": len({answer.generation for answer in answers}),
        "through_candidates": sum(not answer.exact for answer in answers),
    }


def read_from_a_process(folder: Path, seconds: float, seed: int) -> None:
    """Search, and print what was found, one answer a line."""
    index = Index.open(folder)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = ask(index, seed)
        print(json.dumps([answer.generation, answer.seed, answer.exact, answer.found]))
        seed += 1
    index.close()


def main(
    seconds: Annotated[float, typer.Option(min=1)] = 300,
    seed: int = 0,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
    reader: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Write and search, and check every answer."""
    if reader is not None:
        assert folder is not None
        read_from_a_process(folder, seconds, reader)
        return
    with tempfile.TemporaryDirectory(prefix="jacolbert-soak-") as name:
        typer.echo(json.dumps(run(Path(name) / "index", seconds, seed=seed)))


if __name__ == "__main__":
    typer.run(main)
