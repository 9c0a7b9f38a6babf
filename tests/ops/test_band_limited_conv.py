"""Band-limited convolution in one and two dimensions: the mathematics, every implementation, every bad argument."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from effort import gradcheck, opcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.geometry import conv_band

EXACT = ("dft_gemm", "torch_fft", "direct_lowpass", *(("dft_native",) if build.COMPILER else ()))


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def random_shapes(seed: int, count: int) -> list[tuple]:
    """(batch, channels, out_channels, groups, (h, w), (kh, kw)) with odd, even, prime and size-1 entries."""
    draw = random.Random(seed)
    shapes = [(1, 1, 1, 1, (1, 1), (1, 1)), (2, 3, 2, 1, (1, 7), (3, 1)), (1, 4, 4, 4, (5, 2), (7, 9))]
    while len(shapes) < count:
        groups = draw.choice((1, 1, 2, 3))
        per_group, out_per_group = draw.randint(1, 3), draw.randint(1, 3)
        side = [draw.choice((1, 2, 3, 5, 7, 8, 11, 12, 16, 17)) for _ in range(2)]
        kernel = [draw.choice((1, 2, 3, 4, 5, 7, 10)) for _ in range(2)]
        shapes.append(
            (draw.randint(1, 3), groups * per_group, groups * out_per_group, groups, tuple(side), tuple(kernel))
        )
    return shapes


@pytest.mark.parametrize("impl", [*EXACT, "direct"])
def test_without_compression_it_is_conv2d(impl: str, seed: int):
    for batch, channels, out_channels, groups, side, kernel in random_shapes(seed, 20):
        x = torch.randn(batch, channels, *side, dtype=torch.float64)
        weight = torch.randn(out_channels, channels // groups, *kernel, dtype=torch.float64)
        bias = torch.randn(out_channels, dtype=torch.float64)
        left = [(k - 1) // 2 for k in kernel]
        right = [k // 2 for k in kernel]
        want = F.conv2d(F.pad(x, (left[1], right[1], left[0], right[0])), weight, bias, groups=groups)
        for grid in ("tight", "seed", "pow2", "fast"):
            got = sk.band_limited_conv2d(x, weight, bias, groups=groups, grid=grid, impl=impl)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-10, msg=lambda m, s=side, k=kernel: f"{s} {k}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("impl", EXACT)
def test_with_compression_it_is_the_float64_reference(impl: str, seed: int):
    for batch, channels, out_channels, groups, side, kernel in random_shapes(seed, 32):
        for compression in (0.3, 0.5, 0.9):
            x = torch.randn(batch, channels, *side, dtype=torch.float64)
            weight = torch.randn(out_channels, channels // groups, *kernel, dtype=torch.float64)
            want = reference(x, weight, None, conv_band(side, kernel, compression=compression), groups)
            got = sk.band_limited_conv2d(x, weight, compression=compression, groups=groups, impl=impl)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
            single = sk.band_limited_conv2d(
                x.float(), weight.float(), compression=compression, groups=groups, impl=impl
            )
            torch.testing.assert_close(single.double(), want, rtol=0, atol=1e-5 * float(want.abs().max() + 1))


@pytest.mark.parametrize("impl", EXACT)
@pytest.mark.parametrize("padding", ["valid", 0, 2, (1, 3)])
def test_every_padding_is_conv2d(impl: str, padding: object, seed: int):
    x, weight = torch.randn(2, 3, 9, 7, dtype=torch.float64), torch.randn(4, 3, 5, 3, dtype=torch.float64)
    want = F.conv2d(x, weight, padding=0 if padding == "valid" else padding)
    torch.testing.assert_close(sk.band_limited_conv2d(x, weight, padding=padding, impl=impl), want)


@pytest.mark.parametrize("impl", EXACT)
def test_series(impl: str, seed: int):
    for length, kernel, groups in itertools.product((1, 2, 13, 16), (1, 2, 5, 20), (1, 2)):
        x = torch.randn(2, 4, length, dtype=torch.float64)
        weight = torch.randn(6, 4 // groups, kernel, dtype=torch.float64)
        padded = F.pad(x, ((kernel - 1) // 2, kernel // 2))
        got = sk.band_limited_conv1d(x, weight, groups=groups, impl=impl)
        torch.testing.assert_close(got, F.conv1d(padded, weight, groups=groups))
        want = reference(x, weight, None, conv_band((length,), (kernel,), compression=0.4), groups)
        got = sk.band_limited_conv1d(x, weight, groups=groups, compression=0.4, impl=impl)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def authors_series(x: Tensor, weight: Tensor, padding: int, rate: float) -> Tensor:
    """The forward pass of the authors' layer for series (conv1D_fft.py of bandlimited-cnns), line by line."""
    length, taps = x.shape[-1], weight.shape[-1]
    out = length - taps + 1 + 2 * padding
    n = length + 2 * padding + 2 * max(taps - 1, out - 1)
    x_hat = torch.fft.rfft(F.pad(x, (padding, n - length - padding)))
    w_hat = torch.fft.rfft(F.pad(weight, (0, n - taps)))
    coefficients = x_hat.shape[-1]
    kept = coefficients
    if rate > 0:
        index_back = min(coefficients - 1, int(coefficients * (rate / 100)) + 1)
        kept = max(1, coefficients - index_back)
    y_hat = torch.einsum("bcf,ocf->bof", x_hat[..., :kept], w_hat[..., :kept].conj())
    return torch.fft.irfft(F.pad(y_hat, (0, coefficients - kept)), n=n)[..., :out]


