"""Spectral convolution in three Triton launches through the L2 cache, in seven accuracy classes.

    Z = D_x x        [V, U, 2, B C]     transforms.analyse_*: separable for maps, one matrix for series and small maps
    W = D_w w        [V, U, 2, O C/g]   the same kernel, for a small operand; not there for a frozen weight
    Y = m Z conj(W)  [V, U, 2, B O]     products.contract_kernel: one complex product per mode on tensor cores
    y = relu(E Y + b)                   transforms.synthesise_*

Only kept modes exist, and only their two or three spectra are allocated. Backward applies the transposed maps with the
same kernels; `operators` says what it saves. The mask m is that of `masked_conv2d`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from spectralkernels.checks import REAL_DTYPES
from spectralkernels.convolution.dft_gemm import prepare_frozen
from spectralkernels.convolution.dft_triton.layout import box_layout, layout_of
from spectralkernels.convolution.dft_triton.operators import apply, convolve
from spectralkernels.convolution.dft_triton.precision import PRECISIONS
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.declare import Implementation, Tolerance
from spectralkernels.errors import RangeError
from spectralkernels.launch import triton_unavailable
from spectralkernels.spectra import Band

Activation = Literal["none", "relu"]
SavedMap = Literal["class", "bf16"]
SavedWeight = Literal["taps", "spectrum"]
ACTIVATIONS, SAVED_MAPS, SAVED_WEIGHTS = (get_args(known) for known in (Activation, SavedMap, SavedWeight))
DEFAULT = "tf32x3"


def dft_triton(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None,
    band: Band,
    groups: int,
    *,
    precision: str = DEFAULT,
    activation: Activation = "none",
    saved_map: SavedMap = "class",
    saved_weight: SavedWeight = "taps",
) -> Tensor:
    """Convolve with a band limit on the tensor cores.

    x: Real [B, C, *size], float32 or half, CUDA. weight: Real [O, C / groups, *kernel] or its WeightSpectrum.
    bias: Real [O] | None. precision: a name of `PRECISIONS`. activation: applied in the last kernel's epilogue.
    saved_map: what the spectrum of x is saved as for backward: as the class stores it, or rounded to bfloat16, which
        halves it and gives the gradient of the weight a relative error of about 1.6e-3, and a gradient of that one
        two to four times as much; nothing else changes.
    saved_weight: the taps alone, or their spectrum besides, which saves backward one launch.
    Returns: Real [B, O, *out], dtype of x, contiguous. Raises: RangeError on an unknown choice.
    """
    _check_choices(precision, activation, saved_map, saved_weight)
    relu, layout = activation == "relu", box_layout(band.n, band.kept)
    if isinstance(weight, WeightSpectrum):
        return apply(x, weight.modes, bias, weight.out_channels, groups, layout, band.out, precision, relu)
    starts = [-before for before, _ in band.pad]
    y, _, _ = convolve(
        x, weight, bias, None, starts, groups, layout, band.out, precision, relu, saved_map, saved_weight
    )
    return y


def plan(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None,
    band: Band,
    groups: int,
    *,
    precision: str = DEFAULT,
    activation: Activation = "none",
    **saved: str,
) -> Callable[[Tensor, Any, Tensor | None], Tensor]:
    """What computes `dft_triton` of these sizes, dtypes and devices where no gradient is wanted."""
    from spectralkernels.convolution.dft_triton import chain

    _check_choices(precision, activation, **saved)
    frozen = isinstance(weight, WeightSpectrum)
    outputs = weight.out_channels if isinstance(weight, WeightSpectrum) else weight.shape[0]
    starts = () if frozen else tuple(-before for before, _ in band.pad)
    geometry = chain.ChainGeometry(layout_of(box_layout(band.n, band.kept)), starts, groups, precision)
    relu, kernel = activation == "relu", None if frozen else band.kernel
    run = chain.planned_forward(
        tuple(x.shape), outputs, geometry, band.out, relu, x.dtype, x.device, kernel=kernel, biased=bias is not None
    )

    def forward(x: Tensor, weight: Tensor | WeightSpectrum, bias: Tensor | None) -> Tensor:
        operand = weight.modes if isinstance(weight, WeightSpectrum) else weight
        return run(x.contiguous(), operand.contiguous(), None if bias is None else bias.contiguous())

    return forward


def _check_choices(precision: str, activation: str, saved_map: str = "class", saved_weight: str = "taps") -> None:
    if precision not in PRECISIONS:
        raise RangeError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    for name, value, known in (
        ("activation", activation, ACTIVATIONS),
        ("saved_map", saved_map, SAVED_MAPS),
        ("saved_weight", saved_weight, SAVED_WEIGHTS),
    ):
        if value not in known:
            raise RangeError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")


def supports(x: Tensor, weight: Tensor | WeightSpectrum, **rest: Any) -> str | None:
    """The reason why these kernels cannot serve a call with a weight tensor, or None."""
    if isinstance(weight, WeightSpectrum):
        return "it takes a weight tensor, not a WeightSpectrum"
    return _dtype_reason(x)


def supports_frozen(x: Tensor, weight: Tensor | WeightSpectrum, **rest: Any) -> str | None:
    """The reason why these kernels cannot serve a call with a frozen weight, or None."""
    if not isinstance(weight, WeightSpectrum):
        return "it takes a frozen weight; pass weight_spectrum(weight, ...) instead of the weight"
    return _dtype_reason(x)


def _dtype_reason(x: Tensor) -> str | None:
    if x.dtype not in REAL_DTYPES or x.dtype == torch.float64:
        return f"the Triton kernels take float32, float16 and bfloat16 maps, got {str(x.dtype).removeprefix('torch.')}"
    return None


# --- the named implementations --------------------------------------------------------------------------------------


def name_of(precision: str, base: str = "dft_triton") -> str:
    """`dft_triton` in the default class, else `dft_triton_bf16`."""
    return base if precision == DEFAULT else f"{base}_{precision}"


def _trained(precision: str) -> Implementation:
    return Implementation(
        name_of(precision),
        "kernel",
        partial(dft_triton, precision=precision),
        f"truncated DFT, product and inverse as three Triton kernels, operands in {precision}",
        engine="triton",
        available=triton_unavailable,
        supports=supports,
        plan=partial(plan, precision=precision),
        tolerance=PRECISIONS[precision].tolerance,
    )


def _frozen(precision: str) -> Implementation:
    return Implementation(
        name_of(precision, "dft_triton_frozen"),
        "kernel",
        partial(dft_triton, precision=precision),
        f"the same with the weight transformed once, outside the clock, operands in {precision}",
        engine="triton",
        available=triton_unavailable,
        supports=supports_frozen,
        prepare=prepare_frozen,
        plan=partial(plan, precision=precision),
        frozen=True,
        gradients=("x", "bias"),
        tolerance=PRECISIONS[precision].tolerance,
    )


_default = PRECISIONS[DEFAULT].tolerance

IMPLEMENTATIONS = (
    *map(_trained, (DEFAULT, *(name for name in PRECISIONS if name != DEFAULT))),
    Implementation(
        "dft_triton_save_bf16",
        "kernel",
        partial(dft_triton, saved_map="bf16"),
        "dft_triton with half the bytes saved for backward: the spectrum of x in bfloat16",
        engine="triton",
        available=triton_unavailable,
        supports=supports,
        plan=plan,
        tolerance=Tolerance(
            {dtype: max(bound, 3e-3) for dtype, bound in _default.relative.items()},
            "the gradient of the weight sums products with numbers rounded to 8 bits, 1.0e-3 to 2.4e-3 seen; the "
            "answer and the other gradients are those of dft_triton",
        ),
    ),
    Implementation(
        "dft_triton_save_spectrum",
        "kernel",
        partial(dft_triton, saved_weight="spectrum"),
        "dft_triton that saves the weight's spectrum besides the weight, and one launch in backward",
        engine="triton",
        available=triton_unavailable,
        supports=supports,
        plan=plan,
        tolerance=_default,
    ),
    *map(_frozen, (DEFAULT, "tf32", "fp16", "bf16")),
)
