"""Writes what another library makes of our texts, for tests/test_parity.py to hold our encoder to.

    python -m tests.golden.make --peer sentence-transformers
    python -m tests.golden.make --peer pylate
    python -m tests.golden.make --peer pylate --real --checkpoint stanford
    python -m tests.golden.make --peer pylate --real --checkpoint bert_base --folder FOLDER

Run it with an interpreter that has the peer; of ours it imports nothing but texts and names. Each text goes
through the peer alone, so that no padding has a part in the result.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.checkpoints import CHECKPOINTS, DATA
from tests.golden.files import SHARED_DATA, Golden, Ragged, real_texts, sample, weights_digest
from tests.golden.texts import DOCUMENTS, QUERIES, UNLIKE

GOLDEN = DATA / "golden"
PEERS = ("sentence-transformers", "pylate")
# PyLate 1.6 knows neither sentence-transformers' module names of version 6 nor its settings.
LOADS = {
    "sentence-transformers": [
        "stanford",
        "stanford_attend",
        "pylate_japanese",
        "pylate_modernbert",
        "st_xlmr",
        "st_xlmr_prompts",
    ],
    "pylate": ["stanford", "stanford_attend", "pylate_japanese", "pylate_modernbert"],
}


@dataclass(frozen=True)
class Encoded:
    """What a peer makes of one text.

    Attributes:
        embeddings: (n_kept, dim) float32.
        ids: (n_tokens,) int32, skipped tokens included.
        n_attended: the first so many tokens are keys of attention.
    """

    embeddings: np.ndarray
    ids: np.ndarray
    n_attended: int


Encode = Callable[[str, bool], Encoded]


def load_sentence_transformers(folder: Path) -> tuple[Encode, dict[str, Any]]:
    """A function from a text, and whether it is a query, to its tokens; and the settings it runs with."""
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)

    def encode(text: str, is_query: bool) -> Encoded:
        task = "query" if is_query else "document"
        tokens = model.preprocess([text], prompt=model.prompts.get(task), task=task)
        run = model.encode_query if is_query else model.encode_document
        [embeddings] = run([text], convert_to_numpy=True)
        return _encoded(embeddings, tokens)

    settings = {
        "prompts": model.prompts,
        "document_length": model[0].document_length,
        "query_length": model[0].query_length,
        "query_expansion": model[0].query_expansion,
    }
    return encode, settings


def load_pylate(folder: Path) -> tuple[Encode, dict[str, Any]]:
    """The same of PyLate."""
    from pylate import models

    model = models.ColBERT(str(folder), device="cpu", local_files_only=True)

    def encode(text: str, is_query: bool) -> Encoded:
        tokens = model.tokenize([text], is_query=is_query)
        [embeddings] = model.encode([text], is_query=is_query, show_progress_bar=False)
        return _encoded(embeddings, tokens)

    names = ("query_prefix", "document_prefix", "document_length", "query_length")
    names += ("do_query_expansion", "attend_to_expansion_tokens")
    return encode, {name: getattr(model, name) for name in names}


LOADERS = {"sentence-transformers": load_sentence_transformers, "pylate": load_pylate}


def encode_all(encode: Encode, texts: Sequence[str], *, is_query: bool) -> list[Encoded]:
    """Each text by itself, with a line on standard error for each hundred."""
    encoded = []
    for i, text in enumerate(texts):
        encoded.append(encode(text, is_query))
        if i % 100 == 99:
            print(f"{i + 1} of {len(texts)}", file=sys.stderr, flush=True)
    return encoded


def make_own(peer: str, name: str) -> None:
    """All token embeddings and ids of our own texts, with a committed checkpoint."""
    folder = CHECKPOINTS / name
    encode, settings = LOADERS[peer](folder)
    queries = encode_all(encode, QUERIES, is_query=True)
    documents = encode_all(encode, DOCUMENTS, is_query=False)
    Golden(
        info=_info(peer, folder, settings),
        queries=Ragged.join([e.embeddings for e in queries]),
        documents=Ragged.join([e.embeddings for e in documents]),
        query_ids=Ragged.join([e.ids for e in queries]),
        document_ids=Ragged.join([e.ids for e in documents]),
        unlike_ids=Ragged.join([encode(text, False).ids for text in UNLIKE.values()]),
        n_attended=np.array([e.n_attended for e in queries], dtype=np.int32),
    ).save(GOLDEN / f"{peer}-{name}.npz")


def make_real(peer: str, name: str, folder: Path) -> None:
    """Some token embeddings of 500 real texts, which themselves stay where they are."""
    texts = real_texts(SHARED_DATA)
    encode, settings = LOADERS[peer](folder)
    queries = encode_all(encode, texts.queries, is_query=True)
    documents = encode_all(encode, texts.documents, is_query=False)
    Golden(
        info=_info(peer, folder, settings) | {"texts": texts.digest()},
        queries=Ragged.join([sample(e.embeddings) for e in queries]),
        documents=Ragged.join([sample(e.embeddings) for e in documents]),
        n_kept=np.array([len(e.embeddings) for e in (*queries, *documents)], dtype=np.int32),
    ).save(GOLDEN / f"{peer}-{name}-real.npz")


def _encoded(embeddings: np.ndarray, tokens: dict[str, Any]) -> Encoded:
    return Encoded(
        embeddings=np.asarray(embeddings, dtype=np.float32),
        ids=tokens["input_ids"][0].numpy().astype(np.int32),
        n_attended=int(tokens["attention_mask"][0].sum()),
    )


def _info(peer: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    names = (peer, "sentence-transformers", "transformers", "tokenizers", "torch", "numpy", "fugashi")
    return {
        "peer": peer,
        "checkpoint": folder.name,
        "weights": weights_digest(folder),
        "settings": settings,
        "versions": {name: version(name) for name in (*names, "unidic-lite")}
        | {"python": platform.python_version()},
    }


def main() -> None:
    """Write the golden files of one peer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", required=True, choices=PEERS)
    parser.add_argument("--checkpoint", help="this one only; without --real, all that the peer loads")
    parser.add_argument("--real", action="store_true", help="real texts instead of our own")
    parser.add_argument("--folder", type=Path, help="of a checkpoint that is not committed")
    args = parser.parse_args()
    GOLDEN.mkdir(parents=True, exist_ok=True)
    if args.real:
        make_real(args.peer, args.checkpoint, args.folder or CHECKPOINTS / args.checkpoint)
        return
    for name in [args.checkpoint] if args.checkpoint else LOADS[args.peer]:
        make_own(args.peer, name)


if __name__ == "__main__":
    main()
