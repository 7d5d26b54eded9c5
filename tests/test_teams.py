"""What a team needs around its own documents: a folder from pairs, two systems compared, a gate for CI."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evals import compare, gate, init, results
from evals.datasets import load_task

runner = CliRunner()


def call(app: Any, *args: object) -> Any:
    return runner.invoke(app, [str(arg) for arg in args])


def put(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


# A folder from pairs.

CSV = """質問,回答,タイトル
"申請は, いつまで?","翌月の5日までです。
遅れないこと。",経費
誰に聞く?,総務部です。,
"""


def test_pairs_become_a_folder_that_can_be_measured(tmp_path: Path) -> None:
    again = '締切は?,"翌月の5日までです。\n遅れないこと。",経費\n誰に聞く?,総務部です。,\n'
    pairs = put(tmp_path / "faq.csv", "\ufeff" + CSV + again)
    more = put(
        tmp_path / "all.jsonl",
        '{"text": "別の文書。"}\n{"text": "総務部です。", "title": null}\n{"text": " "}\n',
    )
    done = call(init.app, tmp_path / "eval", "--pairs", pairs, "--documents", more)
    assert done.exit_code == 0, done.output
    assert "3 questions, 3 passages" in done.stderr
    assert "near 1" not in done.stderr
    assert done.stdout.strip() == f"{sys.orig_argv[0]} -m evals.run --data {tmp_path / 'eval'} --split test"
    task = load_task(tmp_path / "eval", "test")
    assert list(task.queries.values()) == ["申請は, いつまで?", "誰に聞く?", "締切は?"]
    assert [document.passage for document in task.documents] == [
        "経費 翌月の5日までです。\n遅れないこと。", "総務部です。", "別の文書。",
    ]  # fmt: skip
    assert task.qrels == {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d1": 1}}


def test_a_folder_of_documents_is_what_answers_are_found_among(tmp_path: Path) -> None:
    pairs, folder = put(tmp_path / "faq.csv", CSV), tmp_path / "規程"
    alone = call(init.app, tmp_path / "alone", "--pairs", pairs)
    assert "figures will be near 1" in alone.stderr
    folder.mkdir()
    put(folder / "経費.md", "---\ntitle: 経費規程\n---\n# 精算\n月末まで。\n# 出張\n事前に申請する。\n")
    put(folder / "窓口.txt", "総務部です。")
    put(folder / "空.html", "<p> </p>")
    done = call(init.app, tmp_path / "eval", "--pairs", pairs, "--documents", folder)
    assert done.exit_code == 0, done.output
    task = load_task(tmp_path / "eval", "test")
    assert [(document.title, document.text) for document in task.documents] == [
        ("経費", "翌月の5日までです。\n遅れないこと。"), ("窓口", "総務部です。"),
        ("経費規程 / 精算", "月末まで。"), ("経費規程 / 出張", "事前に申請する。"),
    ]  # fmt: skip
    assert "1 of 2 answers are in no document word for word" in done.stderr
    done = call(init.app, tmp_path / "one", "--pairs", pairs, "--documents", folder / "経費.md")
    assert "4 passages" in done.stderr
    put(folder / "壊れた.pdf", "%PDF")
    done = call(init.app, tmp_path / "no", "--pairs", pairs, "--documents", folder)
    assert done.exit_code == 0
    assert "壊れた.pdf: it is no PDF" in done.stderr


def test_an_answer_that_is_a_part_of_documents_is_found_there(tmp_path: Path) -> None:
    """Answers of a FAQ are sentences; as passages of their own they would make the right documents wrong."""
    folder = tmp_path / "規程"
    folder.mkdir()
    put(
        folder / "経費.md", "# 振込\n精算した経費は、毎月25日に\n給与と同じ口座へ振り込む。例外は認めない。\n"
    )
    put(folder / "写し.md", "# 口座\n経費は、毎月２５日に給与と同じ口座へ振り込む。\n")
    put(folder / "窓口.txt", "はい、総務部です。")
    pairs = put(
        tmp_path / "faq.csv",
        "質問,回答\n経費はいつ振り込まれる?,毎月25日に給与と同じ口座へ振り込む。\n総務部ですか?,はい\n",
    )
    done = call(init.app, tmp_path / "eval", "--pairs", pairs, "--documents", folder)
    assert "1 of 2 answers are parts of documents" in done.stderr
    assert "1 of 2 answers are in no document" in done.stderr
    task = load_task(tmp_path / "eval", "test")
    titles = {document.id: document.title for document in task.documents}
    assert {titles[id] for id in task.qrels["q1"]} == {"振込", "口座"}
    assert [titles[id] for id in task.qrels["q2"]] == [""]
    assert len(task.documents) == 4


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "query\tanswer\n湖は?\t琵琶湖です。\n"),
        ("a.jsonl", '{"q": "湖は?", "a": "琵琶湖です。"}\n\n'),
        ("a.csv", "no,Question,Passage\n1,湖は?,琵琶湖です。\n"),
    ],
)
def test_columns_are_found_by_their_names(tmp_path: Path, name: str, text: str) -> None:
    assert init.read_pairs(put(tmp_path / name, text), None, None, None) == [
        init.Pair("湖は?", "", "琵琶湖です。")
    ]


def test_columns_may_be_named(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "text,x,y\n題,湖は?,琵琶湖です。\n")
    assert init.read_pairs(path, "x", "y", "text") == [init.Pair("湖は?", "題", "琵琶湖です。")]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "a.csv",
            "x,y\n1,2\n",
            "has the columns x, y; none is named like a question. Pass --question COLUMN",
        ),
        ("a.csv", "question,y\n1,2\n", "none is named like a passage"),
        ("a.csv", "question,passage\n湖は?,\n", "row 1: 'passage' is empty"),
        ("a.csv", "question,passage\n湖は?,湖\n ,湖\n", "row 2: 'question' is empty"),
        ("a.csv", "question,passage\n", "has no rows"),
        ("a.csv", 'question,passage\n"湖は?,湖\n', "is no table that can be read"),
        ("a.jsonl", '{"question": "湖は?"\n', "line 1: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: a list; expected an object a line"),
    ],
)
def test_pairs_that_cannot_be_used(tmp_path: Path, name: str, text: str, words: str) -> None:
    done = call(init.app, tmp_path / "eval", "--pairs", put(tmp_path / name, text))
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "eval").exists()


def test_other_things_that_are_refused(tmp_path: Path) -> None:
    pairs = put(tmp_path / "a.csv", "question,passage\n湖は?,琵琶湖\n")
    (tmp_path / "b.csv").write_bytes(b"\x89PNG\x00")
    assert "Save it as UTF-8" in " ".join(
        call(init.app, tmp_path / "e", "--pairs", tmp_path / "b.csv").stderr.split()
    )
    # As Excel writes it in Japan.
    sjis = put(tmp_path / "c.csv", "質問,回答\n湖は?,琵琶湖\n", "cp932")
    assert init.read_pairs(sjis, None, None, None) == [init.Pair("湖は?", "", "琵琶湖")]
    assert "cannot be read" in call(init.app, tmp_path / "e", "--pairs", tmp_path / "no.csv").stderr
    wrong = call(init.app, tmp_path / "e", "--pairs", pairs, "--title", "題")
    assert "has no column '題'" in wrong.stderr
    assert call(init.app, tmp_path / "e", "--pairs", pairs).exit_code == 0
    again = call(init.app, tmp_path / "e", "--pairs", pairs)
    assert again.exit_code == 2
    assert "is there already" in again.stderr


def test_rows_end_where_the_file_ends_them(tmp_path: Path) -> None:
    """A text may hold a line break of Unicode's; the first object need not have every column."""
    lines = ['{"q": "湖は?", "a": "琵琶湖 です。"}', '{"q": "山は?", "a": "富士山", "title": "山"}']
    path = put(tmp_path / "a.jsonl", "\r\n".join(lines))
    assert init.read_pairs(path, None, None, None) == [
        init.Pair("湖は?", "", "琵琶湖 です。"),
        init.Pair("山は?", "山", "富士山"),
    ]
    table = put(tmp_path / "a.csv", 'q,a\r\n湖は?,"琵琶湖 です。\r\n深い。"\r\n')
    assert init.read_pairs(table, None, None, None) == [init.Pair("湖は?", "", "琵琶湖 です。\n深い。")]


