"""The types that one stage hands to the next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
TokenArray: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]
IntArray: TypeAlias = npt.NDArray[np.int64]
IdArray: TypeAlias = npt.NDArray[np.int32]
Uint32Array: TypeAlias = npt.NDArray[np.uint32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Document:
    """One retrievable unit of text.

    Attributes:
        id: unique within an index; adding the same id again replaces the document.
        text: what is read, and returned with a hit. Kept as given; cleaned only for encoding.
        metadata: any JSON object; stored and returned, never encoded.
        title: read before the text (joined by one space, as JQaRA, JaCWIR and MIRACL are scored).
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    @classmethod
    def from_text(cls, text: str, metadata: Mapping[str, Any] | None = None, title: str = "") -> Document:
        """A document whose id is derived from its content, so that adding it twice stores it once."""
        content = json.dumps(
            [title, text, dict(metadata or {})], ensure_ascii=True, sort_keys=True, default=str
        )
        digest = hashlib.blake2b(content.encode("ascii"), digest_size=8).hexdigest()
        return cls(id=digest, text=text, metadata=dict(metadata or {}), title=title)

    @property
    def passage(self) -> str:
        """The text that the encoder reads: title, a space, text."""
        return f"{self.title} {self.text}" if self.title else self.text


@dataclass(frozen=True)
class Hit:
    """One search result.

    Attributes:
        document: the stored document.
        score: sum over query tokens of the best dot product among the document's tokens, float32.
    """

    document: Document
    score: float

    @property
    def id(self) -> str:
        """The document's id."""
        return self.document.id

    @property
    def text(self) -> str:
        """The document's text, as it was added."""
        return self.document.text

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The document's metadata, as it was added."""
        return self.document.metadata


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that a tokenizer adds to a text.

    Attributes:
        pad: fills short rows of a batch.
        unk: stands for what the vocabulary cannot spell; None where it can spell everything.
        mask: of query augmentation.
        prefix: before a text's own tokens, such as [CLS].
        suffix: behind them, such as [SEP].
    """

    pad: int
    unk: int | None
    mask: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of many texts, ragged: text i is `ids[offsets[i]:offsets[i + 1]]`.

    Attributes:
        ids: (n_tokens,) int32, markers and special tokens included.
        offsets: (n_texts + 1,) int64, rising from 0 to n_tokens.
        n_attended: (n_texts,) int64: how many leading tokens of each text may be attended to. The
            rest are [MASK]s of query augmentation, which are scored but never keys of attention.
        n_cut: (n_texts,) int64: tokens that did not fit into the model and were left out.
    """

    ids: IdArray
    offsets: IntArray
    n_attended: IntArray
    n_cut: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """(n_texts,) int64 tokens of each text."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class TokenEmbeddings:
    """Token embeddings of many texts, ragged: text i is `flat[offsets[i]:offsets[i + 1]]`.

    Attributes:
        flat: (n_tokens, dim) float32 or float16.
        offsets: (n_texts + 1,) int64, rising from 0 to n_tokens.
    """

    flat: TokenArray
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> TokenArray:
        """(tokens of text i, dim), a view."""
        if not 0 <= i < len(self):
            raise IndexError(f"text {i} of {len(self)}")
        return self.flat[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[TokenArray]:
        return (self[i] for i in range(len(self)))

    @property
    def dim(self) -> int:
        """Width of a token embedding."""
        return int(self.flat.shape[1])

    @property
    def lengths(self) -> IntArray:
        """(n_texts,) int64 tokens of each text."""
        return np.diff(self.offsets)

    def take(self, rows: Sequence[int] | IntArray) -> TokenEmbeddings:
        """The texts of these rows, in this order, copied into one matrix."""
        rows = np.asarray(rows, dtype=np.int64)
        starts, lengths = self.offsets[rows], self.lengths[rows]
        offsets = offsets_of(lengths)
        index = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return TokenEmbeddings(self.flat[index], offsets)

    @staticmethod
    def concatenate(parts: Sequence[TokenEmbeddings]) -> TokenEmbeddings:
        """The texts of all parts, in order. At least one part; all of one dim and dtype."""
        lengths = np.concatenate([part.lengths for part in parts])
        return TokenEmbeddings(np.concatenate([part.flat for part in parts]), offsets_of(lengths))


def offsets_of(lengths: IntArray | Sequence[int]) -> IntArray:
    """(n + 1,) int64 offsets of n ragged rows of these lengths."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
