"""Recipes, the script that runs them, and datasets as folders."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import typer

from tests.conftest import SENTENCES
from tests.test_training import command, rows_of, write_beir
from training import prepare, recipe
from training.data import DATA_KEYS, read_texts
from training.mine import METHODS
from training.options import Stage, TrainingError, as_option, read_paths, read_recipe
from training.pairs import TUPLES_FILE
from training.variants import FOLDER, read_set

ROOT = Path(__file__).parents[1]
RUN = ROOT / "training" / "recipes" / "run.sh"
RECIPES = sorted(RUN.parent.glob("*.toml"))
EACH = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def own_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the environment of whoever runs the tests changes a recipe."""
    for path in RECIPES:
        for name in read_paths(path):
            monkeypatch.delenv(name, raising=False)


# What recipes say.


def main_of(step: str) -> Any:
    return importlib.import_module(f"training.{step}").main


def fits(value: object, hint: Any) -> bool:
    """Whether a value of a recipe is of a parameter's type; a table is an item of repeated text."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is list:
        return isinstance(value, list) and all(fits(item, args[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, {Path: str, str: str | dict}.get(hint, hint))


def test_types_by_hand() -> None:
    assert fits(3, int)
    assert not fits(3.0, int)
    assert not fits(True, float)
    assert fits("湖", Path | None)
    assert not fits("湖", list[str])
    assert fits([{"tuples": "a"}, "b"], list[str])
    assert not fits("sgd", Literal["linear", "schedule-free"])


@EACH
def test_options_are_known_and_of_their_types(path: Path) -> None:
    stages = tomllib.loads(path.read_text(encoding="utf-8"))["stage"]
    assert len(stages) >= 2
    for table in stages:
        hints = typing.get_type_hints(main_of(table["step"]))
        for key, value in table.items():
            if key in ("name", "step"):
                continue
            assert key == key.replace("_", "-")
            hint = hints[key.replace("-", "_")]
            assert fits(value, hint), f"{table['name']}: {key} = {value!r}, expected {hint}"
            for spec in value if key == "data" and isinstance(value, list) else ():
                assert spec.keys() <= set(DATA_KEYS)


@EACH
def test_steps_take_their_stages(path: Path) -> None:
    for stage in read_recipe(path):
        context = taken(stage.step, ["--config", str(path), "--stage", stage.name])
        for key, value in as_option_values(stage).items():
            got = context.params[key]
            assert [str(v) for v in got] == value if isinstance(got, list) else str(got) == str(value)
        if stage.step == "mine":
            assert set(stage.options["method"]) <= set(METHODS)


def as_option_values(stage: Stage) -> dict[str, Any]:
    return {key: as_option(value) for key, value in stage.options.items()}


def taken(step: str, args: list[str]) -> Any:
    """The context of a step's command line; raises where that would end with a message."""
    app = typer.Typer()
    app.command(name=step)(main_of(step))
    return typer.main.get_command(app).make_context(step, args)


def written(stage: Stage) -> set[str]:
    """Files and folders that a stage leaves for others."""
    out, options = stage.options["out"], stage.options
    if stage.step == "pairs":
        held = {f"{out}/held"} if "beir" in options else set()
        return {f"{out}/train", f"{out}/train/{TUPLES_FILE}"} | held
    found = {out}
    if stage.step == "distill":
        every, steps = options.get("checkpoint_every", 2_000), options["steps"]
        found |= {f"{out}/checkpoints/step-{n}" for n in range(every, steps, every)} if every else set()
        found |= {f"{out}/ema"} if options.get("ema") else set()
    return found


def named(value: object) -> set[str]:
    """Paths within /OUT that an option names."""
    items = value if isinstance(value, list) else [value]
    return {path for item in items for path in re.findall(r"/OUT[^,*]*", str(item))}


def stages_before(path: Path) -> list[Stage]:
    """Stages of the recipe that one goes on with."""
    return read_recipe(RUN.parent / "mini.toml") if path.stem == "mini-teachers" else []


