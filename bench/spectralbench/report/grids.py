"""Who won where: a table of kernel size by compression (or of shapes by beta) with the winner and its ratios.

And from where on it pays: `crossovers` of the same cases, by process (see `crossings`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from spectralbench import names, rivals
from spectralbench.contest import CaseRows, Contender
from spectralbench.crossings import Crossing, crossings
from spectralbench.report.page import Cell, Table
from spectralbench.settings import COLUMNS, LETTERS, Setting, View, ours


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


def _known(row: Contender) -> str:
    family = rivals.family(row.name)
    return rivals.WORDS[family] if family else row.name


def crossover_table(found: Sequence[Setting]) -> Table | None:
    """From where on each of ours pays, against each family; None where nothing was measured at three places."""
    rows = [row for setting in found if setting.view.crosses for row in _crossovers(setting)]
    return Table(("case", "ours", "pays against ...", "and against ..."), tuple(rows)) if rows else None


def _crossovers(setting: Setting) -> Iterator[tuple[str, ...]]:
    """The newest crossover that can be judged, else the newest, of each of ours."""
    view = setting.view
    place = view.down or view.across
    newest: dict[tuple[str, str], dict[str, Crossing]] = defaultdict(dict)
    for one in crossings(setting):
        if one.axis == place:
            known = newest[one.fixed, one.ours].get(one.family)
            if known is None or one.found.judged or not known.found.judged:
                newest[one.fixed, one.ours][one.family] = one
    for (fixed, name), found in newest.items():
        words = [_pays(found.get(family)) for family in view.families]
        yield (f"{setting.name} {fixed}".strip(), name, words[0], words[1] if len(words) > 1 else "")


def _pays(found: Crossing | None) -> str:
    return "" if found is None else f"{rivals.WORDS[found.family]} {found.words}"
