"""torch.utils.flop_counter counts the operators: as much as the same function in torch's own products, where it is one.

A formula is checked against what FlopCounterMode counts of the chain, or against the arithmetic written out by hand.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import spectralkernels as sk
from spectralkernels.convolution.dft_gemm import _conv
from spectralkernels.launch import HAS_TRITON
from spectralkernels.operators import Operator, flop_formulas

ELEMENT_BY_ELEMENT = {"threshold_bitmap", "threshold_backward", "map_rms", "bitmap_pack", "bitmap_expand"} | {
    "bitmap_collect",
    "checked_beta",
    "relu_bits",
    "pass_bits",
}


def flops_of(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def gradient_flops(f: Callable[..., Tensor], arguments: list[Tensor], of: list[Tensor], dy: Tensor, many: bool) -> int:
    """Forward and backward; many: by the chain that can be differentiated again."""
    return flops_of(lambda: torch.autograd.grad(f(*arguments), of, dy, create_graph=many))


def conv2d(x: Tensor, w: Tensor) -> Tensor:
    return sk.band_limited_conv2d(x, w, compression=0.4, groups=2, impl="dft_gemm")


def conv1d(x: Tensor, w: Tensor) -> Tensor:
    return sk.band_limited_conv1d(x[..., 0], w[..., 0], compression=0.4, groups=2, impl="dft_gemm")


def few_pixels(x: Tensor, w: Tensor) -> Tensor:
    return sk.band_limited_conv2d(x[..., :4, :4], w, compression=0.2, groups=2, impl="dft_gemm")


def masked(form: str) -> Callable[[Tensor, Tensor], Tensor]:
    n = sk.masks.fft_grid((7, 6), (5, 4))
    mask = sk.masks.radial(n, 0.4)

    def run(x: Tensor, w: Tensor) -> Tensor:
        return sk.masked_conv2d(x, w, mask, modes=sk.masks.mode_list(mask, n, form=form), groups=2, impl="dft_gemm")

    return run


@pytest.mark.parametrize("function", [conv2d, conv1d, few_pixels, masked("steps"), masked("cells")])
def test_the_count_is_that_of_the_chain(function: Callable[..., Tensor], seed: int):
    x, w = torch.randn(3, 4, 7, 6), torch.randn(6, 2, 5, 4)
    # Within torch.func an operator runs as a chain of torch's own operations.
    by_chain = flops_of(lambda: torch.func.vjp(function, x, w))
    assert flops_of(lambda: function(x, w)) == by_chain > 0
    for wanted in ((0,), (1,), (0, 1)):
        arguments = [each.clone().requires_grad_(i in wanted) for i, each in enumerate((x, w))]
        leaves, dy = [arguments[i] for i in wanted], torch.randn_like(function(x, w))
        first, again = (gradient_flops(function, arguments, leaves, dy, many) for many in (False, True))
        assert first == again > by_chain


def test_an_exported_graph_and_a_raw_call_are_counted_by_the_formulas(seed: int):
    """Neither leads by an `Operator`, which would tell the counter."""

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return conv2d(x, w)

    x, w = torch.randn(3, 4, 7, 6), torch.randn(6, 2, 5, 4)
    exported = torch.export.export(Layer(), (x, w)).module()
    raw = torch.ops.spectralkernels.dft_gemm_conv_plain
    band = sk.weight_spectrum(w, (7, 6), compression=0.4, groups=2).band
    starts = [-before for before, _ in band.pad]
    expected = flops_of(lambda: conv2d(x, w))
    for call in (lambda: exported(x, w), lambda: raw(x, w, None, starts, 2, band.n, band.kept, band.out)):
        with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
            call()
        assert counter.get_total_flops() == expected > 0


def test_a_stride_costs_the_samples_that_are_wanted(seed: int):
    """A stride of 2 leaves a quarter of the inverse's columns and half its rows."""
    x, w = torch.randn(2, 4, 16, 12), torch.randn(6, 4, 3, 3)
    whole, strided = (
        flops_of(lambda s=s: sk.band_limited_conv2d(x, w, compression=0.5, stride=s, impl="dft_gemm")) for s in (1, 2)
    )
    band = sk.weight_spectrum(w, (16, 12), compression=0.5).band
    inverse = [4 * h * v * band.columns + 8 * h * band.modes for h, v in ((16, 12), (8, 6))]
    assert whole - strided == 2 * 6 * (inverse[0] - inverse[1])


