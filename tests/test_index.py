"""jacolbert_rag.index.index: durable, consistent, checked, and mended where it can be."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jacolbert_rag import (
    Document,
    IndexCorruptError,
    IndexMismatchError,
    IndexNotFoundError,
    InvalidInputError,
    TokenEmbeddings,
)
from jacolbert_rag.errors import IndexFolderError, IndexWriteError
from jacolbert_rag.index import copying, database, files, layout, write
from jacolbert_rag.index import index as index_module
from jacolbert_rag.index.connections import OverwrittenError
from jacolbert_rag.index.index import Index, PassageChangedError, View
from tests import model_index
from tests.model_index import Contents, create


def filled(folder: Path, n: int = 60, dtype: str = "float32") -> tuple[Index, Contents]:
    """An index of n documents that were added ten at a time."""
    index = create(folder, dtype)
    holds = {f"文書{i}": 1 for i in range(n)}
    given = list(holds.items())
    for start in range(0, n, 10):
        part = given[start : start + 10]
        index.append([model_index.document(*each) for each in part], model_index.embeddings(part))
    index.update_candidates()
    return index, holds


def search(index: Index, query: np.ndarray, k: int, *, exact: bool = True) -> list[tuple[str, float]]:
    """Ids and scores."""
    with index.reading() as view:
        snapshot = view.snapshot
        if exact:
            whole = TokenEmbeddings(query, np.array([0, len(query)], dtype=np.int64))
            rows, scores = snapshot.search_exact(whole, k)[0]
        else:
            rows, scores = snapshot.search_candidates(query, k, index.settings.candidates)
        return [(each.id, float(s)) for each, s in zip(view.documents(rows), scores, strict=True)]


def sound(index: Index, holds: Contents) -> None:
    """Whether an index holds this, is what was written, and is searched rightly."""
    assert index.verify() == []
    assert model_index.contents(index) == holds
    k = min(10, len(holds))
    for seed in range(3 if k else 0):
        query = model_index.query(seed)
        model_index.check_search(search(index, query, k), holds, query, k, exact=True)
        with index.reading() as view:
            is_pooled = view.snapshot.pooled is not None
        if is_pooled:
            model_index.check_search(search(index, query, k, exact=False), holds, query, k, exact=False)


def n_segments(index: Index) -> int:
    with index.reading() as view:
        return len(view.snapshot.segments)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_was_added_comes_back(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i")
    sound(index, holds)
    index.close()
    sound(Index.open(tmp_path / "i"), holds)


def test_empty_index(tmp_path: Path) -> None:
    index = create(tmp_path / "i")
    index.append([], model_index.embeddings([]))
    index.update_candidates()
    index.compact()
    sound(index, {})
    assert index.delete(["文書1"]) == []


def test_small_adds_leave_few_segments_and_files(tmp_path: Path) -> None:
    index = create(tmp_path / "i")
    holds = {}
    for i in range(120):
        index.append([model_index.document(f"文書{i}", 1)], model_index.embeddings([(f"文書{i}", 1)]))
        index.update_candidates()
        holds[f"文書{i}"] = 1
    assert n_segments(index) <= 8
    assert len(list((tmp_path / "i" / "files").iterdir())) <= 3 * 8 + 3
    sound(index, holds)


def test_same_id_replaces_and_unknown_ids_are_passed_over(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i")
    new = [("文書3", 2), ("文書90", 1)]
    index.append([model_index.document(*each) for each in new], model_index.embeddings(new))
    assert index.delete(["文書5", "ない", "文書7"]) == ["文書5", "文書7"]
    expected = {**holds, **dict(new)}
    del expected["文書5"], expected["文書7"]
    sound(index, expected)
    index.close()
    sound(Index.open(tmp_path / "i"), expected)


@pytest.mark.parametrize(
    "value", ["\ud800", "が\u0000", "", "😀", "\x85\u2028", "'; DROP TABLE documents; --"]
)
def test_any_text_comes_back(tmp_path: Path, value: str) -> None:
    index = create(tmp_path / "i")
    document = Document(f"x{value}", value, {value: [value, None, 1.5, True]}, title=value)
    index.append([document], model_index.embeddings([("x", 1)]))
    with index.reading() as view:
        assert view.documents([0]) == [document]
        assert view.rows_of([document.id]) == {document.id: 0}
    assert index.verify() == []


def test_ids_with_a_prefix(tmp_path: Path) -> None:
    index = create(tmp_path / "i")
    ids = ["手引", "手引#1", "手引#", "手引#\U0010ffff", "手引$", "手", "手引\ud800", "#", "a", "\ud8001"]
    index.append([Document(id, "本文") for id in ids], model_index.embeddings([(i, 1) for i in "abcdefghij"]))
    with index.reading() as view:
        assert view.ids_with_prefix("手引#") == ["手引#", "手引#1", "手引#\U0010ffff"]
        assert set(view.ids_with_prefix("手引")) == {id for id in ids if id.startswith("手引")}
        assert view.ids_with_prefix("\ud800") == ["\ud8001"]
        assert view.ids_with_prefix("なし") == []
        assert len(view.ids_with_prefix("")) == len(ids)
        plan = view.sql.execute(
            "EXPLAIN QUERY PLAN SELECT id FROM documents WHERE id >= ? AND id < ? ORDER BY id", [b"a", b"b"]
        ).fetchall()
    assert "SEARCH documents USING COVERING INDEX" in plan[0][-1]


# Codings.


@pytest.mark.parametrize("dtype", ["float16", "int8", "residual4", "residual2"])
def test_every_coding_holds_and_finds(tmp_path: Path, dtype: str) -> None:
    index, holds = filled(tmp_path / "i", dtype=dtype)
    assert index.verify() == []
    assert model_index.contents(index) == holds
    tolerance = {"float16": 0.01, "int8": 0.05, "residual4": 0.3, "residual2": 1.5}[dtype]
    for seed in range(5):
        query = model_index.query(seed)
        exact = dict(model_index.ranking(holds, query))
        for id, score in search(index, query, 10):
            assert score == pytest.approx(exact[id], abs=tolerance)
        # Either way, a score is the exact one of what is stored.
        stored = dict(search(index, query, len(holds)))
        for id, score in search(index, query, 10, exact=False):
            assert score == pytest.approx(stored[id], abs=1e-4)


@pytest.mark.parametrize("dtype", ["residual4", "residual2"])
def test_first_tokens_are_floats_until_there_is_a_codebook(tmp_path: Path, dtype: str) -> None:
    index = create(tmp_path / "i", dtype)
    codings, holds = [], {}
    for i in range(60):
        index.append([model_index.document(f"文書{i}", 1)], model_index.embeddings([(f"文書{i}", 1)]))
        holds[f"文書{i}"] = 1
        with index.reading() as view:
            codings.append({segment.row.coding for segment in view.snapshot.segments})
    assert codings[0] == {"float16"}
    assert codings[-1] == {dtype}
    assert all(len(each) == 1 for each in codings)
    assert model_index.contents(index) == holds
    index.close()
    again = Index.open(tmp_path / "i")
    assert again.verify() == []
    assert model_index.contents(again) == holds


# Snapshots.


def test_a_reader_sees_one_state_while_another_writes(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i")
    query = model_index.query(1)
    with index.reading() as view:
        rows = np.flatnonzero(view.snapshot.live)
        other = Index.open(tmp_path / "i")  # as another process would
        other.delete([f"文書{i}" for i in range(0, 60, 2)])
        other.compact()
        other.append([model_index.document("新", 1)], model_index.embeddings([("新", 1)]))
        other.update_candidates(anew=True)
        assert {each.id for each in view.documents(rows)} == set(holds)
        whole = TokenEmbeddings(query, np.array([0, len(query)]))
        best, scores = view.snapshot.search_exact(whole, 10)[0]
        found = [(each.id, float(s)) for each, s in zip(view.documents(best), scores, strict=True)]
        model_index.check_search(found, holds, query, 10, exact=True)
    expected = {f"文書{i}": 1 for i in range(1, 60, 2)} | {"新": 1}
    sound(index, expected)
    sound(other, expected)


def test_writers_of_two_handles_take_turns(tmp_path: Path) -> None:
    create(tmp_path / "i").close()
    handles = [Index.open(tmp_path / "i") for _ in range(2)]

    def fill(number: int) -> None:
        for i in range(25):
            name = f"{number}の{i}"
            handles[number].append([model_index.document(name, 1)], model_index.embeddings([(name, 1)]))
            handles[number].update_candidates()

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holds = {f"{number}の{i}": 1 for number in range(2) for i in range(25)}
    for handle in handles:
        sound(handle, holds)


def test_closed_index_says_so(tmp_path: Path) -> None:
    index, _ = filled(tmp_path / "i", 5)
    index.close()
    with pytest.raises(InvalidInputError, match="was closed"), index.reading():
        pass
    with pytest.raises(InvalidInputError, match="was closed"):
        index.delete(["文書1"])


def test_amending_leaves_tokens_alone(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 5)
    before = {path.name for path in (tmp_path / "i" / "files").iterdir()}
    named = replace(model_index.document("文書1", 1), metadata={"版": 1, "課": "総務"})
    assert index.amend(restate=[named], delete=lambda _: ["文書2", "ない"]) == ["文書2"]
    assert {path.name for path in (tmp_path / "i" / "files").iterdir()} == before
    with index.reading() as view:
        assert view.documents([1, 2]) == [named]
    assert index.verify() == []
    del holds["文書2"]
    assert len(search(index, model_index.query(1), 10)) == 4


def test_tokens_are_kept_for_the_same_passage_alone(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 5)
    for other in (Document("文書1", "ほかの文章"), Document("ない", "文書1の第1版", title="題文書1")):
        with pytest.raises(PassageChangedError):
            index.amend(restate=[model_index.document("文書2", 1), other], delete=lambda _: ["文書3"])
        sound(index, holds)


def test_refresh_reads_what_another_process_wrote(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 5)
    index.delete(["文書2"])
    assert not index.refresh()
    other = Index.open(tmp_path / "i")
    other.delete(["文書1"])
    assert index.refresh()
    assert not index.refresh()
    del holds["文書1"], holds["文書2"]
    sound(index, holds)


def test_database_that_was_put_back_under_our_hands(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 5)
    shutil.copytree(tmp_path / "i", tmp_path / "backup")
    index.delete(["文書1"])
    assert len(search(index, model_index.query(1), 10)) == 4
    former, now = (sqlite3.connect(tmp_path / name / "index.sqlite") for name in ("backup", "i"))
    with closing(former), closing(now):
        former.backup(now)
    sound(index, holds)
    index.delete(["文書2"])
    del holds["文書2"]
    sound(index, holds)


# Forks.

needs_fork = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def in_a_fork(work: Callable[[], None]) -> int:
    """Do work in a forked process; its number."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


