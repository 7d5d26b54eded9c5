"""Averages the weights of checkpoints: all of them, those that help, the last few, or a running mean.

    python -m training.average --checkpoint DIR --checkpoint owner/model --out DIR
    python -m training.average --checkpoint DIR … --select greedy --dev BEIR_FOLDER --out DIR

Reads folders and hub ids in any format that the library loads, bare intermediates (config.json and
model.safetensors alone) among them; the tokenizer and the settings are of the first checkpoint that has them,
or of --tokenizer. Writes a checkpoint, recipe.json, and what was scored on the way. Started again, it scores
nothing twice; finished, it does nothing.

Source: Wortsman et al., 2022 (model soups); JaColBERTv2.5 (Clavié, 2024), section 3.9.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import Tensor

from jacolbert_rag.encode import checkpoint as checkpoints
from jacolbert_rag.encode import formats
from jacolbert_rag.encode.checkpoint import Checkpoint
from jacolbert_rag.encode.files import WEIGHTS_FILE, has_weights, read_json, resolve_folder
from jacolbert_rag.encode.model import ColBERT, WeightsMismatchError, load_backbone
from jacolbert_rag.encode.tokens import has_tokenizer
from jacolbert_rag.errors import CheckpointError
from training.dev import MEASURES, DevSet, Precision
from training.options import Config, Limit, StageName, TrainingError, console, run
from training.state import RECIPE_FILE, begin, claim, published, write_json

SCORES_FILE, GREEDY_FILE, SWEEP_FILE = "scores.json", "greedy.json", "sweep.json"
INTEGER_BUFFERS = ("position_ids", "token_type_ids")  # the reader has made floats of them
POOLER = ".pooler."
N_NAMED = 3  # tensors that a message names

Shapes = Mapping[str, tuple[int, ...]]
Weights = Mapping[str, Tensor]
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Input:
    """A checkpoint to average, looked at.

    Attributes:
        name: as the user named it.
        folder: where its files are.
        shapes: of its network's weights.
        unread: names of tensors in its files that the network has no place for.
        digest: 16 hex digits over the network's weights, whatever format they are stored in.
    """

    name: str
    folder: Path
    shapes: Shapes
    unread: frozenset[str]
    digest: str


@dataclass(frozen=True)
class Trial:
    """What greedy selection found of one checkpoint.

    Attributes:
        row: which.
        alone: its own score.
        together: that of the mean of it and those kept before it.
        kept: whether that was no lower than without it.
    """

    row: int
    alone: float
    together: float
    kept: bool


def main(
    checkpoint: Annotated[list[str], typer.Option(help="folder or hub id; repeated, in order")],
    out: Annotated[Path, typer.Option(help="folder of the averaged checkpoint")],
    tokenizer: Annotated[
        str | None, typer.Option(help="folder or hub id that has it, where no checkpoint has")
    ] = None,
    select: Annotated[
        Literal["all", "greedy"], typer.Option(help="greedy: only those that do not lower the dev score")
    ] = "all",
    sweep: Annotated[bool, typer.Option(help="score the means of the last 1, 2, …; write the best")] = False,
    ema: Annotated[
        float, typer.Option(min=0, max=1, help="decay of a running mean, in the order given; 0 is off")
    ] = 0.0,
    dev: Annotated[Path | None, typer.Option(help="BEIR folder to score on")] = None,
    dev_split: str = "dev",
    dev_limit: Annotated[int | None, typer.Option(min=1, help="queries of it")] = None,
    measure: Annotated[Literal["nDCG@10", "MRR@10"], typer.Option(help="what decides")] = "nDCG@10",
    precision: Annotated[Precision, typer.Option(help="of the network while scoring")] = "fp32",
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="of the stored weights")] = "float32",
    device: str | None = None,
    limit: Limit = None,
    config: Config = None,
    stage: StageName = None,
) -> None:
    """Average checkpoints."""
    refuse_contradictions(select, sweep, ema, dev)
    n_queries = min((n for n in (dev_limit, limit) if n is not None), default=None)
    with claim(out):
        before = finished_recipe(out)
        names = {each["name"]: each["weights"] for each in before.get("checkpoints", [])}
        inputs = [look_at(name, known=names.get(name)) for name in checkpoint]
        dev_set = None if dev is None or before else DevSet(dev, dev_split, limit=n_queries)
        recipe = {
            "checkpoints": [{"name": each.name, "weights": each.digest} for each in inputs],
            "tokenizer": tokenizer, "select": select, "sweep": sweep, "ema": ema,
            "dev": None if dev is None else str(dev), "dev_split": dev_split, "dev_limit": n_queries,
            "dev_digest": dev_set.digest if dev_set is not None else before.get("dev_digest"),
            "measure": measure, "precision": precision, "dtype": dtype,
        }  # fmt: skip
        if before:
            begin(out, recipe)
            console.print(f"{out} is finished: nothing to do.", markup=False)
            return
        for line in check_alike(inputs):
            console.print(line, markup=False)
        loaded = load_base(inputs, tokenizer)
        begin(out, recipe)

        def averaged(rows: Sequence[int]) -> dict[str, Tensor]:
            weights = (read(inputs[row].folder)[0] for row in rows)
            return running_mean(weights, ema) if ema else mean(weights)

        def score(rows: Sequence[int]) -> Scores:
            assert dev_set is not None
            place(loaded.model, averaged(rows))
            where = device or ("cuda" if torch.cuda.is_available() else "cpu")
            found = dev_set.score(loaded.model, loaded.tokenizer, device=where, precision=precision)
            which = inputs[rows[-1]].name if len(rows) == 1 else f"the mean of {len(rows)}"
            shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            console.print(f"{which}: {shown}", markup=False)
            return found

        def scored(rows: Sequence[int]) -> Scores:
            return remembered(out / SCORES_FILE, rows, score)

        rows: Sequence[int] = range(len(inputs))
        if select == "greedy":
            trials = greedy(len(inputs), lambda some: scored(some)[measure])
            rows = sorted(trial.row for trial in trials if trial.kept)
            write_greedy(out / GREEDY_FILE, trials, inputs, measure)
        elif sweep:
            tails = [range(len(inputs) - n, len(inputs)) for n in range(1, len(inputs) + 1)]
            values = [scored(tail) for tail in tails]
            # Of equal scores the mean of more: it leans less on the dev set's chance.
            n_best = max(range(len(tails)), key=lambda i: (values[i][measure], i))
            rows = tails[n_best]
            write_sweep(out / SWEEP_FILE, values, inputs, measure)
        elif dev_set is not None:
            scored(rows)
        place(loaded.model, averaged(rows))
        with published(out, WEIGHTS_FILE) as new:
            checkpoints.save(new, loaded.model, loaded.tokenizer, dtype=getattr(torch, dtype))
    console.print(f"The mean of {len(rows)} of {len(inputs)} checkpoints is written to {out}.", markup=False)


# Means.


def mean(state_dicts: Iterable[Weights]) -> dict[str, Tensor]:
    """The mean of each tensor, float32.

    Sums are taken in float64, in which those of float32 numbers are exact or nearly so: copies of one
    checkpoint give its very bits again. One state dict is looked at after the other, so memory is that of a
    float64 and a float32 copy of the weights. Integer tensors, which count positions, are left out.

    Args:
        state_dicts: at least one; all of the same names and shapes.

    Raises:
        TrainingError: names or shapes differ.
    """
    totals: dict[str, Tensor] = {}
    n = 0
    for weights in _alike(state_dicts):
        n += 1
        for key, value in weights.items():
            totals[key] = totals[key].add_(value) if key in totals else value.to(torch.float64, copy=True)
    return {key: (totals.pop(key) / n).float() for key in list(totals)}


def running_mean(state_dicts: Iterable[Weights], decay: float) -> dict[str, Tensor]:
    """An exponential running mean over state dicts in order: m = decay * m + (1 - decay) * w, float32.

    It begins with the first, and is not corrected for that. Otherwise as `mean`.

    Args:
        state_dicts: at least one; all of the same names and shapes.
        decay: the share of the mean so far, from 0 (the last one alone) to below 1.

    Raises:
        TrainingError: names or shapes differ.
    """
    means: dict[str, Tensor] = {}
    for weights in _alike(state_dicts):
        for key, value in weights.items():
            if key in means:
                means[key].mul_(decay).add_(value, alpha=1 - decay)
            else:
                means[key] = value.to(torch.float64, copy=True)
    return {key: means.pop(key).float() for key in list(means)}


def _alike(state_dicts: Iterable[Weights]) -> Iterator[Weights]:
    """State dicts without integer tensors, each held to the names and shapes of the first."""
    first: Shapes | None = None
    for n, weights in enumerate(state_dicts, start=1):
        floats = {key: value for key, value in weights.items() if value.is_floating_point()}
        shapes = shapes_of(floats)
        first = shapes if first is None else first
        if found := differences("the first", first, f"number {n}", shapes):
            raise TrainingError(f"State dicts of several networks cannot be averaged: {found}.")
        yield floats


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {key: tuple(value.shape) for key, value in weights.items()}


def differences(one: str, of_one: Shapes, other: str, of_other: Shapes) -> str:
    """In words, what two networks of these names differ in; empty where they are alike."""
    parts = []
    for has, lacks, names in (
        (one, other, of_one.keys() - of_other.keys()),
        (other, one, of_other.keys() - of_one.keys()),
    ):
        if names:
            parts.append(f"{lacks} lacks {_some(names)}, which {has} has")
    wrong = [key for key in sorted(of_one.keys() & of_other.keys()) if of_one[key] != of_other[key]]
    if wrong:
        key = wrong[0]
        more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        parts.append(f"{key} is {of_one[key]} in {one} and {of_other[key]} in {other}{more}")
    return "; ".join(parts)


def _some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - N_NAMED} more" if len(listed) > N_NAMED else ""
    return ", ".join(listed[:N_NAMED]) + more


# Which checkpoints.


def greedy(n: int, score: Callable[[Sequence[int]], float]) -> list[Trial]:
    """Greedy soup (Wortsman et al., 2022, recipe 1): best first, keep what does not lower the mean's score.

    Args:
        n: checkpoints there are.
        score: rising rows -> the score of these checkpoints' mean.

    Returns:
        One trial a checkpoint, in the order of their own scores; the first is kept.
    """
    alone = [score([row]) for row in range(n)]
    trials: list[Trial] = []
    kept: list[int] = []
    best = float("-inf")
    for row in sorted(range(n), key=lambda row: -alone[row]):
        together = score(sorted([*kept, row])) if kept else alone[row]
        helps = together >= best
        trials.append(Trial(row, alone[row], together, kept=helps))
        if helps:
            kept, best = [*kept, row], together
    return trials


def remembered(path: Path, rows: Sequence[int], score: Callable[[Sequence[int]], Scores]) -> Scores:
    """The scores of the mean of some checkpoints, from a file where they are known, else written to it."""
    known = read_json(path)
    key = ",".join(map(str, rows))
    if key not in known:
        known[key] = dict(score(rows))
        write_json(path, known)
    found: Scores = known[key]
    return found


# Files.


def refuse_contradictions(select: str, sweep: bool, ema: float, dev: Path | None) -> None:
    """Refuse options that do not go together.

    Raises:
        TrainingError: naming them.
    """
    ways = [name for name, asked in (("--select greedy", select == "greedy"), ("--sweep", sweep)) if asked]
    if len(ways) + (ema != 0) > 1:
        both = " and ".join([*ways, *(["--ema"] if ema else [])])
        raise TrainingError(f"{both} are different means. Ask for one, and for the others in other folders.")
    if ways and dev is None:
        raise TrainingError(f"{ways[0]} needs something to score on. Name a BEIR folder with --dev.")
    if ema == 1:
        raise TrainingError("--ema 1 is the first checkpoint alone. Take a decay below 1, such as 0.9.")


def finished_recipe(out: Path) -> dict[str, Any]:
    """The settings of a finished folder; empty where it is not.

    Raises:
        TrainingError: there is a checkpoint of other origin.
    """
    if not (out / WEIGHTS_FILE).exists():
        return {}
    recipe = read_json(out / RECIPE_FILE)
    if "checkpoints" not in recipe:
        raise TrainingError(f"{out} holds a checkpoint that was not averaged here. Name another --out.")
    return recipe


def look_at(name: str, *, known: str | None = None) -> Input:
    """Read a checkpoint once, to know what it holds.

    Args:
        name: folder or hub id.
        known: its digest in a finished folder, for which it need no longer be there.

    Raises:
        CheckpointError: it cannot be read, or is no ColBERT.
        TrainingError: its weights do not fit its config.json, or one is not finite.
    """
    try:
        folder = resolve_folder(name, is_complete=lambda f: has_weights(f) or formats.is_complete(f))
        weights, unread = read(folder)
    except CheckpointError:
        if known is None:
            raise
        return Input(name, Path(), {}, frozenset(), known)
    total = hashlib.blake2b(digest_size=8)
    for key, value in sorted(weights.items()):
        if not torch.isfinite(value).all():
            raise TrainingError(f"{name}: {key} has values that are no numbers. Leave that checkpoint out.")
        total.update(f"{key} {tuple(value.shape)}".encode())
        total.update(value.numpy().data)
    return Input(name, folder, shapes_of(weights), unread, total.hexdigest())


def read(folder: Path) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The weights of a checkpoint's network as float32, and names of tensors that it has no place for.

    Names are those of `ColBERT`, whatever the format: "backbone.…" and "projection.N.…". Position ids, which
    some files hold as a tensor, are named nowhere.

    Raises:
        CheckpointError: a file cannot be read, or this is no ColBERT.
        TrainingError: the weights do not fit config.json.
    """
    found = formats.read(folder)
    try:
        backbone = load_backbone(checkpoints.read_backbone_config(found.backbone_folder), found.weights)
    except WeightsMismatchError as error:
        lacks = f"lack {_some(error.missing)}" if error.missing else ""
        wrong = f"have another shape in {_some(error.wrong)}" if error.wrong else ""
        raise TrainingError(
            f"{folder}: the weights {' and '.join(filter(None, (lacks, wrong)))}, by its config.json. Take "
            "both files from the same checkpoint."
        ) from error
    own = (*backbone.state_dict(), *INTEGER_BUFFERS)
    unread = frozenset(key for key in found.weights if not key.endswith(own))
    return ColBERT(backbone, found.projection).state_dict(), unread


