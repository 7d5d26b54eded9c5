"""Trains a ColBERT from a backbone, or goes on training one.

    python -m training.distill --base DIR --data tuples=scored.jsonl,queries=DIR,corpus=DIR --out DIR
    torchrun --nproc-per-node 4 -m training.distill --config training/recipes/jacolbert-v2.5.toml

Reads tuples of a query with its documents. Those with teacher scores are learnt by KL divergence between
min-max-normalised scores (JaColBERTv2.5), by the margins' error, or a mixture; labels by contrast, among a
query's own documents or the whole batch's. Started again, it goes on where it was; finished, it does nothing.
"""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint as recomputed
from torch.utils.data import DataLoader

from jacolbert_rag.config import EncoderConfig
from jacolbert_rag.encode import checkpoint, formats
from jacolbert_rag.encode.encoder import batches_by_length
from jacolbert_rag.encode.files import WEIGHTS_FILE, has_weights, read_weights, resolve_folder
from jacolbert_rag.encode.model import ColBERT, Dense, load_backbone, n_positions
from jacolbert_rag.encode.tokens import Tokenizer, load_subwords
from training.arithmetic import rate_factor, without_denormals
from training.batches import Batch, Batches, Padded
from training.data import OnMissing, read_data
from training.losses import Normalize, contrastive_loss, distillation_loss, margin_mse_loss
from training.maxsim import maxsim_own, maxsim_padded
from training.options import Config, Limit, StageName, TrainingError, console, limited, run
from training.report import Report
from training.state import begin, claim, hold, load_more, load_state, published, save_state, weights_digest

PATIENCE = timedelta(hours=2)  # the other ranks wait while the first scores a dev set
CHECKPOINTS_FOLDER, EMA_FOLDER, STATE_FOLDER = "checkpoints", "ema", "state"
TOKENS_PER_PASS = {"cpu": 4_096, "cuda": 65_536}  # padded ones
PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,  # for tests of exactness
}

OptimizerName = Literal["schedule-free", "linear"]
Negatives = Literal["own", "in-batch", "all"]
Precision = Literal["fp32", "bf16", "fp16", "fp64"]


@dataclass(frozen=True)
class Losses:
    """What is learnt: a weighted sum.

    Attributes:
        kl: weight of the KL divergence from the teacher.
        margin_mse: weight of the error of margins.
        normalize: which scores are min-max-normalised in these two.
        contrast: weight of the cross-entropy of a query's answer among the negatives.
        negatives: "own" are those of its tuple; "in-batch" the documents of the batch's other queries, its
            own left out as colbert-ai does, since they may be answers; "all" is both. The batch is that of
            all ranks.
        temperature: of the contrast.
    """

    kl: float
    margin_mse: float
    normalize: Normalize
    contrast: float
    negatives: Negatives
    temperature: float


