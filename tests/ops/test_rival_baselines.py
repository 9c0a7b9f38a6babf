"""Rivals at their best: torch.fft on a size that FFT libraries like, and the answer that each is checked against."""

from __future__ import annotations

import math
import random

import pytest
import torch
from effort import draws
from torch import Tensor

import spectralkernels as sk
from spectralkernels.convolution import baselines
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.ops.band_limited_conv1d import OPERATION as SERIES
from spectralkernels.ops.band_limited_conv2d import OPERATION as MAPS
from spectralkernels.spectra import Band

FAST, FAST_BAND = MAPS.subject("torch_fft_fast"), MAPS.subject("torch_fft_fast_band")


def relative(got: Tensor, want: Tensor) -> float:
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def random_call(draw: random.Random, compression: float, dtype: torch.dtype) -> dict[str, object]:
    """A convolution of maps or series with odd, even, prime and size-1 lengths, any padding, grid and grouping."""
    axes = draw.choice((1, 2))
    size = tuple(draw.choice((1, 2, 5, 7, 9, 12, 13)) for _ in range(axes))
    kernel = tuple(draw.choice((1, 2, 3, 4, 7, 11)) for _ in range(axes))
    fits = all(k <= h for k, h in zip(kernel, size, strict=True))
    padding = draw.choice(("same", 11, "valid" if fits else "same"))
    groups, per_group, out_per_group = draw.choice((1, 2, 3)), draw.choice((1, 2)), draw.choice((1, 2))
    grid = draw.choice(("tight", "tight", "seed", "pow2"))
    band = conv_band(size, kernel, compression=compression, padding=padding, grid=grid)
    return {
        "x": torch.randn(draw.choice((1, 3)), groups * per_group, *size, dtype=torch.float64).to(dtype),
        "weight": torch.randn(groups * out_per_group, per_group, *kernel, dtype=torch.float64).to(dtype),
        "bias": torch.randn(groups * out_per_group, dtype=torch.float64).to(dtype) if draw.random() < 0.5 else None,
        "band": band,
        "groups": groups,
    }


def on_fast_grid(call: dict) -> tuple[Band, Band]:
    """The band of a call, and that of the same call on grid "fast", by the front door."""
    band = call["band"]
    padding = "same" if band.pad == conv_band(band.size, band.kernel, compression=0.0).pad else band.pad[0][0]
    return band, conv_band(band.size, band.kernel, compression=band.compression, padding=padding, grid="fast")


def test_the_fast_band_is_that_of_grid_fast_and_seven_smooth(seed: int):
    draw = random.Random(seed)
    for _ in draws(40):
        band, fast = on_fast_grid(random_call(draw, draw.choice((0.0, 0.3, 0.8)), torch.float64))
        assert baselines.fast_band(band) == fast
        assert all(210**10 % n == 0 for n in fast.n)
        reason = baselines.fast_grid_differs(band=band)
        assert (reason is None) == (band.n != fast.n)


def test_without_a_band_limit_the_fast_size_has_the_same_answer_and_gradients(seed: int):
    draw = random.Random(seed)
    for _ in draws(25):
        call = random_call(draw, 0.0, torch.float64)
        leaves = [call[name].requires_grad_() for name in ("x", "weight", "bias") if call[name] is not None]
        want, got = baselines.reference(**call), FAST.call(**call)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
        cotangent = torch.randn_like(want)
        for left, right in zip(
            torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(want, leaves, cotangent), strict=True
        ):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_with_a_band_limit_it_is_the_operation_on_grid_fast_and_no_other(dtype: torch.dtype, seed: int):
    draw = random.Random(seed)
    allowed = MAPS.tolerance.relative[str(dtype).removeprefix("torch.")]
    differed = 0
    for _ in draws(12):
        call = random_call(draw, draw.choice((0.3, 0.6)), dtype)
        leaves = [call[name].requires_grad_() for name in ("x", "weight", "bias") if call[name] is not None]
        band, fast = on_fast_grid(call)
        want = baselines.reference(**{**call, "band": fast})
        got = FAST_BAND.call(**call)
        assert got.dtype == dtype
        assert relative(got, want) <= allowed
        torch.testing.assert_close(MAPS.reference_of(FAST_BAND)(**call), want)
        if band.n != fast.n and math.prod(band.out) > 1:
            differed += relative(baselines.reference(**call), want) > 1e-6
        cotangent = torch.randn_like(want)
        found = torch.autograd.grad(got, leaves, cotangent.to(dtype))
        for left, right in zip(found, torch.autograd.grad(want, leaves, cotangent.to(dtype).double()), strict=True):
            assert relative(left, right) <= 4 * allowed
    assert differed, "another N is another operator"


@pytest.mark.parametrize("operation", [MAPS, SERIES], ids=lambda found: found.name)
def test_who_serves_which_call(operation):
    """One of the two at each compression, and neither where N is fast already."""
    axes = 2 if operation is MAPS else 1
    x, weight = torch.randn(1, 2, *(32,) * axes), torch.randn(2, 2, *(31,) * axes)

    def reasons(compression: float, grid: str) -> tuple[str | None, str | None]:
        band = conv_band((32,) * axes, (31,) * axes, compression=compression, grid=grid)
        call = {"x": x, "weight": weight, "bias": None, "band": band, "groups": 1}
        return tuple(operation.subject(name).supports(**call) for name in ("torch_fft_fast", "torch_fft_fast_band"))

    assert reasons(0.0, "tight") == (None, "at compression 0 it is an implementation, not a rival")
    assert reasons(0.5, "tight") == ("above compression 0 another N is another operator; there it is a rival", None)
    assert (
        reasons(0.0, "fast")[0]
        == "N is that of grid 'fast' already: there it is `torch_fft`"
        == reasons(0.5, "fast")[1]
    )
    timed = {name for _, block in operation.cases("study") for name in block.implementations or ()}
    assert {"torch_fft", "torch_fft_fast", "torch_fft_fast_band"} <= timed


def test_nobody_is_dispatched_to_a_rival_and_its_tensor_weights_only():
    x, weight = torch.randn(1, 1, 32, 32), torch.randn(1, 1, 31, 31)
    with pytest.raises(sk.RangeError, match="torch_fft_fast_band"):
        sk.band_limited_conv2d(x, weight, compression=0.5, impl="torch_fft_fast_band")
    with pytest.raises(sk.Unsupported, match="another N is another operator"):
        sk.band_limited_conv2d(x, weight, compression=0.5, impl="torch_fft_fast")
    frozen = sk.weight_spectrum(weight, (32, 32))
    with pytest.raises(sk.Unsupported, match="not a WeightSpectrum"):
        sk.band_limited_conv2d(x, frozen, impl="torch_fft_fast")
