"""A file's name and bytes -> its documents: one for a text, one for each section or page of the others."""

from __future__ import annotations

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from jacolbert_rag.datatypes import Document
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.errors import InvalidInputError, OptionalDependencyError
from jacolbert_rag.sources.decode import decode
from jacolbert_rag.sources.html import read_html
from jacolbert_rag.sources.markdown import Section, front_matter, sections
from jacolbert_rag.sources.pdf import read_pdf

SOURCE_KEY = "source"
"""Metadata key under which a document names the file that it is from."""
PAGE_KEY = "page"
"""Metadata key under which a page of a PDF has its number, from 1."""
_OWN_KEYS = (SOURCE_KEY, PAGE_KEY, "chunk", "title")
TITLE_BORDER = " / "
MAX_UNPACKED = 256 * 2**20  # bytes of what gzip has packed


class Part(NamedTuple):
    """What becomes a document of its own.

    Attributes:
        place: in the file, such as 経費/出張 or p3; empty where it is all that the file says.
        title: of the document; empty where the file's name must do.
        text: the file's words.
        metadata: what it says of itself.
    """

    place: str
    title: str
    text: str
    metadata: Mapping[str, Any]


class Content(NamedTuple):
    """Documents of a file, and what its owner should know about it."""

    documents: list[Document]
    notes: list[str]


def _read_text(data: bytes) -> tuple[list[Part], list[str]]:
    return [Part("", "", decode(data), {})], []


def _read_markdown(data: bytes) -> tuple[list[Part], list[str]]:
    values, text, problem = front_matter(decode(data))
    kept = {key: value for key, value in values.items() if key not in _OWN_KEYS}
    notes = [problem] if problem else []
    notes += [f"its front matter's {key!r} is left out, since the index says that itself"
              for key in values if key in _OWN_KEYS and key != "title"]  # fmt: skip
    title = values.get("title")
    return list(_of_sections(str(title) if title is not None else "", sections(text), kept)), notes


def _read_html(data: bytes) -> tuple[list[Part], list[str]]:
    page = read_html(data)
    return list(_of_sections(page.title, page.sections, {})), []


def _read_pdf(data: bytes) -> tuple[list[Part], list[str]]:
    title, texts = read_pdf(data)
    n_blank = sum(not text for text in texts)
    if n_blank == len(texts):
        raise InvalidInputError("its pages are pictures without text. Put it through OCR first.")
    notes = [f"{n_blank} of its {len(texts)} pages have no text; pictures need OCR first"] if n_blank else []
    return [Part(f"p{n}", title, text, {PAGE_KEY: n}) for n, text in enumerate(texts, start=1)], notes


class _Format(NamedTuple):
    read: Callable[[bytes], tuple[list[Part], list[str]]]
    needs: tuple[str, str] | None = None  # the module, and the package that has it


_TEXT, _MARKDOWN = _Format(_read_text), _Format(_read_markdown)
_HTML, _PDF = _Format(_read_html, ("bs4", "beautifulsoup4")), _Format(_read_pdf, ("pypdf", "pypdf"))
_FORMATS = {
    ".txt": _TEXT, ".text": _TEXT, ".md": _MARKDOWN, ".markdown": _MARKDOWN,
    ".html": _HTML, ".htm": _HTML, ".pdf": _PDF,
}  # fmt: skip
SUFFIXES = tuple(_FORMATS)
"""Of the files that `content_of` reads."""


def content_of(name: str, data: bytes) -> Content:
    """The documents of a text, Markdown, HTML or PDF file.

    Ids are `NAME`, `NAME#CHAPTER/SECTION` and `NAME#p3`, so that they stay when other sections come and go;
    metadata is what the file says of itself, and the name under "source". A section's title is the file's
    and the headings above it.

    Args:
        name: of the file: the documents' source, which also tells the format, under .gz too.
        data: all of it.

    Raises:
        InvalidInputError: it is of none of these formats, or cannot be read.
        OptionalDependencyError: the package that reads it is not installed.
    """
    path = PurePosixPath(name)
    if (form := _FORMATS.get(suffix_of(path))) is None:
        raise InvalidInputError(f"{name} is of no format that is read here: {', '.join(SUFFIXES)}.")
    if form.needs is not None and find_spec(form.needs[0]) is None:
        raise OptionalDependencyError(
            f"{suffix_of(path)} files need {form.needs[1]}. Run: pip install 'jacolbert-rag[files]'"
        )
    parts, notes = form.read(unpacked(data) if path.suffix.lower() == ".gz" else data)
    return Content(list(_documents(name, parts)), notes)


def unpacked(data: bytes) -> bytes:
    """What gzip has packed.

    Raises:
        InvalidInputError: it is damaged, or too large.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            found = file.read(MAX_UNPACKED + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidInputError(f"it cannot be unpacked ({error}). Pack it anew.") from error
    if len(found) > MAX_UNPACKED:
        raise InvalidInputError(f"it unpacks to more than {MAX_UNPACKED:,} bytes. Split it.")
    return found


def suffix_of(path: PurePosixPath) -> str:
    """The suffix that tells the format, under .gz."""
    inner = PurePosixPath(path.stem) if path.suffix.lower() == ".gz" else path
    return inner.suffix.lower()


def _of_sections(title: str, found: list[Section], metadata: Mapping[str, Any]) -> Iterator[Part]:
    for headings, text in found:
        above = headings
        # A page's title mostly says what its first heading does, with the site's name.
        if title and not (headings and (headings[0] in title or title in headings[0])):
            above = (title, *headings)
        yield Part("/".join(headings), TITLE_BORDER.join(above), text, metadata)


def _documents(name: str, parts: list[Part]) -> Iterator[Document]:
    seen: set[str] = set()
    numbers: Counter[str] = Counter()
    for part in parts:
        if not clean(part.text).strip():
            continue
        own = id = f"{name}#{part.place}" if part.place else name
        while id in seen:  # the first with -2, -3 and so on behind it that is not taken
            numbers[own] += 1
            id = f"{own}-{numbers[own] + 1}"
        seen.add(id)
        yield Document(id, part.text.strip(), {**part.metadata, SOURCE_KEY: name}, part.title or _stem(name))


def _stem(name: str) -> str:
    """A file's name without what tells its kind."""
    path = PurePosixPath(name)
    return PurePosixPath(path.stem).stem if path.suffix.lower() == ".gz" else path.stem
