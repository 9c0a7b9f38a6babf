"""The fully convolutional network for series: three convolutions, normalised, and a mean over time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from spectralbench.networks.network import Network, with_he_weights


def fcn(channels: int = 1, classes: int = 50) -> nn.Module:
    """Kernels of 8, 5 and 3, to 128, 256 and 128 channels; same padding. Input: Real [batch, channel, length]."""

    def layers(before: int) -> Iterator[nn.Module]:
        for kernel, width in ((8, 128), (5, 256), (3, 128)):
            yield from (nn.Conv1d(before, width, kernel, padding="same"), nn.BatchNorm1d(width), nn.ReLU())
            before = width

    return nn.Sequential(*layers(channels), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, classes))


NETWORKS = (
    Network(
        "fcn",
        "the fully convolutional net for series, sized for 50words",
        "Wang, Yan and Oates 2017; Dziedzic et al. 2019, section 4.4",
        (1, 270),
        50,
        lambda: with_he_weights(fcn()),
    ),
)
