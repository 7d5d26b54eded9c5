from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from jacolbert_rag.encode.bert import Bert, BertSettings
from jacolbert_rag.encode.model import load_backbone

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.5,
}


def both(**changes: object) -> tuple[Bert, BertModel]:
    """The same random weights in our network and in transformers'."""
    torch.manual_seed(3)
    config = BertConfig(**SHAPE, **changes)
    theirs = BertModel(config, add_pooling_layer=False).eval()
    settings = BertSettings.read(config.to_dict())
    assert settings is not None
    ours = load_backbone(settings, dict(theirs.state_dict()))
    assert isinstance(ours, Bert)
    return ours.eval(), theirs


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_equals_transformers(act: str) -> None:
    ours, theirs = both(hidden_act=act)
    ids = torch.randint(0, 60, (5, 40))
    attended = torch.arange(40) < torch.tensor([40, 1, 7, 39, 20])[:, None]
    with torch.inference_mode():
        for mask in (attended, None):
            expected = theirs(input_ids=ids, attention_mask=None if mask is None else mask.long())
            assert torch.allclose(ours(ids, mask), expected.last_hidden_state, atol=1e-5)


def test_equals_transformers_in_training() -> None:
    ours, theirs = both(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ids = torch.randint(0, 60, (2, 9))
    ours.train()(ids).square().sum().backward()
    theirs.train()(input_ids=ids).last_hidden_state.square().sum().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-3, rtol=1e-3), name


def test_dropout_acts_in_training_only() -> None:
    ours, _ = both(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    ids = torch.randint(0, 60, (2, 9))
    assert torch.equal(ours(ids), ours(ids))
    ours.train()
    assert not torch.equal(ours(ids), ours(ids))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "modernbert"},
        {"hidden_act": "silu"},
        {"is_decoder": True},
        {"auto_map": {"AutoModel": "modeling.Model"}},
    ],
)
def test_what_it_has_not_is_left_to_transformers(changes: dict[str, object]) -> None:
    values = BertConfig(**SHAPE).to_dict()
    assert BertSettings.read(values) is not None
    assert BertSettings.read(values | changes) is None


def test_configuration_is_written_as_it_was_read() -> None:
    values = BertConfig(**SHAPE).to_dict() | {"something": "else"}
    settings = BertSettings.read(values)
    assert settings is not None
    assert settings.to_dict() == values


def test_defaults_are_those_of_transformers() -> None:
    reference = BertConfig()
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                 "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob",
                 "max_position_embeddings", "type_vocab_size", "layer_norm_eps"):  # fmt: skip
        assert getattr(BertSettings(), name) == getattr(reference, name), name
