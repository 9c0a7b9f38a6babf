"""The matrices of a folded truncated DFT, and the factors between its modes and those of `dft`.

A plane of L samples is seen from its centre: with r_j = j - (L - 1) / 2 and theta = 2 pi / N

    Z[u] = sum_j e^{-i theta u r_j} x_j = sum_{j < L/2} cos(theta u r_j) (x_j + x_j') + i sin(theta u r_j) (x_j' - x_j)

where j' = L - 1 - j mirrors j, and Z[-u] takes the same sums with the other sign. Real and imaginary part need half
the products each, and so do u and -u on the axis that keeps both. Against positions that count from the start, the
modes of x, W and y have the factors e^{i theta u c} of their centres, and these cancel in y = x * w where
c_x - c_w = c_y. An even kernel with "same" padding is half a sample off; a zero in front of it puts that right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralkernels.constants import constant
from spectralkernels.spectra import full_frequencies, hermitian_weights

Ints = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """One end of a transform: planes of `lengths` samples, of which the first `front` are zeros that are not in memory.

    matrices: Real, cos and sin of the rows, then of the half axis, one after the other: [sample, mode] to analyse,
        [mode, sample] to synthesise, each cut into even panels of columns. A series has one row.
    """

    lengths: Ints
    front: Ints
    matrices: Tensor


@constant
def fold(
    n: Ints,
    kept: Ints,
    lengths: Ints,
    front: Ints,
    dtype: torch.dtype,
    panel: int,
    spacing: Ints | None = None,
    /,
    *,
    synthesis: bool = False,
    inverse: bool = False,
    conjugate: bool = False,
) -> Fold:
    """The end of a transform on a grid n, keeping |u| < kept per axis.

    panel: the most columns of one. synthesis: from modes to planes, else from planes to modes; the two are transposes.
    spacing: of neighbouring samples (None: 1 on every axis).
    inverse: with Hermitian weights / prod(n), as in `dft.truncated_dft`. conjugate: modes with the other sign of i.
    """
    spacing = spacing or tuple(1 for _ in n)
    if len(n) == 1:
        n, kept, lengths, front, spacing = (1, *n), (1, *kept), (1, *lengths), (0, *front), (1, *spacing)
    parts = []
    for axis, (size, k, length, step) in enumerate(zip(n, kept, lengths, spacing, strict=True)):
        cos, sin = _about_the_centre(size, k, length, step)
        if axis == 1 and inverse:
            weights = hermitian_weights(size, k) / math.prod(n)
            cos, sin = cos * weights, sin * weights
        if not synthesis and length % 2 == 1:
            cos[0] *= 0.5  # the middle is added to itself
        sin = -sin if conjugate else sin
        # Terms without a sine, frequency zero and the middle of an odd plane, come first and are left out.
        for matrix in (cos.t(), sin.t()[1:]) if synthesis else (cos, sin[length % 2 :]):
            panels = -(-matrix.shape[1] // panel)
            parts += [columns.flatten() for columns in matrix.tensor_split(panels, dim=1)]
    return Fold(lengths, front, torch.cat(parts).to(dtype))


def _about_the_centre(n: int, kept: int, length: int, step: int) -> tuple[Tensor, Tensor]:
    """cos and sin of theta u r_j, Float64 [(length + 1) // 2, kept], j from the centre to the start of a plane."""
    # Reducing the product in integers keeps the angle exact however large the position.
    doubled = -step * torch.arange(1 - length % 2, length, 2)
    angle = torch.outer(doubled, torch.arange(kept)).remainder(2 * n).double() * (math.pi / n)
    return angle.cos(), angle.sin()


@constant
def to_the_centre(n: Ints, kept: Ints, centre_doubled: Ints, dtype: torch.dtype) -> Tensor:
    """e^{i theta u c} for the modes of `dft`, Complex [F], with c = centre_doubled / 2 per axis."""
    turns = torch.zeros((), dtype=torch.float64)
    for size, k, doubled, rows in zip(n, kept, centre_doubled, (True, False)[-len(n) :], strict=True):
        frequencies = torch.tensor(full_frequencies(size, k) if rows else range(k))
        if rows:
            frequencies = torch.where(frequencies < k, frequencies, frequencies - size)
        part = (frequencies * doubled).remainder(2 * size).double() / (2 * size)
        turns = turns + (part if rows else part.unsqueeze(-1))  # [v, u], or [v, 1] of a series
    angle = 2.0 * math.pi * turns.flatten()
    return torch.complex(angle.cos(), angle.sin()).to(dtype)
