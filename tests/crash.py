"""Kills a process that writes an index at random moments, and looks at what it left.

    python -m tests.crash --kills 300

After each kill the index must open without help and hold every write that was acknowledged, and of the one
under way all or nothing; every byte must be what was written, and a copy that was being saved must be whole
or not there. The next writer goes on with the same index.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from jacolbert_rag.errors import IndexNotFoundError
from jacolbert_rag.index import layout
from jacolbert_rag.index.index import Index
from tests import model_index
from tests.model_index import Contents

ROOT = Path(__file__).parents[1]
LONGEST_S = 1.0  # from the writer's first acknowledgement to its kill
DTYPES = ("float32", "residual4")  # of one index and the next; the latter begins anew once it has centroids
N_ROUNDS = 40  # before the index is begun anew, so that small ones are met too


@dataclass
class Tally:
    """What the kills met."""

    kills: int = 0
    acknowledged: int = 0
    under_way: int = 0  # writes whose kill came before their acknowledgement and which are there all the same
    left_over: int = 0  # files that a kill had left behind, which no state knows


def write(folder: Path, copy: Path, seed: int) -> None:
    """Do random operations until killed, and acknowledge each on standard output."""
    import torch  # noqa: F401  (else the first write would import it, which takes longer than all the others)

    index, mirror = Index.open(folder), None
    print("ready", flush=True)
    for operation in model_index.operations(seed):
        model_index.apply(index, operation, copy)
        print("done", flush=True)
        if operation.kind == "save":  # somebody has the copy open all the while
            mirror = mirror or Index.open(copy)
            assert model_index.contents(mirror) == model_index.contents(index)


def kill_one(folder: Path, copy: Path, before: Contents, seed: int, tally: Tally) -> Contents:
    """Start a writer, kill it, and check what is there.

    Raises:
        AssertionError: something is lost, half there, or damaged.
    """
    command = [sys.executable, "-m", "tests.crash", "--worker", str(seed), "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the index does not open"
        time.sleep(random.Random(seed).uniform(0, LONGEST_S))
        assert process.poll() is None, "the writer failed by itself"
        process.kill()
        n_acknowledged = len(process.stdout.readlines())
    operations = list(itertools.islice(model_index.operations(seed), n_acknowledged + 1))
    acknowledged = before
    for operation in operations[:-1]:
        acknowledged = model_index.applied(acknowledged, operation)
    under_way = model_index.applied(acknowledged, operations[-1])
    holds = check(folder)
    left_over = len(unknown_files(folder))  # not before: nothing may help it to open
    assert holds in (acknowledged, under_way), differences(holds, acknowledged)
    check_copy(copy, [before, *states(before, operations)])
    tally.kills += 1
    tally.acknowledged += n_acknowledged
    tally.under_way += holds != acknowledged
    tally.left_over += left_over
    return holds


def unknown_files(folder: Path) -> set[str]:
    """Files of an index that its last committed state does not name."""
    with closing(sqlite3.connect(folder / layout.DATABASE_FILE)) as sql:
        known = {name for (name,) in sql.execute("SELECT name FROM files")}
    there = (folder / layout.FILES_FOLDER).iterdir()
    return {f"{layout.FILES_FOLDER}/{path.name}" for path in there} - known


def check(folder: Path) -> Contents:
    """What an index holds, once all of it was looked at and searched."""
    index = Index.open(folder)
    try:
        assert index.verify() == []
        holds = model_index.contents(index)
        if index.settings.store.dtype != "float32":  # whose scores are not those of what was given
            return holds
        with index.reading() as view:
            for kind in model_index.KINDS:
                answer = model_index.ask(view, index.settings, len(holds), kind)
                model_index.check_answer(answer, holds)
        return holds
    finally:
        index.close()


def check_copy(copy: Path, allowed: list[Contents]) -> None:
    """A saved copy is whole, and is what the index once was; or there is none yet."""
    try:
        index = Index.open(copy)
    except IndexNotFoundError:
        return
    assert index.verify() == []
    holds = model_index.contents(index)
    index.close()
    remembered = copy.with_suffix(".json")
    older = [json.loads(remembered.read_text(encoding="utf-8"))] if remembered.exists() else []
    assert holds in [*allowed, *older]
    remembered.write_text(json.dumps(holds, ensure_ascii=False), encoding="utf-8")


def states(contents: Contents, operations: list[model_index.Operation]) -> list[Contents]:
    """What an index held after each of these operations."""
    found = []
    for operation in operations:
        contents = model_index.applied(contents, operation)
        found.append(contents)
    return found


def differences(found: Contents, expected: Contents) -> str:
    """Where two contents differ, in words."""
    lost = sorted(expected.keys() - found.keys())
    more = sorted(found.keys() - expected.keys())
    other = sorted(id for id in found.keys() & expected.keys() if found[id] != expected[id])
    return f"lost {lost}, not expected {more}, of another version {other}"


def run(kills: int, seed: int, folder: Path) -> Tally:
    """Kill so many writers."""
    tally = Tally()
    index_folder, copy = folder / "index", folder / "copy"
    holds: Contents = {}
    for i in range(kills):
        if i % N_ROUNDS == 0:
            for path in (index_folder, copy):
                shutil.rmtree(path, ignore_errors=True)
            copy.with_suffix(".json").unlink(missing_ok=True)
            model_index.create(index_folder, DTYPES[i // N_ROUNDS % len(DTYPES)]).close()
            holds = {}
        holds = kill_one(index_folder, copy, holds, seed + i, tally)
    return tally


def main(
    kills: Annotated[int, typer.Option(min=1)] = 300,
    seed: int = 0,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the index lies; a temporary one.")] = None,
) -> None:
    """Kill writers, and check what they left."""
    if worker is not None:
        assert folder is not None
        write(folder, folder.with_name("copy"), worker)
        return
    with tempfile.TemporaryDirectory(prefix="jacolbert-crash-", dir=folder) as name:
        tally = run(kills, seed, Path(name))
    typer.echo(json.dumps(asdict(tally)))


if __name__ == "__main__":
    typer.run(main)
