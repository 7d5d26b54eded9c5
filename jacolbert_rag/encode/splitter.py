"""Long Japanese text to passages of whole sentences that fit the model."""

from __future__ import annotations

import re
from collections.abc import Callable

# A sentence runs to 。！？ (full-width or not), with the closing brackets and quotes that follow, or to
# the end of its line.
_SENTENCE = re.compile(r"[^。！？!?\n]*(?:[。！？!?]+[」』）)】\]”’\"']*|\n|$)")


def split(text: str, count: Callable[[str], int], budget: int) -> list[str]:
    """Passages of whole sentences, each within a budget of tokens.

    Args:
        text: any text.
        count: tokens of a string, such as `lambda s: len(tokenizer.word_ids(s))`.
        budget: most tokens of a passage, at least 1. A longer sentence is cut where the budget ends.

    Returns:
        Passages in order, without the white space around them; joined they are the text but for that.
    """
    passages: list[str] = []
    passage, used = "", 0
    for sentence in _SENTENCE.findall(text):
        size = count(sentence)
        if passage and used + size > budget:
            passages.append(passage)
            passage, used = "", 0
        if size > budget:
            *whole, sentence = _cut(sentence, count, budget)
            passages += whole
            size = count(sentence)
        passage, used = passage + sentence, used + size
    return [kept for kept in (p.strip() for p in [*passages, passage]) if kept]


def _cut(sentence: str, count: Callable[[str], int], budget: int) -> list[str]:
    """Halves of halves of a sentence, until each is within the budget."""
    if count(sentence) <= budget or len(sentence) < 2:
        return [sentence]
    middle = len(sentence) // 2
    return [*_cut(sentence[:middle], count, budget), *_cut(sentence[middle:], count, budget)]
