"""What a cross-encoder reads of a query and a document: ids and token types, each text tokenised once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jacolbert_rag.datatypes import BoolArray, IdArray, IntArray
from jacolbert_rag.encode.encoder import WIDTH_STEP
from jacolbert_rag.encode.fast import FastSubwords
from jacolbert_rag.encode.files import TOKENIZER_CONFIG_FILE, read_json
from jacolbert_rag.encode.tokens import JAPANESE_CLASS, load_subwords
from jacolbert_rag.errors import CheckpointError, TruncationWarning
from training.options import TrainingError

# A query keeps at most this share of a pair, as in FlagEmbedding (inference/reranker/encoder_only/base.py).
QUERY_SHARE = 0.75
MAX_CACHED_TEXTS = 200_000  # whose ids are remembered: with the texts some 250 MB
# Pairs of texts that show what a tokenizer puts around two; a small vocabulary may read some as nothing.
_PROBES = (("日本の湖", "琵琶湖は滋賀県にある。"), ("a", "1"), ("1、2", "東京 a"))


@dataclass(frozen=True)
class PairTemplate:
    """What a tokenizer puts around the texts of a pair.

    Attributes:
        prefix: ids before the query.
        middle: ids between query and document.
        suffix: ids behind the document.
        prefix_types: token types of `prefix`.
        query_type: of the query's tokens.
        middle_types: of `middle`.
        document_type: of the document's tokens.
        suffix_types: of `suffix`.
    """

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    prefix_types: tuple[int, ...]
    query_type: int
    middle_types: tuple[int, ...]
    document_type: int
    suffix_types: tuple[int, ...]

    @property
    def n_special(self) -> int:
        """Ids of a pair that are neither query nor document."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    @property
    def n_types(self) -> int:
        """How many token types a network needs to read such pairs."""
        types = (*self.prefix_types, self.query_type, *self.middle_types, self.document_type)
        return 1 + max(types + self.suffix_types)

    def ids(self, query: IdArray, document: IdArray) -> IdArray:
        """(n_tokens,) int32 of a pair."""
        parts = [self.prefix, query, self.middle, document, self.suffix]
        return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])

    def types(self, n_query: int, n_document: int) -> IdArray:
        """(n_tokens,) int32 token types of a pair whose texts have so many tokens."""
        types = [*self.prefix_types, *[self.query_type] * n_query, *self.middle_types]
        return np.array([*types, *[self.document_type] * n_document, *self.suffix_types], dtype=np.int32)


def find_template(tokenizer: Any) -> PairTemplate:
    """The pair template of a transformers tokenizer, from pairs that it encodes itself.

    Raises:
        TrainingError: there is none: the texts of a pair do not stand in it as they are read alone.
    """
    candidates: set[PairTemplate] | None = None
    for query, document in _PROBES:
        found = set(_templates_of(tokenizer, query, document))
        candidates = found if candidates is None else candidates & found
    if candidates is None or len(candidates) != 1:
        raise TrainingError(
            f"{type(tokenizer).__name__} puts no fixed tokens around the texts of a pair, which are put "
            "together from their own ids here. Name a cross-encoder whose tokenizer does."
        )
    return candidates.pop()


def _templates_of(tokenizer: Any, query: str, document: str) -> Iterator[PairTemplate]:
    """Every way in which the bare ids of two texts stand in the ids of the pair."""
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (query, document))
    # Asked for by name: transformers 5 leaves them out by default (huggingface/transformers#48128).
    pair = tokenizer(query, document, return_token_type_ids=True)
    ids, types = tuple(pair["input_ids"]), tuple(pair["token_type_ids"])
    n, m = len(first), len(second)
    for start in range(len(ids) - n - m + 1):
        for then in range(start + n, len(ids) - m + 1):
            of_query, of_document = set(types[start : start + n]), set(types[then : then + m])
            in_place = ids[start : start + n] == tuple(first) and ids[then : then + m] == tuple(second)
            if in_place and len(of_query) == len(of_document) == 1:
                yield PairTemplate(
                    prefix=ids[:start],
                    middle=ids[start + n : then],
                    suffix=ids[then + m :],
                    prefix_types=types[:start],
                    query_type=of_query.pop(),
                    middle_types=types[start + n : then],
                    document_type=of_document.pop(),
                    suffix_types=types[then + m :],
                )


@dataclass(frozen=True)
class PaddedPairs:
    """A padded batch of pairs.

    Attributes:
        ids: (n_pairs, length) int64.
        types: (n_pairs, length) int64 token types; 0 at padding.
        attended: (n_pairs, length) bool; False at padding.
    """

    ids: IntArray
    types: IntArray
    attended: BoolArray


