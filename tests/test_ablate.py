"""Studies of a training stage: numbers by hand, and small ones from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jacolbert_rag.config import QueryLength
from tests.conftest import SENTENCES
from tests.test_recipes import taken
from tests.test_training import command, rows_of, write_beir, write_rows
from training import ablate
from training.comparison import PAPER_MEASURES, compared, estimate, markdown
from training.options import TrainingError
from training.variants import FOLDER, read_set

# Numbers.


def test_an_interval_by_hand() -> None:
    found = estimate([0.61, 0.62, 0.63])
    assert found.mean == pytest.approx(0.62)
    # Standard deviation .01, of three values; Student's t of 2 degrees of freedom at .975 is 4.302653.
    assert found.half == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-6)
    assert estimate([0.5, 0.7]).half == pytest.approx(12.706205 * 0.1, rel=1e-6)
    assert estimate([0.5]).half is None


def scores(*values: float) -> list[dict[str, dict[str, float]]]:
    return [{"held@train": {"nDCG@10": value, "MRR@10": 0.5}} for value in values]


def test_differences_are_paired_by_seed() -> None:
    table = compared(scores(0.62, 0.52, 0.73), scores(0.60, 0.50, 0.70))["held@train"]
    # Seeds differ by far more than the variants do, which each seed shows: .02, .02, .03.
    assert table["nDCG@10"]["half"] > 0.2
    assert table["nDCG@10"]["difference"]["mean"] == pytest.approx(0.07 / 3)
    assert table["nDCG@10"]["difference"]["half"] == pytest.approx(4.302653 * (1e-4 / 3) ** 0.5 / 3**0.5)
    assert table["MRR@10"]["difference"] == {"mean": 0, "half": 0}


def result_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    empty = {"options": {}, "search": None, "average": None, "use": "", "paper": None, "not_run": None}
    return {
        "set": "loss", "question": "Which?", "source": "a paper", "command": "python -m training.ablate loss",
        "steps": 1200, "stage": "distill", "recipe": "mini.toml", "seeds": [1, 2, 3], "limit": None,
        "dev_limit": None, "dev": {"held@train": "0"}, "options": {"kl": 1.0},
        "variants": [{**empty, **row} for row in rows],
    }  # fmt: skip


def test_a_table_of_what_was_found() -> None:
    base = scores(0.60, 0.50, 0.70)
    text = markdown(
        result_of([
            {"name": "KL", "scores": compared(base, base), "paper": [0.585, 0.827, 0.691, 0.716]},
            {"name": "better", "scores": compared(scores(0.62, 0.52, 0.721), base), "options": {"kl": 0.5}},
            {"name": "unsure", "scores": compared(scores(0.70, 0.40, 0.70), base)},
            {"name": "M3", "scores": {}, "not_run": "m3.jsonl is missing"},
        ])
    )  # fmt: skip
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line[:1] == "|"}
    assert lines["variant"].count("|") == lines["KL"].count("|") == lines["M3"].count("|") == 10
    assert "| 0.6000 ± 0.2484 |  |" in lines["KL"]
    assert lines["KL"].endswith("| 0.585 | 0.827 | 0.691 | 0.716 |")
    assert "| +0.0203 ± 0.0014* |" in lines["better"]
    assert "| +0.0000 ± 0.2484 |" in lines["unsure"]
    assert "not run" in lines["M3"]
    assert "1,200 steps a run, 3 seeds a variant" in text
    assert "- M3: m3.jsonl is missing" in text
    assert '- better: `{"options": {"kl": 0.5}}`' in text


# From end to end.


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with tuples of two sources, a dev set, a recipe and a set that varies it."""
    folder = tmp_path_factory.mktemp("study")
    write_beir(folder / "dev")
    rows = [
        {
            "query": SENTENCES[i][:6],
            "passages": [SENTENCES[i], SENTENCES[(i + 1) % 10], SENTENCES[(i + 2) % 10]],
            "scores": [3.0, 1.0, 2.0],
            "source": "湖" if i < 4 else "山",
        }
        for i in range(10)
    ]
    write_rows(folder / "scored.jsonl", rows)
    (folder / "recipe.toml").write_text(f"""
[paths]
OUT = "{folder}"
MODEL = "{tiny_model}"

[[stage]]
name = "main"
step = "distill"
base = "${{MODEL}}"
data = [{{ tuples = "${{OUT}}/scored.jsonl" }}]
n-ways = 3
batch = 4
document-length = 64
precision = "fp32"
learning-rate = 1e-3
dev = "${{OUT}}/dev"
out = "${{OUT}}/main"
""")
    (folder / "small.toml").write_text("""
question = "What counts?"
source = "nobody asked before"
recipe = "recipe.toml"
stage = "main"
dev = ["${OUT}/dev@train"]
n-checkpoints = 2

[options]
ema = 0.5

[[variant]]
name = "KL"
paper = [0.585, 0.827, 0.691, 0.716]

[[variant]]
name = "MarginMSE"
options.kl = 0.0
options.margin-mse = 1.0

[[variant]]
name = "KL, asked without masks"
search = "none"

[[variant]]
name = "KL, mean of 2"
average = { last = 2 }

[[variant]]
name = "KL, running mean"
use = "ema"

[[variant]]
name = "a teacher that is not there"
options.data = [{ tuples = "${OUT}/nowhere.jsonl" }]

[[variant]]
name = "a source that is not there"
options.data = [{ tuples = "${OUT}/scored.jsonl", source = "海" }]
""")
    return folder


