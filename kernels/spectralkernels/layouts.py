"""Maps as torch.nn.functional.conv2d takes and gives them: one sample or a batch, in channels_last or not."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralkernels.checks import check_tensor
from spectralkernels.errors import ShapeError, Unsupported


def batched(x: Tensor, dims: str) -> Tensor:
    """x with a batch axis; `dims` is the layout in words with it, `[batch, channel, height, width]`.

    Raises: DtypeError if x is no tensor, ShapeError if it has neither the dimensions of a batch nor of one sample;
    Unsupported within torch.jit.trace, which would take sizes for numbers.
    """
    check_tensor("x", x)
    if torch.jit.is_tracing():
        raise Unsupported(
            "torch.jit.trace would hold the sizes of its example as numbers, the matrices for them as well; "
            "export the model with torch.export, or compile it with torch.compile"
        )
    wanted = dims.count(",") + 1
    if x.dim() == wanted - 1:
        return x.unsqueeze(0)
    if x.dim() != wanted:
        raise ShapeError(
            f"x must have {wanted} dimensions {dims}, or {wanted - 1} for one sample, got shape {list(x.shape)}"
        )
    return x


def as_given(y: Tensor, given: Tensor, *operands: object) -> Tensor:
    """An answer [batch, channel, ...] in the form of the call: without a batch where `given` has none, and in
    channels_last where a tensor among `operands` is."""
    if y.dim() == 4 and any(isinstance(each, Tensor) and is_channels_last(each) for each in operands):
        y = y.contiguous(memory_format=torch.channels_last)
    return y.squeeze(0) if given.dim() < y.dim() else y


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the strides are those of [batch, height, width, channel] and no others: of a map or a kernel.

    Never within torch.func, which knows no layouts.
    """
    if tensor.dim() != 4 or torch._C._are_functorch_transforms_active():
        return False
    if tensor.is_contiguous():
        # One channel is contiguous either way: its stride tells what it was converted to.
        one_channel = tensor.shape[1] == 1 and tensor.stride(1) == 1 and tensor.shape[2] * tensor.shape[3] > 1
        return one_channel and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.is_contiguous(memory_format=torch.channels_last)


def in_channels_last(tensor: Tensor) -> Tensor:
    """A map or a kernel in that layout; what has other dimensions, and all within torch.func, as it is."""
    if tensor.dim() != 4 or torch._C._are_functorch_transforms_active():
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
