"""The library convolution, cuDNN on a GPU and oneDNN on a CPU, in the layouts and roundings that a user can choose.

Arguments as in `baselines`. None of them limits the band: at compression 0 they compute the operation, above it what a
user would call instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.convolution.library import convolve, convolve_in_best_layout
from spectralkernels.layouts import in_channels_last
from spectralkernels.spectra import Band
from spectralkernels.tf32 import tf32_allowed


def direct(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """The library convolution, cuDNN on a GPU and oneDNN on a CPU, by way of channels_last where oneDNN would be slow.

    Only legal at compression 0. The answer has the layout that conv2d gives it.
    """
    return _direct(x, weight, bias, band, groups, convolve_in_best_layout)


def direct_converted(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """`direct` by way of channels_last, the maps converted on the way in and out; series as maps of one row."""
    if x.dim() == 3:
        return direct_converted(x.unsqueeze(2), weight.unsqueeze(2), bias, _flat(band), groups).squeeze(2)
    return direct_channels_last(x, weight, bias, band, groups).contiguous()


def _flat(band: Band) -> Band:
    """The geometry of series as maps of one row."""
    size, kernel, out = (1, *band.size), (1, *band.kernel), (1, *band.out)
    n, kept = (1, *band.n), (1, *band.kept)
    return replace(band, size=size, kernel=kernel, pad=((0, 0), *band.pad), out=out, n=n, kept=kept)


def direct_bf16(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """`direct_channels_last` on bfloat16 maps, which AMX multiplies; the answer has the dtype of x."""
    prepared = prepare_bf16(x, weight, bias, band, groups)
    return direct_channels_last(**prepared).to(x.dtype)


def prepare_bf16(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> dict[str, Any]:
    """Float32 maps and kernel as a channels_last network in bfloat16 holds them."""
    if x.dtype == torch.float32:
        x, weight, bias = x.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16()
    return prepare_channels_last(x, weight, bias, band, groups)


def bf16_unavailable(device: str) -> str | None:
    """Why a convolution in bfloat16 would say nothing here, or None."""
    if device != "cpu":
        return "on a GPU bfloat16 maps are cases of their own"
    if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "this CPU has no bfloat16 products (AMX or AVX-512 BF16)"
    return None


def on_cpu_only(device: str) -> str | None:
    """cuDNN converts by itself where that pays."""
    return None if device == "cpu" else "a GPU's library converts layouts itself; `channels_last` holds them so"


def _direct(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    band: Band,
    groups: int,
    convolution: Callable[..., Tensor],
) -> Tensor:
    sides = tuple(before for before, _ in band.pad)
    if all(before == after for before, after in band.pad):
        return convolution(x, weight, bias, padding=sides, groups=groups)
    flat = [zeros for pair in reversed(band.pad) for zeros in pair]
    return convolution(F.pad(x, flat), weight, bias, padding=tuple(0 for _ in sides), groups=groups)


def direct_supports(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> str | None:
    """Direct convolution has no band limit."""
    return None if band.compression == 0.0 else "direct convolution cannot limit the band; it needs compression=0"


def direct_channels_last(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """`direct` in the layout that tensor cores like, [batch, height, width, channel] in memory; so is its answer."""
    return _direct(in_channels_last(x), in_channels_last(weight), bias, band, groups, convolve_in_best_layout)


def prepare_channels_last(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> dict[str, Any]:
    """Maps and kernel as a channels_last network holds them."""
    return {"x": in_channels_last(x), "weight": in_channels_last(weight), "bias": bias, "band": band, "groups": groups}


def channels_last_supports(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> str | None:
    """Series have no channels_last layout in torch."""
    return None if len(band.n) == 2 else "torch has no channels_last layout for series"


class _Tf32Convolution(torch.autograd.Function):
    """The library convolution with TF32 allowed, in its backward pass too, which reads the switch again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...], groups: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.padding, ctx.groups = padding, groups
        with tf32_allowed():
            return convolve(x, weight, bias, padding, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        zeros, ones = [0] * len(ctx.padding), [1] * len(ctx.padding)
        geometry = (ones, list(ctx.padding), ones, False, zeros, ctx.groups)
        with tf32_allowed():
            dx, dw, db = torch.ops.aten.convolution_backward(
                gradients[0], x, weight, ctx.bias_sizes, *geometry, list(ctx.needs_input_grad[:3])
            )
        return dx, dw, db, None, None


def direct_tf32(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """`direct` with TF32 allowed in cuDNN, whatever the process-wide flag says."""
    sides = tuple(before for before, _ in band.pad)
    if any(before != after for before, after in band.pad):
        x = F.pad(x, [zeros for pair in reversed(band.pad) for zeros in pair])
        sides = tuple(0 for _ in sides)
    return tf32_convolution(x, weight, bias, sides, groups)


def direct_channels_last_tf32(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int) -> Tensor:
    """`direct_channels_last` with TF32 allowed."""
    return direct_tf32(in_channels_last(x), in_channels_last(weight), bias, band, groups)


def float32_only(x: Tensor, **rest: Any) -> str | None:
    """TF32 is a rounding of float32."""
    return None if x.dtype == torch.float32 else f"TF32 rounds float32 maps, got {str(x.dtype).removeprefix('torch.')}"


def tf32_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...], groups: int) -> Tensor:
    """`convolve` with TF32 allowed in cuDNN, in its backward pass too."""
    y: Tensor = _Tf32Convolution.apply(x, weight, bias, padding, groups)
    return y
