from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from html import unescape
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jacolbert_rag import (
    Document,
    EncoderConfig,
    InvalidInputError,
    JaColBERTRetriever,
    PoolingConfig,
    TokenEmbeddings,
)
from jacolbert_rag.datatypes import FloatArray, Highlight, Hit, IntArray, Match, Span, TermSpan, TokenArray
from jacolbert_rag.encode.files import resolve_folder
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.sentences import joins
from jacolbert_rag.encode.tokens import Tokenizer, load_subwords
from jacolbert_rag.index.highlight import ReadText, highlight, similarities_of
from jacolbert_rag.index.pooling import pool_with_members

TOKENIZER = Tokenizer(load_subwords(resolve_folder("default")), EncoderConfig())


def spans_of(text: str, pieces: Sequence[str]) -> IntArray:
    """Where pieces lie in a text, one behind the other; "" is a token without characters."""
    spans, at = [], 0
    for piece in pieces:
        if not piece:
            spans.append((-1, -1))
            continue
        start = text.index(piece, at)
        at = start + len(piece)
        spans.append((start, at))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def show(
    query: str,
    document: str | Document,
    similarities: Sequence[Sequence[float]],
    *,
    terms: str = "",
    document_terms: Sequence[str] = (),
    telling: bool = True,
) -> Highlight:
    """Highlight pieces apart by "|", with these similarities of each query piece to each document piece."""
    document = document if isinstance(document, Document) else Document("d", document)
    pieces = document.passage.split("|")
    whole = Document("d", document.text.replace("|", ""), title=document.title.replace("|", ""))
    parts = query.split("|")
    table = np.array(similarities, dtype=np.float32).reshape(len(parts), -1)
    asked = query.replace("|", "")
    words = [word for word in terms.split() if word]
    found_terms = [
        TermSpan(word, Span(found.start(), found.end()), telling)
        for word in dict.fromkeys([*words, *document_terms])
        for found in re.finditer(word, whole.passage)
    ]
    return highlight(
        query=asked,
        query_spans=spans_of(asked, parts),
        document=whole,
        document_spans=spans_of(whole.passage, pieces),
        similarities=product(
            np.eye(len(parts), dtype=np.float32), np.ascontiguousarray(table.T) if table.size else None
        ),
        query_terms=[TermSpan(w, Span(asked.index(w), asked.index(w) + len(w)), telling) for w in words],
        document_terms=found_terms,
        document_words=np.array([term.span for term in found_terms], dtype=np.int64).reshape(-1, 2),
    )


def product(query: TokenArray, document: TokenArray | None) -> FloatArray | None:
    return similarities_of(query, [document])[0] if document is not None else None


def marked(found: Highlight) -> list[str]:
    return [found.text[slice(*mark)] for mark in found.marks]


def places(found: Highlight) -> list[tuple[str, float]]:
    return [
        ((found.title if m.in_title else found.text)[slice(*m.document)], round(m.similarity, 4))
        for m in found.matches
    ]


def test_each_part_of_a_query_is_shown_where_maxsim_found_it() -> None:
    found = show(
        "|大き|湖|", "|琵琶|湖|広い", [[1, 0, 0, 0], [0, 0.1, 0, 0.7], [0, 0.6, 0.9, 0], [1, 1, 1, 1]]
    )
    assert found.matches == (
        Match(Span(0, 2), Span(3, 5), False, pytest.approx(0.7)),
        Match(Span(2, 3), Span(2, 3), False, pytest.approx(0.9)),
    )
    assert marked(found) == ["湖"]  # 0.7 is less than 0.8 of 0.9
    assert found.sentence == Span(0, 5)


@pytest.mark.parametrize(("second", "expected"), [(0.93, [("湖", 0.93)]), (0.91, [])])
def test_token_without_characters_that_wins_gives_way_to_one_as_good(
    second: float, expected: list[tuple[str, float]]
) -> None:
    assert places(show("海", "|山|湖", [[1.0, 0.2, second]])) == expected


def test_negative_similarities() -> None:
    found = show("海", "|山|湖", [[-0.5, -0.9, -0.52]])
    assert places(found) == [("湖", -0.52)]
    assert found.marks == ()
    assert found.sentence is None


