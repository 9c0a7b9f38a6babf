"""Band-limited convolution as matrix products over the kept modes only (one custom operator, exact backward).

    Z = D_x x        [F, 2, B C]     two small matrix products (dft.SteppedDFT.analyse)
    W = D_w w        [F, 2, O C]     the same for the kernel, on a CPU a few modes at a time (`linear_maps`)
    Y = Z conj(W)    [F, 2, B O]     one product of [2 B, C] with [C, 2 O] per mode, four real parts at once
    y = E Y          [B, O, H, W]    two small matrix products (SteppedDFT.synthesise)

FLOPs per plane for N ~ H, k kept of each side: 4 H W k + 8 H k (2k - 1), and 8 B C O F for the F modes: no transform of
a zero, no coefficient that is dropped later. Backward applies the transposed maps and saves Z (8 F bytes a plane in
float32, 0.54 of x at c = 0.5 on 32x32) and the weight, whose transform it redoes (cheaper than keeping O C F modes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spectralkernels.autocast import as_written
from spectralkernels.constants import out_of_inference
from spectralkernels.convolution import composed, flops
from spectralkernels.convolution.geometry import WeightSpectrum, compute_dtype
from spectralkernels.convolution.linear_maps import (
    Transform,
    analyse,
    band_transform,
    kept_transform,
    product,
    product_transposed,
    synthesise,
    transforms_of,
    transforms_of_maps,
    weight_gradient,
    weight_product,
    weight_product_transposed,
)
from spectralkernels.operators import by_chain, operator
from spectralkernels.spectra import Band
from spectralkernels.stages import unseen

Ints = Sequence[int]


def dft_gemm(x: Tensor, weight: Tensor | WeightSpectrum, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """x [B, C, *size], weight [O, C / groups, *kernel] or its WeightSpectrum, bias [O] | None -> [B, O, *out]."""
    if isinstance(weight, WeightSpectrum):
        return _apply(x, weight.modes, bias, weight.out_channels, groups, band.n, band.kept, band.out)
    starts = [-before for before, _ in band.pad]
    y, _ = _conv(x, weight, bias, starts, groups, band.n, band.kept, band.out)
    return y


def plan(
    x: Tensor, weight: Tensor | WeightSpectrum, bias: Tensor | None, band: Band, groups: int
) -> Callable[[Tensor, Any, Tensor | None], Tensor]:
    """What computes `dft_gemm` of these sizes, dtypes and devices where no gradient is wanted."""
    if not isinstance(weight, WeightSpectrum):
        return planned(x, band, band.kernel, band.out, groups)
    origin, out, outputs = _origin(band.n), band.out, weight.out_channels
    of_x = kept_transform(x, origin, band.size, band.n, band.kept)
    of_y = kept_transform(x, origin, out, band.n, band.kept, inverse=True)
    steps = unseen(analyse, product, synthesise)

    def with_modes(x: Tensor, weight: WeightSpectrum, bias: Tensor | None) -> Tensor:
        return _applied(x, weight.modes, bias, of_x(), of_y(), outputs, groups, out, steps)

    return with_modes


def planned(
    x: Tensor,
    band: Band,
    kernel: Ints,
    out: Ints,
    groups: int,
    stride: Ints | None = None,
    dilation: Ints | None = None,
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The same with a weight that is a tensor; kernel, out: the taps that there are, the samples that are wanted."""
    origin, starts, where = _origin(band.n), [-before for before, _ in band.pad], (band.n, band.kept)
    of_x = kept_transform(x, origin, band.size, *where)
    of_weight = kept_transform(x, starts, kernel, *where, steps=dilation)
    of_y = kept_transform(x, origin, out, *where, inverse=True, steps=stride)
    steps = unseen(analyse, weight_product, synthesise)

    def with_weight(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolved(x, weight, bias, of_x(), of_weight(), of_y(), groups, out, steps)[0]

    return with_weight


def freeze_weight(weight: Tensor, band: Band, groups: int) -> WeightSpectrum:
    """Transform a weight [O, C / groups, *kernel] for repeated use with frozen values."""
    starts = [-before for before, _ in band.pad]
    with out_of_inference(), torch.no_grad(), as_written(weight.device.type):
        modes = analyse(weight, band_transform(weight, starts, weight.shape[2:], band.n, band.kept))
    return WeightSpectrum(modes, band, weight.shape[0], weight.shape[1], groups)


def prepare_frozen(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> dict[str, Any]:
    """The inputs of `dft_gemm` with the weight transformed outside the clock."""
    return {"x": x, "weight": freeze_weight(weight, band, groups), "bias": bias, "band": band, "groups": groups}


# --- the operators --------------------------------------------------------------------------------------------------


@operator("dft_gemm_conv")
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Ints, groups: int, n: Ints, kept: Ints, out: Ints
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and the kept spectrum of x that backward reuses."""
    transforms = transforms_of(x, x.shape[2:], starts, weight.shape[2:], n, kept, out)
    return convolved(x, weight, bias, *transforms, groups, out)


def convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    of_x: Transform,
    of_weight: Transform,
    of_y: Transform,
    groups: int,
    out: Ints,
    steps: tuple[Callable[..., Tensor], ...] = (analyse, weight_product, synthesise),
) -> tuple[Tensor, Tensor]:
    """(y, Z) by the transforms of x and of the kernel, and the transpose of the inverse onto y."""
    transform, multiply, inverse = steps
    z = transform(x, of_x)
    y = multiply(z, weight, of_weight, x.shape[0], groups)
    y = inverse(y, of_y, out, bias)
    return y if y.dtype == x.dtype else y.to(x.dtype), z


@_conv.register_fake
def _(*, x: Tensor, weight: Tensor, n: Ints, kept: Ints, out: Ints) -> tuple[Tensor, Tensor]:
    rows = min(2 * kept[0] - 1, n[0]) if len(n) == 2 else 1
    z = x.new_empty((kept[-1] * rows, 2, x.shape[0] * x.shape[1]), dtype=compute_dtype(x.dtype))
    return x.new_empty((x.shape[0], weight.shape[0], *out)), z


@operator("dft_gemm_conv_backward")
def _conv_backward(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    starts: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    size: Ints,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """(dx, dw): the transposed maps; a gradient that is not needed comes back empty."""
    g = _gradient_modes(dy, n, kept)
    dx, dw = dy.new_empty(0), weight.new_empty(0)
    of_weight = band_transform(dy, starts, weight.shape[2:], n, kept)
    if need_x:
        dz = weight_product_transposed(g, weight, of_weight, groups)
        dx = synthesise(dz, band_transform(dy, _origin(n), size, n, kept), size).to(dy.dtype)
    if need_weight:
        dw = weight_gradient(g, z, weight, of_weight, groups)
    return dx, dw


@_conv_backward.register_fake
def _(*, dy: Tensor, weight: Tensor, groups: int, size: Ints, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    dx_shape = (dy.shape[0], weight.shape[1] * groups, *size) if need_x else (0,)
    return dy.new_empty(dx_shape), weight.new_empty(weight.shape if need_weight else (0,))


@_conv.register_composed
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Ints, groups: int, n: Ints, kept: Ints, out: Ints
) -> tuple[Tensor, Tensor]:
    transforms = transforms_of(x, x.shape[2:], starts, weight.shape[2:], n, kept, out)
    return composed.convolve(x, weight, bias, transforms, groups, out)


def _save_conv(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, starts, groups, n, kept, _ = inputs
    # Z is a second output, so that a second derivative finds its way from Z to x.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], weight)
    ctx.geometry = (starts, groups, n, kept, list(x.shape[2:]))
    ctx.batch = x.shape[0]


def _differentiate_conv(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    if dy is None or dz is not None or by_chain():
        return *_composed_backward(ctx, dy, dz), *(None,) * 5
    dx, dw = _conv_backward(dy, *ctx.saved_tensors, *ctx.geometry, need_x, need_weight)
    gradients = (dx if need_x else None, dw if need_weight else None, composed.bias_gradient(dy) if need_bias else None)
    return (*gradients, None, None, None, None, None)


def _composed_backward(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    """(dx, dw, db) as torch's own operations, which can be differentiated again; dz: the gradient of Z."""
    (z, weight), (starts, groups, n, kept, size) = ctx.saved_tensors, ctx.geometry
    out = size if dy is None else dy.shape[2:]
    transforms = transforms_of(z, size, starts, weight.shape[2:], n, kept, out)
    shape = (ctx.batch, weight.shape[1] * groups, *size)
    needs = (*ctx.needs_input_grad[:3], False)
    return composed.gradients(dy, dz, z, weight, transforms, groups, shape, needs)[:3]


_conv.register_autograd(_differentiate_conv, setup_context=_save_conv)


@operator("dft_gemm_apply")
def _apply(
    x: Tensor, w: Tensor, bias: Tensor | None, out_channels: int, groups: int, n: Ints, kept: Ints, out: Ints
) -> Tensor:
    """The convolution with the modes of a frozen weight."""
    of_x, _, of_y = transforms_of_maps(x, x.shape[2:], n, kept, out)
    return _applied(x, w, bias, of_x, of_y, out_channels, groups, out)


def _applied(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    of_x: Transform,
    of_y: Transform,
    out_channels: int,
    groups: int,
    out: Ints,
    steps: tuple[Callable[..., Tensor], ...] = (analyse, product, synthesise),
) -> Tensor:
    transform, multiply, inverse = steps
    y = multiply(transform(x, of_x), w, out_channels, x.shape[0], groups)
    y = inverse(y, of_y, out, bias)
    return y if y.dtype == x.dtype else y.to(x.dtype)


@_apply.register_fake
def _(*, x: Tensor, out_channels: int, out: Ints) -> Tensor:
    return x.new_empty((x.shape[0], out_channels, *out))


@operator("dft_gemm_apply_backward")
def _apply_backward(dy: Tensor, w: Tensor, channels: int, groups: int, n: Ints, kept: Ints, size: Ints) -> Tensor:
    dz = product_transposed(_gradient_modes(dy, n, kept), w, groups)
    return synthesise(dz, band_transform(dy, _origin(n), size, n, kept), size).to(dy.dtype)


@_apply_backward.register_fake
def _(*, dy: Tensor, channels: int, size: Ints) -> Tensor:
    return dy.new_empty((dy.shape[0], channels, *size))


@_apply.register_composed
def _(
    x: Tensor, w: Tensor, bias: Tensor | None, out_channels: int, groups: int, n: Ints, kept: Ints, out: Ints
) -> Tensor:
    transforms = transforms_of_maps(x, x.shape[2:], n, kept, out)
    return composed.convolve(x, w, bias, transforms, groups, out, out_channels=out_channels)[0]


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, _, groups, n, kept, _ = inputs
    ctx.save_for_backward(w)
    ctx.geometry = (x.shape[1], groups, n, kept, list(x.shape[2:]))


def _differentiate_apply(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    if by_chain():
        return _composed_apply_backward(ctx, dy)
    dx = _apply_backward(dy, *ctx.saved_tensors, *ctx.geometry) if ctx.needs_input_grad[0] else None
    return dx, None, composed.bias_gradient(dy) if ctx.needs_input_grad[2] else None, None, None, None, None, None


def _composed_apply_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients as torch's own operations, which can be differentiated again."""
    (w,), (channels, groups, n, kept, size) = ctx.saved_tensors, ctx.geometry
    transforms, shape = transforms_of_maps(dy, size, n, kept, dy.shape[2:]), (dy.shape[0], channels, *size)
    need_x, _, need_bias = ctx.needs_input_grad[:3]
    needs = (need_x, False, need_bias, False)
    return *composed.gradients(dy, None, None, w, transforms, groups, shape, needs)[:3], *(None,) * 5


_apply.register_autograd(_differentiate_apply, setup_context=_save_apply)


_conv.register_flops(
    lambda x, weight, bias, starts, groups, n, kept, out: flops.forward(
        x, weight, weight.shape[0], out, groups, flops.by_band(n, kept)
    )
)
_conv_backward.register_flops(
    lambda dy, z, weight, starts, groups, n, kept, size, *needs: flops.backward(
        dy, weight, weight.shape[1] * groups, size, groups, flops.by_band(n, kept), *needs
    )
)
_apply.register_flops(
    lambda x, w, bias, out_channels, groups, n, kept, out: flops.forward(
        x, None, out_channels, out, groups, flops.by_band(n, kept)
    )
)
_apply_backward.register_flops(
    lambda dy, w, channels, groups, n, kept, size: flops.backward(
        dy, None, channels, size, groups, flops.by_band(n, kept)
    )
)


# --- the transforms -------------------------------------------------------------------------------------------------


def _gradient_modes(dy: Tensor, n: Ints, kept: Ints) -> Tensor:
    """E^T dy: [F, 2, B, O]."""
    modes = analyse(dy, band_transform(dy, _origin(n), dy.shape[2:], n, kept, inverse=True))
    return modes.unflatten(2, dy.shape[:2])


def _origin(n: Ints) -> list[int]:
    return [0] * len(n)
