"""Masked convolution by folded transforms in C++: that of `convolution.dft_native` on the staircase around the mask.

Z, W and y are transformed at the modes of the staircase, and the product is multiplied by the mask on its way into the
transform of y; cells that are not listed have a weight of zero. Backward multiplies the spectrum of dy in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spectralkernels.constants import Recalled, constant, planned
from spectralkernels.convolution import dft_native as convolution
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.geometry import WeightSpectrum, compute_dtype, needs_tensor
from spectralkernels.declare import Implementation, all_of
from spectralkernels.modes import ModeList, box
from spectralkernels.operators import is_differentiated
from spectralkernels.ops.masked_conv2d.dft_gemm import fits_matrices, needs_spectrum, prepare_frozen
from spectralkernels.ops.masked_conv2d.reading import cells_of, weights_of
from spectralkernels.spectra import Band


def dft_native(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    mask: Tensor,
    bias: Tensor | None,
    band: Band,
    modes: ModeList,
    groups: int,
) -> Tensor:
    """x [B, C, H, W], weight [O, C / groups, K_h, K_w] or its spectrum, mask [N_h, N_w // 2 + 1] or [B, 1, ...],
    bias [O] | None -> [B, O, *out].

    Raises: Unsupported with the compiler's last lines where the library does not compile.
    """
    whole, holes = box_around(modes)
    weights = weights_of(mask, cells_of(whole, modes, mask.device), mask.dtype, compute_dtype(x.dtype))
    places = _places(weight, modes, whole, mask.device)
    return convolution.masked(x, weight, bias, replace(band, kept=whole.kept), groups, weights, holes, places)


def plan(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    mask: Tensor,
    bias: Tensor | None,
    band: Band,
    modes: ModeList,
    groups: int,
) -> Callable[[Tensor, Any, Tensor, Tensor | None], Tensor]:
    """What computes `dft_native` of these sizes, dtypes and devices, of any mask, where no gradient is wanted."""
    whole, holes = box_around(modes)
    places, mean, dtype = _places(weight, modes, whole, mask.device), mask.dtype, compute_dtype(x.dtype)
    run = convolution.plan_masked(weight, replace(band, kept=whole.kept), groups, holes, places)
    cells = Recalled(cells_of, whole, modes, mask.device)
    return lambda x, weight, mask, bias: run(x, weight, bias, weights_of(mask, cells(), mean, dtype))


@planned
def box_around(modes: ModeList) -> tuple[ModeList, tuple[int, ...]]:
    """The smallest box with the listed modes, and the staircase around them where it leaves holes in the box, or ()."""
    reach = reach_of(modes)
    kept = (max(reach), len(reach))
    return box(modes.n, kept), reach if min(reach) < kept[0] else ()


def _places(weight: Tensor | WeightSpectrum, modes: ModeList, whole: ModeList, device: torch.device) -> Tensor | None:
    """Where the modes of the box are among those of a frozen weight; None where it has all of them, or is none."""
    frozen = isinstance(weight, WeightSpectrum)
    return places_of(modes, whole, device) if frozen and modes != whole else None


@constant
def reach_of(modes: ModeList) -> tuple[int, ...]:
    """The smallest staircase around the listed modes: per column v the k with |u| < k, from column 0 to the last."""
    if modes.steps:
        return tuple(k for columns, k in modes.steps for _ in range(columns))
    found = [0] * (1 + max(v for _, v in modes.cells))
    for u, v in modes.cells:
        found[v] = max(found[v], 1 + min(u, modes.n[0] - u))
    return tuple(found)


@constant
def places_of(modes: ModeList, whole: ModeList, device: torch.device) -> Tensor:
    """Where the modes of a box are among the listed ones, -1 for the others: Int64 [F]."""
    at = {mode: place for place, mode in enumerate(modes.indices)}
    return torch.tensor([at.get(mode, -1) for mode in whole.indices], device=device)


def _no_gradient(mask: Tensor, **rest: Any) -> str | None:
    return "it has no gradient of the mask; detach it, or take 'dft_gemm'" if is_differentiated(mask) else None


IMPLEMENTATIONS = (
    Implementation(
        "dft_native",
        "kernel",
        dft_native,
        "folded truncated DFT of the staircase around the mask in C++, compiled at first use",
        engine="native",
        available=build.unavailable,
        supports=all_of(needs_tensor, _no_gradient, fits_matrices),
        plan=plan,
    ),
    Implementation(
        "dft_native_frozen",
        "kernel",
        dft_native,
        "the same with the weight transformed once, outside the clock",
        engine="native",
        available=build.unavailable,
        supports=all_of(needs_spectrum, _no_gradient, fits_matrices),
        prepare=prepare_frozen,
        plan=plan,
        frozen=True,
        gradients=("x",),
    ),
)
