"""Masked convolution as matrix products over the listed modes only (one custom operator, exact backward).

    Z = D x,  W = D w,  P = Z conj(W)        [F, 2, B, O], D the truncated DFT of the mode list
    y = E (m P)                              m one weight per mode, or per mode and sample

    dm_f = sum Re(conj(E^T dy) P),  dP = m E^T dy,  dZ = dP W,  dW = conj(dP) Z

Backward saves Z, the weight and the mask; it redoes the transform of the weight, and P where the mask has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.convolution.modal import correlate, multiply, multiply_transposed
from spectralkernels.dft import ListedDFT, SteppedDFT, listed_dft, stepped_dft
from spectralkernels.masks.modes import ModeList
from spectralkernels.spectra import Band

Ints = Sequence[int]


def dft_gemm(x: Tensor, weight: Tensor, mask: Tensor, band: Band, modes: ModeList, groups: int) -> Tensor:
    """x [B, C, H, W], weight [O, C / groups, K_h, K_w], mask [N_h, N_w // 2 + 1] or [B, 1, ...] -> [B, O, *out]."""
    listed = bool(modes.cells)
    layout = [number for pair in (modes.cells or modes.steps) for number in pair]
    starts = [-before for before, _ in band.pad]
    y, _ = _conv(x, weight, mask, starts, groups, band.n, layout, listed, band.out)
    return y


@lru_cache(maxsize=64)
def flat_indices(modes: ModeList, device: torch.device) -> Tensor:
    """Where the listed modes lie in a flattened half spectrum, Int64 [F]."""
    columns = modes.n[1] // 2 + 1
    return torch.tensor([u * columns + v for u, v in modes.indices], device=device)


@torch.library.custom_op("spectralkernels::masked_conv2d", mutates_args=())
def _conv(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    starts: Ints,
    groups: int,
    n: Ints,
    layout: Ints,
    listed: bool,
    out: Ints,
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and the listed spectrum of x that backward reuses."""
    modes = _mode_list(n, layout, listed)
    z = _analyse(x, (0, 0), modes)
    product = _product(z, weight, starts, groups, modes, x.shape[0])
    product *= _values(mask, modes, product)
    return _synthesise(product, (0, 0), out, modes, inverse=True).to(x.dtype), z


@_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    starts: Ints,
    groups: int,
    n: Ints,
    layout: Ints,
    listed: bool,
    out: Ints,
) -> tuple[Tensor, Tensor]:
    modes = len(_mode_list(n, layout, listed))
    z = x.new_empty((modes, 2, x.shape[0] * x.shape[1]), dtype=compute_dtype(x.dtype))
    return x.new_empty((x.shape[0], weight.shape[0], *out)), z


@torch.library.custom_op("spectralkernels::masked_conv2d_backward", mutates_args=())
def _conv_backward(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    mask: Tensor,
    starts: Ints,
    groups: int,
    n: Ints,
    layout: Ints,
    listed: bool,
    size: Ints,
    need: Ints,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dw, dmask): the transposed maps; `need` says which, and a gradient that is not needed comes back empty."""
    need_x, need_weight, need_mask = need
    modes = _mode_list(n, layout, listed)
    batch, out_channels = dy.shape[:2]
    channels = weight.shape[1] * groups
    dx, dw, dmask = dy.new_empty(0), weight.new_empty(0), mask.new_empty(0)
    g = _analyse(dy, (0, 0), modes, inverse=True).view(len(modes), 2, batch, out_channels)
    if need_mask:
        cells = _product(z, weight, starts, groups, modes, batch).mul_(g).sum(dim=(1, 3)).t()  # [B, F]
        dmask = _scatter(cells, mask, modes)
    g *= _values(mask, modes, g)
    if need_x:
        w = _analyse(weight, starts, modes).view(len(modes), 2, out_channels, weight.shape[1])
        dx = _synthesise(multiply_transposed(g, w, groups), (0, 0), size, modes).to(dy.dtype)
    if need_weight:
        dw_modes = correlate(g, z.view(len(modes), 2, batch, channels), groups)
        dw = _synthesise(dw_modes, starts, weight.shape[2:], modes).to(weight.dtype)
    return dx, dw, dmask


@_conv_backward.register_fake
def _(
    dy: Tensor,
    z: Tensor,
    weight: Tensor,
    mask: Tensor,
    starts: Ints,
    groups: int,
    n: Ints,
    layout: Ints,
    listed: bool,
    size: Ints,
    need: Ints,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = dy.new_empty((dy.shape[0], weight.shape[1] * groups, *size) if need[0] else (0,))
    dw = weight.new_empty(weight.shape if need[1] else (0,))
    return dx, dw, mask.new_empty(mask.shape if need[2] else (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, mask, starts, groups, n, layout, listed, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], weight, mask)
    ctx.geometry = (starts, groups, n, layout, listed, list(x.shape[2:]))


def _differentiate(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    need = [int(each) for each in ctx.needs_input_grad[:3]]
    dx, dw, dmask = _conv_backward(dy, *ctx.saved_tensors, *ctx.geometry, need)
    gradients = (dx if need[0] else None, dw if need[1] else None, dmask if need[2] else None)
    return *gradients, None, None, None, None, None, None


_conv.register_autograd(_differentiate, setup_context=_save)


# --- the linear maps ------------------------------------------------------------------------------------------------


def _mode_list(n: Ints, layout: Ints, listed: bool) -> ModeList:
    pairs = tuple(zip(layout[::2], layout[1::2], strict=True))
    return ModeList((n[0], n[1]), cells=pairs) if listed else ModeList((n[0], n[1]), steps=pairs)


def _values(mask: Tensor, modes: ModeList, like: Tensor) -> Tensor:
    """The mask at the listed modes, to broadcast over [F, 2, B, O]."""
    values = mask.reshape(-1, mask.shape[-2] * mask.shape[-1])[:, flat_indices(modes, mask.device)]  # [1 or B, F]
    return values.t().to(like.dtype)[:, None, :, None]


def _scatter(cells: Tensor, mask: Tensor, modes: ModeList) -> Tensor:
    """Gradients [B, F] at the listed modes -> a gradient of the shape of the mask, zero elsewhere."""
    if mask.dim() == 2:
        cells = cells.sum(0, keepdim=True)
    flat = mask.new_zeros(cells.shape[0], mask.shape[-2] * mask.shape[-1])
    flat[:, flat_indices(modes, mask.device)] = cells.to(mask.dtype)
    return flat.view(mask.shape)


def _product(z: Tensor, weight: Tensor, starts: Ints, groups: int, modes: ModeList, batch: int) -> Tensor:
    """P = Z conj(W), a tensor of its own: [F, 2, B, O]."""
    w = _analyse(weight, starts, modes).view(len(modes), 2, *weight.shape[:2])
    return multiply(z.view(len(modes), 2, batch, weight.shape[1] * groups), w, groups)


def _analyse(maps: Tensor, starts: Ints, modes: ModeList, inverse: bool = False) -> Tensor:
    """Maps [A, B, height, width] -> modes [F, 2, A * B]."""
    planes = maps.to(compute_dtype(maps.dtype)).reshape(maps.shape[0] * maps.shape[1], *maps.shape[2:])
    return _transform(maps, starts, maps.shape[2:], modes, inverse).analyse(planes)


def _synthesise(modal: Tensor, starts: Ints, lengths: Ints, modes: ModeList, inverse: bool = False) -> Tensor:
    """Modes [F, 2, A, B] -> maps [A, B, *lengths], contiguous."""
    count, _, a, b = modal.shape
    planes = _transform(modal, starts, lengths, modes, inverse).synthesise(modal.view(count, 2, a * b))
    return planes.reshape(a, b, *lengths).contiguous()


def _transform(like: Tensor, starts: Ints, lengths: Ints, modes: ModeList, inverse: bool) -> SteppedDFT | ListedDFT:
    where = ((starts[0], starts[1]), (lengths[0], lengths[1]), inverse, compute_dtype(like.dtype), like.device)
    if modes.cells:
        return listed_dft(modes.n, modes.cells, *where)
    return stepped_dft(modes.n, modes.steps, *where)
