"""Layers over the operations, and what turns a whole model to them.

from spectralkernels import nn
print(nn.convert(model, compression=0.5))      # which layers were swapped, which kept, and why
"""

from spectralkernels.nn.convolution import BandLimitedConv1d, BandLimitedConv2d, MaskedConv2d

__all__ = ["BandLimitedConv1d", "BandLimitedConv2d", "MaskedConv2d"]
