"""DFT matrices for the kernels: those of `dft.truncated_dft`, in float64, scaled, cut into tiles and rounded once.

With scaling the transforms of maps carry 1 / sqrt(N) per axis each way (the inverse its Hermitian weights, too), as
norm="ortho" does: the spectrum of a map stays of the map's size and fp16 does not overflow at its mean. The spectrum of
a weight is unscaled, so that the product of the two is the scaled spectrum of the output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spectralkernels.constants import constant
from spectralkernels.convolution.dft_triton.layout import DENSE_PIXELS, Layout
from spectralkernels.dft import listed_dft, truncated_dft
from spectralkernels.tf32 import round_to_tf32


@dataclass(frozen=True, slots=True)
class Transform:
    """A truncated DFT: positions start .. start + length - 1 of each axis of a circle, and the modes of `layout`.

    inverse: with the Hermitian weights, so that synthesis is the inverse DFT. scaled: 1 / sqrt(n) per axis.
    """

    layout: Layout
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    inverse: bool
    scaled: bool
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Looked up twice in every launch.
        facts = (self.layout, self.starts, self.lengths, self.inverse, self.scaled)
        object.__setattr__(self, "_hash", hash(facts))

    def __hash__(self) -> int:
        return self._hash

    @property
    def n(self) -> tuple[int, ...]:
        return self.layout.n

    @property
    def pixels(self) -> int:
        return math.prod(self.lengths)

    @property
    def modes_v(self) -> int:
        return self.layout.modes_v

    @property
    def modes_u(self) -> int:
        return self.layout.modes_u

    @property
    def half_u(self) -> int:
        """Rows u >= 0; the others are their conjugates' mirror, but for the row n / 2 of an even n."""
        return self.modes_u // 2 + 1

    @property
    def parts(self) -> int:
        """Real and imaginary parts of the modes."""
        return 2 * self.modes_u * self.modes_v

    @property
    def dense(self) -> bool:
        """Whether one matrix does the whole transform."""
        return bool(self.layout.cells) or len(self.n) == 1 or self.pixels <= DENSE_PIXELS


def _dense(transform: Transform) -> Tensor:
    """Float64 [(v, u, part), pixel]."""
    layout = transform.layout
    if not layout.cells:
        columns, rows = _factors(transform)
        return torch.einsum("uzth,tvw->vuzhw", rows, columns).reshape(transform.parts, transform.pixels)
    (n_h, n_w), (start_h, start_w), (height, width) = layout.n, transform.starts, transform.lengths
    where = ((n_h, n_w), layout.cells, (start_h, start_w), (height, width), transform.inverse)
    plain = listed_dft(*where, torch.float64, torch.device("cpu")).matrix
    # The inverse of `dft` carries all of 1 / N.
    root = math.sqrt(n_h * n_w)
    return plain * ((root if transform.inverse else 1 / root) if transform.scaled else 1)


def _factors(transform: Transform) -> tuple[Tensor, Tensor]:
    """Float64 columns [part, v, w] and rows [u, part of z, part of t, h]; a series has the identity for rows."""
    plain = truncated_dft(
        transform.n,
        transform.layout.kept,
        transform.starts,
        transform.lengths,
        transform.inverse,
        torch.float64,
        torch.device("cpu"),
    )
    columns = plain.columns.view(2, transform.modes_v, -1)
    rows = torch.eye(2, dtype=torch.float64).view(1, 2, 2, 1)
    if plain.rows_ph is not None:
        rows = plain.rows_ph.view(transform.modes_u, 2, 2, -1)
    if transform.inverse:
        columns = columns * math.prod(transform.n)
    if not (transform.scaled or transform.inverse):
        return columns, rows
    columns = columns / (math.sqrt(transform.n[-1]) if transform.scaled else transform.n[-1])
    if len(transform.n) == 2:
        rows = rows / (math.sqrt(transform.n[0]) if transform.scaled else transform.n[0])
    return columns, rows