def test_a_passage_with_and_without_its_title_is_one() -> None:
    corpus = init.Passages()
    assert [corpus.id_of("", "湖だ。"), corpus.id_of("琵琶湖", "湖だ。"), corpus.id_of("", "湖だ。")] == [
        "d1"
    ] * 3
    assert corpus.id_of("浜名湖", "湖だ。") == "d2"
    assert corpus.entries == {"d1": ("琵琶湖", "湖だ。"), "d2": ("浜名湖", "湖だ。")}


def test_the_command_to_run_next_is_quoted(tmp_path: Path) -> None:
    pairs = put(tmp_path / "a.csv", "question,passage\n湖は?,琵琶湖\n")
    done = call(init.app, tmp_path / "社内 文書", "--pairs", pairs)
    assert (
        done.stdout.strip()
        == f"{sys.orig_argv[0]} -m evals.run --data '{tmp_path / '社内 文書'}' --split test"
    )


# Two systems compared.

MEANS = ("nDCG@10", "MRR@10", "Recall@1", "Recall@10", "Recall@100")


def cell(system: str, values: dict[str, float], dataset: str = "湖", signature: str = "") -> results.Cell:
    measures = dict.fromkeys(MEANS, sum(values.values()) / len(values))
    row = results.Result(
        dataset, "dev", system, measures, {}, len(values), 9, 0, {}, 1, None, None, 1, "", signature
    )
    queries = {
        id: results.Answered(dict.fromkeys(MEANS, v), [], None, f"{id}は?") for id, v in values.items()
    }
    return results.Cell(row, queries)


