"""Depthwise convolution as an implicit matrix product on tensor cores: the honest rival of a large kernel on a GPU.

    y[b, c, h, :] = sum over r of x[b, c, h + r - pad, :] T_r + bias,     T_r[i, j] = w[c, r, i - j + pad]

cuDNN computes depthwise convolutions without matrix products; Ding et al., "Scaling Up Your Kernels to 31x31" (CVPR
2022) report an implicit GEMM about 20 times faster at 31 x 31. No package offers theirs, so this one is written here:
no unfolded map is stored, and the Toeplitz matrix of a kernel row is gathered once for all images of a block. Exact
backward: dx is the same with the kernel turned round, dw sums the diagonals of products of x and dy, in a fixed order.
It has no band limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from spectralkernels.convolution.composed import bias_gradient
from spectralkernels.convolution.depthwise import not_depthwise
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.convolution.implicit_gemm.blocks import Sides, blocks_of
from spectralkernels.declare import Tolerance
from spectralkernels.operators import operator
from spectralkernels.spectra import Band

TOLERANCE = Tolerance(
    {"float32": 2e-3, "float16": 2e-3, "bfloat16": 1.6e-2},
    because="float32 operands are rounded to 11 bits (TF32), as for direct_tf32; half types are multiplied as they "
    "are, summed in float32 and rounded once on the way out",
)


def implicit_gemm(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """Convolve each map with its own kernel.

    x: Real [B, C, height, width]. weight: Real [C, 1, kernel_height, kernel_width]. bias: Real [C] or None.
    Returns: Real [B, C, *out], dtype of x; float32 products are TF32.
    """
    y: Tensor = _conv(x, weight, bias, [before for before, _ in band.pad], band.out)
    return y


def plan(
    x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """What computes `implicit_gemm` of these sizes, dtypes and devices where no gradient is wanted."""
    from spectralkernels.convolution.implicit_gemm.launches import planned

    shape, dtype, device = (*x.shape[:2], *band.out), x.dtype, x.device
    sides = Sides(band.size, band.out, band.kernel, tuple(before for before, _ in band.pad))
    launch = planned(sides, x.shape[0], x.shape[1], dtype)

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.empty(shape, dtype=dtype, device=device)
        launch(x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous(), y).run()
        return y

    return forward


def supports(x: Tensor, weight: Tensor | WeightSpectrum, bias: Tensor | None, band: Band, groups: int) -> str | None:
    """Why it cannot serve a call, or None."""
    return not_depthwise(x, weight, band, groups, axes=2)


# --- the operators --------------------------------------------------------------------------------------------------

Ints = Sequence[int]


@operator("implicit_gemm", dense=True)
def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, pad: Ints, out: Ints) -> Tensor:
    from spectralkernels.convolution.implicit_gemm.launches import convolve_launch

    y = torch.empty((*x.shape[:2], *out), dtype=x.dtype, device=x.device)
    convolve_launch(x, weight, bias, y, (pad[0], pad[1])).run()
    return y


@_conv.register_fake
def _(*, x: Tensor, out: Ints) -> Tensor:
    return x.new_empty(*x.shape[:2], *out)


@_conv.register_composed
def _(x: Tensor, weight: Tensor, bias: Tensor | None, pad: Ints, out: Ints) -> Tensor:
    return F.conv2d(_padded(x, pad, out, weight.shape[2:]), weight, bias, groups=x.shape[1])


def _padded(x: Tensor, pad: Ints, out: Ints, taps: Ints) -> Tensor:
    """x with the zeros around it that a correlation of `out` samples without padding reads."""
    sides = zip(reversed(pad), reversed(out), reversed(taps), reversed(x.shape), strict=False)
    return F.pad(x, [zeros for before, made, k, have in sides for zeros in (before, made + k - 1 - have - before)])


@operator("implicit_gemm_weight_gradient", dense=True)
def _weight_gradient(dy: Tensor, x: Tensor, pad: Ints, taps: Ints) -> Tensor:
    """Float32 [channel, 1, *taps]."""
    from spectralkernels.convolution.implicit_gemm.launches import weight_gradient_launch

    blocks = blocks_of(Sides(tuple(x.shape[2:]), tuple(dy.shape[2:]), tuple(taps), tuple(pad)))
    pieces = blocks.across * blocks.chunks
    partial = torch.empty((pieces, x.shape[1], *taps), dtype=torch.float32, device=x.device)
    weight_gradient_launch(dy, x, partial, (pad[0], pad[1])).run()
    return partial.sum(0).unsqueeze(1)


@_weight_gradient.register_fake
def _(*, x: Tensor, taps: Ints) -> Tensor:
    return x.new_empty(x.shape[1], 1, *taps, dtype=torch.float32)


@_weight_gradient.register_composed
def _(dy: Tensor, x: Tensor, pad: Ints, taps: Ints) -> Tensor:
    padded, shape = _padded(x.float(), pad, dy.shape[2:], taps), (x.shape[1], 1, *taps)
    return conv2d_weight(padded, shape, dy.float(), groups=x.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, pad, _ = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
    ctx.geometry = (tuple(x.shape[2:]), tuple(weight.shape[2:]), pad, weight.dtype)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    size, taps, pad, dtype = ctx.geometry
    dx, dw = None, None
    if weight is not None:
        turned = [k - 1 - before for k, before in zip(taps, pad, strict=True)]
        dx = _conv(dy, weight.flip((2, 3)), None, turned, size)
    if x is not None:
        dw = _weight_gradient(dy, x, pad, taps).to(dtype)
    return dx, dw, bias_gradient(dy) if ctx.needs_input_grad[2] else None, None, None


_conv.register_autograd(_differentiate, setup_context=_save)
_conv.register_flops(
    lambda x, weight, bias, pad, out: 2 * x.shape[0] * x.shape[1] * math.prod(out) * math.prod(weight.shape[2:])
)
_weight_gradient.register_flops(lambda dy, x, pad, taps: 2 * dy.numel() * math.prod(taps))
