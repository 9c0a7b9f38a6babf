"""The one interval of a ratio: Student's, on the logarithms of ratios that were taken process by process."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LARGEST = 700.0
"""The exponential of more is no float; a wider interval ends there."""


@dataclass(frozen=True, slots=True)
class Interval:
    """middle: the geometric mean. low, high: of the interval. p: of the hypothesis that the truth is 1, two-sided."""

    middle: float
    low: float
    high: float
    p: float


def student(logs: Sequence[float], confidence: float) -> Interval:
    """The interval that holds the truth with probability `confidence`; everything, and p = 1, from a single ratio.

    logs: logarithms of one ratio, each from processes of its own.
    Raises: ValueError without any, or if the confidence is not in (0, 1).
    """
    from scipy import stats  # readers that only show ratios do without

    if not logs or not 0 < confidence < 1:
        raise ValueError(f"expected logarithms and 0 < confidence < 1, got {len(logs)} and {confidence}")
    middle, free = statistics.fmean(logs), len(logs) - 1
    if not free:
        return Interval(math.exp(middle), 0.0, math.inf, 1.0)
    error = statistics.stdev(logs) / len(logs) ** 0.5
    half = float(stats.t.isf((1 - confidence) / 2, free)) * error
    p = 2 * float(stats.t.sf(abs(middle) / error, free)) if error else float(middle == 0)
    low, high = max(middle - half, -LARGEST), min(middle + half, LARGEST)
    return Interval(math.exp(middle), math.exp(low), math.exp(high), p)
