"""Band-limited convolution with a stride (M45) or a dilation: every s-th sample, zeros between taps, by every way."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from effort import draws, gradcheck, gradgradcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels.convolution.dft_native import build
from spectralkernels.ops import band_limited_conv1d, strided_conv1d, strided_conv2d

OPERATIONS = {1: sk.band_limited_conv1d, 2: sk.band_limited_conv2d}
STRIDED = {1: strided_conv1d.strided_conv1d, 2: strided_conv2d.strided_conv2d}
IMPLS = ("dft_native", "dft_gemm", "subsample", "torch_fft", "alias_fold")


def spread(weight: Tensor, dilation: tuple[int, ...]) -> Tensor:
    """The kernel with zeros between its taps, an axis at a time."""
    for axis, step in enumerate(dilation, start=2):
        taps = weight.unbind(axis)
        zeros = torch.zeros_like(taps[0])
        weight = torch.stack(
            [each for tap in taps for each in (tap, *[zeros] * (step - 1))][: step * (len(taps) - 1) + 1], axis
        )
    return weight


def problem(draw: random.Random, axes: int) -> tuple[Tensor, Tensor, Tensor, dict]:
    """Channels lie in lanes, or 9 groups do."""
    groups = draw.choice((1, 2, 9))
    stride, dilation = ([draw.randint(1, 4) for _ in range(axes)] for _ in range(2))
    side = [draw.choice((1, 2, 3, 5, 7, 8, 11, 12)) for _ in range(axes)]
    kernel = [draw.choice((1, 2, 3, 4, 5, 10)) for _ in range(axes)]
    x = torch.randn(2, 2 * groups, *side, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3 * groups, 2, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3 * groups, dtype=torch.float64, requires_grad=True)
    padding = draw.choice(("same", [far // 2 for far in kernel], "causal" if axes == 1 else 3))
    return x, weight, bias, {"groups": groups, "stride": stride, "dilation": dilation, "padding": padding}


@pytest.mark.parametrize("axes", [1, 2])
def test_m45_every_sth_sample_of_the_spread_kernel_and_its_gradients(axes: int, seed: int):
    draw = random.Random(seed)
    for _ in draws(16):
        x, weight, bias, options = problem(draw, axes)
        steps = tuple(slice(None, None, step) for step in options["stride"])
        geometry = {"groups": options["groups"], "padding": options["padding"]}
        for compression in (0.0, 0.5):
            wide = spread(weight, tuple(options["dilation"]))
            try:
                whole = OPERATIONS[axes](x, wide, bias, **geometry, compression=compression, impl="torch_fft")
            except sk.ShapeError:
                with pytest.raises(sk.ShapeError, match="is larger than the padded map"):
                    STRIDED[axes](x, weight, bias, compression=compression, **options)
                continue
            want = whole[(..., *steps)]
            dy = torch.randn_like(want)
            gradients = torch.autograd.grad(want, (x, weight, bias), dy)
            for impl in IMPLS:
                try:
                    got = STRIDED[axes](x, weight, bias, compression=compression, impl=impl, **options)
                except sk.Unsupported:
                    assert impl == "alias_fold"
                    continue
                assert got.is_contiguous()
                found = (got, *torch.autograd.grad(got, (x, weight, bias), dy))
                for one, wanted in zip(found, (want, *gradients), strict=True):
                    torch.testing.assert_close(one, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("impl", ["dft_native", "dft_gemm", "direct"])
@pytest.mark.parametrize("dilation", [1, 2, (3, 1)])
@pytest.mark.parametrize("stride", [1, (2, 3)])
def test_without_compression_it_is_torchs(impl: str, dilation, stride, seed: int):
    x, weight = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(4, 3, 3, 5, dtype=torch.float64)
    got = STRIDED[2](x, weight, stride=stride, dilation=dilation, padding=(2, 6), impl=impl)
    torch.testing.assert_close(got, F.conv2d(x, weight, stride=stride, padding=(2, 6), dilation=dilation))
    series, taps, step = x[:, :, 0], weight[:, :, 0], dilation if isinstance(dilation, int) else 3
    causal = STRIDED[1](series, taps, stride=2, dilation=step, padding="causal", impl=impl)
    torch.testing.assert_close(causal, F.conv1d(F.pad(series, (4 * step, 0)), taps, stride=2, dilation=step))
    same = STRIDED[1](series, taps, dilation=step, impl=impl)
    torch.testing.assert_close(same, F.conv1d(series, taps, dilation=step, padding="same"))


@pytest.mark.parametrize("kernel", [1, 4, 19])
def test_causal_series_see_nothing_of_what_comes_after(kernel: int, seed: int):
    x, weight = torch.randn(2, 3, 13), torch.randn(6, 3, kernel)
    want, served = F.conv1d(F.pad(x, (kernel - 1, 0)), weight), set()
    for found in band_limited_conv1d.OPERATION.implementations:
        if found.available("cpu") or found.compiled:
            continue
        given = sk.weight_spectrum(weight, (13,), padding="causal") if found.frozen else weight
        try:
            y = sk.band_limited_conv1d(x, given, padding="causal", impl=found.name)
        except sk.Unsupported:
            continue
        served.add(found.name)
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
    leaves = [each.double().requires_grad_() for each in (x, weight)]
    for compression in (0.0, 0.5):
        found = []
        for impl in ("torch_fft", "dft_native", "dft_gemm"):
            y = sk.band_limited_conv1d(*leaves, padding="causal", compression=compression, impl=impl)
            found.append((y, *torch.autograd.grad(y.sin().sum(), leaves)))
        for other in found[1:]:
            torch.testing.assert_close(other, found[0])
    later = x.clone()
    later[..., 8:] = 0
    for compression in (0.0, 0.5):  # a band limit rings to both sides
        moved = sk.band_limited_conv1d(x, weight, padding="causal", compression=compression)
        moved = moved - sk.band_limited_conv1d(later, weight, padding="causal", compression=compression)
        assert (moved[..., :8].abs().max() > 1e-3) == (compression > 0.0)
    assert served >= {"dft_native", "dft_native_frozen", "dft_gemm", "dft_gemm_frozen", "direct", "torch_fft"}


def test_a_planted_fault_in_the_centre_is_seen(seed: int, monkeypatch: pytest.MonkeyPatch):
    from spectralkernels.convolution.dft_native import ends

    x, weight = torch.randn(1, 2, 8, dtype=torch.float64), torch.randn(2, 2, 3, dtype=torch.float64)
    want = F.conv1d(x, weight, stride=2, padding=1)
    torch.testing.assert_close(STRIDED[1](x, weight, stride=2, impl="dft_native"), want)
    monkeypatch.setattr(ends, "_ends", ends._ends.__wrapped__)  # type: ignore[attr-defined]  # remembers nothing
    monkeypatch.setattr(ends, "zeros_of", lambda *sides: ((0, 0),))
    assert (STRIDED[1](x, weight, stride=2, impl="dft_native") - want).abs().max() > 0.1


@pytest.mark.parametrize("impl", IMPLS)
def test_the_fold_where_the_stride_divides_the_grid(impl: str, seed: int):
    x, weight = torch.randn(1, 2, 8, 11, dtype=torch.float64), torch.randn(2, 2, 5, 3, dtype=torch.float64)
    options = {"stride": (2, 3), "grid": (12, 12), "compression": 0.3}
    want = sk.band_limited_conv2d(x, weight, grid=(12, 12), compression=0.3)[..., ::2, ::3]
    torch.testing.assert_close(sk.band_limited_conv2d(x, weight, impl=impl, **options), want)


@pytest.mark.parametrize("impl", ["dft_native", "dft_gemm"])
@pytest.mark.parametrize("size", [(6, 5), (3, 3)])  # the second has a dense transform
def test_derivatives_of_every_order_and_mode(impl: str, size: tuple[int, int], seed: int):
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 1, 3, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def convolve(*inputs: Tensor) -> Tensor:
        return sk.band_limited_conv2d(*inputs, stride=2, dilation=(1, 2), groups=2, grid=8, compression=0.4, impl=impl)

    assert gradcheck(convolve, (x, weight, bias), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(convolve, (x, weight, bias), fast_mode=True)
    weight.requires_grad_(False)
    assert gradgradcheck(lambda x: convolve(x, weight, bias.detach()).sin(), (x,), fast_mode=True)


def test_half_types_autocast_and_strided_inputs(seed: int):
    x, weight = torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3)
    want = sk.band_limited_conv2d(x, weight, stride=2, compression=0.5)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(sk.band_limited_conv2d(channels_last, weight, stride=2, compression=0.5), want)
    expanded = x[:, :1].expand(2, 4, 9, 8)
    torch.testing.assert_close(
        sk.band_limited_conv2d(expanded, weight, stride=2, compression=0.5),
        sk.band_limited_conv2d(expanded.contiguous(), weight, stride=2, compression=0.5),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = sk.band_limited_conv2d(x, weight, stride=2, compression=0.5)
    assert lowered.dtype == torch.bfloat16
    torch.testing.assert_close(lowered.float(), want, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("impl", [*IMPLS, "direct", "auto"])
def test_an_empty_batch_and_a_stride_past_the_map(impl: str, seed: int):
    x, weight = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)
    options = {"stride": 4, "grid": 12, "compression": 0.0 if impl == "direct" else 0.5, "impl": impl}
    empty = sk.band_limited_conv2d(x[:0], weight, **options)
    assert empty.shape == (0, 6, 3, 2)
    assert torch.autograd.grad(empty.sum(), weight)[0].abs().max() == 0.0
    if impl != "alias_fold":
        far = sk.band_limited_conv2d(x, weight, **{**options, "stride": 1000})
        torch.testing.assert_close(far, sk.band_limited_conv2d(x, weight, **options)[..., :1, :1], rtol=1e-4, atol=1e-4)
        assert torch.autograd.grad(far.sum(), x)[0].shape == x.shape


def test_it_compiles_whole_and_its_operators_are_well_formed(seed: int):
    x, weight = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return sk.band_limited_conv2d(x, weight, stride=2, dilation=(1, 2), compression=0.5).relu()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), run(x, weight))
    wanted = torch.autograd.grad(run(x, weight).sum(), (x, weight))
    for got, want in zip(torch.autograd.grad(compiled(x, weight).sum(), (x, weight)), wanted, strict=True):
        torch.testing.assert_close(got, want)
    arguments = (x, weight, None, [-1, -1], 1, [10, 9], [3, 3], [5, 4], [2, 2], [1, 1])
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    operators = torch.ops.spectralkernels
    torch.library.opcheck(operators.strided_dft_gemm_conv.default, arguments, test_utils=checks)
    torch.library.opcheck(operators.dft_native_conv.default, (*arguments, True, None, []), test_utils=checks)


def test_what_auto_takes_and_how_it_is_explained(seed: int):
    x, weight = torch.randn(1, 4, 16, 16), torch.randn(4, 4, 3, 3)
    told = sk.explain(sk.band_limited_conv2d, x, weight, stride=2, compression=0.5)
    assert (told.operation, told.chosen) == ("strided_conv2d", "dft_native" if build.READY else "dft_gemm")
    assert sk.explain(sk.band_limited_conv2d, x, weight, stride=2).chosen == "direct"
    assert sk.explain(sk.band_limited_conv2d, x, weight, dilation=2).operation == "strided_conv2d"
    assert sk.explain(sk.band_limited_conv1d, x[:, :, 0], weight[:, :, 0], dilation=2).operation == "strided_conv1d"
    long = sk.explain(sk.band_limited_conv1d, torch.zeros(1, 1, 16384), torch.zeros(1, 1, 9), stride=2, compression=0.5)
    assert long.chosen == "torch_fft" and "an FFT needs none" in long.because
    assert {found.name for found in sk.implementations("strided_conv2d")} == {*IMPLS, "direct"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stride": 1.5}, sk.RangeError, "stride must be one whole number >= 1"),
        ({"stride": (2, 0)}, sk.RangeError, "stride must be one whole number >= 1"),
        ({"stride": (2, 2, 2)}, sk.RangeError, "stride must be one whole number"),
        ({"stride": 2, "compression": 1.0}, sk.RangeError, "compression must lie in"),
        ({"stride": 2, "groups": 2}, sk.ShapeError, "groups=2 must divide"),
        ({"stride": 2, "compression": 0.5, "impl": "direct"}, sk.Unsupported, "cannot limit the band"),
        ({"stride": 2, "grid": 11, "impl": "alias_fold"}, sk.Unsupported, r"stride \(2, 2\) and N \(11, 11\)"),
        ({"dilation": 0}, sk.RangeError, "dilation must be one whole number >= 1"),
        ({"dilation": 9, "padding": "valid"}, sk.ShapeError, r"kernel \(19, 19\) is larger than the padded map"),
        ({"stride": 2, "impl": "dft_triton"}, sk.RangeError, "strided_conv2d has no implementation 'dft_triton'"),
        ({"padding": "causal"}, sk.RangeError, "padding must be 'same', 'valid' or a number"),
    ],
)
def test_bad_arguments(options: dict, error: type[Exception], message: str):
    x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with pytest.raises(error, match=message):
        sk.band_limited_conv2d(x, weight, **options)
    frozen = sk.weight_spectrum(weight, (8, 8))
    with pytest.raises(sk.RangeError, match="stride and dilation must be 1 with a frozen WeightSpectrum, got 2 and 1"):
        sk.band_limited_conv2d(x, frozen, stride=2)


@pytest.mark.parametrize("impl", ["dft_gemm", "subsample"])
def test_gradients_of_no_sample_can_be_differentiated_again(impl: str):
    x, weight = torch.randn(0, 4, 9, 8, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)
    y = sk.band_limited_conv2d(x, weight, stride=2, compression=0.5, impl=impl)
    first = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
    second = torch.autograd.grad(sum(each.square().sum() for each in first), (x, weight))
    assert [each.shape for each in second] == [x.shape, weight.shape] and not second[1].any()
