"""Parameterised hypercomplex convolution: a kernel that is a sum of n Kronecker products, and n times smaller.

    y = conv2d(x, H) + b,    H[:, :, u, v] = sum_i kron(A_i, F_i[:, :, u, v]),    A_i [n, n], F_i [O / n, C / n, K, K]

The product is taken tap by tap (T25): kron(A_i, F_i) of tensors of other ranks, reshaped afterwards, is another kernel.
n^3 + O C K^2 / n parameters in place of O C K^2; activations and the arithmetic of the convolution stay what they
were (T27). n = 4 with the table of the quaternions is their product; n = 1 is a plain convolution.
Source: Grassucci, Zhang and Comminiello, "PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex
Convolutions" (2022), here with the bias that the public code allocates and leaves out (T26).
Floor: x, A, F and b in, y out, 2 n O C K^2 for the kernel and the direct convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.autocast import cast
from spectralkernels.checks import (
    REAL_DTYPES,
    as_integer,
    check_bias,
    check_dims,
    check_dtype,
    check_like,
    check_tensor,
)
from spectralkernels.convolution.plain import Padding, check_kernel_fits, checked_options
from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Scalar, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import RangeError, ShapeError
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.layouts import as_given, batched


def ph_conv2d(
    x: Tensor,
    a: Tensor,
    f: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = "same",
    dilation: int | tuple[int, int] = 1,
    impl: str = "auto",
) -> Tensor:
    """Convolve maps with a sum of Kronecker products.

    x: Real [batch, channel, height, width], or one sample of it; within torch.autocast cast as by
        torch.nn.functional.conv2d.
    a: Real [n, n, n], n matrices of n x n. f: Real [n, out_channel / n, channel / n, kernel_height, kernel_width].
    bias: Real [out_channel] or None. stride, padding, dilation: as in torch.nn.functional.conv2d.
    impl: how the kernel is built: "matmul", "einsum" or "kron", or "auto".
    Returns: Real [batch, out_channel, out_height, out_width]. Differentiable in x, a, f and bias, twice and more.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    given, x = x, batched(x, "[batch, channel, height, width]")
    check_tensor("a", a)
    check_tensor("f", f)
    options = checked_options(stride, padding, dilation)
    device = x.device.type
    x, a, f, bias = cast(x, device), cast(a, device), cast(f, device), cast(bias, device)
    check_dtype("x", x, REAL_DTYPES)
    check_like("a", a, "x", x)
    check_like("f", f, "x", x)
    _check_factors(a, f)
    check_kernel_fits(x.shape[2:], f.shape[3:], **options)
    if f.shape[0] * f.shape[2] != x.shape[1]:
        raise ShapeError(
            f"f must have channel / n = {x.shape[1]} / {len(a)} in its third axis, got shape {list(f.shape)}"
        )
    check_bias(bias, f.shape[0] * f.shape[1], x)
    inputs: dict[str, Any] = {"x": x, "a": a, "f": f, "bias": bias}
    y = dispatch(OPERATION, impl, device, {**inputs, **options})
    return as_given(y, given, x)


def ph_kernel(a: Tensor, f: Tensor) -> Tensor:
    """The kernel H that `a` and `f` stand for: Real [out_channel, channel, kernel_height, kernel_width].

    Raises: ShapeError if they do not fit.
    """
    check_tensor("a", a)
    check_tensor("f", f)
    check_dtype("a", a, REAL_DTYPES)
    check_like("f", f, "a", a)
    _check_factors(a, f)
    return _by_matmul(a, f)


def check_divides(n: int, **channels: int) -> None:
    """Raise unless n >= 1 divides every number of channels."""
    if as_integer("n", n) < 1:
        raise RangeError(f"n must be at least 1, got {n}")
    for name, count in channels.items():
        if count % n:
            raise RangeError(
                f"n={n} must divide {name}={count}; take {count - count % n or n} or {count + n - count % n}"
            )


def _check_factors(a: Tensor, f: Tensor) -> None:
    check_dims("a", a, "[n, n, n]")
    check_dims("f", f, "[n, out_channel / n, channel / n, kernel_height, kernel_width]")
    if len(set(a.shape)) != 1 or len(a) != len(f):
        raise ShapeError(f"a must be [n, n, n] for the n of f, got a {list(a.shape)} and f {list(f.shape)}")


# --- implementations ------------------------------------------------------------------------------------------------


def _by_matmul(a: Tensor, f: Tensor) -> Tensor:
    """One product [n^2, n] x [n, rest], then the axes in order: one copy."""
    n, rest = len(a), f.shape[1:]
    blocks = (a.flatten(1).t() @ f.flatten(1)).view(n, n, *rest)  # [p, q, o, c, u, v]
    return blocks.permute(0, 2, 1, 3, 4, 5).reshape(n * rest[0], n * rest[1], *rest[2:])


