"""Convert a ResNet-18: which of its layers can drop high frequencies, what that saves, and what it costs here.

    python examples/convert_resnet18.py            # CIFAR stem, maps of 32 x 32; seconds on two CPU cores

The network has torchvision's layers and names, so that its weights load; any other nn.Module will do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

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
    print(sk.nn.report(model, batches[0], repeats=2))

    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = nn.functional.cross_entropy(model(batches[0]), torch.arange(arguments.batch) % 10)
    loss.backward()
    optimiser.step()
    print(f"\nOne training step: loss {loss.item():.3f}")
    return model


if __name__ == "__main__":
    main()
