"""Two states of the kernels take turns: a process of each, both alive, of which one at a time measures a case.

A pair of fresh processes is the unit of a comparison. What a busy host does lasts for seconds, so the two sides measure
the same case one right after the other, AB or BA in turn, and start together while nobody measures.
`python -m spectralbench.turns` is one side: it writes the labels of its cases, and for every label that it reads it
measures that case, stores its records and says so. It ends with its standard input.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from spectralbench.record import Record, read_file, read_tree

METRICS = ("device_time", "rounding_error")
PATIENCE = 300.0
"""Seconds that a process may take to start, and for one case."""
LAPS = 2
"""How often a pair goes through its cases: its start takes longer than they do, and a busy second hits one lap."""
MOST_LAPS = 8
"""The same where there is time for it in every pair."""
USAGE = 2
"""How a side ends that was asked for what its state does not have."""
FIRST = 5
"""The first pair may measure for one part in so many of the time."""


class CompareError(Exception):
    """A state cannot be measured or read; the message says which and why."""


@dataclass(frozen=True, slots=True)
class RaceRequest:
    """What every process measures; the fields are those of `sweep.Request`.

    time_budget: seconds of all processes together. own_harness: whether a state is measured by the harness of its own
    commit, which then measures the whole sweep in one process, and the other side after it. cpu_time: whether one
    thread measures its CPU seconds, which a busy host moves less than the time of a wall clock.
    """

    operations: tuple[str, ...] = ()
    profile: str = "quick"
    implementations: tuple[str, ...] | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    launch: str = "eager"
    time_budget: float | None = None
    own_harness: bool = False
    cpu_time: bool = False


class Side:
    """One process of a state, which measures when it is told to."""

    def __init__(self, tree: Path, what: RaceRequest, stored: Path) -> None:
        self.tree, self.stored = tree, stored
        told = {name: getattr(what, name) for name in ("operations", "profile", "implementations", "overrides")}
        told |= {"launch": what.launch, "stored": str(stored), "cpu_time": what.cpu_time}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "spectralbench.turns", json.dumps(told)],
            env=_paths(tree, Path(__file__).parents[1]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stored.with_suffix(".log").open("w", encoding="utf-8"),
            text=True,
        )

    def cases(self) -> list[str]:
        """The labels of its cases, as soon as it has started."""
        labels: list[str] = json.loads(self._read("its start"))
        return labels

    def measure(self, label: str) -> None:
        """Measure that case; it is stored when this returns."""
        assert self.process.stdin is not None, "it has a pipe"
        try:
            self.process.stdin.write(json.dumps(label) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # how the process ended is said by what it did not answer
        self._read(label)

    def records(self) -> list[Record]:
        """All that it has stored."""
        return list(read_file(self.stored).records)

    def _read(self, at: str) -> str:
        assert self.process.stdout is not None, "it has a pipe"
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return line
        if not ready:
            raise CompareError(f"the kernels in {self.tree} gave no answer within {PATIENCE:g} s: {at}")
        code, log = self.process.wait(), self.stored.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
        if code == USAGE:
            raise CompareError(f"in {self.tree}: {log.strip().splitlines()[-1]}")
        raise CompareError(failure(self.tree, f"{at}: ended with {code}", log))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[[Path, RaceRequest, Path], Side]


def race(
    trees: Mapping[str, Path],
    what: RaceRequest,
    pairs: int,
    scratch: Path,
    say: Callable[[str], None],
    start: Start = Side,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, list[list[Record]]]:
    """Measure A and B in `pairs` pairs of processes, or as many as the time budget of `what` allows, two at least.

    Each pair goes through its cases `LAPS` times, and up to `MOST_LAPS` where all pairs have time for that. The first
    finds out: where a fifth of the time is over since its start, the laps that are left, or in the first lap the cases,
    are left out of every pair.
    Returns: by side, the records of each process.
    Raises: CompareError where a side does not start or does not live, or they have no case in common.
    """
    found: dict[str, list[list[Record]]] = {"A": [], "B": []}
    began, budget = now(), what.time_budget
    laps = LAPS if budget is None else MOST_LAPS
    labels: list[str] | None = None
    for pair in range(pairs):
        opened = now()
        with ExitStack() as stack:
            sides = {
                name: stack.enter_context(start(tree, what, scratch / f"{pair + 1}-{name}.jsonl"))
                for name, tree in trees.items()
            }
            offered = [side.cases() for side in sides.values()]
            if labels is None:
                labels = [label for label in offered[0] if label in set(offered[1])]
                if not labels:
                    raise CompareError("the two states have no case in common")
            ready = now()
            for lap, (at, label) in itertools.product(range(laps), enumerate(labels)):
                measured = now() - ready
                if pair == 0 and lap >= LAPS and not at and budget is not None:
                    if pairs * (now() - opened + measured / lap) > budget:
                        laps = lap
                        break
                if pair == 0 and (lap or at) and budget is not None and measured > budget / FIRST:
                    if not lap:
                        say(f"{at} of {len(labels)} cases fit into {budget:g} s: narrow them, or give --time-budget")
                    laps, labels = max(lap, 1), labels if lap else labels[:at]
                    break
                for name in order(pair + lap + at):
                    sides[name].measure(label)
            for name, side in sides.items():
                found[name].append(side.records())
        took = now() - opened
        say(f"{pair + 1}/{pairs}: {len(labels)} cases, {laps} times, in {took:.1f} s")
        if budget is not None and pair and now() - began + took > budget and pair + 1 < pairs:
            say(f"the time is over after {pair + 1} of {pairs} pairs; --time-budget gives more")
            break
    return found


def race_apart(
    trees: Mapping[str, Path], what: RaceRequest, pairs: int, scratch: Path, say: Callable[[str], None]
) -> dict[str, list[list[Record]]]:
    """The same with `spectralbench run` of each state's own harness, process after process: A B B A."""
    found: dict[str, list[list[Record]]] = {"A": [], "B": []}
    turns = "".join(map(order, range(pairs)))
    for number, side in enumerate(turns, start=1):
        found[side].append(_run(trees[side], scratch / f"{number}-{side}", what, len(turns)))
        say(f"{number}/{len(turns)} {side}: {len(found[side][-1])} records")
    return found


