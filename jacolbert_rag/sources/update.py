"""Files -> an index that says what they say: only what has changed is encoded, and what is gone goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jacolbert_rag.datatypes import Document
from jacolbert_rag.encode.splitter import parent_of
from jacolbert_rag.errors import InvalidInputError, OptionalDependencyError
from jacolbert_rag.progress import Progress
from jacolbert_rag.retriever import JaColBERTRetriever
from jacolbert_rag.sources.files import documents_of, files_of, is_json
from jacolbert_rag.sources.formats import SOURCE_KEY
from jacolbert_rag.sources.names import FolderNames

FOLDERS_KEY = "folders"  # of what is kept with an index


@dataclass(frozen=True)
class Outcome:
    """What an update did.

    Attributes:
        n_changed: documents that were new, or not as they were stored.
        n_unchanged: documents that were left alone.
        n_deleted: documents that their files no longer say.
        n_blank: documents without text, which were left out.
        problems: files that could not be read, each with why; what they said before is still stored.
        notes: what the files' owner should know besides.
        others: kinds of files that are not read -> how many there are.
    """

    n_changed: int
    n_unchanged: int
    n_deleted: int
    n_blank: int
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    others: Mapping[str, int] = field(default_factory=dict)


def index_files(
    retriever: JaColBERTRetriever,
    paths: Iterable[str | Path],
    *,
    more: Iterable[Document] = (),
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
        more: documents from elsewhere.
        prune: delete what files of the named folders said that are no longer there.
        progress: show a bar; see `JaColBERTRetriever.add`.

    Raises:
        InvalidInputError: a path does not exist, or a line of JSON is no document; nothing was stored then.
    """
    given = [Path(path).expanduser() for path in paths]
    files, others = files_of(given)
    stored = retriever.extra(FOLDERS_KEY) or {}
    names = FolderNames.of(stored)
    for path in given:
        names.add(path)
    said: dict[str, list[Document]] = {}
    lines: list[Document] = []
    problems: list[str] = []
    notes: list[str] = []
    lacking: Counter[str] = Counter()
    for path in files:
        name = names.name_of(path)
        try:
            found = documents_of(path, name)
        except OptionalDependencyError as error:
            lacking[str(error)] += 1
        except InvalidInputError as error:
            if is_json(path):
                raise
            problems.append(str(error))
        else:
            notes += [f"{path}: {note}" for note in found.notes]
            if is_json(path):
                lines += found.documents
            else:
                said[name] = found.documents
    problems += [f"{n} files were left out: {why}" for why, n in lacking.items()]
    lines += more
    with_text = [document for document in lines if document.text.strip()]
    if names.to_json() != stored:
        retriever.set_extra(FOLDERS_KEY, names.to_json())
    n_changed, n_deleted = replace_files(retriever, said, more=with_text, progress=progress)
    # Ids of version 0.1.0 began with the file's path.
    former = [path.resolve().as_posix() for path in files if names.name_of(path) in said]
    n_deleted += len(_delete(retriever, _no_longer_said(retriever, dict.fromkeys(former, ()))))
    if prune:
        n_deleted += len(_delete(retriever, _of_files_that_are_gone(retriever, given, files, names)))
    n_given = len(with_text) + sum(map(len, said.values()))
    return Outcome(
        n_changed, n_given - n_changed, n_deleted, len(lines) - len(with_text), problems,
        [*names.notes, *notes], others,
    )  # fmt: skip


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
        parent_of(document) or document.id
        for source, current in said.items()
        for document in _stored_of(retriever, source)
        if (parent_of(document) or document.id) not in {each.id for each in current}
    }


def _stored_of(retriever: JaColBERTRetriever, source: str) -> list[Document]:
    """Documents and chunks of a file."""
    found = retriever.get([source, *retriever.ids(f"{source}#")])
    # The source is compared, since another file's name may begin like this one's sections.
    return [document for document in found if document.metadata.get(SOURCE_KEY) == source]


def _of_files_that_are_gone(
    retriever: JaColBERTRetriever, given: Sequence[Path], files: Collection[Path], names: FolderNames
) -> set[str]:
    """Ids of what files of the named folders said that are no longer there."""
    there = {name for path in files for name in (names.name_of(path), path.resolve().as_posix())}
    folders = [path for path in given if path.is_dir()]
    # Version 0.1.0 called files by their paths.
    below = tuple(start for path in folders
                  for start in (*names.starts_within(path), f"{path.resolve().as_posix()}/"))  # fmt: skip
    return {
        parent_of(document) or document.id
        for document in (retriever.documents() if below else ())
        if isinstance(source := document.metadata.get(SOURCE_KEY), str)
        and source.startswith(below)
        and source not in there
    }


def _delete(retriever: JaColBERTRetriever, ids: set[str]) -> set[str]:
    """Delete documents, with their chunks."""
    retriever.delete(sorted(ids))
    return ids
