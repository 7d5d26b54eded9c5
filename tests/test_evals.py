"""The eval harness: loader, measures against hand and a naive loop, systems, and the whole command."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
import subprocess
import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import jacolbert_rag
from evals import full_text, metrics, reports, systems
from evals.datasets import DatasetError, load_task, unanswerable
from evals.results import Result
from evals.run import app
from jacolbert_rag import CandidateConfig, Document, InvalidInputError, StoreConfig
from jacolbert_rag.encode.encoder import Encoder

ROOT = Path(__file__).parents[1]

CORPUS = [
    ("d07", "浜名湖", "浜名湖は静岡県の西部にあり、うなぎの養殖で知られる汽水湖だ。"),
    ("d02", "琵琶湖", "滋賀県の中央に広がる湖で、面積は約670平方キロメートルに及ぶ。"),
    ("d03", "", "富士山の山頂では、真夏でも気温が10度を超える日は少ない。"),
    ("d04", "金閣寺", "京都市北区の寺院。舎利殿の壁には金箔が張られている。"),
    ("d05", "", "サーバーを再起動する前に、情報システム部へ連絡してください。"),
    ("d06", "牛丼", "薄切りの牛肉と玉ねぎを甘辛く煮て、ご飯にのせた料理である。"),
    ("d01", "経費の精算", "領収書を添えて、翌月の5日までに経理部へ申請する。"),
    ("d08", "札幌市", "北海道の道庁所在地で、冬には雪まつりが開かれる。"),
    ("d09", "", "喫茶店でコーヒーを飲みながら、静かに本を読む時間が好きだ。"),
    ("d10", "東京都", "日本の首都であり、人口は約1,400万人と全国で最も多い。"),
]
QUERIES = [
    ("q3", "うなぎの養殖で有名な湖はどこですか?"),
    ("q1", "滋賀県にある湖の名前は?"),
    ("q5", "今日の天気を教えて"),  # judged, but nothing is relevant
    ("q2", "経費の精算はいつまでに申請しますか?"),
    ("q4", "日本の首都はどこか。"),
]
QRELS = [
    ("q1", "d02", 2),
    ("q1", "d07", 0),
    ("q2", "d01", 1),
    ("q3", "d07", 1),
    ("q3", "d02", 1),
    ("q4", "d10", 1),
]
QRELS += [("q5", "d08", 0)]

runner = CliRunner()


def write(path: Path, text: str | bytes, *, packed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_beir(folder: Path, *, packed: bool = False) -> Path:
    corpus = [{"_id": id, "title": title, "text": text} for id, title, text in CORPUS]
    write(folder / "corpus.jsonl", jsonl(corpus), packed=packed)
    write(folder / "queries.jsonl", jsonl([{"_id": id, "text": text} for id, text in QUERIES]), packed=packed)
    rows = "".join(f"{query}\t{doc}\t{score}\n" for query, doc, score in QRELS)
    write(folder / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore\n" + rows)
    return folder


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "小さな資料")


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [Document(id, text, title=title) for id, title, text in CORPUS]


# --- datasets


@pytest.mark.parametrize("packed", [False, True])
def test_load_task_reads_plain_and_gzipped(tmp_path, packed):
    task = load_task(write_beir(tmp_path / "set", packed=packed), "dev")
    assert (task.name, task.split) == ("set", "dev")
    assert [document.id for document in task.documents] == [id for id, _, _ in CORPUS]
    assert task.documents[1].passage.startswith("琵琶湖 滋賀県の")
    assert task.documents[2].passage.startswith("富士山の山頂")
    assert list(task.queries) == ["q3", "q1", "q2", "q4"]  # file order; q5 has nothing relevant
    assert task.qrels["q1"] == {"d02": 2, "d07": 0}
    assert set(task.qrels) == set(task.queries)


def test_limit_keeps_the_first_queries_and_the_whole_corpus(beir):
    whole, task = load_task(beir, "dev"), load_task(beir, "dev", limit=2)
    assert list(task.queries) == list(task.qrels) == ["q3", "q1"]
    assert task.documents == whole.documents
    assert (task.n_split, task.digest) == (4, whole.digest)
    assert list(load_task(beir, "dev", limit=99).queries) == list(whole.queries)


def test_digest_tells_data_apart_and_not_their_packing(tmp_path):
    plain = load_task(write_beir(tmp_path / "a"), "dev")
    assert load_task(write_beir(tmp_path / "b", packed=True), "dev").digest == plain.digest
    for file, old, new in [
        ("corpus.jsonl", "金箔", "銀箔"),
        ("queries.jsonl", "首都", "県都"),
        ("qrels/dev.tsv", "q4\td10\t1", "q4\td10\t2"),
    ]:
        changed = write_beir(tmp_path / "c") / file
        changed.write_text(changed.read_text("utf-8").replace(old, new), "utf-8")
        assert load_task(tmp_path / "c", "dev").digest != plain.digest, file


def test_load_task_takes_what_real_files_have(beir):
    """A byte order mark, Windows line ends, blank lines, no title, a null title, a document without text."""
    rows = ['{"_id": "d1", "text": "長良川の鵜飼い"}', "", '{"_id": "d2", "title": null, "text": "鵜"}']
    rows.append('{"_id": "d3", "title": "", "text": ""}')
    write(beir / "corpus.jsonl", ("\ufeff" + "\r\n".join(rows) + "\r\n\r\n"))
    write(beir / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore\r\nq1\td2\t1\r\n")
    task = load_task(beir, "dev")
    assert [document.passage for document in task.documents] == ["長良川の鵜飼い", "鵜", ""]
    assert task.qrels == {"q1": {"d2": 1}}


HEADER = "query-id\tcorpus-id\tscore\n"
BROKEN = [
    ("corpus.jsonl", '{"_id": "d1", "text": "湖"}\n{"_id": "d2", \n', r"corpus\.jsonl, line 2: not JSON"),
    ("corpus.jsonl", '["d1"]\n', r"corpus\.jsonl, line 1: a list, not an object: write"),
    ("corpus.jsonl", "[" * 100_000, r"corpus\.jsonl, line 1: not JSON"),
    ("corpus.jsonl", '\n{"_id": 7, "text": "湖"}\n', r'corpus\.jsonl, line 2: "_id" is 7; expected a string'),
    ("corpus.jsonl", '{"_id": "", "text": "湖"}\n', r'corpus\.jsonl, line 1: "_id" is empty\. Give'),
    ("corpus.jsonl", '{"_id": "d1"}\n', r'corpus\.jsonl, line 1: "text" is missing; expected a string'),
    ("corpus.jsonl", '{"_id": "d1", "text": "湖", "title": 3}', r'line 1: "title" is 3; expected'),
    (
        "corpus.jsonl",
        '{"_id": "d", "text": "湖"}\n' * 2,
        r"line 2: the id 'd' is there already \(.*line 1\)\. Give",
    ),
    ("corpus.jsonl", "湖".encode("euc_jp") + b"\n", r"corpus\.jsonl, line 1: not UTF-8 .*Convert"),
    ("corpus.jsonl", "", r"corpus\.jsonl has no document with text among 0\. Write"),
    (
        "corpus.jsonl",
        '{"_id": "d1", "text": "　"}\n',
        r"corpus\.jsonl has no document with text among 1\. Write",
    ),
    ("queries.jsonl", '{"_id": "q1", "text": null}\n', r'queries\.jsonl, line 1: "text" is None; expected'),
    ("qrels/dev.tsv", "", r"dev\.tsv has no query with a relevant document .* name another split"),
    ("qrels/dev.tsv", HEADER + "q5\td08\t0\n", r"dev\.tsv has no query with a relevant document"),
    (
        "qrels/dev.tsv",
        "q1\td02\t1\n",
        r"dev\.tsv, line 1: .* is no header; expected 'query-id.* Add that line",
    ),
    ("qrels/dev.tsv", HEADER + "q1 d02 1\n", r"dev\.tsv, line 2: 1 cells; expected .*one tab"),
    (
        "qrels/dev.tsv",
        HEADER + "q1\td02\t1\nq9\td02\t1\n",
        r"line 3: the query 'q9' is not in .*queries\.jsonl\. Add",
    ),
    ("qrels/dev.tsv", HEADER + "q1\td99\t0\n", r"line 2: the document 'd99' is not in .*corpus\.jsonl\. Add"),
    (
        "qrels/dev.tsv",
        HEADER + "q1\td02\t1\nq1\td02\t0\n",
        r"line 3: .*'d02' were judged in an earlier row\. Keep",
    ),
    (
        "qrels/dev.tsv",
        HEADER + "q1\td02\t0.5\n",
        r"line 2: the score '0\.5' is no judgement\. Write a whole number",
    ),
    ("qrels/dev.tsv", HEADER + f"q1\td02\t{10**30}\n", r"line 2: the score '10+' is no judgement\. Write"),
]


@pytest.mark.parametrize(("file", "content", "message"), BROKEN)
def test_broken_files_are_named_with_their_line(beir, file, content, message):
    write(beir / file, content)
    with pytest.raises(DatasetError, match=message) as raised:
        load_task(beir, "dev")
    assert isinstance(raised.value, InvalidInputError)


def test_a_query_without_text_is_refused_where_it_counts(beir):
    write(
        beir / "queries.jsonl",
        jsonl([{"_id": f"q{i}", "text": " " if i == 1 else "湖"} for i in range(1, 6)]),
    )
    with pytest.raises(DatasetError, match=r"queries\.jsonl, line 1: the query 'q1' has no text\. Write it"):
        load_task(beir, "dev")
    write(beir / "qrels" / "dev.tsv", HEADER + "q2\td01\t1\n")
    assert list(load_task(beir, "dev").queries) == ["q2"]


def test_missing_files_are_named(beir):
    with pytest.raises(DatasetError, match=r"no-such-folder is no folder\. Name one in BEIR layout"):
        load_task(beir / "no-such-folder", "dev")
    with pytest.raises(DatasetError, match=r"qrels/test\.tsv is missing.* Splits that are there: dev\."):
        load_task(beir, "test")
    (beir / "corpus.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"corpus\.jsonl is missing, and corpus\.jsonl\.gz too"):
        load_task(beir, "dev")


def test_two_versions_of_a_file_are_refused(beir):
    write_beir(beir, packed=True)
    with pytest.raises(DatasetError, match=r"corpus\.jsonl lies beside corpus\.jsonl\.gz.* Remove one"):
        load_task(beir, "dev")


@pytest.mark.parametrize("n_bytes", [5, 60, 400])
def test_a_gzip_that_was_cut_short_is_named(tmp_path, n_bytes):
    folder = write_beir(tmp_path / "set", packed=True)
    packed = folder / "corpus.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:n_bytes])
    with pytest.raises(DatasetError, match=r"corpus\.jsonl\.gz, line \d+: the file cannot be unpacked"):
        load_task(folder, "dev")


def test_a_plain_file_named_gz_is_named(beir):
    (beir / "corpus.jsonl").rename(beir / "corpus.jsonl.gz")
    with pytest.raises(DatasetError, match=r"corpus\.jsonl\.gz, line 1: .* drop the \.gz"):
        load_task(beir, "dev")


# --- metrics


def test_measures_by_hand():
    qrels = {"q": {"a": 3, "b": 1, "c": 0}, "none": {"a": 1}}
    run = {"q": {"c": 9.0, "b": 8.0, "x": 7.0, "a": 6.0}}
    values = metrics.per_query(qrels, run)
    dcg = 1 / math.log2(3) + 3 / math.log2(5)
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    assert values["nDCG@10"] == {"q": pytest.approx(dcg / ideal), "none": 0}
    assert values["MRR@10"] == {"q": pytest.approx(1 / 2), "none": 0}
    assert values["Recall@1"] == {"q": 0, "none": 0}
    assert values["Recall@10"] == {"q": 1, "none": 0}
    assert metrics.mean(values)["MRR@10"] == pytest.approx(1 / 4)
    assert all(type(value) is float for per_id in values.values() for value in per_id.values())


def test_cut_offs_and_the_ideal_of_many_relevant():
    ranking = [f"d{i:02}" for i in range(12)]
    run = {"q": {doc: -float(i) for i, doc in enumerate(ranking)}}
    eleventh = metrics.per_query({"q": {"d10": 1}}, run, ["MRR@10", "nDCG@10", "Recall@10", "MRR@11"])
    assert [eleventh[name]["q"] for name in eleventh] == [0, 0, 0, pytest.approx(1 / 11)]
    all_relevant = metrics.per_query({"q": dict.fromkeys(ranking, 1)}, run)
    assert all_relevant["nDCG@10"]["q"] == pytest.approx(1)  # the ideal is cut at 10 too
    assert all_relevant["Recall@10"]["q"] == pytest.approx(10 / 12)


def test_ties_stay_in_the_order_of_the_run():
    qrels = {"q": {"b": 1}}
    for docs in (["a", "b", "c"], ["c", "b", "a"], ["b", "a", "c"]):
        values = metrics.per_query(qrels, {"q": dict.fromkeys(docs, 1.5)}, ["MRR@10"])
        assert values["MRR@10"]["q"] == pytest.approx(1 / (1 + docs.index("b")))


def naive(measure: str, judged: dict[str, int], scores: dict[str, float]) -> float:
    name, k = measure.split("@")
    ranking = [doc for _, _, doc in sorted((-s, i, doc) for i, (doc, s) in enumerate(scores.items()))][
        : int(k)
    ]
    gains = [max(0, judged.get(doc, 0)) for doc in ranking]
    if name == "MRR":
        return next((1 / rank for rank, gain in enumerate(gains, 1) if gain), 0.0)
    if name == "Hit":
        return float(any(gains))
    relevant = sorted((score for score in judged.values() if score > 0), reverse=True)
    if name == "MAP":
        hits = [rank for rank, gain in enumerate(gains, 1) if gain]
        return sum(n / rank for n, rank in enumerate(hits, 1)) / len(relevant) if relevant else 0.0
    if name == "Recall":
        return sum(gain > 0 for gain in gains) / len(relevant) if relevant else 0.0
    ideal = sum(gain / math.log2(i + 2) for i, gain in enumerate(relevant[: int(k)]))
    return sum(gain / math.log2(i + 2) for i, gain in enumerate(gains)) / ideal if ideal else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_measures_equal_a_naive_loop_on_random_runs(seed):
    rng = random.Random(seed)
    docs = [f"文書{i}" for i in range(150)]
    qrels, run = {}, {}
    for i in rng.sample(range(60), 60):
        qrels[f"問{i}"] = {doc: rng.choice([-1, 0, 1, 2, 3]) for doc in rng.sample(docs, rng.randint(1, 30))}
    for i in rng.sample(range(70), 60):  # another order; some of qrels' missing, some that qrels lacks
        n = rng.choice([0, 1, 5, 100, 120])
        run[f"問{i}"] = {doc: rng.randint(0, 20) / 4 for doc in rng.sample(docs, n)}  # many ties
    values = metrics.per_query(qrels, run)
    assert list(values) == list(metrics.MEASURES)
    for measure in metrics.MEASURES:
        assert list(values[measure]) == list(qrels)
        for id, judged in qrels.items():
            assert values[measure][id] == pytest.approx(naive(measure, judged, run.get(id, {}))), (
                measure,
                id,
            )


def test_queries_are_paired_by_id_not_by_position():
    qrels = {"q2": {"b": 1}, "q1": {"a": 1}}
    run = {"q1": {"a": 1.0}, "q2": {"b": 1.0}}
    assert metrics.mean(metrics.per_query(qrels, run)) == dict.fromkeys(metrics.MEASURES, 1.0)


@pytest.mark.parametrize("run", [{}, {"q": {}}, {"elsewhere": {"a": 1.0}}])
def test_no_results_at_all_count_zero(run):
    assert metrics.mean(metrics.per_query({"q": {"a": 1}}, run)) == dict.fromkeys(metrics.MEASURES, 0.0)


def test_arguments_of_measures():
    for measure in ("nDCG_10", "nDCG@", "nDCG@0", "ERR@10", "MRR@-1", "MRR@１０", "@10"):
        with pytest.raises(ValueError, match=r"unknown; expected nDCG@k, MRR@k, MAP@k, Recall@k"):
            metrics.per_query({"q": {"a": 1}}, {}, [measure])
    with pytest.raises(ValueError, match="the run of query 'q' has a NaN"):
        metrics.per_query({"q": {"a": 1}}, {"q": {"a": math.nan}})
    with pytest.raises(ValueError, match="no queries"):
        metrics.mean(metrics.per_query({}, {}))
    qrels, run = {"q": {"a": 1}}, {"q": {"b": 1.0, "a": 2.0}}
    metrics.per_query(qrels, run)
    assert (qrels, run) == ({"q": {"a": 1}}, {"q": {"b": 1.0, "a": 2.0}})


def test_measures_leave_numba_threads_alone():
    import numba

    before = numba.get_num_threads()
    metrics.per_query({"q": {"a": 1}}, {"q": {"a": 1.0}})
    assert numba.get_num_threads() == before


@pytest.mark.parametrize("system", ["bm25", "JaColBERTv2.5", "bge-m3-colbert"])
def test_measures_equal_published_figures_of_jqara(shared_data, system):
    folder = shared_data / "jqara_runs"
    qrels, run = defaultdict(dict), defaultdict(dict)
    for line in (folder / "qrels.tsv").read_text("utf-8").splitlines():
        query, _, doc, score = line.split("\t")
        qrels[query][doc] = int(score)
    with gzip.open(folder / f"run.{system}.trec.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            query, _, doc, _, score, _ = line.split()
            run[query][doc] = float(score)
    published = json.loads((folder / "published.json").read_text("utf-8"))
    means = metrics.mean(metrics.per_query(qrels, run, ["nDCG@10", "MRR@10"]))
    assert len(qrels) == published["queries"]
    for measure, value in means.items():
        assert value == pytest.approx(published["runs"][system][measure.lower()], abs=1e-3)


# --- systems


def test_bm25_finds_by_words_and_breaks_ties_by_id():
    corpus = [
        Document("b", "鎌倉の大仏"),
        Document("a", "鎌倉の大仏"),
        Document("c", "奈良の大仏"),
        Document("d", ""),
        Document("e", "金沢21世紀美術館"),
    ]
    bm25 = full_text.BM25(corpus)
    [hits] = bm25.search_many(["鎌倉の大仏"], 10)
    assert list(hits) == ["a", "b", "c"]
    assert hits["a"] == hits["b"] > hits["c"] > 0
    assert bm25.search("鎌倉の大仏", 10) == hits
    assert list(bm25.search("鎌倉の大仏", 1)) == ["a"]  # the tie at the cut too
    assert bm25.search("オーロラ", 10) == bm25.search(" ", 10) == {}
    assert list(bm25.search("２１世紀", 10)) == ["e"]  # full width reads as half width
    assert bm25.search("鎌倉", 10) == full_text.BM25(corpus[::-1]).search("鎌倉", 10)


def test_bm25_agrees_with_the_formula():
    """Lucene's BM25 (Kamphuis et al., 2020, table 1), by hand for a corpus of three."""
    corpus = [Document("x", "猫 犬 猫"), Document("y", "犬 鳥"), Document("z", "鳥")]
    scores = full_text.BM25(corpus, k1=1.2, b=0.75).search("猫 犬", 3)

    def term(tf: int, df: int, length: int) -> float:
        idf = math.log(1 + (3 - df + 0.5) / (df + 0.5))
        return idf * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * length / 2))

    assert scores == {
        "x": pytest.approx(term(2, 1, 3) + term(1, 2, 3)),
        "y": pytest.approx(term(1, 2, 2)),
    }


