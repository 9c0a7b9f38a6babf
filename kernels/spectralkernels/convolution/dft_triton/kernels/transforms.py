"""The truncated DFT, pixels to modes and back: separable for maps, one matrix for series, small maps and listed modes.

A plane p lies at ((p // (mid inner)) stride_outer + (p // inner % mid) stride_mid + (p % inner) stride_inner) planes
from the start, which transposes the channels of a weight on the way in.
"""

# Triton reads a kernel's annotations as its own.

from __future__ import annotations

import triton
import triton.language as tl

from spectralkernels.convolution.dft_triton.kernels.overlap import begin
from spectralkernels.convolution.dft_triton.kernels.rounding import operand, stored


@triton.jit
def _plane_offsets(plane, mid, inner, stride_outer, stride_mid, stride_inner):
    outer = plane // (mid * inner)
    offsets = outer.to(tl.int64) * stride_outer + (plane // inner % mid) * stride_mid + (plane % inner) * stride_inner
    return offsets


@triton.jit
def analyse_dense_kernel(
    x_ptr,
    gate_ptr,
    matrix_ptr,
    z_ptr,
    kept_ptr,
    planes,
    mid,
    inner,
    stride_outer,
    stride_mid,
    stride_inner,
    LENGTH: tl.constexpr,
    MODES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """Pixels to modes by one matrix: one program owns BLOCK_M parts of modes of BLOCK_P planes.

    x [planes, LENGTH], matrix [MODES up, LENGTH up] (rows (v, u, part)), z [MODES, planes]; `up`: to whole tiles.
    gate, if any, has the layout of x: x counts only where gate > 0 (the derivative of a relu). kept, if any, gets z
    once more in its own dtype: what a backward pass saves.
    """
    ROW: tl.constexpr = (LENGTH + BLOCK_K - 1) // BLOCK_K * BLOCK_K
    n_mode_blocks = tl.cdiv(MODES, BLOCK_M)
    begin(OVERLAP)
    # Modes vary fastest: the programs that share a tile of maps run together, so that HBM gives it once.
    pid = tl.program_id(0)
    modes = (pid % n_mode_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    plane = (pid // n_mode_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    base = _plane_offsets(plane, mid, inner, stride_outer, stride_mid, stride_inner) * LENGTH
    acc = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
    for k_0 in tl.range(0, LENGTH, BLOCK_K, num_stages=STAGES):
        k = k_0 + tl.arange(0, BLOCK_K)
        matrix = tl.load(matrix_ptr + modes[:, None] * ROW + k[None, :])
        here = (plane < planes)[:, None] & (k < LENGTH)[None, :]
        x = tl.load(x_ptr + (base[:, None] + k[None, :]), mask=here, other=0.0)
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + (base[:, None] + k[None, :]), mask=here, other=0.0)
            x = tl.where(gate.to(tl.float32) > 0, x.to(tl.float32), 0.0)
        x = operand(x, OPERAND, PRECISION)
        acc = tl.dot(matrix, tl.trans(x), acc, input_precision=PRECISION)
    offsets = modes.to(tl.int64)[:, None] * planes + plane[None, :]
    here = (modes < MODES)[:, None] & (plane < planes)[None, :]
    tl.store(z_ptr + offsets, operand(acc, OPERAND, PRECISION), mask=here)
    if kept_ptr is not None:
        tl.store(kept_ptr + offsets, acc.to(kept_ptr.dtype.element_ty), mask=here)


@triton.jit
def analyse_separable_kernel(
    x_ptr,
    gate_ptr,
    columns_ptr,
    rows_ptr,
    z_ptr,
    kept_ptr,
    planes,
    mid,
    inner,
    stride_outer,
    stride_mid,
    stride_inner,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    MODES_U: tl.constexpr,
    MODES_V: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """Pixels to modes, width first: one program owns BLOCK_U x BLOCK_V modes of BLOCK_P planes.

    x [planes, HEIGHT, WIDTH] is read once per block of modes; it, `columns` and `rows` feed two matrix products whose
    intermediate stays on the chip. z [MODES_V, MODES_U, 2, planes]: BLOCK_P neighbours per store.
    """
    N_H: tl.constexpr = (HEIGHT + BLOCK_H - 1) // BLOCK_H
    N_W: tl.constexpr = (WIDTH + BLOCK_W - 1) // BLOCK_W
    N_U: tl.constexpr = (MODES_U + BLOCK_U - 1) // BLOCK_U
    N_V: tl.constexpr = (MODES_V + BLOCK_V - 1) // BLOCK_V
    begin(OVERLAP)
    pid = tl.program_id(0)
    block_v = pid % N_V
    block_u = pid // N_V % N_U
    plane_0 = pid // (N_V * N_U) * BLOCK_P

    ph = tl.arange(0, BLOCK_P * BLOCK_H)
    plane = plane_0 + ph // BLOCK_H
    base = _plane_offsets(plane, mid, inner, stride_outer, stride_mid, stride_inner) * (HEIGHT * WIDTH)
    column = block_v * (2 * BLOCK_V) + tl.arange(0, 2 * BLOCK_V)
    row = block_u * (2 * BLOCK_U) + tl.arange(0, 2 * BLOCK_U)
    acc = tl.zeros((2 * BLOCK_U, BLOCK_V * BLOCK_P), tl.float32)
    for i_h in tl.range(N_H, num_stages=STAGES):
        h = i_h * BLOCK_H + ph % BLOCK_H
        t = tl.zeros((BLOCK_P * BLOCK_H, 2 * BLOCK_V), tl.float32)
        for i_w in tl.range(N_W, num_stages=STAGES):
            w = i_w * BLOCK_W + tl.arange(0, BLOCK_W)
            here = ((plane < planes) & (h < HEIGHT))[:, None] & (w < WIDTH)[None, :]
            offsets = (base + h * WIDTH)[:, None] + w[None, :]
            x = tl.load(x_ptr + offsets, mask=here, other=0.0)
            if gate_ptr is not None:
                gate = tl.load(gate_ptr + offsets, mask=here, other=0.0)
                x = tl.where(gate.to(tl.float32) > 0, x.to(tl.float32), 0.0)
            columns = tl.load(columns_ptr + column[:, None] * (N_W * BLOCK_W) + w[None, :])
            t = tl.dot(operand(x, OPERAND, PRECISION), tl.trans(columns), t, input_precision=PRECISION)
        # [(p, h), (part, v)] -> [(part, h), (v, p)]: what the row transform contracts, with planes side by side.
        t = tl.reshape(operand(t, OPERAND, PRECISION), (BLOCK_P, BLOCK_H, 2, BLOCK_V))
        t = tl.reshape(tl.permute(t, (2, 1, 3, 0)), (2 * BLOCK_H, BLOCK_V * BLOCK_P))
        k = i_h * (2 * BLOCK_H) + tl.arange(0, 2 * BLOCK_H)
        rows = tl.load(rows_ptr + row[:, None] * (N_H * 2 * BLOCK_H) + k[None, :])
        acc = tl.dot(rows, t, acc, input_precision=PRECISION)

    part_u = tl.arange(0, 2 * BLOCK_U)
    part = part_u // BLOCK_U
    u = block_u * BLOCK_U + part_u % BLOCK_U
    vp = tl.arange(0, BLOCK_V * BLOCK_P)
    v = block_v * BLOCK_V + vp // BLOCK_P
    plane = plane_0 + vp % BLOCK_P
    offsets = (u * 2 + part).to(tl.int64)[:, None] * planes + (v.to(tl.int64) * (MODES_U * 2) * planes + plane)[None, :]
    here = (u < MODES_U)[:, None] & ((v < MODES_V) & (plane < planes))[None, :]
    tl.store(z_ptr + offsets, operand(acc, OPERAND, PRECISION), mask=here)
    if kept_ptr is not None:
        tl.store(kept_ptr + offsets, acc.to(kept_ptr.dtype.element_ty), mask=here)


@triton.jit
def synthesise_dense_kernel(
    z_ptr,
    matrix_ptr,
    bias_ptr,
    y_ptr,
    planes,
    channels,
    LENGTH: tl.constexpr,
    MODES: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """Modes to pixels by one matrix: one program owns BLOCK_L pixels of BLOCK_P planes.

    z [MODES, planes], matrix [LENGTH up, MODES up] (columns (v, u, part)), bias [channels] or None, y [planes, LENGTH].
    """
    ROW: tl.constexpr = (MODES + BLOCK_K - 1) // BLOCK_K * BLOCK_K
    n_pixel_blocks = tl.cdiv(LENGTH, BLOCK_L)
    begin(OVERLAP)
    pid = tl.program_id(0)
    pixel = (pid % n_pixel_blocks) * BLOCK_L + tl.arange(0, BLOCK_L)
    plane = (pid // n_pixel_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    acc = tl.zeros((BLOCK_P, BLOCK_L), tl.float32)
    for k_0 in tl.range(0, MODES, BLOCK_K, num_stages=STAGES):
        k = k_0 + tl.arange(0, BLOCK_K)
        here = (plane < planes)[:, None] & (k < MODES)[None, :]
        z = tl.load(z_ptr + (k.to(tl.int64)[None, :] * planes + plane[:, None]), mask=here, other=0.0)
        z = stored(z, False, OPERAND, PRECISION)
        matrix = tl.load(matrix_ptr + pixel[:, None] * ROW + k[None, :])
        acc = tl.dot(z, tl.trans(matrix), acc, input_precision=PRECISION)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + plane % channels).to(tl.float32)[:, None]
    if RELU:
        # Not maximum, which would drop a NaN.
        acc = tl.where(acc < 0, 0.0, acc)
    here = (plane < planes)[:, None] & (pixel < LENGTH)[None, :]
    offsets = plane.to(tl.int64)[:, None] * LENGTH + pixel[None, :]
    tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=here)


@triton.jit
def synthesise_separable_kernel(
    z_ptr,
    columns_ptr,
    rows_ptr,
    bias_ptr,
    y_ptr,
    planes,
    channels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    MODES_U: tl.constexpr,
    MODES_V: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """Modes to pixels, height first: one program owns BLOCK_H x BLOCK_W pixels of BLOCK_P planes.

    z [MODES_V, MODES_U, 2, planes] is read once per block of pixels, BLOCK_P neighbours at a time; y [planes, HEIGHT,
    WIDTH] is written once, with the bias of its channel (plane % channels) and the activation.
    """
    N_H: tl.constexpr = (HEIGHT + BLOCK_H - 1) // BLOCK_H
    N_W: tl.constexpr = (WIDTH + BLOCK_W - 1) // BLOCK_W
    N_U: tl.constexpr = (MODES_U + BLOCK_U - 1) // BLOCK_U
    N_V: tl.constexpr = (MODES_V + BLOCK_V - 1) // BLOCK_V
    begin(OVERLAP)
    pid = tl.program_id(0)
    block_w = pid % N_W
    block_h = pid // N_W % N_H
    plane_0 = pid // (N_W * N_H) * BLOCK_P

    part_u = tl.arange(0, 2 * BLOCK_U)
    vp = tl.arange(0, BLOCK_V * BLOCK_P)
    plane = plane_0 + vp % BLOCK_P
    row = block_h * (2 * BLOCK_H) + tl.arange(0, 2 * BLOCK_H)
    w = block_w * BLOCK_W + tl.arange(0, BLOCK_W)
    acc = tl.zeros((BLOCK_P * BLOCK_H, BLOCK_W), tl.float32)
    for i_v in tl.range(N_V, num_stages=STAGES):
        v = i_v * BLOCK_V + vp // BLOCK_P
        g = tl.zeros((2 * BLOCK_H, BLOCK_V * BLOCK_P), tl.float32)
        for i_u in tl.range(N_U, num_stages=STAGES):
            u = i_u * BLOCK_U + part_u % BLOCK_U
            mode = (u * 2 + part_u // BLOCK_U).to(tl.int64)
            offsets = mode[:, None] * planes + (v.to(tl.int64) * (MODES_U * 2) * planes + plane)[None, :]
            here = (u < MODES_U)[:, None] & ((v < MODES_V) & (plane < planes))[None, :]
            z = stored(tl.load(z_ptr + offsets, mask=here, other=0.0), False, OPERAND, PRECISION)
            k = i_u * (2 * BLOCK_U) + tl.arange(0, 2 * BLOCK_U)
            rows = tl.load(rows_ptr + row[:, None] * (N_U * 2 * BLOCK_U) + k[None, :])
            g = tl.dot(rows, z, g, input_precision=PRECISION)
        # [(part, h), (v, p)] -> [(p, h), (part, v)]
        g = tl.reshape(operand(g, OPERAND, PRECISION), (2, BLOCK_H, BLOCK_V, BLOCK_P))
        g = tl.reshape(tl.permute(g, (3, 1, 0, 2)), (BLOCK_P * BLOCK_H, 2 * BLOCK_V))
        k = i_v * (2 * BLOCK_V) + tl.arange(0, 2 * BLOCK_V)
        columns = tl.load(columns_ptr + w[:, None] * (N_V * 2 * BLOCK_V) + k[None, :])
        acc = tl.dot(g, tl.trans(columns), acc, input_precision=PRECISION)

    ph = tl.arange(0, BLOCK_P * BLOCK_H)
    plane = plane_0 + ph // BLOCK_H
    h = block_h * BLOCK_H + ph % BLOCK_H
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + plane % channels).to(tl.float32)[:, None]
    if RELU:
        acc = tl.where(acc < 0, 0.0, acc)
    here = ((plane < planes) & (h < HEIGHT))[:, None] & (w < WIDTH)[None, :]
    offsets = (plane.to(tl.int64) * (HEIGHT * WIDTH) + h * WIDTH)[:, None] + w[None, :]
    tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=here)
