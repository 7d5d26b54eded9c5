from __future__ import annotations

from jacolbert_rag.encode.splitter import split


def test_whole_sentences_within_the_budget() -> None:
    text = "一つ目の文。二つ目の文！三つ目の文？「四つ目。」五つ目の文。"
    passages = split(text, len, 14)
    assert passages == ["一つ目の文。二つ目の文！", "三つ目の文？「四つ目。」", "五つ目の文。"]
    assert "".join(passages) == text


def test_line_ends_end_sentences() -> None:
    assert split("見出し\n本文です\n\n次の段落", len, 5) == ["見出し", "本文です", "次の段落"]


def test_too_long_a_sentence_is_cut() -> None:
    passages = split("前。" + "あ" * 25 + "。後。", len, 10)
    assert all(len(p) <= 10 for p in passages)
    assert "".join(passages) == "前。" + "あ" * 25 + "。後。"


def test_nothing_to_split() -> None:
    assert split("", len, 10) == []
    assert split(" \n\u3000\n", len, 10) == []
    assert split("句点のない文", len, 100) == ["句点のない文"]


def test_one_character_may_exceed_the_budget() -> None:
    assert split("長", lambda s: 5 * len(s), 2) == ["長"]
