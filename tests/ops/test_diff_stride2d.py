"""DiffStride: golden sizes, the window's slope, exact gradients to strides, the authors' code too (T20 to T24)."""

from __future__ import annotations

import itertools

import pytest
import torch
from effort import gradcheck, gradgradcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels.masks import soft_window
from spectralkernels.masks.window import ramp, ramp_slope
from spectralkernels.ops.diff_stride2d import OPERATION, diff_stride_size, row_positions

IMPLS = ("dft_gemm", "torch_rfft")


def strides(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def planes(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("plane", "stride", "size"),
    [((64, 64), (2.0, 4.0), (40, 24)), ((32, 32), (2.0, 2.0), (24, 24)), ((24, 24), (2.0, 2.0), (20, 20)),
     ((20, 20), (2.0, 2.0), (18, 18)), ((16, 16), (2.0, 2.0), (16, 16))],
)  # fmt: skip
def test_t20_t23_sizes_are_the_golden_ones(plane, stride, size):
    for compat in (False, True):
        y = sk.diff_stride2d(torch.randn(1, 1, *plane), torch.tensor(stride), compat=compat)
        assert tuple(y.shape[2:]) == size


def test_t20_the_crop_of_the_authors_threshold_is_ours():
    """Rows f < H / (2 S) + R at f and f - 1, columns f < W / (2 S) + 1 + R: as many as `soft_window_side` keeps."""
    for n in (16, 24, 32, 64):
        for stride in (1.5, 2.0, 2.7, 4.0):
            side = diff_stride_size((n, n), torch.tensor([stride, stride]), 4.0)[0]
            inside = n / (2 * max(stride, n / (n - 4.0))) + 4.0
            positions = row_positions(torch.arange(n), n, compat=True)
            assert int((positions < inside).sum()) == side
            columns = int((torch.arange(n // 2 + 1) < inside + 1).sum())
            assert 2 * (columns - 1) == side


def test_t21_positions():
    assert row_positions(torch.arange(6), 6, compat=True).tolist() == [0, 1, 2, 2, 1, 0]
    assert row_positions(torch.arange(6), 6, compat=False).tolist() == [0, 1, 2, 3, 2, 1]


def test_slope_of_the_window():
    """dm / dS = -W / (2 R S^2) in the ramp, 0 outside."""
    n, smoothness, s = 32, 3.0, strides(2.2)
    for frequency in range(n // 2 + 1):
        (slope,) = torch.autograd.grad(ramp(torch.tensor(frequency), n, s[0], smoothness), s, allow_unused=True)
        raw = (smoothness + n / (2 * 2.2) - frequency) / smoothness
        assert float(slope) == pytest.approx(-n / (2 * smoothness * 2.2**2) if 0 < raw < 1 else 0.0)


@pytest.mark.parametrize("n", [9, 16, 31, 113])
@pytest.mark.parametrize("smoothness", [4.0, 0.7])
def test_a_frequency_at_an_end_of_the_ramp_has_no_slope(n: int, smoothness: float):
    """At both bounds of S and beyond them, by every way; the ends are f = N / (2 S) and f = R + N / (2 S)."""
    least, most, frequency = n / (n - smoothness), n / 2, torch.arange(n // 2 + 1)
    for given, dtype in itertools.product((least, 1.0, most, 40.0 * n, 1e9), (torch.float32, torch.float64)):
        held, first = (least, (n - smoothness) / 2) if given <= least else (most, 1.0)
        s = torch.tensor(given, dtype=dtype)

        def window(s: Tensor) -> Tensor:
            return ramp(frequency, n, s, smoothness)

        want = ((smoothness + first - frequency.double()) / smoothness).clamp(0.0, 1.0)
        torch.testing.assert_close(window(s).double(), want, atol=1e-3 / smoothness, rtol=0.0)
        sloped = (frequency > first + 1e-9) & (frequency < first + smoothness - 1e-9)
        want = torch.where(sloped, -n / (2.0 * smoothness * held**2), 0.0).to(dtype)
        _, along = torch.func.jvp(window, (s,), (torch.ones_like(s),))
        for slope in (along, torch.func.jacrev(window)(s), ramp_slope(frequency, n, s, smoothness)):
            torch.testing.assert_close(slope, want, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("size", "cropping"), [((9, 8), True), ((6, 8), False), ((7, 7), True)])
def test_gradients_to_map_and_strides_are_exact(impl: str, size: tuple[int, int], cropping: bool, seed: int):
    s = strides(1.83, 2.37)

    def pool(x: Tensor, s: Tensor) -> Tensor:
        return sk.diff_stride2d(x, s, smoothness=1.7, cropping=cropping, impl=impl).sin()

    x = planes(*size)[:1, :2].detach().requires_grad_()
    assert gradcheck(pool, (x, s))
    if impl == "dft_gemm":
        assert gradgradcheck(pool, (planes(5, 6)[:1, :1].detach().requires_grad_(), s))


@pytest.mark.parametrize("size", [(2, 3), (9, 8), (16, 13), (12, 40)])
@pytest.mark.parametrize("smoothness", [0.3, 1.7, 2.0, 8.5])
def test_gradients_are_those_of_ffts_wherever_the_ramp_lies(size: tuple[int, int], smoothness: float, seed: int):
    """At the ends of the strides' range, beyond them, between; on all samples, a few, and as many as the window has."""
    if min(size) <= smoothness:
        smoothness = min(size) / 1.2
    for first, second in ((1.0, 50.0), (1.3, size[1] / 2), (size[0] / (size[0] - smoothness), 2.6)):
        for options in ({}, {"cropping": False}, {"size": (max(1, size[0] // 2), size[1] - 1)}, {"legacy_scale": True}):
            x, s, found = planes(*size), strides(first, second), []
            for impl in IMPLS:
                y = sk.diff_stride2d(x, s, smoothness=smoothness, impl=impl, **options)
                found.append((y, *torch.autograd.grad(y.sin().sum(), (x, s))))
            torch.testing.assert_close(*found, msg=lambda m, o=options, f=(first, second): f"{f} {o}: {m}")


def test_the_backward_pass_is_differentiated_again_by_map_and_strides(seed: int):
    """What it saves are waves of the map and not the map, of which the strides' own gradient is a function too."""
    x, s = planes(7, 6), strides(1.83, 2.37)
    found = []
    for impl in IMPLS:
        y = sk.diff_stride2d(x, s, smoothness=1.7, size=(5, 4), impl=impl).sin().sum()
        first = torch.autograd.grad(y, (x, s), create_graph=True)
        second = torch.autograd.grad(first[1].square().sum() + first[0].cos().sum(), (x, s), create_graph=True)
        third = torch.autograd.grad(second[1].sum() + second[0].square().sum(), (x, s))
        found.append((*first, *second, *third))
    torch.testing.assert_close(*found)


def test_the_answer_may_be_changed_in_place(seed: int):
    for shape in ((2, 3, 9, 8), (3, 9, 8)):
        x, s = torch.randn(shape, requires_grad=True), torch.tensor([1.6, 2.0], requires_grad=True)
        pooled = [sk.diff_stride2d(x, s, smoothness=1.5, impl=impl) for impl in IMPLS]
        answers = [torch.nn.functional.relu(y, inplace=True) for y in pooled]
        torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), (x, s)) for y in answers))


@pytest.mark.slow
def test_compat_gradients(seed: int):
    def pool(x: Tensor, s: Tensor) -> Tensor:
        return sk.diff_stride2d(x, s, smoothness=1.7, compat=True)

    assert gradcheck(pool, (planes(8, 10), strides(1.83, 2.37)))


@pytest.mark.parametrize("compat", [False, True])
def test_every_implementation_is_the_reference(compat: bool, seed: int):
    for size in ((8, 10), (12, 6)) if compat else ((8, 10), (9, 7), (11, 12), (3, 3)):
        for stride in ((1.0, 1.0), (1.6, 2.9), (50.0, 50.0)):
            x, s = planes(*size).detach(), torch.tensor(stride, dtype=torch.float64)
            target = diff_stride_size(size, s, 1.5)
            want = OPERATION.reference(x=x, strides=s, size=target, smoothness=1.5, scale=1.0, compat=compat)
            for impl in IMPLS[1:] if compat else IMPLS:
                got = sk.diff_stride2d(x, s, smoothness=1.5, compat=compat, impl=impl)
                torch.testing.assert_close(got, want, msg=lambda m, i=impl, z=size, t=stride: f"{i} {z} {t}: {m}")


def test_without_cropping_it_is_the_soft_window_and_cropping_resamples_it(seed: int):
    x, s = planes(12, 9).detach(), strides(1.9, 1.6).detach()
    want = torch.fft.irfft2(torch.fft.rfft2(x) * soft_window((12, 9), s, 2.0), s=(12, 9))
    whole = sk.diff_stride2d(x, s, smoothness=2.0, cropping=False)
    torch.testing.assert_close(whole, want)
    cropped = sk.diff_stride2d(x, s, smoothness=2.0)
    torch.testing.assert_close(cropped, sk.spectral_pool2d(whole, tuple(cropped.shape[2:])))


def test_amplitudes_are_kept_or_multiplied_by_the_sizes(seed: int):
    x, s = torch.full((1, 1, 32, 32), 2.0), torch.tensor([2.0, 2.0])
    torch.testing.assert_close(sk.diff_stride2d(x, s), torch.full((1, 1, 24, 24), 2.0))
    torch.testing.assert_close(sk.diff_stride2d(x, s, legacy_scale=True), torch.full((1, 1, 24, 24), 2.0 * 1024 / 576))


def test_t22_a_stride_past_the_clamp_has_a_gradient_that_brings_it_back(seed: int):
    """At S < H / (H - R) the ramp would leave the spectrum; the held stride answers, and the gradient still flows."""
    x = planes(16, 16).detach()
    outside, held = strides(1.0, 1.0), strides(16 / 12, 16 / 12)
    torch.testing.assert_close(sk.diff_stride2d(x, outside), sk.diff_stride2d(x, held))
    loss = sk.diff_stride2d(x, outside).square().sum()  # fewer frequencies, less energy: a larger stride is better
    (slope,) = torch.autograd.grad(loss, outside)
    assert bool((slope < 0).all())


@pytest.mark.slow
def test_t24_a_given_size_reads_nothing_and_compiles_whole(seed: int):
    x, s = torch.randn(2, 3, 16, 16, requires_grad=True), torch.tensor([2.0, 1.7], requires_grad=True)
    for options in ({"size": (12, 12)}, {"cropping": False}):

        def run(x: Tensor, s: Tensor, options=options) -> Tensor:
            return sk.diff_stride2d(x, s, smoothness=2.0, **options).relu()

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, s), run(x, s))
        wanted = torch.autograd.grad(run(x, s).sum(), (x, s))
        for got, want in zip(torch.autograd.grad(compiled(x, s).sum(), (x, s)), wanted, strict=True):
            torch.testing.assert_close(got, want)
    torch.testing.assert_close(run(x, s).shape, x.shape)


@pytest.mark.parametrize(
    ("size", "options", "error", "message"),
    [
        ((4, 16), {}, sk.RangeError, r"each side of the map \(4, 16\) must exceed smoothness=4.0"),
        ((16, 16), {"smoothness": 0.0}, sk.RangeError, "smoothness must be above 0"),
        ((16, 16), {"strides": torch.ones(3)}, sk.ShapeError, r"strides must be Real \[2\]"),
        ((16, 16), {"strides": torch.tensor([float("nan"), 2.0])}, sk.RangeError, "strides must be finite"),
        ((15, 16), {"compat": True}, sk.RangeError, "compat needs even sides"),
        ((16, 16), {"compat": True, "size": (8, 8)}, sk.RangeError, "size must be left out"),
        ((16, 16), {"size": (18, 8)}, sk.ShapeError, "two sides between 1"),
        ((16, 16), {"compat": True, "impl": "dft_gemm"}, sk.Unsupported, "treats \\+f and -f differently"),
    ],
)
def test_bad_arguments(size, options: dict, error: type[Exception], message: str):
    arguments = {"strides": torch.tensor([2.0, 2.0]), **options}
    with pytest.raises(error, match=message):
        sk.diff_stride2d(torch.randn(1, 1, *size), **arguments)
