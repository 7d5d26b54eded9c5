"""Scores a ColBERT on a dev set while it is trained: exact search of the whole corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from evals import metrics
from evals.datasets import load_task
from jacolbert_rag.config import ComputeDtype
from jacolbert_rag.datatypes import FloatArray, TokenBatch, TokenEmbeddings
from jacolbert_rag.encode.checkpoint import Checkpoint, Source
from jacolbert_rag.encode.encoder import BLOCK_TEXTS, Encoder, has_text
from jacolbert_rag.encode.model import ColBERT
from jacolbert_rag.encode.tokens import Tokenizer
from jacolbert_rag.index.maxsim import maxsim_many
from jacolbert_rag.index.snapshot import SEARCH_QUERIES, best

MEASURES = ("nDCG@10", "MRR@10")
K = 10  # what the measures look at

Precision = Literal["auto", "fp32", "bf16", "fp16", "fp64"]
_DTYPES: dict[Precision, ComputeDtype] = {
    "auto": "auto",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp64": "float32",  # the encoder has none wider
}


class DevSet:
    """A corpus, queries and qrels, to be searched with one network after the other.

    Attributes:
        name: the folder's.
        digest: 64 hex digits over corpus, queries and qrels, whatever the limit.
    """

    def __init__(self, folder: Path, split: str = "dev", *, limit: int | None = None) -> None:
        """Read a folder in BEIR layout; documents without text are left out, and so never found.

        Args:
            folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, each packed (.gz) or not.
            split: which qrels.
            limit: the first queries only; the corpus stays whole.

        Raises:
            DatasetError: it cannot be read.
            OptionalDependencyError: the extra `evals` is not installed.
        """
        metrics.load_ranx()  # hours of training must not end in a missing package
        task = load_task(folder, split, limit=limit)
        self.name, self.digest = task.name, task.digest
        self._queries, self._qrels = task.queries, task.qrels
        # Ascending, so that of equal scores the lower id is first.
        documents = sorted((d for d in task.documents if has_text(d.passage)), key=lambda d: d.id)
        self._ids = [document.id for document in documents]
        self._passages = [document.passage for document in documents]
        self._read: tuple[Tokenizer, TokenBatch, list[TokenBatch]] | None = None

    def score(
        self,
        model: ColBERT,
        tokenizer: Tokenizer,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
    ) -> dict[str, float]:
        """Search with a network; it stays as it is: its mode, its weights, its device.

        A copy of it does the work. Memory grows with queries times documents (4 bytes each).

        Args:
            model: may be in training.
            tokenizer: with the lengths and the query rule that are to be measured. Texts are tokenised once
                for each tokenizer in a row.
            device: which searches.
            precision: of the network; "auto" is the encoder's choice for the device. Scores are float32.

        Returns:
            "nDCG@10" and "MRR@10", means over all queries; of equal scores the lower id is first.
        """
        encoder = Encoder(
            _as_checkpoint(model, tokenizer),
            device=str(device),
            dtype=_DTYPES[precision],
            tokenizer_processes=0,  # others would load the checkpoint by its name, and it has none
        )
        queries, documents = self._tokens(tokenizer)
        asked = encoder.embed(queries, np.ones(len(queries.ids), dtype=np.bool_))
        scores = np.concatenate(
            [
                _scores(asked, encoder.embed(block, tokenizer.kept(block.ids)), str(device))
                for block in documents
            ],
            axis=1,
        )
        rows = np.arange(len(self._ids))
        run: dict[str, dict[str, float]] = {}
        for id, of_query in zip(self._queries, scores, strict=True):
            found, values = best(rows, of_query, K)
            run[id] = {self._ids[row]: float(value) for row, value in zip(found, values, strict=True)}
        return metrics.mean(metrics.per_query(self._qrels, run, MEASURES))

    def _tokens(self, tokenizer: Tokenizer) -> tuple[TokenBatch, list[TokenBatch]]:
        """Token ids of the queries, and of the documents in blocks."""
        if self._read is None or self._read[0] is not tokenizer:
            starts = range(0, len(self._passages), BLOCK_TEXTS)
            blocks = [tokenizer.documents(self._passages[i : i + BLOCK_TEXTS]) for i in starts]
            self._read = tokenizer, tokenizer.queries(self._queries.values()), blocks
        return self._read[1:]


def _scores(queries: TokenEmbeddings, docs: TokenEmbeddings, device: str) -> FloatArray:
    """(n_queries, n_docs) float32 MaxSim, some queries at a time."""
    starts = range(0, len(queries), SEARCH_QUERIES)
    parts = [queries.take(range(i, min(i + SEARCH_QUERIES, len(queries)))) for i in starts]
    return np.concatenate([maxsim_many(part, docs, device=device) for part in parts])


def _as_checkpoint(model: ColBERT, tokenizer: Tokenizer) -> Checkpoint:
    """What the encoder takes; it reads the network, the tokenizer and the settings, and no file."""
    nowhere = Path()
    return Checkpoint(
        "", "HF_ColBERT", nowhere, nowhere, model, tokenizer, tokenizer.config, {}, Source(""), fingerprint=""
    )
