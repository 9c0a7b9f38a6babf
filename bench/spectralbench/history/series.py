"""The words of a history: points of a series over commits, outcomes without a number, and ratios of points."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from spectralbench.history.ancestry import Order
from spectralbench.identity import Facts, Identity
from spectralbench.interval import student
from spectralbench.record import Damage, Scalar

Via = Literal["records", "asv"]

LEAST_SHARED = 3


@dataclass(frozen=True, slots=True)
class Subject(Identity):
    """What was measured, on which machine; `via` tells our records from asv's results, which say less."""

    machine: str
    via: Via

    def __str__(self) -> str:
        words = [self.operation, self.implementation, self.case, self.dtype, self.pass_, self.cache, self.launch]
        return " ".join(word for word in words if word)


@dataclass(frozen=True, slots=True)
class Key:
    """The identity of a series: a subject and one metric of it."""

    subject: Subject
    metric: str
    metric_version: int | str
    unit: str

    def __str__(self) -> str:
        return f"{self.subject} {self.metric}"


@dataclass(frozen=True, slots=True)
class Point:
    """One commit in one environment.

    processes: (label, median of its samples) of every process; the label is the same for implementations that were
    timed interleaved, so ratios can be taken process by process. q25, q75: over the processes, or over the samples if
    there is one process. n: samples in all. environment: the conditions that can move this metric;
    they bound a segment. wrong: a process of this commit gave a wrong answer there, so that no number of it counts.
    remarks: (kind, words) of what measuring said of its times: see `summary.REMARKS`, and
    "not_interleaved".
    """

    commit: str | None
    dirty: str | None
    recorded_at: str
    value: float
    processes: tuple[tuple[str, float], ...]
    q25: float
    q75: float
    n: int
    environment: Facts
    wrong: bool = False
    remarks: tuple[tuple[str, str], ...] = ()

    @property
    def clean(self) -> bool:
        """Whether it may serve as a baseline: a known commit, no uncommitted change and no wrong answer."""
        return self.commit is not None and self.dirty is None and not self.wrong

    @property
    def mark(self) -> str:
        """The commit for people: `1a2b3c4d`, `1a2b3c4d-dirty`, `no commit`."""
        commit = "no commit" if self.commit is None else self.commit[:8]
        return commit if self.dirty is None else f"{commit}-dirty"


@dataclass(frozen=True, slots=True)
class Series:
    """The points of one key in the order of their commits (see `ancestry`), the newest last.

    params: the case's parameters. aside: points whose commits have no place in that order. placed: whether any point
    has one; where none has, `points` are all of them by the clock, and there is no telling which is the newest. cost:
    the floor of a forward pass, where records say it.
    """

    key: Key
    points: tuple[Point, ...]
    role: str
    params: Mapping[str, Scalar] = field(hash=False)
    aside: tuple[Point, ...] = ()
    placed: bool = True
    cost: Mapping[str, int] | None = field(default=None, hash=False)

    @property
    def newest(self) -> Point:
        return self.points[-1]

    def segment(self, point: Point) -> tuple[Point, ...]:
        """The points of the same environment as `point` (which is one of them), oldest first."""
        return tuple(other for other in self.points if other.environment == point.environment)


@dataclass(frozen=True, slots=True)
class Absence:
    """An outcome without a number at the newest commit of its subject: skipped on purpose, failed, or vanished.

    metric: None if it holds for all of them. status: "skipped", "failed" or "vanished", which has no outcome where
    others of its case have one. lost: it was measured the last time before, and is skipped or gone now.
    """

    subject: Subject
    metric: str | None
    role: str
    status: str
    failure: str | None
    reason: str
    recorded_at: str
    commit: str | None
    profile: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """Everything that `results/` holds.

    absences: the newest outcome of every subject that gave no number at its newest commit, or failed in any process of
    it. environments: the newest environment of every machine that has records. damage: all that could not be used;
    doubtful: the part of it that may belong to the newest commit of a machine. order: how commits follow each other.
    """

    series: tuple[Series, ...]
    damage: tuple[Damage, ...] = ()
    absences: tuple[Absence, ...] = ()
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    doubtful: tuple[Damage, ...] = ()
    order: Order = field(default_factory=Order, hash=False)

    @property
    def machines(self) -> tuple[str, ...]:
        return tuple(sorted({series.key.subject.machine for series in self.series} | set(self.environments)))


@dataclass(frozen=True, slots=True)
class Ratio:
    """One point's value over another's, with an interval.

    paired: taken process by process. judged: enough processes were shared for the interval to say who is faster.
    """

    value: float
    low: float
    high: float
    paired: bool
    judged: bool = False

    @property
    def significant(self) -> bool:
        """Whether the two are shown to differ."""
        return self.judged and not self.low <= 1 <= self.high


def ratio(new: Point, old: Point, *, level: float = 0.05) -> Ratio | None:
    """`new` over `old`: the median over the processes that both have, else the ratio of the medians.

    With three or more shared processes the interval is Student's on the logarithms of their ratios, which misses the
    truth with probability `level`; with fewer it is the quotient of opposite quartiles, and nothing is judged by it.
    None if a value is zero or less.
    """
    if min(old.q25, new.q25, *(value for _, value in (*old.processes, *new.processes))) <= 0:
        return None
    shared = _shared(new, old)
    if len(shared) >= LEAST_SHARED:
        found = student([math.log(one) for one in shared], 1 - level)
        return Ratio(statistics.median(shared), found.low, found.high, paired=True, judged=True)
    value = quotient(new, old)
    return Ratio(value, min(value, new.q25 / old.q75), max(value, new.q75 / old.q25), paired=bool(shared))


def quotient(new: Point, old: Point) -> float:
    """`new` over `old` without an interval: the median over the processes that both have, else of the medians."""
    shared = _shared(new, old)
    return statistics.median(shared) if shared else new.value / old.value


def _shared(new: Point, old: Point) -> list[float]:
    before = dict(old.processes)
    return [value / before[label] for label, value in new.processes if label in before]
