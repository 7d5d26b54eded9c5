"""A ColBERT without its projection, whose tokens are the transformer's last states.

JaColBERTv2.5's published JQaRA figure (.618) was scored so; with the projection it is .642.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.model import ColBERT, Dense
from jacolbert_rag.encode.tokens import Tokenizer


def without_head(model: str | None, folder: Path) -> Path:
    """A checkpoint with the identity for a projection, written where it is not there.

    Args:
        model: a folder or a hub id; None is the bundled model.
        folder: of such checkpoints.
    """
    loaded = checkpoint.load(model)
    path = folder / f"{Path(loaded.name).name}-without-head-{loaded.fingerprint[:8]}"
    if path.is_dir():
        return path
    width = int(loaded.model.config.hidden_size)
    identity = Dense(width, width)
    with torch.no_grad():
        identity.linear.weight.copy_(torch.eye(width))
    config = replace(loaded.config, dim=width)
    tokenizer = Tokenizer(loaded.tokenizer.subwords, config)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    network = ColBERT(loaded.model.backbone, [identity])
    checkpoint.save(new, network, tokenizer, dtype=torch.float32)
    try:
        new.rename(path)
    except OSError:  # another process was faster
        shutil.rmtree(new, ignore_errors=True)
        if not path.is_dir():
            raise
    return path
