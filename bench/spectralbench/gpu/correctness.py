"""Every implementation against its float64 reference on small cases, on the device itself, by several processes.

A check is a record without a time: one implementation of one case in one pass, through the gate of the measuring core.
The processes are sweeps of a share of the cases each, side by side, which store as every sweep does. What is timed
passes the same gate on its own case.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from spectralbench import sweep
from spectralbench.gpu.budget import StageBudget
from spectralbench.gpu.plan import Excluded
from spectralbench.gpu.sweeping import LONGEST_STEP, Failures
from spectralbench.record import Record
from spectralkernels.declare import Operation

LONGEST_CHECK = 120.0
ROUNDING = "rounding_error"
BYTES_PER_PROCESS = 12 << 30
"""Device memory that one process may need: the float64 reference of the largest case, several times over."""


def checks(request: sweep.Request) -> sweep.Request:
    """The request of the checks: the operations in turn, so that each of them is seen early."""
    return replace(
        request, profile="smoke", processes=1, metrics=(ROUNDING,), timeout=LONGEST_CHECK, retry=("timeout",),
        patience=LONGEST_STEP, abandon=True, select=_uncompiled,
    )  # fmt: skip


def _uncompiled(items: list[sweep.Item], start: int = 0, step: int = 1) -> list[sweep.Item]:
    """Every `step`-th item, without what compiles for seconds."""
    plain = (
        replace(item, implementations=tuple(n for n in item.implementations if not item.operation.subject(n).compiled))
        for item in items
    )
    return [item for item in plain if item.implementations][start::step]


def processes(device: str) -> int:
    """How many processes check at once: as many as cores and device memory allow, at most eight."""
    if device != "cuda":
        return 1
    import torch

    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return max(1, min(8, (os.cpu_count() or 1) // 2, memory // BYTES_PER_PROCESS))


def check_all(
    request: sweep.Request,
    out: Path,
    environment: Mapping[str, Any],
    budget: StageBudget,
    count: int,
    say: Callable[[str], None],
) -> sweep.Sweep:
    """Check what `out` does not hold yet, until the stage's time is over, by `count` processes.

    Returns: all records in `out`, of this run and earlier ones, and what is left.
    Raises: see `sweep.run`.
    """
    wanted = checks(request)
    known = sweep.kept(out, environment)
    before = sweep.preview(wanted, out, environment, known)
    left = sum(len(item.implementations) for item in before.left)
    say(f"correctness: {left} of {left + before.reused} checks, {count} processes, {budget.left('correctness'):.0f} s")
    trouble: list[Exception] = []

    def work(start: int) -> None:
        share = replace(
            wanted,
            select=partial(_uncompiled, start=start, step=count),
            time_budget=max(0.0, budget.left("correctness")),
        )
        try:
            sweep.run(share, out, environment, Failures(say), known)
        except Exception as error:
            trouble.append(error)

    # Daemons, so that Ctrl-C does not wait for them.
    threads = [threading.Thread(target=work, args=(start,), daemon=True) for start in range(count) if left]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if trouble:
        raise trouble[0]
    # A check that ran out of its own time is made again by the next run, and is a failure of this one.
    return sweep.preview(replace(wanted, retry=()), out, environment, known)


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


def report(records: Sequence[Record], planned: int) -> str:
    """The stage as text: totals, failures, the largest error per implementation, reasons to skip."""
    totals = Counter(record.status for record in records)
    errors: dict[str, float] = {}
    for record in records:
        if (error := record.metric(ROUNDING)) is not None:
            who = f"{record.operation} {record.implementation} {record.dtype}"
            errors[who] = max(errors.get(who, 0.0), error.median)
    skipped = Counter(
        f"{one.operation} {one.implementation}: {one.reason}" for one in records if one.status == "skipped"
    )
    lines = [
        f"{len(records)} of {planned} checks made: {totals['measured']} right, {totals['failed']} failed, "
        f"{totals['skipped']} skipped",
        "",
        *(f"failed: {describe(record)}" for record in records if record.status == "failed"),
        *(f"{error:.2e}  {who}" for who, error in sorted(errors.items())),
        *(f"skipped {count}: {text}" for text, count in skipped.items()),
    ]
    return "\n".join(lines) + "\n"
