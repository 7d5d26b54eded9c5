"""Checkpoints: every format built small, loaded, saved and loaded again; broken ones refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, DistilBertConfig, ModernBertConfig, PretrainedConfig, XLMRobertaConfig

from jacolbert_rag import CheckpointError, CheckpointWarning, EncoderConfig, InvalidInputError
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.checkpoint import Checkpoint
from jacolbert_rag.encode.encoder import Encoder
from jacolbert_rag.encode.files import resolve_folder
from jacolbert_rag.encode.model import ColBERT, Dense, empty_backbone
from jacolbert_rag.encode.tokens import Tokenizer, load_subwords
from tests.conftest import SENTENCES, tiny_vocab, write_fast_tokenizer, write_tiny_checkpoint

CHECKPOINTS = Path(__file__).parent / "data" / "checkpoints"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def embeddings(loaded: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    encoder = Encoder(loaded, device="cpu", dtype="float32")
    texts = [*SENTENCES, "湖"]
    return tuple(torch.from_numpy(e.flat) for e in (encoder.documents(texts), encoder.queries(texts)))


def same(first: Checkpoint, second: Checkpoint) -> bool:
    return all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-6)
        for a, b in zip(embeddings(first), embeddings(second), strict=True)
    )


def edit_json(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | changes))


# What a checkpoint says, and who is asked first.


def test_reads_what_the_metadata_says(folder: Path) -> None:
    edit_json(folder / "artifact.metadata", doc_maxlen=50, query_token_id="[unused3]", mask_punctuation=False)
    loaded = checkpoint.load(str(folder))
    assert loaded.config.document_length == 50
    assert loaded.tokenizer.query_marker_id == 8
    assert loaded.tokenizer.skiplist() == frozenset()
    assert loaded.sources["document_length"] == "artifact.metadata"
    assert loaded.sources["marker_mode"] == "default"
    assert loaded.sources["dim"] == loaded.sources["max_positions"] == "weights"


def test_caller_overrides_the_checkpoint(folder: Path) -> None:
    loaded = checkpoint.load(str(folder), overrides={"document_length": 20, "query_length": "fixed(16)"})
    assert (loaded.config.document_length, loaded.config.query_length) == (20, "fixed(16)")
    assert loaded.sources["document_length"] == loaded.sources["query_length"] == "caller"


def test_unknown_override_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="has no setting doc_maxlen; it has .*document_length"):
        checkpoint.load(str(folder), overrides={"doc_maxlen": 20})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(("maxlen", "rule"), [(32, "paper"), (None, "paper"), (48, "dynamic(48, 8)")])
def test_query_length_of_training_is_the_multiple(folder: Path, maxlen: int | None, rule: str) -> None:
    edit_json(folder / "artifact.metadata", query_maxlen=maxlen)
    assert checkpoint.load(str(folder)).config.query_length == rule


def test_document_length_beyond_the_model_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="document_length must be from 4 to 128"):
        checkpoint.load(str(folder), overrides={"document_length": 300})


def test_stated_length_beyond_the_model_is_the_models(folder: Path) -> None:
    edit_json(folder / "artifact.metadata", doc_maxlen=8192)
    loaded = checkpoint.load(folder)
    assert loaded.config.document_length == 128
    assert loaded.sources["document_length"] == "weights; artifact.metadata says 8192"


def test_stated_rule_that_cannot_be_followed_names_the_folder(folder: Path) -> None:
    edit_json(folder / "artifact.metadata", query_maxlen=512)
    with pytest.raises(CheckpointError, match=r"A setting of .*model cannot be used.*encoder="):
        checkpoint.load(folder)
    assert checkpoint.load(folder, overrides={"query_length": "paper"}).config.query_length == "paper"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [({"query_length": 32}, "query_length must be a str"), ({"document_length": "60"}, "a whole number")],
)
def test_settings_of_the_wrong_type_are_refused(folder: Path, overrides, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        checkpoint.load(folder, overrides=overrides)


def test_default_length_is_no_longer_than_the_model(folder: Path) -> None:
    (folder / "artifact.metadata").unlink()
    assert checkpoint.load(str(folder)).config.document_length == 128


# Formats.


def small_config(kind: type[PretrainedConfig], n_tokens: int) -> PretrainedConfig:
    shared = {"vocab_size": n_tokens, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    if kind is DistilBertConfig:
        return DistilBertConfig(
            dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=128, **shared
        )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    extra = {"cls_token_id": 2, "sep_token_id": 3} if kind is ModernBertConfig else {}
    return kind(max_position_embeddings=130, initializer_range=0.5, **sizes, **shared, **extra)


def write_modules_checkpoint(folder: Path, kind: type[PretrainedConfig], projection: list[Dense]) -> Path:
    """A folder of modules over a fast tokenizer, as PyLate writes it."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    subwords = load_subwords(write_fast_tokenizer(folder))
    model = ColBERT(empty_backbone(small_config(kind, len(subwords.vocab))), projection)
    config = EncoderConfig(dim=model.dim, document_length=64, max_positions=126)
    checkpoint.save(folder, model, Tokenizer(subwords, config), dtype=torch.float32)
    return folder


