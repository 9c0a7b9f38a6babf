"""Band-limited convolution with a stride (M45): every s-th sample of stride 1, by whichever way."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from effort import draws
from torch import Tensor

import spectralkernels as sk
from spectralkernels.ops.strided_conv2d import OPERATION, strided_conv2d

IMPLS = ("dft_gemm", "subsample", "alias_fold")


def problem(draw: random.Random) -> tuple[Tensor, Tensor, Tensor, dict]:
    groups, stride = draw.choice((1, 2, 3)), (draw.randint(1, 4), draw.randint(1, 4))
    side = [draw.choice((1, 2, 3, 5, 7, 8, 11, 12)) for _ in range(2)]
    kernel = [draw.choice((1, 2, 3, 4, 5, 7, 10)) for _ in range(2)]
    x = torch.randn(2, 2 * groups, *side, dtype=torch.float64)
    weight = torch.randn(3 * groups, 2, *kernel, dtype=torch.float64)
    bias = torch.randn(3 * groups, dtype=torch.float64)
    return x, weight, bias, {"groups": groups, "stride": stride}


def test_m45_it_is_every_sth_sample_of_stride_one(seed: int):
    draw = random.Random(seed)
    for _ in draws(24):
        x, weight, bias, options = problem(draw)
        down, across = options["stride"]
        for compression in (0.0, 0.5, 0.9):
            whole = sk.band_limited_conv2d(
                x, weight, bias, groups=options["groups"], compression=compression, impl="torch_fft"
            )
            for impl in IMPLS:
                try:
                    got = strided_conv2d(x, weight, bias, compression=compression, impl=impl, **options)
                except sk.Unsupported:
                    assert impl == "alias_fold"
                    continue
                torch.testing.assert_close(got, whole[..., ::down, ::across], rtol=0, atol=1e-9)
                assert got.is_contiguous()


@pytest.mark.parametrize("impl", ["dft_gemm", "subsample", "direct"])
@pytest.mark.parametrize("padding", [0, 1, (2, 0), "same", "valid"])
def test_without_compression_it_is_conv2d_with_a_stride(impl: str, padding, seed: int):
    x, weight = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(4, 3, 3, 5, dtype=torch.float64)
    sides = {"same": (1, 2), "valid": 0}.get(padding, padding) if isinstance(padding, str) else padding
    got = sk.band_limited_conv2d(x, weight, stride=(2, 3), padding=padding, impl=impl)
    torch.testing.assert_close(got, F.conv2d(x, weight, stride=(2, 3), padding=sides))


@pytest.mark.parametrize("impl", IMPLS)
def test_the_fold_where_the_stride_divides_the_grid(impl: str, seed: int):
    x, weight = torch.randn(1, 2, 8, 11, dtype=torch.float64), torch.randn(2, 2, 5, 3, dtype=torch.float64)
    options = {"stride": (2, 3), "grid": (12, 12), "compression": 0.3}
    want = sk.band_limited_conv2d(x, weight, grid=(12, 12), compression=0.3)[..., ::2, ::3]
    torch.testing.assert_close(sk.band_limited_conv2d(x, weight, impl=impl, **options), want)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("size", [(6, 5), (3, 3)])  # the second has a dense transform
def test_gradients(impl: str, size: tuple[int, int], seed: int):
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 1, 3, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def convolve(*inputs: Tensor) -> Tensor:
        return sk.band_limited_conv2d(*inputs, stride=2, groups=2, grid=8, compression=0.4, impl=impl)

    assert torch.autograd.gradcheck(convolve, (x, weight, bias))


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


def test_it_compiles_whole_and_its_operators_are_well_formed(seed: int):
    x, weight = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return sk.band_limited_conv2d(x, weight, stride=2, compression=0.5).relu()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), run(x, weight))
    wanted = torch.autograd.grad(run(x, weight).sum(), (x, weight))
    for got, want in zip(torch.autograd.grad(compiled(x, weight).sum(), (x, weight)), wanted, strict=True):
        torch.testing.assert_close(got, want)
    arguments = (x, weight, None, [-1, -1], 1, [10, 9], [3, 3], [9, 8], [2, 2])
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.spectralkernels.strided_dft_gemm_conv.default, arguments, test_utils=checks)


def test_what_auto_takes_and_how_it_is_explained(seed: int):
    x, weight = torch.randn(1, 4, 16, 16), torch.randn(4, 4, 3, 3)
    told = sk.explain(sk.band_limited_conv2d, x, weight, stride=2, compression=0.5)
    assert (told.operation, told.chosen) == ("strided_conv2d", "dft_gemm")
    assert sk.explain(sk.band_limited_conv2d, x, weight, stride=2).chosen == "direct"
    assert {found.name for found in sk.implementations("strided_conv2d")} == {
        implementation.name for implementation in OPERATION.implementations
    }


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
        ({"stride": 2, "impl": "torch_fft"}, sk.RangeError, "strided_conv2d has no implementation 'torch_fft'"),
    ],
)
def test_bad_arguments(options: dict, error: type[Exception], message: str):
    x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with pytest.raises(error, match=message):
        sk.band_limited_conv2d(x, weight, **options)
    frozen = sk.weight_spectrum(weight, (8, 8))
    with pytest.raises(sk.RangeError, match="stride must be 1 with a frozen WeightSpectrum, got 2"):
        sk.band_limited_conv2d(x, frozen, stride=2)
