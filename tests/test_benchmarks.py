"""Ratios, logs and tables of the benchmark, and a few texts through its workers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import cuda, documents, embedded, index, memory, model, plot, tables, texts, tokens, turns
from benchmarks.blocklog import BlockLog
from benchmarks.encoder import app
from benchmarks.peers import index_worker
from benchmarks.peers.worker import Prepared, Session
from benchmarks.settings import Settings
from benchmarks.spread import percentile, ratios, spread
from benchmarks.workers import System, Worker, WorkerError
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.encoder import WIDTH_STEP, Encoder
from tests.conftest import SENTENCES


def settings(tmp_path: Path, **changed: Any) -> Settings:
    values: dict[str, Any] = {
        "pylate": None,
        "sentence_transformers": None,
        "data": tmp_path / "absent",
        "work": tmp_path / "work",
        "n_passages": 6,
        "n_blocks": 2,
        "n_questions": 3,
        "n_repeats": 1,
        "threads": 1,
        "say": lambda line: None,
    }
    return Settings(**values | changed)


class TestSpread:
    def test_quartiles_by_hand(self) -> None:
        found = spread([4.0, 1.0, 3.0, 2.0, 5.0])
        assert (found.q1, found.median, found.q3, found.n) == (2.0, 3.0, 4.0, 5)

    def test_one_value_has_no_width(self) -> None:
        found = spread([7.5])
        assert (found.q1, found.median, found.q3) == (7.5, 7.5, 7.5)

    def test_no_values(self) -> None:
        with pytest.raises(ValueError, match="no values were measured"):
            spread([])

    def test_ratios_are_paired(self) -> None:
        assert ratios([6.0, 1.0], [2.0, 4.0]) == [3.0, 0.25]
        with pytest.raises(ValueError, match="shorter"):
            ratios([1.0, 2.0], [1.0])

    def test_percentile_interpolates(self) -> None:
        assert percentile([0.0, 10.0], 95) == pytest.approx(9.5)


class TestTexts:
    def test_demo_corpus_stands_in_and_says_so(self, tmp_path: Path) -> None:
        found = texts.passages(tmp_path, 400)
        assert found.name == "demo corpus (318 repeated)"
        assert len(found.texts) == 400
        assert found.texts[0] == found.texts[318]

    def test_shorter_runs_read_the_first_passages_of_longer_ones(self, tmp_path: Path) -> None:
        assert texts.passages(tmp_path, 20).texts == texts.passages(tmp_path, 30).texts[:20]
        assert texts.passages(tmp_path, 20).digest != texts.passages(tmp_path, 30).digest

    def test_real_corpora_take_turns(self, shared_data: Path) -> None:
        found = texts.passages(shared_data, 8)
        assert found.name == "niilc+wikinews+jsquad+jaquad"
        assert len(set(found.texts)) == 8

    def test_cut_keeps_all_in_order(self) -> None:
        blocks = turns.cut(["a", "b", "c", "d", "e"], 2)
        assert blocks == [["a", "b"], ["c", "d", "e"]]
        with pytest.raises(ValueError, match="cannot be cut into 6 blocks"):
            turns.cut(["a"], 6)


class TestTurns:
    def test_every_system_begins_once(self) -> None:
        names = ["a", "b", "c"]
        assert [turns.rotated(names, i)[0] for i in range(3)] == names
        assert turns.rotated(names, 3) == ["c", "b", "a"]
        assert {turns.rotated(names, i)[0] for i in range(3, 6)} == set(names)
        assert turns.rotated([], 3) == []

    def test_log_goes_on_after_a_cut(self, tmp_path: Path) -> None:
        log = BlockLog(tmp_path, "documents", {"n": 2})
        log.append({"block": 0})
        with log.path.open("a", encoding="utf-8") as file:
            file.write('{"block": 1, "sys')  # killed while writing
        again = BlockLog(tmp_path, "documents", {"n": 2})
        assert again.records == [{"block": 0}]
        again.append({"block": 1})
        assert BlockLog(tmp_path, "documents", {"n": 2}).records == [{"block": 0}, {"block": 1}]

    def test_log_of_another_run_is_not_taken_up(self, tmp_path: Path) -> None:
        BlockLog(tmp_path, "documents", {"n": 2}).append({"block": 0})
        assert BlockLog(tmp_path, "documents", {"n": 3}).records == []

    def test_finished_log_is_put_aside(self, tmp_path: Path) -> None:
        log = BlockLog(tmp_path, "documents", {})
        log.append({"block": 0})
        log.finish()
        assert BlockLog(tmp_path, "documents", {}).records == []

    def test_only_missing_blocks_are_measured(self, tmp_path: Path) -> None:
        asked: list[int] = []

        def block(i: int) -> Any:
            return lambda worker: asked.append(i) or {"docs": 1, "seconds": 1.0}

        log = BlockLog(tmp_path, "documents", {})
        log.append({"block": 0, "systems": {}})
        running = turns.Running(settings(tmp_path), [], None)  # type: ignore[arg-type]
        running.workers = {"a": None}  # type: ignore[dict-item]
        records = running.take_turns(log, [block(0), block(1), block(2)])
        assert asked == [1, 2]
        assert [record["block"] for record in records] == [0, 1, 2]

    def test_a_system_that_fails_leaves_the_others(self, tmp_path: Path) -> None:
        def block(worker: Any) -> dict[str, Any]:
            if worker == "bad":
                raise WorkerError("out of memory")
            return {"docs": 1, "seconds": 1.0, "tokens": 5}

        running = turns.Running(
            settings(tmp_path), [System("bad", "pylate"), System("good", "jacolbert")], None
        )  # type: ignore[arg-type]
        running.workers = {"bad": "bad", "good": "good"}  # type: ignore[dict-item]
        running.loaded = {"good": {"dtype": "float32"}}
        records = running.take_turns(BlockLog(tmp_path, "x", {}), [block, block])
        found = documents.summarize(running, records)
        assert found["systems"]["bad"] == {"not_run": "failed: out of memory"}
        assert found["systems"]["good"]["n_blocks"] == 2


def records_of(seconds: dict[str, list[float]], **more: Any) -> list[dict[str, Any]]:
    """Blocks of 10 documents and 100 tokens, 150 with padding."""
    n = len(next(iter(seconds.values())))
    reply = {"docs": 10, "tokens": 100, "padded": 150, **more}
    return [
        {"block": i, "systems": {name: {**reply, "seconds": s[i]} for name, s in seconds.items()}}
        for i in range(n)
    ]


class TestDocuments:
    SECONDS = {  # noqa: RUF012
        "jacolbert": [1.0, 2.0],
        "pylate": [8.0, 16.0],
        "sentence-transformers": [6.0, 12.0],
        "network": [0.9, 1.8],
        "network-float32": [4.5, 9.0],
    }

    def test_ratios_by_hand(self) -> None:
        found = documents.ratio_table(records_of(self.SECONDS), set(self.SECONDS))
        assert found["jacolbert / pylate"]["median"] == pytest.approx(8.0)
        assert found["jacolbert / network"]["median"] == pytest.approx(0.9)
        # bfloat16 gains 5 times, and 1.5 tokens are computed where 1 is read.
        assert found["attainable / sentence-transformers"]["median"] == pytest.approx(7.5)
        assert found["reached"]["median"] == pytest.approx(6.0 / 7.5)

    def test_what_did_not_run_has_no_ratio(self) -> None:
        found = documents.ratio_table(records_of(self.SECONDS), {"jacolbert", "network"})
        assert list(found) == ["jacolbert / network"]

    def test_row(self) -> None:
        row = documents.row("pylate", records_of(self.SECONDS))
        assert (row["n_blocks"], row["docs"], row["tokens"]) == (2, 20, 200)
        assert row["docs_per_s"]["median"] == pytest.approx((10 / 8 + 10 / 16) / 2)
        assert row["padded_per_token"] == 1.5
        assert "not_run" in documents.row("nobody", records_of(self.SECONDS))

    def test_agreement_takes_texts_of_equal_length(self, tmp_path: Path) -> None:
        left = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
        np.savez(tmp_path / "a.npz", flat=left, lengths=np.array([1, 2]))
        right = np.array([[2, 0], [3, 4], [5, 6], [7, 8]], dtype=np.float32)
        np.savez(tmp_path / "b.npz", flat=right, lengths=np.array([1, 3]))
        found = documents.agreement(tmp_path / "a.npz", tmp_path / "b.npz")
        assert found == {"n_texts": 2, "n_equal_lengths": 1, "min_cosine": 1.0}


class TestModel:
    def test_flops_by_hand(self) -> None:
        shape = model.Shape(layers=1, hidden=4, heads=1, intermediate=8, dim=2)
        assert shape.matmul_parameters == 4 * 16 + 2 * 32 + 8
        assert shape.flops([3]) == 2 * 136 * 3 + 4 * 4 * 9

    def test_random_checkpoint_is_one(self, tmp_path: Path) -> None:
        shape = model.Shape(layers=1, hidden=32, heads=2, intermediate=64, dim=8)
        folder = model.checkpoint_folder(tmp_path, shape)
        loaded = checkpoint.load(folder)
        n = sum(p.numel() for name, p in loaded.model.named_parameters() if p.ndim == 2)
        embedded = (16_384 + 512 + 2) * 32
        assert n - embedded == shape.matmul_parameters
        assert model.checkpoint_folder(tmp_path, shape) == folder
        plain = model.without_mecab(folder)
        assert json.loads((plain / "tokenizer_config.json").read_text())["tokenizer_class"] == "BertTokenizer"
        assert (plain / "model.safetensors").samefile(folder / "model.safetensors")


def load(session: Session, system: str, folder: Path, ids: Path | None = None) -> dict[str, Any]:
    request = {"do": "load", "system": system, "folder": str(folder), "dtype": "float32", "device": "cpu"}
    return session.answer(request | {"threads": None, "cpu": None, "ids": str(ids) if ids else None})


class TestWorker:
    def test_encoder_counts_its_tokens(self, tiny_model: Path, tmp_path: Path) -> None:
        session = Session()
        assert load(session, "jacolbert", tiny_model)["dtype"] == "float32"
        session.answer({"do": "warm_up", "texts": SENTENCES[:2], "save": str(tmp_path / "a.npz")})
        reply = session.answer({"do": "documents", "texts": SENTENCES})
        loaded = checkpoint.load(tiny_model)
        batch, embedded = (
            loaded.tokenizer.documents(SENTENCES),
            Encoder(loaded, device="cpu").documents(SENTENCES),
        )
        assert reply["docs"] == len(SENTENCES)
        assert reply["tokens"] == len(batch.ids)
        assert reply["padded"] == len(SENTENCES) * -(-int(batch.lengths.max()) // WIDTH_STEP) * WIDTH_STEP
        assert reply["kept"] == len(embedded.flat)
        with np.load(tmp_path / "a.npz") as saved:
            assert saved["lengths"].tolist() == embedded.lengths[:2].tolist()

    def test_network_reads_every_token_once(self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("benchmarks.peers.worker.BLOCK", 64)
        session = Session()
        load(session, "network", tiny_model)
        assert session.answer({"do": "warm_up", "texts": SENTENCES})["n_rows"] in (2, 8, 32)
        reply = session.answer({"do": "documents", "texts": SENTENCES})
        n = len(checkpoint.load(tiny_model).tokenizer.documents(SENTENCES).ids)
        assert reply["tokens"] == reply["padded"] == n
        assert reply["seconds"] > 0

    def test_query_latency_in_turns(self, tiny_model: Path) -> None:
        session = Session()
        load(session, "jacolbert", tiny_model)
        found = session.answer({"do": "query_latency", "texts": SENTENCES[:3]})
        assert {name: len(values) for name, values in found.items()} == {"queries": 3, "network": 3}

    def test_prepared_ids_stand_in_for_texts(self, tmp_path: Path) -> None:
        made = cuda.prepare(tmp_path / "absent", 5, tmp_path / "ids.npz")
        prepared = Prepared(str(tmp_path / "ids.npz"))
        passages = texts.passages(tmp_path, 5).texts
        batch = checkpoint.load().tokenizer.documents(passages)
        assert made["tokens"] == len(batch.ids)
        np.testing.assert_array_equal(prepared.batch(3).ids, batch.ids[: batch.offsets[3]])
        stand_ins = prepared.texts(5)
        assert list(map(len, stand_ins)) == list(map(len, passages))
        features = prepared.preprocess(stand_ins[3:5], task="document")
        for i in (3, 4):
            length = int(batch.lengths[i])
            row = features["input_ids"][i - 3]
            assert row[:length].tolist() == batch.ids[batch.offsets[i] : batch.offsets[i + 1]].tolist()
            assert int(features["attention_mask"][i - 3].sum()) == length

    def test_prepared_ids_are_encoded_alike(self, tmp_path: Path) -> None:
        cuda.prepare(tmp_path / "absent", 4, tmp_path / "ids.npz")
        session = Session()
        load(session, "jacolbert", model.bundled(), tmp_path / "ids.npz")
        reply = session.answer({"do": "documents", "n": 4})
        embedded = Encoder(checkpoint.load(), device="cpu").documents(texts.passages(tmp_path, 4).texts)
        assert reply["kept"] == len(embedded.flat)

    def test_process_that_cannot_load_says_why(self, tmp_path: Path) -> None:
        system = System("pylate", "pylate", python=sys.executable)
        if importlib.util.find_spec("pylate") is not None:
            pytest.skip("PyLate is installed here")
        with Worker(system, threads=1, stderr=tmp_path / "messages.txt") as worker:
            with pytest.raises(WorkerError, match="ModuleNotFoundError"):
                worker.load(tmp_path)
            with pytest.raises(WorkerError, match="no attribute 'do_nothing'"):
                worker.ask("nothing")

    def test_process_that_ends_says_so(self, tmp_path: Path) -> None:
        system = System("python", "pylate", python="/bin/false")
        with (
            Worker(system, threads=1, stderr=tmp_path / "messages.txt") as worker,
            pytest.raises(WorkerError, match="ended with code 1"),
        ):
            worker.ask("load")


@pytest.mark.slow
def test_two_workloads_from_end_to_end(tmp_path: Path) -> None:
    command = ["--workload", "tokens", "--workload", "query", "--passages", "4", "--blocks", "2"]
    command += ["--questions", "2", "--threads", "1", "--data", str(tmp_path / "absent")]
    command += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = tables.read_results(tmp_path / "results")
    assert list(found) == ["tokens", "query"]
    assert found["tokens"]["agreement"] == {
        "n_texts": turns.N_WARM_UP,
        "n_equal_ids": turns.N_WARM_UP,
    }
    assert found["tokens"]["signature"]["texts"]["name"] == "demo corpus"
    assert found["query"]["n_questions"] == 2
    assert "`tokens|demo corpus:4@" in tables.markdown(found)


def test_options_are_checked(tmp_path: Path) -> None:
    for command, words in (
        (["--pylate", "no-such-python"], "is no program"),
        (["--device", "cuda"], "--prepare FILE"),
        (["--passages", "2", "--blocks", "3"], "cannot be cut into 3 blocks"),
    ):
        done = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
        assert done.exit_code == 2
        assert words in done.output


class TestTables:
    def result(self) -> dict[str, Any]:
        records = records_of(TestDocuments.SECONDS)
        rows = {name: documents.row(name, records) for name in TestDocuments.SECONDS}
        return {
            "signature": {
                "workload": "documents",
                "library": {"version": "1.2.3", "digest": "0123456789abcdef"},
                "texts": {"name": "demo corpus", "n": 20, "digest": "fedcba9876543210"},
                "model": "random BERT 12x768, seed 0",
                "threads": 2,
                "cpu": {"model": "A CPU", "cores": 2, "features": ["amx_bf16", "avx2"]},
                "versions": {
                    "jacolbert": {"torch": "2.13.0+cpu"},
                    "pylate": {"torch": "2.13.0", "pylate": "1.6.0"},
                },
            },
            "note": "what the rows mean",
            "systems": {**rows, "pylate": {"not_run": "failed: a | b"}},
            "ratios": documents.ratio_table(records, set(rows)),
            "agreement": {"pylate": {"n_texts": 16, "n_equal_lengths": 16, "min_cosine": 0.99999}},
            "blocks": records,
        }

    def test_signature_names_each_version_once(self) -> None:
        assert tables.signature_line(self.result()) == (
            "documents|demo corpus:20@fedcba98|random BERT 12x768, seed 0|A CPU amx_bf16 avx2|threads:2|"
            "torch2.13.0|pylate1.6.0|v1.2.3@01234567"
        )

    def test_markdown(self) -> None:
        found = tables.markdown({"documents": self.result()})
        assert "| jacolbert |  | 7.5 (6.2 to 8.8) | 75.0 (62.5 to 87.5) | 1.50 |" in found
        assert "| pylate | failed: a \\| b |  |  |  |" in found
        assert "| jacolbert / sentence-transformers | 6.00 | 6.00 to 6.00 |" in found
        assert "What the rows mean." in found
        assert "### cuda\n\nNot run" in found

    def test_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        tables.show({"documents": self.result()})
        shown = capsys.readouterr().out
        assert "failed: a | b" in shown
        assert "v1.2.3@01234567" in shown

    def test_cuda(self, tmp_path: Path) -> None:
        seconds = {cuda.OURS: [1.0, 1.0], cuda.ST: [4.0, 4.0]}
        records = records_of(seconds, product_flops_per_s=4e12)
        systems = [System(name, "jacolbert") for name in (cuda.OURS, cuda.ST, cuda.NETWORK)]
        running = turns.Running(settings(tmp_path), systems, None)  # type: ignore[arg-type]
        running.failed = {cuda.NETWORK: "failed: it did"}
        found = cuda.summarize(running, records, flops=2e12)
        assert found["systems"][cuda.OURS]["share_of_product"]["median"] == pytest.approx(0.5)
        assert found["ratios"] == {f"{cuda.OURS} / {cuda.ST}": {"median": 4.0, "q1": 4.0, "q3": 4.0, "n": 2}}
        signature = self.result()["signature"] | {"device": "A GPU"}
        result = {
            "signature": signature,
            "note": "n",
            "tokenizer": {"docs_per_s": 3e3, "cpu": "A CPU"},
            **found,
        }
        markdown = tables.markdown({"cuda": result})
        assert (
            f"| {cuda.OURS} | 10.0 (10.0 to 10.0) | 100 (100 to 100) | 2.0 | 0.50 (0.50 to 0.50) |"
            in markdown
        )
        assert "|A GPU`" in markdown

    def test_memory(self) -> None:
        samples = [
            {"docs": n, "peak_mb": mb} for n, mb in ((0, 500.0), (20, 600.0), (60, 630.0), (100, 660.0))
        ]
        row = memory.summarize(samples)
        assert (row["start_mb"], row["tenth_mb"], row["growth"]) == (500.0, 600.0, pytest.approx(1.1))
        grid = tables.grids("memory", {"rows": [row]})[0]
        assert grid.lines == (("100", "500", "600", "660", "1.100"),)
        with pytest.raises(ValueError, match="a sample at its start"):
            memory.summarize(samples[:1])

    def test_tokens(self, tmp_path: Path) -> None:
        records = records_of({tokens.OURS: [1.0, 1.0], tokens.THEIRS: [3.0, 5.0]})
        found = tokens.summarize(turns.Running(settings(tmp_path), [], None), records)  # type: ignore[arg-type]
        assert found["ratios"][f"{tokens.OURS} / {tokens.THEIRS}"]["median"] == pytest.approx(4.0)

    def test_readme_tables_are_generated(self) -> None:
        for path, fill in ((tables.README, tables.with_tables), (tables.FRONT, tables.with_index)):
            text = path.read_text(encoding="utf-8")
            assert fill(text, tables.read_results()) == text

    def test_committed_results_recompute(self) -> None:
        """The ratios of a committed result are those of its blocks."""
        found = tables.read_results().get("documents")
        if found is None:
            pytest.skip("no result of the documents workload is committed")
        ran = {name for name, row in found["systems"].items() if "not_run" not in row}
        assert documents.ratio_table(found["blocks"], ran) == found["ratios"]


class InProcess:
    """A worker of the index's benchmark without a process of its own."""

    def __init__(self, system: System, *, threads: int, **_: Any) -> None:
        self.session = index_worker.Session()

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        request["threads"] = torch.get_num_threads()
        return self.session.answer({"do": do, **request})

    def resume(self) -> None:
        pass

    pause = resume


