"""One-pass threshold, spectral tanh, bitmap and packing in Triton (imports triton)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from spectralkernels.aot import NamedLaunch
from spectralkernels.launch import as_real_pairs, interpreted
from spectralkernels.sparse.bitmap import BLOCK, WORD, blocks_of, expand
from spectralkernels.sparse.kernels import on_device_of

NUM_WARPS = 4


@triton.jit
def tanh_by_formula(x):
    """tanh to 3 float32 ulp, for where libdevice is missing: Cephes' odd polynomial below 0.625, else through exp.

    2 / (1 + exp(-2x)) - 1 alone cancels near 0 (7 % off at 1e-6).
    """
    square = x * x
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    small = p * square * x + x
    # above 10 the answer is 1 and exp would overflow; `where` lets a NaN pass, `minimum` would not
    size = tl.where(tl.abs(x) > 10.0, 10.0, tl.abs(x))
    large = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(tl.abs(x) < 0.625, small, tl.where(x < 0.0, -large, large))


@triton.jit
def spectral_activation(x, TANH: tl.constexpr, LIBDEVICE: tl.constexpr):
    if TANH:
        if LIBDEVICE:
            x = libdevice.tanh(x)
        else:
            x = tanh_by_formula(x)
    return x


@triton.jit
def power_of_two_near(limit):
    """A power of two s with s * limit in [1, 4), at most 2^127: no square of s * Y overflows or vanishes wrongly."""
    exponent = limit.to(tl.int32, bitcast=True) & 0x7F800000
    return (0x7F000000 - tl.minimum(exponent, 0x7E800000)).to(tl.float32, bitcast=True)


@triton.jit
def exceeds(re, im, scale, bound):
    """Whether |re + i im| > limit, true for NaN, with bound = (scale * limit)^2 and an exact scale."""
    re = re * scale
    im = im * scale
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
    TANH: tl.constexpr,
    LIBDEVICE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program owns BLOCK consecutive coefficients: reads 8 bytes each, writes 1/8 byte each and 8 per kept one.

    Coefficients of the self-conjugate columns also read their partner's 8 bytes (from cache: it is near). ROWS and
    COLUMNS are compile-time because two integer divisions per coefficient would cost as much as the memory traffic.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offs_flat = 2 * start + tl.arange(0, 2 * BLOCK)
    # a flat load is 128 bits wide, a [BLOCK, 2] one 64
    end = n_coefficients * tl.full((), 2, tl.int64)
    y = tl.load(y_ptr + offs_flat, mask=offs_flat < end, other=0.0)
    re, im = tl.split(tl.reshape(y, (BLOCK, 2)))

    offs = (start + tl.arange(0, BLOCK)).to(tl.int32)  # at most 2^31 coefficients, see sparse.too_large
    inside = offs < n_coefficients
    # under the interpreter beta may arrive as a float, or as float64 below 2^-126
    limit = tl.full((), beta, tl.float32)
    if RELATIVE:
        limit = limit * tl.load(rms_ptr + offs // (ROWS * COLUMNS), mask=inside, other=0.0)
    scale = power_of_two_near(limit)
    bound = (scale * limit) * (scale * limit)

    column = offs % COLUMNS
    row = (offs // COLUMNS) % ROWS
    paired = column == 0
    if EVEN:
        paired = paired | (column == COLUMNS - 1)
    # row u pairs with row -u mod U; rows that pair with themselves need no second look
    paired = paired & inside & (row != 0) & (2 * row != ROWS)
    y_ptr += 2 * start
    partner = 2 * (tl.arange(0, BLOCK) + (ROWS - 2 * row) * COLUMNS)
    partner_re = tl.load(y_ptr + partner, mask=paired, other=0.0)
    partner_im = tl.load(y_ptr + partner + 1, mask=paired, other=0.0)
    kept = inside & (exceeds(re, im, scale, bound) | (paired & exceeds(partner_re, partner_im, scale, bound)))

    bits = kept.to(tl.int32)
    words = tl.sum(tl.reshape(bits << (tl.arange(0, BLOCK) % 32), (BLOCK // 32, 32)), axis=1)
    tl.store(words_ptr + tl.program_id(0) * (BLOCK // 32) + tl.arange(0, BLOCK // 32), words)

    re = spectral_activation(re, TANH, LIBDEVICE)
    im = spectral_activation(im, TANH, LIBDEVICE)
    slots = tl.cumsum(bits, 0) - bits
    offs_pair = 2 * slots[:, None] + tl.arange(0, 2)[None, :]
    tl.store(values_ptr + 2 * start + offs_pair, tl.join(re, im), mask=kept[:, None])


@torch.library.custom_op("spectralkernels::threshold_bitmap", mutates_args=())
def threshold_bitmap(y_hat: Tensor, beta: float, rms: Tensor | None, tanh: bool, n: int) -> tuple[Tensor, Tensor]:
    """Threshold, activate and pack in one launch, without waiting for the device.

    y_hat: Complex64 [..., U, V]. rms: Float32 [planes] to scale beta with, or None. n: signal length of the last axis.
    Returns: Complex64 [blocks * 1024], undefined in unused slots; Int32 [blocks * 32].
    """
    return _launch(y_hat, beta, rms, tanh, n)


def _launch(y_hat: Tensor, beta: float, rms: Tensor | None, tanh: bool, n: int) -> tuple[Tensor, Tensor]:
    numel, blocks = y_hat.numel(), blocks_of(y_hat.numel())
    values = torch.empty(blocks * BLOCK, dtype=torch.complex64, device=y_hat.device)
    words = torch.empty(blocks * (BLOCK // WORD), dtype=torch.int32, device=y_hat.device)
    if numel:
        pairs = as_real_pairs(y_hat)
        with on_device_of(y_hat):
            threshold_kernel[(blocks,)](
                pairs,
                pairs if rms is None else rms,
                torch.view_as_real(values),
                words,
                numel,
                beta,
                ROWS=y_hat.shape[-2],
                COLUMNS=y_hat.shape[-1],
                EVEN=n % 2 == 0,
                RELATIVE=rms is not None,
                TANH=tanh,
                LIBDEVICE=not interpreted(),
                BLOCK=BLOCK,
                num_warps=NUM_WARPS,
            )
    return values, words


@threshold_bitmap.register_fake
def _(y_hat: Tensor, beta: float, rms: Tensor | None, tanh: bool, n: int) -> tuple[Tensor, Tensor]:
    blocks = blocks_of(y_hat.numel())
    return y_hat.new_empty(blocks * BLOCK), y_hat.new_empty(blocks * (BLOCK // WORD), dtype=torch.int32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.shape, ctx.tanh = inputs[0].shape, inputs[3]
    ctx.save_for_backward(*output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, grad_words: Tensor | None) -> tuple[Tensor, None, None, None, None]:
    values, words = ctx.saved_tensors
    if ctx.tanh:
        # d tanh from the stored output: nothing but the sparse spectrum is saved
        grad = torch.view_as_complex(torch.view_as_real(grad) * (1.0 - torch.view_as_real(values).square()))
    return expand(grad, words, None, ctx.shape.numel()).reshape(ctx.shape), None, None, None, None


threshold_bitmap.register_autograd(_backward, setup_context=_setup_context)


def _watched(columns: int, n: int, *, relative: bool, tanh: bool = True) -> NamedLaunch:
    def call() -> None:
        y_hat = torch.empty(128, 64, n, columns, dtype=torch.complex64, device="meta")
        _launch(y_hat, 0.5, torch.empty(128 * 64, device="meta") if relative else None, tanh, n)

    words = (f"B128 C64 {n}x{columns}", "relative beta" if relative else "beta", "tanh" if tanh else "no activation")
    return NamedLaunch(", ".join(words), call)


FINGERPRINTS = (
    _watched(18, 34, relative=False),
    _watched(18, 34, relative=False, tanh=False),
    _watched(18, 34, relative=True),
    _watched(17, 33, relative=True),
)
