"""Which datasets are at hand, by name: in the repository, beside it, or prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.catalog import DATASETS, find
from evals.prepare import is_prepared, place_of, prepare
from evals.sources import Library
from jacolbert_rag.errors import InvalidInputError, JaColBERTError

ROOT = Path(__file__).parents[1]
# Of the repository: name -> folder and split.
OWN = {
    "demo": (ROOT / "examples" / "corpus", "test"),
    "demo-paraphrase": (ROOT / "examples" / "corpus", "paraphrase"),
}
SPLITS = ("test", "dev", "validation", "eval")  # the first that is there, where nobody named one


@dataclass(frozen=True)
class Place:
    """A dataset and where it lies.

    Attributes:
        name: for results.
        folder: in BEIR layout; None where it is not at hand.
        split: of its queries.
        measure: that its authors report first.
        reason: why it is not at hand, and what to do; "" where it is.
        is_named: by the command line: that it cannot be used is an error then, and else a row.
    """

    name: str
    folder: Path | None
    split: str
    measure: str = "nDCG@10"
    reason: str = ""
    is_named: bool = False


def named(name: str, library: Library) -> Place:
    """A dataset of the repository or of the catalog, prepared now where it is not.

    Raises:
        InvalidInputError: there is none of that name.
        DatasetError: it cannot be had.
    """
    if name in OWN:
        return Place(name, *OWN[name], is_named=True)
    dataset = find(name)
    if dataset is None:
        known = ", ".join((*OWN, *(each.name for each in DATASETS)))
        raise InvalidInputError(
            f"there is no dataset {name!r}; known are {known}. A folder is named by --data."
        )
    return Place(name, prepare(dataset, library), dataset.split, dataset.measure, is_named=True)


def all_places(roots: Sequence[Path], library: Library) -> list[Place]:
    """Every dataset there is: the repository's, those of the catalog, and the other folders of roots.

    A folder of a root stands in for the dataset of its name.

    Raises:
        InvalidInputError: a root is no folder.
    """
    beside = of_roots(roots)
    places = [Place(name, *place) for name, place in OWN.items() if name not in beside]
    for dataset in DATASETS:
        if dataset.name in beside:
            continue
        folder: Path | None = place_of(dataset.name, library.cache)
        reason = ""
        if not is_prepared(dataset, library.cache):
            try:
                if library.offline:
                    folder, reason = None, f"not here: python -m evals.prepare {dataset.name}"
                else:
                    folder = prepare(dataset, library)
            except JaColBERTError as error:
                folder, reason = None, f"{error} To try again: python -m evals.prepare {dataset.name}"
        places.append(Place(dataset.name, folder, dataset.split, dataset.measure, reason))
    return [*places, *beside.values()]


def of_roots(roots: Sequence[Path]) -> dict[str, Place]:
    """The folders of all roots, by name.

    Raises:
        InvalidInputError: a root is no folder, or two have a folder of the same name.
    """
    found: dict[str, Place] = {}
    where: dict[str, Path] = {}
    for root in roots:
        for place in of_root(root):
            if place.name in found:
                raise InvalidInputError(
                    f"{where[place.name]} and {root} both have a folder {place.name}. Rename one, or name "
                    "one root."
                )
            found[place.name], where[place.name] = place, root
    return found


def of_root(root: Path) -> list[Place]:
    """The folders of a root that are in BEIR layout, ascending by name.

    Raises:
        InvalidInputError: it is no folder.
    """
    if not root.is_dir():
        raise InvalidInputError(f"--data-root {root} is no folder. Name one of folders in BEIR layout.")
    found = []
    for folder in sorted(root.iterdir()):
        if any((folder / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz")):
            dataset = find(folder.name)
            split = split_of(folder, dataset.split if dataset is not None else None)
            measure = dataset.measure if dataset is not None else Place.measure
            reason = "" if split else f"no qrels/SPLIT.tsv in {folder}: add one"
            found.append(Place(folder.name, folder if split else None, split, measure, reason))
    return found


def split_of(folder: Path, wanted: str | None) -> str:
    """The split of the authors, else the first of `SPLITS` that is there; "" where none is."""
    names = (file.name.removesuffix(".gz") for file in folder.glob("qrels/*.tsv*"))
    there = sorted(name.removesuffix(".tsv") for name in names)
    preferred = [*([wanted] if wanted else []), *SPLITS]
    return next((split for split in preferred if split in there), there[0] if there else "")
