"""Systems beside the library's own, candidates of each query, runs of many datasets, and their page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evals import cell, full_text, page, places, results, run, sources, systems
from evals.datasets import load_task
from evals.sources import Library
from jacolbert_rag import Document
from jacolbert_rag.errors import InvalidInputError

runner = CliRunner()

TEXTS = {
    "湖1": ("琵琶湖", "滋賀県にある日本で最も大きな湖である。"),
    "湖2": ("浜名湖", "静岡県の汽水湖で、うなぎの養殖で知られる。"),
    "山1": ("富士山", "静岡県と山梨県にまたがる、日本で最も高い山である。"),
    "空": ("", ""),
    "社1": ("経費", "交通費は翌月の5日までに申請する。<script>alert(1)</script>"),
}
ASKED = {"q1": "日本で一番大きな湖は?", "q2": "うなぎで知られる湖は?", "q3": "交通費の<b>申請</b>はいつまで?"}
JUDGED = {"q1": {"湖1": 1}, "q2": {"湖2": 2, "湖1": 0}, "q3": {"社1": 1}}


def write_beir(folder: Path, *, candidates: dict[str, list[str]] | None = None, split: str = "dev") -> Path:
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": id, "title": title, "text": text} for id, (title, text) in TEXTS.items()]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    lines = [json.dumps({"_id": id, "text": text}, ensure_ascii=False) for id, text in ASKED.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines), encoding="utf-8")
    judged = [f"{q}\t{d}\t{grade}" for q, found in JUDGED.items() for d, grade in found.items()]
    text = "\n".join(["query-id\tcorpus-id\tscore", *judged])
    (folder / "qrels" / f"{split}.tsv").write_text(text, encoding="utf-8")
    if candidates is not None:
        (folder / "candidates").mkdir()
        pairs = [f"{q}\t{d}" for q, ids in candidates.items() for d in ids]
        text = "\n".join(["query-id\tcorpus-id", *pairs])
        (folder / "candidates" / f"{split}.tsv").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [Document(id, text, title=title) for id, (title, text) in TEXTS.items()]


# Systems.


@pytest.fixture(scope="module")
def built(documents: list[Document], tiny_model: Path) -> Iterator[dict[str, Any]]:
    names = list(systems.KNOWN_SYSTEMS)
    found = {}
    for system in systems.build(names, documents, model=str(tiny_model)):
        found[system.name] = system
        if len(found) == len(names):
            yield found


@pytest.mark.parametrize("name", systems.KNOWN_SYSTEMS)
def test_candidates_are_all_that_is_ranked(built: dict[str, Any], name: str) -> None:
    system = built[name]
    queries = list(ASKED.values())
    among = [["湖2", "湖1"], ["山1", "湖2", "社1"], ["社1"]]
    found = system.search_many(queries, 10, among)
    for query, ids, hits in zip(queries, among, found, strict=True):
        assert set(hits) <= set(ids)
        assert list(system.search(query, 10, ids)) == list(hits)
        assert list(hits.values()) == sorted(hits.values(), reverse=True)
    assert list(found[2]) == ["社1"]
    assert len(system.search(queries[1], 1, among[1])) == 1
    if name == "hybrid":
        return  # whose scores are relative to what else is ranked
    whole = system.search(queries[0], 10)
    kept = [id for id in whole if id in among[0]]
    assert [id for id in found[0] if id in whole] == kept  # in the order of the whole


def test_reranking_orders_what_words_find(built: dict[str, Any]) -> None:
    for query in ASKED.values():
        words, exact = built["bm25"].search(query, 10), built["jacolbert-exact"].search(query, 10)
        reranked = built["rerank"].search(query, 10)
        assert list(reranked) == [id for id in exact if id in words]
        assert reranked == pytest.approx({id: exact[id] for id in reranked}, abs=1e-5)
    assert built["rerank"].search("オーロラ", 10) == {}


def test_reranking_orders_all_candidates(built: dict[str, Any]) -> None:
    """Of a query's own, those without a shared word too: the right one may be among them."""
    found = built["rerank"].search("オーロラ", 10, ["湖1", "山1"])
    assert set(found) == {"湖1", "山1"}
    exact = built["jacolbert-exact"].search("オーロラ", 10, ["湖1", "山1"])
    assert found == pytest.approx(exact)


