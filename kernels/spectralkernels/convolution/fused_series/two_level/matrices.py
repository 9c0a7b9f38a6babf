"""The real matrices and the twiddles of a two-level transform, padded to its tiles, in every orientation it reads.

    low  [2 J, l1]: cos 2 pi (j + N1/2) l1 / N1 and -sin, in blocks of 8 + 8 rows
    twiddle [2, J, l2]: cos 2 pi j l2 / N, then sin
    high [2 U, l2]: U rows of cos 2 pi q l2 / N2, then U rows of sin

Both transforms of a series carry 1 / sqrt(N), as `norm="ortho"` does, so that a half-precision spectrum does not
overflow at its mean. The way back counts what stands for itself and its negative twice: low where 0 < j < N1 / 2, and
high always, as the quadrants hold half the sum over +q and -q. A kernel that begins at position `start` shifts l2 by
it, in the twiddles and in high. Built in float64 from angles reduced in integers, rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralkernels.constants import constant
from spectralkernels.convolution.fused.kept import Sums, of_quadrants
from spectralkernels.convolution.fused.precision import Precision
from spectralkernels.convolution.fused_series.geometry import Digits, SeriesGeometry


@dataclass(frozen=True, slots=True)
class TwoLevelMatrices:
    """low_*: [2 J, rows], high_*: [2 U, width]; *_back: the transposes, with the weights of the way back.

    twiddle, twiddle_taps: Float32 [2, J, width]. All contiguous. *_taps_back are float32 in every class.
    """

    low_in: Tensor
    low_out: Tensor
    low_in_back: Tensor
    low_out_back: Tensor
    low_taps: Tensor
    low_taps_back: Tensor
    high: Tensor
    high_back: Tensor
    high_taps: Tensor
    high_taps_back: Tensor
    twiddle: Tensor
    twiddle_taps: Tensor


@constant
def matrices(geometry: SeriesGeometry, split: Digits, precision: Precision, device: torch.device) -> TwoLevelMatrices:
    """The matrices of a geometry on `device`, in the operand dtype of an accuracy class."""
    n1, n2 = split.n1, split.n2
    twice_j = 2 * torch.arange(split.lows) + n1 % 2
    counts = torch.where((twice_j == 0) | (twice_j == n1), 1.0, 2.0).double().unsqueeze(1)

    def rounded(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return precision.rounded(matrix, device, dtype)

    def low(rows: int, scale: float, counted: bool) -> Tensor:
        cos, sin = _cos_sin(twice_j + n1, torch.arange(rows), 2 * n1)
        parts = torch.zeros(2, split.j, rows, dtype=torch.float64)
        parts[:, : split.lows] = torch.stack([cos, -sin]) * scale * (counts if counted else 1.0)
        return parts.unflatten(1, (split.j // 8, 8)).transpose(0, 1).reshape(2 * split.j, rows)

    def high(start: int, scale: float) -> Tensor:
        parts = torch.zeros(2, split.u, split.width, dtype=torch.float64)
        twice_q, positions = 2 * torch.arange(split.highs) + 1, torch.arange(start, start + n2)
        parts[:, : split.highs, :n2] = torch.stack(_cos_sin(twice_q, positions, 2 * n2)) * scale
        return parts.flatten(0, 1)

    def twiddle(start: int) -> Tensor:
        parts = torch.zeros(2, split.j, split.width, dtype=torch.float64)
        positions = torch.arange(start, start + n2)
        parts[:, : split.lows, :n2] = torch.stack(_cos_sin(twice_j, positions, 2 * geometry.n))
        return parts.float().to(device)

    ortho_low, ortho_high = 1.0 / math.sqrt(n1), 1.0 / math.sqrt(n2)
    return TwoLevelMatrices(
        low_in=rounded(low(split.rows_in, ortho_low, False)),
        low_out=rounded(low(split.rows_out, ortho_low, False)),
        low_in_back=rounded(low(split.rows_in, ortho_low, True).t()),
        low_out_back=rounded(low(split.rows_out, ortho_low, True).t()),
        low_taps=rounded(low(split.rows_taps, 1.0, False)),
        low_taps_back=rounded(low(split.rows_taps, 1.0, True).t(), torch.float32),
        high=rounded(high(0, ortho_high)),
        high_back=rounded(high(0, 2.0 * ortho_high).t()),
        high_taps=rounded(high(geometry.start, 1.0)),
        high_taps_back=rounded(high(geometry.start, 2.0).t(), torch.float32),
        twiddle=twiddle(0),
        twiddle_taps=twiddle(geometry.start),
    )


def kept_sums(geometry: SeriesGeometry, split: Digits) -> list[tuple[Sums, Sums]]:
    """Which of the kept reals of a series, four quadrants [lows, highs], make up each mode.

    Frequency f is j + N1 q, or the negative of j - N1 q, whose mode is the conjugate.
    """
    places: dict[int, tuple[Sums, Sums]] = {}
    quadrant, root = split.lows * split.highs, math.sqrt(geometry.n)
    for j in range(split.lows):
        for u in range(split.highs):
            twice_j, twice_q = 2 * j + split.n1 % 2, split.n1 * (2 * u + 1)
            four = [part * quadrant + j * split.highs + u for part in range(4)]
            places[(twice_q + twice_j) // 2] = of_quadrants(four, root, opposite=False)
            places.setdefault((twice_q - twice_j) // 2, of_quadrants(four, root, opposite=True, conjugate=True))
    return [places[f] for f in range(geometry.kept)]


def _cos_sin(numerators: Tensor, positions: Tensor, denominator: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi numerator position / denominator, [numerator, position]."""
    angle = torch.outer(numerators, positions).remainder(denominator).double() * (2.0 * math.pi / denominator)
    return angle.cos(), angle.sin()
