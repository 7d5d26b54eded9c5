"""The settings of every stage: frozen, checked, and each default written once."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, get_args

from jacolbert_rag.errors import InvalidInputError

# What a token embedding is stored as; see `jacolbert_rag.index.quantize.Codec`.
StoredDtype = Literal["float32", "float16", "int8", "residual4", "residual2"]
ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]
# What documents are found by: token embeddings, the words of full-text search, or both.
SearchMode = Literal["jacolbert", "bm25", "hybrid"]
# How two scores become one; see `jacolbert_rag.index.fusion`.
Fusion = Literal["min-max", "rrf"]
# How a marker comes into a text's ids: behind the first token; or, as colbert-ai did until 0.2.20 (and so
# while JaColBERTv2.5 was trained), by reading ". " before the text and writing over the second token. The two
# differ where the full stop changes MeCab's segmentation, in about 1 text of 500.
MarkerMode = Literal["insert", "dot"]


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

    def _require_whole(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(name, isinstance(value, int) and not isinstance(value, bool), "a whole number")

    def _require_number(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            self._require(name, is_number and math.isfinite(value), "a finite number")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InvalidInputError(
                f"{type(self).__name__}.{name} must be {expected}, not {getattr(self, name)!r}."
            )


@dataclass(frozen=True)
class QueryLength:
    """A rule of query augmentation: how many tokens a query has once [MASK]s are appended.

    n counts a query's own tokens: [CLS], marker and [SEP] included.

    Rules, as they are written in settings::

        "paper": `dynamic(32, 8)`, the rule of JaColBERTv2.5 (arXiv 2407.20750, section 3.5).
        "dynamic(M, K)": the next multiple of M; where that appends fewer than K [MASK]s, exactly K.
        "jqara": the code of JQaRA's evaluator (hotchpotch/JQaRA: evaluator/reranker/
            colbert_reranker.py), which made the published figures: n + 8 where n mod 32 <= 8, else the
            next multiple of 32. It may append a single [MASK].
        "fixed(N)": always N, as ColBERTv2, colbert-ai and PyLate; a longer query is cut.
        "plus(K)": n + K.
        "none": n, no [MASK].
    """

    kind: Literal["dynamic", "jqara", "fixed", "plus", "none"]
    size: int = 0  # N of fixed, M of dynamic
    n_masks: int = 0  # K: the fewest [MASK]s appended where the model has room

    @classmethod
    def parse(cls, rule: str) -> Self:
        """The rule of this name.

        Raises:
            InvalidInputError: there is none.
        """
        rule = rule.strip()
        if rule == "paper":
            return cls("dynamic", 32, 8)
        if rule == "jqara":
            return cls("jqara", 32, 8)
        if rule == "none":
            return cls("none")
        if match := re.fullmatch(r"fixed\(\s*(\d+)\s*\)", rule):
            return cls("fixed", int(match[1]))
        if match := re.fullmatch(r"plus\(\s*(\d+)\s*\)", rule):
            return cls("plus", 0, int(match[1]))
        if match := re.fullmatch(r"dynamic\(\s*([1-9]\d*)\s*,\s*(\d+)\s*\)", rule):
            return cls("dynamic", int(match[1]), int(match[2]))
        raise InvalidInputError(
            f"query_length is {rule!r}; expected 'paper', 'jqara', 'none', 'fixed(N)', 'plus(K)' or "
            "'dynamic(M, K)', such as 'fixed(32)'."
        )

    def padded(self, n: int) -> int:
        """Tokens of a query after augmentation; below n only where the rule is fixed."""
        if self.kind == "fixed":
            return self.size
        if self.kind == "jqara":
            return n + self.n_masks if n % self.size <= 8 else -(-n // self.size) * self.size
        if self.kind == "dynamic":
            length = -(-n // self.size) * self.size
            return length if length - n >= self.n_masks else n + self.n_masks
        return n + self.n_masks

    def longest(self, max_positions: int) -> int:
        """Most tokens of its own that a query may have: what the model reads, less the [MASK]s."""
        return self.size if self.kind == "fixed" else max_positions - self.n_masks


class EncoderOverrides(TypedDict, total=False):
    """Settings of `EncoderConfig` that a caller may put in place of the checkpoint's."""

    document_length: int
    query_length: str
    query_marker: str
    document_marker: str
    marker_mode: MarkerMode
    query_prompt: str
    document_prompt: str
    attend_to_mask_tokens: bool
    skiplist: Sequence[str]
    skip_unknown: bool


