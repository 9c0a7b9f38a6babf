"""Thresholds that lie between magnitudes, so that rounding decides nothing about what is kept."""

from __future__ import annotations

import torch
from torch import Tensor


def clear_of(y: Tensor, near: float) -> float:
    """A beta in the widest gap between magnitudes within a factor of 1.5 of `near`."""
    sizes = y.detach().abs()
    inside = sizes[(sizes > near / 1.5) & (sizes < near * 1.5)].sort().values
    return middle_of_widest_gap(torch.cat([inside.new_tensor([near / 1.5]), inside, inside.new_tensor([near * 1.5])]))


def clear_of_quantile(y: Tensor, quantile: float) -> float:
    """A beta in the widest gap between magnitudes near a quantile of them."""
    magnitudes = y.abs().double().flatten().sort().values
    if len(magnitudes) == 1:
        return 0.5 * float(magnitudes[0])
    middle = int(quantile * (len(magnitudes) - 1))
    return middle_of_widest_gap(magnitudes[max(0, middle - 8) : middle + 9])


def middle_of_widest_gap(ascending: Tensor) -> float:
    widest = int(ascending.diff().argmax())
    return float(ascending[widest : widest + 2].mean())
