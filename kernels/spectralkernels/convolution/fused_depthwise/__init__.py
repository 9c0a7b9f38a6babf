"""Depthwise band-limited 2-D convolution of planes up to 64 x 64, fused into one Triton launch (exact backward).

    y = E (D x . conj(D_w w)) + b      one load of x, one store of y; the kernel's own transform is part of the launch

Without a gradient of the kernel no spectrum crosses memory. A backward pass is two launches and a small sum: dx by the
same kernel with transposed matrices, dw by one that sums over the batch in registers and writes partial sums, added in
a fixed order (no atomics). Saved for it are the weight and the smaller of x (nothing is written) and the 2 F kept reals
of its spectrum (written by the same launch): at c = 0.5 the spectrum, 0.54 of x for 32 x 32 with K = 7 and 0.97 with
K = 31; x itself for 28 x 28 with K = 29.

Registers, shared memory and instructions per architecture are kept in tests/ops/test_fused_depthwise_aot.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution.fused_depthwise.operators import Geometry, tiles
from spectralkernels.convolution.fused_depthwise.precision import PRECISIONS, Precision, precision
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.declare import Implementation
from spectralkernels.launch import triton_unavailable
from spectralkernels.operators import operator
from spectralkernels.spectra import Band
from spectralkernels.target import SHARED_LIMITS, TensorCore, tensor_core

LARGEST_SIDE = 64
"""Of map, output and kernel: the tile that one program holds."""

LARGEST_KEPT = {torch.float32: 32, torch.bfloat16: 64, torch.float16: 64}
"""Frequencies per axis by the dtype of the operands: the matrices of a program must fit its shared memory."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def fused_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, *, accuracy: str = "tf32x3"
) -> Tensor:
    """Convolve each map with its own kernel under a band limit.

    x: Real [B, C, height, width]. weight: Real [C, 1, kernel_height, kernel_width]. bias: Real [C] or None.
    accuracy: a name of `PRECISIONS`. Returns: Real [B, C, *out], dtype of x.
    Raises: Unsupported (through `dispatch`) where `supports` has a reason; RangeError on an unknown class.
    """
    geometry = _geometry_of(x, weight, band)
    smaller = geometry.kept_reals * precision(accuracy).kept(x.dtype).itemsize < x.shape[2] * x.shape[3] * x.itemsize
    # Bytes decide which of the two is saved; without a gradient of the kernel neither is.
    keep = smaller and torch.is_grad_enabled() and weight.requires_grad
    y, _ = _conv(x, weight, bias, geometry.starts, geometry.n, geometry.kept, geometry.out, accuracy, keep)
    return y


def supports(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None,
    band: Band,
    groups: int,
    *,
    accuracy: str = "tf32x3",
) -> str | None:
    """Why the fused kernel cannot serve a call, or None."""
    if isinstance(weight, WeightSpectrum):
        return "it takes a weight tensor, not a WeightSpectrum"
    if len(band.n) != 2:
        return "it convolves maps, not series"
    if not groups == x.shape[1] == weight.shape[0]:
        return (
            "it convolves each map with one kernel, so groups, channels and out_channels must be equal, "
            f"got {groups}, {x.shape[1]} and {weight.shape[0]}"
        )
    if x.dtype not in DTYPES:
        return f"it takes float32, float16 or bfloat16 maps, got {str(x.dtype).removeprefix('torch.')}"
    if max(*band.size, *band.out, *band.kernel) > LARGEST_SIDE:
        return (
            f"map, output and kernel must fit {LARGEST_SIDE} x {LARGEST_SIDE}, "
            f"got {band.size}, {band.out} and {band.kernel}; a larger one takes three launches"
        )
    chosen = PRECISIONS[accuracy]
    if max(band.kept) > LARGEST_KEPT[chosen.operand]:
        return (
            f"with {accuracy} operands it holds {LARGEST_KEPT[chosen.operand]} frequencies per axis, "
            f"this band keeps {band.kept}; compress more or take a half-precision class"
        )
    geometry = _geometry_of(x, weight, band)
    reason = _too_large(geometry, chosen, tensor_core(x.device))
    if reason is not None:
        return reason
    need = shared_memory(geometry, chosen)
    if x.is_cuda and need > min(SHARED_LIMITS.values()):
        major, minor = torch.cuda.get_device_capability(x.device)
        limit = SHARED_LIMITS.get(10 * major + minor, need)
        if need > limit:
            return f"it needs {need} bytes of shared memory, a block here has {limit}; take a half-precision class"
    return None


def _too_large(geometry: Geometry, chosen: Precision, core: TensorCore) -> str | None:
    """Why operands of 64 rows do not fit the registers of a class, or None.

    In fp32 Triton 3.7 would also hand some products of 64 rows to sm_100's tensor cores, rounded to tf32.
    """
    tile = tiles(geometry)
    if tile.largest <= 32:
        return None
    if chosen.mode == "ieee":
        return (
            f"in fp32 it holds maps, outputs and kernels of 32 x 32 and 16 frequencies per axis, got {geometry.size}, "
            f"{geometry.out}, {geometry.taps} and {geometry.kept}; take bf16x6 or tf32x3, as accurate"
        )
    wide_band = max(*tile.size, *tile.out) <= 32 < 2 * max(tile.u, tile.v)
    if core == "tcgen05" and (chosen.pieces == 3 or (chosen.pieces == 2 and wide_band)):
        return (
            f"the pieces of {chosen.name} operands with {geometry.kept} frequencies of {geometry.size} maps overflow "
            "this GPU's registers and tensor memory; compress more or take three launches"
        )
    return None


