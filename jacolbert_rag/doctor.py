"""What a checkpoint says, what was made of it, and whether it behaves: `jacolbert doctor`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from jacolbert_rag.config import ComputeDtype
from jacolbert_rag.datatypes import FloatArray
from jacolbert_rag.encode.checkpoint import Checkpoint
from jacolbert_rag.encode.encoder import Encoder
from jacolbert_rag.encode.formats import METADATA_FILE, MODULES_CONFIG_FILE
from jacolbert_rag.encode.model import ATTENTION, Dense
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.tokens import Tokenizer
from jacolbert_rag.encode.words import JapaneseWordPiece
from jacolbert_rag.errors import TruncationWarning
from jacolbert_rag.index.maxsim import maxsim

# Question, and the passage that answers it. Widths, scripts and marks are mixed on purpose.
SAMPLES = (
    (
        "有給休暇は入社して何か月後から取れますか",
        "正社員は入社から６か月が過ぎると、１０日の年次有給休暇を取得できる。",
    ),
    (
        "社内ネットワークにつながらないときは？",
        "Wi-Fiに接続できない場合は、まず端末を再起動し、直らなければ情報システム課へ連絡する。",
    ),
    (
        "出張の宿泊費の上限はいくらですか",
        "宿泊費は1泊12,000円(税込)を上限とし、領収書を添えて精算する。",
    ),
    (
        "災害が起きたらどこに集まればいい？",
        "地震や火災のときの集合場所は、本社ビル南側の駐車場である。",
    ),
    (
        "保証期間を過ぎた製品の修理について",
        "ご購入から一年を超えた製品の修理は有償です。見積もりは無料でお出しします。",
    ),
    (
        "味噌はどうやって作られるの",
        "みそは、蒸した大豆に麹と塩を混ぜ、数か月寝かせて発酵させた調味料だ。",
    ),
    (
        "ｻｰﾊﾞｰのバックアップはいつ取られますか",
        "サーバーのデータは毎日午前2時に自動で複製され、30日間保管される。",
    ),
    (
        "日本で一番長い川",
        "信濃川は長野県と新潟県を流れ、全長367kmで国内最長の河川として知られる。",
    ),
)

# Bounds of the self-test. Padding changes the order of sums only; bfloat16 has eight bits of fraction.
BATCH_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}
MEDIAN_COSINE, LOW_COSINE = 0.999, 0.99
# More unknown tokens than this in everyday Japanese, and the vocabulary is not made for it.
MAX_UNKNOWN = 0.05
SPEED_SECONDS = 2.0


@dataclass(frozen=True)
class Setting:
    """One resolved setting, and who said so."""

    name: str
    value: Any
    source: str


@dataclass(frozen=True)
class Check:
    """One part of the self-test."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """All that is known of a checkpoint on this machine.

    Attributes:
        checkpoint: name, folder, format, backbone, sizes and fingerprint.
        settings: every setting of the encoder with its source.
        tokens: special tokens, markers and skiplist, with their ids.
        compute: device, dtype, attention kernel, threads.
        checks: the self-test.
        speed: documents, tokens and tokenised tokens per second, and milliseconds a query.
        warnings: what the user should know or do.
    """

    checkpoint: dict[str, Any]
    settings: list[Setting]
    tokens: dict[str, Any]
    compute: dict[str, Any]
    checks: list[Check]
    speed: dict[str, float]
    warnings: list[str]

    @property
    def is_healthy(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"healthy": self.is_healthy}


def examine(
    checkpoint: Checkpoint,
    *,
    device: str | None = None,
    dtype: ComputeDtype = "auto",
    seconds: float = SPEED_SECONDS,
) -> Report:
    """Look at a loaded checkpoint, and try it.

    Args:
        checkpoint: from `checkpoint.load`.
        device: see `Encoder`.
        dtype: see `Encoder`.
        seconds: how long to measure speed.
    """
    encoder = Encoder(checkpoint, device=device, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        checks = _self_test(encoder)
        speed = _speed(encoder, seconds)
    return Report(
        checkpoint=_describe(checkpoint),
        settings=[
            Setting(name, _shown(value), checkpoint.sources[name])
            for name, value in checkpoint.config.to_json().items()
        ],
        tokens=_tokens(checkpoint.tokenizer),
        compute={
            "device": str(encoder.device),
            "device_name": _device_name(encoder.device),
            "dtype": str(encoder.dtype).removeprefix("torch."),
            "attention": f"{ATTENTION}, key mask for queries",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        checks=checks,
        speed=speed,
        warnings=_warnings(encoder, checks),
    )


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.model.config
    layers = [
        f"{layer.linear.in_features}->{layer.linear.out_features}"
        for layer in checkpoint.model.projection
        if isinstance(layer, Dense)
    ]
    return {
        "name": checkpoint.name,
        "folder": str(checkpoint.folder),
        "format": checkpoint.format,
        "backbone": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "projection": layers,
        "parameters": sum(p.numel() for p in checkpoint.model.parameters()),
        "tokenizer": checkpoint.tokenizer.subwords.name,
        "tokenizer_folder": str(checkpoint.tokenizer_folder),
        "vocabulary": len(checkpoint.tokenizer.vocab),
        "fingerprint": checkpoint.fingerprint,
    }


def _tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    names = {i: token for token, i in tokenizer.vocab.items()}
    special, config = tokenizer.special, tokenizer.config

    def named(ids: tuple[int, ...]) -> list[dict[str, Any]]:
        return [{"token": names.get(i, "?"), "id": i} for i in ids]

    return {
        "prefix": named(special.prefix),
        "suffix": named(special.suffix),
        "mask": named((special.mask,)),
        "padding": named((special.pad,)),
        "unknown": named(() if special.unk is None else (special.unk,)),
        "query_marker": {"token": config.query_marker, "id": tokenizer.query_marker_id},
        "document_marker": {"token": config.document_marker, "id": tokenizer.document_marker_id},
        "skipped_ids": sorted(tokenizer.skiplist()),
        "skiplist_not_in_vocabulary": list(tokenizer.skiplist_collisions()),
    }


def _self_test(encoder: Encoder) -> list[Check]:
    checks = [
        _check_layout(encoder),
        _check_masks(encoder),
        _check_batches(encoder),
        _check_offsets(encoder.tokenizer),
    ]
    if isinstance(encoder.tokenizer.subwords, JapaneseWordPiece):
        checks.append(_check_reference(encoder))
    if encoder.dtype != torch.float32:
        checks.append(_check_precision(encoder))
    return checks


def _check_layout(encoder: Encoder) -> Check:
    """Markers behind the first token, rows of unit length."""
    tokenizer = encoder.tokenizer
    query, document = tokenizer.queries([SAMPLES[0][0]]), tokenizer.documents([SAMPLES[0][1]])
    passed = all(
        marker is None or int(batch.ids[1]) == marker
        for batch, marker in ((query, tokenizer.query_marker_id), (document, tokenizer.document_marker_id))
    )
    norms = np.linalg.norm(encoder.queries([SAMPLES[0][0]]).flat, axis=1)
    passed &= bool(np.abs(norms - 1).max() < 1e-3)
    n = int(query.n_attended[0])
    return Check(
        "markers and unit rows",
        passed,
        f"a question of {n} tokens is read as {len(query.ids)}; row lengths {norms.min():.4f} to "
        f"{norms.max():.4f}",
    )


def _check_masks(encoder: Encoder) -> Check:
    """A query's own embeddings do not depend on its [MASK]s, unless the checkpoint wants them to."""
    if encoder.checkpoint.config.attend_to_mask_tokens:
        return Check("[MASK]s are attended to", True, "as the checkpoint asks")
    name = "[MASK]s are not attended to"
    batch = encoder.tokenizer.queries([SAMPLES[0][0]])
    n = int(batch.n_attended[0])
    if n == len(batch.ids):
        return Check(name, True, "this rule appends none")
    ids = torch.from_numpy(batch.ids[None].astype(np.int64)).to(encoder.device)
    attended = torch.arange(len(batch.ids))[None] < n
    with torch.inference_mode():
        padded = encoder.model(ids, attended.to(encoder.device))[0, :n]
        bare = encoder.model(ids[:, :n], None)[0]
    difference = float((padded - bare).abs().max())
    passed = difference <= BATCH_TOLERANCE[encoder.dtype]
    return Check(name, passed, f"own tokens differ by {difference:.1e} with and without them")


