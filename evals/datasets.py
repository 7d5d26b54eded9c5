"""Folders in BEIR layout, read and checked: corpus.jsonl, queries.jsonl, qrels/<split>.tsv; plain or .gz.

With candidates/<split>.tsv, lines of `query document` below a header, each query ranks its own documents.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evals import catalog
from jacolbert_rag.datatypes import Document
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.errors import InvalidInputError

ABOUT = "dataset.json"  # of a folder that evals.prepare wrote
QRELS_HEADER = "query-id\tcorpus-id\tscore"
CANDIDATES_HEADER = "query-id\tcorpus-id"
MAX_SCORE = 2**31  # of a judgement: far above any scale in use, far below what int64 holds


class DatasetError(InvalidInputError):
    """A folder that cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Task:
    """Queries to answer from a corpus, and which documents are relevant to each.

    Attributes:
        name: the folder's.
        split: which qrels.
        documents: the whole corpus, in the order of the file, without metadata.
        queries: query id -> text, in the order of the file; each has a relevant document.
        qrels: query id -> document id -> score; above 0 is relevant, the rest was judged and is not.
        n_split: queries of the split; more than len(queries) where a limit was set.
        digest: 64 hex digits over corpus, queries and qrels of the whole split; packing and limit
            do not change it.
        corpus_digest: the same over the corpus alone.
        candidates: query id -> ids of the documents that it ranks; None is the whole corpus for all.
        notes: where it is from, and what differs from the published dataset of its name.
    """

    name: str
    split: str
    documents: tuple[Document, ...]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    n_split: int
    digest: str
    corpus_digest: str = ""
    candidates: Mapping[str, Sequence[str]] | None = None
    notes: tuple[str, ...] = ()


class _Entry(NamedTuple):
    """One line of corpus.jsonl or queries.jsonl."""

    where: str  # file and line, for messages
    title: str
    text: str


