"""Every implementation of `masked_multiply` as a differentiable operator that torch can trace.

The gradient of a masked multiply is a masked multiply, so each operator's backward calls the operator itself:

    y  = mask sum_c x conj(w)
    dx = mask sum_o g w                   the operator on g and the transposed w, without the conjugate
    dw = mask sum_b x conj(g)             the operator on the transposed x and g
    dmask = sum_bo Re(g conj(y unmasked))

(PyTorch's convention: g is the gradient with respect to the conjugate.) Second derivatives follow by the same rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectralkernels.operators import Operator
from spectralkernels.ops.masked_multiply.baselines import Compute

_SCHEMA = "(Tensor x_hat, Tensor w_hat, Tensor? mask, int groups, bool conjugate) -> Tensor"


def operator(name: str, compute: Compute) -> Compute:
    """Register `compute` as torch.ops.spectralkernels.masked_multiply_<name>, with its shape rule and its gradients.

    compute: (x_hat, w_hat, mask, groups, conjugate) -> y, a fresh contiguous tensor; y = mask sum_c x conj(w), or
    mask sum_c x w where conjugate is False.
    """
    registered = Operator(f"masked_multiply_{name}", compute, _SCHEMA)

    @registered.register_fake
    def shape_rule(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, groups: int, conjugate: bool) -> Tensor:
        return x_hat.new_empty(x_hat.shape[0], w_hat.shape[0], *x_hat.shape[2:])

    registered.register_composed(_composed)

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x_hat, w_hat, mask, ctx.groups, ctx.conjugate = inputs
        for_x, for_w, for_mask = ctx.needs_input_grad[:3]
        # A frozen weight costs no saved x.
        ctx.save_for_backward(x_hat if for_w or for_mask else None, w_hat if for_x or for_mask else None, mask)
        ctx.group_channels = w_hat.shape[1]

    def gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x_hat, w_hat, mask = ctx.saved_tensors
        groups, conjugate = ctx.groups, ctx.conjugate
        dx = dw = dmask = None
        if ctx.needs_input_grad[0]:
            w_transposed = (
                w_hat.unflatten(0, (groups, w_hat.shape[0] // groups)).transpose(1, 2).flatten(0, 1)
            )  # [C, O / groups, U, V]
            dx = registered(g, w_transposed, mask, groups, not conjugate)
        if ctx.needs_input_grad[1]:
            x_groups = x_hat.unflatten(1, (groups, ctx.group_channels))
            x_transposed = x_groups.permute(2, 1, 0, 3, 4).flatten(1, 2)  # [C / groups, groups B, U, V]
            dw = registered(x_transposed, g.transpose(0, 1), mask, groups, True).transpose(0, 1)
            dw = dw if conjugate else dw.conj_physical()
        if ctx.needs_input_grad[2]:
            dmask = (g * registered(x_hat, w_hat, None, groups, conjugate).conj()).real.sum((0, 1))
        return dx, dw, dmask, None, None

    registered.register_autograd(gradients, setup_context=remember)
    # A product of complex numbers is eight operations, masked or not.
    registered.register_flops(lambda x_hat, w_hat, mask, groups, conjugate: 8 * w_hat.numel() * x_hat.shape[0])
    return registered


def _composed(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, groups: int, conjugate: bool) -> Tensor:
    """What every `compute` computes, as torch's own operations."""
    if mask is not None:
        # NaN may lie where the mask drops; what is finite there counts in the derivative of a float mask.
        x_hat, w_hat = (torch.where((mask != 0) | each.isfinite(), each, 0.0) for each in (x_hat, w_hat))
    x, w = x_hat.unflatten(1, (groups, -1)), w_hat.unflatten(0, (groups, -1))
    y = torch.einsum("bgcuv,gocuv->bgouv", x, w.conj() if conjugate else w).flatten(1, 2)
    return y if mask is None else y * mask
