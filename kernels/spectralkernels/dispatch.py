"""From a call to an implementation: `impl="auto"` picks one, a name runs that one or says why it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectralkernels.autotuning import measured
from spectralkernels.checks import kind
from spectralkernels.declare import Decision, Implementation, Operation, Role
from spectralkernels.errors import RangeError, Unsupported


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether an implementation can run on this machine: `reason` is None if it can."""

    name: str
    role: Role
    reason: str | None

    @property
    def available(self) -> bool:
        return self.reason is None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What runs for a call, and why; see `explain`.

    asked: the `impl` of the call. refused: None if it runs, else why the call would raise Unsupported.
    others: the other implementations; `reason` is None for those that could serve the call too.
    """

    operation: str
    asked: str
    chosen: str
    because: str
    refused: str | None
    others: tuple[Availability, ...]

    def __str__(self) -> str:
        verb = "runs" if self.refused is None else "cannot run"
        width = max((len(other.name) for other in self.others), default=0)
        lines = [f"{self.operation}: {self.chosen} {verb}: {self.refused or self.because}"]
        return "\n".join(lines + [f"  {other.name:<{width}}  {other.reason or 'could run'}" for other in self.others])


class Asked(str):
    """The `impl` of a call that is to be explained instead of run."""


class Explained(Exception):
    """Carries the explanation out of the call."""

    def __init__(self, explanation: Explanation) -> None:
        super().__init__(str(explanation))
        self.explanation = explanation


def dispatch(operation: Operation, impl: str, device: str, inputs: dict[str, Any]) -> Any:
    """Run `operation` on `inputs` with the implementation that `resolved` finds."""
    return resolved(operation, impl, device, inputs).call(**inputs)


def resolved(operation: Operation, impl: str, device: str, inputs: dict[str, Any]) -> Implementation:
    """The implementation `impl` of `operation`, or the one that `auto` decides for on these inputs.

    A named implementation never falls back: it runs, or Unsupported says why. RangeError on an unknown name.
    """
    if not isinstance(impl, str):
        raise RangeError(f"impl must be 'auto' or the name of an implementation, got {kind(impl)}")
    decision = Decision(str(impl), "it was asked for by name") if impl != "auto" else None
    if decision is None:
        serves = lambda found: why_not(found, device, inputs) is None  # noqa: E731
        decision = measured(operation, device, inputs, serves, look=isinstance(impl, Asked))
    if decision is None:
        decision = operation.auto(**inputs)
    implementation = operation.implementation(decision.name)
    reason = why_not(implementation, device, inputs)
    if isinstance(impl, Asked):
        others = tuple(
            Availability(other.name, other.role, why_not(other, device, inputs))
            for other in operation.implementations
            if other is not implementation
        )
        raise Explained(Explanation(operation.name, str(impl), decision.name, decision.because, reason, others))
    if reason is not None:
        raise Unsupported(f"{operation.name} with impl={decision.name!r}: {reason}")
    return implementation


def reads(operation: Operation, impl: str, inputs: dict[str, Any]) -> bool:
    """Whether who serves a call follows from numbers in its tensors, too; for "auto", as soon as it does for anyone."""
    asked = operation.implementations if impl == "auto" else (operation.implementation(impl),)
    return any(each.reads(**inputs) for each in asked)


def why_not(implementation: Implementation, device: str, inputs: dict[str, Any]) -> str | None:
    """The reason why `implementation` cannot serve `inputs` on `device` ("cpu" or "cuda"), or None."""
    return implementation.available(device) or implementation.supports(**inputs)
