"""The masked multiply on tensor cores, and the list of a mask's cells that it works through (imports Triton).

A cell is a matrix product over channels, [batch, channel] x [channel, output], and cells are its batch. The operands
of a product are split (see `splitting`), so that its class is that of float32; of an infinite one the rest is NaN, and
so are the sums that it is in.

A first launch lists the cells, those kept in front, those dropped behind. A program that looked up its own would spend
more on that than on 32 channels. The list is made anew by each call: a mask is a tensor that may change before any.
"""

# Triton reads a kernel's annotations as its own.

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.convolution.splitting import pieces, products
from spectralkernels.launch import Launch, dense, interpreted
from spectralkernels.ops.masked_multiply.kernels import planes, watched
from spectralkernels.target import target_capability
from spectralkernels.tuning import Site, rounded


@dataclass(frozen=True, slots=True)
class CellsTile:
    """What a program owns: b maps x o outputs of f cells, c channels at a time; every warp has one cell."""

    b: int = 16
    o: int = 32
    f: int = 8
    c: int = 16
    stages: int = 3


PRODUCT = Site(
    "masked_multiply.products", {"b": (16, 32), "o": (16, 32), "f": (4, 16), "c": (16, 32), "stages": (1, 4)}
)
LISTED = 2048
"""Cells that the program which lists them takes at a time: eight for each thread."""


@triton.jit
def list_cells_kernel(mask_ptr, cells_ptr, n_cells, BLOCK: tl.constexpr):
    """The cells that a mask keeps in ascending order, from the end on those that it drops, and how many it keeps.

    mask [n_cells]; cells Int32 [n_cells + 1]. One program reads the mask once.
    """
    lane = tl.arange(0, BLOCK)
    n_kept = 0
    for start in range(0, n_cells, BLOCK):
        cell = start + lane
        kept = tl.load(mask_ptr + cell, mask=cell < n_cells, other=0) != 0
        count = kept.to(tl.int32)
        before = n_kept + tl.cumsum(count, 0) - count
        # Of the cells before this one, those that are not kept are dropped.
        at = tl.where(kept, before, n_cells - 1 - (cell - before))
        tl.store(cells_ptr + at, cell, mask=cell < n_cells)
        n_kept += tl.sum(count, 0)
    tl.store(cells_ptr + n_cells, n_kept)


