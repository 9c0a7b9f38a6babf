"""Everyone else's ways to compute a band-limited convolution, and the float64 reference.

All take `x [B, C, *size]`, `weight [O, C / groups, *kernel]`, `bias [O] | None`, a `Band` and `groups`, return
`[B, O, *out]`, and work in one and two dimensions. Correlation like `conv2d`: the weight spectrum is conjugated.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.autocast import as_written
from spectralkernels.constants import Recalled, constant
from spectralkernels.convolution.direct import direct, tf32_convolution
from spectralkernels.convolution.geometry import WeightSpectrum, compute_dtype
from spectralkernels.convolution.library import convolve_in_best_layout
from spectralkernels.convolution.low_pass import filtered_by_fft, filters_by_fft, low_pass_matrix
from spectralkernels.spectra import Band, fft_size, full_frequencies, half, kept_1d, kept_2d
from spectralkernels.stages import staged
from spectralkernels.tf32 import tf32_allowed


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """The operation in float64: full complex FFT on the grid, a mask over all N x N frequencies, full inverse.

    It shares no code with the implementations: no half spectrum, no crop, no DFT matrix, no padding trick.
    """
    x, weight = x.double(), weight.double()
    axes = tuple(range(2, x.dim()))
    placed = x.new_zeros(*x.shape[:2], *band.n)
    placed[_leading(band.size)] = x
    # Kernel tap j of an axis sits at position j - pad on the circle; taps beyond a turn add up.
    kernel = weight
    for axis, (n, taps, (before, _)) in enumerate(zip(band.n, band.kernel, band.pad, strict=True), start=2):
        positions = torch.arange(-before, taps - before, device=weight.device).remainder(n)
        shape = list(kernel.shape)
        shape[axis] = n
        kernel = kernel.new_zeros(shape).index_add(axis, positions, kernel)
    x_hat = torch.fft.fftn(placed, dim=axes)
    w_hat = torch.fft.fftn(kernel, dim=axes)
    x_groups = x_hat.unflatten(1, (groups, -1))
    w_groups = w_hat.unflatten(0, (groups, -1))
    product = torch.einsum("bgc...,goc...->bgo...", x_groups, w_groups.conj()).flatten(1, 2)
    for axis, (n, kept) in enumerate(zip(band.n, band.kept, strict=True), start=2):
        frequency = torch.fft.fftfreq(n, 1.0 / n, device=x.device).abs()
        shape = [1] * product.dim()
        shape[axis] = n
        product = product * (frequency < kept).view(shape)
    y = torch.fft.ifftn(product, dim=axes).real[_leading(band.out)]
    return y if bias is None else y + _broadcast(bias.double(), axes)


def ideal(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """The uncompressed convolution in float64."""
    return direct(x.double(), weight.double(), None if bias is None else bias.double(), band, groups)


def _leading(lengths: tuple[int, ...]) -> tuple[Any, ...]:
    """The index of the first `lengths` samples of the spatial axes."""
    return (..., *(slice(0, length) for length in lengths))


def _broadcast(bias: Tensor, axes: tuple[int, ...]) -> Tensor:
    return bias.view(*bias.shape, *(1 for _ in axes))


# --- cuDNN / oneDNN with a low-pass ----------------------------------------------------------------------------------


class _Tf32Product(torch.autograd.Function):
    """a @ b for a constant matrix b with TF32 allowed, in its backward pass too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(b)
        with tf32_allowed():
            return a @ b

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (b,) = ctx.saved_tensors
        with tf32_allowed():
            return gradients[0] @ b.t(), None


