"""The ends of the folded transforms of one call, with a stride, a dilation and padding of any kind.

Seen from the centre of its samples, a map that is asked for at 0, s, 2 s, ... is as symmetric as a whole one, and so is
a kernel with its taps d apart: the angles are s or d times as large, and a transform onto 1 / s of the samples takes
1 / s of the work of its stage. In `folding`'s terms the centres must agree, 2 c_x - 2 c_w = 2 c_y with

    2 c_x = H - 1 - zeros_x,    2 c_w = -2 pad - d zeros_w + d (K - 1),    2 c_y = s (M - 1)

for M wanted samples; zeros in front of the map, and of the kernel where those would be too many, see to it: one of an
even kernel with "same" padding, as many of a causal series as its centre is away from that of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spectralkernels.constants import planned
from spectralkernels.convolution.dft_native import library
from spectralkernels.convolution.dft_native.folding import Fold, fold
from spectralkernels.convolution.dft_native.library import KeptModes
from spectralkernels.convolution.linear_maps import spacing_of

Ints = Sequence[int]


Tuple = tuple[int, ...]
Asked = tuple[Tuple, Tuple, Tuple, Tuple, torch.dtype, int, Tuple | None]
"""What `fold` is asked for: n, kept, lengths, zeros in front, dtype, panel, spacing."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The ends of the transforms of one call, to be made as `fold` says how. about: twice the centre of x, plus 1."""

    about: Tuple
    of_x: Asked
    of_weight: Asked
    of_y: Asked

    def x(self, **how: bool) -> Fold:
        return fold(*self.of_x, **how)

    def weight(self, **how: bool) -> Fold:
        return fold(*self.of_weight, **how)

    def y(self, **how: bool) -> Fold:
        return fold(*self.of_y, inverse=True, **how)


def ends_of(
    band: KeptModes, dtype: torch.dtype, size: Ints, kernel: Ints, out: Ints, starts: Ints, stride: Ints, dilation: Ints
) -> Ends:
    """The ends of a convolution whose kernel begins at `starts`, about centres that agree."""
    sides = tuple(size), tuple(kernel), tuple(out), tuple(starts), tuple(stride), tuple(dilation)
    return _ends(band.n, band.kept, dtype, library.panel(), *sides)


@planned
def _ends(
    n: Tuple,
    kept: Tuple,
    dtype: torch.dtype,
    panel: int,
    size: Tuple,
    kernel: Tuple,
    out: Tuple,
    starts: Tuple,
    stride: Tuple,
    dilation: Tuple,
) -> Ends:
    zeros = zeros_of(size, kernel, out, starts, stride, dilation)
    of_map, of_kernel = (tuple(each) for each in zip(*zeros, strict=True))

    def asked(stored: Tuple, front: Tuple, steps: Tuple | None) -> Asked:
        lengths = tuple(length + more for length, more in zip(stored, front, strict=True))
        return n, kept, lengths, front, dtype, panel, spacing_of(steps)

    about = tuple(have - more for have, more in zip(size, of_map, strict=True))
    x, weight, y = asked(size, of_map, None), asked(kernel, of_kernel, dilation), asked(out, (0,) * len(out), stride)
    return Ends(about, x, weight, y)


def zeros_of(
    size: Tuple, kernel: Tuple, out: Tuple, starts: Tuple, stride: Tuple, dilation: Tuple
) -> tuple[tuple[int, int], ...]:
    """Zeros in front of the map and of the kernel, per axis."""
    zeros = []
    for have, taps, made, start, step, apart in zip(size, kernel, out, starts, stride, dilation, strict=True):
        missing = have - 1 - 2 * start - apart * (taps - 1) - step * (made - 1)
        of_kernel = max(0, -(missing // apart))
        zeros.append((missing + of_kernel * apart, of_kernel))
    return tuple(zeros)
