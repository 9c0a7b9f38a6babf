"""Convert a ResNet-18: which of its layers can drop high frequencies, what that saves, and what it costs here.

    python examples/convert_resnet18.py            # CIFAR stem, maps of 32 x 32; seconds on two CPU cores

The network is written out as torchvision has it (names of parameters too, so that its weights load), because that is
the only thing this example would need torchvision for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import spectralkernels as sk


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out_channels:
            shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """cifar: a 3x3 stem with stride 1 and no pooling, in place of 7x7 with stride 2 and a max pooling."""

    def __init__(self, classes: int = 10, width: int = 64, cifar: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False) if cifar else nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, 1)
        channels = width
        for stage in range(4):
            out_channels, stride = width << stage, 1 if stage == 0 else 2
            blocks = nn.Sequential(
                BasicBlock(channels, out_channels, stride), BasicBlock(out_channels, out_channels, 1)
            )
            setattr(self, f"layer{stage + 1}", blocks)
            channels = out_channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(self.avgpool(x).flatten(1))


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
