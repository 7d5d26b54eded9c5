"""jacolbert_rag.langchain: the framework's own suites, and what they leave out."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterator
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnablePassthrough
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests
from pydantic import ValidationError

from jacolbert_rag import Document as NativeDocument
from jacolbert_rag import IndexSettings, InvalidInputError, SearchConfig
from jacolbert_rag import JaColBERTRetriever as Engine
from jacolbert_rag.langchain import JaColBERTReranker, JaColBERTRetriever, JaColBERTVectorStore
from tests.conftest import import_error, run_python

QUERY = "日本で一番大きい湖はどこですか？"
DOCUMENTS = [
    Document(
        "琵琶湖は滋賀県にある、日本で最も大きな湖です。", id="湖-1", metadata={"分類": "地理", "頁": 12}
    ),
    Document(
        "富士山の標高は３７７６メートルで、日本一高い。", id="山-1", metadata={"分類": "地理", "頁": 34}
    ),
    Document(
        "経費の精算は「翌月5日」までに申請してください。", id="規程-7", metadata={"部署": ["経理", "総務"]}
    ),
    Document("サーバーを再起動するときは、情報システム部に連絡する。", metadata={"部署": ["情シス"]}),
]


@pytest.fixture(params=["exact", "candidates"])
def engine(tiny_model: Path, request: pytest.FixtureRequest) -> Engine:
    """An empty index that is searched whole, or through candidates however small it is."""
    search = SearchConfig() if request.param == "exact" else SearchConfig(exact_below=0)
    return Engine.from_pretrained(tiny_model, settings=IndexSettings(search=search))


@pytest.fixture
def filled(retriever: Engine) -> JaColBERTRetriever:
    """A LangChain retriever over DOCUMENTS."""
    filled = JaColBERTRetriever(engine=retriever, k=2)
    filled.add_documents(DOCUMENTS)
    return filled


def meet(engine: Engine, method: str, n: int, monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Make calls of a method wait until n of them run at once; the threads they ran in."""
    barrier, threads, call = threading.Barrier(n), [], getattr(engine, method)

    def waiting(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread())
        barrier.wait(timeout=10)
        return call(*args, **kwargs)

    monkeypatch.setattr(engine, method, waiting)
    return threads


class TestRetrieverContract(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _fill(self, engine: Engine) -> Iterator[None]:
        self.engine = engine
        engine.add([document.page_content for document in DOCUMENTS])
        yield
        del self.engine  # pytest keeps this object to the end, when voyager would call its index leaked

    @property
    def retriever_constructor(self) -> type[JaColBERTRetriever]:
        return JaColBERTRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"engine": self.engine}

    @property
    def retriever_query_example(self) -> str:
        return QUERY


class TestVectorStoreContract(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, engine: Engine) -> JaColBERTVectorStore:
        return JaColBERTVectorStore(engine)


