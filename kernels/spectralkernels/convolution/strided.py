"""Band-limited convolution with a stride: the inverse transform is given the rows and columns that are wanted, alone.

    y = E_s ( D_x x . conj(D_w w) ),     E_s: the rows of the inverse at 0, s, 2 s, ...

Every s-th sample of a signal has the spectrum of its aliases' sum; computing only those samples of the inverse is the
same map, for any stride and FFT size, and cheaper: E_s has 1 / s_h s_w of the samples of E. The product over the kept
modes is that of stride 1. Backward applies the transposed maps, as `dft_gemm` does, and saves the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spectralkernels.constants import constant
from spectralkernels.convolution import flops
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.convolution.linear_maps import (
    Transform,
    analyse,
    synthesise,
    weight_gradient,
    weight_product,
    weight_product_transposed,
)
from spectralkernels.dft import ListedDFT, SteppedDFT, stepped_dft
from spectralkernels.operators import operator
from spectralkernels.spectra import Band

Ints = Sequence[int]


def strided_sides(out: Ints, stride: Ints) -> tuple[int, ...]:
    """Output sides of a convolution with a stride, of those with stride 1."""
    return tuple(-(-side // step) for side, step in zip(out, stride, strict=True))


def strided_band(band: Band, stride: Ints) -> Band:
    """The geometry with the output that a stride leaves: what is computed, for counting."""
    return replace(band, out=strided_sides(band.out, stride))


def strided_dft_gemm(
    x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, stride: tuple[int, int]
) -> Tensor:
    """x [B, C, H, W], weight [O, C / groups, K_h, K_w], bias [O] | None -> [B, O, *strided_sides(band.out, stride)]."""
    starts = [-before for before, _ in band.pad]
    y, _ = _conv(x, weight, bias, starts, groups, band.n, band.kept, band.out, stride)
    return y


@operator("strided_dft_gemm_conv")
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    stride: Ints,
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and the kept spectrum of x that backward reuses."""
    z = analyse(x, _forward(x, (0, 0), x.shape[2:], n, kept))
    modes = weight_product(z, weight, _forward(x, starts, weight.shape[2:], n, kept), x.shape[0], groups)
    y = synthesise(modes, _inverse(modes, n, kept, out, stride), strided_sides(out, stride), bias)
    return y.to(x.dtype), z


@_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    stride: Ints,
) -> tuple[Tensor, Tensor]:
    rows = min(2 * kept[0] - 1, n[0])
    z = x.new_empty((kept[1] * rows, 2, x.shape[0] * x.shape[1]), dtype=compute_dtype(x.dtype))
    return x.new_empty((x.shape[0], weight.shape[0], *strided_sides(out, stride))), z


@operator("strided_dft_gemm_conv_backward")
def _conv_backward(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    starts: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    stride: Ints,
    size: Ints,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """(dx, dw): the transposed maps; a gradient that is not needed comes back empty."""
    g = analyse(dy, _inverse(z, n, kept, out, stride)).unflatten(2, dy.shape[:2])
    dx, dw = dy.new_empty(0), weight.new_empty(0)
    of_weight = _forward(dy, starts, weight.shape[2:], n, kept)
    if need_x:
        dz = weight_product_transposed(g, weight, of_weight, groups)
        dx = synthesise(dz, _forward(dy, (0, 0), size, n, kept), size).to(dy.dtype)
    if need_weight:
        dw = weight_gradient(g, z, weight, of_weight, groups)
    return dx, dw


@_conv_backward.register_fake
def _(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    starts: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    stride: Ints,
    size: Ints,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    dx_shape = (dy.shape[0], weight.shape[1] * groups, *size) if need_x else (0,)
    return dy.new_empty(dx_shape), weight.new_empty(weight.shape if need_weight else (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, *geometry = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], weight)
    ctx.geometry = (*geometry, list(x.shape[2:]))


def _differentiate(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx, dw = _conv_backward(dy, *ctx.saved_tensors, *ctx.geometry, need_x, need_weight)
    gradients = (dx if need_x else None, dw if need_weight else None, dy.sum((0, 2, 3)) if need_bias else None)
    return (*gradients, None, None, None, None, None, None)


_conv.register_autograd(_differentiate, setup_context=_save)
_conv.register_flops(
    lambda x, weight, bias, starts, groups, n, kept, out, stride: flops.forward(
        x, weight, weight.shape[0], strided_sides(out, stride), groups, flops.by_band(n, kept)
    )
)
_conv_backward.register_flops(
    lambda dy, z, weight, starts, groups, n, kept, out, stride, size, *needs: flops.backward(
        dy, weight, weight.shape[1] * groups, size, groups, flops.by_band(n, kept), *needs
    )
)


# --- the transforms -------------------------------------------------------------------------------------------------


def _forward(like: Tensor, starts: Ints, lengths: Ints, n: Ints, kept: Ints) -> Transform:
    steps = ((kept[1], kept[0]),)
    return stepped_dft(tuple(n), steps, tuple(starts), tuple(lengths), False, compute_dtype(like.dtype), like.device)


def _inverse(like: Tensor, n: Ints, kept: Ints, out: Ints, stride: Ints) -> Transform:
    return _every(tuple(n), tuple(kept), tuple(out), tuple(stride), like.dtype, like.device)


@constant
def _every(
    n: tuple[int, ...],
    kept: tuple[int, ...],
    out: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Transform:
    """The inverse transform at every stride-th row and column: a selection of the samples of the whole one."""
    whole = stepped_dft(n, ((kept[1], kept[0]),), (0, 0), out, True, dtype, device)
    down, across = stride
    if isinstance(whole, ListedDFT):
        picked = whole.matrix.view(-1, *out)[:, ::down, ::across]
        return ListedDFT(picked.flatten(1).contiguous(), picked.shape[1])
    ((width, rows),) = whole.blocks
    assert rows is not None  # a band keeps one row at least
    rows_hp, rows_ph = rows[0][0].unflatten(1, (-1, 2)), rows[1][0].unflatten(0, (2, -1))  # [2 U, h, 2], [2, h, 2 U]
    of_rows = rows_hp[:, ::down].flatten(1).contiguous(), rows_ph[:, ::down].flatten(0, 1).t().contiguous().t()
    high = rows_hp[:, ::down].shape[1]
    columns, columns_vp = (
        each[0][:, ::across].contiguous().expand(high, -1, -1) for each in (whole.columns, whole.columns_vp)
    )
    expanded = tuple(each.expand(width, -1, -1) for each in of_rows)
    return SteppedDFT(columns, columns_vp, ((width, (expanded[0], expanded[1])),))
