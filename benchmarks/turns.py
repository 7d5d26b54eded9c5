"""Systems taking turns over blocks of texts, in a log that outlives a cut run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import machine, texts
from benchmarks.blocklog import BlockLog
from benchmarks.settings import Settings
from benchmarks.workers import System, Worker, WorkerError

Record = dict[str, Any]
T = TypeVar("T")

N_WARM_UP = 16  # passages beyond the measured ones


class Running:
    """The workers of a workload, and what became of those that did not run."""

    def __init__(self, settings: Settings, systems: Sequence[System], stack: ExitStack) -> None:
        """Note what is to run; `start` runs it.

        Args:
            settings: of the run.
            systems: in the order of the table.
            stack: ends the processes when it is left.
        """
        self.settings, self.systems, self._stack = settings, systems, stack
        self.workers: dict[str, Worker] = {}
        self.loaded: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}

    def start(self, load: Callable[[Worker], dict[str, Any]]) -> None:
        """Start each system and load it; one that fails is noted, and the others go on."""
        for system in self.systems:
            if system.python is None:
                option = "--" + system.kind
                self.failed[system.name] = f"not run: {option} names no interpreter"
                continue
            self.settings.say(f"{system.name}: loading")
            stderr = self.settings.work / "messages" / f"{system.name}.txt"
            try:
                worker = Worker(system, threads=self.settings.threads, stderr=stderr)
                self._stack.enter_context(worker)
                self.loaded[system.name] = load(worker)
            except WorkerError as error:
                self.fail(system.name, error)
            else:
                self.workers[system.name] = worker

    def fail(self, name: str, error: WorkerError) -> None:
        """Leave a system out from here on."""
        self.failed[name] = f"failed: {error}"
        self.workers.pop(name, None)
        self.settings.say(f"{name} failed: {error}")

    @property
    def versions(self) -> dict[str, dict[str, str]]:
        """System -> package -> version."""
        return {name: loaded["versions"] for name, loaded in self.loaded.items()}

    def take_turns(self, log: BlockLog, blocks: Sequence[Callable[[Worker], Record]]) -> list[Record]:
        """Ask all systems for each block, and begin each block with another system.

        Args:
            log: blocks that it has are not measured again.
            blocks: what to ask for each.

        Returns:
            One record a block: {"block", "systems": {name: reply}}.
        """
        if log.records:
            self.settings.say(f"{len(log.records)} of {len(blocks)} blocks were measured before")
        for i in range(len(log.records), len(blocks)):
            names = rotated(list(self.workers), i)
            replies: dict[str, Record] = {}
            for name in names:
                try:
                    replies[name] = blocks[i](self.workers[name])
                except WorkerError as error:
                    self.fail(name, error)
            log.append({"block": i, "systems": replies})
            speeds = (f"{name} {r['docs'] / r['seconds']:.1f}" for name, r in replies.items())
            self.settings.say(f"block {i + 1}/{len(blocks)}, documents/s: {', '.join(speeds)}")
        return log.records


@dataclass(frozen=True)
class Measured:
    """What a workload of passages came to.

    Attributes:
        running: what ran, and what did not.
        signature: what the figures depend on.
        records: one a block.
        log: of the records; to be finished once the result is whole.
    """

    running: Running
    signature: dict[str, Any]
    records: list[Record]
    log: BlockLog


def encode_in_turns(
    workload: str,
    settings: Settings,
    systems: Sequence[System],
    folder: Path,
    *,
    model: str,
    cpu: int | None = None,
) -> Measured:
    """Have each system encode the passages, block by block.

    What each makes of the warm-up passages is in `saved` then.

    Args:
        workload: its name.
        settings: of the run.
        systems: in the order of the table.
        folder: the checkpoint that all of them load.
        model: what the signature calls it.
        cpu: keep each system on this core.
    """
    data = texts.passages(settings.data, settings.n_passages)
    # A longer run of the same order: its tail is never measured.
    warm_up = texts.passages(settings.data, settings.n_passages + N_WARM_UP).texts[-N_WARM_UP:]
    with ExitStack() as stack:
        running = Running(settings, systems, stack)

        def load(worker: Worker) -> dict[str, Any]:
            loaded = worker.load(folder, cpu=cpu)
            save = str(saved(settings.work, worker.system.name))
            return loaded | worker.ask("warm_up", texts=warm_up, save=save)

        running.start(load)
        signature = machine.signature(
            workload, texts=data.signed, model=model, threads=settings.threads, versions=running.versions
        )
        log = BlockLog(settings.work, workload, {"signature": signature, "n_blocks": settings.n_blocks})
        blocks = [
            lambda worker, block=block: worker.ask("documents", texts=block)
            for block in cut(data.texts, settings.n_blocks)
        ]
        return Measured(running, signature, running.take_turns(log, blocks), log)


def saved(work: Path, name: str) -> Path:
    """Where what a system made of the warm-up passages goes."""
    return work / "messages" / f"{name}.npz"


def rotated(names: list[T], turn: int) -> list[T]:
    """The names with another one first each turn, and in reverse every other round.

    So no system always runs first, nor always behind the same other one.
    """
    n_rounds, by = divmod(turn, max(1, len(names)))
    order = names[by:] + names[:by]
    return order[::-1] if n_rounds % 2 else order


def cut(texts: Sequence[str], n: int) -> list[list[str]]:
    """The texts in n blocks of equal size, give or take one.

    Raises:
        ValueError: there are fewer texts than blocks.
    """
    if not 1 <= n <= len(texts):
        raise ValueError(f"{len(texts)} passages cannot be cut into {n} blocks; ask for 1 to {len(texts)}.")
    edges = [len(texts) * i // n for i in range(n + 1)]
    return [list(texts[a:b]) for a, b in pairwise(edges)]


def column(records: Sequence[Record], name: str, key: str) -> list[float]:
    """One number of a system, block by block."""
    return [float(record["systems"][name][key]) for record in records]


def common(records: Sequence[Record], *names: str) -> list[Record]:
    """The blocks that all these systems finished."""
    return [record for record in records if all(name in record["systems"] for name in names)]
