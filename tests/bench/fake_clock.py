"""The same made-up times for every front end: a clock to name in `Sources`, and a plugin for `pytest -p fake_clock`.

Looking at answers takes none of these times, so that each would be compared 45 times; twice is enough here.
"""

from __future__ import annotations

import os

from spectralbench import measure, timing
from spectralbench.clock import FakeClock
from spectralkernels.ops import load_operations


def clock_for(device: str, cache: str = "warm", launch: str = "eager") -> FakeClock:
    """A clock on which every implementation has times of its own, times the variable FAKE_CLOCK_FACTOR."""
    factor = float(os.environ.get("FAKE_CLOCK_FACTOR", "1"))
    names = dict.fromkeys(known.name for found in load_operations().values() for known in found.subjects)
    times = {name: [factor * 1e-3 * (10 + k + step) / 3 for step in (0, 0.1, 0.3)] for k, name in enumerate(names)}
    return FakeClock(times, cache=cache, launch=launch)


LOOKS = 2


def clock_of_a_worker(device: str, cache: str = "warm", launch: str = "eager") -> FakeClock:
    timing.INSPECTIONS = LOOKS
    return clock_for(device, cache, launch)


def pytest_configure() -> None:
    measure.clock_for, timing.INSPECTIONS = clock_for, LOOKS
