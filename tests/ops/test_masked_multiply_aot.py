"""The masked multiply kernels as compiled for real GPUs: no spills, wide loads, fused multiply-adds as designed."""

from __future__ import annotations

import pytest
import torch
from guarded_interpreter import judged_compiler

pytest.importorskip("triton")

from spectralkernels.aot import MachineCode, compile_kernel
from spectralkernels.ops.masked_multiply import kernels

pytestmark = judged_compiler

CAPABILITIES = (80, 90, 100)
RULE = kernels.tile(128, 64)
ROWS_B, ROWS_O = RULE.rows_b, RULE.rows_o


def compiled(
    launch: str,
    capability: int,
    *,
    batch: int = 128,
    channels: int = 64,
    outputs: int = 64,
    size: int = 34,
    groups: int = 1,
    mask: torch.dtype | None = torch.bool,
    conjugate: bool = True,
) -> tuple[kernels.Launch, MachineCode]:
    """The launch that these shapes would get, and its code; meta tensors have aligned addresses, as fresh ones do."""
    plane = (size, size // 2 + 1)
    x = torch.empty(batch, channels, *plane, dtype=torch.complex64, device="meta")
    w = torch.empty(outputs, channels // groups, *plane, dtype=torch.complex64, device="meta")
    y = torch.empty(batch, outputs, *plane, dtype=torch.complex64, device="meta")
    kept = None if mask is None else torch.empty(plane, dtype=mask, device="meta")
    planned = getattr(kernels, launch)(x, w, kept, y, groups, conjugate)
    return planned, compile_kernel(planned.kernel, planned.arguments, capability, **planned.options)


def fused_multiply_adds(code: MachineCode) -> int:
    """Blackwell packs two into one FFMA2."""
    return code.count("FFMA") + 2 * code.count("FFMA2")


def spills(code: MachineCode) -> int:
    return code.stack + code.local + code.count("LDL") + code.count("STL")


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
@pytest.mark.parametrize("mask", [torch.bool, torch.float32, None], ids=["bool", "float", "no-mask"])
def test_dense_tile(capability: int, mask: torch.dtype | None) -> None:
    planned, code = compiled("tiled_launch", capability, mask=mask)
    assert planned.arguments["UNIT"] == 4  # 34 x 18 cells: every plane begins at a multiple of 16 bytes
    assert spills(code) == 0
    assert code.shared <= code.shared_limit
    # Two blocks of 256 threads share the 65536 registers of an SM.
    assert code.num_warps == 8 and code.registers <= 128
    # 8 x 4 complex accumulators a thread, four fused multiply-adds each, the loop not unrolled.
    assert fused_multiply_adds(code) == 4 * ROWS_B * ROWS_O
    assert code.count("FADD") == 0
    if mask != torch.float32:
        assert code.count("FMUL") == 0
    # Spectra go to shared memory in flight: x as 64-bit pieces (two floats for each of 256 threads), w as 128-bit.
    assert code.count("LDGSTS", "128") == code.count("LDGSTS", "64") == 3
    assert code.count("LDGSTS") == 6
    # Twelve shared loads (8 of x, 4 of w) for those 128 multiply-adds, each one cell.
    assert code.count("LDS", "64") == ROWS_B + ROWS_O
    assert code.count("STG") == code.count("STG", "64") == ROWS_B * ROWS_O


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
def test_odd_planes_still_load_whole_cells(capability: int) -> None:
    planned, code = compiled("tiled_launch", capability, size=33)  # 33 x 17 cells: planes begin at multiples of 8 bytes
    assert planned.arguments["UNIT"] == 2
    assert spills(code) == 0 and code.registers <= 128
    assert fused_multiply_adds(code) == 4 * ROWS_B * ROWS_O
    assert code.count("LDGSTS") == code.count("LDGSTS", "64") > 0


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
def test_depthwise(capability: int) -> None:
    planned, code = compiled("tiled_launch", capability, batch=32, channels=128, outputs=128, groups=128)
    assert planned.arguments["STAGES"] == 1
    assert spills(code) == 0 and code.shared <= code.shared_limit
    assert code.registers <= 64  # bandwidth-bound: many threads must be in flight
    assert code.count("LDG", "128") > 0
    assert fused_multiply_adds(code) + code.count("FMUL") + 2 * code.count("FMUL2") >= 4 * planned.arguments["ROWS_B"]


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
def test_backward_shapes(capability: int) -> None:
    """The gradient of w contracts the batch: x and g arrive with their first two axes exchanged."""
    x = torch.empty(128, 64, 34, 18, dtype=torch.complex64, device="meta").transpose(0, 1)
    g = torch.empty(128, 64, 34, 18, dtype=torch.complex64, device="meta").transpose(0, 1)
    y = torch.empty(64, 64, 34, 18, dtype=torch.complex64, device="meta")
    planned = kernels.tiled_launch(x, g, torch.empty(34, 18, dtype=torch.bool, device="meta"), y, 1, True)
    code = compile_kernel(planned.kernel, planned.arguments, capability, **planned.options)
    assert planned.arguments["UNIT"] == 4
    assert spills(code) == 0 and code.registers <= 128
    assert fused_multiply_adds(code) == 4 * ROWS_B * ROWS_O


@pytest.mark.parametrize("capability", CAPABILITIES, ids="sm_{}".format)
def test_the_2019_kernel(capability: int) -> None:
    _, code = compiled("planewise_launch", capability)
    assert spills(code) == 0 and code.registers <= 64
    # One thread, one cell: real and imaginary parts come as single floats, as in the original.
    assert code.count("LDG", "128") == 0 and code.count("LDG") >= 4


def test_large_tensors_use_64_bit_offsets() -> None:
    planned, code = compiled("tiled_launch", 90, channels=512, outputs=512, size=512)
    assert str(planned.arguments["OFFSET"]) == "int64"
    assert spills(code) == 0
    planned, _ = compiled("tiled_launch", 90)
    assert str(planned.arguments["OFFSET"]) == "int32"


def test_a_chain_written_as_one_sum_would_be_seen() -> None:
    """What the count guards against: without fusion the same kernel has no FFMA at all."""
    planned, _ = compiled("tiled_launch", 90)
    code = compile_kernel(planned.kernel, planned.arguments, 90, **{**planned.options, "enable_fp_fusion": False})
    assert fused_multiply_adds(code) != 4 * ROWS_B * ROWS_O
    assert code.count("FADD") > 0
