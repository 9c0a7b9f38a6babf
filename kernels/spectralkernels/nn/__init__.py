"""Layers over the operations, and what turns a whole model to them.

report = sk.nn.convert(model, compression=0.5)                    # which layers were swapped, which kept, and why
sk.nn.set_compression(model, 0.8)
sk.nn.freeze_from_energy(model, batches, energy=0.9)
print(sk.nn.report(model, x))                                     # what each layer saves, computes and takes here
"""

from spectralkernels.nn.conversion import Conversion, LayerDecision, convert
from spectralkernels.nn.convolution import BandLimitedConv1d, BandLimitedConv2d, MaskedConv2d
from spectralkernels.nn.parametrised import PHConv2d, SpectralConv2d
from spectralkernels.nn.pooling import DiffStride2d, FrequencyDropout2d, SpectralPool2d
from spectralkernels.nn.rates import freeze_from_energy, set_compression
from spectralkernels.nn.relu import BitReLU
from spectralkernels.nn.reporting import LayerReport, ModelReport, report
from spectralkernels.nn.spec_block import SpecBlock

__all__ = [
    "BandLimitedConv1d",
    "BandLimitedConv2d",
    "BitReLU",
    "Conversion",
    "DiffStride2d",
    "FrequencyDropout2d",
    "LayerDecision",
    "LayerReport",
    "MaskedConv2d",
    "ModelReport",
    "PHConv2d",
    "SpecBlock",
    "SpectralConv2d",
    "SpectralPool2d",
    "convert",
    "freeze_from_energy",
    "report",
    "set_compression",
]