def check_alike(inputs: Sequence[Input]) -> list[str]:
    """Hold all checkpoints to the first.

    Returns:
        What is left out of the mean, a line each.

    Raises:
        TrainingError: two are of different networks.
    """
    first = inputs[0]
    for other in inputs[1:]:
        found = differences(first.name, first.shapes, other.name, other.shapes) or differences(
            first.name, _strange(first), other.name, _strange(other)
        )
        if found:
            raise TrainingError(
                f"Checkpoints of different networks cannot be averaged: {found}. Name those of one run, or "
                "of runs that began with one checkpoint."
            )
    unread = frozenset[str]().union(*(each.unread for each in inputs))
    n_having = sum(bool(each.unread) for each in inputs)
    if not unread:
        return []
    return [
        f"Left out, since a ColBERT does not read it: {_some(unread)} ({n_having} of {len(inputs)} have it)."
    ]


def _strange(of: Input) -> Shapes:
    """Tensors that the network has no place for, but for the pooler that some libraries save with a BERT."""
    return {key: () for key in of.unread if POOLER not in f".{key}"}


def load_base(inputs: Sequence[Input], tokenizer: str | None) -> Checkpoint:
    """The network that means are put into, with the tokenizer and the settings to write.

    Raises:
        TrainingError: nothing names a tokenizer.
    """
    base = next((each for each in inputs if formats.is_complete(each.folder)), inputs[0])
    if tokenizer is None:
        giver = next((each for each in inputs if _has_tokenizer(each.folder)), None)
        if giver is None:
            raise TrainingError(
                f"None of the {len(inputs)} checkpoints has a tokenizer, as bare intermediates do not. Name "
                "one with --tokenizer, such as bclavie/JaColBERT for those of JaColBERTv2.5."
            )
        tokenizer = None if giver is base else str(giver.folder)
    loaded = checkpoints.load(base.folder, tokenizer=tokenizer)
    if formats.METADATA_FILE not in loaded.sources.values() and loaded.format == "HF_ColBERT":
        console.print(
            f"No checkpoint has {formats.METADATA_FILE}: lengths and markers are the library's defaults.",
            markup=False,
        )
    return loaded


