"""Losses against PyLate's, against naive ones, and by hand; see tests/data/README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.golden.losses import SHAPES, load, load_info
from training.losses import EPSILON, Normalize, distillation_loss, normalize_min_max, vocabulary_loss
from training.maxsim import maxsim_own

ROOT = Path(__file__).parents[1]

# Distillation.


def ours(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our loss of what PyLate was given, and its gradients with respect to the embeddings."""
    queries = torch.from_numpy(given["queries"]).requires_grad_()
    documents = torch.from_numpy(given["documents"]).requires_grad_()
    kept = [torch.ones(x.shape[:-1], dtype=torch.bool) for x in (queries, documents)]
    # PyLate's loss stretches embeddings to unit length; ours leaves that to the model.
    unit = [functional.normalize(x, dim=-1) for x in (queries, documents)]
    scores = maxsim_own(unit[0], kept[0], unit[1], kept[1])
    loss = distillation_loss(scores, torch.from_numpy(given["teacher"]))
    of_queries, of_documents = torch.autograd.grad(loss, [queries, documents])
    return {
        "loss": loss.detach().numpy(),
        "of_queries": of_queries.numpy(),
        "of_documents": of_documents.numpy(),
    }


def equal_documents(documents: np.ndarray) -> np.ndarray:
    """(batch, n_ways, n_ways) 1 where two documents have the same tokens."""
    return (documents[:, :, None] == documents[:, None]).all((-2, -1)).astype(np.float32)


def assert_near(found: np.ndarray, wanted: np.ndarray) -> None:
    """To 1e-5 of the largest value, which may be far below 1."""
    largest = np.abs(wanted).max()
    assert 1e-3 < largest < 1
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("case", [case for case in SHAPES if case not in ("pairs", "tied_best")])
def test_distillation_equals_pylates(case: str) -> None:
    golden = load(case)
    found = ours(golden)
    labels = normalize_min_max(torch.from_numpy(golden["teacher"])).numpy()
    np.testing.assert_allclose(labels, golden["labels"], rtol=0, atol=1e-6)
    assert golden["loss"] > 0.01  # a student that agrees with its teacher would prove little
    assert found["loss"] == pytest.approx(golden["loss"], abs=1e-5)
    assert_near(found["of_queries"], golden["of_queries"])
    assert_near(found["of_documents"], golden["of_documents"])


def test_two_documents_teach_nothing_as_in_pylate() -> None:
    # Normalised, the better one has 1 and the other 0, however near they are.
    golden = load("pairs")
    found = ours(golden)
    assert golden["loss"] > 0.01
    assert found["loss"] == pytest.approx(golden["loss"], abs=1e-5)
    for name in ("of_queries", "of_documents"):
        assert np.abs(golden[name]).max() < 1e-6
        assert np.abs(found[name]).max() < 1e-6


def test_documents_that_tie_for_the_best_share_what_pylate_gives_one() -> None:
    golden = load("tied_best")
    found = ours(golden)
    assert found["loss"] == pytest.approx(golden["loss"], abs=1e-5)
    assert_near(found["of_queries"], golden["of_queries"])
    assert np.abs(found["of_documents"] - golden["of_documents"]).max() > 0.01
    equal = equal_documents(golden["documents"])
    together = [np.einsum("qnm,qmjd->qnjd", equal, of["of_documents"]) for of in (found, golden)]
    assert_near(*together)


@pytest.mark.parametrize("case", ["tied_between", "tied_best"])
def test_two_documents_of_each_query_tie(case: str) -> None:
    documents = load(case)["documents"]
    assert (equal_documents(documents).sum((1, 2)) == documents.shape[1] + 2).all()