def test_jacolbert_equals_exact_on_a_tiny_corpus(tiny_model, documents, monkeypatch):
    encoded = []
    encode = Encoder.documents_with_cuts
    monkeypatch.setattr(
        Encoder,
        "documents_with_cuts",
        lambda self, texts, **kwargs: encoded.append(texts) or encode(self, texts, **kwargs),
    )
    queries = [text for _, text in QUERIES]
    found = {}
    for system in systems.build(["jacolbert", "jacolbert-exact"], documents, model=str(tiny_model)):
        found[system.name] = system.search_many(queries, 100)
        for query, hits in zip(queries, found[system.name], strict=True):
            single = system.search(query, 100)
            assert single == pytest.approx(hits)
            assert list(single) == list(hits)
            assert list(hits.values()) == sorted(hits.values(), reverse=True)
    assert [len(texts) for texts in encoded] == [len(CORPUS)]  # one engine, encoded once
    for proposed, exact in zip(found["jacolbert"], found["jacolbert-exact"], strict=True):
        assert list(proposed) == list(exact)
        assert proposed == pytest.approx(exact)
        assert len(exact) == len(CORPUS)


def test_engine_has_candidates_only_where_they_are_searched(tiny_model, documents):
    corpus = [*documents, Document("d00", " \n")]
    engine = systems.build_engine(corpus, model=str(tiny_model))
    assert is_pooled(engine)
    assert [document.id for document in engine] == sorted(id for id, _, _ in CORPUS)  # blank d00 is out
    assert not is_pooled(systems.build_engine(corpus, model=str(tiny_model), candidates=False))


