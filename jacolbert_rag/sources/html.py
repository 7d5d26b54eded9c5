"""HTML -> its title, and its sections. Needs beautifulsoup4, of the extra "files"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.sources.decode import decode
from jacolbert_rag.sources.markdown import Heading, Section, grouped

if TYPE_CHECKING:
    from bs4.element import Tag

# What is no text of a page: what steers it, what leads elsewhere, and the readings beside kanji, which would
# be read as words between them.
LEFT_OUT = (
    "script", "style", "template", "noscript", "svg", "nav", "footer", "button", "select", "textarea",
    "datalist", "rt", "rp", "title",
)  # fmt: skip
MAX_OPEN = 1_000  # signs of a tag that none ends: the time that the parser takes grows with their square
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_CELLS = ("td", "th")
_BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "br", "caption", "dd", "details", "div", "dl", "dt",
    "figcaption", "figure", "header", "hr", "li", "main", "ol", "p", "pre", "section", "summary", "table",
    "tr", "ul", *_HEADINGS,
))  # fmt: skip
_HEADING = re.compile("\0([1-6])(.*)")
_SPACES = re.compile(r"[ \t\r\n\f]+")
_WIDE = "[\u2e80-\ua4cf\uf900-\ufaff\uff00-\uffef]"  # kanji, kana, their marks and full-width forms
_WRAPPED = re.compile(rf"(?<={_WIDE})[ \t]*[\r\n]\s*(?={_WIDE})")


class Page(NamedTuple):
    """A page's title, and its sections; empty where it has none."""

    title: str
    sections: list[Section]


def read_html(data: bytes) -> Page:
    """Title and sections of a page, in the encoding that it names, or else looks like.

    Lines are those of paragraphs, list items and rows, whatever lines the file has.

    Raises:
        InvalidInputError: it is no text, or no HTML that can be read.
    """
    from bs4 import BeautifulSoup
    from bs4.dammit import EncodingDetector
    from bs4.exceptions import ParserRejectedMarkup

    text = decode(data, EncodingDetector.find_declared_encoding(data, is_html=True))
    if text.count("<") - text.count(">") > MAX_OPEN:
        raise InvalidInputError(
            "it is no HTML that can be read: its tags do not end. Save it anew in a browser."
        )
    try:
        page = BeautifulSoup(text.replace("\0", ""), "html.parser")
    except (ParserRejectedMarkup, RecursionError) as error:
        raise InvalidInputError("it is no HTML that can be read. Save it anew in a browser.") from error
    title = " ".join(page.title.get_text().split()) if page.title is not None else ""
    main = page.find("main")
    text = "".join(_pieces(main)) if main is not None else ""
    if not text.strip():
        text = "".join(_pieces(page.body or page))
    lines = (line.rstrip() for line in text.split("\n"))
    return Page(title, list(grouped(_line(line) for line in lines if line.strip())))


def _pieces(root: Tag) -> Iterator[str]:
    """Text of a page, a line break around each block, and a heading's level before it.

    A walk that changes nothing: to insert something costs time that grows with a page's length.
    """
    from bs4.element import NavigableString, Tag

    heading = ""  # that the walk is in
    n_pre = 0
    stack = [(root, iter(root.contents))]
    while stack:
        tag, children = stack[-1]
        child = next(children, None)
        if child is None:
            stack.pop()
            n_pre -= tag.name == "pre"
            if tag.name == heading:
                heading = ""
            yield " " if tag.name in _CELLS else _border(tag.name, heading)
        elif isinstance(child, Tag):
            if child.name in LEFT_OUT:
                continue
            yield _border(child.name, heading)
            if child.name in _HEADINGS and not heading:
                heading = child.name
                yield f"\0{_HEADINGS[heading]}"
            n_pre += child.name == "pre"
            stack.append((child, iter(child.contents)))
        elif type(child) is NavigableString:  # and no comment
            yield str(child) if n_pre else _SPACES.sub(" ", _WRAPPED.sub("", child))


def _border(name: str, heading: str) -> str:
    """What lies before and behind an element; a heading is one line."""
    if name not in _BLOCKS:
        return ""
    return " " if heading else "\n"


def _line(line: str) -> str | Heading:
    """A line of text, or the heading that it is; one without words is nothing."""
    found = _HEADING.fullmatch(line.strip())
    if found is None:
        return f"{line.strip(' ')}\n"
    words = " ".join(found[2].split())
    return Heading(int(found[1]), words) if words else ""
