"""One-pass threshold, spectral tanh, bitmap and packing in Triton (imports triton).

At 4.3 TB/s and 10 bytes per coefficient an H200 has time for 69 instructions each, so they are what is saved here. A
warp holds a word, lane i the i-th of 32 consecutive coefficients: its bits meet in one warp-wide sum, and a slot is the
end of the word less the set bits from its own on, so that nothing is scanned but 32 counts. A lane therefore loads
64 bits, one coefficient, and a warp 256 consecutive bytes; 128 bits a lane would need two sums per coefficient or a
pass through shared memory. The activation is a second pass of the program over what it packed, 16 bytes per kept
coefficient that only caches see: so its 28 instructions are spent on these alone, whole warps at a time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.launch import Launch, NamedLaunch, interpreted
from spectralkernels.operators import operator
from spectralkernels.ops.threshold_spectrum.activation import divided, power_of_two_near, spectral_tanh
from spectralkernels.ops.threshold_spectrum.baselines import activate, decide
from spectralkernels.sparse.bitmap import BLOCK, WORD, blocks_of, collect, pack
from spectralkernels.sparse.bitmap import expand as expand_packed
from spectralkernels.sparse.kernels import (
    as_coefficient,
    as_int64,
    expand,
    imaginary,
    popcount,
    real,
)

NUM_WARPS = 4
# Between these, beta^2 is normal and every square that matters beside it is finite: scaling would decide nothing.
UNSCALED = (2.0**-60, 2.0**60)


@triton.jit
def exceeds(coefficient, scale, bound, SCALED: tl.constexpr):
    """Whether |coefficient| > limit, true for NaN, with bound = (scale * limit)^2 and an exact scale (else 1)."""
    re, im = real(coefficient), imaginary(coefficient)
    if SCALED:
        re *= scale
        im *= scale
    # an explicit fma: both coefficients of a pair must round alike wherever this is inlined
    return (tl.fma(re, re, im * im) <= bound) == 0


@triton.jit
def threshold_kernel(
    y_ptr,
    rms_ptr,
    values_ptr,
    words_ptr,
    n_coefficients,
    beta,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    RELATIVE: tl.constexpr,
    SCALED: tl.constexpr,
    FULL: tl.constexpr,
    TANH: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program owns BLOCK consecutive coefficients: reads 8 bytes each, writes 1/8 byte each and 8 per kept one.

    With TANH it reads what it packed once more, AT_ONCE values in a step, and writes it again.
    Coefficients of the self-conjugate columns also read their partner's 8 bytes (from cache: it is near). ROWS and
    COLUMNS are compile-time so that a division is one multiplication; FULL says that the last block is not short.
    """
    block = tl.program_id(0)
    start = block.to(tl.int64) * BLOCK
    word = tl.arange(0, BLOCK // 32)
    lane = tl.arange(0, 32)[None, :]
    offs = 32 * word[:, None] + lane
    inside = offs < n_coefficients - block * BLOCK
    # neighbours in neighbouring lanes: left to itself the compiler gives a lane two
    y_ptrs = y_ptr + start + tl.multiple_of(offs, (1, 1))
    y = tl.load(y_ptrs) if FULL else tl.load(y_ptrs, mask=inside, other=0)

    # position in the plane that the block begins in, and past its end in those that follow
    position = (block.to(tl.uint32) * BLOCK) % (ROWS * COLUMNS) + offs.to(tl.uint32)
    line = divided(position, COLUMNS, ROWS * COLUMNS + BLOCK)
    column = position - line * COLUMNS
    plane = divided(line, ROWS, ROWS + BLOCK)
    row = (line - plane * ROWS).to(tl.int32)
    paired = column == 0
    if EVEN:
        paired = paired | (column == COLUMNS - 1)
    # row u pairs with row -u mod U; row 0 with itself
    paired = paired & (row != 0)
    if not FULL:
        paired = paired & inside
    partners = y_ptrs + (ROWS - 2 * row).to(tl.int64) * COLUMNS
    partner = tl.load(tl.max_contiguous(partners, (1, 2)), mask=paired, other=0)

    # under the interpreter beta may arrive as a float, or as float64 below 2^-126
    limit = tl.full((), beta, tl.float32)
    if RELATIVE:
        plane += block.to(tl.uint32) * BLOCK // (ROWS * COLUMNS)
        rms_ptrs = tl.max_contiguous(rms_ptr + plane.to(tl.int64), (1, 2))
        limit *= tl.load(rms_ptrs) if FULL else tl.load(rms_ptrs, mask=inside)
    scale = power_of_two_near(limit) if SCALED else 1.0
    bound = (scale * limit) * (scale * limit)
    kept = exceeds(y, scale, bound, SCALED) | (paired & exceeds(partner, scale, bound, SCALED))
    if not FULL:
        kept = kept & inside

    words = tl.sum(tl.where(kept, 1 << lane, 0), axis=1)
    tl.store(words_ptr + block * (BLOCK // 32) + word, words)
    ends = tl.cumsum(popcount(words), 0)
    slots = ends[:, None] - popcount(words[:, None] & (-1 << lane))
    tl.store(tl.max_contiguous(values_ptr + start + slots, (1, 2)), y, mask=kept)
    if TANH:
        n_kept = tl.max(ends, 0)
        # what a thread reads now other threads of the program wrote
        tl.debug_barrier()
        for first in tl.range(0, n_kept, AT_ONCE):
            slot = first + tl.arange(0, AT_ONCE)
            packed_ptrs = values_ptr + start + slot
            value = tl.load(packed_ptrs, mask=slot < n_kept, other=0)
            re, im = spectral_tanh(real(value), APPROXIMATE), spectral_tanh(imaginary(value), APPROXIMATE)
            tl.store(packed_ptrs, as_coefficient(re, im), mask=slot < n_kept)


@operator("threshold_bitmap", dense=True)
def threshold_bitmap(y_hat: Tensor, beta: Tensor, rms: Tensor | None, tanh: bool, n: int) -> tuple[Tensor, Tensor]:
    """Threshold, activate and pack in one launch, without waiting for the device.

    y_hat: Complex64 [..., U, V]. beta: Float64 of one number, on the host. rms: Float32 [planes] to scale beta with, or
        None. n: signal length of the last axis.
    Returns: Complex64 [blocks * 1024], undefined in unused slots; Int32 [blocks * 32].
    """
    return _launch(y_hat, float(beta), rms, tanh, n)


def _launch(y_hat: Tensor, beta: float, rms: Tensor | None, tanh: bool, n: int) -> tuple[Tensor, Tensor]:
    numel, blocks = y_hat.numel(), blocks_of(y_hat.numel())
    values = torch.empty(blocks * BLOCK, dtype=torch.complex64, device=y_hat.device)
    words = torch.empty(blocks * (BLOCK // WORD), dtype=torch.int32, device=y_hat.device)
    low, high = UNSCALED
    # nothing is above an infinite threshold, whatever it is multiplied with
    relative = rms is not None and beta != math.inf
    Launch(
        kernel=threshold_kernel,
        grid=(blocks,),
        arguments={
            "y_ptr": as_int64(y_hat),
            "rms_ptr": words if rms is None else rms,
            "values_ptr": as_int64(values),
            "words_ptr": words,
            "n_coefficients": numel,
            "beta": beta,
            "ROWS": y_hat.shape[-2],
            "COLUMNS": y_hat.shape[-1],
            "EVEN": n % 2 == 0,
            "RELATIVE": relative,
            "SCALED": relative or not low <= beta <= high,
            "FULL": numel % BLOCK == 0,
            "TANH": tanh,
            "APPROXIMATE": not interpreted(),
            "AT_ONCE": 32 * NUM_WARPS,
            "BLOCK": BLOCK,
        },
        options={"num_warps": NUM_WARPS},
    ).run()
    return values, words


@threshold_bitmap.register_fake
def _(y_hat: Tensor, beta: Tensor, rms: Tensor | None, tanh: bool, n: int) -> tuple[Tensor, Tensor]:
    blocks = blocks_of(y_hat.numel())
    return y_hat.new_empty(blocks * BLOCK), y_hat.new_empty(blocks * (BLOCK // WORD), dtype=torch.int32)


@threshold_bitmap.register_composed
def _(y_hat: Tensor, beta: Tensor, rms: Tensor | None, tanh: bool, n: int) -> tuple[Tensor, Tensor]:
    """A magnitude within rounding of beta may fall on the other side of it."""
    values, words = pack(y_hat.reshape(-1), decide(y_hat.detach(), beta, rms, n).reshape(-1))
    return activate(values, "tanh" if tanh else "none"), words


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.shape, ctx.tanh = inputs[0].shape, inputs[3]
    ctx.save_for_backward(*output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, grad_words: Tensor | None) -> tuple[Tensor, None, None, None, None]:
    values, words = ctx.saved_tensors
    flat = threshold_backward(grad, values if ctx.tanh else None, words, ctx.shape.numel())
    return flat.reshape(ctx.shape), None, None, None, None


@operator("threshold_backward", dense=True)
def threshold_backward(grad: Tensor, values: Tensor | None, words: Tensor, numel: int) -> Tensor:
    """Unpack the gradient of packed values in one launch, times the derivative of tanh at its outputs `values`.

    Nothing but the sparse spectrum is needed: d tanh(y) = 1 - tanh(y)^2, on real and imaginary parts separately.
    grad, values: Complex64 [blocks * 1024]; None for no activation. words: Int32 [blocks * 32].
    Returns: Complex64 [numel], zero where dropped.
    """
    return expand(grad, words, None, numel, outputs=values)


@threshold_backward.register_fake
def _(grad: Tensor, values: Tensor | None, words: Tensor, numel: int) -> Tensor:
    return grad.new_empty(numel)


@threshold_backward.register_composed
def _(grad: Tensor, values: Tensor | None, words: Tensor, numel: int) -> Tensor:
    flat: Tensor = expand_packed(grad, words, None, numel)
    if values is None:
        return flat
    pull, at = (torch.view_as_real(each.resolve_conj()) for each in (flat, expand_packed(values, words, None, numel)))
    return torch.view_as_complex(pull * (1.0 - at.square()))


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, values, words, _ = inputs
    ctx.save_for_backward(grad, values, words)


def _second_backward(ctx: Any, grad_flat: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
    grad, values, words = ctx.saved_tensors
    packed = collect(grad_flat, words, None, grad.shape[0])
    if values is None:
        return packed, None, None, None
    pull, at, first = (torch.view_as_real(part.resolve_conj()) for part in (packed, values, grad))
    to_grad, to_values = pull * (1.0 - at.square()), -2.0 * at * first * pull
    return torch.view_as_complex(to_grad), torch.view_as_complex(to_values), None, None


threshold_backward.register_autograd(_second_backward, setup_context=_setup_second)
threshold_bitmap.register_autograd(_backward, setup_context=_setup_context)


def _watched(columns: int, n: int, *, relative: bool, tanh: bool = True, batch: int = 128) -> NamedLaunch:
    def call() -> None:
        y_hat = torch.empty(batch, 64, n, columns, dtype=torch.complex64, device="meta")
        _launch(y_hat, 0.5, torch.empty(batch * 64, device="meta") if relative else None, tanh, n)

    words = f"B{batch} C64 {n}x{columns}", "relative beta" if relative else "beta", "tanh" if tanh else "no activation"
    return NamedLaunch(", ".join(words), call)


def _watched_backward() -> NamedLaunch:
    def call() -> None:
        numel = 128 * 64 * 34 * 18
        values = torch.empty(blocks_of(numel) * BLOCK, dtype=torch.complex64, device="meta")
        words = torch.empty(blocks_of(numel) * (BLOCK // WORD), dtype=torch.int32, device="meta")
        expand(values, words, None, numel, outputs=values)

    return NamedLaunch("B128 C64 34x18, derivative of tanh", call)


FINGERPRINTS = (
    _watched_backward(),
    _watched(18, 34, relative=False),
    _watched(18, 34, relative=False, tanh=False),
    _watched(18, 34, relative=False, batch=1),
    _watched(18, 34, relative=True),
    _watched(17, 33, relative=True),
)
