"""Texts and tuples of training: every file format, the published datasets' columns, and what is refused."""

from __future__ import annotations

import gzip
import json
import lzma
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SENTENCES
from training.data import (
    Example,
    Row,
    Texts,
    Tuples,
    open_text,
    parse_row,
    read_data,
    read_json_lines,
    read_qrels,
    read_rows,
    read_texts,
)
from training.options import TrainingError

PASSAGES = {f"p{i}": text for i, text in enumerate(SENTENCES)}
QUESTIONS = {"q1": "日本で最も大きな湖は?", "q2": "金閣寺を建てたのは誰か。"}


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: Path, text: str | bytes) -> Path:
    """A file, packed as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode() if isinstance(text, str) else text
    pack: Callable[[bytes], bytes] = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` makes of parquet files goes into a folder of the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def parquet(folder: Path, columns: dict[str, list[Any]], name: str = "train-00000-of-00001.parquet") -> str:
    """A dataset of one file, as the hub stores one; its name for us."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)
    return f"hub:{folder}"


# Texts.


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_texts_of_a_beir_folder(tmp_path: Path, suffix: str) -> None:
    corpus = [
        {"_id": "d1", "title": "琵琶湖", "text": "滋賀県にある。", "metadata": {"url": "x"}},
        {"_id": "d2", "title": "", "text": "富士山は\u2028火山\x85だ。"},
        {"_id": "d3", "text": ""},
    ]
    write(tmp_path / f"corpus.jsonl{suffix}", lines(corpus))
    write(tmp_path / f"queries.jsonl{suffix}", lines([{"_id": "q1", "title": "琵琶湖", "text": "どこ?"}]))
    texts = read_texts(str(tmp_path), "corpus")
    assert dict(texts) == {"d1": "琵琶湖 滋賀県にある。", "d2": "富士山は\u2028火山\x85だ。", "d3": ""}
    # A question's title would be that of its passage, and give the answer away.
    assert dict(read_texts(str(tmp_path), "queries")) == {"q1": "どこ?"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz"])
def test_texts_of_json_lines(tmp_path: Path, name: str) -> None:
    rows = '{"id": 7, "text": "時々"}\r\n\r\n{"_id": "x", "id": 8, "title": null, "text": "𠮷野家"}\n'
    path = write(tmp_path / name, rows)
    assert read_texts(str(path), "corpus") == {"7": "時々", "x": "𠮷野家"}


def test_a_packed_file_is_found_by_its_plain_name(tmp_path: Path) -> None:
    write(tmp_path / "a.tsv.gz", "0\t湖\n")
    write(tmp_path / "b.jsonl.gz", lines([{"id": "0", "text": "山"}]))
    write(tmp_path / "c.jsonl.gz", lines([["q1", ["p1", 1.0]]]))
    assert read_texts(str(tmp_path / "a.tsv"), "corpus") == {"0": "湖"}
    assert read_texts(str(tmp_path / "b.jsonl"), "corpus") == {"0": "山"}
    assert read_rows(str(tmp_path / "c.jsonl"))[0].documents == ("p1",)


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz", ".tsv.xz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("ids", [["0", "1", "2"], ["7", "x", "日本"], ["0", "2", "1"], ["00", "1", "2"]])
def test_texts_of_tsv(tmp_path: Path, suffix: str, end: str, last: bool, ids: list[str]) -> None:
    texts = ["湖\tと\t山", "", "富士山は\x85\u2028\x0b火山\rだ。"]  # only a newline ends a line
    content = end.join(f"{id}\t{text}" for id, text in zip(ids, texts, strict=True)) + (end if last else "")
    found = read_texts(str(write(tmp_path / f"a{suffix}", content)), "corpus")
    assert dict(found) == dict(zip(ids, texts, strict=True))
    assert list(found) == ids
    for other in ("3", "-1", "01", "１", "", " 0", "1 "):
        assert other not in found
        with pytest.raises(KeyError):
            found[other]
    assert 0 not in found


def test_tsv_files_with_nothing_or_empty_lines(tmp_path: Path) -> None:
    assert dict(read_texts(str(write(tmp_path / "none.tsv", "")), "corpus")) == {}
    found = read_texts(str(write(tmp_path / "gaps.tsv", "\n\r\n0\t湖\n\n1\t山\n\n")), "corpus")
    assert dict(found) == {"0": "湖", "1": "山"}
    twice = read_texts(str(write(tmp_path / "twice.tsv", "a\t湖\nb\t山\na\t川\n")), "corpus")
    assert dict(twice) == {"a": "川", "b": "山"}
    assert len(twice) == 2


@pytest.mark.parametrize("line", ["x", "富士山は火山だ。"])
def test_a_line_without_a_tab_is_named(tmp_path: Path, line: str) -> None:
    content = f"0\t湖\n{line}\n1\t山\n"
    plain, packed = write(tmp_path / "a.tsv", content), write(tmp_path / "a.tsv.gz", content)
    with pytest.raises(TrainingError, match=f"a.tsv, byte 6, behind 1 texts: expected id, tab, .*'{line}'"):
        read_texts(str(plain), "corpus")
    with pytest.raises(TrainingError, match=f"a.tsv.gz, line 2: expected id, tab, text; found '{line}"):
        read_texts(str(packed), "corpus")


text = st.text(st.characters(blacklist_characters="\n", blacklist_categories=["Cs"]), max_size=8)
japanese = st.sampled_from([*SENTENCES, "湖\tと\t山", "\t", "か\u3099", "ｻｰﾊﾞｰ", "\u2028", "a\rb", ""])


@settings(max_examples=60, deadline=None)
@given(
    counted=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    ids=st.lists(text.filter(lambda id: "\t" not in id), unique=True, max_size=12),
    texts=st.lists(st.one_of(text, japanese), min_size=12, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_tsv_equals_a_naive_dictionary(
    counted: bool, end: str, ids: list[str], texts: list[str], order: Any
) -> None:
    if counted:
        ids = [str(i) for i in range(len(ids))]
    # A carriage return at a line's end is of the line's end.
    expected = {id: text.rstrip("\r") for id, text in zip(ids, texts, strict=False)}
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.tsv", "".join(f"{id}\t{text}{end}" for id, text in expected.items()))
        found = read_texts(str(path), "corpus")
        asked = [*expected, *ids, "0", "5", "ない"]
        order.shuffle(asked)
        for id in asked:
            assert (id in found) == (id in expected)
            assert found.get(id) == expected.get(id)
        assert dict(found) == expected
        assert len(found) == len(expected)


@pytest.mark.parametrize("first", [0, 1])  # ids that count from 0 need no dictionary
def test_a_long_tsv_opens_fast_and_is_read_anywhere(tmp_path: Path, first: int) -> None:
    n = 100_000
    texts = [f"{SENTENCES[i % 10]}\t{i}" for i in range(n)]
    path = tmp_path / "long.tsv"
    path.write_text("".join(f"{i + first}\t{text}\n" for i, text in enumerate(texts)), encoding="utf-8")
    started = time.monotonic()
    found = read_texts(str(path), "corpus")
    assert time.monotonic() - started < 5
    assert len(found) == n
    for row in np.random.default_rng(0).integers(0, n, 2_000).tolist():
        assert found[str(row + first)] == texts[row]
    assert str(n + first) not in found


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nowhere is missing. Name a BEIR folder"):
        read_texts(str(tmp_path / "nowhere"), "corpus")
    with pytest.raises(TrainingError, match="corpus.jsonl is missing"):
        read_texts(str(tmp_path), "corpus")
    bad = {
        "no text": ([{"_id": "a"}], 'row 1: expected "_id" .* found _id'),
        "no id": ([{"_id": "a", "text": "湖"}, {"text": "湖"}], "row 2: expected .* found text"),
        "no words": ([{"_id": "a", "text": 3}], "row 1: expected"),
        "a list": ([["a", "湖"]], "row 1: expected .* found list"),
    }
    for name, (rows, message) in bad.items():
        with pytest.raises(TrainingError, match=message):
            read_texts(str(write(tmp_path / f"{name}.jsonl", lines(rows))), "corpus")
    with pytest.raises(TrainingError, match="cut.jsonl, line 2: no JSON"):
        read_texts(str(write(tmp_path / "cut.jsonl", '{"_id": "a", "text": "湖"}\n{"_id": ')), "corpus")


def test_files_that_are_damaged_are_named(tmp_path: Path) -> None:
    packed = gzip.compress(lines([{"_id": str(i), "text": t} for i, t in enumerate(SENTENCES)]).encode())
    (tmp_path / "short.jsonl.gz").write_bytes(packed[:-20])
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"_id": "a"}\n')
    (tmp_path / "sjis.jsonl").write_bytes('{"_id": "a", "text": "湖"}\n'.encode("shift_jis"))
    for name in ("short.jsonl.gz", "plain.jsonl.gz", "sjis.jsonl"):
        with pytest.raises(TrainingError, match=f"{name}, line .*: no JSON"):
            list(read_json_lines(tmp_path / name))
    with pytest.raises(TrainingError, match="none.jsonl is missing"):
        list(read_json_lines(tmp_path / "none.jsonl"))
    with pytest.raises(TrainingError, match="none.txt is missing"):
        open_text(tmp_path / "none.txt")


# Judgements.


@pytest.mark.parametrize("header", ["query-id\tcorpus-id\tscore\n", ""])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_qrels(tmp_path: Path, header: str, suffix: str) -> None:
    write(tmp_path / f"train.tsv{suffix}", header + "q1\tp1\t1\r\nq2\tp 3\t0\nq1\tp2\t2")
    assert read_qrels(tmp_path / "train.tsv") == {"q1": {"p1": 1, "p2": 2}, "q2": {"p 3": 0}}


@pytest.mark.parametrize("line", ["q1 0 p1 1", "q1\tp1\tyes", "q1\tp1"])
def test_a_judgement_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "train.tsv", f"query-id\tcorpus-id\tscore\nq2\tp2\t1\n{line}\n")
    with pytest.raises(TrainingError, match="train.tsv, line 3: expected query-id, corpus-id, score; found"):
        read_qrels(path)
    with pytest.raises(TrainingError, match="none.tsv is missing"):
        read_qrels(tmp_path / "none.tsv")


# Rows of tuples.

OF_IDS = Row("3", ("5", "8"), (0.5, -1.0), 1, "", inline=False)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"query_id": 3, "document_ids": [5, 8], "scores": [0.5, -1]}, OF_IDS),
        ([3, [5, 0.5], [8, -1]], OF_IDS),
        (
            {"query_id": "q", "document_ids": ["a", "b"], "n_positives": 2, "source": "JSQuAD"},
            Row("q", ("a", "b"), None, 2, "JSQuAD", inline=False),
        ),
        (
            {"query": "湖は?", "passages": ["琵琶湖", "富士山"], "scores": None, "source": None},
            Row("湖は?", ("琵琶湖", "富士山"), None, 1, "", inline=True),
        ),
        (
            {"query": "湖は?", "passages": ["琵琶湖"], "scores": [3], "n_positives": 0},
            Row("湖は?", ("琵琶湖",), (3.0,), 0, "", inline=True),
        ),
    ],
)
def test_rows(tmp_path: Path, stored: Any, expected: Row) -> None:
    assert parse_row(stored, "here") == expected
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert read_rows(str(write(tmp_path / name, lines([stored, stored])))) == [expected] * 2


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            {"query_id": 1, "document_ids": [5, 8], "scores": [0.5]},
            "2 documents, 1 scores. Give each a score",
        ),
        ({"query_id": 1, "document_ids": [5], "scores": []}, "1 documents, 0 scores"),
        ({"query": "湖", "passages": ["山"], "scores": [1, 2]}, "1 documents, 2 scores"),
        ({"query_id": 1, "document_ids": [5], "scores": [float("nan")]}, "not all finite"),
        ({"query_id": 1, "document_ids": [5], "scores": ["高い"]}, 'expected {"query_id", .*ValueError'),
        ({"query_id": 1, "document_ids": "58"}, "a list is wanted, found '58'"),
        ({"query_id": 1, "document_ids": [5, 8], "scores": "58"}, "a list is wanted, found '58'"),
        ({"query_id": 1, "document_ids": [5], "n_positives": 2}, "n_positives is 2; expected 0 to 1"),
        ({"query_id": 1, "document_ids": [5], "n_positives": -1}, "n_positives is -1"),
        ({"query_id": 1, "docs": [5]}, "expected .* found .*KeyError: 'document_ids'"),
        ({"query_id": 1, "passages": ["湖"]}, "KeyError: 'query'"),
        ([1, 5, 8], "expected"),
        ([1, [5, 0.5], [8]], "expected"),
        ([1], "expected"),
        ([], "expected"),
        ("湖", "expected"),
        (3, "expected"),
        (None, "expected"),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, stored: Any, message: str) -> None:
    path = write(tmp_path / "a.jsonl", lines([[1, [5, 0.5]], stored]))
    with pytest.raises(TrainingError, match=f"a.jsonl, row 2: .*{message}"):
        read_rows(str(path))


