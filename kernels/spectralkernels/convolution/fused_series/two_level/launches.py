"""How the two-level kernels are launched: matrices, warps, series per program."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from spectralkernels.constants import Recalled
from spectralkernels.convolution.fused.operators import Convolve
from spectralkernels.convolution.fused.precision import Precision
from spectralkernels.convolution.fused.share import Share, images_per_program
from spectralkernels.convolution.fused_series.geometry import Digits, SeriesGeometry, wide
from spectralkernels.convolution.fused_series.two_level.kernels import convolve_kernel, weight_gradient_kernel
from spectralkernels.convolution.fused_series.two_level.matrices import TwoLevelMatrices, matrices
from spectralkernels.launch import Launch, LaunchPlan, planned_launch, triton_dtype
from spectralkernels.target import target_capability
from spectralkernels.tuning import Site, rounded

SHARE = Site("fused_series.convolve", {"warps": (1, 8), "images": (1, 32)})


def convolve_launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    modes: Tensor | None,
    geometry: SeriesGeometry,
    split: Digits,
    precision: Precision,
    reflected: bool = False,
) -> Launch:
    """The launch that fills `y`, and `modes` with the kept spectrum of x.

    x: Real [batch, channel, size], y: Real [batch, channel, out], weight: Real [channel, 1, taps], bias:
    Real [channel] or None, modes: Real [batch, channel, 4, lows, highs] or None; all contiguous.
    reflected: x and y are dy and dx: series and output are exchanged and the kernel's spectrum is not conjugated.
    """
    made, capability = matrices(geometry, split, precision, x.device), target_capability(x.device)
    plan = _convolution_plan(x.shape[0], x.shape[1], geometry, split, precision, reflected, capability)
    return _convolution(plan, x, weight, bias, y, modes, made, reflected)


def planned(
    batch: int, channels: int, geometry: SeriesGeometry, split: Digits, precision: Precision, device: torch.device
) -> Convolve:
    """What makes the launches of `convolve_launch` for series of these sizes."""
    kept = Recalled(matrices, geometry, split, precision, device)
    plan = _convolution_plan(batch, channels, geometry, split, precision, False, target_capability(device))
    return lambda x, weight, bias, y, modes: _convolution(plan, x, weight, bias, y, modes, kept())


def _convolution(
    plan: LaunchPlan,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    modes: Tensor | None,
    made: TwoLevelMatrices,
    reflected: bool = False,
) -> Launch:
    return plan.of(
        {
            "x_ptr": x,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "y_ptr": y,
            "modes_ptr": modes,
            "low_in_ptr": made.low_out if reflected else made.low_in,
            "high_in_ptr": made.high,
            "low_taps_ptr": made.low_taps,
            "high_taps_ptr": made.high_taps,
            "twiddle_taps_ptr": made.twiddle_taps,
            "low_out_ptr": made.low_in_back if reflected else made.low_out_back,
            "high_out_ptr": made.high_back,
            "twiddle_ptr": made.twiddle,
        }
    )


@planned_launch
def _convolution_plan(
    batch: int,
    channels: int,
    geometry: SeriesGeometry,
    split: Digits,
    precision: Precision,
    reflected: bool,
    capability: int,
) -> LaunchPlan:
    bucket = {"n1": split.n1, "n2": split.n2, "kept": geometry.kept, "class": precision.name}
    warps = _warps(split, precision)
    share = SHARE.choose(
        {**bucket, "batch": rounded(batch), "channels": rounded(channels)},
        Share(warps, images_per_program(batch, channels, warps, most=8)),
        capability,
    )
    constants = _constants(geometry, split, precision)
    if reflected:
        exchanged = ("SIZE", "OUT"), ("ROWS_IN", "ROWS_OUT")
        constants |= {one: constants[other] for pair in exchanged for one, other in (pair, pair[::-1])}
    return LaunchPlan(
        kernel=convolve_kernel,
        grid=(triton.cdiv(batch, share.images) * channels,),
        numbers={
            "batch": batch,
            "channels": channels,
            **constants,
            "CONJUGATE": not reflected,
            "IMAGES": share.images,
        },
        options={"num_warps": share.warps},
    )


def weight_gradient_launch(
    dy: Tensor,
    x: Tensor | None,
    modes: Tensor | None,
    partial: Tensor,
    geometry: SeriesGeometry,
    split: Digits,
    precision: Precision,
) -> Launch:
    """The launch that fills `partial`, Float32 [programs per channel, channel, taps], whose sum is the gradient.

    Exactly one of x (series) and modes (their kept spectrum) is given.
    """
    split = _narrower(split, precision)
    made = matrices(geometry, split, precision, dy.device)
    plan = _weight_gradient_plan(dy.shape[0], dy.shape[1], partial.shape[0], geometry, split, precision)
    tensors = {"dy_ptr": dy, "x_ptr": x, "modes_ptr": modes, "partial_ptr": partial}
    matrix = {
        "low_dy_ptr": made.low_out,
        "low_x_ptr": made.low_in,
        "high_in_ptr": made.high,
        "twiddle_ptr": made.twiddle,
        "low_taps_ptr": made.low_taps_back,
        "high_taps_ptr": made.high_taps_back,
        "twiddle_taps_ptr": made.twiddle_taps,
    }
    return plan.of({**tensors, **matrix})


@planned_launch
def _weight_gradient_plan(
    batch: int, channels: int, sums: int, geometry: SeriesGeometry, split: Digits, precision: Precision
) -> LaunchPlan:
    return LaunchPlan(
        kernel=weight_gradient_kernel,
        grid=(sums * channels if batch else 0,),
        numbers={
            "batch": batch,
            "channels": channels,
            **_constants(geometry, split, precision),
            "IMAGES": images_per_program(batch, channels, split.warps, most=32),
        },
        options={"num_warps": _warps(split, precision)},
    )


def partial_sums(batch: int, channels: int, split: Digits) -> int:
    """How many partial sums per channel the kernel of `weight_gradient_launch` writes."""
    return triton.cdiv(batch, images_per_program(batch, channels, split.warps, most=32))


def _warps(split: Digits, precision: Precision) -> int:
    # No tensor core fixes which rows a warp owns in fp32, so it takes the registers of twice as many.
    return min(8, 2 * split.warps) if precision.mode == "ieee" else split.warps


def _narrower(split: Digits, precision: Precision) -> Digits:
    """The same with the blocks of columns that leave registers for a second spectrum."""
    in_twiddles = 2 * split.j * split.block // (32 * split.warps)
    block = 16 if wide(precision) else 32 if in_twiddles > 32 else split.block
    return replace(split, block=block, chunks=-(-split.n2 // block))


def _constants(geometry: SeriesGeometry, split: Digits, precision: Precision) -> dict[str, Any]:
    """Compile-time arguments that both kernels share."""
    return {
        "SIZE": geometry.size,
        "OUT": geometry.out,
        "TAPS": geometry.taps,
        "N1": split.n1,
        "N2": split.n2,
        "KEPT": geometry.kept,
        "LOWS": split.lows,
        "HIGHS": split.highs,
        "ROWS_IN": split.rows_in,
        "ROWS_OUT": split.rows_out,
        "ROWS_TAPS": split.rows_taps,
        "J": split.j,
        "U": split.u,
        "BLOCK": split.block,
        "CHUNKS": split.chunks,
        # A second series in flight hides its load; split operands and fp32 leave no registers for it.
        "STAGES": 1 if wide(precision) else 2,
        "MMA": triton_dtype(precision.operand),
        "PRECISION": precision.mode,
    }