def test_one_kana_of_a_long_word_is_not_marked() -> None:
    table = [[0, 1.0, 0, 0], [0, 0, 0, 1.0]]
    assert marked(show("海|川", "ミジ|ン|コの|川", table, document_terms=["ミジンコ", "川"])) == ["川"]
    assert marked(show("海|川", "ミジ|ン|コの|川", table, document_terms=["川"])) == ["ン", "川"]


def test_another_number_is_not_marked() -> None:
    table = [[1.0, 0, 0, 0], [0, 0.9, 0, 0]]
    assert marked(show("1943|年", "１９４２|年|湖|川", table)) == ["年"]
    assert marked(show("1943|年", "１９４３|年|湖|川", table)) == ["１９４３年"]
    assert marked(show("19|43", "19|42|湖|川", table, document_terms=["1942"])) == []
    assert places(show("1943|年", "1942|年|湖|川", table)) == [("1942", 1.0), ("年", pytest.approx(0.9))]


def test_short_verbs_in_kana_are_not_marked() -> None:
    def terms(weight: float) -> list[tuple[str, ...]]:
        query = [TermSpan("取る", Span(0, 2), weight), TermSpan("湖", Span(2, 3), 1.0)]
        document = [TermSpan("取る", Span(0, 2), weight), TermSpan("湖", Span(3, 4), 1.0)]
        found = highlight(
            query="とる湖",
            query_spans=np.zeros((0, 2), dtype=np.int64),
            document=Document("d", "とっ、湖"),
            document_spans=np.array([[0, 2], [3, 4]]),
            similarities=None,
            query_terms=query,
            document_terms=document,
        )
        return marked(found)

    assert terms(0.5) == ["湖"]
    assert terms(1.0) == ["とっ", "湖"]


def test_weak_matches_are_not_marked() -> None:
    assert marked(show("海", "山|湖", [[0.1, 0.49]])) == []
    assert marked(show("海", "山|湖", [[0.1, 0.51]])) == ["湖"]
    assert marked(show("海|丘", "山|湖", [[0.1, 1.0], [0.79, 0]])) == ["湖"]
    assert marked(show("海|丘", "山|の|湖", [[0.1, 0, 1.0], [0.81, 0, 0]])) == ["山", "湖"]


@pytest.mark.parametrize("piece", ["は", "から", "ない", "。", "、", "」", "…", "\u3000", "＝", "ゝ", "ﾞ"])
def test_particles_and_punctuation_are_not_marked(piece: str) -> None:
    found = show("は", f"湖|{piece}|山", [[0, 1, 0]])
    assert places(found) == [(piece, 1.0)]
    assert marked(found) == []
    assert found.sentence is not None


@pytest.mark.parametrize("piece", ["りんご", "湖", "ー", "A", "7", "々", "🙂"])
def test_words_are_marked(piece: str) -> None:
    assert marked(show("海", f"は|{piece}|は", [[0, 1, 0]])) == [piece]


def test_of_places_with_one_vector_the_same_characters_are_taken() -> None:
    assert places(show("Ｂ", "a|b|c", [[0.9, 0.9, 0.9]])) == [("b", 0.9)]


def test_of_places_with_one_vector_the_nearest_to_others_is_taken() -> None:
    found = show("海|丘", "山|空|川|湖", [[0, 0, 0, 1.0], [0.9, 0, 0.9, 0.1]])
    assert places(found) == [("湖", 1.0), ("川", 0.9)]
    assert places(show("海", "山|空|川", [[0.9, 0, 0.9]])) == [("山", 0.9)]


def test_title_and_text_have_marks_of_their_own() -> None:
    document = Document("d", "湖|は|広い。", title="琵琶|湖")
    found = show("琵琶|湖", document, [[1, 0, 0, 0], [0, 0.9, 0, 1]])
    # "湖 湖" is one piece here, across the space between.
    assert found.title == "琵琶湖"
    assert [found.title[slice(*mark)] for mark in found.title_marks] == ["琵琶"]
    assert [m.in_title for m in found.matches] == [True, False]
    found = show("琵琶|湖", document, [[1, 0, 0, 0], [0, 1, 0, 0.5]])
    assert [found.title[slice(*mark)] for mark in found.title_marks] == ["琵琶湖"]
    assert marked(found) == ["湖"]
    assert found.matches[1] == Match(Span(2, 3), Span(2, 3), True, 1.0)
    assert found.sentence == Span(0, 5)


