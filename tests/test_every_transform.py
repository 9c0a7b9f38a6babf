"""Every implementation of every operation under torch's transforms; found by walking, as in `test_conformance`.

Forward mode gives what reverse mode says of it, u . (J v) = (J^T u) . v; samples that `vmap` takes together are those
that are taken one by one; `is_grads_batched` gives the gradients of each; and torch has a rule for all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from effort import EFFORT
from torch import Tensor
from torch.func import jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import spectralkernels as sk
from spectralkernels.declare import Case, Implementation, Operation, with_seed
from spectralkernels.dispatch import why_not
from spectralkernels.ops import load_operations
from spectralkernels.tf32 import tf32_unavailable

WAITING = {
    ("threshold_spectrum", "coo"): "has no place for maps that keep more than others, as format 'coo' does",
    ("threshold_spectrum", "csr"): "has no place for maps that keep more than others, as format 'csr' does",
    ("threshold_spectrum", "index"): "has no place for maps that keep more than others, as format 'index' does",
    (
        "threshold_spectrum",
        "bitmap_compact",
    ): "has no place for maps that keep more than others, as a compact bitmap does",
    ("energy_selection2d", "bisection"): r"\.item\(\)",
}
"""Whose answer waits for a number that each sample has for itself, and what torch says of that under vmap."""

PRECISE = ("float64", "complex128", "float32", "complex64")

SUBJECTS = [
    pytest.param(operation, subject, id=f"{operation.name}-{subject.name}")
    for operation in load_operations().values()
    for subject in operation.subjects
    if operation.gradients and subject.engine != "triton" and not subject.compiled
    if subject.available is not tf32_unavailable  # a CUDA device's
    if subject.name != "fft_conv_pytorch"  # a package of others
]


def a_call(
    operation: Operation, subject: Implementation, seed: int
) -> tuple[Callable[..., Tensor], list[Tensor], float]:
    """What takes the differentiable inputs of the first case that may be served, those inputs, and a tolerance."""
    reason: str | None = "it has no case in this profile"
    precise = [dtype for dtype in PRECISE if dtype in operation.tolerance.relative]
    for dtype, (case, block) in product(precise, operation.cases("smoke")):
        if block.implementations is not None and subject.name not in block.implementations:
            continue
        case = with_seed(replace(case, dtype=dtype), seed)
        inputs = operation.make_inputs(case, "cpu")
        inputs = subject.prepare(**inputs) if subject.prepare else inputs
        reason = why_not(subject, "cpu", inputs)
        if reason is None:
            names = [name for name in operation.gradients if isinstance(inputs.get(name), Tensor)]
            call = partial(answer, operation, subject, inputs, names)
            return call, [inputs[name] for name in names], tolerance(operation, subject, case)
    pytest.skip(str(reason))


def answer(
    operation: Operation, subject: Implementation, inputs: dict[str, Any], names: list[str], *given: Tensor
) -> Tensor:
    return as_real(operation.dense(subject.call(**{**inputs, **dict(zip(names, given, strict=True))})))


def tolerance(operation: Operation, subject: Implementation, case: Case) -> float:
    """Two ways to compute the same, each with its rounding."""
    return max(1e-12, 4 * (subject.tolerance or operation.tolerance).at(case))


def as_real(y: Tensor) -> Tensor:
    return torch.view_as_real(y.resolve_conj()) if y.is_complex() else y


def inner(a: Tensor, b: Tensor) -> float:
    return float((as_real(a) * as_real(b)).sum())


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize(("operation", "subject"), SUBJECTS)
def test_it_is_differentiated_forward_and_batched(operation: Operation, subject: Implementation, seed: int):
    if subject.available("cpu") is not None:
        pytest.skip(str(subject.available("cpu")))
    function, given, most = a_call(operation, subject, seed)
    along = [torch.randn_like(each) for each in given]
    y, dy = jvp(function, tuple(given), tuple(along))
    leaves = [each.detach().clone().requires_grad_() for each in given]
    want = function(*leaves)
    assert (y - want).norm() <= most * want.norm() and dy.norm() > 0
    pulls = torch.randn(3, *want.shape, dtype=want.dtype)
    together = torch.autograd.grad(want, leaves, pulls, is_grads_batched=True, retain_graph=True)
    for i, u in enumerate(pulls):
        gradients = torch.autograd.grad(want, leaves, u, retain_graph=True)
        difference = inner(u, dy) - sum(inner(g, v) for g, v in zip(gradients, along, strict=True))
        assert abs(difference) <= most * float(u.norm() * dy.norm())
        for batched, single in zip(together, gradients, strict=True):
            assert (batched[i] - single).norm() <= most * single.norm()
    samples = [torch.stack([each, step.to(each.dtype) + each]) for each, step in zip(given, along, strict=True)]
    if (reason := WAITING.get((operation.name, subject.name))) is not None:
        with pytest.raises(RuntimeError, match=reason):
            vmap(function)(*samples)
        return
    found, apart = vmap(function)(*samples), [function(*each) for each in zip(*samples, strict=True)]
    assert (found - torch.stack(apart)).norm() <= most * torch.stack(apart).norm()


KERNELS = [point for point in SUBJECTS if point.values[1].role == "kernel" or point.id == "spec_block-bitmap"]


@pytest.mark.slow
@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize(
    ("operation", "subject"), KERNELS if EFFORT > 1 else [p for p in KERNELS if p.id == "spec_block-bitmap"]
)
def test_a_compiled_tangent_is_no_silent_zero(operation: Operation, subject: Implementation, seed: int):
    if subject.available("cpu") is not None:
        pytest.skip(str(subject.available("cpu")))
    function, given, most = a_call(operation, subject, seed)
    along = tuple(torch.randn_like(each) for each in given)

    def tangent(*given: Tensor) -> Tensor:
        return jvp(function, given, along)[1]

    torch._dynamo.reset()
    found, want = torch.compile(tangent, backend="aot_eager")(*given), tangent(*given)
    assert want.norm() > 0 and (found - want).norm() <= most * want.norm()


def test_samples_that_keep_different_numbers_need_a_stated_room(seed: int):
    """vmap is refused in words where each map would have a size of its own, at any depth of transforms."""
    maps, weight = torch.randn(3, 2, 2, 9, 8), torch.randn(3, 2, 3, 3)

    def block(x: Tensor, capacity: float | None = None) -> Tensor:
        return sk.spec_block(x, weight, 1.0, capacity=capacity, impl="bitmap").to_dense().abs()

    torch.testing.assert_close(vmap(partial(block, capacity=0.9))(maps), torch.stack([block(x) for x in maps]))
    for refused in (block, torch.func.grad(lambda x: block(x).sum()), lambda x: jvp(block, (x,), (x,))[1]):
        with pytest.raises(sk.Unsupported, match=r"torch\.func\.vmap has no place .*; pass capacity, such as 0\.5"):
            vmap(refused)(maps)


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("relative", [False, True])
def test_a_batch_of_thresholds(relative: bool, seed: int):
    """vmap over beta, alone or with the maps, gives what each of them gives; each of them is checked."""
    maps, weight, betas = torch.randn(3, 2, 2, 9, 8), torch.randn(3, 2, 3, 3), torch.tensor([0.0, 0.7, math.inf])
    spectra = torch.fft.rfft2(maps, norm="ortho")

    def block(x: Tensor, beta: Tensor, impl: str) -> Tensor:
        return sk.spec_block(x, weight, beta, relative=relative, capacity=1.0, impl=impl).to_dense()

    def threshold(y_hat: Tensor, beta: Tensor, impl: str) -> Tensor:
        return sk.threshold_spectrum(y_hat, beta, relative=relative, n=8, impl=impl).to_dense()

    for call, given in ((block, maps), (threshold, spectra)):
        for impl in ("auto", "dense", "bitmap"):
            asked = partial(call, impl=impl)
            for dims in ((0, 0), (None, 0)):
                together = vmap(asked, dims)(given if dims[0] == 0 else given[0], betas)
                apart = [asked(given[i * (dims[0] == 0)], beta) for i, beta in enumerate(betas)]
                assert (together - torch.stack(apart)).abs().max() <= 1e-5
            for wrong in (-1.0, math.nan):
                with pytest.raises(sk.RangeError, match="each beta of a vmap must be >= 0"):
                    vmap(asked, (None, 0))(given[0], torch.tensor([0.5, wrong]))
            with pytest.raises(sk.RangeError, match="a vmap over beta needs at least one, got none"):
                vmap(asked, (None, 0))(given[0], betas[:0])


def test_a_hessian_of_batched_gradients(seed: int):
    """`vectorize=True` differentiates a batch of gradients once more; the answer is that of a chain of FFTs."""
    x, weight = torch.randn(1, 2, 5, 4, dtype=torch.float64), torch.randn(2, 2, 2, 3, dtype=torch.float64)

    def energy(weight: Tensor, impl: str) -> Tensor:
        return sk.band_limited_conv2d(x, weight, compression=0.4, impl=impl).pow(3).sum()

    found = [
        torch.autograd.functional.hessian(partial(energy, impl=impl), weight, vectorize=vectorize)
        for impl, vectorize in (("dft_gemm", True), ("torch_fft", False))
    ]
    assert (found[0] - found[1]).norm() <= 1e-12 * found[1].norm()


@pytest.mark.parametrize("impl", ["dft_gemm", "dft_native"])
def test_tangents_pass_a_backward_pass(impl: str, seed: int):
    """Forward over reverse with torch.autograd's own dual numbers: a Hessian times a vector."""
    if not next(each for each in sk.implementations("band_limited_conv2d") if each.name == impl).available:
        pytest.skip(f"{impl} does not run here")
    x, weight, v = (torch.randn(s, dtype=torch.float64) for s in ((1, 2, 5, 4), (2, 2, 2, 3), (2, 2, 2, 3)))

    def energy(weight: Tensor, impl: str) -> Tensor:
        return sk.band_limited_conv2d(x, weight, compression=0.4, impl=impl).pow(3).sum()

    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight.clone().requires_grad_(), v)
        (gradient,) = torch.autograd.grad(energy(dual, impl), dual)
        found = torch.autograd.forward_ad.unpack_dual(gradient).tangent
    want = torch.autograd.functional.hvp(partial(energy, impl="torch_fft"), weight, v)[1]
    assert (found - want).norm() <= 1e-12 * want.norm()


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_bits_of_a_relu_pass_many_gradients(seed: int):
    x = torch.randn(3, 5, requires_grad=True)
    y, pulls = sk.nn.BitReLU()(x), torch.randn(4, 3, 5)
    want = pulls * (x > 0)
    found = vmap(lambda g: torch.autograd.grad(y, x, g, retain_graph=True)[0])(pulls)
    torch.testing.assert_close(found, want, rtol=0, atol=0)
    (found,) = torch.autograd.grad(y, x, pulls, is_grads_batched=True)
    torch.testing.assert_close(found, want, rtol=0, atol=0)


