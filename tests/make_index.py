"""Makes a small index to be kept in tests/data/indexes, one for each format that was ever released.

    python -m tests.make_index format-2

It is run once, by the first version that writes a format. The model is named relatively, so that the index
holds no path of the machine that made it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import typer

from jacolbert_rag import (
    CandidateConfig,
    Document,
    IndexSettings,
    JaColBERTRetriever,
    SearchConfig,
    StoreConfig,
)
from jacolbert_rag.encode import checkpoint
from tests.conftest import SENTENCES

DATA = Path(__file__).parent / "data"
MODEL = "checkpoints/stanford"
REPLACED, DELETED = "文書2", ("文書4", "文書9")


def documents() -> list[Document]:
    """What the index holds in the end, in order of rows."""
    made = [Document(f"文書{i}", text, {"番号": i}, title="題") for i, text in enumerate(SENTENCES)]
    kept = [document for document in made if document.id not in (REPLACED, *DELETED)]
    return [*kept, replacement(), Document("後𠮷", "後から加えた文書。", {"番号": None})]


def replacement() -> Document:
    """What is stored in the place of another document."""
    return Document(REPLACED, "大阪は商業の町として栄えた。", {"番号": [2, "改"]}, title="題")


def settings() -> IndexSettings:
    """Residuals, and candidates, of so few documents."""
    return IndexSettings(
        store=StoreConfig(dtype="residual4", n_centroids=16, codebook_tokens=50),
        candidates=CandidateConfig(tokens_per_pooled=4, n_nearest=8),
        search=SearchConfig(exact_below=0),
    )


def main(name: Annotated[str, typer.Argument(help="Of the folder in tests/data/indexes.")]) -> None:
    """Make an index by this version."""
    os.chdir(DATA)
    load = checkpoint.load
    with patch.object(checkpoint, "load", lambda *args, **kwargs: replace(load(*args, **kwargs), name=MODEL)):
        retriever = JaColBERTRetriever.from_pretrained(MODEL, settings=settings(), dtype="float32")
    made = [Document(f"文書{i}", text, {"番号": i}, title="題") for i, text in enumerate(SENTENCES)]
    retriever.save(Path("indexes") / name)
    retriever.add(made)
    retriever.add([replacement()])
    retriever.delete(list(DELETED))
    retriever.add(documents()[-1:])
    retriever.close()


if __name__ == "__main__":
    typer.run(main)
