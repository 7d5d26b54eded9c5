"""The types that one stage hands to the next."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rich.text import Text

FloatArray: TypeAlias = npt.NDArray[np.float32]
TokenArray: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]
IntArray: TypeAlias = npt.NDArray[np.int64]
IdArray: TypeAlias = npt.NDArray[np.int32]
Uint32Array: TypeAlias = npt.NDArray[np.uint32]
Uint64Array: TypeAlias = npt.NDArray[np.uint64]
Uint16Array: TypeAlias = npt.NDArray[np.uint16]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

DETAILS_KEY = "jacolbert"  # metadata key of `Hit.details` in what adapters return


# Control characters but line breaks and tabs, and what turns the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


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

    @property
    def fields(self) -> Mapping[str, Any]:
        """What filters ask: the metadata, with the title as "title" where it has no such key itself."""
        return {"title": self.title, **self.metadata} if self.title else self.metadata


class Span(NamedTuple):
    """A part of a text: `text[start:end]`."""

    start: int
    end: int


class TermSpan(NamedTuple):
    """A term of full-text search, and where in a raw text it stands.

    Attributes:
        term: in normalised form, as it is counted.
        span: characters of the raw text.
        weight: how much it says by itself: 1 for a noun, a name or a model number, less for other words, 0
            for a number alone, for する, いる or こと.
    """

    term: str
    span: Span
    weight: float

    @property
    def is_telling(self) -> bool:
        """Whether it says something by itself."""
        return self.weight > 0


class Match(NamedTuple):
    """What a part of a query found in a document.

    Attributes:
        query: characters of the raw query.
        document: characters of the document's text, or of its title.
        in_title: whether `document` counts in the title.
        similarity: dot product of the two token embeddings; 1 for a term of full-text search.
    """

    query: Span
    document: Span
    in_title: bool
    similarity: float


@dataclass(frozen=True)
class Highlight:
    """Which characters of a document answered a query.

    Attributes:
        text: the document's.
        title: the document's.
        marks: characters of the text worth showing, in order, apart from one another.
        title_marks: those of the title.
        matches: what each part of the query found, in the query's order.
        sentence: the sentence of the text that answers best; None where nothing of the text does.
    """

    text: str
    title: str = ""
    marks: tuple[Span, ...] = ()
    title_marks: tuple[Span, ...] = ()
    matches: tuple[Match, ...] = ()
    sentence: Span | None = None

    @property
    def best_sentence(self) -> str:
        """The text of `sentence`; empty where there is none."""
        return self.text[slice(*self.sentence)] if self.sentence is not None else ""

    def html(self, *, whole: bool = True) -> str:
        """Escaped HTML of the text, its marks as <mark>.

        Args:
            whole: all of the text, else the best sentence.
        """
        return "".join(
            f"<mark>{escape(part)}</mark>" if is_marked else escape(part)
            for part, is_marked in self._parts(whole=whole)
        )

    def rich(self, *, style: str = "bold yellow", whole: bool = True) -> Text:
        """The text for a terminal, as rich prints it: without control characters, which would steer it.

        Args:
            style: of the marks.
            whole: all of the text, else the best sentence.
        """
        from rich.text import Text

        return Text.assemble(
            *((printable(part), style if is_marked else "") for part, is_marked in self._parts(whole=whole))
        )

    def _parts(self, *, whole: bool) -> Iterator[tuple[str, bool]]:
        """The text in pieces, each with whether it is marked."""
        at, stop = (0, len(self.text)) if whole else (self.sentence or Span(0, 0))
        for mark in self.marks:
            start, end = max(mark.start, at), min(mark.end, stop)
            if start < end:
                if at < start:
                    yield self.text[at:start], False
                yield self.text[start:end], True
                at = end
        if at < stop:
            yield self.text[at:stop], False


def printable(text: str) -> str:
    """The text for a terminal, as long as it is: what would steer one as spaces, half surrogates as ?."""
    return _STEERING.sub(" ", text.encode("utf-8", "replace").decode("utf-8"))


@dataclass(frozen=True)
class Hit:
    """One search result.

    Attributes:
        document: the stored document.
        score: what hits are ordered by. By token embeddings: the sum over query tokens of the best dot
            product among the document's tokens, float32. By full-text search: BM25. By both: their fusion,
            within [0, 1], which depends on what else was found.
        scores: figures that mean the same for every query, each within [0, 1]: "similarity", "coverage" and
            "confidence" (see `jacolbert_rag.index.fusion`); and "maxsim" and "bm25" as they are, where they
            are known.
        highlight: which characters answered, where it was asked for.
    """

    document: Document
    score: float
    scores: Mapping[str, float] = field(default_factory=dict)
    highlight: Highlight | None = None

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

    def is_below(self, threshold: float | None) -> bool:
        """Whether its confidence is known and below a threshold, such as `JaColBERTRetriever.threshold`'s."""
        known = self.scores.get("confidence")
        return threshold is not None and known is not None and known < threshold

    def details(self) -> dict[str, Any]:
        """Scores and highlight as plain JSON, such as adapters put into metadata under `DETAILS_KEY`.

        "marks", "title_marks" and "sentence" hold [start, end] in characters.
        """
        found: dict[str, Any] = {"score": self.score, "scores": dict(self.scores)}
        if (shown := self.highlight) is not None:
            found["highlight"] = {
                "marks": [list(mark) for mark in shown.marks],
                "title_marks": [list(mark) for mark in shown.title_marks],
                "sentence": list(shown.sentence) if shown.sentence is not None else None,
                "best_sentence": shown.best_sentence,
                "html": shown.html(),
            }
        return found


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
