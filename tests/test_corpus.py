"""The demo corpus keeps its promises."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import fugashi
import unidic_lite

FOLDER = Path(__file__).parents[1] / "examples" / "corpus"
# Parts of speech that carry a topic; particles, auxiliaries, pronouns, conjunctions and symbols do not.
CONTENT = {"名詞", "動詞", "形容詞", "形状詞", "副詞", "接頭辞", "接尾辞"}
# Base forms that say nothing of a topic: light verbs, formal nouns, question words.
EMPTY = {
    "為る", "有る", "居る", "成る", "出来る", "事", "物", "時", "為", "所", "様", "方", "何", "何処", "何時",
    "幾つ", "幾ら", "御", "無い", "良い", "です", "言う", "どう", "如何", "人",
}  # fmt: skip


@cache
def corpus() -> dict[str, dict[str, Any]]:
    return {row["_id"]: row for row in _rows("corpus.jsonl")}


@cache
def queries() -> dict[str, dict[str, Any]]:
    return {row["_id"]: row for row in _rows("queries.jsonl")}


@cache
def relevant(split: str = "test") -> dict[str, list[str]]:
    found = defaultdict(list)
    with (FOLDER / "qrels" / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            assert row["score"] == "1"
            found[row["query-id"]].append(row["corpus-id"])
    return dict(found)


def _rows(name: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]
    assert len({row["_id"] for row in rows}) == len(rows)
    return rows


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {key: row for key, row in queries().items() if row["metadata"]["kind"] == kind}


def passage(key: str) -> str:
    return f"{corpus()[key]['title']} {corpus()[key]['text']}"


def content_words(text: str) -> set[str]:
    """Base forms of a text's content words, as dictionary headwords and as written."""
    tagger = fugashi.Tagger(f'-d "{unidic_lite.DICDIR}"')
    words: set[str] = set()
    for word in tagger(unicodedata.normalize("NFKC", text)):
        if word.feature.pos1 in CONTENT:
            headword = (word.feature.lemma or word.surface).split("-")[0]
            forms = {headword, word.feature.orthBase or word.surface}
            if not forms & EMPTY:
                words |= forms
    return words


def test_sizes() -> None:
    assert len(corpus()) >= 200
    assert len(relevant()) >= 100
    kinds = Counter(row["metadata"]["kind"] for row in queries().values())
    assert kinds["paraphrase"] >= 25
    assert kinds["variant"] >= 15
    assert kinds["unanswerable"] >= 20


def test_judgements_name_what_exists() -> None:
    assert set(relevant()) <= set(queries())
    assert {key for keys in relevant().values() for key in keys} <= set(corpus())


def test_answerable_questions_are_judged_and_others_are_not() -> None:
    for key, row in queries().items():
        assert row["metadata"]["answerable"] == (key in relevant()), key
        assert row["metadata"]["answerable"] == (row["metadata"]["kind"] != "unanswerable"), key
        assert row["metadata"]["split"] == "test"


def test_paraphrases_have_a_split_of_their_own() -> None:
    own = {key: documents for key, documents in relevant().items() if key in of_kind("paraphrase")}
    assert relevant("paraphrase") == own


def test_paraphrases_share_no_content_word_with_their_passage() -> None:
    for key, row in of_kind("paraphrase").items():
        words = content_words(row["text"])
        assert words, key
        for found in relevant()[key]:
            assert not words & content_words(passage(found)), (key, found)


def test_variants_are_written_otherwise_than_in_their_passage() -> None:
    for key, row in of_kind("variant").items():
        text = " ".join(passage(found) for found in relevant()[key])
        assert row["metadata"]["variants"], key
        for asked, stored in row["metadata"]["variants"]:
            assert asked in row["text"], key
            assert stored in text, key
            assert asked not in text, key
            assert stored not in row["text"], key


def test_passages_are_passages() -> None:
    texts = [row["text"] for row in corpus().values()]
    assert len(set(texts)) == len(texts)
    assert all(60 <= len(text) <= 420 and "\n" not in text for text in texts)
    assert all(row["title"] for row in corpus().values())


def test_every_question_is_there_in_english() -> None:
    english = _rows("queries.en.jsonl")
    assert [row["_id"] for row in english] == list(queries())
    for row in english:
        assert row["text"].isascii(), row["_id"]
        assert row["metadata"]["split"] == queries()[row["_id"]]["metadata"]["split"]
    assert len({row["text"] for row in english}) == len(english)
