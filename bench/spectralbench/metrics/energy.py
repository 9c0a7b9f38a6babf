"""Joules per call, from the GPU's total energy counter, idle power included.

The counter ticks a few dozen times a second, so the call is repeated without a pause from one tick until the first tick
at least `SECONDS` later, and the energy between the two ticks is shared out.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

from spectralbench.identity import NAMES
from spectralbench.metrics import Axis, Metric, Rule, Trial, Unavailable

SECONDS = 1.0
BATCH_SECONDS = 5e-3


def _sample(trial: Trial) -> list[float]:
    import torch

    from spectralbench import nvml

    if trial.device != "cuda":
        raise Unavailable("no NVML: energy is read from a GPU's counter, and this ran on a CPU")
    device = nvml.Device.current()
    per_call = statistics.median(trial.times) if trial.times else BATCH_SECONDS
    calls = max(1, math.ceil(BATCH_SECONDS / per_call))

    def batch() -> int:
        for _ in range(calls):
            trial.run()
        torch.cuda.synchronize()
        return calls

    return [joules_per_call(batch, device.joules)]


def joules_per_call(
    batch: Callable[[], int],
    joules: Callable[[], float],
    seconds: float = SECONDS,
    now: Callable[[], float] = time.perf_counter,
) -> float:
    """Energy of one call between two ticks of the counter; `batch` runs some calls and returns how many."""
    _, at_first = _until_tick(batch, joules, seconds, now)
    start = now()
    done = 0
    while True:
        more, at_last = _until_tick(batch, joules, seconds, now)
        done += more
        if now() - start >= seconds:
            return (at_last - at_first) / done


def _until_tick(
    batch: Callable[[], int], joules: Callable[[], float], seconds: float, now: Callable[[], float]
) -> tuple[int, float]:
    before, start, done = joules(), now(), 0
    while True:
        done += batch()
        if (after := joules()) != before:
            return done, after
        if now() - start > 2 * seconds:
            raise Unavailable(f"NVML: the energy counter did not move in {2 * seconds:g} s of work")


METRIC = Metric(
    name="energy",
    unit="joule",
    version=1,
    sample=_sample,
    rule=Rule(0.10, host=True),
    moved_by=NAMES,
    axis=Axis("energy per call", "log"),
    per_process=True,
    devices=("cuda",),
)
