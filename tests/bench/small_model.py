"""Models of a reader's own, for tests of `spectralbench model`: small, and wrong in one way each."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def build() -> nn.Module:
    """Two convolutions, batch normalisation, ReLU, dropout: a thing of everything that a step has to mind."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 5, padding=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def biased() -> nn.Module:
    """As in VGG-16: convolutions with a bias before batch normalisation and ReLU, here of few values."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 3),
    )


def without_convolutions() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 9 * 8, 3))


def no_module() -> int:
    return 7


def fails() -> nn.Module:
    raise KeyError("weights.pt")


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y, torch.relu(y)


class _Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.conv(x), 0.5, self.training)


def drops_out() -> nn.Module:
    return _Drops()


def leaves() -> nn.Module:
    raise SystemExit(3)


def two_answers() -> nn.Module:
    return _Two()
