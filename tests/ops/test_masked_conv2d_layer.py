"""What a layer needs of the convolution under a mask: bias, frozen weights, the choice of an implementation, rivals."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from effort import gradcheck, opcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels import masks
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.modes import every_mode
from spectralkernels.ops.masked_conv2d import OPERATION, masked_conv2d, masked_weight_spectrum
from spectralkernels.ops.masked_conv2d.baselines import reference
from spectralkernels.ops.masked_conv2d.choice import auto
from spectralkernels.ops.masked_conv2d.profiles import make_mask

IMPLS = ("dft_gemm", "torch_fft")
FORMS = ("steps", "cells")


def truth(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
    band = conv_band(tuple(x.shape[2:]), tuple(weight.shape[2:]), compression=0.0)
    return reference(x, weight, mask, bias, band, every_mode((band.n[0], band.n[1])), groups)


def problem(seed: int, groups: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, a mask with zero cells and a bias in float64, all with a gradient, of odd sizes."""
    draw = random.Random(seed)
    side, kernel = (draw.choice((5, 6, 7)), draw.choice((4, 5, 6))), (draw.choice((2, 3, 5)), draw.choice((1, 3)))
    x = torch.randn(2, 2 * groups, *side, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3 * groups, 2, *kernel, dtype=torch.float64, requires_grad=True)
    n = masks.fft_grid(side, kernel)
    mask = torch.randn(n[0], n[1] // 2 + 1, dtype=torch.float64) * (torch.rand(n[0], n[1] // 2 + 1) < 0.7)
    bias = torch.randn(3 * groups, dtype=torch.float64, requires_grad=True)
    return x, weight, masks.hermitian(mask, n).requires_grad_(), bias


# --- bias -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
def test_bias_is_added_to_every_pixel_and_has_its_gradient(impl: str, seed: int):
    x, weight, mask, bias = problem(seed)
    inputs = (x, weight, mask, bias)

    def convolve(*inputs: Tensor) -> Tensor:
        return masked_conv2d(*inputs, groups=2, impl=impl)

    torch.testing.assert_close(convolve(*inputs), truth(x, weight, mask, bias, 2))
    assert gradcheck(convolve, inputs)
    wanted = torch.autograd.grad(truth(x, weight, mask, bias, 2).sin().sum(), inputs)
    for got, want in zip(torch.autograd.grad(convolve(*inputs).sin().sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
def test_gradients_of_some_inputs_alone(wanted: tuple[int, ...], seed: int):
    inputs = [each.detach() for each in problem(seed)]
    for i in wanted:
        inputs[i].requires_grad_()
    n = (inputs[2].shape[0], conv_band(tuple(inputs[0].shape[2:]), tuple(inputs[1].shape[2:]), compression=0.0).n[1])
    modes = every_mode(n)
    assert gradcheck(lambda *a: masked_conv2d(*a, modes=modes, groups=2, impl="dft_gemm"), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLS)
def test_bias_of_half_precision(dtype: torch.dtype, impl: str, seed: int):
    x, weight = torch.randn(2, 4, 8, 8).to(dtype), (torch.randn(4, 4, 3, 3) / 6).to(dtype)
    bias, mask = torch.randn(4).to(dtype), masks.radial((9, 9), 0.5)
    got = masked_conv2d(x, weight, mask, bias, impl=impl)
    want = truth(x, weight, mask, bias)
    assert got.dtype == dtype
    assert float((got.double() - want).norm() / want.norm()) < torch.finfo(dtype).eps


# --- frozen weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_frozen_weight_gives_the_same_values_and_gradients(form: str, groups: int, seed: int):
    """In x, mask and bias, with one mask for the batch and one per sample."""
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4 // groups, 3, 5, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    n = masks.fft_grid((4, 3), (3, 5))
    kept = make_mask("scattered", 0.5, n, 2, seed % 1000)
    modes = masks.mode_list(kept, n, form=form)
    frozen = masked_weight_spectrum(weight, modes, (4, 3), groups=groups)
    for shape in (kept.shape, (2, 1, *kept.shape)):
        mask = (torch.rand(shape, dtype=torch.float64) * kept).requires_grad_()
        inputs = (x, mask, bias)

        def convolve(x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
            return masked_conv2d(x, frozen, mask, bias, groups=groups)

        want = masked_conv2d(x, weight, mask, bias, modes=modes, groups=groups, impl="dft_gemm")
        torch.testing.assert_close(convolve(*inputs), want)
        assert gradcheck(convolve, inputs)
        for i in range(3):
            alone = [each if j == i else each.detach() for j, each in enumerate(inputs)]
            got = torch.autograd.grad(convolve(*alone).cos().sum(), alone[i])
            torch.testing.assert_close(got, torch.autograd.grad(want.cos().sum(), inputs[i], retain_graph=True))


def test_a_mask_serves_for_its_mode_list_and_outside_the_list_counts_as_zero(seed: int):
    x, weight = torch.randn(2, 3, 8, 7), torch.randn(4, 3, 3, 3)
    n = masks.fft_grid((8, 7), (3, 3))
    inner, outer = masks.radial(n, 0.3), torch.ones(n[0], n[1] // 2 + 1)
    frozen = masked_weight_spectrum(weight, inner, (8, 7))
    assert frozen.mode_list == masks.mode_list(inner, n)
    want = masked_conv2d(x, weight, outer, modes=frozen.mode_list, impl="torch_fft")
    torch.testing.assert_close(masked_conv2d(x, frozen, outer), want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(masked_conv2d(x, weight, outer), want, rtol=1e-2)


def test_a_spectrum_is_a_snapshot(seed: int):
    x, weight = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3, requires_grad=True)
    mask = masks.radial((7, 7), 0.5)
    frozen = masked_weight_spectrum(weight, mask, (6, 6))
    before = masked_conv2d(x, frozen, mask)
    assert not before.requires_grad
    with torch.no_grad():
        weight.zero_()
    torch.testing.assert_close(masked_conv2d(x, frozen, mask), before)


@pytest.mark.parametrize("wants_mask", [False, True])
def test_backward_saves_no_spectrum_that_no_gradient_needs(wants_mask: bool, seed: int):
    """With a frozen weight: the mask, the weight's modes, and the spectrum of x only for the gradient of the mask."""
    x, weight = torch.randn(8, 16, 32, 32, requires_grad=True), torch.randn(16, 16, 3, 3)
    mask = masks.soft_window((33, 33), (2.0, 2.0), 2.0).requires_grad_(wants_mask)
    frozen = masked_weight_spectrum(weight, mask, (32, 32))
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    modes = masks.mode_list(mask, (33, 33))
    spectrum = 8 * len(modes) * 8 * 16
    hermitian = mask.nbytes  # the symmetric copy that the operator reads
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = masked_conv2d(x, frozen, mask, impl="dft_gemm_frozen")
        kept = sum(saved.values())
        assert y.requires_grad
        assert frozen.modes.nbytes + hermitian + wants_mask * spectrum <= kept
        assert kept <= frozen.modes.nbytes + 8 * hermitian + wants_mask * spectrum
        saved.clear()
        masked_conv2d(x, weight, mask.detach(), modes=modes, impl="dft_gemm")
        assert sum(saved.values()) == weight.nbytes + hermitian


@pytest.mark.slow
def test_frozen_operators_pass_opcheck_and_compile(seed: int):
    x = torch.randn(2, 4, 7, 6, requires_grad=True)
    weight, bias = torch.randn(8, 2, 3, 3), torch.randn(8, requires_grad=True)
    mask = masks.soft_window((8, 7), (2.0, 2.0), 2.0).requires_grad_()
    modes = masks.mode_list(mask, (8, 7), form="steps")
    frozen = masked_weight_spectrum(weight, modes, (7, 6), groups=2)
    layout = [number for pair in modes.steps for number in pair]
    ops = torch.ops.spectralkernels
    arguments = (x, frozen.modes, mask, bias, [], 8, 2, [8, 7], layout, False, [7, 6])
    opcheck(ops.masked_conv2d.default, arguments)
    y, z = ops.masked_conv2d(*arguments)
    where = ([], 2, [8, 7], layout, False, [4, 7, 6])
    opcheck(ops.masked_conv2d_backward.default, (y.detach(), None, frozen.modes, mask.detach(), *where, [1, 0, 0]))
    saved = (y.detach(), z.detach(), frozen.modes, mask.detach())
    opcheck(ops.masked_conv2d_backward.default, (*saved, *where, [1, 0, 1]))

    def layer(x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        return masked_conv2d(x, frozen, mask, bias, groups=2).relu()

    inputs = (x, mask, bias)
    eager, compiled = layer(*inputs), torch.compile(layer, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    for got, want in zip(*(torch.autograd.grad(y.sum(), inputs) for y in (compiled, eager)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_layer_with_a_bias_compiles_whole(seed: int):
    x, weight = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(8, 4, 3, 3, requires_grad=True)
    bias, mask = torch.randn(8, requires_grad=True), masks.radial((10, 9), 0.4)
    modes = masks.mode_list(mask, (10, 9))

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return masked_conv2d(x, weight, mask, bias, modes=modes).relu()

    inputs = (x, weight, bias)
    eager, compiled = layer(*inputs), torch.compile(layer, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    for got, want in zip(*(torch.autograd.grad(y.sum(), inputs) for y in (compiled, eager)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


# --- the choice of an implementation, and the rival ------------------------------------------------------------------


def chosen(x: Tensor, weight: Tensor, mask: Tensor, groups: int = 1) -> str:
    band = conv_band(tuple(x.shape[2:]), tuple(weight.shape[2:]), compression=0.0)
    modes = every_mode((band.n[0], band.n[1]))
    return auto(x, weight, mask, None, band, modes, groups).name


@pytest.fixture
def without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "READY", False)


def test_auto_takes_the_compiled_library_for_staircases_once_it_is_there(monkeypatch: pytest.MonkeyPatch):
    x, weight, n = torch.empty(8, 64, 32, 32), torch.empty(64, 64, 3, 3), (33, 33)
    band, mask = conv_band((32, 32), (3, 3), compression=0.0), masks.radial(n, 0.3)
    steps, cells = (masks.mode_list(mask, n, form=form) for form in ("steps", "cells"))
    for built, name in ((False, "dft_gemm"), (True, "dft_native")):
        monkeypatch.setattr(build, "READY", built)
        assert auto(x, weight, mask, None, band, steps, 1).name == name
        assert auto(x, weight, mask, None, band, cells, 1).name == name  # a disc fills the band around it
        assert auto(x, weight, mask.float().requires_grad_(), None, band, steps, 1).name == "dft_gemm"
        frozen = masked_weight_spectrum(torch.randn(2, 2, 3, 3), steps, (32, 32))
        assert auto(x, frozen, mask, None, band, steps, 1).name == f"{name}_frozen"
        assert auto(x, frozen, mask, None, band, cells, 1).name == "dft_gemm_frozen"
        learnt = mask.float().requires_grad_()
        assert auto(x, frozen, learnt, None, band, steps, 1).name == "dft_gemm_frozen"


def test_auto_takes_the_library_convolution_only_under_a_mask_of_ones(without_a_library: None):
    x, weight = torch.empty(8, 64, 32, 32), torch.empty(64, 64, 3, 3)
    ones = torch.ones(33, 17)
    assert chosen(x, weight, ones) == "direct"
    assert chosen(x, weight, ones.bool()) == "direct"
    assert chosen(x, weight, ones.clone().requires_grad_()) == "dft_gemm"  # the mask has a gradient
    assert chosen(x, weight, ones * 0.5) == "dft_gemm"
    wide = torch.empty(64, 64, 15, 15)  # the study found the spectrum faster there
    assert chosen(x, wide, torch.ones(39, 20)) == "dft_gemm"
    band = conv_band((32, 32), (3, 3), compression=0.0)
    few = masks.mode_list(masks.radial((33, 33), 0.3), (33, 33))
    assert auto(x, weight, ones, None, band, few, 1).name == "dft_gemm"  # cells outside the list count as zero
    frozen = masked_weight_spectrum(torch.randn(2, 2, 3, 3), torch.ones(9, 5), (8, 8))
    assert auto(x, frozen, ones, None, band, few, 1).name == "dft_gemm_frozen"


@pytest.mark.parametrize(
    ("batch", "channels", "groups", "side", "fraction", "name"),
    [
        (8, 64, 1, 32, 1.0, "dft_gemm"),
        (2, 16, 1, 64, 1.0, "dft_gemm"),
        (2, 256, 256, 32, 1.0, "dft_gemm"),
        (2, 16, 16, 128, 0.1, "dft_gemm"),
        (2, 4, 1, 128, 1.0, "torch_fft"),
        (2, 16, 16, 128, 1.0, "dft_gemm"),
        (2, 4, 4, 256, 1.0, "torch_fft"),
    ],
)
def test_auto_takes_what_was_measured_faster_at_each_side(
    batch: int, channels: int, groups: int, side: int, fraction: float, name: str, without_a_library: None
):
    x, weight = torch.empty(batch, channels, side, side), torch.empty(channels, channels // groups, 7, 7)
    n = masks.fft_grid((side, side), (7, 7))
    mask = 0.5 * masks.radial(n, fraction)
    band = conv_band((side, side), (7, 7), compression=0.0)
    assert auto(x, weight, mask, None, band, masks.mode_list(mask, n), groups).name == name


def test_direct_is_the_answer_under_ones_and_refuses_other_masks(seed: int):
    x, weight, bias = torch.randn(2, 3, 8, 7), torch.randn(4, 3, 3, 4), torch.randn(4)
    n = masks.fft_grid((8, 7), (3, 4))
    ones = torch.ones(n[0], n[1] // 2 + 1)
    want = F.conv2d(F.pad(x, (1, 2, 1, 1)), weight, bias)
    for impl in ("direct", "dft_gemm", "auto"):
        torch.testing.assert_close(masked_conv2d(x, weight, ones, bias, impl=impl), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(sk.Unsupported, match="direct convolution has no mask; it needs one of ones"):
        masked_conv2d(x, weight, ones * 0.9, impl="direct")
    with pytest.raises(sk.Unsupported, match="no gradient of the mask; detach it, or take another implementation"):
        masked_conv2d(x, weight, ones.requires_grad_(), impl="direct")


def test_the_rival_is_the_uncompressed_convolution_and_is_never_dispatched_to():
    case = OPERATION.cases("smoke")[0][0]
    inputs = OPERATION.make_inputs(case, "cpu")
    rival = OPERATION.subject("direct_uncompressed")
    assert rival.role == "rival" and rival in OPERATION.rivals
    assert OPERATION.ideal is not None
    want = F.conv2d(inputs["x"].double(), inputs["weight"].double(), padding=1)
    torch.testing.assert_close(OPERATION.ideal(**inputs), want)
    torch.testing.assert_close(rival.call(**inputs).double(), want, rtol=1e-4, atol=1e-5)
    assert float((want - OPERATION.reference(**inputs)).norm()) > 1e-2 * float(want.norm())
    with pytest.raises(sk.RangeError, match="no implementation 'direct_uncompressed'; known: dft_gemm"):
        masked_conv2d(inputs["x"], inputs["weight"], inputs["mask"], impl="direct_uncompressed")
    for profile in ("quick", "study", "claims"):
        for _, block in OPERATION.cases(profile):
            assert block.implementations is None or rival.name in block.implementations


# --- arguments ------------------------------------------------------------------------------------------------------

X, W, M = torch.zeros(2, 4, 8, 8), torch.ones(6, 4, 3, 3), torch.ones(9, 5)
FROZEN = masked_weight_spectrum(W, M, (8, 8))
BAND = sk.weight_spectrum(W, (8, 8))
NARROW = masks.mode_list(masks.radial((9, 9), 0.3), (9, 9))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, W, M, torch.zeros(5)), {}, sk.ShapeError, r"bias must have shape \[6\], one value per output channel"),
        ((X, W, M, torch.zeros(6).double()), {}, sk.DtypeError, r"bias must have the dtype of x \(float32\)"),
        ((X, FROZEN, M, torch.zeros(5)), {}, sk.ShapeError, r"bias must have shape \[6\]"),
        (
            (X.double(), FROZEN, M),
            {},
            sk.DtypeError,
            "this WeightSpectrum holds torch.float32 on cpu, x is torch.float",
        ),
        (
            (X, FROZEN, torch.ones(10, 6)),
            {"grid": 10},
            sk.ShapeError,
            r"this WeightSpectrum was made for .* make one with masked_weight_spectrum\(...\) for it",
        ),
        (
            (X, FROZEN, M),
            {"groups": 2},
            sk.ShapeError,
            "this WeightSpectrum was made for groups=1, the call needs groups=2",
        ),
        (
            (X, FROZEN, M),
            {"modes": NARROW},
            sk.ShapeError,
            rf"holds the modes of a mask \(45 of them\), the call needs those of a mask \({len(NARROW)} of them\)",
        ),
        ((X, BAND, M), {}, sk.ShapeError, r"holds the modes of a whole band, .* make one with masked_weight_spectrum"),
        ((X[:, :3], FROZEN, M), {}, sk.ShapeError, r"x must have 4 channels, got shape \[2, 3, 8, 8\]"),
        ((X, FROZEN, M), {"impl": "dft_gemm"}, sk.Unsupported, "it takes a weight tensor, not a WeightSpectrum"),
        ((X, FROZEN, M), {"impl": "torch_fft"}, sk.Unsupported, "it takes a weight tensor, not a WeightSpectrum"),
        ((X, FROZEN, M), {"impl": "direct"}, sk.Unsupported, "it takes a weight tensor, not a WeightSpectrum"),
        ((X, W, M), {"impl": "dft_gemm_frozen"}, sk.Unsupported, "it takes a frozen weight; pass masked_weight_spectr"),
    ],
)
def test_bad_arguments_are_answered(arguments: tuple, options: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        masked_conv2d(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((W[0], M, (8, 8)), {}, sk.ShapeError, r"weight must have 4 dimensions \[out_channel, in_channel / groups"),
        ((W.int(), M, (8, 8)), {}, sk.DtypeError, "weight must be one of float32, .* got int32"),
        ((W, M, (8, 8)), {"groups": 4}, sk.ShapeError, "groups=4 must divide the 16 channels of x and the 6 output"),
        ((W, M, (8, 8)), {"groups": 0}, sk.RangeError, "groups must be at least 1, got 0"),
        ((W, M, (7, 8)), {}, sk.ShapeError, r"mask must end in \[8, 5\]"),
        (
            (W, NARROW, (7, 8)),
            {},
            sk.ShapeError,
            r"modes must be listed on the grid \(8, 9\) of this weight, got \(9, 9\)",
        ),
        ((W, M, (8, 8)), {"padding": "full"}, sk.RangeError, "padding must be 'same', 'valid' or a number"),
    ],
)
def test_a_spectrum_of_nothing_is_answered(arguments: tuple, options: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        masked_weight_spectrum(*arguments, **options)


def test_a_masked_spectrum_is_no_band():
    with pytest.raises(sk.ShapeError, match=r"holds the modes of a mask .* make one with weight_spectrum\(...\)"):
        sk.band_limited_conv2d(X, FROZEN)
