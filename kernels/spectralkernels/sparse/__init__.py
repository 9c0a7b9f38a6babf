"""Sparse half spectra: what survives a threshold, stored in one of five formats.

| format | stored besides the values | bytes at kept fraction r, per complex64 coefficient |
|---|---|---|
| dense  | nothing; dropped coefficients are zeros | 8 |
| coo    | int64 coordinates, one row per axis | (8 + 8 axes) r |
| csr    | int32 column per value, int32 pointer per row | 12 r + 4 / columns |
| index  | int32 flat index per value | 12 r |
| bitmap | one bit per coefficient, int32 offset per block if compacted | 8 r + 1/8 (+ 1/256) |

A bitmap spectrum is divided into blocks of 1024 coefficients of the flattened array. The kept values of a block lie
packed, in order, at the start of the block's own 1024 slots, so that shapes are static, nothing waits for a count, and
the layout is the same in every run; slots beyond a block's count are undefined. `compact()` trims it to what is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from spectralkernels.checks import check_tensor, is_batched, kind
from spectralkernels.errors import DtypeError, RangeError, Unsupported
from spectralkernels.sparse import bitmap
from spectralkernels.stages import staged

Format = Literal["dense", "coo", "csr", "index", "bitmap"]
FORMATS: tuple[Format, ...] = get_args(Format)
_PARTS = {"dense": (0,), "coo": (1,), "csr": (2,), "index": (1,), "bitmap": (1, 2)}
LARGEST_INT32_COUNT = 2**31 - bitmap.BLOCK


@dataclass(frozen=True, eq=False)
class SparseSpectrum:
    """A half spectrum of which only some coefficients are kept.

    shape: of the dense half spectrum, [..., U, V]. format: one of `FORMATS`.
    values: complex kept values; [..., U, V] with zeros (dense), [blocks * 1024] slots or [nnz] (bitmap), else [nnz].
    index: what says where they belong. dense: (). coo: (int64 [axes, nnz],). csr: (int32 [rows + 1], int32 [nnz]) with
        every axis but the last flattened into rows. index: (int32 [nnz],). bitmap: (int32 words [blocks * 32],), and
        after `compact()` also int32 offsets [blocks] of each block's first value.
    n: signal length of the last axis, 2 (V - 1) or 2 (V - 1) + 1; None where whoever made the spectrum did not say.

    Gradients flow through `values`.
    """

    shape: tuple[int, ...]
    format: Format
    values: Tensor
    index: tuple[Tensor, ...] = ()
    n: int | None = None

    def __post_init__(self) -> None:
        _check_format(self.format)
        check_tensor("values", self.values)
        if not isinstance(self.index, tuple) or len(self.index) not in _PARTS[self.format]:
            raise DtypeError(f"index of format {self.format!r} must be a tuple of its tensors, got {kind(self.index)}")
        for part in self.index:
            check_tensor("each of index", part)
        if not isinstance(self.shape, tuple):
            raise DtypeError(f"shape must be a tuple of integers, got {kind(self.shape)}")

    def __repr__(self) -> str:
        shape = list(self.shape)
        return f"SparseSpectrum(shape={shape}, format={self.format!r}, dtype={self.dtype}, device={self.device})"

    def to(self, *args: Any, **kwargs: Any) -> SparseSpectrum:
        """The same spectrum on a device or in complex64 or complex128; arguments as in torch.Tensor.to."""
        values = self.values.to(*args, **kwargs)
        if not values.is_complex():
            raise DtypeError(f"the values of a SparseSpectrum are complex, got {values.dtype}")
        return replace(self, values=values, index=tuple(each.to(values.device) for each in self.index))

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def numel(self) -> int:
        """Coefficients of the dense half spectrum."""
        return math.prod(self.shape)

    @property
    def nnz(self) -> int:
        """Kept coefficients (dense: non-zero ones). Waits for the device where the count is not known on the host."""
        if self.format == "dense":
            return int(self.values.count_nonzero())
        if self.format == "bitmap":
            return int(bitmap.unpack_bits(self.index[0]).sum())
        return self.values.numel()

    @property
    def density(self) -> float:
        """Kept fraction of the coefficients; 0 for an empty spectrum."""
        return self.nnz / self.numel if self.numel else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes that the format uses: kept values plus what says where they belong.

        Of a bitmap that is not compacted this is less than what is allocated (see `allocated_nbytes`).
        """
        if self.format == "dense":
            return self.values.nbytes
        return self.nnz * self.values.element_size() + sum(part.nbytes for part in self.index)

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of the tensors held; differs from `nbytes` only for a bitmap that is not compacted."""
        return self.values.nbytes + sum(part.nbytes for part in self.index)

    def to_dense(self) -> Tensor:
        """The half spectrum with zeros where dropped.

        Returns: Complex [..., U, V], contiguous; differentiable with respect to `values`.
        """
        if self.format == "dense":
            return self.values
        if self.format == "bitmap":
            return bitmap.expand(self.values, *self.bits(), self.numel).reshape(self.shape)
        flat = self.values.new_zeros(self.numel)
        return flat.index_copy(0, self.flat_index(), self.values).reshape(self.shape)

    def bits(self) -> tuple[Tensor, Tensor | None]:
        """Words and, where the values are packed without gaps, offsets of a bitmap, as its operators take them."""
        return self.index[0], self.index[1] if len(self.index) > 1 else None

    def flat_index(self) -> Tensor:
        """Position of every kept value in the flattened spectrum. Returns: Int64 [nnz], ascending."""
        if self.format == "index":
            return self.index[0].long()
        if self.format == "coo":
            flat = torch.zeros_like(self.index[0][0])
            for size, coordinate in zip(self.shape, self.index[0], strict=True):
                flat = flat * size + coordinate
            return flat
        if self.format == "csr":
            pointers, columns = self.index
            rows = torch.arange(len(pointers) - 1, device=self.device)
            return torch.repeat_interleave(rows, pointers.diff()) * self.shape[-1] + columns
        return self.kept().flatten().nonzero().squeeze(1)

    def kept(self) -> Tensor:
        """Which coefficients are kept (dense: which are not zero). Returns: Bool [..., U, V]."""
        if self.format == "dense":
            return self.values != 0
        if self.format == "bitmap":
            return bitmap.unpack_bits(self.index[0]).flatten()[: self.numel].reshape(self.shape)
        flat = torch.zeros(self.numel, dtype=torch.bool, device=self.device)
        return flat.index_fill(0, self.flat_index(), True).reshape(self.shape)

    def to_format(self, format: Format) -> SparseSpectrum:
        """The same coefficients in another format; differentiable. RangeError on an unknown format."""
        _check_format(format)
        return self if format == self.format else replace(pack(self.to_dense(), self.kept(), format), n=self.n)

    def compact(self) -> SparseSpectrum:
        """The same spectrum in tensors no larger than `nbytes`; waits for the device. Other formats: itself."""
        if self.format != "bitmap" or len(self.index) > 1:
            return self
        counts = bitmap.unpack_bits(self.index[0]).sum(1)
        used = torch.arange(bitmap.BLOCK, device=self.device) < counts.unsqueeze(1)
        offsets = (counts.cumsum(0) - counts).to(torch.int32)
        values = self.values.reshape(-1, bitmap.BLOCK)[used]
        return replace(self, values=values, index=(self.index[0], offsets))


@staged("pack")
def pack(spectrum: Tensor, kept: Tensor, format: Format) -> SparseSpectrum:
    """Store the coefficients of `spectrum` where `kept` is true, in a format.

    spectrum: Complex [..., U, V]. kept: Bool, same shape.
    Returns: SparseSpectrum whose values carry gradients to `spectrum`.
    Raises: RangeError on an unknown format; Unsupported above 2^31 coefficients where the format counts in int32.
    Formats coo, csr and index have a size that depends on the data, so they wait for the device.
    """
    shape = tuple(spectrum.shape)
    _check_format(format)
    if (reason := too_large(spectrum, format)) is not None:
        raise Unsupported(reason)
    if format == "dense":
        return SparseSpectrum(shape, format, torch.where(kept, spectrum, 0.0))
    if format == "bitmap":
        values, words = bitmap.pack(spectrum.reshape(-1), kept.reshape(-1))
        return SparseSpectrum(shape, format, values, (words,))
    if is_batched(kept):
        raise Unsupported(
            f"torch.func.vmap has no place for maps that keep more than others, as format {format!r} does; "
            "use 'bitmap' or 'dense'"
        )
    if format == "coo":
        coordinates = kept.nonzero().T
        return SparseSpectrum(shape, format, spectrum[tuple(coordinates)], (coordinates.contiguous(),))
    flat = kept.reshape(-1).nonzero().squeeze(1)
    values = spectrum.reshape(-1)[flat]
    if format == "index":
        return SparseSpectrum(shape, format, values, (flat.to(torch.int32),))
    per_row = kept.reshape(-1, shape[-1]).sum(1).cumsum(0)
    pointers = torch.nn.functional.pad(per_row, (1, 0)).to(torch.int32)
    return SparseSpectrum(shape, format, values, (pointers, (flat % shape[-1]).to(torch.int32)))


@staged("pack")
def pack_compact(spectrum: Tensor, kept: Tensor) -> SparseSpectrum:
    """As `pack` into a bitmap, without gaps between the blocks, in tensors no larger than `nbytes`.

    Nothing but the bits and the blocks' offsets is kept for the backward pass. It waits for the device.
    """
    if (reason := too_large(spectrum, "bitmap")) is not None:
        raise Unsupported(reason)
    if is_batched(kept):
        raise Unsupported(
            "torch.func.vmap has no place for maps that keep more than others, as a compact bitmap does; "
            "use 'bitmap' or 'dense'"
        )
    bits = bitmap.blocked(kept.reshape(-1))
    words, counts = bitmap.pack_bits(bits), bits.sum(1)
    offsets = (counts.cumsum(0) - counts).to(torch.int32)
    values = bitmap.collect(spectrum.reshape(-1), words, offsets, int(counts.sum()))
    return SparseSpectrum(tuple(spectrum.shape), "bitmap", values, (words, offsets))


def _check_format(format: str) -> None:
    if not isinstance(format, str) or format not in FORMATS:
        raise RangeError(f"unknown sparse format {format!r}; known: {', '.join(FORMATS)}")


def too_large(spectrum: Tensor, format: Format) -> str | None:
    """The reason why a format cannot address the coefficients of `spectrum`, or None."""
    if format in ("dense", "coo") or spectrum.numel() <= LARGEST_INT32_COUNT:
        return None
    return (
        f"format {format!r} counts in int32 and takes at most {LARGEST_INT32_COUNT} coefficients, "
        f"got {spectrum.numel()}; split the batch"
    )
