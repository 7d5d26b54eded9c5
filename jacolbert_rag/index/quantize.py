"""Token embeddings to bytes and back: floats, 8-bit numbers, and residuals of 4 or 2 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from jacolbert_rag.config import StoredDtype
from jacolbert_rag.datatypes import FloatArray, IntArray, TokenArray, offsets_of
from jacolbert_rag.errors import IndexCorruptError
from jacolbert_rag.index.pooling import nearest

if TYPE_CHECKING:
    from torch import Tensor

CodeArray: TypeAlias = npt.NDArray[np.uint8]

BITS = {"residual4": 4, "residual2": 2}
# Step of the uniform quantizer that loses least of a normal distribution, in its standard deviations
# (J. Max, Quantizing for minimum distortion, 1960, table II).
STEPS = {4: 0.3352, 2: 0.9957}
CHUNK = 16_384  # tokens encoded at once: a few copies of 8 MB stay near the processor


@dataclass(frozen=True)
class Codec:
    """How token embeddings lie in bytes, one row of `width` bytes a token.

        float32, float16    the values
        int8                step (float16), then dim numbers
        residual4, 2        centroid (uint16), step (float16), then dim numbers of 4 or 2 bits

    A residual is what the nearest centroid leaves. Its numbers are (code + 0.5 - 2**bits / 2) * step; byte i
    has those of the dimensions i and i + dim / 2 (i, i + dim / 4, ... where bits is 2), the lowest bits
    first, so that a row opens without shuffling.

    Attributes:
        dtype: one of the above.
        dim: of an embedding.
        centroids: (n_centroids, dim) float32, at most 65,536; for residuals only.
    """

    dtype: StoredDtype
    dim: int
    centroids: FloatArray | None = None

    @property
    def width(self) -> int:
        """Bytes of a token."""
        if self.dtype in BITS:
            return 4 + self._n_packed
        return 2 + self.dim if self.dtype == "int8" else self.dim * np.dtype(self.dtype).itemsize

    def encode(self, flat: TokenArray) -> CodeArray:
        """(n_tokens, width) bytes of (n_tokens, dim) embeddings."""
        if self.dtype in ("float16", "float32"):
            values = np.ascontiguousarray(flat, dtype=self.dtype)
            return values.view(np.uint8).reshape(len(flat), self.width)
        codes = np.empty((len(flat), self.width), dtype=np.uint8)
        for start in range(0, len(flat), CHUNK):
            chunk = np.asarray(flat[start : start + CHUNK], dtype=np.float32)
            encode = self._encode_int8 if self.dtype == "int8" else self._encode_residuals
            encode(chunk, codes[start : start + CHUNK])
        return codes

    def decode(self, codes: CodeArray) -> FloatArray:
        """(n_tokens, dim) float32 that `encode` came nearest to."""
        if self.dtype in ("float16", "float32"):
            return np.ascontiguousarray(codes).view(self.dtype).astype(np.float32)
        if self.dtype == "int8":
            step = np.ascontiguousarray(codes[:, :2]).view(np.float16).astype(np.float32)
            return np.ascontiguousarray(codes[:, 2:]).view(np.int8) * step
        decoded = np.empty((len(codes), self.dim), dtype=np.float32)
        for start in range(0, len(codes), CHUNK):
            self._decode_residuals(codes[start : start + CHUNK], decoded[start : start + CHUNK])
        return decoded

    def similarities(self, codes: CodeArray, query: Tensor) -> Tensor:
        """(n_tokens, q_tokens) float32 dot products with a (q_tokens, dim) float32 query, on its device.

        Nothing is decoded first: products are of the numbers that are stored.
        """
        import torch

        asked = query.T.contiguous()  # products take twice as long with a transposed view
        if not len(codes):
            return torch.zeros((0, len(query)), device=query.device)
        # Copied where they may not be written, because torch warns of that.
        codes = np.ascontiguousarray(codes) if codes.flags.writeable else codes.copy()
        stored = torch.from_numpy(codes).to(query.device)
        if self.dtype in ("float16", "float32"):
            return stored.view(getattr(torch, self.dtype)).float() @ asked
        if self.dtype == "int8":
            numbers = stored[:, 2:].contiguous().view(torch.int8).float()
            return (numbers @ asked).mul_(_float16(stored[:, :2]))
        packed, products = stored[:, 4:], None
        for part, shift in zip(self._grouped(asked), self._shifts, strict=True):
            numbers = ((packed >> shift) & self._mask).float()
            products = numbers @ part if products is None else products.addmm_(numbers, part)
        assert products is not None
        products += self._offset * asked.sum(dim=0)
        products *= _float16(stored[:, 2:4])
        near = torch.from_numpy(self._known_centroids).to(query.device) @ asked
        labels = torch.from_numpy(self._labels(codes)).to(query.device)
        return products.add_(near.index_select(0, labels))

    def _encode_int8(self, flat: FloatArray, codes: CodeArray) -> None:
        step = np.maximum(np.abs(flat).max(axis=1, keepdims=True) / 127, np.finfo(np.float16).tiny)
        step = step.astype(np.float16)
        codes[:, :2] = step.view(np.uint8)
        numbers = np.clip(np.rint(flat / step.astype(np.float32)), -127, 127)
        codes[:, 2:] = numbers.astype(np.int8).view(np.uint8)

    def _encode_residuals(self, flat: FloatArray, codes: CodeArray) -> None:
        import torch

        labels = torch.from_numpy(nearest(flat, self._known_centroids))
        tokens = torch.from_numpy(np.ascontiguousarray(flat))
        residuals = tokens - torch.from_numpy(self._known_centroids).index_select(0, labels)
        tiny = float(np.finfo(np.float16).tiny)
        deviation = residuals.square().mean(dim=1, keepdim=True).sqrt_()
        numbers = self._numbers(residuals, deviation.mul_(STEPS[self.bits]).clamp_(min=tiny))
        # Of all steps, the one that leaves least of these numbers' residuals (least squares).
        centered = numbers.add_(self._offset)
        step = (residuals * centered).sum(dim=1, keepdim=True) / centered.square().sum(dim=1, keepdim=True)
        step = step.clamp_(min=tiny).half()
        numbers = self._numbers(residuals, step.float())
        codes[:, :2] = labels.numpy().astype(np.uint16)[:, None].view(np.uint8)
        codes[:, 2:4] = step.numpy().view(np.uint8)
        padded = torch.zeros((len(flat), self._n_packed * len(self._shifts)), dtype=torch.uint8)
        padded[:, : self.dim] = numbers
        packed = torch.zeros((len(flat), self._n_packed), dtype=torch.uint8)
        for i, shift in enumerate(self._shifts):
            packed |= padded[:, i * self._n_packed : (i + 1) * self._n_packed] << shift
        codes[:, 4:] = packed.numpy()

    def _decode_residuals(self, codes: CodeArray, decoded: FloatArray) -> None:
        import torch

        labels = torch.from_numpy(self._labels(codes))
        stored = torch.from_numpy(codes.copy())  # in one piece, and writable
        packed, step = stored[:, 4:], _float16(stored[:, 2:4])
        numbers = torch.cat([(packed >> shift) & self._mask for shift in self._shifts], dim=1)[:, : self.dim]
        found = torch.from_numpy(decoded)
        torch.index_select(torch.from_numpy(self._known_centroids), 0, labels, out=found)
        found.addcmul_(numbers.float().add_(self._offset), step)

    def _numbers(self, residuals: Tensor, step: Tensor) -> Tensor:
        return (residuals / step).floor_().add_(2 ** (self.bits - 1)).clamp_(0, self._mask)

    @property
    def bits(self) -> int:
        """Bits of a residual's numbers."""
        return BITS[self.dtype]

    @property
    def _mask(self) -> int:
        return (1 << self.bits) - 1

    @property
    def _offset(self) -> float:
        """What is added to a code for its number."""
        return 0.5 - (1 << self.bits) / 2

    @property
    def _shifts(self) -> range:
        return range(0, 8, self.bits)

    @property
    def _n_packed(self) -> int:
        """Bytes of a residual."""
        return -(-self.dim * self.bits // 8)

    @property
    def _known_centroids(self) -> FloatArray:
        assert self.centroids is not None, "a codec of residuals is made with centroids"
        return self.centroids

    def _labels(self, codes: CodeArray) -> IntArray:
        labels = np.ascontiguousarray(codes[:, :2]).view(np.uint16)[:, 0].astype(np.int64)
        # A GPU that is told to look beyond the end of a table is of no use to its process any more.
        if len(labels) and labels.max() >= len(self._known_centroids):
            raise IndexCorruptError(
                f"Stored token embeddings name the centroid {labels.max()} of "
                f"{len(self._known_centroids)}: a file of the index is damaged. verify() tells which."
            )
        return labels

    def _grouped(self, asked: Tensor) -> list[Tensor]:
        """A (dim, q_tokens) query in the parts that the shifts of a byte stand for."""
        from torch.nn.functional import pad

        n = self._n_packed
        padded = pad(asked, (0, 0, 0, n * len(self._shifts) - self.dim))
        return [padded[i * n : (i + 1) * n].contiguous() for i in range(len(self._shifts))]


def _float16(stored: Tensor) -> Tensor:
    """(n, 1) float32 of the (n, 2) bytes of float16 numbers."""
    import torch

    return stored.contiguous().view(torch.float16).float()


@dataclass(frozen=True)
class CodedTokens:
    """Token embeddings of many documents as they are stored, ragged.

    Attributes:
        codes: (n_tokens, codec.width) uint8; document i has `codes[offsets[i]:offsets[i + 1]]`.
        offsets: (n_docs + 1,) int64, rising from 0 to n_tokens.
        codec: what the bytes mean.
    """

    codes: CodeArray
    offsets: IntArray
    codec: Codec

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> IntArray:
        """(n_docs,) int64 tokens of each document."""
        return np.diff(self.offsets)

    def take(self, rows: IntArray) -> CodedTokens:
        """The documents of these rows, in this order, copied into one matrix."""
        lengths = self.lengths[rows]
        offsets = offsets_of(lengths)
        codes = np.empty((int(offsets[-1]), self.codes.shape[1]), dtype=np.uint8)
        # One copy a document: they are long runs of bytes, and an index of single tokens would be longer.
        for row, start, stop in zip(rows.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            first = self.offsets[row]
            codes[start:stop] = self.codes[first : first + stop - start]
        return CodedTokens(codes, offsets, self.codec)

    @staticmethod
    def concatenate(parts: Sequence[CodedTokens]) -> CodedTokens:
        """Documents of several parts, at least one, with one codec."""
        if len(parts) == 1:
            return parts[0]
        codes = np.concatenate([part.codes for part in parts])
        offsets = offsets_of(np.concatenate([part.lengths for part in parts]))
        return CodedTokens(codes, offsets, parts[0].codec)
