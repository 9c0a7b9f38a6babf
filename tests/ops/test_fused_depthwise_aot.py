"""The fused depthwise kernels as compiled for real GPUs: registers, shared memory, spills, tensor-core instructions.

The table is what the design asks for, the larger of what triton 3.6.0 and 3.7.1 make of it; a change that breaks a row
states its reason here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from depthwise_geometry import geometry_of
from guarded_interpreter import judged_compiler

pytest.importorskip("triton")

from spectralkernels.aot import MachineCode, NotedLaunch, compile_kernel, noted_launches
from spectralkernels.convolution.fused.precision import PRECISIONS
from spectralkernels.convolution.fused_depthwise import launches, shared_memory
from spectralkernels.convolution.fused_depthwise.matrices import MapGeometry
from spectralkernels.convolution.geometry import conv_band

pytestmark = judged_compiler

MAPS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Expected:
    """registers and spilled bytes per thread, shared KiB per block: at most. body: instructions of the loop over planes
    times warps, so warp instructions per plane, at most. wide: every load and store of a plane is 128 bits."""

    registers: int
    shared: int
    mma: str
    body: int
    spilled: int = 0
    wide: bool = True


# (pass, side, taps, class): one row per architecture. HMMA is mma.sync: a 32 x 32 plane has products of 32 rows, and
# wgmma or tcgen05 take at least 64, so they would do twice the arithmetic; one warp then owns a plane without barriers.
# A plane of 28 bfloat16 begins at multiples of 8 bytes and has no 128-bit access.
EXPECTED = {
    ("forward", 32, 31, "bf16"): {
        80: Expected(160, 10, "HMMA", 480),
        90: Expected(144, 10, "HMMA", 480),
        100: Expected(144, 10, "HMMA", 410),
    },
    # Each plane is scaled by its largest number.
    ("forward", 32, 31, "fp16"): {90: Expected(160, 11, "HMMA", 630)},
    # Rounding four operands to tf32 is 40 % of the loop. sm_100 spills 16 bytes; two warps would not, but need 1558.
    ("forward", 32, 31, "tf32"): {
        90: Expected(168, 24, "HMMA", 1150),
        100: Expected(168, 24, "HMMA", 1200, spilled=16),
    },
    ("forward", 32, 31, "tf32x3"): {
        80: Expected(168, 44, "HMMA", 1850),
        90: Expected(168, 44, "HMMA", 1850),
        100: Expected(168, 44, "HMMA", 1850),
    },
    # Half the products of tf32x3 and half its bytes; splitting times 2^11 takes a tenth of the loop, scaling less.
    ("forward", 32, 31, "fp16x3"): {
        80: Expected(104, 24, "HMMA", 1790),
        90: Expected(104, 24, "HMMA", 1750),
        100: Expected(112, 24, "HMMA", 1520),
    },
    ("forward", 28, 29, "bf16"): {
        80: Expected(168, 10, "HMMA", 510, wide=False),
        90: Expected(168, 10, "HMMA", 510, wide=False),
        100: Expected(168, 10, "HMMA", 430, wide=False),
    },
    ("forward", 56, 31, "bf16"): {
        80: Expected(184, 40, "HMMA", 2800),
        90: Expected(128, 40, "HGMMA", 1400),
        100: Expected(168, 48, "UTCHMMA", 4200),
    },
    # Two warps, for the registers of the pieces.
    ("forward", 32, 31, "bf16x3"): {
        80: Expected(144, 24, "HMMA", 1520),
        90: Expected(144, 24, "HMMA", 1500),
        100: Expected(144, 24, "HMMA", 1350),
    },
    ("forward", 32, 31, "bf16x6"): {
        80: Expected(192, 34, "HMMA", 2490),
        90: Expected(192, 34, "HMMA", 2450),
        100: Expected(192, 34, "HMMA", 2230),
    },
    ("forward", 32, 31, "fp32"): {
        80: Expected(168, 24, "FFMA", 5150),
        90: Expected(168, 24, "FFMA", 5150),
        100: Expected(168, 24, "FFMA", 5150),
    },
    # On mma.sync planes come in four blocks of rows, else they would spill. What spills on sm_90 is mostly the kernel's
    # spectrum, read 32 numbers a plane: the loop is a quarter shorter than that of `tl.dot`'s own split, which spills
    # 16. sm_100 is the slow path: tensor memory is full, and what it cannot hold fills the registers. The spilled bytes
    # stay in the L1 cache.
    ("forward", 56, 31, "tf32x3"): {
        80: Expected(255, 144, "HMMA", 12000),
        90: Expected(255, 160, "HGMMA", 6700, spilled=296),
        100: Expected(255, 160, "UTCHMMA", 11200, spilled=48),
    },
    ("forward", 56, 31, "fp16x3"): {
        80: Expected(255, 80, "HMMA", 8000),
        90: Expected(192, 80, "HGMMA", 5450),
        100: Expected(208, 81, "UTCHMMA", 10300),
    },
    ("forward", 56, 31, "bf16x3"): {
        80: Expected(255, 80, "HMMA", 8600),
        90: Expected(192, 80, "HGMMA", 4000),
        100: Expected(255, 81, "UTCHMMA", 8700),
    },
    ("forward", 56, 31, "bf16x6"): {
        80: Expected(255, 108, "HMMA", 15000),
        90: Expected(255, 120, "HGMMA", 7000),
    },
    # 2 x 16 columns of modes are fewer than wgmma takes, so the first products are mma.sync too: blocks of rows again.
    ("forward", 40, 3, "tf32x3"): {90: Expected(255, 80, "HGMMA", 7400)},
    # The addresses of the modes come on top of full registers.
    ("forward keeping modes", 56, 31, "tf32x3"): {
        80: Expected(255, 144, "HMMA", 12800, spilled=8, wide=False),
        90: Expected(255, 160, "HGMMA", 7400, spilled=424, wide=False),
    },
    ("dx", 32, 31, "bf16"): {90: Expected(144, 10, "HMMA", 480), 100: Expected(144, 10, "HMMA", 410)},
    ("dw", 32, 31, "bf16"): {
        90: Expected(168, 8, "HMMA", 320, wide=False),  # the sums of 31 x 31 taps are stored once, 32 bits each
        100: Expected(168, 8, "HMMA", 320, wide=False),
    },
    ("dw", 32, 31, "tf32x3"): {
        80: Expected(152, 20, "HMMA", 830, wide=False),
        90: Expected(152, 20, "HMMA", 830, wide=False),
    },
    ("dw", 32, 31, "fp16x3"): {90: Expected(176, 20, "HMMA", 1650, wide=False)},  # all columns at once
    ("dw", 32, 31, "bf16x3"): {90: Expected(180, 16, "HMMA", 1330, wide=False)},
    ("dw", 32, 31, "bf16x6"): {90: Expected(136, 17, "HMMA", 1290, wide=False)},
    ("dw", 32, 31, "fp32"): {90: Expected(128, 28, "FFMA", 4950, wide=False)},
    ("dw from modes", 56, 31, "tf32x3"): {
        80: Expected(136, 24, "HMMA", 2260, wide=False),
        90: Expected(136, 24, "HMMA", 2260, wide=False),
    },
}
ROWS = [
    pytest.param(*key, capability, wanted, id="-".join(map(str, (*key, f"sm_{capability}"))))
    for key, rows in EXPECTED.items()
    for capability, wanted in rows.items()
]


def planned(kind: str, side: int, taps: int, name: str, capability: int) -> NotedLaunch:
    """The launch that this layer would get at c = 0.5; meta tensors have aligned addresses, as fresh ones do."""
    geometry, chosen = layer(side, taps), PRECISIONS[name]
    maps, batch, channels = MAPS.get(name, torch.float32), 8, 768

    def empty(*shape: int, dtype: torch.dtype = maps) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    x, y = empty(batch, channels, *geometry.size), empty(batch, channels, *geometry.out)
    weight, modes = empty(channels, 1, *geometry.taps), None
    if kind.endswith("modes"):
        modes = empty(batch, channels, geometry.kept_reals, dtype=chosen.kept(maps))
    with noted_launches(capability) as noted:
        if kind.startswith("forward"):
            launches.convolve_launch(x, weight, empty(channels), y, modes, geometry, chosen).run()
        elif kind == "dx":
            launches.map_gradient_launch(y, weight, x, geometry, chosen).run()
        else:
            count = launches.partial_sums(batch, channels, geometry, chosen)
            sums = empty(count, channels, *geometry.taps, dtype=torch.float32)
            saved = (x, None) if modes is None else (None, modes)
            launches.weight_gradient_launch(y, *saved, sums, geometry, chosen).run()
    return noted[0]


def layer(side: int, taps: int) -> MapGeometry:
    return geometry_of(conv_band((side, side), (taps, taps), compression=0.5))


@cache
def compiled(kind: str, side: int, taps: int, name: str, capability: int) -> MachineCode:
    launch = planned(kind, side, taps, name, capability)
    return compile_kernel(launch.kernel, launch.arguments, capability, **launch.options)


def loop_body(code: MachineCode) -> int:
    """Instructions between the farthest backward branch and its target; SASS addresses count 16 bytes each."""
    targets = ((at, re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)) for at, text in enumerate(code.instructions))
    spans = [at + 1 - int(found[1], 16) // 16 for at, found in targets if found and int(found[1], 16) // 16 < at]
    return max(spans)


@pytest.mark.drawn("kind", "side", "name", "capability")
@pytest.mark.parametrize(("kind", "side", "taps", "name", "capability", "wanted"), ROWS)
def test_machine_code(kind: str, side: int, taps: int, name: str, capability: int, wanted: Expected):
    code = compiled(kind, side, taps, name, capability)
    assert code.registers <= wanted.registers
    assert code.stack + code.local <= wanted.spilled
    assert code.shared <= wanted.shared * 1024 <= code.shared_limit
    assert loop_body(code) * code.num_warps <= wanted.body
    products = {opcode for opcode in ("HMMA", "HGMMA", "UTCHMMA") if code.count(opcode)} or {"FFMA"}
    assert wanted.mma in products
    if kind in ("forward", "dx") and side != 40:
        assert products == {wanted.mma}
        if capability == 80:
            assert code.shared <= shared_memory(layer(side, taps), PRECISIONS[name])
    # Of the class: no float32 multiplication but those of spectra, and operands of the type it is named after.
    suffix = {"bf16": "BF16", "tf32": "TF32", "tf32x3": "TF32", "bf16x3": "BF16", "bf16x6": "BF16"}.get(name)
    if suffix and wanted.mma != "UTCHMMA" and kind != "dw":
        assert code.count(wanted.mma, suffix) == code.count(wanted.mma)
    if wanted.wide:
        assert code.count("STG") == code.count("STG", "128") > 0
        assert code.count("LDGSTS") == code.count("LDGSTS", "128")


@pytest.mark.slow
def test_terms_cost_as_many_products():
    single, triple, six = (compiled("forward", 32, 31, name, 90) for name in ("tf32", "tf32x3", "bf16x6"))
    assert triple.count("HMMA") * triple.num_warps == 3 * single.count("HMMA") * single.num_warps
    # A bfloat16 product is twice as deep as a tf32 one.
    assert six.count("HMMA") == triple.count("HMMA")


def test_arithmetic_is_half_of_a_complex_row_transform():
    """Per plane of 32 x 32 and 16 x 16 kept: four products of 32 x 32 x 32, 16 instructions of 16 x 8 x 16 each."""
    code = compiled("forward", 32, 31, "bf16", 90)
    kernel_transform = 2 * 16
    assert code.count("HMMA") == 4 * 16 + kernel_transform


def test_watched_launches_are_the_ones_of_real_layers():
    assert launches._SMALL == layer(32, 31)
    assert launches._MEDIUM == layer(28, 29)
    assert launches._LARGE == layer(56, 31)
