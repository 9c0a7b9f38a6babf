"""What became of one measurement (standard library only, so that readers need no torch).

An outcome is Measured, Skipped or Failed: three shapes, matched by type, never a NaN or a string in a number's place.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FailureKind = Literal["wrong", "error", "crash", "timeout", "oom"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """All samples of one metric; every metric is a cost in SI units, smaller is better."""

    metric: str
    version: int
    unit: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile (inclusive method); both are the sample itself if there is one."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        lower, _, upper = statistics.quantiles(self.samples, n=4, method="inclusive")
        return lower, upper


@dataclass(frozen=True, slots=True)
class Measured:
    """The answer was right; these are its numbers, the reasons why a metric is missing, and the tiles it ran with.

    tiles: `spectralkernels.tuning` label -> fields of the tile and its "source"; what `run --pin` takes.
    during: what the machine did while it was timed, see `during.Watch.facts`.
    """

    measurements: tuple[Measurement, ...]
    unavailable: tuple[tuple[str, str], ...] = ()
    tiles: Mapping[str, Mapping[str, int | str]] = field(default_factory=dict)
    during: Mapping[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skipped:
    """It was not run, on purpose."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """It was run and no number came of it; `requested_bytes` is what an out-of-memory asked for, where known.

    innocent: whether another implementation spoiled the process, so that this one may do well in a new one.
    """

    kind: FailureKind
    error: str
    requested_bytes: int | None = None
    innocent: bool = False


Outcome = Measured | Skipped | Failed
