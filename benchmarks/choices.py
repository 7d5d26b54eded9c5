"""What each of the index's settings costs: bytes, speed, and how near its answers are to exact search.

python -m benchmarks.choices
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer

from benchmarks import embedded, machine
from benchmarks.embedded import Embedded
from benchmarks.index import K, ndcg, overlap, say
from benchmarks.settings import TRIES, WORK
from benchmarks.spread import percentile
from benchmarks.texts import SHARED_DATA
from jacolbert_rag.config import (
    CandidateConfig,
    IndexSettings,
    PoolingConfig,
    SearchConfig,
    StoreConfig,
    StoredDtype,
)
from jacolbert_rag.datatypes import Document, FloatArray, IntArray, TokenEmbeddings
from jacolbert_rag.index.index import Index
from jacolbert_rag.index.maxsim import max_per_document, padded
from jacolbert_rag.index.pooling import kmeans, pool_documents
from jacolbert_rag.index.quantize import BITS, Codec, Products

N = 11_096  # passages: the whole of JaQuAD
ADDED = 1_000
FACTORS = (1, 2, 3, 4)
N_TIMED = 300  # questions of the candidates' table
N_ASKED = 500  # questions of the storage table
SMALL = (100, 250, 500, 1_000, 2_000, 4_000)  # passages of the table of exact search
KERNEL_QUERIES, KERNEL_DOCUMENTS = (1, 32), (CandidateConfig().n_candidates, 1_000)  # few and many
KERNEL_CALLS = 20
# One setting after the other is changed, and the others stay as they are by default.
VARIED: Mapping[str, tuple[int, ...]] = {
    "tokens_per_pooled": (16, 32, 64, 96, 128, 256),
    "samples_per_pooled": (8, 16, 32, 64),
    "n_probed": (1, 2, 4, 8),
    "n_nearest": (8, 16, 32, 64),
    "n_candidates": (32, 64, 96, 128, 256, 512),
}
AT_SEARCH = ("n_nearest", "n_candidates")  # settings that need no other index
NOTES = {
    "storage": (
        "exact search; pooling factor: tokens of a document for each that is kept, by Ward's clustering; "
        f"nDCG@10 of {N_ASKED} questions over all 11,096 passages; share: of that of float32 without pooling"
    ),
    "candidates": (
        "one setting changed at a time; top 10 like exact: share of the 10 best of exact search on the same "
        "stored embeddings; p50 of 300 questions, one by one; build: of candidates alone"
    ),
    "maxsim": (
        f"few: one question, {KERNEL_DOCUMENTS[0]} documents; many: {KERNEL_QUERIES[1]} questions, "
        f"{KERNEL_DOCUMENTS[1]:,} documents; products: of a question's tokens with embeddings as they are "
        f"stored; maxima: over each document's tokens; median of {KERNEL_CALLS} calls"
    ),
    "exact": "p50 of 300 questions, one by one, of exact search and through candidates, over the same index",
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Record = dict[str, Any]


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="Folder of the corpora.", metavar="FOLDER")] = SHARED_DATA,
    work: Annotated[Path, typer.Option(help="Embeddings, indexes.", metavar="FOLDER")] = WORK / "index",
    results: Annotated[Path, typer.Option(help="Where the results go; replaced.", metavar="FOLDER")] = TRIES,
    table: Annotated[
        list[str] | None, typer.Option(help="storage, candidates, exact or maxsim; all where not given.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="All cores where not given.")] = None,
) -> None:
    """Measure the choices behind the index's defaults."""
    import torch

    from benchmarks import tables

    if not (data / embedded.DATASET).is_dir():
        say(f"choices: not run, there is no {embedded.DATASET} in {data}")
        return
    threads = threads or machine.n_cores()
    torch.set_num_threads(threads)
    given = embedded.make(data, work / "embeddings", N, say)
    measures = {"storage": storage, "candidates": candidates, "exact": exact, "maxsim": kernels}
    for name in table or list(measures):
        rows = measures[name](given, work / "choices")
        found = {"signature": signature(given, name, threads), "note": NOTES[name], "rows": rows}
        tables.write(results / f"choices-{name}.json", found)
        tables.show({f"choices-{name}": found})


def signature(given: Embedded, name: str, threads: int) -> Record:
    """What the figures depend on."""
    from benchmarks.peers.index_worker import versions

    return {
        "workload": f"choices-{name}",
        "library": machine.library(machine.INDEX_MODULES),
        "texts": {"name": embedded.DATASET, "n": N, "digest": given.about["digest"]},
        "model": f"bundled@{given.about['fingerprint'][:8]}",
        "threads": threads,
        "cpu": machine.cpu(),
        "versions": {"jacolbert": versions()},
    }


