"""From records to comparisons: who was fastest at which accuracy, and what share of the floor that is."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from spectralbench.ceilings import Roofs, roof_floor
from spectralbench.gpu.classes import PRODUCTS, accuracy_class, at_least_as_accurate
from spectralbench.identity import Identity
from spectralbench.record import Record, Scalar
from spectralkernels.declare import Cost, Operation

MARKS = ("launch_bound", "launch_gaps")
"""Remarks of the measuring core on a time that says little about the kernel."""


Process = tuple[str | None, int]
"""A measuring process: the GPU it ran on, and its number there."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One implementation in one setting.

    by_process: each process's median, seconds, by card and number. seconds: their median. floor_share: floor over
    seconds, where there are roofs. alone: whether some process timed it without the others around it. remarks:
    `launch_bound`, `launch_gaps`.
    """

    name: str
    role: str
    frozen: bool
    accuracy: str | None
    by_process: Mapping[Process, float]
    error: float | None
    floor_share: float | None
    alone: bool
    remarks: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return statistics.median(self.by_process.values())

    @property
    def ours(self) -> bool:
        """Whether it is one of this project's kernels that may be compared: not with its weight transformed outside the
        clock."""
        return self.role == "kernel" and not self.frozen

    def times(self, other: Contestant) -> float:
        """How many times as long this one takes: the median over the processes that timed both, on one card.

        Of the medians where no process timed both.
        """
        shared = self.by_process.keys() & other.by_process.keys()
        if not shared:
            return self.seconds / other.seconds
        return statistics.median(self.by_process[process] / other.by_process[process] for process in shared)


@dataclass(frozen=True, slots=True)
class Setting:
    """A question, with its case's parameters and floor, and everyone who was timed at it."""

    question: Identity
    params: Mapping[str, Scalar]
    cost: Cost | None
    subjects: tuple[Contestant, ...]

    @property
    def label(self) -> str:
        """The case for people."""
        return f"{self.question.operation}[{self.question.case}] {self.question.dtype} {self.question.pass_}"

    @property
    def state(self) -> str:
        """How it was timed, for people."""
        return f"{self.question.launch}, {self.question.cache} cache"

    def subject(self, name: str) -> Contestant | None:
        """The subject of that name, if it was timed."""
        return next((found for found in self.subjects if found.name == name), None)

    def best_of_ours(self, accuracy: str | None) -> Contestant | None:
        """The fastest of our kernels that is of this class or a finer one."""
        fit = [found for found in self.subjects if found.ours and at_least_as_accurate(found.accuracy, accuracy)]
        return min(fit, key=lambda found: found.seconds, default=None)

    def rivals(self) -> Iterator[Contestant]:
        """Everyone else's implementations, fastest first."""
        yield from sorted((s for s in self.subjects if s.role != "kernel"), key=lambda found: found.seconds)


def settings(records: Iterable[Record], operations: Mapping[str, Operation], roofs: Roofs | None) -> list[Setting]:
    """Every setting that has times, in the order of their first record."""
    groups: dict[Identity, list[Record]] = {}
    for record in records:
        if record.status == "measured" and record.metric("device_time") is not None and record.operation in operations:
            groups.setdefault(record.identity.question, []).append(record)
    return [_setting(question, found, operations[question.operation], roofs) for question, found in groups.items()]


def _setting(question: Identity, records: list[Record], operation: Operation, roofs: Roofs | None) -> Setting:
    cost = Cost(**records[0].cost) if records[0].cost else None
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(record.implementation, []).append(record)
    listed = {known.name for known in operation.subjects}
    subjects = (_subject(found, operation, cost, roofs) for name, found in by_name.items() if name in listed)
    return Setting(question, records[0].case, cost, tuple(subjects))


def _subject(records: list[Record], operation: Operation, cost: Cost | None, roofs: Roofs | None) -> Contestant:
    first = records[0]
    by_process = {(record.card, record.replicate): median(record, "device_time") or 0.0 for record in records}
    seconds = statistics.median(by_process.values())
    errors = [error for record in records if (error := median(record, "rounding_error")) is not None]
    accuracy = accuracy_class(operation, first.implementation, first.dtype)
    return Contestant(
        first.implementation,
        first.role,
        operation.subject(first.implementation).frozen,
        accuracy,
        by_process,
        max(errors, default=None),
        _floor_share(first, seconds, accuracy, cost, roofs),
        any(record.reason for record in records),
        tuple(mark for mark in MARKS if any(mark in (record.unavailable or {}) for record in records)),
    )


def median(record: Record, metric: str) -> float | None:
    """The median of a record's samples of one metric, or None."""
    found = record.metric(metric)
    return None if found is None else found.median


def _floor_share(
    record: Record, seconds: float, accuracy: str | None, cost: Cost | None, roofs: Roofs | None
) -> float | None:
    if cost is None or roofs is None or accuracy is None or seconds <= 0.0:
        return None
    return roof_floor(cost, roofs, PRODUCTS[accuracy], record.cache, record.pass_) / seconds  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Loss:
    """A setting in which a rival beats every kernel of ours that is at least as accurate."""

    setting: Setting
    ours: Contestant
    rival: Contestant

    @property
    def ratio(self) -> float:
        """Their time over ours; below 1."""
        return self.rival.times(self.ours)


def losses(found: Iterable[Setting]) -> list[Loss]:
    """The worst loss of every setting that has one, worst first."""
    worst = []
    for setting in found:
        lost = [
            Loss(setting, ours, rival)
            for rival in setting.rivals()
            if (ours := setting.best_of_ours(rival.accuracy)) is not None and rival.seconds < ours.seconds
        ]
        if lost:
            worst.append(min(lost, key=lambda loss: loss.ratio))
    return sorted(worst, key=lambda loss: loss.ratio)
