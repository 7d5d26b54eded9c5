"""Texts to token embeddings: length-sorted batches through the network, results in input order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from jacolbert_rag.config import ComputeDtype
from jacolbert_rag.datatypes import (
    BoolArray,
    FloatArray,
    IntArray,
    TokenBatch,
    TokenEmbeddings,
    offsets_of,
)
from jacolbert_rag.encode.checkpoint import Checkpoint
from jacolbert_rag.encode.tokens import clean
from jacolbert_rag.errors import InvalidInputError, TruncationWarning

# Tokens of a padded batch: enough to fill a GPU or two CPU threads with short Japanese passages, and
# about 1 GB of activations for a BERT-base. Larger batches were no faster on two CPU threads.
TOKENS_PER_BATCH = 8_192


class Encoder:
    """Turns texts into token embeddings with one checkpoint on one device."""

    def __init__(
        self, checkpoint: Checkpoint, *, device: str | None = None, dtype: ComputeDtype = "float32"
    ) -> None:
        """Move the network to a device.

        Args:
            checkpoint: from `checkpoint.load`.
            device: "cpu", "cuda", "cuda:1", "mps"; None takes CUDA where there is one, else the CPU.
            dtype: what the network computes in. Results are float32 whatever it is.
        """
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = checkpoint.model.to(self.device, getattr(torch, dtype)).eval()
        self._skiplist = np.array(sorted(self.tokenizer.skiplist()), dtype=np.int32)

    @property
    def dim(self) -> int:
        """Width of a token embedding."""
        return self.checkpoint.config.dim

    def queries(self, texts: Sequence[str]) -> TokenEmbeddings:
        """Embed queries, [MASK] augmentation included.

        Returns:
            One entry a query of (q_tokens, dim) float32, rows of unit length; every token counts.

        Raises:
            InvalidInputError: a query is not a string, or has no text.

        Warns:
            TruncationWarning: a query is longer than the model reads.
        """
        check_texts(texts, "query")
        batch = self.tokenizer.queries(texts)
        for i in np.flatnonzero(batch.n_cut).tolist():
            # The text stands in the message, so that Python's filter lets each query's warning through.
            warnings.warn(
                f"query {i} ({texts[i][:20]!r}…, {len(texts[i]):,} characters) is longer than the "
                f"{batch.n_attended[i]} tokens that are read of a query, and was cut there. Ask a shorter "
                "question, or search with each paragraph and join the hits.",
                TruncationWarning,
                stacklevel=2,
            )
        return self._embed(batch, keep=np.ones(len(batch.ids), dtype=np.bool_))

    def documents(
        self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None
    ) -> TokenEmbeddings:
        """Embed documents, without the punctuation that the checkpoint skips.

        Args:
            texts: passages, title included.
            on_progress: called after each batch with the number of documents just done.

        Returns:
            One entry a document of (d_tokens, dim) float32, rows of unit length.

        Raises:
            InvalidInputError: a document is not a string, or has no text.

        Warns:
            TruncationWarning: documents are longer than the model reads; said once, with their count.
        """
        check_texts(texts, "document")
        embedded, n_cut = self.documents_with_cuts(texts, on_progress=on_progress)
        warn_of_cut_documents(n_cut, len(texts), self.checkpoint.config.document_length)
        return embedded

    def documents_with_cuts(
        self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None
    ) -> tuple[TokenEmbeddings, int]:
        """`documents` without its checks and its warning: the embeddings, and how many were cut."""
        batch = self.tokenizer.documents(texts)
        kept = ~np.isin(batch.ids, self._skiplist)
        return self._embed(batch, kept, on_progress), int(np.count_nonzero(batch.n_cut))

    def _embed(
        self, batch: TokenBatch, keep: BoolArray, on_progress: Callable[[int], None] | None = None
    ) -> TokenEmbeddings:
        """Run the network over a ragged batch; rows where `keep` is False are left out."""
        out = np.empty((len(batch.ids), self.dim), dtype=np.float32)
        for rows in batches_by_length(batch.lengths, TOKENS_PER_BATCH):
            lengths = batch.lengths[rows]
            width = int(lengths.max())
            positions = np.arange(width)
            inside = positions < lengths[:, None]
            # Row-major order of the padded batch's real cells is the ragged order of these texts.
            cells = (batch.offsets[rows][:, None] + positions)[inside]
            ids = np.full((len(rows), width), self.tokenizer.pad_id, dtype=np.int64)
            ids[inside] = batch.ids[cells]
            attended = positions < batch.n_attended[rows][:, None]
            out[cells] = self._forward(ids, attended)[inside]
            if on_progress is not None:
                on_progress(len(rows))
        texts = np.repeat(np.arange(len(batch)), batch.lengths)
        lengths = np.bincount(texts[keep], minlength=len(batch))
        return TokenEmbeddings(out if keep.all() else out[keep], offsets_of(lengths))

    @torch.inference_mode()
    def _forward(self, ids: IntArray, attended: BoolArray) -> FloatArray:
        embedded = self.model(
            torch.from_numpy(ids).to(self.device), torch.from_numpy(attended).to(self.device)
        )
        result: FloatArray = embedded.float().cpu().numpy()
        return result


def batches_by_length(lengths: IntArray, n_tokens: int) -> Iterator[IntArray]:
    """Rows in batches of like length, longest first, each of at most `n_tokens` padded tokens.

    Longest first, so that a batch too large for the memory fails at once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = max(1, int(lengths[order[start]]))
        stop = start + max(1, n_tokens // width)
        yield order[start:stop]
        start = stop


def check_texts(texts: Sequence[str], what: str) -> None:
    """Refuse what has nothing to encode.

    Raises:
        InvalidInputError: a text is not a string, or is empty once cleaned.
    """
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(f"{what} {i} is a {type(text).__name__}; expected a str.")
        if not has_text(text):
            raise InvalidInputError(
                f"{what} {i} has no text: {text[:20]!r} is empty, or only spaces and control characters. "
                "Leave it out."
            )


def warn_of_cut_documents(n_cut: int, n: int, length: int, *, stacklevel: int = 3) -> None:
    """Say once how many of n documents are longer than the model reads."""
    if n_cut:
        warnings.warn(
            f"{n_cut} of {n} documents are longer than the {length} tokens that the model reads; what lies "
            "beyond is not searchable. Split them into passages, with jacolbert_rag.encode.splitter or your "
            "framework's splitter.",
            TruncationWarning,
            stacklevel=stacklevel,
        )


def has_text(text: str) -> bool:
    """Whether anything is left to encode once a text is cleaned."""
    # Its first thousand characters nearly always tell; only a long blank is looked at whole.
    return bool(clean(text[:1000]).strip() or clean(text[1000:]).strip())
