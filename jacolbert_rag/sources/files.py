"""Named files and folders -> the files in them that can be read, and the documents of each."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.index import layout
from jacolbert_rag.sources import formats, json_lines
from jacolbert_rag.sources.formats import Content, content_of, suffix_of, unpacked
from jacolbert_rag.sources.json_lines import read_json_lines

LINK = "link to a folder"
READ_SUFFIXES = (*json_lines.SUFFIXES, *formats.SUFFIXES)


class Files(NamedTuple):
    """Files that can be read, in order; how many there are of other kinds; folders that cannot be listed."""

    paths: list[Path]
    others: Counter[str]
    unlisted: list[Path]


def files_of(paths: Iterable[Path], *, may_be_empty: bool = False) -> Files:
    """The named files, and those below named folders, in order of name; hidden ones are left out.

    Args:
        paths: of files and folders.
        may_be_empty: whether a folder may have no file that is read.

    Raises:
        InvalidInputError: there is none of a name, or none of a kind that is read.
    """
    found: dict[Path, None] = {}
    others: Counter[str] = Counter()
    unlisted: list[Path] = []
    for path in paths:
        if _is_dir(path):
            inside = list(_below(path, unlisted))
            readable = {each: None for each in inside if each.is_file() and is_readable(each)}
            if not readable and not may_be_empty and not unlisted:
                raise InvalidInputError(f"{path} holds no file of {', '.join(READ_SUFFIXES)} (.gz too).")
            found |= readable
            others += Counter(_kind(each) for each in inside if each not in readable)
        elif not path.exists():
            raise InvalidInputError(f"{path} does not exist. Name a file or a folder.")
        elif not is_readable(path):
            raise InvalidInputError(
                f"{path} is not readable here: expected {', '.join(READ_SUFFIXES)}, each also with .gz. "
                "Turn it into one of these first."
            )
        else:
            found[path] = None
    return Files(list(found), others, unlisted)


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name that is too long
        raise InvalidInputError(f"{path} cannot be read ({error.strerror}). Name another.") from error


def _below(folder: Path, unlisted: list[Path]) -> Iterator[Path]:
    """Files below a folder, and links to other folders, which are not followed.

    What begins with a dot is a program's: .git, .venv, ._name of macOS.
    """
    for place, inner, names in os.walk(folder, onerror=lambda error: unlisted.append(Path(error.filename))):
        inner[:] = sorted(
            name for name in inner if not name.startswith(".") and not _is_index(Path(place, name))
        )
        yield from (path for name in inner if (path := Path(place, name)).is_symlink())
        paths = (Path(place, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())  # and no pipe, nor a link to nothing


def _is_index(folder: Path) -> bool:
    try:
        return layout.exists(folder)
    except OSError:  # it may not be looked into, which is told when it cannot be listed
        return False


def _kind(path: Path) -> str:
    """What a file that is not read is."""
    return LINK if path.is_dir() else path.suffix.lower() or path.name


def is_readable(path: Path) -> bool:
    """Whether documents can be read of a file of this name."""
    return suffix_of(PurePosixPath(path.name)) in READ_SUFFIXES


def is_json(path: Path) -> bool:
    """Whether a file's documents have ids of their own, and stay when it no longer has them."""
    return suffix_of(PurePosixPath(path.name)) in json_lines.SUFFIXES


def documents_of(path: Path, name: str | None = None) -> Content:
    """Documents of one file.

    Args:
        path: of the file.
        name: what it is called in their ids and "source"; None for its own.

    Raises:
        InvalidInputError: it cannot be read; of JSON lines the message names the line.
        OptionalDependencyError: the package that reads it is not installed.
    """
    try:
        data = path.read_bytes()
        if not is_json(path):
            return content_of(name if name is not None else path.name, data)
        text = (unpacked(data) if path.suffix.lower() == ".gz" else data).decode("utf-8-sig")
    except OSError as error:
        raise InvalidInputError(
            f"{path}: it cannot be read ({error.strerror}). Check who may read it."
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path}: it is not UTF-8 ({error}), as JSON must be. Save it as UTF-8; of Shift_JIS: "
            "iconv -f CP932 -t UTF-8."
        ) from error
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from error
    # Not at every line break of Unicode: a text may hold one.
    return Content(list(read_json_lines(path, io.StringIO(text, newline=None))), [])
