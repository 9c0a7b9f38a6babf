"""The metrics: one file each, found by walking this folder for its `METRIC`, which holds all of its facts.

Readers of records take the facts from here on machines without torch, so that a metric's file imports what it measures
with inside the function that measures.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from spectralbench.identity import NAMES, Conditions, Facts

if TYPE_CHECKING:
    from torch import Tensor

    from spectralkernels.declare import Case, Implementation, Operation, Pass


class Unavailable(Exception):
    """Why a metric has no number here."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One implementation that answered one case rightly; the only object that carries tensors, and it dies in the core.

    inputs: the operation's keywords. run: one call of the measured pass, its answer returned and not kept.
    forward: one forward pass that records for a backward pass; None where there is nothing to differentiate.
    output: the answer to the last timed call. dense: the same as one tensor. expected: the right answer in float64, of
    the same shape (see `Operation.reference_of`). ideal: computes the uncompressed float64 answer once per case, or
    None where the operation loses nothing. times: seconds per call, if timed.
    """

    operation: Operation
    case: Case
    implementation: Implementation
    device: str
    pass_: Pass
    inputs: Mapping[str, Any]
    run: Callable[[], object]
    forward: Callable[[], Any] | None
    output: Any
    dense: Tensor
    expected: Tensor
    ideal: Callable[[], Tensor | None]
    times: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a metric is judged.

    practical: smallest relative change worth a person's time. exact: there is no noise. fact: not a cost, so that a
    change in either direction is a regression. pinned: somebody expects the number as it is, so that a change for the
    better fails too, until the rule is taken back. host: a slow host moves it, so that baselines are its controls.
    error: of the answer, so that a shorter time may have been bought with it.
    """

    practical: float
    exact: bool = False
    fact: bool = False
    host: bool = False
    pinned: bool = False
    error: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """How figures show a metric: what its axis says, before the unit, and its scale."""

    words: str
    scale: Literal["log", "percent"]


@dataclass(frozen=True, slots=True)
class Column:
    """Where tables of `run` show a metric: by place; of several with one title, the first that was taken."""

    title: str
    place: int


@dataclass(frozen=True, slots=True)
class Metric:
    """One kind of number and all that is known of it: SI unit, smaller is better.

    `sample` returns one or more finite values, or raises Unavailable with the reason why there are none. `version`
    rises only when the meaning of the number changes. moved_by: the conditions (fields of `identity.Conditions`) that
    can move it: points that agree in them are one segment of its history. devices: where it is taken without being
    asked for by name. models: whether it is taken of whole models, whatever the device. per_process: whether every
    process has a value of its own, as of a time; any other belongs to the case. asv: whether asv follows it for an
    operation, known without running anything; None where it never does. rented: the phase in which a rented machine
    takes it, whose minutes are few: with the times, by the allocator or by the driver; None where it never does.
    """

    name: str
    unit: str
    version: int
    sample: Callable[[Trial], Sequence[float]]
    rule: Rule
    moved_by: tuple[str, ...]
    axis: Axis
    column: Column | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    models: bool = False
    per_process: bool = False
    asv: Callable[[Operation], bool] | None = None
    rented: Literal["timed", "allocator", "driver"] | None = None


@cache
def load_metrics() -> dict[str, Metric]:
    """Every metric by name; adding a file adds it everywhere, deleting the file removes it everywhere."""
    found = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        metric: Metric = module.METRIC
        found[metric.name] = metric
    return found


@cache
def moving(name: str, conditions: Conditions) -> Facts:
    """The known conditions that can move a metric: points that agree in them are one segment of its series.

    A metric that records hold and no file declares any more may be moved by all of them.
    """
    metric = load_metrics().get(name)
    return conditions.known(NAMES if metric is None else metric.moved_by)


def columns() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Titles of columns in order, each with the metrics that fill it, the first that was taken."""
    placed = sorted(
        (metric.column.place, metric.name, metric.column.title) for metric in load_metrics().values() if metric.column
    )
    found: dict[str, list[str]] = {}
    for _, name, title in placed:
        found.setdefault(title, []).append(name)
    return tuple((title, tuple(names)) for title, names in found.items())


def observed(name: str, *, rivals: bool = False) -> Callable[[Trial], list[float]]:
    """The sample of a metric that is one of the facts which an operation observes in its answer.

    rivals: whether it is theirs too, although they compute another answer.
    """

    def sample(trial: Trial) -> list[float]:
        if not rivals and trial.implementation in trial.operation.rivals:
            raise Unavailable("a rival computes another answer")
        facts = trial.operation.observe(trial.case, trial.output)
        if name not in facts:
            raise Unavailable(f"{trial.operation.name} does not report it")
        return [float(facts[name])]

    return sample


def of_a_threshold(operation: Operation) -> bool:
    """Whether asv's cases of an operation have a threshold, so that what is kept is no plain fact of the case."""
    return any("beta" in block.axes for _, block in operation.cases("asv"))
