"""Energy selection (M11): what is kept suffices, one step less does not; the two sums (T11, T12); the batch (T13)."""

from __future__ import annotations

import random

import pytest
import torch
from effort import draws, gradgradcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels.spectra import half, hermitian_weights


def held(x: Tensor, mask: Tensor, mode: str) -> float:
    """The share of the energy under a mask."""
    power = torch.fft.rfft2(x.double(), norm="ortho").abs().square().sum((0, 1))
    if mode == "parseval":
        power = power * hermitian_weights(x.shape[3], half(x.shape[3]))
    return float((power * mask).sum() / power.sum())


@pytest.mark.parametrize("form", ["coarse", "fine"])
@pytest.mark.parametrize("mode", ["code", "parseval"])
def test_m11_it_keeps_enough_and_no_step_more(form: str, mode: str, seed: int):
    draw = random.Random(seed)
    for _ in draws(12):
        n = (draw.choice((1, 2, 5, 8, 11)), draw.choice((1, 2, 4, 7, 12)))
        x, keep = torch.randn(2, 3, *n, dtype=torch.float64).cumsum(-1), draw.uniform(0.05, 0.99)
        mask = sk.masks.energy(x, n, keep, mode=mode, form=form)
        assert held(x, mask, mode) >= keep - 1e-12
        y = sk.energy_selection2d(x, keep, mode=mode, form=form)
        torch.testing.assert_close(y, torch.fft.irfft2(torch.fft.rfft2(x) * mask, s=n))
        coarse = sk.masks.energy(x, n, keep, mode=mode)
        index = int(sk.masks.energy_index(x, n, keep, mode=mode))
        assert bool((coarse | ~mask).all()) and bool((mask | ~sk.masks.ring(n, max(1, index - 1))).all())
        if form == "fine":  # the ring before does not suffice, nor does any row less of the last one
            last = (mask & ~sk.masks.ring(n, index - 1)) if index > 1 else mask
            u, v = last.nonzero()[-1].tolist()
            less = mask.clone()
            less[u, v] = less[-u % n[0], v] = False
            paired = 2 * v in (0, n[1])
            assert int(mask.sum()) == 1 or held(x, less, mode) < keep or paired


def test_t12_parseval_is_the_energy_of_the_maps_and_t11_code_counts_the_half_map_once(seed: int):
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    spectrum = torch.fft.rfft2(x, norm="ortho")
    whole = (spectrum.abs().square() * hermitian_weights(8, 5)).sum()
    torch.testing.assert_close(whole, x.square().sum())
    mean = x * 0.1 + 1.0  # most of the energy in the mean, which the full spectrum has once
    code, parseval = (int(sk.masks.energy_index(mean, (7, 8), 0.995, mode=mode)) for mode in ("code", "parseval"))
    assert code <= parseval
    wave = torch.cos(2 * torch.pi * torch.arange(8) / 8).expand(1, 1, 7, 8).double() + 1.0
    assert not torch.allclose(  # the wave counts half as much as the mean, or a quarter
        sk.energy_selection2d(wave, 0.75, mode="parseval"), sk.energy_selection2d(wave, 0.75, mode="code")
    )


def test_t13_a_samples_answer_depends_on_its_batch_mates_until_the_index_is_fixed(seed: int):
    smooth, rough = torch.ones(1, 1, 8, 8), torch.randn(1, 1, 8, 8) * 30
    alone = sk.energy_selection2d(smooth + 0.1 * rough / 30, 0.9)
    together = sk.energy_selection2d(torch.cat([smooth + 0.1 * rough / 30, rough]), 0.9)[:1]
    assert not torch.allclose(alone, together)
    index = int(sk.masks.energy_index(smooth, (8, 8), 0.9))
    fixed = sk.masks.ring((8, 8), index)
    both = torch.fft.irfft2(torch.fft.rfft2(torch.cat([smooth, rough])) * fixed, s=(8, 8))
    torch.testing.assert_close(both[:1], torch.fft.irfft2(torch.fft.rfft2(smooth) * fixed, s=(8, 8)))


@pytest.mark.parametrize("form", ["coarse", "fine"])
def test_more_energy_keeps_more_and_all_of_it_keeps_all(form: str, seed: int):
    x = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    sizes = [int(sk.masks.energy(x, (9, 8), keep, form=form).sum()) for keep in (0.01, 0.3, 0.6, 0.9, 1.0)]
    assert sizes == sorted(sizes) and sizes[-1] == 45 and sizes[0] >= 1
    torch.testing.assert_close(sk.energy_selection2d(x, 1.0, form=form), x)
    zero = torch.zeros(1, 1, 4, 4)
    assert torch.equal(sk.energy_selection2d(zero, 0.5, form=form), zero)
    assert sk.energy_selection2d(x[:0], 0.5, form=form).shape == (0, 2, 9, 8)
    assert sk.energy_selection2d(x[0].bfloat16(), 0.5, form=form).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("impl", "form"), [("one_spectrum", "coarse"), ("one_spectrum", "fine"), ("bisection", "coarse")]
)
def test_gradients_are_those_of_the_low_pass(impl: str, form: str, seed: int):
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    mask = sk.masks.energy(x, (5, 4), 0.6, form=form)
    want = torch.autograd.grad(torch.fft.irfft2(torch.fft.rfft2(x) * mask, s=(5, 4)).sin().sum(), x)
    got = torch.autograd.grad(sk.energy_selection2d(x, 0.6, form=form, impl=impl).sin().sum(), x)
    torch.testing.assert_close(got, want)
    assert gradgradcheck(lambda x: sk.energy_selection2d(x, 0.6, form=form, impl=impl), x, fast_mode=True)


def test_it_compiles_whole_and_reads_nothing_on_the_host(seed: int):
    x = torch.randn(2, 3, 8, 7)

    def run(x: Tensor) -> Tensor:
        return sk.energy_selection2d(x, 0.7, form="fine")

    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="eager")(x), run(x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"energy": 90},
            sk.RangeError,
            "energy must lie in \\(0, 1\\], the share to keep, got 90; divide a percentage",
        ),
        ({"energy": 0.0}, sk.RangeError, "energy must lie in"),
        ({"energy": 0.5, "mode": "square"}, sk.RangeError, "mode must be 'code' or 'parseval', got 'square'"),
        ({"energy": 0.5, "form": "cells"}, sk.RangeError, "form must be 'coarse' or 'fine', got 'cells'"),
        ({"energy": 0.5, "form": "fine", "impl": "bisection"}, sk.Unsupported, "it needs form='coarse'"),
    ],
)
def test_bad_arguments(options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        sk.energy_selection2d(torch.randn(1, 1, 4, 4), **options)
    with pytest.raises(sk.RangeError, match="form must be"):
        sk.masks.energy(torch.randn(1, 1, 4, 4), (4, 4), 0.5, form="both")
