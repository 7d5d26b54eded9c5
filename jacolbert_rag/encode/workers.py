"""Other processes that tokenise, or encode on a device of their own, and how work is spread over them.

Each is a fresh interpreter that runs this module and is spoken to through its pipes: JSON and raw arrays,
nothing pickled. Unlike multiprocessing it never imports the user's script again, so no
`if __name__ == "__main__"` is asked for, and nothing of the parent's (threads, a CUDA context) is copied.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from jacolbert_rag.datatypes import TokenBatch, TokenEmbeddings
from jacolbert_rag.errors import WorkerError

if TYPE_CHECKING:
    from jacolbert_rag.encode.checkpoint import Checkpoint

T = TypeVar("T")
R = TypeVar("R")

_HEADER = struct.Struct("<Q")


class Worker:
    """One process with the same checkpoint as ours."""

    def __init__(self, order: dict[str, Any], what: str) -> None:
        """Start a process; it loads what it needs while we go on. Use `tokenizing` or `encoding`."""
        self._what = what
        # -P: the working directory may hold files that are named as modules are. The package comes last,
        # so that nothing installed beside it comes before the standard library.
        root = str(Path(__file__).parents[2])
        start = f"import sys; sys.path.append({root!r}); from {__name__} import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._ask(order)

    @classmethod
    def tokenizing(cls, checkpoint: Checkpoint) -> Self:
        """A process that tokenises; it loads neither weights nor torch."""
        folder = str(checkpoint.tokenizer_folder)
        return cls({"tokenizer_folder": folder, "config": checkpoint.config.to_json()}, "that tokenises")

    @classmethod
    def encoding(cls, checkpoint: Checkpoint, device: str, *, dtype: str, compile: bool) -> Self:
        """A process with the same checkpoint on a device of its own; see `Encoder`."""
        order = {
            "source": asdict(checkpoint.source),
            "config": checkpoint.config.to_json(),
            "device": device,
            "dtype": dtype,
            "compile": compile,
        }
        return cls(order, f"on {device}")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:  # what was still to be sent is for nobody
                pass

    def tokens(self, texts: list[str]) -> TokenBatch:
        """Token ids of documents, as `Tokenizer.documents` gives them."""
        self._ask(texts)
        ids, offsets, n_attended, n_cut = self._answer()
        return TokenBatch(ids, offsets, n_attended, n_cut)

    def documents(self, texts: list[str]) -> tuple[TokenEmbeddings, int]:
        """Embeddings of documents, and how many were cut, as `Encoder.documents_with_cuts` gives them."""
        self._ask(texts)
        flat, offsets, n_cut = self._answer()
        return TokenEmbeddings(flat, offsets), int(n_cut[0])

    def _ask(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            _send_bytes(self._process.stdin, json.dumps(message).encode("ascii"))
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:  # it ended, or was closed
            raise self._ended() from error

    def _answer(self) -> list[npt.NDArray[Any]]:
        assert self._process.stdout is not None
        try:
            header = json.loads(_receive_bytes(self._process.stdout))
            if "error" in header:
                raise WorkerError(f"The process {self._what} failed: {header['error']}")
            return [
                np.frombuffer(_receive_bytes(self._process.stdout), dtype=dtype).reshape(shape)
                for dtype, shape in header["arrays"]
            ]
        except EOFError as error:
            raise self._ended() from error

    def _ended(self) -> WorkerError:
        code = self._process.wait()
        return WorkerError(
            f"The process {self._what} ended with exit status {code}. Its own words are on standard error; a "
            "negative status is a signal, and -9 most often means that the machine ran out of memory."
        )


class WorkerPool:
    """Processes that share work; they stay until the pool is closed."""

    def __init__(self, starts: Sequence[Callable[[], Worker]]) -> None:
        """Start one process for each function."""
        self._workers: list[Worker] = []
        self._threads = ThreadPoolExecutor(max_workers=len(starts), thread_name_prefix="jacolbert")
        try:
            for start in starts:
                self._workers.append(start())
        except BaseException:
            self.close()
            raise
        self._free: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)

    def map(self, function: Callable[[Worker, T], R], items: Iterable[T]) -> Iterator[R]:
        """`function(worker, item)` for each item, on whichever worker is free; results in the items' order.

        At most two items a worker are read ahead, so memory is bounded however many there are.
        """

        def run(item: T) -> R:
            worker = self._free.get()
            try:
                return function(worker, item)
            except WorkerError:
                raise
            except BaseException:
                worker.close()  # its pipe may hold the rest of this answer, which is not the next one's
                raise
            finally:
                self._free.put(worker)

        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(self._threads.submit(run, item))
                if len(pending) >= 2 * len(self._workers):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:  # given up: what has begun ends by itself, the rest does not begin
                future.cancel()

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _send_bytes(pipe: IO[bytes], data: bytes | memoryview) -> None:
    pipe.write(_HEADER.pack(len(data)))
    pipe.write(data)


def _receive_bytes(pipe: IO[bytes]) -> bytearray:
    (size,) = _HEADER.unpack(_read_exactly(pipe, _HEADER.size))
    return _read_exactly(pipe, size)


def _read_exactly(pipe: IO[bytes], size: int) -> bytearray:
    """So many bytes, which arrays may lie over and be written to."""
    data = bytearray(size)
    left = memoryview(data)
    while left:
        n = pipe.readinto(left)  # type: ignore[attr-defined]  # IO lacks what every binary stream has
        if not n:
            raise EOFError
        left = left[n:]
    return data


def _send_arrays(pipe: IO[bytes], arrays: Sequence[npt.NDArray[Any]]) -> None:
    header = {"arrays": [(array.dtype.str, array.shape) for array in arrays]}
    _send_bytes(pipe, json.dumps(header).encode("ascii"))
    for array in arrays:
        _send_bytes(pipe, np.ascontiguousarray(array).tobytes())
    pipe.flush()


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until the requests end."""
    order = json.loads(_receive_bytes(requests))
    try:
        answer = _encoding(order) if "device" in order else _tokenizing(order)
    except Exception as error:
        answer = _failing(error)
    while True:
        try:
            texts = json.loads(_receive_bytes(requests))
        except EOFError:
            return
        try:
            arrays = answer(texts)
        except Exception as error:
            _send_bytes(answers, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode("ascii"))
            answers.flush()
        else:
            _send_arrays(answers, arrays)


