"""SpecNet's block on its Triton kernels, proven twice without a GPU: under the interpreter and as machine code.

What is marked `interpreter` is the run under `TRITON_INTERPRET=1`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from effort import draws, one_of, opcheck
from guarded_interpreter import canaries, compiler, interpreter
from thresholds import clear_of
from torch import Tensor

from spectralkernels.ops.spec_block import node, packing, spec_block
from spectralkernels.ops.threshold_spectrum import threshold_spectrum
from spectralkernels.sparse import SparseSpectrum, bitmap
from spectralkernels.spectra import half


def packed_blocks(draw: random.Random, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values of full blocks with NaN in unused slots, their words, and the kept values alone, in order."""
    density = torch.tensor([draw.choice((0.0, 0.01, 0.3, 0.9, 1.0)) for _ in range(blocks)])
    bits = torch.rand(blocks, bitmap.BLOCK) < density.unsqueeze(1)
    counts = bits.sum(1, keepdim=True)
    values = torch.randn(blocks, bitmap.BLOCK, dtype=torch.complex64)
    used = torch.arange(bitmap.BLOCK) < counts
    poisoned = torch.where(used, values, complex(float("nan"), float("nan")))
    return poisoned.reshape(-1), bitmap.pack_bits(bits), values[used]


@pytest.mark.slow
@interpreter
def test_blocks_move_together(seed: int):
    """Exact room, some spare room, none spare, too little: against a mask in torch, between canaries."""
    draw = random.Random(seed)
    for blocks in (1, 2, 3, 31, 32, 33, 40):
        values, words, want = packed_blocks(draw, blocks)
        kept = want.shape[0]
        counts = bitmap.unpack_bits(words).sum(1)
        starts = (counts.cumsum(0) - counts).to(torch.int32)
        most = (blocks - 1) * bitmap.BLOCK - 1
        for slots in (None, *(slots for slots in (kept, kept + 1, kept + 700) if slots <= most)):
            with canaries():
                packed, found = packing.trimmed(values, words, slots)
            assert packed.shape[0] == (kept if slots is None else packing.length(slots, blocks))
            assert torch.equal(packed[:kept], want) and torch.equal(found, starts)
        for slots in {slots for slots in (0, kept // 2, kept - 1) if 0 <= slots < kept and slots <= most}:
            with canaries():
                packed, found = packing.trimmed(values, words, slots)
            assert packed.shape[0] == packing.length(slots, blocks) and packed.isnan().all()
            assert torch.equal(found, starts.clamp(max=slots))
        values, words, _ = packed_blocks(draw, blocks)
        for slots in (most + 1, blocks * bitmap.BLOCK):
            everything, found = packing.trimmed(values, words, slots)
            assert everything is values and found.tolist() == [bitmap.BLOCK * block for block in range(blocks)]


def problems(seed: int, count: int) -> Iterator[tuple[Any, Tensor, int]]:
    """(input, kernel, n) in double precision: images, spectra, packed maps; odd, even, prime, non-square, size 1."""
    draw = random.Random(seed)
    sides = (1, 2, 3, 5, 8, 11, 16, 23)
    for number in range(count):
        batch, channels, outputs = draw.choice((1, 2, 3, 9)), draw.choice((1, 2, 5)), draw.choice((1, 3, 9))
        rows, n = (1, 1) if number == 0 else (draw.choice(sides), draw.choice(sides))
        kernel = draw.randint(1, min(rows, 4)), draw.randint(1, min(n, 4))
        weight = torch.randn(outputs, channels, *kernel).double() / channels**0.5
        if number % 3 == 0:
            yield torch.randn(batch, channels, rows - kernel[0] + 1, n - kernel[1] + 1).double(), weight, n
            continue
        x_hat = torch.fft.rfft2(torch.randn(batch, channels, rows, n).double(), norm="ortho").to(torch.complex64)
        if number % 3 == 1:
            yield x_hat.to(torch.complex128), weight, n
            continue
        sparse = threshold_spectrum(x_hat, 0.6, n=n, impl="bitmap")
        yield draw.choice((sparse, sparse.compact())), weight, n


def single(x: Any) -> Any:
    if isinstance(x, SparseSpectrum):
        return SparseSpectrum(x.shape, x.format, x.values.detach().clone().requires_grad_(), x.index)
    return x.to(torch.complex64 if x.is_complex() else torch.float32).requires_grad_()


def double(x: Any) -> Any:
    if isinstance(x, SparseSpectrum):
        return SparseSpectrum(x.shape, x.format, x.values.detach().to(torch.complex128).requires_grad_(), x.index)
    return x.detach().clone().requires_grad_()


def leaf(x: Any) -> Tensor:
    return x.values if isinstance(x, SparseSpectrum) else x


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).norm() <= 2e-5 * want.norm() + 1e-30


@pytest.mark.slow
@interpreter
def test_forward_and_backward_are_right(seed: int):
    """Against the dense composition, differentiated by autograd in double precision; bitwise the same twice."""
    for number, (x, weight, n) in enumerate(problems(seed, len(draws(12)))):
        exact, weight = double(x), weight.requires_grad_()
        y_hat = spec_block(exact, weight, 0.0, activation=None, n=n, impl="dense").values
        beta, tanh = clear_of(y_hat, 1.0), (None, "tanh")[number % 4 > 0]
        want = spec_block(exact, weight, beta, activation=tanh, n=n, impl="dense").to_dense()
        pull = torch.randn(want.shape, dtype=torch.complex64)
        want_grads = torch.autograd.grad(want, (leaf(exact), weight), pull.to(torch.complex128))
        mine = single(x)
        own = weight.detach().float().requires_grad_()
        if number % 2:
            own = torch.fft.rfft2(own.detach(), s=(want.shape[2], n)).requires_grad_()
        capacity = (None, 1.0)[number % 5 == 0]
        with canaries():
            z = spec_block(mine, own, beta, activation=tanh, n=n, capacity=capacity, impl="triton")
            again = spec_block(mine, own, beta, activation=tanh, n=n, capacity=capacity, impl="triton")
            assert torch.equal(z.to_dense(), again.to_dense())
            grads = torch.autograd.grad(z.to_dense(), (leaf(mine), own), pull)
        assert torch.equal(z.kept(), want != 0)
        close(z.to_dense(), want)
        used = slice(None) if not isinstance(x, SparseSpectrum) else want_grads[0] != 0
        close(grads[0][used], want_grads[0][used])
        if own.is_complex():
            spectrum = torch.fft.rfft2(weight.detach(), s=(want.shape[2], n)).requires_grad_()
            dense = spec_block(double(x), spectrum, beta, activation=tanh, n=n, impl="dense").to_dense()
            close(grads[1], torch.autograd.grad(dense, spectrum, pull.to(torch.complex128))[0])
        else:
            close(grads[1], want_grads[1])


@pytest.mark.slow
@interpreter
def test_a_chain_learns_what_the_dense_one_learns(seed: int):
    """Three blocks from an image and back; the first kernel's gradient in single precision against double."""
    image, n = torch.randn(2, 3, 8, 9).double(), 11
    kernels = [torch.randn(o, c, 3, 3).double() / c**0.5 for c, o in ((3, 4), (4, 5), (5, 2))]
    x_hat, betas = torch.fft.rfft2(image, s=(10, n), norm="ortho"), []
    for kernel in kernels:
        y_hat = spec_block(x_hat, kernel, 0.0, activation=None, n=n, impl="dense").values
        betas.append(clear_of(y_hat, 1.0))
        x_hat = spec_block(x_hat, kernel, betas[-1], n=n, impl="dense").values
    found = []
    for impl, dtype, capacity in (("dense", torch.float64, None), ("triton", torch.float32, 0.9)):
        weights = [kernel.to(dtype).requires_grad_() for kernel in kernels]
        z: Any = spec_block(image.to(dtype), weights[0], betas[0], impl=impl)
        for weight, beta in zip(weights[1:], betas[1:], strict=True):
            z = spec_block(z, weight, beta, n=n, capacity=capacity, impl=impl)
        maps = torch.fft.irfft2(z.to_dense(), s=(10, n), norm="ortho")
        found.append(torch.autograd.grad(maps.square().sum(), weights))
    for grad, exact in zip(found[1], found[0], strict=True):
        close(grad, exact)


@interpreter
def test_relative_beta_and_the_real_map(seed: int):
    x, weight = torch.randn(3, 2, 8, 7), torch.randn(4, 2, 3, 3)
    for width, n in ((7, 9), (6, 8)):
        z, same = (spec_block(x[..., :width], weight, 0.9, relative=True, impl=impl) for impl in ("triton", "bitmap"))
        torch.testing.assert_close(z.to_dense(), same.to_dense(), atol=1e-5, rtol=1e-4)
        maps = torch.fft.irfft2(z.to_dense(), s=(10, n), norm="ortho")
        torch.testing.assert_close(torch.fft.rfft2(maps, norm="ortho"), z.to_dense(), atol=2e-6, rtol=1e-5)
        assert z.shape[-1] == half(n)


@pytest.mark.slow
@interpreter
def test_nothing_kept(seed: int):
    """No value is stored; the next block reads none, and nothing is learnt."""
    x, weight = torch.randn(2, 3, 20, 21, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    z = spec_block(x, weight, float("inf"), impl="triton")
    assert z.values.shape == (0,) and z.nnz == 0
    after = spec_block(z, torch.randn(2, 4, 3, 3), 0.0, n=23, capacity=0.1, impl="triton").to_dense()
    assert after.shape == (2, 2, 22, 12) and not after.any()
    assert not any(grad.any() for grad in torch.autograd.grad(after.abs().sum(), (x, weight)))


@interpreter
@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0)], ids=["batch", "channels", "outputs"])
def test_empty_axes(shape: tuple[int, int, int]):
    batch, channels, outputs = shape
    x = torch.zeros(batch, channels, 5, 6, requires_grad=True)
    weight = torch.zeros(outputs, channels, 3, 3, requires_grad=True)
    z = spec_block(x, weight, 0.5, impl="triton")
    again = spec_block(z, torch.zeros(2, outputs, 2, 2, requires_grad=True), 0.5, capacity=0.5, impl="triton")
    again.to_dense().abs().sum().backward()
    assert x.grad is not None and weight.grad is not None


