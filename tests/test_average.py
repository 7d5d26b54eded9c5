"""Means of checkpoints and the dev set that they are chosen by, held to numpy and to the library's search."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer import Typer
from typer.testing import CliRunner

from evals.datasets import load_task
from jacolbert_rag import JaColBERTRetriever
from jacolbert_rag.encode import checkpoint, formats
from jacolbert_rag.encode.checkpoint import Checkpoint
from jacolbert_rag.encode.encoder import Encoder
from jacolbert_rag.encode.tokens import Tokenizer
from tests.conftest import SENTENCES, fuzz_texts, write_tiny_checkpoint
from training import average, dev
from training.average import differences, greedy, mean, running_mean
from training.dev import DevSet
from training.options import TrainingError, run
from training.state import claim

WEIGHTS = "model.safetensors"
BARE = ("config.json", WEIGHTS)  # of which intermediates are made


def averaged(*args: object) -> str:
    """Run the step; what it said, without line breaks."""
    app = Typer()
    app.command()(average.main)
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def named(folders: Sequence[object]) -> list[object]:
    return [arg for folder in folders for arg in ("--checkpoint", folder)]


def change(folder: Path, alter: Callable[[dict[str, Tensor]], object]) -> Path:
    """Rewrite a checkpoint's weights."""
    weights = load_file(folder / WEIGHTS)
    alter(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def bare(folder: Path, out: Path) -> Path:
    out.mkdir()
    for name in BARE:
        shutil.copy(folder / name, out)
    return out


def numpy_mean(folders: Sequence[Path]) -> dict[str, np.ndarray]:
    loaded = [load_file(folder / WEIGHTS) for folder in folders]
    return {
        key: np.mean([weights[key].numpy().astype(np.float64) for weights in loaded], axis=0).astype(
            np.float32
        )
        for key in loaded[0]
    }


def same_bits(found: Mapping[str, Tensor], expected: Mapping[str, np.ndarray | Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[key].numpy().tobytes() == np.asarray(expected[key]).tobytes() for key in expected
    )


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints of one run, a little apart; never write to them.

    What is random is made to find tokens that are the same: places and layers add nothing.
    """

    def flatten(weights: dict[str, Tensor]) -> None:
        for key, value in weights.items():
            if "output.dense" in key or "position_embeddings" in key:
                value.zero_()

    folder = tmp_path_factory.mktemp("run")
    first = change(write_tiny_checkpoint(folder / "step-1", seed=1), flatten)
    found = [first]
    for n in (2, 3):
        rng = torch.Generator().manual_seed(n)

        def nudge(weights: dict[str, Tensor], rng: torch.Generator = rng) -> None:
            for value in weights.values():
                value += 0.01 * torch.randn(value.shape, generator=rng)

        found.append(change(Path(shutil.copytree(first, folder / f"step-{n}")), nudge))
    return found


@pytest.fixture(scope="module")
def collapsed(run_of: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that gives every token one direction, so strongly that a mean with it does too."""
    folder = Path(shutil.copytree(run_of[0], tmp_path_factory.mktemp("bad") / "崩れた"))
    return change(folder, lambda weights: weights["linear.weight"].fill_(1e4))


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Openings of sentences, to be found among others; ids are in no order, and one document is blank."""
    folder = tmp_path_factory.mktemp("beir") / "日本語"
    (folder / "qrels").mkdir(parents=True)
    texts = [*SENTENCES, *(text for text in fuzz_texts(30) if "\ud800" not in text)]
    corpus = [
        {"_id": f"文書{97 * i % 101}", "title": "題" if i % 2 else "", "text": t} for i, t in enumerate(texts)
    ]
    corpus.append({"_id": "空", "title": "", "text": " "})
    queries = [{"_id": f"q{i}", "text": text[:10]} for i, text in enumerate(SENTENCES)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    judged = "".join(f"q{i}\t{corpus[i]['_id']}\t1\n" for i in range(len(SENTENCES)))
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")
    return folder


# The dev set.


def scores_of(folder: Path, beir: Path) -> dict[str, float]:
    loaded = checkpoint.load(folder)
    return DevSet(beir).score(loaded.model, loaded.tokenizer, precision="fp32")


@pytest.mark.parametrize("block", [4, 1024])
def test_dev_scores_are_those_of_a_naive_search(
    beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    model = write_tiny_checkpoint(tmp_path / "model", seed=1)
    monkeypatch.setattr(dev, "BLOCK_TEXTS", block)
    monkeypatch.setattr(dev, "SEARCH_QUERIES", 3)
    task = load_task(beir, "dev")
    encoder = Encoder(checkpoint.load(model), device="cpu", dtype="float32")
    documents = {d.id: encoder.documents([d.passage]).flat for d in task.documents if d.text.strip()}
    ranks = []
    for id, text in task.queries.items():
        asked = encoder.queries([text]).flat
        scores = {d: sum(float((tokens @ row).max()) for row in asked) for d, tokens in documents.items()}
        ranking = sorted(scores, key=lambda d: (-scores[d], d))
        ranks.append(ranking.index(next(iter(task.qrels[id]))) + 1)
    expected = {
        "nDCG@10": float(np.mean([1 / np.log2(1 + rank) if rank <= 10 else 0 for rank in ranks])),
        "MRR@10": float(np.mean([1 / rank if rank <= 10 else 0 for rank in ranks])),
    }
    assert 0.3 < expected["nDCG@10"] < 0.9
    assert scores_of(model, beir) == pytest.approx(expected, abs=1e-12)


def test_of_equal_scores_the_lower_id_is_first(run_of: list[Path], beir: Path) -> None:
    # Where all tokens are one, all documents tie.
    loaded = checkpoint.load(run_of[0])
    with torch.no_grad():
        loaded.model.projection[0].linear.weight.zero_()
    task = load_task(beir, "dev")
    order = sorted(d.id for d in task.documents if d.text.strip())
    ranks = [order.index(next(iter(judged))) + 1 for judged in task.qrels.values()]
    expected = float(np.mean([1 / rank if rank <= 10 else 0.0 for rank in ranks]))
    assert expected > 0
    assert DevSet(beir).score(loaded.model, loaded.tokenizer)["MRR@10"] == pytest.approx(expected)


def test_scoring_leaves_a_network_in_training_as_it_was(run_of: list[Path], beir: Path) -> None:
    loaded = checkpoint.load(run_of[0])
    evaluated = scores_of(run_of[0], beir)
    model = loaded.model.train().to(torch.float64)
    model.projection[0].linear.weight.grad = torch.ones_like(model.projection[0].linear.weight)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    # Dropout would show.
    assert DevSet(beir).score(model, loaded.tokenizer, precision="fp64") == pytest.approx(evaluated)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.projection[0].linear.weight.grad.eq(1).all()


def test_a_dev_set_reads_anew_for_another_tokenizer_and_takes_a_limit(run_of: list[Path], beir: Path) -> None:
    loaded = checkpoint.load(run_of[0])
    short = Tokenizer(loaded.tokenizer.subwords, replace(loaded.config, document_length=5))
    dev_set = DevSet(beir)
    long_first = dev_set.score(loaded.model, loaded.tokenizer)
    cut = dev_set.score(loaded.model, short)
    assert cut != long_first
    assert dev_set.score(loaded.model, loaded.tokenizer) == long_first
    assert DevSet(beir).score(loaded.model, short) == cut
    few = DevSet(beir, limit=1)
    assert few.score(loaded.model, loaded.tokenizer)["nDCG@10"] in (
        0,
        *(1 / np.log2(1 + n) for n in range(1, 11)),
    )
    assert few.digest == dev_set.digest
    assert few.name == "日本語"


# Means.


def state_dicts(n: int) -> list[dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(n)
    return [
        {
            "a.weight": torch.randn(5, 3, generator=rng) * 10.0**i,
            "a.bias": torch.randn(3, generator=rng),
            "position_ids": torch.arange(4),
        }
        for i in range(n)
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_mean_is_that_of_float64(n: int) -> None:
    dicts = state_dicts(n)
    copies = [{key: value.clone() for key, value in each.items()} for each in dicts]
    expected = {
        key: np.mean([each[key].numpy().astype(np.float64) for each in dicts], axis=0).astype(np.float32)
        for key in ("a.weight", "a.bias")
    }
    assert same_bits(mean(iter(dicts)), expected)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(dicts, copies, strict=True) for key in a)


def test_a_running_mean_by_hand_and_in_order() -> None:
    one, two, three = ({"a": torch.tensor([value])} for value in (1.0, 2.0, 6.0))
    # .75 * (.75 * 1 + .25 * 2) + .25 * 6
    assert running_mean([one, two, three], 0.75)["a"].tolist() == [2.4375]
    assert running_mean([three, two, one], 0.75)["a"].tolist() == [4.0]
    assert running_mean([one, two, three], 0.0)["a"].tolist() == [6.0]
    assert running_mean([one], 0.9)["a"].tolist() == [1.0]


def test_numbers_of_all_sizes_come_back_bit_for_bit() -> None:
    odd = torch.tensor([0.1, -0.0, 0.0, 1e-38, -3e38, 1 / 3, 16777217.0])
    for n in (1, 3, 7, 25):
        assert same_bits(mean([{"a": odd}] * n), {"a": odd})
        assert same_bits(running_mean([{"a": odd}] * n, 0.9), {"a": odd})


@pytest.mark.parametrize("average_of", [mean, lambda dicts: running_mean(dicts, 0.9)])
def test_state_dicts_of_two_networks_are_refused(average_of: Callable[..., object]) -> None:
    one = {"a": torch.ones(1, 3)}
    with pytest.raises(TrainingError, match="number 2 lacks a, which the first has"):
        average_of([one, {}])
    with pytest.raises(TrainingError, match="the first lacks b, which number 3 has"):
        average_of([one, one, {**one, "b": torch.ones(1)}])
    # Which would be spread over the rows.
    with pytest.raises(TrainingError, match=r"a is \(2, 3\) in the first and \(1, 3\) in number 2"):
        average_of([{"a": torch.ones(2, 3)}, one])


def test_differences_are_named_and_counted() -> None:
    shapes = {f"層.{i}": (4,) for i in range(6)}
    assert differences("甲", shapes, "乙", shapes) == ""
    assert differences("甲", shapes, "乙", {}) == "乙 lacks 層.0, 層.1, 層.2 and 3 more, which 甲 has"
    wide = dict.fromkeys(shapes, (8,))
    assert differences("甲", shapes, "乙", wide) == "層.0 is (4,) in 甲 and (8,) in 乙, and 5 more differ"


def test_greedy_selection_by_hand() -> None:
    asked: list[tuple[int, ...]] = []

    def score(rows: Sequence[int]) -> float:
        asked.append(tuple(rows))
        return {(0,): 0.5, (1,): 0.7, (2,): 0.2, (3,): 0.6, (1, 3): 0.7, (0, 1, 3): 0.69, (1, 2, 3): 0.8}[
            tuple(rows)
        ]

    trials = greedy(4, score)
    # Best first; 3 changes nothing and stays, 0 lowers the score, 2 is worst by itself and helps.
    assert [(t.row, t.together, t.kept) for t in trials] == [
        (1, 0.7, True),
        (3, 0.7, True),
        (0, 0.69, False),
        (2, 0.8, True),
    ]
    assert len(asked) == len(set(asked)) == 7


# The step.


def test_a_checkpoint_with_itself_changes_nothing(run_of: list[Path], tmp_path: Path) -> None:
    averaged(*named([run_of[0]] * 3), "--out", tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (run_of[0] / WEIGHTS).read_bytes()
    assert checkpoint.load(tmp_path / "out").fingerprint == checkpoint.load(run_of[0]).fingerprint


def test_the_mean_is_exact_and_the_inputs_are_as_they_were(run_of: list[Path], tmp_path: Path) -> None:
    before = [(folder / WEIGHTS).read_bytes() for folder in run_of]
    averaged(*named(run_of), "--out", tmp_path / "out")
    assert same_bits(load_file(tmp_path / "out" / WEIGHTS), numpy_mean(run_of))
    assert [(folder / WEIGHTS).read_bytes() for folder in run_of] == before


def test_the_result_is_loaded_and_searched(run_of: list[Path], tmp_path: Path) -> None:
    averaged(*named(run_of), "--out", tmp_path / "out", "--dtype", "float16")
    assert {value.dtype for value in load_file(tmp_path / "out" / WEIGHTS).values()} == {torch.float16}
    # [MASK]s of a network that learnt nothing find whatever is long.
    retriever = JaColBERTRetriever.from_pretrained(tmp_path / "out", query_length="none")
    ids = retriever.add(SENTENCES)
    found = [retriever.search(text[:12], k=1)[0].id for text in SENTENCES]
    assert np.mean([a == b for a, b in zip(found, ids, strict=True)]) >= 0.9


def test_the_recipe_names_inputs_and_digests_of_their_weights(run_of: list[Path], tmp_path: Path) -> None:
    averaged(*named([*run_of, run_of[0]]), "--out", tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "recipe.json").read_text(encoding="utf-8"))["checkpoints"]
    assert [each["name"] for each in listed] == [str(folder) for folder in [*run_of, run_of[0]]]
    digests = [each["weights"] for each in listed]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]
    assert all(len(digest) == 16 for digest in digests)


def test_intermediates_take_their_tokenizer_from_one_that_has_it(run_of: list[Path], tmp_path: Path) -> None:
    full = Path(shutil.copytree(run_of[2], tmp_path / "full"))
    metadata = json.loads((full / "artifact.metadata").read_text())
    (full / "artifact.metadata").write_text(json.dumps({**metadata, "doc_maxlen": 40}))
    first, second = (bare(folder, tmp_path / f"bare-{i}") for i, folder in enumerate(run_of[:2]))
    averaged(*named([first, second, full]), "--out", tmp_path / "out")
    loaded = checkpoint.load(tmp_path / "out")
    assert loaded.config == checkpoint.load(full).config
    assert loaded.config.document_length == 40
    assert same_bits(load_file(tmp_path / "out" / WEIGHTS), numpy_mean([first, second, full]))


def test_intermediates_alone_need_a_tokenizer(run_of: list[Path], tmp_path: Path) -> None:
    intermediates = [bare(folder, tmp_path / f"bare-{i}") for i, folder in enumerate(run_of)]
    with pytest.raises(
        TrainingError, match=r"None of the 3 checkpoints has a tokenizer.*--tokenizer, such as"
    ):
        averaged(*named(intermediates), "--out", tmp_path / "out")
    averaged(*named(intermediates), "--out", tmp_path / "out", "--tokenizer", run_of[0])
    assert checkpoint.load(tmp_path / "out").config == checkpoint.load(run_of[0]).config
    assert same_bits(load_file(tmp_path / "out" / WEIGHTS), numpy_mean(run_of))


def test_settings_that_nobody_states_are_the_defaults_and_said(run_of: list[Path], tmp_path: Path) -> None:
    full = Path(shutil.copytree(run_of[0], tmp_path / "full"))
    (full / "artifact.metadata").unlink()
    said = averaged(*named([full, full]), "--out", tmp_path / "out")
    assert "No checkpoint has artifact.metadata: lengths and markers are the library's defaults." in said
    assert "No checkpoint has" not in averaged(*named(run_of), "--out", tmp_path / "other")


def test_hub_ids_are_read_from_the_cache(
    run_of: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    cached = {f"bclavie/JaColBERTv2.5-checkpoint-{n}": bare(run_of[n], tmp_path / f"{n}") for n in (1, 2)}
    cached["bclavie/JaColBERT"] = run_of[0]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(cached[name]))
    ids = list(cached)[:2]
    averaged(*named(ids), "--out", tmp_path / "out", "--tokenizer", "bclavie/JaColBERT")
    assert same_bits(load_file(tmp_path / "out" / WEIGHTS), numpy_mean(run_of[1:]))
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert [each["name"] for each in recipe["checkpoints"]] == ids


def test_formats_can_be_mixed(run_of: list[Path], tmp_path: Path) -> None:
    loaded = checkpoint.load(run_of[1])
    # A prompt has no place in colbert-ai's format, so this one is written as PyLate writes it.
    config = replace(loaded.config, query_prompt="質問: ")
    checkpoint.save(
        tmp_path / "pylate", loaded.model, Tokenizer(loaded.tokenizer.subwords, config), dtype=torch.float32
    )
    assert (tmp_path / "pylate" / "modules.json").exists()
    averaged(*named([run_of[0], tmp_path / "pylate"]), "--out", tmp_path / "out")
    assert same_bits(load_file(tmp_path / "out" / WEIGHTS), numpy_mean(run_of[:2]))


def test_poolers_and_position_ids_are_left_out(run_of: list[Path], tmp_path: Path) -> None:
    def add(weights: dict[str, Tensor]) -> None:
        weights["bert.pooler.dense.weight"] = torch.ones(32, 32)
        weights["bert.pooler.dense.bias"] = torch.ones(32)
        weights["bert.embeddings.position_ids"] = torch.arange(128)[None]

    pooled = change(Path(shutil.copytree(run_of[1], tmp_path / "pooled")), add)
    said = averaged(*named([run_of[0], pooled]), "--out", tmp_path / "out")
    assert "does not read it: bert.pooler.dense.bias, bert.pooler.dense.weight (1 of 2 have it)" in said
    assert "embeddings.position_ids" not in said
    assert same_bits(load_file(tmp_path / "out" / WEIGHTS), numpy_mean(run_of[:2]))
    assert "(2 of 2 have it)" in averaged(*named([pooled, pooled]), "--out", tmp_path / "both")


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (
            lambda w: w.pop("bert.encoder.layer.1.output.dense.weight"),
            r"other: the weights lack encoder\.layer\.1\.output\.dense\.weight, by its config\.json",
        ),
        (
            lambda w: w.update({"bert.encoder.layer.0.output.dense.bias": torch.ones(7)}),
            r"other: the weights have another shape in encoder\.layer\.0\.output\.dense\.bias, by its config",
        ),
        (
            lambda w: w.update({"bert.adapter.weight": torch.ones(3)}),
            r"step-1 lacks bert\.adapter\.weight, which .*other has",
        ),
        (
            lambda w: w.update({"linear.weight": torch.ones(8, 32)}),
            r"projection\.0\.linear\.weight is \(16, 32\) in .*step-1 and \(8, 32\) in .*other\.",
        ),
        (
            lambda w: w["linear.weight"][0].fill_(float("nan")),
            r"other: projection\.0\.linear\.weight has values that are no numbers",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_named(
    run_of: list[Path], tmp_path: Path, alter: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    other = change(bare(run_of[1], tmp_path / "other"), alter)
    with pytest.raises(TrainingError, match=message):
        averaged(*named([run_of[0], other]), "--out", tmp_path / "out")
    assert not (tmp_path / "out" / WEIGHTS).exists()


def test_a_checkpoint_of_more_layers_is_named(run_of: list[Path], tmp_path: Path) -> None:
    def deepen(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if ".layer.1." in key]:
            weights[key.replace(".layer.1.", ".layer.2.")] = weights[key].clone()

    deep = change(bare(run_of[0], tmp_path / "深い"), deepen)
    config = json.loads((deep / "config.json").read_text())
    (deep / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(
        TrainingError, match=r"step-1 lacks backbone\.encoder\.layer\.2\..* and 13 more, which .*深い"
    ):
        averaged(*named([run_of[0], deep]), "--out", tmp_path / "out")


def test_a_bad_checkpoint_is_dropped_by_greedy_selection(
    run_of: list[Path], collapsed: Path, beir: Path, tmp_path: Path
) -> None:
    inputs = [collapsed, *run_of]
    out = tmp_path / "out"
    said = averaged(*named(inputs), "--out", out, "--select", "greedy", "--dev", beir)
    found = json.loads((out / "greedy.json").read_text(encoding="utf-8"))
    by_name = {trial["checkpoint"]: trial for trial in found["trials"]}
    alone = {str(folder): scores_of(folder, beir)["nDCG@10"] for folder in inputs}
    assert {name: trial["alone"] for name, trial in by_name.items()} == pytest.approx(alone)
    kept = [folder for folder in inputs if by_name[str(folder)]["kept"]]
    assert collapsed not in kept
    assert len(kept) >= 2
    assert same_bits(load_file(out / WEIGHTS), numpy_mean(kept))
    assert scores_of(out, beir)["nDCG@10"] >= max(alone.values())
    assert f"The mean of {len(kept)} of 4 checkpoints" in said


def test_a_sweep_scores_the_last_ones_and_writes_the_best(
    run_of: list[Path], collapsed: Path, beir: Path, tmp_path: Path
) -> None:
    inputs = [collapsed, *run_of[:2]]
    out = tmp_path / "out"
    averaged(*named(inputs), "--out", out, "--sweep", "--dev", beir, "--measure", "MRR@10")
    found = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert [(row["n"], row["from"]) for row in found["means"]] == [(n, str(inputs[-n])) for n in (1, 2, 3)]
    averaged(*named(inputs[1:]), "--out", tmp_path / "two")
    averaged(*named(inputs), "--out", tmp_path / "three")
    for row, folder in zip(found["means"], (inputs[-1], tmp_path / "two", tmp_path / "three"), strict=True):
        assert {name: row[name] for name in dev.MEASURES} == pytest.approx(scores_of(folder, beir))
    values = [row["MRR@10"] for row in found["means"]]
    assert values[2] < max(values)
    n_best = 2 if values[1] >= values[0] else 1
    assert same_bits(load_file(out / WEIGHTS), numpy_mean(inputs[-n_best:]))


def test_of_equal_means_a_sweep_writes_that_of_most(run_of: list[Path], beir: Path, tmp_path: Path) -> None:
    said = averaged(
        *named([run_of[0]] * 3), "--out", tmp_path / "out", "--sweep", "--dev", beir, "--limit", 3
    )
    assert "The mean of 3 of 3 checkpoints" in said


def test_a_running_mean_of_checkpoints(run_of: list[Path], tmp_path: Path) -> None:
    averaged(*named(run_of), "--out", tmp_path / "out", "--ema", 0.8)
    one, two, three = (load_file(folder / WEIGHTS) for folder in run_of)
    expected = {
        key: (
            0.8 * (0.8 * one[key].double() + (1 - 0.8) * two[key].double()) + (1 - 0.8) * three[key].double()
        ).float()
        for key in one
    }
    found = load_file(tmp_path / "out" / WEIGHTS)
    for key in expected:  # to a step of float32: the order of a float64's operations is not the contract
        torch.testing.assert_close(found[key], expected[key], rtol=1.2e-7, atol=0)


# Started again.


def test_a_second_start_does_nothing(run_of: list[Path], tmp_path: Path) -> None:
    inputs = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in run_of]
    out = tmp_path / "out"
    args = [*named(inputs), "--out", out]
    averaged(*args)
    files = [path for path in out.iterdir() if path.name not in (".lock", "recipe.json")]
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    assert WEIGHTS in before
    for folder in (None, inputs[1]):  # also where an intermediate was removed to save room
        if folder is not None:
            shutil.rmtree(folder)
        assert "is finished: nothing to do" in averaged(*args)
        assert all(
            ((out / name).read_bytes(), (out / name).stat().st_mtime_ns) == was
            for name, was in before.items()
        )


def test_a_finished_folder_of_other_inputs_is_refused(run_of: list[Path], tmp_path: Path) -> None:
    inputs = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in run_of[:2]]
    out = tmp_path / "out"
    averaged(*named(inputs), "--out", out)
    written = (out / WEIGHTS).read_bytes()
    with pytest.raises(TrainingError, match=r"begun with other settings: checkpoints .*Name another --out"):
        averaged(*named([*inputs, run_of[2]]), "--out", out)
    with pytest.raises(TrainingError, match=r"begun with other settings: ema 0\.0 -> 0\.5"):
        averaged(*named(inputs), "--out", out, "--ema", 0.5)
    change(inputs[1], lambda weights: weights["linear.weight"].neg_())  # the same name, other weights
    with pytest.raises(TrainingError, match="begun with other settings: checkpoints"):
        averaged(*named(inputs), "--out", out)
    with pytest.raises(TrainingError, match="step-1 holds a checkpoint that was not averaged here"):
        averaged(*named(run_of), "--out", inputs[0])
    assert (out / WEIGHTS).read_bytes() == written


def test_a_run_that_was_killed_scores_nothing_twice(
    run_of: list[Path], beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*named(run_of), "--select", "greedy", "--dev", beir]
    averaged(*args, "--out", tmp_path / "unbroken")
    score = DevSet.score
    calls = 0

    def dying(self: DevSet, *args: object, **kwargs: object) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return score(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(DevSet, "score", dying)
    app = Typer()
    app.command()(average.main)
    killed = CliRunner().invoke(app, [str(arg) for arg in [*args, "--out", tmp_path / "killed"]])
    assert killed.exit_code != 0
    assert not (tmp_path / "killed" / WEIGHTS).exists()
    averaged(*args, "--out", tmp_path / "killed")
    # Three alone and two means, and the one that was killed.
    assert calls == 6
    for name in (WEIGHTS, "greedy.json", "scores.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def test_a_folder_in_use_is_refused(run_of: list[Path], tmp_path: Path) -> None:
    with claim(tmp_path / "out"), pytest.raises(TrainingError, match="Another process works on"):
        averaged(*named(run_of), "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--select", "greedy"], "--select greedy needs something to score on.*--dev"),
        (["--sweep"], "--sweep needs something to score on"),
        (["--select", "greedy", "--sweep"], "--select greedy and --sweep are different means"),
        (["--sweep", "--ema", 0.5], "--sweep and --ema are different means"),
        (["--ema", 1], "--ema 1 is the first checkpoint alone"),
    ],
)
def test_options_that_contradict_are_refused(
    run_of: list[Path], tmp_path: Path, options: list[object], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        averaged(*named(run_of), "--out", tmp_path / "out", *options)


def test_a_stage_of_a_recipe(run_of: list[Path], beir: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        f"""
        [paths]
        RUN = "{run_of[0].parent}"

        [[stage]]
        name = "平均"
        step = "average"
        checkpoint = ["${{RUN}}/step-1", "${{RUN}}/step-3"]
        out = "{tmp_path / "out"}"
        dev = "{beir}"
        dev-limit = 8
        """,
        encoding="utf-8",
    )
    with pytest.raises(SystemExit) as ended:
        run("average", average.main, ["--config", str(tmp_path / "recipe.toml"), "--limit", "4"])
    assert ended.value.code == 0
    assert same_bits(load_file(tmp_path / "out" / WEIGHTS), numpy_mean([run_of[0], run_of[2]]))
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["dev_limit"] == 4
    loaded: Checkpoint = checkpoint.load(tmp_path / "out")
    expected = DevSet(beir, limit=4).score(loaded.model, loaded.tokenizer, precision="fp32")
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == {"0,1": expected}
    assert formats.is_complete(tmp_path / "out")
