"""Which tuples a step takes, and what the network reads of them: functions of the step alone.

A run that is resumed, or spread over more ranks, sees what an unbroken run of one rank would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import accumulate

import numpy as np

from jacolbert_rag.datatypes import BoolArray, FloatArray, IntArray, TokenBatch
from jacolbert_rag.encode.tokens import Tokenizer
from training.data import Example, Row, Source, Tuples
from training.options import TrainingError
from training.state import hashed

N_DIGESTED = 1_000  # tuples of a source that its digest looks at


@dataclass(frozen=True)
class Padded:
    """A padded batch of texts.

    Attributes:
        ids: (n_texts, length) int64.
        attended: (n_texts, length) bool: keys of attention; not padding, nor a query's [MASK]s.
        kept: (n_texts, length) bool: positions that MaxSim counts; not padding, nor skipped punctuation.
    """

    ids: IntArray
    attended: BoolArray
    kept: BoolArray

    def take(self, rows: slice | IntArray) -> Padded:
        """Some of its texts."""
        return Padded(self.ids[rows], self.attended[rows], self.kept[rows])

    @property
    def lengths(self) -> IntArray:
        """(n_texts,) int64: positions of each text, padding left out."""
        places = np.arange(1, self.ids.shape[1] + 1)
        lengths: IntArray = ((self.attended | self.kept) * places).max(axis=1)
        return lengths


@dataclass(frozen=True)
class Batch:
    """What one rank learns from in one step.

    Attributes:
        queries: b of them.
        documents: b * n_ways, those of a query side by side, its answer first.
        scores: (b, n_ways) float64 of the teacher, or None.
        labelled: (b, n_ways) bool: answers by label.
        keys: (b * n_ways,) int64; equal for equal documents.
        source: of its tuples.
        first: the id of its first query, for messages.
        n_tokens: read, each document once, padding left out.
    """

    queries: Padded
    documents: Padded
    scores: FloatArray | None
    labelled: BoolArray
    keys: IntArray
    source: str
    first: str
    n_tokens: int

    def part(self, start: int, stop: int) -> Batch:
        """Some of its queries with their documents."""
        n_ways = self.labelled.shape[1]
        own = slice(start * n_ways, stop * n_ways)
        return replace(
            self,
            queries=self.queries.take(slice(start, stop)),
            documents=self.documents.take(own),
            scores=None if self.scores is None else self.scores[start:stop],
            labelled=self.labelled[start:stop],
            keys=self.keys[own],
        )


@dataclass(frozen=True)
class Lesson:
    """Tuples of one step, drawn to so many documents each, an answer first where one is labelled.

    Attributes:
        examples: scores are None unless all tuples of the step, over all ranks, have them.
        n_ways: documents of each example.
    """

    examples: list[Example]
    n_ways: int


class Lessons:
    """The tuples of each step: a function of the step alone."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        n_ways: int,
        batch: int,
        seed: int,
        unusable: Callable[[Row, int], str | None],
    ) -> None:
        """Leave out what cannot be learnt from, and count it.

        Args:
            sources: of tuples; each may have an n_ways of its own.
            n_ways: documents of a query.
            batch: queries of a step; fewer where there are fewer tuples.
            seed: of order, and of which documents are drawn where a tuple has more.
            unusable: of a tuple and its n_ways: why it is left out, or None.

        Raises:
            TrainingError: no tuple is left.
        """
        self._seed = seed
        self._left_out: Counter[str] = Counter()
        self._sources: list[tuple[Tuples, int]] = []
        for source in sources:
            ways = source.n_ways or n_ways
            self._left_out["whose text is missing"] += source.tuples.n_missing
            for part in source.tuples.by_source():  # which leaves the caller's tuples as they are
                self._left_out += part.keep(lambda row, n=ways: unusable(row, n))  # type: ignore[misc]
                self._sources += [(part, ways)] if len(part) else []
        self._sizes = tuple(len(tuples) for tuples, _ in self._sources)
        if not self._sizes:
            raise TrainingError(f"No tuple is left to learn from: {self.summary()}.")
        self.batch = min(batch, sum(self._sizes))

    def summary(self) -> str:
        """How many tuples each source has, and how many were left out, and why."""
        kept = ", ".join(f"{tuples.name} {len(tuples):,}" for tuples, _ in self._sources)
        out = ", ".join(f"{n:,} {reason}" for reason, n in sorted(self._left_out.items()) if n)
        return (kept or "none") + (f"; left out: {out}" if out else "")

    def kinds(self) -> list[tuple[str, int, bool]]:
        """Name, documents a query, and whether there are teacher scores, of each source."""
        return [(tuples.name, ways, tuples.row(0).scores is not None) for tuples, ways in self._sources]

    @cached_property
    def digest(self) -> str:
        """16 hex digits over names, sizes and a thousand tuples of each source, texts included."""
        total = blake2b(digest_size=8)
        for tuples, ways in self._sources:
            total.update(repr((tuples.name, len(tuples), ways)).encode())
            for i in np.unique(np.linspace(0, len(tuples) - 1, N_DIGESTED).astype(np.int64)):
                example = tuples[int(i)]
                told = (example.query, example.documents, example.scores, example.n_positives)
                total.update(repr(told).encode("utf-8", "replace"))
        return total.hexdigest()

    def at(self, step: int, own: slice = slice(None)) -> Lesson:
        """The tuples of a step, or those of one rank's part of it."""
        rows = rows_of_step(self._sizes, self.batch, step, self._seed)
        starts = np.cumsum([0, *self._sizes])
        numbers = np.searchsorted(starts, rows, side="right") - 1
        sources = [self._sources[number] for number in numbers]
        stored = [
            tuples.row(i) for (tuples, _), i in zip(sources, (rows - starts[numbers]).tolist(), strict=True)
        ]
        # Left-overs of several sources may share a batch: the least ways and scores count, over all ranks, so
        # that these do not learn apart.
        least = min(n_ways for _, n_ways in sources)
        scored = all(row.scores is not None for row in stored)
        examples = []
        for place in range(*own.indices(len(rows))):
            tuples, n_ways = sources[place]
            rng = np.random.default_rng((self._seed, step, place))
            row = draw(stored[place], n_ways, rng)
            scores = row.scores[:least] if scored and row.scores is not None else None
            cut = replace(row, documents=row.documents[:least], scores=scores)
            examples.append(tuples.example(replace(cut, n_positives=min(row.n_positives, least))))
        return Lesson(examples, least)


