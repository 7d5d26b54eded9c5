"""What files are called in an index: by their folder's name, and not by a machine's paths."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Mapping
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
        stored: gives the names of the files that are stored of a folder, by its name.
        notes: of folders that could not be called what they are.
    """

    places: dict[str, Place]
    stored: Callable[[str], Collection[str]] = field(default=lambda name: (), compare=False)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, known: Mapping[str, Any], stored: Callable[[str], Collection[str]] = lambda name: ()) -> Self:
        """Names that `to_json` gave, and what is stored of them."""
        return cls({name: Place(*place) for name, place in known.items()}, stored)

    def to_json(self) -> dict[str, list[str | bool]]:
        """As plain JSON."""
        return {name: list(place) for name, place in self.places.items()}

    def add(self, path: Path) -> None:
        """Give the folder of a path a name, unless the path lies in one that has.

        A folder of a known name is the one that it was, moved, where nothing is at that one's place now and
        the files that are stored of it are mostly here. Else they are two, and the new one's name gets a
        number.
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
        # A name that ends with a colon is of what no folder holds; see examples/qa_web.
        own = name = unicodedata.normalize("NFC", folder.name).rstrip(":") or "root"
        number = 1
        while name in self.places and not self._is_moved(name, folder):
            number += 1
            name = f"{own}-{number}"
        if name in self.places:
            former = Path(self.places[name].path)
            self.notes.append(f"{name} is {folder} now; it was {former}.")
            for inner, place in self.places.items():  # folders within it that have names have moved with it
                if inner != name and Path(place.path).is_relative_to(former):
                    there = folder / Path(place.path).relative_to(former)
                    self.places[inner] = place._replace(path=there.as_posix())
        elif name != own:
            self.notes.append(
                f"{folder} is called {name} in this index, since {own} is another folder: "
                f"{self.places[own].path}"
            )
        return name

    def _is_moved(self, name: str, folder: Path) -> bool:
        """Whether a folder is the one that had this name, at another place."""
        if Path(self.places[name].path).exists():
            return False
        below = [source.removeprefix(f"{name}/") for source in self.stored(name)]
        return not below or 2 * sum((folder / each).exists() for each in below) > len(below)

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
