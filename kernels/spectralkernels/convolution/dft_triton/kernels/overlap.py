"""Programmatic dependent launch: a grid that starts while the one before it in the stream still runs.

With the option `launch_pdl` a launch is made as soon as every program of the grid before has begun (which it tells by
`griddepcontrol.launch_dependents`) or ended. So a kernel waits first (`griddepcontrol.wait`: until the grids before
have ended and what they wrote is seen) and touches no memory before that, to read or to write: the order of launches
stays the order of accesses, whatever kernels stand before and behind. What overlaps is the launch itself and the first
instructions. Compute capability 9.0 and later.
"""

# Triton reads a kernel's annotations as its own.

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin(OVERLAP: tl.constexpr):
    """To be called before the first access to memory."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