class Batches(Sequence[Batch]):
    """The batch of each step, for one rank; indexed by step."""

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        *,
        n_ways: int,
        batch: int,
        steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Leave out what cannot be learnt from, and count it.

        Args:
            sources: of tuples; each may have an n_ways of its own.
            tokenizer: with the lengths of training.
            n_ways: documents of a query.
            batch: queries of a step, over all ranks.
            steps: of the run.
            seed: of order, and of which documents are drawn where a tuple has more.
            rank: takes the rank-th part of each batch.
            world: how many ranks there are.

        Raises:
            TrainingError: the batch cannot be shared evenly, or no tuple is left.
        """
        if batch % world:
            raise TrainingError(
                f"A batch of {batch} queries cannot be shared by {world} ranks. Pass a --batch that can."
            )
        self.lessons = Lessons(sources, n_ways=n_ways, batch=batch, seed=seed, unusable=unusable)
        self._tokenizer, self._steps = tokenizer, steps
        total = self.lessons.batch
        if total < batch and world > 1:
            raise TrainingError(f"{total} tuples make no batch of {batch} for {world} ranks.")
        batch = total
        self._own = slice(rank * batch // world, (rank + 1) * batch // world)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:  # type: ignore[override]
        if not 0 <= step < self._steps:
            raise IndexError(step)
        lesson = self.lessons.at(step, self._own)
        examples, ways = lesson.examples, lesson.n_ways
        texts = [text for example in examples for text in example.documents]
        queries = self._tokenizer.queries([example.query for example in examples])
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        documents = self._tokenizer.documents(list(places))  # one that several queries have is read once
        pad, skipped = self._tokenizer.special.pad, self._tokenizer.skiplist()
        labelled = np.array([[i < e.n_positives for i in range(ways)] for e in examples], dtype=np.bool_)
        scores = [example.scores for example in examples if example.scores is not None]
        sources = {example.source for example in examples}
        return Batch(
            queries=pad_batch(queries, pad),
            documents=pad_batch(documents, pad, skipped=skipped).take(np.array([places[t] for t in texts])),
            scores=np.array(scores) if scores else None,
            labelled=labelled,
            keys=np.array([hashed(text) >> 1 for text in texts], dtype=np.int64),
            source=sources.pop() if len(sources) == 1 else "mixed",
            first=examples[0].id,
            n_tokens=len(queries.ids) + len(documents.ids),
        )


def unusable(row: Row, n_ways: int) -> str | None:
    """Why a tuple is left out; None where it is not.

    A teacher that scores all documents of a tuple alike tells no order, and min-max normalisation would make
    it a lesson that all are alike.
    """
    if len(row.documents) < n_ways:
        return "too short"
    if len(row.documents) > n_ways and len(row.documents) - row.n_positives < n_ways - 1:
        return "too few negatives"
    if n_ways > 1 and len(set(row.documents)) == 1:
        return "of one document"  # under min-max a row of equal scores has a gradient of some 1e7
    if row.scores is not None and n_ways > 1 and may_be_constant(row.scores, row.n_positives, n_ways):
        return "of constant scores"
    if row.scores is None and row.n_positives < 1:
        return "without positive"
    return None


def may_be_constant(scores: Sequence[float], n_positives: int, n_ways: int) -> bool:
    """Whether `draw` may take documents whose scores are all the same."""
    if len(scores) == n_ways:
        return max(scores) == min(scores)
    counts = Counter(scores[n_positives:])
    if n_positives:
        return any(counts[score] >= n_ways - 1 for score in scores[:n_positives])
    return max(counts.values()) >= n_ways


def draw(row: Row, n_ways: int, rng: np.random.Generator) -> Row:
    """A tuple of n_ways documents: all of them, or an answer and as many others as are wanted."""
    if len(row.documents) == n_ways:
        return row
    first = [int(rng.integers(row.n_positives))] if row.n_positives else []
    others = rng.choice(
        np.arange(row.n_positives, len(row.documents)), n_ways - len(first), replace=False
    ).tolist()
    chosen = [*first, *others]
    return replace(
        row,
        documents=tuple(row.documents[i] for i in chosen),
        scores=None if row.scores is None else tuple(row.scores[i] for i in chosen),
        n_positives=len(first),
    )


def rows_of_step(sizes: tuple[int, ...], batch: int, step: int, seed: int) -> IntArray:
    """(batch,) int64: rows of the step, counted over all sources; each row once an epoch.

    What is left of a source after its last whole batch goes into batches of several sources; what is left of
    those waits for the next epoch's order.
    """
    per_epoch = sum(sizes) // batch
    epoch, place = divmod(step, per_epoch)
    rows: IntArray = _epoch(sizes, batch, epoch, seed)[place]
    return rows


@lru_cache(maxsize=2)
def _epoch(sizes: tuple[int, ...], batch: int, epoch: int, seed: int) -> IntArray:
    """(n_batches, batch) int64."""
    rng = np.random.default_rng((seed, epoch))
    whole, left = [], []
    for start, size in zip([0, *accumulate(sizes)], sizes, strict=False):
        order = start + rng.permutation(size)
        n = size // batch * batch
        whole.append(order[:n].reshape(-1, batch))
        left.append(order[n:])
    rest = rng.permutation(np.concatenate(left))
    whole.append(rest[: len(rest) // batch * batch].reshape(-1, batch))
    batches: IntArray = rng.permutation(np.concatenate(whole), axis=0)
    return batches


def pad_batch(batch: TokenBatch, pad_id: int, *, skipped: frozenset[int] = frozenset()) -> Padded:
    """Rows of one length."""
    width = int(batch.lengths.max())
    inside = np.arange(width) < batch.lengths[:, None]
    ids = np.full(inside.shape, pad_id, dtype=np.int64)
    ids[inside] = batch.ids
    attended = np.arange(width) < batch.n_attended[:, None]
    return Padded(ids, attended, inside & ~np.isin(ids, list(skipped)))
