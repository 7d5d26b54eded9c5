"""Settings of a step: its own defaults, then a stage of a recipe, then the command line.

A recipe is a TOML file of paths and stages in order:

    [paths]
    DATA = "data"                       # an environment variable of that name wins
    OUT = "runs/example"                # "${DATA}/runs" would do too: names from above are known

    [[stage]]
    name = "main"
    step = "distill"                    # python -m training.distill
    base = "${OUT}/pretrain"
    learning-rate = 3e-5                # as on the command line
"""

from __future__ import annotations

import os
import string
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from jacolbert_rag.errors import InvalidInputError, JaColBERTError

STEPS_PER_LIMIT = 40  # a run limited to n examples takes n / 40 steps at most

console = Console(stderr=True)


class TrainingError(InvalidInputError):
    """A step that cannot be run; the message says why, and what to do."""


@dataclass(frozen=True)
class Stage:
    """One step of a recipe.

    Attributes:
        name: unique in its recipe.
        step: the module of `training` that does it.
        options: parameter -> value, paths filled in; a list stands for an option that is repeated, a table
            for one that is written key=value,… on the command line.
        written: parameter -> value as the file has it.
    """

    name: str
    step: str
    options: Mapping[str, Any]
    written: Mapping[str, Any]


def read_recipe(path: Path) -> list[Stage]:
    """The stages of a recipe, in order.

    Raises:
        TrainingError: it cannot be read, or a stage lacks a name or a step.
    """
    paths, tables = read_paths(path), _content(path).get("stage", [])
    stages = []
    for n, table in enumerate(tables, start=1):
        if not isinstance(table.get("step"), str) or not isinstance(table.get("name"), str):
            raise TrainingError(f'{path}, stage {n}: "name" and "step" must be there, both strings.')
        written = {
            key.replace("-", "_"): value for key, value in table.items() if key not in ("step", "name")
        }
        where = f"{path}, stage {table['name']!r}"
        options = {key: filled(value, paths, f"{where}, {key}") for key, value in written.items()}
        stages.append(Stage(table["name"], table["step"], options, written))
    names = [stage.name for stage in stages]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TrainingError(f"{path} has two stages of the name {_listed(twice)}. Give each its own.")
    return stages


def read_paths(path: Path) -> dict[str, str]:
    """Name -> value of a recipe's [paths]; the environment wins.

    Raises:
        TrainingError: it cannot be read.
    """
    paths: dict[str, str] = {}
    for name, value in _content(path).get("paths", {}).items():
        paths[name] = os.environ.get(name) or str(filled(value, paths, f"{path}, {name}"))
    return paths


def _content(path: Path) -> dict[str, Any]:
    """A recipe as TOML has it: one table of paths, a list of tables of stages."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be read ({error}). Name a recipe, such as one of training/recipes."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is no TOML: {error}.") from error
    if unknown := set(content) - {"paths", "stage"}:
        raise TrainingError(f"{path} has {_listed(unknown)}; a recipe has [paths] and [[stage]] alone.")
    named, tables = content.get("paths", {}), content.get("stage", [])
    if not (
        isinstance(named, dict)
        and isinstance(tables, list)
        and all(isinstance(table, dict) for table in tables)
    ):
        raise TrainingError(
            f"{path}: expected one table [paths] and a [[stage]], in two brackets, for each step."
        )
    return content


def find_stage(path: Path, step: str, name: str | None) -> Stage:
    """The stage of a recipe that a step is to do.

    Raises:
        TrainingError: there is none, or several and no name.
    """
    stages = [stage for stage in read_recipe(path) if stage.step == step]
    if name is not None:
        stages = [stage for stage in stages if stage.name == name]
    if len(stages) != 1:
        found = _listed(stage.name for stage in read_recipe(path) if stage.step == step)
        asked = "" if name is None else f" of the name {name!r}"
        raise TrainingError(
            f"{path} has {len(stages)} stages{asked} with step = {step!r}; expected 1. "
            f"Name one with --stage; there are: {found or 'none'}."
        )
    return stages[0]


def filled(value: Any, paths: Mapping[str, str], where: str) -> Any:
    """A value, or what a list or a table holds, with its ${NAME}s filled in."""
    if isinstance(value, str):
        try:
            return string.Template(value).substitute(paths)
        except KeyError as error:
            raise TrainingError(f"{where}: {value!r} names {error}, which is not in [paths].") from error
        except ValueError as error:
            raise TrainingError(f"{where}: {value!r} has a $ without a ${{NAME}}; write it as $$.") from error
    if isinstance(value, list):
        return [filled(item, paths, where) for item in value]
    if isinstance(value, dict):
        return {key: filled(item, paths, where) for key, item in value.items()}
    return value


def as_option(value: Any) -> Any:
    """A value as the command line has it: of a table, key=value,…."""
    if isinstance(value, list):
        return [as_option(item) for item in value]
    return ",".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else value


def _listed(names: Any) -> str:
    return ", ".join(sorted(map(str, names)))


def _take(key: str) -> Callable[[typer.Context, Any], Any]:
    """A callback that sets the defaults as soon as --config and --stage are both known."""

    def callback(ctx: typer.Context, value: Any) -> Any:
        known = ctx.meta.setdefault(__name__, {})
        known[key] = value
        if len(known) == 2 and known["config"] is None and known["stage"] is not None:
            raise TrainingError(f"--stage {known['stage']} is of no recipe. Name one with --config.")
        if len(known) == 2 and known["config"] is not None:
            stage = find_stage(known["config"], str(ctx.command.name), known["stage"])
            own = {param.name for param in ctx.command.params} - {"config", "stage"}
            if unknown := set(stage.options) - own:
                raise TrainingError(
                    f"{known['config']}, stage {stage.name!r}: there is no {_listed(unknown)}. "
                    f"The step {stage.step!r} takes {_listed(name for name in own if name)}."
                )
            ctx.default_map = {name: as_option(value) for name, value in stage.options.items()}
        return value

    return callback


Config = Annotated[
    Path | None,
    typer.Option(help="recipe to take settings from", is_eager=True, callback=_take("config")),
]
StageName = Annotated[
    str | None,
    typer.Option(
        help="which of its stages, where several are of this step", is_eager=True, callback=_take("stage")
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="use so many examples only, and a fortieth as many steps: for a quick try"),
]


def run(step: str, main: Callable[..., None], args: list[str] | None = None) -> None:
    """Run a step's function as a command line; what a user can mend ends it with status 2 and a line.

    Args:
        step: its module's name, which stages of a recipe name too.
        main: its parameters are the options.
        args: for tests; None takes those of the process.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name=step)(main)
    try:
        typer.main.get_command(app).main(args, prog_name=f"python -m training.{step}")
    except JaColBERTError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(2) from error


def limited(steps: int, limit: int | None) -> int:
    """Steps of a run, fewer where its examples are limited."""
    return steps if limit is None else min(steps, max(1, limit // STEPS_PER_LIMIT))
