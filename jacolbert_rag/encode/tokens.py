"""Text to the token ids that the network reads: markers, limits, [MASK] augmentation, character offsets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jacolbert_rag.config import EncoderConfig, QueryLength
from jacolbert_rag.datatypes import BoolArray, IdArray, IntArray, SpecialTokens, TokenBatch, offsets_of
from jacolbert_rag.encode.fast import TOKENIZER_FILE, FastSubwords
from jacolbert_rag.encode.files import TOKENIZER_CONFIG_FILE, read_json
from jacolbert_rag.encode.words import JapaneseWordPiece
from jacolbert_rag.errors import CheckpointError

VOCAB_FILE = "vocab.txt"
ADDED_TOKENS_FILE = "added_tokens.json"
JAPANESE_CLASS = "BertJapaneseTokenizer"

# Only the first tokens of a long text are kept, so only its head is segmented: at first this many
# characters a token, and more where that did not suffice. A Japanese token covers 1.5 characters.
HEAD_CHARS_PER_TOKEN = 8
# A head that ends within the text may end within a word. Its last tokens are not those of the whole text,
# so this many must lie behind those that are kept.
HEAD_MARGIN = 64

# Files that transformers reads a tokenizer from, besides vocab.txt.
OWN_FORMATS = (TOKENIZER_FILE, "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.json")


class Subwords(Protocol):
    """A tokenizer of bare text; `JapaneseWordPiece` and `FastSubwords` are the two."""

    name: str
    vocab: dict[str, int]
    added: dict[str, int]  # tokens that are not pieces of text, such as markers
    special: SpecialTokens

    def reserve(self, markers: Sequence[str]) -> None:
        """Have text never become one of these tokens."""
        ...

    def ids(self, text: str) -> list[int]:
        """Ids of a raw text, without special tokens, markers or a limit."""
        ...

    def ids_of_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`ids` of each text."""
        ...

    def ids_and_spans(self, text: str) -> tuple[list[int], IntArray]:
        """Ids of a raw text, and the characters of the raw text under each: (n, 2) of start and end."""
        ...


@dataclass(frozen=True)
class _Frame:
    """What a query or a document is read in.

    Attributes:
        marker: its id stands behind the first token; None for none.
        in_place: the marker stands where a token of `lead` was (marker mode "dot"), so it takes no room.
        lead: text that is read before the text itself.
        limit: most tokens of a row.
    """

    marker: int | None
    in_place: bool
    lead: str
    limit: int


