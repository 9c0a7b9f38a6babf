"""The ways to pool a map: a pair of matrices, the FFTs of the public codes, and torch's own poolings."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.autocast import as_written
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.resampling import imaginary, low_pass_matrix, passes, resample
from spectralkernels.resampling.fused import fused_resample, not_resampled
from spectralkernels.spectra import half


def dft_gemm(
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


def triton(
    x: Tensor,
    size: tuple[int, int],
    even: str,
    share: Any,
    scale: float,
    pooling: str,
    weight: Any,
    *,
    accuracy: str,
) -> Tensor:
    return fused_resample(x, size, even, share, scale=scale, accuracy=accuracy)


def torch_fft(
    x: Tensor, size: tuple[int, int], even: str, share: Any, scale: float, pooling: str, weight: Any
) -> Tensor:
    with as_written(x.device.type):
        spectrum = torch.fft.fft2(x.to(compute_dtype(x.dtype)), norm="forward")
        for axis, m in zip((-2, -1), size, strict=True):
            spectrum = crop(spectrum, axis, m, even)
        if share is not None:
            spectrum = spectrum * _band(size, share, x.device, whole=True)
        return (torch.fft.ifft2(spectrum, norm="forward").real * scale).to(x.dtype)


def torch_rfft(
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


def window_of(x: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    return x.shape[2] // size[0], x.shape[3] // size[1]


def library(x: Tensor, size: tuple[int, int], even: str, share: Any, scale: float, pooling: str, weight: Any) -> Tensor:
    window = window_of(x, size)
    if pooling == "max":
        return F.max_pool2d(x, window)
    return F.avg_pool2d(x, window) if pooling == "mean" else F.conv2d(x, weight, stride=window)


def spectral_only(pooling: str, **rest: Any) -> str | None:
    return None if pooling == "spectral" else f"{pooling} pooling has no spectrum"


def spectral_rules(pooling: str, even: str, **rest: Any) -> str | None:
    if even == "raw":
        return "a half spectrum holds -M/2 and +M/2 once; the rule 'raw' keeps them apart"
    return spectral_only(pooling)


def triton_rules(
    x: Tensor, size: tuple[int, int], pooling: str, even: str, *, accuracy: str, **rest: Any
) -> str | None:
    if even == "raw":
        return "a real matrix an axis cannot keep -M/2 and +M/2 apart, as the rule 'raw' does"
    return spectral_only(pooling) or not_resampled(x, size, accuracy)


def spatial_only(pooling: str, **rest: Any) -> str | None:
    return "it is for pooling='max', 'mean' and 'strided'" if pooling == "spectral" else None