def main(
    base: Annotated[str, typer.Option(help="backbone of training.pretrain, or a ColBERT: folder or hub id")],
    data: Annotated[
        list[str], typer.Option(help="FILE, or tuples=…,queries=…,corpus=…[,n-ways=N][,source=S][,sample=N]")
    ],
    out: Annotated[Path, typer.Option(help="folder of the ColBERT checkpoint")],
    dim: Annotated[int, typer.Option(help="of the projection; a ColBERT to go on with has its own")] = 128,
    document_length: Annotated[int, typer.Option(help="tokens read of a document, stored too")] = 300,
    train_document_length: Annotated[int | None, typer.Option(help="in training, where it differs")] = None,
    query_length: Annotated[str, typer.Option(help="rule of query augmentation in training")] = "fixed(32)",
    n_ways: Annotated[int, typer.Option(min=1, help="documents of a query")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="queries of a step, over all ranks")] = 64,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="queries of one forward pass")] = None,
    steps: int = 50_000,
    learning_rate: float = 3e-5,
    warmup: Annotated[float, typer.Option(help="share of the steps with a rising rate")] = 0.05,
    optimizer: OptimizerName = "schedule-free",
    weight_decay: float = 0.0,
    clip: Annotated[float, typer.Option(help="greatest norm of the gradient; 0 is off")] = 0.0,
    kl: Annotated[float, typer.Option(help="weight of the KL divergence from the teacher")] = 1.0,
    margin_mse: Annotated[float, typer.Option(help="weight of the error of margins")] = 0.0,
    normalize: Annotated[Normalize, typer.Option(help="scores that are min-max-normalised")] = "both",
    contrast: Annotated[float, typer.Option(help="weight of the contrast by labels")] = 0.0,
    negatives: Annotated[Negatives, typer.Option(help="documents that labels are held against")] = "all",
    temperature: Annotated[float, typer.Option(help="of the contrast")] = 1.0,
    precision: Annotated[Precision | None, typer.Option(help="fp16 on CUDA, else bf16")] = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="less memory for a third more time")] = False,
    dropout: Annotated[float | None, typer.Option(help="where it is not the base's own")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="steps between states to resume from")] = 2_000,
    checkpoint_every: Annotated[
        int, typer.Option(min=0, help="steps between checkpoints; 0 is none")
    ] = 2_000,
    ema: Annotated[float, typer.Option(help="decay of a running mean of the weights; 0 is off")] = 0.0,
    dev: Annotated[Path | None, typer.Option(help="BEIR folder to score on while training")] = None,
    dev_split: str = "dev",
    dev_every: Annotated[int, typer.Option(min=1, help="steps between scores")] = 2_000,
    dev_limit: Annotated[int | None, typer.Option(min=1, help="queries of it")] = None,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="of the stored weights")] = "float32",
    workers: Annotated[int | None, typer.Option(min=0, help="processes that tokenise ahead")] = None,
    on_missing: Annotated[OnMissing, typer.Option(help="what becomes of tuples without text")] = "refuse",
    device: str | None = None,
    seed: int = 12345,
    limit: Limit = None,
    config: Config = None,
    stage: StageName = None,
) -> None:
    """Train a ColBERT."""
    # Settings.
    ranks = Ranks.from_environment(device)
    steps = limited(steps, limit)
    losses = Losses(kl, margin_mse, normalize, contrast, negatives, temperature)
    precision = precision or ("fp16" if ranks.device.type == "cuda" else "bf16")
    local = batch // ranks.world
    micro = min(micro_batch or local, local)
    if contrast and negatives != "own" and micro < local:
        raise TrainingError(
            f"Negatives {negatives!r} need a rank's {local} queries in one forward pass, and --micro-batch "
            f"is {micro}. Drop it, take --gradient-checkpointing, or --negatives own."
        )
    recipe = {
        "base": base, "data": data, "dim": dim, "document_length": document_length,
        "train_document_length": train_document_length, "query_length": query_length, "n_ways": n_ways,
        "batch": batch, "steps": steps, "learning_rate": learning_rate, "warmup": warmup,
        "optimizer": optimizer, "weight_decay": weight_decay, "clip": clip, **asdict(losses),
        "precision": precision, "dropout": dropout, "ema": ema, "seed": seed, "limit": limit,
        "torch": torch.__version__,
    }  # fmt: skip

    with ExitStack() as stack:
        stack.enter_context(ranks.joined())
        if ranks.first:
            stack.enter_context(claim(out))
        if (out / WEIGHTS_FILE).exists():
            hold(out, recipe, changeable=("torch", "base_digest", "data_digest"))
            ranks.say(f"{out} is finished: nothing to do.")
            return
        # Model.
        torch.manual_seed(seed)
        stack.enter_context(without_denormals())
        model, tokenizer = start(base, dim, document_length)
        set_dropout(model, dropout)
        model.to(ranks.device, torch.float64 if precision == "fp64" else torch.float32).train()
        length = train_document_length or document_length
        reader = Tokenizer(
            tokenizer.subwords,
            replace(tokenizer.config, document_length=length, query_length=query_length),
        )

        # Data.
        sources = [read_data(spec, on_missing=on_missing, limit=limit) for spec in data]
        batches = Batches(
            sources,
            reader,
            n_ways=n_ways,
            batch=batch,
            steps=steps,
            seed=seed,
            rank=ranks.rank,
            world=ranks.world,
        )
        ranks.say(f"Tuples: {batches.lessons.summary()}.")
        for name, ways, scored in batches.lessons.kinds():
            check_teachable(name, ways, scored, losses)
        dev_set = None
        if dev is not None and ranks.first:
            from training.dev import DevSet

            dev_set = DevSet(
                dev, dev_split, limit=dev_limit if limit is None else min(limit, dev_limit or limit)
            )

        if ranks.first:  # when all has been read, so that a mistyped path does not stay in the recipe
            inputs = {"base_digest": weights_digest(base), "data_digest": batches.lessons.digest}
            begin(out, recipe | inputs, changeable=("torch",))

        # Optimizer, and where the run was.
        stepper = make_optimizer(model, optimizer, learning_rate, math.ceil(warmup * steps), weight_decay)
        running = deepcopy(model) if ema else None
        kept = nn.ModuleDict({"model": model} | ({"ema": running} if running is not None else {}))
        scaler = torch.amp.GradScaler(ranks.device.type, enabled=precision == "fp16")
        step = load_state(out / STATE_FOLDER, kept, [stepper])
        if of_scaler := load_more(out / STATE_FOLDER):
            scaler.load_state_dict(of_scaler)

        # Loop.
        report = stack.enter_context(Report(out, steps, step, quiet=not ranks.first))
        for learnt in loader(batches, step, steps, workers, ranks.device):
            torch.manual_seed(seed * 1_000_003 + step * ranks.world + ranks.rank)  # of dropout
            if optimizer == "linear":
                factor = rate_factor(step, steps, warmup * steps, (1 - warmup) * steps)
                for group in stepper.param_groups:
                    group["lr"] = learning_rate * factor
            value = 0.0
            for part in parts(learnt, micro):
                share = len(part.labelled) / len(learnt.labelled)
                with attention(ranks.device):  # also in the backward pass, which may compute layers again
                    with lowered(precision, ranks.device):
                        loss = share * batch_loss(model, part, losses, ranks, gradient_checkpointing)
                    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                value += loss.item()
            value = ranks.mean(value)
            if not math.isfinite(value):
                raise TrainingError(
                    f"The loss is {value} at step {step}; this rank's batch is of {learnt.source} and "
                    f"begins with query {learnt.first!r}. Lower --learning-rate, take --precision fp32, or "
                    "look at that batch."
                )
            ranks.average_gradients(model)
            if clip:
                scaler.unscale_(stepper)
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(stepper)
            scaler.update()
            stepper.zero_grad(set_to_none=True)
            if running is not None:
                with evaluated(stepper):
                    follow(running, model, ema)
            step += 1
            rate = float(stepper.param_groups[0].get("scheduled_lr", stepper.param_groups[0]["lr"]))
            report.step(
                step, loss=value, learning_rate=rate, tokens=learnt.n_tokens * ranks.world,
                peak_memory_mb=peak_memory_mb(ranks.device),
            )  # fmt: skip

            # The state last: what it says was done is not done again.
            if ranks.first and checkpoint_every and step % checkpoint_every == 0 and step < steps:
                with evaluated(stepper):
                    write(out / CHECKPOINTS_FOLDER / f"step-{step}", model, tokenizer, dtype)
            if dev_set is not None and (step % dev_every == 0 or step == steps):
                with evaluated(stepper):
                    found = dev_set.score(model, tokenizer, device=ranks.device)
                report.note(step, **{f"{name} of {dev_set.name}": score for name, score in found.items()})
            if ranks.first and step % save_every == 0:
                report.flush()
                save_state(out / STATE_FOLDER, kept, [stepper], step, scaler.state_dict())

        # The model.
        if ranks.first:
            report.flush()
            save_state(out / STATE_FOLDER, kept, [stepper], step, scaler.state_dict())
            if running is not None:
                write(out / EMA_FOLDER, running, tokenizer, dtype)
            with evaluated(stepper):
                write(out, model, tokenizer, dtype)
            report.say(f"ColBERT written to {out}.")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; torchrun tells each which it is."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def from_environment(cls, device: str | None) -> Ranks:
        """This process; without torchrun it is alone."""
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return cls(rank, world, place)

    @property
    def first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Meet the others, and part from them."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world == 1:
            yield
            return
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()

    def say(self, line: str) -> None:
        """Print once."""
        if self.first:
            console.print(line, markup=False)

    def mean(self, value: float) -> float:
        """The mean of a number over all ranks; NaN where one has NaN."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return float(total) / self.world

    def gathered(self, documents: Tensor, kept: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Documents of all ranks, in the ranks' order; gradients go back to whose they are."""
        if self.world == 1:
            return documents, kept, keys
        width = torch.tensor(documents.shape[1], device=self.device)
        torch.distributed.all_reduce(width, torch.distributed.ReduceOp.MAX)
        more = int(width) - documents.shape[1]
        documents = nn.functional.pad(documents, (0, 0, 0, more))
        return (
            _Gathered.apply(documents),  # type: ignore[no-untyped-call]
            _gathered(nn.functional.pad(kept, (0, more)).to(torch.uint8)).bool(),
            _gathered(keys),
        )

    def average_gradients(self, model: nn.Module) -> None:
        """Give all ranks the mean of their gradients, in one exchange.

        By hand and not by DistributedDataParallel: queries, documents, micro-batches and recomputed layers
        make several passes through the network before one exchange, which it is not made for.
        """
        if self.world == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, mean in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))


