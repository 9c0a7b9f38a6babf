"""The kernel that reads the L2 cache reads what it says (interpreter), in wide loads past the first level (sm_90)."""

from __future__ import annotations

import os

import pytest
import torch
from guarded_interpreter import python_interpreting

from spectralkernels.aot import compile_kernel, need_the_compiler
from spectralkernels.errors import Unsupported

pytest.importorskip("triton")

PROGRAM = """
import torch
from spectralbench.gpu.kernels import BLOCK, read
torch.manual_seed({seed})
x, sums = torch.randn(3 * BLOCK), torch.full((7,), float("nan"))
assert read(x, sums, steps=5) == 4 * 7 * 5 * BLOCK
blocks = x.view(3, BLOCK).double().sum(1)
wanted = torch.stack([sum(blocks[(p + 7 * step) % 3] for step in range(5)) for p in range(7)])
torch.testing.assert_close(sums.double(), wanted, rtol=1e-4, atol=1e-2)
print("right")
"""


@pytest.mark.slow
def test_every_program_reads_its_blocks_around_the_buffer(seed: int) -> None:
    done = python_interpreting("-c", PROGRAM.format(seed=seed))
    assert done.stdout == "right\n", done.stderr[-2000:]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled under the interpreter")
def test_it_loads_128_bits_at_a_time_and_keeps_several_loads_in_flight() -> None:
    try:
        need_the_compiler()
    except Unsupported as error:
        pytest.skip(str(error))
    from spectralbench.gpu.kernels import BLOCK, read_kernel

    arguments = {"x_ptr": torch.empty(4 * BLOCK), "sums_ptr": torch.empty(16), "blocks": 4, "steps": 256}
    code = compile_kernel(read_kernel, {**arguments, "BLOCK": BLOCK}, 90, num_warps=8)
    assert code.count("LDG", "128") == code.count("LDG") >= 4
    assert (code.stack, code.local) == (0, 0)
    assert code.registers <= 64, "four programs of 8 warps must fit one multiprocessor"
