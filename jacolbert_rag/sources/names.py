"""What files are called in an index: by their folder's name, and not by a machine's paths."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self


class Place(NamedTuple):
    """Where a named folder was when it was indexed last.

    Attributes:
        path: absolute.
        is_whole: whether all below it was named, not only files that lie in it.
    """

    path: str
    is_whole: bool

    def holds(self, path: Path) -> bool:
        """Whether a path is called by this folder's name."""
        return path.is_relative_to(self.path) if self.is_whole else path.parent == Path(self.path)


def placed(path: Path) -> Path:
    """Where a path is: absolute, without links but a file's own, which may lead out of its folder."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


@dataclass
class FolderNames:
    """What folders are called in an index, wherever a command runs and wherever they have moved to.

    A file's name is that of the folder that was named, and its path below that: `handbook/rules/travel.md`.
    Of a file that was named itself it is the folder that it lies in.

    Attributes:
        places: by name.
        notes: of folders that could not be called what they are.
    """

    places: dict[str, Place]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Names that `to_json` gave."""
        return cls({name: Place(*place) for name, place in stored.items()})

    def to_json(self) -> dict[str, list[str | bool]]:
        """As plain JSON."""
        return {name: list(place) for name, place in self.places.items()}

    def add(self, path: Path) -> None:
        """Give the folder of a path a name, unless the path lies in one that has.

        A folder of a known name is the one that it was, moved, where nothing is at that one's place now.
        Where that one is still there, they are two, and the new one's name gets a number.
        """
        path, is_whole = placed(path), path.is_dir()
        if self._around(path) is not None:
            return
        folder = path if is_whole else path.parent
        name = next((name for name, place in self.places.items() if Path(place.path) == folder), None)
        if name is None:
            name = self._new_name(folder)
        self.places[name] = Place(folder.as_posix(), is_whole)

    def _new_name(self, folder: Path) -> str:
        own = name = unicodedata.normalize("NFC", folder.name) or "root"
        number = 1
        while name in self.places and Path(self.places[name].path).exists():
            number += 1
            name = f"{own}-{number}"
        if name in self.places:
            self.notes.append(f"{name} is {folder} now; it was {self.places[name].path}.")
        elif name != own:
            self.notes.append(
                f"{folder} is called {name} in this index, since {own} is {self.places[own].path}, which is "
                "still there."
            )
        return name

    def name_of(self, path: Path) -> str:
        """The name of a path that was added, or lies in a folder that was."""
        path = placed(path)
        name = self._around(path)
        if name is None:
            raise KeyError(path)
        # Of a file system that takes が apart, as a person types it.
        below = unicodedata.normalize("NFC", path.relative_to(self.places[name].path).as_posix())
        return name if below == "." else f"{name}/{below}"

    def starts_within(self, folder: Path) -> list[str]:
        """What the names of all files of a folder that was added begin with."""
        folder = placed(folder)
        inner = [name for name, place in self.places.items() if Path(place.path).is_relative_to(folder)]
        return [f"{name}/" for name in dict.fromkeys([self.name_of(folder), *inner])]

    def _around(self, path: Path) -> str | None:
        """The name of the innermost folder that a path is called by."""
        found = [name for name, place in self.places.items() if place.holds(path)]
        return max(found, key=lambda name: len(self.places[name].path), default=None)
