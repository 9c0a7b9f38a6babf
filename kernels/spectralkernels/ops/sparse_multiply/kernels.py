"""Multiply a packed bitmap spectrum by dense weights in Triton, skipping empty tiles (imports triton)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.aot import NamedLaunch
from spectralkernels.launch import as_real_pairs
from spectralkernels.sparse.bitmap import BLOCK, WORD, blocks_of, collect, expand
from spectralkernels.sparse.kernels import on_device_of, popcount, word_slots

TILE = {"TILE_BATCH": 8, "TILE_OUT": 8, "TILE_FREQUENCY": 32}
NUM_WARPS = 4


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
    """One program owns a tile [TILE_BATCH, TILE_OUT, TILE_FREQUENCY] of the output and loops over input channels.

    Per channel it reads the bits of its [TILE_BATCH, TILE_FREQUENCY] coefficients; only if one is set does it read the
    values (8 bytes per kept one), the weights (8 bytes each), and multiply (8 flops per output and channel).
    """
    offs_f = tl.program_id(0) * TILE_FREQUENCY + tl.arange(0, TILE_FREQUENCY)
    offs_o = tl.program_id(1) * TILE_OUT + tl.arange(0, TILE_OUT)
    offs_b = tl.program_id(2) * TILE_BATCH + tl.arange(0, TILE_BATCH)
    inside_f = offs_f < frequencies
    inside_y = (offs_b < batch)[:, None] & inside_f[None, :]
    inside_w = (offs_o < out_channels)[:, None] & inside_f[None, :]

    acc_re = tl.zeros((TILE_BATCH, TILE_OUT, TILE_FREQUENCY), tl.float32)
    acc_im = tl.zeros((TILE_BATCH, TILE_OUT, TILE_FREQUENCY), tl.float32)
    for channel in range(0, channels):
        # at most 2^31 coefficients, see sparse.too_large
        flat = (offs_b * channels + channel)[:, None] * frequencies + offs_f[None, :]
        word = tl.load(words_ptr + flat // 32, mask=inside_y, other=0)
        bit = flat % 32
        kept = ((word >> bit) & 1) * inside_y.to(tl.int32)
        if tl.max(tl.max(kept, axis=1), axis=0) > 0:
            # slot of the word's first value, plus the kept ones below this bit
            below = popcount(word & ((1 << bit) - 1))
            slot = (tl.load(slots_ptr + flat // 32, mask=inside_y, other=0) + below).to(tl.int64)
            y_re = tl.load(values_ptr + 2 * slot, mask=kept != 0, other=0.0)[:, None, :]
            y_im = tl.load(values_ptr + 2 * slot + 1, mask=kept != 0, other=0.0)[:, None, :]
            offs_w = (offs_o.to(tl.int64) * channels + channel)[:, None] * frequencies + offs_f[None, :]
            w_re = tl.load(w_ptr + 2 * offs_w, mask=inside_w, other=0.0)[None, :, :]
            w_im = tl.load(w_ptr + 2 * offs_w + 1, mask=inside_w, other=0.0)[None, :, :]
            # chained updates become four FMAs; a sum of two products would become six instructions
            acc_re += y_re * w_re
            acc_re += y_im * w_im
            acc_im += y_im * w_re
            acc_im -= y_re * w_im

    offs_out = (offs_b.to(tl.int64)[:, None] * out_channels + offs_o[None, :])[:, :, None] * frequencies
    offs_out = 2 * (offs_out + offs_f[None, None, :])
    inside = (offs_b < batch)[:, None, None] & inside_w[None, :, :]
    pair = tl.arange(0, 2)[None, None, None, :]
    tl.store(out_ptr + offs_out[:, :, :, None] + pair, tl.join(acc_re, acc_im), mask=inside[:, :, :, None])


@torch.library.custom_op("spectralkernels::sparse_multiply_bitmap", mutates_args=())
def sparse_multiply_bitmap(
    values: Tensor, words: Tensor, offsets: Tensor | None, w_hat: Tensor, shape: Sequence[int]
) -> Tensor:
    """sum over c of sparse * conj(w_hat), expanding packed tiles in registers.

    values, words, offsets: a bitmap spectrum of `shape` [B, C, U, V]. w_hat: Complex64 [O, C, U, V].
    Returns: Complex64 [B, O, U, V].
    """
    return _launch(values, words, offsets, w_hat, shape)


def _launch(values: Tensor, words: Tensor, offsets: Tensor | None, w_hat: Tensor, shape: Sequence[int]) -> Tensor:
    batch, channels, rows, columns = shape
    outputs = w_hat.shape[0]
    out = torch.empty(batch, outputs, rows, columns, dtype=torch.complex64, device=w_hat.device)
    if out.numel():
        grid = (
            triton.cdiv(rows * columns, TILE["TILE_FREQUENCY"]),
            triton.cdiv(outputs, TILE["TILE_OUT"]),
            triton.cdiv(batch, TILE["TILE_BATCH"]),
        )
        with on_device_of(w_hat):
            sparse_multiply_kernel[grid](
                as_real_pairs(values),
                words,
                word_slots(words, offsets),
                as_real_pairs(w_hat),
                torch.view_as_real(out),
                batch,
                channels,
                outputs,
                rows * columns,
                **TILE,
                num_warps=NUM_WARPS,
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


def _watched(size: int, columns: int) -> NamedLaunch:
    def call() -> None:
        shape = torch.Size((128, 64, size, columns))
        blocks = blocks_of(shape.numel())
        values = torch.empty(blocks * BLOCK, dtype=torch.complex64, device="meta")
        words = torch.empty(blocks * (BLOCK // WORD), dtype=torch.int32, device="meta")
        _launch(values, words, None, torch.empty(64, 64, size, columns, dtype=torch.complex64, device="meta"), shape)

    return NamedLaunch(f"B128 C64 O64 {size}x{columns}", call)


FINGERPRINTS = (_watched(34, 18), _watched(32, 17))
