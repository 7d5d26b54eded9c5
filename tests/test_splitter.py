from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jacolbert_rag import Document, InvalidInputError, JaColBERTRetriever
from jacolbert_rag.encode.sentences import joins, sentences
from jacolbert_rag.encode.splitter import Chunk, Splitter, chunk_ids, is_chunk_of, parent_of
from tests.test_sentences import JAPANESE

# A library's guide: 70 sentences in 14 paragraphs, with headings, a list, quotations and full-width figures.
GUIDE = """\
第１章　図書室の使い方

図書室は本館の２階、東の階段を上がってすぐの所にある。平日は朝の９時に開き、夜の８時に閉まる。土曜は午後５時までで、日曜と祝日は休みだ。
入口の機械に社員証をかざすと、扉が開く。社員証を忘れた日は、受付で来館票を書けば入れる。

席は全部で六十四あり、そのうち十二席には電源がある。窓ぎわの席は人気が高く、昼前には埋まってしまう。「空いていますか？」と尋ねる前に、入口の画面を見てほしい。席を三十分より長く離れるときは、荷物を置いたままにしない。

本は一人十冊まで、三週間借りられる。延長は一度だけで、次に待つ人がいる本は延ばせない。返却が遅れると、遅れた日数だけ次の貸し出しが止まる。なくした本は、同じ版を買って返すか、代金を払う。古くて手に入らない本の扱いは、司書と相談して決める。

雑誌の最新号は貸し出さない。先月までの号は、一晩だけ持ち帰れる。翌朝の十時までに返さないと、呼び出しの電話が来る。新聞は三紙あり、半年分を地下の書庫に置いている。

第２章　探しもの

目録は画面で引く。書名の一部でも、著者の読みでも見つかる。旧字体の名前は、新しい字体でも引けるようにした（例：「𠮷田」と「吉田」。「髙橋」と「高橋」。）ので、迷わなくてよい。見つからないときは、言葉を一つ減らしてみよう。それでも駄目なら、司書のカウンターへ。

調べものの相談は、予約がいらない。火曜と木曜の午後には、データベースに詳しい係がいる。論文の取り寄せは一件につき２００円かかり、届くまで十日ほど見ておく。急ぎの場合は、近くの大学の図書館を紹介している。

・持ち物は鉛筆だけにする
・飲み物は蓋のあるものに限る
・電話は廊下で話す
・写真は係に断ってから撮る

古い資料は四階の特別室にある。手袋は部屋に備えてある。閲覧の時間は一回二時間までだ。和紙の本は、風を当てないように扱う。破れを見つけたら、直そうとせずに知らせる。

第３章　行事

毎月の第三金曜には、読書会が開かれる。課題の本は前の月に決まる。司会は持ち回りで、新人も半年に一度は当たる。話したくない人は聞くだけでもかまわない。終わったあとの茶話会が本番だという声もある！

夏には子ども向けの工作教室がある。紙の模型を作り、動く仕組みを学ぶ。去年は定員二十名に、八十名を超える申し込みがあった。今年は回数を増やし、抽選をやめるつもりである。材料費は一人五百円で、当日に集める。

秋の展示では、町の古い地図を並べる。川の流れが今と違うことに、誰もが驚く。港の絵葉書や、廃線になった鉄道の切符も見られる。案内の人は土曜だけいる。図録は受付で売っている。

寄贈はいつでも受け付ける。ただし、書きこみのある本と、百科事典は断っている。受け取った本をどうするかは、図書室に任せてほしい。希望があれば、名前を記した札を貼る。寄贈の記録は、十年の間、誰でも見られる。

最後に一つ。静かにするための規則ではない。隣の人が何を読んでいるのか、ふと気になる場所であってほしいのだ。そのための三つの約束を、入口に掲げた。読んだら元へ戻す。食べながら読まない。「おもしろかった。」と誰かに言う。
"""


