"""The kept spectrum that a fused kernel saves, read by torch's own operations: for derivatives of the backward pass.

A kernel saves real sums, from which each part of a mode follows by one addition at most; `kept_sums` says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from spectralkernels.constants import constant

Sums = Sequence[tuple[int, float]]
"""One part of a mode: where the reals lie among a plane's `kept_reals`, one or two, and their factors."""


class KeptSums(Protocol):
    """What the kernels of a form keep."""

    def kept_sums(self) -> list[tuple[Sums, Sums]]:
        """Of which kept reals the real and the imaginary part of each mode are made, modes in the order of `dft`."""
        ...


def of_quadrants(
    quadrants: Sequence[int], scale: float, *, opposite: bool, conjugate: bool = False
) -> tuple[Sums, Sums]:
    """(re, im) of the mode Z(v +- u) = (cc +- ss) + i (sc -+ cs) times `scale`, whose quadrants lie at those places."""
    cc, sc, cs, ss = quadrants
    sign, turned = -scale if opposite else scale, -1.0 if conjugate else 1.0
    return ((cc, scale), (ss, sign)), ((sc, turned * scale), (cs, -turned * sign))


def modes_of(kept: Tensor, form: KeptSums, dtype: torch.dtype) -> Tensor:
    """Reals [B, C, kept_reals] as a kernel saves them -> Z [F, 2, B C], not scaled."""
    at, factor = _sums(form, kept.device)
    parts = (kept.to(dtype)[..., at] * factor.to(dtype)).sum(-1)  # [B, C, F, 2]
    return parts.permute(2, 3, 0, 1).flatten(2)


def gradient_of_modes(gradient: Tensor, form: KeptSums, dtype: torch.dtype) -> Tensor:
    """The gradient dZ [F, 2, B C] that `modes_of` turned into this gradient of its reals [B, C, kept_reals].

    With A the matrix of `modes_of`, the gradient is A^T dZ. The rows of A are orthogonal: A A^T is diagonal.
    """
    _, factor = _sums(form, gradient.device)
    return modes_of(gradient, form, dtype) / factor.to(dtype).square().sum(-1).unsqueeze(-1)


@constant
def _sums(form: KeptSums, device: torch.device) -> tuple[Tensor, Tensor]:
    """(Int64, Float64) [F, 2, 2]: the places of `kept_sums` and their factors, a single one with a 0 beside it."""
    both = [[(*part, (0, 0.0))[:2] for part in mode] for mode in form.kept_sums()]
    places = torch.tensor([[[place for place, _ in part] for part in mode] for mode in both])
    factors = torch.tensor([[[factor for _, factor in part] for part in mode] for mode in both], dtype=torch.float64)
    return places.to(device), factors.to(device)
