"""Arithmetic and bytes of a band-limited convolution: the floor, and what single routes to it do."""

from __future__ import annotations

import math

from spectralkernels.declare import Cost
from spectralkernels.spectra import Band


def direct_flops(batch: int, channels: int, out_channels: int, groups: int, band: Band) -> int:
    """Two operations per tap and output sample: 2 B O (C / g) |out| |kernel|."""
    return 2 * batch * out_channels * (channels // groups) * math.prod(band.out) * math.prod(band.kernel)


def dft_gemm_flops(batch: int, channels: int, out_channels: int, groups: int, band: Band) -> int:
    """What `dft_gemm` does: truncated transforms of x, weight and y, and the product over F modes."""
    planes = (batch * channels, out_channels * (channels // groups), batch * out_channels)
    sides = (band.size, band.kernel, band.out)
    transforms = sum(count * _truncated(side, band) for count, side in zip(planes, sides, strict=True))
    return transforms + _product(batch, channels, out_channels, groups, band)


def conv_cost(batch: int, channels: int, out_channels: int, groups: int, band: Band, itemsize: int) -> Cost:
    """Floor of a band-limited convolution in any number of dimensions; x, weight, bias and y cross memory once.

    FLOPs: the transforms of x, weight and y, each by the cheaper of a folded truncated DFT and a full FFT on the circle
    (2.5 N log2 N), and 8 B O (C / g) F for the product over F modes; at compression 0 the cheaper of that and the
    direct convolution.
    """
    per_group = channels // groups
    circle = math.prod(band.n)
    fft = int(2.5 * circle * math.log2(max(2, circle)))
    spectral = (
        batch * channels * min(fft, folded_flops(band.size, band))
        + out_channels * per_group * min(fft, folded_flops(band.kernel, band))
        + batch * out_channels * min(fft, folded_flops(band.out, band))
        + _product(batch, channels, out_channels, groups, band)
    )
    pixels, weights = batch * channels * math.prod(band.size), out_channels * per_group * math.prod(band.kernel)
    return Cost(
        bytes_read=itemsize * (pixels + weights + out_channels),
        bytes_written=itemsize * batch * out_channels * math.prod(band.out),
        flops=min(spectral, direct_flops(batch, channels, out_channels, groups, band))
        if band.compression == 0.0
        else spectral,
    )


def folded_flops(plane: tuple[int, ...], band: Band) -> int:
    """A truncated DFT of one plane folded about its centre, 2 H W k_w + 4 H k_h k_w, at most half of it unfolded."""
    first = 2 * math.prod(plane) * band.columns
    return first if len(plane) == 1 else first + 4 * plane[0] * band.columns * band.kept[0]


def _product(batch: int, channels: int, out_channels: int, groups: int, band: Band) -> int:
    return 8 * batch * out_channels * (channels // groups) * band.modes


def _truncated(plane: tuple[int, ...], band: Band) -> int:
    """A truncated DFT is a real product over the last axis, then (in 2-D) a complex one over the rows."""
    first = 4 * math.prod(plane) * band.columns
    return first if len(plane) == 1 else first + 8 * plane[0] * band.columns * band.height
