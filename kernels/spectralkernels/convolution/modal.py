"""Products over channels, one per kept mode, on planar spectra: real and imaginary parts are two real matrices.

    z  Real [F, 2, B, C]        spectrum of the input
    w  Real [F, 2, O * C / g]   spectrum of the weight, which comes piece by piece
    y  Real [F, 2, B, O]        product

Each is 8 B O C / g FLOPs in one or two real matrix products per mode and group. With one channel per group (depthwise,
any multiplier) they are element-wise. All write into `out`. Pieces of one size share their temporaries and views:
between cold caches every allocation and call costs microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Where the modes of a piece lie, and the weight there [modes, 2, O * C / g].
Pieces = Iterable[tuple[slice, Tensor]]


def multiply(z: Tensor, channels: int, pieces: Pieces, groups: int, out: Tensor) -> None:
    """y = sum_c z conj(w): [2 B, C] x [C, 2 O] per mode; z: [F, 2, B * C]."""
    modes, _, batch, out_channels = out.shape
    if channels == groups:
        outputs = out.view(modes, 2, batch, groups, out_channels // groups)
        both = (*z.view(modes, 2, batch, groups, 1).unbind(1), *outputs.unbind(1))
        for where, piece in pieces:
            w_re, w_im = _per_channel(piece, groups).unbind(1)
            z_re, z_im, re, im = both if where.stop - where.start == modes else (part[where] for part in both)
            torch.mul(z_re, w_re, out=re).addcmul_(z_im, w_im)
            torch.mul(z_im, w_re, out=im).addcmul_(z_re, w_im, value=-1)
        return
    rows = _rows(z.view(modes, 2, batch, channels), groups)
    sums = [out_g.unbind(1) for out_g in _split(out, groups, 3)]
    products = z.new_empty(0)
    for where, piece in pieces:
        if len(products) != len(piece):
            products = z.new_empty(len(piece), 2 * batch, 2 * out_channels // groups)
            parts = products.view(len(piece), 2, batch, 2, out_channels // groups)
            (re_re, re_im), (im_re, im_im) = (part.unbind(2) for part in parts.unbind(1))
        w = piece.view(len(piece), 2, out_channels, channels // groups)
        for z_g, w_g, (out_re, out_im) in zip(rows, _split(w, groups, 2), sums, strict=True):
            columns = w_g.reshape(len(w), 2 * w_g.shape[2], w_g.shape[3])
            torch.bmm(z_g[where], columns.transpose(1, 2), out=products)
            torch.add(re_re, im_im, out=out_re[where])
            torch.sub(im_re, re_im, out=out_im[where])


def multiply_transposed(g: Tensor, pieces: Pieces, groups: int, out: Tensor) -> None:
    """dz = sum_o g w, the gradient of `multiply` in z: [2 B, O] x [O, C] per mode for each part of w."""
    _, _, batch, out_channels = g.shape
    channels = out.shape[3]
    if channels == groups:
        g = g.unflatten(-1, (groups, -1))
        for where, piece in pieces:
            w, (re, im) = _per_channel(piece, groups), g[where].unbind(1)
            torch.sum(re * w[:, 0] - im * w[:, 1], dim=-1, out=out[where, 0])
            torch.sum(re * w[:, 1] + im * w[:, 0], dim=-1, out=out[where, 1])
        return
    rows = _rows(g, groups)
    sums = [out_g.unbind(1) for out_g in _split(out, groups, 3)]
    with_re = g.new_empty(0)
    for where, piece in pieces:
        if len(with_re) != len(piece):
            with_re, with_im = (g.new_empty(len(piece), 2 * batch, channels // groups) for _ in range(2))
            parts = (len(piece), 2, batch, channels // groups)
            (re_re, im_re), (re_im, im_im) = (products.view(parts).unbind(1) for products in (with_re, with_im))
        w = piece.view(len(piece), 2, out_channels, channels // groups)
        for g_g, w_g, (out_re, out_im) in zip(rows, _split(w, groups, 2), sums, strict=True):
            w_re, w_im = w_g.unbind(1)
            torch.bmm(g_g[where], w_re, out=with_re)
            torch.bmm(g_g[where], w_im, out=with_im)
            torch.sub(re_re, im_im, out=out_re[where])
            torch.add(im_re, re_im, out=out_im[where])


def correlate(g: Tensor, z: Tensor, groups: int, out: Tensor) -> None:
    """dw = sum_b conj(g) z, the gradient of `multiply` in w: [2 O, 2 B] x [2 B, C] per mode."""
    if z.shape[3] == groups:
        g, z = g.unflatten(-1, (groups, -1)), z.unsqueeze(-1)
        out[:, 0] = (g[:, 0] * z[:, 0] + g[:, 1] * z[:, 1]).sum(1).flatten(1).unsqueeze(-1)
        out[:, 1] = (g[:, 0] * z[:, 1] - g[:, 1] * z[:, 0]).sum(1).flatten(1).unsqueeze(-1)
        return
    for g_g, right, out_g in zip(_split(g, groups, 3), _rows(z, groups), _split(out, groups, 2), strict=True):
        left = _embedded(g_g).transpose(1, 2)
        if groups == 1:
            torch.bmm(left, right, out=out.view(len(z), left.shape[1], right.shape[2]))
        else:
            out_g.copy_(torch.bmm(left, right).view(out_g.shape))


def _rows(spectra: Tensor, groups: int) -> list[Tensor]:
    """Real parts, then imaginary parts, of each group: [F, 2, B, C] -> [F, 2 B, C / g]."""
    modes, _, batch, channels = spectra.shape
    return [part.reshape(modes, 2 * batch, channels // groups) for part in _split(spectra, groups, 3)]


def _split(spectra: Tensor, groups: int, axis: int) -> tuple[Tensor, ...]:
    """The groups, without a call where there is one: between cold caches a call costs microseconds."""
    return spectra.chunk(groups, axis) if groups > 1 else (spectra,)


def _embedded(g: Tensor) -> Tensor:
    """Complex numbers as real 2 x 2 blocks [[re, -im], [im, re]]: [F, 2, B, O] -> [F, 2 B, 2 O]."""
    modes, _, batch, channels = g.shape
    blocks = g.new_empty(modes, 2, batch, 2, channels)
    blocks[:, :, :, 0] = g
    torch.neg(g[:, 1], out=blocks[:, 0, :, 1])
    blocks[:, 1, :, 1] = g[:, 0]
    return blocks.view(modes, 2 * batch, 2 * channels)


def _per_channel(w: Tensor, groups: int) -> Tensor:
    """Depthwise weight [F, 2, O] -> [F, 2, 1, channel, multiplier], to broadcast over the batch."""
    modes, _, planes = w.shape
    return w.view(modes, 2, 1, groups, planes // groups)
