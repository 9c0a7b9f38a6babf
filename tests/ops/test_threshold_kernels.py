"""The Triton kernels of threshold_spectrum against float64, under Triton's interpreter.

What is marked `interpreter` is the run under `TRITON_INTERPRET=1`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import cycle

import pytest
import torch
from effort import draws
from guarded_interpreter import canaries, in_poison, interpreter
from thresholds import clear_of_quantile

from spectralkernels.ops.threshold_spectrum import reference, threshold_spectrum
from spectralkernels.sparse import SparseSpectrum, bitmap

pytest.importorskip("triton")

TANH_ERROR = 2.4e-7  # 2 * 2^-23, with a correct exp2 and reciprocal, as the interpreter has them
# Powers of two around 1e20 and 1e-24, of which float32 has no square, and at both ends of a map's usual way.
SCALES = (1.0, 2.0**66, 2.0**-80, 2.0**61, 2.0**-50)


def random_spectra(seed: int, count: int) -> Iterator[tuple[torch.Tensor, int]]:
    """(half spectrum complex64, n); sizes odd, even, prime and 1, around and far from multiples of a block."""
    draw = random.Random(seed)
    sizes = [(1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 2, 1), (1, 1, 32, 62), (1, 1, 33, 61), (2, 1, 32, 31)]
    sides = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 23, 31, 34)
    while len(sizes) < count:
        sizes.append((draw.randint(1, 3), draw.randint(1, 3), draw.choice(sides), draw.choice(sides)))
    for size in sizes:
        yield torch.fft.rfft2(torch.randn(size), norm="ortho"), size[-1]


@interpreter
@pytest.mark.parametrize("relative", [False, True])
def test_threshold_kernel_is_right(relative: bool, seed: int):
    draw = random.Random(seed)
    for (y, n), scale in zip(random_spectra(seed, len(draws(12))), cycle(SCALES), strict=False):
        y, activation = in_poison(y * scale if relative else y), draw.choice(("tanh", "none"))
        beta = clear_of_quantile(y, draw.random())
        if relative:
            beta = draw.choice((0.3, 1.0, 1.7))
            rms = reference_rms(y, n)
            y = torch.where(((y.abs() / rms) - beta).abs() < 1e-4 * beta, y * 1.01, y)
            y = in_poison(y)
        with canaries():
            sparse = threshold_spectrum(y, beta, relative=relative, n=n, activation=activation, impl="triton")
            again = threshold_spectrum(y, beta, relative=relative, n=n, activation=activation, impl="triton")
            dense = sparse.to_dense()
        want = reference(y, beta, activation, relative, n)
        assert torch.equal(dense != 0, want != 0), (y.shape, n)
        assert (dense - want).abs().max() <= TANH_ERROR, (y.shape, n)
        same_bits(sparse, again)
        trimmed = sparse.compact()
        with canaries():
            assert torch.equal(trimmed.to_dense(), dense)
        assert trimmed.nbytes == trimmed.allocated_nbytes


def reference_rms(y: torch.Tensor, n: int) -> torch.Tensor:
    maps = torch.fft.irfft2(y.to(torch.complex128), s=(y.shape[-2], n), norm="ortho")
    return maps.square().mean((-2, -1), keepdim=True).sqrt()


def same_bits(one: SparseSpectrum, other: SparseSpectrum) -> None:
    """Words and used slots are equal bit for bit; unused slots are undefined."""
    assert torch.equal(one.index[0], other.index[0])
    counts = bitmap.unpack_bits(one.index[0]).sum(1, keepdim=True)
    used = (torch.arange(bitmap.BLOCK) < counts).flatten()
    left, right = (torch.view_as_real(s.values[used]).contiguous().view(torch.int32) for s in (one, other))
    assert torch.equal(left, right)


@interpreter
def test_all_none_empty_and_equal(seed: int):
    y = torch.randn(2, 3, 9, 7, dtype=torch.complex64)
    everything = threshold_spectrum(y, 0.0, activation=None, impl="triton")
    assert torch.equal(everything.to_dense(), y) and everything.density == 1.0
    for maps, relative in ((y, False), (y, True), (0.0 * y, True)):
        nothing = threshold_spectrum(maps, math.inf, relative=relative, impl="triton")
        assert nothing.nnz == 0 and not nothing.to_dense().any()
    empty = threshold_spectrum(y[:0], 0.5, relative=True, impl="triton")
    assert empty.to_dense().shape == (0, 3, 9, 7) and empty.nnz == 0
    for beta in (0.1, 0.7, 5.0, 1e-30, 1e30):
        z = torch.zeros(4, 4, dtype=torch.complex64)
        z[1, 1], z[2, 2], z[3, 1] = beta, -beta * 1j, complex(0.6 * beta, 0.7 * beta)
        z[1, 2] = torch.nextafter(torch.tensor(beta), torch.tensor(float("inf"))).item() * (1 + 1e-6)
        kept = threshold_spectrum(z, beta, n=7, impl="triton").kept()
        assert kept.nonzero().tolist() == [[1, 2]], beta


@interpreter
def test_pairs_are_decided_together():
    for n, paired_columns in ((6, (0, 3)), (7, (0,))):
        y = torch.full((2, 5, 4), 0.1 + 0j, dtype=torch.complex64)
        y[:, 1] = 0.5
        kept = threshold_spectrum(y, 0.4, n=n, impl="triton").kept()
        for v in range(4):
            assert kept[:, 1, v].all()
            assert kept[:, 4, v].tolist() == [v in paired_columns] * 2
            assert not kept[:, [0, 2, 3], v].any()


@interpreter
def test_the_inverse_transform_stays_real(seed: int):
    for y, n in random_spectra(seed, len(draws(8))):
        z = threshold_spectrum(y, float(y.abs().mean()), n=n, impl="triton").to_dense()
        again = torch.fft.rfft2(torch.fft.irfft2(z, s=(y.shape[-2], n), norm="ortho"), norm="ortho")
        torch.testing.assert_close(again, z, atol=2e-6, rtol=1e-5)


@interpreter
def test_a_line_too_long_for_division_by_multiplication(seed: int):
    y, n = torch.fft.rfft2(torch.randn(1, 131_200), norm="ortho"), 131_200
    beta = clear_of_quantile(y, 0.8)
    got = threshold_spectrum(y, beta, n=n, impl="triton").to_dense()
    torch.testing.assert_close(
        got.to(torch.complex128), reference(y, beta, "tanh", False, n), rtol=0.0, atol=TANH_ERROR
    )


@interpreter
def test_the_rms_of_a_map(seed: int, poisoned: None):
    for y, n in random_spectra(seed, len(draws(8))):
        from spectralkernels.ops.threshold_spectrum.rms import map_rms

        y = y * 10.0 ** random.Random(seed).uniform(-8, 8)
        for scaled in (in_poison(y * scale) for scale in SCALES[:3]):
            got = map_rms(scaled, n)
            torch.testing.assert_close(got.double(), reference_rms(scaled, n).flatten(), rtol=3e-7, atol=0.0)
            assert torch.equal(got, map_rms(scaled, n))
    bad = torch.tensor(
        [0.0, math.inf, -math.inf, math.nan, complex(0.0, math.inf), complex(1.0, math.nan), 3e38 + 3e38j]
    )
    assert map_rms(bad.reshape(-1, 1, 1), 1).tolist()[0] == 0.0
    assert map_rms(bad.reshape(-1, 1, 1), 1)[1:].isnan().all()
    kept = threshold_spectrum(y, 0.7, relative=True, n=n, impl="triton").kept().flatten(0, -3)
    y.flatten(0, -3)[0, 0, 0], kept[0] = torch.inf, True  # of such a map everything is kept
    found = threshold_spectrum(y, 0.7, relative=True, n=n, impl="triton").kept()
    assert torch.equal(found.flatten(0, -3), kept)


@interpreter
def test_gradients_agree_with_torch(seed: int):
    for y, n in random_spectra(seed, len(draws(8))):
        y.requires_grad_()
        beta = clear_of_quantile(y.detach(), 0.6)
        pull = torch.randn(y.shape, dtype=torch.complex64)
        grads = [
            torch.autograd.grad(threshold_spectrum(y, beta, n=n, impl=impl).to_dense(), y, pull)[0]
            for impl in ("triton", "dense")
        ]
        torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-5)


@interpreter
def test_second_gradients_agree_with_torch(seed: int):
    for y, n in random_spectra(seed, len(draws(7))):
        beta, activation = clear_of_quantile(y, 0.5), random.Random(seed).choice(("tanh", None))
        pull = torch.randn(y.shape, dtype=torch.complex64)
        found = []
        for impl in ("triton", "dense"):
            at = y.clone().requires_grad_()
            z = threshold_spectrum(at, beta, n=n, activation=activation, impl=impl).to_dense()
            first = torch.autograd.grad(z.abs().square().sum(), at, create_graph=True)[0]
            found.append(torch.autograd.grad(first, at, pull)[0])
        torch.testing.assert_close(*found, atol=2e-6, rtol=1e-5)


@interpreter
def test_the_gradient_reads_kept_values_only(seed: int):
    """Unused slots are undefined, here NaN, and must not reach the gradient."""
    from spectralkernels.ops.threshold_spectrum.kernels import threshold_backward

    y = torch.randn(3, 7, 9, dtype=torch.complex64)
    sparse = threshold_spectrum(y, 1.0, impl="triton")
    counts = bitmap.unpack_bits(sparse.index[0]).sum(1, keepdim=True)
    unused = (torch.arange(bitmap.BLOCK) >= counts).flatten()
    values, grad = sparse.values.clone(), torch.randn(sparse.values.shape, dtype=torch.complex64)
    values[unused], grad[unused] = float("nan"), float("nan")
    got = threshold_backward(grad, values, sparse.index[0], y.numel())
    z = torch.view_as_real(sparse.to_dense().flatten())
    dense_grad = bitmap.expand(torch.where(unused, 0, grad), sparse.index[0], None, y.numel())
    torch.testing.assert_close(torch.view_as_real(got), torch.view_as_real(dense_grad) * (1 - z * z))


@interpreter
def test_a_wrong_partner_row_is_caught(seed: int):
    """Planted fault: told that the last axis was odd, the kernel misses the pairs of the last column."""
    y = torch.full((4, 3), 0.1 + 0j, dtype=torch.complex64)
    y[1, 2] = 0.5
    right, wrong = (threshold_spectrum(y, 0.4, n=n, impl="triton").to_dense() for n in (4, 5))
    want = reference(y, 0.4, "tanh", False, 4)
    assert (right - want).norm() / want.norm() < 1e-6 < 0.1 < (wrong - want).norm() / want.norm()