class TestRetriever:
    def test_gives_the_engines_hits_with_ids_scores_and_metadata(self, filled: JaColBERTRetriever):
        hits = filled.engine.search(QUERY, 4)
        found = filled.invoke(QUERY, k=4)
        assert [d.id for d in found] == [h.id for h in hits]
        assert [d.page_content for d in found] == [h.text for h in hits]
        assert [d.metadata for d in found] == [{**h.metadata, "relevance_score": h.score} for h in hits]
        assert {d.id for d in found} >= {"湖-1", "山-1", "規程-7"}

    @pytest.mark.parametrize(("score_key", "keys"), [(None, set()), ("点数", {"点数"})])
    def test_score_key_is_a_choice(self, retriever: Engine, score_key: str | None, keys: set[str]):
        found = JaColBERTRetriever(engine=retriever, score_key=score_key)
        found.add_texts(["時々、カフェで本を読む。"])
        assert set(found.invoke(QUERY)[0].metadata) == keys

    async def test_k_of_a_call_reaches_every_way_of_calling(self, filled: JaColBERTRetriever):
        assert len(filled.invoke(QUERY)) == 2
        assert len(filled.invoke(QUERY, k=3)) == 3
        assert len(await filled.ainvoke(QUERY, k=1)) == 1
        assert [len(found) for found in filled.batch([QUERY, "標高"], k=3)] == [3, 3]
        assert [len(found) for found in await filled.abatch([QUERY, "標高"], k=4)] == [4, 4]

    async def test_core_forwards_verbose_and_typos_are_errors(self, filled: JaColBERTRetriever):
        assert len(filled.invoke(QUERY, verbose=True)) == 2
        assert len(await filled.ainvoke(QUERY, verbose=True, k=1)) == 1
        with pytest.raises(TypeError, match="kk"):
            filled.invoke(QUERY, kk=1)
        with pytest.raises(TypeError, match="kk"):
            await filled.ainvoke(QUERY, kk=1)

    @pytest.mark.parametrize("k", [0, -1])
    def test_k_below_one_is_refused(self, filled: JaColBERTRetriever, k: int):
        with pytest.raises(InvalidInputError, match="at least 1"):
            filled.invoke(QUERY, k=k)
        with pytest.raises(ValidationError, match="at least 1"):
            JaColBERTRetriever(engine=filled.engine, k=k)
        with pytest.raises(ValidationError, match="at least 1"):
            filled.k = k

    @pytest.mark.parametrize("given", ["索引", None, object()])
    def test_what_is_no_engine_is_refused(self, given: Any):
        for make in (JaColBERTRetriever, JaColBERTReranker):
            with pytest.raises(ValidationError, match=r"expected a jacolbert_rag\.JaColBERTRetriever"):
                make(engine=given)
        with pytest.raises(InvalidInputError, match=r"expected a jacolbert_rag\.JaColBERTRetriever"):
            JaColBERTVectorStore(given)

    def test_adapters_give_their_engine(self, filled: JaColBERTRetriever):
        store = JaColBERTVectorStore(filled)  # type: ignore[arg-type]
        assert JaColBERTRetriever(engine=store).engine is store.engine is filled.engine
        assert JaColBERTReranker(engine=store).engine is filled.engine

    def test_unknown_constructor_arguments_are_refused(self, retriever: Engine, tiny_model: Path):
        with pytest.raises(ValidationError, match="top_k"):
            JaColBERTRetriever(engine=retriever, top_k=3)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="devise"):
            JaColBERTRetriever.from_texts(["京都"], model=tiny_model, devise="cpu")  # type: ignore[call-arg]

    async def test_ainvoke_searches_off_the_loop(
        self, filled: JaColBERTRetriever, monkeypatch: pytest.MonkeyPatch
    ):
        threads = meet(filled.engine, "search", 3, monkeypatch)
        found = await asyncio.gather(*(filled.ainvoke(QUERY, k=k) for k in (1, 2, 3)))
        assert [len(documents) for documents in found] == [1, 2, 3]
        assert threading.main_thread() not in threads

    def test_configurable_fields_keep_the_engine(self, filled: JaColBERTRetriever):
        configurable = filled.configurable_fields(k=ConfigurableField(id="k"))
        assert len(configurable.invoke(QUERY, {"configurable": {"k": 3}})) == 3
        assert len(configurable.invoke(QUERY)) == 2

    def test_traces_name_the_model_and_the_engine_stays_out_of_dumps(
        self, filled: JaColBERTRetriever, tiny_model: Path
    ):
        starts = []

        class Recorder(BaseCallbackHandler):
            def on_retriever_start(self, *args: Any, **kwargs: Any) -> None:
                starts.append(kwargs["metadata"])

        filled.invoke(QUERY, {"callbacks": [Recorder()]})
        assert starts[0]["ls_retriever_name"] == "jacolbert"
        assert starts[0]["ls_vector_store_provider"] == "voyager"
        assert starts[0]["ls_embedding_model"] == filled.engine.encoder.checkpoint.name
        assert "engine" not in filled.model_dump()
        assert "engine" not in repr(filled)

    def test_input_documents_are_never_changed(self, retriever: Engine):
        given = deepcopy(DOCUMENTS)
        wrapped = JaColBERTRetriever(engine=retriever)
        wrapped.add_documents(given)
        for found in wrapped.invoke(QUERY):
            found.metadata["分類"] = "書き換え"
        assert given == DOCUMENTS
        assert wrapped.invoke(QUERY, k=4)[0].metadata.get("分類") != "書き換え"

    def test_ids_come_from_the_argument_then_the_document_then_the_content(self, retriever: Engine):
        wrapped = JaColBERTRetriever(engine=retriever)
        derived = NativeDocument.from_text(DOCUMENTS[3].page_content, DOCUMENTS[3].metadata).id
        ids = wrapped.add_documents(DOCUMENTS, ids=["別名", None, None, None])
        assert ids == ["別名", "山-1", "規程-7", derived]
        assert len(retriever) == 4

    def test_the_same_text_without_an_id_is_stored_once(self, retriever: Engine):
        wrapped = JaColBERTRetriever(engine=retriever)
        text = "京都の金閣寺は、足利義満が建てた山荘を前身とする。"
        first = wrapped.add_texts([text, text])
        assert first[0] == first[1]
        assert wrapped.add_texts([text]) == first[:1]
        assert len(retriever) == 1
        wrapped.add_texts([text, text], [{"頁": 1}, {"頁": 2}])  # other metadata: other documents
        assert len(retriever) == 3

    def test_unchanged_documents_are_not_encoded_again(
        self, filled: JaColBERTRetriever, monkeypatch: pytest.MonkeyPatch
    ):
        encoded = []
        documents = filled.engine.encoder.documents_with_cuts
        monkeypatch.setattr(
            filled.engine.encoder,
            "documents_with_cuts",
            lambda texts, **kwargs: encoded.extend(texts) or documents(texts, **kwargs),
        )
        changed = Document("琵琶湖の面積は約670平方キロメートルだ。", id="湖-1")
        assert filled.add_documents([changed, *DOCUMENTS[1:]])[0] == "湖-1"
        assert encoded == [changed.page_content]

    def test_what_cannot_be_stored_is_refused(self, retriever: Engine):
        wrapped = JaColBERTRetriever(engine=retriever)
        with pytest.raises(InvalidInputError, match="expected a list of 2"):
            wrapped.add_texts(["琵琶湖", "富士山"], ids=["湖-1"])
        with pytest.raises(InvalidInputError, match="metadatas"):
            wrapped.add_texts(["琵琶湖", "富士山"], [{}])
        with pytest.raises(InvalidInputError, match="one str"):
            wrapped.add_texts("琵琶湖")
        with pytest.raises(InvalidInputError, match="add_texts"):
            wrapped.add_documents(["琵琶湖"])  # type: ignore[list-item]
        with pytest.raises(InvalidInputError, match="twice"):
            wrapped.add_texts(["琵琶湖", "富士山"], ids=["同じ", "同じ"])
        with pytest.raises(InvalidInputError, match="not JSON"):
            wrapped.add_texts(["琵琶湖"], [{"日時": object()}])
        assert len(retriever) == 0

    def test_constructors_fill_an_index(self, tiny_model: Path):
        texts = ["琵琶湖は湖である。", "富士山は山である。"]
        by_texts = JaColBERTRetriever.from_texts(texts, [{"頁": 1}, {"頁": 2}], model=tiny_model, k=1)
        assert len(by_texts.invoke(QUERY)) == 1
        settings = IndexSettings(search=SearchConfig(exact_below=0))
        by_documents = JaColBERTRetriever.from_documents(
            DOCUMENTS, model=tiny_model, score_key=None, settings=settings
        )
        assert by_documents.engine.settings == settings
        assert [d.metadata for d in by_documents.invoke(QUERY) if d.id == "規程-7"] == [DOCUMENTS[2].metadata]

    def test_saved_and_loaded_it_answers_the_same(
        self, filled: JaColBERTRetriever, tiny_model: Path, tmp_path: Path
    ):
        before = filled.invoke(QUERY, k=4)
        filled.save(tmp_path / "索引")
        loaded = JaColBERTRetriever.load(tmp_path / "索引", k=4)
        assert loaded.invoke(QUERY) == before
        again = JaColBERTRetriever.from_pretrained(tiny_model, index=tmp_path / "索引", k=4)
        assert again.invoke(QUERY) == before

    def test_titles_of_native_documents_join_the_metadata(self, retriever: Engine):
        retriever.add([NativeDocument("b", "滋賀県にある湖。", {"頁": 3}, title="琵琶湖")])
        found = JaColBERTRetriever(engine=retriever, score_key=None).invoke(QUERY)
        assert found == [Document("滋賀県にある湖。", id="b", metadata={"title": "琵琶湖", "頁": 3})]

    def test_a_title_goes_both_ways(self, retriever: Engine, monkeypatch: pytest.MonkeyPatch):
        native = NativeDocument("b", "滋賀県にある湖。", {"頁": 3}, title="琵琶湖")
        retriever.add([native])
        store, wrapped = JaColBERTVectorStore(retriever), JaColBERTRetriever(engine=retriever)
        before = store.similarity_search_with_score(QUERY)
        found = store.get_by_ids(["b"])
        monkeypatch.setattr(
            retriever.encoder,
            "blocks",
            lambda texts, **kwargs: [pytest.fail(f"encoded {text}") for text in texts],
        )
        assert wrapped.add_documents(found) == ["b"]
        monkeypatch.undo()
        assert found == store.get_by_ids(["b"])
        assert retriever.get(["b"])[0].passage == native.passage
        assert store.similarity_search_with_score(QUERY) == before

    def test_titles_of_users_are_read_and_kept(self, retriever: Engine):
        store = JaColBERTVectorStore(retriever)
        given = [
            Document("滋賀県にある湖。", metadata={"title": "琵琶湖"}),
            Document("静岡県の山。", id="山", metadata={"title": 3}),
            Document("北にある島。", id="島", metadata={"title": "　"}),
        ]
        ids = store.add_documents(given)
        assert ids[0] == NativeDocument.from_text(given[0].page_content, given[0].metadata).id  # as ever
        assert [d.passage for d in retriever.get(ids)] == [
            "琵琶湖 滋賀県にある湖。",
            "静岡県の山。",
            "北にある島。",
        ]
        assert [d.metadata for d in store.get_by_ids(ids)] == [d.metadata for d in given]
        assert [d.id for d in store.similarity_search(QUERY, filter={"title": "琵琶湖"})] == ids[:1]

    def test_a_chain_answers_from_what_was_retrieved(self, filled: JaColBERTRetriever):
        prompts = []

        class Recorder(BaseCallbackHandler):
            def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
                prompts.append(messages[0][0].content)

        def join(documents: list[Document]) -> str:
            return "\n".join(document.page_content for document in documents)

        chain = (
            {"context": filled | join, "question": RunnablePassthrough()}
            | ChatPromptTemplate.from_template("資料:\n{context}\n\n質問: {question}")
            | FakeListChatModel(responses=["琵琶湖です。"])
            | StrOutputParser()
        )
        assert chain.invoke(QUERY, {"callbacks": [Recorder()]}) == "琵琶湖です。"
        context = "\n".join(hit.text for hit in filled.engine.search(QUERY, 2))
        assert prompts == [f"資料:\n{context}\n\n質問: {QUERY}"]

    def test_as_langchain_is_the_same_object(self, retriever: Engine):
        wrapped = retriever.as_langchain(k=3)
        assert isinstance(wrapped, JaColBERTRetriever)
        assert (wrapped.engine, wrapped.k) == (retriever, 3)
        options: Any = {"mode": "hybrid", "filter": {"頁": 1}, "highlight": True, "score_key": None}
        chosen = retriever.as_langchain(2, **options)
        assert {name: getattr(chosen, name) for name in options} == options
        with pytest.raises(ValidationError, match="fitler"):
            retriever.as_langchain(fitler={})  # type: ignore[call-arg]

    async def test_adds_off_the_loop(self, retriever: Engine, monkeypatch: pytest.MonkeyPatch):
        wrapped = JaColBERTRetriever(engine=retriever)
        threads = meet(retriever, "upsert", 2, monkeypatch)
        added = await asyncio.gather(
            wrapped.aadd_documents(DOCUMENTS[:1]), wrapped.aadd_texts(["湖"], [{"頁": 1}], ids=["a"])
        )
        assert (added, threading.main_thread() in threads) == ([["湖-1"], ["a"]], False)


