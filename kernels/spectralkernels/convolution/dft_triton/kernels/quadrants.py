"""The separable truncated DFT of float32 maps, without a transpose on the way: a plane is a batch of one.

A transform of a real plane x [H, W] is, before its quadrants are combined into complex numbers, two real products:

    q = R' x' L,   R' [2 V, W] = re and im of the half axis,   L [H, 2 U] = cos and sin, u >= 0 only

(a prime transposes.) Of the quadrants of q, (re | im over v) x (cos | sin over u) = cc, sc (im, cos), cs (re, sin), ss,
the coefficients are Z(+-u, v) = (cc +- ss) + i (sc -+ cs): rows u < 0 cost no arithmetic. Synthesis is the transpose.

Both products are batched over planes, which is how a warp comes to own one: it finds the left operand of the second
product in its own registers. `wgmma` would take tf32 operands only along k, so that a transpose between two products
is one shared store per number; here there is none. The second product sums over columns in the order in which the
first leaves them in registers, 0 2 4 6 1 3 5 7 of each eight: its matrix comes in that order (see `matrices`).
"""

# Triton reads a kernel's annotations as its own.

from __future__ import annotations

import triton
import triton.language as tl

from spectralkernels.convolution.dft_triton.kernels.overlap import begin
from spectralkernels.convolution.dft_triton.kernels.transforms import _plane_offsets
from spectralkernels.convolution.splitting import pieces, products


