"""What training reads: texts by id, and tuples of a query with its documents, from files or from the hub.

Texts (queries or a corpus) are named by one of

    DIR                       a folder in BEIR layout: its corpus.jsonl or queries.jsonl, packed or not
    FILE.jsonl, FILE.tsv      rows {"_id" or "id", "text", "title"?}; or id, tab, text; packed (.gz) or not
    hub:NAME[/CONFIG][@SPLIT] rows of a dataset, whose columns are looked up; without an id column the id is
                              the row number, as in hpprc/mmarco-ja; FILE.parquet is read alike

Tuples by FILE.jsonl, FILE.parquet or hub:…; a row is one of

    {"query_id", "document_ids", "scores"?, "n_positives"?, "source"?}
    {"query", "passages", "scores"?, "n_positives"?, "source"?}     texts inline
    [query id, [document id, score], …]                              as colbert-ai has it

The first `n_positives` documents (1 where nothing is said) are labelled as answers.
"""

from __future__ import annotations

import ast
import gzip
import json
import lzma
import math
import mmap
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from jacolbert_rag.datatypes import Document, IntArray
from jacolbert_rag.errors import OptionalDependencyError
from training.options import TrainingError

HUB = "hub:"
Kind = Literal["corpus", "queries"]
# Columns of the published datasets, in the order in which they are looked for. Those of
# answerdotai/MMARCO-japanese-32-scored-triplets are documented nowhere.
ID_COLUMNS: Mapping[Kind, Sequence[str]] = {
    "corpus": ("_id", "docid", "doc_id", "document_id", "pid", "passage_id", "passage_row_id", "id"),
    "queries": ("_id", "query_id", "qid", "q_id", "id"),
}
TEXT_COLUMNS: Mapping[Kind, Sequence[str]] = {
    "corpus": ("text", "body", "passage", "description", "Answer"),
    "queries": ("query", "question", "Question", "anc", "text"),
}
QUERY_ID_COLUMNS = ("query_id", "qid", "q_id", "queries", "query")
DOCUMENT_IDS_COLUMNS = ("document_ids", "doc_ids", "pids", "passage_ids", "documents", "passages")
SCORES_COLUMNS = ("scores", "score", "teacher_scores", "logits")
_NUMBERED = re.compile(r".*[0-9]")
BLOCK = 1_000  # rows of a dataset that are read at once
DATA_KEYS = ("tuples", "queries", "corpus", "n-ways", "source", "limit", "sample", "name")
SAMPLE_SEED = 12345

OnMissing = Literal["refuse", "skip"]
Texts = Mapping[str, str]


@dataclass(frozen=True)
class Example:
    """One query with its documents.

    Attributes:
        query: text.
        documents: texts; the first `n_positives` answer the query.
        scores: teacher scores of the documents, or None.
        n_positives: 0 where none is labelled.
        source: batches hold one source each, so that in-batch negatives are of one kind.
        id: of the query, for messages.
    """

    query: str
    documents: tuple[str, ...]
    scores: tuple[float, ...] | None
    n_positives: int
    source: str
    id: str


@dataclass(frozen=True)
class Row:
    """A tuple as it is stored: ids where texts are elsewhere, texts where they are inline."""

    query: str
    documents: tuple[str, ...]
    scores: tuple[float, ...] | None
    n_positives: int
    source: str
    inline: bool


def read_texts(name: str, kind: Kind) -> Texts:
    """Texts by id; a document's is its title, a space, its text.

    Datasets and plain .tsv files stay on disk; of others memory holds all texts.

    Raises:
        TrainingError: it cannot be read.
    """
    if _is_dataset(name):
        return _HubTexts(name, kind)
    path = Path(name)
    path = packed(path / f"{kind}.jsonl" if path.is_dir() else path)
    if not path.is_file():
        raise TrainingError(f"{path} is missing. Name a BEIR folder, a .jsonl or .tsv file, or {HUB}DATASET.")
    if path.name.endswith(".tsv"):
        return _TsvTexts(path)
    if path.name.endswith((".tsv.gz", ".tsv.xz")):
        return dict(_tsv_rows(path))
    return {id: _text_of(kind, row["text"], row.get("title")) for id, row in rows_by_id(path).items()}


