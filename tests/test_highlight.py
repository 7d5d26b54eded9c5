"""Highlights: which characters answered, by hand, in awkward texts, and end to end."""

from __future__ import annotations

import json
import unicodedata
from html import unescape
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jacolbert_rag import Document, Highlight, IndexSettings, JaColBERTRetriever, PoolingConfig
from jacolbert_rag.datatypes import Hit, Span
from jacolbert_rag.encode.sentences import sentences
from jacolbert_rag.encode.terms import TermMaker
from jacolbert_rag.index.highlight import highlight

PIECES = (
    "㍿日立",
    "½カップ",
    "カ゛ス",
    "ｶﾞｽ会社",
    "𠮷野家",
    "琵琶湖",
    "東京都",
    "人々",
    "サーバー",
    "🇯🇵",
    "👨‍👩‍👧",
)
PIECES += ("。", "、", "\u3000", "\n", "\ud800", "\x00", "は", "ＡＢＣ－１２３", "が゙", "㌔", "<b>&\"'")


@pytest.fixture(scope="module")
def bundled() -> JaColBERTRetriever:
    return JaColBERTRetriever.from_pretrained()


def by_hand(
    query: str, document: Document, similarities: list[list[float]], *, terms: bool = False
) -> Highlight:
    """One token a character; similarities of (q_tokens, d_tokens), each by a dimension of its own."""
    table = np.array(similarities, dtype=np.float32)
    maker = TermMaker()
    return highlight(
        query,
        query_spans=np.array([(i, i + 1) for i in range(len(query))], dtype=np.int64).reshape(-1, 2),
        query_embeddings=np.eye(len(table), dtype=np.float32),
        query_terms=maker.spans(query) if terms else (),
        document=document,
        document_spans=np.array([(i, i + 1) for i in range(len(document.passage))], dtype=np.int64),
        token_embeddings=table.T,
        document_terms=maker.spans(document.passage) if terms else (),
    )


def marked(shown: Highlight) -> list[str]:
    return [shown.text[slice(*mark)] for mark in shown.marks]


def test_each_token_takes_its_best_and_weak_ones_are_not_marked() -> None:
    shown = by_hand("湖山", Document("a", "山と湖。"), [[0.1, 0.2, 0.9, 0.1], [0.4, 0.1, 0.2, 0.1]])
    assert [(m.query, m.document, round(m.similarity, 3)) for m in shown.matches] == [
        (Span(0, 1), Span(2, 3), 0.9),
        (Span(1, 2), Span(0, 1), 0.4),
    ]
    assert marked(shown) == ["湖"]
    assert shown.best_sentence == "山と湖。"


def test_particles_and_punctuation_are_not_marked() -> None:
    shown = by_hand("の。", Document("a", "湖の。"), [[0.1, 0.9, 0.1], [0.1, 0.1, 0.9]])
    assert shown.marks == ()
    assert len(shown.matches) == 2


def test_marks_that_touch_are_one() -> None:
    shown = by_hand("湖畔", Document("a", "湖畔だ"), [[0.9, 0.1, 0.1], [0.1, 0.9, 0.1]])
    assert marked(shown) == ["湖畔"]


def test_titles_have_marks_of_their_own() -> None:
    document = Document("a", "山だ。", title="湖")
    shown = by_hand("湖山", document, [[0.9, 0, 0, 0, 0], [0, 0, 0.9, 0, 0]])
    assert shown.title_marks == (Span(0, 1),)
    assert marked(shown) == ["山"]
    assert [match.in_title for match in shown.matches] == [True, False]


def test_of_tokens_with_one_vector_the_one_that_says_the_same_is_taken() -> None:
    shown = by_hand("湖", Document("a", "海湖山"), [[0.9, 0.9, 0.9]])
    assert marked(shown) == ["湖"]


def test_the_sentence_is_the_one_that_answers() -> None:
    document = Document("a", "山だ。湖だ。海だ。")
    shown = by_hand("湖", document, [[0.2, 0, 0, 0.8, 0, 0, 0.3, 0, 0]])
    assert shown.best_sentence == "湖だ。"
    assert by_hand("湖", document, [[-0.2] * 9]).sentence is None
    assert by_hand("海の色", document, [[0.0] * 9] * 3, terms=True).best_sentence == "海だ。"


def test_terms_are_marked_wherever_they_stand() -> None:
    shown = by_hand("サーバ", Document("a", "サーバーとｻｰﾊﾞｰ。"), [[0.0] * 11] * 3, terms=True)
    assert marked(shown) == ["サーバー", "ｻｰﾊﾞｰ"]


def test_html_is_escaped() -> None:
    shown = Highlight("<b>&\"'湖</b>", marks=(Span(6, 7),), sentence=Span(0, 7))
    assert shown.html() == "&lt;b&gt;&amp;&quot;&#x27;<mark>湖</mark>&lt;/b&gt;"
    assert shown.html(whole=False).endswith("<mark>湖</mark>")
    assert Highlight("湖").html(whole=False) == ""


def test_rich_text_has_the_marks() -> None:
    text = Highlight("琵琶湖だ[red]", marks=(Span(0, 3),)).rich(style="bold")
    assert text.plain == "琵琶湖だ[red]"
    assert [(span.start, span.end, span.style) for span in text.spans] == [(0, 3, "bold")]


def test_details_are_json() -> None:
    shown = by_hand("湖", Document("a", "湖だ。"), [[0.9, 0, 0]])
    hit = Hit(Document("a", "湖だ。"), 0.9, {"similarity": 0.9}, shown)
    details = json.loads(json.dumps(hit.details()))
    assert details["highlight"]["marks"] == [[0, 1]]
    assert details["highlight"]["best_sentence"] == "湖だ。"
    assert "highlight" not in Hit(Document("a", "湖だ。"), 0.9).details()


