"""Memory over one training step: every allocation of torch by time, with the passes marked.

The points come from the profiler's Chrome trace, a public format, where each allocation and each release is an event
with the total after it. Scratch that a library takes past torch's allocator is not in it (the metric `host_peak` has
that on a CPU, `nvml_memory` on a GPU).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import profile, record_function

from spectralbench.answers import tensors_in
from spectralbench.profiling.trace import activities

FORWARD, BACKWARD = "forward", "backward"
_DEVICE_TYPES = {"cpu": 0, "cuda": 1}
"""c10::DeviceType, as the trace numbers it."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A pass, in seconds since the beginning."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """(seconds since the beginning, bytes over what was allocated before), after every allocation and release."""

    points: tuple[tuple[float, float], ...]
    marks: tuple[Mark, ...]

    @property
    def peak(self) -> float:
        """Bytes at the highest point."""
        return max((size for _, size in self.points), default=0.0)

    def at_end(self, name: str) -> float | None:
        """Bytes held when a pass has ended, or None without such a pass: after forward, what backward needs."""
        mark = next((mark for mark in self.marks if mark.name == name), None)
        if mark is None:
            return None
        return next((size for when, size in reversed(self.points) if when <= mark.end), 0.0)


def over_a_step(forward: Callable[[], Any], device: str, backward: bool) -> Timeline:
    """Call `forward` once, and the gradients of its sum where `backward`; both have run before, so that they are warm.

    forward: returns a tensor, or something with tensors inside; the first that has a graph is differentiated.
    """
    with torch.set_grad_enabled(backward):
        _step(forward, backward)
        with profile(activities=activities(device), profile_memory=True) as profiler:
            _step(forward, backward)
            if device == "cuda":
                torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return read(events, device)


def read(events: list[dict[str, Any]], device: str) -> Timeline:
    """The timeline in the events of a Chrome trace."""
    marks = [
        event for event in events if event.get("cat") == "user_annotation" and event["name"] in (FORWARD, BACKWARD)
    ]
    moved = [
        event
        for event in events
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == _DEVICE_TYPES[device]
    ]
    moved.sort(key=lambda event: (event["ts"], event["args"].get("Ev Idx", 0)))
    begin = min((event["ts"] for event in (*marks, *moved)), default=0.0)
    points, size = [], 0.0
    for event in moved:
        size += event["args"]["Bytes"]
        points.append(((event["ts"] - begin) * 1e-6, size))
    return Timeline(
        tuple(points),
        tuple(
            Mark(event["name"], (event["ts"] - begin) * 1e-6, (event["ts"] - begin + event["dur"]) * 1e-6)
            for event in sorted(marks, key=lambda event: event["ts"])
        ),
    )


def _step(forward: Callable[[], Any], backward: bool) -> None:
    with record_function(FORWARD):
        output = forward()
    if not backward:
        return
    with record_function(BACKWARD):
        differentiated = next(tensor for tensor in tensors_in(output) if tensor.requires_grad)
        real = torch.view_as_real(differentiated) if differentiated.is_complex() else differentiated
        torch.autograd.grad(real.sum(), _leaves(differentiated))


def _leaves(tensor: Tensor) -> list[Tensor]:
    """The tensors that a graph ends in."""
    found, seen, open_nodes = [], set(), [tensor.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        open_nodes.extend(following for following, _ in node.next_functions)
    return found
