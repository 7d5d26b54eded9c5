"""jacolbert_rag.index.graph: each of voyager's traps, and that it is not ours."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import voyager

from jacolbert_rag.index.graph import Graph

DIM = 8


def vectors(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def build(rows: np.ndarray) -> Graph:
    return Graph.build(rows, m=12, ef_construction=100, seed=1)


def raw(rows: np.ndarray) -> voyager.Index:
    index = voyager.Index(voyager.Space.Cosine, num_dimensions=DIM)
    index.add_items(np.ascontiguousarray(rows), ids=list(range(len(rows))))
    return index


def test_finds_the_nearest_and_tells_cosines() -> None:
    rows = vectors(500)
    graph = build(rows)
    queries = vectors(20, seed=3) * 5  # of any length
    found, cosines = graph.nearest(queries, 10, ef=100)
    exact = queries / 5 @ rows.T
    assert found.dtype == np.int64
    assert np.mean(np.sort(found) == np.sort(np.argsort(-exact)[:, :10])) > 0.95
    assert cosines == pytest.approx(np.take_along_axis(exact, found, axis=1), abs=1e-4)
    assert np.all(np.diff(cosines) <= 1e-6)
    assert graph.vectors == pytest.approx(rows, abs=1e-5)
    assert (len(graph), graph.dim) == (500, DIM)


def test_to_bytes_and_back() -> None:
    graph = build(vectors(100))
    data = graph.to_bytes()
    loaded = Graph.load(data)
    queries = vectors(5, seed=3)
    for mine, theirs in zip(loaded.nearest(queries, 7, ef=50), graph.nearest(queries, 7, ef=50), strict=True):
        assert np.array_equal(mine, theirs)
    with pytest.raises(RuntimeError):
        Graph.load(data[:100])


@pytest.mark.parametrize("change", [lambda a: a[::2], lambda a: np.asfortranarray(a), lambda a: a[:, ::-1]])
def test_arrays_that_are_not_contiguous(change) -> None:
    rows = change(vectors(200))
    assert not rows.flags.c_contiguous
    wrong = voyager.Index(voyager.Space.Cosine, num_dimensions=DIM)
    wrong.add_items(rows, ids=list(range(len(rows))))
    assert np.abs(wrong.get_vectors([5]) - rows[5]).max() > 0.01  # the trap
    graph = build(rows)
    assert graph.vectors == pytest.approx(rows, abs=1e-5)
    found, _ = graph.nearest(rows[:20], 1, ef=100)
    assert list(found[:, 0]) == list(range(20))


def test_empty_batch() -> None:
    trap = (
        "import numpy, voyager; voyager.Index(voyager.Space.Cosine, 8).add_items(numpy.empty((0, 8), 'f4'))"
    )
    died = subprocess.run([sys.executable, "-c", trap], capture_output=True, check=False)
    assert died.returncode != 0  # the trap: the process ends
    empty = build(vectors(0))
    found, cosines = empty.nearest(vectors(3), 5, ef=10)
    assert found.shape == cosines.shape == (3, 0)
    found, cosines = build(vectors(9)).nearest(vectors(0), 5, ef=10)
    assert found.shape == cosines.shape == (0, 5)


def test_fewer_vectors_than_asked_for() -> None:
    with pytest.raises((voyager.RecallError, RuntimeError)):
        raw(vectors(3)).query(vectors(1), k=5)  # the trap
    found, _ = build(vectors(3)).nearest(vectors(2), 5, ef=10)
    assert sorted(found[0]) == [0, 1, 2]


def test_effort_below_k() -> None:
    with pytest.raises(RuntimeError):
        raw(vectors(50)).query(vectors(1), k=20, query_ef=5)  # the trap
    found, _ = build(vectors(50)).nearest(vectors(2), 20, ef=5)
    assert found.shape == (2, 20)


def test_graph_that_is_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = vectors(40)
    graph = build(rows)

    class Hiding:
        """A graph that never finds enough."""

        def __getattr__(self, name: str) -> object:
            return getattr(index, name)

        def __len__(self) -> int:
            return len(index)

        def query(self, *_: object, **__: object) -> None:
            raise voyager.RecallError("Fewer than expected results were retrieved")

    index = graph._index
    monkeypatch.setattr(graph, "_index", Hiding())
    found, cosines = graph.nearest(rows[:3], 5, ef=10)
    assert np.array_equal(found, np.argsort(-(rows[:3] @ rows.T), axis=1, kind="stable")[:, :5])
    assert cosines[:, 0] == pytest.approx(1, abs=1e-5)


def test_ids_are_rows_after_a_load(tmp_path: Path) -> None:
    index = voyager.Index(voyager.Space.Cosine, num_dimensions=DIM)
    index.add_items(vectors(3), ids=[1, 2, 3])
    index.save(str(tmp_path / "v"))
    again = voyager.Index.load(str(tmp_path / "v"))
    assert again.add_item(vectors(1)[0]) in (1, 2, 3)  # the trap: it replaces what has that id
    found, _ = build(vectors(30)).nearest(vectors(30), 1, ef=50)
    assert list(found[:, 0]) == list(range(30))


def test_queries_from_many_threads() -> None:
    rows = vectors(2_000)
    graph = build(rows)
    expected, _ = graph.nearest(rows[:200], 10, ef=50)
    wrong: list[int] = []

    def ask() -> None:
        for _ in range(20):
            found, _ = graph.nearest(rows[:200], 10, ef=50)
            wrong.extend(np.flatnonzero(found != expected))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_voyager_does_not_notice_a_full_disk() -> None:
    """Why a graph is written by our own hands. Once this fails, that may go."""
    graph = Graph.build(np.eye(4, dtype=np.float32), m=4, ef_construction=8, seed=1)
    graph._index.save("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        Path("/dev/full").write_bytes(graph.to_bytes())
