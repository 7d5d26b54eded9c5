from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jacolbert_rag import Document, JaColBERTRetriever
from jacolbert_rag.cli import app
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
    assert [set(hit) for hit in hits] == [{"id", "score", "text", "metadata", "scores", "is_weak"}] * 3
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
    documents = {d.id.removeprefix("資料"): d for d in JaColBERTRetriever.load(tmp_path / "i")}
    assert (documents["/手引き.md"].title, documents["/手引き.md"].text) == ("手引き", "前書き。")
    assert (documents["/手引き.md#経費"].title, documents["/手引き.md#経費"].text) == (
        "経費",
        "精算は5日まで。",
    )
    assert documents["/手引き.md#経費/出張"].title == "経費 / 出張"
    assert documents["r1"].text == "記録の本文。"
    memo = [d for key, d in documents.items() if key.startswith("/メモ.txt")]
    assert len(memo) > 1  # 30 sentences are more than the 64 tokens that the tiny model reads
    assert sum(d.text.count("琵琶湖") for d in memo) == 30
    assert {d.metadata["chunk"]["document_id"] for d in memo} == {"資料/メモ.txt"}
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
    assert "1 document indexed, 2 unchanged" in said
    encoded, said = index_file(one.replace("富士山", "愛宕山") + two)
    assert 0 < len(encoded) < len(first) / 2
    assert "1 document indexed, 1 unchanged" in said
    assert stored() == "".join(sorted("".join(SENTENCES * 3).replace("富士山", "愛宕山", 1)))
    assert index_file(one.replace("富士山", "愛宕山") + two)[0] == []


def test_sections_of_the_same_heading_and_files_of_like_names(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# 例\n一。\n# 例\n二。\n# 例-2\n三。\n", encoding="utf-8")
    (tmp_path / "a.md#b.md").write_text("# 例\n四。\n", encoding="utf-8")
    run("index", tmp_path, "--out", tmp_path / "i", "--model", tiny_model)
    (tmp_path / "a.md").write_text("# 例\n一。\n", encoding="utf-8")
    retriever = JaColBERTRetriever.load(tmp_path / "i")
    found = {d.id.removeprefix(tmp_path.name): d.text for d in retriever}
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
    assert JaColBERTRetriever.load(tmp_path / "i").ids() == [f"{tmp_path.name}/a.md#一"]


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
        "1 document indexed, 1 unchanged"
        in run("index", write_json_lines(tmp_path / "b.jsonl", rows), "--out", index).stderr
    )
    assert JaColBERTRetriever.load(index).ids("長") == ["長"]


def test_blank_documents_are_left_out_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "本文"}, {"id": "b", "text": " \u3000"}, {"id": "c", "text": ""}]
    path = write_json_lines(tmp_path / "c.jsonl", rows)
    result = run("index", path, "--out", tmp_path / "i", "--model", tiny_model)
    assert "2 documents without text left out" in result.stderr


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
    (tmp_path / "a.docx").write_bytes(b"PK")
    (tmp_path / "sjis.jsonl").write_bytes('{"text": "日本語"}'.encode("shift_jis"))
    (tmp_path / "empty").mkdir()
    for name, message in [
        ("a.docx", "expected .jsonl"),
        ("nowhere.txt", "does not exist"),
        ("sjis.jsonl", "Save it as UTF-8"),
        ("empty", "holds no file of"),
    ]:
        result = run("index", tmp_path / name, "--out", tmp_path / "i", "--model", tiny_model, expected=2)
        assert message in result.stderr.replace("\n", " ")