def shared_memory(geometry: Geometry, chosen: Precision) -> int:
    """Bytes of shared memory per program on a GPU whose tensor cores read registers: matrices, and planes in flight."""
    tile = tiles(geometry)
    matrices = 2 * tile.v * (tile.size[1] + tile.out[1]) + 2 * tile.u * (tile.size[0] + tile.out[0])
    plane = max(*tile.size, *tile.out, *tile.taps, 2 * tile.v) ** 2
    in_flight = plane if tile.largest <= 32 else 0
    return chosen.pieces * chosen.piece_size * (matrices + plane) + chosen.operand.itemsize * in_flight


def _geometry_of(x: Tensor, weight: Tensor, band: Band) -> Geometry:
    return _geometry(x.shape[2:], band.out, weight.shape[2:], [-before for before, _ in band.pad], band.n, band.kept)


def _geometry(size: Ints, out: Ints, taps: Ints, starts: Ints, n: Ints, kept: Ints) -> Geometry:
    return Geometry(tuple(size), tuple(out), tuple(taps), tuple(starts), tuple(n), tuple(kept))


# --- the operators --------------------------------------------------------------------------------------------------

Ints = Sequence[int]


@operator("fused_depthwise", dense=True)
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Ints,
    n: Ints,
    kept: Ints,
    out: Ints,
    accuracy: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and the kept spectrum of x if `keep`, else nothing."""
    from spectralkernels.convolution.fused_depthwise.launches import convolve_launch

    geometry, chosen = _geometry(x.shape[2:], out, weight.shape[2:], starts, n, kept), precision(accuracy)
    y = x.new_empty(*x.shape[:2], *out)
    modes = x.new_empty(*x.shape[:2], geometry.kept_reals, dtype=chosen.kept(x.dtype)) if keep else None
    convolve_launch(x, weight, bias, y, modes, geometry, chosen).run()
    return y, x.new_empty(0) if modes is None else modes


@_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Ints,
    n: Ints,
    kept: Ints,
    out: Ints,
    accuracy: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(*x.shape[:2], *out)
    if not keep:
        return y, x.new_empty(0)
    reals = _geometry(x.shape[2:], out, weight.shape[2:], starts, n, kept).kept_reals
    return y, x.new_empty(*x.shape[:2], reals, dtype=precision(accuracy).kept(x.dtype))


@operator("fused_depthwise_backward", dense=True)
def _conv_backward(
    dy: Tensor,
    saved: Tensor,
    weight: Tensor,
    starts: Ints,
    n: Ints,
    kept: Ints,
    size: Ints,
    accuracy: str,
    kept_modes: bool,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dw, db); saved is Z if `kept_modes`, else x. A gradient that is not needed comes back empty.

    The spectrum of dy that dw is made of holds its sums, in the accuracy of the class.
    """
    from spectralkernels.convolution.fused_depthwise.launches import (
        map_gradient_launch,
        partial_sums,
        weight_gradient_launch,
    )

    geometry, chosen = _geometry(size, dy.shape[2:], weight.shape[2:], starts, n, kept), precision(accuracy)
    batch, channels = dy.shape[:2]
    dx, dw, db = dy.new_empty(0), weight.new_empty(0), dy.new_empty(0)
    if need_x:
        dx = dy.new_empty(batch, channels, *size)
        map_gradient_launch(dy, weight, dx, geometry, chosen).run()
    if need_weight:
        count = partial_sums(batch, channels, geometry, chosen)
        sums = dy.new_empty(count, channels, *geometry.taps, dtype=torch.float32)
        x, modes = (None, saved) if kept_modes else (saved, None)
        bias = sums.new_empty(count, channels) if need_bias else None
        weight_gradient_launch(dy, x, modes, sums, geometry, chosen, bias).run()
        dw = sums.sum(0).unsqueeze(1).to(weight.dtype)
        if bias is not None:
            db = bias.sum(0).to(dy.dtype)
    elif need_bias:
        db = dy.sum((0, 2, 3))
    return dx, dw, db


@_conv_backward.register_fake
def _(
    dy: Tensor,
    saved: Tensor,
    weight: Tensor,
    starts: Ints,
    n: Ints,
    kept: Ints,
    size: Ints,
    accuracy: str,
    kept_modes: bool,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = dy.new_empty(*dy.shape[:2], *size) if need_x else dy.new_empty(0)
    return dx, weight.new_empty(weight.shape if need_weight else (0,)), dy.new_empty(dy.shape[1] if need_bias else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, starts, n, kept, _, accuracy, keep = inputs
    ctx.mark_non_differentiable(output[1])
    # A frozen weight costs no saved x.
    saved = output[1] if keep or not ctx.needs_input_grad[1] else x
    ctx.save_for_backward(saved, weight)
    ctx.geometry = (starts, n, kept, list(x.shape[2:]), accuracy, keep)


def _differentiate(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx, dw, db = _conv_backward(dy, *ctx.saved_tensors, *ctx.geometry, need_x, need_weight, need_bias)
    gradients = (dx if need_x else None, dw if need_weight else None, db if need_bias else None)
    return *gradients, *(None for _ in range(6))


_conv.register_autograd(_differentiate, setup_context=_save)


# --- declaration ----------------------------------------------------------------------------------------------------


def _implementation(accuracy: str, name: str) -> Implementation:
    return Implementation(
        name,
        "kernel",
        partial(fused_depthwise, accuracy=accuracy),
        f"depthwise truncated DFT, product and inverse in one Triton launch, operands in {accuracy}",
        engine="triton",
        available=triton_unavailable,
        supports=partial(supports, accuracy=accuracy),
        tolerance=PRECISIONS[accuracy].tolerance,
    )


IMPLEMENTATIONS = (
    _implementation("tf32x3", "fused_depthwise"),
    *(_implementation(accuracy, f"fused_depthwise_{accuracy}") for accuracy in PRECISIONS if accuracy != "tf32x3"),
)
