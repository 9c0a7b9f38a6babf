"""Frequency dropout: a low-pass of maps at a cut-off that is drawn anew for every batch.

    y = Re F^-1( m . F(x) ),     m(u, v) = 1 where |u| <= t (1 + H // 2) and |v| <= t (1 + W // 2), else 0

one t for all maps of a batch, while training. Source: Rippel, Snoek and Adams 2015, section 5.1, and the public code of
its reproduction (ECBM 4040). `spectral_pool2d(share=t)` does it on the way of a pooling, for nothing.

Floor: x in, y out, and the cheaper of two matrix products of the kept frequencies and two FFTs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spectralkernels.autocast import as_written
from spectralkernels.checks import REAL_DTYPES, check_dtype
from spectralkernels.convolution.fused.precision import UNSCALED, in_every_class
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.declare import Block, Case, Cost, Implementation, Operation, Scalar, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import DtypeError
from spectralkernels.inputs import feature_map
from spectralkernels.layouts import as_given, batched
from spectralkernels.resampling import check_share, low_pass_matrix, passes, resample
from spectralkernels.resampling.fused import DEFAULT, best_resampling, fused_resample, not_resampled
from spectralkernels.spectra import half


def frequency_dropout2d(x: Tensor, share: float | Tensor, *, impl: str = "auto") -> Tensor:
    """Drop the frequencies of maps above a share of the band.

    x: Real [batch, channel, height, width], or one sample of it; half types are computed in float32.
    share: t, a number in [0, 1], or a real tensor of one on the device of x, which is not read on the host. 0 keeps
        the mean alone, 1 everything. Draw it from U(c, 1); c by `masks.dropout_floor`.
    Returns: Real, shape, dtype and layout of x; kept coefficients are not scaled. Differentiable in x, twice and more.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    given, x = x, batched(x, "[batch, channel, height, width]")
    check_dtype("x", x, REAL_DTYPES)
    if share is None:
        raise DtypeError("share must be a number, got None; without a dropout pass the maps as they are")
    check_share(share, x.device)
    return as_given(dispatch(OPERATION, impl, x.device.type, {"x": x, "share": share}), given, x)


def _dft_gemm(x: Tensor, share: float | Tensor) -> Tensor:
    dtype = compute_dtype(x.dtype)
    with as_written(x.device.type):
        rows, columns = (low_pass_matrix(n, n, "average", share, dtype, x.device) for n in x.shape[2:])
        return resample(x.to(dtype), rows, columns).to(x.dtype)


def _triton(x: Tensor, share: float | Tensor, *, accuracy: str) -> Tensor:
    return fused_resample(x, (x.shape[2], x.shape[3]), share=share, accuracy=accuracy)


def _triton_rules(x: Tensor, share: float | Tensor, *, accuracy: str) -> str | None:
    return not_resampled(x, (x.shape[2], x.shape[3]), accuracy)


def _torch_rfft(x: Tensor, share: float | Tensor) -> Tensor:
    height, width = x.shape[2:]
    rows = torch.fft.fftfreq(height, 1.0 / height, device=x.device).abs()
    columns = torch.arange(half(width), device=x.device)
    band = passes(rows, height, share).unsqueeze(1) & passes(columns, width, share)
    with as_written(x.device.type):
        spectrum = torch.fft.rfft2(x.to(compute_dtype(x.dtype)))
        return torch.fft.irfft2(spectrum * band, s=(height, width)).to(x.dtype)


# --- declaration ----------------------------------------------------------------------------------------------------


def _inputs(case: Case, device: str) -> dict[str, Any]:
    x = feature_map(case["input"], (case["batch"], case["channels"], case["height"], case["width"]), case.seed)
    return {"x": x.to(device=device, dtype=getattr(torch, case.dtype)), "share": case["share"]}


def _reference(x: Tensor, share: float | Tensor) -> Tensor:
    """In float64: the full complex FFT, every frequency of which is asked."""
    cut = [[min(k, n - k) <= float(share) * (1 + n // 2) for k in range(n)] for n in x.shape[2:]]
    rows, columns = (torch.tensor(axis, device=x.device) for axis in cut)
    return torch.fft.ifft2(torch.fft.fft2(x.double()) * (rows.unsqueeze(1) & columns)).real


def _kept(case: Case) -> tuple[int, int]:
    """Frequencies kept of each full axis."""
    sides = []
    for n in (case["height"], case["width"]):
        sides.append(min(n, 2 * math.floor(case["share"] * half(n)) + 1))
    return sides[0], sides[1]


def _cost(case: Case) -> Cost:
    height, width, kept = case["height"], case["width"], _kept(case)
    planes, itemsize = case["batch"] * case["channels"], getattr(torch, case.dtype).itemsize
    pixels = height * width
    products = 4 * kept[1] * pixels + 4 * kept[0] * kept[1] * height
    flops = planes * min(products, int(5 * pixels * math.log2(max(2, pixels))))
    return Cost(itemsize * planes * pixels, itemsize * planes * pixels, flops)


def _observe(case: Case, output: Tensor) -> Mapping[str, float]:
    kept = math.prod(_kept(case)) / (case["height"] * case["width"])
    return {"achieved_compression": 1.0 - kept, "kept_fraction": kept}


_SHAPE: dict[str, tuple[Scalar, ...]] = {
    "batch": (8,),
    "channels": (64,),
    "height": (32,),
    "width": (32,),
    "share": (0.3, 0.6),
    "input": ("pink",),
}
_TINY = {**_SHAPE, "batch": (2,), "channels": (3,), "height": (9, 1), "width": (8,), "share": (0.25, 0.45, 1.0)}

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (Block(_TINY, passes=("forward", "both")),),
    "quick": (Block(_SHAPE),),
    "study": (Block({**_SHAPE, "share": (0.15, 0.3, 0.45, 0.6, 0.8, 1.0)}, passes=("forward", "both")),),
    "gpu": (Block({**_SHAPE, "batch": (128,)}, passes=("forward", "both")),),
    "asv": (Block({**_SHAPE, "share": (0.3,)}),),
}

OPERATION = Operation(
    name="frequency_dropout2d",
    summary="a low-pass of maps at a random cut-off",
    version=1,
    source="Rippel, Snoek and Adams, Spectral Representations for Convolutional Neural Networks, 2015, section 5.1",
    profiles=PROFILES,
    make_inputs=_inputs,
    reference=_reference,
    ideal=lambda x, share: x.double(),
    cost=_cost,
    fft_size=lambda case: (case["height"], case["width"]),
    tolerance=Tolerance(
        {"float32": 3e-6, "float64": 1e-13, "float16": 1e-3, "bfloat16": 8e-3},
        because="two sums over at most a few hundred samples in float32; half types are rounded once on the way out",
    ),
    implementations=(
        Implementation("dft_gemm", "kernel", _dft_gemm, "a pair of real matrices, made for every cut-off"),
        *in_every_class("triton", _triton, _triton_rules, "matrices and both products in one Triton launch", UNSCALED),
        Implementation("torch_rfft", "baseline", _torch_rfft, "rfft2, mask, irfft2"),
    ),
    auto=lambda **inputs: best_resampling(inputs["x"], _triton_rules(accuracy=DEFAULT, **inputs)),
    observe=_observe,
    gradients=("x",),
)
