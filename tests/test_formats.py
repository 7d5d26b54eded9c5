"""An index of every format that was ever released opens, holds what was stored, and finds it."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jacolbert_rag import Document, IndexCorruptError, JaColBERTRetriever
from jacolbert_rag.errors import IndexWriteError
from jacolbert_rag.index import database
from jacolbert_rag.index.index import Index
from tests.make_index import DATA, MODEL, documents

FORMATS = sorted(path.name for path in (DATA / "indexes").iterdir() if path.is_dir())
QUERY = "大阪は商業の町"


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, opened from where the model's relative name leads to it."""
    monkeypatch.chdir(DATA)
    shutil.copytree(DATA / "indexes" / request.param, tmp_path / "index")
    return tmp_path / "index"


def test_every_format_is_kept() -> None:
    assert [f"format-{i}" for i in range(1, database.FORMAT_VERSION + 1)] == FORMATS


def test_opens_holds_and_finds(folder: Path) -> None:
    retriever = JaColBERTRetriever.open(folder, dtype="float32")
    assert sorted(retriever, key=lambda d: d.id) == sorted(documents(), key=lambda d: d.id)
    assert retriever.verify() == []
    # A model of random weights tells documents apart by less than residuals of 4 bits may change.
    expected = {hit.id: hit.score for hit in retriever.rerank(QUERY, documents())}
    found = retriever.search(QUERY, 3, exact=True)
    assert [hit.score for hit in found] == pytest.approx([expected[hit.id] for hit in found], abs=0.3)
    assert retriever.search(QUERY, 3) == found
    retriever.add([Document("新", "琵琶湖は湖だ。")])
    retriever.delete(["文書0"])
    retriever.close()
    again = JaColBERTRetriever.open(folder, dtype="float32")
    assert set(again.ids()) == {*(d.id for d in documents()), "新"} - {"文書0"}
    assert again.verify() == []


@pytest.fixture
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(DATA)
    shutil.copytree(DATA / "indexes" / "format-1", tmp_path / "index")
    return tmp_path / "index"


def test_nothing_of_the_former_format_is_left(former: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Index.open(former).close()
    assert "format 1" in caplog.text
    assert sorted(path.name for path in former.iterdir()) == ["files", "index.sqlite", "manifest.json"]


def test_two_processes_open_a_former_format_at_once(former: Path) -> None:
    code = "import sys; from pathlib import Path; from jacolbert_rag.index.index import Index; "
    code += "Index.open(Path(sys.argv[1]))"
    running = [subprocess.Popen([sys.executable, "-c", code, str(former)]) for _ in range(3)]
    found: list[Index] = []
    threads = [threading.Thread(target=lambda: found.append(Index.open(former))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert [process.wait() for process in running] == [0, 0, 0]
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for index in found:
        with index.reading() as view:
            assert view.snapshot.n_live == len(documents())
        assert index.verify() == []


def test_a_former_format_that_cannot_be_put_into_this_one_is_left(
    former: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in former.rglob("*.*")}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(IndexWriteError, match="No space left"):
        Index.open(former)
    monkeypatch.undo()
    assert all(path.read_bytes() == data for path, data in before.items())
    index = Index.open(former)
    with index.reading() as view:
        assert view.snapshot.n_live == len(documents())


@pytest.mark.parametrize("harm", ["missing", "truncated"])
def test_a_damaged_former_format_says_so(former: Path, harm: str) -> None:
    path = next(path for path in (former / "embeddings").glob("*.npy") if "offsets" not in path.name)
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(IndexCorruptError, match="format 1"):
        Index.open(former)
    assert (former / "documents.sqlite").is_file()


def test_samples_hold_no_path_of_a_machine() -> None:
    for path in (DATA / "indexes").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert str(DATA).encode() not in data, path
            assert os.path.expanduser("~").encode() + b"/" not in data, path
    for name in FORMATS:
        base = DATA / "indexes" / name
        assert f'"model": "{MODEL}"' in (base / "manifest.json").read_text(encoding="utf-8")
        for file in base.glob("*.sqlite"):
            with sqlite3.connect(file) as sql:
                assert sql.execute("PRAGMA integrity_check").fetchone() == ("ok",)