def embeddings(folder: Path, n: int, n_queries: int) -> embedded.Embedded:
    """Random passages; each question has the tokens of a passage of its own."""
    rng = np.random.default_rng(0)
    offsets = np.cumsum([0, *rng.integers(4, 9, n)])
    flat = rng.standard_normal((offsets[-1], 16)).astype(np.float16)
    asked = [flat[offsets[i] : offsets[i] + 4].astype(np.float32) for i in range(n_queries)]
    flat.tofile(folder / "tokens.float16")
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "queries.npy", np.concatenate(asked))
    np.save(folder / "query_offsets.npy", np.arange(0, 4 * n_queries + 1, 4))
    about = {"n": n, "dim": 16, "digest": "0" * 16, "fingerprint": "1" * 32}
    about |= {"ids": [f"d{i}" for i in range(n)], "query_ids": [f"q{i}" for i in range(n_queries)]}
    about["qrels"] = {f"q{i}": {f"d{i}": 1} for i in range(n_queries)}
    (folder / "corpus.json").write_text(json.dumps(about), encoding="utf-8")
    return embedded.load(folder)


def test_index_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "Worker": InProcess,
        "WHOLE": 60,
        "GROWN_FROM": 40,
        "GROWN_BY": 8,
        "ADDED_AT_ONCE": 2,
        "N_ADDS": 2,
        "N_QUESTIONS": {30: 20, 60: 20},
        "N_TURN_QUESTIONS": 10,
        "PEERS_UP_TO": 60,
    }.items():
        monkeypatch.setattr(index, name, value)
    data = embeddings(tmp_path, 60, 30)
    systems = [System(index.OURS, "jacolbert"), System(index.EXACT, "exact")]
    systems.append(System(index.PYLATE, index.PYLATE, python=None))
    result = index.measure(data, systems, [60, 30], tmp_path / "work", 1)
    found = result["sizes"][0]
    rows = dict(found["systems"])
    assert rows.pop(index.PYLATE) == {"not_run": "not run: --pylate names no interpreter"}
    assert set(rows) == {index.OURS, index.GROWN, index.EXACT}
    assert all(row["like_exact"] == row["ndcg@10"] == 1.0 for row in rows.values())
    assert rows[index.EXACT]["bytes_per_passage"] > 16 * 2 * 4
    assert found["ratios"][index.EXACT]["p50"]["n"] == index.N_BLOCKS
    assert found["all_questions"]["ndcg@10"] == {index.OURS: 1.0, index.EXACT: 1.0}
    assert (found["all_questions"]["n_questions"], found["all_questions"]["share"]) == (30, 1.0)
    assert set(found["adds"]) == {"8", "2"}
    small, large = result["growth"]
    assert (small["n"], large["n"]) == (30, 60)
    assert large["times_the_one_before"]["n"] == large["open_s"]["n"] == index.N_BLOCKS
    titles = [grid.title for grid in tables.grids("index", result)]
    assert "60 passages, all 30 questions of the split" in titles
    assert "--pylate names no interpreter" in tables.markdown({"index": result})
    assert ">exact<" in plot.svg(result["sizes"])
