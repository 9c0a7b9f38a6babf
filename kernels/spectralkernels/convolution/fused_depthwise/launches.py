"""How the fused depthwise kernels are launched: matrices, warps, planes per program, and which launches are watched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from spectralkernels.constants import Recalled, planned
from spectralkernels.convolution.fused.kept import Sums
from spectralkernels.convolution.fused.operators import Convolve
from spectralkernels.convolution.fused.precision import PRECISIONS, Precision
from spectralkernels.convolution.fused.precision import precision as precision_of
from spectralkernels.convolution.fused.share import Share, images_per_program
from spectralkernels.convolution.fused_depthwise.kernels import convolve_kernel, weight_gradient_kernel
from spectralkernels.convolution.fused_depthwise.matrices import (
    MapGeometry,
    Operators,
    Pair,
    kept_sums,
    operators,
    tiles,
)
from spectralkernels.launch import Launch, LaunchPlan, NamedLaunch, planned_launch, triton_dtype
from spectralkernels.target import TensorCore, kind_of, target_capability
from spectralkernels.tuning import Site, rounded


@dataclass(frozen=True, slots=True)
class MapForm:
    """The transforms of maps, see `fused.operators.Form`."""

    geometry: MapGeometry
    precision: Precision
    sums_dy = True

    @property
    def kept_reals(self) -> int:
        return self.geometry.kept_reals

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, modes: Tensor | None) -> Launch:
        return convolve_launch(x, weight, bias, y, modes, self.geometry, self.precision)

    def planned(self, batch: int, channels: int, device: torch.device) -> Convolve:
        made = Recalled(operators, self.geometry, self.precision, device)
        plan = _convolution_plan(batch, channels, self.geometry, self.precision, target_capability(device))
        return lambda x, weight, bias, y, modes: _convolution(plan, x, weight, bias, y, modes, _forth(made()))

    def map_gradient(self, dy: Tensor, weight: Tensor, dx: Tensor) -> Launch:
        return map_gradient_launch(dy, weight, dx, self.geometry, self.precision)

    def weight_gradient(
        self, dy: Tensor, x: Tensor | None, modes: Tensor | None, partial: Tensor, bias: Tensor | None
    ) -> Launch:
        return weight_gradient_launch(dy, x, modes, partial, self.geometry, self.precision, bias)

    def partial_sums(self, batch: int, channels: int) -> int:
        return partial_sums(batch, channels, self.geometry, self.precision)

    def kept_sums(self) -> list[tuple[Sums, Sums]]:
        return kept_sums(self.geometry)


Sides = tuple[int, ...]


@planned
def map_form(size: Sides, out: Sides, taps: Sides, starts: Sides, n: Sides, kept: Sides, accuracy: str) -> MapForm:
    """The form of a geometry and an accuracy class."""
    return MapForm(MapGeometry(size, out, taps, starts, n, kept), precision_of(accuracy))


def convolve_launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    modes: Tensor | None,
    geometry: MapGeometry,
    precision: Precision,
) -> Launch:
    """The launch that fills `y`, and `modes` with the kept spectrum of x.

    x: Real [batch, channel, *size], y: Real [batch, channel, *out], weight: Real [channel, 1, *taps], bias:
    Real [channel] or None, modes: Real [batch, channel, 2 F] or None; all contiguous.
    """
    transforms = _forth(operators(geometry, precision, x.device))
    return _convolve(x, weight, bias, y, modes, geometry, transforms, precision)


def _forth(made: Operators) -> tuple[Pair, Pair, Pair]:
    return made.analyse_map, made.analyse_taps, made.synthesise_output


def map_gradient_launch(dy: Tensor, weight: Tensor, dx: Tensor, geometry: MapGeometry, precision: Precision) -> Launch:
    """The launch that fills dx: the same kernel with transposed matrices and the kernel's spectrum not conjugated."""
    made = operators(geometry, precision, dy.device)
    transforms = (made.analyse_output, made.reflected, made.synthesise_map)
    return _convolve(dy, weight, None, dx, None, geometry.transposed, transforms, precision)


def weight_gradient_launch(
    dy: Tensor,
    x: Tensor | None,
    modes: Tensor | None,
    partial: Tensor,
    geometry: MapGeometry,
    precision: Precision,
    bias: Tensor | None = None,
) -> Launch:
    """The launch that fills `partial`, Float32 [programs per channel, channel, *taps], whose sum is the gradient.

    Exactly one of x (maps) and modes (their kept spectrum) is given. bias: Float32 [programs per channel, channel], so
    filled that its sum is the gradient of the bias, or None.
    """
    made = operators(geometry, precision, dy.device)
    tensors = {"dy_ptr": dy, "x_ptr": x, "modes_ptr": modes, "partial_ptr": partial, "bias_ptr": bias}
    matrices = {
        **_pointers("dy", made.analyse_output),
        **_pointers("x", made.analyse_map),
        **_pointers("weight", made.synthesise_taps),
    }
    plan = _weight_gradient_plan(dy.shape[0], dy.shape[1], partial.shape[0], geometry, precision)
    return plan.of({**tensors, **matrices})


