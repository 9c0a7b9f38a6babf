"""From where on one way to compute beats another: the place where a curve of ratios falls below 1 for good.

A curve is the logarithm of ours over theirs, by kernel size, density or beta, measured in one process. Its crossover is
interpolated, linearly in both logarithms, between the last place where we lose and the next one. The processes are the
replicates: with three or more the interval is Student's, 95 %, on the logarithm of the place.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spectralbench.interval import student

LEAST_PLACES = 3
LEAST_PROCESSES = 3


@dataclass(frozen=True, slots=True)
class Crossover:
    """Where ours wins from. value: 0 if at every place, infinity if at none. low, high: of the interval; of all
    processes where it is not judged. first, last: the places that were measured."""

    value: float
    low: float
    high: float
    first: float
    last: float
    processes: int
    judged: bool

    @property
    def missing(self) -> str:
        """What a judgement wants where there is none: `2 of 3 processes`, `its 3 processes disagree`."""
        if self.processes < LEAST_PROCESSES:
            return f"{self.processes} of {LEAST_PROCESSES} processes"
        return f"its {self.processes} processes disagree"

    def words(self, name: str) -> str:
        """`from K = 4.6 [4.2, 5]`, `from K <= 1 [<= 1, 1.1]`, `at every K from 3 to 31`, `at no K from 3 to 31`."""
        doubt = "" if self.judged else f" (not judged: {self.missing})"
        if self.low == self.high and self.value in (0.0, math.inf):
            which = "every" if self.value == 0 else "no"
            return f"at {which} {name} from {self.first:g} to {self.last:g}{doubt}"
        interval = "" if self.processes == 1 else f" [{self._place(self.low)}, {self._place(self.high)}]"
        place = self._place(self.value)
        return f"from {name} {'' if place[0] in '<>' else '= '}{place}{interval}{doubt}"

    def _place(self, value: float) -> str:
        if value == 0:
            return f"<= {self.first:g}"
        return f"> {self.last:g}" if math.isinf(value) else f"{value:.2g}"


def crossover(curves: Sequence[Mapping[float, float]], level: float = 0.05) -> Crossover | None:
    """The place from which every curve is at or below zero; None with fewer than three places common to all curves.

    curves: one per process, place (positive) -> log(ours / theirs).
    """
    places = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if len(places) < LEAST_PLACES:
        return None
    found = [_of_one([(place, curve[place]) for place in places]) for curve in curves]
    value = statistics.median_low(found)
    low, high = min(found), max(found)
    judged = len(found) >= LEAST_PROCESSES
    if all(0 < one < math.inf for one in found):
        value = statistics.median(found)
        if judged:
            interval = student([math.log(one) for one in found], 1 - level)
            low, high = interval.low, interval.high
    elif low != high:
        judged = False  # the processes do not agree whether there is a crossover
    return Crossover(value, low, high, places[0], places[-1], len(found), judged)


def _of_one(curve: Sequence[tuple[float, float]]) -> float:
    """0 where ours wins everywhere, infinity where it loses at the last place."""
    lost = [index for index, (_, height) in enumerate(curve) if height > 0]
    if not lost:
        return 0.0
    if lost[-1] == len(curve) - 1:
        return math.inf
    (left, above), (right, below) = curve[lost[-1]], curve[lost[-1] + 1]
    share = above / (above - below)
    if left <= 0:
        return left + share * (right - left)
    return math.exp(math.log(left) + share * (math.log(right) - math.log(left)))
