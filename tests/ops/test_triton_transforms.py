"""Forward mode and torch.func of the convolutions in Triton, against the same transform of torch.fft in float64.

Under a transform they run as chains of torch's own operations; the value without one is the kernels'.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from effort import EFFORT
from guarded_interpreter import interpreter
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jvp, vjp, vmap

import spectralkernels as sk

pytestmark = interpreter

Function = Callable[..., Tensor]
N = sk.masks.fft_grid((5, 6), (3, 4))


def dense(impl: str) -> Function:
    return lambda x, w, b: sk.band_limited_conv2d(x, w, b, compression=0.4, groups=2, impl=impl)


def series(impl: str) -> Function:
    return lambda x, w, b: sk.band_limited_conv1d(x[..., 0], w[..., 0], b, compression=0.4, groups=2, impl=impl)


def frozen(impl: str) -> Function:
    kernel = torch.linspace(-1, 1, 4 * 2 * 3 * 4).view(4, 2, 3, 4)

    def run(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        fixed = (
            kernel.to(b.dtype) if impl == "torch_fft" else sk.weight_spectrum(kernel, (5, 6), compression=0.4, groups=2)
        )
        name = impl if impl == "torch_fft" else f"{impl}_frozen"
        return sk.band_limited_conv2d(x, fixed, b + 0 * w.sum(), compression=0.4, groups=2, impl=name)

    return run


def depthwise(impl: str) -> Function:
    return lambda x, w, b: sk.band_limited_conv2d(x, w[:, :1], b, compression=0.4, groups=4, impl=impl, padding=(1, 2))


def depthwise_series(impl: str) -> Function:
    return lambda x, w, b: sk.band_limited_conv1d(x[..., 0], w[:, :1, :, 0], b, compression=0.4, groups=4, impl=impl)


def plain_depthwise(impl: str) -> Function:
    return lambda x, w, b: sk.band_limited_conv2d(x, w[:, :1], b, groups=4, impl=impl, padding=(1, 2))


def masked(form: str, fraction: float, per_sample: bool = False) -> Callable[[str], Function]:
    """A float mask takes its values from the bias, so that they have a derivative."""
    listed = sk.masks.mode_list(sk.masks.radial(N, fraction), N, form=form)  # type: ignore[arg-type]

    def of(impl: str) -> Function:
        def run(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            mask = b[0].cos() + torch.linspace(0, 1, N[0] * (N[1] // 2 + 1), dtype=x.dtype).view(N[0], -1)
            if per_sample:
                mask = torch.stack([mask, mask * b[1]]).unsqueeze(1)
            return sk.masked_conv2d(x, w, mask, b, modes=listed, groups=2, impl=impl)

        return run

    return of


FORMS: dict[str, tuple[Callable[[str], Function], str]] = {
    "maps": (dense, "dft_triton"),
    "maps, half class": (dense, "dft_triton_fp16"),
    "series": (series, "dft_triton"),
    "frozen": (frozen, "dft_triton"),
    "mask, few cells": (masked("cells", 0.4), "dft_triton"),
    "mask per sample": (masked("steps", 0.8, True), "dft_triton"),
    "depthwise": (depthwise, "fused_depthwise"),
    "depthwise series": (depthwise_series, "fused_series"),
    "implicit GEMM": (plain_depthwise, "implicit_gemm_triton"),
}


LONG = ("maps, half class", "mask, few cells")


def close(found: Tensor, want: Tensor) -> None:
    assert found.dtype == torch.float32 and want.dtype == torch.float64
    assert found.shape == want.shape
    assert (found.double() - want).norm() <= 2e-5 * (want.norm() + 1e-3)


@pytest.mark.parametrize("form", FORMS if EFFORT > 1 else [form for form in FORMS if form not in LONG])
def test_transforms_agree_with_float64(form: str, seed: int):
    made, impl = FORMS[form]
    ours, theirs = made(impl), made("torch_fft")
    sizes = (2, 4, 5, 6), (4, 2, 3, 4), (4,)
    arguments, tangents = ([torch.randn(size) for size in sizes] for _ in range(2))
    exact, exact_tangents = ([each.double() for each in some] for some in (arguments, tangents))
    error = (ours(*arguments).double() - theirs(*exact)).norm() / theirs(*exact).norm()
    assert error < 2e-3  # of the kernels, in a half class
    value, along = jvp(ours, tuple(arguments), tuple(tangents))
    want, want_along = jvp(theirs, tuple(exact), tuple(exact_tangents))
    assert want_along.norm() > 0.1
    close(value, want)
    close(along, want_along)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(a, t) for a, t in zip(arguments, tangents, strict=True)]
        close(forward_ad.unpack_dual(ours(*duals)).tangent, want_along)
    dy = torch.randn_like(value)
    for i, (a, b) in enumerate(zip(vjp(ours, *arguments)[1](dy), vjp(theirs, *exact)[1](dy.double()), strict=True)):
        assert i != 1 or form == "frozen" or b.norm() > 0
        close(a, b)
    close(jacfwd(ours, 2)(*arguments), jacfwd(theirs, 2)(*exact))
    maps = torch.randn(3, *sizes[0])
    one_by_one = torch.stack([theirs(each.double(), *exact[1:]) for each in maps])
    close(vmap(ours, (0, None, None))(maps, *arguments[1:]), one_by_one)


def test_second_derivatives_within_torch_func(seed: int):
    x, w, b = torch.randn(2, 4, 5, 6), torch.randn(4, 2, 3, 4), torch.randn(4)
    exact = [each.double() for each in (x, w, b)]

    def cubed(f: Function) -> Function:
        return lambda *arguments: f(*arguments).pow(3).sum()

    close(hessian(cubed(dense("dft_triton")), 2)(x, w, b), hessian(cubed(dense("torch_fft")), 2)(*exact))
    ours, theirs = (
        grad(lambda x, *rest, f=f: grad(cubed(f), 1)(x, *rest).square().sum())
        for f in map(dense, ("dft_triton", "torch_fft"))
    )
    close(ours(x, w, b), theirs(*exact))


def test_a_relu_has_the_slope_of_the_branch_taken(seed: int):
    from spectralkernels.convolution.dft_triton import dft_triton
    from spectralkernels.convolution.geometry import conv_band

    band = conv_band((5, 6), (3, 4), compression=0.4)
    x, w, dx = torch.randn(2, 4, 5, 6), torch.randn(4, 4, 3, 4), torch.randn(2, 4, 5, 6)
    y, along = jvp(lambda x: dft_triton(x, w, None, band, 1, activation="relu"), (x,), (dx,))
    full, slope = jvp(
        lambda x: sk.band_limited_conv2d(x, w.double(), compression=0.4, impl="torch_fft"),
        (x.double(),),
        (dx.double(),),
    )
    assert 0 < int((full > 0).sum()) < full.numel()
    close(y, full.relu())
    close(along, slope * (full > 0))


def test_cells_of_the_box_that_a_mask_does_not_list_count_as_zero(seed: int):
    """Maps above 16 x 16 have separable transforms, of the bounding box of a disc."""
    from spectralkernels.convolution.dft_triton.layout import layout_for, layout_of

    n = sk.masks.fft_grid((17, 18), (3, 3))
    modes = sk.masks.mode_list(sk.masks.radial(n, 0.7), n)
    listed = torch.zeros(n[0], n[1] // 2 + 1)
    listed[tuple(zip(*modes.indices, strict=True))] = 1.0
    assert layout_of(layout_for(modes, (17, 18))).listed == modes
    x, w, dw = torch.randn(1, 2, 17, 18), torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)
    mask = torch.rand(listed.shape) + 0.5  # not zero outside, where nothing is listed
    found, want = (
        jvp(lambda w, x=x, m=m, impl=impl: sk.masked_conv2d(x, w, m, modes=modes, impl=impl), (w,), (dw,))
        for x, w, dw, m, impl in (
            (x, w, dw, mask, "dft_triton"),
            (x.double(), w.double(), dw.double(), (mask * listed).double(), "torch_fft"),
        )
    )
    for a, b in zip(found, want, strict=True):
        close(a, b)


def test_a_threshold_and_a_sparse_product(seed: int):
    """Forward mode, a batch, and a gradient within a gradient, against the implementations in torch."""
    y, dy = (torch.randn(2, 3, 5, 4, dtype=torch.cfloat) for _ in range(2))
    w, dw = (torch.randn(4, 3, 5, 4, dtype=torch.cfloat) for _ in range(2))

    def product(impl: str, relative: bool) -> Function:
        beta = 0.83 if relative else 1.19
        return lambda y, w: sk.sparse_multiply(
            sk.threshold_spectrum(y, beta, relative=relative, n=6, impl=impl), w, impl=impl
        )

    for relative in (False, True):
        ours, theirs = product("triton", relative), product("dense", relative)
        found, want = (jvp(f, (y, w), (dy, dw)) for f in (ours, theirs))
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(y, w), found[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            vmap(ours, (0, None))(torch.stack([y, dy]), w)[1], theirs(dy, w), atol=1e-5, rtol=1e-5
        )
        squared = [grad(lambda y, f=f: f(y, w).abs().square().sum()) for f in (ours, theirs)]
        again = [grad(lambda y, f=f: f(y).abs().square().sum())(y) for f in squared]
        torch.testing.assert_close(*again, atol=1e-3, rtol=1e-4)
