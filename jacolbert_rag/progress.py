"""A bar of documents and their rate on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = bool | Callable[[int], object]
"""Whether a bar is shown, or what is told how many are done since it was told last."""


@contextmanager
def progress_bar(
    total: int | None, *, show: Progress, label: str = "documents"
) -> Iterator[Callable[[int], object]]:
    """Give a function that moves the bar on; without `show` it does nothing.

    Args:
        total: how many there are, of 0 no bar is shown; None where nobody knows.
        show: whether there is a bar; a function is told in place of one.
        label: what is counted.
    """
    if callable(show):
        yield show
        return
    if not show or total == 0:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Things per second since the start."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.completed / task.elapsed:,.1f}/s" if task.elapsed else "")

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda n: bar.advance(task, n)
