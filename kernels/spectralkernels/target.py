"""The GPU that launches are made for: its compute capability, what its tensor cores are, what a block may share."""

from __future__ import annotations

from contextvars import ContextVar
from functools import cache
from typing import Literal

import torch

SHARED_LIMITS = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Largest shared memory of one block in bytes, per compute capability (CUDA C++ programming guide, 20.2)."""

TensorCore = Literal["mma", "wgmma", "tcgen05"]
"""wgmma: sm_90, wants 64 rows; operands in shared memory, accumulators in registers. tcgen05: sm_100; accumulators and
split operands in 512 columns of tensor memory, and what needs more compiles to nothing. mma: the others; operands in
registers as well, so that tiles are smaller."""

named_capability: ContextVar[int | None] = ContextVar("named_capability", default=None)
"""The GPU that launches are compiled for ahead of time, while they are."""


def target_capability(device: torch.device) -> int:
    """The compute capability that launches for tensors on `device` are made for, 90 for sm_90.

    That of the GPU; the one in `named_capability` where there is one; where nothing runs on a GPU (interpreter, meta
    tensors), 90.
    """
    named = named_capability.get()
    if named is not None:
        return named
    return _capability_of(device) if device.type == "cuda" else 90


@cache
def _capability_of(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def tensor_core(device: torch.device) -> TensorCore:
    """The kind of tensor core that launches for tensors on `device` are made for."""
    return kind_of(target_capability(device))


def kind_of(capability: int) -> TensorCore:
    """The kind of tensor core of a compute capability, 90 for sm_90."""
    if capability // 10 == 9:
        return "wgmma"
    return "tcgen05" if capability // 10 in (10, 11) else "mma"
