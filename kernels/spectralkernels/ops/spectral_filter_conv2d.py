"""Spectral filter parameterisation: a plain convolution whose kernel is given by its Fourier coefficients.

    y = conv2d(x, w) + b,     w = Re F^-1( W ),     W: the K_h K_w coefficients of each kernel, unnormalised DFT

Only the basis of the parameters is another, for optimisers that scale each by itself (T42): "hermitian" has the
K_h K_w independent numbers of a real kernel, "free" all 2 K_h K_w, of which the real part of the inverse is taken, as
the public code does. Memory of parameters, gradients and optimiser follows that number. There is no spectrum of maps.
Source: Rippel, Snoek and Adams, "Spectral Representations for Convolutional Neural Networks" (2015), section 4.2.

Floor: x, W and b in, y out, 2 D K_h K_w for each kernel of D numbers, and the direct convolution.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.autocast import as_written, cast
from spectralkernels.checks import (
    REAL_DTYPES,
    as_integer,
    as_integers,
    check_bias,
    check_channels,
    check_choice,
    check_dims,
    check_dtype,
    check_like,
    check_tensor,
)
from spectralkernels.constants import constant
from spectralkernels.convolution.plain import Padding, check_kernel_fits, checked_options
from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Scalar, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import RangeError, ShapeError
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.layouts import as_given, batched

Form = Literal["hermitian", "free"]
Kernel = tuple[int, int]


def spectral_filter_conv2d(
    x: Tensor,
    coefficients: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: int | tuple[int, int],
    form: Form = "hermitian",
    stride: int | tuple[int, int] = 1,
    padding: Padding = "same",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    impl: str = "auto",
) -> Tensor:
    """Convolve maps with the kernel that Fourier coefficients stand for.

    x: Real [batch, channel, height, width], or one sample of it; within torch.autocast cast as by
        torch.nn.functional.conv2d.
    coefficients: Real [out_channel, channel / groups, D] in the order of `kernel_basis`; D = K_h K_w for "hermitian",
        2 K_h K_w for "free". bias: Real [out_channel] or None. kernel_size: K or (K_h, K_w).
    stride, padding, dilation, groups: as in torch.nn.functional.conv2d. impl: "matmul", "ifft" or "auto".
    Returns: Real [batch, out_channel, out_height, out_width]. Differentiable in x, coefficients and bias.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    given, x = x, batched(x, "[batch, channel, height, width]")
    check_tensor("coefficients", coefficients)
    sides = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size, kernel_size)
    high, wide = as_integers("kernel_size", sides, (2,))
    check_choice("form", form, ("hermitian", "free"))
    if min(high, wide) < 1:
        raise RangeError(f"kernel_size must be at least 1, got {kernel_size}")
    options, groups = checked_options(stride, padding, dilation), as_integer("groups", groups)
    device = x.device.type
    x, coefficients, bias = cast(x, device), cast(coefficients, device), cast(bias, device)
    check_dtype("x", x, REAL_DTYPES)
    check_dims("coefficients", coefficients, "[out_channel, channel / groups, coefficient]")
    check_like("coefficients", coefficients, "x", x)
    check_channels(x.shape[1], coefficients, groups, weight_name="coefficients")
    wanted = high * wide * (2 if form == "free" else 1)
    if coefficients.shape[2] != wanted:
        raise ShapeError(
            f"coefficients must have {wanted} numbers for each kernel of {high} x {wide} in the form {form!r}, "
            f"got shape {list(coefficients.shape)}"
        )
    check_kernel_fits(x.shape[2:], (high, wide), **options)
    check_bias(bias, coefficients.shape[0], x)
    inputs: dict[str, Any] = {"x": x, "coefficients": coefficients, "bias": bias, "kernel": (high, wide), "form": form}
    y = dispatch(OPERATION, impl, device, {**inputs, **options, "groups": groups})
    return as_given(y, given, x)


