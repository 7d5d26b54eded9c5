"""What every workload is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "runs" / "bench"  # ignored by git
TRIES = WORK / "results"  # of runs that are not committed


@dataclass(frozen=True)
class Settings:
    """One run of the benchmark.

    Attributes:
        pylate: interpreter that has PyLate; None leaves its row unmeasured.
        sentence_transformers: interpreter that has sentence-transformers.
        data: folder of the corpora; see `texts.passages`.
        work: folder of the random checkpoint, logs and workers' messages.
        n_passages: encoded in all.
        n_blocks: that the passages are cut into; systems take turns block by block.
        n_questions: of the query workload.
        n_repeats: processes of each system in the cold-start workload.
        threads: of each system.
        say: takes a line of progress.
    """

    pylate: str | None
    sentence_transformers: str | None
    data: Path
    work: Path
    n_passages: int
    n_blocks: int
    n_questions: int
    n_repeats: int
    threads: int
    say: Callable[[str], None]
