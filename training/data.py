"""What training reads: texts by id, and tuples of a query with its documents, from files or from the hub.

Texts (queries or a corpus) are named by one of

    DIR                       a folder in BEIR layout: its corpus.jsonl or queries.jsonl, packed or not
    FILE.jsonl, FILE.tsv      rows {"_id" or "id", "text", "title"?}; or id, tab, text; packed (.gz) or not
    hub:NAME[/CONFIG][@SPLIT] rows of a dataset, whose columns are looked up; without an id column the id is
                              the row number, as in hpprc/mmarco-ja

Tuples by FILE.jsonl, FILE.parquet or hub:…; a row is one of

    {"query_id", "document_ids", "scores"?, "n_positives"?, "source"?}
    {"query", "passages", "scores"?, "n_positives"?, "source"?}     texts inline
    [query id, [document id, score], …]                              as colbert-ai has it

The first `n_positives` documents (1 where nothing is said) are labelled as answers.
"""

from __future__ import annotations

import gzip
import json
import lzma
import mmap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from jacolbert_rag.datatypes import Document, IntArray
from jacolbert_rag.errors import OptionalDependencyError
from training.options import TrainingError

HUB = "hub:"
# Columns of the published datasets, in the order in which they are looked for. Those of
# answerdotai/MMARCO-japanese-32-scored-triplets are documented nowhere.
ID_COLUMNS = ("_id", "id", "docid", "doc_id", "pid", "passage_id", "query_id", "qid", "passage_row_id")
TEXT_COLUMNS = ("text", "query", "body", "passage", "description", "question", "Question", "anc")
QUERY_ID_COLUMNS = ("query_id", "qid", "q_id", "queries", "query")
DOCUMENT_IDS_COLUMNS = ("document_ids", "doc_ids", "pids", "passage_ids", "documents", "passages")
SCORES_COLUMNS = ("scores", "score", "teacher_scores", "logits")
DATA_KEYS = ("tuples", "queries", "corpus", "n-ways", "limit", "name")

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