class _Gathered(torch.autograd.Function):
    """Rows of all ranks, whose gradients are the sums of what all ranks found."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.n = len(rows)
        return _gathered(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous()
        torch.distributed.all_reduce(total)
        return total[torch.distributed.get_rank() * ctx.n :][: ctx.n]


def _gathered(rows: Tensor) -> Tensor:
    """Rows of all ranks, in the ranks' order."""
    each = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(each, rows.contiguous())
    return torch.cat(each)


def start(base: str, dim: int, document_length: int) -> tuple[ColBERT, Tokenizer]:
    """The network and tokenizer to train: of a ColBERT, or a backbone under a new projection."""
    folder = resolve_folder(base, is_complete=has_weights)
    weights = {}
    if has_weights(folder) and not (folder / formats.MODULES_FILE).is_file():
        weights = read_weights(folder)
    if not weights or formats.PROJECTION in weights:
        loaded = checkpoint.load(base, overrides={"document_length": document_length})
        return loaded.model, loaded.tokenizer
    config = checkpoint.read_backbone_config(folder)
    backbone = load_backbone(config, weights)
    projection = Dense(config.hidden_size, dim)
    nn.init.orthogonal_(projection.linear.weight)  # keeps the distances as well as dim allows
    model = ColBERT(backbone, [projection])
    settings = EncoderConfig(
        dim=dim, document_length=document_length, max_positions=n_positions(backbone) or document_length
    )
    return model, Tokenizer(load_subwords(folder), settings)


