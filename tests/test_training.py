from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer import Typer
from typer.testing import CliRunner

from jacolbert_rag import JaColBERTRetriever
from tests.conftest import SENTENCES
from training import distill, pairs, pretrain
from training.embeddings import cooccurrence_embeddings, sinusoidal_positions
from training.losses import contrastive_loss, distillation_loss, margin_mse_loss, normalize_min_max
from training.options import TrainingError
from training.state import begin, claim, load_state, save_state


def command(function, *args: object) -> None:
    app = Typer()
    app.command()(function)
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output


# Losses.


def naive_distillation(student: list[list[float]], teacher: list[list[float]]) -> float:
    def log_softmax_of_min_max(row: list[float]) -> np.ndarray:
        x = np.array(row)
        x = (x - x.min()) / (x.max() - x.min() + 1e-8)
        return x - np.log(np.exp(x).sum())

    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = log_softmax_of_min_max(t), log_softmax_of_min_max(s)
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(student)


def test_distillation_loss_equals_a_naive_one() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(20, 5, (4, 8)), rng.normal(0, 2, (4, 8))
    loss = distillation_loss(torch.tensor(student), torch.tensor(teacher))
    assert float(loss) == pytest.approx(naive_distillation(student.tolist(), teacher.tolist()), abs=1e-6)


def test_distillation_loss_sees_order_and_not_scale() -> None:
    teacher = torch.tensor([[3.0, 1.0, 2.0]])
    assert float(distillation_loss(10 * teacher + 5, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(distillation_loss(-teacher, teacher)) > 0.1


def test_a_constant_teacher_gives_a_finite_gradient() -> None:
    student = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    distillation_loss(student, torch.ones(1, 3)).backward()
    assert torch.isfinite(student.grad).all()
    assert normalize_min_max(torch.ones(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_contrastive_loss_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 9.0]])
    relevant = torch.tensor([[True, False, False], [False, True, True]])
    # Passage 2 answers query 1 too, so it is no negative for it.
    expected = -(2 - np.log(np.exp([2, 1, 0]).sum()) + 3 - np.log(np.exp([0, 3]).sum())) / 2
    loss = contrastive_loss(scores, torch.tensor([0, 1]), relevant, 1.0)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


# Embeddings to start from.


def test_tokens_of_like_company_are_alike() -> None:
    rng = np.random.default_rng(0)
    # 20 and 21 stand between the same neighbours, 30 between others.
    rows = [
        [*rng.integers(50, 250, 8), *([10, rng.choice([20, 21]), 11] if rng.random() < 0.5 else [12, 30, 13])]
        for _ in range(3000)
    ]
    stream = np.array(rows, dtype=np.uint16).ravel()
    embeddings = cooccurrence_embeddings(stream, 260, 8, n_special=5, seed=0)

    def cosine(a: int, b: int) -> float:
        x, y = embeddings[a], embeddings[b]
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    assert cosine(20, 21) > cosine(20, 30) + 0.3
    assert np.abs(embeddings[255]).max() < 1e-4  # never occurs


def test_neighbouring_positions_are_alike() -> None:
    table = sinusoidal_positions(64, 32)
    assert np.linalg.norm(table, axis=1) == pytest.approx(1, abs=1e-5)
    near, far = float(table[10] @ table[11]), float(table[10] @ table[40])
    assert near > far + 0.2


def test_margins_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[5.0, 1.0, 4.0]])
    assert float(margin_mse_loss(student, teacher, "none")) == pytest.approx(((2 - 4) ** 2 + 0) / 2)
    assert float(margin_mse_loss(student, teacher)) == pytest.approx(((1 - 1) ** 2 + (0.5 - 0.25) ** 2) / 2)