class TestForks:
    pytestmark = needs_fork

    def test_an_index_belongs_to_the_process_that_opened_it(self, tmp_path: Path) -> None:
        index, holds = filled(tmp_path / "i", 5)

        def use() -> None:
            calls = (lambda: index.delete(["文書1"]), index.refresh, lambda: index.copy_to(tmp_path / "c"))
            for call in calls:
                with pytest.raises(InvalidInputError, match=r"forked\. Open it in each process"):
                    call()
            index.close()

        assert os.waitpid(in_a_fork(use), 0)[1] == 0
        sound(index, holds)

    def test_locks_of_a_child_and_of_its_parent_are_apart(self, tmp_path: Path) -> None:
        index, holds = filled(tmp_path / "i", 9)
        closed, child_is_to_go_on = os.pipe()

        def write_before_and_after() -> None:
            own = Index.open(tmp_path / "i")
            own.delete(["文書1"])
            os.read(closed, 1)  # the parent has closed its connections by then
            own.delete(["文書2"])
            own.append([model_index.document("新", 1)], model_index.embeddings([("新", 1)]))
            own.close()

        child = in_a_fork(write_before_and_after)
        index.delete(["文書3"])
        index.close()
        os.write(child_is_to_go_on, b"!")
        other = Index.open(tmp_path / "i")
        other.delete(["文書4"])
        assert os.waitpid(child, 0)[1] == 0
        other.delete(["文書5"])
        for i in range(1, 6):
            del holds[f"文書{i}"]
        holds["新"] = 1
        sound(other, holds)
        sound(Index.open(tmp_path / "i"), holds)

    def test_fork_of_a_process_that_is_reading(self, tmp_path: Path) -> None:
        index, holds = filled(tmp_path / "i", 5)

        def open_it() -> None:
            with pytest.raises(IndexFolderError, match=r"in use when this process was forked.*spawn"):
                Index.open(tmp_path / "i")

        with index.reading():
            assert os.waitpid(in_a_fork(open_it), 0)[1] == 0
        sound(index, holds)


