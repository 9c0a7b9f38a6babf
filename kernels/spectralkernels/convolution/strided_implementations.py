"""Who computes a convolution with a stride or a dilation, of maps and of series alike, and the call that picks one.

`band` is that of stride 1 and of a kernel as long as the dilated one reaches, so that its grid, its padding and its
modes are those of the same kernel with zeros between its taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.autocast import as_written, cast
from spectralkernels.checks import as_integer, checked_steps
from spectralkernels.constants import traced
from spectralkernels.convolution import baselines
from spectralkernels.convolution.cases import case_cost, case_inputs
from spectralkernels.convolution.choice import MAP_FLOP_RATIO, TRACED_BATCH
from spectralkernels.convolution.cost import dft_gemm_flops, direct_flops
from spectralkernels.convolution.dft_gemm import dft_gemm
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.dft_native.strided import strided_dft_native
from spectralkernels.convolution.geometry import (
    GridChoice,
    Padding,
    WeightSpectrum,
    check_arguments,
    compute_dtype,
    conv_band,
    fits_matrices,
    reach,
)
from spectralkernels.convolution.implementations import DIRECT
from spectralkernels.convolution.strided import computed_band, every, spread, strided_dft_gemm, strided_sides
from spectralkernels.declare import Case, Cost, Decision, Implementation, Operation
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import RangeError
from spectralkernels.layouts import as_given, batched
from spectralkernels.spectra import Band


def call(
    operation: Operation,
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None,
    *,
    spatial: str,
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    compression: float,
    padding: Padding,
    groups: int,
    grid: GridChoice,
    impl: str,
) -> Tensor:
    """Check the arguments of a public call, work out its geometry and run it."""
    given, x = x, batched(x, f"[batch, channel, {spatial}]")
    axes = len(spatial.split(", "))
    steps = {"stride": checked_steps("stride", stride, axes), "dilation": checked_steps("dilation", dilation, axes)}
    if not isinstance(weight, Tensor):
        raise RangeError(
            f"stride and dilation must be 1 with a frozen WeightSpectrum, got {stride} and {dilation}; "
            "pass the weight itself"
        )
    device = x.device.type
    x, weight, bias = cast(x, device), cast(weight, device), cast(bias, device)
    groups = as_integer("groups", groups)
    check_arguments(x, weight, bias, groups, 1, spatial)
    size, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
    band = conv_band(size, reach(kernel, steps["dilation"]), compression=compression, padding=padding, grid=grid)
    inputs = {"x": x, "weight": weight, "bias": bias, "band": band, "groups": groups, **steps}
    return as_given(dispatch(operation, impl, device, inputs), given, x, weight)


def auto(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Decision:
    """The library convolution where nothing is dropped and it needs little arithmetic, else the truncated DFTs.

    As in `choice.auto`, it never waits for a compiler.
    """
    samples = TRACED_BATCH if traced(x) else x.shape[0]
    sizes = (samples, x.shape[1], weight.shape[0], groups, computed_band(band, stride, weight.shape[2:]))
    on_cpu = x.device.type == "cpu"
    if band.compression == 0.0 and (not on_cpu or direct_flops(*sizes) <= MAP_FLOP_RATIO * dft_gemm_flops(*sizes)):
        return Decision("direct", "nothing is dropped, and the direct sum skips what the stride does")
    if (refusal := _fits(x, weight, band, stride)) is not None:
        return Decision("torch_fft", refusal)
    because = "only kept modes and wanted samples are computed"
    if on_cpu and build.READY and not torch.compiler.is_exporting():
        return Decision("dft_native", f"{because}, by folded transforms")
    return Decision("dft_gemm", f"{because}, as matrix products")


def _fits(x: Tensor, weight: Tensor, band: Band, stride: tuple[int, ...], **rest: Any) -> str | None:
    """The reason why the transforms of what is computed are not made as matrices, or None."""
    return fits_matrices(x, computed_band(band, stride, weight.shape[2:]))


# --- baselines ------------------------------------------------------------------------------------------------------


def _subsample(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    return dft_gemm(x, spread(weight, dilation), bias, band, groups)[every(stride)].contiguous()


def _torch_fft(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    return baselines.torch_fft(x, spread(weight, dilation), bias, band, groups)[every(stride)].contiguous()


def _alias_fold(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Full complex FFTs on the circle, the band, the fold, and an inverse on the circle of N / s."""
    if x.shape[0] == 0:  # an FFT library refuses an empty batch; the answer is as empty by any route
        return _direct(x, weight, bias, band, groups, stride, dilation)
    dtype, axes = compute_dtype(x.dtype), tuple(range(2, x.dim()))
    with as_written(x.device.type):
        kernel = spread(weight, dilation).to(dtype)
        for axis, n in zip(axes, band.n, strict=True):  # taps beyond a turn add up
            turns = -(-kernel.shape[axis] // n)
            kernel = F.pad(kernel, [0, 0] * (axes[-1] - axis) + [0, turns * n - kernel.shape[axis]])
            kernel = kernel.unflatten(axis, (turns, n)).sum(axis)
        w_hat = torch.fft.fftn(kernel.roll([-before for before, _ in band.pad], axes), dim=axes)
        x_hat = torch.fft.fftn(x.to(dtype), s=band.n, dim=axes)
        folded = torch.einsum(
            "bgc...,goc...->bgo...", x_hat.unflatten(1, (groups, -1)), w_hat.unflatten(0, (groups, -1)).conj()
        ).flatten(1, 2)
        for axis, n, kept, step in zip(axes, band.n, band.kept, stride, strict=True):
            low = torch.fft.fftfreq(n, 1.0 / n, device=x.device).abs() < kept
            folded = folded * low.view(-1, *(1 for _ in axes[axis - 1 :]))
            folded = folded.unflatten(axis, (step, n // step)).mean(axis)
        y = torch.fft.ifftn(folded, dim=axes).real
        y = y[(..., *(slice(side) for side in strided_sides(band.out, stride)))]
        return (y if bias is None else y + bias.to(dtype).view(-1, *(1 for _ in axes))).to(x.dtype).contiguous()


def _divides(band: Band, stride: tuple[int, ...], **rest: Any) -> str | None:
    if all(n % step == 0 for n, step in zip(band.n, stride, strict=True)):
        return None
    return f"the spectrum folds where the stride divides N, got stride {stride} and N {band.n}; choose a grid"


def _direct(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    convolve = F.conv2d if x.dim() == 4 else F.conv1d
    before, after = zip(*band.pad, strict=True)
    if before != after:
        x = F.pad(x, [zeros for pair in reversed(band.pad) for zeros in pair])
        before = tuple(0 for _ in before)
    return convolve(x, weight, bias, stride, before, dilation, groups)


def _compressed(band: Band, **rest: Any) -> str | None:
    return None if band.compression > 0.0 else "at compression 0 it is the implementation `direct`"


def _uncompressed(band: Band, **rest: Any) -> str | None:
    return None if band.compression == 0.0 else "direct convolution cannot limit the band; it needs compression=0"


# --- what both operations declare -----------------------------------------------------------------------------------


def band_of(case: Case, axes: int) -> Band:
    """The geometry of a case with `side` samples on every axis."""
    kernel = case["dilation"] * (case["kernel_size"] - 1) + 1
    return conv_band((case["side"],) * axes, (kernel,) * axes, compression=case["compression"], grid=case["grid"])


def inputs_of(case: Case, axes: int, device: str) -> dict[str, Any]:
    """The keywords of every implementation."""
    band = band_of(case, axes)
    taps = computed_band(band, (1,) * axes, (case["kernel_size"],) * axes)
    steps = {name: (case[name],) * axes for name in ("stride", "dilation")}
    return {**case_inputs(case, taps, device), "band": band, **steps}


def cost(case: Case, axes: int) -> Cost:
    """`cost.conv_cost` with the samples that are wanted and the taps that there are."""
    band = band_of(case, axes)
    return case_cost(case, computed_band(band, (case["stride"],) * axes, (case["kernel_size"],) * axes))


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """In float64: stride 1 with zeros between the taps, then every s-th sample."""
    return baselines.reference(x, spread(weight, dilation), bias, band, groups)[every(stride)]


def ideal(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """The same without a band limit."""
    return baselines.ideal(x, spread(weight, dilation), bias, band, groups)[every(stride)]


IMPLEMENTATIONS = (
    Implementation(
        "dft_native",
        "kernel",
        strided_dft_native,
        "folded truncated DFT in C++, the inverse at the wanted samples alone",
        engine="native",
        available=build.unavailable,
        supports=_fits,
    ),
    Implementation(
        "dft_gemm",
        "kernel",
        strided_dft_gemm,
        "truncated DFT, the inverse at the wanted samples alone",
        supports=_fits,
    ),
    Implementation("subsample", "baseline", _subsample, "stride 1, then every s-th sample", supports=fits_matrices),
    Implementation("torch_fft", "baseline", _torch_fft, "rfft, crop, einsum, irfft, then every s-th sample"),
    Implementation("alias_fold", "baseline", _alias_fold, "fft, fold, ifft on N / s", supports=_divides),
    Implementation(
        "direct", "baseline", _direct, "cuDNN / oneDNN", engine="library", supports=_uncompressed, tolerance=DIRECT
    ),
)

RIVALS = (
    Implementation(
        "direct_uncompressed",
        "rival",
        _direct,
        "cuDNN / oneDNN without a band limit",
        engine="library",
        supports=_compressed,
        tolerance=DIRECT,
    ),
)
