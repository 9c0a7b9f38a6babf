"""SpecNet's block: Algorithm 1 itself, conv2d, the dense composition, any input; faults that its tolerance catches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_spec_block import IMPLS, plain_block, product, shapes
from thresholds import clear_of
from torch import Tensor

from spectralkernels.errors import RangeError, ShapeError
from spectralkernels.ops.spec_block import OPERATION, spec_block
from spectralkernels.ops.threshold_spectrum import threshold_spectrum
from spectralkernels.sparse import FORMATS, SparseSpectrum
from spectralkernels.spectra import half


def algorithm_1(x: Tensor, kernel: Tensor, beta: float) -> Tensor:
    """The paper's listing, coefficient by coefficient on full spectra: a true convolution.

    x: Real maps [B, C, M, N], which are padded, or Complex full spectra, which are not. Returns: full [B, O, M', N'].
    """
    rows, columns = x.shape[2:]
    if not x.is_complex():
        rows, columns = rows + kernel.shape[2] - 1, columns + kernel.shape[3] - 1
        x = torch.fft.fft2(x, s=(rows, columns), norm="ortho")
    k = torch.fft.fft2(kernel, s=(rows, columns))
    z = torch.zeros(x.shape[0], kernel.shape[0], rows, columns, dtype=torch.complex128)
    for b, o in ((b, o) for b in range(x.shape[0]) for o in range(kernel.shape[0])):
        y = sum(x[b, c] * k[o, c] for c in range(x.shape[1]))
        for i, j in ((i, j) for i in range(rows) for j in range(columns)):
            if abs(y[i, j]) > beta:
                z[b, o, i, j] = torch.complex(y[i, j].real.tanh(), y[i, j].imag.tanh())
    return z


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("size", [(5, 6), (4, 7), (1, 3), (6, 6)])
def test_it_is_algorithm_1(impl: str, size: tuple[int, int], seed: int):
    """Two blocks: the first pads the image, the second stays on the circle; the map behind the spectrum is real."""
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    kernels = torch.randn(4, 3, 2, 3, dtype=torch.float64), torch.randn(2, 4, 2, 3, dtype=torch.float64) / 2
    rows, n = size[0] + 1, size[1] + 2
    z: Any = x
    want = x
    for kernel in kernels:
        w_hat = torch.fft.rfft2(kernel, s=(rows, n)).conj()
        x_hat = torch.fft.rfft2(x, s=(rows, n), norm="ortho") if z is x else z.to_dense()
        beta = clear_of(product(x_hat, w_hat, n), 1.0)
        z, want = spec_block(z, w_hat, beta, n=n, impl=impl), algorithm_1(want, kernel, beta)
        torch.testing.assert_close(z.to_dense(), want[..., : half(n)])
    assert z.shape == (2, 2, rows, half(n)) and 0 < z.nnz
    spatial = torch.fft.ifft2(want, norm="ortho")
    assert spatial.imag.abs().max() < 1e-12
    torch.testing.assert_close(torch.fft.irfft2(z.to_dense(), s=(rows, n), norm="ortho"), spatial.real)
    assert z.to_dense().abs().max() <= 2**0.5


@pytest.mark.parametrize("impl", IMPLS)
def test_without_threshold_it_is_conv2d(impl: str, seed: int):
    """First block: the valid part is conv2d. Later blocks wrap around, as the paper's do: conv2d on a circle."""
    x, first = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(4, 3, 3, 4, dtype=torch.float64)
    z = spec_block(x, first, 0.0, activation=None, impl=impl)
    assert z.shape == (2, 4, 11, 6)
    maps = torch.fft.irfft2(z.to_dense(), s=(11, 11), norm="ortho")
    torch.testing.assert_close(maps[..., :7, :5], F.conv2d(x, first))
    second = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    again = spec_block(z, second, 0.0, activation="none", n=11, impl=impl)
    circle = F.conv2d(F.pad(maps, (0, 1, 0, 2), mode="circular"), second)
    torch.testing.assert_close(torch.fft.irfft2(again.to_dense(), s=(11, 11), norm="ortho"), circle)


