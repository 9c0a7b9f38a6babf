"""Transforms of torch: forward mode, second derivatives, torch.func and its nests, eager and compiled.

The expected value is that of the same transform of `torch_fft`, which is made of torch's own operations.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import spectralkernels as sk

Function = Callable[..., Tensor]
N = sk.masks.fft_grid((5, 6), (3, 4))
MODES = {form: sk.masks.mode_list(sk.masks.radial(N, 0.4), N, form=form) for form in ("steps", "cells")}


def conv2d(impl: str) -> Function:
    return lambda x, w, b: sk.band_limited_conv2d(x, w, b, compression=0.4, groups=2, impl=impl)


def conv1d(impl: str) -> Function:
    return lambda x, w, b: sk.band_limited_conv1d(x[..., 0], w[..., 0], b, compression=0.4, groups=2, impl=impl)


def few_pixels(impl: str) -> Function:
    return lambda x, w, b: sk.band_limited_conv2d(x[..., :4, :4], w, b, padding=2, groups=2, impl=impl)


def masked(form: str, per_sample: bool = False) -> Callable[[str], Function]:
    """A float mask takes its values from the bias, so that they have a derivative."""

    def of(impl: str) -> Function:
        def run(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            mask = b[0].cos() + torch.linspace(0, 1, N[0] * (N[1] // 2 + 1), dtype=x.dtype).view(N[0], -1)
            if per_sample:
                mask = torch.stack([mask, mask * b[1]]).unsqueeze(1)
            return sk.masked_conv2d(x, w, mask, b, modes=MODES[form], groups=2, impl=impl)

        return run

    return of


def frozen(impl: str) -> Function:
    kernel = torch.linspace(-1, 1, 4 * 2 * 3 * 4, dtype=torch.float64).view(4, 2, 3, 4)

    def run(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        weight = kernel
        if impl == "dft_gemm":
            weight = sk.weight_spectrum(kernel, (5, 6), compression=0.4, groups=2)
        name = f"{impl}_frozen" if impl == "dft_gemm" else impl
        return sk.band_limited_conv2d(x, weight, b + w.sum() * 0, compression=0.4, groups=2, impl=name)

    return run


FORMS: dict[str, Callable[[str], Function]] = {
    "2-D": conv2d,
    "1-D": conv1d,
    "few pixels": few_pixels,
    "mask, steps": masked("steps"),
    "mask, cells": masked("cells"),
    "mask per sample": masked("steps", per_sample=True),
    "frozen": frozen,
}


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (2, 4, 5, 6), (4, 2, 3, 4), (4,)
    return tuple(torch.randn(size, dtype=dtype) for size in sizes)  # type: ignore[return-value]


def cubed(f: Function) -> Function:
    return lambda *arguments: f(*arguments).pow(3).sum()


def derivative_along(f: Function, tangents: tuple[Tensor, ...]) -> Function:
    return lambda *arguments: jvp(f, arguments, tangents)[1]


def gradient_along(f: Function, dy: Tensor) -> Function:
    return lambda *arguments: vjp(f, *arguments)[1](dy)


def agree(found: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> None:
    for a, b in zip(*(each if isinstance(each, tuple) else (each,) for each in (found, expected)), strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-12 * b.norm()


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("form", FORMS)
def test_torch_func_agrees_with_a_chain_of_ffts(form: str, seed: int):
    ours, theirs = FORMS[form]("dft_gemm"), FORMS[form]("torch_fft")
    arguments, tangents = inputs(), inputs()
    agree(ours(*arguments), theirs(*arguments))
    both = [derivative_along(f, tangents)(*arguments) for f in (ours, theirs)]
    assert both[1].norm() > 0.1
    agree(*both)
    dy = torch.randn_like(ours(*arguments))
    agree(*(gradient_along(f, dy)(*arguments) for f in (ours, theirs)))
    agree(*(grad(cubed(f), (0, 1, 2))(*arguments) for f in (ours, theirs)))
    agree(*(jacrev(f, 2)(*arguments) for f in (ours, theirs)))
    agree(*(jacfwd(f, 2)(*arguments) for f in (ours, theirs)))
    agree(*(hessian(cubed(f), 2)(*arguments) for f in (ours, theirs)))
    agree(*(jvp(grad(cubed(f), 1), arguments, tangents)[1] for f in (ours, theirs)))
    samples, kernels = torch.randn(3, *arguments[0].shape).double(), torch.randn(3, *arguments[1].shape).double()
    for axes in ((0, None, None), (None, 0, None), (0, 0, None)):
        each = (samples if axes[0] == 0 else arguments[0], kernels if axes[1] == 0 else arguments[1], arguments[2])
        one_by_one = [theirs(*(t[i] if a == 0 else t for t, a in zip(each, axes, strict=True))) for i in range(3)]
        agree(vmap(ours, axes)(*each), torch.stack(one_by_one))


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_of_every_order_and_direction_are_consistent(form: str, seed: int):
    function = FORMS[form]("dft_gemm")
    arguments = [each.requires_grad_() for each in inputs()]
    assert gradcheck(function, arguments, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_second_derivative_of_some_arguments(form: str, seed: int):
    """What is not differentiated is not saved: the second derivative needs none of it."""
    for wanted in ((0,), (1,), (2,), (0, 1), (1, 2)):
        arguments = [each.requires_grad_(i in wanted) for i, each in enumerate(inputs())]
        found = []
        for impl in ("dft_gemm", "torch_fft"):
            first = torch.autograd.grad(
                cubed(FORMS[form](impl))(*arguments), [arguments[i] for i in wanted], create_graph=True
            )
            norm = sum(each.square().sum() for each in first)
            found.append(torch.autograd.grad(norm, [arguments[i] for i in wanted], allow_unused=form == "frozen"))
        agree(*found)


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form != "mask per sample"])  # its mask is of two samples
def test_second_derivatives_of_no_sample(form: str, seed: int):
    x, w, b = (each.requires_grad_() for each in inputs())
    y = FORMS[form]("dft_gemm")(x[:0], w, b)
    first = torch.autograd.grad(cubed(lambda: y)(), (x, w, b), create_graph=True)
    second = torch.autograd.grad(sum(each.square().sum() for each in first), (x, w, b), allow_unused=True)
    for each in (*first, *(found for found in second if found is not None)):
        assert not each.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "backend"), [("2-D", "eager"), ("few pixels", "aot_eager"), ("1-D", "aot_eager"), ("mask, steps", "eager")]
)
def test_compiled_transforms_agree(form: str, backend: str, seed: int):
    """torch.compile of torch.func.jvp once gave zeros."""
    ours, theirs = FORMS[form]("dft_gemm"), FORMS[form]("torch_fft")
    arguments, tangents = inputs(), inputs()
    compiled = torch.compile(derivative_along(ours, tangents), fullgraph=True, backend=backend)
    agree(compiled(*arguments), derivative_along(theirs, tangents)(*arguments))


@pytest.mark.slow
def test_a_compiled_gradient_of_torch_func(seed: int):
    arguments = inputs()
    compiled = torch.compile(grad(cubed(conv1d("dft_gemm")), (0, 1, 2)), fullgraph=True, backend="eager")
    agree(compiled(*arguments), grad(cubed(conv1d("torch_fft")), (0, 1, 2))(*arguments))


def test_forward_mode_of_torch_autograd(seed: int):
    arguments, tangents = inputs(), inputs()
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(a, t) for a, t in zip(arguments, tangents, strict=True)]
        found = forward_ad.unpack_dual(conv2d("dft_gemm")(*duals)).tangent
    agree(found, derivative_along(conv2d("torch_fft"), tangents)(*arguments))


@pytest.mark.parametrize("impl", ["einsum", "complex_bmm", "real_bmm", "three_mult"])
def test_masked_multiply(impl: str, seed: int):
    x, w = torch.randn(2, 4, 3, 2, dtype=torch.cdouble), torch.randn(6, 2, 3, 2, dtype=torch.cdouble)
    dx, dw = torch.randn_like(x), torch.randn_like(w)
    mask = torch.tensor([[1.0, 0.5], [0.0, 2.0], [1.0, 0.0]], dtype=torch.float64)
    dmask = torch.randn_like(mask)

    def product(x: Tensor, w: Tensor, mask: Tensor) -> Tensor:
        return sk.masked_multiply(x, w, mask, groups=2, impl=impl)

    y, tangent = jvp(product, (x, w, mask), (dx, dw, dmask))
    agree(y, product(x, w, mask))
    agree(tangent, product(dx, w, mask) + product(x, dw, mask) + product(x, w, dmask))
    agree(vmap(product, (0, None, None))(torch.stack([x, dx]), w, mask)[1], product(dx, w, mask))

    def energy(x: Tensor, w: Tensor, mask: Tensor) -> Tensor:
        return product(x, w, mask).abs().square().sum()

    arguments = [each.clone().requires_grad_() for each in (x, w, mask)]
    agree(grad(energy, (0, 1, 2))(x, w, mask), torch.autograd.grad(energy(*arguments), arguments))
    holed = torch.where(mask == 0, complex("nan"), x)
    agree(grad(energy, 1)(holed, w, mask), grad(energy, 1)(x, w, mask))


def thresholded(impl: str, n: int, beta: float, relative: bool) -> Function:
    return lambda y: sk.threshold_spectrum(y, beta, relative=relative, n=n, impl=impl).to_dense()


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("impl", ["dense", "coo", "csr", "index", "bitmap"])
@pytest.mark.parametrize(("n", "relative"), [(7, False), (8, True)])
def test_a_threshold_passes_the_tangents_of_what_it_keeps(impl: str, n: int, relative: bool, seed: int):
    """And beta is no function of the map, though it be relative to its magnitude."""
    y, dy, dz = (torch.randn(2, 3, 5, n // 2 + 1, dtype=torch.cdouble) for _ in range(3))
    function = thresholded(impl, n, 0.8, relative)
    z, along = jvp(function, (y,), (dy,))
    agree(z, function(y))
    kept, slope = z != 0, 1 - torch.view_as_real(z).square()
    want = torch.view_as_complex(torch.view_as_real(dy) * slope) * kept
    assert 0 < int(kept.sum()) < kept.numel()
    agree(along, want)
    agree(vjp(function, y)[1](dz)[0], torch.view_as_complex(torch.view_as_real(dz) * slope) * kept)
    with forward_ad.dual_level():
        agree(forward_ad.unpack_dual(function(forward_ad.make_dual(y, dy))).tangent, want)
    if impl in ("dense", "bitmap"):
        agree(vmap(function)(torch.stack([y, dy]))[1], function(dy))


@pytest.mark.parametrize("impl", ["dense", "coo", "csr", "index", "bitmap"])
def test_a_sparse_product_passes_tangents(impl: str, seed: int):
    y, dy = (torch.randn(2, 3, 5, 4, dtype=torch.cdouble) for _ in range(2))
    w, dw = (torch.randn(4, 3, 5, 4, dtype=torch.cdouble) for _ in range(2))

    def function(y: Tensor, w: Tensor) -> Tensor:
        return sk.sparse_multiply(sk.threshold_spectrum(y, 1.0, activation=None, impl=impl), w, impl=impl)

    z, along = jvp(function, (y, w), (dy, dw))
    agree(z, function(y, w))
    kept = sk.threshold_spectrum(y, 1.0, activation=None).to_dense() != 0
    products = [torch.einsum("bcuv,ocuv->bouv", a * kept, b.conj()) for a, b in ((dy, w), (y, dw))]
    agree(along, products[0] + products[1])


def test_half_precision_is_differentiated_in_float32(seed: int):
    """Second derivatives of bfloat16 maps: those of the same numbers in float64, to a rounding of each."""
    lowered = [each.bfloat16() for each in inputs(torch.float32)]
    found = grad(lambda x: grad(cubed(conv2d("dft_gemm")), 1)(x, *lowered[1:]).sum())(lowered[0])
    exact = [each.double() for each in lowered]
    want = grad(lambda x: grad(cubed(conv2d("torch_fft")), 1)(x, *exact[1:]).sum())(exact[0])
    assert found.dtype == torch.bfloat16
    assert (found.double() - want).norm() / want.norm() < 0.05