class TestVectorStore:
    @pytest.fixture
    def store(self, engine: Engine) -> JaColBERTVectorStore:
        store = JaColBERTVectorStore(engine)
        store.add_documents(DOCUMENTS)
        return store

    def test_index_adds_skips_updates_and_cleans(self, engine: Engine):
        store, manager = JaColBERTVectorStore(engine), InMemoryRecordManager("jacolbert")
        manager.create_schema()

        def sync(documents: list[Document], cleanup: Any) -> tuple[int, int, int, int]:
            done = index(
                documents, manager, store, cleanup=cleanup, source_id_key="出典", key_encoder="blake2b"
            )
            return done["num_added"], done["num_updated"], done["num_skipped"], done["num_deleted"]

        handbook = [Document(f"就業規則の第{i}条です。", metadata={"出典": f"規則{i}"}) for i in range(3)]
        changed = Document("就業規則の第1条を改めました。", metadata={"出典": "規則1"})
        assert sync(handbook, "incremental") == (3, 0, 0, 0)
        assert sync(handbook, "incremental") == (0, 0, 3, 0)
        assert sync([changed], "incremental") == (1, 0, 0, 1)
        assert {d.text for d in engine} == {
            handbook[0].page_content,
            handbook[2].page_content,
            changed.page_content,
        }
        assert sync([changed], "full") == (0, 0, 1, 2)
        assert [d.page_content for d in store.similarity_search(QUERY)] == [changed.page_content]

    async def test_aindex_fills_and_empties(self, engine: Engine):
        store, manager = JaColBERTVectorStore(engine), InMemoryRecordManager("jacolbert")
        await manager.acreate_schema()
        done = await aindex(DOCUMENTS, manager, store, cleanup="full", key_encoder="blake2b")
        assert (done["num_added"], len(engine)) == (4, 4)
        done = await aindex([], manager, store, cleanup="full", key_encoder="blake2b")
        assert (done["num_deleted"], len(engine)) == (4, 0)

    def test_scores_are_the_engines_and_stay_out_of_the_metadata(self, store: JaColBERTVectorStore):
        hits = store.engine.search(QUERY, 3)
        found = store.similarity_search_with_score(QUERY, 3)
        assert [(d.id, d.metadata, score) for d, score in found] == [
            (h.id, h.metadata, h.score) for h in hits
        ]
        assert store.similarity_search(QUERY, 3) == [document for document, _ in found]

    @pytest.mark.parametrize("query", [QUERY, QUERY * 3], ids=["32-tokens", "more"])
    async def test_relevance_is_the_engines_confidence(self, store: JaColBERTVectorStore, query: str):
        expected = [hit.scores["confidence"] for hit in store.engine.search(query, 4)]
        found = store.similarity_search_with_relevance_scores(query, 4)
        assert [score for _, score in found] == expected
        assert all(0 <= score <= 1 for _, score in found)
        assert await store.asimilarity_search_with_relevance_scores(query, 4) == found

    async def test_a_score_threshold_keeps_the_confident(self, store: JaColBERTVectorStore):
        found = store.similarity_search_with_relevance_scores(QUERY, 4)
        threshold = float(np.median([score for _, score in found]))
        wrapped = store.as_retriever(
            search_type="similarity_score_threshold", search_kwargs={"score_threshold": threshold, "k": 4}
        )
        expected = [document for document, score in found if score >= threshold]
        assert 0 < len(expected) < 4
        assert wrapped.invoke(QUERY) == expected
        assert await wrapped.ainvoke(QUERY) == expected

    async def test_as_retriever_takes_k(self, store: JaColBERTVectorStore):
        wrapped = store.as_retriever(search_kwargs={"k": 3})
        assert len(wrapped.invoke(QUERY)) == 3
        assert len(wrapped.invoke(QUERY, k=1, verbose=True)) == 1
        assert len(await wrapped.ainvoke(QUERY, k=2)) == 2

    def test_typos_are_refused(self, store: JaColBERTVectorStore):
        with pytest.raises(TypeError, match="fitler"):
            store.as_retriever(search_kwargs={"fitler": {"分類": "地理"}}).invoke(QUERY)
        with pytest.raises(TypeError, match="fitler"):
            store.similarity_search_with_relevance_scores(QUERY, fitler={"分類": "地理"})
        with pytest.raises(InvalidInputError, match="at least 1"):
            store.similarity_search(QUERY, k=0)

    async def test_delete_needs_ids(self, store: JaColBERTVectorStore):
        with pytest.raises(InvalidInputError, match="needs ids, or a filter"):
            store.delete()
        assert store.delete(["湖-1", "無い"]) is True
        assert await store.adelete(["湖-1"]) is True
        assert len(store.engine) == 3

    async def test_deletes_by_filter(self, store: JaColBERTVectorStore):
        assert store.delete(["湖-1", "規程-7", "無い"], filter={"分類": "地理"}) is True
        assert {d.id for d in store.engine} >= {"山-1", "規程-7"}
        assert len(store.engine) == 3
        assert await store.adelete(filter=lambda document: document.metadata.get("頁") == 34) is True
        assert store.delete(filter={"分類": "無い"}) is store.delete([], filter={}) is True
        assert len(store.engine) == 2
        with pytest.raises(InvalidInputError, match="such as"):
            store.delete("規程-7")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="such as"):
            store.delete("規程-7", filter={})  # type: ignore[arg-type]
        store.delete(filter={})
        assert len(store.engine) == 0

    async def test_async_calls_run_off_the_loop(
        self, store: JaColBERTVectorStore, monkeypatch: pytest.MonkeyPatch
    ):
        threads = meet(store.engine, "search", 3, monkeypatch)
        await asyncio.gather(
            store.asimilarity_search(QUERY),
            store.asimilarity_search_with_score(QUERY),
            store.asimilarity_search_with_relevance_scores(QUERY),
        )
        for method in ("upsert", "get", "delete"):
            threads += meet(store.engine, method, 1, monkeypatch)
        await store.aadd_texts(["時々、カフェで本を読む。"])
        await store.aget_by_ids(["湖-1"])
        await store.adelete(["湖-1"])
        assert threading.main_thread() not in threads

    async def test_constructors_fill_a_store(self, tiny_model: Path, tmp_path: Path):
        texts = ["琵琶湖は湖である。", "富士山は山である。"]
        store = JaColBERTVectorStore.from_texts(texts, None, [{"頁": 1}, {"頁": 2}], model=tiny_model)
        assert {d.metadata["頁"] for d in store.similarity_search(QUERY)} == {1, 2}
        assert store.embeddings is None
        by_documents = JaColBERTVectorStore.from_documents(DOCUMENTS, model=tiny_model)
        awaited = await JaColBERTVectorStore.afrom_documents(DOCUMENTS, model=tiny_model)
        await JaColBERTVectorStore.afrom_texts(texts, ids=["a", "b"], model=tiny_model)
        before = by_documents.similarity_search_with_score(QUERY)
        assert awaited.similarity_search_with_score(QUERY) == before
        assert {document.id for document, _ in before} >= {"湖-1", "山-1", "規程-7"}
        by_documents.save(tmp_path / "索引")
        assert JaColBERTVectorStore.load(tmp_path / "索引").similarity_search_with_score(QUERY) == before
        with pytest.raises(TypeError, match="devise"):
            JaColBERTVectorStore.from_documents(DOCUMENTS, model=tiny_model, devise="cpu")


