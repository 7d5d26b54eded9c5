"""JaColBERTRetriever: the stages wired together, text in and hits out."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, get_args

import numpy as np

from jacolbert_rag import __version__
from jacolbert_rag.calibration import (
    LEAST_SENTENCES,
    N_SENTENCES,
    QUANTILE,
    Calibration,
    check,
    question_of,
    threshold,
)
from jacolbert_rag.config import (
    ComputeDtype,
    EncoderConfig,
    EncoderOverrides,
    IndexSettings,
    LoadOptions,
    SearchMode,
)
from jacolbert_rag.datatypes import Document, FloatArray, Hit, IntArray, TokenArray, TokenEmbeddings
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.encoder import Encoder, has_text, warn_of_cut_documents
from jacolbert_rag.encode.splitter import Splitter, is_chunk_of, parent_of
from jacolbert_rag.errors import (
    IndexCorruptError,
    IndexFolderError,
    IndexMismatchError,
    IndexWriteError,
    InvalidInputError,
)
from jacolbert_rag.index import layout
from jacolbert_rag.index.database import as_stored, check_documents
from jacolbert_rag.index.fusion import CONFIDENCE_VERSION, similarity
from jacolbert_rag.index.highlight import highlight, similarities_of
from jacolbert_rag.index.index import Damage, Index, PassageChangedError, read_manifest
from jacolbert_rag.index.maxsim import maxsim
from jacolbert_rag.index.pooling import pool_documents, pool_with_members
from jacolbert_rag.index.search import Found, Question, find
from jacolbert_rag.index.view import GivenFilter, View, parsed
from jacolbert_rag.progress import Progress, progress_bar

if TYPE_CHECKING:
    from jacolbert_rag.langchain import AnswerOptions as LangChainOptions
    from jacolbert_rag.langchain import JaColBERTRetriever as LangChainRetriever
    from jacolbert_rag.llama_index import AnswerOptions as LlamaIndexOptions
    from jacolbert_rag.llama_index import JaColBERTRetriever as LlamaIndexRetriever

logger = logging.getLogger(__name__)
T = TypeVar("T")

ADD_DOCUMENTS = 1_000  # documents encoded and stored at once; bounds memory to about 0.3 GB
# How often calibration leaves out documents that have the sentence it asks, among the first so many hits.
MAX_COPIES, K_COPIES = 10, 10


class JaColBERTRetriever:
    """Finds Japanese documents by late interaction.

        retriever = JaColBERTRetriever.from_pretrained()
        retriever.add(["琵琶湖は日本最大の湖である。", "富士山は日本で最も高い山である。"])
        retriever.search("日本で一番大きい湖は？", k=1)

    An index that was not saved lives in a temporary folder. One that was loaded or saved is live: what
    `add`, `upsert` and `delete` returned from is on disk. Methods may be called from several threads.
    """

    def __init__(self, encoder: Encoder, index: Index, settings: IndexSettings) -> None:
        """Wire finished stages; use `from_pretrained` or `open`."""
        self.encoder = encoder
        self.settings = settings
        self._index = index
        self._writing = threading.RLock()  # one writer; searches go on while it encodes
        self._cleanup: weakref.finalize[..., Any] | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        index: str | Path | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        tokenizer: str | Path | None = None,
        device: str | Sequence[str] | None = None,
        dtype: ComputeDtype = "auto",
        compile: bool = False,
        query_length: str | None = None,
        document_length: int | None = None,
        encoder: EncoderOverrides | None = None,
        settings: IndexSettings | None = None,
    ) -> JaColBERTRetriever:
        """A retriever with this model, over an index on disk or over none yet.

        Args:
            model: None for the bundled model, a folder, or a hub id such as "answerdotai/JaColBERTv2.5".
            index: folder of a saved index, which must have been made by the same model. None starts
                empty.
            revision: branch, tag or commit of a hub id.
            token: the hub's access token; True takes the one that the user logged in with.
            cache_dir: the hub's cache, in place of its usual folder.
            tokenizer: folder or hub id to take the tokenizer and metadata from, for checkpoints that have
                none, such as the intermediate ones of JaColBERTv2.5.
            device: "cpu", "cuda", "cuda:1", "mps"; None takes a GPU where there is one. A list of several
                spreads documents over them, one process each.
            dtype: what the network computes in; "auto" is bfloat16 where the device is fast at it.
            compile: fuse the network by torch.compile: a minute's delay, for large corpora.
            query_length: rule of query augmentation: "paper" (the default), "jqara", "fixed(32)",
                "plus(8)", "dynamic(32, 8)" or "none"; see `jacolbert_rag.config.QueryLength`.
            document_length: tokens that are read of a document, in place of the checkpoint's.
            encoder: other settings in place of the checkpoint's; see `jacolbert_rag.config.EncoderConfig`.
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
            token=token,
            cache_dir=cache_dir,
            tokenizer=tokenizer,
            overrides=_overrides(encoder, query_length, document_length),
        )
        opened = Encoder(loaded, device=device, dtype=dtype, compile=compile)
        if index is not None:
            return cls._open(Path(index).expanduser().resolve(), opened, settings)
        _check_settings(settings)
        settings = settings or IndexSettings()
        folder = Path(tempfile.mkdtemp(prefix="jacolbert-"))
        manifest = {
            "library": __version__,
            "model": loaded.name,
            "revision": revision,
            "tokenizer": loaded.source.tokenizer,
            "fingerprint": loaded.fingerprint,
            "dim": loaded.config.dim,
            "encoder": loaded.config.to_json(),
            **settings.to_json(),
        }
        made = Index.create(folder, manifest, durable=False, device=_scoring_device(opened))
        retriever = cls(opened, made, settings)
        retriever._cleanup = weakref.finalize(retriever, _remove_folder, folder, os.getpid())
        return retriever

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: str | Path | None = None,
        tokenizer: str | Path | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        device: str | Sequence[str] | None = None,
        dtype: ComputeDtype = "auto",
        compile: bool = False,
        query_length: str | None = None,
        settings: IndexSettings | None = None,
    ) -> JaColBERTRetriever:
        """Open a saved index with the model that made it, reading text as it was read then.

        Args:
            path: folder that `save` wrote.
            model: where that model is now, when it has moved.
            tokenizer: where its tokenizer is now, when it was named and has moved.
            token: see `from_pretrained`.
            cache_dir: see `from_pretrained`.
            device: see `from_pretrained`.
            dtype: see `from_pretrained`.
            compile: see `from_pretrained`.
            query_length: rule of query augmentation, in place of the one that the index was made with.
            settings: see `from_pretrained`.

        Raises:
            IndexNotFoundError: there is no index.
            IndexCorruptError: a file is missing or cut short.
            IndexMismatchError: the model is another one now.
            CheckpointError: the model cannot be read.
        """
        path = Path(path).expanduser().resolve()
        manifest = read_manifest(path)
        with _settings_of(path):
            config = EncoderConfig.from_json(manifest["encoder"])
        loaded = checkpoint.load(
            str(model if model is not None else manifest["model"]),
            revision=manifest.get("revision") if model is None else None,
            token=token,
            cache_dir=cache_dir,
            tokenizer=tokenizer if tokenizer is not None else manifest.get("tokenizer"),
            overrides=_overrides(config.overrides(), query_length, None),
        )
        encoder = Encoder(loaded, device=device, dtype=dtype, compile=compile)
        return cls._open(path, encoder, settings)

    @classmethod
    def open(cls, path: str | Path, **options: Unpack[LoadOptions]) -> JaColBERTRetriever:
        """`load` by the name that databases have for it."""
        return cls.load(path, **options)

    @classmethod
    def _open(cls, path: Path, encoder: Encoder, settings: IndexSettings | None) -> JaColBERTRetriever:
        index = Index.open(path, device=_scoring_device(encoder))
        try:
            manifest, stored = index.manifest, index.settings
            if not _is_made_by(manifest, encoder.checkpoint):
                raise IndexMismatchError(_mismatch(path, manifest, encoder.checkpoint))
            _check_settings(settings)
            if settings is not None and _built(settings) != _built(stored):
                raise IndexMismatchError(
                    f"The index {path} was built with {_built(stored)}; they cannot change to "
                    f"{_built(settings)}. Build a new index with those."
                )
        except BaseException:
            index.close()
            raise
        if settings is not None:
            index.settings = settings
        retriever = cls(encoder, index, settings or stored)
        retriever._update_candidates()
        return retriever

    def __len__(self) -> int:
        """Documents in the index."""
        return self._read(lambda view: view.snapshot.n_live)

    def __contains__(self, id: object) -> bool:
        """Whether a document of this id is in the index."""
        return isinstance(id, str) and self._read(lambda view: bool(view.rows_of([id])))

    def __iter__(self) -> Iterator[Document]:
        """`documents()`."""
        return self.documents()

    @property
    def path(self) -> Path | None:
        """The folder of a saved index; None while it lives in a temporary one."""
        return self._index.folder if self._cleanup is None else None

    def add(
        self, documents: Iterable[str | Document], *, split: bool = False, progress: Progress = False
    ) -> list[str]:
        """Store documents; one whose id is there already is replaced.

        Args:
            documents: texts, whose ids are made from their content, or `Document` objects.
            split: store documents that are longer than the model reads as chunks of whole sentences; see
                `jacolbert_rag.encode.splitter.Splitter.documents` for their ids and metadata. With or without
                it, what an earlier version of a document left, chunks or the whole, is deleted when the new
                one is stored.
            progress: show a bar on standard error; a function is called with how many documents were done.

        Returns:
            The id of each, in order; of one that was split, the ids of its chunks. The same text given twice
            has one id and is stored once.

        Raises:
            InvalidInputError: a document has no text, an id occurs twice, metadata is not JSON, or that of a
                document to be split has the key "chunk". Nothing of this call was stored then.
            WorkerError: a process of another device failed; what came before it is stored.
        """
        given, distinct = _as_documents(documents)
        parts = self._parts(distinct, split=split)
        with self._writing:
            self._add(parts, {part.id for each in parts.values() for part in each}, set(), progress=progress)
        return [part.id for id in given for part in parts[id]]

    def _add(
        self,
        parts: Mapping[str, Sequence[Document]],
        wanted: set[str],
        restated: set[str],
        *,
        progress: Progress,
    ) -> None:
        """Encode and store parts of documents. Each document changes in one moment.

        Args:
            parts: id of each document, and its parts; what else is stored of it is deleted.
            wanted: ids of the parts that are to be encoded.
            restated: ids of the parts whose token embeddings are stored, with other metadata. Further ones
                are stored as they are.
            progress: show a bar.
        """
        flat = [part for each in parts.values() for part in each if part.id in wanted]
        last = {
            each[-1].id: id for id, each in _encoded_parts(parts, wanted)
        }  # its last part -> the document
        n_cut, start = 0, 0
        waiting: list[Document] = []  # of a document whose last part is not encoded yet
        held: list[TokenEmbeddings] = []
        members: list[IntArray] = []  # of the waiting documents, where they are pooled
        with progress_bar(len(flat), show=progress) as advance:
            passages = (document.passage for document in flat)
            for embeddings, cut in self.encoder.blocks(passages, size=ADD_DOCUMENTS, on_progress=advance):
                waiting += flat[start : start + len(embeddings)]
                pooled, taken = pool_with_members(embeddings, self.settings.pooling)
                held.append(pooled)
                members += taken or []
                start, n_cut = start + len(embeddings), n_cut + cut
                n_whole = 1 + max((i for i, part in enumerate(waiting) if part.id in last), default=-1)
                if n_whole:
                    pooled = TokenEmbeddings.concatenate(held) if len(held) > 1 else held[0]
                    whole, waiting = waiting[:n_whole], waiting[n_whole:]
                    done = {last[part.id]: parts[last[part.id]] for part in whole if part.id in last}
                    # Lists made now would be thrown away when the corpus is pooled anew at the end.
                    self._index.append(
                        whole,
                        pooled.take(range(n_whole)) if waiting else pooled,
                        members=members[:n_whole] or None,
                        listed=len(flat) <= ADD_DOCUMENTS,
                        restate=_among(restated, done),
                        delete=partial(_former, parts=done),
                    )
                    held = [pooled.take(range(n_whole, len(pooled)))] if waiting else []
                    members = members[n_whole:]
        encoded = set(last.values())
        rest = {id: each for id, each in parts.items() if id not in encoded}
        changed, former = _among(restated, rest), partial(_former, parts=rest)
        if changed or bool(self._read(former)):  # else nobody is kept from writing
            self._index.amend(restate=changed, delete=former)
        self._update_candidates()
        length = self.encoder.checkpoint.config.document_length
        warn_of_cut_documents(n_cut, len(flat), length, stacklevel=4)  # the caller of `add`

    def _update_candidates(self) -> None:
        """Bring what is derived up to date. Where it cannot be written, searches take longer, and no more."""
        try:
            self._index.update_candidates()
        except IndexWriteError as error:
            logger.warning("%s Searches go on, and take longer until then.", error)

    def upsert(
        self, documents: Iterable[str | Document], *, split: bool = False, progress: Progress = False
    ) -> list[str]:
        """Like `add`, but documents that are stored already, word for word, are left alone.

        Where only the metadata is another, it is stored with the token embeddings that are there. So of a
        long document that was split and has changed since, only the chunks around the change are encoded.

        Returns:
            The ids of the documents, or of their chunks, that were new or had changed.
        """
        _, distinct = _as_documents(documents)
        parts = self._parts(distinct, split=split)
        given = [part for document in distinct for part in parts[document.id]]
        changed: dict[str, None] = {}
        with self._writing:
            while True:
                stored = {document.id: document for document in self.get([part.id for part in given])}
                now = [part for part in given if stored.get(part.id) != as_stored(part)]
                changed |= dict.fromkeys(part.id for part in now)
                restated = {part.id for part in now if _passage_of(stored.get(part.id)) == part.passage}
                try:
                    self._add(parts, {part.id for part in now} - restated, restated, progress=progress)
                except PassageChangedError:  # by another process, since we have looked
                    continue
                return [part.id for part in given if part.id in changed]

    def _parts(self, documents: Sequence[Document], *, split: bool) -> dict[str, list[Document]]:
        """Id of each document, and what is stored of it: the whole, or its chunks."""
        if not split:
            return {document.id: [document] for document in documents}
        splitter = Splitter.for_tokenizer(self.encoder.tokenizer)
        parts = {document.id: list(splitter.documents([document])) for document in documents}
        check_documents([part for document in documents for part in parts[document.id]])
        return parts

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Remove documents, with their chunks where they were split.

        Args:
            ids: of documents, or of single chunks.

        Returns:
            The ids that were in the index, those of chunks too; unknown ones are passed over.
        """
        if isinstance(ids, str):
            raise InvalidInputError(f"ids is the str {ids!r}; expected a list of ids, such as [{ids!r}].")

        def with_chunks(view: View) -> list[str]:
            named = dict.fromkeys(key for id in ids for key in (id, *_chunks_of(view, id)))
            return list(view.rows_of(list(named)))

        with self._writing:
            if not self._read(with_chunks):  # nobody is kept from writing
                return []
            return self._index.amend(delete=with_chunks)

    def ids(self, prefix: str = "") -> list[str]:
        """Ids in the index, sorted: all of them, or those that begin with a prefix."""
        return self._read(lambda view: view.ids_with_prefix(prefix))

    def documents(self, filter: GivenFilter | None = None) -> Iterator[Document]:
        """Documents that a filter lets through, in order of arrival; all of them without one.

        Those that are there now, but for what goes before the iterator comes to it.

        Args:
            filter: as `search` takes it.

        Raises:
            InvalidInputError: the filter cannot be asked.
        """
        if filter is None:
            ids = self._read(lambda view: view.ids())
        else:
            conditions = parsed(filter)
            ids = self._read(lambda view: view.ids(view.allowed(conditions)))
        # No view is held while the caller works: compacting and adding go on.
        blocks = range(0, len(ids), ADD_DOCUMENTS)
        return (document for start in blocks for document in self.get(ids[start : start + ADD_DOCUMENTS]))

    def get(self, ids: Sequence[str]) -> list[Document]:
        """The documents of these ids, in order; unknown ids are passed over."""
        if isinstance(ids, str):
            raise InvalidInputError(f"ids is the str {ids!r}; expected a list of ids, such as [{ids!r}].")
        return self._read(lambda view: view.documents(list(view.rows_of(ids).values())))

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        mode: SearchMode = "jacolbert",
        weight: float | None = None,
        filter: GivenFilter | None = None,
        exact: bool = False,
        highlight: bool = False,
        abstain: bool = False,
    ) -> list[Hit]:
        """The documents that answer a query best.

        Args:
            query: any text; [MASK]s are added by the model's rule.
            k: how many, at least 1.
            mode: "jacolbert" finds by token embeddings, "bm25" by the words of full-text search, "hybrid" by
                both (see `jacolbert_rag.config.LexicalConfig`).
            weight: of full-text search in hybrid search, from 0 to 1, in place of the index's setting.
            filter: what documents must be to be found: conditions on metadata, such as
                {"lang": "ja", "year": {"$gte": 2020}} or a `jacolbert_rag.index.filters.Filter`, which may
                name ids, too; or a function of a `Document`, which is asked of every one and so takes long. A
                title is the field "title", unless the metadata has one.
            exact: score every document instead of the candidates. A small index always does.
            highlight: tell in `Hit.highlight` which characters answered.
            abstain: return nothing where the best hit's confidence is below the threshold of `calibrate`.

        Returns:
            min(k, documents that may be found) hits, best first; by full-text search only those that share
            a term with the query.

        Raises:
            InvalidInputError: the query has no text, k is below 1, the weight is not from 0 to 1 or the mode
                not hybrid, the mode or a filter's operator is unknown, a condition cannot be asked of what is
                stored, a filter's function is async, yields or failed (what it raised is the cause), or the
                index was not calibrated.
        """
        return self.search_many(
            [query],
            k,
            mode=mode,
            weight=weight,
            filter=filter,
            exact=exact,
            highlight=highlight,
            abstain=abstain,
        )[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        mode: SearchMode = "jacolbert",
        weight: float | None = None,
        filter: GivenFilter | None = None,
        exact: bool = False,
        highlight: bool = False,
        abstain: bool = False,
    ) -> list[list[Hit]]:
        """`search` for many queries; encoded in batches, and scored in batches where search is exact."""
        if isinstance(queries, str):
            raise InvalidInputError("queries is one str; expected a list. For one query there is `search`.")
        _check_k(k)
        _check_mode(mode)
        if not len(queries):
            return []
        settings = _weighted(self.settings, mode, weight)
        conditions = parsed(filter) if filter is not None else None
        asked = self._questions(queries, embed=mode != "bm25" or abstain)

        def work(view: View) -> list[list[Hit]]:
            allowed = view.allowed(conditions) if conditions is not None else None
            least = _threshold(view, mode) if abstain else 0.0
            found = find(view, asked, k, settings, mode=mode, exact=exact, allowed=allowed)
            hits = [_hits(view, each) if _answers(each, least) else [] for each in found]
            if not highlight:
                return hits
            return [self._highlighted(view, *pair) for pair in zip(asked, hits, strict=True)]

        return self._read(work)

    def _questions(self, queries: Sequence[str], *, embed: bool) -> list[Question]:
        embedded = self.encoder.queries(list(queries)) if embed else [None] * len(queries)
        for query in queries if not embed else ():
            if not isinstance(query, str) or not has_text(query):
                raise InvalidInputError(f"The query {query!r:.80} has no text; expected a question or words.")
        terms = self._index.terms
        return [
            Question(query, embeddings, tuple(terms.spans(query)))
            for query, embeddings in zip(queries, embedded, strict=True)
        ]

    def highlight(self, query: str, hits: Sequence[Hit]) -> list[Hit]:
        """These hits with `Hit.highlight`: which characters of each answered a query.

        Args:
            query: any text.
            hits: of `search` or `rerank`. Documents that are not in the index as they are in the hit are
                encoded for it.

        Raises:
            InvalidInputError: the query has no text.
        """
        (question,) = self._questions([query], embed=True)
        return self._read(lambda view: self._highlighted(view, question, hits))

    def _highlighted(self, view: View, question: Question, hits: Sequence[Hit]) -> list[Hit]:
        tokenizer, terms = self.encoder.tokenizer, self._index.terms
        query_spans = tokenizer.query_spans(question.text)
        # Each text is read once, for its terms and for its tokens.
        read = [
            (
                *terms.places(passage, tokenizer.document_head, question.telling, question.sought),
                tokenizer.kept_spans(passage),
            )
            for passage in (hit.document.passage for hit in hits)
        ]
        spans = [each for _, _, each in read]
        similarities: list[FloatArray | None] = [None] * len(hits)
        if question.embeddings is not None:
            tokens = self._tokens(view, hits, spans)
            known = [i for i, each in enumerate(tokens) if each is not None]
            found = similarities_of(question.embeddings, [each for each in tokens if each is not None])
            for i, each in zip(known, found, strict=True):
                similarities[i] = each
        shown = []
        for hit, (words, places, kept), similar in zip(hits, read, similarities, strict=True):
            made = highlight(
                query=question.text,
                query_spans=query_spans,
                query_terms=question.terms,
                document=hit.document,
                document_spans=kept,
                similarities=similar,
                document_terms=places,
                document_words=words,
            )
            shown.append(replace(hit, highlight=made))
        return shown

    def _tokens(self, view: View, hits: Sequence[Hit], spans: Sequence[IntArray]) -> list[TokenArray | None]:
        """One token embedding for each span of each hit; None for a document without text.

        Documents that are not stored as they are in the hits are encoded, and so are those of which it is
        not known where pooling put their tokens.
        """
        rows = view.rows_of([hit.id for hit in hits])
        stored = {document.id: document.passage for document in view.documents(list(rows.values()))}
        same = {hit.id: rows[hit.id] for hit in hits if stored.get(hit.id) == hit.document.passage}
        by_row = view.tokens(list(same.values()))
        found = [by_row.get(same[hit.id]) if hit.id in same else None for hit in hits]
        fresh = [
            i
            for i, (hit, each, tokens) in enumerate(zip(hits, spans, found, strict=True))
            if (tokens is None or len(tokens) != len(each)) and has_text(hit.document.passage)
        ]
        encoded = self.encoder.documents([hits[i].document.passage for i in fresh]) if fresh else ()
        for i, tokens in zip(fresh, encoded, strict=True):
            found[i] = tokens
        return found

    def calibrate(
        self,
        n: int = N_SENTENCES,
        *,
        quantile: float = QUANTILE,
        seed: int = 12345,
        progress: Progress = False,
    ) -> Calibration:
        """Find in the corpus below which confidence nothing answers, for `search(abstain=True)` in any mode.

        Sentences of stored documents are asked as if the document that each is from, and every other that
        has the sentence, were not there. The thresholds are stored with the index; find them anew where the
        corpus has become another.

        Args:
            n: sentences to ask, of as many documents; at least 20.
            quantile: of such questions that are refused. The higher, the more questions without an answer
                are refused, and the more with one.
            seed: of the choice of sentences.
            progress: show a bar on standard error; a function is called with how many documents were done.

        Raises:
            InvalidInputError: there are too few documents, or an argument is out of its range.
            IndexWriteError: the folder could not be written.
        """
        check(n, quantile, seed)
        rng = np.random.default_rng(seed)
        chosen = self._sentences(n, rng)
        if len(chosen) < LEAST_SENTENCES:
            raise InvalidInputError(
                f"The index gave {len(chosen)} sentences to calibrate with; expected at least "
                f"{LEAST_SENTENCES}, from as many documents. Add documents first, or set a threshold of your "
                'own on hit.scores["confidence"].'
            )
        modes: tuple[SearchMode, ...] = get_args(SearchMode)
        found: dict[SearchMode, list[float]] = {mode: [] for mode in modes}
        with progress_bar(len(chosen), show=progress) as advance:
            for question, (own, _) in zip(
                self._questions([sentence for _, sentence in chosen], embed=True), chosen, strict=True
            ):
                for mode in modes:
                    work = partial(self._best_without, question=question, own=own, mode=mode)
                    found[mode].append(self._read(work))
                advance(1)
        calibration = Calibration(
            {mode: threshold(confidences, quantile) for mode, confidences in found.items()},
            quantile,
            len(chosen),
            len(self),
            {"lexical": self.settings.lexical.to_json(), "confidence": CONFIDENCE_VERSION},
        )
        with self._writing:
            self._index.write_state(calibration=calibration.to_json())
        return calibration

    def _sentences(self, n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Sentences of at most n documents, drawn at random, with the id of what each is from."""
        ids = self._read(lambda view: view.ids())
        order = rng.permutation(len(ids))
        chosen: list[tuple[str, str]] = []
        for start in range(0, len(order), ADD_DOCUMENTS):
            for document in self.get([ids[i] for i in order[start : start + ADD_DOCUMENTS]]):
                if len(chosen) == n:
                    return chosen
                sentence = question_of(document, rng)
                if sentence is not None and has_text(sentence):
                    chosen.append((parent_of(document) or document.id, sentence))
        return chosen

    def _best_without(self, view: View, question: Question, own: str, mode: SearchMode) -> float:
        """The confidence of the best hit in a corpus that lacks a question and the document it is from.

        0 where nothing is found.
        """
        gone = list(view.rows_of([own, *_chunks_of(view, own)]).values())
        for _ in range(MAX_COPIES):
            others = replace(view, snapshot=view.snapshot.without(gone))
            found = find(others, [question], K_COPIES, self.settings, mode=mode, exact=False, allowed=None)[0]
            # A framework's chunks overlap, and texts are stored twice: there the question is its own answer.
            same = [
                row
                for row, hit in zip(found.rows.tolist(), _hits(view, found), strict=True)
                if question.text in hit.document.passage
            ]
            if not same:
                break
            gone += same
        return float(found.figures["confidence"][0]) if len(found.rows) else 0.0

    @property
    def calibration(self) -> Calibration | None:
        """What `calibrate` found; None before."""
        return self._read(_calibration)

    def threshold(self, mode: SearchMode = "jacolbert") -> float | None:
        """Below which confidence nothing answers for `search(abstain=True)`; None before `calibrate`."""
        _check_mode(mode)
        found = self.calibration
        return found.thresholds[mode] if found is not None and _is_current(found) else None

    def is_calibration_due(self) -> bool:
        """Whether `calibrate` would find what is not known: the index has enough documents to ask, and had
        no threshold yet, or half as many documents when it was found.
        """
        found, n_documents = self.calibration, len(self)
        if found is not None and _is_current(found) and n_documents < 2 * found.n_documents:
            return False
        return n_documents >= LEAST_SENTENCES

    def _read(self, work: Callable[[View], T]) -> T:
        """What some work finds in the newest state of the index."""
        return self._ask(lambda index: index.read(work))

    def _ask(self, work: Callable[[Index], T]) -> T:
        """What some work finds in the index, which another thread may be moving."""
        while True:
            index = self._index
            try:
                return work(index)
            except (InvalidInputError, IndexFolderError):
                if index is self._index:
                    raise

    def rerank(self, query: str, documents: Iterable[str | Document], k: int | None = None) -> list[Hit]:
        """Order documents that came from elsewhere; nothing is stored.

        Args:
            query: any text.
            documents: texts or `Document` objects.
            k: how many to keep; None keeps all.

        Returns:
            min(k, number of documents) hits, best first; of equal scores the earlier document is first.
            A document without text scores the least there is, minus the query's tokens.
        """
        if k is not None:
            _check_k(k)
        given = [d if isinstance(d, Document) else Document.from_text(d) for d in _listed(documents)]
        if not given:
            return []
        embedded = self.encoder.queries([query])[0]
        with_text = [i for i, document in enumerate(given) if has_text(document.passage)]
        passages = self.encoder.documents([given[i].passage for i in with_text])
        scores = np.full(len(given), -len(embedded), dtype=np.float32)
        scores[with_text] = maxsim(embedded, pool_documents(passages, self.settings.pooling))
        order = np.argsort(-scores, kind="stable")[:k]
        near = similarity(scores, len(embedded))
        return [
            Hit(given[i], float(scores[i]), {"maxsim": float(scores[i]), "similarity": float(near[i])})
            for i in order
        ]

    def extra(self, key: str) -> Any:
        """What `set_extra` has stored; None where it has not."""
        return self._read(lambda view: view.state().get(f"extra.{key}"))

    def set_extra(self, key: str, value: Any) -> None:
        """Keep something of the caller's with the index, such as where its documents are from.

        Args:
            key: any name.
            value: plain JSON; None forgets it.

        Raises:
            IndexWriteError: the folder could not be written.
        """
        with self._writing:
            self._index.write_state(**{f"extra.{key}": value})

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Put the index into a folder, where it is live from now on.

        An index that is live elsewhere stays there, and the folder gets a copy.

        Args:
            path: of the folder, which is new, empty, or holds an index without documents.
            overwrite: replace an index with documents, too.

        Raises:
            InvalidInputError: the folder holds something that is no index, or an index with documents that
                may not be overwritten.
        """
        folder = Path(path).expanduser().resolve()
        with self._writing:
            self._index.check_open()
            if folder == self._index.folder:
                return
            if not overwrite:
                _check_empty(folder)
            self._index.copy_to(folder)
            if self._cleanup is not None:
                former, cleanup = self._index, self._cleanup
                live = Index.open(folder, device=former.device)
                live.settings = former.settings
                self._index, self._cleanup = live, None
                former.close()  # searches that are under way end by themselves
                cleanup()

    def copy_to(self, path: str | Path) -> None:
        """Copy the index to a folder, and stay where it is. An index in the folder is replaced.

        Raises:
            InvalidInputError: the folder holds something that is no index.
        """
        with self._writing:
            self._index.check_open()
            self._index.copy_to(Path(path).expanduser().resolve())

    def refresh(self) -> bool:
        """Read what other processes have written, now rather than at the next search.

        Every call sees the newest committed state without this; it only moves the work of reading it to
        a moment of the caller's choice.

        Returns:
            Whether another process has written since this retriever searched or wrote last.
        """
        return self._ask(lambda index: index.refresh())

    def compact(self) -> None:
        """Give back the room that deleted and replaced documents take. Searches go on meanwhile."""
        with self._writing:
            self._index.compact()

    def verify(self) -> list[Damage]:
        """Read every byte of the index, and tell what is not what was written; an empty list where all is."""
        return self._ask(lambda index: index.verify())

    def rebuild(self) -> None:
        """Make anew what is derived: pooled vectors, posting lists and manifest.json."""
        with self._writing:
            self._index.rebuild()

    def close(self) -> None:
        """Close the index; a temporary one is removed."""
        with self._writing:
            self._index.close()
            if self._cleanup is not None:
                self._cleanup()
        self.encoder.close()

    def as_langchain(self, k: int = 4, **options: Unpack[LangChainOptions]) -> LangChainRetriever:
        """This index as a LangChain retriever; options are its attributes, such as `mode` and `filter`."""
        from jacolbert_rag.langchain import JaColBERTRetriever as LangChainRetriever

        return LangChainRetriever(engine=self, k=k, **options)

    def as_llama_index(self, k: int = 2, **options: Unpack[LlamaIndexOptions]) -> LlamaIndexRetriever:
        """This index as a LlamaIndex retriever; options are its attributes, such as `mode` and `filters`."""
        from jacolbert_rag.llama_index import JaColBERTRetriever as LlamaIndexRetriever

        return LlamaIndexRetriever(engine=self, similarity_top_k=k, **options)


def _encoded_parts(
    parts: Mapping[str, Sequence[Document]], wanted: set[str]
) -> Iterator[tuple[str, list[Document]]]:
    """Each document that has parts to encode, and those parts."""
    for id, each in parts.items():
        if encoded := [part for part in each if part.id in wanted]:
            yield id, encoded


def _former(view: View, parts: Mapping[str, Sequence[Document]]) -> list[str]:
    """Ids of what is stored of these documents and no longer part of them: chunks, or the whole."""
    stale: list[str] = []
    for id, current in parts.items():
        kept = {part.id for part in current}
        stale += [former for former in (id, *_chunks_of(view, id)) if former not in kept]
    return list(view.rows_of(stale))


def _among(ids: set[str], parts: Mapping[str, Sequence[Document]]) -> list[Document]:
    return [part for each in parts.values() for part in each if part.id in ids]


def _passage_of(document: Document | None) -> str | None:
    return document.passage if document is not None else None


def _hits(view: View, found: Found) -> list[Hit]:
    documents = view.documents(found.rows)
    if len(documents) != len(found.rows):
        raise IndexCorruptError(
            "Some of the documents that were found have no text in the index, so a file is damaged. verify() "
            "tells which."
        )
    figures = {name: values.tolist() for name, values in found.figures.items()}
    return [
        Hit(document, score, {name: values[i] for name, values in figures.items()})
        for i, (document, score) in enumerate(zip(documents, found.scores.tolist(), strict=True))
    ]


def _answers(found: Found, least: float) -> bool:
    """Whether the best hit reaches a confidence."""
    return not least or bool(len(found.rows) and found.figures["confidence"][0] >= least)


def _calibration(view: View) -> Calibration | None:
    stored = view.state().get("calibration")
    return Calibration.from_json(stored) if stored is not None else None


def _is_current(calibration: Calibration) -> bool:
    """Whether the thresholds are of confidences as they are now."""
    return calibration.made_with.get("confidence") == CONFIDENCE_VERSION


def _threshold(view: View, mode: SearchMode) -> float:
    calibration = _calibration(view)
    if calibration is None:
        raise InvalidInputError(
            "abstain needs a threshold, and this index has none yet. Call calibrate() once, after the "
            "documents were added."
        )
    if not _is_current(calibration):
        raise InvalidInputError(
            "The thresholds of this index were found by a version of the library that had another "
            "confidence, so they mean nothing here. Call calibrate() once."
        )
    return calibration.thresholds[mode]


def _check_mode(mode: str) -> None:
    if mode not in get_args(SearchMode):
        raise InvalidInputError(f"mode is {mode!r}; expected one of {', '.join(get_args(SearchMode))}.")


def _weighted(settings: IndexSettings, mode: SearchMode, weight: float | None) -> IndexSettings:
    """The settings with another weight of full-text search."""
    if weight is None:
        return settings
    if mode != "hybrid":
        raise InvalidInputError(
            f'weight is of hybrid search, and mode is {mode!r}. Pass mode="hybrid", or leave weight out.'
        )
    return replace(settings, lexical=replace(settings.lexical, weight=weight))


def _check_empty(folder: Path) -> None:
    """Refuse a folder whose index has documents.

    Raises:
        InvalidInputError: it has.
    """
    kind = layout.kind(folder)
    n_documents: int | None = None
    if kind == layout.Kind.INDEX:
        try:
            index = Index.open(folder)
            try:
                n_documents = index.read(lambda view: view.snapshot.n_live)
            finally:
                index.close()
        except IndexFolderError:  # damaged, or of a newer version: what it holds is not known
            pass
    elif kind != layout.Kind.FORMER:  # to look into one would put it into the newest format
        return
    if n_documents == 0:
        return
    size = f"an index of {n_documents:,} documents" if n_documents is not None else "an index"
    raise InvalidInputError(
        f"{folder} holds {size} already. To go on with it, call JaColBERTRetriever.open(path); to replace "
        "it, save(path, overwrite=True)."
    )


def _remove_folder(folder: Path, process: int) -> None:
    """Remove the folder of an unsaved index, but not from a process forked from the one that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _scoring_device(encoder: Encoder) -> str:
    """Where documents are scored: the encoder's GPU where it is NVIDIA's, else the CPU."""
    device = str(encoder.device)
    return device if device.startswith("cuda") else "cpu"