def test_space_between_title_and_text_is_of_neither() -> None:
    read = ReadText("山", "湖", np.array([[0, 1], [1, 2], [1, 3], [2, 3], [-1, -1], [3, 3]]))
    assert read.passage == Document("", "湖", title="山").passage
    assert read.has_characters.tolist() == [True, False, True, True, False, False]
    assert (read.in_title(Span(1, 3)), read.in_text(Span(1, 3))) == (None, Span(0, 1))
    assert ReadText("", "湖", np.array([[0, 1]])).in_text(Span(0, 1)) == Span(0, 1)


def test_all_places_of_a_telling_term_are_marked() -> None:
    found = show("湖|は", "海|湖|と|湖", [[1, 0, 0, 0], [0, 0, 1, 0]], terms="湖")
    assert marked(found) == ["海湖", "湖"]
    assert [m.similarity for m in found.matches] == [1, 1]
    assert places(found)[0] == ("海", 1.0)  # the token's match stands, the term adds none
    assert marked(show("湖|は", "海|湖|と|湖", [[1, 0, 0, 0]] * 2, terms="湖", telling=False)) == ["海"]


def test_terms_alone() -> None:
    found = show("富士|湖|空", Document("d", "山。湖がある。また湖。", title="湖"), [], terms="湖 空")
    assert found.matches == (Match(Span(2, 3), Span(0, 1), True, 1.0),)
    assert marked(found) == ["湖", "湖"]
    assert found.title_marks == (Span(0, 1),)
    assert found.best_sentence == "湖がある。"
    assert show("空", "山", [], terms="空") == Highlight("山")


def test_term_that_no_token_read_is_a_match() -> None:
    query, text = "海と湖", "海。湖。"
    found = highlight(
        query=query,
        query_spans=np.array([[0, 1]]),
        document=Document("d", text),
        document_spans=np.array([[0, 1]]),  # of a head that ended there
        similarities=product(np.ones((1, 1), dtype=np.float32), np.full((1, 1), 0.9, dtype=np.float16)),
        query_terms=[TermSpan("海", Span(0, 1), True), TermSpan("湖", Span(2, 3), True)],
        document_terms=[TermSpan("海", Span(0, 1), True), TermSpan("湖", Span(2, 3), True)],
    )
    assert places(found) == [("海", pytest.approx(0.9, abs=1e-3)), ("湖", 1.0)]
    assert marked(found) == ["海", "湖"]


def test_word_of_which_most_is_marked_is_marked_whole() -> None:
    table = [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
    assert marked(show("海|川", "琵|かん|湖|は|山", table)) == ["琵", "湖"]
    assert marked(show("海|川", "琵|ん|湖|は|山", table, document_terms=["琵ん湖"])) == ["琵ん湖"]
    assert marked(show("海|川", "琵|かんば|湖|は|山", table, document_terms=["琵かんば湖"])) == ["琵", "湖"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ジョン|・|レノン", ["ジョン・レノン"]),
        ("New| |York", ["New York"]),
        ("共産|党|本部", ["共産党本部"]),
        ("湖|の|山", ["湖", "山"]),
        ("湖| |山", ["湖", "山"]),
        ("湖|、|山", ["湖", "山"]),
        ("湖|大会|山", ["湖", "山"]),
    ],
)
def test_marks_that_make_one_name_are_one(text: str, expected: list[str]) -> None:
    assert marked(show("海|丘", text, [[1, 0, 0], [0, 0, 1]])) == expected


def test_marks_hold_whole_characters() -> None:
    assert marked(show("海", "か|\u3099|湖", [[1, 0, 0]])) == []
    assert marked(show("海", "カ|\u3099|は", [[1, 0, 0]])) == ["カ\u3099"]
    assert marked(show("海", "👨|\u200d|👧|は", [[0, 0, 1, 0]])) == ["👨\u200d👧"]