def load_task(
    folder: Path,
    split: str,
    *,
    limit: int | None = None,
    name: str | None = None,
    language: str | None = None,
) -> Task:
    """Read a folder in BEIR layout.

    Args:
        folder: holds corpus.jsonl, queries.jsonl and qrels/<split>.tsv; each may end in .gz.
        split: such as "dev".
        limit: keep the first queries only; the corpus stays whole.
        name: the task's; None is the folder's.
        language: ask the same queries in another one, from queries.LANGUAGE.jsonl; then the name ends in it.

    Raises:
        DatasetError: a file is missing, a line is broken, an id is unknown or occurs twice, or there
            are no queries.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is no folder. Name one in BEIR layout: corpus.jsonl, queries.jsonl, qrels/."
        )
    asked_in = f".{language}" if language is not None else ""
    corpus_file = _find(folder, "corpus.jsonl")
    queries_file = _find(folder, f"queries{asked_in}.jsonl")
    qrels_file = _find(folder, f"qrels/{split}.tsv")
    corpus, asked = _read_entries(corpus_file), _read_entries(queries_file)
    if not any(_has_text(entry) for entry in corpus.values()):
        raise DatasetError(
            f"{corpus_file} has no document with text among {len(corpus)}. Write one object a line, such as "
            '{"_id": "d1", "title": "", "text": "本文"}.'
        )
    judged = _read_qrels(
        qrels_file, asked=asked, queries_file=queries_file, corpus=corpus, corpus_file=corpus_file
    )
    ids = [id for id in asked if any(score > 0 for score in judged.get(id, {}).values())]
    if not ids:
        raise DatasetError(
            f"{qrels_file} has no query with a relevant document (a score above 0), so there is nothing "
            "to measure. Add such rows, or name another split."
        )
    for id in ids:
        if not _has_text(asked[id]):
            raise DatasetError(
                f"{asked[id].where}: the query {id!r} has no text. Write it, or drop its qrels."
            )
    kept = ids[:limit]
    candidates = _read_candidates(folder, split, ids, corpus)
    return Task(
        name=(name or folder.resolve().name) + (f"-{language}" if language is not None else ""),
        split=split,
        documents=tuple(Document(id, entry.text, title=entry.title) for id, entry in corpus.items()),
        queries={id: asked[id].text for id in kept},
        qrels={id: judged[id] for id in kept},
        n_split=len(ids),
        digest=_digest(corpus, {id: asked[id] for id in ids}, {id: judged[id] for id in ids}, candidates),
        corpus_digest=_digest(corpus, {}, {}, None),
        candidates=None if candidates is None else {id: candidates[id] for id in kept},
        notes=_notes(folder, name or folder.resolve().name, len(ids), len(corpus)),
    )


def _notes(folder: Path, name: str, n_queries: int, n_documents: int) -> tuple[str, ...]:
    """Revisions and notes of a prepared folder; of another one, what differs from the dataset of its name."""
    file = folder / ABOUT
    if file.is_file():
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            return (*(f"{name}@{at}" for name, at in about["revisions"].items()), *about["notes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{file} cannot be read ({error}). Remove the folder, and prepare the dataset again."
            ) from error
    published = catalog.find(name)
    if published is None:
        return ()
    found = published.differences(n_queries, n_documents)
    return tuple(f"{folder.resolve().name}: {each}" for each in found)


def check_whole_corpus(task: Task, what: str) -> None:
    """Refuse a dataset whose queries each rank candidates of their own.

    Args:
        task: the dataset.
        what: is measured.

    Raises:
        DatasetError: it has candidates.
    """
    if task.candidates is not None:
        raise DatasetError(
            f"in {task.name} {task.split} each query ranks its own candidates, and {what} is measured in a "
            "search of the whole corpus. Name another dataset, or a copy of its folder without candidates/."
        )


def unanswerable(folder: Path, split: str) -> list[str]:
    """Questions of a split that nothing in the corpus answers: their metadata has "answerable": false.

    Raises:
        DatasetError: as `load_task`.
    """
    records = [json.loads(line) for _, line in lines(_find(folder, "queries.jsonl"))]
    return [
        record["text"]
        for record in records
        if (about := record.get("metadata") or {}).get("answerable") is False and about.get("split") == split
    ]


def _find(folder: Path, name: str) -> Path:
    """The file, plain or gzipped."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.is_file() and packed.is_file():
        raise DatasetError(f"{plain} lies beside {packed.name}, and they may differ. Remove one of them.")
    if not plain.is_file() and not packed.is_file():
        message = f"{plain} is missing, and {packed.name} too."
        if name.startswith("qrels/"):
            names = {path.name.removesuffix(".gz") for path in plain.parent.glob("*.tsv*")}
            splits = sorted(name.removesuffix(".tsv") for name in names if name.endswith(".tsv"))
            raise DatasetError(f"{message} Splits that are there: {', '.join(splits) or 'none'}.")
        raise DatasetError(f"{message} A folder in BEIR layout has corpus.jsonl, queries.jsonl and qrels/.")
    return plain if plain.is_file() else packed


