"""Files -> an index that says what they say: only what has changed is encoded, and what is gone goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jacolbert_rag.datatypes import Document
from jacolbert_rag.encode.splitter import parent_of
from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.progress import Progress
from jacolbert_rag.retriever import JaColBERTRetriever
from jacolbert_rag.sources.formats import SOURCE_KEY
from jacolbert_rag.sources.read import FOLDERS_KEY, Reading, file_of, folder_names, read_files


@dataclass(frozen=True)
class Outcome:
    """What an update did.

    Attributes:
        n_changed: documents that were new, or not as they were stored.
        n_unchanged: documents that were left alone.
        n_deleted: documents that their files no longer say.
        n_gone: files that are no longer there, and whose documents still are.
        n_blank: documents without text, which were left out.
        problems: files that could not be read, each with why; what they said before is still stored.
        notes: what the files' owner should know besides.
        others: kinds of files that are not read -> how many there are.
    """

    n_changed: int
    n_unchanged: int
    n_deleted: int
    n_gone: int
    n_blank: int
    problems: Sequence[str]
    notes: Sequence[str]
    others: Mapping[str, int]


def index_files(
    retriever: JaColBERTRetriever,
    paths: Iterable[str | Path],
    *,
    prune: bool = False,
    progress: Progress = False,
) -> Outcome:
    """Bring an index up to date with files, and with those below folders.

    A document's "source" is its file, called by the folder that was named and the path below it, wherever
    that folder is: it may move. What a text, Markdown, HTML or PDF file said when it was stored last and no
    longer says is deleted; documents of JSON lines stay.

    Args:
        retriever: whose index it is. Long documents are stored in chunks.
        paths: of files (see `SUFFIXES`, and JSON lines) or folders. Hidden files in folders are left out.
        prune: delete what files of the named folders said that are no longer there.
        progress: show a bar; see `JaColBERTRetriever.add`.

    Raises:
        InvalidInputError: a path does not exist, or an id is there twice; nothing was stored then.
    """
    reading = read_files(paths, index=retriever, may_be_empty=prune)
    return index_reading(retriever, reading, prune=prune, progress=progress)


def index_reading(
    retriever: JaColBERTRetriever, reading: Reading, *, prune: bool = False, progress: Progress = False
) -> Outcome:
    """`index_files` of what was read of them."""
    if reading.names.places != folder_names(retriever).places:
        retriever.set_extra(FOLDERS_KEY, reading.names.to_json())
    n_changed, n_deleted = replace_files(retriever, reading.said, more=reading.lines, progress=progress)
    # Ids of version 0.1.0 began with the file's path.
    read = [path for path in reading.paths if reading.names.name_of(path) in reading.said]
    former = dict.fromkeys((path.resolve().as_posix() for path in read), ())
    n_deleted += len(_delete(retriever, _no_longer_said(retriever, former)))
    gone = _of_files_that_are_gone(retriever, reading)
    if prune:
        n_deleted += len(_delete(retriever, {id for ids in gone.values() for id in ids}))
    n_given = len(reading.lines) + sum(map(len, reading.said.values()))
    return Outcome(
        n_changed, n_given - n_changed, n_deleted, 0 if prune else len(gone), reading.n_blank,
        reading.problems, reading.notes, reading.others,
    )  # fmt: skip


def delete_named(retriever: JaColBERTRetriever, name: str) -> list[str]:
    """Delete a document by its id, or all documents of a file or of a folder by its name.

    Returns:
        The ids that were in the index, those of chunks too.
    """
    if not name.strip("/ "):
        raise InvalidInputError(
            f"the name {name!r} is of no document, file or folder. Name one as search shows it."
        )
    below = f"{name.rstrip('/')}/"
    of_files = {
        parent_of(document) or document.id
        for document in retriever.documents()
        if (source := file_of(document)) is not None and (source == name or source.startswith(below))
    }
    return retriever.delete([name, *sorted(of_files - {name})])


def replace_files(
    retriever: JaColBERTRetriever,
    said: Mapping[str, Sequence[Document]],
    *,
    more: Sequence[Document] = (),
    progress: Progress = False,
) -> tuple[int, int]:
    """Store what files say now in place of what they said.

    Args:
        retriever: whose index it is. Long documents are stored in chunks.
        said: a file's name, which is its documents' "source" -> its documents; none deletes what it said.
        more: documents of no file.
        progress: see `JaColBERTRetriever.add`.

    Returns:
        How many documents were new or changed, and how many were deleted.
    """
    documents = [*(each for found in said.values() for each in found), *more]
    ids = {document.id for document in documents}
    before = set(retriever.ids())
    touched = {*retriever.upsert(documents, split=True, progress=progress),
               *(before - set(retriever.ids()))}  # fmt: skip
    # A chunk's id is its document's, and # with what it says.
    n_changed = len({id if id in ids else id.rpartition("#")[0] for id in touched})
    return n_changed, len(_delete(retriever, _no_longer_said(retriever, said)))


def _no_longer_said(retriever: JaColBERTRetriever, said: Mapping[str, Sequence[Document]]) -> set[str]:
    """Ids of documents that are stored of these files, and that they no longer have."""
    return {
        id
        for source, current in said.items()
        for id in {parent_of(document) or document.id for document in _stored_of(retriever, source)}
        - {each.id for each in current}
    }


def _stored_of(retriever: JaColBERTRetriever, source: str) -> list[Document]:
    """Documents and chunks of a file."""
    found = retriever.get([source, *retriever.ids(f"{source}#")])
    # The source is compared, since another file's name may begin like this one's sections.
    return [document for document in found if document.metadata.get(SOURCE_KEY) == source]


def _of_files_that_are_gone(retriever: JaColBERTRetriever, reading: Reading) -> dict[str, set[str]]:
    """Files of the named folders that are no longer there -> ids of what they said."""
    names = reading.names
    there = {name for path in reading.paths for name in (names.name_of(path), path.resolve().as_posix())}
    # Version 0.1.0 called files by their paths.
    below = tuple(
        start
        for folder in reading.folders
        for start in (*names.starts_within(folder), f"{folder.resolve().as_posix()}/")
    )
    unknown = tuple(f"{names.name_of(folder)}/" for folder in reading.unlisted)
    given = {document.id for document in reading.lines}
    found: dict[str, set[str]] = {}
    for document in retriever.documents() if below else ():
        source, id = file_of(document), parent_of(document) or document.id
        if source is None or not source.startswith(below) or source in there or id in given:
            continue
        if not source.startswith(unknown):
            found.setdefault(source, set()).add(id)
    return found


def _delete(retriever: JaColBERTRetriever, ids: set[str]) -> set[str]:
    """Delete documents, with their chunks."""
    retriever.delete(sorted(ids))
    return ids