def test_writer_waits_for_another_process_and_then_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.2)
    index, holds = filled(tmp_path / "i", 5)
    other = sqlite3.connect(tmp_path / "i" / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(IndexWriteError, match=r"Another process has been writing .* Call again"):
        index.delete(["文書1"])
    sound(index, holds)
    other.close()
    assert index.delete(["文書1"]) == ["文書1"]


# Folders that may only be read.


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "open"])
def test_folder_that_may_only_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_closed: bool
) -> None:
    writer, holds = filled(tmp_path / "i")
    if is_closed:
        writer.close()
    before = {
        path: path.read_bytes() for path in (tmp_path / "i").rglob("*.*") if path.suffix != ".sqlite-shm"
    }
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    index = Index.open(tmp_path / "i")
    sound(index, holds)
    index.update_candidates()
    with pytest.raises(IndexWriteError, match="may only be read"):
        index.delete(["文書1"])
    sound(index, holds)
    index.copy_to(tmp_path / "copy")
    index.close()
    assert all(path.read_bytes() == data for path, data in before.items())
    monkeypatch.undo()
    copied = Index.open(tmp_path / "copy")
    copied.delete(["文書1"])
    del holds["文書1"]
    sound(copied, holds)


def test_folder_that_may_only_be_read_while_somebody_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, holds = filled(tmp_path / "i")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    index = Index.open(tmp_path / "i")  # with the writer's log beside it, like any other reader
    with index.reading() as view:
        writer.delete(["文書1"])
        assert view.snapshot.n_live == len(holds)
    del holds["文書1"]
    sound(index, holds)
    index.close()
    writer.close()

    index = Index.open(tmp_path / "i")  # without a log SQLite is told that nothing changes
    seen, doomed = [], ["文書3", "文書2"]

    def look(view: View) -> int:
        if not seen:
            with monkeypatch.context() as undone:
                undone.setattr(os, "access", real)
                writer = Index.open(tmp_path / "i")
            writer.delete([doomed.pop()])
            writer.close()
        seen.append(view.snapshot.n_live)
        return view.snapshot.n_live

    assert index.read(look) == len(holds) - 1
    assert seen == [len(holds), len(holds) - 1]
    del holds["文書2"]
    sound(index, holds)
    seen.clear()
    with pytest.raises(OverwrittenError, match="Ask again"), index.reading() as view:
        look(view)
    assert index._snapshot is None
    del holds["文書3"]
    sound(index, holds)


# Room.


def test_no_add_writes_a_large_segment_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "MERGED_TOKENS", 300)
    index, holds = filled(tmp_path / "i", 200)
    with index.reading() as view:
        sizes = [segment.row.n_tokens for segment in view.snapshot.segments]
    assert 2 < max(sizes) // 50 <= 6
    assert 5 <= len(sizes) < 20
    sound(index, holds)
    index.compact()
    sound(index, holds)
    monkeypatch.undo()
    index.compact()
    assert n_segments(index) == 1
    sound(index, holds)


