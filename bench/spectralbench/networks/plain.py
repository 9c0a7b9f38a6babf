"""AlexNet, VGG-16 and NIN for maps of 32 x 32: convolutions in a row."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from spectralbench.networks.network import Network, with_he_weights

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Widths of the 3x3 convolutions; 0 is a max pooling."""


def alexnet(classes: int = 10) -> nn.Module:
    """Five convolutions from 11x11 with stride 4 on, pooled to one pixel, and one linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, classes),
    )


def vgg16(classes: int = 10) -> nn.Module:
    """Thirteen 3x3 convolutions with batch normalisation, five poolings, and one linear layer."""

    def layers() -> Iterator[nn.Module]:
        channels = 3
        for width in VGG16:
            if width == 0:
                yield nn.MaxPool2d(2)
                continue
            yield from (nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            channels = width

    return nn.Sequential(*layers(), nn.Flatten(), nn.Linear(512, classes))


def nin(classes: int = 10) -> nn.Module:
    """Three times a convolution and two 1x1 ones, pooled, dropped out; the last are averaged over the plane."""

    def block(channels: int, kernel: int, *widths: int) -> Iterator[nn.Module]:
        for number, width in enumerate(widths):
            side = kernel if number == 0 else 1
            yield from (nn.Conv2d(channels, width, side, padding=side // 2), nn.ReLU())
            channels = width

    return nn.Sequential(
        *block(3, 5, 192, 160, 96),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Dropout(0.5),
        *block(96, 5, 192, 192, 192),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Dropout(0.5),
        *block(192, 3, 192, 192, classes),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


NETWORKS = (
    Network(
        "alexnet",
        "AlexNet in CIFAR form",
        "Krizhevsky 2012, with strides for 32 x 32 as in SpecNet's comparison",
        (3, 32, 32),
        10,
        lambda: with_he_weights(alexnet()),
    ),
    Network(
        "vgg16",
        "VGG-16 with batch normalisation in CIFAR form",
        "Simonyan and Zisserman 2015, with one linear layer",
        (3, 32, 32),
        10,
        lambda: with_he_weights(vgg16()),
    ),
    Network(
        "nin",
        "Network in Network, CIFAR",
        "Lin, Chen and Yan 2014; Stamatescu and McDonnell 2018, figure 12",
        (3, 32, 32),
        10,
        lambda: with_he_weights(nin()),
    ),
)
