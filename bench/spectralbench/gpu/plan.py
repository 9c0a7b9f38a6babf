"""In which order what is timed and weighed: the promises first, graphs before eager launches, breadth after that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from spectralbench.gpu.targets import TARGETS, Saved, SpeedUp, Target, rank
from spectralbench.metrics import load_metrics
from spectralbench.sweep import PROCESSES, Item
from spectralbench.worker import State

Which = Literal["targets", "weighed", "others", "everything"]
"""Rows with a promise, those whose saved bytes are promised, those without a promise, all."""
Excluded = Mapping[tuple[str, str, str], str]
"""(operation, implementation, pass) -> why it is not timed."""


def taken(phase: str, device: str) -> tuple[str, ...]:
    """The metrics that say they are taken in a phase (`Metric.rented`) and on a device."""
    return tuple(name for name, metric in load_metrics().items() if metric.rented == phase and device in metric.devices)


TIMED = taken("timed", "cuda")
ALLOCATED = taken("allocator", "cuda")
DRIVER = taken("driver", "cuda")
HOST = taken("allocator", "cpu")

MEMORY_PROCESS = max(PROCESSES.values())
"""Number of the first process that weighs: none that times has it, so that records of the two never share a key."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One pass over a part of the plan, in one process, which checks a case once and times it in every state.

    compiled: whether implementations under torch.compile take part, which trace for seconds in every process.
    judged: whether only those take part by whom a promise is judged: our kernels and the rivals that it names.
    """

    which: Which
    states: tuple[State, ...]
    process: int = 0
    metrics: tuple[str, ...] = TIMED
    compiled: bool = False
    judged: bool = False

    @property
    def name(self) -> str:
        """For people."""
        what = "" if self.metrics == TIMED else f", {', '.join(self.metrics)}"
        states = " and ".join(f"{state.launch} {state.cache}" for state in self.states)
        return f"{self.which}, {states}, process {self.process}{what}"


GRAPHS = (State("graph", "warm"), State("graph", "cold"))
EAGER = (State("eager", "warm"), State("eager", "cold"))
WARM = (State("eager", "warm"),)

STAGES: Mapping[str, Mapping[str, tuple[Phase, ...]]] = {
    "cuda": {
        "targets": (Phase("targets", GRAPHS),),
        "memory": (Phase("weighed", WARM, MEMORY_PROCESS, ALLOCATED),),
        "replicates": tuple(Phase("targets", GRAPHS, process, judged=True) for process in (1, 2)),
        "breadth": (
            Phase("others", GRAPHS),
            Phase("targets", WARM, MEMORY_PROCESS, ALLOCATED),
            Phase("targets", WARM, MEMORY_PROCESS + 1, DRIVER),
            Phase("targets", EAGER),
            Phase("targets", GRAPHS, compiled=True),
            Phase("others", WARM, MEMORY_PROCESS, ALLOCATED),
            Phase("targets", GRAPHS, 3),
            Phase("targets", GRAPHS, 4),
            Phase("others", EAGER),
            Phase("others", GRAPHS, compiled=True),
        ),
    },
    "cpu": {
        "targets": (Phase("everything", WARM, compiled=True),),
        "memory": (Phase("everything", WARM, MEMORY_PROCESS, HOST),),
    },
}
"""Device -> stage -> its phases in order; the stages that write records."""


def select(phase: Phase, excluded: Excluded, items: list[Item]) -> list[Item]:
    """The items of a phase in order of importance, without what is excluded."""
    chosen = []
    for item in sorted(items, key=lambda item: rank(item.operation.name, item.case, item.pass_)):
        if phase.which not in ("everything", *_kinds(item)):
            continue
        names = tuple(
            name
            for name in item.implementations
            if (item.operation.name, name, item.pass_) not in excluded
            and (phase.compiled or not item.operation.subject(name).compiled)
            and (not phase.judged or _judged(item, name))
        )
        if names:
            chosen.append(replace(item, implementations=names, replicate=phase.process))
    return chosen


def _held(item: Item) -> list[Target]:
    case = item.case
    return [t for t in TARGETS if t.place.holds(item.operation.name, dict(case.params), case.dtype, item.pass_)]


def _judged(item: Item, name: str) -> bool:
    """Whether a promise of this row is judged by an implementation."""
    subject = item.operation.subject(name)
    named = {rival for target in _held(item) if isinstance(target, SpeedUp) for rival in target.rivals}
    return name in named or (subject.role == "kernel" and not subject.frozen)


def _kinds(item: Item) -> tuple[Which, ...]:
    held = _held(item)
    if not held:
        return ("others",)
    return ("targets", "weighed") if any(isinstance(target, Saved) for target in held) else ("targets",)
