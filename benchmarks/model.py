"""A ColBERT of BERT-base's shape and random weights: speed does not depend on what was learned."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jacolbert_rag.encode.files import (
    CONFIG_FILE,
    DEFAULT_MODEL,
    TOKENIZER_CONFIG_FILE,
    WEIGHTS_FILE,
    resolve_folder,
)
from jacolbert_rag.encode.tokens import VOCAB_FILE

METADATA_FILE = "artifact.metadata"  # formats.py has it too, but loads torch


@dataclass(frozen=True)
class Shape:
    """Size of a BERT and of its projection."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    dim: int = 128
    seed: int = 0

    @property
    def name(self) -> str:
        """Such as "bert-12x768-seed0"."""
        return f"bert-{self.layers}x{self.hidden}-seed{self.seed}"

    @property
    def matmul_parameters(self) -> int:
        """Weights that each token is multiplied with: four of attention, two of the MLP, the projection."""
        layer = 4 * self.hidden**2 + 2 * self.hidden * self.intermediate
        return self.layers * layer + self.hidden * self.dim

    def flops(self, lengths: list[int]) -> float:
        """Floating-point operations of the matrix products for texts of these lengths, unpadded."""
        products = 2.0 * self.matmul_parameters * sum(lengths)
        # Scores and their use are length * length * hidden each, two operations a product.
        attention = 4.0 * self.layers * self.hidden * sum(length**2 for length in lengths)
        return products + attention


BASE = Shape()


def bundled() -> Path:
    """The folder of the bundled checkpoint."""
    return resolve_folder(DEFAULT_MODEL)


def checkpoint_folder(folder: Path, shape: Shape = BASE) -> Path:
    """A folder in HF_ColBERT format, written where it is missing.

    Args:
        folder: where it goes; some 400 MB for BERT-base.
        shape: what is written; the vocabulary and the other settings are those of the bundled model.

    Returns:
        The checkpoint's folder, named by shape, seed and vocabulary.
    """
    vocab = (bundled() / VOCAB_FILE).read_bytes()
    path = folder / f"{shape.name}-{hashlib.sha256(vocab).hexdigest()[:8]}"
    if path.is_dir():
        return path
    unfinished = path.with_name(path.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    config = _config(shape)
    _write_json(unfinished / CONFIG_FILE, config)
    metadata = json.loads((bundled() / METADATA_FILE).read_text(encoding="utf-8"))
    _write_json(unfinished / METADATA_FILE, metadata | {"dim": shape.dim})
    for name in (VOCAB_FILE, TOKENIZER_CONFIG_FILE):
        shutil.copyfile(bundled() / name, unfinished / name)
    _write_weights(unfinished / WEIGHTS_FILE, config, shape)
    return unfinished.rename(path)


def without_mecab(folder: Path) -> Path:
    """The same checkpoint with a tokenizer that needs no MeCab, for runs over prepared token ids.

    Returns:
        A folder beside it, whose weights are a link.
    """
    path = folder.with_name(folder.name + "-plain")
    path.mkdir(exist_ok=True)
    for name in (VOCAB_FILE, CONFIG_FILE, METADATA_FILE):
        shutil.copyfile(folder / name, path / name)
    settings = json.loads((folder / TOKENIZER_CONFIG_FILE).read_text(encoding="utf-8"))
    plain = {key: settings[key] for key in settings if key.endswith("_token") or key == "model_max_length"}
    _write_json(
        path / TOKENIZER_CONFIG_FILE, plain | {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    )
    if not (path / WEIGHTS_FILE).exists():
        (path / WEIGHTS_FILE).symlink_to((folder / WEIGHTS_FILE).resolve())
    return path


def _config(shape: Shape) -> dict[str, Any]:
    """config.json of the bundled model in another size."""
    config: dict[str, Any] = json.loads((bundled() / CONFIG_FILE).read_text(encoding="utf-8"))
    config.update(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
    )
    return config


def _write_weights(path: Path, config: dict[str, Any], shape: Shape) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        bert = BertModel(BertConfig.from_dict(config), add_pooling_layer=False)
        linear = torch.nn.Linear(shape.hidden, shape.dim, bias=False)
    tensors = {f"bert.{key}": value for key, value in bert.state_dict().items()}
    tensors["linear.weight"] = linear.weight.detach()
    save_file(tensors, path, metadata={"format": "pt", **{k: str(v) for k, v in asdict(shape).items()}})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
