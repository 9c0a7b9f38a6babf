"""Band-limited 1-D convolution of series: `band_limited_conv2d` on one axis, with the paper's own rule for the band.

    y = crop( F^-1( M_c . sum_channels X . conj(W) ) ) + b,     X = F(x), W = F(w) on a circle of N samples

M_c keeps the frequencies v < k of `spectra.kept_1d`. At c = 0 it is `torch.nn.functional.conv1d`.
Source: Dziedzic et al., "Band-limited Training and Inference for CNNs" (ICML 2019), section 3.2, and their code.
Floor of a forward pass: see `cost.conv_cost`.
"""

from __future__ import annotations

from torch import Tensor

from spectralkernels.convolution.baselines import ideal, reference
from spectralkernels.convolution.calls import call
from spectralkernels.convolution.cases import case_cost, case_inputs, observed
from spectralkernels.convolution.choice import auto, contenders
from spectralkernels.convolution.geometry import GridChoice, Padding, WeightSpectrum, conv_band
from spectralkernels.convolution.implementations import TOLERANCE, checked, implementations, rivals
from spectralkernels.declare import Block, Case, Operation, Scalar
from spectralkernels.ops import strided_conv1d
from spectralkernels.spectra import Band


def band_limited_conv1d(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None = None,
    *,
    compression: float | None = None,
    padding: Padding | None = None,
    groups: int | None = None,
    grid: GridChoice | None = None,
    stride: int = 1,
    dilation: int = 1,
    impl: str = "auto",
) -> Tensor:
    """Convolve series with the high frequencies left out.

    x: Real [batch, channel, length], or one sample of it, any strides; float32, float64, or half
        (computed in float32). Within torch.autocast x, weight and bias are cast as by torch.nn.functional.conv1d.
    weight: Real [out_channel, channel / groups, kernel], or a `WeightSpectrum` made by `weight_spectrum`.
    bias: Real [out_channel] or None.
    compression: fraction of the N // 2 + 1 coefficients to drop, 0 <= c < 1; above 0 at least one is dropped. None is
        0, or that of a frozen weight; so are None of padding, groups and grid.
    padding, groups, grid, stride, dilation, impl: as in `band_limited_conv2d`, one axis instead of two.
        padding="causal" lays all of it before the series. At compression 0 no output then sees what comes after it; a
        band limit rings to both sides.
        grid="seed_1d" is what the paper's authors take for series, N = L + 2 padding + 2 max(K - 1, G - 1) with G
        samples of output; "seed", the paper's formula, has the maximum once. Their code rounds N up to a power of two
        on request: pass that N.
    Returns: Real [batch, out_channel, out_length], dtype of x. Differentiable in x, weight and bias.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    options = (compression, padding, groups, grid, stride, dilation)
    return call(OPERATION, strided_conv1d.OPERATION, x, weight, bias, "length", options, impl)


# --- declaration ----------------------------------------------------------------------------------------------------


def band_of(case: Case) -> Band:
    """The geometry of a case."""
    return conv_band((case["length"],), (case["kernel_size"],), compression=case["compression"], grid=case["grid"])


_CHECKED = checked(1)
_Axes = dict[str, tuple[Scalar, ...]]

# The fully convolutional network of the paper on 50words: 270 values, 128 -> 256 channels, kernels of 8, 5, 3.
_SERIES: _Axes = {
    "batch": (16,),
    "in_channels": (128,),
    "out_channels": (256,),
    "length": (270,),
    "kernel_size": (5,),
    "groups": (1,),
    "compression": (0.5,),
    "grid": ("tight",),
    "input": ("pink",),
}
_TINY: _Axes = {
    **_SERIES,
    "batch": (2,),
    "in_channels": (4,),
    "out_channels": (6,),
    "length": (13,),
    "input": ("white",),
}
_LONG: _Axes = {**_SERIES, "in_channels": (128,), "out_channels": (128,), "groups": (128,), "length": (1024,)}
_WIDE: _Axes = {**_LONG, "batch": (8,), "in_channels": (768,), "out_channels": (768,), "groups": (768,)}
_PUBLISHED = (256, 1024, 4096, 8192)
_FUSED = ("fused_series", "fused_series_bf16", "dft_triton_bf16")
# The better of the tight and the fast N is the rival.
_TORCH_FFT = ("torch_fft", "torch_fft_fast", "torch_fft_fast_band")
_SPECTRAL = (
    "dft_native",
    "dft_gemm",
    "dft_gemm_frozen",
    "cufft_triton",
    "direct",
    *_TORCH_FFT,
    "direct_uncompressed",
)

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (
        Block(
            {**_TINY, "kernel_size": (1, 4, 5), "compression": (0.0, 0.5)},
            passes=("forward", "both"),
            implementations=_CHECKED,
        ),
        Block({**_TINY, "grid": ("seed", "pow2", "fast")}, implementations=_CHECKED),
        Block({**_TINY, "out_channels": (8,), "groups": (2, 4), "kernel_size": (3,)}, implementations=_CHECKED),
        Block(
            {**_TINY, "out_channels": (4,), "groups": (4,), "length": (13, 48), "grid": ("tight", "pow2")},
            passes=("forward", "both"),
            implementations=_CHECKED,
        ),
    ),
    "quick": (Block({**_SERIES, "kernel_size": (3, 8), "compression": (0.0, 0.5)}, implementations=_SPECTRAL),),
    "study": (
        Block({**_SERIES, "kernel_size": (3, 5, 8, 31), "compression": (0.0, 0.5, 0.8)}, implementations=_SPECTRAL),
        Block({**_LONG, "kernel_size": (31, 127), "compression": (0.0, 0.5)}, implementations=_SPECTRAL),
        Block({**_SERIES, "compression": (0.5,)}, passes=("both",), implementations=_SPECTRAL),
    ),
    "gpu": (
        Block({**_SERIES, "batch": (64,), "kernel_size": (3, 5, 8), "compression": (0.0, 0.5, 0.8)}),
        Block(
            {**_WIDE, "length": (1024, 4096), "kernel_size": (31,), "grid": ("fast",)},
            dtypes=("float32", "bfloat16"),
            passes=("forward", "both"),
        ),
        # Full band and kernels as long as the series, where others publish figures of their own; a library convolution
        # of 8,191 taps takes seconds.
        Block(
            {
                **_WIDE,
                "length": _PUBLISHED,
                "kernel_size": tuple(n - 1 for n in _PUBLISHED),
                "compression": (0.0,),
                "grid": ("fast",),
            },
            dtypes=("bfloat16",),
            passes=("forward", "both"),
            implementations=(*_FUSED, *_TORCH_FFT),
            where=lambda case: int(case["kernel_size"]) == int(case["length"]) - 1,
        ),
        # Multiples of 64: rows of the two-level transform fill tiles and are aligned.
        Block({**_WIDE, "length": (1024,), "kernel_size": (31,), "grid": (1088,)}, dtypes=("bfloat16",)),
        Block({**_WIDE, "length": (4096,), "kernel_size": (31,), "grid": (4160,)}, dtypes=("bfloat16",)),
    ),
    "asv": (
        Block(
            {**_SERIES, "kernel_size": (3, 8), "compression": (0.5, 0.8)},
            implementations=("dft_gemm", "dft_gemm_frozen", "dft_triton", "torch_fft", "direct_uncompressed"),
        ),
    ),
}

OPERATION = Operation(
    name="band_limited_conv1d",
    summary="1-D convolution without the high frequencies of series and kernel",
    version=1,
    source="Dziedzic et al., Band-limited Training and Inference for CNNs, ICML 2019",
    profiles=PROFILES,
    make_inputs=lambda case, device: case_inputs(case, band_of(case), device),
    reference=reference,
    ideal=ideal,
    cost=lambda case: case_cost(case, band_of(case)),
    fft_size=lambda case: band_of(case).n,
    tolerance=TOLERANCE,
    implementations=implementations(1),
    auto=auto,
    contenders=contenders,
    rivals=rivals(1),
    observe=lambda case, output: observed(band_of(case)),
    gradients=("x", "weight", "bias"),
)
