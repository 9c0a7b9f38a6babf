"""Band-limited 2-D convolution: drop the high frequencies of map and kernel, then multiply.

    y = crop( F^-1( M_c . sum_channels X . conj(W) ) ) + b,     X = F(x), W = F(w) on an N_h x N_w circle

M_c keeps the frequencies |u| < k_h, |v| < k_w of `spectra.kept_2d`. At c = 0 it is `torch.nn.functional.conv2d`.
Source: Dziedzic et al., "Band-limited Training and Inference for CNNs" (ICML 2019), sections 3.2-3.3.

Floor of a forward pass: see `cost.conv_cost`.
"""

from __future__ import annotations

from torch import Tensor

from spectralkernels.checks import as_integer, as_integers
from spectralkernels.convolution.baselines import ideal, reference
from spectralkernels.convolution.calls import call
from spectralkernels.convolution.cases import case_cost, case_inputs, observed
from spectralkernels.convolution.choice import auto, contenders
from spectralkernels.convolution.dft_gemm import freeze_weight
from spectralkernels.convolution.geometry import (
    GridChoice,
    Padding,
    WeightSpectrum,
    check_frozen_weight,
    conv_band,
)
from spectralkernels.convolution.implementations import TOLERANCE, checked, implementations, rivals
from spectralkernels.declare import Block, Case, Operation, Scalar
from spectralkernels.ops import strided_conv2d
from spectralkernels.spectra import Band


