"""Masked convolution in Triton, under the interpreter, against float64: every kind of mask, forward and backward."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from effort import draws, opcheck
from guarded_interpreter import check_gradients, guarded, interpreter, relative_error
from torch import Tensor

from spectralkernels import masks
from spectralkernels.convolution.dft_triton.layout import Layout, cells_of, layout_for, layout_of
from spectralkernels.convolution.dft_triton.precision import PRECISIONS
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.launch import Launch, triton_dtype
from spectralkernels.modes import ModeList, every_mode
from spectralkernels.ops.masked_conv2d import OPERATION
from spectralkernels.ops.masked_conv2d.baselines import reference
from spectralkernels.ops.masked_conv2d.dft_triton import dft_triton
from spectralkernels.ops.masked_conv2d.profiles import KINDS, make_mask
from spectralkernels.spectra import Band, half
from spectralkernels.tuning import pinned

__all__ = ["guarded"]

# --- declaration and layout -----------------------------------------------------------------------------------------


def test_implementations_carry_their_class() -> None:
    names = [each.name for each in OPERATION.implementations]
    assert {"dft_triton", "dft_triton_tf32", "dft_triton_bf16", "dft_triton_fp32"} < set(names)
    x, weight, mask = torch.zeros(1, 2, 5, 5), torch.zeros(2, 2, 3, 3), torch.ones(6, 4)
    found = OPERATION.implementation("dft_triton")
    band = conv_band((5, 5), (3, 3), compression=0.0)
    reason = found.supports(x=x.double(), weight=weight.double(), mask=mask, band=band, groups=1)
    assert reason == "the Triton kernels take float32, float16 and bfloat16 maps, got float64"


def test_a_layout_holds_the_listed_modes() -> None:
    """Small maps and scattered cells have one matrix over the cells, the others a box; a full list is its box."""
    disc = masks.mode_list(masks.radial((33, 33), 0.5), (33, 33))
    few = ModeList((33, 33), cells=((0, 0), (5, 3), (28, 0), (2, 16)))
    assert layout_for(every_mode((9, 8)), (8, 7)) == "separable box 9,8 5,5"
    assert layout_for(disc, (32, 32)).startswith("separable steps 33,33 ")
    assert layout_for(disc, (16, 16)).startswith("matrix cells 33,33 ")
    assert layout_for(few, (32, 32)) == "matrix cells 33,33 0,0,5,3,28,0,2,16"
    for modes, size in ((disc, (32, 32)), (disc, (16, 16)), (few, (32, 32)), (every_mode((33, 33)), (32, 32))):
        layout = layout_of(layout_for(modes, size))
        cells = cells_of(layout, torch.device("cpu"))
        assert len(cells) == layout.modes_u * layout.modes_v and cells.dtype == torch.int32
        assert sorted(cells[cells >= 0].tolist()) == sorted(u * 17 + v for u, v in modes.indices)
    assert Layout((9, 9), (3, 3)).mean_first and not layout_of("matrix cells 9,9 1,1,0,2").mean_first


# --- the kernels ----------------------------------------------------------------------------------------------------


def problem(
    size: tuple[int, int], kernel: tuple[int, int], sizes: tuple[int, int, int, int]
) -> tuple[Band, tuple[Tensor, Tensor, Tensor], tuple[int, int]]:
    """(band, (x, weight, bias) that require gradients, grid); sizes = (batch, channels, outputs, groups)."""
    batch, channels, outputs, groups = sizes
    band = conv_band(size, kernel, compression=0.0)
    tensors = torch.randn(batch, channels, *size), torch.randn(outputs, channels // groups, *kernel)
    inputs = (*tensors, torch.randn(outputs))
    return band, tuple(each.requires_grad_() for each in inputs), (band.n[0], band.n[1])  # type: ignore[return-value]


def check(
    inputs: tuple[Tensor, Tensor, Tensor],
    mask: Tensor,
    band: Band,
    modes: ModeList,
    groups: int,
    name: str = "tf32x3",
    counted: Tensor | None = None,
) -> None:
    """y and every gradient against float64; `counted` is the mask that the reference takes, by default the mask."""
    x, weight, bias = inputs
    y = dft_triton(x, weight, mask, bias, band, modes, groups, precision=name)
    exact = reference(x, weight, mask if counted is None else counted, bias, band, modes, groups)
    assert y.is_contiguous() and y.dtype == x.dtype
    cotangent = torch.randn_like(y)
    wanted = (*inputs, mask) if mask.requires_grad else inputs
    found = (y, *torch.autograd.grad(y, wanted, cotangent))
    true = (exact, *torch.autograd.grad(exact, wanted, cotangent.double()))
    # A map of one pixel sums every tap, folded on its circle, where the mask lets all frequencies pass.
    share = len(modes) / (band.n[0] * half(band.n[1]))
    terms = (share * weight[0].numel(), share * weight[:, 0].numel() / groups)
    where = f"{name} {band} {len(modes)} modes, groups={groups}"
    # A gradient meets eight roundings where the answer meets five, and with one mode, or four, they do not average.
    check_gradients(found, true, 2 * PRECISIONS[name].error, where, terms)


@interpreter
class TestInterpreted:
    @staticmethod
    def draw(draw: random.Random, kind: str, wide: bool) -> tuple[Band, Any, Tensor, ModeList, int]:
        """(band, inputs, mask, modes, groups). Wide maps have over 256 pixels and so a box, the others a matrix."""
        narrow = draw.choice((1, 2, 5, 7, 8)), draw.choice((1, 3, 6, 11))
        size = draw.choice(((17, 16), (3, 89), (131, 2), (23, 13))) if wide else narrow
        kernel = draw.choice((1, 2, 3, 4, 9)), draw.choice((1, 2, 3, 5))
        groups = draw.choice((1, 1, 2, 3))
        batch, channels, outputs = draw.choice((1, 2, 3, 17)), draw.choice((1, 2, 3)), draw.choice((1, 2, 5))
        band, inputs, n = problem(size, kernel, (batch, groups * channels, groups * outputs, groups))
        mask = make_mask(kind, draw.choice((0.5, 0.8, 0.95)), n, batch, draw.randrange(1000), inputs[0].detach())
        return band, inputs, mask, masks.mode_list(mask, n), groups

    @pytest.mark.slow
    @pytest.mark.drawn
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("number", draws(4))
    def test_every_kind_forward_and_backward(self, seed: int, guarded: None, kind: str, number: int) -> None:
        draw = random.Random(seed * 101 + number + 100 * KINDS.index(kind))
        tries = [self.draw(draw, kind, wide=number % 4 == 0) for _ in range(20)]
        band, inputs, mask, modes, groups = min(tries, key=lambda drawn: max(30, len(drawn[3]) * drawn[4]))
        name = ("tf32x3", "fp32", "tf32", "fp16")[number % 4]
        check(inputs, mask, band, modes, groups, name)

    @pytest.mark.slow
    @pytest.mark.drawn
    @pytest.mark.parametrize("samples", [False, True])
    @pytest.mark.parametrize(
        ("size", "sizes"),
        [((6, 5), (2, 4, 6, 2)), ((5, 6), (3, 3, 3, 3)), ((3, 2), (70, 2, 4, 1)), ((2, 129), (2, 3, 2, 1))],
        ids=str,
    )
    def test_gradient_of_a_mask(
        self, seed: int, guarded: None, size: tuple[int, int], sizes: tuple[int, int, int, int], samples: bool
    ) -> None:
        """Of every listed cell, zero or not, of one mask for the batch or one per sample; and of nothing else."""
        band, inputs, n = problem(size, (1, 2), sizes)
        shape = (sizes[0], 1) if samples else ()
        drawn = torch.randn(*shape, n[0], n[1] // 2 + 1)
        mask = masks.hermitian(drawn * (torch.rand(drawn.shape) < 0.6), n).requires_grad_()
        modes = every_mode(n) if size[1] < 100 else ModeList(n, ((7, 2), (1, 1)))
        counted = mask * masks_of(modes)
        check(inputs, mask, band, modes, sizes[3], counted=counted)
        (gradient,) = torch.autograd.grad(
            dft_triton(*inputs[:2], mask, None, band, modes, sizes[3]).sum(), mask, retain_graph=False
        )
        assert not (gradient * (1 - masks_of(modes))).any()

    def test_only_the_mask_has_a_gradient(self, seed: int, guarded: None) -> None:
        band, inputs, n = problem((5, 4), (3, 3), (2, 3, 4, 1))
        x, weight, _ = (each.detach() for each in inputs)
        mask = masks.hermitian(torch.rand(n[0], n[1] // 2 + 1), n).requires_grad_()
        modes = every_mode(n)
        (got,) = torch.autograd.grad(dft_triton(x, weight, mask, None, band, modes, 1).square().sum(), mask)
        (want,) = torch.autograd.grad(reference(x, weight, mask, None, band, modes, 1).square().sum(), mask)
        assert relative_error(got, want) <= 1e-5

    @pytest.mark.slow
    @pytest.mark.drawn
    @pytest.mark.parametrize("dtype", [torch.bool, torch.float64, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("samples", [False, True])
    def test_masks_of_any_dtype(self, seed: int, guarded: None, dtype: torch.dtype, samples: bool) -> None:
        band, inputs, n = problem((5, 6), (2, 3), (3, 2, 2, 1))
        shape = (3, 1) if samples else ()
        mask = masks.hermitian((torch.rand(*shape, n[0], n[1] // 2 + 1) + 0.4).to(dtype), n)
        check(inputs, mask, band, masks.mode_list(mask, n), 1)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_precision_maps(self, seed: int, guarded: None, dtype: torch.dtype) -> None:
        band, inputs, n = problem((7, 9), (3, 3), (2, 3, 4, 1))
        x, weight, bias = (each.detach().to(dtype) for each in inputs)
        mask = masks.soft_window(n, (2.0, 2.0), 2.0)
        modes = masks.mode_list(mask, n)
        y = dft_triton(x, weight, mask, bias, band, modes, 1)
        assert y.dtype == dtype
        # The interpreter cuts bfloat16 off where the GPU rounds.
        bound = PRECISIONS["tf32x3"].tolerance.relative[str(dtype).removeprefix("torch.")] * 2
        exact = reference(x, weight, mask, bias, band, modes, 1)
        assert relative_error(y, exact) <= bound

    @pytest.mark.slow
    def test_cells_that_are_not_listed_count_as_masked(self, seed: int, guarded: None) -> None:
        for size in ((7, 6), (18, 15)):
            band, inputs, n = problem(size, (3, 2), (2, 2, 3, 1))
            mask = masks.hermitian(torch.rand(n[0], n[1] // 2 + 1) + 0.5, n)
            for modes in (ModeList(n, ((1, 2), (1, 0), (2, 1))), ModeList(n, cells=((1, 1), (0, 2), (n[0] - 1, 3)))):
                check(inputs, mask, band, modes, 1, counted=mask * masks_of(modes))

    def test_a_masked_mode_of_the_box_is_not_multiplied(self, seed: int) -> None:
        """Its spectra are not even read: they hold NaN here, and the product is zero."""
        from spectralkernels.convolution.dft_triton.launches import products

        z, w = torch.randn(2, 1, 2, 6), torch.randn(2, 1, 2, 12)
        z[1], w[1] = float("nan"), float("nan")
        y = torch.full((2, 1, 2, 8), float("nan"))
        mask = products.Mask(torch.tensor([[1.0, 0.0]]), torch.tensor([0, 1], dtype=torch.int32))
        sizes = products.ProductSizes(batch=2, channels=3, outputs=4, groups=1, modes=2)
        products.contract(z, w, y, "forward", sizes, mask, PRECISIONS["fp32"])
        assert y[0].isfinite().all() and not y[1].any()

    @pytest.mark.parametrize("shares", [2, 8])
    def test_sums_that_programs_share(self, seed: int, guarded: None, shares: int) -> None:
        """Of three steps, of which the first of eight shares take one each; and a total of too few is caught."""
        from spectralkernels.convolution.dft_triton.launches import products

        samples = bool(shares & 8) ^ bool(seed & 1)
        band, inputs, n = problem((3, 2), (2, 1), (33, 34, 3, 1))
        shape = (33, 1) if samples else ()
        mask = masks.hermitian(torch.rand(*shape, n[0], n[1] // 2 + 1) + 0.5, n)
        with pinned({products.CONTRACT.name: {"shares": shares, "k": 16}}):
            check(inputs, mask, band, every_mode(n), 1)
        total = products.kernels.total_kernel
        parts, out = torch.randn(shares, 5), torch.full((5,), float("nan"))
        for counted in (shares, shares - 1):
            numbers = {"count": 5, "BLOCK": 8, "OPERAND": triton_dtype(out.dtype), "PRECISION": "ieee"}
            Launch(total, (1,), {"shares_ptr": parts, "out_ptr": out, "SHARES": counted, **numbers}, {}).run()
            assert (relative_error(out, parts.double().sum(0)) <= 1e-6) == (counted == shares)

    def test_empty_batch_and_empty_mask(self, seed: int, guarded: None) -> None:
        band, inputs, n = problem((5, 4), (3, 3), (0, 2, 3, 1))
        mask = masks.cell_dropout(n, 0.5).requires_grad_()
        y = dft_triton(*inputs[:2], mask, inputs[2], band, every_mode(n), 1)
        assert y.shape == (0, 3, 5, 4)
        for gradient in torch.autograd.grad(y.sum(), (*inputs[1:], mask)):
            assert not gradient.any()
        band, inputs, n = problem((5, 4), (3, 3), (2, 2, 3, 1))
        nothing = torch.zeros(n[0], n[1] // 2 + 1)
        y = dft_triton(*inputs[:2], nothing, None, band, masks.mode_list(nothing, n), 1)
        assert y.shape == (2, 3, 5, 4) and not y.any()

    def test_saves_the_listed_spectrum_the_weight_and_the_mask(self, seed: int) -> None:
        band, inputs, n = problem((12, 12), (3, 3), (2, 3, 4, 1))
        mask = masks.radial(n, 0.4)
        modes = masks.mode_list(mask, n)
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            dft_triton(*inputs[:2], mask, None, band, modes, 1)
        assert sum(each.nbytes for each in saved) == 8 * len(modes) * 6 + inputs[1].nbytes + mask.nbytes

    @pytest.mark.parametrize("form", ["steps", "cells"])
    @pytest.mark.slow
    def test_opcheck_and_one_graph(self, seed: int, form: Any) -> None:
        band, inputs, n = problem((5, 4), (3, 3), (2, 4, 4, 2))
        mask = masks.hermitian(torch.rand(2, 1, n[0], n[1] // 2 + 1), n).requires_grad_()
        modes = masks.mode_list(masks.radial(n, 0.5), n, form=form)
        layout = layout_for(modes, band.size)
        where = ([-1, -1], 2, layout, list(band.out), "fp32", False, "class", "taps")
        opcheck(torch.ops.spectralkernels.dft_triton_conv.default, (*inputs, mask, *where))

        def layer(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
            return dft_triton(x, weight, mask, bias, band, modes, 2).square()

        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        wanted = (*inputs, mask)
        eager, traced = (torch.autograd.grad(f(*wanted).sum(), wanted) for f in (layer, compiled))
        for found, want in zip(traced, eager, strict=True):
            assert relative_error(found, want) <= 1e-6

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("fault", "samples"),
        [
            ({"WEIGHTED": ""}, False),
            ({"WEIGHTED": ""}, True),
            ({"mask_sample": 0}, True),  # a shared mask has no samples to confuse
            ({"mask_row": 0}, True),
            ({"cell_ptr": "rolled"}, False),
            ({"cell_ptr": "rolled"}, True),
        ],
        ids=str,
    )
    def test_planted_faults_are_caught(
        self, seed: int, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], samples: bool
    ) -> None:
        from spectralkernels.launch import Launch

        band, inputs, n = problem((5, 4), (3, 3), (2, 3, 4, 1))
        drawn = torch.rand(*((2, 1) if samples else ()), n[0], n[1] // 2 + 1)
        mask = masks.hermitian(drawn, n).requires_grad_()
        if "WEIGHTED" in fault:  # without a fault there is none to find, of either kind of mask
            check(inputs, mask, band, every_mode(n), 1)
        original = Launch.run

        def faulty(launch: Launch) -> None:
            known = {name: value for name, value in fault.items() if name in launch.arguments}
            if launch.arguments.get("cell_ptr") is None:
                known.pop("cell_ptr", None)
            elif "cell_ptr" in known:
                known["cell_ptr"] = launch.arguments["cell_ptr"].roll(1)
            original(replace(launch, arguments={**launch.arguments, **known}))

        monkeypatch.setattr(Launch, "run", faulty)
        with pytest.raises(AssertionError, match="output"):
            check(inputs, mask, band, every_mode(n), 1)


def masks_of(modes: ModeList) -> Tensor:
    """One at the listed modes, zero elsewhere, with the conjugate partners that a pair's list leaves out."""
    listed = torch.zeros(modes.n[0], modes.n[1] // 2 + 1)
    for u, v in modes.indices:
        listed[u, v] = 1.0
    return listed
