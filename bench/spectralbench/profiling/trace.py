"""Calls under torch.profiler: what each stage and each torch operation takes, and how busy host and device are.

Times are of the device where it has one, else of the host. A stage's time is its own: what a stage inside it takes is
that stage's. Operations are those of ATen, by their own time; what none of them accounts for is Python and waiting.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from spectralbench import nvml
from spectralkernels.errors import Unsupported
from spectralkernels.stages import PREFIX

SECONDS = 0.3
"""How long the traced calls may last together, by the time of a call without a profiler."""
MOST_CALLS = 50
CALL = "spectralbench: call"
OUTSIDE = "outside the stages"
PERIOD = 1e-3
UTILISED = ("gpu", "gpu bus", "gpu memory")
"""What `nvml.Device.utilisation` reads, in that order."""


@dataclass(frozen=True, slots=True)
class TracedPart:
    """One stage or operation: how often a call has it, and its seconds a call."""

    name: str
    calls: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trace:
    """Means over the traced calls; see `Profile` for the fields."""

    seconds: float
    stages: tuple[TracedPart, ...]
    operations: tuple[TracedPart, ...]
    busy: dict[str, tuple[float, float] | str]


def trace(run: Callable[[], object], seconds: float, device: str, kept: Path | None = None) -> Trace:
    """Profile as many calls as fit into `SECONDS`, at least two.

    seconds: of one call. kept: the file for a Chrome trace.
    """
    count = min(MOST_CALLS, max(2, round(SECONDS / seconds)))
    busy = Busy(device)
    with profile(activities=activities(device)) as profiler, busy:
        for _ in range(count):
            with record_function(CALL):
                run()
        if device == "cuda":
            torch.cuda.synchronize()
    if kept is not None:
        profiler.export_chrome_trace(str(kept))
    events = [event for event in profiler.events() or () if event.device_type == torch.autograd.DeviceType.CPU]
    of_call = [event for event in events if event.name == CALL]
    whole = sum(_took(event, device) for event in of_call) / count
    stages = _stages(events, device, count)
    rest = whole - sum(part.seconds for part in stages)
    operations = [
        TracedPart(row.key, row.count / count, _own(row, device) * 1e-6 / count)
        for row in profiler.key_averages()
        if row.key.startswith("aten::") and _own(row, device) > 0
    ]
    return Trace(
        whole,
        (*stages, TracedPart(OUTSIDE, 1.0, max(0.0, rest))),
        tuple(sorted(operations, key=lambda part: -part.seconds)),
        busy.percent,
    )


def activities(device: str) -> list[ProfilerActivity]:
    """What a profiler has to watch on a device."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]


def _stages(events: list[Any], device: str, count: int) -> list[TracedPart]:
    """The stages in the order in which they first begin."""
    seconds, times = defaultdict[str, float](float), defaultdict[str, int](int)
    for event in sorted(events, key=lambda event: event.time_range.start):
        if event.name.startswith(PREFIX):
            name = event.name.removeprefix(PREFIX)
            seconds[name] += _took(event, device) - sum(_took(inner, device) for inner in _inner_stages(event))
            times[name] += 1
    return [TracedPart(name, times[name] / count, seconds[name] / count) for name in seconds]


def _inner_stages(event: Any) -> Iterator[Any]:
    """The stages that begin inside an event and in no other stage inside it."""
    for child in event.cpu_children:
        if child.name.startswith(PREFIX):
            yield child
        else:
            yield from _inner_stages(child)


def _took(event: Any, device: str) -> float:
    """Seconds of an event with all that is inside it."""
    microseconds = event.device_time_total if device == "cuda" else event.time_range.elapsed_us()
    return float(microseconds) * 1e-6


def _own(row: Any, device: str) -> float:
    return float(row.self_device_time_total if device == "cuda" else row.self_cpu_time_total)


class Busy:
    """How busy host and device are inside a `with` block: name -> (mean, largest) percent, or why it is not known.

    "cpu": of one core, all threads of this process together, the mean alone. "gpu", "gpu bus", "gpu memory": how long a
    kernel ran, how long its memory was read or written, and how much of it was taken, by NVML, whose own window is
    longer than a short run; known only where the values were refreshed at least twice.
    """

    def __init__(self, device: str) -> None:
        self.percent: dict[str, tuple[float, float] | str] = {}
        self._device = device
        self._sampler: nvml.Sampler[tuple[float, float, float]] | None = None

    def __enter__(self) -> Busy:
        if self._device == "cuda":
            try:
                self._sampler = nvml.Sampler(nvml.Device.current().utilisation, PERIOD)
                self._sampler.__enter__()
            except Unsupported as error:
                self.percent["gpu"] = str(error)
        self._began = time.perf_counter(), _cpu_seconds()
        return self

    def __exit__(self, *error: Any) -> None:
        wall, cpu = time.perf_counter() - self._began[0], _cpu_seconds() - self._began[1]
        self.percent["cpu"] = (100.0 * cpu / wall,) * 2
        if self._sampler is None:
            return
        self._sampler.__exit__(*error)
        if self._sampler.refreshes > 1:
            for name, readings in zip(UTILISED, zip(*self._sampler.readings, strict=True), strict=True):
                self.percent[name] = sum(readings) / len(readings), max(readings)
        else:
            self.percent["gpu"] = "NVML refreshed its reading once in the traced calls, so that it says nothing of them"


def _cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system
