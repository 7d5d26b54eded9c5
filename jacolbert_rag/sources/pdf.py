"""PDF -> its title, and the text of its pages. Needs pypdf, of the extra "files"."""

from __future__ import annotations

import io
import logging
import re
import unicodedata
from typing import NamedTuple

from jacolbert_rag.errors import InvalidInputError

# Titles that a program gave, and nobody wrote.
_NO_TITLE = re.compile(
    r"(?i)microsoft \w+ - .*|(untitled|無題|document|文書|プレゼンテーション|presentation)\s*\d*|.*\.\w{3,4}"
)
_ENDED = ("。", "．", ".", "！", "？", "!", "?", "」", "』", "）", ")", "：", ":")
_WIDE = re.compile("[\u2e80-\ua4cf\uf900-\ufaff\uff00-\uffef]")
# Programs that make a PDF may name a glyph by the radical that looks like it, which no search and no reader
# means: those of one block have a compatibility mapping, and of the other Unicode has a list of equals.
_RADICALS = str.maketrans(
    "\u2e9f\u2ea0\u2ec1\u2ec4\u2ec6\u2ed1\u2ed7\u2ed8\u2edd\u2ee3\u2ee4\u2ee8\u2ee9\u2eeb\u2eed\u2eef\u2ef2",
    "母民虎西角長雨青食骨鬼麦黄斉歯竜亀",
) | {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0x2F00, 0x2FD6)}
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

    log = logging.getLogger("pypdf")
    if log.level == logging.NOTSET:  # what it says of a damaged file is told below, or does no harm
        log.setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InvalidInputError("it asks for a password. Save it without one.")
        found = reader.metadata.title if reader.metadata is not None else None
        title = " ".join(str(found or "").split())
        texts = [unwrapped(page.extract_text().translate(_RADICALS)) for page in reader.pages]
    except InvalidInputError:
        raise
    except Exception as error:  # of a broken file pypdf raises what it stumbled over, of any kind
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
