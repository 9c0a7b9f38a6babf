"""Gradients of SpecNet's block: gradcheck, the dense composition, where nothing flows, a planted wrong slope."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from effort import gradcheck, gradgradcheck
from plain_spec_block import IMPLS, plain_block, product, shapes
from thresholds import clear_of
from torch import Tensor

from spectralkernels.ops.spec_block import node, spec_block
from spectralkernels.ops.threshold_spectrum import threshold_spectrum
from spectralkernels.sparse import SparseSpectrum
from spectralkernels.spectra import half


def leaves(kind: str, rows: int, n: int) -> tuple[Callable[[Tensor], Any], Tensor]:
    """A leaf and what makes the block's input of it: an image, a spectrum, or the packed values of a map."""
    if kind == "image":
        return (lambda x: x), torch.randn(2, 2, rows - 1, n - 2, dtype=torch.float64, requires_grad=True)
    x_hat = torch.fft.rfft2(torch.randn(2, 2, rows, n, dtype=torch.float64), norm="ortho")
    if kind == "spectrum":
        return (lambda x: x), x_hat.requires_grad_()
    packed = threshold_spectrum(x_hat, clear_of(x_hat, 0.7), n=n)
    packed = packed.compact() if kind == "compact" else packed
    make = lambda values: dataclasses.replace(packed, values=values)  # noqa: E731
    return make, packed.values.detach().requires_grad_()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "spectrum", "bitmap", "compact"])
@pytest.mark.parametrize("n", [5, 6])
@pytest.mark.parametrize("activation", ["tanh", None])
def test_gradients(kind: str, n: int, activation: str | None, seed: int):
    """gradcheck in double precision away from the threshold, once and twice; weight as a kernel and as a spectrum."""
    make, leaf = leaves(kind, 4, n)
    kernel = torch.randn(2, 2, 2, 3, dtype=torch.float64)
    x = make(leaf.detach())
    x_hat = x.to_dense() if isinstance(x, SparseSpectrum) else x
    x_hat = x_hat if x_hat.is_complex() else torch.fft.rfft2(x_hat, s=(4, n), norm="ortho")
    beta = clear_of(product(x_hat, kernel, n), 1.0)
    for weight in (kernel, torch.fft.rfft2(kernel, s=(4, n))):
        weight.requires_grad_()

        def call(leaf: Tensor, weight: Tensor) -> Tensor:
            return spec_block(make(leaf), weight, beta, activation=activation, n=n, impl="bitmap").to_dense()

        # unused slots of a packed map differ, but not where its values are read
        if kind in ("image", "compact"):
            assert gradcheck(call, (leaf, weight))
            assert weight.is_complex() or n == 6 or gradgradcheck(call, (leaf, weight))
        pull = torch.randn(2, 2, 4, half(n), dtype=torch.complex128)
        grads = [
            torch.autograd.grad(
                spec_block(make(leaf), weight, beta, activation=activation, n=n, impl=impl).to_dense(),
                (leaf, weight),
                pull,
            )
            for impl in IMPLS
        ]
        torch.testing.assert_close(*grads)


def test_gradients_are_those_of_the_dense_block(seed: int):
    """30 shapes; the plain composition differentiated by autograd in double precision."""
    for batch, channels, outputs, rows, n, *kernel in shapes(seed, 30):
        x_hat = torch.fft.rfft2(torch.randn(batch, channels, rows, n, dtype=torch.float64), norm="ortho")
        x_hat.requires_grad_()
        weight = torch.randn(outputs, channels, *kernel, dtype=torch.float64, requires_grad=True)
        cut = clear_of(x_hat, 0.7)
        beta = clear_of(product(threshold_spectrum(x_hat, cut, n=n).to_dense(), weight, n), 1.0)
        pull = torch.randn(batch, outputs, rows, half(n), dtype=torch.complex128)
        z = spec_block(threshold_spectrum(x_hat, cut, n=n), weight, beta, n=n, impl="bitmap")
        got = torch.autograd.grad(z.to_dense(), (x_hat, weight), pull)
        sparse = torch.where(x_hat.detach().abs() > cut, torch.complex(x_hat.real.tanh(), x_hat.imag.tanh()), 0.0)
        want = torch.autograd.grad(plain_block(sparse, weight, beta, n), (x_hat, weight), pull)
        torch.testing.assert_close(got, want)


def test_nothing_flows_through_a_dropped_coefficient(seed: int):
    """The threshold's derivative is 1 where kept and 0 where dropped: with no kept one, weights learn nothing."""
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    for impl in IMPLS:
        z = spec_block(x, weight, float("inf"), impl=impl)
        assert z.nnz == 0
        grads = torch.autograd.grad(z.to_dense().abs().sum(), (x, weight))
        assert not any(grad.any() for grad in grads)


def test_a_wrong_slope_is_seen(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Planted fault: the transform of the kernel's gradient doubles the interior columns, as an inverse rfft2 would."""
    x, weight = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3, requires_grad=True)

    def gradient() -> Tensor:
        return torch.autograd.grad(spec_block(x, weight, 0.5).to_dense().real.sum(), weight)[0]

    right = gradient()
    monkeypatch.setattr(
        node,
        "half_spectrum_adjoint",
        lambda grad, size, n, norm: torch.fft.irfft2(grad, s=(grad.shape[-2], n), norm="forward")[
            ..., : size[0], : size[1]
        ],
    )
    assert (gradient() - right).norm() > 0.1 * right.norm()
