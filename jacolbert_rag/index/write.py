"""A write under way: new files are put in place, and a transaction that has begun will name them."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from jacolbert_rag.config import IndexSettings
from jacolbert_rag.datatypes import BoolArray, IntArray, TokenEmbeddings, offsets_of
from jacolbert_rag.encode.terms import TermMaker
from jacolbert_rag.errors import IndexCorruptError
from jacolbert_rag.index import database, files
from jacolbert_rag.index.candidates import PooledVectors, list_documents
from jacolbert_rag.index.database import SegmentRow
from jacolbert_rag.index.files import MEND, FileRecord
from jacolbert_rag.index.layout import (
    CELLS,
    CENTERS,
    CODEBOOK,
    FILES_FOLDER,
    GRAPH,
    LISTS,
    OFFSETS,
    TOKENS,
    WORDS,
)
from jacolbert_rag.index.lexical import WordLists, list_words
from jacolbert_rag.index.load import Loader
from jacolbert_rag.index.pooling import kmeans
from jacolbert_rag.index.postings import Postings
from jacolbert_rag.index.quantize import BITS, Codec, CodedTokens
from jacolbert_rag.index.snapshot import Segment, Snapshot

LISTED_TOKENS = 131_072  # token embeddings decoded at once while lists are made
MERGED_TOKENS = 1 << 22  # of the largest segment that is made of others: writing it takes about a second
TOKENS_PER_CENTROID = 256  # of a codebook


@dataclass
class Write:
    """What a transaction has begun with, and what it has put in whose place.

    Attributes:
        sql: in a transaction that no other process writes beside.
        snapshot: the state that it began with.
        loader: of the index.
        settings: of the index.
        terms: of the index.
        durable: whether files must survive a power cut.
        records: the files that counted when it began.
        added: files that it has put in place.
        obsolete: names of files that no longer count.
        restated: rows that were there before and have other metadata by now; None once rows are numbered
            anew.
    """

    sql: sqlite3.Connection
    snapshot: Snapshot
    loader: Loader
    settings: IndexSettings
    terms: TermMaker
    durable: bool
    records: Mapping[str, FileRecord]
    added: list[FileRecord] = field(default_factory=list)
    obsolete: list[str] = field(default_factory=list)
    restated: list[int] | None = field(default_factory=list)

    def merge(
        self,
        old: Sequence[Segment],
        live: BoolArray,
        codec: Codec,
        *,
        first_row: int,
        keep_dead: bool = True,
        added: TokenEmbeddings | None = None,
        words: WordLists | None = None,
        listed: bool = True,
    ) -> SegmentRow:
        """One segment of the tokens of others, behind which what is added comes. The others are to be
        forgotten.

        Args:
            old: segments that follow one another.
            live: (n_rows,) rows of the index that are alive; the tokens of others are left out.
            codec: of the new segment.
            first_row: of the new segment.
            keep_dead: whether dead rows keep their numbers, without tokens; else rows move up.
            added: of new rows.
            words: of the new rows.
            listed: whether the rows are listed, where there is something to list them by.

        Raises:
            IndexCorruptError: a file of an old segment is damaged: it is not to be written again as if whole.
        """
        alive = [live[segment.row.first_row : segment.row.stop] for segment in old]
        kept = np.concatenate([np.empty(0, dtype=np.bool_), *alive])
        # The new number of each old row, counted from the first of the segment.
        numbers = np.arange(len(kept)) if keep_dead else np.cumsum(kept) - 1
        parts = [np.where(a, s.tokens.lengths, 0) for a, s in zip(alive, old, strict=True)]
        lengths = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        if not keep_dead:
            lengths = lengths[kept]
        n_old = len(lengths)
        if added is not None:
            lengths = np.concatenate([lengths, added.lengths])
        offsets = offsets_of(lengths)

        def chunks() -> Iterator[npt.NDArray[np.uint8]]:
            for segment, a in zip(old, alive, strict=True):
                self._check(segment.row.name + TOKENS)
                for coded in _in_blocks(segment.tokens, np.flatnonzero(a)):
                    same = coded.codec is codec
                    yield coded.codes if same else codec.encode(coded.codec.decode(coded.codes))
            if added is not None:
                for start in range(0, len(added.flat), LISTED_TOKENS):
                    yield codec.encode(added.flat[start : start + LISTED_TOKENS])

        name = _new_name()
        row = SegmentRow(first_row, len(lengths), int(offsets[-1]), name, codec.dtype)
        self._rows(name + TOKENS, chunks(), (row.n_tokens, codec.width))
        self._array(name + OFFSETS, offsets)
        row = self.with_words(row, self._joined_words(old, alive, numbers, words, row.n_rows))
        pooled = self.snapshot.pooled
        if pooled is None or not listed or not row.n_rows:
            return row
        pairs = []
        start = 0
        for segment, a in zip(old, alive, strict=True):
            mine = numbers[start : start + len(a)]
            listing, rows = self._postings(pooled, segment, a).pairs()
            pairs.append((listing[a[rows]], mine[rows[a[rows]]]))
            start += len(a)
        if added is not None:
            blocks = [(np.arange(n_old, len(lengths)), added.lengths, added.flat)]
            pairs.append(list_documents(pooled, blocks, self.settings.candidates).pairs())
        return self.with_lists(row, Postings.of(*(np.concatenate(part) for part in zip(*pairs, strict=True))))

    def with_lists(self, row: SegmentRow, postings: Postings) -> SegmentRow:
        """The segment with these lists of its rows."""
        name, packed = _new_name(), postings.packed()
        self._array(name + LISTS, packed)
        return replace(row, lists=name, n_postings=len(packed))

    def with_words(self, row: SegmentRow, words: WordLists) -> SegmentRow:
        """The segment with these word lists."""
        name, packed = _new_name(), words.packed()
        self._array(name + WORDS, packed)
        return replace(row, words=name, n_words=len(packed))

    def list_words(self, segment: Segment) -> WordLists:
        """A segment's word lists, made anew of its documents."""
        rows = range(segment.row.first_row, segment.row.stop)
        return words_of(self.sql, rows, self.terms)

    def put(self, old: Sequence[SegmentRow], new: Sequence[SegmentRow]) -> None:
        """Put segments in the place of others, whose files count no more unless a new one has them too."""
        database.replace_segments(self.sql, old, new)
        kept = {name for row in new for name in names_of(row)}
        self.obsolete += [name for row in old for name in names_of(row) if name not in kept]

    def pool(self, pooled: PooledVectors, n_tokens: int) -> None:
        """Put pooled vectors in the place of those that there were."""
        self._drop_pooled()
        name = _new_name()
        graph, path = pooled.graph.to_bytes(), f"{FILES_FOLDER}/{name}{GRAPH}"
        self.added.append(files.write_bytes(self.loader.folder, path, graph, durable=self.durable))
        self._array(name + CENTERS, pooled.centers)
        self._array(name + CELLS, pooled.offsets)
        database.write_state(
            self.sql,
            pooled=name,
            n_pooled=len(pooled),
            n_cells=len(pooled.centers),
            pooled_tokens=n_tokens,
        )

    def forget_pooled(self) -> None:
        """Have no pooled vectors and no lists."""
        for segment in self.snapshot.segments:
            self.put([segment.row], [replace(segment.row, lists=None, n_postings=0)])
        self._drop_pooled()
        database.write_state(self.sql, pooled=None, n_pooled=None, n_cells=None, pooled_tokens=None)

    def _drop_pooled(self) -> None:
        if former := database.read_state(self.sql).get("pooled"):
            self.obsolete += [f"{FILES_FOLDER}/{former}{end}" for end in (GRAPH, CENTERS, CELLS)]

    def codec(self, added: TokenEmbeddings | None = None) -> tuple[Codec, bool]:
        """How new tokens are stored, and whether that has just begun.

        Centroids of residuals want tokens to be found from, so the first ones are stored as float16.
        """
        dtype, config = self.settings.store.dtype, self.settings.store
        state = database.read_state(self.sql)
        if dtype not in BITS or "codebook" in state:
            return self.loader.codec(dtype, state, self.records), False
        n_added = len(added.flat) if added is not None else 0
        if self.snapshot.n_tokens + n_added < config.codebook_tokens:
            return self.loader.codec("float16", state, {}), False
        seed = self.settings.candidates.seed
        rng = np.random.default_rng(seed)
        n = max(config.codebook_tokens, TOKENS_PER_CENTROID * config.n_centroids)
        parts = [sample(self.snapshot, n, rng)]
        if added is not None:
            chosen = np.sort(rng.permutation(n_added)[:n])
            parts.append(added.flat[chosen].astype(np.float16))
        centroids = kmeans(np.concatenate(parts), config.n_centroids, seed=seed)
        name = _new_name()
        self._array(name + CODEBOOK, centroids)
        database.write_state(self.sql, codebook=name, n_centroids=len(centroids))
        written = {record.name: record for record in self.added}
        return self.loader.codec(dtype, database.read_state(self.sql), written), True

    def _postings(self, pooled: PooledVectors, segment: Segment, alive: BoolArray) -> Postings:
        """A segment's lists, made anew where it has none or they are damaged."""
        if segment.postings is not None:
            record = self.records[f"{FILES_FOLDER}/{segment.row.lists}{LISTS}"]
            if files.damage(self.loader.folder, record) is None:
                return segment.postings
        return list_rows(pooled, segment, alive, self.settings)

    def _joined_words(
        self,
        old: Sequence[Segment],
        alive: Sequence[BoolArray],
        numbers: IntArray,
        added: WordLists | None,
        n_rows: int,
    ) -> WordLists:
        """The word lists of a merged segment; see `merge`."""
        parts, moved = [], []
        start = 0
        for segment, a in zip(old, alive, strict=True):
            parts.append(self._words(segment))
            moved.append(np.where(a, numbers[start : start + len(a)], -1).astype(np.int64))
            start += len(a)
        if added is not None:
            parts.append(added)
            moved.append(np.arange(n_rows - len(added.lengths), n_rows, dtype=np.int64))
        return added if added is not None and not old else WordLists.joined(parts, moved, n_rows)

    def _words(self, segment: Segment) -> WordLists:
        """A segment's word lists, made anew where it has none or they are damaged."""
        if segment.words is not None:
            record = self.records[f"{FILES_FOLDER}/{segment.row.words}{WORDS}"]
            if files.damage(self.loader.folder, record) is None:
                return segment.words
        return self.list_words(segment)

    def _check(self, name: str) -> None:
        damage = files.damage(self.loader.folder, self.records[f"{FILES_FOLDER}/{name}"])
        if damage is not None:
            raise IndexCorruptError(f"{damage}. {MEND}")

    def _array(self, name: str, array: npt.NDArray[Any]) -> None:
        self._rows(name, [array], array.shape, array.dtype)

    def _rows(
        self, name: str, chunks: Iterable[npt.NDArray[Any]], shape: tuple[int, ...], dtype: Any = np.uint8
    ) -> None:
        path = f"{FILES_FOLDER}/{name}"
        made = files.write_array(self.loader.folder, path, chunks, shape, dtype, durable=self.durable)
        self.added.append(made)


