"""PDF -> its title, and the text of its pages. Needs pypdf, of the extra "files"."""

from __future__ import annotations

import io
import re
from typing import NamedTuple

from jacolbert_rag.errors import InvalidInputError

# Titles that a program gave, and nobody wrote.
_NO_TITLE = re.compile(
    r"(?i)microsoft \w+ - .*|(untitled|無題|document|文書|プレゼンテーション|presentation)\s*\d*|.*\.\w{3,4}"
)
_ENDED = ("。", "．", ".", "！", "？", "!", "?", "」", "』", "）", ")", "：", ":")
_WIDE = re.compile("[\u2e80-\ua4cf\uf900-\ufaff\uff00-\uffef]")
FULL = 0.8  # of the longest line: a line of so much was wrapped


class Pages(NamedTuple):
    """A PDF's title, empty where nobody wrote one, and the text of each page, from the first."""

    title: str
    texts: list[str]


def read_pdf(data: bytes) -> Pages:
    """Title and text of a PDF's pages; pages that are pictures have none.

    Raises:
        InvalidInputError: it cannot be read, or only with a password.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InvalidInputError("it asks for a password. Save it without one.")
        found = reader.metadata.title if reader.metadata is not None else None
        title = " ".join(str(found or "").split())
        texts = [unwrapped(page.extract_text()) for page in reader.pages]
    except InvalidInputError:
        raise
    # Of a broken file: pypdf has errors of its own, and what it finds instead of a number has others.
    except (
        PyPdfError,
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
        NotImplementedError,
    ) as error:
        raise InvalidInputError(f"it is no PDF that can be read ({error}). Save it anew.") from error
    return Pages("" if _NO_TITLE.fullmatch(title) else title, texts)


def unwrapped(text: str) -> str:
    """A page's text with the lines joined that were wrapped: a PDF has lines as they were set, not sentences.

    A line goes on where it is nearly as long as the longest, does not end a sentence, and Japanese stands on
    both sides.
    """
    lines = [line.strip() for line in text.splitlines()]
    full = FULL * max(map(len, lines), default=0)
    joined: list[str] = []
    goes_on = False
    for line in lines:
        if goes_on and line and _WIDE.match(line):
            joined[-1] += line
        else:
            joined.append(line)
        goes_on = len(line) >= full and not line.endswith(_ENDED) and _WIDE.match(line[-1:]) is not None
    return "\n".join(joined).strip()
