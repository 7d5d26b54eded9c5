"""Text to token ids: NFKC, MeCab words, WordPiece, markers, [MASK] augmentation."""

from __future__ import annotations

import json
import re
import string
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jacolbert_rag.config import EncoderConfig
from jacolbert_rag.datatypes import TokenBatch, offsets_of
from jacolbert_rag.errors import CheckpointError

VOCAB_FILE = "vocab.txt"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_CLASS = "BertJapaneseTokenizer"
PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"

# WordPiece of BERT (transformers: models/bert_japanese, WordpieceTokenizer): a longer word is [UNK].
MAX_CHARS_PER_WORD = 100
# Words are Zipfian: a memo this large holds nearly every word met again, and bounds memory.
MAX_MEMO_WORDS = 200_000
# Only the first tokens of a long text are kept, so only its head is segmented. A token covers 1.5
# characters on average; 64 leaves room for long Latin words and runs of spaces.
MAX_CHARS_PER_TOKEN = 64

# Control characters that stand between words become a space (tab, line ends, vertical tab, form
# feed, file separators, next line); all others vanish, so that a NUL inside a word does not split it.
_SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85"
_CLEANED = dict.fromkeys((*range(32), *range(127, 160))) | {ord(c): " " for c in _SPACES}
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """The text as the encoder reads it: without control characters and lone surrogates, in NFKC.

    MeCab ends a text at NUL, and UTF-8 has no lone surrogates: either would lose a document.
    """
    return unicodedata.normalize("NFKC", _SURROGATES.sub("", text.translate(_CLEANED)))


