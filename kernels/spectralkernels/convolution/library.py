"""The library's convolution by the way that is fast: in its best layout, with gradients that are convolutions, too.

oneDNN for AVX2 (3.7; seen with ONEDNN_VERBOSE) multiplies matrices, and is slow, for rows that begin with more zeros
than `MOST_ZEROS`, for the gradient of x where more than `MOST_OVERLAP` taps lie beyond the padding, and for that of a
weight with more than `MOST_TAPS` taps along a row or with so many zeros, of a depthwise one with more than
`MOST_DEPTHWISE_TAPS`. Both gradients are convolutions themselves, for which it has kernels: of dy with the weight
turned about, and of x with dy, batch and channels having changed places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.autocast import as_written
from spectralkernels.constants import traced
from spectralkernels.convolution.composed import with_bias
from spectralkernels.layouts import in_channels_last, is_channels_last

SLOW_WIDTH = 10
"""Taps along the last axis from which oneDNN has no grouped kernel for [batch, channel, height, width] in memory and
multiplies matrices instead. Seen on an AMD EPYC with AVX-512, one thread, both conversions counted: depthwise 7 to 58
times slower than by way of channels_last, from 3 to 256 channels of 14x14 to 64x64; 3 times in groups of 16 channels.
Below, and with any number of rows, that way takes up to twice as long."""
SHORT_REGISTERS = "AVX512" not in torch.backends.cpu.get_cpu_capability()
MOST_ZEROS = 3
"""Seen on an AMD EPYC without AVX-512, one thread, forward: with zeros laid around x beforehand K = 9 to 63 is 1.3 to
2.6 times faster for 1 to 256 channels and 4 to 20 times in depthwise calls, where channels_last takes 1.3 to 1.9 times
as long; in groups of several, by way of it, 1.0 to 2.3 times."""
LONG_ZEROS, LONG_CHANNELS, LONG_ROW = 9, 16, 14
"""With AVX-512 it multiplies matrices for 16 dense channels or more and rows of more than 14 samples that begin with
more than 9 zeros (seen with ONEDNN_VERBOSE, from 7 on in rows of 30 and 60). On an AMD EPYC, one thread, forward, zeros
laid first take 1.3 to 2.2 times less for series at K = 25 and 45 and 1.7 to 3.3 times for maps of 40 x 40 at K = 21;
where it has a kernel, they cost 2 to 18 %."""
MOST_OVERLAP, MOST_TAPS, MOST_DEPTHWISE_TAPS = 7, 13, 3
"""There, by gradients that are convolutions, in CPU time: the weight's, dense maps of 32 x 32 at K = 9, 15, 31, is 1.2,
3.1 to 4.8, 4.4 to 7.4 times faster, depthwise at K = 5, 7, 15, 29 9, 8 to 11, 19, 18 times, in groups of 2 and 8
channels at K = 15 2.7 and 3.7 to 6 times, of dense series the same; x's at K = 31 4.2 to 5.7 times."""
MOST_TERMS = 1024
"""oneDNN's kernels add all terms of an answer in one register: of 8192 of them a gradient's relative error is 1.4e-6,
of 61504 3.5e-6, where its matrix products have 2.7e-7 and 4.6e-7. In pieces of this many both are 5e-7, in 0.9 to 1.3
times the CPU time for dense and depthwise maps and 1.4 times for small ones in groups."""


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...], groups: int) -> Tensor:
    """conv1d or conv2d, with the same zeros on both sides of an axis."""
    convolution: Callable[..., Tensor] = F.conv1d if x.dim() == 3 else F.conv2d
    return convolution(x, weight, bias, padding=padding, groups=groups)


