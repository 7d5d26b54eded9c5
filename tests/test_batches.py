"""Batches of training: which rows a step takes, which documents are drawn, and what the network reads."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jacolbert_rag import EncoderConfig
from jacolbert_rag.datatypes import TokenBatch
from jacolbert_rag.encode.tokens import Tokenizer
from jacolbert_rag.encode.words import JapaneseWordPiece
from tests.conftest import SENTENCES, tiny_vocab
from training.batches import Batch, Batches, _epoch, draw, pad_batch, rows_of_step, unusable
from training.data import Row, Source, Tuples
from training.options import TrainingError
from training.state import hashed

SETTINGS = EncoderConfig(dim=16, document_length=30, max_positions=128, query_length="fixed(16)")
TOKENIZER = Tokenizer(JapaneseWordPiece(tiny_vocab()), SETTINGS)


def tuples(
    name: str,
    n: int,
    n_documents: int = 3,
    *,
    n_positives: int = 1,
    scored: bool = True,
    n_ways: int | None = None,
) -> Source:
    """Tuples whose query and documents tell which they are."""
    rows = [
        Row(
            f"{name}の問い{i}",
            tuple(f"{name}{i}の文書{j}。{SENTENCES[(i + j) % 10]}" for j in range(n_documents)),
            tuple(10 * i + float(j) for j in range(n_documents)) if scored else None,
            n_positives,
            "",
            inline=True,
        )
        for i in range(n)
    ]
    return Source(Tuples(rows, name=name), n_ways)


def batches(
    *sources: Source, batch: int = 4, steps: int = 100, seed: int = 7, n_ways: int = 3, **ranks: int
) -> Batches:
    return Batches(sources, TOKENIZER, n_ways=n_ways, batch=batch, steps=steps, seed=seed, **ranks)


def equal(a: Batch, b: Batch) -> bool:
    return all(
        np.array_equal(x.ids, y.ids)
        and np.array_equal(x.attended, y.attended)
        and np.array_equal(x.kept, y.kept)
        for x, y in ((a.queries, b.queries), (a.documents, b.documents))
    ) and (
        np.array_equal(a.keys, b.keys)
        and np.array_equal(a.labelled, b.labelled)
        and (a.scores is b.scores is None or np.array_equal(a.scores, b.scores))
        and (a.source, a.first, a.n_tokens) == (b.source, b.first, b.n_tokens)
    )


# Which rows a step takes.

sizes_and_batch = st.lists(st.integers(1, 40), min_size=1, max_size=4).flatmap(
    lambda sizes: st.tuples(st.just(tuple(sizes)), st.integers(1, sum(sizes)))
)


@settings(max_examples=200, deadline=None)
@given(of=sizes_and_batch, seed=st.integers(0, 2**40), epoch=st.integers(0, 3))
def test_an_epoch_has_each_row_once(of: tuple[tuple[int, ...], int], seed: int, epoch: int) -> None:
    sizes, batch = of
    n_steps = sum(sizes) // batch
    steps = [rows_of_step(sizes, batch, epoch * n_steps + i, seed) for i in range(n_steps)]
    assert all(step.shape == (batch,) and step.dtype == np.int64 for step in steps)
    rows = np.concatenate(steps).tolist()
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(sum(sizes)))
    assert sum(sizes) - len(rows) < batch  # less than a batch waits for the next epoch
    # A source has all its whole batches to itself; only what is left over is mixed.
    of_source = np.repeat(np.arange(len(sizes)), sizes)
    pure = Counter(int(of_source[step[0]]) for step in steps if len(set(of_source[step])) == 1)
    assert all(pure[i] >= size // batch for i, size in enumerate(sizes))
    n_mixed = sum(len(set(of_source[step])) > 1 for step in steps)
    assert n_mixed <= sum(size % batch for size in sizes) // batch


@settings(max_examples=50, deadline=None)
@given(of=sizes_and_batch, seed=st.integers(0, 1000), order=st.randoms(use_true_random=False))
def test_rows_depend_on_the_step_alone(
    of: tuple[tuple[int, ...], int], seed: int, order: random.Random
) -> None:
    sizes, batch = of
    steps = list(range(3 * (sum(sizes) // batch)))
    before = {step: rows_of_step(sizes, batch, step, seed).tolist() for step in steps}
    order.shuffle(steps)
    for step in steps[:5]:
        _epoch.cache_clear()
        assert rows_of_step(sizes, batch, step, seed).tolist() == before[step]


def test_epochs_and_seeds_differ() -> None:
    first = [rows_of_step((60, 40), 10, step, 1).tolist() for step in range(10)]
    second = [rows_of_step((60, 40), 10, step, 1).tolist() for step in range(10, 20)]
    other = [rows_of_step((60, 40), 10, step, 2).tolist() for step in range(10)]
    assert all(sorted(chain(*epoch)) == list(range(100)) for epoch in (first, second, other))
    assert first != second
    assert first != other
    # Batches of the two sources take turns, and rows are not in order.
    assert [max(batch) < 60 for batch in first] != sorted([max(batch) < 60 for batch in first])[::-1]
    assert not any(batch == sorted(batch) for batch in first)


def test_what_waited_comes_in_another_epoch() -> None:
    seen: set[int] = set()
    for step in range(40):
        seen.update(rows_of_step((5, 6), 4, step, 0).tolist())
    assert seen == set(range(11))


# Ranks.


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_a_batch(world: int) -> None:
    # Two sources with left-overs, of unlike ways and one without scores: mixed batches too are as one rank's.
    def sources() -> list[Source]:
        return [tuples("湖", 20, 9), tuples("山", 17, 4, n_ways=2), tuples("川", 9, 3, scored=False)]

    whole = batches(*sources(), batch=6, n_ways=3)
    shares = [batches(*sources(), batch=6, n_ways=3, rank=rank, world=world) for rank in range(world)]
    kinds = Counter()
    for step in range(30):
        one, parts = whole[step], [share[step] for share in shares]
        kinds[one.source] += 1
        assert np.concatenate([part.keys for part in parts]).tolist() == one.keys.tolist()
        assert np.concatenate([part.labelled for part in parts]).tolist() == one.labelled.tolist()
        assert all((part.scores is None) == (one.scores is None) for part in parts)
        if one.scores is not None:
            assert np.concatenate([part.scores for part in parts]).tolist() == one.scores.tolist()
        assert sum(part.n_tokens for part in parts) == one.n_tokens
        rows = [row for part in parts for row in part.queries.ids.tolist()]
        assert rows == one.queries.ids.tolist()  # of one length by the rule
        assert parts[0].first == one.first
    assert set(kinds) == {"湖", "山", "川", "mixed"}


def test_ranks_that_cannot_share() -> None:
    with pytest.raises(TrainingError, match="batch of 6 queries cannot be shared by 4 ranks. Pass a --batch"):
        batches(tuples("湖", 20), batch=6, rank=0, world=4)
    with pytest.raises(TrainingError, match="5 tuples make no batch of 6 for 2 ranks"):
        batches(tuples("湖", 5), batch=6, rank=0, world=2)


# Batches.


def test_a_batch_holds_queries_with_their_documents() -> None:
    found = batches(tuples("湖", 8), batch=4)
    assert len(found) == 100
    seen = []
    for step in range(2):
        batch = found[step]
        assert batch.source == "湖"
        assert batch.labelled.tolist() == [[True, False, False]] * 4
        assert batch.scores.dtype == np.float64
        for n, first in enumerate(batch.scores[:, 0].tolist()):
            i = int(first) // 10
            seen.append(i)
            assert batch.scores[n].tolist() == [10 * i, 10 * i + 1, 10 * i + 2]
            texts = [f"湖{i}の文書{j}。{SENTENCES[(i + j) % 10]}" for j in range(3)]
            assert batch.keys[3 * n : 3 * n + 3].tolist() == [hashed(text) >> 1 for text in texts]
            expected = TOKENIZER.documents(texts)
            ids = batch.documents.ids[3 * n : 3 * n + 3]
            inside = [ids[j, : expected.lengths[j]].tolist() for j in range(3)]
            assert list(chain(*inside)) == expected.ids.tolist()
            question = TOKENIZER.queries([f"湖の問い{i}"]).ids.tolist()
            assert batch.queries.ids[n].tolist() == question
        assert batch.first == f"湖の問い{int(batch.scores[0, 0]) // 10}"
    assert sorted(seen) == list(range(8))


def test_batches_depend_on_the_step_alone() -> None:
    def fresh() -> Batches:
        return batches(tuples("湖", 10, 9), tuples("山", 11, 5), batch=4)

    forward = [fresh()[step] for step in range(12)]
    shared = fresh()
    for step in (11, 3, 0, 7, 3):
        assert equal(shared[step], forward[step])
    # The second epoch draws other documents of the same rows.
    n_steps = 21 // 4
    first = {key for step in range(n_steps) for key in shared[step].keys.tolist()}
    second = {key for step in range(n_steps, 2 * n_steps) for key in shared[step].keys.tolist()}
    assert first != second
    assert not equal(forward[0], batches(tuples("湖", 10, 9), tuples("山", 11, 5), batch=4, seed=8)[0])
    for step in (-1, 100):
        with pytest.raises(IndexError):
            shared[step]


def test_each_query_of_a_batch_draws_for_itself() -> None:
    scores = batches(tuples("湖", 8, 9), batch=8, n_ways=5)[0].scores
    drawn = {tuple(places) for places in (scores % 10).tolist()}  # which documents of the nine
    assert len(drawn) == 8


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    found = batches(tuples("湖", 3), tuples("山", 2), batch=64, steps=4)
    for step in range(4):
        assert found[step].labelled.shape == (5, 3)
        assert len(set(found[step].keys.tolist())) == 15
    assert [found[step].first for step in range(4)] != [found[0].first] * 4


def test_left_overs_of_unlike_sources_share_what_they_have() -> None:
    found = batches(tuples("湖", 3, 9, n_ways=5), tuples("山", 3, 2, n_ways=2, scored=False), batch=6)[0]
    assert found.source == "mixed"
    assert found.labelled.tolist() == [[True, False]] * 6
    assert found.scores is None
    assert len(found.keys) == len(found.documents.ids) == 12
    scored = batches(tuples("湖", 3, 9, n_ways=5), tuples("山", 3, 2, n_ways=2), batch=6)[0]
    assert scored.scores.shape == (6, 2)
    assert found.keys.tolist() == scored.keys.tolist()


def test_rows_without_scores_take_a_batch_of_one_source_along() -> None:
    rows = [Row("湖は?", ("琵琶湖", "富士山"), scores, 1, "", inline=True) for scores in (None, (1.0, 0.0))]
    assert batches(Source(Tuples(rows, name="a"), None), batch=2, n_ways=2)[0].scores is None


def test_sources_of_a_file_are_apart() -> None:
    rows = [
        Row("湖は?", ("琵琶湖", "富士山"), None, 1, "JSQuAD" if i < 8 else "JaQuAD", inline=True)
        for i in range(16)
    ]
    found = batches(Source(Tuples(rows, name="mined"), None), batch=4, n_ways=2)
    assert Counter(found[step].source for step in range(4)) == {"JSQuAD": 2, "JaQuAD": 2}
    assert found.lessons.summary() == "JSQuAD 8, JaQuAD 8"


# What cannot be learnt from.


def test_reasons() -> None:
    def row(n: int, n_positives: int = 1, scores: tuple[float, ...] | None = None) -> Row:
        return Row("q", tuple(f"d{i}" for i in range(n)), scores, n_positives, "", inline=False)

    assert unusable(row(3), 3) is None
    assert unusable(row(2), 3) == "too short"
    assert unusable(row(0), 1) == "too short"
    # Of more documents than are wanted, one answer and the rest negatives are drawn.
    assert unusable(row(4, 2), 3) is None
    assert unusable(row(4, 3), 3) == "too few negatives"
    assert unusable(row(3, 3), 3) is None
    assert unusable(row(4, 4), 1) is None
    assert unusable(row(3, scores=(2.0, 2.0, 2.0)), 3) == "of constant scores"
    assert unusable(row(3, scores=(2.0, 2.0, 2.1)), 3) is None
    assert unusable(row(1, scores=(2.0,)), 1) is None  # one document has nothing to be ordered
    assert unusable(row(3, 0), 3) == "without positive"
    assert unusable(row(3, 0, scores=(1.0, 2.0, 3.0)), 3) is None  # a teacher needs no label
    assert unusable(row(5, scores=(1.0, 0.0, 0.0, 0.0, 2.0)), 3) is None
    # Of more than are wanted, those of one score may be drawn.
    assert unusable(row(5, scores=(0.0, 0.0, 0.0, 1.0, 2.0)), 3) == "of constant scores"
    assert unusable(row(5, 0, scores=(0.0, 0.0, 1.0, 0.0, 2.0)), 3) == "of constant scores"
    assert unusable(row(5, 0, scores=(0.0, 0.0, 1.0, 1.0, 2.0)), 3) is None
    same = Row("q", ("d", "d", "d"), (1.0, 2.0, 3.0), 1, "", inline=False)
    assert unusable(same, 3) == "of one document"
    assert unusable(same, 1) is None


def test_what_is_left_out_is_counted_and_the_callers_tuples_stay() -> None:
    rows = [
        Row("q", ("a", "b"), None, 1, "", inline=False),
        Row("q", ("a", "b"), (1.0, 1.0), 1, "", inline=False),
        Row("q", ("a",), None, 1, "", inline=False),
        Row("q", ("a", "b"), None, 0, "", inline=False),
        Row("q", ("a", "x"), None, 1, "", inline=False),
        Row("q", ("b", "a"), None, 1, "", inline=False),
    ]
    corpus = {"a": "琵琶湖", "b": "富士山"}
    stored = Tuples(rows, name="採掘", queries={"q": "湖は?"}, corpus=corpus, on_missing="skip")
    source = Source(stored, None)
    expected = (
        "採掘 2; left out: 1 of constant scores, 1 too short, 1 whose text is missing, 1 without positive"
    )
    assert batches(source, batch=2, n_ways=2).lessons.summary() == expected
    assert batches(source, batch=2, n_ways=2).lessons.summary() == expected
    assert len(stored) == 5
    with pytest.raises(
        TrainingError, match="No tuple is left to learn from: none; left out: 5 too short, 1 whose"
    ):
        batches(source, n_ways=3)
    with pytest.raises(TrainingError, match="No tuple is left to learn from: none."):
        batches(Source(Tuples([], name="leer"), None))
    with pytest.raises(TrainingError, match="No tuple is left"):
        batches()


# Draws.


@st.composite
def usable_rows(draw: st.DrawFn) -> tuple[Row, int]:
    """A row that can be learnt from, and how many of its documents are wanted."""
    n_ways, more, scored = draw(st.integers(1, 20)), draw(st.integers(0, 20)), draw(st.booleans())
    n = n_ways + more
    n_positives = draw(st.integers(0 if scored else 1, more + 1 if more else n))
    scores = tuple(map(float, range(n))) if scored else None
    return Row("q", tuple(f"d{i}" for i in range(n)), scores, n_positives, "源", inline=False), n_ways


@settings(max_examples=200, deadline=None)
@given(of=usable_rows(), seed=st.integers(0, 2**32))
def test_draws(of: tuple[Row, int], seed: int) -> None:
    row, n_ways = of
    ids, n, n_positives, scored = row.documents, len(row.documents), row.n_positives, row.scores is not None
    assert unusable(row, n_ways) is None
    drawn = draw(row, n_ways, np.random.default_rng(seed))
    assert (drawn.query, drawn.source, drawn.inline) == ("q", "源", False)
    assert len(drawn.documents) == len(set(drawn.documents)) == n_ways
    assert set(drawn.documents) <= set(ids)
    numbers = [int(id[1:]) for id in drawn.documents]
    assert drawn.scores == (tuple(map(float, numbers)) if scored else None)
    assert draw(row, n_ways, np.random.default_rng(seed)) == drawn
    if n == n_ways:
        assert drawn == row
    elif n_positives:
        assert drawn.n_positives == 1
        assert numbers[0] < n_positives
        assert min(numbers[1:], default=n) >= n_positives
    else:
        assert drawn.n_positives == 0


def test_each_answer_and_each_negative_is_drawn() -> None:
    row = Row("q", tuple("abcdefgh"), None, 2, "", inline=False)
    rng = np.random.default_rng(0)
    drawn = [draw(row, 4, rng).documents for _ in range(600)]
    first = Counter(documents[0] for documents in drawn)
    assert set(first) == {"a", "b"}
    assert min(first.values()) > 240
    others = Counter(id for documents in drawn for id in documents[1:])
    assert set(others) == set("cdefgh")
    assert min(others.values()) > 240


# What the network reads.


def ragged(rows: list[list[int]], n_attended: list[int]) -> TokenBatch:
    return TokenBatch(
        ids=np.array([id for row in rows for id in row], dtype=np.int32),
        offsets=np.cumsum([0, *map(len, rows)]),
        n_attended=np.array(n_attended, dtype=np.int64),
        n_cut=np.zeros(len(rows), dtype=np.int64),
    )


def test_padding_by_hand() -> None:
    found = pad_batch(ragged([[2, 5, 9, 3], [2, 3], [2, 8, 3]], [4, 1, 3]), 7, skipped=frozenset({9, 7}))
    assert found.ids.dtype == np.int64
    assert found.ids.tolist() == [[2, 5, 9, 3], [2, 3, 7, 7], [2, 8, 3, 7]]
    assert found.attended.astype(int).tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]
    assert found.kept.astype(int).tolist() == [[1, 1, 0, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    alone = pad_batch(ragged([[2]], [1]), 0)
    assert (alone.ids.tolist(), alone.kept.tolist()) == ([[2]], [[True]])


def test_masks_of_queries_count_and_are_not_attended_to() -> None:
    batch = batches(tuples("湖", 4), batch=4)[0]
    mask = TOKENIZER.special.mask
    n_own = (batch.queries.ids != mask).sum(axis=1)
    assert batch.queries.ids.shape == (4, 16)
    assert (n_own < 16).all()
    assert batch.queries.kept.all()
    assert batch.queries.attended.sum(axis=1).tolist() == n_own.tolist()
    assert not batch.queries.attended[batch.queries.ids == mask].any()


def test_queries_of_unlike_lengths_are_padded_behind_their_masks() -> None:
    reader = Tokenizer(TOKENIZER.subwords, replace(SETTINGS, query_length="paper"))
    rows = [Row(text, ("琵琶湖",), None, 1, "", inline=True) for text in (SENTENCES[0] * 3, "湖")]
    batch = Batches([Source(Tuples(rows, name="a"), None)], reader, n_ways=1, batch=2, steps=1, seed=0)[0]
    lengths = sorted(reader.queries([row.query]).lengths[0] for row in rows)
    assert lengths[0] < lengths[1]
    assert sorted(batch.queries.kept.sum(axis=1)) == lengths
    assert (batch.queries.ids[~batch.queries.kept] == reader.special.pad).all()
    assert not batch.queries.attended[~batch.queries.kept].any()


def test_punctuation_of_documents_is_read_and_does_not_count() -> None:
    rows = [Row("湖は?", ("富士山(標高3,776)!", "京都、奈良。「大阪」"), None, 1, "", inline=True)]
    batch = batches(Source(Tuples(rows, name="a"), None), batch=1, n_ways=2)[0]
    vocab = TOKENIZER.vocab
    skipped = {vocab[symbol] for symbol in "(,)!"}
    ids, kept, attended = batch.documents.ids[0], batch.documents.kept[0], batch.documents.attended[0]
    assert skipped <= set(ids.tolist())
    assert kept.tolist() == [id not in skipped and id != TOKENIZER.special.pad for id in ids.tolist()]
    assert attended.tolist() == [id != TOKENIZER.special.pad for id in ids.tolist()]
    inside = batch.documents.ids[1] != TOKENIZER.special.pad
    assert batch.documents.kept[1].tolist() == inside.tolist()  # 、。「」 count
    # In a query all counts.
    assert vocab["?"] in batch.queries.ids[0].tolist()
    assert batch.queries.kept.all()


def test_tokens_are_counted_without_padding_and_cut_at_the_length() -> None:
    rows = [Row("湖は?", ("琵琶湖", SENTENCES[1] * 3), None, 1, "", inline=True)]
    batch = batches(Source(Tuples(rows, name="a"), None), batch=1, n_ways=2)[0]
    pad = TOKENIZER.special.pad
    read = sum(int((padded.ids != pad).sum()) for padded in (batch.queries, batch.documents))
    assert batch.n_tokens == read
    assert batch.documents.ids.shape[1] == 30
    assert (batch.documents.ids[0] == pad).sum() > 20


def test_parts_are_the_batch() -> None:
    batch = batches(tuples("湖", 7, 4), batch=7, n_ways=4)[0]
    parts = [batch.part(start, min(start + 3, 7)) for start in (0, 3, 6)]
    assert [len(part.labelled) for part in parts] == [3, 3, 1]
    for name in ("labelled", "keys", "scores"):
        assert (
            np.concatenate([getattr(part, name) for part in parts]).tolist() == getattr(batch, name).tolist()
        )
    for name in ("ids", "attended", "kept"):
        for side in ("queries", "documents"):
            got = np.concatenate([getattr(getattr(part, side), name) for part in parts])
            assert got.tolist() == getattr(getattr(batch, side), name).tolist()
    assert parts[1].documents.ids.shape[0] == 12
    unscored = batches(tuples("湖", 4, scored=False), batch=4)[0].part(1, 3)
    assert unscored.scores is None
    assert len(unscored.keys) == 6


def test_keys_are_the_same_in_every_process() -> None:
    text = "琵琶湖は𠮷い\ud800"  # half a character, which has no UTF-8
    code = f"from training.state import hashed; print(hashed({text!r}), hashed('湖'))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == [str(hashed(text)), str(hashed("湖"))]
    assert hashed("湖") != hashed("湖 ")
