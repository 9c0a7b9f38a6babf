"""Masks of the half spectrum: geometry, symmetry, energy, gradients of strides, randomness, bad arguments."""

from __future__ import annotations

import math
import random

import pytest
import torch
from effort import gradcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels import masks
from spectralkernels.masks.modes import MOST_STEPS, staircase
from spectralkernels.modes import ModeList, every_mode
from spectralkernels.spectra import kept_2d

SIZES = ((1, 1), (1, 8), (9, 1), (2, 2), (7, 5), (8, 8), (12, 9), (9, 12), (35, 35), (38, 40))


def full(mask: Tensor, n: tuple[int, int]) -> Tensor:
    """The mask on all N_h x N_w frequencies, written out cell by cell from its definition."""
    whole = torch.zeros(*mask.shape[:-2], *n, dtype=torch.float64)
    for u in range(n[0]):
        for v in range(n[1]):
            whole[..., u, v] = mask[..., u, v] if v <= n[1] // 2 else mask[..., -u % n[0], n[1] - v]
    return whole


def every_kind(n: tuple[int, int], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, *n, generator=generator)
    found = {
        "rectangular": masks.rectangular(n, 0.5),
        "radial": masks.radial(n, 0.5),
        "radius": masks.radial(n, radius=2.5),
        "energy code": masks.energy(x, n, 0.7),
        "energy parseval": masks.energy(x, n, 0.7, mode="parseval"),
        "frequency dropout": masks.frequency_dropout(n, generator=generator),
        "frequency dropout per sample": masks.frequency_dropout(n, samples=3, generator=generator),
        "cell dropout": masks.cell_dropout(n, 0.4, generator=generator),
        "cell dropout per sample": masks.cell_dropout(n, 0.4, samples=3, generator=generator),
        "any bool": masks.hermitian(torch.rand(n[0], n[1] // 2 + 1, generator=generator) < 0.5, n),
        "any float": masks.hermitian(torch.randn(4, 1, n[0], n[1] // 2 + 1, generator=generator), n),
    }
    if min(n) > 2:
        found["soft window"] = masks.soft_window(n, (1.4, 1.7), 1.5)
    return found


@pytest.mark.parametrize("n", SIZES, ids=str)
def test_every_mask_gives_a_real_map(n: tuple[int, int], seed: int):
    """Hermitian exactness, with the Nyquist row and column of even sizes: the full inverse has no imaginary part."""
    spectrum = torch.fft.fft2(torch.randn(1, 1, *n, dtype=torch.float64))
    half_spectrum = spectrum[..., : n[1] // 2 + 1]
    for kind, mask in every_kind(n, seed).items():
        assert mask.shape[-2:] == (n[0], n[1] // 2 + 1), kind
        assert mask.dim() == 2 or mask.shape[1] == 1, kind
        y = torch.fft.ifft2(spectrum * full(mask, n))
        assert float(y.imag.abs().max()) < 1e-12, kind
        torch.testing.assert_close(
            torch.fft.irfft2(half_spectrum * mask, s=n), y.real, msg=lambda m, k=kind: f"{k}: {m}"
        )


def test_a_mask_that_splits_a_pair_is_noticed_and_made_whole(seed: int):
    n = (6, 8)
    for column in (0, 4):
        split = torch.ones(6, 5, dtype=torch.bool)
        split[2, column] = False
        spectrum = torch.fft.fft2(torch.randn(n, dtype=torch.float64))
        assert float(torch.fft.ifft2(spectrum * full(split, n)).imag.abs().max()) > 1e-3
        assert bool(masks.hermitian(split, n).all())
        weights = masks.hermitian(split.double(), n)
        assert weights[2, column] == weights[4, column] == 0.5 and weights.sum() == 29.0
        # What the real part of the inverse does with the split mask is what `hermitian` says.
        torch.testing.assert_close(
            torch.fft.ifft2(spectrum * full(split, n)).real, torch.fft.ifft2(spectrum * full(weights, n)).real
        )
    # With an odd width only column 0 is self-conjugate.
    split = torch.ones(6, 5)
    split[2, 4] = 0.0
    assert torch.equal(masks.hermitian(split, (6, 9)), split)


def test_hermitian_is_idempotent_and_differentiable(seed: int):
    mask = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    once = masks.hermitian(mask, (7, 8))
    torch.testing.assert_close(masks.hermitian(once, (7, 8)), once)
    assert gradcheck(lambda m: masks.hermitian(m, (7, 8)), (mask,))


def test_rectangular_golden_numbers():
    mask = masks.rectangular((59, 59), 0.5)
    assert mask[0].sum() == 21 and mask[:, 0].sum() == 41
    assert round(100 * (1 - float(mask.double().mean())), 2) == 51.36
    assert round(100 * (1 - float(masks.rectangular((128, 128), 0.1).double().mean())), 1) == 11.3
    assert masks.rectangular((8, 8), 0.85).sum() == 1
    assert bool(masks.rectangular((7, 6), 0.0).all())
    assert torch.equal(masks.ring((59, 59), kept_2d(59, 0.5)), mask)


def test_radial_golden_numbers():
    assert masks.radial((7, 7), radius=0).sum() == 1
    assert masks.radial((7, 7), radius=1).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [6, 0]]
    assert masks.radial((8, 8), radius=1.5).sum() == 6
    assert masks.radial((8, 8), radius=4)[4].tolist() == [True, False, False, False, False]
    assert bool(masks.radial((9, 12), 1.0).all())
    # The half disc of radius r holds close to pi r^2 / 2 cells.
    assert abs(int(masks.radial((101, 101), radius=40).sum()) / (math.pi * 1600 / 2) - 1) < 0.02


@pytest.mark.parametrize("n", SIZES, ids=str)
def test_rates_are_kept_and_masks_grow(n: tuple[int, int], seed: int):
    cells = n[0] * (n[1] // 2 + 1)
    previous = torch.zeros(n[0], n[1] // 2 + 1, dtype=torch.bool)
    for fraction in (0.01, 0.2, 0.5, 0.8, 0.99, 1.0):
        mask = masks.radial(n, fraction)
        assert int(mask.sum()) >= fraction * cells
        radii = [u * u + v * v for u, v in ((min(u, n[0] - u), v) for u, v in mask.nonzero().tolist())]
        inner = masks.radial(n, radius=math.sqrt(max(radii) - 0.5)) if max(radii) else torch.zeros_like(mask)
        assert int(inner.sum()) < fraction * cells
        assert bool((mask | ~previous).all())
        previous = mask
    strides = torch.tensor([n[0] / 4.0, n[1] / 4.0])
    if min(n) > 4:
        assert bool((masks.soft_window(n, strides * 0.8, 2.0) >= masks.soft_window(n, strides, 2.0)).all())


# --- energy ---------------------------------------------------------------------------------------------------------


def band_energy(x: Tensor, n: tuple[int, int], index: int, weighted: bool) -> float:
    """The energy of max(|u|, v) < index by a direct sum over a full complex FFT."""
    power = torch.fft.fft2(x.double(), s=n).abs().square().sum((0, 1))
    total = 0.0
    for u in range(n[0]):
        for v in range(n[1] if weighted else n[1] // 2 + 1):
            if max(min(u, n[0] - u), min(v, n[1] - v)) < index:
                total += float(power[u, v])
    return total


@pytest.mark.parametrize("mode", ["code", "parseval"])
@pytest.mark.parametrize("n", [(1, 1), (2, 3), (7, 7), (8, 8), (9, 14), (14, 9)], ids=str)
def test_energy_index_is_the_smallest_that_keeps_the_share(n: tuple[int, int], mode: str, seed: int):
    """Against a loop over all bands of a full spectrum; in Parseval mode that total is the energy of the maps."""
    size = (max(1, n[0] - 2), max(1, n[1] - 1))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    x = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    largest = max(n[0] // 2, n[1] // 2) + 1
    everything = band_energy(x, n, largest, mode == "parseval")
    if mode == "parseval":
        assert everything == pytest.approx(float(x.square().sum()) * n[0] * n[1])
    for keep in (0.05, 0.5, 0.9, 0.99):
        index = int(masks.energy_index(x, n, keep, mode=mode))
        wanted = next(k for k in range(1, largest + 1) if band_energy(x, n, k, mode == "parseval") >= keep * everything)
        assert index == wanted
        assert torch.equal(masks.energy(x, n, keep, mode=mode), masks.ring(n, index))
    assert int(masks.energy_index(x, n, 1.0, mode=mode)) <= largest


def test_the_two_energies_differ_where_the_mean_is_large():
    """A mean of energy 4 and a wave of (weighted) energy 2: the half map sees 4 and 1, Parseval 4 and 2."""
    n = (8, 8)
    column = torch.arange(8.0, dtype=torch.float64)
    x = (2.0 + 2.0 * torch.cos(2 * math.pi * 3 * column / 8)).expand(1, 1, 8, 8)
    assert int(masks.energy_index(x, n, 0.75, mode="code")) == 1  # 4 of 5
    assert int(masks.energy_index(x, n, 0.75, mode="parseval")) == 4  # 4 of 6 is not enough
    assert int(masks.energy_index(x, n, 0.6, mode="parseval")) == 1


def test_energy_is_monotone_and_depends_on_the_batch(seed: int):
    smooth, rough = torch.ones(1, 1, 16, 16), torch.randn(1, 1, 16, 16)
    indices = [int(masks.energy_index(rough, (16, 16), keep)) for keep in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)]
    assert indices == sorted(indices)
    alone = int(masks.energy_index(smooth, (16, 16), 0.9))
    together = int(masks.energy_index(torch.cat([smooth, 30 * rough]), (16, 16), 0.9))
    assert alone == 1 and together > 5
    assert int(masks.energy_index(torch.zeros(1, 1, 16, 16), (16, 16), 0.9)) == 1
    assert int(masks.energy_index(torch.zeros(0, 1, 16, 16), (16, 16), 0.9)) == 1


# --- soft window ----------------------------------------------------------------------------------------------------


def test_soft_window_is_the_published_ramp():
    n, (height, width), smoothness = (64, 64), (2.0, 4.0), 4.0
    mask = masks.soft_window(n, (height, width))
    for u, v in ((0, 0), (16, 0), (18, 3), (46, 9), (63, 11), (20, 0), (44, 12), (32, 32)):
        along = [
            min(max((smoothness + 64 / (2 * s) - f) / smoothness, 0.0), 1.0)
            for f, s in ((min(u, 64 - u), height), (v, width))
        ]
        assert float(mask[u, v]) == pytest.approx(along[0] * along[1])
    assert masks.mode_list(mask, n).kept == (20, 12)


def test_soft_window_sides_are_the_published_ones():
    assert (masks.soft_window_side(64, 2), masks.soft_window_side(64, 4)) == (40, 24)
    sides = [32]
    for _ in range(3):
        sides.append(masks.soft_window_side(sides[-1], 2))
    assert sides == [32, 24, 20, 18]
    assert masks.soft_window_side(16, 2) == 16
    # A window never reaches beyond its side.
    for n, stride in ((64, 2.0), (33, 1.7), (20, 3.3)):
        kept, _ = masks.mode_list(masks.soft_window((n, n), (stride, stride)), (n, n)).kept
        assert 2 * kept <= masks.soft_window_side(n, stride) + 1


@pytest.mark.parametrize("n", [(32, 32), (33, 30), (9, 14)], ids=str)
def test_soft_window_gradient_is_the_published_one(n: tuple[int, int], seed: int):
    """d mask / dS = -N / (2 R S^2) times the other axis inside the ramp, 0 outside and exactly at its ends."""
    smoothness = 3.0
    for strides in ((2.0, 1.7), (1.6, 3.1)):
        s = torch.tensor(strides, dtype=torch.float64, requires_grad=True)
        mask = masks.soft_window(n, s, smoothness)
        upstream = torch.randn_like(mask)
        (got,) = torch.autograd.grad(mask, s, upstream)
        frequencies = [torch.minimum(torch.arange(n[0]), n[0] - torch.arange(n[0])), torch.arange(n[1] // 2 + 1)]
        ramps, slopes = [], []
        for size, stride, f in zip(n, strides, frequencies, strict=True):
            raw = (smoothness + size / (2 * stride) - f.double()) / smoothness
            ramps.append(raw.clamp(0, 1))
            slopes.append(torch.where((raw > 0) & (raw < 1), -size / (2 * smoothness * stride**2), 0.0))
        torch.testing.assert_close(mask.detach(), torch.outer(*ramps))
        wanted = torch.stack(
            [(upstream * torch.outer(slopes[0], ramps[1])).sum(), (upstream * torch.outer(ramps[0], slopes[1])).sum()]
        )
        torch.testing.assert_close(got, wanted)


def test_a_stride_at_its_limit_keeps_its_gradient():
    n, low = (32, 32), 32 / 28
    for value, used in ((1.0, low), (0.2, low), (100.0, 16.0)):
        s = torch.full((2,), value, dtype=torch.float64, requires_grad=True)
        mask = masks.soft_window(n, s)
        torch.testing.assert_close(mask.detach(), masks.soft_window(n, torch.full((2,), used, dtype=torch.float64)))
        mask.sum().backward()
        assert s.grad is not None and bool((s.grad < 0).all())


# --- dropout --------------------------------------------------------------------------------------------------------


def test_frequency_dropout_draws_square_bands_above_its_floor(seed: int):
    n = (16, 16)
    generator = torch.Generator().manual_seed(seed)
    drawn = masks.frequency_dropout(n, 0.3, samples=400, generator=generator)
    assert drawn.shape == (400, 1, 16, 9) and drawn.dtype == torch.bool
    indices = drawn[:, 0, 0].sum(-1)
    for mask, index in zip(drawn[:20, 0], indices[:20].tolist(), strict=True):
        assert torch.equal(mask, masks.ring(n, index))
    # T = U(0.3 * 9, 9) and |k| <= T, so that 3 to 9 frequencies are kept, each a known share of the time.
    assert int(indices.min()) == 3 and int(indices.max()) == 9
    assert float((indices == 3).double().mean()) == pytest.approx((3 - 2.7) / 6.3, abs=0.06)
    assert float((indices == 9).double().mean()) == pytest.approx(1 / 6.3, abs=0.08)
    assert bool(masks.frequency_dropout(n, 1.0).all())
    assert masks.frequency_dropout(n).shape == (16, 9)


def test_dropout_floor_is_the_published_schedule():
    assert masks.dropout_floor(6, 6) == pytest.approx(0.15)
    assert masks.dropout_floor(1, 6) == pytest.approx(0.275)


def test_cell_dropout_has_one_draw_per_pair_and_mean_one(seed: int):
    n, p = (8, 8), 0.3
    generator = torch.Generator().manual_seed(seed)
    drawn = masks.cell_dropout(n, p, samples=3000, generator=generator)[:, 0]
    assert set(drawn.unique().tolist()) == {0.0, drawn.max().item()}
    assert float(drawn.max()) == pytest.approx(1 / 0.7)
    assert float((drawn.mean(0) - 1).abs().max()) < 6 * math.sqrt(0.3 / 0.7 / 3000)
    assert torch.equal(drawn[:, 3, 0], drawn[:, 5, 0]) and torch.equal(drawn[:, 1, 4], drawn[:, 7, 4])
    assert not torch.equal(drawn[:, 3, 1], drawn[:, 5, 1])
    assert bool((masks.cell_dropout(n, 0.0) == 1).all())


def test_a_generator_repeats_itself():
    for draw in (masks.frequency_dropout, masks.cell_dropout):
        first, again = (draw((9, 9), 0.3, samples=4, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(first, again)


# --- mode lists -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES, ids=str)
def test_a_mode_list_holds_every_cell_of_its_mask_once(n: tuple[int, int], seed: int):
    for kind, mask in every_kind(n, seed).items():
        cells = {tuple(cell[-2:]) for cell in (mask != 0).nonzero().tolist()}
        for form in ("auto", "steps", "cells"):
            modes = masks.mode_list(mask, n, form=form)
            assert len(modes.indices) == len(set(modes.indices)) == len(modes), (kind, form)
            assert cells <= set(modes.indices), (kind, form)
            assert all(u < n[0] and v <= n[1] // 2 for u, v in modes.indices)
            if form == "cells" and cells:
                assert cells == set(modes.indices)
            assert all(min(u, n[0] - u) < modes.kept[0] and v < modes.kept[1] for u, v in modes.indices)
    assert set(every_mode(n).indices) == {(u, v) for u in range(n[0]) for v in range(n[1] // 2 + 1)}


def test_bands_need_no_mode_that_they_drop():
    for n in ((35, 35), (36, 40)):
        for mask in (masks.rectangular(n, 0.5), masks.soft_window(n, (2.0, 2.0))):
            modes = masks.mode_list(mask, n)
            assert len(modes) == int((mask != 0).sum()) and len(modes.steps) == 1
        disc = masks.radial(n, 0.5)
        box = modes.n, (masks.mode_list(disc, n).kept)
        assert len(masks.mode_list(disc, n)) < 0.95 * (2 * box[1][0] - 1) * box[1][1]


def test_staircases_are_no_larger_than_the_box(seed: int):
    draw = random.Random(seed)
    for _ in range(40):
        n = draw.choice((5, 8, 13, 16))
        reach = tuple(draw.randint(0, n // 2 + 1) for _ in range(draw.randint(1, 9)))
        steps = staircase(n, reach)
        assert len(steps) <= MOST_STEPS
        ks = [k for width, k in steps for _ in range(width)]
        if any(reach):
            assert all(k >= r for k, r in zip(ks, reach, strict=False))
            assert not any(reach[len(ks) :])
        assert len(ModeList((n, 16), steps)) <= max(1, len(ks) * min(n, 2 * max(*reach, 1) - 1))


def test_few_scattered_cells_are_listed_one_by_one():
    mask = torch.zeros(32, 17, dtype=torch.bool)
    mask[13, 11] = mask[5, 16] = mask[27, 16] = True
    modes = masks.mode_list(mask, (32, 32))
    assert modes.cells == ((5, 16), (13, 11), (27, 16)) and modes.kept == (14, 17)
    assert not masks.mode_list(masks.radial((32, 32), 0.5), (32, 32)).cells
    assert masks.mode_list(torch.zeros(32, 17), (32, 32)).indices == ((0, 0),)


def test_fft_grid_is_the_grid_of_the_convolution():
    assert masks.fft_grid((32, 32), (5, 5), padding="valid", grid="seed") == (59, 59)
    assert masks.fft_grid((32, 20), (7, 4)) == (35, 22)


# --- bad arguments --------------------------------------------------------------------------------------------------

X = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: masks.rectangular((8, 0), 0.5),
            sk.RangeError,
            r"n must be two FFT sizes \(N_h, N_w\) .* got \(8, 0\)",
        ),
        (lambda: masks.rectangular((8, 8), 50), sk.RangeError, "a percentage must be divided by 100"),
        (lambda: masks.ring((8, 8), 0), sk.RangeError, "index must be at least 1, .* got 0"),
        (lambda: masks.radial((8, 8)), sk.RangeError, "either fraction or radius, got fraction=None, radius=None"),
        (lambda: masks.radial((8, 8), 0.5, radius=3), sk.RangeError, "either fraction or radius"),
        (lambda: masks.radial((8, 8), 0.0), sk.RangeError, r"fraction must lie in \(0, 1\], .* got 0.0"),
        (lambda: masks.radial((8, 8), float("nan")), sk.RangeError, "fraction must lie in"),
        (lambda: masks.radial((8, 8), radius=-1), sk.RangeError, "radius must be at least 0, got -1"),
        (
            lambda: masks.energy(X, (8, 8), 90),
            sk.RangeError,
            r"keep must lie in \(0, 1\], .* divide a percentage by 100",
        ),
        (lambda: masks.energy(X, (8, 8), 0.9, mode="paper"), sk.RangeError, "mode must be 'code' or 'parseval'"),
        (lambda: masks.energy(X, (7, 8), 0.9), sk.ShapeError, r"maps of \(8, 8\) do not fit on the grid \(7, 8\)"),
        (lambda: masks.energy(X[0], (8, 8), 0.9), sk.ShapeError, "x must have 4 dimensions"),
        (lambda: masks.energy(X.int(), (8, 8), 0.9), sk.DtypeError, "x must be one of float32"),
        (lambda: masks.soft_window((8, 8), (2.0, 2.0), 8.0), sk.RangeError, "must be longer than smoothness=8.0"),
        (lambda: masks.soft_window((8, 8), (2.0, 2.0), 0.0), sk.RangeError, "smoothness must be above 0"),
        (lambda: masks.soft_window((8, 8), (2.0, 8.0)), sk.RangeError, "two numbers with 1 <= S < N"),
        (lambda: masks.soft_window((8, 8), (2.0,)), sk.RangeError, "two numbers with 1 <= S < N"),
        (lambda: masks.soft_window((8, 8), torch.ones(3)), sk.ShapeError, r"strides must be Real \[2\]"),
        (lambda: masks.soft_window((8, 8), torch.ones(2, dtype=torch.int64)), sk.ShapeError, "strides must be Real"),
        (lambda: masks.frequency_dropout((8, 8), 1.5), sk.RangeError, r"lowest must lie in \[0, 1\]"),
        (lambda: masks.frequency_dropout((8, 8), samples=-1), sk.RangeError, "samples must be at least 0"),
        (lambda: masks.cell_dropout((8, 8), 1.0), sk.RangeError, r"p must lie in \[0, 1\), .* got 1.0"),
        (lambda: masks.dropout_floor(7, 6), sk.RangeError, r"layer must lie in 1 \.\. 6, got 7"),
        (
            lambda: masks.hermitian(torch.ones(8, 8), (8, 8)),
            sk.ShapeError,
            r"mask must end in \[8, 5\], the half spectrum of the grid \(8, 8\), got \[8, 8\]; make it for n=\(8, 8\)",
        ),
        (lambda: masks.mode_list(torch.ones(8, 8), (8, 8)), sk.ShapeError, r"mask must end in \[8, 5\] on the grid"),
        (lambda: masks.mode_list(torch.ones(8, 5), (8, 8), form="box"), sk.RangeError, "form must be 'auto', 'steps'"),
    ],
)
def test_bad_arguments_are_answered(call, error: type, message: str):
    with pytest.raises(error, match=message):
        call()
