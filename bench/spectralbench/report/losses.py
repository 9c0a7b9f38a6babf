"""Where we lose: what `impl="auto"` runs against everything else that a user could have called, the worst first.

A rival counts: the uncompressed convolution is the alternative that a user has. Cases that differ only in compression,
mask rate or beta are one row, with the worst of them. What auto runs is told by `chosen`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from spectralbench import rivals
from spectralbench.chosen import Answer, Question
from spectralbench.contest import CaseRows, Contender, Versus, fastest, title
from spectralbench.history import ratio
from spectralbench.quantity import amount, ratio_words
from spectralbench.report.page import Block, Cell, Table, Text

SHOWN = 10
ALIKE = frozenset({"compression", "rate", "beta"})


@dataclass(frozen=True, slots=True)
class Loss:
    """A case in which another one is faster than what auto runs. aim: what auto looks for there."""

    case: CaseRows
    versus: Versus
    aim: str = "time"


def judged(found: Sequence[CaseRows], chosen: Mapping[Question, Answer]) -> tuple[list[Loss], int]:
    """The losses, and how many cases could be judged: auto's choice and another one were measured."""
    losses, count = [], 0
    for case in found:
        subject = case.subject
        name, _, aim = chosen.get((subject.operation, subject.case, subject.dtype, subject.pass_), ("", "", ""))
        row = case.rows.get(name)
        if row is None or row.time is None:
            continue
        other = fastest([one for one in case.timed() if one is not row and _same_commit(one, row)])
        if other is None or other.time is None or (apart := ratio(row.time, other.time)) is None:
            continue
        count += 1
        if apart.value > 1:
            losses.append(Loss(case, Versus(row, other, apart), aim))
    return losses, count


def blocks(found: Sequence[CaseRows], chosen: Mapping[Question, Answer]) -> Iterator[Block]:
    """The losses as a sentence and a table."""
    if not chosen:
        yield Text("What auto runs is not known here: run `spectralbench choices` on that machine, then this again.")
        return
    losses, count = judged(found, chosen)
    sure = sum(loss.versus.ratio.significant for loss in losses)
    timed = sum(bool(case.timed()) for case in found)
    yield Text(
        f"auto runs something slower than another way in {len(losses)} of {count} cases, shown in {sure} of them; "
        f"in {timed - count} more cases its choice, or anybody beside it, was not timed."
    )
    if small := sum(loss.aim == "memory" for loss in losses):
        yield Text(f'In {small} of them it looks for memory unless it is asked for `optimise="time"`.')
    groups: dict[tuple[object, ...], list[Loss]] = defaultdict(list)
    for loss in sorted(losses, key=lambda one: -one.versus.ratio.value):
        shape = tuple((name, value) for name, value in loss.case.facts.items() if name not in ALIKE)
        groups[loss.case.subject.operation, loss.versus.row.name, loss.versus.other.name, shape].append(loss)
    if groups:
        rows = tuple(_row(group) for group in list(groups.values())[:SHOWN])
        yield Table(
            ("worst case", "auto runs", "faster", "time", "its time", "auto is", "cases"), rows, frozenset({3, 4, 5, 6})
        )
    if len(groups) > SHOWN:
        yield Text(f"Milder kinds, in the tables of the operations: {len(groups) - SHOWN}.")


def _same_commit(one: Contender, other: Contender) -> bool:
    return one.time is not None and other.time is not None and one.time.mark == other.time.mark


def _row(group: Sequence[Loss]) -> tuple[Cell | str, ...]:
    case, versus = group[0].case, group[0].versus
    mine, theirs = versus.row.time, versus.other.time
    assert mine is not None and theirs is not None, "a ratio was taken of them"
    return (
        title(case.facts, case.subject.operation),
        versus.row.name if group[0].aim == "time" else f"{versus.row.name}, for {group[0].aim}",
        name_of(versus.other),
        Cell(amount(mine.value, "second"), key=mine.value),
        Cell(amount(theirs.value, "second"), key=theirs.value),
        Cell(f"{ratio_words(versus.ratio.value, 'second')}{versus.mark}", versus.kind, versus.ratio.value),
        str(len(group)),
    )


def name_of(row: Contender) -> str:
    """An implementation; a rival is marked, and named by the family that it stands for."""
    kind = rivals.family(row.name)
    if row.role != "rival":
        return row.name
    return f"{rivals.WORDS[kind]}, {rivals.FAMILIES[kind][row.name]} †" if kind else f"{row.name} †"
