"""Text to subword ids by a checkpoint's own fast tokenizer: everything that is not BertJapanese."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jacolbert_rag.datatypes import IntArray, SpecialTokens
from jacolbert_rag.encode.files import TOKENIZER_CONFIG_FILE
from jacolbert_rag.encode.normalize import align, strip_controls
from jacolbert_rag.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model",
)  # fmt: skip

# Texts that show what a tokenizer puts around one; a small vocabulary may lack some.
_PROBES = ("a", "日", "。", "1")


class FastSubwords:
    """Subword ids of a transformers tokenizer with a fast (Rust) implementation.

    As with Japanese WordPiece, literal special tokens in a text are text.
    """

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        """Take a transformers tokenizer.

        Args:
            tokenizer: from AutoTokenizer.
            folder: where it came from, for messages.

        Raises:
            CheckpointError: it has no fast implementation, or lacks a token that padding needs.
        """
        self.name = type(tokenizer).__name__
        if not getattr(tokenizer, "is_fast", False):
            raise CheckpointError(
                f"The tokenizer of {folder}, {self.name}, has no fast implementation, so it gives no "
                f"character offsets. Save it with one ({TOKENIZER_FILE}), or name another with tokenizer=."
            )
        self._tokenizer, self._folder = tokenizer, folder
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # "[SEP]" in a text is text
        added = self._backend.get_added_tokens_decoder()
        self.added = {token.content: i for i, token in added.items()}
        self.vocab: dict[str, int] = tokenizer.get_vocab()
        self.special = self._special_tokens(folder)
        # Unigram models have "</s>" among their pieces, so a text could still end itself.
        self._reserved = {i for i, token in added.items() if token.special} - {self.special.unk}
        self._markers: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Callable[..., FastSubwords], tuple[Path, tuple[str, ...]]]:
        """A copy in another process: the backend does not tell a copy that special tokens are text."""
        return _restored, (self._folder, self._markers)

    def reserve(self, markers: Sequence[str]) -> None:
        """Have text never become one of these tokens, which PyLate adds as ones that are not special.

        Other added tokens that are not special are text, such as ModernBERT's runs of spaces.
        """
        self._markers = tuple(marker for marker in markers if marker in self.added)
        decoder = self._backend.get_added_tokens_decoder()
        plain = [decoder[self.added[m]] for m in self._markers if not decoder[self.added[m]].special]
        self._backend.add_special_tokens([_as_special(token) for token in plain])
        self._reserved |= {self.added[marker] for marker in self._markers}

    @classmethod
    def from_folder(cls, folder: Path) -> FastSubwords:
        """The tokenizer of a checkpoint's folder.

        Raises:
            CheckpointError: it cannot be read.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
            )
        except Exception as error:  # transformers raises its own, its backends' and plain Exceptions
            raise CheckpointError(
                f"The tokenizer of {folder} could not be read ({type(error).__name__}: {error}). Copy its "
                "files from the checkpoint again, or name a folder or hub id that has them with tokenizer=."
            ) from error
        return cls(tokenizer, folder)

    def ids(self, text: str) -> list[int]:
        """Ids of a raw text, without special tokens, markers or a limit."""
        return self._plain(self._backend.encode(strip_controls(text), add_special_tokens=False).ids)

    def ids_of_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`ids` of each text; on all cores."""
        cleaned = [strip_controls(text) for text in texts]
        return [
            self._plain(e.ids) for e in self._backend.encode_batch_fast(cleaned, add_special_tokens=False)
        ]

    def ids_and_spans(self, text: str) -> tuple[list[int], IntArray]:
        """Ids of a raw text, and the characters of the raw text under each: (n, 2) of start and end."""
        aligned = align(text, nfkc=False)
        encoding = self._backend.encode(aligned.text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        first, stop = offsets[:, 0], offsets[:, 1]
        starts = np.append(aligned.starts, len(text))[first]
        # A token of no character, such as a lone word start, has none of the raw text either.
        ends = np.where(first < stop, np.append(aligned.ends, 0)[stop - 1], starts)
        return self._plain(encoding.ids), np.stack([starts, ends], axis=1)

    def save(self, folder: Path) -> None:
        """Copy the tokenizer's files, as they are."""
        for name in TOKENIZER_FILES:
            source, target = self._folder / name, folder / name
            if source.is_file() and not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)

    def _plain(self, ids: list[int]) -> list[int]:
        """The ids of a text, in which reserved ones are unknown."""
        if self.special.unk is None or self._reserved.isdisjoint(ids):
            return ids
        return [self.special.unk if i in self._reserved else i for i in ids]

    def _special_tokens(self, folder: Path) -> SpecialTokens:
        tokenizer = self._tokenizer
        # PyLate's order: [MASK], else the end of sequence, else padding.
        candidates = (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        mask = next((i for i in candidates if i is not None), None)
        # Not the tokenizer's pad token alone: PyLate saves it as [MASK], which RoBERTa's positions are not
        # counted by. What pads is never attended to and never scored.
        pad = self.vocab.get("[PAD]", self.vocab.get("<pad>", tokenizer.pad_token_id))
        if pad is None:
            pad = mask
        if mask is None or pad is None:
            raise CheckpointError(
                f"The tokenizer of {folder} ({self.name}) has no mask, end or padding token, so queries "
                "cannot be padded. Take the tokenizer from the ColBERT checkpoint."
            )
        prefix, suffix = self._framing(folder)
        return SpecialTokens(
            pad=int(pad), unk=tokenizer.unk_token_id, mask=int(mask), prefix=prefix, suffix=suffix
        )

    def _framing(self, folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of the special tokens before and behind a text."""
        for probe in _PROBES:
            bare = self._backend.encode(probe, add_special_tokens=False).ids
            full = self._backend.encode(probe, add_special_tokens=True).ids
            for start in range(len(full) - len(bare) + 1):
                stop = start + len(bare)
                if bare and full[start:stop] == bare:
                    return tuple(full[:start]), tuple(full[stop:])
        raise CheckpointError(
            f"The tokenizer of {folder} ({self.name}) reads none of {', '.join(_PROBES)} as tokens with its "
            "special tokens around them, so where a text begins and ends is not known. Take the tokenizer "
            "from the ColBERT checkpoint."
        )


def _restored(folder: Path, markers: tuple[str, ...]) -> FastSubwords:
    subwords = FastSubwords.from_folder(folder)
    subwords.reserve(markers)
    return subwords


def _as_special(token: Any) -> Any:
    """An added token that text never becomes."""
    from tokenizers import AddedToken

    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=True,
    )