def band_limited_conv2d(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None = None,
    *,
    compression: float | None = None,
    padding: Padding | None = None,
    groups: int | None = None,
    grid: GridChoice | None = None,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    impl: str = "auto",
) -> Tensor:
    """Convolve maps with the high frequencies left out.

    x: Real [batch, channel, height, width], or one sample of it, any strides; float32, float64, or half
        (computed in float32). Within torch.autocast x, weight and bias are cast as by torch.nn.functional.conv2d.
    weight: Real [out_channel, channel / groups, kernel_height, kernel_width], odd or even, may be larger than the map;
        or a `WeightSpectrum` made by `weight_spectrum` for the same geometry (frozen weights).
    bias: Real [out_channel] or None.
    compression: fraction of half-spectrum coefficients to drop, 0 <= c < 1; 0 keeps everything. Here and below None is
        what the frozen weight was made for, or 0, "same", groups of 1 and "tight" for a tensor.
    padding: "same", "valid", zeros per side, or (vertical, horizontal).
    grid: FFT size N per axis: "tight" (H + K // 2 for "same"), "seed" (the paper's), "pow2", "fast", or sizes.
        With c > 0 another N is another operator.
    stride: of the output. dilation: of the kernel. One of them above 1, the operation is `strided_conv2d`, with
        implementations of its own; its band is that of stride 1 and of the kernel with zeros between its taps.
    impl: a name of `implementations("band_limited_conv2d")`, or "auto".
    Returns: Real [batch, out_channel, out_height, out_width], dtype of x, in channels_last where x or weight is.
        Differentiable in x, weight and bias.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    options = (compression, padding, groups, grid, stride, dilation)
    return call(OPERATION, strided_conv2d.OPERATION, x, weight, bias, "height, width", options, impl)


def weight_spectrum(
    weight: Tensor,
    size: tuple[int, ...],
    *,
    compression: float = 0.0,
    padding: Padding = "same",
    groups: int = 1,
    grid: GridChoice = "tight",
) -> WeightSpectrum:
    """Transform a frozen weight once, to be passed as `weight` to `band_limited_conv2d` (or `...1d`).

    weight: Real [out_channel, channel / groups, *kernel]. size: (height, width) or (length,) of the maps it will meet.
    padding, groups, grid, compression: as in the call that it is made for.
    Returns: a snapshot: it carries no gradient and does not follow later changes of the weight.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit.
    """
    size, groups = as_integers("size", size, (1, 2)), as_integer("groups", groups)
    check_frozen_weight(weight, len(size), groups)
    band = conv_band(size, tuple(weight.shape[2:]), compression=compression, padding=padding, grid=grid)
    return freeze_weight(weight, band, groups)


# --- declaration ----------------------------------------------------------------------------------------------------


def band_of(case: Case) -> Band:
    """The geometry of a case."""
    kernel = (case["kernel_size"],) * 2
    size = (case["height"], case["width"])
    return conv_band(size, kernel, compression=case["compression"], grid=case["grid"])


_CHECKED = checked(2)
_Axes = dict[str, tuple[Scalar, ...]]

_SHAPE: _Axes = {
    "batch": (8,),
    "in_channels": (64,),
    "out_channels": (64,),
    "height": (32,),
    "width": (32,),
    "kernel_size": (7,),
    "groups": (1,),
    "compression": (0.5,),
    "grid": ("tight",),
    "input": ("photo",),
}
_SMALL: _Axes = {**_SHAPE, "batch": (4,), "in_channels": (32,), "out_channels": (32,)}
_TINY: _Axes = {
    **_SHAPE,
    "batch": (2,),
    "in_channels": (4,),
    "out_channels": (6,),
    "height": (9,),
    "width": (7,),
    "input": ("white",),
}
_TINIER: _Axes = {"height": (5,), "width": (4,)}
# The better of the tight and the fast N is the rival.
_TORCH_FFT = ("torch_fft", "torch_fft_fast", "torch_fft_fast_band")
# So is the better layout of the library convolution; in bfloat16 it is a class of its own.
_LAYOUTS = ("", "_channels_last", "_converted", "_bf16")
_DIRECT, _UNCOMPRESSED = (tuple(f"{name}{layout}" for layout in _LAYOUTS) for name in ("direct", "direct_uncompressed"))
_OURS = ("dft_native", "dft_gemm", "dft_gemm_frozen")
_SPECTRAL = (*_OURS, "cufft_triton", *_DIRECT, *_TORCH_FFT, *_UNCOMPRESSED)
_CLAIMED = (*_OURS, *_TORCH_FFT, *_UNCOMPRESSED)
_CROSSED = ("dft_native", *_DIRECT, *_TORCH_FFT, *_UNCOMPRESSED)


def _depthwise(batch: int, channels: int, side: int, kernel_size: tuple[Scalar, ...]) -> _Axes:
    channel = (channels,)
    sizes: _Axes = {"batch": (batch,), "height": (side,), "width": (side,)}
    return {
        **_SHAPE,
        **sizes,
        "in_channels": channel,
        "out_channels": channel,
        "groups": channel,
        "kernel_size": kernel_size,
    }


def _dense(batch: int, in_channels: int, out_channels: int, side: int, kernel_size: int) -> _Axes:
    channels: _Axes = {"in_channels": (in_channels,), "out_channels": (out_channels,)}
    sizes: _Axes = {"batch": (batch,), "height": (side,), "width": (side,), "kernel_size": (kernel_size,)}
    return {**_SHAPE, **channels, **sizes, "input": ("pink",)}


_KERNELS = (1, 3, 5, 7, 11, 15, 21, 31)
_RATES = (0.0, 0.25, 0.5, 0.75, 0.95)

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (
        Block(
            {**_TINY, "kernel_size": (1, 3, 4, 8), "compression": (0.0, 0.5)},
            passes=("forward", "both"),
            implementations=_CHECKED,
        ),
        Block(
            {**_TINY, **_TINIER, "kernel_size": (3,), "grid": ("seed", "pow2", "fast")},
            implementations=_CHECKED,
        ),
        Block(
            {**_TINY, "out_channels": (4,), "groups": (2, 4), "kernel_size": (5,), "compression": (0.0, 0.5)},
            passes=("forward", "both"),
            implementations=_CHECKED,
        ),
        Block({**_TINY, "kernel_size": (3,), "compression": (0.0, 0.6)}, dtypes=("float64",), implementations=_CHECKED),
    ),
    "quick": (
        Block({**_SMALL, "kernel_size": (3, 7, 15, 31), "compression": (0.0, 0.5)}, implementations=_SPECTRAL),
        Block({**_SMALL, "kernel_size": (7,), "compression": (0.25, 0.8)}, implementations=_SPECTRAL),
    ),
    "study": (
        Block({**_SHAPE, "kernel_size": _KERNELS, "compression": _RATES}, implementations=_SPECTRAL),
        Block({**_SHAPE, "compression": (0.1, 0.35, 0.6, 0.85, 0.9)}, implementations=_SPECTRAL),
        Block({**_SHAPE, "compression": _RATES, "input": ("pink", "white")}, implementations=("dft_gemm",)),
        Block({**_SHAPE, "kernel_size": (3, 15), "grid": ("seed", "pow2", "fast")}, implementations=_SPECTRAL),
        Block(
            {**_SHAPE, "kernel_size": (3, 7, 15), "compression": (0.0, 0.5)},
            passes=("both",),
            implementations=_SPECTRAL,
        ),
        Block({**_SHAPE, "kernel_size": (3, 7), "compression": (0.0, 0.5)}),
        Block({**_depthwise(2, 128, 56, (3, 7, 15, 31)), "compression": (0.0, 0.5)}, implementations=_SPECTRAL),
        Block({**_depthwise(2, 256, 28, (29,)), "compression": (0.0, 0.5)}, implementations=_SPECTRAL),
    ),
    "claims": (
        Block({**_SHAPE, "kernel_size": (3, 7, 15, 31)}, implementations=_CLAIMED),
        Block({**_SHAPE, "batch": (2,), "height": (56,), "width": (56,)}, implementations=_CLAIMED),
        Block(_depthwise(2, 128, 56, (31,)), implementations=_CLAIMED),
        Block(_depthwise(2, 256, 28, (29,)), implementations=_CLAIMED),
        Block({**_SHAPE, "kernel_size": (3, 7, 15, 31)}, passes=("both",), implementations=_CLAIMED),
        # From where on it pays, by compression.
        Block({**_SHAPE, "kernel_size": (1, 3, 5, 7), "compression": _RATES}, implementations=_CROSSED),
    ),
    "gpu": (
        # The rows that targets are set for: timed first by `python3 -m spectralbench.gpu`.
        Block(
            {**_depthwise(8, 768, 32, (31,)), "compression": (0.5, 0.0), "input": ("pink",)},
            dtypes=("bfloat16",),
            passes=("forward", "both"),
        ),
        Block({**_depthwise(32, 256, 28, (29,)), "input": ("pink",)}, dtypes=("bfloat16",), passes=("forward", "both")),
        Block(_dense(32, 64, 64, 56, 7), dtypes=("float32", "bfloat16"), passes=("forward", "both")),
        Block(_dense(128, 256, 256, 8, 3), passes=("forward", "both")),
        Block(_dense(128, 512, 512, 4, 3), passes=("forward", "both")),
        Block(_dense(128, 64, 64, 32, 3), dtypes=("float32", "bfloat16"), passes=("forward", "both")),
        # The shapes at which others publish figures for kernels of their own, full band as theirs.
        *(
            Block(
                {**_depthwise(8, 768, side, (side - 1,)), "compression": (0.0,), "input": ("pink",)},
                dtypes=("bfloat16",),
                passes=("forward", "both"),
            )
            for side in (16, 64)
        ),
        Block({**_depthwise(64, 384, 32, (7, 31)), "compression": (0.0,), "input": ("pink",)}),
        # Rows that no spectral kernel can win: memory-bound already, or too few channels.
        Block({**_depthwise(32, 96, 56, (7,)), "input": ("pink",)}, dtypes=("float32", "bfloat16")),
        Block(_dense(128, 3, 64, 32, 3), dtypes=("float32", "bfloat16")),
        Block(
            {**_SHAPE, "batch": (128,), "kernel_size": (3, 7, 15, 31), "compression": _RATES},
            passes=("forward", "both"),
        ),
        Block(
            {**_SHAPE, "batch": (32,), "height": (56,), "width": (56,), "compression": (0.0, 0.5, 0.8)},
            passes=("forward", "both"),
        ),
        Block(_depthwise(8, 768, 32, (31,)), passes=("forward", "both")),
        Block(_depthwise(32, 256, 28, (29,)), passes=("forward", "both")),
        Block(_depthwise(32, 128, 56, (31,)), passes=("forward", "both")),
    ),
    "asv": (
        Block(
            {**_SMALL, "kernel_size": (3, 7, 15), "compression": (0.5, 0.8)},
            implementations=("dft_gemm", "dft_gemm_frozen", "dft_triton", "torch_fft", "direct_uncompressed"),
        ),
    ),
}

OPERATION = Operation(
    name="band_limited_conv2d",
    summary="2-D convolution without the high frequencies of map and kernel",
    version=1,
    source="Dziedzic et al., Band-limited Training and Inference for CNNs, ICML 2019",
    profiles=PROFILES,
    make_inputs=lambda case, device: case_inputs(case, band_of(case), device),
    reference=reference,
    ideal=ideal,
    cost=lambda case: case_cost(case, band_of(case)),
    fft_size=lambda case: band_of(case).n,
    tolerance=TOLERANCE,
    implementations=implementations(2),
    auto=auto,
    contenders=contenders,
    rivals=rivals(2),
    observe=lambda case, output: observed(band_of(case)),
    gradients=("x", "weight", "bias"),
)