BACKBONES: dict[str, Callable[[Path], Path]] = {
    "bert": lambda p: write_tiny_checkpoint(p),
    "modernbert": lambda p: write_modules_checkpoint(p, ModernBertConfig, [Dense(32, 16)]),
    "xlm-roberta": lambda p: write_modules_checkpoint(p, XLMRobertaConfig, [Dense(32, 16)]),
    "distilbert": lambda p: write_modules_checkpoint(p, DistilBertConfig, [Dense(32, 16)]),
    "two-dense": lambda p: write_modules_checkpoint(
        p, ModernBertConfig, [Dense(32, 24, bias=True, activation="GELU"), Dense(24, 16, residual=True)]
    ),
    "dense-with-bias": lambda p: write_modules_checkpoint(p, BertConfig, [Dense(32, 16, bias=True)]),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_loaded_saved_and_loaded_again_is_the_same(name: str, tmp_path: Path) -> None:
    first = checkpoint.load(BACKBONES[name](tmp_path / "first"))
    first.save_pretrained(tmp_path / "second")
    second = checkpoint.load(tmp_path / "second")
    assert first.format == ("HF_ColBERT" if name == "bert" else "sentence-transformers")
    assert second.config == first.config
    assert second.fingerprint == first.fingerprint
    assert same(first, second)


def test_settings_that_a_format_cannot_hold_survive_saving(folder: Path, tmp_path: Path) -> None:
    first = checkpoint.load(
        folder, overrides={"marker_mode": "dot", "skip_unknown": True, "query_length": "jqara"}
    )
    first.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "jacolbert_rag.json").read_text()) == {
        "marker_mode": "dot",
        "skip_unknown": True,
        "query_length": "jqara",
    }
    second = checkpoint.load(tmp_path / "again")
    assert second.config == first.config
    assert second.sources["marker_mode"] == "jacolbert_rag.json"
    checkpoint.load(folder).save_pretrained(tmp_path / "again")  # over the other
    assert not (tmp_path / "again" / "jacolbert_rag.json").exists()


def test_roberta_positions_begin_behind_the_padding(tmp_path: Path) -> None:
    loaded = checkpoint.load(BACKBONES["xlm-roberta"](tmp_path / "model"))
    assert loaded.config.max_positions == 129  # 130, less padding_idx 0 and one
    longest = Encoder(loaded, device="cpu", dtype="float32").tokenizer.config.max_positions
    ids = torch.full((1, longest), 10)
    with torch.inference_mode():
        loaded.model(ids)
        with pytest.raises((IndexError, RuntimeError)):
            loaded.model(torch.full((1, longest + 1), 10))


def test_pylate_defaults_where_its_folder_is_silent(tmp_path: Path) -> None:
    folder = BACKBONES["modernbert"](tmp_path / "model")
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "ColBERT"}')
    with pytest.raises(CheckpointError, match=r"lacks '\[Q\] ', '\[D\] '"):
        checkpoint.load(folder, overrides={"document_length": 60})
    loaded = checkpoint.load(
        folder,
        overrides={"document_length": 60, "query_marker": "[unused0]", "document_marker": "[unused1]"},
    )
    assert loaded.sources["skiplist"] == "PyLate's default"
    assert loaded.config.query_length == "paper"


