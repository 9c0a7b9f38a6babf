"""Parameterised hypercomplex convolution: its Kronecker sums (T25), bias and divisibility (T26), and size (T27)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from effort import gradcheck, gradgradcheck
from torch import Tensor, nn

import spectralkernels as sk
from spectralkernels.ops.ph_conv2d import check_divides

IMPLS = ("matmul", "einsum", "kron")


def factors(n: int, out_channels: int, channels: int, kernel: tuple[int, int]) -> tuple[Tensor, Tensor]:
    f = torch.randn(n, out_channels // n, channels // n, *kernel, dtype=torch.float64)
    return torch.randn(n, n, n, dtype=torch.float64), f


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_t25_every_tap_is_a_kronecker_sum(n: int, seed: int):
    a, f = factors(n, 2 * n, 3 * n, (2, 3))
    kernel = sk.ph_kernel(a, f)
    assert kernel.shape == (2 * n, 3 * n, 2, 3)
    for u in range(2):
        for v in range(3):
            torch.testing.assert_close(kernel[:, :, u, v], sum(torch.kron(a[i], f[i, :, :, u, v]) for i in range(n)))


def test_t25_the_product_of_whole_tensors_reshaped_is_another_kernel(seed: int):
    a, f = factors(2, 4, 6, (3, 3))
    wrong = sum(torch.kron(a[i], f[i]).reshape(4, 6, 3, 3) for i in range(2))
    assert (wrong - sk.ph_kernel(a, f)).norm() > 0.1 * wrong.norm()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": "valid"}])
def test_it_is_conv2d_with_the_assembled_kernel(impl: str, options: dict, seed: int):
    a, f = factors(3, 6, 9, (3, 3))
    x, bias = torch.randn(2, 9, 8, 7, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    want = F.conv2d(x, sk.ph_kernel(a, f), bias, **{"padding": "same", **options})
    torch.testing.assert_close(sk.ph_conv2d(x, a, f, bias, impl=impl, **options), want)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_once_and_twice(impl: str, seed: int):
    a, f = (part.requires_grad_() for part in factors(2, 4, 2, (2, 1)))
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)  # T26: the bias counts

    def convolve(*inputs: Tensor) -> Tensor:
        return sk.ph_conv2d(*inputs, padding=1, impl=impl)

    assert gradcheck(convolve, (x, a, f, bias))
    assert gradgradcheck(convolve, (x, a, f, bias))


def test_the_quaternions_product(seed: int):
    """n = 4 with their table: the Hamilton product of a pixel with a weight."""
    i = torch.tensor([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]], dtype=torch.float64)
    j = torch.tensor([[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]], dtype=torch.float64)
    k = i @ j
    a = torch.stack([torch.eye(4, dtype=torch.float64), i, j, k])
    torch.testing.assert_close(i @ i, -a[0])
    w, x = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    got = sk.ph_conv2d(x.view(1, 4, 1, 1), a, w.view(4, 1, 1, 1, 1)).flatten()
    r, p, q, s = w.tolist()
    e, b, c, d = x.tolist()
    want = [r * e - p * b - q * c - s * d, r * b + p * e + q * d - s * c]
    want += [r * c - p * d + q * e + s * b, r * d + p * c - q * b + s * e]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_n_of_one_is_a_plain_convolution(seed: int):
    _, f = factors(1, 4, 3, (3, 3))
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(sk.ph_conv2d(x, one, f), F.conv2d(x, f[0], padding=1))


def test_t27_the_layer_has_the_parameters_of_the_formula(seed: int):
    for n, channels, out_channels in ((1, 4, 6), (3, 63, 63), (4, 8, 12)):
        made = sk.nn.PHConv2d(channels, out_channels, 3, n=n, bias=False)
        count = sum(parameter.numel() for parameter in made.parameters())
        assert count == n**3 + out_channels * channels * 9 // n
    dense = nn.Conv2d(63, 63, 3, bias=False).weight.numel()
    made = sk.nn.PHConv2d(63, 63, 3, n=3, bias=False)
    assert sum(parameter.numel() for parameter in made.parameters()) / dense == pytest.approx(0.334, abs=0.001)


def test_a_fresh_layer_has_the_variance_of_a_fresh_convolution(seed: int):
    made, want = sk.nn.PHConv2d(64, 64, 3, n=8), 1 / (3 * 64 * 9)
    assert float(sk.ph_kernel(made.a, made.f).detach().var()) == pytest.approx(want, rel=0.3)


def test_it_compiles_whole_and_is_cast_as_conv2d(seed: int):
    made, x = sk.nn.PHConv2d(6, 6, 3, n=3, padding=1), torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(torch.compile(made, fullgraph=True, backend="aot_eager")(x), made(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sk.nn.PHConv2d(64, 60, 3, n=3), sk.RangeError, "n=3 must divide in_channels=64; take 63 or 66"),
        (lambda: check_divides(0, channels=3), sk.RangeError, "n must be at least 1"),
        (lambda: sk.ph_kernel(torch.ones(2, 2, 3), torch.ones(2, 1, 1, 1, 1)), sk.ShapeError, r"a must be \[n, n, n\]"),
        (lambda: sk.ph_kernel(torch.ones(2, 2, 2), torch.ones(3, 1, 1, 1, 1)), sk.ShapeError, "for the n of f"),
        (
            lambda: sk.ph_conv2d(torch.ones(1, 3, 4, 4), torch.ones(2, 2, 2), torch.ones(2, 1, 1, 1, 1)),
            sk.ShapeError,
            "f must have channel / n = 3 / 2",
        ),
    ],
)
def test_bad_arguments(call, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()
