"""What a library convolution may be off by: a float32 sum of many terms passes the gate, and TF32 does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.convolution.implementations import DIRECT
from spectralkernels.declare import Case, Operation, Tolerance
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.ops import load_operations
from spectralkernels.tf32 import round_to_tf32

CONV = load_operations()["band_limited_conv2d"]
WITH_DIRECT = [each for each in load_operations().values() if any(s.name == "direct" for s in each.subjects)]


def case(channels: int, kernel: int, **changes: str | int) -> Case:
    """A full-band case of these channels and this kernel."""
    found = next(iter(CONV.cases("quick")))[0]
    changed = {**dict(found.params), "in_channels": channels, "kernel_size": kernel, "groups": 1, **changes}
    return replace(found, params=tuple(changed.items()))


def problem(channels: int, kernel: int, kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A padded map [C, 12 + K - 1, ...], kernels [2, C, K, K], and their convolution in float64."""
    x, w = feature_map(kind, (1, channels, 12, 12), seed)[0], he_kernel((2, channels, kernel, kernel), seed)
    padded = F.pad(x, ((kernel - 1) // 2, kernel // 2) * 2)
    return padded, w, F.conv2d(padded.double().unsqueeze(0), w.double())[0]


def one_after_another(x: Tensor, w: Tensor) -> Tensor:
    """Every product of an output added in turn, in float32."""
    y = torch.zeros(len(w), 12, 12)
    for c, i, j in torch.cartesian_prod(*map(torch.arange, w.shape[1:])).tolist():
        y += w[:, c, i, j, None, None] * x[c, i : i + 12, j : j + 12]
    return y


def winograd(x: Tensor, w: Tensor) -> Tensor:
    """F(4 x 4, 3 x 3) of Lavin and Gray (2016), channels added in turn, in float32."""
    of_map = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0]]
    b = torch.tensor([*of_map, [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=torch.float32)
    of_taps = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
    g = torch.tensor(of_taps, dtype=torch.float32) / 24
    a = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]).float()
    g[0, 0] = 0.25
    maps, taps = b @ x.unfold(1, 6, 4).unfold(2, 6, 4) @ b.T, g @ w @ g.T
    y = torch.zeros(len(w), *maps.shape[1:])
    for c in range(len(x)):
        y += taps[:, c, None, None] * maps[c]
    return (a @ y @ a.T).permute(0, 1, 3, 2, 4).reshape(len(w), 12, 12)


def relative_error(y: Tensor, want: Tensor) -> float:
    return float((y.double() - want).norm() / want.norm())


@pytest.mark.parametrize("kind", ["photo", "white"])
@pytest.mark.parametrize(
    ("way", "channels", "kernel"),
    [
        (one_after_another, 3, 1),
        (one_after_another, 64, 7),
        (one_after_another, 32, 21),
        (winograd, 16, 3),
        (winograd, 64, 3),
        (winograd, 512, 3),
    ],
)
def test_a_long_sum_in_float32_passes_and_tf32_does_not(
    way: Callable[[Tensor, Tensor], Tensor], channels: int, kernel: int, kind: str, seed: int
) -> None:
    x, w, want = problem(channels, kernel, kind, seed)
    allowed = DIRECT.at(case(channels, kernel))
    assert relative_error(way(x, w), want) <= 0.8 * allowed, DIRECT.because
    assert relative_error(F.conv2d(round_to_tf32(x).unsqueeze(0), round_to_tf32(w))[0], want) > 3 * allowed


def test_the_allowance_grows_with_the_sum_and_only_in_float32() -> None:
    few, many = case(4, 3), case(64, 31)
    assert DIRECT.at(few) == DIRECT.relative["float32"] == CONV.tolerance.at(many)
    assert DIRECT.at(many) == pytest.approx(3 * 2**-24 * (64 * 31 * 31) ** 0.5)
    assert DIRECT.at(case(64, 31, groups=64)) == DIRECT.at(case(1, 31)) < DIRECT.at(many) / 7
    for dtype in ("float64", "float16", "bfloat16"):
        assert DIRECT.at(replace(many, dtype=dtype)) == CONV.tolerance.relative[dtype]
    series = Case("band_limited_conv1d", (("in_channels", 4096), ("length", 9), ("kernel_size", 8), ("groups", 2)))
    assert DIRECT.at(series) == pytest.approx(3 * 2**-24 * (2048 * 8) ** 0.5)
    assert Tolerance({"float32": 1e-3}, "no need").at(many) == 1e-3


@pytest.mark.parametrize("operation", WITH_DIRECT, ids=lambda operation: operation.name)
def test_every_library_convolution_in_float32_has_it(operation: Operation) -> None:
    coarse = ("tf32", "bf16")
    direct = [each for each in operation.subjects if each.name.startswith("direct")]
    strict = [each for each in direct if not each.name.endswith(coarse)]
    assert strict
    for subject in strict:
        assert subject.tolerance is DIRECT, subject.name
        for found, _ in operation.cases("smoke"):
            assert subject.tolerance.at(found) >= operation.tolerance.at(found)
