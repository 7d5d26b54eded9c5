"""Other models, run by sentence-transformers: one vector a document, and cross-encoders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.protocol import RERANKED, Among, Found, Prompts, one_by_one
from jacolbert_rag.datatypes import Document
from jacolbert_rag.errors import InvalidInputError, OptionalDependencyError
from jacolbert_rag.index.snapshot import best

if TYPE_CHECKING:
    from evals.full_text import BM25

SIMILARITIES = ("cosine", "dot")
DENSE_PREFIX, CROSS_ENCODER_PREFIX = "dense:", "cross-encoder:"  # with a model behind the colon


class Dense:
    """One vector a document, from a sentence-transformers model, all of them compared."""

    def __init__(
        self,
        documents: Sequence[Document],
        model: str,
        *,
        prompts: Prompts | None = None,
        name: str | None = None,
    ) -> None:
        """Embed the documents.

        Args:
            documents: the corpus, of distinct ids.
            model: a folder or a hub id.
            prompts: in place of the model's own, which some (such as E5) do not state.
            name: for results.

        Raises:
            OptionalDependencyError: sentence-transformers is not installed.
            InvalidInputError: the model cannot be loaded, or compares vectors in another way than by cosine
                or dot product.
        """
        self._model = load("SentenceTransformer", model)
        similarity = self._model.similarity_fn_name
        if similarity not in SIMILARITIES:
            raise InvalidInputError(
                f"{model} compares vectors by {similarity}; expected {' or '.join(SIMILARITIES)}. Search "
                f"with it elsewhere, and measure its run file: run:FILE."
            )
        own, prompts = self._model.prompts, prompts or Prompts()
        self._prompts = {
            part: given if given is not None else own.get(part) or ""
            for part, given in (("query", prompts.query), ("document", prompts.document))
        }
        # The dot product of vectors of length 1 is their cosine.
        self._options = {
            "normalize_embeddings": similarity == "cosine",
            "convert_to_numpy": True,
            "show_progress_bar": False,
        }
        self.name = name or f"{DENSE_PREFIX}{model}"
        ordered = sorted(documents, key=lambda document: document.id)
        self._ids = [document.id for document in ordered]
        self._rows = {id: row for row, id in enumerate(self._ids)}
        passages = [document.passage for document in ordered]
        self._vectors = self._model.encode_document(
            passages, prompt=self._prompts["document"], **self._options
        ).astype(np.float32)
        length = getattr(self._model, "max_seq_length", None)
        self.settings: tuple[str, ...] = (
            f"weights@{fingerprint(self._model)}",
            f"dim:{self._vectors.shape[1]}",
            f"length:{length}",
            similarity,
            *(f"{part}-prompt:{text.strip()}" for part, text in self._prompts.items() if text),
            "exact",
        )

    @property
    def n_bytes(self) -> int:
        """See `System`."""
        return int(self._vectors.nbytes)

    def search_many(
        self, queries: Sequence[str], k: int, among: Sequence[Among] | None = None
    ) -> list[Found]:
        """See `System`."""
        asked = self._model.encode_query(list(queries), prompt=self._prompts["query"], **self._options)
        found = []
        for i, query in enumerate(asked.astype(np.float32)):
            if among is None:
                rows, scores = best(np.arange(len(self._ids)), self._vectors @ query, k)
            else:
                rows = np.array(sorted(self._rows[id] for id in among[i]), dtype=np.int64)
                rows, scores = best(rows, self._vectors[rows] @ query, k)
            found.append({self._ids[row]: float(score) for row, score in zip(rows, scores, strict=True)})
        return found

    def search(self, query: str, k: int, among: Among | None = None) -> Found:
        """See `System`."""
        return self.search_many([query], k, None if among is None else [among])[0]


class CrossEncoder:
    """A model that reads a question and a document together, over what full-text search finds first."""

    def __init__(
        self, documents: Sequence[Document], model: str, *, first: BM25, name: str | None = None
    ) -> None:
        """Load the model.

        Args:
            documents: the corpus, of distinct ids.
            model: a folder or a hub id.
            first: finds the documents that are ordered.
            name: for results.

        Raises:
            OptionalDependencyError: sentence-transformers is not installed.
            InvalidInputError: the model cannot be loaded.
        """
        self._model = load("CrossEncoder", model)
        self.name = name or f"{CROSS_ENCODER_PREFIX}{model}"
        self._passages = {document.id: document.passage for document in documents}
        self._first = first
        name_of_length = "max_seq_length" if hasattr(self._model, "max_seq_length") else "max_length"
        length = getattr(self._model, name_of_length)  # renamed in sentence-transformers 6
        weights = f"weights@{fingerprint(self._model)}"
        self.settings: tuple[str, ...] = (
            weights,
            f"length:{length}",
            f"of:{first.name}:{RERANKED}",
            *first.settings,
        )

    @property
    def n_bytes(self) -> int | None:
        """See `System`."""
        return self._first.n_bytes

    def search_many(
        self, queries: Sequence[str], k: int, among: Sequence[Among] | None = None
    ) -> list[Found]:
        """See `System`."""
        return one_by_one(self, queries, k, among)

    def search(self, query: str, k: int, among: Among | None = None) -> Found:
        """See `System`."""
        # A query's own candidates are all ordered, those without a shared word too.
        ids = sorted(among if among is not None else self._first.search(query, RERANKED))
        if not ids:
            return {}
        pairs = [(query, self._passages[id]) for id in ids]
        scores = np.asarray(self._model.predict(pairs, show_progress_bar=False), dtype=np.float32)
        rows, found = best(np.arange(len(ids)), scores, k)
        return {ids[row]: float(score) for row, score in zip(rows, found, strict=True)}


def fingerprint(model: Any) -> str:
    """Eight digits of a hash over all weights: a name alone, or a folder's, does not say which they are."""
    import torch  # here: full-text search is measured without it

    digest = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:8]


def load(kind: str, model: str) -> Any:
    """A model of a class of sentence-transformers.

    Raises:
        OptionalDependencyError: sentence-transformers is not installed.
        InvalidInputError: the model cannot be loaded.
    """
    new = getattr(sentence_transformers(), kind)
    try:
        return new(model, trust_remote_code=False)
    except Exception as error:  # of the hub, of transformers, of the file's format: each has its own
        raise InvalidInputError(
            f"{model} cannot be loaded as a {kind} of sentence-transformers ({type(error).__name__}: "
            f"{error}). Name a folder or a hub id of one, without --offline where it is not downloaded yet."
        ) from error


def sentence_transformers() -> Any:
    """The package.

    Raises:
        OptionalDependencyError: it is not installed.
    """
    try:
        import sentence_transformers as package
    except ModuleNotFoundError as error:
        if error.name != "sentence_transformers":
            raise
        raise OptionalDependencyError(
            "Dense models and cross-encoders are run by sentence-transformers, which is not installed. Run: "
            "pip install 'jacolbert-rag[peers]'"
        ) from error
    return package