def kernel_basis(kernel: tuple[int, int], form: Form) -> tuple[Tensor, Tensor]:
    """(synthesis [D, K_h K_w], analysis [K_h K_w, D]) of the unnormalised 2-D DFT of a real kernel, Float64.

    A coefficient is the real or the imaginary part of a cell. D = 2 K_h K_w for "free"; for "hermitian" K_h K_w: both
    parts of one cell of each conjugate pair, the real part of a cell that is its own mirror.
    """
    high, wide = kernel
    cells = [(u, v) for u in range(high) for v in range(wide)]
    if form == "hermitian":
        cells = [cell for cell in cells if cell <= (-cell[0] % high, -cell[1] % wide)]
    taps = torch.tensor([(i, j) for i in range(high) for j in range(wide)], dtype=torch.float64)
    rows, columns = [], []
    for u, v in cells:
        angle = 2 * math.pi * (taps[:, 0] * u / high + taps[:, 1] * v / wide)
        own_mirror = (u, v) == (-u % high, -v % wide)
        twice = 1.0 if own_mirror or form == "free" else 2.0
        for wave in (angle.cos(), -angle.sin()) if not own_mirror or form == "free" else (angle.cos(),):
            rows.append(wave * (twice / (high * wide)))
            columns.append(wave)
    return torch.stack(rows), torch.stack(columns, dim=1)


# --- implementations ------------------------------------------------------------------------------------------------


def _by_matmul(coefficients: Tensor, kernel: Kernel, form: Form) -> Tensor:
    """One product [O C / groups, D] x [D, K_h K_w]."""
    return (coefficients @ _synthesis(kernel, form, coefficients.dtype, coefficients.device)).unflatten(2, kernel)


@constant
def _synthesis(kernel: Kernel, form: Form, dtype: torch.dtype, device: torch.device) -> Tensor:
    return kernel_basis(kernel, form)[0].to(dtype=dtype, device=device)


def _by_ifft(coefficients: Tensor, kernel: Kernel, form: Form) -> Tensor:
    """The whole complex spectrum, an inverse FFT, and its real part: the public code's way."""
    dtype = torch.float64 if coefficients.dtype == torch.float64 else torch.float32
    with as_written(coefficients.device.type):
        numbers = coefficients.to(dtype) @ _parts(kernel, form, dtype, coefficients.device)
        re, im = numbers.unflatten(2, (2, *kernel)).unbind(2)
        return torch.fft.ifft2(torch.complex(re, im)).real.to(coefficients.dtype)


