"""Judge what `impl="auto"` takes by what was measured: the time of its choice over that of the fastest equal.

Equals answer the same question as exactly: implementations of the operation (rivals have another answer) that take the
inputs as they are, no coarser than the operation's own tolerance. What is prepared outside the clock is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectralbench import overrides
from spectralbench.history import History, Series, ratio
from spectralbench.identity import Identity
from spectralbench.text import cell, table
from spectralkernels.declare import Case, Implementation, Operation
from spectralkernels.errors import RangeError, SpectralKernelsError

METRIC = "device_time"
NOTABLE = 1.1
SHOWN = 3
LARGEST_BYTES = 4 << 30
"""Read and written by a case whose inputs are made again only to ask what auto would take."""


@dataclass(frozen=True, slots=True)
class JudgedChoice:
    """One case in one pass: what auto takes and why, the fastest equal, and the seconds of both.

    significant: the choice is shown to be slower than the fastest, process by process, however many equals there are.
    """

    operation: str
    case: str
    dtype: str
    pass_: str
    chosen: str
    because: str
    seconds: float
    fastest: str
    fastest_seconds: float
    significant: bool = True

    @property
    def regret(self) -> float:
        """How many times longer the choice takes than the fastest; 1 is the best."""
        return self.seconds / self.fastest_seconds


def judged_choices(
    history: History,
    machine: str,
    operations: Mapping[str, Operation],
    device: str,
    refused: list[str] | None = None,
) -> Iterator[JudgedChoice]:
    """A choice for every case of the machine whose choice was measured beside at least one equal.

    Times are taken from the newest point of the choice and of whoever was measured at the same commit in the same
    conditions.
    refused: takes the cases whose inputs cannot be made again, each with the reason.
    """
    asked: dict[Identity, list[Series]] = {}
    for series in history.series:
        subject = series.key.subject
        if (subject.machine, subject.via, series.key.metric) == (machine, "records", METRIC):
            asked.setdefault(subject.question, []).append(series)
    for question, found in asked.items():
        name, text, dtype, pass_ = question.operation, question.case, question.dtype, question.pass_
        if name not in operations:
            continue
        operation = operations[name]
        case = Case(name, tuple(found[0].params.items()), dtype, question.seed)
        try:
            _check(operation, case)
            inputs = operation.make_inputs(case, device)
        except SpectralKernelsError as error:
            if refused is not None:
                refused.append(f"{name}[{text}]: {error}")
            continue
        decision = operation.auto(**inputs)
        by_name = {series.key.subject.implementation: series.newest for series in found}
        if decision.name not in by_name:
            continue
        chosen = by_name[decision.name]
        seconds = {
            implementation.name: by_name[implementation.name].value
            for implementation in operation.implementations
            if implementation.name in by_name
            and by_name[implementation.name].commit == chosen.commit
            and by_name[implementation.name].environment == chosen.environment
            and (implementation.name == decision.name or equal(operation, implementation, dtype, inputs))
        }
        if len(seconds) > 1:
            fastest = min(seconds, key=lambda known: seconds[known])
            # The fastest of many is the luckiest one: the level is shared among them.
            apart = ratio(by_name[decision.name], by_name[fastest], level=0.05 / (len(seconds) - 1))
            yield JudgedChoice(
                name,
                text,
                dtype,
                pass_,
                decision.name,
                decision.because,
                seconds[decision.name],
                fastest,
                seconds[fastest],
                apart is not None and apart.significant,
            )


def _check(operation: Operation, case: Case) -> None:
    """RangeError unless a stored case has the parameters that the operation declares, in sizes that fit here."""
    declared: dict[str, set[type]] = {}
    for profile in operation.profiles:
        for name, values in overrides.parameters(operation, profile).items():
            declared.setdefault(name, set()).update(map(type, values))
    for name, value in case.params:
        if type(value) not in declared.get(name, ()):
            raise RangeError(f"{operation.name} has no parameter {name!r} that can be {value!r}")
        if type(value) is int and not 0 < value <= LARGEST_BYTES:
            raise RangeError(f"{name} must be positive and no larger than memory, got {value}")
    if missing := min(({*block.axes} for blocks in operation.profiles.values() for block in blocks), key=len) - {
        name for name, _ in case.params
    }:
        raise RangeError(f"{operation.name} needs the parameter {min(missing)!r}")
    if (size := operation.cost(case).bytes) > LARGEST_BYTES:
        raise RangeError(f"its {size >> 30} GiB are more than the {LARGEST_BYTES >> 30} GiB that are made again")


def equal(operation: Operation, implementation: Implementation, dtype: str, inputs: dict[str, Any]) -> bool:
    """Whether an implementation answers as exactly as the operation asks, from the inputs as they are."""
    tolerance = implementation.tolerance or operation.tolerance
    exact = tolerance.relative.get(dtype, float("inf")) <= operation.tolerance.relative[dtype]
    return exact and implementation.prepare is None and implementation.supports(**inputs) is None


def as_markdown(found: Mapping[str, Sequence[JudgedChoice]], here: str) -> str:
    """The evidence as a page: for every machine a summary per operation, then the cases that cost most.

    found: by machine. here: the machine on which auto was asked.
    """
    lines = [
        '# What `impl="auto"` takes, and what that costs',
        "",
        "Regret is the time of the choice over that of the fastest implementation of the same accuracy that takes the",
        "same inputs, both timed interleaved in the same processes; 1 is the best.",
        "Written by `spectralbench choices` from the records. `sk.explain` gives the reason for any call.",
    ]
    for machine, choices_there in found.items():
        lines += ["", f"## {machine}", ""]
        if machine != here:
            lines += [f"Its times, and what auto takes on `{here}`.", ""]
        lines += _section(choices_there)
    return "\n".join(lines) + "\n"


def _section(found: Sequence[JudgedChoice]) -> Iterator[str]:
    """The lines of one machine."""
    by_operation: dict[str, list[JudgedChoice]] = {}
    for choice in sorted(found, key=lambda choice: choice.operation):
        by_operation.setdefault(choice.operation, []).append(choice)
    rows: list[tuple[str, ...]] = []
    for name, own in by_operation.items():
        best = sum(choice.chosen == choice.fastest for choice in own)
        median = statistics.median(choice.regret for choice in own)
        worst = max(choice.regret for choice in own)
        slower = sum(one.significant for one in own)
        rows.append((name, str(len(own)), str(best), f"{median:.2f}", f"{worst:.2f}", str(slower)))
    heads = ("operation", "cases", "takes the fastest", "median regret", "largest", "shown slower")
    yield from table(heads, rows, range(1, 6))
    missed = [choice for choice in found if choice.significant and choice.regret >= NOTABLE]
    told = f"Cases shown to be slower, with a regret of {NOTABLE:g} and more: {len(missed)} of {len(found)}."
    yield ""
    if not missed:
        yield told
        return
    yield f"{told} The largest {SHOWN} of each operation:"
    yield ""
    costly = ("operation", "case", "pass", "chosen", "fastest", "regret", "why it is chosen")
    yield from table(costly, _costly(by_operation.values()), {5})


def _costly(found: Iterable[Sequence[JudgedChoice]]) -> Iterator[list[str]]:
    """A row for each of the largest regrets of every operation."""
    for own in found:
        for one in sorted(
            (one for one in own if one.significant and one.regret >= NOTABLE), key=lambda one: -one.regret
        )[:SHOWN]:
            names = (one.operation, one.case.replace(",", " "), one.pass_, one.chosen, one.fastest)
            yield [cell(text) for text in (*names, f"{one.regret:.2f}", one.because)]
