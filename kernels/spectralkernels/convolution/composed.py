"""A convolution by truncated DFT as a chain of torch's own operations, which torch can differentiate again and again.

The operators of `dft_gemm` are faster, but opaque: under a transform of torch.func (grad, vjp, jvp, vmap and what is
built of them), in forward mode, and in a backward pass that is differentiated again, this chain takes their place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.convolution.linear_maps import Transform

ChainTransforms = tuple[Transform, Transform | None, Transform]
"""Of x, of the kernel (None: its modes are given), and the transpose of the inverse onto y."""


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transforms: ChainTransforms,
    groups: int,
    out: Sequence[int],
    mask: Tensor | None = None,
    out_channels: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and the kept spectrum of x. mask: what Z conj(W) is multiplied with, to broadcast.

    weight: [O, C / groups, *kernel], or without a transform of it its modes [F, 2, O * C / groups] for `out_channels`.
    """
    of_x, of_weight, of_y = transforms
    z = modes_of(x, of_x)
    modes = product(z, _weight_modes(weight, of_weight), x.shape[0], out_channels or weight.shape[0], groups)
    if mask is not None:
        modes = modes * mask
    return with_bias(maps_of(modes, of_y, out), bias).to(x.dtype), z


def gradients(
    dy: Tensor | None,
    dz: Tensor | None,
    z: Tensor | None,
    weight: Tensor,
    transforms: ChainTransforms,
    groups: int,
    shape: Sequence[int],
    needs: Sequence[bool],
    mask: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """(dx, dw, db, dm) of `convolve`, those that are needed; dm: [B, F], of the weights that `mask` holds.

    dz: the gradient of Z [F, 2, B C]. z: None where neither dw nor dm is needed. shape: of x.
    """
    need_x, need_weight, need_bias, need_mask = needs
    of_x, of_weight, of_y = transforms
    batch, channels, *size = shape
    dx = dw = db = dm = None
    sum_for_x = None if dz is None else dz.unflatten(2, (batch, channels))
    if dy is not None:
        g = modes_of(dy, of_y).unflatten(2, dy.shape[:2])
        masked = g if mask is None else g * mask
        w = _weight_modes(weight, of_weight) if need_x or need_mask else weight
        if need_x:
            through_y = product_transposed(masked, w, groups)
            sum_for_x = through_y if sum_for_x is None else sum_for_x + through_y
        if need_weight:
            assert z is not None and of_weight is not None
            modes = weight_product(masked, z, groups, weight.shape[1])
            dw = maps_of(modes, of_weight, weight.shape[2:]).to(weight.dtype)
        if need_mask:
            assert z is not None
            dm = (product(z, w, batch, dy.shape[1], groups) * g).sum((1, 3)).t()
        db = bias_gradient(dy) if need_bias else None
    if need_x and sum_for_x is not None:
        dx = maps_of(sum_for_x, of_x, size).to((weight if dy is None else dy).dtype)
    return dx, dw, db, dm


def bias_gradient(dy: Tensor) -> Tensor:
    """The sum of dy [B, O, *out] over all but the channels: [O]."""
    return dy.sum([axis for axis in range(dy.dim()) if axis != 1])


def modes_of(maps: Tensor, transform: Transform) -> Tensor:
    """Maps [A, B, *size] -> modes [F, 2, A * B], in the dtype of the computation."""
    height = maps.shape[2] if maps.dim() == 4 else 1
    planes = maps.to(compute_dtype(maps.dtype)).reshape(maps.shape[0] * maps.shape[1], height, maps.shape[-1])
    return transform.composed_analyse(planes)


def _weight_modes(weight: Tensor, transform: Transform | None) -> Tensor:
    return weight if transform is None else modes_of(weight, transform)


def maps_of(modes: Tensor, transform: Transform, lengths: Sequence[int]) -> Tensor:
    """Modes [F, 2, A, B] -> maps [A, B, *lengths]: the transpose of `modes_of`."""
    return transform.composed_synthesise(modes.flatten(2)).reshape(*modes.shape[2:], *lengths)


def product(z: Tensor, w: Tensor, batch: int, out_channels: int, groups: int) -> Tensor:
    """Z [F, 2, B * C] conj(W [F, 2, O * C / groups]) -> [F, 2, B, O]."""
    per_group = w.shape[2] // out_channels
    z_re, z_im = z.unflatten(2, (batch, groups, per_group)).unbind(1)
    w_re, w_im = w.unflatten(2, (groups, out_channels // groups, per_group)).unbind(1)
    return _parts("fbgc,fgoc->fbgo", (z_re, z_im), (w_re, -w_im)).flatten(3)


def product_transposed(g: Tensor, w: Tensor, groups: int) -> Tensor:
    """dZ = G [F, 2, B, O] W [F, 2, O * C / groups]: [F, 2, B, C]."""
    out_channels = g.shape[3]
    g_re, g_im = g.unflatten(3, (groups, out_channels // groups)).unbind(1)
    w_re, w_im = w.unflatten(2, (groups, out_channels // groups, w.shape[2] // out_channels)).unbind(1)
    return _parts("fbgo,fgoc->fbgc", (g_re, g_im), (w_re, w_im)).flatten(3)


def weight_product(g: Tensor, z: Tensor, groups: int, per_group: int) -> Tensor:
    """dW = conj(G [F, 2, B, O]) Z [F, 2, B * C]: [F, 2, O, C / groups]; per_group: C / groups, which B = 0 hides."""
    g_re, g_im = g.unflatten(3, (groups, g.shape[3] // groups)).unbind(1)
    z_re, z_im = z.unflatten(2, (g.shape[2], groups, per_group)).unbind(1)
    return _parts("fbgo,fbgc->fgoc", (g_re, -g_im), (z_re, z_im)).flatten(2, 3)


def _parts(sum_of: str, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Sums of products of complex numbers in parts: [F, 2, ...]."""
    (a_re, a_im), (b_re, b_im) = a, b
    re = torch.einsum(sum_of, a_re, b_re) - torch.einsum(sum_of, a_im, b_im)
    im = torch.einsum(sum_of, a_re, b_im) + torch.einsum(sum_of, a_im, b_re)
    return torch.stack([re, im], dim=1)


def with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """y [B, O, *out] + bias [O]."""
    return y if bias is None else y + bias.to(y.dtype).view(*bias.shape, *(1 for _ in y.shape[2:]))
