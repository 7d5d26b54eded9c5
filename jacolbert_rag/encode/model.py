"""The ColBERT network: a BERT backbone and a bias-free projection, rows of unit length."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import BertConfig, BertModel


class ColBERT(nn.Module):
    """Token embeddings of a batch of token ids.

    Parameter names are those of Stanford's HF_ColBERT checkpoints: `bert.*` and `linear.weight`
    (stanford-futuredata/ColBERT: colbert/modeling/hf_colbert.py).
    """

    def __init__(self, config: BertConfig, dim: int) -> None:
        """A network of random weights; `checkpoint.load` fills it."""
        super().__init__()
        self.config = config
        # SDPA takes the additive key mask that queries need; varlen and flash attention return zero
        # vectors for [MASK]s that nobody attends to (lightonai/pylate issues 109 and 125).
        config._attn_implementation = "sdpa"
        self.bert = BertModel(config, add_pooling_layer=False)
        self.linear = nn.Linear(config.hidden_size, dim, bias=False)

    def forward(self, ids: Tensor, attended: Tensor) -> Tensor:
        """Embed a padded batch.

        Args:
            ids: (n_texts, length) int64 token ids.
            attended: (n_texts, length) bool; False where a position is no key of attention, which
                are padding and a query's [MASK]s.

        Returns:
            (n_texts, length, dim), rows of unit length, padding rows included: the caller drops them.
        """
        hidden = self.bert(input_ids=ids, attention_mask=attended.long()).last_hidden_state
        return nn.functional.normalize(self.linear(hidden), p=2.0, dim=-1)
