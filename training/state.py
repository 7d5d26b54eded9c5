"""A run's folder: who works on it, its settings, and its state: weights, optimisers, step; no pickle."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from training.options import TrainingError

MODEL_FILE, OPTIMIZER_FILE, STEP_FILE = "model.safetensors", "optimizer.safetensors", "step.json"
RECIPE_FILE, LOCK_FILE = "recipe.json", ".lock"


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold a folder, so that no other process works on it; the system lets go of it when this one ends.

    Raises:
        TrainingError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainingError(
                f"Another process works on {folder}. Wait for it, stop it, or name another --out."
            ) from error
        yield


def hold(
    folder: Path, recipe: Mapping[str, Any], *, changeable: Sequence[str] = (), file: str = RECIPE_FILE
) -> None:
    """Refuse settings other than those that a run was begun with, as `begin` does, and write nothing.

    Where the run is finished, `changeable` may name what takes long to find out, such as digests of its data.
    """
    path = folder / file
    if not path.exists():
        return
    before, recipe = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(recipe))
    changed = [
        f"{key} {before.get(key)!r} -> {recipe.get(key)!r}"
        for key in sorted(before.keys() | recipe.keys())
        if before.get(key) != recipe.get(key) and key not in changeable
    ]
    if changed:
        raise TrainingError(
            f"{folder} was begun with other settings: {'; '.join(changed)}. Name another --out, or "
            "remove that folder to begin anew."
        )


def begin(folder: Path, recipe: Mapping[str, Any], *, changeable: Sequence[str] = ()) -> None:
    """Write a run's settings; where it was begun before, hold them to those.

    Args:
        folder: of the run.
        recipe: settings that its result depends on; JSON types.
        changeable: settings that may be others when a run goes on.

    Raises:
        TrainingError: the run was begun with others.
    """
    hold(folder, recipe, changeable=changeable)
    recipe = json.loads(json.dumps(recipe))
    path = folder / RECIPE_FILE
    write_json(path, recipe)


@contextmanager
def published(folder: Path, last: str) -> Iterator[Path]:
    """A new folder to write into; its files then go to `folder`, the one that says it is whole last."""
    new = folder / ".new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    for path in sorted(new.iterdir(), key=lambda path: path.name == last):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.rename(target)
    new.rmdir()


def write_whole(path: Path, text: str) -> None:
    """Write a file beside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.rename(path)


def write_json(path: Path, values: Any) -> None:
    """Write a file of JSON beside, then rename."""
    write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def hashed(text: str) -> int:
    """64 bits, the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def weights_digest(name: str) -> str:
    """A digest of the weights in a folder; empty for the hub, whose names stand for themselves."""
    files = sorted(Path(name).expanduser().glob("*.safetensors")) if name else []
    return digest(files) if files else ""


def digest(paths: Sequence[Path]) -> str:
    """16 hex digits of the files' bytes."""
    total = hashlib.blake2b(digest_size=8)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def save_state(
    folder: Path,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    step: int,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the state of a run after `step` steps, and what else is to be had back by `load_more`.

    A kill leaves the former state whole.
    """
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in _unshared(model).items()}, new / MODEL_FILE)
    tensors: dict[str, torch.Tensor] = {}
    others = []
    for n, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        scalars: dict[str, dict[str, Any]] = {}
        for index, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{n}.{index}.{name}"] = value.contiguous()
                else:
                    scalars.setdefault(str(index), {})[name] = value
        others.append({"groups": state["param_groups"], "scalars": scalars})
    save_file(tensors, new / OPTIMIZER_FILE)
    (new / STEP_FILE).write_text(json.dumps({"step": step, "optimizers": others, "more": dict(more or {})}))
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> int:
    """Take up a run where `save_state` left it.

    Returns:
        The steps done: 0 where nothing was saved.
    """
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():  # killed between the two renames
        os.rename(old, folder)
    if not folder.exists():
        return 0
    model.load_state_dict(load_file(folder / MODEL_FILE), strict=False)
    saved = json.loads((folder / STEP_FILE).read_text())
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    for key, value in load_file(folder / OPTIMIZER_FILE).items():
        n, index, name = key.split(".", 2)
        states[int(n)].setdefault(int(index), {})[name] = value
    for state, optimizer, other in zip(states, optimizers, saved["optimizers"], strict=True):
        for index, values in other["scalars"].items():
            state.setdefault(int(index), {}).update(values)
        optimizer.load_state_dict({"state": state, "param_groups": other["groups"]})
    return int(saved["step"])


def load_more(folder: Path) -> dict[str, Any]:
    """What `save_state` was given beside weights and optimisers; call it after `load_state`."""
    path = folder / STEP_FILE
    found: dict[str, Any] = json.loads(path.read_text()).get("more", {}) if path.exists() else {}
    return found


def _unshared(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with each tied tensor once: safetensors stores no aliases."""
    seen: set[int] = set()
    kept = {}
    for key, value in model.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            kept[key] = value
    return kept
