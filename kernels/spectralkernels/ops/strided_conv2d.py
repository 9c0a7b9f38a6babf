"""Band-limited convolution with a stride: every s-th row and column of `band_limited_conv2d`, without the others.

    y[i, j] = (band-limited convolution with stride 1)[s_h i, s_w j]

Sampling folds the spectrum: of N frequencies those that are N / s apart add up (alias-fold), so that the answer is the
inverse transform of a smaller circle where s divides N. Giving the inverse only the wanted samples is the same map for
any N and s. The band is that of stride 1: c = 0 is `torch.nn.functional.conv2d` with this stride.
Source: Guan et al., SpecNet, 2021, section 3 ("stride"); the band of Dziedzic et al. 2019.

Floor of a forward pass: `cost.conv_cost` with the samples that are wanted for the output.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.autocast import as_written, cast
from spectralkernels.checks import as_integer, checked_stride
from spectralkernels.constants import traced
from spectralkernels.convolution import baselines
from spectralkernels.convolution.cases import case_cost, case_inputs, observed
from spectralkernels.convolution.choice import MAP_FLOP_RATIO, TRACED_BATCH
from spectralkernels.convolution.cost import dft_gemm_flops, direct_flops
from spectralkernels.convolution.dft_gemm import dft_gemm
from spectralkernels.convolution.geometry import (
    GridChoice,
    Padding,
    WeightSpectrum,
    check_arguments,
    compute_dtype,
    conv_band,
)
from spectralkernels.convolution.implementations import DIRECT, TOLERANCE
from spectralkernels.convolution.strided import strided_band, strided_dft_gemm, strided_sides
from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Scalar
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import RangeError
from spectralkernels.layouts import as_given, batched
from spectralkernels.spectra import Band


def strided_conv2d(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int],
    compression: float = 0.0,
    padding: Padding = "same",
    groups: int = 1,
    grid: GridChoice = "tight",
    impl: str = "auto",
) -> Tensor:
    """Convolve maps with the high frequencies left out, and keep every stride-th row and column.

    `band_limited_conv2d(..., stride=...)` comes here; its other arguments and errors are those of stride 1. A frozen
    `WeightSpectrum` has stride 1.
    stride: one number >= 1 or (vertical, horizontal). impl: a name of `implementations("strided_conv2d")`, or "auto".
    Returns: Real [batch, out_channel, ceil(out_height / s_h), ceil(out_width / s_w)], dtype of x.
    """
    given, x = x, batched(x, "[batch, channel, height, width]")
    steps = checked_stride(stride)
    if not isinstance(weight, Tensor):
        raise RangeError(f"stride must be 1 with a frozen WeightSpectrum, got {stride}; pass the weight itself")
    device = x.device.type
    x, weight, bias = cast(x, device), cast(weight, device), cast(bias, device)
    groups = as_integer("groups", groups)
    check_arguments(x, weight, bias, groups, 1, "height, width")
    size, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
    band = conv_band(size, kernel, compression=compression, padding=padding, grid=grid)
    inputs = {"x": x, "weight": weight, "bias": bias, "band": band, "groups": groups, "stride": steps}
    return as_given(dispatch(OPERATION, impl, device, inputs), given, x, weight)


def auto(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, stride: tuple[int, int]) -> Decision:
    """The library convolution where nothing is dropped and it needs little arithmetic, else the matrix products."""
    samples = TRACED_BATCH if traced(x) else x.shape[0]
    sizes = (samples, x.shape[1], weight.shape[0], groups, strided_band(band, stride))
    ratio = direct_flops(*sizes) / dft_gemm_flops(*sizes)
    if band.compression == 0.0 and (x.device.type != "cpu" or ratio <= MAP_FLOP_RATIO):
        return Decision("direct", "nothing is dropped, and the direct sum skips what the stride does")
    return Decision("dft_gemm", "only kept modes and wanted samples are computed, as matrix products")


# --- implementations ------------------------------------------------------------------------------------------------


def _subsample(
    x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, stride: tuple[int, int]
) -> Tensor:
    return dft_gemm(x, weight, bias, band, groups)[..., :: stride[0], :: stride[1]].contiguous()


def _alias_fold(
    x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, stride: tuple[int, int]
) -> Tensor:
    """Full complex FFTs on the circle, the band, the fold, and an inverse on the circle of N / s."""
    dtype = compute_dtype(x.dtype)
    with as_written(x.device.type):
        (top, _), (left, _) = band.pad
        kernel = weight.to(dtype)
        for axis, n in zip((2, 3), band.n, strict=True):  # taps beyond a turn add up
            turns = -(-kernel.shape[axis] // n)
            kernel = F.pad(kernel, [0, 0] * (3 - axis) + [0, turns * n - kernel.shape[axis]])
            kernel = kernel.unflatten(axis, (turns, n)).sum(axis)
        w_hat = torch.fft.fft2(kernel.roll((-top, -left), (2, 3)))
        x_hat = torch.fft.fft2(x.to(dtype), s=band.n)
        y_hat = torch.einsum(
            "bgcuv,gocuv->bgouv", x_hat.unflatten(1, (groups, -1)), w_hat.unflatten(0, (groups, -1)).conj()
        ).flatten(1, 2)
        rows, columns = (
            torch.fft.fftfreq(n, 1.0 / n, device=x.device).abs() < k for n, k in zip(band.n, band.kept, strict=True)
        )
        folded = y_hat * (rows.unsqueeze(1) & columns)
        for axis, (n, step) in zip((2, 3), zip(band.n, stride, strict=True), strict=True):
            folded = folded.unflatten(axis, (step, n // step)).mean(axis)
        high, wide = strided_sides(band.out, stride)
        y = torch.fft.ifft2(folded).real[..., :high, :wide]
        return (y if bias is None else y + bias.to(dtype).view(-1, 1, 1)).to(x.dtype).contiguous()


def _divides(band: Band, stride: tuple[int, int], **rest: Any) -> str | None:
    if all(n % step == 0 for n, step in zip(band.n, stride, strict=True)):
        return None
    return f"the spectrum folds where the stride divides N, got stride {stride} and N {band.n}; choose a grid"


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, stride: tuple[int, int]) -> Tensor:
    (top, bottom), (left, right) = band.pad
    if (top, left) == (bottom, right):
        return F.conv2d(x, weight, bias, stride, (top, left), groups=groups)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, groups=groups)


def _compressed(band: Band, **rest: Any) -> str | None:
    return None if band.compression > 0.0 else "at compression 0 it is the implementation `direct`"


def _uncompressed(band: Band, **rest: Any) -> str | None:
    return None if band.compression == 0.0 else "direct convolution cannot limit the band; it needs compression=0"


# --- declaration ----------------------------------------------------------------------------------------------------


def _band_of(case: Case) -> Band:
    side, kernel = case["side"], case["kernel_size"]
    return conv_band((side, side), (kernel, kernel), compression=case["compression"], grid=case["grid"])


def _inputs(case: Case, device: str) -> dict[str, Any]:
    return {**case_inputs(case, _band_of(case), device), "stride": (case["stride"], case["stride"])}


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, stride: tuple[int, int]
) -> Tensor:
    return baselines.reference(x, weight, bias, band, groups)[..., :: stride[0], :: stride[1]]


def _ideal(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, stride: tuple[int, int]) -> Tensor:
    return baselines.ideal(x, weight, bias, band, groups)[..., :: stride[0], :: stride[1]]


def _cost(case: Case) -> Cost:
    band = strided_band(_band_of(case), (case["stride"], case["stride"]))
    return case_cost(case, band)


_SHAPE: dict[str, tuple[Scalar, ...]] = {
    "batch": (8,),
    "in_channels": (64,),
    "out_channels": (64,),
    "side": (32,),
    "kernel_size": (3,),
    "groups": (1,),
    "stride": (2,),
    "compression": (0.5,),
    "grid": ("tight",),
    "input": ("pink",),
}
_TINY = {**_SHAPE, "batch": (2,), "in_channels": (4,), "out_channels": (6,), "side": (9,), "input": ("white",)}

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (
        Block({**_TINY, "stride": (2, 3), "compression": (0.0, 0.5)}, passes=("forward", "both")),
        Block({**_TINY, "side": (4,), "kernel_size": (4,), "groups": (2,)}, passes=("forward", "both")),
    ),
    "quick": (Block({**_SHAPE, "compression": (0.0, 0.5)}),),
    "study": (
        Block(
            {**_SHAPE, "kernel_size": (3, 7), "stride": (1, 2, 3), "compression": (0.0, 0.5, 0.8)},
            passes=("forward", "both"),
        ),
    ),
    "gpu": (Block({**_SHAPE, "batch": (128,)}, passes=("forward", "both")),),
    "asv": (Block(_SHAPE, implementations=("dft_gemm", "subsample", "direct_uncompressed")),),
}

OPERATION = Operation(
    name="strided_conv2d",
    summary="band-limited 2-D convolution with a stride, by folding or by fewer rows of the inverse",
    version=1,
    source="Guan et al., SpecNet, 2021, section 3; Dziedzic et al., ICML 2019",
    profiles=PROFILES,
    make_inputs=_inputs,
    reference=_reference,
    ideal=_ideal,
    cost=_cost,
    fft_size=lambda case: _band_of(case).n,
    tolerance=TOLERANCE,
    implementations=(
        Implementation(
            "dft_gemm", "kernel", strided_dft_gemm, "truncated DFT, the inverse at the wanted samples alone"
        ),
        Implementation("subsample", "baseline", _subsample, "stride 1, then every s-th sample"),
        Implementation("alias_fold", "baseline", _alias_fold, "fft2, fold, ifft2 on N / s", supports=_divides),
        Implementation(
            "direct", "baseline", _direct, "cuDNN / oneDNN", engine="library", supports=_uncompressed, tolerance=DIRECT
        ),
    ),
    auto=auto,
    rivals=(
        Implementation(
            "direct_uncompressed",
            "rival",
            _direct,
            "cuDNN / oneDNN without a band limit",
            engine="library",
            supports=_compressed,
            tolerance=DIRECT,
        ),
    ),
    observe=lambda case, output: observed(_band_of(case)),
    gradients=("x", "weight", "bias"),
)
