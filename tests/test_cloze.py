from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jacolbert_rag.encode.words import WordSegmenter
from tests.test_training import command
from training import cloze
from training.options import TrainingError

PARAGRAPHS = [
    "琵琶湖は滋賀県にある日本で最も大きい湖である。面積は滋賀県の六分の一を占める。周囲の川から水が流れ込み、"
    "瀬田川だけが流れ出る。古くから漁業と水運が盛んで、都へ米や魚を運ぶ船が行き来した。",
    "琵琶湖には固有の魚が多い。ビワコオオナマズやホンモロコはこの湖にだけ住む。水運は鉄道が敷かれるまで滋賀県の"
    "産業を支え、港町が栄えた。今は観光の遊覧船が湖を巡っている。",
    "富士山は静岡県と山梨県にまたがる火山である。標高は3776メートルで、日本のどの山よりも高い。"
    "江戸時代には信仰の対象となり、多くの人が頂を目指して登った。夏の二か月だけ山小屋が開く。",
] * 4


def write_text(folder: Path, paragraphs: list[str]) -> Path:
    folder.mkdir()
    (folder / "wiki.txt").write_text("\n".join(paragraphs), encoding="utf-8")
    return folder


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_are_a_sentence_and_its_surroundings(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text", PARAGRAPHS)
    command(cloze.main, "--text", text, "--out", tmp_path / "cloze.jsonl", "--pairs", 50)
    rows = rows_of(tmp_path / "cloze.jsonl")
    assert 6 <= len(rows) <= len(PARAGRAPHS)
    for row in rows:
        assert set(row) == {"query", "passages", "source"}
        assert row["source"] == "wiki"
        assert len(row["passages"][0]) <= cloze.MAX_DOCUMENT
        assert row["query"] not in row["passages"][0]
    before = (tmp_path / "cloze.jsonl").read_bytes()
    command(cloze.main, "--text", text, "--out", tmp_path / "again.jsonl", "--pairs", 50)
    assert (tmp_path / "again.jsonl").read_bytes() == before
    command(cloze.main, "--text", text, "--out", tmp_path / "few.jsonl", "--pairs", 3)
    assert len(rows_of(tmp_path / "few.jsonl")) == 3


def test_passages_that_are_kept_for_measuring_are_left_out(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text", PARAGRAPHS)
    held = tmp_path / "held"
    held.mkdir()
    # Written otherwise, and within a longer one.
    passage = PARAGRAPHS[2].replace("3776", "3776").replace("標高", "また、標高")
    row = {"_id": "1", "title": "", "text": passage}
    (held / "corpus.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    args = ["--text", text, "--pairs", 50]
    command(cloze.main, *args, "--out", tmp_path / "all.jsonl")
    command(cloze.main, *args, "--without", held, "--out", tmp_path / "some.jsonl")
    assert "富士山" in (tmp_path / "all.jsonl").read_text(encoding="utf-8")
    kept = (tmp_path / "some.jsonl").read_text(encoding="utf-8")
    assert "琵琶湖" in kept
    assert not any(word in kept for word in ("富士山", "信仰", "山小屋"))
    with pytest.raises(TrainingError, match=r"without \[\] -> \["):
        command(cloze.main, *args, "--without", held, "--out", tmp_path / "all.jsonl")


def test_a_paragraph_on_something_else_is_no_answer() -> None:
    lake, also_lake, mountain = PARAGRAPHS[:3]
    others = {document for n in range(40) for _, document in cloze.drawn([lake, mountain], 2, (n,))}
    assert not any("富士山" in document and "琵琶湖" in document for document in others)
    assert all("琵琶湖" not in document or "富士山" not in document for document in others)
    following = [pair[1] for n in range(40) for pair in cloze.drawn([lake, also_lake], 2, (n,))]
    assert also_lake in following


def test_words_that_both_have_are_taken_out() -> None:
    segmenter = WordSegmenter()
    query, document = "琵琶湖の水運は滋賀県の産業を支えた", "琵琶湖は滋賀県にある"
    words, common = segmenter.words(query), set(segmenter.words(document))
    found = {cloze.thinned(words, common, np.random.default_rng(n)) for n in range(60)}
    assert query in found  # some stay whole
    bare = min((text for text in found if text), key=len)
    assert "滋賀" not in bare
    assert "琵琶" not in bare
    assert "水運" in bare
    assert "産業" in bare
    # Nothing is left to ask with: no pair, or the whole sentence.
    assert {
        cloze.thinned(segmenter.words("滋賀県にある"), common, np.random.default_rng(n)) for n in range(40)
    } == {None, "滋賀県にある"}


def test_text_without_paragraphs_is_refused(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text", ["短い。", "これも短い。"])
    with pytest.raises(TrainingError, match="has no paragraph of 60 characters"):
        command(cloze.main, "--text", text, "--out", tmp_path / "cloze.jsonl")
    (tmp_path / "none").mkdir()
    with pytest.raises(TrainingError, match=r"has no \.txt"):
        command(cloze.main, "--text", tmp_path / "none", "--out", tmp_path / "c.jsonl")
