"""A set of variants of a training stage, as its file has it.

    question = "Which loss?"
    source = "JaColBERTv2.5, Table 3"
    recipe = "../mini.toml"         # from which all variants have their settings; --config names another
    stage = "distill"               # of that recipe, whose step is distill
    dev = ["${OUT}/pairs/held@train"]       # BEIR folders and splits to score on; ${…} as in that recipe
    n-checkpoints = 10              # to write while training, the last one among them; for averages
    [options]                       # of training.distill, in place of the stage's
    kl = 1.0
    [[variant]]                     # the first is what the others are compared with
    name = "MarginMSE"
    paper = [0.583, 0.827, 0.672, 0.699]    # JQaRA nDCG@10, MRR@10; MIRACL-small-ja nDCG@10, Recall@5
    options.kl = 0.0
    search = "none"                 # rule of query augmentation while searching; else as it is stored
    average = { last = 4 }          # score the mean of so many last checkpoints; more keys: training.average
    use = "ema"                     # score that folder of the run

Options of a variant win over its set's, and these over the stage's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import distill
from training.data import HUB, packed, settings_of
from training.options import TrainingError, filled, find_stage, read_paths

FOLDER = Path(__file__).parent / "recipes" / "ablations"
# What a study sets itself.
OWN_OPTIONS = ("out", "dev", "dev_split", "dev_every", "dev_limit", "steps", "seed", "limit", "device")


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: unique in its set.
        options: of training.distill, those of the stage among them; `data` as tables.
        changed: those of them that are the variant's own, as the file has them: ${NAME}s are not filled in.
        search: rule of query augmentation to score with; None is the stored one.
        average: settings of training.average, and "last"; None scores the run's last checkpoint.
        use: folder within the run's; "" is the run's own.
        paper: values of PAPER_MEASURES, or None.
    """

    name: str
    options: Mapping[str, Any]
    changed: Mapping[str, Any]
    search: str | None
    average: Mapping[str, Any] | None
    use: str
    paper: Sequence[float] | None

    @property
    def missing(self) -> str | None:
        """The first file of tuples that is not there."""
        names = [table["tuples"] for table in self.options["data"]]
        files = [Path(name) for name in names if not name.startswith(HUB)]
        return next((str(file) for file in files if not packed(file).exists()), None)


@dataclass(frozen=True)
class Plan:
    """A set of variants.

    Attributes:
        name: of its file, without .toml.
        question: what it asks.
        source: where the paper asks the same.
        recipe: whose stage all variants have in common.
        stage: its name.
        options: of training.distill that all have in common, as the files have them.
        dev: folders, each with "@" and a split.
        n_checkpoints: of each run, the last one among them; 0 is the last one alone.
        variants: the first is what others are compared with.
    """

    name: str
    question: str
    source: str
    recipe: Path
    stage: str
    options: Mapping[str, Any]
    dev: Sequence[str]
    n_checkpoints: int
    variants: Sequence[Variant]


def set_file(name: str) -> Path:
    """The file of a set.

    Raises:
        TrainingError: there is none.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise TrainingError(f"There is no set {name}. Name a .toml file, or one of: {known}.")
    return path


def read_set(
    path: Path, recipe: Path | None = None, stage: str | None = None, dev: Sequence[str] | None = None
) -> Plan:
    """A set from its file.

    Args:
        path: of the set.
        recipe: in place of the set's.
        stage: in place of the set's.
        dev: in place of the set's.

    Raises:
        TrainingError: it cannot be read, or does not fit the recipe or training.distill.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path} cannot be read ({error}).") from error
    needed = {"question", "source", "recipe", "stage", "dev", "variant"}
    if lacking := sorted(needed - content.keys()):
        raise TrainingError(f"{path} lacks {', '.join(lacking)}. training/variants.py shows what a set has.")
    recipe = recipe or (path.parent / content["recipe"]).resolve()
    stage = stage or str(content["stage"])
    shared = find_stage(recipe, "distill", stage)
    known = filled(content, read_paths(recipe), str(path))
    base = {**shared.options, **by_parameter(known.get("options", {}))}
    variants = [
        _variant(table, by_parameter(raw.get("options", {})), base)
        for table, raw in zip(known["variant"], content["variant"], strict=True)
    ]
    plan = Plan(
        name=path.stem,
        question=content["question"],
        source=content["source"],
        recipe=recipe,
        stage=stage,
        options={
            **{key: value for key, value in shared.written.items() if key not in OWN_OPTIONS},
            **by_parameter(content.get("options", {})),
        },
        dev=dev or known["dev"],
        n_checkpoints=int(content.get("n-checkpoints", 0)),
        variants=variants,
    )
    _check(plan, path)
    return plan


def _check(plan: Plan, path: Path) -> None:
    """Refuse what cannot be run, before anything is."""
    names = [variant.name for variant in plan.variants]
    if len(set(names)) < len(names):
        raise TrainingError(f"{path}: two variants have one name. Give each its own.")
    known = distill.main.__annotations__.keys()
    for variant in plan.variants:
        where = f"{path}, {variant.name}"
        if unknown := sorted(variant.options.keys() - known):
            raise TrainingError(f"{where}: training.distill has no {', '.join(unknown)}.")
        if own := sorted(variant.changed.keys() & set(OWN_OPTIONS)):
            raise TrainingError(f"{where}: {', '.join(own)} cannot be varied: a study sets it for all.")
        if variant.average is not None and not 1 <= variant.average.get("last", 0) <= plan.n_checkpoints:
            raise TrainingError(
                f"{where}: average.last is {variant.average.get('last')}; expected 1 to n-checkpoints, "
                f"{plan.n_checkpoints}."
            )


def _variant(table: Mapping[str, Any], changed: Mapping[str, Any], base: Mapping[str, Any]) -> Variant:
    own = {**base, **by_parameter(table.get("options", {}))}
    options = {key: value for key, value in own.items() if key not in OWN_OPTIONS}
    options["data"] = [settings_of(spec) if isinstance(spec, str) else spec for spec in options["data"]]
    return Variant(
        name=str(table["name"]),
        options=options,
        changed=changed,
        search=table.get("search"),
        average=table.get("average"),
        use=table.get("use", ""),
        paper=table.get("paper"),
    )


def by_parameter(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they are named on the command line -> by a function's parameters."""
    return {key.replace("-", "_"): value for key, value in options.items()}
