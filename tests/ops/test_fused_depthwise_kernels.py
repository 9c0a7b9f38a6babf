"""The fused depthwise kernels under Triton's interpreter, forward and backward, against float64.

What is marked `interpreter` is the run under `TRITON_INTERPRET=1`.
Split classes run as float32 there and are emulated in
test_fused_depthwise_precision.py.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from depthwise_geometry import geometry_of
from effort import draws, opcheck
from guarded_interpreter import alive, check_gradients, in_poison, interpreter, nan_inside, relative_error
from torch import Tensor

from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.fused.precision import PRECISIONS, precision
from spectralkernels.convolution.fused_depthwise import fused_depthwise, supports
from spectralkernels.convolution.fused_depthwise.matrices import MapGeometry, Operators, operators
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.launch import forget_plans
from spectralkernels.spectra import Band
from spectralkernels.traffic import counted_traffic

CPU = torch.device("cpu")


SIDES = (1, 2, 3, 5, 7, 8, 13, 16, 17, 23, 28, 31, 32)
TAPS = (1, 2, 3, 4, 7, 10, 15, 29, 31)


@interpreter
class TestInterpreted:
    @classmethod
    def problem(cls, draw: random.Random) -> tuple[Tensor, Tensor, Tensor, Band]:
        """Maps, kernel, bias and band: odd, prime, non-square, size 1, batches that no tile divides."""
        size, kernel = (tuple(draw.choice(among) for _ in range(2)) for among in (SIDES, TAPS))
        if draw.random() < 0.1:
            size = (draw.choice((33, 47, 56)), draw.choice((5, 40)))
        band = conv_band(size, kernel, compression=draw.choice((0.0, 0.3, 0.5, 0.8, 0.95)))
        batch, channels = draw.choice((1, 2, 3, 5)), draw.choice((1, 2, 3))
        x, weight, bias = torch.randn(batch, channels, *size), torch.randn(channels, 1, *kernel), torch.randn(channels)
        fits = supports(x, weight, bias, band, channels) is None
        return (x, weight, bias, band) if fits else cls.problem(draw)

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, geometry: MapGeometry, changes: dict[str, Any]
    ) -> Tensor:
        from spectralkernels.convolution.fused_depthwise.launches import convolve_launch

        inputs = [in_poison(tensor) for tensor in (x, weight)]
        y, around_y = nan_inside(*x.shape[:2], *geometry.out)
        modes, around_modes = nan_inside(*x.shape[:2], geometry.kept_reals)
        planned = convolve_launch(*inputs, bias, y, modes, geometry, precision("tf32x3"))
        planned.arguments.update(changes)
        planned.run()
        for buffer in (around_y, around_modes):
            assert alive(buffer), "wrote outside"
        assert not modes.isnan().any(), "a mode was not written"
        return y

    @pytest.mark.parametrize("draw", draws(7))
    def test_forward_at_random_shapes(self, seed: int, draw: int, monkeypatch: pytest.MonkeyPatch):
        from spectralkernels.convolution.fused_depthwise import launches

        rng = random.Random(seed + draw)
        torch.manual_seed(seed + draw)
        x, weight, bias, band = self.problem(rng)
        images, blocks = rng.choice((1, 2, 4)), rng.choice(((1, 1), (2, 1), (4, 1), (4, 2)))
        monkeypatch.setattr(launches, "images_per_program", lambda *_, **__: images)
        monkeypatch.setattr(launches, "row_blocks", lambda *_: blocks)
        forget_plans()
        y = self.forward(x, weight, bias, geometry_of(band), {})
        where = f"x{tuple(x.shape)} w{tuple(weight.shape)} {band}, {images} images a program, {blocks}"
        assert not y.isnan().any(), where
        assert relative_error(y, reference(x, weight, bias, band, x.shape[1])) <= PRECISIONS["tf32x3"].error, where

    @pytest.mark.parametrize("draw", draws(7))
    def test_gradients_at_random_shapes(self, seed: int, draw: int, poisoned: None):
        rng = random.Random(seed + 1000 + draw)
        torch.manual_seed(seed + draw)
        x, weight, bias, band = self.problem(rng)
        name = tuple(PRECISIONS)[draw % len(PRECISIONS)]
        exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
        leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
        y = fused_depthwise(*leaves, band, x.shape[1], accuracy=name)
        wanted = reference(*exact, band, x.shape[1])
        cotangent = torch.randn_like(y)
        found = torch.autograd.grad(y, leaves, cotangent)
        true = torch.autograd.grad(wanted, exact, cotangent.double())
        # Some answers of tiny shapes cancel to almost nothing, so an error is measured against the usual size of one.
        norm_x, norm_w, norm_dy = (float(tensor.detach().norm()) for tensor in (x, weight, cotangent))
        per_plane = (weight[0].numel() / (len(x) * x.shape[1] * x[0, 0].numel())) ** 0.5
        by_weight = x.shape[1] ** -0.5 * norm_w
        usual = (norm_x * by_weight, norm_dy * by_weight, norm_x * norm_dy * per_plane, norm_dy)
        for one, other, least in zip((y, *found), (wanted, *true), usual, strict=True):
            error, size = (float(tensor.detach().norm()) for tensor in (one.double() - other, other))
            assert error <= 2 * PRECISIONS[name].error * max(size, least), (name, tuple(x.shape), band)

    @pytest.mark.slow
    @pytest.mark.drawn
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("name", PRECISIONS)
    def test_half_precision_maps(self, seed: int, poisoned: None, name: str, dtype: torch.dtype):
        for size, kernel in (((12, 17), (5, 4)), ((9, 8), (11, 9))):  # saves the spectrum, saves x
            band = conv_band(size, kernel, compression=0.6)
            x, weight, bias = (torch.randn(s).to(dtype) for s in ((2, 2, *size), (2, 1, *kernel), (2,)))
            leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
            y = fused_depthwise(*leaves, band, 2, accuracy=name)
            exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
            wanted = reference(*exact, band, 2)
            cotangent = torch.randn_like(y)
            found = torch.autograd.grad(y, leaves, cotangent)
            true = torch.autograd.grad(wanted, exact, cotangent.double())
            assert y.dtype == dtype and [grad.dtype for grad in found] == [dtype] * 3
            # Interpreted stores cut bfloat16 where hardware rounds: twice the error.
            allowed = 2 * PRECISIONS[name].tolerance.relative[str(dtype).removeprefix("torch.")]
            check_gradients((y, *found), (wanted, *true), allowed, f"{name} {dtype}")

    def test_full_band_is_conv2d(self, seed: int):
        x, weight, bias = torch.randn(2, 3, 11, 7), torch.randn(3, 1, 5, 3), torch.randn(3)
        for padding, grid in (("same", "tight"), ("valid", "tight"), ((3, 1), "pow2"), ("same", "seed")):
            band = conv_band((11, 7), (5, 3), compression=0.0, padding=padding, grid=grid)
            y = fused_depthwise(x, weight, bias, band, 3)
            pad = (2, 1) if padding == "same" else 0 if padding == "valid" else padding
            assert relative_error(y, F.conv2d(x.double(), weight.double(), bias.double(), padding=pad, groups=3)) < 3e-6

    def test_a_large_band_in_a_half_precision_class(self, seed: int):
        band = conv_band((64, 9), (31, 3), compression=0.0)
        assert band.kept[0] > 32
        x, weight = torch.randn(2, 1, 64, 9).requires_grad_(), torch.randn(1, 1, 31, 3).requires_grad_()
        y = fused_depthwise(x, weight, None, band, 1, accuracy="fp16")
        exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
        wanted = reference(*exact, None, band, 1)
        cotangent = torch.randn_like(y)
        found = torch.autograd.grad(y, (x, weight), cotangent)
        true = torch.autograd.grad(wanted, exact, cotangent.double())
        check_gradients((y, *found), (wanted, *true), PRECISIONS["fp16"].error, f"{band}")

    @pytest.mark.parametrize("name", ["fp16", "fp16x3"])
    def test_float16_operands_at_any_size_of_map_and_kernel(self, seed: int, poisoned: None, name: str):
        band = conv_band((13, 11), (4, 5), compression=0.3)
        for exponents in ((-60, 40), (55, -20), (-20, -20)):
            x, weight, cotangent = torch.randn(2, 2, 13, 11), torch.randn(2, 1, 4, 5), torch.randn(2, 2, 13, 11)
            x, weight = x * 2.0 ** exponents[0], weight * 2.0 ** exponents[1]
            x[0, 1] *= 1e-3  # each plane has a scale of its own
            leaves = [x.requires_grad_(), weight.requires_grad_()]
            exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
            y, wanted = fused_depthwise(*leaves, None, band, 2, accuracy=name), reference(*exact, None, band, 2)
            found = torch.autograd.grad(y, leaves, cotangent)
            true = torch.autograd.grad(wanted, exact, cotangent.double())
            assert relative_error(y[0, 1], wanted[0, 1]) <= PRECISIONS[name].error
            assert relative_error(y, wanted) <= PRECISIONS[name].error
            assert relative_error(found[0], true[0]) <= PRECISIONS[name].error
            if name == "fp16x3":  # fp16 saves what dw is made of in float16
                assert relative_error(found[1], true[1]) <= PRECISIONS[name].error

    @pytest.mark.parametrize(
        "change",
        [{"H": 12}, {"W": 10}, {"TAPS_W": 4}, {"batch": 2}, {"OUT_W": 10}, {"bias_ptr": None}, {"ROWS": 3}, "swap"],
        ids=str,
    )
    def test_planted_faults_are_caught(self, seed: int, change: dict[str, Any] | str):
        band = conv_band((13, 11), (4, 5), compression=0.3)
        geometry = geometry_of(band)
        x, weight, bias = torch.randn(3, 2, 13, 11), torch.randn(2, 1, 4, 5), torch.randn(2)
        wanted = reference(x, weight, bias, band, 2)
        assert relative_error(self.forward(x, weight, bias, geometry, {}), wanted) <= 3e-6
        made: Operators = operators(geometry, precision("tf32x3"), CPU)
        not_conjugated = {"columns_weight_ptr": made.reflected.columns, "rows_weight_ptr": made.reflected.rows}
        try:
            y = self.forward(x, weight, bias, geometry, not_conjugated if isinstance(change, str) else change)
            caught = not relative_error(y, wanted) <= 1e-3
        except AssertionError:
            caught = True
        assert caught

    def test_a_nan_stays_visible(self, seed: int):
        x, weight = torch.randn(2, 2, 9, 8), torch.randn(2, 1, 3, 3)
        x[1, 0, 4, 4] = float("nan")
        for name in PRECISIONS:
            y = fused_depthwise(x, weight, None, conv_band((9, 8), (3, 3), compression=0.5), 2, accuracy=name)
            assert y[1, 0].isnan().any() and not y[0].isnan().any() and not y[1, 1].isnan().any()

    @pytest.mark.slow
    def test_strides_empty_batches_and_frozen_weights(self, seed: int, poisoned: None):
        band = conv_band((9, 8), (3, 5), compression=0.5)
        weight = torch.randn(4, 1, 5, 3).transpose(2, 3).requires_grad_()
        for x in (
            torch.randn(2, 4, 8, 9).transpose(2, 3),
            torch.randn(1, 4, 9, 8).expand(3, -1, -1, -1),
            torch.randn(2, 8, 9, 8)[:, ::2],
        ):
            assert (
                relative_error(fused_depthwise(x, weight, None, band, 4), reference(x, weight, None, band, 4)) <= 3e-6
            )
        none = torch.randn(0, 4, 9, 8).requires_grad_()
        y = fused_depthwise(none, weight, None, band, 4)
        assert y.shape == (0, 4, 9, 8)
        dx, dw = torch.autograd.grad(y.sum(), (none, weight))
        assert dx.shape == none.shape and not dw.any()

    @pytest.mark.parametrize(
        ("kernel", "dtype", "name", "share"),
        [
            ((7, 7), torch.float32, "tf32x3", 0.54),
            ((7, 7), torch.float32, "bf16", 0.27),
            ((7, 7), torch.bfloat16, "bf16", 0.54),
            ((31, 31), torch.float32, "tf32x3", 0.97),
        ],
    )
    def test_saved_bytes(self, kernel: tuple[int, int], dtype: torch.dtype, name: str, share: float):
        """The smaller of x and its kept spectrum, and the kernel; a frozen kernel saves no activation."""
        band = conv_band((32, 32), kernel, compression=0.5)
        x, weight = torch.randn(1, 1, 32, 32).to(dtype).requires_grad_(), torch.randn(1, 1, *kernel).to(dtype)
        saved: list[Tensor] = []
        for trained in (True, False):
            saved.clear()
            with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
                fused_depthwise(x, weight.requires_grad_(trained), None, band, 1, accuracy=name)
            activations = sum(tensor.nbytes for tensor in saved if tensor.shape != weight.shape)
            assert activations == 0 if not trained else activations / x.nbytes <= share + 0.0005

    @pytest.mark.slow
    @pytest.mark.parametrize(("size", "name"), [((12, 11), "tf32x3"), ((9, 33), "fp32"), ((9, 33), "fp16")])
    def test_the_gradient_of_the_bias_comes_with_that_of_the_kernel(self, seed: int, size: tuple[int, int], name: str):
        """From x and from its modes, of one block of columns and of several; dy is not read for it again."""
        from spectralkernels.convolution.fused import operators as fused_operators
        from spectralkernels.convolution.fused_depthwise.launches import v_blocks

        band = conv_band(size, (4, 3), compression=0.0)
        geometry = geometry_of(band)
        assert v_blocks(geometry, precision(name)) == (2 if name == "fp32" else 1)
        x, weight, dy = torch.randn(3, 2, *size), torch.randn(2, 1, 4, 3), torch.randn(3, 2, *size) + 0.2
        facts = (geometry.starts, geometry.n, geometry.kept)
        _, modes = fused_operators.convolve(x, weight, None, *facts, geometry.out, name, True)
        for saved, kept_modes in ((x, False), (modes, True)):
            with counted_traffic() as launches:
                *_, db = fused_operators.convolve_backward(
                    dy, saved, weight, *facts, geometry.size, name, kept_modes, False, True, True
                )
            assert relative_error(db, dy.double().sum((0, 2, 3))) <= PRECISIONS[name].error
            (moved,) = launches
            assert moved.arguments["dy_ptr"].loaded == dy.nbytes * v_blocks(geometry, precision(name))
        dx, dw, alone = fused_operators.convolve_backward(
            dy, x, weight, *facts, geometry.size, name, False, False, False, True
        )
        assert dx.numel() == dw.numel() == 0
        torch.testing.assert_close(alone, dy.sum((0, 2, 3)))

    @pytest.mark.slow
    def test_both_savings_give_the_same_gradient(self, seed: int):
        band = conv_band((12, 11), (4, 3), compression=0.5)
        geometry = geometry_of(band)
        from spectralkernels.convolution.fused import operators as fused_operators

        x, weight, dy = torch.randn(5, 2, 12, 11), torch.randn(2, 1, 4, 3), torch.randn(5, 2, 12, 11)
        facts = (geometry.starts, geometry.n, geometry.kept)
        _, modes = fused_operators.convolve(x, weight, None, *facts, geometry.out, "tf32x3", True)
        from_x = fused_operators.convolve_backward(
            dy, x, weight, *facts, geometry.size, "tf32x3", False, False, True, False
        )[1]
        again = fused_operators.convolve_backward(
            dy, x, weight, *facts, geometry.size, "tf32x3", False, False, True, False
        )[1]
        from_modes = fused_operators.convolve_backward(
            dy, modes, weight, *facts, geometry.size, "tf32x3", True, False, True, False
        )[1]
        assert torch.equal(from_x, again)
        assert relative_error(from_modes, from_x) <= 1e-6

    @pytest.mark.slow
    def test_opcheck_and_trace(self, seed: int):
        op = torch.ops.spectralkernels.fused.default
        x, weight, bias = torch.randn(2, 3, 7, 6), torch.randn(3, 1, 4, 3), torch.randn(3)
        band = conv_band((7, 6), (4, 3), compression=0.4)
        geometry = geometry_of(band)
        facts = (geometry.starts, geometry.n, geometry.kept, geometry.out, "tf32x3")
        for keep, with_bias in ((True, bias), (False, None)):
            leaves = (x.requires_grad_(), weight.requires_grad_(), with_bias)
            opcheck(op, (*leaves, *(list(f) if isinstance(f, tuple) else f for f in facts), keep))
        traced = torch.compile(
            lambda x, weight, bias: fused_depthwise(x, weight, bias, band, 3), fullgraph=True, backend="aot_eager"
        )
        leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
        y, wanted = traced(*leaves), fused_depthwise(*leaves, band, 3)
        assert torch.equal(y, wanted)
        cotangent = torch.randn_like(y)
        for one, other in zip(
            torch.autograd.grad(y, leaves, cotangent), torch.autograd.grad(wanted, leaves, cotangent), strict=True
        ):
            torch.testing.assert_close(one, other)