@pytest.mark.parametrize("impl", ["auto", "dft_gemm", "torch_fft"])
@pytest.mark.parametrize("kept", [1.0, 0.6])
def test_a_mask_with_a_tangent(kept: float, impl: str, seed: int):
    """The answer is linear in the mask, at the cells that it drops too, and at a mask of ones."""
    x, weight = torch.randn(2, 2, 5, 4, dtype=torch.float64), torch.randn(4, 2, 2, 3, dtype=torch.float64)
    n = sk.masks.fft_grid((5, 4), (2, 3))
    mask, along = sk.masks.radial(n, kept).double(), torch.randn(n[0], n[1] // 2 + 1, dtype=torch.float64)
    want = sk.masked_conv2d(x, weight, along)

    def masked(mask: Tensor, x: Tensor = x) -> Tensor:
        return sk.masked_conv2d(x, weight, mask, impl=impl)

    def each_sample(mask: Tensor) -> Tensor:
        return vmap(lambda sample: masked(mask, sample))(x)

    def through_a_gradient(mask: Tensor) -> Tensor:
        """J^T J x, of which x is held: quadratic in the mask."""
        return torch.func.grad(lambda x: masked(mask, x).square().sum() / 2)(x)

    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(mask, along)
        found = [torch.autograd.forward_ad.unpack_dual(masked(dual)).tangent]
    found += [jvp(of, (mask,), (along,))[1] for of in (masked, each_sample)]
    for tangent in found:
        assert (tangent - want).norm() <= 1e-12 * want.norm()
    both = [through_a_gradient(mask + step * along) for step in (1.0, -1.0)]
    quadratic = (both[0] - both[1]) / 2
    assert (jvp(through_a_gradient, (mask,), (along,))[1] - quadratic).norm() <= 1e-12 * quadratic.norm()
    mask = mask.requires_grad_()
    (of_nothing,) = torch.autograd.grad(masked(mask, x[:0]).sum(), mask)
    assert torch.equal(of_nothing, torch.zeros_like(mask))


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("impl", ["auto", "dft_gemm", "dft_native", "torch_fft"])
def test_a_batch_of_masks(impl: str, seed: int):
    """Each sample of a vmap has its mask, on whatever axis, alone or with its maps."""
    if next(each for each in sk.implementations("masked_conv2d") if each.name == impl or impl == "auto").reason:
        pytest.skip(f"{impl} does not run here")
    x, weight = torch.randn(3, 2, 2, 5, 4), torch.randn(4, 2, 2, 3)
    n = sk.masks.fft_grid((5, 4), (2, 3))
    masks = torch.stack([sk.masks.radial(n, kept).float() * kept for kept in (0.2, 0.6, 1.0)])

    def masked(x: Tensor, mask: Tensor) -> Tensor:
        return sk.masked_conv2d(x, weight, mask, impl=impl)

    apart = torch.stack([masked(*each) for each in zip(x, masks, strict=True)])
    torch.testing.assert_close(vmap(masked)(x, masks), apart)
    alone = torch.stack([masked(x[0], mask) for mask in masks])
    torch.testing.assert_close(vmap(masked, (None, 1))(x[0], masks.movedim(0, 1)), alone)
    nested = vmap(vmap(masked, (None, 2)), (0, None))(x, masks.movedim(0, 2))
    torch.testing.assert_close(nested[:, 0], torch.stack([masked(sample, masks[0]) for sample in x]))
    torch.testing.assert_close(torch.func.functionalize(masked)(x[0], masks[0]), alone[0])
    torch.testing.assert_close(make_fx(lambda x: masked(x, masks[0]))(x[0])(x[1]), masked(x[1], masks[0]))


def test_an_ensemble_of_layers_under_masks(seed: int):
    """As torch.func stacks a model's copies: their masks, which are buffers, are stacked too."""
    n = sk.masks.fft_grid((5, 4), (3, 3))
    layers = [sk.nn.MaskedConv2d(2, 3, 3, padding=1, mask=sk.masks.radial(n, kept)).eval() for kept in (0.3, 0.9)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x = torch.randn(2, 2, 5, 4)
    found = vmap(lambda p, b: torch.func.functional_call(layers[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([layer(x) for layer in layers]))


@pytest.mark.parametrize("impl", ["auto", "dft_gemm", "dft_native"])
def test_batched_gradients_meet_a_convolution_in_a_backward_pass(impl: str, seed: int):
    """`is_grads_batched` calls what somebody wrote for a backward pass with a batch that torch.func does not know."""
    if next(each for each in sk.implementations("masked_conv2d") if each.name == impl or impl == "auto").reason:
        pytest.skip(f"{impl} does not run here")
    weight = torch.randn(3, 2, 3, 3)
    mask = sk.masks.radial(sk.masks.fft_grid((7, 6), (3, 3)), 0.5)
    turned = weight.transpose(0, 1).flip(-1, -2)

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return sk.band_limited_conv2d(x, weight, compression=0.5, impl=impl)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return sk.band_limited_conv2d(g, turned, compression=0.5, impl=impl) + sk.masked_conv2d(
                g, turned, mask, impl=impl
            )

    x = torch.randn(2, 2, 7, 6, requires_grad=True)
    y, pulls = Own.apply(x), torch.randn(4, 2, 3, 7, 6)
    (found,) = torch.autograd.grad(y, x, pulls, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(y, x, each, retain_graph=True)[0] for each in pulls]
    torch.testing.assert_close(found, torch.stack(apart))