def test_rows_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="none.jsonl is missing. training.mine and training.score write"):
        read_rows(str(tmp_path / "none.jsonl"))


# Datasets, in the columns of those that are published.

N_WAYS = 32
rng = np.random.default_rng(0)
QUERY_IDS = [int(i) for i in rng.integers(0, 808_731, 5)]
DOCUMENT_IDS = [[int(i) for i in row] for row in rng.integers(0, 8_841_823, (5, N_WAYS))]
SCORES = [[float(x) for x in row] for row in rng.normal(size=(5, N_WAYS))]
EXPECTED = [
    Row(str(q), tuple(map(str, ids)), tuple(scores), 1, "", inline=False)
    for q, ids, scores in zip(QUERY_IDS, DOCUMENT_IDS, SCORES, strict=True)
]


def numbered(document: str, score: str, first: int = 0) -> dict[str, list[Any]]:
    """One column for each document and each score, in an order that says nothing."""
    columns: dict[str, list[Any]] = {"query_id": QUERY_IDS}
    for i in range(N_WAYS):
        columns[f"{document}{first + i}"] = [row[i] for row in DOCUMENT_IDS]
        columns[f"{score}{first + i}"] = [row[i] for row in SCORES]
    names = list(columns)
    np.random.default_rng(1).shuffle(names)
    return {name: columns[name] for name in names}


