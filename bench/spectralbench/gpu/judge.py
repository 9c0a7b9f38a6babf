"""Each promise against what was measured: met, not met, or not measured and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from spectralbench.ceilings import Roofs
from spectralbench.gpu.classes import accuracy_class, at_least_as_accurate
from spectralbench.gpu.compare import Contestant, Setting, median
from spectralbench.gpu.plan import Excluded
from spectralbench.gpu.targets import TARGETS, Bandwidth, Place, Saved, SpeedUp, Target
from spectralbench.record import Record
from spectralkernels.declare import Operation

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
    settings: Sequence[Setting],
    records: Sequence[Record],
    roofs: Roofs | None,
    operations: Mapping[str, Operation],
    excluded: Excluded,
    targets: Sequence[Target] = TARGETS,
) -> list[Judgement]:
    """One verdict per promise, in their order; only CUDA graphs count for times."""
    verdicts = []
    for target in targets:
        if isinstance(target, Saved):
            lines, why = _saved(target, records, operations)
        else:
            lines, why = [], "no time in a CUDA graph is stored"
            for setting in settings:
                if setting.question.launch == "graph" and target.place.answers(setting.question, setting.params):
                    line, missing = (
                        _speed_up(target, setting)
                        if isinstance(target, SpeedUp)
                        else _bandwidth(target, setting, records, roofs)
                    )
                    lines += [line] if line else []
                    why = missing or why
            why = _reasons(target, records, excluded) or why
        word: Word = "not measured" if not lines else "met" if all(line.met for line in lines) else "not met"
        verdicts.append(Judgement(target, word, tuple(lines), None if lines else why))
    return verdicts


def _speed_up(target: SpeedUp, setting: Setting) -> tuple[Line | None, str | None]:
    rivals = [
        found
        for name in target.rivals
        if (found := setting.subject(name)) is not None and at_least_as_accurate(found.accuracy, target.accuracy)
    ]
    if not rivals:
        return None, f"none of {', '.join(target.rivals)} was timed"
    rival = min(rivals, key=lambda found: found.seconds)
    ours = setting.best_of_ours(rival.accuracy)
    if ours is None:
        return None, f"none of our kernels of class {rival.accuracy} or finer was timed"
    ratio = rival.times(ours)
    met = ratio >= target.least
    return Line(_state(setting, ours, rival), ours.name, rival.name, ratio, target.least, met, ours.seconds), None


def _bandwidth(
    target: Bandwidth, setting: Setting, records: Sequence[Record], roofs: Roofs | None
) -> tuple[Line | None, str | None]:
    ours = setting.best_of_ours("fp32")
    if ours is None or setting.cost is None:
        return None, "none of our kernels was timed"
    if roofs is None:
        return None, "the copy bandwidth was not measured"
    asked = setting.question
    stored = [
        size
        for record in records
        if record.implementation == ours.name
        and (record.operation, record.case_id, record.dtype) == (asked.operation, asked.case, asked.dtype)
        and (size := median(record, "stored_bytes")) is not None
    ]
    if not stored:
        return None, f"the stored bytes of {ours.name} were not measured"
    share = (setting.cost.bytes_read + stored[0]) / ours.seconds / roofs.bytes_per_second["memory"]
    met = share >= target.least
    return Line(_state(setting, ours), ours.name, "copy", share, target.least, met, ours.seconds), None


def _saved(
    target: Saved, records: Sequence[Record], operations: Mapping[str, Operation]
) -> tuple[list[Line], str | None]:
    found: dict[str, float] = {}
    for record in records:
        if record.role != "kernel" or not _of(target.place, record) or record.operation not in operations:
            continue
        # A frozen weight has no gradient, so less is saved for it.
        if operations[record.operation].subject(record.implementation).frozen:
            continue
        size = median(record, "saved_bytes")
        accuracy = accuracy_class(operations[record.operation], record.implementation, record.dtype)
        if size is not None and at_least_as_accurate(accuracy, target.accuracy):
            case = record.case
            taps = int(case["kernel_size"]) ** 2 * int(case["out_channels"]) * int(case["in_channels"])
            weight = taps // int(case["groups"]) * (4 if record.dtype == "float32" else 2)
            x = 4 * prod(int(case[name]) for name in ("batch", "in_channels", "height", "width"))
            found[record.implementation] = (size - weight) / x
    if not found:
        return [], "no saved bytes of our kernels are stored"
    name = min(found, key=lambda name: found[name])
    return [Line("saved for backward", name, None, found[name], target.most, found[name] <= target.most)], None


def _of(place: Place, record: Record) -> bool:
    return place.answers(record.identity, record.case)


def _state(setting: Setting, *subjects: Contestant) -> str:
    remarks = ["not interleaved"] if any(found.alone for found in subjects) else []
    remarks += dict.fromkeys(mark.replace("_", "-") for found in subjects for mark in found.remarks)
    return ", ".join([setting.state, *remarks])


def _reasons(target: SpeedUp | Bandwidth, records: Sequence[Record], excluded: Excluded) -> str | None:
    """Why those whom a promise names have no time in a graph: the first reason that was recorded."""
    named = target.rivals if isinstance(target, SpeedUp) else ()
    for name in named:
        why = excluded.get((target.place.operation, name, target.place.pass_))
        if why is not None:
            return f"{name} {why}"
    for record in records:
        wanted = record.implementation in named or record.role == "kernel"
        if wanted and record.status != "measured" and record.launch == "graph" and _of(target.place, record):
            return f"{record.implementation}: {record.failure or record.status}: {record.reason}"
    return None
