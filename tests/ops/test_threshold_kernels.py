"""The Triton kernels of threshold_spectrum and sparse_multiply against float64, under Triton's interpreter.

The tests marked `interpreter` run in a process of its own, because TRITON_INTERPRET must be set before Triton is
imported. `TRITON_INTERPRET=1 pytest tests/ops/test_threshold_kernels.py` runs them directly.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spectralkernels.launch import interpreted
from spectralkernels.ops.sparse_multiply import reference as multiply_reference
from spectralkernels.ops.sparse_multiply import sparse_multiply
from spectralkernels.ops.threshold_spectrum import reference, threshold_spectrum
from spectralkernels.sparse import SparseSpectrum, bitmap

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
divided = pytest.importorskip("spectralkernels.ops.threshold_spectrum.activation").divided

ROOT = Path(__file__).resolve().parents[2]
interpreter = pytest.mark.skipif(not interpreted(), reason="run by test_under_the_interpreter")

TANH_ERROR = 2.4e-7  # 2 * 2^-23, with a correct exp2 and reciprocal, as the interpreter has them


@pytest.mark.skipif(interpreted(), reason="this is the interpreter")
def test_under_the_interpreter():
    """Every test marked `interpreter` below, in a fresh process."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("kernels", "bench"))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@triton.jit
def division_kernel(x_ptr, quotient_ptr, DIVISOR: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + offs).to(tl.uint32)
    tl.store(quotient_ptr + offs, divided(x, DIVISOR, LIMIT).to(tl.int64))


def random_spectra(seed: int, count: int) -> Iterator[tuple[torch.Tensor, int]]:
    """(half spectrum complex64, n); sizes odd, even, prime and 1, around and far from multiples of a block."""
    draw = random.Random(seed)
    sizes = [(1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 2, 1), (1, 1, 32, 62), (1, 1, 33, 61), (2, 1, 32, 31)]
    sides = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 23, 31, 34)
    while len(sizes) < count:
        sizes.append((draw.randint(1, 3), draw.randint(1, 3), draw.choice(sides), draw.choice(sides)))
    for size in sizes:
        yield torch.fft.rfft2(torch.randn(size), norm="ortho"), size[-1]


