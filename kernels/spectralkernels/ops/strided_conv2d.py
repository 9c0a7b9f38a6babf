"""Band-limited convolution of maps with a stride, a dilation or both.

    y[i, j] = (band-limited convolution with stride 1)[s_h i, s_w j], the kernel with d - 1 zeros between its taps

Sampling folds the spectrum: of N frequencies those that are N / s apart add up (alias-fold), so that the answer is the
inverse transform of a smaller circle where s divides N. Giving the inverse only the wanted samples is the same map for
any N and s, and giving the kernel's transform only the taps is that for any d. The band is that of stride 1 and of the
kernel with its zeros: c = 0 is `torch.nn.functional.conv2d` with this stride and dilation.
Source: Guan et al., SpecNet, 2021, section 3 ("stride"); the band of Dziedzic et al. 2019.

A stride of 2 does not halve the work, let alone quarter it. The sum over channels is one product for each kept mode
before the spectrum folds, so that a stride saves in the inverse alone. Of the multiplications at stride 1 on maps of
56 x 56, c = 0.5, there remain 0.79 with 64 to 64 channels and 3x3 taps, 0.86 with 15x15, 0.70 depthwise with 7x7, and
0.46 from 3 channels to 64 with 7x7, the stem of a ResNet, where the inverse is most of it.

Floor of a forward pass: `cost.conv_cost` with the samples that are wanted and the taps that there are.
"""

from __future__ import annotations

from torch import Tensor

from spectralkernels.convolution.calls import call
from spectralkernels.convolution.geometry import GridChoice, Padding, WeightSpectrum
from spectralkernels.convolution.strided_implementations import declare
from spectralkernels.declare import Scalar


def strided_conv2d(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    compression: float = 0.0,
    padding: Padding = "same",
    groups: int = 1,
    grid: GridChoice = "tight",
    impl: str = "auto",
) -> Tensor:
    """Convolve maps with the high frequencies left out, and keep every stride-th row and column.

    `band_limited_conv2d(..., stride=..., dilation=...)` comes here; its other arguments and errors are those of
    stride 1. A frozen `WeightSpectrum` has stride and dilation 1.
    stride, dilation: one number >= 1 or (vertical, horizontal).
    impl: a name of `implementations("strided_conv2d")`, or "auto".
    Returns: Real [batch, out_channel, ceil(out_height / s_h), ceil(out_width / s_w)], dtype of x.
    """
    options = (compression, padding, groups, grid, stride, dilation)
    return call(OPERATION, OPERATION, x, weight, bias, "height, width", options, impl)


# --- declaration ----------------------------------------------------------------------------------------------------

_SHAPE: dict[str, tuple[Scalar, ...]] = {
    "batch": (8,),
    "in_channels": (64,),
    "out_channels": (64,),
    "side": (32,),
    "kernel_size": (3,),
    "groups": (1,),
    "stride": (2,),
    "dilation": (1,),
    "compression": (0.5,),
    "grid": ("tight",),
    "input": ("pink",),
}

OPERATION = declare(2, _SHAPE, tiny_side=9, long_kernel=7)
