"""The two stages that write records: timing, then memory, phase by phase until the stage's time is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from spectralbench import sweep
from spectralbench.gpu.budget import StageBudget, hard_stop
from spectralbench.gpu.plan import Excluded, Phase, select
from spectralbench.gpu.talk import say
from spectralbench.journal import Kept
from spectralbench.record import Record

LONGEST_CASE = 75.0
"""Seconds: thirty implementations in two states, some of them compiled here. One that hangs must not eat the lease."""
LONGEST_STEP = 30.0
"""Seconds: a call, a sample or a metric of one implementation, with the kernels it compiles. Who takes longer loses its
own place in the case, and the others go on."""
SHORTEST_PHASE = 10.0
"""Seconds that a phase must have left to be worth the start of a process."""

Say = Callable[[str], None]


class Failures:
    """A line for every failure as it happens."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def start(self, item: sweep.Item, done: int, total: int) -> None:
        """Nothing to say."""

    def finish(self, item: sweep.Item, records: Sequence[Record]) -> None:
        for record in records:
            if record.status == "failed":
                self._say(f"  failed: {item.label} {record.implementation}: {record.failure}: {record.reason}")


class Talk(Failures):
    """A line for every case, too."""

    def start(self, item: sweep.Item, done: int, total: int) -> None:
        self._say(f"  {done + 1}/{total} {item.label}: {len(item.implementations)} implementations")


def measure_phases(
    stage: str,
    phases: Sequence[Phase],
    request: sweep.Request,
    budget: StageBudget,
    out: Path,
    environment: Mapping[str, Any],
    excluded: Excluded,
    known: Kept,
    *,
    after: Callable[[], object] = lambda: None,
    run: Callable[..., sweep.Sweep] = sweep.run,
    say: Say = say,
) -> list[str]:
    """Run the phases in order while the stage has time; `after` is called after each.

    known: what `out` holds; it is not measured again, and what is stored now is added to it.
    Returns: what was left out, in words.
    Raises: RangeError, JournalError, WorkerBroken (see `sweep.run`); KeyboardInterrupt.
    """
    left_out = []
    for phase in phases:
        seconds = budget.left(stage)
        wanted = replace(
            request,
            metrics=phase.metrics,
            states=phase.states,
            processes=1,
            retry=("timeout",),  # on the next machine there may be more time for it
            timeout=max(1.0, min(LONGEST_CASE, seconds)),
            # torch.compile alone may take longer.
            patience=LONGEST_CASE if phase.compiled else LONGEST_STEP,
            time_budget=seconds,
            select=partial(select, phase, excluded),
        )
        waiting = sweep.preview(wanted, out, environment, known).left
        if not waiting:
            continue
        if seconds < SHORTEST_PHASE:
            left_out.append(f"{stage}: {phase.name}: {len(waiting)} cases not begun, no time left")
            continue
        say(f"{stage}: {phase.name}: {len(waiting)} cases, {seconds:.0f} s left")
        with hard_stop(seconds):
            run(wanted, out, environment, Talk(say), known)
        after()
        waiting = sweep.preview(wanted, out, environment, known).left
        if waiting:
            left_out.append(f"{stage}: {phase.name}: {len(waiting)} cases not reached")
    return left_out
