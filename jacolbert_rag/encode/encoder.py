"""Texts to token embeddings: length-sorted batches through the network, results in input order."""

from __future__ import annotations

import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

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
from jacolbert_rag.encode.model import dtype_of
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.words import JapaneseWordPiece
from jacolbert_rag.encode.workers import Worker, WorkerPool
from jacolbert_rag.errors import InvalidInputError, TruncationWarning, WorkerError
from jacolbert_rag.progress import progress_bar

# Tokens of a padded batch. A CPU is as fast with 2,048 as with 16,384 (BERT-base, two threads), and the fewer
# texts share a batch, the less of it is padding; a GPU needs more to be busy.
TOKENS_PER_BATCH = {"cpu": 2_048, "mps": 16_384, "cuda": 65_536}
# Batches are padded to a multiple of so many tokens. On a CPU oneDNN makes kernels for each new shape and
# keeps them, so that memory grew with the lengths met (in 6,144 passages 113 shapes, and 190 MB more than
# with the 33 that are left); a GPU's tensor cores want multiples of 8.
WIDTH_STEP = 8
# Texts of a block of a stream: enough that sorting them by length leaves little padding, and 100 to 200 MB
# of float32 embeddings.
BLOCK_TEXTS = 1_024
# One process tokenises some thousand documents a second, which a large GPU outruns.
MAX_TOKENIZER_PROCESSES = 4

logger = logging.getLogger(__name__)