def test_the_authors_grid_for_series(seed: int):
    """`seed_1d` is their answer at every rate; `seed`, the formula of their paper, is another operator above 0."""
    for length, taps, padding in ((16, 3, 1), (13, 4, 0), (1, 1, 0), (5, 8, 3), (31, 7, 9), (24, 24, 0)):
        x, weight = (torch.randn(2, 3, size, dtype=torch.float64) for size in (length, taps))
        for rate in (0, 10, 37, 50, 95):
            want = authors_series(x, weight, padding, rate)
            options = {"padding": padding, "compression": rate / 100}
            for impl in ("dft_gemm", "torch_fft"):
                got = sk.band_limited_conv1d(x, weight, grid="seed_1d", impl=impl, **options)
                torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * float(want.abs().max() + 1))
            if rate == 50 and length > 1:
                assert relative(sk.band_limited_conv1d(x, weight, grid="seed", **options), want) > 1e-2


def test_one_sample_less_than_the_tight_grid_wraps(seed: int):
    x, weight = torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.randn(1, 1, 5, 5, dtype=torch.float64)
    want = F.conv2d(x, weight, padding=2)
    torch.testing.assert_close(sk.band_limited_conv2d(x, weight, grid=10, impl="dft_gemm"), want)
    with pytest.raises(sk.RangeError, match=r"grid \(9, 9\) wraps around .* smallest FFT size here is \(10, 10\)"):
        sk.band_limited_conv2d(x, weight, grid=9)


def test_the_band_depends_on_the_grid(seed: int):
    x, weight = torch.randn(1, 1, 16, 16, dtype=torch.float64), torch.randn(1, 1, 3, 3, dtype=torch.float64)
    tight, seed_grid = (sk.band_limited_conv2d(x, weight, compression=0.5, grid=grid) for grid in ("tight", "seed"))
    assert relative(tight, seed_grid) > 1e-2


