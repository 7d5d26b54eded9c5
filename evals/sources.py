"""Files of published datasets, downloaded once, or taken from copies."""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.catalog import Source
from evals.datasets import DatasetError

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jacolbert_rag" / "datasets"
GIT = "https://raw.githubusercontent.com"
TIMEOUT_S = 60
AGAIN = "Try again, or name a folder of copies with evals.prepare --mirror."
OFFLINE = "--offline forbids it now. Leave that away, or use evals.prepare --mirror."


class Unavailable(DatasetError):
    """A file that is not here and cannot be had now; the message says how it could be."""


@dataclass(frozen=True)
class Library:
    """Where files come from.

    Attributes:
        cache: folder of what was downloaded from anywhere but the hub, which has its own.
        mirror: a folder of copies, as OWNER/NAME/path or, of the web, as path; nothing else is asked then.
        offline: use what was downloaded before.
    """

    cache: Path = CACHE
    mirror: Path | None = None
    offline: bool = False

    def fetch(self, source: Source) -> tuple[list[Path], str]:
        """A source's files, ascending by name, and the revision that they are of.

        Raises:
            Unavailable: they are not here, and cannot be downloaded.
        """
        if self.mirror is not None:
            return self._mirrored(self.mirror, source), f"{source.revision} (copied)"
        if source.place == "hub":
            return self._of_hub(source)
        return [self._downloaded(source, path) for path in source.paths], source.revision

    def _mirrored(self, mirror: Path, source: Source) -> list[Path]:
        folder = mirror if source.place == "web" else mirror / source.name
        return _matching(folder, source)

    def _of_hub(self, source: Source) -> tuple[list[Path], str]:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(
                snapshot_download(
                    source.name,
                    repo_type="dataset",
                    revision=source.revision,
                    allow_patterns=list(source.paths),
                    local_files_only=self.offline,
                )
            )
        except LocalEntryNotFoundError as error:
            now = OFFLINE if self.offline else f"cannot be reached now ({error}). {AGAIN}"
            raise Unavailable(f"{source.name} of the hub was not downloaded before, and {now}") from error
        except Exception as error:  # of the HTTP library, too, which is another one in each major version
            raise Unavailable(
                f"{source.name} at {source.revision} of the hub cannot be had ({error}). {AGAIN}"
            ) from error
        return _matching(folder, source), folder.name

    def _downloaded(self, source: Source, path: str) -> Path:
        place = self.cache / "files" / source.name.removeprefix("https://") / source.revision / path
        if place.is_file():
            return place
        address = (
            f"{source.name}/{path}"
            if source.place == "web"
            else f"{GIT}/{source.name}/{source.revision}/{path}"
        )
        if self.offline:
            raise Unavailable(f"{address} was not downloaded before, and {OFFLINE}")
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f"{place.name}.{os.getpid()}.part")
        try:
            download(address, part)
            part.replace(place)
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            raise Unavailable(f"{address} cannot be downloaded ({error}). {AGAIN}") from error
        finally:
            part.unlink(missing_ok=True)
        return place


def download(address: str, file: Path) -> None:
    """Write what an address has to a file.

    Raises:
        OSError: it cannot be reached, or fewer bytes came than it said.
        HTTPException: the answer is none of HTTP, or was cut.
    """
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer, file.open("wb") as out:
        shutil.copyfileobj(answer, out)
        expected = answer.headers.get("Content-Length")
    if expected is not None and file.stat().st_size != int(expected):
        raise OSError(f"{file.stat().st_size:,} bytes came of {int(expected):,}")


def fetch_all(library: Library, files: Mapping[str, Source]) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """The files of each part, and the revision of each repository.

    Raises:
        Unavailable: some cannot be had.
    """
    found, revisions = {}, {}
    for part, source in files.items():
        found[part], revisions[source.name] = library.fetch(source)
    return found, revisions


def _matching(folder: Path, source: Source) -> list[Path]:
    """Files of a folder, those of each path ascending."""
    found: list[Path] = []
    for path in source.paths:
        here = sorted(folder.glob(path), key=_in_order)
        if not here:
            raise Unavailable(
                f"{source.name} at {source.revision or 'its address'}: there is no {path} in {folder}."
            )
        found += here
    return found


def _in_order(path: Path) -> tuple[int, str]:
    """docs-2 before docs-10."""
    return len(path.name), path.name


def known_files(sources: Sequence[Source]) -> list[str]:
    """Where files come from, for people."""
    places = {"hub": "huggingface.co/datasets/", "git": "github.com/", "web": ""}
    return [f"{places[each.place]}{each.name}" for each in sources]
