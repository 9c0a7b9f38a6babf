"""What an argument means at its edges: rates with no exact binary, half precision, extremes of scale, no samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import spectralkernels as sk
from spectralkernels.ops import load_operations
from spectralkernels.spectra import half, kept_2d

# Somebody else's package, and what is there for a grid or a rounding of its own alone.
ELSEWHERE = ("fft_conv_pytorch", "torch_fft_fast", "direct_bf16")
ON_THE_CPU = [
    (name, found.name)
    for name in ("band_limited_conv2d", "band_limited_conv1d", "masked_conv2d")
    for found in load_operations()[name].implementations
    if found.available("cpu") is None and not found.frozen and not found.compiled and found.name not in ELSEWHERE
]


def relative_error(y: Tensor, expected: Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


def call(name: str, impl: str, x: Tensor, w: Tensor, b: Tensor | None, compression: float = 0.0) -> Tensor:
    if name == "band_limited_conv1d":
        return sk.band_limited_conv1d(x[..., 0], w[..., 0], b, compression=compression, impl=impl)
    if name == "band_limited_conv2d":
        return sk.band_limited_conv2d(x, w, b, compression=compression, impl=impl)
    n = sk.masks.fft_grid(tuple(x.shape[2:]), tuple(w.shape[2:]))
    return sk.masked_conv2d(x, w, sk.masks.rectangular(n, compression), b, impl=impl)


@pytest.mark.parametrize("n", [18, 19, 38, 39, 58, 59])
def test_a_rate_of_91_percent_keeps_three_tenths(n: int):
    assert kept_2d(n, 0.91) == half(n) * 3 // 10


def test_rates_in_percent_keep_what_integers_say():
    """k = floor(half sqrt(1 - p / 100)) is the largest integer with 100 k^2 <= half^2 (100 - p)."""
    for n in range(1, 300):
        for percent in range(1, 100):
            most = max(k for k in range(half(n) + 1) if 100 * k * k <= half(n) ** 2 * (100 - percent))
            assert kept_2d(n, percent / 100) == max(1, most)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "impl"), [run for run in ON_THE_CPU if "direct" != run[1][:6] or "low" in run[1]])
def test_half_precision_is_computed_in_float32_and_rounded_once(name: str, impl: str, dtype: torch.dtype, seed: int):
    """A sum and a bias that cancel: rounding either before the other costs several times a rounding of the answer."""
    x, w = torch.randn(2, 8, 9, 7).to(dtype), torch.randn(4, 8, 3, 3).to(dtype)
    b = torch.full((4,), 64.0, dtype=dtype)
    exact = call(name, "torch_fft", x.double(), w.double(), b.double(), 0.4)
    want = exact.to(dtype)
    y = call(name, impl, x, w, b, 0.4)
    assert y.dtype == dtype
    # Float32 may fall on the other side of a few roundings in thousands.
    assert (y != want).double().mean() < 0.02
    assert relative_error(y, exact) <= 1.05 * relative_error(want, exact)


@pytest.mark.parametrize("impl", ["dense", "coo", "csr", "index", "bitmap"])
def test_a_relative_threshold_has_no_scale(impl: str, seed: int):
    y = torch.fft.rfft2(torch.randn(2, 3, 6, 6), norm="ortho")
    kept = sk.threshold_spectrum(y, 0.7, relative=True, n=6, impl=impl).kept()
    assert 0 < kept.sum() < kept.numel()
    for scale in (2.0**-80, 2.0**-60, 2.0**66):
        assert torch.equal(sk.threshold_spectrum(y * scale, 0.7, relative=True, n=6, impl=impl).kept(), kept)
    for spectrum in (y, y * 0):
        assert sk.threshold_spectrum(spectrum, float("inf"), relative=True, n=6, impl=impl).nnz == 0
    # Beside an infinite number nothing is large; the map keeps all, and the others what they kept.
    y[0, 1, 2, 1], kept[0, 1] = torch.inf, True
    assert torch.equal(sk.threshold_spectrum(y, 0.7, relative=True, n=6, impl=impl).kept(), kept)


def test_a_band_by_energy_keeps_all_of_a_map_that_is_not_a_number(seed: int):
    x = torch.randn(2, 3, 6, 5)
    assert not sk.masks.energy(x, (8, 7), 0.5).all()
    x[1, 2, 3, 4] = float("nan")
    assert sk.masks.energy(x, (8, 7), 0.5).all()
    assert int(sk.masks.energy_index(x, (8, 7), 0.5)) == 5


@pytest.mark.parametrize("impl", ["dft_gemm", "torch_fft"])
def test_pairs_of_a_mask_are_averaged_in_the_precision_of_the_maps(impl: str, seed: int):
    x, w = torch.randn(2, 3, 6, 5).double(), torch.randn(4, 3, 3, 3).double()
    n = sk.masks.fft_grid((6, 5), (3, 3))
    for dtype in (torch.float32, torch.bfloat16):
        mask = torch.rand(n[0], n[1] // 2 + 1).to(dtype)
        y, want = (sk.masked_conv2d(x, w, each, impl=impl) for each in (mask, mask.double()))
        torch.testing.assert_close(y, want, rtol=0, atol=0)


@pytest.mark.parametrize("impl", [impl for name, impl in ON_THE_CPU if name == "band_limited_conv2d"])
def test_no_samples_and_no_channels(impl: str, seed: int):
    """An empty batch gives an empty answer; no channels are refused, for which torch's conv2d gives no channels."""
    w, b = torch.randn(3, 4, 3, 3), torch.randn(3)
    assert sk.band_limited_conv2d(torch.randn(0, 4, 5, 4), w, b, impl=impl).shape == (0, 3, 5, 4)
    for batch in (0, 2):
        with pytest.raises(sk.ShapeError, match="x must have at least one channel, got none"):
            sk.band_limited_conv2d(torch.randn(batch, 0, 5, 4), w[:, :0], b, impl=impl)
        with pytest.raises(sk.ShapeError, match="weight must have at least one output channel, got shape"):
            sk.band_limited_conv2d(torch.randn(batch, 4, 5, 4), w[:0], b[:0], impl=impl)
