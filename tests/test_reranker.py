from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM

from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.words import JapaneseWordPiece
from tests.conftest import SENTENCES, tiny_vocab, write_fast_tokenizer
from training import reranker
from training.arithmetic import rate_factor
from training.batches import Lessons
from training.data import read_data
from training.options import TrainingError
from training.report import read_metrics
from training.teachers import CrossEncoder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training.pretrain writes, of random weights."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tiny_vocab()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    model = BertForMaskedLM(config)
    checkpoint.write_japanese_tokenizer(folder, JapaneseWordPiece(tiny_vocab()))
    (folder / "config.json").write_text(model.config.to_json_string())
    tensors = {f"bert.{key}": value for key, value in model.bert.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 tuples of 4: parts of a sentence, that sentence, and three others."""
    rows = []
    for i in range(32):
        text, start = SENTENCES[i % len(SENTENCES)], 2 * (i // len(SENTENCES))
        others = [SENTENCES[(i + j) % len(SENTENCES)] for j in (1, 3, 6)]
        rows.append({"query": text[start : start + 7], "passages": [text, *others], "n_positives": 1})
    path = tmp_path_factory.mktemp("data") / "mined.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def train(base: Path, data: object, out: Path, *more: object) -> None:
    app = typer.Typer()
    app.command(name="reranker")(reranker.main)
    args = [
        "--base",
        base,
        "--data",
        data,
        "--out",
        out,
        "--n-ways",
        4,
        "--length",
        64,
        "--device",
        "cpu",
        *more,
    ]
    typer.main.get_command(app).main([str(arg) for arg in args], standalone_mode=False)


def share_right(folder: Path, mined: Path) -> float:
    """Share of the tuples whose positive the cross-encoder scores above all negatives."""
    rows = [json.loads(line) for line in mined.read_text(encoding="utf-8").splitlines()]
    scores = CrossEncoder(str(folder)).score(
        [row["query"] for row in rows], [row["passages"] for row in rows]
    )
    return float(np.mean([row.argmax() == 0 for row in scores]))


@pytest.fixture(scope="module")
def trained(backbone: Path, mined: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reranker") / "out"
    args = ["--batch", 16, "--steps", 120, "--learning-rate", 0.003, "--save-every", 50]
    train(backbone, mined, out, *args)
    return out


def test_it_learns_its_tuples(backbone: Path, mined: Path, trained: Path, tmp_path: Path) -> None:
    train(backbone, mined, tmp_path / "untrained", "--steps", 0)
    assert share_right(tmp_path / "untrained", mined) < 0.6
    assert share_right(trained, mined) >= 0.9
    rows = read_metrics(trained)
    assert [row["step"] for row in rows] == list(range(1, 121))
    assert np.mean([row["loss"] for row in rows[-10:]]) < 0.3 * np.mean([row["loss"] for row in rows[:5]])
    assert np.mean([row["accuracy"] for row in rows[-10:]]) > 0.9
    assert max(row["learning_rate"] for row in rows) == pytest.approx(0.003, rel=0.02)
    assert rows[-1]["learning_rate"] < 0.0001


def test_it_is_what_transformers_loads(trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(trained))
    model = AutoModelForSequenceClassification.from_pretrained(str(trained)).eval()
    assert type(model).__name__ == "BertForSequenceClassification"
    found = CrossEncoder(str(trained)).score(["牛丼"], [SENTENCES])[0]
    for text, score in zip(SENTENCES, found, strict=True):
        with torch.no_grad():  # token types come of themselves
            logits = model(**tokenizer("牛丼", text, return_tensors="pt")).logits
        assert logits.shape == (1, 1)
        assert float(logits) == pytest.approx(score, abs=1e-4)


def test_a_finished_one_is_left_as_it_is(backbone: Path, mined: Path, trained: Path) -> None:
    before = (trained / "model.safetensors").stat().st_mtime_ns
    args = ["--batch", 16, "--steps", 120, "--learning-rate", 0.003, "--save-every", 50]
    train(backbone, mined, trained, *args)
    with pytest.raises(TrainingError, match="begun with other settings: steps 120 -> 999"):
        train(backbone, mined, trained, *args, "--steps", 999)
    assert (trained / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_makes_the_same_weights(
    backbone: Path, mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    args = ["--batch", 8, "--steps", 6, "--learning-rate", 0.003, "--save-every", 2, "--dropout", dropout]
    train(backbone, mined, tmp_path / "unbroken", *args)
    original = reranker.listwise_loss
    seen: list[int] = []

    def killed(logits: torch.Tensor) -> torch.Tensor:
        seen.append(len(logits))
        if len(seen) == 6:
            raise OSError("killed in step 6")
        return original(logits)

    with monkeypatch.context() as patch:
        patch.setattr(reranker, "listwise_loss", killed)
        with pytest.raises(OSError, match="killed in step 6"):
            train(backbone, mined, tmp_path / "resumed", *args)
    assert not (tmp_path / "resumed" / "model.safetensors").exists()
    with pytest.raises(TrainingError, match="begun with other settings: steps 6 -> 7"):
        train(backbone, mined, tmp_path / "resumed", *args, "--steps", 7)
    train(backbone, mined, tmp_path / "resumed", *args)
    unbroken, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("unbroken", "resumed"))
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)
    losses = [[row["loss"] for row in read_metrics(tmp_path / name)] for name in ("unbroken", "resumed")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    config = json.loads((tmp_path / "resumed" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == dropout


def test_smaller_passes_change_nothing(backbone: Path, mined: Path, tmp_path: Path) -> None:
    args = ["--batch", 8, "--steps", 3, "--precision", "fp32"]
    train(backbone, mined, tmp_path / "whole", *args)
    train(backbone, mined, tmp_path / "parts", *args, "--micro-batch", 3)
    whole, parted = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for key in whole:
        assert torch.allclose(whole[key], parted[key], atol=1e-4), key


def test_the_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    expected = -np.mean([2 - np.log(np.exp([2, 1, 0]).sum()), 0 - np.log(np.exp([0, 3, 0]).sum())])
    assert float(reranker.listwise_loss(logits)) == pytest.approx(expected, abs=1e-6)


def test_the_learning_rate_by_hand() -> None:
    factors = [rate_factor(step, 10, 2, 8) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert rate_factor(0, 10, 0, 10) == 1.0


def test_one_positive_and_negatives_are_drawn(tmp_path: Path) -> None:
    rows = [{"query": f"問{i}", "passages": list("正解誤答外野"), "n_positives": 2} for i in range(6)]
    rows += [{"query": "無", "passages": list("誤答外野"), "n_positives": 0}]
    rows += [{"query": "少", "passages": list("正解誤答"), "n_positives": 2}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = read_data(str(tmp_path / "m.jsonl"), on_missing="refuse", limit=None)
    lessons = Lessons([source], n_ways=4, batch=3, seed=1, unusable=reranker.unusable)
    assert lessons.summary().endswith("m.jsonl 6; left out: 1 too few negatives, 1 without positive")
    taken: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    for step in range(40):
        examples = lessons.at(step).examples
        assert examples == lessons.at(step).examples
        assert len(examples) == 3
        for example in examples:
            taken[example.query] += 1
            drawn.update(example.documents)
            assert example.documents[0] in "正解"
            assert set(example.documents[1:]) < set("誤答外野")
            assert len(set(example.documents)) == 4
    assert set(taken.values()) == {20}  # each tuple once an epoch
    assert drawn.keys() == set("正解誤答外野")
    assert abs(drawn["正"] - drawn["解"]) < 40
    with pytest.raises(TrainingError, match="No tuple is left to learn from"):
        Lessons([source], n_ways=6, batch=3, seed=1, unusable=reranker.unusable)


def test_sources_of_different_ways(mined: Path, tmp_path: Path, backbone: Path) -> None:
    args = ["--data", f"tuples={mined},n-ways=2,name=b", "--batch", 5, "--steps", 14]
    train(backbone, f"tuples={mined},limit=7,name=a", tmp_path / "out", *args)
    assert len(read_metrics(tmp_path / "out")) == 14
    assert CrossEncoder(str(tmp_path / "out")).score(["湖"], [SENTENCES[:2]])[0].shape == (2,)


def test_a_loss_that_is_no_number_stops_with_the_batch_named(
    backbone: Path, mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reranker, "listwise_loss", lambda logits: logits.sum() * torch.nan)
    with pytest.raises(TrainingError, match="The loss is nan at step 0; its first query is"):
        train(backbone, mined, tmp_path / "out")


def test_limit_takes_few_steps(backbone: Path, mined: Path, tmp_path: Path) -> None:
    train(backbone, mined, tmp_path / "out", "--limit", 80, "--steps", 500)
    assert len(read_metrics(tmp_path / "out")) == 2


def test_bases_that_are_none(backbone: Path, mined: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in backbone.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    tensors = load_file(backbone / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="lacks 1 tensors of a BERT, such as bert.encoder.layer.1.output"):
        train(other, mined, tmp_path / "a")
    config = json.loads((backbone / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "modernbert"}))
    with pytest.raises(TrainingError, match="describes a 'modernbert' model; expected 'bert'"):
        train(other, mined, tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((backbone / name).read_bytes())
    (other / "vocab.txt").unlink()
    write_fast_tokenizer(other)
    with pytest.raises(TrainingError, match="expected BertJapaneseTokenizer"):
        train(other, mined, tmp_path / "c")
