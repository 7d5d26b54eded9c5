"""A ColBERT checkpoint, loaded: network, tokenizer, and every setting with where it comes from."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from jacolbert_rag.config import EncoderConfig, EncoderOverrides
from jacolbert_rag.encode import formats
from jacolbert_rag.encode.bert import BertSettings
from jacolbert_rag.encode.fast import FastSubwords
from jacolbert_rag.encode.files import (
    CONFIG_FILE,
    DEFAULT_MODEL,
    TOKENIZER_CONFIG_FILE,
    WEIGHTS_FILE,
    has_weights,
    read_json,
    resolve_folder,
    weights_name,
    write_json,
)
from jacolbert_rag.encode.formats import Found
from jacolbert_rag.encode.model import (
    ATTENTION,
    BackboneConfig,
    ColBERT,
    WeightsMismatchError,
    load_backbone,
    n_positions,
)
from jacolbert_rag.encode.tokens import (
    ADDED_TOKENS_FILE,
    JAPANESE_CLASS,
    VOCAB_FILE,
    Subwords,
    Tokenizer,
    has_tokenizer,
    load_subwords,
)
from jacolbert_rag.encode.words import CLS, MASK, PAD, SEP, UNK, JapaneseWordPiece
from jacolbert_rag.errors import CheckpointError, CheckpointWarning, InvalidInputError

# What of a backbone's configuration changes its output, beside the shapes of its weights.
_ARCHITECTURE_KEYS = (
    "model_type", "num_attention_heads", "num_key_value_heads", "hidden_act", "hidden_activation",
    "layer_norm_eps", "norm_eps", "position_embedding_type", "global_attn_every_n_layers", "local_attention",
    "rope_theta", "rope_parameters", "layer_types",
)  # fmt: skip


# What tokenizers treat differently: case, width, spaces, marks, kana, kanji, emoji.
_PROBE = "Wi-Fi ＡＢＣ　１２３\n\tｶﾞﾗｽ が\u3099々ー、。「」 株式会社の東京 café İ 👨‍👩‍👧 don't  x_y=1;"


@dataclass(frozen=True)
class Source:
    """Where a checkpoint was asked from; another process can load the same one."""

    name: str
    revision: str | None = None
    tokenizer: str | None = None
    cache_dir: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        name: what the user named it: "default", a folder, or a hub id.
        format: "HF_ColBERT" or "sentence-transformers".
        folder: where its files are.
        tokenizer_folder: where its tokenizer's files are.
        model: the network, float32, on the CPU.
        tokenizer: what the network reads of a text.
        config: every setting, resolved.
        sources: for each field of `config`, who said so: "caller", "weights", a file's name, "default", or
            what another library takes where a file is silent, in words.
        source: what loads it again.
        fingerprint: 32 hex digits over the weights, the vocabulary and all settings but the query's length
            rule. An index made with one fingerprint refuses another. The same model in another format or
            cut into shards has the same one.
    """

    name: str
    format: formats.Format
    folder: Path
    tokenizer_folder: Path
    model: ColBERT
    tokenizer: Tokenizer
    config: EncoderConfig
    sources: Mapping[str, str]
    source: Source
    fingerprint: str

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write a folder that this library and others read; see `save`.

        Raises:
            InvalidInputError: there is something of this name that is no checkpoint.
        """
        target = Path(folder).expanduser()
        is_free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
        if not is_free and not has_weights(target):
            raise InvalidInputError(
                f"{target} exists and is no checkpoint, so it is left as it is. Name a new folder, or an "
                "empty one."
            )
        save(target, self.model, self.tokenizer, dtype=dtype)


def load(
    name: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    tokenizer: str | Path | None = None,
    overrides: EncoderOverrides | None = None,
) -> Checkpoint:
    """Load a checkpoint.

    Args:
        name: None or "default" for the bundled model, a folder, or a hub id ("owner/model"). A
            folder and the bundled model never touch the network; a hub id does when its files are
            not in the local cache.
        revision: branch, tag or commit of a hub id.
        token: the hub's access token; True takes the one that the user logged in with.
        cache_dir: the hub's cache, in place of its usual folder.
        tokenizer: folder or hub id that has the tokenizer, and artifact.metadata, of a checkpoint that has
            none of its own, as intermediate checkpoints of a training.
        overrides: settings in place of the checkpoint's.

    Raises:
        CheckpointError: a file is missing, unreadable, or not a ColBERT's.
        InvalidInputError: a setting is out of range.

    Warns:
        CheckpointWarning: a symbol of the skiplist is not in the vocabulary.
    """
    name = str(name) if name is not None else DEFAULT_MODEL
    folder = resolve_folder(
        name,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        is_complete=has_weights if tokenizer is not None else _is_complete,
    )
    named = None
    if tokenizer is not None:
        named = resolve_folder(
            str(tokenizer), token=token, cache_dir=cache_dir, is_complete=has_tokenizer, weights=False
        )
    found = formats.read(folder, metadata_folder=named)
    model = _network(found)
    tokenizer_folder = named or _tokenizer_folder(found, folder)
    subwords = load_subwords(tokenizer_folder)
    embedded = model.backbone.get_input_embeddings()
    assert isinstance(embedded, torch.nn.Embedding)
    n_embedded = embedded.num_embeddings
    highest = max(subwords.vocab.values())
    if highest >= n_embedded:
        raise CheckpointError(
            f"The tokenizer of {tokenizer_folder} has ids up to {highest}, but the weights embed "
            f"{n_embedded} tokens. Take both from the same checkpoint."
        )
    stated = _with_marker_prompts(found.settings, subwords)
    try:
        config, sources = resolve(overrides or {}, stated, _model_facts(model))
    except InvalidInputError as error:
        if overrides:  # most likely the caller's
            raise
        raise CheckpointError(
            f"A setting of {folder} cannot be used: {error} Pass another in its place, such as "
            "encoder={'query_length': 'paper'}."
        ) from error
    reader = Tokenizer(subwords, config)
    if not config.skip_unknown and "skip_unknown" not in (overrides or {}):
        _warn_of_collisions(reader, name)
    if name != DEFAULT_MODEL and Path(name).expanduser().is_dir():
        name = str(folder.resolve())  # an index remembers it, and may be opened from elsewhere
    return Checkpoint(
        name=name,
        format=found.format,
        folder=folder,
        tokenizer_folder=tokenizer_folder,
        model=model.eval(),
        tokenizer=reader,
        config=config,
        sources=sources,
        source=Source(
            name=name,
            revision=revision,
            tokenizer=_absolute(tokenizer),
            cache_dir=str(cache_dir) if cache_dir is not None else None,
        ),
        fingerprint=_fingerprint(model, reader),
    )


def former_fingerprint(folder: Path, settings: Mapping[str, Any]) -> str:
    """The fingerprint that version 0.1.0 gave a checkpoint: indexes that it made remember it.

    Args:
        folder: of the checkpoint, in HF_ColBERT format.
        settings: of the encoder, as that version wrote them.
    """
    digest = hashlib.blake2b(digest_size=16)
    backbone = read_json(folder / CONFIG_FILE)
    shape = {key: backbone.get(key) for key in ("num_attention_heads", "hidden_act", "layer_norm_eps")}
    digest.update(json.dumps([{**settings, "query_length": None}, shape], sort_keys=True).encode())
    for path in (folder / VOCAB_FILE, folder / WEIGHTS_FILE):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def resolve(
    caller: EncoderOverrides, checkpoint: Mapping[str, tuple[Any, str]], model: Mapping[str, Any]
) -> tuple[EncoderConfig, dict[str, str]]:
    """Every setting: the caller's, else the checkpoint's, else the default.

    Args:
        caller: what the user asks for; a value of None is no wish.
        checkpoint: setting -> (value, the file that states it).
        model: what the weights themselves say, which nobody can override.

    Returns:
        The settings, and for each of them "caller", a file's name, "weights" or "default".

    Raises:
        InvalidInputError: a setting is unknown, out of range, or not for the caller to say.
    """
    wishes = {key: value for key, value in caller.items() if value is not None}
    if fixed := sorted(wishes.keys() & model.keys()):
        said = ", ".join(f"{key} {model[key]!r}" for key in fixed)
        raise InvalidInputError(f"The weights themselves say {said}, which nobody can change. Leave it out.")
    checkpoint = _within(checkpoint, model["max_positions"])
    stated = {key: value for key, (value, _) in checkpoint.items()}
    default = EncoderConfig().to_json()
    # Where nobody says how long a document may be, no longer than the model reads.
    default["document_length"] = min(default["document_length"], model["max_positions"])
    config = EncoderConfig.from_json({**default, **stated, **wishes, **model})
    sources = {}
    for setting in (f.name for f in fields(EncoderConfig)):
        if setting in model:
            sources[setting] = "weights"
        elif setting in wishes:
            sources[setting] = "caller"
        else:
            sources[setting] = checkpoint[setting][1] if setting in checkpoint else "default"
    return config, sources


def _within(stated: Mapping[str, tuple[Any, str]], max_positions: int) -> dict[str, tuple[Any, str]]:
    """What a checkpoint states, its document length no longer than its own network reads."""
    settings = dict(stated)
    length, source = stated.get("document_length", (0, ""))
    if isinstance(length, int) and length > max_positions:
        settings["document_length"] = (max_positions, f"weights; {source} says {length}")
    return settings


def save(folder: Path, model: ColBERT, tokenizer: Tokenizer, *, dtype: torch.dtype) -> None:
    """Write a checkpoint that this library, PyLate and sentence-transformers (>= 6) read.

    colbert-ai reads it as well where the backbone is a BERT under one plain projection.

    Args:
        folder: made where it is missing; files of the same names are replaced.
        model: its weights.
        tokenizer: its vocabulary and settings.
        dtype: of the weights on disk; float16 halves the folder and is read back as float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer.subwords, JapaneseWordPiece):
        write_japanese_tokenizer(folder, tokenizer.subwords)
    elif isinstance(tokenizer.subwords, FastSubwords):
        tokenizer.subwords.save(folder)
    formats.write(folder, model, tokenizer.config, dtype=dtype)


