"""Band-limited convolution as folded truncated DFTs in C++, planes in the lanes of registers (exact backward).

    y = E (D x . conj(D_w w)) + b     `folding` derives D, D_w and E; `dft_native.cpp` computes them

FLOPs per plane for N ~ H, k kept of each side: 2 H W k + 4 H k^2, half of what `dft_gemm` needs and less, and 8 B C O F
for the products over F modes. A column of the weight's spectrum is made, multiplied and forgotten while it is in cache.

Channels lie in lanes, or groups do where there are many of few channels each, depthwise among them. Saved for backward
are the weight and the smaller of x and its spectrum (0.54 of x at c = 0.5 on 32 x 32, channels rounded up to lanes); x,
which is analysed again, with groups in lanes. The gradient of x is the same convolution with the transposed weight and
the conjugate of its spectrum. A call holds the spectrum of x, and per thread a few megabytes and two planes per lane.

Forward mode, torch.func and second derivatives go through `dft_gemm`, see `composed`.

Compiled at first use, which takes ten seconds, and kept in torch's cache of extensions (see `build`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution import flops
from spectralkernels.convolution.dft_gemm import _apply as _apply_by_gemm
from spectralkernels.convolution.dft_gemm import _composed_apply_backward, prepare_frozen
from spectralkernels.convolution.dft_gemm import _conv as _conv_by_gemm
from spectralkernels.convolution.dft_native import build, composed, library
from spectralkernels.convolution.dft_native.folding import Fold, fold
from spectralkernels.convolution.dft_native.frozen import packed_modes
from spectralkernels.convolution.dft_native.library import Kept, Sizes
from spectralkernels.convolution.geometry import WeightSpectrum, compute_dtype, fits_matrices, needs_tensor
from spectralkernels.declare import Implementation, all_of
from spectralkernels.operators import operator
from spectralkernels.spectra import Band

LARGEST_LANE_WEIGHTS = 4 << 20
"""Bytes of the spectra of one block of kernels up to which groups lie in lanes: a core's cache, about."""


