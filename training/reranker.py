"""Trains a small cross-encoder from a backbone, to be a teacher.

    python -m training.reranker --base DIR --data tuples=mined.jsonl,queries=DIR,corpus=DIR --out DIR
    python -m training.score --teacher cross-encoder:DIR …

Each tuple gives one of its positives and n-ways - 1 of its negatives; the loss is the cross-entropy of the
positive among them. Writes a plain BertForSequenceClassification of one label. Started again, it goes on
where it was; finished, it does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

from jacolbert_rag.encode import checkpoint
from jacolbert_rag.encode.encoder import TOKENS_PER_BATCH, batches_by_length
from jacolbert_rag.encode.files import (
    CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    WEIGHTS_FILE,
    has_weights,
    read_json,
    resolve_folder,
    write_json,
)
from jacolbert_rag.encode.formats import write_weights
from jacolbert_rag.encode.model import n_positions, quiet_loading
from jacolbert_rag.encode.tokens import load_subwords
from jacolbert_rag.encode.words import JapaneseWordPiece
from training.arithmetic import rate_factor, without_denormals
from training.batches import Lessons
from training.data import Example, OnMissing, Row, read_data
from training.options import Config, Limit, StageName, TrainingError, console, limited, run
from training.pair_reader import PairReader, Pairs
from training.report import Report
from training.state import begin, claim, hold, load_state, save_state, weights_digest

STATE_FOLDER = "state"
CLIP = 1.0  # greatest norm of the gradient
# What a network of two token types is given; transformers 5 leaves the types out where nobody says so
# (huggingface/transformers#48128).
INPUT_NAMES = ["input_ids", "token_type_ids", "attention_mask"]


def main(
    base: Annotated[str, typer.Option(help="backbone of training.pretrain: folder or hub id")],
    data: Annotated[
        list[str], typer.Option(help="FILE, or tuples=…,queries=…,corpus=…[,n-ways=N][,source=S][,sample=N]")
    ],
    out: Annotated[Path, typer.Option(help="folder of the cross-encoder")],
    n_ways: Annotated[int, typer.Option(min=2, help="documents of a query: one answers it")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="queries of a step")] = 16,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="queries of one forward pass")] = None,
    steps: int = 2_000,
    learning_rate: float = 3e-4,
    warmup: Annotated[float, typer.Option(help="share of the steps with a rising rate")] = 0.05,
    weight_decay: float = 0.01,
    length: Annotated[int, typer.Option(min=16, help="tokens of a pair")] = 320,
    dropout: Annotated[float | None, typer.Option(help="where it is not the base's own; 0 is none")] = None,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="of products")] = "bf16",
    save_every: Annotated[int, typer.Option(min=1, help="steps between states to resume from")] = 100,
    on_missing: Annotated[OnMissing, typer.Option(help="what becomes of tuples without text")] = "refuse",
    device: str | None = None,
    seed: int = 12345,
    limit: Limit = None,
    config: Config = None,
    stage: StageName = None,
) -> None:
    """Train a cross-encoder."""
    # Settings.
    steps = limited(steps, limit)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = {
        "base": base, "data": data, "n_ways": n_ways, "batch": batch, "steps": steps,
        "learning_rate": learning_rate, "warmup": warmup, "weight_decay": weight_decay, "length": length,
        "dropout": dropout, "precision": precision, "on_missing": on_missing, "seed": seed, "limit": limit,
        "torch": torch.__version__,
    }  # fmt: skip
    with claim(out), without_denormals():
        if (out / WEIGHTS_FILE).exists():
            hold(out, recipe, changeable=("torch", "base_digest", "data_digest"))
            console.print(f"{out} is finished: nothing to do.", markup=False)
            return
        # Model.
        torch.manual_seed(seed)
        folder = resolve_folder(base, is_complete=has_weights)
        model = start(folder, dropout, place)
        subwords = load_subwords(folder)
        if not isinstance(subwords, JapaneseWordPiece):
            raise TrainingError(
                f"The tokenizer of {folder} is {subwords.name}; expected {JapaneseWordPiece.name}, as "
                "training.pretrain gives a backbone. Take such a --base."
            )
        length = min(length, n_positions(model.bert) or length)
        reader = PairReader(folder, length, pad=model.config.pad_token_id)

        # Data.
        sources = [read_data(spec, on_missing=on_missing, limit=limit) for spec in data]
        lessons = Lessons(sources, n_ways=n_ways, batch=batch, seed=seed, unusable=unusable)
        console.print(f"Tuples: {lessons.summary()}.", markup=False)
        # When all has been read, so that a mistyped path does not stay in the recipe.
        inputs = {"base_digest": weights_digest(base), "data_digest": lessons.digest}
        begin(out, recipe | inputs, changeable=("torch",))

        # Optimizer, and where the run was.
        learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=learning_rate, weight_decay=weight_decay)
        step = load_state(out / STATE_FOLDER, model, [optimizer])

        # Loop.
        with Report(out, steps, step) as report:
            while step < steps:
                torch.manual_seed(seed * 1_000_003 + step)  # of dropout
                rate = learning_rate * rate_factor(step, steps, warmup * steps, (1 - warmup) * steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                examples = lessons.at(step).examples
                loss, n_right, n_tokens = 0.0, 0, 0
                for part in parts(examples, micro_batch or batch):
                    pairs = pairs_of(part, reader)
                    logits = score_pairs(model, pairs, place, precision).view(len(part), -1)
                    share = listwise_loss(logits) * len(part) / len(examples)
                    share.backward()  # type: ignore[no-untyped-call]
                    loss += share.item()
                    n_right += int((logits.argmax(1) == 0).sum())
                    n_tokens += int(pairs.lengths.sum())
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"The loss is {loss} at step {step}; its first query is {examples[0].id!r}. Lower "
                        "--learning-rate, take --precision fp32, or look at that batch."
                    )
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                accuracy = n_right / len(examples)
                report.step(step, loss=loss, learning_rate=rate, tokens=n_tokens, accuracy=accuracy)
                if step % save_every == 0 or step == steps:
                    report.flush()
                    save_state(out / STATE_FOLDER, model, [optimizer], step)

            # The model.
            write(out, model, subwords)
            report.say(f"Cross-encoder written to {out}.")


# Data.


def unusable(row: Row, n_ways: int) -> str | None:
    """Why a tuple is left out; None where it is not. What is learnt is a label, so scores do not count."""
    if row.n_positives < 1:
        return "without positive"
    if len(row.documents) - row.n_positives < n_ways - 1:
        return "too few negatives"
    return None


def pairs_of(examples: Sequence[Example], reader: PairReader) -> Pairs:
    """Pairs of each query with each of its documents, those of a query side by side."""
    queries = [example.query for example in examples for _ in example.documents]
    return reader.pairs(queries, [text for example in examples for text in example.documents])


def parts(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """The examples in parts of at most so many."""
    for start_ in range(0, len(examples), size):
        yield examples[start_ : start_ + size]


# Model.


def start(folder: Path, dropout: float | None, device: torch.device) -> Any:
    """A sequence classifier of one label on a backbone, with a new pooler and head.

    Raises:
        TrainingError: the backbone is no BERT, or lacks a tensor.
    """
    from transformers import BertConfig, BertForSequenceClassification

    if (kind := read_json(folder / CONFIG_FILE).get("model_type")) != "bert":
        raise TrainingError(
            f"{folder / CONFIG_FILE} describes a {kind!r} model; expected 'bert', as training.pretrain makes."
        )
    config = BertConfig.from_pretrained(str(folder), id2label={0: "score"}, label2id={"score": 0})
    if dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
        config.classifier_dropout = None
    classifier: Any = BertForSequenceClassification  # whose annotations leave out the loading info
    with quiet_loading():
        model, found = classifier.from_pretrained(
            str(folder),
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            # On a CPU its backward pass takes a third of the time of SDPA's.
            attn_implementation="eager" if device.type == "cpu" else "sdpa",
            output_loading_info=True,
        )
    new = ("bert.pooler.", "classifier.")
    if missing := sorted(key for key in found["missing_keys"] if not key.startswith(new)):
        raise TrainingError(
            f"{folder} lacks {len(missing)} tensors of a BERT, such as {missing[0]}. Take a whole backbone."
        )
    # Added to all logits of a query, it changes no loss, and Adam would make steps of what rounding leaves.
    model.classifier.bias.requires_grad_(False)
    return model.to(device).train()


def score_pairs(model: Any, pairs: Pairs, device: torch.device, precision: Literal["fp32", "bf16"]) -> Tensor:
    """(n_pairs,) float32 logits with gradients; pairs of like length share a forward pass."""
    pooled: list[Tensor] = []
    order: list[int] = []
    # One context for all passes: it keeps the weights that it has cast.
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        for rows in batches_by_length(pairs.lengths, TOKENS_PER_BATCH.get(device.type, 2_048)):
            padded = pairs.padded(rows)
            states = model.bert(
                torch.from_numpy(padded.ids).to(device),
                attention_mask=torch.from_numpy(padded.attended.astype(np.int64)).to(device),
                token_type_ids=torch.from_numpy(padded.types).to(device),
            )
            pooled.append(states.pooler_output)
            order.extend(rows.tolist())
    # In float32: logits of bfloat16 would lie as much as 1/32 apart.
    logits: Tensor = model.classifier(model.dropout(torch.cat(pooled).float()))[:, 0]
    return logits[torch.from_numpy(np.argsort(order)).to(device)]


def listwise_loss(logits: Tensor) -> Tensor:
    """Mean cross-entropy of the first document among all of its query's.

    Args:
        logits: (n_queries, n_ways) float32.
    """
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def write(folder: Path, model: Any, subwords: JapaneseWordPiece) -> None:
    """Write what AutoModelForSequenceClassification and AutoTokenizer load."""
    checkpoint.write_japanese_tokenizer(folder, subwords)
    settings = read_json(folder / TOKENIZER_CONFIG_FILE)
    write_json(folder / TOKENIZER_CONFIG_FILE, {**settings, "model_input_names": INPUT_NAMES})
    model.config.architectures = [type(model).__name__]
    (folder / CONFIG_FILE).write_text(model.config.to_json_string(), encoding="utf-8")
    write_weights(folder, model.state_dict(), torch.float32)


if __name__ == "__main__":
    run("reranker", main)
