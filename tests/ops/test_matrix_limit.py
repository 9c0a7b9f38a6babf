"""No DFT matrix beyond a stated size: who would need one says so, and an FFT serves the call."""

from __future__ import annotations

import random

import pytest
import torch
from effort import draws
from torch import Tensor

import spectralkernels as sk
from spectralkernels import constants
from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.dft import LARGEST_MATRIX_BYTES, listed_dft, stepped_dft, too_large
from spectralkernels.modes import ModeList
from spectralkernels.ops.masked_conv2d import baselines as masked

CPU = torch.device("cpu")


def tensors(value: object) -> list[Tensor]:
    return list(constants._tensors(value))


@pytest.mark.parametrize("draw", draws(20))
def test_the_size_that_is_refused_is_the_size_that_is_made(draw: int, seed: int, monkeypatch: pytest.MonkeyPatch):
    chance = random.Random(seed + draw)
    axes, itemsize = chance.choice([1, 2]), chance.choice([4, 8])
    n = tuple(chance.randint(1, 20) for _ in range(axes))
    kept = tuple(chance.randint(1, each // 2 + 1) for each in n)
    side = tuple(chance.randint(1, 12) for _ in n)
    where = ((0,) * axes, side, False, {4: torch.float32, 8: torch.float64}[itemsize], CPU)
    cells = None
    if axes == 2 and chance.random() < 0.3:
        cells = tuple((u, v) for u in range(n[0]) for v in range(kept[1]) if chance.random() < 0.5) or ((0, 0),)
        made = listed_dft(n, cells, *where)
    else:
        made = stepped_dft(n, ((kept[-1], kept[0]),), *where)
    largest = max(each.untyped_storage().nbytes() for each in tensors(made))
    count = None if cells is None else len(cells)
    for limit, refused in ((largest, False), (largest - 1, True)):
        monkeypatch.setattr("spectralkernels.dft.LARGEST_MATRIX_BYTES", limit)
        assert (too_large(n, kept, (side,), itemsize, count) is not None) == refused


@pytest.mark.parametrize(
    ("size", "kernel", "compression"),
    [
        ((16384,), (9,), 0.0),
        ((16384,), (9,), 0.5),
        ((44100,), (5,), 0.5),
        ((1, 4096), (1, 9), 0.0),
        ((4096, 3), (3, 3), 0.0),
    ],
)
def test_long_sides_are_served_without_a_matrix(size: tuple, kernel: tuple, compression: float, seed: int):
    x, weight, bias = torch.randn(1, 2, *size), torch.randn(2, 2, *kernel), torch.randn(2)
    call = sk.band_limited_conv1d if len(size) == 1 else sk.band_limited_conv2d
    for impl in ("dft_gemm", *(("dft_native",) if build.COMPILER else ())):
        with pytest.raises(sk.Unsupported, match=r"a DFT matrix of \d+ MiB for planes of [\dx]+ is above the 32 MiB"):
            call(x, weight, bias, compression=compression, impl=impl)
    constants.forget()
    y = call(x, weight, bias, compression=compression)
    assert constants.kept_bytes() < x.numel() * 64
    band = conv_band(size, kernel, compression=compression)
    torch.testing.assert_close(y.double(), reference(x, weight, bias, band, 1), rtol=1e-4, atol=1e-5)


def test_long_masked_maps_are_served_without_a_matrix(seed: int):
    x, weight = torch.randn(1, 2, 1, 4096), torch.randn(2, 2, 1, 5)
    n = sk.masks.fft_grid((1, 4096), (1, 5))
    mask = sk.masks.radial(n, 1.0).float() * 0.5
    with pytest.raises(sk.Unsupported, match="a DFT matrix of"):
        sk.masked_conv2d(x, weight, mask, impl="dft_gemm")
    constants.forget()
    y = sk.masked_conv2d(x, weight, mask)
    band, modes = conv_band((1, 4096), (1, 5), compression=0.0), sk.masks.mode_list(mask, n)
    assert constants.kept_bytes() < x.numel() * 64
    expected = masked.reference(x, weight, mask, None, band, modes, 1)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)


def test_scattered_cells_of_a_large_map_become_a_staircase():
    n = (512, 512)
    mask = torch.zeros(512, 257)
    mask[torch.randperm(512)[:90], torch.randperm(257)[:90]] = 1.0  # 90 cells: a dense matrix of 188 MB
    modes = sk.masks.mode_list(mask, n)
    assert isinstance(modes, ModeList) and not modes.cells
    assert sk.masks.mode_list(mask, n, form="cells").cells
    assert too_large(n, (257, 257), (n,), 4, 90) is not None


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("size", "kernel"), [((50,), (4,)), ((51,), (60,)), ((9, 8), (3, 4)), ((1, 7), (2, 9))])
@pytest.mark.parametrize("compression", [0.0, 0.5, 0.9])
def test_a_frozen_weight_by_ffts(size: tuple, kernel: tuple, groups: int, compression: float, seed: int):
    x, bias = torch.randn(2, 4, *size, requires_grad=True), torch.randn(8, requires_grad=True)
    weight = torch.randn(8, 4 // groups, *kernel)
    frozen = sk.weight_spectrum(weight, size, compression=compression, groups=groups)
    call = sk.band_limited_conv1d if len(size) == 1 else sk.band_limited_conv2d
    how = {"compression": compression, "groups": groups}
    y = call(x, frozen, bias, impl="torch_fft_frozen", **how)
    band = conv_band(size, kernel, compression=compression)
    torch.testing.assert_close(y.double(), reference(x, weight, bias, band, groups), rtol=1e-4, atol=1e-4)
    direction = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, bias), direction)
    want = torch.autograd.grad(call(x, frozen, bias, impl="dft_gemm_frozen", **how), (x, bias), direction)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert call(x[:0], frozen, bias, impl="torch_fft_frozen", **how).shape == (0, 8, *size)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_frozen_weight_under_a_mask_by_ffts(groups: int, seed: int):
    x, weight = torch.randn(2, 4, 9, 8), torch.randn(6, 4 // groups, 3, 4)
    n = sk.masks.fft_grid((9, 8), (3, 4))
    for mask in (sk.masks.radial(n, 0.5), (torch.rand(n[0], n[1] // 2 + 1) < 0.1).float()):
        frozen = sk.masked_weight_spectrum(weight, mask, (9, 8), groups=groups)
        by_fft, by_matrix = (
            sk.masked_conv2d(x, frozen, mask, groups=groups, impl=name)
            for name in ("torch_fft_frozen", "dft_gemm_frozen")
        )
        torch.testing.assert_close(by_fft, by_matrix, rtol=1e-4, atol=1e-4)
        assert sk.masked_conv2d(x[:0], frozen, mask, groups=groups, impl="torch_fft_frozen").shape == (0, 6, 9, 8)


def test_a_long_frozen_weight_is_served_by_ffts(seed: int):
    x, weight = torch.randn(1, 2, 16384), torch.randn(2, 2, 9)
    frozen = sk.weight_spectrum(weight, (16384,), compression=0.5)
    with pytest.raises(sk.Unsupported, match="a DFT matrix of"):
        sk.band_limited_conv1d(x, frozen, compression=0.5, impl="dft_gemm_frozen")
    y = sk.band_limited_conv1d(x, frozen, compression=0.5)
    band = conv_band((16384,), (9,), compression=0.5)
    torch.testing.assert_close(y.double(), reference(x, weight, None, band, 1), rtol=1e-4, atol=1e-5)
    maps, kernel = x.view(1, 2, 1, -1), weight.view(2, 2, 1, 9)
    mask = torch.ones(1, 8195)
    frozen = sk.masked_weight_spectrum(kernel, mask, (1, 16384))
    y = sk.masked_conv2d(maps, frozen, mask).flatten(2)
    torch.testing.assert_close(y, torch.nn.functional.conv1d(x, weight, padding=4), rtol=1e-4, atol=1e-5)


def test_a_call_within_the_limit_keeps_what_constants_hold():
    assert 4 * LARGEST_MATRIX_BYTES <= constants.MOST_BYTES
