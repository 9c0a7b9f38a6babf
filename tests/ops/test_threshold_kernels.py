"""The Triton kernels of threshold_spectrum and sparse_multiply, proven twice without a GPU.

Under the interpreter the tests marked `interpreter` run against float64, in a process of its own, because
TRITON_INTERPRET must be set before Triton is imported. Without it, the kernels are compiled ahead of time and their
machine code is looked at. `TRITON_INTERPRET=1 pytest tests/ops/test_threshold_kernels.py` runs the first half directly.
"""

from __future__ import annotations

import importlib.util
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from spectralkernels.launch import interpreted
from spectralkernels.ops.sparse_multiply import reference as multiply_reference
from spectralkernels.ops.sparse_multiply import sparse_multiply
from spectralkernels.ops.threshold_spectrum import reference, threshold_spectrum
from spectralkernels.sparse import SparseSpectrum, bitmap

ROOT = Path(__file__).resolve().parents[2]
HAS_TRITON = importlib.util.find_spec("triton") is not None
interpreter = pytest.mark.skipif(not (HAS_TRITON and interpreted()), reason="run by test_under_the_interpreter")
compiler = pytest.mark.skipif(not HAS_TRITON or interpreted(), reason="needs triton's compiler, not its interpreter")

TANH_ERROR = 4e-7  # the formula that stands in for libdevice's tanh under the interpreter


@compiler
def test_under_the_interpreter():
    """Every test marked `interpreter` below, in a fresh process."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("kernels", "bench"))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


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
def test_the_stand_in_for_tanh():
    """Relative error below 4 float32 ulp from 1e-30 to saturation."""
    x = torch.cat([torch.logspace(-30, 2, 3000), torch.linspace(0.5, 10.0, 5000)])
    y = torch.complex(x, -x).reshape(1, -1)
    got = threshold_spectrum(y, 0.0, impl="triton").to_dense()
    want = x.double().tanh()
    for part, sign in ((got.real, 1.0), (got.imag, -1.0)):
        assert ((part.double().flatten() * sign - want) / want).abs().max() <= 4 * 2**-23


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
def test_operators_pass_opcheck(seed: int, monkeypatch: pytest.MonkeyPatch):
    from spectralkernels.ops.sparse_multiply.kernels import sparse_multiply_bitmap
    from spectralkernels.ops.threshold_spectrum.kernels import threshold_bitmap

    # unused slots are undefined, and opcheck compares two runs: give both the same memory
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **keywords: empty(*size, **keywords).zero_())
    y = torch.randn(2, 3, 9, 5, dtype=torch.complex64, requires_grad=True)
    torch.library.opcheck(threshold_bitmap, (y, 0.8, None, True, 8))
    torch.library.opcheck(threshold_bitmap, (y, 0.8, torch.rand(6), False, 9))
    sparse = threshold_spectrum(y.detach(), 0.8, impl="triton")
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
    shapes = [(1, 1, 1, 1, 1), (9, 2, 9, 3, 11), (0, 2, 3, 4, 5), (2, 3, 0, 4, 5)]
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


def launches() -> list[Any]:
    """Kernels with the arguments of a real layer: [128, 64, 34, 18], 64 outputs; and of one with odd sizes."""
    from spectralkernels.ops.sparse_multiply.kernels import TILE, sparse_multiply_kernel
    from spectralkernels.ops.threshold_spectrum.kernels import threshold_kernel
    from spectralkernels.sparse import kernels

    f, i = torch.float32, torch.int32
    found = []
    for rows, columns, even, relative in ((34, 18, True, False), (34, 18, True, True), (33, 17, False, True)):
        n = 128 * 64 * rows * columns
        threshold = {"y_ptr": f, "rms_ptr": f, "values_ptr": f, "words_ptr": i, "n_coefficients": n, "beta": 0.5}
        shape = {"ROWS": rows, "COLUMNS": columns, "EVEN": even, "RELATIVE": relative}
        options = {"TANH": True, "LIBDEVICE": True, "BLOCK": bitmap.BLOCK}
        found.append((threshold_kernel, {**threshold, **shape, **options}, 4, 80))
    pointers = {"values_ptr": f, "words_ptr": i, "slots_ptr": i, "w_ptr": f, "out_ptr": f}
    sizes = {"batch": 128, "channels": 64, "out_channels": 64, "frequencies": 34 * 18}
    # 78 under triton 3.7.1, up to 114 under 3.6; results/fingerprints holds the exact figure of a version.
    found.append((sparse_multiply_kernel, {**pointers, **sizes, **TILE}, 4, 128))
    n = 128 * 64 * 34 * 18
    for compact in (False, True):
        move = {"values_ptr": f, "words_ptr": i, "offsets_ptr": i, "flat_ptr": f, "n_coefficients": n}
        found.append((kernels.expand_kernel, {**move, "COMPACT": compact, "BLOCK": bitmap.BLOCK}, 4, 72))
        found.append((kernels.collect_kernel, {**move, "COMPACT": compact, "BLOCK": bitmap.BLOCK}, 4, 72))
        slots = {"words_ptr": i, "offsets_ptr": i, "slots_ptr": i, "COMPACT": compact, "BLOCK": bitmap.BLOCK}
        found.append((kernels.word_slots_kernel, slots, 1, 40))
    return found


@compiler
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_machine_code(capability: int):
    """No spills, no local memory, shared memory and registers within bounds, dense data moved 128 bits at a time."""
    from spectralkernels.aot import compile_kernel

    for kernel, arguments, num_warps, most_registers in launches():
        code = compile_kernel(kernel, arguments, capability, num_warps=num_warps)
        assert code.stack == 0 and code.local == 0, code.name
        assert code.count("LDL") == 0 and code.count("STL") == 0, code.name
        assert code.shared <= code.shared_limit, code.name
        assert code.registers <= most_registers, (code.name, code.registers)
        if code.name == "threshold_kernel":
            assert code.count("LDG", "128") == 4, "1024 coefficients of 8 bytes, 128 threads"
            assert code.count("STG", "64") == 8, "one packed complex value per store"
            assert code.count("DFMA") == code.count("DMUL") == 0, "float64 would halve the rate on small GPUs"
        if code.name == "expand_kernel":
            assert code.count("STG", "128") == 4 and code.count("LDG", "64") == 8
        if code.name == "collect_kernel":
            assert code.count("LDG", "128") == 4 and code.count("STG", "64") == 8
        if code.name == "sparse_multiply_kernel":
            # Blackwell has an instruction for two FMAs
            assert code.count("FFMA") + 2 * code.count("FFMA2") >= 64, "four FMAs per complex product"
            assert code.count("STG", "64") == 16
