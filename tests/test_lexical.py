"""BM25 over word lists, against a library, and word lists against what they are made of."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jacolbert_rag import Document
from jacolbert_rag.encode.terms import TermMaker
from jacolbert_rag.index.lexical import MAX_COUNT, UNKNOWN_WEIGHT, Lexicon, WordLists, key_of, list_words

TERMS = st.lists(st.sampled_from(["東京", "大阪", "湖", "𠮷", "abc123", "サーバ"]), max_size=9)


def entries(lists: WordLists) -> dict[tuple[int, int], int]:
    """(key, row) and count of every entry."""
    keys = np.repeat(lists.keys, np.diff(lists.offsets))
    return dict(zip(zip(keys.tolist(), lists.rows.tolist(), strict=True), lists.counts.tolist(), strict=True))


@given(st.lists(TERMS, max_size=12))
def test_lists_hold_every_count_and_survive_packing(documents: list[list[str]]) -> None:
    lists = WordLists.of(documents)
    assert len(lists.rows) == sum(len(set(each)) for each in documents)
    assert sorted(entries(lists).values()) == sorted(n for each in documents for n in Counter(each).values())
    unpacked = WordLists.unpack(lists.packed(), len(documents))
    assert entries(unpacked) == entries(lists)
    assert unpacked.lengths.tolist() == [len(each) for each in documents]


@given(st.lists(TERMS, min_size=1, max_size=12), st.data())
def test_joined_lists_are_those_of_what_is_left(documents: list[list[str]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(documents)))
    alive = data.draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents)))
    numbers = np.where(alive, np.cumsum(alive) - 1, -1)
    parts = [WordLists.of(documents[:cut]), WordLists.of(documents[cut:])]
    joined = WordLists.joined(parts, [numbers[:cut], numbers[cut:]], int(np.sum(alive)))
    expected = WordLists.of([each for each, a in zip(documents, alive, strict=True) if a])
    assert entries(joined) == entries(expected)
    assert joined.lengths.tolist() == expected.lengths.tolist()


def test_damaged_lists_are_refused() -> None:
    packed = WordLists.of([["東京", "湖"], ["湖"]]).packed()
    for damaged in (packed[:-1], packed[:2], np.zeros(0, dtype=np.uint32), packed[::-1].copy()):
        with pytest.raises(ValueError, match="word lists"):
            WordLists.unpack(damaged, 2)
    with pytest.raises(ValueError, match="word lists"):
        WordLists.unpack(packed, 3)


def test_a_count_beyond_its_room_is_the_most_there_is() -> None:
    lists = WordLists.of([["湖"] * (MAX_COUNT + 5)])
    assert lists.counts.tolist() == [MAX_COUNT]
    assert lists.lengths.tolist() == [MAX_COUNT + 5]


def test_scores_by_hand() -> None:
    lexicon = Lexicon([WordLists.of([["湖", "湖", "日本"], ["山", "日本"]])], np.ones(2, dtype=np.bool_))
    idf = np.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    expected = idf * 2 / (2 + 0.5 * (1 - 0.75 + 0.75 * 3 / 2.5))
    assert lexicon.bm25(["湖"], k1=0.5, b=0.75) == pytest.approx([expected, 0.0])
    assert lexicon.bm25(["湖", "湖"], k1=0.5, b=0.75) == pytest.approx([2 * expected, 0.0])
    assert lexicon.bm25(["海"], k1=0.5, b=0.75).tolist() == [0.0, 0.0]
    assert lexicon.bm25([], k1=0.5, b=0.75).tolist() == [0.0, 0.0]


def test_dead_documents_count_for_nothing() -> None:
    documents = [["湖", "日本"], ["湖", "湖", "大阪"], ["山", "日本"], ["海"]]
    live = np.array([True, False, True, True])
    both = [WordLists.of(documents[:1]), WordLists.of(documents[1:])]
    left = Lexicon([WordLists.of([documents[0], *documents[2:]])], np.ones(3, dtype=np.bool_))
    for query in (["湖"], ["日本", "海"], ["大阪"]):
        scores = Lexicon(both, live).bm25(query, k1=0.9, b=0.4)
        assert scores[live] == pytest.approx(left.bm25(query, k1=0.9, b=0.4))
        assert scores[1] == 0.0


def test_coverage_is_the_share_of_what_terms_are_worth() -> None:
    lexicon = Lexicon([WordLists.of([["湖", "日本"], ["日本"], ["山"]])], np.ones(3, dtype=np.bool_))
    rows = np.arange(3)
    idf = {n: np.log(1 + (3 - n + 0.5) / (n + 0.5)) for n in (0, 1, 2)}
    expected = [1.0, idf[2] / (idf[1] + idf[2]), 0.0]
    assert lexicon.coverage({"湖": 1.0, "日本": 1.0}, rows) == pytest.approx(expected)
    half = [1.0, 0.5 * idf[2] / (idf[1] + 0.5 * idf[2]), 0.0]
    assert lexicon.coverage({"湖": 1.0, "日本": 0.5}, rows) == pytest.approx(half)
    assert lexicon.coverage({}, rows).tolist() == [0.0, 0.0, 0.0]


def test_in_coverage_an_unknown_word_counts_less_and_an_unknown_model_number_does_not() -> None:
    lexicon = Lexicon([WordLists.of([["湖", "日本"], ["日本"], ["山"]])], np.ones(3, dtype=np.bool_))
    rows = np.arange(3)
    idf = {n: np.log(1 + (3 - n + 0.5) / (n + 0.5)) for n in (0, 2)}
    word = idf[2] / (UNKNOWN_WEIGHT * idf[0] + idf[2])
    code = idf[2] / (idf[0] + idf[2])
    assert lexicon.coverage({"海": 1.0, "日本": 1.0}, rows) == pytest.approx([word, word, 0.0])
    assert lexicon.coverage({"abc12": 1.0, "日本": 1.0}, rows) == pytest.approx([code, code, 0.0])


@settings(deadline=None)  # of the first example, which imports bm25s
@given(st.lists(TERMS, min_size=1, max_size=15), TERMS)
def test_scores_are_those_of_bm25s(documents: list[list[str]], query: list[str]) -> None:
    bm25s = pytest.importorskip("bm25s")
    documents = [each or ["空"] for each in documents]
    peer = bm25s.BM25(k1=0.5, b=0.75, method="lucene")
    peer.index(documents, show_progress=False)
    known = [term for term in query if any(term in each for each in documents)]
    expected = peer.get_scores(known) if known else np.zeros(len(documents))
    lexicon = Lexicon([WordLists.of(documents)], np.ones(len(documents), dtype=np.bool_))
    assert lexicon.bm25(query, k1=0.5, b=0.75) == pytest.approx(expected, abs=1e-4)


def test_lists_of_other_terms_are_not_read() -> None:
    packed = WordLists.of([["湖", "日本"], ["山"]]).packed()
    assert WordLists.unpack(packed, 2) is not None
    packed[3] += 1
    assert WordLists.unpack(packed, 2) is None


def test_coverage_over_several_runs_some_rows_of_which_are_dead() -> None:
    lists = [WordLists.of([["湖"], ["山"]]), WordLists.of([["湖", "山"], ["湖"], ["川"]])]
    live = np.array([True, True, False, True, True])
    lexicon = Lexicon(lists, live)
    left = Lexicon([WordLists.of([["湖"], ["山"], ["湖"], ["川"]])], np.ones(4, dtype=np.bool_))
    weights = {"湖": 1.0, "川": 0.5, "空": 1.0}
    for _ in range(2):  # made, and remembered
        found = lexicon.coverage(weights, np.array([4, 0, 3, 1]))
        assert found == pytest.approx(left.coverage(weights, np.array([3, 0, 2, 1])))


def test_titles_are_found() -> None:
    lists = list_words([Document("a", "湖である。", title="琵琶湖"), None], TermMaker())
    assert set(lists.keys.tolist()) == {key_of(term) for term in TermMaker().terms("琵琶湖 湖である。")}
    assert lists.lengths.tolist()[1] == 0
