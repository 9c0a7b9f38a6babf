"""The compiled convolution under masks: the reference in value and gradient, holes never read, what it refuses."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from effort import draws, opcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels.convolution import dft_native as convolution
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.masks.modes import mode_list
from spectralkernels.modes import box, every_mode
from spectralkernels.ops.masked_conv2d import dft_native
from spectralkernels.ops.masked_conv2d.baselines import reference

needs_compiler = pytest.mark.skipif(build.COMPILER is None, reason="no C++ compiler")


def drawn_mask(draw: random.Random, n: tuple[int, int], batch: int) -> Tensor:
    """Discs, weights on a disc, one mask per sample, scattered cells, all and none."""
    shape, kind = (n[0], n[1] // 2 + 1), draw.randrange(6)
    if kind == 0:
        return sk.masks.radial(n, draw.choice((0.2, 0.5, 0.8)))
    if kind == 1:
        return sk.masks.radial(n, 0.6) * torch.rand(shape)
    if kind == 2:
        discs = [sk.masks.radial(n, draw.random()) for _ in range(batch)]
        return torch.stack(discs).unsqueeze(1) * torch.rand(batch, 1, *shape)
    if kind == 3:
        return torch.rand(shape) > 0.9
    return torch.full(shape, kind == 4)


def close(got: Tensor, want: Tensor, terms: int, rounding: float) -> None:
    """Held to what as many normal terms usually sum to: a lone number may be the rest of a cancellation."""
    assert got.shape == want.shape
    assert float((got.double() - want).detach().norm()) <= rounding * (terms * want.numel()) ** 0.5


def check_a_draw(draw: random.Random) -> None:
    size, kernel = ([draw.choice(lengths) for _ in range(2)] for lengths in ((1, 2, 3, 8, 11), (1, 2, 3, 4, 7)))
    groups, inputs, outputs = draw.choice((1, 1, 2, 9)), draw.choice((1, 2, 5, 17)), draw.choice((1, 2, 8, 9))
    batch = draw.choice((1, 2, 3, 9))
    x = torch.randn(batch, groups * inputs, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(groups * outputs, inputs, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(groups * outputs, dtype=torch.float64, requires_grad=True)
    leaves, grid = (x, weight, bias), draw.choice(("tight", "pow2"))
    band = conv_band(tuple(size), tuple(kernel), compression=0.0, grid=grid)
    mask = sk.masks.hermitian(drawn_mask(draw, (band.n[0], band.n[1]), batch), (band.n[0], band.n[1]))
    print(size, kernel, groups, inputs, outputs, list(mask.shape), grid)
    modes = mode_list(mask, (band.n[0], band.n[1]))
    want = reference(x, weight, mask, bias, band, modes, groups)
    dy = torch.randn_like(want)
    gradients = torch.autograd.grad(want, leaves, dy)
    taps, seen = weight[0].numel(), dy[:, 0].numel()
    terms = (taps * outputs // inputs + 1, seen, seen)
    for dtype, rounding in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        own = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
        got = sk.masked_conv2d(own[0], own[1], mask, own[2], modes=modes, groups=groups, grid=grid, impl="dft_native")
        close(got, want, taps + 1, rounding)
        for found, gradient, count in zip(torch.autograd.grad(got, own, dy.to(dtype)), gradients, terms, strict=True):
            close(found, gradient, count, rounding)
        frozen = sk.masked_weight_spectrum(own[1].detach(), modes, (size[0], size[1]), groups=groups, grid=grid)
        got = sk.masked_conv2d(own[0], frozen, mask, own[2], impl="dft_native_frozen")
        close(got, want, taps + 1, rounding)
        again = torch.autograd.grad(got, (own[0], own[2]), dy.to(dtype))
        for found, gradient, count in zip(again, gradients[::2], terms[::2], strict=True):
            close(found, gradient, count, rounding)


@needs_compiler
@pytest.mark.parametrize("number", draws(3))
def test_values_and_gradients_are_those_of_the_reference(number: int, seed: int, poisoned: None):
    draw = random.Random(seed)
    for _ in range(10):
        check_a_draw(draw)


def staircase() -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    x, weight = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    n = (10, 9)
    return x, weight, sk.masks.radial(n, 0.5), n


@needs_compiler
@pytest.mark.parametrize("fault", ["a row short", "weights of the next mode", "no mask"])
def test_a_fault_in_the_staircase_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch, seed: int):
    x, weight, mask, n = staircase()
    want = sk.masked_conv2d(x, weight, mask, impl="torch_fft")
    modes = mode_list(mask, n)
    reach = dft_native.reach_of(modes)
    if fault == "a row short":
        short = (*reach[:-1], reach[-1] - 1) if reach[-1] > 1 else (reach[0] - 1, *reach[1:])
        around = box(n, (max(short), len(short))), short
        monkeypatch.setattr(dft_native, "box_around", lambda modes: around)
    else:
        masked = convolution.masked
        change = torch.ones_like if fault == "no mask" else lambda weights: weights.roll(1, 1)
        monkeypatch.setattr(convolution, "masked", lambda *inputs: masked(*inputs[:5], change(inputs[5]), *inputs[6:]))
        modes = every_mode(n)
    got = sk.masked_conv2d(x, weight, mask, modes=modes, impl="dft_native")
    assert float((got - want).norm() / want.norm()) > 1e-3


def test_the_staircase_is_the_least_around_the_cells():
    n = (7, 8)
    mask = torch.zeros(7, 5, dtype=torch.bool)
    mask[0, 0] = mask[3, 2] = mask[5, 3] = True
    for form in ("cells", "steps"):
        reach = dft_native.reach_of(mode_list(mask, n, form=form))
        assert len(reach) == 4
        assert all(k >= least for k, least in zip(reach, (1, 0, 4, 3), strict=True))
        assert form == "steps" or reach == (1, 0, 4, 3)


@needs_compiler
@pytest.mark.parametrize("groups", [1, 16])
def test_derivatives_of_any_kind(groups: int, seed: int):
    """Second ones begin at the spectrum that was saved, or at x; forward mode and transforms take the same chain."""
    x = torch.randn(2, 16, 7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, 16 // groups, 3, 4, dtype=torch.float64, requires_grad=True)
    n = sk.masks.fft_grid((7, 6), (3, 4), padding="same", grid="tight")
    mask = sk.masks.radial(n, 0.5) * torch.rand(2, 1, n[0], n[1] // 2 + 1, dtype=torch.float64)

    def second(impl: str) -> tuple[Tensor, ...]:
        y = sk.masked_conv2d(x, weight, mask, groups=groups, impl=impl)
        first = torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)
        penalty = first[0].square().sum() + first[1].square().sum()
        return (*first, *torch.autograd.grad(penalty, (x, weight)))

    for got, want in zip(second("dft_native"), second("torch_fft"), strict=True):
        torch.testing.assert_close(got, want)
    frozen = sk.masked_weight_spectrum(weight.detach(), sk.masks.radial(n, 0.5), (7, 6), groups=groups)

    def curvature(x: Tensor, impl: str) -> Tensor:
        y = sk.masked_conv2d(x, frozen, mask, impl=impl)
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(curvature(x, "dft_native_frozen"), curvature(x, "torch_fft_frozen"))
    tangents = torch.randn_like(x), torch.randn_like(weight)
    got, want = (
        torch.func.jvp(
            lambda x, w, impl=impl: sk.masked_conv2d(x, w, mask, groups=groups, impl=impl), (x, weight), tangents
        )[1]
        for impl in ("dft_native", "torch_fft")
    )
    torch.testing.assert_close(got, want)
    inputs: tuple[Any, ...] = (x, weight, None, [-1, -1], groups, n, [3, 3], [7, 6], [1, 1], [1, 1], True)
    cells = torch.rand(2, 15, dtype=torch.float64)
    opcheck(torch.ops.spectralkernels.dft_native_conv.default, (*inputs, cells, []))
    places, kept = (torch.randperm(20)[:15] - 5).clamp(min=-1), frozen.modes.new_zeros(15, 2, 256 // groups)
    apply = (x, kept, None, 16, groups, n, [3, 3], [7, 6], cells, [], places)
    opcheck(torch.ops.spectralkernels.dft_native_apply.default, apply)


@needs_compiler
def test_bits_do_not_depend_on_threads_and_no_samples_make_none(seed: int):
    x, weight, mask, _ = staircase()
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(sk.masked_conv2d(x, weight, mask, impl="dft_native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    assert sk.masked_conv2d(x[:0], weight, mask, impl="dft_native").shape == (0, 4, 9, 8)


def test_a_mask_with_a_gradient_is_refused_in_words(seed: int):
    x, weight, mask, _ = staircase()
    if build.COMPILER is None:
        pytest.skip("no C++ compiler")
    learnt = mask.double().requires_grad_()
    for given, impl in ((weight, "dft_native"), (sk.masked_weight_spectrum(weight, mask, (9, 8)), "dft_native_frozen")):
        with pytest.raises(sk.Unsupported, match="no gradient of the mask; detach it, or take 'dft_gemm'"):
            sk.masked_conv2d(x, given, learnt, impl=impl)
