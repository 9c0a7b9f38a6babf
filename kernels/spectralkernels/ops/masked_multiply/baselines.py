"""The torch forms of `masked_multiply`: what one would write without a kernel.

Each computes only the kept cells: gather them, multiply and sum over channels, scale, scatter into zeros. They differ
in the product, which sees x: [batch, group, channel, cell] and v: [group, output, channel, cell] (v = conj(w), or w).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from spectralkernels.tf32 import tf32_allowed

Product = Callable[[Tensor, Tensor], Tensor]
Compute = Callable[[Tensor, Tensor, Tensor | None, int, bool], Tensor]

_cells_on_device = WeakIdKeyDictionary()


def kept_cells(mask: Tensor | None) -> Tensor | None:
    """Flat indices of the cells that a mask keeps, Int64 [F]; None where all are kept.

    On a GPU the list is remembered for each mask until the mask is written to, because counting there waits for the
    device, which stalls the queue and is impossible while a CUDA graph is captured.
    """
    if mask is None:
        return None
    if not mask.is_cuda or mask.is_inference():
        return _find(mask)
    known = _cells_on_device.get(mask)
    if known is None or known[0] != mask._version:
        known = (mask._version, _find(mask))
        _cells_on_device[mask] = known
    return known[1]


def _find(mask: Tensor) -> Tensor | None:
    cells = mask.detach().flatten().nonzero().flatten()
    return None if cells.numel() == mask.numel() else cells


def on_kept_cells(product: Product) -> Compute:
    """The whole operation around a product of kept cells."""

    def compute(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, groups: int, conjugate: bool) -> Tensor:
        cells = kept_cells(mask)
        x = _gather(x_hat, cells).unflatten(1, (groups, w_hat.shape[1]))
        v = _gather(w_hat, cells).unflatten(0, (groups, w_hat.shape[0] // groups))
        # Physically: torch drops a lazy conjugate inside a custom operator under AOT autograd.
        y = product(x, v.conj_physical() if conjugate else v).flatten(1, 2)  # [batch, output, cell]
        if mask is not None and mask.is_floating_point():
            scale = mask.flatten()
            y = y * (scale if cells is None else scale[cells])
        shape = (x_hat.shape[0], w_hat.shape[0], *x_hat.shape[2:])
        if cells is None:
            return y.reshape(shape).contiguous()
        padded = y.new_zeros(*shape[:2], shape[2] * shape[3])
        padded[:, :, cells] = y
        return padded.view(shape)

    return compute


def einsum_product(x: Tensor, v: Tensor) -> Tensor:
    """One einsum; torch chooses the layout."""
    return torch.einsum("bgcf,gocf->bgof", x, v)


def complex_bmm_product(x: Tensor, v: Tensor) -> Tensor:
    """One complex matrix product per kept frequency: [F, B, C] x [F, C, O]."""
    a, b = _per_frequency(x, v)
    return _per_plane(torch.bmm(a, b.transpose(1, 2)), x)


def real_bmm_product(x: Tensor, v: Tensor) -> Tensor:
    """One real matrix product per kept frequency, [F, B, 2C] x [F, 2C, 2O], with 2 x 2 blocks [[re, im], [-im, re]]."""
    return _real_product(x, v, None)


def _real_product(x: Tensor, v: Tensor, operands: torch.dtype | None) -> Tensor:
    """`real_bmm_product` with both factors, and so the result, rounded to `operands`; None rounds nothing."""
    a, b = _per_frequency(x, v)
    a = torch.view_as_real(a).flatten(2)  # [F, B, 2C]
    columns = b.conj_physical()  # a block's columns (re, -im) and (im, re) are conj(v) and i conj(v)
    b = torch.view_as_real(torch.stack((columns, 1j * columns), dim=2)).flatten(3).flatten(1, 2)  # [F, 2O, 2C]
    y = torch.bmm(a.to(operands or a.dtype), b.to(operands or b.dtype).transpose(1, 2)).to(a.dtype)
    return _per_plane(torch.view_as_complex(y.unflatten(2, (v.shape[1], 2))), x)


def in_tf32(product: Product) -> Product:
    """The product with TF32 allowed in cuBLAS."""

    def rounded(x: Tensor, v: Tensor) -> Tensor:
        with tf32_allowed():
            return product(x, v)

    return rounded


def three_mult_product(x: Tensor, v: Tensor) -> Tensor:
    """Three real matrix products per kept frequency (Gauss): fewer multiplications, larger intermediate sums."""
    a, b = _per_frequency(x, v)
    common = torch.bmm(a.real, (b.real + b.imag).transpose(1, 2))
    re = common - torch.bmm(a.real + a.imag, b.imag.transpose(1, 2))
    im = common + torch.bmm(a.imag - a.real, b.real.transpose(1, 2))
    return _per_plane(torch.complex(re, im), x)


def broadcast_product(x: Tensor, v: Tensor) -> Tensor:
    """All products at once, then their sum: [B, G, O, C, F] numbers in memory."""
    return (x.unsqueeze(2) * v.unsqueeze(0)).sum(3)


COMPUTES: dict[str, Compute] = {
    "einsum": on_kept_cells(einsum_product),
    "complex_bmm": on_kept_cells(complex_bmm_product),
    "real_bmm": on_kept_cells(real_bmm_product),
    "three_mult": on_kept_cells(three_mult_product),
    "broadcast": on_kept_cells(broadcast_product),
}
"""As accurate as their dtype."""

COARSE_COMPUTES: dict[str, Compute] = {
    "complex_bmm_tf32": on_kept_cells(in_tf32(complex_bmm_product)),
    "real_bmm_tf32": on_kept_cells(in_tf32(real_bmm_product)),
    "real_bmm_fp16": on_kept_cells(partial(_real_product, operands=torch.float16)),
    "real_bmm_bf16": on_kept_cells(partial(_real_product, operands=torch.bfloat16)),
}
"""Products of factors that are rounded to 11 bits (tf32, fp16) or 8 (bf16)."""


def _gather(spectrum: Tensor, cells: Tensor | None) -> Tensor:
    flat = spectrum.flatten(2)
    return flat if cells is None else flat.index_select(2, cells)


def _per_frequency(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """[B, G, C, F] and [G, O, C, F] -> [G F, B, C] and [G F, O, C], contiguous, so that real views are free."""
    a = x.permute(1, 3, 0, 2).contiguous().flatten(0, 1)
    b = v.permute(0, 3, 1, 2).contiguous().flatten(0, 1)
    return a, b


def _per_plane(y: Tensor, x: Tensor) -> Tensor:
    """[G F, B, O] -> [B, G, O, F]."""
    return y.unflatten(0, (x.shape[1], x.shape[3])).permute(2, 0, 3, 1)
