"""What a case of a band-limited convolution is made of and costs, in one and in two dimensions alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from spectralkernels.checks import check_group_sizes
from spectralkernels.convolution.cost import conv_cost
from spectralkernels.declare import Case, Cost
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.spectra import Band


def case_inputs(case: Case, band: Band, device: str) -> dict[str, Any]:
    """The keywords of every implementation: maps of the case's kind, a fresh He kernel, a bias off zero."""
    groups, dtype = case["groups"], getattr(torch, case.dtype)
    tensors = {
        "x": feature_map(case["input"], (case["batch"], case["in_channels"], *band.size), case.seed),
        "weight": he_kernel((case["out_channels"], case["in_channels"] // groups, *band.kernel), case.seed),
        "bias": torch.linspace(-0.5, 0.5, case["out_channels"]),
    }
    placed = {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}
    return {**placed, "band": band, "groups": groups}


def case_cost(case: Case, band: Band) -> Cost:
    """The floor of a case. ShapeError where its groups do not divide its channels."""
    check_group_sizes(case["groups"], case["in_channels"], case["out_channels"])
    itemsize = getattr(torch, case.dtype).itemsize
    return conv_cost(case["batch"], case["in_channels"], case["out_channels"], case["groups"], band, itemsize)


def sum_error(case: Case) -> float:
    """The relative error that a library convolution in float32 needs: it grows like the root of the terms of its sum.

    A sum of n products, one after another, is off by 0.17 to 0.32 sqrt(n) 2^-24 (1 to 512 channels, K = 3 to 31: 3.7e-6
    at 64 channels and K = 31), Winograd's F(4 x 4, 3 x 3) by 0.5 to 1.6 of it (4.4e-6 at 512 channels): twice the worst
    is allowed. TF32, 3e-4 and more, is outside.
    """
    if case.dtype != "float32":
        return 0.0
    named = dict(case.params)
    axes, groups = 2 if "height" in named else 1, int(named.get("groups", 1))
    terms = case["in_channels"] // groups * case["kernel_size"] ** axes
    return float(3.0 * 2.0**-24 * terms**0.5)


def observed(band: Band) -> Mapping[str, float]:
    """What the band really drops and keeps."""
    achieved = band.achieved_compression
    return {"achieved_compression": achieved, "kept_fraction": 1.0 - achieved}
