"""The geometry of a fused depthwise convolution, for its tests."""

from __future__ import annotations

from spectralkernels.convolution.fused_depthwise.matrices import MapGeometry
from spectralkernels.spectra import Band


def geometry_of(band: Band) -> MapGeometry:
    return MapGeometry(band.size, band.out, band.kernel, tuple(-before for before, _ in band.pad), band.n, band.kept)
