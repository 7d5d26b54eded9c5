"""The bundled model and the index do their work on real text: floors well under the measured figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals import datasets, metrics, systems

ROOT = Path(__file__).parents[1]


def scores(task: datasets.Task, system: systems.System) -> dict[str, float]:
    found = system.search_many(list(task.queries.values()), 100)
    return metrics.mean(metrics.per_query(task.qrels, dict(zip(task.queries, found, strict=True))))


def test_demo_corpus() -> None:
    task = datasets.load_task(ROOT / "examples" / "corpus", "test")
    found = {
        system.name: scores(task, system)
        for system in systems.build(["jacolbert", "jacolbert-exact"], task.documents, model=None)
    }
    assert found["jacolbert"]["nDCG@10"] == pytest.approx(found["jacolbert-exact"]["nDCG@10"], abs=0.005)
    assert found["jacolbert"]["Recall@10"] > 0.6


@pytest.mark.filterwarnings("ignore::jacolbert_rag.errors.TruncationWarning")  # 12 of the passages are long
def test_real_questions(shared_data: Path) -> None:
    task = datasets.load_task(shared_data / "jsquad", "dev", limit=300)
    found = {
        system.name: scores(task, system)
        for system in systems.build(["jacolbert", "jacolbert-exact"], task.documents, model=None)
    }
    assert found["jacolbert"]["nDCG@10"] == pytest.approx(found["jacolbert-exact"]["nDCG@10"], abs=0.005)
    assert found["jacolbert"]["MRR@10"] > 0.85