def padded_query_length(n: int, rule: str) -> int:
    """Tokens of a query after [MASK] augmentation.

    Args:
        n: tokens of the query, [CLS], marker and [SEP] included.
        rule: "paper": the next multiple of 32; where that appends fewer than 8 [MASK]s, exactly 8
            (JaColBERTv2.5, arXiv 2407.20750, section 3.5). "fixed:N": N, as ColBERTv2.

    Returns:
        The length; below n only under a fixed rule, which cuts.
    """
    if rule == "paper":
        length = -(-n // 32) * 32
        return length if length - n >= 8 else n + 8
    return fixed_query_length(rule)


def fixed_query_length(rule: str) -> int:
    """N of the rule "fixed:N"."""
    return int(rule.removeprefix("fixed:"))


class WordSegmenter:
    """MeCab with unidic-lite: text to words.

    MeCab's lattice lives in the tagger, so each thread has one of its own.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def words(self, cleaned: str) -> list[str]:
        """Words of a text that went through `clean`, spaces dropped."""
        tagger = getattr(self._local, "tagger", None)
        if tagger is None:
            tagger = self._local.tagger = self._new_tagger()
        # -Owakati joins the words by spaces and is four times as fast as walking the nodes. What
        # NFKC leaves of white space ends a word for WordPiece too, so one split serves both.
        words: list[str] = tagger.parse(cleaned).split()
        return words

    @staticmethod
    def _new_tagger() -> Any:
        import fugashi
        import unidic_lite

        folder = unidic_lite.DICDIR
        return fugashi.GenericTagger(f'-d "{folder}" -r "{folder}/mecabrc" -Owakati')


class JapaneseTokenizer:
    """Token ids identical to transformers' BertJapaneseTokenizer (mecab, unidic_lite, wordpiece).

    Literal "[SEP]" or "[MASK]" in a text are text here, never special tokens: a document must not be
    able to end itself.
    """

    def __init__(self, vocab: Sequence[str], config: EncoderConfig) -> None:
        """Take a vocabulary (a token's id is its row) and the checkpoint's settings.

        Raises:
            CheckpointError: a special token or a marker is not in the vocabulary.
        """
        self.vocab = {token: i for i, token in enumerate(vocab)}
        if len(self.vocab) != len(vocab):
            raise CheckpointError(
                f"The vocabulary has {len(vocab)} lines, but only {len(self.vocab)} different ones, so ids "
                "are not certain. Take vocab.txt from the checkpoint again."
            )
        missing = [
            t
            for t in (PAD, UNK, CLS, SEP, MASK, config.query_marker, config.document_marker)
            if t not in self.vocab
        ]
        if missing:
            raise CheckpointError(
                f"The vocabulary ({len(self.vocab)} tokens) lacks {', '.join(missing)}. A ColBERT needs "
                "its special tokens and both markers there: take vocab.txt and artifact.metadata from "
                "the same checkpoint."
            )
        self.config = config
        self.pad_id, self.unk_id = self.vocab[PAD], self.vocab[UNK]
        self.cls_id, self.sep_id, self.mask_id = (self.vocab[t] for t in (CLS, SEP, MASK))
        self.query_marker_id = self.vocab[config.query_marker]
        self.document_marker_id = self.vocab[config.document_marker]
        self._segmenter = WordSegmenter()
        self._memo: dict[str, tuple[int, ...]] = {}

    @classmethod
    def from_folder(cls, folder: Path, config: EncoderConfig) -> JapaneseTokenizer:
        """Read vocab.txt and tokenizer_config.json.

        Raises:
            CheckpointError: a file is missing, or the tokenizer is of another kind.
        """
        for name in (VOCAB_FILE, TOKENIZER_CONFIG_FILE):
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"{folder} has no {name}, so its tokenizer is unknown. Copy it from the checkpoint "
                    "that this one was trained from."
                )
        try:
            settings = json.loads((folder / TOKENIZER_CONFIG_FILE).read_text(encoding="utf-8"))
            lines = (folder / VOCAB_FILE).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
            raise CheckpointError(
                f"{TOKENIZER_CONFIG_FILE} or {VOCAB_FILE} of {folder} is not readable ({error}). Copy both "
                "from the checkpoint again."
            ) from error
        _check_tokenizer(settings, folder)
        return cls(lines, config)

    def skiplist(self) -> frozenset[int]:
        """Ids whose embeddings are not kept for documents: the ASCII punctuation in the vocabulary.

        NFKC has folded full-width punctuation to ASCII; 、。「」・ are kept. A symbol that is not in the
        vocabulary is left out: its id would be [UNK], and every unknown word would vanish with it.
        """
        if not self.config.mask_punctuation:
            return frozenset()
        return frozenset(self.vocab[s] for s in string.punctuation if s in self.vocab)

    def word_ids(self, text: str) -> list[int]:
        """WordPiece ids of a text, without special tokens, markers or a limit."""
        ids: list[int] = []
        for word in self._segmenter.words(clean(text)):
            pieces = self._memo.get(word)
            if pieces is None:
                pieces = self._wordpiece(word)
                if len(self._memo) >= MAX_MEMO_WORDS:
                    self._memo = {}
                self._memo[word] = pieces
            ids.extend(pieces)
        return ids

    def documents(self, texts: Iterable[str]) -> TokenBatch:
        """[CLS] [D] tokens [SEP], cut at the checkpoint's document length."""
        limit = self.config.document_length
        rows, n_cut = [], []
        for text in texts:
            ids, cut = self._head(text, limit - 3)
            rows.append([self.cls_id, self.document_marker_id, *ids, self.sep_id])
            n_cut.append(cut)
        return _batch(rows, [len(row) for row in rows], n_cut)

    def queries(self, texts: Iterable[str]) -> TokenBatch:
        """[CLS] [Q] tokens [SEP] [MASK]s, padded by the configured rule, cut only where the model ends."""
        rule = self.config.query_length
        limit = self.config.max_positions - 8 if rule == "paper" else fixed_query_length(rule)
        rows, n_attended, n_cut = [], [], []
        for text in texts:
            ids, cut = self._head(text, limit - 3)
            row = [self.cls_id, self.query_marker_id, *ids, self.sep_id]
            length = min(padded_query_length(len(row), rule), self.config.max_positions)
            n_attended.append(len(row))
            rows.append(row + [self.mask_id] * (length - len(row)))
            n_cut.append(cut)
        if self.config.attend_to_mask_tokens:
            n_attended = [len(row) for row in rows]
        return _batch(rows, n_attended, n_cut)

    def _head(self, text: str, limit: int) -> tuple[list[int], int]:
        """The first `limit` ids, and how many more there are at least."""
        head = text[: MAX_CHARS_PER_TOKEN * limit]
        ids = self.word_ids(head)
        return ids[:limit], max(0, len(ids) - limit) + (
            not text[len(head) :].isspace() and len(text) > len(head)
        )

    def _wordpiece(self, word: str) -> tuple[int, ...]:
        """Greedy longest match first; a word with a piece that is not in the vocabulary is [UNK]."""
        if len(word) > MAX_CHARS_PER_WORD:
            return (self.unk_id,)
        pieces = []
        start, end = 0, len(word)
        while start < end:
            prefix = "##" if start else ""
            for stop in range(end, start, -1):
                piece = self.vocab.get(prefix + word[start:stop])
                if piece is not None:
                    break
            else:
                return (self.unk_id,)
            pieces.append(piece)
            start = stop
        return tuple(pieces)


def _batch(rows: list[list[int]], n_attended: list[int], n_cut: list[int]) -> TokenBatch:
    return TokenBatch(
        ids=np.array([i for row in rows for i in row], dtype=np.int32),
        offsets=offsets_of([len(row) for row in rows]),
        n_attended=np.array(n_attended, dtype=np.int64),
        n_cut=np.array(n_cut, dtype=np.int64),
    )


def _check_tokenizer(settings: dict[str, Any], folder: Path) -> None:
    """Refuse a tokenizer that would read Japanese otherwise than the model was trained on."""
    expected = {
        "tokenizer_class": TOKENIZER_CLASS,
        "word_tokenizer_type": "mecab",
        "subword_tokenizer_type": "wordpiece",
    }
    # AutoTokenizer falls back to BertTokenizer (single kanji) without a word where the class is missing.
    found = {key: settings.get(key) for key in expected}
    found["tokenizer_class"] = str(found["tokenizer_class"]).removesuffix("Fast")
    dictionary = (settings.get("mecab_kwargs") or {}).get("mecab_dic", "unidic_lite")
    if found != expected or dictionary != "unidic_lite" or settings.get("do_lower_case"):
        raise CheckpointError(
            f"{folder / TOKENIZER_CONFIG_FILE} names {found} with dictionary {dictionary!r} and "
            f"do_lower_case {bool(settings.get('do_lower_case'))}; this version reads {expected} with "
            "'unidic_lite' and no lower-casing, as the JaColBERT family has. Use such a checkpoint."
        )
