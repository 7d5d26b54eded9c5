"""What is measured beside the library: dense models, cross-encoders, and files of what others found."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel
from typer.testing import CliRunner

from evals import cell, metrics, page, peers, run, systems, trec
from evals.datasets import DatasetError, load_task
from evals.found import scored
from evals.protocol import Prompts
from evals.results import Cell
from jacolbert_rag import Document, InvalidInputError
from tests.conftest import SENTENCES, import_error, write_fast_tokenizer
from tests.test_runs import ASKED, write_beir

DOCUMENTS = [Document(f"d{9 - n}", text) for n, text in enumerate(SENTENCES)]
QUERY_PROMPT, DOCUMENT_PROMPT = "検索クエリ: ", "検索文書: "

runner = CliRunner()


def config() -> BertConfig:
    return BertConfig(
        vocab_size=600, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, num_labels=1, initializer_range=0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dense_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder of random weights, with prompts as Japanese models have them."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(1)
    backbone = tmp_path_factory.mktemp("backbone")
    write_fast_tokenizer(backbone)
    BertModel(config()).save_pretrained(str(backbone))
    words = Transformer(str(backbone), max_seq_length=48)
    model = SentenceTransformer(
        modules=[words, Pooling(config().hidden_size, "mean")],
        prompts={"query": QUERY_PROMPT, "document": DOCUMENT_PROMPT},
    )
    folder = tmp_path_factory.mktemp("dense")
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("cross")
    write_fast_tokenizer(folder)
    BertForSequenceClassification(config()).save_pretrained(str(folder))
    return folder


def only(name: str, documents: list[Document]) -> Any:
    (system,) = systems.build([name], documents, model=None)
    return system


def test_a_dense_model_ranks_by_cosine_with_its_own_prompts(dense_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    system = only(f"dense:{dense_model}", DOCUMENTS)
    assert system.name == f"dense:{dense_model}"
    assert re.fullmatch(r"weights@[0-9a-f]{8}", system.settings[0])
    assert system.settings[1:] == (
        "dim:32", "length:48", "cosine", "query-prompt:検索クエリ:", "document-prompt:検索文書:", "exact",
    )  # fmt: skip
    assert system.n_bytes == 10 * 32 * 4
    model = SentenceTransformer(str(dense_model))
    query = "日本の首都は?"
    asked = model.encode([QUERY_PROMPT + query])[0]
    found = system.search(query, 10)
    assert len(found) == 10
    for document in DOCUMENTS:
        vector = model.encode([DOCUMENT_PROMPT + document.text])[0]
        cosine = vector @ asked / np.linalg.norm(vector) / np.linalg.norm(asked)
        assert found[document.id] == pytest.approx(float(cosine), abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert list(system.search(query, 3)) == list(found)[:3]
    among = [["d3", "d8"], ["d1"]]
    assert [set(hits) for hits in system.search_many([query, query], 10, among)] == [{"d3", "d8"}, {"d1"}]


def test_a_dense_model_of_dot_products_with_given_prompts(dense_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(dense_model), similarity_fn_name="dot")
    model.save_pretrained(str(tmp_path / "dot"))
    system = peers.Dense(DOCUMENTS, str(tmp_path / "dot"), prompts=Prompts("query: ", ""))
    assert system.settings[3:] == ("dot", "query-prompt:query:", "exact")
    asked = model.encode(["query: 首都は?"])[0]
    found = system.search("首都は?", 10)
    lengths = []
    for document in DOCUMENTS:
        vector = model.encode([document.text])[0]
        lengths.append(np.linalg.norm(vector))
        assert found[document.id] == pytest.approx(float(vector @ asked), rel=1e-4)
    assert np.ptp(lengths) > 0.01  # or the two would be alike
    model = SentenceTransformer(str(dense_model), similarity_fn_name="euclidean")
    model.save_pretrained(str(tmp_path / "far"))
    with pytest.raises(InvalidInputError, match="compares vectors by euclidean; expected cosine or dot"):
        peers.Dense(DOCUMENTS, str(tmp_path / "far"))


def test_other_weights_are_another_system(dense_model: Path) -> None:
    model = peers.sentence_transformers().SentenceTransformer(str(dense_model))
    before = peers.fingerprint(model)
    assert peers.fingerprint(model) == before
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    assert peers.fingerprint(model) != before


def test_equal_documents_are_ordered_by_id(dense_model: Path) -> None:
    system = only(f"dense:{dense_model}", [Document(id, "同じ文。") for id in ("b", "c", "a")])
    assert list(system.search("同じ", 2)) == ["a", "b"]


def test_a_cross_encoder_orders_what_words_find(cross_encoder: Path) -> None:
    from sentence_transformers import CrossEncoder

    name = f"cross-encoder:{cross_encoder}"
    (bm25, system) = systems.build(["bm25", name], DOCUMENTS, model=None)
    query = "日本の首都の人口は?"
    words = bm25.search(query, 10)
    assert 1 < len(words) < 10
    found = system.search(query, 10)
    assert set(found) == set(words)
    texts = {document.id: document.text for document in DOCUMENTS}
    scores = CrossEncoder(str(cross_encoder)).predict([(query, texts[id]) for id in found])
    assert list(found.values()) == pytest.approx(scores.tolist(), abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert system.search("オーロラ", 10) == {}
    # A query's own candidates are ordered whether they share a word or not.
    assert set(system.search("オーロラ", 10, ["d1", "d5"])) == {"d1", "d5"}
    assert "of:bm25:100" in system.settings


def test_without_the_package_the_extra_is_named() -> None:
    code = "from evals.peers import sentence_transformers; sentence_transformers()"
    said = import_error(code, missing="sentence_transformers")
    assert said.startswith("OptionalDependencyError")
    assert "pip install 'jacolbert-rag[peers]'" in said


# Run files.


def write_run(path: Path, rows: list[tuple[str, str, float]]) -> Path:
    text = "".join(f"{query} Q0 {document} 0 {score} other\n" for query, document, score in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


ROWS = [
    ("q1", "山1", 2.0), ("q1", "湖1", 3.0), ("q1", "消えた", 9.0),  # 湖1 is second, by its score
    ("q3", "湖2", 1.0), ("q3", "社1", 1.0), ("他", "湖1", 1.0),
]  # fmt: skip


def test_a_run_file_is_a_system(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "文書")
    file = write_run(tmp_path / "other.trec.gz", ROWS)
    system = f"run:{file}"
    args = ["--data", folder, "--split", "dev", "--system", "bm25", "--system", system]
    args += ["--out", tmp_path / "o"]
    done = runner.invoke(run.app, [str(each) for each in args])
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "o" / "results.json").read_text(encoding="utf-8"))
    row = rows[1]
    assert row["system"] == system
    assert (row["latency_ms"], row["queries_per_s"], row["peak_mb"], row["build_s"]) == ({}, None, None, None)
    # Ranks 2 and 2; q2 was not asked and counts 0.
    assert row["measures"]["MRR@10"] == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert row["n_empty"] == 1
    task = load_task(folder, "dev")
    expected = metrics.mean(metrics.per_query(task.qrels, trec.read_run(file), ["nDCG@10"]))
    assert row["measures"]["nDCG@10"] == pytest.approx(expected["nDCG@10"])
    assert "|file@" in row["signature"]
    html = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert "消えた" not in html  # the corpus lacks it, so there is nothing to show
    assert f"<strong>{system}</strong>" in html
    # Another content is another result, and the same one is not measured again.
    write_run(file, ROWS[1:2])
    again = runner.invoke(run.app, [str(each) for each in args])
    assert again.exit_code == 0
    rows = json.loads((tmp_path / "o" / "results.json").read_text(encoding="utf-8"))
    assert rows[1]["measures"]["MRR@10"] == pytest.approx(1 / 3)
    kept = [Cell.load(path) for path in (tmp_path / "o" / "cells").iterdir()]
    assert sorted(each.result.system for each in kept) == ["bm25", system, system]


def test_a_run_of_other_queries_is_refused(tmp_path: Path) -> None:
    task = load_task(write_beir(tmp_path / "文書"), "dev")
    file = write_run(tmp_path / "other.trec", [("x1", "湖1", 1.0)])
    with pytest.raises(DatasetError, match=r"none of the 3 queries of 文書 dev, but for such as 'x1'"):
        cell.of_run_file(task, f"run:{file}")
    with pytest.raises(DatasetError, match="cannot be read"):
        cell.of_run_file(task, f"run:{tmp_path / 'nowhere.trec'}")


def test_published_runs_as_systems(shared_data: Path, tmp_path: Path) -> None:
    """JaColBERTv2.5's own run of JQaRA beside two others, over a corpus made of what they found."""
    runs = {file.name: trec.read_run(file) for file in sorted((shared_data / "jqara_runs").glob("*run*"))}
    if not runs:
        pytest.skip("no runs beside the data")
    qrels = next((shared_data / "jqara_runs").glob("*qrels*"))
    judged = trec.read_qrels(qrels)
    ids = {id for each in [*runs.values(), judged] for found in each.values() for id in found}
    folder = tmp_path / "jqara"
    (folder / "qrels").mkdir(parents=True)
    rows = (json.dumps({"_id": id, "text": "文"}) + "\n" for id in sorted(ids))
    (folder / "corpus.jsonl").write_text("".join(rows), encoding="utf-8")
    rows = (json.dumps({"_id": id, "text": "問"}) + "\n" for id in judged)
    (folder / "queries.jsonl").write_text("".join(rows), encoding="utf-8")
    lines = [f"{q}\t{d}\t{grade}\n" for q, found in judged.items() for d, grade in found.items()]
    text = "query-id\tcorpus-id\tscore\n" + "".join(lines)
    (folder / "qrels" / "test.tsv").write_text(text, encoding="utf-8")
    task = load_task(folder, "test")
    name = next(name for name in runs if "2.5" in name)
    found = scored(cell.of_run_file(task, f"run:{shared_data / 'jqara_runs' / name}")).result
    assert found.measures["nDCG@10"] == pytest.approx(0.642, abs=0.0005)
    assert found.measures["MRR@10"] == pytest.approx(0.8644, abs=0.0005)


def test_names_of_run_files_are_checked() -> None:
    systems.check_names(["run:a.trec", "dense:a"])
    with pytest.raises(Exception, match=r"no system 'run:'; known are .*run:FILE"):
        systems.check_names(["run:"])


def test_the_page_without_costs(tmp_path: Path) -> None:
    task = load_task(write_beir(tmp_path / "文書"), "dev")
    file = write_run(tmp_path / "other.trec", ROWS)
    found = scored(cell.of_run_file(task, f"run:{file}"))
    assert list(found.queries) == list(ASKED)
    assert page.scatter([found.result], lambda result: result.latency_ms.get("p50", 0), "ms") == ""
