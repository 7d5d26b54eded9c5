"""The two published formats of ColBERT checkpoints: what a folder of each says, and how each is written.

HF_ColBERT: colbert-ai's (stanford-futuredata/ColBERT: colbert/modeling/hf_colbert.py). One file of weights
with `linear.weight` beside the backbone's, and settings in artifact.metadata.
sentence-transformers: a folder of modules, as PyLate and sentence-transformers >= 6 write it.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from jacolbert_rag.config import EncoderConfig, QueryLength
from jacolbert_rag.encode.bert import Bert
from jacolbert_rag.encode.files import (
    CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    WEIGHTS_FILE,
    has_weights,
    inside,
    read_json,
    read_weights,
    weights_name,
    write_json,
)
from jacolbert_rag.encode.model import ACTIVATIONS, ColBERT, Dense
from jacolbert_rag.errors import CheckpointError

Format = Literal["HF_ColBERT", "sentence-transformers"]

ARCHITECTURE = "HF_ColBERT"
PROJECTION = "linear.weight"
METADATA_FILE = "artifact.metadata"
MODULES_FILE = "modules.json"
MODULES_CONFIG_FILE = "config_sentence_transformers.json"
TRANSFORMER_CONFIG_FILE = "sentence_bert_config.json"
SETTINGS_FILE = "jacolbert_rag.json"
"""Settings that a format has no place for, such as the marker mode. Other libraries pass over it."""

# What PyLate reads where a folder does not say (lightonai/pylate: pylate/models/colbert.py).
PYLATE_DEFAULTS: dict[str, Any] = {
    "query_marker": "[Q] ",
    "document_marker": "[D] ",
    "document_length": 180,
    "skiplist": list(string.punctuation),
}


@dataclass(frozen=True)
class Found:
    """What a checkpoint's folder says.

    Attributes:
        format: which of the two it is.
        weights: the backbone's tensors, by the names that the file has for them.
        projection: the layers behind the backbone, with their weights.
        backbone_folder: where the backbone's config.json and the tokenizer are.
        settings: fields of `EncoderConfig` that it states, each with the file that does.
    """

    format: Format
    weights: dict[str, Tensor]
    projection: list[Dense]
    backbone_folder: Path
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)


def read(folder: Path, *, metadata_folder: Path | None = None) -> Found:
    """Read a checkpoint's folder, whichever format it has.

    Args:
        folder: the checkpoint.
        metadata_folder: where artifact.metadata is taken from when the checkpoint has none.

    Raises:
        CheckpointError: a file is missing or unreadable, or this is not a ColBERT.
    """
    found = (
        _read_modules(folder)
        if (folder / MODULES_FILE).is_file()
        else _read_stanford(folder, metadata_folder)
    )
    own = {key: (value, SETTINGS_FILE) for key, value in read_json(folder / SETTINGS_FILE).items()}
    found.settings.update(own)
    return found


def is_complete(folder: Path) -> bool:
    """Whether a folder has all that its format asks for, but for the tokenizer."""
    if not (folder / MODULES_FILE).is_file():
        return has_weights(folder) and (folder / METADATA_FILE).is_file()
    places = [(kind, inside(folder, path) if path else folder) for kind, path in _modules(folder)]
    return all(
        has_weights(place) for kind, place in places if kind.rsplit(".", 1)[-1] in ("Transformer", "Dense")
    )


def write(folder: Path, model: ColBERT, config: EncoderConfig, *, dtype: torch.dtype) -> None:
    """Write weights and settings; the tokenizer's files are there already.

    A BERT under one plain projection becomes an HF_ColBERT folder, which this library, colbert-ai, PyLate
    and sentence-transformers (>= 6) read. Others become PyLate's folder of modules, which all
    but colbert-ai read.

    Args:
        folder: exists; files of the same names are replaced.
        model: its weights.
        config: what the folder shall say.
        dtype: of the weights on disk; float16 halves the folder and is read back as float32.
    """
    if _is_stanford(model, config):
        for name in (MODULES_FILE, MODULES_CONFIG_FILE):
            (folder / name).unlink(missing_ok=True)
        _write_stanford(folder, model, config, dtype)
        said = _stanford_settings(read_json(folder / METADATA_FILE))
    else:
        (folder / METADATA_FILE).unlink(missing_ok=True)
        _write_modules(folder, model, config, dtype)
        said = _modules_settings(folder, None)
    stated = {key: value for key, (value, _) in said.items()}
    wanted = config.to_json() | {"skiplist": list(config.skiplist)}
    unsaid = {
        key: value
        for key, value in wanted.items()
        if key not in ("dim", "max_positions")
        and stated.get(key, EncoderConfig.__dataclass_fields__[key].default) != value
    }
    if unsaid:
        write_json(folder / SETTINGS_FILE, unsaid)
    else:
        (folder / SETTINGS_FILE).unlink(missing_ok=True)


def _read_stanford(folder: Path, metadata_folder: Path | None) -> Found:
    weights = read_weights(folder)
    if PROJECTION not in weights:
        raise CheckpointError(
            f"{folder / weights_name(folder)} has no {PROJECTION} (it holds {len(weights)} tensors), and "
            f"{folder} has no {MODULES_FILE}: this is a plain language model, or a ColBERT that lost its "
            "projection. Without it the scores would be wrong, so load the full ColBERT checkpoint, or train "
            "one with training.distill."
        )
    projection = weights.pop(PROJECTION)
    layer = Dense(projection.shape[1], projection.shape[0])
    layer.linear.weight = torch.nn.Parameter(projection)
    metadata = read_json(folder / METADATA_FILE)
    if not metadata and metadata_folder is not None:
        metadata = read_json(metadata_folder / METADATA_FILE)
    return Found("HF_ColBERT", weights, [layer], folder, _stanford_settings(metadata))


def _stanford_settings(metadata: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """What artifact.metadata says, in our words. Its query_token and doc_token are labels, never read."""
    names = {
        "dim": "dim",
        "query_token_id": "query_marker",
        "doc_token_id": "document_marker",
        "doc_maxlen": "document_length",
        "attend_to_mask_tokens": "attend_to_mask_tokens",
    }
    settings = {ours: metadata[theirs] for theirs, ours in names.items() if metadata.get(theirs) is not None}
    if metadata.get("mask_punctuation") is not None:
        settings["skiplist"] = list(string.punctuation) if metadata["mask_punctuation"] else []
    settings |= _rule_for(metadata.get("query_maxlen"))
    return {key: (value, METADATA_FILE) for key, value in settings.items()}


def _rule_for(query_maxlen: int | None) -> dict[str, str]:
    """The rule of a model that was trained on queries of this length: the paper's, in multiples of it."""
    return {} if query_maxlen in (None, 32) else {"query_length": f"dynamic({query_maxlen}, 8)"}


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Type and path of each module, in order."""
    try:
        modules = json.loads((folder / MODULES_FILE).read_text(encoding="utf-8"))
        return [
            (str(m["type"]), str(m.get("path", ""))) for m in sorted(modules, key=lambda m: int(m["idx"]))
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{folder / MODULES_FILE} is no list of modules ({error!r}). Copy it again."
        ) from error


def _read_modules(folder: Path) -> Found:
    backbone: Path | None = None
    mask: Path | None = None
    projection: list[Dense] = []
    for type_name, path in _modules(folder):
        kind = type_name.rsplit(".", 1)[-1]
        place = inside(folder, path) if path else folder
        if kind == "Transformer" and backbone is None:
            backbone = place
        elif kind == "Dense":
            projection.append(_read_dense(place))
        elif kind == "MultiVectorMask":
            mask = place
        elif kind != "Normalize":
            hint = (
                "that is a model of one embedding a text, not a ColBERT"
                if kind == "Pooling"
                else "expected Transformer, Dense, MultiVectorMask and Normalize"
            )
            raise CheckpointError(f"{folder / MODULES_FILE} has a module {type_name}: {hint}.")
    if backbone is None or not projection:
        raise CheckpointError(
            f"{folder / MODULES_FILE} names {'no Dense module' if backbone else 'no Transformer module'}: "
            "without its projection a ColBERT's scores would be wrong. Load the full checkpoint."
        )
    settings = _modules_settings(folder, mask, backbone)
    settings["dim"] = (projection[-1].linear.out_features, MODULES_FILE)
    return Found("sentence-transformers", read_weights(backbone), projection, backbone, settings)


def _read_dense(folder: Path) -> Dense:
    config = read_json(folder / CONFIG_FILE)
    activation = str(config.get("activation_function", "Identity")).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} asks for the activation {config['activation_function']!r}; expected one "
            f"of {', '.join(ACTIVATIONS)}. Others are refused: a file must not choose what code runs."
        )
    weights = read_weights(folder)
    try:
        layer = Dense(
            int(config["in_features"]),
            int(config["out_features"]),
            bias="linear.bias" in weights,
            activation=activation,
            residual=bool(config.get("use_residual")),
        )
        layer.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / weights_name(folder)} does not fit {folder / CONFIG_FILE} ({error}). Take both files "
            "from the same checkpoint."
        ) from error
    return layer


def _modules_settings(
    folder: Path, mask: Path | None, backbone: Path | None = None
) -> dict[str, tuple[Any, str]]:
    """What a folder of modules says, in our words."""
    config = read_json(folder / MODULES_CONFIG_FILE)
    transformer = read_json((backbone or folder) / TRANSFORMER_CONFIG_FILE)
    is_pylate = config.get("model_type") == "ColBERT" or "query_prefix" in config
    settings: dict[str, tuple[Any, str]] = {}

    def state(key: str, value: Any, source: str = MODULES_CONFIG_FILE) -> None:
        if value is not None:
            settings[key] = (value, source)

    if is_pylate:
        for key, value in PYLATE_DEFAULTS.items():
            state(key, value, "PyLate's default")
    else:
        # What sentence-transformers does where its own files are silent.
        state("query_marker", "", "none stated")
        state("document_marker", "", "none stated")
        state("skiplist", [], "none stated")
        state("query_length", "none", "none stated")
    prompts = config.get("prompts") or {}
    for role in ("query", "document"):
        prefix = config.get(f"{role}_prefix")
        state(f"{role}_marker", prefix)
        prompt = str(prompts.get(role) or "").removeprefix(str(prefix or ""))
        state(f"{role}_prompt", prompt or None)
    state("attend_to_mask_tokens", config.get("attend_to_expansion_tokens"))
    state("skiplist", config.get("skiplist_words"))
    state("document_length", config.get("document_length"))
    if is_pylate:
        expands = config.get("do_query_expansion") is not False
        state("query_length", None if expands else "none")
        if expands:
            state("query_length", _rule_for(config.get("query_length")).get("query_length"))
    state("document_length", transformer.get("document_length"), TRANSFORMER_CONFIG_FILE)
    if not is_pylate and transformer.get("document_length") is None:
        limits = (transformer.get("max_seq_length"), _tokenizer_limit(backbone or folder))
        state("document_length", next((n for n in limits if n), None), "the model's longest text")
    if transformer.get("do_lower_case"):
        raise CheckpointError(
            f"{(backbone or folder) / TRANSFORMER_CONFIG_FILE} asks for do_lower_case, which is left to "
            "tokenizers here. Set it in tokenizer_config.json instead, as the tokenizer's class allows."
        )
    expansion = transformer.get("query_expansion")
    if expansion is not None:
        if expansion.get("token") is not None:
            raise CheckpointError(
                f"{(backbone or folder) / TRANSFORMER_CONFIG_FILE} pads queries with "
                f"{expansion['token']!r}; only the tokenizer's mask token is supported."
            )
        rule = _rule_for(expansion.get("length")).get("query_length", "paper")
        state("query_length", rule, TRANSFORMER_CONFIG_FILE)
        state("attend_to_mask_tokens", bool(expansion.get("attend")), TRANSFORMER_CONFIG_FILE)
    if mask is not None:
        masked = read_json(mask / CONFIG_FILE)
        if masked.get("keep_only_token_ids") or masked.get("skiplist_tasks", ["document"]) != ["document"]:
            raise CheckpointError(
                f"{mask / CONFIG_FILE} asks for keep_only_token_ids or a skiplist for queries, which are "
                "not for text retrieval here. Use a text ColBERT."
            )
        state("skiplist", masked.get("skiplist_words"), f"{mask.name}/{CONFIG_FILE}")
    return settings


def _tokenizer_limit(folder: Path) -> int | None:
    """What a tokenizer says is the longest text; None where it says nothing, or says "no limit"."""
    limit = read_json(folder / TOKENIZER_CONFIG_FILE).get("model_max_length")
    return int(limit) if isinstance(limit, int | float) and limit < 1e6 else None


def _is_stanford(model: ColBERT, config: EncoderConfig) -> bool:
    """Whether colbert-ai's format can hold a model."""
    layers = list(model.projection)
    plain = (
        len(layers) == 1
        and isinstance(layers[0], Dense)
        and layers[0].linear.bias is None
        and layers[0].activation_name == "Identity"
        and not layers[0].has_residual
    )
    return (
        plain
        and model.config.model_type == "bert"
        and bool(config.query_marker and config.document_marker)
        and not (config.query_prompt or config.document_prompt)
        and config.skiplist in ((), tuple(string.punctuation))
    )


