"""Traps of the papers that have no test of their own elsewhere, by number; a trap's name says what would go wrong.

T11-T13, T16-T27, T42, T46, T49 and T50 are named in the tests of their operations; T34-T37, T39 and T40 in those of
metrics, NVML, profiles, the model command and the environment (tests/bench).

T43, T44, T47 and T48 are of trainings to convergence (epochs to an error, an accuracy printed twice, unequal budgets,
the statistics of CIFAR), T45 of captions of a test over many of them. Nothing here trains to an accuracy or reads
CIFAR: networks are timed and weighed. There is no number that these traps could spoil.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from effort import gradcheck
from torch import Tensor

import spectralkernels as sk
from spectralbench.metrics import approximation_error, approximation_error_sym
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.declare import Case
from spectralkernels.ops.spectrum_selection import OPERATION as SELECTION
from spectralkernels.ops.spectrum_selection import select
from spectralkernels.spectra import half, low_pass_mask


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_t1_it_is_a_correlation_and_the_flipped_kernel_is_another_answer(seed: int):
    x, weight = maps(2, 3, 8, 8), maps(4, 3, 3, 3)
    torch.testing.assert_close(sk.band_limited_conv2d(x, weight), F.conv2d(x, weight, padding=1))
    convolved = sk.band_limited_conv2d(x, weight.flip(2, 3))
    assert (convolved - F.conv2d(x, weight, padding=1)).abs().max() > 0.1
    x_hat, w_hat = torch.fft.rfft2(x), torch.fft.rfft2(weight, s=(8, 8))
    ours = sk.masked_multiply(x_hat, w_hat).abs()
    # With several channels the magnitudes differ too, and with them what a threshold keeps; with one they do not.
    assert (ours - sk.masked_multiply(x_hat, w_hat.conj().resolve_conj()).abs()).abs().max() > 0.1
    one = [sk.masked_multiply(x_hat[:, :1], w.contiguous()).abs() for w in (w_hat[:, :1], w_hat[:, :1].conj())]
    torch.testing.assert_close(*one)


@pytest.mark.parametrize(
    ("n", "achieved"),
    [(59, (13.0, 51.4, 86.9)), (128, (11.3, 51.9, 85.3)), (32, (8.8, 49.3, 87.9)), (16, (16.7, 54.2, 89.6)),
     (8, (30.0, 62.5, 97.5))],
)  # fmt: skip
def test_t2_t3_nominal_rates_of_10_50_and_85_percent_are_these(n: int, achieved: tuple[float, ...]):
    for nominal, want in zip((0.10, 0.50, 0.85), achieved, strict=True):
        assert 100 * (1 - float(low_pass_mask((n, n), nominal).double().mean())) == pytest.approx(want, abs=0.06)
        k = math.floor(half(n) * math.sqrt(1 - nominal))
        assert int(low_pass_mask((n, n), nominal).sum()) == (2 * k - 1) * k


@pytest.mark.parametrize("impl", ["dft_native", "dft_gemm", "torch_fft"])
def test_t4_t5_t8_every_grid_agrees_at_rate_zero_and_none_above_it(impl: str, seed: int):
    x, weight = maps(1, 2, 9, 8).requires_grad_(), maps(3, 2, 5, 5).requires_grad_()
    want = F.conv2d(x, weight, padding=2)
    dy = torch.randn_like(want)
    wanted = (want, *torch.autograd.grad(want, (x, weight), dy))
    banded = []
    for grid in ("tight", "seed", "pow2", "fast", (59, 41)):
        got = sk.band_limited_conv2d(x, weight, grid=grid, impl=impl)
        torch.testing.assert_close((got, *torch.autograd.grad(got, (x, weight), dy)), wanted)
        banded.append(sk.band_limited_conv2d(x, weight, grid=grid, compression=0.5, impl=impl))
    for i, one in enumerate(banded):
        assert all((one - other).abs().max() > 1e-3 for other in banded[:i])
    with pytest.raises(sk.RangeError, match="wraps around into the output: the smallest FFT size here is"):
        sk.band_limited_conv2d(x, weight, grid=(10, 10), impl=impl)


@pytest.mark.parametrize("size", [(5, 6), (4, 3)])
def test_t6_the_masked_backward_is_the_gradient(size: tuple[int, int], seed: int):
    x, weight = maps(1, 2, *size).requires_grad_(), maps(2, 2, 3, 3).requires_grad_()
    for compression in (0.3, 0.8):
        assert gradcheck(
            lambda x, w, c=compression: sk.band_limited_conv2d(x, w, compression=c), (x, weight), fast_mode=True
        )


def test_t7_rows_and_columns_are_kept_by_their_own_sides():
    band = conv_band((32, 9), (3, 3), compression=0.5)
    assert band.n == (33, 10) and band.kept == (12, 4) and band.modes == 23 * 4


@pytest.mark.parametrize("n", [(6, 6), (7, 8), (5, 1)])
def test_t9_t10_a_pair_of_a_self_conjugate_column_is_decided_together(n: tuple[int, int], seed: int):
    y_hat = torch.fft.rfft2(maps(2, 3, *n), norm="ortho")
    magnitude = y_hat.abs()
    # A rounding error splits a pair at the threshold: between its two cells.
    split = magnitude[0, 0, 1, 0].item()
    y_hat[0, 0, 1, 0] *= 1 + 1e-12
    dense = sk.threshold_spectrum(y_hat, split, activation="none", n=n[1]).to_dense()
    top = y_hat * select(magnitude, "top", 0.5, n)
    for kept in (dense, top):
        again = torch.fft.rfft2(torch.fft.irfft2(kept, s=n, norm="ortho"), norm="ortho")
        torch.testing.assert_close(again, kept, rtol=0, atol=1e-9)
    mask = torch.rand(n[0], half(n[1]), dtype=torch.float64)
    whole = sk.masks.hermitian(mask, n)
    real = torch.fft.ifft2(_full(y_hat * whole, n)).imag.abs().max()
    assert real < 1e-12


def _full(half_map: Tensor, n: tuple[int, int]) -> Tensor:
    """The full spectrum that a half one stands for, without symmetrising its self-conjugate columns."""
    rows = torch.arange(0, -n[0], -1).remainder(n[0])
    redundant = torch.arange(n[1] - half(n[1]), 0, -1)
    return torch.cat([half_map, half_map[..., rows, :][..., redundant].conj()], dim=-1)


def test_t14_the_two_relative_errors_are_named_and_one_is_about_half_the_other(seed: int):
    got, ref = maps(4, 5), maps(4, 5)
    got = ref + 0.1 * got
    trial = SimpleNamespace(ideal=lambda: ref, expected=got)
    (relative,), (symmetric,) = (m.METRIC.sample(trial) for m in (approximation_error, approximation_error_sym))
    assert relative == pytest.approx(float((got - ref).norm() / ref.norm()))
    assert symmetric == pytest.approx(float((got - ref).abs().sum() / (ref.abs() + got.abs()).sum()))
    assert 0.3 < symmetric / relative < 0.8


def test_t15_a_top_selection_shrinks_nothing():
    case = {"batch": 1, "channels": 3, "out_channels": 1, "height": 32, "width": 32, "kernel_size": 5, "grid": "seed"}
    costs = [
        SELECTION.cost(
            Case("spectrum_selection", tuple({**case, "selection": "top", "compression": c}.items()), "float32")
        )
        for c in (0.0, 0.9)
    ]
    assert costs[0] == costs[1]
    magnitude = torch.fft.rfft2(torch.randn(1, 3, 59, 59, dtype=torch.float64)).abs()
    kept = select(magnitude, "top", 117 / 1770, (59, 59))
    assert kept.shape == magnitude.shape and 5310 - 351 <= int(kept.sum()) <= 5310 - 348


@pytest.mark.parametrize("beta", [0.2, 0.7])
def test_t28_maps_are_orthonormal_kernels_are_not(beta: float, seed: int):
    x, kernel = maps(1, 1, 7, 6), maps(1, 1, 7, 6)
    ortho, plain = torch.fft.rfft2(x, norm="ortho"), torch.fft.rfft2(kernel)
    correlated = torch.fft.irfft2(torch.fft.rfft2(x) * plain.conj(), s=(7, 6))
    torch.testing.assert_close(torch.fft.rfft2(correlated, norm="ortho"), ortho * plain.conj())
    scaled = [sk.threshold_spectrum(s * ortho, beta, relative=True, activation="none", n=6) for s in (1.0, 40.0)]
    torch.testing.assert_close(40.0 * scaled[0].to_dense(), scaled[1].to_dense())
    assert scaled[0].density == scaled[1].density


def test_t29_a_magnitude_of_just_beta_is_dropped():
    y_hat = torch.full((1, 1, 4, 3), 3.0 + 4.0j, dtype=torch.complex128)
    for beta, kept in ((5.0, 0), (math.nextafter(5.0, 0.0), 12)):
        found = sk.threshold_spectrum(y_hat, beta, activation="none", n=4).to_dense()
        assert int((found != 0).sum()) == kept


def test_t30_the_tanh_of_a_spectrum_is_bounded_and_is_no_tanh_of_a_map(seed: int):
    x, weight = 20 * maps(1, 2, 6, 6), maps(3, 2, 3, 3)
    z = sk.spec_block(x, weight, 0.0).to_dense()
    assert float(z.abs().max()) <= math.sqrt(2.0) < float(z.abs().max()) * 1.1
    size = (8, 8)
    plain = sk.spec_block(x, weight, 0.0, activation="none").to_dense()
    spatial = torch.fft.irfft2(plain, s=size, norm="ortho").tanh()
    assert (torch.fft.irfft2(z, s=size, norm="ortho") - spatial).abs().max() > 0.1


def test_t31_later_blocks_wrap_around(seed: int):
    """The first block pads to H + K - 1; the second convolves on that circle, as Algorithm 1 has it."""
    x, first, second = maps(1, 2, 6, 5), maps(3, 2, 3, 3), maps(2, 3, 3, 3)
    z = sk.spec_block(x, first, 0.0, activation="none")
    got = torch.fft.irfft2(sk.spec_block(z, second, 0.0, activation="none").to_dense(), s=(8, 7), norm="ortho")
    inner = torch.fft.irfft2(z.to_dense(), s=(8, 7), norm="ortho")
    circular = F.conv2d(F.pad(inner, (0, 2, 0, 2), mode="circular"), second)
    torch.testing.assert_close(got, circular)
    assert (got - F.conv2d(F.pad(inner, (0, 2, 0, 2)), second)).abs().max() > 0.1


def test_t32_a_bias_is_the_zero_frequency_alone_and_a_block_has_none(seed: int):
    x = maps(1, 1, 6, 5)
    moved = torch.fft.rfft2(x + 0.3, norm="ortho") - torch.fft.rfft2(x, norm="ortho")
    assert moved[0, 0, 0, 0].real.item() == pytest.approx(0.3 * math.sqrt(30))
    moved[0, 0, 0, 0] = 0
    assert moved.abs().max() < 1e-12
    assert [name for name, _ in sk.nn.SpecBlock(1, 1, 3, beta=0.1).named_parameters()] == ["weight"]


def test_t33_bytes_of_a_sparse_map_depend_on_what_is_counted():
    """A 32 x 32 map under a 3 x 3 kernel: 34 x 18 coefficients, a fifth of them kept; over the dense float32 map."""
    y_hat, dense = torch.zeros(1, 1, 34, 18, dtype=torch.complex64), 32 * 32 * 4
    y_hat[0, 0, :30, 3:7] = y_hat[0, 0, 30:32, 9] = 3.0  # in no column whose pairs are decided together
    kept = {
        name: sk.threshold_spectrum(y_hat, 1.0, activation="none", n=34, impl=name)
        for name in ("index", "bitmap", "coo", "dense")
    }
    assert {found.nnz for found in kept.values()} == {122}
    values = 122 * 8
    assert values / dense == pytest.approx(0.24, abs=0.005)
    assert kept["index"].nbytes / dense == pytest.approx(0.36, abs=0.005)
    # One block of 1024 bits stands for 612 coefficients, and knows where it begins.
    assert kept["bitmap"].compact().nbytes / dense == pytest.approx(0.26, abs=0.015)
    # 0.72 with the two coordinates of a plane; ours has those of batch and channel too.
    assert (kept["coo"].nbytes - 2 * 8 * 122) / dense == pytest.approx(0.72, abs=0.01)
    assert kept["dense"].nbytes == 34 * 18 * 8


def test_t38_saved_memory_can_rise_with_compression(seed: int):
    """On the paper's grid a little compression saves the spectrum of a map twice as large as the map."""

    def saved(**options: Any) -> int:
        x, weight = torch.randn(1, 4, 16, 16, requires_grad=True), torch.randn(4, 4, 9, 9, requires_grad=True)
        found: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            sk.band_limited_conv2d(x, weight, **options)
        return sum(found.values())

    native = saved(impl="direct")
    rates = [saved(impl="dft_gemm", compression=c, grid="seed") for c in (0.1, 0.85)]
    assert rates[0] > native > rates[1]


def test_t41_three_multiplications_cancel_where_four_do_not():
    """Where real and imaginary part of x are opposite, or nearly, the sums of the trick lose what they share."""
    torch.manual_seed(0)
    big = torch.complex(torch.full((1, 4, 5, 3), 1e4), 1.0 + torch.rand(1, 4, 5, 3))
    w_hat = torch.complex(torch.rand(2, 4, 5, 3) * 1e-3, torch.full((2, 4, 5, 3), 1.0))
    exact = sk.masked_multiply(big.to(torch.complex128), w_hat.to(torch.complex128), impl="einsum")
    errors = {
        impl: float((sk.masked_multiply(big, w_hat, impl=impl) - exact).real.norm() / exact.real.norm())
        for impl in ("three_mult", "einsum")
    }
    assert errors["three_mult"] > 2 * errors["einsum"]
