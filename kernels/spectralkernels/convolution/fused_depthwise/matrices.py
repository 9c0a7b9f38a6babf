"""The six real matrices of a fused depthwise convolution, padded to its tiles, in every orientation it reads.

With u >= 0 on the full axis and v on the half axis, positions h, w of a map or of the (centred) kernel on the circle:

    columns [2 V, w]: cos(2 pi v w / N) and -sin, in blocks of 8 + 8 rows
    rows    [2 U, h]: U rows of cos(2 pi u h / N), then U rows of sin

A plane's quadrants are columns plane' rows'. Both transforms of a map carry 1 / sqrt(N) per axis, as `norm="ortho"`
does, so that a half-precision spectrum does not overflow at its mean; the inverse carries the Hermitian weights of v,
the kernel's transform those of u (it stands for the sum over +u and -u). Built in float64, rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralkernels.constants import constant
from spectralkernels.convolution.fused.kept import Sums, of_quadrants
from spectralkernels.convolution.fused.precision import Precision
from spectralkernels.spectra import full_frequencies, hermitian_weights, next_pow2


@dataclass(frozen=True, slots=True)
class MapGeometry:
    """A stride-1 correlation on a circle: sizes of map, output and kernel, its first tap, N and k per axis."""

    size: tuple[int, ...]
    out: tuple[int, ...]
    taps: tuple[int, ...]
    starts: tuple[int, ...]
    n: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def kept_reals(self) -> int:
        """Reals that hold the kept spectrum of a plane: (2 k - 1) rows of u >= 0, cos and sin, by 2 columns per v."""
        return (2 * self.kept[0] - 1) * 2 * self.kept[1]

    @property
    def transposed(self) -> MapGeometry:
        """The same with map and output exchanged: the geometry of the gradient in x."""
        return MapGeometry(self.out, self.size, self.taps, self.starts, self.n, self.kept)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Powers of two that hold the planes: a matrix product needs at least 16 along each side, 2 U and 2 V too."""

    size: tuple[int, int]
    out: tuple[int, int]
    taps: tuple[int, int]
    u: int
    v: int

    @property
    def largest(self) -> int:
        """The longest side of any matrix or plane."""
        return max(*self.size, *self.out, *self.taps, 2 * self.u, 2 * self.v)


def tiles(geometry: MapGeometry) -> Tiles:
    """The tiles of a geometry."""

    def plane(sides: tuple[int, ...]) -> tuple[int, int]:
        return max(16, next_pow2(sides[0])), max(16, next_pow2(sides[1]))

    u, v = (max(8, next_pow2(kept)) for kept in geometry.kept)
    return Tiles(plane(geometry.size), plane(geometry.out), plane(geometry.taps), u, v)


@dataclass(frozen=True, slots=True)
class Pair:
    """columns and rows of one transform: [2 V, width] and [2 U, height], or both transposed.

    In a class that splits operands, [pieces, ...] of these: split once, here, and not in every program.
    """

    columns: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Operators:
    """analyse_*: [2 V, width], [2 U, height]; synthesise_*: [width, 2 V], [height, 2 U]; all contiguous.

    reflected: the kernel's transform at negated positions, which conjugates it back.
    """

    analyse_map: Pair
    analyse_output: Pair
    analyse_taps: Pair
    reflected: Pair
    synthesise_map: Pair
    synthesise_output: Pair
    synthesise_taps: Pair


@constant
def operators(geometry: MapGeometry, precision: Precision, device: torch.device) -> Operators:
    """The matrices of a geometry on `device`, as an accuracy class multiplies them."""
    tile, (n_h, n_w), (kept_h, kept_w) = tiles(geometry), geometry.n, geometry.kept
    both, half = hermitian_weights(n_h, kept_h), hermitian_weights(n_w, kept_w)
    ones_h, ones_w = torch.ones_like(both), torch.ones_like(half)
    ortho_h, ortho_w = 1.0 / math.sqrt(n_h), 1.0 / math.sqrt(n_w)

    def split(matrix: Tensor, wide: bool = False) -> Tensor:
        return precision.split(matrix, device, wide=wide)

    def pair(
        start: tuple[int, ...],
        sides: tuple[int, ...],
        tile_sides: tuple[int, int],
        u: Tensor,
        v: Tensor,
        sign: int = 1,
        wide: bool = False,
    ) -> tuple[Pair, Pair]:
        cos, sin = _cos_sin(start[1], sides[1], n_w, v)
        columns = torch.zeros(2, tile.v, tile_sides[1], dtype=torch.float64)
        columns[:, :kept_w, : sides[1]] = torch.stack([cos, -sign * sin])
        columns = columns.unflatten(1, (tile.v // 8, 8)).transpose(0, 1).reshape(2 * tile.v, -1)
        cos, sin = _cos_sin(start[0], sides[0], n_h, u)
        rows = torch.zeros(2, tile.u, tile_sides[0], dtype=torch.float64)
        rows[:, :kept_h, : sides[0]] = torch.stack([cos, sign * sin])
        rows = rows.flatten(0, 1)
        forth = Pair(split(columns), split(rows))
        return forth, Pair(split(columns.t(), wide), split(rows.t(), wide))

    origin = (0, 0)
    analyse_map, synthesise_map = pair(origin, geometry.size, tile.size, ones_h * ortho_h, ones_w * ortho_w)
    analyse_output, synthesise_output = pair(origin, geometry.out, tile.out, ones_h * ortho_h, half * ortho_w)
    # The gradient of the kernel is synthesised from sums over a batch, which keep float32.
    analyse_taps, synthesise_taps = pair(geometry.starts, geometry.taps, tile.taps, both, ones_w, wide=True)
    reflected, _ = pair(geometry.starts, geometry.taps, tile.taps, both, ones_w, sign=-1)
    return Operators(
        analyse_map, analyse_output, analyse_taps, reflected, synthesise_map, synthesise_output, synthesise_taps
    )


def kept_sums(geometry: MapGeometry) -> list[tuple[Sums, Sums]]:
    """Which of the kept reals of a plane, [2 k - 1: cos, then sin of u >= 1; 2 columns per v], make up each mode."""
    (n_h, n_w), (rows, columns) = geometry.n, geometry.kept
    root = math.sqrt(n_h * n_w)
    found: list[tuple[Sums, Sums]] = []
    for v in range(columns):
        for frequency in full_frequencies(n_h, rows):
            u = min(frequency, n_h - frequency) if frequency else 0
            cos, sin = 2 * columns * u + v, 2 * columns * (u + rows - 1) + v
            if u == 0:
                found.append((((cos, root),), ((cos + columns, root),)))
            else:
                quadrants = (cos, cos + columns, sin, sin + columns)
                found.append(of_quadrants(quadrants, root, opposite=frequency >= rows))
    return found


def _cos_sin(start: int, length: int, n: int, weights: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi f p / n, [frequency, position], scaled by `weights` [frequency]."""
    frequencies, positions = torch.arange(len(weights)), torch.arange(start, start + length)
    # Reducing the product modulo n in integers keeps the angle exact.
    angle = torch.outer(frequencies, positions).remainder(n).double() * (2.0 * math.pi / n)
    scale = weights.unsqueeze(1)
    return angle.cos() * scale, angle.sin() * scale