def _write_stanford(folder: Path, model: ColBERT, config: EncoderConfig, dtype: torch.dtype) -> None:
    _write_backbone_config(folder, model, [ARCHITECTURE])
    write_json(
        folder / METADATA_FILE,
        {
            "query_token_id": config.query_marker,
            "doc_token_id": config.document_marker,
            "query_token": "[Q]",
            "doc_token": "[D]",
            "query_maxlen": _trained_length(config),
            "doc_maxlen": config.document_length,
            "dim": config.dim,
            "similarity": "cosine",
            "interaction": "colbert",
            "attend_to_mask_tokens": config.attend_to_mask_tokens,
            "mask_punctuation": bool(config.skiplist),
            "cap_padding": 0,
        },
    )
    layer = model.projection[0]
    assert isinstance(layer, Dense)
    tensors = {f"bert.{key}": value for key, value in model.backbone.state_dict().items()}
    write_weights(folder, tensors | {PROJECTION: layer.linear.weight}, dtype)


def _write_modules(folder: Path, model: ColBERT, config: EncoderConfig, dtype: torch.dtype) -> None:
    name = "BertModel" if isinstance(model.backbone, Bert) else type(model.backbone).__name__
    _write_backbone_config(folder, model, [name])
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, layer in enumerate(model.projection, start=1):
        assert isinstance(layer, Dense)
        place = folder / f"{number}_Dense"
        place.mkdir(exist_ok=True)
        module = type(layer.activation)
        write_json(
            place / CONFIG_FILE,
            {
                "in_features": layer.linear.in_features,
                "out_features": layer.linear.out_features,
                "bias": layer.linear.bias is not None,
                "activation_function": f"{module.__module__}.{module.__qualname__}",
                **({"use_residual": True} if layer.has_residual else {}),
            },
        )
        write_weights(place, layer.state_dict(), dtype)
        modules.append(
            {"idx": number, "name": str(number), "path": place.name, "type": "pylate.models.Dense.Dense"}
        )
    write_json(folder / MODULES_FILE, modules)
    write_json(
        folder / TRANSFORMER_CONFIG_FILE, {"max_seq_length": config.max_positions, "do_lower_case": False}
    )
    write_json(
        folder / MODULES_CONFIG_FILE,
        {
            "model_type": "ColBERT",
            "prompts": {"query": config.query_prompt, "document": config.document_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "MaxSim",
            "query_prefix": config.query_marker,
            "document_prefix": config.document_marker,
            "query_length": _trained_length(config),
            "document_length": config.document_length,
            "attend_to_expansion_tokens": config.attend_to_mask_tokens,
            "skiplist_words": list(config.skiplist),
            "do_query_expansion": QueryLength.parse(config.query_length).kind != "none",
        },
    )
    write_weights(folder, model.backbone.state_dict(), dtype)


def _trained_length(config: EncoderConfig) -> int:
    """The fixed query length that other libraries shall use."""
    return QueryLength.parse(config.query_length).size or 32


def _write_backbone_config(folder: Path, model: ColBERT, architectures: list[str]) -> None:
    backbone = model.config.to_dict()
    backbone.pop("_name_or_path", None)
    # "dtype" float32 makes loaders that honour it widen float16 weights, as this one does.
    backbone.update(architectures=architectures, dtype="float32")
    write_json(folder / CONFIG_FILE, backbone)


def write_weights(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write model.safetensors, last and whole, so that a folder that has it is finished."""
    converted = {key: value.detach().to("cpu", dtype).contiguous() for key, value in tensors.items()}
    # Not save_file, whose files only their owner may read.
    (folder / f".{WEIGHTS_FILE}").write_bytes(serialize(converted, metadata={"format": "pt"}))
    (folder / f".{WEIGHTS_FILE}").replace(folder / WEIGHTS_FILE)
