"""The whole table of an operation: a row per case, implementations as columns, narrow enough to be read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from spectralbench import names, rates, rivals
from spectralbench.contest import CaseRows, Contender, fastest
from spectralbench.peaks import Peak
from spectralbench.quantity import amount, in_percent, scale
from spectralbench.record import Scalar
from spectralbench.report.costs import percent, saved, share
from spectralbench.report.page import Block, Cell, Heading, Table, Text

COLUMNS = 5
"""Implementations beside each other; more of them go on in a second table."""

NOTE = (
    "Medians over processes, of the newest commit that measured each; the fastest of a case is bold. † a rival, which "
    f"computes another answer. ‡ on a slow path: over {rivals.SLOW:g} times slower than its other layout or N, and "
    "quoted nowhere. Rate: bytes and flops of the operation's floor per second of our fastest."
)
PEAK = (
    "Of {flops} GFLOP/s in a large float32 product and {bytes} GB/s in a large copy here, {threads} threads: product "
    "is the percent of the first, floor of the time that the longer of bytes and flops allows."
)


def blocks(found: Sequence[CaseRows], peak: Peak | None = None) -> Iterator[Block]:
    """Cases grouped by who was timed at them: the times, then what they save and how far off they are.

    peak: of the machine, by which our fastest is rated in float32.
    """
    yield Text(NOTE)
    if peak is not None:
        flops, moved = (f"{rate / 1e9:.3g}" for rate in (peak.flops_per_second, peak.bytes_per_second))
        yield Text(PEAK.format(flops=flops, bytes=moved, threads=peak.threads))
    facts = [case.facts for case in found]
    shared = {name for name in facts[0] if all(name in one and one[name] == facts[0][name] for one in facts)}
    same = {name: value for name, value in facts[0].items() if name in shared}
    if words := names.short(same):
        yield Text(f"All cases: {words}.")
    groups: dict[tuple[str, ...], list[CaseRows]] = defaultdict(list)
    roles = {row.name: row.role for case in found for row in case.rows.values() if row.time is not None}
    order = sorted(roles, key=lambda name: (roles[name] == "rival", roles[name] != "kernel"))
    for case in found:
        timed = tuple(name for name in order if name in case.rows and case.rows[name].time is not None)
        if timed:
            groups[timed].append(case)
    for implementations, cases in groups.items():
        for start in range(0, len(implementations), COLUMNS):
            shown = implementations[start : start + COLUMNS]
            yield Heading(3, ", ".join(shown) if len(groups) > 1 else "Times")
            yield _table(cases, shown, frozenset(shared), peak, first=start == 0)


def _table(
    cases: Sequence[CaseRows], shown: Sequence[str], shared: frozenset[str], peak: Peak | None, *, first: bool
) -> Table:
    symbol_of = {case.subject: _unit(case) for case in cases}
    extra = ("error", "saved", "rate") if first else ()
    rows = []
    for case in sorted(cases, key=_order):
        divisor, symbol = symbol_of[case.subject]
        best = fastest(list(case.rows.values()))
        slow = {name for family in rivals.FAMILIES for name in case.slow(family)}
        cells = [_time(case.rows[name], divisor, best, name in slow) for name in shown]
        name = names.short(case.facts, shared) or "the case"
        rows.append((f"{name}\nN {case.size}" if case.size else name, symbol, *cells, *_extra(case, peak, first)))
    return Table(("case", "", *shown, *extra), tuple(rows), frozenset(range(2, 2 + len(shown) + len(extra))))


def _unit(case: CaseRows) -> tuple[float, str]:
    return scale([row.time.value for row in case.rows.values() if row.time is not None], "second")


def _time(row: Contender, divisor: float, best: Contender | None, slow: bool) -> Cell:
    assert row.time is not None, "groups hold rows with times"
    mark = ("†" if row.role == "rival" else "") + ("‡" if slow else "")
    return Cell(f"{row.time.value / divisor:.3g}{mark}", "win" if row is best else "", row.time.value)


def _extra(case: CaseRows, peak: Peak | None, first: bool) -> tuple[Cell | str, ...]:
    """The price of the operation, and what our fastest saves: over the library's convolution, or in bytes."""
    if not first:
        return ()
    error = max((row.value("approximation_error") or 0.0 for row in case.rows.values() if row.role != "rival"),
                default=0.0)  # fmt: skip
    own = case.ours() or fastest(case.timed())
    against = None if own is None else case.against(own, "conv")
    if own is None:
        return percent(error), "", ""
    alone, behind = saved(case, own, None if against is None else against.other)
    kept = own.value("saved_bytes")
    text = "" if kept is None else amount(kept, "byte")
    if alone is not None and behind is not None:
        text = f"{share(alone)}, {share(behind)}\nbehind ReLU"
    return percent(error), text, _rate(own, peak)


def _rate(row: Contender, peak: Peak | None) -> str:
    """Bytes and flops of the floor per second, and their percent of what the machine reaches in float32."""
    time, cost = row.time, row.metrics["device_time"].cost
    if time is None or time.value <= 0 or not cost:
        return ""
    moved, computed = rates.achieved(cost, row.subject.pass_, time.value)
    text = f"{moved / 1e9:.3g} GB/s\n{computed / 1e9:.3g} GFLOP/s"
    if peak is None or row.subject.dtype not in rates.RATED:
        return text
    floor = rates.share(cost, row.subject.pass_, time.value, peak.bytes_per_second, peak.flops_per_second)
    return f"{text}\nproduct {in_percent(computed / peak.flops_per_second)}\nfloor {in_percent(floor)}"


def _order(case: CaseRows) -> tuple[tuple[int, float, str], ...]:
    return tuple(_rank(value) for value in case.facts.values())


def _rank(value: Scalar) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, value)