def names_of(row: SegmentRow) -> list[str]:
    """A segment's files."""
    names = [f"{FILES_FOLDER}/{row.name}{end}" for end in (TOKENS, OFFSETS)]
    names += [f"{FILES_FOLDER}/{row.lists}{LISTS}"] if row.lists is not None else []
    return names + ([f"{FILES_FOLDER}/{row.words}{WORDS}"] if row.words is not None else [])


def tail(segments: Sequence[Segment], size: int) -> list[Segment]:
    """The last segments that a new one of so many tokens takes in.

    Those not larger than what follows, so small adds leave few of them, and a token is copied a few times.
    Large ones are left to compacting, so that no add takes long.
    """
    taken: list[Segment] = []
    for segment in reversed(segments):
        if segment.row.n_tokens > size or segment.row.n_tokens + size > MERGED_TOKENS:
            break
        taken.insert(0, segment)
        size += segment.row.n_tokens
    return taken


def groups(segments: Sequence[Segment], live: BoolArray) -> Iterator[list[Segment]]:
    """Runs of segments whose live tokens make one segment of the largest size that is merged."""
    run: list[Segment] = []
    size = 0
    for segment in segments:
        alive = live[segment.row.first_row : segment.row.stop]
        n_tokens = int(segment.tokens.lengths[alive].sum())
        if run and size + n_tokens > MERGED_TOKENS:
            yield run
            run, size = [], 0
        run.append(segment)
        size += n_tokens
    if run:
        yield run