def _rounded(matrix: Tensor, dtype: torch.dtype, tf32: bool, device: torch.device) -> Tensor:
    matrix = matrix.to(dtype)
    return (round_to_tf32(matrix) if tf32 else matrix).contiguous().to(device)


def _up(size: int, block: int) -> int:
    return -(-size // block) * block


@constant
def dense_matrix(
    transform: Transform,
    block_modes: int,
    block_pixels: int,
    pixels_first: bool,
    dtype: torch.dtype,
    tf32: bool,
    device: torch.device,
) -> Tensor:
    """Real [(v, u, part) up, pixel up], or its transpose, zero beyond the kept modes and pixels."""
    dense = _dense(transform)
    padded = dense.new_zeros(_up(transform.parts, block_modes), _up(transform.pixels, block_pixels))
    padded[: transform.parts, : transform.pixels] = dense
    return _rounded(padded.t() if pixels_first else padded, dtype, tf32, device)


@constant
def separable_matrices(
    transform: Transform,
    blocks: tuple[int, int, int, int],
    pixels_first: bool,
    dtype: torch.dtype,
    tf32: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(columns, rows) for tiles of `blocks` = (h, w, u, v), zero beyond the kept modes and pixels.

    Modes first: columns [(block v, part, v), w], rows [(block u, part, u), (block h, part, h)]. Pixels first: the
    transposes.
    """
    block_h, block_w, block_u, block_v = blocks
    columns, rows = _factors(transform)
    (_, modes_v, width), (modes_u, _, _, height) = columns.shape, rows.shape
    wide = columns.new_zeros(2, _up(modes_v, block_v), _up(width, block_w))
    wide[:, :modes_v, :width] = columns
    wide = wide.unflatten(1, (-1, block_v)).transpose(0, 1).flatten(0, 2)
    tall = rows.new_zeros(_up(modes_u, block_u), 2, 2, _up(height, block_h))
    tall[:modes_u, :, :, :height] = rows
    tall = tall.unflatten(3, (-1, block_h)).unflatten(0, (-1, block_u))  # [block u, u, part, part, block h, h]
    tall = tall.permute(0, 2, 1, 4, 3, 5).flatten(3).flatten(0, 2)
    if pixels_first:
        wide, tall = wide.t(), tall.t()
    return _rounded(wide, dtype, tf32, device), _rounded(tall, dtype, tf32, device)


@constant
def quadrant_matrices(
    transform: Transform,
    blocks: tuple[int, int, int, int],
    pixels_first: bool,
    dtype: torch.dtype,
    tf32: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(columns, rows) for the kernels of `quadrants` and tiles of `blocks` = (h, w, u, v); padding is zero.

    Modes first: columns [(v / 8, part, 8 of v), w], rows [(block u, cos | sin, u >= 0), h]. Pixels first: columns
    [w, (block v, part, v)], rows [h, (block u, cos | sin, u)]. What the second product sums over, h or (part, v), comes
    in the order 0 2 4 6 1 3 5 7 of each eight.
    """
    block_h, block_w, block_u, block_v = blocks
    columns, rows = _factors(transform)
    (_, modes_v, width), height = columns.shape, rows.shape[-1]
    wide = columns.new_zeros(2, _up(modes_v, block_v), _up(width, block_w))
    wide[:, :modes_v, :width] = columns
    wide = wide.unflatten(1, (-1, block_v if pixels_first else 8)).transpose(0, 1).flatten(0, 2)
    half = transform.half_u
    tall = rows.new_zeros(_up(half, block_u), 2, _up(height, block_h))
    tall[:half, :, :height] = rows[:half, 0]
    tall = tall.unflatten(0, (-1, block_u)).transpose(1, 2).flatten(0, 2)
    if pixels_first:
        wide, tall = _paired(wide.t()), tall.t()
    else:
        tall = _paired(tall)
    return _rounded(wide, dtype, tf32, device), _rounded(tall, dtype, tf32, device)


def _paired(matrix: Tensor) -> Tensor:
    """Columns 0 2 4 6 1 3 5 7 of each eight."""
    return matrix.unflatten(1, (-1, 4, 2)).transpose(2, 3).flatten(1)
