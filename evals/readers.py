"""Published datasets, each in its own columns -> documents, queries, judgements."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from evals import datasets
from evals.datasets import DatasetError
from jacolbert_rag.datatypes import Document

Files = Mapping[str, Sequence[Path]]
Row = Mapping[str, Any]

MIRACL_SMALL_DEPTH = 250  # of BM25's list for each query: JaColBERTv2.5, section 3.4
NIILC_SHORTEST = 15  # characters of a sentence that can be a passage
ESCI_GRADES = {"exact": 3, "substitute": 2, "complement": 1, "irrelevant": 0}
FOOTNOTE = re.compile(r"[\[［](?:注\s*)?\d+[\]］]")
SQUAD_ID = re.compile(r"(?:q\d+|-\d+)$")  # of a question, behind its paragraph's


@dataclass(frozen=True)
class Converted:
    """A dataset as it is written.

    Attributes:
        documents: read once, since corpora of millions pass through.
        queries: query id -> text.
        qrels: query id -> document id -> grade.
        candidates: query id -> ids of the documents to rank; None is the whole corpus.
    """

    documents: Iterable[Document]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    candidates: Mapping[str, Sequence[str]] | None = None


def jqara(files: Files, base: Path | None) -> Converted:
    """One row a question and passage, with a label; a passage may be there for several questions."""
    documents: dict[str, Document] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    candidates: dict[str, list[str]] = {}
    for row in tables(files["rows"], ("q_id", "question", "passage_row_id", "title", "text", "label")):
        query, passage = str(row["q_id"]), str(row["passage_row_id"])
        queries[query] = row["question"]
        documents.setdefault(passage, Document(passage, row["text"], title=row["title"] or ""))
        candidates.setdefault(query, []).append(passage)
        if int(row["label"]) > 0:
            qrels.setdefault(query, {})[passage] = 1
    return Converted(documents.values(), queries, qrels, candidates)


def jacwir(files: Files, base: Path | None) -> Converted:
    """A question with ids of one right page and 99 others; ids of questions are those of its evaluator."""
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    candidates: dict[str, list[str]] = {}
    for row in tables(files["rows"], ("query", "positive", "negatives")):
        right = str(row["positive"])
        id = f"q_id##{right}"
        if id in queries:
            raise DatasetError(f"{files['rows'][0]}: {right!r} is the answer of two questions; expected one.")
        queries[id] = row["query"]
        qrels[id] = {right: 1}
        candidates[id] = [right, *(str(wrong) for wrong in row["negatives"])]
    return Converted(_pages(files["corpus"]), queries, qrels, candidates)


def jacwir_corpus(files: Files, base: Path | None) -> Converted:
    """The same without candidates."""
    whole = jacwir(files, base)
    return Converted(whole.documents, whole.queries, whole.qrels)


def miracl(files: Files, base: Path | None) -> Converted:
    """Queries and judgements as tab-separated lines, passages as JSON lines."""
    queries = dict(_cells(files["queries"], 2))
    qrels: dict[str, dict[str, int]] = {}
    for query, _, passage, grade in _cells(files["qrels"], 4):
        qrels.setdefault(query, {})[passage] = int(grade)
    return Converted(_passages(files["corpus"]), queries, qrels)


def mrtydi(files: Files, base: Path | None) -> Converted:
    """A query with ids of its positive passages."""
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for row in tables(files["queries"], ("query_id", "query", "positive_passages")):
        id = str(row["query_id"])
        queries[id] = row["query"]
        qrels[id] = {str(passage["docid"]): 1 for passage in row["positive_passages"]}
    return Converted(_passages(files["corpus"]), queries, qrels)


def small_corpus(files: Files, base: Path | None) -> Converted:
    """Of another dataset the passages that a list names for any query, and all that are relevant."""
    assert base is not None
    (path,) = files["lists"]
    (split,) = [file.name.removesuffix(".tsv") for file in (base / "qrels").glob("*.tsv")]
    task = datasets.load_task(base, split)
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
        # The file may have queries of other splits, too.
        named = {id for query in task.queries for id in lists[query][:MIRACL_SMALL_DEPTH]}
        if not all(isinstance(id, str) for id in named):
            raise TypeError("an id is no string")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DatasetError(
            f"{path}: expected an object with a list of passage ids for each query of {task.name} "
            f"({type(error).__name__}: {error}). Download it again, or name its place in evals/catalog.py."
        ) from error
    named |= {id for judged in task.qrels.values() for id, grade in judged.items() if grade > 0}
    kept = [document for document in task.documents if document.id in named]
    if lacking := named - {document.id for document in kept}:
        raise DatasetError(
            f"{path} names {len(lacking):,} passages that {base} lacks, such as {min(lacking)!r}. The list "
            "is of another corpus: name a revision in evals/catalog.py that has them."
        )
    qrels = {
        query: {id: grade for id, grade in judged.items() if id in named}
        for query, judged in task.qrels.items()
    }
    return Converted(kept, task.queries, qrels)


def beir_tables(files: Files, base: Path | None) -> Converted:
    """BEIR's three parts as tables."""
    queries = {str(row["_id"]): row["text"] for row in tables(files["queries"], ("_id", "text"))}
    qrels: dict[str, dict[str, int]] = {}
    for row in tables(files["qrels"], ("query-id", "corpus-id", "score")):
        qrels.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row["score"])
    documents = (
        Document(str(row["_id"]), row["text"], title=row.get("title") or "")
        for row in tables(files["corpus"], ("_id", "text"))
    )
    return Converted(documents, queries, qrels)