def direct_lowpass_tf32(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """`direct_lowpass` with TF32 allowed in the convolution and in the low-pass."""
    with as_written(x.device.type):
        return _lowpass(x, weight, bias, band, groups, tf32_convolution, _Tf32Product.apply)


def direct_lowpass(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """Direct circular convolution on the grid, then a low-pass: the exact competitor that needs no spectrum.

    The rectangular band is separable, so the low-pass is one real circulant matrix per axis, applied to the rows of the
    output only, or FFTs where those are faster. FLOPs: those of a direct convolution on N x N plus
    2 N^2 (out_h + out_w ...) per plane, or 5 N^2 log2 N per FFT.
    """
    with as_written(x.device.type):  # half maps are computed in float32
        return _lowpass(x, weight, bias, band, groups, convolve_in_best_layout, torch.matmul)


def _lowpass(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    convolve: Callable[..., Tensor],
    product: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    dtype = x.dtype
    circle, weight = (each.to(compute_dtype(dtype)) for each in (x, weight))
    for axis, (n, taps, (before, _)) in enumerate(zip(band.n, band.kernel, band.pad, strict=True), start=2):
        circle = _unrolled(circle, axis, n, -before, n + taps - 1)
    y = convolve(circle, weight, None, tuple(0 for _ in band.n), groups)
    for axis, (n, kept, out) in enumerate(zip(band.n, band.kept, band.out, strict=True), start=2):
        if kept == half(n):
            y = y.narrow(axis, 0, out)
        elif filters_by_fft(n, out, y.dtype.itemsize, y.device.type):
            y = filtered_by_fft(y, axis, n, kept, out)
        else:
            low_pass = low_pass_matrix(n, kept, out, y.dtype, y.device)
            y = torch.movedim(product(torch.movedim(y, axis, -1), low_pass.t()), -1, axis)
    if bias is not None:
        y = y + _broadcast(bias.to(y.dtype), tuple(range(2, x.dim())))
    return y.to(dtype).contiguous()


def _unrolled(x: Tensor, axis: int, n: int, start: int, count: int) -> Tensor:
    """`count` positions from `start` on of the circle of n where x begins at 0 and zeros fill the rest: one copy."""
    size = x.shape[axis]
    shape = list(x.shape)
    shape[axis] = n - size
    parts, at = (x, x.new_zeros(shape)), start % n
    pieces = []
    while count > 0:
        part, offset, left = (parts[0], at, size - at) if at < size else (parts[1], at - size, n - at)
        left = min(left, count)
        pieces.append(part.narrow(axis, offset, left))
        at, count = (at + left) % n, count - left
    return torch.cat(pieces, axis)


# --- torch.fft ------------------------------------------------------------------------------------------------------


def torch_fft(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """rfft, crop, complex einsum, zero-restore, irfft: the algorithm of Dziedzic et al. 2019 on torch.fft."""
    if x.shape[0] == 0:  # an FFT library refuses an empty batch; the answer is as empty by any route
        return direct(x, weight, bias, band, groups)
    y_hat = _einsum(_crop(_x_hat(x, band), band), _crop(_w_hat(weight, band), band), groups)
    return _inverse(_restore(y_hat, band), x.dtype, bias, band)


def torch_fft_frozen(x: Tensor, weight: WeightSpectrum, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """`torch_fft` with the modes of a frozen weight: no transform of it, and no matrix as long as the maps."""
    if x.shape[0] == 0:
        return direct(x, zero_kernel(weight, x), bias, band, groups)
    z = _transform(x.to(compute_dtype(x.dtype)), band)
    # Modes are ordered (column, row): those of `dft.stepped_dft`.
    w = torch.complex(*weight.modes.unbind(1)).unflatten(0, (band.columns, -1)).movedim(2, 0)
    w = w.unflatten(0, (weight.out_channels, weight.in_channels_per_group))
    w = w.mT if len(band.n) == 2 else w.squeeze(3)
    return _inverse(_restore(_einsum(_crop(z, band), w, groups), band), x.dtype, bias, band)


def zero_kernel(spectrum: WeightSpectrum, like: Tensor) -> Tensor:
    """A kernel of the shape that a frozen one had, for an empty batch."""
    return like.new_zeros(spectrum.out_channels, spectrum.in_channels_per_group, *spectrum.band.kernel)


def fast_band(band: Band) -> Band:
    """The same convolution and rate on grid "fast": the next 7-smooth N, where FFT libraries have no slow path.

    At compression 0 the answer is the same one; above it another N is another operator.
    """
    sides = zip(band.size, band.kernel, band.pad, band.out, strict=True)
    n = tuple(fft_size(*side, "fast") for side in sides)
    kept = kept_1d if len(n) == 1 else kept_2d
    return replace(band, n=n, kept=tuple(kept(each, band.compression) for each in n))


def torch_fft_fast(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """`torch_fft` on grid "fast", whatever grid the call asks for."""
    return torch_fft(x, weight, bias, fast_band(band), groups)


def fast_reference(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """The operation on grid "fast" in float64: what the rival `torch_fft_fast_band` computes."""
    return reference(x, weight, bias, fast_band(band), groups)


def fast_grid_differs(band: Band, **rest: Any) -> str | None:
    """On the fast grid itself there is nothing to gain."""
    return None if fast_band(band).n != band.n else "N is that of grid 'fast' already: there it is `torch_fft`"


def cufft_triton(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """rfft, one Triton kernel that crops, multiplies, sums and zero-pads in place of four steps, irfft."""
    from spectralkernels.ops.masked_multiply import masked_multiply

    if x.shape[0] == 0:
        return direct(x, weight, bias, band, groups)
    x_hat, w_hat = _x_hat(x, band), _w_hat(weight, band)
    if len(band.n) == 1:
        x_hat, w_hat = x_hat.unsqueeze(-2), w_hat.unsqueeze(-2)
    y_hat = masked_multiply(x_hat, w_hat, band_mask(band, x.device), groups=groups, impl="triton")
    return _inverse(y_hat if len(band.n) == 2 else y_hat.squeeze(-2), x.dtype, bias, band)


def plan_cufft_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """What computes `cufft_triton` of these sizes in float32, on this device, where no gradient is wanted.

    The product is planned in the first call, because its spectra lie as the FFT leaves them.
    """
    from spectralkernels.ops.masked_multiply import planned

    if x.shape[0] == 0:
        return partial(cufft_triton, band=band, groups=groups)
    flat = [zeros for before, _ in reversed(band.pad) for zeros in (before, 0)]
    n, axes, leading, series = band.n, _axes(x), _leading(band.out), len(band.n) == 1
    fits = all(taps <= n for taps, n in zip(weight.shape[2:], band.n, strict=True))
    form = (weight.shape[0], *(1 for _ in axes))
    mask, multiply = Recalled(band_mask, band, x.device), None

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        nonlocal multiply
        x_hat = torch.fft.rfftn(F.pad(x, flat), s=n, dim=axes)
        w_hat = torch.fft.rfftn(weight, s=n, dim=axes) if fits else _w_hat(weight, band)
        if series:
            x_hat, w_hat = x_hat.unsqueeze(-2), w_hat.unsqueeze(-2)
        if multiply is None:
            multiply = planned(x_hat, w_hat, mask(), groups)
        y_hat = multiply(x_hat, w_hat, mask())
        y = torch.fft.irfftn(y_hat.squeeze(-2) if series else y_hat, s=n, dim=axes)[leading]
        return y.contiguous() if bias is None else (y + bias.view(form)).contiguous()

    return forward


@constant
def band_mask(band: Band, device: torch.device) -> Tensor:
    """Bool [rows, columns] of the half spectrum, True where kept; a series has one row."""
    rows = band.n[0] if len(band.n) == 2 else 1
    mask = torch.zeros(rows, half(band.n[-1]), dtype=torch.bool, device=device)
    mask[list(band.rows), : band.columns] = True
    return mask


def _x_hat(x: Tensor, band: Band) -> Tensor:
    return _transform(_padded(x, band), band)


@staged("pad")
def _padded(x: Tensor, band: Band) -> Tensor:
    # Zeros before the map, as many as the padding asks for, make output i come out at position i.
    flat = [zeros for before, _ in reversed(band.pad) for zeros in (before, 0)]
    return F.pad(x.to(compute_dtype(x.dtype)), flat)


@staged("transform")
def _transform(tensor: Tensor, band: Band) -> Tensor:
    return torch.fft.rfftn(tensor, s=band.n, dim=_axes(tensor))


def _w_hat(weight: Tensor, band: Band) -> Tensor:
    weight = weight.to(compute_dtype(weight.dtype))
    for axis, n in enumerate(band.n, start=2):
        turns = math.ceil(weight.shape[axis] / n)
        if turns > 1:  # a kernel larger than the circle wraps onto it
            flat = [0, 0] * (weight.dim() - 1 - axis) + [0, turns * n - weight.shape[axis]]
            weight = F.pad(weight, flat).unflatten(axis, (turns, n)).sum(axis)
    return _transform(weight, band)


def _axes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(range(2, tensor.dim()))


@staged("crop")
def _crop(spectrum: Tensor, band: Band) -> Tensor:
    spectrum = spectrum[..., : band.columns]
    if len(band.n) == 1 or len(band.rows) == band.n[0]:
        return spectrum
    k = band.kept[0]
    if k == 1:
        return spectrum[..., :1, :]
    return torch.cat([spectrum[..., :k, :], spectrum[..., -(k - 1) :, :]], dim=-2)


@staged("restore")
def _restore(cropped: Tensor, band: Band) -> Tensor:
    cropped = F.pad(cropped, (0, half(band.n[-1]) - band.columns))
    if len(band.n) == 1 or len(band.rows) == band.n[0]:
        return cropped
    k, n = band.kept[0], band.n[0]
    zeros = cropped.new_zeros(*cropped.shape[:-2], n - len(full_frequencies(n, k)), cropped.shape[-1])
    return torch.cat([cropped[..., :k, :], zeros, cropped[..., k:, :]], dim=-2)


@staged("multiply")
def _einsum(x_hat: Tensor, w_hat: Tensor, groups: int) -> Tensor:
    if groups == 1:
        return torch.einsum("bc...,oc...->bo...", x_hat, w_hat.conj())
    if w_hat.shape[1] == 1 and w_hat.shape[0] == x_hat.shape[1]:  # depthwise
        return x_hat * w_hat[:, 0].conj()
    x_groups, w_groups = x_hat.unflatten(1, (groups, -1)), w_hat.unflatten(0, (groups, -1))
    return torch.einsum("bgc...,goc...->bgo...", x_groups, w_groups.conj()).flatten(1, 2)


@staged("inverse")
def _inverse(y_hat: Tensor, dtype: torch.dtype, bias: Tensor | None, band: Band) -> Tensor:
    axes = _axes(y_hat)
    y = torch.fft.irfftn(y_hat, s=band.n, dim=axes)[_leading(band.out)]
    return (y if bias is None else y + _broadcast(bias.to(y.dtype), axes)).to(dtype).contiguous()


# --- the same under torch.compile, and a peer -----------------------------------------------------------------------


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(torch_fft, dynamic=False)


def torch_fft_compile(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """`torch_fft` under torch.compile; the first call at a shape compiles."""
    return _compiled()(x, weight, bias, band, groups)


def compile_available(device: str) -> str | None:
    """torch.compile on a CPU needs a C++ compiler."""
    if device == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "torch.compile needs a C++ compiler (g++ or clang++) on a CPU, and none is on PATH"
    return None


def fft_conv_pytorch(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """The outside peer `fft-conv-pytorch`: torch.fft convolution without a band limit."""
    from fft_conv_pytorch import fft_conv

    return fft_conv(x, weight, bias, padding=tuple(before for before, _ in band.pad), groups=groups)


def peer_available(device: str) -> str | None:
    if importlib.util.find_spec("fft_conv_pytorch") is None:
        return "fft-conv-pytorch is not installed (pip install 'spectralbench[peers]')"
    return None


def peer_supports(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> str | None:
    if band.compression != 0.0:
        return "fft-conv-pytorch has no band limit; it needs compression=0"
    if x.shape[0] == 0:
        return "fft-conv-pytorch takes no empty batch"
    if x.dtype != torch.float32:
        return f"fft-conv-pytorch computes in float32, got {x.dtype}"
    if any(before != after for before, after in band.pad):
        return "fft-conv-pytorch pads both sides alike; an even kernel with padding='same' does not"
    if any(k > h + 2 * p for k, h, (p, _) in zip(band.kernel, band.size, band.pad, strict=True)):
        return "fft-conv-pytorch takes no kernel larger than the padded map"
    return None
