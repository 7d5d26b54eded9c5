"""jacolbert_rag.llama_index: retriever and reranker inside the framework's own engines."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from copy import copy, deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import QueryBundle
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import (
    Document,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from pydantic import ValidationError

from jacolbert_rag import Document as NativeDocument
from jacolbert_rag import IndexSettings, InvalidInputError, SearchConfig
from jacolbert_rag import JaColBERTRetriever as Engine
from jacolbert_rag.encode.splitter import is_chunk_of
from jacolbert_rag.llama_index import (
    JaColBERTNodeParser,
    JaColBERTRerank,
    JaColBERTRetriever,
    JaColBERTVectorStore,
)
from tests.conftest import import_error, run_python
from tests.test_splitter import GUIDE

QUERY = "日本で一番大きい湖はどこですか？"


def source(doc_id: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=doc_id, metadata={"題": "地理の本"})}


NODES = [
    TextNode(
        id_="湖-1",
        text="琵琶湖は滋賀県にある、日本で最も大きな湖です。",
        metadata={"分類": "地理", "頁": 12, "doc_id": "利用者の鍵"},
        excluded_embed_metadata_keys=["頁"],
        excluded_llm_metadata_keys=["分類"],
        relationships=source("地理の本"),
        start_char_idx=0,
        end_char_idx=23,
    ),
    TextNode(
        id_="山-1", text="富士山の標高は３７７６メートルで、日本一高い。", relationships=source("地理の本")
    ),
    TextNode(
        id_="規程-7",
        text="経費の精算は「翌月5日」までに申請してください。",
        metadata={"部署": ["経理", "総務"]},
    ),
    TextNode(id_="規程-8", text="サーバーを再起動するときは、情報システム部に連絡する。"),
]


@pytest.fixture(params=["exact", "candidates"])
def engine(tiny_model: Path, request: pytest.FixtureRequest) -> Engine:
    """An empty index that is searched whole, or through candidates however small it is."""
    search = SearchConfig() if request.param == "exact" else SearchConfig(exact_below=0)
    return Engine.from_pretrained(tiny_model, settings=IndexSettings(search=search))


@pytest.fixture
def filled(engine: Engine) -> JaColBERTRetriever:
    """A LlamaIndex retriever over NODES."""
    filled = JaColBERTRetriever(engine)
    filled.add_nodes(NODES)
    return filled


def meet(engine: Any, method: str, n: int, monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Make calls of a method wait until n of them run at once; the threads they ran in."""
    barrier, threads, call = threading.Barrier(n), [], getattr(engine, method)

    def waiting(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread())
        barrier.wait(timeout=10)
        return call(*args, **kwargs)

    monkeypatch.setattr(engine, method, waiting)
    return threads


def scored() -> list[NodeWithScore]:
    """NODES as another retriever found them."""
    return [NodeWithScore(node=node.model_copy(deep=True), score=1 / (i + 2)) for i, node in enumerate(NODES)]


