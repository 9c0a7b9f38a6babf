"""From where on each of ours pays, commit by commit: crossovers of the cases of a setting as series.

A curve is taken inside one process at one commit, and its axis is what runs down or across the setting: the kernel size
at each compression, the compression at each kernel size, beta, or the density that beta leaves.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spectralbench import names, rivals
from spectralbench.contest import CaseRows, Contender
from spectralbench.crossover import Crossover, crossover
from spectralbench.history import Point, Series
from spectralbench.settings import LETTERS, Setting, View, stranger

DENSITY = "density"


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where `ours` pays against a family at one commit. fixed: what the cases share beside the setting's name.

    axis: a parameter, or "density", of which ours pays below the place and not above it: `found` is of its inverse.
    """

    setting: str
    fixed: str
    ours: str
    family: str
    axis: str
    mark: str
    recorded_at: str
    found: Crossover

    @property
    def words(self) -> str:
        """`from K = 4.6 [4.2, 5]`, `from 1/density = 3.5 (not judged: 1 of 3 processes)`."""
        return self.found.words("1/density" if self.axis == DENSITY else LETTERS[self.axis])

    def as_dict(self) -> dict[str, Any]:
        """For JSON: infinity and zero, which are places beyond all that were measured, are null and said in words."""
        found = self.found

        def place(value: float) -> float | None:
            if not 0 < value < math.inf:
                return None
            return 1 / value if self.axis == DENSITY else value

        low, high = place(found.low), place(found.high)
        if self.axis == DENSITY:
            low, high = high, low
        return {
            "setting": self.setting, "fixed": self.fixed, "ours": self.ours, "family": self.family, "axis": self.axis,
            "commit": self.mark, "recorded_at": self.recorded_at, "value": place(found.value), "low": low,
            "high": high, "processes": found.processes, "judged": found.judged, "words": self.words,
        }  # fmt: skip


def crossings(setting: Setting, rank: Callable[[Point], Any] = lambda point: point.recorded_at) -> Iterator[Crossing]:
    """All of a setting, those of one pair and axis in the order of `rank`, in which the newest point stands last."""
    if not setting.view.crosses:
        return
    view = setting.view
    for axis, fixed_axis in _axes(view):
        for value in setting.values(fixed_axis) if fixed_axis else [None]:
            chosen = [case for case in setting.cases if fixed_axis is None or case.params[fixed_axis] == value]
            fixed = "" if fixed_axis is None or value is None else f"{LETTERS[fixed_axis]}{names.number(value)}"
            members = dict.fromkeys(row.name for case in chosen for row in case.timed() if _is_ours(row, view))
            for name in members:
                for family in view.families:
                    for mark, when, found in _of(chosen, name, family, axis, rank):
                        yield Crossing(setting.name, fixed, name, family, axis, mark, when, found)


def _axes(view: View) -> list[tuple[str, str | None]]:
    """Each axis along which ours may come to pay, and what is fixed on it."""
    if view.down is not None:
        return [(view.down, view.across), (view.across, view.down)]
    return [(view.across, None), (DENSITY, None)] if view.across == "beta" else [(view.across, None)]


def _is_ours(row: Contender, view: View) -> bool:
    return row.role == "kernel" or (view.down is None and row.role != "rival" and stranger(row, view))


def _of(
    cases: Sequence[CaseRows], name: str, family: str, axis: str, rank: Callable[[Point], Any]
) -> Iterator[tuple[str, str, Crossover]]:
    """(commit, when, crossover) of every commit, by the processes that measured the most places."""
    curves: dict[str, dict[str, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    newest: dict[str, Point] = {}
    for case in cases:
        own = case.rows.get(name)
        if own is None or own.time is None or own not in case.timed():
            continue
        place = _place(case, own, axis)
        if place is None:
            continue
        others = [one.metrics["device_time"] for one in case.timed() if rivals.family(one.name) == family]
        for point in own.metrics["device_time"].points:
            newest[point.mark] = max(point, newest.get(point.mark, point), key=lambda one: one.recorded_at)
            best = _best(others, point.mark)
            for process, value in point.processes:
                if process in best and value > 0:
                    curves[point.mark][process][place] = math.log(value / best[process])
    for mark in sorted(curves, key=lambda one: rank(newest[one])):
        whole = max(len(curve) for curve in curves[mark].values())
        found = crossover([curve for curve in curves[mark].values() if len(curve) == whole])
        if found is not None:
            yield mark, newest[mark].recorded_at, found


def _place(case: CaseRows, own: Contender, axis: str) -> float | None:
    if axis != DENSITY:
        return float(case.params[axis])
    kept = own.value("kept_fraction")
    return 1 / kept if kept else None


def _best(others: Sequence[Series], mark: str) -> dict[str, float]:
    """Process -> the time of the family's best member, which is chosen by its median, at one commit."""
    points = [point for series in others for point in series.points if point.mark == mark and point.value > 0]
    return dict(min(points, key=lambda point: point.value).processes) if points else {}
