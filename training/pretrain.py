"""Masked-language-model pre-training of a small BERT from random weights, vocabulary included.

    python -m training.pretrain --text DIR --out runs/mini/pretrain

Reads text files (one paragraph a line, .txt, .txt.gz or .txt.xz), writes vocab.txt, config.json and
model.safetensors. Started again, it goes on where it was; finished, it does nothing.
"""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.progress import track
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import BertConfig, BertForMaskedLM

from jacolbert_rag.datatypes import BoolArray, IntArray
from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.files import CONFIG_FILE, WEIGHTS_FILE, read_weights
from jacolbert_rag.encode.formats import write_weights
from jacolbert_rag.encode.normalize import clean
from jacolbert_rag.encode.tokens import VOCAB_FILE
from jacolbert_rag.encode.words import CLS, MASK, PAD, SEP, UNK, JapaneseWordPiece, WordSegmenter
from training.arithmetic import rate_factor, without_denormals
from training.data import open_text
from training.embeddings import cooccurrence_embeddings, sinusoidal_positions
from training.losses import vocabulary_loss
from training.options import Config, Limit, StageName, TrainingError, console, limited, run
from training.report import Report
from training.state import begin, claim, hold, load_state, save_state, write_whole

# The first ids of cl-tohoku/bert-base-japanese-v3, whose [unused0] and [unused1] are JaColBERT's markers.
SPECIAL_TOKENS = [PAD, UNK, CLS, SEP, MASK, *(f"[unused{i}]" for i in range(10))]
ALPHABET = 4_000  # characters, the commonest; the vocabulary has no others
EMBEDDING_NORM = 0.5  # of a token and of a position; BERT's random rows of 256 have 0.32
UNMASKED_SHARE = 0.1  # of the positions to predict, left as they are, so that real tokens are read too

STATE_FOLDER = "state"


def main(
    text: Annotated[Path, typer.Option(help="folder of text files, one paragraph a line")],
    out: Annotated[Path, typer.Option(help="folder of the pre-trained backbone")],
    base: Annotated[
        Path | None,
        typer.Option(help="what this step wrote elsewhere: go on from its weights and vocabulary"),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="share of each source to use, PREFIX=SHARE,...; 1 where none is named")
    ] = "",
    vocab_size: int = 16_384,
    hidden: int = 256,
    layers: int = 4,
    heads: int = 4,
    length: Annotated[int, typer.Option(help="tokens of a sequence, [CLS] and [SEP] included")] = 320,
    batch: Annotated[int, typer.Option(help="sequences of a step")] = 16,
    steps: int = 2_000,
    learning_rate: Annotated[float, typer.Option(help="of the layers' matrices, by Muon")] = 1e-2,
    rest_learning_rate: Annotated[float, typer.Option(help="of embeddings, biases, norms, by AdamW")] = 3e-3,
    warmup: Annotated[int, typer.Option(help="steps with a rising rate")] = 50,
    decay: Annotated[float, typer.Option(help="share of the steps with a falling rate, at the end")] = 0.3,
    mask_share: float = 0.2,
    save_every: Annotated[int, typer.Option(min=1, help="steps between states to resume from")] = 250,
    seed: int = 12345,
    limit: Limit = None,
    config: Config = None,
    stage: StageName = None,
) -> None:
    """Learn a vocabulary and a backbone from text."""
    steps = limited(steps, limit)
    recipe = {
        "text": str(text), "base": str(base or ""), "weights": weights, "vocab_size": vocab_size,
        "hidden": hidden, "layers": layers, "heads": heads,
        "length": length, "batch": batch, "steps": steps, "learning_rate": learning_rate,
        "rest_learning_rate": rest_learning_rate, "warmup": warmup, "decay": decay, "mask_share": mask_share,
        "seed": seed, "limit": limit, "torch": torch.__version__,
    }  # fmt: skip
    with claim(out), without_denormals():
        if (out / WEIGHTS_FILE).exists():
            hold(out, recipe, changeable=("steps", "torch"))
            console.print(f"{out} is finished: nothing to do.")
            return
        paragraphs = reader(text, weights, limit, seed)
        begin(out, recipe, changeable=("steps", "torch"))
        vocab = (
            read_vocabulary(base) if base else learn_vocabulary(out / "vocab.json", paragraphs, vocab_size)
        )
        stream = tokenize(out / "tokens.npy", paragraphs, vocab)
        inside = np.array([piece.startswith("##") for piece in vocab])
        console.print(f"{len(vocab):,} tokens in the vocabulary, {len(stream):,} tokens of text")

        torch.manual_seed(seed)
        model = BertForMaskedLM(architecture(len(vocab), hidden, layers, heads)).train()
        if base is not None:
            read_weights_into(model, base)
        elif not (out / STATE_FOLDER).exists():
            start_from_counts(model, stream, seed)
        optimizers = make_optimizers(model, learning_rate, rest_learning_rate)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        rates = [group["lr"] for group in groups]
        step = load_state(out / STATE_FOLDER, model, optimizers)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        with Report(out, steps, step) as report:
            while step < steps:
                factor = rate_factor(step, steps, warmup, decay * steps)
                for group, rate in zip(groups, rates, strict=True):
                    group["lr"] = rate * factor
                ids, targets = masked_batch(stream, step, batch, length, mask_share, inside, seed)
                loss = masked_loss(model, ids, targets)
                if not math.isfinite(loss.item()):
                    raise TrainingError(f"The loss is {loss.item()} at step {step}; lower --learning-rate.")
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                step += 1
                rate_now = learning_rate * factor
                report.step(step, loss=loss.item(), learning_rate=rate_now, tokens=ids.numel())
                if step % save_every == 0 or step == steps:
                    report.flush()
                    save_state(out / STATE_FOLDER, model, optimizers, step)
        write_backbone(out, model, vocab)
        console.print(f"Backbone written to {out}.")


