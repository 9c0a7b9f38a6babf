"""When, in which order and how often to ask the clock: interleaved rounds with an adaptive stop."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spectralbench.calls import Run
from spectralbench.clock import Clock, no_garbage_collection
from spectralbench.outcome import Measurement
from spectralkernels.errors import RangeError


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop timing a case.

    After `min_rounds`, stop once every implementation's median is known to `target`, or after `max_rounds`, or once the
    case has taken `seconds` of the clock, all implementations together. The minimum is kept, however long it takes.
    How well a median is known is estimated by

        (q75 - q25) / (median * sqrt(rounds)),

    which for normal noise is 1.08 standard errors of the median, and which no single outlier can spoil.
    """

    min_rounds: int = 5
    max_rounds: int = 200
    target: float = 0.01
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_rounds <= self.max_rounds:
            raise RangeError(f"a budget needs 1 <= min_rounds <= max_rounds, got {self.min_rounds}, {self.max_rounds}")


def relative_uncertainty(samples: Sequence[float]) -> float:
    """How well the median of `samples` is known, relative to it (see Budget); inf for a median of zero."""
    found = Measurement("", 1, "", tuple(samples))
    lower, upper = found.quartiles
    return (upper - lower) / (found.median * len(samples) ** 0.5) if found.median > 0 else float("inf")


def time_interleaved(
    runs: Sequence[Run],
    clock: Clock,
    budget: Budget,
    seed: int,
    guard: Callable[[Run, Callable[[], float]], float | None],
) -> dict[str, tuple[float, ...]]:
    """Seconds per call of every run, one sample a round, in an order that is shuffled anew for each round.

    guard(run, step): performs a step of one run; None drops the run from the race. Calibration warms every run up
    first; the cyclic garbage collector is off while the rounds last.
    Returns: samples by name, equally many each, of the runs that were never dropped.
    """
    racing = {run.name: run for run in runs}
    numbers: dict[str, int] = {}
    times: dict[str, list[float]] = {run.name: [] for run in runs}

    def drop_unless(run: Run, value: float | None) -> float | None:
        if value is None:
            racing.pop(run.name)
            # Its answer and the graph behind it would stay in memory for the rest of the case.
            run.latest = None
        return value

    for run in runs:
        number = drop_unless(run, guard(run, lambda run=run: clock.calibrate(run)))  # type: ignore[misc]
        if number is not None:
            numbers[run.name] = int(number)

    shuffler = random.Random(seed)
    with no_garbage_collection():
        begin = clock.now()
        for round_number in range(1, budget.max_rounds + 1):
            order = list(racing.values())
            shuffler.shuffle(order)
            for run in order:
                sample = drop_unless(run, guard(run, lambda run=run: clock.time(run, numbers[run.name])))  # type: ignore[misc]
                if sample is not None:
                    times[run.name].append(sample)
            if not racing:
                break
            if round_number >= budget.min_rounds and (
                clock.now() - begin >= budget.seconds
                or all(relative_uncertainty(times[name]) <= budget.target for name in racing)
            ):
                break
    return {name: tuple(times[name]) for name in racing}