def texts(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


def is_one_character(text: str) -> bool:
    return all(joins(text, i) for i in range(1, len(text)))


def n_words(text: str) -> int:
    """Tokens of a toy tokenizer, which like MeCab reads other words where a text is cut."""
    return sum(max(1, len(word) // 2) for word in re.findall(r"[ぁ-ん]+|[ァ-ヶー]+|[一-龯々]+|\S", text))


def test_whole_sentences_within_the_budget() -> None:
    text = "一つ目の文。二つ目の文！三つ目の文？「四つ目。」五つ目の文。"
    chunks = Splitter(len, 14).chunks(text)
    assert "".join(texts(chunks)) == text
    assert all(text[start:end] == part for start, end, part in chunks)
    assert all(part.endswith(("。", "！", "？", "」")) and len(part) <= 14 for part in texts(chunks))


def test_what_fits_is_one_chunk() -> None:
    splitter = Splitter(len, 20)
    assert splitter.chunks("\n 句点のない文\u3000\n") == [Chunk(2, 8, "句点のない文")]
    assert splitter.chunks("一文。\n\n二文。") == [Chunk(0, 8, "一文。\n\n二文。")]


@pytest.mark.parametrize("text", ["", " \n\u3000\r\n", "\n" * 10_000])
def test_nothing_to_split(text: str) -> None:
    assert Splitter(len, 10).chunks(text) == []


def test_space_is_no_chunk() -> None:
    assert texts(Splitter(lambda s: 5 * len(s), 2).chunks(" 長 \n 文 ")) == ["長", "文"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("短い段落の文だ。\n\n次の段落の文。後の文だ。", ["短い段落の文だ。", "次の段落の文。後の文だ。"]),
        ("一つ目の文だ。二つ\n目の文だ。三つ目の文", ["一つ目の文だ。二つ\n目の文だ。", "三つ目の文"]),
        ("前の段落の文だ。\n\n見出し\n見出しの下の文。", ["前の段落の文だ。", "見出し\n見出しの下の文。"]),
    ],
)
def test_the_best_border_in_reach_is_taken(text: str, expected: list[str]) -> None:
    assert texts(Splitter(len, 15).chunks(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("春は花、夏は海、秋は月、冬は雪", ["春は花、夏は海、", "秋は月、冬は雪"]),
        ("彼は『春。夏。秋。冬』と言った", ["彼は『春。夏。", "秋。冬』と言った"]),
        ("新しい資料（別紙）を参照", ["新しい資料", "（別紙）を参照"]),
        ("tokyo kyoto osaka", ["tokyo", "kyoto", "osaka"]),
        ("わたしは学校へ行きました", ["わたしは", "学校へ行きました"]),
    ],
)
def test_a_long_sentence_is_cut_where_it_pauses(text: str, expected: list[str]) -> None:
    assert texts(Splitter(len, 8).chunks(text)) == expected


def test_endless_text_is_cut_anywhere() -> None:
    text = "漢" * 1_003
    chunks = Splitter(len, 100).chunks(text)
    assert texts(chunks) == ["漢" * 100] * 10 + ["漢" * 3]


def test_a_character_keeps_its_marks() -> None:
    text = "か\u3099" * 50
    chunks = Splitter(len, 5).chunks(text)
    assert "".join(texts(chunks)) == text
    assert all(len(part) <= 5 and part.startswith("か") for part in texts(chunks))


def test_one_character_may_exceed_the_budget() -> None:
    assert texts(Splitter(lambda s: 5 * len(s), 2).chunks("長文")) == ["長", "文"]
    assert texts(Splitter(len, 2).chunks("👨\u200d👩\u200d👧だ")) == ["👨\u200d👩\u200d👧", "だ"]


def test_tokens_that_only_the_joined_text_has_are_counted() -> None:
    def count(text: str) -> int:
        return len(text) + 3 * text.count("。") ** 2  # more than its sentences by themselves

    chunks = Splitter(count, 60).chunks("一つ目の文である。" * 20)
    assert "".join(texts(chunks)) == "一つ目の文である。" * 20
    assert all(count(part) <= 60 for part in texts(chunks))
    spaces = "文。" + " " * 100 + "文。" + " " * 100 + "文。"
    assert texts(Splitter(len, 50).chunks(spaces)) == ["文。", "文。", "文。"]


def test_each_sentence_is_counted_a_few_times_only() -> None:
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return len(text)

    text = GUIDE * 20
    Splitter(count, 200).chunks(text)
    assert counted < 2.5 * len(text)  # by itself, in its chunk, and a head of the whole


@pytest.mark.parametrize("count", [len, n_words])
@pytest.mark.parametrize("budget", [40, 120])
@given(text=(JAPANESE | st.text()).map(lambda text: text * 8))
@example(text=GUIDE)
@example(text=GUIDE.replace("\n", "\r\n"))
@example(text=GUIDE.replace("。", ""))
@example(text=re.sub(r"\s", "", GUIDE))
@example(text="「" * 500 + GUIDE)
@settings(max_examples=60, deadline=None)
def test_chunks_hold_the_text_within_the_budget(count: Callable[[str], int], budget: int, text: str) -> None:
    splitter = Splitter(count, budget)
    chunks = splitter.chunks(text)
    assert "".join("".join(texts(chunks)).split()) == "".join(text.split())
    assert all(text[start:end] == part == part.strip() != "" for start, end, part in chunks)
    assert all(a.end <= b.start for a, b in pairwise(chunks))
    assert all(count(part) <= budget or is_one_character(part) for part in texts(chunks))
    assert splitter.chunks(text) == chunks


@given(text=(JAPANESE | st.text()).map(lambda text: text * 8), overlap=st.integers(1, 39))
@example(text=GUIDE, overlap=20)
@settings(max_examples=60, deadline=None)
def test_overlap_goes_in_front(text: str, overlap: int) -> None:
    chunks = Splitter(len, 40, overlap).chunks(text)
    if len(text.strip()) <= 40:
        assert len(chunks) <= 1
        return
    plain = Splitter(len, 40 - overlap).chunks(text)
    assert [chunk.end for chunk in chunks] == [chunk.end for chunk in plain]
    for chunk, bare, before in zip(chunks, plain, [None, *plain], strict=False):
        assert chunk.text == text[chunk.start : chunk.end]
        assert len(chunk.text) <= 40 or chunk == bare
        assert chunk.start == bare.start or before.start < chunk.start
        assert len(text[chunk.start : bare.start].strip()) <= overlap


def test_overlap_is_of_whole_sentences() -> None:
    chunks = Splitter(len, 120, 40).chunks(GUIDE)
    starts = {start for start, _ in sentences(GUIDE)}
    repeated = [a.end > b.start for a, b in pairwise(chunks)]
    assert sum(repeated) > len(repeated) / 2
    for a, b in pairwise(chunks):
        assert b.start in starts
        assert a.end - b.start <= 40


# What an edit moves.


def edits(text: str) -> list[str]:
    """The text with a sentence inserted, deleted or replaced, at every sentence."""
    new = "この文は今日、書き加えた。"
    found = []
    for start, end in sentences(text):
        found += [
            text[:start] + new + text[start:],
            text[:start] + text[end:],
            text[:start] + new + text[end:],
        ]
    return found


@pytest.mark.parametrize("budget", [80, 120, 200])
@pytest.mark.parametrize("layout", ["paragraphs", "lines", "one line"])
def test_an_edit_moves_only_borders_near_it(budget: int, layout: str) -> None:
    text = {"paragraphs": GUIDE, "lines": GUIDE.replace("\n\n", "\n"), "one line": re.sub(r"\s", "", GUIDE)}[
        layout
    ]
    splitter = Splitter(len, budget)
    before = texts(splitter.chunks(text))
    changed = sorted(len(set(texts(splitter.chunks(edited))) - set(before)) for edited in edits(text))
    assert len(changed) > 170
    assert changed[int(0.9 * len(changed))] <= 4
    assert changed[-1] <= 6
    assert sum(changed) / len(changed) < 2


@pytest.mark.parametrize("kind", ["insert", "delete", "replace"])
@pytest.mark.parametrize("where", ["start", "middle", "end"])
def test_an_edit_changes_few_chunks(where: str, kind: str) -> None:
    found = sentences(GUIDE)
    start, end = found[{"start": 0, "middle": len(found) // 2, "end": -1}[where]]
    new = {"insert": "新しい文。" + GUIDE[start:end], "delete": "", "replace": "新しい文。"}[kind]
    before = texts(Splitter(len, 120).chunks(GUIDE))
    after = texts(Splitter(len, 120).chunks(GUIDE[:start] + new + GUIDE[end:]))
    assert len(found) > 60
    assert len(before) > 12
    assert len(set(after) - set(before)) <= 4


def test_edits_of_long_texts_stay_local() -> None:
    paragraphs = [p for p in GUIDE.split("\n\n") if len(p) > 60]
    rng = random.Random(0)
    text = "\n\n".join("".join(rng.sample(paragraphs, 3)) + f"以上、第{i}節。" for i in range(60))
    splitter = Splitter(len, 200)
    before = texts(splitter.chunks(text))
    assert len(before) > 100
    for where in (0, len(text) // 2):
        at = next(start for start, _ in sentences(text) if start >= where)
        after = texts(splitter.chunks(text[:at] + "新しい文。" + text[at:]))
        assert len(set(after) - set(before)) <= 4


@pytest.mark.parametrize("text", ["「" * 1_000_000, "あ。い" * 333_333, "漢" * 1_000_000, "「あ」" * 333_333])
def test_a_megabyte_takes_seconds(text: str) -> None:
    start = time.perf_counter()
    chunks = Splitter(len, 300).chunks(text)
    assert time.perf_counter() - start < 60  # at most six on an idle machine
    assert sum(len(part) for part in texts(chunks)) == len(text)


# Documents.


def test_short_documents_pass_through() -> None:
    documents = [
        Document("a", "短い文。", {"chunk": "利用者の鍵"}),
        Document("b", "短い", title="題"),
        Document("c", ""),
    ]
    assert [id(d) for d in Splitter(len, 10).documents(documents)] == [id(d) for d in documents]


def test_long_documents_become_chunks() -> None:
    document = Document("手引#3", GUIDE, {"部署": "総務"}, title="手引")
    chunks = list(Splitter(len, 120).documents([document]))
    assert len(chunks) > 12
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    for chunk in chunks:
        place = chunk.metadata["chunk"]
        assert chunk.text == GUIDE[place["start"] : place["end"]]
        assert dict(chunk.metadata) == {"部署": "総務", "chunk": {"document_id": "手引#3", **place}}
        assert chunk.title == "手引"
        assert len(chunk.passage) <= 120
        assert re.fullmatch(r"手引#3#[0-9a-f]{12}", chunk.id)
        assert is_chunk_of(chunk.id, "手引#3")
        assert parent_of(chunk) == "手引#3"
    assert document.metadata == {"部署": "総務"}


def test_ids_are_what_chunks_say() -> None:
    ids = chunk_ids("d", ["一。", "二。", "一。", "一。"])
    assert ids[2:] == [f"{ids[0]}-2", f"{ids[0]}-3"]
    assert ids[0] != ids[1]
    assert chunk_ids("d", ["一。"], title="題") != ids[:1]
    assert chunk_ids("e", ["一。"]) == [ids[0].replace("d#", "e#")]
    assert chunk_ids("d", ["\ud800"]) != ids[:1]
    # An index that was filled by an earlier version must be recognised.
    assert ids[0] == "d#ef218c01904e"


@pytest.mark.parametrize(
    ("chunk_id", "document_id", "expected"),
    [
        ("a#0123456789ab", "a", True),
        ("a#0123456789ab-2", "a", True),
        ("a#0123456789ab-12", "a", True),
        ("a#0123456789ab#ba9876543210", "a#0123456789ab", True),
        ("a#0123456789ab#ba9876543210", "a", False),
        ("a#0123456789ab-0", "a", False),
        ("a#0123456789ab-", "a", False),
        ("a#0123456789ab\n", "a", False),
        ("a#0123456789AB", "a", False),
        ("a#0123456789abc", "a", False),
        ("a#見出し", "a", False),
        ("ab#0123456789ab", "a", False),
        ("a", "a", False),
        ("#0123456789ab", "", True),
    ],
)
def test_ids_of_chunks_are_told_exactly(chunk_id: str, document_id: str, expected: bool) -> None:
    assert is_chunk_of(chunk_id, document_id) is expected


def test_chunks_are_told_by_id_and_metadata() -> None:
    assert parent_of(Document("a#0123456789ab", "湖", {"chunk": {"document_id": "a"}})) == "a"
    assert parent_of(Document("a#0123456789ab", "湖")) is None
    assert parent_of(Document("b", "湖", {"chunk": {"document_id": "a"}})) is None
    assert parent_of(Document("a#0123456789ab", "湖", {"chunk": "a"})) is None


def test_users_key_is_not_overwritten() -> None:
    with pytest.raises(InvalidInputError, match="document 'a' has a 'chunk' already.*Rename that key"):
        list(Splitter(len, 20).documents([Document("a", GUIDE, {"chunk": 3})]))


@pytest.mark.parametrize("title_length", [5, 79, 80, 200])
def test_a_title_takes_at_most_two_thirds(title_length: int) -> None:
    title = "題" * title_length
    room = max(120 - title_length - 1, 40)
    chunks = Splitter(len, 120, 30).chunks(GUIDE, title=title)
    lengths = [len(chunk.text) for chunk in chunks]
    assert room / 2 < max(lengths) < room
    assert chunks[-1].end == len(GUIDE.rstrip())


def test_document_that_is_long_for_its_title_alone_keeps_its_text() -> None:
    blank, short = Document("a", " ", title="題" * 50), Document("b", "湖。", title="題" * 50)
    first, second = Splitter(len, 20).documents([blank, short])
    assert first is blank
    assert (second.text, second.title) == ("湖。", "題" * 13)
    assert is_chunk_of(second.id, "b")


@pytest.mark.parametrize(
    ("budget", "overlap", "message"),
    [
        (0, 0, "budget is 0; expected a whole number of tokens, at least 1"),
        (2.5, 0, "budget is 2.5; expected a whole number"),
        (True, 0, "budget is True"),
        (10, 10, "overlap is 10; .* below the budget of 10. Name a smaller overlap"),
        (10, -1, "overlap is -1"),
    ],
)
def test_bad_settings_are_refused(budget, overlap, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Splitter(len, budget, overlap)


# With a model's tokenizer.


@pytest.mark.parametrize("title", ["", "図書室の手引（改訂版）"])
@pytest.mark.parametrize("overlap", [0, 15])
def test_a_model_reads_every_chunk_whole(retriever: JaColBERTRetriever, title: str, overlap: int) -> None:
    tokenizer = retriever.encoder.tokenizer
    splitter = Splitter.for_tokenizer(tokenizer, overlap=overlap)
    chunks = list(splitter.documents([Document("a", GUIDE, title=title)]))
    batch = tokenizer.documents([chunk.passage for chunk in chunks])
    assert batch.n_cut.tolist() == [0] * len(chunks)
    assert batch.lengths.mean() > 0.6 * tokenizer.config.document_length
    assert Splitter.for_tokenizer(tokenizer, budget=20).budget == 20
    most = tokenizer.document_budget
    with pytest.raises(InvalidInputError, match=f"budget is {most + 1}, but the model reads {most} tokens"):
        Splitter.for_tokenizer(tokenizer, budget=most + 1)


def test_a_copy_in_another_process_counts_alike() -> None:
    # What frameworks do with a splitter that several processes share; taggers cannot be copied.
    from copy import deepcopy

    from jacolbert_rag.encode import checkpoint

    splitter = Splitter.for_tokenizer(checkpoint.load().tokenizer)
    assert deepcopy(splitter).chunks(GUIDE) == splitter.chunks(GUIDE)


def test_title_longer_than_the_budget_leaves_room_for_the_text() -> None:
    splitter = Splitter(len, 60)
    document = Document("館", GUIDE, title="とても長い題名" * 40)
    chunks = list(splitter.documents([document]))
    assert all(len(chunk.passage) <= 60 for chunk in chunks)
    assert all(0 < len(chunk.title) <= 40 and document.title.startswith(chunk.title) for chunk in chunks)
    assert "".join("".join(c.text.split()) for c in chunks) == "".join(GUIDE.split())