def _by_einsum(a: Tensor, f: Tensor) -> Tensor:
    n, rest = len(a), f.shape[1:]
    return torch.einsum("ipq,iocuv->poqcuv", a, f).reshape(n * rest[0], n * rest[1], *rest[2:])


def _by_kron(a: Tensor, f: Tensor) -> Tensor:
    """torch.kron, which pairs the axes of tensors of one rank: A_i is given two of one tap."""
    return torch.stack([torch.kron(each[:, :, None, None], part) for each, part in zip(a, f, strict=True)]).sum(0)


def _convolving(build: Any) -> Any:
    def call(x: Tensor, a: Tensor, f: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any) -> Tensor:
        return F.conv2d(x, build(a, f), bias, stride, padding, dilation)

    return call


# --- declaration ----------------------------------------------------------------------------------------------------


def _inputs(case: Case, device: str) -> dict[str, Any]:
    n, channels, out_channels, k = case["n"], case["channels"], case["out_channels"], case["kernel_size"]
    tensors = {
        "x": feature_map(case["input"], (case["batch"], channels, case["side"], case["side"]), case.seed),
        "a": he_kernel((n, n, n), case.seed),
        "f": he_kernel((n, out_channels // n, channels // n, k, k), case.seed + 1),
        "bias": torch.linspace(-0.5, 0.5, out_channels),
    }
    placed = {name: tensor.to(device=device, dtype=getattr(torch, case.dtype)) for name, tensor in tensors.items()}
    return {**placed, "stride": 1, "padding": "same", "dilation": 1}


def _reference(
    x: Tensor, a: Tensor, f: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """In float64: every tap's matrix as a sum of Kronecker products of matrices, and a sum over taps."""
    taps = [
        [sum(torch.kron(a[i].double(), f[i, :, :, u, v].double()) for i in range(len(a))) for v in range(f.shape[4])]
        for u in range(f.shape[3])
    ]
    kernel = torch.stack([torch.stack(row, dim=-1) for row in taps], dim=-2)  # type: ignore[arg-type]
    return F.conv2d(x.double(), kernel, None if bias is None else bias.double(), stride, padding, dilation)


def _cost(case: Case) -> Cost:
    n, pairs, taps = case["n"], case["channels"] * case["out_channels"], case["kernel_size"] ** 2
    pixels, itemsize = case["batch"] * case["side"] ** 2, getattr(torch, case.dtype).itemsize
    parameters = n**3 + pairs * taps // n + case["out_channels"]
    return Cost(
        bytes_read=itemsize * (pixels * case["channels"] + parameters),
        bytes_written=itemsize * pixels * case["out_channels"],
        flops=2 * n * pairs * taps + 2 * pixels * pairs * taps,
    )


_SHAPE: dict[str, tuple[Scalar, ...]] = {
    "batch": (8,),
    "channels": (60,),
    "out_channels": (60,),
    "side": (16,),
    "kernel_size": (3,),
    "n": (1, 2, 3, 4, 5),
    "input": ("pink",),
}
_TINY = {**_SHAPE, "batch": (2,), "channels": (12,), "out_channels": (24,), "side": (5,), "n": (1, 3, 4)}

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (Block({**_TINY, "kernel_size": (1, 3)}, passes=("forward", "both")),),
    "quick": (Block({**_SHAPE, "n": (1, 3)}),),
    "study": (
        Block(_SHAPE, passes=("forward", "both")),
        Block({**_SHAPE, "channels": (126,), "out_channels": (126,), "n": (1, 3)}, passes=("forward", "both")),
    ),
    "gpu": (
        Block({**_SHAPE, "batch": (128,), "channels": (120,), "out_channels": (120,)}, passes=("forward", "both")),
    ),
    "asv": (Block({**_SHAPE, "n": (3,)}),),
}

OPERATION = Operation(
    name="ph_conv2d",
    summary="convolution with a kernel that is a sum of Kronecker products",
    version=1,
    source="Grassucci, Zhang and Comminiello, PHNNs, 2022",
    profiles=PROFILES,
    make_inputs=_inputs,
    reference=_reference,
    cost=_cost,
    fft_size=lambda case: (case["side"], case["side"]),
    tolerance=Tolerance(
        {"float32": 3e-6, "float64": 1e-13, "float16": 3e-3, "bfloat16": 2e-2},
        because="sums over channels and taps in float32; half types round the kernel that is built, and the answer",
    ),
    implementations=(
        Implementation("matmul", "kernel", _convolving(_by_matmul), "the kernel by one matrix product"),
        Implementation("einsum", "baseline", _convolving(_by_einsum), "the kernel by torch.einsum"),
        Implementation(
            "kron", "baseline", _convolving(_by_kron), "the kernel by torch.kron and sums: the public code's way"
        ),
    ),
    auto=lambda **inputs: Decision("matmul", "one matrix product builds the kernel"),
    gradients=("x", "a", "f", "bias"),
)
