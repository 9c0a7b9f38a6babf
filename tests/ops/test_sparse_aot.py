"""What the compiler makes of the sparse kernels, for GPUs that need not be here: widths, registers, instructions.

Every bound stands beside its reason; the exact figures of one compiler are in results/fingerprints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from effort import one_of
from guarded_interpreter import judged_compiler

from spectralkernels.aot import MachineCode, compile_kernel
from spectralkernels.sparse import bitmap

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
total_power = pytest.importorskip("spectralkernels.ops.threshold_spectrum.rms").total_power

pytestmark = judged_compiler


@triton.jit
def usual_rms_kernel(
    y_ptr,
    rms_ptr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What `rms_kernel` does for a map of usual magnitude."""
    y_ptrs = y_ptr + tl.program_id(0).to(tl.int64) * SIZE
    mean_square = total_power(y_ptrs, 1.0, SIZE, COLUMNS, EVEN, BLOCK) * (1.0 / CELLS)
    tl.store(rms_ptr + tl.program_id(0), tl.sqrt_rn(mean_square))


@dataclass(frozen=True)
class Expected:
    """What the compiler must make of a launch; `instructions` of all architectures, the prologue included."""

    registers: int
    instructions: int
    per: int
    opcodes: dict[tuple[str, ...], int]


DENSE = {("LDL",): 0, ("STL",): 0, ("DFMA",): 0, ("DMUL",): 0, ("DADD",): 0}
THRESHOLD = {("LDG", "64"): 16, ("STG", "64"): 8, ("REDUX",): 8, ("SHFL",): 5, ("BAR",): 3, **DENSE}
"""A coefficient and its partner per load, one packed value per store, one warp-wide sum per word, and a scan of the 32
counts alone. No 128-bit load: a lane holds one coefficient, so that its bits are a word without a shuffle."""
PACKED_TANH = {("LDG", "64"): 17, ("STG", "64"): 9, ("SHFL",): 5, ("MUFU",): 4, ("BAR",): 4, **DENSE}
"""And a loop over what was packed: one value per load and store, and four slow functions, none for what is dropped."""


VARIANTS = (
    *(
        "odd sizes",
        "no activation",
        "an extreme beta",
        "17 columns",
        "usual, 17 columns",
        "compact",
        "compact, derivative of tanh",
    ),
    "16 outputs, weight gradient",
)
"""Launches that differ little from another: compiled for sm_90 only, to save time."""


def launches(variants: bool) -> list[tuple[str, Any, dict[str, Any], dict[str, int], Expected]]:
    """Kernels with the arguments of a real layer: [128, 64, 34, 18], 64 outputs; variants: of odd sizes and the like.

    The bounds are what triton 3.7.1 makes, of the worst of sm_80, sm_90 and sm_100, and a tenth more, for other
    compilers; results/fingerprints holds the exact figures. At 4.3 TB/s an H200 has time for 69 instructions per
    coefficient of the threshold (10 bytes), and for 90 if it is to reach 75 % of a copy; an instruction that works on
    a coefficient stands for 8 of 1024 in 128 threads.
    """
    from spectralkernels.ops.threshold_spectrum.kernels import threshold_kernel
    from spectralkernels.ops.threshold_spectrum.rms import LEAST, NUM_WARPS, rms_kernel
    from spectralkernels.sparse import kernels
    from spectralkernels.sparse.multiply import sparse_multiply_kernel

    c, f, i = torch.int64, torch.float32, torch.int32
    found = []
    four, one, eight = {"num_warps": 4}, {"num_warps": 1}, {"num_warps": 8}

    def threshold(rows: int, columns: int, **choices: bool) -> dict[str, Any]:
        pointers = {"y_ptr": c, "rms_ptr": f, "values_ptr": c, "words_ptr": i}
        plain = {"EVEN": columns == 18, "RELATIVE": False, "SCALED": False, "FULL": True, "TANH": True}
        shape = {"n_coefficients": 128 * 64 * rows * columns, "beta": 0.5, "ROWS": rows, "COLUMNS": columns}
        return {**pointers, **shape, **plain, "APPROXIMATE": True, "AT_ONCE": 128, "BLOCK": bitmap.BLOCK, **choices}

    for name, arguments, most, opcodes in (
        ("plain", threshold(34, 18), 58, PACKED_TANH),
        ("odd sizes", threshold(33, 17), 58, PACKED_TANH),
        ("no activation", threshold(34, 18, TANH=False), 52, THRESHOLD),
        ("a short last block", threshold(34, 18, FULL=False), 66, PACKED_TANH),
        ("an extreme beta", threshold(34, 18, SCALED=True), 62, PACKED_TANH),
        ("relative", threshold(34, 18, SCALED=True, RELATIVE=True), 70, PACKED_TANH),
    ):
        found.append((name, threshold_kernel, arguments, four, Expected(64, most, 8, opcodes)))

    for rows, columns, widest in ((34, 18, "128"), (33, 17, "64")):  # every other map of odd size is not 16-aligned
        cells = {"SIZE": rows * columns, "COLUMNS": columns, "EVEN": columns == 18, "CELLS": rows * rows}
        usual = {"y_ptr": c, "rms_ptr": f, **cells, "BLOCK": 1024}
        loads = 3 if widest == "128" else 5
        opcodes = {("LDG", widest): loads, ("STG",): 1, **DENSE}
        found.append((f"usual, {columns} columns", usual_rms_kernel, usual, four, Expected(48, 46, 5, opcodes)))
        # The way of maps of extreme magnitude alone has ten more loads and a half of the instructions; others skip it.
        arguments = {**usual, "LEAST": LEAST, "AGAIN": 32 * NUM_WARPS}
        opcodes = {("LDG", "128"): loads if widest == "128" else 0, ("LDG",): loads + 10, ("STG",): 1, **DENSE}
        found.append((f"{columns} columns", rms_kernel, arguments, four, Expected(48, 87, 5, opcodes)))

    n = 128 * 64 * 34 * 18
    for compact in (False, True):
        layout = "compact" if compact else "full"
        common = {"words_ptr": i, "offsets_ptr": i, "COMPACT": compact, "BLOCK": bitmap.BLOCK}
        move = {"values_ptr": c, "flat_ptr": c, "n_coefficients": n, **common}
        for tanh, most in ((False, 24), (True, 34)):
            loads = 16 if tanh else 8
            opcodes = {("STG", "128"): 4, ("LDG", "64"): loads, ("SHFL",): 5, **DENSE}
            arguments = {**move, "outputs_ptr": c, "TANH": tanh}
            name = f"{layout}, derivative of tanh" if tanh else layout
            found.append((name, kernels.expand_kernel, arguments, four, Expected(56, most, 8, opcodes)))
        opcodes = {("LDG", "128"): 4, ("STG", "64"): 8, **DENSE}
        found.append((layout, kernels.collect_kernel, move, four, Expected(56, 29, 8, opcodes)))
        slots = {"slots_ptr": i, **common}
        found.append((layout, kernels.word_slots_kernel, slots, one, Expected(40, 70, 1, DENSE)))

    pointers = {"values_ptr": c, "words_ptr": i, "slots_ptr": i, "w_ptr": c, "out_ptr": c}
    sizes = {"frequencies": 34 * 18, "TILE_ROW": 8, "TILE_FREQUENCY": 32}
    for name, rows, terms, outputs, tile, warps, loads in (
        ("64 outputs", 128, 64, 64, 32, eight, 5),
        ("64 outputs, weight gradient", 64, 128, 64, 32, eight, 5),
        ("16 outputs", 128, 64, 16, 16, four, 6),
        ("16 outputs, weight gradient", 64, 128, 16, 16, four, 6),
    ):
        counts = {"rows": rows, "terms": terms, "outputs": outputs, "TRANSPOSED": "gradient" in name}
        # Four weights and one packed value a lane (two where four warps expand the map), and no narrower ones.
        opcodes = {("LDG", "64"): loads, ("STG", "64"): 32, **DENSE}
        # 128 registers let two programs of eight warps, or four of four, share an SM.
        expected = Expected(128, 825, 1, opcodes)
        arguments = {**pointers, **sizes, **counts, "TILE_OUT": tile}
        found.append((name, sparse_multiply_kernel, arguments, warps, expected))
    return [launch for launch in found if variants or launch[0] not in VARIANTS]


