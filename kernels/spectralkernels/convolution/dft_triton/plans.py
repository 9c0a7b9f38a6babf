"""From tensors to launches: which kernel, which tiles, how many warps (triton is imported here and in `kernels`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.convolution.dft_triton import kernels
from spectralkernels.convolution.dft_triton.matrices import Transform, dense_matrix, separable_matrices
from spectralkernels.convolution.dft_triton.precision import Precision
from spectralkernels.convolution.dft_triton.tiles import (
    PLANES,
    SeparableTile,
    TensorCore,
    dense_tile,
    is_dense,
    product_tile,
    separable_tile,
    tensor_core,
)
from spectralkernels.launch import Launch, interpreted

Product = Literal["forward", "input_gradient", "weight_gradient"]
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
    core: TensorCore | None = None,
) -> Launch:
    """The launch that fills the spectrum z [V, U, 2, planes] from the contiguous planes x [planes, *lengths].

    gate: a tensor of the layout of x, or None; x counts only where gate > 0. core: by default that of the device of x.
    """
    shared = {"x_ptr": x, "gate_ptr": gate, "z_ptr": z, **planes.arguments(), **_numbers(precision)}
    if is_dense(transform):
        length = transform.pixels
        dense = dense_tile(transform.parts, planes.count, length, precision)
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
    tile = separable_tile(transform, False, precision, core or tensor_core(x.device))
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
        **_numbers(precision),
    }
    if is_dense(transform):
        # Planes are the rows of this product.
        dense = dense_tile(planes, transform.pixels, transform.parts, precision)
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
    tile = separable_tile(transform, True, precision, core or tensor_core(z.device))
    columns, rows = separable_matrices(transform, (tile.h, tile.w, tile.u, tile.v), True, *_matrix_type(precision, z))
    height, width = transform.lengths
    blocks = triton.cdiv(height, tile.h) * triton.cdiv(width, tile.w)
    return Launch(
        kernel=kernels.synthesise_separable_kernel,
        grid=(blocks * triton.cdiv(planes, PLANES),),
        arguments={**shared, "columns_ptr": columns, "rows_ptr": rows, **_separable_arguments(transform, tile)},
        options={"num_warps": tile.warps},
    )


def contract_launch(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    product: Product,
    sizes: tuple[int, int, int, int],
    modes: int,
    precision: Precision,
    core: TensorCore | None = None,
) -> Launch:
    """The launch of one per-mode product over spectra [modes, 2, ...]; sizes = (batch, channel / g, output / g, g).

    forward:          a = z [B, C],  b = w [O, C / g],            out = y [B, O]       sum_c z conj(w)
    input_gradient:   a = g [B, O],  b = w [g, C / g, O / g],     out = dz [B, C]      sum_o g w
    weight_gradient:  a = g [B, O],  b = z [B, C],                out = dw [O, C / g]  sum_b conj(g) z
    """
    batch, channels, outputs, groups = sizes
    rows_z = (batch * channels * groups, channels, channels * groups, 1)  # part, group, batch, channel
    rows_y = (batch * outputs * groups, outputs, outputs * groups, 1)
    weight = channels * outputs * groups
    if product == "forward":
        m, n, k = batch, outputs, channels
        a_strides, b_strides, out_strides = rows_z, (weight, outputs * channels, channels, 1), rows_y
    elif product == "input_gradient":
        m, n, k = batch, channels, outputs
        a_strides, b_strides, out_strides = rows_y, (weight, channels * outputs, outputs, 1), rows_z
    else:
        m, n, k = outputs, channels, batch
        a_strides = (rows_y[0], rows_y[1], 1, rows_y[2])
        b_strides = (rows_z[0], rows_z[1], 1, rows_z[2])
        out_strides = (weight, outputs * channels, channels, 1)
    conjugated = {"forward": "b", "input_gradient": "", "weight_gradient": "a"}[product]
    if product != "weight_gradient" and m < 64 <= n:
        # Tensor cores want 64 rows, so the longer side comes first.
        a, b, m, n, a_strides, b_strides = b, a, n, m, b_strides, a_strides
        out_strides = (out_strides[0], out_strides[1], out_strides[3], out_strides[2])
        conjugated = {"b": "a", "": ""}[conjugated]
    tile = product_tile(m, n, k, modes * groups, precision, core or tensor_core(a.device))
    names = ("part", "group", "m", "k"), ("part", "group", "n", "k"), ("part", "group", "m", "n")
    strides = {
        f"{operand}_{name}": stride
        for operand, axes, values in zip(("a", "b", "out"), names, (a_strides, b_strides, out_strides), strict=True)
        for name, stride in zip(axes, values, strict=True)
    }
    return Launch(
        kernel=kernels.contract_kernel,
        grid=(triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n) * groups * modes,),
        arguments={
            "a_ptr": a,
            "b_ptr": b,
            "out_ptr": out,
            "size_m": m,
            "size_n": n,
            "size_k": k,
            "groups": groups,
            **strides,
            "CONJUGATED": conjugated,
            "K_IS_CONTIGUOUS": a_strides[3] == b_strides[3] == 1,
            "BLOCK_M": tile.m,
            "BLOCK_N": tile.n,
            "BLOCK_K": tile.k,
            "STAGES": STAGES,
            **_numbers(precision),
        },
        options={"num_warps": tile.warps},
    )


# --- arguments ------------------------------------------------------------------------------------------------------


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


_TRITON_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def _numbers(precision: Precision) -> dict[str, Any]:
    """What a kernel multiplies in. The interpreter knows no bfloat16 arithmetic: there float32 stands for it."""
    operand, dot = _TRITON_TYPES[precision.storage], precision.dot
    if interpreted() and "bf16" in precision.name:
        operand, dot = tl.float32, "ieee"
    return {"OPERAND": operand, "PRECISION": dot}


def _matrix_type(precision: Precision, like: Tensor) -> tuple[torch.dtype, bool, torch.device]:
    dtype = precision.storage
    if interpreted() and dtype == torch.bfloat16:
        dtype = torch.float32
    return dtype, precision.name == "tf32", like.device