def order(turn: int) -> str:
    """AB, BA, AB, ...: what comes first, and a drift of the host, falls on both alike."""
    return "AB" if turn % 2 == 0 else "BA"


def failure(tree: Path, what: str, log: str) -> str:
    """What is said of a process that gave no records: the end of what it said itself."""
    said = "\n".join(log.strip().splitlines()[-8:])
    hint = "--own-harness takes the one of their commit"
    return f"the kernels in {tree} do not run under this harness ({hint}), {what}\n{said}"


def _run(tree: Path, results: Path, what: RaceRequest, processes: int) -> list[Record]:
    command = [sys.executable, "-m", "spectralbench", "run", *what.operations, "--profile", what.profile]
    command += ["--launch", what.launch, "--metrics", ",".join(METRICS), "--processes", "1", "--quiet", "--json"]
    command += ["--results", str(results)]
    if what.implementations:
        command += ["--impl", ",".join(what.implementations)]
    for name, values in what.overrides.items():
        command += ["--set", f"{name}={values}"]
    if what.time_budget is not None:
        command += ["--time-budget", f"{what.time_budget / processes:.0f}"]
    done = subprocess.run(command, env=_paths(tree, tree / "bench"), capture_output=True, text=True, check=False)
    records = [record for file in read_tree(results / "records") for record in file.records]
    if not records:
        said = "\n".join((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-8:])
        raise CompareError(f"the kernels in {tree} do not run under their own harness:\n{said}")
    return records


def _paths(tree: Path, harness: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree / "kernels"), str(harness)])}


def main(arguments: Sequence[str]) -> None:
    """One side: see the module's words."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever an implementation prints is talk
    import torch

    from spectralbench import sweep
    from spectralbench.clock import usual_cache
    from spectralbench.record import record_line
    from spectralbench.worker import Result, State, Task, Timers, answer, resolve
    from spectralkernels.errors import RangeError

    told = json.loads(arguments[0])
    stored, launch, cpu_time = Path(told.pop("stored")), told.pop("launch"), told.pop("cpu_time")
    device, sources = sweep.choose_device(None), sweep.SOURCES
    if cpu_time:
        device, sources = "cpu", replace(sources, clock="spectralbench.clock:cpu_seconds_clock")
        torch.set_num_threads(1)
    try:
        request = sweep.Request(
            **told, metrics=METRICS, device=device, states=(State(launch, usual_cache(device)),), processes=1,
            sources=sources,
        )  # fmt: skip
        items = {item.label: item for item in sweep.plan(request)}
    except RangeError as error:
        print(error, file=sys.stderr)
        raise SystemExit(USAGE) from None
    operations, setup = resolve(request.sources.operations)(), sweep.setup_of(request)
    timers = Timers(setup)

    def tell(what: object) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    tell(list(items))
    with stored.open("w", encoding="utf-8") as file:
        for line in sys.stdin:
            item = items[json.loads(line)]
            task = Task(item.operation.name, item.case, item.pass_, item.implementations, item.states)
            outcomes = answer(task, operations, setup, timers)
            results = [{name: Result(outcome) for name, outcome in found.items()} for found in outcomes]
            file.writelines(record_line(record) for record in sweep.records_of(item, results, request))
            file.flush()
            tell(None)


if __name__ == "__main__":
    main(sys.argv[1:])
