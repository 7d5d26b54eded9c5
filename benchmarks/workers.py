"""Systems under measurement: processes of their own, asked in JSON lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.settings import ROOT

WORKER = Path(__file__).parent / "peers" / "worker.py"
STDERR_LINES = 3  # of a worker that died, shown with the error
SETTLE_S = 0.1  # threads of the last system's pool spin for a moment after its work


class WorkerError(Exception):
    """A system could not do what it was asked; the message says why."""


@dataclass(frozen=True)
class System:
    """What is measured, and by which interpreter.

    Attributes:
        name: of the row.
        kind: a key of `worker.SYSTEMS`.
        dtype: what the network computes in: "auto", "float32" or "bfloat16".
        python: the interpreter; None where the caller named none.
    """

    name: str
    kind: str
    dtype: str = "float32"
    python: str | None = sys.executable


class Worker:
    """A process that loads one system and answers one request at a time."""

    def __init__(self, system: System, *, threads: int, stderr: Path, script: Path = WORKER) -> None:
        """Start the process.

        Args:
            system: its interpreter must be named.
            threads: of torch and of OpenMP.
            stderr: where its messages go; replaced.
            script: what the process runs.

        Raises:
            WorkerError: no interpreter was named, or it cannot be started.
        """
        if system.python is None:
            raise WorkerError("no interpreter was named")
        self.system, self._stderr, self._threads = system, stderr, threads
        stderr.parent.mkdir(parents=True, exist_ok=True)
        with stderr.open("w", encoding="utf-8") as messages:
            try:
                self._process = subprocess.Popen(
                    [system.python, str(script)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=messages,
                    env=environment(threads),
                    text=True,
                    encoding="utf-8",
                )
            except OSError as error:
                raise WorkerError(f"{system.python} cannot be started ({error})") from error

    def load(
        self, folder: Path, *, device: str = "cpu", ids: Path | None = None, cpu: int | None = None
    ) -> dict[str, Any]:
        """Load the checkpoint of a folder: its dtype, threads and versions.

        Args:
            folder: a checkpoint.
            device: "cpu" or "cuda".
            ids: prepared token ids, instead of texts.
            cpu: keep the process on this core, where the system knows how.
        """
        return self.ask(
            "load",
            system=self.system.kind,
            folder=str(folder),
            dtype=self.system.dtype,
            device=device,
            threads=self._threads,
            ids=str(ids) if ids else None,
            cpu=cpu,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Raises:
            WorkerError: the system failed, or the process ended.
        """
        time.sleep(SETTLE_S)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            tail = " / ".join(self._stderr.read_text(encoding="utf-8").splitlines()[-STDERR_LINES:])
            raise WorkerError(f"the process ended with code {code}: {tail}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(str(reply["error"]))
        return reply

    def pause(self) -> None:
        """Have the process stand still, so that threads of its own that never rest disturb nobody."""
        if hasattr(signal, "SIGSTOP"):
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if hasattr(signal, "SIGCONT"):
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process."""
        self.resume()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it ended by itself, with a request unread
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def environment(threads: int) -> dict[str, str]:
    """Variables of a process under measurement: this checkout's library, its threads, no hub."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",  # a local folder needs no hub; some ask it all the same
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUTF8": "1",
    }
