"""Band-limited convolution as matrix products over the kept modes only (one custom operator, exact backward).

    Z = D_x x        [V, U, 2, B C]     two small matrix products (dft.TruncatedDFT.analyse)
    W = D_w w        [V, U, 2, O C]     the same for the kernel
    Y = Z conj(W)    [V, U, 2, B O]     one product of [2 B, C] with [C, 2 O] per mode, four real parts at once
    y = E Y          [B, O, H, W]       two small matrix products (TruncatedDFT.synthesise)

FLOPs per plane for N ~ H, k kept of each side: 4 H W k + 8 H k (2k - 1), and 8 B C O F for the F modes: no transform of
a zero, no coefficient that is dropped later. Backward applies the transposed maps and saves Z (8 F bytes a plane in
float32, 0.54 of x at c = 0.5 on 32x32) and the weight, whose transform it redoes (cheaper than keeping O C F modes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution.geometry import WeightSpectrum, compute_dtype
from spectralkernels.convolution.modal import correlate, multiply, multiply_transposed
from spectralkernels.dft import TruncatedDFT, truncated_dft
from spectralkernels.spectra import Band


def dft_gemm(x: Tensor, weight: Tensor | WeightSpectrum, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """x [B, C, *size], weight [O, C / groups, *kernel] or its WeightSpectrum, bias [O] | None -> [B, O, *out]."""
    if isinstance(weight, WeightSpectrum):
        return _apply(x, weight.modes, bias, weight.out_channels, groups, band.n, band.kept, band.out)
    starts = [-before for before, _ in band.pad]
    y, _ = _conv(x, weight, bias, starts, groups, band.n, band.kept, band.out)
    return y


def freeze_weight(weight: Tensor, band: Band, groups: int) -> WeightSpectrum:
    """Transform a weight [O, C / groups, *kernel] for repeated use with frozen values."""
    starts = [-before for before, _ in band.pad]
    with torch.no_grad():
        modes = _analyse(weight, starts, band.n, band.kept)
    return WeightSpectrum(modes, band, weight.shape[0], weight.shape[1], groups)


def prepare_frozen(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> dict[str, Any]:
    """The inputs of `dft_gemm` with the weight transformed outside the clock."""
    return {"x": x, "weight": freeze_weight(weight, band, groups), "bias": bias, "band": band, "groups": groups}


# --- the operators --------------------------------------------------------------------------------------------------

Ints = Sequence[int]


@torch.library.custom_op("spectralkernels::dft_gemm_conv", mutates_args=())
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Ints, groups: int, n: Ints, kept: Ints, out: Ints
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and the kept spectrum of x that backward reuses."""
    z = _analyse(x, _origin(n), n, kept)
    w = _analyse(weight, starts, n, kept)
    return _convolve(x, z, w, bias, weight.shape[0], groups, n, kept, out), z


@_conv.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Ints, groups: int, n: Ints, kept: Ints, out: Ints
) -> tuple[Tensor, Tensor]:
    rows = min(2 * kept[0] - 1, n[0]) if len(n) == 2 else 1
    z = x.new_empty((kept[-1], rows, 2, x.shape[0] * x.shape[1]), dtype=compute_dtype(x.dtype))
    return x.new_empty((x.shape[0], weight.shape[0], *out)), z


@torch.library.custom_op("spectralkernels::dft_gemm_conv_backward", mutates_args=())
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
    g = _analyse(dy, _origin(n), n, kept, inverse=True)
    dx, dw = dy.new_empty(0), weight.new_empty(0)
    if need_x:
        w = _analyse(weight, starts, n, kept)
        dx = _transposed(dy, g, w, weight.shape[1] * groups, groups, n, kept, size)
    if need_weight:
        batch, channels = dy.shape[0], weight.shape[1] * groups
        modes = correlate(_planes(g, batch, dy.shape[1]), _planes(z, batch, channels), groups)
        dw = _synthesise(modes, starts, weight.shape[2:], n, kept).to(weight.dtype)
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
    size: Ints,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    dx_shape = (dy.shape[0], weight.shape[1] * groups, *size) if need_x else (0,)
    return dy.new_empty(dx_shape), weight.new_empty(weight.shape if need_weight else (0,))


def _save_conv(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, starts, groups, n, kept, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], weight)
    ctx.geometry = (starts, groups, n, kept, list(x.shape[2:]))