def is_pooled(engine) -> bool:
    with engine._index.reading() as view:
        return view.snapshot.pooled is not None


def test_unknown_systems_are_answered_with_the_known():
    with pytest.raises(
        InvalidInputError,
        match=r"no system 'splade'; known are bm25, bm25-bigram, jacolbert, jacolbert-exact",
    ):
        systems.check_names(["bm25", "splade"])
    with pytest.raises(InvalidInputError, match="'bm25' is named twice"):
        systems.check_names(["bm25", "bm25"])


def test_latency_takes_single_calls_spread_evenly():
    calls = []

    class Fake:
        name, settings = "fake", ()

        def search(self, query, k):
            calls.append((query, k))
            return {}

        def search_many(self, queries, k):
            raise AssertionError

    times = systems.latency_ms(Fake(), [str(i) for i in range(1_000)], k=10)
    assert 0 <= times["p50"] <= times["p95"]
    timed = [int(query) for query, _ in calls[systems.WARM_UP_QUERIES :]]
    assert len(timed) == 50
    assert (timed[0], timed[-1]) == (0, 999)
    assert all(20 <= b - a <= 21 for a, b in itertools.pairwise(timed))
    assert {k for _, k in calls} == {10}
    calls.clear()
    systems.latency_ms(Fake(), ["一", "二"], k=10)
    assert [query for query, _ in calls] == ["一", "二"] * 2