@pytest.mark.slow
@pytest.mark.parametrize("capability", one_of((80, 90, 100)))
def test_machine_code(capability: int):
    """No spills, no local memory, shared memory, registers and instructions within bounds, the widest accesses."""
    for name, kernel, arguments, options, expected in launches(variants=capability == 90):
        code = compile_kernel(kernel, arguments, capability, **options)
        what = f"{code.name}, {name}"
        assert code.stack == 0 and code.local == 0, what
        assert code.shared <= 8192, what
        assert code.registers <= expected.registers, (what, code.registers)
        per = sum(not text.startswith("NOP") for text in code.instructions) / expected.per
        assert per <= expected.instructions, (what, per)
        for (opcode, *modifiers), count in expected.opcodes.items():
            assert code.count(opcode, *modifiers) == count, (what, opcode, modifiers, code.opcodes)
        if code.name == "sparse_multiply_kernel":
            # Blackwell has an instruction for two FMAs
            assert code.count("FFMA") + 2 * code.count("FFMA2") == 128, "four FMAs per complex product, 32 a lane"


def test_the_threshold_leaves_the_instructions_that_the_copy_rate_allows():
    """A quarter kept, as in the target: on an H200, issuing takes no longer than copying the bytes.

    A block of 1,024 then keeps 256 or some more: three steps of its loop over them, at most.
    """
    found = {name: (kernel, arguments, options) for name, kernel, arguments, options, _ in launches(variants=True)}
    lanes_per_second = 132 * 4 * 32 * 1.75e9
    for name in ("plain", "odd sizes"):
        kernel, arguments, options = found[name]
        code = compile_kernel(kernel, arguments, 90, **options)
        loop = loop_of(code)
        assert sum(".EX2" in text or ".RCP" in text for text in loop) == code.count("MUFU") == 4
        issued = [text for text in code.instructions if not text.startswith("NOP")] + 2 * loop
        per, seconds_of_copy = len(issued) / 8, (8 + 1 / 8 + 2) / 4.3e12
        assert per / lanes_per_second <= seconds_of_copy, per
        # an SM finishes 16 lanes of these per cycle and 128 of the others, so one costs as much as eight
        slow = sum(opcode in text for text in issued for opcode in ("MUFU", "POPC", "REDUX")) / 8
        assert 8 * slow <= per, "the slow unit is not what limits it"


def loop_of(code: MachineCode) -> list[str]:
    """The instructions of the one loop: from the target of a branch back to that branch."""
    targets = ((at, re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)) for at, text in enumerate(code.instructions))
    back = [(int(found[1], 16) // 16, at) for at, found in targets if found and int(found[1], 16) < 16 * at]
    ((first, last),) = back
    return list(code.instructions[first : last + 1])