def _check_batches(encoder: Encoder) -> Check:
    """A text's embeddings do not depend on what else is in its batch."""
    texts = [passage for _, passage in SAMPLES]
    together = encoder.documents([*texts, "".join(texts)])
    difference = max(
        float(np.abs(together[i] - encoder.documents([text]).flat).max()) for i, text in enumerate(texts)
    )
    passed = difference <= BATCH_TOLERANCE[encoder.dtype]
    return Check("a text does not depend on its batch", passed, f"largest difference {difference:.1e}")


def _check_offsets(tokenizer: Tokenizer) -> Check:
    """Every token of a raw text lies over characters of it."""
    bad = 0
    for _, passage in SAMPLES:
        ids, spans = tokenizer.subwords.ids_and_spans(passage)
        bad += ids != tokenizer.subwords.ids(passage)
        bad += sum(not 0 <= start <= end <= len(passage) for start, end in spans)
    return Check(
        "character offsets", bad == 0, "every token lies over its characters" if not bad else f"{bad} do not"
    )


def _check_reference(encoder: Encoder) -> Check:
    """Our Japanese tokenizer agrees with transformers'."""
    from transformers import BertJapaneseTokenizer

    reference = BertJapaneseTokenizer.from_pretrained(
        str(encoder.checkpoint.tokenizer_folder), local_files_only=True
    )
    texts = [clean(text) for pair in SAMPLES for text in pair]
    expected = reference(texts, add_special_tokens=False)["input_ids"]
    same = sum(encoder.tokenizer.word_ids(t) == ids for t, ids in zip(texts, expected, strict=True))
    return Check(
        "ids of BertJapaneseTokenizer", same == len(texts), f"{same} of {len(texts)} texts are the same"
    )