class TestRetriever:
    def test_gives_the_engines_hits_with_raw_scores(self, filled: JaColBERTRetriever):
        filled.similarity_top_k = 3
        hits = filled.engine.search(QUERY, 3)
        found = filled.retrieve(QUERY)
        assert [(n.node_id, n.text, n.score) for n in found] == [(h.id, h.text, h.score) for h in hits]
        assert filled.retrieve(QueryBundle(QUERY)) == found

    def test_nodes_come_back_whole(self, filled: JaColBERTRetriever):
        filled.similarity_top_k = 4
        found = {n.node_id: n.node for n in filled.retrieve(QUERY)}
        assert found == {node.node_id: node for node in NODES}
        assert found["湖-1"].ref_doc_id == "地理の本"
        assert isinstance(found["湖-1"], TextNode)

    def test_index_nodes_lead_on(self, engine: Engine):
        node = IndexNode(id_="章", text="湖の章です。", index_id="湖の章", obj=NODES[0])
        retriever = JaColBERTRetriever(engine)
        retriever.add_nodes([node])
        assert [n.node for n in retriever.retrieve(QUERY)] == [NODES[0]]
        target = TextNode(id_="先", text="別の場所にある本文。")
        mapped = JaColBERTRetriever(engine, object_map={"山の章": target})
        mapped.add_nodes([IndexNode(id_="章", text="山の章です。", index_id="山の章")])
        assert [n.node for n in mapped.retrieve(QUERY)] == [target]

    def test_top_k_is_read_at_each_call_and_below_one_refused(self, filled: JaColBERTRetriever):
        assert filled.similarity_top_k == 2
        assert len(filled.retrieve(QUERY)) == 2
        filled.similarity_top_k = 10
        assert len(filled.retrieve(QUERY)) == 4
        for k in (0, True, 1.5):
            with pytest.raises(InvalidInputError, match="at least 1"):
                filled.similarity_top_k = k
            with pytest.raises(InvalidInputError, match="at least 1"):
                JaColBERTRetriever(filled.engine, k)
        assert len(filled.retrieve(QUERY)) == 4

    @pytest.mark.parametrize("given", ["索引", None, object()])
    def test_what_is_no_engine_is_refused(self, given: Any):
        for make in (JaColBERTRetriever, JaColBERTNodeParser.from_retriever):
            with pytest.raises(InvalidInputError, match=r"expected a jacolbert_rag\.JaColBERTRetriever"):
                make(given)
        for make in (JaColBERTRerank, JaColBERTVectorStore):
            with pytest.raises(ValidationError, match=r"expected a jacolbert_rag\.JaColBERTRetriever"):
                make(engine=given)

    def test_adapters_give_their_engine(self, filled: JaColBERTRetriever):
        store = JaColBERTVectorStore(engine=filled)
        assert store.engine is JaColBERTRerank(engine=store).engine is filled.engine
        assert JaColBERTRetriever(store).engine is filled.engine  # type: ignore[arg-type]

    async def test_aretrieve_searches_off_the_loop(
        self, filled: JaColBERTRetriever, monkeypatch: pytest.MonkeyPatch
    ):
        expected = filled.retrieve(QUERY)
        threads = meet(filled.engine, "search", 3, monkeypatch)
        found = await asyncio.gather(*(filled.aretrieve(QUERY) for _ in range(3)))
        assert found == [expected] * 3
        assert threading.main_thread() not in threads

    def test_a_document_is_one_node_without_a_splitter(self, tiny_model: Path):
        documents = [
            Document(
                id_="手引",
                text="経費は翌月に精算する。" * 3,
                metadata={"頁": 1},
                excluded_llm_metadata_keys=["頁"],
            ),
            Document(id_="案内", text="会議室は総務部が予約する。"),
        ]
        retriever = JaColBERTRetriever.from_documents(documents, model=tiny_model)
        found = {n.node_id: n.node for n in retriever.retrieve("経費の精算")}
        assert set(found) == {"手引", "案内"}
        assert found["手引"].text == documents[0].text
        assert found["手引"].ref_doc_id == "手引"
        assert found["手引"].excluded_llm_metadata_keys == ["頁"]
        assert NodeRelationship.SOURCE not in documents[0].relationships

    def test_transformations_split_documents(self, tiny_model: Path):
        document = Document(id_="手引", text="経費は翌月に精算する。\n\n会議室は総務部が予約する。")
        splitter = SentenceSplitter(chunk_size=20, chunk_overlap=0)
        retriever = JaColBERTRetriever.from_documents(
            [document], model=tiny_model, transformations=[splitter], similarity_top_k=10
        )
        found = retriever.retrieve("経費の精算")
        assert len(found) > 1
        assert {n.node.ref_doc_id for n in found} == {"手引"}

    def test_metadata_mode_decides_what_is_read(self, tiny_model: Path):
        def passages(mode: MetadataMode) -> list[str]:
            retriever = JaColBERTRetriever.from_nodes(NODES[:1], model=tiny_model, metadata_mode=mode)
            assert [n.node for n in retriever.retrieve(QUERY)] == NODES[:1]
            return [document.passage for document in retriever.engine]

        assert passages(MetadataMode.NONE) == [NODES[0].text]
        assert passages(MetadataMode.EMBED) == [f"分類: 地理\ndoc_id: 利用者の鍵 {NODES[0].text}"]

    def test_saved_and_loaded_it_answers_the_same(
        self, filled: JaColBERTRetriever, tiny_model: Path, tmp_path: Path
    ):
        before = filled.retrieve(QUERY)
        filled.save(tmp_path / "索引")
        assert JaColBERTRetriever.load(tmp_path / "索引").retrieve(QUERY) == before
        again = JaColBERTRetriever.from_pretrained(tiny_model, index=tmp_path / "索引", similarity_top_k=2)
        assert again.retrieve(QUERY) == before

    def test_documents_added_another_way_come_back_as_text_nodes(self, engine: Engine):
        engine.add([NativeDocument("b", "滋賀県にある湖。", {"頁": 3}, title="琵琶湖")])
        (found,) = JaColBERTRetriever(engine).retrieve(QUERY)
        assert found.node == TextNode(id_="b", text="滋賀県にある湖。", metadata={"title": "琵琶湖", "頁": 3})

    def test_metadata_are_stored_once(self, engine: Engine):
        parser = JaColBERTNodeParser.from_retriever(engine)
        document = Document(id_="手引", text=GUIDE, metadata={"部署": "総務部の第一課", "頁": 1})
        nodes = parser.get_nodes_from_documents([document])
        odd = TextNode(
            text="値の型が違う文書の節。",
            metadata={"部署": 1},
            metadata_separator="",
            relationships={
                NodeRelationship.SOURCE: RelatedNodeInfo(node_id="a", metadata={"部署": True}),
                NodeRelationship.PREVIOUS: RelatedNodeInfo(node_id="b"),
                NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c", metadata={"部署": 1})],
            },
        )
        adapter = JaColBERTRetriever(engine, 50)
        adapter.add_nodes([*nodes, odd])
        found = {n.node_id: n.node for n in adapter.retrieve(QUERY)}
        assert found == {node.node_id: node for node in [*nodes, odd]}
        assert found[odd.node_id].to_json() == odd.to_json()
        for stored in engine.get([node.node_id for node in nodes]):
            assert json.dumps(dict(stored.metadata), ensure_ascii=False).count("総務部の第一課") == 1
            assert "embedding" not in stored.metadata["_node_content"]

    def test_users_own_keys_of_reserved_names_survive(self, engine: Engine):
        own = {"_node_content": "本文", "_node_type": 3, "_ref_doc_id": "利用者", "ref_doc_id": "x", "頁": 1}
        node = TextNode(id_="a", text="琵琶湖は広い。", metadata=own, relationships=source("本"))
        adapter = JaColBERTRetriever(engine)
        for _ in range(2):
            adapter.add_nodes([node])
            (found,) = adapter.retrieve(QUERY)
            assert found.node == node

    def test_metadata_of_another_adapter_come_back(self, filled: JaColBERTRetriever):
        from jacolbert_rag.langchain import JaColBERTVectorStore as LangChainStore

        store = LangChainStore(filled.engine)
        (document,) = store.get_by_ids(["湖-1"])
        document.metadata["頁"] = 99
        del document.metadata["分類"]
        store.add_documents([document])
        filled.filters = MetadataFilters(filters=[MetadataFilter(key="頁", value=99)])
        (found,) = filled.retrieve(QUERY)
        assert found.node.metadata == {"頁": 99, "doc_id": "利用者の鍵"}
        assert found.node.relationships == NODES[0].relationships

    def test_nodes_of_the_previous_format_are_read(self, engine: Engine):
        for node in NODES:
            packed = node_to_metadata_dict(node, remove_text=True)
            metadata = {**node.metadata, **{key: packed[key] for key in ("_node_content", "_node_type")}}
            engine.add([NativeDocument(node.node_id, node.text, metadata | {"_ref_doc_id": node.ref_doc_id})])
        found = JaColBERTRetriever(engine, 9).retrieve(QUERY)
        assert {n.node_id: n.node for n in found} == {node.node_id: node for node in NODES}

    def test_a_title_goes_both_ways(self, engine: Engine):
        native = NativeDocument("b", "滋賀県にある湖。", {"頁": 3}, title="琵琶湖")
        engine.add([native])
        adapter = JaColBERTRetriever(engine)
        (before,) = adapter.retrieve(QUERY)
        adapter.add_nodes([before.node])
        assert adapter.retrieve(QUERY) == [before]
        assert engine.get(["b"])[0].passage == native.passage
        (reranked,) = JaColBERTRerank(engine=engine).postprocess_nodes([before], query_str=QUERY)
        assert reranked.score == pytest.approx(before.score, abs=0.1)  # which is of residuals

    def test_titles_are_read_unless_they_are_excluded(self, engine: Engine):
        titled = TextNode(id_="a", text="滋賀県にある湖。", metadata={"title": "琵琶湖"})
        hidden = titled.model_copy(update={"id_": "b", "excluded_embed_metadata_keys": ["title"]})
        JaColBERTRetriever(engine).add_nodes([titled, hidden])
        assert [d.passage for d in engine] == ["琵琶湖 滋賀県にある湖。", "滋賀県にある湖。"]

    def test_what_it_stores_is_readable_without_the_framework(self, filled: JaColBERTRetriever):
        (document,) = filled.engine.get(["湖-1"])
        assert document.text == NODES[0].text
        assert NODES[0].metadata.items() <= dict(document.metadata).items()

    def test_what_cannot_be_stored_is_refused(self, engine: Engine):
        retriever = JaColBERTRetriever(engine)
        with pytest.raises(InvalidInputError, match="twice"):
            retriever.add_nodes([NODES[0], NODES[0]])
        with pytest.raises(InvalidInputError, match="no text"):
            retriever.add_nodes([TextNode(text="　")])
        with pytest.raises(TypeError, match="devise"):
            JaColBERTRetriever.from_nodes(NODES, devise="cpu")  # type: ignore[call-arg]
        assert len(engine) == 0

    def test_adding_again_replaces(self, filled: JaColBERTRetriever):
        changed = TextNode(id_="湖-1", text="琵琶湖の面積は約670平方キロメートルだ。")
        assert filled.add_nodes([changed, NODES[1]]) == ["湖-1", "山-1"]
        filled.similarity_top_k = 4
        assert {n.node_id: n.text for n in filled.retrieve(QUERY)}["湖-1"] == changed.text

    def test_callbacks_see_the_retrieval(self, engine: Engine):
        handler = LlamaDebugHandler(print_trace_on_end=False)
        retriever = JaColBERTRetriever(engine, callback_manager=CallbackManager([handler]))
        retriever.add_nodes(NODES)
        retriever.retrieve(QUERY)
        assert len(handler.get_event_pairs(CBEventType.RETRIEVE)) == 1

    def test_as_llama_index_is_the_same_object(self, retriever: Engine):
        wrapped = retriever.as_llama_index(k=3)
        assert isinstance(wrapped, JaColBERTRetriever)
        assert (wrapped.engine, wrapped.similarity_top_k) == (retriever, 3)
        options: Any = {"mode": "hybrid", "filters": {"頁": 1}, "highlight": True, "abstain": True}
        chosen = retriever.as_llama_index(2, **options)
        assert {name: getattr(chosen, name) for name in options} == options
        with pytest.raises(TypeError, match="filter"):
            retriever.as_llama_index(filter={})  # type: ignore[call-arg]

    async def test_adds_off_the_loop(self, engine: Engine, monkeypatch: pytest.MonkeyPatch):
        adapter = JaColBERTRetriever(engine)
        threads = meet(engine, "upsert", 2, monkeypatch)
        added = await asyncio.gather(adapter.aadd_nodes(NODES[:1]), adapter.aadd_nodes(NODES[1:2]))
        assert (added, threading.main_thread() in threads) == ([["湖-1"], ["山-1"]], False)


