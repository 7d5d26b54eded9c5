"""jacolbert_rag.index.candidates and pooling's cells: they propose what exact search finds."""

from __future__ import annotations

import numpy as np
import pytest

from jacolbert_rag import CandidateConfig, TokenEmbeddings
from jacolbert_rag.datatypes import offsets_of
from jacolbert_rag.index.candidates import PooledVectors, list_documents
from jacolbert_rag.index.database import SegmentRow
from jacolbert_rag.index.graph import Graph
from jacolbert_rag.index.maxsim import maxsim
from jacolbert_rag.index.postings import Postings
from jacolbert_rag.index.quantize import Codec, CodedTokens
from jacolbert_rag.index.snapshot import Segment, Snapshot, best

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


def pool(docs: TokenEmbeddings) -> PooledVectors:
    return PooledVectors.build(docs.flat, len(docs.flat) // CONFIG.tokens_per_pooled, CONFIG)


def segment(docs: TokenEmbeddings, pooled: PooledVectors | None, first: int = 0) -> Segment:
    codec = Codec("float32", DIM)
    postings = None
    if pooled is not None:
        postings = list_documents(pooled, [(np.arange(len(docs)), docs.lengths, docs.flat)], CONFIG)
    row = SegmentRow(first, len(docs), len(docs.flat), str(first), "float32")
    return Segment(row, CodedTokens(codec.encode(docs.flat), docs.offsets, codec), postings)


def snapshot(*parts: TokenEmbeddings, pooled: PooledVectors, dead: tuple[int, ...] = ()) -> Snapshot:
    segments, first = [], 0
    for docs in parts:
        segments.append(segment(docs, pooled, first))
        first += len(docs)
    live = np.ones(first, dtype=np.bool_)
    live[list(dead)] = False
    return Snapshot(1, tuple(segments), live, pooled, DIM)


def recall(found: Snapshot, docs: TokenEmbeddings, n: int, k: int = 10) -> float:
    shares = []
    for seed in range(20):
        query = corpus(1, seed=1000 + seed).flat
        wanted = set(np.argsort(-maxsim(query, docs))[:k].tolist())
        shares.append(len(wanted & set(found.propose(query, n, CONFIG).tolist())) / k)
    return float(np.mean(shares))


def test_proposes_what_exact_search_finds() -> None:
    docs = corpus(1000)
    assert recall(snapshot(docs, pooled=pool(docs)), docs, n=100) > 0.95


def test_documents_that_came_later_are_found_as_well() -> None:
    docs = corpus(600)
    parts = [docs.take(range(start, start + 100)) for start in range(0, 600, 100)]
    pooled = pool(parts[0])
    assert recall(snapshot(*parts, pooled=pooled), docs, n=100) > 0.9
    # One unlike all others, too: its tokens are listed by what is nearest, and a query like it looks there.
    odd = np.zeros((3, DIM), dtype=np.float32)
    odd[:, 0], odd[:, 1] = 1, [-9, -8, -9]
    odd /= np.linalg.norm(odd, axis=1, keepdims=True)
    found = snapshot(*parts, TokenEmbeddings(odd, np.array([0, 3])), pooled=pooled)
    rows, scores = found.search_candidates(odd, 5, CONFIG)
    assert rows[0] == 600
    assert scores[0] == pytest.approx(3, abs=1e-5)


def test_dead_rows_are_never_proposed() -> None:
    docs = corpus(100)
    dead = tuple(i for i in range(100) if i % 7)
    proposed = snapshot(docs, pooled=pool(docs), dead=dead).propose(docs[0], 50, CONFIG)
    assert len(proposed)
    assert set(proposed.tolist()) <= set(range(0, 100, 7))


def test_rows_that_are_not_listed_are_all_proposed() -> None:
    docs = corpus(120)
    pooled = pool(docs)
    listed, fresh = segment(docs.take(range(100)), pooled), segment(docs.take(range(100, 120)), None, 100)
    live = np.ones(120, dtype=np.bool_)
    live[110] = False
    proposed = Snapshot(1, (listed, fresh), live, pooled, DIM).propose(docs[5], 10, CONFIG)
    assert set(range(100, 120)) - {110} <= set(proposed.tolist())
    assert len(proposed) == 10 + 19


def test_scores_are_exact_and_the_best_come_first() -> None:
    docs = corpus(300)
    found = snapshot(docs.take(range(200)), docs.take(range(200, 300)), pooled=pool(docs))
    rows, scores = found.search_candidates(docs[242], 20, CONFIG)
    assert rows[0] == 242
    assert len(set(rows.tolist())) == 20
    assert scores == pytest.approx(maxsim(docs[242], docs)[rows], abs=1e-4)
    assert np.all(np.diff(scores) <= 0)


def test_more_hits_than_are_listed_near_the_query() -> None:
    docs = corpus(60)
    found = snapshot(docs, pooled=pool(docs), dead=(3, 4))
    rows, scores = found.search_candidates(docs[7][:1], 58, CONFIG)
    assert sorted(rows.tolist()) == [i for i in range(60) if i not in (3, 4)]
    assert np.isfinite(scores).all()


def test_approximate_scores_by_hand() -> None:
    vectors = np.eye(4, dtype=np.float32)
    config = CandidateConfig(n_nearest=3, ef_search=8)
    graph = Graph.build(vectors, m=12, ef_construction=100, seed=1)
    pooled = PooledVectors(graph, np.ones((1, 4), dtype=np.float32) / 2, np.array([0, 4]))
    docs = TokenEmbeddings(
        vectors[[0, 1, 1, 2]], np.array([0, 2, 3, 4])
    )  # document 0: {0, 1}, 1: {1}, 2: {2}
    lists = list_documents(pooled, [(np.arange(3), docs.lengths, docs.flat)], config)
    query = np.array([[0.8, 0.5, 0.3, 0.1], [0.1, 0.9, 0.2, 0.0]], dtype=np.float32)
    # Cosines: each token over its length, .9950 and .9274. Three nearest of each, over the third as the
    # floor: token 0: .8 .5 | .3, token 1: .9 .2 | .1 document 0: (.8-.3) + (.9-.1); document 1: (.5-.3) +
    # (.9-.1); document 2: 0 + (.2-.1)
    gains = lists.gains(pooled.near(query, config), 3)
    first, second = np.linalg.norm(query, axis=1)
    assert gains == pytest.approx(
        [0.5 / first + 0.8 / second, 0.2 / first + 0.8 / second, 0.1 / second], abs=1e-5
    )


def test_every_token_is_listed_where_it_is_nearest() -> None:
    docs = corpus(400)
    pooled = pool(docs)
    assigned = pooled.assign(docs.flat, CONFIG)
    similarity = docs.flat @ pooled.graph.vectors.T
    chosen = similarity[np.arange(len(assigned)), assigned]
    assert np.mean(chosen >= similarity.max(axis=1) - 1e-6) > 0.85  # two cells were looked into
    assert np.mean(similarity.max(axis=1) - chosen) < 0.01
    everywhere = CandidateConfig(n_probed=10_000)
    best_of_all = similarity[np.arange(len(assigned)), pooled.assign(docs.flat, everywhere)]
    assert best_of_all == pytest.approx(similarity.max(axis=1), abs=1e-6)


def test_nothing_to_list() -> None:
    pooled = pool(corpus(50))
    lists = list_documents(pooled, [], CONFIG)
    assert isinstance(lists, Postings)
    assert len(lists.rows) == 0


def test_best_breaks_ties_by_row() -> None:
    scores = np.array([1, 3, 3, 2, 3, 3], dtype=np.float32)
    rows, found = best(np.arange(6), scores, 3)
    assert list(rows) == [1, 2, 4]
    assert list(found) == [3, 3, 3]
