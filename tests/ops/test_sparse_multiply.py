"""Sparse spectral multiplication: every implementation and format, gradients, tracing, every bad argument."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest
import torch
import torch.nn.functional as F
from effort import draws, gradcheck

from spectralkernels.errors import DtypeError, RangeError, ShapeError, Unsupported
from spectralkernels.ops.sparse_multiply import OPERATION, sparse_multiply
from spectralkernels.ops.threshold_spectrum import threshold_spectrum
from spectralkernels.sparse import FORMATS, SparseSpectrum

IMPLS = ("dense", "coo", "csr", "index", "bitmap")


def random_problem(draw: random.Random, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    batch, channels, outputs = (draw.choice((1, 2, 3, 5)) for _ in range(3))
    rows, columns = draw.choice((1, 2, 5, 8, 11)), draw.choice((1, 2, 3, 7, 17))
    y = torch.randn(batch, channels, rows, columns, dtype=dtype)
    return y, torch.randn(outputs, channels, rows, columns, dtype=dtype)


@pytest.mark.parametrize("impl", IMPLS)
def test_it_is_the_sum_of_products(impl: str, seed: int):
    draw = random.Random(seed)
    for _ in draws(8):
        y, w = random_problem(draw, torch.complex128)
        format = draw.choice(FORMATS)
        sparse = threshold_spectrum(y, draw.choice((0.0, 0.8, 1.5, float("inf"))), impl=format)
        want = (sparse.to_dense().unsqueeze(1) * w.conj()).sum(2)
        got = sparse_multiply(sparse, w, impl=impl)
        assert got.is_contiguous() and got.shape == want.shape
        torch.testing.assert_close(got, want)


def test_without_threshold_it_is_conv2d(seed: int):
    """beta = 0 and no activation: circular correlation on a padded grid is conv2d."""
    x, kernel = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    grid = (11, 10)
    y = torch.fft.rfft2(x, s=grid, norm="ortho")
    sparse = threshold_spectrum(y, 0.0, activation=None, n=10)
    product = sparse_multiply(sparse, torch.fft.rfft2(kernel, s=grid))
    got = torch.fft.irfft2(product, s=grid, norm="ortho")[..., :7, :6]
    torch.testing.assert_close(got, F.conv2d(x, kernel))


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
def test_gradients(impl: str, seed: int):
    y = torch.randn(2, 3, 4, 3, dtype=torch.complex128)
    y = torch.where((y.abs() - 0.7).abs() < 1e-3, 2 * y, y).requires_grad_()
    w = torch.randn(2, 3, 4, 3, dtype=torch.complex128, requires_grad=True)
    for format in (impl, "bitmap"):
        assert gradcheck(
            lambda y, w, format=format: sparse_multiply(threshold_spectrum(y, 0.7, impl=format), w, impl=impl), (y, w)
        )


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch_and_any_strides(impl: str, seed: int):
    y, w = torch.randn(2, 3, 5, 4, dtype=torch.complex64), torch.randn(3, 4, 5, 4, dtype=torch.complex64)
    empty = sparse_multiply(threshold_spectrum(y[:0], 0.5), w[:, :3], impl=impl)
    assert empty.shape == (0, 3, 5, 4)
    sparse = threshold_spectrum(y, 0.5)
    for view in (w.permute(1, 0, 2, 3), w[:1, :3].expand(6, 3, 5, 4), w[:, 1:].conj()):
        want = sparse_multiply(sparse, view.contiguous().resolve_conj(), impl=impl)
        torch.testing.assert_close(sparse_multiply(sparse, view, impl=impl), want)


def test_it_traces_whole(seed: int):
    y = torch.randn(2, 3, 9, 5, dtype=torch.complex64, requires_grad=True)
    w = torch.randn(4, 3, 9, 5, dtype=torch.complex64, requires_grad=True)

    def layer(y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return sparse_multiply(threshold_spectrum(y, 0.5), w)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y, w), layer(y, w))
    grads = [torch.autograd.grad(call(y, w).abs().sum(), (y, w)) for call in (compiled, layer)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_forgotten_conjugate_fails_the_gate(impl: str, seed: int):
    """Planted fault, and the measured case passes with room to spare."""
    case = dataclasses.replace(OPERATION.cases("quick")[0][0], seed=seed)
    inputs = OPERATION.make_inputs(case, "cpu")
    want = OPERATION.reference(**inputs)
    subject = OPERATION.implementation(impl)
    assert subject.prepare is not None
    prepared = subject.prepare(**inputs)
    assert prepared["sparse"].format == impl, "the conversion is not part of what is timed"
    right = subject.call(**prepared)
    wrong = subject.call(**{**prepared, "w_hat": inputs["w_hat"].conj()})
    error = [float((got - want).norm() / want.norm()) for got in (right, wrong)]
    assert OPERATION.observe(case, right) == {"kept_fraction": inputs["sparse"].density}
    assert error[0] < OPERATION.tolerance.relative["float32"] / 3 and error[1] > 0.1


S = SparseSpectrum((2, 3, 5, 4), "dense", torch.ones(2, 3, 5, 4, dtype=torch.complex64))
W = torch.ones(6, 3, 5, 4, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("sparse", "w", "impl", "error", "message"),
    [
        (W, W, "auto", DtypeError, "sparse must be a SparseSpectrum, got Tensor; make one: threshold_spectrum("),
        (S, 3.0, "auto", DtypeError, "w_hat must be a tensor of dtype torch.complex64, got float"),
        (S, W.to(torch.complex128), "auto", DtypeError, "w_hat must have the dtype of sparse (complex64), got complex"),
        (S, W.to("meta"), "auto", DtypeError, "w_hat must be on the device of sparse (cpu), got meta"),
        (S, W[:, :2], "auto", ShapeError, "w_hat must have shape [O, 3, 5, 4] to match the spectrum, got [6, 2, 5, 4]"),
        (S, W[0], "auto", ShapeError, "w_hat must have shape [O, 3, 5, 4] to match the spectrum, got [3, 5, 4]"),
        (S, W, "best", RangeError, "sparse_multiply has no implementation 'best'; known: dense, coo, csr, index"),
        (S, W, "triton", Unsupported, "sparse_multiply with impl='triton': Triton kernels need a CUDA device"),
    ],
)
def test_bad_arguments(sparse, w, impl: str, error: type[Exception], message: str):
    with pytest.raises(error, match=re.escape(message)):
        sparse_multiply(sparse, w, impl=impl)


def test_a_spectrum_without_channels_is_refused():
    sparse = threshold_spectrum(torch.ones(5, 4, dtype=torch.complex64), 0.5)
    with pytest.raises(ShapeError, match=re.escape("sparse must have shape [B, C, U, V], got [5, 4]; threshold a")):
        sparse_multiply(sparse, W)
