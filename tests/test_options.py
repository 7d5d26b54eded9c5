"""Settings of a step: recipes, their precedence under the command line, and the words of what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer

from training import mine, pairs
from training.options import Config, Limit, StageName, TrainingError, find_stage, limited, read_recipe, run

RECIPE = """
[paths]
DATA = "data"
OUT = "runs/${DATA}/試し"

[[stage]]
name = "掘る"
step = "mine"
data = "${DATA}/jsquad"

[[stage]]
name = "main"
step = "step"
data = [
    { tuples = "${OUT}/scored.jsonl", queries = "${DATA}/q", corpus = "${DATA}/c", n-ways = 8 },
    "${OUT}/pairs.jsonl",
]
out = "${OUT}/main"
learning-rate = 3e-5
steps = 500
gradient-checkpointing = true
kind = "linear"

[[stage]]
name = "second"
step = "step"
data = ["湖.jsonl"]
out = "$${OUT}"
gradient_checkpointing = false
limit = 20
"""


def step(
    taken: Path,
    data: Annotated[list[str], typer.Option()],
    out: Annotated[Path, typer.Option()],
    steps: Annotated[int, typer.Option(min=0)] = 10,
    learning_rate: float = 1e-3,
    kind: Literal["schedule-free", "linear"] = "schedule-free",
    gradient_checkpointing: bool = True,
    ema: float | None = None,
    limit: Limit = None,
    config: Config = None,
    stage: StageName = None,
) -> None:
    """A step that tells what it was given."""
    found = {
        "data": data, "out": str(out), "steps": steps, "learning_rate": learning_rate, "kind": kind,
        "gradient_checkpointing": gradient_checkpointing, "ema": ema, "limit": limit,
        "config": None if config is None else config.name, "stage": stage,
    }  # fmt: skip
    taken.write_text(json.dumps(found))


@pytest.fixture(autouse=True)
def no_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "OUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def given(tmp_path: Path, *args: object) -> dict[str, Any]:
    """What the step got."""
    taken = tmp_path / "taken.json"
    with pytest.raises(SystemExit) as ended:
        run("step", step, [str(taken), *map(str, args)])
    assert ended.value.code == 0
    return json.loads(taken.read_text())


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """What a step says that ends with status 2; all of it, on one line."""
    with pytest.raises(SystemExit) as ended:
        run("step", step, ["taken", *map(str, args)])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err


def test_the_steps_own_defaults_come_last(tmp_path: Path) -> None:
    assert given(tmp_path, "--data", "a", "--data", "b=c,d=e", "--out", "o") == {
        "data": ["a", "b=c,d=e"], "out": "o", "steps": 10, "learning_rate": 1e-3, "kind": "schedule-free",
        "gradient_checkpointing": True, "ema": None, "limit": None, "config": None, "stage": None,
    }  # fmt: skip


def test_a_stage_is_above_the_defaults(tmp_path: Path, recipe: Path) -> None:
    assert given(tmp_path, "--config", recipe, "--stage", "main") == {
        "data": [
            "tuples=runs/data/試し/scored.jsonl,queries=data/q,corpus=data/c,n-ways=8",
            "runs/data/試し/pairs.jsonl",
        ],
        "out": "runs/data/試し/main", "steps": 500, "learning_rate": 3e-5, "kind": "linear",
        "gradient_checkpointing": True, "ema": None, "limit": None, "config": "recipe.toml", "stage": "main",
    }  # fmt: skip


@pytest.mark.parametrize("first", [True, False])  # the order of options says nothing
def test_the_command_line_is_above_a_stage(tmp_path: Path, recipe: Path, first: bool) -> None:
    own = [
        "--steps",
        7,
        "--data",
        "x",
        "--no-gradient-checkpointing",
        "--kind",
        "schedule-free",
        "--limit",
        3,
    ]
    of_recipe = ["--stage", "main", "--config", recipe]
    found = given(tmp_path, *([*own, *of_recipe] if first else [*of_recipe, *own]))
    assert (found["steps"], found["data"], found["limit"]) == (7, ["x"], 3)
    assert (found["gradient_checkpointing"], found["kind"]) == (False, "schedule-free")
    assert (found["learning_rate"], found["out"]) == (3e-5, "runs/data/試し/main")


def test_flags_may_be_off_and_keys_have_either_line(tmp_path: Path, recipe: Path) -> None:
    found = given(tmp_path, "--config", recipe, "--stage", "second")
    assert (found["gradient_checkpointing"], found["limit"], found["data"]) == (False, 20, ["湖.jsonl"])
    assert found["out"] == "${OUT}"  # $$ is a $
    found = given(tmp_path, "--config", recipe, "--stage", "second", "--gradient-checkpointing")
    assert found["gradient_checkpointing"] is True


def test_the_only_stage_of_a_step_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text('[[stage]]\nname = "a"\nstep = "step"\ndata = ["x"]\nout = "o"\nema = 0\n')
    found = given(tmp_path, "--config", path)
    assert (found["out"], found["ema"], found["stage"]) == ("o", 0.0, None)
    path.write_text('[[stage]]\nname = "a"\nstep = "step"\ndata = "x"\nout = "o"\n')
    assert find_stage(path, "step", None).options == {"data": "x", "out": "o"}


def test_the_environment_is_above_paths(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/mnt/資料")
    assert find_stage(recipe, "mine", None).options == {"data": "/mnt/資料/jsquad"}
    assert find_stage(recipe, "step", "main").options["out"] == "runs//mnt/資料/試し/main"
    monkeypatch.setenv("OUT", "/tmp/out $DATA")  # taken as it is
    assert find_stage(recipe, "step", "main").options["out"] == "/tmp/out $DATA/main"


def test_stages_are_read_in_order(recipe: Path) -> None:
    stages = read_recipe(recipe)
    assert [(stage.name, stage.step) for stage in stages] == [
        ("掘る", "mine"), ("main", "step"), ("second", "step"),
    ]  # fmt: skip
    assert stages[1].options["gradient_checkpointing"] is True
    assert stages[1].options["steps"] == 500


STAGE = '[[stage]]\nname = "a"\nstep = "step"\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("steps = ", "is no TOML: Invalid value"),
        ("[paths]\n[path]\n", "has path; a recipe has [paths] and [[stage]] alone"),
        ('[[stage]]\nname = "a"\n', 'stage 1: "name" and "step" must be there, both strings'),
        (STAGE + '[[stage]]\nstep = "step"\n', 'stage 2: "name" and "step"'),
        ('[[stage]]\nname = 1\nstep = "step"\n', 'stage 1: "name" and "step"'),
        (STAGE + STAGE, "has two stages of the name a. Give each its own"),
        ('[stage]\nname = "a"\nstep = "step"\n', "a [[stage]], in two brackets, for each step"),
        ('stage = ["a"]\n', "a [[stage]], in two brackets, for each step"),
        ('paths = "data"\n', "expected one table [paths]"),
        (STAGE + 'out = "${OUTT}/a"\n', "stage 'a', out: '${OUTT}/a' names 'OUTT', which is not in [paths]"),
        (STAGE + 'data = [{ tuples = "$X" }]\n', "stage 'a', data: '$X' names 'X'"),
        (STAGE + 'out = "5$"\n', "stage 'a', out: '5$' has a $ without a ${NAME}; write it as $$"),
        ('[paths]\nA = "$B"\nB = "b"\n', "A: '$B' names 'B', which is not in [paths]"),
        (
            STAGE + "stepz = 5\n",
            "stage 'a': there is no stepz. The step 'step' takes data, ema, gradient_che",
        ),
        (STAGE + 'config = "x.toml"\n', "there is no config"),
        (STAGE + "no-gradient-checkpointing = true\n", "there is no no_gradient_checkpointing"),
        ("", "has 0 stages with step = 'step'; expected 1. Name one with --stage; there are: none"),
        (
            STAGE + '[[stage]]\nname = "b"\nstep = "step"\n',
            "has 2 stages with step = 'step'; expected 1. Name one with --stage; there are: a, b",
        ),
    ],
)
def test_recipes_that_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "a recipe [of mine] with a long name, so that the line would not fit on a terminal.toml"
    path.write_text(content, encoding="utf-8")
    found = refused(capsys, "--config", path)
    assert message in found
    assert str(path) in found


def test_stages_that_are_not_there(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--config", recipe, "--stage", "third")
    assert "has 0 stages of the name 'third' with step = 'step'" in said
    assert "there are: main, second" in said
    said = refused(capsys, "--config", recipe, "--stage", "掘る")  # of another step
    assert "has 0 stages of the name '掘る' with step = 'step'" in said
    assert "none.toml cannot be read" in refused(capsys, "--config", "none.toml")
    assert "--stage main is of no recipe. Name one with --config" in refused(capsys, "--stage", "main")


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ('steps = "many"', "--steps"),
        ("steps = -1", "--steps"),
        ('kind = "cosine"', "--kind"),
        ("limit = 0", "--limit"),
        ("steps = [1, 2]", "--steps"),
        ('gradient-checkpointing = "perhaps"', "--gradient-checkpointing"),
    ],
)
def test_values_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, option: str
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f'{STAGE}data = ["x"]\nout = "o"\n{line}\n')
    with pytest.raises(SystemExit) as ended:
        run("step", step, ["taken", "--config", str(path)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Invalid value for" in said
    assert option in said


def test_what_is_needed_is_asked_for(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("step", step, ["taken", "--data", "x"])
    assert ended.value.code == 2
    assert "Missing option '--out'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run("mine", mine.main, ["--config", str(recipe), "--method", "bm25"])
    assert ended.value.code == 2
    assert "Missing option '--out'" in capsys.readouterr().err


def test_help(recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        run("step", step, ["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("python -m training.step", "A step that tells", "--learning-rate", "0.001", "--config"):
        assert word in said
    assert "--no-gradient-checkpointing" in said
    assert "schedule-free" in said
    with pytest.raises(SystemExit):  # a recipe's values are shown as the defaults
        run("step", step, ["--config", str(recipe), "--stage", "main", "--help"])
    assert "3e-05" in capsys.readouterr().out


def test_an_error_of_a_module_is_one_line_and_status_2(tmp_path: Path) -> None:
    folder = tmp_path / ("とても" * 20) / "[red]none[/red]"
    line = [sys.executable, "-m", "training.pairs", "--beir", str(folder), "--out", str(tmp_path / "o")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {folder}/corpus.jsonl is missing. Name the folder or file that has it."
    ]


def test_an_error_inside_a_step_is_raised_again_as_its_cause(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run("pairs", pairs.main, ["--out", str(tmp_path / "o")])
    assert isinstance(ended.value.__cause__, TrainingError)
    assert "There are no pairs" in str(ended.value.__cause__)


def test_a_limit_makes_a_short_run() -> None:
    limits = (None, 1, 39, 40, 119, 10_000, 90_000)
    assert [limited(500, limit) for limit in limits] == [500, 1, 1, 1, 2, 250, 500]
    assert limited(3, 1_000) == 3
    assert limited(0, 1_000) == 0
