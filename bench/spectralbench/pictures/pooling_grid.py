"""A photograph after max pooling and after spectral pooling, side by side (plot P24; Rippel et al. 2015, Figure 2)."""

from __future__ import annotations

import torch.nn.functional as F
from matplotlib.figure import Figure

import spectralkernels as sk
from spectralbench.pictures import photograph
from spectralbench.pictures.pooling_loss import loss
from spectralbench.plot.style import WIDTH, Page, finish_plain

SIDES = (64, 32, 16, 8)


def draw() -> Page:
    """A column per pooled side; max pooling above, spectral pooling below."""
    image = photograph().float()[None, None]
    figure = Figure(figsize=(WIDTH[3], 5.0), layout="constrained")
    grid = figure.subplots(2, len(SIDES))
    for column, side in enumerate(SIDES):
        pooled = {
            "max": F.max_pool2d(image, image.shape[-1] // side),
            "spectral": sk.spectral_pool2d(image, (side, side)),
        }
        for row, (name, map_) in enumerate(pooled.items()):
            ax = grid[row][column]
            ax.imshow(map_[0, 0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            if column == 0:
                ax.set_ylabel(name)
            if row == 0:
                ax.set_title(f"{side} x {side}", fontsize="small")
    origin = f"a photograph of {image.shape[-1]} x {image.shape[-1]} pixels in grey"
    lost = {name: 100 * loss(image, name, SIDES[1]) for name in ("max", "spectral")}
    finding = (
        f"At {SIDES[1]} x {SIDES[1]} max pooling has lost {lost['max']:.2g} % of the photograph's norm, spectral "
        f"pooling {lost['spectral']:.2g} %."
    )
    return Page("", finish_plain(figure, "Max pooling and spectral pooling", {}, origin), finding)


PICTURE = draw
