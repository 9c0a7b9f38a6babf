"""The real matrices of a dense transform, padded to its blocks, in every orientation it reads.

    analyse [2 F, position]: rows cos 2 pi f p / N and -sin, one pair per kept frequency      synthesise: its transpose

Both transforms of a series carry 1 / sqrt(N), as `norm="ortho"` does, so that a half-precision spectrum does not
overflow at its mean; the way back carries the Hermitian weights. Built in float64 from angles reduced in integers,
rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralkernels.constants import constant
from spectralkernels.convolution.fused.precision import Precision
from spectralkernels.convolution.fused_series.geometry import SeriesGeometry, Whole
from spectralkernels.spectra import hermitian_weights


@dataclass(frozen=True, slots=True)
class DenseMatrices:
    """analyse_*: [2 F, width]; synthesise_*: [width, 2 F]; all contiguous, synthesise_taps float32 in every class."""

    analyse_in: Tensor
    analyse_out: Tensor
    analyse_taps: Tensor
    synthesise_in: Tensor
    synthesise_out: Tensor
    synthesise_taps: Tensor


@constant
def matrices(geometry: SeriesGeometry, tile: Whole, precision: Precision, device: torch.device) -> DenseMatrices:
    """The matrices of a geometry on `device`, in the operand dtype of an accuracy class."""
    weights = hermitian_weights(geometry.n, geometry.kept).unsqueeze(1)
    ortho = 1.0 / math.sqrt(geometry.n)

    def rounded(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return precision.rounded(matrix, device, dtype)

    def analyse(start: int, length: int, width: int, scale: Tensor | float) -> Tensor:
        numerators = torch.outer(torch.arange(geometry.kept), torch.arange(start, start + length))
        angle = numerators.remainder(geometry.n).double() * (2.0 * math.pi / geometry.n)
        pairs = torch.zeros(tile.frequencies, 2, width, dtype=torch.float64)
        pairs[: geometry.kept, 0, :length] = angle.cos() * scale
        pairs[: geometry.kept, 1, :length] = -angle.sin() * scale
        return pairs.flatten(0, 1)

    def back(start: int, length: int, width: int, scale: float, dtype: torch.dtype = precision.operand) -> Tensor:
        return rounded(analyse(start, length, width, weights * scale).t(), dtype)

    size, out, taps = geometry.size, geometry.out, geometry.taps
    analyse_in = rounded(analyse(0, size, tile.width(size), ortho))
    synthesise_in = back(0, size, tile.width(size), ortho)
    same = size == out
    return DenseMatrices(
        analyse_in=analyse_in,
        analyse_out=analyse_in if same else rounded(analyse(0, out, tile.width(out), ortho)),
        analyse_taps=rounded(analyse(geometry.start, taps, tile.width(taps), 1.0)),
        synthesise_in=synthesise_in,
        synthesise_out=synthesise_in if same else back(0, out, tile.width(out), ortho),
        synthesise_taps=back(geometry.start, taps, tile.width(taps), 1.0, torch.float32),
    )