@dataclass(frozen=True)
class Pairs:
    """Pairs as ids of their texts, put together a batch at a time.

    Attributes:
        queries: for each pair, ids of its query.
        documents: for each pair, ids of its document, within the limit.
        template: what stands around them.
        pad: id of padding.
        limit: most tokens of a pair.
    """

    queries: Sequence[IdArray]
    documents: Sequence[IdArray]
    template: PairTemplate
    pad: int
    limit: int

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def lengths(self) -> IntArray:
        """(n_pairs,) int64 tokens of each pair."""
        own = [
            len(query) + len(document) for query, document in zip(self.queries, self.documents, strict=True)
        ]
        return np.array(own, dtype=np.int64) + self.template.n_special

    def padded(self, rows: Sequence[int] | IntArray) -> PaddedPairs:
        """Some of the pairs, padded to the longest of them."""
        pairs = [(self.queries[i], self.documents[i]) for i in rows]
        parts = [self.template.ids(query, document) for query, document in pairs]
        width = min(-(-max(map(len, parts)) // WIDTH_STEP) * WIDTH_STEP, self.limit)
        ids = np.full((len(parts), width), self.pad, dtype=np.int64)
        types = np.zeros((len(parts), width), dtype=np.int64)
        lengths = np.array([len(part) for part in parts])
        for row, (part, (query, document)) in enumerate(zip(parts, pairs, strict=True)):
            ids[row, : len(part)] = part
            types[row, : len(part)] = self.template.types(len(query), len(document))
        return PaddedPairs(ids, types, np.arange(width) < lengths[:, None])


class PairReader:
    """A checkpoint's tokenizer for pairs; reads each distinct text once.

    Documents are cut where a pair is too long. A query is cut only where it alone takes more than three
    quarters of the length, so that something of the document is always read.
    """

    def __init__(self, folder: Path, max_length: int, *, pad: int | None = None) -> None:
        """Read a tokenizer.

        Args:
            folder: of a checkpoint.
            max_length: most tokens of a pair.
            pad: id of padding; None is the tokenizer's own.

        Raises:
            TrainingError: it cannot be read, or has no pair template.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises its own, its backends' and plain Exceptions
            raise TrainingError(
                f"The tokenizer of {folder} could not be read ({type(error).__name__}: {error}). Copy its "
                "files from the checkpoint again."
            ) from error
        self.template = find_template(tokenizer)
        self.pad = int(tokenizer.pad_token_id or 0) if pad is None else pad
        self.max_length = max_length
        self._query_room = int(QUERY_SHARE * max_length)
        if max_length - self._query_room <= self.template.n_special:
            raise TrainingError(f"No text fits into a --max-length of {max_length}. Pass more, such as 512.")
        self._read = _bare_reader(tokenizer, folder)
        self._cache: dict[str, IdArray] = {}

    def pairs(self, queries: Sequence[str], documents: Sequence[str]) -> Pairs:
        """Pairs of the i-th query and the i-th document."""
        ids = self._ids(dict.fromkeys([*queries, *documents]))
        of_queries = [ids[query][: self._query_room] for query in queries]
        room = self.max_length - self.template.n_special
        of_documents = [
            ids[text][: room - len(query)] for text, query in zip(documents, of_queries, strict=True)
        ]
        if long := {query for query in queries if len(ids[query]) > self._query_room}:
            warnings.warn(
                f"Queries of more than {self._query_room} tokens were cut there: {len(long)}, such as "
                f"{min(long)[:20]!r}…. Pass a greater --max-length to read them whole.",
                TruncationWarning,
                stacklevel=2,
            )
        return Pairs(of_queries, of_documents, self.template, self.pad, self.max_length)

    def _ids(self, texts: Iterable[str]) -> Mapping[str, IdArray]:
        """Ids of each text, as many as a pair has room for."""
        new = [text for text in texts if text not in self._cache]
        if len(self._cache) + len(new) > MAX_CACHED_TEXTS:
            self._cache.clear()
            new = list(texts)
        for text, ids in zip(new, self._read(new), strict=True):
            self._cache[text] = np.array(ids[: self.max_length], dtype=np.int32)
        return self._cache


def _bare_reader(tokenizer: Any, folder: Path) -> Callable[[Sequence[str]], Sequence[Sequence[int]]]:
    """What gives ids of texts without special tokens; the library's own tokenizer where it is as good."""
    if tokenizer.is_fast:
        return FastSubwords(tokenizer, folder).ids_of_many
    if read_json(folder / TOKENIZER_CONFIG_FILE).get("tokenizer_class") == JAPANESE_CLASS:
        try:
            return load_subwords(folder).ids_of_many
        except CheckpointError:  # another dictionary or other subwords, which only transformers reads
            pass
    return lambda texts: [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
