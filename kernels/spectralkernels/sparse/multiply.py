"""Multiply a packed bitmap spectrum by dense weights in Triton, skipping empty tiles (imports triton).

Lanes are frequencies, warps are outputs: a weight is loaded once per program and stays in its lane's registers, and
only the expanded maps pass through shared memory, to reach every warp. So 128 of the 191 instructions per channel are
multiplications. A lane loads 64 bits, one complex number, and a warp 256 consecutive bytes of weights. Wider is not to
be had: packed values begin where the bits before them say, rows of weights wherever an odd number of frequencies ends,
and two frequencies a lane would double the accumulators, which already fill half the registers.

The gradient of the weights is the same sum over the batch: channels and batch change places in every tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.launch import Launch, NamedLaunch
from spectralkernels.operators import operator
from spectralkernels.sparse import SparseSpectrum
from spectralkernels.sparse.bitmap import BLOCK, WORD, blocks_of, collect, expand
from spectralkernels.sparse.kernels import (
    as_coefficient,
    as_int64,
    imaginary,
    popcount,
    real,
    word_slots,
)

TILE_ROW, TILE_FREQUENCY = 8, 32
OUTPUTS_PER_WARP = 4


def tile_out(outputs: int) -> int:
    """Outputs per program: 32 in eight warps, or 16 in four where more would stay empty."""
    return 32 if outputs > 16 else 16


@triton.jit
def plane_of(row, term, rows, terms, TRANSPOSED: tl.constexpr):
    """The number of a plane [row, term], or, where the tensor has them the other way round, of [term, row]."""
    return term * rows + row if TRANSPOSED else row * terms + term


@triton.jit
def filled_terms(
    words_ptr, offs_r, first_f, group, rows, terms, frequencies, TILE_FREQUENCY: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """Which of the 32 terms from `group` on keep anything in the tile. Returns: UInt32, bit i for term group + i.

    One window of TILE_FREQUENCY <= 32 bits per plane; it may begin within a word and end in the next.
    """
    number = tl.arange(0, 32)
    offs_t = group + number
    begin = plane_of(offs_r[:, None], offs_t[None, :], rows, terms, TRANSPOSED) * frequencies + first_f  # [rows, 32]
    known = (offs_r < rows)[:, None] & (offs_t < terms)[None, :]
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
    rows,
    terms,
    outputs,
    frequencies,
    TILE_ROW: tl.constexpr,
    TILE_OUT: tl.constexpr,
    TILE_FREQUENCY: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """out[r, o, f] = sum over t of Y[r, t, f] conj(W[o, t, f]); TRANSPOSED: out[o, r], Y[t, r] and W[t, o].

    One program owns a tile [TILE_ROW, TILE_OUT, TILE_FREQUENCY] of the output. It reads the bits of its tile first and
    visits, in ascending order, only terms that keep anything there. Per visit it reads bits and slots again, the kept
    values (8 bytes each) and the weights (8 bytes each), and multiplies (8 flops per output).
    """
    if TRANSPOSED:
        # W is as large as a batch of maps: programs that read the same part of it run side by side. All are on the
        # first axis, because a plane may be too large for another; where maps come last it costs a spill on sm_100.
        n_r, n_o = tl.cdiv(rows, TILE_ROW), tl.cdiv(outputs, TILE_OUT)
        pid = tl.program_id(0)
        block_r, block_o, block_f = pid % n_r, pid // n_r % n_o, pid // n_r // n_o
    else:
        block_f, block_o, block_r = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_f = block_f * TILE_FREQUENCY
    # beginning anywhere keeps a lane at one frequency; else the compiler gives it two and moves them by shared memory
    offs_f = tl.multiple_of(first_f + tl.arange(0, TILE_FREQUENCY), 1)
    offs_o = block_o * TILE_OUT + tl.arange(0, TILE_OUT)
    offs_r = block_r * TILE_ROW + tl.arange(0, TILE_ROW)
    inside_y = (offs_r < rows)[:, None] & (offs_f < frequencies)[None, :]
    inside_w = (offs_o < outputs)[:, None] & (offs_f < frequencies)[None, :]
    w_output = (1 if TRANSPOSED else terms) * frequencies
    w_term = (outputs if TRANSPOSED else 1) * frequencies
    w_ptrs = w_ptr + (offs_o.to(tl.int64) * w_output)[:, None] + offs_f[None, :]

    acc_re = tl.zeros((TILE_ROW, TILE_OUT, TILE_FREQUENCY), tl.float32)
    acc_im = tl.zeros((TILE_ROW, TILE_OUT, TILE_FREQUENCY), tl.float32)
    for group in range(0, terms, 32):
        todo = filled_terms(words_ptr, offs_r, first_f, group, rows, terms, frequencies, TILE_FREQUENCY, TRANSPOSED)
        while todo != 0:
            term = group + popcount((todo ^ 0xFFFFFFFF) & (todo - 1))  # the lowest set bit
            todo &= todo - 1
            # at most 2^31 coefficients, see sparse.too_large
            flat = plane_of(offs_r, term, rows, terms, TRANSPOSED)[:, None] * frequencies + offs_f[None, :]
            index = tl.max_contiguous(tl.multiple_of(flat >> 5, (1, 1)), (1, 2))
            word = tl.load(words_ptr + index, mask=inside_y, other=0)
            slot = tl.load(slots_ptr + index, mask=inside_y, other=0)
            bit = flat & 31
            # slot of the word's first value, plus the kept ones below this bit
            slot += popcount(word & ~(-1 << bit))
            slot = tl.max_contiguous(tl.multiple_of(slot, (1, 1)), (1, 2))
            y = tl.load(values_ptr + slot, mask=((word >> bit) & 1) != 0, other=0)
            w = tl.load(w_ptrs + term.to(tl.int64) * w_term, mask=inside_w, other=0)
            y_re, y_im = real(y)[:, None, :], imaginary(y)[:, None, :]
            w_re, w_im = real(w)[None, :, :], imaginary(w)[None, :, :]
            # chained updates become four FMAs; a sum of two products would become six instructions
            acc_re += y_re * w_re
            acc_re += y_im * w_im
            acc_im += y_im * w_re
            acc_im -= y_re * w_im

    # a sum of axes in this order, not the number of a plane: 128 registers at most, so that two programs share an SM
    out_row = (1 if TRANSPOSED else outputs) * frequencies
    out_output = (rows if TRANSPOSED else 1) * frequencies
    offs_out = (offs_r.to(tl.int64) * out_row)[:, None] + offs_f[None, :]
    offs_out = offs_out[:, None, :] + (offs_o.to(tl.int64) * out_output)[None, :, None]
    offs_out = tl.max_contiguous(tl.multiple_of(offs_out, (1, 1, 1)), (1, 2, 4))
    inside = (offs_r < rows)[:, None, None] & inside_w[None, :, :]
    tl.store(out_ptr + offs_out, as_coefficient(acc_re, acc_im), mask=inside)


def multiply(sparse: SparseSpectrum, dense: Tensor, *, over_batch: bool = False) -> Tensor:
    """sum over c of Y[b, c] conj(W[o, c]), or over the batch: the gradient with respect to W, given that of the sums.

    sparse: a bitmap, Complex64 [B, C, U, V]. dense: Complex64 [O, C, U, V], or, over the batch, [B, O, U, V].
    Returns: Complex64 [B, O, U, V], or, over the batch, [O, C, U, V]; differentiable.
    """
    output: Tensor = sparse_multiply_bitmap(sparse.values, *sparse.bits(), dense, sparse.shape, over_batch)
    return output


@operator("sparse_multiply_bitmap", dense=True)
def sparse_multiply_bitmap(
    values: Tensor, words: Tensor, offsets: Tensor | None, w_hat: Tensor, shape: Sequence[int], over_batch: bool
) -> Tensor:
    """See `multiply`; values, words, offsets: a bitmap spectrum of `shape` [B, C, U, V]."""
    return _launch(values, words, offsets, w_hat, shape, over_batch)


def _launch(
    values: Tensor, words: Tensor, offsets: Tensor | None, w_hat: Tensor, shape: Sequence[int], over_batch: bool
) -> Tensor:
    batch, channels, height, columns = shape
    out = torch.empty(_output_shape(w_hat, shape, over_batch), dtype=torch.complex64, device=w_hat.device)
    rows, terms, outputs = (channels, batch, out.shape[0]) if over_batch else (batch, channels, out.shape[1])
    width, plane = tile_out(outputs), height * columns
    grid = (triton.cdiv(plane, TILE_FREQUENCY), triton.cdiv(outputs, width), triton.cdiv(rows, TILE_ROW))
    Launch(
        kernel=sparse_multiply_kernel,
        grid=(math.prod(grid),) if over_batch else grid,
        arguments={
            "values_ptr": as_int64(values),
            "words_ptr": words,
            "slots_ptr": word_slots(words, offsets),
            "w_ptr": as_int64(w_hat),
            "out_ptr": as_int64(out),
            "rows": rows,
            "terms": terms,
            "outputs": outputs,
            "frequencies": plane,
            "TILE_ROW": TILE_ROW,
            "TILE_OUT": width,
            "TILE_FREQUENCY": TILE_FREQUENCY,
            "TRANSPOSED": over_batch,
        },
        options={"num_warps": width // OUTPUTS_PER_WARP},
    ).run()
    return out


def _output_shape(w_hat: Tensor, shape: Sequence[int], over_batch: bool) -> tuple[int, ...]:
    return (w_hat.shape[1], *shape[1:]) if over_batch else (shape[0], w_hat.shape[0], *shape[2:])


@sparse_multiply_bitmap.register_fake
def _(
    values: Tensor, words: Tensor, offsets: Tensor | None, w_hat: Tensor, shape: Sequence[int], over_batch: bool
) -> Tensor:
    return w_hat.new_empty(_output_shape(w_hat, shape, over_batch))


@sparse_multiply_bitmap.register_composed
def _(
    values: Tensor, words: Tensor, offsets: Tensor | None, w_hat: Tensor, shape: Sequence[int], over_batch: bool
) -> Tensor:
    dense = expand(values, words, offsets, math.prod(shape)).reshape(*shape)
    return torch.einsum("bcuv,bouv->ocuv" if over_batch else "bcuv,ocuv->bouv", dense, w_hat.conj())


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, words, offsets, w_hat, ctx.shape, ctx.over_batch = inputs
    ctx.save_for_backward(values, words, offsets, w_hat)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, None, None]:
    values, words, offsets, w_hat = ctx.saved_tensors
    grad_values = grad_w = None
    if ctx.needs_input_grad[0]:
        grad_y = torch.einsum("ocuv,bouv->bcuv" if ctx.over_batch else "bouv,ocuv->bcuv", grad, w_hat)
        grad_values = collect(grad_y.reshape(-1), words, offsets, values.shape[0])
    if ctx.needs_input_grad[3]:
        # each sum is the other's gradient: conj(dZ) Y summed over the batch, or over the channels
        grad = grad.resolve_conj()
        grad_w = sparse_multiply_bitmap(values, words, offsets, grad, ctx.shape, not ctx.over_batch)
    return grad_values, None, None, grad_w, None, None


sparse_multiply_bitmap.register_autograd(_backward, setup_context=_setup_context)
# Of a dense map: how many coefficients are kept is known on the device alone.
sparse_multiply_bitmap.register_flops(
    lambda values, words, offsets, w_hat, shape, over_batch: 8 * math.prod(shape) * w_hat.shape[1 if over_batch else 0]
)


def _watched(size: int, columns: int, outputs: int = 64, over_batch: bool = False) -> NamedLaunch:
    def call() -> None:
        shape = torch.Size((128, 64, size, columns))
        blocks = blocks_of(shape.numel())
        values = torch.empty(blocks * BLOCK, dtype=torch.complex64, device="meta")
        words = torch.empty(blocks * (BLOCK // WORD), dtype=torch.int32, device="meta")
        first = (128, outputs) if over_batch else (outputs, 64)
        w_hat = torch.empty(*first, size, columns, dtype=torch.complex64, device="meta")
        _launch(values, words, None, w_hat, shape, over_batch)

    what = ", weight gradient" if over_batch else ""
    return NamedLaunch(f"B128 C64 O{outputs} {size}x{columns}{what}", call)


FINGERPRINTS = (
    _watched(34, 18),
    _watched(32, 17),
    _watched(34, 18, outputs=16),
    _watched(34, 18, over_batch=True),
)
