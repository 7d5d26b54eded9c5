from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jacolbert_rag import JaColBERTRetriever
from jacolbert_rag.cli import _sections, app
from tests.conftest import SENTENCES

runner = CliRunner()


def run(*args: object, expected: int = 0):
    result = runner.invoke(app, [str(arg) for arg in args])
    assert result.exit_code == expected, result.output
    return result


def write_json_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [{"_id": f"s{i}", "title": "題", "text": t, "metadata": {"n": i}} for i, t in enumerate(SENTENCES)]
    return write_json_lines(tmp_path / "corpus.jsonl", rows)


@pytest.fixture
def index(corpus: Path, tiny_model: Path, tmp_path: Path) -> Path:
    run("index", corpus, "--out", tmp_path / "index", "--model", tiny_model)
    return tmp_path / "index"


def test_json_of_search(index: Path) -> None:
    hits = json.loads(run("search", index, "富士山の高さは？", "--k", 3, "--json").stdout)
    assert len(hits) == 3
    assert [set(hit) for hit in hits] == [{"id", "score", "text", "metadata"}] * 3
    assert hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]
    best = hits[0]
    assert best["text"] == SENTENCES[int(best["id"][1:])]
    assert best["metadata"] == {"title": "題", "n": int(best["id"][1:])}


def test_search_for_people(index: Path) -> None:
    shown = run("search", index, "富士山", "-k", 10).stdout
    assert "10. " in shown
    assert "琵琶湖は滋賀県にある" in shown


def test_second_run_encodes_only_what_changed(index: Path, corpus: Path) -> None:
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    rows[0]["text"] = "新しい本文。"
    result = run("index", write_json_lines(corpus, [*rows, {"id": 7, "text": "追加。"}]), "--out", index)
    assert "2 documents indexed, 9 unchanged" in result.stderr
    retriever = JaColBERTRetriever.load(index)
    assert len(retriever) == 11
    assert "7" in retriever


def test_text_markdown_and_packed_files(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "資料"
    folder.mkdir()
    (folder / "メモ.txt").write_text("琵琶湖は広い。\n" * 30, encoding="utf-8-sig")
    (folder / "手引き.md").write_text(
        "前書き。\n\n# 経費\n精算は5日まで。\n## 出張\n事前に申請する。\n", encoding="utf-8"
    )
    with gzip.open(folder / "記録.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"id": "r1", "text": "記録の本文。"}, ensure_ascii=False) + "\n\n")
    (folder / "画像.png").write_bytes(b"\x89PNG")
    run("index", folder, "--out", tmp_path / "i", "--model", tiny_model)
    documents = {
        d.id.removeprefix(folder.resolve().as_posix()): d for d in JaColBERTRetriever.load(tmp_path / "i")
    }
    assert documents["/手引き.md#1"].text == "前書き。"
    assert (documents["/手引き.md#2"].title, documents["/手引き.md#2"].text) == ("経費", "精算は5日まで。")
    assert documents["/手引き.md#3"].title == "出張"
    assert documents["r1"].text == "記録の本文。"
    memo = [d for key, d in documents.items() if key.startswith("/メモ.txt")]
    assert len(memo) > 1  # 30 sentences are more than the 64 tokens that the tiny model reads
    assert sum(d.text.count("琵琶湖") for d in memo) == 30
    assert all(d.metadata["source"].endswith("メモ.txt") for d in memo)


def test_passages_that_a_file_has_lost_go(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.md"
    path.write_text("# 一\n本文一。\n# 二\n本文二。\n# 三\n本文三。\n", encoding="utf-8")
    run("index", path, "--out", tmp_path / "i", "--model", tiny_model)
    path.write_text("# 一\n本文一。\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run("index", "a.md", "--out", "i")  # the same file under another name
    assert [d.text for d in JaColBERTRetriever.load(tmp_path / "i")] == ["本文一。"]


def test_markdown_headings() -> None:
    text = "前\n# 表題 #\n本文\n## C#\n型\n#\n空\n```sh\n# 注釈\n```\n~~~\n# x\n```\n~~~\n#タグ\n### 終\n"
    assert _sections(text) == [
        ("", "前\n"),
        ("表題", "本文\n"),
        ("C#", "型\n#\n空\n```sh\n# 注釈\n```\n~~~\n# x\n```\n~~~\n#タグ\n"),
        ("終", ""),
    ]


def test_blank_documents_are_left_out_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "本文"}, {"id": "b", "text": " \u3000"}, {"id": "c", "text": ""}]
    path = write_json_lines(tmp_path / "c.jsonl", rows)
    result = run("index", path, "--out", tmp_path / "i", "--model", tiny_model)
    assert "2 documents without text were left out" in result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('["a"]', 'line 1 is no object with a string "text"'),
        ('{"id": 1, "text": null}', 'line 1 is no object with a string "text"'),
        ('{"id": 1, "text": "x", "metadata": []}', '"metadata" must be an object'),
    ],
)
def test_bad_lines_are_named(line: str, message: str, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(line + "\n")
    result = run("index", tmp_path / "c.jsonl", "--out", tmp_path / "i", "--model", tiny_model, expected=2)
    assert message in result.stderr.replace("\n", " ")


def test_bad_paths_are_named(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "sjis.txt").write_bytes("日本語".encode("shift_jis"))
    (tmp_path / "empty").mkdir()
    for name, message in [
        ("a.pdf", "expected .jsonl"),
        ("nowhere.txt", "does not exist"),
        ("sjis.txt", "Convert it to UTF-8"),
        ("empty", "holds no file of"),
    ]:
        result = run("index", tmp_path / name, "--out", tmp_path / "i", "--model", tiny_model, expected=2)
        assert message in result.stderr.replace("\n", " ")


def test_failing_run_leaves_the_index_as_it_was(index: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"id": "n1", "text": "新しい"}\n{\n', encoding="utf-8")
    run("index", tmp_path / "bad.jsonl", "--out", index, expected=2)
    assert len(JaColBERTRetriever.load(index)) == len(SENTENCES)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["質問", "--k", "0"], "expected a whole number of hits, at least 1"),
        (["   "], "query 0 has no text"),
    ],
)
def test_bad_searches(index: Path, args: list[str], message: str) -> None:
    result = run("search", index, *args, expected=2)
    assert message in result.stderr.replace("\n", " ")
    assert result.stdout == ""


def test_search_where_there_is_no_index(tmp_path: Path) -> None:
    assert "There is no index in" in run("search", tmp_path, "質問", expected=2).stderr


def test_markup_and_odd_characters_in_documents_are_shown_as_they_are(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"id": "[/x]", "text": "[bold]太字[/nothing] \u001b[31m赤 \ud800 終"}]
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(rows[0]) + "\n")
    run("index", path, "--out", tmp_path / "i", "--model", tiny_model)
    shown = run("search", tmp_path / "i", "太字").stdout
    assert "[bold]太字[/nothing]" in shown
    assert "\x1b[31m" not in shown
    assert json.loads(run("search", tmp_path / "i", "太字", "--json").stdout)[0]["text"] == rows[0]["text"]


def test_as_a_program_data_goes_to_stdout_alone(index: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jacolbert_rag.cli", "search", str(index), "富士山", "--json"],
        capture_output=True, check=True, env={"PYTHONIOENCODING": "utf-8", "PATH": ""},
    )  # fmt: skip
    assert len(json.loads(done.stdout.decode())) == 5
