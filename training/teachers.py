"""Teachers: each gives a query and its documents scores to learn from.

Any cross-encoder of transformers with one label, any ColBERT, and the library's full-text search. `mix` makes
one teacher of several.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor, nn

from jacolbert_rag.config import LexicalConfig
from jacolbert_rag.datatypes import IntArray, Uint64Array
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.encoder import (
    BLOCK_TEXTS,
    TOKENS_PER_BATCH,
    Encoder,
    batches_by_length,
)
from jacolbert_rag.encode.fast import TOKENIZER_FILES
from jacolbert_rag.encode.files import (
    CONFIG_FILE,
    DEFAULT_MODEL,
    TOKENIZER_CONFIG_FILE,
    has_weights,
    read_json,
    resolve_folder,
)
from jacolbert_rag.encode.model import n_positions, quiet_loading
from jacolbert_rag.encode.terms import TERMS_VERSION, TermMaker
from jacolbert_rag.errors import CheckpointError
from jacolbert_rag.index.lexical import key_of
from jacolbert_rag.index.maxsim import maxsim
from training.options import TrainingError, console
from training.pair_reader import PaddedPairs, PairReader
from training.state import digest

DEFAULT_CROSS_ENCODER = "BAAI/bge-reranker-v2-m3"  # the teacher of JaColBERTv2.5
MAX_LENGTH = 512

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Precision, Literal["float32", "bfloat16", "float16"]] = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}
ScoreArray: TypeAlias = npt.NDArray[np.float64]
Advance: TypeAlias = Callable[[int], None]  # is told how many pairs were just scored


def _silent(n: int) -> None:
    pass


class Teacher(Protocol):
    """What scores pairs of a query and a document; higher is better.

    Attributes:
        settings: what its scores depend on; JSON types.
    """

    settings: Mapping[str, Any]

    def score(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]], advance: Advance = _silent
    ) -> list[ScoreArray]:
        """Score each query's own documents.

        Args:
            queries: texts.
            documents: for each query, texts.
            advance: called as pairs get done.

        Returns:
            For each query (n_docs,) float64.
        """


class CrossEncoder:
    """A transformer that reads query and document together; its scores are its logits as they are."""

    def __init__(
        self,
        name: str = DEFAULT_CROSS_ENCODER,
        *,
        max_length: int = MAX_LENGTH,
        precision: Precision | None = None,
        device: str | None = None,
        tokens_per_batch: int | None = None,
    ) -> None:
        """Load a sequence-classification checkpoint with one label.

        Args:
            name: a folder, or a hub id, such as cl-nagoya/ruri-v3-reranker-310m.
            max_length: most tokens of a pair; never more than the network has positions.
            precision: what the network computes in; None is fp16 on CUDA, else fp32. The head on top is
                always fp32: bfloat16 logits between 4 and 8 lie 1/32 apart, so that documents would tie.
            device: None is CUDA where there is one, else the CPU.
            tokens_per_batch: of a padded batch; None is what the device is fast with.

        Raises:
            TrainingError: it is not there, is no such checkpoint, or wants code of its own to be run.
        """
        folder = _folder_of(name)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        precision = precision or ("fp16" if self.device.type == "cuda" else "fp32")
        model = _load_classifier(folder)
        positions = n_positions(model.base_model)
        length = max_length if positions is None else min(max_length, positions)
        # The network's own padding, where it has one: RoBERTa and its kin count positions by it.
        self._reader = PairReader(folder, length, pad=getattr(model.config, "pad_token_id", None))
        self._typed = _takes_types(model, folder)
        n_types = getattr(model.config, "type_vocab_size", 0)
        if self._typed and self._reader.template.n_types > n_types:
            raise TrainingError(
                f"The tokenizer of {folder} gives {self._reader.template.n_types} token types, and its "
                f"network has {n_types}. Take both from the same checkpoint."
            )
        model.to(self.device, getattr(torch, DTYPES[precision])).eval()
        _widen_head(model)
        self._model = model
        self.tokens_per_batch = tokens_per_batch or TOKENS_PER_BATCH.get(self.device.type, 2_048)
        self.settings: Mapping[str, Any] = {
            "fingerprint": _fingerprint(folder),
            "max_length": length,
            "precision": precision,
        }

    def score(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]], advance: Advance = _silent
    ) -> list[ScoreArray]:
        """See `Teacher`."""
        counts = [len(own) for own in documents]
        repeated = [query for query, n in zip(queries, counts, strict=True) for _ in range(n)]
        pairs = self._reader.pairs(repeated, [text for own in documents for text in own])
        scores = np.empty(len(pairs), dtype=np.float64)
        for rows in batches_by_length(pairs.lengths, self.tokens_per_batch):
            scores[rows] = self._logits(pairs.padded(rows))
            advance(len(rows))
        return np.split(scores, np.cumsum(counts)[:-1]) if counts else []

    @torch.inference_mode()
    def _logits(self, batch: PaddedPairs) -> ScoreArray:
        """(n_pairs,) float64."""
        inputs = {"input_ids": batch.ids, "attention_mask": batch.attended.astype(np.int64)}
        if self._typed:
            inputs["token_type_ids"] = batch.types
        tensors = {key: torch.from_numpy(value).to(self.device) for key, value in inputs.items()}
        logits: Tensor = self._model(**tensors).logits
        return logits[:, 0].double().cpu().numpy()


class ColBERTTeacher:
    """A late-interaction model, of any format that the library reads."""

    def __init__(
        self,
        name: str | None = None,
        *,
        precision: Precision | None = None,
        device: str | None = None,
        tokens_per_batch: int | None = None,
    ) -> None:
        """Load a ColBERT.

        Args:
            name: a folder or a hub id; None is the bundled model.
            precision: what the network computes in; None is fp16 on CUDA, else fp32.
            device: None is CUDA where there is one, else the CPU.
            tokens_per_batch: of a padded batch; None is what the device is fast with.

        Raises:
            CheckpointError: it is not there, or is no ColBERT.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        precision = precision or ("fp16" if device.startswith("cuda") else "fp32")
        loaded = checkpoint.load(name)
        self._encoder = Encoder(loaded, device=device, dtype=DTYPES[precision])
        self._encoder.tokens_per_batch = tokens_per_batch or self._encoder.tokens_per_batch
        self.settings: Mapping[str, Any] = {
            "fingerprint": loaded.fingerprint,
            "query_length": loaded.config.query_length,
            "document_length": loaded.config.document_length,
            "precision": precision,
        }

    def score(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]], advance: Advance = _silent
    ) -> list[ScoreArray]:
        """See `Teacher`. Each distinct document is read once; memory holds a block of them."""
        scores = [np.empty(len(own), dtype=np.float64) for own in documents]
        distinct = {query: row for row, query in enumerate(dict.fromkeys(queries))}
        batch = self._encoder.tokenizer.queries(distinct)
        embedded = self._encoder.embed(batch, keep=np.ones(len(batch.ids), dtype=np.bool_))
        # In the order of their first use, so that most queries find all of their documents in one block.
        places: dict[str, list[tuple[int, int]]] = {}
        for i, own in enumerate(documents):
            for j, text in enumerate(own):
                places.setdefault(text, []).append((i, j))
        wanted = list(places.values())
        first = 0
        for block, _ in self._encoder.blocks(places, size=BLOCK_TEXTS):
            of_query: dict[int, list[tuple[int, int]]] = {}
            for row in range(len(block)):
                for i, j in wanted[first + row]:
                    of_query.setdefault(i, []).append((j, row))
            for i, found in of_query.items():
                columns, rows = zip(*found, strict=True)
                own_tokens = block.take(rows)
                query = embedded[distinct[queries[i]]].astype(np.float32)
                scores[i][list(columns)] = maxsim(query, own_tokens, device=str(self._encoder.device))
                advance(len(columns))
            first += len(block)
        return scores


