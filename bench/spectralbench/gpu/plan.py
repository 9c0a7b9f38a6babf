"""In which order what is timed and weighed: the promises first, graphs before eager launches, breadth after that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from spectralbench.gpu.targets import TARGETS, rank
from spectralbench.sweep import PROCESSES, Item

Which = Literal["targets", "others", "everything"]
Excluded = Mapping[tuple[str, str, str], str]
"""(operation, implementation, pass) -> why it is not timed."""

TIMED = ("device_time", "rounding_error", "achieved_compression", "kept_fraction", "stored_bytes")
ALLOCATED = ("saved_bytes", "peak_allocated", "peak_reserved")
DRIVER = ("nvml_memory", "nvml_process_memory")
HOST = ("saved_bytes", "host_peak")

MEMORY_PROCESS = max(PROCESSES.values())
"""Number of the first process that weighs: none that times has it, so that records of the two never share a key."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One pass over a part of the plan, in one process.

    compiled: whether implementations under torch.compile take part, which trace for seconds in every process.
    """

    which: Which
    launch: str
    cache: str
    process: int = 0
    metrics: tuple[str, ...] = TIMED
    compiled: bool = False

    @property
    def name(self) -> str:
        """For people."""
        what = "" if self.metrics == TIMED else f", {', '.join(self.metrics)}"
        return f"{self.which}, {self.launch}, {self.cache} cache, process {self.process}{what}"


_STATES = (("graph", "warm"), ("graph", "cold"), ("eager", "warm"), ("eager", "cold"))

TIMING: Mapping[str, tuple[Phase, ...]] = {
    "cuda": (
        *(Phase("targets", *state) for state in _STATES),
        Phase("targets", "graph", "warm", compiled=True),
        Phase("targets", "graph", "cold", compiled=True),
        *(Phase("targets", *state, process=process) for process in (1, 2) for state in _STATES[:2]),
        *(Phase("others", *state) for state in _STATES),
        *(Phase("targets", *state, process=process) for process in (3, 4) for state in _STATES[:2]),
        *(Phase("others", *state, compiled=True) for state in _STATES[:2]),
    ),
    "cpu": (Phase("everything", "eager", "warm", compiled=True),),
}

MEMORY: Mapping[str, tuple[Phase, ...]] = {
    "cuda": (
        Phase("targets", "eager", "warm", MEMORY_PROCESS, ALLOCATED),
        Phase("targets", "eager", "warm", MEMORY_PROCESS + 1, DRIVER),
        Phase("others", "eager", "warm", MEMORY_PROCESS, ALLOCATED),
    ),
    "cpu": (Phase("everything", "eager", "warm", MEMORY_PROCESS, HOST),),
}


def select(phase: Phase, excluded: Excluded, items: list[Item]) -> list[Item]:
    """The items of a phase in order of importance, without what is excluded."""
    chosen = []
    for item in sorted(items, key=lambda item: rank(item.operation.name, item.case, item.pass_)):
        promised = rank(item.operation.name, item.case, item.pass_) < len(TARGETS)
        if phase.which != "everything" and promised != (phase.which == "targets"):
            continue
        names = tuple(
            name
            for name in item.implementations
            if (item.operation.name, name, item.pass_) not in excluded and (phase.compiled or not is_compiled(name))
        )
        if names:
            chosen.append(replace(item, implementations=names, replicate=phase.process))
    return chosen


def is_compiled(implementation: str) -> bool:
    """Whether an implementation is one under torch.compile."""
    return implementation.endswith("_compile")
