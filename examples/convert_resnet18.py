"""Convert a ResNet-18: which of its layers can drop high frequencies, what that saves, and what it costs here.

    python examples/convert_resnet18.py            # CIFAR stem, maps of 32 x 32; seconds on two CPU cores

and a picture of the rates and of what every layer saves.

The network has torchvision's layers and names, so that its weights load; any other nn.Module will do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import spectralkernels as sk
from spectralbench.networks.resnet import ResNet18


def main(argv: Sequence[str] | None = None) -> nn.Module:
    """Convert, freeze the rates from the energy of two batches, report, and train a step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--compression", type=float, default=0.5)
    parser.add_argument("--energy", type=float, default=0.9)
    parser.add_argument("--picture", type=Path, default=Path("convert_resnet18.png"))
    arguments = parser.parse_args(argv)

    torch.manual_seed(0)
    model = ResNet18(width=arguments.width)
    batches = [torch.randn(arguments.batch, 3, 32, 32).cumsum(-1).cumsum(-2) / 32 for _ in range(2)]

    print("What is converted, and why the rest is not:")
    print(sk.nn.convert(model, compression=arguments.compression))

    rates = sk.nn.freeze_from_energy(model, batches, energy=arguments.energy)
    print(f"\nRates that keep {arguments.energy:.0%} of the energy of every map:")
    print(", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()))

    print("\nWhat each layer saves for the backward pass, computes and takes, beside torch's layer:")
    report = sk.nn.report(model, batches[0], repeats=2)
    print(report)
    draw(report, arguments.picture)

    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = nn.functional.cross_entropy(model(batches[0]), torch.arange(arguments.batch) % 10)
    loss.backward()
    optimiser.step()
    print(f"\nOne training step: loss {loss.item():.3f}")
    return model


def draw(report: sk.nn.ModelReport, picture: Path) -> None:
    """The rate of every layer, and its saved bytes beside those of torch's layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (rates, saved) = plt.subplots(2, 1, figsize=(7.0, 5.6), sharex=True, layout="constrained")
    places = range(len(report.layers))
    rates.bar(places, [layer.achieved or 0.0 for layer in report.layers], color="C0")
    rates.set_ylabel("achieved compression")
    rates.set_ylim(0.0, 1.0)
    for shift, name, field in ((-0.2, "as converted", "saved_bytes"), (0.2, "torch.nn", "native_saved_bytes")):
        heights = [getattr(layer, field) / 2**20 for layer in report.layers]
        saved.bar([place + shift for place in places], heights, width=0.4, label=name)
    saved.set_ylabel("saved for backward (MiB)")
    saved.set_xticks(places, [layer.name for layer in report.layers], rotation=90, fontsize=7)
    saved.legend(frameon=False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
