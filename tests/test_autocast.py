"""Within torch.autocast: convolutions cast as conv2d does, gradients are those of the cast, spectra are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import spectralkernels as sk
from spectralkernels import masks
from spectralkernels.ops import load_operation

N = masks.fft_grid((7, 9), (3, 3))
CONVOLUTIONS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], dict[str, Any]]] = {
    "band_limited_conv1d": (sk.band_limited_conv1d, (9,), {"compression": 0.4}),
    "band_limited_conv2d": (sk.band_limited_conv2d, (7, 9), {"compression": 0.4}),
    "masked_conv2d": (sk.masked_conv2d, (7, 9), {"mask": masks.radial(N, 0.4)}),
}


def within(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype)


def drawn(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """x, weight and bias with gradients."""
    size = CONVOLUTIONS[name][1]
    shapes = {"x": (2, 4, *size), "weight": (6, 4, *(3 for _ in size)), "bias": (6,)}
    return {what: torch.randn(shape, dtype=dtype, requires_grad=True) for what, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "impl"),
    [
        *((name, impl) for name in CONVOLUTIONS for impl in ("auto", "dft_gemm", "torch_fft")),
        *((name, "direct_lowpass") for name in CONVOLUTIONS if name != "masked_conv2d"),
    ],
)
def test_a_convolution_casts_as_conv2d_does(name: str, impl: str, dtype: torch.dtype, seed: int):
    convolve, _, options = CONVOLUTIONS[name]
    inputs = drawn(name)
    with within(dtype):
        got = convolve(**inputs, **options, impl=impl)
    want = convolve(**{what: value.to(dtype) for what, value in inputs.items()}, **options, impl=impl)
    assert got.dtype == dtype and torch.equal(got, want)
    dy = torch.randn_like(want)
    leaves = tuple(inputs.values())
    gradients = torch.autograd.grad(got, leaves, dy)
    for found, expected in zip(gradients, torch.autograd.grad(want, leaves, dy), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_backward_within_the_region_casts_nothing(name: str, seed: int):
    """A habit that torch advises against and everybody has."""
    convolve, _, options = CONVOLUTIONS[name]
    inputs = drawn(name)
    leaves = tuple(inputs.values())
    with within():
        inside = torch.autograd.grad(convolve(**inputs, **options, impl="dft_gemm").float().square().sum(), leaves)
        y = convolve(**inputs, **options, impl="dft_gemm").float().square().sum()
    for found, expected in zip(inside, torch.autograd.grad(y, leaves), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_float64_and_an_inner_region_that_is_off_are_left_alone(name: str, seed: int):
    convolve, _, options = CONVOLUTIONS[name]
    for dtype in (torch.float64, torch.float32):
        inputs = drawn(name, dtype)
        with within(), torch.autocast("cpu", enabled=dtype == torch.float64):
            got = convolve(**inputs, **options)
        assert got.dtype == dtype and torch.equal(got, convolve(**inputs, **options))


def test_a_weight_frozen_within_the_region_is_the_one_frozen_outside(seed: int):
    x, weight, bias = drawn("masked_conv2d").values()
    modes = masks.mode_list(masks.radial(N, 0.4), N)
    outside = sk.masked_weight_spectrum(weight, modes, (7, 9)), sk.weight_spectrum(weight, (7, 9), compression=0.4)
    with within():
        inside = sk.masked_weight_spectrum(weight, modes, (7, 9)), sk.weight_spectrum(weight, (7, 9), compression=0.4)
        y = sk.band_limited_conv2d(x, inside[1], bias, compression=0.4)
    for found, expected in zip(inside, outside, strict=True):
        assert torch.equal(found.modes, expected.modes)
    half = (x.bfloat16(), outside[1], bias.bfloat16())
    assert y.dtype == torch.bfloat16 and torch.equal(y, sk.band_limited_conv2d(*half, compression=0.4))


@pytest.mark.parametrize(
    "impl", ["auto", *(each.name for each in sk.implementations("masked_multiply", "cpu") if each.available)]
)
def test_products_of_spectra_keep_their_precision(impl: str, seed: int):
    case, _ = next(iter(load_operation("masked_multiply").cases("smoke")))
    inputs = load_operation("masked_multiply").make_inputs(case, "cpu")
    want = sk.masked_multiply(**inputs, impl=impl)
    with within():
        assert torch.equal(sk.masked_multiply(**inputs, impl=impl), want)


@pytest.mark.slow
def test_a_compiled_convolution_casts_too(seed: int):
    x, weight, bias = drawn("band_limited_conv2d").values()

    def layer(x: Tensor) -> Tensor:
        return sk.band_limited_conv2d(x, weight, bias, compression=0.4, impl="dft_gemm")

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with within():
        assert torch.equal(compiled(x), layer(x))
    assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("impl", ["matmul", "ifft"])
def test_a_kernel_is_made_of_its_spectrum_within_the_region(impl: str, seed: int):
    x, coefficients = torch.randn(2, 3, 7, 6), torch.randn(4, 3, 9)
    want = sk.spectral_filter_conv2d(x, coefficients, kernel_size=3, form="hermitian")
    with within():
        y = sk.spectral_filter_conv2d(x, coefficients, kernel_size=3, form="hermitian", impl=impl)
    assert y.dtype == torch.bfloat16
    assert (y.float() - want).norm() <= 3 * 2.0**-8 * want.norm()
