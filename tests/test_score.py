from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from evals.full_text import BM25
from jacolbert_rag import Document, IndexSettings, JaColBERTRetriever
from jacolbert_rag.config import PoolingConfig
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.words import JapaneseWordPiece
from jacolbert_rag.errors import TruncationWarning
from tests.conftest import SENTENCES, tiny_vocab, write_fast_tokenizer
from training import score, shards
from training.data import Tuples, read_data, read_rows
from training.options import TrainingError, run
from training.pair_reader import PairReader, PairTemplate, find_template
from training.state import claim
from training.teachers import BM25Teacher, ColBERTTeacher, CrossEncoder, min_max, mix

LONG = "。".join(SENTENCES)


def write_japanese_reranker(folder: Path, *, seed: int = 0, n_labels: int = 1) -> Path:
    """A cross-encoder of random weights over MeCab and WordPiece."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tiny_vocab()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.3,  # large weights, so that random logits tell texts apart
        num_labels=n_labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    checkpoint.write_japanese_tokenizer(folder, JapaneseWordPiece(tiny_vocab()))
    return folder


def write_roberta_reranker(folder: Path) -> Path:
    """A cross-encoder with the pair template of XLM-RoBERTa, as bge-reranker-v2-m3 has."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = AutoTokenizer.from_pretrained(str(write_fast_tokenizer(folder))).backend_tokenizer
    cls, sep = ("[CLS]", 2), ("[SEP]", 3)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=[cls, sep]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    ).save_pretrained(str(folder))  # fmt: skip
    torch.manual_seed(1)
    config = XLMRobertaConfig(
        vocab_size=600,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=101,  # 100 tokens behind the padding's position
        type_vocab_size=1,
        pad_token_id=0,
        initializer_range=0.3,
        num_labels=1,
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def japanese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_japanese_reranker(tmp_path_factory.mktemp("japanese"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_roberta_reranker(tmp_path_factory.mktemp("roberta"))


QUERIES = ["日本で最も大きな湖は？", "冬の北海道", "牛丼", "カフェで、本を読む"]
DOCUMENTS = [[*SENTENCES[:4], LONG], [SENTENCES[4], "雪"], [SENTENCES[8]], [LONG, *SENTENCES[5:]]]


def naive_scores(folder: Path, max_length: int) -> list[list[float]]:
    """One pair at a time, through transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    typed = (model.config.type_vocab_size or 0) > 1
    scores = []
    for query, documents in zip(QUERIES, DOCUMENTS, strict=True):
        row = []
        for document in documents:
            pair = tokenizer(
                query,
                document,
                truncation="only_second",
                max_length=max_length,
                return_tensors="pt",
                return_token_type_ids=typed,
            )
            with torch.no_grad():
                row.append(float(model(**pair).logits[0, 0]))
        scores.append(row)
    return scores


def flat(scores: Sequence[Sequence[float]]) -> list[float]:
    return [float(score) for row in scores for score in row]


# Pairs of texts.


@pytest.mark.parametrize("kind", ["japanese", "roberta"])
@pytest.mark.parametrize("limit", [40, 100])
def test_pairs_are_those_of_the_tokenizer(kind: str, limit: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    queries = [query for query in QUERIES for _ in range(4)]
    documents = [text for _ in QUERIES for text in (*SENTENCES[:3], LONG)]
    reader = PairReader(folder, limit)
    padded = reader.pairs(queries, documents).padded(range(len(queries)))
    assert padded.ids.shape[1] <= limit
    for row, (query, document) in enumerate(zip(queries, documents, strict=True)):
        expected = tokenizer(
            query, document, truncation="only_second", max_length=limit, return_token_type_ids=True
        )
        n = len(expected["input_ids"])
        assert padded.ids[row, :n].tolist() == expected["input_ids"]
        assert padded.types[row, :n].tolist() == expected["token_type_ids"]
        assert padded.attended[row].sum() == n
        assert (padded.ids[row, n:] == reader.pad).all()


def test_templates(japanese: Path, roberta: Path) -> None:
    found = find_template(AutoTokenizer.from_pretrained(str(japanese)))
    assert found == PairTemplate((2,), (3,), (3,), (0,), 0, (0,), 1, (1,))
    found = find_template(AutoTokenizer.from_pretrained(str(roberta)))
    assert found == PairTemplate((2,), (3, 3), (3,), (0,), 0, (0, 0), 0, (0,))


def test_a_text_cannot_end_itself(japanese: Path, roberta: Path) -> None:
    for folder in (japanese, roberta):
        pairs = PairReader(folder, 64).pairs(["湖[SEP]"], ["山[SEP][CLS]川\ud800"])
        assert not {2, 3} & {*pairs.queries[0].tolist(), *pairs.documents[0].tolist()}


def test_each_text_is_tokenised_once(japanese: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = JapaneseWordPiece.ids
    monkeypatch.setattr(
        JapaneseWordPiece, "ids", lambda self, text: read.append(text) or original(self, text)
    )
    teacher = CrossEncoder(str(japanese))
    teacher.score(QUERIES, DOCUMENTS)
    teacher.score(QUERIES[:2], [SENTENCES, SENTENCES])
    assert len(read) == len(set(read))
    assert set(read) == {*QUERIES, *SENTENCES, LONG, "雪"}


def test_a_query_that_leaves_no_room_is_cut(japanese: Path) -> None:
    reader = PairReader(japanese, 32)
    with pytest.warns(TruncationWarning, match="Queries of more than 24 tokens were cut there: 1"):
        pairs = reader.pairs([LONG, "湖"], [SENTENCES[0], SENTENCES[0]])
    assert [len(query) for query in pairs.queries] == [24, 1]
    assert pairs.lengths[0] == 32
    with pytest.raises(TrainingError, match="No text fits into a --max-length of 8"):
        PairReader(japanese, 8)


# Cross-encoders.


@pytest.mark.parametrize("kind", ["japanese", "roberta"])
def test_scores_equal_one_pair_at_a_time(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    done: list[int] = []
    found = CrossEncoder(str(folder)).score(QUERIES, DOCUMENTS, done.append)
    assert [len(row) for row in found] == [len(row) for row in DOCUMENTS]
    expected = naive_scores(folder, 128 if kind == "japanese" else 100)
    assert flat(found) == pytest.approx(flat(expected), abs=1e-4)
    assert np.ptp(flat(expected)) > 0.1  # random, but no constant
    assert sum(done) == sum(map(len, DOCUMENTS))


@pytest.mark.parametrize("kind", ["japanese", "roberta"])
def test_batches_change_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue(kind))
    one = CrossEncoder(folder, max_length=64, tokens_per_batch=1).score(QUERIES, DOCUMENTS)
    many = CrossEncoder(folder, max_length=64, tokens_per_batch=10_000).score(QUERIES, DOCUMENTS)
    assert flat(one) == pytest.approx(flat(many), abs=1e-5)


def test_token_types_are_what_the_network_was_trained_with(japanese: Path, tmp_path: Path) -> None:
    typed = CrossEncoder(str(japanese)).score(QUERIES, DOCUMENTS)
    untyped = write_japanese_reranker(tmp_path)
    settings = json.loads((untyped / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (untyped / "tokenizer_config.json").write_text(json.dumps(settings))
    assert flat(CrossEncoder(str(untyped)).score(QUERIES, DOCUMENTS)) != pytest.approx(flat(typed), abs=1e-3)


def test_low_precision_makes_no_ties(japanese: Path) -> None:
    documents = [[text[:n] for text in SENTENCES for n in range(3, 11)]]
    exact = CrossEncoder(str(japanese)).score(QUERIES[:1], documents)[0]
    low = CrossEncoder(str(japanese), precision="bf16").score(QUERIES[:1], documents)[0]
    assert low == pytest.approx(exact, abs=0.2)
    assert len(np.unique(low)) == len(np.unique(exact))
    on_grid = torch.tensor(low).to(torch.bfloat16).double().numpy()
    assert (on_grid != low).mean() > 0.5


def test_what_is_no_cross_encoder_is_refused(tmp_path: Path, japanese: Path) -> None:
    with pytest.raises(TrainingError, match="describes 2 labels; a cross-encoder that scores pairs has 1"):
        CrossEncoder(str(write_japanese_reranker(tmp_path / "two", n_labels=2)))
    with pytest.raises(TrainingError, match="'none' is no folder"):
        CrossEncoder("none")
    backbone = write_japanese_reranker(tmp_path / "backbone")
    tensors = load_file(backbone / "model.safetensors")
    kept = {key: value for key, value in tensors.items() if not key.startswith("classifier")}
    save_file(kept, backbone / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="lacks 2 tensors .* such as classifier.bias"):
        CrossEncoder(str(backbone))


# Other teachers.


def test_a_colbert_scores_as_the_library_does(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.teachers.BLOCK_TEXTS", 3)  # documents of one query in several blocks
    documents = [[text for text in row if text != LONG] for row in DOCUMENTS]
    done: list[int] = []
    found = ColBERTTeacher(str(tiny_model)).score(QUERIES, documents, done.append)
    unpooled = IndexSettings(pooling=PoolingConfig(factor=1))
    retriever = JaColBERTRetriever.from_pretrained(tiny_model, dtype="float32", settings=unpooled)
    for query, own, scores in zip(QUERIES, documents, found, strict=True):
        expected = {hit.text: hit.score for hit in retriever.rerank(query, own)}
        assert scores.tolist() == pytest.approx([expected[text] for text in own], abs=1e-4)
    assert sum(done) == sum(map(len, documents))


def test_bm25_is_that_of_the_library(tmp_path: Path) -> None:
    corpus = {f"p{i}": text for i, text in enumerate([*SENTENCES, LONG, "", SENTENCES[0]])}
    system = BM25([Document(id, text) for id, text in corpus.items()])
    queries = [*QUERIES, SENTENCES[0], "東京 東京 の人口", "縄文土器"]
    teacher = BM25Teacher(corpus)
    found = teacher.score(queries, [list(corpus.values())] * len(queries))
    for query, scores in zip(queries, found, strict=True):
        expected = system.search(query, len(corpus))
        assert scores.tolist() == pytest.approx([expected.get(id, 0.0) for id in corpus], abs=1e-5)
    assert np.count_nonzero(found[-1]) == 0  # no document has that word
    assert np.count_nonzero(found[0]) > 2

    teacher.count(tmp_path / "none.npz")  # counted already
    assert not (tmp_path / "none.npz").exists()
    BM25Teacher(corpus).count(tmp_path / "counts.npz")
    stored = BM25Teacher({})
    stored.count(tmp_path / "counts.npz")
    again = stored.score(queries, [list(corpus.values())] * len(queries))
    assert np.array_equal(np.array(again), np.array(found))


def test_mixing_by_hand() -> None:
    first, second = np.array([1.0, 3.0, 2.0]), np.array([-4.0, -4.0, 0.0])
    assert min_max(first).tolist() == [0.0, 1.0, 0.5]
    assert mix([first, second], [1, 1]).tolist() == [0.0, 0.5, 0.75]
    assert mix([first, second], [3, 1]).tolist() == [0.0, 0.75, 0.625]
    assert mix([first, np.full(3, 7.0)], [1, 1]).tolist() == [0.0, 0.5, 0.25]  # constant: zeros
    assert first.tolist() == [1.0, 3.0, 2.0]


def test_positives_are_bounded_by_hand() -> None:
    scores = np.array([2.0, 12.0, 4.0, 0.0])
    both = {"normalize": False, "bound": None}
    assert score.combine([scores], [2.0], 2, **both).tolist() == [2.0, 12.0, 4.0, 0.0]
    bounded = score.combine([scores], [1.0], 2, normalize=False, bound=0.5)
    assert bounded == pytest.approx([1 / 3 + 0.5, 1.0, 1 / 3, 0.0])
    bounded = score.combine([np.array([0.0, 10.0])], [1.0], 1, normalize=False, bound=0.25)
    assert bounded.tolist() == [1.25, 1.0]
    bounded = score.combine([np.array([0.0, 10.0, 5.0])], [1.0], 1, normalize=True, bound=0.25)
    assert bounded == pytest.approx([1.0, 2 / 3, 0.0])
    for n_positives in (0, 4):  # nothing to bound, or to bound by
        kept = score.combine([scores], [1.0], n_positives, normalize=False, bound=0.5)
        assert kept == pytest.approx(min_max(scores))


@pytest.mark.parametrize("spec", ["bge", "bm25:x", "bm25*0", "bm25*a", "colbert*1.2.3", "cross-encoder:"])
def test_teachers_that_are_none(spec: str) -> None:
    with pytest.raises(TrainingError, match="expected cross-encoder:PATH_OR_ID"):
        score.Wanted.of(spec)


def test_teachers_by_name() -> None:
    assert score.Wanted.of("cross-encoder:BAAI/bge*0.25") == score.Wanted("cross-encoder", "BAAI/bge", 0.25)
    assert score.Wanted.of("colbert") == score.Wanted("colbert", None, 1.0)
    assert score.Wanted.of("bm25*2").name == "bm25"


# The step.


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """Ten queries over SENTENCES, and mined tuples of one positive and three negatives."""
    folder = tmp_path / "beir"
    folder.mkdir()
    n = len(SENTENCES)
    corpus = [{"_id": f"p{i}", "title": "題" if i % 2 else "", "text": t} for i, t in enumerate(SENTENCES)]
    queries = [{"_id": f"q{i}", "text": text[:8]} for i, text in enumerate(SENTENCES)]
    mined = [
        {"query_id": f"q{i}", "document_ids": [f"p{(i + j) % n}" for j in range(4)], "n_positives": 1}
        | ({"source": "湖"} if i == 0 else {})
        for i in range(n)
    ]
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", queries)
    write_lines(folder / "mined.jsonl", mined)
    return folder


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def step(beir: Path, out: Path, *more: object, teachers: Sequence[str] = ("bm25",)) -> None:
    args = ["--tuples", beir / "mined.jsonl", "--queries", beir, "--corpus", beir, "--out", out, "--shard", 3]
    run_step(*args, *(arg for name in teachers for arg in ("--teacher", name)), *more)


def run_step(*args: object) -> None:
    """As `options.run` does, but errors come through."""
    import typer

    app = typer.Typer()
    app.command(name="score")(score.main)
    typer.main.get_command(app).main([str(arg) for arg in args], standalone_mode=False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each call of the BM25 teacher was given."""
    found: list[int] = []
    original = BM25Teacher.score

    def counted(self: BM25Teacher, queries, *args):
        found.append(len(queries))
        return original(self, queries, *args)

    monkeypatch.setattr(BM25Teacher, "score", counted)
    return found


def test_scored_rows(beir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    step(beir, tmp_path / "scored.jsonl")
    rows = read_lines(tmp_path / "scored.jsonl")
    mined = read_lines(beir / "mined.jsonl")
    assert [{key: row[key] for key in row if key != "scores"} for row in rows] == mined
    source = read_data(
        f"tuples={tmp_path / 'scored.jsonl'},queries={beir},corpus={beir}", on_missing="refuse", limit=None
    )
    corpus = {
        row["_id"]: " ".join(filter(None, [row["title"], row["text"]]))
        for row in read_lines(beir / "corpus.jsonl")
    }
    for example in source.tuples:
        expected = BM25Teacher(corpus).score([example.query], [example.documents])[0]
        assert example.scores == pytest.approx(expected, abs=1e-6)
        assert np.argmax(example.scores) == 0
    assert not (tmp_path / "scored.jsonl.shards").exists()
    recipe = json.loads((tmp_path / "scored.jsonl.recipe.json").read_text(encoding="utf-8"))
    assert recipe["teachers"][0]["kind"] == "bm25"
    said = " ".join(capfd.readouterr().err.split())
    assert "10 tuples, 40 pairs" in said
    assert "tuples of constant scores: 0; skipped for missing texts: 0" in said


def test_several_teachers(beir: Path, tmp_path: Path, japanese: Path, tiny_model: Path) -> None:
    names = [f"cross-encoder:{japanese}*2", f"colbert:{tiny_model}", "bm25*0.5"]
    step(beir, tmp_path / "all.jsonl", "--max-length", 64, teachers=names)
    singles = []
    for i, name in enumerate(names):
        step(beir, tmp_path / f"{i}.jsonl", "--max-length", 64, teachers=[name])
        singles.append([row["scores"] for row in read_lines(tmp_path / f"{i}.jsonl")])
    for row, *own in zip(read_lines(tmp_path / "all.jsonl"), *singles, strict=True):
        assert row["scores"] == pytest.approx(mix([np.array(s) for s in own], [2, 1, 0.5]), abs=1e-4)
    step(beir, tmp_path / "normal.jsonl", "--max-length", 64, "--normalize", teachers=names)
    for row in read_lines(tmp_path / "normal.jsonl"):
        assert (min(row["scores"]), max(row["scores"])) == (0.0, 1.0)
    step(beir, tmp_path / "bound.jsonl", "--max-length", 64, "--bound-positives", 0.1, teachers=names[:1])
    assert all(
        row["scores"][0] >= max(row["scores"][1:]) + 0.0999 for row in read_lines(tmp_path / "bound.jsonl")
    )
    assert any(single[0] < max(single) for single in singles[0])


def test_inline_texts(tmp_path: Path) -> None:
    row = {"query": SENTENCES[0][:6], "passages": SENTENCES[:3], "n_positives": 1, "source": "手書き"}
    write_lines(tmp_path / "mined.jsonl", [row])
    write_lines(tmp_path / "corpus.jsonl", [{"_id": str(i), "text": t} for i, t in enumerate(SENTENCES)])
    args = ["--tuples", tmp_path / "mined.jsonl", "--teacher", "bm25", "--out", tmp_path / "scored.jsonl"]
    with pytest.raises(TrainingError, match="bm25 counts a whole corpus, and none is named. Pass --corpus"):
        run_step(*args)
    run_step(*args, "--corpus", tmp_path / "corpus.jsonl")
    (scored,) = read_lines(tmp_path / "scored.jsonl")
    assert {key: scored[key] for key in row} == row
    assert scored["scores"][0] == max(scored["scores"]) > 0


def test_a_shard_that_is_there_is_not_scored_again(
    beir: Path, tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    step(beir, tmp_path / "whole.jsonl")
    assert calls == [3, 3, 3, 1]
    calls.clear()
    out = tmp_path / "scored.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "finish", lambda self, worker: None)  # killed before joining
        step(beir, out)
    folder = tmp_path / "scored.jsonl.shards"
    assert len(list(folder.glob("*.jsonl"))) == 4
    (folder / "00001.jsonl").unlink()
    (folder / "00001.jsonl.999").write_text('{"cut short')
    calls.clear()
    step(beir, out)
    assert calls == [3]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not folder.exists()
    step(beir, out)
    assert calls == [3]  # finished: nothing to do
    with pytest.raises(TrainingError, match="begun with other settings: normalize False -> True"):
        step(beir, out, "--normalize")


def test_a_kill_while_scoring_loses_one_shard(
    beir: Path, tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    step(beir, tmp_path / "whole.jsonl")
    out = tmp_path / "scored.jsonl"
    original = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if Path(target).name == "00002.jsonl":
            raise OSError("no space left")
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(OSError, match="no space"):
            step(beir, out)
    assert not out.exists()
    calls.clear()
    step(beir, out)
    assert calls == [3, 1]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_settings_are_refused(beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.Shards, "finish", lambda self, worker: None)
    out = tmp_path / "scored.jsonl"
    step(beir, out)
    with pytest.raises(TrainingError, match="begun with other settings: normalize False -> True"):
        step(beir, out, "--normalize")
    with pytest.raises(TrainingError, match="begun with other settings: asked .*2.0"):
        step(beir, out, teachers=["bm25*2"])
    rows = read_lines(beir / "mined.jsonl")
    write_lines(beir / "mined.jsonl", rows[::-1])
    with pytest.raises(TrainingError, match="begun with other settings: tuples"):
        step(beir, out)


def test_a_retrained_teacher_is_another_setting(
    beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.Shards, "finish", lambda self, worker: None)
    teacher = [f"cross-encoder:{write_japanese_reranker(tmp_path / 'teacher')}"]
    step(beir, tmp_path / "scored.jsonl", teachers=teacher)
    write_japanese_reranker(tmp_path / "teacher", seed=5)
    with pytest.raises(TrainingError, match="begun with other settings: teachers .*fingerprint"):
        step(beir, tmp_path / "scored.jsonl", teachers=teacher)


def test_missing_texts(beir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = read_lines(beir / "mined.jsonl")
    rows[2]["document_ids"][3] = "p99"
    rows[5]["query_id"] = "q99"
    write_lines(beir / "mined.jsonl", rows)
    with pytest.raises(TrainingError, match="2 of 10 tuples .* the first in row 3: document 'p99'"):
        step(beir, tmp_path / "scored.jsonl")
    step(beir, tmp_path / "scored.jsonl", "--on-missing", "skip")
    kept = [row["query_id"] for row in read_lines(tmp_path / "scored.jsonl")]
    assert kept == ["q0", "q1", "q3", "q4", "q6", "q7", "q8", "q9"]
    assert "skipped for missing texts: 2" in " ".join(capfd.readouterr().err.split())


def test_a_constant_teacher_is_counted_and_kept(
    beir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    queries = read_lines(beir / "queries.jsonl")
    queries[4]["text"] = "縄文土器"  # no document has such a word
    queries[9]["text"] = ""
    write_lines(beir / "queries.jsonl", queries)
    step(beir, tmp_path / "scored.jsonl")
    rows = read_lines(tmp_path / "scored.jsonl")
    assert rows[4]["scores"] == rows[9]["scores"] == [0.0] * 4
    assert len(rows) == 10
    assert "tuples of constant scores: 2 by bm25;" in " ".join(capfd.readouterr().err.split())


def test_a_score_that_is_no_number_stops_with_the_query_named(beir: Path, tmp_path: Path) -> None:
    folder = write_japanese_reranker(tmp_path / "teacher")
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.embeddings.word_embeddings.weight"][JapaneseWordPiece(tiny_vocab()).vocab["牛丼"]] = (
        torch.nan
    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="scores document 4 of query 'q5' with nan"):
        step(beir, tmp_path / "scored.jsonl", teachers=[f"cross-encoder:{folder}"])


def test_limit_and_recipe(beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = f"""
        [paths]
        DATA = "{beir}"
        [[stage]]
        name = "score"
        step = "score"
        tuples = "${{DATA}}/mined.jsonl"
        queries = "${{DATA}}"
        corpus = "${{DATA}}"
        teacher = ["bm25*2", "colbert"]
        out = "{tmp_path / "scored.jsonl"}"
        normalize = true
    """
    (tmp_path / "recipe.toml").write_text(recipe)
    names: list[str] = []

    def found(wanted: score.Wanted, corpus, **settings: object) -> BM25Teacher:
        names.append(wanted.name)
        return BM25Teacher(corpus)

    monkeypatch.setattr(score, "load_teacher", found)
    with pytest.raises(SystemExit) as ended:
        run("score", score.main, ["--config", str(tmp_path / "recipe.toml"), "--limit", "4"])
    assert ended.value.code == 0
    assert names == ["bm25", "colbert"]
    rows = read_lines(tmp_path / "scored.jsonl")
    assert [row["query_id"] for row in rows] == ["q0", "q1", "q2", "q3"]
    assert max(rows[0]["scores"]) == 1.0


def test_a_sample_is_that_of_a_data_spec(beir: Path, tmp_path: Path) -> None:
    step(beir, tmp_path / "scored.jsonl", "--sample", "4", teachers=["bm25"])
    rows = [row["query_id"] for row in read_lines(tmp_path / "scored.jsonl")]
    spec = f"tuples={beir / 'mined.jsonl'},queries={beir},corpus={beir},sample=4"
    tuples = read_data(spec, on_missing="refuse", limit=None).tuples
    assert rows == [tuples.row(i).query for i in range(4)]
    assert rows != [row["query_id"] for row in read_lines(beir / "mined.jsonl")][:4]


# Several processes.


def test_two_ranks_make_the_same_file_as_one(
    beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    step(beir, tmp_path / "whole.jsonl")
    calls.clear()
    out = tmp_path / "scored.jsonl"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    step(beir, out)
    assert not out.exists()
    monkeypatch.setenv("RANK", "1")
    step(beir, out)  # the one that ends last joins them
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(calls) == [1, 3, 3, 3]
    assert not (tmp_path / "scored.jsonl.shards").exists()


def test_parts_by_hand(beir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    step(beir, tmp_path / "whole.jsonl")
    out = tmp_path / "scored.jsonl"
    step(beir, out, "--part", "2/3")
    assert sorted(p.name for p in (tmp_path / "scored.jsonl.shards").glob("*.jsonl")) == ["00001.jsonl"]
    assert "part-2-of-3 is done; 3 of 4 shards are those of others" in " ".join(
        capfd.readouterr().err.split()
    )
    step(beir, out, "--part", "3/3")
    assert not out.exists()
    step(beir, out, "--part", "1/3")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    for wrong in ("0/3", "4/3", "2", "a/b"):
        with pytest.raises(TrainingError, match="expected I/N with I from 1 to N"):
            step(beir, tmp_path / "other.jsonl", "--part", wrong)


def test_a_part_is_not_done_twice_at_once(beir: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.jsonl"
    first = tmp_path / "scored.jsonl.shards" / "part-1-of-1"
    with claim(first), pytest.raises(TrainingError, match="Another process works on"):
        step(beir, out)
    step(beir, out)
    assert len(read_lines(out)) == len(SENTENCES)


# Data specs.


def test_a_data_spec(beir: Path, tmp_path: Path) -> None:
    spec = f"tuples={beir / 'mined.jsonl'},queries={beir},corpus={beir},n-ways=2,limit=5,name=湖"
    source = read_data(spec, on_missing="refuse", limit=None)
    assert (len(source.tuples), source.n_ways, source.tuples.name) == (5, 2, "湖")
    assert source.tuples[1].documents[0] == f"題 {SENTENCES[1]}"
    assert (source.tuples[0].source, source.tuples[1].source) == ("湖", "湖")
    assert len(read_data(spec, on_missing="refuse", limit=3).tuples) == 3
    assert len(read_data(spec, on_missing="refuse", limit=30).tuples) == 5
    inline = write_lines(tmp_path / "inline.jsonl", [{"query": "湖", "passages": SENTENCES[:2]}])
    source = read_data(str(inline), on_missing="refuse", limit=None)
    assert (source.tuples[0].query, source.n_ways, source.tuples.name) == ("湖", None, str(inline))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tuples=a,quries=b", "found 'quries=b'"),
        ("tuples=a,tuples=b", "each once; found 'tuples=b'"),
        ("tuples=a,b", "found 'b'"),
        ("queries=a", "names no tuples"),
        ("tuples=MINED,n-ways=0", "n-ways is '0'; expected a whole number"),
        ("tuples=MINED,limit=x", "limit is 'x'; expected a whole number"),
    ],
)
def test_a_data_spec_that_is_none(beir: Path, spec: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_data(spec.replace("MINED", str(beir / "mined.jsonl")), on_missing="skip", limit=None)


def test_rows_are_stored_as_they_are_read(beir: Path) -> None:
    rows = read_rows(str(beir / "mined.jsonl"))
    tuples = Tuples(rows, name="m", on_missing="skip")
    assert len(tuples) == 0  # no texts are named
    stored = score.stored(rows[0], np.array([1.23456789, -2.0, 0.0, 5.0]))
    assert stored == {**read_lines(beir / "mined.jsonl")[0], "scores": [1.234568, -2.0, 0.0, 5.0]}
