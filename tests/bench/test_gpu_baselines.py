"""The baselines that a sceptic asks for on a GPU: other layouts and roundings of the same product, each a named choice.

On a CPU TF32 does nothing, so what can be proven here is the answer, the gradients, the flags and where they run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from spectralkernels import layouts
from spectralkernels.convolution import baselines, direct
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.ops.band_limited_conv2d import OPERATION as CONV
from spectralkernels.ops.masked_multiply import OPERATION as MULTIPLY
from spectralkernels.ops.masked_multiply import reference
from spectralkernels.ops.masked_multiply.baselines import COARSE_COMPUTES
from spectralkernels.tf32 import tf32_allowed, tf32_unavailable

MODES: tuple[Callable[..., Tensor], ...] = (
    direct.direct_channels_last,
    direct.direct_tf32,
    direct.direct_channels_last_tf32,
)


def relative(got: Tensor, want: Tensor) -> float:
    got, want = got.detach().to(want.dtype), want.detach()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def flags() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return (torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, cudnn.enabled)


@contextmanager
def flags_of(precision: str, benchmark: bool, tf32: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, deterministic=False, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("searching", [False, True])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_tf32_is_allowed_inside_and_every_flag_is_as_before_outside(precision: str, searching: bool) -> None:
    with flags_of(precision, searching, tf32=False):
        before = flags()
        with tf32_allowed():
            assert flags() == ("high", True, searching, False, True)
        assert flags() == before
        with pytest.raises(ZeroDivisionError), tf32_allowed():
            raise ZeroDivisionError
        assert flags() == before


def test_tf32_is_a_mode_of_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tf32_unavailable("cpu") == "TF32 is a mode of CUDA's tensor cores"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert tf32_unavailable("cuda") == "TF32 needs compute capability 8.0, this device has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert tf32_unavailable("cuda") is None


@pytest.mark.parametrize("call", MODES, ids=lambda call: call.__name__)
def test_other_modes_of_the_library_convolution_give_its_answer_and_gradients(
    call: Callable[..., Tensor], seed: int
) -> None:
    rng = random.Random(seed)
    for _ in range(8):
        groups, size = rng.choice((1, 2, 3)), (rng.randint(1, 9), rng.randint(1, 9))
        kernel = (rng.randint(1, 5), rng.randint(1, 5))
        x = torch.randn(rng.randint(1, 3), 2 * groups, *size, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(3 * groups, 2, *kernel, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(3 * groups, dtype=torch.float64, requires_grad=True) if rng.random() < 0.7 else None
        band = conv_band(size, kernel, compression=0.0)
        leaves = [x, weight] if bias is None else [x, weight, bias]
        want, got = (route(x, weight, bias, band, groups) for route in (direct.direct, call))
        assert relative(got, want) < 1e-14, (size, kernel, groups)
        dy = torch.randn_like(want)
        for mine, theirs in zip(*(torch.autograd.grad(y, leaves, dy) for y in (got, want)), strict=True):
            assert relative(mine, theirs) < 1e-13


def test_a_low_pass_in_tf32_is_the_same_low_pass(seed: int) -> None:
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    band = conv_band((7, 6), (3, 4), compression=0.5)
    routes = (baselines.direct_lowpass, baselines.direct_lowpass_tf32)
    want, got = (route(x, weight, bias, band, 2) for route in routes)
    assert relative(got, want) < 1e-14
    dy = torch.randn_like(want)
    gradients = (torch.autograd.grad(y, (x, weight, bias), dy) for y in (got, want))
    for mine, theirs in zip(*gradients, strict=True):
        assert relative(mine, theirs) < 1e-13


def test_tf32_is_allowed_in_the_backward_pass_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd reads the flag again when the backward pass runs, long after the forward pass has put it back."""
    seen = []
    real = torch.ops.aten.convolution_backward

    class Aten:
        @staticmethod
        def convolution_backward(*arguments: object) -> object:
            seen.append(flags()[:2])
            return real(*arguments)

    x, weight = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 3, 3)
    with flags_of("highest", False, tf32=False):
        y = direct.direct_tf32(x, weight, None, conv_band((5, 5), (3, 3), compression=0.0), 1)
        monkeypatch.setattr(torch.ops, "aten", Aten)
        y.sum().backward()
        assert flags()[:2] == ("highest", False)
    assert seen == [("high", True)]


def test_channels_last_maps_are_made_outside_the_clock_and_taken_as_they_are() -> None:
    x, weight = torch.randn(2, 4, 6, 5), torch.randn(4, 4, 3, 3)
    band = conv_band((6, 5), (3, 3), compression=0.0)
    prepared = direct.prepare_channels_last(x, weight, None, band, 1)
    assert prepared["x"].is_contiguous(memory_format=torch.channels_last)
    y = direct.direct_channels_last(**prepared)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert layouts.in_channels_last(prepared["x"]) is prepared["x"], "nothing is copied inside the clock"


@pytest.mark.parametrize("name", ["direct", "direct_uncompressed"])
def test_a_mode_says_why_it_does_not_serve_a_call(name: str) -> None:
    series = conv_band((8,), (3,), compression=0.0 if name == "direct" else 0.5)
    one = {"x": torch.randn(1, 2, 8), "weight": torch.randn(2, 2, 3), "bias": None, "band": series, "groups": 1}
    assert CONV.subject(f"{name}_channels_last").supports(**one) == "torch has no channels_last layout for series"
    half = {**one, "x": one["x"].half(), "weight": one["weight"].half()}
    assert CONV.subject(f"{name}_tf32").supports(**half) == "TF32 rounds float32 maps, got float16"
    assert CONV.subject(f"{name}_tf32").supports(**one) is None
    wrong = {**one, "band": conv_band((8,), (3,), compression=0.5 if name == "direct" else 0.0)}
    assert "compression" in str(CONV.subject(f"{name}_tf32").supports(**wrong))


@pytest.mark.parametrize("name", ["complex_bmm_tf32", "real_bmm_tf32", "real_bmm_fp16", "real_bmm_bf16"])
def test_rounded_products_keep_the_bound_of_their_class_and_the_16_bit_ones_use_it(name: str, seed: int) -> None:
    rng = random.Random(seed)
    bound = MULTIPLY.implementation(name).tolerance
    assert bound is not None
    for channels in (1, 7, 64, 512):
        groups, plane = rng.choice((1, 2)), (rng.randint(1, 7), rng.randint(1, 6))
        x = torch.randn(3, groups * channels, *plane, dtype=torch.complex64)
        w = torch.randn(groups * 2, channels, *plane, dtype=torch.complex64) / channels**0.5
        mask = torch.rand(plane) < 0.6
        mask[0, 0] = True
        error = relative(COARSE_COMPUTES[name](x, w, mask, groups, True), reference(x, w, mask, groups))
        assert error <= bound.relative["complex64"] / 3, (name, channels, error)
        if name.endswith("16"):
            assert error >= bound.relative["complex64"] / 40, "it rounds nothing"


def test_rounded_products_are_for_complex64() -> None:
    double = torch.randn(1, 1, 2, 2, dtype=torch.complex128)
    inputs = {"x_hat": double, "w_hat": double, "mask": None, "groups": 1}
    assert MULTIPLY.implementation("real_bmm_bf16").supports(**inputs) == "it rounds complex64 spectra, got complex128"
    assert (
        MULTIPLY.implementation("triton").supports(**inputs) == "Triton kernels take complex64 spectra, got complex128"
    )
