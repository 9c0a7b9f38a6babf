"""torch.autocast around a call: a convolution casts its arguments as torch.nn.functional.conv2d does, and nothing else.

Left to itself autocast would round every matrix product inside an operator, whatever precision it promises.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

# Named because torch.compile of torch 2.9 cannot ask torch.amp.is_autocast_available.
DEVICES = ("cpu", "cuda")

_Argument = TypeVar("_Argument")


def cast(argument: _Argument, device: str) -> _Argument:
    """A real tensor in the dtype of the autocast region around the call; itself outside one, and in float64.

    Arguments that are no real tensors, such as spectra, stay as they are.
    """
    if not isinstance(argument, Tensor) or not _active(device):
        return argument
    if not argument.is_floating_point() or argument.dtype == torch.float64:
        return argument
    lowered: Any = argument.to(torch.get_autocast_dtype(device))
    return lowered


def as_written(device: str) -> AbstractContextManager[object]:
    """Inside, autocast casts nothing on the device."""
    return torch.autocast(device, enabled=False) if _active(device) else nullcontext()


def _active(device: str) -> bool:
    return device in DEVICES and torch.is_autocast_enabled(device)
