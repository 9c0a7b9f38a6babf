"""Spectral pooling and frequency dropout: sizes, rules of even sizes (T16 to T18), gradients, what they do to a map."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from effort import gradcheck, gradgradcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels.inputs import feature_map
from spectralkernels.ops.spectral_pool2d import OPERATION
from spectralkernels.ops.spectral_pool2d.routes import crop
from spectralkernels.resampling import EVEN_RULES, pooled_size

IMPLS = ("dft_gemm", "torch_fft", "torch_rfft")
SIZES = [((9, 8), (5, 4)), ((8, 9), (4, 8)), ((7, 12), (6, 1)), ((1, 5), (1, 2)), ((6, 6), (6, 5)), ((13, 11), (2, 3))]


def planes(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, dtype=torch.float64)


def test_sizes_are_the_golden_ones():
    """Seeds section 5 and T18: floor on both axes, or the authors' even heights."""
    assert pooled_size((64, 64), (2.0, 4.0), compat=True) == (32, 16)
    assert pooled_size((32, 32), 1.5, compat=True) == (20, 21)
    assert pooled_size((32, 32), (3.0, 3.0), compat=True) == (10, 10)
    assert pooled_size((3, 3), 3.0, compat=True) == (2, 2)
    assert pooled_size((32, 32), 1.5) == (21, 21)
    assert pooled_size((3, 5), 7.5) == (1, 1)
    assert sk.spectral_pool2d(torch.randn(1, 2, 32, 32), stride=1.5, compat=True).shape == (1, 2, 20, 21)


@pytest.mark.parametrize("rule", EVEN_RULES)
def test_t16_the_pooled_spectrum_is_real_for_every_rule_but_raw(rule: str, seed: int):
    for size, target in SIZES:
        spectrum = torch.fft.fft2(planes(*size), norm="forward")
        for axis, m in zip((-2, -1), target, strict=True):
            spectrum = crop(spectrum, axis, m, rule)
        pooled = torch.fft.ifft2(spectrum, norm="forward")
        leak = float(pooled.imag.abs().max() / pooled.abs().max())
        merged = any(m % 2 == 0 and m < n for n, m in zip(size, target, strict=True))
        assert (leak > 1e-3) if rule == "raw" and merged else (leak < 1e-6), (size, target)


@pytest.mark.parametrize("rule", EVEN_RULES)
def test_t16_every_rule_weighs_plus_and_minus_half_a_size_as_it_says(rule: str):
    """cos at M / 2 holds 1/2 of each of +M/2 and -M/2: along one axis, along both, and at a lower frequency."""
    n, m = 12, 6
    once = {"average": 0.5, "code": 0.5**0.5, "alias": 1.0, "drop": 0.0, "raw": 0.5}[rule]
    j = torch.arange(n, dtype=torch.float64)
    wave, low = torch.cos(math.pi * m / n * j), torch.cos(2 * math.pi * 2 / n * j)
    signs = (-1.0) ** torch.arange(m, dtype=torch.float64)
    kept = torch.cos(2 * math.pi * 2 / m * torch.arange(m, dtype=torch.float64))
    for impl in IMPLS if rule != "raw" else IMPLS[:2]:

        def pool(x: Tensor, impl: str = impl) -> Tensor:
            return sk.spectral_pool2d(x[None, None], (m, m), even=rule, impl=impl)[0, 0]

        torch.testing.assert_close(pool(torch.outer(low, low)), torch.outer(kept, kept))
        torch.testing.assert_close(pool(torch.outer(wave, low)), torch.outer(signs, kept) * once)
        torch.testing.assert_close(pool(torch.outer(low, wave)), torch.outer(kept, signs) * once)
        torch.testing.assert_close(pool(torch.outer(wave, wave)), torch.outer(signs, signs) * once**2)


