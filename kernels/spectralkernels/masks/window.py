"""The soft window of learnable strides (DiffStride)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spectralkernels.checks import as_integer, as_number, check_tensor, kind
from spectralkernels.errors import DtypeError, RangeError, ShapeError
from spectralkernels.masks.geometry import Device, Grid, check_grid, frequencies

AT_AN_END = 2.0**-20
"""Share of N within which a frequency is at an end of the ramp: four times what float32 rounds."""


def soft_window(
    n: Grid, strides: Tensor | Sequence[float], smoothness: float = 4.0, *, device: Device = "cpu"
) -> Tensor:
    """The separable low-pass window of learnable strides: one inside, a ramp of width R, zero outside.

    m(u, v) = ramp(|u|, N_h, S_h) ramp(v, N_w, S_w),   ramp(f, N, S) = clamp((R + N / (2 S) - f) / R, 0, 1)
    d ramp / dS = -N / (2 R S^2) where 0 < ramp < 1, else 0, and so at both ends, f = N / (2 S) and R beyond

    A frequency within `AT_AN_END` N of an end is at it, so that strides at a bound, which put frequencies there, have
    one slope, and not either of two by rounding.

    n: each axis longer than R. smoothness: R > 0, in frequency indices.
    strides: (S_h, S_w), floats with 1 <= S < N, or Real [2] with a gradient. Before use S is moved into
        [N / (N - R), N / 2], where the ramp lies inside the spectrum; the gradient passes through that move, so that a
        stride outside can come back.
    Returns: the dtype and device of a tensor of strides, else Float32 [N_h, N_w // 2 + 1].
    It multiplies the product of the spectra once, that is the map's alone: masking the kernel too would square it.
    Source: Riad et al., "Learning Strides in Convolutional Neural Networks" (ICLR 2022), with the position |u| for
    every row and the same threshold N / (2 S) on both axes.
    """
    check_grid(n)
    smoothness = as_number("smoothness", smoothness)
    if not smoothness > 0.0:
        raise RangeError(f"smoothness must be above 0, got {smoothness}; masks.rectangular has a hard edge")
    if min(n) <= smoothness:
        raise RangeError(f"each axis of n={tuple(n)} must be longer than smoothness={smoothness}; lower the smoothness")
    if not isinstance(strides, Tensor):
        if not isinstance(strides, (tuple, list)):
            raise DtypeError(f"strides must be two numbers or a tensor of two, got {kind(strides)}")
        strides = [as_number("each of strides", s) for s in strides]
        if len(strides) != 2 or not all(1.0 <= s < size for s, size in zip(strides, n, strict=True)):
            raise RangeError(f"strides must be two numbers with 1 <= S < N for n={tuple(n)}, got {tuple(strides)}")
        strides = torch.tensor(strides, dtype=torch.float32, device=device)
    check_tensor("strides", strides)
    if strides.shape != (2,) or not strides.is_floating_point():
        raise ShapeError(
            f"strides must be Real [2], vertical and horizontal, got {strides.dtype} {list(strides.shape)}"
        )
    rows, columns = frequencies(n, strides.device)
    return ramp(rows, n[0], strides[0], smoothness).unsqueeze(1) * ramp(columns, n[1], strides[1], smoothness)


def soft_window_side(n: int, stride: float, smoothness: float = 4.0) -> int:
    """The even side of the crop that holds a soft window: N / S + 2 R rounded up to even, at most N."""
    n, stride, smoothness = as_integer("n", n), as_number("stride", stride), as_number("smoothness", smoothness)
    if n < 1 or not 1.0 <= stride < math.inf or not 0.0 <= smoothness < math.inf:
        raise RangeError(
            f"n must be at least 1, stride at least 1 and smoothness at least 0, got {n}, {stride} and {smoothness}"
        )
    return min(n, 2 * math.ceil((n / stride + 2.0 * smoothness) / 2.0))


def held_stride(n: int, stride: float, smoothness: float) -> float:
    """The stride within [N / (N - R), N / 2], where the ramp lies inside the spectrum."""
    least, most = stride_bounds(n, smoothness)
    return min(max(stride, least), most)


def stride_bounds(n: int, smoothness: float) -> tuple[float, float]:
    """(N / (N - R), N / 2), or the first twice where it is the greater."""
    least = n / (n - smoothness)
    return least, max(n / 2.0, least)


def ramp(frequency: Tensor, n: int, stride: Tensor, smoothness: float) -> Tensor:
    """One axis of the soft window at frequencies |f|, for a stride that may lie outside (see `soft_window`)."""
    beyond, _ = _beyond(frequency, n, stride, smoothness)
    cut = beyond.detach().clamp(0.0, smoothness)
    return torch.where(_sloped(beyond, n, smoothness), beyond, cut) / smoothness


def ramp_slope(frequency: Tensor, n: int, stride: Tensor, smoothness: float) -> Tensor:
    """d ramp / dS, differentiable in turn."""
    beyond, held = _beyond(frequency, n, stride, smoothness)
    slope = -n / (2.0 * smoothness * held.square())
    return torch.where(_sloped(beyond, n, smoothness), slope, torch.zeros_like(held))


def _sloped(beyond: Tensor, n: int, smoothness: float) -> Tensor:
    """Whether frequencies are in the ramp, and at neither end of it."""
    return (beyond > AT_AN_END * n) & (beyond < smoothness - AT_AN_END * n)


def _beyond(frequency: Tensor, n: int, stride: Tensor, smoothness: float) -> tuple[Tensor, Tensor]:
    """(R + N / (2 S) - f, S held in its range), with the gradient of the given stride."""
    given = stride.detach()
    held = given.clamp(*stride_bounds(n, smoothness)) + (stride - given)  # a sum that rounds nothing
    return smoothness + n / (2.0 * held) - frequency.to(stride.dtype), held
