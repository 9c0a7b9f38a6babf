"""What this machine can do at most, measured: the floor under every believable time.

A time below `floor` is a measuring error, not a result. A time close to an empty launch says nothing about the kernel.
`Ceilings` are taken anew by every measuring process and refuse; `Roofs` are taken once per machine, in every accuracy
class and from both levels of memory, and only rate: the percent of the floor that a subject reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from spectralbench.clock import Clock, clock_for
from spectralbench.environment import measuring_flags
from spectralbench.rates import FORWARD_PASSES
from spectralkernels.declare import Cost, Pass
from spectralkernels.tf32 import tf32_allowed, tf32_unavailable

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
    return Ceilings(
        bytes_per_second=2 * source.nbytes / best(clock, lambda: target.copy_(source)),
        flops_per_second=2 * side**3 / best(clock, lambda: torch.mm(source, source, out=target)),
        launch_seconds=best(clock, speck.zero_),
    )


def ceilings_here(device: str) -> Ceilings:
    """The float32 ceilings of this machine as they are now, in seconds: of a side that a CPU multiplies in no time."""
    return measure_ceilings(clock_for(device), device, side=8192 if device == "cuda" else 2048)


def usual_ceilings(clock: Clock, device: str) -> Ceilings | None:
    """By what every front end refuses a time; None on a CPU, where warm caches leave no floor under it.

    Tensor cores set the arithmetic ceiling whatever the dtype of a case, because a kernel may use them.
    """
    return measure_ceilings(clock, device, torch.float16) if device == "cuda" else None


def best(clock: Clock, run: Callable[[], object]) -> float:
    """The shortest of five samples, seconds per call."""
    number = clock.calibrate(run)
    return min(clock.time(run, number) for _ in range(5))


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


# --- roofs ----------------------------------------------------------------------------------------------------------

PRODUCTS: Mapping[str, tuple[torch.dtype, bool]] = {
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
    "tf32": (torch.float32, True),
    "fp32": (torch.float32, False),
}
"""Name -> (dtype of a matrix product, whether TF32 is allowed in it)."""


@dataclass(frozen=True, slots=True)
class Roofs:
    """What one device reaches: bytes per second by level, flops per second by product, seconds of an empty launch.

    bytes_per_second: "memory" (a copy, reads plus writes) and "l2" (reads), where measured. flops_per_second: by names
    of `PRODUCTS`. launch_seconds: by launch mode. l2_bytes: size of the cache, or None. missing: what could not be
    measured, and why.
    """

    bytes_per_second: Mapping[str, float]
    flops_per_second: Mapping[str, float]
    launch_seconds: Mapping[str, float]
    l2_bytes: int | None
    missing: Mapping[str, str]


def measure_roofs(
    clocks: Mapping[str, Clock],
    device: str,
    l2_reads: Callable[[], tuple[Callable[[], object], int]] | None = None,
    *,
    side: int = 8192,
    copied: int = 1 << 28,
) -> Roofs:
    """Measure every roof on random data.

    clocks: by launch mode, with warm caches; the copy of `copied` floats must exceed every cache. l2_reads: gives a
    call that reads from the L2 cache only, and its bytes; None where nothing can.
    """
    eager, missing = clocks["eager"], {}
    rates: dict[str, float] = {"memory": _copy_rate(eager, device, copied)}
    if l2_reads is None:
        missing["l2"] = "no kernel that reads the L2 cache runs here"
    else:
        read, size = l2_reads()
        rates["l2"] = size / best(eager, read)
    flops = {}
    for name, (dtype, tf32) in PRODUCTS.items():
        reason = tf32_unavailable(device) if tf32 else None
        if reason is not None:
            missing[name] = reason
            continue
        with measuring_flags(), _tf32(tf32):
            flops[name] = _product_rate(eager, device, dtype, side)
    speck = torch.rand(1, device=device)
    return Roofs(
        rates,
        flops,
        {launch: best(clock, speck.neg_) for launch, clock in clocks.items()},
        torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size if device == "cuda" else None,
        missing,
    )


def roof_floor(cost: Cost, roofs: Roofs, products: tuple[tuple[str, float], ...], cache: str, pass_: Pass) -> float:
    """Seconds that a perfect implementation needs on this device; unlike `floor` it counts writes and takes no slack.

    products: names of `PRODUCTS` that reach the wanted accuracy, each with the number of its products per product of
    that accuracy (3 for a split into three). The fastest counts.
    A warm pass whose tensors fit the L2 cache is bound by that; all others are bound by memory.
    Raises: KeyError where none of the products was measured.
    """
    times = FORWARD_PASSES[pass_]
    size = times * cost.bytes
    cached = (
        cache == "warm" and roofs.l2_bytes is not None and size <= roofs.l2_bytes and "l2" in roofs.bytes_per_second
    )
    rates = [roofs.flops_per_second[name] / count for name, count in products if name in roofs.flops_per_second]
    if not rates:
        raise KeyError(f"none of the products {', '.join(name for name, _ in products)} was measured")
    return max(size / roofs.bytes_per_second["l2" if cached else "memory"], times * cost.flops / max(rates))


def _copy_rate(clock: Clock, device: str, count: int) -> float:
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best(clock, lambda: target.copy_(source))


def _product_rate(clock: Clock, device: str, dtype: torch.dtype, side: int) -> float:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / best(clock, lambda: torch.mm(left, right, out=out))


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    if not allowed:
        yield
        return
    with tf32_allowed():
        yield
