"""JaColBERTRetriever: the stages wired together, text in and hits out."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jacolbert_rag.config import ComputeDtype, IndexSettings
from jacolbert_rag.datatypes import Document, FloatArray, Hit, IntArray, TokenArray, TokenEmbeddings
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.encoder import Encoder, check_texts, has_text
from jacolbert_rag.errors import IndexMismatchError, InvalidInputError
from jacolbert_rag.index.candidates import Candidates
from jacolbert_rag.index.maxsim import maxsim, maxsim_many
from jacolbert_rag.index.pooling import pool_corpus, pool_documents
from jacolbert_rag.index.store import Store, as_stored, check_documents, read_manifest

if TYPE_CHECKING:
    from jacolbert_rag.langchain import JaColBERTRetriever as LangChainRetriever
    from jacolbert_rag.llama_index import JaColBERTRetriever as LlamaIndexRetriever

CANDIDATES_FOLDER = "candidates"
ADD_DOCUMENTS = 2_000  # documents encoded and stored at once; bounds memory to about 0.5 GB
SEARCH_QUERIES = 32  # queries scored at once by exact search, so that each segment is read once for them
SAMPLE_PER_POOLED = 24  # token embeddings that k-means sees for each pooled vector
SAVE_GROWTH = 1.1  # candidates of a saved index are written again when they have grown by this factor
CANDIDATES_PER_HIT = 2  # documents scored exactly for each hit asked for, at least


class JaColBERTRetriever:
    """Finds Japanese documents by late interaction.

        retriever = JaColBERTRetriever.from_pretrained()
        retriever.add(["琵琶湖は日本最大の湖である。", "富士山は日本で最も高い山である。"])
        retriever.search("日本で一番大きい湖は？", k=1)

    An index that was not saved lives in a temporary folder. One that was loaded or saved is live: what
    `add`, `upsert` and `delete` returned from is on disk. Methods may be called from several threads.
    """

    def __init__(self, encoder: Encoder, store: Store, settings: IndexSettings) -> None:
        """Wire finished stages; use `from_pretrained` or `load`."""
        self.encoder = encoder
        self.settings = settings
        self._store = store
        self._lock = threading.RLock()  # over the store and the candidates
        self._writing = threading.RLock()  # one writer; searches go on while it encodes
        self._candidates = Candidates.load(
            store.folder / CANDIDATES_FOLDER, settings.candidates, n_rows=store.n_rows
        )
        self._n_saved_entries = self._candidates.n_entries if self._candidates else 0
        self._cleanup: weakref.finalize[..., Any] | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        index: str | Path | None = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: ComputeDtype = "float32",
        query_length: str | None = None,
        document_length: int | None = None,
        settings: IndexSettings | None = None,
    ) -> JaColBERTRetriever:
        """A retriever with this model, over an index on disk or over none yet.

        Args:
            model: None for the bundled model, a folder, or a hub id such as "answerdotai/JaColBERTv2.5".
            index: folder of a saved index, which must have been made by the same model. None starts
                empty.
            revision: branch, tag or commit of a hub id.
            device: "cpu", "cuda", "cuda:1", "mps"; None takes CUDA where there is one.
            dtype: what the network computes in.
            query_length: rule of query augmentation: "paper", or "fixed:N".
            document_length: tokens that are read of a document, in place of the checkpoint's.
            settings: of a new index, or in place of those of a loaded one (pooling and storage cannot
                change then).

        Raises:
            CheckpointError: the model cannot be read.
            IndexNotFoundError: there is no index in `index`.
            IndexMismatchError: another model made the index.
        """
        loaded = checkpoint.load(
            str(model) if model is not None else None,
            revision=revision,
            query_length=query_length,
            document_length=document_length,
        )
        encoder = Encoder(loaded, device=device, dtype=dtype)
        if index is not None:
            return cls._open(Path(index), encoder, settings)
        settings = settings or IndexSettings()
        folder = Path(tempfile.mkdtemp(prefix="jacolbert-"))
        manifest = {
            "library": version("jacolbert-rag"),
            "model": loaded.name,
            "fingerprint": loaded.fingerprint,
            "dim": loaded.config.dim,
            "encoder": loaded.config.to_json(),
            **settings.to_json(),
        }
        retriever = cls(encoder, Store.create(folder, manifest, durable=False), settings)
        retriever._cleanup = weakref.finalize(retriever, shutil.rmtree, folder, ignore_errors=True)
        return retriever

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: str | Path | None = None,
        device: str | None = None,
        dtype: ComputeDtype = "float32",
        query_length: str | None = None,
        settings: IndexSettings | None = None,
    ) -> JaColBERTRetriever:
        """Open a saved index with the model that made it.

        Args:
            path: folder that `save` wrote.
            model: where that model is now, when it has moved.
            device: see `from_pretrained`.
            dtype: see `from_pretrained`.
            query_length: see `from_pretrained`.
            settings: see `from_pretrained`.

        Raises:
            IndexNotFoundError: there is no index.
            IndexCorruptError: a file is missing or cut short.
            IndexMismatchError: the model is another one now.
            CheckpointError: the model cannot be read.
        """
        manifest = read_manifest(Path(path))
        loaded = checkpoint.load(
            str(model if model is not None else manifest["model"]),
            query_length=query_length,
            document_length=manifest["encoder"]["document_length"],
        )
        return cls._open(Path(path), Encoder(loaded, device=device, dtype=dtype), settings)

    @classmethod
    def _open(cls, path: Path, encoder: Encoder, settings: IndexSettings | None) -> JaColBERTRetriever:
        manifest = read_manifest(path)
        made, now = manifest["fingerprint"], encoder.checkpoint
        if made != now.fingerprint:
            raise IndexMismatchError(
                f"The index {path} was built with the model {manifest['model']!r} (fingerprint {made[:8]}, "
                f"document length {manifest['encoder']['document_length']}), but the loaded encoder is "
                f"{now.name!r} ({now.fingerprint[:8]}, {now.config.document_length}). Load that model, or "
                "build the index anew with this one."
            )
        stored = IndexSettings.from_json(manifest)
        if settings is not None and (settings.pooling, settings.store) != (stored.pooling, stored.store):
            raise IndexMismatchError(
                f"The index {path} was built with {stored.pooling} and {stored.store}; they cannot change "
                f"to {settings.pooling} and {settings.store}. Build a new index with those."
            )
        retriever = cls(encoder, Store.open(path), settings or stored)
        retriever._update_candidates()
        return retriever

    def __len__(self) -> int:
        """Documents in the index."""
        return len(self._store)

    def __contains__(self, id: object) -> bool:
        """Whether a document of this id is in the index."""
        return isinstance(id, str) and bool(self._store.rows_of([id]))

    def __iter__(self) -> Iterator[Document]:
        """Every document, in order of arrival."""
        return self._store.all_documents()

    @property
    def path(self) -> Path | None:
        """The folder of a saved index; None while it lives in a temporary one."""
        return self._store.folder if self._cleanup is None else None

    def add(self, documents: Iterable[str | Document], *, progress: bool = False) -> list[str]:
        """Store documents; one whose id is there already is replaced.

        Args:
            documents: texts, whose ids are made from their content, or `Document`s.
            progress: show a bar on standard error.

        Returns:
            The id of each, in order. The same text given twice has one id and is stored once.

        Raises:
            InvalidInputError: a document has no text, an id occurs twice, or metadata is not JSON.
                Nothing of this call was stored then.
        """
        given, distinct = _as_documents(documents)
        check_documents(distinct)
        check_texts([document.passage for document in distinct], "document")
        with self._writing, _progress(len(distinct), show=progress) as advance:
            for start in range(0, len(distinct), ADD_DOCUMENTS):
                batch = distinct[start : start + ADD_DOCUMENTS]
                embeddings = self._encode(batch, advance)
                with self._lock:
                    self._store.append(batch, embeddings)
            with self._lock:
                self._update_candidates()
        return given

    def upsert(self, documents: Iterable[str | Document], *, progress: bool = False) -> list[str]:
        """Like `add`, but documents that are stored already, word for word, are left alone.

        Returns:
            The ids of the documents that were new or had changed.
        """
        _, distinct = _as_documents(documents)
        check_documents(distinct)
        with self._writing:
            stored = {document.id: document for document in self.get([d.id for d in distinct])}
            return self.add([d for d in distinct if stored.get(d.id) != as_stored(d)], progress=progress)

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Remove documents.

        Returns:
            The ids that were in the index; unknown ones are passed over.
        """
        if isinstance(ids, str):
            raise InvalidInputError(f"ids is the str {ids!r}; expected a list of ids, such as [{ids!r}].")
        with self._writing, self._lock:
            return self._store.delete(ids)

    def get(self, ids: Sequence[str]) -> list[Document]:
        """The documents of these ids, in order; unknown ids are passed over."""
        with self._lock:
            return self._store.documents(list(self._store.rows_of(ids).values()))

    def search(self, query: str, k: int = 10, *, exact: bool = False) -> list[Hit]:
        """The documents that answer a query best.

        Args:
            query: any text; [MASK]s are added by the model's rule.
            k: how many, at least 1.
            exact: score every document instead of the candidates. A small index always does.

        Returns:
            min(k, documents in the index) hits, best first.

        Raises:
            InvalidInputError: the query has no text, or k is below 1.
        """
        return self.search_many([query], k, exact=exact)[0]

    def search_many(self, queries: Sequence[str], k: int = 10, *, exact: bool = False) -> list[list[Hit]]:
        """`search` for many queries; encoded in batches, and scored in batches where search is exact."""
        if isinstance(queries, str):
            raise InvalidInputError("queries is one str; expected a list. For one query there is `search`.")
        _check_k(k)
        embedded = self.encoder.queries(list(queries))
        with self._lock:
            k = min(k, len(self._store))
            if k == 0:
                return [[] for _ in queries]
            if exact or self._candidates is None or len(self._store) < self.settings.search.exact_below:
                found = self._search_exact(embedded, k)
            else:
                found = [self._search_candidates(query, k) for query in embedded]
            return [self._hits(rows, scores) for rows, scores in found]

    def rerank(self, query: str, documents: Iterable[str | Document], k: int | None = None) -> list[Hit]:
        """Order documents that came from elsewhere; nothing is stored.

        Args:
            query: any text.
            documents: texts or `Document`s.
            k: how many to keep; None keeps all.

        Returns:
            min(k, number of documents) hits, best first; of equal scores the earlier document is first.
            A document without text scores -inf.
        """
        if k is not None:
            _check_k(k)
        given = [d if isinstance(d, Document) else Document.from_text(d) for d in _listed(documents)]
        if not given:
            return []
        scores = np.full(len(given), -np.inf, dtype=np.float32)
        with_text = [i for i, document in enumerate(given) if has_text(document.passage)]
        embedded = self._encode([given[i] for i in with_text])
        scores[with_text] = maxsim(self.encoder.queries([query])[0], embedded)
        order = np.argsort(-scores, kind="stable")[:k]
        return [Hit(given[i], float(scores[i])) for i in order]

    def save(self, path: str | Path) -> None:
        """Put the index into a folder, where it is live from now on.

        An index that is live elsewhere stays there, and the folder gets a copy. An index in the folder is
        replaced.

        Raises:
            InvalidInputError: the folder holds something that is no index.
        """
        folder = Path(path).expanduser().absolute()
        with self._writing, self._lock:
            self._save_candidates()
            if folder == self._store.folder.absolute():
                return
            self._store.copy_to(folder)
            if self._cleanup is not None:
                self._store.close()
                self._cleanup()
                self._cleanup = None
                self._store = Store.open(folder)

    def close(self) -> None:
        """Write what is derived and close the index; a temporary one is removed."""
        with self._writing, self._lock:
            if self.path is not None:
                self._save_candidates()
            self._store.close()
            if self._cleanup is not None:
                self._cleanup()

    def as_langchain(self, k: int = 4) -> LangChainRetriever:
        """This index as a LangChain retriever."""
        from jacolbert_rag.langchain import JaColBERTRetriever as LangChainRetriever

        return LangChainRetriever(engine=self, k=k)

    def as_llama_index(self, k: int = 2) -> LlamaIndexRetriever:
        """This index as a LlamaIndex retriever."""
        from jacolbert_rag.llama_index import JaColBERTRetriever as LlamaIndexRetriever

        return LlamaIndexRetriever(engine=self, similarity_top_k=k)

    def _encode(
        self, documents: Sequence[Document], advance: Callable[[int], None] | None = None
    ) -> TokenEmbeddings:
        passages = [document.passage for document in documents]
        return pool_documents(self.encoder.documents(passages, on_progress=advance), self.settings.pooling)

    def _search_exact(self, queries: TokenEmbeddings, k: int) -> list[tuple[IntArray, FloatArray]]:
        """The best k live rows of the whole store, and their scores, for each query."""
        found = []
        for start in range(0, len(queries), SEARCH_QUERIES):
            batch = queries.take(range(start, min(start + SEARCH_QUERIES, len(queries))))
            scores = np.concatenate([maxsim_many(batch, block) for _, block in self._store.blocks()], axis=1)
            scores[:, ~self._store.live] = -np.inf
            found += [_best(np.arange(len(row)), row, k) for row in scores]
        return found

    def _search_candidates(self, query: TokenArray, k: int) -> tuple[IntArray, FloatArray]:
        """The best k of the candidates' rows, and their scores."""
        assert self._candidates is not None
        n = max(self.settings.candidates.n_candidates, CANDIDATES_PER_HIT * k)
        rows = self._candidates.propose(query, self._store.live, n)
        if len(rows) < k:  # fewer documents are listed near the query than were asked for
            return self._search_exact(TokenEmbeddings(query, np.array([0, len(query)])), k)[0]
        rows = np.sort(rows)  # in the order of the file
        return _best(rows, maxsim(query, self._store.embeddings(rows)), k)

    def _hits(self, rows: IntArray, scores: FloatArray) -> list[Hit]:
        documents = self._store.documents(rows)
        return [Hit(document, float(score)) for document, score in zip(documents, scores, strict=True)]

    def _update_candidates(self) -> None:
        """List documents that the candidates lack, or pool the corpus anew when it has outgrown them."""
        store = self._store
        if len(store) == 0 or len(store) < self.settings.search.exact_below:
            return
        if self._candidates is None or self._candidates.needs_rebuild(store.n_tokens):
            self._candidates = self._pool_candidates()
            self._n_saved_entries = 0
        for first, block in store.blocks():
            rows = np.arange(first, first + len(block), dtype=np.int64)
            new = rows[(rows >= self._candidates.n_rows) & store.live[rows]]
            for start in range(0, len(new), ADD_DOCUMENTS):
                batch = new[start : start + ADD_DOCUMENTS]
                self._candidates.add(batch, block.take(batch - first))
        if self.path and self._candidates.n_entries > SAVE_GROWTH * self._n_saved_entries:
            self._save_candidates()

    def _pool_candidates(self) -> Candidates:
        """Pool a sample of the corpus' token embeddings, a fair share from every segment."""
        config, store = self.settings.candidates, self._store
        n_pooled = max(1, store.n_tokens // config.tokens_per_pooled)
        share = min(1.0, SAMPLE_PER_POOLED * n_pooled / store.n_tokens)
        rng = np.random.default_rng(config.seed)
        sample = []
        for _, block in store.blocks():
            n = max(1, round(share * len(block.flat)))
            chosen = np.sort(rng.choice(len(block.flat), size=min(n, len(block.flat)), replace=False))
            sample.append(block.flat[chosen].astype(np.float32))
        pooled = pool_corpus(np.concatenate(sample), n_pooled, seed=config.seed)
        return Candidates.build(pooled, config, n_tokens=store.n_tokens)

    def _save_candidates(self) -> None:
        if self._candidates is not None:
            self._candidates.save(self._store.folder / CANDIDATES_FOLDER)
            self._n_saved_entries = self._candidates.n_entries


def _best(rows: IntArray, scores: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """The k rows of the highest scores, best first; of equal scores the lower row is first."""
    if len(rows) > k:
        # Everything that ties with the k-th stays in, so that the row decides and not the partition.
        kth = -np.partition(-scores, k - 1)[k - 1]
        kept = np.flatnonzero(scores >= kth)
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def _as_documents(documents: Iterable[str | Document]) -> tuple[list[str], list[Document]]:
    """The id of each given document, and the documents; a text that was given twice is there once."""
    distinct: dict[str, Document] = {}  # from texts, whose ids are their content
    named = []
    ids = []
    for item in _listed(documents):
        document = item if isinstance(item, Document) else Document.from_text(item)
        ids.append(document.id)
        if isinstance(item, Document):
            named.append(document)
        else:
            distinct[document.id] = document
    return ids, [*named, *distinct.values()]


def _listed(documents: Iterable[str | Document]) -> list[str | Document]:
    """The documents as a list.

    Raises:
        InvalidInputError: it is one string, or holds something else.
    """
    if isinstance(documents, str | Document):
        raise InvalidInputError(
            f"documents is one {type(documents).__name__}; expected a list of them, such as [document]."
        )
    listed = list(documents)
    for i, document in enumerate(listed):
        if not isinstance(document, str | Document):
            raise InvalidInputError(
                f"document {i} is a {type(document).__name__}; expected a str or a jacolbert_rag.Document. "
                "LangChain and LlamaIndex have adapters: jacolbert_rag.langchain, jacolbert_rag.llama_index."
            )
    return listed


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidInputError(f"k is {k!r}; expected a whole number of hits, at least 1.")


@contextmanager
def _progress(total: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar of documents on standard error, or nothing."""
    if not show:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("documents", total=total)
        yield lambda n: bar.advance(task, n)