@pytest.mark.parametrize("impl", IMPLS)
def test_t17_amplitudes_are_kept_or_multiplied_by_the_stride_product(impl: str, seed: int):
    for size, target in SIZES:
        x = torch.full((1, 1, *size), 3.0, dtype=torch.float64)
        for rule in EVEN_RULES[:4]:
            torch.testing.assert_close(
                sk.spectral_pool2d(x, target, even=rule, impl=impl), torch.full((1, 1, *target), 3.0).double()
            )
        product = math.prod(size) / math.prod(target)
        legacy = sk.spectral_pool2d(x, target, legacy_scale=True, impl=impl)
        torch.testing.assert_close(legacy, torch.full_like(legacy, 3.0 * product))


def test_alias_is_plain_subsampling_of_a_band_limited_map(seed: int):
    """At stride 2 what lies above M / 2 is gone; of what is left, every second pixel is the answer."""
    x = planes(12, 16)
    low = sk.spectral_pool2d(x, (6, 8), even="alias")
    spectrum = torch.fft.rfft2(x)
    rows = torch.fft.fftfreq(12, 1 / 12).abs()
    spectrum = spectrum * ((rows <= 3).unsqueeze(1) & (torch.arange(9) <= 4))
    torch.testing.assert_close(low, torch.fft.irfft2(spectrum, s=(12, 16))[..., ::2, ::2])


def test_its_own_size_is_the_map(seed: int):
    for size, rule in itertools.product([(1, 1), (4, 7), (6, 6)], EVEN_RULES):
        x = planes(*size)
        torch.testing.assert_close(sk.spectral_pool2d(x, size, even=rule), x)


@pytest.mark.parametrize("share", [None, 0.6, torch.tensor(0.6, dtype=torch.float64)])
@pytest.mark.parametrize("rule", EVEN_RULES)
def test_every_implementation_is_the_reference(rule: str, share, seed: int):
    for size, target in SIZES:
        x = planes(*size)
        inputs = {"x": x, "size": target, "even": rule, "share": share, "scale": 1.0}
        want = OPERATION.reference(**inputs, pooling="spectral", weight=None)
        for impl in IMPLS if rule != "raw" else IMPLS[:2]:
            got = sk.spectral_pool2d(x, target, even=rule, share=share, impl=impl)
            torch.testing.assert_close(got, want, msg=lambda text, impl=impl, size=size: f"{impl} {size}: {text}")


@pytest.mark.parametrize("rule", ["average", "raw"])
def test_gradients_once_and_twice(rule: str, seed: int):
    x = planes(6, 5).requires_grad_()

    def pool(x: Tensor) -> Tensor:
        return sk.spectral_pool2d(x, (4, 2), even=rule, share=0.7).sin()

    assert gradcheck(pool, x)
    assert gradgradcheck(pool, x)


def test_a_first_call_in_inference_mode_spoils_no_later_gradient(seed: int):
    with torch.inference_mode():
        sk.spectral_pool2d(torch.randn(1, 1, 23, 19), (11, 10), even="raw", share=0.9)
    x = torch.randn(1, 1, 23, 19, requires_grad=True)
    sk.spectral_pool2d(x, (11, 10), even="raw", share=0.9).sum().backward()
    assert x.grad is not None


def test_nothing_is_saved_for_the_backward_pass(seed: int):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        sk.spectral_pool2d(torch.randn(4, 3, 16, 16, requires_grad=True), stride=2)
    assert all(len(shape) <= 3 and max(shape) <= 48 for shape in saved), saved  # matrices, never the maps


@pytest.mark.parametrize("kind", ["pink", "photo"])
def test_less_is_lost_than_by_max_pooling_at_equal_size(kind: str, seed: int):
    """Golden ordering (M49): relative L2 loss of the map that the pooled one stands for."""
    x = feature_map(kind, (8, 3, 32, 32), seed).double()
    for s in (2, 4, 8):
        pooled = sk.spectral_pool2d(x, stride=float(s))
        low = sk.frequency_dropout2d(x, (16 / s - 1) / 17)
        torch.testing.assert_close(
            sk.spectral_pool2d(low, stride=float(s)), sk.spectral_pool2d(x, stride=float(s), even="drop")
        )
        blocks = F.interpolate(F.max_pool2d(x, s), scale_factor=s)
        assert pooled.shape[-1] == 32 // s
        assert (low - x).norm() < (blocks - x).norm()


