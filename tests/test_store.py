from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from jacolbert_rag import (
    Document,
    IndexCorruptError,
    IndexMismatchError,
    IndexNotFoundError,
    InvalidInputError,
    StoreConfig,
    TokenEmbeddings,
)
from jacolbert_rag.index.store import Store, check_documents
from tests.test_maxsim import ragged

DIM = 8


def manifest(dtype: str = "float32") -> dict[str, object]:
    rest = dict.fromkeys(("model", "fingerprint", "encoder", "pooling", "candidates", "search"))
    return {**rest, "dim": DIM, "store": StoreConfig(dtype=dtype).to_json()}


def all_documents(store: Store) -> list[Document]:
    return store.documents(np.flatnonzero(store.live))


def make(folder: Path, **kwargs) -> Store:
    return Store.create(folder, manifest(**kwargs), durable=True)


def some(n: int, start: int = 0) -> tuple[list[Document], TokenEmbeddings]:
    documents = [Document(f"文書{i}", f"本文{i}", {"番号": i}, f"題{i}") for i in range(start, start + n)]
    return documents, ragged([1 + i % 4 for i in range(start, start + n)], dim=DIM, seed=start)


def same(store: Store, rows, expected: TokenEmbeddings) -> None:
    got = store.embeddings(np.asarray(rows, dtype=np.int64))
    assert np.array_equal(got.offsets, expected.offsets)
    assert np.array_equal(got.flat, expected.flat)


