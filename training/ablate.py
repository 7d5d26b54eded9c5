"""Trains variants of a stage at equal budget, and says which of their differences are more than chance.

    python -m training.ablate loss schedule --out runs/ablations --seeds 3 --minutes 5
    python -m training.ablate loss --config RECIPE.toml --stage main --dev FOLDER@dev --out DIR --steps 5000

A set is a file of training/recipes/ablations, named without .toml, or another: training/variants.py shows
what it has. Every variant takes the same number of steps, and those of the same options share a run. Writes
OUT/NAME.json and OUT/NAME.md; started again, it goes on where it was, and what has a score is not run again.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.files import WEIGHTS_FILE
from jacolbert_rag.errors import JaColBERTError
from training import average, distill
from training.comparison import Scores, compared, markdown
from training.data import packed
from training.dev import DevSet
from training.options import Limit, TrainingError, as_option, console, limited, run
from training.state import claim, digest, write_json, write_whole
from training.variants import Plan, Variant, by_parameter, read_set, set_file

FIRST_SEED = 12345  # that of distill; each further run adds 1
MEASURED_STEPS = 20  # whose time is taken, to find how many fit into --minutes


def main(
    names: Annotated[list[str], typer.Argument(help="sets: names or .toml files", metavar="NAME…")],
    out: Annotated[Path, typer.Option(help="folder of tables and runs")],
    config: Annotated[Path | None, typer.Option(help="recipe whose stage is varied; else the set's")] = None,
    stage: Annotated[str | None, typer.Option(help="that stage; else the set's")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="runs of each variant")] = 3,
    minutes: Annotated[float | None, typer.Option(min=0, help="of training, for the first variant")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="of each run, in place of --minutes")] = None,
    dev: Annotated[list[str] | None, typer.Option(help="FOLDER@SPLIT to score on; else the set's")] = None,
    dev_limit: Annotated[int | None, typer.Option(min=1, help="queries of each")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="to run, with the first; else all")] = None,
    keep: Annotated[bool, typer.Option(help="keep the models that were scored")] = False,
    device: str | None = None,
    limit: Limit = None,
) -> None:
    """Compare variants of a training stage."""
    if (minutes is None) == (steps is None):
        raise TrainingError("Say how long each run is: pass either --minutes, such as 5, or --steps.")
    wanted = {
        "out": out, "config": config, "stage": stage, "seeds": seeds, "minutes": minutes, "steps": steps,
        "dev": dev, "dev_limit": dev_limit, "variant": variant, "device": device, "limit": limit,
    }  # fmt: skip
    plans = [read_set(set_file(name), config, stage, dev) for name in names]
    for name, plan in zip(names, plans, strict=True):
        line = ["python", "-m", "training.ablate", name, *arguments(wanted)]
        study = Study(plan, out, only=variant, device=device, limit=limit, dev_limit=dev_limit, keep=keep)
        study.run(seeds=seeds, minutes=minutes, steps=steps, command=shlex.join(line))


class Study:
    """Runs and scores the variants of a set, in a folder."""

    def __init__(
        self,
        plan: Plan,
        out: Path,
        *,
        only: Sequence[str] | None,
        device: str | None,
        limit: int | None,
        dev_limit: int | None,
        keep: bool,
    ) -> None:
        """Nothing is read yet.

        Args:
            plan: the set.
            out: folder of tables; runs lie in its folder of the set's name.
            only: names of variants to run, beside the first, which others are compared with; None is all.
            device: of training and scoring; None is CUDA where there is one.
            limit: examples of each source; None is all.
            dev_limit: queries of each dev set; None is all.
            keep: leave the models where they are.

        Raises:
            TrainingError: a name of `only` is no variant's.
        """
        names = [each.name for each in plan.variants]
        if unknown := sorted({*(only or ())} - {*names}):
            raise TrainingError(f"{plan.name} has no variant {unknown[0]!r}. There are: {'; '.join(names)}.")
        self.plan, self.out, self.folder = plan, out, out / plan.name
        self._device, self._limit, self._keep = device, limit, keep
        limits = [n for n in (limit, dev_limit) if n is not None]
        self._dev_limit = min(limits, default=None)
        self._dev: dict[str, DevSet] = {}
        # Variant -> why it is left out. A file that comes while others run is not waited for: a variant with
        # fewer seeds than the first could not be compared with it.
        self._not_run = {
            each.name: f"{Path(each.missing).name} is missing" for each in plan.variants if each.missing
        }
        if only:
            self._not_run |= {name: "not asked for" for name in names[1:] if name not in only}

    def run(self, *, seeds: int, minutes: float | None, steps: int | None, command: str) -> None:
        """Run what has no score yet, and write the tables after each seed.

        Args:
            seeds: runs of each variant.
            minutes: of each run's training, if `steps` is None.
            steps: of each run.
            command: the command line, for the tables.

        Raises:
            TrainingError: the first variant cannot be run, or a run fails.
        """
        with claim(self.folder):
            first, *_ = self.plan.variants
            if first.missing:
                raise TrainingError(
                    f"{first.missing} of {first.name!r} is missing. Run the stages of "
                    f"{self.plan.recipe.name} that write it."
                )
            for name in self.plan.dev:
                place, at, split = name.rpartition("@")
                key = f"{Path(place).name}@{split}"
                if not at or key in self._dev:
                    raise TrainingError(f"dev {name!r}: expected FOLDER@SPLIT, each of another name.")
                self._dev[key] = DevSet(Path(place), split, limit=self._dev_limit)
            seconds = None
            if steps is None:
                assert minutes is not None
                seconds = self.seconds_per_step(first)
                steps = max(1, round(60 * minutes / seconds))
                console.print(
                    f"{seconds:.3f} s a step: {steps:,} steps in {minutes} minutes",
                    markup=False,
                    soft_wrap=True,
                )
            steps = limited(steps, self._limit)
            if steps < self.plan.n_checkpoints:
                raise TrainingError(
                    f"{steps} steps are too few for {self.plan.n_checkpoints} checkpoints. Pass more --steps."
                )
            about = {"command": command, "minutes": minutes, "seconds_per_step": seconds, "steps": steps}
            found: dict[str, list[Scores]] = {variant.name: [] for variant in self.plan.variants}
            for n in range(seeds):
                for name, scores in self.one_seed(FIRST_SEED + n, steps).items():
                    found[name].append(scores)
                result = self.result(about, found)
                write_json(self.out / f"{self.plan.name}.json", result)
                write_whole(self.out / f"{self.plan.name}.md", markdown(result))
        console.print(f"Tables: {self.out / self.plan.name}.json and .md", markup=False, soft_wrap=True)

    def one_seed(self, seed: int, steps: int) -> dict[str, Scores]:
        """Variant -> scores of its run with this seed.

        Variants whose tuples are missing are left out, and so are those whose run fails, unless that is the
        first.
        """
        groups: dict[str, list[tuple[Variant, Path]]] = {}
        options: dict[str, dict[str, Any]] = {}
        found: dict[str, Scores] = {}
        for variant in self.plan.variants:
            if variant.name in self._not_run:
                continue
            own = self.options_of(variant, seed, steps)
            key = _digest_of([own, self.inputs_of(variant)])
            dev = {name: each.digest for name, each in self._dev.items()}
            scored = [key, variant.search, variant.average, variant.use, dev, self._dev_limit]
            path = self.folder / "scores" / f"{_digest_of(scored)}.json"
            if path.exists():
                found[variant.name] = json.loads(path.read_text(encoding="utf-8"))["scores"]
            else:
                options[key] = own
                groups.setdefault(key, []).append((variant, path))
        for key, variants in groups.items():
            names = [variant.name for variant, _ in variants]
            console.print(f"{self.plan.name}, seed {seed}: {'; '.join(names)}", markup=False, soft_wrap=True)
            model = self.folder / "runs" / key
            try:
                call("distill", distill.main, {**options[key], "out": model})
                for variant, path in variants:
                    scores = self.scores_of(model, variant)
                    row = {"variant": variant.name, "seed": seed, "options": options[key], "scores": scores}
                    write_json(path, row)
                    found[variant.name] = scores
            except JaColBERTError as error:
                if self.plan.variants[0].name in names:
                    raise
                console.print(f"not run: {error}", style="red", markup=False, soft_wrap=True)
                self._not_run.update(dict.fromkeys(names, str(error)))
            if not self._keep:
                shutil.rmtree(model, ignore_errors=True)
        return found

    def options_of(self, variant: Variant, seed: int, steps: int) -> dict[str, Any]:
        """Options of training.distill for one run, all but its folder."""
        n = self.plan.n_checkpoints
        own: dict[str, Any] = {"steps": steps, "seed": seed, "limit": self._limit, "device": self._device}
        own |= {
            "checkpoint_every": steps // n if n else 0,
            "data": as_option(variant.options["data"]),
        }
        return {**variant.options, **own}

    def inputs_of(self, variant: Variant) -> dict[str, str]:
        """Name -> digest of the local files that a run begins with: made anew, they are other runs."""
        files = [Path(variant.options["base"]) / WEIGHTS_FILE]
        files += [packed(Path(table["tuples"])) for table in variant.options["data"]]
        return {str(file): digest([file]) for file in files if file.is_file()}

    def scores_of(self, model: Path, variant: Variant) -> Scores:
        """Scores of a finished run."""
        folder = model / variant.use
        if variant.average is not None:
            folder = model / "averages" / _digest_of(variant.average)
            settings = dict(variant.average)
            last = [model / distill.CHECKPOINTS_FOLDER / f"step-{n}" for n in checkpoints_of(model)]
            chosen = [*last, model][-settings.pop("last") :]
            own = {"checkpoint": chosen, "out": folder, "device": self._device, **by_parameter(settings)}
            call("average", average.main, own)
        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        loaded = checkpoint.load(
            folder, overrides={"query_length": variant.search} if variant.search else None
        )
        return {
            name: each.score(loaded.model, loaded.tokenizer, device=device)
            for name, each in self._dev.items()
        }

    def seconds_per_step(self, variant: Variant) -> float:
        """Time of a step, measured once: that of a run less that of a run of one step.

        Of three runs the first bears what is done once a process, and is not counted. Where steps are so
        short that noise is longer, a tenth of the run is taken for them.
        """
        asked = [self.options_of(variant, FIRST_SEED, 1), self.inputs_of(variant)]
        path = self.folder / f"speed-{_digest_of(asked)}.json"
        if not path.exists():
            folder, seconds = self.folder / "speed", []
            for steps in (1, 1, 1 + MEASURED_STEPS):
                shutil.rmtree(folder, ignore_errors=True)
                started = time.monotonic()
                options = {**self.options_of(variant, FIRST_SEED, steps), "limit": None}
                call("distill", distill.main, {**options, "checkpoint_every": 0, "out": folder})
                seconds.append(time.monotonic() - started)
            shutil.rmtree(folder)
            each = max(seconds[2] - seconds[1], seconds[2] / 10) / MEASURED_STEPS
            write_json(path, {"seconds_per_step": each})
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds_per_step"])

    def result(self, about: Mapping[str, Any], found: Mapping[str, Sequence[Scores]]) -> dict[str, Any]:
        """What NAME.json holds."""
        first, *_ = self.plan.variants
        rows = []
        for variant in self.plan.variants:
            reason = self._not_run.get(variant.name)
            rows.append({
                "name": variant.name,
                "options": variant.changed,
                "search": variant.search,
                "average": variant.average,
                "use": variant.use,
                "paper": variant.paper,
                "not_run": reason,
                "scores": {} if reason else compared(found[variant.name], found[first.name]),
            })  # fmt: skip
        return {
            "set": self.plan.name,
            "question": self.plan.question,
            "source": self.plan.source,
            **about,
            "recipe": self.plan.recipe.name,
            "stage": self.plan.stage,
            "seeds": [FIRST_SEED + n for n in range(len(found[first.name]))],
            "limit": self._limit,
            "dev": {name: each.digest for name, each in self._dev.items()},
            "dev_limit": self._dev_limit,
            "options": self.plan.options,
            "variants": rows,
        }


def call(step: str, function: Callable[..., None], options: Mapping[str, Any]) -> None:
    """Run a step as its command line would.

    Raises:
        TrainingError: it refuses its options, or cannot be run.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name=step)(function)
    line = arguments(options)
    try:
        typer.main.get_command(app).main(line, prog_name=f"python -m training.{step}")
    except SystemExit as ended:
        if ended.code:
            command = shlex.join(["python", "-m", f"training.{step}", *line])
            raise TrainingError(f"This ended with status {ended.code}: {command}") from ended


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as on the command line; None is left out, a list is repeated."""
    line = []
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            line.append(flag if value else flag.replace("--", "--no-", 1))
        elif value is not None:
            for item in value if isinstance(value, list) else [value]:
                line += [flag, str(item)]
    return line


def checkpoints_of(model: Path) -> list[int]:
    """Steps of a run's intermediate checkpoints, rising."""
    folders = (model / distill.CHECKPOINTS_FOLDER).glob("step-*")
    return sorted(int(folder.name.removeprefix("step-")) for folder in folders)


def _digest_of(value: Any) -> str:
    """16 hex digits of JSON."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


if __name__ == "__main__":
    run("ablate", main)