class BM25Teacher:
    """The library's full-text scores of given documents, with the statistics of a whole corpus.

    The formula is that of `jacolbert_rag.index.lexical`, which scores a corpus and needs its word lists in
    memory; here documents are scored by their own words, and what is kept of the corpus are the number of
    documents with each term and the mean length, so that mMARCO's nine million fit.
    """

    def __init__(self, corpus: Mapping[str, str]) -> None:
        """Take a corpus: texts by id, all of them. It is counted when it is first needed."""
        settings = LexicalConfig()
        self._corpus = corpus
        self._k1, self._b = settings.k1, settings.b
        self._terms = TermMaker(fold=settings.fold)
        self._counted: CorpusCounts | None = None
        self.settings: Mapping[str, Any] = {
            "k1": settings.k1,
            "b": settings.b,
            "fold": settings.fold,
            "terms": TERMS_VERSION,
        }

    def count(self, cache: Path | None = None) -> CorpusCounts:
        """Count the corpus, once.

        Args:
            cache: file to keep the counts in; read in place of counting where it is there, so it must be of
                the same corpus.
        """
        if self._counted is None and cache is not None and cache.exists():
            with np.load(cache, allow_pickle=False) as stored:
                n_docs, n_terms = stored["totals"].tolist()
                self._counted = CorpusCounts(stored["keys"], stored["having"], n_docs, n_terms)
        if self._counted is None:
            self._counted = found = _count(self._corpus, self._terms)
            if cache is not None:
                new = cache.with_name(f"new.{cache.name}")
                totals = np.array([found.n_docs, found.n_terms], dtype=np.int64)
                np.savez(new, keys=found.keys, having=found.having, totals=totals)
                new.rename(cache)
        return self._counted

    def score(
        self, queries: Sequence[str], documents: Sequence[Sequence[str]], advance: Advance = _silent
    ) -> list[ScoreArray]:
        """See `Teacher`. 0 for a document that shares no term with its query, above 0 for all others."""
        counts = self.count()
        texts = dict.fromkeys(text for own in documents for text in own)
        of_documents = {text: Counter(self._terms.terms(text)) for text in texts}
        scores = []
        for query, own in zip(queries, documents, strict=True):
            times = Counter(self._terms.terms(query))
            idf = counts.idf(list(times))
            found = [self._of_pair(times, idf, of_documents[text]) for text in own]
            scores.append(np.array(found, dtype=np.float64))
            advance(len(own))
        return scores

    def _of_pair(self, times: Counter[str], idf: Mapping[str, float], document: Counter[str]) -> float:
        norm = self._k1 * (1 - self._b + self._b * document.total() / self.count().mean_length)
        shared = sorted(times.keys() & document.keys())  # in order, so that sums do not differ by a bit
        return sum(times[term] * idf[term] * document[term] / (document[term] + norm) for term in shared)


