"""Published datasets from small files in their true columns, and what is said of broken ones."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from evals import catalog, prepare, readers, sources
from evals.datasets import DatasetError, load_task
from evals.sources import Library, Unavailable

runner = CliRunner()


def write_parquet(path: Path, rows: list[dict[str, Any]], columns: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows) if rows else pyarrow.table({name: [] for name in columns or ()})
    parquet.write_table(table, path)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# Copies of each dataset: a few rows in its own columns and file names.


def jqara(mirror: Path) -> None:
    rows = [
        ("1", "日本最大の湖は?", "p1", 1, "滋賀県にある湖である。", "琵琶湖"),
        ("1", "日本最大の湖は?", "p2", 0, "静岡県にある汽水湖である。", "浜名湖"),
        ("2", "うなぎで知られる湖は?", "p2", 1, "静岡県にある汽水湖である。", "浜名湖"),
        ("2", "うなぎで知られる湖は?", "p3", 0, "山梨県の山である。", "富士山"),
    ]
    write_parquet(mirror / "hotchpotch/JQaRA/data/test-00000-of-00001.parquet", [
        {"id": f"{q}-{p}", "q_id": q, "passage_row_id": p, "label": label, "text": text, "title": title,
         "question": question, "answers": ["琵琶湖"]}
        for q, question, p, label, text, title in rows
    ])  # fmt: skip


def jacwir(mirror: Path) -> None:
    folder = mirror / "hotchpotch/JaCWIR"
    write_parquet(folder / "eval/eval-00000-of-00001.parquet", [
        {"query": "湖の広さは?", "positive": "d1", "negatives": ["d2", "d3"]},
        {"query": "山の高さは?", "positive": "d3", "negatives": ["d1", "d2"]},
    ])  # fmt: skip
    write_parquet(folder / "collection/collection-00000-of-00001.parquet", [
        {"doc_id": f"d{n}", "title": title, "description": text, "link": "", "date": ""}
        for n, (title, text) in enumerate([("湖", "広い湖。"), ("川", None), ("山", "高い山。")], start=1)
    ])  # fmt: skip


def miracl(mirror: Path) -> None:
    folder = mirror / "miracl/miracl/miracl-v1.0-ja"
    write_text(folder / "topics/topics.miracl-v1.0-ja-dev.tsv", "q1\t湖はどこ?\nq2\t山はどこ?\n")
    write_text(folder / "qrels/qrels.miracl-v1.0-ja-dev.tsv",
               "q1\tQ0\t1#0\t1\nq1\tQ0\t1#1\t0\nq2\tQ0\t2#0\t1\n")  # fmt: skip
    corpus = mirror / "miracl/miracl-corpus/miracl-corpus-v1.0-ja"
    for n, ids in ((0, ("1#0", "1#1")), (2, ("2#0",)), (10, ("3#0", "3#1"))):
        write_lines(corpus / f"docs-{n}.jsonl.gz", [
            {"docid": id, "title": f"記事{id[0]}", "text": f"{id}の文。"} for id in ids
        ])  # fmt: skip
    write_text(mirror / "miracl_ja_bm25_top1000.json", json.dumps({"q1": ["1#1", "3#0"], "q2": ["1#1"]}))


def hard(mirror: Path) -> None:
    folder = mirror / "mteb/MIRACLRetrievalHardNegatives"
    write_parquet(
        folder / "ja-corpus/dev-00000-of-00002.parquet", [{"_id": "1", "title": "湖", "text": "湖だ。"}]
    )
    write_parquet(
        folder / "ja-corpus/dev-00001-of-00002.parquet", [{"_id": "2", "title": "", "text": "山だ。"}]
    )
    write_parquet(folder / "ja-queries/dev-00000-of-00001.parquet", [{"_id": "q", "text": "湖?"}])
    write_parquet(folder / "ja-qrels/dev-00000-of-00001.parquet",
                  [{"query-id": "q", "corpus-id": "1", "score": 1}])  # fmt: skip


def mrtydi(mirror: Path) -> None:
    write_lines(mirror / "castorini/mr-tydi/mrtydi-v1.1-japanese/test.jsonl.gz", [
        {"query_id": "7", "query": "湖は?", "positive_passages": [{"docid": "5#2"}], "negative_passages": []}
    ])  # fmt: skip
    write_lines(mirror / "castorini/mr-tydi-corpus/mrtydi-v1.1-japanese/corpus.jsonl.gz", [
        {"docid": "5#2", "title": "湖", "text": "湖だ。"}, {"docid": "5#3", "title": "湖", "text": "深い。"}
    ])  # fmt: skip


def squad(paragraphs: list[tuple[str, str, list[str]]], title: str) -> str:
    return json.dumps({"version": "1", "data": [{"title": title, "paragraphs": [
        {"context": context, "qas": [{"id": f"{id}{q}", "question": f"{q}は?", "answers": []} for q in qs]}
        for id, context, qs in paragraphs
    ]}]}, ensure_ascii=False)  # fmt: skip


def jsquad(mirror: Path) -> None:
    text = squad(
        [("a1p0", "梅雨 [SEP] 雨が降る。", ["q0", "q1"]), ("a1p1", "梅雨 [SEP] 夏になる。", ["q0"])], "梅雨"
    )
    write_text(mirror / "yahoojapan/JGLUE/datasets/jsquad-v1.1/valid-v1.1.json", text)


def jaquad(mirror: Path) -> None:
    for n in range(4):
        paragraphs = [(f"de-{n:03}-00-", "雨が降る。", ["000", "001"]), (f"de-{n:03}-01-", "空。", [])]
        path = mirror / f"SkelterLabsInc/JaQuAD/data/dev/jaquad_dev_{n:04}.json"
        write_text(path, squad(paragraphs, f"題{n}"))


def niilc(mirror: Path) -> None:
    meta = "<meta><E1>Y</E1><E3>{}</E3><E5>{}</E5></meta>"
    rows = [
        ("Q-1", "東海地方の県は?", "東海地方", "愛知県、岐阜県、三重県、\n静岡県の4県を指す場合がある[1]。"),
        ("Q-2", "4県の地方は?", "東海地方", "愛知県、岐阜県、三重県、静岡県の4県を指す場合がある。"),
        ("Q-3", "短い文は?", "東海地方", "4県。"),
        ("Q-4", "題のない文は?", "", "愛知県、岐阜県、三重県、静岡県の4県を指す場合がある。"),
    ]
    questions = "".join(
        f'<question id="{id}"><text>{text}</text>{meta.format(title, evidence)}</question>'
        for id, text, title, evidence in rows
    )
    write_text(mirror / "mynlp/niilc-qa/data/NIILC-ECQA2015_dev.xml", f"<questions>{questions}</questions>")


def jagovfaqs(mirror: Path) -> None:
    folder = mirror / "mteb/JaGovFaqsRetrieval"
    write_parquet(folder / "corpus/test-00000-of-00001.parquet", [{"_id": "1", "text": "届出が必要です。"}])
    write_parquet(folder / "queries/test-00000-of-00001.parquet", [{"_id": "q", "text": "届出は必要ですか?"}])
    write_parquet(folder / "qrels/test-00000-of-00001.parquet",
                  [{"query-id": "q", "corpus-id": "1", "score": 1}])  # fmt: skip


def esci(mirror: Path) -> None:
    rows = [
        (1, "湯呑み", "a", "jp", "湯呑み 白", "白い湯呑み。", "Exact"),
        (1, "湯呑み", "b", "jp", "茶碗", "白い茶碗。", "Substitute"),
        (1, "湯呑み", "c", "jp", "急須", "", "Complement"),
        (2, "cup", "d", "us", "cup", "a cup", "Exact"),
        (1, "湯呑み", "e", "jp", "靴", "黒い靴。", "Irrelevant"),
    ]
    names = ("query_id", "query", "product_id", "product_locale", "product_title", "product_description",
             "esci_label")  # fmt: skip
    table = [dict(zip(names, row, strict=True)) for row in rows]
    write_parquet(mirror / "tasksource/esci/data/test-00000-of-00001.parquet", table)


MAKERS: dict[str, Callable[[Path], None]] = {
    "jqara": jqara, "jacwir": jacwir, "jacwir-corpus": jacwir, "miracl-ja": miracl, "miracl-ja-small": miracl,
    "miracl-ja-hard": hard, "mrtydi-ja": mrtydi, "jsquad": jsquad, "jaquad": jaquad, "niilc": niilc,
    "jagovfaqs": jagovfaqs, "esci-ja": esci,
}  # fmt: skip


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "cache", tmp_path / "mirror")


def made(name: str, library: Library) -> Any:
    """The task of a dataset that was prepared from its copies."""
    assert library.mirror is not None
    MAKERS[name](library.mirror)
    dataset = catalog.find(name)
    assert dataset is not None
    return load_task(prepare.prepare(dataset, library), dataset.split)


def test_every_dataset_has_copies_here() -> None:
    assert set(MAKERS) == {dataset.name for dataset in catalog.DATASETS}
    for dataset in catalog.DATASETS:
        assert dataset.reader in readers.READERS
        assert dataset.base is None or catalog.find(dataset.base) is not None


@pytest.mark.parametrize("name", MAKERS)
def test_datasets_are_prepared_from_their_true_columns(name: str, library: Library) -> None:
    task = made(name, library)
    about = json.loads((prepare.place_of(name, library.cache) / prepare.ABOUT).read_text(encoding="utf-8"))
    assert about["n_queries"] == len(task.queries)
    assert about["n_documents"] == len(task.documents)
    assert about["licence"]
    assert all(revision.endswith("(copied)") for revision in about["revisions"].values())
    assert not list(library.cache.rglob("*.new"))


def test_jqara(library: Library) -> None:
    task = made("jqara", library)
    assert (task.name, task.split) == ("jqara", "test")
    assert [document.passage for document in task.documents] == [
        "琵琶湖 滋賀県にある湖である。", "浜名湖 静岡県にある汽水湖である。", "富士山 山梨県の山である。",
    ]  # fmt: skip
    assert task.queries == {"1": "日本最大の湖は?", "2": "うなぎで知られる湖は?"}
    assert task.qrels == {"1": {"p1": 1}, "2": {"p2": 1}}
    assert task.candidates == {"1": ["p1", "p2"], "2": ["p2", "p3"]}


def test_jacwir_and_its_whole_corpus(library: Library) -> None:
    task = made("jacwir", library)
    assert task.qrels == {"q_id##d1": {"d1": 1}, "q_id##d3": {"d3": 1}}
    assert task.candidates["q_id##d3"] == ["d3", "d1", "d2"]
    assert [document.passage for document in task.documents] == ["湖 広い湖。", "川 ", "山 高い山。"]
    whole = made("jacwir-corpus", library)
    assert whole.candidates is None
    assert (whole.queries, whole.qrels) == (task.queries, task.qrels)
    assert whole.digest != task.digest


def test_miracl_and_its_small_corpus(library: Library) -> None:
    task = made("miracl-ja", library)
    assert task.qrels == {"q1": {"1#0": 1, "1#1": 0}, "q2": {"2#0": 1}}
    # docs-2 is read before docs-10.
    assert [document.id for document in task.documents] == ["1#0", "1#1", "2#0", "3#0", "3#1"]
    small = made("miracl-ja-small", library)
    assert [document.id for document in small.documents] == ["1#0", "1#1", "2#0", "3#0"]
    assert small.queries == task.queries


def test_a_list_of_another_corpus_is_refused(library: Library, tmp_path: Path) -> None:
    task = made("miracl-ja-small", library)
    shutil.rmtree(prepare.place_of("miracl-ja-small", library.cache))
    dataset = catalog.find("miracl-ja-small")
    assert dataset is not None
    (file,) = (tmp_path / "mirror").rglob("miracl_ja_bm25_top1000.json")
    for lists, words in [
        ({"q1": ["1#0", "9#9"], "q2": ["2#0"]}, "names 1 passages that .* lacks, such as '9#9'"),
        ({"q1": ["1#0"]}, "a list of passage ids for each query of miracl-ja .KeyError: 'q2'"),
        ({"q1": [1], "q2": ["2#0"]}, "an id is no string"),
    ]:
        file.write_text(json.dumps(lists), encoding="utf-8")
        with pytest.raises(DatasetError, match=words):
            prepare.prepare(dataset, library)
    # Queries of another split are passed over.
    lists = {"q1": ["1#0", "1#1"], "q2": ["3#0"], "別": ["3#1"]}
    file.write_text(json.dumps(lists), encoding="utf-8")
    assert load_task(prepare.prepare(dataset, library), "dev").documents == task.documents


def test_a_folder_of_another_recipe_is_written_again(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made("jsquad", library)
    dataset = catalog.find("jsquad")
    assert dataset is not None
    folder = prepare.place_of("jsquad", library.cache)
    stamp = (folder / "corpus.jsonl.gz").stat().st_ino
    assert prepare.prepare(dataset, library) == folder
    assert (folder / "corpus.jsonl.gz").stat().st_ino == stamp
    assert before.notes[0] == "yahoojapan/JGLUE@v1.1.0 (copied)"
    monkeypatch.setattr(prepare, "_recipe", lambda dataset: "another")
    assert not prepare.is_prepared(dataset, library.cache)
    assert prepare.prepare(dataset, library) == folder
    assert (folder / "corpus.jsonl.gz").stat().st_ino != stamp
    assert [each.name for each in folder.parent.iterdir()] == ["jsquad"]
    # What cannot be written again stays as it is.
    monkeypatch.setattr(prepare, "_recipe", lambda dataset: "a third")
    shutil.rmtree(tmp_path / "mirror")
    with pytest.raises(DatasetError):
        prepare.prepare(dataset, library)
    assert load_task(folder, "dev").digest == before.digest


def test_a_process_that_was_faster(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    jsquad(library.mirror or Path())
    dataset = catalog.find("jsquad")
    assert dataset is not None
    put = prepare._put

    def late(new: Path, folder: Path, *args: Any) -> None:
        if not folder.exists():
            shutil.copytree(new, folder)  # another's
        monkeypatch.setattr(Path, "is_dir", lambda path: False)  # looked before it came
        put(new, folder, *args)

    monkeypatch.setattr(prepare, "_put", late)
    folder = prepare.prepare(dataset, library)
    monkeypatch.undo()
    assert load_task(folder, "dev").n_split == 3
    assert [each.name for each in folder.parent.iterdir()] == ["jsquad"]


def test_titles_of_squad(library: Library) -> None:
    jsquad_task, jaquad_task = made("jsquad", library), made("jaquad", library)
    assert [(d.id, d.passage) for d in jsquad_task.documents] == [
        ("a1p0", "梅雨 [SEP] 雨が降る。"), ("a1p1", "梅雨 [SEP] 夏になる。"),
    ]  # fmt: skip
    assert jsquad_task.qrels["a1p0q1"] == {"a1p0": 1}
    assert jaquad_task.documents[0].passage == "題0 雨が降る。"
    assert (len(jaquad_task.documents), len(jaquad_task.queries)) == (4, 8)  # no paragraph without questions
    assert jaquad_task.qrels["de-003-00-001"] == {"de-003-00": 1}


def test_niilc_merges_equal_sentences_and_leaves_out_short_ones(library: Library) -> None:
    task = made("niilc", library)
    assert [document.passage for document in task.documents] == [
        "東海地方 愛知県、岐阜県、三重県、静岡県の4県を指す場合がある。"
    ]
    assert list(task.queries) == ["Q-1", "Q-2"]


def test_grades_of_esci(library: Library) -> None:
    task = made("esci-ja", library)
    assert task.qrels == {"1": {"a": 3, "b": 2, "e": 0}}
    assert next(document.passage for document in task.documents) == "湯呑み 白 白い湯呑み。"


def test_counts_that_differ_are_told(library: Library, tmp_path: Path) -> None:
    jqara(tmp_path / "mirror")
    args = ["jqara", "--cache", library.cache, "--mirror", library.mirror]
    done = runner.invoke(prepare.app, [str(arg) for arg in args])
    assert done.exit_code == 0, done.output
    assert "jqara: 2 queries, 3 documents" in done.stderr
    assert "2 queries, and 1,667 were published" in " ".join(done.stderr.split())
    listed = runner.invoke(prepare.app, ["--cache", str(library.cache)])
    assert listed.exit_code == 0
    assert "CC BY-SA 4.0" in listed.stdout
    assert "yes" in listed.stdout


# What is refused.


def broken(name: str, library: Library, words: str) -> None:
    dataset = catalog.find(name)
    assert dataset is not None
    with pytest.raises(DatasetError, match=words):
        prepare.prepare(dataset, library)
    folder = prepare.place_of(name, library.cache)
    assert not folder.exists()
    assert not folder.parent.exists() or not list(folder.parent.iterdir())


def test_another_column_is_named(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "mirror/hotchpotch/JQaRA/data/test-00000-of-00001.parquet"
    write_parquet(
        path, [{"q_id": "1", "question": "湖?", "passage_row_id": "p", "title": "", "text": "湖", "score": 1}]
    )
    broken("jqara", library, r"test-00000-of-00001.parquet lacks the column 'label'; it has q_id, .*score")
    jacwir(tmp_path / "mirror")
    collection = tmp_path / "mirror/hotchpotch/JaCWIR/collection/collection-00000-of-00001.parquet"
    write_parquet(collection, [{"doc_id": "d1", "title": "湖", "text": "湖"}])
    broken("jacwir", library, "collection-00000-of-00001.parquet lacks the column 'description'")
    miracl(tmp_path / "mirror")
    docs = tmp_path / "mirror/miracl/miracl-corpus/miracl-corpus-v1.0-ja/docs-0.jsonl.gz"
    write_lines(docs, [{"docid": "1#0", "title": "湖", "contents": "湖"}])
    broken(
        "miracl-ja", library, "docs-0.jsonl.gz, line 1 lacks the column 'text'; it has docid, title, contents"
    )


def test_an_empty_split_is_named(library: Library, tmp_path: Path) -> None:
    names = ["q_id", "question", "passage_row_id", "title", "text", "label"]
    write_parquet(tmp_path / "mirror/hotchpotch/JQaRA/data/test-00000-of-00001.parquet", [], names)
    broken("jqara", library, "test-00000-of-00001.parquet: no rows")
    miracl(tmp_path / "mirror")
    write_text(tmp_path / "mirror/miracl/miracl/miracl-v1.0-ja/topics/topics.miracl-v1.0-ja-dev.tsv", "")
    broken("miracl-ja", library, "topics.miracl-v1.0-ja-dev.tsv: no rows")
    jsquad(tmp_path / "mirror")
    write_text(tmp_path / "mirror/yahoojapan/JGLUE/datasets/jsquad-v1.1/valid-v1.1.json", '{"data": []}')
    broken("jsquad", library, "valid-v1.1.json: no questions")


def test_cells_of_another_kind_are_named(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "mirror/hotchpotch/JQaRA/data/test-00000-of-00001.parquet"
    row = {"q_id": "1", "question": "湖?", "passage_row_id": "p", "title": "", "text": "湖", "label": "正"}
    write_parquet(path, [row])
    broken("jqara", library, "the files of jqara are not as evals/catalog.py describes them .ValueError: ")


def test_a_broken_download_is_named(library: Library, tmp_path: Path) -> None:
    jqara(tmp_path / "mirror")
    path = tmp_path / "mirror/hotchpotch/JQaRA/data/test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    broken("jqara", library, "test-00000-of-00001.parquet cannot be read as parquet")
    miracl(tmp_path / "mirror")
    docs = tmp_path / "mirror/miracl/miracl-corpus/miracl-corpus-v1.0-ja/docs-2.jsonl.gz"
    docs.write_bytes(docs.read_bytes()[:-12])
    broken("miracl-ja", library, "docs-2.jsonl.gz, line [12]: cannot be read from here")
    jsquad(tmp_path / "mirror")
    write_text(tmp_path / "mirror/yahoojapan/JGLUE/datasets/jsquad-v1.1/valid-v1.1.json", '{"data": [')
    broken("jsquad", library, "valid-v1.1.json cannot be read as JSON")
    niilc(tmp_path / "mirror")
    write_text(tmp_path / "mirror/mynlp/niilc-qa/data/NIILC-ECQA2015_dev.xml", "<questions>")
    broken("niilc", library, "NIILC-ECQA2015_dev.xml is no XML")


def test_a_copy_that_is_not_there_is_named(library: Library) -> None:
    broken("jqara", library, r"hotchpotch/JQaRA at main: there is no data/test-\*.parquet")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("query-id corpus-id\nq1\td02\n", "is no header"),
        ("query-id\tcorpus-id\nq1\td02\tx\n", "line 2: 3 cells; expected query-id, corpus-id"),
        ("query-id\tcorpus-id\nq1\td99\n", "the document 'd99' is not in the corpus"),
        ("query-id\tcorpus-id\nq1\td1\nq1\td1\n", "line 3: 'q1' has 'd1' in an earlier row"),
        ("query-id\tcorpus-id\nq9\td1\n", "the query 'q1' has no candidates"),
    ],
)
def test_broken_candidates_are_named(tmp_path: Path, text: str, words: str) -> None:
    write_lines(tmp_path / "corpus.jsonl", [{"_id": "d1", "text": "湖"}, {"_id": "d02", "text": "山"}])
    write_lines(tmp_path / "queries.jsonl", [{"_id": "q1", "text": "湖?"}])
    write_text(tmp_path / "qrels/dev.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    load_task(tmp_path, "dev")
    write_text(tmp_path / "candidates/dev.tsv", text)
    with pytest.raises(DatasetError, match=words):
        load_task(tmp_path, "dev")


# The network.


def test_offline_dials_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("dialled")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.getaddrinfo", refused)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    library = Library(tmp_path / "cache", offline=True)
    for dataset in catalog.DATASETS:
        with pytest.raises(Unavailable, match="not downloaded before, and --offline forbids it now"):
            prepare.prepare(dataset, library)


def test_files_are_downloaded_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(address: str, file: Path) -> None:
        asked.append(address)
        file.write_text("{")
        if len(asked) == 1:
            raise OSError("1 bytes came of 2")

    monkeypatch.setattr(sources, "download", answer)
    dataset = catalog.find("jsquad")
    assert dataset is not None
    library = Library(tmp_path)
    with pytest.raises(Unavailable, match=r"valid-v1.1.json cannot be downloaded \(1 bytes came of 2\)"):
        library.fetch(dataset.files["rows"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    (path,), revision = library.fetch(dataset.files["rows"])
    assert (path.read_text(), revision) == ("{", "v1.1.0")
    assert library.fetch(dataset.files["rows"]) == ([path], revision)
    assert Library(tmp_path, offline=True).fetch(dataset.files["rows"]) == ([path], revision)
    assert len(asked) == 2
    assert asked[0] == f"{sources.GIT}/yahoojapan/JGLUE/v1.1.0/datasets/jsquad-v1.1/valid-v1.1.json"


def test_an_answer_that_is_none_of_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import http.client

    def answer(address: str, file: Path) -> None:
        raise http.client.IncompleteRead(b"ab", 4)

    monkeypatch.setattr(sources, "download", answer)
    dataset = catalog.find("jsquad")
    assert dataset is not None
    with pytest.raises(Unavailable, match="cannot be downloaded"):
        Library(tmp_path).fetch(dataset.files["rows"])


def test_a_real_download_that_is_cut_short(tmp_path: Path) -> None:
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"ab" if self.path == "/short" else b"abcd")

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        sources.download(f"{address}/whole", tmp_path / "whole")
        assert (tmp_path / "whole").read_bytes() == b"abcd"
        with pytest.raises(OSError, match="2"):
            sources.download(f"{address}/short", tmp_path / "short")
    finally:
        server.shutdown()


def test_an_unknown_dataset_is_answered_with_the_known() -> None:
    done = runner.invoke(prepare.app, ["squad"])
    assert done.exit_code == 2
    assert "there is no dataset 'squad'; known are jqara, jacwir" in done.stderr