def test_bigrams() -> None:
    assert full_text.bigrams("東京 ＡＢc") == ["東京", "ab", "bc"]
    assert full_text.bigrams("湖") == full_text.bigrams(" ") == []
    found = full_text.BigramBM25([Document("a", "大津市"), Document("b", "大阪市")]).search("大津", 10)
    assert list(found) == ["a"]


def test_bigrams_on_jsquad_are_those_of_another_script(shared_data: Path) -> None:
    """The floor that the README beside the data states for its first 1,000 questions and for all."""
    from evals import metrics

    task = load_task(shared_data / "jsquad", "dev")
    found = full_text.BigramBM25(task.documents).search_many(list(task.queries.values()), 10)
    values = metrics.per_query(task.qrels, dict(zip(task.queries, found, strict=True)))
    means = metrics.mean(values)
    assert means["MRR@10"] == pytest.approx(0.936, abs=0.004)
    assert means["Hit@10"] == pytest.approx(0.974, abs=0.004)


def test_an_index_is_made_once_and_found_again(
    documents: list[Document], tiny_model: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    engine = systems.build_engine(documents, model=str(tiny_model), index=index)
    first = systems.JaColBERT(engine, "jacolbert-exact")
    expected = [first.search(query, 10) for query in ASKED.values()]
    assert first.n_bytes is not None
    assert first.n_bytes > 1_000
    engine.delete(["山1"])  # as if the build had been cut
    engine.close()
    again = systems.build_engine(documents, model=str(tiny_model), index=index)
    assert len(again) == 4
    second = systems.JaColBERT(again, "jacolbert-exact")
    for query, hits in zip(ASKED.values(), expected, strict=True):
        # Stored in 4 bits a dimension, by a codebook of those that came together.
        assert second.search(query, 10) == pytest.approx(hits, abs=0.01)
    again.close()


# Which datasets.


def test_splits_and_names_of_a_root(tmp_path: Path) -> None:
    write_beir(tmp_path / "jaquad", split="dev")
    write_beir(tmp_path / "mine", split="test")
    (tmp_path / "mine" / "qrels" / "dev.tsv").write_text("x")
    write_beir(tmp_path / "other", split="holdout")
    (tmp_path / "no_dataset").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "corpus.jsonl").write_text("{}")
    found = {place.name: place for place in places.of_root(tmp_path)}
    assert list(found) == ["empty", "jaquad", "mine", "other"]
    assert [place.split for place in found.values()] == ["", "dev", "test", "holdout"]
    assert "no qrels/SPLIT.tsv" in found["empty"].reason
    with pytest.raises(InvalidInputError, match="is no folder"):
        places.of_root(tmp_path / "nowhere")


def test_all_datasets_without_the_network(tmp_path: Path) -> None:
    write_beir(tmp_path / "root" / "jaquad")
    library = Library(tmp_path / "cache", offline=True)
    found = {place.name: place for place in places.all_places([tmp_path / "root"], library)}
    assert found["jaquad"].folder == tmp_path / "root" / "jaquad"
    assert found["demo"].folder is not None
    assert found["jqara"].folder is None
    assert found["jqara"].reason == "not here: python -m evals.prepare jqara"
    assert found["jacwir"].measure == "MAP@10"
    with pytest.raises(
        InvalidInputError, match=r"no dataset 'jquara'; known are demo, demo-paraphrase, jqara"
    ):
        places.named("jquara", library)


# Runs.


