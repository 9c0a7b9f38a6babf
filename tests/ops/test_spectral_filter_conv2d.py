"""Spectral filter parameters as an operation (M51, T42): the layer's answer, both forms, every way, every order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from effort import gradcheck, gradgradcheck
from torch import Tensor, nn

import spectralkernels as sk
from spectralkernels.ops.spectral_filter_conv2d import kernel_basis


def coefficients(weight: Tensor, form: str) -> Tensor:
    return weight.flatten(2) @ kernel_basis(tuple(weight.shape[2:]), form)[1]


@pytest.mark.parametrize("impl", ["matmul", "ifft"])
@pytest.mark.parametrize("form", ["hermitian", "free"])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (4, 2), (5, 1)])
def test_m51_it_is_conv2d_with_the_kernel_that_it_stands_for(impl: str, form: str, kernel: tuple[int, int], seed: int):
    weight = torch.randn(6, 2, *kernel, dtype=torch.float64)
    x, bias = torch.randn(2, 4, 9, 8, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    options = {"stride": 2, "padding": 1, "dilation": (1, 2), "groups": 2}
    numbers = coefficients(weight, form)
    got = sk.spectral_filter_conv2d(x, numbers, bias, kernel_size=kernel, form=form, impl=impl, **options)
    torch.testing.assert_close(got, F.conv2d(x, weight, bias, **options))
    moved = numbers + torch.randn_like(numbers)  # no longer the spectrum of a real kernel
    both = [
        sk.spectral_filter_conv2d(x, moved, kernel_size=kernel, form=form, impl=each, groups=2)
        for each in ("matmul", "ifft")
    ]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("form", ["hermitian", "free"])
def test_t42_the_layer_is_the_operation_and_has_as_many_numbers(form: str, seed: int):
    layer = sk.nn.SpectralConv2d(4, 6, (3, 2), padding=1, form=form)
    x = torch.randn(2, 4, 7, 6)
    want = sk.spectral_filter_conv2d(x, layer.coefficients, layer.bias, kernel_size=(3, 2), form=form, padding=1)
    torch.testing.assert_close(layer(x), want)
    assert layer.coefficients[0, 0].numel() == (6 if form == "hermitian" else 12)


@pytest.mark.parametrize("impl", ["matmul", "ifft"])
@pytest.mark.parametrize("form", ["hermitian", "free"])
def test_gradients_once_and_twice(impl: str, form: str, seed: int):
    x = torch.randn(1, 1, 4, 3, dtype=torch.float64, requires_grad=True)
    numbers = coefficients(torch.randn(2, 1, 2, 3, dtype=torch.float64), form).requires_grad_()
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def convolve(*inputs: Tensor) -> Tensor:
        return sk.spectral_filter_conv2d(*inputs, kernel_size=(2, 3), form=form, impl=impl)

    assert gradcheck(convolve, (x, numbers, bias), fast_mode=True)
    assert gradgradcheck(convolve, (x, numbers, bias), fast_mode=True)


def test_it_compiles_whole_and_is_cast_as_conv2d(seed: int):
    x, weight = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3)
    numbers = (weight.double().flatten(2) @ kernel_basis((3, 3), "hermitian")[1]).float()

    def run(x: Tensor, numbers: Tensor) -> Tensor:
        return sk.spectral_filter_conv2d(x, numbers, kernel_size=3)

    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="eager")(x, numbers), run(x, numbers))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(x, numbers).dtype == torch.bfloat16
    assert run(x[0], numbers).shape == (4, 6, 5)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"kernel_size": 2}, sk.ShapeError, "must have 4 numbers for each kernel of 2 x 2 in the form 'hermitian'"),
        ({"form": "free"}, sk.ShapeError, "must have 18 numbers"),
        ({"form": "real"}, sk.RangeError, "form must be 'hermitian' or 'free', got 'real'"),
        ({"kernel_size": 0}, sk.RangeError, "kernel_size must be at least 1, got 0"),
        ({"groups": 2}, sk.ShapeError, "groups=2 must divide the 3 channels of x"),
        ({"stride": 2}, sk.RangeError, "padding must be 'valid' or numbers where there is a stride"),
        ({"padding": "valid", "dilation": 4}, sk.ShapeError, "is larger than the padded map"),
        ({"impl": "fft"}, sk.RangeError, "spectral_filter_conv2d has no implementation 'fft'"),
        ({"bias": torch.zeros(3)}, sk.ShapeError, r"bias must have shape \[4\]"),
    ],
)
def test_bad_arguments(changed: dict, error: type[Exception], message: str):
    arguments = {"x": torch.randn(1, 3, 6, 6), "coefficients": torch.randn(4, 3, 9), "kernel_size": 3}
    with pytest.raises(error, match=message):
        sk.spectral_filter_conv2d(**{**arguments, **changed})
    with pytest.raises(sk.DtypeError, match="SpectralConv2d pads zeros"):
        sk.nn.SpectralConv2d.from_conv(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
