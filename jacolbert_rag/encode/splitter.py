"""Long documents to chunks that a model reads whole, made of whole sentences."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from jacolbert_rag.datatypes import Document, Span
from jacolbert_rag.encode.sentences import Border, borders, characters, cuts, sentences
from jacolbert_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from jacolbert_rag.encode.tokens import Tokenizer

CHUNK_KEY = "chunk"
"""Metadata key under which a chunk says where it is from."""

_CHUNK_SUFFIX = re.compile(r"#[0-9a-f]{12}(?:-[1-9][0-9]*)?")
# Of a text with more characters for each token of the limit, a head is counted first: a token covers 1.5 on
# average, so the head nearly always tells that the text is too long.
HEAD_CHARS_PER_TOKEN = 8
# Text without any mark is taken in steps of a quarter of the budget, so that its chunks are well filled.
STEPS_PER_BUDGET = 4
# In budgets. In 30 texts of 60 entries of examples/corpus, an edit changed up to 12 chunks (95th percentile)
# without landmarks; with them 4, for 4 % more chunks. A reach of 1 gave 3 for 9 % more, one of 2 gave 5.
LANDMARK_REACH = 1.5


class Chunk(NamedTuple):
    """A part of a text, without white space around it: `text == whole[start:end]`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Splitter:
    """Cuts texts into chunks of whole sentences, each within a budget of tokens.

        splitter = Splitter.for_tokenizer(retriever.encoder.tokenizer)
        chunks = list(splitter.documents(documents))

    Attributes:
        count: tokens of a string, as the model's tokenizer counts them.
        budget: most tokens of a chunk, at least 1. Only a single character may have more.
        overlap: most tokens of whole sentences that a chunk repeats from the end of the one before; below
            the budget. Chunks begin where those of a budget smaller by as much do, and repeat what fits.
    """

    count: Callable[[str], int]
    budget: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if not _is_whole(self.budget) or self.budget < 1:
            raise InvalidInputError(
                f"budget is {self.budget!r}; expected a whole number of tokens, at least 1."
            )
        if not _is_whole(self.overlap) or not 0 <= self.overlap < self.budget:
            raise InvalidInputError(
                f"overlap is {self.overlap!r}; expected a whole number of tokens, at least 0 and below the "
                f"budget of {self.budget}. Name a smaller overlap, or a larger budget."
            )

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, *, budget: int | None = None, overlap: int = 0) -> Splitter:
        """A splitter that counts as a model does.

        Args:
            tokenizer: such as `retriever.encoder.tokenizer`.
            budget: None for what the model reads of a document.
            overlap: see `Splitter`.

        Raises:
            InvalidInputError: the model does not read so much of a document.
        """
        most = tokenizer.document_budget
        if budget is not None and budget > most:
            raise InvalidInputError(
                f"budget is {budget}, but the model reads {most} tokens of a document, so the end of a chunk "
                "would not be read. Name fewer, or load the model with a larger document_length."
            )
        return cls(tokenizer.count, most if budget is None else budget, overlap)

    def chunks(self, text: str, *, title: str = "") -> list[Chunk]:
        """Chunks of a text, in order; none where it has no text.

        Args:
            text: any text.
            title: read before each chunk. Its tokens, and one for the joint, come off the budget; a third of
                that is left to the chunks however long the title is.

        Returns:
            Chunks that hold all of the text but white space; without overlap, none of it twice.
        """
        room, measure = self._room(title)
        if _n_tokens(text.strip(), room, measure) <= room:
            return [_chunk(text, 0, len(text))] if text.strip() else []
        overlap = self.overlap * room // self.budget
        cut = _CutText.make(text, room - overlap, self.count, measure)
        found, last = [], 0
        for first, stop in cut.runs():
            begin = cut.begin(last, first, stop, overlap, room) if overlap else first
            if any(unit.n_tokens for unit in cut.units[first:stop]):  # else there is nothing to read
                found.append(_chunk(text, cut.units[begin].start, cut.units[stop - 1].end))
            last = first
        return found

    def documents(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Documents that fit, title included, as they are; chunks of those that do not.

        A chunk's id is `ID#DIGEST`: the document's, and 12 hex digits of title and chunk, so that it stays
        as long as they do. Where a document says the same again, -2, -3 and so on follow. Title and metadata
        are the document's, but a title that takes over two thirds of the budget is cut there;
        `metadata["chunk"]` has the "document_id", and "start" and "end" in its text.

        Raises:
            InvalidInputError: the metadata of a document that must be cut has the key "chunk" already.
        """
        for document in documents:
            fits = _n_tokens(document.passage, self.budget, self.count) <= self.budget
            title = document.title if fits else self._short(document.title)
            chunks = [] if fits else self.chunks(document.text, title=title)
            if not chunks:
                yield document
                continue
            if CHUNK_KEY in document.metadata:
                raise InvalidInputError(
                    f"The metadata of document {document.id!r} has a {CHUNK_KEY!r} already, where its chunks "
                    "would say which part of it they are. Rename that key, or split the document yourself."
                )
            ids = chunk_ids(document.id, [chunk.text for chunk in chunks], title=title)
            for id, (start, end, text) in zip(ids, chunks, strict=True):
                place = {"document_id": document.id, "start": start, "end": end}
                yield Document(id, text, {**document.metadata, CHUNK_KEY: place}, title)

    def _short(self, title: str) -> str:
        """A title, cut where it would leave less than a third of the budget to the text."""
        most = self.budget - self.budget // 3 - 1
        if not title or _n_tokens(title, most, self.count) <= most:
            return title
        low, high = 0, len(title)  # characters that fit, and that do not
        while high - low > 1:
            middle = (low + high) // 2
            fits = _n_tokens(title[:middle], most, self.count) <= most
            low, high = (middle, high) if fits else (low, middle)
        return title[:low].rstrip()

    def _room(self, title: str) -> tuple[int, Callable[[str], int]]:
        """Tokens that a title leaves to a chunk, and what counts the tokens that a text adds to it."""
        if not title:
            return self.budget, self.count
        n_title = self.count(title)
        room = max(self.budget - n_title - 1, self.budget // 3, 1)
        # Joined, title and text may be read as other tokens than apart.
        return room, lambda text: self.count(f"{title} {text}") - n_title


def chunk_ids(document_id: str, texts: Sequence[str], *, title: str = "") -> list[str]:
    """Ids of all chunks of a document, in order, from what they say; see `Splitter.documents`."""
    seen: Counter[str] = Counter()
    ids = []
    for text in texts:
        id = f"{document_id}#{_digest(title, text, size=6).hex()}"
        seen[id] += 1
        ids.append(f"{id}-{seen[id]}" if seen[id] > 1 else id)
    return ids


def is_chunk_of(chunk_id: str, document_id: str) -> bool:
    """Whether an id has the form of the ids of this document's chunks, whatever #s are in either."""
    return (
        chunk_id.startswith(document_id) and _CHUNK_SUFFIX.fullmatch(chunk_id, len(document_id)) is not None
    )


def parent_of(document: Document) -> str | None:
    """Id of the document that a chunk was cut from; None for a document that is no chunk."""
    place = document.metadata.get(CHUNK_KEY)
    parent = place.get("document_id") if isinstance(place, dict) else None
    return parent if isinstance(parent, str) and is_chunk_of(document.id, parent) else None


class _Unit(NamedTuple):
    """What is not cut further: a sentence, or a part of one that is longer than a chunk."""

    start: int
    end: int
    n_tokens: int
    border: Border  # behind it


@dataclass(frozen=True)
class _CutText:
    """A text in units, and the borders at which it is cut into chunks.

    Chunks that are filled one after the other move every border behind an edit, so that each later chunk is
    another text and must be encoded anew. Here borders are chosen by what stands around them: by kind, and of
    equal ones by the hash of their neighbours. A border that is the best far and wide is always taken, so
    nothing beyond the next such landmark moves. From there on, a chunk ends at the best of the borders that
    leave it at least half full; two runs that began at different places soon choose the same one.

    Attributes:
        units: their borders are numbered as they are; border i is behind unit i.
        ranks: of each border, the best first.
        limit: most tokens of a chunk.
        measure: tokens that a text adds to the title.
    """

    text: str
    units: Sequence[_Unit]
    ranks: Sequence[tuple[int, bytes]]
    limit: int
    measure: Callable[[str], int]

    @classmethod
    def make(
        cls, text: str, limit: int, count: Callable[[str], int], measure: Callable[[str], int]
    ) -> _CutText:
        """Cut a text into units of at most so many tokens."""
        units = list(_units(text, limit, count, measure))
        words = [text[unit.start : unit.end].strip() for unit in units]
        ranks = [
            (-unit.border, _digest(before, after, size=8))
            for unit, before, after in zip(units, words, [*words[1:], ""], strict=True)
        ]
        return cls(text, units, ranks, limit, measure)

    def runs(self) -> Iterator[tuple[int, int]]:
        """First unit of each chunk, and the one behind its last."""
        first = 0
        for until in [*self._landmarks(), len(self.units)]:
            while first < until:
                stop = self._stop(first, until)
                yield first, stop
                first = stop

    def _landmarks(self) -> Iterator[int]:
        """Units behind the borders that are the best within reach on both sides, the ends of the text too."""
        reach = LANDMARK_REACH * self.limit
        at = list(accumulate(unit.n_tokens for unit in self.units))
        best: deque[int] = deque()  # borders within reach, each worse than those before it
        n_seen = 0
        for border, n_tokens in enumerate(at):
            while n_seen < len(at) and at[n_seen] - n_tokens <= reach:
                while best and self.ranks[n_seen] < self.ranks[best[-1]]:
                    best.pop()
                best.append(n_seen)
                n_seen += 1
            while n_tokens - at[best[0]] > reach:
                best.popleft()
            if best[0] == border and reach < n_tokens < at[-1] - reach:
                yield border + 1

    def _stop(self, first: int, until: int) -> int:
        """The unit behind the chunk that begins with `first`."""
        stops: list[int] = []
        n_tokens = n_short = 0
        for stop in range(first + 1, until + 1):
            n_tokens += self.units[stop - 1].n_tokens
            if n_tokens > self.limit and stops:
                break
            stops.append(stop)
            n_short += 2 * n_tokens < self.limit
        else:
            if self._n_tokens(first, until) <= self.limit:
                return until
        half_full = sorted(stops[n_short:], key=lambda stop: (self.ranks[stop - 1], -stop))
        ranked = [*half_full, *reversed(stops[:n_short])]
        # Sentences may be read as more tokens together than apart, so what is taken is counted again.
        return next(s for s in ranked if s == first + 1 or self._n_tokens(first, s) <= self.limit)

    def begin(self, last: int, first: int, stop: int, overlap: int, room: int) -> int:
        """Where the chunk of units first to stop begins with what it repeats of the chunk from `last` on."""
        starts, n_tokens = [], 0
        for i in range(first - 1, last, -1):  # the whole chunk before would be there twice
            n_tokens += self.units[i].n_tokens
            if n_tokens > overlap:
                break
            if self.units[i - 1].border >= Border.BARE_LINE:  # a sentence begins
                starts.append(i)
        for start in reversed(starts):
            if self._n_tokens(start, first) <= overlap and self._n_tokens(start, stop) <= room:
                return start
        return first

    def _n_tokens(self, first: int, stop: int) -> int:
        return self.measure(self.text[self.units[first].start : self.units[stop - 1].end].strip())


def _units(
    text: str, limit: int, count: Callable[[str], int], measure: Callable[[str], int]
) -> Iterator[_Unit]:
    """Sentences, and parts of those that have more tokens than the limit."""

    def parts(span: Span, border: Border, cut: Border) -> Iterator[_Unit]:
        """A span as one unit, or cut at the best borders that it has, from this kind on down."""
        words = text[span.start : span.end].strip()
        n_tokens = _n_tokens(words, limit, count)
        # It must fit behind the title too; where it is short, it does.
        if n_tokens <= limit and (measure is count or 2 * n_tokens <= limit or measure(words) <= limit):
            yield _Unit(*span, n_tokens, border)
        elif cut == Border.CHARACTER:
            yield from slices(span, border, max(1, limit // STEPS_PER_BUDGET))
        else:
            ends = [*cuts(text, span, cut), span.end]
            for start, end in zip([span.start, *ends], ends, strict=False):
                behind = border if end == span.end else cut
                yield from parts(Span(start, end), behind, Border(cut - 1))

    def slices(span: Span, border: Border, step: int) -> Iterator[_Unit]:
        """A span in steps of so many characters, or smaller ones where they are too many tokens."""
        for part in characters(text, span, step):
            behind = border if part.end == span.end else Border.CHARACTER
            n_tokens = measure(text[part.start : part.end].strip())
            if n_tokens > limit and step > 1:
                yield from slices(part, behind, step // 2)
            else:
                yield _Unit(*part, n_tokens, behind)

    spans = sentences(text)
    for span, border in zip(spans, borders(text, spans), strict=True):
        yield from parts(span, border, Border.CLAUSE)


def _n_tokens(text: str, limit: int, count: Callable[[str], int]) -> int:
    """Tokens of a text; of one that is beyond the limit, at least as many as show it."""
    n_chars = HEAD_CHARS_PER_TOKEN * limit
    while n_chars < len(text):
        if (n_tokens := count(text[:n_chars])) > limit:
            return n_tokens
        n_chars *= HEAD_CHARS_PER_TOKEN
    return count(text)


def _chunk(text: str, start: int, end: int) -> Chunk:
    """A part of a text without the white space around it."""
    words = text[start:end].lstrip()
    start = end - len(words)
    words = words.rstrip()
    return Chunk(start, start + len(words), words)


def _digest(first: str, second: str, *, size: int) -> bytes:
    content = f"{first}\0{second}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=size).digest()


def _is_whole(number: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
