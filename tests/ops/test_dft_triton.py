"""The truncated-DFT convolution in Triton, under the interpreter, against float64.

The interpreter multiplies tf32 operands as float32, but the kernels round them
themselves, so the class tf32 is proven there too; the other split classes run as float32 and are emulated in
test_dft_triton_precision.py.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from effort import draws, opcheck
from guarded_interpreter import guarded, interpreter, relative_error
from torch import Tensor

from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.dft_triton import IMPLEMENTATIONS, dft_triton, supports
from spectralkernels.convolution.dft_triton.layout import Layout, box_layout
from spectralkernels.convolution.dft_triton.matrices import Transform
from spectralkernels.convolution.dft_triton.precision import PRECISIONS
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.errors import RangeError
from spectralkernels.spectra import Band

__all__ = ["guarded"]


def tensors(batch: int, channels: int, outputs: int, groups: int, band: Band) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias that require gradients."""
    x = torch.randn(batch, channels, *band.size)
    weight = torch.randn(outputs, channels // groups, *band.kernel)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(outputs).requires_grad_()


# --- declaration and errors -----------------------------------------------------------------------------------------


def test_implementations_carry_their_class() -> None:
    names = [found.name for found in IMPLEMENTATIONS]
    assert names[0] == "dft_triton" and {"dft_triton_tf32", "dft_triton_fp16", "dft_triton_bf16"} < set(names)
    for found in IMPLEMENTATIONS:
        assert found.tolerance is not None and found.role == "kernel"
        assert set(found.tolerance.relative) == {"float32", "float16", "bfloat16"}
    default = IMPLEMENTATIONS[0].tolerance
    assert default is not None and default.relative["float32"] <= 3e-6


def test_errors_say_what_to_do() -> None:
    band = conv_band((5, 5), (3, 3), compression=0.0)
    x, weight, bias = tensors(1, 2, 2, 1, band)
    with pytest.raises(RangeError, match=r"precision must be one of fp32, tf32x3, .*, got 'int8'"):
        dft_triton(x, weight, bias, band, 1, precision="int8")
    with pytest.raises(RangeError, match=r"activation must be 'none' or 'relu', got 'tanh'"):
        dft_triton(x, weight, bias, band, 1, activation="tanh")  # type: ignore[arg-type]
    reason = supports(x=x.double(), weight=weight.double(), bias=None, band=band, groups=1)
    assert reason == "the Triton kernels take float32, float16 and bfloat16 maps, got float64"
    assert supports(x=x, weight=weight, bias=bias, band=band, groups=1) is None


# --- the kernels ----------------------------------------------------------------------------------------------------


@interpreter
class TestInterpreted:
    @staticmethod
    def draw(seed: int, number: int) -> tuple[tuple[int, int, int, int], Band]:
        """((batch, channels, outputs, groups), band), with few modes: a program per mode is slow here."""
        rng = random.Random(seed + number)
        while True:
            groups = rng.choice((1, 1, 2, 3))
            sizes = (rng.choice((1, 2, 5, 17)), groups * rng.choice((1, 2, 5)), groups * rng.choice((1, 3, 4)), groups)
            axis = rng.choice(((1, 2, 5, 7, 8, 11), (1, 2, 5, 7, 8, 11), (5, 13, 17, 20, 23)))
            axes = rng.choice((1, 2, 2))
            size = tuple(rng.choice((*axis, 61) if axes == 1 else axis) for _ in range(axes))
            kernel = tuple(rng.choice((1, 2, 3, 4, 5, 7, 12)) for _ in range(axes))
            compression = rng.choice((0.0, 0.3, 0.5, 0.8, 0.95))
            padding = rng.choice(("same", "same", 2))
            if padding != "same" and any(k > h + 4 for h, k in zip(size, kernel, strict=True)):
                continue
            band = conv_band(size, kernel, compression=compression, padding=padding)
            if band.modes * groups <= 36:
                return sizes, band

    @pytest.mark.parametrize("number", draws(6))
    def test_random_shapes_forward_and_backward(self, seed: int, guarded: None, number: int) -> None:
        sizes, band = self.draw(seed, number)
        torch.manual_seed(seed + number)
        x, weight, bias = tensors(*sizes, band)
        groups = sizes[3]
        name = ("tf32x3", "fp32", "tf32", "fp16", "bf16", "bf16x6")[number % 6]
        relu = (seed + number) % 4 == 0
        y = dft_triton(x, weight, bias, band, groups, precision=name, activation="relu" if relu else "none")
        sums = reference(x, weight, bias, band, groups)
        # The derivative of ReLU is that of the branch that was taken.
        exact = sums * (y.detach() > 0) if relu else sums
        cotangent = torch.randn_like(y)
        found = (y, *torch.autograd.grad(y, (x, weight, bias), cotangent))
        wanted = (exact, *torch.autograd.grad(exact, (x, weight, bias), cotangent.double()))
        # A sum that happens to cancel is no measure of its own error: so is what such a sum usually comes to. Nor is
        # what a ReLU leaves of a sum.
        taps, pixels, share = weight[0, 0].numel(), y[0, 0].numel(), 1 - band.achieved_compression
        terms = (
            share * weight[0].numel(),
            share * taps * sizes[2] / groups,
            share * len(x) * pixels,
            len(x) * pixels,
        )
        where = f"{name} {sizes} {band} relu={relu}"
        assert y.is_contiguous(), where
        measures = (sums, *wanted[1:])
        for what, got, want, measure, count in zip(
            ("y", "dx", "dw", "db"), found, wanted, measures, terms, strict=True
        ):
            scale = float(measure.detach().norm()) + 0.3 * (want.numel() * count) ** 0.5
            error = float((got.detach().double() - want.detach()).norm())
            assert error <= PRECISIONS[name].error * scale, f"{what} {where}"

    @pytest.mark.drawn
    @pytest.mark.parametrize(
        "shape", [(2, 16, 8, 1, (12, 11), 3), (3, 8, 6, 2, (17, 16), 2), (33, 5, 70, 1, (61,), 7)], ids=str
    )
    @pytest.mark.parametrize("name", ["fp32", "tf32", "fp16", "bf16"])
    def test_relative_error_of_the_class(self, seed: int, guarded: None, name: str, shape: tuple[Any, ...]) -> None:
        *sizes, size, kernel = shape
        band = conv_band(size, (kernel,) * len(size), compression=0.8)
        x, weight, bias = tensors(*sizes, band)
        y = dft_triton(x, weight, bias, band, sizes[3], precision=name)
        exact = reference(x, weight, bias, band, sizes[3])
        assert relative_error(y, exact) <= PRECISIONS[name].error

    @pytest.mark.drawn
    @pytest.mark.parametrize("name", ["fp32", "tf32x3", "fp16"])
    @pytest.mark.parametrize(
        ("size", "kept", "n"),
        [((70, 37), (5, 4), (71, 40)), ((17, 131), (34, 3), (67, 131)), ((33, 66), (9, 18), (34, 66))],
    )
    @pytest.mark.slow
    def test_transforms_of_many_tiles(
        self, seed: int, guarded: None, size: tuple[int, int], kept: tuple[int, int], n: tuple[int, int], name: str
    ) -> None:
        for core in ("mma", "wgmma", "tcgen05"):
            self.check_transform(Transform(Layout(n, kept), (0, -2), size, False, True), name, core)
            self.check_transform(Transform(Layout(n, kept), (0, -2), size, True, True), name, core)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["fp32", "tf32x3"])
    def test_long_series(self, seed: int, guarded: None, name: str) -> None:
        self.check_transform(Transform(Layout((1100,), (70,)), (-3,), (1031,), False, True), name, "wgmma")

    @staticmethod
    def check_transform(transform: Transform, name: str, core: Any) -> None:
        """Analysis against an exponential written out in complex128, and synthesis as its transpose."""
        from spectralkernels.convolution.dft_triton.launches import transforms as plans

        numbers = PRECISIONS[name]
        x = torch.randn(3, *transform.lengths)
        z = torch.empty((transform.modes_v, transform.modes_u, 2, 3), dtype=numbers.storage)
        plans.analyse_launch(x, None, z, transform, plans.Planes(3), numbers, core=core).run()
        spectrum = x.double().to(torch.complex128)
        for axis, (n, start) in enumerate(zip(transform.n, transform.starts, strict=True), start=1):
            position = torch.arange(start, start + x.shape[axis]).double()
            k = transform.layout.kept[axis - 1]
            last = axis == len(transform.n)
            frequency = torch.arange(k if last else n).double()
            if not last:
                frequency = frequency[(frequency < k) | (frequency > n - k)]
            basis = torch.polar(
                torch.full((len(frequency), len(position)), n**-0.5, dtype=torch.float64),
                -2 * torch.pi * torch.outer(frequency, position) / n,
            )
            spectrum = torch.movedim(torch.movedim(spectrum, axis, -1) @ basis.t(), -1, axis)
            if last and transform.inverse:
                spectrum = spectrum * torch.where((frequency == 0) | (frequency * 2 == n), 1.0, 2.0)
        want = torch.view_as_real(spectrum if len(transform.n) == 2 else spectrum.unsqueeze(1))  # [plane, u, v, part]
        assert relative_error(z, want.permute(2, 1, 3, 0)) <= numbers.error
        modes = torch.randn(z.shape).to(z.dtype)
        y = torch.empty(x.shape)
        plans.synthesise_launch(modes, None, y, transform, 3, False, numbers, core=core).run()
        want = want.permute(2, 1, 3, 0)
        assert y.isfinite().all()
        # <D x, m> = <x, D^T m>
        difference = float((want * modes.double()).sum() - (x.double() * y.double()).sum())
        assert abs(difference) <= 2 * numbers.error * float(want.norm() * modes.double().norm())

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_precision_maps(self, seed: int, guarded: None, dtype: torch.dtype) -> None:
        band = conv_band((9, 7), (3, 3), compression=0.5)
        x, weight, bias = (each.detach().to(dtype).requires_grad_() for each in tensors(2, 3, 4, 1, band))
        y = dft_triton(x, weight, bias, band, 1)
        assert y.dtype == dtype
        # The interpreter cuts bfloat16 off where the GPU rounds.
        bound = PRECISIONS["tf32x3"].tolerance.relative[str(dtype).removeprefix("torch.")] * 2
        assert relative_error(y, reference(x, weight, bias, band, 1)) <= bound
        gradients = torch.autograd.grad(y.float().square().sum(), (x, weight, bias))
        assert [gradient.dtype for gradient in gradients] == [dtype] * 3

    def test_strided_expanded_empty_and_absent(self, seed: int, guarded: None) -> None:
        band = conv_band((5, 6), (3, 2), compression=0.4)
        weight = torch.randn(2, 3, 3, 2)
        for x in (torch.randn(2, 3, 6, 5).transpose(2, 3), torch.randn(1, 3, 5, 6).expand(4, -1, -1, -1)):
            y = dft_triton(x, weight, None, band, 1)
            assert relative_error(y, reference(x, weight, None, band, 1)) <= 3e-6
        x, weight, bias = tensors(0, 3, 2, 1, band)
        y = dft_triton(x, weight, bias, band, 1)
        assert y.shape == (0, 2, 5, 6)
        for gradient in torch.autograd.grad(y.sum(), (weight, bias)):
            assert not gradient.any()

    @pytest.mark.slow
    def test_saves_the_kept_spectrum_and_the_weight(self, seed: int) -> None:
        band = conv_band((16, 16), (3, 3), compression=0.8)
        x, weight, bias = tensors(2, 3, 4, 1, band)
        for name, size in (("tf32x3", 8), ("fp16", 4)):
            saved: list[Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t) or t, lambda t: t):
                dft_triton(x, weight, bias, band, 1, precision=name)
            assert sorted(each.nbytes for each in saved) == sorted([0, size * band.modes * 6, weight.nbytes])

    @pytest.mark.slow
    def test_opcheck_and_one_graph(self, seed: int) -> None:
        band = conv_band((5, 4), (3, 3), compression=0.5)
        x, weight, bias = tensors(2, 4, 4, 2, band)
        op = torch.ops.spectralkernels.dft_triton_conv.default
        where = ([-1, -1], 2, box_layout(band.n, band.kept))
        for name, relu, given in (("fp32", False, bias), ("fp16", True, None)):
            opcheck(op, (x, weight, given, None, *where, list(band.out), name, relu, "class", "taps"))
        compiled = torch.compile(
            lambda x, w, b: dft_triton(x, w, b, band, 2).square(), fullgraph=True, backend="aot_eager"
        )
        want = reference(x, weight, bias, band, 2).square()
        assert relative_error(compiled(x, weight, bias), want) <= 1e-5
        traced = torch.autograd.grad(compiled(x, weight, bias).sum(), (x, weight, bias))
        for found, exact in zip(traced, torch.autograd.grad(want.sum(), (x, weight, bias)), strict=True):
            assert relative_error(found, exact) <= 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "fault",
        [
            {"CONJUGATED": "a"},
            {"CONJUGATED": ""},
            {"size_k": 4},
            {"b_part": 0},
            {"HEIGHT": 16},
            {"MODES_U": 3},
            {"planes": 3},
            {"PRECISION": "tf32"},
        ],
        ids=str,
    )
    def test_planted_faults_are_caught(
        self, seed: int, monkeypatch: pytest.MonkeyPatch, poisoned: None, fault: dict[str, Any]
    ) -> None:
        from triton.runtime.errors import InterpreterError

        from spectralkernels.launch import Launch

        band = conv_band((17, 19), (3, 4), compression=0.8)
        assert not Transform(Layout(band.n, band.kept), (0, 0), band.size, False, True).dense
        x, weight, bias = tensors(2, 5, 3, 1, band)
        exact = reference(x, weight, bias, band, 1)
        if "planes" in fault:  # without a fault there is none to find
            assert relative_error(dft_triton(x, weight, bias, band, 1), exact) <= 3e-6
        original = Launch.run

        def faulty(launch: Launch) -> None:
            known = {name: value for name, value in fault.items() if name in launch.arguments}
            original(replace(launch, arguments={**launch.arguments, **known}))

        monkeypatch.setattr(Launch, "run", faulty)
        if "PRECISION" in fault:  # a kernel of operands in two pieces refuses those of one
            with pytest.raises(InterpreterError):
                dft_triton(x, weight, bias, band, 1)
            return
        assert not relative_error(dft_triton(x, weight, bias, band, 1), exact) <= 3e-6
