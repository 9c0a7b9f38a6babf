"""What a SpecNet block takes: its grid, and every argument that does not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spectralkernels.checks import as_integer, as_number, check_tensor
from spectralkernels.errors import DtypeError, RangeError, ShapeError
from spectralkernels.sparse import SparseSpectrum
from spectralkernels.spectra import half

PRECISION = {torch.float32: 32, torch.complex64: 32, torch.float64: 64, torch.complex128: 64}
"""What the block takes, with the bits of its real numbers."""


def flat_input(x: SparseSpectrum | Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The input as tensors: (values, words, offsets) of a bitmap, or (dense map or spectrum, None, None).

    Formats that are neither are converted, which waits for the device, as they do themselves.
    Raises: DtypeError if x is neither a SparseSpectrum nor a tensor of a type that the block takes.
    """
    if isinstance(x, SparseSpectrum):
        if x.format == "dense":
            return x.values, None, None
        x = x if x.format == "bitmap" else x.to_format("bitmap").compact()
        return x.values, *x.bits()
    if not isinstance(x, Tensor) or x.dtype not in PRECISION:
        got = str(x.dtype).removeprefix("torch.") if isinstance(x, Tensor) else type(x).__name__
        raise DtypeError(
            "x must be a SparseSpectrum, a real map or its half spectrum (float32, float64, complex64, complex128), "
            f"got {got}; convert it"
        )
    check_tensor("x", x)
    return x, None, None


def carried_length(x: SparseSpectrum | Tensor, n: int | None) -> int | None:
    """The signal length that is asked for or that x carries; None where neither says. ShapeError if they differ."""
    n = None if n is None else as_integer("n", n)
    if not isinstance(x, SparseSpectrum) or x.n is None:
        return n
    if n not in (None, x.n):
        raise ShapeError(f"n must be {x.n}, the signal length that x carries, got {n}; leave it out")
    return x.n


def spectrum_grid(x: SparseSpectrum | Tensor, weight: Tensor, n: int | None) -> tuple[tuple[int, ...], int]:
    """The half spectrum's shape [B, C, U, V] and the signal length of its last axis, as in Algorithm 1, lines 1 to 5.

    A real map and a spatial kernel span H + K_h - 1 and W + K_w - 1; a spectrum, of x or of the weight, spans itself.
    Raises: ShapeError, DtypeError if x, weight and n do not fit.
    """
    values = x.values if isinstance(x, SparseSpectrum) else x
    _check_weight(weight, values)
    shape = tuple(x.shape)
    if len(shape) != 4:
        raise ShapeError(f"x must have shape [batch, channel, height, width], got {list(shape)}; add the axes")
    if 0 in shape[2:] or 0 in weight.shape[2:]:
        raise ShapeError(f"planes must not be empty, got x {list(shape)} and weight {list(weight.shape)}")
    if weight.shape[1] != shape[1]:
        raise ShapeError(
            f"weight must have the {shape[1]} channels of x in its second axis, got shape {list(weight.shape)}; "
            "a block sums over all of them"
        )
    if values.is_complex():
        grid = _grid_of_spectrum("x", shape, n)
    elif weight.is_complex():
        grid = _grid_of_spectrum("weight", tuple(weight.shape), n)
        if grid[0] < shape[2] or grid[1] < shape[3]:
            raise ShapeError(
                f"weight must be a spectrum on a grid of at least the map's {list(shape[2:])}, got {list(grid)}; "
                "transform the kernel with s=(height + kernel - 1, width + kernel - 1)"
            )
    else:
        grid = shape[2] + weight.shape[2] - 1, shape[3] + weight.shape[3] - 1
        if n not in (None, grid[1]):
            raise ShapeError(f"n must be width + kernel_width - 1 = {grid[1]} for a real map, got {n}; leave it out")
    plane = grid[0], half(grid[1])
    _check_kernel(weight, grid, plane)
    return (*shape[:2], *plane), grid[1]


def reserved_slots(capacity: float | None, numel: int) -> int | None:
    """Kept coefficients to make room for, of `numel`; None: as many as there are. RangeError on a bad capacity."""
    if capacity is None:
        return None
    if not 0.0 < (capacity := as_number("capacity", capacity)) <= 1.0:
        raise RangeError(
            f"capacity must be the fraction of coefficients to reserve room for, in (0, 1], got {capacity!r}; "
            "None reserves what is kept"
        )
    return math.ceil(capacity * numel)


def _check_weight(weight: Tensor, values: Tensor) -> None:
    if not isinstance(weight, Tensor) or weight.dtype not in PRECISION:
        got = str(weight.dtype).removeprefix("torch.") if isinstance(weight, Tensor) else type(weight).__name__
        raise DtypeError(
            "weight must be a real kernel or its half spectrum (float32, float64, complex64, complex128), "
            f"got {got}; convert it"
        )
    check_tensor("weight", weight)
    if weight.device != values.device:
        raise DtypeError(f"weight must be on the device of x ({values.device}), got {weight.device}; move one of them")
    if PRECISION[weight.dtype] != PRECISION[values.dtype]:
        wanted, got = (str(tensor.dtype).removeprefix("torch.") for tensor in (values, weight))
        raise DtypeError(f"weight must have the precision of x ({wanted}), got {got}; convert one of them")
    if weight.dim() != 4:
        raise ShapeError(
            f"weight must have shape [out_channel, channel, ...] with two more axes, a kernel's or a half spectrum's, "
            f"got {list(weight.shape)}; add the axes"
        )


def _grid_of_spectrum(name: str, shape: Sequence[int], n: int | None) -> tuple[int, int]:
    rows, columns = shape[2:]
    n = max(1, 2 * (columns - 1)) if n is None else n
    if n < 1 or half(n) != columns:
        raise ShapeError(
            f"n must be a signal length with the {columns} half-spectrum columns of {name} "
            f"({max(1, 2 * columns - 2)} or {2 * columns - 1}), got {n}; pass the last axis of the map"
        )
    return rows, n


def _check_kernel(weight: Tensor, grid: tuple[int, int], plane: tuple[int, int]) -> None:
    if weight.is_complex() and tuple(weight.shape[2:]) != plane:
        raise ShapeError(
            f"weight must be a spectrum of planes {list(plane)} to match x, got shape {list(weight.shape)}; "
            "transform the kernel on x's grid, or pass the kernel itself"
        )
    if not weight.is_complex() and (weight.shape[2] > grid[0] or weight.shape[3] > grid[1]):
        raise ShapeError(
            f"weight must be no larger than the grid {list(grid)} of x, got shape {list(weight.shape)}; "
            "a block on a spectrum keeps its size"
        )
