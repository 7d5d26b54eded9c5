from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from jacolbert_rag import InvalidInputError, TruncationWarning
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode import encoder as module
from jacolbert_rag.encode.encoder import Encoder, batches_by_length
from jacolbert_rag.encode.model import dtype_of, has_fast_bfloat16
from jacolbert_rag.errors import WorkerError
from tests.conftest import SENTENCES


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(checkpoint.load(tiny_model), device="cpu", dtype="float32")


def test_shapes_and_unit_rows(encoder: Encoder) -> None:
    queries = encoder.queries(["湖はどこ？", "富士山の高さは？"])
    assert queries.flat.dtype == np.float32
    assert list(queries.lengths) == [32, 32]
    assert np.linalg.norm(queries.flat, axis=1) == pytest.approx(1, abs=1e-5)


def test_equals_transformers_on_one_text(encoder: Encoder, tiny_model: Path) -> None:
    from safetensors.torch import load_file
    from transformers import BertModel

    bert = BertModel.from_pretrained(tiny_model, add_pooling_layer=False, attn_implementation="eager").eval()
    weights = load_file(tiny_model / "model.safetensors")
    bert.load_state_dict({k.removeprefix("bert."): v for k, v in weights.items() if k.startswith("bert.")})
    batch = encoder.tokenizer.queries([SENTENCES[0]])
    attended = torch.arange(len(batch.ids))[None] < int(batch.n_attended[0])
    with torch.inference_mode():
        hidden = bert(
            torch.from_numpy(batch.ids)[None].long(), attention_mask=attended.long()
        ).last_hidden_state
        expected = torch.nn.functional.normalize(hidden[0] @ weights["linear.weight"].T, dim=-1)
    assert encoder.queries([SENTENCES[0]]).flat == pytest.approx(expected.numpy(), abs=1e-5)


def test_masks_are_not_attended_to(encoder: Encoder, tiny_model: Path) -> None:
    # The real tokens' embeddings do not change with the number of [MASK]s behind them.
    query = "琵琶湖はどこにありますか"
    n = int(encoder.tokenizer.queries([query]).n_attended[0])
    longer = checkpoint.load(tiny_model, overrides={"query_length": "fixed(64)"})
    wider = Encoder(longer, device="cpu", dtype="float32").queries([query])
    assert wider.flat[:n] == pytest.approx(encoder.queries([query]).flat[:n], abs=1e-5)
    # Where they are attended to, it does.
    attending = checkpoint.load(
        tiny_model, overrides={"query_length": "fixed(64)", "attend_to_mask_tokens": True}
    )
    other = Encoder(attending, device="cpu", dtype="float32").queries([query])
    assert np.abs(other.flat[:n] - wider.flat[:n]).max() > 1e-3


def test_a_text_does_not_depend_on_its_batch(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*SENTENCES, "湖", SENTENCES[0] * 3]
    together = encoder.documents(texts)
    alone = [encoder.documents([text]).flat for text in texts]
    for i, expected in enumerate(alone):
        assert together[i] == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(encoder, "tokens_per_batch", 40)
    assert encoder.documents(texts).flat == pytest.approx(together.flat, abs=1e-5)
    queries = ["湖", SENTENCES[0] * 3, "富士山の高さは？"]
    together = encoder.queries(queries)
    for i, query in enumerate(queries):
        assert together[i] == pytest.approx(encoder.queries([query]).flat, abs=1e-5)


def test_punctuation_is_dropped_from_documents_only(encoder: Encoder) -> None:
    text = "富士山は、高い!(本当に?)"
    skipped = encoder.tokenizer.skiplist()
    batch = encoder.tokenizer.documents([text])
    n_skipped = sum(int(i) in skipped for i in batch.ids)
    assert n_skipped == 4
    assert encoder.documents([text]).lengths[0] == len(batch.ids) - n_skipped
    assert encoder.queries([text]).lengths[0] == encoder.tokenizer.queries([text]).lengths[0]


def test_long_documents_are_counted_once(encoder: Encoder) -> None:
    with pytest.warns(
        TruncationWarning, match=r"2 of 3 documents are longer than the 64 tokens.*split=True"
    ) as seen:
        embedded = encoder.documents(["琵琶湖" * 100, "湖", "富士山。" * 100])
    assert len(seen) == 1
    assert embedded.lengths[0] <= 64


