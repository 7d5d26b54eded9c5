"""Files of people -> documents: JSON lines, plain text, Markdown; each also packed by gzip."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Container, Iterable, Iterator
from itertools import chain, count
from pathlib import Path

from jacolbert_rag.datatypes import Document
from jacolbert_rag.errors import InvalidInputError

JSON_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text")
MARKDOWN_SUFFIXES = (".md", ".markdown")
READ_SUFFIXES = (*JSON_SUFFIXES, *TEXT_SUFFIXES, *MARKDOWN_SUFFIXES)
_HEADING = re.compile(r"(#{1,6})[ \t]+(\S.*?)(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")


def files_of(paths: list[Path]) -> Iterator[Path]:
    """The named files, and the readable ones below named folders, in order of name."""
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and suffix_of(p) in READ_SUFFIXES)
            if not found:
                raise InvalidInputError(f"{path} holds no file of {', '.join(READ_SUFFIXES)} (.gz too).")
            yield from found
        elif not path.exists():
            raise InvalidInputError(f"{path} does not exist. Name a file or a folder.")
        elif suffix_of(path) not in READ_SUFFIXES:
            raise InvalidInputError(
                f"{path} is not readable here: expected {', '.join(READ_SUFFIXES)}, each also with .gz. "
                "Turn it into one of these first."
            )
        else:
            yield path


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, under .gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def name_of(path: Path) -> str:
    """What a file is called in an index, wherever the command ran."""
    return path.resolve().as_posix()


def documents_of(path: Path) -> Iterator[Document]:
    """Documents of one file."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline=None) as file:
            if not is_text(path):
                yield from read_json_lines(path, file)
            else:
                yield from _read_text(path, file.read())
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InvalidInputError(
            f"{path} is not readable as UTF-8 text ({error}). Save it as UTF-8; of Shift_JIS: "
            "iconv -f CP932 -t UTF-8."
        ) from error


def is_text(path: Path) -> bool:
    """Whether all of a file's documents are its own, to go when it no longer has them: not JSON lines."""
    return suffix_of(path) not in JSON_SUFFIXES


def read_json_lines(path: object, file: Iterable[str]) -> Iterator[Document]:
    """Documents of JSON lines.

    Args:
        path: what the file is called in messages.
        file: its lines.

    Raises:
        InvalidInputError: a line is no document.
    """
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"{where} is not JSON ({error}).") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InvalidInputError(f'{where} is no object with a string "text".')
        key = row.get("_id", row.get("id"))
        metadata = {} if row.get("metadata") is None else row["metadata"]
        title = "" if row.get("title") is None else row["title"]
        if not isinstance(metadata, dict) or not isinstance(title, str):
            raise InvalidInputError(f'{where}: "metadata" must be an object and "title" a string.')
        if key is None:
            yield Document.from_text(row["text"], metadata, title)
        else:
            yield Document(id=str(key), text=row["text"], metadata=metadata, title=title)


def _read_text(path: Path, text: str) -> Iterator[Document]:
    """A text file as a document, or the sections of a Markdown file, each with its heading for a title.

    A section's id is `FILE#CHAPTER/SECTION`, so that it stays when sections come and go around it.
    """
    source, seen = name_of(path), set[str]()
    found = sections(text) if suffix_of(path) in MARKDOWN_SUFFIXES else [((), text)]
    for headings, body in found:
        if body.strip():
            id = _unused("#".join([source, "/".join(headings)]) if headings else source, seen)
            seen.add(id)
            title = headings[-1] if headings else _title(path)
            yield Document(id, body.strip(), {"source": source}, title)


def _title(path: Path) -> str:
    """A file's name without what tells its kind."""
    name = path.name[:-3] if path.suffix.lower() == ".gz" else path.name
    return name.removesuffix(Path(name).suffix)


def _unused(id: str, seen: Container[str]) -> str:
    """The id, or the first of it with -2, -3 and so on behind that is not taken."""
    numbered = (f"{id}-{n}" for n in count(2))
    return next(key for key in chain([id], numbered) if key not in seen)


def sections(text: str) -> list[tuple[tuple[str, ...], str]]:
    """Sections of Markdown: the headings above each, its own last, and the text up to the next heading.

    What stands before the first heading has none.
    """
    sections: list[tuple[tuple[str, ...], list[str]]] = [((), [])]
    open_headings: list[tuple[int, str]] = []  # level and text
    fence = None
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and fence in (None, mark[1]):
            fence = None if fence else mark[1]
        heading = None if fence or mark else _HEADING.match(line.rstrip("\r\n"))
        if heading:
            level = len(heading[1])
            open_headings = [h for h in open_headings if h[0] < level] + [(level, heading[2])]
            sections.append((tuple(title for _, title in open_headings), []))
        else:
            sections[-1][1].append(line)
    return [(headings, "".join(lines)) for headings, lines in sections]
