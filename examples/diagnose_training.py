"""Diagnose a training while it runs: the Maximum Gain of a small CNN on digits, one curve per learning rate.

    python examples/diagnose_training.py           # seconds on two CPU cores; writes diagnose_training.png

The gain is one gradient of one image an epoch and needs no validation set. What its curve says by the paper's four
rules stands in the legend, beside the accuracy on digits that were held back, which the curve never saw.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import spectralkernels as sk


def network(width: int) -> nn.Module:
    """Three convolutions and the mean, on maps of 8 x 8."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def train(rate: float, epochs: int, width: int) -> tuple[sk.diagnose.GainCurve, float]:
    """(the curve of Maximum Gains, accuracy on what was held back)."""
    torch.manual_seed(0)
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    target = torch.tensor(found.target)
    order = torch.randperm(len(x))
    training, held = order[:1400], order[1400:]
    model = network(width)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    gains = sk.diagnose.GainCurve(x[held[0]])
    for _ in range(epochs):
        for batch in training[torch.randperm(len(training))].split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), target[batch]).backward()
            optimiser.step()
        gains(model)
    model.eval()
    with torch.no_grad():
        right = model(x[held]).argmax(1) == target[held]
    return gains, float(right.float().mean())


def main(argv: Sequence[str] | None = None) -> dict[float, sk.diagnose.Curve]:
    """Train at each learning rate, print and draw what the curves say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.01, 0.3])
    parser.add_argument("--picture", type=Path, default=Path("diagnose_training.png"))
    arguments = parser.parse_args(argv)

    runs = {rate: train(rate, arguments.epochs, arguments.width) for rate in arguments.rates}
    for rate, (gains, accuracy) in runs.items():
        curve = gains.label()
        print(f"learning rate {rate:g}: {curve.label.value}; accuracy {accuracy:.1%}")
    draw(runs, arguments.picture)
    return {rate: gains.label() for rate, (gains, _) in runs.items()}


def draw(runs: dict[float, tuple[sk.diagnose.GainCurve, float]], picture: Path) -> None:
    """Gain against epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    for rate, (gains, accuracy) in runs.items():
        label = f"rate {rate:g}, accuracy {accuracy:.0%}: {gains.label().label.value}"
        ax.plot(range(1, len(gains.gains) + 1), gains.gains, marker="o", markersize=3, label=label)
    ax.set_xlabel("epoch")
    ax.set_ylabel("Maximum Gain (dB)")
    figure.legend(loc="outside lower center", fontsize="small", frameon=False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
