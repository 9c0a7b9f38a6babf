"""Who looks on while implementations are timed: exchanges the inputs between rounds, checks answers between samples.

The gate sees the first two calls. A fault may need more of them: an old buffer handed out again, an answer that is
wrong now and then, an input that is written to late, work that is put off once nobody looks.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

from spectralbench import calls
from spectralbench.exchange import SIDES, Side
from spectralbench.outcome import Failed, Outcome


class Ended(Exception):
    """A step that ends in an outcome of its own."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Referee:
    """Of a race between implementations that have passed the gate; see `timing.Onlooker`.

    subjects: by name of the run, which is that of the implementation.
    """

    def __init__(self, subjects: Mapping[str, tuple[calls.Question, calls.Bound]]) -> None:
        self.subjects = subjects
        self.samples = Counter[str]()
        self.unchecked: set[str] = set()

    def before_round(self, chance: random.Random) -> None:
        """Put one of the two input sets into the memory of the inputs."""
        self._put(chance.choice(SIDES))

    def after(self, run: calls.Run, timed: bool) -> None:
        """The inputs must be as they were, before the next implementation reads them."""
        self.samples[run.name] += timed
        self.unchecked.add(run.name)
        self._right(calls.written(self.subjects[run.name][0]), run.name)

    def inspect(self, run: calls.Run) -> None:
        """The answer timed in this round must be right, and one more call, after that answer has been spoiled."""
        self.last(run)
        timed = run.latest
        self.again(run)
        # A replayed graph writes where its captured calls did, not where this last one has.
        run.latest = timed

    def last(self, run: calls.Run) -> None:
        """The answer timed in this round must be right, if it has not been checked."""
        if run.name in self.unchecked:
            self.unchecked.remove(run.name)
            self._right(calls.fault(*self.subjects[run.name]), run.name)

    def again(self, run: calls.Run) -> None:
        """One more call must be right, whatever the previous answer's memory holds, and leave the inputs alone."""
        question, bound = self.subjects[run.name]
        calls.spoil(question, bound)
        self._right(calls.call(question, bound), run.name)

    def close(self, run: calls.Run) -> None:
        """The same on the first input set; the answer stays, for metrics to weigh."""
        self._put(0)
        self.again(run)

    def leave(self) -> None:
        """Put the first input set back."""
        self._put(0)

    def _put(self, side: Side) -> None:
        for question, _ in self.subjects.values():
            question.exchange.put(side)

    def _right(self, wrong: str | None, name: str) -> None:
        if wrong is not None:
            count = self.samples[name]
            raise Ended(Failed("wrong", f"after {count} timed {'sample' if count == 1 else 'samples'}: {wrong}"))