def _chunks_of(view: View, id: str) -> list[str]:
    """Ids of the stored chunks of a document."""
    named = [key for key in view.ids_with_prefix(f"{id}#") if is_chunk_of(key, id)]
    # The form of an id is no proof: a document of its own may have one like it.
    found = view.documents(list(view.rows_of(named).values()))
    return [chunk.id for chunk in found if parent_of(chunk) == id]


def _overrides(
    encoder: EncoderOverrides | None, query_length: str | None, document_length: int | None
) -> EncoderOverrides:
    """The caller's wishes in one place; the two that most users know have arguments of their own."""
    if encoder is not None and not isinstance(encoder, Mapping):
        raise InvalidInputError(
            f"encoder is {encoder!r}; expected a dict of settings, such as {{'marker_mode': 'dot'}}."
        )
    wishes: EncoderOverrides = {**(encoder or {})}
    if query_length is not None:
        wishes["query_length"] = query_length
    if document_length is not None:
        wishes["document_length"] = document_length
    return wishes


@contextmanager
def _settings_of(path: Path) -> Iterator[None]:
    """Reading the settings in an index's manifest; those that are unknown here tell of another version."""
    try:
        yield
    except InvalidInputError as error:
        raise IndexMismatchError(
            f"The settings of the index {path} are not those of this version: {error} Update "
            "jacolbert_rag, or build the index anew."
        ) from error


