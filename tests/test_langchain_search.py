"""jacolbert_rag.langchain: filters, modes, highlights and abstaining, in every way of calling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from jacolbert_rag import Document as NativeDocument
from jacolbert_rag import IndexSettings, InvalidInputError, SearchConfig
from jacolbert_rag import JaColBERTRetriever as Engine
from jacolbert_rag.config import LexicalConfig
from jacolbert_rag.langchain import JaColBERTReranker, JaColBERTRetriever, JaColBERTVectorStore

QUERY = "日本で一番大きい湖はどこですか？"
DOCUMENTS = [
    Document(
        "琵琶湖は滋賀県にある、日本で最も大きな湖です。",
        id="湖-1",
        metadata={"部署": "地理", "年": 2019, "タグ": ["湖", "滋賀"], "公開": True},
    ),
    Document(
        "富士山の標高は３７７６メートルで、日本一高い。",
        id="山-1",
        metadata={"部署": "地理", "年": 2021, "タグ": ["山"], "公開": False},
    ),
    Document(
        "経費の精算は「翌月5日」までに申請してください。",
        id="規程-7",
        metadata={"部署": "経理", "年": 2023, "改訂": {"版": 2}},
    ),
    Document(
        "サーバーの再起動は、情報システム部の担当者が行う。",
        id="規程-8",
        metadata={"部署": "情シス", "年": 2023, "改訂": {"版": 1}},
    ),
]
NAMED = {
    "鮎": "岐阜", "桃": "山梨", "鰹": "高知", "鯛": "愛媛", "鮪": "青森", "蟹": "福井",
    "牡蠣": "広島", "蕎麦": "長野", "饂飩": "香川", "蜜柑": "和歌山", "林檎": "秋田", "葡萄": "岡山",
    "梨": "鳥取", "柿": "奈良", "梅": "大分", "茶": "静岡", "酒": "新潟", "味噌": "愛知",
    "豆腐": "京都", "納豆": "茨城", "漆器": "石川", "陶器": "佐賀", "和紙": "島根",
}  # fmt: skip
ANSWERED, UNANSWERED = "香川の饂飩", "宇宙の年齢"
FILTERS: list[tuple[Any, set[str]]] = [
    ({"部署": "地理"}, {"湖-1", "山-1"}),
    ({"年": {"$gte": 2021, "$lt": 2023}}, {"山-1"}),
    ({"$or": [{"部署": "経理"}, {"タグ": {"$contains": "湖"}}]}, {"湖-1", "規程-7"}),
    ({"$not": {"部署": {"$in": ["地理", "経理"]}}}, {"規程-8"}),
    ({"公開": True}, {"湖-1"}),
    ({"改訂.版": {"$gt": 1}}, {"規程-7"}),
    ({"部署": "人事"}, set()),
    ({}, {"湖-1", "山-1", "規程-7", "規程-8"}),
    (lambda document: document.metadata["年"] == 2023 and "経費" in document.page_content, {"規程-7"}),
]


@pytest.fixture(params=["exact", "candidates"])
def engine(tiny_model: Path, request: pytest.FixtureRequest) -> Engine:
    """An index over DOCUMENTS that is searched whole, or through candidates however small it is."""
    search = SearchConfig() if request.param == "exact" else SearchConfig(exact_below=0)
    engine = Engine.from_pretrained(tiny_model, settings=IndexSettings(search=search))
    JaColBERTVectorStore(engine).add_documents(DOCUMENTS)
    return engine


def calibrated_engine(model: Path) -> Engine:
    """An index that knows which confidence answers; words weigh more than the weights of chance."""
    lexical = LexicalConfig(weight=0.9)
    engine = Engine.from_pretrained(model, settings=IndexSettings(lexical=lexical))
    engine.add([f"{thing}は{place}の名物である。" for thing, place in NAMED.items()])
    engine.calibrate()
    return engine


@pytest.fixture(scope="module")
def calibrated(tiny_model: Path) -> Engine:
    """See `calibrated_engine`."""
    return calibrated_engine(tiny_model)


def before_of(documents: list[NativeDocument], id: str) -> dict[str, Any]:
    return next(dict(document.metadata) for document in documents if document.id == id)


def ids(documents: list[Document]) -> set[str | None]:
    return {document.id for document in documents}


async def longest_pause(work: Awaitable[Any]) -> float:
    """Seconds for which the event loop stood still at most while it awaited some work."""
    task, longest, last = asyncio.ensure_future(work), 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0.005)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    await task
    return longest


def slowed(engine: Engine, monkeypatch: pytest.MonkeyPatch, *methods: str) -> None:
    """Make methods of an engine take half a second longer."""

    def slow(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (time.sleep(0.5), call(*args, **kwargs))[1]

    for method in methods:
        monkeypatch.setattr(engine, method, slow(getattr(engine, method)))


class TestRetriever:
    @pytest.mark.parametrize(("filter", "expected"), FILTERS)
    async def test_filters_in_every_way_of_calling(self, engine: Engine, filter: Any, expected: set[str]):
        plain, kept = JaColBERTRetriever(engine=engine), JaColBERTRetriever(engine=engine, filter=filter)
        found = kept.invoke(QUERY)
        assert ids(found) == expected
        assert plain.invoke(QUERY, filter=filter) == found
        assert await plain.ainvoke(QUERY, filter=filter) == found
        assert await kept.ainvoke(QUERY) == found
        assert plain.batch([QUERY, "山"], filter=filter)[0] == found
        assert (await plain.abatch([QUERY, "山"], filter=filter))[0] == found
        assert ids(kept.invoke(QUERY, filter={})) == ids(DOCUMENTS)

    @pytest.mark.parametrize("mode", ["jacolbert", "bm25", "hybrid"])
    async def test_modes_give_the_engines_hits(self, engine: Engine, mode: Any):
        hits = engine.search("日本の湖", 3, mode=mode, filter={"部署": "地理"})
        assert hits
        plain = JaColBERTRetriever(engine=engine, k=3, filter={"部署": "地理"})
        found = plain.invoke("日本の湖", mode=mode)
        assert [(d.id, d.metadata["relevance_score"]) for d in found] == [(h.id, h.score) for h in hits]
        assert plain.model_copy(update={"mode": mode}).invoke("日本の湖") == found
        assert await plain.ainvoke("日本の湖", mode=mode) == found

    def test_functions_are_asked_of_langchain_documents(self, retriever: Engine):
        retriever.add([NativeDocument("b", "滋賀県にある湖。", {"頁": 3}, title="琵琶湖")])
        asked = []
        found = JaColBERTRetriever(engine=retriever, score_key=None).invoke(
            QUERY, filter=lambda document: asked.append(document) or True
        )
        assert asked == found == [Document("滋賀県にある湖。", id="b", metadata={"title": "琵琶湖", "頁": 3})]

    async def test_highlights_are_in_the_metadata(self, engine: Engine):
        wrapped = JaColBERTRetriever(engine=engine, k=2)
        hits = engine.search(QUERY, 2, highlight=True, mode="hybrid")
        found = wrapped.invoke(QUERY, highlight=True, mode="hybrid")
        assert [d.metadata["jacolbert"] for d in found] == [hit.details() for hit in hits]
        assert found[0].metadata["relevance_score"] == found[0].metadata["jacolbert"]["score"]
        assert await wrapped.ainvoke(QUERY, highlight=True, mode="hybrid") == found
        shown = JaColBERTRetriever(engine=engine, k=2, highlight=True, mode="hybrid", score_key=None)
        assert [set(d.metadata) - {"jacolbert"} for d in shown.invoke(QUERY)] == [
            set(hit.metadata) for hit in hits
        ]
        assert "jacolbert" not in shown.invoke(QUERY, highlight=False)[0].metadata

    @pytest.mark.parametrize("score_key", [None, "relevance_score", "点数"])
    @pytest.mark.parametrize("highlight", [False, True])
    def test_what_was_found_may_be_added_again(self, engine: Engine, score_key: str | None, highlight: bool):
        before = list(engine)
        wrapped = JaColBERTRetriever(engine=engine, score_key=score_key, highlight=highlight)
        found = wrapped.invoke(QUERY)
        kept = deepcopy(found)
        ids = wrapped.add_documents(found)
        assert (found, list(engine)) == (kept, before)
        if score_key != "点数":  # the store knows LangChain's name
            ranked = JaColBERTReranker(engine=engine, top_n=4).compress_documents(found, QUERY)
            JaColBERTVectorStore(engine).add_documents(ranked)
            assert list(engine) == before
        found[0].metadata["部署"] = "湖沼"
        found[0].page_content = "琵琶湖は広い。"
        wrapped.add_documents(found)
        (changed,) = engine.get(ids[:1])
        assert changed.metadata == {**before_of(before, ids[0]), "部署": "湖沼"}

    def test_users_own_values_stay(self, engine: Engine):
        own = {"relevance_score": 0.5, "jacolbert": {"版": 2}}
        wrapped = JaColBERTRetriever(engine=engine, k=9, highlight=True)
        wrapped.add_documents([Document("琵琶湖は広い湖です。", id="湖-2", metadata=own)])
        for _ in range(2):
            found = {document.id: document for document in wrapped.invoke(QUERY)}
            assert found["湖-2"].metadata == own
            assert found["湖-1"].metadata["jacolbert"]["score"] == found["湖-1"].metadata["relevance_score"]
            wrapped.add_documents([found["湖-2"]])
        renamed = wrapped.model_copy(update={"score_key": "点数"}).invoke(QUERY)
        assert all("点数" in document.metadata for document in renamed)

    async def test_abstains(self, calibrated: Engine):
        wrapped = JaColBERTRetriever(engine=calibrated, mode="hybrid", abstain=True)
        assert wrapped.invoke(ANSWERED)[0].page_content == "饂飩は香川の名物である。"
        assert wrapped.invoke(UNANSWERED) == await wrapped.ainvoke(UNANSWERED) == []
        assert len(wrapped.invoke(UNANSWERED, abstain=False)) == 4
        assert JaColBERTRetriever(engine=calibrated).batch([UNANSWERED], abstain=True) == [[]]

    async def test_what_cannot_be_asked_is_refused(self, engine: Engine):
        wrapped = JaColBERTRetriever(engine=engine)
        with pytest.raises(InvalidInputError, match=r"\$gtr"):
            wrapped.invoke(QUERY, filter={"年": {"$gtr": 2020}})
        with pytest.raises(InvalidInputError, match="部署"):
            await wrapped.ainvoke(QUERY, filter={"部署": {"$gt": 3}})
        with pytest.raises(InvalidInputError, match="filter is a list"):
            wrapped.invoke(QUERY, filter=["地理"])
        with pytest.raises(InvalidInputError, match="mode is 'dense'"):
            wrapped.invoke(QUERY, mode="dense")
        with pytest.raises(InvalidInputError, match="calibrate"):
            wrapped.invoke(QUERY, abstain=True)
        with pytest.raises(TypeError, match="fitler"):
            wrapped.invoke(QUERY, fitler={})
        with pytest.raises(ValidationError, match="mode"):
            JaColBERTRetriever(engine=engine, mode="dense")  # type: ignore[arg-type]

    def test_constructors_take_the_fields(self, tiny_model: Path, tmp_path: Path):
        fields: Any = {"k": 3, "mode": "hybrid", "filter": {"部署": "地理"}, "score_key": "点数"}
        made = JaColBERTRetriever.from_documents(DOCUMENTS, model=tiny_model, **fields)
        found = made.invoke(QUERY)
        assert ids(found) == {"湖-1", "山-1"}
        assert all("点数" in document.metadata for document in found)
        made.save(tmp_path / "索引")
        assert JaColBERTRetriever.load(tmp_path / "索引", **fields).invoke(QUERY) == found
        opened = JaColBERTRetriever.from_pretrained(tiny_model, index=tmp_path / "索引", **fields)
        assert opened.invoke(QUERY) == found
        texts = [document.page_content for document in DOCUMENTS]
        by_texts = JaColBERTRetriever.from_texts(
            texts, [document.metadata for document in DOCUMENTS], model=tiny_model, **fields
        )
        assert {d.page_content for d in by_texts.invoke(QUERY)} == {d.page_content for d in found}
        for make in (JaColBERTRetriever.from_pretrained, JaColBERTRetriever.load):
            with pytest.raises(TypeError, match="fitler"):
                make(tmp_path / "索引", fitler={})  # type: ignore[call-arg]

    def test_filters_are_configurable(self, engine: Engine):
        wrapped = JaColBERTRetriever(engine=engine).configurable_fields(filter=ConfigurableField(id="絞り"))
        found = wrapped.invoke(QUERY, {"configurable": {"絞り": {"部署": "経理"}}})
        assert ids(found) == {"規程-7"}

    async def test_a_slow_engine_does_not_stop_the_loop(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ):
        wrapped = JaColBERTRetriever(engine=engine)
        slowed(engine, monkeypatch, "search")
        assert await longest_pause(wrapped.ainvoke(QUERY, mode="hybrid", filter={"年": 2019})) < 0.4
        assert await longest_pause(wrapped.abatch([QUERY, QUERY], filter=lambda document: True)) < 0.4


class TestVectorStore:
    @pytest.mark.parametrize(("filter", "expected"), FILTERS)
    async def test_filters_in_every_search(self, engine: Engine, filter: Any, expected: set[str]):
        store = JaColBERTVectorStore(engine)
        found = store.similarity_search(QUERY, 10, filter=filter)
        assert ids(found) == expected
        scored = store.similarity_search_with_score(QUERY, 10, filter=filter)
        relevant = store.similarity_search_with_relevance_scores(QUERY, 10, filter=filter)
        assert [d for d, _ in scored] == [d for d, _ in relevant] == found
        assert await store.asimilarity_search(QUERY, 10, filter=filter) == found
        assert await store.asimilarity_search_with_score(QUERY, 10, filter=filter) == scored
        assert await store.asimilarity_search_with_relevance_scores(QUERY, 10, filter=filter) == relevant
        wrapped = store.as_retriever(search_kwargs={"filter": filter, "k": 10})
        assert wrapped.invoke(QUERY) == await wrapped.ainvoke(QUERY) == found

    @pytest.mark.parametrize("mode", ["jacolbert", "bm25", "hybrid"])
    async def test_modes_give_the_engines_scores(self, engine: Engine, mode: Any):
        store, query = JaColBERTVectorStore(engine), "日本の湖"
        hits = engine.search(query, 3, mode=mode)
        scored = store.similarity_search_with_score(query, 3, mode=mode)
        assert [(d.id, score) for d, score in scored] == [(h.id, h.score) for h in hits]
        assert [d.metadata for d, _ in scored] == [h.metadata for h in hits]
        relevant = store.similarity_search_with_relevance_scores(query, 3, mode=mode)
        name = "coverage" if mode == "bm25" else "confidence"
        assert [(d.id, score) for d, score in relevant] == [(h.id, h.scores[name]) for h in hits]
        assert all(0 <= score <= 1 for _, score in relevant)
        best = max(score for _, score in relevant)
        wrapped = store.as_retriever(
            search_type="similarity_score_threshold",
            search_kwargs={"score_threshold": best, "k": 3, "mode": mode},
        )
        expected = [document for document, score in relevant if score == best]
        assert wrapped.invoke(query) == await wrapped.ainvoke(query) == expected

    async def test_highlights_and_abstaining(self, engine: Engine, calibrated: Engine):
        refusing = JaColBERTVectorStore(calibrated)
        assert refusing.similarity_search(UNANSWERED, abstain=True) == []
        assert await refusing.asimilarity_search_with_score(UNANSWERED, abstain=True) == []
        assert refusing.as_retriever(search_kwargs={"abstain": True}).invoke(UNANSWERED) == []
        store = JaColBERTVectorStore(engine)
        hits = engine.search(QUERY, 2, highlight=True)
        for found in (
            store.similarity_search(QUERY, 2, highlight=True),
            await store.asimilarity_search(QUERY, 2, highlight=True),
            store.as_retriever(search_kwargs={"k": 2, "highlight": True}).invoke(QUERY),
        ):
            assert [d.metadata for d in found] == [{**h.metadata, "jacolbert": h.details()} for h in hits]

    async def test_what_needs_one_vector_is_refused(self, engine: Engine):
        store = JaColBERTVectorStore(engine)
        with pytest.raises(NotImplementedError, match="Pass the text to similarity_search"):
            store.similarity_search_by_vector([0.1])
        with pytest.raises(NotImplementedError, match="Pass the text to similarity_search"):
            await store.asimilarity_search_by_vector([0.1])
        with pytest.raises(NotImplementedError, match='Use search_type="similarity"'):
            store.max_marginal_relevance_search_by_vector([0.1])
        mmr = store.as_retriever(search_type="mmr")
        with pytest.raises(NotImplementedError, match='Use search_type="similarity"'):
            mmr.invoke(QUERY)
        with pytest.raises(NotImplementedError, match='Use search_type="similarity"'):
            await mmr.ainvoke(QUERY)

    async def test_a_slow_engine_does_not_stop_the_loop(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ):
        store = JaColBERTVectorStore(engine)
        slowed(engine, monkeypatch, "search", "upsert", "delete", "get")
        wrapped = store.as_retriever(search_kwargs={"filter": lambda document: True})
        for work in (
            store.asimilarity_search(QUERY, mode="hybrid"),
            store.asimilarity_search_with_score(QUERY, filter={"年": 2019}),
            store.asimilarity_search_with_relevance_scores(QUERY),
            wrapped.ainvoke(QUERY),
            store.aadd_texts(["時々、カフェで本を読む。"]),
            store.aget_by_ids(["湖-1"]),
            store.adelete(["湖-1"]),
        ):
            assert await longest_pause(work) < 0.4


class TestIndexing:
    """langchain_core.indexing over the store, and what filters and hybrid search see of it."""

    def seen(self, store: JaColBERTVectorStore, filter: Any) -> set[str]:
        """Texts that every mode finds; full-text search, by a word that all of them have."""
        found = [
            {d.page_content for d in store.similarity_search("規則", 50, filter=filter, mode=mode)}
            for mode in ("jacolbert", "bm25", "hybrid")
        ]
        assert found[0] == found[1] == found[2]
        return found[0]

    def handbook(self, *sources: int, edition: int = 1) -> list[Document]:
        return [
            Document(
                f"規則{source}の第{part}条。{edition}年の版です。",
                metadata={"出典": f"規則{source}", "条": part, "版": edition},
            )
            for source in sources
            for part in (1, 2)
        ]

    @pytest.mark.parametrize("cleanup", ["incremental", "full"])
    async def test_only_what_is_left_is_found(self, retriever: Engine, cleanup: Any):
        store, manager = JaColBERTVectorStore(retriever), InMemoryRecordManager("規則集")
        manager.create_schema()
        options: Any = {"cleanup": cleanup, "source_id_key": "出典", "key_encoder": "blake2b"}
        first = self.handbook(1, 2, 3)
        assert index(first, manager, store, **options)["num_added"] == 6
        assert self.seen(store, {"条": 1}) == {d.page_content for d in first if d.metadata["条"] == 1}
        assert index(first, manager, store, **options)["num_skipped"] == 6
        changed = self.handbook(2, edition=2)
        now = [*self.handbook(1), *changed]
        done = await aindex(now, manager, store, **options)
        gone = 2 if cleanup == "incremental" else 4  # what is not named is left alone, or cleaned too
        assert (done["num_added"], done["num_skipped"], done["num_deleted"]) == (2, 2, gone)
        left = now if cleanup == "full" else [*now, *self.handbook(3)]
        assert self.seen(store, {}) == {d.page_content for d in left}
        assert self.seen(store, {"版": {"$gte": 2}}) == {d.page_content for d in changed}
        assert self.seen(store, {"出典": "規則2", "版": 1}) == set()
        assert self.seen(store, lambda document: document.metadata["出典"] == "規則2") == {
            d.page_content for d in changed
        }
        assert index([], manager, store, **{**options, "cleanup": "full"})["num_deleted"] == len(left)
        assert self.seen(store, {}) == set()

    def test_other_metadata_alone_moves_a_document(self, retriever: Engine):
        store, manager = JaColBERTVectorStore(retriever), InMemoryRecordManager("規則集")
        manager.create_schema()
        options: Any = {"cleanup": "incremental", "source_id_key": "出典", "key_encoder": "blake2b"}
        draft = [Document("規則1の第1条。", metadata={"出典": "規則1", "状態": "案"})]
        index(draft, manager, store, **options)
        index(
            [Document("規則1の第1条。", metadata={"出典": "規則1", "状態": "公布"})],
            manager,
            store,
            **options,
        )
        assert self.seen(store, {"状態": "案"}) == set()
        assert self.seen(store, {"状態": "公布"}) == {"規則1の第1条。"}
