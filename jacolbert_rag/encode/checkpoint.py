"""Reads and writes ColBERT checkpoints in Stanford's HF_ColBERT format."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor
from transformers import BertConfig

from jacolbert_rag.config import EncoderConfig
from jacolbert_rag.encode.model import ColBERT
from jacolbert_rag.encode.tokens import (
    CLS,
    MASK,
    PAD,
    SEP,
    TOKENIZER_CLASS,
    TOKENIZER_CONFIG_FILE,
    UNK,
    VOCAB_FILE,
    JapaneseTokenizer,
)
from jacolbert_rag.errors import CheckpointError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
METADATA_FILE = "artifact.metadata"
ARCHITECTURE = "HF_ColBERT"
PROJECTION = "linear.weight"
CHECKPOINT_FILES = (CONFIG_FILE, WEIGHTS_FILE, METADATA_FILE, VOCAB_FILE, TOKENIZER_CONFIG_FILE)

DEFAULT_MODEL = "default"
"""The name that an index stores for the bundled checkpoint, which moves with the package."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        name: what the user named it: "default", a folder, or a hub id.
        fingerprint: 32 hex digits over the weights, the vocabulary and the settings that change
            embeddings of documents. An index made with one fingerprint refuses another.
    """

    name: str
    model: ColBERT
    tokenizer: JapaneseTokenizer
    config: EncoderConfig
    fingerprint: str


def load(
    name: str | None = None,
    *,
    revision: str | None = None,
    query_length: str | None = None,
    document_length: int | None = None,
) -> Checkpoint:
    """Load a checkpoint.

    Args:
        name: None or "default" for the bundled model, a folder, or a hub id ("owner/model"). A
            folder and the bundled model never touch the network; a hub id does when its files are
            not in the local cache.
        revision: branch, tag or commit of a hub id.
        query_length: overrides the rule; see `EncoderConfig.query_length`.
        document_length: overrides the checkpoint's document length, in tokens.

    Raises:
        CheckpointError: a file is missing, unreadable, or not a ColBERT's.
    """
    name = str(name) if name is not None else DEFAULT_MODEL
    folder = resolve_folder(name, revision=revision)
    backbone = read_backbone_config(folder)
    metadata = _read_json(folder / METADATA_FILE, folder)
    weights = read_weights(folder)
    if PROJECTION not in weights:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} has no {PROJECTION} (it holds {len(weights)} tensors): this is a "
            "plain language model, or a ColBERT that lost its projection. Without it the scores would "
            "be wrong, so load the full ColBERT checkpoint, or train one with training.distill."
        )
    config = _resolve(metadata, backbone, weights[PROJECTION])
    if query_length is not None:
        config = replace(config, query_length=query_length)
    if document_length is not None:
        config = replace(config, document_length=document_length)
    tokenizer = JapaneseTokenizer.from_folder(folder, config)
    if len(tokenizer.vocab) > backbone.vocab_size:
        raise CheckpointError(
            f"{folder / VOCAB_FILE} has {len(tokenizer.vocab)} tokens, but the weights embed "
            f"{backbone.vocab_size}. Take both files from the same checkpoint."
        )
    model = ColBERT(backbone, config.dim)
    _fill(model, weights, folder)
    if name != DEFAULT_MODEL and Path(name).expanduser().is_dir():
        name = str(folder.resolve())  # an index remembers it, and may be opened from elsewhere
    return Checkpoint(name, model.eval(), tokenizer, config, _fingerprint(folder, config))


def save(folder: Path, model: ColBERT, tokenizer: JapaneseTokenizer, *, dtype: torch.dtype) -> None:
    """Write a folder that this library, colbert-ai, PyLate and sentence-transformers (>= 6) read.

    Args:
        folder: made where it is missing; files of the same names are replaced.
        model: its weights are written as `bert.*` and `linear.weight`.
        tokenizer: its vocabulary and settings.
        dtype: of the weights on disk; float16 halves the folder and is read back as float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone = model.config.to_dict()
    backbone.pop("_name_or_path", None)
    # "dtype" float32 makes loaders that honour it widen float16 weights, as this one does.
    backbone.update(architectures=[ARCHITECTURE], model_type="bert", dtype="float32")
    _write_json(folder / CONFIG_FILE, backbone)
    write_tokenizer(folder, list(tokenizer.vocab))
    config = tokenizer.config
    _write_json(
        folder / METADATA_FILE,
        {
            "query_token_id": config.query_marker,
            "doc_token_id": config.document_marker,
            "query_token": "[Q]",
            "doc_token": "[D]",
            "query_maxlen": 32,
            "doc_maxlen": config.document_length,
            "dim": config.dim,
            "similarity": "cosine",
            "interaction": "colbert",
            "attend_to_mask_tokens": config.attend_to_mask_tokens,
            "mask_punctuation": config.mask_punctuation,
            "cap_padding": 0,
        },
    )
    # The weights come last and whole, so a folder that has them is finished.
    tensors = {key: value.detach().to(dtype).contiguous() for key, value in model.state_dict().items()}
    # Not save_file, whose files only their owner may read.
    (folder / f".{WEIGHTS_FILE}").write_bytes(serialize(tensors, metadata={"format": "pt"}))
    os.replace(folder / f".{WEIGHTS_FILE}", folder / WEIGHTS_FILE)


