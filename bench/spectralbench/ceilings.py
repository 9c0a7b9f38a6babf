"""What this machine can do at most, measured: the floor under every believable time.

A time below `floor` is a measuring error, not a result. A time close to an empty launch says nothing about the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spectralbench.clock import Clock
from spectralkernels.declare import Cost, Pass

# Ceilings are measured by ordinary copies and products, which a perfect kernel may beat a little.
SLACK = 0.8
LAUNCH_BOUND = 2.0


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes and floating-point operations per second, and the seconds that a launch of nearly nothing takes."""

    bytes_per_second: float
    flops_per_second: float
    launch_seconds: float


def measure_ceilings(clock: Clock, device: str, dtype: torch.dtype = torch.float32, side: int = 8192) -> Ceilings:
    """Measure a copy and a matrix product of `side` x `side` elements, and the smallest launch, with `clock`.

    Bytes count the copy's reads and writes. On a CPU or with a warm cache the copy must exceed the last-level cache.
    """
    source = torch.randn(side, side, device=device).to(dtype)
    target = torch.empty_like(source)
    speck = torch.zeros(1, device=device)

    def best(run: object) -> float:
        assert callable(run)
        number = clock.calibrate(run)
        return min(clock.time(run, number) for _ in range(5))

    return Ceilings(
        bytes_per_second=2 * source.nbytes / best(lambda: target.copy_(source)),
        flops_per_second=2 * side**3 / best(lambda: torch.mm(source, source, out=target)),
        launch_seconds=best(speck.zero_),
    )


def floor(cost: Cost, ceilings: Ceilings, cache: str) -> float:
    """Seconds below which one forward pass is impossible.

    Bytes count only from a cold cache, and only those that are read: writes may still lie in the cache at the end.
    """
    memory = cost.bytes_read / ceilings.bytes_per_second if cache == "cold" else 0.0
    return SLACK * max(memory, cost.flops / ceilings.flops_per_second)


def impossible(seconds: float, cost: Cost, ceilings: Ceilings | None, cache: str, pass_: Pass) -> str | None:
    """Why `seconds` cannot be true, or None; a backward pass alone has no declared cost, so it is believed."""
    if ceilings is None or pass_ == "backward":
        return None
    least = floor(cost, ceilings, cache)
    if seconds >= least:
        return None
    return (
        f"faster than physics: {seconds:.3g} s, but {cost.bytes_read} bytes read and {cost.flops} flops take at least "
        f"{least:.3g} s at the measured {ceilings.bytes_per_second:.3g} B/s and {ceilings.flops_per_second:.3g} flop/s"
    )


def launch_bound(seconds: float, ceilings: Ceilings | None) -> str | None:
    """Why `seconds` is mostly launch, or None."""
    if ceilings is None or seconds > LAUNCH_BOUND * ceilings.launch_seconds:
        return None
    return f"{seconds:.3g} s is within {LAUNCH_BOUND:g} times an empty launch ({ceilings.launch_seconds:.3g} s)"
