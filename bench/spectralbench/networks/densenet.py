"""DenseNet-121 and -169: torchvision's layers and names, with growth 12 and the CIFAR stem of the band-limited paper.

Source: Huang et al. 2017; Dziedzic et al. 2019: growth 12, blocks of 6, 12, 24 and 16 layers.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectralbench.networks.network import Network, with_he_weights

BLOCKS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32)}
BOTTLENECK = 4


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, each after normalisation and ReLU; the answer is put beside the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, BOTTLENECK * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu1(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu2(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """depth: a key of BLOCKS. cifar: a 3x3 stem with stride 1 and no pooling, in place of 7x7 / 2 and a max pooling."""

    def __init__(self, depth: int = 121, growth: int = 12, classes: int = 10, cifar: bool = True) -> None:
        super().__init__()
        channels = 2 * growth
        stem: OrderedDict[str, nn.Module] = OrderedDict()
        if cifar:
            stem["conv0"] = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        else:
            stem["conv0"] = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
            stem["norm0"] = nn.BatchNorm2d(channels)
            stem["relu0"] = nn.ReLU(inplace=True)
            stem["pool0"] = nn.MaxPool2d(3, 2, 1)
        self.features = nn.Sequential(stem)
        for number, layers in enumerate(BLOCKS[depth], start=1):
            block = nn.Sequential()
            for layer in range(1, layers + 1):
                block.add_module(f"denselayer{layer}", DenseLayer(channels, growth))
                channels += growth
            self.features.add_module(f"denseblock{number}", block)
            if number < len(BLOCKS[depth]):
                self.features.add_module(f"transition{number}", _transition(channels))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.relu(self.features(x), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(maps, 1).flatten(1))


def _transition(channels: int) -> nn.Module:
    """Half the channels, half the side."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )


def _cifar(depth: int) -> Network:
    return Network(
        f"densenet{depth}",
        f"DenseNet-{depth} with growth 12 and the CIFAR stem",
        "Huang et al. 2017; Dziedzic et al. 2019",
        (3, 32, 32),
        10,
        lambda: with_he_weights(DenseNet(depth)),
    )


NETWORKS = (_cifar(121), _cifar(169))
