"""Markdown -> its front matter, and its sections."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

_HEADING = re.compile(r"(#{1,6})[ \t]+(.*)")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")  # ```code``` is code within a line
_FRONT = re.compile(r"---[ \t]*\n(?P<yaml>(?:.*\n)*?)(?:---|\.\.\.)[ \t]*(?:\n|\Z)")
MAX_FRONT = 20_000  # characters; a longer one is text
MAX_DEPTH = 20  # of brackets: the time that YAML takes grows with its square


class Section(NamedTuple):
    """Headings above a section, its own last, and its text up to the next heading."""

    headings: tuple[str, ...]
    text: str


class Heading(NamedTuple):
    """What stands above a section; 1 is the highest level."""

    level: int
    words: str


class FrontMatter(NamedTuple):
    """What a file says of itself, the text behind that, and what is to be said about it."""

    values: Mapping[str, Any]
    text: str
    problem: str = ""


def front_matter(text: str) -> FrontMatter:
    """YAML between lines of --- at the beginning of a file.

    What is no mapping is text, such as a paragraph between two rules. Dates become text in ISO's form, so
    that values are plain JSON.
    """
    found = _FRONT.match(text)
    if found is None or len(found["yaml"]) > MAX_FRONT:
        return FrontMatter({}, text)
    import yaml

    if _depth(found["yaml"]) > MAX_DEPTH:
        return FrontMatter({}, text, "its front matter is nested too deeply, so it is read as text")
    try:
        # An alias may make a thousand values of one, and those a thousand each.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(found["yaml"], yaml.SafeLoader)):
            return FrontMatter({}, text, "its front matter has YAML aliases, so it is read as text")
        values = yaml.safe_load(found["yaml"])
        if not isinstance(values, dict):
            said = "" if isinstance(values, str) or values is None else "its front matter names no fields"
            return FrontMatter({}, text, said)
        return FrontMatter({str(key): _plain(value) for key, value in values.items()}, text[found.end() :])
    except Exception as error:  # YAML's, and what makes a date of the 31st of February, or a number of ''
        return FrontMatter({}, text, f"its front matter is not YAML, so it is read as text ({_why(error)})")


def _why(error: Exception) -> str:
    """What is wrong with YAML, with the line of the file, and what is wrong most often."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return str(error)
    hint = "write key: value, with a half-width colon, and quotes round a value that has one"
    return f"line {mark.line + 2}: {problem}; {hint}"


def _depth(yaml: str) -> int:
    """How many brackets are open at most, those in strings too."""
    depths = accumulate((char in "[{") - (char in "]}") for char in yaml)
    return max(depths, default=0)


def _plain(value: Any, depth: int = 0) -> Any:
    """A value of YAML in JSON's types.

    Raises:
        ValueError: it is nested too deeply, or a number is too long.
    """
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        return {str(key): _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, datetime.date):  # and datetime
        return value.isoformat()
    if isinstance(value, int):
        str(value)  # fails where it has more digits than Python writes
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def sections(text: str) -> list[Section]:
    """Sections of Markdown, in order. What stands before the first heading has none."""
    return list(grouped(_lines(text)))


def grouped(lines: Iterable[str | Heading]) -> Iterator[Section]:
    """Lines, with their ends, as sections under the headings above them; the first has none."""
    above: list[Heading] = []
    held: list[str] = []
    for line in lines:
        if isinstance(line, str):
            held.append(line)
            continue
        yield Section(tuple(each.words for each in above), "".join(held))
        held, above = [], [*(each for each in above if each.level < line.level), line]
    yield Section(tuple(each.words for each in above), "".join(held))


def _lines(text: str) -> Iterator[str | Heading]:
    """Lines of Markdown, headings outside code apart."""
    fence = ""  # that is open
    for line in text.splitlines(keepends=True):
        words = line.rstrip()
        mark = _FENCE.match(words)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and not words[mark.end() :]:
            fence = ""
        yield (None if fence or mark else _heading(words)) or line


def _heading(line: str) -> Heading | None:
    """A heading without the #s behind it; None where a line is none."""
    found = _HEADING.match(line)
    if found is None:
        return None
    bare = found[2].rstrip("#")
    words = (found[2] if bare and bare[-1] not in " \t" else bare).strip()  # C# keeps its own
    return Heading(len(found[1]), words) if words else None
