"""Band-limited convolution as folded truncated DFTs in C++, planes in the lanes of registers (exact backward).

    y = E (D x . conj(D_w w)) + b     `folding` derives D, D_w and E; `dft_native.cpp` computes them

FLOPs per plane for N ~ H, k kept of each side: 2 H W k + 4 H k^2, half of what `dft_gemm` needs and less, and 8 B C O F
for the products over F modes. A column of the weight's spectrum is made, multiplied and forgotten while it is in cache.

Channels lie in lanes, or groups do where there are many of few channels each, depthwise among them. Saved for backward
are the weight and the smaller of x and its spectrum (0.54 of x at c = 0.5 on 32 x 32, channels rounded up to lanes); x,
which is analysed again, with groups in lanes. The gradient of x is the same convolution with the transposed weight and
the conjugate of its spectrum. A call holds the spectrum of x, and per thread a few megabytes and two planes per lane.

Forward mode, torch.func and second derivatives go through `dft_gemm`, see `composed`.

Compiled at first use, which takes ten seconds, and kept in torch's cache of extensions (see `build`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution.dft_gemm import prepare_frozen
from spectralkernels.convolution.dft_native import build, operators
from spectralkernels.convolution.geometry import WeightSpectrum, fits_matrices, needs_tensor
from spectralkernels.convolution.strided import strided_sides
from spectralkernels.declare import Implementation, all_of
from spectralkernels.spectra import Band


def dft_native(x: Tensor, weight: Tensor | WeightSpectrum, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """x [B, C, *size], weight [O, C / groups, *kernel] or its WeightSpectrum, bias [O] | None -> [B, O, *out].

    Raises: Unsupported with the compiler's last lines where the library does not compile.
    """
    if isinstance(weight, WeightSpectrum):
        where = (weight.out_channels, groups, band.n, band.kept, band.out, None, (), None)
        return operators.apply(x, weight.modes, bias, *where)
    ones = (1,) * len(band.n)
    return strided_dft_native(x, weight, bias, band, groups, ones, ones)


def plan(
    x: Tensor, weight: Tensor | WeightSpectrum, bias: Tensor | None, band: Band, groups: int
) -> Callable[[Tensor, Any, Tensor | None], Tensor]:
    """What computes `dft_native` of these sizes, dtypes and devices where no gradient is wanted."""
    ones = (1,) * len(band.n)
    return _planned(weight, band, groups, ones, ones)


def strided_dft_native(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """The same at every s-th sample and with taps d apart; band: of stride 1 and of the kernel as far as it reaches."""
    return _convolve(x, weight, bias, band, groups, stride, dilation, None, ())


def plan_strided(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """What computes `strided_dft_native` of these sizes, dtypes and devices where no gradient is wanted."""
    return _planned(weight, band, groups, stride, dilation)


def masked(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None,
    band: Band,
    groups: int,
    weights: Tensor,
    reach: tuple[int, ...],
    places: Tensor | None = None,
) -> Tensor:
    """The same under a mask: its weights [B or 1, F] at the modes of the band, none of which have a gradient.

    places: of the modes of the band among those of a WeightSpectrum, see `library.Frozen`.
    reach: rows |u| < reach[v] per column where weights differ from zero, or empty: everywhere.
    """
    if isinstance(weight, WeightSpectrum):
        where = (weight.out_channels, groups, band.n, band.kept, band.out, weights, reach, places)
        return operators.apply(x, weight.modes, bias, *where)
    return _convolve(x, weight, bias, band, groups, (1, 1), (1, 1), weights, reach)


def plan_masked(
    weight: Tensor | WeightSpectrum, band: Band, groups: int, reach: tuple[int, ...], places: Tensor | None
) -> Callable[[Tensor, Any, Tensor | None, Tensor], Tensor]:
    """What computes `masked` of these sizes, dtypes and devices, given its weights, where no gradient is wanted."""
    return _planned(weight, band, groups, (1, 1), (1, 1), reach, places)


def _planned(
    weight: Tensor | WeightSpectrum,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    reach: tuple[int, ...] = (),
    places: Tensor | None = None,
) -> Callable[..., Tensor]:
    """What computes x, weight, bias and, under a mask, its weights; a frozen weight has no stride and no dilation."""
    if isinstance(weight, WeightSpectrum):
        apply, of_frozen = operators.apply.compute, (weight.out_channels, groups, band.n, band.kept, band.out)
        return lambda x, weight, bias, weights=None: apply(x, weight.modes, bias, *of_frozen, weights, reach, places)
    starts, out = [-before for before, _ in band.pad], strided_sides(band.out, stride)
    conv, where = operators.conv.compute, (starts, groups, band.n, band.kept, out, stride, dilation)
    return lambda x, weight, bias, weights=None: conv(x, weight, bias, *where, False, weights, reach)[0]


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    mask: Tensor | None,
    reach: tuple[int, ...],
) -> Tensor:
    starts, out = [-before for before, _ in band.pad], strided_sides(band.out, stride)
    keep = torch.is_grad_enabled() and weight.requires_grad
    y, _ = operators.conv(x, weight, bias, starts, groups, band.n, band.kept, out, stride, dilation, keep, mask, reach)
    return y


def _needs_spectrum(weight: Tensor | WeightSpectrum, **rest: Any) -> str | None:
    if isinstance(weight, WeightSpectrum):
        return None
    return "it takes a frozen weight; pass weight_spectrum(weight, ...) instead of the weight"


IMPLEMENTATIONS = (
    Implementation(
        "dft_native",
        "kernel",
        dft_native,
        "folded truncated DFT in C++, compiled at first use",
        engine="native",
        available=build.unavailable,
        supports=all_of(needs_tensor, fits_matrices),
        plan=plan,
    ),
    Implementation(
        "dft_native_frozen",
        "kernel",
        dft_native,
        "the same with the weight transformed once, outside the clock",
        engine="native",
        available=build.unavailable,
        supports=all_of(_needs_spectrum, fits_matrices),
        prepare=prepare_frozen,
        plan=plan,
        frozen=True,
        gradients=("x", "bias"),
    ),
)
