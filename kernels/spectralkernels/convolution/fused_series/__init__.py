"""Depthwise band-limited 1-D convolution of series up to 4096 long, fused into one Triton launch (exact backward).

    y = E (D x . conj(D_w w)) + b      one load of x, one store of y; the kernel's own transform is part of the launch

Two forms, the cheaper of which a call gets (`geometry.form`):

dense       D is one matrix [2 F, L]: any N, also a prime one. 8 L F operations per series there and back.
two-level   N = N1 N2: a product over rows, a turn, a product over columns, of which the band drops its share and the
            sign of a frequency costs nothing: 4 L (N1 / 2 + 1) + 4 N2 F' operations each way, F' = F up to the tiles.

Prediction for 8 series in each of 768 channels, bf16, half of the spectrum dropped, on an H200 (4.3 TB/s, 790 TFLOP/s,
132 multiprocessors that issue 4 instructions a cycle at 1.75 GHz), microseconds, padding included:

    L     N               bytes   operations     warp instructions   slowest: share of the floor in bytes
    1024  1029 = 21 x 49    5.9    3.2 G   4.1    1604 a series 10.7   55 %
    1024  1088 = 17 x 64    5.9    2.4 G   3.1    1212           8.1   73 %
    2048  2112 = 33 x 64   11.7    6.4 G   8.2    1928          12.8   91 %
    4096  4116 = 42 x 98   23.4   25.8 G  32.6    3372          22.4   72 %
    4096  4160 = 65 x 64   23.4   19.3 G  24.5    3112          20.7   96 %

Products of 64 rows and 32 to 128 columns seldom pass half of a tensor core's peak: at 400 TFLOP/s the last row takes
48 us, 49 % of the floor. What overlaps is not known without a GPU. A circle that is no multiple of 64 pays for padding
and narrow loads; `grid` may be any size that fits, so a layer that is free to choose takes 64 ceil((L + K / 2) / 64).

A backward pass is two launches and a small sum: dx by the same kernel with series and output exchanged, dw by one that
sums over the batch in registers and writes partial sums, added in a fixed order (no atomics). Saved for it are the
weight and the smaller of x (nothing is written) and its kept spectrum (written by the same launch).

Registers, shared memory and instructions per architecture are kept in tests/ops/test_fused_depthwise_1d_aot.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution.fused_depthwise.precision import PRECISIONS, Precision, precision
from spectralkernels.convolution.fused_series.geometry import LARGEST_DENSE, Digits, Form, Geometry, chosen_form, form
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.declare import Implementation
from spectralkernels.launch import triton_unavailable
from spectralkernels.operators import operator
from spectralkernels.spectra import Band

LONGEST = 4096
"""Series, output and kernel that a program can hold."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def fused_series(
    x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, *, accuracy: str = "tf32x3"
) -> Tensor:
    """Convolve each series with its own kernel under a band limit.

    x: Real [B, C, length]. weight: Real [C, 1, kernel]. bias: Real [C] or None. accuracy: a name of `PRECISIONS`.
    Returns: Real [B, C, out], dtype of x.
    Raises: Unsupported (through `dispatch`) where `supports` has a reason; RangeError on an unknown class.
    """
    geometry, chosen = geometry_of(band), precision(accuracy)
    smaller = 2 * geometry.kept * chosen.kept(x.dtype).itemsize < x.shape[2] * x.itemsize
    # Bytes decide which of the two is saved; without a gradient of the kernel neither is.
    keep = smaller and torch.is_grad_enabled() and weight.requires_grad
    y, _ = _conv(x, weight, bias, geometry.out, geometry.start, geometry.n, geometry.kept, accuracy, keep)
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
    if len(band.n) != 1:
        return "it convolves series, not maps"
    if not groups == x.shape[1] == weight.shape[0]:
        return (
            "it convolves each series with one kernel, so groups, channels and out_channels must be equal, "
            f"got {groups}, {x.shape[1]} and {weight.shape[0]}"
        )
    if x.dtype not in DTYPES:
        return f"it takes float32, float16 or bfloat16 series, got {str(x.dtype).removeprefix('torch.')}"
    longest = max(*band.size, *band.out, *band.kernel)
    if longest > LONGEST:
        return f"series, output and kernel must not be longer than {LONGEST}, got {longest}; take dft_triton"
    chosen = precision(accuracy)
    found = form(geometry_of(band), chosen)
    if found is None:
        aligned = -(-max(band.n[0], 64) // 64) * 64
        return (
            f"N = {band.n[0]} splits into no two factors that fit a program of class {accuracy}, and series above "
            f"{LARGEST_DENSE} need that; pass grid='fast', or grid={aligned} for the widest loads"
        )
    if x.is_cuda and torch.cuda.get_device_capability(x.device)[0] in TCGEN05:
        return tcgen05_refuses(found, chosen)
    return None


TCGEN05 = (10, 11)
"""Major compute capabilities whose tensor cores keep results and split operands in 512 columns of a memory of their
own; a kernel that needs more compiles to nothing."""


def tcgen05_refuses(found: Form, chosen: Precision) -> str | None:
    """Why such tensor cores cannot serve a class, or None."""
    if chosen.mode == "ieee":
        return "on this GPU Triton gives float32 products to tensor cores, which round them; take tf32x3"
    if chosen.pieces > 1 and isinstance(found, Digits) and found.j > 32:
        return f"N1 = {found.n1} needs more tensor memory for {chosen.name} operands than this GPU has; take tf32"
    return None


def geometry_of(band: Band) -> Geometry:
    """The geometry of a 1-D band."""
    return Geometry(band.size[0], band.out[0], band.kernel[0], -band.pad[0][0], band.n[0], band.kept[0])


# --- the operators --------------------------------------------------------------------------------------------------


@operator("fused_series", dense=True)
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: int,
    start: int,
    n: int,
    kept: int,
    accuracy: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and the kept spectrum of x if `keep`, else nothing."""
    from spectralkernels.convolution.fused_series.launches import convolve_launch

    geometry, chosen = Geometry(x.shape[2], out, weight.shape[2], start, n, kept), precision(accuracy)
    found = chosen_form(geometry, chosen)
    y = torch.empty((*x.shape[:2], out), dtype=x.dtype, device=x.device)
    reals = found.kept_reals if keep else 0
    modes = torch.empty((*x.shape[:2], reals), dtype=chosen.kept(x.dtype), device=x.device)
    convolve_launch(x, weight, bias, y, modes if keep else None, geometry, found, chosen).run()
    return y, modes


@_conv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: int,
    start: int,
    n: int,
    kept: int,
    accuracy: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    chosen, reals = precision(accuracy), 0
    if keep:
        # The digits of a circle are no formula of a symbolic length.
        sizes = (int(x.shape[2]), out, int(weight.shape[2]))
        reals = chosen_form(Geometry(*sizes, start, n, kept), chosen).kept_reals
    modes = x.new_empty(*x.shape[:2], reals, dtype=chosen.kept(x.dtype))
    return x.new_empty(*x.shape[:2], out), modes


@operator("fused_series_backward", dense=True)
def _conv_backward(
    dy: Tensor,
    saved: Tensor,
    weight: Tensor,
    size: int,
    start: int,
    n: int,
    kept: int,
    accuracy: str,
    kept_modes: bool,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """(dx, dw); saved is Z if `kept_modes`, else x. A gradient that is not needed comes back empty."""
    from spectralkernels.convolution.fused_series.launches import (
        convolve_launch,
        partial_sums,
        weight_gradient_launch,
    )

    geometry, chosen = Geometry(size, dy.shape[2], weight.shape[2], start, n, kept), precision(accuracy)
    found = chosen_form(geometry, chosen)
    batch, channels = dy.shape[:2]
    dx, dw = dy.new_empty(0), weight.new_empty(0)
    if need_x:
        dx = torch.empty((batch, channels, size), dtype=dy.dtype, device=dy.device)
        convolve_launch(dy, weight, None, dx, None, geometry, found, chosen, reflected=True).run()
    if need_weight:
        shape = (partial_sums(batch, channels, found), channels, geometry.taps)
        sums = torch.empty(shape, dtype=torch.float32, device=dy.device)
        x, modes = (None, saved) if kept_modes else (saved, None)
        weight_gradient_launch(dy, x, modes, sums, geometry, found, chosen).run()
        dw = sums.sum(0).unsqueeze(1).to(weight.dtype)
    return dx, dw


@_conv_backward.register_fake
def _(
    dy: Tensor,
    saved: Tensor,
    weight: Tensor,
    size: int,
    start: int,
    n: int,
    kept: int,
    accuracy: str,
    kept_modes: bool,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    dx = dy.new_empty(*dy.shape[:2], size) if need_x else dy.new_empty(0)
    return dx, weight.new_empty(weight.shape if need_weight else (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, _, start, n, kept, accuracy, keep = inputs
    ctx.mark_non_differentiable(output[1])
    # A frozen weight costs no saved x.
    saved = output[1] if keep or not ctx.needs_input_grad[1] else x
    ctx.save_for_backward(saved, weight)
    ctx.geometry = (x.shape[2], start, n, kept, accuracy, keep)


def _differentiate(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx, dw = None, None
    if need_x or need_weight:
        dx, dw = _conv_backward(dy, *ctx.saved_tensors, *ctx.geometry, need_x, need_weight)
    return (
        dx if need_x else None,
        dw if need_weight else None,
        dy.sum((0, 2)) if need_bias else None,
        *(None for _ in range(6)),
    )


_conv.register_autograd(_differentiate, setup_context=_save)


# --- declaration ----------------------------------------------------------------------------------------------------


def _implementation(accuracy: str, name: str) -> Implementation:
    return Implementation(
        name,
        "kernel",
        partial(fused_series, accuracy=accuracy),
        f"depthwise truncated DFT of series, product and inverse in one Triton launch, operands in {accuracy}",
        engine="triton",
        available=triton_unavailable,
        supports=partial(supports, accuracy=accuracy),
        tolerance=PRECISIONS[accuracy].tolerance,
    )


IMPLEMENTATIONS = (
    _implementation("tf32x3", "fused_series"),
    *(_implementation(accuracy, f"fused_series_{accuracy}") for accuracy in PRECISIONS if accuracy != "tf32x3"),
)
