"""Convolution under a mask of the half spectrum: bands, energy, discs, soft windows, dropout, or anything else.

    y = crop( irfft2( m . sum_channels X . conj(W) ) ) + b,     X = F(x), W = F(w) on an N_h x N_w circle

m is a mask of `spectralkernels.masks`, one for the batch or one per sample. It multiplies the product once, that is the
spectrum of x alone. m = 1 everywhere is `torch.nn.functional.conv2d`; the rectangular mask is `band_limited_conv2d`.
Conjugate pairs in the self-conjugate columns are treated alike: see `masks.hermitian`.
Sources: Dziedzic et al. 2019 (bands, energy), Riad et al. 2022 (soft window), Rippel et al. 2015 (dropout).

Floor of a forward pass: `cost.conv_cost` with the modes that the mask keeps, and the mask read once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spectralkernels.autocast import cast
from spectralkernels.checks import as_integer, as_integers, checked_steps, kind
from spectralkernels.constants import traced
from spectralkernels.convolution.geometry import (
    GridChoice,
    Padding,
    WeightSpectrum,
    check_arguments,
    check_frozen_weight,
    check_spectrum_arguments,
    checked_groups,
    compute_dtype,
    conv_band,
    dilation_of,
    filled,
    frozen_band,
    needs_tensor,
    reach,
)
from spectralkernels.convolution.implementations import DIRECT
from spectralkernels.convolution.prepared import PREPARED, keep_by_numbers, known_call, prepared, signature
from spectralkernels.convolution.strided import every
from spectralkernels.declare import Implementation, Operation, Tolerance, all_of
from spectralkernels.dispatch import reads, resolved
from spectralkernels.errors import DtypeError, RangeError, ShapeError
from spectralkernels.layouts import as_given, batched
from spectralkernels.masks import hermitian, mode_list
from spectralkernels.masks.geometry import check_mask, paired
from spectralkernels.modes import ModeList, every_mode
from spectralkernels.operators import is_differentiated
from spectralkernels.ops.masked_conv2d import dft_native, dft_triton
from spectralkernels.ops.masked_conv2d.baselines import (
    direct,
    direct_reads,
    direct_supports,
    ideal,
    reference,
    torch_fft,
)
from spectralkernels.ops.masked_conv2d.choice import auto
from spectralkernels.ops.masked_conv2d.dft_gemm import (
    dft_gemm,
    fits_matrices,
    freeze_weight,
    needs_spectrum,
    plan,
    prepare_frozen,
)
from spectralkernels.ops.masked_conv2d.profiles import PROFILES, band_of, cost, make_inputs, observe
from spectralkernels.spectra import Band


def masked_conv2d(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    mask: Tensor,
    bias: Tensor | None = None,
    *,
    modes: ModeList | None = None,
    padding: Padding | None = None,
    groups: int | None = None,
    grid: GridChoice | None = None,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] | None = None,
    impl: str = "auto",
) -> Tensor:
    """Convolve maps under a mask of their half spectrum.

    x: Real [batch, channel, height, width], or one sample of it, any strides; float32, float64, or half
        (computed in float32). Within torch.autocast x, weight and bias are cast as by torch.nn.functional.conv2d.
    weight: Real [out_channel, channel / groups, kernel_height, kernel_width], may be larger than the map; or a frozen
        `WeightSpectrum` made by `masked_weight_spectrum` for the same geometry and modes.
    mask: Bool or Float [N_h, N_w // 2 + 1], or [batch, 1, N_h, N_w // 2 + 1] with one mask per sample, on the grid
        (N_h, N_w) = `masks.fft_grid(size, kernel, padding=padding, grid=grid, dilation=dilation)`.
    bias: Real [out_channel] or None.
    modes: what is computed; frequencies outside count as masked. None lists the non-zero cells of the mask, whose
        numbers are read on the host and compared with those of earlier calls; but lists every mode if the mask has a
        gradient or a tangent (that of a zero cell is not zero), or while torch.compile traces or where it is fake. Pass
        `masks.mode_list(mask, n)` to avoid either. A frozen weight brings its own.
    padding, groups, grid: as in `band_limited_conv2d`; None is what a frozen weight was made for.
    stride: every how many samples of the answer are given, one number >= 1 or (vertical, horizontal). All of them are
        computed: the modes and their products are those of stride 1, four fifths of the arithmetic or more.
    dilation: distance of the kernel's taps, one number >= 1 or (vertical, horizontal), for a weight that is a tensor.
    impl: a name of `implementations("masked_conv2d")`, or "auto".
    Returns: Real [batch, out_channel, out_height, out_width], dtype of x, in channels_last where x or weight is.
        Differentiable in x, weight, bias and a float mask.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    key = signature(OPERATION.name, impl, x, weight, bias, (modes, padding, groups, grid, stride, dilation), mask)
    if (known := known_call(key, mask)) is not None:
        return known(x, weight, bias, mask)
    numbers = mask
    given, x = x, batched(x, "[batch, channel, height, width]")
    groups = checked_groups(groups, weight)
    steps = checked_steps("stride", stride, 2)
    _check_modes(modes, (type(None),))
    device = x.device.type
    x, weight, bias = cast(x, device), cast(weight, device), cast(bias, device)
    if isinstance(weight, WeightSpectrum):
        if dilation is not None:
            raise RangeError(
                f"dilation must be left out with a frozen WeightSpectrum, which has its own, got {dilation}"
            )
        modes = weight.mode_list if modes is None else modes
        band = frozen_band(weight, tuple(x.shape[2:]), compression=None, padding=padding, grid=grid)
    else:
        check_arguments(x, weight, bias, groups, 1, "height, width")
        options = filled({"compression": None, "padding": padding, "grid": grid})
        kernel = reach(weight.shape[2:], checked_steps("dilation", 1 if dilation is None else dilation, 2))
        band = conv_band(tuple(x.shape[2:]), kernel, **options)
    n = (band.n[0], band.n[1])
    _check_mask(mask, x)
    told = modes is not None
    whole = modes is None and is_differentiated(mask)
    if mask.is_floating_point():  # a pair of cells gets its mean in the precision of the computation
        mask = mask.to(torch.promote_types(mask.dtype, compute_dtype(x.dtype)))
    mask = hermitian(mask, n)
    if modes is None:
        modes = every_mode(n) if whole or traced(mask) else mode_list(mask, n)
    if isinstance(weight, WeightSpectrum):
        check_spectrum_arguments(x, weight, bias, band, groups, 1, modes)
    if modes.n != n:
        raise ShapeError(f"modes must be listed on the grid {n} of this call, got {modes.n}; see masks.mode_list")
    inputs: dict[str, Any] = {"x": x, "weight": weight, "mask": mask, "bias": bias}
    inputs.update(band=band, modes=modes, groups=groups)
    implementation = resolved(OPERATION, impl, device, inputs)
    y, sampled = implementation.call(**inputs), None if steps == (1, 1) else every(steps)
    y = y if sampled is None else y[sampled].contiguous()
    if key is not None and not x.is_meta:
        dtype = mask.dtype
        of_mask = lambda mask: paired(mask.to(dtype), n)  # noqa: E731
        call = prepared(implementation, given, inputs, of_mask, sampled)
        # Modes that are listed here follow from the mask's numbers.
        if (told or whole) and not reads(OPERATION, impl, inputs):
            PREPARED.keep(key, call)
        else:
            keep_by_numbers(key, numbers, call)
    return as_given(y, given, x, weight)


def masked_weight_spectrum(
    weight: Tensor,
    modes: ModeList | Tensor,
    size: tuple[int, int],
    *,
    padding: Padding = "same",
    groups: int = 1,
    grid: GridChoice = "tight",
    dilation: int | tuple[int, int] = 1,
) -> WeightSpectrum:
    """Transform a frozen weight once at the modes of a mask, to be passed as `weight` to `masked_conv2d`.

    weight: Real [out_channel, channel / groups, kernel_height, kernel_width]. size: (height, width) of the maps.
    modes: a `masks.mode_list`, or a mask to make one of. The mask of a call may have any values there; elsewhere it
        counts as zero. padding, groups, grid, dilation: as in `masked_conv2d`.
    Returns: a snapshot: it carries no gradient and does not follow later changes of the weight.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit.
    """
    height, width = as_integers("size", size, (2,))
    groups = as_integer("groups", groups)
    check_frozen_weight(weight, 2, groups)
    _check_modes(modes, (Tensor,))
    kernel = reach(weight.shape[2:], checked_steps("dilation", dilation, 2))
    band = conv_band((height, width), kernel, compression=0.0, padding=padding, grid=grid)
    n = (band.n[0], band.n[1])
    if isinstance(modes, Tensor):
        modes = mode_list(hermitian(modes, n), n)
    elif modes.n != n:
        raise ShapeError(f"modes must be listed on the grid {n} of this weight, got {modes.n}; see masks.mode_list")
    return freeze_weight(weight, band, modes, groups)


def _check_mask(mask: Tensor, x: Tensor) -> None:
    check_mask(mask)
    if mask.device != x.device:
        raise DtypeError(f"mask must be on the device of x ({x.device}), got {mask.device}; move one of them")
    if mask.dim() != 2 and (mask.dim() != 4 or mask.shape[:2] != (x.shape[0], 1)):
        raise ShapeError(
            f"mask must be [N_h, N_w // 2 + 1] or [{x.shape[0]}, 1, N_h, N_w // 2 + 1], one per sample, "
            f"got {list(mask.shape)}"
        )


def _check_modes(modes: object, others: tuple[type, ...]) -> None:
    if not isinstance(modes, (ModeList, *others)):
        raise DtypeError(f"modes must be a masks.ModeList, made by masks.mode_list(mask, n), got {kind(modes)}")


def _direct_supports(**inputs: Any) -> str | None:
    return needs_tensor(**inputs) or direct_supports(**inputs)


def _undilated(weight: Tensor | WeightSpectrum, band: Band, **rest: Any) -> str | None:
    if isinstance(weight, WeightSpectrum) or dilation_of(band, weight.shape[2:]) == (1, 1):
        return None
    return "its kernels have dilation 1; 'dft_gemm' and 'torch_fft' take others"


OPERATION = Operation(
    name="masked_conv2d",
    summary="2-D convolution under any mask of the half spectrum",
    version=1,
    source="Dziedzic et al. 2019; Riad et al. 2022; Rippel, Snoek and Adams 2015",
    profiles=PROFILES,
    make_inputs=make_inputs,
    reference=reference,
    ideal=ideal,
    cost=cost,
    fft_size=lambda case: band_of(case).n,
    tolerance=Tolerance(
        {"float32": 3e-6, "float64": 1e-13, "float16": 1e-3, "bfloat16": 8e-3},
        because="as in band_limited_conv2d: fp32 matrix products and FFTs over thousands of terms, 4e-7 to 7e-7 seen, "
        "four times that allowed; half types are computed in fp32 and rounded once on the way out",
    ),
    implementations=(
        Implementation(
            "dft_gemm",
            "kernel",
            dft_gemm,
            "truncated DFT of one mode list, as matrix products",
            supports=all_of(needs_tensor, fits_matrices),
            plan=plan,
        ),
        Implementation(
            "dft_gemm_frozen",
            "kernel",
            dft_gemm,
            "the same with the weight transformed once, outside the clock",
            supports=all_of(needs_spectrum, fits_matrices),
            prepare=prepare_frozen,
            plan=plan,
            frozen=True,
            gradients=("x",),
        ),
        Implementation(
            "torch_fft",
            "baseline",
            torch_fft,
            "torch.fft, the product at the kept cells only",
            supports=needs_tensor,
        ),
        Implementation(
            "torch_fft_frozen",
            "baseline",
            torch_fft,
            "torch.fft, with the weight transformed once, outside the clock",
            supports=needs_spectrum,
            prepare=prepare_frozen,
            frozen=True,
            gradients=("x",),
        ),
        Implementation(
            "direct",
            "baseline",
            direct,
            "cuDNN / oneDNN, for a mask of ones",
            supports=_direct_supports,
            reads=direct_reads,
            tolerance=DIRECT,
        ),
        *(
            replace(each, supports=all_of(_undilated, each.supports))
            for each in (*dft_native.IMPLEMENTATIONS, *dft_triton.IMPLEMENTATIONS)
        ),
    ),
    rivals=(
        Implementation(
            "direct_uncompressed",
            "rival",
            direct,
            "cuDNN / oneDNN without a mask: what the layer would replace",
            tolerance=DIRECT,
        ),
    ),
    auto=auto,
    observe=observe,
    # A bool mask has no gradient; that of a float one is proven by the tests at zero and non-zero cells alike.
    gradients=("x", "weight"),
)
