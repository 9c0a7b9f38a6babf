"""The process-wide switches that change how everyone after computes: read, compared, put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _flushes_denormals() -> bool:
    """Asked of the arithmetic itself, because torch tells nobody; of this thread alone."""
    return bool(torch.tensor([1e-310], dtype=torch.float64).mul(1.0).eq(0.0))


def _set_deterministic(state: tuple[bool, bool]) -> None:
    enabled, warn_only = state
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "flush-denormal": (_flushes_denormals, torch.set_flush_denormal),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "grad mode": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
    "cudnn.enabled": _attribute(torch.backends.cudnn, "enabled"),
    "cudnn.benchmark": _attribute(torch.backends.cudnn, "benchmark"),
    "cudnn.deterministic": _attribute(torch.backends.cudnn, "deterministic"),
    "cudnn.allow_tf32": _attribute(torch.backends.cudnn, "allow_tf32"),
}


def positions() -> dict[str, Any]:
    """How every switch stands."""
    return {name: read() for name, (read, _) in SWITCHES.items()}


def restore(before: dict[str, Any]) -> str | None:
    """Put every switch back to where it stood; which ones had moved, from and to what, or None."""
    now = positions()
    moved = [name for name in SWITCHES if now[name] != before[name]]
    for name in moved:
        SWITCHES[name][1](before[name])
    return ", ".join(f"{name} from {before[name]} to {now[name]}" for name in moved) or None