def convolve_in_best_layout(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...], groups: int
) -> Tensor:
    """`convolve` with zeros laid around x beforehand, or by way of channels_last, where oneDNN would be slow."""
    if gradients_pay(x, weight, padding, groups):
        y: Tensor = _Convolution.apply(x, weight, padding, groups)
        return with_bias(y, bias)
    zeros_first = zeros_first_pay(x, weight)
    if zeros_first and lays_zeros_first(x.shape[1], groups, x.shape[-1], zeros := padding[-1]):
        x, padding = F.pad(x, (zeros, zeros)), (*padding[:-1], 0)
    if not channels_last_pays(x, weight, groups) or (
        zeros_first and SHORT_REGISTERS and weight.shape[0] == groups == x.shape[1]
    ):
        return convolve(x, weight, bias, padding, groups)
    if x.dim() == 3:
        maps = convolve_in_best_layout(x.unsqueeze(2), weight.unsqueeze(2), bias, (0, *padding), groups)
        return maps.squeeze(2)
    return convolve(in_channels_last(x), in_channels_last(weight), bias, padding, groups).contiguous()


def channels_last_pays(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether oneDNN is faster by way of channels_last, both conversions counted.

    In float32 only: float64, and bfloat16 without AMX, are 4 to 6 times slower in channels_last.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or groups == 1 or weight.shape[-1] < SLOW_WIDTH:
        return False
    return not _in_channels_last(x, weight)


def zeros_first_pay(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN may be faster for rows that begin with zeros if x holds those already.

    Its own gradient of x is slower then.
    """
    served = x.device.type == "cpu" and x.dtype == torch.float32
    return served and not _differentiated(x, weight) and not _in_channels_last(x, weight)


def lays_zeros_first(channels: int, groups: int, width: int, zeros: int) -> bool:
    """Whether so many zeros before and after a row of `width` samples are laid around x beforehand."""
    if SHORT_REGISTERS:
        return zeros > MOST_ZEROS
    return groups == 1 and channels >= LONG_CHANNELS and width > LONG_ROW and zeros > LONG_ZEROS


def gradients_pay(x: Tensor, weight: Tensor, padding: tuple[int, ...], groups: int) -> bool:
    """Whether a gradient is wanted that oneDNN is slow for. Transforms and compilers differentiate as they know to."""
    if not (_differentiated(x, weight) and _in_short_registers(x)) or x.numel() == 0:
        return False
    if traced(x, weight) or torch._C._are_functorch_transforms_active():
        return False
    return _input_is_slow(x, weight, padding, groups) or _weight_is_slow(weight, padding, groups)


def _in_short_registers(x: Tensor) -> bool:
    return SHORT_REGISTERS and x.device.type == "cpu" and x.dtype == torch.float32


def _in_channels_last(x: Tensor, weight: Tensor) -> bool:
    """In which case conv2d takes the kernels of that layout, and answers in it."""
    return is_channels_last(x) or is_channels_last(weight)


def _differentiated(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _input_is_slow(x: Tensor, weight: Tensor, padding: tuple[int, ...], groups: int) -> bool:
    if _depthwise(weight, groups) or any(zeros >= taps for zeros, taps in zip(padding, weight.shape[2:], strict=True)):
        return False
    return weight.shape[-1] - 1 - padding[-1] > MOST_OVERLAP and not _in_channels_last(x, weight)


def _weight_is_slow(weight: Tensor, padding: tuple[int, ...], groups: int) -> bool:
    taps = weight.shape[-1]
    if _depthwise(weight, groups):
        return taps > MOST_DEPTHWISE_TAPS
    if groups > 1:  # by way of channels_last it has none
        return taps >= SLOW_WIDTH or padding[-1] > MOST_ZEROS
    return weight.dim() == 4 and (taps > MOST_TAPS or padding[-1] > MOST_ZEROS)


def _depthwise(weight: Tensor, groups: int) -> bool:
    return weight.shape[0] == groups > 1 and weight.shape[1] == 1


def _input_gradient(dy: Tensor, weight: Tensor, padding: tuple[int, ...], groups: int) -> Tensor:
    """dy convolved with the weight turned about, channels of each group having changed places."""
    turned = weight.flip(*range(2, weight.dim())).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    rest = tuple(taps - 1 - zeros for taps, zeros in zip(weight.shape[2:], padding, strict=True))
    return _in_pieces(dy, turned, rest, groups)


def _weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, ...], groups: int) -> Tensor:
    """x convolved with dy, batch and channels having changed places; planes one by one of a depthwise weight."""
    batch, size = x.shape[0], x.shape[2:]
    if _depthwise(weight, groups):
        planes = batch * groups
        made = _in_pieces(x.reshape(1, planes, *size), dy.reshape(planes, 1, *dy.shape[2:]), padding, planes)
        return made.reshape(batch, groups, 1, *weight.shape[2:]).sum(0)
    maps = x.unflatten(1, (groups, -1)).movedim((2, 1), (0, 1)).flatten(1, 2)
    return _in_pieces(maps, dy.transpose(0, 1), padding, groups).transpose(0, 1).contiguous()


def _in_pieces(x: Tensor, weight: Tensor, padding: tuple[int, ...], groups: int) -> Tensor:
    """The convolution, added from pieces of at most `MOST_TERMS` where channels and rows of the weight allow it.

    Halves of channels first, in eights as they lie in registers; then rows, each piece of x with the zeros it meets.
    """
    channels, taps = weight.shape[1:3]
    if weight[0].numel() <= MOST_TERMS:
        return convolve_in_best_layout(x, weight, None, padding, groups)
    if groups == 1 and channels >= 16:
        half = channels // 16 * 8
        parts = ((x[:, :half], weight[:, :half]), (x[:, half:], weight[:, half:]))
        first, second = (_in_pieces(*part, padding, groups) for part in parts)
        return first.add_(second)
    rows = max(1, MOST_TERMS // weight[0, :, 0].numel())
    sides = [zeros for each in reversed(padding[1:]) for zeros in (each, each)]
    size, out = x.shape[2], x.shape[2] + 2 * padding[0] - taps + 1
    total = None
    for start in range(0, taps, rows):
        stop = min(taps, start + rows)
        begin, end = start - padding[0], stop - 1 - padding[0] + out  # rows of x that this piece meets
        top, bottom = min(max(0, -begin), stop - start - 1), min(max(0, end - size), stop - start - 1)
        met = x[:, :, max(0, begin) : max(0, min(size, end))]
        if met.shape[2] == 0:
            continue
        piece = convolve_in_best_layout(
            F.pad(met, [*sides, top, bottom]), weight[:, :, start:stop], None, (0,) * len(padding), groups
        )
        if total is None:
            total = piece.new_zeros(*piece.shape[:2], out, *piece.shape[3:])
        total.narrow(2, max(0, begin) - top - begin, piece.shape[2]).add_(piece)
    assert total is not None, "some row of the weight lies over x"
    return total


def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, ...], groups: int, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of x and of the weight, where wanted: by convolutions what oneDNN is slow for, by the library what it is not."""
    batched = torch._C._functorch.is_legacy_batchedtensor(dy)  # `is_grads_batched`, whose tensors know no layout
    slow = (_input_is_slow(x, weight, padding, groups), _weight_is_slow(weight, padding, groups))
    dx = _input_gradient(dy, weight, padding, groups) if wanted[0] and slow[0] and not batched else None
    dw = _weight_gradient(dy, x, weight, padding, groups) if wanted[1] and slow[1] and not batched else None
    rest = [wanted[0] and dx is None, wanted[1] and dw is None, False]
    if not any(rest):
        return dx, dw
    ones, zeros = [1] * len(padding), [0] * len(padding)
    geometry = (None, ones, list(padding), ones, False, zeros, groups)
    found = torch.ops.aten.convolution_backward(dy, x, weight, *geometry, rest)
    return (found[0] if rest[0] else dx), (found[1] if rest[1] else dw)


class _Convolution(torch.autograd.Function):
    """The convolution without a bias; its gradients may be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, ...], groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.padding, ctx.groups = padding, groups
        return convolve_in_best_layout(x, weight, None, padding, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (dy,) = ctx.saved_tensors, gradients
        with as_written(dy.device.type):  # of float32, whatever the caller of `backward` casts
            return (*_gradients(dy, x, weight, ctx.padding, ctx.groups, ctx.needs_input_grad[:2]), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, weight = ctx.saved_tensors
        pairs = ((tangents[0], weight), (x, tangents[1]))
        parts = [
            convolve(*pair, None, ctx.padding, ctx.groups) for pair in pairs if all(each is not None for each in pair)
        ]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
