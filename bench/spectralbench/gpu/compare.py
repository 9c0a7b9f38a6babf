"""Who was fastest at which accuracy, and what share of the floor that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spectralbench.ceilings import Roofs, roof_floor
from spectralbench.contest import CaseRows, Contender, cases
from spectralbench.gpu.classes import PRODUCTS, accuracy_class, at_least_as_accurate
from spectralbench.history import Point, of, quotient
from spectralbench.record import Record
from spectralkernels.declare import Cost, Operation


@dataclass(frozen=True, slots=True)
class Match:
    """A case in one state and everyone who was measured at it. timed: those with a time, fastest first."""

    case: CaseRows
    operation: Operation
    timed: tuple[Contender, ...]

    @property
    def label(self) -> str:
        """The case for people."""
        subject = self.case.subject
        return f"{subject.operation}[{subject.case}] {subject.dtype} {subject.pass_}"

    @property
    def state(self) -> str:
        """How it was timed, for people."""
        return f"{self.case.subject.launch}, {self.case.subject.cache} cache"

    def accuracy(self, row: Contender) -> str | None:
        """The class that a row's implementation declares."""
        return accuracy_class(self.operation, row.name, row.subject.dtype)

    def best_of_ours(self, accuracy: str | None) -> Contender | None:
        """The fastest of our kernels of this class or a finer one."""
        fit = (row for row in self.ours(self.timed) if at_least_as_accurate(self.accuracy(row), accuracy))
        return next(fit, None)

    def ours(self, rows: Iterable[Contender]) -> list[Contender]:
        """Those that are our kernels and may be compared: not with the weight transformed outside the clock."""
        return [row for row in rows if row.role == "kernel" and not self.operation.subject(row.name).frozen]

    def cost(self) -> Cost | None:
        """The floor of a forward pass."""
        floor = self.timed[0].metrics["device_time"].cost if self.timed else None
        return Cost(**floor) if floor else None

    def floor_share(self, row: Contender, roofs: Roofs | None) -> float | None:
        """The time of a perfect implementation of the row's class over the row's, where there are roofs."""
        cost, accuracy, subject = self.cost(), self.accuracy(row), self.case.subject
        if cost is None or roofs is None or accuracy is None or time(row).value <= 0.0:
            return None
        least = roof_floor(cost, roofs, PRODUCTS[accuracy], subject.cache, subject.pass_)  # type: ignore[arg-type]
        return least / time(row).value

    def loss(self) -> tuple[float, Contender, Contender] | None:
        """The worst (their time over ours, ours, theirs) among those who beat all of ours that are as accurate."""
        lost = [
            (quotient(time(rival), time(ours)), ours, rival)
            for rival in self.timed
            if rival.role != "kernel"
            and (ours := self.best_of_ours(self.accuracy(rival))) is not None
            and time(rival).value < time(ours).value
        ]
        return min(lost, key=lambda one: one[0], default=None)


def time(row: Contender) -> Point:
    """The time of a row that has one."""
    assert row.time is not None, "only timed rows are compared by their times"
    return row.time


def remarks(row: Contender) -> list[str]:
    """What a reader must know of a row's time: `launch-bound`, `not interleaved`."""
    kinds = [kind for kind, _ in time(row).remarks]
    return ["not interleaved" if kind == "not_interleaved" else kind.replace("_", "-") for kind in kinds]


def matches(records: Sequence[Record], operations: Mapping[str, Operation]) -> list[Match]:
    """Every case in every state in which something was measured; of subjects that their operations list."""
    listed = {(name, subject.name) for name, operation in operations.items() for subject in operation.subjects}
    known = [record for record in records if (record.operation, record.implementation) in listed]
    found = []
    for name, own in cases(of(known, "this one")).items():
        for case in own:
            timed = sorted((row for row in case.rows.values() if row.time), key=lambda row: time(row).value)
            found.append(Match(case, operations[name], tuple(timed)))
    return found
