"""Judge the newest commit of every series against its own past (standard library only).

A change is reported only if two gates agree: it is larger than a practical percent of the old value, and it is more
than k times the noise away from it. The old value is the median of up to 20 earlier clean points of the same segment
(same versions of torch, triton, python, driver); the noise is the largest of 1.4826 x their median absolute deviation
and the standard error of the newest point over its own processes. k = 4 (1 + 4/n) for n earlier points: a spread
estimated from few points is often far too small, and with this k a simulated 2 % noise between runs gives at most 1
false alarm in 100 series at n = 3 and 1 in 1000 at n = 20.

Bytes and fractions have no noise: they are exact, one earlier point is enough, and any increase over 0.1 % is a
regression (for facts such as the kept fraction any change is, because it means that another operation was measured).
"Not shown to differ" is not "same": a change over the practical percent that the noise could explain is CANNOT TELL.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from spectralbench.history import Absence, History, Key, Point, Series, Subject, versions_changed
from spectralbench.quantity import amount, ratio_words
from spectralbench.text import cell

WINDOW = 20
MIN_EARLIER = 3
K = 4.0


class Verdict(Enum):
    """What the evidence says about one series; FASTER and SLOWER mean better and worse for every metric."""

    FASTER = "FASTER"
    SAME = "SAME"
    SLOWER = "SLOWER"
    CANNOT_TELL = "CANNOT TELL"
    NO_DATA = "NO DATA"


@dataclass(frozen=True, slots=True)
class Rule:
    """How one metric is judged.

    practical: smallest relative change worth a person's time. exact: there is no noise. fact: not a cost, so that a
    change in either direction is a regression.
    """

    practical: float
    exact: bool = False
    fact: bool = False


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "device_time": Rule(0.05),
        "energy": Rule(0.10),
        "host_peak": Rule(0.10),
        "nvml_memory": Rule(0.05),
        "peak_reserved": Rule(0.05),
        "peak_allocated": Rule(0.001, exact=True),
        "saved_bytes": Rule(0.001, exact=True),
        "stored_bytes": Rule(0.001, exact=True),
        "kept_fraction": Rule(0.001, exact=True, fact=True),
        "achieved_compression": Rule(0.001, exact=True, fact=True),
        "approximation_error": Rule(0.01, exact=True),
        "approximation_error_sym": Rule(0.01, exact=True),
        "rounding_error": Rule(0.20),
    }
)
DEFAULT_RULE = Rule(0.05)


@dataclass(frozen=True, slots=True)
class Finding:
    """The judgement of the newest point of one series.

    old: median of the band (None if there is none). new: None if there is no number. ratio: new / old, None where it
    does not exist. resolution: the smallest relative change that would have been reported. since: the commit of the
    last point in the band. failed: it was measured before and fails now.
    """

    key: Key
    verdict: Verdict
    reason: str
    old: float | None
    new: float | None
    ratio: float | None
    commit: str | None
    since: str | None
    earlier: int
    resolution: float | None = None
    failed: bool = False

    @property
    def words(self) -> str:
        """The change for people: `1.22x slower`."""
        return "" if self.old is None or self.new is None else ratio_words(self.ratio, self.key.unit)


def judge(
    history: History, *, rules: Mapping[str, Rule] = RULES, k: float = K, minimum: int = MIN_EARLIER
) -> list[Finding]:
    """One finding per series and environment that the newest commit of the series was measured in.

    A series that was measured before and whose newest outcome is a failure gives NO DATA with `failed` set.
    Dirty points are judged but never serve as a baseline.

    Raises: ValueError if `k` is not positive or `minimum` is less than 1.
    """
    if k <= 0 or minimum < 1:
        raise ValueError(f"expected k > 0 and minimum >= 1, got k = {k} and minimum = {minimum}")
    absences = {(absence.subject, absence.metric): absence for absence in history.absences}
    findings = []
    for series in history.series:
        absence = _absence(series.key, absences)
        if absence is not None:
            findings.append(_no_data(series, absence))
            continue
        newest = series.newest
        for point in series.points:
            if (point.commit, point.dirty) == (newest.commit, newest.dirty):
                findings.append(_judge_point(series, point, rules.get(series.key.metric, DEFAULT_RULE), k, minimum))
    return findings


def exit_code(findings: Sequence[Finding]) -> int:
    """0 fine, 1 a regression or a case that fails now, 3 nothing could be judged. (2 is the command line's: usage.)"""
    if any(finding.verdict is Verdict.SLOWER or finding.failed for finding in findings):
        return 1
    judged = (Verdict.FASTER, Verdict.SAME)
    return 0 if any(finding.verdict in judged for finding in findings) else 3


def to_json(findings: Sequence[Finding]) -> str:
    """All findings with their identity, verdict, numbers and reason, as one JSON document."""
    rows = [
        {
            "series": str(finding.key),
            "via": finding.key.subject.via,
            "machine": finding.key.subject.machine,
            "operation": finding.key.subject.operation,
            "implementation": finding.key.subject.implementation,
            "case": finding.key.subject.case,
            "dtype": finding.key.subject.dtype,
            "pass": finding.key.subject.pass_,
            "metric": finding.key.metric,
            "unit": finding.key.unit,
            "verdict": finding.verdict.value,
            "failed": finding.failed,
            "reason": finding.reason,
            "old": finding.old,
            "new": finding.new,
            "ratio": finding.ratio,
            "change": finding.words,
            "resolution": finding.resolution,
            "commit": finding.commit,
            "since": finding.since,
            "earlier": finding.earlier,
        }
        for finding in findings
    ]
    summary = {"exit_code": exit_code(findings), "verdicts": _counts(findings), "findings": rows}
    return json.dumps(summary, indent=1, allow_nan=False) + "\n"


def to_markdown(findings: Sequence[Finding]) -> str:
    """A summary, then the regressions, failures, improvements and unclear changes, each in a table."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in _counts(findings).items()) or "no series"
    words = {0: "No regression.", 1: "**Regressions or failures.**", 3: "Not enough history to judge anything."}
    lines = ["# Alert", "", f"{words[exit_code(findings)]} {counts}.", ""]
    failed = [finding for finding in findings if finding.failed]
    lines += _table("Regressions", [f for f in findings if f.verdict is Verdict.SLOWER])
    lines += _table("Failing now, measured before", failed)
    lines += _table("Improvements", [f for f in findings if f.verdict is Verdict.FASTER])
    unclear = [finding for finding in findings if finding.verdict is Verdict.CANNOT_TELL]
    lines += _table("Changes that the noise could explain", [f for f in unclear if f.resolution is not None])
    reasons = Counter(finding.reason for finding in unclear if finding.resolution is None)
    if reasons:
        lines += ["## Not judged", "", "| series | reason |", "|---:|---|"]
        lines += [f"| {count} | {cell(reason)} |" for reason, count in reasons.most_common()]
        lines.append("")
    return "\n".join(lines)


def _judge_point(series: Series, point: Point, rule: Rule, k: float, minimum: int) -> Finding:
    """Both gates for one point against the earlier clean points of its segment."""
    before = series.points[: series.points.index(point)]
    clean = [other for other in before if other.clean]
    band = [other for other in clean if other.environment == point.environment][-WINDOW:]
    needed = 1 if rule.exact else minimum
    if len(band) < needed:
        return _too_little(series.key, point, band, clean, needed)
    old = statistics.median(other.value for other in band)
    change = point.value - old
    noise = 0.0 if rule.exact else max(_spread([other.value for other in band], old), _standard_error(point))
    gate = max(rule.practical * abs(old), k * (1 + 4 / len(band)) * noise)
    resolution = gate / abs(old) if old else 0.0
    percent = f"{100 * change / old:+.3g} %" if old else f"{amount(old, series.key.unit)} before"
    if abs(change) <= rule.practical * abs(old):
        verdict, why = Verdict.SAME, f"{percent} is within {100 * rule.practical:g} %"
    elif abs(change) <= gate:
        verdict, why = Verdict.CANNOT_TELL, f"{percent}, but the noise allows {100 * resolution:.3g} %"
    elif rule.fact:
        verdict, why = Verdict.SLOWER, f"{percent} in a number that should not change at all"
    else:
        verdict = Verdict.SLOWER if change > 0 else Verdict.FASTER
        limit = f"the limit of {100 * resolution:.3g} %"
        because = "exact metric" if rule.exact else "no noise seen in the band" if noise == 0 else "noise and practical"
        why = f"{percent} is beyond {limit} ({because}, {len(band)} earlier points)"
    ratio = point.value / old if old else None
    return Finding(series.key, verdict, why, old, point.value, ratio, point.mark, band[-1].mark, len(band), resolution)


def _too_little(key: Key, point: Point, band: Sequence[Point], clean: Sequence[Point], needed: int) -> Finding:
    """CANNOT TELL, with the change since the last clean point for information."""
    last = clean[-1] if clean else None
    why = f"{len(band)} earlier clean points in this environment, {needed} needed"
    if last is not None and last.environment != point.environment:
        why = f"environment changed ({versions_changed(last.environment, point.environment)}): {why}"
    old = last.value if last else None
    ratio = point.value / old if old else None
    since = last.mark if last else None
    return Finding(key, Verdict.CANNOT_TELL, why, old, point.value, ratio, point.mark, since, len(band))


def _no_data(series: Series, absence: Absence) -> Finding:
    last = series.newest
    failed = absence.status == "failed"
    kind = f"failed ({absence.failure})" if failed else "skipped"
    commit = absence.commit[:8] if absence.commit else "no commit"
    reason = f"{kind}: {absence.reason}"
    return Finding(series.key, Verdict.NO_DATA, reason, last.value, None, None, commit, last.mark, 0, failed=failed)


def _absence(key: Key, absences: Mapping[tuple[Subject, str | None], Absence]) -> Absence | None:
    return absences.get((key.subject, None)) or absences.get((key.subject, key.metric))


def _spread(values: Sequence[float], middle: float) -> float:
    """A normal distribution's sigma from the MAD; from the mean deviation where over half of the values are equal."""
    deviations = [abs(value - middle) for value in values]
    robust = 1.4826 * statistics.median(deviations)
    return robust or 1.2533 * statistics.fmean(deviations)


def _standard_error(point: Point) -> float:
    """Of the median over three or more processes; fewer say nothing about their own spread."""
    values = [value for _, value in point.processes]
    if len(values) < 3:
        return 0.0
    return 1.2533 * _spread(values, point.value) / len(values) ** 0.5


def _counts(findings: Iterable[Finding]) -> dict[str, int]:
    counted = Counter(finding.verdict for finding in findings)
    return {verdict.value: counted[verdict] for verdict in Verdict if counted[verdict]}


def _table(title: str, findings: Sequence[Finding]) -> Iterator[str]:
    """A Markdown table, the largest change first; nothing if there are no findings."""
    if not findings:
        return
    yield from (f"## {title}", "", "| series | metric | old | new | change | since | at | why |", "|---" * 8 + "|")
    for found in sorted(findings, key=lambda found: -abs((found.ratio or 1) - 1)):
        unit = found.key.unit
        old = "" if found.old is None else amount(found.old, unit)
        new = "" if found.new is None else amount(found.new, unit)
        series = f"{found.key.subject.machine}: {found.key.subject}"
        cells = (series, found.key.metric, old, new, found.words, found.since or "", found.commit or "", found.reason)
        yield "| " + " | ".join(map(cell, cells)) + " |"
    yield ""