def read_texts(name: str, kind: Literal["corpus", "queries"]) -> Texts:
    """Texts by id; a document's is its title, a space, its text.

    Raises:
        TrainingError: it cannot be read.
    """
    if name.startswith(HUB):
        return _HubTexts(name)
    path = Path(name)
    if path.is_dir():
        path = _packed(path / f"{kind}.jsonl")
    if not path.is_file():
        raise TrainingError(f"{path} is missing. Name a BEIR folder, a .jsonl or .tsv file, or {HUB}DATASET.")
    if path.name.endswith(".tsv"):
        return _TsvTexts(path)
    if path.name.endswith(".tsv.gz"):
        return dict(_tsv_rows(path))
    texts: dict[str, str] = {}
    for n, row in enumerate(read_json_lines(path), start=1):
        id = row.get("_id", row.get("id"))
        if id is None or not isinstance(row.get("text"), str):
            raise TrainingError(f'{path}, line {n}: expected "_id" (or "id") and "text"; found {_keys(row)}.')
        texts[str(id)] = Document(str(id), row["text"], title=row.get("title") or "").passage
    return texts


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Query id -> document id -> score, from a BEIR file: header, then query, document, score."""
    qrels: dict[str, dict[str, int]] = {}
    with open_text(_packed(path)) as file:
        next(file, None)
        for n, line in enumerate(file, start=2):
            try:
                query, document, score = line.rstrip("\r\n").split("\t")
                qrels.setdefault(query, {})[document] = int(score)
            except ValueError as error:
                raise TrainingError(
                    f"{path}, line {n}: expected query-id, corpus-id, score; found {line!r:.60}."
                ) from error
    return qrels


def read_rows(path: str) -> Sequence[Row]:
    """Tuples of a file or of the hub, as they are stored.

    Raises:
        TrainingError: it cannot be read, or a row is none of the known ones.
    """
    if path.startswith(HUB) or path.endswith(".parquet"):
        return _HubRows(path)
    file = _packed(Path(path))
    if not file.is_file():
        raise TrainingError(f"{file} is missing. training.mine and training.score write such files.")
    return [parse_row(row, f"{file}, line {n}") for n, row in enumerate(read_json_lines(file), start=1)]


def parse_row(row: Any, where: str) -> Row:
    """One row of tuples.

    Raises:
        TrainingError: it is none of the known ones.
    """
    try:
        if isinstance(row, list):
            query, pairs = str(row[0]), row[1:]
            ids = tuple(str(id) for id, _ in pairs)
            return Row(query, ids, tuple(float(score) for _, score in pairs), 1, "", inline=False)
        inline = "passages" in row
        documents = tuple(str(item) for item in row["passages" if inline else "document_ids"])
        scores = tuple(map(float, row["scores"])) if row.get("scores") is not None else None
        query = str(row["query" if inline else "query_id"])
        found = Row(
            query, documents, scores, int(row.get("n_positives", 1)), str(row.get("source", "")), inline
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise TrainingError(
            f'{where}: expected {{"query_id", "document_ids", "scores"}}, {{"query", "passages", "scores"}} '
            f"or [query id, [document id, score], …]; found {str(row)[:80]!r} "
            f"({type(error).__name__}: {error})."
        ) from error
    if scores is not None and len(scores) != len(documents):
        raise TrainingError(f"{where}: {len(documents)} documents, {len(scores)} scores. Give each a score.")
    return found


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
        limit: int | None = None,
    ) -> None:
        """Take rows, and look whether their texts are there.

        Args:
            rows: from `read_rows`.
            name: the source of rows that name none.
            queries: texts of their query ids.
            corpus: texts of their document ids.
            on_missing: a row whose query or document is not there is refused, or left out and counted.
            limit: take the first rows only.

        Raises:
            TrainingError: an id is in neither, and `on_missing` refuses it.
        """
        self.name = name
        self._rows, self._queries, self._corpus = rows, queries or {}, corpus or {}
        n = len(rows) if limit is None else min(limit, len(rows))
        present = [i for i in range(n) if self._missing(rows[i]) is None]
        self.n_missing = n - len(present)
        if self.n_missing and on_missing == "refuse":
            first = next(i for i in range(n) if self._missing(rows[i]) is not None)
            raise TrainingError(
                f"{name}: {self.n_missing} of {n} tuples name texts that are not there, the first in row "
                f"{first + 1}: {self._missing(rows[first])}. Name the corpus and queries that they were made "
                "from, or pass --on-missing skip."
            )
        self._order: IntArray = np.array(present, dtype=np.int64)

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
        reasons = [unusable(self._rows[int(i)]) for i in self._order]
        self._order = self._order[[reason is None for reason in reasons]]
        return Counter(reason for reason in reasons if reason is not None)

    def by_source(self) -> list[Tuples]:
        """The same tuples, those of each source by themselves, in the order in which sources first come."""
        order: dict[str, list[int]] = {}
        for i in self._order.tolist():
            order.setdefault(self._rows[i].source or self.name, []).append(i)
        parts = []
        for name, rows in order.items():
            part = copy(self)
            part.name, part._order, part.n_missing = name, np.array(rows, dtype=np.int64), 0
            parts.append(part)
        return parts

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
            queries and corpus (as `read_texts` takes them), n-ways, limit, name (else that of the tuples).
        on_missing: what becomes of a tuple whose texts are not there.
        limit: take the first tuples only; the smaller of this and the spec's own holds.

    Raises:
        TrainingError: the spec cannot be read, or what it names cannot.
    """
    settings = _settings_of(spec)
    limits = [n for n in (limit, _count(settings, "limit", spec)) if n is not None]
    tuples = Tuples(
        read_rows(settings["tuples"]),
        name=settings.get("name", settings["tuples"]),
        queries=read_texts(settings["queries"], "queries") if "queries" in settings else None,
        corpus=read_texts(settings["corpus"], "corpus") if "corpus" in settings else None,
        on_missing=on_missing,
        limit=min(limits, default=None),
    )
    return Source(tuples, _count(settings, "n-ways", spec))


def _settings_of(spec: str) -> dict[str, str]:
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
        self._file = path.open("rb")
        size = path.stat().st_size
        self._bytes = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        starts, ids, start = [], [], 0
        while start < size:
            end = self._bytes.find(b"\n", start)
            end = size if end < 0 else end
            tab = self._bytes.find(b"\t", start, end)
            if tab >= 0:
                starts.append(start)
                ids.append(self._bytes[start:tab].decode())
            elif end > start + 1:
                raise TrainingError(f"{path}, byte {start}: expected id, tab, text; found no tab.")
            start = end + 1
        self._starts = np.array(starts, dtype=np.int64)
        # Where ids count from 0, as mMARCO's do, the row is the id, and a gigabyte of dictionary is saved.
        counted = all(id == str(row) for row, id in enumerate(ids))
        self._rows = None if counted else {id: row for row, id in enumerate(ids)}

    def _row(self, id: str) -> int | None:
        if self._rows is not None:
            return self._rows.get(id)
        row = int(id) if id.isdecimal() else -1
        return row if 0 <= row < len(self._starts) and str(row) == id else None

    def __getitem__(self, id: str) -> str:
        row = self._row(id)
        if row is None:
            raise KeyError(id)
        start = int(self._starts[row])
        end = self._bytes.find(b"\n", start)
        line = self._bytes[start : end if end >= 0 else len(self._bytes)]
        return line.split(b"\t", 1)[1].rstrip(b"\r").decode()

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._row(id) is not None

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows) if self._rows is not None else map(str, range(len(self._starts)))


