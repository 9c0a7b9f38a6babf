"""The fused depthwise convolution: what it refuses and why, its classes, its matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from depthwise_geometry import geometry_of

from spectralkernels.convolution import fused_depthwise as package
from spectralkernels.convolution.fused.precision import PRECISIONS
from spectralkernels.convolution.fused_depthwise import IMPLEMENTATIONS, fused_depthwise, supports
from spectralkernels.convolution.fused_depthwise.matrices import operators, tiles
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.errors import RangeError

CPU = torch.device("cpu")


def call_arguments(**changes: Any) -> dict[str, Any]:
    size, kernel = changes.get("size", (8, 8)), changes.get("kernel", (3, 3))
    channels, outputs = changes.get("channels", 4), changes.get("outputs", 4)
    groups = changes.get("groups", 4)
    return {
        "x": torch.zeros(1, channels, *size, dtype=changes.get("dtype", torch.float32)),
        "weight": torch.zeros(outputs, channels // groups, *kernel),
        "bias": None,
        "band": conv_band(size, kernel, compression=changes.get("compression", 0.5)),
        "groups": groups,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 2}, "groups, channels and out_channels must be equal, got 2, 4 and 4"),
        ({"outputs": 8}, "groups, channels and out_channels must be equal, got 4, 4 and 8"),
        ({"dtype": torch.float64}, "it takes float32, float16 or bfloat16 maps, got float64"),
        ({"size": (65, 8)}, r"map, output and kernel must fit 64 x 64, got (65, 8)"),
        ({"kernel": (3, 67)}, r"map, output and kernel must fit 64 x 64"),
        ({"size": (64, 64), "kernel": (31, 31), "compression": 0.0}, "it holds 32 frequencies per axis"),
        ({}, None),
        ({"size": (64, 64), "kernel": (31, 31)}, None),
        ({"size": (1, 1), "kernel": (1, 1), "compression": 0.0}, None),
    ],
)
def test_what_it_cannot_do_it_says(changes: dict[str, Any], message: str | None):
    reason = supports(**call_arguments(**changes))
    if message is None:
        assert reason is None
    else:
        assert reason is not None and message in reason


def test_a_half_precision_class_holds_a_full_band():
    full = call_arguments(size=(64, 64), kernel=(31, 31), compression=0.0)
    found = {entry.name: entry.supports(**full) for entry in IMPLEMENTATIONS}
    assert found["fused_depthwise_bf16"] is None and found["fused_depthwise_fp16"] is None
    assert "take a half-precision class" in str(found["fused_depthwise_tf32"])


def test_fp32_holds_planes_of_32():
    """Beyond, its loops spill, and Triton 3.7 gives sm_100's tensor cores some of its products."""
    names = [entry for entry in IMPLEMENTATIONS if entry.name == "fused_depthwise_fp32"]
    (fp32,) = names
    assert fp32.supports(**call_arguments(size=(32, 31), kernel=(31, 7))) is None
    for large in (call_arguments(size=(33, 8)), call_arguments(size=(32, 32), kernel=(7, 7), compression=0.0)):
        reason = fp32.supports(**large)
        assert reason is not None and "in fp32 it holds maps, outputs and kernels of 32 x 32 and 16 freq" in reason
        assert "take bf16x6 or tf32x3, as accurate" in reason


def test_what_a_tensor_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch):
    """On sm_100 a block has 512 columns; a kernel that needs more compiles to nothing."""
    large = call_arguments(size=(56, 56), kernel=(31, 31))
    full_band = call_arguments(size=(32, 32), kernel=(7, 7), compression=0.0)
    small = call_arguments(size=(32, 32), kernel=(31, 31))
    for core, refused in (("mma", ()), ("wgmma", ()), ("tcgen05", ((large, "bf16x6"), (full_band, "tf32x3")))):
        monkeypatch.setattr(package, "tensor_core", lambda device, core=core: core)
        for arguments in (large, full_band, small):
            for name in ("tf32x3", "bf16x3", "bf16x6", "bf16"):
                reason = supports(**arguments, accuracy=name)
                expected = core == "tcgen05" and (
                    (arguments is large and name == "bf16x6") or (arguments is full_band and name != "bf16")
                )
                assert (reason is not None) == expected, (core, name)
        for arguments, name in refused:
            assert "overflow this GPU's registers and tensor memory" in str(supports(**arguments, accuracy=name))


def test_an_unknown_class_is_answered_with_the_known_ones():
    with pytest.raises(RangeError, match=r"precision must be one of tf32x3, tf32, .*, fp32, got 'fp8'"):
        fused_depthwise(**call_arguments(), accuracy="fp8")


def test_classes_have_names_and_tolerances():
    assert [entry.name for entry in IMPLEMENTATIONS] == [
        "fused_depthwise",
        "fused_depthwise_tf32",
        "fused_depthwise_bf16",
        "fused_depthwise_fp16",
        "fused_depthwise_fp16x3",
        "fused_depthwise_bf16x3",
        "fused_depthwise_bf16x6",
        "fused_depthwise_fp32",
    ]
    for entry in IMPLEMENTATIONS:
        assert entry.tolerance is not None and set(entry.tolerance.relative) == {"float32", "float16", "bfloat16"}


def test_matrices_outside_the_band_and_the_planes_are_zero():
    geometry = geometry_of(conv_band((13, 9), (4, 6), compression=0.4))
    made, tile = operators(geometry, PRECISIONS["fp32"], CPU), tiles(geometry)
    assert (tile.size, tile.taps, tile.u, tile.v) == ((16, 16), (16, 16), 8, 8)
    assert made.analyse_map.rows[: tile.u, : geometry.size[0]].count_nonzero() > 0
    assert not made.analyse_map.rows[:, geometry.size[0] :].any()
    assert not made.analyse_map.columns[:, geometry.size[1] :].any()
    kept_rows = made.analyse_map.rows.unflatten(0, (2, tile.u))
    assert not kept_rows[:, geometry.kept[0] :].any()
    assert torch.equal(made.synthesise_map.rows, made.analyse_map.rows.t())
    assert torch.equal(made.reflected.rows[: tile.u], made.analyse_taps.rows[: tile.u])
    assert torch.equal(made.reflected.rows[tile.u :], -made.analyse_taps.rows[tile.u :])
