"""Masked-language-model pre-training of a small BERT from random weights, vocabulary included.

    python -m training.pretrain --text DIR --out runs/mini/pretrain

Reads text files (one paragraph a line, .txt, .txt.gz or .txt.xz), writes vocab.txt, config.json and
model.safetensors. Started again, it goes on where it was; finished, it does nothing.
"""

from __future__ import annotations

import gzip
import json
import lzma
import math
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, TextIO

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.files import CONFIG_FILE, WEIGHTS_FILE
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.words import CLS, MASK, PAD, SEP, UNK, JapaneseWordPiece, WordSegmenter
from training.embeddings import cooccurrence_embeddings, sinusoidal_positions
from training.state import load_state, save_state

# The first ids of cl-tohoku/bert-base-japanese-v3, whose [unused0] and [unused1] are JaColBERT's markers.
SPECIAL_TOKENS = [PAD, UNK, CLS, SEP, MASK, *(f"[unused{i}]" for i in range(10))]
ALPHABET = 4_000  # characters, the commonest; the vocabulary has no others
EMBEDDING_NORM = 0.5  # of a token and of a position; BERT's random rows of 256 have 0.32
UNMASKED_SHARE = 0.1  # of the positions to predict, left as they are, so that real tokens are read too

console = Console(stderr=True)


def main(
    text: Annotated[Path, typer.Option(help="folder of text files, one paragraph a line")],
    out: Annotated[Path, typer.Option(help="folder of the pre-trained backbone")],
    weights: Annotated[
        str, typer.Option(help="share of each source to use, PREFIX=SHARE,...; 1 where none is named")
    ] = "",
    vocab_size: int = 16_384,
    hidden: int = 256,
    layers: int = 4,
    heads: int = 4,
    length: Annotated[int, typer.Option(help="tokens of a sequence, [CLS] and [SEP] included")] = 320,
    batch: Annotated[int, typer.Option(help="sequences of a step")] = 32,
    steps: int = 2_000,
    learning_rate: float = 1e-3,
    warmup: Annotated[float, typer.Option(help="share of the steps with a rising rate")] = 0.04,
    mask_share: float = 0.2,
    save_every: int = 100,
    limit: Annotated[int | None, typer.Option(help="lines of each file, for a quick try")] = None,
    seed: int = 12345,
) -> None:
    """Learn a vocabulary and a backbone from text."""
    if (out / WEIGHTS_FILE).exists():
        console.print(f"{out} is finished: nothing to do.")
        return
    out.mkdir(parents=True, exist_ok=True)
    shares = {k: float(v) for k, v in (pair.split("=") for pair in weights.split(",") if pair)}
    paths = sorted(p for p in text.iterdir() if ".txt" in p.suffixes)

    def paragraphs(label: str) -> Iterator[str]:
        rng = np.random.default_rng(seed)
        for path in track(paths, label, console=console):
            share = next((s for prefix, s in shares.items() if path.name.startswith(prefix)), 1.0)
            yield from (line for line in read_lines(path, limit) if rng.random() < share)

    vocab = learn_vocabulary(out / "vocab.json", paragraphs, vocab_size)
    stream = tokenize(out / "tokens.npy", paragraphs, vocab, seed)
    console.print(f"{len(vocab):,} tokens in the vocabulary, {len(stream):,} tokens of text")

    torch.manual_seed(seed)
    # Denormals make a step several times slower on a CPU.
    torch.set_flush_denormal(True)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,  # less than one pass over the text leaves nothing to overfit
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    model = BertForMaskedLM(config).train()
    if not (out / "state").exists():
        start_from_counts(model, stream, seed)
    optimizer = torch.optim.AdamW(
        _groups(model), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    step = load_state(out / "state", model, optimizer)
    started, seen = time.monotonic(), 0
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        while step < steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * schedule(step / steps, warmup)
            ids, targets = masked_batch(stream, step, batch, length, mask_share, len(vocab), seed)
            loss = masked_loss(model, ids, targets)
            if not math.isfinite(loss.item()):
                raise RuntimeError(f"The loss is {loss.item()} at step {step}; lower --learning-rate.")
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            seen += ids.numel()
            row = {
                "step": step,
                "loss": round(loss.item(), 4),
                "tokens_per_s": round(seen / (time.monotonic() - started)),
            }
            log.write(json.dumps(row) + "\n")
            if step % save_every == 0:
                log.flush()
                save_state(out / "state", model, optimizer, step)
                console.print(f"step {step}/{steps}: loss {row['loss']}, {row['tokens_per_s']:,} tokens/s")
    write_backbone(out, model, list(vocab))
    console.print(f"Backbone written to {out}.")


def learn_vocabulary(path: Path, paragraphs: Callable[[str], Iterator[str]], size: int) -> list[str]:
    """A WordPiece vocabulary over MeCab words: special tokens, all ASCII punctuation, then pieces."""
    if path.exists():
        cached: list[str] = json.loads(path.read_text(encoding="utf-8"))
        return cached
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    segmenter = WordSegmenter()
    segmented = [" ".join(segmenter.words(clean(line))) for line in paragraphs("vocabulary")]
    alphabet, inside = characters(segmented)
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # The trainer numbers the pieces that it meets in the order of a hash map, and decides ties by these
    # numbers. Pieces named beforehand are numbered as they stand, so that like text gives a like vocabulary.
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, *string.punctuation, *(f"##{c}" for c in inside)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(segmented, trainer)
    found = tokenizer.get_vocab()
    vocab = sorted(found, key=found.__getitem__)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    new.rename(path)
    return vocab


def characters(segmented: list[str]) -> tuple[list[str], list[str]]:
    """The commonest characters of words that spaces part, and those of them found inside a word; sorted."""
    words = Counter(word for line in segmented for word in line.split())
    counts: Counter[str] = Counter()
    for word, n in words.items():
        for character in word:
            counts[character] += n
    kept = {c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:ALPHABET]}
    return sorted(kept), sorted({c for word in words for c in word[1:]} & kept)


