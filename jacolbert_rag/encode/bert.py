"""BERT's encoder, the backbone of the JaColBERT family.

transformers has one, and importing it takes longer than all else that a first search does (2.0 of 4.0 s);
every other architecture is transformers' own. A test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True)
class BertSettings:
    """What a BERT's config.json says; names and defaults are transformers'.

    Attributes:
        values: the whole file, to be written again as it was.
    """

    vocab_size: int = 30_522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3_072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    values: Mapping[str, Any] = field(default_factory=dict)

    model_type = "bert"

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> BertSettings | None:
        """The settings in a config.json; None where it asks for more than this module has."""
        plain = (
            values.get("model_type") == "bert"
            and values.get("hidden_act", "gelu") in ACTIVATIONS
            and not values.get("is_decoder")
            and not values.get("auto_map")
        )
        known = {f.name for f in fields(cls)} - {"values"}
        return cls(**{k: v for k, v in values.items() if k in known}, values=dict(values)) if plain else None

    def to_dict(self) -> dict[str, Any]:
        """What config.json says."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "values"}
        return {**self.values, **own, "model_type": self.model_type}


class Bert(nn.Module):
    """Token ids to states; parameters are named as in transformers' BertModel.

    Source: Devlin et al., 2019; transformers: models/bert/modeling_bert.py. No pooler and no segments: all of
    a text is of the first type, as ColBERT has it.
    """

    base_model_prefix = "bert"

    def __init__(self, config: BertSettings) -> None:
        """A network without weights, to be filled; make it under `torch.device("meta")`."""
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_layers(config))})

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings, as transformers' models give it."""
        return self.embeddings.word_embeddings

    def forward(self, ids: Tensor, attended: Tensor | None = None) -> Tensor:
        """States of a padded batch.

        Args:
            ids: (n_texts, length) int64 token ids.
            attended: (n_texts, length) bool: which positions are keys of attention; None for all. Each
                text has at least one.

        Returns:
            (n_texts, length, hidden_size).
        """
        states: Tensor = self.embeddings(ids)
        # Every query of a text has the same keys, padding and [MASK]s included.
        mask = None if attended is None else attended[:, None, None, :]
        layers = self.encoder["layer"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            states = layer(states, mask)
        return states


class _Embeddings(nn.Module):
    def __init__(self, config: BertSettings) -> None:
        super().__init__()
        self.word_embeddings = _table(config.vocab_size, config.hidden_size)
        self.position_embeddings = _table(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = _table(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        # In the order in which transformers adds, so that sums are rounded alike.
        states = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        states = states + self.position_embeddings(positions)
        normalized: Tensor = self.dropout(self.LayerNorm(states))
        return normalized


class _Layer(nn.Module):
    """Attention and a feed-forward part, each added to what came in and normalised."""

    def __init__(self, config: BertSettings) -> None:
        super().__init__()
        size = config.hidden_size
        self.attention = nn.ModuleDict({"self": _Attention(config), "output": _Output(size, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(size, config.intermediate_size)})
        self.output = _Output(config.intermediate_size, config)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        states = self.attention["output"](self.attention["self"](states, mask), states)
        result: Tensor = self.output(self.activation(self.intermediate["dense"](states)), states)
        return result


class _Attention(nn.Module):
    def __init__(self, config: BertSettings) -> None:
        super().__init__()
        self.n_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        n_texts, length, size = states.shape
        query, key, value = (
            part(states).view(n_texts, length, self.n_heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        # Why SDPA: see `model.ATTENTION`.
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return mixed.transpose(1, 2).reshape(n_texts, length, size)


class _Output(nn.Module):
    def __init__(self, n_in: int, config: BertSettings) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, before: Tensor) -> Tensor:
        normalized: Tensor = self.LayerNorm(self.dropout(self.dense(states)) + before)
        return normalized


def _table(n: int, size: int) -> nn.Embedding:
    """A table without values: to draw some under `torch.device("meta")` loads half of torch's compiler."""
    return nn.Embedding(n, size, _weight=torch.empty(n, size))


def _layers(config: BertSettings) -> list[_Layer]:
    return [_Layer(config) for _ in range(config.num_hidden_layers)]
