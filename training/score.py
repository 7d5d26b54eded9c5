"""Has teachers score mined tuples, for distillation.

    python -m training.score --tuples mined.jsonl --queries DIR --corpus DIR --teacher bm25 --out scored.jsonl
    torchrun --nproc-per-node 4 -m training.score … --teacher cross-encoder:BAAI/bge-reranker-v2-m3

Reads rows {"query_id", "document_ids", "n_positives"}, or such with their texts; writes them with "scores",
one a document. A single teacher's scores are stored as they are; those of several are min-max-normalised for
each query and averaged by weight. A teacher that scores all documents of a tuple alike is counted, and the
tuple kept: training.distill leaves tuples of constant scores out.

Work is done in shards of some thousand rows, in OUT.shards; those that are there are not scored again. Under
torchrun each rank takes every n-th shard, and the first joins them. On machines without a common launcher
`--part I/N` does the same by hand, in a folder that all of them see; the one that ends last joins them.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.data import HUB, Example, OnMissing, Row, Texts, Tuples, packed, read_rows, read_texts
from training.options import Config, Limit, StageName, TrainingError, console, run
from training.shards import Shards, Worker, alone
from training.state import RECIPE_FILE, begin, claim, digest, hold
from training.teachers import (
    DEFAULT_CROSS_ENCODER,
    MAX_LENGTH,
    Advance,
    BM25Teacher,
    ColBERTTeacher,
    CrossEncoder,
    Precision,
    ScoreArray,
    Teacher,
    min_max,
    mix,
)

SHARD_ROWS = 2_000
DECIMALS = 6  # of a stored score; a float32 has seven digits
BM25_CACHE = "bm25.npz"
_SPEC = re.compile(r"(?P<kind>cross-encoder|colbert|bm25)(:(?P<place>.+?))?(\*(?P<weight>[0-9.]+))?")


def main(
    tuples: Annotated[str, typer.Option(help="mined rows: FILE.jsonl, FILE.parquet or hub:NAME")],
    teacher: Annotated[
        list[str],
        typer.Option(help="cross-encoder[:PATH_OR_ID], colbert[:PATH_OR_ID] or bm25; *WEIGHT behind it"),
    ],
    out: Annotated[Path, typer.Option(help="file of scored rows")],
    queries: Annotated[str | None, typer.Option(help="texts of query ids: BEIR folder, file, hub:")] = None,
    corpus: Annotated[str | None, typer.Option(help="texts of document ids; bm25 counts all of it")] = None,
    normalize: Annotated[bool, typer.Option(help="store scores min-max-normalised for each query")] = False,
    bound_positives: Annotated[
        float | None,
        typer.Option(help="min-max-normalise, then raise positives to the best negative's score plus this"),
    ] = None,
    max_length: Annotated[int, typer.Option(min=16, help="tokens of a cross-encoder's pair")] = MAX_LENGTH,
    precision: Annotated[Precision | None, typer.Option(help="fp16 on CUDA, else fp32")] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="tokens of a padded batch")] = None,
    shard: Annotated[int, typer.Option(min=1, help="rows that are scored and written at once")] = SHARD_ROWS,
    part: Annotated[str | None, typer.Option(help="I/N, from 1/N to N/N: take every N-th shard")] = None,
    on_missing: Annotated[OnMissing, typer.Option(help="what becomes of tuples without text")] = "refuse",
    sample: Annotated[int | None, typer.Option(min=1, help="draw so many tuples, always the same")] = None,
    device: str | None = None,
    limit: Limit = None,
    config: Config = None,
    stage: StageName = None,
) -> None:
    """Score tuples with one teacher or several."""
    # Settings.
    worker = Worker.of(part)
    wanted = [Wanted.of(spec) for spec in teacher]
    asked = {
        "asked": [each.settings for each in wanted], "normalize": normalize,
        "bound_positives": bound_positives, "on_missing": on_missing, "sample": sample,
        "limit": limit,
    }  # fmt: skip
    if out.exists():
        slow = ("tuples", "queries", "corpus", "teachers", "shard")  # to find out, or of no influence
        hold(out.parent, asked, changeable=slow, file=f"{out.name}.{RECIPE_FILE}")
        console.print(f"{out} is finished: nothing to do. Remove it to score anew.", markup=False)
        return
    if worker.n_workers > 1 and not worker.by_hand and device is None and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"

    # Data.
    texts = read_texts(corpus, "corpus") if corpus is not None else None
    rows = Tuples(
        read_rows(tuples),
        name=tuples,
        queries=read_texts(queries, "queries") if queries is not None else None,
        corpus=texts,
        on_missing=on_missing,
        limit=limit,
        sample=sample,
    )
    if not len(rows):
        raise TrainingError(
            f"{tuples} has no tuple whose texts are there. Name the --queries and --corpus of its ids."
        )

    # Teachers.
    loaded = [
        load_teacher(
            each,
            texts,
            max_length=max_length,
            precision=precision,
            device=device,
            batch_tokens=batch_tokens,
        )
        for each in wanted
    ]
    panel = Panel(wanted, loaded, normalize=normalize, bound=bound_positives)
    recipe = asked | {
        "tuples": content_of(tuples, "tuples"), "queries": content_of(queries, "queries"),
        "corpus": content_of(corpus, "corpus"), "teachers": panel.settings, "shard": shard,
    }  # fmt: skip

    # Work.
    shards = Shards(out, len(rows), shard)
    with claim(shards.folder / worker.name):
        todo = [n for n in worker.takes(len(shards)) if not shards.path(n).exists()]
        with alone(shards.folder):
            begin(shards.folder, recipe)
            for each in loaded if todo else []:
                if isinstance(each, BM25Teacher):
                    each.count(shards.folder / BM25_CACHE)
        if out.exists():  # others ended while this one began
            shards.remove()
            return
        with scoring_bar(worker, shards, todo) as bar:
            for n in todo:
                score_shard(shards, n, rows, panel, bar)
        counts = shards.finish(worker)
    if counts is not None:
        say(out, counts, rows.n_missing)


def score_shard(shards: Shards, n: int, rows: Tuples, panel: Panel, bar: Bar) -> None:
    """Score and write the n-th shard."""
    started = time.monotonic()
    places = shards.rows(n)
    examples = [rows[i] for i in places]
    n_pairs = sum(len(example.documents) for example in examples)
    scores, alike = panel.score(examples, bar.of_shard(len(examples), n_pairs * len(panel.teachers)))
    counts = {
        "tuples": len(examples),
        "pairs": n_pairs,
        "alike": alike,
        "seconds": round(time.monotonic() - started, 3),
    }
    shards.write(n, [stored(rows.row(i), own) for i, own in zip(places, scores, strict=True)], counts)
    bar.shard_done(n, n_pairs)


def stored(row: Row, scores: ScoreArray) -> dict[str, Any]:
    """A row as it is written."""
    query, documents = ("query", "passages") if row.inline else ("query_id", "document_ids")
    source = {"source": row.source} if row.source else {}
    return {
        query: row.query,
        documents: list(row.documents),
        "n_positives": row.n_positives,
        **source,
        "scores": [round(score, DECIMALS) for score in scores.tolist()],
    }


def say(out: Path, counts: Sequence[Mapping[str, Any]], n_skipped: int) -> None:
    """Print what was done."""
    n_tuples, n_pairs, seconds = (sum(each[key] for each in counts) for key in ("tuples", "pairs", "seconds"))
    alike: Counter[str] = Counter()
    for each in counts:
        alike.update(each["alike"])
    constant = ", ".join(f"{n:,} by {name}" for name, n in alike.items() if n) or "0"
    console.print(
        f"{out}: {n_tuples:,} tuples, {n_pairs:,} pairs, {n_pairs / max(seconds, 1e-3):,.0f} pairs/s a "
        f"process; tuples of constant scores: {constant}; skipped for missing texts: {n_skipped:,}.",
        markup=False,
    )


def content_of(spec: str | None, kind: str) -> str | None:
    """A digest of a file, or of what a folder has of a kind; of the hub the name."""
    if spec is None or spec.startswith(HUB):
        return spec
    path = Path(spec)
    return digest([packed(path / f"{kind}.jsonl" if path.is_dir() else path)])


# Teachers.


@dataclass(frozen=True)
class Wanted:
    """A teacher that was asked for.

    Attributes:
        kind: "cross-encoder", "colbert" or "bm25".
        place: folder or hub id; None is the kind's default.
        weight: in the mean of several.
    """

    kind: str
    place: str | None
    weight: float

    @classmethod
    def of(cls, spec: str) -> Wanted:
        """KIND, KIND:PLACE, either with *WEIGHT behind it.

        Raises:
            TrainingError: it is none of these.
        """
        found = _SPEC.fullmatch(spec)
        try:
            weight = float(found["weight"] or 1) if found else math.nan
        except ValueError:
            weight = math.nan
        if found is None or not weight > 0 or (found["kind"] == "bm25" and found["place"]):
            raise TrainingError(
                f"--teacher {spec}: expected cross-encoder:PATH_OR_ID, colbert:PATH_OR_ID, colbert or bm25; "
                "behind it *WEIGHT, a number above 0, or nothing."
            )
        return cls(found["kind"], found["place"], weight)

    @property
    def name(self) -> str:
        """As it was written, without the weight."""
        return self.kind if self.place is None else f"{self.kind}:{self.place}"

    @property
    def settings(self) -> dict[str, Any]:
        """JSON types; of a folder its own name, since where it lies differs between machines."""
        folder = Path(self.place or "").expanduser()
        place = folder.resolve().name if self.place and folder.is_dir() else self.place
        return {"kind": self.kind, "place": place, "weight": self.weight}


def load_teacher(
    wanted: Wanted,
    corpus: Texts | None,
    *,
    max_length: int,
    precision: Precision | None,
    device: str | None,
    batch_tokens: int | None,
) -> Teacher:
    """The teacher itself.

    Raises:
        TrainingError: it cannot be had, or needs a corpus and has none.
        CheckpointError: it is no ColBERT.
    """
    if wanted.kind == "bm25":
        if corpus is None:
            raise TrainingError("bm25 counts a whole corpus, and none is named. Pass --corpus.")
        return BM25Teacher(corpus)
    if wanted.kind == "colbert":
        return ColBERTTeacher(wanted.place, precision=precision, device=device, tokens_per_batch=batch_tokens)
    return CrossEncoder(
        wanted.place or DEFAULT_CROSS_ENCODER,
        max_length=max_length,
        precision=precision,
        device=device,
        tokens_per_batch=batch_tokens,
    )


class Panel:
    """The teachers of a run, and how their scores become one."""

    def __init__(
        self, wanted: Sequence[Wanted], teachers: Sequence[Teacher], *, normalize: bool, bound: float | None
    ) -> None:
        """Take teachers as they were asked for; `normalize` and `bound` as in `combine`."""
        self.teachers = teachers
        self._wanted, self._normalize, self._bound = wanted, normalize, bound
        names = [each.name for each in wanted]
        if len(set(names)) < len(names):
            raise TrainingError(
                f"A teacher is named twice among {', '.join(names)}. Give it *WEIGHT instead."
            )

    @property
    def settings(self) -> list[dict[str, Any]]:
        """What scores depend on; JSON types."""
        pairs = zip(self._wanted, self.teachers, strict=True)
        return [{**wanted.settings, **teacher.settings} for wanted, teacher in pairs]

    def score(self, examples: Sequence[Example], advance: Advance) -> tuple[list[ScoreArray], Counter[str]]:
        """(n_docs,) scores of each tuple, and how many tuples each teacher scored alike.

        Args:
            examples: tuples with texts.
            advance: called as pairs get done, those of each teacher.

        Raises:
            TrainingError: a score is no finite number.
        """
        queries, documents = [e.query for e in examples], [e.documents for e in examples]
        alike: Counter[str] = Counter()
        of_teachers = []
        for wanted, teacher in zip(self._wanted, self.teachers, strict=True):
            found = teacher.score(queries, documents, advance)
            for example, scores in zip(examples, found, strict=True):
                check_finite(scores, example, wanted.name)
                alike[wanted.name] += int(len(scores) > 1 and scores.max() == scores.min())
            of_teachers.append(found)
        weights = [wanted.weight for wanted in self._wanted]
        combined = [
            combine(scores, weights, example.n_positives, normalize=self._normalize, bound=self._bound)
            for example, *scores in zip(examples, *of_teachers, strict=True)
        ]
        return combined, alike


def check_finite(scores: ScoreArray, example: Example, teacher: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        TrainingError: with the query and the document.
    """
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise TrainingError(
            f"{teacher} scores document {wrong[0] + 1} of query {example.id!r} with {scores[wrong[0]]}. Take "
            "--precision fp32, or look at that text and at the teacher's weights."
        )


