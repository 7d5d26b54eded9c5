"""Run files: their reading, their measures beside ir-measures', and the command."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evals import metrics
from evals.datasets import DatasetError
from evals.options import spread
from evals.score import app
from evals.trec import read_qrels, read_run

ROOT = Path(__file__).parents[1]
QRELS = "問1\t0\t湖\t2\n問1\t0\t山\t0\n問2\t0\t川\t1\n問3\t0\t海\t1\n"
# 問2 before 問1; 山 and 湖 have one score, and 山 is first in the file; 問3 is missing, 問9 was not judged.
RUN = """問2 Q0 川 1 0.9 甲
問1 Q0 空 3 0.25 甲
問1 Q0 山 1 0.5 甲
問1 Q0 湖 2 0.5 甲
問9 Q0 湖 1 1 甲
"""
OURS = ("nDCG@10", "nDCG@3", "MRR@10", "MAP@10", "MAP", "Recall@5", "Precision@5", "Hit@1", "Hit@10")
THEIRS = ("nDCG@10", "nDCG@3", "RR@10", "AP@10", "AP", "R@5", "P@5", "Success@1", "Success@10")

runner = CliRunner()


def put(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def call(*args: object) -> Any:
    return runner.invoke(app, [str(arg) for arg in args])


# Measures beside those of another implementation.


def random_case(seed: int) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Judgements of several grades and a run without ties, of queries in another order."""
    rng = random.Random(seed)
    docs = [f"文書{i}" for i in range(80)]
    qrels = {
        f"問{i}": {doc: rng.choice([0, 0, 1, 1, 2, 3]) for doc in rng.sample(docs, rng.randint(1, 25))}
        for i in range(40)
    }
    run = {}
    for i in rng.sample(range(45), 38):
        found = rng.sample(docs, rng.choice([1, 4, 30, 60]))
        scores = rng.sample(range(-500, 500), len(found))
        run[f"問{i}"] = {doc: score / 7 for doc, score in zip(found, scores, strict=True)}
    return qrels, run


