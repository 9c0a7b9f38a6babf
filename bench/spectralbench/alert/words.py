"""Findings for people and machines: a short answer for a terminal, a page of Markdown, one JSON document."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from spectralbench.alert.finding import Finding, Verdict, exit_code
from spectralbench.quantity import amount
from spectralbench.record import Damage
from spectralbench.text import cell, printable, table

LINES = 20
WANTED = 0.10
"""A change of time that a history should show."""
BETTER = (Verdict.LESS_EXACT, Verdict.FASTER)
ANSWERS = {0: "No regression.", 1: "**Regressions or failures.**", 3: "Not enough history to judge anything."}


def headline(findings: Sequence[Finding], doubtful: Sequence[Damage] = (), scope: str = "") -> str:
    """The answer in one line. scope: which machines were judged, as `on cpu-epyc-2c`."""
    code = exit_code(findings, doubtful)
    answer = ANSWERS[code].strip("*")
    if code == 1:
        failed, pinned = sum(found.failed for found in findings), sum(found.unexpected for found in findings)
        worse = sum(found.worse for found in findings) - failed - pinned
        answer = "Nothing is shown to be worse."
        if worse or failed or not doubtful:
            answer = f"{worse} series got worse and {failed} fail or are gone that were measured before."
        answer += f" {pinned} are better than a rule expects: take the rule back." * bool(pinned)
    if doubtful:
        answer += f" {_lost(doubtful)}"
    return f"{answer} {_summary(findings, scope)}."


def to_terminal(findings: Sequence[Finding], doubtful: Sequence[Damage] = (), scope: str = "") -> str:
    """A first line that answers, and at most LINES lines in all: what is worse, then what is better."""
    lines = [headline(findings, doubtful, scope)]
    shown = worst_first(found for found in findings if found.worse)
    shown += worst_first(found for found in findings if found.verdict in BETTER and not found.worse)
    lines += [f"  {title(found)}: {reason(found)}" for found in shown[: LINES - 2]]
    rest = len(shown) - (LINES - 2)
    if rest > 0:
        lines.append(f"  and {rest} more; `spectralbench alert --all` shows everything")
    elif len(findings) > len(shown):
        lines.append("  `spectralbench alert --all` shows what is unclear and why")
    return "\n".join(lines)


def title(found: Finding) -> str:
    """One line: what happened to which series at which commit."""
    at = found.changed_at or found.commit or "no commit"
    what = "NO NUMBER" if found.failed else f"{found.verdict.value} {found.words}"
    return printable(f"{what} at {at}: {found.key} [{found.key.subject.machine}]".replace("\n", " "))


def reason(found: Finding) -> str:
    """Why, in one line."""
    why = f"better than a rule expects, {found.reason}" if found.unexpected else found.reason
    return printable(why.replace("\n", " "))


def to_json(findings: Sequence[Finding], doubtful: Sequence[Damage] = (), scope: str = "") -> str:
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
            "unexpected": finding.unexpected,
            "reason": finding.reason,
            "old": finding.old,
            "new": finding.new,
            "ratio": finding.ratio,
            "change": finding.words,
            "resolution": finding.resolution,
            "commit": finding.commit,
            "since": finding.since,
            "changed_at": finding.changed_at,
            "earlier": finding.earlier,
        }
        for finding in findings
    ]
    summary = {
        "exit_code": exit_code(findings, doubtful),
        "scope": scope,
        "verdicts": _counts(findings),
        "damage_in_the_newest_results": [str(damage) for damage in doubtful],
        "findings": rows,
    }
    return json.dumps(summary, indent=1, allow_nan=False) + "\n"


def to_markdown(findings: Sequence[Finding], doubtful: Sequence[Damage] = (), scope: str = "") -> str:
    """A summary, then the regressions, failures, improvements and unclear changes, each in a table."""
    lines = ["# Alert", "", f"{ANSWERS[exit_code(findings, doubtful)]} {cell(_summary(findings, scope))}.", ""]
    lines += _sight(findings)
    if doubtful:
        lines += [f"**{_lost(doubtful)}**", "", *(f"- {cell(str(damage))}" for damage in doubtful), ""]
    failed = [finding for finding in findings if finding.failed]
    lines += _table("Regressions", [f for f in findings if f.verdict is Verdict.SLOWER])
    lines += _table("Failing or gone now, measured before", failed)
    lines += _table("Faster by being less exact", [f for f in findings if f.verdict is Verdict.LESS_EXACT])
    lines += _table("Better than a rule expects", [f for f in findings if f.unexpected])
    lines += _table("Improvements", [f for f in findings if f.verdict is Verdict.FASTER and not f.unexpected])
    unclear = [finding for finding in findings if finding.verdict is Verdict.CANNOT_TELL]
    lines += _table("Changes that the noise could explain", [f for f in unclear if f.resolution is not None])
    reasons = Counter(finding.reason for finding in unclear if finding.resolution is None)
    if reasons:
        rows = [(str(count), cell(reason)) for reason, count in reasons.most_common()]
        lines += ["## Not judged", "", *table(("series", "reason"), rows, {0}), ""]
    return "\n".join(lines)


def _sight(findings: Sequence[Finding]) -> Iterator[str]:
    """What the times that were judged can show, and what it would take to see WANTED."""
    seen = [one for one in findings if one.resolution and one.processes and one.key.metric == "device_time"]
    if not seen:
        return
    usual = statistics.median(one.resolution or 0.0 for one in seen)
    line = f"The smallest change that {len(seen)} series of device_time could show is {100 * usual:.3g} % (median)"
    if usual > WANTED:
        # Noise of processes in sittings of their own falls with the root of their number.
        needed = statistics.median(
            one.processes * (math.log1p(one.resolution or 0.0) / math.log1p(WANTED)) ** 2 for one in seen
        )
        line += f"; {100 * WANTED:g} % takes about {math.ceil(needed)} processes a commit, each in a sitting of its own"
    yield from (f"{line}.", "")


def _lost(doubtful: Sequence[Damage]) -> str:
    return f"The newest results are damaged in {len(doubtful)} places, so that nobody can say what they held."


def _summary(findings: Sequence[Finding], scope: str) -> str:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in _counts(findings).items()) or "no series"
    return f"{scope[0].upper()}{printable(scope[1:])}: {counts}" if scope else counts


def _counts(findings: Iterable[Finding]) -> dict[str, int]:
    counted = Counter(finding.verdict for finding in findings)
    return {verdict.value: counted[verdict] for verdict in Verdict if counted[verdict]}


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """What fails or is gone, then the largest change."""
    return sorted(findings, key=lambda found: (not found.failed, -abs((found.ratio or 1) - 1)))


def _table(title: str, findings: Sequence[Finding]) -> Iterator[str]:
    """A Markdown table, the largest change first; nothing if there are no findings."""
    if not findings:
        return
    heads = ("series", "metric", "old", "new", "change", "last before", "changed at", "newest", "why")
    yield from (f"## {title}", "", *table(heads, map(_row, worst_first(findings))), "")


def _row(found: Finding) -> list[str]:
    unit = found.key.unit
    old = "" if found.old is None else amount(found.old, unit)
    new = "" if found.new is None else amount(found.new, unit)
    series = f"{found.key.subject.machine}: {found.key.subject}"
    commits = (found.since or "", found.changed_at or "", found.commit or "")
    cells = (series, found.key.metric, old, new, found.words, *commits, found.reason)
    return [cell(text) for text in cells]
