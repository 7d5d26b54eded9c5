"""One system under measurement, as a process: JSON requests on standard input, one JSON reply a line.

python benchmarks/peers/worker.py
python benchmarks/peers/worker.py --cold SYSTEM FOLDER QUESTION

It is run by path with the system's own interpreter, so it imports nothing of this project but the library,
and that only where the library is the system. Texts are encoded as the system's documentation shows it, with
its own batch size; the clock runs inside, around that call alone.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

T0 = time.perf_counter()  # before the heavy imports: a cold start begins here

PACKAGES = ("torch", "transformers", "sentence-transformers", "pylate", "fugashi", "numpy")
BLOCK = 256  # tokens a row when the network runs by itself
# Batches that the network by itself may take: the fastest is kept.
ROWS = {"cpu": (2, 8, 32), "cuda": (32, 64, 128, 256)}
MARKER = 1  # where documents have their marker: after [CLS]


class Counter:
    """Counts the tokens that a network reads, with padding and without."""

    def __init__(self, module: Any) -> None:
        """Listen to a module that is called with a dictionary of features, or with ids and a mask."""
        self.padded = 0
        self._attended: list[Any] = []
        module.register_forward_pre_hook(self._count)

    def _count(self, module: Any, args: tuple[Any, ...]) -> None:
        ids, mask = args if len(args) == 2 else (args[0]["input_ids"], args[0]["attention_mask"])
        self.padded += ids.numel()
        self._attended.append(ids.numel() if mask is None else mask.sum())

    def take(self) -> tuple[int, int]:
        """Tokens with and without padding since the last call."""
        counted = self.padded, sum(int(n) for n in self._attended)
        self.padded, self._attended = 0, []
        return counted


class Ours:
    """jacolbert_rag's encoder."""

    def __init__(self, folder: str, device: str, dtype: str, prepared: Prepared | None) -> None:
        from jacolbert_rag.encode import checkpoint
        from jacolbert_rag.encode.encoder import Encoder

        name: Any = dtype
        self.encoder = Encoder(checkpoint.load(folder), device=device, dtype=name)
        self.dtype = str(self.encoder.dtype).removeprefix("torch.")
        self.folder, self.prepared = folder, prepared
        self.counter = Counter(self.encoder.model)

    def documents(self, texts: list[str]) -> Any:
        """TokenEmbeddings."""
        if self.prepared is None:
            return self.encoder.documents(texts)
        batch = self.prepared.batch(len(texts))
        return self.encoder.embed(batch, self.encoder.tokenizer.kept(batch.ids))

    def queries(self, texts: list[str]) -> Any:
        """TokenEmbeddings."""
        return self.encoder.queries(texts)

    def arrays(self, result: Any) -> tuple[Any, list[int]]:
        """Flat embeddings, kept tokens of each text."""
        return result.flat, result.lengths.tolist()

    def query_latency(self, texts: list[str]) -> dict[str, list[float]]:
        """Milliseconds of each question alone, and of the network alone on the same ids, in turns."""
        import torch

        from jacolbert_rag.encode import checkpoint

        # Of its own, since a tokenizer remembers words: the encoder's must meet each question anew.
        tokenizer = checkpoint.load(self.folder).tokenizer
        took: dict[str, list[float]] = {"queries": [], "network": []}
        for i, text in enumerate(texts):
            batch = tokenizer.queries([text])
            ids = torch.from_numpy(batch.ids.astype("int64"))[None]
            mask = torch.arange(ids.shape[1])[None] < int(batch.n_attended[0])
            attended = None if bool(mask.all()) else mask

            def network(ids: Any = ids, attended: Any = attended) -> None:
                with torch.inference_mode():
                    self.encoder.model(ids, attended)

            def queries(text: str = text) -> None:
                self.encoder.queries([text])

            calls: list[tuple[str, Callable[[], None]]] = [("queries", queries), ("network", network)]
            for name, call in calls if i % 2 else reversed(calls):
                start = time.perf_counter()
                call()
                took[name].append((time.perf_counter() - start) * 1000)
        return took