@dataclass(frozen=True)
class CorpusCounts:
    """What BM25 takes from a corpus.

    Attributes:
        keys: (n,) uint64 of its terms, rising.
        having: (n,) int64: how many documents have each.
        n_docs: documents.
        n_terms: of all documents, each as often as it occurs.
    """

    keys: Uint64Array
    having: IntArray
    n_docs: int
    n_terms: int

    @property
    def mean_length(self) -> float:
        """Terms of a document."""
        return max(self.n_terms / max(self.n_docs, 1), 1.0)

    def idf(self, terms: Sequence[str]) -> Mapping[str, float]:
        """Of each term; one that no document has is the rarest."""
        keys = np.array([key_of(term) for term in terms], dtype=np.uint64)
        having = np.zeros(len(keys), dtype=np.int64)
        if len(self.keys):
            places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            having = np.where(self.keys[places] == keys, self.having[places], 0)
        values = np.log1p((self.n_docs - having + 0.5) / (having + 0.5))
        return dict(zip(terms, values.tolist(), strict=True))


def _count(corpus: Mapping[str, str], terms: TermMaker) -> CorpusCounts:
    having: Counter[int] = Counter()
    n_terms = 0
    for text in track(corpus.values(), "counting terms", total=len(corpus), console=console):
        found = terms.terms(text)
        n_terms += len(found)
        having.update({key_of(term) for term in found})
    keys = np.fromiter(having.keys(), dtype=np.uint64, count=len(having))
    counts = np.fromiter(having.values(), dtype=np.int64, count=len(having))
    order = np.argsort(keys)
    return CorpusCounts(keys[order], counts[order], len(corpus), n_terms)


