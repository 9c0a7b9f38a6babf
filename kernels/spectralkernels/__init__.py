"""spectralkernels: spectral-domain convolution and its baselines, one mathematical contract per operation.

    import spectralkernels as sk
    y = sk.band_limited_conv2d(x, weight, compression=0.5)
    sk.implementations("band_limited_conv2d")      # who can compute it here, and why the others cannot

Needs torch alone; Triton, CUDA and everything else only add implementations.
"""

import torch

from spectralkernels import diagnose, masks, nn
from spectralkernels.autotuning import autotune
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.dispatch import Availability, Explanation
from spectralkernels.errors import DtypeError, RangeError, ShapeError, SpectralKernelsError, Unsupported
from spectralkernels.explain import explain
from spectralkernels.ops import implementations
from spectralkernels.ops.band_limited_conv1d import band_limited_conv1d
from spectralkernels.ops.band_limited_conv2d import band_limited_conv2d, weight_spectrum
from spectralkernels.ops.crop_restore import crop_restore
from spectralkernels.ops.dc_shift import dc_shift
from spectralkernels.ops.diff_stride2d import diff_stride2d
from spectralkernels.ops.energy_selection2d import energy_selection2d
from spectralkernels.ops.frequency_dropout2d import frequency_dropout2d
from spectralkernels.ops.masked_conv2d import masked_conv2d, masked_weight_spectrum
from spectralkernels.ops.masked_multiply import masked_multiply
from spectralkernels.ops.ph_conv2d import ph_conv2d, ph_kernel
from spectralkernels.ops.sparse_multiply import sparse_multiply
from spectralkernels.ops.spec_block import spec_block
from spectralkernels.ops.spectral_filter_conv2d import spectral_filter_conv2d
from spectralkernels.ops.spectral_pool2d import spectral_pool2d
from spectralkernels.ops.spectrum_selection import spectrum_selection
from spectralkernels.ops.threshold_spectrum import threshold_spectrum
from spectralkernels.sparse import SparseSpectrum
from spectralkernels.spectra import Band

__all__ = [
    "Availability",
    "DtypeError",
    "Explanation",
    "RangeError",
    "ShapeError",
    "SparseSpectrum",
    "SpectralKernelsError",
    "Unsupported",
    "WeightSpectrum",
    "autotune",
    "band_limited_conv1d",
    "band_limited_conv2d",
    "crop_restore",
    "dc_shift",
    "diagnose",
    "diff_stride2d",
    "energy_selection2d",
    "explain",
    "frequency_dropout2d",
    "implementations",
    "masked_conv2d",
    "masked_multiply",
    "masked_weight_spectrum",
    "masks",
    "nn",
    "ph_conv2d",
    "ph_kernel",
    "sparse_multiply",
    "spec_block",
    "spectral_filter_conv2d",
    "spectral_pool2d",
    "spectrum_selection",
    "threshold_spectrum",
    "weight_spectrum",
]

# What torch.load(weights_only=True) may make of a file.
# A ModeList of an older file is named by where it was.
torch.serialization.add_safe_globals(
    [Band, SparseSpectrum, WeightSpectrum, masks.ModeList, (masks.ModeList, "spectralkernels.masks.modes.ModeList")]
)

__version__ = "0.1.0"
