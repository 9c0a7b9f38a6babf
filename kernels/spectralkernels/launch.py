"""Shared Triton plumbing: why a kernel cannot run here, names of dtypes, complex tensors as real pairs, a launch.

Imports triton only when asked for its name of a dtype.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectralkernels.errors import Unsupported

# Asked once: torch.compile of torch 2.9 cannot trace the question.
HAS_TRITON = importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run under the interpreter: checked for correctness, never timed."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def triton_unavailable(device: str) -> str | None:
    """The reason why no Triton kernel can run on `device` ("cpu" or "cuda"), or None."""
    if not HAS_TRITON:
        return "triton is not installed (pip install triton)"
    if device == "cpu" and not interpreted():
        return "Triton kernels need a CUDA device (on a CPU they run under TRITON_INTERPRET=1, for checking only)"
    if device == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return None


def triton_dtype(dtype: torch.dtype) -> Any:
    """torch.float16 -> triton.language.float16, and so on."""
    import triton.language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))


def as_real_pairs(spectrum: Tensor) -> Tensor:
    """Complex64 [...] -> Float32 [..., 2], contiguous, sharing memory where `spectrum` is contiguous.

    Triton has no complex type, so kernels address real and imaginary parts as neighbouring floats.
    """
    if spectrum.dtype != torch.complex64:
        raise Unsupported(f"Triton kernels take complex64 spectra, got {spectrum.dtype}")
    return torch.view_as_real(spectrum.resolve_conj().contiguous())


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch, not yet made: compile it ahead of time from `kernel`, `arguments` and `options`, or `run` it."""

    kernel: Any
    grid: tuple[int]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        if self.grid[0] > 0:
            self.kernel[self.grid](**self.arguments, **self.options)
