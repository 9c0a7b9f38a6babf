"""What the tests of fft-conv-pytorch ask of a convolution by FFT, of our functions and layers: answers and gradients.

Its product of channels, groups, kernels, paddings, strides, dilations and input sizes, in one and two dimensions; three
dimensions have no counterpart here.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from effort import EFFORT, draws
from torch import Tensor, nn

import spectralkernels as sk

PRODUCT = [
    dict(
        zip(("channels", "out_channels", "groups", "kernel", "padding", "stride", "dilation", "size"), row, strict=True)
    )
    for row in itertools.product((2, 3), (2, 3), (1, 2, 3), (2, 3), (0, 1, "same"), (1, 2), (1, 2), (7, 8))
    if row[4] != "same" or row[5:7] == (1, 1)
]
OURS: dict[int, Any] = {1: sk.band_limited_conv1d, 2: sk.band_limited_conv2d}
LAYERS: dict[int, Any] = {1: sk.nn.BandLimitedConv1d, 2: sk.nn.BandLimitedConv2d}


def drawn(seed: int, count: int) -> list[dict[str, Any]]:
    return PRODUCT if EFFORT > 1 else random.Random(seed).sample(PRODUCT, len(draws(count)))


def convolved(case: dict[str, Any], axes: int) -> tuple[Tensor, nn.Module, dict[str, Any]]:
    """(x, torch's layer, its options)."""
    groups = math.gcd(case["channels"], case["out_channels"], case["groups"])
    options = {"padding": case["padding"], "stride": case["stride"], "dilation": case["dilation"], "groups": groups}
    kind = nn.Conv1d if axes == 1 else nn.Conv2d
    layer = kind(case["channels"], case["out_channels"], case["kernel"], **options, dtype=torch.float64)
    return torch.randn(2, case["channels"], *[case["size"]] * axes, dtype=torch.float64), layer, options


def gradients(y: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y.square().sum(), (x, *parameters))


@pytest.mark.parametrize("impl", ["auto", "dft_gemm", "direct"])
@pytest.mark.parametrize("axes", [1, 2])
def test_the_function(axes: int, impl: str, seed: int):
    for case in drawn(seed, 40):
        x, layer, options = convolved(case, axes)
        weight, bias = layer.weight, layer.bias
        y = OURS[axes](x.requires_grad_(), weight, bias, **options, impl=impl)
        want = getattr(F, f"conv{axes}d")(x, weight, bias, **options)
        torch.testing.assert_close(y, want)
        for ours, theirs in zip(gradients(y, x, weight, bias), gradients(want, x, weight, bias), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("axes", [1, 2])
def test_the_layer(axes: int, seed: int):
    for case in drawn(seed, 40):
        x, layer, options = convolved(case, axes)
        ours = LAYERS[axes](case["channels"], case["out_channels"], case["kernel"], **options, dtype=torch.float64)
        ours.load_state_dict(layer.state_dict())
        answers = [each(x.requires_grad_()) for each in (ours, layer)]
        torch.testing.assert_close(*answers)
        found, want = (gradients(y, x, *each.parameters()) for y, each in zip(answers, (ours, layer), strict=True))
        torch.testing.assert_close(found, want)