CALL = ablate.call


class Killed(Exception):
    pass


def steps_called(monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None) -> list[str]:
    """Names of the steps that are called from now on; one that is too many is not run."""
    called: list[str] = []

    def noting(step: str, function: Any, options: Any) -> None:
        if len(called) == fail_after:
            raise Killed
        called.append(step)
        CALL(step, function, options)

    monkeypatch.setattr(ablate, "call", noting)
    return called


def test_a_study_from_end_to_end(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = [study / "small.toml", "--out", tmp_path, "--seeds", 2, "--steps", 2, "--device", "cpu"]
    called = steps_called(monkeypatch, fail_after=4)
    with pytest.raises(Killed):  # in the first run of the second seed
        command(ablate.main, *args)
    assert called == ["distill", "average", "distill", "distill"]  # the last has no tuple
    assert len(json.loads((tmp_path / "small.json").read_text())["seeds"]) == 1

    called = steps_called(monkeypatch)
    command(ablate.main, *args)
    # Two variants' second seed, of which one is shared by three more; and once more what failed.
    assert called.count("distill") == 3
    assert called.count("average") == 1
    result = json.loads((tmp_path / "small.json").read_text(encoding="utf-8"))
    assert result["steps"] == 2
    assert result["seeds"] == [12345, 12346]
    assert result["command"] == (
        f"python -m training.ablate {study}/small.toml --out {tmp_path} --seeds 2 --steps 2 --device cpu"
    )
    assert result["options"]["batch"] == 4
    assert result["options"]["data"] == [{"tuples": "${OUT}/scored.jsonl"}]  # as it is written
    assert "dev" not in result["options"]
    rows = {row["name"]: row for row in result["variants"]}
    assert rows["a teacher that is not there"]["not_run"] == "nowhere.jsonl is missing"
    assert rows["a source that is not there"]["not_run"].endswith(
        "no tuple is of the source '海'. There are 山, 湖."
    )
    assert rows["MarginMSE"]["options"] == {"kl": 0.0, "margin_mse": 1.0}
    found = {name: row["scores"]["dev@train"]["nDCG@10"] for name, row in rows.items() if row["scores"]}
    assert all(len(each["values"]) == 2 for each in found.values())
    assert all(0.2 < value <= 1 for each in found.values() for value in each["values"])
    assert len({tuple(each["values"]) for each in found.values()}) >= 3
    assert found["KL"]["difference"] == {"mean": 0, "half": 0}
    own, base = found["MarginMSE"]["values"], found["KL"]["values"]
    assert found["MarginMSE"]["difference"]["mean"] == pytest.approx((sum(own) - sum(base)) / 2)
    assert "paper: JQaRA nDCG@10" in (tmp_path / "small.md").read_text(encoding="utf-8")
    assert not any((tmp_path / "small" / "runs").iterdir())  # models are not kept

    called = steps_called(monkeypatch)
    before = (tmp_path / "small.md").read_text(encoding="utf-8")
    command(ablate.main, *args)
    assert called == ["distill"]
    assert (tmp_path / "small.md").read_text(encoding="utf-8") == before
    command(ablate.main, *args[:-2], "--keep", "--seeds", 3)
    assert len(list((tmp_path / "small" / "runs").iterdir())) >= 2


def test_runs_of_a_study_are_those_of_distill(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [study / "small.toml", "--out", tmp_path, "--seeds", 1, "--steps", 2, "--device", "cpu"]
    called = steps_called(monkeypatch)
    command(ablate.main, *args)
    assert "distill" in called
    # Other tuples under the same name are other runs.
    rows = rows_of(study / "scored.jsonl")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("recipe.toml", "small.toml"):
        (other / name).write_text((study / name).read_text())
    monkeypatch.setenv("OUT", str(other))
    write_beir(other / "dev")
    write_rows(other / "scored.jsonl", rows)
    called = steps_called(monkeypatch)
    args[0] = other / "small.toml"
    command(ablate.main, *args)
    assert called.count("distill") == 3  # another place is another command
    write_rows(other / "scored.jsonl", rows[::-1])
    called = steps_called(monkeypatch)
    command(ablate.main, *args)
    assert called.count("distill") == 3
    assert len(rows_of(other / "scored.jsonl")) == len(rows)


def test_minutes_become_steps(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.toml").write_text(f"""
question = "How fast?"
source = "none"
recipe = "{study}/recipe.toml"
stage = "main"
dev = ["${{OUT}}/dev@train"]
[[variant]]
name = "KL"
[[variant]]
name = "of lakes"
options.data = [{{ tuples = "${{OUT}}/scored.jsonl", source = "湖" }}]
[[variant]]
name = "of any six"
options.data = [{{ tuples = "${{OUT}}/scored.jsonl", sample = 6 }}]
""")
    args = [tmp_path / "one.toml", "--out", tmp_path / "o", "--seeds", 1, "--device", "cpu"]
    called = steps_called(monkeypatch)
    command(ablate.main, *args, "--minutes", 0.002, "--dev-limit", 3)
    result = json.loads((tmp_path / "o" / "one.json").read_text(encoding="utf-8"))
    assert called.count("distill") == 3 + 3  # three to take the time
    assert result["steps"] == max(1, round(60 * 0.002 / result["seconds_per_step"]))
    assert result["steps"] < 100  # a step takes some milliseconds
    assert "3 dev queries" in (tmp_path / "o" / "one.md").read_text(encoding="utf-8")
    called = steps_called(monkeypatch)
    command(ablate.main, *args, "--minutes", 0.002, "--dev-limit", 3)
    assert called == []  # the time is not taken again, and so the steps are the same


def test_some_variants(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = [study / "small.toml", "--out", tmp_path, "--seeds", 1, "--steps", 2, "--device", "cpu"]
    called = steps_called(monkeypatch)
    command(ablate.main, *args, "--variant", "KL, running mean")
    assert called == ["distill"]  # the first and this one share a run
    result = json.loads((tmp_path / "small.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row["not_run"] for row in result["variants"]}
    assert rows["KL"] is rows["KL, running mean"] is None
    assert rows["MarginMSE"] == "not asked for"
    assert "--variant 'KL, running mean'" in result["command"]
    with pytest.raises(TrainingError, match="no variant 'running mean'. There are: KL; MarginMSE"):
        command(ablate.main, *args, "--variant", "running mean")


# What is refused.


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("options.kl = 0.0", "options.kls = 0.0", "MarginMSE: training.distill has no kls"),
        ("options.kl = 0.0", "options.seed = 3", "seed cannot be varied: a study sets it for all"),
        ("last = 2", "last = 3", "average.last is 3; expected 1 to n-checkpoints, 2"),
        ('name = "MarginMSE"', 'name = "KL"', "two variants have one name"),
        ("nowhere.jsonl", "${WO}.jsonl", "names 'WO', which is not in"),
        ('question = "What counts?"', "", "lacks question"),
        ('stage = "main"', 'stage = "other"', "has 0 stages of the name 'other'"),
        ("[options]", "[options", "cannot be read"),
    ],
)
def test_sets_that_are_refused(study: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    text = (study / "small.toml").read_text()
    assert old in text
    (tmp_path / "recipe.toml").write_text((study / "recipe.toml").read_text())
    (tmp_path / "small.toml").write_text(text.replace(old, new).replace("${OUT}/${WO}", "${WO}"))
    with pytest.raises(TrainingError, match=words):
        read_set(tmp_path / "small.toml")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["small.toml"], "pass either --minutes, such as 5, or --steps"),
        (["small.toml", "--steps", 2, "--minutes", 1], "pass either"),
        (["teachers", "--steps", 2], "no set teachers. .* averaging, .*teacher"),
        (["small.toml", "--steps", 1], "1 steps are too few for 2 checkpoints"),
    ],
)
def test_lines_that_are_refused(study: Path, tmp_path: Path, args: list[object], words: str) -> None:
    args = [study / "small.toml" if arg == "small.toml" else arg for arg in args]
    with pytest.raises(TrainingError, match=words):
        command(ablate.main, *args, "--out", tmp_path)


def test_a_step_that_fails_is_named(tmp_path: Path) -> None:
    from training import distill

    with pytest.raises(
        TrainingError, match="ended with status 2: python -m training.distill --base x --n-ways 0"
    ):
        ablate.call("distill", distill.main, {"base": "x", "n_ways": 0})


def test_options_as_a_command_line() -> None:
    given = {"data": ["湖", "山"], "gradient_checkpointing": False, "device": None, "kl": 0.5, "keep": True}
    expected = ["--data", "湖", "--data", "山", "--no-gradient-checkpointing", "--kl", "0.5", "--keep"]
    assert ablate.arguments(given) == expected


# The sets that come with the recipes.


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_variants_are_what_the_steps_take(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "OUT"):
        monkeypatch.delenv(name, raising=False)
    plan = read_set(path)
    assert len(plan.variants) >= 3
    for variant in plan.variants:
        assert variant.paper is None or len(variant.paper) == len(PAPER_MEASURES)
        QueryLength.parse(variant.search or "paper")
        data = [",".join(f"{key}={value}" for key, value in t.items()) for t in variant.options["data"]]
        options = {**variant.options, "data": data, "out": "o"}
        context = taken("distill", ablate.arguments(options))
        assert context.params["n_ways"] == variant.options["n_ways"]
        if variant.average:
            own = {k.replace("-", "_"): v for k, v in variant.average.items() if k != "last"}
            taken("average", ablate.arguments({"checkpoint": ["a"], "out": "o", **own}))


def test_the_papers_numbers() -> None:
    """Of JaColBERTv2.5, Tables 2 to 4."""
    rows = {v.name: list(v.paper or ()) for path in FOLDER.glob("*.toml") for v in read_set(path).variants}
    assert rows["trained fixed 32, asked dynamic"] == [0.581, 0.820, 0.681, 0.707]
    assert rows["trained fixed 32, asked none"] == [0.557, 0.817, 0.632, 0.661]
    assert rows["without in-batch negatives"] == [0.580, 0.820, 0.682, 0.713]
    assert rows["teacher and student"] == rows["KL"] == [0.585, 0.827, 0.691, 0.716]
    assert rows["schedule-free, 3e-4"] == [0.581, 0.821, 0.683, 0.717]
    assert rows["KL + .1 MarginMSE"] == [0.582, 0.816, 0.687, 0.714]
    assert rows["M3"] == [0.589, 0.836, 0.740, 0.788]
