"""A network whose strides move: two DiffStride poolings, trained on digits, with a price on the size of the maps.

    python examples/moving_strides.py              # seconds on two CPU cores; writes moving_strides.png

A stride is a parameter like any other: the loss wants large maps, the price (the mean of 1 / (S_h S_w), as in the
paper's equation 9) wants small ones, and the strides settle where the two agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import spectralkernels as sk


def digits(size: int) -> tuple[Tensor, Tensor]:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8, enlarged to [1797, 1, size, size], and their classes."""
    found = load_digits()
    maps = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    return nn.functional.interpolate(maps, size=(size, size), mode="bilinear"), torch.tensor(found.target)


class Network(nn.Module):
    """Two convolutions, each before a pooling with strides of its own, and a classifier of four means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(2 * width)
        self.pool1 = sk.nn.DiffStride2d(2.0)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.pool2 = sk.nn.DiffStride2d(2.0)
        self.fc = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(torch.relu(self.norm1(self.conv1(x))))
        x = self.pool2(torch.relu(self.norm2(self.conv2(x))))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))

    def price(self) -> Tensor:
        """How much of the maps the poolings leave: the mean of 1 / (S_h S_w)."""
        return torch.stack([1 / pool.strides.clamp_min(1).prod() for pool in (self.pool1, self.pool2)]).mean()


def train(price: float, steps: int, width: int, size: int) -> tuple[list[list[float]], float]:
    """(strides of both poolings after every step, accuracy on digits that were held back)."""
    torch.manual_seed(0)
    x, target = digits(size)
    order = torch.randperm(len(x))
    training, held = order[:1400], order[1400:]
    model = Network(width)
    strides = [*model.pool1.parameters(), *model.pool2.parameters()]
    others = [parameter for parameter in model.parameters() if all(parameter is not stride for stride in strides)]
    # Not Adam for the strides: it would move them as fast whatever the price.
    optimisers = [torch.optim.Adam(others, lr=0.01), torch.optim.SGD(strides, lr=0.2, momentum=0.9)]
    path = []
    for _ in range(steps):
        batch = training[torch.randint(len(training), (64,))]
        loss = nn.functional.cross_entropy(model(x[batch]), target[batch]) + price * model.price()
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        path.append([float(side) for stride in strides for side in stride.detach()])
    model.eval()
    with torch.no_grad():
        right = model(x[held]).argmax(1) == target[held]
    return path, float(right.float().mean())


def main(argv: Sequence[str] | None = None) -> dict[float, float]:
    """Train at three prices and draw the strides; the accuracy at each price."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--size", type=int, default=16, help="side that the digits are enlarged to")
    parser.add_argument("--prices", type=float, nargs="+", default=[0.0, 0.3, 3.0])
    parser.add_argument("--picture", type=Path, default=Path("moving_strides.png"))
    arguments = parser.parse_args(argv)

    runs = {price: train(price, arguments.steps, arguments.width, arguments.size) for price in arguments.prices}
    for price, (path, accuracy) in runs.items():
        ends = ", ".join(f"{side:.2f}" for side in path[-1])
        print(f"price {price:g}: strides 2.00, 2.00, 2.00, 2.00 -> {ends}; accuracy {accuracy:.1%}")
    draw({price: path for price, (path, _) in runs.items()}, arguments.picture)
    return {price: accuracy for price, (_, accuracy) in runs.items()}


def draw(paths: dict[float, list[list[float]]], picture: Path) -> None:
    """The four strides of every run against the step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(paths), figsize=(3.0 * len(paths), 2.8), sharey=True, layout="constrained")
    axes = [axes] if len(paths) == 1 else axes
    for ax, (price, path) in zip(axes, paths.items(), strict=True):
        for index, name in enumerate(
            ("first, vertical", "first, horizontal", "second, vertical", "second, horizontal")
        ):
            ax.plot([row[index] for row in path], label=name, color=f"C{index // 2}", linestyle="-:"[index % 2])
        ax.set_title(f"price of size {price:g}")
        ax.set_xlabel("training step")
    axes[0].set_ylabel("stride")
    axes[0].legend(fontsize="x-small")
    figure.savefig(picture, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
