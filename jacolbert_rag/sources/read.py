"""Named files and folders -> what they say, and what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jacolbert_rag.datatypes import Document
from jacolbert_rag.encode.splitter import parent_of
from jacolbert_rag.errors import InvalidInputError, OptionalDependencyError
from jacolbert_rag.index.database import check_documents
from jacolbert_rag.retriever import JaColBERTRetriever
from jacolbert_rag.sources.files import documents_of, files_of, is_json
from jacolbert_rag.sources.formats import SOURCE_KEY
from jacolbert_rag.sources.names import FolderNames

FOLDERS_KEY = "folders"  # of what is kept with an index


def folder_names(index: JaColBERTRetriever) -> FolderNames:
    """What folders are called in an index."""

    def stored(folder: str) -> Collection[str]:
        named = (file_of(document) for document in index.documents())
        return {name for name in named if name is not None and name.startswith(f"{folder}/")}

    return FolderNames.of(index.extra(FOLDERS_KEY) or {}, stored)


def file_of(document: Document) -> str | None:
    """The file that a document was read from here; None for others, whatever source they name."""
    source, id = document.metadata.get(SOURCE_KEY), parent_of(document) or document.id
    return source if isinstance(source, str) and (id == source or id.startswith(f"{source}#")) else None


@dataclass(frozen=True)
class Reading:
    """What files say.

    Attributes:
        said: a file's name, which is its documents' "source" -> its documents.
        lines: documents of JSON lines, which have ids of their own.
        folders: those that were named.
        paths: of all files, read or not.
        unlisted: folders whose files are not known.
        names: of the files.
        n_blank: documents of JSON lines without text, which are left out.
        problems: files that could not be read, each with why.
        notes: what their owner should know besides.
        others: kinds of files that are not read -> how many there are.
    """

    said: Mapping[str, Sequence[Document]]
    lines: Sequence[Document]
    folders: Sequence[Path]
    paths: Sequence[Path]
    unlisted: Sequence[Path]
    names: FolderNames
    n_blank: int
    problems: Sequence[str]
    notes: Sequence[str]
    others: Mapping[str, int]


def read_files(
    paths: Iterable[str | Path],
    *,
    index: JaColBERTRetriever | None = None,
    more: Iterable[Document] = (),
    may_be_empty: bool = False,
) -> Reading:
    """Read files, and those below folders.

    Args:
        paths: of files or folders.
        index: that knows what folders are called; None where there is none yet.
        more: documents from elsewhere.
        may_be_empty: whether a folder may have no file that is read.

    Raises:
        InvalidInputError: a path does not exist or is of no kind that is read, or an id is there twice.
    """
    given = [Path(path).expanduser() for path in paths]
    files, others, unlisted = files_of(given, may_be_empty=may_be_empty)
    names = folder_names(index) if index is not None else FolderNames({})
    for path in given:
        names.add(path)
    said: dict[str, list[Document]] = {}
    lines: dict[str, Document] = {}
    where: dict[str, str] = {}
    problems = [f"{path}: the folder cannot be listed. Check who may read it." for path in unlisted]
    notes: list[str] = []
    ids: set[str] = set()
    lacking: Counter[str] = Counter()

    def add(found: Iterable[Document], origin: str) -> None:
        for document in found:
            # Texts without an id have that of what they say.
            if document.id in lines and lines[document.id] != document:
                raise InvalidInputError(
                    f"The id {document.id!r} is of two documents, in {where[document.id]} and in {origin}. "
                    "Give each its own."
                )
            lines[document.id], where[document.id] = document, origin

    for path in files:
        name = names.name_of(path)
        try:
            found = documents_of(path, name)
            check_documents(found.documents)
            if name in said:
                raise InvalidInputError(f"{path}: another file is called {name}, too. Rename one.")
            if taken := next((each.id for each in found.documents if each.id in ids), None):
                raise InvalidInputError(f"{path}: another file has a section {taken}, too. Rename one.")
        except OptionalDependencyError as error:
            lacking[str(error)] += 1
        except InvalidInputError as error:
            problems.append(str(error))
        else:
            notes += [f"{path}: {note}" for note in found.notes]
            if is_json(path):
                add(found.documents, str(path))
            else:
                said[name] = found.documents
                ids |= {each.id for each in found.documents}
                notes += [f"{path}: it has no text"] if not found.documents else []
    add(more, "standard input")
    problems += [f"{n} file{'s' * (n != 1)}: {why}" for why, n in lacking.items()]
    with_text = [document for document in lines.values() if document.text.strip()]
    return Reading(
        said, with_text, [path for path in given if path.is_dir()], files, unlisted, names,
        len(lines) - len(with_text), problems, [*names.notes, *notes], others,
    )  # fmt: skip
