"""Expand a request into cases, measure what is not stored yet, and store each case as soon as it is done.

operations x profile x passes x processes, narrowed by implementation and overridden by parameter. The unit of
replication is the process: the whole list runs once per process, each time in a fresh one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from spectralbench import asked, journal
from spectralbench.identity import Identity
from spectralbench.journal import Journal, Kept, RecordKey, record_key
from spectralbench.outcome import FailureKind, Measured
from spectralbench.record import Damage, Record, from_outcome
from spectralbench.worker import Result, Setup, Sources, State, Task, Worker, resolve
from spectralkernels import declare
from spectralkernels.declare import Case, Operation, Pass, with_seed
from spectralkernels.errors import RangeError

PROCESSES: Mapping[str, int] = {"smoke": 1, "quick": 1, "asv": 1, "study": 5, "claims": 3, "models": 1, "gpu": 5}
"""Default replicates: what is published is repeated over processes, what is looked at once is not."""

BUDGETS: Mapping[str, Mapping[str, float]] = {
    "smoke": {"min_rounds": 3, "max_rounds": 20, "seconds": 0.1},
    "quick": {"min_rounds": 5, "max_rounds": 100, "seconds": 0.5},
    "asv": {"seconds": 1.0},
    "study": {"seconds": 0.5},
    "claims": {"seconds": 2.0},
    "gpu": {"seconds": 1.0},
    "models": {"min_rounds": 5, "max_rounds": 30, "seconds": 1.0},
}
"""Fields of `measure.Budget` per profile; what is left out keeps its default."""

SOURCES = Sources(operations="spectralbench.workloads:load_operations")
"""What the command line sweeps and measures with."""

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Request:
    """What to sweep; None means "as the profile says".

    operations: names, empty for all. overrides: parameter name -> comma-separated values as text. cases: a file of
    cases to take instead of the profile's, of the one operation that is named (see `shapes`).
    states: how every case is timed, all by one process that checks it once.
    retry: kinds of stored failures that are measured again. remeasure: whether all that is stored is.
    timeout: seconds one case may take. patience: those of one step, see `worker.Setup`. time_budget: seconds after
    which no case is started. abandon: nor does one go on, and what ends so is not stored. pin: see `worker.Setup`.
    select: from the items of the plan to those that are wanted, in the wanted order; default all as they are.
    """

    operations: tuple[str, ...] = ()
    profile: str = "quick"
    implementations: tuple[str, ...] | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    cases: Path | None = None
    metrics: tuple[str, ...] | None = None
    seed: int = 0
    processes: int | None = None
    device: str = "cpu"
    states: tuple[State, ...] = (State(),)
    timeout: float = 300.0
    patience: float = math.inf
    time_budget: float | None = None
    abandon: bool = False
    retry: tuple[FailureKind, ...] = ()
    remeasure: bool = False
    pin: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    select: Callable[[list[Item]], list[Item]] = list
    sources: Sources = SOURCES


@dataclass(frozen=True, slots=True)
class Item:
    """One case in one pass by one process, with the implementations to time interleaved, in each of the states.

    apart: implementations that an earlier run has stored already, so that these are not interleaved with them.
    """

    operation: Operation
    case: Case
    pass_: Pass
    implementations: tuple[str, ...]
    replicate: int
    fft_size: tuple[int, ...]
    cost: Mapping[str, int]
    states: tuple[State, ...]
    apart: tuple[str, ...] = ()

    def key(self, name: str, state: State, request: Request) -> RecordKey:
        """What the journal knows the measurement by."""
        return self.identity(name, state), self.replicate, request.profile

    def identity(self, name: str, state: State) -> Identity:
        """What is measured when the implementation `name` is timed in `state`."""
        return Identity(
            self.operation.name, self.operation.version, name, self.case.id, self.case.dtype, self.pass_, self.fft_size,
            state.cache, state.launch, self.case.seed,
        )  # fmt: skip

    @property
    def label(self) -> str:
        """Operation, case and what differs from the usual, for people."""
        extra = "" if self.pass_ == "forward" else f" {self.pass_}"
        extra += "" if self.case.dtype == "float32" else f" {self.case.dtype}"
        return f"{self.operation.name}[{self.case.id}]{extra}"


@dataclass(slots=True)
class Sweep:
    """What became of a request: every record of the plan, stored before or measured now, and what is left.

    elsewhere: how many are stored at this commit and do not serve, by what differs in their conditions.
    """

    records: list[Record]
    reused: int
    left: list[Item]
    damage: list[Damage]
    elsewhere: Counter[str] = field(default_factory=Counter)
    path: Path | None = None
    stopped: Literal["time budget", "interrupt"] | None = None


class Progress(Protocol):
    """Who watches a sweep."""

    def start(self, item: Item, done: int, total: int) -> None: ...

    def finish(self, item: Item, records: Sequence[Record]) -> None: ...


def plan(request: Request) -> list[Item]:
    """Every item that a request asks for, stored or not: the operations in turn, each in declared order.

    In turn, so that a sweep that runs out of time has something of every operation.

    Raises: RangeError on an unknown operation, implementation, parameter, profile or metric (the message has the known
    ones), on a value that a parameter cannot take, and when nothing is left to run.
    """
    operations = resolve(request.sources.operations)()
    chosen = asked.narrowed(request, choose_operations(request.operations, operations))
    asked.check_metrics(request.metrics)
    for state in request.states:
        resolve(request.sources.clock)(request.device, state.cache, state.launch)  # refuses what it cannot be
    queues: list[list[Item]] = []
    for operation in chosen:
        queues.append([])
        merged: dict[tuple[Case, Pass], set[str]] = {}
        for case, pass_, allowed in asked.cases(request, operation):
            merged.setdefault((with_seed(case, request.seed), pass_), set()).update(allowed)
        for (case, pass_), allowed_names in merged.items():
            names = tuple(
                known.name
                for known in operation.subjects
                if known.name in allowed_names
                and (not request.implementations or known.name in request.implementations)
            )
            if names:
                cost = operation.cost(case)
                floor = {"bytes_read": cost.bytes_read, "bytes_written": cost.bytes_written, "flops": cost.flops}
                size = tuple(operation.fft_size(case))
                queues[-1].append(Item(operation, case, pass_, names, 0, size, floor, request.states))
    items = [item for turn in itertools.zip_longest(*queues) for item in turn if item is not None]
    if not items:
        raise RangeError(
            f"nothing to run: profile {request.profile!r} of {', '.join(found.name for found in chosen)} has no legal "
            "case under these --impl and --set; see `spectralbench list`"
        )
    asked.check_all_run(request, chosen, {name for item in items for name in item.implementations})
    processes = request.processes or PROCESSES[request.profile]
    return request.select([replace(item, replicate=replicate) for replicate in range(processes) for item in items])


def choose_device(name: str | None) -> str:
    """The device of that name, or the machine's best; RangeError where it does not exist."""
    from spectralbench.environment import device_kind

    if name is None:
        return device_kind()
    if name not in DEVICES:
        raise RangeError(f"unknown device {name!r}; known: {', '.join(DEVICES)}")
    if name == "cuda" and device_kind() != "cuda":
        raise RangeError("device 'cuda' was asked for, but torch finds no CUDA device here; use --device cpu")
    return name


