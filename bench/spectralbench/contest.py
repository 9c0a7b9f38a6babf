"""A case with everybody who was timed at it, and ratios to the best of what a user has today (no torch)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from spectralbench import names, rivals
from spectralbench.history import History, Point, Ratio, Series, Subject, ratio
from spectralbench.record import Scalar

Kind = Literal["", "win", "lose", "open"]
"""Who wins: we, another one, or nobody that is shown to."""

COARSE_ERROR = {"float32": 1e-5, "complex64": 1e-5}
"""A rounding error beyond this belongs to a coarser class of accuracy, which is not compared with the others."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One implementation at one case: its series per metric."""

    subject: Subject
    role: str
    metrics: Mapping[str, Series]

    @property
    def name(self) -> str:
        return self.subject.implementation

    @property
    def time(self) -> Point | None:
        found = self.metrics.get("device_time")
        return None if found is None else found.newest

    def value(self, metric: str) -> float | None:
        """The newest value of a metric, None where it was not taken."""
        found = self.metrics.get(metric)
        return None if found is None else found.newest.value


@dataclass(frozen=True, slots=True)
class Versus:
    """The time of a row over that of another; slow: other layouts of that rival which are on a slow path."""

    row: Contender
    other: Contender
    ratio: Ratio
    slow: tuple[str, ...] = ()
    alone: bool = False

    @property
    def faster(self) -> float:
        """How many times faster the row is; below 1 it is slower."""
        return 1 / self.ratio.value

    @property
    def mark(self) -> str:
        """`~` too few processes to judge, `=` no difference shown, `°` one layout or size of the rival alone."""
        sure = "" if self.ratio.significant else "=" if self.ratio.judged else "~"
        return sure + ("°" if self.alone else "")

    @property
    def text(self) -> str:
        return f"{times(self.faster)}{self.mark}"

    @property
    def kind(self) -> Kind:
        if not self.ratio.significant:
            return "open"
        return "win" if self.ratio.value < 1 else "lose"


MARKS = (
    "~ not judged: fewer than three processes measured both. = no difference shown (95 %). ° only one layout of the "
    "rival, or one N of torch.fft, was measured there. Below 1x we lose."
)


@dataclass(frozen=True, slots=True)
class CaseRows:
    """One case in one pass on one machine, with everybody who was measured at it."""

    subject: Subject
    params: Mapping[str, Scalar]
    rows: Mapping[str, Contender]

    @property
    def facts(self) -> dict[str, Scalar]:
        """Parameters, and what else tells cases apart."""
        subject = self.subject
        return {**self.params, "dtype": subject.dtype, "pass": subject.pass_, "cache": subject.cache,
                "launch": subject.launch, "seed": subject.seed}  # fmt: skip

    @property
    def size(self) -> str:
        return "x".join(map(str, self.subject.fft_size))

    def timed(self) -> list[Contender]:
        """Everybody with a time who may be compared: same accuracy class, nothing prepared outside the clock."""
        limit = COARSE_ERROR.get(self.subject.dtype)
        return [
            row
            for row in self.rows.values()
            if row.time is not None
            and row.name not in rivals.FROZEN
            and (limit is None or (row.value("rounding_error") or 0.0) <= limit)
        ]

    def ours(self) -> Contender | None:
        """Our fastest: role kernel."""
        return fastest([row for row in self.timed() if row.role == "kernel"])

    def against(self, row: Contender, family: str) -> Versus | None:
        """A row against the best member of a family; those measured at the same commit go before all others."""
        members = [one for one in self.timed() if rivals.family(one.name) == family and one is not row]
        if row.time is None or not members:
            return None
        mark = row.time.mark
        peers = [one for one in members if one.time is not None and one.time.mark == mark] or members
        best = fastest(peers)
        assert best is not None and best.time is not None, "members have times"
        found = ratio(row.time, best.time)
        if found is None:
            return None
        layouts = {rivals.FAMILIES[family][one.name] for one in peers}
        return Versus(
            row, best, found, self.slow(family), alone=len(layouts) == 1 < len(set(rivals.FAMILIES[family].values()))
        )

    def slow(self, family: str) -> tuple[str, ...]:
        """Members of a family that are more than `rivals.SLOW` times slower than its best at the same commit."""
        members = {
            one.name: one.time for one in self.timed() if rivals.family(one.name) == family and one.time is not None
        }
        return tuple(
            name
            for name, time in members.items()
            if time.value > rivals.SLOW * min(one.value for one in members.values() if one.mark == time.mark)
        )


def fastest(rows: Sequence[Contender]) -> Contender | None:
    """The row with the smallest time; None without any."""
    timed = [(row.time.value, row) for row in rows if row.time is not None]
    return min(timed, key=lambda one: one[0])[1] if timed else None


def cases(history: History) -> dict[str, list[CaseRows]]:
    """Cases per operation, in the order in which they were recorded."""
    gathered: dict[Subject, dict[str, dict[str, Series]]] = defaultdict(lambda: defaultdict(dict))
    params: dict[Subject, Mapping[str, Scalar]] = {}
    for series in history.series:
        subject = series.key.subject
        # The N of a rival is its own; it stands beside the case, not in its identity here.
        case = replace(subject, implementation="", fft_size=())
        gathered[case][subject.implementation][series.key.metric] = series
        params[case] = series.params
    found: dict[str, list[CaseRows]] = defaultdict(list)
    for case, members in gathered.items():
        rows: dict[str, Contender] = {}
        for name, metrics in members.items():
            one = next(iter(metrics.values()))
            rows[name] = Contender(one.key.subject, one.role, metrics)
        sizes = [row.subject.fft_size for row in rows.values() if row.role != "rival"] or [
            row.subject.fft_size for row in rows.values()
        ]
        found[case.operation].append(CaseRows(replace(case, fft_size=sizes[0]), params[case], rows))
    return found


def times(value: float) -> str:
    """`0.62x`, `7.8x`, `18x`."""
    return f"{value:.2f}x" if value < 1 else f"{value:.1f}x" if value < 9.95 else f"{value:.0f}x"


def title(facts: Mapping[str, Scalar], operation: str, leave_out: frozenset[str] = frozenset()) -> str:
    """`conv2d 8x64->64 32x32 K7 c.5`."""
    return f"{names.operation(operation)} {names.short(facts, leave_out)}".strip()
