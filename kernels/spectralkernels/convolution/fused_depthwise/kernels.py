"""Depthwise band-limited convolution in one launch, and the gradient of its kernel in another (Triton).

A truncated 2-D DFT of a real plane x [H, W] with the frequencies |u| < k, 0 <= v < l is, before its quadrants are
combined into complex numbers, one product of three real matrices:

    z = R x' L',   R [2 l, W] = cos and -sin of the half axis,   L [2 k, H] = cos and sin, u >= 0 only

(a prime transposes.) z holds four quadrants, (re | im over v) x (cos | sin over u): here `cc`, `sc` (im, cos), `cs`
(re, sin) and `ss`. The coefficients are Z(+-u, v) = (cc +- ss) + i (sc -+ cs): negative rows cost no arithmetic.
Multiplying both by the conjugate weight spectrum, itself a z of the kernel, is a 4 x 4 real product per (u, v), and the
inverse transform is the same three matrices transposed. So a plane is four small products, half the arithmetic of a
complex row DFT, and each but the last finds its left operand in the registers where the one before left it.

Rows of z come in blocks of 16, eight re then eight im: then the two parts of a coefficient lie in the same thread of
every tensor core layout and the quadrants are split and joined without moving data.

All matrices come padded with zeros to the tile and K-major (see `operators`), so their loads need no mask; sizes of
planes and kernels are compile-time constants, so loads are as wide as the plane's alignment allows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectralkernels.convolution.fused_depthwise.operands import dot, first_number, matrix, normalised, operand
from spectralkernels.convolution.splitting import transposed


@triton.jit
def _plane(ptr, H: tl.constexpr, W: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, exists):
    """A plane [H, W] as a float32 tile with zeros around it."""
    h = tl.arange(0, TILE_H)[:, None]
    w = tl.arange(0, TILE_W)[None, :]
    return tl.load(ptr + h * W + w, mask=(h < H) & (w < W) & exists, other=0.0).to(tl.float32)


@triton.jit
def _quadrants(z, U: tl.constexpr, V: tl.constexpr):
    """[2 V, 2 U] -> cc, sc, cs, ss, each [V / 8, 8, U]; the first letter belongs to v, the second to u."""
    parts = tl.permute(tl.reshape(z, (V // 8, 2, 8, 2, U)), (0, 2, 4, 1, 3))  # [V / 8, 8, U, part of v, part of u]
    u_cos, u_sin = tl.split(parts)
    cc, sc = tl.split(u_cos)
    cs, ss = tl.split(u_sin)
    return cc, sc, cs, ss


@triton.jit
def _stacked(cc, sc, cs, ss, U: tl.constexpr, V: tl.constexpr):
    parts = tl.join(tl.join(cc, sc), tl.join(cs, ss))  # [V / 8, 8, U, part of v, part of u]
    return tl.reshape(tl.permute(parts, (0, 3, 1, 4, 2)), (2 * V, 2 * U))


@triton.jit
def _analysed(plane, columns, rows, MMA: tl.constexpr, PRECISION: tl.constexpr):
    """[H, W] -> z [2 V, 2 U]; columns [2 V, W], rows [H, 2 U]."""
    partial = tl.zeros((columns[0].shape[0], plane.shape[0]), tl.float32)
    partial = dot(columns, transposed(operand(plane, MMA, PRECISION)), partial, PRECISION)
    z = tl.zeros((columns[0].shape[0], rows[0].shape[1]), tl.float32)
    return dot(operand(partial, MMA, PRECISION), rows, z, PRECISION)


@triton.jit
def _synthesised(z, rows, columns, MMA: tl.constexpr, PRECISION: tl.constexpr):
    """z [2 V, 2 U], as an operand -> [H, W]; rows [2 U, H], columns [2 V, W]."""
    partial = tl.zeros((z[0].shape[0], rows[0].shape[1]), tl.float32)
    partial = dot(z, rows, partial, PRECISION)
    plane = tl.zeros((rows[0].shape[1], columns[0].shape[1]), tl.float32)
    return dot(transposed(operand(partial, MMA, PRECISION)), columns, plane, PRECISION)


@triton.jit
def _mode_offsets(
    v_0,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    V_SIN: tl.constexpr,
    U_SIN: tl.constexpr,
):
    """Where a quadrant lies among the 2 F kept reals [2 ROWS - 1: cos, then sin of u >= 1; 2 COLUMNS], and its mask."""
    v = v_0 + tl.arange(0, V // 8)[:, None, None] * 8 + tl.arange(0, 8)[None, :, None]
    u = tl.arange(0, U)[None, None, :]
    offsets = (u + U_SIN * (ROWS - 1)) * (2 * COLUMNS) + V_SIN * COLUMNS + v
    return offsets, (v < COLUMNS) & (u < ROWS) & (u >= U_SIN)


@triton.jit
def _store_quadrant(
    z_ptr,
    values,
    v_0,
    exists,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    V_SIN: tl.constexpr,
    U_SIN: tl.constexpr,
):
    offsets, mask = _mode_offsets(v_0, ROWS, COLUMNS, U, V, V_SIN, U_SIN)
    tl.store(z_ptr + offsets, values.to(z_ptr.dtype.element_ty), mask=mask & exists)


@triton.jit
def _load_quadrant(
    z_ptr,
    v_0,
    exists,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    V_SIN: tl.constexpr,
    U_SIN: tl.constexpr,
):
    offsets, mask = _mode_offsets(v_0, ROWS, COLUMNS, U, V, V_SIN, U_SIN)
    return tl.load(z_ptr + offsets, mask=mask & exists, other=0.0).to(tl.float32)


@triton.jit
def _product(cc, sc, cs, ss, w_cc, w_sc, w_cs, w_ss):
    """Z times conj(W), on quadrants. Chained updates are one FFMA each."""
    y_cc = w_cc * cc
    y_cc += w_sc * sc
    y_cc += w_cs * cs
    y_cc += w_ss * ss
    y_sc = w_cc * sc
    y_sc -= w_sc * cc
    y_sc -= w_ss * cs
    y_sc += w_cs * ss
    y_cs = w_cc * cs
    y_cs -= w_cs * cc
    y_cs -= w_ss * sc
    y_cs += w_sc * ss
    y_ss = w_cc * ss
    y_ss += w_ss * cc
    y_ss -= w_cs * sc
    y_ss -= w_sc * cs
    return y_cc, y_sc, y_cs, y_ss


@triton.jit
def convolve_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    modes_ptr,
    columns_in_ptr,
    rows_in_ptr,
    columns_weight_ptr,
    rows_weight_ptr,
    columns_out_ptr,
    rows_out_ptr,
    batch,
    channels,
    H: tl.constexpr,
    W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    TILE_OUT_H: tl.constexpr,
    TILE_OUT_W: tl.constexpr,
    TILE_TAPS_H: tl.constexpr,
    TILE_TAPS_W: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_OUT_H: tl.constexpr,
    IMAGES: tl.constexpr,
    STAGES: tl.constexpr,
    MMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns one channel of IMAGES images: it transforms the kernel once, then each plane start to end.

    Planes are read BLOCK_H rows at a time and written BLOCK_OUT_H rows at a time: fewer operands in flight.
    Per plane it reads H W and writes OUT_H OUT_W elements once, and the 2 F kept reals where modes_ptr is not None.
    FLOPs per plane: 4 U V (W + OUT_H) + 4 V W H + 4 V OUT_H OUT_W + 8 U V H up to the tile's padding; the kernel's
    transform costs 4 V TAPS_W TAPS_H + 8 U V TAPS_H more per program.
    """
    channel = tl.program_id(0) % channels
    first = (tl.program_id(0) // channels) * IMAGES

    # float16 has a narrow range, and all else is linear in the plane and in the kernel.
    SCALED: tl.constexpr = MMA == tl.float16
    taps = _plane(weight_ptr + channel * (TAPS_H * TAPS_W), TAPS_H, TAPS_W, TILE_TAPS_H, TILE_TAPS_W, True)
    taps, scale = normalised(taps, SCALED)
    columns_weight = matrix(columns_weight_ptr, 2 * V * TILE_TAPS_W, 2 * V, TILE_TAPS_W, TILE_TAPS_W, PRECISION)
    rows_weight = transposed(matrix(rows_weight_ptr, 2 * U * TILE_TAPS_H, 2 * U, TILE_TAPS_H, TILE_TAPS_H, PRECISION))
    spectrum, largest = normalised(_analysed(taps, columns_weight, rows_weight, MMA, PRECISION), SCALED)
    scale *= largest
    w_cc, w_sc, w_cs, w_ss = _quadrants(spectrum, U, V)

    columns_in = matrix(columns_in_ptr, 2 * V * TILE_W, 2 * V, TILE_W, TILE_W, PRECISION)
    columns_out = transposed(matrix(columns_out_ptr, TILE_OUT_W * 2 * V, TILE_OUT_W, 2 * V, 2 * V, PRECISION))
    rows_in, rows_out = (), ()
    for h_0 in tl.static_range(0, TILE_H, BLOCK_H):
        block = transposed(matrix(rows_in_ptr + h_0, 2 * U * TILE_H, 2 * U, BLOCK_H, TILE_H, PRECISION))
        rows_in += (block,)  # type: ignore[assignment]
    for h_0 in tl.static_range(0, TILE_OUT_H, BLOCK_OUT_H):
        at_h = rows_out_ptr + h_0 * 2 * U
        block = transposed(matrix(at_h, TILE_OUT_H * 2 * U, BLOCK_OUT_H, 2 * U, 2 * U, PRECISION))
        rows_out += (block,)  # type: ignore[assignment]
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel).to(tl.float32)
    for step in tl.range(0, IMAGES, num_stages=STAGES):
        image = first + step
        exists = image < batch
        at = image.to(tl.int64) * channels + channel
        z = tl.zeros((2 * V, 2 * U), tl.float32)
        for h_0 in tl.static_range(0, TILE_H, BLOCK_H):
            x = _plane(x_ptr + at * (H * W) + h_0 * W, H - h_0, W, BLOCK_H, TILE_W, exists)
            # One block then is a whole plane.
            x, size = normalised(x, SCALED)
            t = tl.zeros((2 * V, BLOCK_H), tl.float32)
            t = dot(columns_in, transposed(operand(x, MMA, PRECISION)), t, PRECISION)
            z = dot(operand(t, MMA, PRECISION), rows_in[h_0 // BLOCK_H], z, PRECISION)
        cc, sc, cs, ss = _quadrants(z, U, V)
        if modes_ptr is not None:
            z_ptr = modes_ptr + at * ((2 * ROWS - 1) * 2 * COLUMNS)
            _store_quadrant(z_ptr, cc * size, 0, exists, ROWS, COLUMNS, U, V, 0, 0)
            _store_quadrant(z_ptr, sc * size, 0, exists, ROWS, COLUMNS, U, V, 1, 0)
            _store_quadrant(z_ptr, cs * size, 0, exists, ROWS, COLUMNS, U, V, 0, 1)
            _store_quadrant(z_ptr, ss * size, 0, exists, ROWS, COLUMNS, U, V, 1, 1)
        y_cc, y_sc, y_cs, y_ss = _product(cc, sc, cs, ss, w_cc, w_sc, w_cs, w_ss)
        modes = operand(_stacked(y_cc, y_sc, y_cs, y_ss, U, V), MMA, PRECISION)
        for h_0 in tl.static_range(0, TILE_OUT_H, BLOCK_OUT_H):
            y = _synthesised(modes, rows_out[h_0 // BLOCK_OUT_H], columns_out, MMA, PRECISION)
            if SCALED:
                y *= size * scale
            y += bias
            h = h_0 + tl.arange(0, BLOCK_OUT_H)[:, None]
            w = tl.arange(0, TILE_OUT_W)[None, :]
            inside = (h < OUT_H) & (w < OUT_W) & exists
            y_ptrs = y_ptr + at * (OUT_H * OUT_W) + (h * OUT_W + w)
            tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def weight_gradient_kernel(
    dy_ptr,
    x_ptr,
    modes_ptr,
    partial_ptr,
    bias_ptr,
    columns_dy_ptr,
    rows_dy_ptr,
    columns_x_ptr,
    rows_x_ptr,
    columns_weight_ptr,
    rows_weight_ptr,
    batch,
    channels,
    H: tl.constexpr,
    W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    TILE_OUT_H: tl.constexpr,
    TILE_OUT_W: tl.constexpr,
    TILE_TAPS_H: tl.constexpr,
    TILE_TAPS_W: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    V_BLOCKS: tl.constexpr,
    IMAGES: tl.constexpr,
    STAGES: tl.constexpr,
    MMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns one channel of IMAGES images and one of V_BLOCKS blocks of V columns of the spectrum.

    It sums the images' gradient of the kernel's quadrants in registers.

    Per plane it reads OUT_H OUT_W elements of dy and either the 2 F kept reals (modes_ptr) or the H W elements of x
    (x_ptr); the other pointer is None. It writes TAPS_H TAPS_W partial sums once, at [images, block,
    channel]: the sum over programs is another launch, so the order of additions is fixed. bias_ptr, if any, gets the
    sum over each program's dy at [images, block, channel], from its mean's mode; blocks that do not hold it give zero.
    """
    channel = tl.program_id(0) % channels
    part = tl.program_id(0) // channels
    v_0 = (part % V_BLOCKS) * V
    first = (part // V_BLOCKS) * IMAGES
    SCALED: tl.constexpr = MMA == tl.float16
    WIDTH: tl.constexpr = 2 * V * V_BLOCKS
    at_v = columns_dy_ptr + 2 * v_0 * TILE_OUT_W
    columns_dy = matrix(at_v, WIDTH * TILE_OUT_W, 2 * V, TILE_OUT_W, TILE_OUT_W, PRECISION)
    rows_dy = transposed(matrix(rows_dy_ptr, 2 * U * TILE_OUT_H, 2 * U, TILE_OUT_H, TILE_OUT_H, PRECISION))
    if modes_ptr is None:
        columns_x = matrix(columns_x_ptr + 2 * v_0 * TILE_W, WIDTH * TILE_W, 2 * V, TILE_W, TILE_W, PRECISION)
        rows_x = transposed(matrix(rows_x_ptr, 2 * U * TILE_H, 2 * U, TILE_H, TILE_H, PRECISION))
    d_cc = tl.zeros((V // 8, 8, U), tl.float32)
    d_sc = tl.zeros((V // 8, 8, U), tl.float32)
    d_cs = tl.zeros((V // 8, 8, U), tl.float32)
    d_ss = tl.zeros((V // 8, 8, U), tl.float32)
    means = tl.zeros((V // 8, 8, U), tl.float32)
    for step in tl.range(0, IMAGES, num_stages=STAGES):
        image = first + step
        exists = image < batch
        at = image.to(tl.int64) * channels + channel
        dy = _plane(dy_ptr + at * (OUT_H * OUT_W), OUT_H, OUT_W, TILE_OUT_H, TILE_OUT_W, exists)
        dy, size = normalised(dy, SCALED)
        g_cc, g_sc, g_cs, g_ss = _quadrants(_analysed(dy, columns_dy, rows_dy, MMA, PRECISION) * size, U, V)
        if modes_ptr is None:
            x = _plane(x_ptr + at * (H * W), H, W, TILE_H, TILE_W, exists)
            x, size = normalised(x, SCALED)
            cc, sc, cs, ss = _quadrants(_analysed(x, columns_x, rows_x, MMA, PRECISION) * size, U, V)
        else:
            z_ptr = modes_ptr + at * ((2 * ROWS - 1) * 2 * COLUMNS)
            cc = _load_quadrant(z_ptr, v_0, exists, ROWS, COLUMNS, U, V, 0, 0)
            sc = _load_quadrant(z_ptr, v_0, exists, ROWS, COLUMNS, U, V, 1, 0)
            cs = _load_quadrant(z_ptr, v_0, exists, ROWS, COLUMNS, U, V, 0, 1)
            ss = _load_quadrant(z_ptr, v_0, exists, ROWS, COLUMNS, U, V, 1, 1)
        if bias_ptr is not None:
            means += g_cc
        d_cc += g_cc * cc
        d_cc += g_sc * sc
        d_cc += g_cs * cs
        d_cc += g_ss * ss
        d_sc += g_cc * sc
        d_sc -= g_sc * cc
        d_sc += g_cs * ss
        d_sc -= g_ss * cs
        d_cs += g_cc * cs
        d_cs += g_sc * ss
        d_cs -= g_cs * cc
        d_cs -= g_ss * sc
        d_ss += g_cc * ss
        d_ss -= g_sc * cs
        d_ss -= g_cs * sc
        d_ss += g_ss * cc
    if bias_ptr is not None:
        # The mean's mode is the sum over a plane, times the two numbers that its matrices hold there.
        v = v_0 + tl.arange(0, V // 8)[:, None, None] * 8 + tl.arange(0, 8)[None, :, None]
        mean = (v == 0) & (tl.arange(0, U)[None, None, :] == 0)
        total = tl.sum(tl.reshape(tl.where(mean, means, 0.0), (V * U,)), 0)
        scale = first_number(columns_dy_ptr, WIDTH * TILE_OUT_W, PRECISION)
        scale *= first_number(rows_dy_ptr, 2 * U * TILE_OUT_H, PRECISION)
        tl.store(bias_ptr + part * channels + channel, total / scale)
    # Sums over a batch can leave the range of half precision, and one product per program is cheap.
    WIDE: tl.constexpr = "tf32x3" if PRECISION == "fp16x3" else PRECISION
    rows_weight = transposed(matrix(rows_weight_ptr, TILE_TAPS_H * 2 * U, TILE_TAPS_H, 2 * U, 2 * U, WIDE))
    columns_weight = transposed(
        matrix(columns_weight_ptr + 2 * v_0, TILE_TAPS_W * WIDTH, TILE_TAPS_W, 2 * V, WIDTH, WIDE)
    )
    sums = operand(_stacked(d_cc, d_sc, d_cs, d_ss, U, V), tl.float32, WIDE)
    taps = _synthesised(sums, rows_weight, columns_weight, tl.float32, WIDE)
    h = tl.arange(0, TILE_TAPS_H)[:, None]
    w = tl.arange(0, TILE_TAPS_W)[None, :]
    at = (part.to(tl.int64) * channels + channel) * (TAPS_H * TAPS_W)
    tl.store(partial_ptr + at + (h * TAPS_W + w), taps, mask=(h < TAPS_H) & (w < TAPS_W))