def write_tokenizer(folder: Path, vocab: list[str]) -> None:
    """Write vocab.txt and the settings of a BertJapaneseTokenizer over MeCab and unidic-lite."""
    (folder / VOCAB_FILE).write_text("\n".join(vocab) + "\n", encoding="utf-8")
    _write_json(
        folder / TOKENIZER_CONFIG_FILE,
        {
            "tokenizer_class": TOKENIZER_CLASS,
            "do_lower_case": False,
            "word_tokenizer_type": "mecab",
            "subword_tokenizer_type": "wordpiece",
            "mecab_kwargs": {"mecab_dic": "unidic_lite"},
            "model_max_length": 512,
            "unk_token": UNK,
            "sep_token": SEP,
            "pad_token": PAD,
            "cls_token": CLS,
            "mask_token": MASK,
        },
    )


def resolve_folder(name: str, *, revision: str | None = None) -> Path:
    """The folder that holds a checkpoint's files, fetched only when a hub id is named.

    Raises:
        CheckpointError: it is neither a folder nor to be had from the hub.
    """
    if name == DEFAULT_MODEL:
        return Path(str(files("jacolbert_rag"))) / "default_model"
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"{name!r} is no folder. Name the folder of a ColBERT checkpoint, a hub id such as "
            "'answerdotai/JaColBERTv2.5', or nothing for the bundled model. If an index names a model that "
            "has moved, pass `model=`."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = [*CHECKPOINT_FILES]
    try:
        # What is cached needs no network, so a machine that has been offline since still starts.
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client raises its own and its transport's errors
        raise CheckpointError(
            f"{name!r} is no folder here, is not in the local hub cache, and could not be fetched "
            f"({type(error).__name__}: {error}). Check the name and the network, or name a folder."
        ) from error


def read_backbone_config(folder: Path) -> BertConfig:
    """config.json of a BERT.

    Raises:
        CheckpointError: it is missing, not JSON, or of another kind of model.
    """
    values = _read_json(folder / CONFIG_FILE, folder)
    if values.get("model_type") != "bert":
        raise CheckpointError(
            f"{folder / CONFIG_FILE} describes a {values.get('model_type')!r} model; this version reads "
            "BERT backbones, as all JaColBERT checkpoints have."
        )
    values.pop("dtype", None), values.pop("torch_dtype", None)
    return BertConfig.from_dict(values)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, as float32.

    Raises:
        CheckpointError: the file is missing, cut short, or not safetensors.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        hint = (
            f"It has {', '.join(pickled)}, which is pickled and may run code when read: convert it to "
            "safetensors where you trust it."
            if pickled
            else "Copy it from the checkpoint."
        )
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}. {hint}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is not readable as safetensors ({error}). It was "
            "probably cut short while copying: copy it again."
        ) from error
    return {key: value.float() for key, value in tensors.items()}


def _fill(model: ColBERT, weights: dict[str, Tensor], folder: Path) -> None:
    """Load what the network has; heads that it has not (pooler, MLM) are left out on purpose."""
    own = model.state_dict()
    missing = sorted(set(own) - set(weights))
    wrong = sorted(key for key in own if key in weights and own[key].shape != weights[key].shape)
    if missing or wrong:
        names = [*missing, *wrong]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {len(missing)} tensors are missing and "
            f"{len(wrong)} have another shape ({shown}). Take both files from the same checkpoint."
        )
    model.load_state_dict({key: weights[key] for key in own})


def _resolve(metadata: dict[str, Any], backbone: BertConfig, projection: Tensor) -> EncoderConfig:
    """The encoder's settings: what the checkpoint says, else the defaults."""
    default = EncoderConfig()
    dim = metadata.get("dim", projection.shape[0])
    if tuple(projection.shape) != (dim, backbone.hidden_size):
        raise CheckpointError(
            f"{PROJECTION} is {tuple(projection.shape)}, but {METADATA_FILE} and {CONFIG_FILE} ask for "
            f"({dim}, {backbone.hidden_size}). Take all files from the same checkpoint."
        )
    return EncoderConfig(
        dim=dim,
        document_length=int(metadata.get("doc_maxlen", default.document_length)),
        query_marker=str(metadata.get("query_token_id", default.query_marker)),
        document_marker=str(metadata.get("doc_token_id", default.document_marker)),
        attend_to_mask_tokens=bool(metadata.get("attend_to_mask_tokens", default.attend_to_mask_tokens)),
        mask_punctuation=bool(metadata.get("mask_punctuation", default.mask_punctuation)),
        max_positions=int(backbone.max_position_embeddings),
    )


def _fingerprint(folder: Path, config: EncoderConfig) -> str:
    """What two indexes must share to be searched by one encoder: document embeddings alike.

    The query's length rule is left out: it may change from search to search.
    """
    digest = hashlib.blake2b(digest_size=16)
    settings = config.to_json() | {"query_length": None}
    backbone = _read_json(folder / CONFIG_FILE, folder)
    shape = {key: backbone.get(key) for key in ("num_attention_heads", "hidden_act", "layer_norm_eps")}
    digest.update(json.dumps([settings, shape], sort_keys=True).encode())
    for name in (VOCAB_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {path.name}; a ColBERT checkpoint has {', '.join(CHECKPOINT_FILES)}. "
            "Copy it from the checkpoint that this one was made from."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Copy it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not a JSON object. Copy it again.")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, ensure_ascii=False, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
