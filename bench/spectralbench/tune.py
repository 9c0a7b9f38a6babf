"""Search the tiles of a case's kernels by measurement, and keep the winners in the table that launches read.

From the tile that a launch takes now, one field at a time is halved or doubled; every answer passes the gate, survivors
are timed interleaved with the present tile, and the search moves to the fastest until nothing is faster by `MARGIN`.
A kernel's tiles interact little across its launches, so that they are searched one after the other.

    kernels/spectralkernels/tuned/sm_90.json     {"schema": 1, "winners": {label: {"tile": ..., evidence}}}
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from spectralbench import calls
from spectralbench.clock import Clock
from spectralbench.collector import short_collections
from spectralbench.environment import measuring_flags
from spectralbench.failures import failure
from spectralbench.timing import Budget, time_interleaved
from spectralkernels.declare import Case, Implementation, Operation, Pass
from spectralkernels.tuning import SCHEMA, Choice, Fields, noted_choices, pinned

T = TypeVar("T")

MARGIN = 0.02
"""A tile must be faster than the present one by this share: less is noise, and the rule is easier to trust."""


@dataclass(frozen=True, slots=True)
class Winner:
    """The end of one search: the choice at its start, the fastest tile, and the seconds of both in one last race.

    refused: tiles that were wrong or failed, with the reason.
    """

    start: Choice
    tile: Fields
    seconds: float
    start_seconds: float
    tried: int
    refused: Mapping[str, str]

    @property
    def better(self) -> bool:
        return dict(self.tile) != dict(self.start.tile)


def tune_case(
    operation: Operation,
    case: Case,
    implementation: Implementation,
    pass_: Pass,
    *,
    device: str,
    clock: Clock,
    budget: Budget = Budget(min_rounds=7, max_rounds=30, seconds=1.0),  # noqa: B008 - frozen
    skip: Collection[str] = (),
) -> Iterator[Winner]:
    """Search the tiles of one implementation on one case.

    skip: labels that need no search. Yields: a winner for every other label, as soon as its search ends.
    Raises: Unsupported if the implementation does not serve the case; ValueError if it is wrong to begin with.
    """
    inputs = operation.make_inputs(case, device)
    with measuring_flags(), torch.set_grad_enabled(pass_ != "forward"), short_collections():
        question = calls.ask(operation, case, device, pass_, inputs)
        search = _Search(question, implementation, clock, budget)
        with noted_choices() as choices:
            wrong = calls.verify(question, search.bound)
        if wrong is not None:
            raise ValueError(f"{implementation.name} is wrong before its tiles are tuned: {wrong}")
        for label, choice in choices.items():
            if label not in skip:
                yield search.climb(choice)


class _Search:
    """One implementation on one question, under different pins."""

    def __init__(self, question: calls.Question, implementation: Implementation, clock: Clock, budget: Budget) -> None:
        self.question = question
        self.bound = calls.bind(question, implementation)
        self.clock = clock
        self.budget = budget

    def climb(self, start: Choice) -> Winner:
        """Move to the fastest neighbour until none is faster by MARGIN; then race the end against the start."""
        seen, refused = {_name(start.tile)}, dict[str, str]()
        here = start
        while True:
            steps = [tile for tile in here.neighbours() if _name(tile) not in seen]
            seen.update(map(_name, steps))
            right = [tile for tile in steps if self._right(start.label, tile, refused)]
            times = self._race(start.label, [here.tile, *right], refused)
            best = self._faster(times, here.tile)
            if best is None:
                break
            here = replace(here, tile=best)
        times = self._race(start.label, [start.tile, here.tile] if here is not start else [start.tile], refused)
        end = self._faster(times, start.tile) or start.tile
        seconds = times.get(_name(end), math.nan)
        return Winner(start, end, seconds, times.get(_name(start.tile), math.nan), len(seen), refused)

    def _faster(self, times: Mapping[str, float], than: Fields) -> dict[str, int] | None:
        """The fastest tile of a race if it beats `than` by MARGIN, else None."""
        best = min(times, key=lambda name: times[name], default=None)
        if best is None or not times[best] < (1.0 - MARGIN) * times.get(_name(than), math.inf):
            return None
        found: dict[str, int] = json.loads(best)
        return found

    def _right(self, label: str, tile: Fields, refused: dict[str, str]) -> bool:
        with pinned({label: tile}):
            wrong = _guarded(tile, refused, partial(calls.verify, self.question, self.bound))
        if wrong is not None:
            refused[_name(tile)] = wrong
        return _name(tile) not in refused

    def _race(self, label: str, tiles: list[Fields], refused: dict[str, str]) -> dict[str, float]:
        def run(tile: Fields) -> calls.Run:
            def call() -> Any:
                with pinned({label: tile}):
                    return self.bound.run.call()

            return calls.Run(_name(tile), call)

        def guard(racing: calls.Run, step: Callable[[], float]) -> float | None:
            return _guarded(json.loads(racing.name), refused, step)

        found = time_interleaved([run(tile) for tile in tiles], self.clock, self.budget, self.question.case.seed, guard)
        return {name: statistics.median(samples) for name, samples in found.items()}


def _guarded(tile: Fields, refused: dict[str, str], step: Callable[[], T]) -> T | None:
    """What a step gives; a tile that does not compile or launch is refused with the reason."""
    try:
        return step()
    except Exception as error:
        refused[_name(tile)] = failure(error).error
        return None


def _name(tile: Fields) -> str:
    return json.dumps(dict(tile), sort_keys=True)


def store(path: Path, winners: Mapping[str, Winner], evidence: Mapping[str, Any]) -> None:
    """Add the winners that beat their start to a table, with what a reader needs to judge them.

    path: `sm_<capability>.json`, made if missing. evidence: commit, gpu, triton, case and the like, stored with each.
    """
    table: dict[str, Any] = {"schema": SCHEMA, "winners": {}}
    if path.is_file():
        table = json.loads(path.read_text(encoding="utf-8"))
    for label, winner in winners.items():
        if winner.better:
            table["winners"][label] = {
                "tile": dict(winner.tile),
                "seconds": winner.seconds,
                "instead_of": dict(winner.start.tile),
                "instead_of_seconds": winner.start_seconds,
                "tried": winner.tried,
                **evidence,
            }
    table["winners"] = dict(sorted(table["winners"].items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
