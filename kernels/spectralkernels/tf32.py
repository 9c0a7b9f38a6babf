"""TF32: for one call, as the switch is process-wide in torch, and what a number is rounded to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """Let cuBLAS and cuDNN round float32 operands to TF32 while it lasts; every flag is as before afterwards."""
    cudnn = torch.backends.cudnn
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with cudnn.flags(
            enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=True
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def tf32_unavailable(device: str) -> str | None:
    """The reason why products on `device` ("cpu" or "cuda") cannot be rounded to TF32, or None."""
    if device != "cuda":
        return "TF32 is a mode of CUDA's tensor cores"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return f"TF32 needs compute capability 8.0, this device has {capability[0]}.{capability[1]}"
    return None


def round_to_tf32(values: torch.Tensor) -> torch.Tensor:
    """Finite float32 to the nearest number with 10 fraction bits, ties away from zero, as PTX's cvt.rna does."""
    return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
