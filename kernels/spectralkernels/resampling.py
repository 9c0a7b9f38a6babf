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
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from spectralkernels.errors import RangeError, ShapeError
from spectralkernels.spectra import half

P = ParamSpec("P")
T = TypeVar("T")

# What the cosine at M / 2 is multiplied by: twice the weight of +M/2 and of -M/2.
_NYQUIST = {"average": 1.0, "code": math.sqrt(2.0), "alias": 2.0, "drop": 0.0, "raw": 1.0}
EVEN_RULES = tuple(_NYQUIST)


def _constant(make: Callable[P, T]) -> Callable[P, T]:
    """Decorator: made once for the same arguments, and a constant to torch.compile, which sees through a bare cache."""
    cached = lru_cache(maxsize=256)(make)

    @wraps(make)
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        return cached(*args, **kwargs)  # type: ignore[arg-type]

    constant: Callable[P, T] = torch.compiler.assume_constant_result(kept)
    return constant


def check_rule(rule: str) -> None:
    if rule not in EVEN_RULES:
        raise RangeError(f"even must be one of {', '.join(EVEN_RULES)}, got {rule!r}")


def check_target(size: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Raise unless 1 <= target <= size on both axes."""
    if len(target) != 2 or not all(1 <= m <= n for m, n in zip(target, size, strict=True)):
        raise ShapeError(
            f"the pooled size must be two sides between 1 and those of the map {size}, got {tuple(target)}"
        )


def check_share(share: float | Tensor | None) -> None:
    """A share of the band: a number in [0, 1], or a real tensor of one element."""
    if isinstance(share, Tensor):
        if share.numel() != 1 or not share.is_floating_point():
            raise RangeError(f"share must be one real number, got {share.dtype} {list(share.shape)}")
    elif share is not None and not 0.0 <= share <= 1.0:
        raise RangeError(f"share must lie in [0, 1], a share of the band, got {share}")


@_constant
def factors(n: int, m: int, rule: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(S [m, K], D [K, n], |k| [K]): from n samples to weighted frequencies, and from those to m samples.

    K is m, or one more for two that cancel; a frequency above 0 has a cosine and a sine. Built in float64.
    """
    whole = torch.arange((m + 1) // 2, dtype=torch.float64)
    rows = [
        (whole, torch.cos, torch.where(whole == 0.0, 1.0, 2.0)),
        (whole[1:], torch.sin, torch.full_like(whole[1:], 2.0)),
    ]
    if m % 2 == 0:
        # Nothing is lost, and nothing is there twice, where no frequency is cut off.
        rows.append(
            (torch.tensor([m / 2.0], dtype=torch.float64), torch.cos, torch.tensor([1.0 if m == n else _NYQUIST[rule]]))
        )
    frequency = torch.cat([k for k, _, _ in rows])
    analysis = torch.cat([weight.unsqueeze(1) * _wave(wave, k, n) / n for k, wave, weight in rows])
    synthesis = torch.cat([_wave(wave, k, m) for k, wave, _ in rows]).t()
    s, d = (matrix.to(dtype=dtype, device=device).contiguous() for matrix in (synthesis, analysis))
    return s, d, frequency.to(dtype=dtype, device=device)


@_constant
def matrix(n: int, m: int, rule: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A = S D: Real [m, n], one rounding."""
    s, d, _ = factors(n, m, rule, torch.float64, torch.device("cpu"))
    return (s @ d).to(dtype=dtype, device=device)


@_constant
def imaginary(n: int, m: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(s [m, 1], d [1, n]): the imaginary part s d of the rule "raw", of -m/2 without its mirror."""
    k = torch.tensor([m / 2.0], dtype=torch.float64)
    nothing = m % 2 == 1 or m == n
    d = torch.zeros(1, n, dtype=torch.float64) if nothing else _wave(torch.sin, k, n) / n
    s = _wave(torch.cos, k, m).t()
    made = tuple(part.to(dtype=dtype, device=device).contiguous() for part in (s, d))
    return made[0], made[1]


def low_pass_matrix(n: int, m: int, even: str, share: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A of one axis, under frequency dropout if there is a share."""
    if share is None:
        return matrix(n, m, even, dtype, device)
    s, d, frequency = factors(n, m, even, dtype, device)
    return (s * passes(frequency, m, share).to(dtype)) @ d


def passes(frequency: Any, m: int, share: Any) -> Any:
    """Whether a frequency survives dropout: share times the band's m // 2 + 1."""
    return frequency <= share * half(m)


def resample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows x columns^T: maps [batch, channel, n_h, n_w] -> [batch, channel, m_h, m_w]."""
    return torch.matmul(torch.matmul(rows, x), columns.t())


def _wave(wave: object, k: Tensor, n: int) -> Tensor:
    """cos or sin of 2 pi k j / n: [k, j], the product reduced in whole turns, so that the angle is exact."""
    halves = torch.outer((2 * k).round().long(), torch.arange(n)).remainder(2 * n)  # k may be a half
    return wave(halves.double() * (math.pi / n))  # type: ignore[operator]