def listed(query: str, documents: str, scores: str) -> dict[str, list[Any]]:
    return {scores: SCORES, query: QUERY_IDS, documents: DOCUMENT_IDS}


# The first is lightonai's; the columns of answerdotai/MMARCO-japanese-32-scored-triplets are unknown.
@pytest.mark.parametrize(
    "columns",
    [
        listed("query_id", "document_ids", "scores"),
        listed("qid", "pids", "scores"),
        listed("query", "passages", "logits"),
        numbered("doc_", "score_"),
        numbered("document_id_", "logit_", first=1),
        numbered("pid", "score"),
        {
            name: list(map(str, column))
            for name, column in listed("query_id", "document_ids", "scores").items()
        },
    ],
    ids=["lightonai", "qid", "query", "doc_0", "document_id_1", "pid0", "strings"],
)
def test_scored_tuples_of_a_dataset(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    name = parquet(tmp_path / "data", columns, "M3_full_normalized-00000-of-00004.parquet")
    found = read_rows(name)
    assert len(found) == 5
    assert [found[i] for i in range(5)] == list(found) == EXPECTED
    file = tmp_path / "data" / "M3_full_normalized-00000-of-00004.parquet"
    assert list(read_rows(str(file))) == EXPECTED


def test_a_split_is_asked_for(tmp_path: Path) -> None:
    parquet(tmp_path / "d", listed("query_id", "document_ids", "scores"), "M3_full_logits.parquet")
    (tmp_path / "d" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: M3_full_logits\n"
        "    path: M3_full_logits.parquet\n---\n"
    )
    assert list(read_rows(f"hub:{tmp_path}/d@M3_full_logits")) == EXPECTED
    assert list(read_rows(f"hub:{tmp_path}/d/default@M3_full_logits")) == EXPECTED
    with pytest.raises(TrainingError, match='cannot be loaded .*"train".*M3_full_logits.*Check the name'):
        read_rows(f"hub:{tmp_path}/d")
    with pytest.raises(TrainingError, match="cannot be loaded .*'japanese' not found. Available"):
        read_rows(f"hub:{tmp_path}/d/japanese")


def test_rows_come_in_order_over_many_blocks(tmp_path: Path) -> None:
    n = 2_503
    columns = {"query_id": list(range(n)), "document_ids": [[i] for i in range(n)], "scores": [[0.5]] * n}
    found = read_rows(parquet(tmp_path / "d", columns))
    assert [row.documents for row in found] == [(str(i),) for i in range(n)]
    assert found[1_999].query == "1999"


def test_reranker_scores_of_labelled_documents(tmp_path: Path) -> None:
    # hotchpotch/mmarco-hard-negatives-reranker-score
    columns = {
        "qid": [101, 102],
        "pos": [[7], [8, 9]],
        "neg": [[1, 2, 3], [4, 5]],
        "pos.score": [[0.99], [0.98, 0.5]],
        "neg.score": [[0.1, 0.2, 0.3], [0.4, 0.5]],
    }
    first, second = read_rows(parquet(tmp_path / "d", columns))
    assert first == Row("101", ("7", "1", "2", "3"), (0.99, 0.1, 0.2, 0.3), 1, "", inline=False)
    assert (second.n_positives, second.documents) == (2, ("8", "9", "4", "5"))
    columns["neg.score"][1] = [0.4]
    with pytest.raises(TrainingError, match="row 2: 4 documents, 3 scores"):
        list(read_rows(parquet(tmp_path / "wrong", columns)))


def test_our_own_rows_as_parquet(tmp_path: Path) -> None:
    columns = {
        "query_id": ["a", "b"],
        "document_ids": [["1", "2", "3"], ["4", "5", "6"]],
        "n_positives": [2, 0],
        "source": ["JSQuAD", None],
    }
    first, second = read_rows(parquet(tmp_path / "mined", columns))
    assert first == Row("a", ("1", "2", "3"), None, 2, "JSQuAD", inline=False)
    assert second == Row("b", ("4", "5", "6"), None, 0, "", inline=False)
    inline = {"query": ["湖は?"], "passages": [SENTENCES[:2]], "scores": [[1.0, 0.0]]}
    assert list(read_rows(parquet(tmp_path / "inline", inline))) == [
        Row("湖は?", tuple(SENTENCES[:2]), (1.0, 0.0), 1, "", inline=True)
    ]


@pytest.mark.parametrize(
    "columns",
    [
        {"query_id": [1], "文書": [[2]], "点": [[0.5]]},
        {"query_id": [1], "document_ids": [[2]], "点": [[0.5]]},
        {"query_id": [1], "doc_0": [2], "doc_1": [3], "score_0": [0.5]},
        {"query_id": [1], "doc_0": [2], "doc_1": [3], "score_0": [0.5], "score_2": [0.5]},
        {"anc": ["湖"], "pos_ids": [[1]], "neg_ids": [[2]]},
    ],
)
def test_columns_that_are_unknown_are_named(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    with pytest.raises(TrainingError, match="has the columns " + ", ".join(columns)):
        read_rows(parquet(tmp_path / "d", columns))


def test_cells_that_are_no_lists_are_named(tmp_path: Path) -> None:
    for cell in ("[1, 2", "湖", "{}"):
        columns = {"query_id": [1, 2], "document_ids": ["[1]", cell], "scores": ["[0.5]", "[0.5]"]}
        with pytest.raises(TrainingError, match=r"row 2: .*expected"):
            list(read_rows(parquet(tmp_path / f"d{len(cell)}{cell[0]}", columns)))


def test_datasets_that_cannot_be_loaded(tmp_path: Path) -> None:
    write(tmp_path / "bad.parquet", b"not parquet at all, but some bytes")
    for name in (str(tmp_path / "bad.parquet"), str(tmp_path / "none.parquet"), f"hub:{tmp_path}/none"):
        with pytest.raises(TrainingError, match="cannot be loaded .*Check the name, config and split"):
            read_rows(name)
    parquet(tmp_path / "two", {"query_id": [1]}, "a.parquet")
    parquet(tmp_path / "two", {"text": ["湖"]}, "b.parquet")
    with pytest.raises(TrainingError, match="cannot be loaded"):
        read_texts(f"hub:{tmp_path}/two", "corpus")


def texts_of(tmp_path: Path, kind: str, **columns: list[Any]) -> Texts:
    return read_texts(parquet(tmp_path / f"{kind}{len(list(tmp_path.iterdir()))}", columns), kind)  # type: ignore[arg-type]


def test_a_collection_of_text_alone_is_counted(tmp_path: Path) -> None:
    # hpprc/mmarco-ja, config collection
    found = texts_of(tmp_path, "corpus", text=SENTENCES)
    assert dict(found) == {str(i): text for i, text in enumerate(SENTENCES)}
    for id in ("10", "-1", "01", "１", "", "p1"):
        assert id not in found
        with pytest.raises(KeyError):
            found[id]


def test_texts_of_datasets(tmp_path: Path) -> None:
    a, b = SENTENCES[:2]
    # MIRACL, lightonai, JaCWIR, JQaRA: corpora
    assert texts_of(tmp_path, "corpus", docid=["1#0", "1#1"], title=["湖", None], text=[a, b]) == {
        "1#0": f"湖 {a}", "1#1": b,
    }  # fmt: skip
    assert texts_of(tmp_path, "corpus", document_id=[5, 6], text=[a, b]) == {"5": a, "6": b}
    assert texts_of(tmp_path, "corpus", doc_id=["x"], title=["題"], description=[a], link=["-"]) == {
        "x": f"題 {a}"
    }
    jqara = {"id": ["r1", "r2"], "q_id": ["Q", "Q"], "passage_row_id": ["9", "8"], "title": ["題", "題"]}
    jqara |= {"text": [a, b], "question": ["どこ?", "どこ?"]}
    assert texts_of(tmp_path, "corpus", **jqara) == {"9": f"題 {a}", "8": f"題 {b}"}
    # The same as queries, lightonai's, MIRACL's
    assert texts_of(tmp_path, "queries", **jqara) == {"Q": "どこ?"}
    assert len(texts_of(tmp_path, "queries", **jqara)) == 1
    assert texts_of(tmp_path, "queries", query_id=[3, 4], text=[a, b]) == {"3": a, "4": b}
    assert texts_of(tmp_path, "queries", query_id=["3"], query=[a], title=["湖"]) == {"3": a}
    assert texts_of(tmp_path, "queries", query=[a, b]) == {"0": a, "1": b}


def test_a_parquet_file_of_texts(tmp_path: Path) -> None:
    parquet(tmp_path, {"_id": ["a"], "text": ["湖"]}, "corpus.parquet")
    assert read_texts(str(tmp_path / "corpus.parquet"), "corpus") == {"a": "湖"}


def test_ids_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has the columns wiki_id, text; none of _id, .* for the id"):
        texts_of(tmp_path, "corpus", wiki_id=["5"], text=["湖"])
    with pytest.raises(TrainingError, match="has the columns content; none of text, .* for the text"):
        texts_of(tmp_path, "corpus", content=["湖"])


# Tuples with their texts.


def rows(*documents: str, query: str = "q1", source: str = "") -> Row:
    return Row(query, documents, None, 1, source, inline=False)


def test_examples(tmp_path: Path) -> None:
    stored = [
        Row("q2", ("p3", "p0"), (2.0, 1.0), 1, "", inline=False),
        Row("湖は?" * 20, ("琵琶湖", "富士山"), None, 2, "直", inline=True),
    ]
    found = Tuples(stored, name="mined", queries=QUESTIONS, corpus=PASSAGES)
    first = Example(QUESTIONS["q2"], (SENTENCES[3], SENTENCES[0]), (2.0, 1.0), 1, "mined", "q2")
    second = Example("湖は?" * 20, ("琵琶湖", "富士山"), None, 2, "直", ("湖は?" * 20)[:40])
    assert list(found) == [first, second]
    assert [found.row(i) for i in range(2)] == stored


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (rows("p0", "p77"), "document 'p77'"),
        (rows("p0", query="q9"), "query 'q9'"),
        (rows("0"), "document '0'"),
    ],
)
def test_missing_texts_are_refused_or_counted(row: Row, what: str) -> None:
    stored = [rows("p1"), row, rows("p2", query="q2"), row]
    with pytest.raises(TrainingError, match=f"mined: 2 of 4 tuples .* the first in row 2: {what}. Name the"):
        Tuples(stored, name="mined", queries=QUESTIONS, corpus=PASSAGES)
    found = Tuples(stored, name="mined", queries=QUESTIONS, corpus=PASSAGES, on_missing="skip")
    assert [example.documents for example in found] == [(PASSAGES["p1"],), (PASSAGES["p2"],)]
    assert found.n_missing == 2
    assert len(Tuples(stored, name="mined", queries=QUESTIONS, corpus=PASSAGES, limit=1)) == 1
    with pytest.raises(TrainingError, match="4 of 4 tuples"):
        Tuples(stored, name="mined")