def _differentiate_conv(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx, dw = _conv_backward(dy, *ctx.saved_tensors, *ctx.geometry, need_x, need_weight)
    gradients = (dx if need_x else None, dw if need_weight else None, _bias_gradient(dy) if need_bias else None)
    return (*gradients, None, None, None, None, None)


_conv.register_autograd(_differentiate_conv, setup_context=_save_conv)


@torch.library.custom_op("spectralkernels::dft_gemm_apply", mutates_args=())
def _apply(
    x: Tensor, w: Tensor, bias: Tensor | None, out_channels: int, groups: int, n: Ints, kept: Ints, out: Ints
) -> Tensor:
    """The convolution with the modes of a frozen weight."""
    return _convolve(x, _analyse(x, _origin(n), n, kept), w, bias, out_channels, groups, n, kept, out)


@_apply.register_fake
def _(
    x: Tensor, w: Tensor, bias: Tensor | None, out_channels: int, groups: int, n: Ints, kept: Ints, out: Ints
) -> Tensor:
    return x.new_empty((x.shape[0], out_channels, *out))


@torch.library.custom_op("spectralkernels::dft_gemm_apply_backward", mutates_args=())
def _apply_backward(dy: Tensor, w: Tensor, channels: int, groups: int, n: Ints, kept: Ints, size: Ints) -> Tensor:
    return _transposed(dy, _analyse(dy, _origin(n), n, kept, inverse=True), w, channels, groups, n, kept, size)


@_apply_backward.register_fake
def _(dy: Tensor, w: Tensor, channels: int, groups: int, n: Ints, kept: Ints, size: Ints) -> Tensor:
    return dy.new_empty((dy.shape[0], channels, *size))


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, _, groups, n, kept, _ = inputs
    ctx.save_for_backward(w)
    ctx.geometry = (x.shape[1], groups, n, kept, list(x.shape[2:]))


def _differentiate_apply(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx = _apply_backward(dy, *ctx.saved_tensors, *ctx.geometry) if ctx.needs_input_grad[0] else None
    return dx, None, _bias_gradient(dy) if ctx.needs_input_grad[2] else None, None, None, None, None, None


_apply.register_autograd(_differentiate_apply, setup_context=_save_apply)


# --- the linear maps ------------------------------------------------------------------------------------------------


def _convolve(
    x: Tensor,
    z: Tensor,
    w: Tensor,
    bias: Tensor | None,
    out_channels: int,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
) -> Tensor:
    """y = E (z conj(w)) + b, in the dtype of x."""
    batch, channels = x.shape[:2]
    modes = multiply(_planes(z, batch, channels), _planes(w, out_channels, channels // groups), groups)
    return _synthesise(modes, _origin(n), out, n, kept, inverse=True, bias=bias).to(x.dtype)


def _bias_gradient(dy: Tensor) -> Tensor:
    return dy.sum([axis for axis in range(dy.dim()) if axis != 1])


def _transposed(
    dy: Tensor, g: Tensor, w: Tensor, channels: int, groups: int, n: Ints, kept: Ints, size: Ints
) -> Tensor:
    """dx, from g, the modes of dy."""
    batch, out_channels = dy.shape[:2]
    modes = multiply_transposed(_planes(g, batch, out_channels), _planes(w, out_channels, channels // groups), groups)
    return _synthesise(modes, _origin(n), size, n, kept).to(dy.dtype)


def _analyse(maps: Tensor, starts: Ints, n: Ints, kept: Ints, inverse: bool = False) -> Tensor:
    """Maps [A, B, *size] -> modes [V, U, 2, A * B]."""
    transform = _transform(maps, starts, maps.shape[2:], n, kept, inverse)
    height = maps.shape[2] if maps.dim() == 4 else 1
    planes = maps.to(compute_dtype(maps.dtype)).reshape(maps.shape[0] * maps.shape[1], height, maps.shape[-1])
    return transform.analyse(planes)


def _synthesise(
    modes: Tensor,
    starts: Ints,
    lengths: Ints,
    n: Ints,
    kept: Ints,
    inverse: bool = False,
    bias: Tensor | None = None,
) -> Tensor:
    """Modes [F, 2, A, B] -> maps [A, B, *lengths] + bias [B], contiguous."""
    transform = _transform(modes, starts, lengths, n, kept, inverse)
    count, _, a, b = modes.shape
    planes = transform.synthesise(modes.view(kept[-1], count // kept[-1], 2, a * b)).unflatten(0, (a, b))
    maps = planes if len(lengths) == 2 else planes.squeeze(2)
    if bias is None:
        return maps.contiguous()
    # The sum brings the planes into order on its way, so that it costs no pass of its own.
    return torch.add(maps, bias.to(maps.dtype).view(-1, *(1 for _ in lengths)), out=maps.new_empty(maps.shape))


def _transform(like: Tensor, starts: Ints, lengths: Ints, n: Ints, kept: Ints, inverse: bool) -> TruncatedDFT:
    dtype = compute_dtype(like.dtype)
    return truncated_dft(tuple(n), tuple(kept), tuple(starts), tuple(lengths), inverse, dtype, like.device)


def _planes(modes: Tensor, a: int, b: int) -> Tensor:
    """[V, U, 2, A * B] -> [F, 2, A, B], a view."""
    return modes.view(modes.shape[0] * modes.shape[1], 2, a, b)


def _origin(n: Ints) -> list[int]:
    return [0] * len(n)
