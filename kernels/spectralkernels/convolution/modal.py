"""Products over channels, one per kept mode, on planar spectra: real and imaginary parts are two real matrices.

    z  Real [F, 2, B, C]      spectrum of the input
    w  Real [F, 2, O, C / g]  spectrum of the weight
    y  Real [F, 2, B, O]      product

Each is 8 B O C / g FLOPs in one or two real matrix products per mode and group. With one channel per group (depthwise,
any multiplier) they are element-wise. All write into `out`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(z: Tensor, w: Tensor, groups: int, out: Tensor) -> None:
    """y = sum_c z conj(w): [2 B, C] x [C, 2 O] per mode."""
    modes, _, batch, _ = z.shape
    if w.shape[3] == 1:
        z, w, out = z.unsqueeze(-1), _per_channel(w, groups), out.unflatten(-1, (groups, -1))
        torch.mul(z[:, 0], w[:, 0], out=out[:, 0]).addcmul_(z[:, 1], w[:, 1])
        torch.mul(z[:, 1], w[:, 0], out=out[:, 1]).addcmul_(z[:, 0], w[:, 1], value=-1)
        return
    for z_g, w_g, out_g in zip(_split(z, groups, 3), _split(w, groups, 2), _split(out, groups, 3), strict=True):
        rows = z_g.reshape(modes, 2 * batch, w_g.shape[3])
        columns = w_g.reshape(modes, 2 * w_g.shape[2], w_g.shape[3])
        parts = torch.bmm(rows, columns.transpose(1, 2)).view(modes, 2, batch, 2, w_g.shape[2])
        (re_re, re_im), (im_re, im_im) = (part.unbind(2) for part in parts.unbind(1))
        out_re, out_im = out_g.unbind(1)
        torch.add(re_re, im_im, out=out_re)
        torch.sub(im_re, re_im, out=out_im)


def multiply_transposed(g: Tensor, w: Tensor, groups: int, out: Tensor) -> None:
    """dz = sum_o g w, the gradient of `multiply` in z: [2 B, O] x [O, C] per mode for each part of w."""
    modes, _, batch, _ = g.shape
    if w.shape[3] == 1:
        g, w = g.unflatten(-1, (groups, -1)), _per_channel(w, groups)
        torch.sum(g[:, 0] * w[:, 0] - g[:, 1] * w[:, 1], dim=-1, out=out[:, 0])
        torch.sum(g[:, 0] * w[:, 1] + g[:, 1] * w[:, 0], dim=-1, out=out[:, 1])
        return
    for g_g, w_g, out_g in zip(_split(g, groups, 3), _split(w, groups, 2), _split(out, groups, 3), strict=True):
        rows, parts = g_g.reshape(modes, 2 * batch, g_g.shape[3]), (modes, 2, batch, w_g.shape[3])
        with_real, with_imag = (torch.bmm(rows, w_g[:, part]).view(parts) for part in (0, 1))
        torch.sub(with_real[:, 0], with_imag[:, 1], out=out_g[:, 0])
        torch.add(with_real[:, 1], with_imag[:, 0], out=out_g[:, 1])


def correlate(g: Tensor, z: Tensor, groups: int, out: Tensor) -> None:
    """dw = sum_b conj(g) z, the gradient of `multiply` in w: [2 O, 2 B] x [2 B, C] per mode."""
    modes, _, batch, channels = z.shape
    if channels == groups:
        g, z = g.unflatten(-1, (groups, -1)), z.unsqueeze(-1)
        out[:, 0] = (g[:, 0] * z[:, 0] + g[:, 1] * z[:, 1]).sum(1).flatten(1).unsqueeze(-1)
        out[:, 1] = (g[:, 0] * z[:, 1] - g[:, 1] * z[:, 0]).sum(1).flatten(1).unsqueeze(-1)
        return
    for g_g, z_g, out_g in zip(_split(g, groups, 3), _split(z, groups, 3), _split(out, groups, 2), strict=True):
        left, right = _embedded(g_g).transpose(1, 2), z_g.reshape(modes, 2 * batch, z_g.shape[3])
        if groups == 1:
            torch.bmm(left, right, out=out.view(modes, left.shape[1], right.shape[2]))
        else:
            out_g.copy_(torch.bmm(left, right).view(out_g.shape))


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
    """Depthwise weight [F, 2, O, 1] -> [F, 2, 1, channel, multiplier], to broadcast over the batch."""
    return w.squeeze(-1).unflatten(-1, (groups, -1)).unsqueeze(2)
