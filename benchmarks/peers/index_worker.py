"""One index under measurement, as a process: JSON requests on standard input, one JSON reply a line.

python benchmarks/peers/index_worker.py

It is run by path with the system's own interpreter, so it imports nothing of this project but the library,
and that only where the library is the system. Every system is given the same embeddings (see
benchmarks/embedded.py), at its own defaults; the clock runs inside, around its calls alone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

PACKAGES = ("jacolbert-rag", "voyager", "pylate", "fast-plaid", "lancedb", "pylance", "torch", "numpy")
ADDED = 1_000  # passages that the library is given at once, as its retriever gives them
SAMPLE_S = 0.05  # between two looks at the memory


class Embeddings:
    """A folder of benchmarks/embedded.py, the first n passages."""

    def __init__(self, folder: str, n: int) -> None:
        with open(os.path.join(folder, "corpus.json"), encoding="utf-8") as file:
            about = json.load(file)
        path = os.path.join(folder, "tokens.float16")
        self.n, self.dim = n, about["dim"]
        self.flat = np.memmap(path, dtype="<f2", mode="r").reshape(-1, self.dim)
        self.offsets = np.load(os.path.join(folder, "offsets.npy"))
        queries = np.load(os.path.join(folder, "queries.npy"))
        self.queries = np.split(queries, np.load(os.path.join(folder, "query_offsets.npy"))[1:-1])

    def passage(self, i: int) -> Any:
        """(tokens, dim) float32."""
        return self.flat[self.offsets[i] : self.offsets[i + 1]].astype(np.float32)


class Ours:
    """jacolbert_rag.index: built as the retriever builds it, and searched without the encoder."""

    exact = False
    imports = ("jacolbert_rag.index.index", "voyager")

    def __init__(self) -> None:
        self.index: Any = None

    def given(self, embeddings: Embeddings) -> Any:
        """What `build` takes."""
        return embeddings

    def build(self, given: Any, path: str) -> None:
        """Blocks of passages, then candidates."""
        self._create(path, given.dim)
        self.add(given, 0, given.n)
        self.close()

    def _create(self, path: str, dim: int) -> None:
        from pathlib import Path

        from jacolbert_rag import IndexSettings, SearchConfig, StoreConfig
        from jacolbert_rag.index.index import Index

        settings = IndexSettings()
        if self.exact:
            unquantised = StoreConfig(dtype="float16")
            settings = IndexSettings(store=unquantised, search=SearchConfig(exact_below=10**9))
        about = {"model": "", "fingerprint": "", "encoder": {}, "dim": dim, **settings.to_json()}
        self.index = Index.create(Path(path), about, durable=True)

    def add(self, given: Any, start: int, stop: int, listed: bool = False) -> None:
        """Add a run of passages as one call of the retriever's does."""
        from jacolbert_rag import Document, TokenEmbeddings

        for first in range(start, stop, ADDED):
            last = min(first + ADDED, stop)
            begin, end = given.offsets[first], given.offsets[last]
            flat = np.asarray(given.flat[begin:end], dtype=np.float32)
            embedded = TokenEmbeddings(flat, given.offsets[first : last + 1] - begin)
            self.index.append(
                [Document(str(i), "") for i in range(first, last)],
                embedded,
                listed=listed or stop - start <= ADDED,
            )
        self.index.update_candidates()

    def open(self, path: str) -> None:
        """Until the first search could begin."""
        from pathlib import Path

        from jacolbert_rag.index.index import Index

        self.index = Index.open(Path(path))
        self.index.update_candidates()

    def close(self) -> None:
        """Free what `open` holds."""
        self.index.close()

    def search(self, query: Any, k: int) -> list[int]:
        """Numbers of the best passages."""
        from jacolbert_rag import TokenEmbeddings

        with self.index.reading() as view:
            snapshot = view.snapshot
            if self.exact or snapshot.pooled is None:
                whole = TokenEmbeddings(query, np.array([0, len(query)], dtype=np.int64))
                rows, _ = snapshot.search_exact(whole, k)[0]
            else:
                rows, _ = snapshot.search_candidates(query, k, self.index.settings.candidates)
            return [int(document.id) for document in view.documents(rows)]


class Exact(Ours):
    """Exact search over unquantised embeddings: what the others are measured by."""

    exact = True


class PyLateVoyager:
    """lightonai/pylate: indexes.Voyager with retrieve.ColBERT."""

    imports = ("pylate.indexes", "pylate.retrieve")

    def given(self, embeddings: Embeddings) -> Any:
        """Arrays, as its models give them."""
        return [embeddings.passage(i) for i in range(embeddings.n)]

    def build(self, given: Any, path: str) -> None:
        """As its documentation shows it."""
        index = importlib.import_module("pylate.indexes").Voyager(
            index_folder=path, index_name="index", override=True
        )
        index.add_documents(documents_ids=[str(i) for i in range(len(given))], documents_embeddings=given)

    def open(self, path: str) -> None:
        """Loads the graph; the maps are read at each search."""
        index = importlib.import_module("pylate.indexes").Voyager(index_folder=path, index_name="index")
        self.retriever = importlib.import_module("pylate.retrieve").ColBERT(index=index)

    def search(self, query: Any, k: int) -> list[int]:
        """Numbers of the best passages."""
        (found,) = self.retriever.retrieve(queries_embeddings=[query], k=k)
        return [int(hit["id"]) for hit in found]