def test_the_native_transforms_are_folded(seed: int):
    """Fewer than those of dft_gemm by half of the columns and three quarters of the rows, about."""
    x, w = torch.randn(2, 16, 16, 16), torch.randn(16, 16, 3, 3)
    if reason := dict((a.name, a.reason) for a in sk.implementations("band_limited_conv2d", "cpu"))["dft_native"]:
        pytest.skip(reason)
    gemm, native = (
        flops_of(lambda impl=impl: sk.band_limited_conv2d(x, w, compression=0.5, impl=impl))
        for impl in ("dft_gemm", "dft_native")
    )
    band = sk.weight_spectrum(w, (16, 16), compression=0.5).band
    k, product = band.kept[0], 8 * 2 * 16 * 16 * band.modes
    planes = {256: 2 * 16 * 2, 9: 16 * 16}  # by pixels: of x and y, of the weight
    rows = {256: 16, 9: 3}
    assert native == product + sum(p * (2 * s * k + 4 * rows[s] * k * k) for s, p in planes.items())
    assert product < native < gemm


def test_a_product_of_complex_numbers_is_eight_operations(seed: int):
    x, w = torch.randn(2, 4, 5, 3, dtype=torch.cfloat), torch.randn(6, 2, 5, 3, dtype=torch.cfloat)
    for impl in ("einsum", "real_bmm"):
        assert flops_of(lambda impl=impl: sk.masked_multiply(x, w, groups=2, impl=impl)) == 8 * 2 * 6 * 2 * 15
    maps, kernel = torch.randn(2, 4, 6, 5), torch.randn(3, 4, 3, 3)
    assert flops_of(lambda: sk.spec_block(maps, kernel, 0.1, impl="bitmap")) == 8 * 2 * 4 * 3 * (8 * 4)


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_the_kernels_of_a_gpu_are_counted_on_meta_tensors():
    from spectralkernels.convolution.dft_triton.layout import box_layout
    from spectralkernels.convolution.dft_triton.operators import convolve

    x, w = (torch.empty(*size, device="meta", requires_grad=True) for size in ((3, 4, 20, 18), (6, 4, 3, 3)))
    band = sk.weight_spectrum(torch.empty(6, 4, 3, 3), (20, 18), compression=0.5).band
    arguments = ([-1, -1], 1, box_layout(band.n, band.kept), band.out, "tf32x3", False, "class", "taps")

    def by_triton() -> Tensor:
        return convolve(x, w, None, None, *arguments)[0]

    def by_gemm() -> Tensor:
        return _conv(x, w, None, [-1, -1], 1, band.n, band.kept, band.out)[0]

    for call in (lambda f: f(), lambda f: torch.autograd.grad(f().sum(), (x, w))):
        assert flops_of(lambda call=call: call(by_triton)) == flops_of(lambda call=call: call(by_gemm)) > 0


def operators() -> Iterator[tuple[str, Operator]]:
    for found in pkgutil.walk_packages(sk.__path__, "spectralkernels."):
        module = importlib.import_module(found.name)
        for each in vars(module).values():
            if isinstance(each, Operator):
                yield each.differentiable.name().partition("::")[2], each


def test_a_formula_of_the_users_own_stays():
    own = {torch.ops.spectralkernels.dft_gemm_conv_plain: lambda *shapes, out_shape, **rest: 7}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        conv2d(torch.randn(2, 4, 8, 8), torch.randn(4, 2, 3, 3))
    assert counter.get_total_flops() == 7


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_every_operator_is_counted_or_works_element_by_element():
    found = dict(operators())
    assert len(found) > 20
    assert {name for name, each in found.items() if each._flops is None} == ELEMENT_BY_ELEMENT
