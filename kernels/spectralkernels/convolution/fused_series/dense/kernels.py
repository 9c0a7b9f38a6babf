"""Depthwise band-limited convolution of short series in one launch, and the gradient of its kernel in another (Triton).

    y = E ((D x) . conj(D_w w)),     D [2 F, L] for any N, also a prime one

A program owns a tile of series, one per row. It walks over blocks of kept frequencies: two products that analyse series
and kernels and one complex multiplication, whose result it writes to a workspace that stays in the cache. Then it walks
over blocks of outputs, one product each. Registers hold one block at a time, so the length is not limited by them. The
real and the imaginary part of a frequency are neighbouring columns, so both lie in one thread.

Matrices come padded with zeros and K-major (see `matrices`); lengths are compile-time constants.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectralkernels.convolution.fused_depthwise.operands import rounded


@triton.jit
def _analysed(
    ptr,
    rows,
    exists,
    matrix_ptr,
    frequency,
    LENGTH: tl.constexpr,
    WIDTH: tl.constexpr,
    P: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    MMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows of LENGTH values at `ptr` -> re and im [P, F] of the frequencies from `frequency` on."""
    z = tl.zeros((P, 2 * F), tl.float32)
    modes = 2 * frequency + tl.arange(0, 2 * F)
    for first in tl.range(0, WIDTH, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = (at < LENGTH)[None, :] & exists[:, None]
        x = tl.load(ptr + rows[:, None] * LENGTH + at[None, :], mask=inside, other=0.0).to(tl.float32)
        matrix = tl.load(matrix_ptr + modes[:, None] * WIDTH + at[None, :])
        z = tl.dot(rounded(x, MMA, PRECISION), tl.trans(matrix), z, input_precision=PRECISION)
    return tl.split(tl.reshape(z, (P, F, 2)))


@triton.jit
def _store(ptr, rows, exists, values, first, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    at = first + tl.arange(0, BLOCK)
    inside = (at < LENGTH)[None, :] & exists[:, None]
    tl.store(ptr + rows[:, None] * LENGTH + at[None, :], values.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def convolve_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    modes_ptr,
    product_ptr,
    analyse_ptr,
    analyse_taps_ptr,
    synthesise_ptr,
    series,
    channels,
    SIZE: tl.constexpr,
    OUT: tl.constexpr,
    TAPS: tl.constexpr,
    KEPT: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    WIDTH_TAPS: tl.constexpr,
    FREQUENCIES: tl.constexpr,
    P: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    CONJUGATE: tl.constexpr,
    MMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns P series: rows of [batch, channel].

    Per series it reads SIZE once from memory and FREQUENCIES / F times from the cache, writes OUT elements once, and
    the 2 KEPT reals where modes_ptr is not None; 2 FREQUENCIES reals go through the workspace at product_ptr.
    FLOPs per series: 4 FREQUENCIES (WIDTH + WIDTH_TAPS + WIDTH_OUT).
    """
    row = tl.program_id(0) * P + tl.arange(0, P)
    exists = row < series
    channel = row % channels
    row = row.to(tl.int64)
    for frequency in tl.range(0, FREQUENCIES, F):
        re, im = _analysed(
            x_ptr, row, exists, analyse_ptr, frequency, SIZE, WIDTH, P, F, BLOCK, MMA, PRECISION
        )  # fmt: skip
        w_re, w_im = _analysed(
            weight_ptr, channel, exists, analyse_taps_ptr, frequency, TAPS, WIDTH_TAPS, P, F, BLOCK, MMA, PRECISION
        )  # fmt: skip
        if modes_ptr is not None:
            kept = frequency + tl.arange(0, F)
            inside = (kept < KEPT)[None, :] & exists[:, None]
            at = modes_ptr + row[:, None] * (2 * KEPT) + 2 * kept[None, :]
            tl.store(at, re.to(modes_ptr.dtype.element_ty), mask=inside)
            tl.store(at + 1, im.to(modes_ptr.dtype.element_ty), mask=inside)
        # Chained updates are one FFMA each.
        if CONJUGATE:
            y_re = re * w_re
            y_re += im * w_im
            y_im = im * w_re
            y_im -= re * w_im
        else:
            y_re = re * w_re
            y_re -= im * w_im
            y_im = im * w_re
            y_im += re * w_im
        y = rounded(tl.reshape(tl.join(y_re, y_im), (P, 2 * F)), MMA, PRECISION)
        _store(product_ptr, row, exists, y, 2 * frequency, 2 * FREQUENCIES, 2 * F)
    # Other threads of this program read what this one has written.
    tl.debug_barrier()
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel).to(tl.float32)[:, None]
    for position in tl.range(0, WIDTH_OUT, BLOCK):
        y = tl.zeros((P, BLOCK), tl.float32)
        at = position + tl.arange(0, BLOCK)
        for mode in tl.range(0, 2 * FREQUENCIES, 2 * F):
            modes = mode + tl.arange(0, 2 * F)
            z_ptrs = product_ptr + row[:, None] * (2 * FREQUENCIES) + modes[None, :]
            z = tl.load(z_ptrs, mask=exists[:, None], other=0.0)
            matrix = tl.load(synthesise_ptr + at[:, None] * (2 * FREQUENCIES) + modes[None, :])
            y = tl.dot(z, tl.trans(matrix), y, input_precision=PRECISION)
        if bias_ptr is not None:
            y += bias
        _store(y_ptr, row, exists, y, position, OUT, BLOCK)


@triton.jit
def weight_gradient_kernel(
    dy_ptr,
    x_ptr,
    modes_ptr,
    partial_ptr,
    analyse_dy_ptr,
    analyse_x_ptr,
    synthesise_taps_ptr,
    batch,
    channels,
    SIZE: tl.constexpr,
    OUT: tl.constexpr,
    TAPS: tl.constexpr,
    KEPT: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    WIDTH_TAPS: tl.constexpr,
    FREQUENCIES: tl.constexpr,
    P: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    IMAGES: tl.constexpr,
    MMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns P channels, F frequencies and IMAGES images, whose gradient of the kernel it sums in registers.

    Per series it reads OUT elements of dy and either SIZE elements of x (x_ptr) or 2 F kept reals (modes_ptr); the
    other pointer is None. It writes TAPS partial sums per channel once, at [images, frequencies, channel]: the sum over
    programs is another launch, so the order of additions is fixed.
    """
    tiles = tl.cdiv(channels, P)
    channel = (tl.program_id(0) % tiles) * P + tl.arange(0, P)
    part = tl.program_id(0) // tiles
    frequency = (part % (FREQUENCIES // F)) * F
    first = part // (FREQUENCIES // F) * IMAGES
    d_re = tl.zeros((P, F), tl.float32)
    d_im = tl.zeros((P, F), tl.float32)
    for step in tl.range(0, IMAGES):
        image = first + step
        exists = (channel < channels) & (image < batch)
        row = image.to(tl.int64) * channels + channel
        g_re, g_im = _analysed(
            dy_ptr, row, exists, analyse_dy_ptr, frequency, OUT, WIDTH_OUT, P, F, BLOCK, MMA, PRECISION
        )  # fmt: skip
        if modes_ptr is None:
            re, im = _analysed(
                x_ptr, row, exists, analyse_x_ptr, frequency, SIZE, WIDTH, P, F, BLOCK, MMA, PRECISION
            )  # fmt: skip
        else:
            kept = frequency + tl.arange(0, F)
            inside = (kept < KEPT)[None, :] & exists[:, None]
            at = modes_ptr + row[:, None] * (2 * KEPT) + 2 * kept[None, :]
            re = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            im = tl.load(at + 1, mask=inside, other=0.0).to(tl.float32)
        d_re += re * g_re
        d_re += im * g_im
        d_im += im * g_re
        d_im -= re * g_im
    # Sums over a batch can leave the range of half precision, and one product per program is cheap.
    d = rounded(tl.reshape(tl.join(d_re, d_im), (P, 2 * F)), tl.float32, PRECISION)
    at_part = part.to(tl.int64) * channels + channel
    for position in tl.range(0, WIDTH_TAPS, BLOCK):
        at = position + tl.arange(0, BLOCK)
        modes = 2 * frequency + tl.arange(0, 2 * F)
        matrix = tl.load(synthesise_taps_ptr + at[:, None] * (2 * FREQUENCIES) + modes[None, :])
        taps = tl.dot(d, tl.trans(matrix), input_precision=PRECISION)
        _store(partial_ptr, at_part, channel < channels, taps, position, TAPS, BLOCK)