class Tokenizer:
    """What a checkpoint's network reads of a query and of a document."""

    def __init__(self, subwords: Subwords, config: EncoderConfig) -> None:
        """Put a bare tokenizer and a checkpoint's settings together.

        Raises:
            CheckpointError: a marker is not in the vocabulary.
        """
        markers = (config.query_marker, config.document_marker)
        missing = [marker for marker in markers if marker and marker not in subwords.vocab]
        if missing:
            raise CheckpointError(
                f"The vocabulary ({len(subwords.vocab)} tokens) lacks {', '.join(map(repr, missing))}. A "
                "ColBERT needs both its markers there: take the tokenizer and the metadata from the same "
                "checkpoint, or name the markers with query_marker and document_marker."
            )
        subwords.reserve([marker for marker in markers if marker])
        self.subwords = subwords
        self.config = config
        self.vocab = subwords.vocab
        self.special = subwords.special
        self.query_marker_id = self.vocab.get(config.query_marker) if config.query_marker else None
        self.document_marker_id = self.vocab.get(config.document_marker) if config.document_marker else None
        self.query_length = QueryLength.parse(config.query_length)
        self._query = self._frame(
            self.query_marker_id, config.query_prompt, self.query_length.longest(config.max_positions)
        )
        self._document = self._frame(self.document_marker_id, config.document_prompt, config.document_length)
        self._skipped = np.array(sorted(self.skiplist()), dtype=np.int32)

    @property
    def document_budget(self) -> int:
        """Tokens of text that fit a document beside its special tokens, marker and prompt."""
        return self._room(self._document) - len(self.word_ids(self._document.lead))

    @property
    def document_head(self) -> int:
        """Characters of a document that are segmented at first; more where they are too few tokens."""
        return HEAD_CHARS_PER_TOKEN * self._room(self._document)

    def skiplist(self) -> frozenset[int]:
        """Ids whose embeddings are not kept for documents.

        For Japanese checkpoints that is ASCII punctuation, to which NFKC has folded full-width
        punctuation; 、。「」・ are kept. A symbol that is not in the vocabulary is left out, as
        sentence-transformers does: colbert-ai and PyLate skip [UNK] in its place, and with it every
        unknown word. `skip_unknown` asks for that.
        """
        ids = {self.vocab[symbol] for symbol in self.config.skiplist if symbol in self.vocab}
        if self.config.skip_unknown and self.special.unk is not None:
            ids.add(self.special.unk)
        return frozenset(ids)

    def skiplist_collisions(self) -> tuple[str, ...]:
        """Symbols of the skiplist that the vocabulary lacks; elsewhere they make [UNK] a skipped token."""
        if self.special.unk is None:
            return ()
        return tuple(symbol for symbol in self.config.skiplist if symbol not in self.vocab)

    def kept(self, ids: IdArray) -> BoolArray:
        """(n_tokens,) whether a document keeps the embedding of each of its tokens."""
        return ~np.isin(ids, self._skipped)

    def word_ids(self, text: str) -> list[int]:
        """Ids of a raw text, without special tokens, markers or a limit."""
        return self.subwords.ids(text)

    def count(self, text: str) -> int:
        """Tokens of a raw text, as `word_ids` has them."""
        return len(self.subwords.ids(text))

    def documents(self, texts: Iterable[str]) -> TokenBatch:
        """Special tokens, marker and text, cut at the checkpoint's document length."""
        rows, n_cut = self._framed(texts, self._document)
        return _batch(rows, [len(row) for row in rows], n_cut)

    def queries(self, texts: Iterable[str]) -> TokenBatch:
        """Special tokens, marker, text and [MASK]s, by the rule; cut where it or the model ends."""
        rows, n_cut = self._framed(texts, self._query)
        n_attended = [len(row) for row in rows]
        for row in rows:
            row += [self.special.mask] * self._n_masks(len(row))
        if self.config.attend_to_mask_tokens:
            n_attended = [len(row) for row in rows]
        return _batch(rows, n_attended, n_cut)

    def document_spans(self, text: str) -> IntArray:
        """Which characters of a raw document lie under each of its tokens.

        Returns:
            (n_tokens, 2) int64 of start and end, one row for each id of `documents([text])`. Tokens that
            are not of the text (special tokens, marker, prompt) have -1, -1.
        """
        return self._read(text, self._document)[1]

    def kept_spans(self, passage: str) -> IntArray:
        """Which characters of a raw document lie under each token embedding that it keeps.

        Returns:
            (d_tokens, 2) int64 of start and end, one row for each embedding that the encoder makes of the
            passage, before pooling; -1, -1 as in `document_spans`.
        """
        ids, spans = self._read(passage, self._document)
        kept: IntArray = spans[self.kept(np.array(ids, dtype=np.int32))]
        return kept

    def query_spans(self, text: str) -> IntArray:
        """`document_spans` for a query: one row for each id of `queries([text])`."""
        spans = self._read(text, self._query)[1]
        return np.concatenate([spans, np.full((self._n_masks(len(spans)), 2), -1, dtype=np.int64)])

    def _n_masks(self, n: int) -> int:
        """[MASK]s behind a query of n tokens."""
        return max(0, min(self.query_length.padded(n), self.config.max_positions) - n)

    def _frame(self, marker: int | None, prompt: str, limit: int) -> _Frame:
        dot = self.config.marker_mode == "dot" and marker is not None
        return _Frame(marker, dot, (". " if dot else "") + prompt, limit)

    def _room(self, frame: _Frame) -> int:
        """Tokens of a row that lead and text share."""
        n_special = len(self.special.prefix) + len(self.special.suffix)
        return frame.limit - n_special - (frame.marker is not None and not frame.in_place)

    def _framed(self, texts: Iterable[str], frame: _Frame) -> tuple[list[list[int]], list[int]]:
        """Rows within the frame's limit, and how many ids each had at least to leave out."""
        rows, n_cut = [], []
        for ids, n_more in self._heads(texts, frame.lead, self._room(frame)):
            rows.append(self._row(ids, frame))
            n_cut.append(n_more)
        return rows, n_cut

    def _row(self, ids: list[int], frame: _Frame) -> list[int]:
        """Ids of lead and text, with the special tokens and the marker around them."""
        row = [*self.special.prefix, *ids, *self.special.suffix]
        if frame.marker is not None:
            row[1 : 2 if frame.in_place else 1] = [frame.marker]
        return row

    def _heads(self, texts: Iterable[str], lead: str, room: int) -> Iterator[tuple[list[int], int]]:
        """The first `room` ids of each text behind `lead`, and how many more it has at least."""
        texts = list(texts)
        size = HEAD_CHARS_PER_TOKEN * room
        for text, ids in zip(
            texts, self.subwords.ids_of_many([lead + text[:size] for text in texts]), strict=True
        ):
            end = size
            while len(ids) < room + HEAD_MARGIN and end < len(text):  # long runs of spaces, long words
                end *= 4
                ids = self.subwords.ids(lead + text[:end])
            yield ids[:room], max(0, len(ids) - room)

    def _read(self, text: str, frame: _Frame) -> tuple[list[int], IntArray]:
        """One row of `_framed`, and the characters of the raw text under each of its ids."""
        n_lead, room = len(frame.lead), self._room(frame)
        size = HEAD_CHARS_PER_TOKEN * room
        ids, spans = self.subwords.ids_and_spans(frame.lead + text[:size])
        while len(ids) < room + HEAD_MARGIN and size < len(text):
            size *= 4
            ids, spans = self.subwords.ids_and_spans(frame.lead + text[:size])
        row = self._row(ids[:room], frame)
        own = spans[:room] - n_lead
        own = np.where(own[:, 1:] > 0, np.maximum(own, 0), -1)  # not the tokens of the lead
        framed = np.full((len(row), 2), -1, dtype=np.int64)
        begin = len(self.special.prefix) + (frame.marker is not None and not frame.in_place)
        framed[begin : begin + len(own)] = own
        if frame.in_place:
            framed[1] = -1
        return row, framed


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer's files."""
    return any((folder / name).is_file() for name in (VOCAB_FILE, *OWN_FORMATS))


