from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jacolbert_rag import CheckpointError
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.encoder import Encoder
from tests.conftest import SENTENCES, write_tiny_checkpoint


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_reads_what_the_metadata_says(folder: Path) -> None:
    metadata = json.loads((folder / "artifact.metadata").read_text())
    metadata.update(doc_maxlen=50, query_token_id="[unused3]", mask_punctuation=False)
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    loaded = checkpoint.load(str(folder))
    assert loaded.config.document_length == 50
    assert loaded.tokenizer.query_marker_id == 8
    assert loaded.tokenizer.skiplist() == frozenset()


def test_caller_overrides_the_checkpoint(folder: Path) -> None:
    loaded = checkpoint.load(str(folder), document_length=20, query_length="fixed:16")
    assert (loaded.config.document_length, loaded.config.query_length) == (20, "fixed:16")


def test_saved_checkpoint_loads_the_same(folder: Path, tmp_path: Path) -> None:
    first = checkpoint.load(str(folder))
    checkpoint.save(tmp_path / "again", first.model, first.tokenizer, dtype=torch.float32)
    second = checkpoint.load(str(tmp_path / "again"))
    assert second.fingerprint == first.fingerprint
    ours, theirs = (Encoder(c).documents(SENTENCES).flat for c in (first, second))
    assert ours == pytest.approx(theirs, abs=0)


def test_half_precision_weights_are_read_as_float32(folder: Path, tmp_path: Path) -> None:
    first = checkpoint.load(str(folder))
    checkpoint.save(tmp_path / "half", first.model, first.tokenizer, dtype=torch.float16)
    assert load_file(tmp_path / "half" / "model.safetensors")["linear.weight"].dtype == torch.float16
    assert checkpoint.load(str(tmp_path / "half")).model.linear.weight.dtype == torch.float32


def test_heads_that_colbert_has_not_are_left_out(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["bert.pooler.dense.weight"] = torch.zeros(32, 32)
    save_file(weights, folder / "model.safetensors")
    checkpoint.load(str(folder))


def test_fingerprint_tells_models_and_document_lengths_apart(tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    prints = {
        checkpoint.load(str(tiny_model)).fingerprint,
        checkpoint.load(str(other)).fingerprint,
        checkpoint.load(str(tiny_model), document_length=32).fingerprint,
    }
    assert len(prints) == 3
    # The query's rule may change between searches of one index.
    assert checkpoint.load(str(tiny_model), query_length="fixed:16").fingerprint in prints


def test_model_without_projection_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["linear.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors has no linear\.weight.*full ColBERT checkpoint"
    ):
        checkpoint.load(str(folder))


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "artifact.metadata", "vocab.txt", "tokenizer_config.json"]
)
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        checkpoint.load(str(folder))


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, which is pickled.*safetensors"):
        checkpoint.load(str(folder))


def test_truncated_weights_are_refused(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cut short.*copy it again"):
        checkpoint.load(str(folder))


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="have another shape .*same checkpoint"):
        checkpoint.load(str(folder))


def test_missing_weights_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["bert.embeddings.LayerNorm.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors are missing.*LayerNorm\.weight"):
        checkpoint.load(str(folder))


def test_broken_json_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        checkpoint.load(str(folder))


def test_too_large_a_vocabulary_is_refused(folder: Path) -> None:
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("余分\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt has \d+ tokens, but the weights embed"):
        checkpoint.load(str(folder))


def test_other_backbone_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "modernbert"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'modernbert' model"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "model", "a/b/c"])
def test_name_that_is_no_folder_never_asks_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match="is no folder"):
        checkpoint.load(name)


def test_hub_id_is_taken_from_the_cache_first(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(
        name: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        asked.append((name, revision, local_files_only))
        return str(tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    loaded = checkpoint.load("someone/some-model", revision="v2")
    assert asked == [("someone/some-model", "v2", True)]
    assert loaded.name == "someone/some-model"


def test_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(name: str, *, local_files_only: bool = False, **_: object) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(CheckpointError, match="not in the local hub cache.*no route.*name a folder"):
        checkpoint.load("someone/some-model")


def test_bundled_model_is_small_and_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("opened a connection"))
    folder = checkpoint.resolve_folder("default")
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 20_000_000
    assert checkpoint.load().config.dim == 128
