"""The networks of Rippel, Snoek and Adams (2015): one pooled in the spectrum, and two for spectral parameters."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor

from torch import nn

import spectralkernels as sk
from spectralbench.networks.network import Network, with_he_weights

LARGEST_WIDTH = 288


def spectral_pooling_cnn(
    classes: int = 10, side: int = 32, pairs: int = 6, gamma: float = 0.79, kernel: int = 3
) -> nn.Module:
    """`pairs` times a convolution and a spectral pooling to gamma of the side, with frequency dropout, then 1x1.

    Filters of pair m are min(288, 96 + 32 m), sides max(3, floor(gamma side)); the least share of the band that dropout
    leaves falls from 0.30 to 0.15.
    """

    def layers(side: int) -> Iterator[nn.Module]:
        channels = 3
        for pair in range(1, pairs + 1):
            width, side = min(LARGEST_WIDTH, 96 + 32 * pair), max(3, floor(gamma * side))
            yield from (nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU())
            yield sk.nn.SpectralPool2d(size=(side, side), dropout=sk.masks.dropout_floor(pair, pairs))
            channels = width
        yield from (nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, classes, 1))

    return nn.Sequential(*layers(side), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def deep(classes: int = 10, kernel: int = 3) -> nn.Module:
    """2 x conv96, pool, 3 x conv192, pool, conv192 1x1, conv 1x1, mean over the plane."""
    return nn.Sequential(
        *_convolutions(3, kernel, 96, 96),
        nn.MaxPool2d(3, 2),
        *_convolutions(96, kernel, 192, 192, 192),
        nn.MaxPool2d(3, 2),
        *_convolutions(192, 1, 192),
        nn.Conv2d(192, classes, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def generic(classes: int = 10, kernel: int = 3) -> nn.Module:
    """conv96, pool, conv192, pool, and linear layers of 1024 and 512; for maps of 32 x 32."""
    return nn.Sequential(
        *_convolutions(3, kernel, 96),
        nn.MaxPool2d(3, 2),
        *_convolutions(96, kernel, 192),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(192 * 7 * 7, 1024),
        nn.ReLU(),
        nn.Linear(1024, 512),
        nn.ReLU(),
        nn.Linear(512, classes),
    )


def _convolutions(channels: int, kernel: int, *widths: int) -> Iterator[nn.Module]:
    for width in widths:
        yield from (nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU())
        channels = width


_SOURCE = "Rippel, Snoek and Adams 2015"

NETWORKS = (
    Network(
        "spectral_pooling_cnn",
        "convolutions and spectral poolings in turn, CIFAR",
        f"{_SOURCE}, section 5.1; public code for gamma and pairs",
        (3, 32, 32),
        10,
        lambda: with_he_weights(spectral_pooling_cnn()),
    ),
    Network(
        "deep",
        "the deep net for spectral parameters, CIFAR",
        f"{_SOURCE}, section 5.2",
        (3, 32, 32),
        10,
        lambda: with_he_weights(deep()),
    ),
    Network(
        "generic",
        "the generic net for spectral parameters, CIFAR",
        f"{_SOURCE}, section 5.2",
        (3, 32, 32),
        10,
        lambda: with_he_weights(generic()),
    ),
)
