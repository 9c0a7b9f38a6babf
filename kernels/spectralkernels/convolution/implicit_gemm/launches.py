"""How the kernels of the depthwise implicit GEMM are launched, and which launches are watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from spectralkernels.convolution.implicit_gemm.blocks import Blocks, Sides, blocks_of, operand
from spectralkernels.convolution.implicit_gemm.kernels import convolve_kernel, weight_gradient_kernel
from spectralkernels.launch import Launch, LaunchPlan, NamedLaunch, planned_launch, triton_dtype


def convolve_launch(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, pad: tuple[int, int]) -> Launch:
    """The launch that fills y[b, c, h, w] = sum over r, t of x[b, c, h + r - pad, w + t - pad] weight[c, 0, r, t].

    x: Real [batch, channel, H, W], weight: [channel, 1, *taps], bias: [channel] or None, y: [batch, channel, *out];
    all contiguous. pad may be below 0.
    """
    sides = Sides(tuple(x.shape[2:]), tuple(y.shape[2:]), tuple(weight.shape[2:]), pad)
    return planned(sides, x.shape[0], x.shape[1], x.dtype)(x, weight, bias, y)


def planned(
    sides: Sides, batch: int, channels: int, dtype: torch.dtype
) -> Callable[[Tensor, Tensor, Tensor | None, Tensor], Launch]:
    """What makes the launches of `convolve_launch` for maps of these sizes."""
    plan = _convolution_plan(sides, batch, channels, dtype)
    return lambda x, weight, bias, y: plan.of({"x_ptr": x, "weight_ptr": weight, "bias_ptr": bias, "y_ptr": y})


@planned_launch
def _convolution_plan(sides: Sides, batch: int, channels: int, dtype: torch.dtype) -> LaunchPlan:
    blocks, rows = blocks_of(sides), batch * sides.out[0]
    return LaunchPlan(
        kernel=convolve_kernel,
        grid=(triton.cdiv(rows, blocks.rows) * channels * blocks.across,),
        numbers={"rows": rows, "channels": channels, **_constants(sides, blocks, dtype)},
        # Three of float32 would not fit the shared memory of a smaller GPU.
        options={"num_warps": blocks.warps, "num_stages": 3 if dtype.itemsize == 2 else 2},
    )


def weight_gradient_launch(dy: Tensor, x: Tensor, partial: Tensor, pad: tuple[int, int]) -> Launch:
    """The launch that fills `partial`, Float32 [pieces, channel, *taps], whose sum over pieces is the gradient.

    dy: Real [batch, channel, *out], x: Real [batch, channel, H, W]; contiguous. pieces: blocks across times chunks.
    """
    sides = Sides(tuple(x.shape[2:]), tuple(dy.shape[2:]), tuple(partial.shape[2:]), pad)
    plan = _weight_gradient_plan(sides, x.shape[0], x.shape[1], partial.shape[0], x.dtype)
    return plan.of({"dy_ptr": dy, "x_ptr": x, "partial_ptr": partial})


@planned_launch
def _weight_gradient_plan(sides: Sides, batch: int, channels: int, pieces: int, dtype: torch.dtype) -> LaunchPlan:
    blocks = blocks_of(sides)
    constants = {**_constants(sides, blocks, dtype), "BLOCK_M": min(64, blocks.rows)}
    return LaunchPlan(
        kernel=weight_gradient_kernel,
        grid=(pieces * channels * sides.taps[0],),
        numbers={"rows": batch * sides.out[0], "channels": channels, **constants},
        options={"num_warps": 4, "num_stages": 3},
    )


def _constants(sides: Sides, blocks: Blocks, dtype: torch.dtype) -> dict[str, Any]:
    named = {"": sides.size, "OUT_": sides.out, "TAPS_": sides.taps, "PAD_": sides.pad}
    lengths = {f"{name}{axis}": value for name, pair in named.items() for axis, value in zip("HW", pair, strict=True)}
    return {
        **lengths,
        "BLOCK_M": blocks.rows,
        "BLOCK_IN": blocks.inner,
        "BLOCK_OUT": blocks.outer,
        "CHUNKS": blocks.chunks,
        "MMA": triton_dtype(operand(dtype)),
    }


def _watched(kind: str, batch: int, channels: int, side: int, taps: int, dtype: torch.dtype) -> NamedLaunch:
    def call() -> None:
        pad = (taps // 2, taps // 2)
        x = torch.empty(batch, channels, side, side, dtype=dtype, device="meta")
        weight = torch.empty(channels, 1, taps, taps, dtype=dtype, device="meta")
        if kind == "forward":
            bias = torch.empty(channels, dtype=dtype, device="meta")
            convolve_launch(x, weight, bias, torch.empty_like(x), pad).run()
        else:
            sums = torch.empty(1, channels, taps, taps, device="meta")
            weight_gradient_launch(x, x, sums, pad).run()

    kept = str(dtype).removeprefix("torch.")
    return NamedLaunch(f"{kind} {kept} B{batch} C{channels} {side}x{side} K{taps}x{taps}", call)


FINGERPRINTS = (
    _watched("forward", 32, 256, 28, 29, torch.bfloat16),
    _watched("dw", 32, 256, 28, 29, torch.bfloat16),
    _watched("forward", 8, 768, 32, 31, torch.bfloat16),
    _watched("forward", 32, 128, 56, 31, torch.float32),
    _watched("forward", 32, 96, 56, 7, torch.bfloat16),
)
"""The depthwise layers of the `gpu` profile."""