def test_compacting_gives_room_back(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 100)
    before = size(tmp_path / "i" / "files"), (tmp_path / "i" / "index.sqlite").stat().st_size
    index.delete([f"文書{i}" for i in range(90)])
    index.compact()
    expected = {id: version for id, version in holds.items() if int(id[2:]) >= 90}
    sound(index, expected)
    assert size(tmp_path / "i" / "files") < before[0] / 2  # what is derived has its own size
    assert (tmp_path / "i" / "index.sqlite").stat().st_size < before[1]
    assert (tmp_path / "i" / "index.sqlite-wal").stat().st_size == 0
    with index.reading() as view:
        assert (view.snapshot.n_rows, n_segments(index)) == (10, 1)
    index.append([model_index.document("新", 1)], model_index.embeddings([("新", 1)]))
    sound(index, expected | {"新": 1})
    index.delete([*expected, "新"])
    index.compact()
    sound(index, {})
    assert list((tmp_path / "i" / "files").glob("*.tokens.npy")) == []


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 5)
    index.close()
    for name in ("0123.tokens.npy", ".4567.lists.npy", "89.graph"):
        (tmp_path / "i" / "files" / name).write_bytes(b"half")
    index = Index.open(tmp_path / "i")
    assert len(list((tmp_path / "i" / "files").glob("*"))) > 3
    index.delete(["文書0"])
    del holds["文書0"]
    sound(index, holds)
    with index.reading() as view:
        named = {Path(name).name for name in database.files(view.sql)}
    assert {path.name for path in (tmp_path / "i" / "files").iterdir()} == named


# Damage.


def files_of(folder: Path) -> dict[str, Path]:
    """One file of each kind."""
    kinds = {}
    for path in sorted((folder / "files").iterdir(), key=lambda path: -path.stat().st_size):
        kinds.setdefault(path.name.split(".", 1)[1], path)
    return kinds


CORE = ["tokens.npy", "offsets.npy", "codebook.npy"]
DERIVED = ["lists.npy", "graph", "centers.npy", "cells.npy"]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Contents]:
    index, holds = filled(tmp_path / "i", dtype="residual4")
    index.close()
    return tmp_path / "i", holds


@pytest.mark.parametrize("kind", CORE)
@pytest.mark.parametrize("harm", ["truncated", "missing", "grown"])
def test_damage_that_opening_sees(made: tuple[Path, Contents], kind: str, harm: str) -> None:
    path = files_of(made[0])[kind]
    if harm == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-7] if harm == "truncated" else data + b"1234567")
    with pytest.raises(IndexCorruptError, match=path.name.replace(".", r"\.")) as caught:
        Index.open(made[0])
    assert "Restore the index folder" in str(caught.value)


