"""Every implementation against its float64 reference on small cases, on the device itself, by several processes.

A check is one implementation of one case in one pass, through the gate of the measuring core; all checks of a case and
pass are one job, so that its inputs and reference are made once. What is timed passes the same gate on its own case.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from spectralbench import sweep
from spectralbench.gpu.budget import Budget
from spectralbench.gpu.plan import Excluded
from spectralbench.identity import Identity
from spectralbench.outcome import Failed, Measured, Outcome, Skipped
from spectralbench.sweep import Item
from spectralbench.worker import Setup, State, Task, Worker, WorkerBroken
from spectralkernels.declare import Operation

LONGEST_CHECK = 120.0
WHOLE = {field.name for field in fields(Identity)}
BYTES_PER_PROCESS = 12 << 30
"""Device memory that one process may need: the float64 reference of the largest case, several times over."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a check: status is "right", "skipped" or "failed"; kind is a failure's."""

    check: Identity
    status: str
    kind: str | None = None
    reason: str | None = None
    rounding_error: float | None = None


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
    jobs: Sequence[Item], path: Path, budget: Budget, setup: Setup, count: int, say: Callable[[str], None]
) -> list[Finding]:
    """Check what `path` does not hold yet, until the stage's time is over; append each finding as it comes.

    setup: of the processes; count: how many. Returns: all findings in `path`, of this run and earlier ones.
    Raises: WorkerBroken if no process can be started.
    """
    found = read(path)
    known = {finding.check for finding in found if finding.kind != "timeout"}
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
                findings = [
                    _finding(check, results[name].outcome)
                    for name, check in checks(job).items()
                    if not (ended and _timed_out(results[name].outcome))
                ]
                with lock:
                    found.extend(findings)
                    _append(path, findings)
                    for finding in findings:
                        if finding.status == "failed":
                            say(f"  failed: {describe(finding)}")

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


def _timed_out(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and outcome.kind == "timeout"


def _finding(check: Identity, outcome: Outcome) -> Finding:
    match outcome:
        case Measured(measurements):
            return Finding(check, "right", rounding_error=measurements[0].median)
        case Skipped(reason):
            return Finding(check, "skipped", reason=reason)
        case Failed(kind, error):
            return Finding(check, "failed", kind, error)


def _append(path: Path, findings: Sequence[Finding]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(asdict(finding)) + "\n" for finding in findings))
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Finding]:
    """The findings of a file; a line that a kill has torn, or that does not say all of what was checked, is left out.

    Its check is made again.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            stored = json.loads(line)
        except json.JSONDecodeError:
            continue
        check = stored["check"]
        if check.keys() == WHOLE:
            found.append(Finding(**{**stored, "check": Identity(**{**check, "fft_size": tuple(check["fft_size"])})}))
    return found


def excluded(findings: Sequence[Finding], operations: Mapping[str, Operation]) -> Excluded:
    """Which of our kernels are not timed, because a check was not just slow or too large but wrong; the first reason.

    A wrong forward pass takes the passes with gradients along. Others' implementations stay: each must pass the gate
    again on every case that is timed, and a rival that is missing would flatter us.
    """
    reasons: dict[tuple[str, str, str], str] = {}
    for finding in findings:
        check = finding.check
        ours = operations[check.operation].subject(check.implementation).role == "kernel"
        if ours and finding.status == "failed" and finding.kind in ("wrong", "error", "crash"):
            for pass_ in ("forward", "both", "backward") if check.pass_ == "forward" else (check.pass_,):
                who = (check.operation, check.implementation, pass_)
                reasons.setdefault(who, f"failed its check: {describe(finding)}")
    return reasons


def describe(finding: Finding) -> str:
    """One line for people."""
    check = finding.check
    where = f"{check.operation} {check.implementation} [{check.case}] {check.dtype} {check.pass_}"
    return f"{where}: {finding.kind or finding.status}: {finding.reason}"


def report(findings: Sequence[Finding], planned: int) -> tuple[dict[str, Any], str]:
    """The stage as JSON values and as text: totals, the largest error per implementation, failures, reasons to skip."""
    totals = Counter(finding.status for finding in findings)
    errors: dict[str, float] = {}
    for finding in findings:
        if finding.rounding_error is not None:
            who = f"{finding.check.operation} {finding.check.implementation} {finding.check.dtype}"
            errors[who] = max(errors.get(who, 0.0), finding.rounding_error)
    failed = [describe(finding) for finding in findings if finding.status == "failed"]
    skipped = Counter(
        f"{finding.check.operation} {finding.check.implementation}: {finding.reason}"
        for finding in findings
        if finding.status == "skipped"
    )
    facts: dict[str, Any] = {
        "planned": planned,
        "made": len(findings),
        **{status: totals[status] for status in ("right", "failed", "skipped")},
        "failures": failed,
        "largest_rounding_error": errors,
        "skips": dict(skipped),
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    head = (
        f"{len(findings)} of {planned} checks made: {totals['right']} right, {totals['failed']} failed, "
        f"{totals['skipped']} skipped"
    )
    lines = [head, "", *(f"failed: {text}" for text in failed)]
    lines += [f"{error:.2e}  {who}" for who, error in sorted(errors.items())]
    lines += [f"skipped {count}: {text}" for text, count in skipped.items()]
    return facts, "\n".join(lines) + "\n"


def setup(request: sweep.Request) -> Setup:
    """Of processes that check and time nothing."""
    return Setup(request.sources, request.device, ("rounding_error",), None)
