"""Measure cases in a process of their own, kept warm, and replace it when a case breaks it.

A segmentation fault, an endless loop, a sticky CUDA error or a full memory must cost one case, not the sweep. The
worker is spawned (CUDA does not survive a fork), leads its own process group (so that compilers it started die with
it, and Ctrl-C reaches only the parent), and dies with its parent.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from spectralbench import at_work
from spectralbench.outcome import Failed, Outcome
from spectralkernels.declare import Case, Operation, Pass

START_SECONDS = 300.0
"""Longest start of a worker: importing torch from a cold disk and making a CUDA context."""
END_SECONDS = 10.0
"""Longest end of a killed worker: a driver may hold a process whose kernel never ends, and it is then left to it."""
LOOKS = 5
"""How often a worker is looked at while one step of an implementation may last."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a worker finds what it runs, as `module:callable`; a spawned process can only be told names.

    operations(): every Operation by name. measure: see `measure.measure_states`. clock: see `clock.clock_for`.
    """

    operations: str = "spectralkernels.ops:load_operations"
    measure: str = "spectralbench.measure:measure_states"
    clock: str = "spectralbench.clock:clock_for"


@dataclass(frozen=True, slots=True)
class State:
    """How calls are made while they are timed: launch "eager" or "graph", cache "warm" or "cold"."""

    launch: str = "eager"
    cache: str = "warm"


@dataclass(frozen=True, slots=True)
class Setup:
    """What is the same for every case of a worker's life.

    budget: a `measure.Budget`. pin: tiles that every kernel takes, see `spectralkernels.tuning.pinned`.
    patience: seconds that one step of one implementation may take (a check, a sample, a metric).
    """

    sources: Sources
    device: str
    metrics: tuple[str, ...] | None
    budget: Any
    pin: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    patience: float = math.inf


@dataclass(frozen=True, slots=True)
class Task:
    """One case, one pass, the implementations to time interleaved, in each of the states."""

    operation: str
    case: Case
    pass_: Pass
    implementations: tuple[str, ...]
    states: tuple[State, ...] = (State(),)


@dataclass(frozen=True, slots=True)
class Result:
    """An outcome, and what a reader must know about how it came about."""

    outcome: Outcome
    note: str | None = None


@dataclass(frozen=True, slots=True)
class _Reply:
    outcomes: tuple[Mapping[str, Outcome], ...]
    healthy: bool


class WorkerBroken(RuntimeError):
    """A worker process did not get as far as its first case; the message says why."""


class _Lost(Exception):
    """The worker died or was killed inside a task. stuck: who was at a step that did not end, where that is known."""

    def __init__(self, failed: Failed, stuck: str | None = None) -> None:
        super().__init__(failed.error)
        self.failed = failed
        self.stuck = stuck


class Worker:
    """A warm measuring process; made at the first task and again after each loss."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._context = multiprocessing.get_context("spawn")
        self._board = at_work.Board()

    def measure(self, task: Task, timeout: float, *, again: bool = True) -> list[dict[str, Result]]:
        """The result of every implementation of `task`, by state, whatever they do to the process.

        timeout: seconds that one case may take before its process is killed.
        again: where a case with several implementations loses the worker, each is run again alone, so that the guilty
        one is named and the others keep their numbers, with a note that they were not timed interleaved. If False,
        only after a crash, which takes no time.
        Those whose process another implementation spoiled, or kept for longer than the setup's patience, are measured
        together in a new one, without the guilty one.
        Raises: WorkerBroken if no worker can be started.
        """
        try:
            outcomes = self._ask(task, timeout)
        except _Lost as lost:
            if lost.stuck in task.implementations:
                spared = Failed("timeout", lost.failed.error, innocent=True)
                found = {name: lost.failed if name == lost.stuck else spared for name in task.implementations}
                return self._spared(task, timeout, again, [found for _ in task.states])
            if len(task.implementations) == 1 or not (again or lost.failed.kind == "crash"):
                return [dict.fromkeys(task.implementations, Result(lost.failed)) for _ in task.states]
            return self._one_by_one(task, timeout, lost.failed)
        return self._spared(task, timeout, again, outcomes)

    def stop(self) -> None:
        """End the process and everything it started."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(_pid(process), signal.SIGKILL)
            process.kill()  # where it died before it led a group of its own
            process.join(END_SECONDS)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spared(
        self, task: Task, timeout: float, again: bool, outcomes: Sequence[Mapping[str, Outcome]]
    ) -> list[dict[str, Result]]:
        """The outcomes as results, the innocent ones anew."""
        left = tuple(name for name in task.implementations if any(_innocent(found[name]) for found in outcomes))
        results = [{name: Result(outcome) for name, outcome in found.items()} for found in outcomes]
        if 0 < len(left) < len(task.implementations):
            anew = self.measure(replace(task, implementations=left), timeout, again=again)
            for found, result, now in zip(outcomes, results, anew, strict=True):
                result.update({name: now[name] for name in left if _innocent(found[name])})
        return results

    def _one_by_one(self, task: Task, timeout: float, together: Failed) -> list[dict[str, Result]]:
        note = f"timed alone, not interleaved: together with {', '.join(task.implementations)} it ended in "
        results: list[dict[str, Result]] = [{} for _ in task.states]
        for name in task.implementations:
            try:
                alone = self._ask(replace(task, implementations=(name,)), timeout)
                for found, outcomes in zip(results, alone, strict=True):
                    found[name] = Result(outcomes[name], f"{note}{together.kind} ({together.error})")
            except _Lost as lost:
                for found in results:
                    found[name] = Result(lost.failed)
        return results

    def _ask(self, task: Task, timeout: float) -> Sequence[Mapping[str, Outcome]]:
        connection, process = self._started()
        try:
            connection.send(task)
            reply: _Reply = self._receive(connection, process, timeout)
        except _Lost:
            self.stop()
            raise
        if not reply.healthy:
            self.stop()
        return reply.outcomes

    def _receive(self, connection: Connection, process: multiprocessing.process.BaseProcess, timeout: float) -> Any:
        end, patience = time.monotonic() + timeout, self._setup.patience
        # The sentinel is watched too: a grandchild may hold the pipe open after the worker's death.
        while not wait([connection, process.sentinel], min(end - time.monotonic(), patience / LOOKS)):
            stuck = self._board.stuck(patience)
            if stuck is not None:
                why = f"{stuck} was at one step for more than {patience:g} s, so its process was killed"
                raise _Lost(Failed("timeout", why), stuck)
            if time.monotonic() >= end:
                raise _Lost(Failed("timeout", f"no result within {timeout:g} s, so its process was killed"))
        try:
            if connection.poll():
                return connection.recv()
        except (EOFError, ConnectionError):
            pass  # a closed pipe means that the process has ended; how, is said below
        process.join(timeout=10)
        raise _Lost(Failed("crash", _how_it_ended(process.exitcode)))

    def _started(self) -> tuple[Connection, multiprocessing.process.BaseProcess]:
        if self._process is not None and self._connection is not None and self._process.is_alive():
            return self._connection, self._process
        self.stop()
        ours, theirs = self._context.Pipe()
        self._board.write("", 0.0)
        process = self._context.Process(
            target=serve, args=(theirs, self._setup, self._board), name="spectralbench-worker", daemon=False
        )
        process.start()
        theirs.close()
        self._connection, self._process = ours, process
        try:
            trouble = self._receive(ours, process, START_SECONDS)
        except _Lost as lost:
            trouble = lost.failed.error
        if trouble is not None:
            self.stop()
            raise WorkerBroken(f"the measuring process did not start: {trouble}; run the case in this process to see")
        return ours, process


def serve(connection: Connection, setup: Setup, board: at_work.Board) -> None:
    """What the worker process runs: answer tasks until the parent hangs up or the device is beyond use."""
    os.setsid()
    os.dup2(2, 1)  # stdout is the parent's data; whatever an implementation prints is talk
    faulthandler.enable()
    at_work.write_to(board)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        operations = resolve(setup.sources.operations)()
        resolve(setup.sources.measure)
        timers = Timers(setup)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        outcomes = answer(task, operations, setup, timers)
        healthy = all(_healthy(found, setup.device) for found in outcomes) and not timers.damaged
        connection.send(_Reply(tuple(outcomes), healthy))
        if not healthy:
            return


def answer(
    task: Task, operations: Mapping[str, Operation], setup: Setup, timers: Timers
) -> Sequence[Mapping[str, Outcome]]:
    """The outcomes of a task in this process, by state; what goes wrong around the measuring fails all of them."""
    from spectralbench.failures import failure
    from spectralkernels.tuning import pinned

    try:
        with pinned(setup.pin):
            outcomes: Sequence[Mapping[str, Outcome]] = resolve(setup.sources.measure)(
                operations[task.operation],
                task.case,
                task.implementations,
                [timers.of(state) for state in task.states],
                device=setup.device,
                pass_=task.pass_,
                metrics=setup.metrics,
                budget=setup.budget,
            )
            return outcomes
    except Exception as error:
        return [dict.fromkeys(task.implementations, failure(error)) for _ in task.states]


def resolve(source: str) -> Any:
    """The object that `module:name` points to."""
    module, _, name = source.partition(":")
    return getattr(importlib.import_module(module), name)


class Timers:
    """A clock per state, with what it says the device can do at most; each is made when a task first asks for it."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._found: dict[State, tuple[Any, Any]] = {}

    def of(self, state: State) -> tuple[Any, Any]:
        """(clock, ceilings); None for the ceilings of a process that times nothing, and on a CPU, where warm caches
        leave no floor under a time."""
        if state not in self._found:
            clock = resolve(self._setup.sources.clock)(self._setup.device, state.cache, state.launch)
            self._found[state] = clock, self._ceilings(clock)
        return self._found[state]

    @property
    def damaged(self) -> bool:
        """Whether a clock has left the process unfit for another case."""
        return any(getattr(clock, "damaged", False) for clock, _ in self._found.values())

    def _ceilings(self, clock: Any) -> Any:
        if not (self._setup.metrics is None or "device_time" in self._setup.metrics):
            return None
        from spectralbench.ceilings import usual_ceilings

        return usual_ceilings(clock, self._setup.device)


def _healthy(outcomes: Mapping[str, Outcome], device: str) -> bool:
    """Whether the process can be trusted with the next case: not after an out-of-memory or a sticky CUDA error."""
    failures = [outcome for outcome in outcomes.values() if isinstance(outcome, Failed)]
    if any(outcome.kind == "oom" for outcome in failures):
        return False
    if failures and device == "cuda":
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
    return True


def _innocent(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and outcome.innocent


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is None:
        return "its process closed the connection without ending"
    if exitcode >= 0:
        return f"its process ended with status {exitcode}"
    name = signal.Signals(-exitcode).name
    hint = " (often the system's out-of-memory killer)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def _pid(process: multiprocessing.process.BaseProcess) -> int:
    assert process.pid is not None, "only a started process is stopped"
    return process.pid
