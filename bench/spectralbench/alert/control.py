"""What a sitting did to everybody: baselines are timed interleaved with the kernels, and their code does not change.

The shift of a process is the median, over the baselines of an operation, of log(time / usual time). A subject is freed
of it as far as it explained the subjects of earlier points (a least-squares weight between 0 and 1 over the run), and
wholly where it is far beyond its own noise: then the host moved, and not the code.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from spectralbench.alert.tails import Array
from spectralbench.history import Key, Series, Subject
from spectralbench.identity import Facts

ENOUGH = 3
FAR = 4.0
LEAST_SHIFT = 0.02

Place = tuple[str, str, str, Facts]


@dataclass(slots=True)
class Controls:
    """Deviations of the baselines of one place (machine, operation, metric, environment) by process label."""

    sorted: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    own: dict[Subject, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def shifts(self, subject: Subject) -> Callable[[str], tuple[float, int]]:
        """By label: the median deviation of the others in that process and how many they are; NaN and 0 without any."""
        own = self.own.get(subject, {})

        def shift(label: str) -> tuple[float, int]:
            known = self.sorted.get(label, ())
            mine = own.get(label)
            out = len(known) if mine is None else bisect.bisect_left(known, mine)
            count = len(known) - (mine is not None)
            if not count:
                return math.nan, 0
            # The middle of a sorted list without the one that is out.
            low, high = (known[at + (at >= out)] for at in ((count - 1) // 2, count // 2))
            return (low + high) / 2, count

        return shift


def gather(series: Iterable[Series], metrics: Iterable[str]) -> dict[Place, Controls]:
    """The controls of every place; a baseline that was measured at one point only has no usual time."""
    wanted = set(metrics)
    found: dict[Place, Controls] = defaultdict(Controls)
    for one in series:
        if one.key.metric not in wanted or one.role not in ("baseline", "rival"):
            continue
        by_environment = defaultdict(list)
        for point in one.points:
            if point.value > 0 and all(value > 0 for _, value in point.processes):
                by_environment[point.environment].append(point)
        for environment, points in by_environment.items():
            if len(points) < 2:
                continue
            usual = math.log(statistics.median(point.value for point in points))
            controls = found[place(one.key, environment)]
            own = controls.own[one.key.subject]
            for point in points:
                for label, value in point.processes:
                    own[label] = math.log(value) - usual
                    controls.sorted[label].append(own[label])
    for controls in found.values():
        for deviations in controls.sorted.values():
            deviations.sort()
    return found


def place(key: Key, environment: Facts) -> Place:
    """Where controls of a series are looked for."""
    return key.subject.machine, key.subject.operation, key.metric, environment


def freed(values: Array, shifts: Array) -> tuple[Array, Array, Array]:
    """The logarithms without what the sittings did: (values, shift of the newest point, whether a sitting moved).

    values, shifts: [series, point, process], the newest point last; a NaN shift leaves the value as it is.
    """
    known = np.isfinite(shifts) & np.isfinite(values)
    count = known.sum(2)
    shift = np.where(known, shifts, 0.0)
    sitting = np.where(count > 0, shift.sum(2) / np.maximum(count, 1), 0.0)  # [series, point]
    spread = 1.4826 * np.median(np.abs(sitting[:, :-1] - np.median(sitting[:, :-1], 1, keepdims=True)), 1)
    limit = np.maximum(FAR * spread, LEAST_SHIFT)[:, None]
    moved = np.abs(sitting) > limit
    usual = known & ~moved[:, :, None]
    usual[:, -1] = False
    n = np.maximum(usual.sum((1, 2), keepdims=True), 1)
    y, c = (np.where(usual, x - np.where(usual, x, 0).sum((1, 2), keepdims=True) / n, 0.0) for x in (values, shift))
    square = float((c**2).sum())
    weight = min(max(float((y * c).sum()) / square, 0.0), 1.0) if square > 0 else 0.0
    return values - np.where(moved[:, :, None], 1.0, weight) * shift, sitting[:, -1], moved