class TestReranker:
    def test_orders_copies_by_the_engines_scores(self, retriever: Engine):
        given = deepcopy(DOCUMENTS)
        found = JaColBERTReranker(engine=retriever, top_n=3).compress_documents(given, QUERY)
        hits = retriever.rerank(QUERY, [d.page_content for d in given], 3)
        assert [d.page_content for d in found] == [h.text for h in hits]
        assert [d.metadata["relevance_score"] for d in found] == [h.score for h in hits]
        ids = {d.page_content: d.id for d in given}
        assert [d.id for d in found] == [ids[d.page_content] for d in found]
        for document in found:
            document.metadata.setdefault("部署", []).append("監査")
        assert given == DOCUMENTS

    def test_reads_titles(self, retriever: Engine):
        given = [Document("滋賀県にある湖。", metadata={"title": "琵琶湖"}), Document("")]
        found = JaColBERTReranker(engine=retriever).compress_documents(given, QUERY)
        titled = NativeDocument("0", "滋賀県にある湖。", title="琵琶湖")
        score = retriever.rerank(QUERY, [titled])[0].score
        assert (found[0].metadata, found[1].page_content) == (
            {"title": "琵琶湖", "relevance_score": score},
            "",
        )
        assert score != retriever.rerank(QUERY, ["滋賀県にある湖。"])[0].score

    def test_documents_may_share_an_id(self, retriever: Engine):
        given = [Document("琵琶湖", id="同じ"), Document("富士山", id="同じ"), Document("琵琶湖")]
        found = JaColBERTReranker(engine=retriever).compress_documents(given, QUERY)
        assert sorted(d.page_content for d in found) == ["富士山", "琵琶湖", "琵琶湖"]

    def test_nothing_gives_nothing(self, retriever: Engine):
        assert JaColBERTReranker(engine=retriever).compress_documents([], QUERY) == []

    def test_is_made_from_a_model_and_refuses_typos(self, tiny_model: Path, retriever: Engine):
        reranker = JaColBERTReranker.from_pretrained(tiny_model, top_n=1)
        assert len(reranker.compress_documents(DOCUMENTS, QUERY)) == 1
        with pytest.raises(ValidationError, match="topn"):
            JaColBERTReranker(engine=retriever, topn=1)  # type: ignore[call-arg]
        with pytest.raises(ValidationError, match="at least 1"):
            JaColBERTReranker(engine=retriever, top_n=0)

    async def test_async_reranks_off_the_loop(self, retriever: Engine, monkeypatch: pytest.MonkeyPatch):
        reranker = JaColBERTReranker(engine=retriever)
        expected = reranker.compress_documents(DOCUMENTS, QUERY)
        threads = meet(retriever, "rerank", 2, monkeypatch)
        found = await asyncio.gather(*(reranker.acompress_documents(DOCUMENTS, QUERY) for _ in range(2)))
        assert found == [expected, expected]
        assert threading.main_thread() not in threads