def _check_precision(encoder: Encoder) -> Check:
    """What the narrow dtype costs against float32."""
    exact = Encoder(encoder.checkpoint, device=str(encoder.device), dtype="float32")
    texts = [passage for _, passage in SAMPLES]
    cosines = (encoder.documents(texts).flat * exact.documents(texts).flat).sum(axis=1)
    median, low = float(np.median(cosines)), float(np.percentile(cosines, 1))
    name = f"{str(encoder.dtype).removeprefix('torch.')} against float32"
    return Check(
        name,
        median >= MEDIAN_COSINE and low >= LOW_COSINE,
        f"cosine of tokens: median {median:.5f}, first percentile {low:.5f}",
    )


def _speed(encoder: Encoder, seconds: float) -> dict[str, float]:
    """Rates on passages of about the length that a Japanese paragraph has."""
    texts = ["".join(p for _, p in SAMPLES[i % 4 : i % 4 + 4]) for i in range(32)]
    question = [SAMPLES[0][0]]
    n_tokens = len(encoder.tokenizer.documents(texts).ids)
    tokenizing = _best_seconds(lambda: encoder.tokenizer.documents(texts), seconds / 4)
    encoding = _best_seconds(lambda: encoder.documents(texts), seconds)
    asking = _best_seconds(lambda: encoder.queries(question), seconds / 4)
    return {
        "documents_per_s": len(texts) / encoding,
        "tokens_per_s": n_tokens / encoding,
        "tokens_per_document": n_tokens / len(texts),
        "tokenized_tokens_per_s": n_tokens / tokenizing,
        "query_ms": 1000 * asking,
    }


def _best_seconds(work: Callable[[], object], seconds: float) -> float:
    """The fastest of several runs: what else a machine does only ever adds to them."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - started)
        if now >= end:
            return best


def _warnings(encoder: Encoder, checks: list[Check]) -> list[str]:
    """What a user should know or do."""
    found = []
    checkpoint, tokenizer = encoder.checkpoint, encoder.tokenizer
    stating = METADATA_FILE if checkpoint.format == "HF_ColBERT" else MODULES_CONFIG_FILE
    settings = ("document_length", "query_marker", "document_marker")
    if guessed := [name for name in settings if checkpoint.sources[name] in ("default", "PyLate's default")]:
        found.append(
            f"The checkpoint does not say its {', '.join(guessed)} ({stating} is missing or silent), so "
            "defaults were taken. If it was trained with others, pass them: tokenizer= names a checkpoint "
            "that has the file, or use encoder={...}."
        )
    if symbols := tokenizer.skiplist_collisions():
        found.append(
            f"The skiplist's {' '.join(symbols)} are not in the vocabulary. colbert-ai and PyLate would skip "
            "every unknown token; here they are kept. For an index as theirs, pass "
            "encoder={'skip_unknown': True}."
        )
    ids = [i for pair in SAMPLES for text in pair for i in tokenizer.word_ids(text)]
    if tokenizer.special.unk is not None and ids.count(tokenizer.special.unk) > MAX_UNKNOWN * len(ids):
        share = ids.count(tokenizer.special.unk) / len(ids)
        found.append(
            f"{share:.0%} of the tokens of everyday Japanese are unknown to the vocabulary: this checkpoint "
            "is not made for Japanese. Use a Japanese one, such as answerdotai/JaColBERTv2.5 or the bundled "
            "one."
        )
    elif (n_found := _n_answered(encoder)) <= len(SAMPLES) // 2:
        found.append(
            f"Only {n_found} of {len(SAMPLES)} everyday questions find their passage among {len(SAMPLES)}: "
            "the weights are untrained, or not for Japanese, or do not go with these markers and this "
            "tokenizer."
        )
    if checkpoint.config.query_length != "paper" and checkpoint.sources["query_length"] == "caller":
        found.append(
            f"Queries are padded by {checkpoint.config.query_length!r}. The rule that was published for "
            "JaColBERTv2.5 is 'paper'."
        )
    found += [f"The check {check.name!r} failed: {check.detail}." for check in checks if not check.passed]
    return found


def _n_answered(encoder: Encoder) -> int:
    """How many of the sample questions find their passage first."""
    passages = encoder.documents([passage for _, passage in SAMPLES])
    questions = encoder.queries([question for question, _ in SAMPLES])
    scores: list[FloatArray] = [maxsim(question, passages) for question in questions]
    return sum(int(np.argmax(row)) == i for i, row in enumerate(scores))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        name = str(capabilities.get("cpu_name", "")) or "CPU"
        fast = [
            label
            for key, label in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16"))
            if capabilities.get(key)
        ]
        return f"{name} ({', '.join(fast) or 'no bfloat16 instructions'})"
    return str(device)


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