def test_best_sentence() -> None:
    text = "山|だ。 |湖|だ。\n|海|だ。"
    rows = [[0.9, 0, 0.5, 0, 0, 0], [0, 0, 0.6, 0, 0, 0], [-1, -1, -0.9, -1, -1, -1]]
    # 0.9 against 0.5 + 0.6, and similarities below 0 take nothing away.
    assert show("あ|い|う", text, rows).best_sentence == "湖だ。"
    # A term outweighs that, once, however often it stands there.
    assert show("山|い|う", text, rows, terms="山").best_sentence == "山だ。"
    assert show("あ", "海|。海|。", [[0.5] * 3]).sentence == Span(0, 2)  # the earlier


def test_document_of_which_the_head_was_read_takes_no_longer() -> None:
    text = "湖は広い。" * 200_000
    start = time.perf_counter()
    found = highlight(
        query="湖",
        query_spans=np.array([[0, 1]]),
        document=Document("d", text),
        document_spans=np.array([[0, 1]]),
        similarities=product(np.ones((1, 1), dtype=np.float32), np.ones((1, 1), dtype=np.float32)),
    )
    assert time.perf_counter() - start < 0.5
    assert found.sentence == Span(0, 5)


def test_nothing_to_show() -> None:
    nothing = np.empty((0, 2), dtype=np.int64)
    rows = np.empty((0, 4), dtype=np.float32)
    for embeddings in (rows, None):
        found = highlight(
            query="湖",
            query_spans=np.array([[-1, -1], [0, 1]]),
            document=Document("d", "湖", title="山"),
            document_spans=nothing,
            similarities=product(np.ones((2, 4), dtype=np.float32), embeddings),
        )
        assert found == Highlight("湖", "山")
    assert show("|", "湖", [[1], [1]]) == Highlight("湖")


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_spans_of_other_tokens_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(
        InvalidInputError, match=rf"{re.escape(str(shape))} tokens, and the spans of \(1, 1\)"
    ):
        highlight(
            query="湖",
            query_spans=np.array([[0, 1]]),
            document=Document("d", "湖"),
            document_spans=np.array([[0, 1]]),
            similarities=np.ones(shape, dtype=np.float32),
        )


def test_similarities_of_many_documents() -> None:
    rng = np.random.default_rng(0)
    query, documents = unit_rows(rng, 3), [unit_rows(rng, n) for n in (4, 0, 2)]
    found = similarities_of(query, [tokens.astype(np.float16) for tokens in documents])
    assert [each.shape for each in found] == [(3, 4), (3, 0), (3, 2)]
    for each, tokens in zip(found, documents, strict=True):
        assert each == pytest.approx(query @ tokens.T, abs=1e-3)
    assert similarities_of(query, []) == []


# What the tokenizer changes, joins and drops, and what stands in Japanese text.
TEXTS = st.lists(
    st.sampled_from(
        [
            "㍿", "½", "カ゛", "ｶﾞ", "か\u3099", "𠮷", "㌔", "々", "ー", "🇯🇵", "👨\u200d👩\u200d👧",
            "👍🏽", "\u3000", "\n", " ", "\ud800", "\udfff", "\0", "琵琶湖", "は", "日本最大", "の湖",
            "である", "。", "、", "「", "」", "！？", "・", "New York", "PyTorch", "1,234", "<b>&", "\"'",
            "é", "e\u0301", "\u200d", "\ufe0f", "食べました", "\u2028",
        ]
    ),
    max_size=25,
).map("".join)  # fmt: skip


def words_of(text: str) -> Iterator[TermSpan]:
    """Terms, such as full-text search finds."""
    for found in re.finditer(r"\w+", text):
        yield TermSpan(clean(found[0]).casefold(), Span(found.start(), found.end()), len(found[0]) > 1)
        yield TermSpan(found[0][0], Span(found.start(), found.start() + 1), False)