# Several teachers.


def min_max(scores: ScoreArray) -> ScoreArray:
    """(n_docs,) scores stretched to [0, 1]; equal ones become zeros."""
    if not len(scores) or scores.max() == scores.min():
        return np.zeros(len(scores), dtype=np.float64)
    stretched: ScoreArray = (scores - scores.min()) / (scores.max() - scores.min())
    return stretched


def mix(scores: Sequence[ScoreArray], weights: Sequence[float]) -> ScoreArray:
    """One score of several teachers': the weighted mean after min-max (JaColBERTv2.5, section 3.7).

    Args:
        scores: of each teacher, (n_docs,) for the same documents of one query.
        weights: of each teacher, above 0.

    Returns:
        (n_docs,) float64 within [0, 1]. A teacher that scores all alike adds 0.
    """
    total = np.zeros(len(scores[0]), dtype=np.float64)
    for own, weight in zip(scores, weights, strict=True):
        total += weight * min_max(own)
    return total / sum(weights)


# Loading.


def _folder_of(name: str) -> Path:
    """A folder as it is, or the one that a hub id is fetched to."""
    if not Path(name).expanduser().is_dir() and (name == DEFAULT_MODEL or name.count("/") != 1):
        raise TrainingError(
            f"{name!r} is no folder. Name that of a cross-encoder, or a hub id such as "
            f"{DEFAULT_CROSS_ENCODER}."
        )
    try:
        return resolve_folder(name, is_complete=has_weights)
    except CheckpointError as error:
        raise TrainingError(
            f"The cross-encoder {name!r} cannot be had: it is no folder, and not on the hub or not within "
            f"reach. Name a folder that has {CONFIG_FILE} and safetensors, or look at the network."
        ) from error


def _load_classifier(folder: Path) -> Any:
    """A network with one label, float32, on the CPU."""
    from transformers import AutoModelForSequenceClassification

    config = read_json(folder / CONFIG_FILE)
    n_labels = len(config.get("id2label") or {}) or config.get("num_labels", 2)
    if n_labels != 1:
        raise TrainingError(
            f"{folder / CONFIG_FILE} describes {n_labels} labels; a cross-encoder that scores pairs has 1. "
            "Name another checkpoint."
        )
    try:
        with quiet_loading():
            model, found = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and its own
        reason = (str(error).splitlines() or [""])[0]
        raise TrainingError(
            f"{folder} is no sequence classifier that transformers reads ({type(error).__name__}: {reason}). "
            f"It must have {CONFIG_FILE} and safetensors, and no code of its own."
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise TrainingError(
            f"{folder} lacks {len(missing)} tensors of a {type(model).__name__}, such as {missing[0]}: it is "
            "no trained cross-encoder. Name one, or train it with training.reranker."
        )
    return model


def _takes_types(model: Any, folder: Path) -> bool:
    """Whether a network was trained with token types.

    Its tokenizer's class does not tell: transformers 5 dropped them from the defaults of
    BertJapaneseTokenizer and others, whose published cross-encoders were trained with two types by
    transformers 4 (huggingface/transformers#48128).
    """
    stated = read_json(folder / TOKENIZER_CONFIG_FILE).get("model_input_names")
    if stated is not None and "token_type_ids" not in stated:
        return False
    accepted = "token_type_ids" in inspect.signature(model.forward).parameters
    return accepted and (getattr(model.config, "type_vocab_size", 0) or 0) > 1


def _widen_head(model: Any) -> None:
    """Have what stands on top of the transformer compute in float32."""

    def widen(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args
        )

    for child in model.children():
        if child is not model.base_model:
            child.float().register_forward_pre_hook(widen)


def _fingerprint(folder: Path) -> str:
    """16 hex digits of weights, configuration and tokenizer."""
    names = sorted({CONFIG_FILE, *TOKENIZER_FILES, *(path.name for path in folder.glob("*.safetensors"))})
    return digest([folder / name for name in names if (folder / name).is_file()])
