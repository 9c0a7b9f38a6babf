"""From a history to findings: tracks of points, evidence over the run, and the verdict of each series."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from spectralbench.alert.control import ENOUGH, LEAST_SHIFT, Controls, Place, freed, gather, place
from spectralbench.alert.evidence import CREDIBLE, weigh
from spectralbench.alert.finding import Finding, Verdict
from spectralbench.alert.rules import ERRORS, LESS_EXACT, RULES, Override, Rule, rule_of
from spectralbench.alert.tails import Array
from spectralbench.history import Absence, History, Key, Point, Series, Subject
from spectralbench.identity import changes
from spectralbench.quantity import amount

WINDOW = 60
ANCHOR = 5
EXACT_WINDOW = 20
MIN_EARLIER = 3
RATE = 0.005
"""Half of what is promised, so that the simulator can show it: 1 % of the runs of unchanged series."""
FEWEST_IN_A_MEAN = 5
MEAN_RULE = Rule(0.02)


@dataclass(frozen=True, slots=True)
class _Track:
    """One series in the environment of one newest point: the clean points before it, oldest first, and itself last.

    gap: how many of them are the anchor, where points between it and the window are left out; else 0.
    """

    key: Key
    points: tuple[Point, ...]
    rule: Rule
    gap: int = 0

    @property
    def over_the_gap(self) -> str:
        """What is said of a change that lies between the anchor and the window."""
        return (
            f"; it came anywhere between the anchor at {self.points[self.gap - 1].mark} and there" if self.gap else ""
        )


@dataclass(frozen=True, slots=True)
class _Judged:
    """Evidence of one track: log change, one-sided p values, index of the first point after it, visible log change.

    plain: log of the newest point over the median of all earlier ones, which a spike does not move.
    """

    track: _Track
    change: float
    plain: float
    slower: float
    faster: float
    split: int
    visible: float
    quiet: bool
    shift: float
    controls: int


def judge(
    history: History,
    *,
    rules: Mapping[str, Rule] = RULES,
    overrides: Sequence[Override] = (),
    since: Collection[str] | None = None,
    minimum: int = MIN_EARLIER,
    rate: float = RATE,
) -> list[Finding]:
    """One finding per series and environment that the newest commit of the series was measured in.

    A series that was measured before and that fails, is skipped or is gone at its newest commit gives NO DATA with
    `failed` set; one process that fails is enough.
    Dirty points are judged but never serve as a baseline. The geometric mean of every implementation's cases is judged
    beside them. Every machine is weighed by itself: how another one strays, or how many series it has, says nothing of
    this one, whose verdicts are the same whatever else is judged. A time is held against the newest WINDOW points and,
    however slowly it drifts, against an anchor: the ANCHOR points that stand first in its environment, or last before
    `since`, the commits after a release.
    rate: the false discovery rate over all of a machine (Benjamini and Hochberg), of slower and of faster.

    Raises: ValueError if `rate` is not in (0, 1) or `minimum` is less than 1.
    """
    if not 0 < rate < 1 or minimum < 1:
        raise ValueError(f"expected 0 < rate < 1 and minimum >= 1, got rate = {rate} and minimum = {minimum}")
    absences = {(absence.subject, absence.metric): absence for absence in history.absences}
    findings: list[Finding] = []
    tracks: dict[str, dict[str, list[_Track]]] = defaultdict(lambda: defaultdict(list))
    for series in history.series:
        absence = _absence(series.key, absences)
        if absence is not None:
            findings.append(_no_data(series, absence))
            continue
        if not series.placed:
            findings.append(_off_the_line(series))
            continue
        rule = rule_of(series.key, rules, overrides)
        for index, point in enumerate(series.points):
            if (point.commit, point.dirty) != (series.newest.commit, series.newest.dirty):
                continue
            clean = [other for other in series.points[:index] if other.clean]
            band, gap = _band([other for other in clean if other.environment == point.environment], since)
            needed = 1 if rule.exact else minimum
            if len(band) < needed:
                findings.append(_too_little(series.key, point, band, clean, needed))
            elif rule.exact:
                findings.append(_exact(series.key, point, band[-EXACT_WINDOW:], rule))
            elif series.key.unit in ("second", "joule") and not _positive((*band, point)):
                findings.append(_not_positive(series.key, point, band))
            else:
                tracks[series.key.subject.machine][series.key.metric].append(
                    _Track(series.key, (*band, point), rule, gap)
                )
    controls = gather(history.series, (metric for metric, rule in rules.items() if rule.host))
    for metrics in tracks.values():
        judged = [one for found in metrics.values() for one in _weigh(found, controls, minimum, rate)]
        findings += _verdicts(judged, rate)
    return _exactness(findings)


def _band(points: Sequence[Point], since: Collection[str] | None) -> tuple[list[Point], int]:
    """The anchor and the newest points, and how many are the anchor if there is a gap after it."""
    later = len(points) if since is None else sum(point.commit in since for point in points)
    kept = list(points[max(len(points) - later - ANCHOR, 0) :])
    if len(kept) <= WINDOW:
        return kept, 0
    return kept[:ANCHOR] + kept[ANCHOR - WINDOW :], ANCHOR


def _weigh(tracks: Sequence[_Track], controls: Mapping[Place, Controls], minimum: int, rate: float) -> list[_Judged]:
    """All tracks of one metric on one machine together, since they tell what noise is usual there."""
    values = _array(tracks)
    shifts, counted = _shifts(tracks, controls, values.shape)
    alarm = min(rate / len(tracks), CREDIBLE)
    practical = np.array([track.rule.practical for track in tracks])
    raw = weigh(values, minimum=minimum, alarm=alarm, practical=practical)
    fair, newest, moved = freed(values, shifts)
    found = raw if not np.isfinite(shifts).any() else weigh(fair, minimum=minimum, alarm=alarm, practical=practical)
    # One or two controls may have changed themselves: then the subject must have moved on its own as well.
    doubtful = moved.any(1) & (counted < ENOUGH)
    slower = np.where(doubtful, np.maximum(found.slower, raw.slower), found.slower)
    faster = np.where(doubtful, np.maximum(found.faster, raw.faster), found.faster)
    plain = _plain(fair)
    judged = [
        _Judged(track, float(found.change[i]), plain[i], float(slower[i]), float(faster[i]), int(found.split[i]),
                float(found.visible[i]), bool(found.quiet[i]),
                float(newest[i]) if moved[i, -1] and abs(newest[i]) > LEAST_SHIFT else 0.0, int(counted[i]))
        for i, track in enumerate(tracks)
    ]  # fmt: skip
    judged = [replace(one, split=one.split - (values.shape[1] - len(one.track.points))) for one in judged]
    timed = [index for index, track in enumerate(tracks) if track.rule.host]
    means, rows = _means([tracks[index] for index in timed], fair[timed])
    if means:
        plain = _plain(rows)
        found = weigh(rows, minimum=minimum, alarm=alarm, practical=MEAN_RULE.practical)
        judged += [
            _Judged(track, float(found.change[i]), plain[i], float(found.slower[i]), float(found.faster[i]),
                    int(found.split[i]) - (rows.shape[1] - len(track.points)), float(found.visible[i]),
                    bool(found.quiet[i]), 0.0, 0)
            for i, track in enumerate(means)
        ]  # fmt: skip
    return judged


def _plain(values: Array) -> list[float]:
    """The newest level over the median of the earlier ones, as logarithms, of every track."""
    known = np.isfinite(values)
    levels = np.where(known.any(2), np.where(known, values, 0.0).sum(2) / np.maximum(known.sum(2), 1), np.nan)
    return [float(row[-1] - np.nanmedian(row[:-1])) for row in levels]


def _array(tracks: Sequence[_Track]) -> Array:
    """Logarithms [track, point, process], the newest point last, NaN before the oldest and after the last process."""
    length = max(len(track.points) for track in tracks)
    width = max(len(point.processes) for track in tracks for point in track.points)
    values = np.full((len(tracks), length, width), np.nan)
    for row, track in zip(values, tracks, strict=True):
        # An error of zero is no better than the smallest one seen.
        least = min((v for p in track.points for _, v in p.processes if v > 0), default=1.0)
        for cell, point in zip(row[length - len(track.points) :], track.points, strict=True):
            cell[: len(point.processes)] = [math.log(max(value, least)) for _, value in point.processes]
    return values


def _shifts(
    tracks: Sequence[_Track], controls: Mapping[Place, Controls], shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """The shift of every process of every track, NaN where nobody tells, and the number of controls of the newest."""
    shifts, counted = np.full(shape, np.nan), np.zeros(len(tracks), dtype=int)
    for index, track in enumerate(tracks):
        known = controls.get(place(track.key, track.points[-1].environment)) if track.rule.host else None
        if known is None:
            continue
        shift = known.shifts(track.key.subject)
        for row, point in zip(shifts[index, shape[1] - len(track.points) :], track.points, strict=True):
            for process, (label, _) in enumerate(point.processes):
                row[process], counted[index] = shift(label)
    return shifts, counted


def _means(tracks: Sequence[_Track], values: Array) -> tuple[list[_Track], Array]:
    """The geometric mean over the cases of every implementation, as tracks with one process a point.

    Only cases that were measured at the newest commit, and only points at which all of them were.
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, track in enumerate(tracks):
        subject, newest = track.key.subject, track.points[-1]
        kind = (subject.via, subject.machine, subject.operation, subject.operation_version, subject.implementation)
        groups[(*kind, subject.pass_, newest.environment, newest.commit, newest.dirty)].append(index)
    found: list[_Track] = []
    rows: list[list[float]] = []
    known = np.isfinite(values)
    levels = np.where(known, values, 0.0).sum(2) / np.maximum(known.sum(2), 1)
    for members in groups.values():
        cases = len(members)
        if cases < FEWEST_IN_A_MEAN:
            continue
        at: dict[str | None, list[float]] = defaultdict(list)
        for index in members:
            points = tracks[index].points
            own = levels[index, -len(points) :]
            usual = float(np.median(own[:-1]))
            for point, level in zip(points, own, strict=True):
                at[point.commit].append(float(level) - usual)
        first = tracks[members[0]]
        shared = [point for point in first.points[:-1] if len(at[point.commit]) == cases] + [first.points[-1]]
        if len(shared) <= MIN_EARLIER or len(at[first.points[-1].commit]) != cases:
            continue
        subject = replace(first.key.subject, case=f"geometric mean of {cases} cases", dtype="", fft_size=(), seed=0)
        row = [statistics.fmean(at[point.commit]) for point in shared]
        points = tuple(
            replace(point, value=math.exp(value), processes=(("mean", math.exp(value)),))
            for point, value in zip(shared, row, strict=True)
        )
        rule = replace(MEAN_RULE, practical=min(MEAN_RULE.practical, first.rule.practical))
        found.append(_Track(replace(first.key, subject=subject), points, rule))
        rows.append(row)
    length = max(map(len, rows), default=0)
    array = np.full((len(rows), length, 1), np.nan)
    for target, row in zip(array, rows, strict=True):
        target[length - len(row) :, 0] = row
    return found, array


