"""Gather outcomes of both origins into series, and settle what became of every subject at its newest commit."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from spectralbench import asv_files
from spectralbench.fields import is_moment
from spectralbench.history.ancestry import Order, Place, order
from spectralbench.history.series import Absence, History, Key, Point, Series, Subject
from spectralbench.identity import Conditions, Facts, Identity
from spectralbench.metrics import moving
from spectralbench.outcome import Measurement
from spectralbench.record import Damage, Record, RecordFile, Scalar

REMARKS = ("launch_bound", "launch_gaps", "precision")
"""What measuring says of a time that it gave all the same, stored beside what it could not give."""


@dataclass(frozen=True, slots=True)
class _Code:
    """The code that was measured. source: the file's name where no commit says who shares it."""

    commit: str | None
    dirty: str | None
    source: str


@dataclass(slots=True)
class _Pool:
    """What one point is made of, while it is gathered. quartiles, unseen: of samples that asv did not keep."""

    code: _Code
    environment: Facts
    recorded_at: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    quartiles: tuple[float, float] | None = None
    unseen: int = 0
    remarks: dict[str, str] = field(default_factory=dict)

    def point(self, wrong: bool) -> Point:
        processes = tuple([(label, _median(found)) for label, found in self.samples.items()])
        values = [value for _, value in processes]
        spread = values if len(values) > 1 else next(iter(self.samples.values()))
        lower, upper = Measurement("", 0, "", tuple(spread)).quartiles
        if self.quartiles is not None and len(values) == 1:
            lower, upper = self.quartiles
        count = sum(map(len, self.samples.values())) + self.unseen
        value = _median(values)
        commit, dirty = self.code.commit, self.code.dirty
        return Point(commit, dirty, self.recorded_at, value, processes, lower, upper, count, self.environment, wrong,
                     tuple(self.remarks.items()))  # fmt: skip


def _median(values: list[float]) -> float:
    return values[0] if len(values) == 1 else statistics.median(values)


@dataclass(slots=True)
class _Outcome:
    """What one process got of a subject. where: the conditions. process: its number and its profile."""

    code: _Code
    where: Conditions
    process: tuple[int, str]
    when: str
    absence: Absence | None = None


