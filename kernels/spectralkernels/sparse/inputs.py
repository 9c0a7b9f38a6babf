"""Spectra to threshold: real feature maps after one fresh convolution layer."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralkernels.inputs import feature_map, he_kernel

KERNEL_SIZE = 3


def grid(height: int, width: int) -> tuple[int, int]:
    """FFT size of a full 3x3 convolution of a map, as in SpecNet's Algorithm 1."""
    return height + KERNEL_SIZE - 1, width + KERNEL_SIZE - 1


def convolved_spectrum(kind: str, shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """rfft2 (ortho) of `feature_map(kind, shape, seed)` times rfft2 of He's kernel, summed over input channels.

    Returns: Complex64 [batch, channels, height + 2, (width + 2) // 2 + 1], CPU.
    """
    channels, size = shape[1], grid(*shape[2:])
    x_hat = torch.fft.rfft2(feature_map(kind, shape, seed), s=size, norm="ortho")
    w_hat = torch.fft.rfft2(he_kernel((channels, channels, KERNEL_SIZE, KERNEL_SIZE), seed), s=size)
    return torch.einsum("bcuv,ocuv->bouv", x_hat, w_hat).contiguous()
