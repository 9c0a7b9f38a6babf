"""The way from the spectrum that `analyse` makes to torch's own operations, which can be differentiated again.

Forward mode, transforms of torch.func and second derivatives go through the chain of `dft_gemm`, which is the same
function; in the backward pass of a call that ran here, the chain begins at the spectrum that was saved.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution import composed
from spectralkernels.convolution.dft_gemm import Ints, _composed_backward, _composed_inverse, _origin, _transform
from spectralkernels.convolution.dft_native import library
from spectralkernels.convolution.dft_native.folding import to_the_centre
from spectralkernels.convolution.dft_native.library import Kept, Sizes


def starts_of(size: torch.Size, taps: torch.Size, front: list[int], out: list[int]) -> list[int]:
    """Where a kernel begins, from its zeros in front and the sizes around it."""
    sides = zip(size, taps, front, out, strict=True)
    return [-((made - have + kernel - 1 - more) // 2) for have, kernel, more, made in sides]


def gradients(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    """(dx, dw, db) as torch's own operations; dz is the gradient of the saved spectrum."""
    (x, z, weight, mask), (front, groups, n, kept, size) = ctx.saved_tensors, ctx.geometry
    band, batch = Kept(tuple(n), tuple(kept)), ctx.batch
    sizes = Sizes(batch, groups, weight.shape[1], weight.shape[0] // groups)
    if x is not None:
        modes = composed.modes_of(x, _transform(x, _origin(n), size, n, kept))
    elif z.numel() > 0:
        modes = modes_of_spectrum(z, band, sizes, tuple(size))
    else:  # the weight is frozen, and only sizes are asked of Z
        modes = z.new_empty(band.count, 2, batch * groups * sizes.inputs)
    out = ctx.out
    geometry = (starts_of(torch.Size(size), weight.shape[2:], front, out), groups, n, kept, size)
    as_gemm = SimpleNamespace(saved_tensors=(modes, weight), geometry=geometry, needs_input_grad=ctx.needs_input_grad)
    of_modes = None if dz is None else modes_of_spectrum(dz, band, sizes, tuple(size))
    return _composed_backward(as_gemm, dy, of_modes, None if mask is None else _over_planes(mask))


def masked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: list[int],
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    mask: Tensor,
) -> Tensor:
    """The convolution under the weights [B or 1, F] of a mask."""
    z = composed.modes_of(x, _transform(x, _origin(n), x.shape[2:], n, kept))
    w = composed.modes_of(weight, _transform(x, starts, weight.shape[2:], n, kept))
    product = composed.product(z, w, x.shape[0], weight.shape[0], groups)
    return _composed_inverse(product * _over_planes(mask), out, n, kept, bias, x.dtype)


def _over_planes(mask: Tensor) -> Tensor:
    """Weights [B or 1, F] of a mask, to broadcast over [F, 2, B, channels]."""
    return mask.t()[:, None, :, None]


def modes_of_spectrum(z: Tensor, band: Kept, sizes: Sizes, size: tuple[int, ...]) -> Tensor:
    """What `analyse` made of maps of `size` -> the modes of `dft`, [F, 2, batch * channels].

    A turn and a choice, so that it takes the gradient of the one to the gradient of the other as well.
    """
    lanes = library.lanes(z.dtype)
    by_block = z.view(-1, sizes.groups, -(-sizes.inputs // lanes), band.count, 2, sizes.block, lanes)
    ordered = by_block.permute(3, 4, 0, 5, 1, 2, 6).flatten(2, 3)[:, :, : sizes.batch]
    re, im = ordered.flatten(4)[..., : sizes.inputs].flatten(2).unbind(1)
    turn = to_the_centre(band.n, band.kept, tuple(length - 1 for length in size), z.dtype.to_complex()).unsqueeze(1)
    return torch.stack([re * turn.real + im * turn.imag, im * turn.real - re * turn.imag], dim=1)
