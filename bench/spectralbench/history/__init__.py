"""All stored results as series of points over commits: our records, and asv's files (no torch).

A point is one commit in one environment. Its value is the median over processes of each process's median, because the
unit of replication is the process: samples within one process agree far better than two processes do.
Points follow each other as their commits do in git (`ancestry`), not as they were measured.
Whatever cannot be used is named in `History.damage`; nothing is dropped silently.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from spectralbench import asv_files
from spectralbench.collector import others_froze
from spectralbench.history.gathering import Builder
from spectralbench.history.series import (
    Absence,
    History,
    Key,
    Point,
    Ratio,
    Series,
    Subject,
    quotient,
    ratio,
)
from spectralbench.history.summary import Summary, Told, subjects, summaries
from spectralbench.record import Record
from spectralbench.text import meant

__all__ = (
    "Absence", "History", "Key", "Point", "Ratio", "Series", "Subject", "current", "load", "of", "only_machine",
    "only_machines", "quotient", "ratio",
)  # fmt: skip


def load(results: Path) -> History:
    """Read `results/records` and `results/asv`; either may be missing.

    Raises: FileNotFoundError if `results` is not a folder.
    """
    if not results.is_dir():
        raise FileNotFoundError(f"expected a folder of results, got {results}; run `spectralbench run` first")
    builder = Builder()
    with _without_collector():
        for file in summaries(results / "records"):
            builder.add_file(file)
        read, damage = asv_files.read_tree(results / "asv")
        builder.damage.extend(damage)
        for result in read:
            builder.add_asv(result)
        # Records are of this package's commits: they lie in its repository, or were moved away from it.
        return builder.history((results, Path(__file__).parent))


def of(records: Iterable[Record], machine: str) -> History:
    """Records of one code state as a history of one point each, whose processes are those of every card."""
    by_card: dict[str, list[Record]] = {}
    for record in records:
        by_card.setdefault(record.card or "device", []).append(record)
    builder = Builder()
    facts = {"machine": machine, "commit": "this one"}
    for card, found in by_card.items():
        told = [Told(*one) for one in subjects(found)]
        builder.add_file(Summary(Path(card), facts, (), "", len(found), told))
    return builder.history(())


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's collector looks through millions of objects again and again that are all kept: a third of the time."""
    enabled, others = gc.isenabled(), others_froze()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not others:
                # Else the first collections of young objects would look through all of these, which are old by now.
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def only_machine(history: History, machine: str | None) -> History:
    """The part of one machine (None: all of it). ValueError names the known machines if there is no such one."""
    if machine is None:
        return history
    if machine not in history.machines:
        raise ValueError(f"no results of machine {machine!r}{meant(machine, history.machines or ('none yet',))}")
    return only_machines(history, (machine,))


def only_machines(history: History, machines: Collection[str]) -> History:
    """The part of some machines. What is damaged in the folder of another one makes nothing of theirs doubtful."""
    others = set(history.machines) - set(machines)
    return replace(
        history,
        series=tuple(series for series in history.series if series.key.subject.machine in machines),
        absences=tuple(absence for absence in history.absences if absence.subject.machine in machines),
        environments={name: found for name, found in history.environments.items() if name in machines},
        doubtful=tuple(damage for damage in history.doubtful if damage.path.parent.name not in others),
    )


def current(history: History) -> History:
    """Our records without those of a superseded version of their operation or metric, and without wrong commits.

    asv's series are left out.
    """
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

    kept = (
        one
        for one in series
        if is_current(one.key.subject) and metrics[one.key.subject.machine, one.key.metric] == one.key.metric_version
    )
    right = (replace(one, points=tuple(point for point in one.points if not point.wrong)) for one in kept)
    return replace(
        history,
        series=tuple(one for one in right if one.points),
        absences=tuple(absence for absence in history.absences if is_current(absence.subject)),
    )
