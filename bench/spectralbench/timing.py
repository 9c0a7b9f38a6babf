"""When, in which order and how often to ask the clock: interleaved rounds with an adaptive stop.

Rounds are their own warm-up: leading rounds in which a run had not yet reached its level are thrown away for all, and
do not count towards the minimum. A referee looks on between samples, never inside one.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from spectralbench.calls import Run
from spectralbench.clock import Clock
from spectralbench.collector import no_garbage_collection
from spectralbench.during import Watch
from spectralbench.outcome import Measurement
from spectralkernels.errors import RangeError


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop timing a case.

    After `min_rounds` that are no warm-up (see `warm_up`), stop once every implementation's median is known to
    `target`, or after `max_rounds`, or once the case has taken `seconds` of the clock, all implementations together.
    The minimum is kept, however long it takes; if some run has no level yet, up to `PATIENCE` times the minimum.
    How well a median is known is estimated by

        (q75 - q25) / (median * sqrt(rounds)),

    which for normal noise is 1.08 standard errors of the median, and which no single outlier can spoil. A run that is
    still getting faster, by twice the target from the median of its first half to that of its second, is not known.
    """

    min_rounds: int = 5
    max_rounds: int = 200
    target: float = 0.01
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_rounds <= self.max_rounds:
            raise RangeError(f"a budget needs 1 <= min_rounds <= max_rounds, got {self.min_rounds}, {self.max_rounds}")


PATIENCE = 3
WARM = 1.1
"""A sample is warm-up if it is slower than what follows by more than this factor."""


class Onlooker(Protocol):
    """Who looks on while runs are timed; what it does is in no sample. Each method may raise, which drops the run."""

    def before_round(self, chance: random.Random) -> None:
        """Set the stage for a round."""

    def after(self, run: Run, timed: bool) -> None:
        """Look at what a sample, or a calibration, left behind."""

    def inspect(self, run: Run) -> None:
        """Check the answer timed in this round, and one more call."""

    def last(self, run: Run) -> None:
        """Check the answer timed in this round, if that was not done."""

    def again(self, run: Run) -> None:
        """Check one more call."""

    def close(self, run: Run) -> None:
        """Check one more call, the last of all."""


INSPECTIONS = 45
"""Of an implementation that is wrong in one call of ten, 45 answers show it with 99 % certainty."""
INSPECTED_SHARE = 0.25
"""Inspections may take this share of the time since the first round, so that slow cases stay affordable."""


def relative_uncertainty(samples: Sequence[float]) -> float:
    """How well the median of `samples` is known, relative to it (see Budget); inf for a median of zero."""
    found = Measurement("", 1, "", tuple(samples))
    lower, upper = found.quartiles
    return (upper - lower) / (found.median * len(samples) ** 0.5) if found.median > 0 else float("inf")


def warm_up(samples: Sequence[float]) -> int:
    """How many leading samples are warm-up: the most that are all slower, by `WARM`, than the median of the rest.

    Noise has no direction in time and a time has a floor, so a late sample far below all before it says that those were
    slow, not that it was lucky; more samples decide, because the rest is judged by its median.
    """
    least = float("inf")
    found = 0
    for number in range(1, len(samples)):
        least = min(least, samples[number - 1])
        # No median of the rest is below the least of all: a prefix longer than this one cannot do.
        if least <= WARM * min(samples):
            break
        if least > WARM * statistics.median(samples[number:]):
            found = number
    return found


def unknown(samples: Sequence[float], target: float) -> str | None:
    """Why the median of `samples` is not known to `target` (see Budget), or None."""
    uncertainty = relative_uncertainty(samples)
    if not uncertainty <= target:
        return f"the median is known to {uncertainty:.2g} of itself, asked was {target:.2g}"
    half = len(samples) // 2
    if half:
        gain = statistics.median(samples[:half]) / statistics.median(samples[half:]) - 1
        if gain > 2 * target:
            return f"the second half of the samples is {gain:.2g} faster than the first, so there is no level yet"
    return None


def time_interleaved(
    runs: Sequence[Run],
    clock: Clock,
    budget: Budget,
    seed: int,
    guard: Callable[[Run, Callable[[], float]], float | None],
    referee: Onlooker | None = None,
    watch: Watch | None = None,
) -> dict[str, tuple[float, ...]]:
    """Seconds per call of every run, one sample a round, in an order that is shuffled anew for each round.

    guard(run, step): performs a step of one run; None drops the run from the race. Calibration warms every run up
    first; the cyclic garbage collector is off while the rounds last. referee: inspects answers at random rounds, and
    until there were `INSPECTIONS`, as far as `INSPECTED_SHARE` lets it; at least once each, at the end. watch: says
    after each round whether the machine was slowed down: it is thrown away, unless too few others were to be had.
    Returns: samples by name, equally many each and of the same rounds, of the runs that were never dropped.
    """
    race = _Rounds(runs, clock, budget, seed, guard, referee, watch or Watch())
    return race.run()


