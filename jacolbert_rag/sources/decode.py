"""Bytes of a text file -> text, in the encodings that Japanese files come in."""

from __future__ import annotations

import codecs

from jacolbert_rag.errors import InvalidInputError

# In this order: text in CP932 with any hiragana is no EUC-JP, while much EUC-JP is CP932 of half-width kana.
# EUC-JIS-2004 has ① and its like, which EUC-JP does not name and files have.
LEGACY = ("euc_jp", "euc_jis_2004", "cp932")
NAMES = "UTF-8, UTF-16, CP932 (Shift_JIS), EUC-JP or ISO-2022-JP"
# What pages call Shift_JIS is Windows' table, which has ① and ㈱ besides.
_DECLARED = {"shift_jis": "cp932", "shift-jis": "cp932", "sjis": "cp932", "x-sjis": "cp932", "ms932": "cp932"}


def decode(data: bytes, declared: str | None = None) -> str:
    r"""The text of a file, its line ends as "\n".

    Args:
        data: the file.
        declared: encoding that it names itself; another is looked for where it is not in that one.

    Raises:
        InvalidInputError: it is no text, or in none of these encodings.
    """
    for encoding in _candidates(data, declared):
        try:
            text = data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        if "\0" in text:  # of a picture, or UTF-16 without a mark
            break
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise InvalidInputError(f"it is not text in {NAMES}. Save it as UTF-8.")


def _candidates(data: bytes, declared: str | None) -> list[str]:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return ["utf-16"]
    named = [_DECLARED.get(declared.lower(), declared)] if declared else []
    escaped = ["iso2022_jp_2"] if b"\x1b$" in data else []  # its bytes are ASCII, so UTF-8 would take them
    return [*named, *escaped, "utf-8-sig", *LEGACY]