def unit_rows(rng: np.random.Generator, n: int) -> FloatArray:
    rows = rng.normal(size=(n, 8)).astype(np.float32)
    found: FloatArray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def check(found: Highlight, query: str) -> None:
    for text, marks in ((found.text, found.marks), (found.title, found.title_marks)):
        for start, end in marks:
            assert 0 <= start < end <= len(text)
            assert start == 0 or not joins(text, start)
            assert end == len(text) or not joins(text, end)
        assert all(before.end < after.start for before, after in pairwise(marks))
    assert list(found.matches) == sorted(found.matches, key=lambda match: match.query)
    for match in found.matches:
        assert 0 <= match.query.start < match.query.end <= len(query)
        text = found.title if match.in_title else found.text
        assert 0 <= match.document.start < match.document.end <= len(text)
        assert -1.001 <= match.similarity <= 1.001
    if found.sentence is not None:
        assert found.matches
        assert 0 <= found.sentence.start < found.sentence.end <= len(found.text)
        assert found.best_sentence == found.text[slice(*found.sentence)]
    assert unescape(re.sub("</?mark>", "", found.html())) == found.text
    assert unescape(re.sub("</?mark>", "", found.html(whole=False))) == found.best_sentence
    assert found.html().count("<mark>") == len(found.marks)
    shown = found.rich().plain
    assert len(shown) == len(found.text)
    for before, after in zip(found.text, shown, strict=True):
        assert after == (" " if before in "\0\u2028" else "?" if "\ud800" <= before <= "\udfff" else before)
    json.dumps(Hit(Document("d", found.text), 1.0, {"similarity": 0.5}, found).details())


