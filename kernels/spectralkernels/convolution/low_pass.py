"""The low-pass of `direct_lowpass` along one axis: a matrix, or FFTs where those are faster."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralkernels.constants import constant, traced
from spectralkernels.convolution.ffts import filter_circle
from spectralkernels.dft import LARGEST_MATRIX_BYTES
from spectralkernels.spectra import next_smooth

LONG_SMOOTH_SIDE, LONG_SIDE = 192, 768
"""From here on a CPU filters by FFTs: N without a prime factor above 7, and any N. One core of an AMD EPYC, rows of N
samples, time of the matrix over that of the FFTs along the last axis: 1.8 at 128, 2.6 at 192, 6.5 at 512; with other N
0.4 at 194, 1.0 at 386, 0.6 at 514, 1.7 at 770, 3.8 at 2050. Along another axis, 0.8, 1.1, 2.3; 0.4, 0.7, 0.5, 1.5, 0.9.
"""
CACHED = 1 << 20
"""Numbers on their circles that are filtered at once: at once, 578 rows on a circle of 26,244 take 2.2 times as long,
and 10,608 on one of 3,200 2.5 times, by memory that is mapped anew; with fewer at a time, plans count."""


def filters_by_fft(n: int, out: int, itemsize: int, device: str) -> bool:
    """Whether `direct_lowpass` filters an axis by FFTs, not by a matrix [out, n]: where that is faster or too large."""
    if device != "cpu":
        return n * out * itemsize > LARGEST_MATRIX_BYTES
    return n >= LONG_SIDE or (n >= LONG_SMOOTH_SIDE and next_smooth(n) == n)


@constant
def low_pass_matrix(n: int, kept: int, out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Real [out, n]: the first rows of the circulant that keeps |u| < kept."""
    impulse = _low_pass_impulse(n, kept)
    lag = torch.arange(out).unsqueeze(1) - torch.arange(n).unsqueeze(0)
    return impulse[lag.remainder(n)].to(dtype=dtype, device=device)


def _low_pass_impulse(n: int, kept: int) -> Tensor:
    """Float64 [n]: the response on the circle of the filter that keeps |u| < kept."""
    spectrum = (torch.fft.fftfreq(n, 1.0 / n, dtype=torch.float64).abs() < kept).double()
    return torch.fft.ifft(spectrum).real


def filtered_by_fft(y: Tensor, axis: int, n: int, kept: int, out: int) -> Tensor:
    """The first samples of the low-pass along an axis of n, on that circle or, where its FFT is slow, on one that holds
    the filter's every lag; on a CPU as many planes at a time as a cache holds."""
    if y.numel() == 0:  # an FFT library refuses
        return y.narrow(axis, 0, out)
    circle = filter_circle(n, out)
    response = None if circle == n else _low_pass_response(n, kept, out, circle, y.dtype, y.device)
    if y.device.type != "cpu" or traced(y):
        return _filtered(y, axis, n, kept, out, circle, response)
    planes = y.flatten(0, 1)
    at_once = max(1, CACHED // (planes[0].numel() // n * circle))
    if at_once >= len(planes):
        return _filtered(y, axis, n, kept, out, circle, response)
    pieces = [_filtered(each, axis - 1, n, kept, out, circle, response) for each in planes.split(at_once)]
    return torch.cat(pieces).unflatten(0, y.shape[:2])


def _filtered(y: Tensor, axis: int, n: int, kept: int, out: int, circle: int, response: Tensor | None) -> Tensor:
    if response is None:
        low = torch.fft.rfft(y, dim=axis).narrow(axis, 0, kept)
        return torch.fft.irfft(low, n, dim=axis).narrow(axis, 0, out)
    spectrum = torch.fft.rfft(y, circle, dim=axis) * response.view(-1, *(1 for _ in y.shape[axis + 1 :]))
    return torch.fft.irfft(spectrum, circle, dim=axis).narrow(axis, 0, out)


@constant
def _low_pass_response(n: int, kept: int, out: int, circle: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Complex [M // 2 + 1]: the spectrum on a circle M >= n + out - 1 of the filter that keeps |u| < kept of n, at the
    lags from an input of n samples to an output of `out`."""
    impulse = _low_pass_impulse(n, kept)
    lags = torch.arange(1 - n, out)
    filter_ = torch.zeros(circle, dtype=torch.float64)
    filter_[lags.remainder(len(filter_))] = impulse[lags.remainder(n)]
    return torch.fft.rfft(filter_).to(dtype=dtype.to_complex(), device=device)