def in_poison(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in the middle of a buffer of NaN, so that a read outside is seen."""
    buffer = torch.full((tensor.numel() + 4096,), complex(float("nan"), float("nan")), dtype=tensor.dtype)
    inner = buffer[2048 : 2048 + tensor.numel()].view(tensor.shape)
    inner.copy_(tensor)
    return inner


@contextmanager
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.empty hands out NaN-filled memory between canaries, which must be alive at the end."""
    empty, pads = torch.empty, []

    def padded(*size: Any, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> torch.Tensor:
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        count, canary = math.prod(shape), 77
        buffer = empty(count + 512, dtype=dtype).fill_(canary)
        pads.append(buffer)
        inner = buffer[256 : 256 + count]
        inner.fill_(float("nan") if dtype.is_complex or dtype.is_floating_point else -77)
        return inner.view(shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", padded)
        yield
    assert pads, "the code under test allocates its outputs with torch.empty"
    for buffer in pads:
        assert (buffer[:256] == 77).all() and (buffer[-256:] == 77).all(), "written outside"


def clear_of(y: torch.Tensor, quantile: float) -> float:
    """A beta in the widest gap between magnitudes near a quantile, so that rounding decides nothing."""
    magnitudes = y.abs().double().flatten().sort().values
    if len(magnitudes) == 1:
        return 0.5 * float(magnitudes[0])
    middle = int(quantile * (len(magnitudes) - 1))
    near = magnitudes[max(0, middle - 8) : middle + 9]
    widest = int(near.diff().argmax())
    return float(near[widest : widest + 2].mean())


@interpreter
@pytest.mark.parametrize("relative", [False, True])
def test_threshold_kernel_is_right(relative: bool, seed: int, monkeypatch: pytest.MonkeyPatch):
    draw = random.Random(seed)
    for y, n in random_spectra(seed, 34):
        y, activation = in_poison(y), draw.choice(("tanh", "none"))
        beta = clear_of(y, draw.random())
        if relative:
            beta = draw.choice((0.3, 1.0, 1.7))
            rms = reference_rms(y, n)
            y = torch.where(((y.abs() / rms) - beta).abs() < 1e-4 * beta, y * 1.01, y)
            y = in_poison(y)
        with canaries(monkeypatch):
            sparse = threshold_spectrum(y, beta, relative=relative, n=n, activation=activation, impl="triton")
            again = threshold_spectrum(y, beta, relative=relative, n=n, activation=activation, impl="triton")
            dense = sparse.to_dense()
        want = reference(y, beta, activation, relative, n)
        assert torch.equal(dense != 0, want != 0), (y.shape, n)
        assert (dense - want).abs().max() <= TANH_ERROR, (y.shape, n)
        same_bits(sparse, again)
        trimmed = sparse.compact()
        with canaries(monkeypatch):
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
    nothing = threshold_spectrum(y, float("inf"), impl="triton")
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
    for y, n in random_spectra(seed, 12):
        z = threshold_spectrum(y, float(y.abs().mean()), n=n, impl="triton").to_dense()
        again = torch.fft.rfft2(torch.fft.irfft2(z, s=(y.shape[-2], n), norm="ortho"), norm="ortho")
        torch.testing.assert_close(again, z, atol=2e-6, rtol=1e-5)


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
def test_a_line_too_long_for_division_by_multiplication(seed: int):
    y, n = torch.fft.rfft2(torch.randn(1, 131_200), norm="ortho"), 131_200
    beta = clear_of(y, 0.8)
    got = threshold_spectrum(y, beta, n=n, impl="triton").to_dense()
    torch.testing.assert_close(
        got.to(torch.complex128), reference(y, beta, "tanh", False, n), rtol=0.0, atol=TANH_ERROR
    )


@interpreter
def test_the_rms_of_a_map(seed: int, poisoned: None):
    for y, n in random_spectra(seed, 16):
        from spectralkernels.ops.threshold_spectrum.rms import map_rms

        y = in_poison(y * 10.0 ** random.Random(seed).uniform(-8, 8))
        got = map_rms(y, n)
        torch.testing.assert_close(got.double(), reference_rms(y, n).flatten(), rtol=3e-7, atol=0.0)
        assert torch.equal(got, map_rms(y, n))


@interpreter
def test_gradients_agree_with_torch(seed: int):
    for y, n in random_spectra(seed, 10):
        y.requires_grad_()
        beta = clear_of(y.detach(), 0.6)
        pull = torch.randn(y.shape, dtype=torch.complex64)
        grads = [
            torch.autograd.grad(threshold_spectrum(y, beta, n=n, impl=impl).to_dense(), y, pull)[0]
            for impl in ("triton", "dense")
        ]
        torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-5)


@interpreter
def test_second_gradients_agree_with_torch(seed: int):
    for y, n in random_spectra(seed, 6):
        beta, activation = clear_of(y, 0.5), random.Random(seed).choice(("tanh", None))
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
def test_operators_pass_opcheck(seed: int, monkeypatch: pytest.MonkeyPatch):
    from spectralkernels.ops.sparse_multiply.kernels import sparse_multiply_bitmap
    from spectralkernels.ops.threshold_spectrum.kernels import threshold_backward, threshold_bitmap
    from spectralkernels.ops.threshold_spectrum.rms import map_rms

    # unused slots are undefined, and opcheck compares two runs: give both the same memory
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **keywords: empty(*size, **keywords).zero_())
    y = torch.randn(2, 3, 9, 5, dtype=torch.complex64, requires_grad=True)
    torch.library.opcheck(threshold_bitmap, (y, 0.8, None, True, 8))
    torch.library.opcheck(threshold_bitmap, (y, 0.8, torch.rand(6), False, 9))
    torch.library.opcheck(map_rms, (y.detach(), 8))
    sparse = threshold_spectrum(y.detach(), 0.8, impl="triton")
    grad = torch.randn_like(sparse.values).requires_grad_()
    outputs = sparse.values.clone().requires_grad_()
    torch.library.opcheck(threshold_backward, (grad, outputs, sparse.index[0], y.numel()))
    torch.library.opcheck(threshold_backward, (grad, None, sparse.index[0], y.numel()))
    w = torch.randn(4, 3, 9, 5, dtype=torch.complex64, requires_grad=True)
    for spectrum in (sparse, sparse.compact()):
        words, offsets = spectrum.index[0], spectrum.index[1] if len(spectrum.index) > 1 else None
        values = spectrum.values.clone().requires_grad_()
        torch.library.opcheck(sparse_multiply_bitmap, (values, words, offsets, w, spectrum.shape))
        torch.library.opcheck(bitmap.expand, (values, words, offsets, y.numel()))
        torch.library.opcheck(bitmap.collect, (y.detach().flatten(), words, offsets, values.shape[0]))


@interpreter
def test_kernels_trace_whole(seed: int):
    y = torch.randn(2, 3, 9, 5, dtype=torch.complex64, requires_grad=True)
    w = torch.randn(4, 3, 9, 5, dtype=torch.complex64, requires_grad=True)

    def layer(y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return sparse_multiply(threshold_spectrum(y, 0.5, impl="triton"), w, impl="triton")

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y, w), layer(y, w))
    grads = [torch.autograd.grad(call(y, w).abs().sum(), (y, w)) for call in (compiled, layer)]
    torch.testing.assert_close(*grads)


