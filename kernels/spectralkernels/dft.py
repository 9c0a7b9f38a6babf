"""The truncated DFT as a product of small real matrices.

Only the kept coefficients of a band-limited spectrum are ever needed, so "pad, rfft2, crop" is a linear map D from
pixels to modes and "restore, irfft2, crop" is a linear map from modes to pixels. Both are separable:

    z[v, u] = sum_h e^{-2 pi i u h / N} sum_w e^{-2 pi i v w / N} x[h, w]

one matrix product over w, one over h, both real once complex numbers are written as pairs. Padding, cropping, centred
kernels, kernels larger than the grid, prime and non-square N are choices of the positions h and w and cost nothing.
Matrices are built in float64 and rounded once.

`SteppedDFT` serves bands and staircases of modes, `ListedDFT` any modes by one dense matrix. `analyse` and `synthesise`
of either are exact transposes of each other, so the inverse transform is the synthesis of another transform (with
Hermitian weights: modes off the zero and Nyquist columns count twice, and the redundant half is never read), and every
gradient is the transpose of the map that made the value.

Layout of modes: Real [F, 2, planes], frequency-major, real part then imaginary part, planes contiguous: what the
per-frequency matrix product over channels wants to read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralkernels.constants import constant
from spectralkernels.spectra import full_frequencies, hermitian_weights, step_cells

# Planes of so few pixels have a dense transform: it writes its modes once, a separable one twice.
FEW_PIXELS = 16
# MKL multiplies so few terms fastest 8 rows at a time: on 2 CPU cores [192, 9] x [9, 4096], the right side transposed
# as planes are, takes 299 us as one product, 244 us as a batch of 4, 154 us as one of 12, 151 of 24, 192 of 48.
FEW_TERM_ROWS = 8
FEW_PLANES = 64
"""Up to so many columns one product is faster: [192, 9] x [9, 64] takes 6 us, in batches 17."""
LARGEST_MATRIX_BYTES = 32 << 20
"""Of one DFT matrix. A call keeps two for x and two for y, all that `constants.MOST_BYTES` holds; the longest series
have 2,900 samples uncompressed and 4,100 at c = 0.5, where an FFT takes a tenth of the arithmetic and no matrix."""


@dataclass(frozen=True, slots=True)
class TruncatedDFT:
    """The factors of a separable truncated DFT; a series has no row matrix.

    columns: Real [2 V, width], rows ordered (part, v): cos and -sin of the half axis.
    columns_vp: the same matrix with rows ordered (v, part).
    rows_hp: Real [2 U, 2 height], rows (u, part), columns (h, part): complex row DFT embedded in the reals.
    rows_ph: the same matrix with columns ordered (part, h), so that each direction reads its operand without a copy.
    """

    columns: Tensor
    columns_vp: Tensor
    rows_hp: Tensor | None
    rows_ph: Tensor | None


@dataclass(frozen=True, slots=True)
class SteppedDFT:
    """Real planes [planes, height, width] <-> the modes of a staircase, [F, 2, planes].

    The half axis is cut into blocks of consecutive columns, each with rows |u| < k of its own, so that a mask which is
    no rectangle costs little more than the modes it keeps; a band is one block. Modes are ordered (block, column, row
    in FFT order).

    Matrices are batches of one matrix, expanded views, as `torch.bmm` takes them.
    columns: [height, 2 V, width] and columns_vp: [height, 2 V, width], as in TruncatedDFT.
    blocks: per block its number of columns, and its rows_hp [columns, 2 U, 2 height] with the transpose of its rows_ph
        [columns, 2 height, 2 U], or None where it has no rows.
    modes: F. band: the matrices of the only block, None where there are several.
    """

    columns: Tensor
    columns_vp: Tensor
    blocks: tuple[tuple[int, tuple[Tensor, Tensor] | None], ...]
    modes: int
    band: tuple[Tensor, Tensor] | None

    def analyse(self, planes: Tensor) -> Tensor:
        """Pixels to modes: Real [planes, height, width] -> [F, 2, planes]."""
        count = planes.shape[0]
        by_column = self._over_width(planes)
        if (rows := self.band) is not None:
            return torch.bmm(rows[0], by_column).view(self.modes, 2, count)
        modes = planes.new_empty(self.modes, 2, count)
        for columns, where, rows in self._pieces(self.modes):
            if rows is not None:
                torch.bmm(rows[0], by_column[columns], out=modes[where].view(*rows[0].shape[:2], count))
        return modes

    def stream(self, planes: Tensor, most: int) -> Iterator[tuple[slice, Tensor]]:
        """The modes of `analyse` piece by piece: where they lie, and [modes, 2, planes], overwritten by the next piece.

        most: modes per piece, about: up to half as many more if that saves a piece, besides a column more where their
            number would be odd, and one column at least.
        """
        count = planes.shape[0]
        by_column = self._over_width(planes)
        buffer = piece = planes.new_empty(0)
        for columns, where, rows in self._pieces(most):
            if rows is None:
                continue
            modes = where.stop - where.start
            if len(piece) != modes:
                if buffer.numel() < modes * 2 * count:
                    buffer = planes.new_empty(modes * 2 * count)
                piece = buffer[: modes * 2 * count].view(modes, 2, count)
            torch.bmm(rows[0], by_column[columns], out=piece.view(*rows[0].shape[:2], count))
            yield where, piece

    def composed_analyse(self, planes: Tensor) -> Tensor:
        """`analyse` in operations that torch can differentiate any number of times."""
        count, by_column = planes.shape[0], self._over_width(planes)
        return torch.cat(
            [
                torch.bmm(rows[0], by_column[columns]).reshape(where.stop - where.start, 2, count)
                for columns, where, rows in self._pieces(self.modes)
                if rows is not None
            ]
        )

    def composed_synthesise(self, modes: Tensor) -> Tensor:
        """`synthesise` in operations that torch can differentiate any number of times."""
        count, height = modes.shape[2], self.columns.shape[0]
        partial = torch.cat(
            [
                modes.new_zeros(columns.stop - columns.start, 2 * height, count)
                if rows is None
                else torch.bmm(rows[1], modes[where].reshape(rows[1].shape[0], rows[1].shape[2], count))
                for columns, where, rows in self._pieces(self.modes)
            ]
        )
        return self._over_columns(partial, count)

    def synthesise(self, modes: Tensor) -> Tensor:
        """The transpose: [F, 2, planes] -> Real [planes, height, width], a view of [height, planes, width]."""
        count = modes.shape[2]
        if (rows := self.band) is not None:
            return self._over_columns(torch.bmm(rows[1], modes.view(*rows[0].shape[:2], count)), count)
        return self.gather(lambda where: modes[where], count, self.modes)

    def gather(self, part: Callable[[slice], Tensor], count: int, most: int) -> Tensor:
        """`synthesise` of modes that `part` makes piece by piece: where they lie -> [modes, 2, count]."""
        height, doubled, _ = self.columns.shape
        partial = self.columns.new_empty(doubled // 2, 2 * height, count)  # [v, (part, h), planes]
        for columns, where, rows in self._pieces(most):
            if rows is None:
                partial[columns].zero_()
            else:
                modes = part(where).reshape(rows[1].shape[0], rows[1].shape[2], count)
                torch.bmm(rows[1], modes, out=partial[columns])
        return self._over_columns(partial, count)

    def _over_columns(self, partial: Tensor, count: int) -> Tensor:
        """The transpose of the DFT along the half axis, of [v, (part, h), planes]."""
        height, doubled, _ = self.columns.shape
        by_height = partial.view(doubled, height, count).permute(1, 2, 0)  # [h, planes, (v, part)], no copy
        return torch.bmm(by_height, self.columns_vp).permute(1, 0, 2)

    def _over_width(self, planes: Tensor) -> Tensor:
        """The DFT along the half axis: [v, (h, part), planes], a view."""
        by_width = planes.permute(1, 2, 0)  # [height, width, planes], a transposed operand, no copy
        partial = torch.bmm(self.columns, by_width)  # [height, (part, v), planes]
        height, doubled, count = partial.shape
        return partial.view(height * 2, doubled // 2, count).transpose(0, 1)

    def _pieces(self, most: int) -> Iterator[tuple[slice, slice, tuple[Tensor, Tensor] | None]]:
        """(columns, modes, rows_hp and rows_ph) of runs of columns, each of one block and of about `most` modes."""
        column = mode = 0
        for width, rows in self.blocks:
            height = rows[0].shape[1] // 2 if rows is not None else 0
            step = _even_share(width, width * height, most)
            if step > 1:
                step += step % 2  # of an odd batch, a core multiplies the last alone: 3 columns take as long as 4
            for start in range(0, width, step):
                size = min(step, width - start)
                some = rows if rows is None or size == width else (rows[0][:size], rows[1][:size])
                yield slice(column, column + size), slice(mode, mode + size * height), some
                column, mode = column + size, mode + size * height


@dataclass(frozen=True, slots=True)
class ListedDFT:
    """Real planes <-> any modes, [F, 2, planes], by one dense matrix: for few modes that no staircase holds tightly,
    for few pixels, and for series.

    matrix: Real [(f, part), (h, w)], 8 F height width bytes in float32. height: of the planes. modes: F.
    """

    matrix: Tensor
    height: int

    @property
    def modes(self) -> int:
        return self.matrix.shape[0] // 2

    def analyse(self, planes: Tensor) -> Tensor:
        """Pixels to modes: Real [planes, height, width] -> [F, 2, planes]."""
        return (self.matrix @ planes.flatten(1).t()).unflatten(0, (-1, 2))

    def stream(self, planes: Tensor, most: int) -> Iterator[tuple[slice, Tensor]]:
        """As in SteppedDFT, but all pieces are of one size: the last begins within the one before."""
        all_modes, count = self.modes, planes.shape[0]
        size = all_modes if most >= all_modes else _even_share(all_modes, all_modes, most)
        size = min(size + -size % (FEW_TERM_ROWS // 2), all_modes)  # rows in whole batches
        batches, done = self._batches(2 * size) if count > FEW_PLANES else (0, 0)
        pixels = planes.flatten(1).t()
        modes = planes.new_empty(size, 2, count)
        piece = modes.view(2 * size, count)
        for start in range(0, all_modes, size):
            start = min(start, all_modes - size)
            rows = self.matrix if size == all_modes else self.matrix[2 * start : 2 * (start + size)]
            if not batches:
                torch.mm(rows, pixels, out=piece)
            else:
                copies, in_batches = pixels.expand(batches, -1, -1), piece[:done].view(batches, FEW_TERM_ROWS, count)
                torch.bmm(rows[:done].view(batches, FEW_TERM_ROWS, -1), copies, out=in_batches)
                if done < 2 * size:
                    torch.mm(rows[done:], pixels, out=piece[done:])
            yield slice(start, start + size), modes

    def synthesise(self, modes: Tensor) -> Tensor:
        """The transpose: [F, 2, planes] -> Real [planes, height, width]."""
        return (modes.flatten(0, 1).t() @ self.matrix).unflatten(1, (self.height, -1))

    composed_analyse, composed_synthesise = analyse, synthesise  # one product: torch can differentiate it

    def gather(self, part: Callable[[slice], Tensor], count: int, most: int) -> Tensor:
        """As in SteppedDFT."""
        pixels = self.matrix.new_zeros(self.matrix.shape[1], count)
        size = _even_share(self.modes, self.modes, most)
        for start in range(0, self.modes, size):
            where = slice(start, min(start + size, self.modes))
            rows, modes = self.matrix[2 * where.start : 2 * where.stop], part(where).flatten(0, 1)
            batches, done = self._batches(len(rows))
            if batches:
                # As fast as one product, and short sums round less than a long one.
                columns = rows[:done].view(batches, FEW_TERM_ROWS, -1).transpose(1, 2)
                pixels += torch.bmm(columns, modes[:done].view(batches, FEW_TERM_ROWS, -1)).sum(0)
            if done < len(rows):
                pixels.addmm_(rows[done:].t(), modes[done:])
        return pixels.t().unflatten(1, (self.height, -1))

    def _batches(self, rows: int) -> tuple[int, int]:
        """How many batches of FEW_TERM_ROWS to cut rows of the matrix into, and how many rows those are."""
        few = self.matrix.is_cpu and self.matrix.shape[1] <= FEW_PIXELS
        batches = rows // FEW_TERM_ROWS if few else 0
        return batches, batches * FEW_TERM_ROWS


def _even_share(count: int, modes: int, most: int) -> int:
    """How many of `count` (columns, or the modes themselves) make a piece, in even pieces of about `most` modes."""
    return -(-count // max(1, round(modes / most)))


def _cos_sin(frequencies: Sequence[int], positions: Sequence[int], n: int) -> tuple[Tensor, Tensor]:
    # Reducing the product modulo n in integers keeps the angle exact however large the position.
    turns = torch.outer(torch.tensor(frequencies), torch.tensor(positions)).remainder(n)
    angle = turns.double() * (2.0 * math.pi / n)
    return angle.cos(), angle.sin()


def _positions(starts: Sequence[int], lengths: Sequence[int], spacing: Sequence[int] | None) -> list[range]:
    sides = zip(starts, lengths, spacing or [1 for _ in starts], strict=True)
    return [range(start, start + step * length, step) for start, length, step in sides]


def truncated_dft(
    n: tuple[int, ...],
    kept: tuple[int, ...],
    starts: tuple[int, ...],
    lengths: tuple[int, ...],
    inverse: bool,
    dtype: torch.dtype,
    device: torch.device,
    spacing: tuple[int, ...] | None = None,
) -> TruncatedDFT:
    """The transform between positions start .. start + length - 1 on a circle of n samples and frequencies |u| < kept.

    n, kept, starts, lengths: one value per spatial axis, the last being the half axis; positions are taken modulo n.
    spacing: of neighbouring positions, one value per axis (None: 1): that of a kernel's taps, or of wanted samples.
    inverse: scale by Hermitian weights / prod(n), so that `synthesise` is the inverse DFT of a real signal.
    dtype, device: of the matrices, which are built in float64 on the CPU and rounded once.
    """
    positions = _positions(starts, lengths, spacing)
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
    rows_ph, rows_hp = rows.flatten(0, 1).flatten(1), rows.transpose(2, 3).flatten(0, 1).flatten(1)
    return TruncatedDFT(rounded(part_major), rounded(mode_major), rounded(rows_hp), rounded(rows_ph))


def too_large(
    n: tuple[int, ...], kept: tuple[int, ...], sides: Sequence[tuple[int, ...]], itemsize: int, cells: int | None = None
) -> str | None:
    """Why the transforms of planes of `sides` are not made as matrices, or None.

    n, kept: as in `truncated_dft`. itemsize: bytes of a number. cells: how many, where modes are listed one by one.
    """
    for side in sides:
        wanted = _largest_matrix(n, kept, side, cells)
        if wanted * itemsize > LARGEST_MATRIX_BYTES:
            shape = "x".join([str(length) for length in side])
            return (
                f"a DFT matrix of {wanted * itemsize >> 20} MiB for planes of {shape} is above the "
                f"{LARGEST_MATRIX_BYTES >> 20} MiB that are made; an FFT needs none: 'torch_fft' or 'torch_fft_frozen'"
            )
    return None


def _largest_matrix(n: tuple[int, ...], kept: tuple[int, ...], side: tuple[int, ...], cells: int | None) -> int:
    """Numbers in the largest matrix of the transform of one plane, as `stepped_dft` and `listed_dft` make it."""
    of_columns = 2 * kept[-1] * side[-1]
    if len(n) == 1:
        return of_columns
    rows = min(2 * kept[0] - 1, n[0])
    if cells is not None or math.prod(side) <= FEW_PIXELS:
        return 2 * (rows * kept[1] if cells is None else cells) * math.prod(side)
    return max(of_columns, 4 * rows * side[0])


Steps = tuple[tuple[int, int], ...]


@constant
def stepped_dft(
    n: tuple[int, ...],
    steps: Steps,
    starts: tuple[int, ...],
    lengths: tuple[int, ...],
    inverse: bool,
    dtype: torch.dtype,
    device: torch.device,
    spacing: tuple[int, ...] | None = None,
) -> SteppedDFT | ListedDFT:
    """The transform of a staircase of modes; the arguments of `truncated_dft` with `steps` for `kept`.

    steps: (columns, k) per block of consecutive half-axis frequencies, from 0: its modes are |u| < k, none if k = 0.
    Planes of at most FEW_PIXELS pixels, and series, have the dense form, in the same order of modes.
    """
    columns = sum(width for width, _ in steps)
    if len(n) == 1:
        return ListedDFT(truncated_dft(n, (columns,), starts, lengths, inverse, dtype, device, spacing).columns_vp, 1)
    if math.prod(lengths) <= FEW_PIXELS:
        return listed_dft(n, step_cells(n[0], steps), starts, lengths, inverse, dtype, device, spacing)
    where = (starts, lengths, inverse, dtype, device, spacing)
    boxes = {k: truncated_dft(n, (k, columns), *where) for k in {k for _, k in steps if k}}
    any_box = next(iter(boxes.values()))

    def rows(width: int, k: int) -> tuple[Tensor, Tensor] | None:
        rows_hp, rows_ph = (boxes[k].rows_hp, boxes[k].rows_ph) if k else (None, None)
        if rows_hp is None or rows_ph is None:
            return None
        return rows_hp.expand(width, -1, -1), rows_ph.t().expand(width, -1, -1)

    of_width, of_width_vp = (each.expand(lengths[0], -1, -1) for each in (any_box.columns, any_box.columns_vp))
    blocks = tuple((width, rows(width, k)) for width, k in steps)
    modes = sum(width * of_rows[0].shape[1] // 2 for width, of_rows in blocks if of_rows is not None)
    return SteppedDFT(of_width, of_width_vp, blocks, modes, blocks[0][1] if len(blocks) == 1 else None)


@constant
def listed_dft(
    n: tuple[int, ...],
    cells: Steps,
    starts: tuple[int, ...],
    lengths: tuple[int, ...],
    inverse: bool,
    dtype: torch.dtype,
    device: torch.device,
    spacing: tuple[int, ...] | None = None,
) -> ListedDFT:
    """The transform of the modes `cells`, (row, column) of the half spectrum; else the arguments of `truncated_dft`."""
    positions = _positions(starts, lengths, spacing)
    (cos_h, sin_h), (cos_w, sin_w) = (_cos_sin([c[i] for c in cells], positions[i], n[i]) for i in (0, 1))
    real = cos_h.unsqueeze(2) * cos_w.unsqueeze(1) - sin_h.unsqueeze(2) * sin_w.unsqueeze(1)  # [F, height, width]
    imag = -(sin_h.unsqueeze(2) * cos_w.unsqueeze(1) + cos_h.unsqueeze(2) * sin_w.unsqueeze(1))
    matrix = torch.stack([real, imag], dim=1).flatten(2)
    if inverse:
        weights = hermitian_weights(n[1], n[1] // 2 + 1)[[v for _, v in cells]]
        matrix = matrix * (weights / math.prod(n)).view(-1, 1, 1)
    return ListedDFT(matrix.flatten(0, 1).to(dtype=dtype, device=device).contiguous(), lengths[0])
