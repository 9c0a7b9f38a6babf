"""The Triton kernel of sparse_multiply against float64; opcheck and tracing of it and the threshold kernels together.

What is marked `interpreter` is the run under `TRITON_INTERPRET=1`.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from effort import draws, opcheck
from guarded_interpreter import canaries, in_poison, interpreter

from spectralkernels.ops.sparse_multiply import reference as multiply_reference
from spectralkernels.ops.sparse_multiply import sparse_multiply
from spectralkernels.ops.threshold_spectrum import threshold_spectrum
from spectralkernels.sparse import SparseSpectrum, bitmap

pytest.importorskip("triton")


@pytest.mark.slow
@interpreter
def test_sparse_multiply_kernel_is_right(seed: int):
    """Over the channels, and over the batch, which is the gradient of the weights."""
    from spectralkernels.sparse.multiply import multiply

    draw = random.Random(seed)
    shapes = [(1, 1, 1, 1, 1), (9, 2, 9, 3, 11), (0, 2, 3, 4, 5), (2, 3, 0, 4, 5), (2, 35, 3, 5, 7), (1, 64, 17, 1, 1)]
    shapes += [(8, 33, 16, 4, 8), (3, 5, 33, 6, 11)]
    for _ in draws(6):
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
        pull = in_poison(torch.randn(batch, outputs, rows, columns, dtype=torch.complex64))
        gradient = torch.einsum(
            "bcuv,bouv->ocuv", sparse.to_dense().to(torch.complex128), pull.conj().to(torch.complex128)
        )
        for call, other, want in (
            (partial(sparse_multiply, impl="triton"), w, multiply_reference(sparse, w)),
            (partial(multiply, over_batch=True), pull, gradient),
        ):
            with canaries():
                got = call(sparse, other)
            assert got.shape == want.shape
            torch.testing.assert_close(got.to(torch.complex128), want, atol=3e-6, rtol=1e-5)
            assert torch.equal(got, call(sparse, other)), "bitwise the same twice"


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
@pytest.mark.parametrize("over_batch", [False, True])
def test_the_two_sums_are_each_the_gradient_of_the_other(seed: int, over_batch: bool):
    """First and second gradients, against those of the dense contraction."""
    from spectralkernels.sparse.multiply import multiply

    sparse = threshold_spectrum(torch.randn(3, 5, 6, 5, dtype=torch.complex64), 0.7, impl="triton").compact()
    other = torch.randn(3 if over_batch else 4, 4 if over_batch else 5, 6, 5, dtype=torch.complex64)
    if over_batch:
        calls = (
            partial(multiply, over_batch=True),
            lambda y, dz: torch.einsum("bcuv,bouv->ocuv", y.to_dense(), dz.conj()),
        )
    else:
        calls = (partial(sparse_multiply, impl=impl) for impl in ("triton", "dense"))
    found = []
    for call in calls:
        leaves = [sparse.values.detach().requires_grad_(), other.detach().requires_grad_()]
        out = call(replace(sparse, values=leaves[0]), leaves[1])
        first = torch.autograd.grad(out.abs().square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(each.abs().square().sum() for each in first), leaves)
        found.append((out, *first, *second))
    for mine, dense in zip(*found, strict=True):
        assert (mine - dense).norm() <= 1e-5 * dense.norm()


@pytest.mark.slow
@interpreter
def test_operators_pass_opcheck(seed: int, monkeypatch: pytest.MonkeyPatch):
    from spectralkernels.ops.threshold_spectrum.kernels import threshold_backward, threshold_bitmap
    from spectralkernels.ops.threshold_spectrum.rms import map_rms
    from spectralkernels.sparse.multiply import sparse_multiply_bitmap

    # unused slots are undefined, and opcheck compares two runs: give both the same memory
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **keywords: empty(*size, **keywords).zero_())
    y = torch.randn(2, 3, 9, 5, dtype=torch.complex64, requires_grad=True)
    opcheck(threshold_bitmap.differentiable, (y, torch.tensor(0.8), None, True, 8))
    opcheck(threshold_bitmap.differentiable, (y, torch.tensor(0.8), torch.rand(6), False, 9))
    opcheck(map_rms.differentiable, (y.detach(), 8))
    sparse = threshold_spectrum(y.detach(), 0.8, impl="triton")
    grad = torch.randn_like(sparse.values).requires_grad_()
    outputs = sparse.values.clone().requires_grad_()
    opcheck(threshold_backward.differentiable, (grad, outputs, sparse.index[0], y.numel()))
    opcheck(threshold_backward.differentiable, (grad, None, sparse.index[0], y.numel()))
    w = torch.randn(4, 3, 9, 5, dtype=torch.complex64, requires_grad=True)
    pull = torch.randn(2, 4, 9, 5, dtype=torch.complex64, requires_grad=True)
    for spectrum in (sparse, sparse.compact()):
        words, offsets = spectrum.bits()
        values = spectrum.values.clone().requires_grad_()
        for other in (w, pull):
            arguments = (values, words, offsets, other, spectrum.shape, other is pull)
            opcheck(sparse_multiply_bitmap.differentiable, arguments)
        opcheck(bitmap.expand.differentiable, (values, words, offsets, y.numel()))
        opcheck(bitmap.collect.differentiable, (y.detach().flatten(), words, offsets, values.shape[0]))


@pytest.mark.slow
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
