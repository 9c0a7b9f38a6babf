"""Masked convolution in three Triton launches: the mask weights the product of the spectra in its epilogue.

    Z = D x,  W = D w        the bounding box of the listed modes, or exactly those cells (see `dft_triton.layout`)
    Y = m Z conj(W)          the mask is read where it lies, one for the batch or one per sample
    y = E Y + b

Where a mask shared by the batch is zero, no product is computed. Backward weights both products again, and a mask that
has a gradient gets dm = sum_c Re(conj(dZ) Z) from the product for dx: one small launch more, no product more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from spectralkernels.convolution.dft_triton import DEFAULT, name_of, supports
from spectralkernels.convolution.dft_triton.layout import layout_for, layout_of
from spectralkernels.convolution.dft_triton.operators import convolve
from spectralkernels.convolution.dft_triton.precision import PRECISIONS
from spectralkernels.declare import Implementation
from spectralkernels.launch import triton_unavailable
from spectralkernels.masks.geometry import paired
from spectralkernels.modes import ModeList
from spectralkernels.spectra import Band


def dft_triton(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    band: Band,
    modes: ModeList,
    groups: int,
    *,
    precision: str = DEFAULT,
) -> Tensor:
    """Convolve under a mask on the tensor cores.

    x: Real [B, C, H, W], float32 or half, CUDA. weight: Real [O, C / groups, K_h, K_w]. bias: Real [O] | None.
    mask: Bool or Float [N_h, N_w // 2 + 1] or [B, 1, ...], Hermitian; modes: those of it that count.
    precision: a name of `PRECISIONS`. Returns: Real [B, O, *out], dtype of x, contiguous.
    """
    starts = [-before for before, _ in band.pad]
    where = (starts, groups, layout_for(modes, band.size), band.out)
    y, _, _ = convolve(x, weight, bias, mask, *where, precision, False, "class", "taps")
    return y


def plan(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    band: Band,
    modes: ModeList,
    groups: int,
    *,
    precision: str = DEFAULT,
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """What computes `dft_triton` of these sizes, dtypes and devices, of any mask, where no gradient is wanted."""
    from spectralkernels.convolution.dft_triton import chain

    starts, layout = tuple(-before for before, _ in band.pad), layout_of(layout_for(modes, band.size))
    n, mean, geometry = modes.n, mask.dtype, chain.ChainGeometry(layout, starts, groups, precision)
    run = chain.planned_forward(
        tuple(x.shape), weight.shape[0], geometry, band.out, False, x.dtype, x.device,
        kernel=tuple(weight.shape[2:]), biased=bias is not None, mask=mask,
    )  # fmt: skip

    def forward(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        offset = None if bias is None else bias.contiguous()
        return run(x.contiguous(), weight.contiguous(), offset, paired(mask.to(mean), (n[0], n[1])).contiguous())

    return forward


def _implementation(precision: str) -> Implementation:
    call: Callable[..., Any] = dft_triton if precision == DEFAULT else partial(dft_triton, precision=precision)
    return Implementation(
        name_of(precision),
        "kernel",
        call,
        f"truncated DFT of the listed modes as three Triton kernels, operands in {precision}",
        engine="triton",
        available=triton_unavailable,
        supports=supports,
        plan=partial(plan, precision=precision),
        tolerance=PRECISIONS[precision].tolerance,
    )


IMPLEMENTATIONS = tuple(map(_implementation, (DEFAULT, *(name for name in PRECISIONS if name != DEFAULT))))