def check_teachable(name: str, n_ways: int, scored: bool, losses: Losses) -> None:
    """Refuse a source that no loss asked for can learn from.

    Raises:
        TrainingError: with what to pass.
    """
    if losses.contrast and (n_ways > 1 or losses.negatives != "own"):
        return
    if not scored or n_ways == 1 or not (losses.kl or losses.margin_mse):
        raise TrainingError(
            f"The tuples of {name} have {'teacher' if scored else 'no'} scores and {n_ways} documents a "
            f"query, and nothing that is asked for learns from them: {losses}. Score them with "
            "training.score, or pass --contrast 1."
        )
    if n_ways == 2 and losses.normalize == "both" and not losses.margin_mse:
        raise TrainingError(
            f"Of the two documents a query of {name}, min-max normalisation makes 0 and 1, whatever they "
            "score, so that nothing is learnt. Take --n-ways 3 or more, or --normalize none."
        )


def set_dropout(model: ColBERT, share: float | None) -> None:
    """Let dropout layers drop this share; None leaves them."""
    for module in model.modules():
        if share is not None and isinstance(module, nn.Dropout):
            module.p = share


def loader(
    batches: Batches, step: int, steps: int, workers: int | None, device: torch.device
) -> DataLoader[Batch]:
    """Batches from a step on, tokenised by other processes where a GPU would wait for them."""
    n = (4 if device.type == "cuda" else 0) if workers is None else workers
    return DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(step, steps),
        num_workers=n,
        multiprocessing_context="fork" if n else None,  # memory-mapped texts cannot be sent to a new process
        collate_fn=_as_it_is,  # with batch_size=None it is given one item
        prefetch_factor=4 if n else None,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def parts(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of at most so many queries."""
    for start_ in range(0, len(batch.labelled), size):
        yield batch.part(start_, min(start_ + size, len(batch.labelled)))


def lowered(precision: Precision, device: torch.device) -> torch.autocast:
    """Products of this precision; weights and losses stay in float32."""
    enabled = precision in ("bf16", "fp16")
    return torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=enabled)


@contextmanager
def attention(device: torch.device) -> Iterator[None]:
    """On a CPU the fused kernel's backward pass takes three times as long as that of plain products."""
    if device.type != "cpu":
        yield
        return
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        yield


def batch_loss(
    model: ColBERT, batch: Batch, losses: Losses, ranks: Ranks, gradient_checkpointing: bool = False
) -> Tensor:
    """The weighted sum of losses over some queries; its mean over all ranks is the whole batch's."""
    device = ranks.device
    queries, asked = embed(model, batch.queries, device, gradient_checkpointing)
    # A document that several queries have is read once.
    keys = torch.from_numpy(batch.keys)
    first, places = distinct(keys)
    documents, kept = embed(model, batch.documents.take(first.numpy()), device, gradient_checkpointing)
    keys, places = keys.to(device), places.to(device)
    documents, kept = documents[places], kept[places]
    n_queries, n_ways = batch.labelled.shape
    scored = batch.scores is not None and n_ways > 1 and bool(losses.kl or losses.margin_mse)
    if scored or losses.negatives == "own":
        own_documents = documents.view(n_queries, n_ways, *documents.shape[1:])
        own = maxsim_own(queries, asked, own_documents, kept.view(n_queries, n_ways, -1))
    terms = []
    if scored:
        teacher = torch.from_numpy(batch.scores).to(device, own.dtype)
        if losses.kl:
            terms.append(losses.kl * distillation_loss(own, teacher, losses.normalize))
        if losses.margin_mse:
            terms.append(losses.margin_mse * margin_mse_loss(own, teacher, losses.normalize))
    if losses.contrast:
        labelled = torch.from_numpy(batch.labelled).to(device)
        if losses.negatives == "own":
            scores, positives, out = own, torch.zeros_like(labelled[:, 0], dtype=torch.long), labelled
        else:
            everyones, theirs, all_keys = ranks.gathered(documents, kept, keys)
            rows, columns = distinct(all_keys)  # or what many queries have would count as often
            scores = maxsim_padded(queries, asked, everyones[rows], theirs[rows])
            own_columns = columns.view(ranks.world, n_queries, n_ways)[ranks.rank]
            positives = own_columns[:, 0]
            out = left_out(labelled, own_columns, len(rows), with_own=losses.negatives == "in-batch")
        # A tuple without a label has nothing to contrast, and makes no other count for more.
        rows = labelled[:, 0]
        if rows.any():
            found = contrastive_loss(scores[rows], positives[rows], out[rows], losses.temperature)
            terms.append(losses.contrast * rows.float().mean() * found)
    # Left-overs of several sources may have nothing in common.
    return torch.stack(terms).sum() if terms else 0.0 * documents.sum()


def distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the first of each key, rising; and for each key which of these is its own."""
    inverse = torch.unique(keys, return_inverse=True)[1]
    places = torch.arange(len(keys), device=keys.device)
    first = torch.full_like(places, len(keys)).scatter_reduce(0, inverse, places, "amin")[inverse]
    rows = (first == places).nonzero()[:, 0]
    return rows, torch.searchsorted(rows, first)


def left_out(labelled: Tensor, columns: Tensor, n_documents: int, *, with_own: bool) -> Tensor:
    """(b, n_documents) bool: documents of a query's tuple that are no negatives: its answers, or all.

    Args:
        labelled: (b, n_ways) bool.
        columns: (b, n_ways) int64: where the documents of a tuple are.
        n_documents: distinct ones, of all ranks.
        with_own: all of its documents are left out.
    """
    own = torch.ones_like(labelled) if with_own else labelled
    out = torch.zeros(len(labelled), n_documents, dtype=torch.int8, device=columns.device)
    return out.scatter_reduce(1, columns, own.to(torch.int8), "amax").bool()


def embed(
    model: ColBERT, padded: Padded, device: torch.device, gradient_checkpointing: bool
) -> tuple[Tensor, Tensor]:
    """(n_texts, length, dim) embeddings with gradients, and (n_texts, length) bool of tokens that count."""
    lengths, width = padded.lengths, padded.ids.shape[1]
    found, order = [], []
    # Texts of like length together: in one pass, half of what is computed would be padding.
    for rows in batches_by_length(lengths, TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cuda"])):
        longest = int(lengths[rows].max())
        ids = torch.from_numpy(padded.ids[rows, :longest]).to(device)
        attended = torch.from_numpy(padded.attended[rows, :longest]).to(device)
        if gradient_checkpointing:
            embedded = recomputed(model, ids, attended, use_reentrant=False)
        else:
            embedded = model(ids, attended)
        found.append(nn.functional.pad(embedded, (0, 0, 0, width - longest)))
        order.append(rows)
    back = torch.from_numpy(np.argsort(np.concatenate(order))).to(device)
    return torch.cat(found)[back], torch.from_numpy(padded.kept).to(device)


def make_optimizer(
    model: nn.Module, name: OptimizerName, learning_rate: float, n_warmup: int, weight_decay: float = 0.0
) -> Optimizer:
    """AdamW, schedule-free as in JaColBERTv2.5 or under a linear decay as before it."""
    if name == "linear":
        return torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    import schedulefree

    stepper: Any = schedulefree.AdamWScheduleFree(
        model.parameters(), lr=learning_rate, warmup_steps=n_warmup, weight_decay=weight_decay
    )
    stepper.train()
    return stepper  # type: ignore[no-any-return]


def peak_memory_mb(device: torch.device) -> float:
    """The most that this process has held: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


@contextmanager
def evaluated(optimizer: Any) -> Iterator[None]:
    """Weights to use: schedule-free AdamW keeps two sets, and those that it steps with are not they."""
    schedule_free = hasattr(optimizer, "eval")
    if schedule_free:
        optimizer.eval()
    try:
        yield
    finally:
        if schedule_free:
            optimizer.train()


@torch.no_grad()
def follow(running: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the running mean towards the weights."""
    for mean, weight in zip(running.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def write(folder: Path, model: ColBERT, tokenizer: Tokenizer, dtype: str) -> None:
    """Write a checkpoint that the library loads."""
    with published(folder, WEIGHTS_FILE) as new:
        checkpoint.save(new, model, tokenizer, dtype=getattr(torch, dtype))


if __name__ == "__main__":
    run("distill", main)
