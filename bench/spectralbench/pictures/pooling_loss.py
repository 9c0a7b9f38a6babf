"""What pooling loses of photographs against the numbers it keeps (plot P23; Rippel et al. 2015, Figure 5b)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator
from torch import Tensor

import spectralkernels as sk
from spectralbench.plot.style import Look, Page, finish_plain, panels, percent_axis, sequence_looks
from spectralkernels.inputs import feature_map

SIDE, MAPS = 64, 32
POOLED = (4, 8, 16, 32)


def draw() -> Page:
    """Relative L2 distance of the maps that are enlarged again, over the fraction kept."""
    maps = feature_map("photo", (MAPS, 1, SIDE, SIDE), 0)
    losses = {name: [loss(maps, name, side) for side in POOLED] for name in ("spectral", "mean", "max")}
    kept = [(side / SIDE) ** 2 for side in POOLED]
    figure, axes = panels(1, 1)
    ax = axes[0][0]
    found = sequence_looks(list(losses))
    for name, values in losses.items():
        ax.plot(kept, values, **found[name].line())
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_locator(FixedLocator([0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0]))
    percent_axis(ax, "y", "lost of the maps' norm")
    ax.set_xscale("log", base=2)
    ax.set_xticks(kept, [f"1/{round(1 / value)}" for value in kept])
    ax.set_xlabel("numbers kept")
    shown: dict[str, Look | Line2D] = {f"{name} pooling": look for name, look in found.items()}
    quarter = {name: values[-1] for name, values in losses.items()}
    finding = (
        f"With a quarter of the numbers spectral pooling loses {100 * quarter['spectral']:.2g} % of photographs, mean "
        f"pooling {100 * quarter['mean']:.2g} % and max pooling {100 * quarter['max']:.2g} %."
    )
    origin = f"{MAPS} patches of photographs, {SIDE} x {SIDE}, enlarged again: spectral by zeros, the others by copies"
    return Page("", finish_plain(figure, "What pooling loses", shown, origin), finding)


def loss(maps: Tensor, name: str, side: int) -> float:
    """|enlarge(pool(x)) - x| / |x|. maps: Float32 [batch, 1, n, n], n a multiple of `side`."""
    n = maps.shape[-1]
    if name == "spectral":
        spectrum = torch.fft.rfft2(sk.spectral_pool2d(maps, (side, side)).double(), norm="forward")
        # The frequency of half the side stands for two, of which an enlarged map has both.
        back = torch.zeros(*maps.shape[:2], n, n // 2 + 1, dtype=spectrum.dtype)
        half = side // 2
        back[..., :half, : half + 1] = spectrum[..., :half, :]
        back[..., -half:, : half + 1] = spectrum[..., half:, :]
        back[..., half] *= 0.5
        enlarged = torch.fft.irfft2(back, s=(n, n), norm="forward")
    else:
        pool = F.max_pool2d if name == "max" else F.avg_pool2d
        enlarged = F.interpolate(pool(maps, n // side), size=(n, n), mode="nearest").double()
    return float((enlarged - maps).norm() / maps.norm())


PICTURE = draw