class Encoder:
    """Turns texts into token embeddings with one checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | Sequence[str] | None = None,
        dtype: ComputeDtype = "auto",
        compile: bool = False,
        tokenizer_processes: int | None = None,
    ) -> None:
        """Move the network to a device.

        Args:
            checkpoint: from `checkpoint.load`.
            device: "cpu", "cuda", "cuda:1", "mps"; None takes CUDA or Apple's MPS where there is one, else
                the CPU. Of several devices the first reads queries and small lists here, and larger
                corpora go to all of them, one process each.
            dtype: what the network computes in; "auto" is bfloat16 where the device multiplies it by
                instruction, else float32. Results are float32 whatever it is.
            compile: fuse the network by torch.compile. The first batches take a minute then, so it pays
                for large corpora only.
            tokenizer_processes: processes that tokenise large corpora; None takes some where a GPU would
                wait for one, 0 tokenises here.

        Raises:
            InvalidInputError: a device is not there, or a dtype is unknown.
        """
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        if device is None:
            device = _best_device()
        names = [device] if isinstance(device, str) else list(device)
        if not names:
            raise InvalidInputError('device is an empty list; name at least one device, such as ["cuda:0"].')
        self.devices = tuple(_device(name) for name in names)
        self.device = self.devices[0]
        self.dtype = dtype_of(dtype, self.device)
        # A copy, so that the checkpoint stays in float32 to be saved, or for another encoder.
        self.model = deepcopy(checkpoint.model).to(self.device, self.dtype).eval()
        self._requested_dtype, self._compiled = dtype, compile
        self._forward_model = torch.compile(self.model, dynamic=True) if compile else self.model
        self.tokens_per_batch = TOKENS_PER_BATCH.get(self.device.type, TOKENS_PER_BATCH["cpu"])
        if tokenizer_processes is None:
            # A fast tokenizer takes all cores by itself.
            starves = self.device.type == "cuda" and isinstance(self.tokenizer.subwords, JapaneseWordPiece)
            n_spare = (os.cpu_count() or 1) - 1
            tokenizer_processes = min(MAX_TOKENIZER_PROCESSES, n_spare) if starves else 0
        self.tokenizer_processes = tokenizer_processes
        self._workers: WorkerPool | None = None
        self._starting = threading.Lock()

    @property
    def dim(self) -> int:
        """Width of a token embedding."""
        return self.checkpoint.config.dim

    def queries(self, texts: Iterable[str]) -> TokenEmbeddings:
        """Embed queries, [MASK] augmentation included.

        Returns:
            One entry a query of (q_tokens, dim) float32, rows of unit length; every token counts.

        Raises:
            InvalidInputError: a query is not a string, or has no text.

        Warns:
            TruncationWarning: a query is longer than its length rule or the model allows.
        """
        texts = list(_several(texts))
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
        return self.embed(batch, keep=np.ones(len(batch.ids), dtype=np.bool_))

    def documents(
        self, texts: Iterable[str], *, on_progress: Callable[[int], object] | None = None
    ) -> TokenEmbeddings:
        """Embed documents, without the tokens that the checkpoint skips.

        Args:
            texts: passages, title included.
            on_progress: called with the number of documents just done.

        Returns:
            One entry a document of (d_tokens, dim) float32, rows of unit length. Its size is that of the
            corpus; for a large one there is `stream`.

        Raises:
            InvalidInputError: a document is not a string, or has no text.
            WorkerError: a process beside this one failed.

        Warns:
            TruncationWarning: documents are longer than the model reads; said once, with their count.
        """
        texts = list(_several(texts))
        check_texts(texts, "document")
        if self._has_workers and len(texts) > BLOCK_TEXTS:
            parts = list(self.blocks(texts, size=BLOCK_TEXTS, on_progress=on_progress))
            embedded = TokenEmbeddings.concatenate([part for part, _ in parts])
            n_cut = sum(n for _, n in parts)
        else:
            embedded, n_cut = self.documents_with_cuts(texts, on_progress=on_progress)
        warn_of_cut_documents(n_cut, len(texts), self.checkpoint.config.document_length)
        return embedded

    def stream(
        self, texts: Iterable[str], *, progress: bool = False, total: int | None = None
    ) -> Iterator[TokenEmbeddings]:
        """Embed documents as they come, in blocks, in input order.

        Memory grows neither with the corpus nor with the time that a block waits: texts are read a few
        blocks ahead.

        Args:
            texts: passages, title included; a generator will do.
            progress: show a bar with documents/s on standard error.
            total: how many there will be, for the bar.

        Yields:
            Blocks of up to 1,024 documents, each as `documents` returns them.

        Raises:
            InvalidInputError: a document is not a string, or has no text; its number counts from the
                first of the stream. Blocks well before it were yielded.
            WorkerError: a process beside this one failed.

        Warns:
            TruncationWarning: at the end, once, with the number of documents that were cut.
        """
        n_cut = n = 0
        with progress_bar(total, show=progress) as advance:
            for embedded, n_cut_here in self._blocks(_checked_blocks(texts), advance):
                n += len(embedded)
                n_cut += n_cut_here
                yield embedded
        warn_of_cut_documents(n_cut, n, self.checkpoint.config.document_length)

    def documents_with_cuts(
        self, texts: Sequence[str], *, on_progress: Callable[[int], object] | None = None
    ) -> tuple[TokenEmbeddings, int]:
        """`documents` here, without checks and warning: the embeddings, and how many were cut."""
        return self._embed_documents(self.tokenizer.documents(texts), on_progress)

    def blocks(
        self,
        texts: Iterable[str],
        *,
        size: int,
        on_progress: Callable[[int], object] | None = None,
    ) -> Iterator[tuple[TokenEmbeddings, int]]:
        """`stream` without checks and warning: blocks of `size` documents, and how many of each were cut.

        They are encoded here, or with tokenizers beside, or on all devices; then texts are read some
        blocks ahead of what is yielded.
        """
        yield from self._blocks(_in_blocks(texts, size), on_progress)

    def embed(
        self, batch: TokenBatch, keep: BoolArray, on_progress: Callable[[int], object] | None = None
    ) -> TokenEmbeddings:
        """Run the network over token ids.

        Args:
            batch: ragged ids, from the tokenizer.
            keep: (n_tokens,) bool; embeddings of the others are left out.
            on_progress: called with the number of texts just done.

        Returns:
            One entry a text of (kept tokens, dim) float32, rows of unit length, in the batch's order.
        """
        out = np.empty((len(batch.ids), self.dim), dtype=np.float32)
        lengths = batch.lengths
        todo = list(batches_by_length(lengths, self.tokens_per_batch))[::-1]
        waiting: tuple[IntArray, Tensor] | None = None
        while todo or waiting is not None:
            launched = None
            if todo:
                rows = todo.pop()
                try:
                    launched = rows, self._launch(batch, rows)
                except RuntimeError as error:
                    if not _is_out_of_memory(error) or len(rows) == 1:
                        raise
                if launched is None:  # only now that the failed pass's tensors went with its error
                    self._shrink(len(rows) * _rounded_up(int(lengths[rows].max())))
                    left = np.concatenate([rows, *todo[::-1]])
                    cut = batches_by_length(lengths[left], self.tokens_per_batch)
                    todo = [left[part] for part in cut][::-1]
                    continue
            # A GPU works on this batch while the results of the one before are fetched.
            if waiting is not None:
                self._fetch(batch, *waiting, out)
                if on_progress is not None:
                    on_progress(len(waiting[0]))
            waiting = launched
        if keep.all():
            return TokenEmbeddings(out, batch.offsets)
        texts = np.repeat(np.arange(len(batch)), lengths)
        return TokenEmbeddings(out[keep], offsets_of(np.bincount(texts[keep], minlength=len(batch))))

    def _embed_documents(
        self, batch: TokenBatch, on_progress: Callable[[int], object] | None = None
    ) -> tuple[TokenEmbeddings, int]:
        embedded = self.embed(batch, self.tokenizer.kept(batch.ids), on_progress)
        return embedded, int(np.count_nonzero(batch.n_cut))

    def _blocks(
        self, blocks: Iterator[list[str]], advance: Callable[[int], object] | None
    ) -> Iterator[tuple[TokenEmbeddings, int]]:
        """Embed block after block: here, with tokenizers beside, or on all devices."""
        if self._has_workers:
            first = list(islice(blocks, 2))
            blocks = chain(first, blocks)
            if len(first) == 2:  # one block is not worth starting processes for
                yield from self._blocks_of_workers(blocks, advance)
                return
        for texts in blocks:
            yield self.documents_with_cuts(texts, on_progress=advance)

    def _blocks_of_workers(
        self, blocks: Iterator[list[str]], advance: Callable[[int], object] | None
    ) -> Iterator[tuple[TokenEmbeddings, int]]:
        pool = self._pool()
        try:
            if len(self.devices) > 1:
                for embedded, n_cut in pool.map(Worker.documents, blocks):
                    yield embedded, n_cut
                    if advance is not None:
                        advance(len(embedded))
            else:
                for batch in pool.map(Worker.tokens, blocks):
                    yield self._embed_documents(batch, advance)
        except WorkerError:
            self._drop(pool)  # so that the next stream begins with whole ones
            raise

    @property
    def _has_workers(self) -> bool:
        return len(self.devices) > 1 or self.tokenizer_processes > 0

    def _pool(self) -> WorkerPool:
        """The processes beside this one, started when they are first needed; they stay."""
        with self._starting:
            if self._workers is None:
                if len(self.devices) > 1:
                    starts = [partial(self._encoding_worker, str(device)) for device in self.devices]
                else:
                    starts = [partial(Worker.tokenizing, self.checkpoint)] * self.tokenizer_processes
                self._workers = WorkerPool(starts)
                self._end_workers = weakref.finalize(self, self._workers.close)
            return self._workers

    def _encoding_worker(self, device: str) -> Worker:
        return Worker.encoding(self.checkpoint, device, dtype=self._requested_dtype, compile=self._compiled)

    def close(self) -> None:
        """End the processes beside this one, if there are any; another stream starts them again."""
        self._drop(self._workers)

    def _drop(self, pool: WorkerPool | None) -> None:
        """End a pool; another thread may have begun a new one meanwhile, which stays."""
        with self._starting:
            if pool is not None and self._workers is pool:
                self._end_workers()
                self._workers = None

    @torch.inference_mode()
    def _launch(self, batch: TokenBatch, rows: IntArray) -> Tensor:
        """Start the network on some texts, padded to the longest; on a GPU this returns at once."""
        lengths = batch.lengths[rows]
        width = int(lengths.max())
        if len(rows) > 1:  # one query by itself waits for no padding
            width = min(_rounded_up(width), self.checkpoint.config.max_positions)
        positions = np.arange(width)
        inside = positions < lengths[:, None]
        ids = np.full((len(rows), width), self.tokenizer.special.pad, dtype=np.int64)
        ids[inside] = batch.ids[_cells(batch, rows, inside)]
        attended = positions < batch.n_attended[rows][:, None]
        mask = None if attended.all() else self._to_device(torch.from_numpy(attended))
        embedded: Tensor = self._forward_model(self._to_device(torch.from_numpy(ids)), mask)
        return embedded

    @torch.inference_mode()
    def _fetch(self, batch: TokenBatch, rows: IntArray, embedded: Tensor, out: FloatArray) -> None:
        """Copy a batch's embeddings to the places of its texts."""
        lengths = batch.lengths[rows]
        inside = np.arange(embedded.shape[1]) < lengths[:, None]
        out[_cells(batch, rows, inside)] = embedded.cpu().numpy()[inside]

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _shrink(self, n_tokens: int) -> None:
        """Take smaller batches from now on, since one of `n_tokens` did not fit into memory."""
        self.tokens_per_batch = max(1, min(self.tokens_per_batch, n_tokens // 2))
        logger.warning(
            "Out of memory on %s: going on with batches of %s tokens. Free the device for speed.",
            self.device,
            f"{self.tokens_per_batch:,}",
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def batches_by_length(lengths: IntArray, n_tokens: int) -> Iterator[IntArray]:
    """Rows in batches of like length, longest first, each of at most `n_tokens` padded tokens.

    Longest first, so that a batch too large for the memory fails at once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = _rounded_up(max(1, int(lengths[order[start]])))
        stop = start + max(1, n_tokens // width)
        yield order[start:stop]
        start = stop


def check_texts(texts: Sequence[str], what: str, *, first: int = 0) -> None:
    """Refuse what has nothing to encode.

    Args:
        texts: what to look at.
        what: "query" or "document", for the message.
        first: the number of the first of them.

    Raises:
        InvalidInputError: a text is not a string, or is empty once cleaned.
    """
    for i, text in enumerate(texts, start=first):
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
            "beyond was not read. Split long documents before: add(..., split=True) does, and so do "
            "JaColBERTTextSplitter for LangChain, JaColBERTNodeParser for LlamaIndex, and "
            "jacolbert_rag.encode.splitter for all else.",
            TruncationWarning,
            stacklevel=stacklevel,
        )


def has_text(text: str) -> bool:
    """Whether anything is left to encode once a text is cleaned."""
    # Its first thousand characters nearly always tell; only a long blank is looked at whole.
    return bool(clean(text[:1000]).strip() or clean(text[1000:]).strip())


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        InvalidInputError: this machine has none.
    """
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or str(device) not in (*here, "cuda" if torch.cuda.is_available() else "cpu"):
        raise InvalidInputError(
            f"device is {name!r}, and this machine has {', '.join(here)}. Name one of these, or none for the "
            "best. A GPU that is not listed needs its driver, and a PyTorch that was built for it."
        )
    return device


def _is_out_of_memory(error: RuntimeError) -> bool:
    # CUDA's error has a class; MPS raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def _rounded_up(width: int) -> int:
    return -(-width // WIDTH_STEP) * WIDTH_STEP


def _cells(batch: TokenBatch, rows: IntArray, inside: BoolArray) -> IntArray:
    """Where in the ragged batch the real cells of a padded one lie, in row-major order."""
    cells: IntArray = (batch.offsets[rows][:, None] + np.arange(inside.shape[1]))[inside]
    return cells


def _several(texts: Iterable[str]) -> Iterable[str]:
    """The texts as they are.

    Raises:
        InvalidInputError: it is one string, whose characters would be taken for texts.
    """
    if isinstance(texts, str):
        raise InvalidInputError("texts is one str; expected several, such as [text].")
    return texts


def _in_blocks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while block := list(islice(iterator, size)):
        yield block


def _checked_blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts that have something to encode."""
    n = 0
    for block in _in_blocks(_several(texts), BLOCK_TEXTS):
        check_texts(block, "document", first=n)
        n += len(block)
        yield block
