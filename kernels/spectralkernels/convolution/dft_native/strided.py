"""`dft_native` with a stride, a dilation or padding of any kind: the same folded transforms, samples further apart.

Seen from the centre of its samples, a map that is asked for at 0, s, 2 s, ... is as symmetric as a whole one, and so is
a kernel with its taps d apart: the angles are s or d times as large, and a transform onto 1 / s of the samples takes
1 / s of the work of its stage. In `folding`'s terms the centres must agree, 2 c_x - 2 c_w = 2 c_y with

    2 c_x = H - 1 - zeros_x,    2 c_w = -2 pad - d zeros_w + d (K - 1),    2 c_y = s (M - 1)

for M wanted samples; zeros in front of the map, and of the kernel where those would be too many, see to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution import flops
from spectralkernels.convolution.composed import modes_of
from spectralkernels.convolution.dft_native import library, operators
from spectralkernels.convolution.dft_native.composed import modes_of_spectrum
from spectralkernels.convolution.dft_native.folding import Fold, fold
from spectralkernels.convolution.dft_native.library import Kept, Sizes
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.convolution.strided import _composed_backward, _transforms, strided_sides
from spectralkernels.convolution.strided import _conv as _conv_by_gemm
from spectralkernels.operators import operator
from spectralkernels.spectra import Band

Ints = Sequence[int]


def strided_dft_native(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """x [B, C, *size], weight [O, C / groups, *kernel], bias [O] | None -> [B, O, *strided_sides(band.out, stride)].

    Raises: Unsupported with the compiler's last lines where the library does not compile.
    """
    starts = [-before for before, _ in band.pad]
    keep = torch.is_grad_enabled() and weight.requires_grad
    out = strided_sides(band.out, stride)
    y, _ = _conv(x, weight, bias, starts, groups, band.n, band.kept, out, stride, dilation, keep)
    return y


@dataclass(frozen=True, slots=True)
class _Ends:
    """The ends of the transforms of one call: maps, kernel and answer."""

    band: Kept
    dtype: torch.dtype
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    out: tuple[int, ...]
    zeros: tuple[tuple[int, int], ...]  # in front of the map and of the kernel
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    def x(self, **how: bool) -> Fold:
        front = tuple(zeros for zeros, _ in self.zeros)
        return self._fold(self.size, front, None, **how)

    def weight(self, **how: bool) -> Fold:
        return self._fold(self.kernel, tuple(zeros for _, zeros in self.zeros), self.dilation, **how)

    def y(self, **how: bool) -> Fold:
        return self._fold(self.out, (0,) * len(self.out), self.stride, inverse=True, **how)

    def _fold(
        self, stored: tuple[int, ...], front: tuple[int, ...], spacing: tuple[int, ...] | None, **how: bool
    ) -> Fold:
        lengths = tuple(length + zeros for length, zeros in zip(stored, front, strict=True))
        n, kept = self.band.n, self.band.kept
        return fold(n, kept, lengths, front, self.dtype, library.panel(), spacing, **how)


def _ends(
    like: Tensor, size: Ints, kernel: Ints, out: Ints, starts: Ints, n: Ints, kept: Ints, stride: Ints, dilation: Ints
) -> _Ends:
    zeros = []
    for have, taps, made, start, step, apart in zip(size, kernel, out, starts, stride, dilation, strict=True):
        missing = have - 1 - 2 * start - apart * (taps - 1) - step * (made - 1)
        of_kernel = max(0, -(missing // apart))
        zeros.append((missing + of_kernel * apart, of_kernel))
    band, dtype = Kept(tuple(n), tuple(kept)), compute_dtype(like.dtype)
    return _Ends(band, dtype, tuple(size), tuple(kernel), tuple(out), tuple(zeros), tuple(stride), tuple(dilation))


@operator("strided_dft_native_conv")
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
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """(y, Z) as of `dft_native_conv`."""
    ends = _ends(x, x.shape[2:], weight.shape[2:], out, starts, n, kept, stride, dilation)
    sizes = operators.sizes_of(x, weight, groups)
    y, z = x.new_empty(x.shape[0], weight.shape[0], *out, dtype=ends.dtype), x.new_empty(0, dtype=ends.dtype)
    if x.shape[0] == 0:
        return y.to(x.dtype), z
    maps, kernel, offset = (None if each is None else operators.plain(each) for each in (x, weight, bias))
    assert maps is not None and kernel is not None
    of_x, of_weight, of_y = ends.x(), ends.weight(), ends.y(synthesis=True)
    if operators.groups_in_lanes(ends.band, sizes, ends.dtype):
        library.convolve_lanes(ends.band, of_x, of_weight, of_y, sizes, maps, kernel, None, offset, y)
    else:
        z = library.analyse(ends.band, of_x, sizes, maps)
        taps = operators.taps_of(weight, groups)
        library.convolve(ends.band, of_weight, of_y, sizes, taps, z, kernel, None, offset, y)
    return y.to(x.dtype), z if keep and z.numel() <= x.numel() else z.new_empty(0)


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
    dilation: Ints,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    band, sizes, dtype = Kept(tuple(n), tuple(kept)), operators.sizes_of(x, weight, groups), compute_dtype(x.dtype)
    numbers = 0
    if keep and x.shape[0] > 0 and not operators.groups_in_lanes(band, sizes, dtype):
        numbers = library.spectrum_numbers(band.count, sizes, dtype)
    z = x.new_empty(numbers if numbers <= x.numel() else 0, dtype=dtype)
    return x.new_empty(x.shape[0], weight.shape[0], *out), z


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
    keep: bool,
) -> tuple[Tensor, Tensor]:
    y: Tensor = _conv_by_gemm(x, weight, bias, starts, groups, n, kept, out, stride, dilation)[0]
    return y, y.new_empty(0)


@operator("strided_dft_native_conv_backward")
def _conv_backward(
    dy: Tensor,
    x: Tensor | None,
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
    """(dx, dw) as of `dft_native_conv_backward`."""
    ends = _ends(dy, size, weight.shape[2:], dy.shape[2:], starts, n, kept, stride, dilation)
    band, dtype = ends.band, ends.dtype
    sizes = Sizes(dy.shape[0], groups, weight.shape[1], weight.shape[0] // groups)
    dx = dy.new_empty((dy.shape[0], groups * sizes.inputs, *size) if need_x else (0,), dtype=dtype)
    dw = weight.new_empty(weight.shape if need_weight else (0,), dtype=dtype)
    if dy.shape[0] == 0:
        return dx.to(dy.dtype), dw.zero_().to(weight.dtype)
    gradient, kernel = operators.plain(dy), operators.plain(weight)
    if operators.groups_in_lanes(band, sizes, dtype):
        maps = operators.plain(x) if need_weight and x is not None else None
        wanted = dx if need_x else None, dw if need_weight else None
        sides = (ends.y(), ends.x(), ends.weight(), ends.x(synthesis=True), ends.weight(synthesis=True))
        library.convolve_lanes_backward(band, sides, sizes, gradient, maps, kernel, None, *wanted)
    else:
        turned = Sizes(dy.shape[0], groups, sizes.outputs, sizes.inputs)
        g = library.analyse(band, ends.y(), turned, gradient)
        if need_x:
            of_out, of_in, of_group = operators.taps_of(weight, groups)
            taps, of_weight = (of_in, of_out, of_group), ends.weight(conjugate=True)
            library.convolve(band, of_weight, ends.x(synthesis=True), turned, taps, g, kernel, None, None, dx)
        if need_weight:
            if x is not None:
                z = library.analyse(band, ends.x(), sizes, operators.plain(x))
            library.weight_gradient(band, ends.weight(synthesis=True), sizes, g, z, dw)
    return dx.to(dy.dtype), dw.to(weight.dtype)


@_conv_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor | None,
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
    dx_shape = (dy.shape[0], weight.shape[1] * groups, *size) if need_x else (0,)
    return dy.new_empty(dx_shape), weight.new_empty(weight.shape if need_weight else (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, starts, groups, n, kept, _, stride, dilation, _ = inputs
    # Z is a second output, so that a second derivative finds its way from Z to x.
    ctx.set_materialize_grads(False)
    again = output[1].numel() == 0 and ctx.needs_input_grad[1]
    ctx.save_for_backward(x if again else None, output[1], weight)
    ctx.geometry = (list(x.shape[2:]), starts, groups, n, kept, stride, dilation)
    ctx.batch, ctx.out = x.shape[0], list(output[0].shape[2:])


def _differentiate(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    if dz is not None and dz.numel() == 0:
        dz = None
    if dy is None or dz is not None or torch.is_grad_enabled():
        return *_composed_gradients(ctx, dy, dz), *(None,) * 8
    dx, dw = None, None
    if need_x or need_weight:
        dx, dw = _conv_backward(dy, *ctx.saved_tensors, *ctx.geometry, need_x, need_weight)
    db = dy.sum([0, *range(2, dy.dim())]) if need_bias else None
    return (dx if need_x else None, dw if need_weight else None, db, *(None,) * 8)


def _composed_gradients(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    """(dx, dw, db) as torch's own operations, as in `composed.gradients`; dz is the gradient of the saved spectrum."""
    (x, z, weight), (size, starts, groups, n, kept, stride, dilation) = ctx.saved_tensors, ctx.geometry
    sizes = Sizes(ctx.batch, groups, weight.shape[1], weight.shape[0] // groups)
    ends = _ends(weight, size, weight.shape[2:], ctx.out, starts, n, kept, stride, dilation)
    about = tuple(have - zeros for have, (zeros, _) in zip(size, ends.zeros, strict=True))  # zeros shift the centre
    if x is not None:
        modes = modes_of(x, _transforms(x, size, starts, weight.shape[2:], n, kept, ctx.out, stride, dilation)[0])
    elif z.numel() > 0:
        modes = modes_of_spectrum(z, ends.band, sizes, about)
    else:  # the weight is frozen, and only sizes are asked of Z
        modes = z.new_empty(ends.band.count, 2, ctx.batch * groups * sizes.inputs)
    as_gemm = SimpleNamespace(
        saved_tensors=(modes, weight), geometry=ctx.geometry, needs_input_grad=ctx.needs_input_grad, batch=ctx.batch
    )
    return _composed_backward(as_gemm, dy, None if dz is None else modes_of_spectrum(dz, ends.band, sizes, about))


_conv.register_autograd(_differentiate, setup_context=_save)
_conv.register_flops(
    lambda x, weight, bias, starts, groups, n, kept, out, stride, dilation, keep: flops.forward(
        x, weight, weight.shape[0], out, groups, flops.by_folds(n, kept)
    )
)
_conv_backward.register_flops(
    lambda dy, x, z, weight, size, starts, groups, n, kept, stride, dilation, *needs: flops.backward(
        dy, weight, weight.shape[1] * groups, size, groups, flops.by_folds(n, kept), *needs, x_again=x is not None
    )
)
