"""Who computes a band-limited convolution: a catalogue for maps and one for series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution import (
    baselines,
    dft_gemm,
    dft_native,
    dft_triton,
    direct,
    fused_depthwise,
    fused_series,
    implicit_gemm,
)
from spectralkernels.convolution.cases import sum_error
from spectralkernels.convolution.geometry import WeightSpectrum, fits_matrices
from spectralkernels.declare import Implementation, Role, Tolerance, all_of
from spectralkernels.launch import triton_unavailable
from spectralkernels.spectra import Band
from spectralkernels.tf32 import tf32_unavailable


def _tensor_weight(supports: Callable[..., str | None] | None = None) -> Callable[..., str | None]:
    """Only the frozen implementation takes a WeightSpectrum; `supports` adds a condition of its own."""

    def check(**inputs: Any) -> str | None:
        if isinstance(inputs["weight"], WeightSpectrum):
            return "it takes a weight tensor, not a WeightSpectrum"
        return supports(**inputs) if supports else None

    return check


def _needs_spectrum(**inputs: Any) -> str | None:
    frozen = isinstance(inputs["weight"], WeightSpectrum)
    return None if frozen else "it takes a frozen weight; pass weight_spectrum(weight, ...) instead of the weight"


def _needs_float32(x: Tensor, **rest: Any) -> str | None:
    return None if x.dtype == torch.float32 else f"the Triton multiply takes spectra of float32 maps, got {x.dtype}"


def _uncompressed_only(band: Band, **rest: Any) -> str | None:
    same = band.compression == 0.0
    return None if same else "above compression 0 another N is another operator; there it is a rival"


def _bf16_only(x: Tensor, **rest: Any) -> str | None:
    """What `prepare_bf16` makes of float32 maps."""
    wide = x.dtype in (torch.float32, torch.bfloat16)
    return None if wide else f"it rounds float32 maps to bfloat16, got {str(x.dtype).removeprefix('torch.')}"


def _compressed_only(band: Band, **rest: Any) -> str | None:
    return None if band.compression > 0.0 else "at compression 0 it is an implementation, not a rival"


TOLERANCE = Tolerance(
    {"float32": 3e-6, "float64": 1e-13, "float16": 1e-3, "bfloat16": 8e-3},
    because="matrix products and FFTs sum thousands of terms in fp32, growing like the root of it times 2^-24: "
    "3e-7 to 7e-7 seen, four times that allowed; half types are computed in fp32 and rounded once on the way out",
)
DIRECT = Tolerance(
    TOLERANCE.relative,
    because="a library may add the products of an output one after another, or take Winograd's way: up to "
    "1.6 sqrt(terms) 2^-24 seen where both were emulated in float32, twice that allowed",
    needs=sum_error,
)

# How a network may hold its maps and what cuDNN may round them to; `direct` itself rounds nothing.
_TF32 = Tolerance(
    {"float32": 2e-3, "float16": 2e-3, "bfloat16": 1.6e-2},
    because="both operands rounded to 11 bits, summed in float32: 3e-4 to 5e-4 seen, four times that allowed",
)
_BF16 = Tolerance(
    {"float32": 1.6e-2, "bfloat16": 1.6e-2},
    because="operands and answer rounded to 8 bits, summed in float32: 3e-3 seen, five times that allowed",
)
_MODES: tuple[tuple[str, str, dict[str, Any], tuple[Callable[..., str | None], ...]], ...] = (
    (
        "channels_last",
        "in channels_last, converted outside the clock in a forward pass and inside it in the others",
        {"call": direct.direct_channels_last, "prepare": direct.prepare_channels_last},
        (direct.channels_last_supports,),
    ),
    (
        "converted",
        "by way of channels_last, both conversions inside the clock",
        {"call": direct.direct_converted, "available": direct.on_cpu_only},
        (direct.channels_last_supports,),
    ),
    (
        "bf16",
        "in channels_last and bfloat16, converted outside the clock in a forward pass and inside it in the others",
        {
            "call": direct.direct_bf16,
            "prepare": direct.prepare_bf16,
            "available": direct.bf16_unavailable,
            "tolerance": _BF16,
        },
        (_bf16_only, direct.channels_last_supports),
    ),
    (
        "tf32",
        "with TF32 allowed",
        {"call": direct.direct_tf32, "available": tf32_unavailable, "tolerance": _TF32},
        (direct.float32_only,),
    ),
    (
        "channels_last_tf32",
        "in channels_last with TF32 allowed",
        {
            "call": direct.direct_channels_last_tf32,
            "prepare": direct.prepare_channels_last,
            "available": tf32_unavailable,
            "tolerance": _TF32,
        },
        (direct.float32_only, direct.channels_last_supports),
    ),
)


def _direct_modes(
    name: str, role: Role, source: str, legal: Callable[..., str | None], axes: int
) -> tuple[Implementation, ...]:
    """The library convolution in the layouts and roundings that a user can choose, as subjects of their own.

    torch has no channels_last layout for series.
    """
    return tuple(
        Implementation(
            f"{name}_{mode}",
            role,
            source=f"{source}, {how}",
            engine="library",
            supports=all_of(legal, *conditions),
            **{"tolerance": DIRECT, **fields},
        )
        for mode, how, fields, conditions in _MODES
        if axes == 2 or direct.channels_last_supports not in conditions
    )


_DING = "depthwise implicit GEMM after Ding et al. 2022, in Triton"
_PAPER = "Dziedzic et al. 2019, sections 3.2-3.3"

# It convolves maps, not series.
_IMPLICIT_GEMM = (
    Implementation(
        "implicit_gemm_triton",
        "baseline",
        implicit_gemm.implicit_gemm,
        _DING,
        engine="triton",
        available=triton_unavailable,
        supports=all_of(_tensor_weight(direct.direct_supports), implicit_gemm.supports),
        plan=implicit_gemm.plan,
        tolerance=implicit_gemm.TOLERANCE,
    ),
)
_IMPLICIT_GEMM_RIVAL = (
    Implementation(
        "implicit_gemm_triton_uncompressed",
        "rival",
        implicit_gemm.implicit_gemm,
        f"{_DING}, without a band limit",
        engine="triton",
        available=triton_unavailable,
        supports=all_of(_compressed_only, implicit_gemm.supports),
        tolerance=implicit_gemm.TOLERANCE,
    ),
)


def implementations(axes: int) -> tuple[Implementation, ...]:
    """Everyone who computes it, of maps (2) or of series (1): who can never serve one of them is not listed there."""
    return (
        Implementation(
            "dft_gemm",
            "kernel",
            dft_gemm.dft_gemm,
            "truncated DFT as matrix products",
            supports=_tensor_weight(fits_matrices),
            plan=dft_gemm.plan,
        ),
        Implementation(
            "dft_gemm_frozen",
            "kernel",
            dft_gemm.dft_gemm,
            "the same with the weight transformed once, outside the clock",
            supports=all_of(_needs_spectrum, fits_matrices),
            prepare=dft_gemm.prepare_frozen,
            plan=dft_gemm.plan,
            frozen=True,
            gradients=("x", "bias"),
        ),
        Implementation(
            "cufft_triton",
            "kernel",
            baselines.cufft_triton,
            "torch.fft around one Triton crop-multiply-pad kernel",
            engine="triton",
            available=triton_unavailable,
            supports=_tensor_weight(_needs_float32),
            plan=baselines.plan_cufft_triton,
        ),
        *dft_native.IMPLEMENTATIONS,
        *dft_triton.IMPLEMENTATIONS,
        *(fused_depthwise.IMPLEMENTATIONS if axes == 2 else fused_series.IMPLEMENTATIONS),
        Implementation(
            "direct",
            "baseline",
            direct.direct,
            "cuDNN / oneDNN",
            engine="library",
            supports=_tensor_weight(direct.direct_supports),
            tolerance=DIRECT,
        ),
        *_direct_modes("direct", "baseline", "cuDNN / oneDNN", _tensor_weight(direct.direct_supports), axes),
        Implementation(
            "direct_lowpass",
            "baseline",
            baselines.direct_lowpass,
            "circular cuDNN / oneDNN, then a low-pass",
            supports=_tensor_weight(),
            tolerance=DIRECT,
        ),
        Implementation(
            "direct_lowpass_tf32",
            "baseline",
            baselines.direct_lowpass_tf32,
            "circular cuDNN, then a low-pass, with TF32 allowed",
            available=tf32_unavailable,
            supports=_tensor_weight(direct.float32_only),
            tolerance=_TF32,
        ),
        Implementation("torch_fft", "baseline", baselines.torch_fft, _PAPER, supports=_tensor_weight()),
        Implementation(
            "torch_fft_frozen",
            "baseline",
            baselines.torch_fft_frozen,
            f"{_PAPER}, with the weight transformed once, outside the clock",
            supports=_needs_spectrum,
            prepare=dft_gemm.prepare_frozen,
            frozen=True,
            gradients=("x", "bias"),
        ),
        Implementation(
            "torch_fft_fast",
            "baseline",
            baselines.torch_fft_fast,
            f"{_PAPER}, on the next 7-smooth N",
            supports=_tensor_weight(all_of(_uncompressed_only, baselines.fast_grid_differs)),
        ),
        Implementation(
            "torch_fft_compile",
            "baseline",
            baselines.torch_fft_compile,
            f"{_PAPER}, under torch.compile",
            compiled=True,
            available=baselines.compile_available,
            supports=_tensor_weight(),
        ),
        *(_IMPLICIT_GEMM if axes == 2 else ()),
        Implementation(
            "fft_conv_pytorch",
            "baseline",
            baselines.fft_conv_pytorch,
            "the package fft-conv-pytorch",
            foreign=True,
            available=baselines.peer_available,
            supports=_tensor_weight(baselines.peer_supports),
        ),
    )


def rivals(axes: int) -> tuple[Implementation, ...]:
    """What the layer would replace, of maps (2) or of series (1)."""
    return (
        Implementation(
            "direct_uncompressed",
            "rival",
            direct.direct,
            "cuDNN / oneDNN without a band limit: what the layer would replace",
            engine="library",
            supports=_compressed_only,
            tolerance=DIRECT,
        ),
        *_direct_modes("direct_uncompressed", "rival", "cuDNN / oneDNN without a band limit", _compressed_only, axes),
        *(_IMPLICIT_GEMM_RIVAL if axes == 2 else ()),
        Implementation(
            "torch_fft_fast_band",
            "rival",
            baselines.torch_fft_fast,
            f"{_PAPER}, with the band of the next 7-smooth N: what a user would take who may choose N",
            supports=all_of(_compressed_only, baselines.fast_grid_differs),
            reference=baselines.fast_reference,
        ),
    )


def checked(axes: int) -> tuple[str, ...]:
    """Names for the smallest profile: compiling takes seconds a case, so that it is left out."""
    return tuple(found.name for found in (*implementations(axes), *rivals(axes)) if not found.compiled)