def storage(given: Embedded, work: Path) -> list[Record]:
    """Every coding with every pooling factor."""
    rows: list[Record] = []
    for factor in FACTORS:
        pooled = list(pooled_blocks(given, factor))
        for dtype in get_args(StoredDtype):
            row = stored(given, pooled, dtype, work) | {"factor": factor, "dtype": dtype}
            rows.append(row | {"share": row["ndcg@10"] / rows[0]["ndcg@10"] if rows else 1.0})
            say(
                "{dtype}, factor {factor}: nDCG@10 {ndcg@10:.4f}, {bytes_per_passage:,.0f} bytes".format(
                    **row
                )
            )
    return rows


def pooled_blocks(given: Embedded, factor: int) -> Iterator[TokenEmbeddings]:
    """All passages, pooled."""
    for start in range(0, N, ADDED):
        yield pool_documents(given.passages(start, min(N, start + ADDED)), PoolingConfig(factor=factor))


def stored(given: Embedded, blocks: Sequence[TokenEmbeddings], dtype: StoredDtype, work: Path) -> Record:
    """NDCG and bytes of one coding, searched exactly."""
    settings = IndexSettings(store=StoreConfig(dtype=dtype), search=SearchConfig(exact_below=10**9))
    index = create(work, settings, given.about["dim"])
    add(index, blocks)
    with index.reading() as view:
        answers = view.snapshot.search_exact(given.queries.take(range(N_ASKED)), K)
    index.close()
    found = [rows.tolist() for rows, _ in answers]
    return {
        "ndcg@10": ndcg(given, found, given.qrels(N)),
        "bytes_per_passage": weight(index.folder) / N,
        "tokens_per_passage": sum(len(block.flat) for block in blocks) / N,
    }


def candidates(given: Embedded, work: Path) -> list[Record]:
    """Each setting of the candidates, varied by itself."""
    blocks = list(pooled_blocks(given, 1))
    index = create(work, IndexSettings(), given.about["dim"])
    add(index, blocks)
    with index.reading() as view:
        exact_rows = [
            rows.tolist() for rows, _ in view.snapshot.search_exact(given.queries.take(range(N_TIMED)), K)
        ]
    default = CandidateConfig()
    rows = []
    built: CandidateConfig | None = None
    for name, values in VARIED.items():
        for value in values:
            config = replace(
                default, **{name: value, **({"ef_search": max(96, value)} if name == "n_nearest" else {})}
            )
            to_build = default if name in AT_SEARCH else config
            if to_build != built:
                index.settings = replace(index.settings, candidates=to_build)
                start = time.perf_counter()
                index.update_candidates(anew=True)
                built, build_s = to_build, time.perf_counter() - start
            row = asked(index, given, config, exact_rows)
            rows.append(
                {"setting": name, "value": value, "is_default": config == default, "build_s": build_s, **row}
            )
            say("{setting} {value}: like exact {like_exact:.4f}, p50 {p50_ms:.1f} ms".format(**rows[-1]))
    index.close()
    return rows


def asked(
    index: Index, given: Embedded, config: CandidateConfig, exact_rows: Sequence[Sequence[int]]
) -> Record:
    """Speed and likeness of one setting."""
    ms, found = [], []
    with index.reading() as view:
        for query in given.queries.take(range(N_TIMED)):
            start = time.perf_counter()
            rows, _ = view.snapshot.search_candidates(query, K, config)
            ms.append((time.perf_counter() - start) * 1000)
            found.append(rows.tolist())
        derived = [
            path
            for path in (index.folder / "files").iterdir()
            if not path.name.endswith((".tokens.npy", ".offsets.npy", ".codebook.npy"))
        ]
    return {
        "like_exact": overlap(found, exact_rows),
        "p50_ms": percentile(ms, 50),
        "p95_ms": percentile(ms, 95),
        "derived_bytes_per_passage": sum(path.stat().st_size for path in derived) / N,
    }


def exact(given: Embedded, work: Path) -> list[Record]:
    """Exact search and candidates, where a corpus is small."""
    rows = []
    for n in SMALL:
        settings = IndexSettings(search=SearchConfig(exact_below=0))
        index = create(work, settings, given.about["dim"])
        add(index, [given.passages(start, min(n, start + ADDED)) for start in range(0, n, ADDED)])
        index.update_candidates()
        ms: dict[str, list[float]] = {"exact": [], "candidates": []}
        with index.reading() as view:
            for i in range(N_TIMED):
                query = given.queries.take([i])
                calls: list[tuple[str, Callable[[], object]]] = [
                    ("exact", partial(view.snapshot.search_exact, query, K)),
                    (
                        "candidates",
                        partial(view.snapshot.search_candidates, query[0], K, settings.candidates),
                    ),
                ]
                for name, call in calls if i % 2 else calls[::-1]:
                    start = time.perf_counter()
                    call()
                    ms[name].append((time.perf_counter() - start) * 1000)
        index.close()
        rows.append({"n": n, **{f"{name}_p50_ms": percentile(taken, 50) for name, taken in ms.items()}})
        say(
            "{n:,} passages: exact {exact_p50_ms:.1f} ms, candidates {candidates_p50_ms:.1f} ms".format(
                **rows[-1]
            )
        )
    return rows