class TestQueryEngine:
    async def test_answers_from_what_was_retrieved_and_reranked(self, filled: JaColBERTRetriever):
        filled.similarity_top_k = 4
        rerank = JaColBERTRerank(engine=filled.engine, top_n=2)
        chat = RetrieverQueryEngine.from_args(filled, llm=MockLLM(), node_postprocessors=[rerank])
        answer = chat.query(QUERY)
        best = filled.engine.search(QUERY, 2)
        assert [n.node_id for n in answer.source_nodes] == [hit.id for hit in best]
        for hit in best:  # MockLLM answers with its prompt
            assert hit.text in str(answer)
        assert "_node_content" not in str(answer)
        again = await chat.aquery(QUERY)
        assert [n.node_id for n in again.source_nodes] == [hit.id for hit in best]

    def test_works_inside_query_fusion(self, filled: JaColBERTRetriever):
        fusion = QueryFusionRetriever(
            [filled, filled], llm=MockLLM(), num_queries=1, mode="reciprocal_rerank", use_async=False
        )
        assert [n.node_id for n in fusion.retrieve(QUERY)] == [n.node_id for n in filled.retrieve(QUERY)]


class TestRerank:
    def test_orders_nodes_by_the_engines_scores(self, retriever: Engine):
        given = scored()
        found = JaColBERTRerank(engine=retriever, top_n=3).postprocess_nodes(given, query_str=QUERY)
        hits = retriever.rerank(QUERY, [node.text for node in NODES], 3)
        assert [(n.text, n.score) for n in found] == [(h.text, h.score) for h in hits]
        assert given == scored()

    def test_keeps_the_retrieval_score_in_a_copy(self, retriever: Engine):
        given = scored()
        rerank = JaColBERTRerank(engine=retriever, top_n=4, keep_retrieval_score=True)
        found = rerank.postprocess_nodes(given, query_str=QUERY)
        assert {n.node_id: n.metadata["retrieval_score"] for n in found} == {
            n.node_id: n.score for n in given
        }
        assert given == scored()

    def test_the_retrieval_score_stays_out_of_prompts(self, filled: JaColBERTRetriever):
        rerank = JaColBERTRerank(engine=filled.engine, keep_retrieval_score=True)
        chat = RetrieverQueryEngine.from_args(filled, llm=MockLLM(), node_postprocessors=[rerank])
        answer = chat.query(QUERY)  # MockLLM answers with its prompt
        assert all("retrieval_score" in node.metadata for node in answer.source_nodes)
        assert "retrieval_score" not in str(answer)

    @pytest.mark.parametrize("highlight", [False, True])
    def test_what_was_found_may_be_added_again(self, filled: JaColBERTRetriever, highlight: bool):
        before = list(filled.engine)
        filled.highlight, filled.similarity_top_k = highlight, 4
        rerank = JaColBERTRerank(engine=filled.engine, top_n=4, keep_retrieval_score=True)
        for found in (
            filled.retrieve(QUERY),
            rerank.postprocess_nodes(filled.retrieve(QUERY), query_str=QUERY),
        ):
            kept = deepcopy(found)
            filled.add_nodes([each.node for each in found])
            assert (found, list(filled.engine)) == (kept, before)
        unscored = [NodeWithScore(node=node) for node in NODES]
        filled.add_nodes([each.node for each in rerank.postprocess_nodes(unscored, query_str=QUERY)])
        assert list(filled.engine) == before
        own = TextNode(id_="x", text="湖。", metadata={"jacolbert": {"版": 2}, "retrieval_score": 0.5})
        filled.similarity_top_k = 5
        for _ in range(2):
            filled.add_nodes([own])
            (node,) = [n.node for n in filled.retrieve(QUERY) if n.node_id == "x"]
            assert node == own

    def test_reads_metadata_when_told_to(self, retriever: Engine):
        rerank = JaColBERTRerank(engine=retriever, metadata_mode=MetadataMode.EMBED)
        (found,) = rerank.postprocess_nodes(scored()[:1], query_str=QUERY)
        document = NativeDocument("", NODES[0].text, title="分類: 地理\ndoc_id: 利用者の鍵")
        assert found.score == retriever.rerank(QUERY, [document])[0].score

    def test_needs_a_query(self, retriever: Engine):
        with pytest.raises(ValueError, match="needs a query"):
            JaColBERTRerank(engine=retriever).postprocess_nodes(scored())

    def test_nothing_gives_nothing(self, retriever: Engine):
        assert JaColBERTRerank(engine=retriever).postprocess_nodes([], query_str=QUERY) == []

    def test_is_made_from_a_model_and_refuses_typos(self, tiny_model: Path, retriever: Engine):
        rerank = JaColBERTRerank.from_pretrained(tiny_model, top_n=1)
        assert len(rerank.postprocess_nodes(scored(), query_str=QUERY)) == 1
        with pytest.raises(ValidationError, match="topn"):
            JaColBERTRerank(engine=retriever, topn=1)  # type: ignore[call-arg]
        with pytest.raises(ValidationError, match="at least 1"):
            JaColBERTRerank(engine=retriever, top_n=0)

    def test_says_what_it_does(self, retriever: Engine):
        events = []

        class Recorder(BaseEventHandler):
            def handle(self, event: Any, **kwargs: Any) -> None:
                if isinstance(event, ReRankStartEvent | ReRankEndEvent):
                    events.append(event)

        dispatcher = get_dispatcher("jacolbert_rag.llama_index")
        recorder = Recorder()
        dispatcher.add_event_handler(recorder)
        debug = LlamaDebugHandler(print_trace_on_end=False)
        try:
            rerank = JaColBERTRerank(engine=retriever, top_n=1, callback_manager=CallbackManager([debug]))
            found = rerank.postprocess_nodes(scored(), query_str=QUERY)
        finally:
            dispatcher.event_handlers.remove(recorder)
        start, end = events
        assert (start.query.query_str, start.top_n) == (QUERY, 1)
        assert start.model_name == retriever.encoder.checkpoint.name
        assert end.nodes == found
        assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 1
        assert rerank.class_name() == rerank.to_dict()["class_name"] == "JaColBERTRerank"
        assert "engine" not in rerank.to_dict()

    async def test_async_reranks_off_the_loop(self, retriever: Engine, monkeypatch: pytest.MonkeyPatch):
        rerank = JaColBERTRerank(engine=retriever)
        expected = rerank.postprocess_nodes(scored(), query_str=QUERY)
        threads = meet(retriever, "rerank", 2, monkeypatch)
        found = await asyncio.gather(
            *(rerank.apostprocess_nodes(scored(), query_str=QUERY) for _ in range(2))
        )
        assert found == [expected, expected]
        assert threading.main_thread() not in threads