def write_japanese_tokenizer(folder: Path, subwords: JapaneseWordPiece) -> None:
    """Write vocab.txt and the settings of a BertJapaneseTokenizer over MeCab and unidic-lite."""
    (folder / VOCAB_FILE).write_text("\n".join(subwords.tokens) + "\n", encoding="utf-8")
    if subwords.added:
        write_json(folder / ADDED_TOKENS_FILE, subwords.added)
    else:
        (folder / ADDED_TOKENS_FILE).unlink(missing_ok=True)
    write_json(
        folder / TOKENIZER_CONFIG_FILE,
        {
            "tokenizer_class": JAPANESE_CLASS,
            "do_lower_case": subwords.lowercase,
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


def read_backbone_config(folder: Path) -> BackboneConfig:
    """config.json of a transformer.

    Raises:
        CheckpointError: it is missing, not JSON, or of a model that transformers does not know.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {CONFIG_FILE}. Copy it from the checkpoint that this one was made from."
        )
    values = read_json(path)
    positions = values.get("position_embedding_type") or "absolute"
    if values.get("model_type") == BertSettings.model_type and positions != "absolute":
        raise CheckpointError(
            f"{path} asks for {positions!r} positions; expected 'absolute', the only ones that BERT has in "
            "transformers 5. Use a checkpoint that was trained with them."
        )
    if (settings := BertSettings.read(values)) is not None:
        return settings
    from transformers import AutoConfig, PretrainedConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises ValueError, KeyError and its own
        reason = (str(error).splitlines() or [""])[0]
        remote = " It wants code from the checkpoint itself, which is never run here." * (
            "auto_map" in values
        )
        raise CheckpointError(
            f"{path} describes a {values.get('model_type')!r} model, which transformers cannot build "
            f"({type(error).__name__}: {reason}).{remote} Use a checkpoint whose architecture is part of "
            "transformers."
        ) from error
    config.dtype = None
    # A file may name a kernel to be fetched, and decoders keep a cache that nobody reads.
    config._attn_implementation = ATTENTION
    config.use_cache = False
    assert isinstance(config, PretrainedConfig)
    return config


def _network(found: Found) -> ColBERT:
    """The backbone with its weights under its projection."""
    folder = found.backbone_folder
    config = read_backbone_config(folder)
    try:
        backbone = load_backbone(config, found.weights)
    except WeightsMismatchError as error:
        names = [*error.missing, *error.wrong]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise CheckpointError(
            f"{folder / weights_name(folder)} does not fit {CONFIG_FILE}: {len(error.missing)} tensors are "
            f"missing and {len(error.wrong)} have another shape ({shown}). Take both files from the same "
            "checkpoint."
        ) from error
    width, giver = config.hidden_size, f"{CONFIG_FILE} says hidden_size"
    for layer in found.projection:
        if layer.linear.in_features != width:
            raise CheckpointError(
                f"The projection of {folder} reads {layer.linear.in_features} dimensions, but {giver} "
                f"{width}. Take all files from the same checkpoint."
            )
        width, giver = layer.linear.out_features, "the layer before gives"
    stated = found.settings.get("dim", (width, ""))
    if stated[0] != width:
        raise CheckpointError(
            f"The projection of {folder} gives {width} dimensions, but {stated[1]} says {stated[0]}. Take "
            "all files from the same checkpoint."
        )
    return ColBERT(backbone, found.projection)


def _with_marker_prompts(
    stated: Mapping[str, tuple[Any, str]], subwords: Subwords
) -> dict[str, tuple[Any, str]]:
    """Settings in which a prompt that begins with an added token has it as its marker.

    sentence-transformers keeps a marker as the beginning of a prompt: "[Q] ", a token of its own, is read
    before the text and so stands behind the first token.
    """
    settings = dict(stated)
    for role in ("query", "document"):
        prompt, source = stated.get(f"{role}_prompt", ("", ""))
        if stated.get(f"{role}_marker", ("", ""))[0]:
            continue
        for token in sorted(subwords.added, key=len, reverse=True):
            if prompt.startswith(token):
                settings[f"{role}_marker"] = (token, source)
                settings[f"{role}_prompt"] = (prompt.removeprefix(token), source)
                break
    return settings


def _model_facts(model: ColBERT) -> dict[str, Any]:
    """What the weights say, whatever anyone states."""
    return {"dim": model.dim, "max_positions": n_positions(model.backbone) or 512}


def _absolute(name: str | Path | None) -> str | None:
    """A folder's full path, so that it is found from elsewhere; a hub id as it is."""
    if name is None:
        return None
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else str(name)


def _tokenizer_folder(found: Found, folder: Path) -> Path:
    return found.backbone_folder if has_tokenizer(found.backbone_folder) else folder


def _is_complete(folder: Path) -> bool:
    """Whether a cached snapshot has all of a checkpoint; other tools fetch parts of one."""
    return formats.is_complete(folder) and any(
        has_tokenizer(place) for place in (folder, *folder.glob("*_Transformer"))
    )


def _warn_of_collisions(tokenizer: Tokenizer, name: str) -> None:
    if symbols := tokenizer.skiplist_collisions():
        warnings.warn(
            f"The skiplist of {name!r} has {' '.join(symbols)}, which the vocabulary lacks. colbert-ai and "
            "PyLate skip every unknown token then; this library keeps them, as sentence-transformers does. "
            "If the model was trained and indexed with the former, pass encoder={'skip_unknown': True}; else "
            "encoder={'skip_unknown': False} silences this.",
            CheckpointWarning,
            stacklevel=4,
        )


def _fingerprint(model: ColBERT, tokenizer: Tokenizer) -> str:
    """What two indexes must share to be searched by one encoder: text read alike.

    The query's length rule is left out: it may change from search to search.
    """
    digest = hashlib.blake2b(digest_size=16)
    settings = tokenizer.config.to_json() | {"query_length": None}
    architecture = {key: getattr(model.config, key, None) for key in _ARCHITECTURE_KEYS}
    layers = [(repr(layer.activation), layer.has_residual) for layer in model.projection]
    described = [
        settings,
        architecture,
        layers,
        sorted(tokenizer.vocab.items()),
        tokenizer.subwords.name,
        tokenizer.subwords.ids(_PROBE),  # a vocabulary does not say how text is cut and folded
    ]
    digest.update(json.dumps(described, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
