"""Gather outcomes of both origins into series, and settle what became of every subject at its newest commit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from sys import intern
from typing import Any

from spectralbench import asv_files
from spectralbench.history.ancestry import Order, Place, order
from spectralbench.history.series import Absence, History, Key, Point, Series, Subject
from spectralbench.history.summary import Part, Summary, Told, level, median
from spectralbench.identity import Conditions, Facts, Identity
from spectralbench.journal import file_stem
from spectralbench.metrics import moving
from spectralbench.record import Damage, Scalar


@dataclass(frozen=True, slots=True)
class _Code:
    """The code that was measured. source: the file's name where no commit says who shares it."""

    commit: str | None
    dirty: str | None
    source: str


@dataclass(slots=True)
class _Pool:
    """What one point is made of, while it is gathered: where, and the parts of it, with the prefix of their labels."""

    code: _Code
    environment: Facts
    parts: list[tuple[str, Part]] = field(default_factory=list)

    def point(self, wrong: bool) -> Point:
        prefix, (when, value, q25, q75, count, processes, remarks) = self.parts[0]
        # The labels of a file's processes are those of all its points: one object each.
        labelled = [(intern(f"{prefix}{at}"), median) for at, median in processes]
        if len(self.parts) > 1:
            labelled = [(intern(f"{prefix}{at}"), median) for prefix, part in self.parts for at, median in part[5]]
            value, q25, q75 = level([median for _, median in labelled])
            when = min(part[0] for _, part in self.parts)
            count = sum(part[4] for _, part in self.parts)
            remarks = {kind: words for _, part in self.parts for kind, words in part[6].items()}
        commit, dirty = self.code.commit, self.code.dirty
        return Point(commit, dirty, when, value, tuple(labelled), q25, q75, count, self.environment, wrong,
                     tuple(remarks.items()))  # fmt: skip


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
    pools: dict[tuple[str, int | str, str], dict[int, _Pool]] = field(default_factory=dict)
    outcomes: dict[str | None, list[_Outcome]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _File:
    """What all records of a file share. when: the latest of them. whole: its runs were not narrowed to some
    implementations; files from before that was stored do not say so."""

    machine: str
    code: _Code
    where: Conditions
    whole: bool
    when: str
    environment: Mapping[str, Any]
    damage: Sequence[Damage]


def _run_of(stem: str, environment: Mapping[str, Any]) -> str:
    """What the files of one run share: one that grows large goes on in the next, with the same beginning."""
    base, started = file_stem(environment, stem[: len("2026-11-28")]), environment.get("started_at")
    return f"{base} {started}" if started and stem.startswith(base) else stem


class Builder:
    """Takes files and results one by one; `history` orders and settles them."""

    def __init__(self) -> None:
        self.damage: list[Damage] = []
        self._subjects: dict[Subject, _Gathered] = {}
        self._files: list[_File] = []
        self._homeless: list[Damage] = []
        self._asked: dict[tuple[Identity, str], dict[_Code, str]] = defaultdict(dict)
        self._places: dict[tuple[_Code, Facts], tuple[_Code, Facts]] = {}

    def add_file(self, file: Summary) -> None:
        """All records of one file."""
        self.damage.extend(file.damage)
        environment = file.environment
        if environment is None:
            if file.records:
                self.damage.append(Damage(file.path, 1, f"{file.records} records without environment not used"))
            self._homeless.extend(file.damage)
            return
        stem, commit, dirty = file.path.stem, environment.get("commit"), environment.get("dirty")
        shared = _File(
            str(environment["machine"]),
            _Code(commit or None, dirty or None, "" if commit else stem),
            Conditions.of(environment),
            environment.get("only", "unknown") is None,
            file.when,
            environment,
            file.damage,
        )
        self._files.append(shared)
        segments: dict[str, tuple[_Code, Facts]] = {}
        for told in file.subjects:
            self._add(told, shared, f"{_run_of(stem, environment)}#", segments)

    def _add(self, told: Told, file: _File, prefix: str, segments: dict[str, tuple[_Code, Facts]]) -> None:
        operation, version, implementation, case, dtype, pass_, size, cache, launch, seed = told.identity
        subject = Subject(operation, version, implementation, case, dtype, pass_, tuple(size), cache, launch, seed,
                          file.machine, "records")  # fmt: skip
        gathered = self._subjects.get(subject)
        if gathered is None:
            gathered = self._subjects[subject] = _Gathered(told.role, told.params, told.cost)
        outcomes = gathered.outcomes.setdefault(None, [])
        for replicate, profile, when, *absent in told.outcomes:
            outcome = _Outcome(file.code, file.where, (replicate, profile), when)
            if absent:
                role, status, failure, reason = absent
                outcome.absence = Absence(subject, None, role, status, failure, reason, when, file.code.commit, profile)
            outcomes.append(outcome)
            if file.whole:
                self._asked[subject.question, profile].setdefault(file.code, when)
        for metric, metric_version, unit, part in told.parts:
            where = segments.get(metric)
            if where is None:
                where = segments[metric] = self._where(file.code, moving(metric, file.where))
            pools = gathered.pools.setdefault((metric, metric_version, unit), {})
            pool = pools.get(id(where))
            if pool is None:
                pool = pools[id(where)] = _Pool(*where)
            pool.parts.append((prefix, part))

    def _where(self, code: _Code, environment: Facts) -> tuple[_Code, Facts]:
        """One object for equal places, so that a million look-ups need not compare all that a place consists of."""
        return self._places.setdefault((code, environment), (code, environment))

    def add_asv(self, result: asv_files.AsvResult) -> None:
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
        where = self._where(code, result.environment)
        value, q25, q75 = level([median(result.samples or [result.value])], result.samples or [result.value])
        if not result.samples and result.quartiles is not None:
            q25, q75 = result.quartiles
        part: Part = result.date, value, q25, q75, len(result.samples) or result.count, [("", value)], {}
        pools.setdefault(id(where), _Pool(*where)).parts.append((result.file, part))

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