def test_strided_maps_half_types_autocast_and_channels_last(seed: int):
    x = torch.randn(2, 6, 16, 20)
    want = sk.spectral_pool2d(x, (7, 8))
    torch.testing.assert_close(sk.spectral_pool2d(x.contiguous(memory_format=torch.channels_last), (7, 8)), want)
    torch.testing.assert_close(sk.spectral_pool2d(x.transpose(2, 3), (8, 7)), want.transpose(2, 3))
    torch.testing.assert_close(sk.spectral_pool2d(x[:, ::2], (7, 8)), want[:, ::2])
    half = sk.spectral_pool2d(x.bfloat16(), (7, 8))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), want, rtol=0.02, atol=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sk.spectral_pool2d(x, (7, 8)), want)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["pool", "dropout"])
def test_it_compiles_whole(operation: str, seed: int):
    x, share = torch.randn(2, 3, 8, 9, requires_grad=True), torch.tensor(0.5)

    def run(x: Tensor, share: Tensor) -> Tensor:
        pooled = (
            sk.spectral_pool2d(x, stride=1.5, share=share) if operation == "pool" else sk.frequency_dropout2d(x, share)
        )
        return pooled.relu()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, share), run(x, share))
    (got,) = torch.autograd.grad(compiled(x, share).sum(), x)
    (want,) = torch.autograd.grad(run(x, share).sum(), x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": (4, 9)}, sk.ShapeError, r"two sides between 1 and those of the map \(8, 8\), got \(4, 9\)"),
        ({"size": (0, 4)}, sk.ShapeError, "two sides between 1"),
        ({"stride": 0.5}, sk.RangeError, "stride must be one number >= 1"),
        ({}, sk.RangeError, "takes either size or stride"),
        ({"stride": 2.0, "size": (4, 4)}, sk.RangeError, "takes either size or stride"),
        (
            {"stride": 2.0, "even": "mean"},
            sk.RangeError,
            "even must be .average., .code., .alias., .drop. or .raw., got .mean.",
        ),
        ({"stride": 2.0, "share": 1.5}, sk.RangeError, r"share must lie in \[0, 1\]"),
        ({"stride": 2.0, "share": torch.ones(2)}, sk.RangeError, "share must be one real number"),
        ({"stride": 2.0, "impl": "library"}, sk.Unsupported, "pooling='max'"),
        ({"stride": 2.0, "even": "raw", "impl": "torch_rfft"}, sk.Unsupported, "keeps them apart"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        sk.spectral_pool2d(torch.randn(1, 1, 8, 8), **arguments)
    with pytest.raises(sk.ShapeError, match="x must have 4 dimensions"):
        sk.spectral_pool2d(torch.randn(8, 8), stride=2.0)


# --- frequency dropout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["dft_gemm", "torch_rfft"])
def test_dropout_is_the_mask_of_the_same_share(impl: str, seed: int):
    for size, t in itertools.product([(9, 8), (8, 5), (1, 7)], (0.0, 0.31, 0.77, 1.0)):
        x = planes(*size)
        rows, columns = (torch.fft.fftfreq(n, 1 / n).abs() for n in size)
        keep = (rows <= t * (1 + size[0] // 2)).unsqueeze(1) & (columns <= t * (1 + size[1] // 2))
        want = torch.fft.ifft2(torch.fft.fft2(x) * keep).real
        got = sk.frequency_dropout2d(x, t, impl=impl)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(sk.frequency_dropout2d(got, t, impl=impl), got)
    assert gradcheck(lambda x: sk.frequency_dropout2d(x, 0.5, impl=impl), planes(5, 4).requires_grad_())


def test_dropout_within_a_pooling_is_dropout_after_it(seed: int):
    x = planes(12, 9)
    for t in (0.2, 0.5, 1.0):
        both = sk.spectral_pool2d(x, (6, 5), share=t)
        torch.testing.assert_close(both, sk.frequency_dropout2d(sk.spectral_pool2d(x, (6, 5)), t))