def check(shown: Highlight, query: str) -> None:
    """Whether all lies in the text."""
    for marks, text in ((shown.marks, shown.text), (shown.title_marks, shown.title)):
        ends = [0, *(end for mark in marks for end in mark)]
        assert ends == sorted(ends)
        assert ends[-1] <= len(text)
        assert all(mark.start < mark.end for mark in marks)
        assert all(a.end < b.start for a, b in pairwise(marks))
    for match in shown.matches:
        assert 0 <= match.query.start < match.query.end <= len(query)
        text = shown.title if match.in_title else shown.text
        assert 0 <= match.document.start < match.document.end <= len(text)
    assert shown.sentence is None or shown.sentence in sentences(shown.text)
    assert unescape(shown.html().replace("<mark>", "").replace("</mark>", "")) == shown.text


TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=8).map("".join)


@settings(deadline=None, max_examples=60)
@given(title=st.just("") | TEXTS, text=TEXTS, query=TEXTS, seed=st.integers(0, 99))
def test_spans_lie_inside_whatever_the_text_is(
    bundled: JaColBERTRetriever, title: str, text: str, query: str, seed: int
) -> None:
    tokenizer, maker, rng = bundled.encoder.tokenizer, TermMaker(), np.random.default_rng(seed)
    document = Document("a", text, title=title)
    query_spans, spans = tokenizer.query_spans(query), tokenizer.kept_spans(document.passage)
    centers = rng.standard_normal((3, 8)).astype(np.float32)  # so that many are alike, as if pooled
    shown = highlight(
        query,
        query_spans=query_spans,
        query_embeddings=centers[rng.integers(0, 3, len(query_spans))],
        query_terms=maker.spans(query),
        document=document,
        document_spans=spans,
        token_embeddings=centers[rng.integers(0, 3, len(spans))],
        document_terms=maker.spans(document.passage),
    )
    check(shown, query)


@pytest.mark.filterwarnings("ignore::jacolbert_rag.TruncationWarning")
def test_one_span_for_each_embedding(bundled: JaColBERTRetriever) -> None:
    for text in ("琵琶湖は、日本最大の湖である!?", "".join(PIECES), "湖" * 700, "㍿½カ゛𠮷"):
        spans = bundled.encoder.tokenizer.kept_spans(text)
        assert len(spans) == len(bundled.encoder.documents([text])[0])
        assert spans.max() <= len(text)
        assert len(bundled.encoder.tokenizer.query_spans(text)) == len(bundled.encoder.queries([text])[0])


DOCUMENTS = [
    Document("湖", "滋賀県には大きな湖がある。琵琶湖は日本最大の湖である。船で渡れる。", title="琵琶湖"),
    Document("山", "富士山は日本で最も高い山である。"),
    Document("型番", "㍿𠮷田のサーバーの型番はＡＢＣ－１２３です。½の値段です。"),
]


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("mode", ["jacolbert", "bm25", "hybrid"])
def test_answers_are_marked(factor: int, mode: str, tmp_path: Path) -> None:
    made = JaColBERTRetriever.from_pretrained(settings=IndexSettings(pooling=PoolingConfig(factor=factor)))
    made.add(DOCUMENTS)
    made.save(tmp_path / "index")
    opened = JaColBERTRetriever.load(tmp_path / "index")
    (hit,) = opened.search("日本で一番大きい湖は？", 1, mode=mode, highlight=True)  # type: ignore[arg-type]
    assert hit.highlight is not None
    assert hit.id == "湖"
    assert hit.highlight.best_sentence == "琵琶湖は日本最大の湖である。"
    assert "湖" in marked(hit.highlight)
    (hit,) = opened.search("サーバ abc123", 1, mode=mode, highlight=True)  # type: ignore[arg-type]
    assert hit.highlight is not None
    assert {"サーバー", "ＡＢＣ－１２３"} <= set(marked(hit.highlight))
    check(hit.highlight, "サーバ abc123")


def test_documents_that_are_not_stored_are_encoded_for_it(retriever: JaColBERTRetriever) -> None:
    retriever.add(DOCUMENTS)
    hits = retriever.search("湖", 3)
    expected = retriever.highlight("湖", hits)
    retriever.delete(["湖"])
    retriever.upsert([Document("山", "別の文である。")])
    assert [hit.id for hit in retriever.highlight("湖", hits)] == [hit.id for hit in hits]
    for hit, before in zip(retriever.highlight("湖", hits), expected, strict=True):
        assert hit.highlight is not None
        assert before.highlight is not None
        assert hit.highlight.text == hit.text
        assert hit.highlight.marks == before.highlight.marks
    ranked = retriever.rerank("湖", ["湖である。", "山である。"])
    assert all(hit.highlight for hit in retriever.highlight("湖", ranked))
    assert retriever.highlight("湖", []) == []


def test_terms_that_match_are_the_same_once_normalised(bundled: JaColBERTRetriever) -> None:
    bundled.add([Document("x", "ｻｰﾊﾞｰとﾊﾟﾝとカ゛スの話。")])
    (hit,) = bundled.highlight("ガス サーバー", [hit for hit in bundled.search("ガス", 5) if hit.id == "x"])
    assert hit.highlight is not None
    found = {unicodedata.normalize("NFKC", part) for part in marked(hit.highlight)}
    assert {"サーバー", "ガス"} <= {part.replace("か", "が") for part in found} or "サーバー" in found
