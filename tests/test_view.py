"""jacolbert_rag.index.view: metadata in columns, which follow what is written."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jacolbert_rag import Document, TokenEmbeddings
from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.index import database
from jacolbert_rag.index.filters import Condition, Filter, matches
from jacolbert_rag.index.index import Index
from tests import model_index

SECRET = Condition("秘", "==", False)


def add(index: Index, *documents: Document) -> None:
    flat = np.ones((len(documents), model_index.DIM), dtype=np.float32) / 4
    index.append(documents, TokenEmbeddings(flat, np.arange(len(documents) + 1, dtype=np.int64)))


def found(index: Index, filter: Filter = SECRET) -> list[str]:
    return index.read(lambda view: view.ids(view.allowed(filter)))


def document(id: str, secret: bool, **metadata: Any) -> Document:
    return Document(id, "湖である。", {"秘": secret, **metadata})


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = model_index.create(tmp_path / "i", durable=False)
    add(index, document("文1", False), document("文2", True))
    yield index
    assert index.verify() == []
    index.close()


class Reads:
    """Rows whose metadata are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        real = database.metadata

        def metadata(*given: Any, **named: Any) -> Iterable[tuple[Sequence[int], Sequence[str]]]:
            for rows, texts in real(*given, **named):
                self.rows += rows
                yield rows, texts

        monkeypatch.setattr(database, "metadata", metadata)

    def taken(self) -> list[int]:
        rows, self.rows = self.rows, []
        return rows


def copy(source: Path, target: Path) -> None:
    """By SQLite's own means, as backups are made and put back."""
    with closing(sqlite3.connect(source)) as here, closing(sqlite3.connect(target)) as there:
        here.backup(there)


@pytest.mark.parametrize("is_seen", [True, False], ids=["seen", "unseen"])
@pytest.mark.parametrize("by_another", [False, True], ids=["mine", "another"])
def test_a_filter_after_a_database_was_put_back(
    index: Index, tmp_path: Path, by_another: bool, is_seen: bool
) -> None:
    copy(index.folder / "index.sqlite", tmp_path / "backup")
    number = index.read(lambda view: view.snapshot.generation)
    index.amend(restate=[document("文2", False)])
    index.amend(restate=[document("文1", True)])
    assert found(index) == ["文2"]
    copy(tmp_path / "backup", index.folder / "index.sqlite")
    if is_seen:
        assert found(index) == ["文1"]
    # The numbers of the history that was undone come again.
    with closing(Index.open(index.folder)) as other:
        writer = other if by_another else index
        writer.amend(delete=lambda _: ["文1"])
        if is_seen:
            assert found(index) == []
        add(writer, document("文3", True), document("文4", False))
        assert index.read(lambda view: view.snapshot.generation) == number + 2
    assert found(index) == ["文4"]
    assert index.read(lambda view: int(view.snapshot.live.sum())) == 3
    add(index, document("文5", False))
    assert found(index) == ["文4", "文5"]


@pytest.mark.parametrize("is_seen", [True, False], ids=["seen", "unseen"])
def test_a_filter_after_an_index_was_put_back_with_its_files(
    index: Index, tmp_path: Path, is_seen: bool
) -> None:
    shutil.copytree(index.folder / "files", tmp_path / "files")
    copy(index.folder / "index.sqlite", tmp_path / "backup")
    add(index, document("文3", False))
    assert found(index) == ["文1", "文3"]
    shutil.copytree(tmp_path / "files", index.folder / "files", dirs_exist_ok=True)
    copy(tmp_path / "backup", index.folder / "index.sqlite")
    if is_seen:
        assert found(index) == ["文1"]
    add(index, document("文3", True))  # the same number, the same row
    assert found(index) == ["文1"]