def _verdicts(judged: Sequence[_Judged], rate: float) -> list[Finding]:
    if not judged:
        return []
    slower = stats.false_discovery_control([one.slower for one in judged])
    faster = stats.false_discovery_control([one.faster for one in judged])
    return [
        _verdict(
            one,
            bool(adjusted_slower <= rate and one.slower <= CREDIBLE),
            bool(adjusted_faster <= rate and one.faster <= CREDIBLE),
        )
        for one, adjusted_slower, adjusted_faster in zip(judged, slower, faster, strict=True)
    ]


def _verdict(one: _Judged, slower: bool, faster: bool) -> Finding:
    track, rule = one.track, one.track.rule
    split = one.split if slower or faster else len(track.points) - 1
    before, after = track.points[:split], track.points[split:]
    ratio = math.exp(one.change if slower or faster else one.plain)
    resolution = max(rule.practical, math.expm1(one.visible)) if one.visible < 7 else math.inf
    percent = f"{100 * (ratio - 1):+.3g} %"
    count = len(before)
    host = f"; the sitting moved its {one.controls} controls by {100 * math.expm1(one.shift):+.3g} %" * bool(one.shift)
    if abs(ratio - 1) <= rule.practical:
        verdict, why = Verdict.SAME, f"{percent} is within {100 * rule.practical:g} %"
    elif not slower and not faster:
        verdict, why = Verdict.CANNOT_TELL, f"{percent}, but the noise allows {100 * resolution:.3g} %"
    else:
        verdict = Verdict.SLOWER if slower else Verdict.FASTER
        basis = "no noise seen in the band" if one.quiet else f"p = {one.slower if slower else one.faster:.1g}"
        why = f"{percent} since {after[0].mark} ({basis}, {count} points before, {len(after)} after)"
        why += track.over_the_gap if split == track.gap else ""
    if verdict is not Verdict.SAME:
        why += "".join(f"; {kind}: {words}" for kind, words in track.points[-1].remarks)
    changed = after[0].mark if verdict in (Verdict.SLOWER, Verdict.FASTER) else None
    return Finding(
        track.key, verdict, why + host, statistics.median(point.value for point in before), track.points[-1].value,
        ratio, track.points[-1].mark, before[-1].mark, count, resolution if math.isfinite(resolution) else None,
        changed_at=changed, around=tuple(point.mark for point in (*before[-2:], *after[:2])),
        unexpected=rule.pinned and verdict is Verdict.FASTER, processes=len(track.points[-1].processes),
    )  # fmt: skip


