"""Command line: measure systems on datasets.

    python -m evals.run --all                                   # every dataset that is at hand or can be had
    python -m evals.run --all --offline --data-root FOLDER      # nothing from the network
    python -m evals.run --data FOLDER --split dev --system bm25 --system hybrid --json results.json

Each dataset and system is measured in a process of its own, and its result kept below --out: started again,
a run goes on where it was. What fails is a row that says why; the rest goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import json as json_module
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.options import fail
from jacolbert_rag.errors import InvalidInputError, JaColBERTError

if TYPE_CHECKING:
    from evals.cell import Options, Spec
    from evals.places import Place
    from evals.results import Cell
    from jacolbert_rag.config import EncoderOverrides

DEFAULT_OUT = Path("runs") / "evals"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # read by the libraries when they are imported
# Of evals: what figures depend on.
MEASURING = (
    "cell", "datasets", "found", "full_text", "heads", "jacolbert", "metrics", "peers", "protocol", "results",
    "statistics", "systems", "trec",
)  # fmt: skip
_SCORING = Lock()  # the measures are compiled once, and by one

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Job:
    """One dataset and one system, on its way.

    Attributes:
        dataset: name and split.
        system: its name.
        spec: what its process is told; None where the dataset is not at hand.
        file: of its cell.
        measure: that the dataset's authors report first; the page shows it.
        state: for people: waiting, a phase, a figure, or why there is none.
        cell: what was measured.
        error: why nothing was.
    """

    dataset: str
    system: str
    spec: Spec | None
    file: Path
    measure: str
    state: str = "waiting"
    cell: Cell | None = None
    error: str = ""


@app.command()
def main(
    all: Annotated[bool, typer.Option("--all", help="Every dataset there is.")] = False,
    dataset: Annotated[
        list[str] | None, typer.Option(help="By name; evals.prepare lists them. May be repeated.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A folder in BEIR layout, plain or .gz.", metavar="FOLDER")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which qrels/SPLIT.tsv of --data.")] = None,
    data_root: Annotated[
        list[Path] | None, typer.Option(help="With --all: folders of such folders.", metavar="FOLDER")
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="bm25, bm25-bigram, jacolbert, jacolbert-exact, hybrid, rerank, dense:MODEL, "
            "cross-encoder:MODEL, run:FILE; may be repeated. The first six where not given."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a ColBERT; the bundled one where not given.")
    ] = None,
    head: Annotated[
        str, typer.Option(help="linear, or none: without the projection, as some published figures are.")
    ] = "linear",
    query_length: Annotated[
        str | None, typer.Option(help="Rule of [MASK]s in place of the model's: paper, jqara, fixed(32), …")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Ask in another one: en takes queries.en.jsonl.")
    ] = None,
    document_length: Annotated[
        int | None, typer.Option(min=4, help="Tokens read of a document, in place of the model's.")
    ] = None,
    skiplist: Annotated[
        str, typer.Option(help="model, or none: documents keep punctuation, as some published figures do.")
    ] = "model",
    query_prompt: Annotated[
        str | None, typer.Option(help="What dense models read before a query, in place of their own.")
    ] = None,
    document_prompt: Annotated[
        str | None, typer.Option(help="What dense models read before a document, in place of their own.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N queries of each.", metavar="N")
    ] = None,
    offline: Annotated[bool, typer.Option(help="Never ask the network.")] = False,
    jobs: Annotated[
        int, typer.Option(min=1, help="Measured at once; more than one makes latencies longer.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Results, indexes and reports; goes on with what is there.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Where the results go; overwritten.", metavar="FILE")
    ] = None,
) -> None:
    """Measure retrieval systems: the mean is over all queries, and what a system lacks counts 0."""
    from evals import metrics, reports, systems
    from evals.cell import Options
    from evals.protocol import Prompts
    from evals.sources import Library

    names = list(system or systems.KNOWN_SYSTEMS)
    library = Library(offline=offline)
    try:
        systems.check_names(names)
        if json is not None:
            reports.check_writable(json)
        metrics.load_ranx()  # an hour of encoding must not end in a missing package
        wanted = chosen(all, dataset or [], data, split, data_root or [], library)
        with ExitStack() as stack:
            if offline:
                stack.enter_context(_offline_hub())
            folder = out
            if folder is None:
                # A single folder is asked once; all datasets are worth going on with.
                folder = DEFAULT_OUT if all else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            make_folder(folder)
            options = Options(
                limit,
                language,
                _with_head(model, head, folder),
                _encoder_of(query_length, document_length, skiplist),
                Prompts(query_prompt, document_prompt),
            )
            fingerprint = fingerprint_of(options, names)
            made = [job for place in wanted for job in jobs_of(place, names, options, fingerprint, folder)]
            measure(made, jobs)
            failed = [job for job in made if job.error and job.spec is not None]
            reports.finish(made, folder if out is not None or all else None, json)
            if failed and not all:
                raise InvalidInputError(
                    "; ".join(f"{job.dataset}, {job.system}: {job.error}" for job in failed)
                )
    except JaColBERTError as error:
        raise fail(error) from error
    if failed:
        raise typer.Exit(1)


def chosen(
    all: bool,
    datasets: Sequence[str],
    data: Path | None,
    split: str | None,
    roots: Sequence[Path],
    library: Any,
) -> list[Place]:
    """The datasets that the command line names.

    Raises:
        InvalidInputError: it names none, or some that are not there.
    """
    from evals import places

    found = [places.named(name, library) for name in datasets]
    if data is not None:
        split = split or places.split_of(data, None) or "test"
        found.append(places.Place(data.resolve().name, data, split, is_named=True))
    elif split is not None:
        raise InvalidInputError("--split is of --data, which is not given. Name a folder with --data.")
    if all:
        known = {place.name for place in found}
        found += [place for place in places.all_places(roots, library) if place.name not in known]
    elif roots:
        raise InvalidInputError("--data-root goes with --all. For one folder there is --data.")
    if not found:
        raise InvalidInputError(
            "No dataset is named. Pass --all, --dataset NAME or --data FOLDER --split SPLIT."
        )
    return found


def jobs_of(place: Place, names: Sequence[str], options: Options, fingerprint: str, out: Path) -> list[Job]:
    """What is to be measured on a dataset; what has been is not measured again.

    Args:
        place: the dataset.
        names: of systems.
        options: how.
        fingerprint: see `fingerprint_of`.
        out: folder of cells and indexes.

    Raises:
        DatasetError: a folder that was named cannot be used.
    """
    from evals.cell import RUN_K, Spec
    from evals.jacolbert import OF_ENGINE
    from evals.peers import DENSE_PREFIX
    from evals.results import Cell

    asked = f"{place.name}-{options.language}" if options.language is not None else place.name
    label = f"{asked} {place.split}"
    if place.folder is None:
        return [Job(label, name, None, out, place.measure, error=place.reason) for name in names]

    def spec_of(system: str, index: str) -> Spec:
        return Spec(place.name, str(place.folder), place.split, system, index, options)

    try:
        task = spec_of("", "").task()
    except JaColBERTError as error:
        if place.is_named:
            raise
        return [Job(label, name, None, out, place.measure, error=str(error)) for name in names]
    found = []
    for name in names:
        own = fingerprint if name in OF_ENGINE else _of_files(Path(name.partition(":")[2]))
        prompts = asdict(options.prompts) if name.startswith(DENSE_PREFIX) else None
        # The code too: another way to search is another result.
        code = [_code("jacolbert_rag", None), _code("evals", MEASURING)]
        key = _digest([task.name, task.split, task.digest, options.limit, name, own, prompts, RUN_K, code])
        # One for all splits and languages: documents are embedded once.
        index = out / "indexes" / _digest([task.corpus_digest, own.partition("|")[0], code[0]])
        file = out / "cells" / f"{task.name}-{place.split}-{key}.json"
        job = Job(label, name, spec_of(name, str(index)), file, place.measure)
        if job.file.exists():
            try:
                job.cell = Cell.load(job.file)
            except InvalidInputError:
                pass  # broken: measured again
        found.append(job)
    return found


def measure(jobs: Sequence[Job], n_at_once: int) -> None:
    """Run what has no result yet, and show how far all are."""
    from evals import reports
    from evals.jacolbert import OF_ENGINE

    waiting = [job for job in jobs if job.cell is None and not job.error]
    # Those that share an index take turns: the first one makes it.
    turns: defaultdict[str, Lock] = defaultdict(Lock)
    with reports.live(jobs) as refresh, ThreadPoolExecutor(n_at_once) as pool:

        def work(job: Job) -> None:
            assert job.spec is not None
            with turns[job.spec.index] if job.system in OF_ENGINE else nullcontext():
                run_job(job, refresh)

        for _ in pool.map(work, waiting):
            pass


def run_job(job: Job, refresh: Callable[[], None]) -> None:
    """Measure one dataset and system: searched in another process, scored in this one."""
    from evals.found import Searched, scored

    assert job.spec is not None
    job.file.parent.mkdir(parents=True, exist_ok=True)
    # Found from any working directory, to which the names of files are relative.
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as place:
        spec, said, found = (Path(place) / name for name in ("spec.json", "messages.txt", "found.json"))
        job.spec.save(spec)
        with said.open("w+", encoding="utf-8", errors="replace") as messages:
            process = subprocess.Popen(
                [sys.executable, "-m", "evals.cell", str(spec), str(found)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, stdout=subprocess.PIPE,
                stderr=messages, text=True,
            )  # fmt: skip
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    phase, _, counts = line.strip().partition(" ")
                    done, _, total = counts.partition(" ")
                    job.state = phase
                    if total.isdecimal() and int(total) > 1 and done != "0":
                        job.state += f" {100 * int(done) // int(total)} %"
                    refresh()
                status = process.wait()
            except BaseException:
                process.kill()
                raise
            messages.seek(0)
            lines = messages.read().strip().splitlines()
        if status == 0:
            with _SCORING:
                job.cell, job.state = scored(Searched.load(found)), "done"
            job.cell.save(job.file)
    if status != 0:
        last = lines[-1] if lines else ""
        ended = (
            f"its process ended with status {status}" if status > 0 else f"signal {-status} ended its process"
        )
        job.error = last.removeprefix("error: ") if last.startswith("error: ") else f"{ended}: {last}"
    refresh()


@contextmanager
def _offline_hub() -> Iterator[None]:
    """Neither this process nor those that it starts ask the hub for a model."""
    before = {name: os.environ.get(name) for name in OFFLINE}
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _with_head(model: str | None, head: str, out: Path) -> str | None:
    """The model, or a copy of it whose projection changes nothing."""
    if head == "linear":
        return model
    if head != "none":
        raise InvalidInputError(f"--head is {head!r}; expected linear or none.")
    from evals.heads import without_head

    return str(without_head(model, out / "models"))


def _encoder_of(query_length: str | None, document_length: int | None, skiplist: str) -> EncoderOverrides:
    """Settings in place of the model's."""
    found: EncoderOverrides = {}
    if query_length is not None:
        found["query_length"] = query_length
    if document_length is not None:
        found["document_length"] = document_length
    if skiplist == "none":
        found["skiplist"] = []
    elif skiplist != "model":
        raise InvalidInputError(f"--skiplist is {skiplist!r}; expected model or none.")
    return found