@constant
def _parts(kernel: Kernel, form: Form, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Which real and imaginary parts of the full spectrum each coefficient is: [D, 2 K_h K_w] of 0, 1 and -1."""
    high, wide = kernel
    rows = []
    for u in range(high):
        for v in range(wide):
            mirror = (-u % high, -v % wide)
            own = (u, v) == mirror
            if form == "hermitian" and (u, v) > mirror:
                continue
            for part in range(1 if form == "hermitian" and own else 2):
                row = torch.zeros(2, high, wide)
                if form == "hermitian":
                    row[(part, *mirror)] = -1.0 if part else 1.0
                row[part, u, v] = 1.0
                rows.append(row.flatten())
    return torch.stack(rows).to(dtype=dtype, device=device)


def _convolving(build: Any) -> Any:
    def call(
        x: Tensor,
        coefficients: Tensor,
        bias: Tensor | None,
        kernel: Kernel,
        form: Form,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Tensor:
        return F.conv2d(x, build(coefficients, kernel, form), bias, stride, padding, dilation, groups)

    return call


# --- declaration ----------------------------------------------------------------------------------------------------


def _inputs(case: Case, device: str) -> dict[str, Any]:
    kernel, per_group = (case["kernel_size"],) * 2, case["channels"] // case["groups"]
    weight = he_kernel((case["out_channels"], per_group, *kernel), case.seed).double()
    tensors = {
        "x": feature_map(case["input"], (case["batch"], case["channels"], case["side"], case["side"]), case.seed),
        "coefficients": weight.flatten(2) @ kernel_basis(kernel, case["form"])[1],
        "bias": torch.linspace(-0.5, 0.5, case["out_channels"]),
    }
    placed = {name: tensor.to(device=device, dtype=getattr(torch, case.dtype)) for name, tensor in tensors.items()}
    options = {"stride": 1, "padding": "same", "dilation": 1, "groups": case["groups"]}
    return {**placed, "kernel": kernel, "form": case["form"], **options}


def _reference(
    x: Tensor,
    coefficients: Tensor,
    bias: Tensor | None,
    kernel: Kernel,
    form: Form,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    """In float64: every tap as a sum of cosines and sines, a coefficient of a pair counting for both."""
    high, wide = kernel
    numbers = coefficients.double()
    weight = numbers.new_zeros(*coefficients.shape[:2], high, wide)
    at = 0
    for u in range(high):
        for v in range(wide):
            mirror = (-u % high, -v % wide)
            if form == "hermitian" and (u, v) > mirror:
                continue
            alone = form == "hermitian" and (u, v) == mirror
            for i in range(high):
                for j in range(wide):
                    angle = 2.0 * math.pi * (u * i / high + v * j / wide)
                    wave = numbers[..., at] * math.cos(angle)
                    if not alone:
                        wave = wave - numbers[..., at + 1] * math.sin(angle)
                    weight[..., i, j] += wave * (2.0 if form == "hermitian" and not alone else 1.0) / (high * wide)
            at += 1 if alone else 2
    bias = None if bias is None else bias.double()
    return F.conv2d(x.double(), weight, bias, stride, padding, dilation, groups)


def _cost(case: Case) -> Cost:
    pairs, taps = case["channels"] // case["groups"] * case["out_channels"], case["kernel_size"] ** 2
    numbers = taps * (2 if case["form"] == "free" else 1)
    pixels, itemsize = case["batch"] * case["side"] ** 2, getattr(torch, case.dtype).itemsize
    return Cost(
        bytes_read=itemsize * (pixels * case["channels"] + pairs * numbers + case["out_channels"]),
        bytes_written=itemsize * pixels * case["out_channels"],
        flops=2 * pairs * taps * numbers + 2 * pixels * pairs * taps,
    )


_SHAPE: dict[str, tuple[Scalar, ...]] = {
    "batch": (8,),
    "channels": (64,),
    "out_channels": (64,),
    "side": (16,),
    "kernel_size": (3, 5),
    "groups": (1,),
    "form": ("hermitian", "free"),
    "input": ("pink",),
}
_TINY = {**_SHAPE, "batch": (2,), "channels": (4,), "out_channels": (6,), "side": (5,), "kernel_size": (1, 3, 4)}

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (Block({**_TINY, "groups": (2,)}, passes=("forward", "both")),),
    "quick": (Block({**_SHAPE, "kernel_size": (3,)}),),
    "study": (Block(_SHAPE, passes=("forward", "both")),),
    "gpu": (Block({**_SHAPE, "batch": (128,)}, passes=("forward", "both")),),
    "asv": (Block({**_SHAPE, "kernel_size": (3,), "form": ("hermitian",)}),),
}

OPERATION = Operation(
    name="spectral_filter_conv2d",
    summary="plain convolution with a kernel that is given by its Fourier coefficients, Hermitian or free",
    version=1,
    source="Rippel, Snoek and Adams, Spectral Representations for Convolutional Neural Networks, 2015, section 4.2",
    profiles=PROFILES,
    make_inputs=_inputs,
    reference=_reference,
    cost=_cost,
    fft_size=lambda case: (case["kernel_size"], case["kernel_size"]),
    tolerance=Tolerance(
        {"float32": 3e-6, "float64": 1e-13, "float16": 3e-3, "bfloat16": 2e-2},
        because="sums over channels and taps in float32; half types round the kernel that is built, and the answer",
    ),
    implementations=(
        Implementation("matmul", "kernel", _convolving(_by_matmul), "the kernel by one matrix product"),
        Implementation("ifft", "baseline", _convolving(_by_ifft), "the kernel by ifft2: the public code's way"),
    ),
    auto=lambda **inputs: Decision("matmul", "one small matrix product makes the kernel"),
    gradients=("x", "coefficients", "bias"),
)