def test_a_flipped_kernel_is_noticed(seed: int):
    """A planted fault: convolution in place of correlation must not pass."""
    x, weight = torch.randn(1, 2, 8, 9, dtype=torch.float64), torch.randn(3, 2, 3, 3, dtype=torch.float64)
    right = sk.band_limited_conv2d(x, weight, compression=0.5, impl="dft_gemm")
    wrong = sk.band_limited_conv2d(x, weight.flip(-1, -2), compression=0.5, impl="dft_gemm")
    assert relative(right, reference(x, weight, None, conv_band((8, 9), (3, 3), compression=0.5), 1)) < 1e-13
    assert relative(wrong, right) > 1e-1


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "kernel"), [(1, 3), (2, 4), (4, 3), (4, 9)])
@pytest.mark.parametrize("compression", [0.0, 0.5])
def test_gradients_are_exact(groups: int, kernel: int, compression: float, seed: int):
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 4 // groups, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True)

    def convolve(*inputs: torch.Tensor) -> torch.Tensor:
        return sk.band_limited_conv2d(*inputs, groups=groups, compression=compression, impl="dft_gemm")

    assert gradcheck(convolve, (x, weight, bias))
    grads = torch.autograd.grad(convolve(x, weight, bias).sin().sum(), (x, weight, bias))
    band = conv_band((6, 5), (kernel, kernel), compression=compression)
    wanted = torch.autograd.grad(reference(x, weight, bias, band, groups).sin().sum(), (x, weight, bias))
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_gradients_of_series_and_of_one_input_alone(seed: int):
    x = torch.randn(2, 4, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    for inputs in ((x, weight, bias), (x, weight.detach(), bias), (x.detach(), weight, bias.detach())):
        assert gradcheck(
            lambda a, b, c: sk.band_limited_conv1d(a, b, c, groups=2, compression=0.5, impl="dft_gemm"), inputs
        )


@pytest.mark.parametrize("shape", [(2, 4, 7, 6), (2, 4, 9)])
def test_adjoint_identity(shape: tuple[int, ...], seed: int):
    """<A v, dy> = <v, A^T dy> for x and for the weight."""
    convolve = sk.band_limited_conv2d if len(shape) == 4 else sk.band_limited_conv1d
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, *(3 for _ in shape[2:]), dtype=torch.float64, requires_grad=True)
    y = convolve(x, weight, compression=0.6, impl="dft_gemm")
    dy = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    torch.testing.assert_close((y * dy).sum(), (x * dx).sum())
    torch.testing.assert_close((y * dy).sum(), (weight * dw).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("impl", ["dft_gemm", "torch_fft"])
def test_half_precision_maps_are_rounded_once(dtype: torch.dtype, impl: str, seed: int):
    x, weight = torch.randn(2, 8, 12, 12).to(dtype), (torch.randn(8, 8, 3, 3) / 8).to(dtype)
    got = sk.band_limited_conv2d(x, weight, compression=0.5, impl=impl)
    assert got.dtype == dtype
    want = reference(x, weight, None, conv_band((12, 12), (3, 3), compression=0.5), 1)
    assert relative(got, want) < torch.finfo(dtype).eps / 2


def test_strides_and_expansion_do_not_matter(poisoned: None, seed: int):
    x = torch.randn(6, 9, 2, 4).permute(2, 3, 0, 1)
    weight = torch.randn(5, 1, 3, 3).expand(5, 4, 3, 3)
    got = sk.band_limited_conv2d(x, weight, compression=0.5, impl="dft_gemm")
    want = sk.band_limited_conv2d(x.contiguous(), weight.contiguous(), compression=0.5, impl="dft_gemm")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(got).all()
    shared = torch.randn(1, 4, 6, 9).expand(3, 4, 6, 9)
    assert torch.isfinite(sk.band_limited_conv2d(shared, weight, compression=0.5)).all()


@pytest.mark.parametrize("impl", ["dft_gemm", "torch_fft", "direct_lowpass", "auto"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_an_empty_batch_gives_an_empty_answer_and_zero_gradients(impl: str, groups: int):
    x = torch.empty(0, 4, 7, 6, requires_grad=True)
    weight = torch.randn(8, 4 // groups, 3, 3, requires_grad=True)
    y = sk.band_limited_conv2d(x, weight, groups=groups, compression=0.5, impl=impl)
    assert y.shape == (0, 8, 7, 6)
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape
    assert (dw == 0).all()


def test_frozen_weight_is_transformed_once_and_gives_the_same(seed: int):
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(6, 2, 3, 5, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    spectrum = sk.weight_spectrum(weight, (9, 8), compression=0.5, groups=2)
    frozen = sk.band_limited_conv2d(x, spectrum, bias, compression=0.5, groups=2)
    want = sk.band_limited_conv2d(x, weight, bias, compression=0.5, groups=2, impl="dft_gemm")
    torch.testing.assert_close(frozen, want)
    torch.testing.assert_close(*(torch.autograd.grad(y.cos().sum(), x)[0] for y in (frozen, want)))
    with pytest.raises(sk.ShapeError, match=r"this WeightSpectrum was made for .* make one with weight_spectrum"):
        sk.band_limited_conv2d(x, spectrum, bias, compression=0.25, groups=2)
    with pytest.raises(sk.Unsupported, match="it takes a weight tensor, not a WeightSpectrum"):
        sk.band_limited_conv2d(x, spectrum, bias, compression=0.5, groups=2, impl="torch_fft")


def test_backward_saves_the_kept_spectrum_and_the_weight_only(seed: int):
    x = torch.randn(8, 16, 32, 32, requires_grad=True)
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sk.band_limited_conv2d(x, weight, compression=0.5, impl="dft_gemm")
    assert sum(saved.values()) <= 0.6 * x.nbytes + weight.nbytes


@pytest.mark.slow
def test_operators_pass_opcheck_and_trace(seed: int):
    x = torch.randn(2, 4, 7, 6, requires_grad=True)
    weight = torch.randn(8, 2, 3, 3, requires_grad=True)
    bias = torch.randn(8, requires_grad=True)
    ops = torch.ops.spectralkernels
    opcheck(ops.dft_gemm_conv.default, (x, weight, bias, [-1, -1], 2, [8, 7], [3, 3], [7, 6]))
    spectrum = sk.weight_spectrum(weight, (7, 6), compression=0.5, groups=2).modes
    opcheck(ops.dft_gemm_apply.default, (x, spectrum, bias, 8, 2, [8, 7], [3, 2], [7, 6]))
    y, z = ops.dft_gemm_conv(x, weight, None, [-1, -1], 2, [8, 7], [3, 3], [7, 6])
    backward = (y.detach(), z.detach(), weight.detach(), [-1, -1], 2, [8, 7], [3, 3], [7, 6], True, True)
    opcheck(ops.dft_gemm_conv_backward.default, backward)
    apply_backward = (y.detach(), spectrum, 4, 2, [8, 7], [3, 2], [7, 6])
    opcheck(ops.dft_gemm_apply_backward.default, apply_backward)


def test_it_compiles_whole(seed: int):
    def layer(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return sk.band_limited_conv2d(x, weight, compression=0.5).relu()

    x, weight = torch.randn(2, 4, 7, 6, requires_grad=True), torch.randn(8, 4, 3, 3, requires_grad=True)
    eager, compiled = layer(x, weight), torch.compile(layer, fullgraph=True, backend="aot_eager")(x, weight)
    torch.testing.assert_close(compiled, eager)
    for got, want in zip(*(torch.autograd.grad(y.sum(), (x, weight)) for y in (compiled, eager)), strict=True):
        torch.testing.assert_close(got, want)


X, W = torch.zeros(2, 4, 8, 8), torch.zeros(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X.int(), W), {}, sk.DtypeError, "x must be one of float32, .*, got int32; convert it with x.to"),
        ((X, W.double()), {}, sk.DtypeError, r"weight must have the dtype of x \(float32\), got float64"),
        ((X, W.to("meta")), {}, sk.DtypeError, r"weight must be on the device of x \(cpu\), got meta"),
        (
            (X[0, 0], W),
            {},
            sk.ShapeError,
            r"x must have 4 dimensions \[batch, channel, height, width\], or 3 for one sample, got shape \[8, 8\]",
        ),
        ((X, W[0]), {}, sk.ShapeError, r"weight must have 4 dimensions \[out_channel, in_channel / groups, "),
        ((X, W[:, :3]), {}, sk.ShapeError, "weight must have 4 input channels per group"),
        ((X, W), {"groups": 4}, sk.ShapeError, "groups=4 must divide the 4 channels of x and the 6 output channels"),
        ((X, W), {"groups": 0}, sk.RangeError, "groups must be at least 1, got 0"),
        (
            (X, W, torch.zeros(5)),
            {},
            sk.ShapeError,
            r"bias must have shape \[6\], one value per output channel, got \[5\]",
        ),
        ((X, W), {"compression": 1.0}, sk.RangeError, r"compression must lie in \[0, 1\), .* got 1.0"),
        ((X, W), {"compression": 50}, sk.RangeError, "a percentage must be divided by 100"),
        ((X, W), {"compression": -0.1}, sk.RangeError, r"compression must lie in \[0, 1\)"),
        ((X, W), {"compression": float("nan")}, sk.RangeError, "got nan"),
        ((X, W), {"stride": 0}, sk.RangeError, "stride must be one whole number >= 1"),
        ((X, W), {"padding": "full"}, sk.RangeError, "padding must be 'same', 'valid' or a number .* got 'full'"),
        ((X, W), {"padding": -1}, sk.RangeError, "padding must be one number >= 0"),
        (
            (X, W),
            {"grid": "loose"},
            sk.RangeError,
            "grid must be one of tight, seed, seed_1d, pow2, fast .* got 'loose'",
        ),
        (
            (X, torch.zeros(6, 4, 9, 9)),
            {"padding": "valid"},
            sk.ShapeError,
            r"kernel \(9, 9\) is larger than the padded map",
        ),
        ((X, W), {"impl": "cudnn"}, sk.RangeError, "no implementation 'cudnn'; known: dft_gemm, .*torch_fft"),
        ((X, W), {"impl": "direct", "compression": 0.5}, sk.Unsupported, "direct convolution cannot limit the band"),
        ((X, W), {"impl": "cufft_triton"}, sk.Unsupported, "Triton kernels need a CUDA device"),
        ((X, W), {"impl": "dft_gemm_frozen"}, sk.Unsupported, "it takes a frozen weight; pass weight_spectrum"),
    ],
)
def test_bad_arguments_are_answered(arguments: tuple, options: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        sk.band_limited_conv2d(*arguments, **options)


def test_errors_can_be_caught_as_the_builtin_kind():
    assert issubclass(sk.ShapeError, ValueError)
    assert issubclass(sk.DtypeError, TypeError)
    assert issubclass(sk.RangeError, ValueError)
    assert issubclass(sk.Unsupported, RuntimeError)
