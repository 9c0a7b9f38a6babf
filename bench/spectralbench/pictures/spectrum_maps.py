"""The spectrum of a photograph, whole and in two bands of the same compression (plot P14; Dziedzic et al. 2019)."""

from __future__ import annotations

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

import spectralkernels as sk
from spectralbench.pictures import photograph
from spectralbench.plot.style import Page, finish_plain, panels

COMPRESSION = 0.75
FLOOR = -100.0
"""Decibels below the largest coefficient; what is dropped is drawn at it."""


def draw() -> Page:
    """Full spectrum, disc, rectangle of `band_limited_conv2d`, and the same as an FFT stores it."""
    image = photograph()
    n = (image.shape[0], image.shape[1])
    disc = whole(sk.masks.radial(n, 1 - COMPRESSION), n)
    band = whole(sk.masks.rectangular(n, COMPRESSION), n)
    spectrum = torch.fft.fft2(image)
    decibels = 20 * torch.log10(spectrum.abs() / spectrum.abs().max()).clamp_min(FLOOR / 20)
    shown = {
        "full spectrum": torch.fft.fftshift(decibels),
        "exact band: a disc": torch.fft.fftshift(decibels.masked_fill(~disc, FLOOR)),
        "practical band: a rectangle": torch.fft.fftshift(decibels.masked_fill(~band, FLOOR)),
        "the same as the FFT stores it": decibels.masked_fill(~band, FLOOR),
    }
    figure, axes = panels(2, 2, sharex=False, sharey=False)
    figure.set_figheight(7.4)
    half = n[0] // 2
    for index, (ax, (title, map_)) in enumerate(zip([ax for row in axes for ax in row], shown.items(), strict=True)):
        ends = (0, n[1], n[0], 0) if index == 3 else (-half, half, half, -half)
        ax.imshow(map_.numpy(), cmap="cividis", vmin=FLOOR, vmax=0.0, extent=ends)
        ax.set_title(title, fontsize="small")
        ax.set_xlabel("kx")
        ax.set_ylabel("ky")
        ax.grid(visible=False)
    bar = figure.colorbar(ScalarMappable(Normalize(FLOOR, 0.0), "cividis"), ax=axes[0] + axes[1], shrink=0.6)
    bar.set_label("dB below the largest")
    energy = spectrum.abs().square()
    lost = [100 * float((energy[~kept].sum() / energy.sum()).sqrt()) for kept in (disc, band)]
    finding = (
        f"Without {100 * COMPRESSION:.0f} % of its coefficients a photograph loses {lost[0]:.3g} % of its norm in a "
        f"disc and {lost[1]:.3g} % in a rectangle."
    )
    origin = f"a photograph of {n[0]} x {n[1]} pixels in grey · c = {COMPRESSION:g}"
    return Page("", finish_plain(figure, "What a band keeps of a photograph", {}, origin), finding)


def whole(half: Tensor, n: tuple[int, int]) -> Tensor:
    """A mask of the half spectrum as one of the whole: Bool [N_h, N_w // 2 + 1] -> [N_h, N_w]."""
    rows = -torch.arange(n[0]) % n[0]
    columns = -torch.arange(half.shape[1], n[1]) % n[1]
    return torch.cat((half, half[rows][:, columns]), 1)


PICTURE = draw