def kernels(given: Embedded, work: Path) -> list[Record]:
    """The two steps of MaxSim in several ways: a few candidates of one question, and many of 32 questions."""
    import torch

    rows: list[Record] = []
    passages = given.passages(0, KERNEL_DOCUMENTS[1])
    for dtype in get_args(StoredDtype):
        centroids = kmeans(passages.flat, 256, seed=1) if dtype in BITS else None
        codec = Codec(dtype, given.about["dim"], centroids)
        codes = codec.encode(passages.flat)
        took = []
        for n_queries, n in zip(KERNEL_QUERIES, KERNEL_DOCUMENTS, strict=True):
            asked = torch.from_numpy(padded(given.queries.take(range(n_queries)).flat))
            products = Products(codec, asked)
            took.append(median_ms(partial(products.of, codes[: passages.offsets[n]])))
        rows.append({"step": "products", "way": dtype, "few_ms": took[0], "many_ms": took[1]})
    for name, reduce in maxima().items():
        took = []
        for n_queries, n in zip(KERNEL_QUERIES, KERNEL_DOCUMENTS, strict=True):
            offsets = passages.offsets[: n + 1]
            asked = torch.from_numpy(padded(given.queries.take(range(n_queries)).flat))
            similarities = torch.from_numpy(passages.flat[: offsets[-1]]) @ asked.T
            assert np.array_equal(reduce(similarities, offsets), max_per_document(similarities, offsets))
            took.append(median_ms(partial(reduce, similarities, offsets)))
        rows.append({"step": "maxima", "way": name, "few_ms": took[0], "many_ms": took[1]})
    for row in rows:
        say("{step}, {way}: {few_ms:.2f} ms, {many_ms:.1f} ms".format(**row))
    return rows


def maxima() -> dict[str, Callable[[Any, IntArray], FloatArray]]:
    """Ways to the best similarity of each document: (n_tokens, q) similarities, offsets -> (n_docs, q)."""
    import numba
    import torch

    def loop(similarities: Any, offsets: IntArray) -> FloatArray:
        bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        found: FloatArray = torch.stack([similarities[a:b].amax(dim=0) for a, b in bounds]).numpy()
        return found

    def segments(similarities: Any, offsets: IntArray) -> FloatArray:
        lengths = torch.from_numpy(np.diff(offsets))
        found: FloatArray = torch.segment_reduce(similarities, "max", lengths=lengths, unsafe=True).numpy()
        return found

    @numba.njit(parallel=True)
    def compiled(similarities: FloatArray, offsets: IntArray) -> FloatArray:
        best = np.full((len(offsets) - 1, similarities.shape[1]), -np.inf, dtype=np.float32)
        for document in numba.prange(len(best)):
            for token in range(offsets[document], offsets[document + 1]):
                for i in range(similarities.shape[1]):
                    best[document, i] = max(best[document, i], similarities[token, i])
        return best

    return {
        "torch scatter_reduce (default)": max_per_document,
        "torch amax, document by document": loop,
        "torch segment_reduce": segments,
        "numpy maximum.reduceat": lambda s, offsets: np.maximum.reduceat(s.numpy(), offsets[:-1], axis=0),
        "numba": lambda s, offsets: compiled(s.numpy(), offsets),
    }


def median_ms(call: Callable[[], object]) -> float:
    """Of several calls, behind one that compiles and warms up."""
    took = []
    for _ in range(1 + KERNEL_CALLS):
        start = time.perf_counter()
        call()
        took.append((time.perf_counter() - start) * 1000)
    return percentile(took[1:], 50)


def create(folder: Path, settings: IndexSettings, dim: int) -> Index:
    """An empty index in the place of whatever is there."""
    shutil.rmtree(folder, ignore_errors=True)
    about = {"model": "", "fingerprint": "", "encoder": {}, "dim": dim, **settings.to_json()}
    return Index.create(folder, about, durable=False)


def add(index: Index, blocks: Sequence[TokenEmbeddings]) -> None:
    """Store passages, numbered in order."""
    n = 0
    for block in blocks:
        index.append([Document(str(i), "") for i in range(n, n + len(block))], block, listed=False)
        n += len(block)


def weight(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    app()