def make_folder(folder: Path) -> None:
    """The folder of results, made where it is not there.

    Raises:
        InvalidInputError: it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"--out {folder} cannot be a folder ({error}). Name another.") from error


def fingerprint_of(options: Options, names: Sequence[str]) -> str:
    """What the figures of JaColBERT's ways depend on; read now, so that a wrong name is told at once."""
    from evals.jacolbert import OF_ENGINE

    if not any(name in OF_ENGINE for name in names):
        return ""
    from jacolbert_rag.encode import checkpoint

    loaded = checkpoint.load(options.model, overrides=options.encoder)
    return f"{loaded.fingerprint}|{loaded.config.query_length}"


@cache
def _code(package: str, modules: tuple[str, ...] | None) -> str:
    """Digest of a package's code; of these modules of it, where not of all."""
    (found,) = importlib.import_module(package).__path__
    digest = hashlib.sha256()
    for file in sorted(Path(found).rglob("*.py")):
        if modules is None or file.stem in modules:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _of_files(path: Path) -> str:
    """What tells a model's folder or a run file from what it was before; "" where there is none."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if not path.is_dir() or path == Path():
        return ""
    # By size and time: a model may have gigabytes.
    files = sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(file, file.stat()) for file in files]
    return _digest([[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats])


def _digest(value: Any) -> str:
    return hashlib.sha256(json_module.dumps(value).encode()).hexdigest()[:12]


if __name__ == "__main__":
    app()