class FastPlaid:
    """lightonai/fast-plaid, called directly."""

    imports = ("fast_plaid.search",)

    def _module(self, path: str) -> Any:
        return importlib.import_module("fast_plaid.search").FastPlaid(index=path, device="cpu")

    def given(self, embeddings: Embeddings) -> Any:
        """Tensors."""
        import torch

        return [torch.from_numpy(embeddings.passage(i)) for i in range(embeddings.n)]

    def build(self, given: Any, path: str) -> None:
        """As its documentation shows it: 4 bits."""
        self._module(path).create(documents_embeddings=given)

    def open(self, path: str) -> None:
        """Loads the index."""
        self.index = self._module(path)

    def search(self, query: Any, k: int) -> list[int]:
        """Numbers of the best passages."""
        import torch

        (found,) = self.index.search(torch.from_numpy(query)[None], top_k=k, show_progress=False)
        return [int(i) for i, _ in found]


class LanceDB:
    """lancedb: a multivector column with an IVF_PQ index."""

    imports = ("lancedb", "pyarrow")

    def given(self, embeddings: Embeddings) -> Any:
        """Arrays."""
        return [embeddings.passage(i) for i in range(embeddings.n)]

    def build(self, given: Any, path: str) -> None:
        """As its documentation shows it."""
        lancedb = importlib.import_module("lancedb")
        pa = importlib.import_module("pyarrow")
        dim = given[0].shape[1]
        schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.list_(pa.float32(), dim)))])

        def batches() -> Any:
            for first in range(0, len(given), ADDED):
                part = given[first : first + ADDED]
                flat = pa.array(np.concatenate(part).ravel())
                inner = pa.FixedSizeListArray.from_arrays(flat, dim)
                ends = pa.array(np.cumsum([0, *map(len, part)]).astype(np.int32))
                ids = pa.array(np.arange(first, first + len(part)))
                yield pa.RecordBatch.from_arrays([ids, pa.ListArray.from_arrays(ends, inner)], schema=schema)

        table = lancedb.connect(path).create_table("passages", batches(), schema=schema)
        table.create_index(metric="cosine", vector_column_name="vector")

    def open(self, path: str) -> None:
        """Opens the table."""
        self.table = importlib.import_module("lancedb").connect(path).open_table("passages")

    def search(self, query: Any, k: int) -> list[int]:
        """Numbers of the best passages."""
        return self.table.search(query).limit(k).select(["id"]).to_arrow()["id"].to_pylist()  # type: ignore[no-any-return]


SYSTEMS: dict[str, Callable[[], Any]] = {
    "jacolbert": Ours,
    "exact": Exact,
    "pylate-voyager": PyLateVoyager,
    "fast-plaid": FastPlaid,
    "lancedb": LanceDB,
}


class Session:
    """Answers requests for the one system that was loaded."""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request names."""
        do: Callable[[dict[str, Any]], dict[str, Any]] = getattr(self, f"do_{request['do']}")
        return do(request)

    def do_load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take `system`, and the first `n` passages of the embeddings in `folder`; on `threads` threads."""
        import torch

        torch.set_num_threads(request["threads"])
        self.system = SYSTEMS[request["system"]]()
        for name in self.system.imports:
            importlib.import_module(name)
        self.embeddings = Embeddings(request["folder"], request["n"])
        return {"versions": versions()}

    def do_build(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build an index in `path`: seconds, bytes of the folder, peak of anonymous memory."""
        given = self.system.given(self.embeddings)
        before = anonymous_bytes()
        with Peak() as peak:
            start = time.perf_counter()
            self.system.build(given, request["path"])
            seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "bytes": size(request["path"]),
            "peak_bytes": peak.bytes,
            "given_bytes": before,
        }

    def do_open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open the index in `path`: seconds, imports apart."""
        start = time.perf_counter()
        self.system.open(request["path"])
        return {"seconds": time.perf_counter() - start}

    def do_search(self, request: dict[str, Any]) -> dict[str, Any]:
        """Search for the questions from `first` to `stop`, one by one: milliseconds and passages of each."""
        took, found = [], []
        for query in self.embeddings.queries[request["first"] : request["stop"]]:
            start = time.perf_counter()
            found.append(self.system.search(query, request["k"]))
            took.append((time.perf_counter() - start) * 1000)
        return {"ms": took, "found": found}

    def do_add(self, request: dict[str, Any]) -> dict[str, Any]:
        """Add the passages from `first` to `stop` to the open index, `at_once` a call: seconds of each."""
        took = []
        before = anonymous_bytes()
        with Peak() as peak:
            for first in range(request["first"], request["stop"], request["at_once"]):
                start = time.perf_counter()
                self.system.add(self.embeddings, first, min(first + request["at_once"], request["stop"]))
                took.append(time.perf_counter() - start)
        return {"each_s": took, "peak_bytes": peak.bytes, "given_bytes": before}

    def do_close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Close the index, and weigh the folder `path`."""
        self.system.close()
        return {"bytes": size(request["path"])}


class Peak:
    """Largest anonymous memory of this process while a block runs; 0 where the system does not tell."""

    def __enter__(self) -> Peak:
        self.bytes, self._done = anonymous_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self.bytes = max(self.bytes, anonymous_bytes())


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return 0
    return sum(int(words[1]) * 1024 for words in lines if words[0] == "RssAnon:")


def size(path: str) -> int:
    """Bytes of all files of a folder."""
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(path) for name in names)


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Answer until standard input ends. What the system prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = Session()
    for line in sys.stdin:
        try:
            reply = session.answer(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