@pytest.mark.parametrize("kind", ["offsets.npy", "codebook.npy", "graph", "centers.npy", "cells.npy"])
def test_flipped_bit_of_a_small_file_is_seen_by_opening(
    made: tuple[Path, Contents], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = files_of(made[0])[kind]
    data = bytearray(path.read_bytes())
    data[-1 - len(data) // 3] ^= 4
    path.write_bytes(data)
    if kind in CORE:
        with pytest.raises(IndexCorruptError, match="checksum"):
            Index.open(made[0])
    else:
        sound_index = Index.open(made[0])
        assert "checksum" in caplog.text
        sound_index.update_candidates()
        sound_index.close()
        assert Index.open(made[0]).verify() == []


def test_lists_of_rows_that_are_not_there(
    made: tuple[Path, Contents], caplog: pytest.LogCaptureFixture
) -> None:
    path = files_of(made[0])["lists.npy"]
    data = bytearray(path.read_bytes())
    data[-400:] = b"\xff" * 400
    path.write_bytes(data)
    index = Index.open(made[0])
    assert "contradict themselves" in caplog.text
    stored = dict(search(index, model_index.query(1), 60))
    assert search(index, model_index.query(1), 10, exact=False) == list(stored.items())[:10]
    index.update_candidates()
    assert index.verify() == []


@pytest.mark.parametrize("by", ["append", "compact"])
def test_damaged_tokens_are_not_written_again_as_if_whole(made: tuple[Path, Contents], by: str) -> None:
    index = Index.open(made[0])
    index.delete(["文書1"])
    path = files_of(made[0])["tokens.npy"]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    new = [(f"新{i}", 1) for i in range(60)]
    documents = [model_index.document(*each) for each in new]
    change = (
        index.compact if by == "compact" else partial(index.append, documents, model_index.embeddings(new))
    )
    with pytest.raises(IndexCorruptError, match=path.name):
        change()
    (damage,) = index.verify()
    assert path.name in damage.what


def test_damaged_lists_are_made_anew_when_they_are_merged(made: tuple[Path, Contents]) -> None:
    folder, holds = made
    index = Index.open(folder)
    path = files_of(folder)["lists.npy"]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    index.delete(["文書1"])
    index.compact()
    assert index.verify() == []
    del holds["文書1"]
    assert model_index.contents(index) == holds


@pytest.mark.parametrize("kind", CORE + DERIVED)
@pytest.mark.parametrize("harm", ["flipped", "swapped"])
def test_damage_that_verifying_sees(tmp_path: Path, kind: str, harm: str) -> None:
    index, _ = filled(tmp_path / "i", dtype="residual4")  # open before, as an index in use is
    filled(tmp_path / "other", dtype="residual4")
    path = files_of(tmp_path / "i")[kind]
    data = bytearray(path.read_bytes())
    if harm == "flipped":
        data[-1 - len(data) // 3] ^= 4
    else:
        theirs = files_of(tmp_path / "other")[kind].read_bytes()
        data = bytearray(theirs if theirs != bytes(data) else data[::-1])
    path.write_bytes(data)
    (damage,) = [found for found in index.verify() if path.name in found.what]
    assert damage.is_derived == (kind in DERIVED)
    assert "expected" in damage.what


def test_flipped_bits_of_documents_are_found(made: tuple[Path, Contents]) -> None:
    path = made[0] / "index.sqlite"
    sql = sqlite3.connect(path)
    sql.execute("UPDATE documents SET text = ? WHERE id = ?", ["別の".encode(), "文書7".encode()])
    sql.commit()
    sql.close()
    (damage,) = Index.open(made[0]).verify()
    assert not damage.is_derived
    assert "文書7" in damage.what
    data = bytearray(path.read_bytes())
    data[5000:5200] = bytes(200)
    path.write_bytes(data)
    try:
        problems = [found.what for found in Index.open(made[0]).verify()]
    except IndexCorruptError as error:
        problems = [str(error)]
    assert any("index.sqlite" in what for what in problems)


def test_flipped_bits_of_the_database(tmp_path: Path) -> None:
    """Whatever a byte of it says: an error that names it, or what was stored. Never without end."""
    index, holds = filled(tmp_path / "i", 12)
    index.close()
    path = tmp_path / "i" / "index.sqlite"
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    n_refused = n_found = 0
    for at in rng.permutation(len(whole))[:500].tolist():
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            opened = Index.open(tmp_path / "i")
            found = opened.verify()
            n_found += bool(found)
            assert found or model_index.contents(opened) == holds
            opened.close()
        except IndexFolderError:
            n_refused += 1
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
    assert n_refused > 5
    assert n_found > 5


def test_damaged_bytes_in_sqlites_own_message(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 12)
    index.close()
    path = tmp_path / "i" / "index.sqlite"
    whole = path.read_bytes()
    first = whole.index(b"CREATE TABLE documents")
    n_refused = 0
    for at in range(first, first + 200, 3):
        path.write_bytes(whole[:at] + b"\xcb" + whole[at + 1 :])
        try:
            opened = Index.open(tmp_path / "i")
            assert opened.verify() or model_index.contents(opened) == holds
            opened.close()
        except IndexFolderError:
            n_refused += 1
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
    assert n_refused > 5


def test_tables_of_before_the_release_are_told(made: tuple[Path, Contents]) -> None:
    with closing(sqlite3.connect(made[0] / "index.sqlite")) as sql:
        sql.execute("ALTER TABLE segments DROP COLUMN words")
    with pytest.raises(IndexFolderError, match="before the release.*anew"):
        Index.open(made[0])


def test_file_that_cannot_be_read_is_damage(
    made: tuple[Path, Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.open(made[0])

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "checksum", refuse)
    found = index.verify()
    assert found
    assert all("could not be read" in each.what for each in found)


def test_database_of_another_format_number(made: tuple[Path, Contents]) -> None:
    index = Index.open(made[0])
    with closing(sqlite3.connect(made[0] / "index.sqlite")) as sql:
        sql.execute("PRAGMA user_version=1")
    assert any("format is 1, expected 2" in each.what for each in index.verify())
    with pytest.raises(IndexCorruptError, match="has format 1, expected 2"):
        Index.open(made[0])


def test_rebuilding_mends_all_that_is_derived(made: tuple[Path, Contents]) -> None:
    index = Index.open(made[0])
    (made[0] / "manifest.json").unlink()
    for path in (made[0] / "files").glob("*.graph"):
        path.write_bytes(b"?" + path.read_bytes()[1:])
    assert [each.is_derived for each in index.verify()] == [True, True]
    index.rebuild()
    assert index.verify() == []
    assert model_index.contents(index) == made[1]
    index.delete(list(made[1]))
    for path in (made[0] / "files").glob("*.graph"):
        path.unlink()
    assert index.verify()
    index.rebuild()
    sound(index, {})


@pytest.mark.parametrize("kind", DERIVED)
@pytest.mark.parametrize("harm", ["truncated", "missing", "garbage"])
def test_what_is_derived_is_made_again(
    made: tuple[Path, Contents], kind: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, holds = made
    path = files_of(folder)[kind]
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if harm == "truncated" else bytes(path.stat().st_size))
    with caplog.at_level(logging.WARNING):
        index = Index.open(folder)
    assert "is damaged" in caplog.text
    assert "rebuild()" in caplog.text
    assert model_index.contents(index) == holds
    stored = dict(search(index, model_index.query(1), len(holds)))
    index.update_candidates()
    assert index.verify() == []
    for id, score in search(index, model_index.query(1), 10, exact=False):
        assert score == pytest.approx(stored[id], abs=1e-4)
    index.close()
    caplog.clear()
    Index.open(folder)
    assert caplog.text == ""


@pytest.mark.parametrize("harm", ["truncated", "missing", "garbage", "flipped"])
def test_manifest_file_is_written_again(
    made: tuple[Path, Contents], harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = made[0] / "manifest.json"
    whole = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": whole[:99], "garbage": bytes(len(whole)), "flipped": whole.replace(b"16", b"17")}[
                harm
            ]
        )
    index = Index.open(made[0])
    assert "manifest.json" in caplog.text
    assert "written anew" in caplog.text
    assert path.read_bytes() == whole
    path.unlink()
    (damage,) = index.verify()
    assert damage.is_derived
    assert "manifest.json is missing" in damage.what


@pytest.mark.parametrize("harm", ["truncated", "empty", "missing", "garbage"])
def test_database_is_named(made: tuple[Path, Contents], harm: str) -> None:
    path = made[0] / "index.sqlite"
    for log in made[0].glob("index.sqlite-*"):
        log.unlink()
    if harm == "missing":
        path.unlink()
    else:
        size = path.stat().st_size
        path.write_bytes({"truncated": path.read_bytes()[:99], "empty": b"", "garbage": bytes(size)}[harm])
    with pytest.raises(IndexCorruptError, match=r"index\.sqlite"):
        Index.open(made[0])


def test_no_index_and_a_newer_one(made: tuple[Path, Contents], tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError, match="There is no index"):
        Index.open(tmp_path / "nowhere")
    sql = sqlite3.connect(made[0] / "index.sqlite")
    sql.execute("PRAGMA user_version=99")
    sql.close()
    with pytest.raises(IndexMismatchError, match="index format 99; this version .* reads up to 2"):
        Index.open(made[0])
    index, _ = filled(tmp_path / "other", 3)
    with pytest.raises(IndexMismatchError, match="index format 99"):
        index.copy_to(made[0])
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "manifest.json").write_text('{"format_version": 99}')
    with pytest.raises(IndexMismatchError, match="index format 99"):
        Index.open(tmp_path / "newer")


# Disks that are full, folders that may not be written.


@pytest.mark.parametrize("after", range(12))
def test_full_disk_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    index, holds = filled(tmp_path / "i")
    written = 0
    opened = files.write_array

    def limited(*args: object, **kwargs: object) -> object:
        nonlocal written
        written += 1
        if written > after:
            raise OSError(28, "No space left on device")
        return opened(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "write_array", limited)
    new = [(f"新{i}", 1) for i in range(30)]
    told = ""
    try:
        index.append([model_index.document(*each) for each in new], model_index.embeddings(new))
        holds |= dict(new)
        index.compact()
        index.update_candidates(anew=True)
        assert after >= 6
    except IndexWriteError as error:
        told = str(error)
    assert told == "" or ("No space left" in told and "Free space" in told)
    monkeypatch.undo()
    sound(index, holds)
    with index.reading() as view:
        named = {Path(name).name for name in database.files(view.sql)}
    assert {path.name for path in (tmp_path / "i" / "files").iterdir()} == named
    index.append([model_index.document("後", 1)], model_index.embeddings([("後", 1)]))
    sound(index, holds | {"後": 1})
    index.close()
    sound(Index.open(tmp_path / "i"), holds | {"後": 1})


FILL = """
import resource, signal, sys
from pathlib import Path
from jacolbert_rag.errors import IndexWriteError
from jacolbert_rag.index.index import Index
from tests import model_index

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
index = Index.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
for i in range(100_000):
    pairs = [(f"追加{i}", 1)]
    try:
        index.append([model_index.document(*each) for each in pairs], model_index.embeddings(pairs))
        index.update_candidates()
    except IndexWriteError as error:
        print(error)
        break
    print(f"追加{i}", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="no limits of file sizes here")
@pytest.mark.parametrize("limit", [20_000, 40_000, 60_000])
def test_disk_that_fills_up(tmp_path: Path, limit: int) -> None:
    """The system refuses to let any file grow: SQLite's own or another, whichever is the first."""
    index, holds = filled(tmp_path / "i")
    index.close()
    command = [sys.executable, "-c", FILL, str(tmp_path / "i"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    *stored, error = done.stdout.splitlines()
    assert "could not be written" in error, done.stderr
    assert "what was there is whole" in error
    after = Index.open(tmp_path / "i")
    found = model_index.contents(after)
    # The document of the write that failed is there only where listing it failed, behind storing it.
    assert found.keys() - holds.keys() - set(stored) <= {f"追加{len(stored)}"}
    assert (holds | dict.fromkeys(stored, 1)).items() <= found.items()
    sound(after, found)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_folder_that_may_not_be_written(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i")
    folder = tmp_path / "i" / "files"
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(IndexWriteError, match="mend the permissions"):
            index.append([model_index.document("新", 1)], model_index.embeddings([("新", 1)]))
        sound(index, holds)
    finally:
        folder.chmod(stat.S_IRWXU)


# Copies.


def test_copy_is_whole_and_replaces_an_index_alone(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i")
    index.copy_to(tmp_path / "copy")
    sound(Index.open(tmp_path / "copy"), holds)
    index.delete(["文書1"])
    index.copy_to(tmp_path / "copy")
    del holds["文書1"]
    sound(Index.open(tmp_path / "copy"), holds)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("a")
    with pytest.raises(InvalidInputError, match="exists and is no index"):
        index.copy_to(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "i", "mine"]


def test_copy_has_the_permissions_of_other_new_folders(tmp_path: Path) -> None:
    index, _ = filled(tmp_path / "i", 3)
    (tmp_path / "usual").mkdir()
    index.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_copy_fills_an_empty_folder_and_does_not_replace_it(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 5)
    (tmp_path / "mounted").mkdir()
    inode = (tmp_path / "mounted").stat().st_ino
    index.copy_to(tmp_path / "mounted")
    assert (tmp_path / "mounted").stat().st_ino == inode
    sound(Index.open(tmp_path / "mounted"), holds)


def test_a_kill_before_the_database_is_signed(tmp_path: Path) -> None:
    """The file is there and empty: no index yet, unless a manifest says that there was one."""
    folder = tmp_path / "copy"
    (folder / "files").mkdir(parents=True)
    database_file = folder / layout.DATABASE_FILE
    database_file.touch()
    with pytest.raises(IndexNotFoundError, match="cut short"):
        Index.open(folder)
    with closing(sqlite3.connect(database_file)) as sql:  # pages, and nothing in them
        sql.execute("CREATE TABLE t (a)")
        sql.execute("DROP TABLE t")
    assert database_file.stat().st_size
    with pytest.raises(IndexNotFoundError, match="cut short"):
        Index.open(folder)
    database_file.write_bytes(b"")
    (folder / layout.MANIFEST_FILE).write_text("{}")
    with pytest.raises(IndexCorruptError, match="is not the database of an index"):
        Index.open(folder)


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "over another"])
def test_copy_that_was_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_new: bool) -> None:
    index, holds = filled(tmp_path / "i", 5)
    if not is_new:
        other, others = filled(tmp_path / "copy", 9)

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", fail)
    with pytest.raises(IndexWriteError, match="No space left"):
        index.copy_to(tmp_path / "copy")
    monkeypatch.undo()
    if is_new:
        with pytest.raises(IndexNotFoundError, match="cut short"):
            Index.open(tmp_path / "copy")
    else:
        sound(other, others)
        sound(Index.open(tmp_path / "copy"), others)
    index.copy_to(tmp_path / "copy")
    sound(Index.open(tmp_path / "copy"), holds)


def test_copy_that_was_killed_before_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of a database a kill has left, the next copy makes an index that opens."""
    index, holds = filled(tmp_path / "i", 5)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(database, "_sign", kill)
    with pytest.raises(KeyboardInterrupt):
        index.copy_to(tmp_path / "new")
    monkeypatch.undo()
    (tmp_path / "half").mkdir()
    with closing(sqlite3.connect(tmp_path / "half" / "index.sqlite")) as half:
        half.execute(f"PRAGMA application_id={database.APPLICATION_ID}")
    for name in ("new", "half"):
        index.copy_to(tmp_path / name)
        sound(Index.open(tmp_path / name), holds)


def test_copy_over_an_index_that_others_have_open(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 20)
    index.copy_to(tmp_path / "copy")
    mirror = Index.open(tmp_path / "copy")
    with mirror.reading() as view:
        before = view.snapshot
        index.delete([f"文書{i}" for i in range(15)])
        index.compact()
        index.copy_to(tmp_path / "copy")
        assert len(view.documents(np.flatnonzero(before.live))) == 20  # of the state that it looks at
    expected = {id: version for id, version in holds.items() if int(id[2:]) >= 15}
    sound(mirror, expected)
    mirror.delete(["文書19"])
    del expected["文書19"]
    sound(mirror, expected)
    other, others = filled(tmp_path / "other", 7)
    other.copy_to(tmp_path / "copy")
    for use in (lambda: search(mirror, model_index.query(1), 3), lambda: mirror.delete(["文書16"])):
        with pytest.raises(IndexNotFoundError, match="another one was put in its place"):
            use()
    sound(Index.open(tmp_path / "copy"), others)


def test_folder_that_was_removed_and_filled_again(tmp_path: Path) -> None:
    index, _ = filled(tmp_path / "i", 20)
    other, others = filled(tmp_path / "other", 7)
    shutil.rmtree(tmp_path / "i")
    with pytest.raises(IndexNotFoundError, match="it was removed"):
        index.delete(["文書1"])
    other.copy_to(tmp_path / "i")
    for use in (
        lambda: search(index, model_index.query(1), 3),
        lambda: index.delete(["文書16"]),
        index.compact,
        index.verify,
        lambda: index.copy_to(tmp_path / "backup"),
    ):
        with pytest.raises(IndexNotFoundError, match="Load it again"):
            use()
    sound(Index.open(tmp_path / "i"), others)
    assert not (tmp_path / "backup").exists()


def test_another_index_is_not_copied_over_a_backup_of_this_one(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 20)
    index.copy_to(tmp_path / "backup")
    other, _ = filled(tmp_path / "other", 7)
    other.copy_to(tmp_path / "i")
    for use in (lambda: index.copy_to(tmp_path / "backup"), index.verify):
        with pytest.raises(IndexNotFoundError, match="another one was put in its place"):
            use()
    sound(Index.open(tmp_path / "backup"), holds)


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "open"])
def test_copy_of_what_may_only_be_read_while_somebody_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_closed: bool
) -> None:
    writer, holds = filled(tmp_path / "i")
    if is_closed:
        writer.close()
    access, copy_files = os.access, copying._copy_files
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    index = Index.open(tmp_path / "i")

    def meanwhile(*given: Any) -> None:
        monkeypatch.setattr(copying, "_copy_files", copy_files)
        if is_closed:
            copy_files(*given)  # before the writer: all that comes after it is another state
        with monkeypatch.context() as undone:
            undone.setattr(os, "access", access)
            theirs = Index.open(tmp_path / "i")
        theirs.delete(["文書1"])
        theirs.append([model_index.document("新", 1)], model_index.embeddings([("新", 1)]))
        theirs.compact()
        if is_closed:
            theirs.close()
        else:
            copy_files(*given)  # files of the former state are gone

    monkeypatch.setattr(copying, "_copy_files", meanwhile)
    index.copy_to(tmp_path / "copy")
    monkeypatch.undo()
    del holds["文書1"]
    sound(Index.open(tmp_path / "copy"), holds | {"新": 1})


def test_copy_over_an_index_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the copy nor its writer removes what the other has just put in place."""
    index, holds = filled(tmp_path / "i")
    index.copy_to(tmp_path / "copy")
    writer = Index.open(tmp_path / "copy")
    real = copying.sweep

    def between(sql: sqlite3.Connection, folder: Path) -> bool:
        monkeypatch.setattr(copying, "sweep", real)
        writer.append([model_index.document("新", 1)], model_index.embeddings([("新", 1)]))
        return real(sql, folder)

    monkeypatch.setattr(copying, "sweep", between)
    index.copy_to(tmp_path / "copy")
    sound(Index.open(tmp_path / "copy"), holds | {"新": 1})

    def copied_meanwhile(sql: sqlite3.Connection, folder: Path) -> bool:
        monkeypatch.setattr(index_module, "sweep", real)
        index.copy_to(tmp_path / "copy")
        return real(sql, folder)

    monkeypatch.setattr(index_module, "sweep", copied_meanwhile)
    writer.compact()  # whose former files the copy puts back
    sound(Index.open(tmp_path / "copy"), holds)


def test_copy_onto_itself_changes_nothing(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 5)
    (tmp_path / "link").symlink_to(tmp_path / "i")
    index.copy_to(tmp_path / "link")
    sound(index, holds)


def test_second_copy_writes_only_what_is_new(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i")
    index.copy_to(tmp_path / "copy")
    before = {path.name: path.stat().st_ino for path in (tmp_path / "copy" / "files").iterdir()}
    index.append([model_index.document("新", 1)], model_index.embeddings([("新", 1)]))
    index.copy_to(tmp_path / "copy")
    after = {path.name: path.stat().st_ino for path in (tmp_path / "copy" / "files").iterdir()}
    assert sum(before.get(name) == inode for name, inode in after.items()) >= 6
    damaged = tmp_path / "copy" / "files" / next(name for name in after if name.endswith(".tokens.npy"))
    damaged.write_bytes(bytes(damaged.stat().st_size))
    index.copy_to(tmp_path / "copy")
    sound(Index.open(tmp_path / "copy"), holds | {"新": 1})


def test_what_cannot_be_removed_after_a_write_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, holds = filled(tmp_path / "i", 5)
    index.delete(["文書2"])
    del holds["文書2"]

    def fail(path: Path) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "iterdir", fail)
    index.compact()  # is committed all the same
    monkeypatch.undo()
    sound(index, holds)
    n_files = len(list((tmp_path / "i" / "files").iterdir()))
    index.delete(["文書1"])
    assert len(list((tmp_path / "i" / "files").iterdir())) < n_files
    del holds["文書1"]
    sound(Index.open(tmp_path / "i"), holds)


def test_folders_of_others_beside_the_index_stay(tmp_path: Path) -> None:
    filled(tmp_path / "i", 5)
    for name in ("candidates", "embeddings"):  # as format 1 had them
        (tmp_path / "i" / name).mkdir()
        (tmp_path / "i" / name / "応募者.csv").write_text("山田", encoding="utf-8")
    Index.open(tmp_path / "i").delete(["文書1"])
    assert len(list((tmp_path / "i").rglob("*.csv"))) == 2


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    index, holds = filled(tmp_path / "i", 5)
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text('{"name": "my app"}')
    (tmp_path / "file").write_text("a")
    for path in (app, tmp_path / "file"):
        with pytest.raises(InvalidInputError, match="exists and is no index"):
            index.copy_to(path)
    assert (app / "manifest.json").read_text() == '{"name": "my app"}'
    index.copy_to(tmp_path / "copy")
    (tmp_path / "copy" / "mine.txt").write_text("a")
    index.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy" / "mine.txt").read_text() == "a"
    sound(Index.open(tmp_path / "copy"), holds)


# Kills and crowds.


def test_ten_kills(tmp_path: Path) -> None:
    from tests import crash

    tally = crash.run(10, seed=1, folder=tmp_path)
    assert tally.kills == 10
    assert tally.acknowledged > 5  # however slow the machine


def test_ten_seconds_of_readers_and_a_writer(tmp_path: Path) -> None:
    from tests import soak

    told = soak.run(tmp_path / "i", 10, n_threads=8, n_processes=2)
    assert told["states_seen"] > 20
    assert min(told["of_kind"][kind] for kind in model_index.KINDS) > 20
    assert min(told["answers_of_processes"]) > 10