def surroundings(
    device: str, pin: Mapping[str, Mapping[str, int]] | None = None, outside: str | None = None
) -> dict[str, Any]:
    """The environment of the code that is measured (not of the working directory), for records made on `device`.

    Without git a digest of the measured sources, `source`, stands in for the commit. A CPU is a machine of its own even
    where a GPU gave the machine its name. Code with pinned tiles, or from plug-ins (`outside`: their digest), differs
    from its commit: it is dirty, no baseline.
    """
    from spectralbench import checkout, environment

    code = [Path(declare.__file__).parent, Path(__file__).parent]
    facts = {**environment.capture(Path(declare.__file__)), "device": device}
    if facts["commit"] is None:
        facts["source"] = checkout.digest(code)
    for name, differs in (("pin", pin), ("plugins", outside)):
        if differs:
            facts[name] = differs
            told = f"{facts['dirty']} {json.dumps(differs, sort_keys=True)}"
            facts["dirty"] = hashlib.sha256(told.encode()).hexdigest()[:8]
    if device == "cpu" and environment.device_kind() == "cuda" and not os.environ.get("SPECTRALBENCH_MACHINE"):
        facts["machine"] = environment.cpu_machine()
    return facts


def choose_operations(names: Sequence[str], operations: Mapping[str, Operation]) -> list[Operation]:
    """The operations of these names, all where none is named; RangeError lists the known ones."""
    for name in names:
        if name not in operations:
            raise RangeError(f"unknown operation {name!r}; known: {', '.join(operations)}")
    return [operations[name] for name in dict.fromkeys(names)] or list(operations.values())


def pending(
    items: Sequence[Item], known: Mapping[RecordKey, Record], request: Request
) -> tuple[list[Item], list[Record]]:
    """What is still to be measured, and the stored records that the rest of the plan is served from."""
    todo: list[Item] = []
    reused: list[Record] = []
    for item in items:
        # States that lack the same implementations are measured together.
        together: dict[tuple[tuple[str, ...], tuple[str, ...]], list[State]] = {}
        for state in item.states:
            found = {name: known.get(item.key(name, state, request)) for name in item.implementations}
            serving = {
                name: record for name, record in found.items() if record is not None and _serves(record, request)
            }
            missing = tuple(name for name in item.implementations if name not in serving)
            measured = tuple(name for name, record in serving.items() if record.status == "measured")
            reused.extend(serving.values())
            if missing:
                together.setdefault((missing, measured), []).append(state)
        for (missing, measured), states in together.items():
            todo.append(replace(item, implementations=missing, apart=measured, states=tuple(states)))
    return todo, reused


