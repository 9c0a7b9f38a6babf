"""All stored results as series of points over commits: our records, and asv's files (no torch).

A point is one commit in one environment. Its value is the median over processes of each process's median, because the
unit of replication is the process: samples within one process agree far better than two processes do.
Points are ordered by the first time that their commit was measured (asv: by the date of the commit).
Whatever cannot be used is named in `History.damage`; nothing is dropped silently.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from scipy import stats

from spectralbench import asv_files
from spectralbench.identity import Conditions, Facts, Identity, moving
from spectralbench.outcome import Measurement
from spectralbench.record import Damage, Record, RecordFile, Scalar, read_tree

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
    they bound a segment.
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

    @property
    def clean(self) -> bool:
        """Whether it may serve as a baseline: a known commit and no uncommitted change."""
        return self.commit is not None and self.dirty is None

    @property
    def mark(self) -> str:
        """The commit for people: `1a2b3c4d`, `1a2b3c4d-dirty`, `no commit`."""
        commit = "no commit" if self.commit is None else self.commit[:8]
        return commit if self.dirty is None else f"{commit}-dirty"


@dataclass(frozen=True, slots=True)
class Series:
    """The points of one key, oldest first; `params` are the case's parameters."""

    key: Key
    points: tuple[Point, ...]
    role: str
    params: Mapping[str, Scalar] = field(hash=False)

    @property
    def newest(self) -> Point:
        return self.points[-1]

    def segment(self, point: Point) -> tuple[Point, ...]:
        """The points of the same environment as `point` (which is one of them), oldest first."""
        return tuple(other for other in self.points if other.environment == point.environment)


@dataclass(frozen=True, slots=True)
class Absence:
    """An outcome without a number: skipped on purpose, or failed. `metric` is None if it holds for all of them."""

    subject: Subject
    metric: str | None
    role: str
    status: str
    failure: str | None
    reason: str
    recorded_at: str
    commit: str | None
    profile: str


@dataclass(frozen=True, slots=True)
class History:
    """Everything that `results/` holds.

    absences: the newest one of every subject that has not been measured since.
    environments: the newest environment of every machine that has records.
    """

    series: tuple[Series, ...]
    damage: tuple[Damage, ...] = ()
    absences: tuple[Absence, ...] = ()
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

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


def load(results: Path) -> History:
    """Read `results/records` and `results/asv`; either may be missing.

    Raises: FileNotFoundError if `results` is not a folder.
    """
    if not results.is_dir():
        raise FileNotFoundError(f"expected a folder of results, got {results}; run `spectralbench run` first")
    builder = _Builder()
    for file in read_tree(results / "records"):
        builder.add_file(file)
    read, damage = asv_files.read_tree(results / "asv")
    builder.damage.extend(damage)
    for result in read:
        builder.add_asv(result)
    return builder.history()


def ratio(new: Point, old: Point, *, level: float = 0.05) -> Ratio | None:
    """`new` over `old`: the median over the processes that both have, else the ratio of the medians.

    With three or more shared processes the interval is Student's on the logarithms of their ratios, which misses the
    truth with probability `level`; with fewer it is the quotient of opposite quartiles, and nothing is judged by it.
    None if a value is zero or less.
    """
    if min(old.q25, new.q25, *(value for _, value in (*old.processes, *new.processes))) <= 0:
        return None
    before = dict(old.processes)
    shared = [value / before[label] for label, value in new.processes if label in before]
    if len(shared) >= LEAST_SHARED:
        logs = [math.log(one) for one in shared]
        half = float(stats.t.isf(level / 2, len(logs) - 1)) * statistics.stdev(logs) / len(logs) ** 0.5
        middle = statistics.fmean(logs)
        low, high = math.exp(middle - half), math.exp(min(middle + half, 700.0))
        return Ratio(statistics.median(shared), low, high, paired=True, judged=True)
    value = statistics.median(shared) if shared else new.value / old.value
    return Ratio(value, min(value, new.q25 / old.q75), max(value, new.q75 / old.q25), paired=bool(shared))


@dataclass(slots=True)
class _Pool:
    """What one point is made of, while it is gathered. quartiles, unseen: of samples that asv did not keep."""

    commit: str | None
    dirty: str | None
    environment: Facts
    recorded_at: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    quartiles: tuple[float, float] | None = None
    unseen: int = 0

    def point(self) -> Point:
        processes = tuple((label, statistics.median(found)) for label, found in self.samples.items())
        values = [value for _, value in processes]
        spread = values if len(values) > 1 else next(iter(self.samples.values()))
        lower, upper = Measurement("", 0, "", tuple(spread)).quartiles
        if self.quartiles is not None and len(values) == 1:
            lower, upper = self.quartiles
        count = sum(len(found) for found in self.samples.values()) + self.unseen
        value = statistics.median(values)
        return Point(self.commit, self.dirty, self.recorded_at, value, processes, lower, upper, count, self.environment)