@settings(max_examples=300, deadline=None)
@given(
    query=TEXTS,
    title=st.just("") | TEXTS,
    text=TEXTS,
    factor=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_highlights_of_random_text(query: str, title: str, text: str, factor: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    document = Document("d", text, title=title)
    query_spans, document_spans = TOKENIZER.query_spans(query), TOKENIZER.kept_spans(document.passage)
    tokens = unit_rows(rng, len(document_spans))
    pooled, members = pool_with_members(
        TokenEmbeddings(tokens, np.array([0, len(tokens)])), PoolingConfig(factor=factor)
    )
    for embeddings in (tokens if members is None else pooled[0][members[0]], None):
        for terms in ((list(words_of(query)), list(words_of(document.passage))), ([], [])):
            found = highlight(
                query=query,
                query_spans=query_spans,
                document=document,
                document_spans=document_spans,
                similarities=product(unit_rows(rng, len(query_spans)), embeddings),
                query_terms=terms[0],
                document_terms=terms[1],
                document_words=np.array([term.span for term in terms[1]], dtype=np.int64).reshape(-1, 2),
            )
            assert (found.text, found.title) == (text, title)
            check(found, query)


@settings(max_examples=200, deadline=None)
@given(query=TEXTS, title=st.just("") | TEXTS, text=TEXTS)
def test_equal_tokens_find_each_other(query: str, title: str, text: str) -> None:
    document = Document("d", text, title=title)
    vectors = unit_rows(np.random.default_rng(0), len(TOKENIZER.vocab))
    asked, read = TOKENIZER.queries([query]).ids, TOKENIZER.documents([document.passage]).ids
    read = read[TOKENIZER.kept(read)]
    spans = TOKENIZER.query_spans(query)
    found = highlight(
        query=query,
        query_spans=spans,
        document=document,
        document_spans=TOKENIZER.kept_spans(document.passage),
        similarities=product(vectors[asked], vectors[read]),
    )
    check(found, query)
    tokens = {i: token.removeprefix("##") for token, i in TOKENIZER.vocab.items()}
    for match in found.matches:
        ids = {int(i) for i, span in zip(asked, spans, strict=True) if tuple(span) == match.query}
        if match.similarity < 0.9999 or TOKENIZER.special.unk in ids:
            continue
        there = clean((found.title if match.in_title else found.text)[slice(*match.document)])
        assert any(tokens[i] in there and tokens[i] in clean(query[slice(*match.query)]) for i in ids)
    same = set(asked[spans[:, 1] > 0].tolist()) & set(read.tolist())
    assert sum(match.similarity > 0.9999 for match in found.matches) >= len(same)


@pytest.fixture(scope="module")
def bundled() -> JaColBERTRetriever:
    return JaColBERTRetriever.from_pretrained()


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(
    ("query", "title", "text", "marks", "sentence"),
    [
        (
            "日本で一番大きい湖は？",
            "",
            "琵琶湖は日本最大の湖である。",
            {"日本", "湖"},
            "琵琶湖は日本最大の湖である。",
        ),
        (
            "日本で一番大きい湖は？",
            "滋賀県",
            "滋賀県は近畿地方の内陸県である。琵琶湖は日本で最も大きな湖だ。\n県庁は大津市にある。",
            {"日本", "湖"},
            "琵琶湖は日本で最も大きな湖だ。",
        ),
        (
            "交通費の精算はいつまでに申請しますか",
            "経費規程",
            "出張は上長の承認を得る。交通費の精算は、翌月５日までに申請すること。領収書は七年間保存する。",
            {"交通費", "精算", "申請"},
            "交通費の精算は、翌月５日までに申請すること。",
        ),
        (
            "サーバーを再起動する人は誰",
            "",
            "ﾊﾞｯｸｱｯﾌﾟは毎晩取る。\nｻｰﾊﾞｰの再起動は情報システム部の担当者が行う。",
            {"ｻｰﾊﾞｰ", "再起動"},
            "ｻｰﾊﾞｰの再起動は情報システム部の担当者が行う。",
        ),
    ],
)
def test_bundled_model(
    bundled: JaColBERTRetriever,
    factor: int,
    query: str,
    title: str,
    text: str,
    marks: set[str],
    sentence: str,
) -> None:
    encoder = bundled.encoder
    document = Document("d", text, title=title)
    tokens = encoder.documents([document.passage])
    pooled, members = pool_with_members(tokens, PoolingConfig(factor=factor))
    found = highlight(
        query=query,
        query_spans=encoder.tokenizer.query_spans(query),
        document=document,
        document_spans=encoder.tokenizer.kept_spans(document.passage),
        similarities=product(
            encoder.queries([query]).flat.astype(np.float32),
            tokens.flat if members is None else pooled.flat[members[0]],
        ),
    )
    check(found, query)
    assert found.marks
    assert found.best_sentence == sentence
    # As users see it: words that the query has are marked too, however near the model finds them.
    (hit,) = bundled.highlight(query, bundled.rerank(query, [document]))
    assert hit.highlight is not None
    for mark in marks:
        assert any(mark in shown for shown in marked(hit.highlight)), (mark, marked(hit.highlight))
    assert hit.highlight.best_sentence == sentence


def test_html_is_escaped() -> None:
    found = Highlight("<script>&\"'湖</script>", marks=(Span(0, 8), Span(11, 12)), sentence=Span(8, 12))
    assert found.html() == "<mark>&lt;script&gt;</mark>&amp;&quot;&#x27;<mark>湖</mark>&lt;/script&gt;"
    assert found.html(whole=False) == "&amp;&quot;&#x27;<mark>湖</mark>"
    assert Highlight("湖").html(whole=False) == ""


def test_rich_has_a_style() -> None:
    found = Highlight("琵琶湖は[bold]広い", marks=(Span(2, 3),), sentence=Span(1, 4))
    text = found.rich(style="red")
    assert text.plain == found.text
    assert [(span.start, span.end, span.style) for span in text.spans] == [(2, 3, "red")]
    part = found.rich(whole=False)
    assert part.plain == "琶湖は"
    assert [(span.start, span.end, span.style) for span in part.spans] == [(1, 2, "bold yellow")]


def test_details_are_json() -> None:
    found = show("湖", Document("d", "湖|は|広い。", title="琵琶|湖"), [[0.1, 1.0, 0.1, 0.1]])
    details = Hit(Document("d", found.text), 1.5, {"maxsim": 1.5}, found).details()
    assert json.loads(json.dumps(details)) == details
    assert details == {
        "score": 1.5,
        "scores": {"maxsim": 1.5},
        "highlight": {
            "marks": [[0, 1]],
            "title_marks": [[2, 3]],
            "sentence": [0, 5],
            "best_sentence": "湖は広い。",
            "html": "<mark>湖</mark>は広い。",
        },
    }
    assert Hit(Document("d", "湖"), 1.0).details() == {"score": 1.0, "scores": {}}
