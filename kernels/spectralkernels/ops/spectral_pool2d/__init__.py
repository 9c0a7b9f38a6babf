"""Spectral pooling: keep the low frequencies of a map and come back on fewer pixels, beside the usual poolings.

    y = Re F^-1_M( crop_M( F_N(x) ) )       per channel; M_h x M_w of the lowest frequencies of N_h x N_w

with amplitudes kept: a constant map stays constant. Any smaller size will do, so that strides are real numbers. What
happens at the frequency M / 2 of an even size is a rule: see `resampling`. Frequency dropout, inside, costs nothing.
Sources: Rippel, Snoek and Adams 2015 (pooling, dropout); Riad et al. 2022, their code (sizes at a real stride).

Cases of other `pooling` are what a network would use instead: "max", "mean" and "strided" (a convolution of s x s taps
with stride s), each with a reference of its own. Floor: x in, y out, and the cheaper of two matrix products and two
FFTs; nothing is saved for the backward pass, because the map is linear.
"""

from __future__ import annotations

import math

from torch import Tensor

from spectralkernels.checks import REAL_DTYPES, as_flag, as_integers, check_dtype
from spectralkernels.convolution.fused.precision import UNSCALED, in_every_class
from spectralkernels.declare import Decision, Implementation, Operation, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import RangeError
from spectralkernels.layouts import as_given, batched
from spectralkernels.ops.spectral_pool2d.profiles import PROFILES, cost, make_inputs, observe, reference
from spectralkernels.ops.spectral_pool2d.routes import (
    dft_gemm,
    library,
    spatial_only,
    spectral_only,
    spectral_rules,
    torch_fft,
    torch_rfft,
    triton,
    triton_rules,
)
from spectralkernels.resampling import check_rule, check_share, check_target, pooled_size
from spectralkernels.resampling.fused import DEFAULT, best_resampling


def spectral_pool2d(
    x: Tensor,
    size: tuple[int, int] | None = None,
    *,
    stride: float | tuple[float, float] | None = None,
    even: str = "average",
    share: float | Tensor | None = None,
    legacy_scale: bool = False,
    compat: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Pool maps by cropping their spectrum.

    x: Real [batch, channel, height, width], or one sample of it; half types are computed in float32.
    size: (height, width) of the answer; or stride: one number >= 1 or (vertical, horizontal), real, of which
        floor(side / stride) remains. compat: as the authors of DiffStride round, vertical to even sizes, both >= 2.
    even: "average", "code", "alias", "drop" or "raw", what becomes of the frequency M / 2 of an even size M.
    share: frequency dropout: also drop |u| > share (M_h // 2 + 1) or |v| > share (M_w // 2 + 1); a number, or a tensor
        of one on the device of x (no synchronisation). See `masks.frequency_dropout`.
    legacy_scale: multiply by N_h N_w / (M_h M_w), as an unscaled FFT and a scaled inverse do in both public codes.
    Returns: Real [batch, channel, M_h, M_w], dtype and layout of x. Differentiable in x, twice and more.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    given, x = x, batched(x, "[batch, channel, height, width]")
    check_dtype("x", x, REAL_DTYPES)
    check_rule(even)
    plane = (x.shape[2], x.shape[3])
    if (size is None) == (stride is None):
        raise RangeError(f"spectral_pool2d takes either size or stride, got size={size}, stride={stride}")
    legacy_scale, compat = as_flag("legacy_scale", legacy_scale), as_flag("compat", compat)
    target = as_integers("size", size, (2,)) if stride is None else pooled_size(plane, stride, compat=compat)
    check_target(plane, target)
    check_share(share, x.device)
    scale = math.prod(plane) / math.prod(target) if legacy_scale else 1.0
    inputs = {
        "x": x,
        "size": target,
        "even": even,
        "share": share,
        "scale": scale,
        "pooling": "spectral",
        "weight": None,
    }
    return as_given(dispatch(OPERATION, impl, x.device.type, inputs), given, x)


# --- declaration ----------------------------------------------------------------------------------------------------

OPERATION = Operation(
    name="spectral_pool2d",
    summary="pooling that keeps the low frequencies, at real strides, beside max, mean and strided convolution",
    version=1,
    source="Rippel, Snoek and Adams, Spectral Representations for Convolutional Neural Networks, 2015",
    profiles=PROFILES,
    make_inputs=make_inputs,
    reference=reference,
    cost=cost,
    fft_size=lambda case: (case["height"], case["width"]),
    tolerance=Tolerance(
        {"float32": 3e-6, "float64": 1e-13, "float16": 1e-3, "bfloat16": 8e-3},
        because="two sums over at most a few hundred samples in float32; half types are rounded once on the way out",
    ),
    implementations=(
        Implementation("dft_gemm", "kernel", dft_gemm, "a pair of real matrices", supports=spectral_only),
        *in_every_class("triton", triton, triton_rules, "the same pair, one load of x and one store of y", UNSCALED),
        Implementation(
            "torch_fft", "baseline", torch_fft, "fft2, crop, ifft2: the public codes", supports=spectral_only
        ),
        Implementation("torch_rfft", "baseline", torch_rfft, "rfft2, crop, irfft2", supports=spectral_rules),
        Implementation("library", "baseline", library, "torch's pooling or convolution", supports=spatial_only),
    ),
    auto=lambda pooling, **inputs: (
        best_resampling(inputs["x"], triton_rules(pooling=pooling, accuracy=DEFAULT, **inputs))
        if pooling == "spectral"
        else Decision("library", "it is no spectral pooling")
    ),
    observe=observe,
    gradients=("x",),
)
