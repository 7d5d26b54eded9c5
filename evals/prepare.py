"""Command line: published datasets, downloaded and written as folders in BEIR layout.

    python -m evals.prepare jqara jacwir      # or --all; without names: what there is, and what is here
    python -m evals.prepare jqara --mirror F  # from copies, as F/hotchpotch/JQaRA/data/test-….parquet

`evals.run` finds them by name. A folder is written whole or not at all; one that is there stays, unless a
newer version of this program would write it in another way.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.catalog import DATASETS, Dataset, find
from evals.datasets import ABOUT, DatasetError
from evals.options import fail
from evals.sources import CACHE, Library, fetch_all, known_files
from jacolbert_rag.datatypes import Document
from jacolbert_rag.errors import InvalidInputError, JaColBERTError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="datasets", metavar="NAME …")] = None,
    all: Annotated[bool, typer.Option("--all", help="All that there are.")] = False,
    cache: Annotated[Path, typer.Option(help="Where folders go.", metavar="FOLDER")] = CACHE,
    mirror: Annotated[
        Path | None, typer.Option(help="Copies to read in place of the network.", metavar="FOLDER")
    ] = None,
    offline: Annotated[bool, typer.Option(help="Only what was downloaded before.")] = False,
) -> None:
    """Download published datasets and write them in BEIR layout."""
    from rich.console import Console
    from rich.text import Text

    err = Console(stderr=True)
    library = Library(cache, mirror, offline)
    try:
        wanted = list(DATASETS) if all else [_named(name) for name in names or ()]
    except InvalidInputError as error:
        raise fail(error) from error
    if not wanted:
        show(cache)
        return
    failed = []
    for dataset in wanted:
        try:
            folder = prepare(dataset, library)
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            err.print(Text(f"{dataset.name}: {about['n_queries']:,} queries, {about['n_documents']:,} "
                           f"documents in {folder}"))  # fmt: skip
            for note in about["notes"]:
                err.print(Text(f"  {note}"))
        except JaColBERTError as error:
            err.print(Text(f"{dataset.name}: {error}", style="red"))
            failed.append(dataset.name)
    if failed:
        raise typer.Exit(2)


def prepare(dataset: Dataset, library: Library) -> Path:
    """The dataset's folder, written now where it is not there.

    Raises:
        DatasetError: its files cannot be had, or are not as they are described.
    """
    folder = place_of(dataset.name, library.cache)
    if is_prepared(dataset, library.cache):
        return folder
    from evals.readers import READERS

    base = None
    if dataset.base is not None:
        base = prepare(_named(dataset.base), library)
    files, revisions = fetch_all(library, dataset.files)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f"{folder.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        converted = READERS[dataset.reader](files, base)
        (new / "qrels").mkdir(parents=True)
        n_documents = _write(new / "corpus.jsonl.gz", map(_entry, converted.documents))
        queries = [{"_id": id, "text": text} for id, text in converted.queries.items()]
        _write(new / "queries.jsonl.gz", queries)
        lines = [
            f"{q}\t{d}\t{grade}\n" for q, judged in converted.qrels.items() for d, grade in judged.items()
        ]
        qrels = "query-id\tcorpus-id\tscore\n" + "".join(lines)
        (new / "qrels" / f"{dataset.split}.tsv").write_text(qrels, encoding="utf-8")
        if converted.candidates is not None:
            (new / "candidates").mkdir()
            _write_lines(
                new / "candidates" / f"{dataset.split}.tsv.gz",
                [
                    "query-id\tcorpus-id\n",
                    *(f"{q}\t{d}\n" for q, ids in converted.candidates.items() for d in ids),
                ],
            )
        n_queries = len(converted.qrels)
        about = {
            "name": dataset.name,
            "split": dataset.split,
            "revisions": revisions,
            "licence": dataset.licence,
            "citation": dataset.citation,
            "n_queries": n_queries,
            "n_documents": n_documents,
            "notes": dataset.differences(n_queries, n_documents),
            "recipe": _recipe(dataset),
        }
        (new / ABOUT).write_text(json.dumps(about, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        _put(new, folder, dataset, library.cache)
    except JaColBERTError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise DatasetError(
            f"the files of {dataset.name} are not as evals/catalog.py describes them "
            f"({type(error).__name__}: {error}). Download them again, or name a revision there that is."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def _put(new: Path, folder: Path, dataset: Dataset, cache: Path) -> None:
    """Move a folder to its place, from which one of another recipe goes."""
    former = new.with_suffix(".old")
    try:
        if folder.is_dir():
            folder.rename(former)
        new.rename(folder)
    except OSError:
        # Another process was faster.
        if not is_prepared(dataset, cache):
            raise
    finally:
        shutil.rmtree(former, ignore_errors=True)


def place_of(name: str, cache: Path) -> Path:
    """Where a prepared dataset lies."""
    return cache / "beir" / name


def is_prepared(dataset: Dataset, cache: Path) -> bool:
    """Whether its folder is there, written from the same revision by the same code."""
    try:
        about = json.loads((place_of(dataset.name, cache) / ABOUT).read_text(encoding="utf-8"))
        return bool(about["recipe"] == _recipe(dataset))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _recipe(dataset: Dataset) -> str:
    """Digest of what a folder is made by: the dataset's description, and the code that reads its files."""
    digest = hashlib.sha256(repr(dataset).encode())
    digest.update(Path(__file__).with_name("readers.py").read_bytes())
    return digest.hexdigest()[:16]


def show(cache: Path) -> None:
    """A table of all datasets on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("dataset", "what it is", "from", "licence", "here"):
        table.add_column(head, overflow="fold")
    for dataset in DATASETS:
        places = dict.fromkeys(known_files(list(dataset.files.values())))
        here = "yes" if is_prepared(dataset, cache) else ""
        table.add_row(*map(Text, (dataset.name, dataset.about, "\n".join(places), dataset.licence, here)))
    Console().print(table)


def _named(name: str) -> Dataset:
    dataset = find(name)
    if dataset is None:
        known = ", ".join(each.name for each in DATASETS)
        raise InvalidInputError(f"there is no dataset {name!r}; known are {known}.")
    return dataset


def _entry(document: Document) -> dict[str, Any]:
    return {"_id": document.id, "title": document.title, "text": document.text}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write JSON lines; how many there were."""
    return _write_lines(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_lines(path: Path, lines: Iterable[str]) -> int:
    n = 0
    with gzip.GzipFile(path, "wb", compresslevel=6, mtime=0) as file:
        for line in lines:
            file.write(line.encode("utf-8", errors="surrogatepass"))
            n += 1
    return n


if __name__ == "__main__":
    app()
