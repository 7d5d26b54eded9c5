"""Highlights end to end: of each mode, after pooling, of documents that have changed since."""

from __future__ import annotations

from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

from jacolbert_rag import Document, Highlight, IndexSettings, JaColBERTRetriever, PoolingConfig

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

DOCUMENTS = [
    Document("湖", "滋賀県には大きな湖がある。琵琶湖は日本最大の湖である。船で渡れる。", title="琵琶湖"),
    Document("山", "富士山は日本で最も高い山である。"),
    Document("型番", "㍿𠮷田のサーバーの型番はＡＢＣ－１２３です。½の値段です。"),
]


def marked(shown: Highlight) -> list[str]:
    return [shown.text[slice(*mark)] for mark in shown.marks]


def check(shown: Highlight, query: str) -> None:
    """Whether all lies in the text."""
    for marks, text in ((shown.marks, shown.text), (shown.title_marks, shown.title)):
        assert all(0 <= mark.start < mark.end <= len(text) for mark in marks)
        assert all(a.end < b.start for a, b in pairwise(marks))
    for match in shown.matches:
        assert 0 <= match.query.start < match.query.end <= len(query)
        text = shown.title if match.in_title else shown.text
        assert 0 <= match.document.start < match.document.end <= len(text)
    assert unescape(shown.html().replace("<mark>", "").replace("</mark>", "")) == shown.text


@pytest.fixture(scope="module")
def bundled() -> JaColBERTRetriever:
    return JaColBERTRetriever.from_pretrained()


@pytest.mark.filterwarnings("ignore::jacolbert_rag.TruncationWarning")
def test_one_span_for_each_embedding(bundled: JaColBERTRetriever) -> None:
    for text in ("琵琶湖は、日本最大の湖である!?", "".join(PIECES), "湖" * 700, "㍿½カ゛𠮷"):
        spans = bundled.encoder.tokenizer.kept_spans(text)
        assert len(spans) == len(bundled.encoder.documents([text])[0])
        assert spans.max() <= len(text)
        assert len(bundled.encoder.tokenizer.query_spans(text)) == len(bundled.encoder.queries([text])[0])


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
