"""Rivals at their best: torch.fft on a size that FFT libraries like, and the answer that each is checked against."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from effort import draws
from torch import Tensor

import spectralkernels as sk
from spectralkernels.convolution import baselines, direct, library
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.ops.band_limited_conv1d import OPERATION as SERIES
from spectralkernels.ops.band_limited_conv2d import OPERATION as MAPS
from spectralkernels.spectra import Band

FAST, FAST_BAND = MAPS.subject("torch_fft_fast"), MAPS.subject("torch_fft_fast_band")


def relative(got: Tensor, want: Tensor) -> float:
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def random_call(draw: random.Random, compression: float, dtype: torch.dtype) -> dict[str, object]:
    """A convolution of maps or series with odd, even, prime and size-1 lengths, any padding, grid and grouping."""
    axes = draw.choice((1, 2))
    size = tuple(draw.choice((1, 2, 5, 7, 9, 12, 13)) for _ in range(axes))
    kernel = tuple(draw.choice((1, 2, 3, 4, 7, 11)) for _ in range(axes))
    fits = all(k <= h for k, h in zip(kernel, size, strict=True))
    padding = draw.choice(("same", 11, "valid" if fits else "same"))
    groups, per_group, out_per_group = draw.choice((1, 2, 3)), draw.choice((1, 2)), draw.choice((1, 2))
    grid = draw.choice(("tight", "tight", "seed", "pow2"))
    band = conv_band(size, kernel, compression=compression, padding=padding, grid=grid)
    return {
        "x": torch.randn(draw.choice((1, 3)), groups * per_group, *size, dtype=torch.float64).to(dtype),
        "weight": torch.randn(groups * out_per_group, per_group, *kernel, dtype=torch.float64).to(dtype),
        "bias": torch.randn(groups * out_per_group, dtype=torch.float64).to(dtype) if draw.random() < 0.5 else None,
        "band": band,
        "groups": groups,
    }


def on_fast_grid(call: dict) -> tuple[Band, Band]:
    """The band of a call, and that of the same call on grid "fast", by the front door."""
    band = call["band"]
    padding = "same" if band.pad == conv_band(band.size, band.kernel, compression=0.0).pad else band.pad[0][0]
    return band, conv_band(band.size, band.kernel, compression=band.compression, padding=padding, grid="fast")


def test_the_fast_band_is_that_of_grid_fast_and_seven_smooth(seed: int):
    draw = random.Random(seed)
    for _ in draws(40):
        band, fast = on_fast_grid(random_call(draw, draw.choice((0.0, 0.3, 0.8)), torch.float64))
        assert baselines.fast_band(band) == fast
        assert all(210**10 % n == 0 for n in fast.n)
        reason = baselines.fast_grid_differs(band=band)
        assert (reason is None) == (band.n != fast.n)


def test_without_a_band_limit_the_fast_size_has_the_same_answer_and_gradients(seed: int):
    draw = random.Random(seed)
    for _ in draws(25):
        call = random_call(draw, 0.0, torch.float64)
        leaves = [call[name].requires_grad_() for name in ("x", "weight", "bias") if call[name] is not None]
        want, got = baselines.reference(**call), FAST.call(**call)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
        cotangent = torch.randn_like(want)
        for left, right in zip(
            torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(want, leaves, cotangent), strict=True
        ):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_with_a_band_limit_it_is_the_operation_on_grid_fast_and_no_other(dtype: torch.dtype, seed: int):
    draw = random.Random(seed)
    allowed = MAPS.tolerance.relative[str(dtype).removeprefix("torch.")]
    differed = 0
    for _ in draws(12):
        call = random_call(draw, draw.choice((0.3, 0.6)), dtype)
        leaves = [call[name].requires_grad_() for name in ("x", "weight", "bias") if call[name] is not None]
        band, fast = on_fast_grid(call)
        want = baselines.reference(**{**call, "band": fast})
        got = FAST_BAND.call(**call)
        assert got.dtype == dtype
        assert relative(got, want) <= allowed
        torch.testing.assert_close(MAPS.reference_of(FAST_BAND)(**call), want)
        if band.n != fast.n and math.prod(band.out) > 1:
            differed += relative(baselines.reference(**call), want) > 1e-6
        cotangent = torch.randn_like(want)
        found = torch.autograd.grad(got, leaves, cotangent.to(dtype))
        for left, right in zip(found, torch.autograd.grad(want, leaves, cotangent.to(dtype).double()), strict=True):
            assert relative(left, right) <= 4 * allowed
    assert differed, "another N is another operator"


@pytest.mark.parametrize("operation", [MAPS, SERIES], ids=lambda found: found.name)
def test_who_serves_which_call(operation):
    """One of the two at each compression, and neither where N is fast already."""
    axes = 2 if operation is MAPS else 1
    x, weight = torch.randn(1, 2, *(32,) * axes), torch.randn(2, 2, *(31,) * axes)

    def reasons(compression: float, grid: str) -> tuple[str | None, str | None]:
        band = conv_band((32,) * axes, (31,) * axes, compression=compression, grid=grid)
        call = {"x": x, "weight": weight, "bias": None, "band": band, "groups": 1}
        return tuple(operation.subject(name).supports(**call) for name in ("torch_fft_fast", "torch_fft_fast_band"))

    assert reasons(0.0, "tight") == (None, "at compression 0 it is an implementation, not a rival")
    assert reasons(0.5, "tight") == ("above compression 0 another N is another operator; there it is a rival", None)
    assert (
        reasons(0.0, "fast")[0]
        == "N is that of grid 'fast' already: there it is `torch_fft`"
        == reasons(0.5, "fast")[1]
    )
    timed = {name for _, block in operation.cases("study") for name in block.implementations or ()}
    assert {"torch_fft", "torch_fft_fast", "torch_fft_fast_band"} <= timed


def test_nobody_is_dispatched_to_a_rival_and_its_tensor_weights_only():
    x, weight = torch.randn(1, 1, 32, 32), torch.randn(1, 1, 31, 31)
    with pytest.raises(sk.RangeError, match="torch_fft_fast_band"):
        sk.band_limited_conv2d(x, weight, compression=0.5, impl="torch_fft_fast_band")
    with pytest.raises(sk.Unsupported, match="another N is another operator"):
        sk.band_limited_conv2d(x, weight, compression=0.5, impl="torch_fft_fast")
    frozen = sk.weight_spectrum(weight, (32, 32))
    with pytest.raises(sk.Unsupported, match="not a WeightSpectrum"):
        sk.band_limited_conv2d(x, frozen, impl="torch_fft_fast")


# --- layouts of the library convolution ------------------------------------------------------------------------------


def laid_out(draw: random.Random, shape: tuple[int, ...]) -> Tensor:
    """The same kind of numbers contiguous, channels_last, transposed, cut out of a larger map or expanded."""
    kind = draw.choice(("contiguous", "channels_last", "transposed", "cut", "expanded"))
    if kind == "channels_last" and len(shape) == 4:
        return torch.randn(shape).contiguous(memory_format=torch.channels_last)
    if kind == "transposed":
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).mT
    if kind == "cut":
        return torch.randn(*shape[:-1], shape[-1] + 3)[..., 1:-2]
    return torch.randn(1, *shape[1:]).expand(shape) if kind == "expanded" else torch.randn(shape)


def test_direct_gives_the_answer_the_layout_and_the_gradients_of_conv2d(seed: int):
    """Wide kernels of groups take channels_last and come back, whatever the layout of the maps."""
    draw = random.Random(seed)
    ways = 0
    for _ in draws(25):
        axes, groups, per_group = draw.choice((1, 2, 2)), draw.choice((1, 3, 4)), draw.choice((1, 1, 2))
        size = tuple(draw.choice((1, 7, 12)) for _ in range(axes))
        kernel = (*(draw.choice((1, 4)) for _ in range(axes - 1)), draw.choice((3, 9, 10, 11, 13)))
        x = laid_out(draw, (draw.choice((1, 2)), groups * per_group, *size))
        weight = laid_out(draw, (groups * 2, per_group, *kernel))
        bias = draw.choice((None, torch.randn(groups * 2)))
        band = conv_band(size, kernel, compression=0.0, padding=draw.choice(("same", 13)))
        if axes == 2 and all(before == after for before, after in band.pad):
            sides = tuple(before for before, _ in band.pad)
            plain = F.conv2d(x, weight, bias, padding=sides, groups=groups)
            got = direct.direct(x, weight, bias, band, groups)
            for layout in (torch.contiguous_format, torch.channels_last):
                assert got.is_contiguous(memory_format=layout) == plain.is_contiguous(memory_format=layout)
        ways += library.channels_last_pays(x, weight, groups)
        leaves = [tensor.detach().requires_grad_() for tensor in (x, weight)]
        exact = [tensor.double().detach().requires_grad_() for tensor in (x, weight)]
        got = direct.direct(*leaves, bias, band, groups)
        want = baselines.reference(*exact, bias, band, groups)
        assert relative(got, want) < 1e-6
        cotangent = torch.randn_like(got)
        for left, right in zip(
            torch.autograd.grad(got, leaves, cotangent),
            torch.autograd.grad(want, exact, cotangent.double()),
            strict=True,
        ):
            assert relative(left, right) < 4e-6
    assert ways, "some calls go by way of channels_last"


def test_where_the_way_round_pays():
    def pays(groups: int, width: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> bool:
        x = torch.empty(1, 12, 8, 8, dtype=dtype, device=device)
        return library.channels_last_pays(
            x, torch.empty(12, 12 // groups, 1, width, dtype=dtype, device=device), groups
        )

    assert pays(12, 10) and pays(3, 31)
    assert not any((pays(12, 9), pays(1, 31), pays(12, 31, torch.float64), pays(12, 31, torch.bfloat16)))
    assert not pays(12, 31, device="meta")


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 18])
@pytest.mark.parametrize("shape", [(2, 18, 41), (2, 18, 9, 16)])
def test_zeros_beforehand_change_no_sum(short: bool, groups: int, shape: tuple[int, ...], seed: int, monkeypatch):
    """Whatever registers a machine has: by its pad, beforehand, and where there is a gradient."""
    monkeypatch.setattr(library, "SHORT_REGISTERS", short)
    x, weight, bias = torch.randn(shape), torch.randn(18, 18 // groups, *(3, 21)[4 - len(shape) :]), torch.randn(18)
    padding = (1, 10)[4 - len(shape) :]
    assert library.zeros_first_pay(x, weight)
    assert library.lays_zeros_first(18, groups, shape[-1], 10) == (short or groups == 1)
    want = library.convolve(x.double(), weight.double(), bias.double(), padding, groups)
    for given in (x, x.clone().requires_grad_()):
        found = library.convolve_in_best_layout(given, weight, bias, padding, groups)
        assert found.is_contiguous() and relative(found, want) < 1e-6
        assert library.zeros_first_pay(given, weight) == (not given.requires_grad)
    assert not library.zeros_first_pay(x.double(), weight.double())
    assert not library.zeros_first_pay(x.to("meta"), weight)


def test_a_library_with_long_registers_has_kernels_for_few_channels_short_rows_and_few_zeros(monkeypatch):
    monkeypatch.setattr(library, "SHORT_REGISTERS", False)
    assert library.lays_zeros_first(16, 1, 15, 10)
    for call in ((15, 1, 15, 10), (16, 1, 14, 10), (16, 1, 15, 9), (16, 2, 15, 10)):
        assert not library.lays_zeros_first(*call)
    monkeypatch.setattr(library, "SHORT_REGISTERS", True)
    assert library.lays_zeros_first(1, 1, 4, 4) and not library.lays_zeros_first(16, 1, 15, 3)


# Shapes of x and weight, padding and groups of calls whose gradients are convolutions.
BY_CONVOLUTION = (
    ((2, 3, 8, 23), (4, 3, 2, 17), (1, 8), 1),
    ((3, 4, 9, 16), (4, 4, 3, 14), (0, 0), 1),
    ((1, 2, 5, 11), (2, 2, 11, 5), (7, 4), 1),
    ((2, 5, 7, 6), (5, 1, 4, 5), (2, 2), 5),
    ((2, 6, 5, 13), (4, 3, 3, 12), (1, 6), 2),
    ((2, 3, 31), (4, 3, 19), (9,), 1),
    ((3, 4, 1), (4, 1, 4), (3,), 4),
    ((18, 3, 4, 5), (2, 3, 3, 15), (9, 7), 1),
)


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "groups", "layout"),
    [(*call, torch.contiguous_format) for call in BY_CONVOLUTION]
    + [(*call, torch.channels_last) for call in BY_CONVOLUTION[1:2]],
)
@pytest.mark.parametrize("terms", [1024, 7])
def test_gradients_that_are_convolutions_are_those_of_the_library(
    size, kernel, padding, groups, layout, terms, seed, monkeypatch
):
    """First, second and forward derivatives and batches of cotangents, against float64 by the library's own way.

    terms: in one piece of a sum.
    """
    monkeypatch.setattr(library, "SHORT_REGISTERS", True)
    monkeypatch.setattr(library, "MOST_TERMS", terms)
    x, weight, bias = torch.randn(size).contiguous(memory_format=layout), torch.randn(kernel), torch.randn(kernel[0])
    leaves = [each.clone().requires_grad_() for each in (x, weight, bias)]
    exact = [each.double().requires_grad_() for each in (x, weight, bias)]
    assert library.gradients_pay(*leaves[:2], padding, groups)
    assert not library.gradients_pay(*exact[:2], padding, groups) and not library.gradients_pay(
        x, weight, padding, groups
    )
    found = library.convolve_in_best_layout(*leaves, padding, groups)
    want = library.convolve(*exact, padding, groups)
    assert found.is_contiguous(memory_format=layout) and relative(found, want) < 1e-6
    cotangents = torch.randn(2, *want.shape)
    firsts = []
    for y, given in ((found, leaves), (want, exact)):
        firsts.append(torch.autograd.grad(y, given, cotangents[0].to(y.dtype), create_graph=True))
    for left, right in zip(*firsts, strict=True):
        assert relative(left, right) < 4e-6
    seconds = [
        torch.autograd.grad([each.square().sum() for each in first[:2]], given[:2])
        for first, given in zip(firsts, (leaves, exact), strict=True)
    ]
    for left, right in zip(*seconds, strict=True):
        assert relative(left, right) < 2e-5
    again = library.convolve_in_best_layout(*leaves, padding, groups)
    with torch.autocast("cpu", torch.bfloat16):
        for left, right in zip(torch.autograd.grad(again, leaves, cotangents[0]), firsts[1], strict=True):
            assert left.dtype == torch.float32 and relative(left, right) < 4e-6
    for wanted in ((0,), (1,)):  # a gradient of one alone, of two cotangents at once
        batched = [
            torch.autograd.grad(
                library.convolve_in_best_layout(*given, padding, groups),
                [given[index] for index in wanted],
                cotangents.to(given[0].dtype),
                is_grads_batched=True,
            )
            for given in (leaves, exact)
        ]
        assert relative(batched[0][0], batched[1][0]) < 4e-6
    with torch.autograd.forward_ad.dual_level():
        tangents = [torch.randn_like(each) for each in (x, weight)]
        made = [
            library.convolve_in_best_layout(
                *(
                    torch.autograd.forward_ad.make_dual(each, tangent.to(each.dtype))
                    for each, tangent in zip(given[:2], tangents, strict=True)
                ),
                None,
                padding,
                groups,
            )
            for given in (leaves, exact)
        ]
        left, right = (torch.autograd.forward_ad.unpack_dual(each).tangent for each in made)
        assert relative(left, right) < 4e-6


@pytest.mark.parametrize(("size", "groups", "width"), [((8, 2, 32, 32), 1, 15), ((2, 3, 56, 56), 3, 31)])
def test_gradients_of_long_sums_are_nearly_as_exact_as_of_short_ones(size, groups, width, seed, monkeypatch):
    """8192 and 3136 terms: added in one register without AVX-512 they are 1.4e-6 and 9e-7 off."""
    monkeypatch.setattr(library, "SHORT_REGISTERS", True)
    x, weight = torch.randn(size), torch.randn(3, size[1] // groups, width, width)
    want, got = [], []
    for found, dtype in ((want, torch.float64), (got, torch.float32)):
        leaves = [each.to(dtype).requires_grad_() for each in (x, weight)]
        y = library.convolve_in_best_layout(*leaves, None, (width // 2,) * 2, groups)
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        found += torch.autograd.grad(y, leaves[1:], cotangent)
    assert relative(got[0], want[0]) < 7e-7


def test_the_library_differentiates_what_it_is_fast_for(monkeypatch):
    monkeypatch.setattr(library, "SHORT_REGISTERS", True)

    def pays(kernel: tuple[int, ...], padding: tuple[int, ...], groups: int = 1, **options: object) -> bool:
        x = torch.randn(1, kernel[1] * groups, *(20 for _ in padding), **options)
        return library.gradients_pay(x, torch.randn(kernel, requires_grad=True, **options), padding, groups)

    assert not pays((2, 2, 7, 7), (3, 3)) and pays((2, 2, 9, 9), (4, 4))
    assert not pays((2, 2, 9, 8), (3, 0)) and pays((2, 2, 8, 9), (3, 0))
    assert not pays((4, 1, 3, 3), (1, 1), 4) and pays((4, 1, 5, 5), (2, 2), 4)
    assert not pays((4, 2, 7, 7), (3, 3), 2) and pays((4, 2, 7, 10), (3, 3), 2)
    assert not pays((2, 2, 9), (4,)) and pays((2, 2, 17), (8,))
    assert not pays((2, 2, 31, 31), (15, 15), dtype=torch.float64)
    assert not pays((2, 2, 31, 31), (15, 15), device="meta")
    empty, weight = torch.empty(0, 2, 20, 20, requires_grad=True), torch.randn(2, 1, 31, 31, requires_grad=True)
    y = library.convolve_in_best_layout(empty, weight, None, (15, 15), 2)
    dx, dw = torch.autograd.grad(y.sum(), (empty, weight))
    assert dx.shape == empty.shape and torch.equal(dw, torch.zeros_like(weight))
    monkeypatch.setattr(library, "SHORT_REGISTERS", False)
    assert not pays((2, 2, 31, 31), (15, 15))


@pytest.mark.parametrize("name", ["converted", "bf16"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_other_ways_of_the_library_are_right_in_their_class_and_keep_the_dtype(name: str, groups: int, seed: int):
    subject = MAPS.subject(f"direct_{name}")
    tolerance = (subject.tolerance or MAPS.tolerance).relative["float32"]
    x, weight = torch.randn(2, 6, 9, 7), torch.randn(12, 6 // groups, 4, 3)
    call = {"bias": torch.randn(12), "band": conv_band((9, 7), (4, 3), compression=0.0), "groups": groups}
    want = baselines.reference(x, weight, **call)
    got = subject.call(x, weight, **call)
    assert got.dtype == torch.float32 and got.shape == want.shape
    assert relative(got, want) < tolerance
    if subject.prepare:
        prepared = subject.prepare(x, weight, **call)
        assert subject.supports(**prepared) is None
        assert prepared["x"].dtype == subject.call(**prepared).dtype == torch.bfloat16
        assert relative(subject.call(**prepared), want) < tolerance
        wide = subject.prepare(x.double(), weight.double(), **call)
        assert subject.supports(**wide) == "it rounds float32 maps to bfloat16, got float64"


def test_where_the_other_ways_run(monkeypatch: pytest.MonkeyPatch):
    assert MAPS.subject("direct_uncompressed_converted").available("cuda") is not None
    bf16 = MAPS.subject("direct_uncompressed_bf16")
    assert bf16.available("cuda") == "on a GPU bfloat16 maps are cases of their own"
    for amx, avx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert (bf16.available("cpu") is None) == (amx or avx)


def test_every_claim_races_every_layout():
    for profile in ("claims", "study"):
        for case, block in MAPS.cases(profile):
            raced = block.implementations or tuple(subject.name for subject in MAPS.subjects)
            if "direct_uncompressed" in raced:
                ways = {f"direct_uncompressed_{way}" for way in ("channels_last", "converted", "bf16")}
                assert ways <= set(raced), case.id
