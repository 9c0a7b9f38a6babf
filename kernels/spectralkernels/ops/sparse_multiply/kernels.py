"""Multiply a packed bitmap spectrum by dense weights in Triton, skipping empty tiles (imports triton).

Lanes are frequencies, warps are outputs: a weight is loaded once per program and stays in its lane's registers, and
only the expanded maps pass through shared memory, to reach every warp. So 128 of the 191 instructions per channel are
multiplications. A lane loads 64 bits, one complex number, and a warp 256 consecutive bytes of weights. Wider is not to
be had: packed values begin where the bits before them say, rows of weights wherever an odd number of frequencies ends,
and two frequencies a lane would double the accumulators, which already fill half the registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.aot import NamedLaunch
from spectralkernels.operators import operator
from spectralkernels.sparse.bitmap import BLOCK, WORD, blocks_of, collect, expand
from spectralkernels.sparse.kernels import (
    as_coefficient,
    as_int64,
    imaginary,
    on_device_of,
    popcount,
    real,
    word_slots,
)

TILE_BATCH, TILE_FREQUENCY = 8, 32
OUTPUTS_PER_WARP = 4


def tile_out(outputs: int) -> int:
    """Outputs per program: 32 in eight warps, or 16 in four where more would stay empty."""
    return 32 if outputs > 16 else 16


@triton.jit
def filled_channels(words_ptr, offs_b, first_f, group, batch, channels, frequencies, TILE_FREQUENCY: tl.constexpr):
    """Which of the 32 channels from `group` on keep anything in the tile. Returns: UInt32, bit i for channel group + i.

    One window of TILE_FREQUENCY <= 32 bits per map and channel; it may begin within a word and end in the next.
    """
    number = tl.arange(0, 32)
    offs_c = group + number
    begin = (offs_b[:, None] * channels + offs_c[None, :]) * frequencies + first_f  # [TILE_BATCH, 32]
    known = (offs_b < batch)[:, None] & (offs_c < channels)[None, :]
    width = tl.minimum(frequencies - first_f, TILE_FREQUENCY)
    bit = begin & 31
    index = tl.max_contiguous(tl.multiple_of(begin >> 5, (1, 1)), (1, 2))
    low = tl.load(words_ptr + index, mask=known, other=0).to(tl.uint32, bitcast=True)
    high = tl.load(words_ptr + index + 1, mask=known & (bit + width > 32), other=0).to(tl.uint32, bitcast=True)
    # a shift by 32 is undefined, so the upper part is shifted in two steps
    window = (low >> bit.to(tl.uint32)) | ((high << (31 - bit).to(tl.uint32)) << 1)
    window &= tl.full((1, 1), 0xFFFFFFFF, tl.uint32) >> (32 - width).to(tl.uint32)
    filled = tl.max((window != 0).to(tl.int32), axis=0)
    return tl.sum(filled << number, axis=0).to(tl.uint32, bitcast=True)


@triton.jit
def sparse_multiply_kernel(
    values_ptr,
    words_ptr,
    slots_ptr,
    w_ptr,
    out_ptr,
    batch,
    channels,
    out_channels,
    frequencies,
    TILE_BATCH: tl.constexpr,
    TILE_OUT: tl.constexpr,
    TILE_FREQUENCY: tl.constexpr,
):
    """One program owns a tile [TILE_BATCH, TILE_OUT, TILE_FREQUENCY] of the output and sums over input channels.

    It reads the bits of its tile first and visits, in ascending order, only channels that keep anything there. Per
    visit it reads bits and slots again, the kept values (8 bytes each) and the weights (8 bytes each), and multiplies
    (8 flops per output).
    """
    first_f = tl.program_id(0) * TILE_FREQUENCY
    # beginning anywhere keeps a lane at one frequency; else the compiler gives it two and moves them by shared memory
    offs_f = tl.multiple_of(first_f + tl.arange(0, TILE_FREQUENCY), 1)
    offs_o = tl.program_id(1) * TILE_OUT + tl.arange(0, TILE_OUT)
    offs_b = tl.program_id(2) * TILE_BATCH + tl.arange(0, TILE_BATCH)
    inside_y = (offs_b < batch)[:, None] & (offs_f < frequencies)[None, :]
    inside_w = (offs_o < out_channels)[:, None] & (offs_f < frequencies)[None, :]
    w_ptrs = w_ptr + (offs_o.to(tl.int64) * channels * frequencies)[:, None] + offs_f[None, :]

    acc_re = tl.zeros((TILE_BATCH, TILE_OUT, TILE_FREQUENCY), tl.float32)
    acc_im = tl.zeros((TILE_BATCH, TILE_OUT, TILE_FREQUENCY), tl.float32)
    for group in range(0, channels, 32):
        todo = filled_channels(words_ptr, offs_b, first_f, group, batch, channels, frequencies, TILE_FREQUENCY)
        while todo != 0:
            channel = group + popcount((todo ^ 0xFFFFFFFF) & (todo - 1))  # the lowest set bit
            todo &= todo - 1
            # at most 2^31 coefficients, see sparse.too_large
            flat = (offs_b * channels + channel)[:, None] * frequencies + offs_f[None, :]
            index = tl.max_contiguous(tl.multiple_of(flat >> 5, (1, 1)), (1, 2))
            word = tl.load(words_ptr + index, mask=inside_y, other=0)
            slot = tl.load(slots_ptr + index, mask=inside_y, other=0)
            bit = flat & 31
            # slot of the word's first value, plus the kept ones below this bit
            slot += popcount(word & ~(-1 << bit))
            slot = tl.max_contiguous(tl.multiple_of(slot, (1, 1)), (1, 2))
            y = tl.load(values_ptr + slot, mask=((word >> bit) & 1) != 0, other=0)
            w = tl.load(w_ptrs + channel.to(tl.int64) * frequencies, mask=inside_w, other=0)
            y_re, y_im = real(y)[:, None, :], imaginary(y)[:, None, :]
            w_re, w_im = real(w)[None, :, :], imaginary(w)[None, :, :]
            # chained updates become four FMAs; a sum of two products would become six instructions
            acc_re += y_re * w_re
            acc_re += y_im * w_im
            acc_im += y_im * w_re
            acc_im -= y_re * w_im

    offs_out = (offs_b.to(tl.int64)[:, None] * out_channels + offs_o[None, :])[:, :, None] * frequencies
    offs_out = tl.max_contiguous(tl.multiple_of(offs_out + offs_f[None, None, :], (1, 1, 1)), (1, 2, 4))
    inside = (offs_b < batch)[:, None, None] & inside_w[None, :, :]
    tl.store(out_ptr + offs_out, as_coefficient(acc_re, acc_im), mask=inside)


@operator("sparse_multiply_bitmap")
def sparse_multiply_bitmap(
    values: Tensor, words: Tensor, offsets: Tensor | None, w_hat: Tensor, shape: Sequence[int]
) -> Tensor:
    """sum over c of sparse * conj(w_hat), expanding packed tiles in shared memory.

    values, words, offsets: a bitmap spectrum of `shape` [B, C, U, V]. w_hat: Complex64 [O, C, U, V].
    Returns: Complex64 [B, O, U, V].
    """
    return _launch(values, words, offsets, w_hat, shape)


def _launch(values: Tensor, words: Tensor, offsets: Tensor | None, w_hat: Tensor, shape: Sequence[int]) -> Tensor:
    batch, channels, rows, columns = shape
    outputs = w_hat.shape[0]
    out = torch.empty(batch, outputs, rows, columns, dtype=torch.complex64, device=w_hat.device)
    if out.numel():
        width = tile_out(outputs)
        grid = (
            triton.cdiv(rows * columns, TILE_FREQUENCY),
            triton.cdiv(outputs, width),
            triton.cdiv(batch, TILE_BATCH),
        )
        with on_device_of(w_hat):
            sparse_multiply_kernel[grid](
                as_int64(values),
                words,
                word_slots(words, offsets),
                as_int64(w_hat),
                as_int64(out),
                batch,
                channels,
                outputs,
                rows * columns,
                TILE_BATCH=TILE_BATCH,
                TILE_OUT=width,
                TILE_FREQUENCY=TILE_FREQUENCY,
                num_warps=width // OUTPUTS_PER_WARP,
            )
    return out


@sparse_multiply_bitmap.register_fake
def _(values: Tensor, words: Tensor, offsets: Tensor | None, w_hat: Tensor, shape: Sequence[int]) -> Tensor:
    return w_hat.new_empty(shape[0], w_hat.shape[0], shape[2], shape[3])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, words, offsets, w_hat, ctx.shape = inputs
    ctx.save_for_backward(values, words, offsets, w_hat)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, None]:
    values, words, offsets, w_hat = ctx.saved_tensors
    grad_values = grad_w = None
    if ctx.needs_input_grad[0]:
        grad_y = torch.einsum("bouv,ocuv->bcuv", grad, w_hat)
        grad_values = collect(grad_y.reshape(-1), words, offsets, values.shape[0])
    if ctx.needs_input_grad[3]:
        y = expand(values, words, offsets, torch.Size(ctx.shape).numel()).reshape(ctx.shape)
        grad_w = torch.einsum("bouv,bcuv->ocuv", grad.conj(), y)
    return grad_values, None, None, grad_w, None


sparse_multiply_bitmap.register_autograd(_backward, setup_context=_setup_context)


def _watched(size: int, columns: int, outputs: int = 64) -> NamedLaunch:
    def call() -> None:
        shape = torch.Size((128, 64, size, columns))
        blocks = blocks_of(shape.numel())
        values = torch.empty(blocks * BLOCK, dtype=torch.complex64, device="meta")
        words = torch.empty(blocks * (BLOCK // WORD), dtype=torch.int32, device="meta")
        w_hat = torch.empty(outputs, 64, size, columns, dtype=torch.complex64, device="meta")
        _launch(values, words, None, w_hat, shape)

    return NamedLaunch(f"B128 C64 O{outputs} {size}x{columns}", call)


FINGERPRINTS = (_watched(34, 18), _watched(32, 17), _watched(34, 18, outputs=16))