def test_long_query_is_never_cut_silently(encoder: Encoder) -> None:
    with pytest.warns(
        TruncationWarning, match=r"query 0 \(.*3,010 characters\) is longer than the 120 tokens"
    ):
        assert encoder.queries(["富士山はどこ。" * 430]).lengths[0] == 128


@pytest.mark.parametrize("text", ["", " ", "\u3000\n\t", "\0\0", "\ud800", "\x1b\x07"])
def test_text_without_text_is_refused(encoder: Encoder, text: str) -> None:
    with pytest.raises(InvalidInputError, match="query 0 has no text"):
        encoder.queries([text])
    with pytest.raises(InvalidInputError, match="document 1 has no text"):
        encoder.documents(["湖", text])


def test_other_types_are_refused(encoder: Encoder) -> None:
    with pytest.raises(InvalidInputError, match="query 0 is a NoneType; expected a str"):
        encoder.queries([None])  # type: ignore[list-item]


def test_control_characters_and_surrogates_change_nothing(encoder: Encoder) -> None:
    assert encoder.queries(["東\0京\ud800は\x07首都"]).flat == pytest.approx(
        encoder.queries(["東京は首都"]).flat, abs=0
    )


def test_nothing_gives_nothing(encoder: Encoder) -> None:
    for embedded in (encoder.queries([]), encoder.documents([])):
        assert len(embedded) == 0
        assert embedded.flat.shape == (0, 16)
    assert list(encoder.stream([])) == []


def test_progress_counts_every_text(encoder: Encoder) -> None:
    done: list[int] = []
    encoder.documents(SENTENCES * 3, on_progress=done.append)
    assert sum(done) == 30


def test_batches_are_sorted_and_within_the_budget() -> None:
    lengths = np.array([5, 60, 7, 33, 100, 1])
    batches = list(batches_by_length(lengths, 64))
    assert sorted(np.concatenate(batches).tolist()) == list(range(6))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= 64 for b in batches)
    assert [lengths[b].max() for b in batches] == sorted((lengths[b].max() for b in batches), reverse=True)


# Streams.


