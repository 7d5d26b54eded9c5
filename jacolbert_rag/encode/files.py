"""The files of a checkpoint: found in a folder or on the hub, read as JSON and as tensors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jacolbert_rag.errors import CheckpointError, CheckpointWarning

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
WEIGHTS_FILE = "model.safetensors"
SHARDS_FILE = "model.safetensors.index.json"
# By which an index is known that was named where a model belongs.
INDEX_FILES = ("index.sqlite", "documents.sqlite")

DEFAULT_MODEL = "default"
"""The name that an index stores for the bundled checkpoint, which moves with the package."""

# All that a checkpoint of any format is made of; no pickled weights, nor the model for other runtimes.
FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model", "artifact.metadata"]
NOT_FETCHED = ["onnx/*", "openvino/*", "*.bin", "*.pt", "*.ckpt", "*.h5", "*.msgpack", "*.gguf"]


_NO_FOLDER = (
    "{!r} is no folder. Name the folder of a ColBERT checkpoint, a hub id such as "
    "'answerdotai/JaColBERTv2.5', or nothing for the bundled model. If an index names a model that has "
    "moved, pass `model=`."
)


def resolve_folder(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    is_complete: Callable[[Path], bool] = lambda folder: True,
    weights: bool = True,
) -> Path:
    """The folder that holds a checkpoint's files, fetched only when a hub id is named.

    Args:
        name: "default" for the bundled model, a folder, or a hub id ("owner/model").
        revision: branch, tag or commit of a hub id.
        token: the hub's access token; True takes the one that the user logged in with.
        cache_dir: the hub's cache, in place of its usual folder.
        is_complete: whether a cached folder has all that is needed. The network is asked only where
            it has not; where that cannot be reached, what is cached is taken, with a warning.
        weights: whether weights are fetched too.

    Raises:
        CheckpointError: it is neither a folder nor to be had from the hub.
    """
    if not name.strip():
        raise CheckpointError(_NO_FOLDER.format(name))
    if name == DEFAULT_MODEL:
        return Path(str(files("jacolbert_rag"))) / "default_model"
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(_NO_FOLDER.format(name))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    cached: Path | None = None

    def snapshot(*, local: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                allow_patterns=FETCHED if weights else [p for p in FETCHED if p != "*.safetensors"],
                ignore_patterns=NOT_FETCHED,
                local_files_only=local,
            )
        )

    try:
        # What is cached needs no network, so a machine that has been offline since still starts.
        cached = snapshot(local=True)
        if is_complete(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise CheckpointError(_NO_FOLDER.format(name)) from error
    try:
        return snapshot(local=False)
    except Exception as error:  # the hub client raises its own and its transport's errors
        if cached is not None:
            warnings.warn(
                f"{name!r} is not whole in the local hub cache ({cached}), and the hub could not be asked "
                f"({type(error).__name__}). What is there is taken; what its files lack are defaults.",
                CheckpointWarning,
                stacklevel=3,
            )
            return cached
        raise CheckpointError(
            f"{name!r} is no folder here, is not whole in the local hub cache, and could not be fetched "
            f"({type(error).__name__}: {error}). Check the name, the revision and the network, or name a "
            "folder."
        ) from error


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors weights, and a configuration to read them by."""
    named = (folder / WEIGHTS_FILE).is_file() or _has_all_shards(folder)
    return named and (folder / CONFIG_FILE).is_file()


def weights_name(folder: Path) -> str:
    """The file that a folder's weights are in, or that names those which they are in."""
    is_sharded = (folder / SHARDS_FILE).is_file() and not (folder / WEIGHTS_FILE).is_file()
    return SHARDS_FILE if is_sharded else WEIGHTS_FILE


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that its index names, as float32.

    Raises:
        CheckpointError: a file is missing, cut short, or not safetensors.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return _read_tensors(folder / WEIGHTS_FILE)
    if not (folder / SHARDS_FILE).is_file():
        pickled = sorted(
            p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt"))
        )
        if pickled:
            hint = (
                f"It has {', '.join(pickled)}, which is pickled and may run code when read: convert it to "
                "safetensors where you trust it."
            )
        elif any((folder / name).is_file() for name in INDEX_FILES):
            hint = "It is an index and no model: open it with JaColBERTRetriever.load."
        else:
            hint = "Copy it from the checkpoint."
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}. {hint}")
    tensors: dict[str, Tensor] = {}
    for name in _shards(folder):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}, which {SHARDS_FILE} names. Copy it from the checkpoint."
            )
        tensors |= _read_tensors(folder / name)
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        CheckpointError: it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Copy it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not a JSON object. Copy it again.")
    return values


def write_json(path: Path, values: Any) -> None:
    """Write a value as readable JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _has_all_shards(folder: Path) -> bool:
    return (folder / SHARDS_FILE).is_file() and all((folder / name).is_file() for name in _shards(folder))


def _shards(folder: Path) -> list[str]:
    """File names of the shards; never a path that leads elsewhere."""
    names = read_json(folder / SHARDS_FILE).get("weight_map", {}).values()
    return sorted({inside(folder, str(name)).name for name in names})


def inside(folder: Path, name: str) -> Path:
    """The file or folder of this name in a folder.

    Raises:
        CheckpointError: the name leads elsewhere.
    """
    if name in ("", ".", "..") or Path(name).name != name.rstrip("/"):
        raise CheckpointError(
            f"A file of {folder} names {name!r}, which is not the name of something in that folder. It was "
            "tampered with, or is of another format: copy the checkpoint again from where you trust it."
        )
    return folder / name


def _read_tensors(path: Path) -> dict[str, Tensor]:
    # Here, so that a process that only tokenises does not load torch.
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is not readable as safetensors ({error}). It was "
            "probably cut short while copying: copy it again."
        ) from error
