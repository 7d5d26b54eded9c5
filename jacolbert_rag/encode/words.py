"""Japanese text to WordPiece ids: MeCab words and the longest pieces in a vocabulary."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from jacolbert_rag.datatypes import IntArray, SpecialTokens
from jacolbert_rag.encode.normalize import align, clean
from jacolbert_rag.errors import CheckpointError

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"

# WordPiece of BERT (transformers: models/bert_japanese, WordpieceTokenizer): a longer word is [UNK].
MAX_CHARS_PER_WORD = 100
# Words are Zipfian: a memo this large holds nearly every word met again, and bounds memory.
MAX_MEMO_WORDS = 200_000
# MeCab (0.996) ends the process at some 100,000 words of one text, and takes time by the square of a run of
# one kind of characters. A text is read in pieces of at most so many characters.
PIECE_CHARS = 10_000


# MeCab's lattice lives in the tagger, so no two threads may use one at once. Taggers that are idle are shared
# by all segmenters and threads, since one that is dropped never gives its 3 MB back (fugashi 1.5).
_IDLE_TAGGERS: deque[Any] = deque()
_IDLE_ANALYZERS: deque[Any] = deque()

# Texts whose words were asked for with their features, the last few: a hit's are asked for without them next.
_RECENT: dict[str, list[str]] = {}
MAX_RECENT = 16

# Of unidic-lite's features: part of speech, its first division, lemma, and the basic form as it is written.
# Words that are not in the dictionary have no more than the first two. The full stop at the end keeps what is
# empty before it, since fugashi strips what MeCab says.
_NODE = r"%m\t%f[0]\t%f[1]\t%f[7]\t%f[10]\t.\n"
_UNKNOWN_NODE = r"%m\t%f[0]\t%f[1]\t\t\t.\n"


class TaggedWord(NamedTuple):
    """A word, and what the dictionary says of it.

    Attributes:
        surface: as it is written.
        pos: part of speech, such as 名詞.
        division: of that, such as 固有名詞.
        lemma: 語彙素, such as サーバー-server for サーバ; empty where the word is unknown.
        base: basic form as it is written, such as 書く for 書い; empty where the word is unknown.
    """

    surface: str
    pos: str
    division: str
    lemma: str
    base: str


class WordSegmenter:
    """MeCab with unidic-lite: text to words. Any number of threads may use one."""

    def words(self, cleaned: str) -> list[str]:
        """Words of a text that went through `clean`, spaces dropped."""
        if (lines := _RECENT.get(cleaned)) is not None:
            return [word for line in lines for word in line.partition("\t")[0].split()]
        try:
            tagger = _IDLE_TAGGERS.pop()
        except IndexError:
            tagger = self._new_tagger("-Owakati")
        try:
            # -Owakati joins the words by spaces and is four times as fast as walking the nodes. What
            # NFKC leaves of white space ends a word for WordPiece too, so one split serves both.
            return [word for piece in _pieces(cleaned) for word in tagger.parse(piece).split()]
        finally:
            _IDLE_TAGGERS.append(tagger)

    def tagged(self, cleaned: str) -> list[TaggedWord]:
        """`words` with their parts of speech and lemmas."""
        return [word for line in self.lines(cleaned) for word in tagged_words(line)]

    def lines(self, cleaned: str) -> list[str]:
        """What MeCab says of each word, for `tagged_words`: to be remembered with what is made of it."""
        try:
            analyzer = _IDLE_ANALYZERS.pop()
        except IndexError:
            # A format of its own is three times as fast as walking the nodes.
            analyzer = self._new_tagger(f"-O '' -F '{_NODE}' -U '{_UNKNOWN_NODE}' -E ''")
        try:
            lines = [line for piece in _pieces(cleaned) for line in analyzer.parse(piece).split("\n")]
        finally:
            _IDLE_ANALYZERS.append(analyzer)
        if len(cleaned) <= PIECE_CHARS:
            _RECENT[cleaned] = lines
            while len(_RECENT) > MAX_RECENT:
                with suppress(KeyError, RuntimeError):  # another thread was faster
                    del _RECENT[next(iter(_RECENT))]
        return lines

    @staticmethod
    def _new_tagger(output: str) -> Any:
        import fugashi
        import unidic_lite

        folder = unidic_lite.DICDIR
        return fugashi.GenericTagger(f'-d "{folder}" -r "{folder}/mecabrc" {output}')


def _pieces(cleaned: str) -> Iterator[str]:
    """The text in pieces that MeCab survives, cut behind sentences or words where that can be."""
    start = 0
    while len(cleaned) - start > PIECE_CHARS:
        stop = start + PIECE_CHARS
        cut = max(cleaned.rfind(mark, start, stop) for mark in "。 、,")
        stop = cut + 1 if cut >= 0 else stop
        yield cleaned[start:stop]
        start = stop
    yield cleaned[start:]


def tagged_words(line: str) -> tuple[TaggedWord, ...]:
    """The word of one of `WordSegmenter.lines`; several where white space is within, none of an empty one."""
    if not line:
        return ()
    word = TaggedWord(*line.split("\t")[:-1])
    # As in `words`: what NFKC leaves of white space ends a word, and is none.
    return tuple(word._replace(surface=part) for part in word.surface.split())


class JapaneseWordPiece:
    """Subword ids identical to transformers' BertJapaneseTokenizer (mecab, unidic_lite, wordpiece).

    Literal "[SEP]" or "[MASK]" in a text are text here, never special tokens: a document must not be
    able to end itself.
    """

    name = "BertJapaneseTokenizer (MeCab, unidic-lite, WordPiece)"

    def __init__(
        self, vocab: Sequence[str], *, lowercase: bool = False, added: dict[str, int] | None = None
    ) -> None:
        """Take a vocabulary.

        Args:
            vocab: the tokens of vocab.txt; a token's id is its row.
            lowercase: `do_lower_case` of the tokenizer's settings.
            added: tokens with ids of their own, such as a marker. Text never becomes one.

        Raises:
            CheckpointError: a token stands there twice, or a special token is not there.
        """
        self._pieces = {token: i for i, token in enumerate(vocab)}
        if len(self._pieces) != len(vocab):
            raise CheckpointError(
                f"The vocabulary has {len(vocab)} lines, but only {len(self._pieces)} different ones, so ids "
                "are not certain. Take vocab.txt from the checkpoint again."
            )
        missing = [t for t in (PAD, UNK, CLS, SEP, MASK) if t not in self._pieces]
        if missing:
            raise CheckpointError(
                f"The vocabulary ({len(self._pieces)} tokens) lacks {', '.join(missing)}. A ColBERT needs "
                "its special tokens: take vocab.txt from the checkpoint again."
            )
        self.tokens = tuple(vocab)
        self.lowercase = lowercase
        self.added = dict(added or {})
        self.vocab = self._pieces | self.added
        self.special = SpecialTokens(
            pad=self.vocab[PAD],
            unk=self.vocab[UNK],
            mask=self.vocab[MASK],
            prefix=(self.vocab[CLS],),
            suffix=(self.vocab[SEP],),
        )
        self._unknown = (self.vocab[UNK],)
        self._segmenter = WordSegmenter()
        self._memo: dict[str, tuple[int, ...]] = {}

    def reserve(self, markers: Sequence[str]) -> None:
        """Have text never become one of these tokens: it never becomes an added one here."""

    def ids(self, text: str) -> list[int]:
        """Ids of a raw text, without special tokens, markers or a limit."""
        ids: list[int] = []
        memo = self._memo
        for word in self._segmenter.words(clean(text)):
            pieces = memo.get(word)
            ids.extend(self._remember(word) if pieces is None else pieces)
        return ids

    def ids_of_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`ids` of each text."""
        return [self.ids(text) for text in texts]

    def ids_and_spans(self, text: str) -> tuple[list[int], IntArray]:
        """Ids of a raw text, and the characters of the raw text under each: (n, 2) of start and end."""
        aligned = align(text, nfkc=True)
        ids: list[int] = []
        starts: list[int] = []
        stops: list[int] = []
        memo, find, stop = self._memo, aligned.text.index, 0
        for word in self._segmenter.words(aligned.text):
            # MeCab drops spaces and nothing else, so the next word is the next occurrence.
            start = find(word, stop)
            stop = start + len(word)
            pieces = memo.get(word)
            if pieces is None:
                pieces = self._remember(word)
            ids.extend(pieces)
            if len(pieces) == 1:
                starts.append(start)
                stops.append(stop)
            else:
                for first, last in self._cuts(word, pieces):
                    starts.append(start + first)
                    stops.append(start + last)
        return ids, aligned.spans(starts, stops)

    def _cuts(self, word: str, pieces: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """Where in a word each of its pieces lies; the whole word where that is not certain."""
        lengths = [len(self.tokens[i]) - (2 if n else 0) for n, i in enumerate(pieces)]  # without "##"
        if pieces == self._unknown or sum(lengths) != len(word):  # lower-casing changed the length
            yield from [(0, len(word))] * len(pieces)
            return
        start = 0
        for length in lengths:
            yield start, start + length
            start += length

    def _remember(self, word: str) -> tuple[int, ...]:
        pieces = self._memo.get(word)
        if pieces is None:
            pieces = self._wordpiece(word.lower() if self.lowercase else word)
            if len(self._memo) >= MAX_MEMO_WORDS:
                self._memo.clear()
            self._memo[word] = pieces
        return pieces

    def _wordpiece(self, word: str) -> tuple[int, ...]:
        """Greedy longest match first; a word with a piece that is not in the vocabulary is [UNK]."""
        if len(word) > MAX_CHARS_PER_WORD:
            return self._unknown
        pieces = []
        start, end = 0, len(word)
        while start < end:
            prefix = "##" if start else ""
            for stop in range(end, start, -1):
                piece = self._pieces.get(prefix + word[start:stop])
                if piece is not None:
                    break
            else:
                return self._unknown
            pieces.append(piece)
            start = stop
        return tuple(pieces)