def _exactness(findings: list[Finding]) -> list[Finding]:
    """Faster by being less exact is called that: where an error of the same subject is worse at the same commit."""
    grown = {
        (found.key.subject, found.commit): found
        for found in findings
        if found.key.metric in ERRORS and found.ratio is not None and found.new is not None
        and (found.verdict is Verdict.SLOWER or found.ratio > LESS_EXACT)
    }  # fmt: skip
    called = []
    for found in findings:
        error = grown.get((found.key.subject, found.commit))
        if error is not None and found.verdict is Verdict.FASTER and found.key.metric == "device_time":
            told = (
                f"{error.key.metric} is {error.ratio:.3g} times what it was: {amount(error.new or 0, error.key.unit)}"
            )
            found = replace(found, verdict=Verdict.LESS_EXACT, reason=f"{found.reason}; {told}")
        called.append(found)
    return called


def _exact(key: Key, point: Point, band: Sequence[Point], rule: Rule) -> Finding:
    """Bytes and fractions have no noise: one earlier point is enough, and what moves has changed."""
    old = statistics.median(other.value for other in band)
    change = point.value - old
    percent = f"{100 * change / old:+.3g} %" if old else f"{amount(old, key.unit)} before"
    if abs(change) <= rule.practical * abs(old):
        verdict, why = Verdict.SAME, f"{percent} is within {100 * rule.practical:g} %"
    elif rule.fact:
        verdict, why = Verdict.SLOWER, f"{percent} in a number that should not change at all"
    else:
        verdict = Verdict.SLOWER if change > 0 else Verdict.FASTER
        why = (
            f"{percent} is beyond the limit of {100 * rule.practical:.3g} % (exact metric, {len(band)} earlier points)"
        )
    ratio = point.value / old if old else None
    return Finding(
        key, verdict, why, old, point.value, ratio, point.mark, band[-1].mark, len(band), rule.practical,
        changed_at=None if verdict is Verdict.SAME else point.mark,
        unexpected=rule.pinned and verdict is Verdict.FASTER,
    )  # fmt: skip


