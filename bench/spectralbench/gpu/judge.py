"""Each promise against what was measured: met, not met, or not measured and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from spectralbench.ceilings import Roofs
from spectralbench.contest import Contender
from spectralbench.gpu.classes import at_least_as_accurate
from spectralbench.gpu.compare import Match, remarks, time
from spectralbench.gpu.plan import Excluded
from spectralbench.gpu.targets import TARGETS, Bandwidth, Saved, SpeedUp, Target
from spectralbench.history import quotient
from spectralbench.record import Record

Word = Literal["met", "not met", "not measured"]


@dataclass(frozen=True, slots=True)
class Line:
    """One measured state of a promise. value and wanted: a ratio; ours and rival: who gave it; seconds: our time."""

    state: str
    ours: str
    rival: str | None
    value: float
    wanted: float
    met: bool
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """A promise is met if every state in which it was measured meets it. why: what was missing, in words."""

    target: Target
    word: Word
    lines: tuple[Line, ...]
    why: str | None


def judge(
    found: Sequence[Match],
    records: Sequence[Record],
    roofs: Roofs | None,
    excluded: Excluded,
    targets: Sequence[Target] = TARGETS,
) -> list[Judgement]:
    """One verdict per promise, in their order; only CUDA graphs count for times. records: for what has no number."""
    verdicts = []
    for target in targets:
        here = [one for one in found if target.place.answers(one.case.subject, one.case.params)]
        lines: list[Line] = []
        if isinstance(target, Saved):
            why = "no saved bytes of our kernels are stored"
            lines = _saved(target, here)
        else:
            why = "no time in a CUDA graph is stored"
            for one in here:
                if one.timed and one.case.subject.launch == "graph":
                    line = (
                        _speed_up(target, one) if isinstance(target, SpeedUp) else _bandwidth(target, one, here, roofs)
                    )
                    if isinstance(line, str):
                        why = line
                    else:
                        lines.append(line)
            why = _reasons(target, records, excluded) or why
        word: Word = "not measured" if not lines else "met" if all(line.met for line in lines) else "not met"
        verdicts.append(Judgement(target, word, tuple(lines), None if lines else why))
    return verdicts


def _speed_up(target: SpeedUp, one: Match) -> Line | str:
    """A line, or why there is none."""
    rivals = (
        row
        for row in one.timed
        if row.name in target.rivals and at_least_as_accurate(one.accuracy(row), target.accuracy)
    )
    rival = next(rivals, None)
    if rival is None:
        return f"none of {', '.join(target.rivals)} was timed"
    ours = one.best_of_ours(one.accuracy(rival))
    if ours is None:
        return f"none of our kernels of class {one.accuracy(rival)} or finer was timed"
    ratio = quotient(time(rival), time(ours))
    met = ratio >= target.least
    return Line(_state(one, ours, rival), ours.name, rival.name, ratio, target.least, met, time(ours).value)


def _bandwidth(target: Bandwidth, one: Match, here: Sequence[Match], roofs: Roofs | None) -> Line | str:
    """A line, or why there is none. here: the same case in every state, because its bytes were not weighed in this."""
    ours, cost = one.best_of_ours("fp32"), one.cost()
    if ours is None or cost is None:
        return "none of our kernels was timed"
    if roofs is None:
        return "the copy bandwidth was not measured"
    rows = (state.case.rows.get(ours.name) for state in here)
    stored = [size for row in rows if row is not None and (size := row.value("stored_bytes")) is not None]
    if not stored:
        return f"the stored bytes of {ours.name} were not measured"
    share = (cost.bytes_read + stored[0]) / time(ours).value / roofs.bytes_per_second["memory"]
    return Line(_state(one, ours), ours.name, "copy", share, target.least, share >= target.least, time(ours).value)


def _saved(target: Saved, here: Sequence[Match]) -> list[Line]:
    found: dict[str, float] = {}
    for one in here:
        case, half = one.case.params, one.case.subject.dtype != "float32"
        x = 4 * prod(int(case[name]) for name in ("batch", "in_channels", "height", "width"))
        taps = int(case["kernel_size"]) ** 2 * int(case["out_channels"]) * int(case["in_channels"])
        weight = taps // int(case["groups"]) * (2 if half else 4)
        # A frozen weight has no gradient, so less is saved for it: it is none of ours.
        for row in one.ours(one.case.rows.values()):
            size = row.value("saved_bytes")
            if size is not None and at_least_as_accurate(one.accuracy(row), target.accuracy):
                found[row.name] = (size - weight) / x
    if not found:
        return []
    name = min(found, key=lambda name: found[name])
    return [Line("saved for backward", name, None, found[name], target.most, found[name] <= target.most)]


def _state(one: Match, *rows: Contender) -> str:
    return ", ".join([one.state, *dict.fromkeys(remark for row in rows for remark in remarks(row))])


def _reasons(target: SpeedUp | Bandwidth, records: Sequence[Record], excluded: Excluded) -> str | None:
    """Why those whom a promise names have no time in a graph: the first reason that was recorded."""
    named = target.rivals if isinstance(target, SpeedUp) else ()
    for name in named:
        why = excluded.get((target.place.operation, name, target.place.pass_))
        if why is not None:
            return f"{name} {why}"
    for record in records:
        wanted = record.implementation in named or record.role == "kernel"
        if (
            wanted
            and record.status != "measured"
            and record.launch == "graph"
            and target.place.answers(record.identity, record.case)
        ):
            return f"{record.implementation}: {record.failure or record.status}: {record.reason}"
    return None
