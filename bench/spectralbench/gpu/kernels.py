"""A Triton kernel that reads one buffer again and again, so that every byte comes from the L2 cache.

Imports triton, so only import it where a kernel is launched or compiled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
PROGRAMS_PER_PROCESSOR = 4
STEPS = 256


@triton.jit
def read_kernel(x_ptr, sums_ptr, blocks, steps, BLOCK: tl.constexpr):
    # Program p reads blocks p, p + P, p + 2 P, ... around the buffer: neighbours in time lie far apart, and no program
    # comes back to a block before the others have passed over all of it.
    program = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for step in range(steps):
        block = (program + step * tl.num_programs(0)) % blocks
        # .cg leaves the first-level cache out.
        total += tl.load(x_ptr + block * BLOCK + offsets, cache_modifier=".cg")
    tl.store(sums_ptr + program, tl.sum(total, 0))


def read(x: Tensor, sums: Tensor, steps: int = STEPS) -> int:
    """Read `x` (Float32, a multiple of BLOCK) by len(sums) programs and sum what each has read.

    Returns: the bytes that were read.
    """
    read_kernel[(len(sums),)](x, sums, x.numel() // BLOCK, steps, BLOCK=BLOCK, num_warps=8)
    return 4 * len(sums) * steps * BLOCK


def l2_reads() -> tuple[Callable[[], object], int]:
    """A call that reads a quarter of the device's L2 cache many times, and its bytes."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    # A quarter: on devices whose L2 has two halves, data may be held in both.
    blocks = max(1, properties.L2_cache_size // 4 // (4 * BLOCK))
    x = torch.randn(blocks * BLOCK, device="cuda")
    sums = torch.empty(PROGRAMS_PER_PROCESSOR * properties.multi_processor_count, device="cuda")
    return lambda: read(x, sums), 4 * len(sums) * STEPS * BLOCK