def tokenize(
    path: Path, paragraphs: Callable[[str], Iterator[str]], vocab: list[str], seed: int
) -> npt.NDArray[np.uint16]:
    """(n_tokens,) ids of all paragraphs, shuffled, each closed by [SEP]."""
    if not path.exists():
        subwords = JapaneseWordPiece(vocab)
        rows = [
            np.array([*subwords.ids(line), *subwords.special.suffix], dtype=np.uint16)
            for line in paragraphs("tokens")
        ]
        order = np.random.default_rng(seed).permutation(len(rows))
        new = path.with_name(f"new.{path.name}")
        np.save(new, np.concatenate([rows[i] for i in order]))
        new.rename(path)
    stream: npt.NDArray[np.uint16] = np.load(path, mmap_mode="r")
    return stream


@torch.no_grad()
def start_from_counts(model: BertForMaskedLM, stream: npt.NDArray[np.uint16], seed: int) -> None:
    """Give the network what can be counted: token frequencies, company of tokens, nearness of positions."""
    n_vocab, hidden = model.bert.embeddings.word_embeddings.weight.shape
    n_special = len(SPECIAL_TOKENS)
    counted = cooccurrence_embeddings(stream, n_vocab, hidden, n_special=n_special, seed=seed)
    embeddings = model.bert.embeddings
    # Random rows stay underneath, so that tokens that never occur differ still.
    embeddings.word_embeddings.weight += EMBEDDING_NORM * torch.from_numpy(counted)
    positions = sinusoidal_positions(model.config.max_position_embeddings, hidden)
    embeddings.position_embeddings.weight.copy_(EMBEDDING_NORM * torch.from_numpy(positions))
    counts = np.bincount(stream, minlength=n_vocab)[:n_vocab] + 1.0
    counts[:n_special] = 1.0  # special tokens are never to be predicted
    model.cls.predictions.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))


def masked_batch(
    stream: npt.NDArray[np.uint16],
    step: int,
    batch: int,
    length: int,
    mask_share: float,
    vocab_size: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The batch of one step: windows of the stream in a seeded order, so that a resumed run repeats none.

    Returns:
        (batch, length) int64 ids with [MASK]s, and (batch, length) int64 targets, -100 where nothing
        is predicted.
    """
    body = length - 2
    n_windows = len(stream) // body
    if n_windows < 1:
        raise ValueError(f"The text has {len(stream)} tokens, fewer than one sequence of {length}.")
    epoch_order = np.random.default_rng((seed, (step * batch) // n_windows)).permutation(n_windows)
    picked = [epoch_order[(step * batch + i) % n_windows] for i in range(batch)]
    ids = np.empty((batch, length), dtype=np.int64)
    ids[:, 0], ids[:, -1] = SPECIAL_TOKENS.index(CLS), SPECIAL_TOKENS.index(SEP)
    for row, window in enumerate(picked):
        ids[row, 1:-1] = stream[window * body : (window + 1) * body]
    rng = np.random.default_rng((seed, step, 1))
    predicted = (rng.random(ids.shape) < mask_share) & (ids >= len(SPECIAL_TOKENS))
    targets = np.where(predicted, ids, -100)
    hidden = predicted & (rng.random(ids.shape) >= UNMASKED_SHARE)
    ids[hidden] = SPECIAL_TOKENS.index(MASK)
    return torch.from_numpy(ids), torch.from_numpy(targets)


def masked_loss(model: BertForMaskedLM, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over the hidden tokens; the vocabulary's logits are computed for those alone."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.bert(ids).last_hidden_state
        chosen = targets != -100
        logits = model.cls(hidden[chosen])
    return nn.functional.cross_entropy(logits.float(), targets[chosen])


def schedule(progress: float, warmup: float) -> float:
    """Factor of the learning rate: a linear rise, then a cosine fall to a fiftieth."""
    if progress < warmup:
        return progress / warmup
    return 0.02 + 0.98 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


def write_backbone(folder: Path, model: BertForMaskedLM, vocab: list[str]) -> None:
    """Write `bert.*` weights, config.json and the tokenizer's files."""
    checkpoint.write_japanese_tokenizer(folder, JapaneseWordPiece(vocab))
    (folder / CONFIG_FILE).write_text(model.config.to_json_string(), encoding="utf-8")
    tensors = {f"bert.{k}": v.contiguous() for k, v in model.bert.state_dict().items()}
    # Last and whole: a folder that has weights is finished.
    save_file(tensors, folder / f".{WEIGHTS_FILE}")
    (folder / f".{WEIGHTS_FILE}").rename(folder / WEIGHTS_FILE)


def read_lines(path: Path, limit: int | None = None) -> Iterator[str]:
    """Lines of a text file, packed or not, empty ones left out."""
    with open_text(path) as file:
        for i, line in enumerate(file):
            if limit is not None and i >= limit:
                return
            if line.strip():
                yield line


def open_text(path: Path) -> TextIO:
    """Open .gz, .xz or plain UTF-8 text for reading."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _groups(model: nn.Module) -> list[dict[str, object]]:
    """Weight decay for matrices, none for biases and norms."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


if __name__ == "__main__":
    typer.run(main)
