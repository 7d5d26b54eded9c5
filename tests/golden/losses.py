"""Writes what PyLate's distillation loss makes of random embeddings.

    PYLATE -m tests.golden.losses

PYLATE is an interpreter that has PyLate: .venv-pylate/bin/python, after `make .venv-pylate/.installed`. From
embeddings to value all is PyLate's; the model is none, but hands out what was prepared. tests/test_losses.py
holds our loss to the file.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden.checkpoints import DATA

FIXTURE = DATA / "losses" / "pylate.npz"
SEED = 12345
# Case -> batch, n_ways, dim, query tokens, document tokens.
SHAPES = {
    "pairs": (4, 2, 16, 5, 9),
    "wide": (1, 5, 128, 8, 12),
    "long": (1, 4, 16, 32, 64),
    "many": (4, 32, 8, 4, 8),
    "usual": (2, 8, 32, 16, 12),
    "tied_between": (2, 5, 16, 6, 10),
    "tied_best": (2, 5, 16, 6, 10),
}


class Prepared(nn.Module):
    """Stands for a model: the features of a text are its token embeddings already."""

    skiplist: tuple[int, ...] = ()
    do_query_expansion = True

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hand the features back."""
        return features


def features(embeddings: Tensor) -> dict[str, Tensor]:
    """Texts of (n_texts, tokens, dim) without padding."""
    ids = torch.ones(embeddings.shape[:2], dtype=torch.int64)
    return {"token_embeddings": embeddings, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def inputs(case: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Unit embeddings, teacher scores on a teacher's scale, and these min-max-normalised; all float32."""
    batch, n_ways, dim, q_tokens, d_tokens = SHAPES[case]
    queries = _unit(rng.normal(size=(batch, q_tokens, dim)))
    documents = _unit(rng.normal(size=(batch, n_ways, d_tokens, dim)))
    if case.startswith("tied"):
        # A copy of the best document in the worst one's place, or of one that is neither in another such.
        order = np.argsort(_maxsim(queries, documents), axis=1)
        first, second = (order[:, -1], order[:, 0]) if case == "tied_best" else (order[:, 1], order[:, 2])
        rows = np.arange(batch)
        documents[rows, second] = documents[rows, first]
    teacher = rng.normal(0, 5, (batch, n_ways)).astype(np.float32)
    low, high = teacher.min(1, keepdims=True), teacher.max(1, keepdims=True)
    return {
        "queries": queries,
        "documents": documents,
        "teacher": teacher,
        "labels": (teacher - low) / (high - low),
    }


def distillation(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyLate's loss and its gradients with respect to the embeddings."""
    from pylate.losses import Distillation

    queries = torch.from_numpy(given["queries"]).requires_grad_()
    documents = torch.from_numpy(given["documents"]).requires_grad_()
    loss = Distillation(Prepared(), normalize_scores=True)(
        [features(queries), features(documents.flatten(0, 1))], torch.from_numpy(given["labels"])
    )
    of_queries, of_documents = torch.autograd.grad(loss, [queries, documents])
    return {
        "loss": loss.detach().numpy(),
        "of_queries": of_queries.numpy(),
        "of_documents": of_documents.numpy(),
    }


def load(case: str) -> dict[str, np.ndarray]:
    """What `inputs` and `distillation` made of a case."""
    with np.load(FIXTURE, allow_pickle=False) as file:
        return {
            name.removeprefix(f"{case}."): file[name] for name in file.files if name.startswith(f"{case}.")
        }


def load_info() -> dict[str, Any]:
    """What the fixture was made with."""
    with np.load(FIXTURE, allow_pickle=False) as file:
        info: dict[str, Any] = json.loads(str(file["info"]))
    return info


def main() -> None:
    """Write the fixture: arrays and one JSON string; nothing in it is pickled."""
    rng = np.random.default_rng(SEED)
    arrays: dict[str, np.ndarray] = {}
    for case in SHAPES:
        given = inputs(case, rng)
        arrays |= {f"{case}.{name}": array for name, array in (given | distillation(given)).items()}
    names = ("pylate", "sentence-transformers", "transformers", "torch", "numpy")
    versions = {name: version(name) for name in names} | {"python": platform.python_version()}
    info = {"peer": "pylate", "loss": "Distillation", "normalize_scores": True, "seed": SEED}
    arrays["info"] = np.array(json.dumps(info | {"versions": versions}, sort_keys=True))
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FIXTURE, **arrays)


def _unit(values: np.ndarray) -> np.ndarray:
    unit: np.ndarray = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)
    return unit


def _maxsim(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    scores: np.ndarray = np.einsum("qid,qnjd->qnij", queries, documents).max(-1).sum(-1)
    return scores


if __name__ == "__main__":
    main()
