"""Where the frequencies of a half spectrum lie, and which of its cells are conjugate pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectralkernels.checks import as_integer, as_integers, check_tensor, checked_steps
from spectralkernels.constants import constant
from spectralkernels.convolution.geometry import GridChoice, Padding, conv_band, reach
from spectralkernels.errors import DtypeError, RangeError, ShapeError
from spectralkernels.spectra import half

Grid = tuple[int, int]
Device = torch.device | str


def fft_grid(
    size: Sequence[int],
    kernel: Sequence[int],
    *,
    padding: Padding = "same",
    grid: GridChoice = "tight",
    dilation: int | Sequence[int] = 1,
) -> Grid:
    """The grid (N_h, N_w) on which maps of `size` meet a `kernel`; the arguments of `masked_conv2d`."""
    size, kernel = as_integers("size", size, (2,)), as_integers("kernel", kernel, (2,))
    kernel = reach(kernel, checked_steps("dilation", dilation, 2))
    n = conv_band(size, kernel, compression=0.0, padding=padding, grid=grid).n
    return n[0], n[1]


def hermitian(mask: Tensor, n: Grid) -> Tensor:
    """Treat the conjugate pairs of the self-conjugate columns alike: `or` of a bool mask, mean of a float one.

    mask: Bool or Float [..., N_h, N_w // 2 + 1]. Returns: the same shape and dtype. Differentiable.
    """
    check_grid(n)
    check_mask(mask)
    if mask.shape[-2:] != (n[0], half(n[1])):
        raise ShapeError(
            f"mask must end in [{n[0]}, {half(n[1])}], the half spectrum of the grid {tuple(n)}, got "
            f"{list(mask.shape)}; make it for n={tuple(n)} (see masks.fft_grid)"
        )
    return paired(mask, n)


def paired(mask: Tensor, n: Grid) -> Tensor:
    """`hermitian` of a mask that is known to fit the grid."""
    mirrored = mask.flip(-2).roll(1, -2)  # row u holds row -u
    both = mask | mirrored if mask.dtype == torch.bool else (mask + mirrored) / 2
    # Whether N is even is no question of Python: torch.compile would ask for a graph of each.
    return torch.where(self_conjugate(n[1], mask.device), both, mask)


def check_mask(mask: Tensor) -> None:
    check_tensor("mask", mask)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise DtypeError(f"mask must be bool or floating point, got {mask.dtype}; convert it with mask.bool()")


def frequencies(n: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """|u| of every row and v of every column, Int64."""
    rows = torch.arange(n[0], device=device)
    return torch.minimum(rows, n[0] - rows), torch.arange(half(n[1]), device=device)


def rings(n: Grid, device: torch.device) -> Tensor:
    rows, columns = frequencies(n, device)
    return torch.maximum(rows.unsqueeze(1), columns)


@constant
def self_conjugate(n: int, device: torch.device) -> Tensor:
    columns = torch.arange(half(n), device=device)
    return (columns == 0) | (2 * columns == n)


def check_grid(n: Grid) -> None:
    if not isinstance(n, (tuple, list)) or len(n) != 2 or min(as_integer("each of n", side) for side in n) < 1:
        raise RangeError(f"n must be two FFT sizes (N_h, N_w) of at least 1, got {n!r}")
