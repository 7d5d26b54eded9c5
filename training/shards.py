"""A file that is written in shards, by one process or by many, and joined when all are there."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.options import TrainingError, console
from training.state import LOCK_FILE, RECIPE_FILE


@dataclass(frozen=True)
class Worker:
    """One of the processes that share the work.

    Attributes:
        number: from 0.
        n_workers: how many there are.
        by_hand: whether each was started by itself; else they are torchrun's ranks.
    """

    number: int
    n_workers: int
    by_hand: bool

    @classmethod
    def of(cls, part: str | None) -> Worker:
        """This process, by its part (I/N, from 1/N to N/N) or by what torchrun says; else it is alone.

        Raises:
            TrainingError: the part is none, or torchrun shares the work already.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if part is None:
            return cls(int(os.environ.get("RANK", "0")), world, by_hand=False)
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", part)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise TrainingError(f"--part {part}: expected I/N with I from 1 to N, such as 1/4.")
        if world > 1:
            raise TrainingError(f"--part {part}: torchrun shares the work already. Leave --part out.")
        return cls(int(found[1]) - 1, int(found[2]), by_hand=True)

    @property
    def name(self) -> str:
        """In messages, and of the folder that it claims."""
        return f"part-{self.number + 1}-of-{self.n_workers}"

    def takes(self, n_shards: int) -> range:
        """Numbers of its shards."""
        return range(self.number, n_shards, self.n_workers)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here for this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Shards:
    """The parts of a file, each whole or not there, in a folder beside it."""

    def __init__(self, out: Path, n_rows: int, size: int) -> None:
        """Plan parts of `size` rows."""
        self.folder = out.with_name(f"{out.name}.shards")
        self._out, self._n_rows, self._size = out, n_rows, size

    def __len__(self) -> int:
        return -(-self._n_rows // self._size)

    def rows(self, n: int) -> range:
        """The n-th part's rows."""
        return range(n * self._size, min((n + 1) * self._size, self._n_rows))

    def path(self, n: int) -> Path:
        """The n-th part's file."""
        return self.folder / f"{n:05}.jsonl"

    def missing(self) -> list[int]:
        """Numbers of parts that are not there."""
        return [n for n in range(len(self)) if not self.path(n).exists()]

    def write(self, n: int, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, Any]) -> None:
        """Write the n-th part, and what `counts` gives back of it."""
        _write_whole(self._counts(n), json.dumps(counts))
        _write_whole(self.path(n), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def counts(self) -> list[dict[str, Any]]:
        """What was counted of each part, in order."""
        return [json.loads(self._counts(n).read_text(encoding="utf-8")) for n in range(len(self))]

    def finish(self, worker: Worker) -> list[dict[str, Any]] | None:
        """Join the parts once all are there, and remove them; the run's settings stay, in OUT.recipe.json.

        Returns:
            What was counted of each part; None where another process joins them.
        """
        with alone(self.folder):
            if self._out.exists():
                self.remove()  # what asking for the lock has made again
                return None
            if left := self.missing():
                console.print(
                    f"{worker.name} is done; {len(left)} of {len(self)} shards are those of others, and the "
                    "one that ends last joins them.",
                    markup=False,
                )
                return None
            counts = self.counts()
            joined = self.folder / "joined"
            with joined.open("wb") as file:
                for n in range(len(self)):
                    file.write(self.path(n).read_bytes())
            shutil.copyfile(self.folder / RECIPE_FILE, self._out.with_name(f"{self._out.name}.{RECIPE_FILE}"))
            joined.rename(self._out)
        self.remove()
        return counts

    def remove(self) -> None:
        """Remove all parts: the file is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _counts(self, n: int) -> Path:
        return self.path(n).with_suffix(".json")


def _write_whole(path: Path, text: str) -> None:
    # The process's number, since workers that were started with other parts may meet at one shard.
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.rename(path)
