"""What a run leaves behind: metrics, TensorBoard's events, a plot, lines on the terminal."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import run_python
from training import report
from training.report import EVENTS_FOLDER, METRICS_FILE, PLOT_FILE, Report, plot, read_metrics


def train(
    folder: Path, done: int, until: int, *, steps: int = 20, loss: float = 0.0, quiet: bool = False
) -> None:
    """Steps of a run, with a dev score each fourth."""
    with Report(folder, steps, done, quiet=quiet) as told:
        for step in range(done + 1, until + 1):
            told.step(step, loss=loss + 1 / step, learning_rate=1e-3 * step, tokens=100, grad_norm=2.0)
            if step % 4 == 0:
                told.note(step, **{"nDCG@10 of jsquad": 0.05 * step})


def steps_of(folder: Path) -> list[int]:
    return [row["step"] for row in read_metrics(folder) if "loss" in row]


def events_of(folder: Path, name: str) -> dict[int, float]:
    found = EventAccumulator(str(folder / EVENTS_FOLDER))
    found.Reload()
    events = found.Scalars(name)
    assert len({event.step for event in events}) == len(events)
    return {event.step: event.value for event in events}


def test_a_row_for_each_step_and_note(tmp_path: Path) -> None:
    train(tmp_path, 0, 9)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9]
    assert rows[1].keys() == {"step", "loss", "learning_rate", "tokens_per_s", "grad_norm"}
    assert (rows[2]["loss"], rows[2]["learning_rate"], rows[2]["grad_norm"]) == (0.333333, 0.003, 2.0)
    assert rows[2]["tokens_per_s"] > 0
    assert rows[4] == {"step": 4, "nDCG@10 of jsquad": 0.2}
    assert (tmp_path / METRICS_FILE).read_text().count("\n") == 11


def test_events_can_be_read(tmp_path: Path) -> None:
    train(tmp_path, 0, 9)
    assert events_of(tmp_path, "loss") == pytest.approx({step: 1 / step for step in range(1, 10)}, abs=1e-6)
    assert events_of(tmp_path, "learning_rate") == pytest.approx({step: 1e-3 * step for step in range(1, 10)})
    found = EventAccumulator(str(tmp_path / EVENTS_FOLDER))
    found.Reload()
    (dev,) = (tag for tag in found.Tags()["scalars"] if tag.startswith("nDCG"))
    assert events_of(tmp_path, dev) == pytest.approx({4: 0.2, 8: 0.4})


def test_steps_that_are_taken_again_are_told_once(tmp_path: Path) -> None:
    train(tmp_path, 0, 13)  # and then killed; the last state is of step 8
    train(tmp_path, 8, 20, loss=5.0)
    assert steps_of(tmp_path) == list(range(1, 21))
    losses = {row["step"]: row["loss"] for row in read_metrics(tmp_path) if "loss" in row}
    assert losses[8] == pytest.approx(1 / 8)
    assert losses[9] == pytest.approx(5 + 1 / 9, abs=1e-5)
    noted = [row["step"] for row in read_metrics(tmp_path) if "loss" not in row]
    assert noted == [4, 8, 12, 16, 20]
    assert events_of(tmp_path, "loss") == pytest.approx(losses, abs=1e-5)


def test_a_run_that_begins_anew_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    train(tmp_path, 0, 6)
    train(tmp_path, 0, 3, loss=5.0)
    assert steps_of(tmp_path) == [1, 2, 3]
    assert events_of(tmp_path, "loss")[1] == pytest.approx(6)
    assert max(events_of(tmp_path, "loss")) == 3


@pytest.mark.parametrize("n_left", [1, 5, 40, -1])
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, n_left: int) -> None:
    train(tmp_path, 0, 7)
    path = tmp_path / METRICS_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:n_left])
    whole = n_left == -1  # but for its newline
    assert steps_of(tmp_path) == list(range(1, 8 if whole else 7))
    train(tmp_path, 6, 9)
    assert steps_of(tmp_path) == list(range(1, 10))
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_what_was_flushed_is_on_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    with Report(tmp_path, 20, 0) as told:
        for step in (1, 2, 3):
            told.step(step, loss=1.0, learning_rate=0.1, tokens=10)
        told.flush()
        assert steps_of(tmp_path) == [1, 2, 3]
        assert set(events_of(tmp_path, "loss")) == {1, 2, 3}
        assert not (tmp_path / PLOT_FILE).exists()


def test_a_run_that_fails_keeps_its_rows_and_its_error(tmp_path: Path) -> None:
    def fail() -> None:
        with Report(tmp_path, 20, 0) as told:
            told.step(1, loss=1.0, learning_rate=0.1, tokens=10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert steps_of(tmp_path) == [1]
    assert (tmp_path / PLOT_FILE).is_file()


def test_quiet_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, 0, 9, quiet=True)
    with Report(tmp_path, 20, 0, quiet=True) as told:
        told.flush()
        told.say("湖")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_the_plot(tmp_path: Path) -> None:
    from matplotlib.image import imread

    train(tmp_path, 0, 20)
    first = imread(tmp_path / PLOT_FILE)
    assert first.shape == (540, 960, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [EVENTS_FOLDER, METRICS_FILE, PLOT_FILE]
    )
    rows = [row for row in read_metrics(tmp_path) if "loss" in row]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot(tmp_path)
    assert (imread(tmp_path / PLOT_FILE) != first).any()  # without the dev scores


def test_there_is_no_plot_of_nothing(tmp_path: Path) -> None:
    plot(tmp_path)
    with Report(tmp_path, 20, 0) as told:
        told.note(0, **{"MRR@10": 0.5})
    assert not (tmp_path / PLOT_FILE).exists()
    assert read_metrics(tmp_path) == [{"step": 0, "MRR@10": 0.5}]


def test_a_loss_that_is_no_number_is_kept_and_plotted(tmp_path: Path) -> None:
    with Report(tmp_path, 20, 0) as told:
        told.step(1, loss=math.nan, learning_rate=0.1, tokens=10)
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])
    assert (tmp_path / PLOT_FILE).is_file()


def test_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "console", Console(stderr=True, width=60, force_terminal=False))
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=itertools.count(0.0, 0.5).__next__))
    path = f"{tmp_path}/[red]とても長い名前のフォルダー" + "x" * 80
    with Report(tmp_path, 20, 4) as told:
        told.step(5, loss=2.0, learning_rate=0.1, tokens=10)
        told.step(6, loss=1.0, learning_rate=0.1, tokens=10)
        told.note(6, **{"nDCG@10 of jsquad": 0.5})
        told.say(f"ColBERT written to {path}.")
        told.flush()
    said = capsys.readouterr().err
    assert "step 6: nDCG@10 of jsquad 0.5000\n" in said
    assert f"ColBERT written to {path}.\n" in said  # on one line, brackets and all
    # The loss is smoothed, and the rates are those of this start: two steps of ten tokens in one second.
    assert "step 6/20: loss 1.9800, 2.00 steps/s, 20 tokens/s\n" in said
    assert [row["tokens_per_s"] for row in read_metrics(tmp_path) if "loss" in row] == [20, 20]


def test_a_run_goes_on_without_tensorboard(tmp_path: Path) -> None:
    found = run_python(f"""
import sys
from pathlib import Path

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'", name=name)

sys.meta_path.insert(0, Missing())
from training.report import Report
folder = Path({str(tmp_path)!r})
with Report(folder, 2, 0) as told:
    told.step(1, loss=1.0, learning_rate=0.1, tokens=10)
print(sorted(path.name for path in folder.iterdir()))
""")
    assert found == str([METRICS_FILE, PLOT_FILE])
