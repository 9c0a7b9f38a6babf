"""ResNet-18: torchvision's layers and names, with either stem, and three ways to reduce the maps between stages.

    strided        the first convolution of a stage has stride 2, and so has its 1x1 shortcut
    spectral_pool  both have stride 1, and one spectral pooling by 2 follows each
    diff_stride    one DiffStride for both, so that the branches share its two strides

The order of a block is torchvision's; the authors of DiffStride normalise before they convolve.
Source: He et al. 2016; Riad et al. 2022, section 4, for the pooled blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

import spectralkernels as sk
from spectralbench.networks.network import Network, with_he_weights

Reduction = Literal["strided", "spectral_pool", "diff_stride"]

POOLINGS: dict[Reduction, Callable[[], nn.Module]] = {
    "spectral_pool": lambda: sk.nn.SpectralPool2d(2.0),
    "diff_stride": lambda: sk.nn.DiffStride2d(2.0),
}


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut.

    pool: what reduces both branches, the same layer for both; None where `stride` does, or nothing.
    """

    def __init__(self, channels: int, out_channels: int, stride: int, kernel: int, pool: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, 1, kernel // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.pool = pool
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out_channels:
            shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv1(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.pool is not None:
            main, shortcut = self.pool(main), self.pool(shortcut)
        y = self.bn2(self.conv2(self.relu(self.bn1(main))))
        return self.relu(y + shortcut)


class ResNet18(nn.Module):
    """Four stages of two blocks.

    cifar: a 3x3 stem with stride 1 and no pooling, in place of 7x7 with stride 2 and a max pooling. width: channels of
    the first stage. kernel: side of the kernels of the blocks, odd.
    """

    def __init__(
        self,
        classes: int = 10,
        width: int = 64,
        cifar: bool = True,
        reduction: Reduction = "strided",
        kernel: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False) if cifar else nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, 1)
        stages: list[nn.Module] = []
        channels = width
        for stage in range(4):
            out_channels, reduces = width << stage, stage > 0
            stride = 2 if reduces and reduction == "strided" else 1
            pool = POOLINGS[reduction]() if reduces and reduction != "strided" else None
            blocks = nn.Sequential(
                BasicBlock(channels, out_channels, stride, kernel, pool),
                BasicBlock(out_channels, out_channels, 1, kernel, None),
            )
            stages.append(blocks)
            channels = out_channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(self.avgpool(x).flatten(1))


def _cifar(name: str, what: str, reduction: Reduction = "strided", kernel: int = 3) -> Network:
    return Network(
        name,
        f"ResNet-18 with the CIFAR stem{what}",
        "He et al. 2016; Riad et al. 2022",
        (3, 32, 32),
        10,
        lambda: with_he_weights(ResNet18(reduction=reduction, kernel=kernel)),
    )


NETWORKS = (
    _cifar("resnet18", ""),
    _cifar("resnet18_spectral_pool", ", reduced by spectral pooling", "spectral_pool"),
    _cifar("resnet18_diff_stride", ", reduced by DiffStride", "diff_stride"),
    _cifar("resnet18_k7", ", with 7x7 kernels", kernel=7),
    Network(
        "resnet18_imagenet",
        "ResNet-18 with the ImageNet stem",
        "He et al. 2016; torchvision",
        (3, 224, 224),
        1000,
        lambda: with_he_weights(ResNet18(classes=1000, cifar=False)),
    ),
)
