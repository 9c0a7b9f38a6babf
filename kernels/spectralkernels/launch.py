"""What every Triton kernel of the library needs around it, and the one place that launches.

Whether a kernel can run on this machine and why not, Triton's names of dtypes, operands as kernels read them, a launch
with its checks, and its plan, which a geometry makes once. Triton itself is imported only for its name of a dtype.
"""

from __future__ import annotations

import importlib.util
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from spectralkernels.constants import MOST_PLANS
from spectralkernels.errors import Unsupported
from spectralkernels.stages import stage
from spectralkernels.tuning import watched

_Arguments = ParamSpec("_Arguments")
_Plan = TypeVar("_Plan")

# Asked once: torch.compile of torch 2.9 cannot trace the question.
HAS_TRITON = importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run under the interpreter: checked for correctness, never timed."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


cpu_stands_for_gpu = [False]
"""Whether tensors on the CPU stand for a GPU's, because launches are noted in the place of made; torch.compile can read
a list where it cannot read a context variable."""


def triton_unavailable(device: str) -> str | None:
    """The reason why no Triton kernel can run on `device` ("cpu" or "cuda"), or None."""
    if not HAS_TRITON:
        return "triton is not installed (pip install triton)"
    if device == "cpu" and not interpreted() and not cpu_stands_for_gpu[0]:
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


@dataclass(slots=True)  # frozen, it would take three times as long to make
class Launch:
    """One launch, not yet made: compile it ahead of time from `kernel`, `arguments` and `options`, or `run` it.

    grid: programs along one to three axes.
    strided: the arguments whose strides the kernel is told; every other tensor must be dense.
    operands: the arguments that are tensors or None, where that is known.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]
    strided: tuple[str, ...] = ()
    operands: tuple[str, ...] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        names = self.arguments if self.operands is None else self.operands
        return {name: value for name in names if isinstance(value := self.arguments[name], Tensor)}

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        for value in self.arguments.values():
            if isinstance(value, Tensor):
                return value.device
        raise ValueError("a launch needs a tensor")

    def run(self) -> None:
        """Launch on the device of the tensors, whichever device is current; a grid without programs does nothing.

        Raises: Unsupported where an axis of the grid is longer than CUDA allows.
        """
        if 0 in self.grid:
            return
        if any(map(operator.gt, self.grid, LARGEST_GRID)):
            name = self.kernel.fn.__name__
            raise Unsupported(f"{name} needs a grid of {self.grid}, a launch holds {LARGEST_GRID}; split the batch")
        arguments, strided = self.arguments, self.strided
        for name in arguments if self.operands is None else self.operands:
            tensor = arguments[name]
            if isinstance(tensor, Tensor):
                assert tensor.is_contiguous() or name in strided, f"{name} is not contiguous; pass launch.dense of it"
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
class LaunchPlan:
    """A launch without its tensors: all that follows from sizes, tiles and options; see `planned_launch`.

    numbers: the arguments that are no tensors. The rest as in `Launch`.
    """

    kernel: Any
    grid: tuple[int, ...]
    numbers: dict[str, Any]
    options: dict[str, Any]

    def of(self, tensors: dict[str, Tensor | None]) -> Launch:
        """The launch with these tensors, by the names of the kernel's arguments; None where the kernel takes none."""
        return Launch(self.kernel, self.grid, {**tensors, **self.numbers}, self.options, (), tuple(tensors))


_planned: list[Callable[[], None]] = []


def forget_plans() -> None:
    """Forget the plans of all launches and calls, for a test that changes what they are made of."""
    for forget in _planned:
        forget()


forgotten_with_plans = _planned.append
"""Take a function that forgets what was made of plans; `forget_plans` calls it."""


def planned_launch(make: Callable[_Arguments, _Plan]) -> Callable[_Arguments, _Plan]:
    """Decorator: remember the plan of a launch, made from hashable arguments; anew where tiles are pinned or noted.

    The GPU is among the arguments, as `target.target_capability` tells it. Whether Triton is interpreted is settled
    when its kernels are imported.
    """
    kept = lru_cache(maxsize=MOST_PLANS)(make)
    _planned.append(kept.cache_clear)

    @wraps(make)
    def remembered(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Plan:
        if watched():
            return make(*args, **kwargs)
        found: _Plan = kept(*args, **kwargs)  # type: ignore[arg-type]
        return found

    return remembered


@dataclass(frozen=True, slots=True)
class NamedLaunch:
    """A call at a realistic shape whose kernels' machine code is worth watching: an entry of `FINGERPRINTS`.

    name: shape and choices, `B128 C64 O64 34x18 bool`; unique among a kernel's launches. call: calls on meta tensors
    what a user's call runs through, so that the launch watched is the launch made; `aot.noted_launches` sees it.
    """

    name: str
    call: Callable[[], object]
