"""When to say that nothing answers: a threshold of confidence, found in the corpus itself.

Sentences of stored documents are asked as if they were questions, of a corpus without the document that each
is from: what is best then answers a question that nothing answers. The threshold is a quantile of those
confidences. No questions and no judgements are needed, so it can be done for any corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from jacolbert_rag.datatypes import Document
from jacolbert_rag.encode.sentences import sentences
from jacolbert_rag.errors import InvalidInputError

N_SENTENCES = 500  # asked by default
# Chosen on 500 questions of JaQuAD's train split and 300 headlines of Wikinews', each asked with its passages
# in the corpus and once more with those removed. How well confidence tells the two apart (area under the
# curve): .829 and .818 with words that no document has at .5 and all but nouns at .5, coverage as similarity;
# .828 and .807 with none of these and coverage twice as similarity; .828 and .819 with unknown words at .25,
# .823 and .817 at 0. Refused with and without their passages, by quantile: JaQuAD .84 .096 and .604, .86 .102
# and .634, .88 .116 and .656, .90 .132 and .676; Wikinews .087 and .617, .140 and .673, .183 and .680, .277
# and .727.
QUANTILE = 0.88
LEAST_CHARACTERS = 8  # of a sentence that is worth asking
# Below that a quantile says nothing. With 20 documents of the demo corpus, drawn 8 times at random, .375 of
# the questions were refused whose passage is among them, and .841 of others; with 50 it was .402 and .772,
# with all 318 .411.
LEAST_SENTENCES = 20


@dataclass(frozen=True)
class Calibration:
    """Below which confidence nothing answers.

    Attributes:
        thresholds: of `Hit.scores["confidence"]`, for each mode of search.
        quantile: of the confidences that they are.
        n_sentences: that were asked.
        n_documents: in the index then.
        made_with: settings that change confidences, as they were then.
    """

    thresholds: Mapping[str, float]
    quantile: float
    n_sentences: int
    n_documents: int
    made_with: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, one key a field."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` wrote; further keys, of a later version, are passed over.

        Raises:
            InvalidInputError: a key is missing: a version of the library that knew other thresholds wrote it.
        """
        try:
            return cls(**{each.name: values[each.name] for each in fields(cls)})
        except KeyError as error:
            raise InvalidInputError(
                f"The thresholds of this index were found by another version of the library ({error} is "
                "missing). Call calibrate() once."
            ) from error


def question_of(document: Document, rng: np.random.Generator) -> str | None:
    """A sentence of a document, drawn at random; None where it has none that is worth asking."""
    spans = [span for span in sentences(document.text) if span.end - span.start >= LEAST_CHARACTERS]
    if not spans:
        return None
    start, end = spans[int(rng.integers(len(spans)))]
    return document.text[start:end].strip()


def threshold(confidences: Sequence[float], quantile: float) -> float:
    """The quantile of what was found best for questions that nothing answers."""
    return float(np.quantile(np.array(confidences, dtype=np.float32), quantile))


def check(n: int, quantile: float, seed: int) -> None:
    """Refuse arguments of a calibration that are out of their range.

    Raises:
        InvalidInputError: one is.
    """
    for name, value, least in (("n", n, LEAST_SENTENCES), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InvalidInputError(f"{name} is {value!r}; expected a whole number, at least {least}.")
    if isinstance(quantile, bool) or not isinstance(quantile, int | float) or not 0 < quantile < 1:
        raise InvalidInputError(f"quantile is {quantile!r}; expected a number between 0 and 1.")