class _Rounds:
    """A race under way: who is still in it, and the samples so far."""

    def __init__(
        self,
        runs: Sequence[Run],
        clock: Clock,
        budget: Budget,
        seed: int,
        guard: Callable[[Run, Callable[[], float]], float | None],
        referee: Onlooker | None,
        watch: Watch,
    ) -> None:
        self.watch = watch
        self.slowed: list[bool] = []
        self.racing = {run.name: run for run in runs}
        self.clock = clock
        self.budget = budget
        self.guard = guard
        self.referee = referee
        self.chance = random.Random(seed)
        self.times: dict[str, list[float]] = {run.name: [] for run in runs}
        self.inspections = Counter[str]()
        self.inspecting = 0.0
        self.begin = 0.0

    def run(self) -> dict[str, tuple[float, ...]]:
        numbers: dict[str, int] = {}
        for run in list(self.racing.values()):
            calibrate = partial(self.clock.calibrate, run)
            number = self._step(run, partial(self._watched, run, calibrate, timed=False))
            if number is not None:
                numbers[run.name] = int(number)
        with no_garbage_collection():
            self.begin = self.clock.now()
            self.watch.begin()
            for round_number in range(1, self.budget.max_rounds + 1):
                if self.referee is not None:
                    self.referee.before_round(self.chance)
                for run in self._shuffled():
                    work = partial(self.clock.time, run, numbers[run.name])
                    sample = self._step(run, partial(self._watched, run, work, timed=True))
                    if sample is not None:
                        self.times[run.name].append(sample)
                        if self.referee is not None and self.chance.random() < 0.5:
                            self._inspect(run, self.referee.inspect)
                self.slowed.append(self.watch.slowed())
                if not self.racing or self._enough(round_number):
                    break
            if self.referee is not None:
                self._close(self.referee)
        return self._settled()

    def _step(self, run: Run, step: Callable[[], float]) -> float | None:
        value = self.guard(run, step)
        if value is None:
            self.racing.pop(run.name)
            # Its answer and the graph behind it would stay in memory for the rest of the case.
            run.latest = None
        return value

    def _shuffled(self) -> list[Run]:
        order = list(self.racing.values())
        self.chance.shuffle(order)
        return order

    def _watched(self, run: Run, work: Callable[[], float], timed: bool) -> float:
        try:
            return work()
        finally:
            # Also when it raised: the next run must find its inputs.
            if self.referee is not None:
                self.referee.after(run, timed)

    def _inspect(self, run: Run, how: Callable[[Run], None]) -> bool:
        """Whether there was an inspection: one is wanted and can be afforded."""
        before = self.clock.now()
        affordable = self.inspecting <= INSPECTED_SHARE * (before - self.begin)
        if self.inspections[run.name] >= INSPECTIONS or not affordable:
            return False
        self.inspections[run.name] += 1
        self._look(run, how)
        self.inspecting += self.clock.now() - before
        return True

    def _look(self, run: Run, how: Callable[[Run], None]) -> None:
        def step() -> float:
            how(run)
            return 0.0

        self._step(run, step)

    def _close(self, referee: Onlooker) -> None:
        for run in self._shuffled():
            self._look(run, referee.last)
        while any([self._inspect(run, referee.again) for run in self._shuffled()]):
            referee.before_round(self.chance)
        for run in self._shuffled():
            self._look(run, referee.close)

    def _enough(self, rounds: int) -> bool:
        least = self.budget.min_rounds
        times = [self._undisturbed(name) for name in self.racing]
        settled = [samples[warm_up(samples) :] for samples in times]
        if any(len(samples) < least for samples in settled) and rounds < PATIENCE * least:
            return False
        if rounds < least:
            return False
        spent = self.clock.now() - self.begin >= self.budget.seconds
        return spent or all(unknown(samples, self.budget.target) is None for samples in settled)

    def _undisturbed(self, name: str) -> list[float]:
        return [sample for sample, slowed in zip(self.times[name], self.slowed, strict=True) if not slowed]

    def _settled(self) -> dict[str, tuple[float, ...]]:
        """The rounds after everyone's warm-up, without those that were slowed down; the minimum stays in any case."""
        times = self.times
        if self.slowed.count(False) >= self.budget.min_rounds:
            times = {name: self._undisturbed(name) for name in self.racing}
            self.watch.thrown = self.slowed.count(True)
        rounds = max((len(times[name]) for name in self.racing), default=0)
        warming = max((warm_up(times[name]) for name in self.racing), default=0)
        first = min(warming, max(0, rounds - self.budget.min_rounds))
        return {name: tuple(times[name][first:]) for name in self.racing}
