"""The operators of `operators` as chains of torch's own operations: for forward mode, transforms of torch.func, and
derivatives of the backward pass.

The chains compute in float32 whatever the accuracy class, on the device of the maps; no kernel of ours is launched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spectralkernels.convolution import composed
from spectralkernels.convolution.dft_triton.layout import Layout, cells_of
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.convolution.linear_maps import Transform
from spectralkernels.dft import listed_dft, stepped_dft

Ints = Sequence[int]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    starts: Ints | None,
    out_channels: int,
    groups: int,
    layout: Layout,
    out: Ints,
    relu: bool,
) -> Tensor:
    """y; weight: the taps that begin at `starts`, or, where that is None, their modes."""
    z, w = analyse(x, layout), _weight_modes(weight, starts, layout)
    modes = composed.product(z, w, x.shape[0], out_channels, groups)
    if mask is not None:
        modes = modes * _values(mask, layout).to(modes.dtype)
    maps = composed.maps_of(modes, _transform(x, layout, _origin(layout), out, inverse=True), out)
    y = composed.with_bias(maps, bias)
    return (torch.relu(y) if relu else y).to(x.dtype)


def gradients(
    dy: Tensor,
    z: Tensor | None,
    weight: Tensor,
    mask: Tensor | None,
    starts: Ints | None,
    groups: int,
    layout: Layout,
    size: Ints,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dw, dmask) of `convolve` without its relu; need: which, and those not needed are empty.

    z: [F, 2, B C] as `analyse` gives it, or None where dx alone is needed.
    """
    need_x, need_weight, need_mask = need
    g = composed.modes_of(dy, _transform(dy, layout, _origin(layout), dy.shape[2:], inverse=True))
    g = g.unflatten(2, dy.shape[:2])
    masked = g if mask is None else g * _values(mask, layout).to(g.dtype)
    w = _weight_modes(weight, starts, layout) if need_x or need_mask else weight
    dx, dw, dmask = dy.new_empty(0), weight.new_empty(0), dy.new_empty(0) if mask is None else mask.new_empty(0)
    if need_x:
        dx = from_modes(composed.product_transposed(masked, w, groups), layout, size).to(dy.dtype)
    if need_weight:
        assert z is not None and starts is not None
        taps = _transform(weight, layout, starts, weight.shape[2:])
        dw = composed.maps_of(composed.weight_product(masked, z, groups, weight.shape[1]), taps, weight.shape[2:]).to(
            weight.dtype
        )
    if need_mask:
        assert z is not None and mask is not None
        values = (composed.product(z, w, dy.shape[0], dy.shape[1], groups) * g).sum((1, 3)).t()
        dmask = _at_cells(values, mask, layout)
    return dx, dw, dmask


def analyse(x: Tensor, layout: Layout) -> Tensor:
    """Z [F, 2, B C] of maps [B, C, *size], not scaled."""
    return composed.modes_of(x, _transform(x, layout, _origin(layout), x.shape[2:]))


def from_modes(dz: Tensor, layout: Layout, size: Ints) -> Tensor:
    """The transpose of `analyse`: dZ [F, 2, B, C] -> dx [B, C, *size]."""
    return composed.maps_of(dz, _transform(dz, layout, _origin(layout), size), size)


def saved_scale(layout: Layout) -> float:
    """The scale of Z as `analyse` gives it over Z as the kernels save it; see `matrices`."""
    return math.sqrt(math.prod(layout.n))


def _weight_modes(weight: Tensor, starts: Ints | None, layout: Layout) -> Tensor:
    return weight if starts is None else composed.modes_of(weight, _transform(weight, layout, starts, weight.shape[2:]))


def _origin(layout: Layout) -> Ints:
    return [0] * len(layout.n)


def _transform(like: Tensor, layout: Layout, starts: Ints, lengths: Ints, inverse: bool = False) -> Transform:
    where = (tuple(starts), tuple(lengths), inverse, compute_dtype(like.dtype), like.device)
    if layout.cells:
        return listed_dft(layout.n, layout.cells, *where)
    return stepped_dft(layout.n, ((layout.kept[-1], layout.kept[0]),), *where)


def _values(mask: Tensor, layout: Layout) -> Tensor:
    """The mask at the modes, zero where a cell of the box is not listed, to broadcast over [F, 2, B, O]."""
    cells = cells_of(layout, mask.device).long()
    per_sample = mask.reshape(1, -1) if mask.dim() == 2 else mask.flatten(1)
    picked = torch.where(cells >= 0, per_sample[:, cells.clamp(min=0)], 0)
    return picked.t()[:, None, :, None]


def _at_cells(values: Tensor, mask: Tensor, layout: Layout) -> Tensor:
    """The transpose of `_values`: [B, F] -> the shape of the mask, summed over the batch if it has one for all."""
    if mask.dim() == 2:
        values = values.sum(0, keepdim=True)
    cells = cells_of(layout, mask.device).long()
    counted = torch.where(cells >= 0, values.to(mask.dtype), 0)
    flat = mask.new_zeros(len(values), mask.shape[-2] * mask.shape[-1])
    return flat.index_add(1, cells.clamp(min=0), counted).view(mask.shape)