@triton.jit
def to_tf32(values):
    """Float32 numbers cut to 11 bits after a multiplication by 1 + 2^-11 / (2 ln 2).

    That lifts a number by what cutting takes from it on average, where numbers are spread evenly in their logarithm: no
    bias, the root mean square error of rounding to nearest plus a twentieth; numbers of 11 bits stay as they are, NaN
    and infinity, too. `rounding.operand` adds to the bits, and must compare and select for the NaN that it would make a
    zero; here it is one multiplication, as a tensor core cuts by itself.
    """
    bits = (values * 1.0003522).to(tl.uint32, bitcast=True)
    return (bits & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit
def _operand(values, PRECISION: tl.constexpr):
    if PRECISION == "tf32":
        values = to_tf32(values)
    return values


@triton.jit
def _product(a, b, total, STEPS: tl.constexpr, PRECISION: tl.constexpr):
    """total + a b of operands that are rounded where the class is tf32.

    STEPS: how many such products are summed. A tensor core cuts off what its sums do not hold.
    """
    if PRECISION == "tf32x3":
        start = total if STEPS == 1 else tl.zeros(total.shape, tl.float32)
        found = products(pieces(a, PRECISION), pieces(b, PRECISION), start, PRECISION)
        if STEPS > 1:
            found += total
        return found
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _as_left_operand(values, P: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns in the order in which registers already hold them, so that nothing moves."""
    values = tl.reshape(values, (P, ROWS, COLUMNS // 8, 4, 2))
    return tl.reshape(tl.permute(values, (0, 1, 2, 4, 3)), (P, ROWS, COLUMNS))


@triton.jit
def analyse_quadrants_kernel(
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
    """Pixels to modes, width first: one program owns the rows +-u of BLOCK_U u >= 0 by BLOCK_V modes of BLOCK_P planes.

    The arguments are those of `transforms.analyse_separable_kernel`, but for the matrices.
    """
    HALF: tl.constexpr = MODES_U // 2 + 1
    N_H: tl.constexpr = (HEIGHT + BLOCK_H - 1) // BLOCK_H
    N_W: tl.constexpr = (WIDTH + BLOCK_W - 1) // BLOCK_W
    N_U: tl.constexpr = (HALF + BLOCK_U - 1) // BLOCK_U
    N_V: tl.constexpr = (MODES_V + BLOCK_V - 1) // BLOCK_V
    begin(OVERLAP)
    pid = tl.program_id(0)
    block_v = pid % N_V
    block_u = pid // N_V % N_U
    plane_0 = pid // (N_V * N_U) * BLOCK_P

    plane = plane_0 + tl.arange(0, BLOCK_P)
    base = _plane_offsets(plane, mid, inner, stride_outer, stride_mid, stride_inner) * (HEIGHT * WIDTH)
    column = block_v * (2 * BLOCK_V) + tl.arange(0, 2 * BLOCK_V)
    row = block_u * (2 * BLOCK_U) + tl.arange(0, 2 * BLOCK_U)
    q = tl.zeros((BLOCK_P, 2 * BLOCK_V, 2 * BLOCK_U), tl.float32)
    for i_h in tl.range(N_H, num_stages=STAGES):
        h = i_h * BLOCK_H + tl.arange(0, BLOCK_H)
        t = tl.zeros((BLOCK_P, 2 * BLOCK_V, BLOCK_H), tl.float32)
        for i_w in tl.range(N_W, num_stages=STAGES):
            w = i_w * BLOCK_W + tl.arange(0, BLOCK_W)
            here = (plane < planes)[:, None, None] & (h < HEIGHT)[None, :, None] & (w < WIDTH)[None, None, :]
            offsets = base[:, None, None] + (h[:, None] * WIDTH + w[None, :])[None, :, :]
            x = tl.load(x_ptr + offsets, mask=here, other=0.0).to(tl.float32)
            if gate_ptr is not None:
                gate = tl.load(gate_ptr + offsets, mask=here, other=0.0)
                x = tl.where(gate.to(tl.float32) > 0, x, 0.0)
            columns = tl.load(columns_ptr + column[:, None] * (N_W * BLOCK_W) + w[None, :])
            columns = tl.broadcast_to(columns[None, :, :], (BLOCK_P, 2 * BLOCK_V, BLOCK_W))
            x = tl.permute(_operand(x, PRECISION), (0, 2, 1))
            t = _product(columns, x, t, N_W, PRECISION)
        rows = tl.trans(tl.load(rows_ptr + row[:, None] * (N_H * BLOCK_H) + h[None, :]))
        rows = tl.broadcast_to(rows[None, :, :], (BLOCK_P, BLOCK_H, 2 * BLOCK_U))
        t = _as_left_operand(_operand(t, PRECISION), BLOCK_P, 2 * BLOCK_V, BLOCK_H)
        q = _product(t, rows, q, N_H, PRECISION)

    # Rows of q come in blocks of 16, eight re then eight im: the parts of a coefficient lie in one thread.
    q = tl.reshape(q, (BLOCK_P, BLOCK_V // 8, 2, 8, 2, BLOCK_U))
    u_cos, u_sin = tl.split(tl.permute(q, (0, 1, 3, 5, 2, 4)))
    cc, sc = tl.split(u_cos)
    cs, ss = tl.split(u_sin)
    z = tl.join(tl.join(cc + ss, sc - cs), tl.join(cc - ss, sc + cs))  # [P, V / 8, 8, U, part, sign of u]
    plane = plane[:, None, None, None, None, None]
    v = block_v * BLOCK_V + (tl.arange(0, BLOCK_V // 8)[:, None] * 8 + tl.arange(0, 8)[None, :])
    v = v[None, :, :, None, None, None]
    u = (block_u * BLOCK_U + tl.arange(0, BLOCK_U))[:, None, None]
    back = tl.arange(0, 2)[None, None, :] == 1
    at = tl.where(back, MODES_U - u, u)
    counts = tl.where(back, (u > 0) & (at >= HALF), u < HALF)[None, None, None, :, :, :]
    mode = v.to(tl.int64) * (MODES_U * 2) + (at * 2 + tl.arange(0, 2)[None, :, None])[None, None, None, :, :, :]
    offsets = mode * planes + plane
    here = counts & (v < MODES_V) & (plane < planes)
    tl.store(z_ptr + offsets, _operand(z, PRECISION), mask=here)
    if kept_ptr is not None:
        tl.store(kept_ptr + offsets, z.to(kept_ptr.dtype.element_ty), mask=here)


@triton.jit
def synthesise_quadrants_kernel(
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

    The arguments are those of `transforms.synthesise_separable_kernel`, but for the matrices. A spectrum is loaded with
    its rows u and -u apart, whose sums and differences are the quadrants.
    """
    HALF: tl.constexpr = MODES_U // 2 + 1
    N_H: tl.constexpr = (HEIGHT + BLOCK_H - 1) // BLOCK_H
    N_W: tl.constexpr = (WIDTH + BLOCK_W - 1) // BLOCK_W
    N_U: tl.constexpr = (HALF + BLOCK_U - 1) // BLOCK_U
    N_V: tl.constexpr = (MODES_V + BLOCK_V - 1) // BLOCK_V
    begin(OVERLAP)
    pid = tl.program_id(0)
    block_w = pid % N_W
    block_h = pid // N_W % N_H
    plane_0 = pid // (N_W * N_H) * BLOCK_P

    h = block_h * BLOCK_H + tl.arange(0, BLOCK_H)
    w = block_w * BLOCK_W + tl.arange(0, BLOCK_W)
    plane = (plane_0 + tl.arange(0, BLOCK_P))[None, None, :]
    y = tl.zeros((BLOCK_P, BLOCK_H, BLOCK_W), tl.float32)
    for i_v in tl.range(N_V, num_stages=STAGES):
        v = (i_v * BLOCK_V + tl.arange(0, BLOCK_V))[None, :, None]
        g = tl.zeros((BLOCK_P, BLOCK_H, 2 * BLOCK_V), tl.float32)
        for i_u in tl.static_range(N_U):
            u = (i_u * BLOCK_U + tl.arange(0, BLOCK_U))[:, None, None]
            here = (u < HALF) & (v < MODES_V) & (plane < planes)
            both = here & (u > 0) & (MODES_U - u >= HALF)
            mode = v.to(tl.int64) * (MODES_U * 2) + 2 * u
            front = z_ptr + (mode * planes + plane)
            back = z_ptr + ((mode + 2 * (MODES_U - 2 * u)) * planes + plane)
            re = tl.load(front, mask=here, other=0.0).to(tl.float32)
            im = tl.load(front + planes, mask=here, other=0.0).to(tl.float32)
            back_re = tl.load(back, mask=both, other=0.0).to(tl.float32)
            back_im = tl.load(back + planes, mask=both, other=0.0).to(tl.float32)
            q = tl.join(tl.join(re + back_re, back_im - im), tl.join(im + back_im, re - back_re))
            # [u, v, p, part of u, part of v] -> [p, (part, u), (part, v)]
            q = tl.permute(_operand(q, PRECISION), (2, 3, 0, 4, 1))
            q = tl.reshape(q, (BLOCK_P, 2 * BLOCK_U, 2 * BLOCK_V))
            k = i_u * (2 * BLOCK_U) + tl.arange(0, 2 * BLOCK_U)
            rows = tl.load(rows_ptr + h[:, None] * (N_U * 2 * BLOCK_U) + k[None, :])
            rows = tl.broadcast_to(rows[None, :, :], (BLOCK_P, BLOCK_H, 2 * BLOCK_U))
            g = _product(rows, q, g, N_U, PRECISION)
        k = i_v * (2 * BLOCK_V) + tl.arange(0, 2 * BLOCK_V)
        columns = tl.trans(tl.load(columns_ptr + w[:, None] * (N_V * 2 * BLOCK_V) + k[None, :]))
        columns = tl.broadcast_to(columns[None, :, :], (BLOCK_P, 2 * BLOCK_V, BLOCK_W))
        g = _as_left_operand(_operand(g, PRECISION), BLOCK_P, BLOCK_H, 2 * BLOCK_V)
        y = _product(g, columns, y, N_V, PRECISION)

    plane = (plane_0 + tl.arange(0, BLOCK_P))[:, None, None]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + plane % channels).to(tl.float32)
    if RELU:
        # Not maximum, which would drop a NaN.
        y = tl.where(y < 0, 0.0, y)
    here = (plane < planes) & (h < HEIGHT)[None, :, None] & (w < WIDTH)[None, None, :]
    offsets = plane.to(tl.int64) * (HEIGHT * WIDTH) + (h[:, None] * WIDTH + w[None, :])[None, :, :]
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=here)
