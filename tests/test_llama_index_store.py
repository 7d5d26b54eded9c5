"""jacolbert_rag.llama_index: filters, modes, and the vector store in LlamaIndex's indexes and pipelines."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import (
    CompletionResponse,
    CompletionResponseGen,
    CustomLLM,
    LLMMetadata,
    MockLLM,
)
from llama_index.core.retrievers import VectorIndexAutoRetriever
from llama_index.core.schema import (
    Document,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import MetadataInfo, VectorStoreInfo, VectorStoreQueryMode
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from pydantic import ValidationError

import jacolbert_rag.llama_index as adapters
from jacolbert_rag import Document as NativeDocument
from jacolbert_rag import IndexSettings, InvalidInputError, SearchConfig
from jacolbert_rag import JaColBERTRetriever as Engine
from jacolbert_rag.index.filters import Condition
from jacolbert_rag.llama_index import (
    JaColBERTNodeParser,
    JaColBERTRetriever,
    JaColBERTVectorStore,
    NoEmbedding,
    to_filter,
)
from tests.conftest import import_error, run_python
from tests.test_langchain_search import (
    ANSWERED,
    UNANSWERED,
    calibrated_engine,
    longest_pause,
    slowed,
)
from tests.test_splitter import GUIDE

QUERY = "日本で一番大きい湖はどこですか？"


def source(doc_id: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=doc_id)}


NODES = [
    TextNode(
        id_="湖-1",
        text="琵琶湖は滋賀県にある、日本で最も大きな湖です。",
        metadata={
            "部署": "地理",
            "年": 2019,
            "タグ": ["湖", "滋賀"],
            "題": "Lake Biwa",
            "doc_id": "利用者の鍵",
        },
        excluded_llm_metadata_keys=["部署"],
        relationships=source("地理の本"),
    ),
    TextNode(
        id_="山-1",
        text="富士山の標高は３７７６メートルで、日本一高い。",
        metadata={"部署": "地理", "年": 2021, "タグ": ["山", "静岡"], "題": "Mount Fuji"},
        relationships=source("地理の本"),
    ),
    TextNode(
        id_="規程-7",
        text="経費の精算は「翌月5日」までに申請してください。",
        metadata={"部署": "経理", "年": 2023, "タグ": [], "題": "経費規程"},
    ),
    TextNode(
        id_="規程-8",
        text="サーバーの再起動は、情報システム部の担当者が行う。",
        metadata={"部署": "情シス", "年": 2023},
    ),
]
ALL = {node.node_id for node in NODES}
OPERATORS: list[tuple[str, str, Any, set[str]]] = [
    ("部署", "==", "地理", {"湖-1", "山-1"}),
    ("部署", "!=", "地理", {"規程-7", "規程-8"}),
    ("題", "!=", "Mount Fuji", {"湖-1", "規程-7", "規程-8"}),
    ("年", ">", 2021, {"規程-7", "規程-8"}),
    ("年", "<", 2021, {"湖-1"}),
    ("年", ">=", 2021, {"山-1", "規程-7", "規程-8"}),
    ("年", "<=", 2021, {"湖-1", "山-1"}),
    ("年", "==", 2019.0, {"湖-1"}),
    ("部署", "in", ["経理", "情シス"], {"規程-7", "規程-8"}),
    ("題", "nin", ["Lake Biwa", "経費規程"], {"山-1", "規程-8"}),
    ("タグ", "any", ["湖", "山"], {"湖-1", "山-1"}),
    ("タグ", "all", ["滋賀", "湖"], {"湖-1"}),
    ("タグ", "contains", "静岡", {"山-1"}),
    ("題", "text_match", "Biwa", {"湖-1"}),
    ("題", "text_match", "biwa", set()),
    ("題", "text_match_insensitive", "FUJI", {"山-1"}),
    ("題", "text_match", "規程", {"規程-7"}),
    ("タグ", "is_empty", None, {"規程-7", "規程-8"}),
]


def where(*conditions: tuple[str, str, Any] | MetadataFilters, join: str = "and") -> MetadataFilters:
    filters = [
        each
        if isinstance(each, MetadataFilters)
        else MetadataFilter(key=each[0], operator=FilterOperator(each[1]), value=each[2])
        for each in conditions
    ]
    return MetadataFilters(filters=filters, condition=FilterCondition(join))


@pytest.fixture(params=["exact", "candidates"])
def engine(tiny_model: Path, request: pytest.FixtureRequest) -> Engine:
    """An empty index that is searched whole, or through candidates however small it is."""
    search = SearchConfig() if request.param == "exact" else SearchConfig(exact_below=0)
    return Engine.from_pretrained(tiny_model, settings=IndexSettings(search=search))


@pytest.fixture
def store(engine: Engine) -> JaColBERTVectorStore:
    """A vector store over NODES."""
    store = JaColBERTVectorStore(engine=engine)
    assert store.add(NODES) == [node.node_id for node in NODES]
    return store


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    """Asking `Settings` for a model, or the network for anything, fails the test."""
    for name in ("embed_model", "llm"):
        monkeypatch.setattr(type(Settings), name, property(lambda self: pytest.fail("asked Settings")))


@pytest.fixture(scope="module")
def calibrated(tiny_model: Path) -> Engine:
    """An index that knows which confidence answers."""
    return calibrated_engine(tiny_model)


class Saying(CustomLLM):
    """A language model that always says the same."""

    text: str

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        raise NotImplementedError

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self.text)


def asked(store: JaColBERTVectorStore, **query: Any) -> set[str]:
    """Ids that a query finds, of all that may be found."""
    result = store.query(VectorStoreQuery(query_str=QUERY, **{"similarity_top_k": 50, **query}))
    assert result.nodes is not None
    assert [node.node_id for node in result.nodes] == result.ids
    return set(result.ids or [])


class TestFilters:
    @pytest.mark.parametrize(("key", "operator", "value", "expected"), OPERATORS)
    def test_operators(
        self, store: JaColBERTVectorStore, key: str, operator: str, value: Any, expected: set[str]
    ):
        filters = where((key, operator, value))
        assert asked(store, filters=filters) == expected
        assert asked(store, filters=where(filters, join="not")) == ALL - expected
        if operator not in ("is_empty", "any", "all"):  # of which LlamaIndex's own has another idea
            stored = {node.node_id: node.metadata for node in NODES}
            matches = build_metadata_filter_fn(stored.__getitem__, filters)
            assert {id for id in stored if matches(id)} == expected

    def test_every_operator_is_there(self):
        assert {operator for _, operator, _, _ in OPERATORS} == {
            operator.value for operator in FilterOperator
        }

    @pytest.mark.parametrize("key", ["ref_doc_id", "doc_id", "document_id"])
    def test_the_document_of_a_node_has_a_name(self, store: JaColBERTVectorStore, key: str):
        own = {"湖-1"} if key == "doc_id" else set()  # whose metadata have such a key

        def found(operator: str, value: Any) -> set[str]:
            return asked(store, filters=where((key, operator, value)))

        assert found("==", "地理の本") == found("text_match", "の本") == {"湖-1", "山-1"} - own
        assert found("in", ["地理の本", "規程-7"]) == {"湖-1", "山-1", "規程-7"} - own
        assert found("!=", "地理の本") == {"規程-7", "規程-8"} | own
        assert found("==", "利用者の鍵") == own
        assert found("is_empty", None) == set()
        if own:  # a text, which no number equals
            with pytest.raises(InvalidInputError, match="needs number"):
                found("==", 3)
        else:
            assert found("==", 3) == set()
        nested = where(where((key, "==", "地理の本")), ("年", ">", 2020))
        assert asked(store, filters=nested) == {"山-1"}
        retriever = JaColBERTRetriever(store.engine, 9, filters=where((key, "==", "規程-8")))
        assert [n.node_id for n in retriever.retrieve(QUERY)] == ["規程-8"]
        store.delete_nodes(filters=where((key, "==", "地理の本")))
        assert asked(store) == {"規程-7", "規程-8"} | own

    @pytest.mark.parametrize(
        ("operator", "value"),
        [(operator, value) for operator in ("==", "!=") for value in (0, 1, 1.0, 2, "1")]
        + [(operator, value) for operator in ("in", "nin") for value in ([0], [1, 2], [0.0], ["1"], [])],
    )
    def test_numbers_ask_for_booleans_too(self, engine: Engine, operator: str, value: Any):
        kept: list[Any] = [True, False, 0, 1, 2, "1", None]
        nodes = [TextNode(id_=f"規程-{i}", text="規程。", metadata={"廃止": v}) for i, v in enumerate(kept)]
        nodes.append(TextNode(id_="規程-無", text="規程。"))
        store = JaColBERTVectorStore(engine=engine)
        store.add(nodes)
        filters = where(("廃止", operator, value))
        stored = {node.node_id: node.metadata for node in nodes}
        matches = build_metadata_filter_fn(stored.__getitem__, filters)
        assert asked(store, filters=filters) == {id for id in stored if matches(id)}

    def test_conditions_nest(self, store: JaColBERTVectorStore):
        lakes, late = ("タグ", "contains", "湖"), ("年", ">=", 2023)
        assert asked(store, filters=where(lakes, late)) == set()
        assert asked(store, filters=where(lakes, late, join="or")) == {"湖-1", "規程-7", "規程-8"}
        assert asked(store, filters=where(lakes, late, join="not")) == {"山-1"}
        nested = where(where(lakes, late, join="or"), where(("部署", "==", "経理"), join="not"))
        assert asked(store, filters=nested) == {"湖-1", "規程-8"}
        for join in ("and", "or", "not"):
            assert asked(store, filters=MetadataFilters(filters=[], condition=FilterCondition(join))) == ALL
        assert asked(store, filters=MetadataFilters(filters=nested.filters, condition=None)) == {
            "湖-1",
            "規程-8",
        }

    def test_what_is_unknown_is_refused(self, store: JaColBERTVectorStore):
        newer = MetadataFilter.model_construct(key="年", operator="between", value=[1, 2])
        with pytest.raises(InvalidInputError, match="between"):
            to_filter(MetadataFilters.model_construct(filters=[newer], condition=FilterCondition.AND))
        with pytest.raises(InvalidInputError, match="xor"):
            to_filter(MetadataFilters.model_construct(filters=[], condition="xor"))
        with pytest.raises(InvalidInputError, match="expected MetadataFilters"):
            to_filter({"部署": "地理"})  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="'in'"):
            to_filter(where(("部署", "in", "地理")))
        with pytest.raises(InvalidInputError, match="部署"):
            asked(store, filters=where(("部署", ">", 3)))


class TestRetriever:
    @pytest.fixture
    def filled(self, engine: Engine) -> JaColBERTRetriever:
        filled = JaColBERTRetriever(engine, 10)
        filled.add_nodes(NODES)
        return filled

    async def test_filters(self, filled: JaColBERTRetriever):
        filled.filters = where(("部署", "==", "地理"), ("年", ">", 2020))
        found = filled.retrieve(QUERY)
        assert [n.node for n in found] == [NODES[1]]
        assert await filled.aretrieve(QUERY) == found

    def test_filters_of_the_engine(self, filled: JaColBERTRetriever):
        for filters in ({"部署": "地理", "年": {"$gt": 2020}}, Condition("年", "==", 2021)):
            filled.filters = filters
            assert [n.node for n in filled.retrieve(QUERY)] == [NODES[1]]
        filled.filters = ["地理"]  # type: ignore[assignment]
        with pytest.raises(InvalidInputError, match="expected MetadataFilters"):
            filled.retrieve(QUERY)

    @pytest.mark.parametrize("mode", ["jacolbert", "bm25", "hybrid"])
    async def test_modes(self, filled: JaColBERTRetriever, mode: Any):
        made = JaColBERTRetriever(filled.engine, 3, mode=mode, filters=where(("部署", "==", "地理")))
        hits = filled.engine.search("日本の湖", 3, mode=mode, filter={"部署": "地理"})
        assert hits
        found = made.retrieve("日本の湖")
        assert [(n.node_id, n.score) for n in found] == [(h.id, h.score) for h in hits]
        assert await made.aretrieve("日本の湖") == found
        with pytest.raises(InvalidInputError, match="mode is 'dense'"):
            JaColBERTRetriever(filled.engine, mode="dense").retrieve(QUERY)  # type: ignore[arg-type]

    def test_highlights_stay_out_of_prompts(self, filled: JaColBERTRetriever):
        made = JaColBERTRetriever(filled.engine, 4, highlight=True)
        hits = filled.engine.search(QUERY, 4, highlight=True)
        given = {node.node_id: node for node in NODES}
        for found, hit in zip(made.retrieve(QUERY), hits, strict=True):
            assert found.metadata == {**given[hit.id].metadata, "jacolbert": hit.details()}
            for mode in (MetadataMode.LLM, MetadataMode.EMBED):
                assert found.node.get_content(mode) == given[hit.id].get_content(mode)

    def test_abstains(self, calibrated: Engine):
        made = JaColBERTRetriever(calibrated, mode="hybrid", abstain=True)
        assert made.retrieve(ANSWERED)[0].text == "饂飩は香川の名物である。"
        assert made.retrieve(UNANSWERED) == []

    def test_constructors_take_them(self, tiny_model: Path, tmp_path: Path):
        fields: Any = {"similarity_top_k": 3, "mode": "hybrid", "filters": where(("部署", "==", "地理"))}
        made = JaColBERTRetriever.from_nodes(NODES, model=tiny_model, **fields)
        found = made.retrieve(QUERY)
        assert {n.node_id for n in found} == {"湖-1", "山-1"}
        made.save(tmp_path / "索引")
        assert JaColBERTRetriever.load(tmp_path / "索引", **fields).retrieve(QUERY) == found
        documents = [Document(id_=n.node_id, text=n.text, metadata=n.metadata) for n in NODES]
        again = JaColBERTRetriever.from_documents(documents, model=tiny_model, **fields)
        assert [n.node_id for n in again.retrieve(QUERY)] == [n.node_id for n in found]
        with pytest.raises(TypeError, match="filter"):
            JaColBERTRetriever.from_pretrained(tiny_model, filter={})  # type: ignore[call-arg]


class TestStore:
    def test_gives_the_engines_hits_and_whole_nodes(self, store: JaColBERTVectorStore):
        hits = store.engine.search(QUERY, 4)
        result = store.query(VectorStoreQuery(query_str=QUERY, similarity_top_k=4))
        assert result.ids == [hit.id for hit in hits]
        assert result.similarities == [hit.score for hit in hits]
        given = {node.node_id: node for node in NODES}
        assert result.nodes == [given[hit.id] for hit in hits]
        assert store.client is store.engine

    @pytest.mark.parametrize(
        ("mode", "ours"),
        [("default", "jacolbert"), ("hybrid", "hybrid"), ("text_search", "bm25"), ("sparse", "bm25")],
    )
    @pytest.mark.parametrize("as_enum", [True, False])
    def test_modes(self, store: JaColBERTVectorStore, mode: str, ours: Any, as_enum: bool):
        asked: Any = VectorStoreQueryMode(mode) if as_enum else mode
        hits = store.engine.search("日本の湖", 3, mode=ours)
        result = store.query(VectorStoreQuery(query_str="日本の湖", similarity_top_k=3, mode=asked))
        assert result.ids == [hit.id for hit in hits]
        assert result.similarities == [hit.score for hit in hits]

    @pytest.mark.parametrize("mode", ["mmr", "svm", "semantic_hybrid", "linear_regression"])
    def test_other_modes_are_refused(self, store: JaColBERTVectorStore, mode: str):
        with pytest.raises(InvalidInputError, match=f"no query mode '{mode}'; expected one of default, "):
            store.query(VectorStoreQuery(query_str=QUERY, mode=VectorStoreQueryMode(mode)))

    def test_alpha_is_the_share_of_the_embeddings(self, store: JaColBERTVectorStore):
        def scores(alpha: float, name: str) -> list[float]:
            query = VectorStoreQuery(
                query_str=QUERY, mode=VectorStoreQueryMode.HYBRID, alpha=alpha, similarity_top_k=9
            )
            nodes = store.query(query, highlight=True).nodes
            return [node.metadata["jacolbert"]["scores"][name] for node in nodes or ()]

        for alpha, name in ((0.0, "bm25"), (1.0, "maxsim")):
            found = scores(alpha, name)
            assert len(found) == len(ALL)
            assert found == sorted(found, reverse=True)
        with pytest.raises(InvalidInputError, match="from 0 .words alone. to 1"):
            asked(store, mode=VectorStoreQueryMode.HYBRID, alpha=1.5)
        with pytest.raises(InvalidInputError, match="of hybrid search"):
            asked(store, alpha=0.5)

    def test_arguments_of_hybrid_search(self, store: JaColBERTVectorStore):
        hybrid = VectorStoreQueryMode.HYBRID
        assert len(asked(store, mode=hybrid, similarity_top_k=1, hybrid_top_k=3)) == 3
        assert len(asked(store, similarity_top_k=1, hybrid_top_k=3)) == 1
        for given in (hybrid, VectorStoreQueryMode.DEFAULT):
            assert asked(store, mode=given, alpha=None) == ALL
        with pytest.raises(InvalidInputError, match=r"LexicalConfig\(n_fused="):
            asked(store, mode=hybrid, sparse_top_k=5)
        assert len(asked(store, mode=VectorStoreQueryMode.SPARSE, sparse_top_k=1)) == 1

    def test_needs_the_text_of_a_query(self, store: JaColBERTVectorStore):
        with pytest.raises(InvalidInputError, match="query_str=..."):
            store.query(VectorStoreQuery(query_embedding=[0.1], similarity_top_k=1))
        with pytest.raises(TypeError, match="highlite"):
            store.query(VectorStoreQuery(query_str=QUERY), highlite=True)  # type: ignore[call-arg]

    async def test_a_blank_query_finds_by_filters_alone(self, store: JaColBERTVectorStore):
        filters = where(("年", ">=", 2021))
        for text, mode in (("", "default"), ("　\n", "hybrid"), ("", "text_search")):
            query = VectorStoreQuery(
                query_str=text, similarity_top_k=2, filters=filters, mode=VectorStoreQueryMode(mode)
            )
            result = store.query(query, abstain=True)
            assert (result.nodes, result.similarities) == (NODES[1:3], [0.0, 0.0])
            assert result.ids == ["山-1", "規程-7"]
            assert await store.aquery(query, abstain=True) == result
        blank = VectorStoreQuery(query_str="", similarity_top_k=2, node_ids=["規程-8"])
        (node,) = store.query(blank, highlight=True).nodes or []
        assert (node.node_id, node.metadata["jacolbert"]) == ("規程-8", {"score": 0.0, "scores": {}})
        with pytest.raises(InvalidInputError, match="Pass the text of a question, or filters"):
            store.query(VectorStoreQuery(query_str=" ", similarity_top_k=2))

    def test_the_auto_retriever_may_leave_the_query_blank(self, store: JaColBERTVectorStore):
        said = '{"query": "", "filters": [{"key": "部署", "value": "経理", "operator": "=="}]}'
        info = VectorStoreInfo(
            content_info="規程", metadata_info=[MetadataInfo(name="部署", type="str", description="部署")]
        )
        index = VectorStoreIndex.from_vector_store(store, embed_model=NoEmbedding())
        retriever = VectorIndexAutoRetriever(index, info, llm=Saying(text=said))
        assert [n.node for n in retriever.retrieve("経理の規程")] == [NODES[2]]

    def test_ids_restrict_a_query(self, store: JaColBERTVectorStore):
        assert asked(store, node_ids=["湖-1", "規程-8", "無い"]) == {"湖-1", "規程-8"}
        assert asked(store, node_ids=[]) == ALL  # what VectorStoreIndex sends
        assert asked(store, doc_ids=["地理の本"]) == {"湖-1", "山-1"}
        assert asked(store, doc_ids=["地理の本", "規程-7"]) == {"湖-1", "山-1", "規程-7"}
        assert asked(store, doc_ids=[]) == set()
        year = where(("年", ">=", 2021))
        assert asked(store, doc_ids=["地理の本"], filters=year) == {"山-1"}
        assert asked(store, node_ids=["湖-1", "規程-7"], filters=year) == {"規程-7"}
        assert asked(store, node_ids=["湖-1"], doc_ids=["規程-7"]) == set()

    def test_adding_again_replaces(self, store: JaColBERTVectorStore):
        changed = TextNode(
            id_="湖-1", text="琵琶湖の面積は約670平方キロメートルだ。", relationships=source("別の本")
        )
        assert store.add([changed, NODES[1]]) == ["湖-1", "山-1"]
        assert store.get_nodes(["湖-1"]) == [changed]
        assert asked(store, doc_ids=["地理の本"]) == {"山-1"}
        assert len(store.engine) == 4

    def test_delete_removes_the_nodes_of_a_document(self, store: JaColBERTVectorStore):
        store.delete("無い")
        store.delete("山-1")  # a node of a document, and no document
        assert len(store.engine) == 4
        store.delete("地理の本")
        assert asked(store) == {"規程-7", "規程-8"}
        with pytest.raises(InvalidInputError, match="delete_nodes"):
            store.delete(["規程-7"])  # type: ignore[arg-type]
        store.delete("規程-7")  # of no document, so its own
        assert asked(store) == {"規程-8"}

    def test_nodes_of_an_earlier_version_know_their_document(self, engine: Engine):
        store = JaColBERTVectorStore(engine=engine)
        store.add(NODES)
        stored = list(engine)
        store.clear()
        assert len(engine) == 0
        for document in stored:
            metadata = {key: value for key, value in document.metadata.items() if key != "_ref_doc_id"}
            engine.add([NativeDocument(document.id, document.text, metadata)])
        assert asked(store, doc_ids=["地理の本", "規程-8"]) == {"湖-1", "山-1", "規程-8"}
        assert asked(store, doc_ids=["地理の本"], filters=where(("年", ">", 2020))) == {"山-1"}
        store.delete("地理の本")
        assert asked(store) == {"規程-7", "規程-8"}

    def test_get_and_delete_nodes(self, store: JaColBERTVectorStore):
        assert store.get_nodes() == NODES
        assert store.get_nodes(["規程-8", "無い", "湖-1"]) == [NODES[3], NODES[0]]
        assert store.get_nodes([]) == []
        geography = where(("部署", "==", "地理"))
        assert store.get_nodes(filters=geography) == NODES[:2]
        assert store.get_nodes(["湖-1", "規程-7"], geography) == NODES[:1]
        with pytest.raises(InvalidInputError, match=r"clear\(\)"):
            store.delete_nodes()
        store.delete_nodes([])
        store.delete_nodes(["湖-1", "規程-7"], geography)
        assert asked(store) == ALL - {"湖-1"}
        store.delete_nodes(filters=geography)
        assert asked(store) == {"規程-7", "規程-8"}
        store.delete_nodes(["規程-7"])
        assert asked(store) == {"規程-8"}
        store.clear()
        assert asked(store) == set()

    def test_what_came_another_way(self, retriever: Engine):
        from langchain_core.documents import Document as LangChainDocument

        from jacolbert_rag.langchain import JaColBERTVectorStore as LangChainStore

        store = JaColBERTVectorStore(engine=retriever)
        store.add(NODES[:2])
        LangChainStore(retriever).add_documents(
            [
                LangChainDocument(
                    "富士五湖は富士山の北にある。", id="湖-5", metadata={"部署": "地理", "年": 2024}
                )
            ]
        )
        retriever.add([NativeDocument("手引", GUIDE)], split=True)
        assert asked(store, filters=where(("年", ">=", 2021))) == {"山-1", "湖-5"}
        assert store.get_nodes(["湖-5"]) == [
            TextNode(id_="湖-5", text="富士五湖は富士山の北にある。", metadata={"部署": "地理", "年": 2024})
        ]
        chunks = asked(store, doc_ids=["手引"])
        assert len(chunks) > 2
        assert asked(store, doc_ids=["湖-5", "地理の本"]) == {"湖-5", "湖-1", "山-1"}
        store.delete("手引")
        store.delete("湖-5")
        assert asked(store) == {"湖-1", "山-1"}

    async def test_async_calls_run_off_the_loop(
        self, store: JaColBERTVectorStore, monkeypatch: pytest.MonkeyPatch
    ):
        slowed(store.engine, monkeypatch, "search", "upsert", "get", "delete", "ids")
        query = VectorStoreQuery(query_str=QUERY, similarity_top_k=2, filters=where(("年", ">", 2000)))
        assert await store.aquery(query) == store.query(query)
        index = VectorStoreIndex.from_vector_store(store, embed_model=NoEmbedding())
        for work in (
            store.aquery(query),
            index.as_retriever().aretrieve(QUERY),
            store.async_add(NODES),
            store.aget_nodes(["湖-1"]),
            store.adelete_nodes(["湖-1"]),
            store.adelete("地理の本"),
            store.aclear(),
        ):
            assert await longest_pause(work) < 0.4
        assert len(store.engine) == 0

    async def test_highlights_and_abstaining(self, store: JaColBERTVectorStore, calibrated: Engine):
        refusing = JaColBERTVectorStore(engine=calibrated, abstain=True)
        nothing = VectorStoreQuery(query_str=UNANSWERED, similarity_top_k=3)
        assert refusing.query(nothing).nodes == (await refusing.aquery(nothing)).ids == []
        assert len(refusing.query(nothing, abstain=False).ids or []) == 3
        hits = store.engine.search(QUERY, 2, highlight=True)
        shown = JaColBERTVectorStore(engine=store.engine, highlight=True)
        query = VectorStoreQuery(query_str=QUERY, similarity_top_k=2)
        found = shown.query(query).nodes or []
        assert [node.metadata["jacolbert"] for node in found] == [hit.details() for hit in hits]
        assert (await store.aquery(query, highlight=True)).nodes == found
        for node in found:
            for keys in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys):
                assert {"jacolbert", "_node_content"} <= set(keys)
        assert store.get_nodes() == NODES

    def test_constructors_and_dumps(self, tiny_model: Path, tmp_path: Path):
        store = JaColBERTVectorStore.from_pretrained(tiny_model, metadata_mode=MetadataMode.EMBED)
        store.add(NODES[:1])
        assert [document.passage[:6] for document in store.engine] == ["部署: 地理"]
        store.persist(str(tmp_path / "索引"))
        loaded = JaColBERTVectorStore.load(tmp_path / "索引", highlight=True)
        assert (loaded.get_nodes(), loaded.highlight) == (NODES[:1], True)
        opened = JaColBERTVectorStore.from_pretrained(tiny_model, index=tmp_path / "索引")
        assert opened.get_nodes() == NODES[:1]
        assert store.class_name() == store.to_dict()["class_name"] == "JaColBERTVectorStore"
        assert "engine" not in store.to_dict()
        assert "engine" not in repr(store)
        with pytest.raises(TypeError, match="devise"):
            JaColBERTVectorStore.from_pretrained(tiny_model, devise="cpu")  # type: ignore[call-arg]
        with pytest.raises(ValidationError, match="hilight"):
            JaColBERTVectorStore(engine=store.engine, hilight=True)  # type: ignore[call-arg]
        with pytest.raises(InvalidInputError, match="local disk"):
            store.persist("索引", fs=object())


@pytest.mark.usefixtures("no_settings")
class TestVectorStoreIndex:
    async def test_over_a_filled_store(self, store: JaColBERTVectorStore):
        index = VectorStoreIndex.from_vector_store(store, embed_model=NoEmbedding())
        found = index.as_retriever(similarity_top_k=3).retrieve(QUERY)
        hits = store.engine.search(QUERY, 3)
        assert [(n.node_id, n.score) for n in found] == [(h.id, h.score) for h in hits]
        filters = where(("部署", "==", "地理"))
        hybrid = index.as_retriever(
            similarity_top_k=3, filters=filters, vector_store_query_mode="hybrid", doc_ids=["地理の本"]
        )
        hits = store.engine.search(QUERY, 3, mode="hybrid", filter={"部署": "地理"})
        expected = [(h.id, h.score) for h in hits]
        assert [(n.node_id, n.score) for n in hybrid.retrieve(QUERY)] == expected
        assert [(n.node_id, n.score) for n in await hybrid.aretrieve(QUERY)] == expected
        assert index.as_retriever(filters=where(("部署", "==", "人事"))).retrieve(QUERY) == []

    def test_is_made_of_nodes_and_changes(self, engine: Engine):
        store = JaColBERTVectorStore(engine=engine)
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex(NODES, storage_context=context, embed_model=NoEmbedding())
        assert store.get_nodes() == NODES
        assert all(node.embedding is None for node in NODES)
        index.insert_nodes([TextNode(id_="湖-2", text="霞ヶ浦は茨城県の湖です。")])
        index.delete_nodes(["湖-1"])
        index.delete_ref_doc("地理の本")
        assert asked(store) == {"規程-7", "規程-8", "湖-2"}
        index.insert(Document(id_="案内", text="会議室は総務部が予約する。"))
        assert {node.ref_doc_id for node in store.get_nodes()} == {None, "案内"}

    async def test_is_made_and_changed_off_the_loop(self, engine: Engine, monkeypatch: pytest.MonkeyPatch):
        store = JaColBERTVectorStore(engine=engine)
        index = VectorStoreIndex.from_vector_store(store, embed_model=NoEmbedding())
        slowed(engine, monkeypatch, "upsert", "delete")
        assert await longest_pause(index.ainsert_nodes(NODES)) < 0.4
        assert await longest_pause(index.adelete_ref_doc("地理の本")) < 0.4
        assert asked(store) == {"規程-7", "規程-8"}

    @pytest.mark.parametrize("highlight", [False, True])
    async def test_prompts_hold_texts_and_nothing_packed(self, store: JaColBERTVectorStore, highlight: bool):
        index = VectorStoreIndex.from_vector_store(store, embed_model=NoEmbedding())
        chat = index.as_query_engine(
            llm=MockLLM(), similarity_top_k=2, vector_store_kwargs={"highlight": highlight}
        )
        answer = chat.query(QUERY)  # MockLLM answers with its prompt
        best = store.engine.search(QUERY, 2)
        assert [n.node_id for n in answer.source_nodes] == [hit.id for hit in best]
        assert all(("jacolbert" in n.metadata) == highlight for n in answer.source_nodes)
        assert all(hit.text in str(answer) for hit in best)
        assert not any(word in str(answer) for word in ("_node", "_ref_doc_id", "jacolbert", "best_sentence"))
        assert str(await chat.aquery(QUERY)) == str(answer)

    def test_is_persisted_and_loaded(self, store: JaColBERTVectorStore, tmp_path: Path):
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex([], storage_context=context, embed_model=NoEmbedding())
        found = index.as_retriever().retrieve(QUERY)
        index.storage_context.persist(tmp_path / "storage")
        loaded = JaColBERTVectorStore.load(tmp_path / "storage" / "default__vector_store.json")
        context = StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"), vector_store=loaded)
        again = load_index_from_storage(context, embed_model=NoEmbedding())
        assert again.as_retriever().retrieve(QUERY) == found

    def test_persisting_is_a_copy(self, store: JaColBERTVectorStore, tmp_path: Path):
        context = StorageContext.from_defaults(vector_store=store)
        live = store.engine.path
        context.persist(tmp_path / "storage")
        assert store.engine.path == live
        store.delete_nodes(["湖-1"])
        copied = JaColBERTVectorStore.from_persist_dir(str(tmp_path / "storage"), highlight=True)
        assert (set(copied.engine.ids()), copied.highlight) == (ALL, True)
        context.persist(tmp_path / "storage")  # and again, over the first
        folder = str(tmp_path / "storage" / "default__vector_store.json")
        assert set(JaColBERTVectorStore.from_persist_path(folder).engine.ids()) == ALL - {"湖-1"}
        store.engine.save(tmp_path / "索引")
        store.persist(str(tmp_path / "写し"))
        store.persist(str(tmp_path / "索引"))  # where it is
        assert store.engine.path == (tmp_path / "索引").resolve()
        with pytest.raises(InvalidInputError, match="local disk"):
            JaColBERTVectorStore.from_persist_dir("storage", fs=object())

    def test_index_nodes_lead_on(self, engine: Engine):
        store = JaColBERTVectorStore(engine=engine)
        store.add([IndexNode(id_="章", text="湖の章です。", index_id="湖の章", obj=NODES[0])])
        index = VectorStoreIndex.from_vector_store(store, embed_model=NoEmbedding())
        assert [n.node for n in index.as_retriever().retrieve(QUERY)] == [NODES[0]]
        index.insert_nodes(NODES[1:])
        assert len(index.as_retriever(similarity_top_k=10).retrieve(QUERY)) == 4
        # Why the class says so:
        index.insert_nodes([IndexNode(id_="節", text="山の節です。", index_id="山の節")])
        assert [n.node_id for n in index.as_retriever(similarity_top_k=10).retrieve(QUERY)] == ["節"]

    async def test_no_embedding_computes_nothing(self):
        none = NoEmbedding()
        assert none.get_text_embedding_batch(["湖", "山"]) == [[0.0], [0.0]]
        assert none.get_agg_embedding_from_queries(["湖", "山"]) == [0.0]
        assert await none.aget_text_embedding("湖") == await none.aget_query_embedding("湖") == [0.0]
        assert none.to_dict()["class_name"] == "NoEmbedding"


def handbook(**texts: str) -> list[Document]:
    return [
        Document(id_=name, text=text, metadata={"部署": name[:2], "字数": len(text)})
        for name, text in texts.items()
    ]


@pytest.mark.usefixtures("no_settings")
class TestIngestionPipeline:
    def pipeline(self, store: JaColBERTVectorStore, strategy: DocstoreStrategy) -> IngestionPipeline:
        return IngestionPipeline(
            transformations=[JaColBERTNodeParser.from_retriever(store), NoEmbedding()],
            docstore=SimpleDocumentStore(),
            docstore_strategy=strategy,
            vector_store=store,
        )

    @pytest.mark.parametrize("run", ["run", "arun"])
    @pytest.mark.parametrize("strategy", [DocstoreStrategy.UPSERTS, DocstoreStrategy.UPSERTS_AND_DELETE])
    async def test_stays_what_the_documents_are(
        self, engine: Engine, strategy: DocstoreStrategy, run: str, monkeypatch: pytest.MonkeyPatch
    ):
        store = JaColBERTVectorStore(engine=engine)
        pipeline = self.pipeline(store, strategy)
        stored: list[str] = []
        upsert = engine.upsert
        monkeypatch.setattr(
            engine, "upsert", lambda documents: stored.extend(d.text for d in documents) or upsert(documents)
        )

        async def sync(documents: list[Document]) -> list[str]:
            stored.clear()
            done = getattr(pipeline, run)(documents=documents)
            if run == "arun":
                await done
            return list(stored)

        rule = "経費の精算は翌月5日までに申請する。"
        first = handbook(総務手引=GUIDE, 経理規程=rule, 情シス規程="サーバーの再起動は担当者が行う。")
        assert len(await sync(first)) == len(engine) > 5
        assert {node.ref_doc_id for node in store.get_nodes()} == {"総務手引", "経理規程", "情シス規程"}
        n, of_rule = len(engine), store.get_nodes(filters=where(("部署", "==", "経理")))
        assert await sync(first) == []
        changed = "サーバーの停止は、部長が決める。"
        second = handbook(経理規程=rule, 情シス規程=changed)
        assert await sync(second) == [changed]  # what has not changed was not stored again
        left = {node.ref_doc_id for node in store.get_nodes()}
        assert store.get_nodes(filters=where(("部署", "==", "経理"))) == of_rule
        if strategy is DocstoreStrategy.UPSERTS:
            assert (left, len(engine)) == ({"総務手引", "経理規程", "情シス規程"}, n)
        else:
            assert (left, len(engine)) == ({"経理規程", "情シス規程"}, 2)
        index = VectorStoreIndex.from_vector_store(store, embed_model=NoEmbedding())
        for mode in ("default", "hybrid", "text_search"):
            retriever = index.as_retriever(
                similarity_top_k=50, vector_store_query_mode=mode, filters=where(("部署", "==", "情シ"))
            )
            assert [n.text for n in retriever.retrieve("サーバーの再起動")] == [changed]

    def test_a_shorter_document_leaves_no_chunks(self, engine: Engine):
        store = JaColBERTVectorStore(engine=engine)
        pipeline = self.pipeline(store, DocstoreStrategy.UPSERTS)
        pipeline.run(documents=handbook(総務手引=GUIDE))
        shorter = GUIDE[: GUIDE.index("。") + 1]
        pipeline.run(documents=handbook(総務手引=shorter))
        assert [node.text for node in store.get_nodes()] == [shorter.strip()]

    def test_documents_and_nodes_without_a_parser(self, engine: Engine):
        store = JaColBERTVectorStore(engine=engine)
        pipeline = self.pipeline(store, DocstoreStrategy.UPSERTS_AND_DELETE)
        pipeline.transformations = [NoEmbedding()]
        pipeline.run(documents=handbook(総務案内="会議室は総務部が予約する。"), nodes=NODES[2:])
        assert set(engine.ids()) == {"総務案内", "規程-7", "規程-8"}
        changed = NODES[3].model_copy(update={"metadata": {"部署": "総務"}})
        pipeline.run(documents=handbook(総務案内="会議室は各部が予約する。"), nodes=[changed])
        assert {document.id: document.text for document in engine} == {
            "総務案内": "会議室は各部が予約する。",
            "規程-8": NODES[3].text,
        }
        assert asked(store, filters=where(("部署", "==", "総務"))) == {"総務案内", "規程-8"}

    def test_without_an_embedding_llama_index_stores_nothing(self, engine: Engine):
        store = JaColBERTVectorStore(engine=engine)
        pipeline = self.pipeline(store, DocstoreStrategy.UPSERTS)
        pipeline.transformations = []
        pipeline.run(documents=handbook(総務案内="案内。"))
        assert len(engine) == 0  # why the class asks for NoEmbedding
        pipeline.transformations = [NoEmbedding(), JaColBERTNodeParser.from_retriever(store)]
        pipeline.run(documents=handbook(総務案内="案内。"))
        assert len(engine) == 0  # the docstore remembers the document
        pipeline.run(documents=handbook(総務案内="新しい案内。"))
        assert len(engine) == 1  # in whatever order the transformations are

    def test_refreshing_a_reopened_store_deletes_nothing(self, engine: Engine):
        store = JaColBERTVectorStore(engine=engine)

        def refresh(text: str) -> None:
            index = VectorStoreIndex.from_vector_store(
                store,
                embed_model=NoEmbedding(),
                transformations=[JaColBERTNodeParser.from_retriever(store)],
            )
            index.refresh_ref_docs(handbook(総務案内=text))

        refresh("会議室は総務部が予約する。")
        refresh("会議室は各部が予約する。")
        assert len(engine) == 2  # why README asks for a pipeline and a persisted docstore

    async def test_does_not_stop_the_loop(self, engine: Engine, monkeypatch: pytest.MonkeyPatch):
        store = JaColBERTVectorStore(engine=engine)
        pipeline = self.pipeline(store, DocstoreStrategy.UPSERTS)
        slowed(engine, monkeypatch, "upsert", "delete")
        assert await longest_pause(pipeline.arun(documents=handbook(総務案内="会議室は総務部。"))) < 0.4
        assert await longest_pause(pipeline.arun(documents=handbook(総務案内="会議室は各部。"))) < 0.4


async def test_many_queries_at_once(store: JaColBERTVectorStore):
    query = VectorStoreQuery(query_str=QUERY, similarity_top_k=4, mode=VectorStoreQueryMode.HYBRID)
    expected = store.query(query)
    assert await asyncio.gather(*(store.aquery(query) for _ in range(8))) == [expected] * 8


def test_is_imported_when_it_is_asked_for():
    loaded = "[n for n in ('torch', 'transformers', 'voyager', 'langchain_core') if n in sys.modules]"
    assert run_python(f"import sys, jacolbert_rag.llama_index_store; print({loaded})") == "[]"
    said = run_python(
        "import sys, jacolbert_rag.llama_index; print('jacolbert_rag.llama_index_store' in sys.modules)"
    )
    assert said == "False"
    with pytest.raises(AttributeError, match="nothing"):
        _ = adapters.nothing


def test_without_llama_index_core_the_error_names_the_extra():
    said = import_error("import jacolbert_rag.llama_index_store", missing="llama_index")
    assert said.startswith("OptionalDependencyError")
    assert "pip install 'jacolbert-rag[llama-index]'" in said
