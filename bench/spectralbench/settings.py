"""Cases that differ only in kernel size and compression (or in beta): what a table or a map of winners shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spectralbench import rivals
from spectralbench.contest import CaseRows, Contender, fastest, title
from spectralbench.record import Scalar


@dataclass(frozen=True, slots=True)
class View:
    """How an operation is looked at: what runs down and across, whom it is held against, and whether a place from
    where on it pays is asked for."""

    down: str | None
    across: str
    families: tuple[str, ...]
    crosses: bool = True


VIEWS: Mapping[str, View] = {
    "band_limited_conv2d": View("kernel_size", "compression", ("conv", "torch.fft")),
    "band_limited_conv1d": View("kernel_size", "compression", ("conv", "torch.fft")),
    "masked_conv2d": View("kernel_size", "rate", ("conv", "torch.fft")),
    "masked_multiply": View(None, "compression", ("einsum",), crosses=False),
    "sparse_multiply": View(None, "beta", ("dense",)),
    "threshold_spectrum": View(None, "beta", ("dense",)),
    "spec_block": View(None, "beta", ("dense",)),
}
COLUMNS = 6
"""Values across a table; more would be too wide to read."""

LETTERS = {"kernel_size": "K", "compression": "c", "rate": "c", "beta": "beta"}


@dataclass(frozen=True, slots=True)
class Setting:
    """Cases that differ only down and across. name: what they share."""

    operation: str
    view: View
    name: str
    cases: tuple[CaseRows, ...]

    def at(self, down: Scalar | None, across: Scalar) -> CaseRows | None:
        """The case of a cell, None where none was measured."""
        view = self.view
        return next(
            (
                case
                for case in self.cases
                if case.params.get(view.across) == across and (view.down is None or case.params.get(view.down) == down)
            ),
            None,
        )

    def values(self, axis: str) -> list[float]:
        """The values of an axis, in order."""
        return sorted({value for case in self.cases if isinstance(value := case.params.get(axis), int | float)})

    def columns(self) -> list[float]:
        """At most COLUMNS values across, without those of few cases."""
        axis = self.view.across
        count = {value: sum(case.params[axis] == value for case in self.cases) for value in self.values(axis)}
        often = [value for value in count if 3 * count[value] >= max(count.values())]
        return sorted(sorted(often, key=lambda value: -count[value])[:COLUMNS])


def settings(operation: str, found: Sequence[CaseRows]) -> list[Setting]:
    """The settings of an operation, the one with the most cases first; none for an operation without a view."""
    view = VIEWS.get(operation)
    if view is None:
        return []
    free = frozenset({view.across} | ({view.down} if view.down else set()))
    groups: dict[tuple[tuple[str, Scalar], ...], list[CaseRows]] = defaultdict(list)
    for case in found:
        if free <= set(case.params) and all(type(case.params[axis]) in (int, float) for axis in free):
            groups[tuple((name, value) for name, value in case.facts.items() if name not in free)].append(case)
    made = [Setting(operation, view, title(dict(shared), operation), tuple(own)) for shared, own in groups.items()]
    return sorted(made, key=lambda one: -len(one.cases))


def ours(case: CaseRows, view: View) -> Contender | None:
    """Our fastest: a kernel, or where an operation has none here, whoever is not what a user has today."""
    own = [row for row in case.timed() if row.role == "kernel"]
    return fastest(own or [row for row in case.timed() if row.role != "rival" and stranger(row, view)])


def stranger(row: Contender, view: View) -> bool:
    """Whether a row stands for nobody that an operation is held against."""
    return rivals.family(row.name) not in view.families
