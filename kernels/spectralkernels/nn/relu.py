"""A ReLU that keeps one bit per element for its backward pass, in place of its answer.

    y = max(x, 0);   dx = dy where y > 0, 0 elsewhere

torch's ReLU keeps y. That costs nothing where the layer behind it keeps its input too, as a direct convolution does; a
spectral convolution keeps the spectrum instead, so that the same map is saved twice. The sign is all that a ReLU
needs: 1 / 32 of y in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectralkernels.checks import check_tensor
from spectralkernels.operators import operator


class BitReLU(nn.ReLU):
    """torch.nn.ReLU that saves a bit per element; `inplace` is heard and not followed, because nothing is gained.

    Input and output: Real, any shape. Differentiable twice.
    """

    def forward(self, input: Tensor) -> Tensor:
        check_tensor("input", input)
        if not (torch.is_grad_enabled() and input.requires_grad):
            return F.relu(input)
        return _relu_bits(input)[0]


@operator("relu_bits")
def _relu_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """max(x, 0) and where a gradient passes, UInt8 [ceil(n / 8)] in the order of the elements of x."""
    y = torch.relu(x)
    return y, _packed(~(y <= 0))  # NaN passes, as in torch


@_relu_bits.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8)


@_relu_bits.register_composed
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.relu(x), x.new_empty(0, dtype=torch.uint8)


@operator("pass_bits")
def _pass_bits(g: Tensor, bits: Tensor) -> Tensor:
    """g where its bit is set, 0 elsewhere."""
    return torch.where(_unpacked(bits, g.numel()).view(g.shape), g, 0.0)


@_pass_bits.register_fake
def _(g: Tensor, bits: Tensor) -> Tensor:
    return torch.empty_like(g)


_pass_bits.register_composed(_pass_bits.compute)  # torch's own operations on g


def _packed(mask: Tensor) -> Tensor:
    """Bool [...] -> UInt8 [ceil(n / 8)]; element 8 i + j is bit j of byte i."""
    flat = mask.reshape(-1)
    if flat.device.type == "cpu":
        return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))
    octets = F.pad(flat, (0, -len(flat) % 8)).view(-1, 8).to(torch.uint8)
    return (octets << _places(flat.device)).sum(1, dtype=torch.uint8)


def _unpacked(bits: Tensor, count: int) -> Tensor:
    """UInt8 [ceil(count / 8)] -> Bool [count]."""
    if bits.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bits.numpy(), count=count, bitorder="little")).view(torch.bool)
    return ((bits.unsqueeze(1) >> _places(bits.device)) & 1).reshape(-1)[:count].bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def _remember_bits(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _relu_backward(ctx: Any, g: Tensor | None, _: Tensor | None) -> Tensor | None:
    (bits,) = ctx.saved_tensors
    return None if g is None else _pass_bits(g, bits)


def _remember_passed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _pass_backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
    (bits,) = ctx.saved_tensors
    return _pass_bits(g, bits), None


_relu_bits.register_autograd(_relu_backward, setup_context=_remember_bits)
_pass_bits.register_autograd(_pass_backward, setup_context=_remember_passed)