class TestNodeParser:
    @pytest.fixture
    def parser(self, retriever: Engine) -> JaColBERTNodeParser:
        return JaColBERTNodeParser.from_retriever(retriever)

    @pytest.mark.parametrize("text", [GUIDE, GUIDE.replace("\n", "\r\n"), "\n " + "琵琶湖は広い。" * 150])
    @pytest.mark.parametrize("overlap", [0, 20])
    def test_nodes_know_their_place(self, retriever: Engine, text: str, overlap: int):
        parser = JaColBERTNodeParser.from_retriever(retriever, overlap=overlap)
        document = Document(id_="手引", text=text, metadata={"頁": 1}, excluded_llm_metadata_keys=["頁"])
        before = document.model_dump()
        nodes = parser.get_nodes_from_documents([document, Document(id_="短", text="短い文。")])
        assert document.model_dump() == before
        *chunks, short = nodes
        assert len(chunks) > 10
        expected = [(c.start, c.end, c.text) for c in parser.splitter.chunks(text)]
        assert [(n.start_char_idx, n.end_char_idx, n.text) for n in chunks] == expected
        for node in chunks:
            assert is_chunk_of(node.node_id, "手引")
            assert node.source_node == document.as_related_node_info()
            assert (node.metadata, node.excluded_llm_metadata_keys) == ({"頁": 1}, ["頁"])
        for node, following in pairwise(chunks):
            assert node.next_node.node_id == following.node_id
            assert following.prev_node.node_id == node.node_id
        assert chunks[0].prev_node is chunks[-1].next_node is short.prev_node is None
        assert (short.text, short.start_char_idx, short.end_char_idx) == ("短い文。", 0, 4)
        assert short.ref_doc_id == "短" != short.node_id

    def test_a_model_reads_nodes_whole_with_their_metadata(self, retriever: Engine):
        parser = JaColBERTNodeParser.from_retriever(retriever, metadata_mode=MetadataMode.EMBED)
        document = Document(text=GUIDE, metadata={"部署": "総務", "分類": "手引"})
        nodes = parser([document])
        adapter = JaColBERTRetriever(retriever, metadata_mode=MetadataMode.EMBED)
        adapter.add_nodes(nodes)  # without a TruncationWarning
        assert all(stored.passage.startswith("部署: 総務\n分類: 手引 ") for stored in retriever)
        plain = JaColBERTNodeParser.from_retriever(retriever)([document])
        assert len(plain) < len(nodes)

    def test_an_edit_keeps_the_ids_of_other_nodes(self, parser: JaColBERTNodeParser):
        before = {node.node_id for node in parser([Document(id_="手引", text=GUIDE)])}
        after = {node.node_id for node in parser([Document(id_="手引", text="新しい文。" + GUIDE)])}
        assert len(after - before) <= 4
        assert before != {node.node_id for node in parser([Document(id_="別", text=GUIDE)])}

    def test_in_a_pipeline_and_a_retriever(self, parser: JaColBERTNodeParser, tiny_model: Path):
        documents = [Document(id_="手引", text=GUIDE)]
        pipeline = IngestionPipeline(transformations=[parser])
        nodes = pipeline.run(documents=documents)
        assert nodes == parser.get_nodes_from_documents(documents)
        assert pipeline.run(documents=documents) == nodes  # from the cache
        retriever = JaColBERTRetriever.from_nodes(nodes, model=tiny_model, similarity_top_k=1)
        (found,) = retriever.retrieve(nodes[3].text)
        assert found.node == nodes[3]
        same = JaColBERTRetriever.from_documents(documents, transformations=[parser], model=tiny_model)
        assert {d.id for d in same.engine} == {n.node_id for n in nodes}

    def test_caches_tell_parsers_apart(self, retriever: Engine):
        documents = [Document(id_="手引", text=GUIDE)]
        pipeline = IngestionPipeline(transformations=[JaColBERTNodeParser.from_retriever(retriever)])
        n = len(pipeline.run(documents=documents))
        adapter = JaColBERTRetriever(retriever)
        pipeline.transformations = [JaColBERTNodeParser.from_retriever(adapter, budget=20)]
        assert len(pipeline.run(documents=documents)) > 2 * n

    async def test_parses_off_the_loop(self, parser: JaColBERTNodeParser, monkeypatch: pytest.MonkeyPatch):
        documents = [Document(id_="手引", text=GUIDE)]
        expected = parser.get_nodes_from_documents(documents)
        threads = meet(JaColBERTNodeParser, "_postprocess_parsed_nodes", 2, monkeypatch)
        found = await asyncio.gather(*(parser.aget_nodes_from_documents(documents) for _ in range(2)))
        assert found == [expected] * 2
        assert threading.main_thread() not in threads

    def test_nodes_of_nodes_are_of_the_document(self, parser: JaColBERTNodeParser):
        document = Document(id_="手引", text=GUIDE)
        halves = SentenceSplitter(chunk_size=400, chunk_overlap=0)([document])
        assert len(halves) > 1
        nodes = parser(halves)
        assert {node.ref_doc_id for node in nodes} == {"手引"}
        for node in nodes:
            assert node.text == GUIDE[node.start_char_idx : node.end_char_idx]
        loose = parser([TextNode(id_="節", text=GUIDE, start_char_idx=7)])
        assert loose[0].ref_doc_id == "節"
        assert all(n.text == GUIDE[n.start_char_idx : n.end_char_idx] for n in loose)

    def test_callbacks_and_settings_of_the_base_class(self, retriever: Engine):
        debug = LlamaDebugHandler(print_trace_on_end=False)
        parser = JaColBERTNodeParser.from_retriever(retriever, callback_manager=CallbackManager([debug]))
        nodes = parser.get_nodes_from_documents([Document(id_="手引", text=GUIDE, metadata={"頁": 1})])
        ((_, end),) = debug.get_event_pairs(CBEventType.NODE_PARSING)
        assert end.payload["nodes"] == nodes
        bare = JaColBERTNodeParser(
            splitter=parser.splitter,
            include_metadata=False,
            include_prev_next_rel=False,
            id_func=lambda i, document: f"{document.node_id}/{i}",
        )([Document(id_="手引", text=GUIDE, metadata={"頁": 1})])
        assert [node.node_id for node in bare] == [f"手引/{i}" for i in range(len(bare))]
        assert all(
            node.metadata == {} and set(node.relationships) == {NodeRelationship.SOURCE} for node in bare
        )

    def test_is_serialized_without_the_splitter(self, parser: JaColBERTNodeParser, tiny_model: Path):
        data = parser.to_dict()
        assert "splitter" not in data
        assert (data["class_name"], data["budget"], data["overlap"]) == ("JaColBERTNodeParser", 61, 0)
        assert data["model_name"] == str(tiny_model.resolve())
        assert "splitter" not in repr(parser)
        with pytest.raises(ValidationError):
            JaColBERTNodeParser(splitter=parser.splitter, nothing=1)

    def test_from_pretrained(self, tiny_model: Path):
        parser = JaColBERTNodeParser.from_pretrained(tiny_model, overlap=5, document_length=40)
        assert (parser.budget, parser.overlap) == (37, 5)
        assert parser.get_nodes_from_documents([Document(text=" \n")]) == []


