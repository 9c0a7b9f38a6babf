"""FLOPs of the operators of a convolution, for torch.utils.flop_counter: of products alone, as torch counts its own.

With T(side) of the transform of a plane, P = B C, Q = O C / g and R = B O planes of x, weight and y, and F modes:

    forward           P T(size) + Q T(kernel) + R T(out) + 8 B O (C / g) F
    gradient of x     R T(out) + Q T(kernel) + P T(size) + 8 B O (C / g) F
    of the weight     R T(out), unless it was counted, + Q T(kernel) + 8 B O (C / g) F

An implementation says its T: a matrix, two smaller ones, or those folded to real halves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from spectralkernels.dft import FEW_PIXELS, Steps
from spectralkernels.spectra import full_count

Ints = Sequence[int]


@dataclass(frozen=True, slots=True)
class TransformCost:
    """Modes F, and what the transform of one plane with sides costs."""

    modes: int
    of: Callable[[Ints], int]


def by_matrix(modes: int) -> TransformCost:
    """One real matrix [2 F, pixels]."""
    return TransformCost(modes, lambda side: 4 * modes * math.prod(side))


def by_steps(n: Ints, steps: Steps) -> TransformCost:
    """Columns, then the rows |u| < k of each; few pixels by one matrix, as in `dft.stepped_dft`."""
    columns = sum(width for width, _ in steps)
    modes = sum(width * full_count(n[0], k) for width, k in steps if k)

    def of(side: Ints) -> int:
        if math.prod(side) <= FEW_PIXELS:
            return 4 * modes * math.prod(side)
        return 4 * math.prod(side) * columns + 8 * side[0] * modes

    return TransformCost(modes, of)


def by_band(n: Ints, kept: Ints) -> TransformCost:
    """A staircase of one step; a series has one matrix."""
    return by_matrix(kept[0]) if len(n) == 1 else by_steps(n, ((kept[1], kept[0]),))


def by_folds(n: Ints, kept: Ints) -> TransformCost:
    """Even and odd halves of planes and frequencies apart: 2 H W k + 4 H k^2, see `dft_native`."""
    if len(n) == 1:
        return TransformCost(kept[0], lambda side: 2 * side[0] * kept[0])
    rows = full_count(n[0], kept[0])
    return TransformCost(kept[1] * rows, lambda side: 2 * math.prod(side) * kept[1] + 4 * side[0] * math.prod(kept))


def forward(
    x: Tensor, weight: Tensor | None, out_channels: int, out: Ints, groups: int, transform: TransformCost
) -> int:
    """A convolution; weight: [O, C / groups, *kernel], or None where it comes transformed."""
    batch, channels = x.shape[:2]
    of_weight = 0 if weight is None else weight.shape[0] * weight.shape[1] * transform.of(weight.shape[2:])
    maps = batch * channels * transform.of(x.shape[2:]) + batch * out_channels * transform.of(out)
    return maps + of_weight + 8 * batch * out_channels * (channels // groups) * transform.modes


def backward(
    dy: Tensor,
    weight: Tensor | None,
    channels: int,
    size: Ints,
    groups: int,
    transform: TransformCost,
    need_x: bool = True,
    need_weight: bool = False,
    *,
    x_again: bool = False,
    weight_again: bool = True,
) -> int:
    """Its gradients; channels, size: of x. x_again, weight_again: whether these are transformed again."""
    batch, out_channels = dy.shape[:2]
    product = 8 * batch * out_channels * (channels // groups) * transform.modes
    of_weight = 0 if weight is None else weight.shape[0] * weight.shape[1] * transform.of(weight.shape[2:])
    total = batch * out_channels * transform.of(dy.shape[2:])
    if need_x:
        total += product + batch * channels * transform.of(size) + of_weight * weight_again
    if need_weight:
        total += product + of_weight + batch * channels * transform.of(size) * x_again
    return total
