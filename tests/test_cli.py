from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jacolbert_rag import Document, JaColBERTRetriever
from jacolbert_rag.cli import _sections, app
from jacolbert_rag.encode.encoder import Encoder
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
    assert (documents["/手引き.md"].title, documents["/手引き.md"].text) == ("手引き", "前書き。")
    assert (documents["/手引き.md#経費"].title, documents["/手引き.md#経費"].text) == (
        "経費",
        "精算は5日まで。",
    )
    assert documents["/手引き.md#経費/出張"].title == "出張"
    assert documents["r1"].text == "記録の本文。"
    memo = [d for key, d in documents.items() if key.startswith("/メモ.txt")]
    assert len(memo) > 1  # 30 sentences are more than the 64 tokens that the tiny model reads
    assert sum(d.text.count("琵琶湖") for d in memo) == 30
    assert {d.metadata["chunk"]["document_id"] for d in memo} == {f"{folder.resolve().as_posix()}/メモ.txt"}
    assert all(d.metadata["source"].endswith("メモ.txt") for d in memo)


def test_sections_that_a_file_has_lost_go(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.md"
    path.write_text("# 一\n本文一。\n# 二\n本文二。\n# 三\n本文三。\n", encoding="utf-8")
    run("index", path, "--out", tmp_path / "i", "--model", tiny_model)
    path.write_text("# 一\n本文一。\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run("index", "a.md", "--out", "i")  # the same file under another name
    assert [d.text for d in JaColBERTRetriever.load(tmp_path / "i")] == ["本文一。"]
    path.write_text("\n", encoding="utf-8")
    run("index", "a.md", "--out", "i")
    assert len(JaColBERTRetriever.load(tmp_path / "i")) == 0


def test_only_what_a_file_has_changed_is_indexed_anew(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    def section(heading: str, sentences: list[str]) -> str:
        return f"# {heading}\n" + "\n".join(sentences) + "\n"

    def index_file(text: str) -> tuple[list[str], str]:
        encoded: list[str] = []
        encode = Encoder.documents_with_cuts

        def watched(self: Encoder, texts: list[str], **kwargs):
            encoded.extend(texts)
            return encode(self, texts, **kwargs)

        (tmp_path / "a.md").write_text(text, encoding="utf-8")
        with monkeypatch.context() as patch:
            patch.setattr(Encoder, "documents_with_cuts", watched)
            args = () if (tmp_path / "i").exists() else ("--model", tiny_model)
            done = run("index", tmp_path / "a.md", "--out", tmp_path / "i", *args)
        return encoded, done.stderr

    def stored() -> str:
        documents = JaColBERTRetriever.load(tmp_path / "i")
        return "".join(sorted("".join(d.text for d in documents).replace("\n", "")))

    one, two = section("一", SENTENCES), section("二", SENTENCES[::-1] * 2)
    first, said = index_file(one + two)
    assert len(first) > 6
    assert "2 documents indexed, 0 unchanged" in said
    encoded, said = index_file(one + section("間", ["新しい節。"]) + two)
    assert encoded == ["間 新しい節。"]
    assert "1 documents indexed, 2 unchanged" in said
    encoded, said = index_file(one.replace("富士山", "愛宕山") + two)
    assert 0 < len(encoded) < len(first) / 2
    assert "1 documents indexed, 1 unchanged" in said
    assert stored() == "".join(sorted("".join(SENTENCES * 3).replace("富士山", "愛宕山", 1)))
    assert index_file(one.replace("富士山", "愛宕山") + two)[0] == []


def test_sections_of_the_same_heading_and_files_of_like_names(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# 例\n一。\n# 例\n二。\n# 例-2\n三。\n", encoding="utf-8")
    (tmp_path / "a.md#b.md").write_text("# 例\n四。\n", encoding="utf-8")
    run("index", tmp_path, "--out", tmp_path / "i", "--model", tiny_model)
    (tmp_path / "a.md").write_text("# 例\n一。\n", encoding="utf-8")
    retriever = JaColBERTRetriever.load(tmp_path / "i")
    found = {d.id.removeprefix(tmp_path.resolve().as_posix()): d.text for d in retriever}
    assert found == {
        "/a.md#例": "一。",
        "/a.md#例-2": "二。",
        "/a.md#例-2-2": "三。",
        "/a.md#b.md#例": "四。",
    }
    run("index", tmp_path / "a.md", "--out", tmp_path / "i")
    assert [d.text for d in JaColBERTRetriever.load(tmp_path / "i")] == ["一。", "四。"]


def test_numbered_passages_of_version_0_1_0_go(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# 一\n本文一。\n", encoding="utf-8")
    source = path.resolve().as_posix()
    retriever = JaColBERTRetriever.from_pretrained(tiny_model)
    retriever.add([Document(f"{source}#{i}", "本文。", {"source": source}, "一") for i in (1, 2)])
    retriever.save(tmp_path / "i")
    run("index", path, "--out", tmp_path / "i")
    assert JaColBERTRetriever.load(tmp_path / "i").ids() == [f"{source}#一"]


def test_long_json_documents_are_split(index: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "長", "title": "湖", "text": "".join(SENTENCES * 2), "metadata": {"n": 1}},
        {"id": "短", "text": "湖。"},
    ]
    result = run("index", write_json_lines(tmp_path / "b.jsonl", rows), "--out", index)
    assert "2 documents indexed, 0 unchanged" in result.stderr
    retriever = JaColBERTRetriever.load(index)
    chunks = retriever.get(retriever.ids("長#"))
    assert len(chunks) > 3
    assert all(d.title == "湖" and d.metadata["n"] == 1 for d in chunks)
    rows[0]["text"] = "短くなった。"
    assert (
        "1 documents indexed, 1 unchanged"
        in run("index", write_json_lines(tmp_path / "b.jsonl", rows), "--out", index).stderr
    )
    assert JaColBERTRetriever.load(index).ids("長") == ["長"]


def test_markdown_headings() -> None:
    code = "```sh\n# 注釈\n```\n~~~\n# x\n```\n~~~\n#タグ\n"
    assert _sections(f"前\n# 表題 #\n本文\n## C#\n型\n#\n空\n{code}#### 終\n## 次\n# 後\n") == [
        ((), "前\n"),
        (("表題",), "本文\n"),
        (("表題", "C#"), f"型\n#\n空\n{code}"),
        (("表題", "C#", "終"), ""),
        (("表題", "次"), ""),
        (("後",), ""),
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
