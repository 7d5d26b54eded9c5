"""Settings that are learnt from a user's questions, on an engine whose answers are known."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from evals import answerability, tune
from evals.datasets import Task, load_task
from jacolbert_rag import Document, Hit, IndexSettings
from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.index.filters import Ids, NoneOf
from tests.test_runs import ASKED, write_beir

ROOT = Path(__file__).parents[1]


def task_of(n: int) -> Task:
    ids = [f"q{i:02}" for i in range(n)]
    documents = tuple(Document(f"d{i:02}", f"文書{i}") for i in range(n))
    qrels = {id: {f"d{i:02}": 1} for i, id in enumerate(ids)}
    return Task("湖", "dev", documents, {id: id for id in ids}, qrels, n, "00")


@dataclass
class Engine:
    """Right with a weight of .3 or .35, and else at the second place; with few candidates it misses half."""

    settings: IndexSettings = field(default_factory=IndexSettings)

    def search(
        self, query: str, k: int, *, mode: str = "jacolbert", weight: float = 0.5, filter: Any = None,
        exact: bool = False,
    ) -> list[Hit]:  # fmt: skip
        n = int(query[1:])
        right, wrong = f"d{n:02}", "d99"
        good = mode != "hybrid" or weight in (0.3, 0.35)
        order = [right, wrong] if good else [wrong, right]
        if not exact and self.settings.candidates.n_candidates < 96 and n % 2:
            order = [wrong]
        confidence = 0.5 + n / 100
        if filter is not None:
            assert filter == NoneOf((Ids(frozenset({right})),))
            order, confidence = [wrong], confidence - 0.3
        return [Hit(Document(id, id), 2.0 - i, {"confidence": confidence}) for i, id in enumerate(order)][:k]

    def search_many(self, queries: list[str], k: int, **options: Any) -> list[list[Hit]]:
        return [self.search(query, k, **options) for query in queries]


def test_questions_are_halved_once_and_for_all() -> None:
    learnt, held = tune.halves(task_of(41))
    assert (len(learnt), len(held)) == (20, 21)
    assert not set(learnt) & set(held)
    assert (learnt, held) == tune.halves(task_of(41))
    with pytest.raises(InvalidInputError, match="has 39 questions with judgements; expected 40 or more"):
        tune.halves(task_of(39))


def test_the_weight_nearest_to_the_default_of_the_best() -> None:
    task = task_of(60)
    engine: Any = Engine()
    learnt, held = tune.halves(task)
    # Half of the questions are missed with few candidates, which hybrid search has too.
    engine.settings = IndexSettings()
    found = tune.tune_weight(engine, task, learnt, held)
    assert (found.chosen, found.default) == (0.35, 0.5)
    assert found.held_chosen == 1
    assert found.held_default == pytest.approx(1 / np.log2(3))
    assert found.p < 0.001
    assert set(found.by_weight) == set(tune.WEIGHTS)


def test_budgets_and_the_smallest_that_is_enough() -> None:
    task = task_of(40)
    engine: Any = Engine()
    before = engine.settings
    budgets = tune.tune_budget(engine, task, list(task.queries), tune.BUDGETS)
    assert engine.settings is before
    assert [each.n_candidates for each in budgets] == list(tune.BUDGETS)
    few, many = budgets[0], budgets[-1]
    assert few.measure == pytest.approx(0.5)
    assert (many.measure, many.like_exact) == (1, 1)
    assert few.like_exact == pytest.approx(0.75)
    assert tune.recommended(budgets).n_candidates == 96


@pytest.mark.parametrize("refuse", [0.0, 0.1, 0.5])
def test_a_threshold_refuses_no_more_than_was_allowed(refuse: float) -> None:
    task = task_of(40)
    engine: Any = Engine()
    learnt, held = tune.halves(task)
    found = tune.tune_threshold(engine, task, learnt, held, 0.3, refuse)
    there = np.array([0.5 + int(id[1:]) / 100 for id in learnt])
    assert np.mean(there < found.value) == pytest.approx(refuse)
    others = np.array([0.5 + int(id[1:]) / 100 for id in held])
    assert found.refused_with == pytest.approx(np.mean(others < found.value))
    assert found.refused_without == pytest.approx(np.mean(others - 0.3 < found.value))
    assert found.refused_without > found.refused_with


def test_the_command_on_the_demo_corpus(tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    args = ["--data", ROOT / "examples" / "corpus", "--split", "test", "--limit", 40, "--json", file]
    done = CliRunner().invoke(tune.app, [str(arg) for arg in args])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(file.read_text(encoding="utf-8"))
    assert 0 <= found["weight"]["chosen"] <= 1
    assert [each["n_candidates"] for each in found["budgets"]] == list(tune.BUDGETS)
    assert found["held_budgets"][-1]["n_candidates"] == tune.BUDGETS[-1]
    assert "On the others" in done.stdout
    assert 0 < found["threshold"]["value"] < 1
    assert 0 <= found["threshold"]["refused_without"] <= 1
    assert "Learnt on 20 questions, held to 20 others." in done.stdout
    load_task(ROOT / "examples" / "corpus", "test")
    ranked = write_beir(tmp_path / "候補", candidates={id: ["湖1", "湖2", "社1"] for id in ASKED})
    for command in (tune.app, answerability.app):
        asked = ["--data", ranked, "--split", "dev", "--json", file]
        refused = CliRunner().invoke(command, [str(arg) for arg in asked])
        assert refused.exit_code == 2
        assert "each query ranks its own candidates" in refused.stderr
    few = CliRunner().invoke(tune.app, [str(arg) for arg in [*args[:4], "--limit", 12]])
    assert few.exit_code == 2
