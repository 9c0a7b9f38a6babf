"""Convolution under a mask: every kind and form against float64, exact gradients, tracing, every bad argument."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from effort import draws, gradcheck, opcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels import masks
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.dft import listed_dft, stepped_dft
from spectralkernels.modes import ModeList, every_mode
from spectralkernels.ops.masked_conv2d import OPERATION, masked_conv2d
from spectralkernels.ops.masked_conv2d.baselines import reference
from spectralkernels.ops.masked_conv2d.profiles import KINDS, make_mask

IMPLS = ("dft_gemm", "torch_fft")


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def problem(draw: random.Random) -> tuple[Tensor, Tensor, int, tuple[int, int]]:
    """(x, weight, groups, grid) in float64 with odd, even, prime and size-1 sides."""
    groups = draw.choice((1, 1, 2, 3))
    side = [draw.choice((1, 2, 5, 7, 8, 11, 12)) for _ in range(2)]
    kernel = [draw.choice((1, 2, 3, 4, 5, 9)) for _ in range(2)]
    x = torch.randn(draw.randint(1, 3), groups * draw.randint(1, 3), *side, dtype=torch.float64)
    weight = torch.randn(groups * draw.randint(1, 3), x.shape[1] // groups, *kernel, dtype=torch.float64)
    return x, weight, groups, masks.fft_grid((side[0], side[1]), (kernel[0], kernel[1]))


def truth(x: Tensor, weight: Tensor, mask: Tensor, groups: int = 1, bias: Tensor | None = None) -> Tensor:
    band = conv_band(tuple(x.shape[2:]), tuple(weight.shape[2:]), compression=0.0)
    return reference(x, weight, mask, bias, band, every_mode((band.n[0], band.n[1])), groups)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_float64_reference(kind: str, seed: int):
    draw = random.Random(seed)
    for _ in draws(8):
        x, weight, groups, n = problem(draw)
        mask = make_mask(kind, draw.choice((0.2, 0.5, 0.9)), n, len(x), draw.randrange(1000), x)
        want = truth(x, weight, mask, groups)
        lists = {form: masks.mode_list(mask, n, form=form) for form in ("auto", "steps", "cells")}
        for impl in IMPLS:
            for form, modes in {**lists, "none": None, "every": every_mode(n)}.items():
                got = masked_conv2d(x, weight, mask, modes=modes, groups=groups, impl=impl)
                torch.testing.assert_close(got, want, rtol=0, atol=1e-11, msg=lambda m, at=(n, form): f"{at}: {m}")
            single = masked_conv2d(x.float(), weight.float(), mask, groups=groups, impl=impl)
            assert relative(single, want) < 1e-5 or float(want.norm()) < 1e-3


def test_without_a_mask_it_is_conv2d_and_with_a_band_band_limited_conv2d(seed: int):
    draw = random.Random(seed)
    for _ in draws(12):
        x, weight, groups, n = problem(draw)
        left, right = [(k - 1) // 2 for k in weight.shape[2:]], [k // 2 for k in weight.shape[2:]]
        want = F.conv2d(F.pad(x, (left[1], right[1], left[0], right[0])), weight, groups=groups)
        ones = torch.ones(n[0], n[1] // 2 + 1)
        torch.testing.assert_close(masked_conv2d(x, weight, ones, groups=groups), want)
        want = sk.band_limited_conv2d(x, weight, compression=0.4, groups=groups)
        torch.testing.assert_close(masked_conv2d(x, weight, masks.rectangular(n, 0.4), groups=groups), want)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("padding", ["valid", 2, (0, 3)])
@pytest.mark.parametrize("grid", ["tight", "seed", "pow2", (17, 19)])
def test_every_padding_and_grid(impl: str, padding: object, grid: object, seed: int):
    x, weight = torch.randn(2, 3, 10, 9, dtype=torch.float64), torch.randn(4, 3, 5, 4, dtype=torch.float64)
    n = masks.fft_grid((10, 9), (5, 4), padding=padding, grid=grid)
    got = masked_conv2d(x, weight, torch.ones(n[0], n[1] // 2 + 1), padding=padding, grid=grid, impl=impl)
    torch.testing.assert_close(got, F.conv2d(x, weight, padding=0 if padding == "valid" else padding))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("sides", [(6, 7), (7, 6)])
def test_a_mask_that_splits_pairs_is_made_hermitian(impl: str, sides: tuple[int, int], seed: int):
    """Random masks of no symmetry: a float one acts as its mean over each pair, a bool one keeps a pair or drops it."""
    x, weight = torch.randn(2, 2, *sides, dtype=torch.float64), torch.randn(3, 2, 3, 3, dtype=torch.float64)
    n = masks.fft_grid(sides, (3, 3))
    weights = torch.randn(n[0], n[1] // 2 + 1, dtype=torch.float64)
    torch.testing.assert_close(masked_conv2d(x, weight, weights, impl=impl), truth(x, weight, weights))
    cells = weights > 0
    cells[1, 0] = ~cells[n[0] - 1, 0]
    want = truth(x, weight, masks.hermitian(cells, n))
    torch.testing.assert_close(masked_conv2d(x, weight, cells, impl=impl), want)
    assert relative(truth(x, weight, cells), want) > 1e-3


def test_parseval_of_the_output(seed: int):
    """With a unit impulse for a kernel the energy of y is that of the kept frequencies, counted with their mirrors."""
    x, weight = torch.randn(1, 1, 8, 9, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for mask in (masks.radial((8, 9), 0.4), masks.soft_window((8, 9), (2.0, 2.5), 2.0).double()):
        y = masked_conv2d(x, weight, mask)
        power = torch.fft.fft2(x).abs().square()[..., :5] * mask.double().square() / 72
        counted = torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0], dtype=torch.float64)
        torch.testing.assert_close(y.square().sum(), (power * counted).sum())


def test_one_mask_per_sample_is_one_call_per_sample(seed: int):
    x, weight = torch.randn(3, 2, 9, 8), torch.randn(4, 2, 3, 3)
    n = masks.fft_grid((9, 8), (3, 3))
    drawn = masks.cell_dropout(n, 0.5, samples=3)
    for impl in IMPLS:
        together = masked_conv2d(x, weight, drawn, impl=impl)
        alone = [masked_conv2d(x[i : i + 1], weight, drawn[i, 0], impl=impl) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_planted_faults_are_noticed(seed: int):
    """A mask applied to x and to w, a mirrored mask, and a transposed kernel give other answers."""
    x, weight = torch.randn(1, 2, 8, 9, dtype=torch.float64), torch.randn(3, 2, 3, 3, dtype=torch.float64)
    n = masks.fft_grid((8, 9), (3, 3))
    mask = masks.hermitian(torch.rand(n[0], n[1] // 2 + 1, dtype=torch.float64), n)
    right = masked_conv2d(x, weight, mask)
    assert relative(right, truth(x, weight, mask)) < 1e-13
    for wrong in (
        masked_conv2d(x, weight, mask.square()),
        masked_conv2d(x, weight, mask.flip(0).roll(1, 0)),
        masked_conv2d(x, weight.flip(-1, -2), mask),
    ):
        assert relative(wrong, right) > 1e-2


# --- transforms -----------------------------------------------------------------------------------------------------


def test_the_transforms_of_one_list_agree(seed: int):
    """Staircase, dense list and rectangle hold the same numbers, and synthesis is the transpose of analysis."""
    for n, size, start in (((8, 9), (5, 7), (0, 0)), ((7, 10), (7, 9), (-2, -3)), ((6, 6), (11, 2), (-5, 0))):
        planes = torch.randn(3, *size, dtype=torch.float64)
        for inverse in (False, True):
            where = (start, size, inverse, torch.float64, torch.device("cpu"))
            steps = ModeList(n, ((1, n[0] // 2 + 1), (1, 0), (n[1] // 2 - 1, 2)))
            stepped, listed = stepped_dft(n, steps.steps, *where), listed_dft(n, steps.indices, *where)
            modes = stepped.analyse(planes)
            assert modes.shape == (len(steps), 2, 3)
            torch.testing.assert_close(listed.analyse(planes), modes)
            box = every_mode(n)
            rectangle = stepped_dft(n, box.steps, *where).analyse(planes)
            position = {cell: i for i, cell in enumerate(box.indices)}
            torch.testing.assert_close(rectangle[[position[cell] for cell in steps.indices]], modes)
            other = torch.randn_like(modes)
            back = stepped.synthesise(other)
            torch.testing.assert_close((back * planes).sum(), (other * modes).sum())
            torch.testing.assert_close(listed.synthesise(other), back)


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("sides", [(6, 5), (4, 7)])
@pytest.mark.parametrize("samples", [None, 2])
def test_gradients_are_exact(groups: int, sides: tuple[int, int], samples: int | None, seed: int):
    """In x, weight and a float mask, at cells of zero weight too; against finite differences and the reference."""
    x = torch.randn(2, 4, *sides, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4 // groups, 3, 2, dtype=torch.float64, requires_grad=True)
    n = masks.fft_grid(sides, (3, 2))
    shape = (n[0], n[1] // 2 + 1) if samples is None else (samples, 1, n[0], n[1] // 2 + 1)
    mask = torch.randn(shape, dtype=torch.float64) * (torch.rand(shape) < 0.6)
    mask.requires_grad_()

    def convolve(*inputs: Tensor) -> Tensor:
        return masked_conv2d(*inputs, groups=groups, impl="dft_gemm")

    assert gradcheck(convolve, (x, weight, mask))
    wanted = torch.autograd.grad(truth(x, weight, mask, groups).sin().sum(), (x, weight, mask))
    for impl in IMPLS:
        y = masked_conv2d(x, weight, mask, groups=groups, impl=impl)
        for got, want in zip(torch.autograd.grad(y.sin().sum(), (x, weight, mask)), wanted, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["radial", "scattered", "frequency_dropout"])
@pytest.mark.parametrize("form", ["steps", "cells"])
def test_gradients_under_hard_masks(kind: str, form: str, seed: int):
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    n = masks.fft_grid((7, 6), (3, 3))
    mask = make_mask(kind, 0.6, n, 2, seed % 1000)
    modes = masks.mode_list(mask, n, form=form)
    assert gradcheck(lambda a, b: masked_conv2d(a, b, mask, modes=modes), (x, weight))
    for inputs in ((x, weight.detach()), (x.detach(), weight)):
        assert gradcheck(lambda a, b: masked_conv2d(a, b, mask, modes=modes), inputs)


@pytest.mark.parametrize("sides", [(12, 12), (11, 14)])
def test_gradients_of_strides_are_exact(sides: tuple[int, int], seed: int):
    """dL/dS through window and convolution, by finite differences, with every mode listed and with the window's."""
    x, weight = torch.randn(2, 2, *sides, dtype=torch.float64), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    n = masks.fft_grid(sides, (3, 3))
    strides = torch.tensor([1.83, 2.37], dtype=torch.float64, requires_grad=True)
    listed = masks.mode_list(masks.soft_window(n, strides, 3.0), n)
    assert len(listed) < len(every_mode(n))

    def loss(s: Tensor, modes: ModeList | None) -> Tensor:
        return masked_conv2d(x, weight, masks.soft_window(n, s, 3.0), modes=modes).square().sum()

    for modes in (None, listed):
        assert gradcheck(lambda s, m=modes: loss(s, m), (strides,))
        (got,) = torch.autograd.grad(loss(strides, modes), strides)
        (want,) = torch.autograd.grad(truth(x, weight, masks.soft_window(n, strides, 3.0)).square().sum(), strides)
        torch.testing.assert_close(got, want)
        assert bool((got < 0).all())


