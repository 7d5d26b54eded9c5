"""Saves and resumes a training run: weights, optimiser and step, without pickle."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

MODEL_FILE, OPTIMIZER_FILE, STEP_FILE = "model.safetensors", "optimizer.safetensors", "step.json"


def save_state(folder: Path, model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Write the state of a run after `step` steps; a kill leaves the former state whole."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in _unshared(model).items()}, new / MODEL_FILE)
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.contiguous()
            else:
                scalars.setdefault(str(index), {})[name] = value
    save_file(tensors, new / OPTIMIZER_FILE)
    (new / STEP_FILE).write_text(
        json.dumps({"step": step, "groups": state["param_groups"], "scalars": scalars})
    )
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path, model: nn.Module, optimizer: Optimizer) -> int:
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
    state: dict[int, dict[str, Any]] = {}
    for key, value in load_file(folder / OPTIMIZER_FILE).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    for index, values in saved["scalars"].items():
        state.setdefault(int(index), {}).update(values)
    optimizer.load_state_dict({"state": state, "param_groups": saved["groups"]})
    return int(saved["step"])


def _unshared(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with each tied tensor once: safetensors stores no aliases."""
    seen: set[int] = set()
    kept = {}
    for key, value in model.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            kept[key] = value
    return kept