def _is_made_by(manifest: Mapping[str, Any], now: checkpoint.Checkpoint) -> bool:
    """Whether an index was made by this model, read by these settings."""
    if manifest["fingerprint"] == now.fingerprint:
        return True
    former = manifest.get("former")
    if former is None or former["fingerprint"] != manifest["fingerprint"]:
        return False
    made = EncoderConfig.from_json(manifest["encoder"]).to_json() | {"query_length": None}
    return made == now.config.to_json() | {"query_length": None} and manifest[
        "fingerprint"
    ] == checkpoint.former_fingerprint(now.folder, former["encoder"])


def _mismatch(path: Path, manifest: Mapping[str, Any], now: checkpoint.Checkpoint) -> str:
    """Why an index refuses an encoder, and what to do."""
    with _settings_of(path):
        made = EncoderConfig.from_json(manifest["encoder"]).to_json()
    current = now.config.to_json()
    differing = [
        f"{key} {made[key]!r} and not {current[key]!r}"
        for key in made
        if key != "query_length" and made[key] != current[key]
    ]
    if differing:
        return (
            f"The index {path} was built with {'; '.join(differing)}, as the loaded encoder has. Open it "
            "with JaColBERTRetriever.load, which reads text as the index was made, or build it anew."
        )
    why = (
        f"The index {path} was built with the model {manifest['model']!r} "
        f"(fingerprint {manifest['fingerprint'][:8]}), but the loaded encoder is {now.name!r} "
        f"({now.fingerprint[:8]}). Load that model, or build the index anew with this one."
    )
    if manifest.get("library") != __version__:
        why += (
            f" It was made by version {manifest.get('library')} of this library, which may have read text "
            f"otherwise than {__version__} does."
        )
    return why