class _Builder:
    """Gathers outcomes of both origins into series."""

    def __init__(self) -> None:
        self.damage: list[Damage] = []
        self._pools: dict[Key, dict[tuple[Any, ...], _Pool]] = {}
        self._facts: dict[Subject, tuple[str, Mapping[str, Scalar]]] = {}
        self._absences: list[Absence] = []
        self._measured: dict[tuple[Subject, str | None], str] = {}
        self._environments: dict[str, tuple[str, Mapping[str, Any]]] = {}

    def add_file(self, file: RecordFile) -> None:
        self.damage.extend(file.damage)
        environment = file.environment
        if environment is None:
            if file.records:
                self.damage.append(Damage(file.path, 1, f"{len(file.records)} records without environment not used"))
            return
        machine = str(environment.get("machine") or file.path.parent.name)
        for record in file.records:
            try:
                when = _utc(record.recorded_at)
                self._add_record(record, file.path, machine, environment, when)
            except (ValueError, TypeError) as error:
                what = f"{record.operation} {record.implementation} {record.case_id}"
                self.damage.append(Damage(file.path, 0, f"record of {what} not used: {error}"))

    def _add_record(self, record: Record, path: Path, machine: str, environment: Mapping[str, Any], when: str) -> None:
        subject = Subject(
            record.operation, record.operation_version, record.implementation, record.case_id, record.dtype,
            record.pass_, record.fft_size, record.cache, record.launch, record.seed, machine, "records",
        )  # fmt: skip
        self._facts[subject] = (record.role, record.case)
        if record.status == "measured":
            self._seen(subject, None, when)
        commit, dirty = environment.get("commit") or None, environment.get("dirty") or None
        if machine not in self._environments or when >= self._environments[machine][0]:
            self._environments[machine] = (when, environment)
        if record.status != "measured":
            self._absences.append(
                Absence(
                    subject, None, record.role, record.status, record.failure, record.reason or "no reason given", when,
                    commit, record.profile,
                )
            )  # fmt: skip
        conditions = Conditions.of(environment)
        for found in record.measurements:
            key = Key(subject, found.metric, found.version, found.unit)
            pools = self._pools.setdefault(key, {})
            segment = moving(found.metric, conditions)
            # Without a commit two files cannot be known to hold the same code, so they stay two points.
            code = (commit or path.name, dirty, segment)
            pool = pools.setdefault(code, _Pool(commit, str(dirty) if dirty else None, segment, when))
            pool.recorded_at = min(pool.recorded_at, when)
            pool.samples.setdefault(f"{path.stem}#{record.replicate}", []).extend(found.samples)

    def add_asv(self, result: asv_files.Result) -> None:
        case = ",".join([f"{name}={value}" for name, value in result.params.items()])
        subject = Subject(
            result.benchmark, result.version, result.implementation, case, "", "", (), "", "", 0, result.machine, "asv"
        )
        self._facts[subject] = ("", result.params)
        if result.value is None:
            status, failure = ("skipped", None) if result.skipped else ("failed", "error")
            reason = f"asv: {result.metric} " + ("not applicable here" if result.skipped else "failed or timed out")
            self._absences.append(
                Absence(subject, result.metric, "", status, failure, reason, result.date, result.commit, "asv")
            )
            return
        self._seen(subject, result.metric, result.date)
        key = Key(subject, result.metric, result.version, result.unit)
        pools = self._pools.setdefault(key, {})
        code = (result.commit, None, result.environment)
        pool = pools.setdefault(code, _Pool(result.commit, None, result.environment, result.date))
        pool.samples[result.file] = list(result.samples) or [result.value]
        if not result.samples:
            pool.quartiles = result.quartiles
            pool.unseen += result.count - 1

    def history(self) -> History:
        series = []
        for key, pools in self._pools.items():
            role, params = self._facts[key.subject]
            points = sorted((pool.point() for pool in pools.values()), key=lambda point: point.recorded_at)
            series.append(Series(key, tuple(points), role, params))
        environments = {machine: environment for machine, (_, environment) in self._environments.items()}
        absences: dict[tuple[Subject, str | None], Absence] = {}
        for absence in sorted(self._absences, key=lambda absence: absence.recorded_at):
            if absence.recorded_at > self._measured.get((absence.subject, absence.metric), ""):
                absences[absence.subject, absence.metric] = absence
        return History(tuple(series), tuple(self.damage), tuple(absences.values()), environments)

    def _seen(self, subject: Subject, metric: str | None, when: str) -> None:
        self._measured[subject, metric] = max(when, self._measured.get((subject, metric), when))


def only_machine(history: History, machine: str | None) -> History:
    """The part of one machine (None: all of it). ValueError names the known machines if there is no such one."""
    if machine is None:
        return history
    if machine not in history.machines:
        known = ", ".join(history.machines) or "none yet"
        raise ValueError(f"no results of machine {machine!r}; known: {known}")
    return replace(
        history,
        series=tuple(series for series in history.series if series.key.subject.machine == machine),
        absences=tuple(absence for absence in history.absences if absence.subject.machine == machine),
        environments={name: found for name, found in history.environments.items() if name == machine},
    )


def current(history: History) -> History:
    """Our records without those of a superseded version of their operation or metric; asv's series are left out."""
    series = [one for one in history.series if one.key.subject.via == "records"]
    operations: dict[tuple[str, str], Any] = {}
    metrics: dict[tuple[str, str], Any] = {}
    for one in series:
        machine, operation = one.key.subject.machine, one.key.subject.operation
        version, metric_version = one.key.subject.operation_version, one.key.metric_version
        operations[machine, operation] = max(version, operations.get((machine, operation), version))
        key = (machine, one.key.metric)
        metrics[key] = max(metric_version, metrics.get(key, metric_version))

    def is_current(subject: Subject) -> bool:
        version = subject.operation_version
        return subject.via == "records" and operations.get((subject.machine, subject.operation), version) == version

    return replace(
        history,
        series=tuple(
            one
            for one in series
            if is_current(one.key.subject)
            and metrics[one.key.subject.machine, one.key.metric] == one.key.metric_version
        ),
        absences=tuple(absence for absence in history.absences if is_current(absence.subject)),
    )


def _utc(text: str) -> str:
    """An ISO time in UTC with a fixed width, so that the order of strings is the order of times."""
    when = datetime.fromisoformat(text)
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    return when.isoformat(timespec="microseconds")