# --- the command


def invoke(*args: object):
    return runner.invoke(app, [str(arg) for arg in args])


def test_a_whole_run(beir, tiny_model, tmp_path):
    file = tmp_path / "結果.json"
    args = ["--data", beir, "--split", "dev", "--json", file, "--model", tiny_model]
    for name in systems.KNOWN_SYSTEMS:
        args += ["--system", name]
    file.write_text("old")
    done = invoke(*args)
    assert done.exit_code == 0, done.output
    results = json.loads(file.read_text("utf-8"))
    assert [result["system"] for result in results] == list(systems.KNOWN_SYSTEMS)
    for result in results:
        assert set(result) == {field.name for field in fields(Result)}
        assert (result["dataset"], result["split"], result["n_queries"]) == ("小さな資料", "dev", 4)
        assert list(result["measures"]) == list(result["intervals"]) == list(metrics.MEASURES)
        for name, (low, high) in result["intervals"].items():
            assert 0 <= low <= result["measures"][name] <= high <= 1
        assert all(type(value) is float and 0 <= value <= 1 for value in result["measures"].values())
        assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p95"]
        assert result["queries_per_s"] > 0
        assert result["bytes_per_document"] > 0
        lowest = 10 if result["system"].startswith("bm25") else 100  # full text loads no torch
        assert lowest < result["peak_mb"] < 10_000
        assert result["n_documents"] == 10
        assert result["signature"] in done.stdout
    bm25, _, proposed, exact, hybrid, reranked = results
    assert hybrid["measures"]["Recall@10"] == 1
    assert "|min-max:" in hybrid["signature"]
    assert bm25["measures"]["MRR@10"] == 1
    assert bm25["measures"]["Recall@1"] == pytest.approx((1 + 1 + 1 + 1 / 2) / 4)  # q3 has two relevant
    assert proposed["measures"] == exact["measures"]
    assert exact["measures"]["Recall@10"] == 1  # ten documents
    data = "小さな資料|dev|q:4|c:10@"
    assert bm25["signature"].startswith(data)
    assert f"|bm25|k1:{full_text.BM25_K1}|b:{full_text.BM25_B}|" in bm25["signature"]
    assert f"|jacolbert|{tiny_model.name}@" in proposed["signature"]
    assert f"|pool:1|{StoreConfig().dtype}|compute:" in proposed["signature"]
    near = CandidateConfig()
    settings = f"|n_nearest:{near.n_nearest}|n_candidates:{near.n_candidates}|ef:{near.ef_search}|qlen:paper|"
    assert settings in proposed["signature"]
    assert "|n_nearest:" not in exact["signature"]
    assert "|of:bm25:100|" in reranked["signature"]
    for text in (
        "小さな資料 dev",
        "jacolbert-exact",
        "Recall@100",
        "p95 ms",
        f"{exact['measures']['nDCG@10']:.4f}",
    ):
        assert text in done.stdout
    assert "小さな資料 dev, hybrid: done" in done.stderr

    again = invoke(*args)
    repeated = json.loads(file.read_text("utf-8"))
    assert again.exit_code == 0
    assert [r["signature"] for r in repeated] == [r["signature"] for r in results]
    assert [r["measures"] for r in repeated] == [r["measures"] for r in results]