def dft_native(x: Tensor, weight: Tensor | WeightSpectrum, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """x [B, C, *size], weight [O, C / groups, *kernel] or its WeightSpectrum, bias [O] | None -> [B, O, *out].

    Raises: Unsupported with the compiler's last lines where the library does not compile.
    """
    if isinstance(weight, WeightSpectrum):
        return _apply(x, weight.modes, bias, weight.out_channels, groups, band.n, band.kept, band.out)
    # An even kernel with "same" padding has a zero more after it than before: see `folding`.
    front = [after - before for before, after in band.pad]
    keep = torch.is_grad_enabled() and weight.requires_grad
    y, _ = _conv(x, weight, bias, front, groups, band.n, band.kept, band.out, keep, None, ())
    return y


def masked(
    x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, weights: Tensor, reach: tuple[int, ...]
) -> Tensor:
    """The same under a mask: its weights [B or 1, F] at the modes of the band, none of which have a gradient.

    reach: rows |u| < reach[v] per column where weights differ from zero, or empty: everywhere.
    """
    front = [after - before for before, after in band.pad]
    keep = torch.is_grad_enabled() and weight.requires_grad
    y, _ = _conv(x, weight, bias, front, groups, band.n, band.kept, band.out, keep, weights, reach)
    return y


def groups_in_lanes(kept: Kept, sizes: Sizes, dtype: torch.dtype) -> bool:
    """Whether groups fill lanes better than the channels of one, and their kernels' spectra fit."""
    lanes = library.lanes(dtype)
    pairs = sizes.inputs * sizes.outputs
    wasted_groups, wasted_channels = (-(-count // lanes) * lanes / count for count in (sizes.groups, sizes.outputs))
    fits = 2 * kept.count * pairs * lanes * dtype.itemsize <= LARGEST_LANE_WEIGHTS
    return wasted_groups < wasted_channels and fits


# --- the operators --------------------------------------------------------------------------------------------------

Ints = Sequence[int]


@operator("dft_native_conv")
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    front: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    keep: bool,
    mask: Tensor | None,
    reach: Ints,
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and what `analyse` made of x if `keep` and no larger than x, else nothing.

    mask: weights [B or 1, F], zero in the holes that reach makes, see `Kept`.
    """
    band, sizes, dtype = Kept(tuple(n), tuple(kept), tuple(reach)), _sizes(x, weight, groups), compute_dtype(x.dtype)
    y, z = x.new_empty(x.shape[0], weight.shape[0], *out, dtype=dtype), x.new_empty(0, dtype=dtype)
    if x.shape[0] == 0:
        return y.to(x.dtype), z
    maps, kernel, offset = _plain(x), _plain(weight), None if bias is None else _plain(bias)
    of_x, of_weight = _fold(band, x.shape[2:], dtype), _kernel_fold(band, weight.shape[2:], front, dtype)
    of_y = _fold(band, out, dtype, synthesis=True, inverse=True)
    if groups_in_lanes(band, sizes, dtype):
        library.convolve_lanes(band, of_x, of_weight, of_y, sizes, maps, kernel, None, offset, y, mask)
    else:
        z = library.analyse(band, of_x, sizes, maps)
        library.convolve(band, of_weight, of_y, sizes, _taps(weight, groups), z, kernel, None, offset, y, mask)
    return y.to(x.dtype), z if keep and z.numel() <= x.numel() else z.new_empty(0)


@_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    front: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    keep: bool,
    mask: Tensor | None,
    reach: Ints,
) -> tuple[Tensor, Tensor]:
    band, sizes, dtype = Kept(tuple(n), tuple(kept)), _sizes(x, weight, groups), compute_dtype(x.dtype)
    numbers = 0
    if keep and x.shape[0] > 0 and not groups_in_lanes(band, sizes, dtype):
        numbers = library.spectrum_numbers(band.count, sizes, dtype)
    z = x.new_empty(numbers if numbers <= x.numel() else 0, dtype=dtype)
    return x.new_empty(x.shape[0], weight.shape[0], *out), z


@operator("dft_native_conv_backward")
def _conv_backward(
    dy: Tensor,
    x: Tensor | None,
    z: Tensor,
    weight: Tensor,
    front: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    size: Ints,
    need_x: bool,
    need_weight: bool,
    mask: Tensor | None,
    reach: Ints,
) -> tuple[Tensor, Tensor]:
    """(dx, dw); x is given where z is empty and dw wanted. A gradient that is not needed comes back empty."""
    band, dtype = Kept(tuple(n), tuple(kept), tuple(reach)), compute_dtype(dy.dtype)
    sizes = Sizes(dy.shape[0], groups, weight.shape[1], weight.shape[0] // groups)
    dx = dy.new_empty((dy.shape[0], groups * sizes.inputs, *size) if need_x else (0,), dtype=dtype)
    dw = weight.new_empty(weight.shape if need_weight else (0,), dtype=dtype)
    if dy.shape[0] == 0:
        return dx.to(dy.dtype), dw.zero_().to(weight.dtype)
    gradient, kernel, taps = _plain(dy), _plain(weight), weight.shape[2:]
    of_y = _fold(band, dy.shape[2:], dtype, inverse=True)
    to_x, to_weight = _fold(band, size, dtype, synthesis=True), _kernel_fold(band, taps, front, dtype, synthesis=True)
    if groups_in_lanes(band, sizes, dtype):
        of_x, of_weight = _fold(band, size, dtype), _kernel_fold(band, taps, front, dtype)
        maps = _plain(x) if need_weight and x is not None else None
        wanted = dx if need_x else None, dw if need_weight else None
        sides = (of_y, of_x, of_weight, to_x, to_weight)
        library.convolve_lanes_backward(band, sides, sizes, gradient, maps, kernel, None, *wanted, mask)
    else:
        turned = Sizes(dy.shape[0], groups, sizes.outputs, sizes.inputs)
        g = library.analyse(band, of_y, turned, gradient, mask)
        if need_x:
            of_weight = _kernel_fold(band, taps, front, dtype, conjugate=True)
            of_out, of_in, of_group = _taps(weight, groups)
            library.convolve(band, of_weight, to_x, turned, (of_in, of_out, of_group), g, kernel, None, None, dx)
        if need_weight:
            if x is not None:
                z = library.analyse(band, _fold(band, size, dtype), sizes, _plain(x))
            library.weight_gradient(band, to_weight, sizes, g, z, dw)
    return dx.to(dy.dtype), dw.to(weight.dtype)


@_conv_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor | None,
    z: Tensor,
    weight: Tensor,
    front: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    size: Ints,
    need_x: bool,
    need_weight: bool,
    mask: Tensor | None,
    reach: Ints,
) -> tuple[Tensor, Tensor]:
    dx_shape = (dy.shape[0], weight.shape[1] * groups, *size) if need_x else (0,)
    return dy.new_empty(dx_shape), weight.new_empty(weight.shape if need_weight else (0,))


@_conv.register_composed
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    front: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    keep: bool,
    mask: Tensor | None,
    reach: Ints,
) -> tuple[Tensor, Tensor]:
    starts = composed.starts_of(x.shape[2:], weight.shape[2:], list(front), list(out))
    if mask is not None:
        y = composed.masked(x, weight, bias, starts, groups, n, kept, out, mask)
        return y, y.new_empty(0)
    y = _conv_by_gemm(x, weight, bias, starts, groups, n, kept, out)[0]
    return y, y.new_empty(0)


def _save_conv(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, front, groups, n, kept, out, _, mask, reach = inputs
    # Z is a second output, so that a second derivative finds its way from Z to x.
    ctx.set_materialize_grads(False)
    again = output[1].numel() == 0 and ctx.needs_input_grad[1]
    ctx.save_for_backward(x if again else None, output[1], weight, mask)
    ctx.geometry = (front, groups, n, kept, list(x.shape[2:]))
    ctx.batch, ctx.out, ctx.reach = x.shape[0], out, reach


def _differentiate_conv(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    if dz is not None and dz.numel() == 0:
        dz = None
    if dy is None or dz is not None or torch.is_grad_enabled():
        return *composed.gradients(ctx, dy, dz), *(None,) * 8
    dx, dw = None, None
    if need_x or need_weight:
        *tensors, mask = ctx.saved_tensors
        dx, dw = _conv_backward(dy, *tensors, *ctx.geometry, need_x, need_weight, mask, ctx.reach)
    gradients = (dx if need_x else None, dw if need_weight else None, _bias_gradient(dy) if need_bias else None)
    return *gradients, *(None,) * 8


_conv.register_autograd(_differentiate_conv, setup_context=_save_conv)


@operator("dft_native_apply")
def _apply(
    x: Tensor, w: Tensor, bias: Tensor | None, out_channels: int, groups: int, n: Ints, kept: Ints, out: Ints
) -> Tensor:
    """The convolution with the modes of a frozen weight, repacked once."""
    band, dtype = Kept(tuple(n), tuple(kept)), compute_dtype(x.dtype)
    sizes = Sizes(x.shape[0], groups, x.shape[1] // groups, out_channels // groups)
    y = x.new_empty(x.shape[0], out_channels, *out, dtype=dtype)
    if x.shape[0] == 0:
        return y.to(x.dtype)
    in_lanes = groups_in_lanes(band, sizes, dtype)
    packed = packed_modes(w, band, sizes, _centre(x.shape[2:], out), in_lanes, transposed=False)
    of_x, of_y = _fold(band, x.shape[2:], dtype), _fold(band, out, dtype, synthesis=True, inverse=True)
    offset, maps = None if bias is None else _plain(bias), _plain(x)
    if in_lanes:
        library.convolve_lanes(band, of_x, of_x, of_y, sizes, maps, None, packed, offset, y)
    else:
        z = library.analyse(band, of_x, sizes, maps)
        library.convolve(band, of_x, of_y, sizes, (0, 0, 0), z, None, packed, offset, y)
    return y.to(x.dtype)


@_apply.register_fake
def _(
    x: Tensor, w: Tensor, bias: Tensor | None, out_channels: int, groups: int, n: Ints, kept: Ints, out: Ints
) -> Tensor:
    return x.new_empty((x.shape[0], out_channels, *out))


@operator("dft_native_apply_backward")
def _apply_backward(dy: Tensor, w: Tensor, channels: int, groups: int, n: Ints, kept: Ints, size: Ints) -> Tensor:
    band, dtype = Kept(tuple(n), tuple(kept)), compute_dtype(dy.dtype)
    sizes = Sizes(dy.shape[0], groups, channels // groups, dy.shape[1] // groups)
    dx = dy.new_empty(dy.shape[0], channels, *size, dtype=dtype)
    if dy.shape[0] == 0:
        return dx.to(dy.dtype)
    in_lanes = groups_in_lanes(band, sizes, dtype)
    packed = packed_modes(w, band, sizes, _centre(size, dy.shape[2:]), in_lanes, transposed=True)
    of_y, to_x = _fold(band, dy.shape[2:], dtype, inverse=True), _fold(band, size, dtype, synthesis=True)
    gradient = _plain(dy)
    if in_lanes:
        sides = (of_y, to_x, of_y, to_x, to_x)
        library.convolve_lanes_backward(band, sides, sizes, gradient, None, None, packed, dx, None)
    else:
        turned = Sizes(dy.shape[0], groups, sizes.outputs, sizes.inputs)
        g = library.analyse(band, of_y, turned, gradient)
        library.convolve(band, of_y, to_x, turned, (0, 0, 0), g, None, packed, None, dx)
    return dx.to(dy.dtype)


@_apply_backward.register_fake
def _(dy: Tensor, w: Tensor, channels: int, groups: int, n: Ints, kept: Ints, size: Ints) -> Tensor:
    return dy.new_empty((dy.shape[0], channels, *size))


@_apply.register_composed
def _(
    x: Tensor, w: Tensor, bias: Tensor | None, out_channels: int, groups: int, n: Ints, kept: Ints, out: Ints
) -> Tensor:
    y: Tensor = _apply_by_gemm(x, w, bias, out_channels, groups, n, kept, out)
    return y


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, _, groups, n, kept, _ = inputs
    ctx.save_for_backward(w)
    ctx.geometry = (x.shape[1], groups, n, kept, list(x.shape[2:]))


def _differentiate_apply(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        return _composed_apply_backward(ctx, dy)
    dx = _apply_backward(dy, *ctx.saved_tensors, *ctx.geometry) if ctx.needs_input_grad[0] else None
    return dx, None, _bias_gradient(dy) if ctx.needs_input_grad[2] else None, None, None, None, None, None


_apply.register_autograd(_differentiate_apply, setup_context=_save_apply)


# --- what they cost, padding of lanes aside -------------------------------------------------------------------------

_conv.register_flops(
    lambda x, weight, bias, front, groups, n, kept, out, keep: flops.forward(
        x, weight, weight.shape[0], out, groups, flops.by_folds(n, kept)
    )
)
_apply.register_flops(
    lambda x, w, bias, out_channels, groups, n, kept, out: flops.forward(
        x, None, out_channels, out, groups, flops.by_folds(n, kept)
    )
)
_apply_backward.register_flops(
    lambda dy, w, channels, groups, n, kept, size: flops.backward(
        dy, None, channels, size, groups, flops.by_folds(n, kept)
    )
)
_conv_backward.register_flops(
    lambda dy, x, z, weight, front, groups, n, kept, size, *needs: flops.backward(
        dy, weight, weight.shape[1] * groups, size, groups, flops.by_folds(n, kept), *needs, x_again=x is not None
    )
)


# --- what the library is given --------------------------------------------------------------------------------------


def _sizes(x: Tensor, weight: Tensor, groups: int) -> Sizes:
    return Sizes(x.shape[0], groups, weight.shape[1], weight.shape[0] // groups)


def _taps(weight: Tensor, groups: int) -> tuple[int, int, int]:
    """Numbers between neighbours in (out channel, in channel, group)."""
    taps = weight[0, 0].numel()
    return weight.shape[1] * taps, taps, weight.shape[0] * weight.shape[1] * taps // groups


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous, in the dtype of the computation."""
    return tensor.to(compute_dtype(tensor.dtype)).contiguous()


def _fold(band: Kept, lengths: Ints, dtype: torch.dtype, **how: bool) -> Fold:
    return fold(band.n, band.kept, tuple(lengths), (0,) * len(band.n), dtype, library.panel(), **how)


def _kernel_fold(band: Kept, taps: Ints, front: Ints, dtype: torch.dtype, **how: bool) -> Fold:
    lengths = tuple(length + zeros for length, zeros in zip(taps, front, strict=True))
    return fold(band.n, band.kept, lengths, tuple(front), dtype, library.panel(), **how)


def _centre(size: Ints, out: Ints) -> tuple[int, ...]:
    """Twice the centre of the kernel, which those of x and y determine."""
    return tuple(have - made for have, made in zip(size, out, strict=True))


def _bias_gradient(dy: Tensor) -> Tensor:
    return dy.sum([axis for axis in range(dy.dim()) if axis != 1])


# --- declaration ----------------------------------------------------------------------------------------------------


def _needs_spectrum(weight: Tensor | WeightSpectrum, **rest: Any) -> str | None:
    if isinstance(weight, WeightSpectrum):
        return None
    return "it takes a frozen weight; pass weight_spectrum(weight, ...) instead of the weight"


IMPLEMENTATIONS = (
    Implementation(
        "dft_native",
        "kernel",
        dft_native,
        "folded truncated DFT in C++, compiled at first use",
        engine="native",
        available=build.unavailable,
        supports=all_of(needs_tensor, fits_matrices),
    ),
    Implementation(
        "dft_native_frozen",
        "kernel",
        dft_native,
        "the same with the weight transformed once, outside the clock",
        engine="native",
        available=build.unavailable,
        supports=all_of(_needs_spectrum, fits_matrices),
        prepare=prepare_frozen,
        frozen=True,
        gradients=("x", "bias"),
    ),
)
