"""What `impl="auto"` takes for a convolution under a mask, from crossovers measured on a CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectralkernels.convolution import implementations
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.declare import Decision
from spectralkernels.masks.modes import ModeList
from spectralkernels.ops.masked_conv2d.baselines import all_pass
from spectralkernels.ops.masked_conv2d.dft_gemm import fits_matrices
from spectralkernels.spectra import Band, half

# Arithmetic of the matrix products over that of the FFTs from which the FFTs are faster. Batch 2, K = 7, one EPYC core,
# time of torch_fft over time of dft_gemm: 5 to 12 at ratios up to 4 (64 -> 64 channels of 32x32, 16 -> 16 of 64x64),
# 1.3 at 6, 1.1 at 7, 0.7 to 0.8 at 10 and 11, 0.5 at 18, 0.1 at 30 (depthwise, 4 channels of 256x256). A backward pass
# favours the matrices by 1.4 more, so that the boundary lies where both are about even.
FFT_FLOP_RATIO = 10.0


def auto(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    mask: Tensor,
    bias: Tensor | None,
    band: Band,
    modes: ModeList,
    groups: int,
) -> Decision:
    """The library convolution or torch.fft where they are faster on a CPU, else the matrix products."""
    if isinstance(weight, WeightSpectrum):
        because = "the weight is frozen, so that its transform is already there"
        if (why := fits_matrices(x, band, modes)) is not None:
            return Decision("torch_fft_frozen", f"{because}, and {why}")
        return Decision("dft_gemm_frozen", because)
    if (why := fits_matrices(x, band, modes)) is not None:
        return Decision("torch_fft", why)
    if x.device.type != "cpu":
        return Decision("dft_gemm", "no GPU has been measured yet")
    # A mask with a gradient needs one, and a traced mask cannot be read.
    readable = not mask.requires_grad and not torch.compiler.is_compiling()
    if readable and len(modes) == band.n[0] * half(band.n[1]) and all_pass(mask):
        unmasked = implementations.auto(x, weight, bias, band, groups)
        if unmasked.name == "direct":
            return Decision("direct", f"the mask is 1 everywhere: {unmasked.because}")
    ratio = flop_ratio(len(x), x.shape[1], len(weight), groups, band, modes)
    if ratio > FFT_FLOP_RATIO:
        because = f"the matrices need {ratio:.0f} times the arithmetic of the FFTs, above {FFT_FLOP_RATIO:g}"
        return Decision("torch_fft", because)
    return Decision("dft_gemm", "only listed modes are computed, as matrix products: the fastest on a CPU")


def flop_ratio(batch: int, channels: int, out_channels: int, groups: int, band: Band, modes: ModeList) -> float:
    """FLOPs of the truncated transforms of x, weight and y over those of as many FFTs on the circle.

    The product over channels is the same for both.
    """
    planes = (batch * channels, out_channels * (channels // groups), batch * out_channels)
    matrices = sum(
        count * _transform(height, width, modes)
        for count, (height, width) in zip(planes, (band.size, band.kernel, band.out), strict=True)
    )
    circle = math.prod(band.n)
    return matrices / max(1.0, sum(planes) * 2.5 * circle * math.log2(max(2, circle)))


def _transform(height: int, width: int, modes: ModeList) -> int:
    """Of one plane: one dense matrix for cells, one real and one complex product for a staircase."""
    if modes.cells:
        return 4 * height * width * len(modes)
    return 4 * height * width * modes.kept[1] + 8 * height * len(modes)
