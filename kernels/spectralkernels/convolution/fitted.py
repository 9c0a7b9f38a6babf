"""Seconds per unit of work (see `estimates`), by the registers of this machine: libraries take other ways in each."""

from __future__ import annotations

from spectralkernels.convolution import fitted_avx2, fitted_avx512
from spectralkernels.convolution.library import SHORT_REGISTERS

_OF_MACHINE = fitted_avx2 if SHORT_REGISTERS else fitted_avx512
FORWARD = _OF_MACHINE.FORWARD
FORWARD_AND_BACKWARD = _OF_MACHINE.FORWARD_AND_BACKWARD
