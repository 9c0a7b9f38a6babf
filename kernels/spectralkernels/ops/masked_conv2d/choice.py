"""What `impl="auto"` takes for a convolution under a mask: on a CPU, the least estimated time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spectralkernels.constants import traced
from spectralkernels.convolution.choice import library_serves, matrices_are_light, remembered
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.geometry import WeightSpectrum, compute_dtype, dilation_of
from spectralkernels.convolution.sizes import Sizes
from spectralkernels.declare import Decision
from spectralkernels.modes import ModeList
from spectralkernels.operators import is_differentiated
from spectralkernels.ops.masked_conv2d.baselines import all_pass
from spectralkernels.ops.masked_conv2d.dft_gemm import fits_matrices
from spectralkernels.spectra import Band, half


def auto(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    mask: Tensor,
    bias: Tensor | None,
    band: Band,
    modes: ModeList,
    groups: int,
) -> Decision:
    """Truncated transforms or torch.fft, or the library convolution where the mask is 1 everywhere."""
    too_large = fits_matrices(x, band, modes)
    if isinstance(weight, WeightSpectrum):
        because = "the weight is frozen, so that its transform is already there"
        if too_large is not None:
            return Decision("torch_fft_frozen", f"{because}, and {too_large}")
        serves = modes.steps and not is_differentiated(mask) and library_serves(x)
        return Decision("dft_native_frozen" if serves else "dft_gemm_frozen", because)
    if x.device.type != "cpu":
        return Decision("torch_fft", too_large) if too_large else Decision("dft_gemm", "no GPU has been measured yet")
    if traced(x, mask):  # by a rule without guards
        because = "only listed modes are computed, by an opaque operator"
        return Decision("torch_fft", too_large) if too_large else Decision("dft_gemm", because)
    sizes = mask_sizes(x, weight, band, modes, groups)
    names, of_mask = ["torch_fft"], is_differentiated(mask)
    if too_large is None and matrices_are_light(sizes):
        names.append("dft_gemm")
        # Like for bands, nothing waits for a compiler.
        dilated = dilation_of(band, weight.shape[2:]) != (1, 1)
        if build.READY and not (of_mask or dilated):
            names.append("dft_native")
    # A mask with a derivative needs one.
    if not of_mask and len(modes) == band.n[0] * half(band.n[1]) and all_pass(mask):
        names.append("direct")
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or of_mask)
    return remembered(tuple(names), sizes, training)


def mask_sizes(x: Tensor, weight: Tensor, band: Band, modes: ModeList, groups: int) -> Sizes:
    """What the time of a call follows from: the modes that the mask lists, in the band around them."""
    itemsize, around = compute_dtype(x.dtype).itemsize, replace(band, kept=modes.kept)
    return Sizes(len(x), x.shape[1], len(weight), groups, around, itemsize, len(modes), bool(modes.cells))
