"""From a call to an implementation: `impl="auto"` picks one, a name runs that one or says why it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from spectralkernels.declare import Implementation, Operation, Role
from spectralkernels.errors import Unsupported


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether an implementation can run on this machine: `reason` is None if it can."""

    name: str
    role: Role
    reason: str | None

    @property
    def available(self) -> bool:
        return self.reason is None


def dispatch(operation: Operation, impl: str, device: str, inputs: dict[str, Any]) -> Any:
    """Run `operation` on `inputs` with the implementation `impl`, or the one that `auto` names.

    A named implementation never falls back: it runs, or Unsupported says why. RangeError on an unknown name.
    """
    name = operation.auto(**inputs) if impl == "auto" else impl
    implementation = operation.implementation(name)
    reason = why_not(implementation, device, inputs)
    if reason is not None:
        raise Unsupported(f"{operation.name} with impl={name!r}: {reason}")
    return implementation.call(**inputs)


def why_not(implementation: Implementation, device: str, inputs: dict[str, Any]) -> str | None:
    """The reason why `implementation` cannot serve `inputs` on `device` ("cpu" or "cuda"), or None."""
    return implementation.available(device) or implementation.supports(**inputs)


def implementations(name: str, device: str | None = None) -> tuple[Availability, ...]:
    """Names and roles of an operation's implementations, and why each is or is not available on this machine.

    device: "cpu" or "cuda"; default is "cuda" where torch finds it, else "cpu".
    """
    from spectralkernels.ops import load_operation

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return tuple(
        Availability(found.name, found.role, found.available(device)) for found in load_operation(name).implementations
    )
