"""Gradients of gradients (`create_graph=True`) of the convolutions in Triton, against those of torch.fft in float64.

The first derivative is that of the kernels; what differentiates it again is a chain of torch's own operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from effort import EFFORT
from guarded_interpreter import interpreter
from test_triton_transforms import FORMS, Function
from torch import Tensor

import spectralkernels as sk
from spectralkernels.convolution.geometry import conv_band

pytestmark = interpreter

SIZES = (2, 4, 5, 6), (4, 2, 3, 4), (4,)
FEW_MODES = (1, 2, 3, 4), (2, 1, 2, 3), (2,)
ALL = (0, 1, 2)


def derivatives(
    function: Function, arguments: list[Tensor], pulls: list[Tensor], wanted: tuple[int, ...] = ALL, orders: int = 2
) -> list[Tensor]:
    """The derivatives of a cubic function, up to that order, in the arguments that are wanted."""
    leaves = [each.clone().requires_grad_(i in wanted) for i, each in enumerate(arguments)]
    of = [leaves[i] for i in wanted]
    found, value = [], (function(*leaves).pow(3) / 3).sum()
    for _ in range(orders):
        some = torch.autograd.grad(value, of, create_graph=True)
        found += some
        value = torch.stack([(each * pulls[i]).sum() for i, each in zip(wanted, some, strict=True)]).sum()
    return [each.detach() for each in found]


def agree(found: list[Tensor], want: list[Tensor], bound: float = 2e-5) -> None:
    assert want[-1].norm() > 0
    for mine, exact in zip(found, want, strict=True):
        assert mine.shape == exact.shape
        assert (mine.double() - exact).norm() <= bound * (exact.norm() + 1e-3)


def drawn(
    dtype: torch.dtype = torch.float32, sizes: tuple[tuple[int, ...], ...] = SIZES
) -> tuple[list[Tensor], list[Tensor]]:
    arguments, pulls = ([torch.randn(size).to(dtype) for size in sizes] for _ in range(2))
    return arguments, pulls


def exact(tensors: list[Tensor]) -> list[Tensor]:
    return [each.double() for each in tensors]


SHORT = ("maps", "series", "mask, few cells", "depthwise series", "implicit GEMM")


@pytest.mark.parametrize("form", FORMS if EFFORT > 1 else SHORT)
def test_second_derivatives_agree_with_float64(form: str, seed: int):
    made, impl = FORMS[form]
    arguments, pulls = drawn(sizes=FEW_MODES if form.startswith("maps") else SIZES)
    found = derivatives(made(impl), arguments, pulls)
    agree(found, derivatives(made("torch_fft"), exact(arguments), exact(pulls)), 1e-2 if "half" in form else 2e-5)


def series(impl: str, compression: float = 0.4) -> Function:
    return lambda x, w, b: sk.band_limited_conv1d(x[..., 0], w[..., 0], b, compression=compression, groups=2, impl=impl)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("impl", "bound"),
    [
        ("dft_triton", 2e-5),
        ("dft_triton_save_spectrum", 2e-5),
        ("dft_triton_save_bf16", 3e-2),
        ("dft_triton_fp16", 1e-2),
    ],
)
def test_of_some_arguments_and_up_to_the_third(impl: str, bound: float, seed: int):
    """What is not differentiated is not saved. Each order rounds a Z saved as a half again, by 0.4 %."""
    arguments, pulls = drawn()
    for wanted in (ALL, (0,), (1,), (0, 1)) if EFFORT > 1 else ((0,), (0, 1)):
        found = derivatives(series(impl), arguments, pulls, wanted, 3 if EFFORT > 1 or impl == "dft_triton" else 2)
        want = derivatives(series("torch_fft"), exact(arguments), exact(pulls), wanted, 3)
        agree(found, want[: len(found)], bound)


def test_of_half_precision_maps(seed: int):
    arguments, pulls = drawn(torch.bfloat16)
    found = derivatives(series("dft_triton"), arguments, pulls)
    assert {each.dtype for each in found} == {torch.bfloat16}
    agree(found, derivatives(series("torch_fft"), exact(arguments), exact(pulls)), 3e-2)


def test_a_graph_leaves_the_first_derivative_as_it_was(seed: int):
    arguments, _ = drawn()
    leaves = [each.requires_grad_() for each in arguments]
    first, again = (
        torch.autograd.grad(series("dft_triton")(*leaves).pow(3).sum(), leaves, create_graph=many)
        for many in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_batch_of_gradients_at_once(seed: int):
    """The backward operators run as chains within torch.func, too."""
    (x, w, b), _ = drawn()
    w.requires_grad_()
    y = series("dft_triton")(x, w, b)
    pulls = torch.randn(3, *y.shape)

    def pulled(dy: Tensor) -> Tensor:
        return torch.autograd.grad(y, w, dy, retain_graph=True)[0]

    torch.testing.assert_close(torch.func.vmap(pulled)(pulls), torch.stack([pulled(dy) for dy in pulls]))


@pytest.mark.parametrize(("impl", "groups"), [("dft_triton", 1), ("fused_series", 2)])
def test_of_no_sample(impl: str, groups: int, seed: int):
    arguments, pulls = ([torch.randn(0, 2, 6), torch.randn(2, 2 // groups, 3), torch.randn(2)] for _ in range(2))
    found = derivatives(lambda x, w, b: sk.band_limited_conv1d(x, w, b, groups=groups, impl=impl), arguments, pulls)
    assert [each.shape for each in found] == [each.shape for each in arguments] * 2
    assert not any(each.any() for each in found)


def test_a_frozen_weight(seed: int):
    weight = torch.randn(3, 2, 3)
    frozen = sk.weight_spectrum(weight, (6,), compression=0.4)
    arguments, pulls = ([torch.randn(2, 2, 6), torch.randn(3)] for _ in range(2))
    found, want = (
        derivatives(
            lambda x, b, w=w, impl=impl: sk.band_limited_conv1d(x, w, b, compression=0.4, impl=impl), *numbers, (0, 1)
        )
        for w, impl, numbers in (
            (frozen, "dft_triton_frozen", (arguments, pulls)),
            (weight.double(), "torch_fft", (exact(arguments), exact(pulls))),
        )
    )
    agree(found, want)


def test_a_relu_in_the_kernel_passes_where_it_passed(seed: int):
    from spectralkernels.convolution.dft_triton import dft_triton

    band = conv_band((6,), (3,), compression=0.4)
    arguments, pulls = ([torch.randn(2, 4, 6), torch.randn(4, 4, 3), torch.randn(4)] for _ in range(2))
    found = derivatives(lambda x, w, b: dft_triton(x, w, b, band, 1, activation="relu"), arguments, pulls)
    want = derivatives(
        lambda x, w, b: sk.band_limited_conv1d(x, w, b, compression=0.4, impl="torch_fft").relu(),
        exact(arguments),
        exact(pulls),
    )
    agree(found, want)


def kept_forms(maps: bool) -> Iterator[Any]:
    """Forms of maps, and of series in one stage and in two."""
    from spectralkernels.convolution.fused.precision import PRECISIONS
    from spectralkernels.convolution.fused_depthwise.launches import map_form
    from spectralkernels.convolution.fused_series.geometry import SeriesGeometry, digits, whole
    from spectralkernels.convolution.fused_series.launches import SeriesForm

    fp32 = PRECISIONS["fp32"]
    if maps:
        for n, kept in (((7, 8), (2, 3)), ((8, 8), (5, 5)), ((2, 1), (1, 1))):
            yield map_form((n[0] - 1, n[1]), (n[0] - 1, n[1]), (1, 1), (0, 0), n, kept, "fp32")
        return
    for n, kept in ((12, 7), (15, 5)):
        for found in (whole, digits):
            geometry = SeriesGeometry(9, 9, 3, -1, n, kept)
            form = found(geometry, fp32)
            assert form is not None
            yield SeriesForm(geometry, form, fp32)


@pytest.mark.parametrize("maps", [True, False])
def test_a_saved_spectrum_is_read_as_the_kernel_wrote_it(maps: bool, seed: int):
    """All modes, odd and even circles, the highest frequency of an even one and the single one of the mean included."""
    from spectralkernels.convolution.dft_triton.composed import analyse
    from spectralkernels.convolution.dft_triton.layout import box_layout, layout_of
    from spectralkernels.convolution.fused.kept import gradient_of_modes, modes_of

    for form in kept_forms(maps):
        size, n, kept = form.geometry.size, form.geometry.n, form.geometry.kept
        size, n, kept = (size, n, kept) if maps else ((size,), (n,), (kept,))
        x, weight = torch.randn(2, 3, *size), torch.randn(3, 1, *((1, 1) if maps else (3,)))
        reals = torch.full((2, 3, form.kept_reals), float("nan"))
        form.convolve(x, weight, None, torch.empty_like(x), reals).run()
        want = analyse(x.double(), layout_of(box_layout(n, kept)))
        read = modes_of(reals.requires_grad_(), form, torch.float64)
        assert (read - want).norm() <= 2e-6 * want.norm()
        pull = torch.randn_like(read)
        (gradient,) = torch.autograd.grad(read, reals, pull)
        assert (gradient_of_modes(gradient, form, torch.float64) - pull).norm() <= 1e-6 * pull.norm()


@pytest.mark.parametrize("two_dimensional", [True, False])
def test_by_way_of_a_saved_spectrum(two_dimensional: bool, seed: int):
    """Few modes are saved in the place of x."""
    arguments, pulls = ([torch.randn(2, 2, 5, 6), torch.randn(2, 1, 3, 4), torch.randn(2)] for _ in range(2))

    def convolve(impl: str) -> Function:
        if two_dimensional:
            return lambda x, w, b: sk.band_limited_conv2d(x, w, b, compression=0.8, groups=2, impl=impl)
        return lambda x, w, b: sk.band_limited_conv1d(x[:, :, 0], w[:, :, 0], b, compression=0.6, groups=2, impl=impl)

    ours, saved = convolve("fused_depthwise" if two_dimensional else "fused_series"), []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each.shape) or each, lambda each: each):
        y = ours(*(each.clone().requires_grad_() for each in arguments))
    assert len(saved) == 2 and y.shape not in saved
    agree(derivatives(ours, arguments, pulls), derivatives(convolve("torch_fft"), exact(arguments), exact(pulls)))
