"""Depthwise band-limited convolution of series in one launch, and the gradient of its kernel in another (Triton).

On a circle of N = N1 N2 samples a position is l = N2 l1 + l2 and a frequency k = j + N1 q, with |j| <= N1 / 2 and q an
odd multiple of 1/2. Then

    Z(j + N1 q) = sum_l2 e^{-2 pi i q l2 / N2}  e^{-2 pi i j l2 / N}  sum_l1 e^{-2 pi i (j + N1/2) l1 / N1} x[l1, l2]

two small matrix products with twiddle factors in between. x is real, so j >= 0 is enough. q and -q share their cosine
and sine, so only q > 0 costs arithmetic: with B the rows after the twiddles, BC and BS over (re, im) are four quadrants
`cc`, `sc` (im, cos), `cs` (re, sin), `ss`, and Z(j +- N1 q) = (cc +- ss) + i (sc -+ cs), as in the fused convolution of
maps. The band limits q, so it halves the second product; it is exact because the kernel's spectrum is masked per
frequency.

Rows of j come in blocks of 16, eight re then eight im: then both parts of a number lie in the same thread. Each product
but the last finds its left operand in the registers where the one before left it.

Matrices come padded with zeros to the tile and K-major (see `matrices`); lengths are compile-time constants.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectralkernels.convolution.fused_depthwise.kernels import _product, _quadrants, _stacked
from spectralkernels.convolution.fused_depthwise.operands import loaded, rounded


@triton.jit
def _rows(ptr, column_0, LENGTH: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, exists):
    """Columns of a series written as rows of N2, float32 with zeros around it."""
    l1 = tl.arange(0, ROWS)[:, None]
    l2 = column_0 + tl.arange(0, BLOCK)[None, :]
    inside = (l2 < N2) & (l1 * N2 + l2 < LENGTH) & exists
    return tl.load(ptr + l1 * N2 + l2, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _twiddles(ptr, column_0, J: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """cos and sin of 2 pi j l2 / N, each [J / 8, 8, BLOCK]."""
    j = tl.arange(0, J // 8)[:, None, None] * 8 + tl.arange(0, 8)[None, :, None]
    at = ptr + j * WIDTH + (column_0 + tl.arange(0, BLOCK)[None, None, :])
    return tl.load(at), tl.load(at + J * WIDTH)


@triton.jit
def _twiddled(rows, cos, sin, J: tl.constexpr, BLOCK: tl.constexpr, BACK: tl.constexpr):
    """[2 J, BLOCK], each complex number times cos - i sin, or times cos + i sin on the way back."""
    re, im = tl.split(tl.permute(tl.reshape(rows, (J // 8, 2, 8, BLOCK)), (0, 2, 3, 1)))
    if BACK:
        twiddled_re = re * cos
        twiddled_re -= im * sin
        twiddled_im = im * cos
        twiddled_im += re * sin
    else:
        twiddled_re = re * cos
        twiddled_re += im * sin
        twiddled_im = im * cos
        twiddled_im -= re * sin
    return tl.reshape(tl.permute(tl.join(twiddled_re, twiddled_im), (0, 3, 1, 2)), (2 * J, BLOCK))


@triton.jit
def _analysed(
    ptr,
    exists,
    low_ptr,
    high_ptr,
    twiddle_ptr,
    LENGTH: tl.constexpr,
    N2: tl.constexpr,
    ROWS: tl.constexpr,
    J: tl.constexpr,
    U: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    MMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A series, block by block of its columns -> z [2 J, 2 U]."""
    z = tl.zeros((2 * J, 2 * U), tl.float32)
    for chunk in tl.range(0, CHUNKS, num_stages=1):
        column = chunk * BLOCK
        x = _rows(ptr, column, LENGTH, N2, ROWS, BLOCK, exists)
        cos, sin = _twiddles(twiddle_ptr, column, J, BLOCK * CHUNKS, BLOCK)
        low = loaded(low_ptr, 2 * J, ROWS, ROWS)
        part = tl.dot(low, rounded(x, MMA, PRECISION), input_precision=PRECISION)
        part = _twiddled(part, cos, sin, J, BLOCK, False)
        high = tl.trans(loaded(high_ptr + column, 2 * U, BLOCK, BLOCK * CHUNKS))
        z = tl.dot(rounded(part, MMA, PRECISION), high, z, input_precision=PRECISION)
    return z


