"""Measure again what would page, before anybody is paged.

A series that is slower at the commit that is checked out is timed once more in fresh processes, together with the
baselines of its case, and judged by these alone: a sitting that went wrong does not answer for the code. The fresh
processes are stored beside the others; nothing is rewritten, so a later `alert` sees all of them.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectralbench.alert import Finding, Verdict
from spectralbench.history import History, Key, Point, Series
from spectralbench.identity import Conditions, changes
from spectralbench.metrics import moving

if TYPE_CHECKING:
    from spectralbench.sweep import Item, Sources, Sweep
    from spectralkernels.declare import Case

TIME = "device_time"


@dataclass(frozen=True, slots=True)
class Plan:
    """items: what is measured, in order. keys: the slower series they answer for. refused: the others, by why not."""

    items: list[Item]
    keys: frozenset[Key]
    refused: Mapping[str, int]


def plan(
    loaded: History, findings: Sequence[Finding], surroundings: Mapping[str, Any], processes: int, sources: Sources
) -> Plan:
    """What must be timed again of the series that are SLOWER.

    surroundings: of this process, see `sweep.surroundings`; a series of another machine, commit or condition is
    refused, and so is one that no case of an operation here stands for.
    """
    from spectralbench.worker import resolve

    operations = resolve(sources.operations)()
    slower = {one.key for one in findings if one.verdict is Verdict.SLOWER and one.key.metric == TIME}
    by_key = {series.key: series for series in loaded.series}
    beside: dict[Any, list[Series]] = defaultdict(list)
    for series in loaded.series:
        if series.key.metric == TIME and series.key.subject.via == "records":
            beside[series.key.subject.machine, series.key.subject.question].append(series)
    refused: dict[str, int] = defaultdict(int)
    wanted: dict[Any, list[Key]] = defaultdict(list)
    for key in sorted(slower, key=str):
        found = by_key.get(key)
        if found is None:
            continue  # a geometric mean: it follows from its cases
        why = _refusal(found, surroundings, operations)
        if why:
            refused[why] += 1
        else:
            wanted[key.subject.machine, key.subject.question].append(key)
    items = []
    # The journal may go on in today's file, where a process of an equal number would be taken for the same one.
    points = [by_key[key].newest for keys in wanted.values() for key in keys]
    taken = {label.rpartition("#")[2] for point in points for label, _ in point.processes}
    first = next(n for n in itertools.count() if not taken & {str(n + more) for more in range(processes)})
    for replicate in range(first, first + processes):
        for question, keys in wanted.items():
            names = {key.subject.implementation for key in keys}
            names |= {one.key.subject.implementation for one in beside[question] if one.role in ("baseline", "rival")}
            items.append(_item(by_key[keys[0]], names, replicate, operations))
    return Plan(items, frozenset(key for keys in wanted.values() for key in keys), dict(refused))


def judged_by(loaded: History, before: History, keys: frozenset[Key], processes: int) -> tuple[History, frozenset[Key]]:
    """The history in which the newest point of whatever was timed again is that of the fresh processes alone.

    loaded, before: read after and before they were measured. Also returned: those of `keys` that got `processes` fresh
    ones; the others (a time budget, an interrupt) are left as they were.
    """
    known = {label for series in before.series for point in series.points for label, _ in point.processes}
    again: set[Key] = set()
    found: list[Series] = []
    for series in loaded.series:
        newest = _fresh(series.newest, known) if series.key.metric == TIME else None
        if newest is None or len(newest.processes) < processes:
            found.append(series)
            continue
        again.add(series.key)
        found.append(replace(series, points=(*series.points[:-1], newest)))
    return replace(loaded, series=tuple(found)), frozenset(again & keys)


def told(findings: Sequence[Finding], again: frozenset[Key], processes: int) -> list[Finding]:
    """The findings, with the words that a series was timed again."""
    words = f"timed again in {processes} fresh processes: "
    return [replace(one, reason=words + one.reason) if one.key in again else one for one in findings]


def measure(items: list[Item], results: Path, surroundings: Mapping[str, Any], sources: Sources,
            budget: float | None, watch: Any) -> Sweep:  # fmt: skip
    """Time the items in fresh processes and store them. Raises: as `sweep.run`."""
    from spectralbench import sweep

    request = sweep.Request(
        operations=tuple(dict.fromkeys(item.operation.name for item in items)),
        profile="study",
        metrics=(TIME,),
        device=str(surroundings["device"]),
        states=tuple(dict.fromkeys(state for item in items for state in item.states)),
        time_budget=budget,
        remeasure=True,
        select=lambda _: items,
        sources=sources,
    )
    return sweep.run(request, results, surroundings, watch)


def _refusal(series: Series, surroundings: Mapping[str, Any], operations: Mapping[str, Any]) -> str | None:
    """Why a series cannot be timed again here, or None."""
    subject, newest = series.key.subject, series.newest
    if subject.via != "records":
        return "asv's results are measured by asv"
    if subject.machine != surroundings["machine"]:
        return f"measured on {subject.machine}, this is {surroundings['machine']}"
    if (newest.commit, newest.dirty) != (surroundings["commit"], surroundings["dirty"]):
        here = f"{(surroundings['commit'] or 'no commit')[:8]}{'-dirty' if surroundings['dirty'] else ''}"
        return f"measured at {newest.mark}, checked out is {here}"
    ours = moving(TIME, Conditions.of(surroundings))
    if newest.environment != ours:
        return f"other conditions here: {changes(newest.environment, ours)}"
    operation = operations.get(subject.operation)
    if operation is None or operation.version != subject.operation_version:
        return f"no operation {subject.operation} of version {subject.operation_version} here"
    if subject.implementation not in {one.name for one in operation.subjects}:
        return f"no implementation {subject.implementation} of {subject.operation} here"
    if _case(series).id != subject.case:
        return f"its parameters do not make its case {subject.case}"
    return None


def _case(series: Series) -> Case:
    from spectralkernels.declare import Case

    subject = series.key.subject
    return Case(subject.operation, tuple(series.params.items()), subject.dtype, subject.seed)


def _item(series: Series, names: set[str], replicate: int, operations: Mapping[str, Any]) -> Item:
    from spectralbench.sweep import Item
    from spectralbench.worker import State

    subject = series.key.subject
    operation = operations[subject.operation]
    case = _case(series)
    cost = operation.cost(case)
    floor = {"bytes_read": cost.bytes_read, "bytes_written": cost.bytes_written, "flops": cost.flops}
    ordered = tuple(one.name for one in operation.subjects if one.name in names)
    pass_: Any = subject.pass_
    state = State(subject.launch, subject.cache)
    return Item(operation, case, pass_, ordered, replicate, tuple(operation.fft_size(case)), floor, (state,))


def _fresh(point: Point, known: set[str]) -> Point | None:
    """The point of those processes only that are not known; None if there are none."""
    processes = tuple((label, value) for label, value in point.processes if label not in known)
    if not processes:
        return None
    values = [value for _, value in processes]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return replace(point, processes=processes, value=statistics.median(values), q25=lower, q75=upper, n=len(values))
