"""How long a stage may take: a share of the whole time, and a stop that does not wait for the work."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from spectralkernels.errors import RangeError

ENDS: Mapping[str, float] = {
    "ceilings": 0.08,
    "targets": 0.38,
    "memory": 0.44,
    "correctness": 0.53,
    "replicates": 0.96,
    "breadth": 0.99,
    "tests": 1.0,
}
"""Stage -> share of the time at whose end it must be over, in order; what a stage leaves is the next one's."""


class StageBudget:
    """Seconds for everything, counted from now on. `now` is a clock in seconds."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        if not seconds > 0:
            raise RangeError(f"the time budget must be a number of seconds above 0, got {seconds:g}")
        self._seconds = seconds
        self._now = now
        self._began = now()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._now() - self._began

    def left(self, stage: str) -> float:
        """Seconds until `stage` must be over; negative when it should be."""
        return ENDS[stage] * self._seconds - self.elapsed()


@dataclass(slots=True)
class Stop:
    """Whether the time ran out inside a `hard_stop`."""

    fired: bool = False


@contextmanager
def hard_stop(seconds: float) -> Iterator[Stop]:
    """Interrupt the main thread as Ctrl-C would once `seconds` are over; the interrupt does not leave the block.

    A Ctrl-C of the user does leave it. Only in the main thread of a program.
    """
    stop = Stop()

    def ring(number: int, frame: FrameType | None) -> None:
        stop.fired = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield stop
    except KeyboardInterrupt:
        if not stop.fired:
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
