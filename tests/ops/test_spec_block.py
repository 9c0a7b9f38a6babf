"""SpecNet's block: Algorithm 1 itself, gradients, what is saved, chains, tracing, every bad argument."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.errors import DtypeError, RangeError, ShapeError, Unsupported
from spectralkernels.ops.spec_block import OPERATION, node, packing, spec_block
from spectralkernels.ops.threshold_spectrum import threshold_spectrum
from spectralkernels.sparse import FORMATS, SparseSpectrum
from spectralkernels.spectra import half

IMPLS = ("dense", "bitmap")
SIZES = (1, 2, 3, 5, 6, 7, 8, 11, 13)
Shape = tuple[int, int, int, int, int, int, int]


def shapes(seed: int, count: int) -> list[Shape]:
    """(batch, channels, outputs, rows, n, kernel height, kernel width): odd, even, prime, non-square, size 1."""
    draw = random.Random(seed)
    found: list[Shape] = [(1, 1, 1, 1, 1, 1, 1), (1, 2, 1, 1, 2, 1, 2), (2, 1, 3, 2, 1, 2, 1), (2, 3, 2, 7, 8, 3, 2)]
    while len(found) < count:
        rows, n = draw.choice(SIZES), draw.choice(SIZES)
        batch, channels, outputs = (draw.randint(1, 4) for _ in range(3))
        found.append((batch, channels, outputs, rows, n, draw.randint(1, min(rows, 4)), draw.randint(1, min(n, 4))))
    return found


def product(x_hat: Tensor, weight: Tensor, n: int) -> Tensor:
    """Y of a block; `weight` is a kernel or a spectrum."""
    w_hat = weight if weight.is_complex() else torch.fft.rfft2(weight, s=(x_hat.shape[2], n))
    return (x_hat.unsqueeze(1) * w_hat.conj()).sum(2)


def clear_of(y_hat: Tensor, near: float) -> float:
    """A beta in the widest gap between magnitudes near `near`, so that rounding decides nothing."""
    sizes = y_hat.detach().abs()
    inside = sizes[(sizes > near / 1.5) & (sizes < near * 1.5)].sort().values
    edges = torch.cat([inside.new_tensor([near / 1.5]), inside, inside.new_tensor([near * 1.5])])
    widest = int(edges.diff().argmax())
    return float(edges[widest : widest + 2].mean())


def plain_block(x_hat: Tensor, weight: Tensor, beta: float, n: int, tanh: bool = True) -> Tensor:
    """The block in dense torch, differentiable; where beta is in a gap, pairs are kept or dropped together."""
    y_hat = product(x_hat, weight, n)
    z_hat = torch.complex(y_hat.real.tanh(), y_hat.imag.tanh()) if tanh else y_hat
    return torch.where(y_hat.detach().abs() > beta, z_hat, 0.0)


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
            assert torch.autograd.gradcheck(call, (leaf, weight))
            assert weight.is_complex() or n == 6 or torch.autograd.gradgradcheck(call, (leaf, weight))
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
    for capacity in (1e-9, 0.5 * kept / numel, (kept - 1) / numel):
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


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_it_traces_whole(seed: int):
    """Two blocks in one graph, with reserved room and with an exact count, whose shapes the graph learns as it runs."""
    x = torch.randn(8, 3, 8, 7)
    weights = [(torch.randn(o, c, 3, 3) / 4).requires_grad_() for c, o in ((3, 4), (4, 4))]
    for capacity in (0.6, 1.0, None):

        def net(x: Tensor, first: Tensor, second: Tensor, capacity: float | None = capacity) -> Tensor:
            z = spec_block(spec_block(x, first, 1.5, capacity=capacity), second, 1.0, n=9, capacity=capacity)
            return torch.fft.irfft2(z.to_dense(), s=(10, 9), norm="ortho")

        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        maps = [call(x, *weights) for call in (compiled, net)]
        assert torch.isfinite(maps[0]).all()
        torch.testing.assert_close(*maps)
        torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), weights) for each in maps))


def test_the_operator_passes_opcheck(seed: int):
    w = torch.randn(4, 3, 3, 3, requires_grad=True)
    image = torch.randn(8, 3, 8, 7, requires_grad=True)
    spectrum = torch.fft.rfft2(image.detach(), s=(10, 9), norm="ortho").requires_grad_()
    before = threshold_spectrum(torch.fft.rfft2(torch.randn(8, 3, 10, 9), norm="ortho"), 0.5, n=9).compact()
    packed = before.values.detach().requires_grad_()
    last = ((8, 3, 10, 5), 9, 1.5)
    nothing = (None, None)
    for values, index, slots in ((image, nothing, None), (spectrum, nothing, 1000), (packed, before.index, 1600)):
        torch.library.opcheck(node.spec_block, (values, *index, w, *last, True, slots == 1000, slots, "bitmap"))
    w_hat = torch.randn(4, 3, 10, 5, dtype=torch.complex64, requires_grad=True)
    torch.library.opcheck(node.spec_block, (packed, *before.index, w_hat, *last, False, False, None, "bitmap"))


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


X = torch.ones(2, 3, 6, 5)
X_HAT = torch.ones(2, 3, 6, 4, dtype=torch.complex64)
W = torch.ones(4, 3, 3, 3)
W_HAT = torch.ones(4, 3, 6, 4, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("x", "weight", "error", "message"),
    [
        (
            X.tolist(),
            W,
            DtypeError,
            "x must be a SparseSpectrum, a real map or its half spectrum (float32, float64, co",
        ),
        (X.half(), W, DtypeError, "complex64, complex128), got float16; convert it"),
        (X, W.tolist(), DtypeError, "weight must be a real kernel or its half spectrum (float32, float64, complex64"),
        (X, W.int(), DtypeError, "complex128), got int32; convert it"),
        (X, W.double(), DtypeError, "weight must have the precision of x (float32), got float64; convert one of them"),
        (X_HAT, W.double(), DtypeError, "weight must have the precision of x (complex64), got float64; convert"),
        (X, W.to("meta"), DtypeError, "weight must be on the device of x (cpu), got meta; move one of them"),
        (X[0], W, ShapeError, "x must have shape [batch, channel, height, width], got [3, 6, 5]; add the axes"),
        (X, W[0], ShapeError, "weight must have shape [out_channel, channel, ...] with two more axes, a kernel's or a"),
        (X[:, :, :0], W, ShapeError, "planes must not be empty, got x [2, 3, 0, 5] and weight [4, 3, 3, 3]"),
        (X, W[..., :0], ShapeError, "planes must not be empty, got x [2, 3, 6, 5] and weight [4, 3, 3, 0]"),
        (X, W[:, :2], ShapeError, "weight must have the 3 channels of x in its second axis, got shape [4, 2, 3, 3]; a"),
        (
            X_HAT,
            W_HAT[..., :3],
            ShapeError,
            "weight must be a spectrum of planes [6, 4] to match x, got shape [4, 3, 6",
        ),
        (
            X,
            W_HAT[:, :, :5],
            ShapeError,
            "weight must be a spectrum on a grid of at least the map's [6, 5], got [5, 6]",
        ),
        (
            X_HAT,
            torch.ones(4, 3, 7, 3),
            ShapeError,
            "weight must be no larger than the grid [6, 6] of x, got shape [4,",
        ),
    ],
)
def test_bad_arguments(x: Any, weight: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=re.escape(message)):
        spec_block(x, weight, 1.0)


@pytest.mark.parametrize(
    ("x", "keywords", "error", "message"),
    [
        (X, {"n": 8}, ShapeError, "n must be width + kernel_width - 1 = 7 for a real map, got 8; leave it out"),
        (
            X_HAT,
            {"n": 8},
            ShapeError,
            "n must be a signal length with the 4 half-spectrum columns of x (6 or 7), got 8",
        ),
        (X, {"beta": -1.0}, RangeError, "beta must be a number >= 0, got -1.0; 0 keeps every coefficient"),
        (X, {"beta": float("nan")}, RangeError, "beta must be a number >= 0, got nan"),
        (X, {"beta": "1"}, RangeError, "beta must be a number >= 0, got '1'"),
        (X, {"activation": "relu"}, RangeError, "unknown activation 'relu'; known: tanh, none"),
        (
            X,
            {"capacity": 0.0},
            RangeError,
            "capacity must be the fraction of coefficients to reserve room for, in (0, 1",
        ),
        (X, {"capacity": 50}, RangeError, "in (0, 1], got 50; None reserves what is kept"),
        (X, {"capacity": True}, RangeError, "in (0, 1], got True"),
        (X, {"impl": "fast"}, RangeError, "spec_block has no implementation 'fast'; known: dense, bitmap, triton"),
        (X, {"impl": "triton"}, Unsupported, "spec_block with impl='triton': Triton kernels need a CUDA device"),
    ],
)
def test_bad_keywords(x: Tensor, keywords: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=re.escape(message)):
        spec_block(x, W, **{"beta": 1.0, **keywords})


def test_what_cannot_be_served_says_why():
    triton, bitmap = (OPERATION.implementation(name).supports for name in ("triton", "bitmap"))
    assert triton(weight=W.double(), shape=(2, 3, 6, 4)) == (
        "the kernels take float32 or complex64, got torch.float64; use impl='bitmap'"
    )
    reason = triton(weight=W, shape=(1, 1, 2**15, 2**15))
    assert reason is not None and "fewer than 2^30 coefficients, got [32768, 32768]; use impl='bitmap'" in reason
    for supports in (triton, bitmap):
        reason = supports(weight=W, shape=(2**20, 3, 2**5, 2**5))
        assert reason == "packed maps take at most 2147482624 coefficients, got 4294967296; split the batch"
