"""Studies: their grids, their tables, and the questions that they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from evals import places, studies
from tests.test_runs import write_beir

ROOT = Path(__file__).parents[1]


def call(*args: object) -> Any:
    return CliRunner().invoke(studies.app, [str(arg) for arg in args])


def write_set(folder: Path, *, english: bool = True) -> Path:
    """The first passages and questions of the demo corpus."""
    corpus = ROOT / "examples" / "corpus"
    (folder / "qrels").mkdir(parents=True)
    judged = (corpus / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[:9]
    (folder / "qrels" / "test.tsv").write_text("\n".join(judged), encoding="utf-8")
    wanted = {line.split("\t")[1] for line in judged[1:]}
    rows = (corpus / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for i, line in enumerate(rows) if i < 30 or json.loads(line)["_id"] in wanted]
    (folder / "corpus.jsonl").write_text("\n".join(kept), encoding="utf-8")
    for name in ("queries.jsonl", "queries.en.jsonl") if english else ("queries.jsonl",):
        (folder / name).write_text((corpus / name).read_text(encoding="utf-8"), encoding="utf-8")
    return folder


@pytest.mark.filterwarnings("ignore::jacolbert_rag.errors.TruncationWarning")
def test_a_grid_of_query_lengths(tmp_path: Path, tiny_model: Path) -> None:
    data = write_set(tmp_path / "小")
    done = call("query-length", "--data", data, "--model", tiny_model, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    (found,) = json.loads((tmp_path / "out" / "query-length.json").read_text(encoding="utf-8"))
    rules = [row["rule"] for row in found["rows"]]
    assert len(rules) == len(set(rules)) == 4 * 5 + 3
    assert {"dynamic(8, 0)", "dynamic(64, 32)", "none", "fixed(32)", "jqara"} <= set(rules)
    n = found["n_by_length"]
    assert sum(n.values()) == found["n_queries"]
    for row in found["rows"]:
        weighed = sum(row["by_length"][name] * count for name, count in n.items()) / found["n_queries"]
        assert row["all"] == pytest.approx(weighed)
        assert row["low"] <= row["difference"] <= row["high"]
    base = next(row for row in found["rows"] if row["rule"] == studies.BASE_RULE)
    assert (base["difference"], base["low"], base["high"]) == (0, 0, 0)
    # dynamic(32, 0) of queries that have fewer than 32 tokens pads them to 32, as fixed(32) does.
    if set(n) <= {"1 to 16", "17 to 32"}:
        by_rule = {row["rule"]: row["all"] for row in found["rows"]}
        assert by_rule["dynamic(32, 0)"] == pytest.approx(by_rule["fixed(32)"])
    table = (tmp_path / "out" / "query-length.md").read_text(encoding="utf-8")
    assert "| dynamic(32, 8) |" in table
    plot = (tmp_path / "out" / "query-length.svg").read_text(encoding="utf-8")
    assert plot.startswith("<svg")
    assert f"{base['all']:.4f}" in plot


@pytest.mark.filterwarnings("ignore::jacolbert_rag.errors.TruncationWarning")
def test_a_query_ranks_its_own_candidates(tmp_path: Path, tiny_model: Path) -> None:
    candidates = {"q1": ["湖1"], "q2": ["湖2"], "q3": ["社1"]}
    data = write_beir(tmp_path / "候補", candidates=candidates)
    done = call("query-length", "--data", data, "--model", tiny_model, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    (found,) = json.loads((tmp_path / "out" / "query-length.json").read_text(encoding="utf-8"))
    assert {row["all"] for row in found["rows"]} == {1.0}


def test_english_questions(tmp_path: Path) -> None:
    data = write_set(tmp_path / "小")
    done = call("english", "--data", data, "--system", "bm25", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    (row,) = json.loads((tmp_path / "out" / "english.json").read_text(encoding="utf-8"))
    assert (row["system"], row["dataset"]) == ("bm25", "小 test")
    assert row["ja"]["measures"]["nDCG@10"] > row["en"]["measures"]["nDCG@10"]
    assert row["signature"].startswith("小-en|test|")
    table = (tmp_path / "out" / "english.md").read_text(encoding="utf-8")
    assert f"{row['en']['measures']['nDCG@10']:.4f}" in table
    without = call("english", "--data", write_set(tmp_path / "無", english=False), "--out", tmp_path / "out")
    assert without.exit_code == 2
    assert "無 has no queries.en.jsonl" in without.stderr


def test_teachers_of_an_ablation(tmp_path: Path) -> None:
    def scores(values: list[float], differences: list[float]) -> dict[str, Any]:
        half = float(np.std(differences))
        difference = {"mean": float(np.mean(differences)), "half": half}
        return {
            "d@dev": {"nDCG@10": {"values": values, "mean": float(np.mean(values)), "difference": difference}}
        }

    found = {
        "seeds": [1, 2], "dev": {"d@dev": "00"}, "command": "python -m training.ablate teacher",
        "variants": [
            {"name": "both", "not_run": None, "scores": scores([0.9, 0.92], [0.0, 0.0])},
            {"name": "BM25", "not_run": None, "scores": scores([0.8, 0.84], [-0.1, -0.08])},
            {"name": "M3", "not_run": "scored-m3.jsonl is missing", "scores": {}},
        ],
    }  # fmt: skip
    file = tmp_path / "teacher.json"
    file.write_text(json.dumps(found), encoding="utf-8")
    done = call("teachers", "--ablation", file, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    table = (tmp_path / "out" / "teachers.md").read_text(encoding="utf-8")
    assert "| BM25 | 0.8200 | -0.0900 ± 0.0100 |" in table
    assert "M3" not in table
    file.write_text("[]", encoding="utf-8")
    wrong = call("teachers", "--ablation", file, "--out", tmp_path / "out")
    assert wrong.exit_code == 2
    assert "is no table of training.ablate" in wrong.stderr


def test_without_a_dataset_it_is_the_demo_corpus() -> None:
    (place,) = studies._places([], [])
    assert place.name == "demo"
    assert place.folder == places.OWN["demo"][0]
