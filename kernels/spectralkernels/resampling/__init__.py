"""Low-pass resampling of maps as a pair of small real matrices: crop the spectrum, weigh it, come back on fewer pixels.

"FFT, keep the low frequencies, inverse FFT on M samples" is a linear map of each axis, and real where the frequencies
+k and -k are treated alike:

    A[j, h] = 1 / N sum over |k| < M / 2 of a_k cos(2 pi k (j / M - h / N)),      y = A_h x A_w^T

so that two matrix products replace two FFTs of complex maps, a crop and two more FFTs. A constant map stays constant.
A = S diag(a) D keeps the weights a_k apart where they change from call to call, or have a gradient.

An even M has a frequency M / 2 of its own, which the map holds twice, as +M/2 and -M/2. What becomes of the two is a
rule (T16): "average" (half their sum, a quarter where both axes meet), "code" (over the root of 2: the authors' code),
"alias" (their sum, as subsampling has it), "drop" (zero) or "raw" (-M/2 alone, after which the map is complex and its
real part is taken).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spectralkernels.checks import as_number, check_choice, check_tensor
from spectralkernels.constants import constant
from spectralkernels.errors import DtypeError, RangeError, ShapeError
from spectralkernels.masks.window import ramp
from spectralkernels.spectra import half

# What the cosine at M / 2 is multiplied by: twice the weight of +M/2 and of -M/2.
_NYQUIST = {"average": 1.0, "code": math.sqrt(2.0), "alias": 2.0, "drop": 0.0, "raw": 1.0}
EVEN_RULES = tuple(_NYQUIST)


def check_rule(rule: str) -> None:
    check_choice("even", rule, EVEN_RULES)


def check_target(size: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Raise unless 1 <= target <= size on both axes."""
    if len(target) != 2 or not all(1 <= m <= n for m, n in zip(target, size, strict=True)):
        raise ShapeError(
            f"the pooled size must be two sides between 1 and those of the map {size}, got {tuple(target)}"
        )


def pooled_size(
    plane: tuple[int, int], stride: float | tuple[float, float], *, compat: bool = False
) -> tuple[int, int]:
    """What remains of a map at real strides >= 1: floor(side / stride), at least 1; compat: see `spectral_pool2d`."""
    given = stride if isinstance(stride, (tuple, list)) else (stride, stride)
    strides = tuple(as_number("stride", step) for step in given)
    if len(strides) != 2 or not all(step >= 1.0 for step in strides):
        raise RangeError(f"stride must be one number >= 1 or two, (vertical, horizontal), got {stride}")
    height, width = (max(1, math.floor(side / step)) for side, step in zip(plane, strides, strict=True))
    if compat:
        return min(plane[0], max(2, height - height % 2)), min(plane[1], max(2, width))
    return height, width


def check_share(share: float | Tensor | None, device: torch.device) -> None:
    """A share of the band: a number in [0, 1], or a real tensor of one element."""
    if isinstance(share, Tensor):
        check_tensor("share", share)
        if share.device != device:
            raise DtypeError(f"share must be on the device of x ({device}), got {share.device}; move one of them")
        if share.numel() != 1 or not share.is_floating_point():
            raise RangeError(f"share must be one real number, got {share.dtype} {list(share.shape)}")
    elif share is not None and not 0.0 <= as_number("share", share) <= 1.0:
        raise RangeError(f"share must lie in [0, 1], a share of the band, got {share}")


@constant
def factors(n: int, m: int, rule: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(S [m, m], D [m, n], |k| [m]): from n samples to m weighted waves, and from those to m samples.

    A frequency above 0 has a cosine and a sine, and M / 2 its cosine alone. Built in float64, rounded once.
    """
    k = torch.arange((m + 1) // 2, device=device)
    cosines = k if m % 2 else torch.arange(m // 2 + 1, device=device)
    frequency = torch.cat([cosines, k[1:]])
    weight = torch.where(frequency == 0, 1.0, 2.0).double()
    if m % 2 == 0:
        # Where no frequency is cut off, nothing is lost and nothing is there twice.
        weight = torch.where(2 * frequency == m, 1.0 if m == n else _NYQUIST[rule], weight)
    waves = {side: torch.cat([_angle(cosines, side).cos(), _angle(k[1:], side).sin()]) for side in (n, m)}
    analysis, synthesis = waves[n] * (weight / n).unsqueeze(1), waves[m].t()
    return synthesis.to(dtype).contiguous(), analysis.to(dtype), frequency.to(dtype)


@constant
def matrix(n: int, m: int, rule: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A = S D: Real [m, n], rounded once."""
    s, d, _ = factors(n, m, rule, torch.float64, device)
    return (s @ d).to(dtype)


@constant
def imaginary(n: int, m: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(s [m, 1], d [1, n]): the imaginary part s d of the rule "raw" at an even m < n, of -m/2 without its mirror."""
    k = torch.full((1,), m // 2, device=device)
    return _angle(k, m).cos().t().to(dtype).contiguous(), (_angle(k, n).sin() / n).to(dtype)


def low_pass_matrix(n: int, m: int, even: str, share: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A of one axis, under frequency dropout if there is a share."""
    if share is None:
        return matrix(n, m, even, dtype, device)
    s, d, frequency = factors(n, m, even, dtype, device)
    return (s * passes(frequency, m, share).to(dtype)) @ d


def windowed_matrix(
    n: int,
    m: int,
    even: str,
    share: Any,
    window: Tensor | None,
    axis: int,
    smoothness: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """A of one axis under what is asked of it: a share (a number, or in `window`), or the ramp of window[axis]."""
    if window is None or smoothness == 0.0:
        return low_pass_matrix(n, m, even, share if window is None else window, dtype, device)
    s, d, frequency = factors(n, m, even, dtype, device)
    return (s * ramp(frequency, n, window[axis].to(dtype), smoothness)) @ d


def passes(frequency: Any, m: int, share: Any) -> Any:
    """Whether a frequency survives dropout: share times the band's m // 2 + 1."""
    return frequency <= share * half(m)


def resample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows x columns^T: maps [batch, channel, n_h, n_w] -> [batch, channel, m_h, m_w]."""
    return torch.matmul(torch.matmul(rows, x), columns.t())


def _angle(k: Tensor, n: int) -> Tensor:
    """2 pi k j / n: Float64 [k, n]; the product is reduced in whole turns, as integers, so that the angle is exact."""
    turns = torch.outer(k, torch.arange(n, device=k.device)).remainder(n)
    return turns.double() * (2.0 * math.pi / n)
