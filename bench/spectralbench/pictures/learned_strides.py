"""Strides that train like weights, and the sizes of the maps that follow (plot P27; Riad et al. 2022).

The loss wants large maps, its price (the mean of 1 / (S_h S_w), their equation 9) small ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.lines import Line2D
from torch import Tensor, nn

import spectralkernels as sk
from spectralbench.pictures import digits
from spectralbench.plot.style import Look, Page, finish_plain, panels, sequence_looks

STEPS, BATCH, WIDTH = 150, 64, 8
TRAINED = 1400
PRICES = (0.0, 2.0)


def draw() -> Page:
    """A panel per price; strides on the left axis, the side of the last map on the right one."""
    runs = {price: strides(price) for price in PRICES}
    figure, axes = panels(1, len(PRICES), sharey=True)
    found = sequence_looks(range(4))
    names = ("first, vertical", "first, horizontal", "second, vertical", "second, horizontal")
    ends: list[float] = []
    for ax, (price, path) in zip(axes[0], runs.items(), strict=True):
        for index in range(4):
            look = {**found[index].line(), "marker": ""}
            ax.plot([row[index] for row in path], **look)
        sides = [row[4] for row in path]
        other = ax.twinx()
        other.plot(sides, color="black", linewidth=1)
        other.set_ylim(0, 17)
        other.grid(visible=False)
        other.set_ylabel("height of the last map" if price == PRICES[-1] else "")
        ends.append(sides[-1])
        ax.set_title(f"price of size {price:g}")
        ax.set_xlabel("training step")
    axes[0][0].set_ylabel("stride")
    shown: dict[str, Look | Line2D] = {
        name: Line2D([], [], color=found[index].color, linestyle=found[index].dash) for index, name in enumerate(names)
    }
    shown["height of the last map"] = Line2D([], [], color="black", linewidth=1)
    finding = (
        f"From strides of 2, a price of {PRICES[-1]:g} on size ends at maps {ends[-1]} pixels high, no price at "
        f"{ends[0]}."
    )
    origin = f"digits of 16 x 16, two convolutions, two DiffStride poolings with smooth edges, {STEPS} steps of {BATCH}"
    return Page("", finish_plain(figure, "Learned strides", shown, origin), finding)


class StridedNetwork(nn.Module):
    """Two convolutions, each before a pooling with strides of its own, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(2 * WIDTH)
        self.pool1, self.pool2 = sk.nn.DiffStride2d(2.0), sk.nn.DiffStride2d(2.0)
        self.conv2 = nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1)
        self.fc = nn.Linear(8 * WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(torch.relu(self.norm1(self.conv1(x))))
        x = self.pool2(torch.relu(self.norm2(self.conv2(x))))
        self.height = x.shape[-2]
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


def strides(price: float) -> list[list[float]]:
    """S_h, S_w of both poolings after every training step, and the height of the maps behind them."""
    torch.manual_seed(0)
    x, target = digits()
    model = StridedNetwork()
    pools = (model.pool1, model.pool2)
    sides = [*model.pool1.parameters(), *model.pool2.parameters()]
    others = [one for one in model.parameters() if all(one is not side for side in sides)]
    # Not Adam for the strides: it would move them as fast whatever the price.
    optimisers = [torch.optim.Adam(others, lr=0.01), torch.optim.SGD(sides, lr=0.2, momentum=0.9)]
    path = []
    for _ in range(STEPS):
        batch = torch.randint(TRAINED, (BATCH,))
        size = torch.stack([1 / pool.strides.clamp_min(1).prod() for pool in pools]).mean()
        loss = F.cross_entropy(model(x[batch]), target[batch]) + price * size
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        path.append([float(side) for pool in pools for side in pool.strides.detach()] + [model.height])
    return path


PICTURE = draw
