"""Who computes a convolution with a stride or a dilation, of maps and of series alike.

`band` is that of stride 1 and of a kernel as long as the dilated one reaches, so that its grid, its padding and its
modes are those of the same kernel with zeros between its taps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.autocast import as_written
from spectralkernels.constants import traced
from spectralkernels.convolution import baselines, strided
from spectralkernels.convolution.cases import case_cost, case_inputs, observed
from spectralkernels.convolution.choice import MAP_FLOP_RATIO, TRACED_BATCH
from spectralkernels.convolution.cost import dft_gemm_flops, direct_flops
from spectralkernels.convolution.dft_gemm import dft_gemm
from spectralkernels.convolution.dft_native import build, plan_strided, strided_dft_native
from spectralkernels.convolution.geometry import compute_dtype, conv_band, fits_matrices
from spectralkernels.convolution.implementations import DIRECT, TOLERANCE
from spectralkernels.convolution.strided import computed_band, every, spread, strided_dft_gemm, strided_sides
from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Pass, Scalar
from spectralkernels.spectra import Band


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


def subsampled(compute: Callable[[Tensor, Tensor, Tensor | None, Band, int], Tensor]) -> Callable[..., Tensor]:
    """What computes stride 1, with zeros between the taps, and then every s-th sample."""

    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        band: Band,
        groups: int,
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> Tensor:
        return compute(x, spread(weight, dilation), bias, band, groups)[every(stride)].contiguous()

    return run


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


reference = subsampled(baselines.reference)
ideal = subsampled(baselines.ideal)

IMPLEMENTATIONS = (
    Implementation(
        "dft_native",
        "kernel",
        strided_dft_native,
        "folded truncated DFT in C++, the inverse at the wanted samples alone",
        engine="native",
        available=build.unavailable,
        supports=_fits,
        plan=plan_strided,
    ),
    Implementation(
        "dft_gemm",
        "kernel",
        strided_dft_gemm,
        "truncated DFT, the inverse at the wanted samples alone",
        supports=_fits,
        plan=strided.plan,
    ),
    Implementation(
        "subsample", "baseline", subsampled(dft_gemm), "stride 1, then every s-th sample", supports=fits_matrices
    ),
    Implementation(
        "torch_fft", "baseline", subsampled(baselines.torch_fft), "rfft, crop, einsum, irfft, then every s-th sample"
    ),
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


def declare(axes: int, shape: Mapping[str, tuple[Scalar, ...]], *, tiny_side: int, long_kernel: int) -> Operation:
    """The operation on maps (axes = 2) or series (1). shape: its usual case; long_kernel: the larger one of a study."""
    tiny = {
        **shape,
        "batch": (2,),
        "in_channels": (4,),
        "out_channels": (6,),
        "side": (tiny_side,),
        "input": ("white",),
    }
    both: tuple[Pass, ...] = ("forward", "both")
    return Operation(
        name=f"strided_conv{axes}d",
        summary=f"band-limited {axes}-D convolution with a stride or a dilation, by fewer samples and taps",
        version=1,
        source="Guan et al., SpecNet, 2021, section 3; Dziedzic et al., ICML 2019",
        profiles={
            "smoke": (
                Block({**tiny, "stride": (2, 3), "compression": (0.0, 0.5)}, passes=both),
                Block({**tiny, "side": (4,), "kernel_size": (4,), "groups": (2,)}, passes=both),
                Block({**tiny, "stride": (1, 2), "dilation": (2, 3)}, passes=both),
            ),
            "quick": (Block({**shape, "compression": (0.0, 0.5)}),),
            "study": (
                Block(
                    {**shape, "kernel_size": (3, long_kernel), "stride": (1, 2, 3), "compression": (0.0, 0.5, 0.8)},
                    passes=both,
                ),
                Block({**shape, "stride": (1,), "dilation": (2, 4)}, passes=both),
            ),
            "gpu": (Block({**shape, "batch": (128,)}, passes=both),),
            "asv": (Block(shape, implementations=("dft_native", "dft_gemm", "subsample", "direct_uncompressed")),),
        },
        make_inputs=lambda case, device: inputs_of(case, axes, device),
        reference=reference,
        ideal=ideal,
        cost=lambda case: cost(case, axes),
        fft_size=lambda case: band_of(case, axes).n,
        tolerance=TOLERANCE,
        implementations=IMPLEMENTATIONS,
        auto=auto,
        rivals=RIVALS,
        observe=lambda case, output: observed(band_of(case, axes)),
        gradients=("x", "weight", "bias"),
    )
