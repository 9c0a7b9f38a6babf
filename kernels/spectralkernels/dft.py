"""The truncated DFT as a product of small real matrices.

Only the kept coefficients of a band-limited spectrum are ever needed, so "pad, rfft2, crop" is a linear map D from
pixels to modes and "restore, irfft2, crop" is a linear map from modes to pixels. Both are separable:

    z[v, u] = sum_h e^{-2 pi i u h / N} sum_w e^{-2 pi i v w / N} x[h, w]

one matrix product over w, one over h, both real once complex numbers are written as pairs. Padding, cropping, centred
kernels, kernels larger than the grid, prime and non-square N are choices of the positions h and w and cost nothing.
Matrices are built in float64 and rounded once.

`TruncatedDFT.analyse` and `TruncatedDFT.synthesise` are exact transposes of each other, so the inverse transform is the
synthesis of another TruncatedDFT (with Hermitian weights: modes off the zero and Nyquist columns count twice, and the
redundant half is never read), and every gradient is the transpose of the map that made the value.

`SteppedDFT` and `ListedDFT` serve modes that fill no rectangle: a staircase of columns, or any list of cells.

Layout of modes: Real [V, U, 2, planes], frequency-major, real part then imaginary part, planes contiguous: what the
per-frequency matrix product over channels wants to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spectralkernels.spectra import full_frequencies, hermitian_weights


@dataclass(frozen=True, slots=True)
class TruncatedDFT:
    """Real planes [planes, height, width] <-> kept modes [V, U, 2, planes]; a series has height 1 and no row matrix.

    columns: Real [2 V, width], rows ordered (part, v): cos and -sin of the half axis.
    columns_vp: the same matrix with rows ordered (v, part).
    rows_hp: Real [2 U, 2 height], rows (u, part), columns (h, part): complex row DFT embedded in the reals.
    rows_ph: the same matrix with columns ordered (part, h), so that each direction reads its operand without a copy.
    """

    columns: Tensor
    columns_vp: Tensor
    rows_hp: Tensor | None
    rows_ph: Tensor | None

    def analyse(self, planes: Tensor) -> Tensor:
        """Pixels to modes: Real [planes, height, width] -> [V, U, 2, planes]."""
        count, height, _ = planes.shape
        modes_v = self.columns.shape[0] // 2
        by_width = planes.permute(1, 2, 0)  # [height, width, planes], a transposed operand, no copy
        if self.rows_hp is None:
            return torch.bmm(self.columns_vp.unsqueeze(0), by_width).view(modes_v, 1, 2, count)
        partial = torch.bmm(self.columns.expand(height, -1, -1), by_width)  # [height, (part, v), planes]
        by_column = partial.view(height * 2, modes_v, count).permute(1, 0, 2)  # [v, (h, part), planes], no copy
        modes = torch.bmm(self.rows_hp.expand(modes_v, -1, -1), by_column)
        return modes.view(modes_v, modes.shape[1] // 2, 2, count)

    def synthesise(self, modes: Tensor) -> Tensor:
        """The transpose: [V, U, 2, planes] -> Real [planes, height, width], a view of [height, planes, width]."""
        modes_v, modes_u, _, count = modes.shape
        flat = modes.reshape(modes_v, modes_u * 2, count)
        if self.rows_ph is None:
            return (flat.view(modes_v * 2, count).t() @ self.columns_vp).unsqueeze(1)
        partial = torch.bmm(self.rows_ph.t().expand(modes_v, -1, -1), flat)  # [v, (part, h), planes]
        height = partial.shape[1] // 2
        by_height = partial.view(modes_v * 2, height, count).permute(1, 2, 0)  # [h, planes, (v, part)], no copy
        return torch.bmm(by_height, self.columns_vp.expand(height, -1, -1)).permute(1, 0, 2)


@dataclass(frozen=True, slots=True)
class SteppedDFT:
    """Real planes [planes, height, width] <-> the modes of a staircase, [F, 2, planes].

    The half axis is cut into blocks of consecutive columns, each with rows |u| < k of its own, so that a mask which is
    no rectangle costs little more than the modes it keeps. Modes are ordered (block, column, row in FFT order).

    columns, columns_vp: as in TruncatedDFT. blocks: columns of the block, its rows_hp and its rows_ph (None: no rows).
    """

    columns: Tensor
    columns_vp: Tensor
    blocks: tuple[tuple[int, Tensor | None, Tensor | None], ...]

    @property
    def modes(self) -> int:
        """F."""
        return sum(width * rows.shape[0] // 2 for width, rows, _ in self.blocks if rows is not None)

    def analyse(self, planes: Tensor) -> Tensor:
        """Pixels to modes: Real [planes, height, width] -> [F, 2, planes]."""
        count, height, _ = planes.shape
        by_width = planes.permute(1, 2, 0)
        partial = torch.bmm(self.columns.expand(height, -1, -1), by_width)  # [height, (part, v), planes]
        by_column = partial.view(height * 2, self.columns.shape[0] // 2, count).permute(1, 0, 2)
        modes = planes.new_empty(self.modes, 2, count)
        column = mode = 0
        for width, rows_hp, _ in self.blocks:
            if rows_hp is not None:
                size = width * rows_hp.shape[0] // 2
                block = modes[mode : mode + size].view(width, rows_hp.shape[0], count)
                torch.bmm(rows_hp.expand(width, -1, -1), by_column[column : column + width], out=block)
                mode += size
            column += width
        return modes

    def synthesise(self, modes: Tensor) -> Tensor:
        """The transpose: [F, 2, planes] -> Real [planes, height, width], a view of [height, planes, width]."""
        count = modes.shape[2]
        height = next(rows.shape[1] // 2 for _, _, rows in self.blocks if rows is not None)
        partial = modes.new_empty(self.columns.shape[0] // 2, 2 * height, count)  # [v, (part, h), planes]
        column = mode = 0
        for width, _, rows_ph in self.blocks:
            block = partial[column : column + width]
            if rows_ph is None:
                block.zero_()
            else:
                size = width * rows_ph.shape[0] // 2
                flat = modes[mode : mode + size].reshape(width, rows_ph.shape[0], count)
                torch.bmm(rows_ph.t().expand(width, -1, -1), flat, out=block)
                mode += size
            column += width
        by_height = partial.view(self.columns.shape[0], height, count).permute(
            1, 2, 0
        )  # [h, planes, (v, part)], no copy
        return torch.bmm(by_height, self.columns_vp.expand(height, -1, -1)).permute(1, 0, 2)


@dataclass(frozen=True, slots=True)
class ListedDFT:
    """Real planes <-> any modes, [F, 2, planes], by one dense matrix: for few modes that no staircase holds tightly.

    matrix: Real [(f, part), (h, w)], 8 F height width bytes in float32. height: of the planes.
    """

    matrix: Tensor
    height: int

    def analyse(self, planes: Tensor) -> Tensor:
        """Pixels to modes: Real [planes, height, width] -> [F, 2, planes]."""
        return (self.matrix @ planes.flatten(1).t()).unflatten(0, (-1, 2))

    def synthesise(self, modes: Tensor) -> Tensor:
        """The transpose: [F, 2, planes] -> Real [planes, height, width]."""
        return (modes.flatten(0, 1).t() @ self.matrix).unflatten(1, (self.height, -1))


def _cos_sin(frequencies: Sequence[int], positions: Sequence[int], n: int) -> tuple[Tensor, Tensor]:
    # Reducing the product modulo n in integers keeps the angle exact however large the position.
    turns = torch.outer(torch.tensor(frequencies), torch.tensor(positions)).remainder(n)
    angle = turns.double() * (2.0 * math.pi / n)
    return angle.cos(), angle.sin()


@lru_cache(maxsize=256)
def truncated_dft(
    n: tuple[int, ...],
    kept: tuple[int, ...],
    starts: tuple[int, ...],
    lengths: tuple[int, ...],
    inverse: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> TruncatedDFT:
    """The transform between positions start .. start + length - 1 on a circle of n samples and frequencies |u| < kept.

    n, kept, starts, lengths: one value per spatial axis, the last being the half axis; positions are taken modulo n.
    inverse: scale by Hermitian weights / prod(n), so that `synthesise` is the inverse DFT of a real signal.
    dtype, device: of the matrices, which are built in float64 on the CPU and rounded once.
    """
    positions = [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    columns = kept[-1]
    cos, sin = _cos_sin(range(columns), positions[-1], n[-1])
    if inverse:
        weights = hermitian_weights(n[-1], columns).unsqueeze(1) / math.prod(n)
        cos, sin = cos * weights, sin * weights
    part_major = torch.cat([cos, -sin])  # [(part, v), width]
    mode_major = torch.stack([cos, -sin], dim=1).reshape(2 * columns, -1)  # [(v, part), width]

    def rounded(matrix: Tensor) -> Tensor:
        return matrix.to(dtype=dtype, device=device).contiguous()

    if len(n) == 1:
        return TruncatedDFT(rounded(part_major), rounded(mode_major), None, None)
    cos, sin = _cos_sin(full_frequencies(n[0], kept[0]), positions[0], n[0])
    real = torch.stack([cos, sin], dim=1)  # [u, part, h]: re z = cos re t + sin im t
    imag = torch.stack([-sin, cos], dim=1)  #              im z = cos im t - sin re t
    rows = torch.stack([real, imag], dim=1)  # [u, part of z, part of t, h]
    size = 2 * rows.shape[0]
    rows_ph = rows.reshape(size, -1)
    rows_hp = rows.transpose(2, 3).reshape(size, -1)
    return TruncatedDFT(rounded(part_major), rounded(mode_major), rounded(rows_hp), rounded(rows_ph))


@lru_cache(maxsize=256)
def stepped_dft(
    n: tuple[int, int],
    steps: tuple[tuple[int, int], ...],
    starts: tuple[int, int],
    lengths: tuple[int, int],
    inverse: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> SteppedDFT:
    """The transform of a staircase of modes; the arguments of `truncated_dft` with `steps` for `kept`.

    steps: (columns, k) per block of consecutive half-axis frequencies, from 0: its modes are |u| < k, none if k = 0.
    """
    columns = sum(width for width, _ in steps)
    boxes = {
        k: truncated_dft(n, (k, columns), starts, lengths, inverse, dtype, device) for k in {k for _, k in steps if k}
    }
    any_box = next(iter(boxes.values()))
    blocks = tuple((width, boxes[k].rows_hp, boxes[k].rows_ph) if k else (width, None, None) for width, k in steps)
    return SteppedDFT(any_box.columns, any_box.columns_vp, blocks)


@lru_cache(maxsize=64)
def listed_dft(
    n: tuple[int, int],
    cells: tuple[tuple[int, int], ...],
    starts: tuple[int, int],
    lengths: tuple[int, int],
    inverse: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> ListedDFT:
    """The transform of the modes `cells`, (row, column) of the half spectrum; else the arguments of `truncated_dft`."""
    positions = [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    cos_h, sin_h = _cos_sin([u for u, _ in cells], positions[0], n[0])
    cos_w, sin_w = _cos_sin([v for _, v in cells], positions[1], n[1])
    real = cos_h.unsqueeze(2) * cos_w.unsqueeze(1) - sin_h.unsqueeze(2) * sin_w.unsqueeze(1)  # [F, height, width]
    imag = -(sin_h.unsqueeze(2) * cos_w.unsqueeze(1) + cos_h.unsqueeze(2) * sin_w.unsqueeze(1))
    matrix = torch.stack([real, imag], dim=1).flatten(2)
    if inverse:
        weights = hermitian_weights(n[1], n[1] // 2 + 1)[[v for _, v in cells]]
        matrix = matrix * (weights / math.prod(n)).view(-1, 1, 1)
    return ListedDFT(matrix.flatten(0, 1).to(dtype=dtype, device=device).contiguous(), lengths[0])
