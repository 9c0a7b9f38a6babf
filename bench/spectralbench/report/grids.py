"""Who won where: a table of kernel size by compression (or of shapes by beta) with the winner and its ratios.

And from where on it pays: `crossovers` of the same cases, by process.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from spectralbench import names, rivals
from spectralbench.contest import CaseRows, Row
from spectralbench.crossover import Crossover, crossover
from spectralbench.history import Series
from spectralbench.report.page import Cell, Table
from spectralbench.settings import COLUMNS, LETTERS, Setting, View, ours, stranger


def winner_table(setting: Setting) -> Table:
    """A row per value down, a column per value across: the winner, and our time against each family."""
    down, across = setting.view.down, setting.columns()
    assert down is not None, "shapes without an axis of their own are tabled together"
    rows = []
    for value in setting.values(down):
        sizes = {case.size for case in setting.cases if case.params[down] == value}
        name = f"{LETTERS[down]} = {names.number(value)}" + (f"\nN {sizes.pop()}" if len(sizes) == 1 else "")
        rows.append((Cell(name, key=value), *(_cell(setting.at(value, one), setting.view) for one in across)))
    return Table(("", *(f"{LETTERS[setting.view.across]} = {names.number(one)}" for one in across)), tuple(rows))


def shapes_table(found: Sequence[Setting]) -> Table:
    """A row per setting where nothing runs down."""
    count = Counter(value for setting in found for value in setting.values(setting.view.across))
    across = sorted(value for value, _ in count.most_common(COLUMNS))
    letter = LETTERS[found[0].view.across]
    rows: tuple[tuple[Cell | str, ...], ...] = tuple(
        (
            setting.name.removeprefix(names.operation(setting.operation)).strip(),
            *(_cell(setting.at(None, one), setting.view) for one in across),
        )
        for setting in found
    )
    return Table(("case", *(f"{letter} = {names.number(one)}" for one in across)), rows)


def _cell(case: CaseRows | None, view: View) -> Cell:
    own = None if case is None else ours(case, view)
    if case is None or own is None:
        return Cell("")
    against = [case.against(own, family) for family in view.families]
    ratios = [one for one in against if one is not None]
    if not ratios:
        return Cell(f"{own.name}\nalone")
    text = " · ".join("-" if one is None else one.text for one in against)
    worst = min(ratios, key=lambda one: one.faster)
    winner = own.name if worst.faster >= 1 else _known(worst.other)
    return Cell(f"{winner}\n{text}", worst.kind, worst.faster)


def _known(row: Row) -> str:
    family = rivals.family(row.name)
    return rivals.WORDS[family] if family else row.name


def crossover_table(found: Sequence[Setting]) -> Table | None:
    """From where on each of ours pays, against each family; None where nothing was measured at three places."""
    rows = [row for setting in found if setting.view.crosses for row in _crossovers(setting)]
    return Table(("case", "ours", "pays against ...", "and against ..."), tuple(rows)) if rows else None


def _crossovers(setting: Setting) -> Iterator[tuple[str, ...]]:
    view = setting.view
    place = view.down or view.across
    fixed = setting.values(view.across) if view.down else [None]
    members = {row.name: None for case in setting.cases for row in case.timed() if _is_ours(row, view)}
    for value in fixed:
        chosen = [case for case in setting.cases if value is None or case.params[view.across] == value]
        for name in members:
            found = [_of(chosen, name, family, place) for family in view.families]
            if any(found):
                words = [_pays(one, family, place) for one, family in zip(found, view.families, strict=True)]
                at = setting.name if value is None else f"{setting.name} {LETTERS[view.across]}{names.number(value)}"
                yield (at, name, words[0], words[1] if len(words) > 1 else "")


def _pays(found: Crossover | None, family: str, place: str) -> str:
    return "" if found is None else f"{rivals.WORDS[family]} {found.words(LETTERS[place])}"


def _is_ours(row: Row, view: View) -> bool:
    return row.role == "kernel" or (view.down is None and row.role != "rival" and stranger(row, view))


def _of(cases: Sequence[CaseRows], name: str, family: str, place: str) -> Crossover | None:
    """The newest crossover that can be judged, else the newest; by the processes that measured the most places."""
    curves: dict[str, dict[str, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    newest: dict[str, str] = {}
    for case in cases:
        own = case.rows.get(name)
        if own is None or own.time is None or own not in case.timed():
            continue
        others = [one.metrics["device_time"] for one in case.timed() if rivals.family(one.name) == family]
        for point in own.metrics["device_time"].points:
            newest[point.mark] = max(point.recorded_at, newest.get(point.mark, ""))
            best = _best(others, point.mark)
            for process, value in point.processes:
                if process in best and value > 0:
                    curves[point.mark][process][float(case.params[place])] = math.log(value / best[process])
    unjudged: Crossover | None = None
    for mark in sorted(curves, key=lambda one: newest[one], reverse=True):
        whole = max(len(curve) for curve in curves[mark].values())
        found = crossover([curve for curve in curves[mark].values() if len(curve) == whole])
        if found is not None and found.judged:
            return found
        unjudged = unjudged or found
    return unjudged


def _best(others: Sequence[Series], mark: str) -> dict[str, float]:
    """Process -> the time of the family's best member, which is chosen by its median, at one commit."""
    points = [point for series in others for point in series.points if point.mark == mark and point.value > 0]
    return dict(min(points, key=lambda point: point.value).processes) if points else {}