def test_a_file_that_cannot_be_read_leaves_the_others(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "規程"
    folder.mkdir()
    (folder / "一.md").write_text("---\n部署: 経理\n---\n# 精算\n月末まで。\n", encoding="utf-8")
    (folder / "二.txt").write_bytes("窓口は総務です。".encode("cp932"))
    (folder / "三.pdf").write_bytes(b"%PDF")
    (folder / "四.docx").write_bytes(b"PK")
    done = run("index", folder, "--out", tmp_path / "i", "--model", tiny_model, expected=1)
    said = done.stderr.replace("\n", " ")
    assert "三.pdf: it is no PDF" in said
    assert "not read here: 1 .docx" in said
    assert "2 documents indexed" in said
    (hit,) = json.loads(
        run("search", tmp_path / "i", "精算", "--filter", '{"部署": "経理"}', "--json").stdout
    )
    assert hit["id"] == "規程/一.md#精算"
    assert hit["metadata"] == {"title": "精算", "部署": "経理", "source": "規程/一.md"}


def test_failing_run_leaves_the_index_as_it_was(index: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"id": "n1", "text": "新しい"}\n{\n', encoding="utf-8")
    run("index", tmp_path / "bad.jsonl", "--out", index, expected=2)
    assert len(JaColBERTRetriever.load(index)) == len(SENTENCES)
    # Beside what can be read it is left out, as a broken file of any kind is.
    (tmp_path / "良い.jsonl").write_text('{"id": "n2", "text": "新しい"}\n', encoding="utf-8")
    done = run("index", tmp_path / "bad.jsonl", tmp_path / "良い.jsonl", "--out", index, expected=1)
    assert "bad.jsonl, line 2 is not JSON" in done.stderr.replace("\n", " ")
    assert len(JaColBERTRetriever.load(index)) == len(SENTENCES) + 1
    # One id in two files is nobody's fault but the files'.
    (tmp_path / "別.jsonl").write_text('{"id": "n2", "text": "別の文"}\n', encoding="utf-8")
    done = run("index", tmp_path / "良い.jsonl", tmp_path / "別.jsonl", "--out", tmp_path / "new", expected=2)
    assert "'n2' is of two documents" in done.stderr.replace("\n", " ")
    assert not (tmp_path / "new").exists()


def test_what_is_gone_is_noted_and_can_be_deleted(tiny_model: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "規程", tmp_path / "i"
    (folder / "旧").mkdir(parents=True)
    for name in ("一.md", "旧/二.md", "旧/三.txt"):
        (folder / name).write_text("# 題\n" + "".join(SENTENCES * 2), encoding="utf-8")
    run("index", folder, "--out", out, "--model", tiny_model)
    (folder / "旧" / "二.md").unlink()
    noted = run("index", folder, "--out", out).stderr
    assert "1 file no longer there; --prune deletes" in noted.replace("\n", " ")
    assert "passages deleted" in run("delete", out, "規程/旧/").stdout
    left = JaColBERTRetriever.load(out)
    assert {document.metadata["source"] for document in left} == {"規程/一.md"}
    assert "規程/無い: 0 passages deleted" in run("delete", out, "規程/無い", expected=1).stdout
    # A document in parts goes by its id, and is explained by it.
    assert len(left) > 1
    assert "rank:" in run("explain", out, "規程/一.md#題", "富士山", "の", "高さ").stdout
    run("delete", out, "規程/一.md#題")
    assert len(JaColBERTRetriever.load(out)) == 0
    # All files of a folder may go.
    (tmp_path / "別").mkdir()
    (tmp_path / "別" / "四.txt").write_text("四の本文。", encoding="utf-8")
    run("index", tmp_path / "別", "--out", out)
    (tmp_path / "別" / "四.txt").unlink()
    assert "holds no file" in run("index", tmp_path / "別", "--out", out, expected=2).stderr.replace(
        "\n", " "
    )
    assert "1 deleted" in run("index", tmp_path / "別", "--out", out, "--prune").stderr


def test_words_need_no_quotes_and_a_filter_that_nothing_passes_is_told(index: Path) -> None:
    found = json.loads(run("search", index, "富士山", "高さ", "--json").stdout)
    assert found == json.loads(run("search", index, "富士山 高さ", "--json").stdout)
    done = run("search", index, "富士山", "--filter", '{"部署": "経理"}', "--json")
    assert json.loads(done.stdout) == []
    assert "no document passes --filter. Fields of the documents are n and title" in done.stderr.replace(
        "\n", " "
    )


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


def test_files_that_are_gone(tiny_model: Path, tmp_path: Path) -> None:
    folder, other = tmp_path / "甲", tmp_path / "甲乙"
    for each in (folder, other):
        each.mkdir()
        (each / "一.txt").write_text("一の本文。", encoding="utf-8")
        (each / "二.md").write_text("# 題\n二の本文。", encoding="utf-8")
    out = tmp_path / "i"
    run("index", folder, other, "--out", out, "--model", tiny_model)
    (folder / "二.md").unlink()
    assert f"{out} has 4 passages now" in run("index", folder, "--out", out).stderr.replace("\n", "")
    pruned = run("index", folder, "--out", out, "--prune").stderr.replace("\n", "")
    assert f"1 unchanged, 1 deleted: {out} has 3 passages now" in pruned
    left = set(JaColBERTRetriever.load(out).ids())
    assert left == {"甲/一.txt", "甲乙/一.txt", "甲乙/二.md#題"}
    # A name that is wrong makes no index.
    run("index", tmp_path / "無い", "--out", tmp_path / "new", "--model", tiny_model, expected=2)
    assert not (tmp_path / "new").exists()


# What is asked of an index besides.


def test_questions_of_standard_input(index: Path) -> None:
    asked = "\ufeff富士山の高さは？\n\n 日本の首都は？ \n"
    done = runner.invoke(app, ["search", str(index), "--json", "-k", "2"], input=asked)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["query"] for line in lines] == ["富士山の高さは？", "日本の首都は？"]
    assert [len(line["hits"]) for line in lines] == [2, 2]
    shown = runner.invoke(app, ["search", str(index), "-"], input=asked).stdout
    assert "富士山の高さは？" in shown
    assert shown.count("1. ") >= 2


def test_documents_of_standard_input(tiny_model: Path, tmp_path: Path) -> None:
    args = ["index", "-", "--out", str(tmp_path / "i"), "--model", str(tiny_model)]
    rows = '{"id": "a", "text": "琵琶湖は広い。"}\n{"id": "b", "text": "富士山は高い。"}\n'
    done = runner.invoke(app, args, input=rows)
    assert done.exit_code == 0, done.output
    assert "2 documents indexed" in done.stderr
    assert "2 unchanged" in runner.invoke(app, args[:-2], input=rows).stderr
    folder = tmp_path / "二つ"
    folder.mkdir()
    for name in ("一.txt", "二.txt"):
        (folder / name).write_text(f"{name}の本文。", encoding="utf-8")
    beside = runner.invoke(app, ["index", str(folder), *args[1:-2]], input='{"id": "c", "text": "深い。"}\n')
    assert "3 documents indexed" in beside.stderr
    wrong = runner.invoke(app, args[:-2], input="{}\n")
    assert wrong.exit_code == 2
    assert 'standard input, line 1 is no object with a string "text"' in wrong.stderr


def test_modes_and_filters(index: Path) -> None:
    (hit,) = json.loads(run("search", index, "富士山", "--filter", '{"n": 3}', "--json").stdout)
    assert hit["metadata"]["n"] == 3
    words = json.loads(run("search", index, "琵琶湖", "--mode", "bm25", "--json").stdout)
    assert words
    assert all("琵琶湖" in hit["text"] for hit in words)
    assert "該当なし" in run("search", index, "オーロラ", "--mode", "bm25").stdout
    for args, message in [
        (["--mode", "dense"], "--mode is 'dense'; expected"),
        (["--filter", "{"], "--filter is not JSON"),
        (["--filter", "[]"], "--filter is a list; expected an object"),
        (["--abstain"], "calibrate"),
    ]:
        assert message in run("search", index, "富士山", *args, expected=2).stderr


def test_why_a_document_answers(index: Path) -> None:
    shown = run("search", index, "富士山", "--explain", "-k", 1).stdout
    assert "similarity" in shown
    (hit,) = json.loads(run("search", index, "富士山", "--explain", "-k", 1, "--json").stdout)
    assert set(hit["highlight"]) == {"marks", "title_marks", "best_sentence", "matches"}
    best = hit["id"]
    found = json.loads(run("explain", index, best, "富士山", "--json").stdout)
    assert found["ranks"]["hybrid"] == 1
    assert set(found["ranks"]) == {"hybrid", "jacolbert", "bm25"}
    start, end = found["highlight"]["marks"][0]
    assert found["text"][start:end]
    text = run("explain", index, best, "富士山").stdout
    assert "hybrid 1" in text
    assert "of the question" in text
    other = json.loads(run("explain", index, "s9", "富士山", "--json").stdout)
    assert other["ranks"]["bm25"] is None or other["ranks"]["bm25"] > 1
    assert "has no document '無い'" in run("explain", index, "無い", "富士山", expected=2).stderr


def test_stats_verify_and_compact(index: Path) -> None:
    found = json.loads(run("stats", index, "--json").stdout)
    assert (found["n_documents"], found["n_deleted"], found["is_calibrated"]) == (10, 0, False)
    assert found["n_bytes"] == sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
    shown = run("stats", index).stdout
    assert "10, and 0 deleted" in shown
    assert "not calibrated" in shown
    retriever = JaColBERTRetriever.load(index)
    retriever.delete([f"s{i}" for i in range(6)])
    retriever.close()
    assert json.loads(run("stats", index, "--json").stdout)["n_deleted"] == 6
    assert "bytes before" in run("compact", index).stdout
    now = json.loads(run("stats", index, "--json").stdout)
    assert (now["n_documents"], now["n_deleted"]) == (4, 0)
    assert run("verify", index).stdout == "nothing is damaged\n"
    assert json.loads(run("verify", index, "--json").stdout) == []
    file = next((index / "files").glob("*.tokens.npy"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert file.name in run("verify", index, expected=1).stdout
    (damage,) = json.loads(run("verify", index, "--rebuild", "--json", expected=1).stdout)
    assert not damage["is_derived"]
    file.write_bytes(bytes(data[:-8]))
    assert file.name in run("verify", index, expected=1).stdout
    file.unlink()
    (gone,) = json.loads(run("verify", index, "--json", expected=1).stdout)
    assert file.name in gone["what"]
    for command in ("stats", "verify", "compact"):
        assert "Error" in run(command, index.parent / "無い", expected=2).stderr


def test_an_index_that_says_nothing_where_nothing_answers(tmp_path: Path) -> None:
    """The bundled model, since random weights know no confidence. Sixty documents are enough to calibrate."""
    corpus = Path(__file__).parents[1] / "examples" / "corpus" / "corpus.jsonl"
    lines = corpus.read_text(encoding="utf-8").splitlines()[:60]
    (tmp_path / "some.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run("index", tmp_path / "some.jsonl", "--out", tmp_path / "i", "--no-calibrate")
    assert "weak" not in run("search", tmp_path / "i", "オーロラの見える国").stdout
    run("index", tmp_path / "some.jsonl", "--out", tmp_path / "i")
    title = json.loads(lines[0])["title"]
    assert json.loads(run("search", tmp_path / "i", title, "--abstain", "--json").stdout)
    assert json.loads(run("search", tmp_path / "i", "オーロラの見える国", "--abstain", "--json").stdout) == []
    # Without --abstain what is weak is shown as such.
    found = json.loads(run("search", tmp_path / "i", "オーロラの見える国", "--json").stdout)
    assert [hit["is_weak"] for hit in found] == [True] * 5
    shown = run("search", tmp_path / "i", "オーロラの見える国").stdout
    assert "該当なし" in shown
    assert shown.count(", weak") == 5
    assert not json.loads(run("search", tmp_path / "i", title, "--json").stdout)[0]["is_weak"]
    assert "該当なし" not in run("search", tmp_path / "i", title).stdout


def test_help_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom jacolbert_rag.cli import app\n"
        "for args in (['--help'], ['search', '--help'], ['serve', '--help']):\n"
        "    assert CliRunner().invoke(app, args).exit_code == 0\n"
        "heavy = {'torch', 'numpy', 'transformers', 'fastapi', 'voyager'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_small_corpus_is_indexed_though_it_cannot_be_calibrated(corpus: Path, tiny_model: Path) -> None:
    out = corpus.parent / "i"
    done = run("index", corpus, "--out", out, "--model", tiny_model, "--calibrate")
    assert "10 documents indexed" in done.stderr
    assert "not calibrated" in done.stderr


def test_documents_do_not_steer_a_terminal(tiny_model: Path, tmp_path: Path) -> None:
    text = "富士山は\x1b]0;題\x07\x1b[31m高い\u202e山である。"
    write_json_lines(tmp_path / "a.jsonl", [{"id": "a", "title": "\x1b[2J題", "text": text}])
    run("index", tmp_path / "a.jsonl", "--out", tmp_path / "i", "--model", tiny_model)
    for args in (["search", tmp_path / "i", "富士山"], ["search", tmp_path / "i", "富士山", "--explain"],
                 ["explain", tmp_path / "i", "a", "富士山"]):  # fmt: skip
        shown = run(*args).stdout
        assert "富士山は" in shown
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_a_server_says_where_it_is(index: Path) -> None:
    import urllib.request

    command = [sys.executable, "-m", "jacolbert_rag.cli", "serve", str(index), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = next(line for line in process.stderr if line.startswith("http")).split()[0]
            with urllib.request.urlopen(f"{address}/health", timeout=30) as answer:
                assert json.loads(answer.read())["documents"] == 10
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=30)
    assert out == ""
    assert process.returncode in (0, -signal.SIGTERM)  # ended in order, and says by what
