"""The convolution of `operators` as a chain of torch's own operations, for forward mode and transforms of torch.func.

The chain computes in float32 whatever the accuracy class, on the device of the maps; no kernel of ours is launched.
"""

from __future__ import annotations

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
) -> tuple[Tensor, Tensor]:
    """(y, Z [V, U, 2, B C]); weight: the taps that begin at `starts`, or, where that is None, their modes."""
    origin = [0] * len(layout.n)
    z = composed.modes_of(x, _transform(x, layout, origin, x.shape[2:]))
    w = weight if starts is None else composed.modes_of(weight, _transform(x, layout, starts, weight.shape[2:]))
    modes = composed.product(z, w, x.shape[0], out_channels, groups)
    if mask is not None:
        modes = modes * _values(mask, layout).to(modes.dtype)
    maps = composed.maps_of(modes, _transform(x, layout, origin, out, inverse=True), out)
    y = composed.with_bias(maps, bias)
    return (torch.relu(y) if relu else y).to(x.dtype), z.unflatten(0, (layout.modes_v, layout.modes_u))


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