def _too_little(key: Key, point: Point, band: Sequence[Point], clean: Sequence[Point], needed: int) -> Finding:
    """CANNOT TELL, with the change since the last clean point for information."""
    last = clean[-1] if clean else None
    why = f"{len(band)} earlier clean points in this environment, {needed} needed"
    if last is not None and last.environment != point.environment:
        why = f"environment changed ({changes(last.environment, point.environment)}): {why}"
    old = last.value if last else None
    ratio = point.value / old if old else None
    since = last.mark if last else None
    return Finding(key, Verdict.CANNOT_TELL, why, old, point.value, ratio, point.mark, since, len(band), too_few=True)


def _off_the_line(series: Series) -> Finding:
    """CANNOT TELL, because nobody knows which of its commits is the newest."""
    why = f"none of its {len(series.points)} points is on the first-parent line of HEAD"
    last = series.newest
    return Finding(series.key, Verdict.CANNOT_TELL, why, None, last.value, None, last.mark, None, 0, too_few=True)


def _not_positive(key: Key, point: Point, band: Sequence[Point]) -> Finding:
    why = f"a {key.metric} of zero or less is no measurement: damaged here or earlier"
    lost = not _positive((point,))
    last = band[-1].mark
    return Finding(key, Verdict.CANNOT_TELL, why, None, point.value, None, point.mark, last, len(band), failed=lost)


def _positive(points: Sequence[Point]) -> bool:
    return all(value > 0 for point in points for _, value in point.processes)


def _no_data(series: Series, absence: Absence) -> Finding:
    last = series.newest
    failed = absence.status == "failed" or absence.lost
    kind = f"failed ({absence.failure})" if absence.failure else absence.status
    commit = absence.commit[:8] if absence.commit else "no commit"
    reason = f"{kind}: {absence.reason}"
    return Finding(series.key, Verdict.NO_DATA, reason, last.value, None, None, commit, last.mark, 0, failed=failed)


def _absence(key: Key, absences: Mapping[tuple[Subject, str | None], Absence]) -> Absence | None:
    return absences.get((key.subject, None)) or absences.get((key.subject, key.metric))
