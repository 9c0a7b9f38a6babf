"""Band-limited convolution in three Triton launches through the L2 cache, in seven accuracy classes.

    Z = D_x x        [V, U, 2, B C]     kernels.analyse_*: separable for maps, one matrix for series and small maps
    W = D_w w        [V, U, 2, O C/g]   the same kernel
    Y = Z conj(W)    [V, U, 2, B O]     kernels.contract_kernel: one complex product per mode on tensor cores
    y = relu(E Y + b)                   kernels.synthesise_*

Only kept modes exist, and only their two or three spectra are allocated. Backward applies the transposed maps with the
same kernels and saves Z (8 F bytes a plane, 4 F in a half-precision class) and the weight, and y where there is a relu.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from spectralkernels.checks import REAL_DTYPES
from spectralkernels.convolution.dft_triton.precision import PRECISIONS
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.declare import Implementation
from spectralkernels.errors import RangeError
from spectralkernels.launch import triton_unavailable
from spectralkernels.spectra import Band

Activation = Literal["none", "relu"]
DEFAULT = "tf32x3"


def dft_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    *,
    precision: str = DEFAULT,
    activation: Activation = "none",
) -> Tensor:
    """Convolve with a band limit on the tensor cores.

    x: Real [B, C, *size], float32 or half, CUDA. weight: Real [O, C / groups, *kernel]. bias: Real [O] | None.
    precision: a name of `PRECISIONS`. activation: applied in the last kernel's epilogue.
    Returns: Real [B, O, *out], dtype of x, contiguous. Raises: RangeError on an unknown precision or activation.
    """
    if precision not in PRECISIONS:
        raise RangeError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if activation not in ("none", "relu"):
        raise RangeError(f"activation must be 'none' or 'relu', got {activation!r}")
    starts = [-before for before, _ in band.pad]
    y, _ = _conv(
        x, weight, bias, starts, groups, band.n, band.kept, band.out, precision=precision, relu=activation == "relu"
    )
    return y


def supports(x: Tensor, weight: Tensor | WeightSpectrum, **rest: Any) -> str | None:
    """The reason why these kernels cannot serve a call, or None."""
    if isinstance(weight, WeightSpectrum):
        return "it takes a weight tensor, not a WeightSpectrum"
    if x.dtype not in REAL_DTYPES or x.dtype == torch.float64:
        return f"the Triton kernels take float32, float16 and bfloat16 maps, got {str(x.dtype).removeprefix('torch.')}"
    return None


def _implementation(precision: str) -> Implementation:
    call: Callable[..., Tensor] = dft_triton if precision == DEFAULT else partial(dft_triton, precision=precision)
    return Implementation(
        "dft_triton" if precision == DEFAULT else f"dft_triton_{precision}",
        "kernel",
        call,
        f"truncated DFT, product and inverse as three Triton kernels, operands in {precision}",
        available=triton_unavailable,
        supports=supports,
        tolerance=PRECISIONS[precision].tolerance,
    )


IMPLEMENTATIONS = tuple(map(_implementation, (DEFAULT, *(name for name in PRECISIONS if name != DEFAULT))))

# --- the operators --------------------------------------------------------------------------------------------------

Ints = Sequence[int]


@torch.library.custom_op("spectralkernels::dft_triton_conv", mutates_args=())
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    precision: str,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and the kept spectrum of x that backward reuses."""
    from spectralkernels.convolution.dft_triton import chain

    geometry = chain.Geometry(tuple(n), tuple(kept), tuple(starts), groups, precision)
    return chain.forward(x.contiguous(), weight.contiguous(), bias, geometry, tuple(out), relu)


@_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    out: Ints,
    precision: str,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    rows = min(2 * kept[0] - 1, n[0]) if len(n) == 2 else 1
    z = x.new_empty((kept[-1], rows, 2, x.shape[0] * x.shape[1]), dtype=PRECISIONS[precision].storage)
    return x.new_empty((x.shape[0], weight.shape[0], *out)), z


@torch.library.custom_op("spectralkernels::dft_triton_conv_backward", mutates_args=())
def _conv_backward(
    dy: Tensor,
    gate: Tensor | None,
    z: Tensor,
    weight: Tensor,
    starts: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    size: Ints,
    precision: str,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dw, db): the transposed maps; a gradient that is not needed comes back empty."""
    from spectralkernels.convolution.dft_triton import chain

    geometry = chain.Geometry(tuple(n), tuple(kept), tuple(starts), groups, precision)
    needs = (need_x, need_weight, need_bias)
    return chain.backward(dy.contiguous(), gate, z, weight.contiguous(), geometry, tuple(size), needs)


@_conv_backward.register_fake
def _(
    dy: Tensor,
    gate: Tensor | None,
    z: Tensor,
    weight: Tensor,
    starts: Ints,
    groups: int,
    n: Ints,
    kept: Ints,
    size: Ints,
    precision: str,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx_shape = (dy.shape[0], weight.shape[1] * groups, *size) if need_x else (0,)
    dw = weight.new_empty(weight.shape if need_weight else (0,))
    return dy.new_empty(dx_shape), dw, dy.new_empty((dy.shape[1] if need_bias else 0,), dtype=weight.dtype)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, starts, groups, n, kept, _, precision, relu = inputs
    y, z = output
    ctx.mark_non_differentiable(z)
    ctx.save_for_backward(y if relu else None, z, weight)
    ctx.geometry = (starts, groups, n, kept, list(x.shape[2:]), precision)


def _differentiate(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx, dw, db = _conv_backward(dy, *ctx.saved_tensors, *ctx.geometry, need_x, need_weight, need_bias)
    gradients = (dx if need_x else None, dw if need_weight else None, db if need_bias else None)
    return (*gradients, None, None, None, None, None, None, None)


_conv.register_autograd(_differentiate, setup_context=_remember)
