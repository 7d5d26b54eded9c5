"""Bytes of a text file -> text, in the encodings that Japanese files come in."""

from __future__ import annotations

import codecs

from jacolbert_rag.errors import InvalidInputError

# In this order: text in CP932 with any hiragana is no EUC-JP, while much EUC-JP is CP932 of half-width kana.
# EUC-JIS-2004 has ① and its like, which EUC-JP does not name and files have.
LEGACY = ("euc_jp", "euc_jis_2004", "cp932")
NAMES = "UTF-8, UTF-16, CP932 (Shift_JIS), EUC-JP or ISO-2022-JP"
# Encodings that a page may name, by Python's names. What pages call Shift_JIS is Windows' table, which has ①
# and ㈱ besides; UTF-16 that can be read as ASCII is not, whatever it says.
_EAST_ASIAN = {
    "shift_jis": "cp932",
    "shift_jisx0213": "cp932",
    **{name: name for name in ("cp932", "euc_jp", "euc_jis_2004", "iso2022_jp", "gb18030", "gbk", "gb2312")},
    **{name: name for name in ("big5", "euc_kr")},
}
# Named where nobody has chosen it, so only what is no UTF-8 is that.
_WESTERN = {"iso8859-1": "cp1252", "cp1252": "cp1252", "ascii": "cp1252"}


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
        except UnicodeDecodeError:
            continue
        if "\0" in text:  # of a picture, or UTF-16 without a mark
            break
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise InvalidInputError(f"it is not text in {NAMES}. Save it as UTF-8.")


def _candidates(data: bytes, declared: str | None) -> list[str]:
    if data.startswith(codecs.BOM_UTF8):
        return ["utf-8-sig"]
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return ["utf-16"]
    try:
        named = codecs.lookup(declared).name if declared else ""
    except (LookupError, ValueError):  # ValueError: a NUL in its name
        named = ""
    first = [_EAST_ASIAN[named]] if named in _EAST_ASIAN else []
    escaped = ["iso2022_jp_2"] if b"\x1b$" in data else []  # its bytes are ASCII, so UTF-8 would take them
    western = [_WESTERN[named]] if named in _WESTERN else []
    return [*first, *escaped, "utf-8", *western, *LEGACY]
