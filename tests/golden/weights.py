"""Weights of random checkpoints: the same bits on every machine, with every version of every library."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]


def random_weights(shapes: Mapping[str, tuple[int, ...]], *, seed: int, scale: float) -> Weights:
    """A uniform random tensor for each name.

    Made from a bit generator's integers, which numpy promises never to change, and exact arithmetic:
    `torch.manual_seed` gives other last bits where the processor has other vector instructions.

    Args:
        shapes: shape of each tensor; names sort into the order of drawing.
        seed: of all of them.
        scale: standard deviation of matrices. Biases and the weights of norms have a fifth of it: larger
            ones are the same for every token, and tokens would hardly differ. Those of norms lie around 1.
    """
    bits = np.random.PCG64(seed)
    weights: Weights = {}
    for name, shape in sorted(shapes.items()):
        size = int(np.prod(shape))
        drawn = bits.random_raw((size + 1) // 2).view(np.uint32)[:size] >> np.uint32(8)  # 24 bits: exact
        uniform = drawn.astype(np.float32) * np.float32(2**-23) - np.float32(1)
        deviation = scale / 5 if len(shape) == 1 else scale
        tensor = (uniform * np.float32(deviation * 3**0.5)).reshape(shape)
        if len(shape) == 1 and name.endswith("weight"):
            tensor += np.float32(1)
        weights[name] = tensor
    return weights


def bert_shapes(
    *, vocab_size: int, hidden: int, layers: int, intermediate: int, positions: int, dim: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Stanford ColBERT: `bert.*` without a pooler, and `linear.weight`."""
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (vocab_size, hidden),
        "bert.embeddings.position_embeddings.weight": (positions, hidden),
        "bert.embeddings.token_type_embeddings.weight": (2, hidden),
        "bert.embeddings.LayerNorm.weight": (hidden,),
        "bert.embeddings.LayerNorm.bias": (hidden,),
        "linear.weight": (dim, hidden),
    }
    for i in range(layers):
        layer = f"bert.encoder.layer.{i}"
        for name, rows, columns in [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", intermediate, hidden),
            ("output.dense", hidden, intermediate),
        ]:
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            shapes[f"{layer}.{name}.bias"] = (rows,)
        for name in ("attention.output", "output"):
            shapes[f"{layer}.{name}.LayerNorm.weight"] = (hidden,)
            shapes[f"{layer}.{name}.LayerNorm.bias"] = (hidden,)
    return shapes
