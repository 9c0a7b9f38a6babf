"""A small operation for tests of the measuring core: keep = 3/4 of the answer x * w, so the two errors differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectralbench.clock import FakeClock
from spectralbench.measure import Budget, measure_case
from spectralbench.outcome import Failed, Measured, Outcome
from spectralkernels.declare import Case, Cost, Decision, Implementation, Operation, Tolerance

TOLERANCE = 1e-5
TIME = ("device_time",)
ROUNDS = Budget(min_rounds=4, max_rounds=4)


def case(seed: int = 0, size: int = 24) -> Case:
    return Case("toy", (("size", size),), seed=seed)


def product(x: Tensor, w: Tensor) -> Tensor:
    return 0.75 * x * w


def twin(x: Tensor, w: Tensor) -> Tensor:
    return x * (0.75 * w)


def reference(x: Tensor, w: Tensor) -> Tensor:
    return 0.75 * x.double() * w.double()


def ideal(x: Tensor, w: Tensor) -> Tensor:
    return x.double() * w.double()


def make_inputs(found: Case, device: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(found.seed)
    return {
        "x": torch.randn(2, found["size"], generator=generator).to(device),
        "w": torch.randn(found["size"], generator=generator).to(device),
    }


def implementation(name: str, call: Callable[..., Any] = product, **rest: Any) -> Implementation:
    return Implementation(name, "baseline", call, "a test", **rest)


def toy(*implementations: Implementation, **changes: Any) -> Operation:
    """The operation with these implementations; `changes` replaces other fields."""
    fields: dict[str, Any] = {
        "name": "toy",
        "summary": "three quarters of a product",
        "version": 1,
        "source": "a test",
        "profiles": {},
        "make_inputs": make_inputs,
        "reference": reference,
        "ideal": ideal,
        "cost": lambda found: Cost(8 * found["size"], 8 * found["size"], 4 * found["size"]),
        "fft_size": lambda found: (),
        "tolerance": Tolerance({"float32": TOLERANCE}, "a test"),
        "implementations": implementations,
        "auto": lambda **inputs: Decision("plain", "a test"),
        "gradients": ("x", "w"),
    }
    return Operation(**{**fields, **changes})


@dataclass(frozen=True)
class Packed:
    """An output that is no tensor."""

    values: Tensor
    shape: torch.Size

    def to_dense(self) -> Tensor:
        return self.values.reshape(self.shape)


class FailsLater:
    """Right for the first `good` calls, then what `fault` makes of the right answer."""

    def __init__(self, good: int, fault: Callable[[Tensor], Tensor]) -> None:
        self.good = good
        self.fault = fault
        self.calls = 0

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        self.calls += 1
        answer = product(x, w)
        return answer if self.calls <= self.good else self.fault(answer)


def measure(*implementations: Any, clock: FakeClock | None = None, **options: Any) -> dict[str, Outcome]:
    """Outcomes of a toy operation with these implementations, timed on a fake clock."""
    operation = options.pop("operation", None) or toy(*implementations)
    names = [found.name for found in operation.subjects]
    settings = {"metrics": TIME, "budget": ROUNDS, **options}
    return measure_case(operation, settings.pop("case", case()), names, clock=clock or FakeClock(), **settings)


def failed(outcome: Outcome) -> Failed:
    assert isinstance(outcome, Failed), outcome
    return outcome


def times(outcome: Outcome) -> tuple[float, ...]:
    assert isinstance(outcome, Measured), outcome
    return next(found.samples for found in outcome.measurements if found.metric == "device_time")
