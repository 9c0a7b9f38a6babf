"""Products of the classes that split an operand into two or three narrow numbers, written out product by product.

`tl.dot(..., input_precision="tf32x3")` multiplies the same pieces, but stops after each product to replace what an
infinite operand leaves and adds it to the sum, and splits the operands again for the next; here an operand is split
once, or on the host, and the products of several operands are one run of the tensor cores.

In fp16x3 what is left of a number after its first 11 bits is kept times 2^11, so that it does not fall below the range
of float16, and the products with it are divided by that again.
"""

# Triton reads a kernel's annotations as its own.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pieces(values, PRECISION: tl.constexpr):
    """Float32 values as a tuple of narrow numbers whose sum they are, the largest first."""
    if PRECISION == "tf32x3":
        # To the nearest, so that the rest has one bit less. Where it turns a NaN into a zero, the rest is NaN.
        bits = values.to(tl.uint32, bitcast=True)
        first = ((bits + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)
        return (first, values - first)
    elif PRECISION == "fp16x3":
        first = values.to(tl.float16)
        return (first, ((values - first.to(tl.float32)) * 2048.0).to(tl.float16))
    elif PRECISION == "bf16x3":
        first = values.to(tl.bfloat16)
        return (first, (values - first.to(tl.float32)).to(tl.bfloat16))
    else:
        tl.static_assert(PRECISION == "bf16x6")
        first = values.to(tl.bfloat16)
        rest = values - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        return (first, second, (rest - second.to(tl.float32)).to(tl.bfloat16))


@triton.jit
def transposed(parts):
    """The pieces of a transposed operand."""
    found = ()
    for i in tl.static_range(len(parts)):
        found += (tl.trans(parts[i]),)
    return found


@triton.jit
def products(a, b, total, PRECISION: tl.constexpr):
    """total + a b of split operands: of the products of pieces all but those below the last piece, small ones first."""
    if PRECISION == "fp16x3":
        small = tl.dot(a[1], b[0])
        small = tl.dot(a[0], b[1], small)
        total = tl.dot(a[0], b[0], total + small * 0.00048828125)
    else:
        for below in tl.static_range(len(a) - 1, -1, -1):
            for i in tl.static_range(below, -1, -1):
                total = tl.dot(a[i], b[below - i], total, input_precision="tf32")
    return total