def test_two_systems_of_a_run(tmp_path: Path) -> None:
    old = {f"q{i}": 0.5 for i in range(30)}
    new = {id: 1.0 if i else 0.0 for i, id in enumerate(old)}
    cell("bm25", old).save(tmp_path / "cells" / "a.json")
    cell("hybrid", new).save(tmp_path / "cells" / "b.json")
    file = tmp_path / "[比較].json"
    done = call(compare.app, "bm25", "hybrid", "--out", tmp_path, "--top", 2, "--json", file)
    assert done.exit_code == 0, done.output
    (first, *_) = rows = json.loads(file.read_text(encoding="utf-8"))
    assert [row["measure"] for row in rows] == list(MEANS)
    assert (first["wins"], first["ties"], first["losses"]) == (29, 0, 1)
    assert first["difference"] == pytest.approx(29 / 30 - 0.5)
    assert first["low"] < first["difference"] < first["high"]
    assert first["p"] < 0.01
    assert "+46.67" in done.stdout
    assert done.stdout.count("0.500  1.000") == 2
    assert "0.500  0.000  q0  q0は?" in done.stdout
    by_file = call(
        compare.app, tmp_path / "cells" / "a.json", tmp_path / "cells" / "b.json", "--measures", "MRR@10"
    )
    assert by_file.exit_code == 0, by_file.output
    assert "nDCG@10" not in by_file.stdout


def test_two_run_files(tmp_path: Path) -> None:
    qrels = put(tmp_path / "qrels", "q1 0 湖 1\nq2 0 山 1\n")
    a = put(tmp_path / "a.trec", "q1 Q0 山 1 2 a\nq1 Q0 湖 2 1 a\nq2 Q0 山 1 1 a\n")
    b = put(tmp_path / "b.trec", "q1 Q0 湖 1 2 b\nq2 Q0 湖 1 1 b\n")
    done = call(compare.app, a, b, "--qrels", qrels, "--measures", "MRR@10", "Hit@1")
    assert done.exit_code == 0, done.output
    assert "0.500  1.000  q1" in done.stdout
    assert "1.000  0.000  q2" in done.stdout


