"""Trains a ColBERT from a backbone, or goes on training one.

    python -m training.distill --base runs/mini/pretrain --data pairs.jsonl --out runs/mini/distill

Reads JSON lines {"query", "passages", "scores"?}, the first passage being the labelled positive. Examples
with teacher scores are learnt by KL divergence between min-max-normalised scores; examples without, by
in-batch contrast. Started again, it goes on where it was; finished, it does nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from jacolbert_rag.config import EncoderConfig
from jacolbert_rag.datatypes import TokenBatch
from jacolbert_rag.encode import checkpoint, formats
from jacolbert_rag.encode.files import WEIGHTS_FILE, read_weights
from jacolbert_rag.encode.model import ColBERT, Dense, load_backbone
from jacolbert_rag.encode.tokens import Tokenizer, load_subwords
from jacolbert_rag.index.maxsim import maxsim_padded
from training.losses import contrastive_loss, distillation_loss
from training.state import load_state, save_state

CLIP = 1.0
console = Console(stderr=True)


@dataclass(frozen=True)
class Example:
    """One query with its passages.

    Attributes:
        query: text.
        passages: texts; the first answers the query.
        scores: teacher scores of the passages, or None.
        source: batches hold one source each, so that in-batch negatives are of one kind.
    """

    query: str
    passages: tuple[str, ...]
    scores: tuple[float, ...] | None
    source: str


def main(
    base: Annotated[Path, typer.Option(help="backbone of training.pretrain, or a ColBERT checkpoint")],
    data: Annotated[list[Path], typer.Option(help="JSON lines of examples; may be repeated")],
    out: Annotated[Path, typer.Option(help="folder of the ColBERT checkpoint")],
    dim: int = 128,
    document_length: Annotated[int, typer.Option(help="tokens read of a passage, at inference")] = 300,
    train_document_length: Annotated[int, typer.Option(help="tokens read in training")] = 256,
    query_length: Annotated[str, typer.Option(help="rule of query augmentation in training")] = "fixed(32)",
    batch: Annotated[int, typer.Option(help="queries of a step")] = 32,
    steps: int = 1_000,
    learning_rate: float = 3e-4,
    warmup: Annotated[float, typer.Option(help="share of the steps with a rising rate")] = 0.05,
    optimizer: Literal["schedule-free", "linear"] = "schedule-free",
    temperature: Annotated[float, typer.Option(help="of in-batch contrast")] = 1.0,
    save_every: int = 100,
    limit: Annotated[int | None, typer.Option(help="examples to use, for a quick try")] = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    seed: int = 12345,
) -> None:
    """Train a ColBERT."""
    if (out / WEIGHTS_FILE).exists():
        console.print(f"{out} is finished: nothing to do.")
        return
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)  # denormals make a step several times slower on a CPU

    model, tokenizer = start(base, dim, document_length)
    model.to(device).train()
    config = replace(tokenizer.config, document_length=train_document_length, query_length=query_length)
    reader = Tokenizer(tokenizer.subwords, config)
    examples = read_examples(data, limit)
    sources = by_source(examples)
    counts = ", ".join(f"{name} {len(rows):,}" for name, rows in sources.items())
    console.print(f"{len(examples):,} examples: {counts}")

    stepper = make_optimizer(model, optimizer, learning_rate, math.ceil(warmup * steps))
    step = load_state(out / "state", model, stepper)
    recipe = {
        "base": str(base), "data": [p.name for p in data], "data_digest": digest(data), "limit": limit,
        "dim": dim, "document_length": document_length,
        "train_document_length": train_document_length, "query_length": query_length, "batch": batch,
        "steps": steps, "learning_rate": learning_rate, "warmup": warmup, "optimizer": optimizer,
        "temperature": temperature, "seed": seed, "torch": torch.__version__,
    }  # fmt: skip
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")

    started, done = time.monotonic(), 0
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        while step < steps:
            if optimizer == "linear":
                for group in stepper.param_groups:
                    group["lr"] = learning_rate * linear(step / steps, warmup)
            chosen = pick(sources, step, batch, seed)
            loss = batch_loss(model, reader, chosen, temperature, device)
            if not math.isfinite(loss.item()):
                raise RuntimeError(
                    f"The loss is {loss.item()} at step {step}; its first query is {chosen[0].query!r}. "
                    "Lower --learning-rate, or look at that batch."
                )
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            stepper.step()
            stepper.zero_grad(set_to_none=True)
            step += 1
            done += 1
            row = {"step": step, "loss": round(loss.item(), 4), "source": chosen[0].source}
            log.write(json.dumps(row) + "\n")
            if step % save_every == 0:
                log.flush()
                save_state(out / "state", model, stepper, step)
                rate = done / (time.monotonic() - started)
                console.print(f"step {step}/{steps}: loss {row['loss']}, {rate:.2f} steps/s")
    if hasattr(stepper, "eval"):
        # Schedule-free keeps two sets of weights; those to use are not those that it steps with.
        stepper.eval()
    checkpoint.save(out, model, tokenizer, dtype=torch.float16)
    console.print(f"ColBERT written to {out}.")


def start(base: Path, dim: int, document_length: int) -> tuple[ColBERT, Tokenizer]:
    """The network and tokenizer to train: of a ColBERT, or a backbone under a new projection."""
    weights = {} if (base / formats.MODULES_FILE).is_file() else read_weights(base)
    if not weights or formats.PROJECTION in weights:
        loaded = checkpoint.load(base, overrides={"document_length": document_length})
        if loaded.config.dim != dim:
            raise ValueError(f"{base} projects to {loaded.config.dim} dimensions, not {dim}. Pass --dim.")
        return without_dropout(loaded.model), loaded.tokenizer
    config = checkpoint.read_backbone_config(base)
    backbone = load_backbone(config, weights)
    projection = Dense(config.hidden_size, dim)
    nn.init.orthogonal_(projection.linear.weight)  # keeps the distances as well as dim allows
    model = ColBERT(backbone, [projection])
    settings = EncoderConfig(
        dim=dim, document_length=document_length, max_positions=config.max_position_embeddings
    )
    return without_dropout(model), Tokenizer(load_subwords(base), settings)


def without_dropout(model: ColBERT) -> ColBERT:
    """The network, whose dropout layers let everything through."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def read_examples(paths: list[Path], limit: int | None) -> list[Example]:
    """Examples of all files, in order."""
    examples = []
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                scores = tuple(row["scores"]) if row.get("scores") else None
                if scores is not None and len(scores) != len(row["passages"]):
                    raise ValueError(f"{path}: {len(row['passages'])} passages, {len(scores)} scores.")
                source = str(row.get("source", path.stem))
                examples.append(Example(row["query"], tuple(row["passages"]), scores, source))
    return examples[:limit]


