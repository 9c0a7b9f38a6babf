"""The Triton kernels of `masked_multiply` and their launches (with `cells`, the only module that imports Triton).

Spectra stay interleaved (re, im) pairs as torch and cuFFT store them; each [U, V] plane is addressed as one flat run of
U V cells, so that tiles are aligned whatever V is and any mask is allowed, not only a rectangle.
"""

# Triton reads a kernel's annotations as its own.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.errors import RangeError
from spectralkernels.launch import Launch, NamedLaunch, dense
from spectralkernels.ops.masked_multiply.cells import cells_of_block, searched_words
from spectralkernels.target import target_capability
from spectralkernels.tuning import Site, rounded


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program of the tiled kernel owns: b maps, o outputs, f cells; a thread owns rows_b x rows_o of them."""

    b: int
    o: int
    f: int
    rows_b: int
    rows_o: int

    @property
    def warps(self) -> int:
        """Warps per program; RangeError where threads do not come out at 1 to 32 whole warps."""
        threads = self.b // self.rows_b * (self.o // self.rows_o) * self.f
        if not 32 <= threads <= 1024:
            raise RangeError(f"a tile must make 32 to 1024 threads, {self} makes {threads}")
        return threads // 32


TILE = Site("masked_multiply.tiled", {"b": (1, 64), "o": (1, 64), "f": (16, 128), "rows_b": (1, 16), "rows_o": (1, 8)})


def tile(batch: int, outputs: int) -> Tile:
    """The rule: 16 maps x 32 outputs, fewer where there are fewer.

    A thread's 8 x 4 complex accumulators take 64 registers and 12 shared loads per 128 fused multiply-adds; a tile of
    16 x 32 does 10.7 FLOP per byte from the L2 cache, and two blocks of 256 threads fit an SM.
    """
    b, o = min(16, rounded(max(batch, 1))), min(32, rounded(max(outputs, 1)))
    rows_b, rows_o = min(8, b), min(4, o)
    return Tile(b, o, max(16, 128 // (b // rows_b * (o // rows_o))), rows_b, rows_o)


@triton.jit
def tiled_kernel(
    x_ptr,
    w_ptr,
    mask_ptr,
    y_ptr,
    batch,
    group_channels,
    group_outputs,
    groups,
    plane,
    x_stride_batch,
    x_stride_channel,
    w_stride_output,
    w_stride_channel,
    UNIT: tl.constexpr,
    CONJUGATE: tl.constexpr,
    OFFSET: tl.constexpr,
    STAGES: tl.constexpr,
    ROWS_B: tl.constexpr,
    LANES_B: tl.constexpr,
    ROWS_O: tl.constexpr,
    LANES_O: tl.constexpr,
    BLOCK_F: tl.constexpr,
    WORDS: tl.constexpr,
):
    """One program owns BLOCK_F neighbouring cells of ROWS_B LANES_B maps and ROWS_O LANES_O outputs of one group.

    It loops over the group's channels; per cell and channel it reads 8 (BLOCK_B + BLOCK_O) bytes for
    4 BLOCK_B BLOCK_O fused multiply-adds, and writes 8 BLOCK_B BLOCK_O bytes once, dropped cells as zeros. A program
    with nothing kept reads nothing but its mask.
    With WORDS, they are neighbours among the kept cells or among the dropped ones (see `cells`); without, pairs of
    cells that are both dropped are not read, but computed with their neighbours.
    Strides and `plane` count units of UNIT floats: 4 promises 16-byte alignment, 2 does not. mask_ptr may be None.
    A thread holds ROWS_B x ROWS_O outputs of one cell; LANES_B and LANES_O spread over threads.
    """
    BLOCK_B: tl.constexpr = ROWS_B * LANES_B
    BLOCK_O: tl.constexpr = ROWS_O * LANES_O
    n_output_blocks = tl.cdiv(group_outputs, BLOCK_O)
    n_batch_blocks = tl.cdiv(batch, BLOCK_B)
    # Outputs vary fastest: programs that run together share the same cells of x and w in the L2 cache.
    pid = tl.program_id(0)
    output_0 = (pid % n_output_blocks) * BLOCK_O
    pid = pid // n_output_blocks
    batch_0 = (pid % n_batch_blocks) * BLOCK_B
    pid = pid // n_batch_blocks
    group = pid % groups
    block = pid // groups

    n_floats = plane * UNIT
    n_channels = group_channels
    if WORDS > 0:
        cells, kept = cells_of_block(mask_ptr, block, n_floats // 2, BLOCK_F, WORDS)
        offs = tl.reshape(2 * cells[:, None] + tl.arange(0, 2)[None, :], (2 * BLOCK_F,))
        # a cell is one access; that lanes run along the cells is decided by a claim that widens none
        cells = tl.max_contiguous(cells, 2)
        offs = tl.max_contiguous(tl.multiple_of(offs, 2), 2)
        in_plane = tl.max_constancy(offs < n_floats, 2)
        n_channels = tl.where(kept, group_channels, 0)
    else:
        cells = block * BLOCK_F + tl.arange(0, BLOCK_F)
        offs = 2 * block * BLOCK_F + tl.arange(0, 2 * BLOCK_F)
        in_plane = offs < n_floats
    if mask_ptr is not None and WORDS == 0:
        scale = tl.load(mask_ptr + cells, mask=2 * cells < n_floats, other=0)
        keep = scale != 0
        n_channels = tl.where(tl.max(keep.to(tl.int32), 0) > 0, group_channels, 0)
        first = (offs // UNIT) * (UNIT // 2)
        wanted = tl.load(mask_ptr + first, mask=in_plane, other=0) != 0
        if UNIT == 4:
            wanted |= tl.load(mask_ptr + first + 1, mask=in_plane, other=0) != 0
        # A loaded predicate would otherwise narrow every load to one float.
        in_plane = tl.max_constancy(in_plane & wanted, [UNIT])

    # 64-bit once per program; OFFSET inside the tile, 32-bit wherever that reaches, because it saves registers.
    unit = tl.full((), UNIT, OFFSET)
    offs_b = tl.arange(0, BLOCK_B)
    offs_o = tl.arange(0, BLOCK_O)
    x_base = (batch_0.to(tl.int64) * x_stride_batch + group.to(tl.int64) * group_channels * x_stride_channel) * UNIT
    w_base = (group.to(tl.int64) * group_outputs + output_0) * w_stride_output * UNIT
    x_ptrs = (x_ptr + x_base) + (offs_b[:, None] * (x_stride_batch * unit) + offs[None, :])
    w_ptrs = (w_ptr + w_base) + (offs_o[:, None] * (w_stride_output * unit) + offs[None, :])
    x_mask = (batch_0 + offs_b < batch)[:, None] & in_plane[None, :]
    w_mask = (output_0 + offs_o < group_outputs)[:, None] & in_plane[None, :]

    acc_re = tl.zeros((ROWS_B, ROWS_O, LANES_B, LANES_O, BLOCK_F), tl.float32)
    acc_im = tl.zeros((ROWS_B, ROWS_O, LANES_B, LANES_O, BLOCK_F), tl.float32)
    for _ in tl.range(0, n_channels, num_stages=STAGES):
        x = tl.load(x_ptrs, mask=x_mask, other=0.0)
        w = tl.load(w_ptrs, mask=w_mask, other=0.0)
        x_ptrs += x_stride_channel * unit
        w_ptrs += w_stride_channel * unit
        x_re, x_im = tl.split(tl.reshape(x, (ROWS_B, LANES_B, BLOCK_F, 2)))
        w_re, w_im = tl.split(tl.reshape(w, (ROWS_O, LANES_O, BLOCK_F, 2)))
        x_re = x_re[:, None, :, None, :]
        x_im = x_im[:, None, :, None, :]
        w_re = w_re[None, :, None, :, :]
        w_im = w_im[None, :, None, :, :]
        # Chained updates are one FFMA each; `acc += a * b - c * d` would be FMUL, FFMA and FADD.
        acc_re += x_re * w_re
        acc_im += x_im * w_re
        if CONJUGATE:
            acc_re += x_im * w_im
            acc_im -= x_re * w_im
        else:
            acc_re -= x_im * w_im
            acc_im += x_re * w_im
    if WORDS > 0:
        if mask_ptr.dtype.element_ty != tl.int1:
            scale = tl.load(mask_ptr + cells, mask=2 * cells < n_floats, other=0)
            acc_re *= scale[None, None, None, None, :]
            acc_im *= scale[None, None, None, None, :]
    elif mask_ptr is not None:
        # Dropped cells of a pair whose other cell is kept were read, so they must be chosen away, not multiplied by 0.
        if mask_ptr.dtype.element_ty != tl.int1:
            acc_re *= scale[None, None, None, None, :]
            acc_im *= scale[None, None, None, None, :]
        acc_re = tl.where(keep[None, None, None, None, :], acc_re, 0.0)
        acc_im = tl.where(keep[None, None, None, None, :], acc_im, 0.0)

    tile_b = tl.reshape(offs_b, (ROWS_B, 1, LANES_B, 1, 1))
    tile_o = tl.reshape(offs_o, (1, ROWS_O, 1, LANES_O, 1))
    tile_f = tl.reshape(cells, (1, 1, 1, 1, BLOCK_F))
    outputs = groups * group_outputs
    y_base = (batch_0.to(tl.int64) * outputs + group * group_outputs + output_0) * n_floats
    y_offs = (tile_b.to(OFFSET) * outputs + tile_o) * n_floats + 2 * tile_f
    pair = tl.arange(0, 2)[None, None, None, None, None, :]
    y_mask = (batch_0 + tile_b < batch) & (output_0 + tile_o < group_outputs) & (2 * tile_f < n_floats)
    tl.store(
        (y_ptr + y_base) + (y_offs[:, :, :, :, :, None] + pair),
        tl.join(acc_re, acc_im),
        mask=y_mask[:, :, :, :, :, None],
    )


@triton.jit
def planewise_kernel(
    x_ptr,
    w_ptr,
    mask_ptr,
    y_ptr,
    group_channels,
    group_outputs,
    groups,
    plane,
    x_stride_batch,
    x_stride_channel,
    w_stride_output,
    w_stride_channel,
    CONJUGATE: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """The 2019 kernel: a program owns one output plane, a thread one cell at a time, looping over the channels.

    Three real multiplications and five additions per complex product, nothing shared between outputs: 16 bytes are
    read per 8 bytes of one factor used. Strides and `plane` count floats.
    """
    pid = tl.program_id(0).to(tl.int64)
    outputs = groups * group_outputs
    sample = pid // outputs
    output = pid % outputs
    x_base = x_ptr + sample * x_stride_batch + (output // group_outputs) * group_channels * x_stride_channel
    w_base = w_ptr + output * w_stride_output
    for start in range(0, plane, 2 * BLOCK_F):
        offs = start + 2 * tl.arange(0, BLOCK_F)
        keep = offs < plane
        if mask_ptr is not None:
            scale = tl.load(mask_ptr + offs // 2, mask=keep, other=0)
            keep &= scale != 0
        acc_re = tl.zeros((BLOCK_F,), tl.float32)
        acc_im = tl.zeros((BLOCK_F,), tl.float32)
        x_ptrs = x_base + offs
        w_ptrs = w_base + offs
        for _ in range(0, group_channels):
            x_re = tl.load(x_ptrs, mask=keep, other=0.0)
            x_im = tl.load(x_ptrs + 1, mask=keep, other=0.0)
            w_re = tl.load(w_ptrs, mask=keep, other=0.0)
            w_im = tl.load(w_ptrs + 1, mask=keep, other=0.0)
            if CONJUGATE:
                w_im = -w_im
            common = x_re * (w_re + w_im)
            acc_re += common - (x_re + x_im) * w_im
            acc_im += common + (x_im - x_re) * w_re
            x_ptrs += x_stride_channel
            w_ptrs += w_stride_channel
        if mask_ptr is not None:
            if mask_ptr.dtype.element_ty != tl.int1:
                acc_re *= scale
                acc_im *= scale
        y_ptrs = y_ptr + pid * plane + offs
        tl.store(y_ptrs, acc_re, mask=offs < plane)
        tl.store(y_ptrs + 1, acc_im, mask=offs < plane)


def tiled_launch(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, y: Tensor, groups: int, conjugate: bool) -> Launch:
    """The launch of the tiled kernel that fills `y`.

    x_hat: Complex64 [batch, channel, U, V] and w_hat: Complex64 [output, channel / groups, U, V], any strides.
    mask: Bool or Float32 [U, V], any strides, or None. y: Complex64 [batch, output, U, V], contiguous.
    """
    x, w = planes(x_hat), planes(w_hat)
    batch, group_outputs = x.shape[0], w.shape[0] // groups
    cells = x.shape[2]
    sizes = {"batch": batch, "outputs": group_outputs, "channels": w.shape[1], "cells": cells}
    bucket = {name: rounded(size) for name, size in sizes.items()}
    chosen = TILE.choose(bucket, tile(batch, group_outputs), target_capability(x.device))
    plane = 2 * cells
    words = searched_words(cells, w.shape[1], chosen.f) if mask is not None else 0
    aligned = words == 0 and plane % 4 == 0 and _multiples_of_4(x) and _multiples_of_4(w)
    unit = 4 if aligned else 2
    reach = max(chosen.b * x.stride(0), chosen.o * w.stride(0), x.stride(1), w.stride(1), chosen.b * w.shape[0] * plane)
    return Launch(
        kernel=tiled_kernel,
        grid=(
            triton.cdiv(batch, chosen.b)
            * triton.cdiv(group_outputs, chosen.o)
            * groups
            * (triton.cdiv(cells, chosen.f) + (words > 0)),
        ),
        arguments={
            "x_ptr": x,
            "w_ptr": w,
            "mask_ptr": None if mask is None else dense(mask),
            "y_ptr": torch.view_as_real(y),
            "batch": batch,
            "group_channels": w.shape[1],
            "group_outputs": group_outputs,
            "groups": groups,
            "plane": plane // unit,
            "x_stride_batch": x.stride(0) // unit,
            "x_stride_channel": x.stride(1) // unit,
            "w_stride_output": w.stride(0) // unit,
            "w_stride_channel": w.stride(1) // unit,
            "UNIT": unit,
            "CONJUGATE": conjugate,
            "OFFSET": tl.int32 if reach + 2 * chosen.f < 2**31 else tl.int64,
            "STAGES": 3 if w.shape[1] > 2 else 1,
            "ROWS_B": chosen.rows_b,
            "LANES_B": chosen.b // chosen.rows_b,
            "ROWS_O": chosen.rows_o,
            "LANES_O": chosen.o // chosen.rows_o,
            "BLOCK_F": chosen.f,
            "WORDS": words,
        },
        options={"num_warps": chosen.warps, "enable_fp_fusion": True},
        strided=("x_ptr", "w_ptr"),
    )


def planewise_launch(
    x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, y: Tensor, groups: int, conjugate: bool
) -> Launch:
    """The launch of the 2019 kernel that fills `y`; tensors as for `tiled_launch`."""
    x, w = planes(x_hat), planes(w_hat)
    cells = x.shape[2]
    block_f = min(1024, max(32, triton.next_power_of_2(max(cells, 1))))
    return Launch(
        kernel=planewise_kernel,
        grid=(x.shape[0] * w.shape[0] if cells else 0,),
        arguments={
            "x_ptr": x,
            "w_ptr": w,
            "mask_ptr": None if mask is None else dense(mask),
            "y_ptr": torch.view_as_real(y),
            "group_channels": w.shape[1],
            "group_outputs": w.shape[0] // groups,
            "groups": groups,
            "plane": 2 * cells,
            "x_stride_batch": x.stride(0),
            "x_stride_channel": x.stride(1),
            "w_stride_output": w.stride(0),
            "w_stride_channel": w.stride(1),
            "CONJUGATE": conjugate,
            "BLOCK_F": block_f,
        },
        options={"num_warps": block_f // 32, "enable_fp_fusion": True},
        strided=("x_ptr", "w_ptr"),
    )


def planes(spectrum: Tensor) -> Tensor:
    """Complex64 [A, C, U, V] as Float32 [A, C, U V, 2] with contiguous planes: a view wherever the planes are."""
    flat = spectrum.resolve_conj().resolve_neg().flatten(2)
    return torch.view_as_real(flat if flat.stride(-1) == 1 else flat.contiguous())


def _multiples_of_4(planes: Tensor) -> bool:
    return all(planes.stride(axis) % 4 == 0 for axis in (0, 1) if planes.shape[axis] > 1)


def watched(
    multiply: Callable[..., None],
    shape: tuple[int, int, int],
    plane: tuple[int, int],
    *,
    groups: int = 1,
    mask: torch.dtype | None = torch.bool,
) -> NamedLaunch:
    """A call at shape (batch, channels, outputs)."""
    batch, channels, outputs = shape

    def call() -> None:
        x = torch.empty(batch, channels, *plane, dtype=torch.complex64, device="meta")
        w = torch.empty(outputs, channels // groups, *plane, dtype=torch.complex64, device="meta")
        y = torch.empty(batch, outputs, *plane, dtype=torch.complex64, device="meta")
        multiply(x, w, None if mask is None else torch.empty(plane, dtype=mask, device="meta"), y, groups, True)

    words = [f"B{batch} C{channels} O{outputs} {plane[0]}x{plane[1]}"]
    words += [f"groups {groups}"] * (groups > 1)
    words += ["no mask" if mask is None else f"{str(mask).removeprefix('torch.')} mask"]
    return NamedLaunch(", ".join(words), call)


def _tiled(*arguments: Any) -> None:
    tiled_launch(*arguments).run()


def _planewise(*arguments: Any) -> None:
    planewise_launch(*arguments).run()


FINGERPRINTS = (
    watched(_tiled, (128, 64, 64), (34, 18)),
    watched(_tiled, (128, 64, 64), (34, 18), mask=torch.float32),
    watched(_tiled, (128, 64, 64), (34, 18), mask=None),
    watched(_tiled, (128, 64, 64), (33, 17)),
    watched(_tiled, (32, 128, 128), (71, 36), groups=128),
    watched(_tiled, (128, 512, 512), (512, 257)),
    watched(_planewise, (128, 64, 64), (34, 18)),
)
"""A layer of a residual network (aligned planes, then odd ones), a depthwise one, and one that needs 64-bit offsets."""
