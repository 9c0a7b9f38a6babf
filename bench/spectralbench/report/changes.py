"""What changed since the commit before: how much faster each operation became, and what the alert says of it."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from spectralbench import names
from spectralbench.alert import Finding, Verdict
from spectralbench.contest import times, title
from spectralbench.history import Key, Point, Series
from spectralbench.report.page import Block, Cell, Table, Text

NAMED = 5


def blocks(series: Sequence[Series], findings: Sequence[Finding]) -> Iterator[Block]:
    """A row per operation: geometric means of the newest time over the one before, kernels beside all others."""
    ratios: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    pairs: dict[str, Counter[str]] = defaultdict(Counter)
    for one in series:
        if one.key.metric != "device_time":
            continue
        past = before(one, one.newest)
        if past is not None:
            role = "kernel" if one.role == "kernel" else "other"
            ratios[one.key.subject.operation][role].append(math.log(past.value / one.newest.value))
            pairs[one.key.subject.operation][f"{past.mark} to {one.newest.mark}"] += 1
    if not ratios:
        yield Text("No series has two commits in one environment: nothing can be compared yet.")
        return
    verdicts: dict[str, Counter[Verdict]] = defaultdict(Counter)
    for finding in findings:
        if finding.key.metric == "device_time":
            verdicts[finding.key.subject.operation][finding.verdict] += 1
    rows = []
    for operation, found in ratios.items():
        told = verdicts[operation]
        (most, _), *more = pairs[operation].most_common()
        rows.append(
            (
                names.operation(operation),
                _mean(found["kernel"]),
                _mean(found["other"]),
                str(sum(map(len, found.values()))),
                str(told[Verdict.FASTER]),
                str(told[Verdict.SLOWER]),
                str(told[Verdict.SAME]),
                str(told[Verdict.CANNOT_TELL]),
                most + (f" and {len(more)} more" if more else ""),
            )
        )
    columns = ("operation", "kernels faster by", "others faster by", "series", "faster", "slower", "same",
               "cannot tell", "commits")  # fmt: skip
    yield Table(columns, tuple(rows), frozenset(range(1, 8)))
    yield Text(
        "Geometric means of the time before over the newest. What moved the others moved the machine: read the first "
        "beside the second. The four counts are the alert's, which is judged series by series against all its past."
    )
    yield from _named(findings, {one.key: one for one in series})


def before(series: Series, point: Point) -> Point | None:
    """The clean point of another commit that stands last before this one in its environment, if both are above 0."""
    segment = series.segment(point)
    past = [one for one in segment[: segment.index(point)] if one.clean and one.commit != point.commit]
    return past[-1] if past and min(past[-1].value, point.value) > 0 else None


def _named(findings: Sequence[Finding], series: Mapping[Key, Series]) -> Iterator[Block]:
    told = [one for one in findings if one.verdict in (Verdict.SLOWER, Verdict.FASTER) or one.failed]
    worst = sorted(told, key=lambda one: (one.verdict is not Verdict.SLOWER, -abs(math.log(one.ratio or 1.0))))
    rows = tuple(
        (
            one.key.subject.implementation,
            _case(one.key, series),
            one.key.metric.replace("_", " "),
            Cell("fails" if one.failed else one.words, "lose" if one.verdict is Verdict.SLOWER else "win"),
            one.changed_at or one.commit or "",
        )
        for one in worst[:NAMED]
    )
    if rows:
        yield Table(("implementation", "case", "metric", "change", "at"), rows)
    if len(worst) > NAMED:
        yield Text(f"{len(worst) - NAMED} more: `spectralbench alert`.")


def _case(key: Key, series: Mapping[Key, Series]) -> str:
    subject = key.subject
    facts = {**series[key].params, "dtype": subject.dtype, "pass": subject.pass_} if key in series else {}
    return title(facts, subject.operation) if facts else f"{names.operation(subject.operation)} {subject.case}"


def _mean(logs: Sequence[float]) -> Cell:
    if not logs:
        return Cell("")
    value = math.exp(statistics.fmean(logs))
    return Cell(times(value), key=value)
