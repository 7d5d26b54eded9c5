"""What bfloat16 costs on real text: the bundled model on jsquad's questions and paragraphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evals.datasets import load_task
from evals.metrics import mean, per_query
from jacolbert_rag.datatypes import TokenEmbeddings
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.encoder import Encoder
from jacolbert_rag.index.maxsim import maxsim_many

N_TOP = 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::jacolbert_rag.errors.TruncationWarning")
def test_bfloat16_finds_what_float32_finds(shared_data: Path) -> None:
    task = load_task(shared_data / "jsquad", "dev")
    loaded = checkpoint.load()
    ids = [document.id for document in task.documents]
    documents: dict[str, TokenEmbeddings] = {}
    ranked, runs = {}, {}
    for dtype in ("float32", "bfloat16"):
        encoder = Encoder(loaded, device="cpu", dtype=dtype)  # type: ignore[arg-type]
        documents[dtype] = encoder.documents([document.passage for document in task.documents])
        queries = encoder.queries(list(task.queries.values()))
        scores = np.concatenate(
            [
                maxsim_many(queries.take(range(start, min(start + 64, len(queries)))), documents[dtype])
                for start in range(0, len(queries), 64)
            ]
        )
        ranked[dtype] = np.argsort(-scores, axis=1, kind="stable")[:, :N_TOP]
        runs[dtype] = {
            query: {ids[row]: float(scores[i, row]) for row in ranked[dtype][i]}
            for i, query in enumerate(task.queries)
        }
    cosines = (documents["float32"].flat * documents["bfloat16"].flat).sum(axis=1)
    exact, narrow = ranked["float32"], ranked["bfloat16"]
    overlap = np.mean([len(set(a) & set(b)) / N_TOP for a, b in zip(exact, narrow, strict=True)])
    ndcg = {d: mean(per_query(task.qrels, run, ("nDCG@10",)))["nDCG@10"] for d, run in runs.items()}
    found = {
        "median cosine": float(np.median(cosines)),
        "1st percentile": float(np.percentile(cosines, 1)),
        "same top 1": float(np.mean(exact[:, 0] == narrow[:, 0])),
        "top-10 overlap": float(overlap),
        "nDCG@10 lost": ndcg["float32"] - ndcg["bfloat16"],
    }
    print(found, ndcg)
    assert found["median cosine"] >= 0.999
    assert found["1st percentile"] >= 0.99
    assert found["same top 1"] >= 0.99
    assert found["top-10 overlap"] >= 0.98
    assert abs(found["nDCG@10 lost"]) <= 0.002