def test_backward_saves_the_listed_spectrum_the_weight_and_the_mask_only(seed: int):
    x = torch.randn(8, 16, 32, 32, requires_grad=True)
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    mask = masks.soft_window((33, 33), (2.0, 2.0), 2.0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        masked_conv2d(x, weight, mask, impl="dft_gemm")
    modes = masks.mode_list(mask, (33, 33))
    assert sum(saved.values()) == 8 * len(modes) * 8 * 16 + weight.nbytes + mask.nbytes
    assert sum(saved.values()) <= 0.6 * x.nbytes + weight.nbytes


# --- tensors of every sort ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLS)
def test_half_precision_maps_are_rounded_once(dtype: torch.dtype, impl: str, seed: int):
    x, weight = torch.randn(2, 8, 12, 12).to(dtype), (torch.randn(8, 8, 3, 3) / 8).to(dtype)
    mask = masks.soft_window((13, 13), (2.0, 2.0), 2.0)
    got = masked_conv2d(x, weight, mask, impl=impl)
    assert got.dtype == dtype
    assert relative(got, truth(x, weight, mask)) < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("form", ["steps", "cells"])
def test_strides_expansion_and_old_memory_do_not_matter(form: str, poisoned: None, seed: int):
    x = torch.randn(6, 9, 2, 4).permute(2, 3, 0, 1)
    weight = torch.randn(5, 1, 3, 3).expand(5, 4, 3, 3)
    n = masks.fft_grid((6, 9), (3, 3))
    ring = masks.ring(n, 4) & ~masks.ring(n, 2)
    mask = masks.hermitian(ring.t().contiguous().t(), n)
    modes = masks.mode_list(mask, n, form=form)
    got = masked_conv2d(x, weight, mask, modes=modes, impl="dft_gemm")
    want = masked_conv2d(x.contiguous(), weight.contiguous(), mask.contiguous(), modes=modes, impl="torch_fft")
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    shared = torch.randn(1, 4, 6, 9).expand(3, 4, 6, 9)
    assert torch.isfinite(masked_conv2d(shared, weight, mask[None, None].expand(3, 1, *mask.shape))).all()


@pytest.mark.parametrize("impl", [*IMPLS, "auto"])
def test_an_empty_batch_gives_an_empty_answer_and_zero_gradients(impl: str, seed: int):
    x, weight = torch.randn(0, 4, 7, 6, requires_grad=True), torch.randn(5, 4, 3, 3, requires_grad=True)
    y = masked_conv2d(x, weight, masks.radial((8, 7), 0.5), impl=impl)
    assert y.shape == (0, 5, 7, 6)
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape and bool((dw == 0).all())


def test_a_mask_of_zeros_gives_zeros():
    for impl in IMPLS:
        y = masked_conv2d(torch.ones(1, 2, 6, 6), torch.ones(3, 2, 3, 3), torch.zeros(7, 4), impl=impl)
        assert y.shape == (1, 3, 6, 6) and bool((y == 0).all())


# --- tracing --------------------------------------------------------------------------------------------------------


@pytest.mark.drawn
@pytest.mark.slow
@pytest.mark.parametrize("samples", [None, 2])
@pytest.mark.parametrize("form", ["steps", "cells"])
def test_operators_pass_opcheck(samples: int | None, form: str, seed: int):
    x, weight = torch.randn(2, 4, 7, 6, requires_grad=True), torch.randn(8, 2, 3, 3, requires_grad=True)
    mask = masks.soft_window((8, 7), (2.0, 2.0), 2.0)
    mask = mask.clone().requires_grad_() if samples is None else mask.repeat(2, 1, 1, 1).requires_grad_()
    modes = masks.mode_list(mask, (8, 7), form=form)
    layout = [number for pair in (modes.cells or modes.steps) for number in pair]
    where = (2, [8, 7], layout, form == "cells")
    ops = torch.ops.spectralkernels
    bias = torch.randn(8, requires_grad=True)
    arguments = (x, weight, mask, bias, [-1, -1], 8, *where, [7, 6])
    opcheck(ops.masked_conv2d.default, arguments)
    y, z = ops.masked_conv2d(*arguments)
    for need in ([1, 1, 1], [1, 0, 0], [0, 1, 0]):
        saved = (y.detach(), z.detach(), weight.detach(), mask.detach())
        opcheck(ops.masked_conv2d_backward.default, (*saved, [-1, -1], *where, [4, 7, 6], need))


@pytest.mark.slow
@pytest.mark.parametrize("listed", [True, False])
def test_it_compiles_whole(listed: bool, seed: int):
    n = masks.fft_grid((9, 8), (3, 3))
    strides = torch.tensor([1.9, 2.1], requires_grad=True)
    modes = masks.mode_list(masks.soft_window(n, strides, 2.0), n) if listed else None

    def layer(x: Tensor, weight: Tensor, strides: Tensor) -> Tensor:
        return masked_conv2d(x, weight, masks.soft_window(n, strides, 2.0), modes=modes).relu()

    x, weight = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(8, 4, 3, 3, requires_grad=True)
    eager = layer(x, weight, strides)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, weight, strides)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)
    inputs = (x, weight, strides)
    for got, want in zip(*(torch.autograd.grad(y.sum(), inputs) for y in (compiled, eager)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


# --- declaration and arguments --------------------------------------------------------------------------------------


def test_the_floor_is_below_what_is_computed():
    for case, _ in OPERATION.cases("smoke"):
        inputs = OPERATION.make_inputs(case, "cpu")
        whole = masks.rectangular(inputs["band"].n, 0.0).numel()
        assert 1 <= len(inputs["modes"]) <= whole
        kept = OPERATION.observe(case, torch.empty(0))["kept_fraction"]
        assert 0 < kept <= 1
        product = 8 * case["batch"] * case["in_channels"] * case["out_channels"] * len(inputs["modes"])
        assert OPERATION.cost(case).flops < product + 10**7


X, W, M = torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3), torch.ones(9, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X[0, 0], W, M), {}, sk.ShapeError, r"x must have 4 dimensions \[batch, channel, height, width\]"),
        ((X, W[0], M), {}, sk.ShapeError, r"weight must have 4 dimensions"),
        ((X.int(), W, M), {}, sk.DtypeError, "x must be one of float32"),
        ((X, W.double(), M), {}, sk.DtypeError, "weight must have the dtype of x"),
        ((X, W, M), {"groups": 3}, sk.ShapeError, "groups=3 must divide the 4 channels"),
        ((X, W, M.int()), {}, sk.DtypeError, r"mask must be bool or floating point, got torch.int32"),
        ((X, W, M + 0j), {}, sk.DtypeError, r"mask must be bool or floating point, got torch.complex64"),
        ((X, W, M.to("meta")), {}, sk.DtypeError, r"mask must be on the device of x \(cpu\), got meta"),
        ((X, W, M[0]), {}, sk.ShapeError, r"mask must be \[N_h, N_w // 2 \+ 1\] or \[2, 1, .*got \[5\]"),
        ((X, W, M.expand(3, 1, 9, 5)), {}, sk.ShapeError, r"one per sample, got \[3, 1, 9, 5\]"),
        ((X, W, M.expand(2, 4, 9, 5)), {}, sk.ShapeError, r"one per sample, got \[2, 4, 9, 5\]"),
        (
            (X, W, torch.ones(8, 5)),
            {},
            sk.ShapeError,
            r"mask must end in \[9, 5\], the half spectrum of the grid \(9, 9\), got \[8, 5\]; make it for n=\(9, 9\)",
        ),
        ((X, W, M), {"modes": every_mode((8, 9))}, sk.ShapeError, r"modes must be listed on the grid \(9, 9\)"),
        ((X, W, M), {"padding": "full"}, sk.RangeError, "padding must be 'same', 'valid' or a number"),
        ((X, W, M), {"grid": 8}, sk.RangeError, r"grid \(8, 8\) wraps around"),
        ((X, W, M), {"impl": "cudnn"}, sk.RangeError, "no implementation 'cudnn'; known: dft_gemm, .*torch_fft"),
    ],
)
def test_bad_arguments_are_answered(arguments: tuple, options: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        masked_conv2d(*arguments, **options)


def test_unknown_kind_is_answered():
    with pytest.raises(sk.RangeError, match="unknown mask kind 'hexagonal'; known: rectangular, energy_code"):
        make_mask("hexagonal", 0.5, (8, 8), 1, 0)
