"""Band-limited convolution with a stride, a dilation or both, as matrix products: only other samples are asked for.

    y = E_s ( D x . conj(D_d w) ),     E_s: the rows of the inverse at 0, s, 2 s, ...;  D_d: the columns at 0, d, ...

Every s-th sample of a signal has the spectrum of its aliases' sum; computing only those samples of the inverse is the
same map, for any stride and FFT size, and cheaper: E_s has 1 / s_h s_w of the samples of E. A kernel with d - 1 zeros
between its taps has the transform of its taps at those places. The product over the kept modes is that of stride 1.
Backward applies the transposed maps, as `dft_gemm` does, and saves the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from spectralkernels.convolution import composed, flops
from spectralkernels.convolution.dft_gemm import convolved, planned
from spectralkernels.convolution.geometry import compute_dtype, reach
from spectralkernels.convolution.linear_maps import (
    analyse,
    synthesise,
    transforms_of,
    weight_gradient,
    weight_product_transposed,
)
from spectralkernels.operators import by_chain, operator
from spectralkernels.spectra import Band

Ints = Sequence[int]


def strided_sides(out: Ints, stride: Ints) -> tuple[int, ...]:
    """Output sides of a convolution with a stride, of those with stride 1."""
    return tuple(-(-side // step) for side, step in zip(out, stride, strict=True))


def spread(weight: Tensor, dilation: Ints) -> Tensor:
    """The kernel with d - 1 zeros between its taps."""
    if all(step == 1 for step in dilation):
        return weight
    wide = weight.new_zeros(*weight.shape[:2], *reach(weight.shape[2:], dilation))
    wide[every(dilation)] = weight
    return wide


def every(stride: Ints) -> tuple[Any, ...]:
    """The index of every s-th sample of each spatial axis."""
    return (..., *(slice(None, None, step) for step in stride))


def computed_band(band: Band, stride: Ints, kernel: Ints) -> Band:
    """The geometry with the samples that a stride leaves and the taps that there are, for counting."""
    return replace(band, out=strided_sides(band.out, stride), kernel=tuple(kernel))


def strided_dft_gemm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """x [B, C, *size], weight [O, C / groups, *kernel], bias [O] | None -> [B, O, *strided_sides(band.out, stride)].

    band: of stride 1 and of a kernel as long as the dilated one reaches.
    """
    starts = [-before for before, _ in band.pad]
    out = strided_sides(band.out, stride)
    y, _ = _conv(x, weight, bias, starts, groups, band.n, band.kept, out, stride, dilation)
    return y


def plan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """What computes `strided_dft_gemm` of these sizes, dtypes and devices where no gradient is wanted."""
    return planned(x, band, weight.shape[2:], strided_sides(band.out, stride), groups, stride, dilation)


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
    dilation: Ints,
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and the kept spectrum of x that backward reuses."""
    transforms = transforms_of(x, x.shape[2:], starts, weight.shape[2:], n, kept, out, stride, dilation)
    return convolved(x, weight, bias, *transforms, groups, out)


@_conv.register_fake
def _(*, x: Tensor, weight: Tensor, n: Ints, kept: Ints, out: Ints) -> tuple[Tensor, Tensor]:
    rows = min(2 * kept[0] - 1, n[0]) if len(n) == 2 else 1
    z = x.new_empty((kept[-1] * rows, 2, x.shape[0] * x.shape[1]), dtype=compute_dtype(x.dtype))
    return x.new_empty((x.shape[0], weight.shape[0], *out)), z


@_conv.register_composed
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
    dilation: Ints,
) -> tuple[Tensor, Tensor]:
    transforms = transforms_of(x, x.shape[2:], starts, weight.shape[2:], n, kept, out, stride, dilation)
    return composed.convolve(x, weight, bias, transforms, groups, out)


@operator("strided_dft_gemm_conv_backward")
def _conv_backward(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    size: Ints,
    starts: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    stride: Ints,
    dilation: Ints,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """(dx, dw): the transposed maps; a gradient that is not needed comes back empty."""
    of_x, of_weight, of_y = transforms_of(dy, size, starts, weight.shape[2:], n, kept, dy.shape[2:], stride, dilation)
    g = analyse(dy, of_y).unflatten(2, dy.shape[:2])
    dx, dw = dy.new_empty(0), weight.new_empty(0)
    if need_x:
        dx = synthesise(weight_product_transposed(g, weight, of_weight, groups), of_x, size).to(dy.dtype)
    if need_weight:
        dw = weight_gradient(g, z, weight, of_weight, groups)
    return dx, dw


@_conv_backward.register_fake
def _(*, dy: Tensor, weight: Tensor, size: Ints, groups: int, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    dx_shape = (dy.shape[0], weight.shape[1] * groups, *size) if need_x else (0,)
    return dy.new_empty(dx_shape), weight.new_empty(weight.shape if need_weight else (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, starts, groups, n, kept, _, stride, dilation = inputs
    # Z is a second output, so that a second derivative finds its way from Z to x.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], weight)
    ctx.geometry = (list(x.shape[2:]), starts, groups, n, kept, stride, dilation)
    ctx.batch = x.shape[0]


def _differentiate(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    if dy is None or dz is not None or by_chain():
        return *_composed_backward(ctx, dy, dz), *(None,) * 7
    dx, dw = _conv_backward(dy, *ctx.saved_tensors, *ctx.geometry, need_x, need_weight)
    db = composed.bias_gradient(dy) if need_bias else None
    return (dx if need_x else None, dw if need_weight else None, db, *(None,) * 7)


def _composed_backward(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    """(dx, dw, db) as torch's own operations, which can be differentiated again; dz: the gradient of Z."""
    (z, weight), (size, starts, groups, n, kept, stride, dilation) = ctx.saved_tensors, ctx.geometry
    out = size if dy is None else dy.shape[2:]
    transforms = transforms_of(z, size, starts, weight.shape[2:], n, kept, out, stride, dilation)
    shape = (ctx.batch, weight.shape[1] * groups, *size)
    needs = (*ctx.needs_input_grad[:3], False)
    return composed.gradients(dy, dz, z, weight, transforms, groups, shape, needs)[:3]


_conv.register_autograd(_differentiate, setup_context=_save)
_conv.register_flops(
    lambda x, weight, bias, starts, groups, n, kept, out, stride, dilation: flops.forward(
        x, weight, weight.shape[0], out, groups, flops.by_band(n, kept)
    )
)
_conv_backward.register_flops(
    lambda dy, z, weight, size, starts, groups, n, kept, stride, dilation, *needs: flops.backward(
        dy, weight, weight.shape[1] * groups, size, groups, flops.by_band(n, kept), *needs
    )
)