def _has_tokenizer(folder: Path) -> bool:
    return any(has_tokenizer(place) for place in (folder, *folder.glob("*_Transformer")))


def place(model: ColBERT, weights: Weights) -> None:
    """Put weights into a network, in place; what they do not name stays."""
    model.load_state_dict({**model.state_dict(), **weights})


def write_greedy(path: Path, trials: Sequence[Trial], inputs: Sequence[Input], measure: str) -> None:
    """Write and show which checkpoints were kept, and by what."""
    rows = [
        {"checkpoint": inputs[t.row].name, "alone": t.alone, "together": t.together, "kept": t.kept}
        for t in trials
    ]
    write_json(path, {"measure": measure, "trials": rows})
    show(
        ["checkpoint", measure, "mean with it", "kept"],
        [[inputs[t.row].name, t.alone, t.together, "yes" if t.kept else "no"] for t in trials],
    )


def write_sweep(path: Path, values: Sequence[Scores], inputs: Sequence[Input], measure: str) -> None:
    """Write and show the scores of the means of the last 1, 2, … checkpoints."""
    rows: list[dict[str, Any]] = [
        {"n": n, "from": inputs[-n].name, **scores} for n, scores in enumerate(values, start=1)
    ]
    write_json(path, {"measure": measure, "means": rows})
    show(["last", "from", *MEASURES], [list(row.values()) for row in rows])


def show(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; names are never read as markup."""
    table = Table(*head, box=SIMPLE_HEAD)
    for row in rows:
        cells = (f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row)
        table.add_row(*map(Text, cells))
    console.print(table)


if __name__ == "__main__":
    run("average", main)