def rows_by_id(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of JSON lines with a text, packed or not, by their "_id" or "id".

    Raises:
        TrainingError: there is no such file, or a row lacks either.
    """
    rows: dict[str, dict[str, Any]] = {}
    for n, row in enumerate(read_json_lines(path), start=1):
        found = row if isinstance(row, dict) else {}
        id = found.get("_id", found.get("id"))
        if id is None or not isinstance(found.get("text"), str):
            raise TrainingError(f'{path}, row {n}: expected "_id" (or "id") and "text"; found {_keys(row)}.')
        rows[str(id)] = found
    return rows


def _text_of(kind: Kind, text: str, title: str | None) -> str:
    """What the network reads of a row; a query's title would be its answer's."""
    return Document("", text, title=title or "").passage if kind == "corpus" else text


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Query id -> document id -> score, from a BEIR file: header, then query, document, score."""
    qrels: dict[str, dict[str, int]] = {}
    with open_text(packed(path)) as file:
        for n, line in enumerate(file, start=1):
            try:
                query, document, score = line.rstrip("\r\n").split("\t")
                # A file without its header loses no judgement.
                if n > 1 or score.isdecimal():
                    qrels.setdefault(query, {})[document] = int(score)
            except ValueError as error:
                raise TrainingError(
                    f"{path}, line {n}: expected query-id, corpus-id, score; found {line!r:.60}."
                ) from error
    return qrels


def read_rows(path: str) -> Sequence[Row]:
    """Tuples of a file or of the hub, as they are stored.

    Datasets stay on disk; of JSON lines memory holds all rows, some 3 KB for each of 32 scored ids.

    Raises:
        TrainingError: it cannot be read, or a row is none of the known ones.
    """
    if _is_dataset(path):
        return _HubRows(path)
    file = packed(Path(path))
    if not file.is_file():
        raise TrainingError(f"{file} is missing. training.mine and training.score write such files.")
    return [parse_row(row, f"{file}, row {n}") for n, row in enumerate(read_json_lines(file), start=1)]


def parse_row(row: Any, where: str) -> Row:
    """One row of tuples.

    Raises:
        TrainingError: it is none of the known ones, or its parts do not fit together.
    """
    try:
        if isinstance(row, list):
            ids, of_ids = zip(*row[1:], strict=True)
            row = {"query_id": row[0], "document_ids": ids, "scores": of_ids}
        inline = "passages" in row
        documents = tuple(map(str, _items(row["passages" if inline else "document_ids"])))
        scores = tuple(map(float, _items(row["scores"]))) if row.get("scores") is not None else None
        query = str(row["query" if inline else "query_id"])
        found = Row(
            query, documents, scores, int(row.get("n_positives", 1)), str(row.get("source") or ""), inline
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise TrainingError(
            f'{where}: expected {{"query_id", "document_ids", "scores"}}, {{"query", "passages", "scores"}} '
            f"or [query id, [document id, score], …]; found {str(row)[:80]!r} "
            f"({type(error).__name__}: {error})."
        ) from error
    if scores is not None and len(scores) != len(documents):
        raise TrainingError(f"{where}: {len(documents)} documents, {len(scores)} scores. Give each a score.")
    if scores is not None and not all(map(math.isfinite, scores)):
        raise TrainingError(f"{where}: the scores {scores} are not all finite. Score that tuple anew.")
    if not 0 <= found.n_positives <= len(documents):
        raise TrainingError(
            f"{where}: n_positives is {found.n_positives}; expected 0 to {len(documents)}, the documents."
        )
    return found


def _items(value: Any) -> Sequence[Any]:
    """A list; not a string, whose items would be letters."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"a list is wanted, found {value!r:.40}")
    return value


class Tuples(Sequence[Example]):
    """Examples of one source, whose texts are looked up when they are asked for."""

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        name: str,
        queries: Texts | None = None,
        corpus: Texts | None = None,
        on_missing: OnMissing = "refuse",
        source: str | None = None,
        limit: int | None = None,
        sample: int | None = None,
    ) -> None:
        """Take rows, and look whether their texts are there.

        Args:
            rows: from `read_rows`.
            name: the source of rows that name none.
            queries: texts of their query ids.
            corpus: texts of their document ids.
            on_missing: a row whose query or document is not there is refused, or left out and counted.
            source: take the rows of this one alone.
            limit: of them take the first ones only.
            sample: of these draw so many, always the same ones.

        Raises:
            TrainingError: no row is of that source; or an id has no text, and `on_missing` refuses it.
        """
        self.name = name
        self._rows, self._queries, self._corpus = rows, queries or {}, corpus or {}
        self._order: IntArray = np.arange(len(rows))[: limit if source is None else None]  # always ascending
        if source is not None:
            sources = [row.source for row in self._stored()]
            self._order = np.flatnonzero([each == source for each in sources])[:limit]
            if not len(self._order):
                there_are = ", ".join(sorted(set(sources)))
                raise TrainingError(f"{name}: no tuple is of the source {source!r}. There are {there_are}.")
        if sample is not None and sample < len(self._order):
            drawn = np.random.default_rng(SAMPLE_SEED).permutation(len(self._order))[:sample]
            self._order = self._order[np.sort(drawn)]
        missing = [self._missing(row) for row in self._stored()]
        there = np.array([what is None for what in missing], dtype=np.bool_)
        asked, self._order = self._order, self._order[there]
        self.n_missing = len(asked) - len(self._order)
        if self.n_missing and on_missing == "refuse":
            row, what = next(
                (i + 1, what) for i, what in zip(asked, missing, strict=True) if what is not None
            )
            raise TrainingError(
                f"{name}: {self.n_missing} of {len(asked)} tuples name texts that are not there, the first "
                f"in row {row}: {what}. Name the corpus and queries that they were made from, or pass "
                "--on-missing skip."
            )

    def _missing(self, row: Row) -> str | None:
        """What is not there of a row; None where all is."""
        if row.inline:
            return None
        if row.query not in self._queries:
            return f"query {row.query!r}"
        return next((f"document {id!r}" for id in row.documents if id not in self._corpus), None)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: int) -> Example:  # type: ignore[override]
        return self.example(self._rows[int(self._order[i])])

    def keep(self, unusable: Callable[[Row], str | None]) -> Counter[str]:
        """Leave out tuples for which a reason is given, and count the reasons."""
        reasons = [unusable(row) for row in self._stored()]
        self._order = self._order[np.flatnonzero([reason is None for reason in reasons])]
        return Counter(reason for reason in reasons if reason is not None)

    def by_source(self) -> list[Tuples]:
        """The same tuples, those of each source by themselves, in the order in which sources first come."""
        order: dict[str, list[int]] = {}
        for i, row in zip(self._order.tolist(), self._stored(), strict=True):
            order.setdefault(row.source or self.name, []).append(i)
        parts = []
        for name, rows in order.items():
            part = copy(self)
            part.name, part._order, part.n_missing = name, np.array(rows, dtype=np.int64), 0
            parts.append(part)
        return parts

    def _stored(self) -> Iterator[Row]:
        """The rows from front to back, which a dataset gives many times faster than one by one."""
        wanted = np.zeros(self._order.max(initial=-1) + 1, dtype=np.bool_)
        wanted[self._order] = True
        return compress(self._rows, wanted.tolist())

    def row(self, i: int) -> Row:
        """A tuple as it is stored."""
        return self._rows[int(self._order[i])]

    def example(self, row: Row) -> Example:
        """A row with its texts."""
        source = row.source or self.name
        if row.inline:
            return Example(row.query, row.documents, row.scores, row.n_positives, source, row.query[:40])
        texts = tuple(self._corpus[id] for id in row.documents)
        return Example(self._queries[row.query], texts, row.scores, row.n_positives, source, row.query)


@dataclass(frozen=True)
class Source:
    """Tuples to learn from, and how many documents of each."""

    tuples: Tuples
    n_ways: int | None  # None where the step's own holds


def read_data(spec: str, *, on_missing: OnMissing, limit: int | None) -> Source:
    """Tuples with their texts, as one option names them.

    Args:
        spec: a file of tuples with inline texts, or key=value pairs parted by commas: tuples (needed),
            queries and corpus (as `read_texts` takes them), n-ways, source, limit, sample (as `Tuples` takes
            them), name (else that of the tuples).
        on_missing: what becomes of a tuple whose texts are not there.
        limit: take the first tuples only; the smaller of this and the spec's own holds.

    Raises:
        TrainingError: the spec cannot be read, or what it names cannot.
    """
    settings = settings_of(spec)
    limits = [n for n in (limit, _count(settings, "limit", spec)) if n is not None]
    tuples = Tuples(
        read_rows(settings["tuples"]),
        name=settings.get("name", settings["tuples"]),
        queries=read_texts(settings["queries"], "queries") if "queries" in settings else None,
        corpus=read_texts(settings["corpus"], "corpus") if "corpus" in settings else None,
        on_missing=on_missing,
        source=settings.get("source"),
        limit=min(limits, default=None),
        sample=_count(settings, "sample", spec),
    )
    return Source(tuples, _count(settings, "n-ways", spec))


def settings_of(spec: str) -> dict[str, str]:
    """Key -> value of a data spec."""
    if "=" not in spec:
        return {"tuples": spec}
    settings: dict[str, str] = {}
    for part in spec.split(","):
        key, equals, value = part.partition("=")
        if not equals or not value or key not in DATA_KEYS or key in settings:
            raise TrainingError(
                f"--data {spec}: expected FILE, or KEY=VALUE,… where KEY is one of {', '.join(DATA_KEYS)}, "
                f"each once; found {part!r}."
            )
        settings[key] = value
    if "tuples" not in settings:
        raise TrainingError(f"--data {spec} names no tuples. Add tuples=FILE.")
    return settings


def _count(settings: Mapping[str, str], key: str, spec: str) -> int | None:
    """A setting that is a number from 1."""
    value = settings.get(key)
    if value is not None and (not value.isdecimal() or int(value) < 1):
        raise TrainingError(f"--data {spec}: {key} is {value!r}; expected a whole number of at least 1.")
    return None if value is None else int(value)


class _TsvTexts(Mapping[str, str]):
    """id, tab, text: read from the file when asked for, so that mMARCO's 3.9 GB stay on disk."""

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:  # the map outlives it
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        starts, start = array("q"), 0
        counted = True
        while start < size:
            end = self._bytes.find(b"\n", start)
            end = size if end < 0 else end
            tab = self._bytes.find(b"\t", start, end)
            if tab >= 0:
                counted = counted and self._bytes[start:tab] == b"%d" % len(starts)
                starts.append(start)
            elif self._bytes[start:end].strip():
                line = self._bytes[start:end].decode(errors="replace")
                raise TrainingError(
                    f"{path}, byte {start}, behind {len(starts)} texts: expected id, tab, text; "
                    f"found {line!r:.60}."
                )
            start = end + 1
        self._starts = np.array(starts, dtype=np.int64)
        # Where ids count from 0, as mMARCO's do, the row is the id, and a gigabyte of dictionary is saved.
        self._rows = None if counted else {self._id(row): row for row in range(len(starts))}

    def _id(self, row: int) -> str:
        start = int(self._starts[row])
        return self._bytes[start : self._bytes.find(b"\t", start)].decode()

    def _row(self, id: str) -> int | None:
        if self._rows is not None:
            return self._rows.get(id)
        return _counted(id, len(self._starts))

    def __getitem__(self, id: str) -> str:
        row = self._row(id)
        if row is None:
            raise KeyError(id)
        start = int(self._starts[row])
        end = self._bytes.find(b"\n", start)
        line = self._bytes[start : end if end >= 0 else len(self._bytes)]
        return line.split(b"\t", 1)[1].removesuffix(b"\r").decode()

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._row(id) is not None

    def __len__(self) -> int:
        return len(self._starts) if self._rows is None else len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows) if self._rows is not None else map(str, range(len(self._starts)))


def _counted(id: str, n: int) -> int | None:
    """The row whose number is the id; None where there is none."""
    row = int(id) if id.isdecimal() else n
    return row if row < n and str(row) == id else None


class _HubTexts(Mapping[str, str]):
    """Texts of a dataset, memory-mapped by `datasets`."""

    def __init__(self, name: str, kind: Kind) -> None:
        self._kind, self._data = kind, load_dataset(name)
        columns = self._data.column_names
        self._text = _column(columns, TEXT_COLUMNS[kind], name, "the text")
        known = (column for column in ID_COLUMNS[kind] if column in columns and column != self._text)
        id_column = next(known, None)
        if id_column is None and any(column.casefold().endswith("id") for column in columns):
            _column(columns, ID_COLUMNS[kind], name, "the id")  # row numbers would be a guess
        ids = None if id_column is None else self._data[id_column]
        self._rows = None if ids is None else {str(id): row for row, id in enumerate(ids)}

    def _row(self, id: str) -> int | None:
        if self._rows is not None:
            return self._rows.get(id)
        return _counted(id, len(self._data))

    def __getitem__(self, id: str) -> str:
        row = self._row(id)
        if row is None:
            raise KeyError(id)
        found = self._data[row]
        return _text_of(self._kind, found[self._text], found.get("title"))

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._row(id) is not None

    def __len__(self) -> int:
        return len(self._data) if self._rows is None else len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows) if self._rows is not None else map(str, range(len(self._data)))


