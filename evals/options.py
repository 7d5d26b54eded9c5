"""What the command lines have in common."""

from __future__ import annotations

from typing import Any, ClassVar

import typer
from typer.core import TyperCommand


class WithLists(TyperCommand):
    """A command some of whose options take several values: `--run A B` is `--run A --run B`."""

    lists: ClassVar[tuple[str, ...]] = ("--measures", "--run")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        return super().parse_args(ctx, spread(args, self.lists))


def spread(args: list[str], lists: tuple[str, ...]) -> list[str]:
    """Arguments with the name of a list before each of its values.

    A list ends at the next argument that begins with "-".
    """
    found: list[str] = []
    name, n_values = "", 0
    for arg in args:
        if arg.startswith("-") and arg != "-":
            name, n_values = (arg if arg in lists else ""), 0
            found.append(arg)
            continue
        if name and n_values:
            found.append(name)
        found.append(arg)
        n_values += 1
    return found


def fail(error: Exception) -> typer.Exit:
    """Say what is wrong on standard error; the status is 2, as for arguments that cannot be read."""
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(2)
