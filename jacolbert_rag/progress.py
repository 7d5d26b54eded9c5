"""A bar of documents and their rate on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    total: int | None, *, show: bool, label: str = "documents"
) -> Iterator[Callable[[int], None]]:
    """Give a function that moves the bar on; without `show` it does nothing.

    Args:
        total: how many there are; None where nobody knows.
        show: whether there is a bar.
        label: what is counted.
    """
    if not show:
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