def list_rows(pooled: PooledVectors, segment: Segment, alive: BoolArray, settings: IndexSettings) -> Postings:
    """Posting lists of a segment's live rows."""
    rows = np.flatnonzero(alive)
    blocks = (
        (rows[start : start + len(coded)], coded.lengths, coded.codec.decode(coded.codes))
        for start, coded in _numbered(_in_blocks(segment.tokens, rows))
    )
    return list_documents(pooled, blocks, settings.candidates)


def sample(snapshot: Snapshot, n: int, rng: np.random.Generator) -> npt.NDArray[np.float16]:
    """About n token embeddings, a fair share of every segment; dead rows' are among them."""
    share = min(1.0, n / max(1, snapshot.n_tokens))
    filled = [segment for segment in snapshot.segments if segment.row.n_tokens]
    sizes = [max(1, round(share * segment.row.n_tokens)) for segment in filled]
    tokens = np.empty((sum(sizes), snapshot.dim), dtype=np.float16)  # at once: it may be a gigabyte
    start = 0
    for segment, size in zip(filled, sizes, strict=True):
        chosen = np.sort(rng.permutation(segment.row.n_tokens)[:size])
        for first in range(0, size, LISTED_TOKENS):
            part = segment.tokens.codes[chosen[first : first + LISTED_TOKENS]]
            tokens[start : start + len(part)] = segment.tokens.codec.decode(part)
            start += len(part)
    return tokens


def words_of(sql: sqlite3.Connection, rows: range, terms: TermMaker) -> WordLists:
    """Word lists of a run of rows, made of the documents that a transaction sees; dead rows have none."""
    stored = database.by_row(sql, rows)
    return list_words([stored.get(row) for row in rows], terms)


def _in_blocks(tokens: CodedTokens, rows: IntArray) -> Iterator[CodedTokens]:
    """These rows in blocks of about `LISTED_TOKENS` tokens, copied."""
    ends = np.cumsum(tokens.lengths[rows])
    start = 0
    while start < len(rows):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + LISTED_TOKENS, side="right")))
        yield tokens.take(rows[start:stop])
        start = stop


def _numbered(blocks: Iterable[CodedTokens]) -> Iterator[tuple[int, CodedTokens]]:
    start = 0
    for block in blocks:
        yield start, block
        start += len(block)


def _new_name() -> str:
    return uuid.uuid4().hex[:16]