def test_comparisons_that_are_refused(tmp_path: Path) -> None:
    cell("bm25", {"q1": 1.0}).save(tmp_path / "cells" / "a.json")
    cell("hybrid", {"q2": 1.0}).save(tmp_path / "cells" / "b.json")
    cell("rerank", {"q1": 1.0}, "海").save(tmp_path / "cells" / "c.json")
    cell("rerank", {"q1": 1.0}).save(tmp_path / "cells" / "d.json")
    out = ["--out", tmp_path]
    for args, words in [
        (["bm25", "hybrid"], "are of other queries: 2 are in only one of them, such as 'q1'"),
        (["bm25", "dense:x"], "has no result of 'dense:x'. Run: python -m evals.run"),
        (["bm25", "rerank"], "has 'rerank' on 海, 湖. Name one of them with --dataset"),
        (["bm25", "rerank", "--dataset", "山"], "has no result of 'bm25' on 山"),
        (["bm25", "bm25", "--measures", "MAP@3"], "was not measured in MAP@3; there are nDCG@10"),
    ]:
        done = call(compare.app, *args, *out)
        assert done.exit_code == 2
        assert words in done.stderr
    assert call(compare.app, "bm25", "rerank", "--dataset", "湖", *out).exit_code == 0


def test_systems_on_other_data_are_not_compared(tmp_path: Path) -> None:
    same = {"q1": 1.0, "q2": 0.0}
    cell("bm25", same, signature="湖|dev|q:2|c:9@00ff00ff|bm25|x").save(tmp_path / "cells" / "a.json")
    cell("hybrid", same, signature="湖|dev|q:2|c:9@11ff11ff|hybrid|x").save(tmp_path / "cells" / "b.json")
    done = call(compare.app, "bm25", "hybrid", "--out", tmp_path)
    assert done.exit_code == 2
    assert "were measured on other data:" in done.stderr
    assert "c:9@11ff11ff" in done.stderr
    cell("hybrid", same, signature="湖|dev|q:2|c:9@00ff00ff|hybrid|y").save(tmp_path / "cells" / "b.json")
    done = call(compare.app, "bm25", "hybrid", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "湖|dev|q:2|c:9@00ff00ff|hybrid|y" in done.stdout
    test = cell("bm25", same)
    results.Cell(replace(test.result, split="test"), test.queries).save(tmp_path / "cells" / "c.json")
    done = call(compare.app, "bm25", "hybrid", "--out", tmp_path)
    assert "has 'bm25' on dev, test. Name one of them with --split" in done.stderr
    assert call(compare.app, "bm25", "hybrid", "--out", tmp_path, "--split", "dev").exit_code == 0


# A gate.


def rows_file(path: Path, figures: dict[str, float], data: str = "q:9|c:5@00ff00ff") -> Path:
    cells = [cell(name, {"q": value}, signature=f"湖|dev|{data}|{name}|x") for name, value in figures.items()]
    path.write_text(json.dumps([asdict(each.result) for each in cells]), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("now", "max_drop", "status", "words"),
    [
        ({"bm25": 0.90, "hybrid": 0.95}, 0.5, 0, "ok   湖 dev, hybrid: 0.9500 -> 0.9500 (+0.00 points)"),
        ({"bm25": 0.92, "hybrid": 0.9451}, 0.5, 0, "ok   湖 dev, bm25: 0.9000 -> 0.9200 (+2.00 points)"),
        ({"bm25": 0.90, "hybrid": 0.94}, 0.5, 1, "FELL 湖 dev, hybrid: 0.9500 -> 0.9400 (-1.00 points)"),
        ({"bm25": 0.90, "hybrid": 0.94}, 1.5, 0, "ok   湖 dev, hybrid"),
        ({"bm25": 0.90}, 0.5, 1, "FELL 湖 dev, hybrid: 0.9500 -> not measured"),
    ],
)
def test_a_gate(tmp_path: Path, now: dict[str, float], max_drop: float, status: int, words: str) -> None:
    before = rows_file(tmp_path / "before.json", {"bm25": 0.9, "hybrid": 0.95})
    today = rows_file(tmp_path / "now.json", now)
    done = call(gate.app, "--baseline", before, "--results", today, "--max-drop", max_drop)
    assert done.exit_code == status, done.output
    assert words in done.stdout
    assert ("1 of 2 lost more than" in done.stderr) == bool(status)


def test_gates_that_are_refused(tmp_path: Path) -> None:
    before = rows_file(tmp_path / "before.json", {"bm25": 0.9})
    other = rows_file(tmp_path / "other.json", {"bm25": 0.9}, data="q:9/20|c:5@00ff00ff")
    for args, words in [
        (["--baseline", before, "--results", rows_file(tmp_path / "o.json", {"bm25": 1}, "q:8|c:5@00ff00ff")],
         "the baseline is of 9 queries, c:5@00ff00ff, and today's result of 8 queries"),
        (["--baseline", put(tmp_path / "x.json", "{}")], "cannot be read as results"),
        (["--baseline", put(tmp_path / "y.json", "[]"), "--results", before], "The baseline has no results"),
        (["--baseline", before, "--results", other, "--measure", "MAP@10"], "has no MAP@10"),
        (["--baseline", before], "there is no dataset '湖'"),
    ]:  # fmt: skip
        done = call(gate.app, *args)
        assert done.exit_code == 2
        assert words in " ".join(done.stderr.split()), done.stderr


def test_a_gate_of_one_model_read_in_two_ways(tmp_path: Path) -> None:
    def rows(name: str, model: str, rule: str) -> Path:
        signature = f"湖|dev|q:9|c:5@00ff00ff|jacolbert|{model}|pool:1|qlen:{rule}|dlen:300|v1"
        made = cell("jacolbert", {"q": 0.9}, signature=signature)
        return put(tmp_path / name, json.dumps([asdict(made.result)]))

    before = rows("before.json", "m@1234", "none")
    done = call(gate.app, "--baseline", before, "--results", rows("a.json", "m@1234", "paper"))
    assert done.exit_code == 2
    assert "with qlen:none, and today's result with qlen:paper, by the same model" in done.stderr
    # Another model may have a rule of its own.
    assert call(gate.app, "--baseline", before, "--results", rows("b.json", "n@5678", "paper")).exit_code == 0
    without_head = rows("c.json", "m-without-head-1234@9999", "paper")
    assert "was measured with --head none" in call(gate.app, "--baseline", without_head).stderr


def test_a_gate_of_scored_run_files(tmp_path: Path) -> None:
    rows = [{"run": "a.trec", "measures": {"nDCG@10": 0.5}, "n_queries": 9}]
    before = put(tmp_path / "scored.json", json.dumps(rows))
    assert "was scored by evals.score" in call(gate.app, "--baseline", before).stderr
    done = call(gate.app, "--baseline", before, "--results", before)
    assert done.exit_code == 0, done.output
    assert "ok   a.trec: 0.5000 -> 0.5000" in done.stdout


def test_a_gate_measures_what_the_baseline_has(tmp_path: Path) -> None:
    """The demo corpus, whose full-text search takes a second."""
    from evals import run

    first = call(
        run.app, "--dataset", "demo", "--system", "bm25", "--limit", 20, "--json", tmp_path / "b.json"
    )
    assert first.exit_code == 0, first.output
    same = call(gate.app, "--baseline", tmp_path / "b.json")
    assert same.exit_code == 0, same.output
    assert "(+0.00 points)" in same.stdout
    rows = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    rows[0]["measures"]["nDCG@10"] += 0.006
    (tmp_path / "b.json").write_text(json.dumps(rows), encoding="utf-8")
    assert call(gate.app, "--baseline", tmp_path / "b.json").exit_code == 1
