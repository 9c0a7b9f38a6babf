"""Half-spectrum geometry: FFT sizes, the band that a compression rate keeps, masks, Hermitian weights.

A real signal of N samples has N // 2 + 1 independent frequencies along its last axis (the half axis) and N along every
other. Compression c drops the high ones: with half = N // 2 + 1 the band keeps

    2-D, per axis:  k = floor(half * sqrt(1 - c)), frequencies |u| < k     (Dziedzic et al. 2019, their code)
    1-D:            k = half - (floor(half * c) + 1) for c > 0             (the same code's rule for series)

and never fewer than k = 1 (the mean). c = 0 keeps everything. For c > 0 the crop is odd, 2k - 1 rows, so the Nyquist
frequency of an even N is always dropped. `Band` carries these facts with the sizes around them.

There is no 3-D band: here, in every mode list, transform and kernel a spectrum has at most one full axis beside the
half one, and a second would be new geometry in each of them. `nn.convert` keeps a Conv3d as it is and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

GridName = Literal["tight", "seed", "seed_1d", "pow2", "fast"]
GRIDS: tuple[GridName, ...] = get_args(GridName)


def half(n: int) -> int:
    """Independent frequencies of a real signal of `n` samples."""
    return n // 2 + 1


def kept_2d(n: int, compression: float) -> int:
    """Frequencies kept on the non-negative side of one axis of a map, 1 <= k <= n // 2 + 1."""
    if compression == 0.0:
        return half(n)
    # A rate such as 0.91 is a little above its decimal: sqrt(0.09) must be 0.3, not 0.2999.
    return max(1, math.floor(half(n) * math.sqrt(1.0 - compression + 2.0**-52)))


def kept_1d(n: int, compression: float) -> int:
    """Frequencies kept of a series, 1 <= k <= n // 2 + 1; at least one is dropped when c > 0."""
    if compression == 0.0:
        return half(n)
    return max(1, half(n) - (math.floor(half(n) * compression) + 1))


def next_smooth(n: int) -> int:
    """The smallest size >= n with no prime factor above 7, where FFT libraries are fast."""
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def next_pow2(n: int) -> int:
    """The smallest power of two >= n."""
    return 1 << max(0, n - 1).bit_length()


def full_frequencies(n: int, k: int) -> tuple[int, ...]:
    """Indices kept along a full axis, in FFT order: 0 .. k-1, then the negative ones -(k-1) .. -1 as n-(k-1) .. n-1."""
    rows = min(2 * k - 1, n)
    return (*range(k), *range(n - (rows - k), n))


def full_count(n: int, k: int) -> int:
    """How many `full_frequencies` there are; unlike them it may be traced, and asks for no graph of every side of n."""
    return torch.sym_min(2 * k - 1, n)


def step_cells(n: int, steps: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """(row, column) of the modes of a staircase: blocks (columns, k) of consecutive columns with the rows |u| < k."""
    found, column = [], 0
    for width, k in steps:
        rows = full_frequencies(n, k) if k else ()
        found += [(u, v) for v in range(column, column + width) for u in rows]
        column += width
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Band:
    """The geometry of one band-limited convolution, a value per spatial axis; the last axis is the half axis.

    size: input plane. kernel: kernel plane. pad: zeros before and after. out: output plane. n: FFT size N.
    kept: k, so that frequencies |u| < k survive. compression: the nominal rate asked for.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    pad: tuple[tuple[int, int], ...]
    out: tuple[int, ...]
    n: tuple[int, ...]
    kept: tuple[int, ...]
    compression: float

    @property
    def rows(self) -> tuple[int, ...]:
        """Kept frequency indices of the full axis (axis 0 of a map); a series has none, so one row."""
        return full_frequencies(self.n[0], self.kept[0]) if len(self.n) == 2 else (0,)

    @property
    def columns(self) -> int:
        """Kept frequencies of the half axis: 0 .. columns - 1."""
        return self.kept[-1]

    @property
    def height(self) -> int:
        """How many `rows` there are; unlike them it may be traced."""
        return min(2 * self.kept[0] - 1, self.n[0]) if len(self.n) == 2 else 1

    @property
    def modes(self) -> int:
        """Kept coefficients F of the half spectrum."""
        return self.height * self.columns

    @property
    def half_cells(self) -> int:
        """Coefficients of the whole half spectrum."""
        return math.prod(self.n[:-1]) * half(self.n[-1])

    @property
    def achieved_compression(self) -> float:
        """Fraction of half-spectrum coefficients that is really dropped; rounding makes it differ from the nominal."""
        return 1.0 - self.modes / self.half_cells


def fft_size(size: int, kernel: int, pad: tuple[int, int], out: int, grid: GridName) -> int:
    """FFT size N of one axis under a grid policy.

    tight: max(size + max(pad), out), the smallest N that holds the output and does not wrap into it.
    seed:  the paper's H + max(K - 1, G - 1) with H the padded input side and G the output side.
    seed_1d: H + 2 max(K - 1, G - 1), which the paper's authors take for series: their code leaves that room on both
        sides, so that N is up to 1.5 times that of `seed`, and so is the number of coefficients kept at a rate.
    pow2:  the next power of two of `seed`. fast: the next 7-smooth size of `tight`.
    All give the same answer at compression 0; above it N is part of the operator.
    """
    # Only what is asked for: sizes that torch.compile traces have no number, and a power of two needs one.
    if grid in ("tight", "fast"):
        tight = max(size + max(pad), out)
        return tight if grid == "tight" else next_smooth(tight)
    sides = 2 if grid == "seed_1d" else 1
    seed = size + sum(pad) + sides * max(kernel - 1, out - 1)
    return next_pow2(seed) if grid == "pow2" else seed


def hermitian_weights(n: int, columns: int) -> Tensor:
    """How often each half-axis frequency counts in the full spectrum: 1 for 0 and (even n) n/2, else 2.

    Returns: Float64 [columns], CPU.
    """
    weights = torch.full((columns,), 2.0, dtype=torch.float64)
    weights[0] = 1.0
    if n % 2 == 0 and columns == half(n):
        weights[-1] = 1.0
    return weights


def low_pass_mask(n: tuple[int, int], compression: float, device: torch.device | str = "cpu") -> Tensor:
    """The rectangular band of a map's half spectrum under a compression rate.

    Returns: Bool [n[0], n[1] // 2 + 1], True where kept.
    """
    rows, columns = torch.arange(n[0], device=device), torch.arange(half(n[1]), device=device)
    low = torch.minimum(rows, n[0] - rows) < kept_2d(n[0], compression)
    return low.unsqueeze(1) & (columns < kept_2d(n[1], compression))
