"""`direct_lowpass` on long sides: filtered by FFTs, on the circle of N or on one that holds the filter's every lag."""

from __future__ import annotations

import pytest
import torch

import spectralkernels as sk
from spectralkernels import constants
from spectralkernels.convolution import low_pass
from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.convolution.library import convolve, convolve_in_best_layout
from spectralkernels.convolution.low_pass import filtered_by_fft, filters_by_fft, low_pass_matrix

# Smooth, rough even, prime, and a side of a map beside a short one.
SIZES = [((192,),), ((770,),), ((1031,),), ((192, 5),), ((3, 773),), ((1, 1024),), ((193, 192),)]


@pytest.mark.parametrize(("size",), SIZES)
@pytest.mark.parametrize("padding", ["same", "valid", 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_answer_is_that_of_the_reference(size: tuple[int, ...], padding: str | int, dtype: torch.dtype, seed: int):
    kernel = tuple(min(side, taps) for side, taps in zip(size, (4, 7), strict=False))
    x, weight, bias = torch.randn(2, 4, *size, dtype=dtype), torch.randn(6, 2, *kernel, dtype=dtype), torch.randn(6)
    x = x.transpose(0, 1).contiguous().transpose(0, 1)  # strided
    call = sk.band_limited_conv1d if len(size) == 1 else sk.band_limited_conv2d
    band = conv_band(size, kernel, compression=0.6, padding=padding)
    how = {"compression": 0.6, "padding": padding, "groups": 2, "impl": "direct_lowpass"}
    y = call(x, weight, bias.to(dtype), **how)
    wanted = reference(x, weight, bias.to(dtype), band, 2)
    error = (y.double() - wanted).norm() / wanted.norm()
    assert error < {torch.float32: 3e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3}[dtype]
    assert call(x[:0], weight, bias.to(dtype), **how).shape == (0, *y.shape[1:])


@pytest.mark.parametrize("length", [192, 769])
@pytest.mark.parametrize("kept", [1, 40])
def test_a_filter_is_its_matrix(length: int, kept: int, seed: int, monkeypatch: pytest.MonkeyPatch):
    """At once and a few planes at a time."""
    y = torch.randn(3, 2, length, 2, dtype=torch.float64)
    for out in (1, length - 5, length):
        matrix = low_pass_matrix(length, kept, out, torch.float64, torch.device("cpu"))
        by_matrix = torch.einsum("on,bcnv->bcov", matrix, y)
        for cached in (1, 10 * length, low_pass.CACHED):
            monkeypatch.setattr(low_pass, "CACHED", cached)
            found = filtered_by_fft(y, 2, length, kept, out)
            torch.testing.assert_close(found, by_matrix, rtol=0.0, atol=1e-12)


def test_gradients_are_those_of_the_matrices(seed: int):
    x, weight = torch.randn(1, 2, 773, requires_grad=True), torch.randn(3, 2, 5, requires_grad=True)
    found, wanted = (
        torch.autograd.grad(sk.band_limited_conv1d(x, weight, compression=0.5, impl=impl).sin().sum(), (x, weight))
        for impl in ("direct_lowpass", "dft_gemm")
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_where_ffts_filter():
    assert [filters_by_fft(n, n, 4, "cpu") for n in (191, 192, 194, 767, 773)] == [False, True, False, False, True]
    assert [filters_by_fft(n, n, 4, "cuda") for n in (1031, 4096)] == [False, True]


def test_nothing_is_filtered_where_every_frequency_is_kept(seed: int):
    constants.forget()
    x, weight = torch.randn(1, 1, 1031), torch.randn(1, 1, 3)
    y = sk.band_limited_conv1d(x, weight, impl="direct_lowpass")
    torch.testing.assert_close(y, torch.nn.functional.conv1d(x, weight, padding=1), rtol=1e-5, atol=1e-5)
    assert constants.kept_bytes() == 0


@pytest.mark.parametrize("shape", [(2, 6, 40), (2, 6, 9, 40)])
def test_the_better_layout_gives_the_same_sums(shape: tuple[int, ...], seed: int):
    x, weight, bias = torch.randn(shape), torch.randn(6, 1, *(3, 12)[4 - len(shape) :]), torch.randn(6)
    padding = tuple(0 for _ in shape[2:])
    found = convolve_in_best_layout(x, weight, bias, padding, 6)
    assert found.is_contiguous()
    torch.testing.assert_close(found, convolve(x, weight, bias, padding, 6), rtol=1e-4, atol=1e-5)
