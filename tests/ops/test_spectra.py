"""Geometry of the half spectrum: the golden numbers of the papers, and what must hold at every size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectralkernels.convolution.geometry import conv_band
from spectralkernels.spectra import (
    Band,
    full_frequencies,
    half,
    hermitian_weights,
    kept_1d,
    kept_2d,
    low_pass_mask,
    next_pow2,
    next_smooth,
)

sizes = st.integers(1, 200)
rates = st.floats(0.0, 0.999)


def test_the_papers_example_has_5310_cells_and_loses_6_61_percent_per_index():
    band = conv_band((32, 32), (5, 5), padding="valid", grid="seed", compression=0.02)
    assert band.out == (28, 28)
    assert band.n == (59, 59)
    assert 3 * band.half_cells == 5310
    assert (len(band.rows), band.columns) == (57, 29)
    assert band.achieved_compression == pytest.approx(117 / 1770)


def test_half_compression_of_59_keeps_41_by_21():
    assert kept_2d(59, 0.5) == 21
    assert len(full_frequencies(59, 21)) == 41
    band = conv_band((32, 32), (5, 5), padding="valid", grid="seed", compression=0.5)
    assert band.achieved_compression == pytest.approx(0.5136, abs=1e-4)


@pytest.mark.parametrize(
    ("n", "nominal", "achieved"),
    [(59, 0.10, 0.130), (59, 0.85, 0.869), (128, 0.50, 0.519), (32, 0.10, 0.088), (16, 0.85, 0.896), (8, 0.10, 0.300)],
)
def test_achieved_compression_differs_from_nominal_as_published(n: int, nominal: float, achieved: float):
    kept = low_pass_mask((n, n), nominal).double().mean()
    assert float(1 - kept) == pytest.approx(achieved, abs=6e-4)


def test_tight_grid_is_height_plus_half_the_kernel():
    for kernel in (1, 2, 3, 4, 7, 31):
        assert conv_band((32, 20), (kernel, kernel), compression=0.0).n == (32 + kernel // 2, 20 + kernel // 2)


def test_grids_of_the_paper_round_up():
    assert conv_band((32, 32), (3, 3), compression=0.0, grid="seed").n == (65, 65)
    assert conv_band((32, 32), (3, 3), compression=0.0, grid="pow2").n == (128, 128)
    assert conv_band((32, 32), (3, 3), compression=0.0, grid="fast").n == (35, 35)


@given(sizes, rates)
def test_something_is_always_kept_and_nothing_is_dropped_at_zero(n: int, compression: float):
    for rule in (kept_1d, kept_2d):
        assert 1 <= rule(n, compression) <= half(n)
        assert rule(n, 0.0) == half(n)


@given(sizes.filter(lambda n: n > 1), st.floats(1e-6, 0.999))
def test_any_compression_drops_the_highest_frequency(n: int, compression: float):
    assert kept_2d(n, compression) < half(n)
    assert kept_1d(n, compression) < half(n)


@given(sizes, rates)
def test_kept_rows_are_closed_under_conjugation(n: int, compression: float):
    rows = full_frequencies(n, kept_2d(n, compression))
    assert len(set(rows)) == len(rows)
    assert {(-row) % n for row in rows} == set(rows)


@given(sizes)
def test_hermitian_weights_count_every_frequency_once(n: int):
    assert hermitian_weights(n, half(n)).sum() == n


@given(st.integers(1, 3000))
def test_grid_roundings(n: int):
    smooth = next_smooth(n)
    assert smooth >= n
    assert all(any(other % p == 0 for p in (11, 13, 17, 19, 23)) or _rough(other) for other in range(n, smooth))
    assert next_pow2(n) >= n > next_pow2(n) // 2


def _rough(n: int) -> bool:
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n > 1


@pytest.mark.parametrize("n", [(8, 7), (5, 8), (1, 1), (9, 2)])
def test_parseval_holds_with_hermitian_weights(n: tuple[int, int], seed: int):
    x = torch.randn(n, dtype=torch.float64)
    spectrum = torch.fft.rfft2(x, norm="ortho")
    assert torch.allclose((spectrum.abs().square() * hermitian_weights(n[1], half(n[1]))).sum(), x.square().sum())


def test_band_of_a_series_has_one_row():
    band = conv_band((270,), (5,), compression=0.5)
    assert isinstance(band, Band)
    assert band.rows == (0,)
    assert band.n == (272,)
    assert band.columns == 137 - (68 + 1)
