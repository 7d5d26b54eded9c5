"""Search by words, by both, with filters, and with the right to say nothing: end to end."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jacolbert_rag import (
    CandidateConfig,
    Document,
    IndexSettings,
    JaColBERTRetriever,
    LexicalConfig,
    PoolingConfig,
    SearchConfig,
)
from jacolbert_rag.config import SearchMode
from jacolbert_rag.errors import IndexMismatchError, InvalidInputError
from jacolbert_rag.index.filters import AllOf, Condition, Filter, Ids, NoneOf, matches, parse
from jacolbert_rag.index.fusion import fuse
from tests.conftest import SENTENCES

MODES: tuple[SearchMode, ...] = ("jacolbert", "bm25", "hybrid")
FILTERS: tuple[dict[str, Any], ...] = (
    {"番号": {"$lt": 5}},
    {"番号": {"$gte": 3}, "種": "偶数"},
    {"$or": [{"番号": 1}, {"番号": {"$in": [7, 8]}}]},
    {"$not": {"種": "奇数"}},
    {"無い": 1},
    {},
)


@pytest.fixture(params=["exact", "candidates"])
def filled(request: pytest.FixtureRequest, tiny_model: Path) -> JaColBERTRetriever:
    settings = IndexSettings(
        candidates=CandidateConfig(tokens_per_pooled=4, n_nearest=8, n_candidates=10),
        search=SearchConfig(exact_below=0 if request.param == "candidates" else 1_000),
    )
    made = JaColBERTRetriever.from_pretrained(tiny_model, settings=settings)
    made.add(documents())
    return made


def documents() -> list[Document]:
    return [
        Document(f"文{i}", text, {"番号": i, "種": "奇数" if i % 2 else "偶数"})
        for i, text in enumerate(SENTENCES * 3)
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("given", FILTERS)
def test_filters_filter_on_every_path(filled: JaColBERTRetriever, mode: SearchMode, given: Any) -> None:
    wanted = {d.id for d in documents() if matches(parse(given), d.metadata)}
    for query in (SENTENCES[0], "日本の町"):
        whole = filled.search(query, 100, mode=mode)
        hits = filled.search(query, 100, mode=mode, filter=given)
        assert {hit.id for hit in hits} == {hit.id for hit in whole} & wanted
        by_function = filled.search(
            query, 100, mode=mode, filter=lambda document: matches(parse(given), document.metadata)
        )
        assert by_function == hits
        if mode != "hybrid":  # whose scores depend on what else may be found
            kept = {hit.id: hit.score for hit in whole if hit.id in wanted}
            assert {hit.id: pytest.approx(hit.score, abs=1e-4) for hit in hits} == kept
        few = filled.search(query, 3, mode=mode, filter=given)
        assert len(few) == min(3, len(hits))


def test_a_filter_sees_what_was_changed_since(filled: JaColBERTRetriever) -> None:
    given = {"番号": {"$lt": 2}}
    assert len(filled.search("町", 50, filter=given)) == 2
    filled.add([Document("新", "新しい町である。", {"番号": 1})])
    assert len(filled.search("町", 50, filter=given)) == 3
    filled.upsert([Document("新", "新しい町である。", {"番号": 9})])  # metadata alone
    assert len(filled.search("町", 50, filter=given)) == 2
    filled.upsert([Document("新", "新しい町である。", {"番号": 0})])
    filled.delete(["文0"])
    assert {hit.id for hit in filled.search("町", 50, filter=given)} == {"新", "文1"}
    filled.compact()
    assert {hit.id for hit in filled.search("町", 50, filter=given)} == {"新", "文1"}


@pytest.mark.parametrize("given", FILTERS)
def test_documents_that_a_filter_lets_through(filled: JaColBERTRetriever, given: Any) -> None:
    wanted = [d for d in documents() if matches(parse(given), d.metadata)]
    assert list(filled.documents(given)) == wanted
    assert list(filled.documents(lambda document: matches(parse(given), document.metadata))) == wanted
    assert list(filled.documents()) == list(filled) == documents()


def test_documents_by_filter_are_those_of_the_moment(filled: JaColBERTRetriever) -> None:
    few = filled.documents({"番号": {"$lt": 3}})
    filled.add([Document("新", "新しい町である。", {"番号": 1})])
    filled.delete(["文0"])
    assert [document.id for document in few] == ["文1", "文2"]
    with pytest.raises(InvalidInputError, match=r"\$near"):
        filled.documents({"番号": {"$near": 3}})


def test_a_field_of_another_type_is_an_error(filled: JaColBERTRetriever) -> None:
    with pytest.raises(InvalidInputError, match="種"):
        filled.search("町", filter={"種": {"$gt": 3}})
    with pytest.raises(InvalidInputError, match=r"\$near"):
        filled.search("町", filter={"番号": {"$near": 3}})
    with pytest.raises(InvalidInputError, match="filter is a int"):
        filled.search("町", filter=3)  # type: ignore[arg-type]


class Later:
    """A filter whose method is async."""

    async def __call__(self, document: Document) -> bool:
        return False


async def later(document: Document) -> bool:
    return False


async def one_by_one(document: Document) -> AsyncIterator[bool]:
    yield False


def in_turns(document: Document) -> Iterator[bool]:
    yield False


@pytest.mark.filterwarnings("error")  # of a coroutine that nobody awaits
@pytest.mark.parametrize(
    "function",
    [
        later,
        one_by_one,
        in_turns,
        Later(),
        partial(later),
        lambda document: later(document),
        lambda document: in_turns(document),
        lambda document: one_by_one(document),
    ],
)
def test_a_function_that_only_promises_an_answer_is_refused(
    retriever: JaColBERTRetriever, function: Any
) -> None:
    # What it returns is true of every document, so all of them would be let through.
    retriever.add(documents()[:3])
    with pytest.raises(InvalidInputError, match="nothing would be filtered.* plain function"):
        retriever.search("町", filter=function)
    with pytest.raises(InvalidInputError, match="nothing would be filtered"):
        list(retriever.documents(function))


def test_what_a_function_returns_counts_as_python_counts_it(retriever: JaColBERTRetriever) -> None:
    retriever.add(documents()[:4])
    for function in (
        lambda document: re.search("文[02]", document.id),
        lambda document: np.bool_(document.metadata["種"] == "偶数"),
        lambda document: document.metadata["番号"] % 2 - 1,
    ):
        assert {hit.id for hit in retriever.search("町", filter=function)} == {"文0", "文2"}  # type: ignore[arg-type]


class Tired(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [
        KeyError("年"),
        Tired("もう無理"),
        sqlite3.OperationalError("no such table"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        OSError(28, "disk full"),
        StopIteration(),
    ],
)
def test_what_a_function_raises_is_no_damage(retriever: JaColBERTRetriever, error: Exception) -> None:
    retriever.add(documents()[:3])

    def fail(document: Document) -> bool:
        if document.id == "文1":
            raise error
        return True

    with pytest.raises(
        InvalidInputError, match=f"failed on the document '文1': {type(error).__name__}"
    ) as got:
        retriever.search("町", filter=fail)
    assert got.value.__cause__ is error
    assert len(retriever.search("町")) == 3


def test_an_error_of_ours_comes_out_of_a_function(retriever: JaColBERTRetriever) -> None:
    retriever.add(documents()[:3])
    with pytest.raises(InvalidInputError, match="^Field '種'"):
        retriever.search("町", filter=lambda document: matches(parse({"種": {"$gt": 3}}), document.metadata))


@pytest.mark.parametrize("query", ["首都", "東京", "abc123", "ＡＢＣ－１２３", "サーバ", "サーバー", "ｻｰﾊﾞｰ"])
def test_words_are_found_as_people_write_them(retriever: JaColBERTRetriever, query: str) -> None:
    retriever.add([Document(f"他{i}", text) for i, text in enumerate(SENTENCES)])
    retriever.add(
        [Document("首都", "首都は東京である。"), Document("型番", "このサーバーの型番はＡＢＣ－１２３。")]
    )
    expected = "首都" if query in ("首都", "東京") else "型番"
    assert retriever.search(query, 1, mode="bm25")[0].id == expected
    assert retriever.search(query, 1, mode="hybrid")[0].scores["bm25"] > 0


def test_full_text_search_finds_only_what_shares_a_term(retriever: JaColBERTRetriever) -> None:
    retriever.add(["首都は東京である。", "琵琶湖は湖である。"])
    assert [hit.text for hit in retriever.search("東京", 5, mode="bm25")] == ["首都は東京である。"]
    assert retriever.search("量子", 5, mode="bm25") == []
    assert len(retriever.search("量子", 5, mode="hybrid")) == 2


def test_without_folding_words_count_as_they_are_written(tiny_model: Path) -> None:
    settings = IndexSettings(lexical=LexicalConfig(fold=False))
    made = JaColBERTRetriever.from_pretrained(tiny_model, settings=settings)
    made.add(["サーバーを置く。", "学校へ行く。"])
    assert made.search("サーバー", mode="bm25")
    assert not made.search("サーバ", mode="bm25")


def test_folding_is_part_of_how_an_index_is_built(retriever: JaColBERTRetriever, tmp_path: Path) -> None:
    retriever.add(["首都は東京である。"])
    retriever.save(tmp_path / "index")
    with pytest.raises(IndexMismatchError, match="fold"):
        JaColBERTRetriever.load(tmp_path / "index", settings=IndexSettings(lexical=LexicalConfig(fold=False)))
    opened = JaColBERTRetriever.load(
        tmp_path / "index", settings=IndexSettings(lexical=LexicalConfig(weight=0.1, fusion="rrf"))
    )
    assert opened.search("東京", mode="hybrid")[0].scores["bm25"] > 0


def test_full_text_search_is_durable(retriever: JaColBERTRetriever, tmp_path: Path) -> None:
    retriever.add(documents())
    retriever.delete(["文3", "文4"])
    before = retriever.search(SENTENCES[1], 20, mode="bm25")
    retriever.save(tmp_path / "index")
    opened = JaColBERTRetriever.load(tmp_path / "index")
    assert opened.search(SENTENCES[1], 20, mode="bm25") == before
    opened.compact()
    assert [hit.score for hit in opened.search(SENTENCES[1], 20, mode="bm25")] == pytest.approx(
        [hit.score for hit in before]
    )


def test_damaged_word_lists_are_made_anew(
    retriever: JaColBERTRetriever, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    retriever.add(documents())
    before = retriever.search(SENTENCES[1], 20, mode="bm25")
    retriever.save(tmp_path / "index")
    (words,) = (tmp_path / "index" / "files").glob("*.words.npy")
    words.write_bytes(words.read_bytes()[:-8])
    opened = JaColBERTRetriever.load(tmp_path / "index")
    assert "words.npy" in caplog.text
    assert opened.search(SENTENCES[1], 20, mode="bm25") == before
    assert opened.verify() == []


def test_hybrid_gives_both_scores(filled: JaColBERTRetriever) -> None:
    hits = filled.search(SENTENCES[2], 5, mode="hybrid")
    maxsim = {hit.id: hit.score for hit in filled.search(SENTENCES[2], 100, exact=True)}
    bm25 = {hit.id: hit.score for hit in filled.search(SENTENCES[2], 100, mode="bm25")}
    for hit in hits:
        assert hit.scores["maxsim"] == pytest.approx(maxsim[hit.id], abs=1e-4)
        assert hit.scores["bm25"] == pytest.approx(bm25.get(hit.id, 0.0), abs=1e-5)
        assert all(0 <= hit.scores[name] <= 1 for name in ("similarity", "coverage", "confidence"))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits[0].score <= 1


@pytest.mark.parametrize("fusion", ["min-max", "rrf"])
def test_the_weight_moves_fusion_from_one_side_to_the_other(fusion: Any) -> None:
    maxsim, bm25 = np.float32([9, 7, 1]), np.float32([0, 3, 5])
    sides = [fuse(maxsim, bm25, LexicalConfig(fusion=fusion, weight=weight)) for weight in (0.0, 1.0)]
    assert np.argsort(-sides[0]).tolist() == [0, 1, 2]
    assert np.argsort(-sides[1]).tolist() == [2, 1, 0]
    assert sides[0].max() == sides[1].max() == 1.0
    middle = fuse(maxsim, bm25, LexicalConfig(fusion=fusion, weight=0.5))
    assert middle == pytest.approx((sides[0] + sides[1]) / 2)


def test_min_max_by_hand() -> None:
    found = fuse(np.float32([10, 5, 0]), np.float32([0, 4, 2]), LexicalConfig(weight=0.25))
    assert found == pytest.approx([0.75, 0.75 * 0.5 + 0.25, 0.125])
    alike = fuse(np.float32([3, 3]), np.float32([0, 0]), LexicalConfig(weight=0.25))
    assert alike.tolist() == [0.75, 0.75]
    assert fuse(np.float32([3]), np.float32([2]), LexicalConfig()).tolist() == [1.0]
    assert fuse(np.float32([]), np.float32([]), LexicalConfig()).tolist() == []


def test_a_weight_of_this_search(filled: JaColBERTRetriever) -> None:
    query = "日本の町"
    by_words = {hit.id: hit.scores["bm25"] for hit in filled.search(query, 27, mode="hybrid", weight=1.0)}
    assert list(by_words.values()) == sorted(by_words.values(), reverse=True)
    near = [hit.scores["maxsim"] for hit in filled.search(query, 27, mode="hybrid", weight=0.0)]
    assert near == sorted(near, reverse=True)
    default = filled.settings.lexical.weight
    assert filled.search(query, 9, mode="hybrid", weight=default) == filled.search(query, 9, mode="hybrid")
    for wrong, says in (({"weight": 1.5, "mode": "hybrid"}, "from 0 to 1"), ({"weight": 0.5}, "mode is")):
        with pytest.raises(InvalidInputError, match=says):
            filled.search(query, **wrong)


def test_hybrid_scores_do_not_depend_on_how_many_are_asked_for(tiny_model: Path) -> None:
    settings = IndexSettings(lexical=LexicalConfig(n_fused=8))
    made = JaColBERTRetriever.from_pretrained(tiny_model, settings=settings)
    made.add(documents())
    few, many = (made.search("日本の町", k, mode="hybrid") for k in (3, 8))
    assert [(hit.id, hit.score) for hit in many[:3]] == [(hit.id, hit.score) for hit in few]


def test_an_unknown_mode_is_refused(retriever: JaColBERTRetriever) -> None:
    with pytest.raises(InvalidInputError, match="hybrid"):
        retriever.search("町", mode="dense")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="no text"):
        retriever.search(" \u3000", mode="bm25")


def test_an_empty_index_finds_nothing(retriever: JaColBERTRetriever) -> None:
    for mode in MODES:
        assert retriever.search("町", mode=mode, filter={"a": 1}) == []


def many() -> list[Document]:
    rng = random.Random(3)
    places, things = (
        ("東京", "大阪", "京都", "札幌", "福岡"),
        ("祭り", "鉄道", "図書館", "大学", "港", "公園"),
    )
    return [
        Document(f"{a}{b}", f"{a}の{b}は古い。{rng.randint(1500, 1900)}年に作られた{b}である。")
        for a in places
        for b in things
    ]


def test_calibration_is_stored_and_used(tmp_path: Path) -> None:
    retriever = JaColBERTRetriever.from_pretrained()
    retriever.add(many())
    with pytest.raises(InvalidInputError, match="calibrate"):
        retriever.search("東京の祭り", abstain=True)
    assert retriever.calibration is None
    found = retriever.calibrate(n=30, quantile=0.5)
    assert (found.n_sentences, found.n_documents) == (30, 30)
    assert set(found.thresholds) == set(MODES)
    assert all(0 < least < 1 for least in found.thresholds.values())
    retriever.save(tmp_path / "index")
    opened = JaColBERTRetriever.load(tmp_path / "index")
    assert opened.calibration == found
    for mode in MODES:
        (hit,) = opened.search(many()[0].text, 1, mode=mode, abstain=True)
        assert hit.scores["confidence"] >= found.thresholds[mode]
        assert opened.search("量子コンピューターの誤り訂正とは何か？", 1, mode=mode, abstain=True) == []
    assert opened.calibrate(n=30, quantile=0.5) == found  # from one seed the same


def test_a_threshold_of_another_confidence_is_refused() -> None:
    retriever = JaColBERTRetriever.from_pretrained()
    retriever.add(many())
    found = retriever.calibrate(n=30)
    former = replace(found, made_with={**found.made_with, "confidence": 1})
    retriever._index.write_state(calibration=former.to_json())
    with pytest.raises(InvalidInputError, match="confidence.*calibrate"):
        retriever.search("東京の祭り", abstain=True)
    retriever._index.write_state(calibration={"threshold": 0.5, "quantile": 0.85})
    with pytest.raises(InvalidInputError, match="another version.*calibrate"):
        retriever.search("東京の祭り", abstain=True)
    retriever.calibrate(n=30)
    assert retriever.search(many()[0].text, 1, abstain=True)


def test_calibration_asks_a_corpus_that_has_never_had_the_document() -> None:
    retriever = JaColBERTRetriever.from_pretrained()
    retriever.add(many())
    retriever.add([Document("珍", "薔薇園の管理規則をここに定める。")])
    question = retriever._questions(["薔薇園の管理規則をここに定める。"], embed=True)[0]
    found = retriever._read(lambda view: retriever._best_without(view, question, "珍", "hybrid"))
    retriever.delete(["珍"])
    assert found == pytest.approx(retriever.search(question.text, 1, mode="hybrid")[0].scores["confidence"])


def test_calibration_leaves_out_every_document_that_has_the_question() -> None:
    once, twice = JaColBERTRetriever.from_pretrained(), JaColBERTRetriever.from_pretrained()
    once.add(many())
    twice.add(many())
    # As the overlapping chunks of a framework's splitter, which are documents of their own.
    twice.add([Document(f"{each.id}の写し", f"{each.text}以上。") for each in many()])
    found, copied = once.calibrate(n=30), twice.calibrate(n=60)
    for mode in MODES:
        assert copied.thresholds[mode] == pytest.approx(found.thresholds[mode], abs=0.1)


@pytest.mark.parametrize(
    "given", [{"n": 5}, {"n": -1}, {"n": "a"}, {"n": True}, {"seed": -1}, {"quantile": "a"}]
)
def test_calibration_refuses_what_is_out_of_range(retriever: JaColBERTRetriever, given: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"{next(iter(given))} is"):
        retriever.calibrate(**given)


def test_calibration_needs_documents(retriever: JaColBERTRetriever) -> None:
    retriever.add(SENTENCES[:5])
    with pytest.raises(InvalidInputError, match="at least 20"):
        retriever.calibrate()
    with pytest.raises(InvalidInputError, match="quantile"):
        retriever.calibrate(quantile=1.0)


def test_pooled_documents_know_their_tokens(tiny_model: Path) -> None:
    settings = IndexSettings(pooling=PoolingConfig(factor=2))
    pooled = JaColBERTRetriever.from_pretrained(tiny_model, settings=settings)
    pooled.add(documents()[:9])
    hits = pooled.search("日本の町", 9, highlight=True)
    assert len(hits) == 9
    assert pooled.search("日本の町", 9, mode="hybrid", highlight=True)[0].highlight is not None
    assert all(hit.highlight is not None and hit.highlight.text == hit.text for hit in hits)


@pytest.mark.parametrize("mode", MODES)
def test_filters_by_id(filled: JaColBERTRetriever, mode: SearchMode) -> None:
    given = AllOf((Ids(frozenset({"文1", "文2", "文4", "無い"})), Condition("種", "==", "偶数")))
    by_function = filled.search("町", 50, mode=mode, filter=lambda document: document.id in ("文2", "文4"))
    assert filled.search("町", 50, mode=mode, filter=given) == by_function
    assert [document.id for document in filled.documents(given)] == ["文2", "文4"]
    filled.delete(["文2"])
    filled.compact()
    assert [document.id for document in filled.documents(given)] == ["文4"]
    assert filled.search("町", 50, mode=mode, filter=Ids(frozenset())) == []


def test_nested_filters_of_conditions(filled: JaColBERTRetriever) -> None:
    given: Filter = AllOf((Condition("番号", "<", 6), NoneOf((Condition("種", "==", "奇数"),))))
    assert {hit.metadata["番号"] for hit in filled.search("町", 50, filter=given)} == {0, 2, 4}