def test_tuples_part_by_source_and_keep_their_order() -> None:
    stored = [
        rows("p0", source="b"), rows("p1"), rows("p2", source="a"), rows("p9", source="x"),
        rows("p3", source="b"), rows("p77", source="b"), rows("p4", source="own"),
    ]  # fmt: skip
    found = Tuples(stored, name="own", queries=QUESTIONS, corpus=PASSAGES, on_missing="skip")
    assert found.keep(lambda row: "of nine" if row.documents == ("p9",) else None) == {"of nine": 1}
    parts = found.by_source()
    assert [(part.name, [part.row(i).documents[0] for i in range(len(part))]) for part in parts] == [
        ("b", ["p0", "p3"]), ("own", ["p1", "p4"]), ("a", ["p2"]),
    ]  # fmt: skip
    assert [example.source for example in parts[1]] == ["own", "own"]
    assert (found.n_missing, [part.n_missing for part in parts]) == (1, [0, 0, 0])
    assert parts[0].keep(lambda row: "all") == {"all": 2}
    assert (len(parts[0]), len(found), len(parts[1])) == (0, 5, 2)
    assert parts[0].by_source() == []


def test_tuples_of_one_source_the_first_of_them_and_a_sample() -> None:
    stored = [rows(f"p{i % 5}", source="湖" if i % 3 else "山") for i in range(60)]
    texts: dict[str, Any] = {"name": "own", "queries": QUESTIONS, "corpus": PASSAGES}

    def places(**choice: Any) -> list[int]:
        return Tuples(stored, **texts, **choice)._order.tolist()

    lakes = [i for i in range(60) if i % 3]
    assert places(source="湖") == lakes
    assert places(source="湖", limit=7) == lakes[:7]
    drawn = places(source="湖", sample=7)
    assert drawn == places(source="湖", sample=7) == sorted(set(drawn) & set(lakes))
    assert len(drawn) == 7
    assert drawn != lakes[:7]
    assert set(places(limit=20, sample=5)) < set(range(20))
    assert places(sample=100) == list(range(60))
    with pytest.raises(TrainingError, match="own: no tuple is of the source '海'. There are 山, 湖."):
        places(source="海")