@pytest.mark.parametrize("impl", IMPLS)
def test_it_is_the_composition(impl: str, seed: int):
    """Any shape, any kind of input and weight: the same map as the dense block, and the same kept coefficients."""
    for batch, channels, outputs, rows, n, *kernel in shapes(seed, 24):
        x = torch.randn(batch, channels, rows, n, dtype=torch.float64)
        x_hat, weight = torch.fft.rfft2(x, norm="ortho"), torch.randn(outputs, channels, *kernel, dtype=torch.float64)
        before = threshold_spectrum(x_hat, 0.4, n=n)
        inputs: list[tuple[Any, Tensor]] = [(x_hat, x_hat), (before, before.to_dense())]
        for given, dense in inputs:
            beta = clear_of(product(dense, weight, n), 1.0)
            want = plain_block(dense, weight, beta, n)
            for kind in (weight, torch.fft.rfft2(weight, s=(rows, n))):
                got = spec_block(given, kind, beta, n=n, impl=impl)
                assert got.shape == want.shape and got.format == impl
                torch.testing.assert_close(got.to_dense(), want)
                assert torch.equal(got.kept(), want != 0)


@pytest.mark.parametrize("impl", IMPLS)
def test_relative_beta_scales_with_the_rms_of_each_map(impl: str, seed: int):
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    weight = torch.randn(2, 3, 2, 2, dtype=torch.float64) * torch.tensor([0.1, 30.0]).reshape(2, 1, 1, 1)
    y_hat = product(torch.fft.rfft2(x, s=(7, 8), norm="ortho"), weight, 8)
    rms = torch.fft.irfft2(y_hat, s=(7, 8), norm="ortho").square().mean((-2, -1), keepdim=True).sqrt()
    beta = clear_of(y_hat / rms, 1.0)
    got = spec_block(x, weight, beta, relative=True, impl=impl)
    assert torch.equal(got.kept(), (y_hat / rms).abs() > beta)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("impl", IMPLS)
def test_any_format_goes_in(format: str, impl: str, seed: int):
    x_hat = torch.fft.rfft2(torch.randn(2, 3, 6, 6, dtype=torch.float64), norm="ortho").requires_grad_()
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    before = threshold_spectrum(x_hat, 0.7, impl=format)
    beta = clear_of(product(before.to_dense(), weight, 6), 1.0)
    pull = torch.randn(2, 4, 6, 4, dtype=torch.complex128)
    for tight in (before, before.compact()):
        grads = [
            torch.autograd.grad(made, (x_hat, weight), pull, retain_graph=True)
            for made in (
                spec_block(tight, weight, beta, impl=impl).to_dense(),
                plain_block(threshold_spectrum(x_hat, 0.7).to_dense(), weight, beta, 6),
            )
        ]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0)], ids=["batch", "channels", "outputs"])
def test_empty_axes(impl: str, shape: tuple[int, int, int]):
    batch, channels, outputs = shape
    x = torch.zeros(batch, channels, 5, 6, requires_grad=True)
    weight = torch.zeros(outputs, channels, 3, 3, requires_grad=True)
    z = spec_block(x, weight, 0.5, impl=impl)
    assert z.shape == (batch, outputs, 7, 5) and z.nnz == 0
    again = spec_block(z, torch.zeros(2, outputs, 2, 2, requires_grad=True), 0.5, capacity=0.5, impl=impl)
    again.to_dense().abs().sum().backward()
    assert x.grad is not None and not x.grad.any()
    assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("impl", IMPLS)
def test_any_strides(impl: str, seed: int):
    x, w = torch.randn(6, 5, 3, 2, dtype=torch.float64), torch.randn(3, 2, 3, 4, dtype=torch.float64)
    images, kernels = (x.permute(3, 2, 1, 0), x[::2, :3]), (w.permute(3, 0, 2, 1), w[:, :1].expand(3, 3, 3, 4))
    for image, kernel in ((images[0], kernels[0]), (images[1], kernels[1][..., 1:2, 1:3])):
        want = spec_block(image.contiguous(), kernel.contiguous(), 1.0, impl=impl).to_dense()
        torch.testing.assert_close(spec_block(image, kernel, 1.0, impl=impl).to_dense(), want)
    x_hat = torch.randn(4, 5, 3, 2, dtype=torch.complex128)
    for view in (x_hat.permute(3, 2, 1, 0), x_hat.permute(3, 2, 1, 0).conj()):
        w_hat = torch.randn(2, 3, 5, 4, dtype=torch.complex128).conj()
        want = spec_block(view.resolve_conj().contiguous(), w_hat.resolve_conj(), 1.0, impl=impl).to_dense()
        torch.testing.assert_close(spec_block(view, w_hat, 1.0, impl=impl).to_dense(), want)


