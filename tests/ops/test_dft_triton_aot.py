"""The truncated-DFT kernels as compiled for real GPUs: no spills, wide accesses, the tensor core that was meant."""

from __future__ import annotations

import re
from functools import cache
from unittest import mock

import pytest
import torch
from effort import one_of, some_of
from guarded_interpreter import judged_compiler
from torch import Tensor

pytest.importorskip("triton")

from spectralkernels.aot import MachineCode, NotedLaunch, compile_kernel, compiled_kernel, noted_launches
from spectralkernels.convolution.dft_triton import chain
from spectralkernels.convolution.dft_triton.layout import Layout
from spectralkernels.convolution.dft_triton.watched import FINGERPRINTS
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.tuning import pinned

pytestmark = judged_compiler

LAYERS = {
    # batch, channels, outputs, map, kernel: two ResNet-18 stages, a large kernel, a series
    "32x32-K3": (128, 64, 64, (32, 32), (3, 3)),
    "4x4-K3": (128, 512, 512, (4, 4), (3, 3)),
    "56x56-K7": (32, 64, 64, (56, 56), (7, 7)),
    "270-K5": (64, 128, 256, (270,), (5,)),
}
FORWARD = ("maps", "weight", "product", "inverse")
BACKWARD = ("cotangent", "transposed weight", "product dx", "inverse dx", "product dw", "inverse dw")


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@cache
def launches(layer: str, precision: str, capability: int) -> dict[str, NotedLaunch]:
    """The launches of a forward and a backward pass at compression 0.5; meta tensors have aligned addresses."""
    batch, channels, outputs, size, kernel = LAYERS[layer]
    band = conv_band(size, kernel, compression=0.5)
    starts = tuple(-before for before, _ in band.pad)
    geometry = chain.ChainGeometry(Layout(band.n, band.kept), starts, 1, precision)
    with noted_launches(capability) as found:
        x, weight = empty(batch, channels, *size), empty(outputs, channels, *kernel)
        z = chain.spectrum(batch * channels, geometry, x.device)
        y = chain.forward(x, weight, empty(outputs), None, outputs, geometry, band.out, z=z)
        chain.backward(y, None, z, weight, None, None, geometry, size, chain.Needs(True, True, False, False))
    return dict(zip(FORWARD + BACKWARD, found, strict=True))


@cache
def compiled(layer: str, precision: str, capability: int, name: str) -> MachineCode:
    launch = launches(layer, precision, capability)[name]
    return compile_kernel(launch.kernel, launch.arguments, capability, **launch.options)


def tensor_core_instructions(code: MachineCode) -> dict[str, int]:
    return {kind: code.count(kind) for kind in ("HMMA", "HGMMA", "UTCHMMA") if code.count(kind)}


def check(code: MachineCode, capability: int) -> None:
    """What holds for every kernel of every class."""
    where = f"{code.name} sm_{capability}: {code.registers} registers, {code.stack} bytes of stack"
    # More tensor memory than a multiprocessor has would compile to nothing.
    assert code.count("STG") > 0, where
    assert code.shared <= code.shared_limit, where
    if capability == 90:
        assert code.stack == code.local == code.count("LDL") == code.count("STL") == 0, where
    else:
        # ptxas stops at 64 (or 168) registers, where one block more fits, and keeps a few values on the stack.
        assert code.stack + code.local == 0 or (code.registers in (64, 128, 168) and code.stack <= 32), where


CHECKED = (
    *(("tf32x3", "32x32-K3", name) for name in ("maps", "product", "inverse", "product dw")),
    *(("tf32x3", "56x56-K7", name) for name in ("maps", "inverse")),
    ("tf32x3", "270-K5", "inverse"),
    ("tf32", "32x32-K3", "product dw"),
    ("fp16", "56x56-K7", "maps"),
    ("bf16", "56x56-K7", "inverse"),
    ("bf16x6", "4x4-K3", "product"),
    ("fp32", "56x56-K7", "inverse"),
)


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize("capability", one_of((80, 90, 100)), ids="sm_{}".format)
@pytest.mark.parametrize(("precision", "layer", "name"), CHECKED)
def test_no_spills_and_nothing_beyond_the_limits(precision: str, layer: str, name: str, capability: int) -> None:
    check(compiled(layer, precision, capability, name), capability)


@pytest.mark.drawn
@pytest.mark.parametrize("precision", ["tf32x3", "tf32", "fp16"])
@pytest.mark.parametrize("name", ["maps", "product", "inverse"])
def test_hopper_multiplies_on_tensor_cores_with_wide_accesses(precision: str, name: str) -> None:
    code = compiled("32x32-K3", precision, 90, name)
    # By quadrants a plane is a warp's own, with the tensor core of a warp.
    unit = "HMMA" if precision != "fp16" and name != "product" else "HGMMA"
    assert set(tensor_core_instructions(code)) == {unit}
    times = 3 if precision == "tf32x3" else 1
    kind = "F32" if precision == "fp16" else "TF32"
    assert code.count(unit, kind) == code.count(unit) >= times
    if unit == "HMMA":
        # No number is stored alone into shared memory on its way between two products.
        assert code.count("STS") == code.count("STS", "128") + code.count("STS", "64")
    assert code.count("STG", "128") == code.count("STG") > 0
    assert code.count("LDGSTS", "128") == code.count("LDGSTS")
    # The bias is one float a plane; a matrix of halves may come in 64-bit pieces.
    assert code.count("LDG", "128") + code.count("LDG", "64") >= code.count("LDG") - 1
    # Two blocks of 128 threads, or one of 256, at least.
    assert code.registers * 32 * code.num_warps * (1 if code.num_warps == 8 else 2) <= 65536


