from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jacolbert_rag import CandidateConfig, TokenEmbeddings
from jacolbert_rag.datatypes import offsets_of
from jacolbert_rag.index.candidates import Candidates, Postings, _leaders
from jacolbert_rag.index.maxsim import maxsim
from jacolbert_rag.index.pooling import pool_corpus

CONFIG = CandidateConfig(tokens_per_pooled=8, n_nearest=16, ef_search=64)
DIM = 16


def corpus(n_docs: int, seed: int = 0) -> TokenEmbeddings:
    """Documents on topics: tokens are noisy copies of a few of 200 directions."""
    rng = np.random.default_rng(seed)
    topics = np.random.default_rng(99).standard_normal((200, DIM))
    lengths = rng.integers(5, 20, n_docs)
    chosen = rng.integers(0, 200, lengths.sum())
    flat = topics[chosen] + 0.3 * rng.standard_normal((lengths.sum(), DIM))
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return TokenEmbeddings(flat.astype(np.float32), offsets_of(lengths))


def build(docs: TokenEmbeddings, config: CandidateConfig = CONFIG) -> Candidates:
    n_tokens = len(docs.flat)
    pooled = pool_corpus(docs.flat, n_tokens // config.tokens_per_pooled, seed=1)
    candidates = Candidates.build(pooled, config, n_tokens=n_tokens)
    candidates.add(np.arange(len(docs)), docs)
    return candidates


def recall(candidates: Candidates, docs: TokenEmbeddings, n: int, k: int = 10) -> float:
    live = np.ones(len(docs), dtype=bool)
    found = []
    for seed in range(20):
        query = corpus(1, seed=1000 + seed).flat
        best = set(np.argsort(-maxsim(query, docs))[:k].tolist())
        found.append(len(best & set(candidates.propose(query, live, n).tolist())) / k)
    return float(np.mean(found))


def test_proposes_what_exact_search_finds() -> None:
    docs = corpus(1000)
    assert recall(build(docs), docs, n=100) > 0.95


def test_grows_by_adding_and_finds_new_topics() -> None:
    docs = corpus(600)
    candidates = build(docs.take(range(200)))
    for start in range(200, 600, 50):
        candidates.add(np.arange(start, start + 50), docs.take(range(start, start + 50)))
    assert recall(candidates, docs, n=100) > 0.9
    # A document unlike all others gets pooled vectors of its own.
    before = candidates.n_pooled
    odd = np.zeros((3, DIM), dtype=np.float32)
    odd[:, 0], odd[:, 1] = 1, [-9, -8, -9]
    odd /= np.linalg.norm(odd, axis=1, keepdims=True)
    candidates.config = CandidateConfig(
        tokens_per_pooled=8, n_nearest=16, ef_search=64, new_pooled_below=0.99
    )
    candidates.add(np.array([600]), TokenEmbeddings(odd, np.array([0, 3])))
    assert candidates.n_pooled > before
    assert candidates.propose(odd, np.ones(601, dtype=bool), 5)[0] == 600


def test_small_adds_leave_few_parts() -> None:
    docs = corpus(120)
    candidates = build(docs.take(range(20)))
    for row in range(20, 120):
        candidates.add(np.array([row]), docs.take([row]))
    assert len(candidates._parts) <= 9
    listed = np.unique(np.concatenate([part.rows for part in candidates._parts]))
    assert np.array_equal(listed, np.arange(120))


def test_dead_rows_are_never_proposed() -> None:
    docs = corpus(100)
    candidates = build(docs)
    live = np.zeros(100, dtype=bool)
    live[::7] = True
    proposed = candidates.propose(docs[0], live, 50)
    assert len(proposed)
    assert live[proposed].all()


def test_best_first_and_no_row_twice() -> None:
    docs = corpus(300)
    proposed = build(docs).propose(docs[42], np.ones(300, dtype=bool), 20)
    assert proposed[0] == 42
    assert len(set(proposed.tolist())) == len(proposed) == 20


def test_approximate_scores_by_hand() -> None:
    pooled = np.eye(4, dtype=np.float32)
    config = CandidateConfig(n_nearest=3, ef_search=8)
    candidates = Candidates.build(pooled, config, n_tokens=4)
    docs = TokenEmbeddings(pooled[[0, 1, 1, 2]], np.array([0, 2, 3, 4]))  # document 0: {0, 1}, 1: {1}, 2: {2}
    candidates.add(np.arange(3), docs)
    query = np.array([[0.8, 0.5, 0.3, 0.1], [0.1, 0.9, 0.2, 0.0]], dtype=np.float32)
    # Three nearest of each token, over the third as the floor: token 0: .8 .5 | .3, token 1: .9 .2 | .1
    # document 0: (.8-.3) + (.9-.1); document 1: (.5-.3) + (.9-.1); document 2: 0 + (.2-.1)
    live = np.ones(3, dtype=bool)
    assert list(candidates.propose(query, live, 3)) == [0, 1, 2]
    assert list(candidates.propose(query, live, 2)) == [0, 1]


def test_postings_keep_each_pair_once() -> None:
    lists = Postings.from_pairs(np.array([2, 0, 2, 2, 0]), np.array([5, 1, 5, 3, 1]), 4)
    assert list(lists.offsets) == [0, 1, 1, 3, 3]
    assert list(lists.rows) == [1, 3, 5]
    rows, lengths = lists.of(np.array([2, 1, 0, 3, 9]))
    assert list(rows) == [3, 5, 1]
    assert list(lengths) == [2, 0, 1, 0, 0]


def test_saved_candidates_propose_the_same(tmp_path: Path) -> None:
    docs = corpus(200)
    candidates = build(docs.take(range(150)))
    candidates.add(np.arange(150, 200), docs.take(range(150, 200)))
    candidates.save(tmp_path / "c", store_id="x")
    loaded = Candidates.load(tmp_path / "c", CONFIG, store_id="x", n_rows=200)
    assert loaded is not None
    live = np.ones(200, dtype=bool)
    for i in range(10):
        assert np.array_equal(loaded.propose(docs[i], live, 30), candidates.propose(docs[i], live, 30))
    # and it goes on growing
    loaded.add(np.array([200]), docs.take([0]))
    assert {0, 200} <= set(loaded.propose(docs[0], np.ones(201, dtype=bool), 10).tolist())


@pytest.mark.parametrize("name", ["state.json", "pooled.voyager", "postings.npz"])
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_what_is_damaged_is_not_loaded(tmp_path: Path, name: str, harm: str) -> None:
    build(corpus(50)).save(tmp_path / "c", store_id="x")
    victim = tmp_path / "c" / name
    victim.unlink() if harm == "missing" else victim.write_bytes(victim.read_bytes()[:30])
    assert Candidates.load(tmp_path / "c", CONFIG, store_id="x", n_rows=50) is None


def test_candidates_ahead_of_the_store_are_not_loaded(tmp_path: Path) -> None:
    build(corpus(50)).save(tmp_path / "c", store_id="x")
    assert Candidates.load(tmp_path / "c", CONFIG, store_id="x", n_rows=49) is None


def test_nothing_to_add() -> None:
    candidates = build(corpus(20))
    before = candidates.n_entries
    candidates.add(
        np.empty(0, dtype=np.int64), TokenEmbeddings(np.empty((0, DIM), np.float32), offsets_of([]))
    )
    assert candidates.n_entries == before


def test_arrays_that_are_not_contiguous_are_read_right() -> None:
    docs = corpus(100)
    wide = np.repeat(docs.flat, 2, axis=1)[:, ::2]
    assert not wide.flags.c_contiguous
    straight, strided = build(docs), build(TokenEmbeddings(wide, docs.offsets))
    live = np.ones(100, dtype=bool)
    assert np.array_equal(straight.propose(docs[3], live, 10), strided.propose(wide[:9], live, 10)[:10]) or (
        strided.propose(docs[3], live, 10)[0] == 3
    )


def test_one_pooled_vector_proposes_nothing_rather_than_anything() -> None:
    candidates = Candidates.build(np.eye(1, DIM, dtype=np.float32), CONFIG, n_tokens=1)
    candidates.add(np.array([0]), TokenEmbeddings(np.eye(1, DIM, dtype=np.float32), np.array([0, 1])))
    assert len(candidates.propose(np.eye(1, DIM, dtype=np.float32), np.ones(1, dtype=bool), 5)) == 0


def test_leaders_are_apart_and_near_duplicates_have_one() -> None:
    rng = np.random.default_rng(0)
    tokens = np.repeat(np.eye(DIM, dtype=np.float32), 200, axis=0) + 0.01 * rng.standard_normal(
        (DIM * 200, DIM)
    )
    leaders = _leaders(tokens.astype(np.float32)[rng.permutation(len(tokens))], 0.5)
    assert len(leaders) == DIM


def test_rebuild_is_due_after_growth() -> None:
    candidates = build(corpus(50))
    n = candidates.counts.n_tokens
    assert not candidates.needs_rebuild(50, 2 * n)
    assert candidates.needs_rebuild(50, 2 * n + 1)
    # and when more than half of what is listed has died
    assert not candidates.needs_rebuild(25, n)
    assert candidates.needs_rebuild(24, n)


def test_candidates_of_another_index_or_making_are_not_loaded(tmp_path: Path) -> None:
    build(corpus(50)).save(tmp_path / "c", store_id="x")
    assert Candidates.load(tmp_path / "c", CONFIG, store_id="y", n_rows=50) is None
    assert Candidates.load(tmp_path / "c", replace(CONFIG, m=20), store_id="x", n_rows=50) is None
    assert (
        Candidates.load(tmp_path / "c", replace(CONFIG, n_candidates=9), store_id="x", n_rows=50) is not None
    )


def test_vectors_that_the_graph_hides_are_found_by_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    docs = corpus(60)
    candidates = build(docs)
    tokens = docs.flat[:20]
    pooled, similarity = candidates._query(tokens, 5)
    monkeypatch.setattr(Candidates, "_recall_error", Exception)
    candidates._voyager = Hiding(candidates._voyager)
    scanned, scanned_similarity = candidates._query(tokens, 5)
    assert np.mean(scanned == pooled) > 0.95
    assert scanned_similarity == pytest.approx(similarity, abs=1e-4)


class Hiding:
    """Voyager, as it is when its graph has come apart."""

    def __init__(self, index) -> None:
        self.index = index

    def query(self, *args, **kwargs):
        raise RuntimeError("Fewer than expected results were retrieved")

    def __len__(self) -> int:
        return len(self.index)

    def get_vectors(self, ids):
        return self.index.get_vectors(ids)