@pytest.mark.parametrize("impl", IMPLS)
def test_faults_fail_the_gate(impl: str, seed: int, monkeypatch: pytest.MonkeyPatch):
    """Planted faults: another threshold, a forgotten conjugate. The measured case passes with room to spare."""
    case = dataclasses.replace(OPERATION.cases("quick")[0][0], seed=seed)
    inputs = OPERATION.make_inputs(case, "cpu")
    want = OPERATION.reference(**inputs)
    call = OPERATION.implementation(impl).call
    right = call(**inputs)
    limit = OPERATION.tolerance.relative["float32"]

    def error(output: SparseSpectrum) -> float:
        return float((output.to_dense() - want).norm() / want.norm())

    assert error(right) < limit / 3
    assert error(call(**{**inputs, "beta": 1.03 * inputs["beta"]})) > 20 * limit
    conjugate = torch.fft.rfft2(inputs["weight"], s=(inputs["shape"][2], inputs["n"])).conj()
    assert error(call(**{**inputs, "weight": conjugate})) > 0.1
    assert OPERATION.observe(case, right) == {"kept_fraction": right.density, "stored_bytes": float(right.nbytes)}
    assert OPERATION.ideal is not None
    assert 0.01 < float((OPERATION.ideal(**inputs) - want).norm() / want.norm()) < 1.0


def test_inputs_stay_away_from_the_threshold(seed: int):
    """No correct implementation can disagree on what is kept, and beta hardly moves from the case's."""
    for case, _ in OPERATION.cases("smoke"):
        inputs = OPERATION.make_inputs(dataclasses.replace(case, seed=seed), "cpu")
        assert abs(inputs["beta"] - case["beta"]) <= 0.0101 * case["beta"]
        outputs = [
            OPERATION.reference(**{**inputs, "beta": inputs["beta"] * (1 + change)}) != 0 for change in (-1e-5, 1e-5)
        ]
        assert torch.equal(*outputs)
        assert outputs[0].any()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("width", [6, 7])
def test_a_chain_needs_no_size_after_a_map(impl: str, width: int, seed: int):
    """A block of width 7 was read as one of 6 unless told; a spectrum carries its size through every format."""
    x = torch.randn(2, 3, 5, width, dtype=torch.float64)
    first, second = torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    n = width + 2
    z = spec_block(x, first, 0.3, impl=impl)
    assert z.n == n
    want = spec_block(z.to_dense(), second, 0.3, n=n, impl="dense").to_dense()
    for each in (z, z.compact(), *(z.to_format(format) for format in FORMATS)):
        assert each.n == n
        after = spec_block(each, second, 0.3, impl=impl)
        assert after.n == n
        torch.testing.assert_close(after.to_dense(), want, rtol=1e-12, atol=1e-12)
    assert threshold_spectrum(z.to_dense(), 0.1, n=n).n == n
    assert threshold_spectrum(z.to_dense(), 0.1).n is None  # nobody said it
    assert spec_block(z.to_dense(), second, 0.3, impl=impl).n is None
    with pytest.raises(ShapeError, match=f"n must be {n}, the signal length that x carries, got {n - 1}"):
        spec_block(z, second, 0.3, n=n - 1, impl=impl)


def test_a_sparse_spectrum_of_an_unknown_format_is_refused_when_it_is_made():
    with pytest.raises(RangeError, match="unknown sparse format 'foo'; known: dense, coo, csr, index, bitmap"):
        SparseSpectrum((1, 1, 2, 2), "foo", torch.zeros(1, 1, 2, 2, dtype=torch.complex64))  # type: ignore[arg-type]