def test_a_limited_run_reads_no_more(tmp_path: Path) -> None:
    class Counted(Sequence[Row]):
        n_read = 0

        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, i: int) -> Row:  # type: ignore[override]
            type(self).n_read += 1
            return rows("p1")

        def __iter__(self) -> Iterator[Row]:
            return (self[i] for i in range(len(self)))

    found = Tuples(Counted(), name="many", queries=QUESTIONS, corpus=PASSAGES, limit=10)
    found.keep(lambda row: None)
    assert [len(part) for part in found.by_source()] == [10]
    assert Counted.n_read < 50


# The option --data.


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "corpus.jsonl", lines([{"_id": id, "text": t} for id, t in PASSAGES.items()]))
    write(tmp_path / "queries.jsonl", lines([{"_id": id, "text": t} for id, t in QUESTIONS.items()]))
    write(tmp_path / "scored.jsonl", lines([["q1", [f"p{i}", 1.0], ["p9", 0.0]] for i in range(8)]))
    write(tmp_path / "inline.jsonl", lines([{"query": "湖は?", "passages": ["琵琶湖"]}] * 3))
    return tmp_path


def test_data_of_ids(data: Path) -> None:
    spec = (
        f"tuples={data}/scored.jsonl,queries={data},corpus={data}/corpus.jsonl,n-ways=2,limit=5,name=mMARCO"
    )
    found = read_data(spec, on_missing="refuse", limit=None)
    assert (len(found.tuples), found.n_ways) == (5, 2)
    assert found.tuples[4] == Example(
        QUESTIONS["q1"], (SENTENCES[4], SENTENCES[9]), (1.0, 0.0), 1, "mMARCO", "q1"
    )
    assert len(read_data(spec, on_missing="refuse", limit=3).tuples) == 3
    assert len(read_data(spec, on_missing="refuse", limit=7).tuples) == 5


