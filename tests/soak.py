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

import typer

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
    answer: model_index.Answer


def ask(index: Index, seed: int) -> Answer:
    """One search; the kinds take turns."""
    kind = model_index.KINDS[seed % len(model_index.KINDS)]
    with index.reading() as view:
        return Answer(view.snapshot.generation, model_index.ask(view, index.settings, seed, kind, K))


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
        theirs = [
            Answer(number, model_index.Answer(kind, asked, [(id, score) for id, score in found]))
            for number, kind, asked, found in map(json.loads, lines)
        ]
        n_by_process.append(len(theirs))
        answers += theirs
    # A search of nothing of the library's takes a hundred times as long, so of very many answers some are
    # checked.
    checked = random.Random(seed).sample(answers, min(MAX_CHECKED, len(answers)))
    for each in checked:
        model_index.check_answer(each.answer, soak.states[each.generation], K)
    assert soak.index.verify() == []
    soak.index.close()
    return {
        "seconds": seconds,
        "writes": dict(soak.writes),
        "answers_of_threads": len(soak.answers),
        "answers_of_processes": n_by_process,
        "checked": len(checked),
        "states_seen": len({answer.generation for answer in answers}),
        "of_kind": dict(Counter(each.answer.kind for each in answers)),
    }


def read_from_a_process(folder: Path, seconds: float, seed: int) -> None:
    """Search, and print what was found, one answer a line."""
    index = Index.open(folder)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = ask(index, seed)
        found = answer.answer
        print(json.dumps([answer.generation, found.kind, found.seed, found.found]))
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