def combine(
    scores: Sequence[ScoreArray],
    weights: Sequence[float],
    n_positives: int,
    *,
    normalize: bool,
    bound: float | None,
) -> ScoreArray:
    """The scores to store of one tuple.

    Args:
        scores: of each teacher, (n_docs,).
        weights: of each teacher.
        n_positives: so many leading documents are labelled as answers.
        normalize: stretch the result to [0, 1].
        bound: positives get at least the best negative's score plus this, after the teachers' min-max; None
            leaves them where the teachers put them.

    Returns:
        (n_docs,) float64: of a single teacher as they are where neither is asked for, else a weighted mean of
        min-max-normalised ones.
    """
    if len(scores) == 1 and not normalize and bound is None:
        return scores[0]
    mixed = mix(scores, weights)
    if bound is not None and 0 < n_positives < len(mixed):
        floor = mixed[n_positives:].max() + bound
        mixed = np.concatenate([np.maximum(mixed[:n_positives], floor), mixed[n_positives:]])
    return min_max(mixed) if normalize else mixed


# Progress.


class Bar:
    """Shows how far scoring has come: rows, and pairs a second."""

    def __init__(self, progress: Progress, n_rows: int, n_done: int) -> None:
        """Take a bar that is shown or not."""
        self._progress = progress
        self._task = progress.add_task("scoring", total=n_rows, completed=n_done, about="")
        self._started, self._pairs = time.monotonic(), 0

    def of_shard(self, n_rows: int, n_pairs: int) -> Callable[[int], None]:
        """What is told of pairs as they get done; n_pairs of them are n_rows."""

        def advance(n: int) -> None:
            self._progress.advance(self._task, n * n_rows / max(n_pairs, 1))

        return advance

    def shard_done(self, n: int, n_pairs: int) -> None:
        """Note a shard."""
        self._pairs += n_pairs
        rate = self._pairs / (time.monotonic() - self._started)
        self._progress.update(self._task, about=f"{rate:,.0f} pairs/s")
        if not self._progress.console.is_terminal:
            console.print(f"shard {n}: {n_pairs:,} pairs; {rate:,.0f} pairs/s", markup=False)


@contextmanager
def scoring_bar(worker: Worker, shards: Shards, todo: Sequence[int]) -> Iterator[Bar]:
    """A bar over a worker's rows; of torchrun's ranks the first shows its own."""
    n_rows = sum(len(shards.rows(n)) for n in worker.takes(len(shards)))
    n_left = sum(len(shards.rows(n)) for n in todo)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[about]}"),
        TimeRemainingColumn(),
    )
    hidden = worker.number > 0 and not worker.by_hand
    with Progress(*columns, console=console, disable=hidden) as progress:
        yield Bar(progress, n_rows, n_rows - n_left)


if __name__ == "__main__":
    run("score", main)
