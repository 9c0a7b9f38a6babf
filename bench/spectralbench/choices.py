"""Judge what `impl="auto"` takes by what was measured: the cost of its choice over that of the best equal.

What a cost is, its caller says where there is a choice (`optimise`): the time, or the bytes that are kept, for the
backward pass or, in a forward pass, as the answer. Equals answer the same question as exactly: implementations of the
operation (rivals have another answer) that take the inputs as they are, no coarser than the operation's own tolerance.
What is prepared outside the clock is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectralbench import overrides
from spectralbench.history import History, Point, Series, ratio
from spectralbench.identity import Identity
from spectralbench.text import cell, table
from spectralkernels.aims import AIMS
from spectralkernels.declare import Aim, Case, Implementation, Operation
from spectralkernels.errors import RangeError, SpectralKernelsError

METRICS: Mapping[tuple[Aim, bool], str] = {
    ("time", False): "device_time",
    ("time", True): "device_time",
    ("memory", False): "stored_bytes",
    ("memory", True): "saved_bytes",
}
"""What is judged, by what auto looks for and whether a backward pass follows."""
NOTABLE = 1.1
SHOWN = 3
LARGEST_BYTES = 4 << 30
"""Read and written by a case whose inputs are made again only to ask what auto would take."""


@dataclass(frozen=True, slots=True)
class JudgedChoice:
    """One case in one pass: what auto takes and why, the best equal, and what both cost, in seconds or bytes.

    significant: the choice is shown to cost more than the best, process by process, however many equals there are.
    aim: what auto was asked to look for. default: whether it looks for that unless it is told otherwise.
    """

    operation: str
    case: str
    dtype: str
    pass_: str
    chosen: str
    because: str
    cost: float
    best: str
    best_cost: float
    significant: bool = True
    aim: Aim = "time"
    default: bool = True

    @property
    def regret(self) -> float:
        """How many times more the choice costs than the best; 1 is the least."""
        return self.cost / self.best_cost


def judged_choices(
    history: History,
    machine: str,
    operations: Mapping[str, Operation],
    device: str,
    refused: list[str] | None = None,
) -> Iterator[JudgedChoice]:
    """A choice for every case of the machine and every aim, where it was measured beside at least one equal.

    Costs are taken from the newest point of the choice and of whoever was measured at the same commit in the same
    conditions.
    refused: takes the cases whose inputs cannot be made again, each with the reason.
    """
    asked: dict[Identity, list[Series]] = {}
    for series in history.series:
        subject = series.key.subject
        if (subject.machine, subject.via) == (machine, "records") and series.key.metric in METRICS.values():
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
        for place, aim in enumerate(operation.aims or AIMS[:1]):
            decision = operation.auto(**inputs, **({"optimise": aim} if operation.aims else {}))
            metric = METRICS[aim, pass_ != "forward"]
            newest = {one.key.subject.implementation: one.newest for one in found if one.key.metric == metric}
            costs = _costs(operation, decision.name, newest, dtype, inputs)
            if len(costs) < 2:
                continue
            best = min(costs, key=lambda known: (costs[known], known != decision.name))
            # The best of many is the luckiest one: the level is shared among them.
            apart = ratio(newest[decision.name], newest[best], level=0.05 / (len(costs) - 1))
            yield JudgedChoice(
                name,
                text,
                dtype,
                pass_,
                decision.name,
                decision.because,
                costs[decision.name],
                best,
                costs[best],
                apart is not None and apart.significant,
                aim,
                place == 0,
            )


def _costs(
    operation: Operation, chosen: str, newest: Mapping[str, Point], dtype: str, inputs: dict[str, Any]
) -> dict[str, float]:
    """What the choice and its equals cost at the newest commit of the choice, in the same conditions; {} without it."""
    if chosen not in newest or newest[chosen].value <= 0:
        return {}
    at = newest[chosen]
    return {
        one.name: newest[one.name].value
        for one in operation.implementations
        if one.name in newest
        and (newest[one.name].commit, newest[one.name].environment) == (at.commit, at.environment)
        and newest[one.name].value > 0
        and (one.name == chosen or equal(operation, one, dtype, inputs))
    }


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
    exact = operation.as_exact(implementation, dtype)
    return exact and implementation.prepare is None and implementation.supports(**inputs) is None


def as_markdown(found: Mapping[str, Sequence[JudgedChoice]], here: str) -> str:
    """The evidence as a page: for every machine a summary per operation, then the cases that cost most.

    found: by machine. here: the machine on which auto was asked.
    """
    lines = [
        '# What `impl="auto"` takes, and what that costs',
        "",
        "Regret is the cost of the choice over that of the cheapest implementation of the same accuracy that takes the",
        "same inputs, both measured interleaved in the same processes; 1 is the best. The cost is time; where a caller",
        "may ask for memory (`optimise`), also bytes kept: for the backward pass, or of the answer in a forward pass.",
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
    by_operation: dict[tuple[str, bool, Aim], list[JudgedChoice]] = {}
    for choice in sorted(found, key=lambda choice: (choice.operation, not choice.default)):
        by_operation.setdefault((choice.operation, choice.default, choice.aim), []).append(choice)
    rows: list[tuple[str, ...]] = []
    for (name, default, aim), own in by_operation.items():
        best = sum(choice.chosen == choice.best for choice in own)
        median = statistics.median(choice.regret for choice in own)
        worst = max(choice.regret for choice in own)
        slower = sum(one.significant for one in own)
        counted = aim if default else f"{aim}, if asked"
        rows.append((name, counted, str(len(own)), str(best), f"{median:.2f}", f"{worst:.2f}", str(slower)))
    heads = ("operation", "for", "cases", "takes the best", "median regret", "largest", "shown worse")
    yield from table(heads, rows, range(2, 7))
    missed = [choice for choice in found if choice.significant and choice.regret >= NOTABLE]
    told = f"Cases shown to cost more, with a regret of {NOTABLE:g} and more: {len(missed)} of {len(found)}."
    yield ""
    if not missed:
        yield told
        return
    yield f"{told} The largest {SHOWN} of each operation:"
    yield ""
    costly = ("operation", "case", "pass", "for", "chosen", "best", "regret", "why it is chosen")
    yield from table(costly, _costly(by_operation.values()), {6})


def _costly(found: Iterable[Sequence[JudgedChoice]]) -> Iterator[list[str]]:
    """A row for each of the largest regrets of every operation."""
    for own in found:
        for one in sorted(
            (one for one in own if one.significant and one.regret >= NOTABLE), key=lambda one: -one.regret
        )[:SHOWN]:
            names = (one.operation, one.case.replace(",", " "), one.pass_, one.aim, one.chosen, one.best)
            yield [cell(text) for text in (*names, f"{one.regret:.2f}", one.because)]
