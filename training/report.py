"""What a run says while it trains: a bar, metrics as JSON lines and for TensorBoard, a plot."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.options import console
from training.state import write_whole

METRICS_FILE, EVENTS_FOLDER, PLOT_FILE = "metrics.jsonl", "events", "plot.png"
SMOOTHING = 0.98  # of the loss that is shown


class Report:
    """Writes one row a step; a resumed run drops the rows of steps that it takes again."""

    def __init__(self, folder: Path, steps: int, done: int, *, quiet: bool = False) -> None:
        """Open a run's files.

        Args:
            folder: of the run.
            steps: of the whole run.
            done: steps that a state was saved of.
            quiet: write nothing and show nothing: for all ranks but the first.
        """
        self.folder, self.steps, self.done, self.quiet = folder, steps, done, quiet
        self._first, self._tokens, self._started = done, 0, time.monotonic()
        self._smooth: float | None = None
        self._events: Any = None

    def __enter__(self) -> Self:
        if self.quiet:
            return self
        kept = [row for row in read_metrics(self.folder) if row["step"] <= self.done]
        path = self.folder / METRICS_FILE
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = _event_writer(self.folder / EVENTS_FOLDER, self.done)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[about]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("training", total=self.steps, completed=self.done, about="")
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.quiet:
            return
        self._progress.stop()
        self._file.close()
        if self._events is not None:
            self._events.close()
        plot(self.folder)

    def step(self, step: int, *, loss: float, learning_rate: float, tokens: int, **more: float) -> None:
        """Note one step; `tokens` were read in it, padding left out."""
        if self.quiet:
            return
        self._tokens += tokens
        elapsed = time.monotonic() - self._started
        rate, tokens_per_s = (step - self._first) / elapsed, self._tokens / elapsed
        row = {"step": step, "loss": round(loss, 6), "learning_rate": learning_rate}
        row |= {"tokens_per_s": round(tokens_per_s), **more}
        self._write(row)
        self._smooth = loss if self._smooth is None else SMOOTHING * self._smooth + (1 - SMOOTHING) * loss
        about = f"loss {self._smooth:.4f}, {rate:.2f} steps/s, {tokens_per_s:,.0f} tokens/s"
        self._progress.update(self._task, completed=step, about=about)

    def note(self, step: int, **values: float) -> None:
        """Note figures that are not of each step, such as dev scores."""
        if not self.quiet:
            self._write({"step": step, **values})
            shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            self.say(f"step {step}: {shown}")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            self._progress.console.print(line, markup=False, soft_wrap=True)

    def flush(self) -> None:
        """Have what was written on disk, before a state that relies on it."""
        if not self.quiet:
            self._file.flush()
            if self._events is not None:
                self._events.flush()
            if not self._progress.console.is_terminal:
                fields = self._progress.tasks[0]
                self.say(f"step {int(fields.completed)}/{self.steps}: {fields.fields['about']}")

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        if self._events is not None:
            for name, value in row.items():
                if name != "step":
                    self._events.add_scalar(name, value, row["step"])


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics; one that a kill cut short is left out."""
    path = folder / METRICS_FILE
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def plot(folder: Path) -> None:
    """Draw the loss, and dev scores where there are some, over the steps."""
    rows = read_metrics(folder)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    if not losses:
        return
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and wants a display

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    steps, values = zip(*losses, strict=True)
    axes.plot(steps, values, color="0.8", linewidth=0.8)
    axes.plot(steps, _smoothed(list(values)), color="tab:blue", label="loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    names = sorted({name for row in rows if "loss" not in row for name in row if name != "step"})
    if names:
        other = axes.twinx()
        for i, name in enumerate(names):
            points = [(row["step"], row[name]) for row in rows if name in row]
            other.plot(*zip(*points, strict=True), marker="o", color=f"C{i + 1}", label=name)
        other.set_ylabel(", ".join(names))
        other.legend(loc="center right")
    new = folder / f".{PLOT_FILE}"
    figure.savefig(new, format="png", dpi=120)
    new.rename(folder / PLOT_FILE)


def _smoothed(values: list[float]) -> list[float]:
    """Running means, which begin with the first value."""
    smooth, mean = [], values[0]
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        smooth.append(mean)
    return smooth


def _event_writer(folder: Path, done: int) -> Any:
    """TensorBoard's writer; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        if error.name != "tensorboard":
            raise
        return None
    # Events of steps after `purge_step` are hidden: a resumed run writes them again.
    return SummaryWriter(str(folder), purge_step=done + 1)
