"""Command line: measure the encoder beside its peers, on one machine, in turns.

python -m benchmarks.encoder --pylate PYTHON --sentence-transformers PYTHON
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.settings import TRIES, WORK, Settings
from benchmarks.texts import SHARED_DATA

N_PREPARED = 16_000  # passages of --prepare: a GPU needs seconds of work a block

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Workload(StrEnum):
    """What can be measured on a CPU."""

    DOCUMENTS = "documents"
    TOKENS = "tokens"
    QUERY = "query"
    COLD_START = "cold-start"


class Device(StrEnum):
    """Where the network computes."""

    CPU = "cpu"
    CUDA = "cuda"


@app.command()
def main(
    pylate: Annotated[str | None, typer.Option(help="Interpreter that has PyLate.", metavar="PYTHON")] = None,
    sentence_transformers: Annotated[
        str | None, typer.Option(help="Interpreter that has sentence-transformers.", metavar="PYTHON")
    ] = None,
    workload: Annotated[
        list[Workload] | None, typer.Option(help="May be repeated; all where not given.")
    ] = None,
    passages: Annotated[
        int | None, typer.Option(min=1, help="Documents to encode; 2,000, or all that were prepared.")
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Turns that each system takes.")] = 10,
    questions: Annotated[int, typer.Option(min=1, help="Of the query workload.")] = 300,
    repeats: Annotated[int, typer.Option(min=1, help="Starts of the cold-start workload.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="All cores where not given.")] = None,
    device: Annotated[
        Device, typer.Option(help="cuda measures prepared ids (--ids) and nothing else.")
    ] = Device.CPU,
    prepare: Annotated[
        Path | None, typer.Option(help="Write token ids for a GPU machine, and stop.", metavar="FILE")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="What --prepare wrote.", metavar="FILE")] = None,
    data: Annotated[
        Path, typer.Option(help="Folder of the corpora; the demo corpus where absent.", metavar="FOLDER")
    ] = SHARED_DATA,
    work: Annotated[
        Path, typer.Option(help="Random checkpoint, logs of cut runs, messages.", metavar="FOLDER")
    ] = WORK,
    results: Annotated[
        Path, typer.Option(help="Where each workload's JSON goes; replaced.", metavar="FOLDER")
    ] = TRIES,
) -> None:
    """Measure speed and its spread; a run that was cut goes on where it stopped."""
    from benchmarks import cuda, machine, tables

    if prepare is not None:
        made = cuda.prepare(data, passages or N_PREPARED, prepare)
        _say("{docs:,} documents, {tokens:,} tokens, {docs_per_s:,.0f} documents/s".format(**made))
        return
    settings = Settings(
        pylate=_interpreter(pylate, "--pylate"),
        sentence_transformers=_interpreter(sentence_transformers, "--sentence-transformers"),
        data=data,
        work=work,
        n_passages=passages or 2_000,
        n_blocks=blocks,
        n_questions=questions,
        n_repeats=repeats,
        threads=threads or machine.n_cores(),
        say=_say,
    )
    if settings.n_blocks > settings.n_passages:
        raise typer.BadParameter(f"{settings.n_passages} passages cannot be cut into {blocks} blocks.")
    if device is Device.CUDA:
        if ids is None or not ids.is_file():
            raise typer.BadParameter("--device cuda needs --ids FILE; make it with --prepare FILE.")
        if not cuda.is_available():
            _say("cuda: not run, torch sees no GPU here")
            return
        todo: dict[str, Callable[[], dict[str, Any]]] = {
            "cuda": partial(cuda.measure, settings, ids, n=passages)
        }
    else:
        todo = {str(name): partial(_measure(name), settings) for name in workload or list(Workload)}
    for name, measure in todo.items():
        _say(f"workload {name}")
        result = measure()
        tables.write(results / f"{name}.json", result)
        tables.show({name: result})
    _say(f"results are in {results}")


def _measure(workload: Workload) -> Callable[[Settings], dict[str, Any]]:
    from benchmarks import cold_start, documents, query, tokens

    return {
        Workload.DOCUMENTS: documents.measure,
        Workload.TOKENS: tokens.measure,
        Workload.QUERY: query.measure,
        Workload.COLD_START: cold_start.measure,
    }[workload]


def _interpreter(name: str | None, option: str) -> str | None:
    """The interpreter's path, which must be there: a typing error is no missing peer."""
    if name is None:
        return None
    found = shutil.which(name)
    if found is None:
        raise typer.BadParameter(f"{option} {name} is no program. Name the environment's bin/python.")
    # Not resolved: a link of an environment leads to the interpreter that it was made with.
    return str(Path(found).absolute())


def _say(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    app()