@planned_launch
def _weight_gradient_plan(
    batch: int, channels: int, sums: int, geometry: MapGeometry, precision: Precision
) -> LaunchPlan:
    constants, warps = _constants(geometry, precision), gradient_warps(geometry, precision)
    blocks = v_blocks(geometry, precision)
    return LaunchPlan(
        kernel=weight_gradient_kernel,
        grid=(sums * channels if batch else 0,),
        numbers={
            "batch": batch,
            "channels": channels,
            **constants,
            "V": constants["V"] // blocks,
            "V_BLOCKS": blocks,
            "IMAGES": images_per_program(batch, channels, warps, most=32),
        },
        options={"num_warps": warps},
    )


def partial_sums(batch: int, channels: int, geometry: MapGeometry, precision: Precision) -> int:
    """How many partial sums per channel the kernel of `weight_gradient_launch` writes."""
    images = images_per_program(batch, channels, gradient_warps(geometry, precision), most=32)
    return -(-batch // images) * v_blocks(geometry, precision)


def v_blocks(geometry: MapGeometry, precision: Precision) -> int:
    """Into how many blocks of columns the gradient of the kernel splits a spectrum, to stay within the registers.

    The blocks are independent (the sum over w comes first), so a split costs reading the planes again, from the cache.
    """
    tile = tiles(geometry)
    if precision.pieces == 1:
        widest = 16 if precision.operand == torch.float32 else 32
    elif precision.mode in ("fp16x3", "bf16x3"):
        widest = 16 if tile.largest <= 32 else 8
    else:
        widest = 8
    return max(1, tile.v // widest)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    modes: Tensor | None,
    geometry: MapGeometry,
    transforms: tuple[Pair, Pair, Pair],
    precision: Precision,
) -> Launch:
    plan = _convolution_plan(x.shape[0], x.shape[1], geometry, precision, target_capability(x.device))
    return _convolution(plan, x, weight, bias, y, modes, transforms)


def _convolution(
    plan: LaunchPlan,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    modes: Tensor | None,
    transforms: tuple[Pair, Pair, Pair],
) -> Launch:
    arriving, of_weight, leaving = transforms
    return plan.of(
        {
            "x_ptr": x,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "y_ptr": y,
            "modes_ptr": modes,
            "columns_in_ptr": arriving.columns,
            "rows_in_ptr": arriving.rows,
            "columns_weight_ptr": of_weight.columns,
            "rows_weight_ptr": of_weight.rows,
            "columns_out_ptr": leaving.columns,
            "rows_out_ptr": leaving.rows,
        }
    )


@planned_launch
def _convolution_plan(
    batch: int, channels: int, geometry: MapGeometry, precision: Precision, capability: int
) -> LaunchPlan:
    tile, constants = tiles(geometry), _constants(geometry, precision)
    bucket = {"tile": tile.largest, "u": tile.u, "v": tile.v, "class": precision.name}
    warps = convolution_warps(geometry, precision)
    share = SHARE.choose(
        {**bucket, "batch": rounded(batch), "channels": rounded(channels)},
        Share(warps, images_per_program(batch, channels, warps, most=8)),
        capability,
    )
    blocks_in, blocks_out = row_blocks(geometry, precision, kind_of(capability))
    return LaunchPlan(
        kernel=convolve_kernel,
        grid=(triton.cdiv(batch, share.images) * channels,),
        numbers={
            "batch": batch,
            "channels": channels,
            **constants,
            "BLOCK_H": max(16, tile.size[0] // blocks_in),
            "BLOCK_OUT_H": max(16, tile.out[0] // blocks_out),
            "IMAGES": share.images,
        },
        options={"num_warps": share.warps},
    )


def row_blocks(geometry: MapGeometry, precision: Precision, core: TensorCore) -> tuple[int, int]:
    """Into how many blocks of rows a plane is cut on its way in and on its way out.

    Split operands of 64 rows overflow the registers where a product reads them from there: on mma.sync, which also
    serves the others' products of fewer than 64 rows. The blocks cost a tenth more instructions; without
    them up to 400 bytes spill.
    """
    tile = tiles(geometry)
    from_registers = core == "mma" or 2 * tile.v < 64
    # float16 operands are scaled by the largest number of a plane, so that it is not cut.
    if precision.pieces == 1 or tile.largest <= 32 or not from_registers or precision.mode == "fp16x3":
        return 1, 1
    if precision.name == "bf16x3":
        return 2, 1
    return (4, 2) if core == "mma" else (4, 1)


SHARE = Site("fused_depthwise.convolve", {"warps": (1, 8), "images": (1, 32)})


def _pointers(name: str, pair: Pair) -> dict[str, Tensor]:
    return {f"columns_{name}_ptr": pair.columns, f"rows_{name}_ptr": pair.rows}


def convolution_warps(geometry: MapGeometry, precision: Precision) -> int:
    """Warps per program.

    A plane of 32 x 32 is one warp's work: its products have 32 rows, half of what a warpgroup's instruction takes, and
    within one warp they follow each other without a barrier. Split operands and fp32 need the registers of two warps.
    From 64 rows on, a warpgroup works on a plane (wgmma on sm_90, tcgen05 on sm_100).
    """
    largest = tiles(geometry).largest
    if largest <= 32:
        return 2 if precision.pieces > 1 or precision.mode == "ieee" else 1
    return 4 if largest <= 64 else 8


def gradient_warps(geometry: MapGeometry, precision: Precision) -> int:
    """Warps per program of the gradient of the kernel."""
    warps = convolution_warps(geometry, precision)
    return 8 if warps > 2 and precision.pieces > 1 else warps


def _constants(geometry: MapGeometry, precision: Precision) -> dict[str, Any]:
    """Compile-time arguments that both kernels share."""
    tile = tiles(geometry)
    return {
        "H": geometry.size[0],
        "W": geometry.size[1],
        "OUT_H": geometry.out[0],
        "OUT_W": geometry.out[1],
        "TAPS_H": geometry.taps[0],
        "TAPS_W": geometry.taps[1],
        "ROWS": geometry.kept[0],
        "COLUMNS": geometry.kept[1],
        "TILE_H": tile.size[0],
        "TILE_W": tile.size[1],
        "TILE_OUT_H": tile.out[0],
        "TILE_OUT_W": tile.out[1],
        "TILE_TAPS_H": tile.taps[0],
        "TILE_TAPS_W": tile.taps[1],
        "U": tile.u,
        "V": tile.v,
        # A second plane in flight hides its load; next to large matrices there is no room for it.
        "STAGES": 2 if tile.largest <= 32 else 1,
        "MMA": triton_dtype(precision.operand),
        "PRECISION": precision.mode,
    }


def _watched(kind: str, shape: tuple[int, int], geometry: MapGeometry, name: str, maps: torch.dtype) -> NamedLaunch:
    """A forward pass, or a gradient in x, in the kernel, or in it and the bias, on maps of shape (batch, channels)."""

    def call() -> None:
        planned = PRECISIONS[name]
        x = torch.empty(*shape, *geometry.size, dtype=maps, device="meta")
        y = torch.empty(*shape, *geometry.out, dtype=maps, device="meta")
        weight = torch.empty(shape[1], 1, *geometry.taps, dtype=maps, device="meta")
        if kind == "forward":
            convolve_launch(
                x, weight, torch.empty(shape[1], dtype=maps, device="meta"), y, None, geometry, planned
            ).run()
        elif kind == "dx":
            map_gradient_launch(y, weight, x, geometry, planned).run()
        else:
            sums = torch.empty(partial_sums(*shape, geometry, planned), shape[1], *geometry.taps, device="meta")
            bias = sums.new_empty(sums.shape[:2]) if kind == "dw, db" else None
            weight_gradient_launch(y, x, None, sums, geometry, planned, bias).run()

    size, taps = ("x".join(map(str, sides)) for sides in (geometry.size, geometry.taps))
    return NamedLaunch(f"{kind} {name} B{shape[0]} C{shape[1]} {size} K{taps}", call)


_SMALL = MapGeometry((32, 32), (32, 32), (31, 31), (-15, -15), (47, 47), (16, 16))
_MEDIUM = MapGeometry((28, 28), (28, 28), (29, 29), (-14, -14), (42, 42), (15, 15))
_LARGE = MapGeometry((56, 56), (56, 56), (31, 31), (-15, -15), (71, 71), (25, 25))

FINGERPRINTS = (
    _watched("forward", (8, 768), _SMALL, "bf16", torch.bfloat16),
    _watched("dx", (8, 768), _SMALL, "bf16", torch.bfloat16),
    _watched("dw", (8, 768), _SMALL, "bf16", torch.bfloat16),
    _watched("dw, db", (8, 768), _SMALL, "bf16", torch.bfloat16),
    _watched("forward", (8, 768), _SMALL, "tf32x3", torch.float32),
    _watched("dw", (8, 768), _SMALL, "tf32x3", torch.float32),
    _watched("forward", (8, 768), _SMALL, "fp16x3", torch.float32),
    _watched("dw", (8, 768), _SMALL, "fp16x3", torch.float32),
    _watched("forward", (8, 768), _SMALL, "bf16x3", torch.float32),
    _watched("forward", (8, 768), _SMALL, "bf16x6", torch.float32),
    _watched("forward", (8, 768), _SMALL, "fp32", torch.float32),
    _watched("forward", (32, 256), _MEDIUM, "bf16", torch.bfloat16),
    _watched("forward", (32, 128), _LARGE, "bf16", torch.bfloat16),
    _watched("forward", (32, 128), _LARGE, "tf32", torch.float32),
    _watched("forward", (32, 128), _LARGE, "tf32x3", torch.float32),
    _watched("forward", (32, 128), _LARGE, "fp16x3", torch.float32),
)
"""Layers of networks with kernels as large as their maps, half of the spectrum dropped."""
