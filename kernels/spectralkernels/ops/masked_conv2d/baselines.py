"""Masked convolution on torch.fft, and the float64 reference on full complex spectra."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.checks import samples
from spectralkernels.constants import outside_every_mode, traced
from spectralkernels.convolution import baselines
from spectralkernels.convolution import direct as convolution
from spectralkernels.convolution.baselines import zero_kernel
from spectralkernels.convolution.geometry import WeightSpectrum, compute_dtype, dilation_of
from spectralkernels.convolution.strided import spread
from spectralkernels.modes import ModeList
from spectralkernels.operators import is_differentiated, nothing_traces
from spectralkernels.ops.masked_conv2d.dft_gemm import flat_indices
from spectralkernels.spectra import Band, half


def torch_fft(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    mask: Tensor,
    bias: Tensor | None,
    band: Band,
    modes: ModeList,
    groups: int,
) -> Tensor:
    """rfft2 of map and kernel, complex einsum at the listed modes, times the mask, zeros elsewhere, irfft2.

    A frozen weight brings its spectrum at the listed modes.
    """
    if x.shape[0] == 0:  # an FFT library refuses an empty batch; the answer is as empty by any route
        weight = _spread(weight, band) if isinstance(weight, Tensor) else zero_kernel(weight, x)
        y = convolution.direct(x, weight, bias, band, groups)
        return y + mask.sum().to(y.dtype) if is_differentiated(mask) else y  # to no number, for a gradient of zero
    dtype = compute_dtype(x.dtype)
    flat = flat_indices(modes, x.device)
    if isinstance(weight, Tensor):
        (top, _), (left, _) = band.pad
        w_kept = (
            torch.fft.rfft2(_wrapped(_spread(weight.to(dtype), band), band), s=band.n).flatten(2).index_select(2, flat)
        )
    else:  # its modes are those of a kernel that begins before the origin
        top = left = 0
        w_kept = torch.complex(*weight.modes.unbind(1)).t().unflatten(0, (weight.out_channels, -1))
    # Zeros before the map, as many as the padding asks for, make output i come out at position i.
    x_hat = torch.fft.rfft2(F.pad(x.to(dtype), (left, 0, top, 0)), s=band.n).flatten(2)
    x_groups, w_groups = x_hat.index_select(2, flat).unflatten(1, (groups, -1)), w_kept.unflatten(0, (groups, -1))
    product = torch.einsum("bgcf,gocf->bgof", x_groups, w_groups.conj()).flatten(1, 2)
    y_kept = product * mask.flatten(-2)[..., flat].to(dtype)
    y_hat = y_kept.new_zeros(*y_kept.shape[:2], band.n[0] * half(band.n[1])).index_copy(2, flat, y_kept)
    y = torch.fft.irfft2(y_hat.unflatten(2, (band.n[0], -1)), s=band.n)
    y = y[..., : band.out[0], : band.out[1]]
    return (y if bias is None else y + bias.to(dtype).view(-1, 1, 1)).to(x.dtype).contiguous()


def direct(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, band: Band, modes: ModeList, groups: int
) -> Tensor:
    """The library convolution, cuDNN on a GPU and oneDNN on a CPU: the answer where the mask is 1 everywhere, without a
    gradient of the mask; the rival `direct_uncompressed` elsewhere."""
    return convolution.direct(x, _spread(weight, band), bias, band, groups)


def direct_supports(mask: Tensor, modes: ModeList, **rest: Any) -> str | None:
    """Direct convolution has no mask. Reads the mask, so that a CUDA device is waited for."""
    if not modes.whole:
        return f"direct convolution drops no mode, and only {modes.count} of this grid's are listed"
    if is_differentiated(mask):
        return "direct convolution has no gradient of the mask; detach it, or take another implementation"
    if traced(mask):
        return "direct convolution has no mask, and this one cannot be read to see whether it is one of ones"
    return None if all_pass(mask) else "direct convolution has no mask; it needs one of ones"


def direct_reads(mask: Tensor, modes: ModeList, **rest: Any) -> bool:
    """Whether it depends on the mask's numbers if direct convolution serves: on whether all of them are one."""
    return modes.whole and not is_differentiated(mask)


def all_pass(mask: Tensor) -> bool:
    """Whether a mask changes nothing."""

    def all_ones(mask: Tensor) -> bool:
        return bool((mask if mask.dtype == torch.bool else mask == 1).all())

    return all_ones(mask) if nothing_traces() else outside_every_mode(lambda: all_ones(samples(mask)), (mask.device,))


def _spread(weight: Tensor, band: Band) -> Tensor:
    return spread(weight, dilation_of(band, weight.shape[2:]))


def _wrapped(weight: Tensor, band: Band) -> Tensor:
    """A kernel larger than the circle, wrapped onto it."""
    for axis, n in ((2, band.n[0]), (3, band.n[1])):
        turns = math.ceil(weight.shape[axis] / n)
        if turns > 1:
            missing = turns * n - weight.shape[axis]
            weight = (
                F.pad(weight, (0, 0, 0, missing) if axis == 2 else (0, missing)).unflatten(axis, (turns, n)).sum(axis)
            )
    return weight


def reference(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, band: Band, modes: ModeList, groups: int
) -> Tensor:
    """The operation in float64: full complex FFTs, the mask mirrored to all N_h x N_w frequencies, full inverse.

    It uses no half spectrum, no mode list and no DFT matrix. The real part of the inverse is the mean of the mask over
    each conjugate pair, so that a mask of any symmetry has an answer.
    """
    x, weight, mask = x.double(), _spread(weight.double(), band), mask.double()
    placed = F.pad(x, (0, band.n[1] - band.size[1], 0, band.n[0] - band.size[0]))
    kernel = weight
    for axis, (n, taps, (before, _)) in enumerate(zip(band.n, band.kernel, band.pad, strict=True), start=2):
        # Kernel tap j sits at position j - pad on the circle; taps beyond a turn add up.
        positions = torch.arange(-before, taps - before, device=weight.device).remainder(n)
        shape = list(kernel.shape)
        shape[axis] = n
        kernel = kernel.new_zeros(shape).index_add(axis, positions, kernel)
    x_hat = torch.fft.fft2(placed).unflatten(1, (groups, -1))
    w_hat = torch.fft.fft2(kernel).unflatten(0, (groups, -1))
    product = torch.einsum("bgcuv,gocuv->bgouv", x_hat, w_hat.conj()).flatten(1, 2)
    y = torch.fft.ifft2(product * full_mask(mask, band.n)).real[..., : band.out[0], : band.out[1]]
    return y if bias is None else y + bias.double().view(-1, 1, 1)


def ideal(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, band: Band, modes: ModeList, groups: int
) -> Tensor:
    """The uncompressed convolution in float64."""
    return baselines.ideal(x, _spread(weight, band), bias, band, groups)


def full_mask(mask: Tensor, n: tuple[int, ...]) -> Tensor:
    """[..., N_h, N_w // 2 + 1] -> [..., N_h, N_w]: the frequency (-u, -v) has the weight of (u, v)."""
    rows = torch.arange(0, -n[0], -1, device=mask.device).remainder(n[0])
    redundant = torch.arange(n[1] - half(n[1]), 0, -1, device=mask.device)
    return torch.cat([mask, mask[..., rows, :][..., redundant]], dim=-1)
