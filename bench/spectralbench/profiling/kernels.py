"""What each kernel of a call takes on the GPU, by Triton's proton: the launches, with the names that Triton gives.

In a process of its own, because a GPU's tracing serves one tool at a time and torch.profiler would be the other.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from spectralbench.profiling.trace import TracedPart
from spectralkernels.errors import Unsupported

CALLS = 20


def kernels_of(run: Callable[[], object], device: str, calls: int = CALLS) -> tuple[TracedPart, ...]:
    """The kernels of a call, the longest first: launches and seconds a call. `run` should be warm.

    Raises: Unsupported with the reason where there is no GPU, no proton, or nothing that it saw.
    """
    if device != "cuda":
        raise Unsupported("Triton's proton watches kernels on a GPU, and this is a CPU; leave --proton out")
    try:
        from triton import profiler
    except ImportError as error:
        raise Unsupported(f"Triton's proton is not here: {error}; leave --proton out") from error
    with tempfile.TemporaryDirectory(prefix="proton-") as folder:
        path = Path(folder) / "kernels"
        try:
            session = profiler.start(str(path), hook="triton")
        except (ValueError, RuntimeError) as error:
            raise Unsupported(f"Triton's proton did not start: {error}") from error
        try:
            for _ in range(calls):
                run()
            torch.cuda.synchronize()
        finally:
            profiler.finalize(session)
        found = list(leaves(json.loads(path.with_suffix(".hatchet").read_text(encoding="utf-8"))))
    if not found:
        raise Unsupported("Triton's proton saw no kernel; is another profiler attached to this process?")
    by_name: dict[str, tuple[float, float]] = {}
    for name, count, seconds in found:
        before = by_name.get(name, (0.0, 0.0))
        by_name[name] = before[0] + count, before[1] + seconds
    parts = [TracedPart(name, count / calls, seconds / calls) for name, (count, seconds) in by_name.items()]
    return tuple(sorted(parts, key=lambda part: -part.seconds))


def leaves(tree: Any) -> Iterator[tuple[str, float, float]]:
    """(kernel, launches, seconds) of every node of proton's tree that has a time and nothing below that has one."""
    nodes = tree if isinstance(tree, list) else [tree]
    for node in nodes:
        if not (isinstance(node, Mapping) and "frame" in node):
            continue  # the last entry describes devices
        below = list(leaves(node.get("children", [])))
        yield from below
        metrics = node.get("metrics", {})
        if not below and metrics.get("time (ns)"):  # the root of an empty tree has a time of zero
            yield str(node["frame"].get("name")), float(metrics.get("count", 1)), float(metrics["time (ns)"]) * 1e-9
