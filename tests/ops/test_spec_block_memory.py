"""What SpecNet's block saves for its gradients, alone and in a chain, and the room it reserves for what it keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain_spec_block import plain_block, product
from thresholds import clear_of
from torch import Tensor

from spectralkernels.errors import Unsupported
from spectralkernels.ops.spec_block import packing, spec_block
from spectralkernels.sparse import SparseSpectrum


def saved_storages(call: Callable[[], Any]) -> tuple[dict[int, int], Any]:
    """Bytes of every storage that autograd saves during a call, by address; the call's result keeps them alive."""
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = call()
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}, result


def addresses(*tensors: Tensor) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_packed_maps_and_the_weight_are_saved(dtype: torch.dtype, seed: int):
    """Byte for byte, and against what autograd saves of the dense composition."""
    image = torch.randn(4, 3, 30, 30, dtype=dtype)
    first = (torch.randn(8, 3, 3, 3, dtype=dtype) / 5).requires_grad_()
    second = (torch.randn(8, 8, 3, 3, dtype=dtype) / 6).requires_grad_()
    saved, x = saved_storages(lambda: spec_block(image, first, 1.0))
    assert set(saved) == addresses(image, x.values, *x.index), "no input gradient asks for the weight"
    saved, z = saved_storages(lambda: spec_block(x, second, 1.0))
    assert set(saved) == addresses(x.values, *x.index, second, z.values, *z.index)
    assert sum(saved.values()) == x.nbytes + z.nbytes + second.nbytes
    assert x.nbytes == x.allocated_nbytes and z.nbytes == z.allocated_nbytes
    _, dense_x = saved_storages(lambda: spec_block(image, first, 1.0, impl="dense"))
    dense_saved, _ = saved_storages(lambda: spec_block(dense_x, second, 1.0, impl="dense"))
    assert sum(saved.values()) < 0.5 * sum(dense_saved.values())


def test_what_needs_no_gradient_is_not_saved(seed: int):
    x = spec_block(torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True), 1.0)
    weight = torch.randn(2, 4, 3, 3)
    saved, z = saved_storages(lambda: spec_block(x, weight, 1.0))
    assert set(saved) == addresses(*x.index, weight, z.values, *z.index)
    x = dataclasses.replace(x, values=x.values.detach())
    saved, z = saved_storages(lambda: spec_block(x, weight.requires_grad_(), 1.0, activation=None))
    assert set(saved) == addresses(x.values, *x.index, *z.index)
    saved, _ = saved_storages(lambda: spec_block(x, weight.detach(), 1.0))
    assert not saved


@pytest.mark.parametrize("width", [11, 12])
def test_three_blocks_from_image_to_image(width: int, seed: int):
    """The gradient of the first kernel, through three packed maps and an inverse transform, in both precisions."""
    image = torch.randn(2, 3, 9, width, dtype=torch.float64)
    kernels = [torch.randn(o, c, 3, 3, dtype=torch.float64) / c**0.5 for c, o in ((3, 6), (6, 5), (5, 3))]
    rows, n = 11, width + 2
    betas, x_hat = [], torch.fft.rfft2(image, s=(rows, n), norm="ortho")
    for kernel in kernels:
        betas.append(clear_of(product(x_hat, kernel, n), 1.0))
        x_hat = plain_block(x_hat, kernel, betas[-1], n)
    target = torch.randn(2, 3, rows, n, dtype=torch.float64)

    def loss(spectrum: Tensor) -> Tensor:
        return (torch.fft.irfft2(spectrum, s=(rows, n), norm="ortho") - target.to(spectrum.real.dtype)).square().sum()

    def chain(image: Tensor, kernels: list[Tensor], **keywords: Any) -> SparseSpectrum:
        z = spec_block(image, kernels[0], betas[0], **keywords)
        for kernel, beta in zip(kernels[1:], betas[1:], strict=True):
            z = spec_block(z, kernel, beta, n=n, **keywords)
        return z

    reals = [image, *kernels]
    for leaf in reals:
        leaf.requires_grad_()
    x_hat = torch.fft.rfft2(image, s=(rows, n), norm="ortho")
    for kernel, beta in zip(kernels, betas, strict=True):
        x_hat = plain_block(x_hat, kernel, beta, n)
    want = torch.autograd.grad(loss(x_hat), reals)
    assert all(grad.abs().max() > 1e-3 for grad in want)
    for keywords in ({"impl": "bitmap"}, {"impl": "dense"}, {"capacity": 1.0}):
        got = torch.autograd.grad(loss(chain(image, kernels, **keywords).to_dense()), reals)
        torch.testing.assert_close(got, want)
    single = [leaf.detach().float().requires_grad_() for leaf in reals]
    saved, z = saved_storages(lambda: chain(single[0], single[1:]))
    got = torch.autograd.grad(loss(z.to_dense()), single)
    for grad, exact in zip(got, want, strict=True):
        assert (grad - exact).norm() < 2e-5 * exact.norm()
    maps = [chain_map.nbytes for chain_map in prefixes(single, betas, n)]
    assert sum(saved.values()) == sum(maps) + sum(leaf.nbytes for leaf in single)


def prefixes(reals: list[Tensor], betas: list[float], n: int) -> list[SparseSpectrum]:
    """The maps between the blocks of a chain."""
    found = [spec_block(reals[0], reals[1], betas[0])]
    for kernel, beta in zip(reals[2:], betas[1:], strict=True):
        found.append(spec_block(found[-1], kernel, beta, n=n))
    return found


def test_reserved_room(seed: int):
    """Room enough gives the same map and gradients without a wait; too little gives NaN everywhere; all is all."""
    x = torch.randn(3, 4, 31, 32, requires_grad=True)
    weight = (torch.randn(5, 4, 2, 3) / 4).requires_grad_()
    exact = spec_block(x, weight, 1.0)
    numel, kept = exact.numel, exact.nnz
    assert exact.values.shape == (kept,)
    pull = torch.randn(exact.shape, dtype=torch.complex64)
    want = torch.autograd.grad(exact.to_dense(), (x, weight), pull)
    for capacity in (kept / numel, 0.5 * (1 + kept / numel), 1.0):
        z = spec_block(x, weight, 1.0, capacity=capacity)
        assert torch.equal(z.to_dense(), exact.to_dense()) and z.nnz == kept
        assert z.values.shape[0] <= max(capacity * numel + 1025, 1024 * len(z.index[1]))
        torch.testing.assert_close(torch.autograd.grad(z.to_dense(), (x, weight), pull), want)
    for capacity in (1e-9, 0.5 * kept / numel, (kept - 1.5) / numel):  # rounded up: one too few
        z = spec_block(x, weight, 1.0, capacity=capacity)
        assert torch.equal(z.kept(), exact.kept())
        dense = z.to_dense()
        assert dense[z.kept()].isnan().all() and not dense[~z.kept()].any()
        loud = spec_block(z, torch.randn(2, 5, 3, 3), 1.0).to_dense()
        assert loud.isnan().any()


def test_a_cuda_graph_is_told_what_it_cannot_hold(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "_captured", lambda tensor: True)
    x, weight = torch.ones(2, 3, 30, 30), torch.ones(4, 3, 3, 3)
    assert spec_block(x, weight, 1.0, capacity=0.2).shape == (2, 4, 32, 17)
    with pytest.raises(Unsupported, match="cannot wait for the number of kept coefficients; pass capacity, such as 0"):
        spec_block(x, weight, 1.0)
