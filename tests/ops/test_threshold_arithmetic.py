"""The arithmetic of the threshold kernel: tanh, magnitudes beyond what squares hold, division by a constant.

What is marked `interpreter` is the run under `TRITON_INTERPRET=1`.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from guarded_interpreter import interpreter

from spectralkernels.ops.threshold_spectrum import threshold_spectrum

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
divided = pytest.importorskip("spectralkernels.ops.threshold_spectrum.activation").divided


@triton.jit
def division_kernel(x_ptr, quotient_ptr, DIVISOR: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + offs).to(tl.uint32)
    tl.store(quotient_ptr + offs, divided(x, DIVISOR, LIMIT).to(tl.int64))


@interpreter
def test_division_by_a_constant_is_exact():
    """Around every multiple near both ends of the range, for divisors around powers of two and the largest allowed."""
    for divisor in (1, 2, 3, 5, 7, 9, 10, 17, 18, 31, 33, 641, 1023, 1025, 65535, 65537):
        for limit in (2**31 - 1, 2**32 // divisor, 5000):
            last = min(limit, 2**32) - 1
            x = torch.cat([torch.arange(512), last // divisor * divisor + torch.arange(-511, 1)]).clamp(0, last)
            quotient = torch.empty_like(x)
            division_kernel[(1,)](x, quotient, DIVISOR=divisor, LIMIT=limit, BLOCK=1024)
            assert torch.equal(quotient, x // divisor), (divisor, limit)


@interpreter
def test_extreme_magnitudes():
    """Squares of these overflow or vanish in float32; the decision does not. NaN is not hidden."""
    tiny, huge = 1e-38, 3e38
    y = torch.tensor([[1.0, tiny, huge, 1e-44, float("nan")]], dtype=torch.complex64).repeat(2, 1)
    for beta, kept in (
        (0.0, [1, 1, 1, 1, 1]),
        (1e-40, [1, 1, 1, 0, 1]),
        (2.0, [0, 0, 1, 0, 1]),
        (3.3e38, [0, 0, 0, 0, 1]),
    ):
        got = threshold_spectrum(y, beta, activation=None, n=9, impl="triton").kept()
        assert got[1].int().tolist() == kept, beta


@interpreter
def test_scaling_decides_nothing(seed: int, monkeypatch: pytest.MonkeyPatch):
    """At the ends of the range where the kernel leaves it out, one bit around beta, with and without it."""
    from spectralkernels.ops.threshold_spectrum import kernels

    for exponent in (-60, -59, -20, 0, 33, 59, 60):
        beta = torch.tensor(2.0**exponent)
        near = [torch.nextafter(beta, end * beta) for end in (torch.tensor(0.0), torch.tensor(2.0))]
        sizes = torch.cat([torch.stack([beta, *near]), beta * torch.rand(500) * 2, torch.logspace(-38, 38, 77)])
        angle = torch.rand(len(sizes)) * 2 * math.pi
        angle[:40] = 0.0
        y = torch.polar(sizes, angle).reshape(1, -1)
        kept = [threshold_spectrum(y, float(beta), activation=None, impl="triton").kept()]
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "UNSCALED", (math.inf, 0.0))
            kept.append(threshold_spectrum(y, float(beta), activation=None, impl="triton").kept())
        assert torch.equal(*kept), exponent
        assert kept[0][0, :3].tolist() == [False, False, True]


@pytest.mark.slow
@interpreter
def test_tanh(seed: int):
    """Relative error below 2 * 2^-23 with a correct exp2 and reciprocal, from 1e-30 on; odd to the last bit."""
    draws = torch.exp2(torch.empty(20000, dtype=torch.float64).uniform_(-14, 4)).float()
    x = torch.cat([torch.logspace(-30, 2, 3000), torch.linspace(0.5, 10.0, 5000), draws])
    y = torch.complex(x, -x).reshape(1, -1)
    got = threshold_spectrum(y, 0.0, impl="triton").to_dense()
    want = x.double().tanh()
    assert ((got.real.double().flatten() - want) / want).abs().max() <= 2 * 2**-23
    assert torch.equal(got.imag, -got.real)
    ends = torch.tensor([[0.0, 1e-44, 3e38, float("inf"), float("nan")]])
    got = threshold_spectrum(torch.complex(ends, -ends), 0.0, impl="triton").to_dense().real.flatten()
    assert got[:4].tolist() == [0.0, ends[0, 1].item(), 1.0, 1.0] and got[4].isnan()


def test_tanh_with_the_errors_of_a_gpu(seed: int):
    """The formula of `spectral_tanh` in numpy: below 3.8 * 2^-23 however the approximations use their allowance.

    PTX allows ex2.approx a relative error of 2^-22 and rcp.approx one of 2^-23.
    """
    x = np.exp2(np.random.default_rng(seed).uniform(-14, 5, 1_000_000)).astype(np.float32)
    x = np.concatenate([x, np.arange(0.59, 0.62, 1e-7, dtype=np.float32)])
    want = np.tanh(x.astype(np.float64))

    def rounded_fma(a: np.ndarray, b: np.ndarray | float, c: np.ndarray | float) -> np.ndarray:
        return (a.astype(np.float64) * b + c).astype(np.float32)

    square = x * x
    p = np.full_like(x, 0.015612632967531681)
    for coefficient in (-0.05221180617809296, 0.13313116133213043, -0.33332598209381104):
        p = rounded_fma(p, square.astype(np.float64), coefficient)
    small = rounded_fma(x, (p * square).astype(np.float64), x)
    worst = []
    for power_error, part_error in itertools.product((-(2.0**-22), 0.0, 2.0**-22), (-(2.0**-23), 0.0, 2.0**-23)):
        twice = (x * np.float32(2.885390081777927)).astype(np.float64)
        power = (np.exp2(twice) * (1.0 + power_error)).astype(np.float32)
        part = (1.0 / (power + np.float32(1.0)).astype(np.float64) * (1.0 + part_error)).astype(np.float32)
        got = np.where(x < 0.6, small, rounded_fma(part, -2.0, 1.0))
        worst.append(np.abs(got / want - 1.0).max())
    assert worst[4] <= 1.7 * 2**-23, "with correct exp2 and reciprocal"
    assert 3.0 * 2**-23 < max(worst) <= 3.8 * 2**-23