@pytest.mark.slow
@interpreter
def test_the_operator_passes_opcheck_and_traces(seed: int, monkeypatch: pytest.MonkeyPatch):
    # unused slots are undefined, and opcheck compares two runs: give both the same memory
    empty = torch.empty
    w = torch.randn(4, 3, 3, 3, requires_grad=True)
    image = torch.randn(8, 3, 8, 7, requires_grad=True)
    before = threshold_spectrum(torch.fft.rfft2(torch.randn(8, 3, 10, 9), norm="ortho"), 0.5, n=9).compact()
    packed = before.values.detach().requires_grad_()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *size, **keywords: empty(*size, **keywords).zero_())
        for values, index, slots in ((image, (None, None), 1000), (packed, before.index, None)):
            arguments = (values, *index, w, (8, 3, 10, 5), 9, torch.tensor(1.5), True, slots == 1000, slots, "triton")
            opcheck(node.spec_block.differentiable, arguments, symbols=True)
    second = torch.randn(2, 4, 3, 3, requires_grad=True)

    def net(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        z = spec_block(x, first / 4, 1.5, capacity=0.6, impl="triton")
        return spec_block(z, second, 0.5, n=9, capacity=1.0, impl="triton").to_dense()

    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    maps = [call(image, w, second) for call in (compiled, net)]
    assert torch.isfinite(torch.view_as_real(maps[0])).all()
    torch.testing.assert_close(*maps)
    torch.testing.assert_close(*(torch.autograd.grad(each.abs().sum(), (image, w, second)) for each in maps))


@interpreter
def test_the_backward_pass_expands_the_gradient_of_the_last_map_alone(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Weights learn from packed values: the first block's from the gradient's, the second's from those of its input."""
    expanded: list[tuple[int, ...]] = []
    to_dense = SparseSpectrum.to_dense
    monkeypatch.setattr(SparseSpectrum, "to_dense", lambda self: expanded.append(self.shape) or to_dense(self))
    kernels = [torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(2, 4, 3, 3, requires_grad=True)]
    x = spec_block(torch.randn(2, 3, 8, 8), kernels[0], 1.0, impl="triton")
    z = spec_block(x, kernels[1], 1.0, impl="triton")
    grads = torch.autograd.grad(z.values.abs().sum(), kernels)
    assert expanded == [z.shape]
    assert all(grad.any() for grad in grads)


@interpreter
def test_only_packed_maps_and_the_weight_are_saved(seed: int):
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach())
        return tensor

    first = spec_block(torch.randn(2, 3, 14, 14), torch.randn(4, 3, 3, 3, requires_grad=True) / 5, 1.0, impl="triton")
    weight = torch.randn(5, 4, 3, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        z = spec_block(first, weight, 1.0, impl="triton")
    sizes = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    assert sum(sizes.values()) == first.nbytes + z.nbytes + weight.nbytes
    assert set(sizes) == {t.data_ptr() for t in (first.values, *first.index, weight, z.values, *z.index)}


@compiler
@pytest.mark.parametrize("capability", one_of((80, 90, 100)), ids="sm_{}".format)
def test_machine_code(capability: int):
    """No spills; counts read words 128 bits wide, moves read 128 and write the 64 that a value is aligned to."""
    from spectralkernels.aot import compile_kernel, noted_launches
    from spectralkernels.ops.spec_block import kernels

    with noted_launches() as noted:
        for launch in kernels.FINGERPRINTS:
            launch.call()
    assert {launch.kernel.__name__ for launch in noted} == {"block_counts_kernel", "move_kernel"}
    for launch in noted:
        code = compile_kernel(launch.kernel, launch.arguments, capability, **launch.options)
        assert code.stack == code.local == code.count("LDL") == code.count("STL") == 0, code.name
        assert code.shared <= code.shared_limit
        assert code.registers <= 40, (code.name, code.registers)
        if code.name == "move_kernel":
            assert code.count("LDG", "128") == 4, "2048 floats, 128 threads"
            assert code.count("STG", "64") == 8
        else:
            assert code.count("LDG", "128") == 2, "1024 words, 128 threads"
