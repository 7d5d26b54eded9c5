"""Lists a recipe's stages in order, one a line: step, tab, name; for training/recipes/run.sh.

python -m training.recipe training/recipes/mini.toml
python -m training.recipe training/recipes/mini.toml --path OUT
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from training.options import TrainingError, read_recipe, run


def main(
    recipe: Annotated[Path, typer.Argument(help="TOML file")],
    path: Annotated[str | None, typer.Option(help="print this one of its [paths] instead")] = None,
) -> None:
    """Print what a shell needs to run a recipe."""
    stages = read_recipe(recipe)
    if path is not None:
        paths = read_paths(recipe)
        if path not in paths:
            raise TrainingError(f"{recipe} has no {path} in [paths]. Add it, with the folder to write to.")
        print(paths[path])
        return
    if not stages:
        raise TrainingError(f"{recipe} has no [[stage]], so there is nothing to run.")
    for stage in stages:
        print(stage.step, stage.name, sep="\t")


def read_paths(recipe: Path) -> dict[str, str]:
    """Name -> value of a recipe's [paths], as `read_recipe` has them: the environment wins.

    Args:
        recipe: a file that `read_recipe` takes.
    """
    content = tomllib.loads(recipe.read_text(encoding="utf-8"))
    paths: dict[str, str] = {}
    for name, value in content.get("paths", {}).items():
        paths[name] = os.environ.get(name) or Template(str(value)).substitute(paths)
    return paths


if __name__ == "__main__":
    run("recipe", main)