@triton.jit
def _operands(
    values,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The pieces of the real and of the imaginary parts of [row, channel, cell and part], a batch of cells."""
    re, im = tl.split(tl.reshape(values, (ROWS, BLOCK_C, BLOCK_F, 2)))
    if TRANSPOSED:
        re, im = tl.permute(re, (2, 1, 0)), tl.permute(im, (2, 1, 0))
    else:
        re, im = tl.permute(re, (2, 0, 1)), tl.permute(im, (2, 0, 1))
    return pieces(re, PRECISION), pieces(im, PRECISION)


@triton.jit
def product_kernel(
    x_ptr,
    w_ptr,
    mask_ptr,
    cells_ptr,
    y_ptr,
    batch,
    group_channels,
    group_outputs,
    groups,
    n_cells,
    x_stride_batch,
    x_stride_channel,
    w_stride_output,
    w_stride_channel,
    CONJUGATE: tl.constexpr,
    OFFSET: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns BLOCK_F listed cells of BLOCK_B maps and BLOCK_O outputs of one group.

    Per cell and channel it reads 8 (BLOCK_B + BLOCK_O) bytes for 4 BLOCK_B BLOCK_O products of split numbers, and
    writes 8 BLOCK_B BLOCK_O bytes once, dropped cells as zeros; dropped cells of x and w are not read.
    mask_ptr: a float mask, which scales, or None; cells_ptr: see `list_cells_kernel`, None where all cells are kept.
    Strides count cells.
    """
    n_output_blocks = tl.cdiv(group_outputs, BLOCK_O)
    n_batch_blocks = tl.cdiv(batch, BLOCK_B)
    # Outputs vary fastest: programs that run together share the same cells of x and w in the L2 cache.
    pid = tl.program_id(0)
    output_0 = (pid % n_output_blocks) * BLOCK_O
    pid = pid // n_output_blocks
    batch_0 = (pid % n_batch_blocks) * BLOCK_B
    pid = pid // n_batch_blocks
    group = pid % groups
    rank_0 = (pid // groups) * BLOCK_F

    rank = rank_0 + tl.arange(0, BLOCK_F)
    if cells_ptr is None:
        cells, n_kept = rank, n_cells
    else:
        cells, n_kept = tl.load(cells_ptr + rank, mask=rank < n_cells, other=0), tl.load(cells_ptr + n_cells)
        # Untrue, and it widens no access, as those end with a cell; it lets neighbouring lanes have neighbouring cells.
        cells = tl.max_contiguous(cells, 2)
    # Not group_channels itself, whose divisibility the masks of channels need.
    n_channels = tl.where(rank_0 < n_kept, group_channels, 0)
    part = tl.arange(0, 2)
    offs = tl.max_contiguous(tl.multiple_of(tl.reshape(2 * cells[:, None] + part[None, :], (2 * BLOCK_F,)), 2), 2)
    wanted = tl.broadcast_to((rank < n_kept)[:, None], (BLOCK_F, 2))
    wanted = tl.max_constancy(tl.reshape(wanted, (2 * BLOCK_F,)), 2)[None, None, :]

    # 64-bit once per program; OFFSET inside the tile.
    unit, step = tl.full((), 2, OFFSET), tl.full((), 2 * BLOCK_C, OFFSET)
    b, o, c = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_C)
    x_base = batch_0.to(tl.int64) * x_stride_batch + group.to(tl.int64) * group_channels * x_stride_channel
    w_base = (group.to(tl.int64) * group_outputs + output_0) * w_stride_output
    x_ptrs = (x_ptr + 2 * x_base) + (b[:, None, None] * (x_stride_batch * unit) + offs[None, None, :])
    w_ptrs = (w_ptr + 2 * w_base) + (o[:, None, None] * (w_stride_output * unit) + offs[None, None, :])
    x_ptrs += c[None, :, None] * (x_stride_channel * unit)
    w_ptrs += c[None, :, None] * (w_stride_channel * unit)
    x_here = (batch_0 + b < batch)[:, None, None] & wanted
    w_here = (output_0 + o < group_outputs)[:, None, None] & wanted

    re = tl.zeros((BLOCK_F, BLOCK_B, BLOCK_O), tl.float32)
    im = tl.zeros((BLOCK_F, BLOCK_B, BLOCK_O), tl.float32)
    zero = tl.zeros((BLOCK_F, BLOCK_B, BLOCK_O), tl.float32)
    for channel_0 in tl.range(0, n_channels, BLOCK_C, num_stages=STAGES):
        here = (channel_0 + c < group_channels)[None, :, None]
        x = tl.load(x_ptrs, mask=x_here & here, other=0.0)
        w = tl.load(w_ptrs, mask=w_here & here, other=0.0)
        x_ptrs += x_stride_channel * step
        w_ptrs += w_stride_channel * step
        x_re, x_im = _operands(x, BLOCK_B, BLOCK_C, BLOCK_F, False, PRECISION)
        w_re, w_im = _operands(w, BLOCK_O, BLOCK_C, BLOCK_F, True, PRECISION)
        # Steps are added in float32, as a tensor core cuts off what its sums do not hold.
        if CONJUGATE:
            re += products(x_im, w_im, products(x_re, w_re, zero, PRECISION), PRECISION)
            im += products(x_im, w_re, zero, PRECISION)
            im -= products(x_re, w_im, zero, PRECISION)
        else:
            im += products(x_im, w_re, products(x_re, w_im, zero, PRECISION), PRECISION)
            re += products(x_re, w_re, zero, PRECISION)
            re -= products(x_im, w_im, zero, PRECISION)
    if mask_ptr is not None:
        scale = tl.load(mask_ptr + cells, mask=rank < n_kept, other=0)[:, None, None]
        re, im = re * scale, im * scale

    outputs = groups * group_outputs
    y_base = ((batch_0.to(tl.int64) * outputs + group * group_outputs + output_0) * n_cells) * 2
    y_offs = (b[None, :, None].to(OFFSET) * outputs + o[None, None, :]) * (2 * n_cells) + 2 * cells[:, None, None]
    y_here = (batch_0 + b < batch)[None, :, None] & (output_0 + o < group_outputs)[None, None, :]
    y_here &= (rank < n_cells)[:, None, None]
    tl.store((y_ptr + y_base) + (y_offs[:, :, :, None] + part), tl.join(re, im), mask=y_here[:, :, :, None])


def list_cells(mask: Tensor) -> Tensor:
    """Int32 [cells + 1]: what `list_cells_kernel` makes of a mask, Bool or Float32 [U, V]."""
    cells = torch.empty(mask.numel() + 1, dtype=torch.int32, device=mask.device)
    Launch(
        kernel=list_cells_kernel,
        grid=(1,),
        arguments={"mask_ptr": dense(mask), "cells_ptr": cells, "n_cells": mask.numel(), "BLOCK": LISTED},
        options={"num_warps": 8},
    ).run()
    return cells


def product_launch(
    x_hat: Tensor,
    w_hat: Tensor,
    mask: Tensor | None,
    cells: Tensor | None,
    y: Tensor,
    groups: int,
    conjugate: bool,
    precision: str,
) -> Launch:
    """The launch that fills `y`; tensors as for `kernels.tiled_launch`.

    cells: what `list_cells` makes of the mask, None without one. precision: "tf32x3" or "bf16x3", see `splitting`.
    """
    if interpreted():
        # It knows no bfloat16 arithmetic.
        precision = "tf32x3"
    x, w = planes(x_hat), planes(w_hat)
    batch, channels, group_outputs, n_cells = x.shape[0], w.shape[1], w.shape[0] // groups, x.shape[2]
    sizes = {"batch": batch, "outputs": group_outputs, "channels": channels, "cells": n_cells}
    bucket = {**{name: rounded(size) for name, size in sizes.items()}, "class": precision}
    tile = PRODUCT.choose(bucket, CellsTile(), target_capability(x.device))
    steps = channels + tile.c
    reach = max(tile.b * x.stride(0) + steps * x.stride(1), tile.o * w.stride(0) + steps * w.stride(1))
    reach = max(reach, 2 * tile.b * w.shape[0] * n_cells) + 2 * n_cells
    return Launch(
        kernel=product_kernel,
        grid=(triton.cdiv(batch, tile.b) * triton.cdiv(group_outputs, tile.o) * groups * triton.cdiv(n_cells, tile.f),),
        arguments={
            "x_ptr": x,
            "w_ptr": w,
            "mask_ptr": None if mask is None or mask.dtype == torch.bool else dense(mask),
            "cells_ptr": cells,
            "y_ptr": torch.view_as_real(y),
            "batch": batch,
            "group_channels": channels,
            "group_outputs": group_outputs,
            "groups": groups,
            "n_cells": n_cells,
            "x_stride_batch": x.stride(0) // 2,
            "x_stride_channel": x.stride(1) // 2,
            "w_stride_output": w.stride(0) // 2,
            "w_stride_channel": w.stride(1) // 2,
            "CONJUGATE": conjugate,
            "OFFSET": tl.int32 if reach < 2**31 else tl.int64,
            "STAGES": tile.stages,
            "BLOCK_B": tile.b,
            "BLOCK_O": tile.o,
            "BLOCK_F": tile.f,
            "BLOCK_C": tile.c,
            "PRECISION": precision,
        },
        options={"num_warps": tile.f},
        strided=("x_ptr", "w_ptr"),
    )


def multiply(
    x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, y: Tensor, groups: int, conjugate: bool, precision: str
) -> None:
    """Fill `y` by both launches."""
    cells = None if mask is None else list_cells(mask)
    product_launch(x_hat, w_hat, mask, cells, y, groups, conjugate, precision).run()


FINGERPRINTS = tuple(
    watched(partial(multiply, precision="tf32x3"), shape, plane, mask=mask)
    for shape, plane, mask in (
        ((128, 64, 64), (34, 18), torch.bool),
        ((128, 64, 64), (34, 18), torch.float32),
        ((128, 64, 64), (34, 18), None),
        ((128, 256, 256), (9, 5), torch.bool),
        ((128, 512, 512), (512, 257), torch.bool),
    )
)
"""Layers of residual networks, and one that needs 64-bit offsets."""