def test_a_run_as_a_subprocess_with_limit(beir, tmp_path):
    file = tmp_path / "out.json"
    command = [sys.executable, "-m", "evals.run", "--data", str(beir), "--split", "dev", "--system", "bm25"]
    done = subprocess.run(
        [*command, "--json", str(file), "--limit", "3"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [result] = json.loads(file.read_text("utf-8"))
    assert result["n_queries"] == 3
    assert "|q:3/4|c:10@" in result["signature"]
    assert result["signature"].endswith(f"|k:100|v{jacolbert_rag.__version__}")
    assert "Recall@100" in done.stdout


def test_help_loads_neither_torch_nor_ranx():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['evals.run', '--help']\n"
        "try:\n    runpy.run_module('evals.run', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'ranx', 'numba', 'transformers', 'bm25s', 'voyager'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--limit" in done.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--system": "splade"}, "known are bm25, bm25-bigram, jacolbert, jacolbert-exact"),
        ({"--split": "test"}, "Splits that are there: dev."),
        ({"--data": "どこにもない"}, "どこにもない is no folder"),
        ({"--json": "どこにもない/out.json"}, "there is no folder どこにもない"),
        ({"--json": "."}, "--json . is a folder"),
        ({"--system": "jacolbert", "--model": "./どこにもない"}, "no folder"),
        ({"--limit": "0"}, "--limit"),
    ],
)
def test_what_cannot_be_run_exits_with_2_and_says_why(beir, tmp_path, changes, message):
    args = {"--data": beir, "--split": "dev", "--system": "bm25", "--json": tmp_path / "out.json", **changes}
    done = invoke(*(part for pair in args.items() for part in pair))
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "out.json").exists()


