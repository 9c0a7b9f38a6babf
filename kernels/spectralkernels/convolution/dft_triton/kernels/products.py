"""Products of planar spectra, one per mode: over channels on tensor cores, of single channels, and with a mask.

A mask [N_h, N_w // 2 + 1], or one per sample, is read where it lies. `cell` says where in it a mode lies, -1 for a mode
that was computed and is masked all the same. WEIGHTED names what a mask weights:

    ""      there is none
    "mode"  every mode of the batch alike: a scalar, and where it is zero no product is computed
    "m" or "n"  samples, which are rows or columns of the result
    "k"     samples, over which the product sums

A weight counts once, in float32, before the result is rounded.
"""

# Triton reads a kernel's annotations as its own.

from __future__ import annotations

import triton
import triton.language as tl

from spectralkernels.convolution.dft_triton.kernels.overlap import begin
from spectralkernels.convolution.dft_triton.kernels.rounding import operand, stored
from spectralkernels.convolution.splitting import pieces, products, transposed


@triton.jit
def _weights(mask_ptr, cell, sample, samples, mask_sample):
    """The weights of one mode for some samples."""
    here = (sample < samples) & (cell >= 0)
    return tl.load(mask_ptr + sample * mask_sample + cell, mask=here, other=0).to(tl.float32)


@triton.jit
def _split_step(re, im, a_re, a_im, b_re, b_im, CONJUGATED: tl.constexpr, PRECISION: tl.constexpr):
    """re and im plus one step of the complex product a b', in a class that splits operands; see `contract_kernel`.

    The sum over steps is an addition in float32, since a tensor core cuts off what its sums do not hold.
    """
    zero = tl.zeros(re.shape, tl.float32)
    a_re, a_im = pieces(a_re, PRECISION), pieces(a_im, PRECISION)
    b_re, b_im = transposed(pieces(b_re, PRECISION)), transposed(pieces(b_im, PRECISION))
    if CONJUGATED == "":
        im += products(a_im, b_re, products(a_re, b_im, zero, PRECISION), PRECISION)
        re += products(a_re, b_re, zero, PRECISION)
        re -= products(a_im, b_im, zero, PRECISION)
    else:
        re += products(a_im, b_im, products(a_re, b_re, zero, PRECISION), PRECISION)
        if CONJUGATED == "b":
            im += products(a_im, b_re, zero, PRECISION)
            im -= products(a_re, b_im, zero, PRECISION)
        else:
            im += products(a_re, b_im, zero, PRECISION)
            im -= products(a_im, b_re, zero, PRECISION)
    return re, im