class Network:
    """The library's network alone: ids of the same texts end to end, in full rows of 256, no padding."""

    n_rows = 0

    def __init__(self, folder: str, device: str, dtype: str, prepared: Prepared | None) -> None:
        ours = Ours(folder, device, dtype, prepared)
        self.encoder, self.counter, self.dtype = ours.encoder, ours.counter, ours.dtype
        self.device, self.prepared = device, prepared

    def seconds(self, texts: list[str]) -> float:
        """Time of the forward passes over all tokens of these texts."""
        import torch

        tokenizer, prepared = self.encoder.tokenizer, self.prepared
        batch = tokenizer.documents(texts) if prepared is None else prepared.batch(len(texts))
        flat: Any = torch.from_numpy(batch.ids.astype("int64")).to(self.device)
        n_full = len(flat) // BLOCK * BLOCK
        batches = list(flat[:n_full].reshape(-1, BLOCK).split(self.n_rows or self.fastest(flat)))
        if n_full < len(flat):
            batches.append(flat[n_full:][None])
        return self._forward(batches)

    def fastest(self, flat: Any) -> int:
        """Choose the batch, once: the rows that take least time a token, the first round untimed."""
        times: dict[int, float] = {}
        for warm in (False, True):
            for n in ROWS[self.device]:
                rows = flat.repeat(-(-n * BLOCK // len(flat)))[: n * BLOCK].reshape(n, BLOCK)
                took = self._forward([rows]) / n
                if warm:
                    times[n] = took
        self.n_rows = min(times, key=lambda n: times[n])
        return self.n_rows

    def _forward(self, batches: Sequence[Any]) -> float:
        import torch

        _synchronize(self.device)
        start = time.perf_counter()
        with torch.inference_mode():
            for rows in batches:
                self.encoder.model(rows, None)
        _synchronize(self.device)
        return time.perf_counter() - start


class PyLate:
    """lightonai/pylate: models.ColBERT."""

    def __init__(self, folder: str, device: str, dtype: str, prepared: Prepared | None) -> None:
        if prepared is not None:
            raise ValueError("pylate reads texts, not prepared ids: measure it where MeCab is, without --ids")
        kwargs = {} if dtype == "float32" else {"model_kwargs": {"dtype": dtype}}
        self.model = importlib.import_module("pylate.models").ColBERT(folder, device=device, **kwargs)
        self.dtype = _dtype(self.model)
        self.counter = Counter(self.model[0])

    def documents(self, texts: list[str]) -> Any:
        """A list of numpy arrays."""
        return self.model.encode(texts, is_query=False, show_progress_bar=False)

    def queries(self, texts: list[str]) -> Any:
        """A list of numpy arrays."""
        return self.model.encode(texts, is_query=True, show_progress_bar=False)

    def arrays(self, result: Any) -> tuple[Any, list[int]]:
        """Flat embeddings, kept tokens of each text."""
        import numpy as np

        return np.concatenate(result), [len(one) for one in result]


class SentenceTransformers:
    """huggingface/sentence-transformers: MultiVectorEncoder."""

    def __init__(self, folder: str, device: str, dtype: str, prepared: Prepared | None) -> None:
        kwargs = {} if dtype == "float32" else {"model_kwargs": {"dtype": dtype}}
        module = importlib.import_module("sentence_transformers")
        self.model = module.MultiVectorEncoder(folder, device=device, **kwargs)
        if prepared is not None:
            self.model.preprocess = prepared.preprocess
        self.dtype = _dtype(self.model)
        self.counter = Counter(self.model[0])

    def documents(self, texts: list[str]) -> Any:
        """A list of tensors on the device, as it gives by default."""
        return self.model.encode_document(texts)

    def queries(self, texts: list[str]) -> Any:
        """A list of tensors on the device, as it gives by default."""
        return self.model.encode_query(texts)

    def arrays(self, result: Any) -> tuple[Any, list[int]]:
        """Flat embeddings, kept tokens of each text."""
        import torch

        return torch.cat(result).float().cpu().numpy(), [len(one) for one in result]


class OurTokenizer:
    """jacolbert_rag's tokenizer, without a network."""

    dtype = "ids"

    def __init__(self, folder: str, device: str, dtype: str, prepared: Prepared | None) -> None:
        from jacolbert_rag.encode import checkpoint

        self.tokenizer = checkpoint.load(folder).tokenizer

    def documents(self, texts: list[str]) -> Any:
        """A TokenBatch."""
        return self.tokenizer.documents(texts)

    def arrays(self, result: Any) -> tuple[Any, list[int]]:
        """Ids without the document marker, which the other tokenizer does not know."""
        import numpy as np

        kept = np.delete(result.ids, result.offsets[:-1] + MARKER)
        return kept[:, None], (np.diff(result.offsets) - 1).tolist()


class TransformersTokenizer:
    """transformers' BertJapaneseTokenizer."""

    dtype = "ids"

    def __init__(self, folder: str, device: str, dtype: str, prepared: Prepared | None) -> None:
        from transformers import BertJapaneseTokenizer

        with open(os.path.join(folder, "artifact.metadata"), encoding="utf-8") as file:
            self.length = int(json.load(file)["doc_maxlen"]) - 1  # the marker takes one
        self.tokenizer = BertJapaneseTokenizer.from_pretrained(folder)

    def documents(self, texts: list[str]) -> Any:
        """Lists of ids; neither masks nor types are asked for."""
        return self.tokenizer(
            texts,
            truncation=True,
            max_length=self.length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]

    def arrays(self, result: Any) -> tuple[Any, list[int]]:
        """All ids, and how many each text has."""
        import numpy as np

        return np.concatenate([np.array(ids, dtype=np.int32) for ids in result])[:, None], [
            len(ids) for ids in result
        ]


class Prepared:
    """Token ids read from a file, for a machine without MeCab: a text is its row number.

    Row numbers are padded with spaces to the length of the text they stand for, because
    sentence-transformers sorts texts by their characters.
    """

    def __init__(self, path: str) -> None:
        import numpy as np

        with np.load(path) as arrays:
            self.ids, self.offsets = arrays["ids"].astype(np.int32), arrays["offsets"]
            self.n_chars = arrays["n_chars"]

    def texts(self, n: int) -> list[str]:
        """Stand-ins of the first n texts."""
        return [str(i).ljust(int(n_chars)) for i, n_chars in enumerate(self.n_chars[:n])]

    def batch(self, n: int) -> Any:
        """The TokenBatch of the first n texts, as the library's tokenizer would give it."""
        import numpy as np

        from jacolbert_rag.datatypes import TokenBatch

        offsets = self.offsets[: n + 1]
        return TokenBatch(
            ids=self.ids[: offsets[-1]],
            offsets=offsets,
            n_attended=np.diff(offsets),
            n_cut=np.zeros(n, dtype=np.int64),
        )

    def preprocess(self, texts: Sequence[str], **_: Any) -> dict[str, Any]:
        """A batch padded to its longest text, as sentence-transformers' own would be."""
        import torch

        rows = [torch.from_numpy(self._row(text).astype("int64")) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask, "modality": "text"}

    def _row(self, text: str) -> Any:
        i = int(text)
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


SYSTEMS: dict[str, Callable[[str, str, str, Prepared | None], Any]] = {
    "jacolbert": Ours,
    "network": Network,
    "pylate": PyLate,
    "sentence-transformers": SentenceTransformers,
    "tokenizer": OurTokenizer,
    "transformers-tokenizer": TransformersTokenizer,
}


class Session:
    """Answers requests for the one system that was loaded."""

    system: Any = None
    device = "cpu"
    prepared: Prepared | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request names."""
        do: Callable[[dict[str, Any]], dict[str, Any]] = getattr(self, f"do_{request['do']}")
        return do(request)

    def do_load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load a system: `system`, `folder`, `device`, `dtype`, `threads`, `ids`, `cpu`."""
        if request["cpu"] is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {request["cpu"]})
        import torch

        if request["threads"] is not None:
            torch.set_num_threads(request["threads"])
        self.device = request["device"]
        self.prepared = Prepared(request["ids"]) if request["ids"] else None
        make = SYSTEMS[request["system"]]
        self.system = make(request["folder"], self.device, request["dtype"], self.prepared)
        return {"dtype": self.system.dtype, "threads": torch.get_num_threads(), "versions": versions()}

    def do_warm_up(self, request: dict[str, Any]) -> dict[str, Any]:
        """Encode `texts` untimed; write what came out to `save`, for a comparison between systems."""
        texts = self._texts(request)
        if isinstance(self.system, Network):
            self.system.seconds(texts)
            self._take()
            return {"n_rows": self.system.n_rows}
        result = self.system.documents(texts)
        if save := request.get("save"):
            import numpy as np

            flat, lengths = self.system.arrays(result)
            np.savez(save, flat=flat, lengths=np.array(lengths, dtype=np.int64))
        self._take()
        return {}

    def do_documents(self, request: dict[str, Any]) -> dict[str, Any]:
        """Encode `texts`, or the first `n` prepared ones: seconds, documents, tokens read and kept."""
        texts = self._texts(request)
        reply: dict[str, Any] = {"docs": len(texts)}
        if isinstance(self.system, Network):
            reply["seconds"] = self.system.seconds(texts)
        else:
            _synchronize(self.device)
            start = time.perf_counter()
            result = self.system.documents(texts)
            _synchronize(self.device)
            reply["seconds"] = time.perf_counter() - start
            reply["kept"] = sum(self.system.arrays(result)[1])
        if counted := self._take():
            reply["padded"], reply["tokens"] = counted
        else:
            reply["tokens"] = reply["kept"]
        return reply

    def do_query_latency(self, request: dict[str, Any]) -> dict[str, Any]:
        """Milliseconds of each of `texts` as a query, and of the network alone."""
        return dict(self.system.query_latency(request["texts"]))

    def do_matmul(self, request: dict[str, Any]) -> dict[str, Any]:
        """FLOP/s of one bfloat16 product of `shape` (m, k, n) on the device; the median of `repeats`."""
        import torch

        m, k, n = request["shape"]
        left, right = (torch.randn(s, device=self.device, dtype=torch.bfloat16) for s in ((m, k), (k, n)))
        times = []
        for _ in range(request["repeats"]):
            _synchronize(self.device)
            start = time.perf_counter()
            for _ in range(request["products"]):
                left @ right
            _synchronize(self.device)
            times.append((time.perf_counter() - start) / request["products"])
        return {"flops_per_s": 2.0 * m * k * n / sorted(times)[len(times) // 2]}

    def _texts(self, request: dict[str, Any]) -> list[str]:
        if self.prepared is not None:
            return self.prepared.texts(request["n"])
        return list(request["texts"])

    def _take(self) -> tuple[int, int] | None:
        counter = getattr(self.system, "counter", None)
        return counter.take() if counter is not None else None


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def serve(requests: Any, replies: Any) -> None:
    """Answer until the requests end; an error is a reply, and its trace goes to standard error."""
    session = Session()
    for line in requests:
        try:
            reply = session.answer(json.loads(line))
        except Exception as error:  # whatever a library raises belongs in the table, not in a hang
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def cold_start(name: str, folder: str, question: str) -> dict[str, float]:
    """Seconds of imports and loading, and of the first query."""
    system = SYSTEMS[name](folder, "cpu", "auto" if name == "jacolbert" else "float32", None)
    loaded = time.perf_counter()
    system.queries([question])
    return {"load_s": loaded - T0, "query_s": time.perf_counter() - loaded}


def _dtype(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _synchronize(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    # Libraries print to standard output as they like; replies go to a copy of it.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if sys.argv[1:2] == ["--cold"]:
        replies.write(json.dumps(cold_start(*sys.argv[2:])) + "\n")
        replies.close()
    else:
        serve(sys.stdin, replies)