def reader(folder: Path, weights: str, limit: int | None, seed: int) -> Callable[[str], Iterator[str]]:
    """A function that reads all paragraphs under a bar of the label that it is given.

    Args:
        folder: of text files.
        weights: PREFIX=SHARE,…; of a file whose name begins so, only this share of the lines is read.
        limit: lines of each file.
        seed: of which lines are left out.

    Raises:
        TrainingError: there is no text file, or a share cannot be read.
    """
    shares, paths = read_shares(weights), text_files(folder)

    def paragraphs(label: str) -> Iterator[str]:
        rng = np.random.default_rng(seed)
        for path in track(paths, label, console=console):
            share = share_of(path, shares)
            yield from (line for line in read_lines(path, limit) if rng.random() < share)

    return paragraphs


def read_shares(weights: str) -> dict[str, float]:
    """Prefix of a file's name -> share of its lines, from PREFIX=SHARE,…."""
    try:
        return {k: float(v) for k, v in (pair.split("=") for pair in weights.split(",") if pair)}
    except ValueError as error:
        raise TrainingError(f"--weights is {weights!r}; expected PREFIX=SHARE,… such as law=0.5.") from error


def share_of(path: Path, shares: Mapping[str, float]) -> float:
    """Share of a file's lines to read: 1 where none is named."""
    return next((share for prefix, share in shares.items() if path.name.startswith(prefix)), 1.0)


def text_files(folder: Path) -> list[Path]:
    """The text files of a folder, by name."""
    paths = sorted(path for path in folder.glob("*") if ".txt" in path.suffixes)
    if not paths:
        raise TrainingError(
            f"{folder} has no .txt, .txt.gz or .txt.xz file. Name a folder of text with --text."
        )
    return paths


