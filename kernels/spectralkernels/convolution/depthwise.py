"""What every Triton kernel needs of a call that convolves each map, or each series, with a kernel of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.spectra import Band

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def not_depthwise(x: Tensor, weight: Tensor | WeightSpectrum, band: Band, groups: int, axes: int) -> str | None:
    """Why a kernel for maps (axes 2) or for series (1) cannot serve a call, whatever its sizes, or None."""
    one, ours, others = ("map", "maps", "series") if axes == 2 else ("series", "series", "maps")
    if isinstance(weight, WeightSpectrum):
        return "it takes a weight tensor, not a WeightSpectrum"
    if len(band.n) != axes:
        return f"it convolves {ours}, not {others}"
    if not groups == x.shape[1] == weight.shape[0]:
        return (
            f"it convolves each {one} with one kernel, so groups, channels and out_channels must be equal, "
            f"got {groups}, {x.shape[1]} and {weight.shape[0]}"
        )
    if x.dtype not in DTYPES:
        return f"it takes float32, float16 or bfloat16 {ours}, got {str(x.dtype).removeprefix('torch.')}"
    return None