def lines(path: Path, *, packed: bool | None = None) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without their end; blank lines are passed over.

    Args:
        path: of UTF-8 text.
        packed: whether it is gzipped; None says so by its name.

    Raises:
        DatasetError: it cannot be read; the message names the line.
    """
    n = 0
    try:
        is_packed = path.suffix == ".gz" if packed is None else packed
        with gzip.open(path, "rb") if is_packed else path.open("rb") as file:
            for n, raw in enumerate(file, start=1):
                line = raw.decode("utf-8-sig" if n == 1 else "utf-8").rstrip("\r\n")
                if line.strip():
                    yield n, line
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}, line {n}: not UTF-8 ({error}). Convert the file to UTF-8.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(
            f"{path}, line {n + 1}: the file cannot be unpacked from here ({error}). It was cut short "
            "or is no gzip: copy it again, or drop the .gz of its name."
        ) from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error}). Check the file and its permissions.") from error


def _read_entries(path: Path) -> dict[str, _Entry]:
    """Entries of a .jsonl file by id, in the order of the file."""
    entries: dict[str, _Entry] = {}
    for n, line in lines(path):
        where = f"{path}, line {n}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(
                f'{where}: not JSON ({error}). Write one object a line: {{"_id": "d1", "text": "本文"}}.'
            ) from error
        if not isinstance(record, dict):
            raise DatasetError(
                f'{where}: a {type(record).__name__}, not an object: write {{"_id": "d1", "text": "本文"}}.'
            )
        id, text = _string(record, "_id", where), _string(record, "text", where)
        title = "" if record.get("title") is None else _string(record, "title", where)
        if not id:
            raise DatasetError(f'{where}: "_id" is empty. Give every line an id of its own.')
        if id in entries:
            raise DatasetError(
                f"{where}: the id {id!r} is there already ({entries[id].where}). Give each line its own id."
            )
        entries[id] = _Entry(where, title, text)
    return entries


def _string(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        found = f"is {value!r:.40}" if key in record else "is missing"
        raise DatasetError(f'{where}: "{key}" {found}; expected a string. Write it as "{key}": "…".')
    return value


def _read_qrels(
    path: Path,
    *,
    asked: Mapping[str, _Entry],
    queries_file: Path,
    corpus: Mapping[str, _Entry],
    corpus_file: Path,
) -> dict[str, dict[str, int]]:
    """Query id -> document id -> score."""
    qrels: dict[str, dict[str, int]] = {}
    header_seen = False
    for n, line in lines(path):
        where = f"{path}, line {n}"
        if not header_seen:
            if line != QRELS_HEADER:
                raise DatasetError(
                    f"{where}: {line!r:.80} is no header; expected {QRELS_HEADER!r} (tabs). Add that line."
                )
            header_seen = True
            continue
        cells = line.split("\t")
        if len(cells) != 3:
            raise DatasetError(
                f"{where}: {len(cells)} cells; expected query-id, corpus-id, score. Put one tab between."
            )
        query_id, doc_id, score = cells
        if query_id not in asked:
            raise DatasetError(
                f"{where}: the query {query_id!r} is not in {queries_file}. Add it there, or drop the row."
            )
        if doc_id not in corpus:
            raise DatasetError(
                f"{where}: the document {doc_id!r} is not in {corpus_file}. Add it there, or drop the row."
            )
        if doc_id in qrels.setdefault(query_id, {}):
            raise DatasetError(
                f"{where}: {query_id!r} and {doc_id!r} were judged in an earlier row. Keep one of them."
            )
        qrels[query_id][doc_id] = _score(score, where)
    return qrels


def _read_candidates(
    folder: Path, split: str, ids: Sequence[str], corpus: Mapping[str, _Entry]
) -> dict[str, list[str]] | None:
    """Query id -> ids of its candidates in the order of the file; None where there is no such file."""
    name = f"candidates/{split}.tsv"
    if not (folder / name).exists() and not (folder / f"{name}.gz").exists():
        return None
    path = _find(folder, name)
    found: dict[str, dict[str, None]] = {}
    for n, line in lines(path):
        where = f"{path}, line {n}"
        if n == 1:
            if line != CANDIDATES_HEADER:
                raise DatasetError(f"{where}: {line!r:.80} is no header; expected {CANDIDATES_HEADER!r}.")
            continue
        cells = line.split("\t")
        if len(cells) != 2:
            raise DatasetError(
                f"{where}: {len(cells)} cells; expected query-id, corpus-id with a tab between."
            )
        query_id, doc_id = cells
        if doc_id not in corpus:
            raise DatasetError(f"{where}: the document {doc_id!r} is not in the corpus. Drop the row.")
        if doc_id in found.setdefault(query_id, {}):
            raise DatasetError(f"{where}: {query_id!r} has {doc_id!r} in an earlier row. Keep one of them.")
        found[query_id][doc_id] = None
    if missing := [id for id in ids if id not in found]:
        raise DatasetError(
            f"{path}: the query {missing[0]!r} has no candidates. Add some, or drop its qrels."
        )
    return {id: list(found[id]) for id in ids}


def _score(cell: str, where: str) -> int:
    try:
        score = int(cell)
    except ValueError:
        score = MAX_SCORE
    if abs(score) >= MAX_SCORE:
        raise DatasetError(
            f"{where}: the score {cell!r:.40} is no judgement. Write a whole number, such as 0 or 1."
        )
    return score


def _has_text(entry: _Entry) -> bool:
    """Whether the encoder finds anything to read."""
    return bool(clean(entry.title).strip() or clean(entry.text).strip())


def _digest(
    corpus: Mapping[str, _Entry],
    queries: Mapping[str, _Entry],
    qrels: Mapping[str, Mapping[str, int]],
    candidates: Mapping[str, Sequence[str]] | None,
) -> str:
    digest = hashlib.sha256()
    for entries in (corpus, queries):
        for id, entry in entries.items():
            digest.update(json.dumps([id, entry.title, entry.text]).encode("ascii"))
        digest.update(b"\n")
    digest.update(json.dumps(qrels, sort_keys=True).encode("ascii"))
    if candidates is not None:
        digest.update(json.dumps(candidates, sort_keys=True).encode("ascii"))
    return digest.hexdigest()
