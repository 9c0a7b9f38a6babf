"""Resampling in one launch: maps in, smaller (or larger) maps out, with a window whose cut-off the device holds.

    y = A_h x A_w',    A = S diag(m) D  [out, in]      (a prime transposes; see the package for S, D and m)

x and y are read and written once; nothing else crosses memory but the constant matrices, which every program finds in
the cache. Without a window A comes made. With one each program makes its A of the constant S and D: m is one where
|k| <= t (M // 2 + 1) (frequency dropout), or the ramp of `masks.soft_window` (DiffStride). The transposed map, which is
the gradient in x, is the same kernel with D' and S' in place of S and D.

Tiles, operands and accuracy classes are those of the fused depthwise convolution: matrices come padded with zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spectralkernels.convolution.fused_depthwise.kernels import _plane
from spectralkernels.convolution.fused_depthwise.operands import loaded, rounded
from spectralkernels.masks import window

AT_AN_END = tl.constexpr(window.AT_AN_END)


@triton.jit
def _ramp(frequency, stride, smoothness, N: tl.constexpr):
    """(m, dm / dS) of one axis at |k|, for a stride that may lie outside; S is held in [N / (N - R), N / 2]."""
    least = N / (N - smoothness)
    held = tl.minimum(tl.maximum(stride, least), tl.maximum(N / 2.0, least))
    beyond = smoothness + N / (2.0 * held) - frequency
    sloped = (beyond > N * AT_AN_END) & (beyond < smoothness - N * AT_AN_END)
    slope = tl.where(sloped, -N / (2.0 * smoothness * held * held), 0.0)
    return tl.minimum(tl.maximum(beyond / smoothness, 0.0), 1.0), slope


@triton.jit
def _made(
    outer_ptr,
    inner_ptr,
    frequency_ptr,
    window_ptr,
    smoothness,
    N: tl.constexpr,
    M: tl.constexpr,
    OUT: tl.constexpr,
    BAND: tl.constexpr,
    IN: tl.constexpr,
    RAMP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A [OUT, IN] = outer [OUT, BAND] diag(m) inner [BAND, IN], of Float32 [OUT, BAND] and [BAND, IN]."""
    frequency = tl.load(frequency_ptr + tl.arange(0, BAND))
    if RAMP:
        window, _ = _ramp(frequency, tl.load(window_ptr), smoothness, N)
    else:
        window = tl.where(frequency <= tl.load(window_ptr) * (M // 2 + 1), 1.0, 0.0)
    outer = loaded(outer_ptr, OUT, BAND, BAND) * window[None, :]
    return tl.dot(outer, loaded(inner_ptr, BAND, IN, IN), input_precision=PRECISION)


@triton.jit
def resample_kernel(
    x_ptr,
    y_ptr,
    window_ptr,
    outer_rows_ptr,
    inner_rows_ptr,
    outer_columns_ptr,
    inner_columns_ptr,
    frequency_rows_ptr,
    frequency_columns_ptr,
    planes,
    scale,
    smoothness,
    LONG_H: tl.constexpr,
    LONG_W: tl.constexpr,
    SHORT_H: tl.constexpr,
    SHORT_W: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    TILE_OUT_H: tl.constexpr,
    TILE_OUT_W: tl.constexpr,
    BAND_H: tl.constexpr,
    BAND_W: tl.constexpr,
    RAMP: tl.constexpr,
    IMAGES: tl.constexpr,
    STAGES: tl.constexpr,
    MMA: tl.constexpr,
    PRECISION: tl.constexpr,
    BUILD: tl.constexpr,
):
    """One program owns IMAGES planes: it makes both A once, then takes each plane from start to end.

    Where window_ptr is None, outer_*_ptr hold A [TILE_OUT, TILE]. Per plane it reads H W and writes OUT_H OUT_W
    elements once. FLOPs per plane: 2 OUT_H W (H + OUT_W), up to the tiles' padding; the window costs
    2 OUT BAND IN an axis more per program.
    """
    if window_ptr is None:
        rows = loaded(outer_rows_ptr, TILE_OUT_H, TILE_H, TILE_H)
        columns = loaded(outer_columns_ptr, TILE_OUT_W, TILE_W, TILE_W)
    else:
        rows = _made(
            outer_rows_ptr,
            inner_rows_ptr,
            frequency_rows_ptr,
            window_ptr,
            smoothness,
            LONG_H,
            SHORT_H,
            TILE_OUT_H,
            BAND_H,
            TILE_H,
            RAMP,
            BUILD,
        )
        columns = _made(
            outer_columns_ptr,
            inner_columns_ptr,
            frequency_columns_ptr,
            # A share is one number for both axes.
            window_ptr + RAMP,
            smoothness,
            LONG_W,
            SHORT_W,
            TILE_OUT_W,
            BAND_W,
            TILE_W,
            RAMP,
            BUILD,
        )
    rows = rounded(rows, MMA, PRECISION)
    columns = tl.trans(rounded(columns, MMA, PRECISION))
    h = tl.arange(0, TILE_OUT_H)[:, None]
    w = tl.arange(0, TILE_OUT_W)[None, :]
    for step in tl.range(0, IMAGES, num_stages=STAGES):
        at = tl.program_id(0).to(tl.int64) * IMAGES + step
        exists = at < planes
        x = _plane(x_ptr + at * (H * W), H, W, TILE_H, TILE_W, exists)
        t = tl.dot(rows, rounded(x, MMA, PRECISION), input_precision=PRECISION)
        y = tl.dot(rounded(t, MMA, PRECISION), columns, input_precision=PRECISION) * scale
        y_ptrs = y_ptr + at * (OUT_H * OUT_W) + (h * OUT_W + w)
        tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=(h < OUT_H) & (w < OUT_W) & exists)


@triton.jit
def window_gradient_kernel(
    long_ptr,
    short_ptr,
    window_ptr,
    partial_ptr,
    analyse_rows_ptr,
    analyse_columns_ptr,
    gather_rows_ptr,
    gather_columns_ptr,
    frequency_rows_ptr,
    frequency_columns_ptr,
    planes,
    scale,
    smoothness,
    LONG_H: tl.constexpr,
    LONG_W: tl.constexpr,
    SHORT_H: tl.constexpr,
    SHORT_W: tl.constexpr,
    TILE_LONG_H: tl.constexpr,
    TILE_LONG_W: tl.constexpr,
    TILE_SHORT_H: tl.constexpr,
    TILE_SHORT_W: tl.constexpr,
    IMAGES: tl.constexpr,
    STAGES: tl.constexpr,
    MMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns IMAGES pairs of a long and a short plane, and sums the gradient of the window's two strides.

    With Z = D_h x D_w' and G = S_h' dy S_w the gradient of m_h(k) m_w(l) is Z(k, l) G(k, l), summed over planes: of
    modes, whatever the strides are, so that they meet the slopes of the ramps once, at the end. analyse_* hold D,
    gather_* S', both [BAND, side]; a band is as long as the short tile. Per pair it reads both planes once;
    it writes two partial sums at [program, 2]; the sum over programs is another launch, so its order is fixed.
    """
    analyse_rows = loaded(analyse_rows_ptr, TILE_SHORT_H, TILE_LONG_H, TILE_LONG_H)
    analyse_columns = tl.trans(loaded(analyse_columns_ptr, TILE_SHORT_W, TILE_LONG_W, TILE_LONG_W))
    gather_rows = loaded(gather_rows_ptr, TILE_SHORT_H, TILE_SHORT_H, TILE_SHORT_H)
    gather_columns = tl.trans(loaded(gather_columns_ptr, TILE_SHORT_W, TILE_SHORT_W, TILE_SHORT_W))
    total = tl.zeros((TILE_SHORT_H, TILE_SHORT_W), tl.float32)
    for step in tl.range(0, IMAGES, num_stages=STAGES):
        at = tl.program_id(0).to(tl.int64) * IMAGES + step
        exists = at < planes
        long = _plane(long_ptr + at * (LONG_H * LONG_W), LONG_H, LONG_W, TILE_LONG_H, TILE_LONG_W, exists)
        short = _plane(short_ptr + at * (SHORT_H * SHORT_W), SHORT_H, SHORT_W, TILE_SHORT_H, TILE_SHORT_W, exists)
        t = tl.dot(analyse_rows, rounded(long, MMA, PRECISION), input_precision=PRECISION)
        z = tl.dot(rounded(t, MMA, PRECISION), analyse_columns, input_precision=PRECISION)
        t = tl.dot(gather_rows, rounded(short, MMA, PRECISION), input_precision=PRECISION)
        total += z * tl.dot(rounded(t, MMA, PRECISION), gather_columns, input_precision=PRECISION)
    k_h = tl.load(frequency_rows_ptr + tl.arange(0, TILE_SHORT_H))
    k_w = tl.load(frequency_columns_ptr + tl.arange(0, TILE_SHORT_W))
    of_rows, slope_rows = _ramp(k_h, tl.load(window_ptr), smoothness, LONG_H)
    of_columns, slope_columns = _ramp(k_w, tl.load(window_ptr + 1), smoothness, LONG_W)
    by_rows = tl.sum(tl.sum(total * of_columns[None, :], 1) * slope_rows, 0)
    by_columns = tl.sum(tl.sum(total * of_rows[:, None], 0) * slope_columns, 0)
    tl.store(partial_ptr + tl.program_id(0) * 2, by_rows * scale)
    tl.store(partial_ptr + tl.program_id(0) * 2 + 1, by_columns * scale)