def test_stream_gives_blocks_in_order(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_TEXTS", 4)
    expected = encoder.documents(SENTENCES)
    blocks = list(encoder.stream(iter(SENTENCES)))
    assert [len(block) for block in blocks] == [4, 4, 2]
    assert np.concatenate([block.flat for block in blocks]) == pytest.approx(expected.flat, abs=1e-5)


def test_stream_reads_no_further_than_it_must(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_TEXTS", 2)
    taken = []

    def texts() -> Iterator[str]:
        for text in SENTENCES:
            taken.append(text)
            yield text

    stream = encoder.stream(texts())
    next(stream)
    assert len(taken) == 2
    stream.close()


def test_stream_warns_once_at_its_end(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_TEXTS", 1)
    with pytest.warns(TruncationWarning, match="2 of 3 documents") as seen:
        list(encoder.stream(["琵琶湖" * 100, "湖", "富士山。" * 100]))
    assert len(seen) == 1


def test_stream_numbers_the_document_without_text(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_TEXTS", 2)
    stream = encoder.stream([*SENTENCES[:3], "", "湖"])
    assert len(next(stream)) == 2
    with pytest.raises(InvalidInputError, match="document 3 has no text"):
        next(stream)
    with pytest.raises(InvalidInputError, match="texts is one str"):
        next(encoder.stream("湖"))


def test_progress_shows_documents_and_their_rate(
    encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    list(encoder.stream(SENTENCES, progress=True, total=10))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "10/10" in shown.err
    assert "/s" in shown.err


# Other processes.


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_TEXTS", 3)


@pytest.mark.usefixtures("small_blocks")
def test_processes_that_tokenise_change_nothing(encoder: Encoder) -> None:
    beside = Encoder(encoder.checkpoint, device="cpu", dtype="float32", tokenizer_processes=2)
    texts = [*SENTENCES, "前\ud800後\0", "琵琶湖" * 100]
    with pytest.warns(TruncationWarning, match="1 of 12"):
        blocks = list(beside.stream(texts))
    with pytest.warns(TruncationWarning):
        expected = encoder.documents(texts)
    assert [len(block) for block in blocks] == [3, 3, 3, 3]
    assert np.concatenate([block.flat for block in blocks]) == pytest.approx(expected.flat, abs=1e-5)
    assert len(list(beside.stream(SENTENCES[:2]))) == 1  # one block starts no process
    assert list(beside.stream([])) == []


@pytest.mark.usefixtures("small_blocks")
def test_several_devices_change_nothing(tiny_model: Path) -> None:
    # The caller's settings reach the other processes: they cut at 20 tokens, too.
    loaded = checkpoint.load(tiny_model, overrides={"document_length": 20, "marker_mode": "dot"})
    one = Encoder(loaded, device="cpu", dtype="float32")
    two = Encoder(loaded, device=["cpu", "cpu"], dtype="float32")
    with pytest.warns(TruncationWarning):
        expected = one.documents(SENTENCES)
    before = set(children())
    with pytest.warns(TruncationWarning, match=r"\d of 10"):
        embedded = two.documents(SENTENCES)
    assert len(set(children()) - before) == 2
    assert embedded.flat == pytest.approx(expected.flat, abs=1e-5)
    assert list(embedded.offsets) == list(expected.offsets)
    with pytest.warns(TruncationWarning):
        assert all(block.flat.flags.writeable for block in two.stream(SENTENCES))
    two.close()


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "mps:3", ["cpu", "gpu"]])
def test_device_that_is_not_there_is_told_of(encoder: Encoder, device: str | list[str]) -> None:
    with pytest.raises(InvalidInputError, match="this machine has cpu"):
        Encoder(encoder.checkpoint, device=device)


def children() -> list[str]:
    """Processes of ours."""
    import os

    path = Path(f"/proc/self/task/{os.getpid()}/children")
    if not path.exists():
        pytest.skip("no /proc here")
    return path.read_text().split()


@pytest.mark.usefixtures("small_blocks")
def test_processes_stay_until_the_encoder_is_closed(encoder: Encoder) -> None:
    before = set(children())
    beside = Encoder(encoder.checkpoint, device="cpu", dtype="float32", tokenizer_processes=2)
    stream = beside.stream(SENTENCES * 20)
    next(stream)
    started = set(children()) - before
    assert len(started) == 2
    stream.close()  # given up
    expected = encoder.documents(SENTENCES).flat
    blocks = list(beside.stream(SENTENCES))  # the same processes, and nothing of the stream before
    assert np.concatenate([block.flat for block in blocks]) == pytest.approx(expected, abs=1e-5)
    assert set(children()) - before == started
    beside.close()
    assert not set(children()) & started
    list(beside.stream(SENTENCES))
    again = set(children()) - before
    assert len(again) == 2
    del beside, stream
    assert not set(children()) & again  # a forgotten encoder ends them as well


@pytest.mark.usefixtures("small_blocks")
def test_process_that_fails_says_why(encoder: Encoder, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    beside = Encoder(checkpoint.load(folder), device="cpu", dtype="float32", tokenizer_processes=1)
    shutil.rmtree(folder)
    with pytest.raises(WorkerError, match="process that tokenises failed: CheckpointError"):
        list(beside.stream(SENTENCES))


@pytest.mark.usefixtures("small_blocks")
def test_process_that_is_killed_is_told_of(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from jacolbert_rag.encode.workers import Worker

    start = Worker.tokenizing

    def start_and_kill(*arguments: object) -> Worker:
        worker = start(*arguments)  # type: ignore[arg-type]
        worker._process.kill()
        return worker

    monkeypatch.setattr(Worker, "tokenizing", start_and_kill)
    beside = Encoder(encoder.checkpoint, device="cpu", dtype="float32", tokenizer_processes=1)
    with pytest.raises(WorkerError, match="ended with exit status -9.*out of memory"):
        list(beside.stream(SENTENCES))
    monkeypatch.setattr(Worker, "tokenizing", start)
    assert len(list(beside.stream(SENTENCES))) == 4  # begins anew


@pytest.mark.usefixtures("small_blocks")
def test_files_in_the_working_directory_are_not_run(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a stray file was imported')")
    monkeypatch.chdir(tmp_path)
    beside = Encoder(encoder.checkpoint, device="cpu", dtype="float32", tokenizer_processes=1)
    assert len(list(beside.stream(SENTENCES))) == 4


@pytest.mark.usefixtures("small_blocks")
def test_interrupt_of_the_terminal_is_the_parents(encoder: Encoder) -> None:
    import os
    import signal

    before = set(children())
    beside = Encoder(encoder.checkpoint, device="cpu", dtype="float32", tokenizer_processes=1)
    list(beside.stream(SENTENCES))
    (worker,) = set(children()) - before
    os.kill(int(worker), signal.SIGINT)
    assert len(list(beside.stream(SENTENCES))) == 4


# Memory, dtype, device.


def test_batch_that_does_not_fit_is_halved(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = encoder.documents(SENTENCES).flat
    small = Encoder(encoder.checkpoint, device="cpu", dtype="float32")
    forward, sizes = small._forward_model, []

    def with_little_memory(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if ids.numel() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        sizes.append(ids.numel())
        return forward(ids, mask)

    monkeypatch.setattr(small, "_forward_model", with_little_memory)
    assert small.documents(SENTENCES).flat == pytest.approx(expected, abs=1e-5)
    assert max(sizes) <= 100
    assert 50 <= small.tokens_per_batch < encoder.tokens_per_batch
    assert "Out of memory on cpu: going on with batches of" in caplog.text


def test_budget_is_halved_once_for_all_batches_that_are_left(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = Encoder(encoder.checkpoint, device="cpu", dtype="float32")
    small.tokens_per_batch = 1_024
    forward, sizes = small._forward_model, []

    def with_little_memory(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        sizes.append(ids.numel())
        if ids.numel() > 512:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(ids, mask)

    monkeypatch.setattr(small, "_forward_model", with_little_memory)
    texts = [SENTENCES[0]] * 400
    assert small.documents(texts).flat == pytest.approx(encoder.documents(texts).flat, abs=1e-5)
    assert sum(size > 512 for size in sizes) == 1
    assert small.tokens_per_batch > 400
    assert caplog.text.count("Out of memory") == 1


def test_several_texts_or_none_but_never_one_str(encoder: Encoder) -> None:
    expected = encoder.queries(SENTENCES[:2]).flat
    assert encoder.queries(text for text in SENTENCES[:2]).flat == pytest.approx(expected, abs=1e-5)
    assert len(encoder.documents(text for text in SENTENCES)) == len(SENTENCES)
    for method in (encoder.queries, encoder.documents):
        with pytest.raises(InvalidInputError, match="texts is one str"):
            method("湖")


def test_text_that_does_not_fit_alone_is_an_error(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder, "_forward_model", without_memory)
    with pytest.raises(torch.OutOfMemoryError):
        encoder.documents(SENTENCES)


def test_other_errors_are_not_taken_for_memory(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        calls.append(1)
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(encoder, "_forward_model", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        encoder.documents(SENTENCES)
    assert len(calls) == 1


def test_auto_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert dtype_of("auto", cpu) == (torch.bfloat16 if has_fast_bfloat16() else torch.float32)
    assert dtype_of("float32", cpu) == torch.float32
    assert dtype_of("auto", torch.device("mps")) == torch.float32
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, s=supported: s)
        assert dtype_of("auto", cuda) == dtype


def test_bfloat16_is_near_float32(encoder: Encoder) -> None:
    half = Encoder(encoder.checkpoint, device="cpu", dtype="bfloat16")
    embedded = half.documents(SENTENCES)
    assert embedded.flat.dtype == np.float32
    assert np.linalg.norm(embedded.flat, axis=1) == pytest.approx(1, abs=1e-5)
    cosines = (embedded.flat * encoder.documents(SENTENCES).flat).sum(axis=1)
    assert np.median(cosines) > 0.999


@pytest.mark.parametrize("name", ["fp16", "int8", "float64"])
def test_unknown_dtype_is_refused(encoder: Encoder, name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"dtype is '{name}'; expected auto, float32"):
        Encoder(encoder.checkpoint, device="cpu", dtype=name)  # type: ignore[arg-type]


def test_no_device_is_refused(encoder: Encoder) -> None:
    with pytest.raises(InvalidInputError, match="device is an empty list"):
        Encoder(encoder.checkpoint, device=())


@pytest.mark.slow
def test_compiled_network_is_the_same(encoder: Encoder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its parts
        compiled = Encoder(encoder.checkpoint, device="cpu", dtype="float32", compile=True)
        for texts in (SENTENCES[:3], SENTENCES[3:], SENTENCES):
            assert compiled.documents(texts).flat == pytest.approx(encoder.documents(texts).flat, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_gpu_agrees_with_the_cpu(encoder: Encoder) -> None:
    on_gpu = Encoder(encoder.checkpoint, device="cuda", dtype="float32")
    assert on_gpu.documents(SENTENCES).flat == pytest.approx(encoder.documents(SENTENCES).flat, abs=1e-3)
    assert on_gpu.queries(SENTENCES).flat == pytest.approx(encoder.queries(SENTENCES).flat, abs=1e-3)
