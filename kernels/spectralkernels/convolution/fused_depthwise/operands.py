"""Operands of the fused depthwise kernels in every class: matrices as the host split them, numbers as they come.

An operand is a tuple of pieces (see `splitting`), of one where the class splits nothing.
"""

# Triton reads a kernel's annotations as its own.

from __future__ import annotations

import triton
import triton.language as tl

from spectralkernels.convolution.splitting import pieces, products


@triton.jit
def loaded(ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr):
    """A block of a matrix."""
    return tl.load(ptr + tl.arange(0, ROWS)[:, None] * STRIDE + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def rounded(values, MMA: tl.constexpr, PRECISION: tl.constexpr):
    """What a tensor core multiplies. It would cut a float32 to tf32, six biased errors in a row, so round it first."""
    if MMA == tl.float32 and PRECISION == "tf32":
        nearest = ((values.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        # A carry out of the fraction of a NaN would make it zero.
        return tl.where(values == values, nearest, values)
    return values.to(MMA)


@triton.jit
def matrix(ptr, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr):
    """The pieces of a block of a matrix of `size` numbers, split on the host: one piece where the class splits none."""
    first = loaded(ptr, ROWS, COLUMNS, STRIDE)
    if PRECISION == "bf16x6":
        second, third = loaded(ptr + size, ROWS, COLUMNS, STRIDE), loaded(ptr + 2 * size, ROWS, COLUMNS, STRIDE)
        return (first, second, third)
    elif PRECISION == "tf32x3" or PRECISION == "fp16x3" or PRECISION == "bf16x3":
        return (first, loaded(ptr + size, ROWS, COLUMNS, STRIDE))
    else:
        return (first,)


@triton.jit
def first_number(ptr, size, PRECISION: tl.constexpr):
    """The first number of a matrix as its pieces hold it."""
    number = tl.load(ptr).to(tl.float32)
    if PRECISION == "fp16x3":
        number += tl.load(ptr + size).to(tl.float32) / 2048.0
    elif PRECISION == "tf32x3" or PRECISION == "bf16x3" or PRECISION == "bf16x6":
        number += tl.load(ptr + size).to(tl.float32)
        if PRECISION == "bf16x6":
            number += tl.load(ptr + 2 * size).to(tl.float32)
    return number


@triton.jit
def operand(values, MMA: tl.constexpr, PRECISION: tl.constexpr):
    """The pieces that a tensor core multiplies."""
    if PRECISION == "tf32x3" or PRECISION == "fp16x3" or PRECISION == "bf16x3" or PRECISION == "bf16x6":
        return pieces(values, PRECISION)
    else:
        return (rounded(values, MMA, PRECISION),)


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    if len(a) > 1:
        return products(a, b, total, PRECISION)
    else:
        return tl.dot(a[0], b[0], total, input_precision=PRECISION)


@triton.jit
def normalised(values, SCALED: tl.constexpr):
    """values over a power of two that makes the largest 1 to 2, and that power; of float16 operands only.

    So no plane is too large or too small for float16. What 24 bits hold next to the largest number stays.
    """
    if SCALED:
        # In one step: of two, the first is more than sm_100's compiler can do.
        exponent = tl.max(tl.reshape(values.to(tl.int32, bitcast=True) & 0x7F800000, (values.numel,)), 0)
        # Not so large or small that the one or the other is no normal number.
        exponent = tl.minimum(tl.maximum(exponent, 0x00800000), 0x7E800000)
        return values * (0x7F000000 - exponent).to(tl.float32, bitcast=True), exponent.to(tl.float32, bitcast=True)
    else:
        return values, 1.0