class _HubTexts(Mapping[str, str]):
    """Texts of a dataset, memory-mapped by `datasets`."""

    def __init__(self, name: str) -> None:
        self._data = load_dataset(name)
        columns = self._data.column_names
        self._text = _column(columns, TEXT_COLUMNS, name, "the text")
        self._title = "title" if "title" in columns else None
        id_column = next(
            (column for column in ID_COLUMNS if column in columns and column != self._text), None
        )
        ids = None if id_column is None else [str(id) for id in self._data[id_column]]
        self._rows = None if ids is None else {id: row for row, id in enumerate(ids)}

    def _row(self, id: str) -> int | None:
        if self._rows is not None:
            return self._rows.get(id)
        return int(id) if id.isdecimal() and int(id) < len(self._data) else None

    def __getitem__(self, id: str) -> str:
        row = self._row(id)
        if row is None:
            raise KeyError(id)
        found = self._data[row]
        title = (found.get(self._title) or "") if self._title else ""
        return Document(id, found[self._text], title=title).passage

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._row(id) is not None

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows) if self._rows is not None else map(str, range(len(self._data)))


class _HubRows(Sequence[Row]):
    """Scored tuples of a dataset, memory-mapped; which column is what is looked up."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._data = load_dataset(name)
        columns = list(self._data.column_names)
        self._read = self._reader(columns)

    def _reader(self, columns: list[str]) -> Callable[[Mapping[str, Any]], Row]:
        if {"pos", "neg", "pos.score", "neg.score"} <= set(columns):
            return self._of_labelled  # hotchpotch/mmarco-hard-negatives-reranker-score
        query = _column(columns, QUERY_ID_COLUMNS, self._name, "the query's id")
        numbered = sorted(
            (c for c in columns if c.rstrip("0123456789") != c),
            key=lambda c: int(c[len(c.rstrip("0123456789")) :]),
        )
        documents = next((c for c in DOCUMENT_IDS_COLUMNS if c in columns and c != query), None)
        scores = next((c for c in SCORES_COLUMNS if c in columns), None)
        if documents is not None and scores is not None:
            return lambda row: _row_of(row[query], row[documents], row[scores])
        # One column for each document and score: doc_0 … doc_31, score_0 … score_31.
        of_scores = [c for c in numbered if "score" in c or "logit" in c]
        of_documents = [c for c in numbered if c not in of_scores]
        if of_scores and len(of_scores) == len(of_documents):
            return lambda row: _row_of(
                row[query], [row[c] for c in of_documents], [row[c] for c in of_scores]
            )
        raise TrainingError(
            f"{self._name} has the columns {', '.join(columns)}; expected a query's id, document ids and "
            f"scores (such as {QUERY_ID_COLUMNS[0]}, {DOCUMENT_IDS_COLUMNS[0]}, {SCORES_COLUMNS[0]}). Write "
            "its rows as JSON lines with these names."
        )

    @staticmethod
    def _of_labelled(row: Mapping[str, Any]) -> Row:
        documents, scores = [*row["pos"], *row["neg"]], [*row["pos.score"], *row["neg.score"]]
        return Row(
            str(row["qid"]),
            tuple(map(str, documents)),
            tuple(map(float, scores)),
            len(row["pos"]),
            "",
            inline=False,
        )

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, i: int) -> Row:  # type: ignore[override]
        return self._read(self._data[int(i)])


def _row_of(query: Any, documents: Sequence[Any], scores: Sequence[Any]) -> Row:
    return Row(str(query), tuple(map(str, documents)), tuple(map(float, scores)), 1, "", inline=False)


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
            return datasets.load_dataset(place, split=split or "train")
        config = "/".join(parts[2:]) or None
        return datasets.load_dataset("/".join(parts[:2]), config, split=split or "train")
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{name} cannot be loaded ({error}). Check the name, config and split."
        ) from error


def read_json_lines(path: Path) -> Iterator[Any]:
    """Rows of a JSON lines file, or of the same file packed.

    Raises:
        TrainingError: a line is no JSON.
    """
    path = _packed(path)
    with open_text(path) as file:
        for n, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise TrainingError(f"{path}, line {n}: no JSON ({error}).") from error


def open_text(path: Path) -> TextIO:
    """Open .gz, .xz or plain UTF-8 text for reading."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _packed(path: Path) -> Path:
    """The file, or the same one with .gz where only that is there."""
    packed = path.with_name(path.name + ".gz")
    return packed if not path.exists() and packed.exists() else path


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