def adversarial() -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Only the last is right; all is right; nothing is; all wrong; scores below 0 and near one another."""
    many = [f"d{i:03}" for i in range(100)]
    down = {doc: -1.0 - i * 1e-5 for i, doc in enumerate(many)}  # trec_eval has float32
    qrels = {
        "last": {"d099": 3},
        "tenth": {"d009": 1},
        "eleventh": {"d010": 1},
        "all": dict.fromkeys(many, 1),
        "none": {"elsewhere": 2},
        "zeros": dict.fromkeys(many, 0),
        "graded": {doc: i % 4 for i, doc in enumerate(many)},
        "missing": {"d000": 1},
    }
    return qrels, {id: dict(down) for id in qrels if id != "missing"}


@pytest.mark.parametrize("case", [*(random_case(seed) for seed in range(4)), adversarial()])
def test_measures_are_those_of_ir_measures(case: Any) -> None:
    import ir_measures

    qrels, run = case
    ours = metrics.per_query(qrels, run, OURS)
    measures = {ir_measures.parse_measure(name): name for name in THEIRS}
    theirs: dict[str, dict[str, float]] = {name: {} for name in THEIRS}
    for found in ir_measures.iter_calc(list(measures), qrels, run):
        theirs[measures[found.measure]][found.query_id] = found.value
    for name, other in zip(OURS, THEIRS, strict=True):
        assert set(ours[name]) == set(qrels)
        for id, value in ours[name].items():
            assert value == pytest.approx(theirs[other].get(id, 0.0), abs=1e-6), (name, id)
    means = ir_measures.calc_aggregate(list(measures), qrels, run)
    for name, other in zip(OURS, THEIRS, strict=True):
        assert metrics.mean(ours)[name] == pytest.approx(means[ir_measures.parse_measure(other)], abs=1e-6)


def test_names_of_measures() -> None:
    qrels, run = random_case(9)
    names = ["nDCG@10", "ndcg@10", "RR@10", "mrr@10", "AP", "map", "R@5", "recall@5", "Success@3", "HIT@3"]
    found = metrics.mean(metrics.per_query(qrels, run, names))
    assert list(found) == names
    for a, b in zip(names[::2], names[1::2], strict=True):
        assert found[a] == found[b] > 0
    metrics.check_measures(names)
    with pytest.raises(ValueError, match="'nDCG@x' is unknown"):
        metrics.check_measures(["nDCG@x"])


# Files.


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz", "run.packed"])
def test_runs_are_read_in_their_order(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, "\ufeff" + RUN.replace("\n", "\r\n\r\n"))
    found = read_run(tmp_path / name)
    assert list(found) == ["問2", "問1", "問9"]
    assert list(found["問1"].items()) == [("空", 0.25), ("山", 0.5), ("湖", 0.5)]


def test_gzip_is_known_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_bytes(gzip.compress(QRELS.encode()))
    assert read_qrels(tmp_path / "qrels") == {"問1": {"湖": 2, "山": 0}, "問2": {"川": 1}, "問3": {"海": 1}}


def test_judgements_of_beir_are_read_too(tmp_path: Path) -> None:
    plain = QRELS.replace("\t0\t湖", "\t湖").replace("\t0\t山", "\t山").replace("\t0\t川", "\t川")
    text = "query-id\tcorpus-id\tscore\n" + plain.replace("\t0\t海", "\t海")
    assert read_qrels(put(tmp_path / "a.tsv", text)) == read_qrels(put(tmp_path / "b.tsv", QRELS))


def test_an_id_may_hold_a_full_width_space(tmp_path: Path) -> None:
    assert read_run(put(tmp_path / "r", "問 Q0 琵琶湖\u3000南 1 2e-3 x\n")) == {
        "問": {"琵琶湖\u3000南": 0.002}
    }


@pytest.mark.parametrize(
    ("reader", "text", "words"),
    [
        (read_run, "", "has no results"),
        (read_run, RUN + "問2 Q0 川\n", "line 6: 3 cells; expected 6"),
        (read_run, RUN + "問2 Q0 川 2 0.1 甲\n", "line 6: '問2' has '川' twice"),
        (read_run, RUN + "問2 Q0 海 2 nan 甲\n", "line 6: the score 'nan' is no finite number"),
        (read_run, RUN + "問2 Q0 海 2 -inf 甲\n", "line 6: the score '-inf' is no finite number"),
        (read_run, RUN + "問2 Q0 海 2 二 甲\n", "line 6: the score '二' is no finite number"),
        (read_qrels, "\n\n", "has no judgements"),
        (read_qrels, QRELS + "問3\t海\t1\n", "line 5: 3 cells; expected 4: query, 0, document, relevance"),
        (read_qrels, QRELS + "問3\t0\t海\t0\n", "line 5: '問3' and '海' were judged before"),
        (read_qrels, QRELS + "問3\t0\t池\t1.5\n", "line 5: the relevance '1.5' is no whole number"),
        (read_qrels, "query-id\tcorpus-id\tscore\n問\t0\t海\t1\n", "line 2: 4 cells; expected 3"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, reader: Any, text: str, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        reader(put(tmp_path / "broken", text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_run(tmp_path)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(RUN.encode() * 50)[:60])
    with pytest.raises(DatasetError, match="cannot be unpacked from here"):
        read_run(tmp_path / "cut.gz")
    (tmp_path / "sjis").write_bytes(RUN.encode("cp932"))
    with pytest.raises(DatasetError, match="line 1: not UTF-8"):
        read_run(tmp_path / "sjis")


# The command.


def test_a_tie_by_hand(tmp_path: Path) -> None:
    """山 and 湖 tie, and 山, which is wrong, is first in the file: 湖 is second."""
    qrels, run = put(tmp_path / "qrels.tsv", QRELS), put(tmp_path / "run.trec", RUN)
    done = call("--qrels", qrels, "--run", run, "--measures", "MRR@10", "nDCG@10", "Hit@1", "--json", "-")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert set(row) == {"run", "measures", "n_queries"}
    assert (row["run"], row["n_queries"]) == (str(run), 3)
    assert row["measures"]["MRR@10"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert row["measures"]["nDCG@10"] == pytest.approx((0.6309297535714575 + 1 + 0) / 3)
    assert row["measures"]["Hit@1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("many", [["--run", "A", "B"], ["--run", "A", "--run", "B"]])
def test_several_runs_and_a_file(tmp_path: Path, many: list[str]) -> None:
    put(tmp_path / "qrels", QRELS)
    put(tmp_path / "A", RUN)
    put(tmp_path / "B", "問2 Q0 海 1 1 乙\n")
    args = [str(tmp_path / arg) if len(arg) == 1 else arg for arg in many]
    out = tmp_path / "[結果].json"
    done = call("--qrels", tmp_path / "qrels", *args, "--measures", "MRR@10", "--json", out)
    assert done.exit_code == 0, done.output
    a, b = json.loads(out.read_text(encoding="utf-8"))
    assert (a["measures"]["MRR@10"], b["measures"]["MRR@10"]) == (0.5, 0.0)
    assert "0.5000" in done.stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--measures": "ERR@10"}, "the measure 'ERR@10' is unknown; expected nDCG@k"),
        ({"--qrels": "nowhere"}, "nowhere cannot be read"),
        ({"--run": "nowhere"}, "nowhere cannot be read"),
        ({"--json": "no/where.json"}, "there is no folder no"),
    ],
)
def test_what_cannot_be_scored_exits_with_2_and_says_why(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    qrels, run = put(tmp_path / "qrels", QRELS), put(tmp_path / "run", RUN)
    args = {"--qrels": qrels, "--run": run, "--measures": "MRR@10", "--json": "-", **changes}
    done = call(*(part for pair in args.items() for part in pair))
    assert done.exit_code == 2
    assert words in done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr


def test_lists_of_values() -> None:
    lists = ("--run", "--measures")
    args = ["--run", "a", "b", "--json", "-", "--measures", "x", "--run", "c", "d", "e"]
    expected = ["--run", "a", "--run", "b", "--json", "-", "--measures", "x", "--run", "c", "--run", "d"]
    assert spread(args, lists) == [*expected, "--run", "e"]
    assert spread(["--qrels", "a", "b"], lists) == ["--qrels", "a", "b"]
    assert spread(["--run", "-", "b"], lists) == ["--run", "-", "--run", "b"]
    assert spread(["--run"], lists) == ["--run"]


def test_published_runs_of_jqara(shared_data: Path) -> None:
    """To four digits; JaColBERTv2.5 has ties, whose order moves its MRR by .0003."""
    folder = shared_data / "jqara_runs"
    names = ("JaColBERTv2.5", "bge-m3-colbert", "bm25")
    runs = [str(folder / f"run.{name}.trec.gz") for name in names]
    args = ["--qrels", str(folder / "qrels.tsv"), "--run", *runs, "--measures", "nDCG@10", "MRR@10"]
    done = subprocess.run(
        [sys.executable, "-m", "evals.score", *args, "--json", "-"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    published = json.loads((folder / "published.json").read_text("utf-8"))["runs"]
    for name, row in zip(names, json.loads(done.stdout), strict=True):
        assert row["n_queries"] == 1667
        assert row["measures"]["nDCG@10"] == pytest.approx(published[name]["ndcg@10"], abs=5e-4)
        assert row["measures"]["MRR@10"] == pytest.approx(published[name]["mrr@10"], abs=5e-4)
