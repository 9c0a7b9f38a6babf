"""Products over channels, one per kept mode, on planar spectra: real and imaginary parts are two real matrices.

    z  Real [F, 2, B, C]      spectrum of the input
    w  Real [F, 2, O, C / g]  spectrum of the weight
    y  Real [F, 2, B, O]      product

Each is as few real matrix products as possible, on operands that need no copy. With one channel per group (depthwise,
any multiplier) they are element-wise.
"""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(z: Tensor, w: Tensor, groups: int) -> Tensor:
    """y = sum_c z conj(w): one product [2 B, C] x [C, 2 O] per mode holds all four real parts."""
    modes, _, batch, _ = z.shape
    y = z.new_empty(modes, 2, batch, w.shape[2])
    if w.shape[3] == 1:
        z, w, out = z.unsqueeze(-1), _per_channel(w, groups), y.unflatten(-1, (groups, -1))
        torch.mul(z[:, 0], w[:, 0], out=out[:, 0]).addcmul_(z[:, 1], w[:, 1])
        torch.mul(z[:, 1], w[:, 0], out=out[:, 1]).addcmul_(z[:, 0], w[:, 1], value=-1)
        return y
    for z_g, w_g, y_g in zip(z.chunk(groups, 3), w.chunk(groups, 2), y.chunk(groups, 3), strict=True):
        per_group = w_g.shape[3]
        rows = z_g.reshape(modes, 2 * batch, per_group)
        columns = w_g.reshape(modes, 2 * w_g.shape[2], per_group)
        parts = torch.bmm(rows, columns.transpose(1, 2)).view(modes, 2, batch, 2, w_g.shape[2])
        torch.add(parts[:, 0, :, 0], parts[:, 1, :, 1], out=y_g[:, 0])
        torch.sub(parts[:, 1, :, 0], parts[:, 0, :, 1], out=y_g[:, 1])
    return y


def multiply_transposed(g: Tensor, w: Tensor, groups: int) -> Tensor:
    """dz = sum_o g w, the gradient of `multiply` in z."""
    modes, _, batch, _ = g.shape
    dz = g.new_empty(modes, 2, batch, w.shape[3] * groups)
    if w.shape[3] == 1:
        g, w = g.unflatten(-1, (groups, -1)), _per_channel(w, groups)
        torch.sum(g[:, 0] * w[:, 0] - g[:, 1] * w[:, 1], dim=-1, out=dz[:, 0])
        torch.sum(g[:, 0] * w[:, 1] + g[:, 1] * w[:, 0], dim=-1, out=dz[:, 1])
        return dz
    for g_g, w_g, dz_g in zip(g.chunk(groups, 3), w.chunk(groups, 2), dz.chunk(groups, 3), strict=True):
        rows = g_g.reshape(modes, 2 * batch, g_g.shape[3])
        with_real = torch.bmm(rows, w_g[:, 0]).view(modes, 2, batch, w_g.shape[3])
        with_imag = torch.bmm(rows, w_g[:, 1]).view(modes, 2, batch, w_g.shape[3])
        torch.sub(with_real[:, 0], with_imag[:, 1], out=dz_g[:, 0])
        torch.add(with_real[:, 1], with_imag[:, 0], out=dz_g[:, 1])
    return dz


def correlate(g: Tensor, z: Tensor, groups: int) -> Tensor:
    """dw = sum_b conj(g) z, the gradient of `multiply` in w."""
    modes, _, batch, channels = z.shape
    out_channels = g.shape[3]
    dw = g.new_empty(modes, 2, out_channels, channels // groups)
    if channels == groups:
        g, z = g.unflatten(-1, (groups, -1)), z.unsqueeze(-1)
        dw[:, 0] = (g[:, 0] * z[:, 0] + g[:, 1] * z[:, 1]).sum(1).flatten(1).unsqueeze(-1)
        dw[:, 1] = (g[:, 0] * z[:, 1] - g[:, 1] * z[:, 0]).sum(1).flatten(1).unsqueeze(-1)
        return dw
    for g_g, z_g, dw_g in zip(g.chunk(groups, 3), z.chunk(groups, 3), dw.chunk(groups, 2), strict=True):
        # The real part sums both parts over the batch, so it is one product with 2 B rows.
        g_rows, z_rows = (part.reshape(modes, 2 * batch, part.shape[3]) for part in (g_g, z_g))
        dw_g[:, 0] = torch.bmm(g_rows.transpose(1, 2), z_rows)
        cross = torch.bmm(g_g[:, 0].transpose(1, 2), z_g[:, 1])
        dw_g[:, 1] = torch.baddbmm(cross, g_g[:, 1].transpose(1, 2), z_g[:, 0], alpha=-1)
    return dw


def _per_channel(w: Tensor, groups: int) -> Tensor:
    """Depthwise weight [F, 2, O, 1] -> [F, 2, 1, channel, multiplier], to broadcast over the batch."""
    return w.squeeze(-1).unflatten(-1, (groups, -1)).unsqueeze(2)