@pytest.mark.parametrize(
    ("stated", "rule"),
    [
        ({"do_query_expansion": False}, "none"),
        ({"query_length": 48}, "dynamic(48, 8)"),
        ({"query_length": 32}, "paper"),
    ],
)
def test_query_expansion_of_pylate(tmp_path: Path, stated: dict[str, object], rule: str) -> None:
    folder = BACKBONES["modernbert"](tmp_path / "model")
    edit_json(folder / "config_sentence_transformers.json", **stated)
    (folder / "jacolbert_rag.json").unlink(missing_ok=True)
    assert checkpoint.load(folder).config.query_length == rule


def test_shards_are_read_as_one(folder: Path) -> None:
    whole = checkpoint.load(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: weights[key] for key in keys}, folder / shard)
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    cut = checkpoint.load(folder)
    assert cut.fingerprint == whole.fingerprint
    assert same(cut, whole)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"has no model-00002-of-00002\.safetensors, which .*index\.json"
    ):
        checkpoint.load(folder)


def test_bare_intermediate_takes_tokenizer_and_metadata_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "artifact.metadata", doc_maxlen=50)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, bare)
    with pytest.raises(CheckpointError, match=r"bare has no tokenizer.*tokenizer='bclavie/JaColBERT'"):
        checkpoint.load(bare)
    loaded = checkpoint.load(bare, tokenizer=folder)
    assert same(loaded, checkpoint.load(folder))
    assert loaded.config.document_length == 50
    assert loaded.source.tokenizer == str(folder.resolve())


def test_half_precision_weights_are_read_as_float32(folder: Path, tmp_path: Path) -> None:
    first = checkpoint.load(folder)
    first.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert load_file(tmp_path / "half" / "model.safetensors")["linear.weight"].dtype == torch.float16
    assert {p.dtype for p in checkpoint.load(tmp_path / "half").model.parameters()} == {torch.float32}


def test_encoder_leaves_the_checkpoint_in_float32(folder: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(folder)
    Encoder(loaded, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_heads_that_colbert_has_not_are_left_out(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["bert.pooler.dense.weight"] = torch.zeros(32, 32)
    save_file(weights, folder / "model.safetensors")
    checkpoint.load(folder)


def test_tensorflow_names_of_layer_norm_are_read(folder: Path) -> None:
    whole = checkpoint.load(folder)
    weights = load_file(folder / "model.safetensors")
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in weights.items()
    }
    assert old.keys() != weights.keys()
    save_file(old, folder / "model.safetensors")
    assert checkpoint.load(folder).fingerprint == whole.fingerprint


def test_saving_leaves_the_users_files_alone(tiny_model: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(tiny_model)
    mine = tmp_path / "mine"
    mine.mkdir()
    loaded.save_pretrained(mine)  # empty
    loaded.save_pretrained(mine)  # a checkpoint
    (tmp_path / "config.json").write_text("{}")
    for target in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(InvalidInputError, match="is no checkpoint, so it is left as it is"):
            loaded.save_pretrained(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "mine"]
    assert (tmp_path / "config.json").read_text() == "{}"


def test_no_name_is_no_folder() -> None:
    with pytest.raises(CheckpointError, match="'' is no folder"):
        checkpoint.load("")


@pytest.mark.parametrize(("setting", "value"), [("dim", 7), ("max_positions", 99)])
def test_what_the_weights_say_cannot_be_overridden(tiny_model: Path, setting: str, value: int) -> None:
    with pytest.raises(InvalidInputError, match=f"weights themselves say {setting}.*Leave it out"):
        checkpoint.load(tiny_model, overrides={setting: value})  # type: ignore[misc]


def test_bert_with_relative_positions_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"position_embedding_type": "relative_key"}))
    with pytest.raises(CheckpointError, match="asks for 'relative_key' positions; expected 'absolute'"):
        checkpoint.load(folder)