def test_the_fixture_is_of_the_pylate_that_is_pinned() -> None:
    info = load_info()
    pins = (ROOT / "benchmarks" / "peers" / "pylate.txt").read_text(encoding="utf-8").splitlines()
    pins += (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"pylate=={info['versions']['pylate']}" in pins
    assert f"torch=={info['versions']['torch'].split('+')[0]}" in pins


def naive_maxsim(query: np.ndarray, document: np.ndarray) -> float:
    return sum(max(float(q @ d) for d in document) for q in query)


def naive_distillation(student: np.ndarray, teacher: np.ndarray, normalize: Normalize) -> float:
    def stretched(row: np.ndarray) -> np.ndarray:
        return (row - row.min()) / (row.max() - row.min() + EPSILON)

    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        s = stretched(s) if normalize == "both" else s
        t = t if normalize == "none" else stretched(t)
        q, p = np.exp(s) / np.exp(s).sum(), np.exp(t) / np.exp(t).sum()
        total += sum(p[i] * np.log(p[i] / q[i]) for i in range(len(p)))
    return total / len(student)


@pytest.mark.parametrize("normalize", ["both", "teacher", "none"])
@pytest.mark.parametrize(("batch", "n_ways", "dim"), [(1, 2, 8), (3, 5, 16), (4, 32, 8)])
def test_distillation_equals_a_naive_one(normalize: Normalize, batch: int, n_ways: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(batch, 6, dim))
    documents = rng.normal(size=(batch, n_ways, 9, dim))
    q_lengths, d_lengths = rng.integers(1, 7, batch), rng.integers(1, 10, (batch, n_ways))
    teacher = rng.normal(0, 2, (batch, n_ways))
    student = np.array(
        [
            [
                naive_maxsim(queries[i, : q_lengths[i]], documents[i, j, : d_lengths[i, j]])
                for j in range(n_ways)
            ]
            for i in range(batch)
        ]
    )
    scores = maxsim_own(
        torch.from_numpy(queries),
        torch.from_numpy(np.arange(6) < q_lengths[:, None]),
        torch.from_numpy(documents),
        torch.from_numpy(np.arange(9) < d_lengths[..., None]),
    )
    expected = naive_distillation(student, teacher, normalize)
    assert expected > 0.01
    loss = distillation_loss(scores, torch.from_numpy(teacher), normalize)
    assert float(loss) == pytest.approx(expected, rel=1e-9)


# Normalization.


def test_min_max_by_hand() -> None:
    scores = torch.tensor([[0.0, 1.0, 4.0], [-7.0, -3.0, -5.0], [2.0, 2.0, 2.0]], requires_grad=True)
    given = scores.detach().clone()
    found = normalize_min_max(scores)
    assert found.detach().numpy() == pytest.approx(np.array([[0, 0.25, 1], [0, 1, 0.5], [0, 0, 0]]), abs=1e-6)
    # (1 - low) / (high - low) by low, by itself, by high.
    (gradient,) = torch.autograd.grad(found[0, 1], scores)
    assert gradient[0].tolist() == pytest.approx([-3 / 16, 1 / 4, -1 / 16])
    assert (gradient[1:] == 0).all()
    assert torch.equal(scores.detach(), given)


def test_min_max_of_halves_is_in_float32() -> None:
    # In float16 the epsilon is 0, and equal scores would be 0 / 0.
    scores = torch.tensor([[20.0, 20.0], [1.0, 3.0]], dtype=torch.float16)
    found = normalize_min_max(scores)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert normalize_min_max(scores.double()).dtype == torch.float64


# Tokens among a vocabulary.


@pytest.mark.parametrize("chunk", [1, 7, 64, 150, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vocabulary_loss_equals_cross_entropy(
    chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.losses._VocabularyLoss.CHUNK", chunk)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(150, 32, generator=random).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(500, 32, generator=random)).requires_grad_()
    bias = torch.randn(500, generator=random).requires_grad_()
    targets = torch.randint(500, (150,), generator=random)
    given = [hidden, weight, bias]

    found = vocabulary_loss(hidden, weight, bias, targets)
    expected = functional.cross_entropy(hidden.float() @ weight.T + bias, targets)
    assert found.dtype == torch.float32
    # bfloat16 rounds each factor and each logit by up to 2 ** -9; much of it cancels in a mean over tokens.
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=2**-9)
    # Times 3, since a loss may be one of several that are summed.
    gradients = torch.autograd.grad(3 * found, given), torch.autograd.grad(3 * expected, given)
    for tensor, a, b in zip(given, *gradients, strict=True):
        assert a.dtype == tensor.dtype
        assert (a.float() - b.float()).norm() < 2**-7 * b.float().norm()


def test_vocabulary_loss_of_no_tokens_is_zero() -> None:
    hidden, weight, bias = (torch.ones(shape, requires_grad=True) for shape in ((0, 4), (5, 4), (5,)))
    loss = vocabulary_loss(hidden, weight, bias, torch.zeros(0, dtype=torch.int64))
    assert float(loss.detach()) == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, [hidden, weight, bias]))