@EACH
def test_stages_read_what_earlier_ones_wrote(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", "/OUT")
    there = {p for stage in stages_before(path) for p in written(stage)}
    for stage in read_recipe(path):
        reads = {p for key, value in stage.options.items() if key != "out" for p in named(as_option(value))}
        assert reads <= there, f"{stage.name} reads {reads - there}"
        assert stage.options["out"].startswith("/OUT/")
        assert not written(stage) & there, f"{stage.name} writes over another"
        there |= written(stage)


def test_recipes_name_no_folder_outside() -> None:
    for path in [*RECIPES, *FOLDER.glob("*.toml"), RUN]:
        assert "../shared" not in path.read_text(encoding="utf-8")


# Of published cross-encoders; whoever has a GPU scores them.
NOT_MADE = {
    f"/OUT/scored-{name}.jsonl"
    for name in ("m3", "m3-jp", "jp-small", "jp-base", "jp-large", "m3-m3-jp", "ruri", "ruri-m3")
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_sets_read_what_the_mini_recipe_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", "/OUT")
    plan = read_set(path)
    assert plan.recipe.name == "mini.toml"
    teachers = read_recipe(RUN.parent / "mini-teachers.toml")
    there = {p for stage in [*read_recipe(plan.recipe), *teachers] for p in written(stage)}
    for n, variant in enumerate(plan.variants):
        reads = {p for option in variant.options.values() for p in named(_flat(option))}
        reads |= named(_flat(variant.average or {}))
        assert reads - there <= (NOT_MADE if n else set()), variant.name
    assert {p for dev in plan.dev for p in named(dev.split("@")[0])} <= there


def _flat(value: object) -> list[object]:
    if isinstance(value, dict):
        value = list(value.values())
    return [x for item in value for x in _flat(item)] if isinstance(value, list) else [value]


# The numbers of JaColBERTv2.5: arXiv:2407.20750 and the released artifact.metadata.


def stage_of(name: str, stage: str) -> dict[str, Any]:
    stages = tomllib.loads((RUN.parent / f"{name}.toml").read_text(encoding="utf-8"))["stage"]
    return next(table for table in stages if table["name"] == stage)


def test_the_main_run_is_that_of_the_paper() -> None:
    main = stage_of("jacolbert-v2.5", "main")
    expected = {
        "base": "bclavie/JaColBERT", "n-ways": 32, "batch": 64, "steps": 50_000, "learning-rate": 3e-5,
        "optimizer": "schedule-free", "warmup": 0.05, "weight-decay": 0.0, "clip": 0.0, "kl": 1.0,
        "margin-mse": 0.0, "normalize": "both", "contrast": 0.0, "document-length": 300,
        "query-length": "fixed(32)", "precision": "fp16", "checkpoint-every": 2_000, "seed": 12345,
    }  # fmt: skip
    assert {key: main[key] for key in expected} == expected
    assert main["steps"] * main["warmup"] == 2_500
    assert main["steps"] * main["batch"] == 3_200_000
    (data,) = main["data"]
    paths = read_paths(RUN.parent / "jacolbert-v2.5.toml")
    assert data["tuples"] == "${TUPLES}"
    assert paths["TUPLES"] == "hub:answerdotai/MMARCO-japanese-32-scored-triplets@M3_full_normalized"
    assert paths["CORPUS"] == "data/mmarco/japanese_collection.tsv"
    assert "limit" not in data


def test_post_training_is_that_of_table_6() -> None:
    post, more = (stage_of("jacolbert-v2.5", name) for name in ("post", "post-mmarco"))
    counts = {table["name"]: table["sample"] for table in more["data"]}
    assert counts == {"miracl": 115_365, "jqara": 35_733, "jagovfaqs": 28_902, "mmarco": 18_000}
    assert sum(table["sample"] for table in post["data"]) == 180_000
    assert post["data"] == more["data"][:3]
    for stage, n_tuples in ((post, 180_000), (more, 198_000)):
        assert stage["steps"] == n_tuples // stage["batch"]
        assert stage["base"] == "${OUT}/main"
    # Enough tuples are mined of each query for what is taken; JaGovFaqs has some 22,000 questions.
    n_queries = {"miracl": 3_477, "jqara": 1_737 + 498, "jagovfaqs": 22_000}
    for name, n in n_queries.items():
        mine = stage_of("jacolbert-v2.5", f"mine-{name}")
        assert n * mine["tuples"] >= counts[name]
        assert mine["n-negatives"] == post["n-ways"] - 1


def test_the_final_model_is_the_mean_of_five() -> None:
    average = stage_of("jacolbert-v2.5", "v2.5")
    assert len(average["checkpoint"]) == 5
    assert set(stage_of("jacolbert-v2.5", "v2.4")["checkpoint"]) < set(average["checkpoint"])
    assert {"${OUT}/main", "${OUT}/post", "${OUT}/post-mmarco"} < set(average["checkpoint"])
    assert not average.keys() & {"select", "ema", "sweep"}


def test_as_run_differs_where_the_fork_did() -> None:
    paper, run = (stage_of(name, "main") for name in ("jacolbert-v2.5", "jacolbert-v2.5-as-run"))
    assert (run["batch"], run["steps"], run["data"][0]["limit"]) == (16, 50_000, 800_000)
    changed = {key for key in paper.keys() | run.keys() if paper.get(key) != run.get(key)}
    assert changed == {"batch", "micro-batch", "data"}


def test_next_takes_all_tuples_and_the_rule_of_use() -> None:
    main, score = (stage_of("jacolbert-next", name) for name in ("main", "score"))
    assert (main["batch"] * main["steps"], main["query-length"], main["precision"]) == (
        3_200_000,
        "paper",
        "bf16",
    )
    assert [t.partition("*")[0].partition(":")[2] for t in score["teacher"]] == [
        "cl-nagoya/ruri-v3-reranker-310m",
        "BAAI/bge-reranker-v2-m3",
    ]


# Running them.


def run_sh(*args: object, **env: object) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    settings |= {key: str(value) for key, value in env.items()}
    line = [str(RUN), *map(str, args)]
    return subprocess.run(line, env=settings, capture_output=True, text=True, check=False, timeout=300)


def test_a_recipe_runs_from_end_to_end_and_then_does_nothing(tmp_path: Path, tiny_model: Path) -> None:
    write_beir(tmp_path / "beir")
    (tmp_path / "tiny.toml").write_text(f"""
[paths]
OUT = "{tmp_path}/run"
BASE = "nowhere"

[[stage]]
name = "mine"
step = "mine"
data = "{tmp_path}/beir"
method = ["bm25"]
n-negatives = 1
out = "${{OUT}}/mined.jsonl"

[[stage]]
name = "main"
step = "distill"
base = "${{BASE}}"
data = ["tuples=${{OUT}}/mined.jsonl,queries={tmp_path}/beir,corpus={tmp_path}/beir"]
n-ways = 1
batch = 4
steps = 100
kl = 0.0
contrast = 1.0
document-length = 64
precision = "fp32"
checkpoint-every = 0
out = "${{OUT}}/model"
""")
    done = run_sh(tmp_path / "tiny.toml", "--limit", 8, BASE=tiny_model)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "run-limit-8"
    assert not (tmp_path / "run").exists()
    assert f"done: {out}" in done.stderr
    assert len(rows_of(out / "model" / "metrics.jsonl")) == 1  # of 100 steps
    assert len(rows_of(out / "mined.jsonl")) == 8
    before = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"
    }
    assert out / "model" / "model.safetensors" in before

    again = run_sh(tmp_path / "tiny.toml", "--limit=8", BASE=tiny_model)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("nothing to do") == 2
    after = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"
    }
    assert after == before


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """An interpreter that lists recipes, and notes what else it is asked to run; score fails."""
    script = tmp_path / "python"
    script.write_text(f"""#!/usr/bin/env bash
if [[ $2 == training.recipe ]]; then exec {sys.executable} "$@"; fi
echo "OUT=$OUT $*" >> {tmp_path}/lines
[[ $* != *training.score* ]]
""")
    script.chmod(0o755)
    return script


