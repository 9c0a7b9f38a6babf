"""The block of SpecNet as a layer: a chain of them passes sparse spectra on, and never comes back to maps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spectralkernels.aims import checked_aim
from spectralkernels.checks import as_flag, checked_beta
from spectralkernels.declare import Aim
from spectralkernels.errors import RangeError
from spectralkernels.ops.spec_block import ACTIVATIONS, spec_block
from spectralkernels.ops.spec_block.arguments import reserved_slots
from spectralkernels.sparse import SparseSpectrum


class SpecBlock(nn.Module):
    """Convolve, threshold and activate in the frequency domain: `spec_block` as a layer.

    net = nn.Sequential(SpecBlock(3, 16, 3, beta=1.0), SpecBlock(16, 16, 3, beta=1.0)); spectrum = net(maps)

    beta, activation, relative, capacity, optimise, impl: as in `spec_block`. n: width of the map behind the spectra
    that the layer is given, needed for odd ones. There is no bias. The weight starts as torch.nn.Conv2d's.
    Input: maps Real [batch, channel, height, width], or the SparseSpectrum of the block before. Output: SparseSpectrum.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        beta: float,
        activation: str | None = "tanh",
        relative: bool = False,
        n: int | None = None,
        capacity: float | None = None,
        optimise: Aim = "memory",
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if activation is not None and (not isinstance(activation, str) or activation not in ACTIVATIONS):
            raise RangeError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        reserved_slots(capacity, 0)
        self.beta, self.activation, self.relative = checked_beta(beta), activation, as_flag("relative", relative)
        self.n, self.capacity, self.optimise, self.impl = n, capacity, checked_aim(optimise), impl
        high, wide = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, high, wide, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, input: SparseSpectrum | Tensor) -> SparseSpectrum:
        options: dict[str, Any] = {"activation": self.activation, "relative": self.relative, "capacity": self.capacity}
        return spec_block(input, self.weight, self.beta, **options, n=self.n, optimise=self.optimise, impl=self.impl)

    def extra_repr(self) -> str:
        out_channels, in_channels, high, wide = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel_size=({high}, {wide}), beta={self.beta}"