@pytest.mark.parametrize("spec", ["{}/inline.jsonl", "tuples={}/inline.jsonl"])
def test_data_of_inline_texts(data: Path, spec: str) -> None:
    found = read_data(spec.format(data), on_missing="refuse", limit=2)
    assert (len(found.tuples), found.n_ways, found.tuples.name) == (2, None, f"{data}/inline.jsonl")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("queries=a,corpus=b", "names no tuples. Add tuples=FILE"),
        ("tuples=a,query=b", "KEY is one of tuples, queries, .* found 'query=b'"),
        ("tuples=a,b.jsonl", "found 'b.jsonl'"),
        ("tuples=a,limit=", "found 'limit='"),
        ("tuples=a,tuples=b", "each once; found 'tuples=b'"),
        ("tuples=a,", "found ''"),
        ("tuples={}/inline.jsonl,limit=0", "limit is '0'; expected a whole number of at least 1"),
        ("tuples={}/inline.jsonl,limit=1.5", "limit is '1.5'"),
        ("tuples={}/inline.jsonl,n-ways=-2", "n-ways is '-2'"),
        ("tuples={}/inline.jsonl,sample=x", "sample is 'x'"),
        ("tuples={}/inline.jsonl,source=海", "no tuple is of the source '海'"),
    ],
)
def test_data_that_cannot_be_understood(data: Path, spec: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_data(spec.format(data), on_missing="refuse", limit=None)