STAGES = """
[paths]
OUT = "/srv/run"

[[stage]]
name = "a"
step = "pairs"

[[stage]]
name = "b"
step = "distill"

[[stage]]
name = "c"
step = "score"

[[stage]]
name = "d"
step = "average"
"""


def test_lines_that_a_recipe_runs(tmp_path: Path, noted: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(STAGES)
    done = run_sh(path, "--limit", "200", NPROC=4, PYTHON=noted)
    launch = "-m torch.distributed.run --standalone --nproc-per-node 4"
    rest = "--limit 200"
    assert (tmp_path / "lines").read_text().splitlines() == [
        f"OUT=/srv/run-limit-200 -m training.pairs --config {path} --stage a {rest}",
        f"OUT=/srv/run-limit-200 {launch} -m training.distill --config {path} --stage b {rest}",
        f"OUT=/srv/run-limit-200 {launch} -m training.score --config {path} --stage c {rest}",
    ]
    assert done.returncode == 1  # score failed, and nothing came after it
    assert "d (average)" not in done.stderr


def test_the_environment_names_the_folder(tmp_path: Path, noted: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(STAGES)
    run_sh(path, OUT=tmp_path / "湖", PYTHON=noted)
    first = (tmp_path / "lines").read_text().splitlines()[0]
    assert first == f"OUT={tmp_path}/湖 -m training.pairs --config {path} --stage a"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "NAME|FILE.toml"),
        (["nothing"], "nothing.toml cannot be read"),
        (["empty.toml"], "has no \\[\\[stage\\]\\]"),
    ],
)
def test_what_cannot_be_run(tmp_path: Path, args: list[str], words: str) -> None:
    (tmp_path / "empty.toml").write_text("[paths]\nOUT = 'x'\n")
    done = run_sh(*(tmp_path / arg if arg.endswith(".toml") else arg for arg in args))
    assert done.returncode == 2
    assert re.search(words, done.stderr.replace("\n", " "))