def load_subwords(folder: Path) -> Subwords:
    """The bare tokenizer of a checkpoint's folder, or of another folder with its tokenizer's files.

    Raises:
        CheckpointError: a file is missing or unreadable, or the class is certainly wrong.
    """
    settings = read_json(folder / TOKENIZER_CONFIG_FILE)
    vocab = _read_vocab(folder / VOCAB_FILE)
    name = str(settings.get("tokenizer_class") or "")
    if name == JAPANESE_CLASS:
        return _load_japanese(folder, settings, vocab)
    if not has_tokenizer(folder):
        raise CheckpointError(
            f"{folder} has no tokenizer: none of {', '.join((VOCAB_FILE, *OWN_FORMATS))}. Bare intermediate "
            "checkpoints have none; name where to take it with tokenizer=, such as "
            "tokenizer='bclavie/JaColBERT' for those of JaColBERTv2.5."
        )
    if (
        vocab is not None
        and name.removesuffix("Fast") in ("", "BertTokenizer")
        and _has_japanese_words(vocab)
    ):
        raise CheckpointError(
            f"{folder / TOKENIZER_CONFIG_FILE} names the tokenizer {name or 'of no class'}, which sets every "
            f"kanji apart, but {folder / VOCAB_FILE} has words of several kanji: it was made with MeCab. "
            f"Take {TOKENIZER_CONFIG_FILE} from the checkpoint that this one was trained from; it says "
            f'"tokenizer_class": "{JAPANESE_CLASS}".'
        )
    return FastSubwords.from_folder(folder)


def _load_japanese(folder: Path, settings: dict[str, Any], vocab: list[str] | None) -> JapaneseWordPiece:
    if vocab is None:
        raise CheckpointError(
            f"{folder} has no {VOCAB_FILE}, so its tokenizer is unknown. Copy it from the checkpoint that "
            "this one was trained from, or name one that has it with tokenizer=."
        )
    expected = {
        "word_tokenizer_type": "mecab",
        "subword_tokenizer_type": "wordpiece",
        "mecab_dic": "unidic_lite",
        "mecab_option": None,
        "normalize_text": True,
    }
    # Before transformers 5 the dictionary that was not named was ipadic; a checkpoint from then that
    # relied on it cannot be told from one that relies on today's.
    kwargs = settings.get("mecab_kwargs") or {}
    found = {
        "word_tokenizer_type": settings.get("word_tokenizer_type", "basic"),
        "subword_tokenizer_type": settings.get("subword_tokenizer_type", "wordpiece"),
        "mecab_dic": kwargs.get("mecab_dic", "unidic_lite"),
        "mecab_option": kwargs.get("mecab_option") or None,
        "normalize_text": kwargs.get("normalize_text") is not False,
    }
    if found != expected:
        raise CheckpointError(
            f"{folder / TOKENIZER_CONFIG_FILE} asks for {found}; expected {expected}, as the JaColBERT "
            "family has. Use such a checkpoint."
        )
    added = {str(token): int(i) for token, i in read_json(folder / ADDED_TOKENS_FILE).items()}
    for i, token in (settings.get("added_tokens_decoder") or {}).items():
        added[str(token["content"])] = int(i)
    pieces = set(vocab)
    return JapaneseWordPiece(
        vocab,
        lowercase=bool(settings.get("do_lower_case")),
        added={token: i for token, i in added.items() if token not in pieces},
    )


def _read_vocab(path: Path) -> list[str] | None:
    """The tokens of vocab.txt, one a line; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 ({error}). Copy it from the checkpoint again.") from error


def _has_japanese_words(tokens: Sequence[str]) -> bool:
    """Whether a vocabulary has words of several kanji, which BERT's own tokenizer can never make."""
    n_words = sum(1 for token in tokens if sum("\u4e00" <= c <= "\u9fff" for c in token) > 1)
    return n_words > 0.01 * len(tokens)


def _batch(rows: list[list[int]], n_attended: list[int], n_cut: list[int]) -> TokenBatch:
    return TokenBatch(
        ids=np.fromiter(chain.from_iterable(rows), dtype=np.int32),
        offsets=offsets_of([len(row) for row in rows]),
        n_attended=np.array(n_attended, dtype=np.int64),
        n_cut=np.array(n_cut, dtype=np.int64),
    )