def _as_documents(documents: Iterable[str | Document]) -> tuple[list[str], list[Document]]:
    """The id of each given document, and the documents, in order; a text given twice is there once.

    Raises:
        InvalidInputError: a document cannot be stored or has no text.
    """
    ids, distinct = [], []
    from_text: set[str] = set()  # ids that are a text's content
    for item in _listed(documents):
        document = item if isinstance(item, Document) else Document.from_text(item)
        ids.append(document.id)
        if document.id not in from_text:
            distinct.append(document)
        if not isinstance(item, Document):
            from_text.add(document.id)
    check_documents(distinct)
    for document in distinct:
        if not has_text(document.passage):
            raise InvalidInputError(
                f"The document {document.id!r} has no text: {document.passage[:20]!r} is empty, or only "
                "spaces and control characters. Leave such documents out, for instance blank pages of a PDF."
            )
    return ids, distinct


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


def _built(settings: IndexSettings) -> str:
    """What an index is built with, in words."""
    return f"{settings.pooling}, {settings.store} and fold={settings.lexical.fold}"


def _check_settings(settings: IndexSettings | None) -> None:
    if settings is not None and not isinstance(settings, IndexSettings):
        raise InvalidInputError(
            f"settings is {settings!r}; expected an IndexSettings, such as "
            "IndexSettings(search=SearchConfig(exact_below=0))."
        )


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidInputError(f"k is {k!r}; expected a whole number of hits, at least 1.")