def by_source(examples: list[Example]) -> dict[str, list[Example]]:
    """Examples of each source, those with scores and those without apart."""
    sources: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        scored = " scored" if example.scores else ""
        sources[example.source + scored].append(example)
    return dict(sources)


def pick(sources: dict[str, list[Example]], step: int, batch: int, seed: int) -> list[Example]:
    """The examples of one step: of one source, drawn in proportion to its size, no passage twice.

    It depends on the step alone, so a resumed run sees what an unbroken one would.
    """
    rng = np.random.default_rng((seed, step))
    names = list(sources)
    sizes = np.array([len(sources[name]) for name in names], dtype=np.float64)
    rows = sources[names[rng.choice(len(names), p=sizes / sizes.sum())]]
    chosen, seen = [], set()
    for i in rng.permutation(len(rows))[: 4 * batch]:
        if rows[i].passages[0] not in seen:
            seen.add(rows[i].passages[0])
            chosen.append(rows[i])
        if len(chosen) == batch:
            break
    return chosen


def batch_loss(
    model: ColBERT, tokenizer: Tokenizer, examples: list[Example], temperature: float, device: str
) -> Tensor:
    """Loss of one batch: distillation where a teacher scored it, in-batch contrast where none did."""
    queries, asked = embed(
        model, tokenizer.queries([e.query for e in examples]), tokenizer.special.pad, device
    )
    passages = [p for e in examples for p in e.passages]
    batch = tokenizer.documents(passages)
    documents, kept = embed(model, batch, tokenizer.special.pad, device, skipped=tokenizer.skiplist())
    scores = maxsim_padded(queries, asked, documents, kept)
    first = np.cumsum([0, *(len(e.passages) for e in examples)])
    if examples[0].scores is not None:
        own = torch.stack([scores[i, a:b] for i, (a, b) in enumerate(itertools.pairwise(first))])
        return distillation_loss(own, torch.tensor([e.scores for e in examples], device=device))
    positives = torch.from_numpy(first[:-1]).to(device)
    texts = np.array(passages, dtype=object)
    relevant = torch.from_numpy(texts[None, :] == texts[first[:-1]][:, None]).to(device)
    return contrastive_loss(scores, positives, relevant, temperature)


def embed(
    model: ColBERT, batch: TokenBatch, pad_id: int, device: str, *, skipped: frozenset[int] = frozenset()
) -> tuple[Tensor, Tensor]:
    """(n_texts, length, dim) embeddings with gradients, and (n_texts, length) bool of tokens that count."""
    width = int(batch.lengths.max())
    inside = np.arange(width) < batch.lengths[:, None]
    ids = np.full(inside.shape, pad_id, dtype=np.int64)
    ids[inside] = batch.ids
    attended = np.arange(width) < batch.n_attended[:, None]
    kept = inside & ~np.isin(ids, list(skipped))
    with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
        embedded = model(torch.from_numpy(ids).to(device), torch.from_numpy(attended).to(device))
    return embedded.float(), torch.from_numpy(kept).to(device)


def make_optimizer(model: nn.Module, name: str, learning_rate: float, n_warmup: int) -> Optimizer:
    """AdamW, schedule-free as in JaColBERTv2.5 or under a linear decay as before it."""
    if name == "linear":
        return torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    import schedulefree

    stepper: Any = schedulefree.AdamWScheduleFree(
        model.parameters(), lr=learning_rate, warmup_steps=n_warmup, weight_decay=0.0
    )
    stepper.train()
    return stepper  # type: ignore[no-any-return]


def linear(progress: float, warmup: float) -> float:
    """Factor of the learning rate: a linear rise, then a linear fall to 0."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)


def digest(paths: list[Path]) -> str:
    """16 hex digits of the data's bytes."""
    total = hashlib.blake2b(digest_size=8)
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()


if __name__ == "__main__":
    typer.run(main)
