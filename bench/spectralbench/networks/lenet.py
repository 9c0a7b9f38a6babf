"""LeNet in the forms of two papers: with two convolutions, and as the fully convolutional nets that were diagnosed."""

from __future__ import annotations

from torch import nn

from spectralbench.networks.network import Network, with_he_weights


def lenet(classes: int = 10) -> nn.Module:
    """Two 5x5 convolutions of 10 and 20 filters, each pooled, and two linear layers: the band-limited paper's."""
    return nn.Sequential(
        nn.Conv2d(1, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 50),
        nn.ReLU(),
        nn.Linear(50, classes),
    )


def lenet_mnist(classes: int = 10) -> nn.Module:
    """20@5x5, 50@5x5, 500@4x4, 1x1: MatConvNet's, which the diagnosis of spectral responses was trained with."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(50, 500, 4),
        nn.ReLU(),
        nn.Conv2d(500, classes, 1),
        nn.Flatten(),
    )


def lenet_cifar(classes: int = 10) -> nn.Module:
    """32@5x5, 32@5x5, 64@5x5, 64@4x4, 1x1, with one max and two average poolings of 3x3 / 2: likewise."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(64, 64, 4),
        nn.ReLU(),
        nn.Conv2d(64, classes, 1),
        nn.Flatten(),
    )


_BAND_LIMITED = "Dziedzic et al. 2019, code: 10 and 20 filters of 5x5"
_DIAGNOSED = "Stamatescu and McDonnell 2018; MatConvNet, examples"

NETWORKS = (
    Network(
        "lenet",
        "LeNet with two convolutions, MNIST",
        _BAND_LIMITED,
        (1, 28, 28),
        10,
        lambda: with_he_weights(lenet()),
    ),
    Network(
        "lenet_mnist",
        "LeNet as convolutions throughout, MNIST",
        _DIAGNOSED,
        (1, 28, 28),
        10,
        lambda: with_he_weights(lenet_mnist()),
    ),
    Network(
        "lenet_cifar",
        "the larger LeNet, CIFAR",
        _DIAGNOSED,
        (3, 32, 32),
        10,
        lambda: with_he_weights(lenet_cifar()),
    ),
)
