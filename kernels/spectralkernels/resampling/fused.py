"""Resampling as one Triton launch for maps up to 64 x 64, forward and backward, windows included.

    y = A_h x A_w'     one load of x, one store of y; frequency dropout and DiffStride's window are part of the launch

Exact backward: the gradient in x is the transposed map, by the same kernel; that in strides is one more launch, which
reads x and dy once, and a small sum. Nothing is saved but x and strides, where those have a gradient. Further
derivatives are those of the chain of torch's operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution.depthwise import DTYPES
from spectralkernels.convolution.fused.precision import UNSCALED, precision
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.declare import Decision
from spectralkernels.launch import triton_unavailable
from spectralkernels.masks.window import ramp, ramp_slope
from spectralkernels.operators import operator
from spectralkernels.resampling import factors, resample, windowed_matrix
from spectralkernels.target import SHARED_LIMITS, TensorCore, target_capability, tensor_core

DEFAULT = "tf32x3"
"""The accuracy class of the implementation `triton`."""

LARGEST_SIDE = 64
"""Of a map: the tile that one program holds."""

Ints = Sequence[int]


def fused_resample(
    x: Tensor,
    size: tuple[int, int],
    even: str = "average",
    share: float | Tensor | None = None,
    *,
    strides: Tensor | None = None,
    smoothness: float = 0.0,
    scale: float = 1.0,
    accuracy: str,
) -> Tensor:
    """Resample maps [batch, channel, n_h, n_w] to `size`.

    share: of the band that a dropout leaves, a number or a tensor of one. strides: Real [2], those of a soft window of
    that smoothness, with a gradient. accuracy: a name of `UNSCALED`.
    """
    window = strides
    if isinstance(share, Tensor):
        window = share.detach().reshape(1)
    number = None if isinstance(share, Tensor) or share is None else float(share)
    held = None if window is None else window.float()
    y: Tensor = resample_maps(x, held, size, even, number, smoothness, scale, False, accuracy)
    return y


def not_resampled(x: Tensor, size: tuple[int, int], accuracy: str, *, strided: bool = False) -> str | None:
    """Why the kernels cannot serve maps, or None. strided: a gradient of two strides may be asked for."""
    if x.dtype not in DTYPES:
        return f"it takes float32, float16 or bfloat16 maps, got {str(x.dtype).removeprefix('torch.')}"
    if max(x.shape[2:]) > LARGEST_SIDE:
        return f"maps must fit {LARGEST_SIDE} x {LARGEST_SIDE}, got {tuple(x.shape[2:])}; take dft_gemm"
    if max(x.shape[2:]) <= 32:
        return None
    return _too_large(accuracy, tensor_core(x.device), target_capability(x.device), strided)


def _too_large(accuracy: str, core: TensorCore, capability: int, strided: bool) -> str | None:
    """Why operands of 64 rows do not fit a GPU in a class, or None."""
    chosen = UNSCALED[accuracy]
    if chosen.mode == "ieee":
        # Triton 3.7 would also hand some products of 64 rows to sm_100's tensor cores, rounded to tf32.
        return "in fp32 it holds maps of 32 x 32; take tf32x3, as accurate"
    if core == "tcgen05" and chosen.pieces == 3:
        return "three pieces of maps above 32 x 32 overflow this GPU's tensor memory; take tf32x3, as accurate"
    if strided and chosen.pieces > 1 and SHARED_LIMITS.get(capability, STRIDES_SHARED) < STRIDES_SHARED:
        return (
            f"above 32 x 32 the gradient of strides takes {STRIDES_SHARED} bytes of shared memory with {accuracy} "
            f"operands, a block here has {SHARED_LIMITS[capability]}; take a half-precision class"
        )
    return None


STRIDES_SHARED = 160 * 1024
"""Of the gradient of strides, with split operands of 64 rows, as compiled for sm_80 to sm_100."""


def best_resampling(x: Tensor, refusal: str | None) -> Decision:
    """What `auto` takes for maps, given why the kernels would refuse them in their usual class, or None."""
    if refusal is None and x.is_cuda and triton_unavailable("cuda") is None:
        return Decision("triton", "one launch reads and writes maps once; not yet timed on a GPU")
    return Decision("dft_gemm", "two matrix products: the fastest on a CPU")


# --- the operators --------------------------------------------------------------------------------------------------


@operator("resample", dense=True)
def resample_maps(
    maps: Tensor,
    window: Tensor | None,
    size: Ints,
    even: str,
    share: float | None,
    smoothness: float,
    scale: float,
    transposed: bool,
    accuracy: str,
) -> Tensor:
    """Maps on `size`; transposed: the transposed map, from the short maps to the long ones of `size`.

    window: Float32 [1], a share, where smoothness is 0, or [2], strides.
    """
    from spectralkernels.resampling.launches import Resampling, resample_launch

    y = torch.empty((*maps.shape[:2], *size), dtype=maps.dtype, device=maps.device)
    long, short = _long_and_short(maps.shape[2:], size, transposed)
    geometry = Resampling(long, short, even, smoothness)
    resample_launch(maps, y, window, geometry, scale, precision(accuracy), transposed=transposed, share=share).run()
    return y


@resample_maps.register_fake
def _(*, maps: Tensor, size: Ints) -> Tensor:
    return maps.new_empty(*maps.shape[:2], *size)


@resample_maps.register_composed
def _(
    *,
    maps: Tensor,
    window: Tensor | None,
    size: Ints,
    even: str,
    share: float | None,
    smoothness: float,
    scale: float,
    transposed: bool,
) -> Tensor:
    dtype = compute_dtype(maps.dtype)
    long, short = _long_and_short(maps.shape[2:], size, transposed)
    made = [
        windowed_matrix(n, m, even, share, window, axis, smoothness, dtype, maps.device)
        for axis, (n, m) in enumerate(zip(long, short, strict=True))
    ]
    rows, columns = (each.t() if transposed else each for each in made)
    return (resample(maps.to(dtype), rows, columns) * scale).to(maps.dtype)


@operator("resample_window_gradient", dense=True)
def window_gradient(
    long: Tensor, short: Tensor, window: Tensor, even: str, smoothness: float, scale: float, accuracy: str
) -> Tensor:
    """Float32 [2]: the gradient of sum(short . resampled long) to the two strides."""
    from spectralkernels.resampling.launches import Resampling, partial_sums, window_gradient_launch

    sides, chosen = [(each.shape[2], each.shape[3]) for each in (long, short)], precision(accuracy)
    geometry = Resampling(sides[0], sides[1], even, smoothness)
    count = partial_sums(long.shape[0] * long.shape[1], geometry, chosen)
    partial = torch.empty((count, 2), dtype=torch.float32, device=long.device)
    window_gradient_launch(long, short, window, partial, geometry, scale, chosen).run()
    return partial.sum(0)


@window_gradient.register_fake
def _(*, window: Tensor) -> Tensor:
    return window.new_empty(2)


@window_gradient.register_composed
def _(*, long: Tensor, short: Tensor, window: Tensor, even: str, smoothness: float, scale: float) -> Tensor:
    dtype = compute_dtype(long.dtype)
    axes = []
    for axis, (n, m) in enumerate(zip(long.shape[2:], short.shape[2:], strict=True)):
        s, d, frequency = factors(n, m, even, dtype, long.device)
        facts = (frequency, n, window[axis].to(dtype), smoothness)
        axes.append((s.t(), d, ramp(*facts), ramp_slope(*facts)))
    (s_h, d_h, of_rows, slope_rows), (s_w, d_w, of_columns, slope_columns) = axes
    modes = (resample(long.to(dtype), d_h, d_w) * resample(short.to(dtype), s_h, s_w)).sum((0, 1)) * scale
    return torch.stack([slope_rows @ modes @ of_columns, of_rows @ modes @ slope_columns]).to(window.dtype)


def _long_and_short(have: Ints, size: Ints, transposed: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    given, made = (have[0], have[1]), (size[0], size[1])
    return (made, given) if transposed else (given, made)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, window, _, *facts = inputs
    needs = window is not None and ctx.needs_input_grad[1]
    ctx.save_for_backward(window, maps if needs else None)
    ctx.size, ctx.facts = list(maps.shape[2:]), facts


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    window, maps = ctx.saved_tensors
    even, share, smoothness, scale, transposed, accuracy = ctx.facts
    of_maps = of_window = None
    if ctx.needs_input_grad[0]:
        of_maps = resample_maps(dy, window, ctx.size, even, share, smoothness, scale, not transposed, accuracy)
    if maps is not None:
        long, short = (dy, maps) if transposed else (maps, dy)
        of_window = window_gradient(long, short, window, even, smoothness, scale, accuracy)
    return of_maps, of_window, *(None for _ in range(7))


resample_maps.register_autograd(_differentiate, setup_context=_save)
resample_maps.register_flops(
    lambda maps, window, size, *rest: (
        2 * maps.shape[0] * maps.shape[1] * size[0] * maps.shape[3] * (maps.shape[2] + size[1])
    )
)
window_gradient.register_flops(
    lambda long, short, *rest: (
        2
        * math.prod(short.shape[:3])
        * (long.shape[3] * (long.shape[2] + short.shape[3]) + short.shape[3] * (short.shape[2] + short.shape[3]))
    )
)
