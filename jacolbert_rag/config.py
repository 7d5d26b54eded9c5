"""The settings of every stage: frozen, checked, and each default written once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, TypedDict

from jacolbert_rag.errors import InvalidInputError

StoredDtype = Literal["float16", "float32"]
ComputeDtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class _Config:
    """JSON round trip shared by all settings."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, one key a field."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The settings that `to_json` wrote.

        Raises:
            InvalidInputError: a key is unknown or a value is out of range.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InvalidInputError(
                f"{cls.__name__} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}."
            )
        return cls(**values)

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InvalidInputError(
                f"{type(self).__name__}.{name} must be {expected}, not {getattr(self, name)!r}."
            )


@dataclass(frozen=True)
class EncoderConfig(_Config):
    """How a checkpoint reads text. Defaults are those of JaColBERTv2.4's artifact.metadata."""

    dim: int = 128
    document_length: int = 300  # tokens, [CLS], [D] and [SEP] included
    query_length: str = "paper"  # or "fixed:N"; see encode.tokens.padded_query_length
    query_marker: str = "[unused0]"  # its id stands after [CLS]; the text is never tokenised
    document_marker: str = "[unused1]"
    attend_to_mask_tokens: bool = False  # may a query's tokens attend to its [MASK]s?
    mask_punctuation: bool = True  # documents keep no embeddings of ASCII punctuation
    max_positions: int = 512  # the backbone's position embeddings

    def __post_init__(self) -> None:
        self._require("dim", self.dim > 0, "positive")
        self._require("max_positions", self.max_positions > 11, "above 11")
        self._require(
            "document_length",
            3 < self.document_length <= self.max_positions,
            f"from 4 to {self.max_positions}, what the model can read",
        )
        fixed = re.fullmatch(r"fixed:(\d+)", self.query_length)
        self._require(
            "query_length",
            self.query_length == "paper" or (fixed is not None and 3 < int(fixed[1]) <= self.max_positions),
            f"'paper', or 'fixed:N' with N from 4 to {self.max_positions}",
        )


@dataclass(frozen=True)
class PoolingConfig(_Config):
    """How many token embeddings a document keeps."""

    factor: int = 1  # keep about 1/factor of the tokens; 1 keeps them all
    protected: int = 1  # leading tokens that are never pooled: the [CLS] position

    def __post_init__(self) -> None:
        self._require("factor", self.factor >= 1, "at least 1")
        self._require("protected", self.protected >= 0, "at least 0")


@dataclass(frozen=True)
class StoreConfig(_Config):
    """How token embeddings lie on disk."""

    dtype: StoredDtype = "float16"

    def __post_init__(self) -> None:
        self._require("dtype", self.dtype in ("float16", "float32"), "'float16' or 'float32'")


@dataclass(frozen=True)
class CandidateConfig(_Config):
    """Which documents are worth an exact score: Voyager over vectors pooled across the corpus."""

    tokens_per_pooled: int = 64  # token embeddings of the corpus for one pooled vector
    max_pooled: int = 131_072  # bounds memory and time of pooling a large corpus
    samples_per_pooled: int = 16  # token embeddings that k-means sees for each pooled vector
    n_nearest: int = 32  # pooled vectors that a query token takes
    n_candidates: int = 256  # documents handed to exact scoring, or 2 * k where that is more
    m: int = 12  # HNSW links a vector
    ef_construction: int = 100
    ef_search: int = 96
    new_pooled_below: float = 0.5  # an added token less similar than this to all becomes a pooled vector
    rebuild_growth: float = 2.0  # pool anew when the corpus, or all that was ever listed, has grown by this
    seed: int = 12345

    def __post_init__(self) -> None:
        for name in ("tokens_per_pooled", "max_pooled", "samples_per_pooled", "n_nearest", "n_candidates"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("m", self.m >= 2, "at least 2")
        self._require("ef_construction", self.ef_construction >= 1, "at least 1")
        self._require("ef_search", self.ef_search >= self.n_nearest, "at least n_nearest")
        self._require("new_pooled_below", -1 <= self.new_pooled_below <= 1, "a cosine")
        self._require("rebuild_growth", self.rebuild_growth > 1, "above 1")


@dataclass(frozen=True)
class SearchConfig(_Config):
    """When search is exact."""

    exact_below: int = 1_000  # a corpus with fewer documents is scored whole: no candidates are built

    def __post_init__(self) -> None:
        self._require("exact_below", self.exact_below >= 0, "at least 0")


@dataclass(frozen=True)
class IndexSettings:
    """How an index is made and searched; stored with it."""

    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def to_json(self) -> dict[str, Any]:
        """One key a stage, each with its settings."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` wrote, from a manifest that holds more besides."""
        return cls(
            pooling=PoolingConfig.from_json(values["pooling"]),
            store=StoreConfig.from_json(values["store"]),
            candidates=CandidateConfig.from_json(values["candidates"]),
            search=SearchConfig.from_json(values["search"]),
        )


class EngineOptions(TypedDict, total=False):
    """Keyword arguments of `JaColBERTRetriever.from_pretrained`, for adapters that hand them on."""

    index: str | Path | None
    revision: str | None
    device: str | None
    dtype: ComputeDtype
    query_length: str | None
    document_length: int | None
    settings: IndexSettings | None