def test_a_broken_line_exits_with_2_and_names_it(beir, tmp_path):
    write(beir / "qrels" / "dev.tsv", HEADER + "q1\td02\t1\nq1\t[/d99]\t1\n")
    done = invoke("--data", beir, "--split", "dev", "--system", "bm25", "--json", tmp_path / "out.json")
    assert done.exit_code == 2
    assert "qrels/dev.tsv, line 3: the document '[/d99]' is not in" in done.stderr


def test_names_of_folders_are_not_read_as_markup(tmp_path):
    folder = write_beir(tmp_path / "[bold]資料[／red]")
    done = invoke("--data", folder, "--split", "dev", "--system", "bm25", "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("[bold]資料[／red]") == 2  # the table and the signature
    assert "[bold]資料[／red]" in done.stderr
    reports.table([])  # no results, no columns of measures: still a table


def test_bm25_on_jsquad(shared_data, tmp_path):
    file = tmp_path / "out.json"
    folder = shared_data / "jsquad"
    done = invoke("--data", folder, "--split", "dev", "--system", "bm25", "--json", file, "--limit", 300)
    assert done.exit_code == 0, done.output
    [result] = json.loads(file.read_text("utf-8"))
    assert result["n_queries"] == 300
    assert result["measures"]["MRR@10"] > 0.9
    assert "|q:300/3926|c:1145@" in result["signature"]


def test_bm25_without_folding_is_that_of_an_independent_script(shared_data):
    """bm25s over fugashi's words, put together by hand."""
    import unicodedata

    import bm25s
    import fugashi
    import unidic_lite

    from evals.metrics import mean, per_query

    task = load_task(shared_data / "jsquad", "dev", limit=300)
    tagger = fugashi.GenericTagger(f"-d {unidic_lite.DICDIR} -r {unidic_lite.DICDIR}/mecabrc -Owakati")

    def words(text: str) -> list[str]:
        return tagger.parse(unicodedata.normalize("NFKC", text)).split()

    peer = bm25s.BM25(k1=full_text.BM25_K1, b=full_text.BM25_B, method="lucene")
    peer.index([words(document.passage) for document in task.documents], show_progress=False)
    ids = [document.id for document in task.documents]
    found, ours = {}, {}
    system = full_text.BM25(task.documents, fold=False)
    for id, query in task.queries.items():
        scores = peer.get_scores(words(query))
        best = np.argsort(-scores, kind="stable")[:100]
        found[id] = {ids[row]: float(scores[row]) for row in best if scores[row] > 0}
        ours[id] = system.search(query, 100)
    expected = mean(per_query(task.qrels, found))["nDCG@10"]
    assert mean(per_query(task.qrels, ours))["nDCG@10"] == pytest.approx(expected, abs=0.005)
    assert expected > 0.9


def test_abstaining_is_counted(beir, tmp_path):
    from evals import answerability

    task = load_task(beir, "dev")
    documents = [
        Document(f"余{i}", f"第{i}号の議事録である。{place}の{thing}を決めた。")
        for i, (place, thing) in enumerate(
            (p, t) for p in "東西南北上" for t in ("予算", "人事", "日程", "会場")
        )
    ]
    engine = systems.build_engine([*task.documents, *documents], model=None)
    row = answerability.measure(engine, task, ["量子計算機の誤り訂正の符号は何か？"], "hybrid")
    assert set(engine.ids()) == {document.id for document in (*task.documents, *documents)}
    engine.close()
    assert row["n_queries"] == len(task.queries)
    assert row["unanswerable"] in (0.0, 1.0)
    assert row["with_answer"] <= row["without_answer"]


def test_answerability_names_what_it_cannot_do(beir: Path, tmp_path: Path) -> None:
    from evals import answerability

    told = ["--data", str(beir), "--split", "dev", "--json", str(tmp_path / "found.json")]
    for wrong, says in (
        (["--mode", "bm25"], "expected hybrid or jacolbert"),
        (["--json", str(tmp_path)], "folder"),
    ):
        found = CliRunner().invoke(answerability.app, [*told, *wrong])
        assert found.exit_code == 2
        assert says in found.stderr


def test_unanswerable_questions_are_read_packed_or_not(tmp_path: Path) -> None:
    rows = [
        {"_id": "q1", "text": "答えは？", "metadata": {"split": "test", "answerable": True}},
        {"_id": "q2", "text": "無い？", "metadata": {"split": "test", "answerable": False}},
        {"_id": "q3", "text": "他？", "metadata": {"split": "dev", "answerable": False}},
        {"_id": "q4", "text": "素？"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "queries.jsonl").write_text(text, encoding="utf-8")
    assert unanswerable(tmp_path, "test") == ["無い？"]
    (tmp_path / "queries.jsonl").unlink()
    (tmp_path / "queries.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert unanswerable(tmp_path, "test") == ["無い？"]
