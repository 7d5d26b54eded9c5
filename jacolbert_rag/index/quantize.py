"""Token embeddings to bytes and back: floats, 8-bit numbers, and residuals of 4 or 2 bits."""

from __future__ import annotations

import math
import threading
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
    import torch
    from torch import Tensor

CodeArray: TypeAlias = npt.NDArray[np.uint8]

BITS = {"residual4": 4, "residual2": 2}
# Step of the uniform quantizer that loses least of a normal distribution, in its standard deviations
# (J. Max, Quantizing for minimum distortion, 1960, table II).
STEPS = {4: 0.3352, 2: 0.9957}
CHUNK = 16_384  # tokens encoded at once: a few copies of 8 MB stay near the processor


class Scratch(threading.local):
    """Memory of this thread that is used again: new megabytes cost as much as what is done in them."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor whose values are left over; on a GPU a new one, since torch keeps its memory by itself."""
        import torch

        if device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size:
            held = self._held[name] = torch.empty(size, dtype=dtype)
        return held[:size].view(shape)


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
            return 4 + self.n_packed
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

    def _encode_int8(self, flat: FloatArray, codes: CodeArray) -> None:
        step = np.maximum(np.abs(flat).max(axis=1, keepdims=True) / 127, np.finfo(np.float16).tiny)
        step = step.astype(np.float16)
        codes[:, :2] = step.view(np.uint8)
        numbers = np.clip(np.rint(flat / step.astype(np.float32)), -127, 127)
        codes[:, 2:] = numbers.astype(np.int8).view(np.uint8)

    def _encode_residuals(self, flat: FloatArray, codes: CodeArray) -> None:
        import torch

        labels = torch.from_numpy(nearest(flat, self.known_centroids))
        tokens = torch.from_numpy(np.ascontiguousarray(flat))
        residuals = tokens - torch.from_numpy(self.known_centroids).index_select(0, labels)
        tiny = float(np.finfo(np.float16).tiny)
        deviation = residuals.square().mean(dim=1, keepdim=True).sqrt_()
        numbers = self._numbers(residuals, deviation.mul_(STEPS[self.bits]).clamp_(min=tiny))
        # Of all steps, the one that leaves least of these numbers' residuals (least squares).
        centered = numbers.add_(self.offset)
        step = (residuals * centered).sum(dim=1, keepdim=True) / centered.square().sum(dim=1, keepdim=True)
        step = step.clamp_(min=tiny).half()
        numbers = self._numbers(residuals, step.float())
        codes[:, :2] = labels.numpy().astype(np.uint16)[:, None].view(np.uint8)
        codes[:, 2:4] = step.numpy().view(np.uint8)
        padded = torch.zeros((len(flat), self.n_packed * len(self.shifts)), dtype=torch.uint8)
        padded[:, : self.dim] = numbers
        packed = torch.zeros((len(flat), self.n_packed), dtype=torch.uint8)
        for i, shift in enumerate(self.shifts):
            packed |= padded[:, i * self.n_packed : (i + 1) * self.n_packed] << shift
        codes[:, 4:] = packed.numpy()

    def _decode_residuals(self, codes: CodeArray, decoded: FloatArray) -> None:
        import torch

        labels = torch.from_numpy(self.labels(codes))
        stored = torch.from_numpy(codes.copy())  # in one piece, and writable
        packed, step = stored[:, 4:], _float16(stored[:, 2:4])
        numbers = torch.cat([(packed >> shift) & self.mask for shift in self.shifts], dim=1)[:, : self.dim]
        found = torch.from_numpy(decoded)
        torch.index_select(torch.from_numpy(self.known_centroids), 0, labels, out=found)
        found.addcmul_(numbers.float().add_(self.offset), step)

    def _numbers(self, residuals: Tensor, step: Tensor) -> Tensor:
        return (residuals / step).floor_().add_(2 ** (self.bits - 1)).clamp_(0, self.mask)

    @property
    def bits(self) -> int:
        """Bits of a residual's numbers."""
        return BITS[self.dtype]

    @property
    def mask(self) -> int:
        """The bits of one number."""
        return (1 << self.bits) - 1

    @property
    def offset(self) -> float:
        """What is added to a code for its number."""
        return 0.5 - (1 << self.bits) / 2

    @property
    def shifts(self) -> range:
        """Where a byte's numbers begin."""
        return range(0, 8, self.bits)

    @property
    def n_packed(self) -> int:
        """Bytes of a residual."""
        return -(-self.dim * self.bits // 8)

    @property
    def known_centroids(self) -> FloatArray:
        """Centroids, of a codec of residuals."""
        assert self.centroids is not None, "a codec of residuals is made with centroids"
        return self.centroids

    def labels(self, codes: CodeArray) -> IntArray:
        """(n_tokens,) int64 centroid of each token.

        Raises:
            IndexCorruptError: there is no such centroid.
        """
        labels = np.ascontiguousarray(codes[:, :2]).view(np.uint16)[:, 0].astype(np.int64)
        # A GPU that is told to look beyond the end of a table is of no use to its process any more.
        if len(labels) and labels.max() >= len(self.known_centroids):
            raise IndexCorruptError(
                f"Stored token embeddings name the centroid {labels.max()} of "
                f"{len(self.known_centroids)}: a file of the index is damaged. verify() tells which."
            )
        return labels


def _float16(stored: Tensor) -> Tensor:
    """(n, 1) float32 of the (n, 2) bytes of float16 numbers."""
    import torch

    return stored.contiguous().view(torch.float16).float()


class Products:
    """Dot products of one query with tokens as they are stored: nothing is decoded first.

    What depends on the query alone is made once. For one thread at a time.
    """

    def __init__(self, codec: Codec, query: Tensor, scratch: Scratch | None = None) -> None:
        """Prepare a query.

        Args:
            codec: of the tokens.
            query: (q_tokens, dim) float32, on the device that multiplies.
            scratch: what is worked in.
        """
        import torch
        from torch.nn.functional import pad

        self._codec, self._n_asked, self._device = codec, len(query), query.device
        self._scratch = scratch if scratch is not None else Scratch()
        self._asked = query.T.contiguous()  # products take twice as long with a transposed view
        if codec.dtype in BITS:
            # The parts that the shifts of a byte stand for.
            width = codec.n_packed
            padded = pad(self._asked, (0, 0, 0, width * len(codec.shifts) - codec.dim))
            self._parts = [padded[i * width : (i + 1) * width] for i in range(len(codec.shifts))]
            self._constant = self._asked.sum(dim=0, keepdim=True) * codec.offset
            self._near = torch.from_numpy(codec.known_centroids).to(query.device) @ self._asked

    def of(self, codes: CodeArray) -> Tensor:
        """(n_tokens, q_tokens) float32 products with the tokens of these codes; good until the next call."""
        import torch

        products = self._take("products", self._n_asked, len(codes))
        if not len(codes):
            return products
        # Copied where they may not be written, because torch warns of that.
        codes = np.ascontiguousarray(codes) if codes.flags.writeable else codes.copy()
        stored = torch.from_numpy(codes).to(self._device)
        dtype = self._codec.dtype
        if dtype in BITS:
            return self._of_residuals(codes, stored, products)
        if dtype == "int8":
            numbers = self._take("numbers", self._codec.dim, len(codes)).copy_(stored[:, 2:].view(torch.int8))
            return torch.mm(numbers, self._asked, out=products).mul_(_float16(stored[:, :2]))
        floats = stored.view(getattr(torch, dtype))
        if dtype == "float16":
            floats = self._take("numbers", self._codec.dim, len(codes)).copy_(floats)
        return torch.mm(floats, self._asked, out=products)

    def _of_residuals(self, codes: CodeArray, stored: Tensor, products: Tensor) -> Tensor:
        import torch

        codec = self._codec
        packed = stored[:, 4:]
        opened = self._take("opened", codec.n_packed, len(codes), torch.uint8)
        numbers = self._take("numbers", codec.n_packed, len(codes))
        for i, (part, shift) in enumerate(zip(self._parts, codec.shifts, strict=True)):
            torch.bitwise_right_shift(packed, shift, out=opened)
            numbers.copy_(opened if shift + codec.bits == 8 else opened.bitwise_and_(codec.mask))
            torch.addmm(products if i else self._constant, numbers, part, out=products)
        near = self._take("near", self._n_asked, len(codes))
        labels = torch.from_numpy(codec.labels(codes)).to(self._device)
        torch.index_select(self._near, 0, labels, out=near)
        return torch.addcmul(near, products, _float16(stored[:, 2:4]), out=products)

    def _take(self, name: str, width: int, n_tokens: int, dtype: torch.dtype | None = None) -> Tensor:
        import torch

        return self._scratch.take(name, (n_tokens, width), dtype or torch.float32, self._device)


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