def test_fingerprint_tells_models_and_document_lengths_apart(tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    prints = {
        checkpoint.load(tiny_model).fingerprint,
        checkpoint.load(other).fingerprint,
        checkpoint.load(tiny_model, overrides={"document_length": 32}).fingerprint,
        checkpoint.load(tiny_model, overrides={"marker_mode": "dot"}).fingerprint,
    }
    assert len(prints) == 4
    lower = Path(shutil.copytree(tiny_model, tmp_path / "lower"))
    edit_json(lower / "tokenizer_config.json", do_lower_case=True)
    assert checkpoint.load(lower).fingerprint not in prints
    # The query's rule may change between searches of one index.
    assert checkpoint.load(tiny_model, overrides={"query_length": "fixed(16)"}).fingerprint in prints


def test_symbol_outside_the_vocabulary_is_warned_of(folder: Path) -> None:
    vocab = [token if token != "`" else "余白" for token in tiny_vocab()]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    with pytest.warns(CheckpointWarning, match="has `, which the vocabulary lacks.*skip_unknown"):
        checkpoint.load(folder)
    for choice in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = checkpoint.load(folder, overrides={"skip_unknown": choice})
        assert (loaded.tokenizer.special.unk in loaded.tokenizer.skiplist()) is choice


# What is broken, and how it is mended.


def test_model_without_projection_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["linear.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors has no linear\.weight.*full ColBERT checkpoint"
    ):
        checkpoint.load(folder)


def test_modules_without_a_projection_are_refused(tmp_path: Path) -> None:
    folder = BACKBONES["modernbert"](tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:1]))
    with pytest.raises(CheckpointError, match=r"modules\.json names no Dense module"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("sentence_transformers.models.Pooling", "one embedding a text, not a ColBERT"),
        ("someone.models.Magic", "expected Transformer, Dense"),
    ],
)
def test_other_modules_are_refused(tmp_path: Path, module: str, words: str) -> None:
    folder = BACKBONES["modernbert"](tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_X", "type": module})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(folder)


def test_activation_from_a_file_runs_no_code(tmp_path: Path) -> None:
    folder = BACKBONES["two-dense"](tmp_path / "model")
    edit_json(folder / "1_Dense" / "config.json", activation_function="os.system")
    with pytest.raises(CheckpointError, match=r"1_Dense/config\.json asks for the activation 'os\.system'"):
        checkpoint.load(folder)


@pytest.mark.parametrize("path", ["..", "../other", "/etc"])
def test_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    folder = BACKBONES["modernbert"](tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="not the name of something in that folder"):
        checkpoint.load(folder)


def test_attention_kernel_from_a_file_is_not_obeyed(tmp_path: Path) -> None:
    folder = BACKBONES["modernbert"](tmp_path / "model")
    edit_json(folder / "config.json", _attn_implementation="someone/some-kernel")
    assert checkpoint.load(folder).model.config._attn_implementation == "sdpa"


def test_settings_of_sentence_transformers_that_are_not_supported_are_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINTS / "st_xlmr", tmp_path / "model"))
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    expansion = settings["query_expansion"] | {"token": "<pad>"}
    edit_json(folder / "sentence_bert_config.json", query_expansion=expansion)
    with pytest.raises(CheckpointError, match=r"pads queries with '<pad>'"):
        checkpoint.load(folder)
    edit_json(folder / "sentence_bert_config.json", query_expansion=None, do_lower_case=True)
    with pytest.raises(CheckpointError, match="do_lower_case"):
        checkpoint.load(folder)


@pytest.mark.filterwarnings("ignore:The skiplist of:jacolbert_rag.CheckpointWarning")
def test_length_of_sentence_transformers_falls_back_to_the_longest_text(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINTS / "st_xlmr", tmp_path / "model"))
    edit_json(folder / "sentence_bert_config.json", document_length=None, max_seq_length=50)
    assert checkpoint.load(folder).config.document_length == 50


