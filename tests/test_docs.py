"""What the docs say is so: README's code runs, and its numbers are those of the result files."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest
import typer

from evals.tables import JAPANESE, README, ROOT, WHOLE, read_results, short, with_tables
from evals.tables import markdown as whole
from jacolbert_rag import CandidateConfig, SearchConfig, StoreConfig
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.index.quantize import BITS
from training.comparison import markdown

DOCS = [README, ROOT / "README.ja.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    (f"{path.relative_to(ROOT)}, block {n}", block)
    for path in DOCS
    for n, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL), start=1)
]


def test_readme_has_code() -> None:
    assert len([name for name, _ in BLOCKS if name.startswith("README.md")]) >= 4
    assert len(BLOCKS) >= 15


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_code_of_the_docs_runs(
    name: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, name, "exec"), names)
    for result in ("documents", "nodes"):
        if result in names:
            assert "琵琶湖" in str(names[result])


def commands() -> list[list[str]]:
    """The lines of the docs' shell blocks that run a module of ours, or `jacolbert`."""
    found = []
    for path in (*DOCS, ROOT / "CONTRIBUTING.md"):
        text = path.read_text(encoding="utf-8")
        for _, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            block = block.replace("\\\n", "")  # a line that goes on
            found += re.findall(r"^\.venv/bin/python -m (.+)$", block, re.MULTILINE)
            called = re.findall(r"^\.venv/bin/jacolbert (.+)$", block, re.MULTILINE)
            found += [f"jacolbert_rag.cli {line}" for line in called]
    return [shlex.split(line, comments=True) for line in found]


@cache
def help_of(module: str) -> str:
    """What a module says of itself."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_of_the_docs_are_taken(command: list[str]) -> None:
    module, *args = command
    if module.startswith(("examples.", "training.")):
        # These have no typer: whether --help names the options.
        said = help_of(module)
        assert all(arg.partition("=")[0] in said for arg in args if arg.startswith("--"))
        return
    app = typer.main.get_command(importlib.import_module(module).app)
    context = app.make_context(module, args)  # an option that is not there is an error
    if isinstance(app, click.Group):
        name, sub, rest = app.resolve_command(context, [*context.protected_args, *context.args])
        assert sub is not None
        sub.make_context(name, rest, parent=context)


def test_tables_of_results_are_generated() -> None:
    results = read_results()
    assert {row["dataset"] for row in results} >= {"demo", "jsquad", "jaquad"}
    for path, table in ((README, short(results)), (JAPANESE, short(results)), (WHOLE, whole(results))):
        text = path.read_text(encoding="utf-8")
        assert table in text, path
        assert with_tables(text, results) == text, path


def test_results_are_of_one_model_which_is_the_bundled_one() -> None:
    ours = [row["signature"] for row in read_results() if row["system"].startswith("jacolbert")]
    assert len(ours) >= 6
    fingerprint = checkpoint.load().fingerprint
    for signature in ours:
        assert f"|default@{fingerprint[:8]}|" in signature
    assert len({re.search(r"\|compute:\w+\|", signature)[0] for signature in ours}) == 1


def test_links_lead_somewhere() -> None:
    others = [ROOT / "CONTRIBUTING.md", ROOT / "jacolbert_rag" / "default_model" / "README.md"]
    for path in (*DOCS, *others):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path} -> {target}"


def test_every_module_is_in_the_layout() -> None:
    layout = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in (ROOT / "jacolbert_rag").rglob("*.py"):
        name = path.relative_to(ROOT / "jacolbert_rag").as_posix()
        assert path.name == "__init__.py" or name in layout, name


def test_readme_names_the_defaults() -> None:
    text = README.read_text(encoding="utf-8")
    assert f"-> {CandidateConfig().n_candidates} candidates" in text
    assert (
        f"the nearest of {StoreConfig().n_centroids} centroids, and {BITS[StoreConfig().dtype]} bits" in text
    )
    assert f"fewer than {SearchConfig().exact_below:,} documents" in text


def test_readme_says_how_long_small_corpora_take() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "choices-exact.json").read_text("utf-8"))
    took = {row["n"]: row for row in rows["rows"]}
    assert f"took {took[1_000]['exact_p50_ms']:.1f} ms at 1,000" in README.read_text("utf-8")


def test_tables_of_ablations_are_those_of_their_results() -> None:
    files = sorted((ROOT / "training" / "ablations").glob("*.json"))
    assert {file.stem for file in files} >= {
        "normalization", "query-length", "in-batch-negatives", "teacher", "averaging",
    }  # fmt: skip
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        assert markdown(result) == file.with_suffix(".md").read_text(encoding="utf-8"), file.name
        assert len(result["seeds"]) >= 2
