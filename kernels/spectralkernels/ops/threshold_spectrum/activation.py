"""Arithmetic of the threshold kernels in few instructions: tanh, a scale, division by a constant (imports triton)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def spectral_tanh(x, APPROXIMATE: tl.constexpr):
    """tanh in 14 instructions, odd to the last bit, within 4.5e-7 of its value over all of float32.

    Below 0.6 an odd polynomial (minimax for the relative error, 0.7 * 2^-23; 1.4 * 2^-23 with its roundings), because
    1 - 2 / (1 + exp 2x) cancels there. Above, that formula: 1.6 * 2^-23 with a correct exp2 and reciprocal, which the
    interpreter has, and at most 3.8 * 2^-23 where the GPU's approximations (APPROXIMATE) err by all that PTX allows
    them, 2^-22 and 2^-23, in the worst direction. A NaN passes; an infinity becomes 1.
    """
    square = x * x
    p = tl.fma(square, tl.full((), 0.015612632967531681, tl.float32), tl.full((), -0.05221180617809296, tl.float32))
    p = tl.fma(p, square, tl.full((), 0.13313116133213043, tl.float32))
    p = tl.fma(p, square, tl.full((), -0.33332598209381104, tl.float32))
    small = tl.fma(x, p * square, x)
    twice = tl.abs(x) * 2.885390081777927  # log2 of exp 2|x|
    if APPROXIMATE:
        power = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [twice], tl.float32, True, 1)
        part = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [power + 1.0], tl.float32, True, 1)
    else:
        # numpy would warn of an overflow, which is harmless here: 1 / (1 + inf) = 0
        part = 1.0 / (tl.exp2(tl.where(twice > 126.0, 126.0, twice)) + 1.0)
    large = tl.fma(part, tl.full((), -2.0, tl.float32), tl.full((), 1.0, tl.float32))
    sign = x.to(tl.uint32, bitcast=True) & 0x80000000
    large = (large.to(tl.uint32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(x) < 0.6, small, large)


@triton.jit
def power_of_two_near(number):
    """A power of two s with s * number in [1, 4), at most 2^127: no square of s * Y overflows or vanishes wrongly."""
    exponent = number.to(tl.int32, bitcast=True) & 0x7F800000
    return (0x7F000000 - tl.minimum(exponent, 0x7E800000)).to(tl.float32, bitcast=True)


@triton.jit
def divided(x, DIVISOR: tl.constexpr, LIMIT: tl.constexpr):
    """x // DIVISOR for uint32 x < LIMIT, by one multiplication where that is exact.

    With m = ceil(2^32 / d), x m / 2^32 exceeds x / d by less than x / 2^32, which is at most 1 / d if x d <= 2^32.
    """
    if DIVISOR == 1:
        quotient = x
    elif LIMIT * DIVISOR <= 2**32:
        quotient = tl.umulhi(x, tl.full((1, 1), (2**32 + DIVISOR - 1) // DIVISOR, tl.uint32))
    else:
        quotient = x // DIVISOR
    return quotient