def squad(files: Files, base: Path | None) -> Converted:
    """SQuAD's JSON: each paragraph is a passage, relevant to the questions below it."""
    documents: dict[str, Document] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for path in files["rows"]:
        for article in _json(path, "data"):
            # JSQuAD has the title in the text already.
            titles = {p["context"].startswith(f"{article['title']} [SEP] ") for p in article["paragraphs"]}
            title = "" if titles == {True} else article["title"]
            for paragraph in article["paragraphs"]:
                if not paragraph["qas"]:
                    continue
                id = SQUAD_ID.sub("", paragraph["qas"][0]["id"])
                documents.setdefault(id, Document(id, paragraph["context"], title=title))
                for question in paragraph["qas"]:
                    queries[question["id"]] = question["question"]
                    qrels[question["id"]] = {id: 1}
    _not_empty(queries, files["rows"][0])
    return Converted(documents.values(), queries, qrels)


def niilc(files: Files, base: Path | None) -> Converted:
    """NIILC's XML: questions with a Wikipedia article (E3) and its sentence that answers (E5)."""
    documents: dict[tuple[str, str], Document] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    (path,) = files["rows"]
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise DatasetError(f"{path} is no XML that can be read ({error}). Download it again.") from error
    for question in root.iter("question"):
        title = (question.findtext("meta/E3") or "").strip()
        text = FOOTNOTE.sub("", question.findtext("meta/E5") or "")
        text = "".join(line.strip() for line in text.splitlines())
        if not title or len(text) < NIILC_SHORTEST:
            continue
        passage = documents.setdefault(
            (title, text), Document(f"niilc-p{len(documents) + 1:04}", text, title=title)
        )
        queries[question.attrib["id"]] = (question.findtext("text") or "").strip()
        qrels[question.attrib["id"]] = {passage.id: 1}
    _not_empty(queries, path)
    return Converted(documents.values(), queries, qrels)