def test_only_what_was_written_is_read(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    assert found(index) == ["文1"]
    assert reads.taken() == [0, 1]
    assert found(index, Condition("秘", "==", True)) == ["文2"]
    assert reads.taken() == []
    add(index, document("文3", False))
    index.amend(restate=[document("文2", False)])
    assert found(index) == ["文1", "文2", "文3"]
    assert reads.taken() == [1, 2]
    index.amend(restate=[document("文1", True)])
    index.amend(restate=[document("文2", True)], delete=lambda _: ["文3"])
    index.update_candidates(anew=True)
    assert found(index) == []
    assert sorted(reads.taken()) == [0, 1]
    add(index, document("文1", False))
    assert found(index) == ["文1"]
    assert reads.taken() == [3]
    index.compact()
    assert found(index) == ["文1"]
    assert reads.taken() == [0, 1]


def test_what_another_process_has_written_is_read(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(index) == ["文1"]
    with closing(Index.open(index.folder)) as other:
        other.amend(restate=[document("文2", False)])
        add(other, document("文3", True))
    reads = Reads(monkeypatch)
    assert found(index) == ["文1", "文2"]
    assert reads.taken() == [1, 2]


@pytest.mark.parametrize("limit", ["MAX_CHANGES", "MAX_RESTATED"])
def test_what_was_written_long_ago_is_forgotten(
    index: Index, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(database, limit, 2)
    assert found(index) == ["文1"]
    for i in range(4):
        index.amend(restate=[document("文1", bool(i % 2)), document("文2", False, 版=i)])
        assert len(index.read(lambda view: view.state()["changes"])) <= 2
    assert found(index) == ["文2"]
    index.amend(restate=[document("文1", False), document("文2", True)])
    assert found(index) == ["文1"]


def test_titles_can_be_asked(index: Index) -> None:
    titles = ["規程", "", '"{\\', "\ud800", "無視"]
    metadata: list[dict[str, Any]] = [{}, {"a": 1}, {"a": [{}]}, {}, {"title": "自前"}]
    given = [
        Document(f"題{i}", "湖", each, title)
        for i, (title, each) in enumerate(zip(titles, metadata, strict=True))
    ]
    add(index, *given)
    filters = [Condition("title", "==", title) for title in (*titles[2:], "規程", "自前")]
    filters += [Condition("title", "exists", value=False), Condition("a", "exists", value=True)]
    for filter in filters:
        held = {document.id for document in given if matches(filter, document.fields)}
        assert {id for id in found(index, filter) if id[0] == "題"} == held
    index.amend(restate=[replace(given[0], metadata={"title": 3}), replace(given[1], metadata={"b": 1})])
    assert found(index, Condition("title", "==", 3)) == ["題0"]
    assert found(index, Condition("title", "==", "規程")) == []


@pytest.mark.parametrize(
    "wrap", [lambda value: [value], lambda value: {"あ": value}, lambda value: (value, 1)]
)
def test_metadata_within_metadata_are_limited(index: Index, wrap: Callable[[Any], Any]) -> None:
    value: Any = 1
    for _ in range(99):
        value = wrap(value)
    deepest = document("深", False, 値=value)
    database.check_documents([deepest])
    add(index, deepest)
    assert "深" in found(index, Condition("値", "exists", value=True))
    assert found(index, Condition("値", "==", value)) == ["深"]
    for n in (1, 50, 900):
        for _ in range(n):
            value = wrap(value)
        with pytest.raises(InvalidInputError, match="document '深' has more than 100 .*Flatten"):
            database.check_documents([document("深", False, 値=value)])


def test_wide_metadata_are_not_deep() -> None:
    wide = {f"鍵{i}": [[i], {"a": "[[[{{{"}] for i in range(200)}
    database.check_documents([document("広", False, **wide)])
    database.check_documents([document("広", False, 括弧="[" * 1_000)])


def test_an_old_state_has_columns_of_its_own(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    with index.reading() as old:
        index.amend(restate=[document("文2", False)])
        assert found(index) == ["文1", "文2"]
        reads = Reads(monkeypatch)
        assert old.ids(old.allowed(SECRET)) == ["文1"]
        reads.taken()
        assert found(index) == ["文1", "文2"]  # those of the newest are still there
        assert reads.taken() == []


def test_a_copy_over_an_index_changes_its_columns(index: Index, tmp_path: Path) -> None:
    index.copy_to(tmp_path / "copy")
    with closing(Index.open(tmp_path / "copy")) as copy:
        assert found(copy) == ["文1"]
        index.amend(restate=[document("文1", True), document("文2", False)])
        index.copy_to(tmp_path / "copy")
        assert found(copy) == ["文2"]


def test_an_index_that_tells_no_writes(index: Index) -> None:
    # Of an earlier version: everything is read, once.
    with closing(sqlite3.connect(index.folder / "index.sqlite")) as sql:
        sql.execute("DELETE FROM state WHERE key IN ('write', 'changes')")
        sql.commit()
    with closing(Index.open(index.folder)) as again:
        assert found(again) == ["文1"]
        assert again._columns.columns is again.read(lambda view: view.kept.of(view.snapshot, view.sql))
        again.amend(restate=[document("文2", False)])
        assert found(again) == ["文1", "文2"]