def test_what_is_normalised() -> None:
    student, teacher = torch.tensor([[30.0, 10.0, 20.0]]), torch.tensor([[3.0, 1.0, 2.0]])
    assert float(distillation_loss(student, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(distillation_loss(student, teacher, "teacher")) > 1
    assert float(distillation_loss(student / 10, teacher, "none")) == pytest.approx(0, abs=1e-6)


# State.


@pytest.mark.parametrize("name", ["schedule-free", "linear"])
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, name: str) -> None:
    def fresh():
        torch.manual_seed(0)
        model = nn.Linear(4, 2, bias=False)
        return model, distill.make_optimizer(model, name, 0.1, 2)

    def step(model, optimizer, i: int) -> None:
        x = torch.from_numpy(np.random.default_rng(i).normal(size=(8, 4)).astype(np.float32))
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    unbroken = fresh()
    for i in range(6):
        step(*unbroken, i)
    model, optimizer = fresh()
    for i in range(3):
        step(model, optimizer, i)
    save_state(tmp_path / "state", model, [optimizer], step=3)
    resumed, of_resumed = fresh()
    assert load_state(tmp_path / "state", resumed, [of_resumed]) == 3
    for i in range(3, 6):
        step(resumed, of_resumed, i)
    if name == "schedule-free":
        unbroken[1].eval()
        of_resumed.eval()
    assert torch.equal(unbroken[0].weight, resumed.weight)


def test_state_survives_a_kill_between_its_renames(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    save_state(tmp_path / "state", model, [optimizer], step=7)
    (tmp_path / "state").rename(tmp_path / "state.old")
    assert load_state(tmp_path / "state", model, [optimizer]) == 7
    assert load_state(tmp_path / "none", model, [optimizer]) == 0


def test_two_optimizers_are_kept_apart(tmp_path: Path) -> None:
    def fresh():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        return model, [
            torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9),
            torch.optim.AdamW(model[1].parameters(), lr=0.01),
        ]

    def step(model, optimizers) -> None:
        model(torch.ones(2, 3)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    unbroken, of_unbroken = fresh()
    step(unbroken, of_unbroken)
    save_state(tmp_path / "state", unbroken, of_unbroken, step=1)
    step(unbroken, of_unbroken)
    resumed, of_resumed = fresh()
    assert load_state(tmp_path / "state", resumed, of_resumed) == 1
    step(resumed, of_resumed)
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_folder_has_one_worker_and_one_recipe(tmp_path: Path) -> None:
    with claim(tmp_path / "run"):
        begin(tmp_path / "run", {"steps": 5, "rate": 0.1})
        with pytest.raises(TrainingError, match="Another process works on"), claim(tmp_path / "run"):
            pass
    with claim(tmp_path / "run"):
        begin(tmp_path / "run", {"steps": 9, "rate": 0.1}, changeable=("steps",))
        with pytest.raises(TrainingError, match=r"other settings: rate 0.1 -> 0.2"):
            begin(tmp_path / "run", {"steps": 9, "rate": 0.2})


# Data.


def write_beir(folder: Path, passage_split: str = "train") -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {
            "_id": f"p{i}",
            "title": f"題{i // 4}" if i % 2 else "",
            "text": t,
            "metadata": {"split": passage_split},
        }
        for i, t in enumerate(SENTENCES)
    ]
    queries = [{"_id": f"q{i}", "text": t[:6], "metadata": {}} for i, t in enumerate(SENTENCES)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    judged = "".join(f"q{i}\tp{i}\t{int(i != 3)}\n" for i in range(len(SENTENCES)))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_of_the_train_split(tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    command(pairs.main, "--beir", write_beir(tmp_path / "beir"), "--out", out, "--held", 0)
    queries, corpus = rows_of(out / "train" / "queries.jsonl"), rows_of(out / "train" / "corpus.jsonl")
    assert len(queries) == len(SENTENCES) - 1  # q3's passage was judged and found wanting
    assert queries[0] == {"_id": "beir:q0", "text": SENTENCES[0][:6], "metadata": {"source": "beir"}}
    assert (corpus[1]["title"], corpus[1]["text"]) == ("題0", SENTENCES[1])
    assert "beir:q0\tbeir:p0\t1" in (out / "train" / "qrels" / "train.tsv").read_text()
    assert not (out / "held").exists()


def test_articles_are_held_whole(tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    command(pairs.main, "--beir", write_beir(tmp_path / "beir"), "--out", out, "--held", 0.5)
    train, held = rows_of(out / "train" / "corpus.jsonl"), rows_of(out / "held" / "corpus.jsonl")
    assert train
    assert held
    assert len(train) + len(held) == len(SENTENCES) - 1
    assert not {r["title"] for r in train if r["title"]} & {r["title"] for r in held if r["title"]}


def test_weak_pairs_have_a_source_each(tmp_path: Path) -> None:
    (tmp_path / "weak").mkdir()
    row = {"id": "1", "query": "京都 地理", "text": "京都は盆地にある。", "title": "京都"}
    (tmp_path / "weak" / "wiki.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    command(pairs.main, "--weak", tmp_path / "weak", "--out", tmp_path / "o")
    assert rows_of(tmp_path / "o" / "train" / "queries.jsonl")[0]["metadata"] == {"source": "wiki"}
    # The heading begins with the title, so a title in the document would give the answer away.
    assert rows_of(tmp_path / "o" / "train" / "corpus.jsonl")[0]["title"] == ""


def test_passages_of_another_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="passage p0 belongs to the split 'dev'"):
        command(pairs.main, "--beir", write_beir(tmp_path / "b", "dev"), "--out", tmp_path / "o")


# The whole way, small.


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("\n".join(SENTENCES * 40), encoding="utf-8")
    size = ["--hidden", 32, "--layers", 1, "--heads", 2, "--length", 32, "--batch", 8, "--vocab-size", 300]
    args = [
        "--text",
        folder / "text",
        "--out",
        folder / "out",
        "--save-every",
        25,
        "--learning-rate",
        0.01,
        "--rest-learning-rate",
        0.01,
        *size,
    ]
    command(pretrain.main, *args, "--steps", 25)
    (folder / "out" / "model.safetensors").unlink()
    command(pretrain.main, *args, "--steps", 200)  # made longer, it goes on at step 25
    return folder / "out"


def test_a_vocabulary_is_the_same_each_time(tmp_path: Path) -> None:
    found = [
        pretrain.learn_vocabulary(tmp_path / f"{i}.json", lambda label: iter(SENTENCES), 300)
        for i in range(4)
    ]
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0]) == len(set(found[0])) == 300
    assert "##都" in found[0]
    assert "都" in found[0]


def test_pretraining_learns_and_resumes(backbone: Path) -> None:
    rows = [json.loads(line) for line in (backbone / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 201))
    losses = [row["loss"] for row in rows]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    vocab = (backbone / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert vocab[:7] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
    assert set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") <= set(vocab)


def test_pretraining_goes_on_from_a_backbone(backbone: Path, tmp_path: Path) -> None:
    args = ["--text", backbone.parent / "text", "--base", backbone, "--length", 32, "--batch", 8]
    args += ["--steps", 5, "--learning-rate", 0.001, "--rest-learning-rate", 0.001]
    command(pretrain.main, *args, "--out", tmp_path / "on", "--hidden", 32, "--layers", 1, "--heads", 2)
    before = [row["loss"] for row in rows_of(backbone / "metrics.jsonl")]
    after = [row["loss"] for row in rows_of(tmp_path / "on" / "metrics.jsonl")]
    assert np.mean(after) < np.mean(before[:50])
    assert (tmp_path / "on" / "vocab.txt").read_bytes() == (backbone / "vocab.txt").read_bytes()
    with pytest.raises(TrainingError, match="does not fit"):
        command(pretrain.main, *args, "--out", tmp_path / "wide", "--hidden", 64, "--layers", 1)


def test_words_are_hidden_whole() -> None:
    inside = np.zeros(60, dtype=np.bool_)
    inside[40:] = True  # goes on with a word
    rng = np.random.default_rng(0)
    stream = np.where(rng.random(4_000) < 0.5, rng.integers(20, 40, 4_000), rng.integers(40, 60, 4_000))
    stream = stream.astype(np.uint16)
    ids, targets = (t.numpy() for t in pretrain.masked_batch(stream, 0, 8, 102, 0.3, inside, 1))
    whole = np.where(targets == -100, ids, targets)
    hidden = targets != -100
    for row in range(8):
        for place in range(2, 101):
            if inside[whole[row, place]]:  # with the piece before
                assert hidden[row, place] == hidden[row, place - 1] or place == 1
    assert 0.15 < hidden.mean() < 0.45
    assert not hidden[:, [0, -1]].any()
    again = pretrain.masked_batch(stream, 0, 8, 102, 0.3, inside, 1)[0].numpy()
    assert np.array_equal(again, ids)


def test_an_epoch_reads_each_window_once() -> None:
    stream = np.arange(20, 20 + 1_000, dtype=np.uint16)
    inside = np.zeros(2_000, dtype=np.bool_)
    n_windows = 1_000 // 10 - 1
    seen = []
    for step in range(n_windows // 9):
        ids, targets = (t.numpy() for t in pretrain.masked_batch(stream, step, 9, 12, 0.2, inside, 3))
        seen += np.where(targets == -100, ids, targets)[:, 1].tolist()
    assert len(set(seen)) == len(seen) == n_windows


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def scored_rows(n: int, n_ways: int, seed: int = 0) -> list[dict]:
    """Tuples of other sentences than the query's, scored at random."""
    rng = np.random.default_rng(seed)
    return [
        {
            "query": f"{SENTENCES[i % len(SENTENCES)]}{i // len(SENTENCES)}",
            "passages": [SENTENCES[(i + j) % len(SENTENCES)] for j in range(1, n_ways + 1)],
            "scores": rng.permutation(n_ways).astype(float).tolist(),
        }
        for i in range(n)
    ]


SMALL = ["--dim", 16, "--device", "cpu", "--precision", "bf16", "--checkpoint-every", 0]
LABELS = ["--kl", 0, "--contrast", 1]


def test_contrast_makes_a_model_that_the_library_loads(backbone: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", [{"query": t[:8], "passages": [t]} for t in SENTENCES])
    args = ["--base", backbone, "--data", data, "--out", tmp_path / "model", *SMALL, *LABELS]
    args += ["--batch", 8, "--n-ways", 1, "--learning-rate", 0.003]
    command(distill.main, *args, "--steps", 60)
    log = [row["loss"] for row in rows_of(tmp_path / "model" / "metrics.jsonl")]
    assert np.mean(log[-10:]) < 0.5 * np.mean(log[:5])
    retriever = JaColBERTRetriever.from_pretrained(tmp_path / "model")
    ids = retriever.add(SENTENCES)
    found = [retriever.search(text[:8], k=1)[0].id for text in SENTENCES]
    assert np.mean([a == b for a, b in zip(found, ids, strict=True)]) >= 0.8
    assert (tmp_path / "model" / "plot.png").read_bytes()[1:4] == b"PNG"
    assert any((tmp_path / "model" / "events").iterdir())
    before = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    command(distill.main, *args, "--steps", 60)  # finished: nothing to do
    with pytest.raises(TrainingError, match="other settings: steps 60 -> 61"):
        command(distill.main, *args, "--steps", 61)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("optimizer", ["schedule-free", "linear"])
def test_distillation_learns_the_order_of_a_teacher(backbone: Path, tmp_path: Path, optimizer: str) -> None:
    rows = scored_rows(len(SENTENCES), 5)
    data = write_rows(tmp_path / "scored.jsonl", rows)
    args = ["--base", backbone, "--data", data, *SMALL, "--batch", len(rows), "--n-ways", 5]
    args += ["--learning-rate", 0.003, "--optimizer", optimizer]
    command(distill.main, *args, "--out", tmp_path / "before", "--steps", 0)
    command(distill.main, *args, "--out", tmp_path / "after", "--steps", 300)
    assert share_in_order(tmp_path / "before", rows) < 0.7
    # Not 1: where the best and the worst start out swapped, this loss has a minimum that keeps them so
    # (a push on either end of a min-max-normalised row only rescales what lies between).
    assert share_in_order(tmp_path / "after", rows) > 0.8


def share_in_order(model: Path, rows: list[dict]) -> float:
    """Share of the pairs of passages that the model orders as the teacher does."""
    retriever = JaColBERTRetriever.from_pretrained(model, query_length="fixed(32)")
    right = []
    for row in rows:
        score = {hit.text: hit.score for hit in retriever.rerank(row["query"], row["passages"])}
        scored = zip(row["passages"], row["scores"], strict=True)
        for (p, of_p), (q, of_q) in itertools.combinations(scored, 2):
            right.append((score[p] > score[q]) == (of_p > of_q))
    return float(np.mean(right))


def test_a_loss_that_is_no_number_stops_with_the_batch_named(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", [{"query": "湖はどこ", "passages": ["琵琶湖"]}])
    monkeypatch.setattr(distill, "batch_loss", lambda *a: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(TrainingError, match="nan at step 0; .* begins with query '湖はどこ'"):
        command(
            distill.main,
            "--base",
            backbone,
            "--data",
            data,
            "--out",
            tmp_path / "m",
            *SMALL,
            *LABELS,
            "--n-ways",
            1,
        )


def test_scores_are_asked_for_where_a_teacher_is_learnt(backbone: Path, tmp_path: Path) -> None:
    data = write_rows(
        tmp_path / "pairs.jsonl", [{"query": "湖はどこ", "passages": ["琵琶湖", "富士山", "東京"]}]
    )
    args = ["--base", backbone, "--data", data, "--out", tmp_path / "m", *SMALL, "--n-ways", 3]
    with pytest.raises(
        TrainingError, match="have no scores and 3 documents .* Score them with training.score"
    ):
        command(distill.main, *args)


def test_a_loss_that_teaches_nothing_is_refused(backbone: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "scored.jsonl", scored_rows(8, 2))
    args = ["--base", backbone, "--data", data, "--out", tmp_path / "m", *SMALL, "--n-ways", 2]
    with pytest.raises(TrainingError, match="min-max normalisation makes 0 and 1"):
        command(distill.main, *args)
    with pytest.raises(TrainingError, match="nothing that is asked for learns from them"):
        command(distill.main, *args, "--kl", 0)


def test_a_run_leaves_the_process_as_it_was(backbone: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", [{"query": t[:8], "passages": [t]} for t in SENTENCES])
    args = ["--base", backbone, "--data", data, *SMALL, *LABELS, "--n-ways", 1]
    command(distill.main, *args, "--out", tmp_path / "m", "--steps", 1)
    assert np.nextafter(0, 1) > 0  # denormals are numbers again
    assert torch.tensor(1e-40) * 1 > 0


# Exactness: float64, no dropout, no warm-up.

EXACT = ["--dim", 16, "--device", "cpu", "--precision", "fp64", "--dropout", 0, "--warmup", 0]
EXACT += ["--learning-rate", 0.001, "--steps", 20, "--batch", 8, "--n-ways", 4, "--checkpoint-every", 0]


@pytest.fixture(scope="module")
def exact(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list, Path, dict, dict]:
    """Arguments, and the weights before and after an unbroken run of one rank."""
    folder = tmp_path_factory.mktemp("exact")
    data = write_rows(folder / "scored.jsonl", scored_rows(50, 4))
    args = ["--base", backbone, "--data", data, *EXACT]
    command(distill.main, *args, "--out", folder / "one")
    command(distill.main, *args, "--out", folder / "zero", "--steps", 0)
    return args, folder, weights_of(folder / "zero"), weights_of(folder / "one")


def weights_of(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "state" / "model.safetensors")


def difference(before: dict, one: dict, other: dict) -> float:
    """How far two runs ended from one another, by how far the weights moved."""
    assert one.keys() == other.keys()
    moved = sum(float((one[k] - before[k]).square().sum()) for k in one)
    apart = sum(float((one[k] - other[k]).square().sum()) for k in one)
    assert moved > 0
    return float(np.sqrt(apart / moved))


def run_two_ranks(args: list, out: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        env = os.environ | {
            "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        line = [sys.executable, "-m", "training.distill", *map(str, args), "--out", str(out)]
        processes.append(subprocess.Popen(line, env=env, stderr=subprocess.PIPE, text=True))
    for process in processes:
        assert process.wait(timeout=300) == 0, process.stderr.read()


def test_two_ranks_equal_one(exact: tuple[list, Path, dict, dict]) -> None:
    args, folder, before, one = exact
    run_two_ranks(args, folder / "two")
    assert difference(before, one, weights_of(folder / "two")) <= 1e-6


@pytest.mark.parametrize("negatives", ["own", "in-batch", "all"])
def test_negatives_are_those_of_all_ranks(
    exact: tuple[list, Path, dict, dict], negatives: str, tmp_path: Path
) -> None:
    args, _, before, _ = exact
    rows = [row | {"n_positives": int(i % 5 > 0)} for i, row in enumerate(scored_rows(50, 4))]
    data = write_rows(tmp_path / "some-labelled.jsonl", rows)
    args = [*args, "--data", data, "--contrast", 1, "--negatives", negatives, "--steps", 5]
    command(distill.main, *args, "--out", tmp_path / "one")
    run_two_ranks(args, tmp_path / "two")
    one = weights_of(tmp_path / "one")
    assert difference(before, one, weights_of(tmp_path / "two")) <= 1e-6
    command(distill.main, *args, "--contrast", 0, "--out", tmp_path / "without")
    assert difference(before, one, weights_of(tmp_path / "without")) > 0.1


@pytest.mark.parametrize("micro", [1, 3])
def test_parts_of_a_batch_equal_the_whole(exact: tuple[list, Path, dict, dict], micro: int) -> None:
    args, folder, before, one = exact
    out = folder / f"micro-{micro}"
    command(distill.main, *args, "--out", out, "--micro-batch", micro, "--gradient-checkpointing")
    assert difference(before, one, weights_of(out)) <= 1e-6


def test_a_killed_run_equals_an_unbroken_one(
    exact: tuple[list, Path, dict, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    args, folder, before, one = exact
    real, killed_at = distill.batch_loss, 13
    calls = itertools.count()

    def killed(*arguments):
        if next(calls) == killed_at:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(distill, "batch_loss", killed)
    with pytest.raises(BaseException):  # noqa: B017, PT011 - the runner may wrap it
        command(distill.main, *args, "--out", folder / "killed", "--save-every", 5)
    assert json.loads((folder / "killed" / "state" / "step.json").read_text())["step"] == 10
    monkeypatch.undo()
    command(distill.main, *args, "--out", folder / "killed", "--save-every", 5)
    assert difference(before, one, weights_of(folder / "killed")) <= 1e-6
    steps = [row["step"] for row in rows_of(folder / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, 21))


def test_distinct_documents_and_where_each_is() -> None:
    rows, columns = distill.distinct(torch.tensor([7, 3, 7, 9, 3, 1]))
    assert rows.tolist() == [0, 1, 3, 5]
    assert columns.tolist() == [0, 1, 0, 2, 1, 3]


def test_documents_that_are_no_negatives() -> None:
    labelled = torch.tensor([[True, False, False], [True, True, False]])
    columns = torch.tensor([[2, 0, 3], [1, 4, 1]])  # of the second, one document is there twice
    found = distill.left_out(labelled, columns, 5, with_own=False)
    assert found.int().tolist() == [[0, 0, 1, 0, 0], [0, 1, 0, 0, 1]]
    found = distill.left_out(labelled, columns, 5, with_own=True)
    assert found.int().tolist() == [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]]


def test_a_running_mean_is_of_the_weights_to_use(backbone: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    data = write_rows(tmp_path / "scored.jsonl", scored_rows(40, 4))
    command(distill.main, "--base", backbone, "--data", data, *EXACT, "--ema", 1e-12, "--out", tmp_path / "m")
    last, running = (load_file(tmp_path / name / "model.safetensors") for name in ("m", "m/ema"))
    assert all(torch.allclose(last[key], running[key], atol=1e-6) for key in last)


def test_checkpoints_have_the_weights_to_use(backbone: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "scored.jsonl", scored_rows(40, 4))
    args = ["--base", backbone, "--data", data, *EXACT, "--checkpoint-every", 10, "--ema", 0.9]
    command(distill.main, *args, "--out", tmp_path / "m")
    command(distill.main, *args, "--out", tmp_path / "half", "--steps", 10)
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "m" / "checkpoints" / "step-10" / "model.safetensors")
    final = load_file(tmp_path / "half" / "model.safetensors")
    stepped = load_file(tmp_path / "half" / "state" / "model.safetensors")
    assert all(torch.equal(kept[key], final[key]) for key in final)
    word = "embeddings.word_embeddings.weight"
    assert not torch.allclose(kept[f"bert.{word}"].double(), stepped[f"model.backbone.{word}"])
    for folder in ("m", "m/checkpoints/step-10", "m/ema"):
        retriever = JaColBERTRetriever.from_pretrained(tmp_path / folder)
        retriever.add(SENTENCES[:5])
        assert len(retriever.search("湖", k=3)) == 3


def test_overfits_a_teacher(tmp_path: Path) -> None:
    """64 tuples of 8, from random weights."""
    from scipy.stats import spearmanr

    folder = tmp_path / "random"
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("\n".join(SENTENCES * 5), encoding="utf-8")
    command(pretrain.main, "--text", tmp_path / "text", "--out", folder, "--steps", 0, "--hidden", 64,
            "--layers", 2, "--heads", 2, "--length", 16, "--vocab-size", 400)  # fmt: skip
    rng = np.random.default_rng(0)
    n = len(SENTENCES)
    rows = [
        {
            "query": SENTENCES[i % n][: 4 + i // n] + SENTENCES[(7 * i + 3) % n][:5],
            "passages": [SENTENCES[(i + j) % n] for j in range(1, 9)],
            "scores": rng.permutation(8).astype(float).tolist(),
        }
        for i in range(64)
    ]
    data = write_rows(tmp_path / "scored.jsonl", rows)
    args = ["--base", folder, "--data", data, *SMALL, "--batch", 64, "--n-ways", 8, "--learning-rate", 0.004]
    args += ["--dim", 32, "--precision", "fp32", "--query-length", "fixed(16)"]
    command(distill.main, *args, "--out", tmp_path / "m", "--steps", 120)
    retriever = JaColBERTRetriever.from_pretrained(tmp_path / "m", query_length="fixed(16)")
    found = []
    for row in rows:
        score = {hit.text: hit.score for hit in retriever.rerank(row["query"], row["passages"])}
        found.append(spearmanr([score[p] for p in row["passages"]], row["scores"]).statistic)
    assert np.mean(found) >= 0.95