@dataclass(frozen=True)
class EncoderConfig(_Config):
    """How a checkpoint reads text. Defaults are those of JaColBERTv2.4's artifact.metadata."""

    dim: int = 128
    document_length: int = 300  # tokens; special tokens and the marker included
    query_length: str = "paper"  # see `QueryLength`
    query_marker: str = "[unused0]"  # its id stands behind the first token; "" for none
    document_marker: str = "[unused1]"
    marker_mode: MarkerMode = "insert"
    query_prompt: str = ""  # text read before every query; some sentence-transformers models have one
    document_prompt: str = ""
    attend_to_mask_tokens: bool = False  # may a query's tokens attend to its [MASK]s?
    skiplist: tuple[str, ...] = tuple(string.punctuation)  # documents keep no embeddings of these tokens
    skip_unknown: bool = False  # skip [UNK] too: what a skiplist symbol outside the vocabulary does elsewhere
    max_positions: int = 512  # tokens that the backbone can tell apart

    def __post_init__(self) -> None:
        object.__setattr__(self, "skiplist", tuple(self.skiplist))  # JSON has lists
        self._require_whole("document_length", "dim", "max_positions")
        for name in ("query_length", "query_marker", "document_marker", "query_prompt", "document_prompt"):
            self._require(name, isinstance(getattr(self, name), str), "a str")
        self._require("dim", self.dim > 0, "positive")
        self._require("max_positions", self.max_positions > 11, "above 11")
        self._require(
            "document_length",
            3 < self.document_length <= self.max_positions,
            f"from 4 to {self.max_positions}, what the model can read",
        )
        self._require("marker_mode", self.marker_mode in ("insert", "dot"), "'insert' or 'dot'")
        rule = QueryLength.parse(self.query_length)
        self._require(
            "query_length",
            rule.longest(self.max_positions) > 3 and rule.size <= self.max_positions,
            f"a rule that leaves a query from 4 to {self.max_positions} tokens, what the model can read",
        )

    def overrides(self) -> EncoderOverrides:
        """What reads text as these settings do, whatever a checkpoint says."""
        return EncoderOverrides(
            document_length=self.document_length,
            query_length=self.query_length,
            query_marker=self.query_marker,
            document_marker=self.document_marker,
            marker_mode=self.marker_mode,
            query_prompt=self.query_prompt,
            document_prompt=self.document_prompt,
            attend_to_mask_tokens=self.attend_to_mask_tokens,
            skiplist=self.skiplist,
            skip_unknown=self.skip_unknown,
        )


@dataclass(frozen=True)
class PoolingConfig(_Config):
    """How many token embeddings a document keeps."""

    factor: int = 1  # keep about 1/factor of the tokens; 1 keeps them all
    protected: int = 1  # leading tokens that are never pooled: the [CLS] position

    def __post_init__(self) -> None:
        self._require_whole("factor", "protected")
        self._require("factor", self.factor >= 1, "at least 1")
        self._require("protected", self.protected >= 0, "at least 0")


@dataclass(frozen=True)
class StoreConfig(_Config):
    """How token embeddings lie on disk."""

    dtype: StoredDtype = "residual4"
    n_centroids: int = 256  # that residuals are taken from
    codebook_tokens: int = 65_536  # tokens that the centroids are found from; until then float16 is stored

    def __post_init__(self) -> None:
        names = get_args(StoredDtype)
        self._require("dtype", self.dtype in names, "one of " + ", ".join(names))
        self._require_whole("n_centroids", "codebook_tokens")
        self._require("n_centroids", 1 <= self.n_centroids <= 65_536, "from 1 to 65,536")
        self._require("codebook_tokens", self.codebook_tokens >= 1, "at least 1")


