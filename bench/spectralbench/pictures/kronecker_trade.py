"""Accuracy against parameters of networks whose kernels are sums of n Kronecker products (plot P28)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.ticker import NullLocator
from torch import nn

import spectralkernels as sk
from spectralbench.pictures import digits
from spectralbench.plot.style import PALETTE, Page, finish_plain, panels, percent_axis

STEPS, BATCH, WIDTH = 150, 64, 16
TRAINED = 1400
PRODUCTS = (1, 2, 4, 8)
SEEDS = (0, 1, 2)


def draw() -> Page:
    """A point per n, the range of the seeds as a bar."""
    found = {n: [trained(n, seed) for seed in SEEDS] for n in PRODUCTS}
    figure, axes = panels(1, 1)
    ax = axes[0][0]
    for n, runs in found.items():
        right = sorted(accuracy for _, accuracy in runs)
        middle = right[len(right) // 2]
        bars = [[middle - right[0]], [right[-1] - middle]]
        ax.errorbar([runs[0][0]], [middle], yerr=bars, fmt="o", color=PALETTE[0], capsize=2.5, elinewidth=1)
        ax.annotate(f"n = {n}", (runs[0][0], middle), xytext=(5, -11), textcoords="offset points", fontsize="small")
    ax.set_xscale("log")
    ax.margins(x=0.15)
    ticks = [runs[0][0] for runs in found.values()]
    ax.set_xticks(ticks, [str(tick) for tick in ticks], rotation=30)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("parameters of the two convolutions")
    percent_axis(ax, "y", "right on digits held back")
    medians = {n: sorted(accuracy for _, accuracy in runs)[len(SEEDS) // 2] for n, runs in found.items()}
    spread = max(max(right) - min(right) for right in ([one for _, one in runs] for runs in found.values()))
    sparse = min(found, key=lambda n: found[n][0][0])
    most, fewest = found[PRODUCTS[0]][0][0], found[sparse][0][0]
    finding = (
        f"With {most / fewest:.2g} times fewer parameters in its convolutions (n = {sparse}) a network is right in "
        f"{100 * medians[sparse]:.3g} % of digits instead of {100 * medians[PRODUCTS[0]]:.3g} %; seeds differ by up to "
        f"{100 * spread:.2g} %."
    )
    origin = (
        f"digits of 16 x 16, two PHConv2d of {WIDTH} channels, {STEPS} steps of {BATCH}; median and range of "
        f"{len(SEEDS)} seeds"
    )
    return Page("", finish_plain(figure, "Kronecker kernels: accuracy for parameters", {}, origin), finding)


def trained(n: int, seed: int) -> tuple[int, float]:
    """(parameters of the convolutions that have n, accuracy on what was held back)."""
    torch.manual_seed(seed)
    x, target = digits()
    convolutions = [sk.nn.PHConv2d(WIDTH, WIDTH, 3, n=n, padding=1) for _ in range(2)]
    model = nn.Sequential(
        nn.Conv2d(1, WIDTH, 1), convolutions[0], nn.GroupNorm(1, WIDTH), nn.ReLU(), nn.MaxPool2d(2),
        convolutions[1], nn.GroupNorm(1, WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * WIDTH, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), lr=0.004)
    for _ in range(STEPS):
        batch = torch.randint(TRAINED, (BATCH,))
        optimiser.zero_grad()
        F.cross_entropy(model(x[batch]), target[batch]).backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        right = model(x[TRAINED:]).argmax(1) == target[TRAINED:]
    return sum(one.numel() for layer in convolutions for one in layer.parameters()), float(right.float().mean())


PICTURE = draw
