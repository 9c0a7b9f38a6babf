"""Shared Triton plumbing: why a kernel cannot run here, names of dtypes, dense operands, the one way to launch.

Imports triton only when asked for its name of a dtype.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectralkernels.errors import Unsupported
from spectralkernels.stages import stage

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


def dense(tensor: Tensor) -> Tensor:
    """The tensor as a kernel that is told no strides reads it: contiguous, nothing left to conjugate or to negate.

    Itself where it already is; else a copy. `operators.operator(..., dense=True)` does this for a whole operator.
    """
    return tensor.resolve_conj().resolve_neg().contiguous()


def as_real_pairs(spectrum: Tensor) -> Tensor:
    """Complex64 [...] -> Float32 [..., 2], dense, sharing memory where `spectrum` is dense.

    Triton has no complex type, so kernels address real and imaginary parts as neighbouring floats.
    """
    if spectrum.dtype != torch.complex64:
        raise Unsupported(f"Triton kernels take complex64 spectra, got {spectrum.dtype}")
    return torch.view_as_real(dense(spectrum))


LARGEST_GRID = (2**31 - 1, 65535, 65535)
"""Programs along each axis of a launch (CUDA C++ programming guide, 20.2)."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch, not yet made: compile it ahead of time from `kernel`, `arguments` and `options`, or `run` it.

    grid: programs along one to three axes.
    strided: the arguments whose strides the kernel is told; every other tensor must be dense.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]
    strided: tuple[str, ...] = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.arguments.items() if isinstance(value, Tensor)}

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device

    def run(self) -> None:
        """Launch on the device of the tensors, whichever device is current; a grid without programs does nothing.

        Raises: Unsupported where an axis of the grid is longer than CUDA allows.
        """
        if 0 in self.grid:
            return
        for programs, most in zip(self.grid, LARGEST_GRID, strict=False):
            if programs > most:
                name = self.kernel.fn.__name__
                raise Unsupported(f"{name} needs a grid of {self.grid}, a launch holds {LARGEST_GRID}; split the batch")
        for name, tensor in self.tensors.items():
            assert name in self.strided or tensor.is_contiguous(), f"{name} is not contiguous; pass launch.dense of it"
            assert not tensor.is_neg(), f"{name} is yet to be negated; pass launch.dense of it"
        device = self.device
        # Triton launches on the current device.
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._launch()
        else:
            self._launch()

    def _launch(self) -> None:
        with stage(self.kernel.fn.__name__):
            self.kernel[self.grid](**self.arguments, **self.options)


@dataclass(frozen=True, slots=True)
class NamedLaunch:
    """A call at a realistic shape whose kernels' machine code is worth watching: an entry of `FINGERPRINTS`.

    name: shape and choices, `B128 C64 O64 34x18 bool`; unique among a kernel's launches. call: calls on meta tensors
    what a user's call runs through, so that the launch watched is the launch made; `aot.noted_launches` sees it.
    """

    name: str
    call: Callable[[], object]
