"""The two kernels of the depthwise implicit GEMM.

One row r of a kernel, between rows of maps, is a product with a Toeplitz matrix, [row, i] x [i, j] with
T_r[i, j] = w[r, i - j + pad]. A program owns a channel, a block of output rows (of all images, one after another) and a
block of output columns; T_r is gathered from the row of the kernel and shared by all of the block's rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def convolve_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    rows,
    channels,
    H: tl.constexpr,
    W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    CHUNKS: tl.constexpr,
    MMA: tl.constexpr,
):
    """[BLOCK_M rows, BLOCK_OUT columns] of one channel's outputs; `rows` is batch x OUT_H."""
    blocks: tl.constexpr = (OUT_W + BLOCK_OUT - 1) // BLOCK_OUT
    program = tl.program_id(0)
    channel = (program // blocks) % channels
    offs_row = (program // (blocks * channels)) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_out = (program % blocks) * BLOCK_OUT
    offs_out = first_out + tl.arange(0, BLOCK_OUT)
    image, out_h = offs_row // OUT_H, offs_row % OUT_H
    plane = (image * channels + channel).to(tl.int64)
    first_in = tl.maximum(first_out - PAD_W, 0)
    acc = tl.zeros((BLOCK_M, BLOCK_OUT), dtype=tl.float32)
    for step in range(TAPS_H * CHUNKS):
        tap_h = step // CHUNKS
        offs_in = first_in + (step % CHUNKS) * BLOCK_IN + tl.arange(0, BLOCK_IN)
        in_h = out_h - PAD_H + tap_h
        inside = (offs_row < rows) & (in_h >= 0) & (in_h < H)
        x_mask = inside[:, None] & (offs_in < W)[None, :]
        x = tl.load(x_ptr + (plane * (H * W) + in_h * W)[:, None] + offs_in[None, :], mask=x_mask, other=0.0)
        tap_w = offs_in[:, None] - offs_out[None, :] + PAD_W  # [BLOCK_IN, BLOCK_OUT]
        taps = weight_ptr + (channel * TAPS_H + tap_h) * TAPS_W + tap_w
        toeplitz = tl.load(taps, mask=(tap_w >= 0) & (tap_w < TAPS_W), other=0.0)
        acc = tl.dot(x.to(MMA), toeplitz.to(MMA), acc, input_precision="tf32")
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + channel).to(tl.float32)
    y_mask = (offs_row < rows)[:, None] & (offs_out < OUT_W)[None, :]
    y_ptrs = y_ptr + (plane * (OUT_H * OUT_W) + out_h * OUT_W)[:, None] + offs_out[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=y_mask)


@triton.jit
def weight_gradient_kernel(
    dy_ptr,
    x_ptr,
    partial_ptr,
    rows,
    channels,
    H: tl.constexpr,
    W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    CHUNKS: tl.constexpr,
    MMA: tl.constexpr,
):
    """One row of one channel's kernel gradient, from one block of columns: the diagonals of [i, row] x [row, j]."""
    program = tl.program_id(0)
    tap_h = program % TAPS_H
    channel = (program // TAPS_H) % channels
    piece = program // (TAPS_H * channels)
    first_out = (piece // CHUNKS) * BLOCK_OUT
    offs_out = first_out + tl.arange(0, BLOCK_OUT)
    offs_in = tl.maximum(first_out - PAD_W, 0) + (piece % CHUNKS) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    acc = tl.zeros((BLOCK_IN, BLOCK_OUT), dtype=tl.float32)
    for first_row in range(0, rows, BLOCK_M):
        offs_row = first_row + tl.arange(0, BLOCK_M)
        image, out_h = offs_row // OUT_H, offs_row % OUT_H
        plane = (image * channels + channel).to(tl.int64)
        in_h = out_h - PAD_H + tap_h
        inside = (offs_row < rows) & (in_h >= 0) & (in_h < H)
        x_ptrs = x_ptr + (plane * (H * W) + in_h * W)[None, :] + offs_in[:, None]
        x = tl.load(x_ptrs, mask=inside[None, :] & (offs_in < W)[:, None], other=0.0)  # [BLOCK_IN, BLOCK_M]
        dy_ptrs = dy_ptr + (plane * (OUT_H * OUT_W) + out_h * OUT_W)[:, None] + offs_out[None, :]
        dy = tl.load(dy_ptrs, mask=(offs_row < rows)[:, None] & (offs_out < OUT_W)[None, :], other=0.0)
        acc = tl.dot(x.to(MMA), dy.to(MMA), acc, input_precision="tf32")
    diagonal = offs_in[:, None] - offs_out[None, :] + PAD_W
    row = ((piece * channels + channel) * TAPS_H + tap_h).to(tl.int64)
    for tap_w in range(TAPS_W):
        tl.store(partial_ptr + row * TAPS_W + tap_w, tl.sum(tl.where(diagonal == tap_w, acc, 0.0)))
