"""Lists a recipe's stages in order, one a line: step, tab, name; for training/recipes/run.sh.

python -m training.recipe training/recipes/mini.toml
python -m training.recipe training/recipes/mini.toml --path OUT
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.options import TrainingError, read_paths, read_recipe, run


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


if __name__ == "__main__":
    run("recipe", main)
