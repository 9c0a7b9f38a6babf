"""Band-limited convolution of series with a stride, a dilation or both.

    y[i] = (band-limited convolution with stride 1)[s i], the kernel with d - 1 zeros between its taps

Sampling folds the spectrum: of N frequencies those that are N / s apart add up (alias-fold), so that the answer is the
inverse transform of a smaller circle where s divides N. Giving the inverse only the wanted samples is the same map for
any N and s, and giving the kernel's transform only the taps is that for any d. The band is that of stride 1 and of the
kernel with its zeros: c = 0 is `torch.nn.functional.conv1d` with this stride and dilation.
Source: Guan et al., SpecNet, 2021, section 3 ("stride"); the band of Dziedzic et al. 2019.

Floor of a forward pass: `cost.conv_cost` with the samples that are wanted and the taps that there are.
"""

from __future__ import annotations

from torch import Tensor

from spectralkernels.convolution.calls import call
from spectralkernels.convolution.geometry import GridChoice, Padding, WeightSpectrum
from spectralkernels.convolution.strided_implementations import declare
from spectralkernels.declare import Scalar


def strided_conv1d(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    compression: float = 0.0,
    padding: Padding = "same",
    groups: int = 1,
    grid: GridChoice = "tight",
    impl: str = "auto",
) -> Tensor:
    """Convolve series with the high frequencies left out, and keep every stride-th sample.

    `band_limited_conv1d(..., stride=..., dilation=...)` comes here; its other arguments and errors are those of
    stride 1. A frozen `WeightSpectrum` has stride and dilation 1.
    stride, dilation: one number >= 1. impl: a name of `implementations("strided_conv1d")`, or "auto".
    Returns: Real [batch, out_channel, ceil(out_length / s)], dtype of x.
    """
    options = (compression, padding, groups, grid, stride, dilation)
    return call(OPERATION, OPERATION, x, weight, bias, "length", options, impl)


# --- declaration ----------------------------------------------------------------------------------------------------

_SHAPE: dict[str, tuple[Scalar, ...]] = {
    "batch": (16,),
    "in_channels": (128,),
    "out_channels": (256,),
    "side": (270,),
    "kernel_size": (3,),
    "groups": (1,),
    "stride": (2,),
    "dilation": (1,),
    "compression": (0.5,),
    "grid": ("tight",),
    "input": ("pink",),
}

OPERATION = declare(1, _SHAPE, tiny_side=13, long_kernel=8)
