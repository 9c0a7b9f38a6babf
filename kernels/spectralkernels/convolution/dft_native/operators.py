"""The operators of `dft_native`: forward and backward, with the weight or with its modes; what they save and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution import composed as by_torch
from spectralkernels.convolution import flops
from spectralkernels.convolution.dft_native import composed, library
from spectralkernels.convolution.dft_native.ends import ends_of
from spectralkernels.convolution.dft_native.folding import Fold, fold, to_the_centre
from spectralkernels.convolution.dft_native.library import Frozen, KeptModes, NativeSizes
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.convolution.linear_maps import transforms_of
from spectralkernels.operators import by_chain, operator

Ints = Sequence[int]

LARGEST_LANE_WEIGHTS = 4 << 20
"""Bytes of the spectra of one block of kernels up to which groups lie in lanes: a core's cache, about."""


def groups_in_lanes(kept: KeptModes, sizes: NativeSizes, dtype: torch.dtype) -> bool:
    """Whether groups fill lanes better than the channels of one, and their kernels' spectra fit."""
    lanes = library.lanes(dtype)
    pairs = sizes.inputs * sizes.outputs
    wasted_groups, wasted_channels = (-(-count // lanes) * lanes / count for count in (sizes.groups, sizes.outputs))
    fits = 2 * kept.count * pairs * lanes * dtype.itemsize <= LARGEST_LANE_WEIGHTS
    return wasted_groups < wasted_channels and fits


# --- the operators --------------------------------------------------------------------------------------------------


@operator("dft_native_conv")
def conv(
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
    keep: bool,
    mask: Tensor | None,
    reach: Ints,
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and what `analyse` made of x if `keep` and no larger than x, else nothing.

    mask: weights [B or 1, F], zero in the holes that reach makes, see `KeptModes`.
    """
    band, sizes, dtype = (
        KeptModes(tuple(n), tuple(kept), tuple(reach)),
        sizes_of(x, weight, groups),
        compute_dtype(x.dtype),
    )
    y, z = x.new_empty(x.shape[0], weight.shape[0], *out, dtype=dtype), x.new_empty(0, dtype=dtype)
    if x.shape[0] == 0:
        return y.to(x.dtype), z
    maps, kernel, offset = plain(x), plain(weight), None if bias is None else plain(bias)
    ends = ends_of(band, dtype, x.shape[2:], weight.shape[2:], out, starts, stride, dilation)
    of_x, of_weight, of_y = ends.x(), ends.weight(), ends.y(synthesis=True)
    if groups_in_lanes(band, sizes, dtype):
        library.convolve_lanes(band, of_x, of_weight, of_y, sizes, maps, kernel, offset, y, mask)
    else:
        z = library.analyse(band, of_x, sizes, maps)
        library.convolve(band, of_weight, of_y, sizes, taps_of(weight, groups), z, kernel, offset, y, mask)
    return y.to(x.dtype), z if keep and z.numel() <= x.numel() else z.new_empty(0)


@conv.register_fake
def _(*, x: Tensor, weight: Tensor, groups: int, n: Ints, kept: Ints, out: Ints, keep: bool) -> tuple[Tensor, Tensor]:
    band, sizes, dtype = KeptModes(tuple(n), tuple(kept)), sizes_of(x, weight, groups), compute_dtype(x.dtype)
    numbers = 0
    if keep and x.shape[0] > 0 and not groups_in_lanes(band, sizes, dtype):
        numbers = library.spectrum_numbers(band.count, sizes, dtype)
    z = x.new_empty(numbers if numbers <= x.numel() else 0, dtype=dtype)
    return x.new_empty(x.shape[0], weight.shape[0], *out), z


@operator("dft_native_conv_backward")
def conv_backward(
    dy: Tensor,
    x: Tensor | None,
    z: Tensor,
    weight: Tensor,
    starts: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    size: Ints,
    stride: Ints,
    dilation: Ints,
    need_x: bool,
    need_weight: bool,
    mask: Tensor | None,
    reach: Ints,
) -> tuple[Tensor, Tensor]:
    """(dx, dw); x is given where z is empty and dw wanted. A gradient that is not needed comes back empty."""
    band, dtype = KeptModes(tuple(n), tuple(kept), tuple(reach)), compute_dtype(dy.dtype)
    sizes = sizes_of(dy, weight, groups)
    dx = dy.new_empty((dy.shape[0], groups * sizes.inputs, *size) if need_x else (0,), dtype=dtype)
    dw = weight.new_empty(weight.shape if need_weight else (0,), dtype=dtype)
    if dy.shape[0] == 0:
        return dx.to(dy.dtype), dw.zero_().to(weight.dtype)
    gradient, kernel = plain(dy), plain(weight)
    ends = ends_of(band, dtype, size, weight.shape[2:], dy.shape[2:], starts, stride, dilation)
    to_x, to_weight = ends.x(synthesis=True), ends.weight(synthesis=True)
    if groups_in_lanes(band, sizes, dtype):
        maps = plain(x) if need_weight and x is not None else None
        wanted = dx if need_x else None, dw if need_weight else None
        sides = (ends.y(), ends.x(), ends.weight(), to_x, to_weight)
        library.convolve_lanes_backward(band, sides, sizes, gradient, maps, kernel, *wanted, mask)
    else:
        turned = NativeSizes(dy.shape[0], groups, sizes.outputs, sizes.inputs)
        g = library.analyse(band, ends.y(), turned, gradient, mask)
        if need_x:
            of_out, of_in, of_group = taps_of(weight, groups)
            taps, of_weight = (of_in, of_out, of_group), ends.weight(conjugate=True)
            library.convolve(band, of_weight, to_x, turned, taps, g, kernel, None, dx)
        if need_weight:
            if x is not None:
                z = library.analyse(band, ends.x(), sizes, plain(x))
            library.weight_gradient(band, to_weight, sizes, g, z, dw)
    return dx.to(dy.dtype), dw.to(weight.dtype)


@conv_backward.register_fake
def _(*, dy: Tensor, weight: Tensor, groups: int, size: Ints, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    dx_shape = (dy.shape[0], weight.shape[1] * groups, *size) if need_x else (0,)
    return dy.new_empty(dx_shape), weight.new_empty(weight.shape if need_weight else (0,))


@conv.register_composed
def _(
    *,
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
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    transforms = transforms_of(x, x.shape[2:], starts, weight.shape[2:], n, kept, out, stride, dilation)
    y, _ = by_torch.convolve(x, weight, bias, transforms, groups, out, composed.over_planes(mask))
    return y, y.new_empty(0)


def _save_conv(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, starts, groups, n, kept, out, stride, dilation, _, mask, reach = inputs
    # Z is a second output, so that a second derivative finds its way from Z to x.
    ctx.set_materialize_grads(False)
    again = output[1].numel() == 0 and ctx.needs_input_grad[1]
    ctx.save_for_backward(x if again else None, output[1], weight, mask)
    ctx.geometry = (starts, groups, n, kept, list(x.shape[2:]), stride, dilation)
    ctx.batch, ctx.out, ctx.reach = x.shape[0], out, reach


def _differentiate_conv(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    if dz is not None and dz.numel() == 0:
        dz = None
    if dy is None or dz is not None or by_chain():
        return *composed.gradients(ctx, dy, dz), *(None,) * 10
    dx, dw = None, None
    if need_x or need_weight:
        *tensors, mask = ctx.saved_tensors
        dx, dw = conv_backward(dy, *tensors, *ctx.geometry, need_x, need_weight, mask, ctx.reach)
    db = by_torch.bias_gradient(dy) if need_bias else None
    return dx if need_x else None, dw if need_weight else None, db, *(None,) * 10


conv.register_autograd(_differentiate_conv, setup_context=_save_conv)


@operator("dft_native_apply")
def apply(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    out_channels: int,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    mask: Tensor | None,
    reach: Ints,
    places: Tensor | None,
) -> Tensor:
    """The convolution with the modes of a frozen weight, [F, 2, O * C / groups], which are at `places` of the band or
    are all of it; mask and reach as in `conv`."""
    band, dtype = KeptModes(tuple(n), tuple(kept), tuple(reach)), compute_dtype(x.dtype)
    sizes = NativeSizes(x.shape[0], groups, x.shape[1] // groups, out_channels // groups)
    y = x.new_empty(x.shape[0], out_channels, *out, dtype=dtype)
    if x.shape[0] == 0:
        return y.to(x.dtype)
    of_x, of_y = fold_of(band, x.shape[2:], dtype), fold_of(band, out, dtype, synthesis=True, inverse=True)
    offset, maps, modes = None if bias is None else plain(bias), plain(x), plain(w)
    frozen = frozen_of(modes, places, band, x.shape[2:], out)
    if groups_in_lanes(band, sizes, dtype):
        library.convolve_lanes(band, of_x, of_x, of_y, sizes, maps, modes, offset, y, mask, frozen)
    else:
        z, where = library.analyse(band, of_x, sizes, maps), (sizes.inputs, 1, sizes.inputs * sizes.outputs)
        library.convolve(band, of_x, of_y, sizes, where, z, modes, offset, y, mask, frozen)
    return y.to(x.dtype)


@apply.register_fake
def _(*, x: Tensor, out_channels: int, out: Ints) -> Tensor:
    return x.new_empty((x.shape[0], out_channels, *out))


@operator("dft_native_apply_backward")
def apply_backward(
    dy: Tensor,
    w: Tensor,
    channels: int,
    groups: int,
    n: Ints,
    kept: Ints,
    size: Ints,
    mask: Tensor | None,
    reach: Ints,
    places: Tensor | None,
) -> Tensor:
    band, dtype = KeptModes(tuple(n), tuple(kept), tuple(reach)), compute_dtype(dy.dtype)
    sizes = NativeSizes(dy.shape[0], groups, channels // groups, dy.shape[1] // groups)
    dx = dy.new_empty(dy.shape[0], channels, *size, dtype=dtype)
    if dy.shape[0] == 0:
        return dx.to(dy.dtype)
    of_y, to_x = fold_of(band, dy.shape[2:], dtype, inverse=True), fold_of(band, size, dtype, synthesis=True)
    gradient, modes = plain(dy), plain(w)
    if groups_in_lanes(band, sizes, dtype):
        frozen, sides = frozen_of(modes, places, band, size, dy.shape[2:]), (of_y, to_x, of_y, to_x, to_x)
        library.convolve_lanes_backward(band, sides, sizes, gradient, None, modes, dx, None, mask, frozen)
    else:
        frozen = frozen_of(modes, places, band, size, dy.shape[2:], conjugate=True)
        turned = NativeSizes(dy.shape[0], groups, sizes.outputs, sizes.inputs)
        g, where = library.analyse(band, of_y, turned, gradient, mask), (1, sizes.inputs, sizes.inputs * sizes.outputs)
        library.convolve(band, of_y, to_x, turned, where, g, modes, None, dx, None, frozen)
    return dx.to(dy.dtype)


@apply_backward.register_fake
def _(*, dy: Tensor, channels: int, size: Ints) -> Tensor:
    return dy.new_empty((dy.shape[0], channels, *size))


@apply.register_composed
def _(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    out_channels: int,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    mask: Tensor | None,
    reach: Ints,
    places: Tensor | None,
) -> Tensor:
    return composed.apply(x, composed.spread(w, places), bias, out_channels, groups, n, kept, out, mask)


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, _, groups, n, kept, _, mask, reach, places = inputs
    ctx.save_for_backward(w, mask, places)
    ctx.geometry, ctx.reach = (x.shape[1], groups, n, kept, list(x.shape[2:])), reach


def _differentiate_apply(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (w, mask, places), (channels, groups, n, kept, size), dx = ctx.saved_tensors, ctx.geometry, None
    if ctx.needs_input_grad[0] and by_chain():
        dx = composed.apply_gradient(dy, composed.spread(w, places), channels, groups, n, kept, size, mask)
    elif ctx.needs_input_grad[0]:
        dx = apply_backward(dy, w, channels, groups, n, kept, size, mask, ctx.reach, places)
    return dx, None, by_torch.bias_gradient(dy) if ctx.needs_input_grad[2] else None, *(None,) * 8


apply.register_autograd(_differentiate_apply, setup_context=_save_apply)


# --- what they cost, padding of lanes aside -------------------------------------------------------------------------

conv.register_flops(
    lambda x, weight, bias, starts, groups, n, kept, out, *rest: flops.forward(
        x, weight, weight.shape[0], out, groups, flops.by_folds(n, kept)
    )
)
apply.register_flops(
    lambda x, w, bias, out_channels, groups, n, kept, out, *rest: flops.forward(
        x, None, out_channels, out, groups, flops.by_folds(n, kept)
    )
)
apply_backward.register_flops(
    lambda dy, w, channels, groups, n, kept, size, *rest: flops.backward(
        dy, None, channels, size, groups, flops.by_folds(n, kept)
    )
)
conv_backward.register_flops(
    lambda dy, x, z, weight, starts, groups, n, kept, size, stride, dilation, need_x, need_weight, *rest: (
        flops.backward(
            dy,
            weight,
            weight.shape[1] * groups,
            size,
            groups,
            flops.by_folds(n, kept),
            need_x,
            need_weight,
            x_again=x is not None,
        )
    )
)


# --- what the library is given --------------------------------------------------------------------------------------


def sizes_of(x: Tensor, weight: Tensor, groups: int) -> NativeSizes:
    """Of a call with x, or with the gradient of its answer, which is as many samples."""
    return NativeSizes(x.shape[0], groups, weight.shape[1], weight.shape[0] // groups)


def taps_of(weight: Tensor, groups: int) -> tuple[int, int, int]:
    """Numbers between neighbours in (out channel, in channel, group)."""
    taps = weight[0, 0].numel()
    return weight.shape[1] * taps, taps, weight.shape[0] * weight.shape[1] * taps // groups


def plain(tensor: Tensor) -> Tensor:
    """Contiguous, in the dtype of the computation."""
    return tensor.to(compute_dtype(tensor.dtype)).contiguous()


def fold_of(band: KeptModes, lengths: Ints, dtype: torch.dtype, **how: bool) -> Fold:
    return fold(band.n, band.kept, tuple(lengths), (0,) * len(band.n), dtype, library.panel(), **how)


def frozen_of(
    modes: Tensor, places: Tensor | None, band: KeptModes, size: Ints, out: Ints, conjugate: bool = False
) -> Frozen:
    """The turn of the modes [F, 2, O * C / groups] of `dft` to the centre of the kernel, which those of x and y say."""
    doubled = tuple(have - made for have, made in zip(size, out, strict=True))
    turn = to_the_centre(band.n, band.kept, doubled, modes.dtype.to_complex())
    return Frozen(turn, places, modes.shape[2], conjugate)
