from __future__ import annotations

import inspect
import json
from collections.abc import Callable

import pytest

from jacolbert_rag import (
    CandidateConfig,
    EncoderConfig,
    InvalidInputError,
    JaColBERTRetriever,
    LexicalConfig,
    PoolingConfig,
    SearchConfig,
    StoreConfig,
)
from jacolbert_rag.config import EncoderOverrides, EngineOptions, LoadOptions, QueryLength

# The reference's table: (n, the paper's rule, the code of JQaRA's evaluator).
TABLE = [
    (4, 32, 12), (8, 32, 16), (9, 32, 32), (20, 32, 32), (24, 32, 32), (25, 33, 32), (26, 34, 32),
    (31, 39, 32), (32, 40, 40), (33, 64, 41), (40, 64, 48), (41, 64, 64), (56, 64, 64), (57, 65, 64),
    (64, 72, 72),
]  # fmt: skip


@pytest.mark.parametrize(("n", "paper", "jqara"), TABLE)
def test_published_rules(n: int, paper: int, jqara: int) -> None:
    assert QueryLength.parse("paper").padded(n) == paper
    assert QueryLength.parse("dynamic(32, 8)").padded(n) == paper
    assert QueryLength.parse("jqara").padded(n) == jqara


def test_paper_rule_always_leaves_eight_masks() -> None:
    rule = QueryLength.parse("paper")
    for n in range(3, 505):
        assert rule.padded(n) - n >= 8
        assert rule.padded(n) == n + 8 or rule.padded(n) % 32 == 0


@pytest.mark.parametrize(
    ("rule", "lengths"),
    [
        ("fixed(32)", {5: 32, 32: 32, 50: 32}),
        ("plus(8)", {5: 13, 32: 40}),
        ("none", {5: 5, 32: 32}),
        ("dynamic(16, 4)", {5: 16, 13: 17, 16: 20, 17: 32}),
        ("dynamic(48,8)", {5: 48, 41: 49, 48: 56}),
        (" fixed( 32 ) ", {5: 32}),
    ],
)
def test_other_rules(rule: str, lengths: dict[int, int]) -> None:
    assert {n: QueryLength.parse(rule).padded(n) for n in lengths} == lengths


@pytest.mark.parametrize(
    ("rule", "longest"),
    [("paper", 504), ("jqara", 504), ("none", 512), ("plus(20)", 492), ("fixed(40)", 40)],
)
def test_longest_query(rule: str, longest: int) -> None:
    assert QueryLength.parse(rule).longest(512) == longest


@pytest.mark.parametrize(
    "rule", ["", "papers", "fixed", "fixed:32", "fixed(-1)", "dynamic(32)", "dynamic(0, 8)"]
)
def test_unknown_rule_is_refused(rule: str) -> None:
    with pytest.raises(InvalidInputError, match=r"expected 'paper', 'jqara'.*'fixed\(32\)'"):
        EncoderConfig(query_length=rule)


@pytest.mark.parametrize(
    "rule", ["fixed(3)", "fixed(129)", "plus(126)", "dynamic(256, 8)", "dynamic(32, 127)"]
)
def test_rule_that_the_model_cannot_follow_is_refused(rule: str) -> None:
    with pytest.raises(InvalidInputError, match="from 4 to 128 tokens"):
        EncoderConfig(query_length=rule, max_positions=128, document_length=64)


def test_settings_survive_json() -> None:
    config = EncoderConfig(query_length="jqara", marker_mode="dot", skiplist=(",", "."), skip_unknown=True)
    assert EncoderConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert EncoderConfig(**{**EncoderConfig().to_json(), **config.overrides()}) == config


def test_unknown_marker_mode_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'insert' or 'dot'"):
        EncoderConfig(marker_mode="prepend")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "options", "positional"),
    [
        (JaColBERTRetriever.from_pretrained, EngineOptions, {"model"}),
        (JaColBERTRetriever.load, LoadOptions, {"path"}),
    ],
)
def test_adapters_hand_every_argument_on(
    function: Callable[..., object], options: type, positional: set[str]
) -> None:
    assert set(inspect.signature(function).parameters) == set(options.__annotations__) | positional


def test_every_setting_that_weights_do_not_decide_can_be_overridden() -> None:
    config = EncoderConfig()
    assert set(EncoderOverrides.__annotations__) == set(config.to_json()) - {"dim", "max_positions"}
    assert set(config.overrides()) == set(EncoderOverrides.__annotations__)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (StoreConfig, "n_centroids"),
        (PoolingConfig, "factor"),
        (CandidateConfig, "m"),
        (SearchConfig, "exact_below"),
    ],
)
@pytest.mark.parametrize("value", [16.0, True, "16"])
def test_numbers_of_an_index_are_whole(kind: type, name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=rf"{kind.__name__}.{name} must be a whole number, not "):
        kind(**{name: value})


@pytest.mark.parametrize("wrong", ["0.5", None, True, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["k1", "b", "weight"])
def test_numbers_of_full_text_search_are_numbers(name: str, wrong: object) -> None:
    with pytest.raises(InvalidInputError, match=rf"LexicalConfig\.{name} must be a finite number"):
        LexicalConfig(**{name: wrong})  # type: ignore[arg-type]