def test_a_path_that_a_recipe_lacks(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[paths]\nDATA = 'x'\n")
    with pytest.raises(TrainingError, match="has no OUT in \\[paths\\]. Add it"):
        command(recipe.main, tmp_path / "r.toml", "--path", "OUT")


# Datasets as folders.


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def passage(n: int) -> dict[str, str]:
    return {"docid": f"{n // 2}#{n % 2}", "title": f"題{n // 2}", "text": SENTENCES[n]}


@pytest.fixture
def miracl(tmp_path: Path) -> list[object]:
    """Arguments that name MIRACL's two parts, in their columns: five queries, ten passages."""
    queries = [
        {
            "query_id": f"{n}#0",
            "query": SENTENCES[n][:8],
            "positive_passages": [passage(n), passage(9 - n)],
            "negative_passages": [passage((n + 1) % 10)],
        }
        for n in range(5)
    ]
    rows = parquet(tmp_path / "queries.parquet", queries)
    corpus = parquet(tmp_path / "corpus.parquet", [passage(n) for n in range(10)])
    return ["--dataset", "miracl-ja", "--rows", rows, "--corpus", corpus]


def test_miracl_as_a_folder(tmp_path: Path, miracl: list[object]) -> None:
    out = tmp_path / "out"
    command(prepare.main, *miracl, "--out", out)
    corpus, queries = rows_of(out / "corpus.jsonl"), rows_of(out / "queries.jsonl")
    assert sorted(row["_id"] for row in corpus) == sorted(passage(n)["docid"] for n in range(10))
    assert sorted(row["_id"] for row in queries) == [f"{n}#0" for n in range(5)]
    assert queries[0]["metadata"] == {"source": "miracl-ja"}
    judged = (out / "qrels" / "train.tsv").read_text().splitlines()
    assert judged[0] == "query-id\tcorpus-id\tscore"
    assert "0#0\t0#0\t1" in judged
    assert "0#0\t4#1\t1" in judged
    assert len(judged) == 1 + 10
    # Read as title, space, text: section 5 of the evaluators.
    assert read_texts(str(out), "corpus")["0#1"] == f"題0 {SENTENCES[1]}"
    before = (out / "corpus.jsonl").stat().st_mtime_ns
    command(prepare.main, *miracl, "--out", out)
    assert (out / "corpus.jsonl").stat().st_mtime_ns == before


def test_a_few_queries_come_with_their_answers(tmp_path: Path, miracl: list[object]) -> None:
    command(prepare.main, *miracl, "--out", tmp_path / "all")
    command(prepare.main, *miracl, "--out", tmp_path / "two", "--limit", 2)
    queries = rows_of(tmp_path / "two" / "queries.jsonl")
    assert queries == rows_of(tmp_path / "all" / "queries.jsonl")[:2]  # the order is drawn before
    assert queries != sorted(rows_of(tmp_path / "all" / "queries.jsonl"), key=lambda row: row["_id"])[:2]
    ids = [row["_id"] for row in rows_of(tmp_path / "two" / "corpus.jsonl")]
    judged = [
        line.split("\t") for line in (tmp_path / "two" / "qrels" / "train.tsv").read_text().splitlines()[1:]
    ]
    assert len(judged) == 4
    assert {id for _, id, _ in judged} < set(ids)
    assert len(ids) == len(set(ids)) == 4 + 2


def test_a_killed_one_writes_what_is_missing(tmp_path: Path, miracl: list[object]) -> None:
    command(prepare.main, *miracl, "--out", tmp_path / "out")
    before = (tmp_path / "out" / "corpus.jsonl").stat().st_mtime_ns
    queries = (tmp_path / "out" / "queries.jsonl").read_text()
    (tmp_path / "out" / "queries.jsonl").unlink()
    command(prepare.main, *miracl, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "queries.jsonl").read_text() == queries
    assert (tmp_path / "out" / "corpus.jsonl").stat().st_mtime_ns == before


def test_jqara_without_its_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> list[dict[str, Any]]:
        splits.append(name)
        n = len(splits)
        return [
            {
                "id": f"{n}-{i}", "q_id": f"QA{n}", "passage_row_id": f"{n}{i}", "label": int(i == 1),
                "text": SENTENCES[i], "title": f"題{i}", "question": f"{SENTENCES[n]}？", "answers": ["湖"],
            }
            for i in range(3)
        ]  # fmt: skip

    splits: list[str] = []
    monkeypatch.setattr(prepare, "load_dataset", load)
    command(prepare.main, "--dataset", "jqara", "--out", tmp_path / "o")
    assert splits == ["hub:hotchpotch/JQaRA@dev", "hub:hotchpotch/JQaRA@unused"]
    assert {row["_id"]: row["text"] for row in rows_of(tmp_path / "o" / "queries.jsonl")} == {
        "QA1": f"{SENTENCES[1]}？",
        "QA2": f"{SENTENCES[2]}？",
    }
    assert len(rows_of(tmp_path / "o" / "corpus.jsonl")) == 6
    judged = (tmp_path / "o" / "qrels" / "train.tsv").read_text().splitlines()[1:]
    assert sorted(judged) == ["QA1\t11\t1", "QA2\t21\t1"]


def test_equal_answers_of_ministries_are_one_passage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"Question": "締切はいつですか。", "Answer": SENTENCES[9], "copyright": "省", "url": "a"},
        {"Question": "精算の期限は？", "Answer": SENTENCES[9], "copyright": "省", "url": "b"},
        {"Question": "担当はどこですか。", "Answer": SENTENCES[5], "copyright": "省", "url": "c"},
    ]
    monkeypatch.setattr(prepare, "load_dataset", lambda name: rows)
    command(prepare.main, "--dataset", "jagovfaqs", "--out", tmp_path / "o")
    assert [row["text"] for row in rows_of(tmp_path / "o" / "corpus.jsonl")] == [SENTENCES[9], SENTENCES[5]]
    judged = (tmp_path / "o" / "qrels" / "train.tsv").read_text().splitlines()[1:]
    assert sorted(judged) == ["q0\ta0\t1", "q1\ta0\t1", "q2\ta1\t1"]


