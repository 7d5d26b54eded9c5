"""HTML -> its title, and its sections. Needs beautifulsoup4, of the extra "files"."""

from __future__ import annotations

import re
from typing import NamedTuple

from jacolbert_rag.sources.decode import decode
from jacolbert_rag.sources.markdown import Section

# What is no text of a page: what steers it, what leads elsewhere, and the readings beside kanji, which would
# be read as words between them.
LEFT_OUT = ("script", "style", "template", "noscript", "svg", "nav", "footer", "form", "rt", "rp", "title")
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_CELLS = ("td", "th")
_BLOCKS = (
    "address", "article", "aside", "blockquote", "br", "caption", "dd", "details", "div", "dl", "dt",
    "figcaption", "figure", "header", "hr", "li", "main", "ol", "p", "pre", "section", "summary", "table",
    "tr", "ul", *_HEADINGS,
)  # fmt: skip
_HEADING = re.compile("\0([1-6])(.*)")
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
        InvalidInputError: it is no text.
    """
    from bs4 import BeautifulSoup
    from bs4.dammit import EncodingDetector
    from bs4.element import NavigableString

    text = decode(data, EncodingDetector.find_declared_encoding(data, is_html=True))
    page = BeautifulSoup(text.replace("\0", ""), "html.parser")
    title = " ".join(page.title.get_text().split()) if page.title is not None else ""
    root = page.find("main") or page.body or page
    for each in root(LEFT_OUT):
        each.decompose()
    for string in root.find_all(string=True):
        if type(string) is not NavigableString:  # a comment
            string.extract()
        elif string.find_parent("pre") is None:
            string.replace_with(re.sub(r"[ \t\r\n\f]+", " ", _WRAPPED.sub("", string)))
    for block in root(_BLOCKS):
        level = _HEADINGS.get(block.name)
        if level is not None:
            words = " ".join(block.get_text().split())
            block.string = f"\0{level}{words}" if words else ""
        block.insert_before("\n")
        block.insert_after("\n")
    for cell in root(_CELLS):
        cell.insert_after(" ")
    lines = (line.rstrip() for line in root.get_text().split("\n"))
    return Page(title, _sections([line for line in lines if line.strip()]))


def _sections(lines: list[str]) -> list[Section]:
    """Lines under the headings above them."""
    found: list[tuple[tuple[str, ...], list[str]]] = [((), [])]
    above: list[tuple[int, str]] = []
    for line in lines:
        heading = _HEADING.fullmatch(line.strip())
        if heading is None:
            found[-1][1].append(line.strip(" "))
            continue
        level = int(heading[1])
        above = [each for each in above if each[0] < level] + [(level, heading[2].strip())]
        found.append((tuple(words for _, words in above), []))
    return [Section(headings, "\n".join(text)) for headings, text in found]
