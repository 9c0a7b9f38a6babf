"""What the time of a convolution on a CPU follows from: its sizes, and the registers that they fill."""

from __future__ import annotations

from dataclasses import dataclass

from spectralkernels.convolution.library import SHORT_REGISTERS
from spectralkernels.spectra import Band

LANES = 8 if SHORT_REGISTERS else 16
"""Channels that a library convolution, a product of few columns and `dft_native` round up to: those of AVX-512, or of
a register half as long."""
LARGE = 4 << 20
"""Numbers of a spectrum that an allocator maps anew in every call: they cost more each."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the time of a call follows from.

    itemsize: bytes of a number of the computation. listed: how many modes of the band a mask lists, by steps; all if
    None. cells: whether it lists them one by one.
    """

    batch: int
    channels: int
    out_channels: int
    groups: int
    band: Band
    itemsize: int = 4
    listed: int | None = None
    cells: bool = False

    @property
    def modes(self) -> int:
        """F."""
        return self.band.modes if self.listed is None else self.listed

    @property
    def inputs(self) -> int:
        """Channels per group."""
        return self.channels // self.groups

    @property
    def outputs(self) -> int:
        """Output channels per group."""
        return self.out_channels // self.groups

    @property
    def planes(self) -> tuple[int, int, int]:
        """Of x, weight and y."""
        return self.batch * self.channels, self.out_channels * self.inputs, self.batch * self.out_channels

    @property
    def products(self) -> int:
        """Multiplications of the product over channels, per mode or per tap and sample: B O C / groups."""
        return self.batch * self.out_channels * self.inputs


def up(count: int, lanes: int = LANES) -> int:
    return -(-count // lanes) * lanes
