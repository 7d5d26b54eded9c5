"""Hard negatives: what is no negative, which candidates are drawn, and a run that goes on after any kill."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.full_text import BM25
from jacolbert_rag import Document, JaColBERTRetriever
from tests.conftest import SENTENCES
from training import mine
from training.data import read_rows
from training.mine import distinct, drawn, overlap, shingles, whole_lines
from training.options import TrainingError
from training.state import claim

PLACES = ["琵琶湖", "浜名湖", "富士山", "札幌市", "京都市", "金閣寺", "東京都", "四万十川"]
TOPICS = {
    "歴史": "{}の歴史は古く、奈良時代の書物にもその名が見える。江戸時代には多くの旅人が訪れたという。",
    "気候": "{}の気候は穏やかで、冬でも気温が氷点下になる日は少ない。夏は湿度が高く、雨が多い。",
    "産業": "{}の産業は観光と漁業が中心である。近年は情報技術の企業も増えて、若い人が戻りつつある。",
    "交通": "{}の交通は鉄道とバスが支える。駅から中心部までは歩いて十五分ほどの距離である。",
}
CORPUS = {
    f"{place}-{topic}": {"_id": f"{place}-{topic}", "title": place, "text": text.format(place)}
    for place in PLACES
    for topic, text in TOPICS.items()
}
QUERIES = {
    f"q{i}-{topic}": {
        "_id": f"q{i}-{topic}",
        "text": f"{place}の{topic}について教えて",
        "metadata": {"source": topic},
    }
    for i, place in enumerate(PLACES)
    for topic in TOPICS
}
QRELS = {f"q{i}-{topic}": {f"{place}-{topic}": 1} for i, place in enumerate(PLACES) for topic in TOPICS}


def write_beir(
    folder: Path,
    corpus: dict[str, Any] = CORPUS,
    queries: dict[str, Any] = QUERIES,
    qrels: dict[str, dict[str, int]] = QRELS,
    *,
    packed: bool = False,
) -> Path:
    judged = "".join(f"{q}\t{d}\t{n}\n" for q, of_query in qrels.items() for d, n in of_query.items())
    contents = {
        "corpus.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in corpus.values()),
        "queries.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in queries.values()),
        "qrels/train.tsv": "query-id\tcorpus-id\tscore\n" + judged,
    }
    (folder / "qrels").mkdir(parents=True)
    for name, content in contents.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        else:
            (folder / name).write_text(content, encoding="utf-8")
    return folder


def mined(data: Path, out: Path, *methods: str, **settings: Any) -> list[dict[str, Any]]:
    """Run the step; the rows it wrote."""
    mine.main(data=data, out=out, method=list(methods) or ["bm25"], **settings)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(read_rows(str(out))) == len(rows)
    return rows


def negatives(row: dict[str, Any]) -> list[str]:
    return row["document_ids"][row["n_positives"] :]


# What is no negative.

ANSWER = (
    "琵琶湖は滋賀県にある日本で最も大きな湖で、面積は約670平方キロメートル、最大水深は104メートルに及ぶ。"
)
OTHER = "湖のほとりには城下町が広がり、春には桜を見る人でにぎわう。名物は鮒寿司と、湖で獲れる小魚の佃煮だ。"
WIDE = "琵琶湖は、滋賀県にある。日本で最も大きな湖で・面積は約６７０平方㌔㍍　最大水深は１０４ﾒｰﾄﾙに及ぶ!!"
ALIKE = {
    "copy": ANSWER,
    "width": WIDE,
    "container": f"概要。{OTHER}{ANSWER}以上が湖の説明である。",
    "part": ANSWER[5:40],
    "mostly": ANSWER[:35] + OTHER[:10],
}
UNLIKE = {"apart": OTHER, "a little": ANSWER[:18] + OTHER, "short": "湖", "title": "滋賀県の湖"}


def test_answers_and_what_is_like_them_are_never_negatives(tmp_path: Path) -> None:
    texts = {"答え": ANSWER, "答え2": "湖の水は淀川を流れて大阪湾に注ぎ、京都や大阪の水道にも使われている。"}
    texts |= ALIKE | UNLIKE
    corpus = {id: {"_id": id, "title": "", "text": text} for id, text in texts.items()}
    corpus["titled"] = {"_id": "titled", "title": "湖", "text": ANSWER}
    queries = {"q": {"_id": "q", "text": "日本で最も大きな湖の面積は?"}}
    qrels = {"q": {"答え": 1, "copy": 0, "答え2": 2, "apart": 0}}
    data = write_beir(tmp_path / "d", corpus, queries, qrels)
    (row,) = mined(data, tmp_path / "mined.jsonl", n_negatives=20)
    assert (row["query_id"], row["n_positives"]) == ("q", 2)
    assert row["document_ids"][:2] == ["答え", "答え2"]
    assert sorted(negatives(row)) == sorted(UNLIKE)
    assert "source" not in row
    # With a share above 1 all but the answers themselves are negatives.
    (row,) = mined(data, tmp_path / "all.jsonl", n_negatives=20, duplicate=1.1)
    assert set(negatives(row)) == {*ALIKE, *UNLIKE, "titled"}


def test_shares_of_common_text_by_hand() -> None:
    assert shingles("ＡＢＣｄｅｆｇｈ、i!") == {"abcdefgh", "bcdefghi"}
    assert shingles("湖") == {"湖"}
    assert shingles("、。!") == shingles("") == {""}
    assert overlap(shingles("あいうえおかきくけこ"), shingles("あいうえおかきくけさ")) == pytest.approx(2 / 3)
    assert overlap(shingles("湖"), shingles("湖!")) == 1
    assert overlap(shingles("湖"), shingles("山")) == 0
    assert overlap(shingles(OTHER), shingles(OTHER + ANSWER)) == 1


# Which candidates are drawn.


def bm25_order(query_id: str, k: int) -> list[str]:
    documents = [Document(id, row["text"], title=row["title"]) for id, row in CORPUS.items()]
    return list(BM25(documents).search(QUERIES[query_id]["text"], k))


@pytest.mark.parametrize(("depth", "skip"), [(10, 0), (5, 2), (8, 5), (1, 1), (64, 0)])
def test_depth_and_skip_follow_the_search(tmp_path: Path, depth: int, skip: int) -> None:
    rows = mined(write_beir(tmp_path / "d"), tmp_path / "m.jsonl", n_negatives=40, depth=depth, skip=skip)
    assert [row["query_id"] for row in rows] == list(QRELS)
    for row in rows[:6]:
        (answer,) = QRELS[row["query_id"]]
        candidates = bm25_order(row["query_id"], depth + skip)[skip:]
        assert len(candidates) <= depth
        topic = answer.split("-")[1]
        # The other places' passages of this topic are word for word the same, but for the name.
        expected = [id for id in candidates if not id.endswith(topic)]
        assert sorted(negatives(row)) == sorted(expected)


def test_negatives_of_one_article(tmp_path: Path) -> None:
    rows = mined(write_beir(tmp_path / "d"), tmp_path / "m.jsonl", "article", n_negatives=3, skip=60, depth=1)
    for row in rows:
        (answer,) = QRELS[row["query_id"]]
        place, topic = answer.split("-")
        assert sorted(negatives(row)) == sorted(f"{place}-{other}" for other in TOPICS if other != topic)
    corpus = {id: row | {"title": ""} for id, row in CORPUS.items()}
    rows = mined(write_beir(tmp_path / "untitled", corpus), tmp_path / "u.jsonl", "article")
    assert all(negatives(row) == [] for row in rows)


def test_negatives_by_chance(tmp_path: Path) -> None:
    data = write_beir(tmp_path / "d")
    rows = mined(data, tmp_path / "m.jsonl", "random", n_negatives=8, depth=30)
    assert all(len(set(negatives(row))) == 8 for row in rows)
    places = {id.split("-")[0] for row in rows for id in negatives(row)}
    assert places == {id.split("-")[0] for id in CORPUS}  # from everywhere
    assert len({frozenset(negatives(row)) for row in rows}) == len(rows)  # others for each query
    assert mined(data, tmp_path / "n.jsonl", "random", n_negatives=8, depth=30) == rows
    others = mined(data, tmp_path / "o.jsonl", "random", n_negatives=8, depth=30, seed=1)
    assert [row["document_ids"] for row in others] != [row["document_ids"] for row in rows]


def test_each_method_offers_its_share_and_others_fill_in(tmp_path: Path) -> None:
    data = write_beir(tmp_path / "d")
    rows = mined(data, tmp_path / "m.jsonl", "bm25", "article", n_negatives=6, duplicate=1.1)
    for row in rows:
        (answer,) = QRELS[row["query_id"]]
        place = answer.split("-")[0]
        assert len(negatives(row)) == len(set(negatives(row))) == 6
        assert sum(id.startswith(place) for id in negatives(row)) == 3  # all that there are
    rows = mined(data, tmp_path / "n.jsonl", "bm25", "article", n_negatives=9, duplicate=1.1)
    assert all(len(negatives(row)) == 9 for row in rows)


def test_a_colbert_finds_candidates(tmp_path: Path, tiny_model: Path) -> None:
    corpus = {f"p{i}": {"_id": f"p{i}", "text": text} for i, text in enumerate(SENTENCES)}
    queries = {f"q{i}": {"_id": f"q{i}", "text": text[:8]} for i, text in enumerate(SENTENCES)}
    qrels = {f"q{i}": {f"p{i}": 1} for i in range(len(SENTENCES))}
    data = write_beir(tmp_path / "d", corpus, queries, qrels)
    settings = {"model": str(tiny_model), "device": "cpu", "depth": 4, "skip": 1, "n_negatives": 9}
    rows = mined(data, tmp_path / "m.jsonl", "colbert", **settings)
    retriever = JaColBERTRetriever.from_pretrained(tiny_model)
    retriever.add([Document(id, row["text"]) for id, row in corpus.items()])
    for row, query in zip(rows, queries.values(), strict=True):
        found = [hit.id for hit in retriever.search(query["text"], k=5)][1:]
        answer = f"p{query['_id'][1:]}"
        assert sorted(negatives(row)) == sorted(id for id in found if id != answer)
    assert len({frozenset(negatives(row)) for row in rows}) > 1


# Tuples.


def draws(n_negatives: int, n_tuples: int, *candidates: list[str], seed: int = 0) -> list[list[str]]:
    corpus = {id: {"text": f"{id}{OTHER[i:]}"[:6]} for i, id in enumerate("abcdefghijklmnop")}
    found = drawn("質問", ["a"], candidates, corpus, n_negatives, n_tuples, 0.5, seed)
    assert (found["query_id"], found["n_positives"]) == ("質問", 1)
    return found["tuples"]


def test_tuples_are_drawn_evenly_without_repetition() -> None:
    rows = draws(3, 1_000, list("abcdefgh"))
    assert all(row[0] == "a" and len(set(row)) == 4 for row in rows)
    counts = Counter(id for row in rows for id in row[1:])
    assert set(counts) == set("bcdefgh")
    assert max(counts.values()) - min(counts.values()) < 130  # of 429 each
    first = Counter(row[1] for row in rows)
    assert min(first.values()) > 90


def test_methods_take_turns_until_they_have_no_more() -> None:
    for row in draws(6, 20, list("abc"), list("defghij"), []):
        assert len(row) == 7
        assert set("bc") <= set(row)
    for row in draws(4, 20, list("bcd"), list("bcd")):  # what both found is taken once
        assert sorted(row) == list("abcd")
    for row in draws(3, 20, list("bcd"), list("efgh")):  # two turns and a half
        assert sorted(id < "e" for id in row[1:]) == [False, True, True]
    assert draws(4, 2, ["a"], []) == [["a"], ["a"]]


def test_each_query_draws_for_itself() -> None:
    corpus = {id: {"text": id} for id in "abcdefghij"}
    found = [drawn(f"質問{i}", ["a"], [list("bcdefghij")], corpus, 4, 1, 0.5, 0)["tuples"] for i in range(8)]
    assert len({tuple(rows[0]) for rows in found}) == 8


def test_several_tuples_of_a_query_are_distinct(tmp_path: Path) -> None:
    data = write_beir(tmp_path / "d")
    rows = mined(data, tmp_path / "m.jsonl", n_negatives=4, tuples=5, duplicate=1.1)
    assert Counter(row["query_id"] for row in rows) == dict.fromkeys(QRELS, 5)
    assert len({(row["query_id"], frozenset(row["document_ids"])) for row in rows}) == len(rows)
    assert all(len(set(row["document_ids"])) == 5 for row in rows)
    rows = mined(data, tmp_path / "few.jsonl", "article", n_negatives=3, tuples=5, duplicate=1.1)
    assert len(rows) == len(QRELS)  # there is one such tuple only
    assert list(distinct([["a", "b"], ["b", "a"], ["a", "c"]])) == [["a", "b"], ["a", "c"]]


def test_a_seed_fixes_all_and_queries_do_not_depend_on_others(tmp_path: Path) -> None:
    data = write_beir(tmp_path / "d")
    settings = {"n_negatives": 5, "duplicate": 1.1, "tuples": 2}
    first = mined(data, tmp_path / "1.jsonl", **settings)
    assert mined(data, tmp_path / "2.jsonl", **settings) == first
    assert mined(data, tmp_path / "3.jsonl", **settings, seed=1) != first
    some = {id: QRELS[id] for id in reversed(list(QRELS)[3:20])}
    rows = mined(write_beir(tmp_path / "some", qrels=some), tmp_path / "4.jsonl", **settings)
    assert rows == sorted(
        (row for row in first if row["query_id"] in some), key=lambda r: list(some).index(r["query_id"])
    )
    assert mined(data, tmp_path / "5.jsonl", **settings, limit=3) == first[:6]
    assert mined(write_beir(tmp_path / "p", packed=True), tmp_path / "6.jsonl", **settings) == first


def test_a_source_is_carried_on(tmp_path: Path) -> None:
    rows = mined(write_beir(tmp_path / "d"), tmp_path / "m.jsonl")
    assert all(row["source"] == row["query_id"].split("-")[1] for row in rows)
    assert [row.source for row in read_rows(str(tmp_path / "m.jsonl"))[:2]] == ["歴史", "気候"]


def test_what_was_left_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qrels = dict(list(QRELS.items())[:4]) | {
        "q9-ない": {"琵琶湖-歴史": 1},
        "q4-歴史": {"どこにもない": 1},
        "q5-歴史": {"金閣寺-歴史": 0},
        "q6-歴史": {"東京都-歴史": 1, "どこにもない": 1},
    }
    rows = mined(write_beir(tmp_path / "d", qrels=qrels), tmp_path / "[red]m.jsonl", "article", n_negatives=4)
    assert [row["query_id"] for row in rows] == [*list(QRELS)[:4], "q6-歴史"]
    assert rows[-1]["n_positives"] == 1
    said = capsys.readouterr().err
    assert "1 queries left out: no text of the query\n" in said
    assert "2 queries left out: no positive in the corpus\n" in said
    assert "5 queries with fewer than 4 negatives\n" in said
    assert f"Tuples written to {tmp_path}/[red]m.jsonl.\n" in said
    nothing = write_beir(tmp_path / "n", qrels={"q1-歴史": {"ない": 1}})
    with pytest.raises(TrainingError, match="No query has a positive that is in the corpus"):
        mined(nothing, tmp_path / "n.jsonl")


# A run that was stopped.

WORK = {"n_negatives": 4, "duplicate": 1.1, "tuples": 2}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mine, "BLOCK", 5)


@pytest.mark.usefixtures("small_blocks")
def test_a_run_goes_on_after_a_kill_at_any_byte(tmp_path: Path) -> None:
    data, out = write_beir(tmp_path / "d"), tmp_path / "m.jsonl"
    mined(data, out, "bm25", "article", **WORK)
    expected, work = out.read_bytes(), tmp_path / "m.jsonl.work"
    part = (work / "part.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(part) if byte == ord("\n")]
    cuts = [0, 1, ends[0], ends[0] - 1, ends[4], ends[4] + 7, ends[9] - 1, len(part) - 1, len(part)]
    cuts += np.random.default_rng(0).integers(0, len(part), 6).tolist()  # in the middle of a character too
    for cut in cuts:
        out.unlink()
        (work / "part.jsonl").write_bytes(part[:cut])
        mined(data, out, "bm25", "article", **WORK)
        assert out.read_bytes() == expected
        assert (work / "part.jsonl").read_bytes() == part


@pytest.mark.usefixtures("small_blocks")
def test_no_query_is_drawn_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = write_beir(tmp_path / "d"), tmp_path / "m.jsonl"
    expected = mined(data, tmp_path / "unbroken.jsonl", **WORK)
    asked: list[str] = []

    def killed_at(n: int, real: Callable[..., Any] = mine.drawn) -> Callable[..., Any]:
        def draw(query_id: str, *args: Any) -> Any:
            if len(asked) == n:
                raise KeyboardInterrupt
            asked.append(query_id)
            return real(query_id, *args)

        return draw

    for n in (12, 20):
        monkeypatch.setattr(mine, "drawn", killed_at(n))
        with pytest.raises(KeyboardInterrupt):
            mined(data, out, **WORK)
        assert not out.exists()
    monkeypatch.setattr(mine, "drawn", killed_at(-1))
    searched: list[str] = []
    real = BM25.search
    monkeypatch.setattr(BM25, "search", lambda self, query, k: searched.append(query) or real(self, query, k))
    assert mined(data, out, **WORK) == expected
    assert asked == list(QRELS)
    assert searched == [QUERIES[id]["text"] for id in list(QRELS)[20:]]


def test_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    assert whole_lines(path) == 0
    for content, n, left in (
        (b"", 0, b""),
        (b"abc", 0, b""),
        (b"a\nb\n", 2, b"a\nb\n"),
        (b"a\n\xe6\xb9", 1, b"a\n"),
    ):
        path.write_bytes(content)
        assert whole_lines(path) == n
        assert path.read_bytes() == left


def test_a_finished_run_does_nothing_and_a_second_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_beir(tmp_path / "d"), tmp_path / "m.jsonl"
    with claim(tmp_path / "m.jsonl.work"), pytest.raises(TrainingError, match="Another process works on"):
        mined(data, out)
    mined(data, out)
    before = out.stat().st_mtime_ns
    shutil.rmtree(data)  # not even read
    mined(data, out)
    assert out.stat().st_mtime_ns == before
    assert f"{out} is finished: nothing to do." in capsys.readouterr().err
    with pytest.raises(TrainingError, match="begun with other settings: seed 12345 -> 3"):
        mined(data, out, seed=3)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    data, out = write_beir(tmp_path / "d"), tmp_path / "m.jsonl"
    mined(data, out, **WORK)
    out.unlink()
    for other, message in (
        ({"seed": 1}, "seed 12345 -> 1"),
        ({"depth": 9}, "depth 64 -> 9"),
        ({"n_negatives": 9}, "n_negatives 4 -> 9"),
        ({"limit": 9}, "limit None -> 9"),
        ({"model": "x"}, "model None -> 'x'"),
    ):
        with pytest.raises(TrainingError, match=f"begun with other settings: {message}. Name another --out"):
            mined(data, out, **WORK | other)
    with pytest.raises(TrainingError, match=r"method \['bm25'\] -> \['article'\]"):
        mined(data, out, "article", **WORK)
    with pytest.raises(TrainingError, match="There is no method bm52; expected bm25, colbert, article"):
        mined(data, out, "bm52", **WORK)
    with (data / "queries.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"_id": "neu", "text": "湖は?"}) + "\n")
    with pytest.raises(TrainingError, match="begun with other settings: data"):
        mined(data, out, **WORK)


def test_tuples_may_lie_in_the_folder_they_are_mined_from(tmp_path: Path) -> None:
    data = write_beir(tmp_path / "d")
    expected = mined(data, tmp_path / "m.jsonl", **WORK)
    out = data / "mined.jsonl"
    mined(data, out, **WORK)
    out.unlink()
    (data / "mined.jsonl.work" / "part.jsonl").write_bytes(b"")
    assert mined(data, out, **WORK) == expected


def test_a_folder_that_lacks_a_file_is_named(tmp_path: Path) -> None:
    data = write_beir(tmp_path / "d")
    with pytest.raises(TrainingError, match="qrels/dev.tsv is missing"):
        mined(data, tmp_path / "m.jsonl", split="dev")
    (data / "queries.jsonl").unlink()
    with pytest.raises(TrainingError, match="queries.jsonl is missing"):
        mined(data, tmp_path / "m.jsonl")
