"""Documents a second on a GPU, and the share of its bfloat16 rate that the encoder attains.

Token ids are prepared beforehand, because a GPU machine may have no MeCab; so this is the encoder without
its tokenizer, whose own rate stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, model, texts
from benchmarks.blocklog import BlockLog
from benchmarks.documents import row
from benchmarks.settings import Settings
from benchmarks.spread import ratios, spread
from benchmarks.turns import Record, Running, column, common
from benchmarks.workers import System, Worker

OURS, NETWORK, ST = "jacolbert-bfloat16", "network-bfloat16", "sentence-transformers-bfloat16"
ST_FLOAT32 = "sentence-transformers"
PRODUCT = (8192, 768, 3072)  # the MLP's first product over 8,192 tokens of BERT-base
N_WARM_UP = 512
NOTE = (
    "token ids prepared beforehand; network: forward passes alone over rows of 256 tokens; "
    "sentence-transformers leaves its results on the GPU, jacolbert_rag brings them to main memory"
)


def prepare(data: Path, n: int, path: Path) -> dict[str, Any]:
    """Tokenize n passages and write their ids, for a machine without MeCab.

    Args:
        data: folder of the corpora.
        n: passages.
        path: an .npz of ids (uint16), offsets (int64), n_chars (int32), and what they were made from.

    Returns:
        Documents, tokens, and documents a second of this one process.
    """
    from jacolbert_rag.encode import checkpoint

    passages = texts.passages(data, n)
    tokenizer = checkpoint.load(str(model.bundled())).tokenizer
    tokenizer.documents(texts.passages(data, n + N_WARM_UP).texts[-N_WARM_UP:])
    start = time.perf_counter()
    batch = tokenizer.documents(passages.texts)
    seconds = time.perf_counter() - start
    if int(batch.ids.max()) > np.iinfo(np.uint16).max:
        raise ValueError(f"the vocabulary has ids up to {batch.ids.max()}, too many for uint16.")
    np.savez_compressed(
        path,
        ids=batch.ids.astype(np.uint16),
        offsets=batch.offsets,
        n_chars=np.array([len(text) for text in passages.texts], dtype=np.int32),
        name=np.array(passages.name),
        digest=np.array(passages.digest),
        tokenizer_docs_per_s=np.array(len(batch) / seconds),
        tokenizer_cpu=np.array(machine.cpu()["model"]),
    )
    return {"docs": len(batch), "tokens": len(batch.ids), "docs_per_s": len(batch) / seconds}


def measure(
    settings: Settings,
    ids: Path,
    *,
    n: int | None = None,
    device: str = "cuda",
    shape: model.Shape = model.BASE,
) -> dict[str, Any]:
    """Encode the same prepared documents once a block with each system, in turns.

    Args:
        settings: of the run; its blocks are repetitions here.
        ids: from `prepare`.
        n: take the first n documents of the file; None takes all.
        device: "cuda", or "cpu" to try the workload where there is no GPU.
        shape: of the random checkpoint.
    """
    folder = model.checkpoint_folder(settings.work, shape)
    plain = model.without_mecab(folder)
    with np.load(ids) as arrays:
        lengths = np.diff(arrays["offsets"])[:n].tolist()
        prepared = {key: arrays[key].item() for key in arrays.files if arrays[key].ndim == 0}
    st = settings.sentence_transformers
    systems = [
        System(OURS, "jacolbert", "bfloat16"),
        System(NETWORK, "network", "bfloat16"),
        System(ST, "sentence-transformers", "bfloat16", python=st),
        System(ST_FLOAT32, "sentence-transformers", python=st),
    ]
    n = len(lengths)
    with ExitStack() as stack:
        running = Running(settings, systems, stack)

        def load(worker: Worker) -> dict[str, Any]:
            theirs = worker.system.kind == "sentence-transformers"
            loaded = worker.load(plain if theirs else folder, device=device, ids=ids)
            return loaded | worker.ask("warm_up", n=min(n, N_WARM_UP))

        def block(worker: Worker) -> Record:
            reply = worker.ask("documents", n=n)
            if worker.system.name == OURS:
                # In the same minute as the encoder, since clocks follow heat.
                product = worker.ask("matmul", shape=PRODUCT, products=20, repeats=5)
                reply["product_flops_per_s"] = product["flops_per_s"]
            return reply

        running.start(load)
        signature = machine.signature(
            "cuda",
            texts={"name": prepared["name"], "n": n, "digest": prepared["digest"]},
            model=machine.shape_name(shape),
            threads=settings.threads,
            versions=running.versions,
        )
        signature["device"] = device_name(device)
        log = BlockLog(settings.work, "cuda", {"signature": signature, "n_blocks": settings.n_blocks})
        records = running.take_turns(log, [block] * settings.n_blocks)
    result = {
        "signature": signature,
        "note": NOTE,
        "tokenizer": {"docs_per_s": prepared["tokenizer_docs_per_s"], "cpu": prepared["tokenizer_cpu"]},
        **summarize(running, records, flops=shape.flops(lengths)),
        "blocks": records,
    }
    log.finish()
    return result


def summarize(running: Running, records: Sequence[Record], *, flops: float) -> dict[str, Any]:
    """Rows, ratios, FLOP/s without padding, and their share of the product's.

    Args:
        running: what ran.
        records: of the blocks.
        flops: that one block needs without padding; see `model.Shape.flops`.
    """
    rows: dict[str, Any] = {}
    for system in running.systems:
        name = system.name
        own = common(records, name, OURS)
        if name in running.failed or not own:
            rows[name] = {"not_run": running.failed.get(name, "failed: no block was finished")}
            continue
        rate = [flops / seconds for seconds in column(own, name, "seconds")]
        rows[name] = row(name, records) | {"flops_per_s": asdict(spread(rate))}
        if OURS not in running.failed:
            share = ratios(rate, column(own, OURS, "product_flops_per_s"))
            rows[name]["share_of_product"] = asdict(spread(share))
    found: dict[str, Any] = {"systems": rows, "ratios": {}}
    for name in (ST, ST_FLOAT32, NETWORK):
        if {name, OURS}.isdisjoint(running.failed) and (both := common(records, OURS, name)):
            values = ratios(column(both, name, "seconds"), column(both, OURS, "seconds"))
            found["ratios"][f"{OURS} / {name}"] = asdict(spread(values))
    if OURS not in running.failed:
        product = spread(column(common(records, OURS), OURS, "product_flops_per_s"))
        found["product"] = {"shape": PRODUCT, "flops_per_s": asdict(product)}
    return found


def is_available() -> bool:
    """Whether torch sees a GPU here."""
    import torch

    return torch.cuda.is_available()


def device_name(device: str) -> str:
    """Such as "NVIDIA H100 80GB HBM3"."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device
