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
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.autocast import as_written
from spectralkernels.checks import REAL_DTYPES, check_dims, check_dtype
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Scalar, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import RangeError
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.resampling import (
    check_rule,
    check_share,
    check_target,
    imaginary,
    low_pass_matrix,
    passes,
    resample,
)
from spectralkernels.spectra import half


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

    x: Real [batch, channel, height, width]; half types are computed in float32.
    size: (height, width) of the answer; or stride: one number >= 1 or (vertical, horizontal), real, of which
        floor(side / stride) remains. compat: as the authors of DiffStride round, vertical to even sizes, both >= 2.
    even: "average", "code", "alias", "drop" or "raw", what becomes of the frequency M / 2 of an even size M.
    share: frequency dropout: also drop |u| > share (M_h // 2 + 1) or |v| > share (M_w // 2 + 1); a number, or a tensor
        of one on the device of x (no synchronisation). See `masks.frequency_dropout`.
    legacy_scale: multiply by N_h N_w / (M_h M_w), as an unscaled FFT and a scaled inverse do in both public codes.
    Returns: Real [batch, channel, M_h, M_w], dtype of x. Differentiable in x, twice and more.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    check_dims("x", x, "[batch, channel, height, width]")
    check_dtype("x", x, REAL_DTYPES)
    check_rule(even)
    plane = (x.shape[2], x.shape[3])
    if (size is None) == (stride is None):
        raise RangeError(f"spectral_pool2d takes either size or stride, got size={size}, stride={stride}")
    target = tuple(size) if stride is None else pooled_size(plane, stride, compat=compat)  # type: ignore[arg-type]
    check_target(plane, target)
    check_share(share)
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
    return dispatch(OPERATION, impl, x.device.type, inputs)


def pooled_size(
    plane: tuple[int, int], stride: float | tuple[float, float], *, compat: bool = False
) -> tuple[int, int]:
    """What remains of a map at real strides >= 1: floor(side / stride), at least 1; compat: see `spectral_pool2d`."""
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    if len(strides) != 2 or not all(step >= 1.0 for step in strides):
        raise RangeError(f"stride must be one number >= 1 or two, (vertical, horizontal), got {stride}")
    height, width = (max(1, math.floor(side / step)) for side, step in zip(plane, strides, strict=True))
    if compat:
        return min(plane[0], max(2, height - height % 2)), min(plane[1], max(2, width))
    return height, width


# --- implementations ------------------------------------------------------------------------------------------------


def _dft_gemm(
    x: Tensor, size: tuple[int, int], even: str, share: Any, scale: float, pooling: str, weight: Any
) -> Tensor:
    dtype = compute_dtype(x.dtype)
    with as_written(x.device.type):
        maps = x.to(dtype)
        sides = tuple(zip(x.shape[2:], size, strict=True))
        rows, columns = (low_pass_matrix(n, m, even, share, dtype, x.device) for n, m in sides)
        y = resample(maps, rows if scale == 1.0 else rows * scale, columns)
        if even == "raw" and all(m % 2 == 0 and m < n for n, m in sides):
            (s_h, d_h), (s_w, d_w) = (imaginary(n, m, dtype, x.device) for n, m in sides)
            if share is not None:
                s_h, s_w = (s * passes(size[i] / 2, size[i], share) for i, s in enumerate((s_h, s_w)))
            y = y - scale * torch.matmul(torch.matmul(s_h, resample(maps, d_h, d_w)), s_w.t())
        return y.to(x.dtype)


def _torch_fft(
    x: Tensor, size: tuple[int, int], even: str, share: Any, scale: float, pooling: str, weight: Any
) -> Tensor:
    with as_written(x.device.type):
        spectrum = torch.fft.fft2(x.to(compute_dtype(x.dtype)), norm="forward")
        for axis, m in zip((-2, -1), size, strict=True):
            spectrum = crop(spectrum, axis, m, even)
        if share is not None:
            spectrum = spectrum * _band(size, share, x.device, whole=True)
        return (torch.fft.ifft2(spectrum, norm="forward").real * scale).to(x.dtype)


def _torch_rfft(
    x: Tensor, size: tuple[int, int], even: str, share: Any, scale: float, pooling: str, weight: Any
) -> Tensor:
    with as_written(x.device.type):
        spectrum = crop(torch.fft.rfft2(x.to(compute_dtype(x.dtype)), norm="forward"), -2, size[0], even)
        columns = half(size[1])
        if size[1] % 2 == 0 and size[1] < x.shape[3]:
            # The column of M / 2 stands for its mirror too: the inverse takes its Hermitian part.
            weights = torch.ones(columns, device=x.device, dtype=x.dtype if x.dtype == torch.float64 else torch.float32)
            weights[-1] = 2.0 * _MERGE[even]
            spectrum = spectrum[..., :columns] * weights
        spectrum = spectrum[..., :columns]
        if share is not None:
            spectrum = spectrum * _band(size, share, x.device, whole=False)
        return (torch.fft.irfft2(spectrum, s=size, norm="forward") * scale).to(x.dtype)


_MERGE = {"average": 0.5, "code": math.sqrt(0.5), "alias": 1.0, "drop": 0.0}


def crop(spectrum: Tensor, axis: int, m: int, even: str) -> Tensor:
    """The m lowest frequencies of a full axis, in FFT order, +m/2 and -m/2 merged by the rule."""
    n, k = spectrum.shape[axis], m // 2
    if m == n:
        return spectrum
    low = spectrum.narrow(axis, 0, (m + 1) // 2)
    if m % 2 == 1:
        return torch.cat([low, spectrum.narrow(axis, n - k, k)], dim=axis)
    positive, negative = spectrum.narrow(axis, k, 1), spectrum.narrow(axis, n - k, 1)
    middle = negative if even == "raw" else (positive + negative) * _MERGE[even]
    return torch.cat([low, middle, spectrum.narrow(axis, n - k + 1, k - 1)], dim=axis)


def _band(size: tuple[int, int], share: Any, device: torch.device, *, whole: bool) -> Tensor:
    rows, columns = (torch.fft.fftfreq(m, 1.0 / m, device=device).abs() for m in size)
    columns = columns if whole else columns[: half(size[1])]
    return passes(rows, size[0], share).unsqueeze(1) & passes(columns, size[1], share)


def _window(x: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    return x.shape[2] // size[0], x.shape[3] // size[1]


def _library(
    x: Tensor, size: tuple[int, int], even: str, share: Any, scale: float, pooling: str, weight: Any
) -> Tensor:
    window = _window(x, size)
    if pooling == "max":
        return F.max_pool2d(x, window)
    return F.avg_pool2d(x, window) if pooling == "mean" else F.conv2d(x, weight, stride=window)


def _spectral(pooling: str, **rest: Any) -> str | None:
    return None if pooling == "spectral" else f"{pooling} pooling has no spectrum"


def _spectral_rules(pooling: str, even: str, **rest: Any) -> str | None:
    if even == "raw":
        return "a half spectrum holds -M/2 and +M/2 once; the rule 'raw' keeps them apart"
    return _spectral(pooling)


def _spatial(pooling: str, **rest: Any) -> str | None:
    return "it is for pooling='max', 'mean' and 'strided'" if pooling == "spectral" else None


# --- declaration ----------------------------------------------------------------------------------------------------


def _size_of(case: Case) -> tuple[int, int]:
    return pooled_size((case["height"], case["width"]), case["stride"])


def _inputs(case: Case, device: str) -> dict[str, Any]:
    dtype, size, channels = getattr(torch, case.dtype), _size_of(case), case["channels"]
    x = feature_map(case["input"], (case["batch"], channels, case["height"], case["width"]), case.seed)
    x = x.to(device=device, dtype=dtype)
    weight = None
    if case["pooling"] == "strided":
        weight = he_kernel((channels, channels, *_window(x, size)), case.seed).to(device=device, dtype=dtype)
    pooling = {"pooling": case["pooling"], "weight": weight}
    return {"x": x, "size": size, "even": case["even"], "share": None, "scale": 1.0, **pooling}


def _reference(
    x: Tensor, size: tuple[int, int], even: str, share: Any, scale: float, pooling: str, weight: Any
) -> Tensor:
    """In float64: every frequency sent where it belongs, one by one; other poolings from their windows."""
    x = x.double()
    if pooling != "spectral":
        high, wide = _window(x, size)
        windows = x.unflatten(3, (size[1], wide)).unflatten(2, (size[0], high))  # [b, c, i, high, j, wide]
        if pooling == "strided":
            return torch.einsum("bcihjw,ochw->boij", windows, weight.double())
        return windows.amax((3, 5)) if pooling == "max" else windows.mean((3, 5))
    spectrum = torch.fft.fft2(x) / math.prod(x.shape[2:])
    rows, columns = (_sent(n, m, even, share).to(x.device) for n, m in zip(x.shape[2:], size, strict=True))
    pooled = torch.einsum("ku,bcuv,lv->bckl", rows, spectrum, columns)
    return torch.fft.ifft2(pooled).real * math.prod(size) * scale


def _sent(n: int, m: int, even: str, share: Any) -> Tensor:
    """Complex [m, n]: what of each of n frequencies arrives at each of m."""
    sent = torch.zeros(m, n, dtype=torch.complex128)
    cut = {"average": (0.5, 0.5), "code": (0.5**0.5,) * 2, "alias": (1.0, 1.0), "drop": (0.0, 0.0), "raw": (0.0, 1.0)}
    for k in range(-(m // 2), m // 2 + 1):
        weight = 1.0
        if 2 * abs(k) == m:
            weight = cut[even][k < 0] if m < n else 0.5
        if share is None or abs(k) <= float(share) * (m // 2 + 1):
            sent[k % m, k % n] += weight
    return sent


def _cost(case: Case) -> Cost:
    (high, wide), n = _size_of(case), (case["height"], case["width"])
    planes, itemsize = case["batch"] * case["channels"], getattr(torch, case.dtype).itemsize
    pixels = math.prod(n)
    flops = {
        "spectral": min(2 * high * pixels + 2 * high * wide * n[1], int(5 * pixels * math.log2(max(2, pixels)))),
        "strided": 2 * case["channels"] * pixels,
    }.get(case["pooling"], pixels)
    return Cost(itemsize * planes * pixels, itemsize * planes * high * wide, planes * flops)


def _observe(case: Case, output: Tensor) -> Mapping[str, float]:
    kept = math.prod(_size_of(case)) / (case["height"] * case["width"])
    return {"achieved_compression": 1.0 - kept, "kept_fraction": kept}


def _fits(case: Case) -> bool:
    """Windows of the other poolings tile the map, and they have no rule."""
    whole = case["stride"] == int(case["stride"])
    tiled = whole and case["height"] % case["stride"] == 0 and case["width"] % case["stride"] == 0
    return case["pooling"] == "spectral" or (tiled and case["even"] == "average")


_SHAPE: dict[str, tuple[Scalar, ...]] = {
    "batch": (8,),
    "channels": (64,),
    "height": (32,),
    "width": (32,),
    "stride": (2.0,),
    "pooling": ("spectral",),
    "even": ("average",),
    "input": ("pink",),
}
_TINY: dict[str, tuple[Scalar, ...]] = {**_SHAPE, "batch": (2,), "channels": (3,), "height": (9,), "width": (8,)}
_KINDS = ("spectral", "max", "mean", "strided")
_RULES = ("average", "code", "alias", "drop", "raw")

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (
        Block({**_TINY, "stride": (1.0, 1.5, 2.0), "even": _RULES}, passes=("forward", "both")),
        Block({**_TINY, "height": (8,), "pooling": _KINDS[1:]}, passes=("forward", "both")),
    ),
    "quick": (Block({**_SHAPE, "stride": (1.5, 2.0), "pooling": _KINDS}, where=_fits),),
    "study": (
        Block({**_SHAPE, "stride": (1.5, 2.0, 2.5, 4.0), "pooling": _KINDS}, passes=("forward", "both"), where=_fits),
        Block({**_SHAPE, "height": (56,), "width": (56,), "pooling": _KINDS}, passes=("forward", "both")),
        Block({**_SHAPE, "even": _RULES}),
    ),
    "gpu": (
        Block({**_SHAPE, "batch": (128,), "pooling": _KINDS}, passes=("forward", "both")),
        Block({**_SHAPE, "batch": (32,), "height": (56,), "width": (56,)}, passes=("forward", "both")),
    ),
    "asv": (Block({**_SHAPE, "stride": (1.5, 2.0)}, implementations=("dft_gemm", "torch_fft", "torch_rfft")),),
}

OPERATION = Operation(
    name="spectral_pool2d",
    summary="pooling that keeps the low frequencies, at real strides, beside max, mean and strided convolution",
    version=1,
    source="Rippel, Snoek and Adams, Spectral Representations for Convolutional Neural Networks, 2015",
    profiles=PROFILES,
    make_inputs=_inputs,
    reference=_reference,
    cost=_cost,
    fft_size=lambda case: (case["height"], case["width"]),
    tolerance=Tolerance(
        {"float32": 3e-6, "float64": 1e-13, "float16": 1e-3, "bfloat16": 8e-3},
        because="two sums over at most a few hundred samples in float32; half types are rounded once on the way out",
    ),
    implementations=(
        Implementation("dft_gemm", "kernel", _dft_gemm, "a pair of real matrices", supports=_spectral),
        Implementation("torch_fft", "baseline", _torch_fft, "fft2, crop, ifft2: the public codes", supports=_spectral),
        Implementation("torch_rfft", "baseline", _torch_rfft, "rfft2, crop, irfft2", supports=_spectral_rules),
        Implementation("library", "baseline", _library, "torch's pooling or convolution", supports=_spatial),
    ),
    auto=lambda pooling, **inputs: (
        Decision("dft_gemm", "two matrix products: the fastest on a CPU")
        if pooling == "spectral"
        else Decision("library", "it is no spectral pooling")
    ),
    observe=_observe,
    gradients=("x",),
)
