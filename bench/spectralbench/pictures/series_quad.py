"""A series and its spectrum before and after compression (plot P15; Dziedzic et al. 2019, Figure 15)."""

from __future__ import annotations

import torch
from matplotlib.lines import Line2D

from spectralbench.pictures import photograph
from spectralbench.plot.style import PALETTE, Look, Page, finish_plain, panels

COMPRESSION = 0.5


def draw() -> Page:
    """Original and compressed above, their spectra in decibels below."""
    series = photograph()[128] - photograph()[128].mean()
    spectrum = torch.fft.rfft(series)
    kept = int((1 - COMPRESSION) * len(spectrum))
    dropped = torch.where(torch.arange(len(spectrum)) < kept, spectrum, 0)
    compressed = torch.fft.irfft(dropped, n=len(series))
    figure, axes = panels(2, 2, sharex=False, sharey="row")
    figure.set_figheight(5.0)
    for column, (line, coefficients, color, title) in enumerate(
        ((series, spectrum, PALETTE[0], "original"), (compressed, dropped, PALETTE[1], f"c = {COMPRESSION:g}"))
    ):
        axes[0][column].plot(line.numpy(), color=color, linewidth=1)
        axes[0][column].set_title(title)
        axes[0][column].set_xlabel("place (pixels)")
        decibels = 20 * torch.log10(coefficients.abs() / spectrum.abs().max())
        last = kept if column else len(spectrum)
        axes[1][column].plot(range(1, last), decibels[1:last].numpy(), color=color, linewidth=1)  # no mean, no 0
        axes[1][column].set_xlim(0, len(spectrum))
        axes[1][column].set_xlabel("frequency")
    axes[0][0].set_ylabel("brightness")
    axes[1][0].set_ylabel("dB below the largest")
    error = 100 * float((compressed - series).norm() / series.norm())
    shown: dict[str, Look | Line2D] = {
        name: Line2D([], [], color=color) for name, color in zip(("original", "compressed"), PALETTE, strict=False)
    }
    origin = (
        f"a line of a photograph, {len(series)} pixels, without its mean · {kept} of {len(spectrum)} frequencies kept"
    )
    finding = f"Half of the frequencies hold all but {error:.2g} % of the norm of a line of a photograph."
    return Page("", finish_plain(figure, "A series in half of its band", shown, origin), finding)


PICTURE = draw