@dataclass(frozen=True)
class CandidateConfig(_Config):
    """Which documents are worth an exact score: Voyager over vectors pooled across the corpus."""

    tokens_per_pooled: int = 96  # token embeddings of the corpus for one pooled vector
    max_pooled: int = 131_072  # bounds memory and time of pooling a large corpus
    samples_per_pooled: int = 32  # token embeddings that k-means sees for each pooled vector
    n_probed: int = 4  # cells of pooled vectors that a document's token is compared with
    n_nearest: int = 64  # pooled vectors that a query token takes
    n_candidates: int = 96  # documents handed to exact scoring, or 2 * k where that is more
    m: int = 12  # HNSW links a vector
    ef_construction: int = 100
    ef_search: int = 96
    rebuild_growth: float = 2.0  # pool anew when the corpus, or all that was ever listed, has grown by this
    seed: int = 12345

    def __post_init__(self) -> None:
        positive = (
            "tokens_per_pooled",
            "max_pooled",
            "samples_per_pooled",
            "n_probed",
            "n_nearest",
            "n_candidates",
        )
        self._require_whole(*positive, "m", "ef_construction", "ef_search", "seed")
        for name in positive:
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("m", self.m >= 2, "at least 2")
        self._require("ef_construction", self.ef_construction >= 1, "at least 1")
        self._require("ef_search", self.ef_search >= self.n_nearest, "at least n_nearest")
        self._require_number("rebuild_growth")
        self._require("rebuild_growth", self.rebuild_growth > 1, "above 1")


@dataclass(frozen=True)
class SearchConfig(_Config):
    """When search is exact."""

    exact_below: int = 1_000  # a corpus with fewer documents is scored whole: no candidates are built

    def __post_init__(self) -> None:
        self._require_whole("exact_below")
        self._require("exact_below", self.exact_below >= 0, "at least 0")


@dataclass(frozen=True)
class LexicalConfig(_Config):
    """Full-text search, and how it joins the search by token embeddings."""

    fold: bool = True  # words count in normalised form (表記ゆれ); else as they are written
    k1: float = 0.5  # BM25's saturation; defaults of both: `evals.systems`
    b: float = 0.75  # BM25's normalisation by length
    fusion: Fusion = "min-max"
    weight: float = 0.5  # of full-text search in hybrid search, from 0 to 1
    rrf_k: int = 60  # of reciprocal rank fusion (Cormack et al. 2009)
    n_fused: int = 100  # documents that each side proposes to the other, or k where that is more

    def __post_init__(self) -> None:
        self._require("fold", isinstance(self.fold, bool), "True or False")
        self._require("fusion", self.fusion in get_args(Fusion), "one of " + ", ".join(get_args(Fusion)))
        self._require_whole("rrf_k", "n_fused")
        self._require_number("k1", "b", "weight")
        self._require("k1", self.k1 >= 0, "at least 0")
        self._require("b", 0 <= self.b <= 1, "from 0 to 1")
        self._require("weight", 0 <= self.weight <= 1, "from 0 to 1")
        self._require("rrf_k", self.rrf_k >= 1, "at least 1")
        self._require("n_fused", self.n_fused >= 1, "at least 1")


@dataclass(frozen=True)
class IndexSettings:
    """How an index is made and searched; stored with it."""

    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    lexical: LexicalConfig = field(default_factory=LexicalConfig)

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
            lexical=LexicalConfig.from_json(values.get("lexical", {})),  # older indexes have none
        )


class _HubOptions(TypedDict, total=False):
    tokenizer: str | Path | None
    token: str | bool | None
    cache_dir: str | Path | None
    device: str | Sequence[str] | None
    dtype: ComputeDtype
    compile: bool
    query_length: str | None


class ModelOptions(_HubOptions, total=False):
    """How `JaColBERTRetriever.from_pretrained` loads a model, for adapters that hand it on."""

    revision: str | None
    document_length: int | None
    encoder: EncoderOverrides | None


class EngineOptions(ModelOptions, total=False):
    """Keyword arguments of `JaColBERTRetriever.from_pretrained`, for adapters that hand them on."""

    index: str | Path | None
    settings: IndexSettings | None


class LoadOptions(_HubOptions, total=False):
    """Keyword arguments of `JaColBERTRetriever.load`, for adapters that hand them on."""

    model: str | Path | None
    settings: IndexSettings | None