def test_what_was_appended_comes_back(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    documents, embeddings = some(5)
    rows = store.append(documents, embeddings)
    assert list(rows) == [0, 1, 2, 3, 4]
    assert store.documents(rows) == documents
    same(store, rows, embeddings)
    same(store, [3, 1], embeddings.take([3, 1]))
    assert all_documents(store) == documents


def test_a_second_process_sees_it(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    documents, embeddings = some(5)
    store.append(documents, embeddings)
    again = Store.open(tmp_path / "i")
    assert len(again) == 5
    assert again.documents([4, 0]) == [documents[4], documents[0]]
    same(again, range(5), embeddings)


@pytest.mark.parametrize("size", [1, 3])
def test_many_small_appends_make_few_segments(tmp_path: Path, size: int) -> None:
    store = make(tmp_path / "i")
    parts = [some(size, start=i * size) for i in range(40)]
    for documents, embeddings in parts:
        store.append(documents, embeddings)
    n_segments = sum(1 for _ in store.blocks())
    assert n_segments <= 8
    whole = TokenEmbeddings.concatenate([embeddings for _, embeddings in parts])
    same(store, range(40 * size), whole)
    same(store, [39, 0, 17], whole.take([39, 0, 17]))
    assert len(list((tmp_path / "i" / "embeddings").iterdir())) == 2 * n_segments
    same(Store.open(tmp_path / "i"), range(40 * size), whole)


def test_ids_with_a_prefix(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    ids = ["手引", "手引#1", "手引#", "手引#\U0010ffff", "手引$", "手", "手引\ud800", "#", "a", "\ud8001"]
    store.append([Document(id, "本文") for id in ids], ragged([1] * len(ids), dim=DIM))
    assert store.ids_with_prefix("手引#") == ["手引#", "手引#1", "手引#\U0010ffff"]
    assert set(store.ids_with_prefix("手引")) == {id for id in ids if id.startswith("手引")}
    assert store.ids_with_prefix("\ud800") == ["\ud8001"]
    assert store.ids_with_prefix("なし") == []
    store.delete(["手引#1", "手引#"])
    store.append([Document("手引#1", "新しい本文")], ragged([1], dim=DIM))
    assert store.ids_with_prefix("手引#") == ["手引#1", "手引#\U0010ffff"]
    assert len(store.ids_with_prefix("")) == len(store) == len(ids) - 1


def test_a_prefix_is_looked_up_in_the_index_of_ids(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    asked: list[str] = []
    store._sql.set_trace_callback(asked.append)
    store.ids_with_prefix("手引#")
    (plan,) = store._sql.execute(f"EXPLAIN QUERY PLAN {asked[0]}").fetchall()
    assert "SEARCH documents USING COVERING INDEX" in plan[-1]


def test_same_id_replaces(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    documents, embeddings = some(3)
    store.append(documents, embeddings)
    new = Document("文書1", "新しい本文")
    rows = store.append([new], embeddings.take([0]))
    assert len(store) == 3
    assert store.documents(rows) == [new]
    assert list(store.live) == [True, False, True, True]
    assert store.rows_of(["文書1"]) == {"文書1": 3}


def test_delete(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    documents, embeddings = some(3)
    store.append(documents, embeddings)
    assert store.delete(["知らない", "文書2", "文書0", "文書2"]) == ["文書2", "文書0"]
    assert store.delete(["文書2"]) == []
    assert [d.id for d in all_documents(Store.open(tmp_path / "i"))] == ["文書1"]


def test_merging_forgets_the_tokens_of_dead_rows(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    documents, embeddings = some(4)
    store.append(documents, embeddings)
    store.delete([d.id for d in documents[:3]])
    more, more_embeddings = some(8, start=10)
    rows = store.append(more, more_embeddings)
    assert store.n_tokens == embeddings.lengths[3] + more_embeddings.lengths.sum()
    same(store, [3], embeddings.take([3]))
    same(store, rows, more_embeddings)


def test_everything_deleted_and_begun_again(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    store.append(*some(2))
    store.delete(["文書0", "文書1"])
    store.append(*some(3, start=5))
    again = Store.open(tmp_path / "i")
    assert [d.id for d in all_documents(again)] == ["文書5", "文書6", "文書7"]


def test_float16_is_stored_as_such(tmp_path: Path) -> None:
    store = make(tmp_path / "i", dtype="float16")
    store.append(*some(3))
    _, block = next(iter(store.blocks()))
    assert block.flat.dtype == np.float16
    assert isinstance(block.flat, np.memmap)


@pytest.mark.parametrize(
    "document",
    [
        Document("a", "本文\0と\ud800と\n改行", {"鍵": ["値", 1, 2.5, None, True, {"深": "い"}]}, "題\udfff"),
        Document("\ud800id", "𠮷野家"),
        Document("id/with '引用' \" and ;--", "x" * 1_000_000),
    ],
)
def test_any_text_comes_back_as_it_was(tmp_path: Path, document: Document) -> None:
    store = make(tmp_path / "i")
    rows = store.append([document], ragged([2], dim=DIM))
    assert store.documents(rows) == [document]
    assert Store.open(tmp_path / "i").documents(rows) == [document]


def test_over_a_thousand_ids_at_once(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    documents, embeddings = some(1200)
    store.append(documents, embeddings)
    assert len(store.rows_of(d.id for d in documents)) == 1200
    assert store.documents(range(1200)) == documents
    assert len(store.delete([d.id for d in documents])) == 1200
    assert len(store) == 0


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([Document("a", "x"), Document("a", "y")], "'a' is there twice in one call"),
        ([Document("", "x")], "document 0 has the id ''"),
        ([Document(3, "x")], "document 0 has the id 3"),  # type: ignore[arg-type]
        ([Document("a", None)], "text of document 'a' is a NoneType; expected a str"),  # type: ignore[arg-type]
        ([Document("a", "x", title=3)], "title of document 'a' is a int"),  # type: ignore[arg-type]
        ([Document("a", "x", [1, 2])], "metadata of document 'a' is a list; expected a Mapping"),  # type: ignore[arg-type]
        (
            [Document("a", "x", {"日付": object()})],
            "metadata of document 'a' is not JSON.*strings or numbers",
        ),
    ],
)
def test_what_could_not_come_back_is_refused(documents: list[Document], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_documents(documents)


def test_copy_is_whole_and_replaces_an_index_only(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    documents, embeddings = some(3)
    store.append(documents, embeddings)
    store.copy_to(tmp_path / "deep" / "copy")
    store.append(*some(1, start=9))
    assert len(Store.open(tmp_path / "deep" / "copy")) == 3
    store.copy_to(tmp_path / "deep" / "copy")
    assert len(Store.open(tmp_path / "deep" / "copy")) == 4
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["copy"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "大事.txt").write_text("x")
    with pytest.raises(InvalidInputError, match="exists and is no index, so it is left as it is"):
        store.copy_to(tmp_path / "other")
    assert (tmp_path / "other" / "大事.txt").read_text() == "x"


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError, match=r"no index in .*Name the folder that `save`"):
        Store.open(tmp_path)
    with pytest.raises(FileNotFoundError):
        Store.open(tmp_path / "nowhere")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    store = make(tmp_path / "i")
    store.append(*some(6))
    store.close()
    return tmp_path / "i"


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("which", ["manifest.json", "documents.sqlite", ".offsets.npy", ".npy"])
def test_missing_file_is_named_and_the_rest_left_alone(built: Path, which: str) -> None:
    victim = next(
        p for p in _files(built) if p.name.endswith(which) and (which != ".npy" or "offsets" not in p.name)
    )
    victim.rename(built.parent / "aside")
    before = [p.name for p in _files(built)]
    with pytest.raises(IndexCorruptError, match=f"{victim.name} is missing from the index"):
        Store.open(built)
    assert [p.name for p in _files(built)] == before
    (built.parent / "aside").rename(victim)
    assert len(Store.open(built)) == 6


@pytest.mark.parametrize("which", ["manifest.json", "documents.sqlite", ".offsets.npy", ".npy"])
def test_truncated_file_is_named(built: Path, which: str) -> None:
    victim = next(
        p for p in _files(built) if p.name.endswith(which) and (which != ".npy" or "offsets" not in p.name)
    )
    victim.write_bytes(victim.read_bytes()[:50])
    with pytest.raises(IndexCorruptError, match=victim.name):
        Store.open(built)


def test_arrays_of_another_index_are_refused(built: Path, tmp_path: Path) -> None:
    victim = next(p for p in _files(built) if p.name.endswith("offsets.npy"))
    np.save(victim, np.array([0, 1, 2], dtype=np.int64))
    with pytest.raises(IndexCorruptError, match=r"has shape \(3,\), expected \(7,\)"):
        Store.open(built)


def test_documents_without_embeddings_are_found(built: Path) -> None:
    sql = sqlite3.connect(built / "documents.sqlite")
    with sql:
        sql.execute("INSERT INTO documents VALUES (99, 'x', '', 'x', '{}')")
    sql.close()
    with pytest.raises(IndexCorruptError, match="documents without token embeddings"):
        Store.open(built)


def test_newer_format_is_refused(built: Path) -> None:
    values = json.loads((built / "manifest.json").read_text()) | {"format_version": 99}
    (built / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(IndexMismatchError, match="index format 99; this version .* reads up to 1"):
        Store.open(built)


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(built: Path) -> None:
    for name in ("deadbeef00000000.npy", ".cafe.npy"):
        (built / "embeddings" / name).write_bytes(b"half")
    store = Store.open(built)
    assert len(store) == 6
    store.append(*some(1, start=50))
    assert not [p for p in _files(built) if "deadbeef" in p.name or "cafe" in p.name]
    assert len(Store.open(built)) == 7


def test_two_writers_take_turns(tmp_path: Path) -> None:
    first = make(tmp_path / "i")
    first.append(*some(3))
    second = Store.open(tmp_path / "i")
    documents, embeddings = some(5, start=10)
    second.append(documents, embeddings)
    second.delete(["文書0"])
    more, more_embeddings = some(2, start=20)
    rows = first.append(more, more_embeddings)
    assert list(rows) == [8, 9]
    for store in (first, Store.open(tmp_path / "i")):
        assert [d.id for d in all_documents(store)] == [
            "文書1",
            "文書2",
            *(d.id for d in [*documents, *more]),
        ]
        same(store, range(3, 8), embeddings)
        same(store, rows, more_embeddings)
    with second.reading():
        assert len(second) == 9
        same(second, rows, more_embeddings)


def test_reading_block_sees_one_state(tmp_path: Path) -> None:
    writer = make(tmp_path / "i")
    writer.append(*some(3))
    reader = Store.open(tmp_path / "i")
    with reader.reading():
        writer.delete(["文書1"])
        writer.append(*some(9, start=30))
        assert [d.id for d in all_documents(reader)] == ["文書0", "文書1", "文書2"]
        same(reader, range(3), some(3)[1])
    with reader.reading():
        assert len(reader) == 11


def test_opening_while_another_process_merges(tmp_path: Path) -> None:
    writer = make(tmp_path / "i")
    writer.append(*some(2))
    done = threading.Event()

    def write() -> None:
        try:
            for i in range(80):
                writer.append(*some(2, start=2 * i + 10))
        finally:  # or a failure would never end the loop below
            done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    while not done.is_set():
        store = Store.open(tmp_path / "i")
        assert len(store) >= seen
        seen = len(store)
        store.close()
    thread.join()
    assert len(Store.open(tmp_path / "i")) == 162


def test_failing_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path / "i")
    documents, embeddings = some(4)
    store.append(documents, embeddings)
    monkeypatch.setattr("jacolbert_rag.index.store._encode", lambda d: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.append(*some(3, start=2))
    monkeypatch.undo()
    assert all_documents(store) == documents
    same(store, range(4), embeddings)
    store.append(*some(3, start=2))
    assert [d.id for d in all_documents(Store.open(tmp_path / "i"))] == [f"文書{i}" for i in range(5)]


def test_interrupt_after_the_commit_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path / "i")
    store.append(*some(4))
    documents, embeddings = some(3, start=10)
    real = np.concatenate

    def interrupt(arrays, *args, **kwargs):
        if arrays[0] is store.live:  # the first thing after the commit
            raise KeyboardInterrupt
        return real(arrays, *args, **kwargs)

    monkeypatch.setattr(np, "concatenate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.append(documents, embeddings)
    monkeypatch.undo()
    for again in (store, Store.open(tmp_path / "i")):
        with again.reading():
            assert [d.id for d in all_documents(again)] == [f"文書{i}" for i in (0, 1, 2, 3, 10, 11, 12)]
            same(again, [4, 5, 6], embeddings)
    store.append(*some(1, start=50))
    assert len(Store.open(tmp_path / "i")) == 8


def test_kill_between_the_renames_of_a_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path / "i")
    store.append(*some(3))
    store.copy_to(tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / ".copy.replaced")
    assert len(Store.open(tmp_path / "copy")) == 3
    # and where the second rename fails, the old index is back at once
    real = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: real(a, b) if "replaced" in f"{a}{b}" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.copy_to(tmp_path / "copy")
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "i"]
    assert len(Store.open(tmp_path / "copy")) == 3


def test_copy_of_the_folder_without_the_log_is_whole(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    store.append(*some(3))
    shutil.copytree(tmp_path / "i", tmp_path / "c", ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    assert len(Store.open(tmp_path / "c")) == 3


def test_closed_store_says_so(tmp_path: Path) -> None:
    store = make(tmp_path / "i")
    store.close()
    with pytest.raises(InvalidInputError, match="was closed. Load it again"), store.reading():
        pass
    with pytest.raises(InvalidInputError, match="was closed"):
        store.append(*some(1))


@pytest.mark.parametrize("key", ["model", "dim", "store", "id"])
def test_manifest_without_a_key_is_refused(built: Path, key: str) -> None:
    values = json.loads((built / "manifest.json").read_text())
    del values[key]
    (built / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(IndexCorruptError, match=key):
        Store.open(built)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_kill_while_adding_keeps_every_acknowledged_document(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tests.test_store import make, some
        store = make(Path(sys.argv[1]))
        for i in range(10_000):
            store.append(*some(3, start=3 * i))
            if i % 5 == 4:
                store.delete([f"文書{3 * i}"])
            print(i, flush=True)
        """
    )
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        last = -1
        for line in process.stdout:
            last = int(line)
            if last >= 12 + 7 * attempt:
                process.send_signal(signal.SIGKILL)
                break
        last = max([last, *map(int, process.stdout)])
        process.wait()
        store = Store.open(folder)
        got = {d.id for d in all_documents(store)}
        gone = {f"文書{3 * i}" for i in range(4, last + 1, 5)}
        acknowledged = {f"文書{i}" for i in range(3 * (last + 1))} - gone
        assert acknowledged <= got
        # What was in flight is there whole or not at all.
        assert len(got - acknowledged) in (0, 2, 3)
        documents, embeddings = some(3, start=3 * last)
        row = store.rows_of([documents[1].id])[documents[1].id]
        same(store, [row], embeddings.take([1]))