def kept(results: Path, environment: Mapping[str, Any]) -> Kept:
    """What the machine of `environment` has stored below `results` at its code state."""
    return journal.kept(_folder(results, environment), environment)


def preview(request: Request, results: Path, environment: Mapping[str, Any], known: Kept | None = None) -> Sweep:
    """What `run` would do: `left` is what it would measure, `records` what is stored already.

    known: what `kept` says, where it has been read before.
    """
    items = plan(request)
    have = (kept(results, environment) if known is None else known).by(record_key)
    todo, reused = pending(items, {} if request.remeasure else have.records, request)
    elsewhere = Counter(
        have.elsewhere[one]
        for item in todo
        for state in item.states
        for name in item.implementations
        if (one := item.key(name, state, request)) in have.elsewhere
    )
    return Sweep(reused, len(reused), todo, list(have.damage), elsewhere)


def run(
    request: Request,
    results: Path,
    environment: Mapping[str, Any],
    progress: Progress | None = None,
    known: Kept | None = None,
) -> Sweep:
    """Measure what `request` asks for and the history lacks; store each case when it is done.

    results: the folder that has `records/`. environment: see `surroundings`. known: what `kept` says, where it has
    been read before; what is stored now is added to it.
    Ctrl-C and the time budget end the sweep early: `stopped` says which, `left` what was not measured.
    Raises: RangeError (see `plan`); JournalError where records cannot be written; WorkerBroken.
    """
    sweep = preview(request, results, environment, known)
    if not sweep.left:
        return sweep
    todo, sweep.left = sweep.left, []
    done: list[Item] = []
    began = time.monotonic()
    with Journal.open(_folder(results, environment), environment) as file:
        sweep.path = file.path
        try:
            for replicate in sorted({item.replicate for item in todo}):
                with Worker(setup_of(request)) as worker:
                    for item in (item for item in todo if item.replicate == replicate):
                        elapsed = time.monotonic() - began
                        if not _fits(request.time_budget, elapsed, len(done)):
                            sweep.stopped = "time budget"
                            break
                        patience = _patience(request, elapsed)
                        if progress:
                            progress.start(item, len(done), len(todo))
                        task = Task(item.operation.name, item.case, item.pass_, item.implementations, item.states)
                        answers = worker.measure(task, patience, again=patience == request.timeout)
                        records = records_of(item, answers, request)
                        if patience < request.timeout and any(one.failure == "timeout" for one in records):
                            sweep.stopped = "time budget"
                            break
                        file.append(records)
                        if known is not None:
                            known.records.extend(records)
                        sweep.records.extend(records)
                        done.append(item)
                        if progress:
                            progress.finish(item, records)
                if sweep.stopped:
                    break
        except KeyboardInterrupt:
            sweep.stopped = "interrupt"
    sweep.left = todo[len(done) :]
    return sweep


def _serves(record: Record, request: Request) -> bool:
    """Whether a stored record answers the request, so that it need not be measured again."""
    if record.status == "failed":
        return record.failure not in request.retry
    if record.status == "measured" and request.metrics is not None:
        taken = {found.metric for found in record.measurements} | (record.unavailable or {}).keys()
        return set(request.metrics) <= taken
    return True


def _fits(budget: float | None, elapsed: float, done: int) -> bool:
    """Whether another case, as long as the ones before were on average, ends within the budget."""
    return budget is None or elapsed + elapsed / max(done, 1) <= budget


def _patience(request: Request, elapsed: float) -> float:
    """Seconds that the next case may take."""
    if not request.abandon or request.time_budget is None:
        return request.timeout
    return min(request.timeout, request.time_budget - elapsed)


def setup_of(request: Request) -> Setup:
    """What a worker must know to measure the items of a request."""
    from spectralbench.measure import Budget

    budget = Budget(**BUDGETS[request.profile])  # type: ignore[arg-type]
    return Setup(request.sources, request.device, request.metrics, budget, request.pin, request.patience)


def records_of(item: Item, results: Sequence[Mapping[str, Result]], request: Request) -> list[Record]:
    shared = {"profile": request.profile, "recorded_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
    apart = f"not interleaved with {', '.join(item.apart)}, stored by an earlier run" if item.apart else None
    records = []
    for state, found in zip(item.states, results, strict=True):
        for name, result in found.items():
            # A failure says its own reason; on a measurement the note is the reader's warning.
            note = {"reason": result.note or apart} if isinstance(result.outcome, Measured) else {}
            records.append(
                from_outcome(
                    result.outcome,
                    **{**dataclasses.asdict(item.identity(name, state)), "case": dict(item.case.params)},
                    role=item.operation.subject(name).role,
                    replicate=item.replicate,
                    cost=item.cost,
                    **shared,
                    **note,
                )
            )
    return records


def _folder(results: Path, environment: Mapping[str, Any]) -> Path:
    return results / "records" / str(environment["machine"])
