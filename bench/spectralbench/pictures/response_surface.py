"""The frequency response of a network at a photograph and at an impulse, convolved and in a band (plot P29).

Source: Stamatescu and McDonnell 2018, Figures 3 to 6.
"""

from __future__ import annotations

import copy

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor, nn

import spectralkernels as sk
from spectralbench.pictures import photograph
from spectralbench.plot.style import Page, finish_plain, panels

SIDE, COMPRESSION = 64, 0.75
SPAN = 80.0
"""Decibels below the largest response that colours tell apart."""


def draw() -> Page:
    """Maps of |F(g)| in dB: native above, band-limited below; a photograph and an impulse."""
    torch.manual_seed(0)
    native = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    band = sk.nn.convert(copy.deepcopy(native), compression=COMPRESSION).model
    probes: dict[str, Tensor | sk.diagnose.Impulse] = {
        "a photograph": photograph(SIDE).float()[None],
        "an impulse": sk.diagnose.Impulse(1, SIDE, SIDE),
    }
    models = {"native layers": native, f"band-limited, c = {COMPRESSION:g}": band}
    found = {
        (layers, probe): sk.diagnose.frequency_response(model, given).decibels[0]
        for layers, model in models.items()
        for probe, given in probes.items()
    }
    top = max(float(map_.max()) for map_ in found.values())
    figure, axes = panels(2, 2, sharex=False, sharey=False)
    figure.set_figheight(7.4)
    half = SIDE // 2
    for (title, map_), ax in zip(found.items(), [ax for row in axes for ax in row], strict=True):
        ax.imshow(map_.numpy(), cmap="cividis", vmin=top - SPAN, vmax=top, extent=(-half, half, half, -half))
        ax.set_title(f"{title[0]}, at {title[1]}", fontsize="small")
        ax.set_xlabel("kx")
        ax.set_ylabel("ky")
        ax.grid(visible=False)
    bar = figure.colorbar(ScalarMappable(Normalize(top - SPAN, top), "cividis"), ax=axes[0] + axes[1], shrink=0.6)
    bar.set_label("response (dB)")
    corner = {layers: float(found[layers, "a photograph"][0, 0]) for layers in models}
    falls = corner["native layers"] - corner[list(models)[1]]
    finding = (
        f"In a band of c = {COMPRESSION:g} a network's response to the highest frequency of a photograph is "
        f"{falls:.0f} dB lower."
    )
    origin = f"two convolutions of 16 channels, K = 3, ReLU, a classifier; weights as drawn; {SIDE} x {SIDE}"
    return Page("", finish_plain(figure, "Frequency response to the input", {}, origin), finding)


PICTURE = draw
