"""Japanese late-interaction retrieval, in the order in which a text goes through it.

encode/tokens      text -> token ids
encode/encoder     token ids -> token embeddings, with a checkpoint's network
index/pooling      token embeddings -> fewer of them
index/quantize     token embeddings -> bytes, and back
index/candidates   query -> documents worth an exact score
index/maxsim       query and documents -> exact scores
index/index        all of these, durable: documents and token embeddings on disk
retriever          all of it wired: JaColBERTRetriever
langchain, llama_index   the same as objects of those frameworks

Importing this package loads neither torch nor a framework: names are looked up when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jacolbert_rag.calibration import Calibration
    from jacolbert_rag.config import (
        CandidateConfig,
        EncoderConfig,
        IndexSettings,
        LexicalConfig,
        PoolingConfig,
        SearchConfig,
        StoreConfig,
    )
    from jacolbert_rag.datatypes import Document, Highlight, Hit, TokenEmbeddings
    from jacolbert_rag.errors import (
        CheckpointError,
        CheckpointWarning,
        IndexCorruptError,
        IndexFolderError,
        IndexMismatchError,
        IndexNotFoundError,
        InvalidInputError,
        JaColBERTError,
        OptionalDependencyError,
        TruncationWarning,
        WorkerError,
    )
    from jacolbert_rag.retriever import JaColBERTRetriever

__version__ = "0.1.0"

_HOMES = {
    "CandidateConfig": "config",
    "EncoderConfig": "config",
    "PoolingConfig": "config",
    "SearchConfig": "config",
    "LexicalConfig": "config",
    "Calibration": "calibration",
    "Highlight": "datatypes",
    "StoreConfig": "config",
    "Document": "datatypes",
    "Hit": "datatypes",
    "TokenEmbeddings": "datatypes",
    "CheckpointError": "errors",
    "CheckpointWarning": "errors",
    "IndexCorruptError": "errors",
    "IndexFolderError": "errors",
    "IndexMismatchError": "errors",
    "IndexNotFoundError": "errors",
    "InvalidInputError": "errors",
    "JaColBERTError": "errors",
    "OptionalDependencyError": "errors",
    "TruncationWarning": "errors",
    "WorkerError": "errors",
    "IndexSettings": "config",
    "JaColBERTRetriever": "retriever",
}

__all__ = [
    "Calibration",
    "CandidateConfig",
    "CheckpointError",
    "CheckpointWarning",
    "Document",
    "EncoderConfig",
    "Highlight",
    "Hit",
    "IndexCorruptError",
    "IndexFolderError",
    "IndexMismatchError",
    "IndexNotFoundError",
    "IndexSettings",
    "InvalidInputError",
    "JaColBERTError",
    "JaColBERTRetriever",
    "LexicalConfig",
    "OptionalDependencyError",
    "PoolingConfig",
    "SearchConfig",
    "StoreConfig",
    "TokenEmbeddings",
    "TruncationWarning",
    "WorkerError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