def test_dense_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = BACKBONES["two-dense"](tmp_path / "model")
    edit_json(folder / "1_Dense" / "config.json", out_features=20)
    with pytest.raises(CheckpointError, match=r"1_Dense/model\.safetensors does not fit"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        checkpoint.load(folder)


def test_missing_tokenizer_settings_are_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json.*BertJapaneseTokenizer"):
        checkpoint.load(folder)


@pytest.mark.parametrize("place", ["", "1_Dense"])
def test_pickled_weights_are_refused(tmp_path: Path, place: str) -> None:
    folder = BACKBONES["modernbert"](tmp_path / "model")
    (folder / place / "model.safetensors").rename(folder / place / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, which is pickled.*safetensors"):
        checkpoint.load(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cut short.*copy it again"):
        checkpoint.load(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=128)
    with pytest.raises(CheckpointError, match="have another shape .*same checkpoint"):
        checkpoint.load(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["bert.embeddings.LayerNorm.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors are missing.*LayerNorm\.weight"):
        checkpoint.load(folder)


def test_metadata_of_another_width_is_refused(folder: Path) -> None:
    edit_json(folder / "artifact.metadata", dim=96)
    with pytest.raises(CheckpointError, match=r"gives 16 dimensions, but artifact\.metadata says 96"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", ["config.json", "artifact.metadata", "tokenizer_config.json"])
def test_broken_json_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(CheckpointError, match=rf"{name} is not JSON"):
        checkpoint.load(folder)


def test_too_large_a_vocabulary_is_refused(folder: Path) -> None:
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("余分\n")
    with pytest.raises(CheckpointError, match=r"has ids up to \d+, but the weights embed"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "changes", [{"model_type": "plamo"}, {"model_type": "plamo", "auto_map": {"AutoModel": "m.M"}}]
)
def test_architecture_that_needs_remote_code_is_refused(folder: Path, changes: dict[str, object]) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match="'plamo' model.*part of transformers") as error:
        checkpoint.load(folder)
    assert ("never run here" in str(error.value)) == ("auto_map" in changes)


# Names and the hub.


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "model", "a/b/c"])
def test_name_that_is_no_folder_never_asks_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match="is no folder"):
        checkpoint.load(name)


def test_hub_id_is_taken_from_the_cache_first(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, **options: object) -> str:
        asked.append((name, options))
        return str(tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    loaded = checkpoint.load("someone/some-model", revision="v2", token="hf_x", cache_dir="/some/cache")
    ((name, options),) = asked
    assert (name, options["revision"], options["token"]) == ("someone/some-model", "v2", "hf_x")
    assert (options["cache_dir"], options["local_files_only"]) == ("/some/cache", True)
    assert loaded.name == "someone/some-model"
    assert "hf_x" not in repr(loaded.source)


def test_cache_without_weights_is_filled_from_the_hub(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tiny_model / "config.json", tmp_path)  # what another tool may have fetched
    asked = []

    def snapshot(name: str, *, local_files_only: bool, **_: object) -> str:
        asked.append(local_files_only)
        return str(tmp_path if local_files_only else tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    checkpoint.load("someone/some-model")
    assert asked == [True, False]


@pytest.mark.parametrize("left_out", ["artifact.metadata", "vocab.txt"])
def test_cache_without_metadata_is_taken_only_where_the_hub_is_out_of_reach(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    partial = Path(shutil.copytree(tiny_model, tmp_path / "partial"))  # as AutoModel leaves it
    (partial / left_out).unlink()
    reachable = True

    def snapshot(name: str, *, local_files_only: bool, **_: object) -> str:
        if not local_files_only and not reachable:
            raise ConnectionError("no route")
        return str(partial if local_files_only else tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert checkpoint.load("someone/some-model").config.document_length == 64
    reachable = False
    if left_out == "vocab.txt":
        with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match="has no vocab"):
            checkpoint.load("someone/some-model")
        # A tokenizer that is named makes the rest enough.
        checkpoint.load("someone/some-model", tokenizer=tiny_model)
    else:
        with pytest.warns(CheckpointWarning, match="not whole in the local hub cache.*defaults"):
            assert checkpoint.load("someone/some-model").config.document_length == 128


def test_folder_that_is_misspelt_is_no_hub_id() -> None:
    with pytest.raises(CheckpointError, match="'models/日本語モデル' is no folder"):
        checkpoint.load("models/日本語モデル")


def test_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(name: str, *, local_files_only: bool = False, **_: object) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(CheckpointError, match="not whole in the local hub cache.*no route.*name a folder"):
        checkpoint.load("someone/some-model")


def test_real_cache_of_the_hub_is_read_without_network(
    tiny_model: Path, tmp_path: Path, no_network: None
) -> None:
    # A cache as huggingface_hub lays it out.
    snapshot = tmp_path / "models--someone--some-model" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_model, snapshot)
    refs = tmp_path / "models--someone--some-model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    loaded = checkpoint.load("someone/some-model", cache_dir=tmp_path)
    assert loaded.folder == snapshot
    assert checkpoint.load("someone/some-model", cache_dir=tmp_path, revision="0" * 40).folder == snapshot


def test_bundled_model_is_small_and_needs_no_network(no_network: None) -> None:
    folder = resolve_folder("default")
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 20_000_000
    assert checkpoint.load().config.dim == 128
