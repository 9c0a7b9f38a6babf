"""Every implementation against its float64 reference on small cases, on the device itself, by several processes.

A check is a record without a time: one implementation of one case in one pass, through the gate of the measuring core.
All checks of a case and pass are one job, so that its inputs and reference are made once. What is timed passes the same
gate on its own case.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spectralbench import sweep
from spectralbench.gpu.budget import StageBudget
from spectralbench.gpu.plan import Excluded
from spectralbench.identity import Identity
from spectralbench.outcome import Outcome
from spectralbench.record import Record, from_outcome, read_file, record_line
from spectralbench.sweep import Item
from spectralbench.worker import Setup, State, Task, Worker, WorkerBroken
from spectralkernels.declare import Operation

LONGEST_CHECK = 120.0
ROUNDING = "rounding_error"
BYTES_PER_PROCESS = 12 << 30
"""Device memory that one process may need: the float64 reference of the largest case, several times over."""


def plan(request: sweep.Request) -> list[Item]:
    """Every job, the operations in turn, so that each of them is seen early; without what compiles for seconds."""
    items = sweep.plan(replace(request, profile="smoke", processes=1))
    plain = (
        replace(item, implementations=tuple(n for n in item.implementations if not item.operation.subject(n).compiled))
        for item in items
    )
    return [item for item in plain if item.implementations]


def checks(item: Item) -> dict[str, Identity]:
    """The checks of a job by implementation."""
    return {name: item.identity(name, State()) for name in item.implementations}


def processes(device: str) -> int:
    """How many processes check at once: as many as cores and device memory allow, at most eight."""
    if device != "cuda":
        return 1
    import torch

    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return max(1, min(8, (os.cpu_count() or 1) // 2, memory // BYTES_PER_PROCESS))


def check_all(
    jobs: Sequence[Item], path: Path, budget: StageBudget, setup: Setup, count: int, say: Callable[[str], None]
) -> list[Record]:
    """Check what `path` does not hold yet, until the stage's time is over; append each record as it comes.

    setup: of the processes; count: how many. Returns: all records in `path`, of this run and earlier ones.
    Raises: WorkerBroken if no process can be started.
    """
    found = read(path)
    known = {record.identity for record in found if record.failure != "timeout"}
    waiting = [job for job in (_without(item, known) for item in jobs) if job.implementations]
    planned, left = (sum(len(item.implementations) for item in items) for items in (jobs, waiting))
    say(f"correctness: {left} of {planned} checks, {count} processes, {budget.left('correctness'):.0f} s")
    if not waiting:
        return found
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")  # the line that a kill has torn stays alone
    queue, lock = iter(waiting), threading.Lock()
    trouble: list[WorkerBroken] = []

    def work() -> None:
        with Worker(setup) as worker:
            while (seconds := budget.left("correctness")) > 0 and not trouble:
                with lock:
                    job = next(queue, None)
                if job is None:
                    return
                task = Task(job.operation.name, job.case, job.pass_, job.implementations)
                try:
                    # Near the end a timeout is the stage's end, not the patience with a check.
                    ended = seconds < LONGEST_CHECK
                    results = worker.measure(task, min(LONGEST_CHECK, seconds), again=not ended)[0]
                except WorkerBroken as error:
                    trouble.append(error)
                    return
                made = [_record(job, name, results[name].outcome) for name in job.implementations]
                made = [record for record in made if not (ended and record.failure == "timeout")]
                with lock:
                    found.extend(made)
                    _append(path, made)
                    for record in made:
                        if record.status == "failed":
                            say(f"  failed: {describe(record)}")

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(count, len(waiting)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if trouble:
        raise trouble[0]
    return found


def _without(item: Item, known: Collection[Identity]) -> Item:
    """A job less the checks that were made before; a check that only ran out of time is made again."""
    return replace(item, implementations=tuple(name for name, check in checks(item).items() if check not in known))


def _record(job: Item, name: str, outcome: Outcome) -> Record:
    return from_outcome(
        outcome,
        **{**asdict(job.identity(name, State())), "case": dict(job.case.params)},
        role=job.operation.subject(name).role,
        replicate=0,
        profile="smoke",
        recorded_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def _append(path: Path, records: Sequence[Record]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(map(record_line, records)))
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Record]:
    """The records of a file; a line that a kill has torn is left out, and its check is made again."""
    return list(read_file(path).records) if path.exists() else []


def excluded(records: Sequence[Record], operations: Mapping[str, Operation]) -> Excluded:
    """Which of our kernels are not timed, because a check was not just slow or too large but wrong; the first reason.

    A wrong forward pass takes the passes with gradients along. Others' implementations stay: each must pass the gate
    again on every case that is timed, and a rival that is missing would flatter us.
    """
    reasons: dict[tuple[str, str, str], str] = {}
    for record in records:
        ours = operations[record.operation].subject(record.implementation).role == "kernel"
        if ours and record.failure in ("wrong", "error", "crash"):
            for pass_ in ("forward", "both", "backward") if record.pass_ == "forward" else (record.pass_,):
                who = (record.operation, record.implementation, pass_)
                reasons.setdefault(who, f"failed its check: {describe(record)}")
    return reasons


def describe(record: Record) -> str:
    """One line for people."""
    where = f"{record.operation} {record.implementation} [{record.case_id}] {record.dtype} {record.pass_}"
    return f"{where}: {record.failure or record.status}: {record.reason}"


def report(records: Sequence[Record], planned: int) -> tuple[dict[str, Any], str]:
    """The stage as JSON values and as text: totals, the largest error per implementation, failures, reasons to skip."""
    totals = Counter("right" if record.status == "measured" else record.status for record in records)
    errors: dict[str, float] = {}
    for record in records:
        if (error := record.metric(ROUNDING)) is not None:
            who = f"{record.operation} {record.implementation} {record.dtype}"
            errors[who] = max(errors.get(who, 0.0), error.median)
    failed = [describe(record) for record in records if record.status == "failed"]
    skipped = Counter(
        f"{record.operation} {record.implementation}: {record.reason}"
        for record in records
        if record.status == "skipped"
    )
    facts: dict[str, Any] = {
        "planned": planned,
        "made": len(records),
        **{status: totals[status] for status in ("right", "failed", "skipped")},
        "failures": failed,
        "largest_rounding_error": errors,
        "skips": dict(skipped),
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    head = (
        f"{len(records)} of {planned} checks made: {totals['right']} right, {totals['failed']} failed, "
        f"{totals['skipped']} skipped"
    )
    lines = [head, "", *(f"failed: {text}" for text in failed)]
    lines += [f"{error:.2e}  {who}" for who, error in sorted(errors.items())]
    lines += [f"skipped {count}: {text}" for text, count in skipped.items()]
    return facts, "\n".join(lines) + "\n"


def setup(request: sweep.Request) -> Setup:
    """Of processes that check and time nothing."""
    return Setup(request.sources, request.device, (ROUNDING,), None)
