"""Random operations on an index and on a dictionary: the same documents, the same results where exact."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jacolbert_rag.index.index import Index
from tests import model_index
from tests.model_index import Contents

IDS = st.integers(0, 29).map("文書{}".format)
VERSIONS = st.integers(0, 10**6)
K = 7


class Machine(RuleBasedStateMachine):
    """An index, and what it must hold."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="jacolbert-random-"))
        self.index = model_index.create(self.folder / "index", durable=False)
        self.holds: Contents = {}

    @rule(given=st.dictionaries(IDS, VERSIONS, min_size=1, max_size=8), listed=st.booleans())
    def add(self, given: Contents, listed: bool) -> None:
        pairs = list(given.items())
        documents = [model_index.document(*each) for each in pairs]
        self.index.append(documents, model_index.embeddings(pairs), listed=listed)
        self.holds |= given

    @rule(ids=st.lists(IDS, max_size=6))
    def delete(self, ids: list[str]) -> None:
        there = [id for id in dict.fromkeys(ids) if id in self.holds]
        assert self.index.delete(ids) == there
        for id in there:
            del self.holds[id]

    @rule(anew=st.booleans())
    def update_candidates(self, anew: bool) -> None:
        self.index.update_candidates(anew=anew)

    @rule()
    def compact(self) -> None:
        self.index.compact()

    @rule()
    def open_again(self) -> None:
        self.index.close()
        self.index = Index.open(self.folder / "index")

    @rule()
    def save_elsewhere(self) -> None:
        self.index.copy_to(self.folder / "copy")
        self.index.close()
        shutil.rmtree(self.folder / "index")
        (self.folder / "copy").rename(self.folder / "index")
        self.index = Index.open(self.folder / "index")

    @precondition(lambda self: self.holds)
    @rule(seed=st.integers(0, 10**6))
    def search(self, seed: int) -> None:
        with self.index.reading() as view:
            for kind in model_index.KINDS:
                answer = model_index.ask(view, self.index.settings, seed, kind, K)
                model_index.check_answer(answer, self.holds, K)

    @invariant()
    def same_documents(self) -> None:
        if hasattr(self, "index"):
            assert model_index.contents(self.index) == self.holds

    def teardown(self) -> None:
        if hasattr(self, "index"):
            assert self.index.verify() == []
            self.index.close()
            shutil.rmtree(self.folder)


@pytest.mark.parametrize(
    ("n_runs", "n_steps"), [(20, 30), pytest.param(100, 100, marks=pytest.mark.slow)], ids=["600", "10000"]
)
def test_random_operations(n_runs: int, n_steps: int) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=n_runs,
            stateful_step_count=n_steps,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
