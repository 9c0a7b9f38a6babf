"""Band-limited convolution of maps with a stride, a dilation or both.

    y[i, j] = (band-limited convolution with stride 1)[s_h i, s_w j], the kernel with d - 1 zeros between its taps

Sampling folds the spectrum: of N frequencies those that are N / s apart add up (alias-fold), so that the answer is the
inverse transform of a smaller circle where s divides N. Giving the inverse only the wanted samples is the same map for
any N and s, and giving the kernel's transform only the taps is that for any d. The band is that of stride 1 and of the
kernel with its zeros: c = 0 is `torch.nn.functional.conv2d` with this stride and dilation.
Source: Guan et al., SpecNet, 2021, section 3 ("stride"); the band of Dziedzic et al. 2019.

Floor of a forward pass: `cost.conv_cost` with the samples that are wanted and the taps that there are.
"""

from __future__ import annotations

from torch import Tensor

from spectralkernels.convolution.cases import observed
from spectralkernels.convolution.geometry import GridChoice, Padding, WeightSpectrum
from spectralkernels.convolution.implementations import TOLERANCE
from spectralkernels.convolution.strided_implementations import (
    IMPLEMENTATIONS,
    RIVALS,
    auto,
    band_of,
    call,
    cost,
    ideal,
    inputs_of,
    reference,
)
from spectralkernels.declare import Block, Operation, Scalar


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
    return call(
        OPERATION,
        x,
        weight,
        bias,
        spatial="height, width",
        stride=stride,
        dilation=dilation,
        compression=compression,
        padding=padding,
        groups=groups,
        grid=grid,
        impl=impl,
    )


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
_TINY = {**_SHAPE, "batch": (2,), "in_channels": (4,), "out_channels": (6,), "side": (9,), "input": ("white",)}

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (
        Block({**_TINY, "stride": (2, 3), "compression": (0.0, 0.5)}, passes=("forward", "both")),
        Block({**_TINY, "side": (4,), "kernel_size": (4,), "groups": (2,)}, passes=("forward", "both")),
        Block({**_TINY, "stride": (1, 2), "dilation": (2, 3)}, passes=("forward", "both")),
    ),
    "quick": (Block({**_SHAPE, "compression": (0.0, 0.5)}),),
    "study": (
        Block(
            {**_SHAPE, "kernel_size": (3, 7), "stride": (1, 2, 3), "compression": (0.0, 0.5, 0.8)},
            passes=("forward", "both"),
        ),
        Block({**_SHAPE, "stride": (1,), "dilation": (2, 4)}, passes=("forward", "both")),
    ),
    "gpu": (Block({**_SHAPE, "batch": (128,)}, passes=("forward", "both")),),
    "asv": (Block(_SHAPE, implementations=("dft_native", "dft_gemm", "subsample", "direct_uncompressed")),),
}

OPERATION = Operation(
    name="strided_conv2d",
    summary="band-limited 2-D convolution with a stride or a dilation, by fewer samples and taps",
    version=1,
    source="Guan et al., SpecNet, 2021, section 3; Dziedzic et al., ICML 2019",
    profiles=PROFILES,
    make_inputs=lambda case, device: inputs_of(case, 2, device),
    reference=reference,
    ideal=ideal,
    cost=lambda case: cost(case, 2),
    fft_size=lambda case: band_of(case, 2).n,
    tolerance=TOLERANCE,
    implementations=IMPLEMENTATIONS,
    auto=auto,
    rivals=RIVALS,
    observe=lambda case, output: observed(band_of(case, 2)),
    gradients=("x", "weight", "bias"),
)