class _HubRows(Sequence[Row]):
    """Tuples of a dataset, memory-mapped; which column is what is looked up."""

    def __init__(self, name: str) -> None:
        self._name, self._data = name, load_dataset(name)
        self._translate = _translation(name, self._data.features)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, i: int) -> Row:  # type: ignore[override]
        return self._parse(i, self._data[int(i)])

    def __iter__(self) -> Iterator[Row]:
        columns = self._data.column_names
        blocks = (zip(*(block[c] for c in columns), strict=True) for block in self._data.iter(BLOCK))
        for i, values in enumerate(chain.from_iterable(blocks)):
            yield self._parse(i, dict(zip(columns, values, strict=True)))

    def _parse(self, i: int, row: Mapping[str, Any]) -> Row:
        where = f"{self._name}, row {i + 1}"
        try:
            found = self._translate(row)
        except (SyntaxError, TypeError, ValueError) as error:  # no list, nor a string of one
            raise TrainingError(f"{where}: expected lists; found {str(row)[:80]!r} ({error}).") from error
        return parse_row(found, where)


def _translation(name: str, features: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """From a dataset's row to one that `parse_row` takes.

    Raises:
        TrainingError: its columns are none of the known ones.
    """
    columns = list(features)
    if {"qid", "pos", "neg", "pos.score", "neg.score"} <= set(columns):
        return _labelled  # hotchpotch/mmarco-hard-negatives-reranker-score
    if {"query", "passages"} <= set(columns) and "string" in str(features["query"]):
        return lambda row: row  # texts, not ids
    query = _column(columns, QUERY_ID_COLUMNS, name, "the query's id")
    documents = next((c for c in DOCUMENT_IDS_COLUMNS if c in columns and c != query), None)
    scores = next((c for c in SCORES_COLUMNS if c in columns), None)
    more = [c for c in ("n_positives", "source") if c in columns]
    if documents is not None and (scores is not None or set(columns) == {query, documents, *more}):
        return lambda row: {
            "query_id": row[query],
            "document_ids": _listed(row[documents]),
            "scores": None if scores is None else _listed(row[scores]),
            **{c: row[c] for c in more},
        }
    # One column for each document and score: doc_0 … doc_31, score_0 … score_31.
    numbered = sorted((c for c in columns if _NUMBERED.fullmatch(c)), key=_number_of)
    of_scores = [c for c in numbered if "score" in c or "logit" in c]
    of_documents = [c for c in numbered if c not in of_scores]
    if of_scores and [*map(_number_of, of_scores)] == [*map(_number_of, of_documents)]:
        return lambda row: {
            "query_id": row[query],
            "document_ids": [row[c] for c in of_documents],
            "scores": [row[c] for c in of_scores],
        }
    raise TrainingError(
        f"{name} has the columns {', '.join(columns)}; expected a query's id, document ids and "
        f"scores (such as {QUERY_ID_COLUMNS[0]}, {DOCUMENT_IDS_COLUMNS[0]}, {SCORES_COLUMNS[0]}). Write "
        "its rows as JSON lines with these names."
    )


def _labelled(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "query_id": row["qid"],
        "document_ids": [*row["pos"], *row["neg"]],
        "scores": [*row["pos.score"], *row["neg.score"]],
        "n_positives": len(row["pos"]),
    }


def _listed(value: Any) -> Any:
    """A list; lightonai's datasets have some as strings, which PyLate's KDProcessing reads the same way."""
    return ast.literal_eval(value) if isinstance(value, str) else value


def _number_of(column: str) -> int:
    return int(column[len(column.rstrip("0123456789")) :])


def _is_dataset(name: str) -> bool:
    """Whether `datasets` reads it."""
    return name.startswith(HUB) or name.endswith(".parquet")


def load_dataset(name: str) -> Any:
    """A dataset of the hub, or a .parquet file; `datasets` keeps it memory-mapped.

    Args:
        name: hub:NAME[/CONFIG][@SPLIT]; NAME may be a local folder. The split is "train" where none is named.

    Raises:
        OptionalDependencyError: `datasets` is not installed.
        TrainingError: it cannot be had.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise OptionalDependencyError(
            "Datasets of the hub and .parquet files are read by `datasets`, which is not installed. "
            "Run: pip install 'jacolbert-rag[training]'"
        ) from error
    try:
        if not name.startswith(HUB):
            return datasets.load_dataset("parquet", data_files=name, split="train")
        place, _, split = name.removeprefix(HUB).partition("@")
        parts = place.split("/")
        if Path(place).is_dir():
            where, config = place, None
        elif place.startswith(("/", ".")):  # a copy of a dataset, whose README tells its configs
            where, config = str(Path(place).parent), Path(place).name
            if not Path(where, "README.md").is_file():
                raise FileNotFoundError(f"there is no folder {place}")
        else:
            where, config = "/".join(parts[:2]), "/".join(parts[2:]) or None
        return datasets.load_dataset(where, config, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise TrainingError(
            f"{name} cannot be loaded ({error.__cause__ or error}). Check the name, config and split."
        ) from error


def read_json_lines(path: Path) -> Iterator[Any]:
    """Rows of a JSON lines file, or of the same file packed.

    Raises:
        TrainingError: a line is no JSON, or a packed file is cut short.
    """
    path = packed(path)
    with open_text(path) as file:
        n = 0
        try:
            for n, line in enumerate(file, start=1):  # noqa: B007 - it is told below
                if line.strip():
                    yield json.loads(line)
        except (ValueError, OSError, EOFError, lzma.LZMAError) as error:
            raise TrainingError(f"{path}, line {n}: no JSON ({error}).") from error


def open_text(path: Path) -> TextIO:
    """Open .gz, .xz or plain UTF-8 text for reading; lines end with a newline alone.

    Raises:
        TrainingError: there is no such file.
    """
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        file: TextIO = opened(path, "rt", encoding="utf-8", newline="\n")  # type: ignore[operator]
    except FileNotFoundError as error:
        raise TrainingError(f"{path} is missing. Name the folder or file that has it.") from error
    return file


def packed(path: Path) -> Path:
    """The file, or the same one with .gz where only that is there."""
    other = path.with_name(path.name + ".gz")
    return other if not path.exists() and other.exists() else path


def _tsv_rows(path: Path) -> Iterator[tuple[str, str]]:
    with open_text(path) as file:
        for n, line in enumerate(file, start=1):
            id, tab, text = line.rstrip("\r\n").partition("\t")
            if not tab:
                raise TrainingError(f"{path}, line {n}: expected id, tab, text; found {line!r:.60}.")
            yield id, text


def _column(columns: Sequence[str], known: Sequence[str], name: str, what: str) -> str:
    found = next((column for column in known if column in columns), None)
    if found is None:
        raise TrainingError(
            f"{name} has the columns {', '.join(columns)}; none of {', '.join(known)} is there for {what}."
        )
    return found


def _keys(row: Any) -> str:
    return ", ".join(row) if isinstance(row, dict) else type(row).__name__
