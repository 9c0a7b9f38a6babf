"""Where the time and the memory of one case go: stages, torch operations, the roofline, memory over time.

    gate -> time without a profiler, interleaved -> trace the same calls with one -> one training step for the memory

A profiler slows down what it looks at, most of all many small operations. So the time of an implementation is taken
without it, and the trace says how that time divides: `Profile.slowdown` is how far the two are apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from spectralbench import calls
from spectralbench.clock import Clock
from spectralbench.environment import measuring_flags
from spectralbench.measure import rightful
from spectralbench.outcome import Failed, Measured, Outcome, Skipped
from spectralbench.profiling.kernels import kernels_of
from spectralbench.profiling.memory import Timeline, over_a_step
from spectralbench.profiling.trace import TracedPart, trace
from spectralbench.timing import Budget, time_interleaved
from spectralkernels.declare import Case, Cost, Operation, Pass
from spectralkernels.errors import Unsupported

WARM_UPS = 3
"""Calls before the one that a hardware profiler sees: they allocate, plan and compile."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What one implementation does with its time.

    seconds: median of a call without a profiler. traced_seconds: mean of a call with it. stages, operations: parts of a
    traced call. busy: name -> (mean, largest) percent of what host and device have, or why that is not known. timeline:
    memory through one forward pass, and backward where it has one. trace: the Chrome trace, where it was kept.
    """

    implementation: str
    seconds: float
    traced_seconds: float
    stages: tuple[TracedPart, ...]
    operations: tuple[TracedPart, ...]
    busy: dict[str, tuple[float, float] | str]
    timeline: Timeline
    trace: Path | None = None

    @property
    def slowdown(self) -> float:
        """How many times slower a call is under the profiler."""
        return self.traced_seconds / self.seconds


@dataclass(frozen=True, slots=True)
class CaseProfile:
    """The implementations of one case that are right, the fastest first; refused: why the others are not, by name."""

    operation: Operation
    case: Case
    pass_: Pass
    device: str
    cost: Cost
    profiles: tuple[Profile, ...]
    refused: dict[str, str] = field(default_factory=dict)


def profile_case(
    operation: Operation,
    case: Case,
    implementations: Sequence[str],
    *,
    device: str,
    pass_: Pass,
    clock: Clock,
    budget: Budget = Budget(min_rounds=7, max_rounds=30, seconds=1.0),  # noqa: B008 - frozen
    folder: Path | None = None,
) -> CaseProfile:
    """Check, time and trace implementations of one case.

    folder: where to keep a Chrome trace of each (for Perfetto or chrome://tracing). An implementation that does not
    serve the case, fails, or is wrong is refused with the reason, and not timed.
    Raises: RangeError on an unknown implementation.
    """
    with measuring_flags(), torch.set_grad_enabled(pass_ != "forward"):
        bound, refused = _right(operation, case, implementations, device, pass_)
        runs = [each.run for each in bound.values()]
        times = time_interleaved(runs, clock, budget, case.seed, lambda run, step: step()) if runs else {}
        profiles = [_profile(bound[name], statistics.median(times[name]), device, folder) for name in bound]
    return CaseProfile(
        operation, case, pass_, device, operation.cost(case), tuple(sorted(profiles, key=_speed)), refused
    )


def call_once(operation: Operation, case: Case, implementation: str, device: str, pass_: Pass) -> None:
    """Call an implementation warm, between cudaProfilerStart and -Stop on a GPU: what `ncu` is to look at.

    Raises: Unsupported with the reason where it cannot serve the case; ValueError where its answer is wrong.
    """
    with _warm(operation, case, implementation, device, pass_) as run, _seen_by_cuda_profilers(device):
        run()


def proton(operation: Operation, case: Case, implementation: str, device: str, pass_: Pass) -> tuple[TracedPart, ...]:
    """The kernels of a warm call of an implementation, by Triton's proton. Raises: as `call_once` and `kernels_of`."""
    with _warm(operation, case, implementation, device, pass_) as run:
        return kernels_of(run, device)


@contextmanager
def _warm(operation: Operation, case: Case, implementation: str, device: str, pass_: Pass) -> Iterator[calls.Run]:
    """The timed call of an implementation that is right, after some calls, as it is measured."""
    with measuring_flags(), torch.set_grad_enabled(pass_ != "forward"):
        bound, refused = _right(operation, case, [implementation], device, pass_)
        for reason in refused.values():
            raise Unsupported(reason)
        for _ in range(WARM_UPS):
            bound[implementation].run()
        yield bound[implementation].run


@contextmanager
def _seen_by_cuda_profilers(device: str) -> Iterator[None]:
    if device != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    yield
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def _right(
    operation: Operation, case: Case, names: Sequence[str], device: str, pass_: Pass
) -> tuple[dict[str, calls.Bound], dict[str, str]]:
    """Those whose answer is right by name, and the reasons why the others' are not."""
    bound, outcomes = rightful(operation, case, names, device=device, pass_=pass_)
    return bound, {name: _reason(outcome) for name, outcome in outcomes.items()}


def _reason(outcome: Outcome) -> str:
    match outcome:
        case Skipped(reason):
            return reason
        case Failed("wrong", error):
            return f"wrong: {error}"
        case Failed(_, error):
            return error
        case Measured():
            raise AssertionError("the gate measures nothing")


def _speed(found: Profile) -> float:
    return found.seconds


def _profile(bound: calls.Bound, seconds: float, device: str, folder: Path | None) -> Profile:
    name = bound.run.name
    kept = folder / f"{name}.trace.json" if folder is not None else None
    found = trace(bound.run, seconds, device, kept)
    bound.run.latest = None
    timeline = over_a_step(bound.forward or bound.run.call, device, backward=bound.forward is not None)
    return Profile(name, seconds, found.seconds, found.stages, found.operations, found.busy, timeline, kept)