def architecture(n_vocab: int, hidden: int, layers: int, heads: int) -> BertConfig:
    """A BERT's configuration; without dropout, since a few passages over the text leave little to overfit."""
    config = BertConfig(
        vocab_size=n_vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    config._attn_implementation = "eager"  # on a CPU its backward pass takes a third of SDPA's time
    return config


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
    write_whole(path, json.dumps(vocab, ensure_ascii=False))
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
    path: Path, paragraphs: Callable[[str], Iterator[str]], vocab: list[str]
) -> npt.NDArray[np.uint16]:
    """(n_tokens,) ids of all paragraphs, each closed by [SEP].

    They stay in order: what stands around a paragraph is mostly of its article, and tells of its words.
    """
    if not path.exists():
        subwords = JapaneseWordPiece(vocab)
        rows = [
            np.array([*subwords.ids(line), *subwords.special.suffix], dtype=np.uint16)
            for line in paragraphs("tokens")
        ]
        new = path.with_name(f"new.{path.name}")
        np.save(new, np.concatenate(rows))
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
    inside: BoolArray,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The batch of one step: windows of the stream in a seeded order, so that a resumed run repeats none.

    Args:
        stream: (n_tokens,) ids of running text.
        step: from 0.
        batch: sequences.
        length: tokens of a sequence, [CLS] and [SEP] included.
        mask_share: of the words.
        inside: (n_vocab,) whether a token goes on with the word of the one before.
        seed: of the windows' order and of the masks.

    Returns:
        (batch, length) int64 ids with [MASK]s, whole words at a time, and (batch, length) int64 targets,
        -100 where nothing is predicted.
    """
    body = length - 2
    n_windows = len(stream) // body - 1
    if n_windows < 1:
        raise ValueError(f"The text has {len(stream)} tokens, fewer than two sequences of {length}.")
    ids = np.empty((batch, length), dtype=np.int64)
    ids[:, 0], ids[:, -1] = SPECIAL_TOKENS.index(CLS), SPECIAL_TOKENS.index(SEP)
    for row in range(batch):
        epoch, place = divmod(step * batch + row, n_windows)
        order, shift = _windows(seed, epoch, n_windows, body)
        start = order[place] * body + shift
        ids[row, 1:-1] = stream[start : start + body]
    rng = np.random.default_rng((seed, step, 1))
    ordinary = ids >= len(SPECIAL_TOKENS)
    word = np.cumsum(~(inside[ids] & ordinary), axis=1)
    chosen: BoolArray = rng.random((batch, length + 1)) < mask_share
    predicted = chosen[np.arange(batch)[:, None], word] & ordinary
    targets = np.where(predicted, ids, -100)
    hidden = predicted & (rng.random(ids.shape) >= UNMASKED_SHARE)
    ids[hidden] = SPECIAL_TOKENS.index(MASK)
    return torch.from_numpy(ids), torch.from_numpy(targets)


@lru_cache(maxsize=2)
def _windows(seed: int, epoch: int, n_windows: int, body: int) -> tuple[IntArray, int]:
    """The order of an epoch's windows, and where the first begins: each epoch cuts the text elsewhere."""
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(n_windows), int(rng.integers(body))


def masked_loss(model: BertForMaskedLM, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over the hidden tokens; the vocabulary's logits are computed for those alone."""
    head = model.cls.predictions
    chosen = targets != -100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = head.transform(model.bert(ids).last_hidden_state[chosen])
    return vocabulary_loss(hidden, head.decoder.weight, head.decoder.bias, targets[chosen])


def make_optimizers(
    model: BertForMaskedLM, learning_rate: float, rest_learning_rate: float
) -> list[Optimizer]:
    """Muon for the layers' matrices (Jordan et al., 2024), AdamW for all else."""
    matrices = [p for p in model.bert.encoder.parameters() if p.ndim == 2]
    own = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in own]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rest_learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def write_backbone(folder: Path, model: BertForMaskedLM, vocab: list[str]) -> None:
    """Write config.json, the tokenizer's files and the weights, those of the head that predicts too."""
    checkpoint.write_japanese_tokenizer(folder, JapaneseWordPiece(vocab))
    (folder / CONFIG_FILE).write_text(model.config.to_json_string(), encoding="utf-8")
    tied = "cls.predictions.decoder."  # the token embeddings again, and the head's bias
    tensors = {key: value for key, value in model.state_dict().items() if not key.startswith(tied)}
    write_weights(folder, tensors, torch.float32)


def read_vocabulary(folder: Path) -> list[str]:
    """The tokens of a backbone."""
    path = folder / VOCAB_FILE
    if not path.is_file():
        raise TrainingError(f"{path} is missing. Name a folder that training.pretrain wrote with --base.")
    tokens: list[str] = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return tokens


def read_weights_into(model: BertForMaskedLM, folder: Path) -> None:
    """Take a backbone's weights.

    Raises:
        TrainingError: they are of another shape, or lack some.
    """
    found = {key: value.float() for key, value in read_weights(folder).items()}
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("cls.predictions.decoder.")}
    wrong = [key for key in own if key not in found or found[key].shape != own[key].shape]
    if wrong:
        raise TrainingError(
            f"{folder} does not fit: {', '.join(wrong[:3])} of {len(wrong)} are missing or of another shape. "
            "Pass the --hidden, --layers and --heads that it was made with."
        )
    model.load_state_dict(found, strict=False)


def read_lines(path: Path, limit: int | None = None) -> Iterator[str]:
    """Lines of a text file, packed or not, empty ones left out."""
    with open_text(path) as file:
        for i, line in enumerate(file):
            if limit is not None and i >= limit:
                return
            if line.strip():
                yield line


if __name__ == "__main__":
    run("pretrain", main)
