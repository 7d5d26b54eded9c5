"""A log of finished blocks, so that a run that was cut goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class BlockLog:
    """JSON lines: first what the run depends on, then one record for each finished block.

    The file's name holds a digest of the header, so a run with other versions, texts or settings
    starts a log of its own.
    """

    def __init__(self, folder: Path, name: str, header: dict[str, Any]) -> None:
        """Read what a run with this header has left, or start a new log.

        Args:
            folder: made where it is missing.
            name: of the workload.
            header: all that the measurements depend on; plain JSON types.
        """
        line = json.dumps(header, ensure_ascii=False, sort_keys=True)
        digest = hashlib.sha256(line.encode()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}-{digest}.jsonl"
        self.records: list[dict[str, Any]] = []
        if self.path.is_file():
            # What follows the last line end was cut short while it was written.
            whole = self.path.read_text(encoding="utf-8").split("\n")[:-1]
            self.records = [json.loads(entry) for entry in whole[1:]]
        self._write([line, *(json.dumps(record) for record in self.records)])

    def append(self, record: dict[str, Any]) -> None:
        """Add the record of a finished block."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)

    def finish(self) -> None:
        """Put the log aside: the next run measures anew."""
        self.path.replace(self.path.with_suffix(".finished"))

    def _write(self, lines: list[str]) -> None:
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        fresh.replace(self.path)