@pytest.mark.slow
def test_registers_of_the_default_class_on_hopper() -> None:
    """The figures of the design; a change of more than a tenth wants a reason."""
    expected = {"maps": (158, 8), "product": (207, 4), "inverse": (162, 8), "product dw": (211, 4)}
    for name, (registers, warps) in expected.items():
        code = compiled("32x32-K3", "tf32x3", 90, name)
        assert code.num_warps == warps and code.registers <= min(255, round(1.1 * registers)), name


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize(("capability", "kind"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
@pytest.mark.parametrize("name", ["maps", "product", "inverse"])
def test_the_tensor_core_of_each_architecture(capability: int, kind: str, name: str) -> None:
    wanted = "HMMA" if capability == 90 and name != "product" else kind
    assert set(tensor_core_instructions(compiled("32x32-K3", "tf32x3", capability, name))) == {wanted}


@pytest.mark.slow
def test_fp32_uses_no_tensor_core() -> None:
    for name in ("maps", "product", "inverse"):
        code = compiled("32x32-K3", "fp32", 90, name)
        assert not tensor_core_instructions(code)
        assert code.count("FFMA") >= 256
        check(code, 90)


@pytest.mark.slow
def test_odd_widths_compile() -> None:
    """A row of 35 floats begins at no multiple of 16 bytes: narrow accesses, still no spill."""
    with mock.patch.dict(LAYERS, {"35x33-K5": (32, 24, 24, (35, 33), (5, 5))}):
        for name in ("maps", "inverse"):
            check(compiled("35x33-K5", "tf32x3", 90, name), 90)


@cache
def watched() -> dict[str, NotedLaunch]:
    """The calls of `watched.FINGERPRINTS` that are a single launch on sm_90, by name."""
    found: dict[str, NotedLaunch] = {}
    for named in FINGERPRINTS:
        with noted_launches(90) as noted:
            named.call()
        if len(noted) == 1:
            found[named.name] = noted[0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "at_most"),
    some_of(
        [
            ("tf32x3 forward shared mask", 255),
            ("tf32x3 input_gradient one mask per sample", 255),
            ("tf32x3 weight_gradient one mask per sample", 255),
            ("tf32x3 one mask per sample", 64),
            ("tf32x3 saving bf16", 175),
            ("tf32x3 weight_gradient saved bf16", 255),
            ("tf32 forward frozen", 215),
            ("G128 96x96 K7 tf32x3 forward", 48),
            ("G128 96x96 K7 tf32x3 weight_gradient", 64),
        ],
        4,
    ),
)
def test_masks_and_choices_keep_the_guarantees(what: str, at_most: int) -> None:
    (launch,) = (noted for name, noted in watched().items() if name.endswith(what))
    code = compile_kernel(launch.kernel, launch.arguments, 90, **launch.options)
    check(code, 90)
    assert code.registers <= at_most
    # A mask and the places of modes in it are read number by number; a gradient of a mask is written so.
    scalars = sum(launch.arguments.get(name) is not None for name in ("cell_ptr", "mask_ptr")) * 2
    assert code.count("LDG", "128") >= code.count("LDG") - scalars
    assert code.count("STG", "128") >= code.count("STG") - (launch.arguments.get("dmask_ptr") is not None) > 0
    wide = code.count("LDGSTS", "128") + code.count("LDGSTS", "64")
    # The weights of samples, if they are copied ahead: triton 3.6 does so for twice as many.
    assert wide >= code.count("LDGSTS") - (6 if launch.arguments.get("WEIGHTED") == "k" else 0)


@pytest.mark.parametrize("name", ["maps", "weight", "product", "inverse"])
def test_a_launch_that_overlaps_waits_before_it_touches_memory(name: str) -> None:
    """Never by a rule; where a tile says so, from sm_90 on. 32 x 32 goes by quadrants, its kernel by one matrix."""
    sites = ("analyse", "analyse_dense", "contract", "synthesise", "synthesise_dense")
    with pinned({f"dft_triton.{site}": {"overlap": 2} for site in sites}):
        ahead = {capability: launches.__wrapped__("32x32-K3", "tf32", capability)[name] for capability in (80, 90)}
    assert launches("32x32-K3", "tf32", 90)[name].options.keys() == ahead[80].options.keys() == {"num_warps"}
    assert "OVERLAP" not in ahead[80].arguments
    assert ahead[90].options["launch_pdl"] is True
    ptx = compiled_kernel(ahead[90].kernel, ahead[90].arguments, 90, **ahead[90].options).asm["ptx"]
    assert ptx.count("griddepcontrol.wait") == ptx.count("griddepcontrol.launch_dependents") == 1
    before, behind = ptx.split("griddepcontrol.wait")
    accesses = re.compile(r"\b(ld\.global|st\.global|cp\.async)")
    assert not accesses.search(before) and len(accesses.findall(behind)) > 4
    assert "griddepcontrol" not in behind.split("launch_dependents", 1)[1]


@pytest.mark.slow
def test_too_much_tensor_memory_would_be_seen() -> None:
    """What `check` guards against: the tiles of Hopper, compiled for Blackwell, store nothing."""
    launch = launches("32x32-K3", "tf32x3", 90)["product"]
    code = compile_kernel(launch.kernel, launch.arguments, 100, **launch.options)
    assert code.count("STG") == 0
    with pytest.raises(AssertionError):
        check(code, 100)