@triton.jit
def contract_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    mask_ptr,
    cell_ptr,
    mask_sample,
    size_m,
    size_n,
    size_k,
    groups,
    a_part,
    a_group,
    a_m,
    a_k,
    b_part,
    b_group,
    b_n,
    b_k,
    out_part,
    out_group,
    out_m,
    out_n,
    out_share,
    CONJUGATED: tl.constexpr,
    AS_IT_IS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SHARES: tl.constexpr = 1,
    OVERLAP: tl.constexpr = False,
):
    """BLOCK_M x BLOCK_N of the complex product out[m, n] = sum_k a[m, k] b[n, k] of one mode and group.

    CONJUGATED: "a", "b" or "" names the operand whose conjugate counts. Four real matrix products a step on operands as
    they lie, planar, into three accumulators: no embedding of complex numbers is stored, and each of the four tiles
    serves two products. SPLIT: the class splits operands, so that a product is three or six (see `splitting`).
    Strides count elements; a mode is two parts long. AS_IT_IS: see `rounding.stored`.
    SHARES: programs that share a sum, each a part of its depth; out is then Float32 [SHARES, ...], out_share numbers
    each, for `total_kernel`. Else out_share is None.
    """
    begin(OVERLAP)
    n_n = tl.cdiv(size_n, BLOCK_N)
    n_m = tl.cdiv(size_m, BLOCK_M)
    # Everything of one mode runs together and shares its spectra in the L2 cache.
    pid = tl.program_id(0)
    n = (pid % n_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    pid = pid // n_n
    m = (pid % n_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    pid = pid // n_m
    if SHARES > 1:
        share = pid % SHARES
        pid = pid // SHARES
    group = pid % groups
    mode = (pid // groups).to(tl.int64)

    a_base = a_ptr + (mode * 2 * a_part + group * a_group)
    b_base = b_ptr + (mode * 2 * b_part + group * b_group)
    depth = size_k
    if WEIGHTED != "":
        cell = tl.load(cell_ptr + mode)
    if WEIGHTED == "mode":
        weight = tl.load(mask_ptr + cell, mask=cell >= 0, other=0).to(tl.float32)
        # Not size_k itself, whose divisibility makes the loads wide.
        depth = tl.where(weight != 0, size_k, 0)
    first = 0
    if SHARES > 1:
        steps = tl.cdiv(size_k, SHARES * BLOCK_K)
        first = share * steps * BLOCK_K
        depth = tl.minimum(depth, first + steps * BLOCK_K)
    re = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    im = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # What is subtracted at the end: a tensor core only adds.
    minus = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k_0 in tl.range(first, depth, BLOCK_K, num_stages=STAGES):
        k = k_0 + tl.arange(0, BLOCK_K)
        a_offsets = m[:, None] * a_m + k[None, :] * a_k
        b_offsets = n[:, None] * b_n + k[None, :] * b_k
        a_here = (m < size_m)[:, None] & (k < size_k)[None, :]
        b_here = (n < size_n)[:, None] & (k < size_k)[None, :]
        a_re = stored(tl.load(a_base + a_offsets, mask=a_here, other=0.0), AS_IT_IS, OPERAND, PRECISION)
        a_im = stored(tl.load(a_base + a_part + a_offsets, mask=a_here, other=0.0), AS_IT_IS, OPERAND, PRECISION)
        b_re = stored(tl.load(b_base + b_offsets, mask=b_here, other=0.0), AS_IT_IS, OPERAND, PRECISION)
        b_im = stored(tl.load(b_base + b_part + b_offsets, mask=b_here, other=0.0), AS_IT_IS, OPERAND, PRECISION)
        if WEIGHTED == "k":
            weights = _weights(mask_ptr, cell, k, size_k, mask_sample)[None, :]
            a_re = operand(a_re.to(tl.float32) * weights, OPERAND, PRECISION)
            a_im = operand(a_im.to(tl.float32) * weights, OPERAND, PRECISION)
        if SPLIT:
            re, im = _split_step(re, im, a_re, a_im, b_re, b_im, CONJUGATED, PRECISION)
        else:
            b_re, b_im = tl.trans(b_re), tl.trans(b_im)
            re = tl.dot(a_re, b_re, re, input_precision=PRECISION)
            if CONJUGATED == "b":
                im = tl.dot(a_im, b_re, im, input_precision=PRECISION)
                minus = tl.dot(a_re, b_im, minus, input_precision=PRECISION)
                re = tl.dot(a_im, b_im, re, input_precision=PRECISION)
            elif CONJUGATED == "a":
                minus = tl.dot(a_im, b_re, minus, input_precision=PRECISION)
                re = tl.dot(a_im, b_im, re, input_precision=PRECISION)
                im = tl.dot(a_re, b_im, im, input_precision=PRECISION)
            else:
                im = tl.dot(a_im, b_re, im, input_precision=PRECISION)
                im = tl.dot(a_re, b_im, im, input_precision=PRECISION)
                minus = tl.dot(a_im, b_im, minus, input_precision=PRECISION)
    if not SPLIT:
        if CONJUGATED == "":
            re -= minus
        else:
            im -= minus
    if WEIGHTED == "mode":
        re, im = re * weight, im * weight
    elif WEIGHTED == "m":
        weights = _weights(mask_ptr, cell, m, size_m, mask_sample)[:, None]
        re, im = re * weights, im * weights
    elif WEIGHTED == "n":
        weights = _weights(mask_ptr, cell, n, size_n, mask_sample)[None, :]
        re, im = re * weights, im * weights
    out_base = out_ptr + (mode * 2 * out_part + group * out_group)
    offsets = m[:, None] * out_m + n[None, :] * out_n
    here = (m < size_m)[:, None] & (n < size_n)[None, :]
    if SHARES > 1:
        out_base += share.to(tl.int64) * out_share
        tl.store(out_base + offsets, re, mask=here)
        tl.store(out_base + out_part + offsets, im, mask=here)
    else:
        tl.store(out_base + offsets, operand(re, OPERAND, PRECISION), mask=here)
        tl.store(out_base + out_part + offsets, operand(im, OPERAND, PRECISION), mask=here)


@triton.jit
def total_kernel(
    shares_ptr,
    out_ptr,
    count,
    SHARES: tl.constexpr,
    BLOCK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK numbers of the sum of SHARES tensors [count], which follow each other, in their order: no atomics.

    Reads 4 SHARES bytes per number that it writes.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    total = tl.load(shares_ptr + at, mask=here, other=0.0)
    share = shares_ptr
    for _ in tl.static_range(1, SHARES):
        share += count
        total += tl.load(share + at, mask=here, other=0.0)
    tl.store(out_ptr + at, operand(total, OPERAND, PRECISION), mask=here)


@triton.jit
def single_channel_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    mask_ptr,
    cell_ptr,
    mask_sample,
    count,
    inner,
    terms,
    a_planes,
    b_planes,
    a_outer,
    b_outer,
    a_term,
    b_term,
    a_divide,
    b_divide,
    a_times,
    b_times,
    CONJUGATED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK planes of the complex product of one mode where groups have one channel, out[p] = sum_t a[p, t] b[p, t].

    With p = (i, j), j < inner, the plane of a is i a_outer + j // a_divide a_times + t a_term, that of b likewise.
    a_planes, b_planes: in all. It streams: a and b are read once (b, a weight, once a sample) and out is written once.
    """
    n_blocks = tl.cdiv(count, BLOCK)
    pid = tl.program_id(0)
    mode = (pid // n_blocks).to(tl.int64)
    p = pid % n_blocks * BLOCK + tl.arange(0, BLOCK)
    here = p < count
    i, j = p // inner, p % inner
    a_base = a_ptr + mode * 2 * a_planes + (i * a_outer + j // a_divide * a_times)
    b_base = b_ptr + mode * 2 * b_planes + (i * b_outer + j // b_divide * b_times)
    if WEIGHTED != "":
        cell = tl.load(cell_ptr + mode)
    re = tl.zeros((BLOCK,), tl.float32)
    im = tl.zeros((BLOCK,), tl.float32)
    for t in tl.range(0, terms):
        a_re = tl.load(a_base + t * a_term, mask=here, other=0.0).to(tl.float32)
        a_im = tl.load(a_base + a_planes + t * a_term, mask=here, other=0.0).to(tl.float32)
        b_re = tl.load(b_base + t * b_term, mask=here, other=0.0).to(tl.float32)
        b_im = tl.load(b_base + b_planes + t * b_term, mask=here, other=0.0).to(tl.float32)
        if WEIGHTED == "k":
            weight = tl.load(mask_ptr + t * mask_sample + cell, mask=cell >= 0, other=0).to(tl.float32)
            a_re, a_im = a_re * weight, a_im * weight
        if CONJUGATED == "a":
            a_im = -a_im
        elif CONJUGATED == "b":
            b_im = -b_im
        re += a_re * b_re
        re -= a_im * b_im
        im += a_re * b_im
        im += a_im * b_re
    if WEIGHTED == "mode" or WEIGHTED == "m":
        weights = tl.load(mask_ptr + i * mask_sample + cell, mask=here & (cell >= 0), other=0).to(tl.float32)
        re, im = re * weights, im * weights
    offsets = mode * 2 * count + p
    tl.store(out_ptr + offsets, operand(re, OPERAND, PRECISION), mask=here)
    tl.store(out_ptr + count + offsets, operand(im, OPERAND, PRECISION), mask=here)


@triton.jit
def mask_gradient_kernel(
    z_ptr,
    dz_ptr,
    mask_ptr,
    cell_ptr,
    dmask_ptr,
    rows,
    length,
    mask_row,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of BLOCK_R weights of one mode, dm = sum Re(conj(dz) z) over `length` planes, and dz *= m in place.

    z, dz [modes, 2, rows length]; dz comes without the mask. A row is a sample, or all of a batch that shares its mask.
    Reads z and dz and writes dz once. A sum has one order: no atomics.
    """
    n_blocks = tl.cdiv(rows, BLOCK_R)
    pid = tl.program_id(0)
    mode = (pid // n_blocks).to(tl.int64)
    row = pid % n_blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    planes = rows * length
    cell = tl.load(cell_ptr + mode)
    weights = _weights(mask_ptr, cell, row, rows, mask_row)[:, None]
    base = mode * 2 * planes
    total = tl.zeros((BLOCK_R, BLOCK_L), tl.float32)
    for start in tl.range(0, length, BLOCK_L):
        column = start + tl.arange(0, BLOCK_L)
        here = (row < rows)[:, None] & (column < length)[None, :]
        offsets = base + (row[:, None] * length + column[None, :])
        z_re = tl.load(z_ptr + offsets, mask=here, other=0.0).to(tl.float32)
        z_im = tl.load(z_ptr + planes + offsets, mask=here, other=0.0).to(tl.float32)
        dz_re = tl.load(dz_ptr + offsets, mask=here, other=0.0).to(tl.float32)
        dz_im = tl.load(dz_ptr + planes + offsets, mask=here, other=0.0).to(tl.float32)
        total += z_re * dz_re
        total += z_im * dz_im
        tl.store(dz_ptr + offsets, operand(dz_re * weights, OPERAND, PRECISION), mask=here)
        tl.store(dz_ptr + planes + offsets, operand(dz_im * weights, OPERAND, PRECISION), mask=here)
    tl.store(dmask_ptr + row * mask_row + cell, tl.sum(total, 1), mask=(row < rows) & (cell >= 0))