@dataclass(slots=True)
class _Gathered:
    """One subject: its series while they are gathered, and its outcomes in the order in which they were read."""

    role: str
    params: Mapping[str, Scalar]
    cost: Mapping[str, int] | None = None
    pools: dict[tuple[str, int | str, str], dict[tuple[_Code, Facts], _Pool]] = field(default_factory=dict)
    outcomes: dict[str | None, list[_Outcome]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _File:
    """What all records of a file share. when: the latest of them. whole: its runs were not narrowed to some
    implementations; files from before that was stored do not say so."""

    stem: str
    machine: str
    code: _Code
    where: Conditions
    whole: bool
    when: str
    environment: Mapping[str, Any]
    damage: Sequence[Damage]


class Builder:
    """Takes files and results one by one; `history` orders and settles them."""

    def __init__(self) -> None:
        self.damage: list[Damage] = []
        self._subjects: dict[Subject, _Gathered] = {}
        self._files: list[_File] = []
        self._homeless: list[Damage] = []
        self._asked: dict[tuple[Identity, str], dict[_Code, str]] = defaultdict(dict)

    def add_file(self, file: RecordFile) -> None:
        """All records of one file."""
        self.damage.extend(file.damage)
        environment = file.environment
        if environment is None:
            if file.records:
                self.damage.append(Damage(file.path, 1, f"{len(file.records)} records without environment not used"))
            self._homeless.extend(file.damage)
            return
        stem, commit, dirty = file.path.stem, environment.get("commit"), environment.get("dirty")
        started = environment.get("started_at")
        moments = [record.recorded_at for record in file.records] or [str(started)] * is_moment(started)
        shared = _File(
            stem,
            str(environment["machine"]),
            _Code(commit or None, dirty or None, "" if commit else stem),
            Conditions.of(environment),
            environment.get("only", "unknown") is None,
            max(map(_utc, moments), default=""),
            environment,
            file.damage,
        )
        self._files.append(shared)
        for record in file.records:
            self._add_record(record, shared, _utc(record.recorded_at))

    def _add_record(self, record: Record, file: _File, when: str) -> None:
        subject = Subject(
            record.operation, record.operation_version, record.implementation, record.case_id, record.dtype,
            record.pass_, record.fft_size, record.cache, record.launch, record.seed, file.machine, "records",
        )  # fmt: skip
        gathered = self._subjects.get(subject)
        if gathered is None:
            gathered = self._subjects[subject] = _Gathered(record.role, record.case, record.cost)
        outcome = _Outcome(file.code, file.where, (record.replicate, record.profile), when)
        if record.status != "measured":
            outcome.absence = Absence(
                subject, None, record.role, record.status, record.failure, record.reason or "no reason given", when,
                file.code.commit, record.profile,
            )  # fmt: skip
        gathered.outcomes.setdefault(None, []).append(outcome)
        if file.whole:
            self._asked[subject.question, record.profile].setdefault(file.code, when)
        label = f"{file.stem}#{record.replicate}"
        for found in record.measurements:
            segment = moving(found.metric, file.where)
            pools = gathered.pools.setdefault((found.metric, found.version, found.unit), {})
            pool = pools.get((file.code, segment))
            if pool is None:
                pool = pools[file.code, segment] = _Pool(file.code, segment, when)
            pool.recorded_at = min(pool.recorded_at, when)
            pool.samples.setdefault(label, []).extend(found.samples)
            if found.metric == "device_time" and record.unavailable:
                pool.remarks.update((kind, record.unavailable[kind]) for kind in REMARKS if kind in record.unavailable)

    def add_asv(self, result: asv_files.Result) -> None:
        """One of asv's results."""
        case = ",".join([f"{name}={value}" for name, value in result.params.items()])
        subject = Subject(
            result.benchmark, result.version, result.implementation, case, "", "", (), "", "", 0, result.machine, "asv"
        )
        gathered = self._subjects.setdefault(subject, _Gathered("", result.params))
        code = _Code(result.commit, None, "")
        outcome = _Outcome(code, Conditions(), (0, result.file), result.date)
        if result.value is None:
            status, failure = ("skipped", None) if result.skipped else ("failed", "error")
            reason = f"asv: {result.metric} " + ("not applicable here" if result.skipped else "failed or timed out")
            outcome.absence = Absence(
                subject, result.metric, "", status, failure, reason, result.date, result.commit, "asv"
            )
        gathered.outcomes.setdefault(result.metric, []).append(outcome)
        if result.value is None:
            return
        pools = gathered.pools.setdefault((result.metric, result.version, result.unit), {})
        pool = pools.setdefault((code, result.environment), _Pool(code, result.environment, result.date))
        pool.samples[result.file] = list(result.samples) or [result.value]
        if not result.samples:
            pool.quartiles = result.quartiles
            pool.unseen += result.count - 1

    def history(self, roots: Sequence[Path]) -> History:
        """Everything in the order of git's commits; `roots` lie in repositories that may know them."""
        outcomes = [found for gathered in self._subjects.values() for found in gathered.outcomes.values()]
        known = order(roots, {one.code.commit for found in outcomes for one in found if one.code.commit is not None})
        series = [one for subject, gathered in self._subjects.items() for one in _series(subject, gathered, known)]
        settled = [_settled(found, known) for found in outcomes]
        absences = [one for one in settled if one is not None and not self._delisted(one, known)]
        absences += self._vanished(known)
        newest: dict[str, _File] = {}
        for file in sorted(self._files, key=lambda file: known.place(file.code.commit, file.when) or _NOWHERE):
            newest[file.machine] = file
        doubtful = [
            one
            for file in self._files
            if file.code == newest[file.machine].code or not file.when
            for one in file.damage
        ]
        return History(
            tuple(series),
            tuple(self.damage),
            tuple(absences),
            {machine: file.environment for machine, file in newest.items()},
            (*self._homeless, *doubtful),
            known,
        )

    def _delisted(self, absence: Absence, known: Order) -> bool:
        """Whether who never gave a number here is not asked any more: its operation does not list it now."""
        gathered = self._subjects[absence.subject]
        asked = self._asked.get((absence.subject.question, absence.profile), {})
        places = {place: code for code, when in asked.items() if (place := known.place(code.commit, when))}
        if absence.status != "skipped" or gathered.pools or not places:
            return False
        newest = places[max(places)]
        return all(one.code != newest for one in gathered.outcomes[absence.metric])

    def _vanished(self, known: Order) -> Iterator[Absence]:
        """Subjects without an outcome at the newest commit that asked everybody, which had a number the time before."""
        by_question: dict[tuple[Identity, str], list[Subject]] = defaultdict(list)
        for subject, gathered in self._subjects.items():
            for profile in {one.process[1] for one in gathered.outcomes.get(None, ())}:
                by_question[subject.question, profile].append(subject)
        for (question, profile), asked in self._asked.items():
            places = {place: code for code, when in asked.items() if (place := known.place(code.commit, when))}
            if len(places) < 2:
                continue
            before, newest = (places[place] for place in sorted(places)[-2:])
            for subject in by_question[question, profile]:
                outcomes = self._subjects[subject].outcomes[None]
                measured = any(one.code == before and one.absence is None for one in outcomes)
                if measured and not any(one.code == newest for one in outcomes):
                    why = f"measured at {_short(before)}, gone at {_short(newest)} where others of its case were asked"
                    yield Absence(
                        subject, None, self._subjects[subject].role, "vanished", None, why, asked[newest],
                        newest.commit, profile, lost=True,
                    )  # fmt: skip


_NOWHERE: Place = (-1, 0, "")


def _series(subject: Subject, gathered: _Gathered, known: Order) -> Iterator[Series]:
    """The series of a subject, each in the order of its commits."""
    wrong = [
        (one.code, one.where)
        for one in gathered.outcomes.get(None, ())
        if one.absence is not None and one.absence.failure == "wrong"
    ]
    for (metric, version, unit), pools in gathered.pools.items():
        placed: list[tuple[Place, Point]] = []
        aside: list[Point] = []
        for pool in pools.values():
            point = pool.point(
                any(code == pool.code and moving(metric, where) == pool.environment for code, where in wrong)
            )
            place = known.place(point.commit, point.recorded_at)
            if place is None:
                aside.append(point)
            else:
                placed.append((place, point))
        placed.sort(key=lambda one: one[0])
        aside.sort(key=lambda point: point.recorded_at)
        points = tuple(point for _, point in placed)
        key = Key(subject, metric, version, unit)
        yield Series(
            key,
            points or tuple(aside),
            gathered.role,
            gathered.params,
            tuple(aside) if points else (),
            bool(points),
            gathered.cost,
        )


def _settled(outcomes: Sequence[_Outcome], known: Order) -> Absence | None:
    """What stands at the newest commit of a subject where it gave no number, or failed in any process.

    A process that is run again clears its failure, but not a wrong answer: that was given at this commit, and may be
    given again.
    """
    if all(one.absence is None for one in outcomes):
        return None
    placed = [one for one in outcomes if known.place(one.code.commit, one.when)]
    ordered = sorted(placed or outcomes, key=lambda one: known.place(one.code.commit, one.when) or (0, 0, one.when))
    codes = list(dict.fromkeys(one.code for one in reversed(ordered)))
    here = [one for one in ordered if one.code == codes[0]]
    failed = [one.absence for one in here if one.absence and one.absence.status == "failed" and not _cleared(one, here)]
    if failed:
        return max(failed, key=lambda one: (one.failure == "wrong", one.recorded_at))
    absence = here[-1].absence
    if absence is None or any(one.absence is None for one in here):
        return None
    lost = any(one.absence is None for one in ordered if one.code in codes[1:2])
    return replace(absence, lost=lost)


def _cleared(failed: _Outcome, here: Sequence[_Outcome]) -> bool:
    return (
        failed.absence is not None
        and failed.absence.failure != "wrong"
        and any(
            one.absence is None
            and one.when > failed.when
            and (one.where, one.process) == (failed.where, failed.process)
            for one in here
        )
    )


def _short(code: _Code) -> str:
    return (code.commit[:8] if code.commit else "no commit") + ("-dirty" if code.dirty else "")


@lru_cache(maxsize=4096)
def _utc(text: str) -> str:
    """An ISO time in UTC with a fixed width, so that the order of strings is the order of times."""
    when = datetime.fromisoformat(text)
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    return when.isoformat(timespec="microseconds")