@interpreter
def test_sparse_multiply_kernel_is_right(seed: int, monkeypatch: pytest.MonkeyPatch):
    draw = random.Random(seed)
    shapes = [(1, 1, 1, 1, 1), (9, 2, 9, 3, 11), (0, 2, 3, 4, 5), (2, 3, 0, 4, 5), (2, 35, 3, 5, 7), (1, 64, 17, 1, 1)]
    shapes += [(8, 33, 16, 4, 8), (3, 5, 33, 6, 11)]
    while len(shapes) < 30:
        shapes.append(
            (
                draw.randint(1, 9),
                draw.randint(1, 5),
                draw.randint(1, 10),
                draw.choice((1, 2, 5, 8, 13)),
                draw.randint(1, 9),
            )
        )
    for batch, channels, outputs, rows, columns in shapes:
        y = torch.randn(batch, channels, rows, columns, dtype=torch.complex64)
        y *= torch.rand(channels, 1, 1) < 0.8  # whole tiles are empty
        w = in_poison(torch.randn(outputs, channels, rows, columns, dtype=torch.complex64))
        sparse = threshold_spectrum(y, draw.choice((0.0, 0.8, 2.0)), impl="triton")
        if draw.random() < 0.4:
            sparse = sparse.compact()
        want = multiply_reference(sparse, w)
        with canaries(monkeypatch):
            got = sparse_multiply(sparse, w, impl="triton")
        assert got.shape == want.shape
        torch.testing.assert_close(got.to(torch.complex128), want, atol=3e-6, rtol=1e-5)
        assert torch.equal(got, sparse_multiply(sparse, w, impl="triton")), "bitwise the same twice"


@interpreter
def test_sparse_multiply_gradients(seed: int):
    y = torch.randn(2, 3, 6, 5, dtype=torch.complex64, requires_grad=True)
    w = torch.randn(4, 3, 6, 5, dtype=torch.complex64, requires_grad=True)
    pull = torch.randn(2, 4, 6, 5, dtype=torch.complex64)
    grads = [
        torch.autograd.grad(sparse_multiply(make(threshold_spectrum(y, 0.7)), w, impl=impl), (y, w), pull)
        for impl, make in (("dense", lambda s: s), ("triton", lambda s: s), ("triton", SparseSpectrum.compact))
    ]
    torch.testing.assert_close(grads[1], grads[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads[2], grads[0], atol=1e-5, rtol=1e-5)


@interpreter
def test_a_wrong_partner_row_is_caught(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Planted fault: told that the last axis was odd, the kernel misses the pairs of the last column."""
    y = torch.full((4, 3), 0.1 + 0j, dtype=torch.complex64)
    y[1, 2] = 0.5
    right, wrong = (threshold_spectrum(y, 0.4, n=n, impl="triton").to_dense() for n in (4, 5))
    want = reference(y, 0.4, "tanh", False, 4)
    assert (right - want).norm() / want.norm() < 1e-6 < 0.1 < (wrong - want).norm() / want.norm()
