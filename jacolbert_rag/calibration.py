"""When to say that nothing answers: a threshold of confidence, found in the corpus itself.

Sentences of stored documents are asked as if they were questions, of a corpus without the document that each
is from: what is best then answers a question that nothing answers. The threshold is a quantile of those
confidences. No questions and no judgements are needed, so it can be done for any corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from jacolbert_rag.datatypes import Document, FloatArray
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
LEAST_SENTENCES = 20  # below that a quantile says nothing


@dataclass(frozen=True)
class Calibration:
    """Below which confidence nothing answers.

    Attributes:
        threshold: of `Hit.scores["confidence"]`.
        quantile: of the confidences that it is.
        n_sentences: that were asked.
        n_documents: in the index then.
        mode: how documents were found.
        made_with: settings that change confidences, as they were then.
    """

    threshold: float
    quantile: float
    n_sentences: int
    n_documents: int
    mode: str
    made_with: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, one key a field."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` wrote; further keys, of a later version, are passed over."""
        return cls(**{each.name: values[each.name] for each in fields(cls)})


def questions(documents: Sequence[Document], n: int, rng: np.random.Generator) -> Iterator[tuple[int, str]]:
    """Sentences of documents chosen at random, one each, with the place of their document.

    Args:
        documents: to choose from.
        n: how many, at most.
        rng: chooses.
    """
    left = n
    for place in rng.permutation(len(documents)).tolist():
        text = documents[place].text
        spans = [span for span in sentences(text) if span.end - span.start >= LEAST_CHARACTERS]
        if spans and left:
            start, end = spans[int(rng.integers(len(spans)))]
            left -= 1
            yield place, text[start:end].strip()


def threshold(confidences: FloatArray, quantile: float) -> float:
    """The quantile of what was found best for questions that nothing answers.

    Raises:
        InvalidInputError: they are too few.
    """
    if len(confidences) < LEAST_SENTENCES:
        raise InvalidInputError(
            f"The index gave {len(confidences)} sentences to calibrate with; expected at least "
            f"{LEAST_SENTENCES}, from as many documents. Add documents first, or set a threshold of your own "
            'on hit.scores["confidence"].'
        )
    return float(np.quantile(confidences, quantile))
