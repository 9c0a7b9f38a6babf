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
    transforms = _transforms(x, weight, starts, layout, x.shape[2:], out)
    values = _values(mask, layout, x)
    y, _ = composed.convolve(x, weight, bias, transforms, groups, out, values, out_channels)
    return torch.relu(y) if relu else y


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
    channels = groups * (weight.shape[1] if starts is not None else weight.shape[2] // dy.shape[1])
    transforms = _transforms(dy, weight, starts, layout, size, dy.shape[2:])
    needs, values = (need_x, need_weight, False, need_mask), _values(mask, layout, dy)
    found = composed.gradients(dy, None, z, weight, transforms, groups, (dy.shape[0], channels, *size), needs, values)
    dx, dw, _, at_modes = found
    dmask = (dy if mask is None else mask).new_empty(0)
    if mask is not None and at_modes is not None:
        dmask = _at_cells(at_modes, mask, layout)
    return dy.new_empty(0) if dx is None else dx, weight.new_empty(0) if dw is None else dw, dmask


def analyse(x: Tensor, layout: Layout) -> Tensor:
    """Z [F, 2, B C] of maps [B, C, *size], not scaled."""
    return composed.modes_of(x, _transform(x, layout, _origin(layout), x.shape[2:]))


def from_modes(dz: Tensor, layout: Layout, size: Ints) -> Tensor:
    """The transpose of `analyse`: dZ [F, 2, B, C] -> dx [B, C, *size]."""
    return composed.maps_of(dz, _transform(dz, layout, _origin(layout), size), size)


def saved_scale(layout: Layout) -> float:
    """The scale of Z as `analyse` gives it over Z as the kernels save it; see `matrices`."""
    return math.sqrt(math.prod(layout.n))


def _transforms(
    like: Tensor, weight: Tensor, starts: Ints | None, layout: Layout, size: Ints, out: Ints
) -> composed.ChainTransforms:
    of_weight = None if starts is None else _transform(like, layout, starts, weight.shape[2:])
    of_y = _transform(like, layout, _origin(layout), out, inverse=True)
    return _transform(like, layout, _origin(layout), size), of_weight, of_y


def _origin(layout: Layout) -> Ints:
    return [0] * len(layout.n)


def _transform(like: Tensor, layout: Layout, starts: Ints, lengths: Ints, inverse: bool = False) -> Transform:
    where = (tuple(starts), tuple(lengths), inverse, compute_dtype(like.dtype), like.device)
    if layout.cells:
        return listed_dft(layout.n, layout.cells, *where)
    return stepped_dft(layout.n, ((layout.kept[-1], layout.kept[0]),), *where)


def _values(mask: Tensor | None, layout: Layout, like: Tensor) -> Tensor | None:
    """The mask at the modes, zero where a cell of the box is not listed, to broadcast over [F, 2, B, O]."""
    if mask is None:
        return None
    cells = cells_of(layout, mask.device).long()
    per_sample = mask.reshape(1, -1) if mask.dim() == 2 else mask.flatten(1)
    picked = torch.where(cells >= 0, per_sample[:, cells.clamp(min=0)], 0)
    return picked.t()[:, None, :, None].to(compute_dtype(like.dtype))


def _at_cells(values: Tensor, mask: Tensor, layout: Layout) -> Tensor:
    """The transpose of `_values`: [B, F] -> the shape of the mask, summed over the batch if it has one for all."""
    if mask.dim() == 2:
        values = values.sum(0, keepdim=True)
    cells = cells_of(layout, mask.device).long()
    counted = torch.where(cells >= 0, values.to(mask.dtype), 0)
    flat = mask.new_zeros(len(values), mask.shape[-2] * mask.shape[-1])
    return flat.index_add(1, cells.clamp(min=0), counted).view(mask.shape)
