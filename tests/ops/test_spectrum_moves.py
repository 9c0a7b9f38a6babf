"""What only moves cells of a spectrum: crop and restore (M03), the DC shift (M05), and the traps of odd sides."""

from __future__ import annotations

import pytest
import torch
from effort import gradcheck, gradgradcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels.spectra import half, kept_2d

SIDES = (1, 2, 5, 8)


def spectrum(n: int, m: int) -> Tensor:
    return torch.randn(2, 3, n, m, dtype=torch.complex128, requires_grad=True)


@pytest.mark.parametrize("impl", ["corners", "concatenated", "indexed", "mask"])
def test_m03_restored_is_the_band_and_doing_it_again_changes_nothing(impl: str, seed: int, poisoned: None):
    for n in SIDES:
        for wide in SIDES:
            x_hat = spectrum(n, half(wide))
            for compression in (0.0, 0.3, 0.999):
                y = sk.crop_restore(x_hat, compression, impl=impl)
                mask = sk.masks.rectangular((n, wide), compression)
                torch.testing.assert_close(y, x_hat * mask, rtol=0, atol=0)
                torch.testing.assert_close(sk.crop_restore(y, compression, impl=impl), y, rtol=0, atol=0)
                assert mask[0, 0] and y.is_contiguous() and kept_2d(n, compression) >= 1
            torch.testing.assert_close(sk.crop_restore(x_hat, 0.0, impl=impl), x_hat, rtol=0, atol=0)
    x_hat = spectrum(6, 4)
    assert gradcheck(lambda x: sk.crop_restore(x, 0.5, impl=impl), x_hat, fast_mode=True)
    assert gradgradcheck(lambda x: sk.crop_restore(x, 0.5, impl=impl), x_hat, fast_mode=True)
    strided = spectrum(6, 8)[..., ::2].transpose(0, 1)
    torch.testing.assert_close(
        sk.crop_restore(strided, 0.4, impl=impl), sk.crop_restore(strided.contiguous(), 0.4, impl=impl)
    )


@pytest.mark.parametrize("impl", ["quadrants", "fftshift", "elements"])
def test_t21_there_and_back_again_and_twice_there_is_back_for_even_sides_alone(impl: str, seed: int, poisoned: None):
    for height in SIDES:
        for width in SIDES:
            x = torch.randn(2, height, width, dtype=torch.float64)
            y = sk.dc_shift(x, impl=impl)
            assert torch.equal(y, torch.fft.fftshift(x, dim=(1, 2)))
            assert torch.equal(y[:, height // 2, width // 2], x[:, 0, 0])
            assert torch.equal(sk.dc_shift(y, inverse=True, impl=impl), x)
            twice = sk.dc_shift(y, impl=impl)
            assert torch.equal(twice, x) == all(n % 2 == 0 or n == 1 for n in (height, width))
    x = spectrum(5, 4)
    assert gradcheck(lambda x: sk.dc_shift(x, impl=impl), x, fast_mode=True)
    assert torch.equal(sk.dc_shift(x.mT, impl=impl), sk.dc_shift(x.mT.contiguous(), impl=impl))
    assert sk.dc_shift(x[:0], impl=impl).shape == (0, 3, 5, 4)


def test_t46_the_middle_element_of_the_paper_counts_from_one():
    """Its floor(N / 2) + 1 is the index N / 2 here: of even N alone, its own mirror, and dropped by any rate."""
    for n in (2, 8, 9, 32):
        impulse = torch.zeros(1, 1, 1, n, dtype=torch.float64)
        impulse[..., 0] = 1.0
        real = torch.fft.fft(impulse + torch.roll(impulse, 1, -1)).imag.abs().squeeze() < 1e-12
        assert bool(real[n // 2]) == (n % 2 == 0)
        kept = sk.crop_restore(torch.fft.rfft2(impulse), 0.01)
        assert kept[..., n // 2].abs().max() == 0.0 or n % 2 == 1


def test_they_compile_whole(seed: int):
    x_hat = spectrum(7, 5).detach()

    def run(x_hat: Tensor) -> Tensor:
        return sk.dc_shift(sk.crop_restore(x_hat, 0.5))

    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="eager")(x_hat), run(x_hat))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sk.crop_restore(torch.ones(1, 1, 4, 3), 0.5), sk.DtypeError, "x_hat must be complex"),
        (lambda: sk.crop_restore(spectrum(4, 3), 50), sk.RangeError, "compression must lie in"),
        (lambda: sk.crop_restore(spectrum(4, 3)[0], 0.5), sk.ShapeError, "x_hat must have 4 dimensions"),
        (lambda: sk.dc_shift(torch.ones(3)), sk.ShapeError, r"x must be \[..., height, width\]"),
        (lambda: sk.dc_shift(torch.ones(3, 3), inverse=1), sk.DtypeError, "inverse must be True or False"),
        (lambda: sk.dc_shift(torch.ones(3, 3), impl="roll"), sk.RangeError, "dc_shift has no implementation 'roll'"),
    ],
)
def test_bad_arguments(call, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()
