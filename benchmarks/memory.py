"""Peak memory of encoding a stream of documents with the bundled model: it must not grow with their number.

python -m benchmarks.memory --passages 2000 --passages 10000 --passages 100000
"""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import machine, texts
from benchmarks.settings import ROOT, TRIES

N_SAMPLES = 20
KINDS = 16_000  # different passages, at most; a longer stream repeats them
RESULT = "memory.json"
NOTE = (
    "resource.ru_maxrss of a process that encodes a generator's documents and drops their embeddings: after "
    "loading and a warm-up, after a tenth of the documents, and at the end"
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    passages: Annotated[
        list[int] | None,
        typer.Option("--passages", min=1, help="Documents of one process; may be repeated.", metavar="N"),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="All cores where not given.")] = None,
    data: Annotated[
        Path, typer.Option(help="Folder of the corpora; the demo corpus where absent.", metavar="FOLDER")
    ] = texts.SHARED_DATA,
    results: Annotated[Path, typer.Option(help="Where memory.json goes.", metavar="FOLDER")] = TRIES,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Encode streams of several lengths, each in a process of its own."""
    from benchmarks import tables

    passages, threads = passages or [2_000, 10_000], threads or machine.n_cores()
    if child:
        for sample in encode(data, passages[0], threads):
            print(json.dumps(sample), flush=True)
        return
    found = measure(data, passages, threads)
    tables.write(results / RESULT, found)
    tables.show({"memory": found})


def measure(data: Path, passages: Sequence[int], threads: int) -> dict[str, Any]:
    """One process a length: its samples, and a row of each."""
    rows, versions = [], {}
    for n in passages:
        # This process has loaded neither torch nor a model: on Linux a child's peak begins with its parent's.
        command = [sys.executable, "-m", "benchmarks.memory", "--child"]
        command += ["--passages", str(n), "--threads", str(threads), "--data", str(data)]
        lines = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(json.loads(line))
                if "docs" in lines[-1]:
                    print("{docs:,} documents, peak {peak_mb:,.0f} MB".format(**lines[-1]), file=sys.stderr)
        if process.returncode:
            raise SystemExit(f"encoding {n} documents failed with code {process.returncode}.")
        versions = lines[0]["versions"]
        rows.append(summarize(lines[1:]))
    used = texts.passages(data, min(max(passages), KINDS))
    signature = machine.signature(
        "memory", texts=used.signed, model="bundled", threads=threads, versions={"jacolbert": versions}
    )
    return {"signature": signature, "note": NOTE, "rows": rows}


def encode(data: Path, n: int, threads: int) -> Iterator[dict[str, Any]]:
    """Encode n documents; first the versions, then what was used along the way."""
    import torch

    from benchmarks.peers.worker import versions
    from jacolbert_rag.encode import checkpoint
    from jacolbert_rag.encode.encoder import Encoder
    from jacolbert_rag.errors import TruncationWarning

    warnings.simplefilter("ignore", TruncationWarning)  # long news are part of the mixture
    torch.set_num_threads(threads)
    some = texts.passages(data, min(n, KINDS)).texts
    encoder = Encoder(checkpoint.load(), device="cpu", dtype="auto")
    encoder.documents(some[:512])
    yield {"versions": versions()}
    yield {"docs": 0, "peak_mb": peak_mb()}
    done, next_sample = 0, n / N_SAMPLES
    for block in encoder.stream(itertools.islice(itertools.cycle(some), n)):
        done += len(block)
        if done >= next_sample or done == n:
            yield {"docs": done, "peak_mb": peak_mb()}
            next_sample = done + n / N_SAMPLES


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB of 10^6 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def summarize(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Peaks before the stream, after a tenth of it and at its end, and all samples.

    Raises:
        ValueError: nothing was sampled after the start.
    """
    if len(samples) < 2:
        raise ValueError("a stream has a sample at its start and one at its end at least.")
    n = samples[-1]["docs"]
    tenth = next(s for s in samples if s["docs"] >= n / 10)
    return {
        "docs": n,
        "start_mb": samples[0]["peak_mb"],
        "tenth_mb": tenth["peak_mb"],
        "peak_mb": samples[-1]["peak_mb"],
        "growth": samples[-1]["peak_mb"] / tenth["peak_mb"],
        "samples": list(samples),
    }


if __name__ == "__main__":
    app()