@pytest.mark.parametrize("copied", [copy, deepcopy, lambda each: deepcopy([each, each])[1]])
def test_copies_share_the_engine(filled: JaColBERTRetriever, copied: Any):
    store = JaColBERTVectorStore(filled.engine)
    for adapter in (filled, store, JaColBERTReranker(engine=filled.engine)):
        again = copied(adapter)
        assert again is not adapter
        assert again.engine is filled.engine
        with pytest.raises(TypeError, match=r"cannot be pickled.*\.load\(path\)"):
            pickle.dumps(adapter)
    deep = filled.model_copy(deep=True, update={"k": 3})
    assert (deep.engine, len(deep.invoke(QUERY))) == (filled.engine, 3)
    assert copied(store).similarity_search(QUERY) == store.similarity_search(QUERY)


def test_import_loads_neither_torch_nor_the_other_framework():
    loaded = "[n for n in ('torch', 'transformers', 'voyager', 'llama_index') if n in sys.modules]"
    assert run_python(f"import sys, jacolbert_rag.langchain; print({loaded})") == "[]"


def test_without_langchain_core_the_error_names_the_extra():
    said = import_error("import jacolbert_rag.langchain", missing="langchain_core")
    assert said.startswith("OptionalDependencyError")
    assert "pip install 'jacolbert-rag[langchain]'" in said


def test_a_broken_langchain_core_is_not_called_missing():
    code = """
import sys
sys.modules["langchain_core.retrievers"] = None
try:
    import jacolbert_rag.langchain
except ImportError as error:
    print(type(error).__name__)
"""
    assert run_python(code) == "ModuleNotFoundError"