@triton.jit
def _analysed_whole(x, low, high, cos, sin, J: tl.constexpr, BLOCK: tl.constexpr, MMA: tl.constexpr, PRECISION):
    """A series whose rows are one block [ROWS, BLOCK] -> z [2 J, 2 U]; low [2 J, ROWS], high [BLOCK, 2 U]."""
    part = tl.dot(low, rounded(x, MMA, PRECISION), input_precision=PRECISION)
    part = _twiddled(part, cos, sin, J, BLOCK, False)
    return tl.dot(rounded(part, MMA, PRECISION), high, input_precision=PRECISION)


@triton.jit
def _synthesised(z, high, low, cos, sin, J: tl.constexpr, BLOCK: tl.constexpr, MMA: tl.constexpr, PRECISION):
    """z [2 J, 2 U] -> [ROWS, BLOCK]; high [2 U, BLOCK], low [ROWS, 2 J]."""
    part = tl.dot(rounded(z, MMA, PRECISION), high, input_precision=PRECISION)
    part = _twiddled(part, cos, sin, J, BLOCK, True)
    return tl.dot(low, rounded(part, MMA, PRECISION), input_precision=PRECISION)


@triton.jit
def _masked(cc, sc, cs, ss, N: tl.constexpr, N1: tl.constexpr, KEPT: tl.constexpr, J: tl.constexpr, U: tl.constexpr):
    """Zero the frequencies j +- N1 q outside the band, and -N/2, which is N/2 again."""
    twice_j = 2 * (tl.arange(0, J // 8)[:, None, None] * 8 + tl.arange(0, 8)[None, :, None]) + N1 % 2
    twice_q = N1 * (2 * tl.arange(0, U)[None, None, :] + 1)
    plus = tl.where(twice_q + twice_j < 2 * KEPT, 0.5, 0.0)
    minus = tl.where((twice_q - twice_j < 2 * KEPT) & (twice_q - twice_j < N), 0.5, 0.0)
    both, differ = plus + minus, plus - minus
    return both * cc + differ * ss, both * sc - differ * cs, both * cs - differ * sc, both * ss + differ * cc


@triton.jit
def _mode_offsets(LOWS: tl.constexpr, HIGHS: tl.constexpr, J: tl.constexpr, U: tl.constexpr):
    """Where a quadrant lies in its [LOWS, HIGHS], and its mask."""
    j = tl.arange(0, J // 8)[:, None, None] * 8 + tl.arange(0, 8)[None, :, None]
    u = tl.arange(0, U)[None, None, :]
    return j * HIGHS + u, (j < LOWS) & (u < HIGHS)


@triton.jit
def convolve_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    modes_ptr,
    low_in_ptr,
    high_in_ptr,
    low_taps_ptr,
    high_taps_ptr,
    twiddle_taps_ptr,
    low_out_ptr,
    high_out_ptr,
    twiddle_ptr,
    batch,
    channels,
    SIZE: tl.constexpr,
    OUT: tl.constexpr,
    TAPS: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    KEPT: tl.constexpr,
    LOWS: tl.constexpr,
    HIGHS: tl.constexpr,
    ROWS_IN: tl.constexpr,
    ROWS_OUT: tl.constexpr,
    ROWS_TAPS: tl.constexpr,
    J: tl.constexpr,
    U: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    CONJUGATE: tl.constexpr,
    IMAGES: tl.constexpr,
    STAGES: tl.constexpr,
    MMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns one channel of IMAGES images: it transforms the kernel once, then each series start to end.

    Per series it reads SIZE and writes OUT elements once, and the 4 LOWS HIGHS kept reals where modes_ptr is not None.
    FLOPs per series: 4 J WIDTH (ROWS_IN + ROWS_OUT + 4 U), WIDTH = BLOCK CHUNKS; the kernel's transform costs
    4 J WIDTH (ROWS_TAPS + 2 U) more per program.
    Where a row is one block, matrices and twiddles stay on the multiprocessor, else every series reads the cache.
    """
    channel = tl.program_id(0) % channels
    first = (tl.program_id(0) // channels) * IMAGES

    taps_ptr = weight_ptr + channel * TAPS
    w = _analysed(
        taps_ptr, True, low_taps_ptr, high_taps_ptr, twiddle_taps_ptr,
        TAPS, N2, ROWS_TAPS, J, U, BLOCK, CHUNKS, MMA, PRECISION,
    )  # fmt: skip
    w_cc, w_sc, w_cs, w_ss = _quadrants(w, U, J)
    w_cc, w_sc, w_cs, w_ss = _masked(w_cc, w_sc, w_cs, w_ss, N1 * N2, N1, KEPT, J, U)
    if not CONJUGATE:
        w_sc, w_cs = -w_sc, -w_cs

    if CHUNKS == 1:
        low_in = loaded(low_in_ptr, 2 * J, ROWS_IN, ROWS_IN)
        low_out = loaded(low_out_ptr, ROWS_OUT, 2 * J, 2 * J)
        high_in = tl.trans(loaded(high_in_ptr, 2 * U, BLOCK, BLOCK))
        high_out = tl.trans(loaded(high_out_ptr, BLOCK, 2 * U, 2 * U))
        cos, sin = _twiddles(twiddle_ptr, 0, J, BLOCK, BLOCK)
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel).to(tl.float32)
    l1 = tl.arange(0, ROWS_OUT)[:, None]
    for step in tl.range(0, IMAGES, num_stages=STAGES):
        image = first + step
        exists = image < batch
        at = image.to(tl.int64) * channels + channel
        if CHUNKS == 1:
            x = _rows(x_ptr + at * SIZE, 0, SIZE, N2, ROWS_IN, BLOCK, exists)
            z = _analysed_whole(x, low_in, high_in, cos, sin, J, BLOCK, MMA, PRECISION)
        else:
            z = _analysed(
                x_ptr + at * SIZE, exists, low_in_ptr, high_in_ptr, twiddle_ptr,
                SIZE, N2, ROWS_IN, J, U, BLOCK, CHUNKS, MMA, PRECISION,
            )  # fmt: skip
        cc, sc, cs, ss = _quadrants(z, U, J)
        if modes_ptr is not None:
            z_ptr = modes_ptr + at * (4 * LOWS * HIGHS)
            kept = z_ptr.dtype.element_ty
            offsets, mask = _mode_offsets(LOWS, HIGHS, J, U)
            tl.store(z_ptr + offsets, cc.to(kept), mask=mask & exists)
            tl.store(z_ptr + LOWS * HIGHS + offsets, sc.to(kept), mask=mask & exists)
            tl.store(z_ptr + 2 * LOWS * HIGHS + offsets, cs.to(kept), mask=mask & exists)
            tl.store(z_ptr + 3 * LOWS * HIGHS + offsets, ss.to(kept), mask=mask & exists)
        y_cc, y_sc, y_cs, y_ss = _product(cc, sc, cs, ss, w_cc, w_sc, w_cs, w_ss)
        z = _stacked(y_cc, y_sc, y_cs, y_ss, U, J)
        for chunk in tl.range(0, CHUNKS, num_stages=1):
            column = chunk * BLOCK
            if CHUNKS == 1:
                y = _synthesised(z, high_out, low_out, cos, sin, J, BLOCK, MMA, PRECISION) + bias
            else:
                low_out = loaded(low_out_ptr, ROWS_OUT, 2 * J, 2 * J)
                high = tl.trans(loaded(high_out_ptr + column * (2 * U), BLOCK, 2 * U, 2 * U))
                cos, sin = _twiddles(twiddle_ptr, column, J, BLOCK * CHUNKS, BLOCK)
                y = _synthesised(z, high, low_out, cos, sin, J, BLOCK, MMA, PRECISION) + bias
            l2 = column + tl.arange(0, BLOCK)[None, :]
            inside = (l2 < N2) & (l1 * N2 + l2 < OUT) & exists
            tl.store(y_ptr + at * OUT + (l1 * N2 + l2), y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def weight_gradient_kernel(
    dy_ptr,
    x_ptr,
    modes_ptr,
    partial_ptr,
    low_dy_ptr,
    low_x_ptr,
    high_in_ptr,
    twiddle_ptr,
    low_taps_ptr,
    high_taps_ptr,
    twiddle_taps_ptr,
    batch,
    channels,
    SIZE: tl.constexpr,
    OUT: tl.constexpr,
    TAPS: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    KEPT: tl.constexpr,
    LOWS: tl.constexpr,
    HIGHS: tl.constexpr,
    ROWS_IN: tl.constexpr,
    ROWS_OUT: tl.constexpr,
    ROWS_TAPS: tl.constexpr,
    J: tl.constexpr,
    U: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    IMAGES: tl.constexpr,
    STAGES: tl.constexpr,
    MMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns one channel of IMAGES images and sums their gradient of the kernel's quadrants in registers.

    Per series it reads OUT elements of dy and either the 4 LOWS HIGHS kept reals (modes_ptr) or the SIZE elements of x
    (x_ptr); the other pointer is None. It writes TAPS partial sums once, at [images, channel]: the sum over programs is
    another launch, so the order of additions is fixed.
    """
    channel = tl.program_id(0) % channels
    part = tl.program_id(0) // channels
    if CHUNKS == 1:
        low_dy = loaded(low_dy_ptr, 2 * J, ROWS_OUT, ROWS_OUT)
        if modes_ptr is None:
            low_x = loaded(low_x_ptr, 2 * J, ROWS_IN, ROWS_IN)
        high = tl.trans(loaded(high_in_ptr, 2 * U, BLOCK, BLOCK))
        cos, sin = _twiddles(twiddle_ptr, 0, J, BLOCK, BLOCK)
    d_cc = tl.zeros((J // 8, 8, U), tl.float32)
    d_sc = tl.zeros((J // 8, 8, U), tl.float32)
    d_cs = tl.zeros((J // 8, 8, U), tl.float32)
    d_ss = tl.zeros((J // 8, 8, U), tl.float32)
    for step in tl.range(0, IMAGES, num_stages=STAGES):
        image = part * IMAGES + step
        exists = image < batch
        at = image.to(tl.int64) * channels + channel
        if CHUNKS == 1:
            dy = _rows(dy_ptr + at * OUT, 0, OUT, N2, ROWS_OUT, BLOCK, exists)
            g = _analysed_whole(dy, low_dy, high, cos, sin, J, BLOCK, MMA, PRECISION)
        else:
            g = _analysed(
                dy_ptr + at * OUT, exists, low_dy_ptr, high_in_ptr, twiddle_ptr,
                OUT, N2, ROWS_OUT, J, U, BLOCK, CHUNKS, MMA, PRECISION,
            )  # fmt: skip
        g_cc, g_sc, g_cs, g_ss = _quadrants(g, U, J)
        if modes_ptr is None:
            if CHUNKS == 1:
                x = _rows(x_ptr + at * SIZE, 0, SIZE, N2, ROWS_IN, BLOCK, exists)
                z = _analysed_whole(x, low_x, high, cos, sin, J, BLOCK, MMA, PRECISION)
            else:
                z = _analysed(
                    x_ptr + at * SIZE, exists, low_x_ptr, high_in_ptr, twiddle_ptr,
                    SIZE, N2, ROWS_IN, J, U, BLOCK, CHUNKS, MMA, PRECISION,
                )  # fmt: skip
            cc, sc, cs, ss = _quadrants(z, U, J)
        else:
            z_ptr = modes_ptr + at * (4 * LOWS * HIGHS)
            offsets, mask = _mode_offsets(LOWS, HIGHS, J, U)
            mask = mask & exists
            cc = tl.load(z_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            sc = tl.load(z_ptr + LOWS * HIGHS + offsets, mask=mask, other=0.0).to(tl.float32)
            cs = tl.load(z_ptr + 2 * LOWS * HIGHS + offsets, mask=mask, other=0.0).to(tl.float32)
            ss = tl.load(z_ptr + 3 * LOWS * HIGHS + offsets, mask=mask, other=0.0).to(tl.float32)
        p_cc, p_sc, p_cs, p_ss = _product(cc, sc, cs, ss, g_cc, g_sc, g_cs, g_ss)
        d_cc += p_cc
        d_sc += p_sc
        d_cs += p_cs
        d_ss += p_ss
    d_cc, d_sc, d_cs, d_ss = _masked(d_cc, d_sc, d_cs, d_ss, N1 * N2, N1, KEPT, J, U)
    d = _stacked(d_cc, d_sc, d_cs, d_ss, U, J)
    # Sums over a batch can leave the range of half precision, and one product per program is cheap.
    low = loaded(low_taps_ptr, ROWS_TAPS, 2 * J, 2 * J)
    l1 = tl.arange(0, ROWS_TAPS)[:, None]
    partial_ptr += (part.to(tl.int64) * channels + channel) * TAPS
    for chunk in tl.range(0, CHUNKS, num_stages=1):
        column = chunk * BLOCK
        high_taps = tl.trans(loaded(high_taps_ptr + column * (2 * U), BLOCK, 2 * U, 2 * U))
        cos_taps, sin_taps = _twiddles(twiddle_taps_ptr, column, J, BLOCK * CHUNKS, BLOCK)
        taps = _synthesised(d, high_taps, low, cos_taps, sin_taps, J, BLOCK, tl.float32, PRECISION)
        l2 = column + tl.arange(0, BLOCK)[None, :]
        tl.store(partial_ptr + (l1 * N2 + l2), taps, mask=(l2 < N2) & (l1 * N2 + l2 < TAPS))