def esci(files: Files, base: Path | None) -> Converted:
    """One row a search and product, with a grade; products of Japan that have a description."""
    documents: dict[str, Document] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    columns = (
        "query_id", "query", "product_id", "product_locale", "product_title", "product_description",
        "esci_label",
    )  # fmt: skip
    for row in tables(files["rows"], columns):
        if row["product_locale"] != "jp" or not (row["product_description"] or "").strip():
            continue
        query, product = str(row["query_id"]), str(row["product_id"])
        grade = ESCI_GRADES.get(str(row["esci_label"]).lower())
        if grade is None:
            raise DatasetError(
                f"{files['rows'][0]}: the label {row['esci_label']!r} of {product!r} is none of "
                f"{', '.join(ESCI_GRADES)}."
            )
        queries[query] = row["query"]
        title = row["product_title"] or ""
        documents.setdefault(product, Document(product, row["product_description"], title=title))
        qrels.setdefault(query, {})[product] = grade
    _not_empty(queries, files["rows"][0])
    return Converted(documents.values(), queries, qrels)


READERS: Mapping[str, Callable[[Files, Path | None], Converted]] = {
    "jqara": jqara,
    "jacwir": jacwir,
    "jacwir_corpus": jacwir_corpus,
    "miracl": miracl,
    "mrtydi": mrtydi,
    "small_corpus": small_corpus,
    "beir_tables": beir_tables,
    "squad": squad,
    "niilc": niilc,
    "esci": esci,
}


def tables(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[Row]:
    """Rows of .parquet or .jsonl.gz files, one behind the other.

    Args:
        paths: of the same columns.
        columns: that each row must have.

    Raises:
        DatasetError: a file cannot be read, lacks a column, or all are empty; the message names the file.
    """
    n = 0
    for path in paths:
        for row in _parquet(path, columns) if path.suffix == ".parquet" else _json_lines(path, columns):
            n += 1
            yield row
    if not n:
        raise DatasetError(f"{', '.join(map(str, paths))}: no rows; expected some of {', '.join(columns)}.")


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        _check_columns(path, file.schema_arrow.names, columns)
        for batch in file.iter_batches():
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DatasetError(f"{path} cannot be read as parquet ({error}). Download it again.") from error


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    for n, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{path}, line {n}: not JSON ({error}). Download it again.") from error
        _check_columns(f"{path}, line {n}", row, columns)
        yield row


def _check_columns(where: object, found: Iterable[str], columns: Sequence[str]) -> None:
    found = list(found)
    if lacking := [column for column in columns if column not in found]:
        raise DatasetError(
            f"{where} lacks the column {', '.join(map(repr, lacking))}; it has {', '.join(found)}. The "
            "dataset was changed since evals/catalog.py described it: name a revision there that has it."
        )


def _pages(paths: Sequence[Path]) -> Iterator[Document]:
    for row in tables(paths, ("doc_id", "title", "description")):
        yield Document(str(row["doc_id"]), row["description"] or "", title=row["title"] or "")


def _passages(paths: Sequence[Path]) -> Iterator[Document]:
    for row in tables(paths, ("docid", "title", "text")):
        yield Document(str(row["docid"]), row["text"], title=row["title"] or "")


def _cells(paths: Sequence[Path], n: int) -> Iterator[list[str]]:
    """Lines of n cells with tabs between; the last cell may hold more tabs."""
    for path in paths:
        empty = True
        for number, line in enumerate(_lines(path), start=1):
            cells = line.split("\t", n - 1)
            if len(cells) != n:
                raise DatasetError(
                    f"{path}, line {number}: {len(cells)} cells; expected {n} with tabs between."
                )
            empty = False
            yield cells
        if empty:
            raise DatasetError(f"{path}: no rows. Download it again.")


def _lines(path: Path) -> Iterator[str]:
    n = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for raw in file:
                if raw.strip():
                    yield raw.decode("utf-8").rstrip("\r\n")
                n += 1
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, OSError) as error:
        raise DatasetError(
            f"{path}, line {n + 1}: cannot be read from here ({error}). Its download was broken: remove the "
            "file, and download it again."
        ) from error


def _json(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as JSON ({error}). Download it again.") from error
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path} has no {key!r}; expected SQuAD's format.") from error


def _not_empty(queries: Mapping[str, str], path: Path) -> None:
    if not queries:
        raise DatasetError(
            f"{path}: no questions that can be used. Download it again, or name another split."
        )
