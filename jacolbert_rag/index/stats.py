"""What an index holds, in figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jacolbert_rag.index.index import Index


@dataclass(frozen=True)
class Stats:
    """Figures of one index.

    Attributes:
        folder: of the index.
        model: that made it: a folder or a hub id.
        fingerprint: of that model.
        n_documents: that can be found.
        n_deleted: whose room `compact` gives back.
        n_tokens: token embeddings that are stored, those of deleted documents too.
        dim: of a token embedding.
        dtype: that they are stored as.
        pool_factor: how many neighbouring tokens became one.
        n_segments: files of token embeddings.
        n_pooled: vectors that propose candidates; 0 while every search is exact.
        n_unlisted: documents that wait to be listed for candidates: they are found all the same.
        n_bytes: of the folder.
        is_calibrated: whether `search(abstain=True)` can be asked.
    """

    folder: str
    model: str
    fingerprint: str
    n_documents: int
    n_deleted: int
    n_tokens: int
    dim: int
    dtype: str
    pool_factor: int
    n_segments: int
    n_pooled: int
    n_unlisted: int
    n_bytes: int
    is_calibrated: bool


def stats_of(index: Index) -> Stats:
    """Figures of the newest state of an index."""
    manifest: dict[str, Any] = dict(index.manifest)
    with index.reading() as view:
        snapshot = view.snapshot
        return Stats(
            folder=str(index.folder),
            model=str(manifest["model"]),
            fingerprint=str(manifest["fingerprint"]),
            n_documents=snapshot.n_live,
            n_deleted=snapshot.n_rows - snapshot.n_live,
            n_tokens=snapshot.n_tokens,
            dim=int(manifest["dim"]),
            dtype=index.settings.store.dtype,
            pool_factor=index.settings.pooling.factor,
            n_segments=len(snapshot.segments),
            n_pooled=len(snapshot.pooled) if snapshot.pooled is not None else 0,
            n_unlisted=snapshot.n_unlisted,
            n_bytes=_n_bytes(index.folder),
            is_calibrated="calibration" in view.state(),
        )


def _n_bytes(folder: Path) -> int:
    """Of all files; one that goes meanwhile counts nothing, nor does what SQLite shares while it is open."""
    total = 0
    for path in folder.rglob("*"):
        if path.name.endswith("-shm"):
            continue
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
