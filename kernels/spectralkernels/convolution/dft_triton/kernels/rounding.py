"""How numbers become operands of a tensor core, in every kernel of the truncated DFT."""

# Triton reads a kernel's annotations as its own.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def operand(values, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Values as the tensor cores take them; to tf32 rounded to nearest, where the hardware would cut bits off."""
    if values.dtype != OPERAND:
        # By way of float32: the interpreter cannot compute in bfloat16.
        values = values.to(tl.float32).to(OPERAND)
    if PRECISION == "tf32" and OPERAND == tl.float32:
        bits = values.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)
        # The addition would turn the GPU's NaN, all ones, into a zero.
        values = tl.where(values == values, rounded, values)
    return values


@triton.jit
def stored(values, AS_IT_IS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """A loaded spectrum as an operand. AS_IT_IS: it was rounded when it was stored and is contiguous along k."""
    if not AS_IT_IS and PRECISION == "tf32":
        # Rounding again changes nothing, but takes the tile through registers. A tf32 operand must be contiguous along
        # k in shared memory, and an asynchronous copy that transposes on the way moves 4 bytes at a time.
        values = operand(values, OPERAND, PRECISION)
    elif values.dtype != OPERAND:
        values = values.to(tl.float32).to(OPERAND)
    return values
