"""The one place that words argument errors: what was expected, what came, what to do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectralkernels.errors import DtypeError, RangeError, ShapeError

REAL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_dims(name: str, tensor: Tensor, dims: str) -> None:
    """`dims` is the layout in words, `[batch, channel, height, width]`; its commas count the dimensions."""
    wanted = dims.count(",") + 1
    if tensor.dim() != wanted:
        raise ShapeError(f"{name} must have {wanted} dimensions {dims}, got shape {list(tensor.shape)}")


def check_dtype(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        got = str(tensor.dtype).removeprefix("torch.")
        raise DtypeError(f"{name} must be one of {_names(dtypes)}, got {got}; convert it with {name}.to(...)")


def check_like(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Same dtype and device as another argument."""
    if tensor.device != like.device:
        raise DtypeError(
            f"{name} must be on the device of {like_name} ({like.device}), got {tensor.device}; move one of them"
        )
    if tensor.dtype != like.dtype:
        wanted, got = (str(t.dtype).removeprefix("torch.") for t in (like, tensor))
        raise DtypeError(f"{name} must have the dtype of {like_name} ({wanted}), got {got}; convert one of them")


def check_channels(channels: int, weight: Tensor, groups: int, x_name: str = "x", weight_name: str = "weight") -> None:
    """Channels of the input against a weight [out_channel, in_channel / groups, ...]."""
    if groups < 1:
        raise RangeError(f"groups must be at least 1, got {groups}")
    if channels % groups or weight.shape[0] % groups:
        raise ShapeError(
            f"groups={groups} must divide the {channels} channels of {x_name} "
            f"and the {weight.shape[0]} output channels of {weight_name}"
        )
    if weight.shape[1] * groups != channels:
        raise ShapeError(
            f"{weight_name} must have {channels // groups} input channels per group "
            f"({channels} channels of {x_name} in groups={groups}), got shape {list(weight.shape)}"
        )


def check_compression(compression: float) -> None:
    if math.isnan(compression) or not 0.0 <= compression < 1.0:
        raise RangeError(
            f"compression must lie in [0, 1), the fraction of coefficients to drop, got {compression}; "
            "a percentage must be divided by 100"
        )


def check_bias(bias: Tensor | None, weight_channels: int, x: Tensor) -> None:
    if bias is None:
        return
    if list(bias.shape) != [weight_channels]:
        raise ShapeError(
            f"bias must have shape [{weight_channels}], one value per output channel, got {list(bias.shape)}"
        )
    check_like("bias", bias, "x", x)
