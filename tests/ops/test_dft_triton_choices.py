"""What a caller of the Triton convolution may choose: frozen weights, what backward saves; and single channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from effort import opcheck
from guarded_interpreter import check_gradients, guarded, interpreter, relative_error
from torch import Tensor

import spectralkernels as sk
from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.dft_gemm import freeze_weight
from spectralkernels.convolution.dft_triton import IMPLEMENTATIONS, dft_triton, supports, supports_frozen
from spectralkernels.convolution.dft_triton.layout import box_layout
from spectralkernels.convolution.dft_triton.precision import PRECISIONS
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.errors import RangeError
from spectralkernels.spectra import Band

__all__ = ["guarded"]

SAVED_BF16 = 3e-3
"""Most error of the gradient of the weight when it meets a spectrum rounded to 8 bits, as the docstring says: about
1.6e-3, as each of its terms has; 4500 draws of few terms, some of which cancel, gave 1.0e-3 to 2.4e-3."""


def tensors(batch: int, channels: int, outputs: int, groups: int, band: Band) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias that require gradients."""
    x, weight = torch.randn(batch, channels, *band.size), torch.randn(outputs, channels // groups, *band.kernel)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(outputs).requires_grad_()


# --- declaration and errors -----------------------------------------------------------------------------------------


def test_choices_are_named_implementations() -> None:
    found = {each.name: each for each in IMPLEMENTATIONS}
    assert {"dft_triton_frozen", "dft_triton_save_bf16", "dft_triton_save_spectrum"} < set(found)
    frozen = found["dft_triton_frozen"]
    assert frozen.gradients == ("x", "bias") and frozen.prepare is not None
    coarser = found["dft_triton_save_bf16"].tolerance
    assert coarser is not None and coarser.relative["float32"] >= SAVED_BF16 and "8 bits" in coarser.because
    names = {each.name for each in sk.implementations("band_limited_conv1d")}
    assert {"dft_triton_frozen", "dft_triton_frozen_bf16", "dft_triton_save_bf16"} < names


def test_errors_say_what_to_do() -> None:
    band = conv_band((5, 5), (3, 3), compression=0.0)
    x, weight, bias = tensors(1, 2, 2, 1, band)
    with pytest.raises(RangeError, match=r"saved_map must be 'class' or 'bf16', got 'fp8'"):
        dft_triton(x, weight, bias, band, 1, saved_map="fp8")  # type: ignore[arg-type]
    with pytest.raises(RangeError, match=r"saved_weight must be 'taps' or 'spectrum', got 'none'"):
        dft_triton(x, weight, bias, band, 1, saved_weight="none")  # type: ignore[arg-type]
    spectrum = freeze_weight(weight, band, 1)
    assert supports(x=x, weight=spectrum) == "it takes a weight tensor, not a WeightSpectrum"
    assert "pass weight_spectrum(weight, ...)" in (supports_frozen(x=x, weight=weight) or "")
    assert supports_frozen(x=x, weight=spectrum) is None
    assert "got float64" in (supports_frozen(x=x.double(), weight=spectrum) or "")


def test_a_spectrum_saved_in_bfloat16_costs_what_is_stated(seed: int) -> None:
    """Emulated in float64, rounding to nearest as a GPU does: dw = sum over the batch of conj(G) Z, Z in 8 bits."""
    errors = []
    for batch, size, kernel, compression in ((8, (32, 32), 3, 0.5), (3, (19, 14), 7, 0.0), (16, (9, 9), 5, 0.8)):
        band = conv_band(size, (kernel, kernel), compression=compression)
        x, weight, _ = tensors(batch, 4, 6, 1, band)
        y = reference(x, weight, None, band, 1)
        cotangent = torch.randn_like(y)
        (exact,) = torch.autograd.grad(y, weight, cotangent, retain_graph=True)
        spectrum = torch.fft.rfft2(x.detach().double(), s=band.n, norm="ortho")
        parts = torch.view_as_real(spectrum).to(torch.bfloat16).double()
        rounded = torch.fft.irfft2(torch.view_as_complex(parts), s=band.n, norm="ortho")
        errors.append(_gradient_on_the_circle(rounded, cotangent, band, exact))
    assert max(errors) <= SAVED_BF16
    assert max(errors) >= SAVED_BF16 / 3


def _gradient_on_the_circle(circle: Tensor, cotangent: Tensor, band: Band, exact: Tensor) -> float:
    """Relative error of dw made from maps on the whole circle [B, C, *n] instead of from x."""
    g = torch.fft.rfft2(cotangent.double(), s=band.n)
    rows, columns = torch.tensor(band.rows), band.columns
    kept = torch.zeros(band.n[0], band.n[1] // 2 + 1, dtype=torch.float64)
    kept[rows, :columns] = 1.0
    dw = torch.einsum("bouv,bcuv->ocuv", g.conj() * kept, torch.fft.rfft2(circle))
    taps = torch.fft.irfft2(dw, s=band.n)
    for axis, (size, (before, _)) in enumerate(zip(band.kernel, band.pad, strict=True), start=2):
        positions = torch.arange(-before, size - before).remainder(band.n[axis - 2])
        taps = taps.index_select(axis, positions)
    return relative_error(taps, exact)


@pytest.mark.parametrize(("size", "kernel", "share"), [((32, 32), 3, 0.27), ((56, 56), 7, 0.275), ((28, 28), 3, 0.27)])
def test_saved_bytes_at_half_the_band(size: tuple[int, int], kernel: int, share: float) -> None:
    """Bfloat16 real and imaginary parts of the kept modes, of x in float32, whatever the channels."""
    band = conv_band(size, (kernel, kernel), compression=0.5)
    assert 2 * 2 * band.modes <= share * 4 * size[0] * size[1]


# --- the kernels ----------------------------------------------------------------------------------------------------


@interpreter
class TestInterpreted:
    @pytest.mark.drawn
    @pytest.mark.parametrize("name", ["tf32x3", "tf32", "fp16", "bf16"])
    @pytest.mark.parametrize(
        ("sizes", "size", "kernel", "relu"),
        [
            ((2, 4, 6, 2), (7, 5), 3, False),
            ((1, 3, 2, 1), (17, 19), 4, True),
            ((5, 2, 70, 1), (31,), 5, False),
            ((3, 4, 4, 4), (6, 9), 2, True),
        ],
        ids=str,
    )
    def test_frozen_weights(
        self, seed: int, guarded: None, sizes: Any, size: tuple[int, ...], kernel: int, relu: bool, name: str
    ) -> None:
        band = conv_band(size, (kernel,) * len(size), compression=0.8)
        x, weight, bias = tensors(*sizes, band)
        groups, activation = sizes[3], "relu" if relu else "none"
        frozen = freeze_weight(weight, band, groups)
        y = dft_triton(x, frozen, bias, band, groups, precision=name, activation=activation)  # type: ignore[arg-type]
        exact = reference(x, weight, bias, band, groups)
        exact = exact * (y.detach() > 0) if relu else exact
        cotangent = torch.randn_like(y)
        found = (y, *torch.autograd.grad(y, (x, bias), cotangent))
        wanted = (exact, *torch.autograd.grad(exact, (x, bias), cotangent.double()))
        check_gradients(found, wanted, PRECISIONS[name].error, f"{name} {sizes} {band}")

    def test_frozen_weights_through_the_public_functions(self, seed: int) -> None:
        x, weight, bias = torch.randn(2, 3, 5, 6, requires_grad=True), torch.randn(4, 3, 3, 3), torch.randn(4)
        frozen = sk.weight_spectrum(weight, (5, 6), compression=0.4)
        y = sk.band_limited_conv2d(x, frozen, bias, compression=0.4, impl="dft_triton_frozen")
        want = sk.band_limited_conv2d(x, weight, bias, compression=0.4, impl="dft_gemm")
        assert relative_error(y, want) <= 3e-6
        for found, exact in zip(*(torch.autograd.grad(each.square().sum(), x) for each in (y, want)), strict=True):
            assert relative_error(found, exact) <= 1e-5
        series = sk.band_limited_conv1d(
            x[:, :, 0],
            sk.weight_spectrum(weight[:, :, 0], (6,), compression=0.4),
            compression=0.4,
            impl="dft_triton_frozen",
        )
        assert relative_error(series, sk.band_limited_conv1d(x[:, :, 0], weight[:, :, 0], compression=0.4)) <= 3e-6

    def test_frozen_weights_save_no_spectrum_of_the_map(self, seed: int) -> None:
        band = conv_band((6, 5), (3, 3), compression=0.5)
        x, weight, bias = tensors(2, 3, 4, 1, band)
        saved: list[Tensor] = []
        frozen = freeze_weight(weight, band, 1)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            dft_triton(x, frozen, bias, band, 1)
        assert [each.nbytes for each in saved] == [frozen.modes.nbytes]

    @pytest.mark.drawn
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("choice", "name", "expected"),
        [
            ({"saved_map": "bf16"}, "tf32x3", (4, 0)),
            ({"saved_map": "bf16"}, "tf32", (4, 0)),
            ({"saved_map": "bf16"}, "fp16", (4, 0)),
            ({"saved_weight": "spectrum"}, "tf32x3", (8, 8)),
            ({"saved_map": "bf16", "saved_weight": "spectrum"}, "fp32", (4, 8)),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("groups", [1, 2])
    def test_saved_bytes_and_gradients(
        self, seed: int, guarded: None, choice: Any, name: str, expected: tuple[int, int], groups: int
    ) -> None:
        """Bytes per mode and plane of the map's and the weight's spectrum; the gradients that they give."""
        for size in ((5, 7), (17, 18)):
            band = conv_band(size, (3, 2), compression=0.85)
            x, weight, bias = tensors(3, 4, 2 * groups, groups, band)
            saved: list[Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t) or t, lambda t: t):
                y = dft_triton(x, weight, bias, band, groups, precision=name, **choice)
            planes = len(weight) * weight.shape[1]
            bytes_saved = band.modes * (expected[0] * 3 * 4 + expected[1] * planes) + weight.nbytes
            assert sum(each.nbytes for each in saved) == bytes_saved
            exact = reference(x, weight, bias, band, groups)
            cotangent = torch.randn_like(y)
            dx, dw, db = torch.autograd.grad(y, (x, weight, bias), cotangent)
            wanted = torch.autograd.grad(exact, (x, weight, bias), cotangent.double())
            bound = PRECISIONS[name].error
            check_gradients((y, dx, db), (exact, wanted[0], wanted[2]), bound, f"{name} {band}")
            # The interpreter cuts bits off where the GPU rounds: twice the error, all of one sign.
            coarse = 4 * SAVED_BF16 if choice.get("saved_map") == "bf16" and name != "fp16" else 0.0
            check_gradients((dw,), (wanted[1],), bound + coarse, f"{name} {band}")

    def test_what_no_gradient_needs_is_not_saved(self, seed: int) -> None:
        band = conv_band((6, 5), (3, 3), compression=0.5)
        x, weight, _ = tensors(2, 3, 4, 1, band)
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            y = dft_triton(x, weight.detach(), None, band, 1)
        assert sum(each.nbytes for each in saved) == weight.nbytes
        (found,) = torch.autograd.grad(y.sum(), x)
        (want,) = torch.autograd.grad(reference(x, weight, None, band, 1).sum(), x)
        assert relative_error(found, want) <= 1e-5

    @pytest.mark.drawn
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["tf32x3", "fp16", "bf16"])
    @pytest.mark.parametrize("multiplier", [1, 3])
    @pytest.mark.parametrize("batch", [1, 6])
    def test_groups_of_one_channel(self, seed: int, guarded: None, batch: int, multiplier: int, name: str) -> None:
        for size, channels in (((6, 7), 5), ((71,), 2)):
            band = conv_band(size, (3,) * len(size), compression=0.6)
            x, weight, bias = tensors(batch, channels, multiplier * channels, channels, band)
            y = dft_triton(x, weight, bias, band, channels, precision=name)
            exact = reference(x, weight, bias, band, channels)
            cotangent = torch.randn_like(y)
            found = (y, *torch.autograd.grad(y, (x, weight, bias), cotangent))
            wanted = (exact, *torch.autograd.grad(exact, (x, weight, bias), cotangent.double()))
            check_gradients(found, wanted, PRECISIONS[name].error, f"{name} {size}")

    def test_groups_of_one_channel_take_no_tensor_core(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from spectralkernels.launch import Launch

        names: list[str] = []
        original = Launch.run
        monkeypatch.setattr(Launch, "run", lambda self: names.append(self.kernel.fn.__name__) or original(self))
        band = conv_band((5, 4), (3, 3), compression=0.6)
        x, weight, bias = tensors(2, 3, 3, 3, band)
        dft_triton(x, weight, bias, band, 3).sum().backward()
        assert names.count("single_channel_kernel") == 3 and "contract_kernel" not in names

    @pytest.mark.slow
    @pytest.mark.parametrize("fault", [{"a_divide": 1}, {"b_term": 0}, {"a_outer": 0}, {"CONJUGATED": ""}], ids=str)
    def test_planted_faults_are_caught(self, seed: int, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]) -> None:
        from spectralkernels.launch import Launch

        band = conv_band((5, 4), (3, 3), compression=0.3)
        x, weight, bias = tensors(4, 3, 6, 3, band)

        def largest_error() -> float:
            y = dft_triton(x, weight, bias, band, 3)
            exact = reference(x, weight, bias, band, 3)
            found, wanted = (torch.autograd.grad(each.sin().sum(), (x, weight)) for each in (y, exact))
            return max(relative_error(*pair) for pair in zip((y, *found), (exact, *wanted), strict=True))

        if "b_term" in fault:  # without a fault there is none to find
            assert largest_error() <= 1e-5
        original = Launch.run

        def faulty(launch: Launch) -> None:
            known = {name: value for name, value in fault.items() if name in launch.arguments}
            original(replace(launch, arguments={**launch.arguments, **known}))

        monkeypatch.setattr(Launch, "run", faulty)
        assert not largest_error() <= 1e-5

    @pytest.mark.slow
    def test_opcheck(self, seed: int) -> None:
        band = conv_band((5, 4), (3, 3), compression=0.5)
        x, weight, bias = tensors(2, 4, 4, 2, band)
        layout = box_layout(band.n, band.kept)
        ops = torch.ops.spectralkernels
        frozen = freeze_weight(weight, band, 2).modes
        opcheck(ops.dft_triton_apply.default, (x, frozen, bias, 4, 2, layout, [5, 4], "tf32x3", True))
        where = ([-1, -1], 2, layout, [5, 4], "fp32", False, "bf16", "spectrum")
        # The interpreter's bfloat16 is not the traced one's, so gradients are compared above instead.
        torch.library.opcheck(
            ops.dft_triton_conv.default,
            (x, weight, bias, None, *where),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )
