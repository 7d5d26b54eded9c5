"""A transaction's view of the database, and the files that it names, as a snapshot."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from jacolbert_rag.config import StoredDtype
from jacolbert_rag.errors import IndexCorruptError
from jacolbert_rag.index import database, files
from jacolbert_rag.index.candidates import PooledVectors
from jacolbert_rag.index.database import SegmentRow
from jacolbert_rag.index.files import MEND, FileRecord, FileVanishedError
from jacolbert_rag.index.graph import Graph
from jacolbert_rag.index.layout import (
    CELLS,
    CENTERS,
    CODEBOOK,
    DATABASE_FILE,
    FILES_FOLDER,
    GRAPH,
    LISTS,
    OFFSETS,
    TOKENS,
    WORDS,
    missing,
)
from jacolbert_rag.index.lexical import WordLists
from jacolbert_rag.index.postings import Postings
from jacolbert_rag.index.quantize import BITS, Codec, CodedTokens
from jacolbert_rag.index.snapshot import Segment, Snapshot

logger = logging.getLogger(__name__)


class Loader:
    """Reads states of one index, one at a time. What a state shares with one before is not read again."""

    def __init__(self, folder: Path, dim: int, device: str) -> None:
        """Read nothing yet."""
        self.folder, self.dim, self.device = folder, dim, device
        self._segments: dict[tuple[SegmentRow, str], Segment] = {}
        self._codecs: dict[tuple[str, str], Codec] = {}
        self._pooled: dict[str, PooledVectors] = {}

    def snapshot(self, sql: sqlite3.Connection, number: int, *, is_newest: bool) -> Snapshot:
        """The state that a transaction sees.

        Args:
            sql: in a transaction.
            number: generation of the state.
            is_newest: whether no newer state can have removed a file of this one.

        Raises:
            FileVanishedError: a file is gone, and a newer state may have removed it.
            IndexCorruptError: a file is missing or is not what it should be.
        """
        try:
            return self._snapshot(sql, number, is_newest=is_newest)
        except FileVanishedError as vanished:
            if not is_newest:
                raise
            raise missing(Path(str(vanished))) from None
        except (KeyError, ValueError, TypeError) as error:  # of a value in the database
            raise IndexCorruptError(
                f"{self.folder / DATABASE_FILE} is not readable ({error!r}). {MEND}"
            ) from error

    def _snapshot(self, sql: sqlite3.Connection, number: int, *, is_newest: bool) -> Snapshot:
        state, records = database.read_state(sql), database.files(sql)
        if state.get("generation", 0) != number:  # one was found by an index of the table, which is damaged
            raise ValueError(f"generation {number} and {state.get('generation', 0)}")
        rows = database.segments(sql)
        name = str(state.get("pooled", ""))
        pooled = self._read_pooled(name, state, records, is_newest=is_newest) if name else None
        by = name if pooled is not None else ""
        # Kept as they are read, so that a reader who was overtaken need not begin with the first again.
        for row in reversed(rows):
            if (row, by) not in self._segments:
                self._segments[row, by] = self._read_segment(row, by, state, records, is_newest=is_newest)
        segments = tuple(self._segments[row, by] for row in rows)
        self._segments = {(row, by): self._segments[row, by] for row in rows}
        starts = [0, *(row.stop for row in rows)]
        dead = database.dead_rows(sql)
        gaps = any(row.first_row != start for row, start in zip(rows, starts, strict=False))
        if gaps or (len(dead) and not 0 <= dead[0] <= dead[-1] < starts[-1]):
            raise IndexCorruptError(
                f"{self.folder / DATABASE_FILE} has rows without token embeddings. {MEND}"
            )
        live = np.ones(starts[-1], dtype=np.bool_)
        live[dead] = False
        return Snapshot(number, segments, live, pooled, self.dim, self.device)

    def _read_segment(
        self,
        row: SegmentRow,
        pooled: str,
        state: Mapping[str, Any],
        records: Mapping[str, FileRecord],
        *,
        is_newest: bool,
    ) -> Segment:
        codec = self.codec(row.coding, state, records)
        codes = self._map(records, row.name + TOKENS, np.uint8, (row.n_tokens, codec.width))
        offsets = self._read(records, row.name + OFFSETS, np.int64, (row.n_rows + 1,))
        if offsets[0] != 0 or offsets[-1] != row.n_tokens or np.any(np.diff(offsets) < 0):
            raise IndexCorruptError(
                f"{self.folder / FILES_FOLDER / row.name}{OFFSETS} does not describe {row.n_tokens} tokens "
                f"in {row.n_rows} documents. {MEND}"
            )
        postings = None
        if pooled and row.lists is not None:
            with self._derived(row.lists + LISTS, is_newest=is_newest):
                packed = self._map(records, row.lists + LISTS, np.uint32, (row.n_postings,))
                postings = Postings.unpack(packed, row.n_rows)
        words = None
        if row.words is not None:
            with self._derived(row.words + WORDS, is_newest=is_newest):
                packed = self._map(records, row.words + WORDS, np.uint32, (row.n_words,))
                words = WordLists.unpack(packed, row.n_rows)
        return Segment(row, CodedTokens(codes, offsets, codec), postings, words)

    def _read_pooled(
        self, name: str, state: Mapping[str, Any], records: Mapping[str, FileRecord], *, is_newest: bool
    ) -> PooledVectors | None:
        if name not in self._pooled:
            with self._derived(name + GRAPH, is_newest=is_newest):
                # Voyager follows whatever a damaged graph says, out of its memory too: look at every byte
                # first.
                graph = Graph.load(files.read_bytes(self.folder, self._record(records, name + GRAPH)))
                centers = self._read(records, name + CENTERS, np.float32, (state["n_cells"], self.dim))
                cells = self._read(records, name + CELLS, np.int64, (state["n_cells"] + 1,))
                if len(graph) != state["n_pooled"] or cells[-1] != len(graph) or graph.dim != self.dim:
                    raise ValueError(f"{len(graph)} vectors of {graph.dim} dimensions")
                self._pooled = {name: PooledVectors(graph, centers, cells)}
        return self._pooled.get(name)

    @contextmanager
    def _derived(self, name: str, *, is_newest: bool) -> Iterator[None]:
        """Reading what can be made again: where it is damaged, searches go on without it."""
        try:
            yield
        except (FileVanishedError, IndexCorruptError, ValueError, RuntimeError, KeyError) as error:
            if isinstance(error, FileVanishedError) and not is_newest:
                raise
            why = missing(Path(str(error))) if isinstance(error, FileVanishedError) else error
            logger.warning(
                "%s of the index %s is damaged (%s). Searches go on without it, and take longer; rebuild() "
                "makes it anew.",
                name,
                self.folder,
                str(why).removesuffix(f" {MEND}"),
            )

    def codec(self, coding: str, state: Mapping[str, Any], records: Mapping[str, FileRecord]) -> Codec:
        """How tokens of this coding lie in bytes; residuals have centroids of their own."""
        name = state.get("codebook", "") if coding in BITS else ""
        if (coding, name) not in self._codecs:
            centroids = None
            if coding in BITS:
                shape = (state["n_centroids"], self.dim)
                centroids = self._read(records, name + CODEBOOK, np.float32, shape)
            if coding not in get_args(StoredDtype):
                raise ValueError(f"tokens stored as {coding!r}")
            self._codecs[coding, name] = Codec(cast(StoredDtype, coding), self.dim, centroids)
        return self._codecs[coding, name]

    def _map(
        self, records: Mapping[str, FileRecord], name: str, dtype: Any, shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        return files.map_array(self.folder, self._record(records, name), dtype, shape)

    def _read(
        self, records: Mapping[str, FileRecord], name: str, dtype: Any, shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        return files.read_array(self.folder, self._record(records, name), dtype, shape)

    def _record(self, records: Mapping[str, FileRecord], name: str) -> FileRecord:
        record = records.get(f"{FILES_FOLDER}/{name}")
        if record is None:
            raise IndexCorruptError(f"{self.folder / DATABASE_FILE} does not name {name}. {MEND}")
        return record