def call(*args: object) -> Any:
    return runner.invoke(run.app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    write_beir(folder / "社内文書")
    among = {"q1": ["湖1", "湖2"], "q2": ["湖2", "山1"], "q3": ["社1", "空"]}
    write_beir(folder / "候補", candidates=among, split="test")
    write_beir(folder / "壊れた").joinpath("corpus.jsonl").write_text("{")
    return folder


@pytest.fixture(scope="module")
def finished(root: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of all that is here, but for the larger demo corpus."""
    out = tmp_path_factory.mktemp("out")
    patch = pytest.MonkeyPatch()
    patch.setattr(places, "OWN", {})
    patch.setattr(sources.Library, "cache", out / "cache", raising=False)
    args = ["--all", "--offline", "--data-root", root, "--model", tiny_model, "--out", out]
    done = call(*args, "--system", "bm25", "--system", "hybrid", "--system", "rerank")
    patch.undo()
    return out, done


def test_a_run_of_everything_reports_the_rest(finished: tuple[Path, Any]) -> None:
    out, done = finished
    assert done.exit_code == 0, done.output
    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [(row["dataset"], row["system"]) for row in rows] == [
        (dataset, system) for dataset in ("候補", "社内文書") for system in ("bm25", "hybrid", "rerank")
    ]
    assert "|candidates|" in rows[0]["signature"]
    assert rows[0]["measures"]["Recall@10"] == 1
    assert "jqara test: not here: python -m evals.prepare jqara" in done.stdout
    assert "壊れた dev: " in done.stdout
    assert "corpus.jsonl, line 1: not JSON" in done.stdout
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "| 社内文書 dev | 3 | hybrid |" in text
    assert "- miracl-ja dev: not here" in text


def test_a_run_goes_on_where_it_was(
    finished: tuple[Path, Any],
    root: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = shutil.copytree(finished[0], tmp_path / "out")
    asked: list[str] = []
    monkeypatch.setattr(run, "run_job", lambda job, refresh: asked.append(job.system))
    data = ["--data", root / "社内文書", "--split", "dev", "--model", tiny_model, "--out", out]
    done = call(*data, "--system", "bm25", "--system", "hybrid")
    assert done.exit_code == 0, done.output
    assert asked == []
    assert len(json.loads((out / "results.json").read_text(encoding="utf-8"))) == 2
    for other in (["--limit", 2], ["--query-length", "none"]):
        asked.clear()
        call(*data, "--system", "bm25", "--system", "hybrid", *other)
        assert asked == (["bm25", "hybrid"] if other[0] == "--limit" else ["hybrid"])


def test_a_broken_cell_is_measured_again(root: Path, tmp_path: Path) -> None:
    data = ["--data", root / "社内文書", "--split", "dev", "--system", "bm25", "--out", tmp_path / "o"]
    assert call(*data).exit_code == 0
    (file,) = (tmp_path / "o" / "cells").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert call(*data).exit_code == 0
    assert results.Cell.load(file).result.measures == json.loads(whole)["result"]["measures"]


def test_a_model_that_was_trained_again_is_another(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("1")
    place = places.Place("社内文書", root / "社内文書", "dev", is_named=True)

    def file_of(name: str) -> Path:
        (job,) = run.jobs_of(place, [name], cell.Options(), "", tmp_path / "o")
        return job.file

    before = file_of(f"dense:{folder}")
    assert file_of(f"dense:{folder}") == before
    (folder / "weights").write_text("12")
    assert file_of(f"dense:{folder}") != before


def test_texts_with_lone_surrogates(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "文書")
    lines = (folder / "queries.jsonl").read_text(encoding="utf-8").replace("日本で", "\\ud83d日本で")
    (folder / "queries.jsonl").write_text(lines, encoding="utf-8")
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").replace("汽水湖", "\\ud83d汽水湖")
    (folder / "corpus.jsonl").write_text(lines, encoding="utf-8")
    done = call("--data", folder, "--split", "dev", "--system", "bm25", "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    assert "?日本で" in (tmp_path / "o" / "report.html").read_text(encoding="utf-8")


def test_cells_keep_each_query(finished: tuple[Path, Any]) -> None:
    out, _ = finished
    (file,) = [
        path
        for path in (out / "cells").iterdir()
        if path.name.startswith("候補") and "hybrid" in path.read_text()
    ]
    kept = results.Cell.load(file)
    assert list(kept.queries) == list(ASKED)
    for answer in kept.queries.values():
        assert set(answer.values) == set(kept.result.measures)
        assert answer.first is not None
        scores = [score for _, score in answer.found]
        assert scores == sorted(scores, reverse=True)
    mean = sum(answer.values["nDCG@10"] for answer in kept.queries.values()) / 3
    assert kept.result.measures["nDCG@10"] == pytest.approx(mean)
    with pytest.raises(InvalidInputError, match="is no result of evals.run"):
        results.Cell.load(out / "results.json")


def test_what_fails_is_a_row_and_the_rest_goes_on(root: Path, tmp_path: Path) -> None:
    task = load_task(root / "社内文書", "dev")
    spec = cell.Spec("社内文書", str(root / "社内文書"), "dev", "dense:どこにもない", str(tmp_path / "i"))
    jobs = [
        run.Job("社内文書 dev", spec.system, spec, tmp_path / "a.json", "nDCG@10"),
        run.Job("社内文書 dev", "bm25", run_spec(spec, "bm25"), tmp_path / "b.json", "nDCG@10"),
    ]
    run.measure(jobs, 2)
    assert jobs[0].cell is None
    assert jobs[0].error.startswith("どこにもない cannot be loaded as a SentenceTransformer")
    assert "Name a folder or a hub id of one" in jobs[0].error  # whole, however many lines it had
    assert jobs[1].cell is not None
    assert jobs[1].cell.result.n_queries == len(task.queries)


def run_spec(spec: cell.Spec, system: str) -> cell.Spec:
    from dataclasses import replace

    return replace(spec, system=system)


def test_a_process_that_dies_is_told(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = cell.Spec("d", str(root / "社内文書"), "dev", "bm25", str(tmp_path / "i"))
    job = run.Job("d dev", "bm25", spec, tmp_path / "a.json", "nDCG@10")
    monkeypatch.setattr(run.sys, "executable", "/bin/false")
    run.run_job(job, lambda: None)
    assert job.error.startswith("its process ended with status 1")
    script = tmp_path / "killed"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(run.sys, "executable", str(script))
    run.run_job(job, lambda: None)
    assert job.error.startswith("signal 9 ended its process")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "No dataset is named. Pass --all"),
        (["--split", "dev"], "--split is of --data"),
        (["--data-root", "."], "--data-root goes with --all"),
        (["--dataset", "demo", "--head", "both"], "--head is 'both'; expected linear or none"),
        (["--dataset", "nowhere"], "there is no dataset 'nowhere'"),
    ],
)
def test_command_lines_that_are_refused(args: list[str], words: str, tmp_path: Path) -> None:
    done = call(*args, "--offline", "--system", "bm25", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.output


def test_a_model_without_its_head(tiny_model: Path, tmp_path: Path) -> None:
    from evals.heads import without_head
    from jacolbert_rag.encode import checkpoint

    path = without_head(str(tiny_model), tmp_path)
    plain, own = checkpoint.load(path), checkpoint.load(tiny_model)
    assert plain.config.dim == plain.model.dim == own.model.config.hidden_size
    assert plain.fingerprint != own.fingerprint
    import torch

    ids = torch.tensor([[2, 5, 9, 10, 3]])
    with torch.inference_mode():
        states = own.model.backbone(ids, None)
        expected = torch.nn.functional.normalize(states.float(), dim=-1)
        assert torch.allclose(plain.model(ids), expected, atol=1e-5)
    assert without_head(str(tiny_model), tmp_path) == path


@pytest.mark.parametrize("option", [["--skiplist", "none"], ["--document-length", 8]])
def test_documents_read_in_another_way(
    root: Path, tiny_model: Path, tmp_path: Path, option: list[object]
) -> None:
    data = ["--data", root / "社内文書", "--split", "dev", "--model", tiny_model, "--out", tmp_path / "o"]
    signatures = []
    for way in ([], option, []):
        done = call(*data, "--system", "jacolbert-exact", "--system", "hybrid", *way)
        assert done.exit_code == 0, done.output
        rows = json.loads((tmp_path / "o" / "results.json").read_text(encoding="utf-8"))
        signatures.append([row["signature"] for row in rows])
    assert signatures[0] == signatures[2]
    expected = "skip:0" if option[0] == "--skiplist" else "dlen:8"
    for plain, other in zip(*signatures[:2], strict=True):
        assert f"|{expected}|" in other
        assert "|dlen:64|skip:punctuation|" in plain
    assert "n_candidates" not in signatures[0][1]  # hybrid search takes n_fused
    assert len(list((tmp_path / "o" / "indexes").iterdir())) == 2


def test_embedding_is_told_in_parts(root: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = cell.Options(model=str(tiny_model))
    spec = cell.Spec("d", str(root / "社内文書"), "dev", "jacolbert", str(tmp_path / "i"), options)
    told: list[tuple[str, int, int]] = []
    cell.run(spec, lambda *phase: told.append(phase))
    built = [(done, total) for phase, done, total in told if phase == "building"]
    assert built[0] == (0, 5)
    assert built[-1] == (4, 5)  # the empty one is not embedded
    spec.save(tmp_path / "spec.json")
    assert cell.Spec.load(tmp_path / "spec.json") == spec


def test_a_folder_in_place_of_a_published_dataset_is_told(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "jsquad")
    args = ["--data", folder, "--split", "dev", "--system", "bm25", "--out", tmp_path / "o"]
    done = call(*args)
    assert done.exit_code == 0, done.output
    words = "jsquad: 3 queries, and 4,442 were published: figures differ from published ones."
    (row,) = json.loads((tmp_path / "o" / "results.json").read_text(encoding="utf-8"))
    assert words in row["notes"]
    assert words in done.stdout
    for name in ("report.md", "report.html"):
        assert words in (tmp_path / "o" / name).read_text(encoding="utf-8")
    about = {"revisions": {"yahoojapan/JGLUE": "v1.1.0"}, "notes": ["一つ足りない。"]}
    (folder / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    assert load_task(folder, "dev").notes == ("yahoojapan/JGLUE@v1.1.0", "一つ足りない。")
    (folder / "dataset.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"dataset.json cannot be read"):
        load_task(folder, "dev")


def test_roots_with_a_folder_of_one_name(tmp_path: Path) -> None:
    roots = [tmp_path / "甲", tmp_path / "乙"]
    for each in roots:
        write_beir(each / "社内文書")
    with pytest.raises(InvalidInputError, match=r"甲 and .*乙 both have a folder 社内文書"):
        places.of_roots(roots)
    assert list(places.of_roots(roots[:1])) == ["社内文書"]


def test_out_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "o").write_text("")
    done = call("--dataset", "demo", "--system", "bm25", "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert "cannot be a folder" in done.stderr
    assert call("--dataset", "demo", "--skiplist", "all", "--out", tmp_path / "p").exit_code == 2


# The page.


class Asked(HTMLParser):
    """What a page would ask for, its elements and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_asks_for_nothing_and_escapes_what_it_shows(finished: tuple[Path, Any]) -> None:
    html = (finished[0] / "report.html").read_text(encoding="utf-8")
    parsed = Asked()
    parsed.feed(html)
    assert all(address.startswith("#") for address in parsed.addresses)
    assert not {"script", "link", "iframe", "img", "object", "b"} & set(parsed.tags)
    assert "@import" not in html
    assert not re.search(r"url\((?!['\"]?#)", html)
    assert "alert(1)" in parsed.text
    assert "交通費の<b>申請</b>はいつまで?" in parsed.text
    assert "mark" in parsed.tags
    for words in ("社内文書 dev", "候補 test", "hybrid", "jqara test", "正解 社1"):
        assert words in parsed.text, words
    assert html.count("<svg") == 4  # two of all, one of each dataset


def test_two_systems_are_compared_by_hand() -> None:
    def one(name: str, values: list[float]) -> results.Cell:
        measures = {"nDCG@10": sum(values) / len(values)}
        result = results.Result("d", "dev", name, measures, {}, 4, 4, 0, {}, 1, None, None, 1, "", "")
        queries = {str(i): results.Answered({"nDCG@10": v}, [], None) for i, v in enumerate(values)}
        return results.Cell(result, queries)

    (pair,) = page.compared([one("a", [0, 0, 1, 0.5]), one("b", [1, 1, 0, 0.5])])
    assert (pair.a, pair.b, pair.wins, pair.ties, pair.losses) == ("b", "a", 2, 1, 1)
    assert pair.difference == pytest.approx(0.25)
    assert pair.low < 0.25 < pair.high
    assert pair.p > 0.5
    assert page.compared([one("a", [1, 0])]) == []


def test_only_what_is_certain_is_called_so(tmp_path: Path) -> None:
    def said(values: dict[str, list[float]]) -> str:
        jobs = []
        for name, each in values.items():
            result = results.Result(
                "d", "dev", name, dict.fromkeys(page.SHOWN, sum(each) / len(each)), {"nDCG@10": (0, 1)},
                len(each), 9, 0, {}, None, None, None, None, "", "",
            )  # fmt: skip
            queries = {str(i): results.Answered({"nDCG@10": v}, [], None) for i, v in enumerate(each)}
            jobs.append(run.Job("d dev", name, None, tmp_path, "nDCG@10", cell=results.Cell(result, queries)))
        page.write(tmp_path / "report.html", jobs)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    first, second, third = [1.0] * 30, [0.0] * 30, [1.0] * 29 + [0.0]
    html = said({"a": first, "b": second})
    assert "は他のすべてより確かに上。最も近いのは:" in re.sub(r"\s+:", ":", html)
    assert "b（-100.0 点、p = 0.000）" in html
    html = said({"a": first, "b": second, "c": third})
    assert "が最上位だが、次との差は偶然かもしれない" in html
    assert "c（-3.3 点、p = 1.000）" in html
    assert "b（" not in html


def test_the_peak_is_of_the_process_alone() -> None:
    import subprocess
    import sys

    import numpy as np

    held = np.ones(40_000_000)  # 320 MB, which what is started below never has
    code = "from evals.cell import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10e6 < int(done.stdout) < 250e6 < held.nbytes < cell.peak_bytes()


def test_ranks_of_the_first_right_passage() -> None:
    firsts = [1, 1, 2, 10, 11, None, 3, 100]
    answers = [results.Answered({}, [], first) for first in firsts]
    assert page.ranks(answers) == [
        ("1", 2 / 8),
        ("2–3", 2 / 8),
        ("4–10", 1 / 8),
        ("11–100", 2 / 8),
        ("none", 1 / 8),
    ]


def test_questions_in_another_language(root: Path, tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "文書")
    lines = [json.dumps({"_id": id, "text": f"What is {id}?"}) for id in ASKED]
    (folder / "queries.en.jsonl").write_text("\n".join(lines), encoding="utf-8")
    own, english = load_task(folder, "dev"), load_task(folder, "dev", language="en")
    assert (english.name, english.qrels) == ("文書-en", own.qrels)
    assert list(english.queries.values()) == ["What is q1?", "What is q2?", "What is q3?"]
    assert english.corpus_digest == own.corpus_digest
    assert english.digest != own.digest
    done = call(
        "--data", folder, "--split", "dev", "--language", "en", "--system", "bm25", "--out", tmp_path / "o"
    )
    assert done.exit_code == 0, done.output
    (row,) = json.loads((tmp_path / "o" / "results.json").read_text(encoding="utf-8"))
    assert row["dataset"] == "文書-en"
    assert row["n_empty"] == 2  # the 1 of q1 stands in one passage
    none = call(
        "--data", folder, "--split", "dev", "--language", "fr", "--system", "bm25", "--out", tmp_path / "o"
    )
    assert none.exit_code == 2
    assert "queries.fr.jsonl is missing" in none.stderr