@pytest.mark.parametrize("copied", [copy, deepcopy])
def test_copies_share_the_engine(filled: JaColBERTRetriever, copied: Any):
    store = JaColBERTVectorStore(engine=filled.engine, highlight=True)
    for adapter in (filled, store, JaColBERTRerank(engine=filled.engine)):
        again = copied(adapter)
        assert again is not adapter
        assert again.engine is filled.engine
        with pytest.raises(TypeError, match=r"cannot be pickled.*\.load\(path\)"):
            pickle.dumps(adapter)
    assert copied(filled).retrieve(QUERY) == filled.retrieve(QUERY)
    deep = store.model_copy(deep=True)
    assert (deep.engine, deep.highlight) == (filled.engine, True)


def test_either_framework_reads_the_others_index(retriever: Engine):
    from langchain_core.documents import Document as LangChainDocument

    from jacolbert_rag.langchain import JaColBERTVectorStore as LangChainStore

    nodes, store = JaColBERTRetriever(retriever, 2), LangChainStore(retriever)
    nodes.add_nodes(NODES[:1])
    store.add_documents([LangChainDocument("富士山は山である。", id="山", metadata={"頁": 1})])
    (document,) = store.get_by_ids(["湖-1"])
    assert document.page_content == NODES[0].text
    assert NODES[0].metadata.items() <= document.metadata.items()
    found = {n.node_id: n.node for n in nodes.retrieve(QUERY)}
    assert found["山"] == TextNode(id_="山", text="富士山は山である。", metadata={"頁": 1})
    # A node that LangChain split keeps what it was made of, but is what it says now.
    store.add_documents([document.model_copy(update={"page_content": "琵琶湖は", "id": "湖-1-前半"})])
    nodes.similarity_top_k = 3
    part = {n.node_id: n.node for n in nodes.retrieve(QUERY)}["湖-1-前半"]
    assert (part.text, part.ref_doc_id) == ("琵琶湖は", "地理の本")


def test_import_loads_neither_torch_nor_the_other_framework():
    loaded = "[n for n in ('torch', 'transformers', 'voyager', 'langchain_core') if n in sys.modules]"
    assert run_python(f"import sys, jacolbert_rag.llama_index; print({loaded})") == "[]"


@pytest.mark.parametrize(
    ("missing", "kind", "explained"),
    [
        ("llama_index", "OptionalDependencyError", True),
        ("llama_index.core", "OptionalDependencyError", True),
        ("llama_index_instrumentation", "ModuleNotFoundError", False),  # broken, and not for us to explain
    ],
)
def test_without_llama_index_core_the_error_names_the_extra(missing: str, kind: str, explained: bool):
    said = import_error("import jacolbert_rag.llama_index", missing=missing)
    assert said.startswith(f"{kind} ")
    assert ("pip install 'jacolbert-rag[llama-index]'" in said) == explained
