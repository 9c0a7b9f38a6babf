"""Every site takes other tiles than its rule's, and the answer stays: what a search on a GPU may try, under Triton's
interpreter. One test runs the class in a process of its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from guarded_interpreter import interpreter

import spectralkernels as sk
from spectralkernels.tuning import noted_choices, pinned

TILES = {
    "dft_triton.analyse": [{"h": 16}, {"u": 8}, {"v": 8}, {"v": 16, "warps": 4}, {"stages": 2}],
    "dft_triton.synthesise": [{"h": 8}, {"u": 8}, {"v": 8}, {"stages": 4}],
    "dft_triton.analyse_dense": [{"m": 16}, {"n": 32}, {"k": 16}, {"m": 128, "warps": 8}],
    "dft_triton.synthesise_dense": [{"m": 32}, {"n": 16}, {"k": 64}],
    "dft_triton.contract": [{"m": 32}, {"n": 64}, {"k": 16}, {"m": 64, "n": 16, "warps": 2}, {"shares": 2}],
    "fused_depthwise.convolve": [{"images": 1}, {"images": 4}, {"warps": 4, "images": 2}],
    "fused_series.convolve": [{"images": 1}, {"images": 4}, {"warps": 4, "images": 2}],
}


def call(site: str, impl: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(answer, float64 reference) of a call whose launches choose at `site`."""
    if site == "fused_series.convolve":
        x, weight = torch.randn(3, 2, 1024), torch.randn(2, 1, 31)
        function: Any = sk.band_limited_conv1d
        keywords = {"compression": 0.5, "groups": 2, "grid": 1088}
    else:
        size = (9, 7) if "dense" in site or "contract" in site else (24, 20)
        depthwise = site.startswith("fused")
        x, weight = torch.randn(3, 4, *size), torch.randn(4, 1 if depthwise else 4, 3, 3)
        function, keywords = sk.band_limited_conv2d, {"compression": 0.5, "groups": 4 if depthwise else 1}
    exact = function(x.double(), weight.double(), impl="torch_fft", **keywords)
    return function(x, weight, impl=impl, **keywords), exact


@interpreter
class TestInterpreted:
    @pytest.mark.drawn("site")
    @pytest.mark.parametrize(
        ("site", "tile"), [(site, tile) for site, tiles in TILES.items() for tile in tiles], ids=str
    )
    def test_another_tile_gives_the_same_answer(self, seed: int, poisoned: None, site: str, tile: dict[str, int]):
        impl = "dft_triton" if site.startswith("dft") else site.split(".")[0]
        with pinned({site: tile}), noted_choices() as noted:
            y, exact = call(site, impl)
        taken = [choice for choice in noted.values() if choice.site == site]
        assert taken, list(noted)
        assert all(choice.source == "pin" and tile.items() <= choice.tile.items() for choice in taken)
        assert float((y.double() - exact).norm() / exact.norm()) <= 3e-6
