"""Copies of an index: in a new folder, or in the place of another index, whose readers may be at work."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from jacolbert_rag.errors import InvalidInputError
from jacolbert_rag.index import database, files, layout
from jacolbert_rag.index.connections import Connections, writing_errors
from jacolbert_rag.index.layout import DATABASE_FILE, DERIVED, FILES_FOLDER


def copy_index(source: Connections, manifest: Mapping[str, Any], target: Path) -> None:
    """Copy an index to a folder that is new, empty, or an index, which is replaced in one transaction.

    Files that are there already, from an earlier copy, are not copied again. Where the index may only be
    read, nobody can be kept from writing it meanwhile, and that is noticed before anything is replaced.

    Args:
        source: of the index; nobody else of this process writes it.
        manifest: of the index.
        target: the folder, resolved.

    Raises:
        InvalidInputError: the folder holds something that is no index.
        OverwrittenError: the index may only be read, and somebody else has written it meanwhile.
        IndexNotFoundError: the folder of the index has another one by now.
        IndexMismatchError: the folder holds an index of a newer version.
        IndexWriteError: it could not be written; what was there is whole.
    """
    if not layout.may_be_filled(target):
        raise InvalidInputError(
            f"{target} exists and is no index, so it is left as it is. Name a new folder."
        )
    with writing_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        # The database first: it tells a copy that was cut short from a folder of something else.
        with closing(database.connect(target / DATABASE_FILE, durable=True, new=True)) as sql:
            layout.check_version(target, database.format_version(sql))
            (target / FILES_FOLDER).mkdir(exist_ok=True)
            with _of_one_state(source) as uri:
                sql.execute("ATTACH ? AS source", (uri,))
                sql.execute("BEGIN IMMEDIATE")  # locks what may be written: nobody removes a file meanwhile
                source.check_file()
                if database.read_state(sql, "source")["manifest"]["id"] != manifest["id"]:
                    raise layout.gone(source.folder)
                _copy_files(sql, source, target)
                database.take_over(sql)
            sql.execute("COMMIT")  # where it does not come to that, closing rolls back
            sql.execute("DETACH source")
            sweep(sql, target)
        # The database says the same, and who opens the folder mends it.
        with suppress(OSError):
            layout.write_manifest(target, manifest, durable=True)
        layout.remove_former(target)
        for path in (target, target.parent):
            files.sync(path)


@contextmanager
def _of_one_state(source: Connections) -> Iterator[str]:
    """The address to attach a database by; what is read of it in the block is of one state.

    Raises:
        OverwrittenError: it is not, because the folder may only be read, and somebody else has written it.
    """
    if not source.read_only:
        yield f"{source.path.as_uri()}?mode=rw"
        return
    is_immutable, stamp = not database.has_log(source.path), database.stamp(source.path)
    try:
        yield database.read_only_uri(source.path, immutable=is_immutable)
    finally:  # what SQLite has found in two states may look like damage
        if is_immutable and database.stamp(source.path) != stamp:
            raise source.overwritten()


def _copy_files(sql: sqlite3.Connection, source: Connections, target: Path) -> None:
    """Copy the files that the attached database "source" names, but for those that are there already."""
    there = database.files(sql) if database.is_made(sql) else {}
    for name, record in database.files(sql, "source").items():
        if there.get(name) == record and files.damage(target, record) is None:
            continue
        new = target / f"{name}.new"
        try:
            shutil.copyfile(source.folder / name, new)
        except FileNotFoundError:
            if name.endswith(DERIVED):  # the copy makes it anew
                continue
            if source.read_only and _is_behind(sql, source):
                raise source.overwritten() from None
            raise layout.missing(source.folder / name) from None
        files.sync(new)
        os.replace(new, target / name)
    files.sync(target / FILES_FOLDER)


def _is_behind(sql: sqlite3.Connection, source: Connections) -> bool:
    """Whether there is a newer state of the source than the one that is attached."""
    with source.reading() as newest:
        return database.generation(newest) != database.read_state(sql, "source").get("generation")


def sweep(sql: sqlite3.Connection, folder: Path) -> bool:
    """Remove files that do not count, unless somebody is writing; whether all are gone.

    Only under the lock: what a write has put in place counts no sooner than it commits, and a name that
    does not count any more may count again, where an index is copied over its own copy.
    """
    with database.without_waiting(sql):
        try:
            sql.execute("BEGIN IMMEDIATE")
            return _remove_unnamed(folder, database.files(sql))
        except (OSError, sqlite3.DatabaseError):
            return False
        finally:
            sql.rollback()


def _remove_unnamed(folder: Path, named: Mapping[str, Any]) -> bool:
    """Remove the files that are not named, where nobody else may write; whether all are gone."""
    is_done = True
    for file in (folder / FILES_FOLDER).iterdir():
        if f"{FILES_FOLDER}/{file.name}" not in named:
            try:
                file.unlink(missing_ok=True)
            except OSError:  # Windows, while a memory map looks at it; a later writer removes it
                is_done = False
    return is_done