def _failing(error: Exception) -> Callable[[list[str]], list[npt.NDArray[Any]]]:
    """What a process answers that could not load its checkpoint: why."""

    def answer(texts: list[str]) -> list[npt.NDArray[Any]]:
        raise error

    return answer


def _tokenizing(order: dict[str, Any]) -> Callable[[list[str]], list[npt.NDArray[Any]]]:
    """What a process answers that only tokenises."""
    from jacolbert_rag.config import EncoderConfig
    from jacolbert_rag.encode.tokens import Tokenizer, load_subwords

    subwords = load_subwords(Path(order["tokenizer_folder"]))
    tokenizer = Tokenizer(subwords, EncoderConfig.from_json(order["config"]))

    def answer(texts: list[str]) -> list[npt.NDArray[Any]]:
        batch = tokenizer.documents(texts)
        return [batch.ids, batch.offsets, batch.n_attended, batch.n_cut]

    return answer


def _encoding(order: dict[str, Any]) -> Callable[[list[str]], list[npt.NDArray[Any]]]:
    """What a process answers that has a network."""
    import warnings

    from jacolbert_rag.config import EncoderConfig
    from jacolbert_rag.encode import checkpoint
    from jacolbert_rag.encode.encoder import Encoder
    from jacolbert_rag.errors import CheckpointWarning

    overrides = EncoderConfig.from_json(order["config"]).overrides()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # the parent has said it
        loaded = checkpoint.load(**order["source"], overrides=overrides)
    encoder = Encoder(loaded, device=order["device"], dtype=order["dtype"], compile=order["compile"])

    def answer(texts: list[str]) -> list[npt.NDArray[Any]]:
        embedded, n_cut = encoder.documents_with_cuts(texts)
        return [embedded.flat, embedded.offsets, np.array([n_cut])]

    return answer


def main() -> None:
    """Serve the parent process."""
    # What any library prints goes to standard error; standard output is for answers alone.
    # Ctrl-C goes to every process of the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        _serve(sys.stdin.buffer, answers)
        answers.close()
    except BrokenPipeError:  # the parent is gone, and nobody waits for an answer
        os._exit(0)