def test_mmarco_by_row_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        "hub:hpprc/mmarco-ja/dataset@train": [
            {"anc": "日本一の湖", "pos_ids": [0], "neg_ids": [3, 4]},
            {"anc": "火山", "pos_ids": [1, 2], "neg_ids": [0]},
        ],
        "hub:hpprc/mmarco-ja/collection@train": [{"text": text} for text in SENTENCES],
    }
    monkeypatch.setattr(prepare, "load_dataset", parts.__getitem__)
    command(prepare.main, "--dataset", "mmarco-ja", "--out", tmp_path / "o")
    assert [row["_id"] for row in rows_of(tmp_path / "o" / "corpus.jsonl")] == [str(n) for n in range(10)]
    assert len((tmp_path / "o" / "qrels" / "train.tsv").read_text().splitlines()) == 4
    command(prepare.main, "--dataset", "mmarco-ja", "--out", tmp_path / "one", "--limit", 1)
    found = {row["_id"]: row["text"] for row in rows_of(tmp_path / "one" / "corpus.jsonl")}
    judged = (tmp_path / "one" / "qrels" / "train.tsv").read_text().splitlines()[1:]
    assert all(found[line.split("\t")[1]] == SENTENCES[int(line.split("\t")[1])] for line in judged)
    assert len(found) == len(judged) + 1


def test_a_dataset_that_needs_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found miracl.py")

    monkeypatch.setattr(prepare, "load_dataset", refuse)
    with pytest.raises(TrainingError, match="hub:miracl/miracl/ja@train .* name that with --rows"):
        command(prepare.main, "--dataset", "miracl-ja", "--out", tmp_path / "o")


def test_paths_are_those_that_stages_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.toml"
    text = '[paths]\nDATA = "湖"\nOUT = "${DATA}/run"\n'
    path.write_text(text + '[[stage]]\nname = "a"\nstep = "pairs"\nout = "${OUT}/a"\n', encoding="utf-8")
    for set_to in (None, "", "/srv"):
        if set_to is not None:
            monkeypatch.setenv("DATA", set_to)
        (stage,) = read_recipe(path)
        assert stage.options["out"] == f"{read_paths(path)['OUT']}/a"
    assert read_paths(path)["OUT"] == "/srv/run"


def test_stages_are_listed_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text(STAGES)
    recipe.main(tmp_path / "r.toml")
    assert capsys.readouterr().out.splitlines() == ["pairs\ta", "distill\tb", "score\tc", "average\td"]
