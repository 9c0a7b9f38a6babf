"""The way from the spectrum that `analyse` makes to torch's own operations, which can be differentiated again.

Forward mode, transforms of torch.func and second derivatives go through the chain of `dft_gemm`, which is the same
function; in the backward pass of a call that ran here, the chain begins at the spectrum that was saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution import composed
from spectralkernels.convolution.dft_native import library
from spectralkernels.convolution.dft_native.ends import ends_of
from spectralkernels.convolution.dft_native.folding import to_the_centre
from spectralkernels.convolution.dft_native.library import KeptModes, NativeSizes
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.convolution.linear_maps import transforms_of, transforms_of_maps

Ints = Sequence[int]


def gradients(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    """(dx, dw, db) as torch's own operations; dz is the gradient of the saved spectrum."""
    (x, z, weight, mask), (starts, groups, n, kept, size, stride, dilation) = ctx.saved_tensors, ctx.geometry
    band, batch, kernel = KeptModes(tuple(n), tuple(kept)), ctx.batch, weight.shape[2:]
    sizes = NativeSizes(batch, groups, weight.shape[1], weight.shape[0] // groups)
    about = ends_of(band, compute_dtype(weight.dtype), size, kernel, ctx.out, starts, stride, dilation).about
    transforms = transforms_of(weight, size, starts, kernel, n, kept, ctx.out, stride, dilation)
    if x is not None:
        modes = composed.modes_of(x, transforms[0])
    elif z.numel() > 0:
        modes = modes_of_spectrum(z, band, sizes, about)
    else:  # the weight is frozen, and only sizes are asked of Z
        modes = z.new_empty(band.count, 2, batch * groups * sizes.inputs)
    of_modes = None if dz is None else modes_of_spectrum(dz, band, sizes, about)
    shape, needs = (batch, weight.shape[1] * groups, *size), (*ctx.needs_input_grad[:3], False)
    return composed.gradients(dy, of_modes, modes, weight, transforms, groups, shape, needs, over_planes(mask))[:3]


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
) -> Tensor:
    """The convolution with the modes of a frozen weight as torch's own operations."""
    transforms = transforms_of_maps(x, x.shape[2:], n, kept, out)
    return composed.convolve(x, w, bias, transforms, groups, out, over_planes(mask), out_channels)[0]


def apply_gradient(
    dy: Tensor, w: Tensor, channels: int, groups: int, n: Ints, kept: Ints, size: Ints, mask: Tensor | None
) -> Tensor | None:
    """dx of it."""
    transforms, shape = transforms_of_maps(dy, size, n, kept, dy.shape[2:]), (dy.shape[0], channels, *size)
    needs = (True, False, False, False)
    return composed.gradients(dy, None, None, w, transforms, groups, shape, needs, over_planes(mask))[0]


def spread(w: Tensor, places: Tensor | None) -> Tensor:
    """Modes where they are in a band, zero elsewhere; see `library.Frozen`."""
    return w if places is None else torch.cat([w, w.new_zeros(1, *w.shape[1:])])[places]


def over_planes(mask: Tensor | None) -> Tensor | None:
    """Weights [B or 1, F] of a mask, to broadcast over [F, 2, B, channels]."""
    return None if mask is None else mask.t()[:, None, :, None]


def modes_of_spectrum(z: Tensor, band: KeptModes, sizes: NativeSizes, size: tuple[int, ...]) -> Tensor:
    """What `analyse` made of maps of `size` -> the modes of `dft`, [F, 2, batch * channels].

    A turn and a choice, so that it takes the gradient of the one to the gradient of the other as well.
    """
    lanes = library.lanes(z.dtype)
    by_block = z.view(-1, sizes.groups, -(-sizes.inputs // lanes), band.count, 2, sizes.block, lanes)
    ordered = by_block.permute(3, 4, 0, 5, 1, 2, 6).flatten(2, 3)[:, :, : sizes.batch]
    re, im = ordered.flatten(4)[..., : sizes.inputs].flatten(2).unbind(1)
    turn = to_the_centre(band.n, band.kept, tuple(length - 1 for length in size), z.dtype.to_complex()).unsqueeze(1)
    return torch.stack([re * turn.real + im * turn.imag, im * turn.real - re * turn.imag], dim=1)
