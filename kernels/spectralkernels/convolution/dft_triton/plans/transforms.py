"""The launches of the transforms: which kernel, which tiles, how many warps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from spectralkernels.convolution.dft_triton.kernels import transforms as kernels
from spectralkernels.convolution.dft_triton.matrices import Transform, dense_matrix, separable_matrices
from spectralkernels.convolution.dft_triton.precision import Precision
from spectralkernels.convolution.dft_triton.tiles import (
    PLANES,
    SeparableTile,
    dense_tile,
    separable_tile,
)
from spectralkernels.launch import Launch, interpreted, triton_dtype
from spectralkernels.target import TensorCore, target_capability, tensor_core
from spectralkernels.tuning import Site, rounded

_DENSE = {"m": (16, 128), "n": (16, 128), "k": (16, 64), "warps": (2, 8)}
_SEPARABLE = {"h": (8, 64), "u": (8, 64), "v": (8, 32), "stages": (1, 4), "warps": (4, 8)}
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


def analyse_launch(
    x: Tensor,
    gate: Tensor | None,
    z: Tensor,
    transform: Transform,
    planes: Planes,
    precision: Precision,
    kept: Tensor | None = None,
    core: TensorCore | None = None,
) -> Launch:
    """The launch that fills the spectrum z [V, U, 2, planes] from the contiguous planes x [planes, *lengths].

    gate: a tensor of the layout of x, or None; x counts only where gate > 0. kept: a spectrum of another dtype that is
    filled like z, or None. core: by default that of the device of x.
    """
    shared = {"x_ptr": x, "gate_ptr": gate, "z_ptr": z, "kept_ptr": kept, **planes.arguments(), **numbers(precision)}
    if transform.dense:
        length = transform.pixels
        rule = dense_tile(transform.parts, planes.count, length, precision)
        dense = ANALYSE_DENSE.choose(_bucket(transform, planes.count, precision), rule, target_capability(x.device))
        return Launch(
            kernel=kernels.analyse_dense_kernel,
            grid=(triton.cdiv(transform.parts, dense.m) * triton.cdiv(planes.count, dense.n),),
            arguments={
                **shared,
                "matrix_ptr": dense_matrix(transform, dense.m, dense.k, False, *_matrix_type(precision, x)),
                "LENGTH": length,
                "MODES": transform.parts,
                "BLOCK_P": dense.n,
                "BLOCK_M": dense.m,
                "BLOCK_K": dense.k,
                "STAGES": STAGES,
            },
            options={"num_warps": dense.warps},
        )
    separable = separable_tile(transform, False, precision, core or tensor_core(x.device))
    tile = ANALYSE.choose(_bucket(transform, planes.count, precision), separable, target_capability(x.device))
    columns, rows = separable_matrices(transform, (tile.h, tile.w, tile.u, tile.v), False, *_matrix_type(precision, x))
    blocks = triton.cdiv(transform.modes_u, tile.u) * triton.cdiv(transform.modes_v, tile.v)
    return Launch(
        kernel=kernels.analyse_separable_kernel,
        grid=(blocks * triton.cdiv(planes.count, PLANES),),
        arguments={**shared, "columns_ptr": columns, "rows_ptr": rows, **_separable_arguments(transform, tile)},
        options={"num_warps": tile.warps},
    )


def synthesise_launch(
    z: Tensor,
    bias: Tensor | None,
    y: Tensor,
    transform: Transform,
    planes: int,
    relu: bool,
    precision: Precision,
    core: TensorCore | None = None,
) -> Launch:
    """The launch that fills the contiguous planes y [planes, *lengths] from the spectrum z [V, U, 2, planes].

    bias: Real [channels], added to the planes of channel plane % channels, or None.
    """
    shared = {
        "z_ptr": z,
        "bias_ptr": bias,
        "y_ptr": y,
        "planes": planes,
        "channels": 1 if bias is None else bias.shape[0],
        "RELU": relu,
        **numbers(precision),
    }
    if transform.dense:
        # Planes are the rows of this product.
        rule = dense_tile(planes, transform.pixels, transform.parts, precision)
        dense = SYNTHESISE_DENSE.choose(_bucket(transform, planes, precision), rule, target_capability(z.device))
        return Launch(
            kernel=kernels.synthesise_dense_kernel,
            grid=(triton.cdiv(transform.pixels, dense.n) * triton.cdiv(planes, dense.m),),
            arguments={
                **shared,
                "matrix_ptr": dense_matrix(transform, dense.k, dense.n, True, *_matrix_type(precision, z)),
                "LENGTH": transform.pixels,
                "MODES": transform.parts,
                "BLOCK_P": dense.m,
                "BLOCK_L": dense.n,
                "BLOCK_K": dense.k,
                "STAGES": STAGES,
            },
            options={"num_warps": dense.warps},
        )
    separable = separable_tile(transform, True, precision, core or tensor_core(z.device))
    tile = SYNTHESISE.choose(_bucket(transform, planes, precision), separable, target_capability(z.device))
    columns, rows = separable_matrices(transform, (tile.h, tile.w, tile.u, tile.v), True, *_matrix_type(precision, z))
    height, width = transform.lengths
    blocks = triton.cdiv(height, tile.h) * triton.cdiv(width, tile.w)
    return Launch(
        kernel=kernels.synthesise_separable_kernel,
        grid=(blocks * triton.cdiv(planes, PLANES),),
        arguments={**shared, "columns_ptr": columns, "rows_ptr": rows, **_separable_arguments(transform, tile)},
        options={"num_warps": tile.warps},
    )


# --- arguments ------------------------------------------------------------------------------------------------------


def _bucket(transform: Transform, planes: int, precision: Precision) -> dict[str, Any]:
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


def numbers(precision: Precision) -> dict[str, Any]:
    """What a kernel multiplies in. The interpreter knows no bfloat16 arithmetic: there float32 stands for it."""
    operand, dot = precision.storage, precision.dot
    if interpreted() and "bf16" in precision.name:
        operand, dot = torch.float32, "ieee"
    return {"OPERAND": triton_dtype(operand), "PRECISION": dot}


def _matrix_type(precision: Precision, like: Tensor) -> tuple[torch.dtype, bool, torch.device]:
    dtype = precision.storage
    if interpreted() and dtype == torch.bfloat16:
        dtype = torch.float32
    return dtype, precision.name == "tf32", like.device
