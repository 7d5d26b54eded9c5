"""The ColBERT network: a transformer and the layers that project its states, rows of unit length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import torch
from torch import Tensor, nn

from jacolbert_rag.config import ComputeDtype
from jacolbert_rag.encode.bert import Bert, BertSettings
from jacolbert_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Of transformers' models, which are imported only where a checkpoint needs one: it takes two seconds.
BackboneConfig: TypeAlias = "BertSettings | PretrainedConfig"
Backbone: TypeAlias = "Bert | PreTrainedModel"

# SDPA takes the key mask that queries need; varlen and flash attention return zero vectors for [MASK]s that
# nobody attends to (lightonai/pylate issues 109 and 125). Without a mask, as for documents of one length,
# PyTorch's SDPA takes its flash kernel by itself.
ATTENTION = "sdpa"

# What a Dense layer of PyLate or sentence-transformers may name. Others are refused: a class named by a
# file is code that the file chooses.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in ("Identity", "Tanh", "GELU", "ReLU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "Softplus")
}


class Dense(nn.Module):
    """One projection layer: linear, activation, and an optional residual around both."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        bias: bool = False,
        activation: str = "Identity",
        residual: bool = False,
    ) -> None:
        """A layer of random weights.

        Args:
            n_in: width of its input.
            n_out: width of its output.
            bias: whether the linear map has one.
            activation: a name of `ACTIVATIONS`.
            residual: add the input to the output, through a linear map where the widths differ
                (lightonai/pylate: pylate/models/Dense.py).
        """
        super().__init__()
        self.linear = nn.Linear(n_in, n_out, bias=bias)
        self.activation_name = activation
        self.activation = ACTIVATIONS[activation]()
        self.has_residual = residual
        if residual and n_in != n_out:
            self.residual = nn.Linear(n_in, n_out, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """Project (..., n_in) to (..., n_out)."""
        projected: Tensor = self.activation(self.linear(states))
        if self.has_residual:
            projected = projected + (self.residual(states) if hasattr(self, "residual") else states)
        return projected


class ColBERT(nn.Module):
    """Token embeddings of a batch of token ids."""

    def __init__(self, backbone: Backbone, projection: Sequence[Dense]) -> None:
        """Put a transformer and its projection together."""
        super().__init__()
        self.backbone: Backbone = backbone
        self.projection = nn.ModuleList(projection)

    @property
    def config(self) -> Any:
        """The transformer's configuration: `BertSettings`, or transformers' own."""
        return self.backbone.config

    @property
    def dim(self) -> int:
        """Width of a token embedding."""
        layer = self.projection[-1]
        assert isinstance(layer, Dense)
        return layer.linear.out_features

    def forward(self, ids: Tensor, attended: Tensor | None = None) -> Tensor:
        """Embed a padded batch.

        Args:
            ids: (n_texts, length) int64 token ids.
            attended: (n_texts, length) bool; False where a position is no key of attention, which
                are padding and a query's [MASK]s. None where every position is: then attention needs no
                mask, and a GPU takes a faster kernel.

        Returns:
            (n_texts, length, dim) float32 (float64 where the network is), rows of unit length, padding rows
            included: the caller drops them.
        """
        if isinstance(self.backbone, Bert):
            states: Tensor = self.backbone(ids, attended)
        else:
            mask = None if attended is None else attended.long()
            states = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        for layer in self.projection:
            states = layer(states)
        # In float32: the squares of a bfloat16 row add up to a length that is wrong in the third digit.
        wide = states if states.dtype == torch.float64 else states.float()
        return nn.functional.normalize(wide, p=2.0, dim=-1)


def load_backbone(config: BackboneConfig, weights: dict[str, Tensor]) -> Backbone:
    """A transformer with these weights, without a pooler.

    Args:
        config: its configuration.
        weights: as a file names them: with the prefix of a model with a head ("bert."), or without. Tensors
            that the transformer has no place for are left out.

    Raises:
        WeightsMismatchError: a parameter has no tensor, or one of another shape.
    """
    with torch.device("meta"):  # costs nothing, and tells the class and its parameters
        blank = Bert(config) if isinstance(config, BertSettings) else empty_backbone(config)
    weights = _with_plain_names(weights, blank.base_model_prefix)
    own = blank.state_dict()
    missing = [key for key in own if key not in weights]
    wrong = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if missing or wrong:
        raise WeightsMismatchError(missing, wrong)
    if isinstance(blank, Bert):
        blank.load_state_dict({key: weights[key] for key in own}, assign=True)
        return blank
    assert not isinstance(config, BertSettings)
    kind = type(blank)
    with quiet_loading():
        return kind.from_pretrained(
            None,
            config=config,
            state_dict={key: weights[key] for key in own},
            attn_implementation=ATTENTION,
            dtype=torch.float32,
            **_without_pooler(kind),
        )


class WeightsMismatchError(Exception):
    """Weights that do not fit their configuration; `checkpoint` tells the user which file that is."""

    def __init__(self, missing: list[str], wrong: list[str]) -> None:
        """Take the names of parameters without a tensor, and of those with one of another shape."""
        super().__init__(f"{len(missing)} missing, {len(wrong)} of another shape")
        self.missing, self.wrong = missing, wrong


def empty_backbone(config: PretrainedConfig) -> PreTrainedModel:
    """A transformer of this configuration, with random weights, without a pooler.

    Raises:
        ValueError: transformers has no model of this type.
    """
    from transformers import AutoModel

    # transformers' methods are not annotated.
    build: Callable[..., PreTrainedModel] = AutoModel.from_config
    with torch.device("meta"):
        kind = type(build(config, attn_implementation=ATTENTION))
    return build(config, attn_implementation=ATTENTION, **_without_pooler(kind))


def _without_pooler(kind: type[PreTrainedModel]) -> dict[str, Any]:
    """BERT and its kin have a pooler, which nothing here reads; most architectures know no such argument."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in signature(kind).parameters else {}


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' bar and report over the weights: what is missing of them is looked at here."""
    from transformers.utils import logging

    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def n_positions(backbone: Any) -> int | None:
    """Most tokens that a transformer reads; None where nothing says so."""
    positions = getattr(backbone.config, "max_position_embeddings", None)
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    offset = getattr(table, "padding_idx", None)
    if positions and offset is not None:  # RoBERTa and its kin count positions from behind the padding's
        positions -= offset + 1
    return int(positions) if positions else None


def _with_plain_names(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights without an architecture's prefix, TensorFlow's LayerNorm names (gamma, beta) as PyTorch's."""
    renamed = {}
    for key, value in weights.items():
        name = key.removeprefix(f"{prefix}.")
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        renamed[name] = value
    return renamed


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """What the network computes in.

    Args:
        name: "float32", "bfloat16", "float16", or "auto".
        device: where it computes.

    Returns:
        For "auto": bfloat16 on CUDA (float16 on GPUs that only emulate it) and on CPUs that multiply
        bfloat16 by instruction (AMX, AVX512-BF16); else float32. float16 on a CPU was six times slower than
        float32.

    Raises:
        InvalidInputError: there is no such dtype.
    """
    if name not in get_args(ComputeDtype):
        raise InvalidInputError(f"dtype is {name!r}; expected {', '.join(get_args(ComputeDtype))}.")
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and has_fast_bfloat16():
        return torch.bfloat16
    return torch.float32


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 by instruction."""
    # torch.cpu.get_capabilities is new; before it, two private functions told the same.
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
    private = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16")]
    return any(is_supported is not None and is_supported() for is_supported in private)
