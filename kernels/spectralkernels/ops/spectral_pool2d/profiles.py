"""What spectral pooling is measured on and checked against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spectralkernels.declare import Block, Case, Cost, Scalar
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.ops.spectral_pool2d.routes import window_of
from spectralkernels.resampling import pooled_size


def _size_of(case: Case) -> tuple[int, int]:
    return pooled_size((case["height"], case["width"]), case["stride"])


def make_inputs(case: Case, device: str) -> dict[str, Any]:
    dtype, size, channels = getattr(torch, case.dtype), _size_of(case), case["channels"]
    x = feature_map(case["input"], (case["batch"], channels, case["height"], case["width"]), case.seed)
    x = x.to(device=device, dtype=dtype)
    weight = None
    if case["pooling"] == "strided":
        weight = he_kernel((channels, channels, *window_of(x, size)), case.seed).to(device=device, dtype=dtype)
    pooling = {"pooling": case["pooling"], "weight": weight}
    return {"x": x, "size": size, "even": case["even"], "share": None, "scale": 1.0, **pooling}


def reference(
    x: Tensor, size: tuple[int, int], even: str, share: Any, scale: float, pooling: str, weight: Any
) -> Tensor:
    """In float64: every frequency sent where it belongs, one by one; other poolings from their windows."""
    x = x.double()
    if pooling != "spectral":
        high, wide = window_of(x, size)
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


def cost(case: Case) -> Cost:
    (high, wide), n = _size_of(case), (case["height"], case["width"])
    planes, itemsize = case["batch"] * case["channels"], getattr(torch, case.dtype).itemsize
    pixels = math.prod(n)
    flops = {
        "spectral": min(2 * high * pixels + 2 * high * wide * n[1], int(5 * pixels * math.log2(max(2, pixels)))),
        "strided": 2 * case["channels"] * pixels,
    }.get(case["pooling"], pixels)
    return Cost(itemsize * planes * pixels, itemsize * planes * high * wide, planes * flops)


def observe(case: Case, output: Tensor) -> Mapping[str, float]:
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
    "asv": (
        Block({**_SHAPE, "stride": (1.5, 2.0)}, implementations=("dft_gemm", "triton", "torch_fft", "torch_rfft")),
    ),
}
