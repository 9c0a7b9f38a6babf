"""The launches of the transforms: which kernel, which tiles, how many warps; planned once per transform and size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from spectralkernels.constants import Recalled
from spectralkernels.convolution.dft_triton.kernels import quadrants
from spectralkernels.convolution.dft_triton.kernels import transforms as kernels
from spectralkernels.convolution.dft_triton.matrices import (
    Transform,
    dense_matrix,
    quadrant_matrices,
    separable_matrices,
)
from spectralkernels.convolution.dft_triton.precision import ChainPrecision
from spectralkernels.convolution.dft_triton.tiles import (
    PLANES,
    ProductTile,
    SeparableTile,
    by_quadrants,
    dense_tile,
    separable_tile,
)
from spectralkernels.launch import Launch, LaunchPlan, interpreted, planned_launch, triton_dtype
from spectralkernels.target import TensorCore, kind_of, target_capability
from spectralkernels.tuning import Site, rounded

_DENSE = {"m": (16, 128), "n": (16, 128), "k": (16, 64), "warps": (2, 8), "overlap": (1, 2)}
_SEPARABLE = {"h": (8, 64), "u": (8, 64), "v": (8, 32), "stages": (1, 4), "warps": (4, 8), "overlap": (1, 2)}
ANALYSE_DENSE = Site("dft_triton.analyse_dense", _DENSE)
ANALYSE = Site("dft_triton.analyse", _SEPARABLE)
SYNTHESISE_DENSE = Site("dft_triton.synthesise_dense", _DENSE)
SYNTHESISE = Site("dft_triton.synthesise", _SEPARABLE)

STAGES = 3
"""Of the software pipeline of a product: two tiles are on the way while one is multiplied."""


@dataclass(frozen=True, slots=True)
class Planes:
    """How planes lie in memory: mid, inner and the strides of `kernels`, counted in planes."""

    count: int
    mid: int = 1
    inner: int = 1
    stride_outer: int = 1
    stride_mid: int = 0
    stride_inner: int = 0

    def arguments(self) -> dict[str, int]:
        return {
            "planes": self.count,
            "mid": self.mid,
            "inner": self.inner,
            "stride_outer": self.stride_outer,
            "stride_mid": self.stride_mid,
            "stride_inner": self.stride_inner,
        }


def transposed_weight(out_channels: int, per_group: int, groups: int) -> Planes:
    """The planes of a weight [O, C / groups] in the order (group, channel, output) that the input gradient reads."""
    outputs = out_channels // groups
    return Planes(out_channels * per_group, per_group, outputs, out_channels // groups * per_group, 1, per_group)


@dataclass(frozen=True, slots=True)
class TransformPlan:
    """A transform's launch without its tensors, and of which matrices: `dense_matrix` where blocks are two, else
    `quadrant_matrices` or `separable_matrices`.

    blocks: how the matrices are cut into tiles.
    """

    launch: LaunchPlan
    transform: Transform
    blocks: tuple[int, ...]
    pixels_first: bool
    dtype: torch.dtype
    tf32: bool
    quadrants: bool = False

    def of(self, tensors: dict[str, Tensor | None], device: torch.device) -> Launch:
        """The launch with these tensors and the matrices."""
        make, arguments = self._matrices(device)
        return self._with(tensors, make(*arguments))

    def on(self, device: torch.device) -> Callable[[dict[str, Tensor | None]], Launch]:
        """The same for a plan, which holds no matrix."""
        make, arguments = self._matrices(device)
        kept = Recalled(make, *arguments)
        return lambda tensors: self._with(tensors, kept())

    def _matrices(self, device: torch.device) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        how = (self.pixels_first, self.dtype, self.tf32, device)
        if len(self.blocks) == 2:
            return dense_matrix, (self.transform, *self.blocks, *how)
        return quadrant_matrices if self.quadrants else separable_matrices, (self.transform, self.blocks, *how)

    def _with(self, tensors: dict[str, Tensor | None], made: Any) -> Launch:
        if len(self.blocks) == 2:
            tensors["matrix_ptr"] = made
        else:
            tensors["columns_ptr"], tensors["rows_ptr"] = made
        return self.launch.of(tensors)


def analyse_launch(
    x: Tensor,
    gate: Tensor | None,
    z: Tensor,
    transform: Transform,
    planes: Planes,
    precision: ChainPrecision,
    kept: Tensor | None = None,
    core: TensorCore | None = None,
) -> Launch:
    """The launch that fills the spectrum z [V, U, 2, planes] from the contiguous planes x [planes, *lengths].

    gate: a tensor of the layout of x, or None; x counts only where gate > 0. kept: a spectrum of another dtype that is
    filled like z, or None. core: by default that of the device of x.
    """
    plan = analysis(transform, planes, precision, target_capability(x.device), core)
    return plan.of({"x_ptr": x, "gate_ptr": gate, "z_ptr": z, "kept_ptr": kept}, x.device)


@planned_launch
def analysis(
    transform: Transform, planes: Planes, precision: ChainPrecision, capability: int, core: TensorCore | None = None
) -> TransformPlan:
    shared, bucket = {**planes.arguments(), **numbers(precision)}, _bucket(transform, planes.count, precision)
    if transform.dense:
        rule = dense_tile(transform.parts, planes.count, transform.pixels, precision)
        dense = ANALYSE_DENSE.choose(bucket, rule, capability)
        arguments = {"BLOCK_P": dense.n, "BLOCK_M": dense.m, "BLOCK_K": dense.k, "STAGES": STAGES}
        overlap, option = overlapping(dense, capability)
        launch = LaunchPlan(
            kernel=kernels.analyse_dense_kernel,
            grid=(triton.cdiv(transform.parts, dense.m) * triton.cdiv(planes.count, dense.n),),
            numbers={**shared, "LENGTH": transform.pixels, "MODES": transform.parts, **arguments, **overlap},
            options={"num_warps": dense.warps, **option},
        )
        return TransformPlan(launch, transform, (dense.m, dense.k), False, *_matrix_type(precision))
    core = core or kind_of(capability)
    tile = ANALYSE.choose(bucket, separable_tile(transform, False, precision, core), capability)
    halved, (overlap, option) = by_quadrants(precision, core), overlapping(tile, capability)
    rows = transform.half_u if halved else transform.modes_u
    blocks = triton.cdiv(rows, tile.u) * triton.cdiv(transform.modes_v, tile.v)
    launch = LaunchPlan(
        kernel=quadrants.analyse_quadrants_kernel if halved else kernels.analyse_separable_kernel,
        grid=(blocks * triton.cdiv(planes.count, PLANES),),
        numbers={**shared, **_separable_arguments(transform, tile), **overlap},
        options={"num_warps": tile.warps, **option},
    )
    tiles = (tile.h, tile.w, tile.u, tile.v)
    return TransformPlan(launch, transform, tiles, False, *_matrix_type(precision), halved)


def synthesise_launch(
    z: Tensor,
    bias: Tensor | None,
    y: Tensor,
    transform: Transform,
    planes: int,
    relu: bool,
    precision: ChainPrecision,
    core: TensorCore | None = None,
) -> Launch:
    """The launch that fills the contiguous planes y [planes, *lengths] from the spectrum z [V, U, 2, planes].

    bias: Real [channels], added to the planes of channel plane % channels, or None.
    """
    channels = 1 if bias is None else bias.shape[0]
    plan = synthesis(transform, planes, channels, relu, precision, target_capability(z.device), core)
    return plan.of({"z_ptr": z, "bias_ptr": bias, "y_ptr": y}, z.device)


@planned_launch
def synthesis(
    transform: Transform,
    planes: int,
    channels: int,
    relu: bool,
    precision: ChainPrecision,
    capability: int,
    core: TensorCore | None = None,
) -> TransformPlan:
    shared = {"planes": planes, "channels": channels, "RELU": relu, **numbers(precision)}
    bucket = _bucket(transform, planes, precision)
    if transform.dense:
        # Planes are the rows of this product.
        rule = dense_tile(planes, transform.pixels, transform.parts, precision)
        dense = SYNTHESISE_DENSE.choose(bucket, rule, capability)
        arguments = {"BLOCK_P": dense.m, "BLOCK_L": dense.n, "BLOCK_K": dense.k, "STAGES": STAGES}
        overlap, option = overlapping(dense, capability)
        launch = LaunchPlan(
            kernel=kernels.synthesise_dense_kernel,
            grid=(triton.cdiv(transform.pixels, dense.n) * triton.cdiv(planes, dense.m),),
            numbers={**shared, "LENGTH": transform.pixels, "MODES": transform.parts, **arguments, **overlap},
            options={"num_warps": dense.warps, **option},
        )
        return TransformPlan(launch, transform, (dense.k, dense.n), True, *_matrix_type(precision))
    core = core or kind_of(capability)
    tile = SYNTHESISE.choose(bucket, separable_tile(transform, True, precision, core), capability)
    halved, (overlap, option) = by_quadrants(precision, core), overlapping(tile, capability)
    height, width = transform.lengths
    blocks = triton.cdiv(height, tile.h) * triton.cdiv(width, tile.w)
    launch = LaunchPlan(
        kernel=quadrants.synthesise_quadrants_kernel if halved else kernels.synthesise_separable_kernel,
        grid=(blocks * triton.cdiv(planes, PLANES),),
        numbers={**shared, **_separable_arguments(transform, tile), **overlap},
        options={"num_warps": tile.warps, **option},
    )
    tiles = (tile.h, tile.w, tile.u, tile.v)
    return TransformPlan(launch, transform, tiles, True, *_matrix_type(precision), halved)


# --- arguments ------------------------------------------------------------------------------------------------------


def _bucket(transform: Transform, planes: int, precision: ChainPrecision) -> dict[str, Any]:
    lengths = "x".join(map(str, transform.lengths))
    return {"lengths": lengths, "parts": transform.parts, "planes": rounded(planes), "class": precision.name}


def _separable_arguments(transform: Transform, tile: SeparableTile) -> dict[str, int]:
    height, width = transform.lengths
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "MODES_U": transform.modes_u,
        "MODES_V": transform.modes_v,
        "BLOCK_P": PLANES,
        "BLOCK_H": tile.h,
        "BLOCK_W": tile.w,
        "BLOCK_U": tile.u,
        "BLOCK_V": tile.v,
        "STAGES": tile.stages,
    }


def overlapping(tile: ProductTile | SeparableTile, capability: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(argument, option) of a launch that begins before the one before it has ended, where that is possible."""
    if tile.overlap == 1 or capability < 90 or interpreted():
        return {}, {}
    return {"OVERLAP": True}, {"launch_pdl": True}


def numbers(precision: ChainPrecision) -> dict[str, Any]:
    """What a kernel multiplies in. The interpreter knows no bfloat16 arithmetic: there float32 stands for it."""
    operand, dot = precision.storage, precision.dot
    if interpreted() and "bf16" in precision.name:
        operand, dot = torch.float32, "ieee"
    return {"OPERAND": triton_dtype(operand), "PRECISION": dot}


def _matrix_type(precision: ChainPrecision) -> tuple[torch.dtype, bool]:
    """The dtype of the matrices of a class, and whether they are rounded to tf32."""
    dtype = precision.storage
    if interpreted() and dtype == torch.bfloat16:
        dtype = torch.float32
    return dtype, precision.name == "tf32"
