"""A tiny real ColBERT, and the folder of real data where it lies beside the checkout."""

from __future__ import annotations

import os
import random
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig

from jacolbert_rag import EncoderConfig, JaColBERTRetriever
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.model import ColBERT, Dense, empty_backbone
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.tokens import Tokenizer
from jacolbert_rag.encode.words import CLS, MASK, PAD, SEP, UNK, JapaneseWordPiece, WordSegmenter

SENTENCES = [
    "琵琶湖は滋賀県にある日本で最も大きな湖である。",
    "富士山は静岡県と山梨県にまたがる、標高3,776メートルの火山だ。",
    "東京は日本の首都で、人口は約1,400万人に達する。",
    "京都の金閣寺は、足利義満が建てた山荘を前身とする。",
    "北海道では、冬になると気温が氷点下20度を下回る町がある。",
    "サーバーの再起動は、情報システム部の担当者が行う。",
    "時々、カフェでコーヒーを飲みながら本を読む。",
    "この記事は「JaColBERT」について(簡単に)説明します!",
    "𠮷野家で牛丼を食べた。",
    "経費の精算は翌月5日までに申請してください。",
]


def fuzz_texts(n: int, *, seed: int = 7) -> list[str]:
    """Random strings of what stands in Japanese documents, and of what should not."""
    rng = random.Random(seed)
    pieces = [
        "東京", "ｻｰﾊﾞｰ", "サーバ", "々", "ー", "𠮷", "髙", "㌔", "①", "½", "か゛", "か\u3099", "\u3000", " ",
        "\n", "\t", "\r\n", "！？", "。", "、", "「", "」", "ABC", "ｘｙｚ", "3,776", "🙂", "👨‍👩‍👧", "é",
        "e\u0301",
        "한국", "\u200b", "\ufeff", "…", "\x07", "\0", "\ud800", "\x85", "\u2028", "\xa0",
        *string.punctuation,
    ]  # fmt: skip
    return ["".join(rng.choices([*pieces, *"".join(SENTENCES)], k=rng.randint(1, 40))) for _ in range(n)]


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def import_error(code: str, *, missing: str) -> str:
    """Class and words of the ImportError that code raises in a fresh interpreter without a module."""
    return run_python(f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
try:
    exec({code!r})
except ImportError as error:
    print(type(error).__name__, error)
""")


def tiny_vocab() -> list[str]:
    """Special tokens, ASCII punctuation, the words of SENTENCES, and their characters as pieces."""
    segmenter = WordSegmenter()
    words = [word for sentence in SENTENCES for word in segmenter.words(clean(sentence))]
    chars = sorted({char for word in words for char in word} | set(string.ascii_letters + string.digits))
    tokens = [PAD, UNK, CLS, SEP, MASK, *(f"[unused{i}]" for i in range(10)), *string.punctuation]
    tokens += [*words, *chars, *("##" + char for char in chars)]
    return list(dict.fromkeys(tokens))


def write_tiny_checkpoint(folder: Path, *, seed: int = 0, document_length: int = 64) -> Path:
    """A two-layer ColBERT of random weights, written as a real checkpoint."""
    torch.manual_seed(seed)
    vocab = tiny_vocab()
    backbone = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.5,  # large weights, so that random embeddings tell texts apart
    )
    config = EncoderConfig(dim=16, document_length=document_length, max_positions=128)
    model = ColBERT(empty_backbone(backbone), [Dense(backbone.hidden_size, config.dim)])
    checkpoint.save(folder, model, Tokenizer(JapaneseWordPiece(vocab), config), dtype=torch.float32)
    return folder


def write_fast_tokenizer(folder: Path) -> Path:
    """A byte-level BPE tokenizer over SENTENCES, as ModernBERT has, with both markers."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [PAD, UNK, CLS, SEP, MASK, "[unused0]", "[unused1]"]
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=specials, initial_alphabet=alphabet)
    backend.train_from_iterator(SENTENCES, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", special_tokens=[(CLS, specials.index(CLS)), (SEP, specials.index(SEP))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, unk_token=UNK, cls_token=CLS, sep_token=SEP, mask_token=MASK
    ).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny checkpoint, shared: never write to it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def retriever(tiny_model: Path) -> JaColBERTRetriever:
    """An empty index with the tiny checkpoint."""
    return JaColBERTRetriever.from_pretrained(tiny_model)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a connection fails the test."""
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("opened a connection"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real Japanese retrieval sets; skips where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def demo_retriever(tmp_path_factory: pytest.TempPathFactory) -> JaColBERTRetriever:
    """The demo corpus by the bundled model, calibrated, in a folder; shared: never write to it."""
    from examples import demo

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "INDEX", tmp_path_factory.mktemp("demo") / "index")
        return demo.build_demo()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium")
    with sync.sync_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox.
        args = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=found, args=args)
        yield opened
        opened.close()
