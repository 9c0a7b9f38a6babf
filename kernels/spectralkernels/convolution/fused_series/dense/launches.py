"""How the dense kernels are launched: matrices, warps, series per program."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from spectralkernels.constants import Recalled
from spectralkernels.convolution.fused.operators import Convolve
from spectralkernels.convolution.fused.precision import Precision
from spectralkernels.convolution.fused_series.dense.kernels import convolve_kernel, weight_gradient_kernel
from spectralkernels.convolution.fused_series.dense.matrices import DenseMatrices, matrices
from spectralkernels.convolution.fused_series.geometry import SeriesGeometry, Whole
from spectralkernels.launch import Launch, LaunchPlan, planned_launch, triton_dtype

ENOUGH_PROGRAMS = 132
"""One for each of an H200's multiprocessors."""


def convolve_launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    modes: Tensor | None,
    geometry: SeriesGeometry,
    tile: Whole,
    precision: Precision,
    reflected: bool = False,
) -> Launch:
    """The launch that fills `y`, and `modes` with the kept spectrum of x.

    x: Real [batch, channel, size], y: Real [batch, channel, out], weight: Real [channel, 1, taps], bias:
    Real [channel] or None, modes: Real [batch, channel, k, 2] or None; all contiguous.
    reflected: x and y are dy and dx: series and output are exchanged and the kernel's spectrum is not conjugated.
    """
    made = matrices(geometry, tile, precision, x.device)
    plan = _convolution_plan(x.shape[0], x.shape[1], geometry, tile, precision, reflected)
    return _convolution(plan, x, weight, bias, y, modes, made, tile, precision, reflected)


def planned(
    batch: int, channels: int, geometry: SeriesGeometry, tile: Whole, precision: Precision, device: torch.device
) -> Convolve:
    """What makes the launches of `convolve_launch` for series of these sizes."""
    kept = Recalled(matrices, geometry, tile, precision, device)
    plan = _convolution_plan(batch, channels, geometry, tile, precision, False)
    return lambda x, weight, bias, y, modes: _convolution(plan, x, weight, bias, y, modes, kept(), tile, precision)


def _convolution(
    plan: LaunchPlan,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    modes: Tensor | None,
    made: DenseMatrices,
    tile: Whole,
    precision: Precision,
    reflected: bool = False,
) -> Launch:
    shape = (x.shape[0] * x.shape[1], 2 * tile.frequencies)
    return plan.of(
        {
            "x_ptr": x,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "y_ptr": y,
            "modes_ptr": modes,
            "product_ptr": torch.empty(shape, dtype=precision.operand, device=x.device),
            "analyse_ptr": made.analyse_out if reflected else made.analyse_in,
            "analyse_taps_ptr": made.analyse_taps,
            "synthesise_ptr": made.synthesise_in if reflected else made.synthesise_out,
        }
    )


@planned_launch
def _convolution_plan(
    batch: int, channels: int, geometry: SeriesGeometry, tile: Whole, precision: Precision, reflected: bool
) -> LaunchPlan:
    size, out = (geometry.out, geometry.size) if reflected else (geometry.size, geometry.out)
    series = batch * channels
    rows = rows_per_program(series)
    return LaunchPlan(
        kernel=convolve_kernel,
        grid=(triton.cdiv(series, rows),),
        numbers={
            "series": series,
            "channels": channels,
            **_constants(geometry, tile, precision),
            "SIZE": size,
            "OUT": out,
            "WIDTH": tile.width(size),
            "WIDTH_OUT": tile.width(out),
            "P": rows,
            "CONJUGATE": not reflected,
        },
        options={"num_warps": 4, "num_stages": 2},
    )


def weight_gradient_launch(
    dy: Tensor,
    x: Tensor | None,
    modes: Tensor | None,
    partial: Tensor,
    geometry: SeriesGeometry,
    tile: Whole,
    precision: Precision,
) -> Launch:
    """The launch that fills `partial`, Float32 [programs per channel, channel, taps], whose sum is the gradient.

    Exactly one of x (series) and modes (their kept spectrum) is given.
    """
    made = matrices(geometry, tile, precision, dy.device)
    plan = _weight_gradient_plan(dy.shape[0], dy.shape[1], partial.shape[0], geometry, tile, precision)
    tensors = {"dy_ptr": dy, "x_ptr": x, "modes_ptr": modes, "partial_ptr": partial}
    matrix = {
        "analyse_dy_ptr": made.analyse_out,
        "analyse_x_ptr": made.analyse_in,
        "synthesise_taps_ptr": made.synthesise_taps,
    }
    return plan.of({**tensors, **matrix})


@planned_launch
def _weight_gradient_plan(
    batch: int, channels: int, sums: int, geometry: SeriesGeometry, tile: Whole, precision: Precision
) -> LaunchPlan:
    return LaunchPlan(
        kernel=weight_gradient_kernel,
        grid=(sums * triton.cdiv(channels, MOST_ROWS) if batch else 0,),
        numbers={
            "batch": batch,
            "channels": channels,
            **_constants(geometry, tile, precision),
            "SIZE": geometry.size,
            "OUT": geometry.out,
            "WIDTH": tile.width(geometry.size),
            "WIDTH_OUT": tile.width(geometry.out),
            "P": MOST_ROWS,
            "IMAGES": _images(batch, channels, tile),
        },
        options={"num_warps": 4, "num_stages": 2},
    )


MOST_ROWS = 64
"""Series per program: what a warpgroup's product takes."""


def rows_per_program(series: int) -> int:
    """How many series share a pass over the matrices: as many as leave a large GPU enough programs."""
    rows = MOST_ROWS
    while rows > 16 and triton.cdiv(series, rows) < ENOUGH_PROGRAMS:
        rows //= 2
    return rows


def partial_sums(batch: int, channels: int, tile: Whole) -> int:
    """How many partial sums per channel the kernel of `weight_gradient_launch` writes."""
    return triton.cdiv(batch, _images(batch, channels, tile)) * (tile.frequencies // tile.f)


def _images(batch: int, channels: int, tile: Whole) -> int:
    per_image = triton.cdiv(channels, MOST_ROWS) * (tile.frequencies // tile.f)
    images = 32
    while images > 1 and (images >= 2 * batch or triton.cdiv(batch, images) * per_image < ENOUGH_PROGRAMS):
        images //= 2
    return images


def _constants(geometry: SeriesGeometry, tile: Whole, precision: Precision) -> dict[str, Any]:
    """Compile-time arguments that both kernels share."""
    return {
        "TAPS": geometry.taps,
        "KEPT": geometry.kept,
        "WIDTH_TAPS": tile.width(geometry.taps),
        "FREQUENCIES": tile.frequencies,
        "F": tile.f,
        "BLOCK": tile.block,
        "MMA": triton_dtype(precision.operand),
        "PRECISION": precision.mode,
    }
